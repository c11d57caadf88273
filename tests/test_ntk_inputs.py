"""What `X` may be: which points, in which order, called with which inputs; or refused by name."""

from __future__ import annotations

import random
import warnings
from contextlib import contextmanager

import numpy as np
import pytest

pd = pytest.importorskip("pandas")
torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_sequence  # noqa: E402
from torch.utils.data import (  # noqa: E402
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler  # noqa: E402

from ntkfast._ntk import inputs as batching  # noqa: E402
from ntkfast._ntk.fields import Fields  # noqa: E402
from ntkfast._ntk.inputs import Inputs, call_arguments, dtype_explained  # noqa: E402
from ntkfast.ntk import EmpiricalNTK  # noqa: E402

N = 40


def values(n=N, dtype=torch.float64):
    """Points that tell their own number: 0, 1, 2, ..."""
    return torch.arange(n, dtype=dtype)[:, None]


def inputs(X, model=None, select=None):
    return Inputs(X, "X", torch.device("cpu"), torch.float64, Fields(model or NET, select))


def numbers(batch):
    """The points in a batch, by number."""
    return [int(leaf[0]) for leaf in batching.leaves(batch)[0].flatten(1)]


def passed(X, size=16, **options):
    return [i for batch in inputs(X, **options).batches(size) for i in numbers(batch)]


class Net(nn.Module):
    def __init__(self, width=1):
        super().__init__()
        self.layer = nn.Linear(width, 2).double()

    def forward(self, x):
        return self.layer(x)


NET = Net()


@contextmanager
def generators_unchanged():
    python, numpy, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numpy[1])  # noqa: NPY002
    assert np.random.get_state()[2:] == numpy[2:]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torchs)


class Items(Dataset):
    """A data set of the values of a function of the index."""

    def __init__(self, get, n=N):
        self.get, self.n = get, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.get(i)


class Stream(IterableDataset):
    def __init__(self, make):
        self.make = make

    def __iter__(self):
        return iter(self.make())


class Own(Sampler):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return N

    def __iter__(self):
        return iter(self.make())


# batches


def test_batches_of_tensors_dicts_and_tuples():
    x, y = values(3), torch.arange(6).reshape(3, 2)
    for batch, args, kwargs in (
        (x, (x,), {}),
        ((x, y), (x, y), {}),
        ({"a": x, "b": y}, (), {"a": x, "b": y}),
    ):
        assert batching.batch_length(batch) == 3
        assert call_arguments(batch) == (args, kwargs)
        twice = batching.concatenate([batch, batching.take(batch, slice(1, 3))])
        assert type(twice) is type(batch)
        assert numbers(twice) == [0, 1, 2, 1, 2]
        assert numbers(batching.take(batch, [2, 0])) == [2, 0]
        doubled = batching.leaves(batching.map_batch(lambda leaf: 2 * leaf, batch))
        assert all(map(torch.equal, doubled, [2 * leaf for leaf in batching.leaves(batch)]))
        assert batching.same_shapes(batch, twice)
    for other in ((y, y), (x,), x, (x, y.int()), (x, y[:, :1]), {0: x, 1: y}):
        assert not batching.same_shapes((x, y), other)
    assert not batching.same_shapes({"a": x}, {"b": x})
    assert batching.same_shapes({"a": x, "b": y}, {"b": y, "a": x})


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [
        (257, 256, [128, 129]),
        (513, 256, [171, 171, 171]),
        (5, 8, [5]),
        (3, 2, [1, 2]),
        (2, 1, [1, 1]),
    ],
)
def test_batches_are_even(n, size, expected):
    x = values(n)
    for X in (x, x.numpy(), {"x": x}, TensorDataset(x), DataLoader(TensorDataset(x), n)):
        found = inputs(X)
        assert [len(numbers(batch)) for batch in found.batches(size)] == expected
        assert found.n_batches(size) == len(expected)
        assert passed(X, size) == list(range(n))
    loader = DataLoader(TensorDataset(x), 100)
    assert inputs(loader).n_batches(64) == len(list(inputs(loader).batches(64)))


CONTAINERS = {
    "tensor": lambda x: x,
    "array": lambda x: x.numpy(),
    "dict": lambda x: {"x": x},
    "dataset": lambda x: TensorDataset(x, x.long()),
    "loader": lambda x: DataLoader(TensorDataset(x), 7),
    "loader of single points": lambda x: DataLoader(TensorDataset(x), 1),
    "Subset": lambda x: Subset(TensorDataset(torch.cat([x - 5, x])), range(len(x), 2 * len(x))),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_probes_come_from_all_of_the_data(kind):
    X = CONTAINERS[kind](values(100))
    # Of data sets, among the eight points that are read anyway.
    indexed = kind not in ("tensor", "array", "dict")
    assert numbers(inputs(X).probe(5)) == [0, *([14, 42, 70] if indexed else [24, 49, 74]), 99]
    assert numbers(inputs(X).probe(12)) == [i * 99 // 11 for i in range(12)]
    assert numbers(inputs(X).probe(1)) == [0, 99]
    single = inputs(CONTAINERS[kind](values(1)))
    assert numbers(single.probe(5)) == [0]
    found = inputs(X)
    assert numbers(found.probe(3)) == [0, 42 if indexed else 49, 99]
    assert [i for b in found.batches(9) for i in numbers(b)] == list(range(100))
    (first,) = found.first(20)
    assert numbers(first) == list(range(20))
    assert passed(found.sliceable().panel(10, 33)._kept[0]) == list(range(10, 33))


class Prepared(DataLoader):
    """A loader that does more than its arguments say."""

    def __iter__(self):
        for (x,) in super().__iter__():
            yield x + 0


PARTS = {
    **CONTAINERS,
    "workers": lambda x: DataLoader(TensorDataset(x), 7, num_workers=1),
    "batch sampler": lambda x: DataLoader(
        TensorDataset(x), batch_sampler=BatchSampler(SequentialSampler(range(len(x))), 7, False)
    ),
    "padding": lambda x: DataLoader(Items(lambda i: x[i], len(x)), 7, collate_fn=torch.stack),
    "own loader": lambda x: Prepared(TensorDataset(x), 7),
    "stream": lambda x: Stream(lambda: x),
    "loader of a stream": lambda x: DataLoader(Stream(lambda: x), 7),
}


@pytest.mark.parametrize("kind", PARTS)
def test_parts_of_the_points(kind):
    found = inputs(PARTS[kind](values(100)))
    found.probe(3)
    found.first(20)  # what is looked at is not lost, nor is there twice
    stream = found.length is None
    for start, stop in ((33, 71), (97, 100), (0, 5), (0, 100)):
        part = found.part(start, None if stream and stop == 100 else stop)
        numbered = list(part.numbered(9, start))
        assert [i for _, batch in numbered for i in numbers(batch)] == list(range(start, stop))
        assert all(numbers(batch)[0] == first for first, batch in numbered)
        assert max(len(numbers(batch)) for _, batch in numbered) <= 9
        if not stream and kind != "own loader" and kind != "batch sampler":
            assert part.n_batches(9) == len(numbered)


def test_a_part_reads_no_other_points():
    read = []
    X = Items(lambda i: (read.append(i), values()[i])[1])
    for data in (X, DataLoader(X, 7)):
        found = inputs(data)
        found.probe(3)
        read.clear()
        assert [i for batch in found.part(20, 33).batches(5) for i in numbers(batch)] == read
        assert read == list(range(20, 33))


def test_a_part_is_compared_with_what_was_read_before():
    later, x = [0.0], values()
    found = inputs(Items(lambda i: x[i] + later[0]))
    found.probe(3)
    later[0] = 1.0
    with pytest.raises(ValueError, match="point 22 of X differs when it is read again"):
        list(found.part(20, 33).batches(5))


def test_data_are_told_by_their_points():
    x = values(100)
    identities = {
        kind: [leaf.tolist() if isinstance(leaf, torch.Tensor) else leaf for leaf in found]
        for kind in ("tensor", "array", "dataset", "loader", "loader of single points")
        for found in [inputs(CONTAINERS[kind](x)).identity()]
    }
    assert all(found == identities["tensor"] for found in identities.values())
    (names, points) = identities["tensor"]
    assert names == "[]" and [int(p[0]) for p in points] == [0, 14, 28, 42, 56, 70, 84, 99]


def test_nothing_of_a_stream_is_lost_by_looking():
    for X in (Stream(lambda: values(100)), DataLoader(Stream(lambda: values(100)), 3)):
        found = inputs(X)
        assert numbers(found.probe(4))[0] == 0
        assert max(numbers(found.probe(4))) < 64
        assert [i for b in found.first(70) for i in numbers(b)] == list(range(70))
        assert numbers(found.probe(4))[0] == 0
        assert [i for b in found.batches(9) for i in numbers(b)] == list(range(100))
        assert found.length is None and found.n_batches(9) is None


def test_a_model_that_changes_its_input_does_not_change_the_users():
    class InPlace(Net):
        def forward(self, x):
            return super().forward(x.sub_(3.0).div_(2.0))

    x, model = torch.randn(6, 1).double(), InPlace()
    before, ntk = x.clone(), EmpiricalNTK(model)
    expected = model.layer((x - 3) / 2).detach()
    for X in (x, x.numpy(), TensorDataset(x)):
        for _ in range(2):
            assert torch.allclose(torch.as_tensor(ntk.outputs(X)), expected, rtol=1e-14)
    assert torch.equal(x, before)


# text padded per batch


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(30, 4, padding_idx=0), nn.Linear(4, 3)
        self.double()

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embedding(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.layer((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).tanh()


SENTENCES = [[1 + (7 * i + 3 * j) % 29 for j in range(2 + i % 5)] for i in range(13)]


def pad(sentences):
    width = max(map(len, sentences))
    ids = torch.tensor([s + [0] * (width - len(s)) for s in sentences])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


@pytest.mark.parametrize("size", [1, 3, 4, 13])
@pytest.mark.parametrize("workers", [0, 1])
def test_text_padded_per_batch(size, workers, tmp_path):
    torch.manual_seed(0)
    model, whole = Text(), pad(SENTENCES)
    loader = DataLoader(Items(SENTENCES.__getitem__, 13), size, collate_fn=pad, num_workers=workers)
    ntk = EmpiricalNTK(model, dim=128)
    features, kernel = ntk.features(whole), ntk.gram(whole)
    assert torch.allclose(ntk.outputs(loader), ntk.outputs(whole), rtol=1e-12)
    assert torch.allclose(ntk.features(loader), features, rtol=1e-12)
    if workers:
        return
    assert torch.allclose(ntk.gram(loader), kernel, rtol=1e-12)
    small = EmpiricalNTK(model, memory_budget=20_000)  # panels of a few points
    assert torch.allclose(small.gram(loader), kernel, rtol=1e-12)
    written = ntk.gram(loader, whole, out=tmp_path / "kernel.npy")
    assert torch.allclose(torch.tensor(np.array(written)), kernel, rtol=1e-12)
    few = ntk.features(whole)[:7]
    error = (few @ few.T - kernel[:7, :7]).norm() / kernel[:7, :7].norm()
    assert ntk.sketch_error(loader, 7) == pytest.approx(float(error), rel=1e-9)


def test_items_of_different_shapes_need_a_collate_fn():
    ragged = Items(lambda i: torch.zeros(2 + i % 3).double())
    with pytest.raises(ValueError, match=r"cannot be stacked .* collate_fn"):
        passed(ragged)
    # Batches of one need none.
    assert len(passed(DataLoader(ragged, 1))) == N


# order of the points


def in_order():
    return list(range(N))


SHUFFLING = {
    "shuffle=True": dict(batch_size=8, shuffle=True),
    "RandomSampler": dict(batch_size=8, sampler=RandomSampler(range(N))),
    "SubsetRandomSampler": dict(batch_size=8, sampler=SubsetRandomSampler(range(N))),
    "WeightedRandomSampler": dict(batch_size=8, sampler=WeightedRandomSampler(torch.ones(N), N)),
    "DistributedSampler": dict(batch_size=8, sampler=DistributedSampler(range(N), 2, 0)),
    "BatchSampler of a RandomSampler": dict(
        batch_sampler=BatchSampler(RandomSampler(range(N)), 8, False)
    ),
    "own sampler": dict(batch_size=8, sampler=Own(lambda: torch.randperm(N).tolist())),
    "own sampler of NumPy's generator": dict(
        batch_size=8,
        sampler=Own(lambda: np.random.permutation(N).tolist()),  # noqa: NPY002
    ),
    "own sampler of a part": dict(batch_size=8, sampler=Own(lambda: [5, 3, 9])),
    "own sampler, backwards": dict(batch_size=8, sampler=Own(lambda: in_order()[::-1])),
    "own sampler that never ends": dict(batch_size=8, sampler=Own(lambda: iter(int, 1))),
    "iterator": dict(batch_size=8, sampler=iter(range(N))),
    "own batch sampler": dict(batch_sampler=Own(lambda: torch.randperm(N).reshape(-1, 8).tolist())),
    "batch sampler that drops": dict(
        batch_sampler=BatchSampler(SequentialSampler(range(N)), 16, True)
    ),
    "drop_last": dict(batch_size=16, drop_last=True),
    "own sampler, drop_last": dict(batch_size=16, drop_last=True, sampler=Own(in_order)),
}


@pytest.mark.parametrize("kind", SHUFFLING)
def test_loaders_without_a_known_order_are_refused(kind):
    loader = DataLoader(TensorDataset(values()), **SHUFFLING[kind])
    message = r"drop_last=False|shuffle=False\)"
    with generators_unchanged(), pytest.raises(ValueError, match=message):
        inputs(loader)


def test_two_points_in_random_order_are_refused():
    for seed in range(50):
        torch.manual_seed(seed)
        sampler = Own(lambda: torch.randperm(2).tolist())
        with pytest.raises(ValueError, match=r"sampler of its own \(Own\)"):
            inputs(DataLoader(TensorDataset(values(2)), 1, sampler=sampler))


def test_a_sampler_that_would_be_used_up_is_left_alone():
    sampler = iter(range(N))
    with pytest.raises(ValueError, match="which can be iterated once only"):
        inputs(DataLoader(TensorDataset(values()), 8, sampler=sampler))
    assert list(sampler) == in_order()


@pytest.mark.parametrize(
    "options",
    [
        dict(batch_size=7),
        dict(batch_size=8, drop_last=True),
        dict(batch_size=7, sampler=SequentialSampler(range(N))),
        dict(batch_size=7, sampler=Own(in_order)),
        dict(batch_size=7, sampler=range(N)),
        dict(batch_sampler=BatchSampler(SequentialSampler(range(N)), 7, False)),
        dict(batch_sampler=BatchSampler(in_order(), 8, True)),
        dict(batch_sampler=[in_order()[:30], in_order()[30:]]),
    ],
)
def test_loaders_in_order_are_read(options):
    assert passed(DataLoader(TensorDataset(values()), **options)) == in_order()


def test_a_subset_has_an_order_of_its_own():
    data = Subset(TensorDataset(values()), [5, 3, 9])
    assert passed(data) == passed(DataLoader(data, 2)) == [5, 3, 9]


def test_a_loader_that_reorders_by_itself_is_noticed():
    class Backwards(DataLoader):
        def __iter__(self):
            for (x,) in super().__iter__():
                yield (x.flip(0),)

    with pytest.raises(ValueError, match="point 0 of X differs when it is read again"):
        passed(Backwards(TensorDataset(values()), 8))


@pytest.mark.parametrize("size", [4, 13])
def test_a_collate_fn_that_sorts_is_noticed(size):
    def longest_first(sentences):
        return pad(sorted(sentences, key=len, reverse=True))

    text = Items(SENTENCES.__getitem__, 13)
    with pytest.raises(ValueError, match=r"point \d+ of X differs .* sorted by a collate_fn"):
        EmpiricalNTK(Text()).outputs(DataLoader(text, size, collate_fn=longest_first))


def test_a_collate_fn_that_leaves_out_points_is_noticed():
    def good(items):
        return torch.stack([x for (x,) in items if x != 4])

    with pytest.raises(ValueError, match="gave 7 points instead of 8: its collate_fn"):
        passed(DataLoader(TensorDataset(values()), 8, collate_fn=good))
    by_index = [list(range(i, i + 8)) for i in range(0, N, 8)]
    with pytest.raises(ValueError, match="point 5 of X differs"):
        passed(DataLoader(TensorDataset(values()), batch_sampler=by_index, collate_fn=good))
    with pytest.raises(ValueError, match="gave 4 points instead of 5: its collate_fn"):
        passed(DataLoader(TensorDataset(values(5)), 8, collate_fn=good))


# the same values every time

_RNG = np.random.default_rng(0)
DRAWS = {
    "Python": random.random,
    "NumPy": lambda: np.random.random(),  # noqa: NPY002
    "torch": lambda: float(torch.rand(())),
    "its own": lambda: float(_RNG.random()),
}


@pytest.mark.parametrize("generator", DRAWS)
@pytest.mark.parametrize("kind", ["dataset", "loader", "collate_fn", "worker", "stream"])
def test_data_that_change_at_random_are_refused(kind, generator):
    def flipped(i):  # a horizontal flip of half the points
        return values()[i] * (-1.0 if DRAWS[generator]() < 0.5 else 1.0) + 1

    def stacked(items):
        return torch.stack([x + DRAWS[generator]() for (x,) in items])

    X = {
        "dataset": lambda: Items(flipped),
        "loader": lambda: DataLoader(Items(flipped), 8),
        "collate_fn": lambda: DataLoader(TensorDataset(values()), 8, collate_fn=stacked),
        "worker": lambda: DataLoader(Items(flipped), 8, num_workers=1),
        "stream": lambda: Stream(lambda: map(flipped, range(N))),
    }[kind]()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    ntk = EmpiricalNTK(Net())
    for call in (ntk.outputs, ntk.features, ntk.gram):
        with pytest.raises(ValueError, match=r"point \d+ of X1? differs .* augments"):
            call(X)
    if kind != "stream":  # before anything is computed
        with pytest.raises(ValueError, match=r"point \d+ of X differs .* augments"):
            inputs(X).probe(2)


@pytest.mark.parametrize("generator", ["Python", "NumPy", "torch"])
def test_data_that_may_change_at_random_are_named(generator):
    def rarely(i):
        return values()[i] + (DRAWS[generator]() < 1e-12)

    message = "data set of X draws random numbers"
    with generators_unchanged(), pytest.warns(UserWarning, match=message):
        inputs(Items(rarely)).probe(2)


def test_data_that_draw_random_numbers_are_read_more_often():
    reads = []

    def third(i):
        reads.append(i)
        return values()[i] + (torch.rand(()) < 2 and reads.count(i) > 2)

    with pytest.raises(ValueError, match="point 0 of X differs"):
        inputs(Items(third)).probe(2)


def test_labels_may_be_random():
    data = Items(lambda i: (values()[i], i))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert passed(data) == passed(DataLoader(data, 8)) == in_order()
    random_label = Items(lambda i: (values()[i], random.random()))
    with pytest.warns(UserWarning, match="draws random numbers"):
        assert passed(random_label) == in_order()


def test_missing_values_are_like_themselves():
    data = TensorDataset(torch.full((N, 1), torch.nan).double())
    assert all(bool(b.isnan().all()) for b in inputs(data).batches(8))


def test_a_point_that_changes_between_reading_and_pass_is_noticed():
    reads = []

    def later(i):
        reads.append(i)
        return values()[i] + (i == N - 1 and reads.count(i) > 2)

    with pytest.raises(ValueError, match="point 39 of X differs"):
        passed(Items(later))


def test_streams_that_shuffle_are_refused():
    rng = np.random.default_rng(0)
    X = Stream(lambda: values()[rng.permutation(N)])
    with pytest.raises(ValueError, match=r"point 0 of X differs"):
        passed(X)
    fixed = Stream(lambda: values()[np.random.default_rng(0).permutation(N)])
    assert passed(fixed) == np.random.default_rng(0).permutation(N).tolist()


def test_streams_that_can_be_read_once():
    for make in (lambda: iter(values()), lambda: (x for x in values())):
        once = make()
        wrapped = Stream(lambda once=once: once)
        assert passed(wrapped) == in_order()
        with pytest.raises(ValueError, match="or a stream that can be read once only"):
            inputs(wrapped).probe(2)
        with pytest.raises(ValueError, match="or a stream that can be read once only"):
            EmpiricalNTK(Net()).outputs(wrapped)
        with pytest.raises(TypeError, match=r"X is a \w+, which can be read once only"):
            inputs(make())
    once = iter(values())
    again = inputs(Stream(lambda: once))
    assert [i for b in again.batches(8) for i in numbers(b)] == in_order()
    with pytest.raises(ValueError, match="gave 0 points instead of 40: it can be read once only"):
        list(again.batches(8))


def test_one_pass_is_enough_for_outputs_and_features():
    once = iter(values())
    ntk = EmpiricalNTK(NET, sketch=None)
    outputs, features = ntk.outputs_and_features(Stream(lambda: once))
    assert torch.equal(outputs, ntk.outputs(values()))
    assert torch.equal(features, ntk.features(values()))


def test_workers_that_read_a_whole_stream_each_are_named():
    X = DataLoader(Stream(lambda: values(64)), 8, num_workers=2)
    with pytest.warns(UserWarning, match="does each worker"):
        passed(X)


# which fields are inputs

X0, X1, Y = values(4), torch.arange(8).reshape(4, 2), torch.arange(4)


def model(signature):
    """A network whose forward has this signature."""
    names: dict = {"nn": nn, "torch": torch, "Tensor": torch.Tensor, "Optional": None}
    exec(f"from typing import Optional\ndef forward(self, {signature}): pass", names)
    return type("Model", (nn.Module,), {"forward": names["forward"]})()


# Signature, fields of an item, and which of them the model is called with.
BY_POSITION = [
    ("x", [X0], [0]),
    ("x", [X0, Y], [0]),
    ("x, flag=False", [X0, Y], [0]),
    ("x, return_features: bool = False, size: Optional[int] = None", [X0, Y], [0]),
    ("x, cache: 'transformers.cache_utils.Cache | None' = None", [X0, Y], [0]),
    ("x, targets=None", [X0, Y], [0]),
    ("x, attn_mask=None", [X0, Y], [0]),
    ("x, mask=None", [X0], [0]),
    ("x, mask=None", [X0, X1, Y], [0, 1]),
    ("x, mask=None, flag=True", [X0, X1, Y], [0, 1]),
    ("x, mask: 'Tensor | None' = None", [X0, X1, Y], [0, 1]),
    ("a, b", [X0, X1], [0, 1]),
    ("a, b", [X0, X1, Y], [0, 1]),
    ("a, b, flag=1", [X0, X1, Y], [0, 1]),
    ("input_ids=None, labels=None", [X0, Y], [0]),
]
AMBIGUOUS = [
    ("x", [X0, Y, Y]),
    ("x, mask=None", [X0, X1]),
    ("x, lengths=None", [X0, Y]),
    ("x, mask: 'Tensor | None' = None", [X0, X1]),
    ("x, mask=None, types=None", [X0, X1, Y]),
    ("x, flag=False, mask=None", [X0, X1]),
    ("x, flag=False, mask=None", [X0, X1, Y]),
    ("x, *, mask=None", [X0, X1]),
    ("*x", [X0, Y]),
    ("x, *more", [X0, Y]),
    ("a, b", [X0, X1, Y, Y]),
    ("a, b, c", [X0, X1]),
    ("input_ids=None, attention_mask=None, token_type_ids=None, labels=None", [X0, X1, Y]),
]


@pytest.mark.parametrize(("signature", "fields", "expected"), BY_POSITION)
def test_all_inputs_that_the_model_takes_are_passed(signature, fields, expected):
    for X in (TensorDataset(*fields), DataLoader(TensorDataset(*fields), 3)):
        found = inputs(X, model(signature)).sliceable()
        (batch,) = found.batches(8)
        args, kwargs = call_arguments(batch)
        assert not kwargs and len(args) == len(expected)
        assert all(torch.equal(args[i], fields[field]) for i, field in enumerate(expected))


@pytest.mark.parametrize(("signature", "fields"), AMBIGUOUS)
def test_fields_are_not_guessed(signature, fields):
    with pytest.raises(ValueError, match=r"fields.*forward\("):
        passed(TensorDataset(*fields), model=model(signature))
    for select in ([0], 0, lambda batch: batch[0]):
        assert passed(TensorDataset(*fields), model=model(signature), select=select) == [0, 1, 2, 3]


def test_wrappers_that_pass_on_everything_are_looked_into():
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    wrapped = Wrapper(Wrapper(model("x")))
    assert passed(TensorDataset(X0, Y), model=wrapped) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="not certain"):
        passed(TensorDataset(X0, X1), model=Wrapper(model("x, mask=None")))


def test_dicts_and_nested_inputs_with_a_label():
    forward = model("a, b=None")
    for items in (
        Items(lambda i: ({"a": X0[i], "b": X1[i]}, i), 4),
        Items(lambda i: {"a": X0[i], "b": X1[i]}, 4),
        {"a": X0, "b": X1},
    ):
        (batch,) = inputs(items, forward).sliceable().batches(8)
        assert torch.equal(batch["a"], X0) and torch.equal(batch["b"], X1)
    (batch,) = inputs(Items(lambda i: ((X0[i], X1[i]), i), 4), model("a, b")).batches(8)
    assert isinstance(batch, tuple) and torch.equal(batch[1], X1)


@pytest.mark.parametrize(
    ("signature", "keys", "error"),
    [
        ("a", "a labels", r"X\['labels'\] holds labels.*inputs=\['a'\]"),
        ("a, labels=None", "a labels", r"X\['labels'\] holds labels.* return a loss"),
        ("**rest", "a target", r"X\['target'\] holds labels"),
        ("a", "a text", r"X\['text'\] is no input of the model, which has forward\(a\)"),
        ("a, b", "a", "X has no 'b', which the model needs"),
        ("a, y", "a y", None),
        ("a, **rest", "a b", None),
        ("a=None, b=None, labels=None", "b", None),
    ],
)
def test_keys_of_dicts(signature, keys, error):
    fields = dict.fromkeys(keys.split(), X0)
    for X in (fields, Items(lambda i: {key: x[i] for key, x in fields.items()}, 4)):
        if error is None:
            (batch,) = inputs(X, model(signature)).sliceable().batches(8)
            assert batch.keys() == fields.keys()
            continue
        with pytest.raises(ValueError, match=error):
            passed(X, model=model(signature))


def test_inputs_by_name():
    data = {"image": X0, "weight": X1, "label": Y}
    for X in (data, Items(lambda i: {key: x[i] for key, x in data.items()}, 4)):
        # The model takes them by name, or in this order.
        for signature, select, args, kwargs in (
            ("image, weight", ["weight", "image"], [], ["weight", "image"]),
            ("x", "image", ["image"], []),
            ("x, w", ("image", "weight"), ["image", "weight"], []),
            ("image, label=None", ["image", "label"], [], ["image", "label"]),
            ("**all", ["image"], [], ["image"]),
        ):
            (batch,) = inputs(X, model(signature), select).sliceable().batches(8)
            found_args, found = call_arguments(batch)
            assert len(found_args) == len(args) and found.keys() == set(kwargs)
            assert all(map(torch.equal, found_args, (data[name] for name in args)))
            assert all(torch.equal(found[name], data[name]) for name in kwargs)
        with pytest.raises(ValueError, match="no field 'pixels', which inputs names; it has image"):
            passed(X, model=model("x"), select="pixels")
        with pytest.raises(ValueError, match="image by name and the others not"):
            passed(X, model=model("image, w"), select=["image", "weight"])
    with pytest.raises(TypeError, match="are names, and X has fields by position"):
        passed(TensorDataset(X0, Y), model=model("x"), select="image")
    with pytest.raises(ValueError, match="has position 2, and X has 2 fields"):
        passed(TensorDataset(X0, Y), model=model("x"), select=2)
    for select in (1.5, [0, "a"], [True], {"a": 0}):
        with pytest.raises(TypeError, match=r"inputs is .*positions or the names"):
            Fields(Net(), select)
    for select in ([], [0, 0]):
        with pytest.raises(ValueError, match="at least one field, each once"):
            Fields(Net(), select)


def test_tuples_of_inputs():
    (batch,) = inputs((X0, X1.numpy()), model("a, b")).batches(8)
    assert torch.equal(batch[0], X0) and torch.equal(batch[1], X1)
    (batch,) = inputs([X0, X1], model("a, b=None"), [0, 1]).batches(8)
    assert torch.equal(batch[0], X0) and torch.equal(batch[1], X1)
    assert passed((X0,), model=model("a, b=None")) == [0, 1, 2, 3]
    for signature, X, message in (
        ("a", [X0, X0], r"X is a list of 2.*torch\.stack.*dict"),
        ("a, b=None", (X0, X1), r"X is a tuple of 2.*not certain.*dict.*inputs=\[0, 1\]"),
        ("*a", (X0, X1), "not certain"),
        ("a, b=None", [X0, X1, Y], "X is a list of 3.*dict"),
        ("a", [1.0, 2.0], r"X\[0\] is a float"),
        ("a", ["text"], r"X\[0\] is a str"),
    ):
        with pytest.raises(TypeError, match=message):
            inputs(X, model(signature))
    with pytest.raises(ValueError, match="disagree in length"):
        inputs((X0, X1[:3]), model("a, b"))


def test_a_tensor_is_the_input_whatever_items_of_data_sets_hold():
    for select in (0, "image", lambda batch: batch["image"]):
        assert passed(X0, model=model("x"), select=select) == [0, 1, 2, 3]


def test_two_inputs_have_the_right_kernel():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, a, b):
            return (self.first(a).tanh() * self.second(b))[:, :2]

    torch.manual_seed(0)
    net, a, b = Two().double(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    rows = []
    for i in range(5):
        scalar = net(a[i : i + 1], b[i : i + 1]).sum() / 2**0.5
        grads = torch.autograd.grad(scalar, list(net.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]))
    jacobian = torch.stack(rows)
    ntk = EmpiricalNTK(net, sketch=None)
    for X in ((a, b), TensorDataset(a, b), TensorDataset(a, b, torch.arange(5)), {"a": a, "b": b}):
        assert torch.allclose(ntk.features(X), jacobian, rtol=1e-12, atol=1e-14)
        assert torch.allclose(ntk.gram(X), jacobian @ jacobian.T, rtol=1e-12, atol=1e-14)
        assert torch.allclose(ntk.outputs(X), net(a, b).detach(), rtol=1e-12)


# arrays of other kinds


def test_data_frames_are_arrays():
    x = np.arange(12.0).reshape(6, 2)
    frame = pd.DataFrame(x, columns=["a", "b"], index=[5, 3, 1, 0, 2, 4])
    ntk = EmpiricalNTK(Net(2))
    for X in (frame, frame.astype({"a": "int64"}), frame.astype("Float64")):
        for method in (ntk.outputs, ntk.features, ntk.gram):
            found = method(X)
            assert isinstance(found, np.ndarray)
            np.testing.assert_allclose(found, method(x), rtol=1e-14)
    series = pd.Series(np.arange(4.0), index=[3, 2, 1, 0])
    (batch,) = inputs({"a": series, "b": X1}, model("a, b")).batches(8)
    assert torch.equal(batch["a"], torch.arange(4.0).double())
    with pytest.raises(TypeError, match=r"X is a DataFrame, and 'city' \(.*\) holds no numbers"):
        ntk.features(frame.assign(city="Rome"))


def test_masked_arrays_are_refused_unless_nothing_is_masked():
    x = np.arange(6.0).reshape(3, 2)
    free = np.ma.masked_array(x, mask=False)
    ntk = EmpiricalNTK(Net(2))
    np.testing.assert_array_equal(ntk.outputs(free), ntk.outputs(x))
    hidden = np.ma.masked_array(x, mask=x == 3)
    for X in (hidden, {"x": hidden}, (hidden,)):
        with pytest.raises(
            TypeError, match=r"masked array with 1 of 6 entries masked, first at \[1, 1\]"
        ):
            ntk.outputs(X)


def test_what_is_no_input_is_named():
    x = values(4)
    for X, error, message in (
        (x[:0], ValueError, "X is empty"),
        ({}, ValueError, "X is an empty dict"),
        ((), ValueError, "X is an empty tuple"),
        (TensorDataset(x[:0]), ValueError, "X is empty"),
        ("images", TypeError, "X is a str; expected"),
        (np.array([None, 1]), TypeError, "dtype object"),
        (torch.tensor(1.0), ValueError, r"X has shape \(\)"),
        (x.to_sparse(), TypeError, "X is a torch.sparse_coo tensor"),
        (DataLoader(TensorDataset(x), batch_size=None), ValueError, "DataLoader without batches"),
        (DataLoader(Stream(lambda: x), 3, drop_last=True), ValueError, "drop_last=False"),
    ):
        with pytest.raises(error, match=message):
            inputs(X)
    with pytest.raises(ValueError, match="disagree in length"):
        inputs({"a": x, "b": x[:3]}, model("a, b"))
    packed = pack_sequence([x[0], x[1]])
    for give, message in (
        (lambda items: items, r"X is a str"),
        (lambda items: {"x": items}, r"X\['x'\] is a list"),
        (lambda items: packed, "PackedSequence.*pack them in the model"),
        (lambda items: (packed, torch.zeros(2)), "PackedSequence.*pack them in the model"),
    ):
        with pytest.raises(TypeError, match=message):
            passed(DataLoader(Items(lambda i: "text", 2), 2, collate_fn=give), model=model("x"))

    class Formatted:
        def with_format(self, kind):
            pass

    with pytest.raises(TypeError, match=r"X is a Formatted.*with_format"):
        inputs(Formatted())


@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 2), nn.LayerNorm(3), nn.BatchNorm1d(3).eval(), nn.GRU(3, 2), nn.PReLU()]
)
def test_bytes_for_a_model_of_numbers_are_explained(layer):
    x = torch.ones(2, 3, dtype=torch.uint8)
    message = r"inputs of dtype uint8 \(.*\): .*X\.float\(\) / 255"
    with pytest.raises(TypeError, match=message), dtype_explained(x):
        layer(x)


def test_images_of_bytes():
    images = (np.arange(6 * 64) % 256).reshape(6, 1, 8, 8).astype(np.uint8)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    ntk = EmpiricalNTK(net)
    for call in (ntk.outputs, ntk.features, ntk.gram, ntk.explain):
        with pytest.raises(TypeError, match=r"dtype uint8 .* X\.float\(\) / 255"):
            call(images)
    scaled = ntk.outputs(images.astype(np.float32) / 255)
    np.testing.assert_allclose(scaled, net(torch.tensor(images) / 255).detach(), rtol=1e-5)


def test_other_failures_are_not_explained_away():
    ids = torch.ones(2, 3, dtype=torch.uint8)
    for batch, call in (
        (ids, lambda: nn.Embedding(3, 2)(ids)),  # says that it wants long
        (ids, lambda: nn.Linear(4, 2)(ids.float())),
        (ids.float(), lambda: nn.Linear(3, 2).double()(ids.float())),
    ):
        with pytest.raises(RuntimeError), dtype_explained(batch):
            call()
