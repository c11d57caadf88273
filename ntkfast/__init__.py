"""Look-ahead active learning with neural tangent kernels.

What would my network predict everywhere, if this pool point had that label? `Posterior` is the
network linearised and conditioned on labels, `utilities` and `select` rank a pool by what each
label would change, `EmpiricalNTK` makes the features of a torch network, and `LookAheadLearner`
does all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from . import _core  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"the compiled module of ntkfast cannot be loaded from {__path__[0]} ({error}): install "
        "ntkfast with pip (pip install . beside its pyproject.toml), and unless that was an "
        "--editable installation start Python in another folder than its sources"
    ) from error

from .config import show_config
from .criteria import criteria
from .loss import calibration_temperature
from .posterior import Posterior
from .selection import select, utilities
from .store import open_features

if TYPE_CHECKING:
    from .learner import LookAheadLearner
    from .ntk import EmpiricalNTK

__all__ = [
    "EmpiricalNTK",
    "LookAheadLearner",
    "Posterior",
    "calibration_temperature",
    "criteria",
    "open_features",
    "select",
    "show_config",
    "utilities",
]

# These need torch, which numpy users need not have.
_NEED_TORCH = {"EmpiricalNTK": "ntk", "LookAheadLearner": "learner"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ntkfast")
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f".{_NEED_TORCH[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"{name} needs torch: pip install 'ntkfast[torch]'") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_NEED_TORCH, "__version__"})
