"""What a network was trained with, and what its outputs mean because of it."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np

from .arrays import (
    ArgumentTypeError,
    ArgumentValueError,
    Array,
    as_choice,
    as_floats,
    as_numpy,
    as_positive,
    as_temperature,
    check_shape,
)

__all__ = [
    "Loss",
    "as_loss",
    "calibration_temperature",
    "expected_labels",
    "label_scale_of",
    "probabilities",
    "residual_temperature_of",
    "softmax",
]

Loss = Literal["squared", "cross_entropy"]


def as_loss(value: Any) -> Loss:
    """Return the name of a loss, or raise a ValueError that lists them."""
    return cast(Loss, as_choice("loss", value, ("squared", "cross_entropy")))


def label_scale_of(value: Any, loss: Loss) -> float | None:
    """Return the label scale of a user's argument; None: outputs and labels tell ("auto")."""
    if isinstance(value, str) and value == "auto":
        return None if loss == "cross_entropy" else 1.0
    scale = as_positive("label_scale", value)
    if loss == "squared" and scale != 1:
        raise ArgumentValueError(
            "label_scale",
            f"label_scale belongs to cross-entropy; squared loss has 1, not {scale:g}",
        )
    return scale


def residual_temperature_of(value: Any, loss: Loss) -> float:
    """Return T_r of a user's argument: "auto" stands for 2 (cross-entropy) or 1 (squared loss)."""
    if isinstance(value, str) and value == "auto":
        return 2.0 if loss == "cross_entropy" else 1.0
    number = as_temperature("residual_temperature", value)
    if loss == "squared" and number != 1:
        raise ArgumentValueError(
            "residual_temperature",
            "residual_temperature belongs to cross-entropy; the residual of squared loss has no "
            f"soft-max, so that {number:g} would mean nothing: leave it out",
        )
    return number


def softmax(z: Array) -> Array:
    """Row-wise soft-max, float64."""
    exponentials = np.exp(z - z.max(1, keepdims=True))
    result: Array = exponentials / exponentials.sum(1, keepdims=True)
    return result


def probabilities(outputs: Array, loss: str) -> Array:
    """Class probabilities (N, k) of outputs (N, k).

    Cross-entropy: the soft-max of the logits. Squared loss: outputs clipped to >= 1e-3 and
    normalised, because the soft-max of nearly one-hot outputs is nearly flat.
    """
    if loss == "cross_entropy":
        return softmax(outputs)
    clipped = np.maximum(outputs, 1e-3)
    result: Array = clipped / clipped.sum(1, keepdims=True)
    return result


def expected_labels(outputs: Array, loss: str, residual_temperature: float) -> Array:
    """Return what a label's residual is measured from, (N, k): the baseline B of docs/method.md.

    Outputs F themselves for squared loss, softmax(F / T_r) for cross-entropy.
    """
    return outputs if loss == "squared" else softmax(outputs / residual_temperature)


def calibration_temperature(outputs: Any, targets: Any) -> float:
    """Return the temperature at which the soft-max of logits is calibrated best.

    It minimises the expected calibration error, sum_b (n_b / n) |accuracy_b - confidence_b| over
    bins b of equal width of the largest probability, among 1.0, 1.1, ..., 19.9: the rule of
    Bae, Oliveira, Sutherland (arXiv 2412.20644) for `uncertainty_herding`, with as many bins as
    classes. Of equal ones the smallest.

    Parameters
    ----------
    outputs : array (n, k)
        Logits, on points that the network was not trained on: on its training points it is always
        sure. Without data to spare, train once on a part of the labels for this.
    targets : array (n,)
        Their classes, integers in [0, k).

    Returns
    -------
    float
        For `temperature` of `utilities` and `select`.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name.

    Examples
    --------
    >>> import numpy as np, ntkfast as nf
    >>> rng = np.random.default_rng(0)
    >>> logits = 4 * rng.normal(size=(1000, 3))
    >>> classes = (logits / 4 + rng.gumbel(size=(1000, 3))).argmax(1)
    >>> nf.calibration_temperature(logits, classes)  # they are 4 times too large
    4.1
    """
    logits = as_floats("outputs", outputs, ("n", "k"), np.float64)
    n, k = logits.shape
    if k < 2:
        raise ArgumentValueError(
            "outputs", f"outputs has shape {logits.shape}; expected two classes or more"
        )
    classes = as_numpy("targets", targets)
    check_shape("targets", classes, (n,))
    if classes.dtype.kind not in "iu":
        raise ArgumentTypeError(
            "targets", f"targets has dtype {classes.dtype}; expected integer classes"
        )
    if classes.min() < 0 or classes.max() >= k:
        raise ArgumentValueError("targets", f"targets must be classes from 0 to {k - 1}")
    right = logits.argmax(1) == classes
    edges = np.linspace(0, 1, k + 1)
    best, smallest = 1.0, np.inf
    for tenths in range(10, 200):
        confidence = softmax(logits / (tenths / 10)).max(1)
        b = np.searchsorted(edges, confidence)  # edges[b - 1] < confidence <= edges[b]
        gap = np.bincount(b, right - confidence, minlength=k + 2)
        error = float(np.abs(gap).sum() / n)
        if error < smallest:
            best, smallest = tenths / 10, error
    return best
