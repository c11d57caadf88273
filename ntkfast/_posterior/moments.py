"""Criteria of the form q_c / (s_c + lam_c) over features, without pairs.

`moments` says whether they are worth it. The scalar form and that of k x k blocks answer the same
questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..arrays import Array
from . import blocks
from .blocks import Space
from .covariance import WeightSpace
from .disk import BLOCK_BYTES, Rows, reader
from .engines import Engine, GpuEngine
from .group import ALONE, total
from .precision import stored_type

__all__ = [
    "LIMIT",
    "BlockMoments",
    "FeatureMoments",
    "Moments",
    "PickedDirections",
    "Step",
    "moment_type",
    "moments",
    "pay_off",
]

# max S / noise up to which a batch is built from moments. Where picks leave S of the size of their
# noise, C psi is smaller than psi by this ratio and q by its square, and both are differences: of q
# about 1e-5 is lost at 1e5, 1e-3 at 1e6 and everything at 1e8, whatever the type of psi.
LIMIT = 1e5


def moment_type(space: WeightSpace, precision: str) -> np.dtype[Any]:
    """Type in which psi is read: in float64 all sums are, whatever it is."""
    return space.dtype if precision == "float64" else stored_type(precision)


def pay_off(
    space: WeightSpace, k: int, candidates: int, evaluation: int, rounds: int, precision: str
) -> bool:
    """Whether moments cost less than `rounds` times all pairs, and G is no larger than psi.

    (N_c + N_x) k d^2 float64 operations against N_c N_x k^2 d in `precision`, each time. With a
    group the numbers are those of all ranks.
    """
    d, N = space.dim, space.size if space.group is ALONE else space.group.points
    each = 1 if precision == "float64" else space.engine.float64_cost
    cost = (candidates + evaluation) * d * each
    return bool(d <= N and cost < rounds * candidates * evaluation * k)


class Step(NamedTuple):
    """What a pick does to the moments, see `ops.downdate_moments`."""

    g: Array
    h: Array
    g_G_g: float
    D: float


class PickedDirections:
    """C = I - sum_picks g g^T / D of the picks so far, float64; `count` of them."""

    def __init__(self, G: Any, picks: int, engine: Engine) -> None:
        self._G, self._engine = G, engine
        self._rows = np.empty((picks, G.shape[0]))  # g / sqrt(D)
        self.count = 0

    def _times_C(self, v: Array) -> Array:
        rows = self._rows[: self.count]
        result: Array = v - ops.product(ops.product(rows, v[:, None]).T, rows)[0]
        return result

    def add(self, psi_c: Array, noise: float) -> Step | None:
        """Add a pick with these features (d,), float64; None: its label tells nothing."""
        if np.isinf(noise):
            return None
        engine = self._engine
        g = self._times_C(psi_c)
        D = max(float(ops.product(psi_c[None], g[:, None])[0, 0]), 0.0) + noise
        G_g = engine.host(engine.product(self._G, engine.put(g[:, None])))[:, 0]
        h = self._times_C(G_g)
        g_G_g = float(ops.product(g[None], G_g[:, None])[0, 0])
        if self.count < len(self._rows):
            self._rows[self.count] = g / np.sqrt(D)
        self.count += 1
        return Step(g, h, g_G_g, D)


class FeatureMoments:
    """The moments q_c, s_c of a scalar kernel.

    With frozen psi, G = sum_x v psi_x psi_x^T and C = I - sum_picks g g^T / D:
    q_x = psi_x^T C G C psi_x, s_x = psi_x^T C psi_x. All of it float64 (the downdates subtract),
    only psi may be float32. O((N_x + N_c) d^2) once, O(N_c d) per pick.
    """

    def __init__(
        self,
        space: WeightSpace,
        candidates: Array,
        evaluation: Array,
        *,
        weights: Array,
        noise: Array,
        picks: int,
        precision: str,
    ) -> None:
        engine, N = space.engine, space.size
        psi = engine.cast(space.psi, moment_type(space, precision))
        # Gather rows only where that is a minority: a pool is not copied to leave out a few points.
        if 2 * len(evaluation) >= N:
            across, v = psi, np.zeros(N)
            v[evaluation] = weights
        else:
            order = np.argsort(evaluation)
            across, v = engine.rows(psi, evaluation[order]), weights[order]
        self._G = total(
            ALONE,
            engine,
            np.array([len(v)]),
            lambda a, b: (across[a:b], v[a:b]),
            engine.weighted_gram,
            engine.empty((0, 0)),
            leaf_rows=engine.leaf_rows,
            step=len(v),
        )
        self._rows = candidates
        self._psi, self._s = psi, space.variance.copy()
        if 2 * len(candidates) < N:
            self._rows = np.arange(len(candidates))
            self._psi = engine.rows(psi, candidates)
            self._s = space.variance[candidates]
        self._q = engine.host(engine.quadratic_form(self._psi, self._G))
        self._noise = noise
        self._directions = PickedDirections(self._G, picks, engine)
        self._engine = engine

    def utilities(self) -> Array:
        """Utilities (N_c,)."""
        q, s = self._q[self._rows], self._s[self._rows]
        utility: Array = np.maximum(q, 0.0) / (np.maximum(s, 0.0) + self._noise)
        return utility

    def pick(self, candidate: int) -> None:
        """Condition on a candidate (its position among the candidates)."""
        psi_c = self._psi[self._rows[candidate]].astype(np.float64)
        step = self._directions.add(psi_c, self._noise[candidate])
        if step is not None:
            self._engine.downdate_moments(self._psi, *step, self._q, self._s)

    def batch(self, count: int) -> tuple[Array, Array] | None:
        """Pick a whole batch without the host: positions among the candidates, and utilities.

        None where the engine cannot. A utility is NaN if nothing else was left.
        """
        engine = self._engine
        if not isinstance(engine, GpuEngine):
            return None
        order = np.argsort(self._rows)  # of equal utilities the first of them wins
        rows = self._rows[order]
        picked, utility = engine.select_variance_reduction(
            self._psi,
            rows,
            count,
            gram=self._G,
            q=engine.put(self._q[rows]),
            s=engine.put(self._s[rows]),
            noise=self._noise[order],
        )
        return order[picked], np.where(picked < 0, np.nan, utility)


class BlockMoments:
    """The moments q_c, s_c of a kernel with k x k blocks.

    Utilities are (1/k) tr((s_c + lam_c I)^-1 q_c). With frozen psi, G = sum_x v Psi_x^T Psi_x and
    C = I - sum_picks Z^T Z, the k x k matrices are q_x = Psi_x C G C Psi_x^T and
    s_x = Psi_x C Psi_x^T (docs/method.md, section 6). All of it float64 (the downdates subtract),
    only psi may be float32. O((N_x + N_c) k d^2) once, O(N_c k^2 d) per pick, and for features on
    disk a pass over those of the candidates.
    """

    def __init__(
        self,
        space: WeightSpace,
        k: int,
        candidates: Array,
        evaluation: Array,
        *,
        weights: Array,
        noise: Array,
        picks: int,
        precision: str,
    ) -> None:
        dtype, engine = moment_type(space, precision), space.engine
        self._k, d, m, self._engine = k, space.dim, len(candidates), engine
        order = np.argsort(evaluation)
        across, v = self._reader(space, evaluation[order], dtype), np.repeat(weights[order], k)
        step = max(1, BLOCK_BYTES // max(1, d * dtype.itemsize) // engine.leaf_rows)
        self._G = total(
            ALONE,
            engine,
            np.array([len(v)]),
            lambda a, b: (across.read(a, b), v[a:b]),
            engine.weighted_gram,
            engine.empty((d, d)),
            leaf_rows=engine.leaf_rows,
            step=step * engine.leaf_rows,
        )
        self._rows = self._reader(space, candidates, dtype)
        self._q, self._s = np.empty((m, k, k)), np.empty((m, k, k))
        for part, psi_c in self._blocks():
            right = engine.cast(psi_c, np.float64).reshape(-1, k, d).swapaxes(1, 2)
            moved = engine.product(psi_c, self._G).reshape(-1, k, d)
            self._q[part] = engine.host(moved @ right)
            self._s[part] = engine.host(right.swapaxes(1, 2) @ right)
        self._noise = noise
        self._picks = engine.empty((picks * k, d))  # Z
        self._count = 0

    def utilities(self) -> Array:
        """Utilities (N_c,)."""
        noise = np.where(np.isinf(self._noise), 1.0, self._noise)
        A = self._s + noise[:, None, None] * np.eye(self._k)
        trace = np.trace(np.linalg.solve(A, self._q), axis1=1, axis2=2)
        return np.where(np.isinf(self._noise), 0.0, np.maximum(trace, 0.0) / self._k)

    def batch(self, count: int) -> None:
        """Return None: picks are made one by one."""

    def _reader(self, space: WeightSpace, points: Array, dtype: np.dtype[Any]) -> Rows:
        every = len(points) * self._k == space.size and bool((np.diff(points) == 1).all())
        return reader(space, dtype, None if every else blocks.expanded(points, self._k))

    def _blocks(self) -> Iterator[tuple[slice, Any]]:
        """Candidates, by their position, and their k rows each."""
        k = self._k
        step = max(1, blocks.PANEL_BYTES // (8 * k * max(1, len(self._G))))
        for start, psi in self._rows.blocks(k):
            for a in range(0, len(psi) // k, step):
                part = psi[a * k : (a + step) * k]
                yield slice(start // k + a, start // k + a + len(part) // k), part

    def pick(self, candidate: int) -> None:
        """Condition on a candidate (its position among the candidates)."""
        engine, k, noise = self._engine, self._k, self._noise[candidate]
        if np.isinf(noise):
            return
        rows = blocks.expanded(np.array([candidate]), k)
        g = engine.cast(self._rows.take(rows), np.float64)
        L = engine.cholesky(engine.put(self._s[candidate] + noise * np.eye(k)))
        Z = engine.triangular_solve(L, self._times_C(g))
        Z_G = Z @ self._G
        h = self._times_C(Z_G)
        directions, W = engine.copy(engine.stack(Z, h).T), engine.host(Z_G @ Z.T)
        for part, psi in self._blocks():
            moved = engine.host(engine.product(psi, directions)).reshape(-1, k, 2 * k)
            alpha, eta = moved[:, :, :k], moved[:, :, k:]
            # q - alpha eta^T - eta alpha^T + alpha W alpha^T, the last one split among the first.
            half = alpha @ (eta - 0.5 * alpha @ W).transpose(0, 2, 1)
            self._q[part] -= half + half.transpose(0, 2, 1)
            self._s[part] -= alpha @ alpha.transpose(0, 2, 1)
        self._picks[self._count : self._count + k] = Z
        self._count += k

    def _times_C(self, v: Any) -> Any:
        """Rows v (k, d) times C."""
        if self._count == 0:
            return v
        picks = self._picks[: self._count]
        return v - (v @ picks.T) @ picks


Moments = FeatureMoments | BlockMoments


def moments(
    space: Space,
    candidates: Array,
    evaluation: Array,
    *,
    weights: Array,
    noise: Array,
    rounds: int,
    precision: str,
    chosen: bool = False,
) -> Moments | None:
    """Return what scores so many rounds of picks without pairs; None: no gain, or not exact.

    `chosen`: the caller makes the picks one by one, which moments on a GPU are not made for.
    """
    features, k = space.rows, space.per_point
    if not isinstance(features, WeightSpace):
        return None
    if chosen and isinstance(features.engine, GpuEngine):
        return None
    if rounds > 1 and space.variance.max() > LIMIT * noise.min():
        return None
    if not pay_off(features, k, len(candidates), len(evaluation), rounds, precision):
        return None
    of_picks: dict[str, Any] = {
        "weights": weights,
        "noise": noise,
        "picks": rounds - 1,
        "precision": precision,
    }
    if k > 1:
        return BlockMoments(features, k, candidates, evaluation, **of_picks)
    return FeatureMoments(features, candidates, evaluation, **of_picks)
