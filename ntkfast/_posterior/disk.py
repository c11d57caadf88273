"""Features that stay on disk: psi is formed block by block wherever it is read, never as a whole.

A block of features is read, and what labels have done to psi is done to it again, update by update
and rounded as in memory, so that psi is the same, bit for bit. What stays in memory is a few
blocks, and some numbers for each point.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arrays import ArgumentTypeError, ArgumentValueError, Array, check_finite, check_shape
from .covariance import Update, WeightSpace, Whitening
from .engines import CPU, Engine
from .group import ALONE, Alone

__all__ = [
    "BLOCK_BYTES",
    "DiskRows",
    "DiskSpace",
    "HeldRows",
    "Place",
    "Rows",
    "Source",
    "is_on_disk",
    "reader",
    "widened",
]

# Scattered rows that are read before their pages are let go.
_TAKEN_ROWS = 1024
# Bytes of a block of psi.
BLOCK_BYTES = 1 << 26
# Rows of which a place knows the bytes.
_SAMPLED_ROWS = 256


def _map_of(array: Any) -> mmap.mmap | None:
    """Return the memory map that a numpy array lies in."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array


def is_on_disk(features: Any) -> bool:
    """Whether these are features on disk: a memory map of numpy."""
    return isinstance(features, np.memmap) and _map_of(features) is not None


def widened(features: Any) -> Any:
    """Return rows in float16 as float32, and others as they are."""
    if isinstance(features, np.ndarray) and features.dtype == np.float16:
        return features.astype(np.float32)
    return features


class Place(NamedTuple):
    """Where rows of features lie in a file, and what they are.

    Attributes
    ----------
    path : str
        Absolute.
    dtype, shape, strides, offset
        Of the rows in the file, in bytes.
    size, modified : int
        Of the whole file: its bytes, and nanoseconds since 1970.
    digest : str
        Of some rows, the first and the last among them.
    whole : str
        Of all rows.
    """

    path: str
    dtype: str
    shape: tuple[int, int]
    strides: tuple[int, int]
    offset: int
    size: int
    modified: int
    digest: str
    whole: str

    def opened(self, path: Path) -> Any:
        """Map the rows, read-only, as they lie in this file; None: it is too small."""
        size = path.stat().st_size
        if not size:
            return None
        whole = np.memmap(path, np.uint8, "r")
        try:
            rows: Any = np.ndarray.__new__(
                np.memmap,
                self.shape,
                np.dtype(self.dtype),
                whole._mmap,  # type: ignore[attr-defined]
                self.offset,
                self.strides,
            )
        except (TypeError, ValueError):
            return None
        rows._mmap, rows.filename = whole._mmap, path.absolute()  # type: ignore[attr-defined]
        rows.offset, rows.mode = 0, "r"
        return rows

    def is_untouched(self, path: Path) -> bool:
        """Whether nobody has written to the file since."""
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (self.size, self.modified)


def reopened(place: Place) -> Source:
    """Return the features of a pickle."""
    path = Path(place.path)
    array = place.opened(path) if path.exists() else None
    source = None if array is None else Source("features", array, ("N", "d"))
    if source is None or not place.is_untouched(path) or source.digest() != place.digest:
        raise ValueError(
            f"a pickled posterior refers to features in {path}, which have been changed or moved "
            "since: build it again, or use `save` and `load`, which look closer"
        )
    source.whole = place.whole
    return source


class Source:
    """Features (N, d) on disk: a memory-mapped array of numpy, float16, float32 or float64.

    Rows come as new arrays, float16 as float32. Pages of a read-only map are let go after they are
    read, so that they do not count as memory of this process; the system keeps them cached while
    there is room.
    """

    def __init__(self, name: str, array: Any, shape: tuple[int | str | None, ...]) -> None:
        if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
            raise ArgumentTypeError(
                name, f"{name} has dtype {array.dtype}; expected float16, float32 or float64"
            )
        check_shape(name, array, shape)
        self.name = name
        self.array = array
        self.dtype = np.dtype(np.float64 if array.dtype.itemsize == 8 else np.float32)
        self.shape: tuple[int, int] = array.shape
        base = _map_of(array)
        # What is written to a private map exists in its pages alone: those stay.
        read_only = hasattr(base, "madvise") and not array.flags.writeable
        self._map = base if read_only else None
        self._norms: Array | None = None
        self._read = hashlib.blake2b(digest_size=16)
        self.whole = ""  # until all rows are checked
        if self._map is not None:
            begin = np.frombuffer(self._map, np.uint8).ctypes.data
            self._begin = array.ctypes.data - begin

    def __len__(self) -> int:
        return self.shape[0]

    def norms(self) -> Array:
        """Squared norms (N,), float64, of rows that are found to be finite; read once."""
        if self._norms is None:
            norms = np.empty(len(self))
            for start, rows in DiskRows(self, (), self.dtype).blocks():
                part = slice(start, start + len(rows))
                self.check(rows, start)
                norms[part] = CPU.squared_norms(rows)
            self._norms = norms
        return self._norms

    def digest(self) -> str:
        """Describe some rows, the first and the last among them."""
        N = len(self)
        points = np.unique(np.linspace(0, N - 1, min(N, _SAMPLED_ROWS)).astype(np.int64))
        of = hashlib.blake2b(digest_size=16)
        for point in points:
            of.update(np.ascontiguousarray(self.array[point]).data)
            self._advise(int(point), int(point) + 1, "MADV_DONTNEED")
        return of.hexdigest()

    def place(self) -> Place:
        """Return where the rows lie; a ValueError where no file has them."""
        array, base = self.array, _map_of(self.array)
        name, mode = getattr(array, "filename", None), getattr(array, "mode", None)
        if base is None or name is None or mode == "c":
            raise ArgumentValueError(
                self.name,
                f"{self.name} are a memory map "
                + ("whose changes no file has" if mode == "c" else "of a file without a name")
                + ": write them to a file with np.save, and build the posterior from that",
            )
        path = Path(os.fspath(name)).absolute()
        whole = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
        begin = np.frombuffer(base, np.uint8).ctypes.data
        status = path.stat()
        return Place(
            path=str(path),
            dtype=array.dtype.str,
            shape=(int(array.shape[0]), int(array.shape[1])),
            strides=(int(array.strides[0]), int(array.strides[1])),
            offset=int(whole + array.ctypes.data - begin),
            size=status.st_size,
            modified=status.st_mtime_ns,
            digest=self.digest(),
            whole=self.whole,
        )

    def __reduce__(self) -> Any:
        return reopened, (self.place(),)

    def check(self, rows: Array, start: int) -> None:
        """Raise a ValueError that locates NaN or an infinity in rows from `start` on.

        Every row is checked once, in order.
        """
        check_finite(self.name, rows, np.arange(start, start + len(rows)))
        self._read.update(rows.data)
        if start + len(rows) == len(self):
            self.whole = self._read.hexdigest()

    def whole_now(self) -> str:
        """Describe all rows as they are now: one pass."""
        of = hashlib.blake2b(digest_size=16)
        for _, rows in DiskRows(self, (), self.dtype).blocks():
            of.update(rows.data)
        return of.hexdigest()

    def _advise(self, start: int, stop: int, advice: str) -> None:
        if self._map is None or self.array.strides[0] <= 0 or stop <= start:
            return
        stride, page = self.array.strides[0], mmap.PAGESIZE
        first = (self._begin + start * stride) // page * page
        last = min(self._begin + stop * stride, len(self._map))
        self._map.madvise(getattr(mmap, advice), first, last - first)

    def read(self, start: int, stop: int) -> Array:
        """Rows [start, stop); those after them are asked for already."""
        self._advise(stop, min(2 * stop - start, len(self)), "MADV_WILLNEED")
        rows = np.array(self.array[start:stop], self.dtype, order="C")
        self._advise(start, stop, "MADV_DONTNEED")
        return rows

    def take(self, points: Array) -> Array:
        """Rows of these points."""
        rows = np.empty((len(points), self.shape[1]), self.dtype)
        # The system maps pages around each that is read: many points soon map all there is.
        for start in range(0, len(points), _TAKEN_ROWS):
            part = points[start : start + _TAKEN_ROWS]
            rows[start : start + len(part)] = self.array[part]
            self._advise(int(part.min()), int(part.max()) + 1, "MADV_DONTNEED")
        return rows


class HeldRows:
    """Rows of psi in memory, which picks change in place."""

    held = True

    def __init__(self, psi: Any, engine: Engine, *, owned: bool) -> None:
        self._psi, self._engine, self._owned = psi, engine, owned

    def __len__(self) -> int:
        return len(self._psi)

    def read(self, start: int, stop: int) -> Any:
        """Rows [start, stop), not to be written to."""
        return self._psi[start:stop]

    def take(self, items: Array) -> Any:
        """Rows of these positions as a new array."""
        return self._engine.rows(self._psi, items)

    def blocks(self, multiple: int = 1) -> Iterator[tuple[int, Any]]:
        """Where a block of rows begins, and the rows, a multiple of so many."""
        if len(self._psi):
            yield 0, self._psi

    def update(self, update: Update) -> None:
        """Do to psi what a pick does."""
        if not len(self._psi):
            return
        if not self._owned:
            self._psi, self._owned = self._engine.copy(self._psi), True
        self._psi = update.applied(self._engine, self._psi)


class DiskRows:
    """Rows of psi formed from features on disk as they are read.

    `updates` are done in the type of the features, those of `update` in `dtype`, as in memory.
    """

    held = False

    def __init__(
        self,
        source: Source,
        updates: tuple[Update, ...],
        dtype: np.dtype[Any],
        points: Array | None = None,
    ) -> None:
        self._source, self._updates, self._dtype = source, updates, dtype
        self._points = points
        self._picks: list[Update] = []
        self._step = max(1, BLOCK_BYTES // max(1, source.shape[1] * dtype.itemsize))

    def __len__(self) -> int:
        return len(self._source) if self._points is None else len(self._points)

    def _formed(self, psi: Array) -> Array:
        for update in self._updates:
            psi = update.applied(CPU, psi)
        psi = CPU.cast(psi, self._dtype)
        for update in self._picks:
            psi = update.applied(CPU, psi)
        return psi

    def read(self, start: int, stop: int) -> Array:
        """Rows [start, stop) as a new array."""
        if self._points is not None:
            return self._formed(self._source.take(self._points[start:stop]))
        return self._formed(self._source.read(start, stop))

    def take(self, items: Array) -> Array:
        """Rows of these positions as a new array."""
        return self._formed(
            self._source.take(items if self._points is None else self._points[items])
        )

    def blocks(self, multiple: int = 1) -> Iterator[tuple[int, Array]]:
        """Where a block of rows begins, and the rows, a multiple of so many."""
        step = max(1, self._step // multiple) * multiple
        for start in range(0, len(self), step):
            yield start, self.read(start, min(start + step, len(self)))

    def update(self, update: Update) -> None:
        """Do to psi what a pick does, wherever it is read from now on."""
        self._picks.append(update)


Rows = HeldRows | DiskRows


class DiskSpace(WeightSpace):
    """`WeightSpace` of features on disk.

    Labels cost one pass over the features, and add 4 d b operations for every point (at most 2 d^2)
    to each later pass. What is kept in memory is 8 bytes for each point, its variance.
    """

    on_disk = True

    def __init__(
        self, source: Source, whitening: Whitening, theta: Any, group: Alone = ALONE
    ) -> None:
        self.engine = whitening.engine
        self.source = source
        self.updates: tuple[Update, ...] = ()
        self.whitening = whitening
        self.theta = theta
        self.group = group
        self.variance = np.empty(0)  # until `fit` is done

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
        """See `WeightSpace.fit`; one pass, in which NaN and infinities are found."""
        space, mean = super().fit(features, labeled, noise, residual, engine, group)
        if len(space.variance) == 0:  # without labels
            space.variance = features.norms()
        return space, mean

    @property
    def size(self) -> int:
        """Number of points, with a group of this rank's."""
        return len(self.source)

    @property
    def dim(self) -> int:
        """Number d of features."""
        return self.source.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of psi."""
        return self.source.dtype

    def own(self, points: Array) -> Array:
        """Psi of points of this rank, by their position there, as a new array."""
        return DiskRows(self.source, self.updates, self.dtype).take(points)

    def copy(self) -> DiskSpace:
        """Independent copy, of the same features."""
        twin = DiskSpace(self.source, self.whitening, self.theta, self.group)
        twin.updates, twin.variance = self.updates, self.variance
        return twin

    def arrays(self) -> dict[str, Any]:
        """Return what a file keeps besides the features."""
        kept = {"theta": self.theta, "variance": self.variance} | self.whitening.arrays()
        kept["updates"] = np.array(len(self.updates))
        for number, update in enumerate(self.updates):
            for name, array in vars(update).items():
                if array is not None:
                    kept[f"update_{number}_{name}"] = array
        return kept

    @classmethod
    def of_arrays(cls, source: Source, kept: dict[str, Array]) -> DiskSpace:
        """Return the space of `arrays`."""
        space = cls(source, Whitening.restored(kept, CPU), kept["theta"])
        space.variance = kept["variance"]
        parts = [f"update_{number}_" for number in range(int(kept["updates"]))]
        space.updates = tuple(
            Update(W=kept[part + "W"])
            if part + "W" in kept
            else Update(kept[part + "U"], kept[part + "C"])
            for part in parts
        )
        return space

    def _updated(
        self, update: Update, step: Any, in_place: bool
    ) -> tuple[Array, Callable[[], None]]:
        mean, variance = np.empty((self.size, step.shape[1])), np.empty(self.size)
        unchecked = len(self.variance) == 0
        for start, psi in DiskRows(self.source, self.updates, self.dtype).blocks():
            if unchecked:  # as it is on disk: there are no updates yet
                self.source.check(psi, start)
            part = slice(start, start + len(psi))
            mean[part] = self.engine.product(psi, step)
            variance[part] = self.engine.squared_norms(update.applied(self.engine, psi))
        updates = (*self.updates, update)

        def commit() -> None:
            self.updates, self.variance = updates, variance

        return mean, commit


def reader(
    space: WeightSpace,
    dtype: np.dtype[Any],
    points: Array | None = None,
    then: Update | None = None,
) -> Rows:
    """Rows of psi in this type, those of this rank's `points` (increasing) or all.

    Held in memory where psi is, and where the rows of features on disk are two blocks at most.
    `then` is done to psi first, in its own type.
    """
    if isinstance(space, DiskSpace):
        updates = space.updates if then is None else (*space.updates, then)
        rows = DiskRows(space.source, updates, dtype, points)
        if len(rows) * space.dim * dtype.itemsize <= 2 * BLOCK_BYTES:
            return HeldRows(rows.read(0, len(rows)), CPU, owned=True)
        return rows
    engine = space.engine
    psi = space.psi if points is None else engine.rows(space.psi, points)
    if then is not None:
        psi = then.applied(engine, engine.copy(psi) if points is None and then.W is None else psi)
    rounded = engine.cast(psi, dtype)
    return HeldRows(rounded, engine, owned=rounded is not space.psi)
