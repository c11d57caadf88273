"""The scoring operations by keywords alone, as `reference` takes them."""

from dataclasses import fields

from ntkfast import cuda_ops, ops

_INPUTS = tuple(field.name for field in fields(ops.ScoreInputs))


def _by_keywords(operation):
    def call(criterion, covariance, **keywords):
        inputs = {name: keywords.pop(name) for name in _INPUTS if name in keywords}
        return operation(criterion, covariance, ops.ScoreInputs(**inputs), **keywords)

    return call


score_features = _by_keywords(ops.score_features)
score_dense = _by_keywords(ops.score_dense)
score_blocks = _by_keywords(ops.score_blocks)
cuda_score_features = _by_keywords(cuda_ops.score_features)
cuda_score_dense = _by_keywords(cuda_ops.score_dense)
