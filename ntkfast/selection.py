"""Utilities of the candidates, and batches of them."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from . import ops
from ._posterior.blocks import BlockMoments, BlockScorer, BlockSpace
from ._posterior.covariance import (
    FLOAT32_LIMIT,
    FeatureScorer,
    FunctionSpace,
    KernelScorer,
    WeightSpace,
)
from ._posterior.engines import GpuEngine, stored_type
from ._posterior.lock import exclusive
from .arrays import (
    Array,
    as_indices,
    as_noise,
    as_positive,
    as_probabilities,
    as_weights,
)
from .criteria import Criterion, find
from .posterior import Posterior, probabilities, softmax
from .progress import track

__all__ = ["Selection", "select", "utilities"]

Precision = Literal["auto", "float32", "float64", "tf32", "bf16"]

# max S / noise up to which a batch is built from moments. Where picks leave S of the size of their
# noise, C psi is smaller than psi by this ratio and q by its square, and both are differences: of q
# about 1e-5 is lost at 1e5, 1e-3 at 1e6 and everything at 1e8, whatever the type of psi.
_MOMENTS_LIMIT = 1e5


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


@dataclass
class _Task:
    """What is to be scored: validated arguments and the state that picks change."""

    row: Criterion
    post: Posterior
    precision: str
    candidates: Array  # (N_c,)
    evaluation: Array  # (N_x,)
    mean: Array  # (N, k), F; after each pick of a sequential batch: with its pseudo-label
    outputs: Array  # (N, k)
    label_probs: Array | None  # (N_c, k) as given, else P follows F
    noise: Array  # (N_c,)
    weights: Array  # (N_x,)
    temperature: float
    log_loss_targets: Array | None  # (N_x, k)

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
        mode: str = "top",
    ) -> _Task:
        if not isinstance(post, Posterior):
            raise TypeError(f"post must be a Posterior; got {type(post).__name__}")
        row = find(criterion)
        N, k = post._mean.shape
        candidates, evaluation, label_probs, weights, noise, log_loss_targets = post._library.fetch(
            candidates=candidates,
            evaluation=evaluation,
            label_probs=label_probs,
            weights=weights,
            noise=noise,
            log_loss_targets=log_loss_targets,
        )
        if k == 1 and (row.look_ahead or row.fisher):
            raise ValueError(
                f"{criterion} compares classes, and this posterior has one output: use "
                "variance_reduction or epig, or give a one-logit classifier two columns, [0, logit]"
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
            raise ValueError(
                f"{criterion} needs log_loss_targets of shape ({N_x}, {k}): the distributions that "
                "the evaluation points should have (with the model's own, the best candidate would "
                "be the one that changes nothing)"
            )
        if row.fisher:
            h = np.maximum(1 - (probabilities(post._outputs, post.loss) ** 2).sum(1), 0.0)
            v = v * h[points]
            with np.errstate(divide="ignore"):
                lam = lam / h[chosen]
        return cls(
            row=row,
            post=post,
            precision=_precision(post, row, precision, lam, mode),
            candidates=chosen,
            evaluation=points,
            mean=post._mean,
            outputs=post._outputs,
            label_probs=label_probs,
            noise=lam,
            weights=v,
            temperature=as_positive("temperature", temperature),
            log_loss_targets=log_loss_targets,
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

    def score(self, scorer: FeatureScorer | KernelScorer | BlockScorer) -> Array:
        """Utilities (N_c,) from pairs of candidates and evaluation points."""
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
        )
        return scorer.score(self.row.compiled, inputs)


def _precision(post: Posterior, row: Criterion, precision: str, noise: Array, mode: str) -> str:
    """How pairs are computed, never "auto"; `noise` (N_c,) is that of the candidates."""
    space = post._space
    in_blocks = isinstance(space, BlockSpace)
    dense = isinstance(space.inner if isinstance(space, BlockSpace) else space, FunctionSpace)
    if precision not in ("auto", "float32", "float64", "tf32", "bf16"):
        raise ValueError(
            f'precision must be "auto", "float32", "float64", "tf32" or "bf16"; got {precision!r}'
        )
    if precision in ("tf32", "bf16"):
        if not space.engine.on_gpu:
            raise ValueError(
                f'precision="{precision}" needs tensor cores; on a CPU it would be slower and less '
                'exact than "float32"'
            )
        if dense:
            raise ValueError(
                f'precision="{precision}" would lose the ranking: a covariance that came from a '
                'kernel matrix needs "float32" at least'
            )
        if precision == "bf16" and post._library.module != "torch":
            raise ValueError('precision="bf16" needs torch tensors; cupy has no bfloat16')
    if precision == "float64":
        return precision
    variance, ridge = float(np.max(space.variance)), post.ridge
    fits = _fits_float32(variance, ridge, float(noise.min()))
    if precision != "auto":
        if not fits:
            raise ValueError(
                f'precision="{precision}" cannot hold the products of variances up to '
                f"{variance:g} and noises from {min(ridge, noise.min()):g} (ridge: {ridge:g}) on: "
                "rescale the features or the kernel, and the ridge with it, or leave precision out"
            )
        return precision
    limit, smallest = row.float32_limit, ridge
    if in_blocks or (mode == "sequential" and dense):
        # The picks' noises are subtracted down to, whatever the ridge; blocks are multiplied by the
        # inverse of S(c, c) + lam_c I, where as much cancels.
        limit, smallest = min(limit, FLOAT32_LIMIT), min(ridge, float(noise.min()))
    if not fits or variance > limit * smallest or space.dtype == np.float64:
        return "float64"
    # What cannot take float32 everywhere takes no tf32: its products are rounded 2^13 times more.
    return "tf32" if space.engine.on_gpu and not dense and np.isinf(limit) else "float32"


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


def _checked(utility: Array, candidates: Array) -> Array:
    """Refuse utilities that are NaN or infinite: a ranking by them would mean nothing."""
    wrong = np.flatnonzero(~np.isfinite(utility))
    if len(wrong):
        raise ValueError(
            f"the utility of point {candidates[wrong[0]]} is {utility[wrong[0]]}: features, "
            "outputs or weights are too large for this precision; rescale them or use float64"
        )
    return utility


class _Moments:
    """Criteria of the form q_c / (s_c + lam_c) in weight space, without pairs.

    With frozen psi, G = sum_x v psi_x psi_x^T and C = I - sum_picks g g^T / D:
    q_x = psi_x^T C G C psi_x, s_x = psi_x^T C psi_x. All of it float64 (the downdates subtract),
    only psi may be float32. O((N_x + N_c) d^2) once, O(N_c d) per pick.
    """

    def __init__(self, task: _Task, space: WeightSpace, picks: int) -> None:
        engine, N = space.engine, space.size
        psi = space.psi  # in float64 all sums are, whatever its type
        if task.precision != "float64":
            psi = engine.cast(psi, stored_type(task.precision))
        # Gather rows only where that is a minority: a pool is not copied to leave out a few points.
        if 2 * len(task.evaluation) >= N:
            weights = np.zeros(N)
            weights[task.evaluation] = task.weights
            self._G = engine.weighted_gram(psi, weights)
        else:
            self._G = engine.weighted_gram(engine.rows(psi, task.evaluation), task.weights)
        self._rows = task.candidates
        self._psi, self._s = psi, space.variance.copy()
        if 2 * len(task.candidates) < N:
            self._rows = np.arange(len(task.candidates))
            self._psi = engine.rows(psi, task.candidates)
            self._s = space.variance[task.candidates]
        self._q = engine.host(engine.quadratic_form(self._psi, self._G))
        self._noise = task.noise
        self._picks = np.empty((picks, psi.shape[1]))  # g / sqrt(D)
        self._count = 0

    @staticmethod
    def pay_off(task: _Task, space: WeightSpace, rounds: int) -> bool:
        """Whether moments cost less than `rounds` times all pairs, and G is no larger than psi."""
        N_c, N_x, d = len(task.candidates), len(task.evaluation), space.psi.shape[1]
        cost = (N_c + N_x) * d * (1 if task.precision == "float64" else space.engine.float64_cost)
        return bool(d <= space.size and cost < rounds * N_c * N_x)

    def utilities(self) -> Array:
        """Utilities (N_c,)."""
        q, s = self._q[self._rows], self._s[self._rows]
        utility: Array = np.maximum(q, 0.0) / (np.maximum(s, 0.0) + self._noise)
        return utility

    def pick(self, candidate: int) -> None:
        """Condition on a candidate (its position among the candidates)."""
        noise = self._noise[candidate]
        if np.isinf(noise):
            return
        picks = self._picks[: self._count]
        psi_c = self._psi[self._rows[candidate]].astype(np.float64)
        g = psi_c - (picks @ psi_c) @ picks
        D = max(float(psi_c @ g), 0.0) + noise
        G_g = self._G @ g
        h = G_g - (picks @ G_g) @ picks
        ops.downdate_moments(self._psi, g, h, float(g @ G_g), D, self._q, self._s)
        self._picks[self._count] = g / np.sqrt(D)
        self._count += 1

    def select_on_gpu(self, engine: GpuEngine, count: int) -> tuple[Array, Array]:
        """Return positions among the candidates, and utilities, of a whole batch."""
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
        # -1: all that was left had become NaN.
        return order[picked], np.where(picked < 0, np.nan, utility)


def _moments(task: _Task, rounds: int) -> _Moments | BlockMoments | None:
    """Return what scores so many rounds of picks without pairs; None: no gain, or not exact."""
    space = task.post._space
    if not task.row.moments:
        return None
    if rounds > 1 and space.variance.max() > _MOMENTS_LIMIT * task.noise.min():
        return None
    if isinstance(space, WeightSpace) and _Moments.pay_off(task, space, rounds):
        return _Moments(task, space, rounds - 1)
    sizes = len(task.candidates), len(task.evaluation)
    if isinstance(space, BlockSpace) and BlockMoments.pay_off(space, *sizes, rounds):
        return BlockMoments(
            space,
            task.candidates,
            task.evaluation,
            weights=task.weights,
            noise=task.noise,
            picks=rounds - 1,
            precision=task.precision,
        )
    return None


def _utilities(task: _Task) -> Array:
    moments = _moments(task, 1)
    utility = (
        task.score(task.post._space.scorer(task.precision))
        if moments is None
        else moments.utilities()
    )
    return _checked(utility, task.candidates)


def _best(utility: Array, candidates: Array) -> int:
    """Position of the largest utility; of equal ones that of the lowest point."""
    ties = np.flatnonzero(utility == utility.max())
    return int(ties[candidates[ties].argmin()])


def _sequential_by_moments(
    task: _Task, moments: _Moments | BlockMoments, b: int
) -> tuple[list[int], list[float]]:
    engine = task.post._space.engine
    if isinstance(engine, GpuEngine) and isinstance(moments, _Moments):
        _checked(moments.utilities(), task.candidates)
        picked, utility = moments.select_on_gpu(engine, b)
        chosen = task.candidates[picked]
        return chosen.tolist(), _checked(utility, chosen).tolist()
    free = np.ones(len(task.candidates), bool)
    indices, values = [], []
    for i in track(range(b), description=task.row.name):
        utility = _checked(moments.utilities(), task.candidates)
        best = _best(np.where(free, utility, -np.inf), task.candidates)
        free[best] = False
        indices.append(int(task.candidates[best]))
        values.append(float(utility[best]))
        if i + 1 < b:
            moments.pick(best)
    return indices, values


def _sequential(task: _Task, b: int) -> tuple[list[int], list[float]]:
    """Pick, condition on the pick with its pseudo-label argmax F, score again."""
    post, space = task.post, task.post._space
    moments = _moments(task, b)
    if moments is not None:
        return _sequential_by_moments(task, moments, b)
    points = np.union1d(task.candidates, task.evaluation)
    scorer, rows = space.scratch(points, b - 1, task.precision)
    task.move(rows)
    indices, values = [], []
    for i in track(range(b), description=task.row.name):
        utility = _checked(task.score(scorer), rows[task.candidates])
        best = _best(utility, task.candidates)
        c, noise = int(task.candidates[best]), float(task.noise[best])
        indices.append(int(rows[c]))
        values.append(float(utility[best]))
        if i + 1 == b:
            break
        task.keep(np.arange(len(utility)) != best)
        if np.isinf(noise):
            continue
        if task.row.look_ahead:
            expected = task.mean[c]
            pseudo_label = np.eye(len(expected))[expected.argmax()]
            if post.loss == "cross_entropy":
                expected = softmax(expected[None])[0]
            residual = post.label_scale * (pseudo_label - expected)
            task.mean = task.mean + scorer.step(c, noise, residual)
        scorer.pick(c, noise)
    return indices, values


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
) -> Any:
    r"""Score every candidate under every label it might get.

    For a candidate c with hypothetical label y (paper: eq. 12):

    .. math::

        f^+_{c,y}(x) = F(x) + a(x, c)\, r(c, y), \qquad
        a(x, c) = \frac{S(x, c)}{S(c, c) + \lambda_c}

    with r(c, y) = e_y - F(c) for squared loss, label_scale (e_y - softmax F(c)) for cross-entropy.

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
        v(x) >= 0 in the order of `evaluation`; default 1. `fisher_variance_reduction` multiplies
        them by its own.
    noise : array (N_c,), optional
        lam_c in (0, inf], noise of the candidates' hypothetical labels; default: ridge.
        `fisher_variance_reduction` divides it by h(c).
    temperature : float, optional
        Divides outputs inside soft-maxes of f+; default 1 (cross-entropy) or 0.1 (squared loss).
    log_loss_targets : array (N_x, k), optional
        q of `expected_log_loss`, which needs it, in the order of `evaluation`.
    precision : {"auto", "float32", "float64", "tf32", "bf16"}
        Type of the pairwise computations; "auto": that of the features or of S (float64 where the
        criterion's `float32_limit` is exceeded, and where variances, ridge or noises lie beyond
        1e-30 to 1e30, which "float32" refuses). Sums are float64. On a GPU with float32 features
        "auto" is "tf32" for criteria without a `float32_limit`, and "float32" is three products in
        tf32; "tf32" and "bf16", which rounds a copy of the features (torch only), need features on
        a GPU.

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
    """
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
        stays, the default follows F.
    candidates, evaluation, label_probs, weights, noise, temperature, log_loss_targets, precision
        As in `utilities`; labelled candidates are left out.

    Returns
    -------
    Selection
        `indices` into the N points and `utilities` at the time of each pick. Of equal utilities the
        lowest point wins.

    Raises
    ------
    ValueError, TypeError
        As `utilities`, and a batch larger than what is left.

    Notes
    -----
    Sequential costs `batch_size` times the scoring plus a copy of the points concerned (features),
    or a row of N numbers per pick (kernel; a float32 S with max S / noise > 1e4 is copied in
    float64 under "auto": picks subtract). Where moments pay off, see `utilities`, a pick costs
    one pass over psi; on a GPU without a word to the host between picks. They subtract as well, and
    are left alone where max S / noise > 1e5.
    """
    if isinstance(batch_size, (bool, np.bool_)):
        raise TypeError("batch_size must be an integer")
    try:
        b = operator.index(batch_size)
    except TypeError:
        raise TypeError(f"batch_size must be an integer; got {batch_size!r}") from None
    if b < 1:
        raise ValueError(f"batch_size must be >= 1; got {b}")
    if mode not in ("top", "sequential"):
        raise ValueError(f'mode must be "top" or "sequential"; got {mode!r}')
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
        mode,
    )
    task.keep(~post._is_labeled[task.candidates])
    if b > len(task.candidates):
        raise ValueError(
            f"batch_size is {b}, but only {len(task.candidates)} unlabelled candidates are left"
        )
    indices: Any
    values: Any
    if mode == "top":
        values = _utilities(task)
        order = np.lexsort((task.candidates, -values))[:b]
        indices, values = task.candidates[order], values[order]
    else:
        indices, values = _sequential(task, b)
    wrap = post._library.wrap
    return Selection(wrap(np.asarray(indices, np.int64)), wrap(np.asarray(values, np.float64)))
