"""Drawn architectures against literal Jacobians: sequences in float64, everything in float32."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from ntk_networks import literal_jacobian, output_weights  # noqa: E402
from test_ntk_layers import convolutional_networks  # noqa: E402
from torch import nn  # noqa: E402

from ntkfast.ntk import EmpiricalNTK  # noqa: E402

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
WIDTH, LENGTH, VOCABULARY = 4, 5, 9


class Scale(nn.Module):
    """A free parameter, with an axis for the points or without."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(*shape))

    def forward(self, x):
        return x * (1 + 0.3 * self.value)


class Along(nn.Module):
    """A convolution along the tokens."""

    def __init__(self, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, kernel, padding="same", groups=groups)

    def forward(self, x):
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, heads: int, batch_first: bool, causal: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, heads, batch_first=batch_first)
        self.batch_first = batch_first
        self.mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1) if causal else None

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0]
        return y if self.batch_first else y.transpose(0, 1)


class Sequence(nn.Module):
    """Tokens or vectors, blocks with residual sums (some blocks twice), a pooled head."""

    def __init__(self, words, places, blocks, order, pool, k, tied) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0) if words else None
        self.places = nn.Embedding(LENGTH, WIDTH) if places else None
        self.blocks, self.order, self.pool = nn.ModuleList(blocks), order, pool
        self.head = nn.Linear(WIDTH, k)
        if tied and words:
            self.decoder = nn.Linear(WIDTH, VOCABULARY, bias=False)
            self.decoder.weight = self.words.weight
            self.head = nn.Linear(VOCABULARY, k)

    def forward(self, x):
        if self.words is not None:
            x = self.words(x)
        if self.places is not None:
            x = x + self.places(torch.arange(LENGTH))
        for i in self.order:
            x = x + torch.tanh(self.blocks[i](x))
        x = x.mean(1) if self.pool == "mean" else x[:, -1]
        if hasattr(self, "decoder"):
            x = torch.tanh(self.decoder(x))
        return self.head(x)


KINDS = ("linear", "mlp", "norm", "rms", "attention", "encoder", "along", "scale", "free")


def block(kind: str, bias: bool, first: bool, heads: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(WIDTH, WIDTH, bias=bias)
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(WIDTH, 7), nn.ReLU(inplace=first), nn.Linear(7, WIDTH, bias=bias)
        )
    if kind == "norm":
        return nn.LayerNorm(WIDTH, eps=0.1)
    if kind == "rms":
        return getattr(nn, "RMSNorm", nn.LayerNorm)(WIDTH, eps=0.1)
    if kind == "attention":
        return Attention(heads, first, bias)
    if kind == "encoder":
        return nn.TransformerEncoderLayer(
            WIDTH, heads, 6, batch_first=True, norm_first=first, layer_norm_eps=0.1
        )
    if kind == "along":
        return Along(3 if first else 1, heads)
    return Scale(WIDTH) if kind == "scale" else Scale(1, LENGTH, WIDTH)


@st.composite
def sequences(draw):
    torch.manual_seed(draw(st.integers(0, 2**31)))
    blocks = [
        block(
            draw(st.sampled_from(KINDS)),
            draw(st.booleans()),
            draw(st.booleans()),
            draw(st.sampled_from([1, 2])),
        )
        for _ in range(draw(st.integers(1, 4)))
    ]
    used = st.integers(0, len(blocks) - 1)
    order = list(range(len(blocks))) + ([draw(used)] if draw(st.booleans()) else [])
    words = draw(st.booleans())
    model = Sequence(
        words,
        draw(st.booleans()),
        blocks,
        order,
        draw(st.sampled_from(["mean", "last"])),
        draw(st.integers(1, 3)),
        draw(st.booleans()),
    ).double()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    n = draw(st.integers(2, 5))
    if words:
        return model, torch.randint(0, VOCABULARY, (n, LENGTH))
    return model, torch.randn(n, LENGTH, WIDTH, dtype=torch.float64)


def relative(a, b) -> float:
    return float((a.double() - b).norm() / b.norm().clamp_min(1e-300))


def check(model, x, kind, dtype, tolerance) -> None:
    with torch.no_grad():
        k = copy.deepcopy(model).eval()(x).shape[1]
    J = literal_jacobian(model, x, output_weights(kind, k)).flatten(0, 1)
    scale = len(J) // len(x)
    ntk = EmpiricalNTK(copy.deepcopy(model).to(dtype), kind, sketch=None)
    y = x.to(dtype) if x.is_floating_point() else x
    assert relative(ntk.features(y), J) <= tolerance
    assert relative(ntk.gram(y), J @ J.T) <= tolerance
    assert relative(ntk.gram(y[:1], y), J[:scale] @ J.T) <= tolerance
    dim = 2 * scale * ntk.n_parameters
    for sketch in ("sparse", "auto"):
        whole = EmpiricalNTK(ntk.model, kind, sketch=sketch, dim=dim, relative_error=1e-9)
        features = whole.features(y)
        assert relative(features @ features.T, J @ J.T) <= tolerance


@given(network=sequences(), kind=st.sampled_from(["sum", "full"]))
@settings(max_examples=20, deadline=None, suppress_health_check=SLOW)
def test_random_sequence_networks(network, kind) -> None:
    check(*network, kind, torch.float64, 1e-10)


@given(network=st.one_of(sequences(), convolutional_networks()), kind=st.sampled_from(["sum"]))
@settings(max_examples=20, deadline=None, suppress_health_check=SLOW)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_random_networks_in_float32(network, kind) -> None:
    check(*network, kind, torch.float32, 1e-5)
