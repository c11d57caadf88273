"""A table of what is done for every parameter of a network."""

from __future__ import annotations

from collections.abc import Mapping

from . import contract
from .capture import Gradient, Plan, resident_bytes
from .layers import ConvolutionSite, EmbeddingSite, LinearSite, Site, TransposedSite


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
    TransposedSite: "transposed",
    EmbeddingSite: "embedding",
}


def _kind(site: Site) -> str:
    name = _KINDS[type(site)]
    groups = f", {site.groups} groups" if site.groups > 1 else ""
    return f"{name} {site.rows // site.groups}x{site.size}{groups}"


def describe(
    title: str,
    parameters: Mapping[str, int],
    plan: Plan,
    parts: Mapping[str, Gradient],
    points: int,
    pairs: bool,
) -> Explanation:
    """Describe the gradients `parts` of a probe: method, cost of `points` points, and memory."""
    header = ("parameter", "entries", "positions", "how", "gram", "multiply-adds", "bytes/point")
    rows: list[tuple[str, ...]] = []
    total = 0.0
    for name, count in parameters.items():
        part = parts.get(name)
        if part is None:
            rows.append((name, _number(count), "", "not used by these points", "", "", ""))
            continue
        if isinstance(part, list):
            n = len(part[0].delta)
            direct, ghost = contract.costs(part, part, points, points, pairs)
            positions = "+".join(str(site.positions) for site in part)
            how, gram = _kind(part[0]), "ghost" if ghost < direct else "direct"
            cost = min(direct, ghost) / 2
        else:
            n = len(part)
            terms = part.shape[1] ** (2 if pairs else 1)
            positions, gram = "", "direct"
            how = "one copy per point" if name in plan.expanded else "sum"
            if name in plan.fallback:
                how = f"torch.func: {plan.fallback[name]}"
            cost = points * points * count * terms / 2
        total += cost
        memory = size(resident_bytes(part) / n)
        rows.append((name, _number(count), positions, how, gram, _number(cost), memory))
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    left = (0, 3, 4)

    def line(row: tuple[str, ...]) -> str:
        cells = (
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    fallback = sum(parameters[name] for name in plan.fallback)
    summary = [
        f"{_number(sum(parameters.values()))} entries, {_number(fallback)} of them by torch.func"
        + ("" if plan.vectorised else " one point at a time (vmap cannot run this model)"),
        f"Gram matrix of {points} points: {_number(total)} multiply-adds",
        f"memory per point: {size(plan.activation_bytes)} during its forward and backward pass, "
        f"{size(plan.resident_bytes)} while in a panel of a Gram matrix "
        f"(its whole gradient: {size(4 * sum(parameters.values()))})",
    ]
    table = [title, "", line(header), line(tuple("-" * width for width in widths))]
    return Explanation("\n".join([*table, *map(line, rows), "", *summary]))
