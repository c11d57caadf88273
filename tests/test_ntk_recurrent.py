"""Recurrent layers: their gates spelled out are the layers, and rules give their gradients."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

from ntk_networks import literal_jacobian, output_weights  # noqa: E402
from recorded import check, record  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402
from torch.nn.utils.rnn import (  # noqa: E402
    PackedSequence,
    pack_padded_sequence,
    pad_packed_sequence,
)

from ntkfast._ntk.record import Recorder  # noqa: E402
from ntkfast.ntk import EmpiricalNTK  # noqa: E402

N, T, D, H = 4, 5, 3, 4
LENGTHS = torch.tensor([2, 5, 1, 4])


class Reader(nn.Module):
    """Everything a recurrent layer returns, in a head that no two outputs enter alike."""

    def __init__(self, kind, packed: bool, state: bool, **options) -> None:
        super().__init__()
        self.layer = kind(D, H, **options)
        self.packed, self.lstm = packed, kind is nn.LSTM
        width = self.layer.proj_size or H
        directions = 2 if self.layer.bidirectional else 1
        self.count = self.layer.num_layers * directions
        if state:
            self.h0, self.c0 = nn.Linear(D, self.count * width), nn.Linear(D, self.count * H)
        finals = self.count * (width + H * self.lstm)
        self.head = nn.Linear(width * directions + finals, 2)

    def start(self, x):
        if not hasattr(self, "h0"):
            return None
        h, c = (
            layer(x[:, 0]).reshape(len(x), self.count, -1).transpose(0, 1).contiguous()
            for layer in (self.h0, self.c0)
        )
        return (h, c) if self.lstm else h

    def forward(self, x, lengths):
        y = x if self.layer.batch_first else x.transpose(0, 1)
        first = self.layer.batch_first
        if self.packed:
            y = pack_padded_sequence(y, lengths, batch_first=first, enforce_sorted=False)
        y, finals = self.layer(y, self.start(x))
        if self.packed:
            assert isinstance(y, PackedSequence)
            y, _ = pad_packed_sequence(y, batch_first=first, total_length=T)
        if not first:
            y = y.transpose(0, 1)
        y = (y * torch.arange(1, T + 1)[:, None]).cos().sum(1)
        finals = [f.transpose(0, 1).flatten(1) for f in (finals if self.lstm else [finals])]
        return self.head(torch.cat([y, *finals], 1).sin())


def inputs() -> dict:
    return {"x": torch.randn(N, T, D, dtype=torch.float64), "lengths": LENGTHS}


KINDS = {
    "lstm": (nn.LSTM, {}),
    "lstm_projected": (nn.LSTM, {"proj_size": 2}),
    "gru": (nn.GRU, {}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_layers(kind, packed, bias) -> None:
    torch.manual_seed(0)
    layer, options = KINDS[kind]
    for state, first, layers, both in itertools.product((False, True), repeat=4):
        if (state + first + layers + both + bias) % 2:
            continue  # every half of them: any four of the five options in all ways
        network = Reader(
            layer,
            packed,
            state,
            batch_first=first,
            num_layers=1 + layers,
            bidirectional=both,
            bias=bias,
            dropout=0.5 * layers,
            **options,
        )
        names = {use.what for use in (record(network.double().eval(), inputs())[1]).uses}
        assert names == {layer(1, 1).mode.lower(), "linear"} or kind in ("tanh", "relu")
        check(network, inputs())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind, bias) -> None:
    class Loop(nn.Module):
        """A cell called step by step, from a start that is learned."""

        def __init__(self) -> None:
            super().__init__()
            self.cell, self.start = kind(D, H, bias=bias), nn.Parameter(torch.randn(1, H))
            self.head = nn.Linear(H, 2)

        def forward(self, x):
            h = self.start.expand(len(x), -1)
            state = (h, h.sin()) if kind is nn.LSTMCell else h
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
            return self.head(state[0] if kind is nn.LSTMCell else state)

    torch.manual_seed(0)
    unseen = ("start",) if kind is nn.LSTMCell else ()
    check(Loop().double(), inputs()["x"], unseen=unseen)


@pytest.mark.parametrize("way", ["expanded", "contiguous", "repeated"])
def test_learned_start(way) -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(D, H, 2, batch_first=True)
            self.start = nn.Parameter(torch.randn(2, 1, H))
            self.head = nn.Linear(H, 2)

        def forward(self, x):
            start = self.start.expand(-1, len(x), -1)
            start = start.contiguous() if way == "contiguous" else start
            start = self.start.repeat(1, len(x), 1) if way == "repeated" else start
            return self.head(self.layer(x, start)[0].sum(1))

    torch.manual_seed(0)
    check(Learned().double(), inputs()["x"])


def test_sequences_without_a_batch_axis() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(D, 2)

        def forward(self, x):
            return torch.stack([self.layer(one)[0][-1] for one in x])

    torch.manual_seed(0)
    check(Alone().double(), inputs()["x"])


def test_with_dropout_the_layer_runs_as_it_is() -> None:
    torch.manual_seed(0)
    layer, x = nn.GRU(D, H, 2, dropout=0.5).double(), inputs()["x"]
    torch.manual_seed(1)
    expected = layer(x)[0]
    torch.manual_seed(1)
    chosen = dict(layer.named_parameters())
    with Recorder(chosen) as recorder:
        output = layer(x)[0]
    assert torch.equal(output, expected)
    assert set(recorder.unseen(output)) == set(chosen)


def test_weights_that_are_computed() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(D, H, batch_first=True)
            self.layer = parametrizations.weight_norm(self.layer, "weight_hh_l0")
            self.head = nn.Linear(H, 2)

        def forward(self, x):
            return self.head(self.layer(x)[0].sum(1))

    torch.manual_seed(0)
    check(Normed().double(), inputs()["x"])


def test_parameters_chosen_in_part() -> None:
    for frozen in ("ih", "hh", "weight", "bias"):
        for kind in (nn.LSTM, nn.GRU):
            torch.manual_seed(0)
            network = Reader(kind, True, False).double()
            for name, p in network.layer.named_parameters():
                p.requires_grad_(frozen not in name)
            check(network, inputs())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_features_of_recurrent_networks(kind, packed) -> None:
    torch.manual_seed(0)
    layer, options = KINDS[kind]
    network = Reader(layer, packed, True, batch_first=True, bidirectional=True, **options).double()
    x = inputs()
    ntk = EmpiricalNTK(network, sketch=None)
    expected = literal_jacobian(network, x, output_weights("sum", 2))[:, 0]
    assert (ntk.features(x) - expected).norm() <= 1e-10 * expected.norm()
    gram = expected @ expected.T
    assert (ntk.gram(x) - gram).norm() <= 1e-10 * gram.norm()
    assert "none by torch.func" in str(ntk.explain(x))
