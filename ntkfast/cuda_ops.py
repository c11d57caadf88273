r"""The compiled operations on a GPU: torch CUDA tensors or cupy arrays in, the same library out.

The functions mirror `ntkfast.ops`, on arrays that already are on one device, with the dtypes
written there. They run on the caller's current stream and return at once: nothing here waits for
the device, copies between devices or creates a stream, so calls may be captured in a CUDA graph.
Outputs and workspace come from the caller's library. What would need a synchronisation to check is
not checked: indices must be in range, and a matrix that is not positive definite is reported in an
array.

Notation as in `ntkfast.ops`: ``S`` posterior covariance, ``psi`` whitened features, ``F`` posterior
mean, ``f`` outputs of the network, ``N`` points, ``k`` classes, ``d`` features.

Verified on an H100 at commit 57f7a2e; what has changed since (README, "Support") and other GPUs are
proven by an emulation of wrappers, launches and kernels on the CPU (`make test-emulated`).
"""

from __future__ import annotations

import importlib
import math
import sys
from typing import Any

from ntkfast import _core, arrays
from ntkfast.ops import ScoreInputs

__all__ = [
    "available",
    "cholesky",
    "condition_dense",
    "condition_features",
    "gram_add",
    "gram_ghost",
    "problem",
    "product",
    "quadratic_form",
    "score_blocks",
    "score_dense",
    "score_features",
    "select_variance_reduction",
    "sketch_add",
    "sketch_gradients",
    "squared_norms",
    "triangular_solve",
    "weighted_gram",
    "whiten",
]

Array = Any  # torch.Tensor or cupy.ndarray
_ARRAYS = (
    "candidates", "evaluation", "mean", "outputs", "noise", "label_probs", "weights",
    "log_loss_targets", "covered",
)  # fmt: skip


def available() -> bool:
    """Whether this build holds GPU kernels and this machine can run them. Initialises CUDA."""
    return _core.cuda_available()


def problem() -> str:
    """Return what is missing for `available`, or an empty string.

    The kernels need a GPU of compute capability 8.0 or newer (A100, H100, RTX 30, 40 and 50).
    """
    return _core.cuda_problem()


# Where a GPU has no room for results and workspace of a call.
_ADVICE = (
    "pass fewer points at a time, or free what others hold on the GPU "
    "(torch.cuda.empty_cache() gives back what torch keeps). Nothing has changed"
)


class _Torch:
    """What is needed of torch. An instance belongs to one device."""

    def __init__(self, like: Array) -> None:
        self.torch: Any = sys.modules["torch"]
        self.device = like.device

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        with arrays.memory_advice(_ADVICE):
            return self.torch.empty(shape, dtype=getattr(self.torch, dtype), device=self.device)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        with arrays.memory_advice(_ADVICE):
            return self.torch.zeros(shape, dtype=getattr(self.torch, dtype), device=self.device)

    def copy(self, array: Array) -> Array:
        with arrays.memory_advice(_ADVICE):
            return array.clone(memory_format=self.torch.contiguous_format)

    def pointer(self, array: Array) -> int:
        return int(array.data_ptr())

    def stream(self) -> int:
        return int(self.torch.cuda.current_stream(self.device).cuda_stream)


class _Cupy:
    """What is needed of cupy. Arrays are made on the device of `like`."""

    def __init__(self, like: Array) -> None:
        self.cupy: Any = importlib.import_module("cupy")
        self.device = like.device

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        with self.device, arrays.memory_advice(_ADVICE):
            return self.cupy.empty(shape, dtype=dtype)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        with self.device, arrays.memory_advice(_ADVICE):
            return self.cupy.zeros(shape, dtype=dtype)

    def copy(self, array: Array) -> Array:
        with self.device, arrays.memory_advice(_ADVICE):
            return self.cupy.array(array, order="C")

    def pointer(self, array: Array) -> int:
        return int(array.data.ptr)

    def stream(self) -> int:
        with self.device:  # each device has a current stream
            return int(self.cupy.cuda.get_current_stream().ptr)


def _is_torch(array: Array) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _is_cupy(array: Array) -> bool:
    return type(array).__module__.partition(".")[0] == "cupy" and hasattr(array, "data")


def _library(name: str, array: Array) -> _Torch | _Cupy:
    """Return the library of `array`; every function asks this of its main argument first."""
    if not _core.cuda_compiled():
        raise RuntimeError(_core.cuda_problem())
    _view(name, array)
    return _Torch(array) if _is_torch(array) else _Cupy(array)


def _view(name: str, array: Array) -> _core.View:
    """Describe an array in GPU memory to the compiled core, without a copy."""
    if _is_torch(array):
        device = array.device
        if device.type not in arrays._GPU_TYPES:
            raise TypeError(f"{name} is on device '{device}'; expected a CUDA tensor")
        return _core.View(
            name, array.data_ptr(), array.shape, array.stride(), _dtype(array), device.index or 0
        )
    if _is_cupy(array):
        strides = [stride // array.itemsize for stride in array.strides]
        return _core.View(
            name, array.data.ptr, array.shape, strides, _dtype(array), array.device.id
        )
    raise TypeError(
        f"{name} is a {type(array).__name__}; expected a torch CUDA tensor or a cupy array"
    )


def _dtype(array: Array) -> str:
    return str(array.dtype).removeprefix("torch.")


def _optional(name: str, array: Array | None) -> _core.View | None:
    return None if array is None else _view(name, array)


def _factor(
    name: str, data: Array, positions: Array, columns: Array
) -> tuple[_core.View, _core.View, _core.View]:
    return (
        _view(name, data),
        _view(f"{name}_positions", positions),
        _view(f"{name}_columns", columns),
    )


def _workspace(library: _Torch | _Cupy, size: int) -> Array:
    """Device memory for one call, in bytes; the allocator orders its reuse by stream."""
    return library.empty((max(1, math.ceil(size / 8)),), "float64")


def _call(
    library: _Torch | _Cupy, num_points: int, criterion: str, inputs: ScoreInputs, variance: Array
) -> tuple[dict[str, Any], Array, tuple[int, int, int]]:
    """Return a scoring call as the compiled core takes it, its utilities, and k, N_c, N_x."""
    _, k = _matrix("mean", inputs.mean)
    num_candidates, num_evaluation = (
        num_points if points is None else points.shape[0]
        for points in (inputs.candidates, inputs.evaluation)
    )
    utilities = library.empty((num_candidates,), "float64")
    call = dict(vars(inputs), criterion=criterion)
    given = {name: call[name] for name in _ARRAYS} | dict(variance=variance, utilities=utilities)
    call |= {name: _optional(name, array) for name, array in given.items()}
    return call, utilities, (k, num_candidates, num_evaluation)


def _matrix(name: str, array: Array) -> tuple[int, int]:
    if len(array.shape) != 2:
        raise ValueError(f"{name} has shape {tuple(array.shape)}; expected a matrix")
    return array.shape[0], array.shape[1]


def _products(products: str | None, array: Array) -> str:
    """How to form products of `array`: as the caller says, else as exactly as its type allows."""
    return products or {"float32": "f16x3", "bfloat16": "bf16"}.get(_dtype(array), "fma64")


def score_features(
    criterion: str,
    psi: Array,
    inputs: ScoreInputs,
    *,
    variance: Array,
    products: str | None = None,
) -> Array:
    r"""Utilities of candidates with the covariance in weight space, ``S(x, c) = <psi(x), psi(c)>``.

    The formula is that of `ntkfast.ops.score_features`.

    Parameters
    ----------
    criterion : str
        One of `ntkfast.ops.criteria`.
    psi : (N, d) float32, float64 or bfloat16
        Rows contiguous; rows that start at multiples of 16 bytes are read faster.
    inputs : ntkfast.ops.ScoreInputs
        Everything else, with arrays on the device. Indices must be in range.
    variance : (N,) float64
        S(x, x).
    products : {"fma32", "fma64", "bf16", "f16", "f16x3"}, optional
        How the products of features are formed. Without tensor cores: "fma32" of float32, "fma64"
        of float64 features. On tensor cores: "bf16" of bfloat16 features; of float32 features
        "f16", as float16 numbers with a power of two per row (11 significant bits, as many as tf32
        has), and "f16x3", as two such numbers each and three products of them: 22 bits down to
        2^-17 of the largest entry of a row, 2^-39 of that below. Sums on tensor cores, which cut
        bits off, are short and added up outside, so that "f16x3" is about as exact as "fma32",
        relative to the largest entries of both rows. Default: "f16x3", "fma64" or "bf16", by the
        features. Sums of products are float32 ("fma64": float64), those over points float64.
        Workspace holds the numbers of the tensor cores: of all points once, or of candidates and
        evaluation points.

    Returns
    -------
    (N_c,) float64
        Utilities, bitwise the same from run to run.

    Raises
    ------
    RuntimeError
        No GPU kernels in this build, or CUDA refuses a launch.
    TypeError, ValueError
        Arrays elsewhere, of the wrong dtype or shape; the message names the argument.
    """
    library = _library("psi", psi)
    num_points, _ = _matrix("psi", psi)
    products = _products(products, psi)
    call, utilities, _ = _call(library, num_points, criterion, inputs, variance)
    features = _view("psi", psi)
    size = _core.cuda_score_features_workspace(features, call, products)
    workspace = _workspace(library, size)
    _core.cuda_score_features(
        features, call, products, _view("workspace", workspace), library.stream()
    )
    return utilities


def score_dense(
    criterion: str,
    S: Array,
    inputs: ScoreInputs,
    *,
    variance: Array,
    downdate: Array | None = None,
) -> Array:
    """Utilities of candidates with the covariance in function space, ``S - downdate^T downdate``.

    As `ntkfast.ops.score_dense`.

    Parameters
    ----------
    criterion, inputs, variance
        As in `score_features`.
    S : (N, N) float32 or float64
        Symmetric; its dtype is the compute type. Not changed.
    downdate : (r, N) of S's dtype, optional
        What the picks of a batch take away.

    Returns
    -------
    (N_c,) float64
        Utilities.
    """
    library = _library("S", S)
    num_points, _ = _matrix("S", S)
    call, utilities, sizes = _call(library, num_points, criterion, inputs, variance)
    size = _core.cuda_score_dense_workspace(criterion, *sizes, _dtype(S) == "float64")
    workspace = _workspace(library, size)
    _core.cuda_score_dense(
        _view("S", S), _optional("downdate", downdate), call, _view("workspace", workspace),
        library.stream(),
    )  # fmt: skip
    return utilities


def score_blocks(
    criterion: str,
    covariance: Array,
    inputs: ScoreInputs,
    *,
    variance: Array,
    evaluation_variance: Array | None = None,
) -> tuple[Array, Array]:
    """Utilities of candidates for a matrix-valued kernel, whose covariances are k x k blocks.

    The formulas are those of `ntkfast.ops.score_blocks`, but blocks come output by output, so that
    a GPU reads neighbouring points side by side.

    Parameters
    ----------
    criterion, inputs
        As in `score_features`.
    covariance : (N_c k, k N_x) float32 or float64
        Row ``i k + a``, column ``b N_x + j``: S(c_i, x_j)_ab, output a of candidate i with output b
        of evaluation point j. Its dtype is the compute type.
    variance : (N_c, k, k) float64
        S(c, c).
    evaluation_variance : (N_x, k, k) float64, optional
        S(x, x); only ``epig`` reads it.

    Returns
    -------
    utilities : (N_c,) float64
        NaN where `wrong` tells why.
    wrong : (N_c + N_x,) int64
        1 for candidates, and after them evaluation points, whose block plus its noise is not
        positive definite; 0 for the others.
    """
    library = _library("covariance", covariance)
    call, utilities, sizes = _call(library, inputs.mean.shape[0], criterion, inputs, variance)
    wrong = library.empty((sizes[1] + sizes[2],), "int64")
    size = _core.cuda_score_blocks_workspace(criterion, *sizes, _dtype(covariance) == "float64")
    workspace = _workspace(library, size)
    _core.cuda_score_blocks(
        _view("covariance", covariance),
        _optional("evaluation_variance", evaluation_variance),
        call,
        _view("wrong", wrong),
        _view("workspace", workspace),
        library.stream(),
    )
    return utilities, wrong


def condition_features(psi: Array, U: Array, C: Array) -> None:
    """``psi <- psi - (psi U^T) C`` in place; psi (N, d) float32 or float64; U, C (b, d) float64."""
    library = _library("psi", psi)
    (num_points, _), (rank, _) = _matrix("psi", psi), _matrix("U", U)
    workspace = _workspace(library, _core.cuda_condition_features_workspace(num_points, rank))
    _core.cuda_condition_features(
        _view("psi", psi),
        _view("U", U),
        _view("C", C),
        _view("workspace", workspace),
        library.stream(),
    )


def condition_dense(S: Array, V: Array) -> None:
    """``S <- S - V^T V`` in place, bitwise symmetric; S (N, N) float, V (b, N) float64."""
    library = _library("S", S)
    _core.cuda_condition_dense(_view("S", S), _view("V", V), library.stream())


def whiten(features: Array, W: Array) -> Array:
    """Return ``features W^T``, (N, d) in the features' dtype, sums in float64.

    features (N, d) float32, float64 or bfloat16 (the result is float32 then); W (d, d) float64.
    """
    library = _library("features", features)
    dtype = _dtype(features)
    psi = library.empty(_matrix("features", features), "float32" if dtype == "bfloat16" else dtype)
    _core.cuda_whiten(
        _view("features", features), _view("W", W), _view("psi", psi), library.stream()
    )
    return psi


def product(X: Array, B: Array) -> Array:
    """Return ``X B``, (N, k) float64, products and sums in float64.

    X (N, d) float32, float64 or bfloat16; B (d, k) float64.
    """
    library = _library("X", X)
    Y = library.empty((_matrix("X", X)[0], _matrix("B", B)[1]), "float64")
    _core.cuda_product(_view("X", X), _view("B", B), _view("Y", Y), library.stream())
    return Y


def weighted_gram(X: Array, weights: Array) -> Array:
    """Return ``sum_i weights_i x_i x_i^T``, (d, d) float64, products and sums in float64.

    X (N, d) float32, float64 or bfloat16; weights (N,) float64.
    """
    library = _library("X", X)
    N, d = _matrix("X", X)
    gram = library.empty((d, d), "float64")
    workspace = _workspace(library, _core.cuda_weighted_gram_workspace(N, d))
    _core.cuda_weighted_gram(
        _view("X", X),
        _view("weights", weights),
        _view("G", gram),
        _view("workspace", workspace),
        library.stream(),
    )
    return gram


def quadratic_form(X: Array, G: Array) -> Array:
    """Return ``x_i^T G x_i``, (N,) float64, products and sums in float64.

    X (N, d) float32, float64 or bfloat16; G (d, d) float64.
    """
    library = _library("X", X)
    q = library.empty(_matrix("X", X)[:1], "float64")
    _core.cuda_quadratic_form(_view("X", X), _view("G", G), _view("q", q), library.stream())
    return q


def squared_norms(X: Array, out: Array | None = None) -> Array:
    """Return ``|x_i|^2``, (N,) float64, in `out` if given; X float32, float64 or bfloat16."""
    library = _library("X", X)
    norms = library.empty(_matrix("X", X)[:1], "float64") if out is None else out
    _core.cuda_squared_norms(_view("X", X), _view("s", norms), library.stream())
    return norms


def select_variance_reduction(
    psi: Array,
    candidates: Array | None,
    count: int,
    *,
    gram: Array,
    q: Array,
    s: Array,
    noise: Array,
) -> tuple[Array, Array]:
    """Sequential `variance_reduction` picks without pairs and without a round trip to the host.

    Parameters
    ----------
    psi : (N, d) float32, float64 or bfloat16
        Whitened features; products and sums in float64.
    candidates : (N_c,) int64 or None
        Which points may be picked; None: all.
    count : int
        Picks wanted, at most N_c.
    gram : (d, d) float64
        ``sum_x v(x) psi_x psi_x^T`` (`weighted_gram`).
    q, s : (N_c,) float64, changed
        ``psi^T gram psi`` and ``|psi|^2`` of the candidates (`quadratic_form`, `squared_norms`).
    noise : (N_c,) float64
        lam_c, in (0, inf].

    Returns
    -------
    picked : (count,) int64
        Positions among the candidates, in the order of the picks; ties go to the lowest. -1: only
        NaN was left.
    utilities : (count,) float64
        The utility of each when it was picked.
    """
    library = _library("psi", psi)
    num_points, d = _matrix("psi", psi)
    rows = num_points if candidates is None else candidates.shape[0]
    picked, utilities = library.empty((count,), "int64"), library.empty((count,), "float64")
    workspace = _workspace(library, _core.cuda_select_variance_reduction_workspace(rows, d))
    _core.cuda_select_variance_reduction(
        _view("psi", psi), _optional("candidates", candidates), _view("gram", gram), _view("q", q),
        _view("s", s), _view("noise", noise), _view("picked", picked),
        _view("utilities", utilities), _view("workspace", workspace), library.stream(),
    )  # fmt: skip
    return picked, utilities


def cholesky(A: Array) -> tuple[Array, Array]:
    """Lower factor L of ``A = L L^T`` (n, n) float64, and whether that failed.

    Returns
    -------
    L : (n, n) float64
        The factor; NaN from the row on at which A shows not to be positive definite.
    failed : (1,) int64
        1 + that row, or 0.
    """
    library = _library("A", A)
    L, failed = library.copy(A), library.zeros((1,), "int64")
    _core.cuda_cholesky(_view("A", L), _view("failed", failed), library.stream())
    return L, failed


def triangular_solve(L: Array, B: Array, *, transpose: bool = False) -> Array:
    """``L^-1 B``, or ``L^-T B`` when `transpose`; L (n, n) lower triangular, B (n, m), float64."""
    library = _library("L", L)
    X = library.copy(B)
    _core.cuda_triangular_solve(_view("L", L), _view("B", X), transpose, library.stream())
    return X


def gram_add(
    A: Array, B: Array, out: Array, *, lower: bool = False, products: str | None = None
) -> None:
    """``out += A B^T`` in place.

    Parameters
    ----------
    A, B : (n, K), (m, K) float32, float64 or bfloat16
        Rows contiguous; rows that start at multiples of 16 bytes are read faster.
    out : (n, m) float32, or float64 for float64
        Changed.
    lower : bool
        Entries above the diagonal are left undefined.
    products : {"fma32", "fma64", "bf16", "f16", "f16x3"}, optional
        As in `score_features`. Sums in the type of `out`, the same from run to run; their last
        bits depend on the shapes and on the GPU, whose blocks share out long sums. "bf16" and
        "f16" on compute capability 9.0 may cut off, not round, each of 1024 steps of a long sum:
        3e-5 of it where products do not cancel.
    """
    library = _library("A", A)
    products = _products(products, A)
    left, right = _view("A", A), _view("B", B)
    workspace = _workspace(library, _core.cuda_gram_add_workspace(left, right, lower, products))
    _core.cuda_gram_add(
        left,
        right,
        _view("out", out),
        lower,
        products,
        _view("workspace", workspace),
        library.stream(),
    )


def gram_ghost(
    left: Array,
    right: Array,
    left2: Array,
    right2: Array,
    out: Array,
    *,
    lower: bool = False,
    products: str | None = None,
) -> None:
    """``out[i, j] += sum_ts <left[i, t], left2[j, s]> <right[i, t], right2[j, s]>`` in place.

    Inner products of the weight gradients ``left_i^T right_i`` and ``left2_j^T right2_j``, see
    `ntkfast.ops.gram_ghost`. Two matrices of products, of at most 4096 pairs of sample and position
    either way, lie in workspace.

    Parameters
    ----------
    left, left2 : (n, T, p), (m, S, p) or (R, n, T, p), (R2, m, S, p)
        Of float32, float64 or bfloat16, C-contiguous.
    right, right2 : (n, T, q), (m, S, q)
        Of the same type.
    out : (n, m) or (n R, m R2) float32, or float64 for float64
        Changed; rows contiguous.
    lower, products
        As in `gram_add`.
    """
    library = _library("left", left)
    products = _products(products, left)
    factors = (
        _view("left", left[None] if len(left.shape) == 3 else left),
        _view("right", right),
        _view("left2", left2[None] if len(left2.shape) == 3 else left2),
        _view("right2", right2),
    )
    workspace = _workspace(library, _core.cuda_gram_ghost_workspace(*factors, lower, products))
    _core.cuda_gram_ghost(
        *factors,
        _view("out", out),
        lower,
        products,
        _view("workspace", workspace),
        library.stream(),
    )


def sketch_add(values: Array, start: int, sign_key: int, shift_key: int, out: Array) -> None:
    """Add the count-sketch of vectors to `out`, in place and bit for bit as `ntkfast.ops` does.

    values (n, m), out (n, dim), both float32 or both float64, summed in that type.
    """
    library = _library("values", values)
    count, dim = _matrix("values", values)[1], _matrix("out", out)[1]
    workspace = _workspace(library, _core.cuda_sketch_workspace(start, count, dim))
    _core.cuda_sketch_add(
        _view("values", values),
        start,
        sign_key,
        shift_key,
        _view("out", out),
        _view("workspace", workspace),
        library.stream(),
    )


def sketch_gradients(
    left: Array,
    left_positions: Array,
    left_columns: Array,
    right: Array,
    right_positions: Array,
    right_columns: Array,
    start: int,
    sign_key: int,
    shift_key: int,
    out: Array,
    *,
    groups: int = 1,
) -> None:
    """Add the count-sketches of per-sample weight gradients to `out`, in place.

    As `ntkfast.ops.sketch_gradients`: the gradient of a sample is formed a tile of 4096 entries at
    a time in the registers of one block of threads, and added to buckets in its shared memory. The
    same bits from run to run.

    Parameters
    ----------
    left, right : (n, a), (n, b) float32 or float64
        Products and sums in that type; rows contiguous.
    left_positions, right_positions : (T,) int64
        On the device, as all tables, and not checked: they must not lead out of `left` and `right`.
    left_columns, right_columns : (groups rows,), (groups size,) int64
        Offsets of the rows and columns of the gradient.
    start, sign_key, shift_key, groups
        As in `ntkfast.ops.sketch_gradients`.
    out : (n, dim) of the type of `left`
        The sketches.
    """
    library = _library("left", left)
    count = left_columns.shape[0] * (right_columns.shape[0] // max(1, groups))
    dim = _matrix("out", out)[1]
    workspace = _workspace(library, _core.cuda_sketch_workspace(start, count, dim))
    _core.cuda_sketch_gradients(
        _factor("left", left, left_positions, left_columns),
        _factor("right", right, right_positions, right_columns),
        groups,
        start,
        sign_key,
        shift_key,
        _view("out", out),
        _view("workspace", workspace),
        library.stream(),
    )
