"""Rules of torch functions, one by one, against literal Jacobians."""

from __future__ import annotations

import itertools
import threading

import pytest

torch = pytest.importorskip("torch")

from ntk_networks import networks  # noqa: E402
from recorded import check, record  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

N = 4
VECTORS, SEQUENCES = (4, 6), (4, 4, 6)


class Given(nn.Module):
    """f(self, linear(x)) with parameters of the given shapes: p, q, r."""

    def __init__(self, function, *shapes) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(6, 6), function
        for name, shape in zip("pqr", shapes, strict=False):
            setattr(self, name, nn.Parameter(torch.rand(shape) + 0.2))

    def forward(self, x):
        return self.function(self, self.linear(x))


def add_in_place(x, p):
    x = 2 * x
    x += p
    return x


def filled(x):
    """The same numbers, written into zeros: no constant, although it began as one."""
    y = torch.zeros_like(x.detach())[:, :0]
    y = torch.zeros(*x.shape, dtype=x.dtype) if y.numel() == 0 else y
    y[:, 1:] = x[:, 1:]
    return y


def overwritten(p):
    """A weight computed from a parameter in place."""
    w = p.clone()
    w.mul_(2)
    w[0] = w[1]
    return w


def token_in_place(p, x):
    token = p.expand(len(x), 4, -1).clone()
    token[:, 1:] = x[:, 1:]
    return token


def repeated_in_place(p, x):
    repeated = p.repeat(len(x), 1)
    repeated.add_(x)
    return repeated


def expert(p, x):
    """Rows go through the weight that the data choose."""
    y = torch.zeros(len(x), 3, dtype=x.dtype)
    chosen = (x.detach()[:, 0] > 0).long()
    for e in chosen.unique():
        y[chosen == e] = F.linear(x[chosen == e], p[e])
    return y


def changed_view(p):
    w = p.clone()
    row = w[1]
    row.mul_(2)
    return row[None]


LINEAR = {
    "matmul": (lambda s, x: x @ s.p, VECTORS, (6, 3)),
    "matmul_positions": (lambda s, x: (x @ s.p).tanh().sum(1), SEQUENCES, (6, 3)),
    "matvec": (lambda s, x: (x @ s.p).tanh(), SEQUENCES, (6,)),
    "mm_transposed": (lambda s, x: torch.mm(x, s.p.t()), VECTORS, (3, 6)),
    "left": (lambda s, x: (s.p @ x).sin().sum(2), SEQUENCES, (3, 4)),
    "left_with_bias": (
        lambda s, x: (torch.matmul(s.p, x) + s.q[:, None]).sin().sum(2),
        SEQUENCES,
        (3, 4),
        (3,),
    ),
    "addmm": (lambda s, x: torch.addmm(s.q, x, s.p), VECTORS, (6, 3), (3,)),
    "addmm_positions": (
        lambda s, x: torch.addmm(s.q, x.view(-1, 6), s.p).view(len(x), -1).sin(),
        SEQUENCES,
        (6, 3),
        (3,),
    ),
    "tied_transposed": (
        lambda s, x: F.linear(torch.tanh(x), s.linear.weight.t(), s.p),
        VECTORS,
        (6,),
    ),
    "bilinear": (lambda s, x: F.bilinear(x, x.cos(), s.p, s.q), VECTORS, (2, 6, 6), (2,)),
    "einsum": (
        lambda s, x: torch.einsum("nti,koi->nkto", x, s.p).sin().sum(2).flatten(1),
        SEQUENCES,
        (2, 3, 6),
    ),
    "einsum_left": (
        lambda s, x: torch.einsum("oi,nit->not", s.p, x).sin().sum(2),
        SEQUENCES,
        (5, 4),
    ),
    "einsum_vector": (lambda s, x: torch.einsum("i,nit->nt", s.p, x).sin(), SEQUENCES, (4,)),
    "einsum_outer": (
        lambda s, x: torch.einsum("ni,o->nio", x, s.p).sin().sum(1),
        VECTORS,
        (4,),
    ),
    "conv_same": (
        lambda s, x: F.conv1d(x, s.p, s.q, padding="same").sin().sum(2),
        SEQUENCES,
        (3, 4, 3),
        (3,),
    ),
    "conv_same_even": (
        lambda s, x: F.conv1d(x, s.p, padding="same").sin().sum(2),
        SEQUENCES,
        (3, 4, 2),
    ),
}
ENTRIES = {
    "scale": (lambda s, x: x * s.p, VECTORS, (6,)),
    "scale_and_temperature": (lambda s, x: (s.p * x / s.q.exp()).sin(), SEQUENCES, (), ()),
    "scaled_in_place": (lambda s, x: (2 * x).mul_(s.p).sin(), VECTORS, (6,)),
    "divide": (lambda s, x: (x / s.p).sin().mean(1), SEQUENCES, (1,)),
    "divided": (lambda s, x: s.p / (x.abs() + 1), VECTORS, (6,)),
    "add_in_place": (lambda s, x: add_in_place(x, s.p).sin().sum(1), SEQUENCES, (4, 6)),
    "positions": (lambda s, x: (x + s.p).sin().sum(1), SEQUENCES, (1, 4, 6)),
    "some_positions": (lambda s, x: (x + s.p[:, : x.shape[1]]).sin().sum(1), SEQUENCES, (1, 9, 6)),
    "position_embedding": (
        lambda s, x: (x + F.embedding(torch.arange(x.shape[1]), s.p)).sin().sum(1),
        SEQUENCES,
        (9, 6),
    ),
    "token_types": (
        lambda s, x: (x + F.embedding(torch.zeros(x.shape[:2], dtype=torch.int64) + 1, s.p)).sin(),
        SEQUENCES,
        (2, 6),
    ),
    "positions_of_every_point": (
        lambda s, x: (x + F.embedding(torch.arange(4).expand(len(x), 4), s.p)).sin(),
        SEQUENCES,
        (9, 6),
    ),
    "positions_of_every_point_in_cat": (
        lambda s, x: torch.cat([x, F.embedding(torch.arange(3).expand(len(x), 3), s.p)], 1).sin(),
        SEQUENCES,
        (9, 6),
    ),
    "attention_bias": (
        lambda s, x: F.scaled_dot_product_attention(x, x, x, s.p[None, 1:]).sin(),
        SEQUENCES,
        (5, 4),
    ),
    "attention_bias_of_groups": (
        lambda s, x: F.scaled_dot_product_attention(
            x.view(-1, 4, 4, 6)[:, :, :2],
            x.view(-1, 4, 4, 6)[:, :2],
            x.view(-1, 4, 4, 6)[:, 2:],
            s.p.expand(4, 2, 4),
            scale=0.7,
            enable_gqa=True,
        ).sin(),
        (4, 16, 6),
        (1, 4),
    ),
    "time_first": (lambda s, x: (x.transpose(0, 1) + s.p).sin().sum(0), SEQUENCES, (4, 1, 6)),
    "subtract": (lambda s, x: (s.p - x).sin() - (x - s.q).cos(), VECTORS, (6,), (6,)),
    "rsub": (lambda s, x: torch.rsub(x, s.p, alpha=2).sin(), VECTORS, (6,)),
    "rsub_parameter": (lambda s, x: torch.rsub(s.p, x, alpha=2).sin(), VECTORS, (6,)),
    "add_alpha": (
        lambda s, x: torch.add(x, s.p, alpha=2).sin() + torch.add(s.q, x, alpha=3).cos(),
        VECTORS,
        (6,),
        (6,),
    ),
    "sub_alpha": (
        lambda s, x: torch.sub(x, s.p, alpha=2).sin() + torch.sub(s.q, x, alpha=3).cos(),
        VECTORS,
        (6,),
        (6,),
    ),
    "addcmul": (
        lambda s, x: torch.addcmul(s.q, s.p, x, value=2).sin(),
        VECTORS,
        (1, 6),
        (1, 6),
    ),
    "addcmul_scale": (lambda s, x: torch.addcmul(x, x, s.p, value=2).sin(), VECTORS, (6,)),
    "addcmul_shift": (lambda s, x: torch.addcmul(s.p, x, x.cos(), value=-0.5), VECTORS, (6,)),
    "power": (
        lambda s, x: x.abs().clamp(min=1e-6).pow(3 * s.p).mean(1).pow(1 / s.p),
        SEQUENCES,
        (1,),
    ),
    "power_of_zero": (lambda s, x: F.relu(x).pow(s.p + 1), VECTORS, (6,)),
    "channels": (
        lambda s, x: (x * s.p.view(1, -1, 1) + s.q[None, :, None]).sin().sum(1),
        SEQUENCES,
        (4,),
        (4,),
    ),
    "token": (
        lambda s, x: torch.cat([s.p.expand(len(x), -1, -1), x], 1).sin().sum(1),
        SEQUENCES,
        (1, 2, 6),
    ),
    "token_repeated": (
        lambda s, x: torch.cat([s.p.repeat(len(x), 1, 1), x], 1).sin().sum(1),
        SEQUENCES,
        (1, 2, 6),
    ),
    "token_copied_and_added": (
        lambda s, x: (x + s.p.repeat(len(x), 1)[:, None].expand(-1, 4, -1)).sin().sum(1),
        SEQUENCES,
        (1, 6),
    ),
    "token_chosen": (
        lambda s, x: x + s.p.expand(len(x), -1)[torch.arange(len(x)) + (x[:, 0] > 9)],
        VECTORS,
        (1, 6),
    ),
    "token_and_position": (
        lambda s, x: torch.cat([(s.p + s.q).expand(len(x), -1, -1), x], 1).sin().sum(1),
        SEQUENCES,
        (1, 2, 6),
        (2, 1),
    ),
    "query": (
        lambda s, x: F.scaled_dot_product_attention(s.p.expand(len(x), -1, -1), x, x).flatten(1),
        SEQUENCES,
        (1, 2, 6),
    ),
    "repeated_along_positions": (
        lambda s, x: (x + s.p.repeat(1, 2, 1)).sin().sum(1),
        SEQUENCES,
        (1, 2, 6),
    ),
    "of_what_began_as_zeros": (lambda s, x: filled(x) * s.p, VECTORS, (6,)),
}
DERIVED = {
    "weight_norm": (
        lambda s, x: F.linear(x, s.p / s.p.norm(dim=1, keepdim=True) * s.q, s.r),
        VECTORS,
        (3, 6),
        (3, 1),
        (3,),
    ),
    "low_rank": (lambda s, x: F.linear(x, s.p + s.q @ s.r), VECTORS, (3, 6), (3, 2), (2, 6)),
    "rows": (lambda s, x: F.linear(x, s.p[1:3]), VECTORS, (5, 6)),
    "columns": (lambda s, x: F.linear(x, s.p[:, 1:7]), VECTORS, (5, 9)),
    "expert": (lambda s, x: expert(s.p, x), VECTORS, (2, 3, 6)),
    "weight_and_bias": (lambda s, x: F.linear(x, s.p, s.p[0, :5]), VECTORS, (5, 6)),
    "standardised": (
        lambda s, x: (
            F.conv1d(
                x,
                F.batch_norm(s.p.reshape(1, 3, -1), None, None, training=True).reshape(s.p.shape),
            )
            .sin()
            .sum(2)
        ),
        SEQUENCES,
        (3, 4, 3),
    ),
    "view_changed": (lambda s, x: F.linear(x, changed_view(s.p)), VECTORS, (3, 6)),
    "expanded_weight": (lambda s, x: x @ s.p.T.expand(6, 3), VECTORS, (1, 6)),
    "expanded_weight_and_bias": (
        lambda s, x: F.linear(x, s.p.expand(3, 6), s.q.repeat(3)),
        VECTORS,
        (1, 6),
        (1,),
    ),
    "rows_of_repeated": (lambda s, x: F.linear(x, s.p.repeat(4, 1)[1:3]), VECTORS, (1, 6)),
    "in_place": (lambda s, x: F.linear(x, overwritten(s.p)), VECTORS, (3, 6)),
}
# Without a rule: said so, and nothing else suffers.
UNSEEN = {
    "where": (lambda s, x: torch.where(x > 0, x, s.p), VECTORS, (6,)),
    "distances": (lambda s, x: torch.cdist(x, s.p), VECTORS, (3, 6)),
    "weight_per_position": (
        lambda s, x: torch.einsum("tio,nti->nto", s.p, x).sin().sum(1),
        SEQUENCES,
        (4, 6, 3),
    ),
    "token_in_place": (lambda s, x: token_in_place(s.p, x) * x, SEQUENCES, (1, 1, 6)),
    "repeated_in_place": (lambda s, x: repeated_in_place(s.p, x) * x, VECTORS, (1, 6)),
    "rounding_mode": (
        lambda s, x: 0.1 * torch.div(x, s.p, rounding_mode="floor") + x,
        VECTORS,
        (6,),
    ),
    "of_the_input": (lambda s, x: F.linear(x, s.p * x.detach().sum()), (1, 6), (3, 6)),
}
ALL = {**LINEAR, **ENTRIES, **DERIVED, **UNSEEN}


@pytest.mark.parametrize("name", ALL)
def test_functions(name) -> None:
    torch.manual_seed(0)
    function, shape, *shapes = ALL[name]
    x = torch.randn(shape, dtype=torch.float64)
    check(Given(function, *shapes).double(), x, unseen=("p",) if name in UNSEEN else ())


@pytest.mark.parametrize("name", sorted(networks()))
def test_networks(name) -> None:
    model, x = networks()[name]
    check(model, x)


class Bag(nn.Module):
    def __init__(self, flat: bool, **options) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(20, 6, **options), nn.Linear(6, 3)
        self.flat, self.last = flat, self.bag.include_last_offset

    def forward(self, tokens, lengths, weights):
        offsets = None
        if self.flat:
            inside = torch.arange(tokens.shape[1]) < lengths[:, None]
            tokens, weights = tokens[inside], weights[inside]
            offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
            offsets = offsets if self.last else offsets[:-1]
        weights = weights if self.bag.mode == "sum" else None
        return self.head(self.bag(tokens, offsets, weights).sin()).tanh()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags(mode) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 20, (N, 5))
    tokens[1, 2:] = 0
    tokens[2] = 0
    x = {"tokens": tokens, "lengths": torch.tensor([5, 2, 0, 3]), "weights": torch.rand(N, 5)}
    x["weights"] = x["weights"].double()
    for flat, last, padding, sparse in itertools.product(
        (False, True), (False, True), (None, 0, -20, 3), (False, mode != "max")
    ):
        options = {"mode": mode, "padding_idx": padding, "sparse": sparse}
        options["include_last_offset"] = last and flat
        check(Bag(flat, **options).double(), x)


def test_sparse_and_frozen_embeddings() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 6, sparse=True, padding_idx=3)
            self.narrow = nn.Embedding(20, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, tokens):
            words, narrow = self.words(tokens.int()), self.narrow(tokens)
            return self.head((words * narrow).sum(1).tanh())

    torch.manual_seed(0)
    model, tokens = Tokens().double(), torch.randint(0, 20, (N, 5))
    check(model, tokens)
    model.narrow.requires_grad_(False)
    check(model, tokens)


class Scaled(nn.LayerNorm):
    """Channels first, as image networks have it, and more after it."""

    def forward(self, x):
        x = x.movedim(1, -1)
        return F.gelu(super().forward(x)).movedim(-1, 1)


class Activated(nn.BatchNorm2d):
    """A BatchNorm with an activation, calling the function itself."""

    def forward(self, x):
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )
        return F.relu(x, inplace=True)


class Same(nn.Conv2d):
    """Pads by itself, unevenly."""

    def forward(self, x):
        x = F.pad(x, (0, 1, 1, 2))
        return F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_subclasses_that_add_to_what_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        Same(2, 4, 3, stride=2, groups=2),
        Activated(4),
        Scaled(4),
        nn.Flatten(),
        Doubled(64, 5),
        nn.Tanh(),
        Doubled(5, 2),
    )
    nn.init.normal_(model[1].running_mean)
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    check(model.double(), torch.randn(3, 2, 6, 8, dtype=torch.float64))


class Attending(nn.Module):
    def __init__(self, weights: bool, same: str, **options) -> None:
        super().__init__()
        self.weights, self.same = weights, same
        self.attention = nn.MultiheadAttention(6, 2, **options)
        self.values = nn.Linear(6, self.attention.vdim)
        self.keys = nn.Linear(6, self.attention.kdim)
        self.head = nn.Linear(6, 2)

    def forward(self, x, mask, padding):
        if not self.attention.batch_first:
            x = x.transpose(0, 1)
        key = value = x
        if self.same != "all":
            key = value = self.keys(x.sin())
        if self.same == "none":
            value = self.values(x)
        y, w = self.attention(
            x, key, value, key_padding_mask=padding, need_weights=self.weights, attn_mask=mask[0]
        )
        if not self.attention.batch_first:
            y = y.transpose(0, 1)
        y = self.head(y.sin().sum(1))
        return y if w is None else y + w.square().sum((1, 2))[:, None]


@pytest.mark.parametrize("same", ["all", "keys", "none"])
@pytest.mark.parametrize("weights", [False, True])
def test_attention(weights, same) -> None:
    torch.manual_seed(0)
    mask = torch.where(torch.ones(4, 4, dtype=torch.bool).triu(1), -3.0, 0.5).double()
    padding = torch.zeros(N, 4, dtype=torch.float64)
    padding[1, 2:] = -torch.inf
    x = {"x": torch.randn(SEQUENCES, dtype=torch.float64), "mask": mask.expand(N, 4, 4)}
    x["padding"] = padding
    kinds = [{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}]
    if same == "none":
        kinds += [{"kdim": 5, "vdim": 3}, {"kdim": 5, "vdim": 3, "add_bias_kv": True}]
    for options, first in itertools.product(kinds, (False, True)):
        model = Attending(weights, same, batch_first=first, **options).double()
        for frozen in ("keys", "values") if same == "all" else ("values",) * (same == "keys"):
            getattr(model, frozen).requires_grad_(False)
        for bias in (model.attention.bias_k, model.attention.in_proj_bias):
            if bias is not None:
                nn.init.normal_(bias)
        check(model, x)


def test_gradients_taken_inside_are_no_plain_uses() -> None:
    class Force(nn.Module):
        """Minus the gradient of an energy: its outputs depend on weights through a backward."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 1)

        def forward(self, x):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                energy = self.second(self.first(x).sin()).sum()
                return -torch.autograd.grad(energy, x, create_graph=True)[0]

    torch.manual_seed(0)
    model = Force().double()
    output, recorder = record(model, torch.randn(VECTORS, dtype=torch.float64))
    assert set(recorder.unseen(output)) == set(dict(model.named_parameters()))


def test_unseen_says_by_what() -> None:
    model = Given(lambda s, x: torch.cdist(x, s.p), (3, 6)).double()
    output, recorder = record(model, torch.randn(VECTORS, dtype=torch.float64))
    assert recorder.unseen(output)["p"] in ("CdistBackward0", "EuclideanDistBackward0")
    assert [use.what for use in recorder.uses] == ["linear"]
    assert recorder.uses[0].names == {"linear.weight", "linear.bias"}


class Checkpointed(nn.Module):
    """All that is replaced or followed, computed again during the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.recurrent = nn.GRU(6, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.head = nn.Linear(6, 2)

    def inside(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) * self.token.exp()
        return self.normed(self.attention(self.recurrent(x)[0], x, x)[0])

    def forward(self, x):
        return self.head(checkpoint(self.inside, x, use_reentrant=False).sum(1))


def test_checkpoints() -> None:
    torch.manual_seed(0)
    check(Checkpointed().double(), torch.randn(SEQUENCES, dtype=torch.float64))


class Hidden(nn.Module):
    """A layer called where no mode of this thread, or no rule, sees it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(6, 4), nn.Linear(4, 2)
        self.way = way
        if way == "script":
            self.hidden = torch.jit.script(self.hidden)

    def forward(self, x):
        if self.way == "vmap":
            y = torch.func.vmap(self.hidden)(x)
        elif self.way == "function":
            y = Product.apply(x, self.hidden.weight) + self.hidden.bias
        elif self.way == "thread":
            found = []
            thread = threading.Thread(target=lambda: found.append(self.hidden(x)))
            thread.start()
            thread.join()
            y = found[0]
        else:
            y = self.hidden(x)
        return self.head(y.tanh())


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ x


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("way", ["vmap", "function", "thread", "script"])
def test_hidden_uses_are_unseen(way) -> None:
    torch.manual_seed(0)
    unseen = ("hidden.weight",) if way == "function" else ("hidden.weight", "hidden.bias")
    check(Hidden(way).double(), torch.randn(VECTORS, dtype=torch.float64), unseen=unseen)


def test_detached_parameters_have_no_part() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 2)
            self.detached = nn.Linear(4, 4)

        def forward(self, x):
            y = self.first(x)
            with torch.no_grad():
                z = self.detached(y)
            z = z + self.detached.weight.detach().sum() + self.detached.weight.data.sum()
            return self.second(y.tanh() + z)

    torch.manual_seed(0)
    check(Detached().double(), torch.randn(VECTORS, dtype=torch.float64))
