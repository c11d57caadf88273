"""What the user's model and process look like after a call; AMP, compiled and wrapped models."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ntk_networks import networks  # noqa: E402
from test_ntk import assert_unchanged, relative, snapshot  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402

from ntkfast._ntk import contract  # noqa: E402
from ntkfast._ntk.sketch import CountSketch  # noqa: E402
from ntkfast.ntk import EmpiricalNTK  # noqa: E402


def calls(ntk, x, folder):
    return {
        "outputs": lambda: ntk.outputs(x),
        "features": lambda: ntk.features(x),
        "features to a file": lambda: ntk.features(x, out=folder / "features.npy"),
        "gram": lambda: ntk.gram(x),
        "gram to a file": lambda: ntk.gram(x, out=folder / "gram.npy"),
        "explain": lambda: ntk.explain(x),
        "sketch_error": lambda: ntk.sketch_error(x),
        "fit_sketch": lambda: ntk.fit_sketch(x),
    }


class Wanted(BaseException):
    """Like KeyboardInterrupt, no Exception; and nothing else raises it."""


class Failing(Dataset):
    """Points of which one cannot be read."""

    def __init__(self, x, at) -> None:
        self.x, self.at, self.reads = x, at, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i):
        self.reads += 1
        if self.reads > self.at:
            raise Wanted
        return self.x[i]


@pytest.mark.parametrize("name", ["attention", "text", "functional", "resnet"])
def test_every_call_leaves_model_and_process_as_they_were(name, tmp_path) -> None:
    model, x = copy.deepcopy(networks()[name])
    model.train()
    next(model.modules()).register_buffer("note", torch.zeros(1))
    parameters = list(model.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    ntk = EmpiricalNTK(model, sketch="auto", dim=64, relative_error=0.9, memory_budget=1 << 20)
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    threads = torch.get_num_threads()
    before = snapshot(model)
    for call in calls(ntk, x, tmp_path).values():
        call()
        assert_unchanged(model, before)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("where", ["backward", "sketch", "contraction", "data"])
def test_interrupted_anywhere_the_model_is_as_it_was(where, monkeypatch, tmp_path) -> None:
    model, x = copy.deepcopy(networks()["attention"])
    model.train()
    left = [10**9]

    def countdown() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Wanted

    if where == "backward":
        model.layer.linear1.register_full_backward_hook(lambda *_: countdown())
    elif where != "data":
        owner, name = (CountSketch, "add") if where == "sketch" else (contract, "gram_dense")
        original = getattr(owner, name)

        def counted(*arguments, **options):
            countdown()
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)
    before, interrupted = snapshot(model), 0
    for at in (0, 2, 7):
        for sketch in ("auto", "sparse"):
            source = Failing(x, at) if where == "data" else x
            ntk = EmpiricalNTK(model, sketch=sketch, dim=64, relative_error=0.9, memory_budget=1)
            for name, call in calls(ntk, source, tmp_path).items():
                if name == "fit_sketch" and sketch != "auto":
                    continue
                left[0] = at
                if where == "data":
                    source.reads = 0
                try:
                    call()
                except Wanted:
                    interrupted += 1
                left[0] = 10**9
                assert_unchanged(model, before)
    assert interrupted >= 10
    assert not (tmp_path / "features.npy.partial").exists()


def test_an_interrupted_choice_is_made_again(monkeypatch) -> None:
    model, x = networks()["resnet"]
    ntk = EmpiricalNTK(model, sketch="auto", dim=300, relative_error=0.9)
    with monkeypatch.context() as patch:
        patch.setattr(contract, "gram_dense", lambda *_: (_ for _ in ()).throw(Wanted()))
        with pytest.raises(Wanted):
            ntk.features(x)
    again = EmpiricalNTK(model, sketch="auto", dim=300, relative_error=0.9)
    assert torch.equal(ntk.features(x), again.features(x))


class Mixed(nn.Module):
    """A network that computes in lower precision by itself."""

    def __init__(self, inner, dtype, cast) -> None:
        super().__init__()
        self.inner, self.dtype, self.cast = inner, dtype, cast

    def forward(self, x):
        with torch.autocast("cpu", dtype=self.dtype):
            y = self.inner(x)
        return y.float() if self.cast else y


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 24),
        nn.LayerNorm(24),
        nn.GELU(),
        nn.Linear(24, 5),
    )


@pytest.fixture
def images():
    return torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("outputs", ["sum", "full"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision(images, dtype, outputs) -> None:
    K = EmpiricalNTK(network(), outputs).gram(images)
    for model in (Mixed(network(), dtype, False), Mixed(network(), dtype, True)):
        ntk = EmpiricalNTK(model, outputs, sketch=None)
        features = ntk.features(images)
        assert features.dtype == ntk.gram(images).dtype == torch.float32
        assert relative(ntk.gram(images), K) < 0.02
        assert relative(features @ features.T, K) < 0.02
        assert "none by torch.func" in str(ntk.explain(images))
    ntk = EmpiricalNTK(network(), outputs)
    with torch.autocast("cpu", dtype=dtype):
        inside = ntk.gram(images)
        assert torch.is_autocast_enabled("cpu")
    assert inside.dtype == torch.float32 and relative(inside, K) < 0.02
    assert relative(ntk.gram(images), K) == 0
    for sketch in ("auto", "kronecker"):
        half = EmpiricalNTK(network().to(dtype), outputs, sketch=sketch, dim=9000)
        features = half.features(images)
        assert features.dtype == torch.float32
        assert relative(features @ features.T, K) < 0.1


def test_compiled_and_parallel_models(images, tmp_path) -> None:
    expected = EmpiricalNTK(network(), dim=256).features(images)

    def inside(wrap):
        model = network()
        model[4] = wrap(model[4])
        return model

    def compiled(layer):
        return torch.compile(layer, backend="eager")

    in_place = network()
    in_place.compile(backend="eager")
    models = [
        compiled(network()),
        compiled(nn.DataParallel(network())),
        nn.DataParallel(compiled(network())),
        in_place,
        inside(compiled),
        inside(nn.DataParallel),
    ]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        models.append(nn.parallel.DistributedDataParallel(network()))
        for model in models:
            ntk = EmpiricalNTK(model, dim=256)
            assert relative(ntk.features(images), expected) <= 1e-6
            assert "none by torch.func" in str(ntk.explain(images[:2]))
        sharded = pytest.importorskip("torch.distributed.fsdp")
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        whole = sharded.fully_shard(network(), mesh=mesh)
        part = network()
        sharded.fully_shard(part[4], mesh=mesh)
        for model, where in ((whole, ""), (part, r" \(at '4'\)")):
            with pytest.raises(TypeError, match=rf"sharded by FSDP{where}: .* state dict"):
                EmpiricalNTK(model)
        spread = network()
        tensors = torch.distributed.tensor
        weight = tensors.distribute_tensor(spread[4].weight, mesh, [tensors.Replicate()])
        spread[4].weight = nn.Parameter(weight)
        with pytest.raises(TypeError, match=r"'4\.weight' is a distributed tensor"):
            EmpiricalNTK(spread)
    finally:
        torch.distributed.destroy_process_group()
