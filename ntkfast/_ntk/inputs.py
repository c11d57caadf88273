"""What users pass as ``X`` becomes batches on the model's device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
)

Batch: TypeAlias = Tensor | dict[str, Tensor] | tuple[Tensor, ...]
"""One batch of inputs: ``model(x)`` for a tensor, ``model(**x)`` for a dict of tensors,
``model(*x)`` for a tuple."""

# Points per batch of streams that have no batches of their own, and of those read into memory.
_READ_SIZE = 64


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
    if type(a) is not type(b) or (
        isinstance(a, dict) and isinstance(b, dict) and a.keys() != b.keys()
    ):
        return False
    ours = leaves(a)
    theirs = [b[key] for key in a] if isinstance(a, dict) and isinstance(b, dict) else leaves(b)
    return len(ours) == len(theirs) and all(
        x.shape[1:] == y.shape[1:] and x.dtype == y.dtype for x, y in zip(ours, theirs, strict=True)
    )


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
    if isinstance(value, Tensor):
        return value
    array = _checked(value, name)
    # torch knows neither byte-swapped nor negatively strided arrays, and warns about read-only
    # ones.
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def _checked(value: object, name: str) -> Any:
    """Return a tensor or array of numbers as it is: one that is mapped from a file stays there."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise TypeError(
                f"{name} has dtype {value.dtype}; expected real numbers, integers or booleans"
            )
        return value
    raise TypeError(f"{name} is a {type(value).__name__}; expected a torch tensor or a numpy array")


class Inputs:
    """Batches of `X`, cast to the model's floating dtype and moved to its device one at a time.

    Parameters
    ----------
    X : Tensor, ndarray, dict of them, Dataset or DataLoader
        First axis: points. Datasets and loaders give ``x``, ``(x,)`` or ``(x, y)``; ``y`` is
        ignored.

    Attributes
    ----------
    length : int or None
        Number of points; None: known only after they have been read.
    """

    def __init__(self, X: Any, name: str, device: torch.device, dtype: torch.dtype) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self.is_numpy = isinstance(X, np.ndarray) or (
            isinstance(X, Mapping) and all(isinstance(value, np.ndarray) for value in X.values())
        )
        self.length: int | None = None
        # In memory: batches that cannot be concatenated with their neighbours.
        self._kept: list[Batch] | None = None
        if isinstance(X, (Tensor, np.ndarray)):
            if X.ndim == 0:
                raise ValueError(f"{name} has shape (); expected points along the first axis")
            self._keep([_checked(X, name)])
        elif isinstance(X, Mapping):
            fields = {str(key): _checked(v, f"{name}[{key!r}]") for key, v in X.items()}
            lengths = {key: len(value) for key, value in fields.items()}
            if len(set(lengths.values())) != 1:
                raise ValueError(f"{name}: the inputs of model(**x) disagree in length: {lengths}")
            self._keep([fields])
        elif isinstance(X, DataLoader):
            if isinstance(X.sampler, RandomSampler):
                raise ValueError(
                    f"{name} is a DataLoader that shuffles, so rows would have no known order; "
                    "use shuffle=False"
                )
            if X.drop_last:
                raise ValueError(
                    f"{name} is a DataLoader with drop_last=True, which would lose points; "
                    "use drop_last=False"
                )
            if X.batch_size is None and X.batch_sampler is None:
                raise ValueError(f"{name} is a DataLoader without batches; give batch_size")
            known = type(X.batch_sampler) is BatchSampler
            if known and not isinstance(X.dataset, IterableDataset):
                self.length = len(X.sampler)  # type: ignore[arg-type]
        elif isinstance(X, Dataset) and not isinstance(X, IterableDataset):
            self.length = len(X)  # type: ignore[arg-type]
        elif isinstance(X, (tuple, list)):
            raise TypeError(
                f"{name} is a {type(X).__name__}; expected a tensor, an array, a dict of them (for "
                "model(**x)), a Dataset or a DataLoader. Wrap a model of several positional inputs "
                "so that it takes one."
            )
        elif not isinstance(X, IterableDataset):
            raise TypeError(
                f"{name} is a {type(X).__name__}; expected a tensor, an array, a dict of them, "
                "a Dataset or a DataLoader"
            )
        if self.length == 0:
            raise ValueError(f"{name} is empty; expected at least one point")
        # One loader for all reads, so that a look at the first points loses none of a stream.
        self._X = DataLoader(X, batch_size=_READ_SIZE) if isinstance(X, IterableDataset) else X
        self._seen: list[Batch] = []
        self._rest: Iterator[Any] | None = None

    @classmethod
    def of(cls, batches: Sequence[Batch], like: Inputs) -> Inputs:
        """Return points in memory; batches of different shapes stay apart."""
        result = cls.__new__(cls)
        vars(result).update(vars(like), _X=None, _seen=[], _rest=None)
        result._keep(_merge(batches))
        return result

    def _keep(self, batches: list[Batch]) -> None:
        self._kept, self.length = batches, sum(map(batch_length, batches))

    def _read(self, raw: Any) -> Batch:
        """Return what a loader gives as a batch in its memory."""
        if isinstance(raw, (tuple, list)) and len(raw) > 0:
            raw = raw[0]
        if isinstance(raw, Mapping):
            return {str(key): as_tensor(v, f"{self.name}[{key!r}]") for key, v in raw.items()}
        return as_tensor(raw, self.name)

    def _on_device(self, batch: Batch) -> Batch:
        return map_batch(self._leaf, batch)

    def _leaf(self, value: Any) -> Tensor:
        tensor = as_tensor(value, self.name)
        # A copy, or models that change their input in place would change the user's. (Nor can
        # tensors made under inference_mode be saved for a backward pass.)
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(self.device, dtype, copy=True)

    def _loader(self, size: int) -> DataLoader[Any]:
        if isinstance(self._X, DataLoader):
            return self._X
        return DataLoader(
            self._X, batch_sampler=[list(run) for run in _even(self.length or 0, size)]
        )

    def _read_batches(self, size: int) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        seen, rest = self._seen, self._rest
        self._seen, self._rest = [], None
        yield from seen
        for raw in self._loader(size) if rest is None else rest:
            yield self._read(raw)

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of at most `size` points in order; larger ones of a loader are split evenly."""
        for batch in self._read_batches(size):
            for part in _split(batch, size):
                yield self._on_device(part)

    def n_batches(self, size: int) -> int | None:
        """Return the number of :meth:`batches`; None where it is not known."""
        if self._kept is not None:
            return sum(-(-batch_length(batch) // size) for batch in self._kept)
        if self.length is None:
            return None
        if isinstance(self._X, DataLoader) and self._X.batch_size is not None:
            own = self._X.batch_size
            whole, rest = divmod(self.length, own)
            return whole * -(-own // size) + -(-rest // size)
        return -(-self.length // size)

    def _look(self, count: int) -> list[Batch]:
        """Return the first batches of a loader that hold `count` points; none of it is lost."""
        if self._rest is None:
            self._rest = iter(self._loader(_READ_SIZE))
        while sum(map(batch_length, self._seen)) < count:
            raw = next(self._rest, None)
            if raw is None:
                break
            self._seen.append(self._read(raw))
        if not self._seen:
            raise ValueError(f"{self.name} is empty; expected at least one point")
        return self._seen

    def _head(self, count: int) -> list[Batch]:
        if self._kept is not None:
            return self._kept
        if isinstance(self._X, Dataset):
            return [self._at(list(range(min(count, self.length or 0))))]
        return self._look(count)

    def _at(self, rows: list[int]) -> Batch:
        """Return points of a dataset."""
        dataset: Any = self._X
        (raw,) = DataLoader(dataset, batch_sampler=[rows])
        return self._read(raw)

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
        """Return about `count` points from all over the data; the first is among them.

        Of streams they are among the first points: nothing of a stream is lost by looking. Of
        batches that differ in shape, those that can be concatenated with the first count.
        """
        if self._kept is None and isinstance(self._X, Dataset):
            return self._on_device(self._at(_spread(self.length or 0, count)))
        batches = self._head(count)
        alike = concatenate([b for b in batches if same_shapes(b, batches[0])])
        rows = _spread(batch_length(alike), count)
        return self._on_device(take(alike, rows))

    def sliceable(self) -> Inputs:
        """Return the same points in memory, so that panels can be taken again."""
        if self._kept is not None:
            return self
        batches = [map_batch(Tensor.cpu, batch) for batch in self._read_batches(_READ_SIZE)]
        if not batches:
            raise ValueError(f"{self.name} is empty; expected at least one point")
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
