"""Features of a pool in a folder: plain arrays, and a killed computation goes on where it was.

``features.npy``
    (N r, d), r rows for each of N points: k for kernels with k x k blocks, else 1.
``outputs.npy``
    (N, k).
``manifest.json``
    What they were computed from, and the ranges of points that are finished. While several
    processes write, each has one of its own, ``manifest-<rank>-of-<world size>.json``, so that none
    waits for another and none can undo what another has written.
``sketch.npz``
    Of ``sketch="auto"``: the sketch that was fitted, once for all processes.

An array is one file of its final size, not one file for every process or block: only so it is one
memory map, which `Posterior.from_features` takes like any other array, whatever processes wrote it
and however often they were started again. Rows are written to their place, so that processes share
the file without touching each other's bytes.

What the manifest calls finished is on the disk before it says so, and a manifest is replaced as a
whole. So a process that is killed loses the block that it had not entered yet, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from .arrays import ArgumentValueError, Array
from .files import PARTIAL, hidden_neighbour, replacing

__all__ = [
    "FeatureStore",
    "StoreWriter",
    "differences",
    "open_features",
    "read_checked",
    "rows_of",
    "shared_arrays",
]

Span = tuple[int, int]

_FORMAT = "ntkfast features"
_VERSION = 1
_MANIFEST = "manifest.json"
# What a killed process may lose: rows are kept until they are so many bytes, or so many seconds
# old. Less often gains nothing, since a block costs the disk some milliseconds.
_BLOCK_BYTES = 1 << 26
_BLOCK_SECONDS = 2.0
# How long another process is waited for.
_LOCK_SECONDS = 10.0
# Rounding to float16 has a relative error of 2^-11 at most, and more where numbers are too small.
_LARGEST_ROUNDING = 2.0**-10

# What features depend on, and what to call it. In this order the differences are told.
_IDENTITY = {
    "network": "of another network (its parameters or its structure differ)",
    "data": "of other data (the few points that are compared differ)",
    "fitted_sketch": 'of another fit of sketch="auto"',
    "layers": "of other layers ({theirs} instead of {mine})",
    "points": "of {theirs} points, not {mine}",
    "outputs": "with outputs={theirs}, not {mine}",
    "draws": "with draws={theirs}, not {mine}",
    "sketch": "with sketch={theirs}, not {mine}",
    "n_features": "with {theirs} features a row, not {mine}",
    "seed": "with seed={theirs}, not {mine}",
    "dtype": "with dtype={theirs}, not {mine}",
    "n_outputs": "of a network with {theirs} outputs, not {mine}",
    "rows_per_point": "with {theirs} rows a point, not {mine}",
    "outputs_dtype": "with outputs in {theirs}, not {mine}",
}


def rows_of(rank: int, world_size: int, points: int) -> range:
    """Return the points that are the share of one process: as many as of the others, in order."""
    return range(rank * points // world_size, (rank + 1) * points // world_size)


def differences(theirs: Mapping[str, Any], mine: Mapping[str, Any], *, of: str = "") -> str:
    """Say in words how two manifests differ in what features depend on; "" where they do not.

    `of`: the keys that count, separated by blanks; default: all that `mine` has.
    """
    keys = [k for k in of.split() or _IDENTITY if k in mine and theirs[k] != mine[k]]
    if "points" in keys:
        keys = [k for k in keys if k != "data"]  # other points are compared then
    found = [
        _IDENTITY[k].format(theirs=_shown(k, theirs[k]), mine=_shown(k, mine[k])) for k in keys
    ]
    return ", ".join(found[:4])


def _shown(key: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value[:3]) + (", ..." if len(value) > 3 else "")
    return "an unknown number of" if key == "points" and value is None else repr(value)


# ranges of points


def _union(spans: Iterable[Span]) -> list[Span]:
    result: list[Span] = []
    for start, stop in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(stop, result[-1][1]))
        elif start < stop:
            result.append((start, stop))
    return result


def _without(start: int, stop: int, spans: list[Span]) -> list[Span]:
    """Return what a union of ranges leaves of one range."""
    result = []
    for first, last in spans:
        if start < min(first, stop):
            result.append((start, min(first, stop)))
        start = max(start, last)
    return [*result, (start, stop)] if start < stop else result


def _count(spans: Iterable[Span]) -> int:
    return sum(stop - start for start, stop in spans)


def _listed(spans: list[Span]) -> str:
    shown = ", ".join(str(a) if b == a + 1 else f"{a} to {b - 1}" for a, b in spans[:5])
    return shown + (f", and {len(spans) - 5} more ranges" if len(spans) > 5 else "")


# manifests


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        manifest = json.loads(text)
        if manifest["format"] != _FORMAT:
            raise KeyError("format")
        if manifest["version"] > _VERSION:
            raise ValueError(
                f"{path} has version {manifest['version']}; this ntkfast reads up to {_VERSION}"
            )
        missing = [key for key in _IDENTITY if key not in manifest]
        spans = [(int(start), int(stop)) for start, stop in manifest["finished"]]
        last = math.inf if manifest["points"] is None else manifest["points"]
        if missing or any(not 0 <= start < stop <= last for start, stop in spans):
            raise KeyError(*missing)
        _array_files(manifest)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged, or was not written by ntkfast: {type(error).__name__} {error}"
        ) from error
    return {**manifest, "finished": spans}


def _read_manifests(folder: Path) -> dict[str, Any] | None:
    """Return what the manifests of a folder say together, or None where there is none."""
    # The one of all processes last: the others are removed once it is there.
    paths = [*sorted(folder.glob("manifest-*.json")), folder / _MANIFEST]
    found = [(path, m) for path in paths if (m := _read_manifest(path)) is not None]
    if not found:
        return None
    (first, result), *others = found
    for path, manifest in others:
        difference = differences(manifest, result)
        if difference:
            raise ValueError(
                f"{path} is of features {difference}, as {first.name} says: processes with "
                "different arguments have written to one folder. Delete it, and start again"
            )
    spans = _union(span for _, manifest in found for span in manifest["finished"])
    return {**result, "finished": spans}


def _locked(folder: Path, *, shared: bool) -> int:
    """Open a folder that no other process writes to, or only those that share it.

    A lock ends with its process, however that ends. Where there are no locks, as on some network
    file systems, none is taken.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        import fcntl

        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        # Workers of a loader outlive a killed process by a few seconds.
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise BlockingIOError(
                        errno.EAGAIN,
                        "another process is writing features there: wait for its end, or give "
                        "another folder",
                        str(folder),
                    ) from None
                time.sleep(0.05)
    except BlockingIOError:
        os.close(handle)
        raise
    except (ImportError, OSError):
        pass
    except BaseException:  # Ctrl-C while waiting
        os.close(handle)
        raise
    return handle


def _write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    with replacing(path, "x", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.write("\n")


# arrays


def _array_files(manifest: Mapping[str, Any]) -> dict[str, tuple[tuple[int, int], np.dtype[Any]]]:
    """File name -> shape and type of the arrays that a manifest describes."""
    points = manifest["points"] or 0
    rows = points * manifest["rows_per_point"]
    return {
        "features.npy": ((rows, manifest["n_features"]), np.dtype(manifest["dtype"])),
        "outputs.npy": ((points, manifest["n_outputs"]), np.dtype(manifest["outputs_dtype"])),
    }


def _header(shape: tuple[int, int], dtype: np.dtype[Any]) -> bytes:
    """Return what stands before the numbers of a .npy file; equally long for any number of rows."""
    buffer = io.BytesIO()
    described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


class _ArrayFile:
    """A .npy file whose rows are written to their place, and are on the disk after `write`.

    Not through a memory map, which a full disk would kill the process for. `O_DSYNC` also keeps
    network file systems from writing whole pages, which hold rows of other processes.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        self._width, self._dtype = shape[1], dtype
        header = _header(shape, dtype)
        self._start = len(header)
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_DSYNC", 0) | getattr(os, "O_BINARY", 0)
        self._file: IO[bytes] = os.fdopen(os.open(path, flags, 0o666), "wb", buffering=0)
        try:
            # The same bytes from every process.
            self._put(0, header)
            size = self._offset(shape[0])
            if os.fstat(self._file.fileno()).st_size < size:
                self._file.truncate(size)
        except BaseException:
            self._file.close()
            raise

    def _offset(self, row: int) -> int:
        return self._start + row * self._width * self._dtype.itemsize

    def _put(self, offset: int, data: Any) -> None:
        self._file.seek(offset)
        left = memoryview(data).cast("B")
        while left:
            left = left[self._file.write(left) :]

    def write(self, row: int, values: Array) -> None:
        self._put(self._offset(row), np.ascontiguousarray(values))
        os.fsync(self._file.fileno())

    def finish(self, rows: int) -> None:
        """Give the file its shape, where the number of rows was not known before."""
        self._file.truncate(self._offset(rows))
        self._put(0, _header((rows, self._width), self._dtype))
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _open_array(path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    """Map an array that a manifest describes; a ValueError where it is another."""
    expected = f"expected {dtype} of shape {shape}, as the manifest says"
    try:
        # An empty array cannot be mapped.
        array: Array = np.load(path, mmap_mode="r" if math.prod(shape) else None)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {expected}") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}): {expected}") from error
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{path} holds {array.dtype} of shape {array.shape}; {expected}")
    return array


def shared_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an .npz file, unless there is one: of several processes the first one's stays."""
    path.parent.mkdir(exist_ok=True)
    partial = hidden_neighbour(path)
    try:
        with partial.open("xb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # names of arrays, not of options
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)
        except FileExistsError:
            pass
        except OSError:  # no hard links here; who comes later finds that the fits differ
            if not path.exists():
                partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# reading


@dataclass(frozen=True)
class FeatureStore:
    """A complete store: ``features, outputs = store``.

    Attributes
    ----------
    features : memmap (N, d)
        Read-only, float32, float16 or float64; (N k, d), point-major, for ``outputs="full"``.
    outputs : memmap (N, k)
        Of the network for the same points.
    manifest : dict
        What the features were computed from.
    """

    features: Array
    outputs: Array
    manifest: Mapping[str, Any]

    def __iter__(self) -> Iterator[Array]:
        return iter((self.features, self.outputs))

    def part(self, rank: int, world_size: int) -> FeatureStore:
        """Return the rows of one of `world_size` processes, those that it has written."""
        rows, scale = rows_of(rank, world_size, len(self.outputs)), self.manifest["rows_per_point"]
        return FeatureStore(
            self.features[rows.start * scale : rows.stop * scale],
            self.outputs[rows.start : rows.stop],
            self.manifest,
        )

    def __repr__(self) -> str:
        return (
            f"FeatureStore(features={self.features.shape} {self.features.dtype}, "
            f"outputs={self.outputs.shape} {self.outputs.dtype})"
        )


def _opened(folder: Path, manifest: Mapping[str, Any]) -> FeatureStore:
    features, outputs = (
        _open_array(folder / name, *kind) for name, kind in _array_files(manifest).items()
    )
    return FeatureStore(features, outputs, manifest)


def open_features(folder: str | os.PathLike[str]) -> FeatureStore:
    """Open a folder that ``EmpiricalNTK.features(X, out=folder)`` has written.

    Parameters
    ----------
    folder : path

    Returns
    -------
    FeatureStore
        With ``features``, ``outputs`` and ``manifest``, also as ``features, outputs = store``. The
        arrays are memory-mapped: nothing of them is read yet. `Posterior.from_features` takes
        them.

    Raises
    ------
    FileNotFoundError
        No store is there.
    ValueError
        It is not complete (the message says what is missing, and how to go on) or damaged.
    """
    folder = Path(folder)
    manifest = _read_manifests(folder)
    if manifest is None:
        raise FileNotFoundError(
            f"{folder} is no store of features: there is no folder with a {_MANIFEST}"
        )
    finished, points = manifest["finished"], manifest["points"]
    how = (
        f"Call EmpiricalNTK.features(X, out={str(folder)!r}) again, with the same network and "
        "data: it goes on there"
    )
    if points is None:
        raise ValueError(
            f"the features in {folder} are not complete: {_count(finished)} points of a stream are "
            f"finished, and it has not come to its end. {how}"
        )
    missing = _without(0, points, finished)
    if missing:
        raise ValueError(
            f"the features in {folder} are not complete: {_count(missing)} of {points} points are "
            f"missing ({_listed(missing)}). {how}"
        )
    return _opened(folder, manifest)


# writing


def read_checked(folder: Path, description: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the manifests of a folder say; None where there is nothing yet.

    Raises
    ------
    ValueError
        They describe features of something else than `description` does, the folder is no store, or
        what they call finished is not there.
    """
    before = _read_manifests(folder)
    if before is None:
        if folder.exists() and not folder.is_dir():
            raise ArgumentValueError(
                "out",
                f"out: {folder} is a file. A path that ends in .npy is a file of features; any "
                "other is a folder for features, outputs and what they were computed from",
            )
        foreign = [name for name in ("features.npy", "outputs.npy") if (folder / name).exists()]
        if foreign:
            raise ArgumentValueError(
                "out",
                f"out: {folder} holds {' and '.join(foreign)}, but no {_MANIFEST}: it is no store "
                "of features; give another folder",
            )
        return None
    # A stream is known to be as long as it was when it came to its end.
    stream = description["points"] is None
    difference = differences({**before, "points": None} if stream else before, description)
    if difference:
        raise ArgumentValueError(
            "out",
            f"out: {folder} holds features {difference}. Give another folder, or delete that one",
        )
    if before["finished"]:
        last = before["finished"][-1][1]
        for name, (shape, dtype) in _array_files(before).items():
            path = folder / name
            rows = last * (before["rows_per_point"] if name == "features.npy" else 1)
            size = len(_header(shape, dtype)) + rows * shape[1] * dtype.itemsize
            if not path.exists() or path.stat().st_size < size:
                raise ValueError(
                    f"{path} is missing or cut short, though {_MANIFEST} calls {last} points "
                    "finished: the store is damaged. Delete it to start afresh"
                )
    return before


def _rounded(features: Array, dtype: np.dtype[Any], rows_per_point: int, start: int) -> Array:
    """Return features in a narrower type; a ValueError where that cannot hold them."""
    with np.errstate(over="ignore"):
        narrow = features.astype(dtype)
    wrong = np.flatnonzero(~np.isfinite(narrow).all(1))
    if len(wrong):
        row = int(wrong[0])
        raise ArgumentValueError(
            "dtype",
            f"dtype: {dtype} cannot hold the features of point {start + row // rows_per_point} of "
            f"X, which reach {np.abs(features[row]).max():.3g} (its largest number is "
            f'{np.finfo(dtype).max:.3g}): use dtype="float32"',
        )
    if np.linalg.norm(
        narrow.astype(features.dtype) - features
    ) > _LARGEST_ROUNDING * np.linalg.norm(features):
        stop = start + len(features) // rows_per_point
        raise ArgumentValueError(
            "dtype",
            f"dtype: {dtype} cannot hold the features of points {start} to {stop - 1} of X: most "
            f"are below its smallest normal number, {np.finfo(dtype).tiny:.2g}, and would lose "
            'their digits: use dtype="float32"',
        )
    return narrow


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB"


class StoreWriter:
    """Writes the rows of one process to a store, and knows which are finished.

    Parameters
    ----------
    folder : Path
        Made where it is not there.
    description : dict
        What features depend on: the keys of a manifest, without "finished". "points" is None for a
        stream of unknown length.
    rank, world_size : int
        Number of this process, and of all of them.

    Raises
    ------
    ValueError
        The folder holds features of something else (says what), or is damaged. Nothing is changed.
    OSError
        There is not enough room on the disk.
    """

    def __init__(
        self, folder: Path, description: Mapping[str, Any], rank: int = 0, world_size: int = 1
    ) -> None:
        self._folder, self._description = folder, dict(description)
        self._points: int | None = description["points"]
        self._scale: int = description["rows_per_point"]
        alone = world_size == 1
        self._path = folder / (_MANIFEST if alone else f"manifest-{rank}-of-{world_size}.json")
        self._files: dict[str, _ArrayFile] = {}
        # Rows that wait for the end of their block, from this point on.
        self._waiting: list[tuple[Array, Array]] = []
        self._start, self._next = 0, 0
        self._bytes, self._since = 0, 0.0
        self._lock: int | None = None
        self._span: tuple[int, int | None] = (0, None)
        self.finished: list[Span] = []
        self._read(rank, world_size)
        if not self.missing():
            return
        self._refuse_full_disk()
        folder.mkdir(exist_ok=True)
        self._lock = _locked(folder, shared=not alone)
        try:
            self._read(rank, world_size)
            if alone:  # nobody else is writing one of these
                for partial in folder.glob(PARTIAL):
                    partial.unlink()
            self._publish()
            for name, kind in _array_files(self._described()).items():
                self._files[name] = _ArrayFile(folder / name, *kind)
            with contextlib.suppress(OSError):  # folders of some file systems cannot be
                os.fsync(self._lock)
        except BaseException:
            self._close()
            raise

    def _read(self, rank: int, world_size: int) -> None:
        """Find out what is finished."""
        before = self._checked()
        if before is not None:
            self.finished = before["finished"]
            if self._points is None:  # the stream may have come to its end before
                self._points = before["points"]
        if self._points is not None:
            share = rows_of(rank, world_size, self._points)
            self._span = (share.start, share.stop)

    def _publish(self) -> None:
        """Say what this process is about to write, before it does.

        Of processes that come at the same moment with different arguments, none can miss the other:
        all write first, and read then. And no array is ever there without a manifest.
        """
        new = not self._path.exists()
        self._enter(())
        try:
            self._checked()
        except BaseException:
            if new:
                self._path.unlink(missing_ok=True)
            raise

    def _described(self) -> dict[str, Any]:
        kept = {**self._description, "points": self._points}
        return {"format": _FORMAT, "version": _VERSION, **kept}

    def _checked(self) -> dict[str, Any] | None:
        return read_checked(self._folder, self._description)

    def _row_bytes(self) -> int:
        kinds = _array_files(self._description).values()
        features, outputs = (shape[1] * dtype.itemsize for shape, dtype in kinds)
        return features * self._scale + outputs

    def _refuse_full_disk(self) -> None:
        """Raise an OSError if what is missing will not fit, before hours of computing."""
        if self._points is None:
            return
        needed = _count(_without(0, self._points, self.finished)) * self._row_bytes()
        there = self._folder if self._folder.exists() else self._folder.absolute().parent
        usage = shutil.disk_usage(there)
        # (Some network file systems know nothing of their size.)
        if usage.total and needed > usage.free:
            half = "" if self._description["dtype"] == "float16" else ' or dtype="float16"'
            raise OSError(
                errno.ENOSPC,
                f"the features that are missing need {_gigabytes(needed)}, and "
                f"{_gigabytes(usage.free)} are free: make room, or take fewer features "
                f"(dim=...){half}",
                str(self._folder),
            )

    def missing(self) -> list[tuple[int, int | None]]:
        """Return the ranges of points that this process has to do.

        The last one of a stream of unknown length ends with None.
        """
        start, stop = self._span
        if stop is None:
            return [(self.finished[-1][1] if self.finished else 0, None)]
        return list(_without(start, stop, self.finished))

    def one_finished(self) -> int | None:
        """Return a point that is finished, one of this process where it has any."""
        start, stop = self._span
        here = [a for a, b in self.finished if b > start and (stop is None or a < stop)]
        return max(start, here[0]) if here else next((a for a, _ in self.finished), None)

    def finished_after(self, start: int) -> int:
        """Return the number of points that are finished from one on, without a gap."""
        return next(b - start for a, b in self.finished if a <= start < b)

    def rows(self, start: int, stop: int) -> tuple[Array, Array]:
        """Return finished features and outputs of some points."""
        manifest = {**self._described(), "points": self._points or self.finished[-1][1]}
        maps = {}
        for name, (shape, dtype) in _array_files(manifest).items():
            offset = len(_header(shape, dtype))
            maps[name] = np.memmap(self._folder / name, dtype, "r", offset, shape)
        scale = self._scale
        return maps["features.npy"][start * scale : stop * scale], maps["outputs.npy"][start:stop]

    def write(self, start: int, features: Array, outputs: Array) -> None:
        """Take the rows of points from `start` on; they are finished once their block is.

        Raises
        ------
        ValueError
            float16 cannot hold the features.
        OSError
            They cannot be written: the disk is full, say. What was finished before, stays.
        """
        if self._waiting and start != self._next:
            self.flush()
        if not self._waiting:
            self._start, self._since, self._bytes = start, time.monotonic(), 0
        dtype = np.dtype(self._description["dtype"])
        narrow = features
        if features.dtype != dtype:
            narrow = _rounded(features, dtype, self._scale, start)
        self._waiting.append((narrow, outputs))
        self._next = start + len(outputs)
        self._bytes += narrow.nbytes + outputs.nbytes
        if self._bytes >= _BLOCK_BYTES or time.monotonic() - self._since >= _BLOCK_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Finish the block: its rows are on the disk when the manifest says so."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []  # never again what the disk has once refused
        features, outputs = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
        try:
            self._files["features.npy"].write(self._start * self._scale, features)
            self._files["outputs.npy"].write(self._start, outputs)
            self._enter([(self._start, self._next)])
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write points {self._start} to {self._next - 1} ({error.strerror}); "
                f"{_count(self.finished)} are finished and stay so. Call again with the same "
                "arguments to go on there",
                str(self._folder),
            ) from error

    def _enter(self, spans: Iterable[Span]) -> None:
        """Enter ranges as finished."""
        finished = _union([*self.finished, *spans])
        _write_manifest(self._path, {**self._described(), "finished": finished})
        self.finished = finished

    def finish(self) -> FeatureStore:
        """Return the rows of this process, read-only, once all of them are written."""
        self.flush()
        if self._points is None:
            self._points = max([self._next, *(stop for _, stop in self.finished)])
            self._span = (0, self._points)
            for name, (shape, _) in _array_files(self._described()).items():
                self._files[name].finish(shape[0])
            self._enter(())
        missing = self.missing()
        if missing:
            raise ValueError(f"X gave no points for rows {_listed(missing)}")  # type: ignore[arg-type]
        self._close()
        start, stop = self._span
        if start == stop:  # fewer points than processes
            shapes = _array_files({**self._described(), "points": 0}).values()
            features, outputs = (np.empty(*kind) for kind in shapes)
            return FeatureStore(features, outputs, self._described())
        everything = self._checked()
        assert everything is not None
        several = list(self._folder.glob("manifest-*.json"))
        if several and not _without(0, self._points, everything["finished"]):
            _write_manifest(self._folder / _MANIFEST, everything)
            for path in several:
                path.unlink(missing_ok=True)
        whole, scale = _opened(self._folder, everything), self._scale
        assert stop is not None
        return FeatureStore(
            whole.features[start * scale : stop * scale], whole.outputs[start:stop], everything
        )

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is not None:
                # Ctrl-C, or a point that cannot be read: what is computed is kept.
                with contextlib.suppress(OSError):
                    self.flush()
        finally:
            self._close()
