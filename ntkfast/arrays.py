"""The edge of the package: numpy, torch and other arrays in, numpy views inside, the same out.

Everything behind this module works on numpy arrays. A torch tensor on the CPU, or any other array
that speaks DLPack, is viewed without a copy; results go back to the library of the caller. torch is
never imported here: a tensor can only be met where its user has imported it.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Array",
    "Library",
    "as_floats",
    "as_indices",
    "as_noise",
    "as_numpy",
    "as_positive",
    "as_probabilities",
    "as_weights",
    "check_finite",
    "check_shape",
    "library_of",
]

Array = npt.NDArray[Any]

# Device types of DLPack whose memory a CPU reads: kDLCPU.
_DLPACK_CPU = 1
# Rows summed at once when looking for NaN: the temporary mask stays around a megabyte.
_CHECK_ENTRIES = 1 << 20


@dataclass(frozen=True)
class Library:
    """The array library that results are returned in.

    Attributes
    ----------
    module : str
        Import name of a module with ``from_dlpack``: "numpy", "torch", "jax.numpy", ...
    """

    module: str

    def wrap(self, array: Array) -> Any:
        """Return `array` (a fresh numpy array) as an array of this library, without a copy."""
        if self.module == "numpy":
            return array
        module = importlib.import_module(self.module)
        return module.from_numpy(array) if self.module == "torch" else module.from_dlpack(array)


def library_of(array: Any) -> Library:
    """Return the library in which results for `array` go back to the caller."""
    if _is_tensor(array):
        return Library("torch")
    if not isinstance(array, np.ndarray) and hasattr(array, "__array_namespace__"):
        return Library(array.__array_namespace__().__name__)
    return Library("numpy")


def _is_tensor(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _refuse_device(name: str, device: str) -> RuntimeError:
    return RuntimeError(
        f"{name} is on device {device!r}, which is not supported yet, and nothing is moved to the "
        "CPU behind your back; pass arrays on the CPU (.cpu() in torch, .get() in cupy). The "
        "operations themselves exist for GPU arrays in ntkfast.cuda_ops"
    )


def as_numpy(name: str, array: Any) -> Array:
    """View `array` as a numpy array: no copy for numpy, torch on the CPU and DLPack arrays.

    Parameters
    ----------
    name : str
        Name of the argument, for error messages.
    array : array_like
        numpy array, torch tensor, array with ``__dlpack__``, or nested sequence of numbers.

    Returns
    -------
    ndarray
        Possibly read-only, byte-swapped or non-contiguous, as the caller had it. bfloat16 tensors,
        which numpy lacks, become float32 (exact).

    Raises
    ------
    RuntimeError
        The array is not in CPU memory.
    TypeError
        A sparse, quantised or masked array, or something that is no array of numbers at all.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; its mask would be lost: pass a plain array")
    if isinstance(array, np.ndarray):
        return np.asarray(array)
    if _is_tensor(array):
        torch = sys.modules["torch"]
        if array.device.type != "cpu":
            raise _refuse_device(name, str(array.device))
        if array.layout != torch.strided or array.is_quantized:
            raise TypeError(f"{name} is a {array.layout} tensor of {array.dtype}; pass a dense one")
        if array.dtype == torch.bfloat16:
            array = array.float()
        return np.asarray(array.numpy(force=True))
    if hasattr(array, "__cuda_array_interface__"):
        raise _refuse_device(name, "cuda")
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        kind, number = array.__dlpack_device__()
        if kind != _DLPACK_CPU:
            raise _refuse_device(name, f"{getattr(kind, 'name', kind)}:{number}")
        return np.from_dlpack(array)
    try:
        result = np.asarray(array)
    except ValueError as error:  # a ragged list
        raise TypeError(f"{name} is not a rectangular array of numbers: {error}") from None
    if result.dtype == object:
        raise TypeError(f"{name} is not a dense array of numbers: got {type(array).__name__}")
    return result


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
        raise TypeError(
            f"{name} has dtype {view.dtype}; expected float32 or float64"
            + (hint if view.dtype.kind in "biu" or view.dtype == np.float16 else "")
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
        raise ValueError(f"{name} must be in (0, inf]; it is {result[at]:g} at index {at}")
    return result


def as_weights(name: str, array: Any, length: int) -> Array:
    """Return `array` as `length` finite weights >= 0, float64; integers are converted."""
    result = _numbers(name, array, length)
    wrong = np.flatnonzero(result < 0)
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(f"{name} must be >= 0; it is {result[at]:g} at index {at}")
    return result


def check_shape(name: str, array: Array, shape: tuple[int | str | None, ...]) -> None:
    """Raise a ValueError unless `array` has this shape, written as for `as_floats`."""
    fits = array.ndim == len(shape) and all(
        want is None or (size == want if isinstance(want, int) else size > 0)
        for size, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        expected = ", ".join("n" if want is None else str(want) for want in shape)
        expected += "," if len(shape) == 1 else ""
        empty = " with no empty dimension" if 0 in array.shape and 0 not in shape else ""
        raise ValueError(f"{name} has shape {array.shape}; expected ({expected}){empty}")


def check_finite(name: str, array: Array) -> None:
    """Raise a ValueError that locates the first NaN or infinity of `array`."""
    rows = array.reshape(len(array), -1) if array.size else array
    step = max(1, _CHECK_ENTRIES // max(1, rows[:1].size))
    for start in range(0, len(rows), step):
        finite = np.isfinite(rows[start : start + step])
        if finite.all():
            continue
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        value = rows[start + row, column]
        what = "NaN" if np.isnan(value) else "inf" if value > 0 else "-inf"
        where = f"row {start + row}, column {column}" if array.ndim > 1 else f"index {start + row}"
        raise ValueError(f"{name} contains {what} at {where}")


def as_positive(name: str, value: Any) -> float:
    """Return `value` as a finite number > 0."""
    if getattr(value, "ndim", 0) != 0:
        raise TypeError(f"{name} must be a number; got an array of shape {tuple(value.shape)}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number; got {value!r}") from None
    if not 0 < number < np.inf:
        raise ValueError(f"{name} must be finite and > 0; got {number:g}")
    return number


def as_probabilities(name: str, array: Any, shape: tuple[int | str | None, ...]) -> Array:
    """Return `array` as float64 rows that are probability distributions.

    Raises a ValueError that names the row whose entries are negative or do not sum to one (to
    1e-4, which float32 soft-maxes keep at any number of classes).
    """
    result = as_floats(name, array, shape, np.float64)
    if (result < 0).any():
        row, column = (int(i) for i in np.argwhere(result < 0)[0])
        raise ValueError(f"{name} is negative at row {row}, column {column}")
    sums = result.sum(1)
    wrong = np.flatnonzero(np.abs(sums - 1) > 1e-4)
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"{name} must have rows that sum to one; row {row} sums to {sums[row]:g}")
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
        raise ValueError(
            f"{name} has shape {view.shape}; expected (m,) indices or a ({size},) mask"
        )
    if view.dtype.kind == "b":
        if len(view) != size:
            raise ValueError(
                f"{name} is a mask of length {len(view)}; expected {size}, one per point"
            )
        view = np.flatnonzero(view)
    if len(view) == 0:
        if empty:
            return np.empty(0, np.int64)
        raise ValueError(f"{name} is empty")
    if view.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {view.dtype}; expected integers or a boolean mask")
    outside = np.flatnonzero((view < 0) | (view >= size))
    if len(outside):
        at = int(outside[0])
        raise ValueError(f"{name}[{at}] = {view[at]} is out of range for {size} points")
    result = _native(view, np.int64)
    if not duplicates:
        values, counts = np.unique(result, return_counts=True)
        if len(values) < len(result):
            raise ValueError(f"{name} contains {values[counts.argmax()]} more than once")
    return result
