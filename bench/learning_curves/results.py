"""Rows of results: one a cell, appended whole, so that a killed run loses no finished one."""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .streaming import SIGNALS

__all__ = ["COLUMNS", "RESULTS", "STREAMED", "STREAMED_COLUMNS", "append", "key", "read"]

RESULTS = Path(__file__).parents[1] / "results" / "learning_curves.csv"
STREAMED = RESULTS.with_name("streaming.csv")
_KEY = ("dataset", "network", "loss", "budget", "strategy", "seed")
COLUMNS = (
    *_KEY,
    "labels",  # at every checkpoint
    "accuracy",  # on the test set, at every checkpoint
    "seconds",  # processor time of a query, median
    "peak_mib",  # most memory that a query took beyond what the process had
    "commit",  # the last one that changed csrc or ntkfast
    "date",
    "command",
)
STREAMED_COLUMNS = (
    *_KEY,  # the strategy is a rule of learning
    "labels",
    "accuracy",
    "seconds",  # processor time of learning the latest labels, median
    *SIGNALS,  # of conditioning, at every checkpoint after the first
    "commit",
    "date",
    "command",
)


def key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells a cell from all others."""
    return tuple(str(row[column]) for column in _KEY)


def read(path: Path) -> list[dict[str, str]]:
    """Return the finished cells; of a line that a crash of the machine has torn, nothing.

    Of a cell that is there twice the last one counts.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("command") and None not in row]
    return list({key(row): row for row in rows}.values())


def append(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> None:
    """Append rows by a single write; runs that share the file take turns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size == 0:
            writer.writeheader()
        elif os.pread(descriptor, 1, size - 1) != b"\n":  # a torn line: it stays one by itself
            text.write("\n")
        writer.writerows(rows)
        data = text.getvalue().encode()
        if os.write(descriptor, data) != len(data):
            raise OSError(f"{path}: not all of a row was written; is the disk full?")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
