"""Tables and pictures from the rows: nothing is run, nothing is chosen.

``docs/evidence.md`` holds the tables between marks, ``<!-- table low aubc -->`` and
``<!-- end -->``, which `draw` fills again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from .experiments import EXPERIMENTS
from .results import read

__all__ = ["Group", "aubc", "draw", "groups", "labels_needed", "penalties"]

_LEVEL = 0.05
_OURS = "default"
_COLORS = ("#8a8f98", "#d9822b", "#2f9e77", "#a05195", "#c23b3b", "#8c6d31", "#1f5fbf")


@dataclass
class Group:
    """Cells of one budget and loss: accuracies by data set, strategy and seed."""

    accuracy: dict[str, dict[str, dict[int, np.ndarray]]]
    labels: dict[str, np.ndarray]
    seconds: dict[str, dict[str, list[float]]]
    peak_mib: dict[str, dict[str, list[float]]]

    def paired(self, dataset: str, *strategies: str) -> list[np.ndarray]:
        """Accuracies (seeds, checkpoints) of each strategy, on the seeds that all have."""
        cells = [self.accuracy[dataset].get(name, {}) for name in strategies]
        seeds = sorted(set.intersection(*(set(cell) for cell in cells)))
        return [np.array([cell[seed] for seed in seeds]) for cell in cells]

    def has(self, dataset: str, *strategies: str) -> bool:
        """Whether the strategies share at least two seeds there."""
        return len(self.paired(dataset, *strategies)[0]) >= 2

    def seeds(self, dataset: str, strategies: Sequence[str]) -> int:
        return len(self.paired(dataset, *strategies)[0])


def groups(rows: Sequence[Mapping[str, str]]) -> dict[tuple[str, str], Group]:
    """Sort rows by budget and loss."""
    result: dict[tuple[str, str], Group] = {}
    for row in rows:
        group = result.setdefault((row["budget"], row["loss"]), Group({}, {}, {}, {}))
        dataset, strategy = row["dataset"], row["strategy"]
        cells = group.accuracy.setdefault(dataset, {}).setdefault(strategy, {})
        cells[int(row["seed"])] = np.array(row["accuracy"].split(), float)
        group.labels[dataset] = np.array(row["labels"].split(), int)
        for what, where in (("seconds", group.seconds), ("peak_mib", group.peak_mib)):
            if row[what]:
                where.setdefault(dataset, {}).setdefault(strategy, []).append(float(row[what]))
    return result


# Statistics


def aubc(accuracy: np.ndarray) -> np.ndarray:
    """Area under each learning curve (..., checkpoints) over its width: its mean height."""
    return (accuracy[..., :-1] + accuracy[..., 1:]).mean(axis=-1) / 2


def _interval(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Half width of the 95 % interval of the mean (Student's t)."""
    n = values.shape[axis]
    return stats.t.ppf(0.975, n - 1) * values.std(axis=axis, ddof=1) / np.sqrt(n)


def _p_value(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p of a paired t-test; 1 where nothing differs."""
    if np.ptp(a - b) == 0:
        return 1.0 if (a == b).all() else 0.0
    return float(stats.ttest_rel(a, b).pvalue)


def penalties(group: Group, datasets: Sequence[str], strategies: Sequence[str]) -> np.ndarray:
    """BADGE's matrix (arXiv 1906.03671): entry i, j is how often i beats j significantly.

    Of the checkpoints after the first (which all share) each counts 1 / their number, so that an
    entry is at most the number of data sets; p < 0.05 of a two-sided paired t-test over seeds.
    """
    P = np.zeros((len(strategies), len(strategies)))
    for dataset in datasets:
        for i, winner in enumerate(strategies):
            for j, loser in enumerate(strategies):
                if i == j or not group.has(dataset, winner, loser):
                    continue
                a, b = (values[:, 1:] for values in group.paired(dataset, winner, loser))
                wins = [
                    a[:, t].mean() > b[:, t].mean() and _p_value(a[:, t], b[:, t]) < _LEVEL
                    for t in range(a.shape[1])
                ]
                P[i, j] += np.mean(wins)
    return P


def labels_needed(labels: np.ndarray, accuracy: np.ndarray, goal: float) -> float:
    """Labels at which a mean curve reaches `goal`, linear between checkpoints; inf: never."""
    reached = np.flatnonzero(accuracy >= goal)
    if len(reached) == 0:
        return np.inf
    at = int(reached[0])
    if at == 0:
        return float(labels[0])
    share = (goal - accuracy[at - 1]) / (accuracy[at] - accuracy[at - 1])
    return float(labels[at - 1] + share * (labels[at] - labels[at - 1]))


def _saving(group: Group, dataset: str, strategy: str) -> tuple[float, float, float]:
    """Labels for random's last accuracy over random's labels, and its 95 % bootstrap interval."""
    ours, random = group.paired(dataset, strategy, "random")
    labels = group.labels[dataset]

    def ratio(seeds: Any) -> float:
        goal = random[seeds].mean(axis=0)[-1]
        return labels_needed(labels, ours[seeds].mean(axis=0), goal) / labels[-1]

    rng = np.random.default_rng(0)
    draws = [ratio(rng.integers(len(ours), size=len(ours))) for _ in range(1000)]
    low, high = np.percentile(np.array(draws), [2.5, 97.5], method="nearest")
    return ratio(slice(None)), float(low), float(high)


# Tables


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _aubc_table(group: Group, datasets: Sequence[str], strategies: Sequence[str]) -> str:
    """Mean AUBC in percent; the best of a column is bold, means of fewer seeds are in brackets."""
    most = {d: max(map(len, group.accuracy[d].values())) for d in datasets}
    means = np.full((len(strategies), len(datasets)), np.nan)
    full = np.zeros(means.shape, bool)
    for i, name in enumerate(strategies):
        for j, dataset in enumerate(datasets):
            if group.has(dataset, name):
                accuracy = group.paired(dataset, name)[0]
                means[i, j] = 100 * aubc(accuracy).mean()
                full[i, j] = len(accuracy) == most[dataset]
    best = np.where(full, means, -np.inf).max(axis=0)

    def cell(i: int, j: int) -> str:
        if np.isnan(means[i, j]):
            return ""
        text = f"{means[i, j]:.1f}"
        return f"**{text}**" if means[i, j] == best[j] else text if full[i, j] else f"({text})"

    rows = []
    for i, name in enumerate(strategies):
        mean = f"{means[i].mean():.2f}" if full[i].all() else ""
        rows.append([f"`{name}`", *(cell(i, j) for j in range(len(datasets))), mean])
    rows.append(["seeds", *(str(most[d]) for d in datasets), ""])
    return _table(["", *datasets, "mean"], rows)


def _difference_table(group: Group, datasets: Sequence[str], strategies: Sequence[str]) -> str:
    """Default minus strategy in points of AUBC, with 95 % interval; significant ones are bold."""
    rows = []
    for name in strategies:
        if name == _OURS:
            continue
        cells, all_of = [], []
        for dataset in datasets:
            if not group.has(dataset, _OURS, name):
                cells.append("")
                continue
            ours, theirs = (100 * aubc(a) for a in group.paired(dataset, _OURS, name))
            text = f"{(ours - theirs).mean():+.1f} ± {_interval(ours - theirs):.1f}"
            cells.append(f"**{text}**" if _p_value(ours, theirs) < _LEVEL else text)
            all_of.append((ours - theirs).mean())
        won = sum(cell.startswith("**+") for cell in cells)
        lost = sum(cell.startswith("**-") for cell in cells)
        mean = f"{np.mean(all_of):+.2f}" if all_of else ""
        rows.append([f"`{name}`", *cells, mean, f"{won} : {lost}"])
    return _table(["default minus", *datasets, "mean", "won : lost"], rows)


def _penalty_table(group: Group, datasets: Sequence[str], strategies: Sequence[str]) -> str:
    """Row beats column; the last row is the mean of each column, lower is better."""
    P = penalties(group, datasets, strategies)
    rows = [
        [f"`{name}`", *("" if i == j else f"{value:.2f}" for j, value in enumerate(P[i]))]
        for i, name in enumerate(strategies)
    ]
    count = len(strategies) - 1
    rows.append(["mean penalty", *(f"**{value / count:.2f}**" for value in P.sum(axis=0))])
    return _table(["beats", *(f"`{name}`" for name in strategies)], rows)


def _saving_table(group: Group, datasets: Sequence[str], strategies: Sequence[str]) -> str:
    """Share of random's labels that a strategy needs for random's last accuracy, percent."""
    rows = []
    for name in strategies:
        if name == "random":
            continue
        cells, ratios = [], []
        for dataset in datasets:
            if not group.has(dataset, name, "random"):
                cells.append("")
                continue
            ratio, low, high = _saving(group, dataset, name)
            ratios.append(ratio)
            cells.append(f"{_percent(ratio)} ({_percent(low)} to {_percent(high)})")
        finite = len(ratios) == len(datasets) and np.isfinite(ratios).all()
        rows.append([f"`{name}`", *cells, f"{100 * np.mean(ratios):.0f}" if finite else ""])
    return _table(["", *datasets, "mean"], rows)


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.0f}" if np.isfinite(ratio) else "never"


def _cost_table(group: Group, datasets: Sequence[str], strategies: Sequence[str]) -> str:
    """Median over seeds of the processor milliseconds of a query, and of its peak memory."""
    rows = []
    for name in strategies:
        cells = []
        for dataset in datasets:
            seconds = group.seconds.get(dataset, {}).get(name)
            peak = group.peak_mib.get(dataset, {}).get(name)
            memory = f", {np.median(peak):.0f} MiB" if peak else ""
            cells.append(f"{1e3 * np.median(seconds):.0f} ms{memory}" if seconds else "")
        rows.append([f"`{name}`", *cells])
    return _table(["", *datasets], rows)


_TABLES: dict[str, Callable[[Group, Sequence[str], Sequence[str]], str]] = {
    "aubc": _aubc_table,
    "difference": _difference_table,
    "penalty": _penalty_table,
    "saving": _saving_table,
    "cost": _cost_table,
}


# Pictures


def _draw_curves(
    group: Group, datasets: Sequence[str], strategies: Sequence[str], path: Path
) -> None:
    """Test accuracy above random's, paired by seed, with 95 % intervals: a panel a data set."""
    columns = min(3, len(datasets))
    rows = -(-len(datasets) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 2.6 * rows), layout="constrained", squeeze=False
    )
    drawn: dict[str, Any] = {}
    shown = [name for name in strategies if name != "random"]
    for panel, dataset in zip(axes.flat, datasets, strict=False):
        labels = group.labels[dataset]
        panel.axhline(0, color=_COLORS[0], linewidth=1.2)
        for number, (name, color) in enumerate(zip(shown, _COLORS[1:], strict=False)):
            if not group.has(dataset, name, "random"):
                continue
            theirs, random = group.paired(dataset, name, "random")
            gain = 100 * (theirs - random)
            mean, half = gain.mean(axis=0), _interval(gain)
            ours = name == _OURS
            shift = 0.035 * (labels[1] - labels[0]) * (number - len(shown) / 2)
            drawn[name] = panel.errorbar(
                labels[1:] + shift,  # side by side, so that no bar hides another
                mean[1:],
                yerr=half[1:],
                color=color,
                linewidth=2.2 if ours else 1.3,
                elinewidth=0.8,
                zorder=3 if ours else 2,
            )
        final = 100 * group.paired(dataset, "random")[0].mean(axis=0)
        panel.set_title(
            f"{dataset} (random: {final[0]:.0f} to {final[-1]:.0f} %)", loc="left", fontsize=9
        )
        panel.tick_params(labelsize=8)
        panel.grid(axis="y", color="#e3e5e8", linewidth=0.7)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes.flat[len(datasets) :]:
        panel.set_axis_off()
    figure.supxlabel("labels", fontsize=10)
    figure.supylabel("points of test accuracy above random, mean and 95 % interval", fontsize=10)
    figure.legend(
        drawn.values(),
        drawn.keys(),
        loc="outside upper center",
        ncols=len(drawn),
        frameon=False,
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_penalties(
    group: Group, datasets: Sequence[str], strategies: Sequence[str], path: Path
) -> None:
    P = penalties(group, datasets, strategies)
    mean = P.sum(axis=0, keepdims=True) / (len(strategies) - 1)
    size = 1.6 + 0.62 * len(strategies)
    figure, axes = plt.subplots(figsize=(size + 0.6, size), layout="constrained")
    shown = np.concatenate([P, mean])
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=len(datasets))
    for (i, j), value in np.ndenumerate(shown):
        if i != j:
            dark = value > 0.55 * len(datasets)
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=8,
                      color="white" if dark else "#333333")  # fmt: skip
    axes.set_xticks(range(len(strategies)), strategies, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(shown)), [*strategies, "mean"], fontsize=8)
    axes.axhline(len(strategies) - 0.5, color="white", linewidth=3)
    axes.set_title(
        f"row beats column: share of checkpoints, summed over {len(datasets)} data sets",
        loc="left",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


_SHOWN = ("random", "margin", "badge", "maxherding", "uherding+plain", "coreset", "default")


def _members(
    name: str, all_groups: Mapping[tuple[str, str], Group]
) -> tuple[Group, list[str], list[str]] | None:
    """Data sets and strategies of an experiment that there are rows of, random and default too."""
    experiment = EXPERIMENTS[name]
    group = all_groups.get((experiment.budget, experiment.loss))
    if group is None:
        return None
    datasets = [d for d in experiment.datasets if d in group.accuracy and group.has(d, "random")]
    wanted = dict.fromkeys(["random", *experiment.strategies, _OURS])
    strategies = [s for s in wanted if any(group.has(d, s, "random") for d in datasets)]
    return (group, datasets, strategies) if datasets else None


_MARK = re.compile(r"(<!-- table (\w+) (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def filled(text: str, all_groups: Mapping[tuple[str, str], Group]) -> str:
    """Fill every marked table of a document."""

    def fill(match: re.Match[str]) -> str:
        opening, experiment, table, _, closing = match.groups()
        members = _members(experiment, all_groups)
        body = "no rows yet" if members is None else _TABLES[table](*members)
        return f"{opening}\n{body}\n\n{closing}"

    return _MARK.sub(fill, text)


def draw(results: Path, docs: Path, *, check: bool = False) -> bool:
    """Fill the tables of ``evidence.md`` and draw its pictures; `check`: compare tables only."""
    all_groups = groups(read(results))
    document = docs / "evidence.md"
    old = document.read_text(encoding="utf-8")
    new = filled(old, all_groups)
    if check:
        print("tables are current" if new == old else f"{document}: tables are not of {results}")
        return new == old
    document.write_text(new, encoding="utf-8")
    folder = docs / "evidence"
    folder.mkdir(exist_ok=True)
    for name in EXPERIMENTS:
        members = _members(name, all_groups)
        if members is None or f"evidence/{name}_" not in new:
            continue
        group, datasets, strategies = members
        if f"evidence/{name}_curves.png" in new:
            shown = [s for s in _SHOWN if s in strategies]
            _draw_curves(group, datasets, shown, folder / f"{name}_curves.png")
        if f"evidence/{name}_penalty.png" in new:
            _draw_penalties(group, datasets, strategies, folder / f"{name}_penalty.png")
    print(f"{document} and {folder} are current")
    return True
