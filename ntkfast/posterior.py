"""The kernel model of a trained network: outputs, covariance and what labels do to both."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from . import ops
from ._posterior import file
from ._posterior.blocks import (
    Space,
    expanded,
    in_blocks,
    outputs_per_point,
    points_of_rows,
)
from ._posterior.covariance import FunctionSpace, WeightSpace
from ._posterior.coverage import Given
from ._posterior.disk import DiskSpace, Source, is_on_disk, widened
from ._posterior.engines import CPU, Engine, engine_of, missing_for
from ._posterior.group import ALONE, Alone, Group, group_of, mean_of
from ._posterior.labels import missing, refuse_missing
from .arrays import (
    ArgumentTypeError,
    ArgumentValueError,
    Array,
    Library,
    as_floats,
    as_indices,
    as_noise,
    as_numpy,
    as_positive,
    as_probabilities,
    check_shape,
    library_named,
    library_of,
)
from .lock import Lock, exclusive
from .loss import Loss, as_loss, expected_labels, label_scale_of, residual_temperature_of

__all__ = ["Posterior", "group_of", "missing", "missing_for"]


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold a Ctrl-C back until the body is done (Python delivers it to the main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)
    if previous is None:  # a handler that Python did not install: it does not raise here either
        yield
        return
    received: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if received:
            signal.raise_signal(signal.SIGINT)


def _as_targets(targets: Any, n: int, k: int, loss: str) -> Array:
    """Rows (n, k), float64, from classes (n,) or rows (n, k)."""
    if targets is None:
        raise ArgumentValueError(
            "targets", f"targets is missing; expected the labels of {n} points"
        )
    refuse_missing("targets", targets)
    view = as_numpy("targets", targets)
    if view.ndim == 1 and k == 1 and view.dtype.kind == "f":
        view = view[:, None]
    if view.ndim == 2:
        if view.dtype.kind in "biu":
            view = view.astype(np.float64)
        if loss == "cross_entropy":
            return as_probabilities("targets", view, (n, k))
        return as_floats("targets", view, (n, k), np.float64)
    check_shape("targets", view, (n,))
    if n == 0:
        return np.zeros((0, k))
    if view.dtype.kind not in "iu":
        raise ArgumentTypeError(
            "targets",
            f"targets has dtype {view.dtype}; expected integer classes of shape ({n},) or "
            f"rows of shape ({n}, {k})",
        )
    if k == 1:
        raise ArgumentValueError(
            "targets", "with one output targets are numbers: pass floats of shape (n, 1)"
        )
    wrong = np.flatnonzero((view < 0) | (view >= k))
    if len(wrong):
        at = int(wrong[0])
        hint = ""
        if view.min() == 1 and view.max() == k:
            hint = f": they are numbered 0 to {k - 1}, not from 1, so pass targets - 1"
        elif view[at] < 0 and (view[view >= 0] < k).all():
            hint = ": if it means that a point has no label, leave that point out"
        raise ArgumentValueError(
            "targets", f"targets[{at}] = {view[at]} is no class of a model with {k} outputs{hint}"
        )
    rows = np.zeros((n, k))
    rows[np.arange(n), view.astype(np.int64)] = 1.0
    return rows


def _margins(outputs: Array, classes: Array) -> Array:
    """Logit of the class - mean of the other logits (n,)."""
    n, k = outputs.shape
    own = outputs[np.arange(n), classes]
    result: Array = own - (outputs.sum(1) - own) / (k - 1)
    return result


def _check_kernel(name: str, K: Any, engine: Engine) -> None:
    """Raise a ValueError unless K could be a kernel: symmetric, with K_ij^2 <= K_ii K_jj.

    Both up to 1e-3 of the largest diagonal entry, which lets tf32 kernels pass: it finds a wrong
    matrix, not rounding.
    """
    if len(K) == 0:
        return
    diagonal = engine.host(engine.cast(K.diagonal(), np.float64))
    if diagonal.min() < 0:
        at = int(diagonal.argmin())
        raise ArgumentValueError(
            name, f"{name} is no kernel matrix: entry ({at}, {at}) is {diagonal[at]:g} < 0"
        )
    tolerance, root = 1e-3 * float(diagonal.max()), np.sqrt(diagonal)
    roots = engine.put(root)
    step = 256
    for start in range(0, len(K), step):
        rows = slice(start, start + step)
        gap = abs(K[rows] - K[:, rows].T)
        if gap.max() > tolerance:
            i, j = divmod(int(gap.argmax()), len(K))
            raise ArgumentValueError(
                name,
                f"{name} is not symmetric: entry ({start + i}, {j}) is "
                f"{float(K[start + i, j]):g}, "
                f"entry ({j}, {start + i}) is {float(K[j, start + i]):g}",
            )
        excess = abs(K[rows]) - roots[rows, None] * roots
        if excess.max() > tolerance:
            i, j = divmod(int(excess.argmax()), len(K))
            raise ArgumentValueError(
                name,
                f"{name} is no kernel matrix: entry ({start + i}, {j}) is "
                f"{float(K[start + i, j]):g}, "
                f"beyond the root {root[start + i] * root[j]:g} of the product of the diagonal "
                f"entries {diagonal[start + i]:g} and {diagonal[j]:g}",
            )


# Below it the square of a covariance, which criteria sum, would leave float64 before long.
_SMALLEST = 1e-120
_SMALLEST_NOISE = 1e-140


def _check_underflow(name: str, diagonal: Array, dtype: np.dtype[Any]) -> None:
    """Raise a ValueError where kernels are so small that their products vanish, or lose digits.

    `diagonal`: K(x, x), of features (`name` says so) or of a kernel matrix of type `dtype`.
    """
    kept = float(np.finfo(dtype).tiny / np.finfo(dtype).eps)
    smallest = max(_SMALLEST, kept**2 if name == "features" else kept)
    largest = float(diagonal.max(initial=0.0))
    if 0 < largest < smallest:
        raise ArgumentValueError(
            name,
            f"{name}: K(x, x) is at most {largest:g}, and below {smallest:.0e} the numbers "
            f"computed from {dtype} are too small to be told apart: multiply the features (and by "
            "its square the kernel, ridge and noise) by a constant, which changes no ranking",
        )


def _check_noise(name: str, smallest: float) -> None:
    """Raise a ValueError for noises that leave so little of S that its square would vanish."""
    if smallest < _SMALLEST_NOISE:
        raise ArgumentValueError(
            name,
            f"{name} is {smallest:g}; below {_SMALLEST_NOISE:g} what labels leave of the kernel is "
            "too small to be told apart: multiply the features by a constant, and ridge and noise "
            "by its square, which changes no ranking",
        )


def _as_noises(noise: Any, ridge: float, n: int) -> Array:
    """Noises (n,) of labels, in (0, inf]; default: ridge."""
    if noise is None:
        return np.full(n, ridge)
    result = as_noise("noise", noise, n)
    _check_noise("noise", result.min(initial=np.inf))
    return result


def _check_overflow(*state: Array) -> None:
    """Raise a ValueError unless F and S(x, x) are finite: what has overflowed would stay so."""
    if not all(np.isfinite(array).all() for array in state):
        raise ValueError(
            "the posterior would overflow float64: features or kernel, outputs or targets are too "
            "large; rescale them"
        )


@dataclass(frozen=True)
class _Inputs:
    """Validated arguments that both representations share."""

    outputs: Array  # (N, k)
    noise: Array  # (n,)
    residual: Array  # (n, k)
    is_labeled: Array  # (N,) bool
    ridge: float
    loss: Loss
    label_scale: float
    residual_temperature: float
    prior: bool

    @classmethod
    def read(
        cls,
        *,
        N: int,
        n: int,
        outputs: Any,
        labeled_outputs: Any,
        targets: Any,
        ridge: float | Literal["auto"],
        diagonal: Array,
        loss: Loss,
        label_scale: float | Literal["auto"],
        residual_temperature: float | Literal["auto"],
        noise: Any,
        labeled_indices: Any,
        prior: bool,
        group: Alone = ALONE,
    ) -> _Inputs:
        """`diagonal`: K(x, x) of the labelled points, or of all points when n = 0.

        With a group N, outputs and diagonal are those of this rank; what else there is is the same
        on all ranks, and so is what may fail.
        """
        as_loss(loss)
        if not isinstance(prior, (bool, np.bool_)):
            raise ArgumentTypeError("prior", f"prior must be True or False; got {prior!r}")
        if prior and loss != "squared":
            raise ArgumentValueError(
                "prior",
                f"prior=True is for squared loss; {loss} asks for the outputs of a trained model, "
                "at whose optimum the given labels change nothing",
            )
        f = as_floats("outputs", outputs, (N, "k"), np.float64)
        k = f.shape[1]
        of_points = functools.partial(mean_of, ALONE if n else group)
        if loss == "cross_entropy" and k == 1:
            raise ArgumentValueError(
                "outputs",
                "outputs has one column, and the soft-max of one logit is always 1: give a "
                "one-logit classifier two columns, [0, logit], and classes 0 and 1",
            )
        if n == 0 and labeled_outputs is None:
            labeled_outputs = np.zeros((0, k))
        if n == 0 and targets is None:
            targets = np.zeros((0, k))
        f_labeled = as_floats("labeled_outputs", labeled_outputs, (n, k), np.float64)
        T = _as_targets(targets, n, k, loss)
        if isinstance(ridge, str) and ridge == "auto":
            lam = 1e-2 * of_points(diagonal)
            if not 0 < lam < np.inf:
                raise ArgumentValueError(
                    "ridge",
                    f'ridge="auto" is 1e-2 times the mean of K(x, x), which is {100 * lam:g}: '
                    "give ridge > 0",
                )
        else:
            lam = as_positive("ridge", ridge)
        _check_noise("ridge", lam)
        scale = label_scale_of(label_scale, loss)
        if scale is None:
            logits, classes = (f_labeled, T.argmax(1)) if n else (f, f.argmax(1))
            scale = as_positive("label_scale", max(1.0, of_points(_margins(logits, classes))))
        points = N if group is ALONE else group.points
        is_labeled = np.zeros(points, bool)
        if labeled_indices is not None:
            is_labeled[as_indices("labeled_indices", labeled_indices, points, empty=True)] = True
        return cls(
            outputs=f.copy(),  # f may be the caller's memory
            noise=_as_noises(noise, lam, n),
            residual=T - f_labeled if loss == "squared" else np.zeros((n, k)),
            is_labeled=is_labeled,
            ridge=lam,
            loss=loss,
            label_scale=scale,
            residual_temperature=residual_temperature_of(residual_temperature, loss),
            prior=bool(prior),
        )

    def informative(self, per_point: int) -> tuple[Array, Array, Array]:
        """Rows of labels with a finite noise, k for each in blocks; their noises and residuals."""
        finite = np.flatnonzero(np.isfinite(self.noise))
        if per_point == 1:
            return finite, self.noise[finite], self.residual[finite]
        noise = np.repeat(self.noise[finite], per_point)
        return expanded(finite, per_point), noise, self.residual[finite].reshape(-1, 1)


class Posterior:
    r"""What the trained network, linearised and retrained on labels, predicts, and how surely.

    For outputs f, the tangent kernel K, labelled points L with noises D = lam I and residuals r_L:

    .. math::

        F(x) = f(x) + K(x, L) (K_{LL} + D)^{-1} r_L, \qquad
        S(x, x') = K(x, x') - K(x, L) (K_{LL} + D)^{-1} K(L, x')

    with r_L = targets - f(L) for squared loss, and 0 for cross-entropy, where the network is at its
    optimum on the labelled points. (Mohamadi, Bae, Sutherland, NeurIPS 2022, arXiv 2206.12569,
    eq. 11, which has lam = 0.)

    Build one with `from_features` or `from_kernel`. The N points of interest, candidates and
    evaluation points together, are addressed by their position everywhere. Array results are new
    arrays in the library (numpy, torch, ...) of the features or kernel given, on its device.

    A kernel is scalar, as above, or matrix-valued: then K(x, x') and S(x, x') are k x k blocks, the
    noise of a label is lam I_k, and nothing else changes (docs/method.md, section 6).

    On a GPU (torch CUDA tensors or cupy arrays as features or kernel) everything is supported that
    is on a CPU. What grows with N d, N^2 or d^2 lies and is computed there, on the current stream;
    means, variances and indices are kept on the host. The other arguments may be on
    the same GPU or on the host. `to` moves a posterior between devices.

    Threads may share a posterior: calls that read or change its covariance take turns, those of
    `utilities` and `select` included.

    Attributes
    ----------
    ridge : float
        lam: noise of a label, in units of the kernel.
    loss : {"squared", "cross_entropy"}
        How the network was trained.
    label_scale : float
        Size of the residual of one label in units of the outputs: 1 for squared loss.
    residual_temperature : float
        T_r of a label's residual label_scale (e_y - softmax(F / T_r)); 1 for squared loss, whose
        residual is e_y - F.
    prior : bool
        Whether f is a mean before any label, and the trained model is F.

    Examples
    --------
    >>> import numpy as np, ntkfast as nf
    >>> phi, f = np.random.randn(100, 64), np.random.randn(100, 3)
    >>> post = nf.Posterior.from_features(phi, f, None, None, None, loss="cross_entropy")
    >>> post.condition([5, 7], [0, 2])
    >>> post.mean.shape, post.labeled
    ((100, 3), array([5, 7]))
    """

    def __init__(
        self,
        space: Space,
        mean: Array,
        inputs: _Inputs,
        labels: int,
        library: Library,
        given: Given | None = None,
    ) -> None:
        self.ridge: float = inputs.ridge
        self.loss: Loss = inputs.loss
        self.label_scale: float = inputs.label_scale
        self.residual_temperature: float = inputs.residual_temperature
        self.prior: bool = inputs.prior
        self._space = space
        self._outputs = mean if inputs.prior else inputs.outputs  # of the trained model
        self._mean = mean
        self._is_labeled = inputs.is_labeled
        self._labels = labels
        self._given = given
        self._library = library
        self._warned = False
        self._lock = Lock()

    @classmethod
    def from_features(
        cls,
        features: Any,
        outputs: Any,
        labeled_features: Any,
        labeled_outputs: Any,
        targets: Any,
        ridge: float | Literal["auto"] = "auto",
        *,
        loss: Loss = "squared",
        label_scale: float | Literal["auto"] = "auto",
        residual_temperature: float | Literal["auto"] = "auto",
        noise: Any = None,
        labeled_indices: Any = None,
        prior: bool = False,
        group: Any = None,
    ) -> Posterior:
        """Posterior of the kernel K(x, x') = <phi(x), phi(x')> of explicit features.

        Parameters
        ----------
        features : array (N, d)
            phi of the points of interest, float32 or float64 (bfloat16 tensors become float32).
            The features kept inside have this type; factors, variances and F are float64. Where
            they are decides where everything is computed. For a kernel with k x k blocks (N k, d),
            row ``i k + a`` being output a of point i, as `EmpiricalNTK.features` gives them for
            ``outputs="full"``. The shape of `outputs` tells which, for k >= 2.

            A memory map of numpy (``np.load(path, mmap_mode="r")``, `np.memmap`), of float16, too,
            stays on disk; see Notes. ``np.array(features)`` would read it into memory.
        outputs : array (N, k)
            Outputs f of the trained network: raw for squared loss, logits for cross-entropy.
        labeled_features : array (n, d) or None
            phi of the labelled points; None for n = 0, like the next two. With blocks (n k, d).
        labeled_outputs : array (n, k) or None
            f of the labelled points.
        targets : array or None
            Classes (n,), integers in [0, k), or rows (n, k): any finite targets for squared loss,
            distributions for cross-entropy. None may be missing (None, NaN, masked, ...): leave
            points without a label out.
        ridge : float or "auto"
            lam > 0, noise of a label in units of the kernel; "auto": 1e-2 times the mean of K(x, x)
            over the labelled points, all points when n = 0.
        loss : {"squared", "cross_entropy"}
            How the network was trained.
        label_scale : float or "auto"
            Cross-entropy only: size of the residual of one label, in units of the logits. "auto":
            mean over the labelled points of (logit of the label - mean of the other logits), at
            least 1; for n = 0 over all points with their arg-max labels.
        residual_temperature : float or "auto"
            Cross-entropy only: T_r, from 1e-30 to 1e30, of the residual
            label_scale (e_y - softmax(F / T_r)) that a label adds, in `condition` and in every
            look-ahead criterion alike. "auto": 2, because the soft-max of an overconfident network
            saturates: it takes back next to nothing of what is wrong. 1 is the gradient of the
            cross-entropy itself.
        noise : array (n,), optional
            Noise of each labelled point in (0, inf] instead of lam; inf: the label tells nothing,
            though the point counts as labelled, and covers others (`max_herding`, ...).
        labeled_indices : array, optional
            Which of the N points are already labelled (indices or a mask): never selected again.
        prior : bool
            Squared loss only. False: `outputs` are those of a model that was trained on the labels.
            True: they are the mean before any label, zeros for kernel ridge regression or a
            Gaussian process, and the trained model is F, after `condition` and `extend` too. It is
            what criteria compare a label's effect with (`mlmoc`, `emoc`, `label_flips`) and where
            those of Fisher weights take the classes' probabilities from.
        group : torch.distributed.ProcessGroup, optional
            The points are shared by the ranks of this group, and every rank makes every call. Each
            passes the features and outputs of its own points, at least one; the points are numbered
            over all ranks, in their order. All other arguments are those of all ranks together, and
            must be the same on each, labelled features included: that is checked.

        Returns
        -------
        Posterior

        Raises
        ------
        ValueError
            Shapes that disagree, NaN or inf (located), numbers that overflow or vanish (K(x, x)
            below 1e-120 everywhere, in float32 below 1e-62), ridge <= 0, classes out of range, ...
        TypeError
            Features or outputs that are not float32 or float64.
        RuntimeError
            Arrays on several devices, or on one that this build or this machine cannot use (the
            message says what is missing): nothing is computed on the CPU instead. With a group:
            another rank has failed, died, or not called within the group's time-out.

        Warns
        -----
        UserWarning
            The labels outnumber a quarter of d: a sketch of so few dimensions is too coarse.

        Notes
        -----
        Time O(N d min(n, d)) and one copy of all features, the labelled ones for coverage: whitened
        features psi = W phi with W^T W = (I + Phi_L^T D^-1 Phi_L)^-1 represent
        S(x, x') = <psi(x), psi(x')> without any subtraction. For n >= d/2 W comes from the Cholesky
        factor of that matrix, else from the one of the labelled points' Gram matrix.

        With features on disk psi is formed block by block wherever it is read, and is the same, bit
        for bit; what labels do to it is done again each time. In memory are 16 k + 9 bytes for each
        point, while points are ranked or picked about 200 more, some blocks of 64 MiB, 256 MiB of
        candidates, and d x d matrices in float64. Building and `condition` read the disk once,
        `utilities` and `select` once for each sum and each group of picks (docs/large-pools.md).
        `extend` is refused, as is another device; files of `save` and pickles refer to the
        features.

        With a group the results of `utilities`, `select`, `condition`, `labeled` and `covariance`
        are those of all points, the same on every rank, and the same, bit for bit, for any number
        of ranks; `mean` and `variance` are those of the rank's own points, and `predict` is for
        whatever points a rank asks for. A rank that dies or passes something else ends a call on
        all ranks within the time-out of the group, and nothing has changed.
        """
        library = library_of(features)
        engine = engine_of(library)
        pool = group_of(group, library)
        facts: dict[str, Any] = {}
        with pool.together("from_features", facts):
            outputs, labeled_outputs, targets, noise, labeled_indices = library.fetch(
                outputs=outputs,
                labeled_outputs=labeled_outputs,
                targets=targets,
                noise=noise,
                labeled_indices=labeled_indices,
            )
            on_disk = is_on_disk(features)
            phi: Any
            if on_disk:
                phi = Source("features", features, ("N", "d"))
            else:
                phi = engine.floats("features", features, ("N", "d"))
            rows, d = phi.shape
            per_point = outputs_per_point("features", rows, outputs)
            if per_point > 1 and pool is not ALONE:
                raise ArgumentValueError(
                    "group",
                    "group: k x k blocks (N k rows of features) are ranked by one process, which "
                    "may have them on disk: leave group out, or pass the features (N, d) of a "
                    "scalar kernel, as for outputs='sum'",
                )
            if labeled_features is None:
                labeled_features = np.empty((0, d))
            if on_disk or is_on_disk(labeled_features):
                labeled_features = widened(labeled_features)  # rows of a store
            labeled = engine.floats("labeled_features", labeled_features, (None, d))
            n = points_of_rows("labeled_features", len(labeled), per_point)
            if n:
                diagonal = engine.host(engine.squared_norms(labeled))
            else:
                diagonal = phi.norms() if on_disk else engine.host(engine.squared_norms(phi))
            dtype = phi.dtype if on_disk else engine.dtype(phi)
            if pool is not ALONE:
                f = as_floats("outputs", outputs, (rows, "k"), np.float64)
                facts |= {
                    "features.shape[1]": d,
                    "outputs.shape[1]": f.shape[1],
                    "features.dtype": str(dtype),
                    "labeled_features": engine.host(labeled),
                    "labeled_outputs": labeled_outputs,
                    "targets": targets,
                    "ridge": ridge,
                    "loss": loss,
                    "label_scale": label_scale,
                    "residual_temperature": residual_temperature,
                    "noise": noise,
                    "labeled_indices": labeled_indices,
                    "prior": prior,
                    "the instruction set (NTKFAST_CPU_ISA forces one)": ops.cpu_isa(),
                }
        if pool is not ALONE:
            pool = pool.with_points(pool.gather([rows])[:, 0].astype(np.int64))
        elif on_disk:
            pool = pool.with_points(np.array([rows // per_point]))
        _check_underflow("features", pool.gather([diagonal.max(initial=0.0)]), dtype)
        inputs = _Inputs.read(
            group=pool,
            N=rows // per_point,
            n=n,
            outputs=outputs,
            labeled_outputs=labeled_outputs,
            targets=targets,
            ridge=ridge,
            diagonal=diagonal,
            loss=loss,
            label_scale=label_scale,
            residual_temperature=residual_temperature,
            noise=noise,
            labeled_indices=labeled_indices,
            prior=prior,
        )
        informative, noise, residual = inputs.informative(per_point)
        given, labeled = Given(engine.copy(labeled)), engine.rows(labeled, informative)
        with pool.together("from_features", {}):
            fit = DiskSpace.fit if on_disk else WeightSpace.fit
            of_rows = pool.with_points(np.array([rows])) if per_point > 1 and on_disk else pool
            space, change = fit(phi, labeled, noise, residual, engine, of_rows)
            post = cls._of(space, change, inputs, n, library, per_point, given)
        post._warn_if_too_coarse()
        return post

    @classmethod
    def from_kernel(
        cls,
        K_uu: Any,
        K_lu: Any,
        K_ll: Any,
        outputs: Any,
        labeled_outputs: Any,
        targets: Any,
        ridge: float | Literal["auto"] = "auto",
        *,
        loss: Loss = "squared",
        label_scale: float | Literal["auto"] = "auto",
        residual_temperature: float | Literal["auto"] = "auto",
        noise: Any = None,
        labeled_indices: Any = None,
        prior: bool = False,
    ) -> Posterior:
        """Posterior of a kernel given by its matrix, for up to a few 10^4 rows.

        Parameters
        ----------
        K_uu : array (N, N)
            Kernel of the points of interest, symmetric, float32 or float64; where it is decides
            where everything is computed. S is kept in this type; once it has been given labels, in
            float64 also when max K / ridge > 1e4, where float32 could lose the ranking. With k x k
            blocks (N k, N k): entry ``(i k + a, j k + b)`` is the kernel of output a of point i and
            output b of point j, as `EmpiricalNTK.gram` gives it for ``outputs="full"``.
            The shape of `outputs` tells which, for k >= 2.
        K_lu : array (n, N) or None
            Kernel of labelled points and points of interest; None for n = 0, like K_ll. With blocks
            (n k, N k).
        K_ll : array (n, n) or None
            Kernel of the labelled points. With blocks (n k, n k).
        outputs, labeled_outputs, targets, ridge, loss
            As in `from_features`.
        label_scale, residual_temperature, noise, labeled_indices, prior
            As in `from_features`.

        Returns
        -------
        Posterior

        Raises
        ------
        ValueError
            As `from_features`, and when a matrix is not symmetric, or they are not of one kernel.
        TypeError, RuntimeError
            As `from_features`.

        Notes
        -----
        Time O(n^3 + n N^2) in float64. Memory: one copy of K_uu, and N + n float64 for every label,
        those of `condition` too, for `predict` and `extend` at new points.
        """
        library = library_of(K_uu)
        engine = engine_of(library)
        outputs, labeled_outputs, targets, noise, labeled_indices = library.fetch(
            outputs=outputs,
            labeled_outputs=labeled_outputs,
            targets=targets,
            noise=noise,
            labeled_indices=labeled_indices,
        )
        K = engine.floats("K_uu", K_uu, ("N", "N"))
        rows = len(K)
        if K.shape[1] != rows:
            raise ArgumentValueError(
                "K_uu",
                f"K_uu has shape {tuple(K.shape)}; expected (N, N), or (N k, N k) for blocks",
            )
        per_point = outputs_per_point("K_uu", rows, outputs)
        if K_ll is None:
            K_ll = np.empty((0, 0))
        K_labeled = engine.floats("K_ll", K_ll, (None, None))
        if K_labeled.shape[1] != len(K_labeled):
            raise ArgumentValueError(
                "K_ll",
                f"K_ll has shape {tuple(K_labeled.shape)}; expected (n, n), or (n k, n k) for "
                "blocks",
            )
        n = points_of_rows("K_ll", len(K_labeled), per_point)
        if K_lu is None:
            K_lu = np.empty((0, rows))
        K_cross = engine.floats("K_lu", K_lu, (n * per_point, rows))
        _check_kernel("K_uu", K, engine)
        _check_kernel("K_ll", K_labeled, engine)
        diagonal = engine.host((K_labeled if n else K).diagonal())
        _check_underflow("kernel", diagonal, engine.dtype(K))
        inputs = _Inputs.read(
            N=rows // per_point,
            n=n,
            outputs=outputs,
            labeled_outputs=labeled_outputs,
            targets=targets,
            ridge=ridge,
            diagonal=diagonal.astype(np.float64),
            loss=loss,
            label_scale=label_scale,
            residual_temperature=residual_temperature,
            noise=noise,
            labeled_indices=labeled_indices,
            prior=prior,
        )
        informative, noise, residual = inputs.informative(per_point)
        space, change = FunctionSpace.fit(
            K,
            engine.rows(K_cross, informative),
            engine.part(K_labeled, informative, informative),
            noise,
            inputs.ridge,
            residual,
            engine,
            informative,
            n * per_point,
            per_point,
        )
        given = Given(diagonal=np.empty(0))
        if n:
            untold = np.flatnonzero(np.isinf(inputs.noise)) if per_point == 1 else np.empty(0, int)
            rows_of = [engine.host(engine.rows(K, untold)) for K in (K_cross, K_labeled)]
            given = Given(
                None,
                diagonal.astype(np.float64),
                untold,
                *(part.astype(np.float64) for part in rows_of),
            )
        return cls._of(space, change, inputs, n, library, per_point, given)

    @classmethod
    def _of(
        cls,
        space: WeightSpace | FunctionSpace,
        change: Array,
        inputs: _Inputs,
        n: int,
        library: Library,
        per_point: int,
        given: Given,
    ) -> Posterior:
        """Posterior of a space with so many rows per point, whose fit changes F by `change`."""
        mean = inputs.outputs + change.reshape(inputs.outputs.shape)
        _check_overflow(mean, space.variance)
        kept = given if per_point == 1 else None
        return cls(in_blocks(space, per_point), mean, inputs, n, library, kept)

    def __repr__(self) -> str:
        N, k, space = len(self), self._mean.shape[1], self._rows
        kept = f"{space.dim} features" if isinstance(space, WeightSpace) else "a kernel"
        kept += f" of {k} x {k} blocks" if self._space.per_point > 1 else ""
        settings = f"loss={self.loss!r}, ridge={self.ridge:.4g}"
        if self.loss == "cross_entropy":
            settings += f", label_scale={self.label_scale:.4g}"
            settings += f", residual_temperature={self.residual_temperature:.4g}"
        elif self.prior:
            settings += ", prior=True"
        return (
            f"<Posterior of {N} points with {k} outputs from {kept} ({space.dtype}), given "
            f"{self._labels} labels: {settings}>"
        )

    def __len__(self) -> int:
        """Return the number of points N."""
        return len(self._is_labeled)

    @property
    def mean(self) -> Any:
        """F (N, k), float64: the outputs after training on the labels.

        With a group, here and for `variance`, of this rank's own points.
        """
        return self._library.wrap(np.array(self._mean))

    @property
    def variance(self) -> Any:
        """S(x, x) (N,), float64; with k x k blocks the variance of every output, (N, k)."""
        return self._library.wrap(np.array(self._space.variance))

    @property
    def labeled(self) -> Any:
        """Points known to be labelled: their indices in increasing order, int64."""
        return self._library.wrap(np.flatnonzero(self._is_labeled))

    @exclusive
    def covariance(self, rows: Any, cols: Any) -> Any:
        """S(rows, cols), float64, for indices or masks of the N points.

        Shape (r, c); with k x k blocks (r k, c k), row i k + a being output a of ``rows[i]``.
        """
        facts: dict[str, Any] = {}
        with self._group.together("covariance", facts):
            rows, cols = self._library.fetch(rows=rows, cols=cols)
            i = facts["rows"] = as_indices("rows", rows, len(self), duplicates=True)
            j = facts["cols"] = as_indices("cols", cols, len(self), duplicates=True)
        return self._library.wrap(self._space.covariance(i, j))

    @exclusive
    def copy(self) -> Posterior:
        """Return an independent copy."""
        return self._twin(self._space.copy(), self._library)

    __copy__ = copy  # a shallow copy would share a covariance that changes in place

    def __deepcopy__(self, memo: dict[int, Any]) -> Posterior:
        return self.copy()

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self._group, Group):
            raise ValueError(
                "a posterior whose points are shared by ranks (group=) cannot be pickled, because "
                "a pickle has no ranks: use save and Posterior.load(path, group=...)"
            )
        # A copy, because it is written after the lock is free (`save` needs none).
        return self.copy().__dict__

    def _twin(self, space: Space, library: Library) -> Posterior:
        """Return a copy of everything but the space, which is given."""
        twin = object.__new__(type(self))
        twin.__dict__ |= self.__dict__
        twin._space, twin._library, twin._lock = space, library, Lock()
        twin._mean, twin._outputs = np.array(self._mean), np.array(self._outputs)
        twin._is_labeled = np.array(self._is_labeled)
        return twin

    @property
    def _group(self) -> Alone:
        """Who shares the points."""
        return self._space.rows.group

    @exclusive
    def to(self, target: Any) -> Posterior:
        """Return an independent copy on another device, or in another library.

        Parameters
        ----------
        target : str, torch.device or array
            A torch device ("cuda", "cuda:1", "cpu"), or an array (torch, cupy, numpy, ...) whose
            library and device the copy takes, also for its results.

        Returns
        -------
        Posterior

        Raises
        ------
        RuntimeError
            A device that this build or this machine cannot use: the message says what is missing.

        Examples
        --------
        >>> post = nf.Posterior.load("posterior.npz").to("cuda")  # doctest: +SKIP
        """
        library = library_named(target)
        engine = engine_of(library)
        there = library == self._library
        if self._rows.on_disk and engine.on_gpu:
            raise ValueError(
                "to: features on disk are worked on by the CPU: build the posterior from one array "
                "in memory, on that device"
            )
        space = self._space.copy() if there else self._space.to(engine)
        if isinstance(self._group, Group):
            space.rows.group = self._group.of(library)
        twin = self._twin(space, library)
        twin._given = self._given and self._given.to(self._space.engine, engine)
        return twin

    def condition(self, indices: Any, targets: Any, noise: Any = None) -> None:
        r"""Learn real labels of some of the N points, in place and without SGD.

        .. math::

            F \leftarrow F + S_{\cdot B} (S_{BB} + D)^{-1} r_B, \qquad
            S \leftarrow S - S_{\cdot B} (S_{BB} + D)^{-1} S_{B \cdot}

        with the residuals of all these labels B, label_scale * (targets - E), taken before the step
        (E = F for squared loss, softmax(F / residual_temperature) for cross-entropy). For squared
        loss one by one, all at once and from scratch are the same. The points count as labelled
        afterwards.

        Parameters
        ----------
        indices : array (b,)
            Points, or a mask of the N points (labels in increasing order of the points). A point
            given twice, or labelled before, is two noisy observations.
        targets : array
            Classes (b,) or rows (b, k), as in `from_features`.
        noise : array (b,), optional
            Noise of each label in (0, inf]; default: ridge. inf: as in `from_features`.

        Notes
        -----
        Rank b: O(N d b) with features, O(N^2 b) with a kernel; the first labels of a float32 kernel
        make S float64 where max K / ridge > 1e4 (see `from_kernel`). A call that fails (out of a
        GPU's memory, too), or is stopped by Ctrl-C, has changed nothing, or everything when the
        signal came during the update itself.
        """
        with self._lock:
            self._condition(indices, targets, noise)
        self._warn_if_too_coarse()

    def _condition(self, indices: Any, targets: Any, noise: Any) -> None:
        group = self._group
        facts: dict[str, Any] = {}
        with group.together("condition", facts):
            indices, targets, noise = self._library.fetch(
                indices=indices, targets=targets, noise=noise
            )
            points = as_indices("indices", indices, len(self), duplicates=True)
            b, k = len(points), self._mean.shape[1]
            T = _as_targets(targets, b, k, self.loss)
            D = _as_noises(noise, self.ridge, b)
            facts |= {"indices": points, "targets": T, "noise": D}
        F = group.rows(CPU, points, lambda own: self._mean[own])
        expected = expected_labels(F, self.loss, self.residual_temperature)
        residual = self.label_scale * (T - expected)
        informative = np.isfinite(D)
        mean, commit = self._mean, None
        if informative.any():
            change = self._space.condition(
                points[informative], D[informative], residual[informative]
            )
            with group.together("condition", {}):
                mean, commit = mean + change.mean, change.commit
                _check_overflow(mean)  # variances only shrink
        is_labeled = self._is_labeled.copy()
        is_labeled[points] = True
        with _uninterrupted():
            if commit is not None:
                commit()
            self._mean, self._is_labeled = mean, is_labeled
            self._labels += b
            if self.prior:
                self._outputs = mean

    @property
    def _rows(self) -> WeightSpace | FunctionSpace:
        """The scalar space: of the points, or of k rows for each."""
        return self._space.rows

    def _new_points(
        self, method: str, features: Any, outputs: Any, kernels: dict[str, Any]
    ) -> tuple[list[Any], Array]:
        """Read outputs (m, k) of new points, and features (m, d) or `kernels`; k rows in blocks.

        Kernels that are not needed may be None, and stay so.
        """
        space, N = self._rows, len(self)
        per_point = self._space.per_point
        (outputs,) = self._library.fetch(outputs=outputs)
        if isinstance(space, WeightSpace):
            if features is None or any(K is not None for K in kernels.values()):
                raise TypeError(
                    f"{method} of a posterior from features takes features and outputs of the new "
                    f"points; {', '.join(kernels)} belong to one from a kernel"
                )
            if isinstance(space, DiskSpace):
                features = widened(features)  # rows of a store
            phi = space.engine.floats("features", features, ("m", space.dim))
            m = points_of_rows("features", len(phi), per_point)
            return [phi], as_floats("outputs", outputs, (m, self._mean.shape[1]), np.float64)
        if features is not None:
            raise TypeError(
                f"{method} of a posterior from a kernel takes no features, but outputs and "
                f"{', '.join(f'{name}=' for name in kernels)}: the kernel of the labelled points "
                "(l) and of the N points (u) with the new ones (v)"
            )
        f = as_floats("outputs", outputs, ("m", self._mean.shape[1]), np.float64)
        factor = space.factor
        if factor is None:
            raise ValueError(
                f"this posterior comes from a file of an earlier version, which holds too little "
                f"for {method}: build it again with from_kernel"
            )
        m, labeled = len(f), factor.labeled
        untold = self._given is not None and len(self._given.untold) > 0
        needed = {
            "K_lv": (
                labeled,
                len(factor.given) > 0 or (method == "extend" and untold),
                "the labelled points given to from_kernel",
            ),
            "K_uv": (
                N * per_point,
                method == "extend" or len(factor.points) + len(factor.later) > 0,
                "the N points",
            ),
            "K_vv": (m * per_point, True, "the new points"),
        }
        read: list[Any] = []
        for name, K in kernels.items():
            rows, is_needed, of = needed[name]
            if K is None and is_needed:
                raise ArgumentValueError(
                    name,
                    f"{name} is missing: the kernel of {of} and the new points, of shape "
                    f"({rows}, {m * per_point})",
                )
            shape = (rows, m * per_point)
            read.append(None if K is None else space.engine.floats(name, K, shape))
        return read, f

    @exclusive
    def extend(
        self,
        features: Any = None,
        outputs: Any = None,
        *,
        K_lv: Any = None,
        K_uv: Any = None,
        K_vv: Any = None,
    ) -> None:
        """Append new points; their indices follow those of the present points.

        Parameters
        ----------
        features : array (m, d), optional
            For a posterior from features: phi of the new points, converted to the type of the
            present ones; (m k, d) with blocks.
        outputs : array (m, k)
            Outputs of the trained network.
        K_lv, K_uv, K_vv : array (n, m), (N, m), (m, m), optional
            For a posterior from a kernel: kernel of the labelled points given to `from_kernel` (in
            that order; not needed without any), of the N points, and of the new points, each with
            the new points: ``gram(X_labeled, X_new)``, ``gram(X_points, X_new)``, ``gram(X_new)``.
            With blocks k rows and columns for each point.

        Raises
        ------
        ValueError, TypeError
            As `from_features` and `from_kernel`; nothing has changed then.
        """
        if self._rows.in_parts:
            raise ValueError(
                "extend needs all features in the memory of one process, and those of this "
                "posterior are on disk or shared by ranks (group=): write the new points into the "
                "files of features, and build the posterior again with all labels"
            )
        kernels = {"K_lv": K_lv, "K_uv": K_uv, "K_vv": K_vv}
        read, f = self._new_points("extend", features, outputs, kernels)
        space, given = self._rows, self._given
        extended: Space
        if isinstance(space, WeightSpace):
            with np.errstate(over="ignore"):  # reported as what it is
                converted = space.engine.cast(read[0], space.dtype)
            space.engine.check_finite("features", converted, f", converted to {space.dtype},")
            extended = cast(WeightSpace, self._space).extended(
                converted
            )  # or a space of blocks of one
        else:
            _check_kernel("K_vv", read[2], space.engine)
            extended = cast(FunctionSpace, self._space).extended(*read)
            if given is not None:
                given = given.extended(None if read[0] is None else space.engine.host(read[0]))
        mean = np.concatenate([self._mean, f + self._change_at(read, len(f))])
        _check_overflow(mean, extended.variance)
        f = mean if self.prior else np.concatenate([self._outputs, f])
        is_labeled = np.concatenate([self._is_labeled, np.zeros(len(mean) - len(self), bool)])
        with _uninterrupted():
            self._space, self._mean, self._outputs = extended, mean, f
            self._is_labeled, self._given = is_labeled, given

    @exclusive
    def predict(
        self, features: Any = None, outputs: Any = None, *, K_lv: Any = None, K_uv: Any = None
    ) -> Any:
        """F at points that need not be among the N.

        Parameters
        ----------
        features : array (m, d), optional
            For a posterior from features: phi of the points; (m k, d) with blocks.
        outputs : array (m, k)
            Outputs of the trained network.
        K_lv, K_uv : array (n, m), (N, m), optional
            For a posterior from a kernel: kernel of the labelled points given to `from_kernel` and
            of the N points, each with the new points, as for `extend`. K_uv is needed once some of
            the N points have been labelled by `condition`, K_lv if any were given.

        Returns
        -------
        array (m, k), float64
            In the library of `features`, or of the posterior's kernel.
        """
        kernels = {"K_lv": K_lv, "K_uv": K_uv}
        read, f = self._new_points("predict", features, outputs, kernels)
        library = self._library if features is None else library_of(features)
        return library.wrap(f + self._change_at(read, len(f)))

    def _change_at(self, read: list[Any], m: int) -> Array:
        """F - f (m, k) at the m new points of `_new_points`."""
        if isinstance(self._rows, WeightSpace):
            return cast(WeightSpace, self._space).predict(read[0])
        return cast(FunctionSpace, self._space).predict(read[0], read[1], m)

    def _warn_if_too_coarse(self) -> None:
        space = self._rows
        if self._warned or not isinstance(space, WeightSpace):
            return
        d = space.dim
        per_point = self._space.per_point
        if 4 * self._labels * per_point > d:
            self._warned = True
            labels = f"{self._labels} labels" + (f" x {per_point} outputs" if per_point > 1 else "")
            warnings.warn(
                f"{labels} outnumber a quarter of the {d} feature dimensions: if the "
                "features are a sketch of longer ones, what is left of the kernel is mostly its "
                "error; use a larger sketch (exact features are fine)",
                UserWarning,
                stacklevel=3,
            )

    @exclusive
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the posterior to an .npz file (no pickle), all of it or nothing.

        Of a posterior on a GPU it is the same file.

        Features on disk stay where they are: the file says where, seen from itself and from the
        root, and what they were.

        With a group every rank writes the state of its own points, to a file of its own:
        ``posterior.npz`` becomes ``posterior-0-of-4.npz``, ``posterior-1-of-4.npz``, ...; none of
        them takes its name before all are written.

        Parameters
        ----------
        path : path
            The file's name, used as it is without a group; an existing file is replaced once the
            new one is whole. Of several writers at once the last one stays.

        Raises
        ------
        ValueError
            Features in a memory map that no file holds: of mode "c", or of a file without a name.
        OSError
            The file cannot be written.
        """
        group = self._group
        state = file.Stored(
            self._space,
            self._outputs,
            self._mean,
            self._is_labeled,
            self.ridge,
            self.loss,
            self.label_scale,
            self._labels,
            self.residual_temperature,
            self._given,
            group.offsets if isinstance(group, Group) else None,
            self.prior,
        )
        with contextlib.ExitStack() as written, group.together("save", {}):
            written.enter_context(file.writing(file.part(path, group), state))

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], features: Any = None, *, group: Any = None
    ) -> Posterior:
        """Read a posterior written by `save`; its results are numpy arrays.

        ``Posterior.load(path).to("cuda")`` is on a GPU again.

        Parameters
        ----------
        path : path
            As it was given to `save`.
        features : memmap, optional
            Where the features of a posterior on disk lie now. By default they are looked for where
            they lay, seen from the file and then from the root.
        group : torch.distributed.ProcessGroup, optional
            Of a posterior that ranks share: as many ranks as have saved it, each of which gets the
            points that it had.

        Raises
        ------
        ValueError
            The file is damaged, or no posterior, or of a later version, or of another number of
            ranks; the features on disk have been changed since, or are not there. 256 of their rows
            are always compared; all of them, in one pass, where their file has been written to or
            copied since, or is passed as `features`.
        FileNotFoundError
            There is none of one process, or of so many ranks.
        """
        library = Library("numpy")
        pool = group_of(group, library)
        facts: dict[str, Any] = {}
        with pool.together("load", facts):
            stored = file.read(file.part_there(path, pool), features, pool)
            facts |= {
                name: getattr(stored, name)
                for name in ("is_labeled", "labels", "ridge", "label_scale", "offsets")
            }
            if isinstance(stored.space, WeightSpace):
                facts["what has been learnt"] = stored.space.engine.host(stored.space.theta)
        rows = stored.space.rows
        if stored.offsets is not None and pool is not ALONE:
            rows.group = pool.with_points(np.diff(stored.offsets))
        elif rows.on_disk:
            rows.group = pool.with_points(np.array([rows.size]))
        inputs = _Inputs(
            outputs=stored.outputs,
            noise=np.empty(0),
            residual=np.empty((0, stored.outputs.shape[1])),
            is_labeled=stored.is_labeled,
            ridge=stored.ridge,
            loss=stored.loss,
            label_scale=stored.label_scale,
            residual_temperature=stored.residual_temperature,
            prior=stored.prior,
        )
        return cls(stored.space, stored.mean, inputs, stored.labels, library, stored.given)
