"""Gradients of the parameters of an operation, as its rule gives them (:mod:`.rules`).

``Dense``
    The per-sample gradients themselves, (n, R, p), for n points and R combinations of the model's
    outputs: biases, normalisations, and everything small.
``Site``
    A weight whose gradient is a sum of outer products over positions t (pixels, tokens, time
    steps), ``sum_t left_t (x) right_t``, kept as its factors because those are smaller and because
    Gram matrices can be taken without multiplying them out.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

# Per-sample convolution gradients: from this many positions and multiply-adds on, one library call
# per sample is faster on a CPU than unfolding and a batched product (measured at 8 to 512
# channels).
_DIRECT_CONVOLUTION_POSITIONS = 192
_DIRECT_CONVOLUTION_WORK = 1 << 22


class Unsupported(Exception):
    """An operation was called in a way that its rule does not cover."""


@dataclass
class Block:
    """Factors of the weight gradients of some samples, positions spelled out.

    left (n, Rl, G, T, O) and right (n, Rr, G, T, I), where one of Rl and Rr is R and the other 1;
    the gradient of sample i and combination r is ``sum_t left[t]^T right[t]`` per group, (G, O, I).
    """

    left: Tensor
    right: Tensor

    def gradient(self, rows: slice) -> Tensor:
        """(n, R, m): rows of the (G O, I) weight gradient; with groups, whole groups of rows."""
        left, right = self.left, self.right
        n, rows_left, groups, positions, out = left.shape
        if groups == 1:
            left = left[..., rows]
        else:
            chosen = slice(rows.start // out, rows.stop // out)
            left, right = left[:, :, chosen], right[:, :, chosen]
        groups, out = left.shape[2], left.shape[4]
        rows_right, size = right.shape[1], right.shape[4]
        # The combinations are folded into rows (or columns), so that neither factor is repeated.
        a = left.permute(0, 2, 1, 4, 3).reshape(n * groups, rows_left * out, positions)
        b = right.permute(0, 2, 3, 1, 4).reshape(n * groups, positions, rows_right * size)
        product = torch.bmm(a, b).view(n, groups, rows_left, out, rows_right, size)
        return product.permute(0, 2, 4, 1, 3, 5).reshape(n, rows_left * rows_right, -1)


@dataclass
class Factor:
    """One factor of a weight's gradients without spelling out its positions.

    data (n, R or 1, m) contiguous; entry (t, c) of a sample is ``data[positions[t] + columns[c]]``.
    Positions and columns are on the device of the data, shared with others, and never changed.
    """

    data: Tensor
    positions: Tensor
    columns: Tensor

    @staticmethod
    def positions_first(data: Tensor) -> Factor:
        """Return the factor (n, R or 1, T, columns)."""
        positions, columns = data.shape[2:]
        return Factor(
            data.contiguous().flatten(2),
            _places(data.device, (positions,), (columns,)),
            _places(data.device, (columns,), (1,)),
        )

    @staticmethod
    def channels_first(data: Tensor) -> Factor:
        """Return the factor (n, R or 1, q, columns, *spatial) with positions (q, *spatial)."""
        q, columns = data.shape[2:4]
        places = math.prod(data.shape[4:])
        return Factor(
            data.contiguous().flatten(2),
            _places(data.device, (q, places), (columns * places, 1)),
            _places(data.device, (columns,), (places,)),
        )


def _places(device: torch.device, counts: Sequence[int], steps: Sequence[int]) -> Tensor:
    """(prod(counts),) int64: ``i steps[0] + j steps[1] + ...`` of indices (i, j, ...), in order.

    Tables are kept: on a GPU each would be a copy that the host waits for, and its memory belongs
    to the stream it was made on.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _kept_places(device, stream, tuple(counts), tuple(steps))


@lru_cache(maxsize=256)  # some times as many as a large network needs
def _kept_places(
    device: torch.device, stream: int, counts: tuple[int, ...], steps: tuple[int, ...]
) -> Tensor:
    places = torch.zeros((), dtype=torch.int64)
    for count, step in zip(counts, steps, strict=True):
        places = places[..., None] + torch.arange(count) * step
    return places.flatten().to(device)


@dataclass
class Site(ABC):
    """One call of a layer with a weight of `rows` x `size`, in `groups` groups of rows."""

    x: Tensor
    delta: Tensor
    rows: int
    size: int
    groups: int
    positions: int

    @property
    def combinations(self) -> int:
        return self.delta.shape[1]

    def cat(self, others: list[Site]) -> Site:
        x = torch.cat([self.x, *(o.x for o in others)])
        return replace(self, x=x, delta=torch.cat([self.delta, *(o.delta for o in others)]))

    def nbytes(self) -> int:
        return (
            self.x.numel() * self.x.element_size() + self.delta.numel() * self.delta.element_size()
        )

    @abstractmethod
    def block(self, samples: slice, dtype: torch.dtype) -> Block:
        """Spell out the positions of some samples."""

    def gradient_block(self, samples: slice, dtype: torch.dtype) -> Block:
        """Return a block of which only :meth:`Block.gradient` will be used."""
        return self.block(samples, dtype)

    def combined(self, projection: Tensor) -> Site:
        """Return the same call of a layer whose weight has its rows combined by (rows, r)."""
        raise NotImplementedError

    def factors(self, dtype: torch.dtype) -> tuple[Factor, Factor]:
        """Return left and right of a weight, as the compiled operations take them.

        The columns of both lie group by group.
        """
        raise NotImplementedError


@dataclass
class LinearSite(Site):
    """x (n, T, I), delta (n, R, T, O)."""

    def block(self, samples: slice, dtype: torch.dtype) -> Block:
        return Block(
            self.delta[samples, :, None].to(dtype),
            self.x[samples, None, None].to(dtype),
        )

    def combined(self, projection: Tensor) -> Site:
        delta = self.delta.to(projection.dtype) @ projection
        return replace(self, delta=delta, rows=projection.shape[1])

    def factors(self, dtype: torch.dtype) -> tuple[Factor, Factor]:
        left = Factor.positions_first(self.delta.to(dtype))
        return left, Factor.positions_first(self.x[:, None].to(dtype))


@dataclass
class SwappedSite(Site):
    """x (n, T, rows), delta (n, R, T, size): a linear map by the transpose of the weight."""

    def block(self, samples: slice, dtype: torch.dtype) -> Block:
        return Block(
            self.x[samples, None, None].to(dtype),
            self.delta[samples, :, None].to(dtype),
        )

    def combined(self, projection: Tensor) -> Site:
        x = self.x.to(projection.dtype) @ projection
        return replace(self, x=x, rows=projection.shape[1])

    def factors(self, dtype: torch.dtype) -> tuple[Factor, Factor]:
        left = Factor.positions_first(self.x[:, None].to(dtype))
        return left, Factor.positions_first(self.delta.to(dtype))


@dataclass
class EmbeddingBlock(Block):
    """left (n, 1, 1, T, 1) holds the row index of each position instead of a one-hot vector."""

    def gradient(self, rows: slice) -> Tensor:
        n, combinations, _, positions, size = self.right.shape
        index = self.left.view(n, positions) - rows.start
        count = rows.stop - rows.start
        # Positions of other rows go to one row more, which is dropped.
        index = torch.where((index >= 0) & (index < count), index, count)
        result = self.right.new_zeros((n, combinations, count + 1, size))
        index = index.view(n, 1, positions, 1).expand(n, combinations, positions, size)
        result.scatter_add_(2, index, self.right[:, :, 0])
        return result[:, :, :count].flatten(2)


@dataclass
class EmbeddingSite(Site):
    """x (n, T) of row indices, delta (n, R, T, E)."""

    def block(self, samples: slice, dtype: torch.dtype) -> Block:
        return EmbeddingBlock(
            self.x[samples, None, None, :, None], self.delta[samples, :, None].to(dtype)
        )


@dataclass
class Geometry:
    """What a convolution does with positions: one number per spatial axis each."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def windows(self, x: Tensor, counts: tuple[int, ...]) -> Tensor:
        """(n, C, K, T): the values of x (n, C, *spatial) under each of the windows."""
        n, channels = x.shape[:2]
        if all(k == 1 for k in self.kernel) and not any(self.padding):
            steps = tuple(
                slice(0, (c - 1) * s + 1, s) for c, s in zip(counts, self.stride, strict=True)
            )
            return x[(slice(None), slice(None), *steps)].reshape(n, channels, 1, -1)
        x = self._padded(x, counts)
        spatial = x.stride()[2:]
        kernel_strides = [s * d for s, d in zip(spatial, self.dilation, strict=True)]
        window_strides = [s * t for s, t in zip(spatial, self.stride, strict=True)]
        view = x.as_strided(
            (n, channels, *self.kernel, *counts),
            (x.stride(0), x.stride(1), *kernel_strides, *window_strides),
        )
        return view.reshape(n, channels, math.prod(self.kernel), math.prod(counts))

    def _padded(self, x: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Return x (n, C, *spatial) with room for all windows."""
        # That of the last one may lie beyond the padding, because of an output_padding.
        pad: list[int] = []
        for axis in reversed(range(len(counts))):
            reach = (counts[axis] - 1) * self.stride[axis]
            reach += self.dilation[axis] * (self.kernel[axis] - 1) + 1
            before = self.padding[axis]
            pad += [before, max(0, reach - x.shape[2 + axis] - before)]
        return (F.pad(x, pad) if any(pad) else x).contiguous()

    def factor(self, x: Tensor, counts: tuple[int, ...]) -> Factor:
        """Return the windows of x (n, R or 1, q, C, *spatial): positions (q, T), columns (C, K)."""
        n, combinations, q, channels = x.shape[:4]
        x = self._padded(x.flatten(0, 2), counts)
        spatial = x.shape[2:]
        steps = [math.prod(spatial[axis + 1 :]) for axis in range(len(spatial))]
        strides = [a * b for a, b in zip(self.stride, steps, strict=True)]
        dilations = [a * b for a, b in zip(self.dilation, steps, strict=True)]
        return Factor(
            x.reshape(n, combinations, -1),
            _places(x.device, (q, *counts), (x[0].numel(), *strides)),
            _places(x.device, (channels, *self.kernel), (math.prod(spatial), *dilations)),
        )


@dataclass
class ConvolutionBlock(Block):
    """A convolution with many positions: gradients straight from the library, sample by sample.

    left (n, R, q, O, *out) and right (n, q, C, *in), nothing spelled out.
    """

    geometry: Geometry

    def gradient(self, rows: slice) -> Tensor:
        weight_gradient: Callable[..., Tensor] = (
            conv1d_weight,
            conv2d_weight,
            conv3d_weight,
        )[len(self.geometry.kernel) - 1]
        n, combinations = self.left.shape[:2]
        shape = (rows.stop - rows.start, self.right.shape[2], *self.geometry.kernel)
        result = self.right.new_empty((n, combinations, math.prod(shape)))
        g = self.geometry
        for i in range(n):
            for r in range(combinations):
                result[i, r] = weight_gradient(
                    self.right[i], shape, self.left[i, r, :, rows], g.stride, g.padding, g.dilation
                ).reshape(-1)
        return result


@dataclass
class ConvolutionSite(Site):
    """x (n, q, C, *in) already padded where padding is not with zeros, delta (n, R, q, O, *out)."""

    geometry: Geometry

    def block(self, samples: slice, dtype: torch.dtype) -> Block:
        x, delta = self.x[samples].to(dtype), self.delta[samples].to(dtype)
        n, q = x.shape[:2]
        counts = tuple(delta.shape[4:])
        windows = self.geometry.windows(x.flatten(0, 1), counts)
        right = windows.reshape(n, q, self.groups, self.size, -1).permute(0, 2, 1, 4, 3)
        left = delta.reshape(n, self.combinations, q, self.groups, self.rows // self.groups, -1)
        left = left.permute(0, 1, 3, 2, 5, 4)
        return Block(left.flatten(3, 4), right.flatten(2, 3)[:, None])

    def gradient_block(self, samples: slice, dtype: torch.dtype) -> Block:
        per_call = self.positions // self.x.shape[1]
        worth_a_call = (
            per_call >= _DIRECT_CONVOLUTION_POSITIONS
            and per_call * self.rows * self.size >= _DIRECT_CONVOLUTION_WORK
        )
        if worth_a_call and self.groups == 1 and self.x.device.type == "cpu":
            return ConvolutionBlock(
                self.delta[samples].to(dtype), self.x[samples].to(dtype), self.geometry
            )
        return self.block(samples, dtype)

    def combined(self, projection: Tensor) -> Site:
        delta = _combined_channels(self.delta, 3, projection)
        return replace(self, delta=delta, rows=projection.shape[1])

    def factors(self, dtype: torch.dtype) -> tuple[Factor, Factor]:
        counts = tuple(self.delta.shape[4:])
        right = self.geometry.factor(self.x[:, None].to(dtype), counts)
        return Factor.channels_first(self.delta.to(dtype)), right


def _combined_channels(value: Tensor, axis: int, projection: Tensor) -> Tensor:
    """Combine axis `axis` of (..., C, *spatial) by (C, r)."""
    flat = value.flatten(axis + 1) if value.ndim > axis + 1 else value[..., None]
    product = projection.T @ flat.to(projection.dtype)
    return product.reshape(*value.shape[:axis], -1, *value.shape[axis + 1 :])


@dataclass
class TransposedSite(Site):
    """x (n, q, C, *in), delta (n, R, q, O, *out): rows of the weight are input channels."""

    geometry: Geometry

    def block(self, samples: slice, dtype: torch.dtype) -> Block:
        x, delta = self.x[samples].to(dtype), self.delta[samples].to(dtype)
        n, q = x.shape[:2]
        windows = self.geometry.windows(delta.flatten(0, 2), tuple(x.shape[3:]))
        right = windows.reshape(n, self.combinations, q, self.groups, self.size, -1)
        left = x.reshape(n, q, self.groups, self.rows // self.groups, -1).permute(0, 2, 1, 4, 3)
        return Block(left.flatten(2, 3)[:, None], right.permute(0, 1, 3, 2, 5, 4).flatten(3, 4))

    def combined(self, projection: Tensor) -> Site:
        x = _combined_channels(self.x, 2, projection)
        return replace(self, x=x, rows=projection.shape[1])

    def factors(self, dtype: torch.dtype) -> tuple[Factor, Factor]:
        right = self.geometry.factor(self.delta.to(dtype), tuple(self.x.shape[3:]))
        return Factor.channels_first(self.x[:, None].to(dtype)), right


Dense: TypeAlias = Tensor
"""(n, R, p) in the accumulation dtype."""
Parts: TypeAlias = dict[str, "Site | Dense"]
"""Role of a parameter in an operation (weight, bias) -> its gradients from one call."""
