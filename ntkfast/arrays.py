"""The edge of the package: numpy, torch and other arrays in, numpy views inside, the same out.

Everything behind this module works on numpy arrays, but for the large ones on a GPU (`engines`). A
torch tensor on the CPU, or any other array that speaks DLPack, is viewed without a copy; results go
back to the library of the caller, on its device. torch and cupy are never imported here: their
arrays can only be met where their user has imported them. Errors name the argument, see
`ArgumentError`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "ArgumentValueError",
    "Array",
    "Library",
    "as_choice",
    "as_floats",
    "as_indices",
    "as_noise",
    "as_numpy",
    "as_positive",
    "as_probabilities",
    "as_temperature",
    "as_weights",
    "check_dense",
    "check_finite",
    "check_shape",
    "is_frame",
    "library_named",
    "library_of",
    "memory_advice",
    "of_frame",
    "unmasked",
]

Array = npt.NDArray[Any]

# Device types of DLPack whose memory a CPU reads: kDLCPU.
_DLPACK_CPU = 1
# Device types of torch on which `ntkfast.cuda_ops` works.
_GPU_TYPES: tuple[str, ...] = ("cuda",)
# Rows summed at once when looking for NaN: the temporary mask stays around a megabyte.
_CHECK_ENTRIES = 1 << 20


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Add what to do to what torch and cupy say when a GPU has no memory left."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError" and advice not in str(error):
            error.args = (f"{error}; {advice}",)
        raise


class ArgumentError(Exception):
    """Something is wrong with one argument of a call; also a ValueError or a TypeError.

    Attributes
    ----------
    argument : str
        Its name.
    """

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(message)
        self.argument = argument

    def __reduce__(self) -> tuple[type[ArgumentError], tuple[str, str]]:
        return type(self), (self.argument, str(self))


class ArgumentValueError(ArgumentError, ValueError):
    """An argument has a value that it must not have."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument has a type that it must not have."""


@dataclass(frozen=True)
class Library:
    """The array library that results are returned in.

    Attributes
    ----------
    module : str
        Import name of a module with ``from_dlpack``: "numpy", "torch", "jax.numpy", ...
    device : torch.device, cupy.cuda.Device or None
        The GPU that the arrays lie on; None: the CPU.
    """

    module: str
    device: Any = None

    def wrap(self, array: Array) -> Any:
        """Return `array` (a fresh numpy array) as one of this library; on a CPU without a copy."""
        if self.module == "numpy":
            return array
        module = importlib.import_module(self.module)
        if self.module == "torch":
            tensor = module.from_numpy(array)
            return tensor if self.device is None else tensor.to(self.device)
        return module.from_dlpack(array) if self.device is None else module.asarray(array)

    def owns(self, name: str, array: Any) -> bool:
        """Whether `array` lies on the GPU of this library, rather than on the host.

        Raises
        ------
        RuntimeError
            It lies on another device.
        """
        device = _gpu_of(array)
        if device is None:
            return False
        if self.device is None:
            raise RuntimeError(
                f"{name} is on device '{device}', and the features or the kernel are on the CPU; "
                "nothing is moved there behind your back: pass all on the GPU, or all on the CPU "
                "(.cpu() in torch, .get() in cupy)"
            )
        if library_of(array) != self:
            raise RuntimeError(
                f"{name} is a {library_of(array).module} array on device '{device}', and the "
                f"features or the kernel are {self.module} arrays on '{self.device}': pass all on "
                "one GPU, or this one on the CPU"
            )
        return True

    def fetch(self, **arguments: Any) -> Iterator[Any]:
        """Bring arguments that are kept on the host there from the GPU of this library.

        What is on the CPU passes unchanged. Order as given.

        Raises
        ------
        RuntimeError
            One lies on another device; the message names the argument.
        """
        for name, array in arguments.items():
            if not self.owns(name, array):
                yield array
            elif self.module == "torch":
                yield _of_tensor(name, array)
            else:
                yield array.get()


def library_of(array: Any) -> Library:
    """Return the library in which results for `array` go back to the caller."""
    if _is_tensor(array):
        return Library("torch", _gpu_of(array))
    if _is_cupy(array):
        return Library("cupy", _gpu_of(array))
    if not isinstance(array, np.ndarray) and hasattr(array, "__array_namespace__"):
        return Library(array.__array_namespace__().__name__)
    return Library("numpy")


def library_named(target: Any) -> Library:
    """Return the library of an array, or torch on the device that `target` names.

    Raises
    ------
    TypeError
        Neither a device of torch nor an array.
    RuntimeError
        A device that torch or ntkfast cannot use.
    """
    if isinstance(target, str) or type(target).__name__ == "device":
        torch = importlib.import_module("torch")
        try:
            target = torch.empty(0, device=target)
        # torch without CUDA asserts; some messages go on for a screen.
        except (AssertionError, RuntimeError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise RuntimeError(
                f"torch cannot use device {str(target)!r} ({reason}): a GPU needs a torch and an "
                "ntkfast built with CUDA, and a driver; 'cpu' is always there"
            ) from None
    elif not hasattr(target, "shape"):
        raise TypeError(
            f'target must be a device of torch ("cuda", "cpu", ...) or an array; got {target!r}'
        )
    if _gpu_of(target) is None:
        as_numpy("target", target)  # refuses devices that are neither
    return library_of(target)


def _gpu_of(array: Any) -> Any:
    """Return the GPU that a torch or cupy array lies on; None for all other arrays."""
    if array is None or isinstance(array, np.ndarray):  # most arguments, without a look around
        return None
    if _is_tensor(array):
        return array.device if array.device.type in _GPU_TYPES else None
    return array.device if _is_cupy(array) else None


def _is_cupy(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "cupy"


def _is_tensor(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def check_dense(name: str, tensor: Any) -> None:
    """Raise a TypeError for a sparse, quantised or nested tensor."""
    if tensor.is_nested:
        raise ArgumentTypeError(name, f"{name} is a nested tensor; pass a dense one")
    if tensor.layout != sys.modules["torch"].strided or tensor.is_quantized:
        raise ArgumentTypeError(
            name, f"{name} is a {tensor.layout} tensor of {tensor.dtype}; pass a dense one"
        )


def _of_tensor(name: str, tensor: Any) -> Array:
    """View a tensor as a numpy array; one on a GPU is copied from there."""
    check_dense(name, tensor)
    if tensor.dtype == sys.modules["torch"].bfloat16:
        tensor = tensor.float()
    return np.asarray(tensor.numpy(force=True))


def _refuse_device(name: str, device: str) -> RuntimeError:
    return RuntimeError(
        f"{name} is on device {device!r}, which is not supported: pass arrays on the CPU, or torch "
        "or cupy arrays on a CUDA GPU"
    )


def as_numpy(name: str, array: Any) -> Array:
    """View `array` as a numpy array: no copy for numpy, torch on the CPU and DLPack arrays.

    Parameters
    ----------
    name : str
        Name of the argument, for error messages.
    array : array_like
        numpy array, torch tensor, pandas DataFrame or Series of numbers, array with
        ``__dlpack__``, or nested sequence of numbers.

    Returns
    -------
    ndarray
        Possibly read-only, byte-swapped or non-contiguous, as the caller had it. bfloat16 tensors,
        which numpy lacks, become float32 (exact).

    Raises
    ------
    RuntimeError
        The array is not in CPU memory (those on a GPU go through `Library.fetch` first).
    TypeError
        A sparse, quantised or nested array, masked entries, columns that hold no numbers, or no
        array of numbers at all.
    """
    if isinstance(array, np.ndarray):
        return unmasked(name, array)
    if is_frame(array):
        return of_frame(name, array)
    if _is_tensor(array):
        Library("torch").owns(name, array)
        if array.device.type != "cpu":
            raise _refuse_device(name, str(array.device))
        return _of_tensor(name, array)
    Library("numpy").owns(name, array)
    if hasattr(array, "__cuda_array_interface__"):
        raise _refuse_device(name, "cuda")
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        kind, number = array.__dlpack_device__()
        if kind != _DLPACK_CPU:
            raise _refuse_device(name, f"{getattr(kind, 'name', kind)}:{number}")
        return np.from_dlpack(array)
    _refuse_masks_inside(name, array)
    try:
        result = np.asarray(array)
    except ValueError as error:  # a ragged list
        raise ArgumentTypeError(
            name, f"{name} is not a rectangular array of numbers: {error}"
        ) from None
    if result.dtype == object:
        raise ArgumentTypeError(
            name, f"{name} is not a dense array of numbers: got {type(array).__name__}"
        )
    return result


def unmasked(name: str, array: Array, at: str = "") -> Array:
    """Return a numpy array, of a masked one its data if nothing is masked.

    `at`: where in the argument `name` it is, if it is a part.

    Raises
    ------
    TypeError
        An entry is masked.
    """
    if np.ma.is_masked(array):
        mask = np.ma.getmaskarray(array)
        where = ""
        if mask.ndim:
            first = ", ".join(str(int(i)) for i in np.argwhere(mask)[0])
            where = f" with {int(mask.sum())} of {mask.size} entries masked, first at [{first}]"
        raise ArgumentTypeError(
            name,
            f"{name}{at} is a masked array{where}: masks are not heeded; leave those points out, "
            "or put numbers there with .filled(value)",
        )
    return np.asarray(np.ma.getdata(array))


def _refuse_masks_inside(name: str, array: Any, at: str = "") -> None:
    """Raise for masked arrays in (nested) lists, of which numpy would take the data."""
    if isinstance(array, (list, tuple)):
        for i, part in enumerate(array):
            if isinstance(part, np.ma.MaskedArray):
                unmasked(name, part, f"{at}[{i}]")
            elif isinstance(part, (list, tuple)):
                _refuse_masks_inside(name, part, f"{at}[{i}]")


def is_frame(value: Any) -> bool:
    """Whether a value is a DataFrame, Series or Index of pandas, which is not imported here."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(
        value, (pandas.DataFrame, pandas.Series, pandas.Index, pandas.api.extensions.ExtensionArray)
    )


def of_frame(name: str, frame: Any) -> Array:
    """Return the numbers of a DataFrame (N, d) or Series (N,) of pandas, rows as they stand.

    Columns of different types get the one that holds them all; missing values become NaN.

    Raises
    ------
    TypeError
        Columns that hold something else.
    """
    columns = frame.dtypes.items() if hasattr(frame, "columns") else [(None, frame.dtype)]
    types, wrong = [], []
    for label, kind in columns:
        # Sparse columns have a subtype, nullable ones stand for a type of numpy.
        plain = getattr(kind, "subtype", getattr(kind, "numpy_dtype", kind))
        if getattr(plain, "kind", "O") in "fiub":
            types.append(np.dtype(plain))
        else:
            wrong.append(f"{label!r} ({kind})" if label is not None else f"it ({kind})")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ArgumentTypeError(
            name,
            f"{name} is a {type(frame).__name__}, and {', '.join(wrong[:3])}{more} "
            f"hold{'s' if len(wrong) == 1 else ''} no numbers: encode or leave out what is not a "
            "number",
        )
    dtype = np.result_type(*types) if types else np.dtype(float)
    missing = np.asarray(frame.isna())
    if dtype.kind != "f" and missing.any():
        dtype = np.dtype(np.float64)
    if dtype.kind != "f":
        return np.asarray(frame.to_numpy(dtype=dtype))
    return np.asarray(frame.to_numpy(dtype=dtype, na_value=np.nan))


def _native(array: Array, dtype: Any = None) -> Array:
    """C-contiguous, aligned, in machine byte order; the same memory where it already is that."""
    return np.require(array, dtype or array.dtype.newbyteorder("="), ["C_CONTIGUOUS", "ALIGNED"])


def as_floats(
    name: str,
    array: Any,
    shape: tuple[int | str | None, ...],
    dtype: type[np.float64] | None = None,
    *,
    finite: bool = True,
) -> Array:
    """Return `array` as finite floating-point numbers, C-contiguous and of the expected shape.

    Parameters
    ----------
    name : str
        Name of the argument, for error messages.
    array : array_like
        float32, float64 or torch's bfloat16.
    shape : tuple of int, str or None
        Expected shape; a letter stands for any size of at least one, None for any size.
    dtype : optional
        float64 to convert; default: float32 and float64 stay what they are.
    finite : bool
        Whether NaN and infinity are refused.

    Returns
    -------
    ndarray
        The caller's memory where that is possible: never write to it.

    Raises
    ------
    TypeError
        Integers, complex numbers, float16, longdouble.
    ValueError
        Wrong shape, or NaN or inf (the message says where).
    """
    view = as_numpy(name, array)
    if view.dtype.kind != "f" or view.dtype.itemsize not in (4, 8):
        hint = ": convert with .astype(np.float32), in torch with .float()"
        raise ArgumentTypeError(
            name,
            f"{name} has dtype {view.dtype}; expected float32 or float64"
            + (hint if view.dtype.kind in "biu" or view.dtype == np.float16 else ""),
        )
    check_shape(name, view, shape)
    result = _native(view, dtype)
    if finite:
        check_finite(name, result)
    return result


def _numbers(name: str, array: Any, length: int, *, finite: bool = True) -> Array:
    """Return `length` numbers, integers too, as float64."""
    view = as_numpy(name, array)
    if view.dtype.kind in "iu":
        view = view.astype(np.float64)
    return as_floats(name, view, (length,), np.float64, finite=finite)


def as_noise(name: str, array: Any, length: int) -> Array:
    """Return `array` as `length` noise variances in (0, inf], float64; inf means no information.

    Integers are converted.
    """
    result = _numbers(name, array, length, finite=False)
    wrong = np.flatnonzero(~(result > 0))
    if len(wrong):
        at = int(wrong[0])
        raise ArgumentValueError(
            name, f"{name} must be in (0, inf]; it is {result[at]:g} at index {at}"
        )
    return result


def as_weights(name: str, array: Any, length: int) -> Array:
    """Return `array` as `length` finite weights >= 0, float64; integers are converted."""
    result = _numbers(name, array, length)
    wrong = np.flatnonzero(result < 0)
    if len(wrong):
        at = int(wrong[0])
        raise ArgumentValueError(name, f"{name} must be >= 0; it is {result[at]:g} at index {at}")
    return result


def check_shape(name: str, array: Any, shape: tuple[int | str | None, ...]) -> None:
    """Raise a ValueError unless `array` has this shape, written as for `as_floats`."""
    fits = array.ndim == len(shape) and all(
        want is None or (size == want if isinstance(want, int) else size > 0)
        for size, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        expected = ", ".join("n" if want is None else str(want) for want in shape)
        expected += "," if len(shape) == 1 else ""
        empty = " with no empty dimension" if 0 in array.shape and 0 not in shape else ""
        raise ArgumentValueError(
            name, f"{name} has shape {tuple(array.shape)}; expected ({expected}){empty}"
        )


def check_finite(name: str, array: Array, numbers: Array | None = None, note: str = "") -> None:
    """Raise a ValueError that locates the first NaN or infinity of `array`.

    `numbers`: what to call its rows, if it is a part of the caller's array; `note`: what has
    become of that array.
    """
    rows = array.reshape(len(array), -1) if array.size else array
    step = max(1, _CHECK_ENTRIES // max(1, rows[:1].size))
    for start in range(0, len(rows), step):
        finite = np.isfinite(rows[start : start + step])
        if finite.all():
            continue
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        value = rows[start + row, column]
        at = start + row if numbers is None else numbers[start + row]
        what = "NaN" if np.isnan(value) else "inf" if value > 0 else "-inf"
        where = f"row {at}, column {column}" if array.ndim > 1 else f"index {at}"
        raise ArgumentValueError(name, f"{name}{note} contains {what} at {where}")


def as_choice(name: str, value: Any, known: Sequence[str]) -> str:
    """Return `value` if it is one of the names `known`."""
    if not isinstance(value, str) or value not in known:
        *most, last = (f'"{choice}"' for choice in known)
        raise ArgumentValueError(name, f"{name} must be {', '.join(most)} or {last}; got {value!r}")
    return value


def as_positive(name: str, value: Any) -> float:
    """Return `value` as a finite number > 0."""
    if getattr(value, "ndim", 0) != 0:
        raise ArgumentTypeError(
            name, f"{name} must be a number; got an array of shape {tuple(value.shape)}"
        )
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ArgumentTypeError(name, f"{name} must be a number; got {value!r}") from None
    except OverflowError:  # an int beyond float64
        number = np.inf
    if not 0 < number < np.inf:
        raise ArgumentValueError(name, f"{name} must be finite and > 0; got {number:g}")
    return number


def as_temperature(name: str, value: Any) -> float:
    """Return `value` as a number by which outputs may be divided: 1e-30 to 1e30.

    Long before that a soft-max is one-hot or flat; beyond, quotients would leave float64.
    """
    number = as_positive(name, value)
    if not 1e-30 <= number <= 1e30:
        raise ArgumentValueError(
            name, f"{name} is {number:g}; expected a temperature from 1e-30 to 1e30"
        )
    return number


def as_probabilities(name: str, array: Any, shape: tuple[int | str | None, ...]) -> Array:
    """Return `array` as float64 rows that are probability distributions.

    Raises a ValueError that names the row whose entries are negative or do not sum to one (to
    1e-4, which float32 soft-maxes keep at any number of classes).
    """
    result = as_floats(name, array, shape, np.float64)
    if (result < 0).any():
        row, column = (int(i) for i in np.argwhere(result < 0)[0])
        raise ArgumentValueError(name, f"{name} is negative at row {row}, column {column}")
    sums = result.sum(1)
    wrong = np.flatnonzero(np.abs(sums - 1) > 1e-4)
    if len(wrong):
        row = int(wrong[0])
        raise ArgumentValueError(
            name, f"{name} must have rows that sum to one; row {row} sums to {sums[row]:g}"
        )
    return result


def as_indices(
    name: str, array: Any, size: int, *, duplicates: bool = False, empty: bool = False
) -> Array:
    """Return int64 indices into `size` points from indices or a boolean mask.

    Parameters
    ----------
    name : str
        Name of the argument, for error messages.
    array : array_like
        Integers in [0, size) of shape (m,), m >= 1, or a boolean mask of shape (size,).
    size : int
        Number of points.
    duplicates : bool
        Whether an index may occur twice.
    empty : bool
        Whether no point at all is fine.

    Raises
    ------
    TypeError
        Neither integers nor booleans.
    ValueError
        Nothing selected; negative, too large or repeated indices; a mask of another length.
    """
    view = as_numpy(name, array)
    if view.ndim != 1:
        raise ArgumentValueError(
            name, f"{name} has shape {view.shape}; expected (m,) indices or a ({size},) mask"
        )
    if view.dtype.kind == "b":
        if len(view) != size:
            raise ArgumentValueError(
                name, f"{name} is a mask of length {len(view)}; expected {size}, one per point"
            )
        view = np.flatnonzero(view)
    if len(view) == 0:
        if empty:
            return np.empty(0, np.int64)
        raise ArgumentValueError(name, f"{name} is empty")
    if view.dtype.kind not in "iu":
        raise ArgumentTypeError(
            name, f"{name} has dtype {view.dtype}; expected integers or a boolean mask"
        )
    outside = np.flatnonzero((view < 0) | (view >= size))
    if len(outside):
        at = int(outside[0])
        raise ArgumentValueError(
            name, f"{name}[{at}] = {view[at]} is out of range for {size} points"
        )
    result = _native(view, np.int64)
    if not duplicates:
        values, counts = np.unique(result, return_counts=True)
        if len(values) < len(result):
            raise ArgumentValueError(
                name, f"{name} contains {values[counts.argmax()]} more than once"
            )
    return result
