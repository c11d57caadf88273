"""What users pass as ``X`` becomes batches on the model's device."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ..arrays import check_dense, is_frame, of_frame, unmasked
from .fields import Fields
from .repeatable import first_difference, generator_states, kept_generators, known_length

Batch: TypeAlias = Tensor | dict[str, Tensor] | tuple[Tensor, ...]
"""One batch of inputs: ``model(x)`` for a tensor, ``model(**x)`` for a dict of tensors,
``model(*x)`` for a tuple."""

# Points per batch of streams that have no batches of their own, and of those read into memory.
_READ_SIZE = 64
# Points of a data set that are read twice to see whether they come out the same, and how often
# again if it draws random numbers and they did.
_COMPARED = 8
_MORE_READINGS = 4


def leaves(batch: Batch) -> list[Tensor]:
    """Return the tensors of a batch."""
    if isinstance(batch, dict):
        return list(batch.values())
    return list(batch) if isinstance(batch, tuple) else [batch]


def batch_length(batch: Batch) -> int:
    """Return the number of points."""
    return len(leaves(batch)[0])


def map_batch(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Return the batch with every tensor replaced by the function's value."""
    if isinstance(batch, dict):
        return {key: function(value) for key, value in batch.items()}
    return tuple(map(function, batch)) if isinstance(batch, tuple) else function(batch)


def take(batch: Batch, rows: slice | Tensor | list[int]) -> Batch:
    """Return some of the points."""
    return map_batch(lambda leaf: leaf[rows], batch)


def same_shapes(a: Batch, b: Batch) -> bool:
    """Whether two batches can be concatenated: the same inputs, alike but for their lengths."""
    return bool(_shape(a) == _shape(b))


def _shape(batch: Batch) -> Any:
    """Return what batches that can be concatenated have in common."""
    parts: Any = enumerate(leaves(batch))
    if isinstance(batch, dict):
        parts = batch.items()
    return type(batch), frozenset((key, leaf.shape[1:], leaf.dtype) for key, leaf in parts)


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Return the points of batches that have the :func:`same_shapes`, in order."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    if isinstance(first, dict):
        return {key: torch.cat([b[key] for b in batches if isinstance(b, dict)]) for key in first}
    if isinstance(first, tuple):
        columns = zip(*(b for b in batches if isinstance(b, tuple)), strict=True)
        return tuple(torch.cat(column) for column in columns)
    return torch.cat([b for b in batches if isinstance(b, Tensor)])


def call_arguments(batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return positional and keyword arguments of the model."""
    if isinstance(batch, dict):
        return (), batch
    return (batch if isinstance(batch, tuple) else (batch,)), {}


def _even(length: int, size: int) -> Iterator[range]:
    """Split points into runs of at most `size`, as even as possible.

    So no run has one point where that can be avoided: many networks squeeze that axis away.
    """
    runs = -(-length // size)
    for i in range(runs):
        yield range(i * length // runs, (i + 1) * length // runs)


class _Runs:
    """Batches of consecutive points for a loader; a list of all indices would not fit in memory."""

    def __init__(self, runs: Iterable[range]) -> None:
        self.runs = list(runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[list[int]]:
        return map(list, self.runs)


def _split(batch: Batch, size: int) -> Iterator[Batch]:
    for run in _even(batch_length(batch), size):
        whole = len(run) == batch_length(batch)
        yield batch if whole else take(batch, slice(run.start, run.stop))


def _merge(batches: Sequence[Batch]) -> list[Batch]:
    """Concatenate neighbours that can be."""
    runs: list[list[Batch]] = []
    for batch in batches:
        if runs and same_shapes(runs[-1][0], batch):
            runs[-1].append(batch)
        else:
            runs.append([batch])
    return [concatenate(run) for run in runs]


def as_tensor(value: object, name: str) -> Tensor:
    """Return an array of numbers as a tensor, which passes unchanged."""
    leaf = as_leaf(value, name)
    if isinstance(leaf, Tensor):
        return leaf
    # torch knows neither byte-swapped nor negatively strided arrays, and warns about read-only
    # ones.
    native = np.ascontiguousarray(leaf, dtype=leaf.dtype.newbyteorder("="))
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def as_leaf(value: object, name: str) -> Any:
    """Return a tensor or an array as it is (mapped from a file, say), a DataFrame as an array.

    Raises
    ------
    TypeError
        Something else; sparse, nested and masked ones; no numbers.
    """
    if isinstance(value, Tensor):
        check_dense(name, value)
        return value
    if is_frame(value):
        return of_frame(name, value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise TypeError(
                f"{name} has dtype {value.dtype}; expected real numbers, integers or booleans"
            )
        return unmasked(name, value)
    raise TypeError(f"{name} is a {type(value).__name__}; expected a torch tensor or a numpy array")


@contextmanager
def dtype_explained(batch: Batch) -> Iterator[None]:
    """Explain why a model failed that was called on integers and computes with numbers.

    Raises
    ------
    TypeError
        Instead of the error, if that is about types and the batch holds integers.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # NotImplementedError is a RuntimeError
        kinds = {str(leaf.dtype).removeprefix("torch.") for leaf in leaves(batch)}
        integers = sorted(kind for kind in kinds if "int" in kind or kind == "bool")
        text = str(error).partition("\n")[0]
        about_types = "type" in text.lower() or "not implemented for" in text
        # An embedding asks for other integers, in clear words.
        if not integers or not about_types or "indices" in text:
            raise
        raise TypeError(
            f"the model cannot be called on inputs of dtype {', '.join(integers)} ({text}): give "
            "it what it was trained on, as images of bytes that are scaled and normalised, "
            "X.float() / 255, or other numbers as X.float() (in numpy X.astype(np.float32))"
        ) from error


def _stack(items: list[Any]) -> Any:
    """Make a batch of the items of a data set without a loader."""
    try:
        return default_collate(items)
    except RuntimeError as error:
        raise ValueError(
            f"the items of the data set cannot be stacked ({error}): pass a DataLoader whose "
            "collate_fn pads them to one shape"
        ) from None


class Inputs:
    """Batches of `X`, cast to the model's floating dtype and moved to its device one at a time.

    Data sets and loaders must give the same points each time they are read. Of those that can be
    indexed, a few points are read twice before a pass, and compared with it; of streams the first
    batch is read again after it, if they can be read again.

    Parameters
    ----------
    X : Tensor, ndarray, DataFrame, dict or tuple of them, Dataset or DataLoader
        First axis: points.
    name : str
        Of the argument, for messages.
    device : torch.device
        Where batches go.
    dtype : torch.dtype
        What floating-point inputs become; integers stay what they are.
    fields : Fields
        Which fields of an item, a dict or a tuple are inputs.

    Attributes
    ----------
    length : int or None
        Number of points; None: known only after they have been read.
    is_numpy : bool
        Whether `X` is made of arrays, so that results are.

    Raises
    ------
    TypeError
        For anything else, and inputs that are not certain.
    ValueError
        No points, inputs of different lengths, or a loader without a known order.
    """

    def __init__(
        self,
        X: Any,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        fields: Fields,
    ) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self._fields = fields
        self.is_numpy = False
        self.length: int | None = None
        # In memory: batches that cannot be concatenated with their neighbours.
        self._kept: list[Batch] | None = None
        self._dataset: Any = None  # one that can be indexed
        self._loader: DataLoader[Any] | None = None
        self._batch: int | None = None  # its batches' size, where they have one
        # Of a part: number of its first point, and where it is read from if not at that point.
        self._start = 0
        self._whole: Inputs | None = None
        if isinstance(X, DataLoader):
            self._take_loader(X)
        elif isinstance(X, IterableDataset):
            self._loader = DataLoader(X, batch_size=_READ_SIZE)
        elif isinstance(X, Dataset):
            self._dataset, self.length = X, len(X)  # type: ignore[arg-type]
        else:
            batch = self._in_memory(X)
            self.is_numpy = all(isinstance(leaf, np.ndarray) for leaf in leaves(batch))
            self._keep([batch])
        if self.length == 0:
            raise ValueError(f"{name} is empty; expected at least one point")
        # The first batches of a loader, and the rest of the same pass: a look at the first points
        # loses none of a stream.
        self._seen: list[Batch] = []
        self._rest: Iterator[Any] | None = None
        # A few points that were read before, by position, and the length of a whole pass.
        self._points: list[tuple[int, Batch]] = []
        self._compared = False  # a part of points that were
        self._total: int | None = None

    @classmethod
    def of(cls, batches: Sequence[Batch], like: Inputs) -> Inputs:
        """Return points in memory; batches of different shapes stay apart."""
        result = cls.__new__(cls)
        vars(result).update(vars(like), _dataset=None, _loader=None, _seen=[], _rest=None)
        result._keep(_merge(batches))
        return result

    def _keep(self, batches: list[Batch]) -> None:
        self._kept, self.length = batches, sum(map(batch_length, batches))

    def _take_loader(self, loader: DataLoader[Any]) -> None:
        if loader.batch_sampler is None:
            raise ValueError(f"{self.name} is a DataLoader without batches; give batch_size")
        self._loader, self._batch = loader, loader.batch_size
        if not isinstance(loader.dataset, IterableDataset):
            self._dataset, self.length = loader.dataset, known_length(loader, self.name)
        elif loader.drop_last:
            raise ValueError(
                f"{self.name} is a DataLoader with drop_last=True, which would lose points; use "
                "drop_last=False"
            )

    def _in_memory(self, X: Any) -> Batch:
        """Return tensors and arrays as they are, as one batch."""
        name, kind = self.name, type(X).__name__
        if isinstance(X, Iterator):
            raise TypeError(
                f"{name} is a {kind}, which can be read once only: pass what it reads from, as a "
                "Dataset, a DataLoader or an IterableDataset whose __iter__ starts anew"
            )
        if not isinstance(X, (Tensor, np.ndarray, Mapping, tuple, list)) and not is_frame(X):
            formats = (
                f"; of a Hugging Face data set: DataLoader({name}.with_format('torch'), "
                "batch_size=...)"
                if hasattr(X, "with_format")
                else ""
            )
            raise TypeError(
                f"{name} is a {kind}; expected a tensor, an array, a DataFrame, a dict of them "
                f"(for model(**x)), a Dataset or a DataLoader{formats}"
            )
        if isinstance(X, (Mapping, tuple, list)) and not X:
            raise ValueError(f"{name} is an empty {kind}; expected at least one input")
        return self._checked(self._fields.of_given(X, name), as_leaf)

    def _read(self, raw: Any) -> Batch:
        """Return what a loader gives as a batch in its memory."""
        return self._checked(self._fields.of_batch(raw, self.name), as_tensor)

    def _checked(self, value: Any, convert: Callable[[object, str], Any]) -> Batch:
        """Return inputs with every leaf converted; all must have the same number of points."""

        def leaf(part: object, name: str) -> Any:
            result = convert(part, name)
            if result.ndim == 0:
                raise ValueError(f"{name} has shape (); expected points along the first axis")
            return result

        if isinstance(value, PackedSequence):
            raise TypeError(
                f"{self.name} is a PackedSequence, which has no axis of points: pass padded "
                "sequences and their lengths, and pack them in the model"
            )
        if not isinstance(value, (Mapping, tuple, list)):
            return leaf(value, self.name)  # type: ignore[no-any-return]
        fields = value.items() if isinstance(value, Mapping) else enumerate(value)
        parts = {key: leaf(part, f"{self.name}[{key!r}]") for key, part in fields}
        lengths = {key: len(part) for key, part in parts.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.name}: the inputs disagree in length: {lengths}")
        if isinstance(value, Mapping):
            return {str(key): part for key, part in parts.items()}
        return tuple(parts.values())

    def _on_device(self, batch: Batch) -> Batch:
        return map_batch(self._leaf, batch)

    def _leaf(self, value: Any) -> Tensor:
        tensor = as_tensor(value, self.name)
        # A copy, or models that change their input in place would change the user's. (Nor can
        # tensors made under inference_mode be saved for a backward pass.)
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(self.device, dtype, copy=True)

    # reading

    def _pass(self, size: int) -> Iterator[Batch]:
        """All batches of a data set or loader, checked."""
        if self._dataset is not None:
            self._read_twice()
        loader = self._loader
        if loader is None:
            first = self._start
            runs = (range(first + r.start, first + r.stop) for r in _even(self.length or 0, size))
            loader = self._loader_of(_Runs(runs))
        seen, rest = self._seen, self._rest
        self._seen, self._rest = [], None
        start, head = 0, None
        for batch in chain(seen, map(self._read, loader if rest is None else rest)):
            if head is None:
                head = batch
            elif self._dataset is None and start == batch_length(head) and loader.num_workers > 1:
                self._warn_of_workers(head, batch)
            if self._dataset is not None and self._batch is not None:
                left = (self.length or 0) - start
                self._check_count(batch_length(batch), min(self._batch, left))
            self._compare_points(batch, start)
            start += batch_length(batch)
            yield batch
        self._check_total(start)
        if self._dataset is None and head is not None:
            self._compare_with_another_pass(head)

    def _warn_of_workers(self, first: Batch, second: Batch) -> None:
        if first_difference(first, second) is None:
            warnings.warn(
                f"the first two batches of {self.name} are the same: does each worker of the "
                "loader read the whole stream? Then every point is there several times; see "
                "torch.utils.data.get_worker_info",
                UserWarning,
                stacklevel=2,
            )

    def _compare_points(self, batch: Batch, start: int) -> None:
        for position, point in self._points:
            at = position - start
            if 0 <= at < batch_length(batch):
                now = take(batch, slice(at, at + 1))
                # Of padded text the shape depends on the rest of the batch.
                if same_shapes(point, now) and first_difference(point, now) is not None:
                    raise self._changed(self._start + position)

    def _changed(self, position: int) -> ValueError:
        return ValueError(
            f"point {position} of {self.name} differs when it is read again, so outputs and "
            "features would belong to different inputs: the data set augments its points at "
            "random, or they come in another order (shuffled, or sorted by a collate_fn). Switch "
            "that off for the pool: transforms as in evaluation, shuffle=False"
        )

    def _check_total(self, total: int) -> None:
        known = self.length if self._dataset is not None else self._total
        self._check_count(total, total if known is None else known)
        self._total = total

    def _check_count(self, found: int, expected: int) -> None:
        if found == expected:
            return
        if self._dataset is not None:
            why = "its collate_fn leaves out or adds points, so rows have no known place"
        elif found == 0:
            why = "it can be read once only: let its __iter__ start anew"
        else:
            why = "it must give the same points each time it is read"
        raise ValueError(f"{self.name} gave {found} points instead of {expected}: {why}")

    def _compare_with_another_pass(self, head: Batch) -> None:
        assert self._loader is not None
        with kept_generators():
            # A stream that can be read once only has nothing to give, or refuses in its own way;
            # this pass was right all the same.
            try:
                again = next(iter(self._loader), None)
            except Exception:
                return
            if again is None:
                return
            row = first_difference(head, self._read(again))
        if row is not None:
            raise self._changed(row)

    def _read_twice(self, count: int = 0) -> None:
        """Read at least `count` points all over a data set twice, and keep them."""
        count = max(count, _COMPARED)
        if self._compared or len(self._points) >= min(count, self.length or 0):
            return
        rows = _spread(self.length or 0, count)
        groups = [rows]
        with kept_generators():
            try:
                readings, draws = self._readings(groups, 2)
            except Exception as error:
                if self._loader is None:
                    raise
                # Of batches of one, or of like points, a collate_fn need not stack all others.
                groups = [[row] for row in rows]
                try:
                    readings, draws = self._readings(groups, 2)
                except Exception:
                    raise error from None
            for group, batch in zip(groups, readings[0], strict=True):
                self._check_count(batch_length(batch), len(group))
            if draws and self._first_change(groups, readings) is None:
                readings += self._readings(groups, _MORE_READINGS)[0]
        change = self._first_change(groups, readings)
        if change is not None:
            raise self._changed(change)
        if draws:
            warnings.warn(
                f"the data set of {self.name} draws random numbers when it is read; the few points "
                "compared came out alike, but if it augments at random, switch that off",
                UserWarning,
                stacklevel=2,
            )
        self._points = [
            (row, take(batch, slice(i, i + 1)))
            for group, batch in zip(groups, readings[0], strict=True)
            for i, row in enumerate(group)
        ]

    def _readings(self, groups: list[list[int]], times: int) -> tuple[list[list[Batch]], bool]:
        """Read groups of points several times; and whether that drew random numbers.

        Every other time from the last to the first, which a `collate_fn` that sorts undoes.
        """
        orders = [group[:: (-1) ** t] for t in range(times) for group in groups]
        source = iter(self._loader_of(orders, workers=1))
        before = generator_states()
        found = [self._read(raw) for raw in source]
        draws = generator_states() != before
        readings = [found[i : i + len(groups)] for i in range(0, len(found), len(groups))]
        for reading in readings[1::2]:
            reading[:] = [take(b, list(range(batch_length(b)))[::-1]) for b in reading]
        return readings, draws

    def _loader_of(self, batches: Any, workers: int | None = None) -> DataLoader[Any]:
        """Return a loader of these points of the data set (at most `workers`), as the user's is."""
        loader = self._loader
        if loader is None:
            return DataLoader(self._dataset, batch_sampler=batches, collate_fn=_stack)
        options: dict[str, Any] = {"collate_fn": loader.collate_fn}
        if loader.num_workers:
            # Not in this process: what a data set opens here, its workers would share.
            options.update(
                num_workers=min(loader.num_workers, workers or loader.num_workers),
                worker_init_fn=loader.worker_init_fn,
                multiprocessing_context=loader.multiprocessing_context,
                timeout=loader.timeout,
                prefetch_factor=loader.prefetch_factor,
            )
        return DataLoader(self._dataset, batch_sampler=batches, **options)

    @staticmethod
    def _first_change(groups: list[list[int]], readings: list[list[Batch]]) -> int | None:
        for i, group in enumerate(groups):
            for reading in readings[1:]:
                row = first_difference(readings[0][i], reading[i])
                if row is not None:
                    return group[min(row, len(group) - 1)]
        return None

    def _look(self, count: int) -> list[Batch]:
        """Return the first batches of a loader that hold `count` points; none of it is lost."""
        assert self._loader is not None
        if self._rest is None:
            self._rest = iter(self._loader)
        while sum(map(batch_length, self._seen)) < count:
            raw = next(self._rest, None)
            if raw is None:
                break
            self._seen.append(self._read(raw))
        if not self._seen:
            raise self._empty()
        return self._seen

    def _empty(self) -> ValueError:
        return ValueError(
            f"{self.name} gave no points: it is empty, or a stream that can be read once only and "
            "has been read before; expected at least one point"
        )

    # batches for the model

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of at most `size` points in order; larger ones of a loader are split evenly."""
        source: Iterable[Batch] = self._pass(size) if self._kept is None else self._kept
        if self._whole is not None:
            source = self._skipping(self._whole._pass(size))
        for batch in source:
            for part in _split(batch, size):
                yield self._on_device(part)

    def numbered(self, size: int, start: int) -> Iterator[tuple[int, Batch]]:
        """Yield the :meth:`batches` and the numbers of their first points, from `start` on."""
        for batch in self.batches(size):
            yield start, batch
            start += batch_length(batch)

    def identity(self) -> Iterator[Tensor | str]:
        """Yield what tells these points from others, of a few of them.

        Of streams nothing: which of them are seen depends on their batches.
        """
        if self.length is None:
            yield "stream"
            return
        probe = self.probe(_COMPARED)
        names = sorted(probe) if isinstance(probe, dict) else []
        yield repr(names)
        yield from [probe[name] for name in names] if isinstance(probe, dict) else leaves(probe)

    def _skipping(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the points of a part, from batches of all points."""
        start, at = self._start, 0
        stop = None if self.length is None else start + self.length
        for batch in batches:
            if stop is not None and at >= stop:
                return
            rows = range(batch_length(batch))[
                max(0, start - at) : None if stop is None else stop - at
            ]
            if rows:
                yield take(batch, slice(rows.start, rows.stop))
            at += batch_length(batch)
        if at < start:
            raise ValueError(
                f"{self.name} gave {at} points, and {start} of them have been read before: it must "
                "give the same points each time it is read"
            )

    def part(self, start: int, stop: int | None) -> Inputs:
        """Return points ``start ... stop - 1``, or from `start` on.

        Those before are not read, unless there is no other way: of a stream, or a loader that makes
        its batches in a way of its own.
        """
        if start == 0 and stop == self.length:
            return self
        if self._kept is not None:
            return self.panel(start, self.length or 0 if stop is None else stop)
        result = copy.copy(self)
        result._start, result.length = start, None if stop is None else stop - start
        result._seen, result._rest = [], None  # of all points
        loader = self._loader
        if self._dataset is None or (
            loader is not None and type(loader).__iter__ is not DataLoader.__iter__
        ):
            result._whole = self
            return result
        assert stop is not None
        # Compared with a second reading already, as far as they are compared.
        here = [(at - start, point) for at, point in self._points if start <= at < stop]
        result._points, result._compared = here, True
        if loader is not None:
            size = self._batch or _READ_SIZE
            runs = (range(a, min(a + size, stop)) for a in range(start, stop, size))
            result._loader, result._batch = self._loader_of(_Runs(runs)), size
        return result

    def n_batches(self, size: int) -> int | None:
        """Return the number of :meth:`batches`; None where it is not known."""
        if self._kept is not None:
            return sum(-(-batch_length(batch) // size) for batch in self._kept)
        if self.length is None:
            return None
        own = self.length if self._loader is None else self._batch
        if own is None:
            return None  # of a batch sampler
        whole, rest = divmod(self.length, own)
        return whole * -(-own // size) + -(-rest // size)

    def _head(self, count: int) -> list[Batch]:
        """Return batches in memory that hold the first `count` points."""
        if self._kept is not None:
            return self._kept
        if self._loader is not None:
            return self._look(count)
        with kept_generators():
            return self._readings([list(range(min(count, self.length or 0)))], 1)[0][0]

    def first(self, count: int) -> list[Batch]:
        """Return the first (at most) `count` points, in batches each of one shape."""
        result: list[Batch] = []
        for batch in self._head(count):
            left = count - sum(map(batch_length, result))
            if left > 0:
                result.append(take(batch, slice(0, left)))
        return [self._on_device(batch) for batch in _merge(result)]

    def few(self, count: int) -> Inputs:
        """Return the first (at most) `count` points as tensors in memory."""
        result = Inputs.of(self.first(count), self)
        result.is_numpy = False
        return result

    def probe(self, count: int) -> Batch:
        """Return at most `count` (at least two) points from all over the data, the first included.

        Of streams they are among the first points: nothing of a stream is lost by looking. Of
        batches that differ in shape, the shape that most points have counts.
        """
        if self._dataset is not None:
            self._read_twice(count)
            batches = [point for _, point in self._points]
        else:
            batches = self._head(count)
        groups: dict[Any, list[Batch]] = {}
        for batch in batches:
            groups.setdefault(_shape(batch), []).append(batch)
        alike = max(groups.values(), key=lambda group: sum(map(batch_length, group)))
        rows = _spread(sum(map(batch_length, alike)), count)
        parts, start = [], 0
        for batch in alike:
            stop = start + batch_length(batch)
            here = [row - start for row in rows if start <= row < stop]
            if here:
                parts.append(take(batch, here))
            start = stop
        return self._on_device(concatenate(parts))

    def sliceable(self) -> Inputs:
        """Return the same points in memory, so that panels can be taken again."""
        if self._kept is not None:
            return self
        batches = [map_batch(Tensor.cpu, batch) for batch in self._pass(_READ_SIZE)]
        if not batches:
            raise self._empty()
        return Inputs.of(batches, self)

    def panel(self, start: int, stop: int) -> Inputs:
        """Return points ``start ... stop - 1`` of sliceable inputs."""
        parts: list[Batch] = []
        for batch in self._kept or []:
            n = batch_length(batch)
            if start < n and stop > 0:
                parts.append(take(batch, slice(max(0, start), stop)))
            start, stop = start - n, stop - n
        return Inputs.of(parts, self)

    def bytes_per_point(self) -> int:
        """Return the memory of one point on the device."""
        return sum(leaf.nbytes for leaf in leaves(self.first(1)[0]))


def _spread(length: int, count: int) -> list[int]:
    """Return at most `count` (at least two) evenly spaced positions, from the first to the last."""
    count = min(length, max(2, count))
    return [i * (length - 1) // max(1, count - 1) for i in range(count)]
