"""Batches on disk, or shared by ranks, by utilities that never grow while others are picked.

What a candidate was worth bounds what it is worth (the lazy greedy algorithm of Minoux), so that
few of them are scored again for a pick: their rows are read, and no pass over the disk is made. The
picks are those of scoring all again, as from memory, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..arrays import Array
from ..ops import ScoreInputs
from ..progress import track
from . import covariance, disk, pool
from .coverage import FeaturesBefore, Product, covered, reach, rho
from .disk import HeldRows, Rows, reader
from .engines import CPU
from .pool import NO_POINT, PoolScorer, PoolTask, pick_of
from .precision import stored_type

__all__ = ["PoolCover", "PoolVariances"]

# Candidates that are scored again at once, at first; doubled while that does not settle a pick.
_AGAIN = 64


class _Lazy(PoolScorer):
    """`utilities` and `batch` of criteria whose utilities, which are >= 0, never grow.

    Or which are a `product` of such a factor with one that `times` knows after every pick: give
    both or none.
    """

    def __init__(
        self,
        task: PoolTask,
        times: PoolScorer | None = None,
        product: Product | None = None,
    ) -> None:
        self.task, self._times, self._product = task, times, product
        self._group, self._engine = task.space.group, task.space.engine
        self._points = task.candidates + self._group.start
        self._free = np.ones(len(self._points), bool)
        self._bound = np.zeros(len(self._points))
        self._factor = np.ones(len(self._points))  # of `times`
        self._current = np.zeros(len(self._points), bool)  # bounds that are utilities
        self._picks = 0
        self._rows: Rows

    def _scored(self, which: Array | None) -> Array:
        """Utilities of some of this rank's candidates, by their position, or of all.

        Without the factor of `times`, here and below.
        """
        raise NotImplementedError

    @property
    def _slack(self) -> float:
        """By what factor rounding may have a utility exceed its bound."""
        raise NotImplementedError

    def _blocks(self, which: Array | None) -> Iterator[tuple[Any, Any]]:
        """Yield some candidates, by their position, or all, and their features, by blocks."""
        if which is None:
            for start, c in self._rows.blocks():
                yield slice(start, start + len(c)), c
        else:
            row = max(1, self.task.space.dim * self.task.space.dtype.itemsize)
            step = max(1, disk.BLOCK_BYTES // row)
            for start in range(0, len(which), step):
                part = which[start : start + step]
                yield part, self._rows.take(part)

    def utilities(self) -> Array:
        """Utilities of this rank's candidates (m,), after the picks so far."""
        self._bound, self._current[:] = self._scored(None), True
        if self._times is not None:
            self._factor = self._times.utilities()
        return self._worth()

    def _worth(self) -> Array:
        """Utilities (m,), or what bounds them where factors are not current."""
        bound = self._bound
        return bound if self._product is None else self._product(bound, self._factor)

    def pick(self, point: int) -> None:
        """Condition on a candidate of any rank, by its global number."""
        super().pick(point)
        self._current[:] = False
        if self._times is not None:
            self._times.pick(point)

    def batch(self, count: int) -> tuple[Array, Array]:
        """Pick a batch, the best each time: global numbers and utilities."""
        self.utilities()
        indices, values = [], []
        for i in track(range(count), description=self.task.name):
            if self._times is not None and i:
                self._factor = self._times.utilities()
            utility = self._settle()
            own, known = self._no_record(), self._free & (self._current | (utility == 0))
            if known.any():
                own = self._record(*CPU.largest(utility, known))
            record = self._group.best(own)
            indices.append(int(record[1]))
            values.append(float(record[0]))
            self._free[self._points == indices[-1]] = False
            if i + 1 < count:
                self._condition(record)
                self._current[:] = False
                if self._times is not None:
                    self._times.pick(indices[-1])
        return np.array(indices, np.int64), np.array(values)

    def _settle(self) -> Array:
        """Score again what may be best of all ranks, until that is known; return what all is worth.

        What was worth nothing is worth nothing.
        """
        again = _AGAIN
        while True:
            bound, free = self._worth(), self._free
            best = np.max(bound, initial=0.0, where=self._current & free)
            behind = free & ~self._current & (bound > 0)
            may_be = np.max(bound, initial=-1.0, where=behind) * self._slack
            of_all = self._group.gather([best, may_be])
            best = of_all[:, 0].max()
            if not (of_all[:, 1] >= best).any():
                return bound
            which = np.flatnonzero(behind & (bound * self._slack >= best))
            which = np.sort(which[np.argsort(-bound[which], kind="stable")[:again]])
            if len(which):
                self._bound[which], self._current[which] = self._scored(which), True
            again *= 2


class PoolVariances(_Lazy):
    """d_optimal: log(1 + S(c, c) / lam_c), which labels of others only shrink.

    A record: utility, point, noise, variance, psi.
    """

    def __init__(self, task: PoolTask) -> None:
        super().__init__(task)
        dtype = stored_type(task.precision)
        every = len(task.candidates) == task.space.size
        # Picks change these rows: whatever is held is a copy, as in `WeightSpace.scratch`.
        self._rows = reader(task.space, dtype, None if every else task.candidates)
        self._variance = task.space.variance[task.candidates]
        self._eps = float(np.finfo(dtype).eps)

    @property
    def _slack(self) -> float:
        return 1 + 4 * self._eps * (2 + self._picks)

    def _scored(self, which: Array | None) -> Array:
        if self._picks:
            for part, psi in self._blocks(which):
                self._variance[part] = self._engine.host(self._engine.squared_norms(psi))
        every: Any = slice(None) if which is None else which
        result: Array = np.log1p(self._variance[every] / self.task.noise[every])
        return result

    def _record(self, item: int, utility: float) -> Array:
        psi = self._engine.cast(self._rows.take(np.array([item])), np.float64)
        numbers = utility, self._points[item], self.task.noise[item], self._variance[item]
        return np.concatenate([numbers, self._engine.host(psi).ravel()])

    def _no_record(self) -> Array:
        return np.concatenate([[-np.inf, NO_POINT, 1.0, 0.0], np.zeros(self.task.space.dim)])

    def _condition(self, record: Array) -> None:
        noise, variance = record[2:4]
        if np.isfinite(noise):
            self._rows.update(
                pick_of(self._engine, record[None, 4:], float(variance), float(noise))
            )
            self._picks += 1


class PoolCover(_Lazy):
    """Coverage: sum_x v max(0, k(x, c) - m(x)), as `coverage.Cover` has it.

    Candidates stay on their rank; evaluation points come from all ranks, some at a time. For a
    batch they are held by every rank, with m.

    A record: utility, point, features before any label.

    Parameters
    ----------
    task : PoolTask
        Its precision plays no part.
    kernel : FeaturesBefore
        Of candidates and evaluation points.
    radius : float
    precision : str
        As users give it.
    sequential : bool
        Whether picks will follow.
    times : PoolScorer, optional
        Of the same candidates: what coverage is multiplied by.
    product : Product, optional
        How; with `times`.
    """

    def __init__(
        self,
        task: PoolTask,
        kernel: FeaturesBefore,
        radius: float,
        precision: str,
        sequential: bool,
        times: PoolScorer | None = None,
        product: Product | None = None,
    ) -> None:
        super().__init__(task, times, product)
        self._kernel, self._radius = kernel, radius
        self._precision = kernel.precision(precision, reach(task.criterion, radius))
        self._dtype = stored_type(self._precision)
        self._rows = kernel.part(task.candidates, self._dtype)
        own = np.searchsorted(kernel.rows, self._points)
        self._lengths = kernel.diagonal[own]
        self._x = np.searchsorted(kernel.rows, task.evaluation)
        self._held: list[tuple[Any, Any, Array]] | None = None
        if sequential:
            pool.refuse_many(task, task.space.dtype)
            self._held = [self._features(part) for part in self._evaluation()]

    @property
    def _slack(self) -> float:
        return 1 + 1e-12  # a sum in another order

    def _evaluation(self) -> list[slice]:
        step = covariance.EVALUATION_ROWS
        return [slice(start, start + step) for start in range(0, len(self._x), step)]

    def _features(self, part: slice) -> tuple[Any, Any, Array]:
        """Features of some evaluation points, as they are and as they are scored; m."""
        kernel, x = self._kernel, self._x[part]
        features = kernel.features(x)
        rows, largest = HeldRows(features, self._engine, owned=False), np.full(len(x), -np.inf)
        for of, columns in kernel.labeled_rho_of(rows, kernel.inverse[x]):
            largest[of] = columns.max(1, initial=-np.inf)
        m = covered(kernel, self.task.criterion, largest, self._radius)
        return features, self._engine.cast(features, self._dtype), m

    def _scored(self, which: Array | None) -> Array:
        result = np.zeros(len(self._points) if which is None else len(which))
        for number, part in enumerate(self._evaluation()):
            held = self._features(part) if self._held is None else self._held[number]
            done = 0
            for own, c in self._blocks(which):
                result[done : done + len(c)] += self._of_pairs(c, self._lengths[own], part, held)
                done += len(c)
        return result

    def _of_pairs(self, c: Any, lengths: Array, part: slice, held: tuple[Any, Any, Array]) -> Array:
        _, x, m = held
        N_c, N_x = len(c), len(x)
        none = np.zeros((N_c + N_x, 1))  # outputs, which play no part
        inputs = ScoreInputs(
            candidates=np.arange(N_c),
            evaluation=np.arange(N_c, N_c + N_x),
            mean=none,
            outputs=none,
            noise=none[:N_c, 0],
            ridge=1.0,
            label_probs=none[:N_c],
            weights=self.task.weights[part],
            label_scale=1.0,
            loss="squared",
            temperature=1.0,
            covered=m,
            radius=self._radius,
        )
        return self._engine.score_features(
            self.task.criterion,
            self._engine.stack(c, x),
            inputs,
            variance=np.concatenate([lengths, self._kernel.diagonal[self._x[part]]]),
            precision=self._precision,
            kept={},
        )

    def _record(self, item: int, utility: float) -> Array:
        at = np.searchsorted(self._kernel.rows, self._points[item : item + 1])
        return np.concatenate(
            [[utility, self._points[item]], self._kernel.own_features(at).ravel()]
        )

    def _no_record(self) -> Array:
        return np.concatenate([[-np.inf, NO_POINT], np.zeros(self.task.space.dim)])

    def _condition(self, record: Array) -> None:
        """Count a pick in: its rho to every evaluation point."""
        kernel, engine = self._kernel, self._engine
        assert self._held is not None
        at = np.searchsorted(kernel.rows, [int(record[1])])
        columns = engine.put(np.ascontiguousarray(record[None, 2:]))
        for number, part in enumerate(self._evaluation()):
            features, x, m = self._held[number]
            rows = HeldRows(features, engine, owned=False)
            largest = np.empty(len(m))
            for of, found in rho(
                engine, rows, kernel.inverse[self._x[part]], columns, kernel.inverse[at]
            ):
                largest[of] = found[:, 0]
            m = np.maximum(m, covered(kernel, self.task.criterion, largest, self._radius))
            self._held[number] = features, x, m
