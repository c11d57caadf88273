r"""Matrix-valued kernels: every covariance S(x, x') is a k x k block (docs/method.md, section 6).

A model of k outputs on N points is a scalar model on N k rows; row i k + a is output a of point i.
`BlockSpace` is that view of a scalar covariance: it expands indices, repeats noises and flattens
residuals to one column, so that conditioning, new points and files need no mathematics of their
own. Scoring does: the scorers hand panels of blocks to `ntkfast.ops.score_blocks` or its double on
a GPU, some candidates at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import ops
from ..arrays import ArgumentValueError, Array, as_numpy
from ..ops import ScoreInputs
from .covariance import Change, FunctionSpace, WeightSpace, Whitening
from .engines import Engine
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


def rows_of(engine: Engine, psi: Any, points: Array, k: int) -> Any:
    """Features of these points (m k, d); psi itself when that is all of them in order."""
    every = len(points) * k == len(psi) and np.array_equal(points, np.arange(len(points)))
    return psi if every else engine.rows(psi, expanded(points, k))


def outputs_per_point(name: str, rows: int, outputs: Any) -> int:
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


class BlockSpace:
    """S with k x k blocks, as the rows of a scalar covariance.

    Attributes
    ----------
    inner : WeightSpace or FunctionSpace
        The covariance of the N k rows.
    k : int
        Outputs per point.
    """

    in_parts = False  # blocks on disk are scored in memory, or by moments
    group: Alone = ALONE

    def __init__(self, inner: WeightSpace | FunctionSpace, k: int) -> None:
        self.inner = inner
        self.k = k

    @property
    def engine(self) -> Engine:
        """What computes on psi or S."""
        return self.inner.engine

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
        """Independent copy of another engine."""
        return BlockSpace(self.inner.to(engine), self.k)

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
        inner, engine, dtype = self.inner, self.engine, stored_type(precision)
        if isinstance(inner, FunctionSpace):
            S = engine.cast(inner.S, dtype)
            return _KernelScorer(S, inner.variance, self.k, precision, engine, picks)
        return _FeatureScorer(engine.cast(inner.psi, dtype), self.k, precision, engine)

    def scratch(self, rows: Array, picks: int, precision: str) -> tuple[BlockScorer, Array]:
        """Return a scorer to be conditioned on picks, and the points it holds."""
        inner, engine = self.inner, self.engine
        if isinstance(inner, FunctionSpace):
            return self.scorer(precision, picks), np.arange(self.size)
        psi = engine.cast(inner.own(expanded(rows, self.k)), stored_type(precision))
        return _FeatureScorer(psi, self.k, precision, engine), rows

    def arrays(self) -> dict[str, Any]:
        """Return what a file keeps."""
        return self.inner.arrays()


Space = WeightSpace | FunctionSpace | BlockSpace


def in_blocks(space: WeightSpace | FunctionSpace, per_point: int) -> Space:
    """Return the covariance of points with so many rows each."""
    return BlockSpace(space, per_point) if per_point > 1 else space


class BlockScorer:
    """Criteria over blocks, conditioned on one pick after another.

    A subclass gives covariances of rows, `_covariance` (see `score_blocks` of engines), variances
    and columns.
    """

    def __init__(self, k: int, precision: str, engine: Engine) -> None:
        self.k = k
        self._precision = precision
        self._engine = engine
        self._kept: dict[str, Any] = {}

    def _covariance(
        self, candidates: Array, evaluation: Array
    ) -> tuple[Any, Array | None, Array | None]:
        """Return blocks, and which of their rows and columns belong to the points; None: all."""
        raise NotImplementedError

    def _variances(self, points: Array) -> Array:
        """S(x, x) (m, k, k), float64, on the host."""
        raise NotImplementedError

    def column(self, point: int) -> Array:
        """S(., point) (N k, k), float64, on the host."""
        raise NotImplementedError

    def pick(self, point: int, noise: float) -> None:
        """Condition on `point` with a finite noise."""
        raise NotImplementedError

    def _portions(self, candidates: int, evaluation: int) -> Iterator[tuple[slice, slice]]:
        """Parts of the candidates and evaluation points whose panels fit the memory."""
        pairs = PANEL_BYTES // (self.k**2 * stored_type(self._precision).itemsize)
        # A CPU reads on in rows; a GPU copies the features of both sides: least for a square.
        longest = math.isqrt(pairs) if self._engine.on_gpu else pairs
        across = max(1, min(evaluation, longest))
        down = max(1, pairs // across)
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
            result[c] += self._engine.score_blocks(
                criterion,
                covariance,
                part,
                rows=rows,
                columns=columns,
                variance=self._variances(part.candidates),
                evaluation_variance=self._variances(part.evaluation) if reads_points else None,
                kept=self._kept,
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

    def __init__(self, psi: Any, k: int, precision: str, engine: Engine) -> None:
        super().__init__(k, precision, engine)
        d = psi.shape[1]
        nothing = engine.put(np.zeros((d, 1)))
        self._space = WeightSpace(psi, Whitening.identity(d, engine), nothing)

    def _covariance(self, candidates: Array, evaluation: Array) -> tuple[Any, None, None]:
        engine, psi, k = self._engine, self._space.psi, self.k
        down = rows_of(engine, psi, candidates, k)
        if engine.on_gpu:
            across = engine.rows(psi, engine.block_columns(evaluation, k))
        else:
            across = rows_of(engine, psi, evaluation, k)
        panel = engine.zeros((len(down), len(across)), stored_type(self._precision))
        engine.gram_add(down, across, panel, self._precision)
        return panel, None, None

    def _variances(self, points: Array) -> Array:
        engine, k, d = self._engine, self.k, self._space.dim
        result = np.empty((len(points), k, k))
        step = max(1, PANEL_BYTES // (8 * k * d))
        for start in range(0, len(points), step):
            part = slice(start, start + step)
            psi = rows_of(engine, self._space.psi, points[part], k)
            psi = engine.cast(psi, np.float64).reshape(-1, k, d)
            result[part] = engine.host(psi @ psi.swapaxes(1, 2))
        return result

    def column(self, point: int) -> Array:
        """S(., point) (N k, k), float64, on the host."""
        engine, psi = self._engine, self._space.psi
        own = engine.cast(engine.rows(psi, expanded(np.array([point]), self.k)), np.float64)
        return engine.host(engine.product(psi, own.T))

    def pick(self, point: int, noise: float) -> None:
        """Condition on `point` with a finite noise; changes psi."""
        rows = expanded(np.array([point]), self.k)
        self._space.condition(rows, np.full(self.k, noise), np.zeros((self.k, 1))).commit()


class _KernelScorer(BlockScorer):
    """Blocks of S - V^T V: each pick adds k rows to V, which stays float64."""

    def __init__(
        self, S: Any, variance: Array, k: int, precision: str, engine: Engine, picks: int
    ) -> None:
        super().__init__(k, precision, engine)
        self._S = S
        self.variance = variance
        self._V = engine.empty((picks * k, len(S)))
        self._count = 0

    @property
    def _downdate(self) -> Any:
        return self._V[: self._count]

    def _covariance(
        self, candidates: Array, evaluation: Array
    ) -> tuple[Any, Array | None, Array | None]:
        engine = self._engine
        if self._count == 0 and not engine.on_gpu:
            return self._S, candidates, evaluation
        rows, columns = expanded(candidates, self.k), engine.block_columns(evaluation, self.k)
        panel = engine.part(self._S, rows, columns)
        if self._count:
            down, across = (
                engine.copy(engine.rows(self._downdate.T, of), engine.dtype(self._S))
                for of in (rows, columns)
            )
            engine.gram_add(down * -1.0, across, panel, self._precision)
        return panel, None, None

    def _variances(self, points: Array) -> Array:
        engine, k = self._engine, self.k
        N, there = len(self._S) // k, engine.put(points)
        blocks = self._S.reshape(N, k, N, k)[there, :, there]
        result: Array = engine.host(engine.cast(blocks, np.float64))
        if self._count:
            V = engine.rows(self._downdate.T, expanded(points, k)).reshape(-1, k, self._count)
            result = result - engine.host(V @ V.swapaxes(1, 2))
        outputs = np.arange(k)
        result[:, outputs, outputs] = self.variance.reshape(-1, k)[points]
        return result

    def _column(self, point: int) -> Any:
        engine, rows = self._engine, expanded(np.array([point]), self.k)
        result = engine.cast(engine.rows(self._S, rows), np.float64)
        if self._count:
            result = result - engine.rows(self._downdate.T, rows) @ self._downdate
        result[:, point * self.k : (point + 1) * self.k] = engine.put(
            self._variances(np.array([point]))[0].T
        )
        return result

    def column(self, point: int) -> Array:
        """S(., point) (N k, k), float64, on the host."""
        return self._engine.host(self._column(point)).T

    def pick(self, point: int, noise: float) -> None:
        """Condition on `point` with a finite noise."""
        engine, column = self._engine, self._column(point)
        corner = column[:, point * self.k : (point + 1) * self.k] + engine.eye(self.k) * noise
        V = engine.triangular_solve(engine.cholesky(corner), column)
        self._V[self._count : self._count + self.k] = V
        self._count += self.k
        self.variance = np.maximum(self.variance - engine.host(engine.column_norms(V)), 0.0)
