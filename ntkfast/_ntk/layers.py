"""Layer rules: from a layer's input and output gradient to gradients of its parameters.

One call of a layer on a batch of n points leaves its input ``x`` and, for R combinations of the
model's outputs, the gradients ``delta`` with respect to its output. Two forms cover every rule:

``Dense``
    The per-sample gradients themselves, (n, R, p): biases, normalisations, and everything small.
``Site``
    A weight whose gradient is a sum of outer products over positions t (pixels, tokens),
    ``sum_t left_t (x) right_t``, kept as its factors because those are smaller and because Gram
    matrices can be taken without multiplying them out.

Layers may fold other axes into the batch (frames, windows): positions of a point only have to be
contiguous. What does not fit raises :class:`Unsupported`, and the caller falls back to torch.func.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from . import attention

# Per-sample convolution gradients: from this many positions and multiply-adds on, one library call
# per sample is faster on a CPU than unfolding and a batched product (measured at 8 to 512
# channels).
_DIRECT_CONVOLUTION_POSITIONS = 192
_DIRECT_CONVOLUTION_WORK = 1 << 22


class Unsupported(Exception):
    """A layer was called in a way its rule does not cover."""


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
    """

    data: Tensor
    positions: Tensor
    columns: Tensor

    @staticmethod
    def positions_first(data: Tensor) -> Factor:
        """Return the factor (n, R or 1, T, columns)."""
        positions, columns = data.shape[2:]
        return Factor(
            data.contiguous().flatten(2), torch.arange(positions) * columns, torch.arange(columns)
        )

    @staticmethod
    def channels_first(data: Tensor) -> Factor:
        """Return the factor (n, R or 1, q, columns, *spatial) with positions (q, *spatial)."""
        q, columns = data.shape[2:4]
        places = math.prod(data.shape[4:])
        calls = torch.arange(q)[:, None] * (columns * places)
        return Factor(
            data.contiguous().flatten(2),
            (calls + torch.arange(places)).flatten(),
            torch.arange(columns) * places,
        )


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
        positions, columns = torch.arange(q) * x[0].numel(), torch.arange(channels)
        columns = columns * math.prod(spatial)
        for axis, count in enumerate(counts):
            step = math.prod(spatial[axis + 1 :])
            place = torch.arange(count) * (self.stride[axis] * step)
            positions = (positions[:, None] + place).flatten()
            inside = torch.arange(self.kernel[axis]) * (self.dilation[axis] * step)
            columns = (columns[:, None] + inside).flatten()
        return Factor(x.reshape(n, combinations, -1), positions, columns)


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
"""Own parameter name of a layer (weight, bias) -> its gradients from one call."""


def _split(value: Tensor, n: int) -> Tensor:
    """(n q, ...) -> (n, q, ...)."""
    if value.ndim == 0 or value.shape[0] % n or value.shape[0] == 0:
        raise Unsupported("its first axis is not the batch")
    return value.reshape(n, value.shape[0] // n, *value.shape[1:])


def _positions_last(delta: Tensor, n: int) -> Tensor:
    """(R, n q, *) -> (n, R, q, *)."""
    combinations = delta.shape[0]
    if delta.shape[1] % n:
        raise Unsupported("its first axis is not the batch")
    split = delta.reshape(combinations, n, delta.shape[1] // n, *delta.shape[2:])
    return split.transpose(0, 1)


def _linear(layer: Any, x: Tensor, delta: Tensor, n: int, dtype: torch.dtype) -> Parts:
    if x.ndim < 2 or x.shape[0] % n:
        raise Unsupported("its first axis is not the batch")
    combinations = delta.shape[0]
    x = x.reshape(n, -1, x.shape[-1])
    delta = delta.reshape(combinations, n, -1, delta.shape[-1]).transpose(0, 1)
    site = LinearSite(x, delta, delta.shape[-1], x.shape[-1], 1, x.shape[1])
    return {"weight": site, "bias": delta.sum(2, dtype=dtype)}


def _attention(layer: Any, x: Tensor, delta: Tensor, n: int, dtype: torch.dtype) -> Parts:
    parts = _linear(layer, x, delta, n, dtype)
    return {f"in_proj_{own}": part for own, part in parts.items()}


def _spatial(layer: Any, x: Tensor) -> int:
    dimensions = len(layer.kernel_size)
    if x.ndim != dimensions + 2:
        raise Unsupported("it is called without a batch axis")
    return dimensions


def _convolution(layer: Any, x: Tensor, delta: Tensor, n: int, dtype: torch.dtype) -> Parts:
    dimensions = _spatial(layer, x)
    padding = layer._reversed_padding_repeated_twice
    before, after = tuple(padding[-2::-2]), tuple(padding[::-2])
    if layer.padding_mode != "zeros" or before != after:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x, before = F.pad(x, padding, mode=mode), (0,) * dimensions
    geometry = Geometry(layer.kernel_size, layer.stride, before, layer.dilation)
    delta = _positions_last(delta, n)
    x = _split(x, n)
    site = ConvolutionSite(
        x,
        delta,
        rows=layer.out_channels,
        size=layer.in_channels // layer.groups * math.prod(layer.kernel_size),
        groups=layer.groups,
        positions=delta.shape[2] * math.prod(delta.shape[4:]),
        geometry=geometry,
    )
    return {"weight": site, "bias": _sum_to_channels(delta, 3, dtype)}


def _transposed(layer: Any, x: Tensor, delta: Tensor, n: int, dtype: torch.dtype) -> Parts:
    _spatial(layer, x)
    geometry = Geometry(layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    delta = _positions_last(delta, n)
    x = _split(x, n)
    site = TransposedSite(
        x,
        delta,
        rows=layer.in_channels,
        size=layer.out_channels // layer.groups * math.prod(layer.kernel_size),
        groups=layer.groups,
        positions=x.shape[1] * math.prod(x.shape[3:]),
        geometry=geometry,
    )
    return {"weight": site, "bias": _sum_to_channels(delta, 3, dtype)}


def _embedding(layer: Any, x: Tensor, delta: Tensor, n: int, dtype: torch.dtype) -> Parts:
    if layer.scale_grad_by_freq:
        raise ValueError("an Embedding with scale_grad_by_freq has no true gradients")
    index = _split(x, n).reshape(n, -1)
    delta = _positions_last(delta, n).reshape(n, delta.shape[0], -1, delta.shape[-1])
    if layer.padding_idx is not None:
        delta = delta * (index != layer.padding_idx)[:, None, :, None]
    return {
        "weight": EmbeddingSite(
            index, delta, layer.num_embeddings, layer.embedding_dim, 1, index.shape[1]
        )
    }


def _sum_to_channels(value: Tensor, channel: int, dtype: torch.dtype) -> Tensor:
    """Sum (n, R, ...) over every axis but the first two and `channel`."""
    axes = [axis for axis in range(2, value.ndim) if axis != channel]
    return value.sum(axes, dtype=dtype) if axes else value.to(dtype)


def _scale_and_shift(normalised: Tensor, delta: Tensor, n: int, channel: int, dtype: Any) -> Parts:
    """Gradients of y = weight * normalised + bias, for weights of one axis (counted after n)."""
    delta = _positions_last(delta, n)
    product = delta * _split(normalised, n)[:, None]
    return {
        "weight": _sum_to_channels(product, channel, dtype),
        "bias": _sum_to_channels(delta, channel, dtype),
    }


def _batch_norm(layer: Any, x: Tensor, delta: Tensor, n: int, dtype: torch.dtype) -> Parts:
    if layer.running_mean is None:
        raise ValueError(
            "a BatchNorm without running statistics (track_running_stats=False) mixes the points "
            "of a batch, so they have no gradients of their own"
        )
    normalised = F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)
    return _scale_and_shift(normalised, delta, n, 3, dtype)


def _group_norm(layer: Any, x: Tensor, delta: Tensor, n: int, dtype: torch.dtype) -> Parts:
    normalised = F.group_norm(x, layer.num_groups, eps=layer.eps)
    return _scale_and_shift(normalised, delta, n, 3, dtype)


def _instance_norm(layer: Any, x: Tensor, delta: Tensor, n: int, dtype: torch.dtype) -> Parts:
    _expect_batched(layer, x)
    mean, variance = layer.running_mean, layer.running_var
    normalised = F.instance_norm(x, mean, variance, use_input_stats=mean is None, eps=layer.eps)
    return _scale_and_shift(normalised, delta, n, 3, dtype)


def _expect_batched(layer: Any, x: Tensor) -> None:
    dimensions = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}
    if x.ndim != next(d for kind, d in dimensions.items() if isinstance(layer, kind)):
        raise Unsupported("it is called without a batch axis")


def _last_axes(normalised: Tensor, delta: Tensor, axes: int, n: int, dtype: torch.dtype) -> Parts:
    """Gradients of y = weight * normalised + bias with weights over the last `axes` axes."""
    if normalised.ndim <= axes:
        raise Unsupported("it is called without a batch axis")
    shape = normalised.shape[-axes:]
    flat = _split(normalised, n).reshape(n, 1, -1, math.prod(shape))
    delta = _positions_last(delta, n).reshape(n, delta.shape[0], -1, math.prod(shape))
    return {"weight": (delta * flat).sum(2, dtype=dtype), "bias": delta.sum(2, dtype=dtype)}


def _layer_norm(layer: Any, x: Tensor, delta: Tensor, n: int, dtype: torch.dtype) -> Parts:
    shape = layer.normalized_shape
    return _last_axes(F.layer_norm(x, shape, eps=layer.eps), delta, len(shape), n, dtype)


def _rms_norm(layer: Any, x: Tensor, delta: Tensor, n: int, dtype: torch.dtype) -> Parts:
    shape = layer.normalized_shape
    return _last_axes(F.rms_norm(x, shape, eps=layer.eps), delta, len(shape), n, dtype)


def _prelu(layer: Any, x: Tensor, delta: Tensor, n: int, dtype: torch.dtype) -> Parts:
    delta = _positions_last(delta, n)
    product = delta * _split(x, n)[:, None].clamp(max=0)
    if layer.num_parameters == 1:
        return {"weight": product.flatten(2).sum(2, keepdim=True, dtype=dtype)}
    return {"weight": _sum_to_channels(product, 3, dtype)}


Rule: TypeAlias = Callable[[Any, Tensor, Tensor, int, torch.dtype], Parts]
"""(layer, x, delta (R, *output), n points, accumulation dtype) -> gradients of its parameters."""

RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ConvTranspose1d: _transposed,
    nn.ConvTranspose2d: _transposed,
    nn.ConvTranspose3d: _transposed,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.SyncBatchNorm: _batch_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.InstanceNorm3d: _instance_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
    nn.PReLU: _prelu,
    nn.MultiheadAttention: _attention,
}
if hasattr(nn, "RMSNorm"):  # torch >= 2.4
    RULES[nn.RMSNorm] = _rms_norm


# Layers that do not care which of their leading axes is which.
SEQUENCE_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Embedding, nn.LayerNorm)
if hasattr(nn, "RMSNorm"):
    SEQUENCE_LAYERS += (nn.RMSNorm,)


def find_rule(layer: nn.Module) -> tuple[type[nn.Module], Rule] | None:
    """Return the rule of a layer; a subclass has its parent's only if it computes the same."""
    if "forward" in vars(layer):
        return None
    if isinstance(layer, nn.MultiheadAttention) and not attention.is_plain(layer):
        return None
    for kind in type(layer).__mro__:
        if kind in RULES:
            same = type(layer).forward is kind.forward
            same = same and getattr(type(layer), "_conv_forward", None) is getattr(
                kind, "_conv_forward", None
            )
            return (kind, RULES[kind]) if same else None
    return None
