"""Recurrent layers with their gates in the open.

``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` hand all their weights to one fused function. Where a
:class:`~.record.Recorder` meets it, the loop over time is spelled out here: the inputs of all
steps go through one product, and every step has one product with its hidden state. The two linear
maps of a layer and direction are then recorded once each, with all steps as positions.

Sequences are kept in the layout they come in: (T, N, *), (N, T, *), or packed, where rows are
sorted by time and there are fewer of them at later times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from .record import Recorder


@dataclass
class Layout:
    """How steps lie in a tensor: along axis `time`, or one after the other with these `sizes`."""

    time: int
    sizes: list[int]
    packed: bool

    def steps(self, value: Tensor) -> Sequence[Tensor]:
        return torch.split(value, self.sizes) if self.packed else value.unbind(self.time)

    def join(self, steps: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(steps)) if self.packed else torch.stack(list(steps), self.time)


@dataclass
class Weights:
    """Of one layer and direction."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    hr: Tensor | None

    def tracked(self, recorder: Recorder) -> bool:
        values = (self.ih, self.hh, self.bias_ih, self.bias_hh, self.hr)
        return any(recorder.find(value) is not None for value in values)


def _direction(
    recorder: Recorder,
    kind: str,
    x: Tensor,
    layout: Layout,
    state: list[Tensor],
    w: Weights,
    reverse: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Run one layer in one direction; return its outputs and final states."""
    find, leaf = recorder.find, recorder.leaf
    is_gru = kind == "gru"
    bias = leaf(w.bias_ih)
    if not is_gru and w.bias_hh is not None:
        bias = leaf(w.bias_hh) if bias is None else bias + leaf(w.bias_hh)
    inputs = F.linear(x, leaf(w.ih), bias)
    if not inputs.requires_grad:
        inputs.requires_grad_()
    inputs = recorder.record_linear(kind, inputs, x, find(w.ih), find(w.bias_ih))
    hidden = inputs
    if is_gru:
        # The candidate has the hidden product inside another one: its gradient is of its own.
        hidden = (
            inputs.new_zeros(inputs.shape)
            if w.bias_hh is None
            else (leaf(w.bias_hh).expand(inputs.shape).clone())
        )
        if not hidden.requires_grad:
            hidden.requires_grad_()
    projected = None
    if w.hr is not None:
        shape = (*inputs.shape[:-1], w.hr.shape[0])
        projected = inputs.new_zeros(shape, requires_grad=True)
    before, middle, after, final = _loop(
        kind, layout, inputs, hidden, projected, leaf(w.hh), leaf(w.hr), state, reverse
    )
    outputs = layout.join(after)
    if find(w.hh) is not None or find(w.bias_hh) is not None:
        with torch.no_grad():
            previous = layout.join(before)
        recorder.record_linear(kind, hidden, previous, find(w.hh), find(w.bias_hh))
    if projected is not None and find(w.hr) is not None:
        with torch.no_grad():
            mixed = layout.join(middle)
        recorder.record_linear(kind, projected, mixed, find(w.hr), None)
    return outputs, final


def _loop(
    kind: str,
    layout: Layout,
    inputs: Tensor,
    hidden: Tensor,
    projected: Tensor | None,
    hh: Tensor,
    hr: Tensor | None,
    state: list[Tensor],
    reverse: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Return the states before every step, before the projection, after it, and the last ones."""
    step, sizes = _STEPS[kind], layout.sizes
    transposed, transposed_hr = hh.t(), None if hr is None else hr.t()
    steps = range(len(sizes))
    gates = layout.steps(inputs)
    other = layout.steps(hidden) if hidden is not inputs else gates
    taps = layout.steps(projected) if projected is not None else None
    before: list[Tensor] = [inputs] * len(sizes)
    middle, after = list(before), list(before)
    ended: list[list[Tensor]] = []
    start = state
    count = sizes[-1] if reverse else sizes[0]
    if reverse and len(start[0]) != count:
        state = [s[:count] for s in state]
    for t in reversed(steps) if reverse else steps:
        size = sizes[t]
        if size < count:  # sequences that end here
            ended.append([s[size:] for s in state])
            state = [s[:size] for s in state]
        elif size > count:  # sequences that begin here, seen from their ends
            state = [torch.cat([s, s0[count:size]]) for s, s0 in zip(state, start, strict=True)]
        count = size
        before[t] = state[0]
        state = step(gates[t], other[t], state, transposed)
        if taps is not None:
            assert transposed_hr is not None
            middle[t] = state[0]
            state = [torch.addmm(taps[t], state[0], transposed_hr), *state[1:]]
        after[t] = state[0]
    if ended:
        parts = [state, *reversed(ended)]
        state = [torch.cat(list(p)) for p in zip(*parts, strict=True)]
    return before, middle, after, state


def _lstm_step(gates: Tensor, _: Tensor, state: list[Tensor], hh: Tensor) -> list[Tensor]:
    i, f, g, o = torch.addmm(gates, state[0], hh).chunk(4, 1)
    c = torch.addcmul(f.sigmoid() * state[1], i.sigmoid(), g.tanh())
    return [o.sigmoid() * c.tanh(), c]


def _gru_step(gates: Tensor, hidden: Tensor, state: list[Tensor], hh: Tensor) -> list[Tensor]:
    width = state[0].shape[1]
    x_gates, x_new = torch.split(gates, [2 * width, width], 1)
    h_gates, h_new = torch.split(torch.addmm(hidden, state[0], hh), [2 * width, width], 1)
    r, z = (x_gates + h_gates).sigmoid().chunk(2, 1)
    return [torch.lerp(torch.addcmul(x_new, r, h_new).tanh(), state[0], z)]


def _tanh_step(gates: Tensor, _: Tensor, state: list[Tensor], hh: Tensor) -> list[Tensor]:
    return [torch.addmm(gates, state[0], hh).tanh()]


def _relu_step(gates: Tensor, _: Tensor, state: list[Tensor], hh: Tensor) -> list[Tensor]:
    return [torch.addmm(gates, state[0], hh).relu()]


_STEPS: dict[str, Callable[[Tensor, Tensor, list[Tensor], Tensor], list[Tensor]]] = {
    "lstm": _lstm_step,
    "gru": _gru_step,
    "rnn_tanh": _tanh_step,
    "rnn_relu": _relu_step,
}


def _weights(flat: Sequence[Tensor], biases: bool, directions: int, layers: int) -> list[Weights]:
    each = len(flat) // (directions * layers)
    result = []
    for start in range(0, len(flat), each):
        ih, hh, *rest = flat[start : start + each]
        bias_ih, bias_hh = (rest[0], rest[1]) if biases else (None, None)
        hr = rest[2 * biases] if len(rest) > 2 * biases else None
        result.append(Weights(ih, hh, bias_ih, bias_hh, hr))
    return result


def _rounds_otherwise() -> bool:
    """Whether autocast is on: it rounds inside a fused layer where it does not in these steps."""
    return torch._C._is_any_autocast_enabled()


def _network(kind: str) -> Callable[..., Any]:
    def network(recorder: Recorder, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As ``torch.lstm``, ``gru``, ``rnn_tanh`` and ``rnn_relu``, padded and packed.

        (input, hx, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first) or
        (data, batch_sizes, hx, weights, has_biases, num_layers, dropout, train, bidirectional).
        """
        if kwargs or len(args) != 8 or _rounds_otherwise():
            return NotImplemented
        packed = isinstance(args[2], list | tuple)
        if packed:
            sizes, hx, flat, biases, layers, dropout, train, bidirectional = args
            layout = Layout(0, sizes.tolist(), True)
        else:
            hx, flat, biases, layers, dropout, train, bidirectional, batch_first = args
            time = 1 if batch_first else 0
            layout = Layout(time, [input.shape[1 - time]] * input.shape[time], False)
        if (train and dropout > 0) or not layout.sizes or layout.sizes[-1] == 0:
            return NotImplemented
        directions = 2 if bidirectional else 1
        weights = _weights(flat, biases, directions, layers)
        if not any(w.tracked(recorder) for w in weights):
            return NotImplemented
        states = [recorder.data(s) for s in ([hx] if isinstance(hx, Tensor) else hx)]
        x = recorder.data(input)
        finals: list[list[Tensor]] = []
        for layer in range(layers):
            outputs = []
            for direction in range(directions):
                place = layer * directions + direction
                start = [s[place] for s in states]
                y, final = _direction(
                    recorder, kind, x, layout, start, weights[place], direction == 1
                )
                outputs.append(y)
                finals.append(final)
            x = torch.cat(outputs, -1) if bidirectional else outputs[0]
        return (x, *(torch.stack(list(s)) for s in zip(*finals, strict=True)))

    return network


def _cell(kind: str) -> Callable[..., Any]:
    def cell(
        recorder: Recorder,
        input: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        """As ``torch.lstm_cell``, ``gru_cell``, ``rnn_tanh_cell`` and ``rnn_relu_cell``."""
        if _rounds_otherwise():
            return NotImplemented
        state = [recorder.data(s) for s in ([hx] if isinstance(hx, Tensor) else hx)]
        if not Weights(w_ih, w_hh, b_ih, b_hh, None).tracked(recorder) or input.ndim != 2:
            return NotImplemented
        gates = recorder.linear(recorder.data(input), w_ih, b_ih)
        hidden = recorder.linear(state[0], w_hh, b_hh)
        if kind == "lstm":
            i, f, g, o = (gates + hidden).chunk(4, 1)
            c = torch.addcmul(f.sigmoid() * state[1], i.sigmoid(), g.tanh())
            return o.sigmoid() * c.tanh(), c
        if kind == "gru":
            (xr, xz, xn), (hr, hz, hn) = gates.chunk(3, 1), hidden.chunk(3, 1)
            new = torch.addcmul(xn, (xr + hr).sigmoid(), hn).tanh()
            return torch.lerp(new, state[0], (xz + hz).sigmoid())
        total = gates + hidden
        return total.tanh() if kind == "rnn_tanh" else total.relu()

    return cell


HANDLERS: dict[Callable[..., Any], Callable[..., Any]] = {
    **{getattr(torch, kind): _network(kind) for kind in _STEPS},
    **{getattr(torch, f"{kind}_cell"): _cell(kind) for kind in _STEPS},
}
