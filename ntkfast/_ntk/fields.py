"""Which fields of what users give are inputs of the model, and which are labels."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..arrays import is_frame

InputFields: TypeAlias = "int | str | Sequence[int] | Sequence[str] | Callable[[Any], Any] | None"
"""Of `Fields`: positions or names of inputs, or a function from a batch to inputs."""

# Parameters of `forward`, and keys of a dict, that hold labels by everyone's custom.
_LABELS = frozenset({"label", "labels", "label_ids", "target", "targets", "y"})
# Words of an annotation of a parameter that takes no input: a flag, a size, a cache.
_NO_INPUT = frozenset(
    {"bool", "int", "float", "str", "bytes", "dtype", "device", "Callable", "Cache"}
)
_NEUTRAL = frozenset({"class", "Optional", "Union", "None", "NoneType"})


@dataclass(frozen=True)
class _Forward:
    """What the `forward` of a model takes.

    Attributes
    ----------
    text : str
        Its signature, for people.
    required : tuple of str
        Parameters by position without a default; at least one.
    optional : tuple of str
        Further ones that may be inputs, labels excepted.
    positional : int
        How many inputs can be passed by position: the required ones, then optional ones as long as
        no flag comes in between.
    names : frozenset of str
        Parameters that can be passed by name.
    needed : frozenset of str
        Those without a default.
    anything : bool
        Whether it takes any number of inputs by position.
    any_name : bool
        Whether it takes inputs of any name.
    """

    text: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    positional: int
    names: frozenset[str]
    needed: frozenset[str]
    anything: bool
    any_name: bool

    @classmethod
    def of(cls, model: nn.Module) -> _Forward:
        """Read the signature, inside wrappers that pass on whatever they get."""
        while True:
            try:
                parameters = list(inspect.signature(model.forward).parameters.values())
            except (TypeError, ValueError):  # written in C
                parameters = [inspect.Parameter("x", inspect.Parameter.VAR_POSITIONAL)]
            passes_on = all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
            children = list(model.children())
            if not parameters or not passes_on or len(children) != 1:
                break
            model = children[0]
        ordered = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        required = [p.name for p in ordered if p.default is p.empty]
        if not required and ordered:
            required = [ordered[0].name]  # all have defaults: the first is the input by custom
        others = {p.name: p for p in [*ordered, *named] if p.name not in required}
        optional = [name for name, p in others.items() if _may_be_input(p)]
        positional = len(required)
        for p in ordered[len(required) :]:
            if p.name not in optional:
                break
            positional += 1
        return cls(
            text=f"forward({', '.join(map(_shown, parameters))})",
            required=tuple(required),
            optional=tuple(optional),
            positional=positional,
            names=frozenset(p.name for p in named),
            needed=frozenset(p.name for p in named if p.default is p.empty),
            anything=any(p.kind == p.VAR_POSITIONAL for p in parameters),
            any_name=any(p.kind == p.VAR_KEYWORD for p in parameters),
        )

    def may_take(self, value: Any) -> bool:
        """Whether a field after the required ones may be an input rather than the label."""
        if not isinstance(value, (Tensor, np.ndarray)):
            return False
        # A mask says something of the parts of a point; one number per point is none.
        names = [name for name in self.optional if value.ndim > 1 or "mask" not in name]
        return self.anything or bool(names)


def _shown(parameter: inspect.Parameter) -> str:
    text = parameter.replace(annotation=inspect.Parameter.empty)
    if isinstance(parameter.default, (Tensor, np.ndarray)):
        return f"{parameter.name}=..."
    return str(text)


def _may_be_input(parameter: inspect.Parameter) -> bool:
    """Whether an optional parameter takes a tensor, as far as default and annotation tell."""
    if parameter.name in _LABELS:
        return False
    if parameter.default is not None and not isinstance(parameter.default, (Tensor, np.ndarray)):
        return parameter.default is parameter.empty  # only by name, and needed
    note = "" if parameter.annotation is parameter.empty else str(parameter.annotation)
    words = {word.rpartition(".")[2] for word in re.findall(r"[\w.]+", note)} - _NEUTRAL
    return not words or not words <= _NO_INPUT


class Fields:
    """Picks the inputs of a model from batches of a data set, or from what is given as `X`.

    Without `inputs` the signature of the model's `forward` decides. Items of a data set may hold
    labels: of ``(x_1, ..., x_m, y)`` all m inputs that the model takes are passed. Where the last
    field may be an optional input or the label, nothing is guessed.

    Parameters
    ----------
    model : Module
        The network.
    inputs : int, str, sequence of them, callable or None
        Positions or names of the fields that are inputs. Positions are passed by position; names
        by name if `forward` takes all of them, else by position, in the order given. A callable
        makes inputs from a batch as the data set gives it: a tensor, a dict or a tuple of them.

    Raises
    ------
    TypeError, ValueError
        `inputs` is of another kind, empty, or repeats a field.
    """

    def __init__(self, model: nn.Module, inputs: InputFields = None) -> None:
        self._forward = _Forward.of(model)
        self._function = inputs if callable(inputs) else None
        self._chosen: tuple[Any, ...] | None = None
        if inputs is None or callable(inputs):
            return
        alone = isinstance(inputs, (int, str)) or not isinstance(inputs, Sequence)
        chosen = (inputs,) if alone else tuple(inputs)  # type: ignore[arg-type]
        names = all(isinstance(field, str) for field in chosen)
        numbers = all(
            isinstance(field, (int, np.integer)) and not isinstance(field, bool) for field in chosen
        )
        if not (names or numbers):
            raise TypeError(
                f"inputs is {inputs!r}; expected the positions or the names of the fields that are "
                "inputs of the model, or a callable that makes inputs from a batch"
            )
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(f"inputs is {inputs!r}; expected at least one field, each once")
        self._chosen = chosen

    def of_batch(self, batch: Any, name: str) -> Any:
        """Return the inputs in what a data set or loader gives: a leaf, a dict or a tuple."""
        if self._function is not None:
            return self._call(batch)
        if isinstance(batch, Mapping):
            return self._by_name(batch, name)
        # A packed sequence is a tuple of a kind that no model takes apart.
        if not isinstance(batch, (tuple, list)) or isinstance(batch, PackedSequence):
            return batch
        if self._chosen is not None:
            return self._at_positions(batch, name)
        if len(batch) == 0:
            raise ValueError(f"{name} gives items without fields")
        return self._without_label(batch, name)

    def of_given(self, X: Any, name: str) -> Any:
        """Return the inputs in `X` itself, which holds no labels: a leaf, a dict or a tuple."""
        if not isinstance(X, (Mapping, tuple, list)):
            return X  # one tensor or array is the input, whatever batches of data sets hold
        if self._function is not None:
            return self._call(X)
        if isinstance(X, Mapping):
            return self._by_name(X, name)
        self._check_fields(X, name)
        if self._chosen is not None:
            return self._at_positions(X, name)
        takes = self._forward
        count = len(X)
        if count == len(takes.required) > 1:
            return tuple(X)
        if count == 1:
            return X[0]
        kind = type(X).__name__
        if len(takes.required) <= count <= takes.positional or takes.anything:
            raise TypeError(
                f"{name} is a {kind} of {count}, and which inputs they are is not certain: the "
                f"model has {takes.text}. Pass a dict of inputs by name, or inputs="
                f"{list(range(count))}"
            )
        raise TypeError(
            f"{name} is a {kind} of {count}, which are not the inputs of {takes.text}. Pass one "
            "tensor or array with points along its first axis (of a list of points: torch.stack), "
            "a dict of inputs by name, or name positions with inputs="
        )

    def _call(self, batch: Any) -> Any:
        assert self._function is not None
        result = self._function(batch)
        return tuple(result) if isinstance(result, list) else result

    def _check_fields(self, X: Sequence[Any], name: str) -> None:
        for i, field in enumerate(X):
            if not isinstance(field, (Tensor, np.ndarray)) and not is_frame(field):
                raise TypeError(
                    f"{name} is a {type(X).__name__}, and {name}[{i}] is a {type(field).__name__}; "
                    "expected a tensor or an array with points along the first axis, a dict of "
                    "them (for model(**x)), a tuple of them (for model(*x)), a Dataset or a "
                    "DataLoader"
                )

    def _at_positions(self, batch: Sequence[Any], name: str) -> Any:
        chosen = self._chosen or ()
        if isinstance(chosen[0], str):
            raise TypeError(
                f"inputs={list(chosen)} are names, and {name} has fields by position: say which "
                f"of 0 to {len(batch) - 1}"
            )
        for position in chosen:
            if not -len(batch) <= position < len(batch):
                raise ValueError(
                    f"inputs has position {position}, and {name} has {len(batch)} fields"
                )
        if len(chosen) > 1:
            return tuple(batch[position] for position in chosen)
        return batch[chosen[0]]

    def _without_label(self, batch: Sequence[Any], name: str) -> Any:
        first, count, takes = batch[0], len(batch), self._forward
        if isinstance(first, PackedSequence):
            return first
        if isinstance(first, (Mapping, tuple, list)) and count <= 2:
            # (inputs, label): the first field holds them all.
            return self.of_given(first, name)
        if count == 1:
            return first
        required = max(1, len(takes.required))
        if count < required:
            raise ValueError(
                f"{name} gives {count} fields, and the model takes {required} inputs: {takes.text}"
            )
        if count == required or (count == required + 1 and not takes.may_take(batch[-1])):
            return tuple(batch[:required]) if required > 1 else first
        if (
            count == takes.positional + 1 == required + len(takes.optional) + 1
            and not takes.anything
            and all(map(takes.may_take, batch[required:-1]))
        ):
            return tuple(batch[:-1])  # all that the model can take, and the label
        raise ValueError(
            f"{name} gives {count} fields a point, and which of them are inputs of the model and "
            f"which is a label is not certain: it has {takes.text}. Say it with inputs=: positions "
            "(0, or [0, 1]), or a callable that makes inputs from a batch; or give dicts of inputs "
            "by name"
        )

    def _by_name(self, batch: Mapping[Any, Any], name: str) -> Any:
        takes = self._forward
        if self._chosen is not None:
            chosen = [str(field) for field in self._chosen]
            missing = [field for field in chosen if field not in batch]
            if missing:
                raise ValueError(
                    f"{name} has no field {missing[0]!r}, which inputs names; it has "
                    f"{', '.join(map(str, batch))}"
                )
            by_name = [field for field in chosen if field in takes.names]
            if len(by_name) == len(chosen) or (takes.any_name and not takes.required):
                return {field: batch[field] for field in chosen}
            if by_name:
                raise ValueError(
                    f"inputs={chosen}: the model takes {', '.join(by_name)} by name and the others "
                    f"not: {takes.text}"
                )
            values = tuple(batch[field] for field in chosen)
            return values if len(values) > 1 else values[0]
        fields = {str(key): value for key, value in batch.items()}
        inputs = [key for key in fields if key in takes.needed or key not in _LABELS]
        for key in fields:
            if key not in inputs:
                loss = ", or it may return a loss with them" if key in takes.names else ""
                raise ValueError(
                    f"{name}[{key!r}] holds labels by its name, and labels are no input of the "
                    f"model{loss}: leave it out, or say which fields are with inputs={inputs}"
                )
            if key not in takes.names and not takes.any_name:
                raise ValueError(
                    f"{name}[{key!r}] is no input of the model, which has {takes.text}: leave it "
                    "out, or say which fields are with inputs=[...]"
                )
        missing = sorted(takes.needed - fields.keys())
        if missing:
            raise ValueError(f"{name} has no {missing[0]!r}, which the model needs: {takes.text}")
        return fields
