"""Whether data read twice are the same: points in a known order, and every time the same values."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
# Iterations of an unknown sampler that must agree, and with few points: of two, a random one
# gives the right order half the time.
_ITERATIONS, _MANY_ITERATIONS, _FEW_POINTS = 2, 30, 12


@contextmanager
def kept_generators() -> Iterator[None]:
    """Put the generators of Python, NumPy and torch (on the CPU) back as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng([]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def generator_states() -> tuple[Any, ...]:
    """Return what a draw from one of the global generators changes."""
    _, keys, *position = np.random.get_state()  # noqa: NPY002
    state = torch.get_rng_state().numpy().tobytes()
    return random.getstate(), np.asarray(keys).tobytes(), position, state


def known_length(loader: DataLoader[Any], name: str) -> int:
    """Return the number of points of a loader that gives its data set's points in order.

    Sequential samplers do, random ones do not; of any other, two iterations must give every
    point of the data set once and in order.

    Raises
    ------
    ValueError
        The order is another or not known, or points are left out.
    """
    sampler: Any = loader.batch_sampler
    refused = (
        f"{name} is a DataLoader with {{}}: which row is which point would not be known. Pass its "
        "data set itself (or Subset(dataset, indices)), or DataLoader(dataset, batch_size=..., "
        "shuffle=False)"
    )
    inner = sampler
    while hasattr(inner, "sampler"):
        inner = inner.sampler
        if isinstance(inner, _RANDOM) or type(inner).__name__ == "DistributedSampler":
            shuffles = " that shuffles" if type(inner) is RandomSampler else ""
            raise ValueError(refused.format(f"a {type(inner).__name__}{shuffles}"))
    if type(sampler) is BatchSampler and type(inner) is SequentialSampler:
        lost = len(inner) % sampler.batch_size if sampler.drop_last else 0
        if lost:
            raise ValueError(
                f"{name} is a DataLoader with drop_last=True, which would lose {lost} of "
                f"{len(inner)} points; use drop_last=False"
            )
        return len(inner)
    unknown = inner if type(sampler) is BatchSampler else sampler
    kind = f"a sampler of its own ({type(unknown).__name__})"
    n = len(loader.dataset)  # type: ignore[arg-type]
    with kept_generators():
        if iter(unknown) is unknown:
            raise ValueError(refused.format(kind + ", which can be iterated once only"))
        for _ in range(_ITERATIONS if n > _FEW_POINTS else _MANY_ITERATIONS):
            found = list(islice(chain.from_iterable(sampler), n + 1))
            if found != list(range(n)):
                raise ValueError(
                    refused.format(
                        f"{kind} that does not give points 0 to {n - 1} once each and in order"
                    )
                )
    return n


def first_difference(a: Any, b: Any) -> int | None:
    """Return the first row in which two batches differ; None: they are the same."""
    if type(a) is not type(b):
        return 0
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return 0
        pairs = [(a[key], b[key]) for key in a]
    else:
        pairs = list(zip(a, b, strict=True)) if isinstance(a, tuple) else [(a, b)]
    rows = [row for x, y in pairs for row in [_first_row(x.detach().cpu(), y.detach().cpu())]]
    return min((row for row in rows if row is not None), default=None)


def _first_row(x: torch.Tensor, y: torch.Tensor) -> int | None:
    if x.shape[1:] != y.shape[1:] or x.dtype != y.dtype:
        return 0
    n = min(len(x), len(y))
    u, v = x[:n], y[:n]
    same = (u == v) | ((u != u) & (v != v))  # NaN is like NaN
    rows = (~same).flatten(1).any(1) if same.ndim > 1 else ~same
    if bool(rows.any()):
        return int(rows.nonzero()[0])
    return n if len(x) != len(y) else None
