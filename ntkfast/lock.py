"""One thread at a time for objects whose calls change them."""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["Lock", "exclusive"]

Function = TypeVar("Function", bound=Callable[..., Any])


class Lock:
    """A re-entrant lock, held in the order in which threads ask for it.

    (For cross-entropy the order of labels counts; and a thread that asks again and again would keep
    the others waiting.) A copy or a pickle of it is a new one, and a forked process has its own: in
    a fork the thread that holds it may not be there to let it go.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._owner: int | None = None
        self._depth = 0
        self._waiting: deque[tuple[int, threading.Lock]] = deque()
        self._process = os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            self.__init__()  # type: ignore[misc]
        me = threading.get_ident()
        with self._mutex:
            if self._owner in (None, me):
                self._owner = me
                self._depth += 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append((me, turn))
        try:
            turn.acquire()
        except BaseException:  # Ctrl-C while waiting
            with self._mutex:
                if (me, turn) in self._waiting:
                    self._waiting.remove((me, turn))
                else:
                    self._pass_on()
            raise

    def _pass_on(self) -> None:
        self._owner, self._depth = None, 0
        if self._waiting:
            self._owner, turn = self._waiting.popleft()
            self._depth = 1
            turn.release()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process != os.getpid():
            return
        with self._mutex:
            self._depth -= 1
            if self._depth == 0:
                self._pass_on()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()


def exclusive(function: Function) -> Function:
    """Let one thread at a time call methods of an object, by its attribute `_lock`.

    A function is made exclusive likewise, for its first argument.
    """
    first = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def locked(*arguments: Any, **keywords: Any) -> Any:
        lock = getattr(arguments[0] if arguments else keywords.get(first), "_lock", None)
        if not isinstance(lock, Lock):  # the wrong type, which the function refuses
            return function(*arguments, **keywords)
        with lock:
            return function(*arguments, **keywords)

    return locked  # type: ignore[return-value]
