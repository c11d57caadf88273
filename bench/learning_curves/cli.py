"""The command line of ``python -m bench.learning_curves``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from .data import BUDGETS, DATASETS, MissingDataError
from .experiments import EXPERIMENTS, chosen, count_missing, run
from .report import draw
from .results import RESULTS, STREAMED
from .strategies import known
from .streaming import RULES

__all__ = ["main"]


def _seeds(text: str) -> tuple[int, ...]:
    first, dash, last = text.partition("-")
    return tuple(range(int(first), int(last) + 1)) if dash else (int(first),)


def _names(text: str) -> list[str]:
    return text.split(",")


def main(arguments: list[str] | None = None) -> None:
    """Run the command; exits with 1 if a cell failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.learning_curves",
        description="Learning curves of query strategies: run them, draw them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="experiments, data sets and strategies")
    of_run = commands.add_parser(
        "run", help="run the cells of an experiment that the results do not hold yet"
    )
    of_run.add_argument("experiment", choices=EXPERIMENTS)
    of_run.add_argument("--datasets", type=_names, help="comma-separated, in place of its own")
    of_run.add_argument("--strategies", type=_names, help="comma-separated, in place of its own")
    of_run.add_argument("--seeds", type=_seeds, help="7, or 0-19")
    of_run.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    of_draw = commands.add_parser("draw", help="tables and pictures of docs/evidence.md, again")
    of_draw.add_argument(
        "--check", action="store_true", help="only tell whether tables are current"
    )
    of_run.add_argument(
        "--results", type=Path, help=f"the CSV file; default: bench/results/{RESULTS.name}, of "
        f"streams {STREAMED.name}",
    )  # fmt: skip
    of_draw.add_argument(
        "--results", type=Path, default=RESULTS,
        help=f"the CSV file; {STREAMED.name} lies beside it",
    )  # fmt: skip
    of_draw.add_argument("--docs", type=Path, default=Path(__file__).parents[2] / "docs")
    given = parser.parse_args(arguments)
    if given.command == "list":
        _list()
    elif given.command == "draw":
        if not draw(given.results, given.docs, check=given.check):
            sys.exit(1)
    else:
        _run(given)


def _list() -> None:
    for name, experiment in EXPERIMENTS.items():
        print(f"{name}: {experiment.loss}, budget {experiment.budget}")
        print(f"    {len(experiment.seeds)} seeds of {', '.join(experiment.datasets)}")
        print(f"    {', '.join(experiment.strategies)}")
    print(f"budgets: {', '.join(BUDGETS)}")
    print(f"data sets: {', '.join(DATASETS)}")
    print(
        f"strategies: {', '.join(known())}; options after +, as in epig+top or default+outputs=full"
    )
    print(f"rules of learning a stream: {', '.join(RULES)}; as in condition+T_r=1")


def _run(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    experiment = chosen(
        EXPERIMENTS[given.experiment], given.datasets, given.strategies, given.seeds
    )
    unknown = [name for name in experiment.datasets if name not in DATASETS]
    heads = RULES if experiment.streams else known()
    unknown += [name for name in experiment.strategies if name.split("+")[0] not in heads]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; python -m bench.learning_curves list")
    path = given.results or (STREAMED if experiment.streams else RESULTS)
    missing = count_missing(experiment, path)
    command = f"python -m bench.learning_curves run {given.experiment}"
    for option in ("datasets", "strategies", "seeds"):
        value = getattr(given, option)
        if value is not None:
            text = f"{value[0]}-{value[-1]}" if option == "seeds" else ",".join(value)
            command += f" --{option} {text}"
    failed = 0
    with tqdm(total=missing, desc=given.experiment, unit="cell", mininterval=1) as bar:
        try:
            for finished in run(experiment, path, given.jobs, command):
                bar.update(finished)
                failed += finished == 0
        except MissingDataError as error:
            sys.exit(str(error))
    if failed:
        sys.exit(f"{failed} cells failed; the others are in {path}")


if __name__ == "__main__":
    main()
