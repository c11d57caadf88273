"""Per-sample gradients of a batch: one recorded forward pass, one backward pass.

The forward pass runs under a `Recorder`, which keeps the input and the place in the autograd graph
of every operation that uses a parameter, and under a `Trace`, which tells whether rows can have
moved since the last batch. The backward pass gives the gradient of every recorded output. Whose
rows these are is measured (`owners`), and the rules of `layers` make gradients of parameters of
them. What no rule covers in a batch is taken by `functional` in that batch.

Whatever is new (another sequence of operations than before) is compared with plain autograd.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from . import contract, functional
from .inputs import Batch, batch_length, concatenate, leaves, map_batch, take
from .layers import Dense, Site, Unsupported
from .owners import Owners, agree, extend, find_owners, merge, narrowest, revived, scales
from .record import Recorder, Use, stand_in
from .replica import PLAIN
from .trace import Trace

Gradient: TypeAlias = "list[Site] | Dense"
"""Per-sample gradients of one parameter: the calls of its layer, or (n, R, p)."""

_Sample: TypeAlias = "tuple[int, list[Any], list[Owners]]"
"""Number of points of a pass, its numbers, owners of the rows of its uses."""

# Relative error of a parameter's gradient from which a check fails. A wrong rule is wrong in its
# first digit; these only have to exceed rounding (and TF32 on a GPU).
_GRADIENT_ERROR = {
    torch.float64: 1e-8,
    torch.float32: 1e-2,
    torch.bfloat16: 0.3,
    torch.float16: 0.3,
}
# That of torch.func's gradient of a point, relative to the parameter's own: a miss costs time only.
_VMAP_ERROR = {
    torch.float64: 1e-8,
    torch.float32: 1e-3,
    torch.bfloat16: 0.3,
    torch.float16: 0.1,
}
# Rounding of a gradient, relative to that of a combination of outputs that does not cancel.
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
# Relative difference of outputs that different companions of a point may make.
_OUTPUT_ERROR = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 0.1, torch.float16: 0.02}
_OUTPUT_ERROR_ON_GPU = {**_OUTPUT_ERROR, torch.float32: 1e-2}

# Batches, counted by a plan, whose owners are measured though they are known.
_MEASURED_AGAIN = frozenset(2 * 10**i for i in range(1, 10))

# Passes whose owners are kept.
_KEPT = 256

# Points of the first look at a network; the second is at more.
_FIRST = 2
_FEW = 3

_COMPANY = (
    "the model's outputs for a point depend on the other points of its batch (for example "
    "BatchNorm without running statistics, or the nested tensors of nn.TransformerEncoder, which "
    "enable_nested_tensor=False avoids), on what it was called with before, or on random numbers; "
    "its tangent kernel is not defined"
)


@dataclass
class Plan:
    """What is known of a network, and learnt from batch to batch of one call.

    Attributes
    ----------
    parameters : dict
        Full name -> chosen parameter, which all replicas share.
    state : list of Tensor
        Tensors of the network: what its outputs depend on beside the input.
    fresh : callable
        Makes a replica that has never been called, for checks: a network may remember calls.
    leaves : dict
        Full name -> what stands for a parameter in recorded passes.
    fallback : dict
        Full name -> why torch.func takes this parameter, as of the last batch.
    vectorised : bool
        Whether vmap can run the model; one point at a time otherwise.
    compared : set of str
        Parameters for which vmap was compared with autograd.
    pairs : bool, optional
        Whether the network needs two points at a time; None until that matters.
    precision : torch.dtype
        Narrowest type of the gradients of the last batch: autocast mixes them.
    renews : bool
        Whether a replica keeps what it computes of parameters, and can be used once only.
    largest : int
        Number of points of the largest batch so far.
    spare : Module, optional
        A replica for evaluations.
    activation_bytes : float
        Activations and output gradients alive in the forward and backward pass of one point.
    resident_bytes : float
        What a Gram panel keeps of one point.
    """

    parameters: dict[str, nn.Parameter]
    state: list[Tensor]
    fresh: Callable[[], nn.Module]
    leaves: dict[str, Tensor] = field(default_factory=dict)
    fallback: dict[str, str] = field(default_factory=dict)
    vectorised: bool = True
    compared: set[str] = field(default_factory=set)
    pairs: bool | None = None
    precision: torch.dtype = torch.float64
    activation_bytes: float = 0.0
    resident_bytes: float = 0.0
    owners: dict[Hashable, list[Owners]] = field(default_factory=dict)
    samples: dict[int, list[_Sample]] = field(default_factory=dict)
    rejected: dict[int, dict[str, str]] = field(default_factory=dict)
    moving: str = ""
    renews: bool = False
    n_batches: int = 0
    n_moving: int = 0
    largest: int = 0
    spare: nn.Module | None = None

    def copy(self, net: nn.Module | None = None) -> Plan:
        """Return the plan with all that is known of a network, for another replica of it."""
        return replace(
            self,
            state=[] if net is None else _state(net),
            spare=None,
            leaves=dict(self.leaves),
            fallback=dict(self.fallback),
            compared=set(self.compared),
            owners=dict(self.owners),
            samples={kind: list(samples) for kind, samples in self.samples.items()},
            rejected={kind: dict(names) for kind, names in self.rejected.items()},
        )

    def known(self, trace: Trace, uses: Sequence[Use], n: int) -> list[Owners] | None:
        """Return the owners of the rows of a pass, if passes before tell them."""
        if trace.moving:
            return None
        found = self.owners.get(trace.exact)
        if found is None:
            found = self._extended(trace, uses, n)
            if found is not None:
                self.owners[trace.exact] = found
        elif not all(one.lasts for one in found) or (
            # Of so few points, rows that all share may look like an axis of them by chance.
            n <= _FEW and self._extended(trace, uses, n) is None
        ):
            return None
        return found if found is not None and len(found) == len(uses) else None

    def _extended(self, trace: Trace, uses: Sequence[Use], n: int) -> list[Owners] | None:
        """Owners as passes with two other numbers of points have them.

        They must have done the same operations with numbers that are linear in the number of
        points, none of which places rows by numbers.
        """
        samples = self.samples.get(trace.kind, [])
        if len(samples) < 2 or not trace.uniform:
            return None
        (a, x, first), (b, y, second) = samples
        if not len(x) == len(y) == len(trace.numbers) or not len(first) == len(second) == len(uses):
            return None
        for p, q, r in zip(x, y, trace.numbers, strict=True):
            if p == q == r:
                continue
            if not (isinstance(p, int) and isinstance(q, int) and isinstance(r, int)):
                return None
            if (r - p) * (b - a) != (q - p) * (n - a):
                return None
        result = []
        for use, one, other in zip(uses, first, second, strict=True):
            owners = extend(one, other, n, _count(use))
            if owners is None:
                return None
            result.append(owners)
        return result

    def keep(self, trace: Trace, owners: list[Owners], n: int) -> None:
        """Remember the owners of the rows of a pass, unless the next may move them."""
        if trace.moving:
            return
        self.owners[trace.exact] = owners
        if len(self.owners) > _KEPT:
            self.owners.pop(next(iter(self.owners)))
        samples = self.samples.setdefault(trace.kind, [])
        if trace.uniform and len(samples) < 2 and all(s[0] != n for s in samples):
            samples.append((n, trace.numbers, owners))

    def is_new(self, trace: Trace) -> bool:
        """Whether a batch is to be checked: of a new kind, or one of ever fewer that move rows."""
        if trace.kind not in self.rejected:
            return True
        return bool(trace.moving) and self.n_moving & (self.n_moving - 1) == 0


def gradients(
    net: nn.Module, plan: Plan, batch: Batch, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Gradient]]:
    """Return the outputs (n, k) of a batch and the per-sample gradients of every parameter.

    A parameter that the batch does not use is missing from the result. `weights` (R, k) are the
    combinations of outputs that gradients are taken of.

    Raises
    ------
    ValueError
        When the model draws random numbers, or rows depend on each other.
    RuntimeError
        When even the fallback disagrees with autograd.
    """
    if batch_length(batch) == 1:  # some networks drop an axis of length one
        outputs, pair = gradients(net, plan, concatenate([batch, batch]), weights, dtype)
        return outputs[:1], {name: _first(gradient) for name, gradient in pair.items()}
    result, anew = None, False
    while result is None:
        try:
            result = _attempt(net, plan, batch, weights, dtype, anew)
            anew = True
        except RuntimeError as error:
            if "modified by an inplace operation" in str(error):
                raise RuntimeError(
                    f"torch cannot take the gradients of the model for a batch of "
                    f"{batch_length(batch)} points: it changes in place what the backward pass "
                    f"needs ({error})"
                ) from error
            if "backward through the graph a second time" not in str(error):
                raise
            if plan.renews:
                raise RuntimeError(
                    "the model keeps tensors computed from parameters from call to call, where "
                    "copies of it find them (in a functools cache, say): switch that off"
                ) from error
            plan.renews = True  # kept in the replica
    return result


def _first(gradient: Gradient) -> Gradient:
    if isinstance(gradient, Tensor):
        return gradient[:1]
    return [replace(site, x=site.x[:1], delta=site.delta[:1]) for site in gradient]


def _attempt(
    net: nn.Module, plan: Plan, batch: Batch, weights: Tensor, dtype: torch.dtype, anew: bool
) -> tuple[Tensor, dict[str, Gradient]] | None:
    """Take the gradients of a batch; None if owners known from before turn out not to suffice."""
    n = batch_length(batch)
    if plan.renews:
        net = plan.fresh()
    ours = {id(p) for p in plan.parameters.values()}
    if not plan.leaves:
        plan.leaves.update({name: stand_in(p) for name, p in plan.parameters.items()})
    constants = [t for t in plan.state if id(t) not in ours]
    recorder = Recorder(plan.parameters, constants, plan.leaves)
    trace = Trace(plan.state, n)
    chance = _generators()
    with trace, recorder:
        outputs = functional.checked_outputs(functional.call(net, batch), n)
    trace.check_outputs(outputs)
    _refuse_chance(chance)
    if recorder.escaped:
        trace.note_escape()
    if recorder.reentrant:
        raise ValueError(
            "the model uses torch.utils.checkpoint with use_reentrant=True, whose parameters "
            "autograd finds in .backward() only: use_reentrant=False computes the same"
        )
    uses = recorder.uses
    if not outputs.requires_grad:
        return outputs.detach(), {}
    plan.moving = plan.moving or trace.moving
    plan.n_moving += bool(trace.moving)
    known = plan.known(trace, uses, n)
    plan.n_batches += 1
    # Now and then what is known is measured all the same.
    again = known is not None and plan.n_batches in _MEASURED_AGAIN
    measured = None if anew or again else known
    unseen = recorder.unseen(outputs)
    rows = weights.to(outputs.dtype)
    deltas = _backward(recorder, outputs, rows, keep_graph=measured is None)
    plan.precision = narrowest({outputs.dtype, *trace.types})
    if measured is None:
        measured = _measure(recorder, outputs, deltas, rows, n, plan.precision)
        if known is not None:
            if not all(map(agree, known, measured)):
                raise RuntimeError(
                    "the self-check failed: rows of points are in another order than in a batch "
                    "before, and no operation shows why (the model may place them outside of "
                    "torch): give all points in one batch (one tensor instead of a loader, a "
                    "larger memory_budget)"
                )
            measured = [merge(old, new) for old, new in zip(known, measured, strict=True)]
        plan.keep(trace, measured, n)
    elif any(
        _revived(use, delta, own, plan.precision)
        for use, delta, own in zip(uses, deltas, measured, strict=True)
    ):
        return None
    refused = {name: f"it reaches the outputs through {op}" for name, op in unseen.items()}
    refused |= plan.rejected.get(trace.kind, {})
    result = _by_rule(uses, deltas, measured, refused, n, dtype)
    del deltas, recorder
    new = plan.is_new(trace)
    outputs = outputs.detach()
    _fall_back(net, plan, batch, outputs, weights, list(refused), result, dtype)
    if new:
        _check_company(
            plan.fresh(), batch, outputs, plan.precision, repeats=8 if trace.seeded else 1
        )
        rejected = _check(net, plan, batch, outputs, weights, refused, result, dtype)
        if rejected is not None:
            plan.rejected.setdefault(trace.kind, {}).update(rejected)
            refused |= rejected
    if trace.moving or trace.joins or n > plan.largest:
        plan.largest = max(n, plan.largest)
        _check_half(plan, batch, outputs)
    plan.fallback = refused
    return outputs, result


def _generators() -> tuple[Any, ...]:
    """States of the global generators of Python and NumPy."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return random.getstate(), state[1].tobytes(), state[2]


def _backward(
    recorder: Recorder,
    outputs: Tensor,
    rows: Tensor,
    *,
    keep_graph: bool,
    scale: Tensor | None = None,
) -> list[Tensor | None]:
    """Gradients (R, *shape) of the output of every use, for rows (R, k) of output weights.

    Gradients of parameters are never formed, and ``.grad`` is not touched.
    """
    if not recorder.uses:
        return []
    deltas: list[list[Tensor]] = [[] for _ in recorder.uses]
    for r, row in enumerate(rows):
        seed = row.expand_as(outputs)
        if scale is not None:
            seed = seed * scale[:, None]
        found = recorder.backward(outputs, seed, keep_graph=keep_graph or r + 1 < len(rows))
        for collected, gradient in zip(deltas, found, strict=True):
            if gradient is not None:
                collected.append(gradient)
    return [
        None if not d else torch.stack(d) if len(d) > 1 else d[0][None]  # no copy of a single one
        for d in deltas
    ]


def _rows(use: Use, delta: Tensor) -> Tensor:
    """(P, F): a gradient of shape ``use.shape``, by rows that may belong to different points."""
    moved = delta.movedim(use.axes, tuple(range(len(use.axes))))
    count = _count(use)
    return moved.reshape(count, delta.numel() // max(1, count))


def _count(use: Use) -> int:
    count = 1
    for axis in use.axes:
        count *= use.shape[axis]
    return count


def _measure(
    recorder: Recorder,
    outputs: Tensor,
    deltas: list[Tensor | None],
    rows: Tensor,
    n: int,
    precision: torch.dtype,
) -> list[Owners]:
    """Find whose the rows of every use are, by backward passes with the points weighted."""
    if len(rows) > 1:
        # One combination of all, so that what any of them depends on has a gradient.
        generator = torch.Generator().manual_seed(len(rows))
        mixed = torch.rand((1, len(rows)), generator=generator, dtype=torch.float64) + 0.5
        rows = mixed.to(rows) @ rows
        deltas = _backward(recorder, outputs, rows, keep_graph=True)
    points = [s.to(outputs.device, outputs.dtype) for s in scales(n, precision)]
    passes = [_backward(recorder, outputs, rows, keep_graph=True, scale=s) for s in points]
    result = []
    for i, use in enumerate(recorder.uses):
        delta = deltas[i]
        if delta is None:
            nobody = torch.full((_count(use),), -1, dtype=torch.int64, device=outputs.device)
            everyone = torch.arange(_count(use), device=outputs.device)
            result.append(Owners(nobody, n, dead=everyone))
            continue
        scaled = []
        for found in passes:
            one = found[i]
            assert one is not None
            scaled.append(_rows(use, one[0]))
        result.append(find_owners(_rows(use, delta[0]), scaled, points, precision))
    return result


def _revived(use: Use, delta: Tensor | None, owners: Owners, precision: torch.dtype) -> bool:
    if delta is None or (owners.dead is None and owners.rounding is None):
        return False
    if owners.nothing:
        return bool(delta.any())
    return any(revived(_rows(use, d), owners, precision) for d in delta)


def _by_rule(
    uses: Sequence[Use],
    deltas: Sequence[Tensor | None],
    owners: Sequence[Owners],
    refused: dict[str, str],
    n: int,
    dtype: torch.dtype,
) -> dict[str, Gradient]:
    """Gradients by the rules of the recorded operations; says in `refused` whose there are none."""
    result: dict[str, list[Site | Dense]] = {}
    for use, delta, own in zip(uses, deltas, owners, strict=True):
        if delta is None or own.nothing or use.names <= refused.keys():
            continue
        reason = ""
        if own.shared:
            reason = "several points share a row of it"
        elif use.changed:
            reason = "its input is changed in place after the call"
        else:
            try:
                parts = use.gradients(*_arranged(use, delta, own), dtype)
            except Unsupported as error:
                reason = str(error)
        if reason:
            refused |= {name: refused.get(name, reason) for name in use.names}
            continue
        for name, part in parts.items():
            result.setdefault(name, []).append(part)
    return {name: _joined(parts, n, dtype) for name, parts in result.items() if name not in refused}


def _arranged(use: Use, delta: Tensor, own: Owners) -> tuple[Tensor | None, Tensor]:
    """Input (n, q, ...) and gradient (n, R, q, ...) of a use, point by point."""
    places, count = tuple(range(len(use.axes))), _count(use)
    x = use.x
    if x is not None:
        moved = x if use.axes == places else x.movedim(use.axes, places)
        x = own.arrange(moved.reshape(count, *moved.shape[len(places) :]), 0)
    if use.axes != places:
        delta = delta.movedim(tuple(a + 1 for a in use.axes), tuple(p + 1 for p in places))
    delta = delta.reshape(len(delta), count, *delta.shape[len(places) + 1 :])
    return x, own.clear_padding(own.arrange(delta, 1)).transpose(0, 1)


def _joined(parts: list[Site | Dense], n: int, dtype: torch.dtype) -> Gradient:
    """Sum the gradients of all uses of a parameter: as factors, if they are of one kind."""
    sites = [part for part in parts if isinstance(part, Site)]
    if len(sites) == len(parts) and all(_alike(site, sites[0]) for site in sites):
        return sites
    total: Tensor | None = None
    for part in parts:
        value = contract.dense([part], n, dtype) if isinstance(part, Site) else part
        total = value if total is None else total + value
    assert total is not None
    return total


def _alike(a: Site, b: Site) -> bool:
    return type(a) is type(b) and (a.rows, a.size, a.groups) == (b.rows, b.size, b.groups)


def _fall_back(
    net: nn.Module,
    plan: Plan,
    batch: Batch,
    outputs: Tensor,
    weights: Tensor,
    names: Sequence[str],
    result: dict[str, Gradient],
    dtype: torch.dtype,
) -> None:
    """Put in the gradients that no rule gives."""
    if not names:
        return
    if plan.pairs is None:
        plan.pairs = not _stands_alone(net, batch, outputs, plan.precision)
    for name, value in by_fallback(net, plan, batch, names, weights).items():
        result[name] = value.detach().to(dtype).reshape(*value.shape[:2], -1)


def by_fallback(
    net: nn.Module, plan: Plan, batch: Batch, names: Sequence[str], weights: Tensor
) -> dict[str, Tensor]:
    """Return the gradients (n, R, *shape) of parameters without any rule."""
    pairs = bool(plan.pairs)
    wanted = {name: plan.parameters[name] for name in names}
    if plan.vectorised:
        try:
            found = functional.vectorised(net, wanted, batch, weights, pairs)
            if _vmap_is_right(net, plan, batch, wanted, weights, found):
                return found
        except (RuntimeError, NotImplementedError, ValueError):
            # vmap refuses in-place updates of captured tensors, control flow that looks at the
            # data, and more. If the cause was another, one_by_one raises it again.
            pass
        plan.vectorised = False
    return functional.one_by_one(net, wanted, batch, weights, pairs)


def _vmap_is_right(
    net: nn.Module,
    plan: Plan,
    batch: Batch,
    wanted: dict[str, nn.Parameter],
    weights: Tensor,
    found: dict[str, Tensor],
) -> bool:
    """Compare two points of each parameter's first batch with plain autograd.

    Batching rules of vmap can be wrong without a word, for parameters whose share of the gradient
    is too small for the check of a batch, in float32, to see it.
    """
    if wanted.keys() <= plan.compared:
        return True
    some = [0, batch_length(batch) - 1]
    expected = functional.one_by_one(net, wanted, take(batch, some), weights, bool(plan.pairs))
    norms = {name: _norm(value) for name, value in expected.items()}
    total = math.hypot(*norms.values())
    for name, value in expected.items():
        error = _norm(found[name][some] - value)
        # (NaN is reported by those who know where the points come from.)
        if error > _VMAP_ERROR[plan.precision] * (norms[name] + 1e-4 * total):
            return False
    plan.compared |= {name for name, norm in norms.items() if norm > 0}
    return True


def _stands_alone(net: nn.Module, batch: Batch, outputs: Tensor, precision: torch.dtype) -> bool:
    """Whether the network does with a single point what it does with a batch."""
    try:
        alone = functional.checked_outputs(functional.call(net, take(batch, slice(0, 1))), 1)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return _close(alone, outputs[:1], precision)


def _check_company(
    net: nn.Module, batch: Batch, outputs: Tensor, precision: torch.dtype, repeats: int
) -> None:
    """Raise a ValueError if outputs of points change with the other points of their batch.

    Points are jittered where they are made of floating-point numbers: equal ones are no company.
    """
    n = batch_length(batch)
    some = [0, n - 1] if n < 4 else [0, n // 3, (2 * n) // 3, n - 1]
    few = _jittered(take(batch, some))
    expected = None
    if few is not None:
        # It fails where numbers stand for something else.
        with contextlib.suppress(RuntimeError, ValueError, IndexError):
            expected = functional.evaluate_only(net, few)
        if expected is not None and not bool(torch.isfinite(expected).all()):
            expected = None
    if few is None or expected is None:
        few, expected = take(batch, some), outputs[some]
    # First in the same company again: a network may remember what it was called with. Then with
    # copies of one point alone, which no largest or nearest of others can replace.
    groups = [list(range(len(some)))] * repeats
    groups += [[0, 0, 0], [1, 0], [1, 1]] if len(some) == 2 else [[1, 0, 1], [3, 2, 3], [2, 2]]
    for group in groups:
        if not _close(_part(net, few, group), expected[group], precision):
            raise ValueError(_COMPANY)


def _part(net: nn.Module, batch: Batch, some: Any) -> Tensor:
    """Return the outputs of some points of a batch that the network has taken."""
    part = take(batch, some)
    try:
        return functional.evaluate_only(net, part)
    except Exception as error:
        functional.refuse_lengths(net, part, batch, error)
        raise


def _halves(n: int, seed: int, device: torch.device) -> list[Tensor]:
    """Points of a random half of a batch; of few points of the other half, too.

    What one of few hides, the others lack.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(device)
    return [order[: n // 2], order[n // 2 :]] if n < 4 else [order[: n // 2]]


def _check_half(plan: Plan, batch: Batch, outputs: Tensor) -> None:
    """Raise a ValueError if outputs of half of a batch are others without the other half.

    What is shared out among many (experts of limited capacity) does not show with few points.
    """
    n = batch_length(batch)
    for half in _halves(n, n + plan.n_moving, outputs.device):
        if plan.spare is None or plan.renews:
            plan.spare = plan.fresh()
        found = _part(plan.spare, batch, half)
        if not _close(found, outputs[half], plan.precision):
            raise ValueError(_COMPANY)


def _jittered(batch: Batch) -> Batch | None:
    if not any(leaf.is_floating_point() for leaf in leaves(batch)):
        return None
    generator = torch.Generator().manual_seed(0)

    def jitter(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)
        size = leaf.abs().mean() if bool(leaf.any()) else 1.0
        return leaf + 0.1 * size * noise

    return map_batch(jitter, batch)


def _close(a: Tensor, b: Tensor, precision: torch.dtype) -> bool:
    if not bool(torch.isfinite(b).all()):
        return True  # reported by those who know where the points come from
    error = (_OUTPUT_ERROR if a.device.type == "cpu" else _OUTPUT_ERROR_ON_GPU)[precision]
    return torch.allclose(a, b, rtol=error, atol=error * float(b.abs().max()))


def _check(
    net: nn.Module,
    plan: Plan,
    batch: Batch,
    outputs: Tensor,
    weights: Tensor,
    refused: dict[str, str],
    result: dict[str, Gradient],
    dtype: torch.dtype,
) -> dict[str, str] | None:
    """Compare the gradients of a batch with plain autograd; return what was wrong by its rule.

    The gradient of ``sum_i w_i s_i`` with random w must be ``sum_i w_i g_i``: unlike a plain sum it
    sees points exchanged. Wrong parameters get the gradients of the fallback. None where gradients
    are not finite: those who know where the points come from report that.
    """
    n, rows = len(outputs), len(weights)
    generator = torch.Generator().manual_seed(n + rows)
    points, combination = (
        (torch.rand(count, generator=generator, dtype=torch.float64) + 0.5)
        * torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
        for count in (n, rows)
    )
    points, combination = points.to(outputs.device), combination.to(outputs.device)
    seeds = points[:, None] * (combination @ weights)
    again, expected = functional.weighted_sum(plan.fresh(), plan.parameters, batch, seeds)
    if not _close(again, outputs, plan.precision):
        raise ValueError(_COMPANY)  # a network that remembers, or chance that no operation shows
    norms = {name: _norm(g) for name, g in expected.items()}
    total = math.hypot(*norms.values())
    if not math.isfinite(total):
        return None

    def error(name: str) -> float:
        value = expected[name].flatten()
        if name in result:
            value = value - _total(result[name], points, combination, dtype)
        return _norm(value)

    def wrong(names: Sequence[str]) -> list[str]:
        tolerance = _GRADIENT_ERROR[plan.precision]
        # (NaN compares as wrong; what is not finite is reported by those who know the points.)
        return [name for name in names if error(name) > tolerance * (norms[name] + 1e-2 * total)]

    bad = wrong(list(plan.parameters))
    if not bad:
        return {}
    # Where outputs cancel (the sum of a soft-max), gradients are rounding and nothing else.
    random = torch.rand(seeds.shape, generator=generator, dtype=torch.float64).to(seeds)
    scale = (
        sum(
            _norm(g) ** 2
            for g in functional.weighted_sum(plan.fresh(), plan.parameters, batch, random)[
                1
            ].values()
        )
        ** 0.5
    )
    bad = [name for name in bad if error(name) > _ROUNDING[plan.precision] * scale]
    by_rule = {
        name: "the rule of its operation disagrees with autograd"
        for name in bad
        if name not in refused
    }
    _fall_back(net, plan, batch, outputs, weights, list(by_rule), result, dtype)
    still = wrong(bad)
    if still and plan.vectorised:
        # Some batching rules of vmap are wrong.
        plan.vectorised = False
        _fall_back(net, plan, batch, outputs, weights, list(refused | by_rule), result, dtype)
        still = wrong(bad)
    if still:
        raise RuntimeError(
            f"the self-check failed: gradients of {still[0]!r} differ from autograd; "
            "the model's outputs must be a deterministic function of each point alone"
        )
    return by_rule


def _norm(value: Tensor) -> float:
    return float(
        torch.linalg.vector_norm(value, dtype=torch.promote_types(value.dtype, torch.float32))
    )


def _total(gradient: Gradient, points: Tensor, combination: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over points and combinations, with these weights, of per-sample gradients."""
    if isinstance(gradient, Tensor):
        return torch.einsum("n,r,nrp->p", points.to(dtype), combination.to(dtype), gradient)
    merged = []
    for site in gradient:
        delta = torch.einsum(
            "n,r,nr...->n...", points.to(dtype), combination.to(dtype), site.delta.to(dtype)
        )
        # All points as one: their rows are just more positions.
        x, delta = site.x.flatten(0, 1)[None], delta.flatten(0, 1)[None, None]
        merged.append(replace(site, x=x, delta=delta, positions=site.positions * len(points)))
    return contract.dense(merged, 1, dtype).flatten()


def _state(net: nn.Module) -> list[Tensor]:
    """Tensors of a network: its parameters, buffers and attributes."""
    state = [*net.parameters(), *net.buffers()]
    for module in net.modules():
        state += [value for value in vars(module).values() if isinstance(value, Tensor)]
    return state


def evaluated(net: nn.Module, batch: Batch) -> Tensor:
    """Return the outputs of a replica for a first batch, which is watched.

    Raises a ValueError before it writes to parameters, which are the user's, and for outputs that
    depend on chance or on other points.
    """
    chance, trace = _generators(), Trace(_state(net), batch_length(batch))
    with trace:
        outputs = functional.evaluate_only(net, batch)
    trace.check_outputs(outputs)
    _refuse_chance(chance)
    n, precision = batch_length(batch), narrowest({outputs.dtype, *trace.types})
    for half in _halves(n, n, outputs.device) if n > 1 else ():
        if not _close(functional.evaluate_only(net, take(batch, half)), outputs[half], precision):
            raise ValueError(_COMPANY)
    return outputs


def _refuse_chance(before: tuple[Any, ...]) -> None:
    """Raise a ValueError if a pass has moved the global generators of Python or NumPy."""
    if _generators() != before:
        raise ValueError(
            "the model draws random numbers of Python or NumPy in eval mode, so its outputs are "
            "not a function of the point and it has no tangent kernel: switch that off"
        )


def _nodes(outputs: Tensor) -> Iterator[Any]:
    """Yield the nodes of the graph that outputs were computed by."""
    stack: list[Any] = [outputs.grad_fn]
    visited = set(stack)
    while stack:
        node = stack.pop()
        yield node
        for child, _ in () if node is None else node.next_functions:
            if child is not None and child not in visited:
                visited.add(child)
                stack.append(child)


def _keeps_computed(net: nn.Module, used: nn.Module, outputs: Tensor) -> bool:
    """Whether a replica that was used keeps tensors computed from parameters that `net` has not.

    Raises a ValueError if the user's model keeps one itself that `outputs` are computed from: its
    graph is the user's.
    """
    found = False
    names = {id(module): name for name, module in used.named_modules()}
    for before, after in zip(net.modules(), used.modules(), strict=True):
        for name, value in vars(after).items():
            if not isinstance(value, Tensor) or value.is_leaf or not value.requires_grad:
                continue
            old: Any = vars(before).get(name)
            ours = old is value and any(node is value.grad_fn for node in _nodes(outputs))
            if ours:
                where = f"module {names[id(after)]!r}" if names[id(after)] else "the model"
                raise ValueError(
                    f"{where} keeps {name!r}, a tensor computed from parameters by an earlier "
                    "call, so that autograd reaches them through that call only: clear it, or "
                    "compute it in every call"
                )
            found = found or not isinstance(old, Tensor)
    return found


def identity(net: nn.Module) -> tuple[list[Any], list[Any]]:
    """Modules and tensors of a network, and what tells them, as they are now, from others.

    The latter as long as the former live: it holds their ids.
    """
    held: list[Any] = list(net.modules())
    settings: list[Any] = []
    for module in net.modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, PLAIN) and k != "training"}
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        held.append(hooks)
        settings.append((id(module), id(type(module)), plain, [id(hook) for hook in hooks]))
    for tensor in _state(net):
        if not tensor.is_leaf:
            continue  # made of others by the last call
        held.append(tensor)
        # (Its numbers may place rows.)
        kind = (id(tensor), tensor._version, tensor.dtype, tensor.shape, tensor.requires_grad)
        strided = tensor.layout == torch.strided
        settings.append((*kind, tensor.data_ptr(), tensor.stride()) if strided else kind)
    return held, settings


def plan(
    net: nn.Module,
    fresh: Callable[[], nn.Module],
    parameters: Mapping[str, nn.Parameter],
    probe: Batch,
    weights_of: Callable[[int], Tensor],
    dtype: torch.dtype,
) -> tuple[Plan, Tensor, dict[str, Gradient]]:
    """Return the plan of a network, output weights, and gradients of the probe points.

    Parameters
    ----------
    net : Module
        A replica, as `fresh` makes them.
    weights_of : callable
        Number of outputs k -> (R, k) combinations of outputs.

    Returns
    -------
    plan : Plan
    weights : Tensor (R, k)
    parts : dict
        Gradients of the probe, of two combinations at most: they tell as much as a thousand do.

    Raises
    ------
    ValueError, RuntimeError
        As :func:`gradients`, and when outputs depend on no parameter.
    """
    state = _state(net)
    result = Plan(dict(parameters), state, fresh)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        result.pairs = True  # torch's gradients of one image are wrong in some memory layouts
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided and not tensor.is_nested:
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    first, few = fresh(), take(probe, slice(0, _FIRST))
    try:
        hooks = saved_tensors_hooks(count, lambda tensor: tensor)
        with Trace(_state(first), batch_length(few)), hooks:
            outputs = functional.evaluate(first, few)
    except Exception as error:
        if batch_length(probe) > _FIRST:
            functional.refuse_lengths(fresh(), few, probe, error)
        raise
    result.renews = _keeps_computed(net, first, outputs)
    functional.check_connected(outputs)
    weights = weights_of(outputs.shape[1])
    del outputs
    few = weights[[0, -1]] if len(weights) > 2 else weights
    known = {t.data_ptr() for t in state if t.layout == torch.strided and not t.is_nested}
    activations = sum(size for pointer, size in saved.items() if pointer not in known)
    _, parts = gradients(net, result, take(probe, slice(0, _FIRST)), few, dtype)
    if batch_length(probe) > _FIRST and not result.moving:
        # With another number of points, so that passes with still others need not be measured.
        gradients(net, result, probe, few, dtype)
    n = min(_FIRST, batch_length(probe))
    per_point = len(weights) / len(few) / n
    result.resident_bytes = sum(map(resident_bytes, parts.values())) * per_point
    deltas = sum(map(nbytes, parts.values()))
    # vmap holds the activations again, and copies of the gradients it returns.
    again = sum(nbytes(parts[name]) for name in result.fallback if name in parts)
    again += activations if result.fallback else 0
    result.activation_bytes = activations / n + (deltas + 2 * again) * per_point
    return result, weights, parts


def nbytes(gradient: Gradient) -> int:
    if isinstance(gradient, list):
        return sum(site.nbytes() for site in gradient)
    return gradient.numel() * gradient.element_size()


def keeps_factors(sites: Sequence[Site]) -> bool:
    """Whether the factors of a weight's gradients are smaller than the gradients."""
    n = len(sites[0].delta)
    dense = n * sites[0].combinations * sites[0].rows * sites[0].size
    return sum(site.x.numel() + site.delta.numel() for site in sites) < dense


def resident_bytes(gradient: Gradient) -> int:
    if isinstance(gradient, list) and not keeps_factors(gradient):
        first = gradient[0]
        weight = first.combinations * first.rows * first.size
        return len(first.delta) * weight * max(4, first.delta.element_size())
    return nbytes(gradient)


def not_finite(where: str, names: Sequence[str]) -> ValueError:
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return ValueError(f"gradients are not finite (NaN or inf) at {where}: parameters {listed}")
