"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

__all__ = ["PARTIAL", "hidden_neighbour", "replacing"]

# What a killed process may leave behind.
PARTIAL = ".ntkfast-*.part"


def hidden_neighbour(path: Path) -> Path:
    """Return a new name for what is to become `path`."""
    return path.with_name(PARTIAL.replace("*", os.urandom(8).hex()))


@contextlib.contextmanager
def replacing(path: Path, mode: str, **options: Any) -> Iterator[IO[Any]]:
    """Open a hidden neighbour of `path` that takes its name once it is written whole.

    A failure or Ctrl-C leaves an older file of that name as it was. Of several writers at once, in
    threads or processes, each writes a whole file and the last one stays. `mode` ("x" or "xb") and
    `options` are those of `open`.
    """
    target = path.resolve()  # replace what a link points to, not the link
    # "x" creates the file or fails; that of tempfile.mkstemp only its owner could read.
    partial = hidden_neighbour(target)
    file = partial.open(mode, **options)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
