"""Arrays from files that anybody may have written, and tables to files that nobody may lose."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..arrays import ArgumentValueError
from ..files import replacing
from ..store import FeatureStore, differences, open_features

__all__ = ["is_store", "open_atomic", "read_array", "read_arrays"]

Array = np.ndarray[Any, np.dtype[Any]]

# https://huggingface.co/docs/safetensors: little-endian always. bfloat16 is widened, see below.
_SAFETENSORS_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
    "BOOL": "?",
}


_UNKNOWN = "it is damaged, or holds Python objects, which are never loaded"
_CUT_SHORT = "it is cut short"


# What features of two stores must agree in to be used together: all but the data.
_TOGETHER = (
    "network fitted_sketch layers outputs draws sketch n_features seed n_outputs rows_per_point"
)


def is_store(spec: str) -> bool:
    """Whether an option names a folder, not a file; the empty name is neither."""
    return spec != "" and Path(spec).is_dir()


def read_arrays(specs: Mapping[str, str | None]) -> dict[str, Array | None]:
    """Read the arrays that options name; those of None are None.

    A folder for ``features`` or ``labeled_features`` is a store: it gives ``outputs`` or
    ``labeled_outputs``, too, unless these are named.

    Raises
    ------
    ValueError, OSError
        As `read_array` and `open_features`, and for stores whose features do not fit together.
    """
    stores: dict[str, FeatureStore] = {}
    for labeled in ("", "labeled_"):
        spec = specs[f"{labeled}features"]
        if spec is not None and is_store(spec):
            try:
                stores[labeled] = open_features(spec)
            except (OSError, ValueError) as error:
                raise ArgumentValueError(
                    f"{labeled}features", f"{labeled}features: {error}"
                ) from None
    if len(stores) == 2:
        difference = differences(stores["labeled_"].manifest, stores[""].manifest, of=_TOGETHER)
        if difference:
            raise ArgumentValueError(
                "labeled_features",
                f"labeled_features: {specs['labeled_features']} holds features {difference} in "
                f"{specs['features']}: they do not fit together",
            )
    arrays: dict[str, Array | None] = dict.fromkeys(specs)
    for labeled, store in stores.items():
        arrays[f"{labeled}features"], arrays[f"{labeled}outputs"] = store
    for name, spec in specs.items():
        if spec is not None and name.removesuffix("features") not in stores:
            arrays[name] = read_array(spec, name)
    return arrays


def read_array(spec: str, name: str) -> Array:
    """Read one array from a .npy, .npz or .safetensors file.

    .npy and .safetensors files are memory-mapped, so that a pool larger than memory can be named;
    nothing that a file holds is ever executed (no pickle).

    Parameters
    ----------
    spec
        ``FILE`` or ``FILE::ARRAY``. Without ``::ARRAY``, a file of several arrays must have one
        called `name`.
    name
        What the array is for, "features" say; used for that choice and in messages.

    Returns
    -------
    numpy.ndarray
        Integers, booleans or real numbers, read-only where memory-mapped. bfloat16, which numpy
        lacks, is widened to float32.

    Raises
    ------
    ValueError
        The file is missing, damaged, of another kind, or does not hold such an array; the message
        is one line that names the file.
    """
    file, _, key = spec.partition("::")
    if not file:
        raise ValueError(f"{name}: expected the name of a file, got {spec!r}")
    path = Path(file)
    readers: dict[str, Callable[[Path, str, str], Array]] = {
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".safetensors": _read_safetensors,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{name}: {path} is not a .npy, .npz or .safetensors file")
    if not path.is_file():
        raise ValueError(f"{name}: {path} is not there" + (" as a file" if path.exists() else ""))
    try:
        array = reader(path, key, name)
    except Exception as error:  # a damaged file can raise nearly anything, from zlib to json
        reason = " ".join(str(error).split())
        if not isinstance(error, ValueError | OSError):
            reason = f"it is damaged ({type(error).__name__}: {reason})"
        raise ValueError(f"{name}: cannot read {path}: {reason}") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: {path} holds {array.dtype} values; real numbers are needed")
    return array


def _choose(keys: list[str], key: str, name: str) -> str:
    """Return the array of a file that is meant: the one asked for, the only one, or `name`."""
    wanted = key or (keys[0] if len(keys) == 1 else name)
    if wanted not in keys:
        held = ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "") or "no array"
        hint = "" if key else "; choose one with FILE::ARRAY"
        raise ValueError(f"it holds no array called {wanted!r} but {held}{hint}")
    return wanted


def _read_npy(path: Path, key: str, name: str) -> Array:
    if key:
        raise ValueError("a .npy file holds one array, without a name: leave ::ARRAY out")
    if zipfile.is_zipfile(path):
        raise ValueError("it is a .npz archive with the ending .npy")
    with path.open("rb") as file:
        needed = _check_npy(file)
    if path.stat().st_size < needed:
        raise ValueError(_CUT_SHORT)
    return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def _check_npy(file: IO[bytes]) -> int:
    """Return the bytes of a .npy file by its header, or raise a ValueError for one of objects."""
    numpy = np.lib.format
    try:
        first = numpy.read_magic(file) == (1, 0)
        header = numpy.read_array_header_1_0(file) if first else numpy.read_array_header_2_0(file)
    except ValueError:
        raise ValueError(_UNKNOWN if file.read(1) else _CUT_SHORT) from None
    shape, _, dtype = header
    if dtype.hasobject:
        raise ValueError(_UNKNOWN)
    return file.tell() + math.prod(shape) * dtype.itemsize


def _read_npz(path: Path, key: str, name: str) -> Array:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            _check_npy(file)
        raise ValueError("it is a .npy array with the ending .npz")
    with np.load(path, allow_pickle=False) as archive:
        wanted = _choose(list(archive.files), key, name)
        with archive.zip.open(f"{wanted}.npy") as member:
            _check_npy(member)
        array: Array = archive[wanted]
    return array


def _read_safetensors(path: Path, key: str, name: str) -> Array:
    # Read here rather than by the safetensors package because its numpy arrays are copies.
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or header_size > size - 8:
            raise ValueError("it is cut short, or no safetensors file")
        header = json.loads(file.read(header_size))
    header.pop("__metadata__", None)
    entry = header[_choose(list(header), key, name)]
    dtype_name, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype_name not in _SAFETENSORS_DTYPES:
        raise ValueError(f"its dtype {dtype_name} is not supported")
    dtype = np.dtype(_SAFETENSORS_DTYPES[dtype_name])
    count = 1
    for extent in shape:
        if not isinstance(extent, int) or extent < 0:
            raise ValueError(f"its shape {shape} makes no sense")
        count *= extent  # Python integers: no overflow
    if not 0 <= begin <= end or end - begin != count * dtype.itemsize:
        raise ValueError(f"its header gives shape {shape} and bytes {begin} to {end}")
    offset = 8 + header_size + begin
    if 8 + header_size + end > size:
        raise ValueError(_CUT_SHORT)
    if count == 0:  # an empty range cannot be mapped
        array: Array = np.empty(shape, dtype)
    else:
        array = np.memmap(path, dtype, mode="r", offset=offset, shape=tuple(shape))
    if dtype_name == "BF16":  # the upper half of a float32
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array


@contextlib.contextmanager
def open_atomic(output: str) -> Iterator[IO[str]]:
    """Open `output` for text so that it appears complete or not at all; ``-`` is standard output.

    See `replacing`.
    """
    path = Path(output)
    if output == "-":
        if sys.stdout is None:
            raise OSError("it is closed")
        yield sys.stdout
        sys.stdout.flush()
    elif path.exists() and not path.is_file():  # a pipe or a device can only be written to
        with path.open("w", newline="") as file:
            yield file
    else:
        with replacing(path, "x", newline="") as file:
            yield file
