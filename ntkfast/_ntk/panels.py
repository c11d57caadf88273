"""Gram matrices from panels of points: row panels stay resident, column panels are recomputed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import contract
from .capture import Gradient, keeps_factors
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
