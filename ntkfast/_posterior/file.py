"""The file of a posterior: an .npz archive of its arrays, without pickles.

Version 1 holds no `Factor` of the labels; 2 neither a `residual_temperature`, which is 1 then, nor
what coverage needs of labelled points. Both are still written where there is nothing more.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..arrays import Array, as_floats, as_indices, as_positive, as_weights, check_shape
from ..files import replacing
from ..loss import Loss, as_loss, residual_temperature_of
from .blocks import Space, in_blocks
from .covariance import FunctionSpace, WeightSpace
from .coverage import Given
from .engines import CPU

__all__ = ["Stored", "read", "write"]

_FORMAT = "ntkfast posterior"
_VERSION = 3


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


def write(path: str | os.PathLike[str], stored: Stored) -> None:
    """Write a file, all of it or nothing."""
    arrays = stored.space.arrays()
    version = 2 if "factor" in arrays else 1
    if stored.given is not None or stored.residual_temperature != 1:
        version = 3
        arrays["residual_temperature"] = np.array(stored.residual_temperature)
        arrays["holds_labeled"] = np.array(stored.given is not None)
        if stored.given is not None:
            arrays |= stored.given.arrays(stored.space.engine)
    with replacing(Path(path), "xb") as file:
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


def read(path: str | os.PathLike[str]) -> Stored:
    """Read a file, onto the CPU; a ValueError that names it if it is damaged."""
    with Path(path).open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            arrays = {} if isinstance(archive, np.ndarray) else dict(archive)
        # Damage surfaces as BadZipFile, zlib.error, EOFError, ValueError, ... by its place.
        except Exception as error:
            raise ValueError(f"{path} is damaged or not a posterior: {error}") from error
    if str(arrays.get("format")) != _FORMAT:
        raise ValueError(f"{path} is not a posterior saved by ntkfast")
    try:
        version = _int(arrays, "version")
        if version <= _VERSION:
            return _checked(arrays)
    except KeyError as error:
        raise ValueError(f"{path} is damaged: it holds no {error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    raise ValueError(f"{path} has version {version}; this ntkfast reads up to {_VERSION}")


def _int(arrays: dict[str, Array], name: str) -> int:
    """Return an integer >= 0 that a file holds."""
    value = arrays[name]
    if value.dtype.kind not in "iu" or value.ndim != 0 or value < 0:
        raise ValueError(f"{name} is {value!r}; expected an integer >= 0")
    return int(value)


def _checked(arrays: dict[str, Array]) -> Stored:
    outputs = as_floats("outputs", arrays["outputs"], ("N", "k"), np.float64)
    N, k = outputs.shape
    mean = as_floats("mean", arrays["mean"], (N, k), np.float64)
    is_labeled = arrays["is_labeled"]
    check_shape("is_labeled", is_labeled, (N,))
    if is_labeled.dtype != bool:
        raise ValueError(f"is_labeled has dtype {is_labeled.dtype}; expected bool")
    loss = as_loss(str(arrays["loss"]))
    if loss == "cross_entropy" and k == 1:
        raise ValueError("loss is 'cross_entropy', but there is one output")
    ridge = as_positive("ridge", arrays["ridge"])
    # k rows per point, and one column of residuals, where the kernel has blocks.
    has_blocks = k > 1 and len(arrays["psi" if "psi" in arrays else "S"]) == N * k
    per_point, columns = (k, 1) if has_blocks else (1, k)
    make = _weight_space if "psi" in arrays else _function_space
    return Stored(
        space=in_blocks(make(arrays, N * per_point, columns, ridge), per_point),
        outputs=outputs,
        mean=mean,
        is_labeled=is_labeled,
        ridge=ridge,
        loss=loss,
        label_scale=as_positive("label_scale", arrays["label_scale"]),
        labels=_int(arrays, "labels"),
        residual_temperature=_residual_temperature(arrays, loss),
        given=_given(arrays),
    )


def _given(arrays: dict[str, Array]) -> Given | None:
    """Return what coverage needs of labelled points."""
    if _int(arrays, "version") < 3 or not arrays["holds_labeled"]:
        return None
    if "psi" in arrays:
        shape = (None, arrays["psi"].shape[1])
        return Given(as_floats("labeled_features", arrays["labeled_features"], shape))
    diagonal = arrays["labeled_diagonal"]
    return Given(diagonal=as_weights("labeled_diagonal", diagonal, _int(arrays, "labeled")))


def _residual_temperature(arrays: dict[str, Array], loss: Loss) -> float:
    if _int(arrays, "version") < 3:
        return 1.0
    return residual_temperature_of(arrays["residual_temperature"], loss)


def _weight_space(arrays: dict[str, Array], rows: int, columns: int, ridge: float) -> WeightSpace:
    psi = as_floats("psi", arrays["psi"], (rows, "d"))
    d = psi.shape[1]
    kept = {"psi": psi, "theta": as_floats("theta", arrays["theta"], (d, columns), np.float64)}
    if "whitening" in arrays:
        kept["whitening"] = as_floats("whitening", arrays["whitening"], (d, d), np.float64)
    else:
        kept["left"] = as_floats("left", arrays["left"], (None, d), np.float64)
        kept["right"] = as_floats("right", arrays["right"], kept["left"].shape, np.float64)
    return WeightSpace.restored(kept, CPU)


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
