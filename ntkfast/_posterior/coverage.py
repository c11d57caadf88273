"""Coverage: how well labelled points cover the others, in the kernel K as it was before any label.

A covariance forgets K: labels take out of it what they explain. `KernelBefore` is K again, of the
points concerned and of the labelled ones. All similarities are functions of

    rho(x, x') = K(x, x') / sqrt(K(x, x) K(x', x')),    |x - x'|^2 = 2 - 2 rho,

the kernel and the distance of features of length one. `Cover` is the state of a batch, m(x).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ..arrays import ArgumentValueError, Array, as_choice
from ..ops import ScoreInputs
from .covariance import FeatureScorer, FunctionSpace, KernelScorer, WeightSpace
from .engines import Engine
from .precision import Precision, check_tensor_cores, stored_type

__all__ = ["Cover", "Given", "KernelBefore", "Similarity", "largest_pure_radius", "nearest_radius"]

Similarity = Literal["rbf", "cosine"]

# Bytes of the float64 columns of K that are formed at once.
_COLUMN_BYTES = 1 << 27
# Radius below which distances of float32 features are too coarse: rounding is 1e-4 of its square.
_FLOAT32_RADIUS = 0.05
# What rounding may have done to K, in units of the radius.
_ACCURACY = 1e-2
# Points whose nearest neighbour of another cluster is looked for, and the share that must be pure.
_ANCHORS = 2048
_PURITY = 0.95


@dataclass(frozen=True)
class Given:
    """Labelled points that a posterior was built from: what the covariance does not keep of them.

    Attributes
    ----------
    features : array (g, d) or None
        Their features, of the engine, for a posterior from features.
    diagonal : ndarray (n,) or None
        K(l, l) of all labelled points, for a posterior from a kernel (`Factor.given` says which of
        them the factor holds).
    """

    features: Any = None
    diagonal: Array | None = None

    def to(self, before: Engine, engine: Engine) -> Given:
        """Return it for another engine."""
        if self.features is None or before is engine:
            return self
        return Given(features=engine.put(before.host(self.features)))

    def arrays(self, engine: Engine) -> dict[str, Array]:
        """Return what a file keeps."""
        if self.features is not None:
            return {"labeled_features": engine.host(self.features)}
        return {} if self.diagonal is None else {"labeled_diagonal": self.diagonal}


def _inverse_lengths(diagonal: Array) -> Array:
    """1 / |x| of every point; 0 for one without features, which covers nothing."""
    result = np.zeros(len(diagonal))
    np.divide(1.0, np.sqrt(np.maximum(diagonal, 0.0)), out=result, where=diagonal > 0)
    return result


class KernelBefore:
    """K of the points `rows`, and of the labelled ones, before any label.

    Parameters
    ----------
    space : WeightSpace or FunctionSpace
        The covariance after the labels.
    given : Given or None
        None: read from a file without it.
    labeled : array
        Which of the N points are labelled.
    points : array
        Points that are asked for.
    has_labels : bool
        Whether there have been any.

    Raises
    ------
    ValueError
        A file of an earlier version; labels that have left too little of K in float32.
    """

    def __init__(
        self,
        space: WeightSpace | FunctionSpace,
        given: Given | None,
        labeled: Array,
        points: Array,
        *,
        has_labels: bool,
    ) -> None:
        factor = space.factor if isinstance(space, FunctionSpace) else None
        if has_labels and (given is None or (space.dense and factor is None)):
            raise ValueError(
                "this posterior comes from a file of an earlier version, which does not hold the "
                "labelled points that coverage is of: build it again"
            )
        self.rows = np.union1d(points, labeled)
        self.engine = space.engine
        self.amplified = 1.0
        own = np.searchsorted(self.rows, labeled)
        if isinstance(space, WeightSpace):
            self._of_features(space, given, own)
        else:
            self._of_kernel(space, given, own)
        self.inverse = _inverse_lengths(self.diagonal)
        self._space = space

    def _of_features(self, space: WeightSpace, given: Given | None, own: Array) -> None:
        engine, every = self.engine, len(self.rows) == space.size
        psi = space.psi if every else engine.rows(space.psi, self.rows)
        self._K, self.amplified = space.whitening.undone(psi)
        self.diagonal = engine.host(engine.squared_norms(self._K))
        self._labeled = engine.rows(self._K, own)
        if given is not None and given.features is not None and len(given.features):
            features = engine.cast(given.features, space.dtype)
            self._labeled = engine.stack(features, self._labeled)
        squares = engine.host(engine.squared_norms(self._labeled))
        self._labeled_inverse = _inverse_lengths(squares)
        self._is_features = True

    def _of_kernel(self, space: FunctionSpace, given: Given | None, own: Array) -> None:
        engine = self.engine
        before = None if space.factor is None else space.factor.whole(engine)
        every = len(self.rows) == space.size
        K = space.S if every else engine.part(space.S, self.rows, self.rows)
        g = 0 if before is None else len(before.given)
        cross = np.empty((0, len(self.rows)))
        if before is not None and len(before.L):
            V = before.V if every else engine.copy(engine.rows(before.V.T, self.rows).T)
            K = engine.cast(K, np.float64) + engine.product(engine.copy(V.T), V)
            cross = engine.host(before.L[:g, :g] @ V[:g])
        self._K = K
        self.diagonal = engine.host(engine.cast(K.diagonal(), np.float64)).copy()
        own_rows = engine.host(engine.cast(engine.rows(K, own), np.float64))
        self._labeled = np.vstack([cross, own_rows])
        diagonal, among = self.diagonal[own], np.empty((g, g))
        if g:
            assert given is not None and given.diagonal is not None and before is not None
            L = engine.host(before.L[:g, :g])
            diagonal = np.concatenate([given.diagonal[before.given], diagonal])
            among = L @ L.T
        self._labeled_inverse = _inverse_lengths(diagonal)
        gram = np.hstack([np.vstack([among, cross[:, own].T]), self._labeled[:, own]])
        np.fill_diagonal(gram, diagonal)
        self._gram = gram
        self._is_features = False

    def precision(self, precision: str, radius: float) -> str:
        """Return the precision to score in, which is never "auto".

        Raises
        ------
        ValueError
            One that does not fit K or its device, or what labels have left of it.
        """
        if self._distance_held > radius:
            cause = (
                f"labels have shrunk features by up to a factor {self.amplified:.2g}, and "
                if self.amplified > 1
                else ""
            )
            raise ValueError(
                f"{cause}{self._space.dtype} does not hold the kernel before any label to a radius "
                f"of {radius:.3g}: build the posterior from float64, or give a larger radius or "
                "ridge"
            )
        as_choice("precision", precision, get_args(Precision))
        if precision in ("tf32", "bf16"):
            check_tensor_cores(precision, self._space)
        largest = float(self.diagonal.max(initial=0.0))
        smallest = float(np.min(self.diagonal, initial=np.inf, where=self.diagonal > 0))
        fits = largest == 0 or (largest <= 1e30 and smallest >= 1e-30)
        if precision != "auto":
            if not fits and precision != "float64":
                raise ArgumentValueError(
                    "precision",
                    f'precision="{precision}" cannot hold kernels from {smallest:g} to '
                    f"{largest:g}: rescale the features, or leave precision out",
                )
            return precision
        exact = self._space.dtype == np.float64 or radius < _FLOAT32_RADIUS or not fits
        return "float64" if exact else "float32"

    def scorer(self, precision: str) -> FeatureScorer | KernelScorer:
        """Scores the criteria of K among `rows`."""
        K = self.engine.cast(self._K, stored_type(precision))
        if self._is_features:
            return FeatureScorer(K, self.diagonal, precision, self.engine)
        return KernelScorer(K, self.diagonal, 0, self.engine, shared=True)

    def rho(self, points: Array) -> Array:
        """rho(rows, points) (R, m) for positions among `rows`."""
        engine = self.engine
        columns = engine.cast(engine.rows(self._K, points), np.float64).T
        K = engine.host(engine.product(self._K, columns) if self._is_features else columns)
        result: Array = K * self.inverse[:, None] * self.inverse[points]
        return result

    def sums(self, M: Array) -> Array:
        """rho(rows, rows) M (R, k) for M (R, k), without forming rho."""
        engine, weighted = self.engine, self.inverse[:, None] * M
        if not self._is_features:
            total = engine.product(self._K, engine.put(weighted))
        else:
            centres = engine.put(np.zeros((self._K.shape[1], M.shape[1])))
            step = max(1, _COLUMN_BYTES // (8 * max(1, self._K.shape[1])))
            for start in range(0, len(M), step):
                part = slice(start, start + step)
                rows = engine.cast(self._K[part], np.float64)
                centres = centres + rows.T @ engine.put(weighted[part])
            total = engine.product(self._K, centres)
        result: Array = engine.host(total) * self.inverse[:, None]
        return result

    def parts(self, count: int, size: int) -> Iterator[slice]:
        """Parts of `count` columns of `size` float64 each that fit the memory."""
        step = max(1, _COLUMN_BYTES // (8 * max(1, size)))
        return (slice(start, min(start + step, count)) for start in range(0, count, step))

    def labeled_rho(self) -> Iterator[Array]:
        """rho(rows, labelled points), some columns at a time."""
        engine = self.engine
        for part in self.parts(len(self._labeled), len(self.rows)):
            if self._is_features:
                columns = engine.cast(self._labeled[part], np.float64).T
                K = engine.host(engine.product(self._K, columns))
            else:
                K = self._labeled[part].T
            yield K * self.inverse[:, None] * self._labeled_inverse[part]

    def labeled_distances(self) -> Iterator[Array]:
        """Squared distances (n, m) of labelled points to each other, some columns at a time."""
        engine, inverse = self.engine, self._labeled_inverse
        for part in self.parts(len(self._labeled), len(self._labeled)):
            if self._is_features:
                columns = engine.cast(self._labeled[part], np.float64).T
                K = engine.host(engine.product(self._labeled, columns))
            else:
                K = self._gram[:, part]
            yield 2 - 2 * K * inverse[:, None] * inverse[part]

    @property
    def _distance_held(self) -> float:
        """Smallest distance that is told from none: a rounded K holds the squares of distances."""
        unit = 2.0 * float(np.finfo(self._space.dtype).eps) / _ACCURACY
        return unit * self.amplified if self._is_features else float(np.sqrt(unit))

    @property
    def same(self) -> float:
        """Squared distance up to which rounding may have moved one point away from itself."""
        return max(64 * float(np.finfo(self._space.dtype).eps), self._distance_held**2)


def nearest_radius(kernel: KernelBefore) -> float:
    """Return the smallest distance of two different labelled points; 1 where there are none.

    The rule of Bae, Oliveira, Sutherland (arXiv 2412.20644): the more labels, the finer the cover.
    """
    smallest = np.inf
    for square in kernel.labeled_distances():
        smallest = min(smallest, np.min(square, initial=np.inf, where=square > kernel.same))
    return 1.0 if np.isinf(smallest) else float(np.sqrt(smallest))


def _clusters(kernel: KernelBefore, k: int, rng: np.random.Generator) -> Array:
    """Cluster of each point by k-means of the features of length one (Lloyd, k-means++ seeds)."""
    R = len(kernel.rows)
    seeds = [int(rng.integers(R))]
    square = np.maximum(2 - 2 * kernel.rho(np.array(seeds))[:, 0], 0.0)
    while len(seeds) < k and square.max() > kernel.same:
        seeds.append(int(rng.choice(R, p=square / square.sum())))
        square = np.minimum(square, np.maximum(2 - 2 * kernel.rho(np.array(seeds[-1:]))[:, 0], 0.0))
    label: Array = kernel.rho(np.array(seeds)).argmax(1)
    for _ in range(20):
        size = np.bincount(label, minlength=len(seeds))
        M = np.zeros((R, len(seeds)))
        M[np.arange(R), label] = 1 / size[label]
        towards = kernel.sums(M)
        centre = (M * towards).sum(0)  # squared length of each centre
        square = np.where(size > 0, centre - 2 * towards, np.inf)
        before, label = label, square.argmin(1)
        if np.array_equal(before, label):
            break
    return label


def largest_pure_radius(kernel: KernelBefore, k: int, seed: int = 0) -> float:
    """Return the largest radius at which 95 % of the balls around points hold one cluster only.

    The rule of Yehuda, Dekel, Hacohen, Weinshall (NeurIPS 2022, arXiv 2205.11320): k-means with as
    many clusters as classes stands for the labels. A ball of radius r is pure as long as r is at
    most the distance to the nearest point of another cluster, which is looked for among all points,
    around at most 2048 of them.
    """
    rng = np.random.default_rng(seed)
    label = _clusters(kernel, k, rng)
    R = len(label)
    anchors = np.sort(rng.choice(R, min(R, _ANCHORS), replace=False))
    nearest = np.empty(len(anchors))
    for part in kernel.parts(len(anchors), R):
        own = anchors[part]
        rho = np.where(label[:, None] == label[own], -np.inf, kernel.rho(own))
        nearest[part] = rho.max(0)
    distance = np.sqrt(np.maximum(2 - 2 * nearest, 0.0))
    radius = float(np.sort(distance)[int(np.floor((1 - _PURITY) * len(distance) + 1e-9))])
    if radius == 0:
        raise ArgumentValueError(
            "radius",
            'radius="auto" looks for balls of one cluster only, and points of several clusters '
            "lie on each other: give radius > 0",
        )
    # A little less than a distance that occurs, so that rounding does not decide on that pair; two
    # points of length one are not further than 2 apart.
    return min((1 - 1e-5) * radius, 2.0)


_FORMS: dict[str, Callable[[Array, float], Array]] = {
    "cosine_coverage": lambda rho, radius: np.minimum(rho, 1.0),
    "gaussian_coverage": lambda rho, radius: np.exp(np.minimum(2 * rho - 2, 0.0) / radius**2),
    "ball_coverage": lambda rho, radius: (2 - 2 * rho < radius**2).astype(np.float64),
}


class Cover:
    """What candidates cover anew: sum_x v max(0, k(x, c) - m(x)), for one pick after another.

    Parameters
    ----------
    kernel : KernelBefore
    criterion : str
        The compiled one: "cosine_coverage", "gaussian_coverage" or "ball_coverage".
    candidates, evaluation, weights : array
        As in `ops.ScoreInputs`, of the N points.
    radius : float
    precision : str
        As users give it.
    """

    def __init__(
        self,
        kernel: KernelBefore,
        criterion: str,
        candidates: Array,
        evaluation: Array,
        weights: Array,
        radius: float,
        precision: str,
    ) -> None:
        self._kernel, self._criterion = kernel, criterion
        self._radius = radius
        reach = 1.0 if criterion == "cosine_coverage" else radius
        self._scorer = kernel.scorer(kernel.precision(precision, reach))
        self._candidates = np.searchsorted(kernel.rows, candidates)
        self._evaluation = np.searchsorted(kernel.rows, evaluation)
        self._weights = weights
        self._covered = np.zeros(len(evaluation))
        self._nothing = np.zeros((len(kernel.rows), 1))  # outputs, which play no part
        for rho in kernel.labeled_rho():
            self._add(rho)

    def _add(self, rho: Array) -> None:
        """Count points in, by rho(rows, points)."""
        if rho.shape[1]:
            largest = rho.max(1)[self._evaluation]
            # Of one place: then exactly covered, so that nothing is gained there by rounding.
            largest = np.where(2 - 2 * largest <= self._kernel.same, 1.0, largest)
            of = _FORMS[self._criterion](largest, self._radius)
            self._covered = np.maximum(self._covered, of)

    def score(self, which: Array) -> Array:
        """Utilities of some candidates, by their position."""
        candidates = self._candidates[which]
        none = np.zeros((len(which), 1))
        inputs = ScoreInputs(
            candidates=candidates,
            evaluation=self._evaluation,
            mean=self._nothing,
            outputs=self._nothing,
            noise=none[:, 0],
            ridge=1.0,
            label_probs=none,
            weights=self._weights,
            label_scale=1.0,
            loss="squared",
            temperature=1.0,
            covered=self._covered,
            radius=self._radius,
        )
        return self._scorer.score(self._criterion, inputs)

    def pick(self, candidate: int) -> None:
        """Count a candidate in, by its position."""
        self._add(self._kernel.rho(self._candidates[candidate : candidate + 1]))
