"""What functions do with the parameters they read: their calls, and gradients by rule.

A handler ``(recorder, *args, **kwargs)`` takes the place of a torch function that was called with
a chosen parameter. It computes the same from the recorder's leaves and records the use, or returns
NotImplemented where it does not cover the call, which then counts as unseen.

A rule ``(use, x, delta, dtype)`` turns the input x (n, q, *) and the output gradients
delta (n, R, q, *) of n points with q positions each into gradients of the parameters by role.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import attention, recurrent
from .layers import (
    ConvolutionSite,
    EmbeddingSite,
    Geometry,
    LinearSite,
    Parts,
    TransposedSite,
)

if TYPE_CHECKING:
    from .record import Recorder, Tracked, Use

Handler = Callable[..., Any]
HANDLERS: dict[Callable[..., Any], Handler] = {}
"""Torch function -> handler."""

SHAPE_ONLY: frozenset[Callable[..., Any]] = frozenset(
    [
        Tensor.expand_as,
        Tensor.view_as,
        Tensor.reshape_as,
        Tensor.type_as,
        Tensor.to,
    ]
)
"""Functions that read no numbers of their arguments but the first."""

_COPIES: list[Any] = [Tensor.clone, torch.clone, Tensor.contiguous]
COPIES: frozenset[Any] = frozenset(_COPIES)
"""Functions that return the same numbers elsewhere."""

REPEATS: frozenset[Callable[..., Any]] = frozenset([Tensor.repeat, Tensor.tile, torch.tile])


def handles(*functions: Callable[..., Any]) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


@functools.cache
def _signature(handler: Handler) -> inspect.Signature:
    return inspect.signature(handler)


def handle(
    recorder: Recorder, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call the handler of a function; NotImplemented if none covers the call."""
    handler = HANDLERS.get(func)
    if handler is None:
        return NotImplemented
    try:
        _signature(handler).bind(recorder, *args, **kwargs)
    except TypeError:  # out=, rounding_mode= and the like
        return NotImplemented
    return handler(recorder, *args, **kwargs)


_IN_PLACE = frozenset(
    f"__{name}__"
    for name in (
        *("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow"),
        *("iand", "ior", "ixor", "ilshift", "irshift"),
    )
)


def changes_arguments(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Whether a function writes to a tensor that it is given, as far as its name says."""
    name = getattr(func, "__name__", "")
    underscored = name.endswith("_") and not name.endswith("__")
    return underscored or name in _IN_PLACE or bool(kwargs.keys() & {"out", "inplace"})


def _sum_to(value: Tensor, kept: int, dtype: torch.dtype) -> Tensor:
    """Sum (n, R, ...) over every axis but the first two and `kept`."""
    axes = [axis for axis in range(2, value.ndim) if axis != kept]
    return value.sum(axes, dtype=dtype) if axes else value.to(dtype)


# Linear maps.


def linear_rule(use: Use, x: Tensor | None, delta: Tensor, dtype: torch.dtype) -> Parts:
    """Of y = x W^T + b with x (n, q, I)."""
    parts: Parts = {}
    if x is not None:
        size, rows = x.shape[-1], delta.shape[-1]
        parts["weight"] = LinearSite(x, delta, rows, size, 1, x.shape[1])
    if "bias" in use.parameters:
        parts["bias"] = delta.sum(2, dtype=dtype)
    return parts


@handles(F.linear)
def linear(recorder: Recorder, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    w, b = recorder.find(weight), recorder.find(bias)
    if weight.ndim != 2 or (w is None and b is None):
        return NotImplemented
    input = recorder.data(input)
    output = F.linear(input, recorder.leaf(weight), recorder.leaf(bias))
    return recorder.record_linear("linear", output, input, w, b)


@handles(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)
def matmul(recorder: Recorder, input: Tensor, other: Tensor) -> Any:
    weight = recorder.find(other)
    if weight is None and input.ndim == 2 and other.ndim >= 2:
        # W x is x^T W^T, transposed.
        result = linear(recorder, other.transpose(-1, -2), input)
        return result if result is NotImplemented else result.transpose(-1, -2)
    if weight is None or other.ndim > 2 or input.ndim < 2:
        return NotImplemented
    # The leaf is that of the transposed weight, or of a single row.
    rows = other.t() if other.ndim == 2 else other[None]
    weight = recorder.follow(rows, weight)
    input = recorder.data(input)
    output = input @ (weight.leaf.t() if other.ndim == 2 else weight.leaf[0])
    shown = output if other.ndim == 2 else output[..., None].clone()
    shown = recorder.record_linear("matmul", shown, input, weight, None)
    return shown if other.ndim == 2 else shown[..., 0]


@handles(Tensor.__rmatmul__)
def rmatmul(recorder: Recorder, other: Tensor, input: Tensor) -> Any:
    return matmul(recorder, input, other)


@handles(torch.addmm, Tensor.addmm)
def addmm(
    recorder: Recorder,
    input: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Any:
    weight, bias = recorder.find(mat2), recorder.find(input)
    if recorder.find(mat1) is not None or beta != 1 or alpha != 1:
        return NotImplemented
    if bias is not None and input.shape != (mat2.shape[1],):
        return NotImplemented
    if weight is not None:
        weight = recorder.follow(mat2.t(), weight)
        mat2 = weight.leaf.t()
    elif bias is None:
        return NotImplemented
    output = torch.addmm(recorder.leaf(input), mat1, mat2)
    return recorder.record_linear("addmm", output, mat1, weight, bias)


@handles(torch.einsum)
def einsum(recorder: Recorder, equation: str, *operands: Any) -> Any:
    """Two operands with a weight that is contracted with the data, as a linear map."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    if len(operands) != 2 or len(letters) != 2 or not arrow or "." in equation:
        return NotImplemented
    (x, weight), (of_x, of_weight) = operands, letters
    if recorder.find(weight) is None:
        x, weight, of_x, of_weight = weight, x, of_weight, of_x
    tracked = recorder.find(weight)
    repeated = any(len(set(word)) < len(word) for word in (of_x, of_weight, result))
    if tracked is None or recorder.find(x) is not None or repeated:
        return NotImplemented
    positions = [c for c in of_x if c not in of_weight]
    summed = [c for c in of_x if c in of_weight]
    kept = [c for c in of_weight if c not in of_x]
    if sorted(positions + kept) != sorted(result) or not positions:
        return NotImplemented
    sizes = dict(zip(of_x + of_weight, (*x.shape, *weight.shape), strict=True))
    rows = weight.permute([of_weight.index(c) for c in kept + summed])
    rows = rows.reshape(math.prod(sizes[c] for c in kept), -1)
    tracked = recorder.follow(rows, tracked)
    x = x.permute([of_x.index(c) for c in positions + summed])
    x = x.flatten(len(positions)) if summed else x[..., None]
    output = F.linear(x, tracked.leaf)
    output = recorder.record_linear("einsum", output, x, tracked, None)
    output = output.reshape(*output.shape[:-1], *(sizes[c] for c in kept))
    return output.permute([(positions + kept).index(c) for c in result])


@handles(torch.bilinear, F.bilinear)
def bilinear(
    recorder: Recorder, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Any:
    w, b = recorder.find(weight), recorder.find(bias)
    if w is None and b is None:
        return NotImplemented
    output = F.bilinear(input1, input2, recorder.leaf(weight), recorder.leaf(bias))
    outer = None
    if w is not None:
        with torch.no_grad():
            outer = (input1[..., :, None] * input2[..., None, :]).flatten(-2)
    return recorder.record(
        linear_rule, "bilinear", output, outer, range(output.ndim - 1), {"weight": w, "bias": b}
    )


# Convolutions.


def _convolution_rule(use: Use, x: Tensor | None, delta: Tensor, dtype: torch.dtype) -> Parts:
    parts: Parts = {}
    s = use.settings
    if x is not None:
        shape = s["weight"]
        kernel = shape[2:]
        before = s["before"]
        if before != s["after"]:
            pad = [p for pair in zip(before[::-1], s["after"][::-1], strict=True) for p in pair]
            x, before = F.pad(x, pad), (0,) * len(kernel)
        parts["weight"] = ConvolutionSite(
            x,
            delta,
            rows=shape[0],
            size=math.prod(shape[1:]),
            groups=s["groups"],
            positions=delta.shape[2] * math.prod(delta.shape[4:]),
            geometry=Geometry(kernel, s["stride"], before, s["dilation"]),
        )
    if "bias" in use.parameters:
        parts["bias"] = _sum_to(delta, 3, dtype)
    return parts


def _each(value: int | tuple[int, ...], d: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * d
    return tuple(value) * (d if len(value) == 1 else 1)


def _convolution(name: str, function: Callable[..., Tensor], d: int) -> Handler:
    def convolution(
        recorder: Recorder,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        w, b = recorder.find(weight), recorder.find(bias)
        if input.ndim != d + 2 or (w is None and b is None):
            return NotImplemented
        input = recorder.data(input)
        output = function(
            input, recorder.leaf(weight), recorder.leaf(bias), stride, padding, dilation, groups
        )
        dilation, kernel = _each(dilation, d), weight.shape[2:]
        if padding == "same":
            total = [t * (k - 1) for t, k in zip(dilation, kernel, strict=True)]
            before = tuple(t // 2 for t in total)
            after = tuple(t - t // 2 for t in total)
        else:
            before = after = _each(0 if padding == "valid" else padding, d)
        return recorder.record(
            _convolution_rule,
            name,
            output,
            input if w is not None else None,
            (0,),
            {"weight": w, "bias": b},
            weight=tuple(weight.shape),
            stride=_each(stride, d),
            before=before,
            after=after,
            dilation=dilation,
            groups=groups,
        )

    return convolution


def _transposed_rule(use: Use, x: Tensor | None, delta: Tensor, dtype: torch.dtype) -> Parts:
    parts: Parts = {}
    s = use.settings
    if x is not None:
        shape = s["weight"]
        parts["weight"] = TransposedSite(
            x,
            delta,
            rows=shape[0],
            size=math.prod(shape[1:]),
            groups=s["groups"],
            positions=x.shape[1] * math.prod(x.shape[3:]),
            geometry=Geometry(shape[2:], s["stride"], s["padding"], s["dilation"]),
        )
    if "bias" in use.parameters:
        parts["bias"] = _sum_to(delta, 3, dtype)
    return parts


def _transposed(name: str, function: Callable[..., Tensor], d: int) -> Handler:
    def transposed(
        recorder: Recorder,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Any:
        w, b = recorder.find(weight), recorder.find(bias)
        if input.ndim != d + 2 or (w is None and b is None):
            return NotImplemented
        input = recorder.data(input)
        output = function(
            input,
            recorder.leaf(weight),
            recorder.leaf(bias),
            stride,
            padding,
            output_padding,
            groups,
            dilation,
        )
        return recorder.record(
            _transposed_rule,
            name,
            output,
            input if w is not None else None,
            (0,),
            {"weight": w, "bias": b},
            weight=tuple(weight.shape),
            stride=_each(stride, d),
            padding=_each(padding, d),
            dilation=_each(dilation, d),
            groups=groups,
        )

    return transposed


for _d in (1, 2, 3):
    _name = f"conv{_d}d"
    HANDLERS[getattr(F, _name)] = _convolution(_name, getattr(F, _name), _d)
    _name = f"conv_transpose{_d}d"
    HANDLERS[getattr(F, _name)] = _transposed(_name, getattr(F, _name), _d)


# Normalisations: y = weight * normalised + bias.


def _channels(use: Use, normalised: Tensor | None, delta: Tensor, dtype: torch.dtype) -> Parts:
    """Of weights of axis 3 of delta (n, R, q, C, *)."""
    parts: Parts = {}
    if normalised is not None:
        parts["weight"] = _sum_to(delta * normalised[:, None], 3, dtype)
    if "bias" in use.parameters:
        parts["bias"] = _sum_to(delta, 3, dtype)
    return parts


def _normalised_channels(normalise: Callable[[Tensor, dict[str, Any]], Tensor]) -> Any:
    def rule(use: Use, x: Tensor | None, delta: Tensor, dtype: torch.dtype) -> Parts:
        if x is not None:
            x = normalise(x.flatten(0, 1), use.settings).view(x.shape)
        return _channels(use, x, delta, dtype)

    return rule


_batch_norm_rule = _normalised_channels(
    lambda x, s: F.batch_norm(x, s["mean"], s["variance"], eps=s["eps"])
)
_group_norm_rule = _normalised_channels(lambda x, s: F.group_norm(x, s["groups"], eps=s["eps"]))
_instance_norm_rule = _normalised_channels(
    lambda x, s: F.instance_norm(
        x, s["mean"], s["variance"], use_input_stats=s["own"], eps=s["eps"]
    )
)


@handles(F.batch_norm)
def batch_norm(
    recorder: Recorder,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    w, b = recorder.find(weight), recorder.find(bias)
    # With the statistics of the batch no point has a gradient of its own.
    if training or running_mean is None or (w is None and b is None):
        return NotImplemented
    input = recorder.data(input)
    output = F.batch_norm(
        input,
        running_mean,
        running_var,
        recorder.leaf(weight),
        recorder.leaf(bias),
        eps=eps,
    )
    return recorder.record(
        _batch_norm_rule,
        "batch_norm",
        output,
        input if w is not None else None,
        (0,),
        {"weight": w, "bias": b},
        mean=running_mean,
        variance=running_var,
        eps=eps,
    )


@handles(F.group_norm)
def group_norm(
    recorder: Recorder,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    w, b = recorder.find(weight), recorder.find(bias)
    if w is None and b is None:
        return NotImplemented
    input = recorder.data(input)
    output = F.group_norm(input, num_groups, recorder.leaf(weight), recorder.leaf(bias), eps)
    return recorder.record(
        _group_norm_rule,
        "group_norm",
        output,
        input if w is not None else None,
        (0,),
        {"weight": w, "bias": b},
        groups=num_groups,
        eps=eps,
    )


@handles(F.instance_norm)
def instance_norm(
    recorder: Recorder,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    w, b = recorder.find(weight), recorder.find(bias)
    if (w is None and b is None) or (use_input_stats and running_mean is not None):
        return NotImplemented
    input = recorder.data(input)
    output = F.instance_norm(
        input,
        running_mean,
        running_var,
        recorder.leaf(weight),
        recorder.leaf(bias),
        use_input_stats,
        momentum,
        eps,
    )
    return recorder.record(
        _instance_norm_rule,
        "instance_norm",
        output,
        input if w is not None else None,
        (0,),
        {"weight": w, "bias": b},
        mean=running_mean,
        variance=running_var,
        own=use_input_stats,
        eps=eps,
    )


def _last_axes(use: Use, normalised: Tensor | None, delta: Tensor, dtype: torch.dtype) -> Parts:
    """Of weights over all axes of delta (n, R, q, *) from the fourth on."""
    delta = delta.flatten(3)
    parts: Parts = {}
    if normalised is not None:
        parts["weight"] = (delta * normalised.flatten(2)[:, None]).sum(2, dtype=dtype)
    if "bias" in use.parameters:
        parts["bias"] = delta.sum(2, dtype=dtype)
    return parts


def _layer_norm_rule(use: Use, x: Tensor | None, delta: Tensor, dtype: torch.dtype) -> Parts:
    if x is not None:
        x = F.layer_norm(x, x.shape[2:], eps=use.settings["eps"])
    return _last_axes(use, x, delta, dtype)


def _rms_norm_rule(use: Use, x: Tensor | None, delta: Tensor, dtype: torch.dtype) -> Parts:
    if x is not None:
        x = F.rms_norm(x, x.shape[2:], eps=use.settings["eps"])
    return _last_axes(use, x, delta, dtype)


@handles(F.layer_norm)
def layer_norm(
    recorder: Recorder,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    w, b = recorder.find(weight), recorder.find(bias)
    if w is None and b is None:
        return NotImplemented
    input = recorder.data(input)
    output = F.layer_norm(input, normalized_shape, recorder.leaf(weight), recorder.leaf(bias), eps)
    return recorder.record(
        _layer_norm_rule,
        "layer_norm",
        output,
        input if w is not None else None,
        range(input.ndim - len(normalized_shape)),
        {"weight": w, "bias": b},
        eps=eps,
    )


def rms_norm(
    recorder: Recorder,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    w = recorder.find(weight)
    if w is None:
        return NotImplemented
    input = recorder.data(input)
    output = F.rms_norm(input, normalized_shape, recorder.leaf(weight), eps)
    axes = range(input.ndim - len(normalized_shape))
    return recorder.record(_rms_norm_rule, "rms_norm", output, input, axes, {"weight": w}, eps=eps)


if hasattr(F, "rms_norm"):  # torch >= 2.4
    HANDLERS[F.rms_norm] = rms_norm


def _prelu_rule(use: Use, x: Tensor | None, delta: Tensor, dtype: torch.dtype) -> Parts:
    assert x is not None
    product = delta * x[:, None].clamp(max=0)
    if use.settings["several"]:
        return {"weight": _sum_to(product, 3, dtype)}
    return {"weight": product.flatten(2).sum(2, keepdim=True, dtype=dtype)}


@handles(F.prelu)
def prelu(recorder: Recorder, input: Tensor, weight: Tensor) -> Any:
    w = recorder.find(weight)
    if w is None or input.ndim < 1 + (weight.numel() > 1):
        return NotImplemented
    input = recorder.data(input)
    output = F.prelu(input, recorder.leaf(weight))
    return recorder.record(
        _prelu_rule, "prelu", output, input, (0,), {"weight": w}, several=weight.numel() > 1
    )


# Embeddings.


def _embedding_rule(use: Use, x: Tensor | None, delta: Tensor, dtype: torch.dtype) -> Parts:
    assert x is not None
    rows, size = use.settings["weight"]
    padding = use.settings["padding_idx"]
    if padding is not None:
        delta = delta * (x != padding)[:, None, :, None]
    return {"weight": EmbeddingSite(x, delta, rows, size, 1, x.shape[1])}


@handles(F.embedding)
def embedding(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    w = recorder.find(weight)
    if w is None or max_norm is not None:
        return NotImplemented
    if scale_grad_by_freq:
        raise ValueError("an Embedding with scale_grad_by_freq has no true gradients")
    output = F.embedding(input, w.leaf, padding_idx, sparse=sparse)
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    return recorder.record(
        _embedding_rule,
        "embedding",
        output,
        input.long(),
        range(input.ndim),
        {"weight": w},
        weight=tuple(weight.shape),
        padding_idx=padding_idx,
    )


@handles(F.embedding_bag)
def embedding_bag(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """Look up rows, and take the sum, mean or maximum of every bag.

    Padding counts in no bag, and an empty bag is zero.
    """
    if recorder.find(weight) is None or max_norm is not None:
        return NotImplemented
    if recorder.find(per_sample_weights) is not None:
        return NotImplemented
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    rows = embedding(recorder, input, weight, padding_idx, None, 2.0, scale_grad_by_freq, sparse)
    used = None if padding_idx is None else (input != padding_idx)[..., None]
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[..., None]
    if input.ndim == 2:
        if mode == "max":
            return _largest(rows, used)
        total = (rows if used is None else rows * used).sum(1)
        if mode == "sum":
            return total
        count = input.shape[1] if used is None else used.sum(1).clamp(min=1)
        return total / count if used is not None or input.shape[1] else total
    assert offsets is not None
    bags = len(offsets) - include_last_offset
    ends = torch.cat([offsets[1:], offsets.new_tensor([len(input)])])[:bags]
    lengths = ends - offsets[:bags]
    bag = torch.repeat_interleave(torch.arange(bags, device=input.device), lengths)
    first = int(offsets[0]) if bags else 0
    rows, used = rows[first : first + len(bag)], None if used is None else used[first:][: len(bag)]
    if mode == "max":
        return _largest_of_bags(rows, used, lengths, bag)
    total = rows.new_zeros(bags, rows.shape[1])
    total = total.index_add(0, bag, rows if used is None else rows * used)
    if mode == "sum":
        return total
    count = lengths if used is None else lengths.new_zeros(bags).index_add(0, bag, used[:, 0] + 0)
    return total / count.clamp(min=1)[:, None]


def _largest(rows: Tensor, used: Tensor | None) -> Tensor:
    """Maximum over axis 1 of (N, B, E), zero where a bag has nothing in it."""
    if rows.shape[1] == 0:
        return rows.sum(1)
    if used is None:
        return rows.max(1).values
    largest = rows.masked_fill(~used, -math.inf).max(1).values
    return torch.where(used.any(1), largest, 0)


def _largest_of_bags(rows: Tensor, used: Tensor | None, lengths: Tensor, bag: Tensor) -> Tensor:
    """Do the same for bags that follow each other in (T, E)."""
    width = int(lengths.max()) if len(lengths) else 0
    place = torch.arange(len(bag), device=bag.device) - (lengths.cumsum(0) - lengths)[bag]
    padded = rows.new_zeros(len(lengths), width, rows.shape[1]).index_put((bag, place), rows)
    filled = torch.zeros(len(lengths), width, 1, dtype=torch.bool, device=bag.device)
    filled[bag, place] = True if used is None else used
    return _largest(padded, filled)


# Parameters that are added or multiplied in, entry by entry.


def _entries_rule(use: Use, x: Tensor | None, delta: Tensor, dtype: torch.dtype) -> Parts:
    """Of y = f(p, data) with x = dy/dp entry by entry (None: 1), p of shape `kept` or 1."""
    product = delta if x is None else delta * x[:, None]
    summed = [2, *(axis for axis, size in enumerate(use.settings["kept"], 3) if size == 1)]
    total = product.sum(summed, dtype=dtype)
    total = total.flatten(2) if total.ndim > 2 else total[..., None]
    return {"p": total * use.settings.get("sign", 1)}


def entries_use(
    recorder: Recorder,
    what: str,
    output: Tensor,
    derivative: Tensor | None,
    tracked: Tracked,
    sign: float = 1,
) -> Any:
    """Record y = f(p, data), or return NotImplemented if p may vary with every axis."""
    fixed = (True,) * (output.ndim - len(tracked.fixed)) + tracked.fixed
    if output.ndim < len(tracked.fixed) or not any(fixed):
        return NotImplemented
    start = fixed.index(True)
    stop = start
    while stop < len(fixed) and fixed[stop]:
        stop += 1
    shape = (1,) * (output.ndim - tracked.value.ndim) + tuple(tracked.value.shape)
    kept = [
        1 if f else size
        for axis, (f, size) in enumerate(zip(fixed, shape, strict=True))
        if not start <= axis < stop
    ]
    if derivative is not None:
        derivative = derivative.expand(output.shape)
    return recorder.record(
        _entries_rule,
        what,
        output,
        derivative,
        range(start, stop),
        {"p": tracked},
        kept=kept,
        sign=sign,
    )


def expanded(recorder: Recorder, tracked: Tracked) -> Tensor:
    """Return an expanded parameter as data, recording that it was read."""
    output = tracked.leaf.clone()
    result = entries_use(recorder, "expand", output, None, tracked)
    return result  # type: ignore[no-any-return]


def _pair(recorder: Recorder, a: Any, b: Any) -> tuple[Tracked | None, Tracked | None]:
    return recorder.find(a), recorder.find(b)


def _added(
    function: Callable[..., Tensor],
    signs: tuple[int, int],
    in_place: bool = False,
    scaled: int = 1,
) -> Handler:
    """Make a handler of a sum: the sign of each argument, and which of them `alpha` multiplies."""

    def added(recorder: Recorder, input: Any, other: Any, *, alpha: float = 1) -> Any:
        first, second = _pair(recorder, input, other)
        tracked = first or second
        if tracked is None or (first is not None and second is not None):
            return NotImplemented
        if in_place and (first is not None or input._is_view()):
            return NotImplemented
        if not _broadcasts(tracked, (input if first is None else other).ndim):
            return NotImplemented
        place = 0 if first is not None else 1
        sign = signs[place] * (alpha if place == scaled else 1)
        extra = {} if alpha == 1 else {"alpha": alpha}
        output = function(recorder.leaf(input), recorder.leaf(other), **extra)
        return entries_use(recorder, "add", output, None, tracked, sign)

    return added


def _broadcasts(tracked: Tracked, ndim: int) -> bool:
    """Whether a parameter has an axis along which it does not vary, beside data of `ndim` axes."""
    return ndim > len(tracked.fixed) or any(tracked.fixed)


def _multiplied(recorder: Recorder, input: Any, other: Any) -> Any:
    first, second = _pair(recorder, input, other)
    tracked, data = (first, other) if first is not None else (second, input)
    if tracked is None or (first and second) or not _broadcasts(tracked, data.ndim):
        return NotImplemented
    output = torch.mul(recorder.leaf(input), recorder.leaf(other))
    return entries_use(recorder, "multiply", output, data, tracked)


def _divided(recorder: Recorder, input: Any, other: Any) -> Any:
    first, second = _pair(recorder, input, other)
    tracked, data = (first, other) if first is not None else (second, input)
    if tracked is None or (first and second) or not _broadcasts(tracked, data.ndim):
        return NotImplemented
    output = torch.div(recorder.leaf(input), recorder.leaf(other))
    with torch.no_grad():
        derivative = data.reciprocal() if first is not None else -output / other
    return entries_use(recorder, "divide", output, derivative, tracked)


handles(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)(_added(torch.add, (1, 1)))
handles(torch.sub, Tensor.sub, Tensor.__sub__)(_added(torch.sub, (1, -1)))
handles(torch.rsub, Tensor.__rsub__)(_added(torch.rsub, (-1, 1), scaled=0))
handles(Tensor.add_, Tensor.__iadd__)(_added(Tensor.add_, (1, 1), in_place=True))
handles(Tensor.sub_, Tensor.__isub__)(_added(Tensor.sub_, (1, -1), in_place=True))


@handles(torch.addcmul, Tensor.addcmul)
def addcmul(
    recorder: Recorder, input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1
) -> Any:
    shift, first, second = map(recorder.find, (input, tensor1, tensor2))
    scale, data = (first, tensor2) if first is not None else (second, tensor1)
    if first is not None and second is not None:
        return NotImplemented
    ndim = max(t.ndim for t in (input, tensor1, tensor2) if not recorder.find(t))
    if not all(_broadcasts(t, ndim) for t in (shift, scale) if t is not None):
        return NotImplemented
    output = torch.addcmul(*map(recorder.leaf, (input, tensor1, tensor2)), value=value)
    if shift is not None:
        output = entries_use(recorder, "addcmul", output, None, shift)
    if scale is not None:
        output = entries_use(recorder, "addcmul", output, data, scale, value)
    return output


@handles(Tensor.mul_, Tensor.__imul__)
def multiplied_in_place(recorder: Recorder, input: Any, other: Any) -> Any:
    tracked = recorder.find(other)
    if tracked is None or recorder.find(input) is not None or input._is_view():
        return NotImplemented
    if not _broadcasts(tracked, input.ndim):
        return NotImplemented
    before = input.detach().clone()
    return entries_use(recorder, "multiply", input.mul_(tracked.leaf), before, tracked)


handles(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)(_multiplied)
handles(torch.div, Tensor.div, Tensor.__truediv__)(_divided)


@handles(Tensor.pow, torch.pow, Tensor.__pow__)
def power(recorder: Recorder, input: Any, exponent: Any) -> Any:
    tracked = recorder.find(exponent)
    if tracked is None or recorder.find(input) is not None or not _broadcasts(tracked, input.ndim):
        return NotImplemented
    output = torch.pow(input, tracked.leaf)
    with torch.no_grad():
        derivative = torch.where(input == 0, 0, output * input.log())
    return entries_use(recorder, "power", output, derivative, tracked)


HANDLERS[F.multi_head_attention_forward] = attention.attention
HANDLERS[F.scaled_dot_product_attention] = attention.with_bias
HANDLERS.update(recurrent.HANDLERS)
