r"""Matrix-valued kernels: every covariance S(x, x') is a k x k block (docs/method.md, section 6).

A model of k outputs on N points is a scalar model on N k rows, row i k + a being output a of point
i: kernels, features and S of `covariance` with indices expanded, noises repeated and residuals
flattened to one column. `BlockSpace` is that view, so that conditioning, new points and files need
no mathematics of their own. Scoring does: the scorers hand panels of blocks to
`ntkfast.ops.score_blocks`, some candidates at a time.

Everything here is computed on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import ops
from ..arrays import Array, as_numpy
from ..ops import ScoreInputs
from .covariance import Change, FunctionSpace, WeightSpace, Whitening
from .engines import CPU, Engine, stored_type

__all__ = [
    "BlockMoments",
    "BlockScorer",
    "BlockSpace",
    "expanded",
    "in_blocks",
    "outputs_per_point",
    "points_of_rows",
]

# Bytes of a panel of covariances, and of the float64 features of its candidates.
_PANEL_BYTES = 1 << 28


def expanded(points: Array, k: int) -> Array:
    """Rows of these points: i k, ..., i k + k - 1 each."""
    result: Array = (points[:, None] * k + np.arange(k)).ravel()
    return result


def _points(psi: Array, points: Array, k: int) -> Array:
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
        raise ValueError(
            f"outputs has shape {shape}; expected ({rows}, k) for the {rows} rows of {name}, one "
            f"per point, or (N, k) with N k = {rows} for k rows per point"
        )
    refuse_gpu(engine)
    return int(k)


def points_of_rows(name: str, rows: int, per_point: int) -> int:
    """Return how many points have so many rows, or raise a ValueError that names the argument."""
    if rows % per_point:
        raise ValueError(
            f"{name} has {rows} rows; expected k = {per_point} for each point, as the N points have"
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

    def block(self, rows: Array, columns: Array) -> Array:
        """S(rows, columns) (r k, c k), float64."""
        return self.inner.block(expanded(rows, self.k), expanded(columns, self.k))

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

    @property
    def features(self) -> WeightSpace:
        """The features of the rows; their owner has seen to it that there are any."""
        assert isinstance(self.inner, WeightSpace)
        return self.inner

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


def in_blocks(
    space: WeightSpace | FunctionSpace, per_point: int
) -> WeightSpace | FunctionSpace | BlockSpace:
    """Return the covariance of points with so many rows each."""
    return BlockSpace(space, per_point) if per_point > 1 else space


class BlockScorer:
    """Criteria over blocks, conditioned on one pick after another.

    A scorer gives covariances of rows, `_covariance` (see `ops.score_blocks`), and variances;
    everything else is here.
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
        across = max(1, min(evaluation, _PANEL_BYTES // (self.k**2 * self.dtype.itemsize)))
        down = max(1, _PANEL_BYTES // (self.k**2 * across * self.dtype.itemsize))
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
        across = _points(self._space.psi, evaluation, self.k)
        panel = np.zeros((len(candidates) * self.k, len(across)), self.dtype)
        ops.gram_add(_points(self._space.psi, candidates, self.k), across, panel)
        return panel, None, None

    def _variances(self, points: Array) -> Array:
        k, d = self.k, self._space.psi.shape[1]
        result = np.empty((len(points), k, k))
        step = max(1, _PANEL_BYTES // (8 * k * d))
        for start in range(0, len(points), step):
            part = slice(start, start + step)
            psi = _points(self._space.psi, points[part], k).astype(np.float64).reshape(-1, k, d)
            result[part] = psi @ psi.transpose(0, 2, 1)
        return result

    def column(self, point: int) -> Array:
        """S(., point) (N k, k), float64."""
        return self._space.block(np.arange(self._space.size), expanded(np.array([point]), self.k))

    def pick(self, point: int, noise: float) -> None:
        """Condition on `point` with a finite noise; changes psi."""
        rows = expanded(np.array([point]), self.k)
        self._space.condition(rows, np.full(self.k, noise), np.zeros((self.k, 1))).commit()


class _KernelScorer(BlockScorer):
    """Blocks of S - V^T V: each pick adds k rows to V, float64 as long as V is added to."""

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


class BlockMoments:
    """Criteria (1/k) tr((s_c + lam_c I)^-1 q_c) of features with blocks, without pairs.

    With frozen psi, G = sum_x v Psi_x^T Psi_x and C = I - sum_picks Z^T Z, the k x k matrices are
    q_x = Psi_x C G C Psi_x^T and s_x = Psi_x C Psi_x^T (docs/method.md, section 6). All of it
    float64 (the downdates subtract), only psi may be float32. O((N_x + N_c) k d^2) once,
    O(N_c k^2 d) per pick.
    """

    def __init__(
        self,
        space: BlockSpace,
        candidates: Array,
        evaluation: Array,
        *,
        weights: Array,
        noise: Array,
        picks: int,
        precision: str,
    ) -> None:
        self._k, psi = space.k, space.features.psi
        if precision != "float64":
            psi = psi.astype(stored_type(precision), copy=False)
        k, d, m = self._k, psi.shape[1], len(candidates)
        across = _points(psi, evaluation, k)
        self._G = ops.weighted_gram(across, np.repeat(weights, k))
        self._psi = _points(psi, candidates, k)
        self._q, self._s = np.empty((m, k, k)), np.empty((m, k, k))
        step = max(1, _PANEL_BYTES // (8 * k * d))
        for start in range(0, m, step):
            part = slice(start, start + step)
            psi_c = self._psi[start * k : (start + step) * k]
            right = psi_c.astype(np.float64).reshape(-1, k, d).transpose(0, 2, 1)
            self._q[part] = ops.product(psi_c, self._G).reshape(-1, k, d) @ right
            self._s[part] = right.transpose(0, 2, 1) @ right
        self._noise = noise
        self._picks = np.empty((picks * k, d))  # Z
        self._count = 0

    @staticmethod
    def pay_off(space: BlockSpace, candidates: int, evaluation: int, rounds: int) -> bool:
        """Whether moments cost less than `rounds` times all pairs, and G is no larger than psi."""
        if not isinstance(space.inner, WeightSpace):
            return False
        k, (rows, d) = space.k, space.inner.psi.shape
        cost = CPU.float64_cost * (candidates + evaluation) * d
        return bool(d <= rows and cost < rounds * candidates * evaluation * k)

    def utilities(self) -> Array:
        """Utilities (N_c,)."""
        noise = np.where(np.isinf(self._noise), 1.0, self._noise)
        A = self._s + noise[:, None, None] * np.eye(self._k)
        trace = np.trace(np.linalg.solve(A, self._q), axis1=1, axis2=2)
        return np.where(np.isinf(self._noise), 0.0, np.maximum(trace, 0.0) / self._k)

    def pick(self, candidate: int) -> None:
        """Condition on a candidate (its position among the candidates)."""
        k, noise = self._k, self._noise[candidate]
        if np.isinf(noise):
            return
        picks = self._picks[: self._count]
        psi_c = self._psi[candidate * k : (candidate + 1) * k].astype(np.float64)
        g = psi_c - (psi_c @ picks.T) @ picks
        Z = ops.triangular_solve(ops.cholesky(self._s[candidate] + noise * np.eye(k)), g)
        Z_G = Z @ self._G
        h = Z_G - (Z_G @ picks.T) @ picks
        moved = ops.product(self._psi, np.concatenate([Z, h]).T).reshape(-1, k, 2 * k)
        alpha, eta = moved[:, :, :k], moved[:, :, k:]
        # q - alpha eta^T - eta alpha^T + alpha W alpha^T, the last one split among the first two.
        half = alpha @ (eta - 0.5 * alpha @ (Z_G @ Z.T)).transpose(0, 2, 1)
        self._q -= half + half.transpose(0, 2, 1)
        self._s -= alpha @ alpha.transpose(0, 2, 1)
        self._picks[self._count : self._count + k] = Z
        self._count += k
