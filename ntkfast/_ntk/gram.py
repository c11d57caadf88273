"""Gram matrices from panels of points: row panels stay resident, column panels are recomputed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import contract
from .capture import Gradient, keeps_factors
from .files import GramFile
from .inputs import Batch, Inputs, batch_length
from .layers import Site


@dataclass
class Panel:
    """Gradients of n points: by parameter, factors or (n, R, p)."""

    n: int
    parts: dict[str, Gradient]
    dtype: torch.dtype
    device: torch.device


class PanelBuilder:
    """Collects the gradients of batches into one :class:`Panel`."""

    def __init__(self, combinations: int, dtype: torch.dtype, device: torch.device) -> None:
        self._combinations, self._dtype, self._device = combinations, dtype, device
        self._counts: list[int] = []
        self._pieces: dict[str, list[tuple[int, Gradient]]] = {}

    def append(self, n: int, gradients: dict[str, Gradient]) -> None:
        for name, gradient in gradients.items():
            if isinstance(gradient, list) and not keeps_factors(gradient):
                gradient = contract.dense(gradient, n, self._dtype)
            self._pieces.setdefault(name, []).append((len(self._counts), gradient))
        self._counts.append(n)

    def finish(self) -> Panel:
        parts: dict[str, Gradient] = {}
        for name in list(self._pieces):
            parts[name] = self._join(self._pieces.pop(name))
        return Panel(sum(self._counts), parts, self._dtype, self._device)

    def _join(self, pieces: list[tuple[int, Gradient]]) -> Gradient:
        gradients = [gradient for _, gradient in pieces]
        if len(pieces) == len(self._counts):
            if all(isinstance(g, Tensor) for g in gradients):
                return torch.cat([g for g in gradients if isinstance(g, Tensor)])
            lists = [g for g in gradients if isinstance(g, list)]
            if len(lists) == len(pieces) and all(map(_same_calls, lists, [lists[0]] * len(lists))):
                return [site.cat(list(others)) for site, *others in zip(*lists, strict=True)]
        # Batches that call the layer differently, or not at all, have no common factors.
        width = next(
            g.shape[2] if isinstance(g, Tensor) else g[0].rows * g[0].size for g in gradients
        )
        found = dict(pieces)
        joined = []
        for i, n in enumerate(self._counts):
            gradient = found.get(i)
            if gradient is None:
                shape = (n, self._combinations, width)
                joined.append(torch.zeros(shape, dtype=self._dtype, device=self._device))
            else:
                joined.append(_dense(gradient, n, self._dtype))
        return torch.cat(joined)


def witnesses(gradients: dict[str, Gradient]) -> list[Tensor]:
    """Return (n, *) tensors that are not finite wherever a gradient is not."""
    result: list[Tensor] = []
    for gradient in gradients.values():
        if isinstance(gradient, Tensor):
            result.append(gradient)
        else:
            for site in gradient:
                result.append(site.delta)
                if site.x.is_floating_point():
                    result.append(site.x)
    return result


def _same_calls(a: list[Site], b: list[Site]) -> bool:
    return len(a) == len(b) and all(
        type(s) is type(t)
        and (s.rows, s.size, s.groups) == (t.rows, t.size, t.groups)
        and getattr(s, "geometry", None) == getattr(t, "geometry", None)
        and s.x.shape[1:] == t.x.shape[1:]
        and s.delta.shape[1:] == t.delta.shape[1:]
        for s, t in zip(a, b, strict=True)
    )


def _dense(gradient: Gradient, n: int, dtype: torch.dtype) -> Tensor:
    return gradient if isinstance(gradient, Tensor) else contract.dense(gradient, n, dtype)


def gram_block(
    names: Sequence[str], a: Panel, b: Panel, pairs: bool, combinations: int, floats: int
) -> Generator[None, None, Tensor]:
    """Contract two panels (symmetric when `a` is `b`) to (n R, m R) or (n, m), step by step.

    Yields after each parameter, so that the caller can show progress.
    """
    scale = combinations if pairs else 1
    out = torch.zeros((a.n * scale, b.n * scale), dtype=a.dtype, device=a.device)
    for name in names:
        yield
        if name not in a.parts or name not in b.parts:
            continue
        first, second = a.parts[name], b.parts[name]
        if isinstance(first, list) and isinstance(second, list):
            direct, ghost = contract.costs(first, second, a.n, b.n, pairs)
            if ghost < direct:
                contract.gram_ghost(first, second, a.n, b.n, pairs, out)
            else:
                contract.gram_direct(first, second, a.n, b.n, pairs, out, floats)
        else:
            left = _dense(first, a.n, out.dtype)
            right = left if first is second else _dense(second, b.n, out.dtype)
            contract.gram_dense(left, right, pairs, out)
    if a is b:
        contract.mirror(out)
    return out


class GramWork:
    """The steps of one Gram matrix: panels captured and pairs of panels contracted.

    Parameters
    ----------
    capture : callable
        (batch, number of its first point, name of its argument) -> gradients, all of them finite.
    names : sequence of str
        The parameters.
    rows, columns : Inputs
        In memory; the same object for a symmetric matrix.
    result : array
        Filled.
    file : GramFile, optional
        Keeps `result` and knows what of it is done.
    panel, batch : int
        Points of a panel, and of a batch.
    pairs : bool
        Whether combinations of outputs have rows of their own.
    """

    def __init__(
        self,
        capture: Callable[[Batch, int, str], dict[str, Gradient]],
        names: Sequence[str],
        rows: Inputs,
        columns: Inputs,
        result: Any,
        file: GramFile | None,
        *,
        panel: int,
        batch: int,
        pairs: bool,
        combinations: int,
        draws: int,
        tile_floats: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._capture, self._names = capture, names
        self._rows, self._columns = rows, columns
        self._result, self._file = result, file
        self._size, self._batch = panel, batch
        self._pairs, self._combinations, self._draws = pairs, combinations, draws
        self._scale = combinations if pairs else 1
        self._tile_floats, self._dtype, self._device = tile_floats, dtype, device

    def _blocks(self) -> Iterator[tuple[int, list[int]]]:
        """Yield row panels and the column panels still missing for each."""
        symmetric = self._rows is self._columns
        done = self._file.done if self._file is not None else set()
        for i in range(0, self._rows.length or 0, self._size):
            columns = range(i if symmetric else 0, self._columns.length or 0, self._size)
            missing = [j for j in columns if (i, j) not in done]
            if missing:
                yield i, missing

    def _n_batches(self, inputs: Inputs, start: int) -> int:
        return inputs.panel(start, start + self._size).n_batches(self._batch) or 0

    def _is_diagonal(self, i: int, j: int) -> bool:
        return self._rows is self._columns and i == j

    def n_steps(self) -> int:
        """Return the number of steps."""
        total = 0
        for i, missing in self._blocks():
            total += self._n_batches(self._rows, i) + len(missing) * len(self._names)
            total += sum(
                self._n_batches(self._columns, j) for j in missing if not self._is_diagonal(i, j)
            )
        return total

    def steps(self) -> Iterator[None]:
        """Fill the matrix, and yield after each batch and each parameter of a block."""
        for i, missing in self._blocks():
            left = yield from self._panel(self._rows, i)
            for j in missing:
                right = left
                if not self._is_diagonal(i, j):
                    right = yield from self._panel(self._columns, j)
                block = yield from gram_block(
                    self._names, left, right, self._pairs, self._combinations, self._tile_floats
                )
                self._store(block.div_(self._draws), i, j)
                del right, block

    def _panel(self, inputs: Inputs, start: int) -> Generator[None, None, Panel]:
        builder = PanelBuilder(self._combinations, self._dtype, self._device)
        first = start
        for batch in inputs.panel(start, start + self._size).batches(self._batch):
            n = batch_length(batch)
            builder.append(n, self._capture(batch, first, inputs.name))
            first += n
            yield
        return builder.finish()

    def _store(self, block: Tensor, i: int, j: int) -> None:
        # The sum is one fast pass; it may overflow where no entry does.
        if not bool(torch.isfinite(block.sum())) and not bool(torch.isfinite(block).all()):
            raise ValueError(
                f"inner products of gradients overflow {block.dtype}: the kernel is not finite for "
                f"some of the points {i} to {i + self._size - 1} and {j} to {j + self._size - 1}; "
                "use a float64 model, or rescale its outputs"
            )
        value: Any = block if self._file is None else block.cpu().numpy()
        r, c = i * self._scale, j * self._scale
        self._result[r : r + block.shape[0], c : c + block.shape[1]] = value
        if self._rows is self._columns and i != j:
            self._result[c : c + block.shape[1], r : r + block.shape[0]] = value.T
        if self._file is not None:
            self._file.mark(i, j)
