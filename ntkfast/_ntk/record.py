"""One forward pass that shows every use of the chosen parameters, whoever's forward they are in.

While a :class:`Recorder` is active it sees every call of a torch function. A call that reads a
chosen parameter and has a rule (:mod:`.rules`) leaves a :class:`Use`: its input, where its output
is in the autograd graph, and how the two give per-sample gradients. In such a call the parameter
is replaced by a leaf that shares its memory, so that the graph reaches the parameter itself only
through calls that were not recorded: :meth:`Recorder.unseen` finds them, exactly.

Tensors computed from parameters and constants alone (transposed or sliced weights, weight
normalisation, low-rank sums) are followed: they are used like parameters, and their gradients are
pulled back.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from . import contract, rules
from .layers import Dense, EmbeddingSite, LinearSite, Parts, Site, SwappedSite, Unsupported

# Floats of cotangents that are pulled back at once.
_COTANGENTS = 1 << 24


def stand_in(value: Tensor) -> Tensor:
    """Return a leaf of the same memory."""
    return value.detach().requires_grad_()


@dataclass(eq=False)
class Tracked:
    """A chosen parameter, or a tensor computed from some of them and from constants.

    Attributes
    ----------
    value : Tensor
        The tensor as the model has it.
    names : tuple of str
        Full names of the chosen parameters that it depends on.
    fixed : tuple of bool
        For every axis whether entries along it are the same number by construction (expanded or
        repeated from one).
    parent : Tracked, optional
        What it is a view or an expansion of, where gradients need no autograd to be pulled back.
    view : str
        How: "same" entries in the same order, "transposed", "rows" from `start` on, or "gathered"
        rows of an `index`.
    """

    value: Tensor
    parameters: dict[str, Tensor]
    fixed: tuple[bool, ...]
    parent: Tracked | None = None
    view: str = ""
    start: int = 0
    index: Tensor | None = None
    version: int = 0
    _leaf: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.parameters)

    @property
    def leaf(self) -> Tensor:
        """A leaf of the same memory, which stands for it in recorded calls."""
        if self._leaf is None:
            self._leaf = stand_in(self.value)
        return self._leaf

    def pull_back(self, part: Site | Dense, dtype: torch.dtype) -> dict[str, Site | Dense]:
        """Turn gradients of this tensor into those of the parameters.

        They are of all its entries, or already summed over axes of equal entries.
        """
        if self.value.is_leaf and self.parent is None:
            return {self.names[0]: part}
        if self.parent is not None:
            if self.repeats and _entries(part) == self.value.numel():
                part = self._summed(part, dtype)
            if self.view == "transposed":
                part = _transpose(part, self.value.shape, dtype)
            elif self.view == "rows":
                after = len(self.parent.value) - self.start - len(self.value)
                part = _pad_rows(part, self.start, after, self.value[0].numel(), dtype)
            elif self.view == "gathered":
                part = _scatter(part, self, dtype)
            return self.parent.pull_back(part, dtype)
        if _entries(part) != self.value.numel():
            raise Unsupported("it reads an expanded parameter in a way that has no rule")
        if self.value._version != self.version:
            raise Unsupported("its weight is changed in place after the call")
        dense = _as_dense(part, dtype)
        cotangents = dense.reshape(-1, *self.value.shape).to(self.value.dtype)
        step = max(1, _COTANGENTS // max(1, self.value.numel()))
        pieces = [self._vector_jacobian(rows) for rows in cotangents.split(step)]  # type: ignore[no-untyped-call]
        return {
            name: torch.cat(list(gradients)).reshape(*dense.shape[:2], -1).to(dtype)
            for name, gradients in zip(self.names, zip(*pieces, strict=True), strict=True)
        }

    @property
    def repeats(self) -> list[int]:
        """Axes of several entries that are the same number."""
        sizes = zip(self.fixed, self.value.shape, strict=True)
        return [axis for axis, (fixed, size) in enumerate(sizes) if fixed and size > 1]

    def _summed(self, part: Site | Dense, dtype: torch.dtype) -> Dense:
        dense = _as_dense(part, dtype)
        dense = dense.reshape(*dense.shape[:2], *self.value.shape)
        return dense.sum([axis + 2 for axis in self.repeats]).reshape(*dense.shape[:2], -1)

    def _vector_jacobian(self, cotangents: Tensor) -> list[Tensor]:
        """Gradients of the parameters for each of the (m, *shape) cotangents."""
        parameters = list(self.parameters.values())

        def grad(rows: Tensor, batched: bool) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(
                self.value,
                parameters,
                rows,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=batched,
            )

        try:
            found = grad(cotangents, True)
        except (RuntimeError, NotImplementedError):  # no batching rule
            each = [grad(row, False) for row in cotangents]
            found = tuple(
                None if g[0] is None else torch.stack([t for t in g if t is not None])
                for g in zip(*each, strict=True)
            )
        return [
            cotangents.new_zeros((len(cotangents), *p.shape)) if g is None else g
            for g, p in zip(found, parameters, strict=True)
        ]


def _entries(part: Site | Dense) -> int:
    return part.rows * part.size if isinstance(part, Site) else part.shape[2]


def _as_dense(part: Site | Dense, dtype: torch.dtype) -> Dense:
    if not isinstance(part, Site):
        return part
    return contract.dense([part], len(part.delta), dtype)


def _transpose(part: Site | Dense, shape: Sequence[int], dtype: torch.dtype) -> Site | Dense:
    if isinstance(part, LinearSite):
        return SwappedSite(part.x, part.delta, part.size, part.rows, 1, part.positions)
    if isinstance(part, SwappedSite):
        return LinearSite(part.x, part.delta, part.size, part.rows, 1, part.positions)
    part = _as_dense(part, dtype)
    return part.reshape(*part.shape[:2], *shape).transpose(2, 3).flatten(2)


def _pad_rows(
    part: Site | Dense, before: int, after: int, size: int, dtype: torch.dtype
) -> Site | Dense:
    if isinstance(part, LinearSite):
        delta = F.pad(part.delta, (before, after))
        return LinearSite(part.x, delta, delta.shape[-1], part.size, 1, part.positions)
    return F.pad(_as_dense(part, dtype), (before * size, after * size))


def _scatter(part: Site | Dense, tracked: Tracked, dtype: torch.dtype) -> Site | Dense:
    assert tracked.index is not None and tracked.parent is not None
    part = _as_dense(part, dtype)
    index, (rows, size) = tracked.index.reshape(1, -1), tracked.parent.value.shape
    count = index.shape[1]
    delta = part.reshape(*part.shape[:2], count, size)
    return EmbeddingSite(index.expand(len(delta), count), delta, rows, size, 1, count)


Rule = Callable[["Use", "Tensor | None", Tensor, torch.dtype], Parts]
"""(use, x (n, q, *), delta (n, R, q, *), accumulation dtype) -> role -> gradients."""


@dataclass(eq=False)
class Use:
    """One call of a function that reads chosen parameters.

    Attributes
    ----------
    rule : Rule
        Turns input and output gradient into gradients of the parameters.
    what : str
        The function, for people.
    input : Tensor or None
        What the rule needs of the input; None where it needs nothing.
    version : int
        Version of `input` at the call.
    edge : GradientEdge
        The output in the autograd graph.
    shape : Size
        Shape of the output.
    axes : tuple of int
        The axes of the output that may carry points, the same in `input`; the others are features.
    parameters : dict
        Role (weight, bias) -> what the call read.
    settings : dict
        Numbers the rule needs (strides, eps).
    """

    rule: Rule
    what: str
    input: Tensor | None
    version: int
    edge: GradientEdge
    shape: torch.Size
    axes: tuple[int, ...]
    parameters: dict[str, Tracked]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for t in self.parameters.values() for name in t.names)

    @property
    def changed(self) -> bool:
        """Whether the input was changed in place after the call."""
        return self.input is not None and self.input._version != self.version

    @property
    def x(self) -> Tensor | None:
        """The input, detached."""
        return None if self.input is None else self.input.detach()

    def gradients(
        self, x: Tensor | None, delta: Tensor, dtype: torch.dtype
    ) -> dict[str, Site | Dense]:
        """Return full name -> gradients of n points that have q positions each.

        Parameters
        ----------
        x : Tensor (n, q, *) or None
            `self.x` with `axes` regrouped to points and their positions, other axes in order.
        delta : Tensor (n, R, q, *)
            Gradients of R combinations with respect to the output, regrouped in the same way.
            Positions that belong to no point have zeros here.
        dtype : torch.dtype
            Of the result.

        Raises
        ------
        Unsupported
            When the rule does not cover this call after all.
        """
        parts = self.rule(self, x, delta, dtype)
        result: dict[str, Site | Dense] = {}
        for role, tracked in self.parameters.items():
            for name, part in tracked.pull_back(parts[role], dtype).items():
                if name in result:
                    part = _as_dense(result[name], dtype) + _as_dense(part, dtype)
                result[name] = part
        return result


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


class Recorder(TorchFunctionMode):
    """Records the uses of parameters during a forward pass; a context manager.

    Parameters
    ----------
    parameters : mapping
        Full name -> Parameter, the chosen ones, every object once.
    constants : iterable of Tensor
        Tensors that do not depend on the data: buffers, and parameters that are not chosen.
    leaves : mapping, optional
        Full name -> :func:`stand_in` of a parameter, made before.

    Attributes
    ----------
    uses : list of Use
        In the order of the calls.
    reentrant : bool
        Whether parameters were read under ``checkpoint(use_reentrant=True)``, where no graph is.
    escaped : bool
        Whether data were handed to others than torch (NumPy, say), who do with them unseen.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        constants: Iterable[Tensor] = (),
        leaves: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self._parameters = dict(parameters)
        self._tracked = {
            id(p): Tracked(
                p,
                {name: p},
                tuple(size == 1 for size in p.shape),
                version=p._version,
                _leaf=None if leaves is None else leaves[name],
            )
            for name, p in parameters.items()
        }
        self._constants: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        for constant in constants:
            self._add_constant(constant)
        self._differentiates = False
        self.escaped = False
        self.reentrant = False
        self._replaying = False

    # What the rules call.

    def find(self, value: object) -> Tracked | None:
        """Return what is known of a tensor, None if it depends on the data."""
        found = self._tracked.get(id(value))
        if found is None or found.value is not value:
            return None
        if not found.value.is_leaf and found.value._version != found.version:
            return None
        return found

    def leaf(self, value: Any) -> Any:
        """Return the leaf that stands for a tracked tensor, and anything else unchanged."""
        found = self.find(value)
        return value if found is None else found.leaf

    def follow(self, value: Tensor, source: Tracked) -> Tracked:
        """Return what a tensor computed from a tracked one is."""
        derived = self._follow(value, [source])
        _recognise(derived, source, None)
        return derived

    def data(self, value: Any) -> Any:
        """Return a tensor in the role of data: a recorded copy if it is an expanded parameter."""
        found = self.find(value)
        if found is None or not found.repeats:
            return value
        return rules.expanded(self, found)

    def rows(self, value: Tensor, parts: int) -> Sequence[Tensor]:
        """Split a weight along its first axis; the parts of a tracked one are tracked."""
        result = value.chunk(parts)
        found = self.find(value)
        if found is not None:
            for part in result:
                self._tracked[id(part)] = self.follow(part, found)
        return result

    def expand(self, value: Tensor, shape: Sequence[int]) -> Tensor:
        """Expand a tensor, recording that it was read if it is tracked."""
        result = value.expand(shape)
        found = self.find(value)
        return result if found is None else rules.expanded(self, self.follow(result, found))

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply a linear map, recording it if its weight or bias is tracked."""
        result = rules.linear(self, x, weight, bias)
        return F.linear(x, weight, bias) if result is NotImplemented else result

    def add(self, x: Tensor, value: Tensor) -> Tensor:
        """Add a tensor, recording that it was read if it is tracked."""
        result = rules.handle(self, torch.add, (x, value), {})
        return x + value if result is NotImplemented else result

    def record(
        self,
        rule: Rule,
        what: str,
        output: Tensor,
        x: Tensor | None,
        axes: Iterable[int],
        parameters: Mapping[str, Tracked | None],
        **settings: Any,
    ) -> Tensor:
        """Note a use, and return the output that the model shall go on with."""
        if output._is_view():
            # An in-place operation on a view would replace the node whose gradient we ask for.
            output = output.clone()
        known = {role: t for role, t in parameters.items() if t is not None}
        if known and not self._replaying:
            version = 0 if x is None else x._version
            edge = get_gradient_edge(output)
            use = Use(
                rule, what, x, version, edge, output.shape, tuple(axes), known, dict(settings)
            )
            self.uses.append(use)
        return output

    def record_linear(
        self,
        what: str,
        output: Tensor,
        x: Tensor,
        weight: Tracked | None,
        bias: Tracked | None,
    ) -> Tensor:
        """Note a linear map, or several with the positions of their inputs joined in `x`."""
        return self.record(
            rules.linear_rule,
            what,
            output,
            x if weight is not None else None,
            range(output.ndim - 1),
            {"weight": weight, "bias": bias},
        )

    # What the capture calls.

    def unseen(self, *outputs: Tensor) -> dict[str, str]:
        """Return name -> operation of the parameters that reach outputs other than by the uses."""
        if self._differentiates:
            return dict.fromkeys(self._parameters, "a gradient taken inside the model")
        names = {id(p): name for name, p in self._parameters.items()}
        result = {names[id(o)]: "the output itself" for o in outputs if id(o) in names}
        stack = [o.grad_fn for o in outputs if o.grad_fn is not None]
        visited = set(stack)
        while stack:
            node = stack.pop()
            for child, _ in node.next_functions:
                if child is None:
                    continue
                variable = getattr(child, "variable", None)
                if variable is not None:
                    name = names.get(id(variable))
                    if name is not None:
                        result.setdefault(name, node.name())
                elif child not in visited:
                    visited.add(child)
                    stack.append(child)
        return result

    def backward(
        self, outputs: Tensor, weights: Tensor, *, keep_graph: bool
    ) -> tuple[Tensor | None, ...]:
        """Gradients of ``(weights * outputs).sum()`` with respect to the output of every use.

        Parts under ``torch.utils.checkpoint`` are run again meanwhile. So this recorder is active
        then, without recording: they must do what they did before.
        """
        self._replaying = True
        try:
            with self:
                # What torch.autograd.grad calls: under a mode that itself would call us instead.
                return Variable._execution_engine.run_backward(
                    (outputs,),
                    (weights,),
                    keep_graph,
                    False,
                    tuple(use.edge for use in self.uses),
                    allow_unreachable=True,
                    accumulate_grad=False,
                )
        finally:
            self._replaying = False

    # The mode.

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tracked = data = False
        for value in _tensors((*args, *kwargs.values()) if kwargs else args):
            if id(value) in self._tracked and self.find(value) is not None:
                tracked = True
            elif not self._is_constant(value):
                data = True
        if data and func in _ESCAPES:
            self.escaped = True
        if not tracked:
            if func in _GRADIENTS:
                self._differentiates = True
            result = func(*args, **kwargs)
            if not data:
                for value in _tensors((result,)):
                    self._add_constant(value)
            return result
        if func in _GRADIENTS:
            self._differentiates = True
            return func(*args, **kwargs)
        if not torch.is_grad_enabled():
            self.reentrant = self.reentrant or _inside_reentrant_checkpoint()
            return func(*args, **kwargs)
        if not data or func in rules.SHAPE_ONLY:
            sources = [t for t in map(self.find, _tensors((*args, *kwargs.values()))) if t]
            # Under torch.utils.checkpoint these would not be saved, and run again too late.
            with saved_tensors_hooks(Tensor.detach, lambda tensor: tensor):
                result = func(*args, **kwargs)
            if not data or sources[0].value is args[0]:
                self._derive(func, args, kwargs, sources, result)
            return result
        if func is Tensor.__getitem__ and self.find(args[0]) is not None:
            result = func(*args, **kwargs)
            if result._is_view():  # of entries at a place: which one is no number in it
                self._derive(func, args, kwargs, [self._tracked[id(args[0])]], result)
                return result
        inside = _tensors((*args, *kwargs.values()))
        if any(map(torch._C._functorch.is_functorch_wrapped_tensor, inside)):
            return func(*args, **kwargs)
        result = rules.handle(self, func, args, kwargs)
        if result is not NotImplemented:
            return result
        if not rules.changes_arguments(func, kwargs):
            args = tuple(self._copied(a) for a in args)
            kwargs = {key: self._copied(a) for key, a in kwargs.items()}
        return func(*args, **kwargs)

    def _copied(self, value: Any) -> Any:
        """Replace expanded parameters among the arguments of a function without a rule by data."""
        if isinstance(value, Tensor):
            return self.data(value)
        if type(value) in (list, tuple):
            return type(value)(self._copied(v) for v in value)
        return value

    def _add_constant(self, value: Tensor) -> None:
        if id(value) not in self._tracked:
            self._constants[id(value)] = weakref.ref(value), value._version

    def _is_constant(self, value: Tensor) -> bool:
        known = self._constants.get(id(value))
        return known is not None and known[0]() is value and known[1] == value._version

    def _derive(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sources: list[Tracked],
        result: Any,
    ) -> None:
        """Follow what was computed from tracked tensors alone."""
        changed = [
            t.value for t in sources if not t.value.is_leaf and t.value._version != t.version
        ]
        for value in _tensors((result, changed)):
            if not value.requires_grad:
                if not any(value is t.value for t in sources):
                    self._add_constant(value)
                continue
            if any(
                value is t.value and (value.is_leaf or value._version == t.version) for t in sources
            ):
                continue
            derived = self._follow(value, sources)
            if len(sources) > 1 or any(value is v for v in changed):
                pass
            elif func is F.embedding:
                _recognise_rows(derived, sources[0], args, kwargs)
            else:
                _recognise(derived, sources[0], func)
            self._tracked[id(value)] = derived

    @staticmethod
    def _follow(value: Tensor, sources: list[Tracked]) -> Tracked:
        parameters = {name: p for t in sources for name, p in t.parameters.items()}
        return Tracked(value, parameters, _unvarying(value), version=value._version)


def _unvarying(value: Tensor) -> tuple[bool, ...]:
    strides = value.stride() if value.layout == torch.strided else (1,) * value.ndim
    return tuple(
        size == 1 or stride == 0 for size, stride in zip(value.shape, strides, strict=True)
    )


def _recognise(derived: Tracked, source: Tracked, func: Any) -> None:
    """Note how entries of a derived tensor are those of its source, where that is simple."""
    value, of = derived.value, source.value
    if value.dtype != of.dtype or value.layout != torch.strided or of.layout != torch.strided:
        return
    if func in rules.REPEATS:
        # Of axes of length one only, or the same entry is at several places of one point.
        shape = (1,) * (value.ndim - of.ndim) + tuple(of.shape)
        if all(new == old or old == 1 for new, old in zip(value.shape, shape, strict=True)):
            derived.parent, derived.view = source, "same"
            derived.fixed = tuple(size == 1 for size in shape)
    elif func in rules.COPIES:
        derived.parent, derived.view, derived.fixed = source, "same", source.fixed
    elif value._is_view():
        ancestor: Tracked | None = source
        while ancestor is not None and not _recognise_view(derived, ancestor):
            ancestor = ancestor.parent


def _recognise_view(derived: Tracked, source: Tracked) -> bool:
    """Note of what a view consists, from where its entries are in memory."""
    value, of = derived.value, source.value
    if value.untyped_storage().data_ptr() != of.untyped_storage().data_ptr():
        return False
    if not of.is_contiguous():
        return False
    offset = value.storage_offset() - of.storage_offset()
    expected, contiguous = 1, True
    varying = list(zip(value.shape, value.stride(), derived.fixed, strict=True))
    for size, stride, fixed in reversed(varying):
        if not fixed:
            contiguous = contiguous and stride == expected
            expected *= size
    row = math.prod(of.shape[1:])
    if offset == 0 and contiguous and expected == of.numel():
        derived.view = "same"
    elif (
        value.ndim == of.ndim == 2
        and offset == 0
        and value.shape == of.shape[::-1]
        and value.stride() == of.stride()[::-1]
    ):
        derived.view = "transposed"
    elif (
        value.ndim == of.ndim
        and value.shape[1:] == of.shape[1:]
        and value.is_contiguous()
        and row
        and offset % row == 0
    ):
        derived.view, derived.start = "rows", offset // row
    else:
        return False
    derived.parent = source
    return True


def _recognise_rows(
    derived: Tracked, source: Tracked, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Note that a tensor is an embedding of constant indices (positions, token types)."""
    index = args[0] if args else kwargs["input"]
    padding = args[2] if len(args) > 2 else kwargs.get("padding_idx")
    if padding is not None or index is source.value:
        return
    fixed = []
    for axis, size in enumerate(index.shape):
        one = index.narrow(axis, 0, min(size, 1))
        # Often the same for every point.
        fixed.append(size == 1 or bool((index == one).all()))
        index = one if fixed[-1] else index
    derived.fixed = (*fixed, derived.fixed[-1])
    derived.parent, derived.view, derived.index = source, "gathered", index.long()


def _inside_reentrant_checkpoint() -> bool:
    frame: Any = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_filename.endswith("checkpoint.py"):
            return (
                isinstance(frame.f_locals.get("ctx"), object) and "run_function" in frame.f_locals
            )
        frame = frame.f_back
    return False


# What hands memory to others than torch.
_ESCAPES = frozenset(
    getattr(Tensor, name)
    for name in (
        "numpy",
        "__array__",
        "__dlpack__",
        "data_ptr",
        "untyped_storage",
        "apply_",
        "map_",
    )
    if hasattr(Tensor, name)
)
_GRADIENTS = frozenset([torch.autograd.grad, torch.autograd.backward, Tensor.backward])
