"""Contractions of layer factors: sketches and Gram matrices without the N x P Jacobian.

Pure functions of tensors; the torch path here is the reference of the compiled ones. `pairs` says
how the R combinations of outputs enter a Gram matrix: summed (R draws of one kernel) or as blocks
(every pair of outputs, rows point-major).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .layers import Block, Dense, EmbeddingBlock, EmbeddingSite, Factor, Site
from .sketch import KroneckerSketch

# Floats per tile of per-sample gradients: large enough for the library's products, small enough
# to be read back from cache.
_TILE = 1 << 22
# Rows (samples x positions) of a tile of ghost products.
_GHOST_ROWS = 1024
# The compiled operation has tiles of its own and only needs the factors spelled out.
_GHOST_ROWS_COMPILED = 4096


def row_tiles(site: Site, per_row: int, floats: int) -> Iterator[slice]:
    """Split the rows of a weight into tiles of about `floats` numbers (and whole groups)."""
    unit = 1 if site.groups == 1 else site.rows // site.groups
    step = max(1, floats // max(1, per_row * site.size * unit)) * unit
    for start in range(0, site.rows, step):
        yield slice(start, min(start + step, site.rows))


def sample_tiles(sites: Sequence[Site], n: int, floats: int) -> Iterator[slice]:
    """Split the samples so that the spelled-out factors of a tile have about `floats` numbers."""
    per_sample = sum(s.positions * (s.groups * s.size + s.combinations * s.rows) for s in sites)
    step = max(1, min(n, floats // max(1, per_sample)))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def gradient_tiles(
    sites: Sequence[Site], n: int, dtype: torch.dtype
) -> Iterator[tuple[slice, int, Tensor]]:
    """Yield (samples, first entry, values (n, R, m)) of a weight's per-sample gradients.

    The gradient of a weight used several times is the sum over its uses.
    """
    for samples in sample_tiles(sites, n, 2 * _TILE):
        blocks = [site.gradient_block(samples, dtype) for site in sites]
        per_row = (samples.stop - samples.start) * sites[0].combinations
        for rows in row_tiles(sites[0], per_row, _TILE):
            values = blocks[0].gradient(rows)
            for block in blocks[1:]:
                values += block.gradient(rows)
            yield samples, rows.start * sites[0].size, values


def kronecker_tiles(
    sites: Sequence[Site], n: int, dtype: torch.dtype, sketch: KroneckerSketch, key: int
) -> Iterator[tuple[slice, int, Tensor]]:
    """Yield the same as :func:`gradient_tiles` for a weight gradient compressed on both sides.

    Weights that are not compressed (small, grouped, embeddings) come as they are.
    """
    first = sites[0]
    rows, size = sketch.shape(first.rows, first.size)
    if (
        first.groups > 1
        or isinstance(first, EmbeddingSite)
        or rows * size >= first.rows * first.size
    ):
        yield from gradient_tiles(sites, n, dtype)
        return
    left = sketch.projection(first.rows, rows, 2 * key, dtype, first.delta.device)
    right = sketch.projection(first.size, size, 2 * key + 1, dtype, first.delta.device)
    for samples in sample_tiles(sites, n, 2 * _TILE):
        total: Tensor | None = None
        for site in sites:
            block = site.block(samples, dtype)
            block.left = block.left if left is None else block.left @ left
            block.right = block.right if right is None else block.right @ right
            values = block.gradient(slice(0, rows))
            total = values if total is None else total + values
        assert total is not None
        yield samples, 0, total


def on_cpu(value: Tensor) -> bool:
    """Whether compiled operations take a tensor; the torch path, their reference, takes others."""
    return value.device.type == "cpu"


def is_compiled(sites: Sequence[Site]) -> bool:
    """Whether compiled operations take a weight: on a CPU, neither grouped nor an embedding."""
    return on_cpu(sites[0].delta) and not any(
        site.groups > 1 or isinstance(site, EmbeddingSite) for site in sites
    )


def factors(sites: Sequence[Site], dtype: torch.dtype) -> Iterator[tuple[int, Factor, Factor]]:
    """Yield (combination, left, right), each of one combination, of every use of a weight."""
    for site in sites:
        both = site.factors(dtype)
        for r in range(site.combinations):
            left, right = (
                replace(f, data=f.data[:, min(r, f.data.shape[1] - 1)][:, None]) for f in both
            )
            yield r, left, right


def dense(sites: Sequence[Site], n: int, dtype: torch.dtype) -> Dense:
    """(n, R, p): the per-sample gradients of a weight."""
    first = sites[0]
    shape = (n, first.combinations, first.rows * first.size)
    result = torch.empty(shape, dtype=dtype, device=first.delta.device)
    for samples, start, values in gradient_tiles(sites, n, dtype):
        result[samples, :, start : start + values.shape[2]] = values
    return result


def gram_dense(a: Tensor, b: Tensor, pairs: bool, out: Tensor) -> None:
    """Add inner products of gradients (n, R, m) and (n', R, m): (n R, n' R) or summed to (n, n').

    Only the lower triangle when `a` is `b`; :func:`mirror` fills in the upper one.
    """
    x, y = (t.flatten(0, 1) if pairs else t.flatten(1) for t in (a, b))
    if on_cpu(out):
        ops.gram_add(x.numpy(), y.numpy(), out.numpy(), lower=a is b)
    elif a is b:
        step = 64
        for start in range(0, len(x), step):
            stop = start + step
            out[start:stop, :stop] += x[start:stop] @ x[:stop].T
    else:
        out += x @ y.T


def costs(
    first: Sequence[Site], second: Sequence[Site], n: int, m: int, pairs: bool
) -> tuple[float, float]:
    """Multiply-adds of the direct and the ghost contraction between n and m samples."""
    weight = first[0].rows * first[0].size
    combinations = first[0].combinations
    terms = combinations**2 if pairs else combinations
    forming = sum(s.positions for s in first) * n + sum(s.positions for s in second) * m
    direct = float(weight) * (combinations * forming // first[0].groups + terms * n * m)
    position_pairs = sum(s.positions for s in first) * sum(s.positions for s in second)
    left = 1 if isinstance(first[0], EmbeddingSite) else first[0].rows
    # Per pair of positions: both inner products, one multiplication and one addition.
    ghost = float(n) * m * position_pairs * (first[0].size + terms * (left + 2))
    return direct, ghost


def gram_direct(
    first: Sequence[Site],
    second: Sequence[Site],
    n: int,
    m: int,
    pairs: bool,
    out: Tensor,
    floats: int,
) -> None:
    """Add the Gram block of a weight, forming per-sample gradients a tile of rows at a time."""
    same = first is second
    dtype = out.dtype
    per_row = (n if same else n + m) * first[0].combinations
    for rows in row_tiles(first[0], per_row, floats):
        a = _rows_of(first, n, rows, dtype)
        b = a if same else _rows_of(second, m, rows, dtype)
        gram_dense(a, b, pairs, out)


def _rows_of(sites: Sequence[Site], n: int, rows: slice, dtype: torch.dtype) -> Tensor:
    """(n, R, m): some rows of the per-sample gradients of every sample."""
    size = (rows.stop - rows.start) * sites[0].size
    shape = (n, sites[0].combinations, size)
    result = torch.empty(shape, dtype=dtype, device=sites[0].delta.device)
    for samples in sample_tiles(sites, n, 2 * _TILE):
        values = sites[0].gradient_block(samples, dtype).gradient(rows)
        for site in sites[1:]:
            values += site.gradient_block(samples, dtype).gradient(rows)
        result[samples] = values
    return result


def mirror(out: Tensor) -> None:
    """Copy the lower triangle of a square matrix to the upper one."""
    step = 1024
    for i in range(0, len(out), step):
        diagonal = out[i : i + step, i : i + step]
        diagonal.copy_(diagonal.tril() + diagonal.tril(-1).T)
        out[i : i + step, i + step :] = out[i + step :, i : i + step].T


def gram_ghost(
    first: Sequence[Site], second: Sequence[Site], n: int, m: int, pairs: bool, out: Tensor
) -> None:
    """Add the Gram block of a weight from products over pairs of positions, without gradients.

    ``<G, G'> = sum_{t, s} (left_t . left'_s)(right_t . right'_s)``, summed over groups and uses.
    """
    symmetric = first is second
    scale = first[0].combinations if pairs else 1
    compiled = is_compiled([*first, *second]) and scale == 1
    rows_at_once = _GHOST_ROWS_COMPILED if compiled else _GHOST_ROWS
    step = max(1, rows_at_once // (scale * max(s.positions for s in (*first, *second))))
    for i in range(0, n, step):
        left = [site.block(slice(i, min(i + step, n)), out.dtype) for site in first]
        for j in range(0, i + 1 if symmetric else m, step):
            right = [site.block(slice(j, min(j + step, m)), out.dtype) for site in second]
            rows = slice(i * scale, min(i + step, n) * scale)
            columns = slice(j * scale, min(j + step, m) * scale)
            for a in left:
                for b in right:
                    if compiled:
                        _add_ghost(a, b, out[rows, columns])
                    else:
                        out[rows, columns] += ghost_product(a, b, pairs)


def _add_ghost(a: Block, b: Block, out: Tensor) -> None:
    """Add the ghost Gram of two blocks of one group, summed over combinations."""

    def factor(value: Tensor, r: int) -> Any:
        return value[:, min(r, value.shape[1] - 1), 0].contiguous().numpy()

    for r in range(max(a.left.shape[1], a.right.shape[1])):
        ops.gram_ghost(
            factor(a.left, r),
            factor(a.right, r),
            factor(b.left, r),
            factor(b.right, r),
            out.numpy(),
        )


def ghost_product(a: Block, b: Block, pairs: bool) -> Tensor:
    """(n R, m R) or (n, m): ghost Gram of two blocks."""
    left = _position_products(a.left, b.left, pairs, isinstance(a, EmbeddingBlock))
    right = _position_products(a.right, b.right, pairs, False)
    # Both are (combinations, n, R, T, m, R', S), with 1 where a factor has no combinations.
    product = (left * right).sum((0, 1, 4, 7))
    return product.flatten(2, 3).flatten(0, 1)


def _position_products(a: Tensor, b: Tensor, pairs: bool, equal: bool) -> Tensor:
    """Inner products over channels, (c, G, n, R, T, m, R', S).

    With `pairs` every combination meets every other (c = 1); without, only itself (R = R' = 1).
    """
    n, combinations, groups, positions, size = a.shape
    m, _, _, others, _ = b.shape
    if equal:
        match = a.reshape(n * positions, 1) == b.reshape(1, m * others)
        return match.view(1, 1, n, 1, positions, m, 1, others)
    if pairs:
        x = a.permute(2, 0, 1, 3, 4).reshape(1, groups, -1, size)
        y = b.permute(2, 0, 1, 3, 4).reshape(1, groups, -1, size)
        shape = (1, groups, n, combinations, positions, m, combinations, others)
    else:
        x = a.permute(1, 2, 0, 3, 4).reshape(combinations, groups, -1, size)
        y = b.permute(1, 2, 0, 3, 4).reshape(combinations, groups, -1, size)
        shape = (combinations, groups, n, 1, positions, m, 1, others)
    return (x @ y.transpose(-1, -2)).view(shape)
