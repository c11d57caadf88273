"""Which rows belong to which point: the measurement, what is concluded from it, and the trace."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

from ntk_networks import literal_jacobian, output_weights  # noqa: E402
from test_ntk import relative  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from ntkfast._ntk import capture  # noqa: E402
from ntkfast._ntk.owners import (  # noqa: E402
    Owners,
    agree,
    extend,
    find_owners,
    merge,
    narrowest,
    revived,
    scales,
)
from ntkfast._ntk.trace import Trace  # noqa: E402
from ntkfast.ntk import EmpiricalNTK  # noqa: E402

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def measured(owner, n, dtype, *, seed=0, rows=None, features=3):
    """Owners found from gradients of rows that belong to `owner` (-1: no gradient)."""
    g = torch.Generator().manual_seed(seed)
    owner = torch.as_tensor(owner, dtype=torch.int64)
    if rows is None:
        rows = torch.randn(len(owner), features, generator=g)
    rows = torch.where(owner[:, None] < 0, 0.0, rows).to(dtype)
    weights = [s.to(dtype) for s in scales(n, dtype)]
    scaled = [rows * s[owner.clamp(min=0), None] for s in weights]
    return find_owners(rows, scaled, weights, dtype)


def as_points(found: Owners, values):
    """Values of every point's rows, as sorted lists."""
    arranged = found.arrange(values, 0)
    there = found.clear_padding(torch.ones(1, *arranged.shape))[0].bool()
    return [sorted(row[keep].tolist()) for row, keep in zip(arranged, there, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [2, 3, 17, 64])
def test_rows_in_any_order(n, dtype) -> None:
    g = torch.Generator().manual_seed(n)
    point = torch.arange(n)
    layouts = {
        "in order": point,
        "permuted": point[torch.randperm(n, generator=g)],
        "points of three rows": point.repeat_interleave(3),
        "copies of the batch": point.repeat(3),
        "a middle axis": point.repeat_interleave(2).repeat(2),
        "any number of rows": point[torch.randint(0, n, (3 * n,), generator=g)],
        "one point": torch.zeros(5, dtype=torch.int64),
        "some dead": torch.where(torch.rand(3 * n, generator=g) < 0.4, -1, point.repeat(3)),
    }
    for name, owner in layouts.items():
        found = measured(owner, n, dtype, seed=n)
        assert torch.equal(found.owner, owner), name
        assert not found.shared
        dead = (owner < 0).nonzero()[:, 0]
        assert (found.dead is None) if len(dead) == 0 else torch.equal(found.dead, dead)
        assert not found.nothing
        numbers = torch.arange(len(owner))
        got = as_points(found, numbers)
        for i in range(n):
            mine = numbers[owner == i].tolist()
            # Rows without a gradient may be given to anyone: they add nothing.
            assert [row for row in got[i] if owner[row] >= 0] == mine, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_rows_of_different_points_are_told_apart(dtype) -> None:
    owner = torch.tensor([2, 0, 1, 1, 2, 0])
    found = measured(owner, 3, dtype, rows=torch.ones(6, 4))
    assert torch.equal(found.owner, owner) and not found.shared


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shared_rows_pass_for_nobodys_by_no_accident(dtype) -> None:
    """Gradients of several points with integer ratios, parallel or not, sum to one row."""
    g = torch.Generator().manual_seed(0)
    wrong = tried = 0
    for seed, n in itertools.product(range(150), (2, 3, 16)):
        weights = [s.to(dtype) for s in scales(n, dtype)]
        count = 2 if seed % 3 else n
        points = torch.randperm(n, generator=g)[:count]
        ratios = torch.randint(-3, 4, (count, 1), generator=g)
        ratios[ratios == 0] = 1
        direction = torch.randn(1 if seed % 2 else count, 4, generator=g)
        parts = (ratios * direction).to(torch.float64)
        if seed % 5 == 0 and count > 2:
            parts[1:-1] = 0
            parts[1], parts[-1] = direction[0], -direction[0]  # all but one cancel
        if not bool(parts.sum(0).abs().max() > 0.1):
            continue  # they cancel: a row without a gradient
        own = torch.randn(n, 4, generator=g, dtype=torch.float64)
        rows = torch.cat([own, parts.sum(0)[None]]).to(dtype)
        scaled = [
            torch.cat([own * s[:, None].double(), (s[points, None].double() * parts).sum(0)[None]])
            for s in weights
        ]
        found = find_owners(rows, [s.to(dtype) for s in scaled], weights, dtype)
        tried += 1
        wrong += not found.shared
        assert torch.equal(found.owner[:n], torch.arange(n))
    assert tried > 400 and wrong == 0


def test_rows_of_rounding_alone_belong_to_nobody() -> None:
    g = torch.Generator().manual_seed(0)
    weights = scales(4, torch.float64)
    rows = torch.randn(8, 3, dtype=torch.float64, generator=g)
    rounding = [1e-15 * torch.randn(4, 3, dtype=torch.float64, generator=g) for _ in weights]
    rows[4:] *= 1e-15
    scaled = [torch.cat([rows[:4] * s[:, None], r]) for s, r in zip(weights, rounding, strict=True)]
    found = find_owners(rows, scaled, weights, torch.float64)
    assert found.owner.tolist() == [0, 1, 2, 3, -1, -1, -1, -1] and not found.shared
    assert found.dead is None and found.rounding.tolist() == [4, 5, 6, 7]
    assert not revived(rows, found, torch.float64)
    rows[5] *= 1e9
    assert revived(rows, found, torch.float64)


def test_dead_rows_that_come_alive_are_noticed() -> None:
    rows = torch.tensor([[1.0, 2], [0, 0], [3, 4]])
    found = Owners(torch.tensor([0, -1, 1]), 2, dead=torch.tensor([1]))
    assert not revived(rows, found, torch.float32)
    rows[1, 0] = 1e-30
    assert revived(rows, found, torch.float32)
    assert not revived(rows, Owners(torch.tensor([0, 1, 1]), 2), torch.float32)


def test_nothing_and_no_numbers() -> None:
    weights = scales(3, torch.float64)
    passes = len(weights)
    empty = find_owners(torch.zeros(0, 2), [torch.zeros(0, 2)] * passes, weights, torch.float64)
    assert len(empty.owner) == 0 and empty.nothing and not empty.shared
    blank = find_owners(torch.zeros(6, 2), [torch.zeros(6, 2)] * passes, weights, torch.float64)
    assert blank.nothing and blank.owner.tolist() == [-1] * 6 and not blank.shared
    for value in (float("nan"), float("inf")):
        rows = torch.ones(6, 2, dtype=torch.float64)
        rows[3, 1] = value
        scaled = [rows * weights[0].repeat_interleave(2)[:, None]]
        assert find_owners(rows, scaled, weights, torch.float64).owner.tolist() == [
            0,
            0,
            1,
            1,
            2,
            2,
        ]
        odd = find_owners(rows[:5], [scaled[0][:5]], weights, torch.float64)
        assert odd.shared  # nothing is known of them


def test_the_narrowest_type_decides() -> None:
    kinds = [torch.float64, torch.float32]
    assert narrowest(kinds) == torch.float32 and narrowest([kinds[0], torch.int64]) == torch.float64
    for half in (torch.bfloat16, torch.float16):
        assert narrowest([*kinds, half]) == half
    assert narrowest([]) == torch.float64


def layout(n, outer, inner):
    return torch.arange(n).repeat_interleave(inner).repeat(outer)


@pytest.mark.parametrize(("outer", "inner"), [(1, 1), (1, 3), (3, 1), (2, 3), (4, 2)])
def test_two_passes_tell_of_all_others(outer, inner) -> None:
    for a, b, n in ((2, 3, 7), (3, 2, 1), (5, 2, 12)):
        first, second = (Owners(layout(m, outer, inner), m) for m in (a, b))
        known = extend(first, second, n, outer * n * inner)
        assert known.owner.tolist() == layout(n, outer, inner).tolist()
        assert known.dead is None and not known.shared
        numbers = torch.arange(len(known.owner))
        expected = [numbers[known.owner == i].tolist() for i in range(n)]
        assert as_points(known, numbers) == expected
        assert extend(first, second, n, outer * n * inner + 1) is None
        assert extend(first, first, n, outer * n * inner) is None
        shared = extend(Owners(first.owner, a, True), second, n, outer * n * inner)
        assert shared.shared


def test_places_without_gradients_are_not_known() -> None:
    """One that no two points of a pass had a gradient at is to be looked at for every point."""
    n, inside = 4, torch.arange(24).view(2, 4, 3)

    def seen(n, *dead):
        owner = layout(n, 2, 3)
        for outer, points, inner in dead:
            owner.view(2, n, 3)[outer, points, inner] = -1
        return Owners(owner, n, dead=(owner < 0).nonzero()[:, 0])

    everyone, both = slice(None), [0, 1]
    known = extend(seen(2, (0, everyone, 1)), seen(3, (0, both, 1), (1, 0, 2)), n, 24)
    expected = layout(n, 2, 3)
    expected[inside[0, :, 1]] = -1
    assert torch.equal(known.owner, expected)
    assert sorted(known.dead.tolist()) == inside[0, :, 1].tolist()
    # Whatever a pass finds there later is no contradiction, and is kept with what was known.
    later = expected.clone()
    later[inside[0, :, 1]] = torch.tensor([3, 1, 0, -1])
    measured = Owners(later, n, dead=inside[0, 3:, 1])
    assert agree(known, measured)
    both = merge(known, measured)
    assert torch.equal(both.owner, later) and both.dead.tolist() == inside[0, 3:, 1].tolist()
    assert extend(seen(2, (0, everyone, 1)), seen(3, (0, 2, 1)), n, 24).dead is None
    unsure = seen(2)
    unsure.rounding = torch.tensor([3])
    assert extend(unsure, seen(3), n, 24) is None


def test_layouts_that_are_no_axis_are_not_extended() -> None:
    forwards, backwards = Owners(torch.arange(3), 3), Owners(torch.tensor([1, 0]), 2)
    assert extend(backwards, forwards, 5, 5) is None
    assert extend(Owners(torch.tensor([0, 1, 0, 1]), 2), Owners(layout(3, 1, 2), 3), 4, 8) is None
    assert extend(Owners(layout(2, 2, 1), 2), Owners(layout(3, 3, 1), 3), 4, 8) is None
    assert extend(Owners(torch.zeros(0).long(), 2), Owners(torch.zeros(0).long(), 3), 4, 0) is None


def test_what_two_passes_tell_is_joined() -> None:
    old = Owners(torch.tensor([0, -1, 1, -1]), 2, dead=torch.tensor([1, 3]))
    new = Owners(torch.tensor([0, 0, -1, -1]), 2, dead=torch.tensor([2, 3]))
    both = merge(old, new)
    assert both.owner.tolist() == [0, 0, 1, -1] and both.dead.tolist() == [3] and not both.shared
    assert both.rounding is None
    unsure = Owners(new.owner, 2, dead=torch.tensor([2]), rounding=torch.tensor([3]))
    both = merge(old, unsure)
    assert both.dead is None and both.rounding.tolist() == [3]
    assert agree(old, new) and not agree(old, Owners(torch.tensor([1, 0, 1, 0]), 2))
    assert merge(old, Owners(torch.tensor([0, 0, 1, 1]), 2)).dead is None
    assert merge(Owners(old.owner, 2, True), new).shared
    assert merge(old, Owners(new.owner, 2, True)).shared


# The trace: which passes treat their rows alike, and which draw random numbers.


class Model(nn.Module):
    def __init__(self, compute, **buffers) -> None:
        super().__init__()
        self.linear, self.compute = nn.Linear(4, 4), compute
        self.table = nn.Embedding(9, 4)
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x):
        return self.compute(self, x)


def traced(model, x):
    state = [*model.parameters(), *model.buffers()]
    trace = Trace(state, len(x))
    with torch.no_grad(), trace:
        trace.check_outputs(model(x))
    return trace


def data(n=6, seed=0):
    return torch.rand(n, 4, generator=torch.Generator().manual_seed(seed)) - 0.5


ORDER = torch.tensor([3, 1, 2, 0])
MOVES = {
    "index": lambda s, x: s.linear(x[x[:, 0].argsort()]),
    "gather": lambda s, x: s.linear(x.gather(0, x.argsort(0))),
    "sorted and taken": lambda s, x: s.linear(x.index_select(0, x[:, 0].sort().indices)),
    "mask": lambda s, x: s.linear(x[x[:, 0] > 0]).sum() + x,
    "masked select": lambda s, x: x.masked_select(x > 0).sum() + x,
    "nonzero": lambda s, x: (x[:, 0] > 0).nonzero().sum() + x,
    "unique": lambda s, x: s.linear(x.unique(dim=0)).sum() + x,
    "repeat_interleave": lambda s, x: (
        s.linear(x.repeat_interleave(1 + (x[:, 0] > 0).long(), 0)).sum() + x
    ),
    "index_add": lambda s, x: torch.zeros(9, 4).index_add(0, (x[:, 0] > 0).long(), x)[:1] + x,
    "scatter": lambda s, x: torch.zeros(9, 4).scatter_add(0, (x > 0).long(), x)[:1] + x,
    "put": lambda s, x: torch.zeros(9).put((x > 0).long(), x, accumulate=True).sum() + x,
    "looked up among the points": lambda s, x: F.embedding((x[:, 0] > 0).long(), s.linear(x)),
    "bags": lambda s, x: (
        F.embedding_bag(torch.arange(6), s.table.weight, (x[:, 0] > 0).long().cumsum(0)) + x
    ),
    "packed": lambda s, x: (
        pack_padded_sequence(
            s.linear(x)[:, None].expand(-1, 2, -1),
            1 + (x[:, 0] > 0).long(),
            batch_first=True,
            enforce_sorted=False,
        )
        .data.sum()
        .expand(len(x), 1)
    ),
    "a list of numbers": lambda s, x: s.linear(x[x[:, 0].argsort().tolist()]),
    "torch.tensor": lambda s, x: s.linear(x[torch.tensor(x[:, 0].argsort().tolist())]),
    "new_tensor": lambda s, x: s.linear(x[x.new_tensor([1, 0, 2, 3], dtype=torch.long)]),
    "from numpy": lambda s, x: s.linear(x[torch.from_numpy(x[:, 0].argsort().numpy())]),
    "a buffer filled with data": lambda s, x: s.linear(x[s.order.copy_(x[:, 0].argsort())]),
    "a buffer filled in a view": lambda s, x: s.linear(
        x[(s.order[:6].copy_(x[:, 0].argsort()), s.order)[1]]
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_rows_placed_by_data_move(name) -> None:
    assert traced(Model(MOVES[name], order=torch.arange(6)), data()).moving


STAYS = {
    "layers": lambda s, x: s.linear(x).relu(),
    "positions": lambda s, x: x + s.table(torch.arange(4)).mean(1),
    "tokens": lambda s, x: s.table((x > 0).long()).mean(1),
    "a fixed order": lambda s, x: s.linear(x[:, s.order]),
    "an order made of constants": lambda s, x: s.linear(x[:, torch.arange(4).flip(0)]),
    "relative positions": lambda s, x: (
        x + s.table.weight[(torch.arange(4)[:, None] - torch.arange(4)).abs()].sum((1, 2))
    ),
    "a fixed mask": lambda s, x: s.linear(x.masked_fill(s.order > 2, 0)),
    "a mask of the data": lambda s, x: torch.where(x > 0, s.linear(x), x),
    "sorted values": lambda s, x: s.linear(x.sort(1).values),
    "folded": lambda s, x: s.linear(torch.cat([x, x.flip(1)])).view(2, len(x), 4).mean(0),
    "pooled": lambda s, x: F.max_pool1d(s.linear(x)[:, None], 2)[:, 0],
}


@pytest.mark.parametrize("name", STAYS)
def test_other_rows_stay_where_they_are(name) -> None:
    model = Model(STAYS[name], order=ORDER.clone())
    one, two = traced(model, data()), traced(model, data(seed=1))
    assert not one.moving
    assert one.kind == two.kind and one.exact == two.exact
    other = traced(model, data(9))
    assert other.kind == one.kind and other.exact != one.exact


def stacked(order):
    return lambda s, x: s.linear(torch.stack([x.unbind(0)[i] for i in order(x)]))


DIFFERENT = {
    "roll by -1 or -2": lambda s, x: s.linear(x.roll(-1 - int(x[0, 0] > 0), 0)),
    "a list in order of the data": stacked(lambda x: x[:, 0].argsort().tolist()),
    "results in order of the data": lambda s, x: torch.cat(
        [[v.sin() for v in x.split(1)][i] for i in x[:, 0].argsort().tolist()]
    ),
    "halves exchanged": lambda s, x: torch.cat(x.chunk(2)[:: 1 if x[0, 0] > 0 else -1]),
    "one of two layers": lambda s, x: (s.linear if x[0, 0] > 0 else s.other)(x),
    "one of two results": lambda s, x: [s.linear(x), s.linear(x).tanh()][int(x[0, 0] > 0)].sin(),
    "a slice": lambda s, x: s.linear(x[int(x[0, 0] > 0) :][:3]).sum() + x,
    "transposed": lambda s, x: s.linear(x[:4] if x[0, 0] > 0 else x[:4].t()),
    "an axis": lambda s, x: x[:4].cumsum(int(x[0, 0] > 0)),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_passes_that_differ_are_told_apart(name) -> None:
    model = Model(DIFFERENT[name])
    model.other = nn.Linear(4, 4)
    x = data()
    x[:, 0] = torch.linspace(0.1, 0.5, 6)
    y = x.flip(0)
    y[0, 0] = -1
    one, again, two = traced(model, x), traced(model, x + 0), traced(model, y)
    assert one.exact == again.exact and one.exact != two.exact


RANDOM = {
    "dropout": lambda s, x: F.dropout(s.linear(x), 0.5, True),
    "rare dropout": lambda s, x: F.dropout(s.linear(x), 1e-6, True),
    "channels": lambda s, x: F.dropout2d(s.linear(x)[:, :, None, None], 0.1, True).flatten(1),
    "alpha dropout": lambda s, x: F.alpha_dropout(s.linear(x), 0.1, True),
    "noise": lambda s, x: s.linear(x) + 1e-9 * torch.randn_like(x),
    "noise in place": lambda s, x: s.linear(x).add_(torch.empty_like(x).normal_()),
    "a mask": lambda s, x: s.linear(x) * torch.bernoulli(torch.full_like(x, 0.5)),
    "a permutation": lambda s, x: s.linear(x)[torch.randperm(len(x))],
    "attention": lambda s, x: F.scaled_dot_product_attention(
        *[s.linear(x)[:, None]] * 3, dropout_p=0.1
    )[:, 0],
    "a choice": lambda s, x: s.linear(x) * (2 if torch.rand(()) < 0.5 else 1),
    "leaky": lambda s, x: F.rrelu(s.linear(x), training=True),
    "gumbel": lambda s, x: F.gumbel_softmax(s.linear(x)),
    "into a buffer": lambda s, x: s.linear(x) + s.order.uniform_()[:4],
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_are_refused_by_name(name) -> None:
    model = Model(RANDOM[name], order=torch.zeros(6))
    with pytest.raises(ValueError, match=r"draws random numbers in eval mode \(aten::.*, in a "):
        traced(model, data())


CERTAIN = {
    "dropout of p = 0": lambda s, x: F.dropout(s.linear(x), 0.0, True),
    "dropout in eval mode": lambda s, x: F.dropout(s.linear(x), 0.5, False),
    "attention without": lambda s, x: F.scaled_dot_product_attention(
        *[s.linear(x)[:, None]] * 3, dropout_p=0.0
    )[:, 0],
    "noise that is not used": lambda s, x: (s.linear(x), torch.randn(3) + x.sum())[0],
}


@pytest.mark.parametrize("name", CERTAIN)
def test_chance_without_effect_is_accepted(name) -> None:
    traced(Model(CERTAIN[name]), data())


def test_a_generator_of_the_models_own_may_repeat_itself() -> None:
    def compute(model, x):
        generator = torch.Generator().manual_seed(0)
        return model.linear(x) + torch.randn(4, generator=generator)

    assert traced(Model(compute), data()).seeded
    assert not traced(Model(lambda s, x: s.linear(x)), data()).seeded


# Whole networks, on data whose first points, or first batches, tell little.


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.head = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.router = nn.Linear(6, 3, bias=False)
        self.table = nn.Embedding(12, 4, padding_idx=0)

    def layers(self, x):
        return self.norm(self.enter(x)).tanh()

    def forward(self, x):
        return self.head(self.compute(x))


class Mirrored(Network):
    """The batch twice, once as its mirror image."""

    def compute(self, x):
        return self.layers(torch.cat([x, x.flip(1)])).view(2, len(x), 6).mean(0)


class TimeMajor(Network):
    def compute(self, x):
        y = self.layers(x.transpose(0, 1).reshape(-1, 4))
        return y.view(x.shape[1], len(x), 6).square().mean(0)


class Sorted(Network):
    """By length, as for packing, and back."""

    def compute(self, x):
        order = (x != 0).any(2).sum(1).argsort(descending=True, stable=True)
        return self.layers(x[order]).mean(1)[order.argsort()]


class SortedLists(Network):
    """The same in Python: no operation of torch knows the order."""

    def compute(self, x):
        lengths = (x != 0).any(2).sum(1).tolist()
        order = sorted(range(len(x)), key=lambda i: -lengths[i])
        rows = x.unbind(0)
        y = self.layers(torch.stack([rows[i] for i in order])).mean(1).split(1)
        return torch.cat([y[order.index(i)] for i in range(len(x))])


class Experts(Network):
    """Points, or tokens, each in one expert."""

    def compute(self, x):
        y = self.layers(x)
        flat = y.reshape(-1, 6)
        gates = self.router(flat).softmax(1)
        result = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            rows = (gates.argmax(1) == i).nonzero()[:, 0]
            if len(rows):
                value = expert(flat[rows]).tanh() * gates[rows, i, None]
                result = result.index_add(0, rows, value)
        return result.view(y.shape).flatten(1, -2).mean(1) if y.ndim > 2 else result


class Unpadded(Network):
    def compute(self, tokens):
        inside = tokens != 0
        flat = self.layers(self.table(tokens[inside]))
        y = flat.new_zeros(*tokens.shape, 6)
        y[inside] = flat
        return y.sum(1)


class Optional(Network):
    """A part that only some points use, and a layer that a batch calls only if one of them does."""

    def compute(self, x):
        y = self.layers(x)
        use = x[:, :1] > 0
        y = y + use * F.linear(y, self.experts[0].weight, self.experts[0].bias)
        if bool((x[:, 1] > 0.5).any()):
            y = torch.where(x[:, 1:2] > 0.5, self.experts[1](y).tanh(), y)
        return y


class TiedDecoder(Network):
    def compute(self, x):
        return self.norm(F.pad(F.linear(self.enter(x).tanh(), self.enter.weight.t()), (0, 2)))


class Hyper(Network):
    """A weight made once for all points, and queries that all share."""

    def compute(self, x):
        y = self.layers(x)
        weight = self.router(y.new_ones(1, 6).tanh()) @ self.router.weight
        return y * weight + self.experts[0](self.table.weight[:2, :1] * weight).sum(0)


def vectors(n, generator):
    return torch.randn(n, 4, generator=generator, dtype=torch.float64)


def sequences(n, generator):
    x = torch.randn(n, 3, 4, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 4, (n,), generator=generator)
    return x * (torch.arange(3) < lengths[:, None])[..., None]


def tokens(n, generator):
    x = torch.randint(1, 12, (n, 4), generator=generator)
    return x * (torch.arange(4) < torch.randint(1, 5, (n, 1), generator=generator))


FAMILIES = [
    (Mirrored, vectors),
    (TimeMajor, sequences),
    (Sorted, sequences),
    (SortedLists, sequences),
    (Experts, vectors),
    (Experts, sequences),
    (Unpadded, tokens),
    (Optional, vectors),
    (TiedDecoder, vectors),
    (Hyper, vectors),
]


def pools(draw, n=9):
    """Name -> points: the first ones, or the first batch, are unlike the others."""
    g = torch.Generator().manual_seed(3)
    x = draw(n, g)
    first = x.clone()
    first[1] = x[0]
    blank = x.clone()
    blank[:2] = 1 if x.dtype == torch.int64 else 0
    key = x.flatten(1).double().sum(1)
    result = {"ordinary": x, "equal": first, "blank": blank, "all equal": x[[0] * n]}
    result |= {"sorted": x[key.argsort()], "backwards": x[key.argsort(descending=True)]}
    if x.ndim < 3 and x.dtype != torch.int64:
        symmetric = x.clone()
        symmetric[:2] = (x[:2] + x[:2].flip(1)) / 2
        opposite = torch.cat([x[:4], -x[:4], x[8:]])
        result |= {"symmetric": symmetric, "opposite": opposite}
    result |= {"one point": x[:1], "two points": x[:2]}
    return result


@pytest.mark.parametrize(("kind", "draw"), FAMILIES, ids=lambda f: f.__name__)
def test_networks_that_place_rows_their_own_way(kind, draw) -> None:
    torch.manual_seed(1)
    model = kind().double()
    kept = {how: EmpiricalNTK(model, how, sketch=None) for how in ("sum", "random", "full")}
    for name, x in pools(draw).items():
        loader = DataLoader(TensorDataset(x), 3)
        every = literal_jacobian(model, x, output_weights("full", 3))
        for how, ntk in kept.items():  # from the second pool on with what the first one taught
            J = torch.einsum("rk,nkp->nrp", ntk._weights(3).double(), every).flatten(0, 1)
            assert relative(ntk.features(x if how == "random" else loader), J) <= 1e-9, (name, how)
            if how == "sum":
                assert relative(ntk.gram(x), J @ J.T) <= 1e-9, name
                assert relative(ntk.gram(x[:2], loader), J[:2] @ J.T) <= 1e-9, name
    x = pools(draw)["sorted"]
    J = literal_jacobian(model, x, output_weights("sum", 3))[:, 0]
    for sketch in ("sparse", "auto", "kronecker"):
        ntk = EmpiricalNTK(model, sketch=sketch, dim=4096, relative_error=0.3)
        if sketch == "auto":
            ntk.fit_sketch(x)
        features = ntk.features(x)
        # (Of 4096 numbers, for gradients of some 200: all but exact.)
        assert relative(features @ features.T, J @ J.T) <= (1e-9 if sketch == "sparse" else 0.2)
        assert "disagrees" not in str(ntk.explain(x))


def test_a_layer_that_only_later_batches_reach() -> None:
    torch.manual_seed(0)
    model = Optional().double()
    x = vectors(12, torch.Generator().manual_seed(0))
    x[:, 1] = -x[:, 1].abs()
    x[7, 1] = 1.0
    J = literal_jacobian(model, x, output_weights("sum", 3))[:, 0]
    assert bool(J[7].any())
    ntk = EmpiricalNTK(model, sketch=None)
    loader = DataLoader(TensorDataset(x), 3)
    for _ in range(2):
        assert relative(ntk.features(loader), J) <= 1e-10
        assert relative(ntk.gram(loader), J @ J.T) <= 1e-10


def test_known_passes_are_not_measured_again(monkeypatch) -> None:
    measured = []
    original = capture._measure
    monkeypatch.setattr(capture, "_measure", lambda *a: (measured.append(1), original(*a))[1])
    torch.manual_seed(0)
    for kind, draw in ((Mirrored, vectors), (TimeMajor, sequences), (TiedDecoder, vectors)):
        measured.clear()
        x = draw(25, torch.Generator().manual_seed(0))
        model = kind().double()
        ntk = EmpiricalNTK(model)
        ntk.features(DataLoader(TensorDataset(x), 4))  # 4, 4, ..., 1: other numbers than looked at
        looked = len(measured)
        assert looked <= 2
        ntk.features(DataLoader(TensorDataset(x), 5))
        assert len(measured) == looked


class PointsLast(nn.Module):
    """One row of a layer that holds all points, most of which have no gradient at times."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(2), nn.Linear(2, 1)

    def forward(self, x):
        return self.head(torch.relu(self.norm(x.t()[None])[0].t()))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_row_of_all_points_is_nobodys_own(size) -> None:
    """Though the first batches show it the gradient of one point only."""
    for seed in range(6):
        torch.manual_seed(seed)
        model = PointsLast().double().eval()
        x = torch.randn(24, 2, dtype=torch.float64)
        x[:12] = -x[:12].abs()
        x[1 : 12 : size + 1] *= -1
        loader = DataLoader(TensorDataset(x), batch_size=size)
        J = literal_jacobian(model, x, output_weights("sum", 1))[:, 0]
        found = EmpiricalNTK(model, sketch=None).features(loader)
        assert relative(found, J) <= 1e-10
