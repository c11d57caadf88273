"""Features: where the gradients of every parameter are added, as they are or sketched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import choose, contract
from .capture import Gradient
from .layers import EmbeddingSite, Site
from .sketch import CountSketch, KroneckerSketch

__all__ = ["FeatureSum", "Layout"]


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in the flattened gradient.

    Attributes
    ----------
    shapes : dict
        Full name -> shape of the parameter, in order.
    full : bool
        Whether combinations of outputs have rows of their own; else they have columns of their own.
    """

    shapes: Mapping[str, torch.Size]
    full: bool

    @property
    def total(self) -> int:
        """Number of entries of one gradient."""
        return sum(shape.numel() for shape in self.shapes.values())

    def offsets(self) -> dict[str, int]:
        """First entry of each parameter."""
        result, total = {}, 0
        for name, shape in self.shapes.items():
            result[name] = total
            total += shape.numel()
        return result


class FeatureSum:
    """Adds the gradients of batches to blocks of features.

    Parameters
    ----------
    layout : Layout
    sketch : CountSketch, KroneckerSketch or None
        None: exact gradients.
    chosen : Sketches, optional
        A sketch for every parameter, instead of one.
    dtype : torch.dtype
        Of the features.
    """

    def __init__(
        self,
        layout: Layout,
        sketch: CountSketch | KroneckerSketch | None,
        chosen: choose.Sketches | None,
        dtype: torch.dtype,
    ) -> None:
        self._layout, self._offsets, self._total = layout, layout.offsets(), layout.total
        self._chosen, self._dtype = chosen, dtype
        # Of the columns that parameters share.
        self._sketch = sketch if chosen is None else chosen.shared

    def add(self, gradients: dict[str, Gradient], n: int, block: Tensor) -> None:
        """Add the gradients of n points, which are used up."""
        shared = block if self._chosen is None else block[:, self._chosen.exact :]
        for name in self._layout.shapes:
            gradient = gradients.pop(name, None)
            if gradient is not None and self._chosen is not None:
                gradient = self._add_chosen(self._chosen, name, gradient, n, block)
            if gradient is not None:
                self._add_gradient(gradient, self._offsets[name], n, shared)

    def _add_gradient(self, gradient: Gradient, offset: int, n: int, block: Tensor) -> None:
        if isinstance(gradient, Tensor):
            self._add(gradient, slice(0, n), offset, block)
            return
        if all(isinstance(site, EmbeddingSite) for site in gradient):
            for site in gradient:
                self._add_embedding(site, offset, block)
            return
        sketch = self._sketch
        if type(sketch) is CountSketch and contract.is_compiled(gradient):
            for r, left, right in contract.factors(gradient, self._dtype):
                rows, shift = self._place(r, gradient[0].combinations, block)
                sketch.add_gradients(left, right, gradient[0].groups, offset + shift, rows)
            return
        if isinstance(sketch, KroneckerSketch):
            tiles = contract.kronecker_tiles(gradient, n, self._dtype, sketch, offset)
        else:
            tiles = contract.gradient_tiles(gradient, n, self._dtype)
        for samples, start, values in tiles:
            self._add(values, samples, offset + start, block)

    def _add_chosen(
        self, chosen: choose.Sketches, name: str, gradient: Gradient, n: int, block: Tensor
    ) -> Gradient | None:
        """Add a gradient by the sketch chosen for it, or return what is left to count-sketch."""
        choice, offset = chosen.choices[name], self._offsets[name]
        combinations = choose.combinations(gradient)
        if choice.method == "exact":
            values = gradient
            if not isinstance(values, Tensor):
                values = contract.dense(values, n, self._dtype)
            for r in range(combinations):
                rows, first = self._place(r, combinations, block, values.shape[2])
                first += choice.start
                rows[:, first : first + values.shape[2]] += values[:, r]
            return None
        if choice.method == "rows":
            projection = chosen.row_projection(choice, offset, self._layout.shapes[name][0], block)
            return choose.combined(gradient, projection)
        if choice.method == "tensor":
            for r in range(combinations):
                rows, first = self._place(r, combinations, block[:, chosen.exact :])
                sketch = chosen.tensor_sketch(offset + first)
                choose.add_tensor(gradient, r, self._layout.shapes[name][0], sketch, rows)
            return None
        return gradient

    def _add(self, values: Tensor, samples: slice, start: int, block: Tensor) -> None:
        """Add (n, R, m) entries of gradients, parameters from `start` on, to features."""
        combinations = values.shape[1]
        if self._layout.full:
            rows = block[samples.start * combinations : samples.stop * combinations]
            self._add_rows(values.flatten(0, 1), start, rows)
        else:
            for r in range(combinations):
                self._add_rows(values[:, r], start + r * self._total, block[samples])

    def _place(
        self, r: int, combinations: int, block: Tensor, width: int | None = None
    ) -> tuple[Tensor, int]:
        """Rows of the features that combination `r` is added to, and its first parameter.

        Parameters are counted in all, or in one weight of `width`.
        """
        if self._layout.full:
            return block[r::combinations], 0
        return block, r * (self._total if width is None else width)

    def _add_embedding(self, site: Site, start: int, block: Tensor) -> None:
        """Add the gradients of an embedding's rows: only those its points look up."""
        columns = torch.arange(site.size, device=block.device)
        index = start + (site.x[:, :, None] * site.size + columns).flatten(1)
        for r in range(site.combinations):
            values = site.delta[:, r].flatten(1).to(self._dtype)
            rows, shift = self._place(r, site.combinations, block)
            if self._sketch is not None:
                self._sketch.add_scattered(values, index + shift, rows)
            else:
                rows.scatter_add_(1, index + shift, values)

    def _add_rows(self, values: Tensor, start: int, block: Tensor) -> None:
        if self._sketch is not None:
            self._sketch.add(values, start, block)
        else:
            block[:, start : start + values.shape[1]] += values
