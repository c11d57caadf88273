"""Results in memory or in memory-mapped files, which interruptions never leave half done."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PathLike = str | os.PathLike[str]


def _numpy_dtype(dtype: torch.dtype) -> type[np.floating[Any]]:
    return np.float64 if dtype == torch.float64 else np.float32


def _beside(path: PathLike) -> tuple[Path, Path]:
    final = Path(path)
    return final, final.with_name(final.name + ".partial")


def _progress_of(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _new_array(path: Path, dtype: torch.dtype, shape: tuple[int, int]) -> Any:
    """Map a new file, all of whose room is taken at once.

    A map has no way to say later that the disk is full: that would end the process.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=_numpy_dtype(dtype), shape=shape)
    try:
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        del array
        path.unlink()
        raise OSError(
            error.errno, f"no room for an array of shape {shape} ({error.strerror})", str(path)
        ) from error
    return array


class Rows:
    """Blocks of rows, in order: into a tensor, a file, or (unknown number of rows) a list."""

    def __init__(
        self,
        rows: int | None,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        path: PathLike | None,
    ) -> None:
        if path is not None and rows is None:
            raise ValueError("out needs data of known length; this loader has none")
        self._path = path
        self._expected, self._filled = rows, 0
        self._blocks: list[Tensor] = []
        self._tensor: Tensor | None = None
        self._map: Any = None
        if path is not None:
            self._map = _new_array(_beside(path)[1], dtype, (rows or 0, width))
        elif rows is not None:
            self._tensor = torch.empty((rows, width), dtype=dtype, device=device)

    def append(self, block: Tensor) -> None:
        stop = self._filled + len(block)
        if self._expected is not None and stop > self._expected:
            raise ValueError(f"X gave more rows than its length promised ({self._expected})")
        if self._map is not None:
            self._map[self._filled : stop] = block.cpu().numpy()
        elif self._tensor is not None:
            self._tensor[self._filled : stop] = block
        else:
            self._blocks.append(block)
        self._filled = stop

    def discard(self) -> None:
        """Remove what a failed call has written."""
        if self._map is not None and self._path is not None:
            self._map = None
            _beside(self._path)[1].unlink(missing_ok=True)

    def finish(self) -> Any:
        """Return the tensor, or the file as a read-only memory map."""
        if self._expected is not None and self._filled != self._expected:
            raise ValueError(f"X gave {self._filled} rows; its length promised {self._expected}")
        if self._path is not None:
            self._map.flush()
            self._map = None
            final, partial = _beside(self._path)
            os.replace(partial, final)
            return np.load(final, mmap_mode="r")
        if self._tensor is None and not self._blocks:
            raise ValueError("X is empty; expected at least one point")
        return self._tensor if self._tensor is not None else torch.cat(self._blocks)


class GramFile:
    """A matrix in a file that remembers which of its blocks are done, for restarts.

    Its blocks are those of panels of `panel` points.
    """

    def __init__(
        self,
        path: PathLike,
        shape: tuple[int, int],
        dtype: torch.dtype,
        fingerprint: str,
        panel: int,
    ) -> None:
        self._final, self._partial = _beside(path)
        self._progress = _progress_of(self._partial)
        self._fingerprint, self._panel = fingerprint, panel
        self.done: set[tuple[int, int]] = set()
        kind = _numpy_dtype(dtype)
        if self._partial.exists() and self._progress.exists():
            state = json.loads(self._progress.read_text())
            if state["fingerprint"] != fingerprint:
                raise ValueError(
                    f"{self._partial} is the unfinished result of another model, data or setting; "
                    "delete it to start afresh"
                )
            if state["panel"] != panel:
                raise ValueError(
                    f"{self._partial} was begun with another memory_budget (blocks of "
                    f"{state['panel']} points, now {panel}): give that one, or none; or delete the "
                    "file to start afresh"
                )
            self.matrix = np.lib.format.open_memmap(self._partial, mode="r+")
            if self.matrix.shape != shape or self.matrix.dtype != kind:
                raise ValueError(f"{self._partial} is damaged; delete it to start afresh")
            self.done = {(int(i), int(j)) for i, j in state["done"]}
        else:
            self.matrix = _new_array(self._partial, dtype, shape)
            self._save()

    @staticmethod
    def panel_of(path: PathLike) -> int | None:
        """Points of a panel of the unfinished matrix there, if there is one."""
        _, partial = _beside(path)
        if not partial.exists() or not _progress_of(partial).exists():
            return None
        panel = json.loads(_progress_of(partial).read_text()).get("panel")
        return panel if isinstance(panel, int) and panel > 0 else None

    def _save(self) -> None:
        state = {
            "fingerprint": self._fingerprint,
            "panel": self._panel,
            "done": sorted(self.done),
        }
        temporary = self._progress.with_name(self._progress.name + ".new")
        temporary.write_text(json.dumps(state))
        os.replace(temporary, self._progress)

    def mark(self, i: int, j: int) -> None:
        """Record that block (i, j) is written; what it says is on disk before it says so."""
        self.matrix.flush()
        self.done.add((i, j))
        self._save()

    def finish(self) -> Any:
        self.matrix.flush()
        del self.matrix
        os.replace(self._partial, self._final)
        self._progress.unlink()
        return np.load(self._final, mmap_mode="r")


def identity_of(net: nn.Module) -> Iterator[Tensor | str]:
    """Everything of a network that its outputs depend on, code apart."""
    # Objects show their address where they have nothing better to show.
    yield re.sub(r" at 0x[0-9a-fA-F]+", "", repr(net))
    for name, value in net.state_dict().items():
        yield name
        # What get_extra_state returns may be anything.
        yield value if isinstance(value, Tensor) else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def fingerprint(values: Iterable[Tensor | str]) -> str:
    """SHA-256 of tensors and settings: what a restarted computation must find unchanged."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, str):
            digest.update(value.encode())
        else:
            digest.update(f"{tuple(value.shape)}{value.dtype}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
