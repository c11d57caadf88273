"""Features in a folder that several processes may write: which rows are whose, and one sketch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arrays import ArgumentTypeError, ArgumentValueError
from ..store import shared_arrays
from .choose import Sketches
from .files import PathLike, fingerprint

__all__ = ["as_dtype", "as_share", "folder_of", "shared_sketches"]


def folder_of(out: PathLike | None) -> Path | None:
    """Return the folder that `out` asks for; None: a ``.npy`` file, or no file."""
    return None if out is None or Path(out).suffix == ".npy" else Path(out)


def refuse_without_folder(given: dict[str, Any]) -> None:
    """Raise a ValueError for arguments that are about folders."""
    for name, value in given.items():
        if value is not None:
            raise ArgumentValueError(
                name, f"{name} is about folders of features: give out=<folder>, too"
            )


def as_share(group: Any, rank: Any, world_size: Any) -> tuple[int, int]:
    """Return the number of this process and how many there are.

    In this order: `rank` and `world_size`, the process group, the default group of
    ``torch.distributed``, the variables of torchrun; alone otherwise.
    """
    if (rank is None) != (world_size is None):
        missing = "rank" if rank is None else "world_size"
        raise ArgumentValueError(missing, "rank and world_size belong together; give both")
    if group is not None and rank is not None:
        raise ArgumentValueError("group", "give group, or rank and world_size, not both")
    if rank is None:
        distributed = torch.distributed
        if group is not None or (distributed.is_available() and distributed.is_initialized()):
            rank, world_size = distributed.get_rank(group), distributed.get_world_size(group)
            if rank < 0:
                raise ArgumentValueError("group", "this process is not in group")
        elif "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            rank, world_size = (_number_in_environment(name) for name in ("RANK", "WORLD_SIZE"))
        else:
            return 0, 1
    for name, value in (("rank", rank), ("world_size", world_size)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ArgumentTypeError(name, f"{name} is {value!r}; expected an int")
    if not 0 <= rank < world_size:
        raise ArgumentValueError(
            "rank", f"rank is {rank} and world_size {world_size}; expected 0 <= rank < world_size"
        )
    return int(rank), int(world_size)


def _number_in_environment(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise ValueError(f"{name}={os.environ[name]}: expected an integer") from None


def as_dtype(dtype: Any, default: torch.dtype) -> np.dtype[Any]:
    """Return the type of rows on disk: float16, float32 or float64, of numpy or torch."""
    text = str(default if dtype is None else dtype).removeprefix("torch.")
    try:
        kind = np.dtype(text if isinstance(dtype, (torch.dtype, str, type(None))) else dtype)
    except TypeError:
        kind = None  # no type of numpy: bfloat16
    if kind is None or kind.kind != "f" or kind.itemsize not in (2, 4, 8):
        raise ArgumentValueError(
            "dtype", f'dtype is {dtype!r}; expected "float16", "float32" or "float64"'
        )
    return kind.newbyteorder("=")


def shared_sketches(
    folder: Path, network: str, own: Sketches | None, fit: Callable[[], Sketches], device: Any
) -> tuple[Sketches, str]:
    """Return the fitted sketch of a store and its fingerprint, fitting it where it has none.

    Processes that fit at the same time all take what the first one writes: their own would differ
    in rounding.
    """
    path = folder / "sketch.npz"
    if not path.exists():
        shared_arrays(path, {"network": np.array(network), **(own or fit()).arrays()})
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        found, theirs = Sketches.restored(arrays, device), str(arrays["network"])
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged ({error}); delete the folder") from error
    if theirs != network:
        raise ArgumentValueError(
            "out",
            f"out: {path} is the sketch of another network (its parameters or its structure "
            "differ). Give another folder, or delete that one",
        )
    if own is not None and not found.agrees_with(own):
        raise ArgumentValueError(
            "out",
            f'out: {path} holds another fit of sketch="auto" than this EmpiricalNTK has made '
            "before, so that their features would not fit together. A new EmpiricalNTK takes the "
            "one that is there",
        )
    values = (v if v.dtype.kind == "U" else torch.from_numpy(v) for v in arrays.values())
    return found, fingerprint(v if isinstance(v, Tensor) else str(v) for v in values)
