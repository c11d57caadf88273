"""What is run: the experiments, their cells, and the loop of training and asking."""

from __future__ import annotations

import concurrent.futures
import datetime
import multiprocessing
import multiprocessing.connection
import os
import statistics
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..record import commit
from .data import BUDGETS, DATASETS, Split, split
from .networks import outputs, train
from .results import COLUMNS, STREAMED_COLUMNS, append, key, read
from .strategies import Query, pick
from .streaming import CHECKPOINTS, stream

__all__ = ["EXPERIMENTS", "Experiment", "run"]

TABULAR = ("digits", "letter", "satimage", "segment", "optdigits", "penbased", "texture", "splice")
_MAIN = (
    "random",
    "entropy",
    "margin",
    "badge",
    "coreset",
    "typiclust",
    "maxherding",
    "maxherding+inputs",
    "uherding",
    "uherding+plain",
    "uncertainty_herding",
    "fisher_variance_reduction",
    "default",
)
_FISHER = "fisher_variance_reduction"  # the default until there was fisher_herding


@dataclass(frozen=True)
class Experiment:
    """A product of data sets, strategies and seeds."""

    budget: str
    loss: str
    datasets: tuple[str, ...]
    strategies: tuple[str, ...]
    seeds: tuple[int, ...] = tuple(range(20))
    reference: str = "default"  # with which tables compare the others

    @property
    def streams(self) -> bool:
        """Whether labels are learned one block after another; the strategies are rules then."""
        return "stream" in self.budget


_RULES = (
    "retrain",
    "retrain+steps=1000",
    "condition",
    *(f"condition+T_r={t}" for t in ("1", "1.5", "3", "5")),
)

EXPERIMENTS = {
    "low": Experiment("low", "cross_entropy", (*TABULAR, "mnist"), _MAIN),
    "criteria": Experiment(
        "low",
        "cross_entropy",
        (*TABULAR, "mnist"),
        (
            "probcover",
            "dropquery",
            "bait",
            "ntkcpl",
            "mlmoc+top",
            "mlmoc",
            "emoc",
            "expected_error",
            "expected_entropy",
            "expected_brier",
            "label_flips",
            "variance_reduction",
            "epig",
            "d_optimal",
            "max_herding",
            "uncertainty_herding+published",
            "prob_cover",
        ),
        reference=_FISHER,
    ),
    # B(c) of the look-ahead criteria at the residual temperatures 2 (the default) and 1.
    "residual": Experiment(
        "low",
        "cross_entropy",
        TABULAR,
        tuple(
            f"{name}{option}"
            for name in ("expected_error", "expected_brier", "mlmoc")
            for option in ("", "+T_r=1")
        ),
    ),
    "embeddings": Experiment("low", "cross_entropy", ("bbcnews",), (*_MAIN, "uncertainty_herding")),
    "squared": Experiment("low", "squared", (*TABULAR, "mnist"), ("variance_reduction", *_MAIN)),
    "middle": Experiment("middle", "cross_entropy", (*TABULAR, "mnist"), _MAIN),
    "kernels": Experiment(
        "low",
        "cross_entropy",
        ("digits", "satimage", "texture", "mnist"),
        (
            f"{_FISHER}+layers=last",
            f"{_FISHER}+outputs=single",
            f"{_FISHER}+outputs=random",
            f"{_FISHER}+outputs=random+draws=4",
        ),
        reference=_FISHER,
    ),
    "kernels_large": Experiment(  # without a sketch, and all k x k blocks
        "low",
        "cross_entropy",
        ("digits", "satimage", "texture"),
        (f"{_FISHER}+exact", f"{_FISHER}+outputs=full"),
        tuple(range(10)),
        reference=_FISHER,
    ),
    "top": Experiment(  # the best points of one scoring, or one after another
        "low",
        "cross_entropy",
        ("digits", "satimage", "texture", "letter"),
        tuple(
            f"{name}{option}"
            for name in (_FISHER, "epig", "expected_error", "mlmoc")
            for option in ("", "+top")
        ),
    ),
    "ceiling": Experiment("low", "cross_entropy", TABULAR, ("ceiling", _FISHER)),
    # The paper's settings on MNIST: squared loss, 100 labels and 20 more a query.
    "paper": Experiment(
        "paper_mnist",
        "squared",
        ("mnist",),
        ("random", "margin", "badge", "mlmoc+top", "mlmoc", _FISHER, "default"),
        tuple(range(5)),
    ),
    "streaming": Experiment("stream", "cross_entropy", (*TABULAR, "mnist"), _RULES),
    "streaming_few": Experiment("stream_few", "cross_entropy", (*TABULAR, "mnist"), _RULES),
    "streaming_queried": Experiment("stream_queried", "cross_entropy", (*TABULAR, "mnist"), _RULES),
    "streaming_squared": Experiment("stream", "squared", (*TABULAR, "mnist"), _RULES[:3]),
    "quick_streaming": Experiment(
        "quick_stream", "cross_entropy", ("digits", "cancer"), ("retrain", "condition"), (0, 1, 2)
    ),
    "images": Experiment("paper", "cross_entropy", ("cifar10", "cifar100", "svhn"), _MAIN),
    "quick": Experiment(
        "quick",
        "cross_entropy",
        ("digits", "cancer"),
        ("random", "margin", "badge", "uherding", "default"),
        (0, 1, 2),
    ),
}


@dataclass(frozen=True)
class _Task:
    """Strategies that learn side by side: one data set and one seed."""

    experiment: Experiment
    dataset: str
    seed: int
    strategies: tuple[str, ...]
    stamp: dict[str, str]


def run(experiment: Experiment, path: Path, jobs: int, command: str) -> Iterator[int]:
    """Run the cells that `path` does not hold yet, and yield how many each step has finished.

    Yields 0 for a strategy that failed, whose traceback is printed; the others go on.
    """
    done = {key(row) for row in read(path)}
    stamp = dict(
        commit=commit(of_sources=True),
        date=datetime.date.today().isoformat(),
        command=command,
    )
    tasks = []
    for seed in experiment.seeds:  # outermost: a run cut short has equal seeds everywhere
        for dataset in experiment.datasets:
            missing = tuple(
                name
                for name in experiment.strategies
                if key(_identity(experiment, dataset, seed, name)) not in done
            )
            if missing:
                tasks.append(_Task(experiment, dataset, seed, missing, stamp))
    if jobs == 1:
        for task in tasks:
            yield from _finish(path, task, _done(task))
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context, initializer=_start) as pool:
        running = {pool.submit(_done, task): task for task in tasks}
        for future in concurrent.futures.as_completed(running):
            yield from _finish(path, running[future], future.result())


def count_missing(experiment: Experiment, path: Path) -> int:
    """Return the number of cells that are still to be run."""
    done = {key(row) for row in read(path)}
    return sum(
        key(_identity(experiment, dataset, seed, name)) not in done
        for seed in experiment.seeds
        for dataset in experiment.datasets
        for name in experiment.strategies
    )


def chosen(
    experiment: Experiment,
    datasets: Sequence[str] | None,
    strategies: Sequence[str] | None,
    seeds: Sequence[int] | None,
) -> Experiment:
    """Return the experiment with other data sets, strategies or seeds."""
    changes: dict[str, Any] = {}
    if datasets:
        changes["datasets"] = tuple(datasets)
    if strategies:
        changes["strategies"] = tuple(strategies)
    if seeds:
        changes["seeds"] = tuple(seeds)
    return replace(experiment, **changes)


def _start() -> None:
    """Prepare a worker: one thread, and an end when the parent is killed."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _identity(experiment: Experiment, dataset: str, seed: int, strategy: str) -> dict[str, Any]:
    return dict(
        dataset=dataset,
        network=DATASETS[dataset].network,
        loss=experiment.loss,
        budget=experiment.budget,
        strategy=strategy,
        seed=seed,
    )


def _finish(
    path: Path, task: _Task, result: tuple[list[dict[str, Any]], list[str]]
) -> Iterator[int]:
    rows, errors = result
    if rows:
        append(path, rows, STREAMED_COLUMNS if task.experiment.streams else COLUMNS)
        yield len(rows)
    for error in errors:
        print(f"{task.dataset}, seed {task.seed}: {error}", flush=True)
        yield 0


def _first_labels(data: Split, per_class: int, rng: np.random.Generator) -> np.ndarray:
    order = rng.permutation(len(data.y))
    each = [order[data.y[order] == label][:per_class] for label in range(data.classes)]
    return np.concatenate(each)


def _done(task: _Task) -> tuple[list[dict[str, Any]], list[str]]:
    return (_streamed if task.experiment.streams else _asked)(task)


def _streamed(task: _Task) -> tuple[list[dict[str, Any]], list[str]]:
    """Learn a stream of labels by every rule: rows, and what went wrong."""
    data, budget = split(task.dataset, task.seed), BUDGETS[task.experiment.budget]
    rng = np.random.default_rng([task.seed, 1])
    first = _first_labels(data, budget.initial(data.classes), rng)
    try:
        results = stream(
            data,
            budget,
            first,
            task.strategies,
            loss=task.experiment.loss,
            seed=task.seed,
            queried=task.experiment.budget == "stream_queried",
        )
    except Exception:
        return [], [f"{', '.join(task.strategies)} failed\n{traceback.format_exc()}"]
    rows = [
        _identity(task.experiment, task.dataset, task.seed, name)
        | dict(
            labels=" ".join(str(round(share * len(first))) for share in CHECKPOINTS),
            accuracy=" ".join(f"{value:.4f}" for value in result.accuracy),
            seconds=f"{statistics.median(result.seconds):.4f}",
        )
        | {
            signal: " ".join(f"{value:.4g}" for value in values)
            for signal, values in result.signals.items()
        }
        | task.stamp
        for name, result in results.items()
    ]
    return rows, []


def _asked(task: _Task) -> tuple[list[dict[str, Any]], list[str]]:
    """Train, ask, label, and again, all strategies in step: rows, and what went wrong."""
    data, budget = split(task.dataset, task.seed), BUDGETS[task.experiment.budget]
    loss, batch = task.experiment.loss, budget.batch(data.classes)
    rng = np.random.default_rng([task.seed, 1])
    first = _first_labels(data, budget.initial(data.classes), rng)
    labeled = dict.fromkeys(task.strategies, first)
    accuracies, costs = defaultdict(list), defaultdict(list)
    errors = []
    for step in range(budget.rounds + 1):
        names = list(labeled)
        if not names:  # all have failed
            break
        seed = (task.seed, step, 2)
        if step == 0:
            models = train(data, [first], loss=loss, seed=seed) * len(names)
        else:
            models = train(data, [labeled[name] for name in names], loss=loss, seed=seed)
        order = rng.permutation(len(data.y))
        for name, model in zip(names, models, strict=True):
            right = outputs(model, data.X_test).argmax(axis=1) == data.y_test
            accuracies[name].append(right.mean())
            if step == budget.rounds:
                continue
            candidates = order[~np.isin(order, labeled[name])][: budget.candidates]
            query = Query(
                split=data,
                model=model,
                labeled=labeled[name],
                candidates=candidates,
                batch=batch,
                loss=loss,
                rng=np.random.default_rng([task.seed, step, 3]),
                train=lambda sets, seed=seed: train(data, sets, loss=loss, seed=seed),
            )
            try:
                with _Cost() as cost:
                    picked = pick(query, name)
            except Exception:
                errors.append(f"{name} failed in round {step}\n{traceback.format_exc()}")
                del labeled[name]
                continue
            costs[name].append(cost)
            labeled[name] = np.concatenate([labeled[name], picked])
    counts = len(first) + batch * np.arange(budget.rounds + 1)
    rows = []
    for name in labeled:
        peaks = [cost.peak_mib for cost in costs[name] if cost.peak_mib is not None]
        rows.append(
            _identity(task.experiment, task.dataset, task.seed, name)
            | dict(
                labels=" ".join(map(str, counts)),
                accuracy=" ".join(f"{value:.4f}" for value in accuracies[name]),
                seconds=f"{statistics.median(cost.seconds for cost in costs[name]):.4f}",
                peak_mib=f"{max(peaks):.1f}" if peaks else "",
            )
            | task.stamp
        )
    return rows, errors


class _Cost:
    """Processor time and peak memory of what is done inside (Linux; else the time only)."""

    seconds: float
    peak_mib: float | None = None

    def __enter__(self) -> _Cost:
        self._before = _memory(reset=True)
        self._start = time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.process_time() - self._start
        after = _memory()
        if self._before is not None and after is not None:
            self.peak_mib = max(after["VmHWM"] - self._before["VmRSS"], 0) / 1024


def _memory(reset: bool = False) -> dict[str, int] | None:
    """Resident memory of this process and its peak since the last reset, in KiB."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) for name in ("VmHWM", "VmRSS")}
