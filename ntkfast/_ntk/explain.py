"""A table of what is done for every parameter of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from . import contract
from .capture import Gradient, Plan, resident_bytes
from .choose import Sketches
from .layers import (
    ConvolutionSite,
    EmbeddingSite,
    LinearSite,
    Site,
    SwappedSite,
    TransposedSite,
)
from .sketch import mix_int

# Random halves of the points on which the error of a sketch is compared.
_HALVES = 8
_DENSE = "small, as it is"


class Explanation(str):
    """Text that shows as itself in an interactive session."""

    def __repr__(self) -> str:
        return str(self)


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def _number(count: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}P"


_KINDS: dict[type[Site], str] = {
    LinearSite: "linear",
    ConvolutionSite: "convolution",
    SwappedSite: "linear, transposed",
    TransposedSite: "transposed",
    EmbeddingSite: "embedding",
}


def _kind(site: Site) -> str:
    name = _KINDS[type(site)]
    groups = f", {site.groups} groups" if site.groups > 1 else ""
    return f"{name} {site.rows // site.groups}x{site.size}{groups}"


@dataclass
class SketchReport:
    """What a sketch does to the kernel of some points.

    Attributes
    ----------
    points : int
        How many.
    shares : dict
        Parameter -> part of the kernel's trace.
    errors : (float, float, float), optional
        Relative error of the Gram matrix of the features; its range over halves of the points.
    expected : float, optional
        The same as a root mean square over seeds, where it is known.
    sketches : Sketches, optional
        What ``"auto"`` chose.
    """

    points: int
    shares: Mapping[str, float]
    errors: tuple[float, float, float] | None
    expected: float | None
    sketches: Sketches | None

    def sketch(self, name: str, rows: int) -> str:
        """Return the sketch of one parameter for people."""
        choice = None if self.sketches is None else self.sketches.choices[name]
        if choice is None or choice.method == "count":
            return "count"
        if choice.method == "rows":
            return f"{choice.rows} of {rows} rows"
        return "own columns" if choice.method == "exact" else "tensor"

    def summary(self) -> list[str]:
        """Sentences on the error."""
        if self.errors is None:
            return []
        error, low, high = self.errors
        of = f"{self.points} points" if self.points > 1 else "1 point"
        text = f"error of the features' Gram matrix: {_percent(error)} on {of}"
        details = []
        if high > low:
            details.append(f"{_percent(low)} to {_percent(high)} on halves of them")
        if self.expected is not None:
            details.append(f"{_percent(self.expected)} expected over seeds")
        return [text + (f" ({'; '.join(details)})" if details else "")]


def gram_errors(features: Tensor, kernel: Tensor) -> tuple[float, float, float]:
    """Relative error of the Gram matrix of features (n, d), and its range over halves of them."""
    error, n = features @ features.T - kernel, len(kernel)
    # Of a kernel that is zero every sketch is zero.
    total = float(error.norm() / kernel.norm()) if kernel.any() else float(error.norm())
    if n < 4 or not kernel.any():
        return total, total, total
    halves = []
    for step in range(_HALVES):
        # Point i is in the half if a bit of its hash is set: fixed, and balanced on average.
        chosen = [i for i in range(n) if mix_int(i) >> step & 1] or [0]
        part = kernel[chosen][:, chosen].norm()
        halves.append(float(error[chosen][:, chosen].norm() / part) if float(part) else total)
    return total, min(halves), max(halves)


def _percent(value: float) -> str:
    return "< 0.001 %" if 0 < value < 1e-5 else f"{100 * value:.2g} %"


def describe(
    title: str,
    parameters: Mapping[str, int],
    plan: Plan,
    parts: Mapping[str, Gradient],
    points: int,
    pairs: bool,
    report: SketchReport,
) -> Explanation:
    """Describe the gradients `parts` of a probe: method, cost of `points` points, and memory."""
    header = ["parameter", "entries", "gradient", "positions", "kernel", "sketch"]
    header += ["gram", "multiply-adds", "bytes/point"]
    rows: list[tuple[str, ...]] = []
    small: list[str] = []
    total, memory_of_small, cost_of_small = 0.0, 0.0, 0.0
    for name, count in parameters.items():
        part = parts.get(name)
        if part is None:
            rows.append((name, _number(count), "not used by these points", *6 * [""]))
            continue
        n_rows, positions, gram, how = 0, "", "direct", _DENSE
        if isinstance(part, list):
            n, n_rows = len(part[0].delta), part[0].rows
            direct, ghost = contract.costs(part, part, points, points, pairs)
            positions = "+".join(str(site.positions) for site in part)
            how, gram = _kind(part[0]), "ghost" if ghost < direct else "direct"
            cost = min(direct, ghost) / 2
        else:
            n = len(part)
            terms = part.shape[1] ** (2 if pairs else 1)
            if name in plan.fallback:
                how = f"torch.func: {plan.fallback[name]}"
            cost = points * points * count * terms / 2
        total += cost
        memory, sketch = resident_bytes(part) / n, report.sketch(name, n_rows)
        if how == _DENSE and sketch == "count":
            small.append(name)
            memory_of_small, cost_of_small = memory_of_small + memory, cost_of_small + cost
            continue
        share = _percent(report.shares[name])
        cells = (name, _number(count), how, positions, share, sketch)
        rows.append((*cells, gram, _number(cost), size(memory)))
    if small:
        names = small[0] if len(small) == 1 else f"{len(small)} others (biases, scales)"
        entries = _number(sum(parameters[name] for name in small))
        share = _percent(sum(report.shares[name] for name in small))
        cells = (names, entries, _DENSE, "", share, "count")
        rows.append((*cells, "direct", _number(cost_of_small), size(memory_of_small)))
    if report.sketches is None:
        rows = [row[:5] + row[6:] for row in rows]
        header.remove("sketch")
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    left = {"parameter", "gradient", "sketch", "gram"}

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if name in left else cell.rjust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        )
        return "  ".join(cells).rstrip()

    fallback = sum(parameters[name] for name in plan.fallback)
    everything = sum(parameters.values())
    summary = [
        f"{_number(everything)} entries, "
        + (f"{_number(fallback)} of them by torch.func" if fallback else "none by torch.func")
        + ("" if plan.vectorised else " one point at a time (vmap cannot run this model)"),
        *report.summary(),
        f"Gram matrix of {points} points: {_number(total)} multiply-adds",
        f"memory per point: {size(plan.activation_bytes)} during its forward and backward pass, "
        f"{size(plan.resident_bytes)} while in a panel of a Gram matrix "
        f"(its whole gradient: {size(4 * everything)})",
    ]
    shown = {row[header.index("gram")] for row in rows}
    legend = [
        "positions: pixels or tokens whose outer products add up to a weight's gradient",
        f"kernel: part of K(x, x), mean of {report.points} points",
    ]
    if "ghost" in shown:
        legend.append(
            "gram: direct forms the gradient of every point; ghost multiplies positions with "
            "positions instead"
        )
    if report.sketches is not None:
        legend.append(
            "sketch: count, of the whole gradient; rows, of a few combinations of its rows; "
            "tensor, of its factors; own columns, no error"
        )
    table = [title, "", line(header), line(["-" * width for width in widths])]
    return Explanation("\n".join([*table, *map(line, rows), "", *summary, "", *legend]))
