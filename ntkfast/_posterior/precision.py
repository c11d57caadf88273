"""The precision of what is computed for pairs: the names users give, and what becomes of them.

Users name a `Precision`. `resolve` puts another in the place of "auto", and what computes is told
by `stored_type` and, on a GPU, by `PRODUCTS`: nothing else compares the names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ..arrays import ArgumentValueError, Array, as_choice

if TYPE_CHECKING:
    from .blocks import Space

__all__ = [
    "FLOAT32_LIMIT",
    "PRODUCTS",
    "Precision",
    "check_tensor_cores",
    "resolve",
    "stored_type",
    "subtracted_type",
]

Precision = Literal["auto", "float32", "float64", "tf32", "bf16"]

# How a GPU forms the products of features in each precision, by the names of `cuda_ops`. On a CPU
# they are plain ones.
# Rows of float16 numbers with a power of two each have the bits of tf32, and take half the time.
PRODUCTS = {"float32": "f16x3", "float64": "fma64", "tf32": "f16", "bf16": "bf16"}

# max K / (S + lam) above which the float32 subtraction of a dense S loses the ranking. What labels
# will leave of S is unknown, and rounding cannot be taken back, so K / lam, its bound, decides
# before anything is subtracted.
FLOAT32_LIMIT = 1e4


def stored_type(precision: str) -> np.dtype[Any]:
    """Type of psi or S while it is scored in `precision`; "tf32" and "bf16" round copies of it."""
    return np.dtype(np.float64 if precision == "float64" else np.float32)


def subtracted_type(dtype: np.dtype[Any], variance: Array, ridge: float) -> np.dtype[Any]:
    """Type of a dense S of this type and diagonal once something is subtracted from it.

    What was safe in float32 at the first subtraction stays so: variances only shrink.
    """
    return dtype if variance.max() <= FLOAT32_LIMIT * ridge else np.dtype(np.float64)


def resolve(
    precision: str,
    space: Space,
    *,
    float32_limit: float,
    ridge: float,
    variance: float,
    noise: float,
    sequential: bool,
) -> str:
    """Return the precision to compute in, which is never "auto".

    Parameters
    ----------
    precision : str
        As users give it.
    space : WeightSpace, FunctionSpace or BlockSpace
        The covariance.
    float32_limit : float
        Of the criterion: the largest variance over ridge up to which float32 will do.
    ridge : float
        Noise of the evaluation points.
    variance : float
        The largest S(x, x).
    noise : float
        The smallest noise of a candidate.
    sequential : bool
        Whether the covariance is conditioned on picks.

    Raises
    ------
    ValueError
        No such precision, or one that does not fit the covariance or its device.
    """
    as_choice("precision", precision, get_args(Precision))
    if precision in ("tf32", "bf16"):
        check_tensor_cores(precision, space)
    if precision == "float64":
        return precision
    fits = _fits_float32(variance, ridge, noise)
    if precision != "auto":
        if not fits:
            raise ArgumentValueError(
                "precision",
                f'precision="{precision}" cannot hold the products of variances up to '
                f"{variance:g} and noises from {min(ridge, noise):g} (ridge: {ridge:g}) on: "
                "rescale the features or the kernel, and the ridge with it, or leave precision out",
            )
        return precision
    limit, least = float32_limit, ridge
    if space.per_point > 1 or (sequential and space.dense):
        # Blocks are multiplied by the inverse of S(c, c) + lam_c I, and a dense S is subtracted
        # from until the noise of a pick is left: both cancel, whatever the ridge.
        limit, least = min(limit, FLOAT32_LIMIT), min(ridge, noise)
    if not fits or variance > limit * least or space.dtype == np.float64:
        return "float64"
    # A criterion with a limit takes no tf32, which rounds products 2^13 times more than float32.
    return "tf32" if space.engine.on_gpu and not space.dense and np.isinf(limit) else "float32"


def check_tensor_cores(precision: str, space: Space) -> None:
    """Raise a ValueError unless the covariance can be scored in tf32 or bf16."""
    if not space.engine.on_gpu:
        problem = 'needs tensor cores; on a CPU it would be slower and less exact than "float32"'
    elif space.dense:
        problem = (
            "would lose the ranking: a covariance that came from a kernel matrix needs "
            '"float32" at least'
        )
    elif precision == "bf16" and not space.engine.has_bf16:
        problem = "needs torch tensors; cupy has no bfloat16"
    else:
        return
    raise ArgumentValueError("precision", f'precision="{precision}" {problem}')


def _fits_float32(variance: float, ridge: float, noise: float) -> bool:
    """Whether S, its squares and 1 / (S + lam) are far from the ends of float32's range.

    `variance`: the largest S(x, x), which bounds every S(x, c); `noise`: the smallest lam_c. What
    overflows may be finite again in a utility, so that nothing but this would tell.
    """
    if max(variance, ridge) > 1e30 or min(ridge, noise) < 1e-30:
        return False
    share = variance / (variance + ridge)
    # Of variance_reduction S^2 / (S + lam), of epig S^2 / (S + lam)^2; all zero is exact.
    return variance == 0 or min(variance, share * variance, share * share) >= 1e-30
