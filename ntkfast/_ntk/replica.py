"""A private copy of a model's structure, so that nothing a call does can reach the user's model.

Modules are copied, Parameters are shared: the copy computes with the very parameters of the model,
and gradients are taken with respect to them. Training flags, hooks, buffers, caches and counters of
the copy are its own. So a failed or interrupted call, or one of several threads, leaves no trace.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["isolated", "replica"]

# Containers of more entries (vocabularies, say) are copied without a look at what is in them.
_LARGEST_CONTAINER = 10_000
# Steps from an attribute to a module that are followed.
_DEEPEST = 4
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


def _class_of(module: nn.Module) -> type[nn.Module]:
    """Class of a module's copy: its own, but ``parametrize.cached()`` keeps nothing of the copy.

    What is kept under another pass has no graph, or one that is used up.
    """
    kind = type(module)
    if not parametrize.is_parametrized(module):
        return kind

    def computed(name: str) -> property:
        return property(lambda self: self.parametrizations[name]())

    names: Any = module.parametrizations
    properties = {name: computed(name) for name in names}
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **properties})


class _Copier:
    """Copies modules, and whatever in their attributes refers to one of them."""

    def __init__(self, model: nn.Module) -> None:
        self._memo: dict[int, Any] = {}
        self._keep: list[Any] = []  # an id stays taken while its object lives
        self._copied: list[tuple[nn.Module, nn.Module]] = []
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # its state is not in Python; it is shared
            twin = object.__new__(_class_of(module))
            self._memo[id(module)] = twin
            self._copied.append((module, twin))
        for module, _ in self._copied:
            # Compiled parts would run without a Python function that could be seen.
            if hasattr(module, "_orig_mod") and isinstance(module._orig_mod, nn.Module):
                self._memo[id(module)] = self._memo[id(module._orig_mod)]
        for module, twin in self._copied:
            twin.__dict__.update({name: self.copy(v) for name, v in vars(module).items()})

    def model(self, model: nn.Module) -> nn.Module:
        result: nn.Module = self._memo[id(model)]
        return result

    def copy(self, value: Any) -> Any:
        if isinstance(value, (*PLAIN, nn.Parameter)):
            return value
        if id(value) in self._memo:
            return self._memo[id(value)]
        result = self._new(value)
        self._memo[id(value)] = result
        self._keep.append(value)
        return result

    def _new(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            # What still hangs on a graph is computed anew before it is used, or is nobody's state.
            return value if value.requires_grad else value.detach().clone()
        if isinstance(value, (dict, list, set, deque)):
            return self._container(value)
        if isinstance(value, tuple):
            entries = [self.copy(entry) for entry in value]
            if all(a is b for a, b in zip(entries, value, strict=True)):
                return value
            return value._make(entries) if hasattr(value, "_make") else type(value)(entries)
        if isinstance(value, weakref.ref) and isinstance(value(), nn.Module):
            return weakref.ref(self.copy(value()))
        if type(value) in weakref.ProxyTypes and isinstance(value, nn.Module):
            method: Any = value.__repr__
            return weakref.proxy(self.copy(method.__self__))
        if isinstance(value, types.MethodType):
            owner = self.copy(value.__self__) if self._reaches(value.__self__) else None
            return value if owner is None else types.MethodType(value.__func__, owner)
        if isinstance(value, functools.partial):
            arguments = [self.copy(a) for a in value.args]
            keywords = {key: self.copy(v) for key, v in value.keywords.items()}
            return type(value)(self.copy(value.func), *arguments, **keywords)
        if isinstance(value, types.FunctionType):
            return self._function(value) if self._reaches(value) else value
        if isinstance(value, torch.Generator):
            twin = torch.Generator(value.device)
            twin.set_state(value.get_state())
            return twin
        if isinstance(value, (random.Random, np.random.Generator, np.random.RandomState)):
            return copy.deepcopy(value)
        if isinstance(value, np.ndarray):
            return value.copy()
        if isinstance(value, torch.jit.ScriptModule) or not _is_plain_object(value):
            return value
        # (A module that is none of the model's, in a list, say, is not put in eval mode, either.)
        if isinstance(value, nn.Module) or _is_record(value) or self._reaches(value):
            kind: Any = _class_of(value) if isinstance(value, nn.Module) else type(value)
            result = kind.__new__(kind)
            self._memo[id(value)] = result  # before its entries: it may refer to itself
            vars(result).update({name: self.copy(v) for name, v in vars(value).items()})
            return result
        return value

    def _reaches(self, value: Any, depth: int = _DEEPEST) -> bool:
        """Whether an object refers to a module, at no great distance."""
        if isinstance(value, nn.Module):
            return not isinstance(value, torch.jit.ScriptModule)
        if isinstance(value, (*PLAIN, Tensor)) or depth == 0:
            return False
        inside: list[Any] = []
        if isinstance(value, weakref.ref):
            inside = [value()]
        elif isinstance(value, types.MethodType):
            inside = [value.__self__]
        elif isinstance(value, functools.partial):
            inside = [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, types.FunctionType):
            cells = [cell for cell in value.__closure__ or () if _is_bound(cell)]
            inside = [cell.cell_contents for cell in cells]
            inside += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        elif isinstance(value, (list, tuple, set, deque, dict)):
            if len(value) <= _LARGEST_CONTAINER:
                inside = [*value, *value.values()] if isinstance(value, dict) else list(value)
        elif _is_plain_object(value):
            inside = list(vars(value).values())
        return any(self._reaches(entry, depth - 1) for entry in inside)

    def _container(self, value: Any) -> Any:
        # (A module has a dozen of them for its hooks, and copy.copy takes long to copy nothing.)
        empty_hooks = type(value) is OrderedDict and not value and not vars(value)
        result = OrderedDict() if empty_hooks else copy.copy(value)
        self._memo[id(value)] = result  # before its entries: it may contain itself
        if empty_hooks or len(value) > _LARGEST_CONTAINER or isinstance(value, set):
            return result
        if isinstance(value, dict):
            if any(isinstance(key, nn.Module) for key in value):
                result.clear()
            for key, entry in value.items():
                result[self.copy(key) if isinstance(key, nn.Module) else key] = self.copy(entry)
        else:
            for i, entry in enumerate(value):
                new = self.copy(entry)
                if new is not entry:
                    result[i] = new
        return result

    def _function(self, value: types.FunctionType) -> types.FunctionType:
        """Copy a function whose closure or defaults refer to a module."""
        cells = [types.CellType() if _is_bound(cell) else cell for cell in value.__closure__ or ()]
        twin = types.FunctionType(
            value.__code__, value.__globals__, value.__name__, None, tuple(cells) or None
        )
        functools.update_wrapper(twin, value)
        self._memo[id(value)] = twin  # before what it refers to, which may be itself
        for cell, new in zip(value.__closure__ or (), cells, strict=True):
            if new is not cell:
                contents = cell.cell_contents
                new.cell_contents = self.copy(contents) if self._reaches(contents) else contents
        twin.__defaults__ = self.copy(value.__defaults__)
        twin.__kwdefaults__ = self.copy(value.__kwdefaults__)
        return twin


def _is_bound(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _is_plain_object(value: Any) -> bool:
    """Whether all there is of an object is its attributes."""
    kind: Any = type(value)
    ours = kind is types.SimpleNamespace or kind.__new__ is object.__new__
    return ours and hasattr(value, "__dict__") and not isinstance(value, (type, types.ModuleType))


def _is_record(value: Any) -> bool:
    return isinstance(value, types.SimpleNamespace) or dataclasses.is_dataclass(value)


def replica(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode of the structure of `model`, with its own Parameters."""
    twin = _Copier(model).model(model)
    for module in twin.modules():
        # Set directly: train() is often overridden to keep some layers as they are.
        if not isinstance(module, torch.jit.ScriptModule):
            module.training = False
    return twin


@contextmanager
def isolated(model: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Yield a replica of `model`, with gradients on; all random generators come back as they were.

    Scripted parts have no copy: they are in eval mode until the end.
    """
    scripted = [m for m in model.modules() if isinstance(m, torch.jit.ScriptModule)]
    flags = [(module, module.training) for module in scripted]
    devices = [device.index or 0] if device.type == "cuda" else []
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    net = replica(model)
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        try:
            for module, flag in flags:
                if flag:
                    module.train(False)
            yield net
        finally:
            for module, flag in flags:
                if flag:
                    module.train(True)
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
