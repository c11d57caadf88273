"""Which sketch every parameter's gradient gets: the cheapest within a bound on the error.

All choices are unbiased and independent of each other, so the squared errors of a Gram matrix add:

``exact``   columns of its own, no error, for small parameters with a large share of the kernel
``count``   the count-sketch of the gradient, into columns that all sketches share
``rows``    its rows first combined to a few (``P^T G`` instead of ``G``), which costs a fraction of
            forming ``G`` and adds an error of its own
``tensor``  the circular convolution of the count-sketches of its two factors: cheap for wide layers
            on few positions

Gradients of a layer share a large mean, which is nearly of rank one, so that random combinations of
its rows alone would miss much of it by chance. P therefore has the leading directions U of the rows
on the first points as they are, and random signs, less their part along U, for what is left:
``E P P^T = I`` for any U with orthonormal columns.

Sharing columns is no worse than splitting them. With ``K_l`` the kernel of layer l, K their sum
and ``V(K) = (tr K)^2 + |K|_F^2``, one sketch has the squared error ``V(K) / d``; sketches to d_l
columns each have ``sum_l V(K_l) / d_l``, at best ``(sum_l V(K_l)^(1/2))^2 / d``, which is no less.

Costs are counted, not timed, so that the choice depends on the points and the seed alone. The
weights below make them multiply-adds at the speed of a compiled product; they were fitted to
timings of single layers (`bench/compare_sketches.py`) and only have to order the choices.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..arrays import Array
from . import contract, gram
from .capture import Gradient
from .gram import Panel
from .layers import EmbeddingSite
from .sketch import CountSketch, TensorSketch, sign_projection

# Rows to combine to: multiples of the register tile of the widest instruction set.
_ROWS = (14, 28, 56, 112, 224)
# Of them, leading directions; and random columns of every gradient from which these are found.
_DIRECTIONS = 4
_COLUMNS = 2
# Tensor-sketches whose error is averaged.
_TENSOR_TRIALS = 4
# Multiply-adds that take as long as adding one entry to a sketch, moving one element of a factor
# into place, and a step of a Fourier transform.
_PER_ENTRY = 16
_PER_MOVE = 16
_PER_STEP = 12
# Floats of spelled-out factors of a tile of samples.
_FACTORS = 1 << 23

Method = Literal["exact", "count", "rows", "tensor"]


@dataclass(frozen=True)
class Choice:
    """How the gradient of one parameter becomes features.

    Attributes
    ----------
    method : str
        See the module.
    start : int
        First column of its own (``exact``).
    rows : int
        Rows that are left (``rows``).
    share : float
        Part of the kernel's trace.
    error : float
        What the choice adds to the relative error of the Gram matrix, in squares, beside the error
        of the columns that all share.
    directions : Tensor, optional
        Leading directions of the rows (n_rows, 4), orthonormal (``rows``).
    """

    method: Method
    share: float
    start: int = 0
    rows: int = 0
    error: float = 0.0
    directions: Tensor | None = None


@dataclass(frozen=True)
class Sketches:
    """A sketch of a whole gradient: every parameter's choice, fixed.

    Attributes
    ----------
    dim, seed : int
        As of a :class:`CountSketch`.
    exact : int
        Number of columns of ``exact`` parameters, the first ones; the others are shared.
    choices : dict
        By name.
    points : int
        Rows of the Gram matrix on which they were made.
    error : float
        Estimated relative error of that Gram matrix, |Phi Phi^T - K|_F / |K|_F (root mean square).
    needed : int
        `dim`, or the larger one that the error asked for takes.
    """

    dim: int
    seed: int
    exact: int
    choices: Mapping[str, Choice]
    points: int
    error: float
    needed: int
    shared: CountSketch = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shared", CountSketch(self.dim - self.exact, self.seed))

    def arrays(self) -> dict[str, Array]:
        """Return all of it, for an .npz file without pickles."""
        directions = {
            f"directions_{i}": choice.directions.numpy(force=True)
            for i, choice in enumerate(self.choices.values())
            if choice.directions is not None
        }
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        kept["choices"] = {
            name: {f.name: getattr(c, f.name) for f in fields(c) if f.name != "directions"}
            for name, c in self.choices.items()
        }
        return {"sketches": np.array(json.dumps(kept)), **directions}

    @classmethod
    def restored(cls, arrays: Mapping[str, Array], device: torch.device) -> Sketches:
        """Return what :meth:`arrays` came from."""
        kept = json.loads(str(arrays["sketches"]))
        choices = {}
        for i, (name, choice) in enumerate(kept["choices"].items()):
            directions = arrays.get(f"directions_{i}")
            known = None if directions is None else torch.from_numpy(directions).to(device)
            choices[name] = Choice(**choice, directions=known)
        return cls(**{**kept, "choices": choices})

    def agrees_with(self, other: Sketches) -> bool:
        """Whether features of both fit together: they are the same but for rounding."""
        if self._fixed() != other._fixed():
            return False
        pairs = zip(self.choices.values(), other.choices.values(), strict=True)
        return all(
            a.directions is None
            or b.directions is None
            or torch.allclose(a.directions.cpu(), b.directions.cpu(), atol=1e-3)
            for a, b in pairs
        )

    def _fixed(self) -> list[Any]:
        """Return what differs as a whole or not at all."""
        choices = [
            (name, c.method, c.start, c.rows, None if c.directions is None else c.directions.shape)
            for name, c in self.choices.items()
        ]
        return [self.dim, self.seed, self.exact, choices]

    def row_projection(self, choice: Choice, number: int, rows: int, like: Tensor) -> Tensor:
        """(rows, choice.rows): what combines the rows of a weight; its first entry is `number`."""
        return row_projection(
            choice.directions, rows, choice.rows, self.shared.key(0x524F5753, number), like
        )

    def tensor_sketch(self, number: int) -> TensorSketch:
        """Return that of the weight whose first entry is `number`."""
        return TensorSketch(self.shared.dim, self.shared.key(0x54454E53, number))


@dataclass
class Share:
    """What the choice for one parameter is made from.

    Attributes
    ----------
    kernel : Tensor
        (n, n) float64: exact Gram matrix of its gradients.
    entries : int
        Columns it would take as ``exact``: its entries, for each draw.
    shape : (int, int, int), optional
        Positions, rows and columns of a weight whose rows can be combined; None for others.
    spread : float
        Squared error of the Gram matrix when its rows off `directions` are combined to one; r
        combinations divide it by r.
    directions : Tensor, optional
        Leading directions of its rows.
    tensor : float
        Squared error that a tensor-sketch adds to the Gram matrix; inf where it is not cheaper.
    """

    kernel: Tensor
    entries: int
    shape: tuple[int, int, int] | None = None
    spread: float = 0.0
    tensor: float = math.inf
    directions: Tensor | None = None


def weight_shape(gradient: Gradient) -> tuple[int, int, int] | None:
    """Positions, rows and columns of a weight whose rows can be combined before it is formed."""
    if not isinstance(gradient, list) or any(
        site.groups > 1 or isinstance(site, EmbeddingSite) for site in gradient
    ):
        return None
    first = gradient[0]
    return sum(site.positions for site in gradient), first.rows, first.size


def combinations(gradient: Gradient) -> int:
    """Return R: combinations of outputs of which there are gradients."""
    return gradient.shape[1] if isinstance(gradient, Tensor) else gradient[0].combinations


def combined(gradient: Gradient, projection: Tensor) -> Gradient:
    """Return a weight's gradient with its rows combined by `projection` (rows, r)."""
    if isinstance(gradient, list):
        return [site.combined(projection) for site in gradient]
    rows = gradient.view(*gradient.shape[:2], len(projection), -1)
    return torch.einsum("nroi,ok->nrki", rows, projection).flatten(2)


def row_projection(
    directions: Tensor | None, rows: int, count: int, key: int, like: Tensor
) -> Tensor:
    """(rows, count): orthonormal directions, and random combinations of what is left."""
    if directions is None:
        return sign_projection(rows, count, key, like.dtype, like.device)
    known = directions.to(like.dtype).to(like.device)
    signs = sign_projection(rows, count - known.shape[1], key, like.dtype, like.device)
    return torch.cat([known, signs - known @ (known.T @ signs)], 1)


def leading_directions(
    part: Gradient, panel: Panel, shape: tuple[int, int, int], key: int
) -> Tensor:
    """(rows, 4 or fewer): left singular vectors of a few random combinations of all columns."""
    _, rows, size = shape
    mixed = sign_projection(size, _COLUMNS, key, panel.dtype, panel.device)
    if isinstance(part, Tensor):
        found = part.view(-1, rows, size) @ mixed
    else:
        outputs = combinations(part)
        found = torch.zeros(
            (panel.n, outputs, rows * _COLUMNS), dtype=panel.dtype, device=panel.device
        )
        for samples in contract.sample_tiles(part, panel.n, _FACTORS):
            for site in part:
                block = site.block(samples, panel.dtype)
                block.right = block.right @ mixed
                found[samples] += block.gradient(slice(0, rows))
        found = found.view(-1, rows, _COLUMNS)
    columns = found.transpose(0, 1).flatten(1)
    # Those of a few points would fit just them, and hide the error that other points will have.
    count = min(_DIRECTIONS, panel.n // 4)
    leading: Tensor = torch.linalg.svd(columns, full_matrices=False).U[:, :count]
    return leading


def add_tensor(
    gradient: Gradient,
    r: int,
    rows: int,
    sketch: TensorSketch,
    out: Tensor,
) -> None:
    """Add to `out` (n, dim) the tensor-sketches of combination `r` of a weight's gradients."""
    n = len(out)
    if isinstance(gradient, Tensor):
        # Factors are not known: every row is a position of its own.
        value = gradient[:, r].reshape(n, rows, -1)
        one = torch.eye(rows, dtype=out.dtype, device=out.device)
        sketch.add(one.expand(n, rows, rows), value, out)
        return
    for samples in contract.sample_tiles(gradient, n, _FACTORS):
        for site in gradient:
            block = site.block(samples, out.dtype)
            left, right = (f[:, min(r, f.shape[1] - 1), 0] for f in (block.left, block.right))
            sketch.add(left, right, out[samples])


def kernel(name: str, panel: Panel, pairs: bool, outputs: int, floats: int) -> Tensor:
    """Exact Gram matrix of one parameter on the points of a panel, float64."""
    steps = gram.gram_block([name], panel, panel, pairs, outputs, floats)
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            value: Tensor = finished.value
            return value.double()


def estimate(
    share: Share,
    part: Gradient,
    panel: Panel,
    pairs: bool,
    sketch: CountSketch,
    number: int,
) -> None:
    """Fill in the errors that cheaper sketches of a weight bring to its Gram matrix.

    `number` is that of its first entry; the random numbers are not those of the final sketch.
    """
    if share.shape is None:
        return
    _, rows, size = share.shape
    n, dtype, device, dim = panel.n, panel.dtype, panel.device, sketch.dim
    if rows > _ROWS[0]:
        known = leading_directions(part, panel, share.shape, sketch.key(0x4C454144, number))
        few = known.shape[1]
        projection = row_projection(
            known, rows, few + _ROWS[0], sketch.key(0x50524F42, number), known
        )
        projection[:, few:] *= _ROWS[0] ** 0.5
        gradient = combined(part, projection)
        if isinstance(gradient, list):
            gradient = contract.dense(gradient, n, dtype)
        value = gradient.view(n, -1, projection.shape[1], size)
        value = value.flatten(0, 1) if pairs else value.transpose(1, 2).flatten(2)
        exact = value[:, :few].flatten(1).double()
        share.directions = known
        share.spread = row_spread(value[:, few:], share.kernel - exact @ exact.T)
    if tensor_cost(share.shape, dim) < count_cost(share.shape):
        errors = []
        for trial in range(_TENSOR_TRIALS):
            block = torch.zeros((len(share.kernel), dim), dtype=dtype, device=device)
            for r in range(combinations(part)):
                key = sketch.key(0x54524900 + trial, number) + (0 if pairs else r)
                target = block[r :: combinations(part)] if pairs else block
                add_tensor(part, r, rows, TensorSketch(dim, key), target)
            gram = (block @ block.T).double()
            errors.append(float((gram - share.kernel).square().sum()))
        # A count-sketch in the shared columns has its part of their error already.
        own = hash_error(share.kernel, share.entries, dim)
        share.tensor = max(0.0, sum(errors) / _TENSOR_TRIALS - own)


def row_spread(gradient: Tensor, kernel: Tensor) -> float:
    """Squared error of the Gram matrix of weight gradients whose rows become one.

    `gradient` (n, m, size): m combinations of the rows with random signs z, unscaled. One of them
    estimates ``<G, G'>`` as ``z^T A z``, ``A = G G'^T``, with variance ``|A|_F^2 + tr A^2`` (less
    its diagonal). With z and w independent, ``E (z^T A w)^2 = |A|_F^2`` and
    ``E (z^T A w)(w^T A z) = tr A^2``, so all pairs of the m estimate it without A. Where rows are
    nearly parallel, 14 vectors vary a lot, but ``(z^T A z)(w^T A w)`` varies with them, and its
    mean ``(tr A)^2`` is known from the exact `kernel`: the estimate is scaled by that.
    """
    n, count, _ = gradient.shape
    flat = gradient.flatten(0, 1)
    products = (flat @ flat.T).view(n, count, n, count).permute(0, 2, 1, 3).double()
    pairs = products.square() + products * products.transpose(2, 3)
    own = products.diagonal(dim1=2, dim2=3)
    pairs.diagonal(dim1=2, dim2=3).zero_()
    spread = float(pairs.sum()) / (count * (count - 1))
    known = float((own.sum(2).square() - own.square().sum(2)).sum()) / (count * (count - 1))
    return spread * float(kernel.square().sum()) / known if known > 0 else spread


def count_cost(shape: tuple[int, int, int]) -> float:
    """Cost of forming and count-sketching the gradient of one point."""
    positions, rows, size = shape
    return float(positions * (rows + _PER_MOVE) * size + _PER_ENTRY * rows * size)


def rows_cost(shape: tuple[int, int, int], count: int) -> float:
    """Cost of the same with `count` combinations of the rows."""
    positions, rows, size = shape
    return positions * rows * count + count_cost((positions, count, size))


def tensor_cost(shape: tuple[int, int, int], dim: int) -> float:
    """Cost of the tensor-sketch of one point: a transform of each factor per position, one back."""
    positions, rows, size = shape
    transform = _PER_STEP * dim * math.log2(dim + 1)
    return (2 * positions + 1) * transform + _PER_MOVE * positions * (rows + size)


def hash_error(kernel: Tensor, entries: int, dim: int) -> float:
    """Squared error of the Gram matrix of gradients of so many entries, count-sketched to `dim`."""
    if entries <= dim:
        return 0.0
    # Entries of one run of `dim` never meet.
    return _variance(kernel) * (1 / dim - 1 / entries)


def _variance(kernel: Tensor) -> float:
    """Squared error of the Gram matrix of gradients sketched to one number, summed over points."""
    return float(kernel.diag().sum()) ** 2 + float(kernel.square().sum())


def choose(shares: Mapping[str, Share], dim: int, seed: int, relative_error: float) -> Sketches:
    """Choose the cheapest sketch of every parameter with a total error within `relative_error`."""
    total = sum(share.kernel for share in shares.values())
    assert isinstance(total, Tensor)
    square, trace = float(total.square().sum()), float(total.diag().sum())
    allowed = relative_error**2 * square
    entries = sum(share.entries for share in shares.values())
    parts = {
        name: float(share.kernel.diag().sum()) / trace if trace else 0.0
        for name, share in shares.items()
    }
    # Columns of its own pay for a parameter where they take more error away than the columns
    # that are then missing to the others add.
    choices: dict[str, Choice] = {}
    exact, rest = 0, total
    base = hash_error(total, entries, dim)
    for name in sorted(shares, key=lambda name: -parts[name] / shares[name].entries):
        share = shares[name]
        if base == 0.0 or exact + share.entries >= dim:
            continue
        fewer = rest - share.kernel
        error = hash_error(fewer, entries - share.entries, dim - exact - share.entries)
        if error < base:
            choices[name] = Choice("exact", parts[name], start=exact)
            exact, entries = exact + share.entries, entries - share.entries
            rest, base = fewer, error
    options = {
        name: _options(share, dim - exact) for name, share in shares.items() if name not in choices
    }
    # Where no sketch reaches the error asked for, a twentieth more of it may still be saved on.
    picked = _cheapest(options, allowed - base if base <= allowed else base / 20)
    for name, (_, error, method, rows) in picked.items():
        relative = math.sqrt(error / square) if error else 0.0
        directions = shares[name].directions if method == "rows" else None
        choices[name] = Choice(
            method, parts[name], rows=rows, error=relative, directions=directions
        )
    added = sum(error for _, error, _, _ in picked.values())
    needed = dim
    if base > allowed:
        needed = exact + math.ceil(1 / (allowed / _variance(rest) + 1 / entries))
    error = math.sqrt((base + added) / square) if square else 0.0
    return Sketches(dim, seed, exact, choices, len(total), error, needed)


Option = tuple[float, float, Method, int]
"""Cost of a point, squared error added, method, rows."""


def _options(share: Share, dim: int) -> list[Option]:
    """Return the sketches of one parameter, cheapest last, each dearer one with a smaller error."""
    if share.shape is None:
        return [(0.0, 0.0, "count", 0)]
    _, rows, _ = share.shape
    found: list[Option] = [(count_cost(share.shape), 0.0, "count", 0)]
    if share.tensor < math.inf:
        found.append((tensor_cost(share.shape, dim), share.tensor, "tensor", 0))
    for count in _ROWS:
        if count < rows:
            known = 0 if share.directions is None else share.directions.shape[1]
            error = share.spread / (count - known)
            found.append((rows_cost(share.shape, count), error, "rows", count))
    return found


def _cheapest(options: Mapping[str, list[Option]], budget: float) -> dict[str, Option]:
    """Pick one option of each so that the errors stay within `budget` at about the least cost.

    The least of cost + price * error for one price, which is the optimum for the errors it leads
    to; the price is found by bisection.
    """

    def pick(price: float) -> dict[str, Option]:
        return {
            name: min(found, key=lambda option: option[0] + price * option[1])
            for name, found in options.items()
        }

    best = {
        name: min((option for option in found if not option[1]), key=lambda option: option[0])
        for name, found in options.items()
    }
    if not budget:
        return best
    low, high = 1e-12, 1e12
    scale = sum(found[0][0] for found in options.values()) / budget
    for _ in range(100):
        middle = math.sqrt(low * high)
        picked = pick(middle * scale)
        if sum(option[1] for option in picked.values()) <= budget:
            best, high = picked, middle
        else:
            low = middle
    return best
