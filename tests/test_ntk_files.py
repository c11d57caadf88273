"""Streams, memory-mapped results, restarts, and sketches of whole networks."""

from __future__ import annotations

import errno
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ntk_networks import networks  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, IterableDataset  # noqa: E402

from ntkfast.ntk import EmpiricalNTK  # noqa: E402


def relative(a, b) -> float:
    a, b = torch.tensor(np.asarray(a)), torch.tensor(np.asarray(b))
    return float((a - b).norm() / b.norm())


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 30), nn.Linear(30, 4)
    )
    return model.double(), torch.randn(23, 1, 8, 8, dtype=torch.float64)


class Counting(nn.Module):
    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner
        # Of the class: of the state of a model every call has a copy.
        type(self).count = SimpleNamespace(points=0, stop_at=10**9)

    def forward(self, x):
        self.count.points += len(x)
        if self.count.points > self.count.stop_at:
            raise KeyboardInterrupt
        return self.inner(x)


@pytest.mark.parametrize("outputs", ["sum", "full"])
@pytest.mark.parametrize("rectangular", [False, True])
def test_gram_restarts_where_it_stopped(network, tmp_path, outputs, rectangular) -> None:
    model, x = network
    K = EmpiricalNTK(model, outputs).gram(x)
    scale = 4 if outputs == "full" else 1
    arguments = (x, x[5:]) if rectangular else (x,)
    expected = K[:, 5 * scale :] if rectangular else K
    counting, budget = Counting(model), 60_000 * scale  # panels of a few points
    ntk = EmpiricalNTK(counting, outputs, memory_budget=budget)
    path, partial = tmp_path / "K.npy", tmp_path / "K.npy.partial"
    with pytest.raises(KeyboardInterrupt):
        counting.count.stop_at = 60
        ntk.gram(*arguments, out=path)
    done = json.loads((tmp_path / "K.npy.partial.json").read_text())["done"]
    assert done and not path.exists()
    counting.count.stop_at = 10**9
    # Another model, other data or other settings must not be mixed in.
    with pytest.raises(ValueError, match="unfinished result of another"):
        EmpiricalNTK(counting, outputs, layers="last", memory_budget=budget).gram(
            *arguments, out=path
        )
    with pytest.raises(ValueError, match="unfinished result of another"):
        ntk.gram(x + 1, *arguments[1:], out=path)
    counting.count.points = 0
    result = ntk.gram(*arguments, out=path)
    resumed = counting.count.points
    assert isinstance(result, np.memmap) and relative(result, expected) <= 1e-12
    assert not partial.exists() and not (tmp_path / "K.npy.partial.json").exists()
    counting.count.points = 0
    ntk.gram(*arguments, out=path)
    assert resumed < counting.count.points
    assert relative(np.load(path), expected) <= 1e-12


def test_gram_goes_on_with_another_automatic_budget(network, tmp_path, monkeypatch) -> None:
    """Free memory of a GPU is not the same tomorrow; the panels of the file are."""
    model, x = network
    expected = EmpiricalNTK(model).gram(x)
    counting, path = Counting(model), tmp_path / "K.npy"
    monkeypatch.setattr("ntkfast.ntk.automatic_budget", lambda device: 40_000)
    ntk = EmpiricalNTK(counting)
    whole = EmpiricalNTK(counting).gram(x)
    all_points = counting.count.points
    counting.count.points, counting.count.stop_at = 0, 60
    with pytest.raises(KeyboardInterrupt):
        ntk.gram(x, out=path)
    state = json.loads((tmp_path / "K.npy.partial.json").read_text())
    assert state["done"] and 0 < state["panel"] < len(x)
    counting.count.points, counting.count.stop_at = 0, 10**9
    monkeypatch.setattr("ntkfast.ntk.automatic_budget", lambda device: 1 << 31)
    with pytest.raises(ValueError, match=r"another memory_budget \(blocks of \d+ points, now 23\)"):
        EmpiricalNTK(counting, memory_budget=1 << 31).gram(x, out=path)  # as asked for
    counting.count.points = 0
    assert relative(ntk.gram(x, out=path), expected) <= 1e-12
    assert counting.count.points < all_points
    assert relative(whole, expected) <= 1e-12


def test_a_damaged_partial_file_is_refused(network, tmp_path) -> None:
    model, x = network
    counting = Counting(model)
    ntk = EmpiricalNTK(counting, memory_budget=40_000)
    counting.count.stop_at = 60
    with pytest.raises(KeyboardInterrupt):
        ntk.gram(x, out=tmp_path / "K.npy")
    counting.count.stop_at = 10**9
    np.lib.format.open_memmap(tmp_path / "K.npy.partial", mode="w+", shape=(3, 3))
    with pytest.raises(ValueError, match="damaged"):
        ntk.gram(x, out=tmp_path / "K.npy")


def test_a_full_disk_is_an_error_before_anything_is_computed(
    network, tmp_path, monkeypatch
) -> None:
    """A memory map would end the process when its pages find no room."""

    def no_room(file, start, size):
        assert size == os.fstat(file).st_size > 23 * 8
        raise OSError(errno.ENOSPC, "No space left on device")

    model, x = network
    monkeypatch.setattr(os, "posix_fallocate", no_room)
    counting = Counting(model)
    ntk = EmpiricalNTK(counting, dim=64)
    ntk.gram(x[:2])
    counting.count.stop_at = counting.count.points + 10
    for call in (ntk.features, ntk.gram):
        with pytest.raises(OSError, match=r"no room for an array of shape \(23, \d\d\) \(No space"):
            call(x, out=tmp_path / "array.npy")
    assert list(tmp_path.iterdir()) == []


def test_streams_are_read_once(network) -> None:
    model, x = network

    class Once(IterableDataset):
        def __init__(self) -> None:
            self.items = iter(x)

        def __iter__(self):
            return self.items

    ntk = EmpiricalNTK(model, dim=64)
    for method in (ntk.features, ntk.gram, ntk.outputs):
        assert relative(method(Once()), method(x)) <= 1e-12
        assert relative(method(DataLoader(Once(), batch_size=1)), method(x)) <= 1e-12
    with pytest.raises(ValueError, match="known length"):
        ntk.features(Once(), out="features.npy")


def test_sketched_kernels_are_unbiased_over_seeds(network) -> None:
    model, x = network
    x = x[:6]
    K = EmpiricalNTK(model).gram(x)
    for sketch, dim, seeds in (("sparse", 256, 60), ("kronecker", 256, 120)):
        estimates = []
        for seed in range(seeds):
            features = EmpiricalNTK(model, sketch=sketch, dim=dim, seed=seed).features(x)
            estimates.append(features @ features.T)
        values = torch.stack(estimates)
        deviation = (values.mean(0) - K).abs() / (values.std(0) / seeds**0.5)
        assert float(deviation.max()) < 4.5, sketch
        errors = torch.stack([(v - K).norm() for v in estimates]) / K.norm()
        assert float(errors.mean()) < (0.15 if sketch == "sparse" else 0.8)


@pytest.mark.parametrize("name", ["conv", "resnet", "text", "attention", "functional"])
def test_the_kronecker_sketch_takes_every_network(name) -> None:
    model, x = networks()[name]
    for outputs in ("sum", "full"):
        small = EmpiricalNTK(model, outputs, sketch="kronecker", dim=16)
        assert small.features(x).shape[1] == 16
        # As many dimensions as parameters: nothing is compressed, and nothing collides.
        large = EmpiricalNTK(model, outputs, sketch="kronecker", dim=4096)
        assert large.n_parameters < 4096
        features = large.features(x)
        assert relative(features @ features.T, large.gram(x)) <= 1e-10
    chunked = EmpiricalNTK(model, sketch="kronecker", dim=16, memory_budget=1)
    assert relative(chunked.features(x), small_sum(model, x)) <= 1e-10


def small_sum(model, x):
    return EmpiricalNTK(model, sketch="kronecker", dim=16).features(x)


def test_sketch_error_is_the_error_on_the_first_points(network) -> None:
    model, x = network
    assert EmpiricalNTK(model, sketch=None).sketch_error(x) == 0
    assert EmpiricalNTK(model, dim=4096).sketch_error(x) < 1e-12
    ntk = EmpiricalNTK(model, dim=128)
    features, K = ntk.features(x[:8]), ntk.gram(x[:8])
    assert ntk.sketch_error(x, 8) == pytest.approx(relative(features @ features.T, K))
    assert 0.01 < ntk.sketch_error(x.numpy()) < 0.5
