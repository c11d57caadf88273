"""Layer rules and contractions: random architectures against literal Jacobians."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from ntk_networks import literal_jacobian, networks, output_weights  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from ntkfast._ntk import capture, contract, gram, layers, rules  # noqa: E402
from ntkfast._ntk.replica import isolated  # noqa: E402
from ntkfast._ntk.sketch import CountSketch  # noqa: E402
from ntkfast.ntk import EmpiricalNTK  # noqa: E402

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class Residual(nn.Module):
    """x + f(x), in place; the same layer twice."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        y = self.inner(torch.tanh(self.inner(x)))
        y += x
        return y


class Tokens(nn.Module):
    """(N, C, *space) -> (N, T, C), a Linear changed in place, LayerNorm or RMSNorm, a head."""

    def __init__(self, channels: int, norm: type[nn.Module], k: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(channels, 5), norm(5, eps=0.1)
        self.head = nn.Linear(5, k)

    def forward(self, x):
        x = self.norm(F.relu_(self.linear(x.flatten(2).transpose(1, 2))))
        return self.head(x).mean(1)


def randomise(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for own, parameter in module._parameters.items():
            if parameter is not None and own == "weight" and parameter.ndim == 1:
                nn.init.uniform_(parameter, 0.5, 2)
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@st.composite
def convolutional_networks(draw):
    torch.manual_seed(draw(st.integers(0, 2**31)))
    d = draw(st.integers(1, 3))
    channels = 4
    modules: list[nn.Module] = []
    small = st.integers(1, 2)

    def axes(strategy):
        return tuple(draw(strategy) for _ in range(d))

    for _ in range(draw(st.integers(1, 4))):
        kind = draw(
            st.sampled_from(["conv", "same", "transposed", "batch", "group", "instance", "prelu"])
        )
        groups = draw(st.sampled_from([1, 2, 4]))
        out = draw(st.sampled_from([4, 8]))
        bias = draw(st.booleans())
        if kind == "conv":
            kernel = axes(st.integers(1, 3))
            dilation = axes(small)
            # As much padding as the window reaches, so that no axis becomes empty.
            padding = tuple(
                (k - 1) * t // 2 + (k - 1) * t % 2 for k, t in zip(kernel, dilation, strict=True)
            )
            mode = draw(st.sampled_from(["zeros", "replicate", "circular"]))
            if mode == "circular":
                padding = tuple(min(p, 1) for p in padding)
                kernel, dilation = tuple(min(k, 2) for k in kernel), (1,) * d
            modules.append(
                CONV[d](channels, out, kernel, axes(small), padding, dilation, groups, bias, mode)
            )
            channels = out
        elif kind == "same":
            kernel = axes(st.integers(1, 3))
            modules.append(CONV[d](channels, out, kernel, padding="same", groups=groups, bias=bias))
            channels = out
        elif kind == "transposed":
            stride = axes(small)
            modules.append(
                TRANSPOSED[d](
                    channels,
                    out,
                    axes(st.integers(1, 3)),
                    stride,
                    output_padding=tuple(draw(st.integers(0, s - 1)) for s in stride),
                    dilation=axes(small),
                    groups=groups,
                    bias=bias,
                )
            )
            channels = out
        elif kind == "batch":
            modules.append(BATCH_NORM[d](channels))
        elif kind == "group":
            modules.append(nn.GroupNorm(groups, channels, eps=0.1))
        elif kind == "instance":
            modules.append(INSTANCE_NORM[d](channels, eps=0.1, affine=True))
        else:
            modules.append(nn.PReLU(draw(st.sampled_from([1, channels]))))
        if draw(st.booleans()):
            modules.append(draw(st.sampled_from([nn.ReLU(inplace=True), nn.Tanh()])))
    if draw(st.booleans()):
        modules.append(Residual(CONV[d](channels, channels, 3, padding=1)))
    norm = draw(st.sampled_from([nn.LayerNorm, getattr(nn, "RMSNorm", nn.LayerNorm)]))
    modules.append(Tokens(channels, norm, draw(st.integers(1, 3))))
    space = {1: (7,), 2: (4, 5), 3: (3, 2, 4)}[d]
    return randomise(nn.Sequential(*modules)).double(), torch.randn(
        4, 4, *space, dtype=torch.float64
    )


def relative(a, b) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def plan_of(ntk, x):
    with isolated(ntk._net, torch.device("cpu")) as net:
        return ntk._prepare(net, ntk._inputs(x, "X")).plan


def check(model, x, kind, monkeypatch) -> None:
    with torch.no_grad():
        k = model.eval()(x).reshape(len(x), -1).shape[1]
    J = literal_jacobian(model, x, output_weights(kind, k)).flatten(0, 1)
    features = EmpiricalNTK(model, kind, sketch=None).features(x)
    assert relative(features, J) <= 1e-10
    K, scale = J @ J.T, len(J) // len(x)
    ntk = EmpiricalNTK(model, kind)
    assert relative(ntk.gram(x), K) <= 1e-10
    # Every contraction, whatever the counted costs would choose.
    for ghost in (0.0, 1e30):
        with monkeypatch.context() as patch:
            patch.setattr(contract, "costs", lambda *_, ghost=ghost: (1.0, ghost))
            for module in (capture, gram):
                patch.setattr(module, "keeps_factors", lambda sites: True)
            assert relative(ntk.gram(x), K) <= 1e-10
            assert relative(ntk.gram(x[:1], x), K[:scale]) <= 1e-10


FIXTURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@given(network=convolutional_networks(), kind=st.sampled_from(["sum", "full"]))
@settings(max_examples=20, deadline=None, suppress_health_check=FIXTURE)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_random_convolutional_networks(network, kind, monkeypatch) -> None:
    model, x = network
    check(model, x, kind, monkeypatch)


@pytest.mark.parametrize("kind", ["sum", "full"])
@pytest.mark.parametrize("name", ["text", "attention", "tied", "functional", "resnet"])
def test_every_contraction_of_other_networks(name, kind, monkeypatch) -> None:
    model, x = networks()[name]
    check(model, x, kind, monkeypatch)


@pytest.mark.parametrize("size", [13, 20])
def test_convolutions_of_many_positions(size, monkeypatch) -> None:
    # 169 and 400 positions: on both sides of the switch to one library call per sample.
    monkeypatch.setattr(layers, "_DIRECT_CONVOLUTION_WORK", 0)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=1, padding=1, padding_mode="reflect"),
        nn.Tanh(),
        nn.Conv2d(6, 4, (3, 1), padding=(2, 0), dilation=(2, 1)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
    check(model, torch.randn(3, 2, size, size, dtype=torch.float64), "full", monkeypatch)


@pytest.mark.parametrize("kind", ["sum", "full"])
@pytest.mark.parametrize("name", ["conv", "resnet", "attention"])
def test_small_tiles_of_gradients(name, kind, monkeypatch) -> None:
    for tile, value in (("_TILE", 64), ("_FORMED_ROWS", 2), ("_FORMED_COLUMNS", 4)):
        monkeypatch.setattr(contract, tile, value)
    model, x = networks()[name]
    check(model, x, kind, monkeypatch)


def test_all_parameters_of_known_layers_go_by_rule() -> None:
    for name in (
        "mlp",
        "conv",
        "resnet",
        "text",
        "attention",
        "sequence_first",
        "one_logit",
        "dict",
    ):
        model, x = networks()[name]
        ntk = EmpiricalNTK(model)
        assert not plan_of(ntk, x).fallback, name


class Windows(nn.Module):
    """Frames folded into the batch axis, as video and window-attention models do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.embed, self.mix = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        n, frames = x.shape[:2]
        x = torch.tanh(self.norm(self.conv(x.flatten(0, 1)))).mean((2, 3))
        return self.mix(torch.tanh(self.embed(x)).view(n, frames, -1).mean(1))


def test_axes_folded_into_the_batch_are_positions(monkeypatch) -> None:
    torch.manual_seed(0)
    model, x = randomise(Windows()).double(), torch.randn(4, 3, 2, 4, 4, dtype=torch.float64)
    check(model, x, "full", monkeypatch)
    ntk = EmpiricalNTK(model)
    assert not plan_of(ntk, x).fallback


class Distances(nn.Module):
    """A prototype that little depends on, beside a layer that much does."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.b = nn.Parameter(torch.randn(1, 6)), nn.Linear(6, 2)

    def forward(self, x):
        return self.b(x) + 1e-3 * torch.exp(-torch.cdist(x, self.p))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_combinations_under_vmap(dtype) -> None:
    """In torch 2.13 vmap of jacrev gives the gradient of torch.cdist at another point."""
    torch.manual_seed(0)
    model, x = Distances().to(dtype), torch.randn(7, 6, dtype=dtype)
    ntk = EmpiricalNTK(model, "full", sketch=None)
    plan, found = plan_of(ntk, x), ntk.features(x).double()
    assert list(plan.fallback) == ["p"] and plan.vectorised
    J = literal_jacobian(model.double(), x.double(), output_weights("full", 2)).flatten(0, 1)
    assert relative(found[:, :6], J[:, :6]) <= (1e-5 if dtype == torch.float32 else 1e-12)
    assert relative(found, J) <= (1e-6 if dtype == torch.float32 else 1e-12)


def test_a_wrong_batching_rule_is_seen_however_little_depends_on_it(monkeypatch) -> None:
    torch.manual_seed(0)
    model, x = Distances(), torch.randn(7, 6)
    right = capture.functional.vectorised

    def wrong(*arguments):
        return {name: value.roll(1, 0) for name, value in right(*arguments).items()}

    monkeypatch.setattr(capture.functional, "vectorised", wrong)
    ntk = EmpiricalNTK(model, sketch=None)
    assert not plan_of(ntk, x).vectorised
    found = ntk.features(x).double()
    J = literal_jacobian(model.double(), x.double(), output_weights("sum", 2))[:, 0]
    assert relative(found[:, :6], J[:, :6]) <= 1e-5


def test_a_model_that_takes_one_point_only_is_refused_by_name() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x):
            return self.a(x.T.contiguous().view(1, 3))

    x = torch.randn(1, 3)
    for call in (EmpiricalNTK(Alone()).features, EmpiricalNTK(Alone()).outputs):
        with pytest.raises(RuntimeError, match=r"takes some .* fails with one of 2 points"):
            call(x)


class Picky(nn.Module):
    """Fails with batches of some lengths, or changes in place what it needs, for some points."""

    def __init__(self, what) -> None:
        super().__init__()
        self.what, self.a = what, nn.Linear(3, 2)

    def forward(self, x):
        if self.what != "in place" and len(x) in self.what:
            raise ValueError("not so many")
        y = self.a(x).tanh()
        return y.mul_(2) if self.what == "in place" and len(x) == 4 else y * 2


@pytest.mark.parametrize("lengths", [(2,), (3,)])
def test_models_that_refuse_some_lengths_are_refused_by_name(lengths) -> None:
    for call in (EmpiricalNTK(Picky(lengths)).features, EmpiricalNTK(Picky(lengths)).gram):
        with pytest.raises(RuntimeError, match=rf"fails with one of {lengths[0]} points .*so many"):
            call(torch.randn(4, 3))


def test_a_backward_pass_that_torch_refuses_is_explained() -> None:
    with pytest.raises(RuntimeError, match=r"batch of 4 points: it changes in place what the"):
        EmpiricalNTK(Picky("in place")).features(torch.randn(4, 3))


class Branching(nn.Module):
    """Control flow that looks at the data: vmap refuses it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(3))
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        if float(x.detach().abs().sum()) < 0:
            return self.b(x)
        return self.b(torch.tanh(self.a(torch.maximum(x, self.scale))))


def test_models_vmap_cannot_run_fall_back_to_one_point_at_a_time(monkeypatch) -> None:
    model, x = Branching().double(), torch.randn(5, 3, dtype=torch.float64)
    check(model, x, "full", monkeypatch)
    plan = plan_of(EmpiricalNTK(model), x)
    assert list(plan.fallback) == ["scale"] and not plan.vectorised


class Sparse(nn.Module):
    """An expert used only by some points, and another never."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.expert, self.never = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        y = self.head(x)
        chosen = x[:, 0] > 0
        if bool(chosen.any()):
            y = y + self.expert(x) * chosen[:, None]
        return y


def test_layers_used_by_some_batches_only() -> None:
    model = Sparse().double()
    x = torch.randn(9, 3, dtype=torch.float64)
    x[:4, 0] = -1
    x[4:, 0] = 1
    J = literal_jacobian(model, x, output_weights("sum", 2))[:, 0]
    for budget in (1, 5000, 2**31):
        ntk = EmpiricalNTK(model, sketch=None, memory_budget=budget)
        if budget > 1:
            assert relative(ntk.features(x), J) <= 1e-12
        assert relative(ntk.gram(x), J @ J.T) <= 1e-12


class Coupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(30, 2)

    def forward(self, x):
        return self.layer(x - x.mean(0))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(30, 2)

    def forward(self, x):
        return self.layer(F.dropout(x, 0.5, training=True))


def test_models_without_a_kernel_are_refused() -> None:
    x = torch.randn(8, 30)
    for model, why in ((Coupled(), "depend on the other points"), (Noisy(), "random numbers")):
        for method in ("features", "gram"):
            with pytest.raises(ValueError, match=why):
                getattr(EmpiricalNTK(model), method)(x)
    norm = nn.Sequential(nn.BatchNorm1d(30, track_running_stats=False), nn.Linear(30, 2))
    with pytest.raises(ValueError, match=r"BatchNorm|more than 1 value per channel"):
        EmpiricalNTK(norm).features(x)
    with pytest.raises(ValueError, match="max_norm"):
        EmpiricalNTK(nn.Sequential(nn.Embedding(4, 3, max_norm=1.0), nn.Linear(3, 2)))


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(30, 2)

    @torch.no_grad()
    def forward(self, x):
        return self.layer(x)


def test_models_that_hide_their_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match="as far as autograd can see"):
        EmpiricalNTK(Detached()).features(torch.randn(4, 30))


class Doubled(nn.Linear):
    """A subclass that computes something else, with the parent's function."""

    def forward(self, x):
        return super().forward(x) * 2


def test_subclasses_and_computed_weights_go_by_rule(monkeypatch) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(Doubled(3, 4), nn.Tanh(), normed, nn.Tanh(), nn.Linear(4, 2)).double()
    check(model, x, "full", monkeypatch)
    assert not plan_of(EmpiricalNTK(model), x).fallback


class Attending(nn.Module):
    def __init__(self, need_weights, batch_first, mask, padding, cross=False, **options) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=batch_first, **options)
        self.embed, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.need_weights, self.mask, self.padding, self.cross = need_weights, mask, padding, cross

    def forward(self, x):
        n, length = x.shape[:2]
        padding = x[..., 0] > 1 if self.padding else None
        if padding is not None:
            padding = padding & (torch.arange(length) > 0)
        x = self.embed(x)
        if not self.attention.batch_first:
            x = x.transpose(0, 1)
        y = torch.tanh(x) if self.cross else x
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        if self.mask == "float":
            mask = torch.where(mask, -3.0, 0.5).double()
        if self.mask == "heads":
            mask = mask.expand(2 * n, length, length)
        if self.mask is None:
            mask = None
        if padding is not None and mask is not None and mask.dtype != torch.bool:
            padding = torch.zeros(padding.shape, dtype=x.dtype).masked_fill(padding, -torch.inf)
        x, weights = self.attention(
            y, x, x, key_padding_mask=padding, attn_mask=mask, need_weights=self.need_weights
        )
        if weights is not None:
            x = x + weights.square().mean()
        if not self.attention.batch_first:
            x = x.transpose(0, 1)
        return self.head(x.mean(1))


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("mask", [None, "bool", "float", "heads"])
@pytest.mark.parametrize("padding", [False, True])
def test_self_attention(need_weights, batch_first, mask, padding, monkeypatch) -> None:
    torch.manual_seed(0)
    model = Attending(False, batch_first, mask, padding, bias=need_weights).double()
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    check(model, x, "sum", monkeypatch)
    assert "attention.in_proj_weight" not in plan_of(EmpiricalNTK(model), x).fallback
    assert "forward" not in vars(model.attention)


class Weights(Attending):
    def forward(self, x):
        y = self.embed(x)
        y, weights = self.attention(y, y, y, average_attn_weights=False)
        return self.head(y.mean(1)) + weights.square().mean((2, 3))


@pytest.mark.parametrize("kind", ["weights", "cross", "kdim", "bias_kv", "zero_attn"])
def test_other_attention(kind, monkeypatch) -> None:
    torch.manual_seed(0)
    options = {
        "kdim": {"kdim": 6, "vdim": 6},
        "bias_kv": {"add_bias_kv": True},
        "zero_attn": {"add_zero_attn": True},
    }.get(kind, {})
    arguments = (False, True, None, False, kind == "cross")
    network = Weights if kind == "weights" else Attending
    model = network(*arguments, **options).double()
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    check(model, x, "sum", monkeypatch)
    assert not plan_of(EmpiricalNTK(model), x).fallback


class Positions(nn.Module):
    """Free parameters with a first axis of one: added, concatenated, and as a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.added = nn.Parameter(torch.randn(1, 4, 3))
        self.token = nn.Parameter(torch.randn(1, 1, 3))
        self.weight = nn.Parameter(torch.randn(1, 3))
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x + self.added], 1)
        return self.head(torch.tanh(x).mean(1) @ self.weight.T.expand(3, 3))


def test_free_parameters_go_by_rule(monkeypatch) -> None:
    model, x = Positions().double(), torch.randn(5, 4, 3, dtype=torch.float64)
    check(model, x, "full", monkeypatch)
    assert not plan_of(EmpiricalNTK(model), x).fallback


class Tabular(nn.Module):
    """Position embeddings in the ways of BERT and GPT, and a column of categories."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.words, self.places = nn.Embedding(9, 3), nn.Embedding(6, 3)
        self.category, self.head = nn.Embedding(9, 3), nn.Linear(3, 2)

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1])
        x = self.words(tokens)
        if self.way == "gpt":
            x = x + self.places(places)
        elif self.way == "bert":
            x = x + self.places(places[None])
        elif self.way == "unsqueezed":
            x = x + self.places(places).unsqueeze(0)
        else:
            x = x + self.places(places).sum(0)
        return self.head(torch.tanh(x).mean(1) + self.category(tokens[:, 0]))


@pytest.mark.parametrize("way", ["gpt", "bert", "unsqueezed", "summed"])
@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_position_embeddings(way, n, monkeypatch) -> None:
    torch.manual_seed(0)
    model, tokens = Tabular(way).double(), torch.randint(0, 9, (n, 4))
    check(model, tokens, "full", monkeypatch)
    assert not plan_of(EmpiricalNTK(model), tokens).fallback


class Normalised(nn.Module):
    """A function without a rule before an InstanceNorm, which vmap gets wrong for two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(3))
        self.norm, self.head = nn.InstanceNorm1d(3, eps=0.1, affine=True), nn.Linear(12, 2)

    def forward(self, x):
        x = self.norm(torch.maximum(x, self.scale[:, None]))
        return self.head(torch.tanh(x).flatten(1))


def test_what_vmap_gets_wrong_is_done_one_point_at_a_time(monkeypatch) -> None:
    torch.manual_seed(0)
    model, x = Normalised().double(), torch.randn(4, 3, 4, dtype=torch.float64)
    check(model, x, "full", monkeypatch)
    assert list(plan_of(EmpiricalNTK(model, "full"), x).fallback) == ["scale"]


def test_hooks_of_the_user_that_change_outputs_are_respected(monkeypatch) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    model[0].register_forward_hook(lambda module, args, output: output * 3)
    model[1].register_forward_pre_hook(lambda module, args: (torch.tanh(args[0]),))
    check(model, torch.randn(4, 3, dtype=torch.float64), "full", monkeypatch)


def test_a_rule_that_is_wrong_is_caught_by_the_self_check(monkeypatch) -> None:
    model, x = networks()["mlp"]
    rule = rules.linear_rule

    def wrong(use, x, delta, dtype):
        parts = rule(use, x, delta, dtype)
        return {**parts, "bias": parts["bias"] * 1.001}

    monkeypatch.setattr(rules, "linear_rule", wrong)
    ntk = EmpiricalNTK(model)
    plan = plan_of(ntk, x)
    assert sorted(plan.fallback) == ["0.bias", "2.bias"]
    assert all("disagrees with autograd" in reason for reason in plan.fallback.values())

    def ones(net, chosen, batch, weights, pairs=False):
        return {n: torch.ones(len(batch), len(weights), *p.shape) for n, p in chosen.items()}

    monkeypatch.setattr(capture.functional, "vectorised", ones)
    # A wrong vmap: one point at a time instead.
    assert not plan_of(EmpiricalNTK(model), x).vectorised
    J = literal_jacobian(model, x, output_weights("sum", 3))[:, 0]
    assert relative(EmpiricalNTK(model).gram(x), J @ J.T) <= 1e-10
    monkeypatch.setattr(capture.functional, "one_by_one", ones)
    with pytest.raises(RuntimeError, match=r"self-check failed: gradients of '0\.bias'"):
        EmpiricalNTK(model).features(x)


def test_explain_names_rules_fallbacks_and_costs() -> None:
    model, x = networks()["attention"]
    text = str(EmpiricalNTK(model).explain(x))
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert "linear 24x8" in lines["layer.self_attn.in_proj_weight"]
    assert "linear 12x8" in lines["layer.linear1.weight"]
    assert "5" in lines["layer.linear1.weight"].split()
    assert "ghost" in lines["head.weight"]
    assert "Gram matrix of 1000 points" in text
    assert repr(EmpiricalNTK(model).explain(x)) == text
    model, x = Branching().double(), torch.randn(5, 3, dtype=torch.float64)
    text = str(EmpiricalNTK(model).explain(x))
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert "torch.func: it reaches the outputs through MaximumBackward0" in lines["scale"]


@pytest.mark.parametrize("outputs", ["sum", "random", "full"])
@pytest.mark.parametrize("name", sorted(networks()))
def test_compiled_contractions_are_the_torch_ones(name, outputs, monkeypatch) -> None:
    """Features and Gram matrices with the operations of the CPU, and as other devices take them."""
    model, x = networks()[name]
    draws = 2 if outputs == "random" else 1
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        ntk = EmpiricalNTK(model.to(dtype), outputs, draws=draws, dim=100)
        parts = x if isinstance(x, dict) else {"": x}
        parts = {k: v.to(dtype) if v.is_floating_point() else v for k, v in parts.items()}
        point = parts if isinstance(x, dict) else parts[""]
        compiled = ntk.features(point), ntk.gram(point)
        with monkeypatch.context() as patch:
            patch.setattr(contract, "contractions", lambda value: None)
            patch.setattr(CountSketch, "add", CountSketch.add_by_runs)
            reference = ntk.features(point), ntk.gram(point)
        for found, expected in zip(compiled, reference, strict=True):
            assert (found - expected).norm() <= tolerance * expected.norm()


def test_tables_of_positions_are_kept() -> None:
    cpu = torch.device("cpu")
    found = layers._places(cpu, (2, 3, 1), (100, 7, 5))
    assert found.tolist() == [0, 7, 14, 100, 107, 114]
    assert layers._places(cpu, [2, 3, 1], (100, 7, 5)) is found
    assert layers._places(cpu, (4,), (1,)).tolist() == [0, 1, 2, 3]
    assert layers._places(cpu, (0, 3), (9, 1)).tolist() == []
