"""The pieces that `fuzz_ntk.py` composes networks from.

A piece keeps the shape of a point, so that any piece can follow any other or be left out: vectors
(d,), sequences (T, d) or images (C, H, W). A combinator runs chains of pieces on something it makes
of its input: folded, copied, sorted, gathered, routed. ``key``, one number in [0, 1) per row that
depends on the data alone, drives control flow, so that data can steer it (see `fuzz_ntk.draw`).

A *node* ``(kind, options, chains)`` describes a piece in plain Python values, its combinator's
chains among them; :func:`chain` builds it.
"""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.utils.parametrize as parametrize
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

Shape = tuple[int, ...]
Node = tuple[str, dict[str, Any], list[list[Any]]]

PIECES: dict[str, type[Piece]] = {}
KINDS = {1: "vector", 2: "sequence", 3: "image"}
ANY = ("vector", "sequence", "image")
LAST = ("vector", "sequence")
GLUE = ("plain", "tanh", "tanh", "add", "add", "add_", "mul_", "gelu", "relu")
# Pieces that can be called with no rows.
EMPTY = {"linear", "mlp", "norm", "scale", "functional"}


class Bank(nn.Module):
    """Layers and parameters that pieces in several places share, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        self.numbers = nn.ParameterDict()

    def layer(self, kind: str, d: int) -> nn.Module:
        makers = {"linear": lambda: nn.Linear(d, d), "norm": lambda: nn.LayerNorm(d, eps=0.1)}
        makers["scale"] = lambda: OwnScale(nn.Parameter(torch.randn(d)))
        makers["block"] = lambda: nn.Sequential(nn.Linear(d, d), makers["scale"](), nn.Tanh())
        name = f"{kind}{d}"
        if name not in self.layers:
            self.layers[name] = makers[kind]()
        return self.layers[name]

    def parameter(self, d: int) -> nn.Parameter:
        name = f"w{d}"
        if name not in self.numbers:
            self.numbers[name] = nn.Parameter(torch.randn(d, d) / d**0.5)
        return self.numbers[name]


class OwnScale(nn.Module):
    def __init__(self, g: nn.Parameter) -> None:
        super().__init__()
        self.g = g

    def forward(self, x: Tensor) -> Tensor:
        return x * self.g


class Piece(nn.Module):
    on: tuple[str, ...] = ANY
    # "mixes": rows depend on other rows; "random": on random numbers. Neither has per-sample
    # gradients.
    breaks = ""
    often = 1.0

    @staticmethod
    def draw(r: random.Random, shape: Shape) -> dict[str, Any]:
        return {}

    @staticmethod
    def inner(shape: Shape, o: dict[str, Any]) -> list[Shape]:
        """Shapes of the chains that a combinator runs."""
        return []

    def __init__(self, shape: Shape, o: dict[str, Any], chains: list[Chain], bank: Bank) -> None:
        super().__init__()
        self.shape, self.o = shape, o
        self.chains = nn.ModuleList(chains)
        # Not a submodule: whether a bank's layer has a second name is a piece's choice.
        self.build(shape, o, bank)

    def build(self, shape: Shape, o: dict[str, Any], bank: Bank) -> None:
        pass

    def forward(self, x: Tensor, key: Tensor) -> Tensor:
        raise NotImplementedError

    def run(self, x: Tensor, key: Tensor, which: int = 0) -> Tensor:
        return self.chains[which](x, key)


class Chain(nn.Module):
    def __init__(self, pieces: list[Piece], glue: list[str]) -> None:
        super().__init__()
        self.pieces, self.glue = nn.ModuleList(pieces), glue

    def forward(self, x: Tensor, key: Tensor) -> Tensor:
        for piece, glue in zip(self.pieces, self.glue, strict=True):
            y = piece(x, key)
            if y is x:
                y = x.clone()
            if glue == "tanh":
                y = torch.tanh(y)
            elif glue == "add":
                y = 0.7 * (x + y)
            elif glue == "add_":
                y += x
            elif glue == "mul_":
                y.mul_(0.8)
            elif glue == "gelu":
                y = F.gelu(y) + 0.1 * y
            elif glue == "relu":
                y = F.relu(y, inplace=True) + 0.1 * x
            x = y
        return x


def chain(nodes: list[Node], shape: Shape, bank: Bank) -> Chain:
    pieces = []
    for kind, o, chains in nodes:
        shapes = PIECES[kind].inner(shape, o)
        inside = [chain(c, s, bank) for c, s in zip(chains, shapes, strict=True)]
        pieces.append(PIECES[kind](shape, o, inside, bank))
    return Chain(pieces, [o["glue"] for _, o, _ in nodes])


def draw_chain(
    r: random.Random, shape: Shape, depth: int, length: int, allowed: dict[str, float]
) -> list[Node]:
    """Draw nodes; `allowed` has the kinds to draw from, and how often."""
    nodes: list[Node] = []
    for _ in range(length):
        kinds, often = [], []
        for kind, factor in allowed.items():
            cls = PIECES[kind]
            is_leaf = not combines(cls)
            if KINDS[len(shape)] in cls.on and (is_leaf or depth > 0):
                kinds.append(kind)
                often.append(cls.often * factor)
        kind = r.choices(kinds, often)[0]
        o = PIECES[kind].draw(r, shape)
        o["glue"] = r.choice(GLUE)
        chains = [
            draw_chain(r, s, depth - 1, r.choice([1, 1, 2]), allowed)
            for s in PIECES[kind].inner(shape, o)
        ]
        if o.get("empty") and not {k for c in chains for k, _, _ in c} <= EMPTY:
            o["empty"] = False
        nodes.append((kind, o, chains))
    return nodes


def combines(cls: type[Piece]) -> bool:
    return cls.inner is not Piece.inner


def kinds_in(nodes: list[Node]) -> set[str]:
    found = set()
    for kind, _, chains in nodes:
        found.add(kind)
        for c in chains:
            found |= kinds_in(c)
    return found


def piece(*on: str, often: float = 1.0, breaks: str = ""):
    def register(cls: type[Piece]) -> type[Piece]:
        cls.on, cls.often, cls.breaks = on or ANY, often, breaks
        name = "".join("_" + c.lower() if c.isupper() else c for c in cls.__name__).lstrip("_")
        PIECES[name] = cls
        return cls

    return register


def lengths_of(key: Tensor, most: int) -> Tensor:
    return 1 + (key * most).long().clamp(max=most - 1)


def over(key: Tensor, count: int) -> Tensor:
    """(n, count): a key for each of several parts of a point."""
    steps = torch.arange(count, dtype=key.dtype, device=key.device)
    return (7.31 * key[:, None] + 0.377 * steps) % 1


def pooled(x: Tensor) -> Tensor:
    """(n, d) or (n, C)."""
    return x.mean(1) if x.ndim == 3 else x.mean((2, 3)) if x.ndim == 4 else x


def rowwise(values: Tensor, x: Tensor) -> Tensor:
    """(n,) or (n, d) in the shape that multiplies x, whose channels are last (first in images)."""
    if values.ndim == 1:
        return values.view(-1, *[1] * (x.ndim - 1))
    return values[:, None] if x.ndim == 3 else values[:, :, None, None] if x.ndim == 4 else values


# Layers


@piece(*LAST, often=2)
class Linear(Piece):
    @staticmethod
    def draw(r, shape):
        return {"bias": r.random() < 0.7}

    def build(self, shape, o, bank):
        self.f = nn.Linear(shape[-1], shape[-1], bias=o["bias"])

    def forward(self, x, key):
        return self.f(x)


@piece(*LAST)
class Mlp(Piece):
    @staticmethod
    def draw(r, shape):
        return {"h": r.randint(1, 8), "act": r.choice(["Tanh", "ReLU", "GELU", "PReLU", "glu"])}

    def build(self, shape, o, bank):
        h, glu = o["h"], o["act"] == "glu"
        act = {"Tanh": nn.Tanh, "ReLU": lambda: nn.ReLU(inplace=True), "GELU": nn.GELU}
        act.update(PReLU=nn.PReLU, glu=nn.GLU)
        up = nn.Linear(shape[-1], h * (1 + glu))
        self.f = nn.Sequential(up, act[o["act"]](), nn.Dropout(0.3), nn.Linear(h, shape[-1]))

    def forward(self, x, key):
        return self.f(x)


@piece(*LAST)
class Norm(Piece):
    @staticmethod
    def draw(r, shape):
        return {"kind": r.choice(["layer", "rms", "whole"])}

    def build(self, shape, o, bank):
        rms = getattr(nn, "RMSNorm", nn.LayerNorm)
        size = list(shape) if o["kind"] == "whole" else shape[-1]
        self.f = (rms if o["kind"] == "rms" else nn.LayerNorm)(size, eps=0.1)
        for p in self.f.parameters():
            nn.init.uniform_(p, 0.5, 1.5)

    def forward(self, x, key):
        return self.f(x)


@piece()
class ChannelNorm(Piece):
    """BatchNorm with statistics, GroupNorm, InstanceNorm, PReLU, on channels along axis 1."""

    @staticmethod
    def draw(r, shape):
        kinds = ["batch", "group", "prelu"] + (["instance"] if len(shape) == 3 else [])
        return {"kind": r.choice(kinds)}

    def build(self, shape, o, bank):
        c, kind = shape[0], o["kind"]
        if kind == "batch":
            self.f = (nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d)(c)
            nn.init.normal_(self.f.running_mean)
            nn.init.uniform_(self.f.running_var, 0.5, 2)
        elif kind == "group":
            self.f = nn.GroupNorm(1 if c % 2 else 2, c, eps=0.1)
        elif kind == "prelu":
            self.f = nn.PReLU(c)
        else:
            self.f = nn.InstanceNorm2d(c, affine=True, eps=0.1)
        for p in self.f.parameters():
            nn.init.uniform_(p, 0.5, 1.5)

    def forward(self, x, key):
        # torch 2.13 takes wrong gradients of BatchNorm in eval mode for a single image whose
        # channels are last in memory.
        return self.f(x.contiguous())


@piece()
class Scale(Piece):
    """A free parameter, of any shape that broadcasts."""

    @staticmethod
    def draw(r, shape):
        shapes = [(), (1,), shape[-1:], (1, *shape), shape, (1,) * len(shape)]
        if len(shape) == 2:
            shapes += [(shape[0], 1), (1, 1, shape[1]), (1, shape[0], 1)]
        return {"of": r.choice(shapes), "how": r.choice(["mul", "add", "exp", "lerp", "addcmul"])}

    def build(self, shape, o, bank):
        self.p = nn.Parameter(torch.randn(o["of"]))

    def forward(self, x, key):
        how = self.o["how"]
        if how == "mul":
            return x * (1 + 0.3 * self.p)
        if how == "add":
            return x + self.p
        if how == "exp":
            return x * (0.3 * self.p).exp()
        if how == "lerp":
            return torch.lerp(x, x.tanh(), self.p.expand(x.shape))
        return torch.addcmul(x, x.tanh(), self.p.expand_as(x), value=0.5)


@piece(*LAST)
class Functional(Piece):
    """A parameter that no layer owns."""

    @staticmethod
    def draw(r, shape):
        hows = ["matmul", "linear", "einsum", "tensordot", "repeat", "list", "layer_norm"]
        hows += ["addmm"] if len(shape) == 1 else ["baddbmm", "conv"]
        return {"how": r.choice(hows), "h": r.randint(1, 5)}

    def build(self, shape, o, bank):
        d = shape[-1]
        self.w, self.b = nn.Parameter(torch.randn(d, d) / d**0.5), nn.Parameter(torch.randn(d))
        if o["how"] == "list":
            self.ws = nn.ParameterList(nn.Parameter(torch.randn(d, d) / d) for _ in range(o["h"]))

    def forward(self, x, key):
        how, w, b = self.o["how"], self.w, self.b
        if how == "list":
            for each in self.ws:
                x = x + x @ each
            return x + self.ws[0][0]
        if how == "layer_norm":
            return F.layer_norm(x, x.shape[-1:], w[0], b, 0.1)
        if how == "matmul":
            return x @ w + b
        if how == "linear":
            return F.linear(x, w, b)
        if how == "einsum":
            return torch.einsum("...d,de->...e", x, w) * b
        if how == "tensordot":
            return torch.tensordot(x, w, 1)
        if how == "addmm":
            return torch.addmm(b, x, w.t())
        if how == "baddbmm":
            return torch.baddbmm(b.expand(len(x), 1, -1), x, w.expand(len(x), -1, -1))
        if how == "repeat":
            return x + b.repeat(*x.shape[:-1], 1)
        return F.conv1d(x.transpose(1, 2), w[:, :, None], b).transpose(1, 2)


@piece(*LAST)
class Tied(Piece):
    """A layer's weight read by others, as it is or transposed."""

    @staticmethod
    def draw(r, shape):
        hows = ["transposed", "same", "scaled", "norm", "rows", "module"]
        return {"how": r.choice(hows), "h": r.randint(2, 6), "first": r.random() < 0.5}

    def build(self, shape, o, bank):
        d = shape[-1]
        h = d if o["how"] in ("same", "norm", "module") else o["h"]
        self.a, self.b = nn.Linear(d, h), nn.Parameter(torch.randn(d))
        if o["how"] == "module":
            self.c = nn.Embedding(d, d) if o["first"] else nn.Linear(d, d)
            self.c.weight = self.a.weight
        if o["how"] == "norm":
            self.n = nn.LayerNorm(d, eps=0.1)

    def forward(self, x, key):
        how = self.o["how"]
        y = self.a(x).tanh()
        if how == "transposed":
            return F.linear(y, self.a.weight.t(), self.b)
        if how == "same":
            return F.linear(y, self.a.weight, self.b)
        if how == "scaled":
            return F.linear(y, 0.5 * self.a.weight.t().tanh())
        if how == "norm":
            return self.n(y) + F.layer_norm(x, x.shape[-1:], self.n.weight, self.b, 0.1)
        if how == "rows":
            return y @ self.a.weight + x * self.a.weight[0]
        if self.o["first"]:
            index = (key * x.shape[-1]).long()
            return y + rowwise(self.c(index), x)
        return self.c(y)


@piece(*LAST, often=1.5)
class Banked(Piece):
    """A layer or parameter that other pieces use, too, in other shapes."""

    @staticmethod
    def draw(r, shape):
        what = r.choice(["linear", "norm", "scale", "block", "parameter", "own"])
        return {"what": what, "named": r.random() < 0.6}

    def build(self, shape, o, bank):
        d = shape[-1]
        if o["what"] == "parameter":
            found = bank.parameter(d)
        elif o["what"] == "own":
            found = OwnScale(bank.layer("scale", d).g)
            self.own = found
        else:
            found = bank.layer(o["what"], d)
        if o["named"] and o["what"] != "own":
            self.second_name = found
        self.hidden = [found]

    def forward(self, x, key):
        found = self.hidden[0]
        return x @ found if isinstance(found, nn.Parameter) else found(x)


class Squashed(nn.Module):
    def forward(self, w):
        return w.tanh() + 0.1 * w


@piece(*LAST)
class Parametrised(Piece):
    @staticmethod
    def draw(r, shape):
        hows = ["weight", "whole", "spectral", "own", "old_weight", "old_spectral", "pruned"]
        return {"how": r.choice([*hows, "orthogonal", "cosine", "lora", "cached"])}

    def build(self, shape, o, bank):
        d, how = shape[-1], o["how"]
        self.f = f = nn.Linear(d, d)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if how == "weight":
                parametrizations.weight_norm(f)
            elif how == "whole":
                parametrizations.weight_norm(f, dim=None)
            elif how == "spectral":
                parametrizations.spectral_norm(f)
            elif how == "orthogonal":
                parametrizations.orthogonal(f)
            elif how in ("own", "cached"):
                parametrize.register_parametrization(f, "weight", Squashed())
            elif how == "old_weight":
                nn.utils.weight_norm(f)
            elif how == "old_spectral":
                nn.utils.spectral_norm(f)
            elif how == "pruned":
                prune.random_unstructured(f, "weight", 0.5)
            elif how == "lora":
                f.requires_grad_(False)
                self.down, self.up = nn.Parameter(torch.randn(1, d)), nn.Parameter(torch.ones(d, 1))

    def forward(self, x, key):
        how = self.o["how"]
        if how == "cosine":
            return F.linear(x, F.normalize(self.f.weight))
        if how == "cached":
            with parametrize.cached():
                return self.f(self.f(x).tanh())
        if how == "lora":
            return F.linear(x, self.f.weight + self.up @ self.down, self.f.bias)
        return self.f(x)


@piece(*LAST)
class Hyper(Piece):
    """Layers called once for all points, on parameters or on constants."""

    @staticmethod
    def draw(r, shape):
        hows = ["weights", "rows", "vector", "eye", "norm", "places", "zeros"]
        return {"how": r.choice(hows), "lead": r.choice([(), (1,)])}

    def build(self, shape, o, bank):
        d, how = shape[-1], o["how"]
        self.z = nn.Parameter(torch.randn((*o["lead"], d) if how in ("weights", "vector") else d))
        self.f = nn.Linear(d, d * d if how == "weights" else d)
        if how == "rows":
            self.z = nn.Parameter(torch.randn(d, d))
        self.n = nn.LayerNorm(d, eps=0.1)
        if how == "places":
            self.e = nn.Embedding(shape[0], d)

    def forward(self, x, key):
        how, d = self.o["how"], x.shape[-1]
        if how == "weights":
            return F.linear(x, self.f(self.z).view(d, d) / d)
        if how == "rows":
            return F.linear(x, self.f(self.z).tanh())
        if how == "vector":
            return x * self.f(self.n(self.z))
        if how == "eye":
            return x @ self.f(torch.eye(d, dtype=x.dtype))
        if how == "norm":
            return x + self.n(self.z)
        if how == "places":
            count = self.shape[0]
            if x.ndim == 3:
                return x + self.e(torch.arange(count))
            return x + self.f(self.e(torch.arange(count))).mean(0)
        return self.f(torch.zeros(1, d, dtype=x.dtype)) * x


@piece(*LAST)
class Prototypes(Piece):
    @staticmethod
    def draw(r, shape):
        return {"m": r.randint(1, 4), "how": r.choice(["cdist", "minus", "softmax", "bilinear"])}

    def build(self, shape, o, bank):
        d, m = shape[-1], o["m"]
        self.p, self.t = nn.Parameter(torch.randn(m, d)), nn.Parameter(torch.tensor(0.3))
        self.back = nn.Linear(m, d)
        self.bilinear = nn.Bilinear(d, d, m)

    def forward(self, x, key):
        how = self.o["how"]
        if how == "cdist":
            # Flat: no distance of a point to itself, so no kink.
            flat = x.reshape(-1, x.shape[-1])
            distance = torch.cdist(flat, self.p).view(*x.shape[:-1], -1)
        elif how == "minus":
            distance = (x[..., None, :] - self.p).square().sum(-1)
        elif how == "bilinear":
            distance = self.bilinear(x, x.tanh()).tanh()
        else:
            return (x @ self.p.t() * self.t.exp()).softmax(-1) @ self.p
        return self.back((-distance * self.t.exp()).exp())


@piece()
class Codes(Piece):
    """A table of categories: looked up for each point, or once for each distinct one."""

    @staticmethod
    def draw(r, shape):
        hows = ["plain", "unique", "deep", "bag", "offsets", "padded", "one_hot", "weighted"]
        return {"how": r.choice(hows), "of": r.randint(2, 5), "sparse": r.random() < 0.2}

    def build(self, shape, o, bank):
        d = shape[0] if len(shape) == 3 else shape[-1]
        how, of = o["how"], o["of"]
        if how in ("bag", "offsets", "weighted"):
            mode = "sum" if how == "weighted" else "mean"
            self.e = nn.EmbeddingBag(of, d, mode=mode, sparse=o["sparse"])
        else:
            padding = 0 if how == "padded" else None
            self.e = nn.Embedding(of, d, padding_idx=padding, sparse=o["sparse"])
        self.f = nn.Linear(d, d)

    def forward(self, x, key):
        how, of = self.o["how"], self.o["of"]
        code = (key * of).long().clamp(max=of - 1)
        if how in ("bag", "weighted", "offsets"):
            several = (over(key, 3) * of).long().clamp(max=of - 1)
            if how == "offsets":
                y = self.e(several.flatten(), torch.arange(len(x)) * 3)
            elif how == "weighted":
                y = self.e(several, per_sample_weights=over(key, 3))
            else:
                y = self.e(several)
        elif how in ("unique", "deep"):
            distinct, where = code.unique(return_inverse=True)
            y = self.e(distinct)
            if how == "deep":
                y = self.f(y).tanh()
            y = y[where]
        elif how == "one_hot":
            y = F.one_hot(code, of).to(x.dtype) @ self.e.weight
        else:
            y = self.e(code)
        return x + rowwise(y, x)


@piece(*LAST)
class InPlace(Piece):
    """Outputs of layers, and views of them, changed in place."""

    @staticmethod
    def draw(r, shape):
        hows = ["column", "row", "add", "mul", "chunk", "fill", "input", "copy", "transposed"]
        return {"how": r.choice(hows)}

    def build(self, shape, o, bank):
        self.f, self.p = nn.Linear(shape[-1], shape[-1]), nn.Parameter(torch.randn(shape[-1]))

    def forward(self, x, key):
        how = self.o["how"]
        if how == "input":
            # What the layer was called with changes after the call.
            z = x.tanh() + 0 * x
            y = self.f(z.clone())
            z += y
            return z
        y = self.f(x)
        if how == "column":
            y[..., 0] = y[..., 0] * 2 + x[..., -1]
        elif how == "row":
            y[:1] *= 1.5
            y[1:] *= 1.5
        elif how == "add":
            y.add_(self.p).add_(x, alpha=0.5)
        elif how == "mul":
            y = y.mul_(0.5).sub_(x)
        elif how == "chunk":
            y[..., :1].add_(x[..., :1])
            y[..., 1:].mul_(0.3)
        elif how == "fill":
            y.masked_fill_((key > 0.5).view(-1, *[1] * (y.ndim - 1)), 0.25)
        elif how == "copy":
            z = torch.empty_like(y)
            z.copy_(y)
            y = z.add_(self.p)
        else:
            y.transpose(0, -1).mul_(0.7)
        return y


class Negated(torch.autograd.Function):
    """Gradient reversal, as it is written everywhere."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -ctx.factor * g, None


class Straight(torch.autograd.Function):
    """Rounding with the gradient of the identity, in the form that torch.func takes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return (4 * x).round() / 4

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g


@piece(*LAST, often=0.7)
class OwnGradient(Piece):
    @staticmethod
    def draw(r, shape):
        return {"how": r.choice(["reversed", "straight", "detached", "energy"])}

    def build(self, shape, o, bank):
        d = shape[-1]
        self.f, self.g = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x, key):
        how = self.o["how"]
        if how == "reversed":
            return Negated.apply(self.f(x), 0.5).clone()
        if how == "straight":
            # Well off the edges, so that the order of a sum does not matter.
            return self.f(x) + Straight.apply(x.detach() + 1e-3) * self.g.bias
        if how == "detached":
            return self.f(x).detach() * self.g(x)
        with torch.enable_grad():
            z = x if x.requires_grad else x.detach().requires_grad_()
            energy = self.g(self.f(z).tanh()).square().sum()
            return torch.autograd.grad(energy, z, create_graph=True)[0]


@piece(*LAST, often=0.7)
class Vmapped(Piece):
    """torch.func inside the network."""

    @staticmethod
    def draw(r, shape):
        return {"how": r.choice(["rows", "ensemble", "call", "jvp"]), "m": r.randint(2, 3)}

    def build(self, shape, o, bank):
        d = shape[-1]
        self.f = nn.Linear(d, d)
        self.w = nn.Parameter(torch.randn(o["m"], d, d) / d**0.5)

    def forward(self, x, key):
        how = self.o["how"]
        if how == "rows":
            return torch.vmap(lambda row: F.linear(row, self.f.weight, self.f.bias).tanh())(x)
        if how == "ensemble":
            return torch.vmap(lambda w: (x @ w).tanh())(self.w).mean(0)
        if how == "call":
            theta = {"weight": self.f.weight.tanh(), "bias": self.w[0, 0]}
            return torch.func.functional_call(self.f, theta, (x,))
        _, tangent = torch.func.jvp(lambda z: (z @ self.w[0]).tanh(), (x,), (torch.ones_like(x),))
        return tangent


@piece(*LAST)
class Sideways(Piece):
    """The axis of the points somewhere else than first."""

    @staticmethod
    def draw(r, shape):
        hows = ["second", "third", "norm", "left"]
        return {"how": r.choice(hows + (["conv", "image", "batch", "prelu"] * (len(shape) == 1)))}

    def build(self, shape, o, bank):
        d = shape[-1]
        self.f, self.n = nn.Linear(d, d), nn.LayerNorm(d, eps=0.1)
        self.c = nn.Conv2d(d, d, 1) if o["how"] == "image" else nn.Conv1d(d, d, 1)
        self.b = nn.PReLU(d) if o["how"] == "prelu" else nn.BatchNorm1d(d)
        nn.init.uniform_(self.b.weight, 0.5, 1.5)

    def forward(self, x, key):
        how = self.o["how"]
        if how == "second":
            return self.f(x[None])[0]
        if how == "third":
            return self.n(self.f(x[None, None]))[0, 0]
        if how == "norm":
            z = x.transpose(0, -2) if x.ndim == 3 else x[:, None].transpose(0, 1)
            z = self.n(z)
            return z.transpose(0, -2) if x.ndim == 3 else z[0]
        if how == "left":
            flat = x.reshape(-1, x.shape[-1])
            return (self.f.weight @ flat.t() + self.f.bias[:, None]).t().reshape(x.shape)
        z = x.t()[None]
        if how == "conv":
            return self.c(z)[0].t()
        if how == "image":
            return self.c(z[..., None])[0, :, :, 0].t()
        return self.b(z)[0].t()


@piece(*LAST, often=0.5)
class Hooked(Piece):
    """Hooks of the user, on a layer that is called twice."""

    @staticmethod
    def draw(r, shape):
        return {"how": r.choice(["after", "before", "backward", "reshape"])}

    def build(self, shape, o, bank):
        self.f = f = nn.Linear(shape[-1], shape[-1])
        if o["how"] == "after":
            f.register_forward_hook(lambda m, a, y: y * 2)
        elif o["how"] == "before":
            f.register_forward_pre_hook(lambda m, a: (a[0].tanh(),))
        elif o["how"] == "backward":
            f.register_full_backward_hook(lambda m, g, h: None)
        else:
            f.register_forward_hook(lambda m, a, y: y.flip(-1))

    def forward(self, x, key):
        return self.f(self.f(x).tanh()) * 0.9


@piece(*LAST, often=0.4)
class Counter(Piece):
    """A buffer that counts calls; checks of the data as people write them."""

    @staticmethod
    def draw(r, shape):
        return {"how": r.choice(["nan", "numpy", "item"] * 2 + ["count"])}

    def build(self, shape, o, bank):
        self.f = nn.Linear(shape[-1], shape[-1])
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, key):
        how = self.o["how"]
        if how == "nan" and x.isnan().any():
            raise RuntimeError("nan in the input")
        if how == "numpy" and np.abs(x.detach().cpu().numpy()).max(initial=0) > 1e9:
            raise RuntimeError("diverged")
        if how == "item" and float(x.abs().sum()) > 1e12:
            raise RuntimeError("diverged")
        if how == "count":
            self.calls += 1
        return self.f(x)


@piece("sequence", often=1.5)
class Attention(Piece):
    @staticmethod
    def draw(r, shape):
        hows = ["self", "self", "cross", "learned", "encoder", "decoder", "queries", "memory"]
        o = {"how": r.choice(hows), "first": r.random() < 0.6, "weights": r.random() < 0.4}
        o.update(heads=2 if shape[1] % 2 == 0 else 1, pad=r.random() < 0.4, q=r.randint(1, 3))
        return o

    def build(self, shape, o, bank):
        d, how, first, heads = shape[1], o["how"], o["first"], o["heads"]
        if how in ("encoder", "decoder"):
            kind = nn.TransformerEncoderLayer if how == "encoder" else nn.TransformerDecoderLayer
            self.f = kind(d, heads, 5, batch_first=first, norm_first=o["weights"], dropout=0.1)
        else:
            self.f = nn.MultiheadAttention(d, heads, batch_first=first)
        self.q = nn.Parameter(torch.randn(o["q"], d))
        self.p, self.v = nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x, key):
        o, how, n = self.o, self.o["how"], len(x)
        mask = None
        if o["pad"] and how in ("self", "encoder", "cross"):
            mask = torch.arange(x.shape[1]) >= lengths_of(key, x.shape[1])[:, None]
        if how == "queries":
            q = self.p(self.q)  # No axis of points.
            a = (q @ self.v(x).transpose(1, 2)).softmax(-1) @ x
            return x + a.mean(1, keepdim=True)
        turn = (lambda t: t) if o["first"] else (lambda t: t.transpose(0, 1))
        q = turn(self.q.expand(n, -1, -1))
        z = turn(x)
        if how == "encoder":
            return turn(self.f(z, src_key_padding_mask=mask))
        if how == "decoder":
            return turn(self.f(z, q))
        arguments = {"self": (z, z, z), "cross": (turn(self.p(x)), z, z)}
        arguments.update(learned=(q, z, z), memory=(z, q, q))
        y = self.f(*arguments[how], key_padding_mask=mask, need_weights=o["weights"])[0]
        y = turn(y)
        return x + y.mean(1, keepdim=True) if how == "learned" else y


@piece("sequence", often=1.2)
class Recurrent(Piece):
    @staticmethod
    def draw(r, shape):
        kind = r.choice(["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell"])
        how = r.choice(["plain", "plain", "packed", "sorted", "last"])
        return {"kind": kind, "first": r.random() < 0.6, "both": r.random() < 0.3, "how": how}

    def build(self, shape, o, bank):
        d, kind = shape[1], o["kind"]
        if kind.endswith("Cell"):
            self.f = getattr(nn, kind)(d, d)
        else:
            h = d // 2 if o["both"] and d % 2 == 0 else d
            self.two = h != d
            self.f = getattr(nn, kind)(d, h, batch_first=o["first"], bidirectional=self.two)

    def forward(self, x, key):
        o, (n, t, d) = self.o, x.shape
        if o["kind"].endswith("Cell"):
            state, steps = None, []
            for step in x.unbind(1):
                state = self.f(step, state)
                steps.append(state[0] if o["kind"] == "LSTMCell" else state)
            return torch.stack(steps, 1)
        first, how = o["first"], o["how"]
        if how in ("packed", "sorted"):
            lengths = lengths_of(key, t)
            order = torch.arange(n)
            if how == "sorted":
                lengths, order = lengths.sort(descending=True)
            z = x[order] if first else x[order].transpose(0, 1)
            packed = pack_padded_sequence(z, lengths.cpu(), first, enforce_sorted=how == "sorted")
            y, _ = pad_packed_sequence(self.f(packed)[0], first, total_length=t)
            y = y if first else y.transpose(0, 1)
            return y[order.argsort()] if how == "sorted" else y
        y, state = self.f(x if first else x.transpose(0, 1))
        if how == "last":
            h = state[0] if isinstance(state, tuple) else state
            return x + h.transpose(0, 1).reshape(n, 1, d)
        return y if first else y.transpose(0, 1)


@piece("sequence")
class Along(Piece):
    """Convolutions along time."""

    @staticmethod
    def draw(r, shape):
        d = shape[1]
        groups = r.choice([g for g in (1, 2, d) if d % g == 0])
        how = r.choice(["same", "circular", "stride", "transposed", "functional"])
        return {"how": how, "groups": groups}

    def build(self, shape, o, bank):
        d, how, groups = shape[1], o["how"], o["groups"]
        if how == "stride":
            self.f = nn.Conv1d(d, d, 2, stride=2, padding=1, groups=groups)
        elif how == "transposed":
            self.f = nn.ConvTranspose1d(d, d, 3, padding=1, groups=groups)
        else:
            mode = "circular" if how == "circular" else "zeros"
            self.f = nn.Conv1d(d, d, 3, padding=1, groups=groups, padding_mode=mode)

    def forward(self, x, key):
        how, z = self.o["how"], x.transpose(1, 2)
        if how == "functional":
            z = F.conv1d(z, self.f.weight, self.f.bias, padding=1, groups=self.o["groups"])
        else:
            z = self.f(z)
        if how == "stride":
            z = F.interpolate(z, x.shape[1])
        return z.transpose(1, 2)


@piece("image", often=3)
class Convolution(Piece):
    @staticmethod
    def draw(r, shape):
        c = shape[0]
        groups = r.choice([g for g in (1, 2, c) if c % g == 0])
        hows = ["same", "circular", "stride", "transposed", "functional", "pointwise", "dynamic"]
        return {"how": r.choice(hows), "groups": groups}

    def build(self, shape, o, bank):
        c, how, groups = shape[0], o["how"], o["groups"]
        if how == "stride":
            self.f = nn.Conv2d(c, c, 2, stride=2, padding=1, groups=groups)
        elif how == "transposed":
            self.f = nn.ConvTranspose2d(c, c, 3, padding=1, groups=groups)
        elif how == "pointwise":
            self.f = nn.Conv2d(c, c, 1)
        else:
            mode = "circular" if how == "circular" else "zeros"
            self.f = nn.Conv2d(c, c, 3, padding=1, groups=groups, padding_mode=mode)
        if how == "dynamic":
            self.h = nn.Linear(c, c * c)

    def forward(self, x, key):
        how, (n, c, height, width) = self.o["how"], x.shape
        if how == "functional":
            return F.conv2d(x, self.f.weight, self.f.bias, padding=1, groups=self.o["groups"])
        if how == "dynamic":
            # A kernel per point, the points as groups of one image.
            w = self.h(x.mean((2, 3))).view(n * c, c, 1, 1)
            y = F.conv2d(self.f(x).reshape(1, n * c, height, width), w, groups=n)
            return y.view(n, c, height, width)
        y = self.f(x)
        return F.interpolate(y, (height, width)) if how == "stride" else y


# Combinators: of the batch


def same(shape: Shape, o: dict[str, Any]) -> list[Shape]:
    return [shape]


@piece(often=2)
class Copies(Piece):
    """The batch several times in one call: test-time augmentation, samples, siamese towers."""

    @staticmethod
    def draw(r, shape):
        return {
            "how": r.choice(["cat", "cat", "stack", "interleave", "repeat", "expand", "pair"]),
            "flip": r.random() < 0.5,
            "merge": r.choice(["mean", "difference", "product", "first"]),
        }

    inner = staticmethod(same)

    def forward(self, x, key):
        o, n = self.o, len(x)
        mirrored = x.flip(-1) if o["flip"] else x
        if o["how"] in ("cat", "pair", "repeat"):
            first, second = (mirrored, x) if o["how"] == "pair" else (x, mirrored)
            both = x.repeat(2, *[1] * (x.ndim - 1)) if o["how"] == "repeat" else None
            both = torch.cat([first, second]) if both is None else both
            a, b = self.run(both, key.repeat(2)).view(2, n, *x.shape[1:])
        else:
            if o["how"] == "stack":
                both = torch.stack([x, mirrored], 1).flatten(0, 1)
            elif o["how"] == "interleave":
                both = x.repeat_interleave(2, 0)
            else:
                both = x[:, None].expand(n, 2, *x.shape[1:]).reshape(2 * n, *x.shape[1:])
            a, b = self.run(both, key.repeat_interleave(2)).view(n, 2, *x.shape[1:]).unbind(1)
        merge = o["merge"]
        if merge == "mean":
            return (a + b) / 2
        if merge == "difference":
            return a - 0.3 * b.flip(-1)
        return a * b.tanh() if merge == "product" else a.clone()


@piece()
class Pieces(Piece):
    """The batch in parts: chunks, single points, in another order."""

    @staticmethod
    def draw(r, shape):
        hows = ["chunk", "split", "reversed", "loop", "halves", "strided", "squeezed"]
        return {"how": r.choice(hows), "size": r.randint(1, 4)}

    inner = staticmethod(same)

    def forward(self, x, key):
        how, size, n = self.o["how"], self.o["size"], len(x)
        if how == "chunk":
            parts = zip(x.chunk(size), key.chunk(size), strict=True)
            return torch.cat([self.run(a, k) for a, k in parts])
        if how == "split":
            return torch.cat([self.run(a, k) for a, k in _split(x, key, size)])
        if how == "reversed":
            return torch.cat([self.run(a, k) for a, k in _split(x, key, size)[::-1]][::-1])
        if how == "loop":
            return torch.cat([self.run(x[i : i + 1], key[i : i + 1]) for i in range(n)])
        if how == "squeezed":
            return torch.stack([self.run(x[i][None], key[i][None])[0] for i in range(n)])
        if how == "halves":
            half = (n + 1) // 2
            y = torch.empty_like(x)
            y[:half] = self.run(x[:half], key[:half])
            if n > half:
                y[half:] = self.run(x[half:], key[half:])
            return y
        y = torch.zeros_like(x)
        for start in range(min(2, n)):
            y[start::2] = self.run(x[start::2], key[start::2])
        return y


def _split(x, key, size):
    return list(zip(x.split(size), key.split(size), strict=True))


@piece(*LAST, often=0.6)
class Unbatched(Piece):
    """A layer called on one point at a time without an axis for it."""

    def build(self, shape, o, bank):
        self.f, self.n = nn.Linear(shape[-1], shape[-1]), nn.LayerNorm(shape[-1], eps=0.1)

    def forward(self, x, key):
        return torch.stack([self.n(self.f(row)) for row in x])


@piece(often=2)
class Permuted(Piece):
    """The batch in another order, and back."""

    @staticmethod
    def draw(r, shape):
        order = r.choice(["roll", "flip", "drawn", "numpy", "sort", "sort", "length", "length"])
        how = r.choice(["index", "select", "matrix", "scatter", "gather"])
        return {"order": order, "how": how, "down": r.random() < 0.5}

    inner = staticmethod(same)

    def forward(self, x, key):
        o, n = self.o, len(x)
        order = torch.arange(n)
        if o["order"] == "roll":
            order = order.roll(1)
        elif o["order"] == "flip":
            order = order.flip(0)
        elif o["order"] == "numpy":
            order = torch.from_numpy(np.random.RandomState(n).permutation(n))
        elif o["order"] == "drawn":
            order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
        elif o["order"] == "sort":
            order = key.argsort(descending=o["down"], stable=True)
        else:
            order = lengths_of(key, 4).argsort(descending=o["down"], stable=True)
        how = o["how"]
        if how == "matrix":
            p = F.one_hot(order, n).to(x.dtype)
            y = self.run((p @ x.flatten(1)).view_as(x), key[order])
            return (p.t() @ y.flatten(1)).view_as(x)
        if how == "gather":
            index = order.view(-1, *[1] * (x.ndim - 1)).expand_as(x)
            return torch.zeros_like(x).scatter(0, index, self.run(x.gather(0, index), key[order]))
        z = x.index_select(0, order) if how == "select" else x[order]
        y = self.run(z, key[order])
        if how == "scatter":
            result = torch.empty_like(y)
            result[order] = y
            return result
        return y[order.argsort()]


@piece(often=3)
class Routed(Piece):
    """A mixture of experts over the rows: points, or tokens inside `folded`."""

    @staticmethod
    def draw(r, shape):
        return {
            "by": r.choice(["key", "learned", "skewed"]),
            "top": r.choice([1, 1, 2]),
            "select": r.choice(["mask", "index", "dense"]),
            "merge": r.choice(["index_add", "put", "cat", "index_put", "where"]),
            "gate": r.random() < 0.6,
            "empty": r.random() < 0.2,
            "experts": r.choice([1, 2, 2, 3]),
        }

    @staticmethod
    def inner(shape, o):
        return [shape] * o["experts"]

    def build(self, shape, o, bank):
        c = shape[0] if len(shape) == 3 else shape[-1]
        self.router = nn.Linear(c, o["experts"], bias=False)

    def forward(self, x, key):
        o, count = self.o, self.o["experts"]
        logits = self.router(pooled(x))
        if o["by"] == "learned":
            choice = logits.argsort(-1, descending=True)[:, : o["top"]]
        else:
            spot = key**3 if o["by"] == "skewed" else key
            first = (spot * count).long().clamp(max=count - 1)
            choice = torch.stack([(first + i) % count for i in range(min(o["top"], count))], 1)
        gates = logits.softmax(-1) if o["gate"] else torch.ones_like(logits)
        y = torch.zeros_like(x)
        kept, where = [], []
        for e in range(count):
            chosen = (choice == e).any(1)
            rows = chosen.nonzero()[:, 0]
            if not len(rows) and not o["empty"]:
                continue
            if o["select"] == "dense":
                value = self.run(x, key, e) * rowwise(gates[:, e], x)
                y = y + torch.where(rowwise(chosen, x), value, torch.zeros_like(value))
                continue
            picked = chosen if o["select"] == "mask" else rows
            value = self.run(x[picked], key[picked], e) * rowwise(gates[picked, e], x)
            if o["merge"] == "index_add" or choice.shape[1] > 1:
                y = y.index_add(0, rows, value)
            elif o["merge"] == "put":
                y[picked] = value
            elif o["merge"] == "index_put":
                y = y.index_put((rows,), value)
            elif o["merge"] == "where":
                full = torch.zeros_like(x).index_copy(0, rows, value)
                y = torch.where(rowwise(chosen, x), full, y)
            else:
                kept.append(value)
                where.append(rows)
        if kept:
            return torch.cat(kept)[torch.cat(where).argsort()]
        return y


@piece(often=2)
class Conditional(Piece):
    """Work that some points need: branches, early exit, adaptive depth."""

    @staticmethod
    def draw(r, shape):
        hows = ["if_any", "some", "exit", "while", "while_rows", "item", "python", "all", "weights"]
        return {"how": r.choice(hows), "at": r.choice([0.2, 0.4, 0.6, 0.8, 0.95])}

    inner = staticmethod(same)

    def build(self, shape, o, bank):
        c = shape[0] if len(shape) == 3 else shape[-1]
        self.f = nn.Linear(c, c)

    def forward(self, x, key):
        how, at = self.o["how"], self.o["at"]
        wanted = key > at
        column = rowwise(wanted, x)
        if how == "if_any":
            return torch.where(column, self.run(x, key), x) if wanted.any() else x
        if how == "some":
            rows = wanted.nonzero()[:, 0]
            if len(rows) == 0:
                return x
            return x.index_copy(0, rows, self.run(x[rows], key[rows]))
        if how == "exit":
            y = x.tanh()
            if not wanted.any():
                return y
            y = y.clone()
            y[wanted] = self.run(y[wanted], key[wanted])
            return y
        if how in ("while", "while_rows"):
            left = (key * 4).long()
            while (left > 0).any():
                live = left > 0
                if how == "while":
                    x = torch.where(rowwise(live, x), self.run(x, key), x)
                else:
                    x = x.clone().masked_scatter(rowwise(live, x), self.run(x[live], key[live]))
                left = left - 1
            return x
        if how == "item":
            rows = [i for i, k in enumerate(key.tolist()) if k > at]
            y = list(x.unbind(0))
            for i in rows:
                y[i] = self.run(x[i : i + 1], key[i : i + 1])[0]
            return torch.stack(y)
        if how == "python":
            rows = np.flatnonzero(key.detach().numpy() > at)
            if not len(rows):
                return x
            rest = np.setdiff1d(np.arange(len(x)), rows)
            order = torch.from_numpy(np.concatenate([rows, rest])).argsort()
            y = self.run(x[rows], key[rows])
            return torch.cat([y, x[rest]])[order]
        if how == "all":
            # One call of the chain where everybody wants it, masked otherwise.
            if wanted.all():
                return self.run(x, key)
            return column * self.run(x, key) + ~column * x
        # A layer's weight, used outside it by some points only.
        extra = F.linear(pooled(x), self.f.weight, self.f.bias) * wanted[:, None].to(x.dtype)
        return self.run(x, key) + rowwise(extra, x)


@piece(often=0.8)
class Wrapped(Piece):
    """Checkpointed, repeated, vmapped, or scaled by a gate computed without gradients."""

    @staticmethod
    def draw(r, shape):
        return {"how": r.choice(["checkpoint", "twice", "gate", "checkpoint", "detached"])}

    inner = staticmethod(same)

    def build(self, shape, o, bank):
        c = shape[0] if len(shape) == 3 else shape[-1]
        self.f, self.p = nn.Linear(c, c), nn.Parameter(torch.randn(1, c))

    def forward(self, x, key):
        how = self.o["how"]
        if how == "checkpoint":
            return checkpoint(self._inside, x, key, use_reentrant=False)
        if how == "twice":
            return self.run(self.run(x, key).tanh(), key)
        if how == "gate":
            with torch.no_grad():
                gate = self.f(pooled(x)).sigmoid()
            return self.run(x, key) * rowwise(gate, x) + rowwise(self.f(pooled(x)), x)
        return self.run(x, key) + self.run(x, key).detach()

    def _inside(self, x, key):
        return self.run(x, key) * rowwise(self.p, x)


@piece(*LAST)
class Bottleneck(Piece):
    @staticmethod
    def draw(r, shape):
        return {"d": r.choice([2, 3, 4, 6])}

    @staticmethod
    def inner(shape, o):
        return [(*shape[:-1], o["d"])]

    def build(self, shape, o, bank):
        self.down, self.up = nn.Linear(shape[-1], o["d"]), nn.Linear(o["d"], shape[-1])

    def forward(self, x, key):
        return self.up(self.run(self.down(x), key))


# Combinators: of the axes of a point


@piece("sequence", often=3)
class Folded(Piece):
    """Time folded into the batch, before or after the points."""

    @staticmethod
    def draw(r, shape):
        hows = ["points", "points", "time", "time", "stack", "cat", "einops", "flat"]
        return {"how": r.choice(hows)}

    @staticmethod
    def inner(shape, o):
        return [shape[1:]]

    def forward(self, x, key):
        how, (n, t, d) = self.o["how"], x.shape
        keys = over(key, t)
        if how in ("points", "einops", "flat"):
            flat = x.flatten(0, 1) if how == "flat" else x.reshape(n * t, d)
            return self.run(flat, keys.reshape(-1)).view(n, t, -1)
        if how == "time":
            z = x.transpose(0, 1).reshape(t * n, d)
        elif how == "stack":
            z = torch.stack(list(x.unbind(1))).flatten(0, 1)
        else:
            z = torch.cat([x[:, i] for i in range(t)])
        return self.run(z, keys.t().reshape(-1)).view(t, n, d).transpose(0, 1)


@piece("sequence", often=2.5)
class Unpadded(Piece):
    """The tokens of all points without their padding, and back."""

    @staticmethod
    def draw(r, shape):
        hows = ["mask", "index", "cat", "time", "sorted", "select"]
        return {"how": r.choice(hows), "keep": r.random() < 0.5}

    @staticmethod
    def inner(shape, o):
        return [shape[1:]]

    def forward(self, x, key):
        o, how, (n, t, d) = self.o, self.o["how"], x.shape
        lengths = lengths_of(key, t)
        keys = over(key, t)
        ok = torch.arange(t) < lengths[:, None]
        y = x.clone() if o["keep"] else torch.zeros_like(x)
        if how == "mask":
            y[ok] = self.run(x[ok], keys[ok])
            return y
        if how == "select":
            flat = torch.masked_select(x, ok[..., None]).view(-1, d)
            return y.masked_scatter(ok[..., None], self.run(flat, keys[ok]))
        if how == "cat":
            parts = [x[i, :length] for i, length in enumerate(lengths.tolist())]
            done = self.run(torch.cat(parts), keys[ok]).split(lengths.tolist())
            return torch.stack([F.pad(p, (0, 0, 0, t - len(p))) for p in done])
        if how == "index":
            rows = ok.flatten().nonzero()[:, 0]
            done = self.run(x.reshape(-1, d)[rows], keys.flatten()[rows])
            return y.view(-1, d).index_copy(0, rows, done).view(n, t, d)
        if how == "time":
            rows = ok.t().flatten().nonzero()[:, 0]
            z = x.transpose(0, 1).reshape(-1, d)
            done = self.run(z[rows], keys.t().flatten()[rows])
            return (
                y.transpose(0, 1)
                .reshape(-1, d)
                .index_copy(0, rows, done)
                .view(t, n, d)
                .transpose(0, 1)
            )
        order = lengths.argsort(descending=True, stable=True)
        mask = ok[order]
        z = y[order]
        z[mask] = self.run(x[order][mask], keys[order][mask])
        return z[order.argsort()]


@piece("sequence")
class Stepwise(Piece):
    """A chain run at every time step, or on every window."""

    @staticmethod
    def draw(r, shape):
        hows = ["loop", "state", "windows", "windows_time", "backwards", "ragged"]
        return {"how": r.choice(hows)}

    @staticmethod
    def inner(shape, o):
        return [shape[1:]]

    def build(self, shape, o, bank):
        self.f = nn.Linear(2 * shape[1], shape[1])

    def forward(self, x, key):
        how, (n, t, d) = self.o["how"], x.shape
        if how == "loop":
            return torch.stack([self.run(x[:, i], key) for i in range(t)], 1)
        if how == "backwards":
            return torch.stack([self.run(x[:, i], key) for i in range(t)][::-1], 1)
        if how == "state":
            h, steps = torch.zeros_like(x[:, 0]), []
            for step in x.unbind(1):
                h = self.run(torch.tanh(self.f(torch.cat([step, h], -1))), key)
                steps.append(h)
            return torch.stack(steps, 1)
        if how == "ragged":
            # One point at a time, as long as it is.
            rows = []
            for i, length in enumerate(lengths_of(key, t).tolist()):
                done = self.run(x[i, :length], key[i].expand(length))
                rows.append(torch.cat([done, x[i, length:]]))
            return torch.stack(rows)
        w = torch.cat([x, x[:, :1]], 1).unfold(1, 2, 1).transpose(2, 3)  # (n, t, 2, d)
        if how == "windows":
            flat, keys = w.reshape(n * t, 2 * d), over(key, t).reshape(-1)
            return self.run(self.f(flat), keys).view(n, t, d)
        flat, keys = w.transpose(0, 1).reshape(n * t, 2 * d), over(key, t).t().reshape(-1)
        return self.run(self.f(flat), keys).view(t, n, d).transpose(0, 1)


@piece("sequence")
class Pooled(Piece):
    """A summary of each sequence, given back to its tokens."""

    @staticmethod
    def draw(r, shape):
        return {"how": r.choice(["mean", "max", "last", "length", "norm"])}

    @staticmethod
    def inner(shape, o):
        return [shape[1:]]

    def build(self, shape, o, bank):
        self.n = nn.LayerNorm(shape[1], eps=0.1)

    def forward(self, x, key):
        how, (n, t, _) = self.o["how"], x.shape
        if how == "mean":
            g = x.mean(1)
        elif how == "max":
            g = x.logsumexp(1)
        elif how == "last":
            g = x[:, -1]
        elif how == "length":
            g = x[torch.arange(n), lengths_of(key, t) - 1]
        else:
            g = self.n(self.n(x).sum(1))
        return x + self.run(g, key)[:, None]


@piece("sequence")
class Tokens(Piece):
    """Class tokens, prompts and registers before the sequence, dropped after."""

    @staticmethod
    def draw(r, shape):
        return {"m": r.randint(1, 2), "how": r.choice(["expand", "repeat", "layer", "embedding"])}

    @staticmethod
    def inner(shape, o):
        return [(shape[0] + o["m"], shape[1])]

    def build(self, shape, o, bank):
        m, d = o["m"], shape[1]
        self.p = nn.Parameter(torch.randn(1, m, d))
        self.f, self.e = nn.Linear(d, d), nn.Embedding(m, d)

    def forward(self, x, key):
        how, n, m = self.o["how"], len(x), self.o["m"]
        if how == "repeat":
            token = self.p.repeat(n, 1, 1)
        elif how == "layer":
            token = self.f(self.p).expand(n, -1, -1)
        elif how == "embedding":
            token = self.e(torch.arange(m)).unsqueeze(0).expand(n, -1, -1)
        else:
            token = self.p.expand(n, -1, -1)
        y = self.run(torch.cat([token, x], 1), key)
        return y[:, m:] + y[:, :1]


@piece("sequence")
class Turned(Piece):
    """Tokens sorted, transposed, or gathered, and back."""

    @staticmethod
    def draw(r, shape):
        return {"how": r.choice(["transposed", "sorted", "flipped", "strided", "kept"])}

    @staticmethod
    def inner(shape, o):
        return [shape[::-1] if o["how"] == "transposed" else shape]

    def forward(self, x, key):
        how = self.o["how"]
        if how == "transposed":
            return self.run(x.transpose(1, 2), key).transpose(1, 2)
        if how == "flipped":
            return self.run(x.flip(1), key).flip(1)
        if how == "strided":
            t = x.shape[1]
            order = torch.cat([torch.arange(0, t, 2), torch.arange(1, t, 2)])
            return self.run(x[:, order], key)[:, order.argsort()]
        # Each point by its own order.
        order = over(key, x.shape[1]).argsort(1)
        index = order[..., None].expand_as(x)
        y = self.run(x.gather(1, index), key)
        if how == "kept":
            return y
        return y.gather(1, order.argsort(1)[..., None].expand_as(y))


@piece("vector")
class Widened(Piece):
    """A vector as a short sequence."""

    @staticmethod
    def draw(r, shape):
        d = shape[0]
        return {"t": r.choice([t for t in (1, 2, 3, d) if d % t == 0])}

    @staticmethod
    def inner(shape, o):
        return [(o["t"], shape[0] // o["t"])]

    def forward(self, x, key):
        return self.run(x.view(len(x), self.o["t"], -1), key).flatten(1)


@piece("vector")
class Queried(Piece):
    """A point beside each of several learned parts, folded into the batch (labels, heads)."""

    @staticmethod
    def draw(r, shape):
        hows = ["points", "parts", "sum", "product"]
        return {"m": r.randint(1, 3), "how": r.choice(hows)}

    inner = staticmethod(same)

    def build(self, shape, o, bank):
        self.e = nn.Embedding(o["m"], shape[0])
        self.f = nn.Linear(shape[0], shape[0])

    def forward(self, x, key):
        how, m, (n, d) = self.o["how"], self.o["m"], x.shape
        parts = self.f(self.e.weight) if how == "product" else self.e(torch.arange(m))
        if how == "parts":
            z = (parts[:, None] + x).reshape(m * n, d)
            return self.run(z, over(key, m).t().reshape(-1)).view(m, n, d).tanh().sum(0)
        z = x[:, None] * parts if how == "product" else x[:, None] + parts
        y = self.run(z.reshape(n * m, d), over(key, m).reshape(-1)).view(n, m, d)
        return torch.einsum("nmd,md->nd", y, parts)


@piece("image")
class Pixels(Piece):
    """An image as a sequence of pixels or channels."""

    @staticmethod
    def draw(r, shape):
        return {"how": r.choice(["pixels", "channels", "rows"])}

    @staticmethod
    def inner(shape, o):
        c, h, w = shape
        return [{"pixels": (h * w, c), "channels": (c, h * w), "rows": (h, c * w)}[o["how"]]]

    def forward(self, x, key):
        how, (n, c, h, w) = self.o["how"], x.shape
        if how == "pixels":
            y = self.run(x.flatten(2).transpose(1, 2), key)
            return y.transpose(1, 2).reshape(n, c, h, w)
        if how == "channels":
            return self.run(x.flatten(2), key).view(n, c, h, w)
        y = self.run(x.permute(0, 2, 1, 3).reshape(n, h, c * w), key)
        return y.view(n, h, c, w).permute(0, 2, 1, 3)


@piece("image")
class Planes(Piece):
    """Channels or quarters folded into the batch, before or after the points."""

    @staticmethod
    def draw(r, shape):
        quarters = ["quarters", "quarters_first"] if shape[1] % 2 == 0 == shape[2] % 2 else []
        return {"how": r.choice(["channels", "channels_first", *quarters])}

    @staticmethod
    def inner(shape, o):
        c, h, w = shape
        return [(1, h, w) if o["how"].startswith("channels") else (c, h // 2, w // 2)]

    def forward(self, x, key):
        how, (n, c, h, w) = self.o["how"], x.shape
        if how == "channels":
            return self.run(x.reshape(n * c, 1, h, w), over(key, c).reshape(-1)).view_as(x)
        if how == "channels_first":
            z = x.transpose(0, 1).reshape(c * n, 1, h, w)
            y = self.run(z, over(key, c).t().reshape(-1))
            return y.view(c, n, h, w).transpose(0, 1)
        z = x.view(n, c, 2, h // 2, 2, w // 2)
        if how == "quarters":
            z = z.permute(0, 2, 4, 1, 3, 5).reshape(4 * n, c, h // 2, w // 2)
            y = self.run(z, over(key, 4).reshape(-1)).view(n, 2, 2, c, h // 2, w // 2)
            return y.permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)
        z = z.permute(2, 4, 0, 1, 3, 5).reshape(4 * n, c, h // 2, w // 2)
        y = self.run(z, over(key, 4).t().reshape(-1)).view(2, 2, n, c, h // 2, w // 2)
        return y.permute(2, 3, 0, 4, 1, 5).reshape(n, c, h, w)


@piece("image")
class Excited(Piece):
    """Channels scaled by a function of their means."""

    @staticmethod
    def inner(shape, o):
        return [shape[:1]]

    def forward(self, x, key):
        return x * self.run(x.mean((2, 3)), key).sigmoid()[:, :, None, None]


# What has no per-sample gradients


@piece(breaks="mixes")
class Mixed(Piece):
    @staticmethod
    def draw(r, shape):
        hows = ["centre", "softmax", "largest", "attention", "cumsum", "roll", "place", "ghost"]
        hows += ["sorted", "neighbour", "capacity", "kept", "count"]
        hows += ["norm"] if len(shape) != 2 else ["transposed"]
        return {"how": r.choice(hows)}

    def build(self, shape, o, bank):
        c = shape[-1] if len(shape) < 3 else shape[0]
        self.f = nn.Linear(c, c)
        if o["how"] == "norm":
            kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
            self.norm = kind(c, track_running_stats=False)
        if o["how"] == "transposed":
            self.attention = nn.MultiheadAttention(c, 1)
        self.masks: dict[Any, Tensor] = {}

    def forward(self, x, key):
        how, n = self.o["how"], len(x)
        if how == "centre":
            return x - x.mean(0)
        if how == "softmax":
            return x.softmax(0)
        if how == "largest":
            return x / x.abs().amax().clamp_min(1e-6)
        if how == "attention":
            flat = x.flatten(1)
            return ((flat @ flat.t() / math.sqrt(flat.shape[1])).softmax(-1) @ flat).view_as(x)
        if how == "cumsum":
            return x.cumsum(0)
        if how == "roll":
            return x + 0.5 * x.roll(1, 0)
        if how == "place":
            return x + 0.1 * rowwise(torch.arange(n, dtype=x.dtype), x)
        if how == "ghost":
            mean = x.mean(0, keepdim=True)
            return x + (mean - mean.detach())
        if how == "sorted":
            return x[key.argsort()]
        if how == "capacity":
            # An expert that takes the first few of its rows only.
            wanted = key > 0.3
            taken = wanted & (wanted.cumsum(0) <= max(1, n // 3))
            return torch.where(rowwise(taken, x), rowwise(self.f(pooled(x)), x) + x, x)
        if how == "kept":
            # A dropout mask kept for each shape of batch.
            if x.shape not in self.masks:
                g = torch.Generator().manual_seed(x.numel())
                drawn = torch.rand(x.shape, generator=g, dtype=torch.float64)
                self.masks[x.shape] = (drawn < 0.6).to(x.dtype)
            return x * self.masks[x.shape]
        if how == "count":
            return x / n
        if how == "neighbour":
            return x + rowwise(self.f(pooled(x)).flip(0), x)
        return self.norm(x) if how == "norm" else self.attention(x, x, x)[0]


@piece(breaks="random")
class Random(Piece):
    @staticmethod
    def draw(r, shape):
        hows = ["dropout", "dropout", "noise", "depth", "permutation", "mask", "small", "numpy"]
        return {"how": r.choice(hows), "p": r.choice([0.5, 0.2, 0.05, 0.02])}

    def forward(self, x, key):
        how, p = self.o["how"], self.o["p"]
        if how == "dropout":
            return F.dropout(x, p, training=True)
        if how == "noise":
            return x + 0.1 * torch.randn_like(x)
        if how == "numpy":
            return x + torch.from_numpy(np.random.randn(*x.shape)).to(x.dtype)  # noqa: NPY002
        if how == "small":
            return x + 1e-4 * torch.randn_like(x)
        if how == "depth":
            return x * rowwise(torch.bernoulli(torch.full_like(key, 1 - p)), x)
        if how == "permutation":
            return x + x[torch.randperm(len(x))]
        return x * torch.bernoulli(torch.full_like(x, 1 - p))
