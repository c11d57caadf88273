"""What a forward pass does, operation by operation, as far as it tells which rows are whose.

A network may fold, repeat, gather or route its points as it likes. Which rows of a layer belong to
which point can be measured (`owners`), at the price of a second backward pass. That has to be done
once only where the answer cannot change: where a later batch runs the same operations on the same
shapes, and no operation places rows by numbers that depend on the input. This is what a
:class:`Trace` sees, below autograd, where nothing is hidden by a layer or a library.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Trace"]

# Operations that place rows by the numbers in some of their arguments, and these arguments' places.
_PLACING: dict[str, tuple[int, ...]] = {
    "index": (1,),
    "_unsafe_index": (1,),
    "_unsafe_masked_index": (1, 2),
    "index_put": (1,),
    "_index_put_impl": (1,),
    "_unsafe_index_put": (1,),
    "index_select": (2,),
    "gather": (2,),
    "scatter": (2,),
    "scatter_add": (2,),
    "scatter_reduce": (2,),
    "index_add": (2,),
    "index_copy": (2,),
    "index_fill": (2,),
    "index_reduce": (2,),
    "take": (1,),
    "put": (1,),
    "masked_select": (1,),
    "masked_scatter": (1,),
    "nonzero": (0,),
    "nonzero_static": (0,),
    "repeat_interleave": (0,),
    "_pack_padded_sequence": (1,),
    "_pad_packed_sequence": (1,),
    "segment_reduce": (1, 2, 3),
    "_unique": (0,),
    "_unique2": (0,),
    "unique_dim": (0,),
    "unique_consecutive": (0,),
    "unique_dim_consecutive": (0,),
}
# Lookups: their second argument places rows of the first, which matters only where the first is no
# table of the model. The third (offsets of bags) places rows in any case.
_LOOKUPS = ("embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
# Products, which place rows if one factor is a mask (one-hot rows of a permutation), and operations
# that choose between tensors by a mask, which do so if one of these has been put in another order.
_PRODUCTS = (
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "addbmm",
    "mv",
    "addmv",
    "dot",
    "_sparse_mm",
    "convolution",
)
_CHOICES = ("where", "mul", "lerp", "addcmul", "div", "copysign")
_ORDERS = ("flip", "roll", "rot90")
# What makes a mask of floating-point numbers (others tell by their type).
_ROUNDINGS = (
    "clamp",
    "clamp_min",
    "clamp_max",
    "hardtanh",
    "hardsigmoid",
    "floor",
    "ceil",
    "round",
    "trunc",
    "sign",
    "sgn",
    "heaviside",
    "frac",
)
# Operations that join entries along axes, which are those of points where they are as long.
_JOINS = (
    *("sum", "mean", "prod", "amax", "amin", "aminmax", "max", "min", "median", "kthvalue"),
    *("std", "var", "var_mean", "std_mean", "linalg_vector_norm", "norm", "logsumexp"),
    *("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "_softmax", "_log_softmax"),
    *("sort", "topk", "argsort", "argmax", "argmin", "nansum", "nanmedian", "mode"),
)
# Arguments that say how much chance there is in an operation that could draw numbers.
_CHANCE = {"dropout_p": 0.0, "dropout": 0.0, "p": 0.0, "train": False, "training": False}


@dataclass(frozen=True)
class _Operation:
    """What matters of an operation, whatever it is called with."""

    number: int
    name: str
    placing: tuple[int, ...]
    lookup: bool
    strides: bool
    product: bool
    chooses: bool
    orders: bool
    rounds: bool
    joins: bool
    axes: int
    writes: tuple[int, ...]
    known: bool
    random: bool
    creates: bool
    views: bool
    same: bool


# Described once a process, by operation.
_KNOWN: dict[Any, _Operation] = {}


def _describe(func: Any) -> _Operation:
    namespace, _, name = func._schema.name.partition("::")
    base = name.rstrip("_")
    if base not in _PLACING and base.startswith("scatter"):
        base = "scatter"
    returned, arguments = func._schema.returns, func._schema.arguments
    views = bool(returned) and all(r.alias_info and not r.alias_info.is_write for r in returned)
    return _Operation(
        number=len(_KNOWN),
        name=func._schema.name,
        placing=_PLACING.get(base, ()),
        lookup=base in _LOOKUPS,
        strides=base in ("as_strided", "roll"),
        product=base in _PRODUCTS,
        chooses=base in _CHOICES,
        orders=base in _ORDERS or base in _PLACING,
        rounds=base in _ROUNDINGS,
        joins=base in _JOINS,
        axes=next((i for i, a in enumerate(arguments) if a.name == "dim"), -1),
        writes=tuple(i for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write),
        known=namespace in ("aten", "prims"),
        random=torch.Tag.nondeterministic_seeded in func.tags,
        creates=base != "lift_fresh" and namespace in ("aten", "prims"),
        views=views,
        same=base in ("detach", "alias"),
    )


def _draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a random operation, called like this, has any chance in it."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.name in _CHANCE:
            value = args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
            if value is not None and value == _CHANCE[argument.name]:
                return False
    return True


class Trace(TorchDispatchMode):
    """Watches one forward pass.

    Parameters
    ----------
    state : iterable of Tensor
        Parameters and buffers: what does not depend on the input.
    n : int
        Number of points.

    Attributes
    ----------
    numbers : list
        All shapes and numbers among their arguments, and which tensors these are.
    uniform : bool
        Whether no operation places rows by numbers at all, whatever they depend on.
    types : set of torch.dtype
        Of all that depends on the input.
    joins : str
        An operation that joins entries along an axis as long as that of points, if any.
    moving : str
        An operation that placed rows by numbers that may depend on the input; empty if there is
        none: then passes of the same :attr:`exact` treat the rows of their points alike.
    seeded : bool
        Whether random numbers came from a generator of the model, which may be the same ones in
        every pass.
    """

    def __init__(self, state: Iterable[Tensor], n: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operations: list[int] = []
        self.numbers: list[Any] = []
        self.uniform = True
        self._moving = self._masked = self._ordered = ""
        self.seeded = False
        self.joins = ""
        self.types: set[torch.dtype] = set()
        self._n = n
        self._parameters: dict[int, Tensor] = {}
        self._drawn = ""
        # Storages by address; as long as they are held, no other one can have the address.
        self._fixed: dict[int, Any] = {}  # whose numbers do not depend on the input
        self._state: dict[int, str] = {}  # of the model's own, by their places among them
        for i, tensor in enumerate(state):
            if isinstance(tensor, nn.Parameter):
                self._parameters[_address(tensor)] = tensor
            self._add(self._fixed, tensor)
            self._state.setdefault(_address(tensor), f"tensor {i}")
        self._noisy: dict[int, Any] = {}  # whose numbers are random
        # Masks that depend on the input, and whatever else takes few values.
        self._masks: dict[int, Any] = {}
        # Which operation made a storage: a list of tensors may be in an order that no number shows.
        self._made: dict[int, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first use of any such mode would import the compiler

    @property
    def moving(self) -> str:
        """An operation that placed rows by numbers that may depend on the input, if any."""
        if self._moving or not (self._masked and (self._ordered or self.joins)):
            return self._moving
        return f"{self._masked} with {self._ordered or self.joins}"

    def note_escape(self) -> None:
        """Note that numbers were read, or written, where no operation shows it."""
        self.uniform, self._moving = False, self._moving or "numbers read outside of torch"

    @property
    def kind(self) -> int:
        """Hash of the sequence of operations."""
        return hash(tuple(self._operations))

    @property
    def exact(self) -> Hashable:
        """The operations and all :attr:`numbers`."""
        return self.kind, tuple(map(_hashable, self.numbers))

    @staticmethod
    def _add(known: dict[int, Any], tensor: Tensor) -> None:
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            return
        known[storage._cdata] = storage

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        what = _KNOWN.get(func)
        if what is None:
            what = _KNOWN[func] = _describe(func)
        if what.writes:
            self._refuse_to_write(what, args)
        output = func(*args, **kwargs) if kwargs else func(*args)
        self._operations.append(what.number)
        if what.same:
            return output
        numbers, state, fixed, made = self.numbers, self._state, self._fixed, self._made
        addresses: list[int] = []  # of storages, 0 without one
        places: list[int] = []  # number of the argument that each is in
        all_fixed = what.creates
        discrete = data = computed = sparse = False
        for place, value in enumerate((*args, *kwargs.values()) if kwargs else args):
            for entry in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(entry, Tensor):
                    address = _address(entry)
                    addresses.append(address)
                    places.append(place)
                    if address in state:
                        numbers.append(state[address])
                    else:
                        if address not in made:  # from outside
                            made[address] = -len(numbers)
                        numbers.append(made[address])
                    if address and not entry.is_nested:
                        numbers.append(entry.storage_offset())
                        numbers.extend(entry.stride())
                    if address not in fixed:
                        all_fixed = False
                        sparse = sparse or entry.layout != torch.strided
                        if address in self._masks or not entry.is_floating_point():
                            discrete = True
                        else:
                            data = True
                    elif entry.requires_grad and address not in state:
                        computed = True  # from parameters alone
                else:
                    numbers.append(entry)
        if (
            (data or discrete)
            and what.joins
            and isinstance(args[0], Tensor)
            and not args[0].is_nested
        ):
            self._check_joins(what, args, kwargs or {})
        if data and what.product:
            factors = [a for a in args if isinstance(a, Tensor) and a.ndim > 1][-2:]
            if len(factors) == 2 and factors[0].shape[-1] == self._n:
                self.joins = self.joins or what.name
        if not all_fixed:
            self._check_places(what, args, addresses, places, discrete and data)
            if sparse and data:
                self._moving = self._moving or what.name  # its indices place rows
            if discrete and computed and (what.product or what.chooses):
                # A mask says which points share what was computed once for all of them.
                self._moving = self._moving or what.name
        noisy = False
        if what.random and _draws(func, args, kwargs or {}):
            all_fixed = False
            if kwargs and kwargs.get("generator") is not None:
                self.seeded = True
            else:
                noisy, self._drawn = True, f"{what.name}{_caller()}"
        elif self._noisy:
            noisy = any(address in self._noisy for address in addresses)
            if noisy and what.name == "aten::_local_scalar_dense":
                self.refuse_noise()
        is_mask = (discrete and not data) or (what.rounds and not all_fixed)
        outputs = output if isinstance(output, (list, tuple)) else (output,)
        if output is None:  # what it changed
            outputs = [a for p in what.writes if p < len(args) for a in _several(args[p])]
        for i, value in enumerate(outputs):
            if isinstance(value, Tensor):
                if not value.is_nested:
                    numbers.extend(value.shape)
                if not all_fixed:
                    self.types.add(value.dtype)
                if not what.views:
                    address = _address(value)
                    if address not in addresses:
                        made[address] = (len(self._operations) << 10) + i
                    self._note(value, address, all_fixed and not noisy, noisy, addresses)
                    if is_mask:
                        self._add(self._masks, value)
                    elif self._masks:
                        self._masks.pop(address, None)
        return output

    def _note(
        self, value: Tensor, address: int, is_fixed: bool, is_noisy: bool, sources: list[int]
    ) -> None:
        """Note what the numbers of an output depend on."""
        if is_fixed:
            if address not in self._fixed:
                self._add(self._fixed, value)
        elif address in self._fixed:
            del self._fixed[address]
            self._state.pop(address, None)
        if is_noisy:
            self._add(self._noisy, value)
        elif self._noisy and address in self._noisy and address not in sources:
            del self._noisy[address]

    def _refuse_to_write(self, what: _Operation, args: tuple[Any, ...]) -> None:
        """Raise a ValueError before a parameter is changed: it is the user's own."""
        for place in what.writes:
            for value in _several(args[place]) if place < len(args) else ():
                if isinstance(value, Tensor) and _address(value) in self._parameters:
                    shape = tuple(self._parameters[_address(value)].shape)
                    raise ValueError(
                        f"the model's forward writes to a parameter of shape {shape} "
                        f"({what.name}{_caller()}), which would change your model: compute what it "
                        "writes as another tensor, or keep it in a buffer"
                    )

    def _check_joins(self, what: _Operation, args: tuple[Any, ...], kwargs: Any) -> None:
        """Note whether an operation joins entries along an axis as long as that of points."""
        x = args[0]
        axes = args[what.axes] if 0 <= what.axes < len(args) else kwargs.get("dim")
        if axes is None or axes == []:
            # (A boolean is for control, which shows in what follows.)
            joined = x.dtype != torch.bool and x.ndim > 0 and x.numel() > 1
        else:
            joined = any(x.ndim and x.shape[a] == self._n for a in _several(axes))
        if joined:
            self.joins = self.joins or what.name

    def _check_places(
        self,
        what: _Operation,
        args: tuple[Any, ...],
        tensors: list[int],
        places: list[int],
        masks: bool,
    ) -> None:
        """Note whether an operation on data may place rows; `masks`: it joins one with others."""
        if what.strides:
            self.uniform = False
        if not what.known:
            self.uniform, self._moving = False, self._moving or what.name
        placing = what.placing
        if what.lookup:
            table = places and places[0] == 0 and tensors[0] in self._fixed
            placing = (2,) if table else (1, 2)
        for address, place in zip(tensors, places, strict=True):
            if place in placing:
                self.uniform = False
                if address not in self._fixed:
                    self._moving = self._moving or what.name
        moves = what.name in ("aten::cat", "aten::stack") and (len(args) < 2 or args[1] == 0)
        moves = moves or (what.name == "aten::transpose" and 0 in args[1:3])
        moves = moves or (what.name == "aten::permute" and args[1][0] != 0)
        if what.orders or moves:
            self._ordered = self._ordered or what.name
        if masks and what.product:
            self._moving = self._moving or what.name
        elif masks and what.chooses:
            self._masked = self._masked or what.name

    def check_outputs(self, value: Tensor) -> None:
        """Raise a ValueError if the model's outputs depend on random numbers."""
        if self._noisy and _address(value) in self._noisy:
            self.refuse_noise()

    def refuse_noise(self) -> None:
        raise ValueError(
            f"the model draws random numbers in eval mode ({self._drawn}), so its outputs are not "
            "a function of the point and it has no tangent kernel: switch that off"
        )


def _address(tensor: Tensor) -> int:
    try:
        address: int = tensor.untyped_storage()._cdata
        return address
    except (NotImplementedError, RuntimeError):  # sparse, nested, ...
        return 0


def _several(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else (value,)


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


def _caller() -> str:
    """Name the innermost module whose code is running."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            return f", in a {type(module).__name__}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
