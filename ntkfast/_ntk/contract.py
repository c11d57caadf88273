"""Contractions of layer factors: sketches and Gram matrices without the N x P Jacobian.

Pure functions of tensors; the torch path here is the reference of the compiled ones. `pairs` says
how the R combinations of outputs enter a Gram matrix: summed (R draws of one kernel) or as blocks
(every pair of outputs, rows point-major).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .compiled import Contractions, CpuContractions, contractions
from .layers import Block, Dense, EmbeddingBlock, EmbeddingSite, Factor, Site
from .sketch import KroneckerSketch

# Floats per tile of per-sample gradients: large enough for the library's products, small enough
# to be read back from cache.
_TILE = 1 << 22
# Rows and columns of a compiled tile of gradients below which packing the factors costs too much.
_FORMED_ROWS, _FORMED_COLUMNS = 56, 128
# Rows (samples x positions) of a tile of ghost products. A compiled operation has tiles of its own
# and only needs the factors spelled out.
_GHOST_ROWS = 1024


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
    form = _former(sites, n, dtype)
    if isinstance(form, _CompiledFormer):
        columns = slice(0, sites[0].size)
        for rows in row_tiles(sites[0], n * sites[0].combinations, _TILE):
            yield slice(0, n), rows.start * sites[0].size, form(rows, columns)
        return
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


def is_compiled(sites: Sequence[Site]) -> bool:
    """Whether compiled operations take a weight: any but an embedding, on a device they know."""
    return contractions(sites[0].delta) is not None and not any(
        isinstance(site, EmbeddingSite) for site in sites
    )


class _CompiledFormer:
    """Forms tiles of the per-sample gradients of a weight, of any rows and columns."""

    def __init__(
        self, compiled: CpuContractions, sites: Sequence[Site], n: int, dtype: torch.dtype
    ) -> None:
        self._compiled, self._first, self._n, self._dtype = compiled, sites[0], n, dtype
        self._factors = list(factors(sites, dtype))

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """(n, R, m): some rows, with groups whole groups of rows, and columns."""
        first = self._first
        height, groups, chosen = rows.stop - rows.start, 1, columns
        if first.groups > 1:
            unit = first.rows // first.groups
            groups = height // unit
            chosen = slice(rows.start // unit * first.size, rows.stop // unit * first.size)
        entries = height * (columns.stop - columns.start)
        result = torch.empty((self._n, first.combinations, entries), dtype=self._dtype)
        for use, (r, left, right) in enumerate(self._factors):
            self._compiled.form_gradients(
                replace(left, columns=left.columns[rows]),
                replace(right, columns=right.columns[chosen]),
                groups,
                result[:, r],
                add=use >= first.combinations,
            )
        return result

    def tiles(self, per_entry: int, floats: int) -> Iterator[tuple[slice, slice]]:
        """Split the weight into tiles of about `floats` numbers, or as many as a cache holds."""
        first, floats = self._first, min(floats, _TILE)
        if first.groups > 1:
            for rows in row_tiles(first, per_entry, floats):
                yield rows, slice(0, first.size)
            return
        # Tiles of all rows are best, since every tile packs its part of both factors.
        entries = floats // max(1, per_entry)
        width = max(1, entries // (first.rows * _FORMED_COLUMNS)) * _FORMED_COLUMNS
        height = max(_FORMED_ROWS, entries // width)
        for column in range(0, first.size, width):
            columns = slice(column, min(column + width, first.size))
            for row in range(0, first.rows, height):
                yield slice(row, min(row + height, first.rows)), columns


class _TorchFormer:
    """The same by torch, of all columns."""

    def __init__(self, sites: Sequence[Site], n: int, dtype: torch.dtype) -> None:
        self._sites, self._n, self._dtype = sites, n, dtype

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        first = self._sites[0]
        shape = (self._n, first.combinations, (rows.stop - rows.start) * first.size)
        result = torch.empty(shape, dtype=self._dtype, device=first.delta.device)
        for samples in sample_tiles(self._sites, self._n, 2 * _TILE):
            values = first.gradient_block(samples, self._dtype).gradient(rows)
            for site in self._sites[1:]:
                values += site.gradient_block(samples, self._dtype).gradient(rows)
            result[samples] = values
        return result

    def tiles(self, per_entry: int, floats: int) -> Iterator[tuple[slice, slice]]:
        for rows in row_tiles(self._sites[0], per_entry, floats):
            yield rows, slice(0, self._sites[0].size)


def _former(sites: Sequence[Site], n: int, dtype: torch.dtype) -> _CompiledFormer | _TorchFormer:
    """Return what forms the per-sample gradients of a weight: torch, but on a CPU."""
    compiled = contractions(sites[0].delta)
    if isinstance(compiled, CpuContractions) and is_compiled(sites):
        return _CompiledFormer(compiled, sites, n, dtype)
    return _TorchFormer(sites, n, dtype)


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
    form = _former(sites, n, dtype)
    if isinstance(form, _CompiledFormer):
        return form(slice(0, first.rows), slice(0, first.size))
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
    compiled = contractions(out)
    if compiled is not None:
        compiled.gram_add(x, y, out, lower=a is b)
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
    left, groups = 1 if isinstance(first[0], EmbeddingSite) else first[0].rows, first[0].groups
    # Per pair of positions and group: both inner products, one multiplication and one addition.
    ghost = float(n) * m * position_pairs * (groups * first[0].size + terms * (left + 2 * groups))
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
    """Add the Gram block of a weight, forming per-sample gradients a tile at a time."""
    same = first is second
    per_entry = (n if same else n + m) * first[0].combinations
    form_first = _former(first, n, out.dtype)
    form_second = form_first if same else _former(second, m, out.dtype)
    for rows, columns in form_first.tiles(per_entry, floats):
        a = form_first(rows, columns)
        b = a if same else form_second(rows, columns)
        gram_dense(a, b, pairs, out)


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

    Only the lower triangle when `first` is `second`, as :func:`gram_dense`.
    ``<G, G'> = sum_{t, s} (left_t . left'_s)(right_t . right'_s)``, summed over groups and uses.
    """
    symmetric = first is second
    scale = first[0].combinations if pairs else 1
    compiled = contractions(out) if is_compiled([*first, *second]) else None
    # Of the combinations, only compiled products make no copies.
    rows_at_once = _GHOST_ROWS // scale if compiled is None else compiled.ghost_rows
    step = max(1, rows_at_once // max(s.positions for s in (*first, *second)))
    for i in range(0, n, step):
        left = [site.block(slice(i, min(i + step, n)), out.dtype) for site in first]
        for j in range(0, i + 1 if symmetric else m, step):
            diagonal = symmetric and i == j
            right = left
            if not diagonal:
                right = [site.block(slice(j, min(j + step, m)), out.dtype) for site in second]
            rows = slice(i * scale, min(i + step, n) * scale)
            columns = slice(j * scale, min(j + step, m) * scale)
            for a in left:
                for b in right:
                    if compiled is None:
                        out[rows, columns] += ghost_product(a, b, pairs)
                    else:
                        _add_ghost(compiled, a, b, pairs, out[rows, columns], diagonal)


def _add_ghost(
    compiled: Contractions, a: Block, b: Block, pairs: bool, out: Tensor, lower: bool
) -> None:
    """Add the ghost Gram of two blocks, the same as :func:`ghost_product`, or its lower part."""
    (left, right), (left2, right2) = (
        (block.right, block.left) if block.right.shape[1] > 1 else (block.left, block.right)
        for block in (a, b)
    )
    for g in range(left.shape[2]):
        shared, shared2 = right[:, 0, g].contiguous(), right2[:, 0, g].contiguous()
        several, several2 = (f[:, :, g].transpose(0, 1).contiguous() for f in (left, left2))
        if pairs:
            compiled.gram_ghost(several, shared, several2, shared2, out, lower)
            continue
        for one, one2 in zip(several, several2, strict=True):
            compiled.gram_ghost(one[None], shared, one2[None], shared2, out, lower)


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
