"""The scoring operations by keywords alone, as `reference` takes them."""

from dataclasses import fields

import numpy as np

from ntkfast import cuda_ops, ops

_INPUTS = tuple(field.name for field in fields(ops.ScoreInputs))


def _by_keywords(operation):
    def call(criterion, covariance, **keywords):
        inputs = {name: keywords.pop(name) for name in _INPUTS if name in keywords}
        return operation(criterion, covariance, ops.ScoreInputs(**inputs), **keywords)

    return call


def output_by_output(covariance, k):
    """The columns of k x k blocks in the order of `cuda_ops.score_blocks`."""
    rows, columns = covariance.shape
    points = covariance.reshape(rows, columns // k, k)
    return np.ascontiguousarray(points.swapaxes(1, 2)).reshape(rows, columns)


score_features = _by_keywords(ops.score_features)
score_dense = _by_keywords(ops.score_dense)
score_blocks = _by_keywords(ops.score_blocks)
cuda_score_features = _by_keywords(cuda_ops.score_features)
cuda_score_dense = _by_keywords(cuda_ops.score_dense)
cuda_score_blocks = _by_keywords(cuda_ops.score_blocks)
