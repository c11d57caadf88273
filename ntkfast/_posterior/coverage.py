"""Coverage: how well labelled points cover the others, in the kernel K as it was before any label.

A covariance forgets K: labels take out of it what they explain. `KernelBefore` is K again, of the
points concerned and of the labelled ones. All similarities are functions of

    rho(x, x') = K(x, x') / sqrt(K(x, x) K(x', x')),    |x - x'|^2 = 2 - 2 rho,

the kernel and the distance of features of length one. `Cover` is the state of a batch, m(x).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from ..arrays import ArgumentValueError, Array, as_choice
from ..ops import ScoreInputs
from .covariance import FeatureScorer, FunctionSpace, KernelScorer, WeightSpace
from .disk import BLOCK_BYTES, HeldRows, Rows, reader
from .engines import CPU, Engine
from .group import total
from .precision import Precision, check_tensor_cores, stored_type

__all__ = [
    "Cover",
    "FeaturesBefore",
    "Given",
    "KernelBefore",
    "MatrixBefore",
    "Product",
    "Similarity",
    "concentration",
    "covered",
    "kernel_before",
    "largest_pure_radius",
    "nearest_radius",
    "reach",
    "rho",
]

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
# Points whose nearest neighbour is looked for.
_SAMPLE = 512


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
    untold : ndarray (u,), int64
        Which of these labels have an infinite noise: they teach nothing, so that no factor holds
        them, and cover all the same.
    rows, among : ndarray (u, N), (u, n), float64
        The kernel of those with the N points, and with all labelled ones.
    """

    features: Any = None
    diagonal: Array | None = None
    untold: Array = field(default_factory=lambda: np.empty(0, np.int64))
    rows: Array = field(default_factory=lambda: np.empty((0, 0)))
    among: Array = field(default_factory=lambda: np.empty((0, 0)))

    def to(self, before: Engine, engine: Engine) -> Given:
        """Return it for another engine."""
        if self.features is None or before is engine:
            return self
        return Given(features=engine.put(before.host(self.features)))

    def extended(self, K_lv: Array | None) -> Given:
        """Return it with new points, of their kernel (n, m) with labelled ones, on the host."""
        if len(self.untold) == 0 or K_lv is None:
            return self
        return replace(self, rows=np.hstack([self.rows, K_lv[self.untold].astype(np.float64)]))

    def arrays(self, engine: Engine) -> dict[str, Array]:
        """Return what a file keeps."""
        if self.features is not None:
            return {"labeled_features": engine.host(self.features)}
        if self.diagonal is None:
            return {}
        kept = {"labeled_diagonal": self.diagonal}
        if len(self.untold):
            kept |= {"untold": self.untold, "untold_rows": self.rows, "untold_among": self.among}
        return kept


def _inverse_lengths(diagonal: Array) -> Array:
    """1 / |x| of every point; 0 for one without features, which covers nothing."""
    result = np.zeros(len(diagonal))
    np.divide(1.0, np.sqrt(np.maximum(diagonal, 0.0)), out=result, where=diagonal > 0)
    return result


class KernelBefore:
    """K of the points `rows`, and of the labelled ones, before any label.

    Attributes
    ----------
    rows : array (R,), int64
        The points, by their global number, increasing. The same on every rank.
    own : slice
        Those of this rank.
    diagonal, inverse : array (R,)
        K(x, x) and its root's inverse, on every rank.
    amplified : float
        By how much what rounding did to psi has grown.
    """

    diagonal: Array
    inverse: Array
    _labeled: Any
    _labeled_inverse: Array

    def __init__(self, space: WeightSpace | FunctionSpace, rows: Array) -> None:
        self.rows, self.engine, self._space = rows, space.engine, space
        self._group = space.group
        bounds = self._group.bounds(rows)
        self._counts = np.diff(bounds)
        self.own = slice(int(bounds[self._group.rank]), int(bounds[self._group.rank + 1]))
        self.amplified = 1.0

    def of_all(self, own: Array) -> Array:
        """Numbers of the points of every rank (R,), of those of this rank."""
        result: Array = self._group.concatenated(CPU, own, self._counts)
        return result

    def precision(self, precision: str, radius: float) -> str:
        """Return the precision to score in, which is never "auto".

        Raises
        ------
        ValueError
            One that does not fit K or its device, or what labels have left of it.
        """
        if self.finest > radius:
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
        """Scores the criteria of K among `rows`, where one process holds all of it."""
        raise NotImplementedError

    def rho(self, points: Array, of: Array | None = None) -> Iterator[tuple[slice, Array]]:
        """rho(own rows, points) (b, m) for positions (m,) among `rows`, some own rows at a time.

        `of`: of these own rows alone, by their position among them, increasing; so the slices are
        of `of`. Arrays are the caller's own.
        """
        raise NotImplementedError

    def labeled_rho(self) -> Iterator[tuple[slice, Array]]:
        """rho(own rows, labelled points), likewise."""
        raise NotImplementedError

    def _labeled_gram(self, part: slice) -> Array:
        """K (n, m) of labelled points and some of them, on the host."""
        raise NotImplementedError

    def nearest_centre(self, label: Array, k: int) -> Array:
        """Nearest of the means of k clusters (R,), given each point's cluster."""
        raise NotImplementedError

    def gather(self, own: Array) -> Array:
        """Numbers (size, m) of all ranks."""
        return self._group.gather(own)

    def largest(self, columns: Iterator[tuple[slice, Array]]) -> Array:
        """Largest rho of every own row, -inf of none, from `rho` or `labeled_rho`."""
        result = np.full(self.own.stop - self.own.start, -np.inf)
        for rows, rho in columns:
            result[rows] = rho.max(1, initial=-np.inf)
        return result

    def labeled_distances(self) -> Iterator[Array]:
        """Squared distances (n, m) of labelled points to each other, some columns at a time."""
        n, inverse = len(self._labeled_inverse), self._labeled_inverse
        step = _rows_at_once(n)
        for start in range(0, n, step):
            part = slice(start, start + step)
            yield 2 - 2 * self._labeled_gram(part) * inverse[:, None] * inverse[part]

    @property
    def finest(self) -> float:
        """Smallest distance that is told from none."""
        raise NotImplementedError

    @property
    def same(self) -> float:
        """Squared distance up to which rounding may have moved one point away from itself."""
        return max(64 * float(np.finfo(self._space.dtype).eps), self.finest**2)


def _rows_at_once(columns: int) -> int:
    """Rows of so many float64 numbers that are formed at once."""
    return max(1, _COLUMN_BYTES // (8 * max(1, columns)))


def _resolution(space: WeightSpace | FunctionSpace) -> float:
    """Return what rounding has done to K, in units of a radius."""
    return 2.0 * float(np.finfo(space.dtype).eps) / _ACCURACY


class FeaturesBefore(KernelBefore):
    """K of features: in memory, on disk, or shared by ranks.

    They come from psi in each of these cases, and are the same, bit for bit.
    """

    def __init__(
        self, space: WeightSpace, given: Given | None, labeled: Array, rows: Array
    ) -> None:
        super().__init__(space, rows)
        self._weights, engine = space, space.engine
        self._undo, self.amplified = space.whitening.inverse()
        self._points = rows[self.own] - self._group.start
        self._K = self._reader(self._points, space.dtype)
        diagonal = np.empty(len(self._points))
        for start, K in self._K.blocks():
            diagonal[start : start + len(K)] = engine.host(engine.squared_norms(K))
        self.diagonal = self.of_all(diagonal)
        self.inverse = _inverse_lengths(self.diagonal)
        self._labeled = self.features(np.searchsorted(rows, labeled))
        if given is not None and given.features is not None and len(given.features):
            features = engine.cast(given.features, space.dtype)
            self._labeled = engine.stack(features, self._labeled)
        squares = engine.host(engine.squared_norms(self._labeled))
        self._labeled_inverse = _inverse_lengths(squares)

    def _reader(self, points: Array, dtype: np.dtype[Any]) -> Rows:
        every = len(points) == self._weights.size
        return reader(self._weights, dtype, None if every else points, self._undo)

    def part(self, points: Array, dtype: np.dtype[Any]) -> Rows:
        """Features of some points of this rank (increasing), in this type; not to be updated."""
        if dtype == self._weights.dtype:
            if np.array_equal(points, self._points):
                return self._K
            if self._K.held:
                held = self._K.take(np.searchsorted(self._points, points))
                return HeldRows(held, self.engine, owned=False)
        return self._reader(points, dtype)

    def features(self, points: Array) -> Any:
        """Features (m, d) of positions (m,) among `rows`, on every rank."""
        return self._group.rows(
            self.engine,
            self.rows[points],
            lambda own: self._K.take(np.searchsorted(self._points, own)),
        )

    def own_features(self, points: Array) -> Array:
        """Those (m, d), float64, of positions among `rows` that are this rank's, on the host."""
        K = self._K.take(points - self.own.start)
        return self.engine.host(self.engine.cast(K, np.float64))

    def scorer(self, precision: str) -> FeatureScorer:
        """See `KernelBefore.scorer`."""
        K = self.engine.cast(self._K.read(0, len(self._K)), stored_type(precision))
        return FeatureScorer(K, self.diagonal, precision, self.engine)

    def rho(self, points: Array, of: Array | None = None) -> Iterator[tuple[slice, Array]]:
        """See `KernelBefore.rho`."""
        own, rows = self.inverse[self.own], self._K
        if of is not None and len(of) < len(own):
            own, rows = own[of], self.part(self._points[of], self._weights.dtype)
        return rho(self.engine, rows, own, self.features(points), self.inverse[points])

    def labeled_rho(self) -> Iterator[tuple[slice, Array]]:
        """See `KernelBefore.labeled_rho`."""
        return self.labeled_rho_of(self._K, self.inverse[self.own])

    def labeled_rho_of(self, rows: Rows, inverse: Array) -> Iterator[tuple[slice, Array]]:
        """Rho of other rows and the labelled points."""
        return rho(self.engine, rows, inverse, self._labeled, self._labeled_inverse)

    def _labeled_gram(self, part: slice) -> Array:
        engine = self.engine
        columns = engine.cast(self._labeled[part], np.float64).T
        return engine.host(engine.product(self._labeled, columns))

    def nearest_centre(self, label: Array, k: int) -> Array:
        """See `KernelBefore.nearest_centre`; the means are summed in one order for any ranks."""
        engine, d = self.engine, self._weights.dim
        size = np.bincount(label, minlength=k)
        cluster, inverse = label[self.own], self.inverse[self.own]
        share = inverse / size[cluster]

        def leaf(rows: Any, of: Array, share: Array) -> Any:
            M = np.zeros((len(of), k))
            M[np.arange(len(of)), of] = share
            return engine.product(engine.copy(rows.T), engine.put(M))

        width = max(1, d * self._weights.dtype.itemsize)
        centres = total(
            self._group,
            engine,
            self._counts,
            lambda a, b: (self._K.read(a, b), cluster[a:b], share[a:b]),
            leaf,
            engine.empty((d, k)),
            leaf_rows=engine.leaf_rows,
            step=max(1, BLOCK_BYTES // width // engine.leaf_rows) * engine.leaf_rows,
        )
        lengths = engine.host(engine.column_norms(centres))
        nearest = np.empty(len(inverse), np.int64)
        for part, towards in rho(engine, self._K, inverse, engine.copy(centres.T), np.ones(k)):
            nearest[part] = np.where(size > 0, lengths - 2 * towards, np.inf).argmin(1)
        return self.of_all(nearest)

    @property
    def finest(self) -> float:
        return _resolution(self._space) * self.amplified


def rho(
    engine: Engine, rows: Rows, inverse: Array, columns: Any, column_inverse: Array
) -> Iterator[tuple[slice, Array]]:
    """Rho (b, m) of features `rows` and `columns` (m, d), of given 1 / |x|, some rows at a time."""
    m = len(columns)
    across = engine.cast(columns, np.float64).T
    step = _rows_at_once(m)
    for start, block in rows.blocks() if m else ():
        for a in range(0, len(block), step):
            part = slice(start + a, start + min(a + step, len(block)))
            K = engine.host(engine.product(block[a : a + step], across))
            K *= inverse[part, None]
            K *= column_inverse
            yield part, K


class MatrixBefore(KernelBefore):
    """K of a posterior from a kernel: S and what labels have taken from it."""

    def __init__(
        self, space: FunctionSpace, given: Given | None, labeled: Array, rows: Array
    ) -> None:
        super().__init__(space, rows)
        engine, own = self.engine, np.searchsorted(rows, labeled)
        before = None if space.factor is None else space.factor.whole(engine)
        every = len(rows) == space.size
        K = space.S if every else engine.part(space.S, rows, rows)
        g = 0 if before is None else len(before.given)
        cross = np.empty((0, len(rows)))
        if before is not None and len(before.L):
            V = before.V if every else engine.copy(engine.rows(before.V.T, rows).T)
            K = engine.cast(K, np.float64) + engine.product(engine.copy(V.T), V)
            cross = engine.host(before.L[:g, :g] @ V[:g])
        self._K = K
        self.diagonal = engine.host(engine.cast(K.diagonal(), np.float64)).copy()
        self.inverse = _inverse_lengths(self.diagonal)
        diagonal, among = self.diagonal[own], np.empty((g, g))
        if given is not None and given.diagonal is not None and before is not None:
            L, told, untold = engine.host(before.L[:g, :g]), before.given, given.untold
            diagonal = np.concatenate([given.diagonal[told], given.diagonal[untold], diagonal])
            among = L @ L.T
            if len(untold):
                between, apart = given.among[:, told], given.among[:, untold]
                among = np.block([[among, between.T], [between, apart]])
                cross = np.vstack([cross, given.rows[:, rows]])
        own_rows = engine.host(engine.cast(engine.rows(K, own), np.float64))
        self._labeled = np.vstack([cross, own_rows])
        self._labeled_inverse = _inverse_lengths(diagonal)
        gram = np.hstack([np.vstack([among, cross[:, own].T]), self._labeled[:, own]])
        np.fill_diagonal(gram, diagonal)
        self._gram = gram

    def scorer(self, precision: str) -> KernelScorer:
        """See `KernelBefore.scorer`."""
        K = self.engine.cast(self._K, stored_type(precision))
        return KernelScorer(K, self.diagonal, 0, self.engine, shared=True)

    def rho(self, points: Array, of: Array | None = None) -> Iterator[tuple[slice, Array]]:
        """See `KernelBefore.rho`."""
        engine, step = self.engine, _rows_at_once(len(points))
        of = np.arange(len(self.rows)) if of is None else of
        for start in range(0, len(of), step):
            part = slice(start, start + step)
            K = engine.host(engine.cast(engine.part(self._K, of[part], points), np.float64))
            yield part, K * self.inverse[of[part], None] * self.inverse[points]

    def labeled_rho(self) -> Iterator[tuple[slice, Array]]:
        """See `KernelBefore.labeled_rho`."""
        step = _rows_at_once(len(self._labeled))
        for start in range(0, len(self.rows), step):
            part = slice(start, start + step)
            K = self._labeled[:, part].T
            yield part, K * self.inverse[part, None] * self._labeled_inverse

    def _labeled_gram(self, part: slice) -> Array:
        return self._gram[:, part]

    def nearest_centre(self, label: Array, k: int) -> Array:
        """See `KernelBefore.nearest_centre`; K is read instead of the means."""
        M, size = np.zeros((len(label), k)), np.bincount(label, minlength=k)
        M[np.arange(len(label)), label] = 1 / size[label]
        sums = self.engine.product(self._K, self.engine.put(self.inverse[:, None] * M))
        towards = self.engine.host(sums) * self.inverse[:, None]
        lengths = (M * towards).sum(0)
        nearest: Array = np.where(size > 0, lengths - 2 * towards, np.inf).argmin(1)
        return nearest

    @property
    def finest(self) -> float:
        return float(np.sqrt(_resolution(self._space)))  # K holds the squares of distances


def kernel_before(
    space: WeightSpace | FunctionSpace,
    given: Given | None,
    labeled: Array,
    points: Array,
    *,
    has_labels: bool,
) -> FeaturesBefore | MatrixBefore:
    """Return K before any label.

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
    factor = space.factor if isinstance(space, FunctionSpace) else None
    if has_labels and (given is None or (space.dense and factor is None)):
        raise ValueError(
            "this posterior comes from a file of an earlier version, which does not hold the "
            "labelled points that coverage is of: build it again"
        )
    rows = np.union1d(points, labeled)
    if isinstance(space, WeightSpace):
        return FeaturesBefore(space, given, labeled, rows)
    return MatrixBefore(space, given, labeled, rows)


def nearest_radius(kernel: KernelBefore) -> float:
    """Return how far labelled points are from the nearest different one; 1 where there is none.

    The root of the mean squared distance. It shrinks as labels become many, as the rule of Bae,
    Oliveira, Sutherland (arXiv 2412.20644) does, who take the smallest of these distances, which
    two labels that happen to be near make much too small (docs/evidence.md). A point whose features
    were given and which is of the pool too, or which is labelled twice, counts once.
    """
    nearest, copies = [np.empty(0)], [np.empty(0)]
    for square in kernel.labeled_distances():
        other = square > kernel.same
        nearest.append(np.min(square, axis=0, initial=np.inf, where=other))
        copies.append((~other).sum(0))
    squares, count = np.concatenate(nearest), np.concatenate(copies)
    known = np.isfinite(squares) & (count > 0)  # features of length zero are not like themselves
    if not known.any():
        return 1.0
    return float(np.sqrt(np.average(squares[known], weights=1 / count[known])))


def _clusters(kernel: KernelBefore, k: int, rng: np.random.Generator) -> Array:
    """Cluster of each point by k-means of the features of length one (Lloyd, k-means++ seeds)."""
    R = len(kernel.rows)

    def to_seed(seed: int) -> Array:
        largest = kernel.largest(kernel.rho(np.array([seed])))
        square: Array = np.maximum(2 - 2 * kernel.of_all(largest), 0.0)
        return square

    seeds = [int(rng.integers(R))]
    square = to_seed(seeds[0])
    while len(seeds) < k and square.max() > kernel.same:
        seeds.append(int(rng.choice(R, p=square / square.sum())))
        square = np.minimum(square, to_seed(seeds[-1]))
    own: Array = np.empty(kernel.own.stop - kernel.own.start, np.int64)
    for part, to_seeds in kernel.rho(np.array(seeds)):
        own[part] = to_seeds.argmax(1)
    label = kernel.of_all(own)
    for _ in range(20):
        before, label = label, kernel.nearest_centre(label, len(seeds))
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
    nearest, own = np.full(len(anchors), -np.inf), label[kernel.own]
    for part, rho_anchors in kernel.rho(anchors):
        apart = np.where(own[part, None] == label[anchors], -np.inf, rho_anchors)
        nearest = np.maximum(nearest, apart.max(0))
    nearest = kernel.gather(nearest).max(0)
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


def concentration(kernel: KernelBefore, evaluation: Array, seed: int = 0) -> float:
    """Return how far the nearest other point is, as a share of how far any is; both are means.

    Of squared distances, of at most 512 of the evaluation points to all of them. In [0, 1]: near 0
    where points have neighbours that are much like them, near 1 where all are about as far from
    each other, so that what is nearest means little (Beyer, Goldstein, Ramakrishnan, Shaft, ICDT
    1999). 0 where there is one place only. Points with features of length zero have no place.
    """
    points = np.sort(np.searchsorted(kernel.rows, evaluation))
    points = points[kernel.inverse[points] > 0]
    if len(points) < 2:
        return 0.0
    rng = np.random.default_rng(seed)
    anchors = np.sort(rng.choice(points, min(len(points), _SAMPLE), replace=False))
    own = points[(points >= kernel.own.start) & (points < kernel.own.stop)] - kernel.own.start
    nearest, sums = np.full(len(anchors), np.inf), np.zeros(kernel.own.stop - kernel.own.start)
    for part, to_anchors in kernel.rho(anchors, own):
        half = np.subtract(1, to_anchors, out=to_anchors)  # of squared distances
        np.maximum(half, 0, out=half)
        sums[own[part]] = half.sum(1)  # but for rounding an anchor is 0 from itself
        half[own[part, None] + kernel.own.start == anchors] = np.inf
        nearest = np.minimum(nearest, half.min(0))
    # All rows are summed in one order, whatever ranks have them.
    mean = kernel.of_all(sums).sum() / (len(anchors) * (len(points) - 1))
    if 2 * mean <= kernel.same:
        return 0.0
    return float(min(kernel.gather(nearest).min(0).mean() / mean, 1.0))


@dataclass(frozen=True)
class Product:
    """How two utilities >= 0 are multiplied: what is covered, and what the variance loses.

    The less neighbours mean, the less coverage counts, and the more how open the candidate itself
    is: ``reduced * covered**(1 - w) * entropy**(2 w)``, which never grows when `covered` shrinks.

    Attributes
    ----------
    entropy : array (m,)
        Of the class probabilities of this process's candidates.
    w : float
        In [0, 1].
    """

    entropy: Array
    w: float

    def __call__(self, covered: Array, reduced: Array) -> Array:
        """Return the product (m,)."""
        result: Array = reduced * covered ** (1 - self.w) * self.entropy ** (2 * self.w)
        result[covered == 0] = 0.0  # for w = 1 too
        return result


_FORMS: dict[str, Callable[[Array, float], Array]] = {
    "cosine_coverage": lambda rho, radius: np.minimum(rho, 1.0),
    "gaussian_coverage": lambda rho, radius: np.exp(np.minimum(2 * rho - 2, 0.0) / radius**2),
    "ball_coverage": lambda rho, radius: (2 - 2 * rho < radius**2).astype(np.float64),
}


def covered(kernel: KernelBefore, criterion: str, largest: Array, radius: float) -> Array:
    """m(x) >= 0 by some points, of the largest rho of each x to them (-inf: there are none)."""
    # Of one place: then exactly covered, so that nothing is gained there by rounding.
    largest = np.where(2 - 2 * largest <= kernel.same, 1.0, largest)
    result: Array = np.maximum(_FORMS[criterion](largest, radius), 0.0)
    return result


def reach(criterion: str, radius: float) -> float:
    """Distance that K must be exact to."""
    return 1.0 if criterion == "cosine_coverage" else radius


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
        self._scorer = kernel.scorer(kernel.precision(precision, reach(criterion, radius)))
        self._candidates = np.searchsorted(kernel.rows, candidates)
        self._evaluation = np.searchsorted(kernel.rows, evaluation)
        self._weights = weights
        self._covered = np.zeros(len(evaluation))
        self._nothing = np.zeros((len(kernel.rows), 1))  # outputs, which play no part
        self._add(kernel.labeled_rho())

    def _add(self, columns: Iterator[tuple[slice, Array]]) -> None:
        """Count points in, by rho(rows, points)."""
        largest = self._kernel.largest(columns)[self._evaluation]
        of = covered(self._kernel, self._criterion, largest, self._radius)
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
