"""Draws networks and data, and compares EmpiricalNTK with gradients taken one point at a time.

    python tests/fuzz_ntk.py [--seed S] [--count N | --minutes M] [--jobs J] [--verbose]
    python tests/fuzz_ntk.py --seed 1234 --count 1 --verbose     # one case, as text
    python tests/fuzz_ntk.py --case "<a case as printed>"

A case depends on its seed alone. It is *right* when features and Gram matrix are those of plain
autograd, point by point and parameter by parameter, or when it is refused because its rows depend
on each other or on random numbers; *wrong* when other numbers came out; *refused* when per-sample
gradients exist but ntkfast says that it cannot take them; *crashed* when another error than
ntkfast's own came out; *damaged* when the model, the data or a random generator is not as it was.
*Void* cases are the fuzzer's own: their gradients are not finite, not defined (a point on a kink or
on the edge of a branch), or the network itself fails. What is wrong, crashed or damaged is made as
small as it still fails, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import ast
import collections
import math
import os
import random
import signal
import sys
import time
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from fuzz_pieces import PIECES, Bank, Node, chain, draw_chain, kinds_in, pooled
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils.data import DataLoader, Dataset, TensorDataset

import ntkfast
from ntkfast.ntk import EmpiricalNTK

VOCABULARY = 7
TOLERANCE = {"float64": 1e-6, "float32": 1e-3}
SECONDS = 60
VERDICTS = ("right", "wrong", "crashed", "damaged", "refused", "void")
BAD = ("wrong", "crashed", "damaged")
Data = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """All that a case is, in plain values: ``Case(**dict)`` gives it back."""

    seed: int
    entry: str
    shape: tuple[int, ...]
    options: dict[str, Any]
    body: list[Node]
    head: str
    k: int
    n: int
    data: list[tuple[str, int]]
    deliver: str
    batch: int
    outputs: str
    draws: int
    dtype: str
    frozen: float

    @property
    def kinds(self) -> set[str]:
        return kinds_in(self.body)

    @property
    def breaks(self) -> set[str]:
        return {PIECES[kind].breaks for kind in self.kinds} - {""}

    def text(self) -> str:
        """Print as a tree, one piece a line."""
        o = " ".join(f"{k}={v!r}" for k, v in self.options.items())
        lines = [f"seed {self.seed}: {self.entry} {self.shape} {o}"]

        def add(nodes: list[Node], depth: int) -> None:
            for kind, options, chains in nodes:
                shown = " ".join(f"{k}={v!r}" for k, v in options.items())
                lines.append(f"{'  ' * depth}{kind} {shown}")
                for i, inside in enumerate(chains):
                    if len(chains) > 1:
                        lines.append(f"{'  ' * (depth + 1)}[{i}]")
                    add(inside, depth + 1 + (len(chains) > 1))

        add(self.body, 1)
        data = ", ".join(f"{name}:{m}" for name, m in self.data) or "ordinary"
        lines.append(f"  head {self.head} k={self.k} frozen={self.frozen}")
        lines.append(
            f"  {self.n} points, {data}; {self.deliver} of {self.batch}; "
            f'outputs="{self.outputs}" draws={self.draws} {self.dtype}'
        )
        return "\n".join(lines)


# Networks


class Network(nn.Module):
    """Inputs to a sequence, vector or image; the body; a pool and a head."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.entry, self.head_kind, self.k = case.entry, case.head, case.k
        self.o, shape = case.options, case.shape
        d = shape[0] if case.entry == "image" else shape[-1]
        self.bank = Bank()
        if case.entry == "tokens":
            padding = 0 if self.o["padding"] else None
            self.words = nn.Embedding(VOCABULARY, d, padding_idx=padding, sparse=self.o["sparse"])
            self.places = nn.Embedding(shape[0], d)
            self.free_places = nn.Parameter(0.3 * torch.randn(1, *shape))
        elif case.entry == "table":
            self.columns = nn.ModuleList(nn.Embedding(4, d) for _ in range(2))
            self.numbers = nn.Linear(3, d)
        self.body = chain(case.body, shape, self.bank)
        k = 1 if case.head.startswith("squeeze") else case.k
        if case.head == "classes":
            self.classes, self.score = nn.Parameter(torch.randn(k, d)), nn.Linear(d, 1)
        elif case.head == "tied" and case.entry == "tokens":
            self.decoder = nn.Linear(d, VOCABULARY, bias=False)
            self.decoder.weight = self.words.weight
            self.head = nn.Linear(VOCABULARY, k)
        elif case.head == "prototypes":
            self.prototypes = nn.Parameter(torch.randn(k, d))
        else:
            self.head = nn.Linear(d, k)

    def enter(self, **data: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the body takes, and a key for every point."""
        if self.entry == "tokens":
            ids, d = data["x"], self.words.embedding_dim
            ok = ids != 0
            key = ok.to(self.free_places.dtype).mean(1) * 0.99
            how = self.o["how"]
            if how == "unique":
                distinct, where = ids.unique(return_inverse=True)
                x = self.words(distinct)[where]
            elif how == "unpadded":
                x = self.free_places.new_zeros(*ids.shape, d)
                x[ok] = self.words(ids[ok])
            elif how == "functional":
                x = F.embedding(ids, self.words.weight)
            else:
                x = self.words(ids)
            if self.o["places"] == "table":
                x = x + self.places(torch.arange(ids.shape[1]))
            elif self.o["places"] == "free":
                x = x + self.free_places
            return x, key
        if self.entry == "table":
            x = self.numbers(data["num"])
            for i, column in enumerate(self.columns):
                x = x + column(data["cat"][:, i])
            return x, _key(data["num"])
        if self.entry == "masked":
            mask = data["mask"].to(data["x"].dtype)
            return data["x"] * mask[..., None], mask.mean(1) * 0.99
        return data["x"], _key(data["x"])

    def compute(self, **data: Tensor) -> Tensor:
        x, key = self.enter(**data)
        y = self.body(x, key)
        head, n = self.head_kind, len(y)
        if head == "twice":
            last = y[:, -1] if y.ndim == 3 else y.tanh() if y.ndim == 2 else y.amax((2, 3))
            return self.head(pooled(y)) + self.head(last).tanh()
        y = pooled(y)
        if head == "classes":
            return self.score((y[:, None] * self.classes).reshape(n * self.k, -1)).view(n, self.k)
        if head == "prototypes":
            return (-(y[:, None] - self.prototypes).square().sum(-1)).exp()
        if head == "tied" and self.entry == "tokens":
            y = self.decoder(y).tanh()
        y = self.head(y)
        if head == "confident":
            # Gradients of some points are orders of magnitude smaller than those of others.
            y = y * 10 ** (6 * key - 3)[:, None]
        if head == "squeeze":
            return y.squeeze(-1)
        return y.squeeze() if head == "squeeze_all" else y


def _key(x: Tensor) -> Tensor:
    flat = x.detach().flatten(1)
    return torch.sigmoid(1.5 * flat.sum(1) / flat.shape[1] ** 0.5)


class OneInput(Network):
    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x=x)


class Table(Network):
    def forward(self, cat: Tensor, num: Tensor) -> Tensor:
        return self.compute(cat=cat, num=num)


class Masked(Network):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.compute(x=x, mask=mask)


def build(case: Case) -> nn.Module:
    """Make the network of a case; its weights are numbers of its dtype."""
    torch.manual_seed(case.seed)
    kind = {"table": Table, "masked": Masked}.get(case.entry, OneInput)
    model = kind(case).to(getattr(torch, case.dtype))
    r = random.Random(case.seed)
    parameters = list(model.parameters())
    for p in parameters[:-1]:
        if r.random() < case.frozen:
            p.requires_grad_(False)
    for m in model.modules():
        for hook in m._forward_pre_hooks.values():
            if isinstance(hook, (WeightNorm, SpectralNorm)):
                # ``weight`` is an attribute that the last call made, and that casts leave behind.
                m.eval()
                hook(m, None)
        m.training = r.random() < 0.5
    parameters[-1].requires_grad_(True)
    return model


# Data


def make(case: Case) -> Data:
    """Draw the points of a case, float64 or int64."""
    g = torch.Generator().manual_seed(case.seed)
    n, shape = case.n, case.shape

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    if case.entry == "tokens":
        ids = torch.randint(1, VOCABULARY, (n, shape[0]), generator=g)
        lengths = torch.randint(1, shape[0] + 1, (n,), generator=g)
        data = {"x": ids * (torch.arange(shape[0]) < lengths[:, None])}
    elif case.entry == "table":
        data = {"cat": torch.randint(0, 4, (n, 2), generator=g), "num": normal(n, 3)}
    else:
        data = {"x": normal(n, *shape)}
        if case.entry == "masked":
            lengths = torch.randint(1, shape[0] + 1, (n,), generator=g)
            data["mask"] = torch.arange(shape[0]) < lengths[:, None]
    for name, m in case.data:
        data = {key: value.clone() for key, value in _arrange(data, name, min(m, n), g).items()}
    return {
        key: value.to(getattr(torch, case.dtype)) if value.is_floating_point() else value
        for key, value in data.items()
    }


ARRANGEMENTS = (
    "equal",
    "blank",
    "symmetric",
    "still",
    "sorted",
    "reversed",
    "keeps_order",
    "duplicates",
    "scales",
    "outlier",
    "last",
    "same_key",
)


def _arrange(data: Data, name: str, m: int, g: torch.Generator) -> Data:
    """Arrange the first `m` points, or all by their order."""
    n = len(next(iter(data.values())))
    key = data["mask"].double().mean(1) if "mask" in data else None
    if key is None:
        first = data.get("num", data.get("x"))
        assert first is not None
        key = _key(first) if first.is_floating_point() else (first != 0).double().mean(1)
    rows = torch.arange(n)
    if name == "equal":
        rows[:m] = 0
    elif name == "last":
        rows[n - m :] = n - 1
    elif name == "duplicates":
        rows = torch.randint(0, max(1, min(m, 3)), (n,), generator=g)
    elif name == "sorted":
        rows = key.argsort(stable=True)
    elif name == "reversed":
        rows = key.argsort(descending=True, stable=True)
    elif name == "keeps_order":
        rows[:m] = key[:m].argsort(stable=True)
    else:
        return {part: _alter(value, name, m, g) for part, value in data.items()}
    return {part: value[rows] for part, value in data.items()}


def _alter(value: Tensor, name: str, m: int, g: torch.Generator) -> Tensor:
    value, head = value.clone(), value[:m]
    if name == "same_key":
        # All of one length, or of one key: what is decided by it, they have in common.
        if value.is_floating_point():
            flat = head.flatten(1)
            value[:m] = (flat - flat.mean(1, keepdim=True) + 0.21).view_as(head)
        elif value.dtype == torch.bool:
            value[:m] = value[0]
        elif value.ndim > 1:
            value[:m] = head.clamp_min(1) * (value[0] != 0)
    if name == "blank":
        value[:m] = 0 if value.dtype != torch.bool else True
    elif name == "symmetric" and value.dtype != torch.bool:
        for axis in range(1, value.ndim):
            half = torch.arange(value.shape[axis])
            half = torch.minimum(half, half.flip(0))
            head = head.index_select(axis, half)
        value[:m] = head
    elif name == "still" and value.ndim > 2:
        value[:m] = head[:, :1]
    elif name in ("scales", "outlier") and value.is_floating_point():
        powers = 4 * torch.rand(len(value), generator=g, dtype=value.dtype) - 2
        if name == "outlier":
            powers = torch.where(torch.arange(len(value)) == m - 1, 2.0, 0.0)
        value *= (10.0**powers).view(-1, *[1] * (value.ndim - 1))
    return value


class Points(Dataset):
    """Points as dicts."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(next(iter(self.data.values())))

    def __getitem__(self, i: int) -> Data:
        return {key: value[i] for key, value in self.data.items()}


def delivered(case: Case, data: Data) -> Any:
    single = data["x"] if set(data) == {"x"} else None
    if case.deliver == "loader":
        source = Points(data) if single is None else TensorDataset(single)
        return DataLoader(source, batch_size=case.batch)
    if case.deliver == "dataset":
        return Points(data) if single is None else TensorDataset(single)
    if case.deliver == "array":
        return {k: v.numpy() for k, v in data.items()} if single is None else single.numpy()
    return data if single is None else single


# Drawing a case


def draw(seed: int) -> Case:
    r = random.Random(seed)
    entry = r.choice(
        ["vector", "sequence", "sequence", "image", "tokens", "tokens", "table", "masked"]
    )
    d = r.choice([2, 3, 4, 4, 6, 8])
    shape: tuple[int, ...] = (d,)
    if entry in ("sequence", "tokens", "masked"):
        shape = (r.randint(2, 5), d)
    elif entry == "image":
        shape = (r.randint(1, 4), r.choice([2, 3, 4]), r.choice([2, 4]))
    options: dict[str, Any] = {}
    if entry == "tokens":
        options["how"] = r.choice(["plain", "plain", "unique", "unpadded", "functional"])
        options["places"] = r.choice(["none", "table", "free"])
        options["padding"], options["sparse"] = r.random() < 0.5, r.random() < 0.15
    # Few kinds at a time, often: a combination of two needs both.
    allowed = {kind: r.choice([0, 0.3, 1, 3]) for kind, cls in PIECES.items() if not cls.breaks}
    allowed.update(linear=max(0.5, allowed["linear"]), scale=max(0.2, allowed["scale"]))
    allowed["convolution"] = max(0.5, allowed["convolution"])
    body = draw_chain(r, shape, r.choice([1, 2, 2, 3]), r.randint(1, 3), allowed)
    if r.random() < 0.08:
        body = _spoil(r, body, shape, r.choice(["mixed", "random"]))
    n = r.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 24, r.randint(2, 40)])
    batch = r.choice([2, 2, 3, 4, 5, 8])
    data = []
    for _ in range(r.choice([0, 1, 1, 1, 2])):
        m = r.choice([2, 2, 3, batch, n // 2, n - 1, n])
        data.append((r.choice(ARRANGEMENTS), max(1, m)))
    outputs = r.choice(["sum", "sum", "random", "single", "full"])
    head = r.choice(
        ["linear"] * 6 + ["confident", "twice", "classes", "prototypes", "tied", "squeeze"]
    )
    if r.random() < 0.03 and n > 1:
        head = "squeeze_all"
    return Case(
        seed=seed,
        entry=entry,
        shape=shape,
        options=options,
        body=body,
        head=head,
        k=1 if head.startswith("squeeze") else r.randint(1, 4),
        n=n,
        data=data,
        deliver=r.choice(["tensor", "tensor", "budget", "budget", "loader", "loader", "dataset"]),
        batch=batch,
        outputs=outputs,
        draws=r.choice([1, 2]) if outputs == "random" else 1,
        dtype=r.choice(["float64"] * 5 + ["float32"]),
        frozen=r.choice([0, 0, 0, 0.3]),
    )


def _spoil(r: random.Random, body: list[Node], shape: tuple[int, ...], kind: str) -> list[Node]:
    """Put a piece without per-sample gradients somewhere."""
    at = r.randrange(len(body) + 1)
    if at < len(body) and body[at][2] and r.random() < 0.6:
        name, o, chains = body[at]
        which = r.randrange(len(chains))
        inside = PIECES[name].inner(shape, o)[which]
        chains = [*chains]
        chains[which] = _spoil(r, chains[which], inside, kind)
        return [*body[:at], (name, o, chains), *body[at + 1 :]]
    o = PIECES[kind].draw(r, shape)
    o["glue"] = "plain"
    return [*body[:at], (kind, o, []), *body[at:]]


# The oracle: plain autograd


class VoidCase(Exception):
    """The fuzzer's own fault: nothing can be said of ntkfast."""


def take(data: Data, rows: Any) -> Data:
    return {key: value[rows] for key, value in data.items()}


def outputs_of(model: nn.Module, data: Data) -> Tensor:
    n = len(next(iter(data.values())))
    y = model(**data)
    # ``squeeze()`` takes the axis of a single point away, too.
    return y.reshape(n, -1)


def literal(model: nn.Module, data: Data, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return outputs (n, k) and per parameter (n, R, p), one point at a time in float64."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    n, rows = len(next(iter(data.values()))), len(weights)
    result = [torch.zeros(n, rows, p.numel(), dtype=torch.float64) for p in wanted]
    alone = []
    for i in range(n):
        y = outputs_of(model, take(data, slice(i, i + 1)))[0]
        alone.append(y.detach())
        if not y.requires_grad:
            continue
        for r, scalar in enumerate(weights.to(y.dtype) @ y):
            grads = torch.autograd.grad(scalar, wanted, retain_graph=True, allow_unused=True)
            for value, g in zip(result, grads, strict=True):
                if g is not None:
                    value[i, r] = (g.to_dense() if g.is_sparse else g).reshape(-1)
    return torch.stack(alone), result


def together(model: nn.Module, data: Data, weights: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs, and the gradient of ``sum_i mix_ir weights_r . f(x_i)`` of one batch."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    y = outputs_of(model, data)
    if not y.requires_grad:
        return y, torch.zeros(sum(p.numel() for p in wanted), dtype=torch.float64)
    scalar = (mix.to(y.dtype) * (y @ weights.to(y.dtype).t())).sum()
    grads = torch.autograd.grad(scalar, wanted, allow_unused=True)
    flat = [
        (torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g).reshape(-1)
        for p, g in zip(wanted, grads, strict=True)
    ]
    return y.detach(), torch.cat(flat).double()


def far(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return not float((a - b).norm()) <= tolerance * float(b.norm()) + 1e-12


def combinations(case: Case, k: int) -> Tensor:
    if case.outputs == "sum":
        return torch.full((1, k), k**-0.5, dtype=torch.float64)
    if case.outputs == "full":
        return torch.eye(k, dtype=torch.float64)
    if case.outputs == "single":
        return torch.eye(k, dtype=torch.float64)[:1]
    # Which signs are drawn is ntkfast's choice; that they are used rightly is not.
    chosen = EmpiricalNTK(nn.Linear(1, 1), "random", draws=case.draws, seed=case.seed)
    return chosen._weights(k)


# Verdicts


@dataclass
class Result:
    case: Case
    verdict: str
    message: str
    small: Case | None = None


def errors(found: Tensor, J: list[Tensor], floor: float, names: list[str]) -> tuple[float, str]:
    """Return the largest relative error of (n, R, P) features: of a point, or of a parameter."""
    J_all = torch.cat(J, 2)
    if tuple(found.shape) != tuple(J_all.shape):
        return math.inf, f"shape {tuple(found.shape)} instead of {tuple(J_all.shape)}"
    norms = J_all.flatten(1).norm(dim=1)
    point = (found - J_all).flatten(1).norm(dim=1) / (norms + floor * norms.max() + 1e-30)
    worst, where = float(point.max()), f"point {int(point.argmax())}"
    whole, start = float(J_all.norm()), 0
    for i, part in enumerate(J):
        value = found[:, :, start : start + part.shape[2]]
        start += part.shape[2]
        error = float((value - part).norm()) / (float(part.norm()) + floor * whole + 1e-30)
        if not error <= worst:
            worst, where = error, names[i]
    return worst, where


def _kernel(J: list[Tensor], case: Case) -> Tensor:
    rows = torch.cat(J, 2)
    rows = rows.flatten(0, 1) if case.outputs == "full" else rows.flatten(1)
    return rows @ rows.t() / case.draws


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return everything of a model and of the random generators that a call must not change."""
    parts: dict[str, Any] = {}
    for name, m in model.named_modules(remove_duplicate=False):
        parts[f"{name}: object"], parts[f"{name}: training"] = id(m), m.training
        parts[f"{name}: attributes"] = sorted(vars(m))
        for key, value in vars(m).items():
            if isinstance(value, Tensor):
                parts[f"{name}.{key}: attribute"] = value.detach().clone()
            elif "hooks" in key and isinstance(value, dict):
                parts[f"{name}.{key}: hooks"] = {i: id(hook) for i, hook in value.items()}
        for key, p in m._parameters.items():
            parts[f"{name}.{key}: object"] = (id(p), type(p))
            if p is not None:
                parts[f"{name}.{key}: flags"] = (p.requires_grad, p._version, id(p.grad))
                parts[f"{name}.{key}: value"] = p.detach().clone()
        for key, b in m._buffers.items():
            parts[f"{name}.{key}: buffer"] = id(b)
            parts[f"{name}.{key}: buffer value"] = None if b is None else b.detach().clone()
        parts[f"{name}: submodules"] = {key: id(child) for key, child in m._modules.items()}
    parts["torch's generator"] = torch.get_rng_state()
    parts["numpy's generator"] = repr(np.random.get_state())  # noqa: NPY002
    parts["python's generator"] = random.getstate()
    parts["torch's modes"] = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    return parts


def damage(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    found = [f"{key} appeared" for key in after if key not in before]
    for key, old in before.items():
        if key not in after:
            found.append(f"{key} is gone")
            continue
        new = after[key]
        same = torch.equal(old, new) if isinstance(old, Tensor) else old == new
        if not same:
            found.append(f"{key} changed")
    return found


HOME = str(Path(ntkfast.__file__).parent)


def own(error: BaseException) -> bool:
    """Whether ntkfast raised the error, by a statement of its own, and of a kind that it may."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    raised = last.filename.startswith(HOME) and (last.line or "").startswith("raise ")
    return raised and isinstance(error, (ValueError, TypeError, RuntimeError))


def describe(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    return f"{type(error).__name__}: {str(error)[:300]} ({where})"


def judge(case: Case) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _judge(case)
        except VoidCase as error:
            return Result(case, "void", str(error))


def _fails_with_two(model: nn.Module, data: Data) -> bool:
    """Whether the network fails with some two points, or torch with its backward pass: they take a
    branch of their own that changes in place what it returned.
    """
    n = len(next(iter(data.values())))
    for i in range(n):
        try:
            outputs_of(model, take(data, [i, (i + 1) % n])).sum().backward()
        except Exception:
            return True
    return False


def _judge(case: Case) -> Result:
    tolerance, floor = TOLERANCE[case.dtype], 1e-2 if case.dtype == "float32" else 1e-3
    data = make(case)
    wide = {k: v.double() if v.is_floating_point() else v for k, v in data.items()}
    twin = build(case).double().eval()
    torch.manual_seed(case.seed)
    effect = _effect(twin, wide) if case.breaks else ""
    weights, J = None, None
    if effect != "random":
        try:
            k = outputs_of(twin, take(wide, slice(0, 1))).shape[1]
            weights = combinations(case, k)
            alone, J = literal(twin, wide, weights)
            if case.n == 1:
                outputs_of(twin, {k: torch.cat([v, v]) for k, v in wide.items()})
        except Exception as error:
            if not effect:
                raise VoidCase(f"network: {describe(error)}") from error
            J = None
        if J is not None:
            if not all(bool(torch.isfinite(v).all()) for v in J):
                raise VoidCase("gradients are not finite")
            largest = max(float(v.abs().amax()) for v in J)
            if case.dtype == "float32" and not 1e-12 < largest < 1e15:
                raise VoidCase("a kernel in float32 would overflow, or underflow")
            _check_together(twin, wide, weights, alone, J, bool(effect))
            if case.dtype != "float64" and not effect:
                # Some operations are others in float32, and refuse what those in float64 bear.
                _check_runs(build(case).eval(), data, weights)

    model = build(case)
    before, kept = snapshot(model), {k: v.clone() for k, v in data.items()}
    floats = case.n * (len(weights) if weights is not None else 4)
    floats *= sum(p.numel() for p in model.parameters())
    budget = 2**31 if case.deliver != "budget" else max(1, 8 * floats + 64)
    ntk = EmpiricalNTK(
        model,
        case.outputs,  # type: ignore[arg-type]
        draws=case.draws,
        sketch=None,
        seed=case.seed,
        memory_budget=budget,
    )
    X = delivered(case, data)
    found: list[Any] = []
    message, verdict = "", "right"
    few = delivered(replace(case, deliver="tensor"), take(data, slice(0, (case.n + 1) // 2)))
    for call in (ntk.features, ntk.gram, ntk.outputs, lambda X: ntk.gram(few, X)):
        try:
            found.append(torch.as_tensor(call(X)).double())
        except Exception as error:
            message = describe(error)
            verdict = "refused" if own(error) else "crashed"
            if verdict == "crashed" and _fails_with_two(build(case).eval(), data):
                raise VoidCase("network: it fails with some two points") from error
            if verdict == "crashed" and os.environ.get("TRACE"):
                traceback.print_exc()
            break
    changed = damage(before, snapshot(model))
    changed += [f"data {k} changed" for k, v in kept.items() if not torch.equal(v, data[k])]
    if changed:
        return Result(
            case, "damaged", "; ".join(changed[:4]) + (f" after {message}" * bool(message))
        )
    if verdict != "right":
        if case.breaks and verdict == "refused":
            return Result(case, "right", f"rows depend on {effect or 'nothing'}: {message}")
        return Result(case, verdict, message)
    if effect == "random":
        return Result(case, "wrong", "accepted, though its outputs are random")
    if J is None:
        return Result(case, "wrong", f"accepted, though its rows depend on {effect}")
    rows = found[0]
    assert weights is not None
    if case.outputs == "full":
        rows = rows.view(case.n, len(weights), -1) if len(rows) == case.n * len(weights) else rows
    else:
        rows = rows.view(case.n, case.draws, -1) * case.draws**0.5
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    error, where = errors(rows, J, floor, names)
    kernel = _kernel(J, case)
    norms = kernel.diag().sqrt()
    norms = norms + floor * norms.max() + 1e-30
    worst = [f"features {error:.1e} ({where})"] if not error <= tolerance else []
    for name, K in (("gram", found[1]), ("cross gram", found[3])):
        expected = kernel[: len(K)]
        if K.shape != expected.shape:
            worst.append(f"{name} has shape {tuple(K.shape)}")
            continue
        entry = (K - expected).abs() / norms[: len(K), None] / norms
        if not float(entry.max()) <= tolerance:
            at = divmod(int(entry.argmax()), entry.shape[1])
            worst.append(f"{name} {float(entry.max()):.1e} at {at}")
    if found[2].shape != alone.shape or far(found[2], alone, tolerance):
        worst.append("outputs")
    if worst:
        message = ", ".join(worst)
        if case.dtype == "float32" and _ill_conditioned(case, data, weights, J, floor):
            raise VoidCase("float32 is not enough for autograd, either")
        return Result(case, "wrong", message)
    return Result(case, "right", "rows happen not to depend on others" if case.breaks else "")


def _effect(twin: nn.Module, data: Data) -> str:
    """Whether outputs really depend on random numbers ("random") or on other rows ("others")."""
    try:
        with torch.no_grad():
            runs = [outputs_of(twin, data) for _ in range(9)]
    except Exception as error:
        raise VoidCase(f"network: {describe(error)}") from error
    n = len(runs[0])
    mix = torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    weights = torch.randn(1, runs[0].shape[1], dtype=torch.float64)
    try:
        y, total = together(twin, data, weights, mix)
    except Exception as error:
        raise VoidCase(f"network: {describe(error)}") from error
    differing = sum(not torch.equal(run, runs[0]) for run in runs[1:])
    if differing >= 3:
        return "random"
    if differing:
        raise VoidCase("random, but rarely")
    try:
        alone, J = literal(twin, data, weights)
    except Exception:
        try:
            with torch.no_grad():
                pairs = torch.cat([outputs_of(twin, take(data, [i, i]))[:1] for i in range(n)])
        except Exception:
            return "others"
        if far(y, pairs, 1e-7):
            return "others"
        raise VoidCase("network: it fails with one point") from None
    expected = torch.einsum("nr,nrp->p", mix, torch.cat(J, 2))
    return "others" if far(y, alone, 1e-7) or far(total, expected, 1e-7) else ""


def _check_together(
    twin: nn.Module, data: Data, weights: Tensor, alone: Tensor, J: list[Tensor], mixes: bool
) -> None:
    """Check of the fuzzer: rows of the network are independent, as autograd sees it."""
    if mixes:
        return
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(len(alone), len(weights), dtype=torch.float64, generator=g)
    try:
        y, total = together(twin, data, weights, mix)
    except Exception as error:
        raise VoidCase(f"network: {describe(error)}") from error
    if far(y, alone, 1e-8):
        raise VoidCase("outputs of a batch are not those of its points")
    if far(total, torch.einsum("nr,nrp->p", mix, torch.cat(J, 2)), 1e-8):
        raise VoidCase("gradients of a batch are not those of its points")


def _check_runs(model: nn.Module, data: Data, weights: Tensor) -> None:
    try:
        together(model, data, weights, torch.ones(1, dtype=torch.float64))
    except Exception as error:
        raise VoidCase(f"network: {describe(error)}") from error


def _ill_conditioned(
    case: Case, data: Data, weights: Tensor, J: list[Tensor], floor: float
) -> bool:
    _, plain = literal(build(case).eval(), data, weights)
    names = [""] * len(J)
    return errors(torch.cat(plain, 2), J, floor, names)[0] > TOLERANCE[case.dtype] / 10


# Shrinking


def smaller(case: Case) -> list[Case]:
    """Cases one step simpler, the most simplifying first."""
    found = [replace(case, body=body) for body in _smaller_chains(case.body, case.shape, True)]
    if case.data:
        found += [
            replace(case, data=case.data[:i] + case.data[i + 1 :]) for i in range(len(case.data))
        ]
    for n in (2, 3, case.n // 2, case.n - 1):
        if 2 <= n < case.n:
            found.append(replace(case, n=n))
    plain = {"head": "linear", "k": 1, "deliver": "tensor", "outputs": "sum", "dtype": "float64"}
    plain.update(frozen=0)
    found += [
        replace(case, **{key: value, "draws": 1})
        for key, value in plain.items()
        if getattr(case, key) != value
    ]
    if case.entry == "tokens":
        simple = {"how": "plain", "places": "none", "padding": False, "sparse": False}
        found += [
            replace(case, options={**case.options, key: value})
            for key, value in simple.items()
            if case.options[key] != value
        ]
    if case.entry in ("tokens", "masked"):
        found.append(replace(case, entry="sequence", options={}))
    if case.entry == "table":
        found.append(replace(case, entry="vector", options={}))
    return found


def _smaller_chains(
    nodes: list[Node], shape: tuple[int, ...], may_be_empty: bool = False
) -> list[list[Node]]:
    found: list[list[Node]] = []
    for i, (kind, o, chains) in enumerate(nodes):
        rest = [*nodes[:i], *nodes[i + 1 :]]
        if rest or may_be_empty:
            found.append(rest)
        shapes = PIECES[kind].inner(shape, o)
        for inside, s in zip(chains, shapes, strict=True):
            if s == shape:
                found.append([*nodes[:i], *inside, *nodes[i + 1 :]])
    for i, (kind, o, chains) in enumerate(nodes):
        shapes = PIECES[kind].inner(shape, o)
        for j, (inside, s) in enumerate(zip(chains, shapes, strict=True)):
            for fewer in _smaller_chains(inside, s):
                changed = [*chains[:j], fewer, *chains[j + 1 :]]
                found.append([*nodes[:i], (kind, o, changed), *nodes[i + 1 :]])
        if o["glue"] != "plain":
            simple = (kind, {**o, "glue": "plain"}, chains)
            found.append([*nodes[:i], simple, *nodes[i + 1 :]])
        if kind != "linear" and not chains and "linear" in PIECES and len(shape) < 3:
            simple = ("linear", {"bias": False, "glue": "plain"}, [])
            found.append([*nodes[:i], simple, *nodes[i + 1 :]])
    return found


def shrink(result: Result, tries: int = 400) -> Result:
    """Make a case as small as it still fails in the same way."""
    best = result
    improved = True
    while improved and tries > 0:
        improved = False
        for candidate in smaller(best.case):
            tries -= 1
            if tries <= 0:
                break
            again = guarded(candidate)
            if again.verdict == best.verdict:
                best, improved = again, True
                break
    return best


# Running


class TooSlow(BaseException):
    pass


def guarded(case: Case) -> Result:
    """Judge a case; one that takes minutes or breaks the fuzzer is a result, too."""

    def stop(*_: Any) -> None:
        raise TooSlow

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        return judge(case)
    except TooSlow:
        return Result(case, "crashed", f"took more than {SECONDS} seconds")
    except Exception as error:
        return Result(case, "crashed", f"fuzzer: {describe(error)}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def run_seed(seed: int, minimise: bool = True) -> Result:
    torch.set_num_threads(1)
    result = guarded(draw(seed))
    if minimise and result.verdict in BAD:
        small = shrink(result)
        result.small = small.case
        result.message += f" | smallest: {small.message}"
    return result


def report(result: Result, everything: bool) -> None:
    print(f"\n{result.verdict.upper()} seed {result.case.seed}: {result.message}")
    if everything or result.small is None:
        print(result.case.text())
    if result.small is not None:
        print(result.small.text())
        print(f'--case "{asdict(result.small)!r}"', flush=True)


def table(results: list[Result]) -> str:
    counts: dict[str, collections.Counter[str]] = {}
    total: collections.Counter[str] = collections.Counter()
    for result in results:
        total[result.verdict] += 1
        for kind in {*result.case.kinds, f"({result.case.entry})"}:
            counts.setdefault(kind, collections.Counter())[result.verdict] += 1
        for name, _ in result.case.data or [("ordinary", 0)]:
            counts.setdefault(f"data: {name}", collections.Counter())[result.verdict] += 1
    lines = [f"{'':24}" + "".join(f"{v:>9}" for v in VERDICTS)]
    for kind in sorted(counts):
        lines.append(f"{kind:24}" + "".join(f"{counts[kind][v]:9}" for v in VERDICTS))
    lines.append(f"{'all':24}" + "".join(f"{total[v]:9}" for v in VERDICTS))
    messages: dict[str, list[int]] = {}
    for result in results:
        if result.verdict in ("refused", "void"):
            message = f"{result.verdict}: {_general(result.message)}"
            messages.setdefault(message, []).append(result.case.seed)
    for message, seeds in sorted(messages.items(), key=lambda item: -len(item[1]))[:25]:
        lines.append(f"{len(seeds):6}  {message} (seed {seeds[0]})")
    return "\n".join(lines)


def _general(message: str) -> str:
    """Return a message without its names and numbers."""
    parts = message.split("'")
    text = "'...'".join(parts[::2]) if len(parts) % 2 else message
    return "".join("#" if c.isdigit() else c for c in text)[:150]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="first seed (default: 0)")
    parser.add_argument("--count", type=int, help="number of cases")
    parser.add_argument("--minutes", type=float, help="time (default: 5 minutes)")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--case", help="a case as printed")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    parser.add_argument("--refused", action="store_true", help="print what is refused")
    arguments = parser.parse_args()
    if arguments.case:
        case = Case(**ast.literal_eval(arguments.case))
        result = guarded(case)
        report(result, True)
        return int(result.verdict in BAD)
    started = time.monotonic()
    minutes = arguments.minutes or (math.inf if arguments.count else 5)
    results: list[Result] = []

    def late() -> bool:
        return time.monotonic() - started > 60 * minutes

    def note(result: Result) -> None:
        results.append(result)
        shown = BAD + (("refused",) if arguments.refused else ())
        if arguments.verbose or result.verdict in shown:
            report(result, arguments.verbose)

    end = arguments.seed + arguments.count if arguments.count else sys.maxsize
    if arguments.jobs == 1:
        seed = arguments.seed
        while seed < end and not late():
            note(run_seed(seed))
            seed += 1
    else:
        with ProcessPoolExecutor(arguments.jobs) as pool:
            seed, size = arguments.seed, 16 * arguments.jobs
            while seed < end and not late():
                block = range(seed, min(end, seed + size))
                for result in pool.map(run_seed, block):
                    note(result)
                seed = block.stop
    seconds = time.monotonic() - started
    print(f"\n{len(results)} cases from seed {arguments.seed} in {seconds:.0f} s")
    print(table(results))
    return int(any(result.verdict in BAD for result in results))


if __name__ == "__main__":
    sys.exit(main())
