"""The posterior covariance S in its two representations, which answer the same questions.

`WeightSpace` keeps whitened features psi with S(x, x') = <psi(x), psi(x')>, `FunctionSpace` the
matrix S. Both condition on blocks of labelled points and hand out scorers, which run the compiled
criteria and may be conditioned on the picks of a batch while the space itself stays as it is.
Outputs, labels and strategies belong to `Posterior` and `selection`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import ops
from .arrays import Array

__all__ = ["FLOAT32_LIMIT", "FunctionSpace", "WeightSpace", "Whitening"]

# max K / (S + lam) above which the float32 subtraction of a dense S loses the ranking. What labels
# will leave of S is unknown, and rounding cannot be taken back, so K / lam, its bound, decides
# before anything is subtracted.
FLOAT32_LIMIT = 1e4


def _subtracted(dtype: np.dtype[Any], variance: Array, ridge: float) -> np.dtype[Any]:
    """Type of a dense S of this type and diagonal once something is subtracted from it.

    What was safe in float32 at the first subtraction stays so: variances only shrink.
    """
    return dtype if variance.max() <= FLOAT32_LIMIT * ridge else np.dtype(np.float64)


def _factor(A: Array) -> Array:
    """Cholesky factor of a kernel matrix plus its noise, with an error that users understand."""
    try:
        return ops.cholesky(A)
    except ValueError:
        raise ValueError(
            "the kernel matrix of the labelled points plus their noise is not positive definite: "
            "it is no kernel (negative eigenvalues), or ridge / noise is too small beside its "
            "rounding errors"
        ) from None


@dataclass(frozen=True)
class Change:
    """What a block of labels does: `mean` (N, k) is added to F, `commit` updates S in place.

    Whatever can fail has happened before `commit`.
    """

    mean: Array
    commit: Callable[[], None]


@dataclass(frozen=True)
class Whitening:
    """W (d, d) of psi(x) = W phi(x), kept transposed: as I - left^T right, or as `matrix`.

    A few labels multiply psi and W^T from the right by I - U^T C with U, C (b, d). While the rows
    add up to at most d / 2 the product stays compact (left, right: (r, d)), so that features of a
    million dimensions are no obstacle; then it becomes a matrix.
    """

    left: Array
    right: Array
    matrix: Array | None = None

    @classmethod
    def identity(cls, d: int) -> Whitening:
        """W = I."""
        return cls(np.empty((0, d)), np.empty((0, d)))

    def _dense(self, matrix: Array) -> Whitening:
        return Whitening(self.left[:0], self.right[:0], matrix)

    def then(self, U: Array, C: Array) -> Whitening:
        """Return the whitening after psi <- psi (I - U^T C); never changes `self`."""
        if self.matrix is None:
            # (I - P^T Z)(I - U^T C) = I - P^T (Z - (Z U^T) C) - U^T C
            left = np.vstack([self.left, U])
            right = np.vstack([self.right - (self.right @ U.T) @ C, C])
            if 2 * len(left) <= left.shape[1]:
                return Whitening(left, right)
        matrix = self._transposed(U.shape[1])
        ops.condition_features(matrix, U, C)
        return self._dense(matrix)

    def times(self, W: Array) -> Whitening:
        """Return the whitening after psi <- W psi; never changes `self`."""
        if self.matrix is None and len(self.left) == 0:
            return self._dense(np.ascontiguousarray(W.T))
        return self._dense(self._transposed(len(W)) @ W.T)

    def _transposed(self, d: int) -> Array:
        """W^T as a new matrix."""
        return self.features(np.eye(d)) if self.matrix is None else self.matrix.copy()

    def features(self, phi: Array) -> Array:
        """Psi = phi W^T as a new array of the dtype of phi (N, d)."""
        if self.matrix is not None:
            return ops.whiten(phi, np.ascontiguousarray(self.matrix.T))
        psi = phi.copy()
        if len(self.left):
            ops.condition_features(psi, self.left, self.right)
        return psi

    def pull_back(self, step: Array) -> Array:
        """W^T step: a step (d, k) along psi as a step along phi."""
        if self.matrix is not None:
            return self.matrix @ step
        result: Array = step - self.left.T @ (self.right @ step)
        return result


class WeightSpace:
    """S(x, x') = <psi(x), psi(x')> with psi = W phi.

    Attributes
    ----------
    psi : ndarray (N, d), float32 or float64
    variance : ndarray (N,), float64
        S(x, x), the squared norms of psi: computed anew after every change, never subtracted from.
    whitening : Whitening
        W, float64.
    theta : ndarray (d, k), float64
        F(x) = f(x) + <phi(x), theta>.
    """

    def __init__(self, psi: Array, whitening: Whitening, theta: Array) -> None:
        self.psi = psi
        self.variance = ops.squared_norms(psi)
        self.whitening = whitening
        self.theta = theta

    @classmethod
    def fit(
        cls, features: Array, labeled: Array, noise: Array, residual: Array
    ) -> tuple[WeightSpace, Array]:
        """Return the space of N points given n labelled ones, and the change of F (N, k)."""
        n, d = labeled.shape
        # A small block works in place, so on a copy of the caller's features.
        psi = features.copy() if 2 * n < d else features
        space = cls(psi, Whitening.identity(d), np.zeros((d, residual.shape[1])))
        if n == 0:
            return space, np.zeros((len(features), residual.shape[1]))
        change = space._change(labeled.astype(np.float64, copy=False), noise, residual)
        change.commit()
        return space, change.mean

    @property
    def size(self) -> int:
        """Number of points."""
        return len(self.psi)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of psi."""
        return self.psi.dtype

    def copy(self) -> WeightSpace:
        """Independent copy."""
        return WeightSpace(self.psi.copy(), self.whitening, self.theta.copy())

    def block(self, rows: Array, columns: Array) -> Array:
        """S(rows, columns), float64."""
        return ops.product(self.psi[rows], self.psi[columns].astype(np.float64).T)

    def condition(self, indices: Array, noise: Array, residual: Array) -> Change:
        """Prepare labels at `indices` (b,) with noise (b,), finite, and residuals (b, k)."""
        return self._change(self.psi[indices].astype(np.float64), noise, residual)

    def _change(self, block: Array, noise: Array, residual: Array) -> Change:
        """Condition on points whose psi are `block` (b, d).

        b >= d / 2: I + block^T D^-1 block = L L^T and psi <- L^-1 psi.

        b < d / 2: with U = D^-1/2 block, I + U U^T = L L^T and Z = L^-T (L + I)^-1, the matrix
        I - U^T Z U is a root of (I + U^T U)^-1, because Z + Z^T - Z (U U^T) Z^T = (I + U U^T)^-1.
        So psi <- psi (I - U^T C), C = Z U, whitens exactly like the symmetric root of
        docs/method.md, section 3 (psi is defined up to a rotation) with a Cholesky factor in place
        of an eigen-decomposition; for b = 1 it is that root.
        """
        b, d = block.shape
        few = 2 * b < d
        if few:
            scale = 1 / np.sqrt(noise)[:, None]
            U, identity = scale * block, np.eye(b)
            L = _factor(identity + U @ U.T)
            C = ops.triangular_solve(L, ops.triangular_solve(L + identity, U), transpose=True)
            weights = ops.triangular_solve(L, scale * residual)
            step = U.T @ ops.triangular_solve(L, weights, transpose=True)
            whitening = self.whitening.then(U, C)
        else:
            L = _factor(np.eye(d) + ops.weighted_gram(block, 1 / noise))
            W = ops.triangular_solve(L, np.eye(d))
            step = W.T @ (W @ (block.T @ (residual / noise[:, None])))
            whitening = self.whitening.times(W)
            psi = ops.whiten(self.psi, W)
        theta = self.theta + self.whitening.pull_back(step)
        mean = ops.product(self.psi, step)

        def commit() -> None:
            if few:
                ops.condition_features(self.psi, U, C)
            else:
                self.psi = psi
            self.variance = ops.squared_norms(self.psi)
            self.whitening, self.theta = whitening, theta

        return Change(mean, commit)

    def predict(self, features: Array) -> Array:
        """F - f (m, k) at new points."""
        return ops.product(features, self.theta)

    def extended(self, features: Array) -> WeightSpace:
        """Return the space with new points appended."""
        psi = self.whitening.features(features.astype(self.dtype, copy=False))
        return WeightSpace(np.concatenate([self.psi, psi]), self.whitening, self.theta)

    def scorer(self, dtype: np.dtype[Any]) -> FeatureScorer:
        """Scores in `dtype`; shares memory, so it must not be conditioned on picks."""
        return FeatureScorer(self.psi.astype(dtype, copy=False), self.variance)

    def scratch(self, rows: Array, picks: int, dtype: np.dtype[Any]) -> tuple[FeatureScorer, Array]:
        """Return a scorer of the points `rows` to be conditioned on picks, and what it holds."""
        psi = self.psi[rows].astype(dtype, copy=False)
        return FeatureScorer(psi, self.variance[rows]), rows

    def arrays(self) -> dict[str, Any]:
        """Return what a file keeps."""
        kept = {"psi": self.psi, "theta": self.theta}
        if self.whitening.matrix is not None:
            return kept | {"whitening": self.whitening.matrix}
        return kept | {"left": self.whitening.left, "right": self.whitening.right}


class FeatureScorer:
    """Criteria over whitened features, conditioned on one pick after another."""

    def __init__(self, psi: Array, variance: Array) -> None:
        self.psi = psi
        self.variance = variance

    def score(self, criterion: str, candidates: Array, evaluation: Array, **keywords: Any) -> Array:
        """Utilities (N_c,), float64."""
        return ops.score_features(
            criterion, self.psi, candidates, evaluation, variance=self.variance, **keywords
        )

    def column(self, point: int) -> Array:
        """S(., point) (N,), float64."""
        return ops.product(self.psi, self.psi[point].astype(np.float64)[:, None])[:, 0]

    def pick(self, point: int, noise: float) -> None:
        """Condition on `point` with a finite noise: psi <- psi - beta psi_c <psi_c, psi>."""
        psi_c = self.psi[point : point + 1].astype(np.float64)
        total = self.variance[point] + noise
        beta = 1 / (total * (1 + np.sqrt(noise / total)))
        ops.condition_features(self.psi, psi_c, beta * psi_c)
        self.variance = ops.squared_norms(self.psi)


class FunctionSpace:
    """S as an N x N matrix: exact for any kernel, N up to a few ten thousand.

    Attributes
    ----------
    S : ndarray (N, N), float32 or float64
    variance : ndarray (N,), float64
        The diagonal of S, kept apart in float64.
    ridge : float
        lam, beside which S must stay exact.
    """

    def __init__(self, S: Array, variance: Array, ridge: float) -> None:
        self.S = S
        self.variance = variance
        self.ridge = ridge

    @classmethod
    def fit(
        cls, K_uu: Array, K_lu: Array, K_ll: Array, noise: Array, ridge: float, residual: Array
    ) -> tuple[FunctionSpace, Array]:
        """Return S = K_UU - V^T V, V = L^-1 K_LU, L L^T = K_LL + D, and the change of F (N, k).

        S is float32 for a float32 kernel unless something is subtracted and max K / lam > 1e4:
        there the subtraction could cost the ranking (docs/method.md, section 3).
        """
        before = np.diagonal(K_uu).astype(np.float64)
        V, mean = np.empty((0, len(before))), np.zeros((len(before), residual.shape[1]))
        if len(noise):
            L = _factor(K_ll.astype(np.float64) + np.diag(noise))
            V = ops.triangular_solve(L, K_lu.astype(np.float64, copy=False))
            mean = V.T @ ops.triangular_solve(L, residual)
        variance = before - np.einsum("nx,nx->x", V, V)
        if variance.min() < -1e-2 * before.max():
            raise ValueError(
                "K_uu, K_lu and K_ll are not blocks of one kernel matrix: given the labels the "
                f"variance of point {int(variance.argmin())} would be {variance.min():g}"
            )
        dtype = _subtracted(K_uu.dtype, before, ridge) if len(noise) else K_uu.dtype
        S = K_uu.astype(dtype)
        if len(noise):
            ops.condition_dense(S, V)
        return cls(S, np.maximum(variance, 0.0), ridge), mean

    @property
    def size(self) -> int:
        """Number of points."""
        return len(self.S)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of S."""
        return self.S.dtype

    def copy(self) -> FunctionSpace:
        """Independent copy."""
        return FunctionSpace(self.S.copy(), self.variance.copy(), self.ridge)

    def block(self, rows: Array, columns: Array) -> Array:
        """S(rows, columns), float64."""
        result: Array = self.S[np.ix_(rows, columns)].astype(np.float64)
        return result

    def condition(self, indices: Array, noise: Array, residual: Array) -> Change:
        """Prepare labels at `indices` (b,) with noise (b,), finite, and residuals (b, k)."""
        rows = self.S[indices].astype(np.float64)
        L = _factor(rows[:, indices] + np.diag(noise))
        V = ops.triangular_solve(L, rows)
        variance = np.maximum(self.variance - np.einsum("bx,bx->x", V, V), 0.0)
        S = self.S.astype(_subtracted(self.dtype, self.variance, self.ridge), copy=False)

        def commit() -> None:
            ops.condition_dense(S, V)
            self.S, self.variance = S, variance

        return Change(V.T @ ops.triangular_solve(L, residual), commit)

    def scorer(self, dtype: np.dtype[Any], picks: int = 0) -> KernelScorer:
        """Scores in `dtype` and can be conditioned on `picks` points; S itself never changes."""
        return KernelScorer(self.S.astype(dtype, copy=False), self.variance, picks)

    def scratch(self, rows: Array, picks: int, dtype: np.dtype[Any]) -> tuple[KernelScorer, Array]:
        """Return a scorer to be conditioned on picks; it holds all points, S is not copied."""
        return self.scorer(dtype, picks), np.arange(self.size)

    def arrays(self) -> dict[str, Any]:
        """Return what a file keeps."""
        return {"S": self.S, "variance": self.variance}


class KernelScorer:
    """Criteria over S - V^T V: each pick adds a row to V, float64 as long as V is added to."""

    def __init__(self, S: Array, variance: Array, picks: int) -> None:
        self.S = S
        self.variance = variance
        self._rows = np.empty((picks, len(S)))
        self._count = 0

    @property
    def _downdate(self) -> Array | None:
        return self._rows[: self._count] if self._count else None

    def score(self, criterion: str, candidates: Array, evaluation: Array, **keywords: Any) -> Array:
        """Utilities (N_c,), float64."""
        return ops.score_dense(
            criterion,
            self.S,
            candidates,
            evaluation,
            variance=self.variance,
            downdate=self._downdate,
            **keywords,
        )

    def column(self, point: int) -> Array:
        """S(., point) (N,), float64."""
        rows = self._rows[: self._count]
        result: Array = self.S[point].astype(np.float64) - rows[:, point] @ rows
        return result

    def pick(self, point: int, noise: float) -> None:
        """Condition on `point` with a finite noise."""
        row = self.column(point) / np.sqrt(self.variance[point] + noise)
        self._rows[self._count] = row
        self._count += 1
        self.variance = np.maximum(self.variance - row**2, 0.0)
