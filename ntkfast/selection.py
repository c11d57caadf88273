"""Utilities of the candidates, and batches of them."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from . import ops
from ._posterior.blocks import BlockScorer
from ._posterior.covariance import FeatureScorer, KernelScorer
from ._posterior.moments import Moments, moments
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
    as_weights,
)
from .criteria import Criterion, find
from .lock import exclusive
from .loss import expected_labels, probabilities
from .posterior import Posterior
from .progress import track

__all__ = ["Precision", "Selection", "select", "utilities"]


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
            raise ArgumentTypeError("post", f"post must be a Posterior; got {type(post).__name__}")
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
        row.check_outputs(k, "this posterior")
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
        if row.fisher:
            h = np.maximum(1 - (probabilities(post._outputs, post.loss) ** 2).sum(1), 0.0)
            v = v * h[points]
            with np.errstate(divide="ignore"):
                lam = lam / h[chosen]
        return cls(
            row=row,
            post=post,
            precision=resolve(
                precision,
                post._space,
                float32_limit=row.float32_limit,
                ridge=post.ridge,
                noise=lam,
                sequential=mode == "sequential",
            ),
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
            residual_temperature=self.post.residual_temperature,
        )
        return scorer.score(self.row.compiled, inputs)


def _checked(utility: Array, candidates: Array) -> Array:
    """Refuse utilities that are NaN or infinite: a ranking by them would mean nothing."""
    wrong = np.flatnonzero(~np.isfinite(utility))
    if len(wrong):
        raise ValueError(
            f"the utility of point {candidates[wrong[0]]} is {utility[wrong[0]]}: features, "
            "outputs or weights are too large for this precision; rescale them or use float64"
        )
    return utility


def _moments(task: _Task, rounds: int) -> Moments | None:
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
    )


def _utilities(task: _Task) -> Array:
    scorer = _moments(task, 1)
    if scorer is None:
        utility = task.score(task.post._space.scorer(task.precision))
    else:
        utility = scorer.utilities()
    return _checked(utility, task.candidates)


def _best(utility: Array, candidates: Array) -> int:
    """Position of the largest utility; of equal ones that of the lowest point."""
    ties = np.flatnonzero(utility == utility.max())
    return int(ties[candidates[ties].argmin()])


def _sequential_by_moments(task: _Task, of: Moments, b: int) -> tuple[list[int], list[float]]:
    first = _checked(of.utilities(), task.candidates)
    batch = of.batch(b)
    if batch is not None:
        picked, utility = batch
        chosen = task.candidates[picked]
        return chosen.tolist(), _checked(utility, chosen).tolist()
    free = np.ones(len(task.candidates), bool)
    indices, values = [], []
    for i in track(range(b), description=task.row.name):
        utility = first if i == 0 else _checked(of.utilities(), task.candidates)
        best = _best(np.where(free, utility, -np.inf), task.candidates)
        free[best] = False
        indices.append(int(task.candidates[best]))
        values.append(float(utility[best]))
        if i + 1 < b:
            of.pick(best)
    return indices, values


def _sequential(task: _Task, b: int) -> tuple[list[int], list[float]]:
    """Pick, condition on the pick with its pseudo-label argmax F, score again."""
    post, space = task.post, task.post._space
    without_pairs = _moments(task, b)
    if without_pairs is not None:
        return _sequential_by_moments(task, without_pairs, b)
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
            F_c = task.mean[c]
            expected = expected_labels(F_c[None], post.loss, post.residual_temperature)[0]
            residual = post.label_scale * (np.eye(len(F_c))[F_c.argmax()] - expected)
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
        Of what is computed for pairs; sums are float64 always. "auto": the type of the features or
        of S; float64 where the criterion's `float32_limit` is exceeded, or where variances, ridge
        or noises lie beyond 1e-30 to 1e30, which "float32" refuses; "tf32" for float32 features on
        a GPU and criteria without a `float32_limit`. "float32": as exact as float32 on any device
        (a GPU multiplies features on its tensor cores, three times in tf32). "tf32" and "bf16",
        which rounds a copy of the features (torch only), need features on a GPU.

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
    Sequential costs `batch_size` times the scoring, plus a copy of the points concerned (features)
    or a row of N numbers per pick (kernel). A float32 S with max S / noise > 1e4 is copied in
    float64 under "auto", because picks subtract. Where `utilities` needs no pairs, a pick costs one
    pass over the features; a GPU makes all picks without the host. That subtracts as well, and is
    not done where max S / noise > 1e5.
    """
    if isinstance(batch_size, (bool, np.bool_)):
        raise ArgumentTypeError("batch_size", "batch_size must be an integer")
    try:
        b = operator.index(batch_size)
    except TypeError:
        raise ArgumentTypeError(
            "batch_size", f"batch_size must be an integer; got {batch_size!r}"
        ) from None
    if b < 1:
        raise ArgumentValueError("batch_size", f"batch_size must be >= 1; got {b}")
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
        mode,
    )
    task.keep(~post._is_labeled[task.candidates])
    if b > len(task.candidates):
        raise ArgumentValueError(
            "batch_size",
            f"batch_size is {b}, but only {len(task.candidates)} unlabelled candidates are left",
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
