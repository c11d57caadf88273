r"""Matrix-valued kernels: every covariance S(x, x') is a k x k block (docs/method.md, section 6).

A model of k outputs on N points is a scalar model on N k rows; row i k + a is output a of point i.
`BlockSpace` is that view of a scalar covariance: it expands indices, repeats noises and flattens
residuals to one column, so that conditioning, new points and files need no mathematics of their
own. Scoring does: the scorers hand panels of blocks to `ntkfast.ops.score_blocks`, some candidates
at a time.

Blocks are computed on the CPU only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import ops
from ..arrays import ArgumentValueError, Array, as_numpy
from ..ops import ScoreInputs
from .covariance import Change, FunctionSpace, WeightSpace, Whitening
from .engines import CPU, Engine
from .group import ALONE, Alone
from .precision import stored_type

__all__ = [
    "PANEL_BYTES",
    "BlockScorer",
    "BlockSpace",
    "Space",
    "expanded",
    "in_blocks",
    "outputs_per_point",
    "points_of_rows",
    "rows_of",
]

# Bytes of a panel of covariances, and of the float64 features of its candidates.
PANEL_BYTES = 1 << 28


def expanded(points: Array, k: int) -> Array:
    """Rows of these points: i k, ..., i k + k - 1 each."""
    result: Array = (points[:, None] * k + np.arange(k)).ravel()
    return result


def rows_of(psi: Array, points: Array, k: int) -> Array:
    """Features of these points (m k, d); psi itself when that is all of them in order."""
    every = len(points) * k == len(psi) and np.array_equal(points, np.arange(len(points)))
    return psi if every else psi[expanded(points, k)]


def outputs_per_point(name: str, rows: int, outputs: Any, engine: Engine) -> int:
    """Return how many rows of a kernel or of features belong to a point: k, or 1 if it is scalar.

    Parameters
    ----------
    name : str
        Of the argument with `rows` rows, for the error message.
    rows : int
        N, or N k for ``outputs="full"``.
    outputs : array (N, k)
        It tells which, for k >= 2.

    Raises
    ------
    ValueError
        Neither fits.
    RuntimeError
        Blocks on a GPU.
    """
    shape = as_numpy("outputs", outputs).shape
    if len(shape) != 2 or shape[0] == rows or shape[1] < 2:
        return 1
    N, k = shape
    if N * k != rows:
        raise ArgumentValueError(
            "outputs",
            f"outputs has shape {shape}; expected ({rows}, k) for the {rows} rows of {name}, one "
            f"per point, or (N, k) with N k = {rows} for k rows per point",
        )
    refuse_gpu(engine)
    return int(k)


def points_of_rows(name: str, rows: int, per_point: int) -> int:
    """Return how many points have so many rows, or raise a ValueError that names the argument."""
    if rows % per_point:
        raise ArgumentValueError(
            name,
            f"{name} has {rows} rows; expected k = {per_point} for each point, as the N points "
            "have",
        )
    return rows // per_point


def refuse_gpu(engine: Engine) -> None:
    """Raise a RuntimeError on a GPU: blocks are scored on the CPU only."""
    if engine.on_gpu:
        raise RuntimeError(
            "a kernel with k x k blocks is computed on the CPU only, and nothing is moved there "
            "behind your back: pass its arrays on the CPU (.cpu() in torch, .get() in cupy)"
        )


class BlockSpace:
    """S with k x k blocks, as the rows of a scalar covariance.

    Attributes
    ----------
    inner : WeightSpace or FunctionSpace
        The covariance of the N k rows.
    k : int
        Outputs per point.
    """

    engine = CPU
    in_parts = False  # whether no process has all of it in its memory
    group: Alone = ALONE

    def __init__(self, inner: WeightSpace | FunctionSpace, k: int) -> None:
        self.inner = inner
        self.k = k

    @property
    def rows(self) -> WeightSpace | FunctionSpace:
        """The scalar covariance of the rows."""
        return self.inner

    @property
    def per_point(self) -> int:
        """Rows of a point."""
        return self.k

    @property
    def dense(self) -> bool:
        """Whether S itself is kept, rather than features."""
        return self.inner.dense

    @property
    def size(self) -> int:
        """Number of points."""
        return self.inner.size // self.k

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of psi or S."""
        return self.inner.dtype

    @property
    def variance(self) -> Array:
        """Variance of every output (N, k), float64."""
        return self.inner.variance.reshape(-1, self.k)

    def copy(self) -> BlockSpace:
        """Independent copy."""
        return BlockSpace(self.inner.copy(), self.k)

    def to(self, engine: Engine) -> BlockSpace:
        """Independent copy; there is no other engine for blocks."""
        refuse_gpu(engine)
        return self.copy()

    def covariance(self, rows: Array, columns: Array) -> Array:
        """S(rows, columns) (r k, c k), float64."""
        return self.inner.covariance(expanded(rows, self.k), expanded(columns, self.k))

    def condition(self, indices: Array, noise: Array, residual: Array) -> Change:
        """Prepare labels at `indices` (b,) with noise (b,), finite, and residuals (b, k)."""
        change = self.inner.condition(
            expanded(indices, self.k), np.repeat(noise, self.k), residual.reshape(-1, 1)
        )
        return Change(change.mean.reshape(-1, self.k), change.commit)

    def predict(self, *rows: Any) -> Array:
        """F - f (m, k) at new points: features (m k, d), or kernels with m k columns and m."""
        if isinstance(self.inner, FunctionSpace):
            rows = (*rows[:2], rows[2] * self.k)
        return self.inner.predict(*rows).reshape(-1, self.k)

    def extended(self, *rows: Array) -> BlockSpace:
        """Return the space with new points appended: features (m k, d), or kernels."""
        return BlockSpace(self.inner.extended(*rows), self.k)

    def scorer(self, precision: str, picks: int = 0) -> BlockScorer:
        """Scores in `precision`; with `picks` = 0 it must not be conditioned on any."""
        if isinstance(self.inner, FunctionSpace):
            S = self.inner.S.astype(stored_type(precision), copy=False)
            return _KernelScorer(S, self.inner.variance, self.k, picks)
        psi = self.inner.psi.astype(stored_type(precision), copy=False)
        return _FeatureScorer(psi, self.k)

    def scratch(self, rows: Array, picks: int, precision: str) -> tuple[BlockScorer, Array]:
        """Return a scorer to be conditioned on picks, and the points it holds."""
        if isinstance(self.inner, FunctionSpace):
            return self.scorer(precision, picks), np.arange(self.size)
        psi = self.inner.psi[expanded(rows, self.k)].astype(stored_type(precision), copy=False)
        return _FeatureScorer(psi, self.k), rows

    def arrays(self) -> dict[str, Any]:
        """Return what a file keeps."""
        return self.inner.arrays()


Space = WeightSpace | FunctionSpace | BlockSpace


def in_blocks(space: WeightSpace | FunctionSpace, per_point: int) -> Space:
    """Return the covariance of points with so many rows each."""
    return BlockSpace(space, per_point) if per_point > 1 else space


class BlockScorer:
    """Criteria over blocks, conditioned on one pick after another.

    A subclass gives covariances of rows, `_covariance` (see `ops.score_blocks`), and variances.
    """

    def __init__(self, k: int, dtype: np.dtype[Any]) -> None:
        self.k = k
        self.dtype = dtype

    def _covariance(
        self, candidates: Array, evaluation: Array
    ) -> tuple[Array, Array | None, Array | None]:
        """Return blocks, and which of their rows and columns belong to the points; None: all."""
        raise NotImplementedError

    def _variances(self, points: Array) -> Array:
        """S(x, x) (m, k, k), float64."""
        raise NotImplementedError

    def column(self, point: int) -> Array:
        """S(., point) (N k, k), float64."""
        raise NotImplementedError

    def pick(self, point: int, noise: float) -> None:
        """Condition on `point` with a finite noise."""
        raise NotImplementedError

    def _portions(self, candidates: int, evaluation: int) -> Iterator[tuple[slice, slice]]:
        """Parts of the candidates and evaluation points whose panels fit the memory."""
        across = max(1, min(evaluation, PANEL_BYTES // (self.k**2 * self.dtype.itemsize)))
        down = max(1, PANEL_BYTES // (self.k**2 * across * self.dtype.itemsize))
        for x in range(0, evaluation, across):
            for c in range(0, candidates, down):
                yield slice(c, c + down), slice(x, x + across)

    def score(self, criterion: str, inputs: ScoreInputs) -> Array:
        """Utilities (N_c,), float64."""
        result = np.zeros(len(inputs.candidates))
        reads_points = "point_variance" in ops.criteria()[criterion]
        for c, x in self._portions(len(inputs.candidates), len(inputs.evaluation)):
            part = inputs.part(c, x)
            covariance, rows, columns = self._covariance(part.candidates, part.evaluation)
            result[c] += ops.score_blocks(
                criterion,
                covariance,
                part,
                variance=self._variances(part.candidates),
                rows=rows,
                columns=columns,
                evaluation_variance=self._variances(part.evaluation) if reads_points else None,
            )
        return result

    def log_det(self, points: Array, noise: Array) -> Array:
        """(1/k) log det(I + S(c, c) / noise) of some points."""
        scaled = self._variances(points) / noise[:, None, None]
        result: Array = np.linalg.slogdet(np.eye(self.k) + scaled)[1] / self.k
        return result

    def step(self, point: int, noise: float, residual: Array) -> Array:
        """Return the change of F (N, k) by a label of this residual (k,) at `point`."""
        column = self.column(point)
        A = column[point * self.k : (point + 1) * self.k] + noise * np.eye(self.k)
        L = ops.cholesky(A)
        gain = ops.triangular_solve(L, ops.triangular_solve(L, residual[:, None]), transpose=True)
        return (column @ gain).reshape(-1, self.k)


class _FeatureScorer(BlockScorer):
    """Blocks <psi, psi> of whitened features (N k, d)."""

    def __init__(self, psi: Array, k: int) -> None:
        super().__init__(k, psi.dtype)
        nothing = np.zeros((psi.shape[1], 1))
        self._space = WeightSpace(psi, Whitening.identity(psi.shape[1], CPU), nothing)

    def _covariance(self, candidates: Array, evaluation: Array) -> tuple[Array, None, None]:
        across = rows_of(self._space.psi, evaluation, self.k)
        panel = np.zeros((len(candidates) * self.k, len(across)), self.dtype)
        ops.gram_add(rows_of(self._space.psi, candidates, self.k), across, panel)
        return panel, None, None

    def _variances(self, points: Array) -> Array:
        k, d = self.k, self._space.psi.shape[1]
        result = np.empty((len(points), k, k))
        step = max(1, PANEL_BYTES // (8 * k * d))
        for start in range(0, len(points), step):
            part = slice(start, start + step)
            psi = rows_of(self._space.psi, points[part], k).astype(np.float64).reshape(-1, k, d)
            result[part] = psi @ psi.transpose(0, 2, 1)
        return result

    def column(self, point: int) -> Array:
        """S(., point) (N k, k), float64."""
        return self._space.covariance(
            np.arange(self._space.size), expanded(np.array([point]), self.k)
        )

    def pick(self, point: int, noise: float) -> None:
        """Condition on `point` with a finite noise; changes psi."""
        rows = expanded(np.array([point]), self.k)
        self._space.condition(rows, np.full(self.k, noise), np.zeros((self.k, 1))).commit()


class _KernelScorer(BlockScorer):
    """Blocks of S - V^T V: each pick adds k rows to V, which stays float64."""

    def __init__(self, S: Array, variance: Array, k: int, picks: int) -> None:
        super().__init__(k, S.dtype)
        self._S = S
        self.variance = variance
        self._V = np.empty((picks * k, len(S)))
        self._count = 0

    @property
    def _downdate(self) -> Array:
        return self._V[: self._count]

    def _covariance(
        self, candidates: Array, evaluation: Array
    ) -> tuple[Array, Array | None, Array | None]:
        if self._count == 0:
            return self._S, candidates, evaluation
        rows, columns = expanded(candidates, self.k), expanded(evaluation, self.k)
        panel = self._S[np.ix_(rows, columns)]
        down, across = (
            np.ascontiguousarray(self._downdate[:, of].T, self.dtype) for of in (rows, columns)
        )
        ops.gram_add(-down, across, panel)
        return panel, None, None

    def _variances(self, points: Array) -> Array:
        k = self.k
        blocks = self._S.reshape(-1, k, len(self._S) // k, k)[points, :, points]
        V = self._downdate[:, expanded(points, k)].reshape(-1, len(points), k)
        result: Array = blocks.astype(np.float64) - np.einsum("rpa,rpb->pab", V, V)
        outputs = np.arange(k)
        result[:, outputs, outputs] = self.variance.reshape(-1, k)[points]
        return result

    def column(self, point: int) -> Array:
        """S(., point) (N k, k), float64."""
        V, rows = self._downdate, expanded(np.array([point]), self.k)
        result: Array = self._S[rows].T.astype(np.float64) - V.T @ V[:, rows]
        result[rows] = self._variances(np.array([point]))[0]
        return result

    def pick(self, point: int, noise: float) -> None:
        """Condition on `point` with a finite noise."""
        column = self.column(point)
        corner = column[point * self.k : (point + 1) * self.k] + noise * np.eye(self.k)
        V = ops.triangular_solve(ops.cholesky(corner), column.T)
        self._V[self._count : self._count + self.k] = V
        self._count += self.k
        self.variance = np.maximum(self.variance - (V**2).sum(0), 0.0)
