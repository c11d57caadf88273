"""Query strategies for the frameworks that users have, one module each.

`skactiveml` (scikit-activeml), `modal` (modAL), `small_text`, `baal`, `libact`, `skorch`. A module
imports its host, this package imports none: ``from ntkfast.integrations.skactiveml import
LookAhead``, or ``ntkfast.integrations.skactiveml.LookAhead``. Every docstring says whether indices
refer to all points or to the pool.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["baal", "libact", "modal", "skactiveml", "skorch", "small_text"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
