"""A progress bar for long loops that never gets in the way."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

__all__ = ["track"]

T = TypeVar("T")

# Work shorter than this shows no bar: a flash of one tells nobody anything.
_DELAY_SECONDS = 2.0


def track(iterable: Iterable[T], total: int | None = None, description: str = "") -> Iterable[T]:
    """Iterate over `iterable`, with a progress bar when somebody is there to see it.

    The bar needs tqdm, a terminal on standard error and a loop of more than about two seconds.
    Otherwise, in a log file, a notebook job or without tqdm, this is plain iteration.

    Parameters
    ----------
    iterable
        What to iterate over.
    total
        Number of items; default ``len(iterable)`` where it has one.
    description
        Text in front of the bar.

    Returns
    -------
    iterable
        The same items in the same order.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        return iterable
    try:
        from tqdm import tqdm
    except ImportError:
        return iterable
    bar: Iterable[T] = tqdm(
        iterable,
        total=total,
        desc=description or None,
        delay=_DELAY_SECONDS,
        leave=False,
        dynamic_ncols=True,
    )
    return bar
