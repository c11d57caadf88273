"""What a network was trained with, and what its outputs mean because of it."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np

from .arrays import Array, as_choice

__all__ = ["Loss", "as_loss", "probabilities", "softmax"]

Loss = Literal["squared", "cross_entropy"]


def as_loss(value: Any) -> Loss:
    """Return the name of a loss, or raise a ValueError that lists them."""
    return cast(Loss, as_choice("loss", value, ("squared", "cross_entropy")))


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
