"""Per-sample gradients by the rules of recorded operations alone, without any fallback or check."""

from __future__ import annotations

from typing import Any

import torch
from ntk_networks import literal_jacobian
from torch import Tensor, nn

from ntkfast._ntk import contract
from ntkfast._ntk.layers import Site
from ntkfast._ntk.record import Recorder, Use


def call(model: nn.Module, x: Any) -> Tensor:
    output: Tensor = model(**x) if isinstance(x, dict) else model(x)
    return output.reshape(len(output), -1)


def record(model: nn.Module, x: Any) -> tuple[Tensor, Recorder]:
    chosen = {name: p for name, p in model.named_parameters() if p.requires_grad}
    others = [p for p in model.parameters() if not p.requires_grad]
    with Recorder(chosen, [*model.buffers(), *others]) as recorder:
        output = call(model, x)
    return output, recorder


def gradients_of(use: Use, deltas: list[Tensor | None], n: int) -> dict[str, Tensor]:
    """(n, R, p) by name: every point has all rows, since its delta is zero at those of others."""
    found = next(d for d in deltas if d is not None)
    delta = torch.stack([torch.zeros_like(found) if d is None else d for d in deltas])
    delta = delta.reshape(n, -1, *use.shape)
    rest = [a for a in range(len(use.shape)) if a not in use.axes]
    delta = delta.permute(0, 1, *(a + 2 for a in (*use.axes, *rest)))
    delta = delta.reshape(*delta.shape[:2], -1, *(use.shape[a] for a in rest))
    x = use.x
    if x is not None:
        assert not use.changed
        rest = [a for a in range(x.ndim) if a not in use.axes]
        x = x.permute(*use.axes, *rest).reshape(-1, *(x.shape[a] for a in rest))
        x = x.expand(n, *x.shape)
    parts = use.gradients(x, delta, delta.dtype)
    return {
        name: contract.dense([part], n, delta.dtype) if isinstance(part, Site) else part
        for name, part in parts.items()
    }


def check(model: nn.Module, x: Any, unseen: tuple[str, ...] = (), tolerance: float = 1e-10) -> None:
    """Compare outputs, gradients and the parameters that have no rule with what they must be."""
    torch.manual_seed(7)
    model.eval()
    expected = call(model, x).detach()
    n, k = expected.shape
    weights = torch.randn(2, k, dtype=torch.float64)
    before = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}
    output, recorder = record(model, x)
    assert (output - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert before == {name: id(v) for name, v in model.state_dict(keep_vars=True).items()}
    found = recorder.unseen(output)
    assert set(found) == set(unseen), found
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    result = {name: torch.zeros(n, 2, p.numel(), dtype=output.dtype) for name, p in names.items()}
    deltas = [
        recorder.backward(output, torch.eye(n, dtype=output.dtype)[i][:, None] * w, keep_graph=True)
        for i in range(n)
        for w in weights
    ]
    for j, use in enumerate(recorder.uses):
        mine = [d[j] for d in deltas]
        if use.names <= set(unseen) or all(d is None for d in mine):
            continue
        for name, gradient in gradients_of(use, mine, n).items():
            result[name] += gradient
    expected = literal_jacobian(model, x, weights)
    start = 0
    for name, p in names.items():
        right = expected[..., start : start + p.numel()]
        start += p.numel()
        if name not in unseen:
            assert (result[name] - right).norm() <= tolerance * expected.norm(), name
