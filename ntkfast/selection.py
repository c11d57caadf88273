"""Utilities of the candidates, and batches of them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np

from . import ops
from ._posterior import pool
from ._posterior.blocks import BlockScorer
from ._posterior.covariance import FeatureScorer, KernelScorer, WeightSpace
from ._posterior.coverage import (
    Cover,
    FeaturesBefore,
    MatrixBefore,
    Product,
    Similarity,
    concentration,
    kernel_before,
    largest_pure_radius,
    nearest_radius,
)
from ._posterior.engines import CPU
from ._posterior.group import ALONE, Alone
from ._posterior.lazy import PoolCover, PoolVariances
from ._posterior.moments import LIMIT, Moments, moments, pay_off
from ._posterior.pool import PoolMoments, PoolPairs, PoolScorer, PoolTask
from ._posterior.precision import Precision, resolve
from .arrays import (
    ArgumentTypeError,
    ArgumentValueError,
    Array,
    as_choice,
    as_indices,
    as_noise,
    as_positive,
    as_probabilities,
    as_temperature,
    as_weights,
)
from .criteria import Criterion, find
from .lock import exclusive
from .loss import expected_labels, probabilities, softmax
from .posterior import Posterior
from .progress import track

__all__ = ["Precision", "Selection", "Similarity", "select", "utilities"]


Choose = Callable[[Array, Array], int]


@dataclass(frozen=True)
class Selection:
    """A batch of picks.

    Attributes
    ----------
    indices : array (b,), int64
        Picked points, best (or first) one first.
    utilities : array (b,), float64
        Utility of each when it was picked.
    """

    indices: Any
    utilities: Any


# Points whose probabilities are computed at once.
_ROWS = 1 << 16


def _heterogeneity(outputs: Array, temperature: float) -> Array:
    """Return h (N,) = 1 - sum_j p_j^2, p = softmax(f / temperature) of the trained network's f."""
    h = np.empty(len(outputs))
    for start in range(0, len(outputs), _ROWS):
        part = slice(start, start + _ROWS)
        h[part] = np.maximum(1 - (softmax(outputs[part] / temperature) ** 2).sum(1), 0.0)
    return h


def _fisher_weights(row: Criterion, post: Posterior, h: Array) -> Array:
    """Return by what to multiply v, for the points of this process; h is their heterogeneity."""
    if not row.product:
        return h
    # Shares of variances, so that long features count no more than others.
    weights: Array = h / (post._space.variance + post.ridge)
    return weights


@dataclass
class _Task:
    """What is to be scored: validated arguments and the state that picks change."""

    row: Criterion
    post: Posterior
    precision: str  # as given, until `resolve`
    candidates: Array  # (N_c,)
    evaluation: Array  # (N_x,)
    mean: Array  # (N, k), F; after each pick of a sequential batch: with its pseudo-label
    outputs: Array  # (N, k)
    label_probs: Array | None  # (N_c, k) as given, else P follows F
    noise: Array  # (N_c,)
    weights: Array  # (N_x,)
    uncovered: Array  # (N_x,), weights of what is to be covered
    temperature: float
    log_loss_targets: Array | None  # (N_x, k)
    similarity: str  # compiled coverage
    radius: float | None  # None: by the criterion's rule
    rows: Array | None = None  # what the points are in `post`, once they have other numbers

    @classmethod
    def read(
        cls,
        post: Posterior,
        criterion: str,
        candidates: Any,
        evaluation: Any,
        label_probs: Any,
        weights: Any,
        noise: Any,
        temperature: Any,
        log_loss_targets: Any,
        precision: str,
        similarity: Any,
        radius: Any,
        facts: dict[str, Any],
    ) -> _Task:
        """Check the arguments; put into `facts` what must be the same on all ranks."""
        row = find(criterion)
        N, k = len(post), post._mean.shape[1]
        candidates, evaluation, label_probs, weights, noise, log_loss_targets = post._library.fetch(
            candidates=candidates,
            evaluation=evaluation,
            label_probs=label_probs,
            weights=weights,
            noise=noise,
            log_loss_targets=log_loss_targets,
        )
        row.check_outputs(k, "this posterior")
        if row.coverage and post._space.per_point > 1:
            raise ArgumentValueError(
                "criterion",
                f"{criterion} is of a scalar kernel, and this one has k x k blocks: use "
                "outputs='sum', 'single' or 'random' of EmpiricalNTK, or another criterion",
            )
        if candidates is None:
            chosen = np.flatnonzero(~post._is_labeled)
            if len(chosen) == 0:
                raise ValueError("every point is labelled: there are no candidates")
        else:
            chosen = as_indices("candidates", candidates, N)
        points = np.arange(N) if evaluation is None else as_indices("evaluation", evaluation, N)
        N_c, N_x = len(chosen), len(points)
        if label_probs is not None:
            label_probs = as_probabilities("label_probs", label_probs, (N_c, k))
        v = np.ones(N_x) if weights is None else as_weights("weights", weights, N_x)
        lam = np.full(N_c, post.ridge) if noise is None else as_noise("noise", noise, N_c)
        if temperature is None:
            temperature = 1.0 if post.loss == "cross_entropy" else 0.1
        if log_loss_targets is not None:
            log_loss_targets = as_probabilities("log_loss_targets", log_loss_targets, (N_x, k))
        elif "log_loss_targets" in row.needs:
            raise ArgumentValueError(
                "log_loss_targets",
                f"{criterion} needs log_loss_targets of shape ({N_x}, {k}): the distributions that "
                "the evaluation points should have (with the model's own, the best candidate would "
                "be the one that changes nothing)",
            )
        facts |= {
            "criterion": criterion,
            "candidates": None if candidates is None else chosen,
            "evaluation": None if evaluation is None else points,
            "label_probs": label_probs,
            "weights": None if weights is None else v,
            "noise": None if noise is None else lam,
            "temperature": temperature,
            "log_loss_targets": log_loss_targets,
            "precision": precision,
            "similarity": similarity,
            "radius": radius,
        }
        temperature = as_temperature("temperature", temperature)
        uncovered = v
        if row.fisher and not post._space.in_parts:
            h = _heterogeneity(post._outputs, temperature)
            v = v * _fisher_weights(row, post, h)[points]
            with np.errstate(divide="ignore"):
                lam = lam / h[chosen]
        if similarity is not None:
            as_choice("similarity", similarity, get_args(Similarity))
        automatic = isinstance(radius, str) and radius == "auto"
        r = None if automatic else as_positive("radius", radius)
        return cls(
            row=row,
            post=post,
            precision=precision,
            candidates=chosen,
            evaluation=points,
            mean=post._mean,
            outputs=post._outputs,
            label_probs=label_probs,
            noise=lam,
            weights=v,
            uncovered=uncovered,
            temperature=temperature,
            log_loss_targets=log_loss_targets,
            similarity=row.coverage.get(similarity, next(iter(row.coverage.values()), "")),
            radius=r,
        )

    def resolve(self, variance: float, noise: float, mode: str) -> None:
        """Decide about the precision, by the largest variance and the smallest noise."""
        self.precision = resolve(
            self.precision,
            self.post._space,
            float32_limit=self.row.float32_limit,
            ridge=self.post.ridge,
            variance=variance,
            noise=noise,
            sequential=mode == "sequential",
        )

    def keep(self, which: Array) -> None:
        """Keep the candidates of a mask."""
        self.candidates = self.candidates[which]
        self.noise = self.noise[which]
        if self.label_probs is not None:
            self.label_probs = self.label_probs[which]

    def move(self, rows: Array) -> None:
        """Address the points by their position in `rows` (increasing) from now on."""
        self.candidates = np.searchsorted(rows, self.candidates)
        self.evaluation = np.searchsorted(rows, self.evaluation)
        self.mean, self.outputs = self.mean[rows], self.outputs[rows]

    def score(
        self, scorer: FeatureScorer | KernelScorer | BlockScorer, *, shown: bool = False
    ) -> Array:
        """Utilities (N_c,) from pairs of candidates and evaluation points."""
        if not self.row.compiled:
            return scorer.log_det(self.candidates, self.noise)
        P = self.label_probs
        if P is None:
            P = probabilities(self.mean[self.candidates], self.post.loss)
        inputs = ops.ScoreInputs(
            candidates=self.candidates,
            evaluation=self.evaluation,
            mean=self.mean,
            outputs=self.outputs,
            noise=self.noise,
            ridge=self.post.ridge,
            label_probs=P,
            weights=self.weights,
            label_scale=self.post.label_scale,
            loss=self.post.loss,
            temperature=self.temperature,
            log_loss_targets=self.log_loss_targets,
            residual_temperature=self.post.residual_temperature,
        )
        if not shown:
            return scorer.score(self.row.compiled, inputs)
        return _shown(
            self, lambda some: scorer.score(self.row.compiled, inputs.part(some, slice(None)))
        )


# A CPU scores about so many pairs between two signs of progress, in whole tiles of candidates.
_PAIRS, _TILE = 1 << 21, 256


def _shown(task: _Task, score: Callable[[slice], Array]) -> Array:
    """Score some candidates at a time, and show how far that is; the values are the same."""
    N_c = len(task.candidates)
    step = N_c
    if task.post._space.engine is CPU:
        step = -(-_PAIRS // (_TILE * max(len(task.evaluation), 1))) * _TILE
    starts = range(0, N_c, step)
    parts = track(starts, description=task.row.name) if len(starts) > 1 else starts
    return np.concatenate([score(slice(start, start + step)) for start in parts])


def _checked(utility: Array, candidates: Array) -> Array:
    """Refuse utilities that are NaN or infinite: a ranking by them would mean nothing."""
    wrong = np.flatnonzero(~np.isfinite(utility))
    if len(wrong):
        raise ValueError(
            f"the utility of point {candidates[wrong[0]]} is {utility[wrong[0]]}: features, "
            "outputs or weights are too large for this precision; rescale them or use float64"
        )
    return utility


def _has_labels(post: Posterior) -> bool:
    """Whether classes are told apart at all: without labels each is as open as any."""
    return bool(post._labels or post._is_labeled.any())


def _probabilities(task: _Task, F: Array) -> Array:
    """Class probabilities (m, k) of F, of U and H."""
    # Where h has the sharp ones of squared loss, these are flat (docs/evidence.md).
    flat = task.row.product and task.post.loss == "squared"
    return probabilities(F, task.post.loss) if flat else softmax(F / task.temperature)


def _openness(task: _Task, F: Array) -> Array:
    """Weights v(x) U(x) (N_x,) of F (N_x, k) at the evaluation points."""
    if not task.row.uncertainty or not _has_labels(task.post):
        return task.uncovered
    largest = np.sort(_probabilities(task, F), axis=1)
    weights: Array = task.uncovered * (1 - (largest[:, -1] - largest[:, -2]))
    return weights


# Share of the radius where variances tell, besides, what is far from all labels: balls that touch.
_FINER = 0.5
# Concentrations of distances at which coverage begins to give way, and has (docs/evidence.md).
_NEAR, _ALIKE = 0.25, 0.75
# Evaluation points that tell: a few are far from each other, whatever they are.
_ENOUGH = 100
# A kernel that is known to no less than this is refused, however far labels are.
_COARSE = 0.1


def _kernel_before(task: _Task) -> tuple[FeaturesBefore | MatrixBefore, float]:
    """Return the kernel before any label, and the radius of coverage in it."""
    post, row = task.post, task.row
    kernel = kernel_before(
        cast(Any, post._space),
        post._given,
        np.flatnonzero(post._is_labeled),
        np.union1d(task.candidates, task.evaluation),
        has_labels=post._labels > 0,
    )
    radius = task.radius
    if radius is None and row.name == "prob_cover":
        if (k := post._mean.shape[1]) == 1:
            raise ArgumentValueError(
                "radius",
                'radius="auto" looks for balls of one class only, and this posterior has one '
                "output: give radius",
            )
        radius = largest_pure_radius(kernel, k)
    elif radius is None:
        radius = nearest_radius(kernel) if row.uncertainty else 1.0
        if row.product:
            radius *= _FINER
        if kernel.finest <= _COARSE:  # of a collapsed network
            radius = max(radius, kernel.finest)
    return kernel, radius


def _product(task: _Task, kernel: FeaturesBefore | MatrixBefore, F: Array) -> Product:
    """Return how coverage and variances are multiplied; F (m, k) is of own candidates."""
    points = task.evaluation[task.uncovered > 0]
    if not _has_labels(task.post) or len(points) < _ENOUGH:
        return Product(np.ones(len(F)), 0.0)
    entropy = np.empty(len(F))
    for start in range(0, len(F), _ROWS):
        part = slice(start, start + _ROWS)
        p = _probabilities(task, F[part])
        entropy[part] = -(p * np.log(np.maximum(p, np.finfo(float).tiny))).sum(1)
    w = (concentration(kernel, points) - _NEAR) / (_ALIKE - _NEAR)
    return Product(np.maximum(entropy, 0.0), min(max(w, 0.0), 1.0))


def _cover(task: _Task, kernel: FeaturesBefore | MatrixBefore, radius: float) -> Cover:
    """Return what candidates cover of the evaluation points, given the labels so far."""
    weights = _openness(task, task.post._mean[task.evaluation])
    return Cover(
        kernel,
        task.similarity,
        task.candidates,
        task.evaluation,
        weights,
        radius,
        task.precision,
    )


class _Pool:
    """A task of which no process holds all points: what a rank does, and what comes of all."""

    def __init__(self, task: _Task, mode: str, rounds: int) -> None:
        post, space = task.post, task.post._space.rows
        assert isinstance(space, WeightSpace)  # it is in parts
        self.group, self._engine, self._row = space.group, space.engine, task.row
        order = np.argsort(task.candidates, kind="stable")
        bounds = self.group.bounds(task.candidates[order])
        mine = order[bounds[self.group.rank] : bounds[self.group.rank + 1]]
        self._order, self._counts = order, np.diff(bounds)
        candidates = task.candidates[mine] - self.group.start
        noise, of_points = task.noise[mine], None
        if task.row.fisher:
            h = _heterogeneity(post._outputs, task.temperature)
            of_points = _fisher_weights(task.row, post, h)
            with np.errstate(divide="ignore"):
                noise = noise / h[candidates]
        self._points, self._whole = task.candidates, task
        self._sequential, self._rounds = mode == "sequential", rounds
        self._precision = task.precision  # as given
        if not task.row.coverage or task.row.product:
            extremes = self.group.gather([space.variance.max(), noise.min(initial=np.inf)])
            self._variance, self._noise = float(extremes[:, 0].max()), float(extremes[:, 1].min())
            task.resolve(self._variance, self._noise, mode)
        self._task = PoolTask(
            space=space,
            candidates=candidates,
            noise=noise,
            label_probs=None if task.label_probs is None else task.label_probs[mine],
            evaluation=task.evaluation,
            weights=task.weights,
            log_loss_targets=task.log_loss_targets,
            of_points=of_points,
            mean=post._mean,
            outputs=post._outputs,
            ridge=post.ridge,
            loss=post.loss,
            label_scale=post.label_scale,
            residual_temperature=post.residual_temperature,
            temperature=task.temperature,
            precision=task.precision,
            name=task.row.name,
            criterion=task.row.compiled,
            look_ahead=task.row.look_ahead,
        )

    def _scorer(self) -> PoolScorer:
        """Return what scores the candidates, and is conditioned on picks."""
        task, row = self._whole, self._row
        if not row.coverage:
            return self._of_covariance()
        F = self.group.rows(CPU, task.evaluation, lambda own: self._task.mean[own])
        kernel, radius = _kernel_before(task)
        assert isinstance(kernel, FeaturesBefore)
        times, product = None, None
        if row.product:
            times = self._of_covariance()
            product = _product(task, kernel, self._task.mean[self._task.candidates])
        return PoolCover(
            replace(self._task, criterion=task.similarity, weights=_openness(task, F)),
            kernel,
            radius,
            self._precision,
            self._sequential,
            times,
            product,
        )

    def _of_covariance(self) -> PoolScorer:
        """Return the scorer of what is no coverage."""
        task, row = self._whole, self._row
        if not row.compiled:
            return PoolVariances(self._task)
        numbers = len(task.candidates), len(task.evaluation)
        if (
            row.moments
            and (self._rounds == 1 or self._variance <= LIMIT * self._noise)
            and pay_off(self._task.space, 1, *numbers, self._rounds, task.precision)
        ):
            return PoolMoments(self._task, self._rounds if self._sequential else 0)
        return PoolPairs(self._task, self._sequential)

    def _in_order(self, scorer: PoolScorer) -> Array:
        """Utilities (N_c,) of all candidates, in their order, on every rank."""
        in_order = self.group.concatenated(CPU, scorer.utilities(), self._counts)
        result = np.empty(len(self._points))
        result[self._order] = in_order
        return _checked(result, self._points)

    def utilities(self) -> Array:
        """Utilities (N_c,) of all candidates, in their order, on every rank."""
        return self._in_order(self._scorer())

    def batch(self, b: int, choose: Choose | None) -> tuple[Array, Array]:
        """Return the picks of a sequential batch, and their utilities.

        With `choose` every candidate is scored again for every pick.
        """
        scorer = self._scorer()
        if choose is None:
            return scorer.batch(b)
        left, indices, values = np.arange(len(self._points)), [], []
        for i in track(range(b), description=self._row.name):
            utility = self._in_order(scorer)[left]
            at = _chosen(choose, utility, self._points[left], self.group)
            indices.append(int(self._points[left[at]]))
            values.append(float(utility[at]))
            left = np.delete(left, at)
            if i + 1 < b:
                scorer.pick(indices[-1])
        return np.array(indices, np.int64), np.array(values)


def _moments(task: _Task, rounds: int, *, chosen: bool = False) -> Moments | None:
    """Return what scores so many rounds of picks without pairs, if that is possible and pays."""
    if not task.row.moments:
        return None
    return moments(
        task.post._space,
        task.candidates,
        task.evaluation,
        weights=task.weights,
        noise=task.noise,
        rounds=rounds,
        precision=task.precision,
        chosen=chosen,
    )


def _utilities(task: _Task) -> Array:
    if task.post._space.in_parts:
        return _Pool(task, "top", 1).utilities()
    covered, product = np.empty(0), None
    if task.row.coverage:
        kernel, radius = _kernel_before(task)
        cover, every = _cover(task, kernel, radius), np.arange(len(task.candidates))
        covered = _checked(_shown(task, lambda some: cover.score(every[some])), task.candidates)
        if not task.row.product:
            return covered
        product = _product(task, kernel, task.mean[task.candidates])
    task.resolve(float(np.max(task.post._space.variance)), float(task.noise.min()), "top")
    space = task.post._space
    by_moments = _moments(task, 1)
    if by_moments is not None:
        utility = by_moments.utilities()
    elif space.rows.on_disk:
        moved = replace(task)
        scorer = _held(moved, 0)
        utility = moved.score(scorer, shown=True)
    else:
        utility = task.score(space.scorer(task.precision), shown=True)
    if product is not None:
        utility = product(covered, utility)
    return _checked(utility, task.candidates)


def _held(task: _Task, picks: int) -> FeatureScorer | KernelScorer | BlockScorer:
    """Return a scorer of the points concerned, to be conditioned on picks; they are in memory.

    The task has new numbers for them; `_Task.rows` has the old ones.
    """
    space, rows = task.post._space, task.post._space.rows
    if not task.row.compiled:  # reads no evaluation points
        task.evaluation = task.evaluation[:0]
    points = np.union1d(task.candidates, task.evaluation)
    if rows.on_disk and isinstance(rows, WeightSpace):
        size = len(points) * space.per_point * rows.dim * rows.dtype.itemsize
        if size > pool.HELD_BYTES:
            raise ArgumentValueError(
                "candidates",
                f"candidates: {task.row.name} over k x k blocks holds the features of candidates "
                f"and evaluation points in memory: of {len(points)} points they are "
                f"{size / 2**30:.1f} GiB; pass samples of the points as candidates and evaluation",
            )
    scorer, task.rows = space.scratch(points, picks, task.precision)
    task.move(task.rows)
    return scorer


def _best(utility: Array, candidates: Array) -> int:
    """Position of the largest utility; of equal ones that of the lowest point."""
    ties = np.flatnonzero(utility == utility.max())
    return int(ties[candidates[ties].argmin()])


def _chosen(choose: Choose | None, utility: Array, points: Array, group: Alone = ALONE) -> int:
    """Position of the pick: what `choose` says, checked, or the largest utility."""
    if choose is None:
        return _best(utility, points)
    facts: dict[str, Any] = {}
    with group.together("choose", facts):
        given = choose(points, utility)
        if isinstance(given, (bool, np.bool_)) or not hasattr(given, "__index__"):
            raise ArgumentTypeError(
                "choose",
                f"choose returned {given!r}; expected the position of a point among those it was "
                "given",
            )
        position = operator.index(given)
        if not 0 <= position < len(points):
            raise ArgumentValueError(
                "choose",
                f"choose returned {position}; expected a position in [0, {len(points)})",
            )
        facts["what choose returned"] = position
    return position


def _sequential_by_moments(
    task: _Task, of: Moments, b: int, choose: Choose | None
) -> tuple[list[int], list[float]]:
    first = _checked(of.utilities(), task.candidates)
    batch = of.batch(b) if choose is None else None
    if batch is not None:
        picked, utility = batch
        chosen = task.candidates[picked]
        return chosen.tolist(), _checked(utility, chosen).tolist()
    free = np.ones(len(task.candidates), bool)
    indices, values = [], []
    for i in track(range(b), description=task.row.name):
        utility = first if i == 0 else _checked(of.utilities(), task.candidates)
        left = np.flatnonzero(free)
        best = int(left[_chosen(choose, utility[left], task.candidates[left])])
        free[best] = False
        indices.append(int(task.candidates[best]))
        values.append(float(utility[best]))
        if i + 1 < b:
            of.pick(best)
    return indices, values


# Candidates that are scored again at once, at first; doubled while that does not settle a pick.
_AGAIN = 64
# Share by which a sum in another order may exceed itself.
_ORDER = 1e-12


class _Reduction:
    """What labels of candidates would take from the variance, for one pick after another."""

    def __init__(self, task: _Task, picks: int) -> None:
        space = task.post._space
        task.resolve(float(np.max(space.variance)), float(task.noise.min()), "sequential")
        self._moments = _moments(task, picks, chosen=True)
        self._scorer: FeatureScorer | KernelScorer | BlockScorer
        if self._moments is None:
            self._scorer = _held(task, picks - 1)
        self._task = task

    def utilities(self) -> Array:
        """Utilities (N_c,), picks included."""
        if self._moments is None:
            return self._task.score(self._scorer)
        return self._moments.utilities()

    def pick(self, candidate: int) -> None:
        """Condition on a candidate, by its position."""
        noise = float(self._task.noise[candidate])
        if self._moments is not None:
            self._moments.pick(candidate)
        elif np.isfinite(noise):
            self._scorer.pick(int(self._task.candidates[candidate]), noise)


def _sequential_by_coverage(
    task: _Task, b: int, choose: Choose | None
) -> tuple[list[int], list[float]]:
    """Pick, count the pick in, and score again those that may still be best.

    What a candidate covers anew never grows: what it was worth before bounds what it is worth
    (the lazy greedy algorithm of Minoux). The picks are those of scoring all again, as `choose`
    needs it. Of a product the other factor is known exactly.
    """
    kernel, radius = _kernel_before(task)
    cover, candidates = _cover(task, kernel, radius), task.candidates
    reduction, product = None, None
    if task.row.product:
        product = _product(task, kernel, task.mean[candidates])
        reduction = _Reduction(task, b)
    bound = _checked(cover.score(np.arange(len(candidates))), candidates)
    current = np.ones(len(candidates), bool)  # bounds that are what is covered
    free = np.ones(len(candidates), bool)
    reduced = np.empty(0)
    indices, values = [], []
    for i in track(range(b), description=task.row.name):
        if reduction is not None:
            reduced = _checked(reduction.utilities(), candidates)
        again = _AGAIN if choose is None else len(candidates)
        while True:
            utility = bound if product is None else _checked(product(bound, reduced), candidates)
            best = np.max(utility, initial=0.0, where=current & free)
            behind = np.flatnonzero(
                free & ~current & (utility >= best * (1 - _ORDER)) & (utility > 0)
            )
            if len(behind) == 0:
                break
            order = np.lexsort((candidates[behind], -utility[behind]))
            behind = np.sort(behind[order[:again]])
            bound[behind] = _checked(cover.score(behind), candidates[behind])
            current[behind] = True
            again *= 2
        # What has covered nothing more before does not now.
        known = np.flatnonzero(free & (current | (utility == 0)))
        pick = int(known[_chosen(choose, utility[known], candidates[known])])
        free[pick] = False
        indices.append(int(candidates[pick]))
        values.append(float(utility[pick]))
        if i + 1 < b:
            cover.pick(pick)
            current[:] = False
            if reduction is not None:
                reduction.pick(pick)
    return indices, values


def _sequential(task: _Task, b: int, choose: Choose | None = None) -> tuple[list[int], list[float]]:
    """Pick, condition on the pick with its pseudo-label argmax F, score again."""
    post, space = task.post, task.post._space
    if space.in_parts:
        picked, utility = _Pool(task, "sequential", b).batch(b, choose)
        return picked.tolist(), utility.tolist()
    if task.row.coverage:
        return _sequential_by_coverage(task, b, choose)
    task.resolve(float(np.max(space.variance)), float(task.noise.min()), "sequential")
    without_pairs = _moments(task, b, chosen=choose is not None)
    if without_pairs is not None:
        return _sequential_by_moments(task, without_pairs, b, choose)
    scorer, rows = _held(task, b - 1), task.rows
    assert rows is not None
    indices, values = [], []
    for i in track(range(b), description=task.row.name):
        utility = _checked(task.score(scorer), rows[task.candidates])
        best = _chosen(choose, utility, rows[task.candidates])
        c, noise = int(task.candidates[best]), float(task.noise[best])
        indices.append(int(rows[c]))
        values.append(float(utility[best]))
        if i + 1 == b:
            break
        task.keep(np.arange(len(utility)) != best)
        if np.isinf(noise):
            continue
        if task.row.look_ahead:
            F_c = task.mean[c]
            expected = expected_labels(F_c[None], post.loss, post.residual_temperature)[0]
            residual = post.label_scale * (np.eye(len(F_c))[F_c.argmax()] - expected)
            task.mean = task.mean + scorer.step(c, noise, residual)
        scorer.pick(c, noise)
    return indices, values


def _group(post: Any) -> Alone:
    """Return the ranks that share the points of a posterior."""
    if not isinstance(post, Posterior):
        raise ArgumentTypeError("post", f"post must be a Posterior; got {type(post).__name__}")
    return post._group


def _as_batch_size(value: Any) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise ArgumentTypeError("batch_size", "batch_size must be an integer")
    try:
        b = operator.index(value)
    except TypeError:
        raise ArgumentTypeError(
            "batch_size", f"batch_size must be an integer; got {value!r}"
        ) from None
    if b < 1:
        raise ArgumentValueError("batch_size", f"batch_size must be >= 1; got {b}")
    return b


@exclusive
def utilities(
    post: Posterior,
    criterion: str,
    candidates: Any = None,
    evaluation: Any = None,
    label_probs: Any = None,
    weights: Any = None,
    noise: Any = None,
    temperature: float | None = None,
    log_loss_targets: Any = None,
    precision: Precision = "auto",
    similarity: Similarity | None = None,
    radius: float | Literal["auto"] = "auto",
) -> Any:
    r"""Score every candidate under every label it might get.

    For a candidate c with hypothetical label y (paper: eq. 12):

    .. math::

        f^+_{c,y}(x) = F(x) + a(x, c)\, r(c, y), \qquad
        a(x, c) = \frac{S(x, c)}{S(c, c) + \lambda_c}

    with r(c, y) = e_y - F(c) for squared loss, label_scale (e_y - softmax(F(c) / T_r)) with the
    posterior's residual_temperature T_r for cross-entropy: what `Posterior.condition` would do.

    Parameters
    ----------
    post : Posterior
        Not changed.
    criterion : str
        A name of the table `criteria`.
    candidates : array, optional
        Indices of the points to score, or a mask of all N; default: all that are not labelled.
    evaluation : array, optional
        Points x that the criterion sums over, likewise; default: all N.
    label_probs : array (N_c, k), optional
        P(y|c), rows in the order of `candidates`. Default: soft-max of F (cross-entropy), or F
        clipped to >= 1e-3 and normalised (squared loss).
    weights : array (N_x,), optional
        v(x) >= 0 in the order of `evaluation`; default 1. `fisher_variance_reduction`,
        `uncertainty_herding` and `fisher_herding` multiply them by their own.
    noise : array (N_c,), optional
        lam_c in (0, inf], noise of the candidates' hypothetical labels; default: ridge.
        `fisher_variance_reduction` and `fisher_herding` divide it by h(c).
    temperature : float, optional
        Divides outputs inside soft-maxes, those of f+ and of h and U, from 1e-30 to 1e30; default
        1 (cross-entropy) or 0.1 (squared loss). U and H of `fisher_herding` have none with squared
        loss.
    log_loss_targets : array (N_x, k), optional
        q of `expected_log_loss`, which needs it, in the order of `evaluation`.
    precision : {"auto", "float32", "float64", "tf32", "bf16"}
        Of what is computed for pairs; sums are float64 always. "auto": the type of the features or
        of S; float64 where the criterion's `float32_limit` is exceeded, or where variances, ridge
        or noises lie beyond 1e-30 to 1e30, which "float32" refuses; "tf32" for float32 features on
        a GPU and criteria without a `float32_limit`. "float32": as exact as float32 on any device.
        "tf32": features with the 11 significant bits of tf32. On its tensor cores a GPU multiplies
        copies of the features of candidates and points, float16 numbers with a power of two per
        row: one each for "tf32", two for "float32" (4 bytes a number, as the features). "tf32" and
        "bf16", which rounds a copy of the features (torch only), need features on a GPU. Coverage:
        "auto" is the type of the features, and float64 for radii below 0.05, for which distances
        computed in float32 are too coarse.
    similarity : {"rbf", "cosine"}, optional
        k of the criteria called herding, of features of length one. "rbf" (default):
        exp(-|x - c|^2 / radius^2). "cosine": the normalised kernel
        K(x, c) / sqrt(K(x, x) K(c, c)) itself, without any radius. `prob_cover` has balls.
    radius : float or "auto"
        In units of features of length one, whose distances are 2 at most. "auto": `max_herding`
        1; `uncertainty_herding` the root mean square of the distances of labelled points to the
        nearest different one, 1 while there are fewer than two; `fisher_herding` half of that;
        `prob_cover` the largest at which 95 % of the balls hold one cluster only, of k-means with
        as many clusters as classes.

    Returns
    -------
    array (N_c,), float64
        In the order of `candidates`; larger = query first. Labelled candidates are scored like any.
        In the library of the posterior's features or kernel, on its device.

    Raises
    ------
    ValueError, TypeError
        An argument that does not fit, by name. Arguments that the criterion does not read are
        checked all the same.
    RuntimeError
        An argument on another device than the posterior; those on the host are fine.

    Notes
    -----
    O(N_c N_x (d + k)) with features, O(N_c N_x k) with a kernel; all k labels of a pair come from
    one set of k exponentials. `variance_reduction` and `fisher_variance_reduction` take
    O((N_c + N_x) d^2) where that is less. With k x k blocks (`EmpiricalNTK` with
    ``outputs="full"``) O(N_c N_x k^2 (d + k)) with features, O(N_c N_x k^3) with a kernel, and
    O((N_c + N_x) k d^2) for those two; "auto" is float64 where variances exceed 1e4 times the
    smallest noise.

    The criteria of coverage (`max_herding`, Bae, Oh, Sutherland, ECCV 2024, arXiv 2407.12212;
    `uncertainty_herding`, Bae, Oliveira, Sutherland, ICLR 2025, arXiv 2412.20644; `prob_cover`,
    Yehuda, Dekel, Hacohen, Weinshall, NeurIPS 2022, arXiv 2205.11320) read the kernel K as it was
    before any label, and of labels only which points have one. For the features of a network, the
    last layer's included, that is its tangent kernel; build a posterior from embeddings to cover
    those. U(x) of `uncertainty_herding` is one while there are no labels; its authors divide
    logits by a `temperature` that calibrates them on labels held out of training:
    `ntkfast.calibration_temperature`. A scalar kernel is needed.

    `fisher_herding` multiplies two sums over the evaluation points, and an entropy:

    .. math::

        \left(\sum_x \frac{v(x)\, h(x)\, S(x, c)^2}
        {(S(x, x) + \lambda)(S(c, c) + \lambda_c / h(c))}\right)
        \left(\sum_x v(x)\, U(x) \max(0, k(x, c) - m(x))\right)^{1 - w} H(c)^{2 w}

    with h = 1 - sum_j p_j^2 of p = softmax(f / temperature), the trained network's, and S(x, x) as
    it was before the batch. The first is the share of the variance that a label of c takes away
    where classes are open, the second is `uncertainty_herding`; for squared loss U is that of F
    clipped to >= 1e-3 and normalised, without a soft-max. H is the entropy of the probabilities
    that U is of, at c.

    w is 2 kappa - 1/2 within [0, 1], but 0 while there are no labels or fewer than 100 evaluation
    points with v > 0. kappa is the mean squared distance, of features of length one, of these
    points (at most 512 of them) to the nearest other one, divided by that to all others. Where it
    is large, all are about as far from each other, and what is covered means little. Copies are
    near each other, and features of length zero are left out.
    """
    facts: dict[str, Any] = {}
    with _group(post).together("utilities", facts):
        task = _Task.read(
            post,
            criterion,
            candidates,
            evaluation,
            label_probs,
            weights,
            noise,
            temperature,
            log_loss_targets,
            precision,
            similarity,
            radius,
            facts,
        )
    return post._library.wrap(_utilities(task))


@exclusive
def select(
    post: Posterior,
    criterion: str,
    batch_size: int,
    mode: Literal["top", "sequential"] = "sequential",
    candidates: Any = None,
    evaluation: Any = None,
    label_probs: Any = None,
    weights: Any = None,
    noise: Any = None,
    temperature: float | None = None,
    log_loss_targets: Any = None,
    precision: Precision = "auto",
    similarity: Similarity | None = None,
    radius: float | Literal["auto"] = "auto",
    choose: Choose | None = None,
) -> Selection:
    """Choose a batch of candidates; never a labelled point, never one twice.

    Parameters
    ----------
    post : Posterior
        Not changed.
    criterion : str
        A name of the table `criteria`.
    batch_size : int
        Number of picks, at most the number of unlabelled candidates.
    mode : {"sequential", "top"}
        "top": the best by their utilities. "sequential": pick the best, condition on it with the
        noise of its hypothetical label and the pseudo-label argmax F (the variance criteria need
        none), score again, and so on: picks of a batch are not redundant. A given `label_probs`
        stays, the default follows F. For coverage a pick covers like a label, and only candidates
        that may still be best are scored again.
    candidates, evaluation, label_probs, weights, noise, temperature, log_loss_targets
        As in `utilities`; labelled candidates are left out.
    precision, similarity, radius
        As in `utilities`.
    choose : callable, optional
        How a pick is made: ``choose(points, utilities)`` gets the m candidates that are left and
        their utilities, numpy arrays (m,), and returns the position of its pick in [0, m). For
        random ties, batches drawn at random, or a look at all utilities of every round. Default:
        the largest utility, of equal ones that of the lowest point. With a group every rank must
        pick the same (a generator of random numbers needs one seed); features on disk are read for
        every pick.

    Returns
    -------
    Selection
        `indices` into the N points and `utilities` at the time of each pick.

    Raises
    ------
    ValueError, TypeError
        As `utilities`, and a batch larger than what is left.

    Notes
    -----
    Sequential costs `batch_size` times the scoring, plus a copy of the points concerned (features)
    or a row of N numbers per pick (kernel). A float32 S with max S / noise > 1e4 is copied in
    float64 under "auto", because picks subtract. Where `utilities` needs no pairs, a pick costs one
    pass over the features; a GPU makes all picks without the host (with `choose` it scores pairs).
    That subtracts as well, and is not done where max S / noise > 1e5.
    """
    facts: dict[str, Any] = {"mode": mode, "choose": choose is not None}
    with _group(post).together("select", facts):
        b = facts["batch_size"] = _as_batch_size(batch_size)
        as_choice("mode", mode, ("top", "sequential"))
        task = _Task.read(
            post,
            criterion,
            candidates,
            evaluation,
            label_probs,
            weights,
            noise,
            temperature,
            log_loss_targets,
            precision,
            similarity,
            radius,
            facts,
        )
        task.keep(~post._is_labeled[task.candidates])
        if b > len(task.candidates):
            raise ArgumentValueError(
                "batch_size",
                f"batch_size is {b}, but only {len(task.candidates)} unlabelled candidates are "
                "left",
            )
    indices: Any
    values: Any
    if mode == "top":
        values = _utilities(task)
        if choose is None:
            order = np.lexsort((task.candidates, -values))[:b]
        else:
            left = np.arange(len(values))
            order = np.empty(b, np.int64)
            for i in range(b):
                position = _chosen(choose, values[left], task.candidates[left], post._group)
                order[i], left = left[position], np.delete(left, position)
        indices, values = task.candidates[order], values[order]
    else:
        indices, values = _sequential(task, b, choose)
    wrap = post._library.wrap
    return Selection(wrap(np.asarray(indices, np.int64)), wrap(np.asarray(values, np.float64)))
