"""What a network was trained with, and what its outputs mean because of it."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np

from .arrays import ArgumentValueError, Array, as_choice, as_positive

__all__ = [
    "Loss",
    "as_loss",
    "expected_labels",
    "probabilities",
    "residual_temperature_of",
    "softmax",
]

Loss = Literal["squared", "cross_entropy"]


def as_loss(value: Any) -> Loss:
    """Return the name of a loss, or raise a ValueError that lists them."""
    return cast(Loss, as_choice("loss", value, ("squared", "cross_entropy")))


def residual_temperature_of(value: Any, loss: Loss) -> float:
    """Return T_r of a user's argument: "auto" stands for 2 (cross-entropy) or 1 (squared loss)."""
    if isinstance(value, str) and value == "auto":
        return 2.0 if loss == "cross_entropy" else 1.0
    number = as_positive("residual_temperature", value)
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
