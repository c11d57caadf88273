"""What users pass as ``X`` becomes batches on the model's device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    default_collate,
)

Batch = Tensor | dict[str, Tensor]
"""One batch of inputs: ``model(x)`` for a tensor, ``model(**x)`` for a dict of tensors."""


def batch_length(batch: Batch) -> int:
    return len(next(iter(batch.values()))) if isinstance(batch, dict) else len(batch)


def take(batch: Batch, rows: slice | Tensor) -> Batch:
    return (
        {key: value[rows] for key, value in batch.items()}
        if isinstance(batch, dict)
        else batch[rows]
    )


def concatenate(batches: list[Batch]) -> Batch:
    first = batches[0]
    if isinstance(first, dict):
        return {key: torch.cat([b[key] for b in batches if isinstance(b, dict)]) for key in first}
    return torch.cat([b for b in batches if isinstance(b, Tensor)])


def as_tensor(value: object, name: str) -> Tensor:
    """Return an array of numbers as a tensor, which passes unchanged."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise TypeError(
                f"{name} has dtype {value.dtype}; expected real numbers, integers or booleans"
            )
        # torch knows neither byte-swapped nor negatively strided arrays, and warns about read-only
        # ones.
        native = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
        return torch.from_numpy(native if native.flags.writeable else native.copy())
    raise TypeError(f"{name} is a {type(value).__name__}; expected a torch tensor or a numpy array")


class Inputs:
    """Batches of `X`, cast to the model's floating dtype and moved to its device one at a time.

    Parameters
    ----------
    X : Tensor, ndarray, dict of them, Dataset or DataLoader
        First axis: points. Datasets and loaders give ``x``, ``(x,)`` or ``(x, y)``; ``y`` is
        ignored.
    """

    def __init__(self, X: Any, name: str, device: torch.device, dtype: torch.dtype) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self.is_numpy = isinstance(X, np.ndarray) or (
            isinstance(X, Mapping) and all(isinstance(value, np.ndarray) for value in X.values())
        )
        self.length: int | None = None
        if isinstance(X, (Tensor, np.ndarray)):
            if X.ndim == 0:
                raise ValueError(f"{name} has shape (); expected points along the first axis")
            self.length = len(X)
        elif isinstance(X, Mapping):
            lengths = {key: len(value) for key, value in X.items()}
            if len(set(lengths.values())) != 1:
                raise ValueError(f"{name}: the inputs of model(**x) disagree in length: {lengths}")
            X = dict(X)
            self.length = next(iter(lengths.values()))
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
        self._X = DataLoader(X, batch_size=64) if isinstance(X, IterableDataset) else X
        self._seen: list[Any] = []
        self._rest: Iterator[Any] | None = None

    def _on_device(self, value: Any) -> Batch:
        if isinstance(value, Mapping):
            return {
                str(key): self._leaf(as_tensor(v, f"{self.name}[{key!r}]"))
                for key, v in value.items()
            }
        return self._leaf(as_tensor(value, self.name))

    def _leaf(self, value: Tensor) -> Tensor:
        value = value.detach().to(self.device, self.dtype if value.is_floating_point() else None)
        # Tensors made under inference_mode cannot be saved for a backward pass; copies can.
        return value.clone() if value.is_inference() else value

    def _raw_batches(self, size: int) -> Iterator[Any]:
        X = self._X
        if isinstance(X, (Tensor, np.ndarray)):
            for start in range(0, len(X), size):
                yield X[start : start + size]
        elif isinstance(X, dict):
            for start in range(0, self.length or 0, size):
                yield {key: value[start : start + size] for key, value in X.items()}
        else:
            loader = X if isinstance(X, DataLoader) else DataLoader(X, batch_size=size)
            if loader.batch_size is None and loader.batch_sampler is None:
                raise ValueError(f"{self.name} is a DataLoader without batches; give batch_size")
            seen, rest = self._seen, self._rest
            self._seen, self._rest = [], None
            for item in chain(seen, loader if rest is None else rest):
                yield item[0] if isinstance(item, (tuple, list)) and len(item) > 0 else item

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of at most `size` points in order; larger batches of a loader are split."""
        for raw in self._raw_batches(size):
            batch = self._on_device(raw)
            for start in range(0, batch_length(batch), size):
                yield take(batch, slice(start, start + size))

    def first(self, count: int) -> Batch:
        """Return the first (at most) `count` points."""
        X = self._X
        if isinstance(X, Dataset) and not isinstance(X, IterableDataset):
            items = [X[i] for i in range(min(count, self.length or 0))]
            return self._on_device(
                default_collate([i[0] if isinstance(i, (tuple, list)) else i for i in items])
            )
        if not isinstance(X, DataLoader):
            return next(self.batches(count))
        if self._rest is None:
            self._rest = iter(X)
        while sum(map(self._count, self._seen)) < count:
            item = next(self._rest, None)
            if item is None:
                break
            self._seen.append(item)
        if not self._seen:
            raise ValueError(f"{self.name} is empty; expected at least one point")
        firsts = [item[0] if isinstance(item, (tuple, list)) else item for item in self._seen]
        return take(concatenate([self._on_device(x) for x in firsts]), slice(0, count))

    def _count(self, item: Any) -> int:
        return batch_length(self._on_device(item[0] if isinstance(item, (tuple, list)) else item))

    def sliceable(self) -> Inputs:
        """Return the same points in memory, so that panels can be taken again."""
        if isinstance(self._X, (Tensor, np.ndarray, dict)):
            return self
        batches = [
            {k: v.cpu() for k, v in b.items()} if isinstance(b, dict) else b.cpu()
            for b in self.batches(256)
        ]
        if not batches:
            raise ValueError(f"{self.name} is empty; expected at least one point")
        return Inputs(concatenate(batches), self.name, self.device, self.dtype)

    def panel(self, start: int, stop: int) -> Inputs:
        """Return points ``start ... stop - 1`` of sliceable inputs."""
        X: Any = self._X
        part = {k: v[start:stop] for k, v in X.items()} if isinstance(X, dict) else X[start:stop]
        return Inputs(part, self.name, self.device, self.dtype)

    def bytes_per_point(self) -> int:
        batch = self.first(1)
        leaves = list(batch.values()) if isinstance(batch, dict) else [batch]
        return sum(leaf.numel() * leaf.element_size() for leaf in leaves)
