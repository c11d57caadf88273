"""Rows of `bench/results/*.csv`: what was measured, where, on which commit, by which command."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ntkfast import ops

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "benchmark",
    "case",
    "provider",
    "median_ms",
    "min_ms",
    "max_ms",
    "ratio",  # median over rounds of this provider's time over ntkfast's in the same round
    "error",
    "rounds",
    "threads",
    "isa",
    "device",
    "commit",
    "date",
    "command",
)


def device() -> str:
    """Processor model and number of cores in use."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(
            (part.strip() for part in line.split(":", 1))
            for line in cpuinfo.read_text().split("\n\n")[0].splitlines()
            if ":" in line
        )
        model = f"{fields.get('model name', model)} family {fields.get('cpu family', '?')}"
    return model


def commit(*, of_sources: bool = False) -> str:
    """Short hash of HEAD, + when sources differ from it; $COMMIT where there is no history.

    `of_sources`: of the last commit that changed them, which outlasts a rebase of what came after.
    """
    if "COMMIT" in os.environ:
        return os.environ["COMMIT"]
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    sources = ("csrc", "ntkfast")
    try:
        changed = git("status", "--porcelain", "--untracked-files=no", *sources)
        found = git("log", "-1", "--format=%h", *(("--", *sources) if of_sources else ()))
        return found + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # no git or no history: a measured row is kept all the same


def interleaved(
    providers: Mapping[str, Callable[[], Any]], rounds: int, slow: Mapping[str, int] | None = None
) -> dict[str, list[float]]:
    """Seconds of every provider, all of them once per round; `slow` ones in fewer rounds.

    On one thread it is that thread's processor time, which other processes disturb least.
    """
    clock = time.thread_time if ops.num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in providers}
    for function in providers.values():
        function()  # compilers, caches, thread pools
    for i in range(rounds):
        for name, function in providers.items():
            if slow and i >= slow.get(name, rounds):
                continue
            start = clock()
            function()
            times[name].append(clock() - start)
    return times


def rows(
    benchmark: str, case: str, times: Mapping[str, list[float]], errors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """One row per provider; ratios pair the times of the same round with the first provider's."""
    own = next(iter(times.values()))
    return [
        dict(
            benchmark=benchmark,
            case=case,
            provider=name,
            median_ms=f"{statistics.median(t) * 1e3:.4g}",
            min_ms=f"{min(t) * 1e3:.4g}",
            max_ms=f"{max(t) * 1e3:.4g}",
            ratio=f"{statistics.median(a / b for a, b in zip(t, own, strict=False)):.3g}",
            error=f"{errors[name]:.1e}" if name in errors else "",
            rounds=len(t),
            threads=ops.num_threads(),
            isa=ops.cpu_isa(),
            device=device(),
            commit=commit(),
            date=datetime.date.today().isoformat(),
            command="python " + " ".join(sys.argv),
        )
        for name, t in times.items()
    ]


def write(path: Path, new: list[dict[str, Any]]) -> None:
    """Replace the rows of the same benchmark, case, provider, threads and device; keep the
    others."""

    def key(row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[c]) for c in ("benchmark", "case", "provider", "threads", "device"))

    old = list(csv.DictReader(path.open())) if path.exists() else []
    replaced = {key(row) for row in new}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([row for row in old if key(row) not in replaced] + new)


def show(new: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    for row in new:
        print(
            f"{row['benchmark']:18} {row['provider']:42} median {row['median_ms']:>9} ms "
            f"[{row['min_ms']}, {row['max_ms']}]  x{row['ratio']:<6} error {row['error']}"
        )
