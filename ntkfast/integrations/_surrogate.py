"""What the integrations share: a posterior from what hosts have at hand, and picks from it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np

from ..arrays import ArgumentTypeError, ArgumentValueError, Array, as_choice, as_numpy, library_of
from ..criteria import automatic, find
from ..posterior import Posterior
from ..selection import select, utilities

__all__ = [
    "Kernel",
    "Surrogate",
    "array_of",
    "check_criterion",
    "check_kernel",
    "host",
    "kernel_matrix",
    "kernel_model",
    "linearised",
    "network_model",
    "network_of",
    "numbered",
    "rows_of",
    "with_two_classes",
]

Kernel = str | Callable[[Any, Any], Any]
# What softmax is undone with where a classifier is certain.
_LEAST = float(np.finfo(np.float64).eps)
# Losses of torch, and what a network trained with them is to `LookAheadLearner`.
_LOSSES: dict[str, Literal["cross_entropy", "squared"]] = {
    "CrossEntropyLoss": "cross_entropy",
    "NLLLoss": "cross_entropy",
    "MSELoss": "squared",
}


def host(module: str, install: str) -> None:
    """Import a host, or say how to get it: ``pip install {install}``."""
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ImportError(f"this integration needs {module}: pip install {install}") from error


def check_kernel(kernel: Any, *, networks: bool) -> None:
    """Raise unless `kernel` is one of ours, one of scikit-learn's or a callable."""
    from sklearn.metrics.pairwise import PAIRWISE_KERNEL_FUNCTIONS

    if callable(kernel):
        return
    known = (*(("ntk",) if networks else ()), "features", *sorted(PAIRWISE_KERNEL_FUNCTIONS))
    if not isinstance(kernel, str):
        raise ArgumentTypeError(
            "kernel", f"kernel must be a name or a callable; got a {type(kernel).__name__}"
        )
    as_choice("kernel", kernel, known)


def check_criterion(criterion: Any) -> None:
    """Raise unless `criterion` is "auto", or one that needs nothing that hosts do not have."""
    if criterion != "auto" and "log_loss_targets" in find(criterion).needs:
        raise ArgumentValueError(
            "criterion",
            f"{criterion} needs log_loss_targets, which this host does not have: call "
            "ntkfast.utilities or ntkfast.select",
        )


def _check_keywords(
    name: str, given: Mapping[str, Any], call: Callable[..., Any], decided: Iterable[str]
) -> None:
    """Raise unless the keywords `given` are those of a call but for what the host decides."""
    parameters = inspect.signature(call).parameters
    known = [parameter for parameter in parameters if parameter not in {"self", *decided}]
    for key in given:
        if key not in known:
            raise ArgumentTypeError(
                name,
                f"{name} has {key!r}, which is not for {call.__name__} here; expected some of "
                f"{', '.join(known)}",
            )


def kernel_matrix(kernel: Kernel, parameters: Mapping[str, Any] | None, A: Any, B: Any) -> Array:
    """K (len(A), len(B)), float64, of a kernel of scikit-learn or of a callable on two sets."""
    if callable(kernel):
        K = np.asarray(kernel(A, B, **(parameters or {})), np.float64)
    else:
        from sklearn.metrics.pairwise import PAIRWISE_KERNEL_FUNCTIONS, pairwise_kernels

        _check_keywords(
            "kernel_params", parameters or {}, PAIRWISE_KERNEL_FUNCTIONS[kernel], ("X", "Y")
        )
        A, B = A.astype(np.float64), B.astype(np.float64)
        K = np.asarray(pairwise_kernels(A, B, metric=kernel, **(parameters or {})))
    shape = (rows_of(A), rows_of(B))
    if K.shape != shape:
        raise ArgumentValueError(
            "kernel",
            f"kernel(A, B) has shape {K.shape}; expected {shape}, the kernel of every row of A "
            "with every row of B",
        )
    return K


@dataclass
class Surrogate:
    """A posterior of N points, and how the labels of any of them are distributed.

    Attributes
    ----------
    posterior : Posterior
        Its points are those that were given, in their order.
    label_probs : callable or None
        From indices of points to P (n, k); None: P follows the posterior.
    network : bool
        Whether it is that of a trained classifier, and not a kernel ridge regression.
    """

    posterior: Posterior
    label_probs: Callable[[Array], Array] | None = None
    network: bool = True

    def _scored(
        self, call: Callable[..., Any], parameters: Mapping[str, Any] | None, **decided: Any
    ) -> Any:
        """Call `utilities` or `select` with what the host has decided and `criterion_params`."""
        keywords = dict(parameters or {})
        if decided["criterion"] == "auto":
            covers = self.posterior._space.per_point == 1
            decided["criterion"] = automatic(classes=self.network, covers=covers)
        check_criterion(decided["criterion"])
        _check_keywords("criterion_params", keywords, call, {"post", "log_loss_targets", *decided})
        if self.label_probs is not None and "label_probs" in find(decided["criterion"]).needs:
            keywords.setdefault("label_probs", self.label_probs(decided["candidates"]))
        return call(self.posterior, **decided, **keywords)

    def utilities(
        self, criterion: str, candidates: Array, parameters: Mapping[str, Any] | None
    ) -> Array:
        """Score the candidates as `ntkfast.utilities` does, in numpy.

        `parameters`, here and below: further keywords of the user, called `criterion_params`.
        """
        return _host_array(
            self._scored(utilities, parameters, criterion=criterion, candidates=candidates)
        )

    def select(
        self,
        criterion: str,
        candidates: Array,
        batch_size: int,
        mode: Any,
        parameters: Mapping[str, Any] | None,
        **decided: Any,
    ) -> tuple[Array, Array]:
        """Pick as `ntkfast.select` does; return indices and utilities, in numpy."""
        decided |= dict(
            criterion=criterion, candidates=candidates, batch_size=batch_size, mode=mode
        )
        picked = self._scored(select, parameters, **decided)
        return _host_array(picked.indices), _host_array(picked.utilities)


def kernel_model(
    kernel: Kernel,
    parameters: Mapping[str, Any] | None,
    points: Any,
    labeled: Any,
    targets: Array,
    k: int,
    ridge: float | Literal["auto"],
    *,
    noise: Any = None,
) -> Posterior:
    """Build kernel ridge regression on one-hot labels, from outputs that are zero.

    F = K(., L) (K_LL + ridge I)^-1 T: squared loss, `targets` (n,) are numbers of classes. If
    fewer than two are known, there are two all the same, as in `with_two_classes`.
    """
    N, n = rows_of(points), len(targets)
    k = max(k, 2)
    zeros, zeros_labeled = np.zeros((N, k)), np.zeros((n, k))
    rest: dict[str, Any] = dict(ridge=ridge, noise=noise, prior=True)
    if kernel == "linear" and not parameters and points.shape[1] < N:
        # The same kernel in weight space, where nothing N x N exists.
        features, of_labeled = (_dense(a).astype(np.float64) for a in (points, labeled))
        return _exact_features(features, zeros, of_labeled, zeros_labeled, targets, **rest)
    K_uu = kernel_matrix(kernel, parameters, points, points)
    K_lu = kernel_matrix(kernel, parameters, labeled, points) if n else None
    K_ll = kernel_matrix(kernel, parameters, labeled, labeled) if n else None
    return Posterior.from_kernel(K_uu, K_lu, K_ll, zeros, zeros_labeled, targets, **rest)


def linearised(
    points: Any,
    labeled: Any,
    P: Array,
    P_labeled: Array,
    targets: Array,
    ridge: float | Literal["auto"],
) -> Posterior:
    """Take a classifier as linear in given features, trained with cross-entropy.

    Its outputs are the logarithms of its probabilities, whose soft-max they are.
    """
    return _exact_features(
        _dense(points),
        np.log(np.maximum(with_two_classes(P), _LEAST)),
        _dense(labeled),
        np.log(np.maximum(with_two_classes(P_labeled), _LEAST)),
        targets,
        ridge,
        loss="cross_entropy",
    )


def _exact_features(points: Any, *arguments: Any, **keywords: Any) -> Posterior:
    """Posterior of features that are no sketch: however many labels, they are exact."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*outnumber a quarter of the")
        return Posterior.from_features(points, *arguments, **keywords)


def network_of(model: Any) -> tuple[Any, Literal["cross_entropy", "squared"]]:
    """Return the torch network inside a classifier and the loss that it was trained with.

    Of a skorch net, and of what wraps one as `neural_net_` (scikit-activeml's SkorchClassifier) or
    `estimator_` (its SklearnClassifier). Where scikit-activeml's `forward_outputs` says that the
    network returns several tensors, of its first entry.

    Raises
    ------
    TypeError, ValueError
        There is none, it is not trained yet, or its loss is another one.
    """
    import torch

    if not getattr(model, "is_fitted_", True):
        raise ArgumentValueError(
            "kernel",
            'kernel="ntk" needs a trained network, and the one in this classifier could not be '
            "fitted: it has no labels, or see the warning of its fit",
        )
    outputs = getattr(model, "forward_outputs", None)
    net = getattr(model, "neural_net_", getattr(model, "estimator_", model))
    network, criterion = getattr(net, "module_", None), getattr(net, "criterion_", None)
    if not isinstance(network, torch.nn.Module):
        raise ArgumentTypeError(
            "kernel",
            f'kernel="ntk" needs a torch network, and a {type(net).__name__} holds none, or is not '
            "trained yet: use a skorch net, or another kernel",
        )
    losses = [
        loss for name, loss in _LOSSES.items() if isinstance(criterion, getattr(torch.nn, name))
    ]
    if not losses:
        raise ArgumentValueError(
            "kernel",
            f"the network is trained with {type(criterion).__name__}, and the tangent kernel is "
            f"worked out for {', '.join(_LOSSES)}: use one of these, or another kernel",
        )
    return network if outputs is None else _output(
        network, next(iter(outputs.values()))[0]
    ), losses[0]


def _output(network: Any, index: int) -> Any:
    """Return a network that returns the tensor at `index` of those that `network` returns."""
    import torch

    class Output(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any) -> Any:
            returned = self.network(x)
            return returned[index] if isinstance(returned, (tuple, list)) else returned

    return Output().train(network.training)


def network_model(
    network: Any,
    loss: Literal["cross_entropy", "squared"],
    parameters: Mapping[str, Any] | None,
    points: Any,
    labeled: Any,
    targets: Any,
    k: int,
    ridge: float | Literal["auto"],
) -> Posterior:
    """Posterior of a network, linearised; `parameters` are keywords of `LookAheadLearner`."""
    from ..learner import LookAheadLearner

    decided: dict[str, Any] = dict(ridge=ridge, classes=range(k), evaluation_size=None)
    _check_keywords(
        "kernel_params",
        parameters or {},
        LookAheadLearner,
        {"model", "criterion", "mode", "group", *decided},
    )
    learner = LookAheadLearner(network, **decided, **{"loss": loss, **(parameters or {})})
    return learner.fit(labeled if len(targets) else None, targets, points).posterior


def rows_of(points: Any) -> int:
    """Return the number of points; sparse matrices have no len()."""
    return int(points.shape[0]) if hasattr(points, "shape") else len(points)


def array_of(points: Any) -> Any:
    """Points as an array, (n, ...); sparse matrices stay sparse."""
    if hasattr(points, "toarray"):
        return points.tocsr()
    return as_numpy("X", points)


def numbered(name: str, labels: list[Any], classes: Any) -> tuple[Array, int]:
    """Return the number of each label's class, and of how many; classes None: the labels there."""
    known = np.unique(np.asarray(labels)) if classes is None else np.asarray(classes)
    number = {label: i for i, label in enumerate(known.tolist())}
    for i, label in enumerate(labels):
        if label not in number:
            raise ArgumentValueError(
                name,
                f"{name}[{i}] is {label!r}, which is none of the classes that the classifier was "
                "fitted to: fit it again",
            )
    return np.array([number[label] for label in labels], np.int64), len(number)


def with_two_classes(P: Any) -> Array:
    """P (n, k), float64; where fewer than two classes are known, with others that no point has."""
    P = np.asarray(P, np.float64)
    missing = max(2 - P.shape[1], 0)
    return np.concatenate([P, np.zeros((len(P), missing))], axis=1) if missing else P


def _dense(points: Any) -> Any:
    """Features as a dense array of floats."""
    points = points.toarray() if hasattr(points, "toarray") else points
    return points.astype(np.float64) if points.dtype.kind in "biu" else points


def _host_array(array: Any) -> Array:
    """Bring a result to the host, as numpy."""
    (array,) = library_of(array).fetch(result=array)
    return as_numpy("result", array)
