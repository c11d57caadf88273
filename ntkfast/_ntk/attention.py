"""Self-attention with its projections in the open.

``nn.MultiheadAttention`` hands its weights to one fused function, where no hook sees the input and
output of the projections. While gradients are recorded its ``forward`` is replaced by this one,
which computes the same with the projections as separate steps (and the self-check compares).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def is_plain(layer: nn.MultiheadAttention) -> bool:
    """Whether the layer has nothing but one packed input projection and an output projection."""
    return (
        layer.in_proj_weight is not None
        and layer.bias_k is None
        and layer.bias_v is None
        and not layer.add_zero_attn
    )


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def self_attention(
    layer: nn.MultiheadAttention,
    projected: Callable[[Tensor, Tensor], None],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """Compute ``layer(query, key, value, ...)`` in eval mode.

    Calls ``projected(x, y)`` with input and output of the packed projection, both (N, T, *), and
    the output projection as a module. What is not batched self-attention runs unchanged, unseen.
    """
    if query is not key or query is not value or query.ndim != 3:
        return nn.MultiheadAttention.forward(
            layer,
            query,
            key,
            value,
            key_padding_mask,
            need_weights,
            attn_mask,
            average_attn_weights,
            is_causal,
        )
    x = query if layer.batch_first else query.transpose(0, 1)
    n, length, width = x.shape
    heads = layer.num_heads
    # A copy of the view that linear returns, since the node of a view cannot be relied upon.
    packed = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).clone()
    projected(x, packed)
    q, k, v = packed.view(n, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    mask = _additive(attn_mask, x.dtype)
    if mask is not None and mask.ndim == 3:
        mask = mask.view(n, heads, length, length)
    padding = _additive(key_padding_mask, x.dtype)
    if padding is not None:
        padding = padding.view(n, 1, 1, length)
        mask = padding if mask is None else mask + padding
    weights = None
    if need_weights:
        scores = q @ k.transpose(-1, -2) * (width // heads) ** -0.5
        weights = (scores if mask is None else scores + mask).softmax(-1)
        mixed = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, mask)
    out = layer.out_proj(mixed.transpose(1, 2).reshape(n, length, width))
    return (out if layer.batch_first else out.transpose(0, 1)), weights
