"""A query strategy for modAL 0.4: `look_ahead`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ..arrays import ArgumentTypeError, ArgumentValueError, Array, as_choice
from ._surrogate import (
    Kernel,
    Surrogate,
    array_of,
    check_criterion,
    check_kernel,
    host,
    kernel_model,
    linearised,
    network_model,
    network_of,
    numbered,
    rows_of,
    with_two_classes,
)

host("modAL", "'ntkfast[modal]'")

from modAL.models import BayesianOptimizer  # noqa: E402
from modAL.models.base import BaseCommittee  # noqa: E402

__all__ = ["look_ahead"]


def look_ahead(
    learner: Any,
    X_pool: Any,
    n_instances: int = 1,
    random_tie_break: bool = False,
    *,
    criterion: str = "auto",
    kernel: Kernel = "rbf",
    ridge: float | Literal["auto"] = "auto",
    mode: Literal["sequential", "top"] = "sequential",
    kernel_params: Mapping[str, Any] | None = None,
    criterion_params: Mapping[str, Any] | None = None,
    X_training: Any = None,
    y_training: Any = None,
) -> tuple[Array, Array]:
    """Query what would change the predictions on the pool for the better, without retraining.

    ``ActiveLearner(estimator, query_strategy=look_ahead, ...)``; settings go with the query,
    ``learner.query(X_pool, n_instances=5, criterion="epig")``, or into a `functools.partial`.

    Parameters
    ----------
    learner : modAL.models.ActiveLearner
        Its `X_training` and `y_training` are the labelled samples; without any, criteria that
        compare classes need an estimator that is fitted.
    X_pool : array-like (n_samples, ...), DataFrame, sparse matrix or list
        The pool: candidates, and the samples on which predictions count.
    n_instances : int
        Number of samples to choose.
    random_tie_break : bool
        Whether numpy's global random state breaks ties; else the first sample wins.
    criterion, ridge, mode, kernel_params, criterion_params
        As of `ntkfast.integrations.skactiveml.LookAhead`; with "features" `kernel_params` are
        keywords of ``learner.predict_proba``.
    kernel : str or callable
        As there; "ntk" needs a skorch net as estimator, "features" one that is fitted. With
        ``learner.on_transformed`` kernels see what the pipeline makes of the samples.
    X_training, y_training : array-like, optional
        The labelled samples of a `DeepActiveLearner`, which keeps none.

    Returns
    -------
    query_indices : ndarray (n_instances,)
        Indices into `X_pool`.
    utilities : ndarray (n_instances,)
        Utility of each when it was picked. Larger is better.

    Raises
    ------
    ValueError, TypeError
        The pool is too small; an argument that does not fit, by name. (modAL runs a strategy that
        fails once more.)
    """
    if isinstance(learner, (BaseCommittee, BayesianOptimizer)):
        raise ArgumentTypeError(
            "learner",
            f"learner is a {type(learner).__name__}; look_ahead asks what one classifier would "
            "learn: pass an ActiveLearner",
        )
    check_criterion(criterion)
    check_kernel(kernel, networks=True)
    as_choice("mode", mode, ("sequential", "top"))
    X_training = getattr(learner, "X_training", None) if X_training is None else X_training
    y_training = getattr(learner, "y_training", None) if y_training is None else y_training
    N = rows_of(X_pool)
    if isinstance(n_instances, bool) or not 1 <= n_instances <= N:
        raise ArgumentValueError(
            "n_instances", f"n_instances is {n_instances}; the pool has {N} samples"
        )
    surrogate = _surrogate(learner, X_pool, X_training, y_training, kernel, ridge, kernel_params)

    def at_random(points: Array, utility: Array) -> int:
        # From the state that modAL's own strategies draw from.
        return int(np.random.choice(np.flatnonzero(utility == utility.max())))  # noqa: NPY002

    return surrogate.select(
        criterion,
        np.arange(N),
        n_instances,
        mode,
        criterion_params,
        choose=at_random if random_tie_break else None,
    )


def _surrogate(
    learner: Any,
    X_pool: Any,
    X_training: Any,
    y_training: Any,
    kernel: Kernel,
    ridge: Any,
    parameters: Mapping[str, Any] | None,
) -> Surrogate:
    labels = [] if y_training is None else np.asarray(y_training).ravel().tolist()
    if X_training is None:
        X_training = X_pool[:0]
    if kernel == "ntk":
        network, loss = network_of(learner.estimator)
        k = np.asarray(learner.predict_proba(array_of(X_pool)[:1])).shape[1]
        # A net takes its labels for the numbers of its outputs, whichever it has seen.
        points, labeled = array_of(X_pool), array_of(X_training)
        return Surrogate(
            network_model(network, loss, parameters, points, labeled, labels, k, ridge)
        )
    classes = getattr(learner.estimator, "classes_", None)
    is_fitted = classes is not None
    targets, k = numbered("y_training", labels, classes)
    seen, labeled = (
        array_of(learner.transform_without_estimating(X) if learner.on_transformed else X)
        for X in (X_pool, X_training)
    )
    if kernel == "features":
        if not is_fitted:
            raise ArgumentTypeError(
                "kernel", 'kernel="features" needs a learner whose estimator is fitted'
            )
        P = learner.predict_proba(X_pool, **(parameters or {}))
        P_labeled = np.zeros((0, k))
        if labels:
            P_labeled = learner.predict_proba(X_training, **(parameters or {}))
        return Surrogate(linearised(seen, labeled, P, P_labeled, targets, ridge))
    posterior = kernel_model(kernel, parameters, seen, labeled, targets, k, ridge)
    if not is_fitted:
        return Surrogate(posterior, network=False)
    P = with_two_classes(learner.predict_proba(X_pool))
    return Surrogate(posterior, lambda of: P[of], network=False)
