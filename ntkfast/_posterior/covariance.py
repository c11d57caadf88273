"""The posterior covariance S in its two representations, which answer the same questions.

`WeightSpace` keeps whitened features psi with S(x, x') = <psi(x), psi(x')>, `FunctionSpace` the
matrix S. Both condition on several labels at a time and hand out scorers, which run the compiled
criteria and may be conditioned on the picks of a batch while the space itself stays as it is.
Outputs, labels and strategies belong to `Posterior` and `selection`.

What grows with N d, N^2, d^2 or n^2 is an array of the engine, on the CPU or on a GPU (see
`engines`); means, variances, noises and indices are numpy arrays in either case.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..arrays import Array
from ..ops import ScoreInputs
from .engines import CPU, Engine
from .group import ALONE, Alone
from .precision import stored_type, subtracted_type

__all__ = [
    "Change",
    "Factor",
    "FeatureScorer",
    "FunctionSpace",
    "KernelScorer",
    "Update",
    "WeightSpace",
    "Whitening",
]

# max K / noise from which labels get more care than speed: beyond it I + Phi^T D^-1 Phi, whose
# smallest eigenvalues may be 1, would lose 1e-11 and more of them to rounding (docs/method.md,
# section 3).
_CAREFUL_FROM = 1e4

# Evaluation points that are scored in one call. Sums over more are added call by call, so that they
# are the same for features that are not all in memory at once.
EVALUATION_ROWS = 1 << 16


def _factor(engine: Engine, A: Any) -> Any:
    """Cholesky factor of a kernel matrix plus its noise, with an error that users understand."""
    try:
        return engine.cholesky(A)
    except ValueError:
        raise ValueError(
            "the kernel matrix of the labelled points plus their noise is not positive definite: "
            "it is no kernel (negative eigenvalues), or ridge / noise is too small beside its "
            "rounding errors"
        ) from None


def _own(engine: Engine, array: Any) -> Any:
    """Return the array, or a copy if it is read-only, as memory maps are."""
    return array if engine.on_gpu or array.flags.writeable else engine.copy(array)


def _merged(groups: Array, noise: Array, residual: Array) -> tuple[Array, Array, Array]:
    """Make the labels (n,) of each group, which belong to one and the same point, one label.

    Its precision is the sum of theirs and its residual their mean, weighted by precision: exactly
    what they say together, without the differences of 1 / noise that would cancel.

    Returns the position of the first label of each group, the noises and the residuals.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    if len(first) == len(groups):
        return np.arange(len(groups)), noise, residual
    smallest = np.full(len(first), np.inf)
    np.minimum.at(smallest, group, noise)
    share = smallest[group] / noise  # precisions in units of the largest of their group
    total = np.bincount(group, share)
    mean = np.zeros((len(first), residual.shape[1]))
    np.add.at(mean, group, (share / total[group])[:, None] * residual)
    return first, smallest / total, mean


def _alike(*matrices: Array) -> Array:
    """Return a number for each row, the same for rows that are equal in all matrices (n, ...)."""
    number: dict[bytes, int] = {}
    result = np.empty(len(matrices[0]), np.int64)
    for i, rows in enumerate(zip(*matrices, strict=True)):
        digest = hashlib.blake2b(digest_size=16)
        for row in rows:
            digest.update(np.ascontiguousarray(row + 0.0).data)  # of two zeros the positive one
        result[i] = number.setdefault(digest.digest(), i)
    return result


@dataclass(frozen=True)
class Change:
    """What new labels do: `mean` (N, k) is added to F, `commit` updates S in place.

    Whatever can fail has happened before `commit`.
    """

    mean: Array
    commit: Callable[[], None]


def _norm(d: int, times: Callable[[Array], Array], back: Callable[[Array], Array]) -> float:
    """Return |A| >= 1 of x -> A x, `times`, and x -> A^T x, `back`, by the power method."""
    v: Array = np.random.default_rng(0).normal(size=d)
    for _ in range(20):
        v = back(times(v / np.linalg.norm(v)))
    return max(1.0, float(np.sqrt(np.linalg.norm(v))))


@dataclass(frozen=True)
class Update:
    """What labels or picks do to psi: psi <- psi - (psi U^T) C, or psi <- psi W^T."""

    U: Any = None
    C: Any = None
    W: Any = None

    def applied(self, engine: Engine, psi: Any) -> Any:
        """Return the new psi; the old one, which may be written to, is used up."""
        if self.W is not None:
            return engine.whiten(psi, self.W)
        engine.condition_features(psi, self.U, self.C)
        return psi


@dataclass(frozen=True)
class Whitening:
    """W (d, d) of psi(x) = W phi(x), kept transposed: as I - left^T right, or as `matrix`.

    A few labels multiply psi and W^T from the right by I - U^T C with U, C (b, d). The product
    stays compact (left, right: (r, d)) while it has at most d / 2 rows, so that features may have a
    million dimensions. Beyond that it becomes a matrix.
    """

    left: Any
    right: Any
    matrix: Any = None
    engine: Engine = CPU

    @classmethod
    def identity(cls, d: int, engine: Engine) -> Whitening:
        """W = I."""
        return cls(engine.empty((0, d)), engine.empty((0, d)), engine=engine)

    def arrays(self) -> dict[str, Array]:
        """Return what a file keeps."""
        if self.matrix is not None:
            return {"whitening": self.engine.host(self.matrix)}
        return {"left": self.engine.host(self.left), "right": self.engine.host(self.right)}

    @classmethod
    def restored(cls, kept: dict[str, Array], engine: Engine) -> Whitening:
        """Return the whitening of `arrays`, of this engine."""
        if "whitening" not in kept:
            return cls(engine.put(kept["left"]), engine.put(kept["right"]), engine=engine)
        none = engine.empty((0, len(kept["whitening"])))
        return cls(none, none, engine.put(kept["whitening"]), engine)

    def _dense(self, matrix: Any) -> Whitening:
        return replace(self, left=self.left[:0], right=self.right[:0], matrix=matrix)

    def then(self, U: Any, C: Any) -> Whitening:
        """Return the whitening after psi <- psi (I - U^T C); never changes `self`."""
        if self.matrix is None:
            # (I - P^T Z)(I - U^T C) = I - P^T (Z - (Z U^T) C) - U^T C
            left, right, product = U, C, self.engine.product
            if len(self.left):
                left = self.engine.stack(self.left, U)
                right = self.engine.stack(self.right - product(product(self.right, U.T), C), C)
            if 2 * len(left) <= left.shape[1]:
                return replace(self, left=left, right=right)
        matrix = self._transposed(U.shape[1])
        self.engine.condition_features(matrix, U, C)
        return self._dense(matrix)

    def times(self, W: Any) -> Whitening:
        """Return the whitening after psi <- W psi; never changes `self`."""
        if self.matrix is None and len(self.left) == 0:
            return self._dense(self.engine.copy(W.T))
        return self._dense(self.engine.product(self._transposed(len(W)), W.T))

    def _transposed(self, d: int) -> Any:
        """W^T as a new matrix."""
        if self.matrix is None:
            return self.features(self.engine.eye(d))
        return self.engine.copy(self.matrix)

    def features(self, phi: Any) -> Any:
        """Psi = phi W^T as a new array of the dtype of phi (N, d)."""
        if self.matrix is not None:
            return self.engine.whiten(phi, self.matrix.T)
        psi = self.engine.copy(phi)
        if len(self.left):
            self.engine.condition_features(psi, self.left, self.right)
        return psi

    def inverse(self) -> tuple[Update | None, float]:
        """Return what makes phi of psi, and |W^-1|, by which what rounding did to psi grows.

        None: psi is phi. For the compact form, of rank r,
        (I - P^T Z)^-1 = I + P^T (I - Z P^T)^-1 Z.
        """
        engine = self.engine
        if self.matrix is not None:
            inverse = np.linalg.inv(engine.host(self.matrix))
            size = _norm(len(inverse), inverse.__matmul__, inverse.T.__matmul__)
            return Update(W=engine.put(inverse.T)), size
        if len(self.left) == 0:
            return None, 1.0
        P, Z = engine.host(self.left), engine.host(self.right)
        G = np.linalg.solve(np.eye(len(P)) - Z @ P.T, Z)
        size = _norm(P.shape[1], lambda v: v + P.T @ (G @ v), lambda v: v + G.T @ (P @ v))
        return Update(self.left, engine.put(-G)), size

    def pull_back(self, step: Any) -> Any:
        """W^T step: a step (d, k) along psi as a step along phi."""
        product = self.engine.product
        if self.matrix is not None:
            return product(self.matrix, step)
        if len(self.left) == 0:
            return step
        return step - product(self.engine.copy(self.left.T), product(self.right, step))


class WeightSpace:
    """S(x, x') = <psi(x), psi(x')> with psi = W phi.

    Attributes
    ----------
    psi : array (N, d), float32 or float64, of the engine
    variance : ndarray (N,), float64
        S(x, x), the squared norms of psi: computed anew after every change, never subtracted from.
    whitening : Whitening
        W, float64, of the engine.
    theta : array (d, k), float64, of the engine
        F(x) = f(x) + <phi(x), theta>.
    engine : Engine
        What computes on psi.
    group : Group
        Who holds the other points; psi and variance are those of this rank.
    """

    per_point = 1  # rows of a point
    dense = False  # whether S itself is kept
    on_disk = False  # whether psi is formed anew wherever it is read
    group: Alone = ALONE

    def __init__(self, psi: Any, whitening: Whitening, theta: Any, group: Alone = ALONE) -> None:
        self.engine = whitening.engine
        self.psi = psi
        self.variance = self.engine.host(self.engine.squared_norms(psi))
        self.whitening = whitening
        self.theta = theta
        self.group = group

    @classmethod
    def fit(
        cls,
        features: Any,
        labeled: Any,
        noise: Array,
        residual: Array,
        engine: Engine,
        group: Alone = ALONE,
    ) -> tuple[WeightSpace, Array]:
        """Return the space of N points given n labelled ones, and the change of F (N, k).

        features (N, d) and labeled (n, d) are arrays of the engine.
        """
        n, d = labeled.shape
        k = residual.shape[1]
        psi = engine.copy(features) if n == 0 and not cls.on_disk else features
        space = cls(psi, Whitening.identity(d, engine), engine.put(np.zeros((d, k))), group)
        if n == 0:
            return space, np.zeros((len(features), k))
        change = space._change(engine.cast(labeled, np.float64), noise, residual, in_place=False)
        change.commit()
        return space, change.mean

    @property
    def rows(self) -> WeightSpace:
        """The covariance of single rows: itself, unlike for blocks."""
        return self

    @property
    def size(self) -> int:
        """Number of points, with a group of this rank's."""
        return len(self.psi)

    @property
    def dim(self) -> int:
        """Number d of features."""
        return int(self.psi.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of psi."""
        return self.engine.dtype(self.psi)

    @property
    def in_parts(self) -> bool:
        """Whether no process has all of psi in its memory."""
        return self.on_disk or self.group is not ALONE

    def own(self, points: Array) -> Any:
        """Psi of points of this rank, by their position there, as a new array."""
        return self.engine.rows(self.psi, points)

    def at(self, points: Array) -> Any:
        """Psi of points by their global numbers, on every rank, as a new array."""
        return self.group.rows(self.engine, points, self.own)

    def copy(self) -> WeightSpace:
        """Independent copy."""
        psi, theta = self.engine.copy(self.psi), self.engine.copy(self.theta)
        return WeightSpace(psi, self.whitening, theta, self.group)

    def covariance(self, rows: Array, columns: Array) -> Array:
        """S(rows, columns), float64."""
        engine = self.engine
        across = engine.cast(self.at(columns), np.float64)
        return engine.host(engine.product(self.at(rows), across.T))

    def condition(self, indices: Array, noise: Array, residual: Array) -> Change:
        """Prepare labels at `indices` (b,) with noise (b,), finite, and residuals (b, k)."""
        labeled = self.engine.cast(self.at(indices), np.float64)
        with self.group.together("condition", {}):
            return self._change(labeled, noise, residual, indices)

    def _change(
        self,
        labeled: Any,
        noise: Array,
        residual: Array,
        points: Array | None = None,
        *,
        in_place: bool = True,
    ) -> Change:
        """Condition on points whose psi are `labeled` (b, d); `points` (b,) tells equal ones.

        Not `in_place`: psi is the caller's, and is not written to.

        With Psi_B = `labeled` and b >= d / 2: I + Psi_B^T D^-1 Psi_B = L L^T and psi <- L^-1 psi.

        b < d / 2: with U = D^-1/2 Psi_B, I + U U^T = L L^T and Z = L^-T (L + I)^-1, the matrix
        I - U^T Z U is a root of (I + U^T U)^-1, because Z + Z^T - Z (U U^T) Z^T = (I + U U^T)^-1.
        So psi <- psi (I - U^T C), C = Z U, whitens exactly like the symmetric root of
        docs/method.md, section 3 (psi is defined up to a rotation) with a Cholesky factor in place
        of an eigen-decomposition; for b = 1 it is that root.

        Where noises are small beside the kernel, the latter is taken at any b: what rounding does
        to the smallest eigenvalues of U U^T, U^T takes away again. Labels of equal points are
        merged before, and more than d rows are replaced by d with the same U^T U.
        """
        engine, product = self.engine, self.engine.product  # the same for any number of threads
        norms = engine.host(engine.squared_norms(labeled))
        careful = bool((norms > _CAREFUL_FROM * noise).any())
        if careful:
            points = _alike(engine.host(labeled)) if points is None else points
            first, noise, residual = _merged(points, noise, residual)
            labeled = labeled if len(first) == len(labeled) else engine.rows(labeled, first)
        b, d = labeled.shape
        few = careful or 2 * b < d
        if few:
            scale = 1 / np.sqrt(noise)[:, None]
            U, target = engine.put(scale) * labeled, engine.put(scale * residual)
            if b > d:
                R = engine.triangle(engine.stack(U.T, target.T).T)
                U, target = engine.copy(R[:d, :d]), engine.copy(R[:d, d:])
            identity = engine.eye(len(U))
            L = _factor(engine, identity + product(U, U.T))
            C = engine.triangular_solve(L, engine.triangular_solve(L + identity, U), transpose=True)
            weights = engine.triangular_solve(L, target)
            step = product(engine.copy(U.T), engine.triangular_solve(L, weights, transpose=True))
            whitening, update = self.whitening.then(U, C), Update(U, C)
        else:
            L = _factor(engine, engine.eye(d) + engine.weighted_gram(labeled, 1 / noise))
            W = engine.triangular_solve(L, engine.eye(d))
            target = product(engine.copy(labeled.T), engine.put(residual / noise[:, None]))
            step = product(engine.copy(W.T), product(W, target))
            whitening, update = self.whitening.times(W), Update(W=W)
        theta = self.theta + self.whitening.pull_back(step)
        mean, commit_psi = self._updated(update, step, in_place)

        def commit() -> None:
            commit_psi()
            self.whitening, self.theta = whitening, theta

        return Change(mean, commit)

    def _updated(
        self, update: Update, step: Any, in_place: bool
    ) -> tuple[Array, Callable[[], None]]:
        """Return <psi, step> (N, k), and what updates psi and the variances, which cannot fail."""
        engine = self.engine
        if update.W is not None:
            psi = update.applied(engine, self.psi)
        else:
            psi = _own(engine, self.psi) if in_place else engine.copy(self.psi)
        mean = engine.host(engine.product(self.psi, step))
        norms = engine.empty((self.size,))  # before anything changes: memory may run out

        def commit() -> None:
            self.psi = psi if update.W is not None else update.applied(engine, psi)
            self.variance = engine.host(engine.squared_norms(self.psi, norms))

        return mean, commit

    def predict(self, features: Any) -> Array:
        """F - f (m, k) at new points, from their features (m, d), of the engine."""
        return self.engine.host(self.engine.product(features, self.theta))

    def extended(self, features: Any) -> WeightSpace:
        """Return the space with new points appended, from their features, of the engine."""
        psi = self.whitening.features(self.engine.cast(features, self.dtype))
        return WeightSpace(self.engine.stack(self.psi, psi), self.whitening, self.theta)

    def scorer(self, precision: str) -> FeatureScorer:
        """Scores in `precision`; shares memory, so it must not be conditioned on picks."""
        psi = self.engine.cast(self.psi, stored_type(precision))
        return FeatureScorer(psi, self.variance, precision, self.engine)

    def scratch(self, rows: Array, picks: int, precision: str) -> tuple[FeatureScorer, Array]:
        """Return a scorer of the points `rows` to be conditioned on picks, and what it holds."""
        psi = self.engine.cast(self.engine.rows(self.psi, rows), stored_type(precision))
        return FeatureScorer(psi, self.variance[rows], precision, self.engine), rows

    def arrays(self) -> dict[str, Any]:
        """Return what a file keeps."""
        kept = {"psi": self.psi, "theta": self.theta}
        host = self.engine.host
        return {name: host(array) for name, array in kept.items()} | self.whitening.arrays()

    def to(self, engine: Engine) -> WeightSpace:
        """Independent copy of another engine."""
        if engine is self.engine:
            return self.copy()
        return WeightSpace.restored(self.arrays(), engine)

    @classmethod
    def restored(cls, kept: dict[str, Array], engine: Engine) -> WeightSpace:
        """Return the space of `arrays`, of this engine."""
        whitening = Whitening.restored(kept, engine)
        return cls(engine.put(kept["psi"]), whitening, engine.put(kept["theta"]))


class _Scorer:
    """What picks move, for scorers of a scalar kernel."""

    variance: Array

    def column(self, point: int) -> Array:
        """S(., point) (N,), float64."""
        raise NotImplementedError

    def step(self, point: int, noise: float, residual: Array) -> Array:
        """Return the change of F (N, k) by a label of this residual (k,) at `point`."""
        return np.outer(self.column(point) / (self.variance[point] + noise), residual)

    def log_det(self, points: Array, noise: Array) -> Array:
        """log(1 + S(c, c) / noise) of some points."""
        result: Array = np.log1p(self.variance[points] / noise)
        return result


class FeatureScorer(_Scorer):
    """Criteria over whitened features, conditioned on one pick after another."""

    def __init__(self, psi: Any, variance: Array, precision: str, engine: Engine) -> None:
        self.psi = psi
        self.variance = variance
        self._precision = precision
        self._engine = engine
        self._kept: dict[str, Any] = {}

    def score(self, criterion: str, inputs: ScoreInputs) -> Array:
        """Utilities (N_c,), float64."""
        if len(inputs.evaluation) <= EVALUATION_ROWS:
            return self._engine.score_features(
                criterion,
                self.psi,
                inputs,
                variance=self.variance,
                precision=self._precision,
                kept=self._kept,
            )
        result, every = np.zeros(len(inputs.candidates)), slice(None)
        for start in range(0, len(inputs.evaluation), EVALUATION_ROWS):
            result += self.score(
                criterion, inputs.part(every, slice(start, start + EVALUATION_ROWS))
            )
        return result

    def column(self, point: int) -> Array:
        """S(., point) (N,), float64."""
        psi_c = self._engine.cast(self.psi[point : point + 1], np.float64)
        return self._engine.host(self._engine.product(self.psi, psi_c.T))[:, 0]

    def pick(self, point: int, noise: float) -> None:
        """Condition on `point` with a finite noise: psi <- psi - beta psi_c <psi_c, psi>."""
        psi_c = self._engine.copy(self.psi[point : point + 1], np.float64)
        total = self.variance[point] + noise
        beta = float(1 / (total * (1 + np.sqrt(noise / total))))
        self._engine.condition_features(self.psi, psi_c, beta * psi_c)
        self.variance = self._engine.host(self._engine.squared_norms(self.psi))


@dataclass(frozen=True)
class Factor:
    """What labels make of the kernel at points that are not among the N.

    With the labels A in the order of `given`, then `points`, and L L^T = K_AA + D:
    F(x) = f(x) + V(x)^T w and S(x, x') = K(x, x') - V(x)^T V(x'), where V(x) = L^-1 K(A, x).
    Never changed in place, so that copies share it.

    Attributes
    ----------
    L : array (r, r), float64, of the engine
    V : array (r, N), float64, of the engine
        V of the N points.
    w : array (r, k), float64, of the engine
    given : ndarray (g,), int64
        The first labels, by their position among the labelled points of `FunctionSpace.fit`.
    points : ndarray (r - g,), int64
        The later ones, by their position among the N.
    labeled : int
        How many labelled points the kernel of new points is to be given with, those with an
        infinite noise included.
    later : tuple
        Labels that `whole` has yet to append.
    """

    L: Any
    V: Any
    w: Any
    given: Array
    points: Array
    labeled: int
    later: tuple[tuple[Array, Any, Any, Any], ...] = ()

    def appended(self, points: Array, root: Any, V: Any, w: Any) -> Factor:
        """Return the factor with labels at `points` (b,), of which V, w and a root of S_BB + D.

        Takes no time: a stream of labels does not copy what was there each time.
        """
        return replace(self, later=(*self.later, (points, root, V, w)))

    def whole(self, engine: Engine) -> Factor:
        """Return the factor with all labels in its arrays.

        L grows by K(B, A) L^-T, which is V of these points transposed, and the root of S_BB + D.
        """
        if not self.later:
            return self
        r, N = self.V.shape
        size = r + sum(len(points) for points, *_ in self.later)
        L, V, w = (engine.empty((size, columns)) for columns in (size, N, self.w.shape[1]))
        L[:, :] = 0.0
        L[:r, :r], V[:r], w[:r] = self.L, self.V, self.w
        for points, root, V_B, w_B in self.later:
            rows = slice(r, r + len(points))
            if r:
                L[rows, :r] = engine.part(V[:r], np.arange(r), points).T
            L[rows, rows], V[rows], w[rows] = root, V_B, w_B
            r += len(points)
        points = np.concatenate([self.points, *(points for points, *_ in self.later)])
        return replace(self, L=L, V=V, w=w, points=points, later=())

    def of(self, engine: Engine, K_lv: Any, K_uv: Any) -> Any:
        """V (r, m) of new points from K_lv (labeled, m) and K_uv (N, m), None where not read."""
        rows = [
            engine.cast(engine.rows(K, chosen), np.float64)
            for K, chosen in ((K_lv, self.given), (K_uv, self.points))
            if len(chosen)
        ]
        return engine.triangular_solve(self.L, rows[0] if len(rows) == 1 else engine.stack(*rows))

    def arrays(self, engine: Engine) -> dict[str, Any]:
        """Return what a file keeps."""
        kept = {"factor": self.L, "rows": self.V, "weights": self.w}
        return {name: engine.host(array) for name, array in kept.items()} | {
            "given": self.given,
            "points": self.points,
            "labeled": np.array(self.labeled),
        }

    @classmethod
    def restored(cls, kept: dict[str, Array], engine: Engine) -> Factor | None:
        """Return the factor of `arrays`, of this engine; None if a file has none."""
        if "factor" not in kept:
            return None
        L, V, w = (engine.put(kept[name]) for name in ("factor", "rows", "weights"))
        return cls(L, V, w, kept["given"], kept["points"], int(kept["labeled"]))


class FunctionSpace:
    """S as an N x N matrix: exact for any kernel, N up to a few ten thousand.

    Attributes
    ----------
    S : array (N, N), float32 or float64, of the engine
    variance : ndarray (N,), float64
        The diagonal of S, kept apart in float64.
    ridge : float
        lam, beside which S must stay exact.
    factor : Factor or None
        Of the labels, for new points; None: read from a file without it.
    engine : Engine
        What computes on S.
    """

    per_point = 1  # rows of a point
    dense = True  # whether S itself is kept
    on_disk = in_parts = False  # whether no process has all of it in its memory
    group: Alone = ALONE

    def __init__(
        self, S: Any, variance: Array, ridge: float, factor: Factor | None, engine: Engine
    ) -> None:
        self.S = S
        self.variance = variance
        self.ridge = ridge
        self.factor = factor
        self.engine = engine

    @classmethod
    def fit(
        cls,
        K_uu: Any,
        K_lu: Any,
        K_ll: Any,
        noise: Array,
        ridge: float,
        residual: Array,
        engine: Engine,
        given: Array,
        labeled: int,
        per_point: int = 1,
    ) -> tuple[FunctionSpace, Array]:
        """Return S = K_UU - V^T V, V = L^-1 K_LU, L L^T = K_LL + D, and the change of F (N, k).

        The kernels are arrays of the engine, with `per_point` rows for each point; the n labelled
        ones are those at `given` (n,) of `labeled` (`Factor`). S is float32 for a float32 kernel
        unless something is subtracted and max K / lam > 1e4, where the subtraction could cost the
        ranking (docs/method.md, section 3).
        """
        dtype, n = engine.dtype(K_uu), len(noise)
        before = engine.host(engine.cast(K_uu.diagonal(), np.float64))
        if n == 0:
            N, k = len(before), residual.shape[1]
            L, V, w = engine.empty((0, 0)), engine.empty((0, N)), engine.empty((0, k))
            factor = Factor(L, V, w, given, np.empty(0, np.int64), labeled)
            S, variance = engine.copy(K_uu), np.maximum(before, 0.0)
            return cls(S, variance, ridge, factor, engine), np.zeros((N, k))
        diagonal = engine.host(engine.cast(K_ll.diagonal(), np.float64))
        if (diagonal > _CAREFUL_FROM * noise).any():
            points = _alike(engine.host(K_ll), engine.host(K_lu))
            first, noise, residual = _merged(points, noise, residual)
            given = given[first]
            if len(first) < n:
                K_lu, K_ll = engine.rows(K_lu, first), engine.part(K_ll, first, first)
        D = engine.eye(len(noise)) * engine.put(noise)
        L = _factor(engine, engine.cast(K_ll, np.float64) + D)
        V = engine.triangular_solve(L, engine.cast(K_lu, np.float64))
        w = engine.triangular_solve(L, engine.put(residual))
        mean = engine.host(V.T @ w)
        variance = before - engine.host(engine.column_norms(V))
        if variance.min() < -1e-2 * before.max():
            raise ValueError(
                "K_uu, K_lu and K_ll are not parts of one kernel matrix: given the labels the "
                f"variance of point {int(variance.argmin()) // per_point} would be "
                f"{variance.min():g}"
            )
        S = engine.copy(K_uu, subtracted_type(dtype, before, ridge))
        engine.condition_dense(S, V)
        factor = Factor(L, V, w, given, np.empty(0, np.int64), labeled)
        return cls(S, np.maximum(variance, 0.0), ridge, factor, engine), mean

    @property
    def rows(self) -> FunctionSpace:
        """The covariance of single rows: itself, unlike for blocks."""
        return self

    @property
    def size(self) -> int:
        """Number of points."""
        return len(self.S)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of S."""
        return self.engine.dtype(self.S)

    def copy(self) -> FunctionSpace:
        """Independent copy."""
        S = self.engine.copy(self.S)
        return FunctionSpace(S, self.variance.copy(), self.ridge, self.factor, self.engine)

    def covariance(self, rows: Array, columns: Array) -> Array:
        """S(rows, columns), float64."""
        return self.engine.host(self.engine.part(self.S, rows, columns)).astype(np.float64)

    def condition(self, indices: Array, noise: Array, residual: Array) -> Change:
        """Prepare labels at `indices` (b,) with noise (b,), finite, and residuals (b, k)."""
        engine = self.engine
        first, noise, residual = _merged(indices, noise, residual)
        indices = indices[first]
        rows = engine.cast(engine.rows(self.S, indices), np.float64)
        corner = engine.cast(engine.part(self.S, indices, indices), np.float64)
        L = _factor(engine, corner + engine.eye(len(noise)) * engine.put(noise))
        V = engine.triangular_solve(L, rows)
        w = engine.triangular_solve(L, engine.put(residual))
        mean = engine.host(V.T @ w)
        factor = self.factor and self.factor.appended(indices, L, V, w)
        variance = np.maximum(self.variance - engine.host(engine.column_norms(V)), 0.0)
        S = engine.cast(self.S, subtracted_type(self.dtype, self.variance, self.ridge))
        S = _own(engine, S)

        def commit() -> None:
            engine.condition_dense(S, V)
            self.S, self.variance, self.factor = S, variance, factor

        return Change(mean, commit)

    def _whole_factor(self) -> Factor:
        assert self.factor is not None  # whoever calls has asked for it
        self.factor = self.factor.whole(self.engine)
        return self.factor

    def predict(self, K_lv: Any, K_uv: Any, m: int) -> Array:
        """F - f at m new points, from their kernels, of the engine (see `Factor.of`)."""
        engine, factor = self.engine, self._whole_factor()
        if len(factor.L) == 0:
            return np.zeros((m, factor.w.shape[1]))
        return engine.host(factor.of(engine, K_lv, K_uv).T @ factor.w)

    def extended(self, K_lv: Any, K_uv: Any, K_vv: Any) -> FunctionSpace:
        """Return the space with new points appended, from their kernels, of the engine.

        As in `fit`, S becomes float64 if max K / lam of new points asks for it.
        """
        engine, factor = self.engine, self._whole_factor()
        before = engine.host(engine.cast(K_vv.diagonal(), np.float64))
        V_v = factor.V[:, :0]
        dtype, S_uv, S_vv = self.dtype, K_uv, K_vv
        variance = before
        if len(factor.L):
            dtype = subtracted_type(dtype, before, self.ridge)
            V_v = factor.of(engine, K_lv, K_uv)
            S_uv = engine.cast(K_uv, np.float64) - engine.product(engine.copy(factor.V.T), V_v)
            S_vv = engine.copy(K_vv, dtype)
            engine.condition_dense(S_vv, V_v)
            variance = before - engine.host(engine.column_norms(V_v))
        else:
            V_v = engine.empty((0, len(before)))
        largest = max(before.max(), self.variance.max())
        excess = engine.host(abs(engine.cast(S_uv, np.float64)).T) - np.sqrt(
            np.maximum(variance, 0.0)[:, None] * self.variance
        )
        if variance.min() < -1e-2 * largest or excess.max() > 1e-2 * largest:
            worst = (
                variance.argmin() if variance.min() < -1e-2 * largest else excess.max(1).argmax()
            )
            raise ValueError(
                "K_uv, K_vv and K_lv are not parts of one kernel matrix with those of the present "
                f"points: row {int(worst)} of the new ones would not be that of a covariance"
            )
        S_uv, S_vv = engine.cast(S_uv, dtype), engine.cast(S_vv, dtype)
        upper = engine.stack(engine.cast(self.S, dtype), S_uv.T)
        S = engine.copy(engine.stack(upper.T, engine.stack(S_uv, S_vv).T))
        V = engine.copy(engine.stack(factor.V.T, V_v.T).T)
        return FunctionSpace(
            S,
            np.concatenate([self.variance, np.maximum(variance, 0.0)]),
            self.ridge,
            replace(factor, V=V),
            engine,
        )

    def scorer(self, precision: str, picks: int = 0) -> KernelScorer:
        """Scores in `precision`, can be conditioned on `picks` points; S itself never changes."""
        S = self.engine.cast(self.S, stored_type(precision))
        return KernelScorer(S, self.variance, picks, self.engine, shared=S is self.S)

    def scratch(self, rows: Array, picks: int, precision: str) -> tuple[KernelScorer, Array]:
        """Return a scorer to be conditioned on picks; it holds all points."""
        return self.scorer(precision, picks), np.arange(self.size)

    def arrays(self) -> dict[str, Any]:
        """Return what a file keeps."""
        kept = {"S": self.engine.host(self.S), "variance": self.variance}
        return kept | (self._whole_factor().arrays(self.engine) if self.factor else {})

    def to(self, engine: Engine) -> FunctionSpace:
        """Independent copy of another engine."""
        if engine is self.engine:
            return self.copy()
        return FunctionSpace.restored(self.arrays(), self.ridge, engine)

    @classmethod
    def restored(cls, kept: dict[str, Array], ridge: float, engine: Engine) -> FunctionSpace:
        """Return the space of `arrays`, of this engine."""
        factor = Factor.restored(kept, engine)
        return cls(engine.put(kept["S"]), kept["variance"], ridge, factor, engine)


class KernelScorer(_Scorer):
    """Criteria over S - V^T V: each pick adds a row to V, which stays float64.

    When V has as many rows as the engine takes, they are subtracted in S, or in a copy if it is
    `shared`, and V starts anew.
    """

    def __init__(self, S: Any, variance: Array, picks: int, engine: Engine, shared: bool) -> None:
        self.S = S
        self.variance = variance
        self._rows = engine.empty((min(picks, engine.largest_downdate), len(S)))
        self._count = 0
        self._engine = engine
        self._shared = shared
        self._kept: dict[str, Any] = {}

    def score(self, criterion: str, inputs: ScoreInputs) -> Array:
        """Utilities (N_c,), float64."""
        return self._engine.score_dense(
            criterion,
            self.S,
            inputs,
            variance=self.variance,
            downdate=self._rows[: self._count] if self._count else None,
            kept=self._kept,
        )

    def _column(self, point: int) -> Any:
        column, rows = self._engine.cast(self.S[point], np.float64), self._rows[: self._count]
        return column - rows[:, point] @ rows if self._count else column

    def column(self, point: int) -> Array:
        """S(., point) (N,), float64."""
        return self._engine.host(self._column(point))

    def pick(self, point: int, noise: float) -> None:
        """Condition on `point` with a finite noise."""
        row = self._column(point) / float(np.sqrt(self.variance[point] + noise))
        if self._count == len(self._rows):
            if self._shared:
                self.S, self._shared = self._engine.copy(self.S), False
            self._engine.condition_dense(self.S, self._rows)
            self._count = 0
        self._rows[self._count] = row
        self._count += 1
        self.variance = np.maximum(self.variance - self._engine.host(row) ** 2, 0.0)
