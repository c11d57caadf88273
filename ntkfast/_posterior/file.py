"""The file of a posterior: an .npz archive of its arrays, without pickles.

Version 1 holds no `Factor` of the labels; 2 neither a `residual_temperature`, which is 1 then, nor
what coverage needs of labelled points; 3 is of one process that holds all features in memory,
of a kernel without labels that teach nothing, and of outputs that are those of a trained model
(`prior`). They are still written where there is nothing more.

Of features on disk the file says where they lie, seen from itself and from the root, and what they
were: `read` finds them in either place, and refuses others. Of a pool that ranks share, each has a
file of its own.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import (
    ArgumentTypeError,
    ArgumentValueError,
    Array,
    as_floats,
    as_indices,
    as_positive,
    as_weights,
    check_shape,
)
from ..files import replacing
from ..loss import Loss, as_loss, residual_temperature_of
from .blocks import Space, in_blocks
from .covariance import FunctionSpace, WeightSpace
from .coverage import Given
from .disk import DiskSpace, Place, Source, is_on_disk
from .engines import CPU
from .group import ALONE, Alone

__all__ = ["Stored", "part", "part_there", "read", "writing"]

_FORMAT = "ntkfast posterior"
_VERSION = 4


@dataclass(frozen=True)
class Stored:
    """What a file keeps of a posterior; `labels`: how many it has been given."""

    space: Space
    outputs: Array
    mean: Array
    is_labeled: Array
    ridge: float
    loss: Loss
    label_scale: float
    labels: int
    residual_temperature: float = 1.0
    given: Given | None = None
    offsets: Array | None = None  # where the points of each rank begin; None: one process
    prior: bool = False


def part(path: str | os.PathLike[str], group: Alone) -> Path:
    """Return the file of a rank."""
    whole = Path(path)
    if group.size == 1:
        return whole
    return whole.with_name(f"{whole.stem}-{group.rank}-of-{group.size}{whole.suffix}")


def part_there(path: str | os.PathLike[str], group: Alone) -> Path:
    """Return the file of a rank, or raise a FileNotFoundError that says what is there instead."""
    own, whole = part(path, group), Path(path)
    if own.exists():
        return own
    of_ranks = sorted(whole.parent.glob(f"{glob.escape(whole.stem)}-*-of-*{whole.suffix}"))
    there = [str(found.name) for found in (whole, *of_ranks) if found.exists()]
    hint = ""
    if there:
        hint = (
            f"; there is {', '.join(there[:3])}{', ...' if len(there) > 3 else ''}: load it "
            "without group= if one process has saved it, else with a group of as many ranks"
        )
    raise FileNotFoundError(errno.ENOENT, f"no such posterior{hint}", str(own))


@contextlib.contextmanager
def writing(path: Path, stored: Stored) -> Iterator[None]:
    """Write a file, all of it or nothing: it takes its name at the end of the body."""
    arrays = stored.space.arrays()
    rows = stored.space.rows
    version = 2 if "factor" in arrays else 1
    if stored.given is not None or stored.residual_temperature != 1:
        version = 3
        arrays["residual_temperature"] = np.array(stored.residual_temperature)
        arrays["holds_labeled"] = np.array(stored.given is not None)
        if stored.given is not None:
            arrays |= stored.given.arrays(stored.space.engine)
    if isinstance(rows, DiskSpace):
        place = rows.source.place()
        with contextlib.suppress(ValueError):  # another drive
            relative = os.path.relpath(place.path, path.absolute().parent)
            arrays["relative"] = np.array(relative)
        arrays["source"] = np.array(json.dumps(place._asdict()))
    if stored.offsets is not None:
        arrays["offsets"] = stored.offsets
        arrays["rank"] = np.array(rows.group.rank)
    if stored.prior:
        arrays["prior"] = np.array(True)
    if arrays.keys() & {"source", "offsets", "untold", "prior"}:
        version = 4
        arrays.setdefault("residual_temperature", np.array(stored.residual_temperature))
        arrays.setdefault("holds_labeled", np.array(stored.given is not None))
    with replacing(path, "xb") as file:
        np.savez(
            file,
            format=np.array(_FORMAT),
            version=np.array(version),
            outputs=stored.outputs,
            mean=stored.mean,
            is_labeled=stored.is_labeled,
            ridge=np.array(stored.ridge),
            loss=np.array(stored.loss),
            label_scale=np.array(stored.label_scale),
            labels=np.array(stored.labels),
            **arrays,
        )
        yield


def read(path: Path, features: Any = None, group: Alone = ALONE) -> Stored:
    """Read a file, onto the CPU; a ValueError that names it if it is damaged.

    Parameters
    ----------
    path : Path
        Of this rank.
    features : memmap, optional
        Where features on disk lie now.
    group : Alone
        The ranks that read.
    """
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            arrays = {} if isinstance(archive, np.ndarray) else dict(archive)
        # Damage surfaces as BadZipFile, zlib.error, EOFError, ValueError, ... by its place.
        except Exception as error:
            raise ValueError(f"{path} is damaged or not a posterior: {error}") from error
    if str(arrays.get("format")) != _FORMAT:
        raise ValueError(f"{path} is not a posterior saved by ntkfast")
    with _damage(path):
        version = _int(arrays, "version")
    if version > _VERSION:
        raise ValueError(f"{path} has version {version}; this ntkfast reads up to {_VERSION}")
    _refuse_other_ranks(path, arrays, group)
    source = None
    if "source" in arrays:
        with _damage(path):
            place = _place(arrays)
        source = _found(path, arrays, place, features)
    elif features is not None:
        raise ArgumentValueError(
            "features", f"features: {path} holds its features itself; leave them out"
        )
    with _damage(path):
        stored = _checked(arrays, source)
    return stored


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Say of which file it is that something is missing in it, or wrong."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path} is damaged: it holds no {error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _refuse_other_ranks(path: Path, arrays: dict[str, Array], group: Alone) -> None:
    """Raise a ValueError for the file of another number of ranks, or of one process."""
    with _damage(path):
        ranks = len(arrays["offsets"]) - 1 if "offsets" in arrays else 1
        rank = _int(arrays, "rank") if "offsets" in arrays else 0
    if "offsets" not in arrays and group is not ALONE:
        raise ValueError(
            f"{path} was saved by one process without a group: load it without group=, or build "
            "the posterior again with it"
        )
    # A group of one writes what one process can read.
    if (rank, ranks) != (group.rank, group.size) or (ranks > 1 and group is ALONE):
        raise ValueError(
            f"{path} holds the points of rank {rank} of {ranks}: load it with group=, a process "
            f"group of {ranks} ranks"
        )


def _place(arrays: dict[str, Array]) -> Place:
    """Return where the features lie, or lay."""
    place = json.loads(str(arrays["source"]))
    shape, strides = ((int(n), int(m)) for n, m in (place["shape"], place["strides"]))
    return Place(**(place | {"shape": shape, "strides": strides}))


def _changed(path: Path, features: str) -> str:
    return (
        f"{path} is of features in {features}, and these have been changed since: build the "
        "posterior again, or bring the features back that it was saved with"
    )


def _is_same(source: Source, place: Place, *, untouched: bool = False) -> bool:
    """Whether these are the rows that were saved: some of them, and all if they may differ."""
    if source.digest() != place.digest or not (untouched or source.whole_now() == place.whole):
        return False
    source.whole = place.whole
    return True


def _found(path: Path, arrays: dict[str, Array], place: Place, features: Any) -> Source:
    """Return the features; they are read once, unless their file is as it was."""
    if features is not None:
        if not is_on_disk(features):
            raise ArgumentTypeError(
                "features",
                "features must be a memory map: np.load(path, mmap_mode='r'), or those of "
                f"open_features; got {type(features).__name__}",
            )
        source = Source("features", features, place.shape)
        if source.array.dtype != place.dtype or not _is_same(source, place):
            raise ArgumentValueError(
                "features", f"features: {path} was saved with others; some of the rows differ"
            )
        return source
    candidates = [Path(place.path)]
    if "relative" in arrays:  # first: a folder may have been copied as a whole
        candidates.insert(0, path.absolute().parent / str(arrays["relative"]))
    there = [candidate for candidate in candidates if candidate.exists()]
    if not there:
        raise ValueError(
            f"{path} is of features in {place.path}, which is not there: pass "
            "features=np.load(path, mmap_mode='r') with their present path, or the .features of "
            "open_features"
        )
    for candidate in there:
        array = place.opened(candidate)
        if array is None:
            continue
        source = Source("features", array, place.shape)
        if _is_same(source, place, untouched=place.is_untouched(candidate)):
            return source
    raise ValueError(_changed(path, str(there[0])))


def _int(arrays: dict[str, Array], name: str) -> int:
    """Return an integer >= 0 that a file holds."""
    value = arrays[name]
    if value.dtype.kind not in "iu" or value.ndim != 0 or value < 0:
        raise ValueError(f"{name} is {value!r}; expected an integer >= 0")
    return int(value)


def _checked(arrays: dict[str, Array], source: Source | None) -> Stored:
    """Return what a file holds; `source`: the features, where these are on disk."""
    outputs = as_floats("outputs", arrays["outputs"], ("N", "k"), np.float64)
    N, k = outputs.shape
    mean = as_floats("mean", arrays["mean"], (N, k), np.float64)
    is_labeled, points, offsets = arrays["is_labeled"], N, None
    if "offsets" in arrays:
        rank, offsets = _int(arrays, "rank"), arrays["offsets"]
        if offsets.dtype != np.int64 or (np.diff(offsets) < 1).any() or offsets[0] != 0:
            raise ValueError(f"offsets is {offsets!r}; expected where the ranks' points begin")
        points = int(offsets[-1])
        check_shape("outputs", outputs, (int(offsets[rank + 1] - offsets[rank]), k))
    check_shape("is_labeled", is_labeled, (points,))
    if is_labeled.dtype != bool:
        raise ValueError(f"is_labeled has dtype {is_labeled.dtype}; expected bool")
    loss = as_loss(str(arrays["loss"]))
    if loss == "cross_entropy" and k == 1:
        raise ValueError("loss is 'cross_entropy', but there is one output")
    ridge = as_positive("ridge", arrays["ridge"])
    # k rows per point, and one column of residuals, where the kernel has blocks.
    rows = len(arrays["psi" if "psi" in arrays else "S"]) if source is None else len(source)
    has_blocks = k > 1 and rows == N * k
    per_point, columns = (k, 1) if has_blocks else (1, k)
    space: WeightSpace | FunctionSpace
    if source is not None:
        space = _disk_space(arrays, source, N * per_point, columns)
    elif "psi" in arrays:
        space = _weight_space(arrays, N * per_point, columns, ridge)
    else:
        space = _function_space(arrays, N * per_point, columns, ridge)
    return Stored(
        space=in_blocks(space, per_point),
        outputs=outputs,
        mean=mean,
        is_labeled=is_labeled,
        ridge=ridge,
        loss=loss,
        label_scale=as_positive("label_scale", arrays["label_scale"]),
        labels=_int(arrays, "labels"),
        residual_temperature=_residual_temperature(arrays, loss),
        given=_given(arrays),
        offsets=offsets,
        prior="prior" in arrays,
    )


def _given(arrays: dict[str, Array]) -> Given | None:
    """Return what coverage needs of labelled points."""
    if _int(arrays, "version") < 3 or not arrays["holds_labeled"]:
        return None
    if "theta" in arrays:
        shape = (None, len(arrays["theta"]))
        return Given(as_floats("labeled_features", arrays["labeled_features"], shape))
    n = _int(arrays, "labeled")
    diagonal = as_weights("labeled_diagonal", arrays["labeled_diagonal"], n)
    if "untold" not in arrays:
        return Given(diagonal=diagonal)
    untold = as_indices("untold", arrays["untold"], n)
    N = len(arrays["S"])
    rows = as_floats("untold_rows", arrays["untold_rows"], (len(untold), N), np.float64)
    among = as_floats("untold_among", arrays["untold_among"], (len(untold), n), np.float64)
    return Given(None, diagonal, untold, rows, among)


def _residual_temperature(arrays: dict[str, Array], loss: Loss) -> float:
    if _int(arrays, "version") < 3:
        return 1.0
    return residual_temperature_of(arrays["residual_temperature"], loss)


def _whitening(arrays: dict[str, Array], d: int, columns: int) -> dict[str, Array]:
    """Return what posteriors from features keep besides them."""
    kept = {"theta": as_floats("theta", arrays["theta"], (d, columns), np.float64)}
    if "whitening" in arrays:
        kept["whitening"] = as_floats("whitening", arrays["whitening"], (d, d), np.float64)
    else:
        kept["left"] = as_floats("left", arrays["left"], (None, d), np.float64)
        kept["right"] = as_floats("right", arrays["right"], kept["left"].shape, np.float64)
    return kept


def _weight_space(arrays: dict[str, Array], rows: int, columns: int, ridge: float) -> WeightSpace:
    psi = as_floats("psi", arrays["psi"], (rows, "d"))
    return WeightSpace.restored({"psi": psi} | _whitening(arrays, psi.shape[1], columns), CPU)


def _disk_space(arrays: dict[str, Array], source: Source, rows: int, columns: int) -> DiskSpace:
    d = source.shape[1]
    kept = _whitening(arrays, d, columns)
    kept["variance"] = as_weights("variance", arrays["variance"], rows)
    kept["updates"] = np.array(_int(arrays, "updates"))
    for name, array in arrays.items():
        if name.startswith("update_"):
            shape = (d, d) if name.endswith("W") else (None, d)
            kept[name] = as_floats(name, array, shape, np.float64)
            if name.endswith("C"):
                check_shape(name, array, arrays[name[:-1] + "U"].shape)
    return DiskSpace.of_arrays(source, kept)


def _function_space(
    arrays: dict[str, Array], rows: int, columns: int, ridge: float
) -> FunctionSpace:
    variance = as_weights("variance", arrays["variance"], rows)
    kept = {"S": as_floats("S", arrays["S"], (rows, rows)), "variance": variance}
    if _int(arrays, "version") > 1:
        labeled = _int(arrays, "labeled")
        L = as_floats("factor", arrays["factor"], (None, None), np.float64)
        r = len(L)
        check_shape("factor", L, (r, r))
        for name, size in (("given", labeled), ("points", rows)):
            kept[name] = as_indices(name, arrays[name], size, duplicates=True, empty=True)
        if len(kept["given"]) + len(kept["points"]) != r:
            raise ValueError(f"factor has {r} rows, given and points another number of labels")
        kept["factor"], kept["labeled"] = L, arrays["labeled"]
        kept["rows"] = as_floats("rows", arrays["rows"], (r, rows), np.float64)
        kept["weights"] = as_floats("weights", arrays["weights"], (r, columns), np.float64)
    return FunctionSpace.restored(kept, ridge, CPU)
