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
from .results import STREAMED, read
from .streaming import CHECKPOINTS, SIGNALS

__all__ = ["Group", "aubc", "draw", "groups", "labels_needed", "penalties"]

_LEVEL = 0.05
_FEWEST_SEEDS = 3
_COLORS = ("#8a8f98", "#d9822b", "#2f9e77", "#a05195", "#c23b3b", "#8c6d31", "#5f9ea0", "#1f5fbf")


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
        """Whether the strategies share enough seeds there to be compared."""
        return len(self.paired(dataset, *strategies)[0]) >= _FEWEST_SEEDS

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
            if row.get(what):
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

    def ratios(seeds: Any) -> list[float]:
        curves, goals = ours[seeds].mean(axis=1), random[seeds, -1].mean(axis=1)
        return [
            labels_needed(labels, curve, goal) / labels[-1]
            for curve, goal in zip(curves, goals, strict=True)
        ]

    drawn = np.random.default_rng(0).integers(len(ours), size=(1000, len(ours)))
    low, high = np.percentile(ratios(drawn), [2.5, 97.5], method="nearest")
    return ratios(np.arange(len(ours))[None])[0], float(low), float(high)


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


def _differences(
    group: Group, datasets: Sequence[str], ours: str, theirs: str, of: Callable[[Any], Any]
) -> list[str]:
    """Cells of `ours` minus `theirs` in points of what `of` makes of accuracies (seeds, ...).

    With 95 % intervals, significant ones bold; then the mean, and how many are won and lost.
    """
    cells, means = [], []
    for dataset in datasets:
        if not group.has(dataset, ours, theirs):
            cells.append("")
            continue
        a, b = (100 * of(values) for values in group.paired(dataset, ours, theirs))
        means.append((a - b).mean())
        text = f"{means[-1]:+.1f} ± {_interval(a - b):.1f}"
        cells.append(f"**{text}**" if _p_value(a, b) < _LEVEL else text)
    won, lost = (sum(cell.startswith(f"**{sign}") for cell in cells) for sign in "+-")
    return [*cells, f"{np.mean(means):+.2f}" if means else "", f"{won} : {lost}"]


def _difference_table(group: Group, datasets: Sequence[str], strategies: Sequence[str]) -> str:
    """Points of AUBC by which the last strategy is ahead of the others."""
    *others, ours = strategies
    rows = [[f"`{name}`", *_differences(group, datasets, ours, name, aubc)] for name in others]
    return _table([f"`{ours}` minus", *datasets, "mean", "won : lost"], rows)


def _option_table(group: Group, datasets: Sequence[str], strategies: Sequence[str]) -> str:
    """Strategy minus itself with an option, in points of AUBC; and whether it picks otherwise.

    Of a first batch all is equal but the option, so that accuracies after it that differ tell that
    picks do: of so many cells at least.
    """
    rows = []
    for name in strategies:
        head = name.split("+")[0]
        if head == name or head not in strategies:
            continue
        pairs = [group.paired(d, head, name) for d in datasets if group.has(d, head, name)]
        differ = np.concatenate([a[:, 1] != b[:, 1] for a, b in pairs]).mean()
        cells = _differences(group, datasets, head, name, aubc)
        rows.append([f"`{head}` - `{name}`", *cells, f"{100 * differ:.0f} %"])
    return _table(["", *datasets, "mean", "won : lost", "first batches differ"], rows)


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
    "option": _option_table,
    "penalty": _penalty_table,
    "saving": _saving_table,
    "cost": _cost_table,
}


# Streams

_CONDITION = "condition"
_DOUBLED = CHECKPOINTS.index(2)
_DUE = 0.02  # training again is due where it would gain so much accuracy


def _share_table(group: Group, datasets: Sequence[str], rules: Sequence[str]) -> str:
    """Part of retraining's gain that a rule has when the labels have doubled, percent.

    Gains are means over seeds, over the accuracy of the network as it was; 95 % intervals are
    bootstrapped over seeds. The last row is what retraining gains, in points.
    """
    rows = []
    for rule in rules:
        if rule == "retrain":
            continue
        cells, shares = [], []
        for dataset in datasets:
            if not group.has(dataset, rule, "retrain"):
                cells.append("")
                continue
            ours, again = group.paired(dataset, rule, "retrain")
            gains = np.stack([values[:, _DOUBLED] - again[:, 0] for values in (ours, again)])
            draws = np.random.default_rng(0).integers(gains.shape[1], size=(1000, gains.shape[1]))
            low, high = np.percentile(
                np.divide(*gains[:, draws].mean(axis=2)), [2.5, 97.5], method="nearest"
            )
            shares.append(np.divide(*gains.mean(axis=1)))
            cells.append(f"{100 * shares[-1]:.0f} ({100 * low:.0f} to {100 * high:.0f})")
        reached = sum(share >= 0.8 for share in shares)
        rows.append([f"`{rule}`", *cells, f"{reached} of {len(shares)}"])
    gained = [group.paired(dataset, "retrain")[0] for dataset in datasets]
    points = [100 * (values[:, _DOUBLED] - values[:, 0]).mean() for values in gained]
    rows.append(["retraining gains", *(f"{value:.1f}" for value in points), ""])
    return _table(["", *datasets, "80 % on"], rows)


def _ahead_table(group: Group, datasets: Sequence[str], rules: Sequence[str]) -> str:
    """Points of accuracy by which `condition` is ahead when the labels have doubled."""
    rows = [
        [f"`{rule}`", *_differences(group, datasets, _CONDITION, rule, lambda a: a[:, _DOUBLED])]
        for rule in rules
        if rule != _CONDITION
    ]
    return _table(["`condition` minus", *datasets, "mean", "won : lost"], rows)


@dataclass
class _Moments:
    """Checkpoints of `condition` on some data sets: what retraining would gain, and signals."""

    gain: np.ndarray
    signals: dict[str, np.ndarray]

    @property
    def due(self) -> np.ndarray:
        return self.gain >= _DUE


def _moments(
    rows: Sequence[Mapping[str, str]], budget: str, loss: str, datasets: Sequence[str]
) -> _Moments:
    """Pair every checkpoint of `condition` after the first with retraining on the same labels."""
    accuracy: dict[tuple[str, str, str], np.ndarray] = {}
    for row in rows:
        if (row["budget"], row["loss"]) == (budget, loss):
            cell = np.array(row["accuracy"].split(), float)
            accuracy[row["strategy"], row["dataset"], row["seed"]] = cell
    gain: list[np.ndarray] = []
    signals: dict[str, list[np.ndarray]] = {name: [] for name in (*SIGNALS, "labels")}
    for row in rows:
        if (row["budget"], row["loss"], row["strategy"]) != (budget, loss, _CONDITION):
            continue
        again = accuracy.get(("retrain", row["dataset"], row["seed"]))
        if row["dataset"] not in datasets or again is None:
            continue
        gain.append((again - accuracy[_CONDITION, row["dataset"], row["seed"]])[1:])
        signals["labels"].append(np.array(CHECKPOINTS[1:]))
        for name in SIGNALS:
            signals[name].append(np.array(row[name].split(), float))
    joined = {name: np.concatenate(values or [[]]) for name, values in signals.items()}
    joined["helped"] = joined["stale"] - joined["surprise"]
    return _Moments(np.concatenate(gain or [[]]), joined)


def _ranked(signal: np.ndarray, due: np.ndarray) -> float:
    """Probability that the signal is larger where training is due (area under the ROC curve)."""
    positive = int(due.sum())
    ranks = stats.rankdata(signal)[due].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * (len(due) - positive)))


def hit_rate(said: np.ndarray, due: np.ndarray) -> float:
    """Mean of the shares of right answers where training is due and where it is not."""
    return float((said[due].mean() + (~said[~due]).mean()) / 2)


def _due_table(rows: Sequence[Mapping[str, str]], name: str) -> str:
    """How well signals tell that training is due: threshold of four sets, tried on the others."""
    experiment = EXPERIMENTS[name]
    key = experiment.budget, experiment.loss
    chosen_on, tried_on = (
        _moments(rows, *key, sets) for sets in (experiment.datasets[:4], experiment.datasets[4:])
    )
    if any(moments.due.all() or not moments.due.any() for moments in (chosen_on, tried_on)):
        return "no rows yet where training was due, or none where it was not"
    lines = []
    for signal in ("labels", *SIGNALS, "helped"):
        a, b = chosen_on.signals[signal], tried_on.signals[signal]
        sign = 1 if _ranked(a, chosen_on.due) >= 0.5 else -1
        thresholds = np.unique(sign * a)
        rates = [hit_rate(sign * a >= t, chosen_on.due) for t in thresholds]
        best = int(np.argmax(rates))
        said = sign * b >= thresholds[best]
        sentence = f"{'>=' if sign > 0 else '<='} {sign * thresholds[best]:.3g}"
        lines.append([
            f"`{signal}`", sentence, f"{_ranked(sign * a, chosen_on.due):.2f}",
            f"{_ranked(sign * b, tried_on.due):.2f}", f"{100 * rates[best]:.0f} %",
            f"{100 * hit_rate(said, tried_on.due):.0f} %",
        ])  # fmt: skip
    counts = [
        f"{100 * moments.due.mean():.0f} % of {len(moments.gain)}"
        for moments in (chosen_on, tried_on)
    ]
    lines.append(["training was due", "", *counts, "", ""])
    header = ["", "says so where", "ROC area", "on others", "hit rate", "on others"]
    return _table(header, lines)


_STREAMS: dict[str, Callable[[Group, Sequence[str], Sequence[str]], str]] = {
    "share": _share_table,
    "ahead": _ahead_table,
}


# Pictures


def _draw_curves(
    group: Group, datasets: Sequence[str], strategies: Sequence[str], path: Path
) -> None:
    """Test accuracy above a base's, paired by seed, with 95 % intervals: a panel a data set.

    The base is random or, of streams, the network as it was before the stream.
    """
    streams = "retrain" in strategies
    base = "retrain" if streams else "random"
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
        for number, name in enumerate(shown):
            if not group.has(dataset, name, base):
                continue
            theirs, of_base = group.paired(dataset, name, base)
            gain = 100 * (theirs - (of_base[:, :1] if streams else of_base))
            mean, half = gain.mean(axis=0), _interval(gain)
            ours = name == shown[-1]
            color = _COLORS[-1] if ours else _COLORS[1 + number]
            at = number - len(shown) / 2  # side by side, so that no bar hides another
            x = labels[1:] * 1.02**at if streams else labels[1:] + 0.035 * np.diff(labels)[0] * at
            drawn[name] = panel.errorbar(
                x,
                mean[1:],
                yerr=half[1:],
                color=color,
                linewidth=2.2 if ours else 1.3,
                elinewidth=0.8,
                zorder=3 if ours else 2,
            )
        final = 100 * group.paired(dataset, base)[0].mean(axis=0)
        panel.set_title(
            f"{dataset} ({base}: {final[0]:.0f} to {final[-1]:.0f} %)", loc="left", fontsize=9
        )
        if streams:
            panel.set_xscale("log")
            panel.set_xticks(labels[1:], map(str, labels[1:]))
            panel.minorticks_off()
        panel.tick_params(labelsize=8)
        panel.grid(axis="y", color="#e3e5e8", linewidth=0.7)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes.flat[len(datasets) :]:
        panel.set_axis_off()
    figure.supxlabel("labels", fontsize=10)
    above = "the network before the stream" if streams else "random"
    figure.supylabel(f"points of test accuracy above {above}, mean and 95 % interval", fontsize=10)
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


_SHOWN = (
    "random",
    "margin",
    "badge",
    "maxherding",
    "uherding+plain",
    "coreset",
    "fisher_variance_reduction",
    "default",
)
_RULES_SHOWN = ("retrain", "condition+T_r=1", "condition+T_r=5", "condition")


def _shown(group: Group, datasets: Sequence[str], strategies: Sequence[str]) -> list[str]:
    """Strategies of a picture of learning curves: those that most seeds were run with."""
    known = _RULES_SHOWN if "retrain" in strategies else _SHOWN
    base = known[0]
    return [
        name
        for name in known
        if name in strategies
        and any(2 * group.seeds(d, (name,)) >= group.seeds(d, (base,)) for d in datasets)
    ]


def _members(
    name: str, all_groups: Mapping[tuple[str, str], Group]
) -> tuple[Group, list[str], list[str]] | None:
    """Data sets and strategies of an experiment that there are rows of, the reference last.

    First is random or retraining, which all are compared with.
    """
    experiment = EXPERIMENTS[name]
    group = all_groups.get((experiment.budget, experiment.loss))
    if group is None:
        return None
    base = "retrain" if experiment.streams else "random"
    datasets = [d for d in experiment.datasets if d in group.accuracy and group.has(d, base)]
    last = "condition" if experiment.streams else experiment.reference
    others = [name for name in dict.fromkeys([base, *experiment.strategies]) if name != last]
    strategies = [s for s in (*others, last) if any(group.has(d, s, base) for d in datasets)]
    return (group, datasets, strategies) if datasets else None


_MARK = re.compile(r"(<!-- table (\w+) (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def filled(text: str, rows: Sequence[Mapping[str, str]]) -> str:
    """Fill every marked table of a document."""
    all_groups = groups(rows)

    def fill(match: re.Match[str]) -> str:
        opening, experiment, table, _, closing = match.groups()
        if table == "due":
            return f"{opening}\n{_due_table(rows, experiment)}\n\n{closing}"
        members = _members(experiment, all_groups)
        body = "no rows yet" if members is None else (_TABLES | _STREAMS)[table](*members)
        return f"{opening}\n{body}\n\n{closing}"

    return _MARK.sub(fill, text)


def draw(results: Path, docs: Path, *, check: bool = False) -> bool:
    """Fill the tables of ``evidence.md`` and draw its pictures; `check`: compare tables only.

    Rows of streams are read from the file beside `results`.
    """
    rows = [*read(results), *read(results.with_name(STREAMED.name))]
    all_groups = groups(rows)
    document = docs / "evidence.md"
    old = document.read_text(encoding="utf-8")
    new = filled(old, rows)
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
            shown = _shown(group, datasets, strategies)
            _draw_curves(group, datasets, shown, folder / f"{name}_curves.png")
        if f"evidence/{name}_penalty.png" in new:
            _draw_penalties(group, datasets, strategies, folder / f"{name}_penalty.png")
    print(f"{document} and {folder} are current")
    return True
