"""One forward and one backward pass per batch, with hooks that see every layer's input and output.

:func:`plan` decides, on the first points of a call, which parameters the layer rules cover and
which fall back to :mod:`.functional`, and compares both with a literal autograd Jacobian.
:func:`gradients` then takes the gradients of a batch accordingly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from . import attention, contract, functional
from .inputs import Batch, batch_length
from .layers import SEQUENCE_LAYERS, Dense, Site, Unsupported, find_rule

Gradient: TypeAlias = "list[Site] | Dense"
"""Per-sample gradients of one parameter: the calls of its layer, or (n, R, p)."""

# Relative error of a parameter's gradient above which the self-check rejects a rule. A wrong rule
# is wrong in its first digit; these only have to exceed rounding (and TF32 on CUDA).
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-2}
_HALF_TOLERANCE = 0.3


@dataclass
class Call:
    """One call of a layer: its input, and where its output is in the autograd graph."""

    layer: nn.Module
    x: Tensor
    version: int
    edge: GradientEdge


@dataclass
class Plan:
    """How the gradient of every chosen parameter is taken.

    Attributes
    ----------
    layers : dict
        Layer -> {own parameter name: full name} of the parameters its rule covers.
    expanded : list of str
        Free parameters with a first axis of length one (class tokens, positions), which are given
        to the model once per point.
    broadcast : list of Embedding
        Embeddings of indices without a batch axis (positions), whose output is repeated for every
        point so that each has a gradient of its own.
    second_axis : set of Module
        Layers of sequence models that are called with points along the second axis.
    fallback : dict
        Full name -> why torch.func takes this parameter.
    vectorised : bool
        Whether vmap can run the model; one point at a time otherwise.
    activation_bytes : float
        Activations and output gradients alive in the forward and backward pass of one point.
    resident_bytes : float
        What a Gram panel keeps of one point.
    """

    layers: dict[nn.Module, dict[str, str]]
    expanded: list[str] = field(default_factory=list)
    broadcast: list[nn.Module] = field(default_factory=list)
    second_axis: set[nn.Module] = field(default_factory=set)
    fallback: dict[str, str] = field(default_factory=dict)
    vectorised: bool = True
    activation_bytes: float = 0.0
    resident_bytes: float = 0.0

    def drop(self, name: str, reason: str) -> None:
        """Move a parameter from its rule to the fallback."""
        self.fallback[name] = reason
        self.expanded = [full for full in self.expanded if full != name]
        for names in self.layers.values():
            for own in [own for own, full in names.items() if full == name]:
                del names[own]
        self.layers = {layer: names for layer, names in self.layers.items() if names}


@contextmanager
def recorded_calls(plan: Plan, n: int) -> Iterator[list[Call]]:
    """Record every call, on n points, of the layers whose output depends on a parameter."""
    calls: list[Call] = []

    def record(
        layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Tensor | None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(x, Tensor) or not isinstance(output, Tensor) or not output.requires_grad:
            return None
        replacement = None
        if layer in plan.broadcast and x.ndim <= 2:
            x = x.expand(n, x.shape[-1])
            replacement = output.expand(n, *output.shape[-2:]).clone()
        elif output._is_view():
            # An in-place operation on a view would replace the node whose gradient we ask for.
            replacement = output.clone()
        edge = get_gradient_edge(output if replacement is None else replacement)
        calls.append(Call(layer, x.detach(), x._version, edge))
        return replacement

    handles = []
    attentions: list[nn.MultiheadAttention] = []
    try:
        for layer in plan.layers:
            if isinstance(layer, nn.MultiheadAttention):
                projected = partial(_record_projection, calls, layer)
                vars(layer)["forward"] = partial(attention.self_attention, layer, projected)
                attentions.append(layer)
            else:
                # First in line, so that hooks of the user that change the output come after.
                handles.append(layer.register_forward_hook(record, prepend=True, with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        for layer in attentions:
            del vars(layer)["forward"]


def _record_projection(calls: list[Call], layer: nn.Module, x: Tensor, output: Tensor) -> None:
    if output.requires_grad:
        calls.append(Call(layer, x.detach(), x._version, get_gradient_edge(output)))


def _copies(model: nn.Module, plan: Plan, n: int) -> dict[str, Tensor]:
    """One copy per point of the expanded parameters."""
    copies = {}
    for name in plan.expanded:
        parameter = model.get_parameter(name).detach()
        copies[name] = parameter.expand(n, *parameter.shape[1:]).requires_grad_()
    return copies


def backward(
    model: nn.Module, plan: Plan, batch: Batch, weights: Tensor
) -> tuple[Tensor, list[tuple[Call | str, Tensor]]]:
    """Run the batch; return its outputs (n, k) and (call, delta (R, *output)) for every call.

    Expanded parameters come as (name, gradient (R, n, *shape[1:])). Gradients of other parameters
    are never formed, and ``.grad`` is not touched.
    """
    n = batch_length(batch)
    expanded = _copies(model, plan, n)
    with recorded_calls(plan, n) as calls:
        outputs = functional.checked_outputs(functional.call(model, batch, expanded), n)
    sources: list[Call | str] = [*calls, *expanded]
    if not sources:
        return outputs.detach(), []
    edges = [call.edge for call in calls] + [get_gradient_edge(p) for p in expanded.values()]
    rows = weights.to(outputs.dtype)
    deltas: list[list[Tensor]] = [[] for _ in sources]
    for r, row in enumerate(rows):
        gradients = torch.autograd.grad(
            outputs,
            edges,
            grad_outputs=row.expand_as(outputs),
            retain_graph=r + 1 < len(rows),
            allow_unused=True,
        )
        for collected, gradient in zip(deltas, gradients, strict=True):
            if gradient is not None:
                collected.append(gradient)
    result: list[tuple[Call | str, Tensor]] = []
    for source, collected in zip(sources, deltas, strict=True):
        if collected:
            stacked = torch.stack(collected) if len(collected) > 1 else collected[0][None]
            result.append((source, stacked))
    return outputs.detach(), result


def layer_gradients(
    model: nn.Module, plan: Plan, batch: Batch, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Gradient], dict[str, str]]:
    """Return outputs, gradients by rule, and the parameters whose rule refused (and why)."""
    n = batch_length(batch)
    outputs, calls = backward(model, plan, batch, weights)
    result: dict[str, Gradient] = {}
    refused: dict[str, str] = {}
    for call, delta in calls:
        if isinstance(call, str):
            result[call] = delta.transpose(0, 1).flatten(2).to(dtype)
            continue
        x, names = call.x, plan.layers[call.layer]
        if call.layer in plan.second_axis:
            x, delta = x.transpose(0, 1), delta.transpose(1, 2)
        found = find_rule(call.layer)
        assert found is not None
        try:
            if call.x._version != call.version:
                raise Unsupported("its input is changed in place after the call")
            parts = found[1](call.layer, x, delta, n, dtype)
        except Unsupported as error:
            refused.update(dict.fromkeys(names.values(), str(error)))
            continue
        for own, full in names.items():
            part = parts[own]
            known = result.get(full)
            if known is None:
                result[full] = [part] if isinstance(part, Site) else part
            elif isinstance(known, list) and isinstance(part, Site):
                known.append(part)
            elif isinstance(known, Tensor) and isinstance(part, Tensor):
                result[full] = known + part
    return outputs, result, refused


def functional_gradients(
    model: nn.Module, plan: Plan, names: Sequence[str], batch: Batch, weights: Tensor
) -> dict[str, Tensor]:
    """(n, R, *shape) per name by the fallback."""
    if not names:
        return {}
    if plan.vectorised:
        return functional.vectorised(model, names, batch, weights)
    return functional.one_by_one(model, names, batch, weights)[1]


def gradients(
    model: nn.Module, plan: Plan, batch: Batch, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Gradient]]:
    """Return the outputs (n, k) of a batch and the per-sample gradients of every parameter.

    A parameter that the batch does not use is missing from the result.
    """
    outputs, result, refused = layer_gradients(model, plan, batch, weights, dtype)
    if refused:
        name, reason = next(iter(refused.items()))
        raise RuntimeError(
            f"the layer of {name!r} was called differently in a later batch than in the first: "
            f"{reason}"
        )
    names = list(plan.fallback)
    for name, value in functional_gradients(model, plan, names, batch, weights).items():
        result[name] = value.to(dtype).flatten(2) if value.ndim > 2 else value.to(dtype)[..., None]
    return outputs, result


def _candidates(model: nn.Module, names: Sequence[str]) -> Plan:
    """Cover the parameters that layer rules name, before anything has been run."""
    wanted = {id(p): name for name, p in model.named_parameters() if name in set(names)}
    layers: dict[nn.Module, dict[str, str]] = {}
    expanded: list[str] = []
    reasons: dict[str, str] = {}
    users: dict[str, set[tuple[object, str]]] = {}
    for layer in model.modules():
        found = find_rule(layer)
        for own, parameter in layer._parameters.items():
            if parameter is None or id(parameter) not in wanted:
                continue
            full = wanted[id(parameter)]
            if found is None or own.removeprefix("in_proj_") not in ("weight", "bias"):
                if found is None and parameter.ndim > 1 and len(parameter) == 1:
                    expanded.append(full)
                else:
                    reasons[full] = f"no rule for {own!r} of {type(layer).__name__}"
            else:
                layers.setdefault(layer, {})[own] = full
            users.setdefault(full, set()).add((found and found[0], own))
    plan = Plan(layers, expanded)
    for full, kinds in users.items():
        if len(kinds) > 1:
            reasons[full] = "shared by layers of different kinds"
    for full, reason in reasons.items():
        plan.drop(full, reason)
    return plan


def plan(
    model: nn.Module,
    names: Sequence[str],
    probe: Batch,
    weights: Tensor,
    dtype: torch.dtype,
    of: str,
) -> tuple[Plan, dict[str, Gradient]]:
    """Decide how to take gradients, checking every way against autograd on the probe points.

    Returns the plan and the gradients of the probe points (of at most two combinations).

    Raises
    ------
    ValueError
        When gradients are not finite, or the model's rows depend on each other.
    RuntimeError
        When even the fallback disagrees with autograd.
    """
    result = _candidates(model, names)
    n = batch_length(probe)
    # Two combinations check as much as a thousand do: they share every layer's input.
    checked = weights[[0, -1]] if len(weights) > 2 else weights
    alone, literal = functional.one_by_one(model, names, probe, checked)
    reference = {name: g.to(dtype).reshape(n, len(checked), -1) for name, g in literal.items()}
    norms = {name: float(torch.linalg.vector_norm(g)) for name, g in reference.items()}
    total = math.hypot(*norms.values())
    for i in range(n if not math.isfinite(total) else 0):
        bad = [name for name, g in reference.items() if not bool(torch.isfinite(g[i]).all())]
        if bad:
            raise not_finite(f"point {i} of {of}", bad)
    tolerance = _TOLERANCE[dtype] if next(iter(literal.values())).itemsize > 2 else _HALF_TOLERANCE

    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    _settle_axes(model, result, probe)
    _settle_copies(model, result, probe, alone, tolerance)
    with saved_tensors_hooks(count, lambda tensor: tensor):
        outputs, by_rule, refused = layer_gradients(model, result, probe, checked, dtype)
    if not _close(alone, outputs, tolerance):
        raise ValueError(
            "the model's outputs for a point depend on the other points of its batch (for example "
            "BatchNorm without running statistics) or on random numbers; its tangent kernel is "
            "not defined"
        )
    parameters = {p.data_ptr() for p in model.parameters()}
    activations = sum(size for pointer, size in saved.items() if pointer not in parameters)
    scale = len(weights) / len(checked)

    def agrees(name: str, value: Tensor) -> bool:
        expected = reference[name]
        error = float(torch.linalg.vector_norm(value.reshape(expected.shape) - expected))
        return error <= tolerance * (norms[name] + 1e-2 * total)

    for name, reason in refused.items():
        result.drop(name, reason)
    for name in names:
        if name in result.fallback:
            continue
        found = by_rule.get(name)
        if found is None:
            value = torch.zeros_like(reference[name])
        else:
            value = contract.dense(found, n, dtype) if isinstance(found, list) else found
        # A layer whose weights are read by someone else's forward looks like this too.
        if not agrees(name, value):
            result.drop(name, "used outside its layer's forward")
    fallback = list(result.fallback)
    if fallback:
        try:
            values = functional_gradients(model, result, fallback, probe, checked)
        except (RuntimeError, NotImplementedError, ValueError):
            # vmap refuses in-place updates of captured tensors, control flow that looks at the
            # data, and random numbers. If the cause was another, one_by_one raises it again.
            values = {}
        # And some of its batching rules are wrong: that of instance_norm, for two outputs.
        if not all(name in values and agrees(name, values[name].to(dtype)) for name in fallback):
            result.vectorised = False
            _, values = functional.one_by_one(model, fallback, probe, checked)
        for name in fallback:
            if not agrees(name, values[name].to(dtype)):
                raise RuntimeError(
                    f"the self-check failed: gradients of {name!r} differ from autograd; "
                    "the model's outputs must be a deterministic function of each point alone"
                )
            by_rule[name] = values[name].to(dtype).reshape(reference[name].shape)
    per_point = scale / n
    result.resident_bytes = sum(map(resident_bytes, by_rule.values())) * per_point
    deltas = sum(nbytes(by_rule[name]) for name in by_rule)
    # vmap holds the activations again, and copies of the gradients it returns.
    again = sum(nbytes(by_rule[name]) for name in fallback) + (activations if fallback else 0)
    result.activation_bytes = activations / n + (deltas + 2 * again) * per_point
    return result, by_rule


def _settle_axes(model: nn.Module, plan: Plan, probe: Batch) -> None:
    """Find the layers whose inputs have points along the second axis, or along none.

    Shapes suggest it, and where they mislead the self-check sends the layer to the fallback.
    """
    n = batch_length(probe)
    if n == 1:
        return
    expanded, plan.expanded = plan.expanded, []
    with recorded_calls(plan, n) as calls:
        functional.call(model, probe)
    plan.expanded = expanded
    for call in calls:
        shape, layer = call.x.shape, call.layer
        is_embedding = isinstance(layer, nn.Embedding)
        if is_embedding and (shape[:-1] == (1,) or (len(shape) == 1 and shape[0] != n)):
            plan.broadcast.append(layer)
            continue
        is_sequence = isinstance(layer, SEQUENCE_LAYERS) and len(shape) >= 3 - is_embedding
        if is_sequence and shape[1] == n != shape[0]:
            plan.second_axis.add(layer)


def _settle_copies(
    model: nn.Module, plan: Plan, probe: Batch, alone: Tensor, tolerance: float
) -> None:
    """Keep the copies of free parameters and positions with which the model computes the same.

    A copy per point only stands for the one it replaces where it is used by broadcasting.
    """
    n = batch_length(probe)
    expanded, broadcast = plan.expanded, plan.broadcast
    for keep_expanded, keep_broadcast in ((True, True), (True, False), (False, True)):
        plan.expanded = expanded if keep_expanded else []
        plan.broadcast = broadcast if keep_broadcast else []
        if not plan.expanded and not plan.broadcast:
            continue
        try:
            with recorded_calls(plan, n):
                copies = _copies(model, plan, n)
                outputs = functional.checked_outputs(functional.call(model, probe, copies), n)
        except (RuntimeError, ValueError, TypeError):
            continue
        if _close(alone, outputs.detach(), tolerance):
            break
    else:
        plan.expanded, plan.broadcast = [], []
    for name in expanded:
        if name not in plan.expanded:
            plan.drop(name, "no rule, and no place for one copy per point")


def nbytes(gradient: Gradient) -> int:
    if isinstance(gradient, list):
        return sum(site.nbytes() for site in gradient)
    return gradient.numel() * gradient.element_size()


def keeps_factors(sites: Sequence[Site]) -> bool:
    """Whether the factors of a weight's gradients are smaller than the gradients."""
    n = len(sites[0].delta)
    dense = n * sites[0].combinations * sites[0].rows * sites[0].size
    return sum(site.x.numel() + site.delta.numel() for site in sites) < dense


def resident_bytes(gradient: Gradient) -> int:
    if isinstance(gradient, list) and not keeps_factors(gradient):
        first = gradient[0]
        weight = first.combinations * first.rows * first.size
        return len(first.delta) * weight * max(4, first.delta.element_size())
    return nbytes(gradient)


def not_finite(where: str, names: Sequence[str]) -> ValueError:
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return ValueError(f"gradients are not finite (NaN or inf) at {where}: parameters {listed}")


def _close(alone: Tensor, together: Tensor, tolerance: float) -> bool:
    scale = float(alone.abs().max())
    return alone.shape == together.shape and torch.allclose(
        alone, together, rtol=tolerance, atol=tolerance * scale
    )
