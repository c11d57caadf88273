"""Which rows of a layer belong to which point: measured, not guessed.

Backpropagation is linear. If the output of point i is weighted by s_i, every gradient that it alone
causes comes out s_i times as large, wherever the network may have put its rows. So a second
backward pass with other weights tells whose each row is, and shows rows that several points share
(which have no gradient per point), since those are multiplied by some mean of theirs. The s_i are
random and span many orders of magnitude, and another pass with others confirms what the first one
found, so that such a mean is not taken for one of them by chance. Equal, blank or symmetric points
are told apart like any others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Owners", "agree", "extend", "find_owners", "merge", "narrowest", "revived", "scales"]


@dataclass(frozen=True)
class _Kind:
    """What gradients of a type bear.

    Exponents of scales, relative error of a row, size beside the largest row of one that may be
    nothing but rounding, and passes.
    """

    low: float
    high: float
    error: float
    noise: float
    passes: int


# (Gradients in float16 are near the smallest numbers it has.)
_KINDS = {
    torch.float64: _Kind(-100, 100, 1e-6, 1e-12, 2),
    torch.float32: _Kind(-30, 30, 2e-3, 1e-6, 2),
    torch.bfloat16: _Kind(-30, 30, 5e-2, 1e-3, 3),
    torch.float16: _Kind(0, 8, 2e-2, 1e-3, 3),
}


@dataclass
class Owners:
    """Owners of the P rows of one call of an operation.

    Attributes
    ----------
    owner : Tensor (P,)
        Point that each row belongs to; -1 where there was no gradient to tell by.
    n : int
        Number of points.
    shared : bool
        Whether some row belongs to several points.
    dead : Tensor, optional
        Rows that had no gradient at all, if any: should they have one later, their owners must be
        measured first.
    rounding : Tensor, optional
        The same for rows whose gradient may have been nothing but rounding.
    index : Tensor (n, q), optional
        Rows of each point, -1 beyond its last. None: q rows a point, point by point.
    """

    owner: Tensor
    n: int
    shared: bool = False
    dead: Tensor | None = None
    rounding: Tensor | None = None
    index: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        rows, missing = len(self.owner), self.owner < 0
        if rows and rows % self.n == 0:
            expected = torch.arange(rows, device=self.owner.device) // (rows // self.n)
            if bool(((self.owner == expected) | missing).all()):
                return
        self.index = _rows_of_points(self.owner, self.n)

    @cached_property
    def lasts(self) -> bool:
        """Whether the rows of as many other points belong to them in the same way.

        Points are an axis of them, or it is known that they share rows. Otherwise a row that one
        point seems to own may be that of others too, which had no gradient this time.
        """
        q, rest = divmod(len(self.owner), self.n)
        return self.shared or (not rest and (q == 0 or bool(_inner_axes(self, q))))

    @property
    def nothing(self) -> bool:
        """Whether no row had a gradient."""
        return len(self.owner) == (0 if self.dead is None else len(self.dead))

    def arrange(self, value: Tensor, axis: int) -> Tensor:
        """Order the P rows along `axis` point by point, q for each: (..., n, q, ...)."""
        if self.index is not None:
            value = value.index_select(axis, self.index.clamp(min=0).flatten())
        shape = (*value.shape[:axis], self.n, value.shape[axis] // self.n, *value.shape[axis + 1 :])
        return value.reshape(shape)

    def clear_padding(self, delta: Tensor) -> Tensor:
        """Set the gradients (R, n, q, ...) of rows that are not there to zero."""
        if self.index is None or bool((self.index >= 0).all()):
            return delta
        there = (self.index >= 0).view(1, *self.index.shape, *[1] * (delta.ndim - 3))
        return torch.where(there, delta, 0)


def _rows_of_points(owner: Tensor, n: int) -> Tensor:
    """(n, q): rows of each point in order, -1 where a point has fewer than q."""
    known = (owner >= 0).nonzero()[:, 0]
    order = known[torch.argsort(owner[known], stable=True)]
    counts = torch.bincount(owner[known], minlength=n)
    width = max(1, int(counts.max())) if len(known) else 1
    index = torch.full((n, width), -1, dtype=torch.int64, device=owner.device)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(order), device=owner.device) - starts[owner[order]]
    index[owner[order], place] = order
    return index


def agree(old: Owners, new: Owners) -> bool:
    """Whether no row has another owner in one of two passes."""
    if len(old.owner) != len(new.owner):
        return False
    both = (old.owner >= 0) & (new.owner >= 0)
    return bool((old.owner == new.owner)[both].all())


def merge(old: Owners, new: Owners) -> Owners:
    """Join what two passes of the same structure tell."""
    owner = torch.where(new.owner >= 0, new.owner, old.owner)
    unknown = (owner < 0).nonzero()[:, 0]
    if not len(unknown):
        return Owners(owner, new.n, new.shared or old.shared)
    never = torch.ones_like(unknown, dtype=torch.bool)  # had they a gradient
    for one in (old, new):
        never &= torch.isin(unknown, unknown[:0] if one.dead is None else one.dead)
    dead, rounding = (rows if len(rows) else None for rows in (unknown[never], unknown[~never]))
    return Owners(owner, new.n, new.shared or old.shared, dead, rounding)


def _inner_axes(owners: Owners, q: int) -> set[int]:
    """Sizes m for which rows are an array (q / m, n, m) whose middle axis is that of points."""
    rows = torch.arange(len(owners.owner), device=owners.owner.device)
    missing = owners.owner < 0
    found = set()
    for m in range(1, q + 1):
        if q % m == 0:
            expected = rows.div(m, rounding_mode="floor") % owners.n
            if bool(((owners.owner == expected) | missing).all()):
                found.add(m)
    return found


def extend(first: Owners, second: Owners, n: int, rows: int) -> Owners | None:
    """Owners of `rows` rows of n points, as those of two other numbers of points have them.

    None if points are not one axis of the rows, the same in both. At places where no two points of
    either had a gradient, no point is known to own its row.
    """
    q = rows // n
    if rows != n * q or first.n == second.n or q == 0:
        return None
    if any(len(one.owner) != one.n * q for one in (first, second)):
        return None
    axes = _inner_axes(first, q) & _inner_axes(second, q)
    if not axes:
        return None
    # Where most rows had no gradient several may fit. A wrong one takes rows for dead that are not,
    # which whoever uses the owners must look for in any case.
    m = max(axes)
    dead = set(range(q))
    for one in (first, second):
        if one.rounding is not None:
            return None
        # A place is proven by two points that have a gradient there: one may stay where it was.
        alive = (one.owner >= 0).view(q // m, one.n, m).sum(1).flatten()
        dead -= set((alive >= 2).nonzero()[:, 0].tolist())
    device = first.owner.device
    owner, unknown = torch.arange(rows, device=device).div(m, rounding_mode="floor") % n, None
    if dead:
        places = torch.tensor(sorted(dead), device=device)
        outer, points = places.div(m, rounding_mode="floor"), torch.arange(n, device=device)
        unknown = ((outer * n + points[:, None]) * m + places % m).flatten()
        owner[unknown] = -1
    return Owners(owner, n, first.shared or second.shared, unknown)


def scales(n: int, precision: torch.dtype) -> list[Tensor]:
    """Weights (n,) of the points for each pass, float64."""
    kind, generator = _KINDS[precision], torch.Generator().manual_seed(n)
    result: list[Tensor] = []
    order = torch.randperm(n, generator=generator, dtype=torch.float64)
    for _ in range(kind.passes):
        # Apart from each other, so that one is found by its size, in random order, and back: points
        # that share a row and cancel, but for the one of the largest weight, show when it has the
        # smallest.
        places = order + 0.6 * torch.rand(n, generator=generator, dtype=torch.float64)
        result.append(torch.exp2(kind.low + (kind.high - kind.low) * places / n))
        order = n - 1 - order
    return result


def narrowest(found: Iterable[torch.dtype]) -> torch.dtype:
    """Return the floating-point type that decides what a backward pass bears, of all in a pass."""
    found = {kind for kind in found if kind in _KINDS}
    return next((kind for kind in (torch.float16, torch.bfloat16) if kind in found), None) or max(
        found, key=lambda kind: -kind.itemsize, default=torch.float64
    )


def find_owners(
    plain: Tensor, scaled: Sequence[Tensor], weights: Sequence[Tensor], precision: torch.dtype
) -> Owners:
    """Find owners from the gradients (P, F) of the plain and of every scaled pass.

    `weights` (n,) are those of the passes, `precision` the :func:`narrowest` type, which they were
    made for.
    """
    bears, n = _KINDS[precision], len(weights[0])
    rows, device = len(plain), plain.device
    nonzero = (plain != 0).any(1)
    dead = None if bool(nonzero.all()) else (~nonzero).nonzero()[:, 0]
    if rows == 0 or (dead is not None and len(dead) == rows):
        return Owners(torch.full((rows,), -1, dtype=torch.int64, device=device), n, dead=dead)
    largest = plain.abs().max()
    if not bool(torch.isfinite(largest)):
        # Not to be told apart; whoever looks at these gradients will find them.
        if rows % n:
            return Owners(torch.full((rows,), -1, dtype=torch.int64, device=device), n, True)
        return Owners(torch.arange(rows, device=device) // (rows // n), n)
    # Inner products of all passes by row, relative to the largest: squares must not overflow.
    passes = torch.stack([plain, *scaled], 1).double() / largest.double()
    products = passes @ passes.mT
    energy, cross, size = products[:, 0, 0], products[:, 0], products.diagonal(dim1=1, dim2=2)
    right, owner = (energy > 0) & (cross > 0).all(1), None
    for i, weight in enumerate(weights, 1):
        if owner is None:
            owner = _nearest(torch.where(right, cross[:, i] / energy, 1.0), weight.double())
        scale = weight.double()[owner]
        # |b / s - a|^2
        gap = size[:, i] / scale**2 - 2 * cross[:, i] / scale + energy
        right &= gap <= bears.error**2 * energy
    assert owner is not None
    noise = energy <= bears.noise**2 * energy.max()
    shared = bool((nonzero & ~right & ~noise).any())
    small = nonzero & ~right & noise
    rounding = small.nonzero()[:, 0] if bool(small.any()) else None
    return Owners(torch.where(right, owner, -1), n, shared, dead, rounding)


def revived(gradient: Tensor, owners: Owners, precision: torch.dtype) -> bool:
    """Whether rows of a gradient (P, F) without one, when owners were measured, have one now."""
    if owners.dead is None and owners.rounding is None:
        return False
    sizes = torch.linalg.vector_norm(gradient, torch.inf, 1)
    if owners.dead is not None and bool(sizes[owners.dead].any()):
        return True
    limit = 10 * _KINDS[precision].noise * sizes.max()
    return owners.rounding is not None and bool((sizes[owners.rounding] > limit).any())


def _nearest(ratio: Tensor, weight: Tensor) -> Tensor:
    """Which of the weights (n,) each of the ratios (P,) is nearest to, by its logarithm."""
    known, order = weight.log2().sort()
    middles = (known[1:] + known[:-1]) / 2
    found: Tensor = order[torch.searchsorted(middles, ratio.log2())]
    return found
