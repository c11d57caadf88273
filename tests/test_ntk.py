"""EmpiricalNTK against literal Jacobians; bad input; the state of the user's model."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ntk_networks import Attention, literal_jacobian, networks, output_weights  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, IterableDataset, TensorDataset  # noqa: E402

from ntkfast._ntk.budget import automatic_budget  # noqa: E402
from ntkfast._ntk.gram import GramWork  # noqa: E402
from ntkfast.ntk import EmpiricalNTK  # noqa: E402

NETWORKS = networks()
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def relative(a, b) -> float:
    a, b = torch.as_tensor(a).detach(), torch.as_tensor(b).detach()
    return float((a - b).norm() / b.norm())


def cast(x, dtype):
    if isinstance(x, dict):
        return {k: cast(v, dtype) for k, v in x.items()}
    return x.to(dtype) if x.is_floating_point() else x


def rows(x, selection):
    return {k: v[selection] for k, v in x.items()} if isinstance(x, dict) else x[selection]


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10)
    )
    return model, torch.randn(12, 1, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for n in NETWORKS for k in ("sum", "single", 1, "full") if (n, k) != ("one_logit", 1)],
)
def test_exact_features_and_gram_are_the_literal_jacobian(name, kind, dtype) -> None:
    model, x = NETWORKS[name]
    k = len(EmpiricalNTK(model).outputs(rows(x, slice(0, 1)))[0])
    J = literal_jacobian(model, x, output_weights(kind, k))
    J = J.flatten(0, 1) if kind == "full" else J[:, 0]
    ntk = EmpiricalNTK(copy.deepcopy(model).to(dtype), kind, sketch=None)
    x = cast(x, dtype)
    features = ntk.features(x)
    assert features.dtype == dtype
    assert features.shape == J.shape
    tolerance = TOLERANCE[dtype]
    assert relative(features, J) <= tolerance
    K = J @ J.T
    assert relative(ntk.gram(x), K) <= tolerance
    k = k if kind == "full" else 1
    cross = ntk.gram(rows(x, slice(0, 3)), rows(x, slice(1, None)))
    assert relative(cross, K[: 3 * k, k:]) <= tolerance


@pytest.mark.parametrize("draws", [1, 3])
def test_random_outputs_average_kernels_of_sign_combinations(small, draws) -> None:
    model, x = small
    model.double()
    x = x.double()
    ntk = EmpiricalNTK(model, "random", draws=draws, sketch=None, seed=5)
    K = ntk.gram(x)
    features = ntk.features(x)
    assert relative(features @ features.T, K) <= 1e-12
    weights = ntk._weights(10)
    assert weights.shape == (draws, 10)
    assert torch.equal(weights.abs(), torch.full((draws, 10), 10**-0.5, dtype=torch.float64))
    J = literal_jacobian(model, x, weights)
    assert relative(K, sum(J[:, r] @ J[:, r].T for r in range(draws)) / draws) <= 1e-12
    assert not torch.equal(weights, EmpiricalNTK(model, "random", draws=draws, seed=6)._weights(10))


def test_random_outputs_estimate_the_trace_kernel(small) -> None:
    model, x = small
    full = EmpiricalNTK(model, "full").gram(x).view(12, 10, 12, 10)
    trace = full.diagonal(dim1=1, dim2=3).sum(-1) / 10
    # Cross terms of +-1 combinations average out as draws ** -0.5.
    assert relative(EmpiricalNTK(model, "random", draws=400).gram(x), trace) < 0.1


@pytest.mark.parametrize("name", ["conv", "text", "functional", "tied"])
@pytest.mark.parametrize("dim", [64, 700])
def test_sketch_is_the_count_sketch_of_the_exact_features(name, dim) -> None:
    model, x = NETWORKS[name]
    exact = EmpiricalNTK(model, sketch=None).features(x)
    ntk = EmpiricalNTK(model, dim=dim, seed=3)
    bucket, sign = ntk._sketch.lookup(torch.arange(exact.shape[1]))
    expected = torch.zeros(len(exact), dim, dtype=torch.float64).index_add_(1, bucket, exact * sign)
    assert relative(ntk.features(x), expected) <= 1e-12


def test_several_draws_share_the_dimensions_of_one_sketch(small) -> None:
    model, x = small
    ntk = EmpiricalNTK(model.double(), "random", draws=3, dim=8192)
    assert ntk.features(x).shape == (12, 8192)
    # The concatenated gradient is shorter than dim, so nothing collides and the sketch is exact.
    assert 3 * ntk.n_parameters <= 8192
    features = ntk.features(x.double())
    assert relative(features @ features.T, ntk.gram(x.double())) <= 1e-12


def test_full_outputs_have_one_feature_row_per_point_and_output(small) -> None:
    model, x = small
    ntk = EmpiricalNTK(model.double(), "full", dim=4096)
    features = ntk.features(x.double())
    assert features.shape == (120, 4096)
    assert relative(features @ features.T, ntk.gram(x.double())) <= 1e-12


@pytest.mark.parametrize("budget", [2**31, 200_000, 1])
def test_results_do_not_depend_on_chunks(small, budget) -> None:
    model, x = small
    model.double()
    x = x.double()
    ntk = EmpiricalNTK(model, dim=300)
    chunked = EmpiricalNTK(model, dim=300, memory_budget=budget)
    assert relative(chunked.features(x), ntk.features(x)) <= 1e-12
    assert relative(chunked.gram(x), ntk.gram(x)) <= 1e-12
    assert relative(chunked.gram(x[:7], x[3:]), ntk.gram(x)[:7, 3:]) <= 1e-12
    assert relative(chunked.outputs(x), ntk.outputs(x)) <= 1e-12


def test_results_do_not_depend_on_the_container(small, tmp_path) -> None:
    model, x = small
    ntk = EmpiricalNTK(model, dim=128)
    expected, K, f = ntk.features(x), ntk.gram(x), ntk.outputs(x)
    y = torch.arange(12)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(x, y, strict=True))

    for container in (
        TensorDataset(x, y),
        DataLoader(TensorDataset(x, y), batch_size=5),
        DataLoader(TensorDataset(x), batch_size=5),
        DataLoader(Stream(), batch_size=7),
        Stream(),
    ):
        assert relative(ntk.features(container), expected) <= 1e-6
        assert relative(ntk.gram(container), K) <= 1e-6
        assert relative(ntk.outputs(container), f) <= 1e-6
    for array in (
        x.numpy(),
        x.double().numpy(),
        x.numpy().astype(">f4"),
        np.asfortranarray(x.numpy()),
        x.numpy()[::-1][::-1],
    ):
        result = ntk.features(array)
        assert isinstance(result, np.ndarray) and result.dtype == np.float32
        assert relative(result, expected) <= 1e-6
    readonly = x.numpy().copy()
    readonly.flags.writeable = False
    assert relative(ntk.gram(readonly, x), K) <= 1e-6
    path = tmp_path / "features.npy"
    mapped = ntk.features(DataLoader(TensorDataset(x, y), batch_size=5), out=path)
    assert isinstance(mapped, np.memmap)
    assert relative(np.load(path), expected) <= 1e-6
    assert [p.name for p in tmp_path.iterdir()] == ["features.npy"]


def test_outputs_are_those_of_eval_mode() -> None:
    model, x = NETWORKS["attention"]
    model.train()
    expected = copy.deepcopy(model).eval()(x)
    assert relative(EmpiricalNTK(model).outputs(x), expected) <= 1e-12
    assert all(m.training for m in model.modules())


def test_frozen_parameters_and_chosen_layers(small) -> None:
    model, x = small
    model.double()
    x = x.double()
    exact = EmpiricalNTK(model, sketch=None).features(x)
    last = EmpiricalNTK(model, sketch=None, layers="last").features(x)
    assert torch.allclose(last, exact[:, -370:], atol=1e-14)
    named = EmpiricalNTK(model, sketch=None, layers=["0", "4.bias"])
    assert named.n_parameters == 50
    assert torch.allclose(named.features(x), torch.cat([exact[:, :40], exact[:, -10:]], 1))
    model[0].weight.requires_grad_(False)
    frozen = EmpiricalNTK(model, sketch=None)
    assert torch.allclose(frozen.features(x), exact[:, 36:], atol=1e-14)
    assert relative(frozen.gram(x), exact[:, 36:] @ exact[:, 36:].T) <= 1e-12
    with pytest.raises(ValueError, match=r"'0\.weight' has only frozen"):
        EmpiricalNTK(model, layers=["0.weight"])
    with pytest.raises(ValueError, match="'nope' is no module"):
        EmpiricalNTK(model, layers=["nope"])
    with pytest.raises(ValueError, match='expected None, "last"'):
        EmpiricalNTK(model, layers="0")


def test_a_model_may_be_trained_and_cast_between_calls(small) -> None:
    model, x = small
    ntk = EmpiricalNTK(model, dim=128)
    before = ntk.features(x)
    model.double()
    assert relative(ntk.features(x).float(), before) < 1e-5
    with torch.no_grad():
        model[4].weight.mul_(2)
    assert torch.equal(ntk.features(x), EmpiricalNTK(model, dim=128).features(x))


def test_half_precision_models(small) -> None:
    model, x = small
    expected = EmpiricalNTK(model, dim=512).gram(x)
    for dtype in (torch.bfloat16, torch.float16):
        ntk = EmpiricalNTK(copy.deepcopy(model).to(dtype), dim=512)
        assert ntk.features(x).dtype == torch.float32
        assert relative(ntk.gram(x), expected) < 0.05
        assert ntk.outputs(x).dtype == torch.float32


def test_wrapped_models(small) -> None:
    model, x = small
    expected = EmpiricalNTK(model, dim=256).features(x)
    assert torch.equal(EmpiricalNTK(nn.DataParallel(model), dim=256).features(x), expected)
    assert torch.equal(EmpiricalNTK(torch.compile(model), dim=256).features(x), expected)
    with pytest.raises(TypeError, match="TorchScript"):
        EmpiricalNTK(torch.jit.trace(model.eval(), x))


def snapshot(model):
    return {
        "parameters": {
            n: (p.detach().clone(), p.requires_grad, p._version)
            for n, p in model.named_parameters()
        },
        "grads": {n: p.grad for n, p in model.named_parameters()},
        "buffers": {n: b.clone() for n, b in model.named_buffers()},
        "flags": [m.training for m in model.modules()],
        "hooks": [
            [len(getattr(m, h)) for h in vars(m) if "hooks" in h and getattr(m, h) is not None]
            for m in model.modules()
        ],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "rng": torch.get_rng_state(),
        "grad_enabled": torch.is_grad_enabled(),
    }


def assert_unchanged(model, before) -> None:
    after = snapshot(model)
    for key in ("flags", "hooks", "attributes", "grad_enabled"):
        assert after[key] == before[key], key
    assert torch.equal(after["rng"], before["rng"])
    for n, (p, requires_grad, version) in before["parameters"].items():
        q, q_requires_grad, q_version = after["parameters"][n]
        assert torch.equal(p, q) and requires_grad == q_requires_grad and version == q_version
        assert after["grads"][n] is before["grads"][n]
    assert all(torch.equal(after["buffers"][n], b) for n, b in before["buffers"].items())


class Interrupting(nn.Module):
    """Draws random numbers, and raises after some calls."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.first = inner, nn.Linear(3, 3)
        self.calls_left = [10**9]
        self.error: type[BaseException] = KeyboardInterrupt

    def forward(self, x):
        self.calls_left[0] -= 1
        if self.calls_left[0] < 0:
            raise self.error("stop")
        torch.rand(3)
        return self.inner(self.first(x))


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_model_state_survives_success_failure_and_interruption(mode, tmp_path) -> None:
    model = Interrupting(Attention()).float()
    model.train(mode != "eval")
    if mode == "mixed":
        model.inner.layer.eval()
    model.inner.head.bias.requires_grad_(False)
    model.inner.head.weight.grad = torch.ones_like(model.inner.head.weight)
    model.inner.head.register_forward_hook(lambda *_: None)
    x = torch.randn(24, 4, 3)
    before = snapshot(model)
    ntk = EmpiricalNTK(model, dim=64, memory_budget=20_000)
    for call in (
        ntk.features,
        ntk.gram,
        ntk.outputs,
        lambda z: ntk.features(z, out=tmp_path / "f.npy"),
    ):
        with torch.no_grad():
            call(x)
        assert_unchanged(model, before)
        for error in (KeyboardInterrupt, RuntimeError):
            for calls in (0, 1, 4):
                model.error, model.calls_left[0] = error, calls
                with pytest.raises(error):
                    call(x)
                model.calls_left[0] = 10**9
                assert_unchanged(model, before)
    with torch.inference_mode():
        z = torch.randn(4, 4, 3)
        ntk.features(z)
    assert [p.name for p in tmp_path.iterdir()] == ["f.npy"]


class Poisoned(nn.Module):
    """Outputs finite, but the gradient of one layer is not: sqrt at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)

    def forward(self, x):
        return self.b(torch.sqrt(self.a(x).abs()))


def test_values_that_are_not_finite_are_located(small) -> None:
    model, x = small
    bad = x.clone()
    bad[7] = float("nan")
    for call in (
        EmpiricalNTK(model).features,
        EmpiricalNTK(model).gram,
        EmpiricalNTK(model).outputs,
    ):
        with pytest.raises(ValueError, match=r"outputs are not finite .* at point 7"):
            call(bad)
    with pytest.raises(ValueError, match=r"outputs are not finite .* at point 7"):
        EmpiricalNTK(model, memory_budget=1).features(bad)
    z = torch.ones(5, 2)
    z[3] = 0
    for call in (EmpiricalNTK(Poisoned()).features, EmpiricalNTK(Poisoned(), memory_budget=1).gram):
        with pytest.raises(
            ValueError, match=r"gradients are not finite .* at point 3 of X1?: parameters a\.weight"
        ):
            call(z)
        with pytest.raises(ValueError, match=r"gradients are not finite .* at point 0 of X1?"):
            call(z[3:])


def test_bad_arguments_are_refused(small) -> None:
    model, x = small
    for keyword, value, message in (
        ("outputs", "mean", 'expected "sum"'),
        ("outputs", True, 'expected "sum"'),
        ("sketch", "dense", "sketch is 'dense'"),
        ("dim", 0, "positive int"),
        ("dim", 2.5, "positive int"),
        ("draws", 0, "positive int"),
        ("draws", 2, 'needs outputs="random"'),
        ("seed", -1, ">= 0"),
        ("memory_budget", 0, "positive int"),
        ("layers", [], "layers is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            EmpiricalNTK(model, **{keyword: value})
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        EmpiricalNTK(lambda z: z)
    with pytest.raises(ValueError, match="no trainable parameters"):
        EmpiricalNTK(nn.ReLU())
    with pytest.raises(ValueError, match="no trainable parameters"):
        EmpiricalNTK(copy.deepcopy(model).requires_grad_(False))
    with pytest.raises(ValueError, match="not initialised"):
        EmpiricalNTK(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="outputs=10 but the model has 10"):
        EmpiricalNTK(model, 10).features(x)
    ntk = EmpiricalNTK(model)
    with pytest.raises(ValueError, match="X is empty"):
        ntk.features(x[:0])
    with pytest.raises(TypeError, match="X is a tuple"):
        ntk.features((x, x))
    with pytest.raises(TypeError, match="X is a str"):
        ntk.features("images")
    with pytest.raises(TypeError, match="dtype object"):
        ntk.features(np.array([None, 1]))
    with pytest.raises(ValueError, match=r"shape \(\)"):
        ntk.features(torch.tensor(1.0))
    with pytest.raises(ValueError, match="shuffles"):
        ntk.features(DataLoader(TensorDataset(x), shuffle=True))
    with pytest.raises(ValueError, match="drop_last"):
        ntk.features(DataLoader(TensorDataset(x), batch_size=5, drop_last=True))
    with pytest.raises(ValueError, match=r"exact features of 12 points need .* bytes .*sketch"):
        EmpiricalNTK(model, sketch=None, memory_budget=1000).features(x)


def test_the_budget_follows_the_memory_of_a_gpu(small, monkeypatch) -> None:
    free, reserved, allocated, share = 78 << 30, 0, 0, 1.0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    said = "get_per_process_memory_fraction"
    monkeypatch.setattr(torch.cuda, said, lambda device: share, raising=False)
    gpu, cpu = torch.device("cuda", 1), torch.device("cpu")
    assert automatic_budget(cpu) == 2 << 30
    assert automatic_budget(gpu) == 32 << 30  # the power of two below 39 GiB
    free, reserved, allocated = 16 << 30, 60 << 30, 2 << 30  # most of it is kept by torch, unused
    assert automatic_budget(gpu) == 32 << 30
    share = 0.25  # of 80 GiB, of which 2 are taken
    assert automatic_budget(gpu) == 8 << 30
    share = 0.01
    assert automatic_budget(gpu) == 1
    free, reserved, share = 3 << 30, 2 << 30, 1.0
    assert automatic_budget(gpu) == 1 << 30
    # A model that lies there, as far as anybody is asked.
    model, x = small
    ntk = EmpiricalNTK(model, sketch=None)
    assert ntk.memory_budget == 2 << 30
    with monkeypatch.context() as patch:
        patch.setattr(EmpiricalNTK, "_device", gpu)
        assert ntk.memory_budget == 1 << 30
        assert EmpiricalNTK(model, memory_budget=5000).memory_budget == 5000
    monkeypatch.setattr("ntkfast.ntk.automatic_budget", lambda device: 1000)
    with pytest.raises(ValueError, match="memory_budget=1000"):
        ntk.features(x)
    ntk.memory_budget = 1 << 30
    ntk.features(x)
    with pytest.raises(ValueError, match="memory_budget is 0; expected a positive int"):
        ntk.memory_budget = 0
    assert ntk.memory_budget == 1 << 30


@pytest.mark.parametrize("what", ["gram", "features"])
def test_the_budget_is_what_the_result_leaves(small, monkeypatch, what) -> None:
    """It falls while a call allocates, and what is divided by it must fit together."""
    model, x = small
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    asked: list[int] = []

    def budget(device):
        asked.append(0)
        return 1 << 31 if len(asked) == 1 else 1  # once the result is there

    whole = getattr(EmpiricalNTK(model), what)(x)
    assert max(sizes) == 12
    monkeypatch.setattr("ntkfast.ntk.automatic_budget", budget)
    ntk = EmpiricalNTK(model)
    sizes.clear()
    assert torch.allclose(getattr(ntk, what)(x), whole, rtol=1e-4, atol=1e-5)
    assert len(asked) == 2 and max(sizes) < 12


@pytest.mark.parametrize("outputs", ["sum", "full"])
def test_blocks_of_the_matrix_are_within_the_budget(outputs, monkeypatch) -> None:
    model, x = nn.Linear(2, 2), torch.randn(300, 2)
    expected = EmpiricalNTK(model, outputs).gram(x)
    store, sizes = GramWork._store, []

    def counted(self, block, i, j):
        sizes.append(block.numel() * block.itemsize)
        store(self, block, i, j)

    monkeypatch.setattr(GramWork, "_store", counted)
    # Factors of all points take less than half of it.
    found = EmpiricalNTK(model, outputs, memory_budget=160_000).gram(x)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert 30_000 < max(sizes) <= 40_000


class Returns(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.layer, self.make = nn.Linear(4, 3), make

    def forward(self, x):
        return self.make(self.layer(x))


def test_models_that_return_something_else_are_refused() -> None:
    x = torch.randn(6, 4)
    for make, error, message in (
        (lambda y: (y, y), TypeError, "returned a tuple; expected one tensor"),
        (lambda y: {"logits": y}, TypeError, "returned a dict"),
        (lambda y: y[:, None, :].expand(-1, 2, 3), ValueError, "returned shape"),
        (lambda y: y.sum(), ValueError, "returned shape"),
        (lambda y: y.argmax(1), TypeError, "floating-point"),
    ):
        for method in ("features", "gram", "outputs"):
            with pytest.raises(error, match=message):
                getattr(EmpiricalNTK(Returns(make)), method)(x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_models_take_inputs_from_the_host(small) -> None:
    model, x = small
    expected = EmpiricalNTK(model, dim=512)
    ntk = EmpiricalNTK(copy.deepcopy(model).cuda(), dim=512)
    features = ntk.features(x)
    assert features.is_cuda
    assert relative(features.cpu(), expected.features(x)) < 1e-2
    assert isinstance(ntk.gram(x.numpy()), np.ndarray)
