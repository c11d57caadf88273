"""Labels that are missing, in every form in which arrays, lists and tables say so."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import ArgumentValueError, Array

__all__ = ["missing", "refuse_missing"]


def _is_missing(label: Any) -> bool:
    """Whether one label is None, NaN, NaT, `pandas.NA` or `numpy.ma.masked`."""
    if label is None or label is np.ma.masked:
        return True
    if isinstance(label, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(label))
    if isinstance(label, (float, np.floating)):
        return bool(np.isnan(label))
    # pandas is not imported for them: they can only be met where it has been.
    return type(label).__name__ in ("NAType", "NaTType")


def missing(y: Any) -> Array:
    """Return which labels (n,) are missing, as a mask.

    NaN and NaT in arrays of numbers and dates; masked entries; None, NaN, NaT, `pandas.NA` and
    `numpy.ma.masked` among objects. An empty string is a label, and so is any number.
    """
    if isinstance(y, (list, tuple)):
        return np.fromiter(map(_is_missing, y), bool, len(y))
    try:
        array = np.asarray(y)
    except (TypeError, ValueError, RuntimeError):  # bfloat16, needs a gradient, on a GPU, ...
        return np.zeros(len(y), bool)
    if array.ndim == 2 and array.shape[1] == 1:
        return missing(y[:, 0])
    if array.ndim != 1:
        return np.zeros(len(array) if array.ndim else 0, bool)
    if isinstance(y, np.ma.MaskedArray):
        result: Array = np.ma.getmaskarray(y) | missing(array)
        return result
    if array.dtype.kind in "fmM":
        result = np.isnan(array)  # of NaT, too
        return result
    if array.dtype.kind == "O":
        return np.fromiter(map(_is_missing, array), bool, len(array))
    return np.zeros(len(array), bool)


def refuse_missing(name: str, y: Any) -> None:
    """Raise a ValueError that says how to leave points without a label out."""
    absent = missing(y)
    if not absent.any():
        return
    at = int(absent.argmax())
    label = (y if isinstance(y, (list, tuple)) else np.asarray(y))[at]
    if label is np.ma.masked or isinstance(y, np.ma.MaskedArray):
        shown = "masked"
    else:
        shown = {"nan": "NaN", "NaT": "NaT"}.get(str(label), repr(label))
    raise ArgumentValueError(
        name,
        f"{name}[{at}] is {shown}, no label ({int(absent.sum())} of {len(absent)} are missing): "
        f"these points are not labelled, so leave them out of {name} and of all that goes with it",
    )
