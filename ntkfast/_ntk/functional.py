"""The reference: per-sample gradients from torch.func, or from one autograd call per sample.

Slow and memory-hungry beside the contraction of layer inputs with output gradients, but right for
every network: it is the oracle of the tests, the self-check of a first batch, and the fallback for
parameters no layer rule covers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from .inputs import Batch, batch_length, take


def call(model: nn.Module, batch: Batch, parameters: dict[str, Tensor] | None = None) -> Any:
    """Call the model, with other values for some of its parameters if there are any."""
    args, kwargs = ((), batch) if isinstance(batch, dict) else ((batch,), {})
    if parameters:
        return functional_call(model, parameters, args, kwargs)
    return model(*args, **kwargs)


def checked_outputs(value: object, n: int) -> Tensor:
    """Return the model's value as (n, k), or raise an error that says what is wrong with it."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"the model returned a {type(value).__name__}; expected one tensor of shape (N, k). "
            "Wrap it in an nn.Module that returns the logits."
        )
    if value.ndim == 1 and value.shape[0] == n:
        value = value[:, None]
    if value.ndim != 2 or value.shape[0] != n or value.shape[1] == 0:
        raise ValueError(
            f"the model returned shape {tuple(value.shape)} for {n} points; expected ({n}, k)"
        )
    if not value.is_floating_point():
        raise TypeError(f"the model returned {value.dtype}; expected floating-point outputs")
    return value


def one_by_one(
    model: nn.Module, names: Sequence[str], batch: Batch, weights: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return outputs (n, k) and per-sample gradients (n, R, *shape), one forward per point.

    The literal definition, d(weights_r . f(x_i)) / d theta, one backward pass for every row of
    `weights` (R, k): nothing is shared between samples.
    """
    parameters = dict(model.named_parameters())
    wanted = [parameters[name] for name in names]
    n, rows = batch_length(batch), len(weights)
    alone: list[Tensor] = []
    result = {
        name: torch.empty((n, rows, *p.shape), dtype=p.dtype, device=p.device)
        for name, p in zip(names, wanted, strict=True)
    }
    for i in range(n):
        outputs = checked_outputs(call(model, take(batch, slice(i, i + 1))), 1)[0]
        if not outputs.requires_grad:
            raise ValueError(
                "the model's outputs do not depend on its parameters as far as autograd can see; "
                "it may run under no_grad, inference_mode or detach()"
            )
        alone.append(outputs.detach())
        scalars = weights.to(outputs.dtype) @ outputs
        for r in range(rows):
            grads = torch.autograd.grad(
                scalars[r], wanted, retain_graph=r + 1 < rows, allow_unused=True
            )
            for name, g in zip(names, grads, strict=True):
                result[name][i, r] = 0 if g is None else g.to_dense() if g.is_sparse else g
    return torch.stack(alone), result


def vectorised(
    model: nn.Module, names: Sequence[str], batch: Batch, weights: Tensor
) -> dict[str, Tensor]:
    """Do the same as :func:`one_by_one` through ``vmap(grad)``, or ``vmap(jacrev)`` for R > 1."""
    # Everything detached, or the parameters that are not chosen would record an ordinary autograd
    # graph underneath.
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    chosen = {name: parameters[name] for name in names}

    def scalars(theta: dict[str, Tensor], x: Batch) -> Tensor:
        single = {k: v[None] for k, v in x.items()} if isinstance(x, dict) else x[None]
        args, kwargs = ((), single) if isinstance(single, dict) else ((single,), {})
        outputs = checked_outputs(functional_call(model, {**parameters, **theta}, args, kwargs), 1)[
            0
        ]
        result: Tensor = weights.to(outputs.dtype) @ outputs
        return result

    with warnings.catch_warnings():
        # Operations without a batching rule are slower, not wrong.
        warnings.filterwarnings("ignore", "There is a performance drop")
        if len(weights) == 1:
            first = vmap(grad(lambda theta, x: scalars(theta, x)[0]), in_dims=(None, 0))
            return {name: g[:, None] for name, g in first(chosen, batch).items()}
        result: dict[str, Tensor] = vmap(jacrev(scalars), in_dims=(None, 0))(chosen, batch)
        return result
