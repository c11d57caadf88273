"""Scores and batches where no process has all of psi in memory: on disk, or shared by ranks.

The picks are those of `moments` and of the scorers of `covariance`, bit for bit: what is computed
for a point is the same there and here, and sums over points go in the same order (`group.total`,
`EVALUATION_ROWS`). Candidates stay on their rank. Of a pick all ranks learn in one collective, to
which each contributes its best candidate, features included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..arrays import ArgumentValueError, Array
from ..loss import expected_labels, probabilities
from ..ops import ScoreInputs
from ..progress import track
from .covariance import EVALUATION_ROWS, Update, WeightSpace
from .disk import BLOCK_BYTES, HeldRows, Rows, reader
from .engines import CPU, Engine
from .group import Alone, total
from .moments import PickedDirections, Step, moment_type
from .precision import stored_type

__all__ = [
    "HELD_BYTES",
    "NO_POINT",
    "PoolMoments",
    "PoolPairs",
    "PoolScorer",
    "PoolTask",
    "pick_of",
    "refuse_many",
]

# Bytes of the candidates among which a group of picks is made between two readings of the disk.
_FRONT_BYTES = 1 << 28
_FRONT_LEAST = 1024
# Bytes of psi that are conditioned on a group of picks while they are in cache.
_CACHED_BYTES = 1 << 23
# Bytes of the evaluation points, or candidates, whose psi a batch by pairs holds in memory.
HELD_BYTES = 1 << 30
# A rank without a candidate takes part with this point.
NO_POINT = 2.0**53


@dataclass
class PoolTask:
    """What is to be scored: this rank's candidates, and evaluation points.

    Attributes
    ----------
    space : WeightSpace
    candidates : array (m,), int64
        By their position on this rank, increasing.
    noise : array (m,)
    label_probs : array (m, k) or None
    evaluation : array (N_x,), int64
        Of all ranks, by their global number.
    weights : array (N_x,)
    log_loss_targets : array (N_x, k) or None
    of_points : array (N_r,) or None
        What multiplies the weights of this rank's points: h, or h / (S(x, x) + ridge).
    mean, outputs : array (N_r, k)
        F and f of this rank's points.
    name, criterion : str
        As users call it, and the compiled one.
    """

    space: WeightSpace
    candidates: Array
    noise: Array
    label_probs: Array | None
    evaluation: Array
    weights: Array
    log_loss_targets: Array | None
    of_points: Array | None
    mean: Array
    outputs: Array
    ridge: float
    loss: Any
    label_scale: float
    residual_temperature: float
    temperature: float
    precision: str
    name: str
    criterion: str
    look_ahead: bool


@dataclass
class _Front:
    """Candidates (positions, increasing) among which a group of picks is made.

    All but the positions are arrays of the engine.
    """

    items: Array
    psi: Any
    q: Any
    s: Any
    noise: Any
    free: Any

    def position(self, item: int | None) -> int | None:
        """Position among them; None: it is none of them."""
        at = 0 if item is None else int(np.searchsorted(self.items, item))
        return at if at < len(self.items) and self.items[at] == item else None


@dataclass
class _Outside:
    """The best candidate outside the front before each pick of a group."""

    utility: Array
    item: Array

    @classmethod
    def nothing(cls, picks: int) -> _Outside:
        return cls(np.full(picks, -np.inf), np.full(picks, -1))


def pick_of(engine: Engine, psi_c: Array, variance: float, noise: float) -> Update:
    """Return what a pick (1, d), of a finite noise, does to psi: see `FeatureScorer.pick`."""
    total_variance = variance + noise
    beta = float(1 / (total_variance * (1 + np.sqrt(noise / total_variance))))
    row = engine.put(np.ascontiguousarray(psi_c))
    return Update(row, beta * row)


def refuse_many(task: PoolTask, dtype: np.dtype[Any]) -> None:
    """Raise a ValueError for more evaluation points than a sequential batch can hold."""
    dim = task.space.dim
    size = len(task.evaluation) * dim * dtype.itemsize
    if size > HELD_BYTES:
        raise ArgumentValueError(
            "evaluation",
            f"evaluation: a sequential batch by {task.name} holds the features of the evaluation "
            f"points in memory, on every rank: {len(task.evaluation)} x {dim} numbers are "
            f"{size / 2**30:.1f} GiB; pass a sample of the points as evaluation (4096 to 65536 "
            'will do), or use mode="top"',
        )


class PoolScorer:
    """Scores this rank's candidates, and conditions on picks of all ranks.

    Whatever a method is given or returns is the same on every rank, but for what is said to be of
    this one. A *record* of a candidate, float64, begins with its utility and its global number; it
    holds what other ranks need of a pick.
    """

    _group: Alone
    _points: Array  # global numbers of this rank's points that are scored, increasing

    def utilities(self) -> Array:
        """Utilities of this rank's candidates (m,), after the picks so far."""
        raise NotImplementedError

    def batch(self, count: int) -> tuple[Array, Array]:
        """Pick a batch, the best each time: global numbers and utilities."""
        raise NotImplementedError

    def pick(self, point: int) -> None:
        """Condition on a candidate of any rank, by its global number."""
        item = self._item(point)
        own = self._no_record() if item is None else self._record(item, 0.0)
        self._condition(self._group.best(own))

    def _item(self, point: float) -> int | None:
        """Position among `_points`; None: it is on another rank."""
        at = int(np.searchsorted(self._points, point))
        return at if at < len(self._points) and self._points[at] == point else None

    def _record(self, item: int, utility: float) -> Array:
        raise NotImplementedError

    def _no_record(self) -> Array:
        """Record of no candidate, as long as any other."""
        raise NotImplementedError

    def _condition(self, record: Array) -> None:
        raise NotImplementedError


class PoolMoments(PoolScorer):
    """`FeatureMoments` of a pool that is on disk or shared by ranks.

    q and s are kept for every point of this rank. From disk, picks are made in groups: among the
    candidates that are best now (the front), whose psi is held, as if there were no others. Then
    one pass does all of the group to every other candidate, pick by pick, and looks whether one of
    them would have been better; if so the picks end there, and that one is the next. So the picks
    are those of a pass for each, whatever the data. Utilities of those that are not picked rarely
    grow, so that a pass hardly finds anything while the best of the front is above the best
    outside. Beyond that a group goes on for `_daring` picks, which grows with success.

    A record of a candidate, float64, is its utility, global number, noise and psi.
    """

    def __init__(self, task: PoolTask, picks: int) -> None:
        space = task.space
        self._group, self._engine = space.group, space.engine
        dtype = moment_type(space, task.precision)
        # As in `FeatureMoments`, only a minority of the points is set apart.
        every = 2 * len(task.candidates) >= space.size
        kept = np.arange(space.size) if every else task.candidates
        self._rows: Rows = reader(space, dtype, None if every else kept)
        self._items = task.candidates if every else np.arange(len(kept))
        self._points = kept + self._group.start
        self._noise = np.ones(len(kept))
        self._noise[self._items] = task.noise
        self._free = np.zeros(len(kept), bool)
        self._free[self._items] = True
        G = self._gram(task, dtype)
        # On the host, but for GPUs, where psi is one block.
        self._q, self._s = self._engine.empty((len(kept),)), self._engine.put(space.variance[kept])
        for start, psi in self._rows.blocks():
            q = self._engine.quadratic_form(psi, G)
            if self._engine.on_gpu:
                self._q = q
            else:
                self._q[start : start + len(psi)] = q
        self._directions = PickedDirections(G, picks, self._engine)
        self._known = 0  # directions that q and s have been downdated by
        self._width = space.dim
        self._daring = 8
        row_bytes = max(1, space.dim * dtype.itemsize)
        self._front_rows = max(_FRONT_LEAST, _FRONT_BYTES // row_bytes)
        self._cached_rows = max(1, _CACHED_BYTES // row_bytes)

    def _gram(self, task: PoolTask, dtype: np.dtype[Any]) -> Any:
        """G, its sum going over all points or over the evaluation points, as in `FeatureMoments`.

        Points or evaluation points are counted over all ranks, in increasing order.
        """
        space, group = task.space, self._group
        offsets = group.offsets
        order = np.argsort(task.evaluation)
        evaluation, v = task.evaluation[order], task.weights[order]
        bounds = group.bounds(evaluation)
        mine = slice(bounds[group.rank], bounds[group.rank + 1])
        own, weights = evaluation[mine] - group.start, v[mine]
        if task.of_points is not None:
            weights = weights * task.of_points[own]
        if 2 * len(evaluation) >= offsets[-1]:
            counts, rows = np.diff(offsets), reader(space, dtype, None)
            of_all = np.zeros(space.size)
            of_all[own] = weights
            weights = of_all
        else:
            counts, rows = np.diff(bounds), reader(space, dtype, own)
        leaf = self._engine.leaf_rows
        step = max(leaf, BLOCK_BYTES // max(1, space.dim * dtype.itemsize) // leaf * leaf)
        return total(
            group,
            self._engine,
            counts,
            lambda a, b: (rows.read(a, b), weights[a:b]),
            self._engine.weighted_gram,
            self._engine.empty((space.dim, space.dim)),
            leaf_rows=leaf,
            step=step,
        )

    def _utility(self, part: Any) -> Array:
        """Utilities of some points, on the host."""
        q, s = (self._engine.host(moment)[part] for moment in (self._q, self._s))
        return CPU.utility(q, s, self._noise[part])

    def utilities(self) -> Array:
        """Utilities of this rank's candidates (m,)."""
        return self._utility(self._items)

    def batch(self, count: int) -> tuple[Array, Array]:
        """Pick a batch: global numbers and utilities."""
        done: list[Array] = []  # picks that q and s know
        sure: list[Array] = []  # and picks after them that they do not know
        front = self._front()
        while len(done) + len(sure) < count:
            picks, steps, safe = self._picks_of(front, sure, count - len(done))
            if self._whole:
                done += picks
                break
            moments, outside = self._pass(front, picks, steps, len(sure), safe)
            better = self._better(picks, outside, len(sure))
            kept = len(picks)
            if better is None:
                sure = []
                self._daring *= 2
            else:
                at, record = better
                self._daring = max(1, at - max(safe, len(sure)))
                kept = safe if at >= safe else 0
                sure = [*picks[kept:at], record]
            if kept:
                done += picks[:kept]
                self._q, self._s = moments[kept]
                self._known += sum(step is not None for step in steps[:kept])
                for record in picks[:kept]:
                    item = self._item(record[1])
                    if item is not None:
                        self._free[item] = False
                if len(done) + len(sure) < count:
                    front = self._front()
        records = np.array(done + sure)
        return records[:, 1].astype(np.int64), records[:, 0]

    def _condition(self, record: Array) -> None:
        """Do a pick to every point, which takes one pass."""
        step = self._directions.add(record[3:], float(record[2]))
        self._known = self._directions.count
        if step is None:
            return
        for start, psi in self._rows.blocks():
            part = slice(start, start + len(psi))
            self._engine.downdate_moments(psi, *step, self._q[part], self._s[part])

    def _record(self, item: int, utility: float, psi: Any = None) -> Array:
        psi = self._rows.take(np.array([item])) if psi is None else psi
        row = self._engine.host(self._engine.cast(psi, np.float64))
        return np.concatenate([[utility, self._points[item], self._noise[item]], row.ravel()])

    def _no_record(self) -> Array:
        return np.concatenate([[-np.inf, NO_POINT, 1.0], np.zeros(self._width)])

    def _front(self) -> _Front:
        """Return the best candidates, or all points where psi is held."""
        rows = self._rows
        items = np.flatnonzero(self._free)
        others = 0
        if isinstance(rows, HeldRows):
            items = np.arange(len(self._points))
        elif len(items) > self._front_rows:
            others = len(items) - self._front_rows
            order = np.argpartition(-self._utility(items), self._front_rows)
            items = np.sort(items[order[:-others]])
        # Whether no rank has candidates outside its front.
        self._whole = not self._group.gather([others]).any()
        put = self._engine.put
        noise, free = put(self._noise[items]), put(self._free[items])
        if isinstance(rows, HeldRows):
            return _Front(items, rows.read(0, len(rows)), self._q, self._s, noise, free)
        return _Front(items, rows.take(items), self._q[items], self._s[items], noise, free)

    def _outside(self, front: _Front, picks: list[Array]) -> Array:
        """Which candidates are neither in the front nor among the picks."""
        outside = self._free.copy()
        outside[front.items] = False
        for record in picks:
            item = self._item(record[1])
            if item is not None:
                outside[item] = False
        return outside

    def _picks_of(
        self, front: _Front, sure: list[Array], most: int
    ) -> tuple[list[Array], list[Step | None], int]:
        """Return `sure` and picks after them as if the front were all; what each does to q and s.

        The last of `most` does nothing any more. And how many of them no candidate outside will
        beat, unless its utility has grown.
        """
        trial, best_outside = front, -np.inf
        if not self._whole:  # these picks may have to be taken back
            copy = self._engine.copy
            trial = replace(front, q=copy(front.q), s=copy(front.s), free=front.free.copy())
            others = np.flatnonzero(self._outside(front, sure))
            utility = self._utility(others)
            best_outside = self._group.gather([utility.max(initial=-np.inf)]).max()
        self._directions.count = self._known
        picks: list[Array] = []
        steps: list[Step | None] = []
        safe: int | None = None
        for i in track(range(most), description="picks"):
            record = sure[i] if i < len(sure) else self._group.best(self._own(trial))
            if i >= len(sure) and record[0] < best_outside:
                safe = i if safe is None else safe
                if i >= len(sure) + self._daring:
                    break
            picks.append(record)
            at = front.position(self._item(record[1]))
            if at is not None:
                trial.free[at] = False
            if i + 1 == most:
                break
            step = self._directions.add(record[3:], float(record[2]))
            steps.append(step)
            if step is not None and len(front.items):
                self._engine.downdate_moments(front.psi, *step, trial.q, trial.s)
        return picks, steps, len(picks) if safe is None else safe

    def _own(self, front: _Front) -> Array:
        """Record of the best of this rank's candidates in the front."""
        if not front.free.any():
            return self._no_record()
        utility = self._engine.utility(front.q, front.s, front.noise)
        at, value = self._engine.largest(utility, front.free)
        return self._record(int(front.items[at]), value, front.psi[at : at + 1])

    def _pass(
        self, front: _Front, picks: list[Array], steps: list[Step | None], sure: int, safe: int
    ) -> tuple[dict[int, tuple[Array, Array]], _Outside]:
        """Do the picks to every candidate; return what comes of it.

        q and s after all picks, and after the `safe` ones; the best outside before each pick.
        """
        q, s = self._q.copy(), self._s.copy()
        moments = {len(picks): (q, s)}
        if 0 < safe < len(picks):
            moments[safe] = np.empty_like(q), np.empty_like(s)
        outside = self._outside(front, picks[:sure])
        best = _Outside.nothing(len(picks))
        for start, psi in self._rows.blocks():
            for a in range(0, len(psi), self._cached_rows):
                b = min(a + self._cached_rows, len(psi))
                part = slice(start + a, start + b)
                hidden = np.flatnonzero(~outside[part])
                watched = len(hidden) < b - a
                for i in range(len(picks)):
                    if i == safe and i in moments:
                        for now, then in zip((q, s), moments[i], strict=True):
                            then[part] = now[part]
                    if watched and i >= sure:
                        self._watch(best, i, q, s, part, hidden)
                    if i < len(steps) and (step := steps[i]) is not None:
                        self._engine.downdate_moments(psi[a:b], *step, q[part], s[part])
        return moments, best

    def _watch(
        self, best: _Outside, i: int, q: Array, s: Array, part: slice, hidden: Array
    ) -> None:
        """Remember the best candidate outside the front before pick i; points come in order."""
        utility = CPU.utility(q[part], s[part], self._noise[part])
        utility[hidden] = -np.inf
        at = int(utility.argmax())
        if utility[at] > best.utility[i] or np.isnan(utility[at]):
            best.utility[i], best.item[i] = utility[at], part.start + at

    def _better(self, picks: list[Array], outside: _Outside, sure: int) -> tuple[int, Array] | None:
        """Return the first pick that a candidate outside the front would beat, and its record."""
        point = np.where(outside.item < 0, NO_POINT, self._points[outside.item])
        of_all = self._group.gather(np.concatenate([outside.utility, point]))
        for i in range(sure, len(picks)):
            utility, point = of_all[:, i], of_all[:, len(picks) + i]
            best = np.lexsort((point, -utility))[0]
            first = (-utility[best], point[best]) < (-picks[i][0], picks[i][1])
            if not (first or np.isnan(utility).any()):
                continue
            item = int(outside.item[i])
            if item < 0:
                return i, self._group.best(self._no_record())
            return i, self._group.best(self._record(item, float(outside.utility[i])))
        return None


class PoolPairs(PoolScorer):
    """Criteria from pairs over a pool that is on disk or shared by ranks.

    Candidates stay on their rank; evaluation points come from all ranks, some at a time. For a
    batch they are held by every rank, and follow the picks there.
    """

    def __init__(self, task: PoolTask, sequential: bool) -> None:
        self.task, space = task, task.space
        self._group, self._engine = space.group, space.engine
        self._dtype = stored_type(task.precision)
        every = len(task.candidates) == space.size
        # Picks change these rows: whatever is held is a copy, as in `WeightSpace.scratch`.
        self._rows: Rows = reader(space, self._dtype, None if every else task.candidates)
        self._variance = space.variance[task.candidates]
        self._mean, self._outputs = task.mean[task.candidates], task.outputs[task.candidates]
        self._points = task.candidates + self._group.start
        self._free = np.ones(len(task.candidates), bool)
        self._held: Any = None
        self._x = self._of_evaluation()
        if sequential:
            refuse_many(task, self._dtype)
            psi = self._engine.cast(space.at(task.evaluation), self._dtype)
            self._held = HeldRows(psi, self._engine, owned=True)

    def _of_evaluation(self) -> tuple[Array, Array, Array, Array]:
        """F, f, variances and weights of the evaluation points."""
        task, space = self.task, self.task.space
        k = task.mean.shape[1]
        of_own = [task.mean, task.outputs, space.variance[:, None]]
        if task.of_points is not None:
            of_own.append(task.of_points[:, None])
        found = self._group.rows(
            self._engine,
            task.evaluation,
            lambda own: np.concatenate([part[own] for part in of_own], axis=1),
        )
        weights = task.weights if task.of_points is None else task.weights * found[:, -1]
        mean, outputs = (np.ascontiguousarray(found[:, i * k : (i + 1) * k]) for i in (0, 1))
        return mean, outputs, np.ascontiguousarray(found[:, 2 * k]), weights

    def utilities(self) -> Array:
        """Utilities of this rank's candidates (m,)."""
        task = self.task
        result = np.zeros(len(self._points))
        label_probs = task.label_probs
        if label_probs is None:
            label_probs = probabilities(self._mean, task.loss)
        mean, outputs, variance, weights = self._x
        for x in range(0, len(task.evaluation), EVALUATION_ROWS):
            part = slice(x, x + EVALUATION_ROWS)
            points = task.evaluation[part]
            if self._held is not None:
                psi_x = self._held.read(x, x + len(points))
            else:
                psi_x = self._engine.cast(task.space.at(points), self._dtype)
            targets = None if task.log_loss_targets is None else task.log_loss_targets[part]
            for start, psi_c in self._rows.blocks():
                c = slice(start, start + len(psi_c))
                inputs = ScoreInputs(
                    candidates=np.arange(len(psi_c)),
                    evaluation=np.arange(len(psi_c), len(psi_c) + len(points)),
                    mean=np.concatenate([self._mean[c], mean[part]]),
                    outputs=np.concatenate([self._outputs[c], outputs[part]]),
                    noise=task.noise[c],
                    ridge=task.ridge,
                    label_probs=label_probs[c],
                    weights=weights[part],
                    label_scale=task.label_scale,
                    loss=task.loss,
                    temperature=task.temperature,
                    log_loss_targets=targets,
                    residual_temperature=task.residual_temperature,
                )
                result[c] += self._engine.score_features(
                    task.criterion,
                    self._engine.stack(psi_c, psi_x),
                    inputs,
                    variance=np.concatenate([self._variance[c], variance[part]]),
                    precision=task.precision,
                    kept={},
                )
        return result

    def batch(self, count: int) -> tuple[Array, Array]:
        """Pick a batch, the best each time: global numbers and utilities."""
        indices, values = [], []
        for i in track(range(count), description=self.task.name):
            utility, own = self.utilities(), self._no_record()
            if self._free.any():
                at, value = CPU.largest(utility, self._free)
                own = self._record(at, value)
            record = self._group.best(own)
            indices.append(int(record[1]))
            values.append(float(record[0]))
            self._free[self._points == indices[-1]] = False
            if i + 1 < count:
                self._condition(record)
        return np.array(indices, np.int64), np.array(values)

    def _record(self, item: int, utility: float) -> Array:
        """Hold utility, point, noise, variance, F and psi."""
        psi = self._engine.cast(self._rows.take(np.array([item])), np.float64)
        numbers = utility, self._points[item], self.task.noise[item], self._variance[item]
        return np.concatenate([numbers, self._mean[item], self._engine.host(psi).ravel()])

    def _no_record(self) -> Array:
        of_psi = np.zeros(self._mean.shape[1] + self.task.space.dim)
        return np.concatenate([[-np.inf, NO_POINT, 1.0, 0.0], of_psi])

    def _condition(self, record: Array) -> None:
        """Condition on a pick with its pseudo-label, as `FeatureScorer.pick` and `step` do."""
        noise, variance = record[2:4]
        if np.isinf(noise):
            return
        mean, psi_c = np.split(record[None, 4:], [self._mean.shape[1]], axis=1)
        task, engine = self.task, self._engine
        residual: Array | None = None
        if task.look_ahead:
            expected = expected_labels(mean, task.loss, task.residual_temperature)[0]
            residual = task.label_scale * (np.eye(len(expected))[mean.argmax()] - expected)
        total_variance = float(variance + noise)
        update = pick_of(engine, psi_c, float(variance), float(noise))
        row = update.U
        mean_x, outputs_x, _, weights = self._x
        moved = []
        for rows, F in ((self._rows, self._mean), (self._held, mean_x)):
            if residual is not None:
                column = np.empty(len(rows))
                for start, psi in rows.blocks():
                    column[start : start + len(psi)] = engine.host(engine.product(psi, row.T))[:, 0]
                F = F + np.outer(column / total_variance, residual)
            rows.update(update)
            norms = np.empty(len(rows))
            for start, psi in rows.blocks():
                norms[start : start + len(psi)] = engine.host(engine.squared_norms(psi))
            moved.append((F, norms))
        (self._mean, self._variance), (mean_x, variance_x) = moved
        self._x = mean_x, outputs_x, variance_x, weights
