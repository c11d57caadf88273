"""Attention with its projections in the open.

``nn.MultiheadAttention`` hands its weights to one fused function. Where a
:class:`~.record.Recorder` meets it, this one computes the same with its projections as linear maps
of their own, which are recorded like any other.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from .record import Recorder


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def attention(
    recorder: Recorder,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """Compute ``F.multi_head_attention_forward`` with its projections as linear maps."""
    covered = (
        query.ndim == 3
        and static_k is None
        and static_v is None
        and not (training and dropout_p > 0)
        and not (is_causal and attn_mask is None)
    )
    if not covered:
        return NotImplemented
    query, key, value = map(recorder.data, (query, key, value))
    separate = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else None
    q, k, v = _projected(recorder, query, key, value, in_proj_weight, separate, in_proj_bias)
    length, n, width = query.shape
    masks = [_additive(attn_mask, query.dtype), _additive(key_padding_mask, query.dtype)]
    more = 0
    if bias_k is not None and bias_v is not None:
        k, v = (
            torch.cat([t, recorder.expand(b, (1, n, width))]) for t, b in ((k, bias_k), (v, bias_v))
        )
        more += 1
    if add_zero_attn:
        k, v = (torch.cat([t, t.new_zeros(1, n, width)]) for t in (k, v))
        more += 1
    bias, padding = (m if m is None else F.pad(m, (0, more)) for m in masks)
    heads = width // num_heads
    q, k, v = (t.reshape(len(t), n, num_heads, heads).permute(1, 2, 0, 3) for t in (q, k, v))
    if bias is not None and bias.ndim == 3:
        bias = bias.view(n, num_heads, length, -1)
    if padding is not None:
        padding = padding.view(n, 1, 1, -1)
        bias = padding if bias is None else bias + padding
    weights = None
    if need_weights:
        scores = (q * heads**-0.5) @ k.transpose(-1, -2)
        weights = (scores if bias is None else scores + bias).softmax(-1)
        mixed = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, bias)
    mixed = mixed.permute(2, 0, 1, 3).reshape(length, n, width)
    return recorder.linear(mixed, out_proj_weight, out_proj_bias), weights


def _projected(
    recorder: Recorder,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: Tensor | None,
    separate: tuple[Any, ...] | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value through weights of their own, or rows of a packed one."""
    if separate is not None:
        biases = (None,) * 3 if bias is None else recorder.rows(bias, 3)
        q, k, v = (
            recorder.linear(x, w, b)
            for x, w, b in zip((query, key, value), separate, biases, strict=True)
        )
        return q, k, v
    assert packed is not None
    if query is key and key is value:
        q, k, v = recorder.linear(query, packed, bias).chunk(3, -1)
        return q, k, v
    weights = recorder.rows(packed, 3)
    biases = (None,) * 3 if bias is None else recorder.rows(bias, 3)
    q, k, v = (
        recorder.linear(x, w, b)
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    return q, k, v


def with_bias(
    recorder: Recorder,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Compute ``F.scaled_dot_product_attention`` with scores to which a parameter is added."""
    bias = recorder.find(attn_mask)
    if bias is None or attn_mask is None or dropout_p > 0 or is_causal:
        return NotImplemented
    query, key, value = map(recorder.data, (query, key, value))
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = recorder.add((query * scale) @ key.transpose(-1, -2), attn_mask)
    return scores.softmax(-1) @ value
