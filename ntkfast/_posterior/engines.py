"""What computes on the large arrays: `ntkfast.ops` on numpy arrays, or `ntkfast.cuda_ops` on a GPU.

`covariance` and `moments` are written once, on top of an engine. Both engines have the same
methods. They take and return *arrays of the engine*, in the memory that it works on: numpy arrays,
or torch or cupy arrays of one GPU. `put` and `host` are the only ways in and out; whoever calls
`host` waits for the GPU. Between the calls such arrays know ``@``, ``.T``, ``+``, ``*`` and slices.

Small things stay numpy float64 on the host whatever the engine: means, variances, noises, indices,
utilities.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import cuda_ops, ops
from ..arrays import (
    ArgumentTypeError,
    Array,
    Library,
    as_floats,
    check_dense,
    check_finite,
    check_shape,
)
from ..ops import ScoreInputs
from .precision import PRODUCTS

__all__ = ["CPU", "CpuEngine", "Engine", "GpuEngine", "engine_of", "missing_for"]

# Columns that a product on a GPU forms in one pass over the rows (kMostRowProducts in csrc/cuda).
_FEW_COLUMNS = 16
# Bytes of float64 rows that a product on a GPU converts at once.
_PRODUCT_BYTES = 1 << 27


def missing_for(library: Library) -> str:
    """Return what is missing for computing on arrays of this library, or an empty string."""
    return "" if library.device is None else cuda_ops.problem()


class CpuEngine:
    """numpy arrays."""

    on_gpu = False
    has_bf16 = False
    # What a float64 operation costs, in operations of the products of pairs in float32.
    float64_cost = 2.0
    # Up to so many rows of picks are subtracted from each pair while it is scored; then from S.
    largest_downdate = sys.maxsize
    # Rows of a leaf of sums over points, a multiple of the depth of a slice of products (kDepth).
    leaf_rows = 1 << 14

    def __reduce__(self) -> str:
        return "CPU"  # copies and pickles of a space compute with the one there is

    def floats(self, name: str, array: Any, shape: tuple[int | str | None, ...]) -> Array:
        """Read an argument, see `as_floats`; the caller's memory where possible."""
        return as_floats(name, array, shape)

    def check_finite(self, name: str, array: Array, note: str = "") -> None:
        """See `arrays.check_finite`; `array` is a matrix."""
        check_finite(name, array, note=note)

    def put(self, array: Array) -> Array:
        """Make an array of the engine of a numpy array."""
        return array

    def host(self, array: Array) -> Array:
        """Bring an array of the engine to the host."""
        return array

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Uninitialised float64."""
        return np.empty(shape)

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Zeros of this type."""
        return np.zeros(shape, dtype)

    def eye(self, n: int) -> Array:
        """Identity (n, n), float64."""
        return np.eye(n)

    def dtype(self, array: Array) -> np.dtype[Any]:
        """Type of an array of the engine, as numpy calls it."""
        return array.dtype

    def cast(self, array: Array, dtype: npt.DTypeLike) -> Array:
        """Convert; the same array where it has the type already."""
        return array.astype(dtype, copy=False)

    def copy(self, array: Array, dtype: npt.DTypeLike | None = None) -> Array:
        """Return a new contiguous array of this type."""
        return np.array(array, dtype=dtype, order="C")

    def rows(self, array: Array, indices: Array) -> Array:
        """Return a new array of these rows."""
        result: Array = array[indices]
        return result

    def part(self, array: Array, rows: Array, columns: Array) -> Array:
        """Return a new array of these rows and columns."""
        result: Array = array[rows[:, None], columns]
        return result

    def stack(self, upper: Array, lower: Array) -> Array:
        """Return a new array of the rows of both."""
        return np.concatenate([upper, lower])

    def like(self, array: Array, rows: int) -> Array:
        """Uninitialised, of the type and width of `array`."""
        return np.empty((rows, *array.shape[1:]), array.dtype)

    def column_norms(self, V: Array) -> Array:
        """Squared norm of each column, float64."""
        result: Array = np.einsum("nx,nx->x", V, V)
        return result

    def squared_norms(self, X: Array, out: Array | None = None) -> Array:
        """Squared norm of each row, float64; `out` (N,), if given, takes them."""
        return ops.squared_norms(X, out)

    def product(self, X: Array, B: Array) -> Array:
        """See `ops.product`."""
        return ops.product(X, B)

    def weighted_gram(self, X: Array, weights: Array) -> Array:
        """See `ops.weighted_gram`."""
        return ops.weighted_gram(X, weights)

    def quadratic_form(self, X: Array, G: Array) -> Array:
        """See `ops.quadratic_form`."""
        return ops.quadratic_form(X, G)

    def downdate_moments(
        self, psi: Array, g: Array, h: Array, g_G_g: float, D: float, q: Array, s: Array
    ) -> None:
        """See `ops.downdate_moments`; g and h come from the host."""
        ops.downdate_moments(psi, g, h, g_G_g, D, q, s)

    def utility(self, q: Array, s: Array, noise: Array) -> Array:
        """Utilities q / (s + noise) of moments, which rounding may have made negative."""
        result: Array = np.maximum(q, 0.0) / (np.maximum(s, 0.0) + noise)
        return result

    def largest(self, values: Array, allowed: Array) -> tuple[int, float]:
        """Position of the largest of the allowed values, the lowest of equal ones; NaN is first."""
        at = int(np.where(allowed, values, -np.inf).argmax())
        return at, float(values[at])

    def gram_add(self, A: Array, B: Array, out: Array, precision: str) -> None:
        """``out += A B^T``, all of the type of `precision`."""
        ops.gram_add(A, B, out)

    def whiten(self, features: Array, W: Array) -> Array:
        """See `ops.whiten`."""
        return ops.whiten(features, W)

    def condition_features(self, psi: Array, U: Array, C: Array) -> None:
        """See `ops.condition_features`."""
        ops.condition_features(psi, U, C)

    def condition_dense(self, S: Array, V: Array) -> None:
        """See `ops.condition_dense`."""
        ops.condition_dense(S, V)

    def cholesky(self, A: Array) -> Array:
        """See `ops.cholesky`."""
        return ops.cholesky(A)

    def triangular_solve(self, L: Array, B: Array, *, transpose: bool = False) -> Array:
        """See `ops.triangular_solve`."""
        return ops.triangular_solve(L, B, transpose=transpose)

    def triangle(self, A: Array) -> Array:
        """R of A = Q R, float64."""
        R: Array = np.linalg.qr(A, mode="r")  # type: ignore[assignment]
        return R

    def score_features(
        self,
        criterion: str,
        psi: Array,
        inputs: ScoreInputs,
        *,
        variance: Array,
        precision: str,
        kept: dict[str, Any],
    ) -> Array:
        """Utilities on the host; all but psi comes from there, see `ops.score_features`.

        precision : str
            As `precision.resolve` returns it; psi has its type, "bf16" excepted, which rounds a
            copy.
        kept : dict
            Empty at first, and the same for every call of a series: arrays that stay the same
            object, and so must not be changed in place, are brought to a GPU once.
        """
        return ops.score_features(criterion, psi, inputs, variance=variance)

    def score_dense(
        self,
        criterion: str,
        S: Array,
        inputs: ScoreInputs,
        *,
        variance: Array,
        downdate: Array | None,
        kept: dict[str, Any],
    ) -> Array:
        """Utilities on the host; all but S and downdate come from there, see `ops.score_dense`."""
        return ops.score_dense(criterion, S, inputs, variance=variance, downdate=downdate)

    def score_blocks(
        self,
        criterion: str,
        covariance: Array,
        inputs: ScoreInputs,
        *,
        rows: Array | None,
        columns: Array | None,
        variance: Array,
        evaluation_variance: Array | None,
        kept: dict[str, Any],
    ) -> Array:
        """Utilities on the host; all but the covariance comes from there, see `ops.score_blocks`.

        covariance : array of the engine
            Its columns as `block_columns` orders them.
        """
        return ops.score_blocks(
            criterion,
            covariance,
            inputs,
            variance=variance,
            rows=rows,
            columns=columns,
            evaluation_variance=evaluation_variance,
        )

    def block_columns(self, points: Array, k: int) -> Array:
        """Columns of covariances of points with k outputs each: point by point."""
        result: Array = (points[:, None] * k + np.arange(k)).ravel()
        return result


class GpuEngine:
    """Arrays of torch or cupy on one GPU, on the caller's current stream.

    Raises
    ------
    RuntimeError
        No GPU kernels in this build, or no GPU that can run them: the message says what is missing.
    """

    on_gpu = True
    # float64 against tf32 on tensor cores, by the peak rates of GPUs made for computing.
    float64_cost = 16.0
    # So many multiplications per entry of S take about the time of reading it.
    largest_downdate = 32
    leaf_rows = 1 << 16

    def __init__(self, library: Library) -> None:
        missing = missing_for(library)
        if missing:
            raise RuntimeError(
                f"the arrays are on device '{library.device}', and nothing is moved to the CPU "
                f"behind your back, but {missing}"
            )
        self.library = library
        self._xp: Any = sys.modules[library.module]
        self._torch = self.has_bf16 = library.module == "torch"
        if not self._torch and self._xp.cuda.Device() != library.device:
            raise RuntimeError(
                f"the arrays are on {library.device}, and the current device of cupy is "
                f"{self._xp.cuda.Device()}: make it the current one, with array.device: ..."
            )

    def __reduce__(self) -> tuple[type[GpuEngine], tuple[Library]]:
        return GpuEngine, (self.library,)  # modules cannot be copied or pickled

    def _type(self, dtype: npt.DTypeLike) -> Any:
        """Return what the library calls this type."""
        name = np.dtype(dtype).name
        return getattr(self._xp, name) if self._torch else name

    def floats(self, name: str, array: Any, shape: tuple[int | str | None, ...]) -> Any:
        """Read an argument (a matrix), which may be on the host."""
        if not self.library.owns(name, array):
            return self.put(as_floats(name, array, shape))
        if self._torch:
            check_dense(name, array)
        check_shape(name, array, shape)
        kind = str(array.dtype).removeprefix("torch.")
        if kind not in ("float32", "float64", "bfloat16"):
            hint = ": convert with .float() in torch, .astype('float32') in cupy"
            raise ArgumentTypeError(
                name, f"{name} has dtype {kind}; expected float32 or float64{hint}"
            )
        if self._torch:
            array = array.detach()
        array = self.cast(array, np.float32) if kind == "bfloat16" else array
        array = self._contiguous(array)
        self.check_finite(name, array)
        return array

    def check_finite(self, name: str, array: Any, note: str = "") -> None:
        """See `arrays.check_finite`; `array` is a matrix."""
        if 0 in array.shape:
            return
        wrong = np.flatnonzero(~np.isfinite(self.host(self.squared_norms(array))))
        # Squares of float64 numbers may overflow where the numbers themselves do not.
        for start in range(0, len(wrong), 1024):
            rows = wrong[start : start + 1024]
            check_finite(name, self.host(self.rows(array, rows)), rows, note)

    def put(self, array: Array) -> Any:
        """Make an array of the engine of a numpy array."""
        array = np.ascontiguousarray(array)
        if self._torch:
            return self._xp.tensor(array, device=self.library.device)
        return self._xp.array(array)

    def host(self, array: Any) -> Array:
        """Bring an array of the engine to the host."""
        result: Array = array.to("cpu", copy=True).numpy() if self._torch else array.get()
        return result

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Uninitialised float64."""
        if self._torch:
            return self._xp.empty(shape, dtype=self._xp.float64, device=self.library.device)
        return self._xp.empty(shape, dtype="float64")

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        """Zeros of this type."""
        if self._torch:
            return self._xp.zeros(shape, dtype=self._type(dtype), device=self.library.device)
        return self._xp.zeros(shape, dtype=self._type(dtype))

    def eye(self, n: int) -> Any:
        """Identity (n, n), float64."""
        if self._torch:
            return self._xp.eye(n, dtype=self._xp.float64, device=self.library.device)
        return self._xp.eye(n, dtype="float64")

    def dtype(self, array: Any) -> np.dtype[Any]:
        """Type of an array of the engine, as numpy calls it."""
        return np.dtype(str(array.dtype).removeprefix("torch."))

    def cast(self, array: Any, dtype: npt.DTypeLike) -> Any:
        """Convert; the same array where it has the type already."""
        kind = self._type(dtype)
        return array.to(kind) if self._torch else array.astype(kind, copy=False)

    def copy(self, array: Any, dtype: npt.DTypeLike | None = None) -> Any:
        """Return a new contiguous array of this type."""
        kind = self._type(self.dtype(array) if dtype is None else dtype)
        if self._torch:
            return array.to(kind, copy=True, memory_format=self._xp.contiguous_format)
        return self._xp.array(array, dtype=kind, order="C")

    def rows(self, array: Any, indices: Array) -> Any:
        """Return a new array of these rows, on the host if it is there."""
        if isinstance(array, np.ndarray):
            return CPU.rows(array, indices)
        chosen = self.put(indices)
        return array.index_select(0, chosen) if self._torch else array.take(chosen, axis=0)

    def part(self, array: Any, rows: Array, columns: Array) -> Any:
        """Return a new array of these rows and columns."""
        return array[self.put(rows)[:, None], self.put(columns)]

    def stack(self, upper: Any, lower: Any) -> Any:
        """Return a new array of the rows of both, on the host if they are there."""
        if isinstance(upper, np.ndarray):
            return CPU.stack(upper, lower)
        return self._xp.vstack((upper, lower))

    def like(self, array: Any, rows: int) -> Any:
        """Uninitialised, of the type, width and place of `array`."""
        if isinstance(array, np.ndarray):
            return CPU.like(array, rows)
        return array.new_empty((rows, *array.shape[1:]))  # torch: with a group

    def column_norms(self, V: Any) -> Any:
        """Squared norm of each column, float64."""
        return self._xp.einsum("nx,nx->x", V, V)

    def squared_norms(self, X: Any, out: Any | None = None) -> Any:
        """Squared norm of each row, float64; `out` (N,), if given, takes them."""
        return cuda_ops.squared_norms(X, out)

    def product(self, X: Any, B: Any) -> Any:
        """``X B``, float64; where B has many columns, X is converted to it some rows at a time."""
        if B.shape[1] <= _FEW_COLUMNS:
            return cuda_ops.product(self._contiguous(X), self._contiguous(B))
        N, d = X.shape
        result = self.empty((N, B.shape[1]))
        step = max(1, _PRODUCT_BYTES // (8 * max(1, d)))
        for start in range(0, N, step):
            part = slice(start, start + step)
            result[part] = self.cast(X[part], np.float64) @ B
        return result

    def weighted_gram(self, X: Any, weights: Array) -> Any:
        """See `ops.weighted_gram`; the weights come from the host."""
        return cuda_ops.weighted_gram(X, self.put(weights))

    def quadratic_form(self, X: Any, G: Any) -> Any:
        """See `ops.quadratic_form`."""
        return cuda_ops.quadratic_form(X, G)

    def downdate_moments(
        self, psi: Any, g: Array, h: Array, g_G_g: float, D: float, q: Array, s: Array
    ) -> None:
        """See `ops.downdate_moments`; g and h come from the host."""
        moved = self.product(psi, self.put(np.stack([g, h], 1)))
        step = moved[:, 0] / D
        q -= step * (2 * moved[:, 1] - step * g_G_g)
        s -= step * moved[:, 0]

    def utility(self, q: Any, s: Any, noise: Any) -> Any:
        """Utilities q / (s + noise) of moments, which rounding may have made negative."""
        return q.clip(0.0) / (s.clip(0.0) + noise)

    def largest(self, values: Any, allowed: Any) -> tuple[int, float]:
        """Position of the largest of the allowed values, the lowest of equal ones; NaN is first."""
        values = self._xp.where(allowed, values, -float("inf"))
        largest = values.max()
        # Of equal values a GPU may find any; nothing equals NaN.
        at = int(((values == largest) | (values != values)).nonzero()[0][0])
        return at, float(values[at])

    def gram_add(self, A: Any, B: Any, out: Any, precision: str) -> None:
        """``out += A B^T``, with products in `precision`; all of its type, "bf16" rounds copies."""
        if precision == "bf16":
            A, B = A.to(self._xp.bfloat16), B.to(self._xp.bfloat16)
        cuda_ops.gram_add(A, B, out, products=PRODUCTS[precision])

    def whiten(self, features: Any, W: Any) -> Any:
        """See `ops.whiten`."""
        return cuda_ops.whiten(features, self._contiguous(W))

    def condition_features(self, psi: Any, U: Any, C: Any) -> None:
        """See `ops.condition_features`; memory is taken before psi changes."""
        cuda_ops.condition_features(psi, self._contiguous(U), self._contiguous(C))

    def condition_dense(self, S: Any, V: Any) -> None:
        """See `ops.condition_dense`; takes no memory."""
        cuda_ops.condition_dense(S, V)

    def cholesky(self, A: Any) -> Any:
        """See `ops.cholesky`."""
        L, failed = cuda_ops.cholesky(A)
        if int(failed[0]):
            raise ValueError(f"not positive definite: row {int(failed[0]) - 1}")
        return L

    def triangular_solve(self, L: Any, B: Any, *, transpose: bool = False) -> Any:
        """See `ops.triangular_solve`."""
        return cuda_ops.triangular_solve(L, B, transpose=transpose)

    def triangle(self, A: Any) -> Any:
        """R of A = Q R, float64."""
        R = self._xp.linalg.qr(A, mode="r")
        return R[1] if self._torch else R

    def _contiguous(self, array: Any) -> Any:
        return array.contiguous() if self._torch else self._xp.ascontiguousarray(array)

    def _indices(self, indices: Array, N: int) -> Any:
        """Put indices into N points; None stands for all of them in order."""
        every = len(indices) == N and np.array_equal(indices, np.arange(N))
        return None if every else self.put(indices)

    def _put_inputs(
        self, N: int, kept: dict[str, Any], inputs: ScoreInputs, variance: Array
    ) -> tuple[ScoreInputs, Any]:
        """Put what a scoring call of N points needs, unless it is `kept`."""
        own = {}
        for name, value in (*vars(inputs).items(), ("variance", variance)):
            if not isinstance(value, np.ndarray):
                continue
            if name not in kept or kept[name][0] is not value:
                kept.pop(name, None)  # makes room first
                of_points = name in ("candidates", "evaluation")
                kept[name] = value, self._indices(value, N) if of_points else self.put(value)
            own[name] = kept[name][1]
        variance = own.pop("variance")
        return replace(inputs, **own), variance

    def score_features(
        self,
        criterion: str,
        psi: Any,
        inputs: ScoreInputs,
        *,
        variance: Array,
        precision: str,
        kept: dict[str, Any],
    ) -> Array:
        """Utilities on the host; all but psi comes from there, see `CpuEngine`."""
        if precision == "bf16":
            psi = psi.to(self._xp.bfloat16)
        inputs, variance = self._put_inputs(len(psi), kept, inputs, variance)
        return self.host(
            cuda_ops.score_features(
                criterion, psi, inputs, variance=variance, products=PRODUCTS[precision]
            )
        )

    def score_dense(
        self,
        criterion: str,
        S: Any,
        inputs: ScoreInputs,
        *,
        variance: Array,
        downdate: Any,
        kept: dict[str, Any],
    ) -> Array:
        """Utilities on the host; everything but S and downdate comes from there."""
        if downdate is not None:
            downdate = self.cast(downdate, self.dtype(S))
        inputs, variance = self._put_inputs(len(S), kept, inputs, variance)
        return self.host(
            cuda_ops.score_dense(criterion, S, inputs, variance=variance, downdate=downdate)
        )

    def score_blocks(
        self,
        criterion: str,
        covariance: Any,
        inputs: ScoreInputs,
        *,
        rows: Array | None,
        columns: Array | None,
        variance: Array,
        evaluation_variance: Array | None,
        kept: dict[str, Any],
    ) -> Array:
        """Utilities on the host; all but the covariance comes from there, see `CpuEngine`."""
        assert rows is None and columns is None  # who calls has put the blocks in order
        points = {"variance": inputs.candidates, "evaluation_variance": inputs.evaluation}
        inputs, on_gpu = self._put_inputs(len(inputs.mean), kept, inputs, variance)
        utilities, wrong = cuda_ops.score_blocks(
            criterion,
            covariance,
            inputs,
            variance=on_gpu,
            evaluation_variance=None
            if evaluation_variance is None
            else self.put(evaluation_variance),
        )
        of_candidates, of_evaluation = np.split(self.host(wrong), [len(variance)])
        for name, flags in (("evaluation_variance", of_evaluation), ("variance", of_candidates)):
            for at in np.flatnonzero(flags):
                raise ValueError(
                    f"{name}: block {at} (point {points[name][at]}) plus its noise is not positive "
                    "definite: it is no covariance, or the noise is too small beside its rounding "
                    "errors"
                )
        return self.host(utilities)

    def block_columns(self, points: Array, k: int) -> Array:
        """Columns of covariances of points with k outputs each: output by output."""
        result: Array = (points * k + np.arange(k)[:, None]).ravel()
        return result

    def select_variance_reduction(
        self, psi: Any, candidates: Array, count: int, *, gram: Any, q: Any, s: Any, noise: Array
    ) -> tuple[Array, Array]:
        """See `cuda_ops`; candidates and noise come from the host, the picks go there."""
        picked, utilities = cuda_ops.select_variance_reduction(
            psi,
            self._indices(candidates, len(psi)),
            count,
            gram=gram,
            q=q,
            s=s,
            noise=self.put(noise),
        )
        return self.host(picked), self.host(utilities)


Engine = CpuEngine | GpuEngine
CPU = CpuEngine()


def engine_of(library: Library) -> Engine:
    """Return what computes on arrays of this library."""
    return CPU if library.device is None else GpuEngine(library)
