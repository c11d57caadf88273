"""What the user's model and process look like after a call; AMP, compiled and wrapped models."""

from __future__ import annotations

import copy
import functools
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ntk_networks import literal_jacobian, networks, output_weights  # noqa: E402
from test_ntk import assert_unchanged, relative, snapshot  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint, checkpoint_sequential  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402

from ntkfast import ntk as ntk_module  # noqa: E402
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


# Layers and wrappers


def literal(model, x):
    k = len(EmpiricalNTK(model).outputs(x[:1])[0])
    return literal_jacobian(model, x, output_weights("sum", k))[:, 0]


def agrees(model, x, tolerance=1e-10) -> None:
    J, before = literal(model, x), snapshot(model)
    ntk = EmpiricalNTK(model, sketch=None)
    for _ in range(2):
        assert relative(ntk.features(x), J) <= tolerance
        assert relative(ntk.gram(x), J @ J.T) <= tolerance
    assert_unchanged(model, before)


class Checkpointed(nn.Module):
    """What is inside is run once more during every backward pass."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.places, self.scale = nn.Embedding(7, 8), nn.Parameter(torch.rand(8) + 0.5)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.steps = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def inside(self, x):
        if self.kind == "attention with weights":
            y, weights = self.attention(x, x, x)
            return y + weights.sum(-1, keepdim=True) + weights.square().mean(-1, keepdim=True)
        if self.kind == "free parameters":
            return torch.cat([self.token.expand(len(x), 1, 8), x * self.scale], 1).sin()
        if self.kind == "positions":
            return x * (1 + self.places(torch.arange(x.shape[1])[None]))
        if self.kind == "recurrent":
            return self.recurrent(x)[0]
        if self.kind == "an order of the data":
            order = x[:, 0, 0].argsort()
            return self.steps(x[order])[order.argsort()]
        return self.layer(x)

    def forward(self, x):
        if self.kind == "a sequence":
            y = checkpoint_sequential(self.steps, 2, x, use_reentrant=False)
        elif self.kind == "one in another":
            again = lambda x: checkpoint(self.steps, self.layer(x), use_reentrant=False)  # noqa: E731
            y = checkpoint(again, x, use_reentrant=False)
        else:
            y = checkpoint(self.inside, x, use_reentrant=self.kind == "reentrant")
        return self.head(y.mean(1))


KINDS = ["attention with weights", "free parameters", "positions", "recurrent", "a layer"]
KINDS += ["an order of the data", "a sequence", "one in another"]


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints(kind) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, 8, dtype=torch.float64)
    agrees(Checkpointed(kind).double(), x)


def test_checkpoints_that_autograd_cannot_see_through_are_refused() -> None:
    model, x = Checkpointed("reentrant").double(), torch.randn(6, 4, 8, dtype=torch.float64)
    before = snapshot(model)
    for call in ("features", "gram"):
        with pytest.raises((ValueError, RuntimeError), match="use_reentrant=False"):
            getattr(EmpiricalNTK(model), call)(x)
        assert_unchanged(model, before)


class Prototypes(nn.Module):
    """Zero-dimensional parameters, and some that no layer rule knows."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        if normed:
            self.first = torch.nn.utils.parametrizations.weight_norm(self.first, dim=None)
        self.prototypes = nn.Parameter(torch.randn(3, 6))
        self.temperature, self.shift = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.ones(()))

    def forward(self, x):
        distances = torch.cdist(self.first(x).tanh(), self.prototypes)
        return -distances.square() * self.temperature.exp() + self.shift


class SparseTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4, sparse=True)
        self.bag = nn.EmbeddingBag(9, 4, sparse=True, mode="sum")
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        index = (x.abs() * 4).long().clamp(max=8)
        return self.head(self.words(index).sum(1) * self.bag(index)).tanh()


class VectorBank(nn.Module):
    """Adapters put together of vectors that all layers share, chosen by logits of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = nn.ParameterDict({"vectors": nn.Parameter(torch.randn(6, 4))})
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.logits = nn.ParameterList(nn.Parameter(torch.randn(2, 6)) for _ in range(4))
        self.head = nn.Linear(4, 3)
        for layer in self.layers:
            layer.bank = self.bank

    def adapter(self, layer, logits):
        top, which = logits.topk(2, dim=-1)
        return (top.softmax(-1)[..., None] * layer.bank["vectors"][which]).sum(1)

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            down = self.adapter(layer, self.logits[2 * i])
            up = self.adapter(layer, self.logits[2 * i + 1])
            x = (layer(x) + x @ down.t() @ up).tanh()
        return self.head(x)


MODELS = {
    "zero-dimensional parameters": lambda: Prototypes(False),
    "weight_norm of a whole weight": lambda: Prototypes(True),
    "sparse embeddings": SparseTokens,
    "a bank of vectors": VectorBank,
}


@pytest.mark.parametrize("name", MODELS)
def test_layers_of_many_kinds(name) -> None:
    torch.manual_seed(0)
    agrees(MODELS[name]().double(), torch.randn(7, 4, dtype=torch.float64))


class Extra(nn.Module):
    """State that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.extra = nn.Linear(4, 3), {"labels": ["a", "b"], "scale": 2.0}

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state) -> None:
        self.extra = state

    def forward(self, x):
        return self.linear(x) * self.extra["scale"]


def test_a_gram_file_of_a_model_with_extra_state(tmp_path) -> None:
    torch.manual_seed(0)
    model, x = Extra().double(), torch.randn(7, 4, dtype=torch.float64)
    expected = EmpiricalNTK(model).gram(x)
    assert relative(EmpiricalNTK(model).gram(x, out=tmp_path / "K.npy"), expected) == 0
    # A matrix that was left unfinished is of the model with this state only.
    for scale in (2.0, 3.0):
        model.extra = {"labels": ["a", "b"], "scale": scale}
        inputs = EmpiricalNTK(model)._inputs(x, "X1")
        marks = [str(part) for part in EmpiricalNTK(model)._identity([inputs])]
        assert any(f"'scale': {scale}" in mark for mark in marks)


class Slow(nn.Module):
    """One parameter without a rule, that vmap cannot take, and a clock of its own."""

    def __init__(self, clock, price) -> None:
        super().__init__()
        self.linear, self.prototypes = nn.Linear(4, 6), nn.Parameter(torch.randn(3, 6))
        self.forward = functools.partial(self.compute, clock, price)

    def compute(self, clock, price, x):
        clock.now += 0.1 if len(x) > 1 else price
        if float(x.detach().sum()) == 0.123:  # control flow that looks at the data
            x = x + 1
        return -torch.cdist(self.linear(x), self.prototypes)


class Clock:
    now = 0.0


@pytest.mark.parametrize(("price", "warned"), [(1.0, True), (0.001, False)])
def test_a_dear_fallback_is_announced_once_and_by_name(price, warned, monkeypatch) -> None:
    """A batch takes 0.1 seconds by the clock, and a point alone `price`."""
    torch.manual_seed(0)
    clock = Clock
    clock.now = 0.0
    monkeypatch.setattr(ntk_module.time, "perf_counter", lambda: clock.now)
    model, x = Slow(clock, price).double(), torch.randn(40, 4, dtype=torch.float64)
    ntk = EmpiricalNTK(model, sketch=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ntk.features(x)
    said = [w for w in caught if "plain forward and backward passes" in str(w.message)]
    assert len(said) == warned
    if warned:
        message = str(said[0].message)
        assert message.startswith("no layer rule covers parameter 'prototypes' (it reaches")
        assert "gradients by autograd, one point at a time cost about 160 plain" in message
        assert "40 seconds for 40 points" in message and "explain(X)" in message
        assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            model.linear.weight.mul_(2)  # all is found out anew
        ntk.features(x + 1)  # once is enough
