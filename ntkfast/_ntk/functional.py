"""The reference: per-sample gradients from torch.func, or from one autograd call per sample.

Slow and memory-hungry beside the contraction of layer inputs with output gradients, but right for
every network: the fallback for parameters no layer rule covers, and the check of a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from .inputs import (
    Batch,
    batch_length,
    call_arguments,
    concatenate,
    dtype_explained,
    map_batch,
    take,
)

# Chosen parameters by their full names; and where a network has a parameter, by its identity.
_Parameters = Mapping[str, nn.Parameter]
_Places = dict[int, list[tuple[nn.Module, str]]]


def call(net: nn.Module, batch: Batch) -> object:
    """Call the network on a copy of a batch: some change their input in place."""
    args, kwargs = call_arguments(map_batch(torch.clone, batch))
    with dtype_explained(batch):
        return net(*args, **kwargs)


def evaluate(net: nn.Module, batch: Batch) -> Tensor:
    """Return the outputs (n, k). Of one point, of two: some networks drop an axis of length one."""
    n = batch_length(batch)
    if n > 1:
        return checked_outputs(call(net, batch), n)
    both = concatenate([batch, batch])
    try:
        pair = call(net, both)
    except Exception as error:
        refuse_lengths(net, both, batch, error)
        raise
    return checked_outputs(pair, 2)[:1]


def refuse_lengths(net: nn.Module, failed: Batch, other: Batch, error: Exception) -> None:
    """Raise a RuntimeError if a model fails with a batch, again, and takes another one.

    (A refusal of ours, or a failure of that call alone, is none of the model with the batch.)
    """
    try:
        call(net, failed)
    except Exception as again:
        if type(again) is not type(error):
            return
    else:
        return
    try:
        checked_outputs(call(net, other), batch_length(other))
    except Exception:
        return
    raise RuntimeError(
        f"the model takes some batches, but fails with one of {batch_length(failed)} points "
        f"({type(error).__name__}: {error}). It is called with batches of several lengths here, "
        "never with a single point: let it take two points or more, whichever they are"
    ) from error


def evaluate_only(net: nn.Module, batch: Batch) -> Tensor:
    """Return the outputs (n, k) without a graph, which would hold all activations."""
    try:
        with torch.no_grad():
            return evaluate(net, batch)
    except RuntimeError:
        # Networks may take gradients themselves. If the cause was another it is raised again.
        with torch.enable_grad():
            return evaluate(net, batch).detach()


def checked_outputs(value: object, n: int) -> Tensor:
    """Return the model's value as (n, k), or raise an error that says what is wrong with it."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"the model returned a {type(value).__name__}; expected one tensor of shape (N, k). "
            "Wrap it in an nn.Module that returns the logits."
        )
    if value.ndim == 1 and value.shape[0] == n:
        value = value[:, None]
    shape = tuple(value.shape)
    if value.ndim > 2 and value.shape[0] == n:
        axes = ", ".join(f"d{i}" for i in range(2, value.ndim))
        raise ValueError(
            f"the model returned shape {shape} for {n} points; expected ({n}, k). For outputs at "
            f"many places, (N, k, {axes}) as in segmentation, wrap the model in an nn.Module that "
            "returns what a label is about: means or sums over places, .mean((2, ...)), or a few "
            f"of them, .flatten(1)[:, chosen]; all {shape[1:]} of them as outputs are .flatten(1)"
        )
    if value.ndim != 2 or value.shape[0] != n or value.shape[1] == 0:
        raise ValueError(f"the model returned shape {shape} for {n} points; expected ({n}, k)")
    if not value.is_floating_point():
        raise TypeError(f"the model returned {value.dtype}; expected floating-point outputs")
    return value


def check_connected(outputs: Tensor) -> None:
    """Raise a ValueError if autograd knows no parameter that the outputs depend on."""
    if not outputs.requires_grad:
        raise ValueError(
            "the model's outputs do not depend on its parameters as far as autograd can see; "
            "it may run under no_grad, inference_mode or detach()"
        )


def one_by_one(
    net: nn.Module, chosen: _Parameters, batch: Batch, weights: Tensor, pairs: bool = False
) -> dict[str, Tensor]:
    """Per-sample gradients (n, R, *shape) of parameters by name, one forward per point.

    The literal definition, d(weights_r . f(x_i)) / d theta, one backward pass for every row of
    `weights` (R, k): nothing is shared between samples. With `pairs` a copy of each point keeps it
    company, for networks that cannot take one alone.
    """
    n, rows = batch_length(batch), len(weights)
    result = {
        name: torch.zeros((n, rows, *p.shape), dtype=p.dtype, device=p.device)
        for name, p in chosen.items()
    }
    for i in range(n):
        point = take(batch, slice(i, i + 1))
        company = concatenate([point, point]) if pairs else point
        with stood_in(net, chosen) as wanted:
            outputs = checked_outputs(call(net, company), 2 if pairs else 1)[0]
        if not outputs.requires_grad:
            continue  # a point that no parameter has a part in
        scalars = weights.to(outputs.dtype) @ outputs
        for r in range(rows):
            grads = torch.autograd.grad(
                scalars[r], wanted, retain_graph=r + 1 < rows, allow_unused=True
            )
            for name, g in zip(chosen, grads, strict=True):
                if g is not None:
                    result[name][i, r] = g.to_dense() if g.is_sparse else g
    return result


def _places(net: nn.Module) -> _Places:
    places: _Places = {}
    for module in net.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for own, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, own))
    return places


@contextmanager
def swapped(places: _Places, values: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Give parameters other values wherever a network has them, under every name.

    (``functional_call`` changes one name only, and leaves a shared module damaged.)
    """
    try:
        for parameter, value in values:
            for module, own in places[id(parameter)]:
                module._parameters[own] = value  # type: ignore[assignment]
        yield
    finally:
        for parameter, _ in values:
            for module, own in places[id(parameter)]:
                module._parameters[own] = parameter


@contextmanager
def stood_in(net: nn.Module, chosen: _Parameters) -> Iterator[list[Tensor]]:
    """Let leaves stand in for parameters that have hooks of the user, and yield all of them.

    Others are taken as they are, wherever a network keeps them. (Those of scripted modules cannot
    be replaced.)
    """
    places = _places(net)
    leaves = [
        p.detach().requires_grad_() if p._backward_hooks and id(p) in places else p
        for p in chosen.values()
    ]
    pairs = zip(chosen.values(), leaves, strict=True)
    with swapped(places, [(p, leaf) for p, leaf in pairs if leaf is not p]):
        yield leaves


def vectorised(
    net: nn.Module, chosen: _Parameters, batch: Batch, weights: Tensor, pairs: bool = False
) -> dict[str, Tensor]:
    """Do the same as :func:`one_by_one` through ``vmap``: one level of it, whatever R is.

    (Two levels, of points and of combinations, as ``vmap(jacrev)`` has them, are silently wrong for
    ``torch.cdist`` and ``instance_norm``.)
    """
    places = _places(net)
    if any(id(p) not in places for p in net.parameters()):
        raise NotImplementedError("parameters of scripted modules cannot be replaced")
    ours = {id(p) for p in chosen.values()}
    # Everything detached, or the parameters that are not chosen would record an ordinary autograd
    # graph underneath.
    others = [(p, p.detach()) for p in net.parameters() if id(p) not in ours]
    values = {name: p.detach() for name, p in chosen.items()}

    def scalars(theta: dict[str, Tensor], x: Batch) -> Tensor:
        count = 2 if pairs else 1
        single = map_batch(lambda leaf: torch.stack([leaf] * count), x)
        with swapped(places, others + [(chosen[name], value) for name, value in theta.items()]):
            outputs = checked_outputs(call(net, single), count)[0]
        result: Tensor = weights.to(outputs.dtype) @ outputs
        return result

    def gradients(theta: dict[str, Tensor], x: Batch) -> dict[str, Tensor]:
        rows, pull, *_ = vjp(lambda theta: scalars(theta, x), theta)
        found = [pull(row)[0] for row in torch.eye(len(rows), dtype=rows.dtype, device=rows.device)]
        return {name: torch.stack([one[name] for one in found]) for name in theta}

    with warnings.catch_warnings():
        # Operations without a batching rule are slower, not wrong.
        warnings.filterwarnings("ignore", "There is a performance drop")
        return dict(vmap(gradients, in_dims=(None, 0))(values, batch))


def weighted_sum(
    net: nn.Module, chosen: _Parameters, batch: Batch, weights: Tensor
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return outputs (n, k), and the gradient of ``sum(weights * outputs)`` by plain autograd."""
    with stood_in(net, chosen) as wanted:
        outputs = evaluate(net, batch)
    if not outputs.requires_grad:
        return outputs, {name: torch.zeros_like(p) for name, p in chosen.items()}
    scalar = (outputs * weights.to(outputs.dtype)).sum()
    grads = torch.autograd.grad(scalar, wanted, allow_unused=True)
    return outputs.detach(), {
        name: torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g
        for (name, p), g in zip(chosen.items(), grads, strict=True)
    }
