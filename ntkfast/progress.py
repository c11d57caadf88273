"""Signs of progress for long work that never get in the way."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

__all__ = ["track", "waiting"]

T = TypeVar("T")

# Work shorter than this shows no bar: a flash of one tells nobody anything.
_DELAY_SECONDS = 2.0
# Set where `waiting` should show nothing more, because `track` does.
_hidden: threading.Event | None = None


def _tqdm() -> Any:
    """Return the class of bars, or None where nobody would see one."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm


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
    tqdm = _tqdm()
    if tqdm is None:
        return iterable
    if _hidden is not None:
        _hidden.set()
    bar: Iterable[T] = tqdm(
        iterable,
        total=total,
        desc=description or None,
        delay=_DELAY_SECONDS,
        leave=False,
        dynamic_ncols=True,
    )
    return bar


@contextlib.contextmanager
def waiting(description: str) -> Iterator[None]:
    """Show for how long the body has been running, under the conditions of `track`.

    A bar of `track` in the body takes its place.
    """
    global _hidden
    tqdm = _tqdm()
    if tqdm is None:
        yield
        return
    done = _hidden = threading.Event()

    def show() -> None:
        if done.wait(_DELAY_SECONDS):
            return
        bar = tqdm(desc=description, bar_format="{desc}: {elapsed}", leave=False)
        bar.start_t -= _DELAY_SECONDS
        while not done.wait(1.0):
            bar.refresh()
        bar.close()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _hidden = None
