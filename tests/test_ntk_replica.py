"""Nothing of a user's model changes, whatever it is made of and however a call ends."""

from __future__ import annotations

import collections
import dataclasses
import functools
import random
import sys
import types
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ntk_networks import literal_jacobian, networks, output_weights  # noqa: E402
from test_ntk import relative  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

import ntkfast  # noqa: E402
from ntkfast._ntk import functional  # noqa: E402
from ntkfast.ntk import EmpiricalNTK  # noqa: E402

HOME = str(Path(ntkfast.__file__).parent)


def portrait(model: nn.Module) -> dict[str, object]:
    """Everything that can be reached from a model, and the process around it, by identity."""
    found: dict[str, object] = {}
    seen: dict[int, str] = {}
    keep: list[object] = []

    def look(path: str, value: object) -> None:
        found[path] = (id(value), type(value))
        if id(value) in seen:
            return
        seen[id(value)] = path
        keep.append(value)
        if isinstance(value, Tensor):
            flags = (value.requires_grad, value.is_leaf, value._version, value.data_ptr())
            found[f"{path}: tensor"] = (*flags, tuple(value.shape), value.dtype)
            found[f"{path}: numbers"] = value.detach().clone()
            if value.is_leaf:
                look(f"{path}.grad", value.grad)
        elif isinstance(value, (nn.Module, types.SimpleNamespace)) or type(value) in OWN:
            if isinstance(value, torch.jit.ScriptModule):
                found[f"{path}.training"] = [m.training for m in value.modules()]
                for name, tensor in value.state_dict(keep_vars=True).items():
                    # (Every look at a scripted tensor makes another object.)
                    found[f"{path}.{name}: numbers"] = tensor.detach().clone()
                return
            found[f"{path}: names"] = list(vars(value))
            for name, entry in vars(value).items():
                look(f"{path}.{name}", entry)
        elif isinstance(value, dict):
            found[f"{path}: keys"] = [k if isinstance(k, (str, int)) else id(k) for k in value]
            for key, entry in value.items():
                look(f"{path}[{key if isinstance(key, (str, int)) else id(key)}]", entry)
        elif isinstance(value, (list, tuple, collections.deque)):
            found[f"{path}: length"] = len(value)
            for i, entry in enumerate(value):
                look(f"{path}[{i}]", entry)
        elif isinstance(value, (set, int, float, str, np.ndarray)):
            found[f"{path}: value"] = repr(value)
        elif isinstance(value, torch.Generator):
            found[f"{path}: value"] = value.get_state()
        elif isinstance(value, types.MethodType):
            # (Which is another object at every look where it is an attribute of a class.)
            look(f"{path}.__self__", value.__self__)
        elif isinstance(value, functools.partial):
            look(f"{path}.func", value.func)
            look(f"{path}.args", value.args)
            look(f"{path}.keywords", value.keywords)
        elif isinstance(value, types.FunctionType):
            look(f"{path}.__defaults__", value.__defaults__)
            for i, cell in enumerate(value.__closure__ or ()):
                if isinstance(cell.cell_contents, (nn.Module, list, int)):
                    look(f"{path}.__closure__[{i}]", cell.cell_contents)

    look("model", model)
    look("parametrize's cache", parametrize._cache)
    found["cached"] = parametrize._cache_enabled
    found["python's generator"] = random.getstate()
    found["numpy's generator"] = repr(np.random.get_state())  # noqa: NPY002
    found["torch's generator"] = torch.get_rng_state()
    found["modes"] = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    found["function modes"] = len(torch.overrides._get_current_function_mode_stack())
    found["dispatch modes"] = len(torch.utils._python_dispatch._get_current_dispatch_mode_stack())
    found["hooks of modules"] = len(nn.modules.module._global_forward_hooks)
    found["hooks on saved tensors"] = torch._C._autograd._top_saved_tensors_default_hooks(True)
    found["all"] = keep  # an id is of its object while that lives
    return found


def changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    result = [f"{key} is new" for key in after if key not in before]
    for key, old in before.items():
        new = after.get(key)
        if key == "all":
            continue
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            same = old.shape == new.shape and torch.equal(old.nan_to_num(), new.nan_to_num())
        else:
            same = type(old) is type(new) and old == new
        if not same:
            result.append(f"{key} changed")
    return result


# Networks of which parts are reached in many ways. All have a BatchNorm and a Dropout: a part of
# the user's own that ran in training mode would show.


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 5)
        self.norm, self.drop = nn.BatchNorm1d(5), nn.Dropout(0.5)
        self.head = nn.Linear(5, 3)
        self.make()
        nn.init.normal_(self.norm.running_mean)

    def make(self) -> None:
        pass

    def inner(self, x):
        return self.drop(self.norm(self.b(x))).tanh()

    def forward(self, x):
        return self.head(self.inner(self.a(x).tanh()))


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.rand(5) + 0.5)

    def forward(self, x):
        return x * self.g


class SharedModules(Base):
    """One module under several names, with parameters of its own."""

    def make(self) -> None:
        self.scale = Scale()
        self.again, self.block = self.scale, nn.ModuleList([self.scale, self.b, self.scale])
        self.heads = nn.ModuleList([nn.Sequential(self.norm, Scale())] * 3)

    def inner(self, x):
        for layer in (*self.block, self.again, *self.heads):
            x = layer(x).tanh()
        return self.drop(x)


class Banks(Base):
    """Parameters in lists and dicts that several layers share."""

    def make(self) -> None:
        self.bank = nn.ParameterDict({"u": nn.Parameter(torch.randn(2, 5)), "v": torch.randn(5, 2)})
        self.vectors = nn.ParameterList([torch.randn(5) for _ in range(3)])
        for layer in (self.a, self.b):
            layer.bank = self.bank
        self.kept = [self.bank["u"], {"v": self.bank["v"]}]

    def inner(self, x):
        for layer, vector in zip((self.a, self.b, self.b), self.vectors, strict=True):
            x = x + (x @ layer.bank["v"] @ layer.bank["u"] * vector).tanh()
        return super().inner(x + (x @ self.kept[1]["v"]) @ self.kept[0])


class Containers(Base):
    """Modules in lists, dicts, tuples and sets of Python's, also by themselves as keys."""

    def make(self) -> None:
        self.sequence = [self.b, [self.norm]]
        self.by_name = {"drop": self.drop, "all": (self.norm, self.drop)}
        self.factors = {self.b: 2.0, self.head: 0.5}
        self.self = {"me": self}
        self.sequence.append(self.sequence)

    def inner(self, x):
        b, (norm,), again = self.sequence
        assert again is self.sequence
        x = self.by_name["drop"](norm(b(x) * self.factors[b]))
        return self.by_name["all"][0](self.self["me"].by_name["all"][1](x)).tanh()


class Callables(Base):
    """Bound methods, closures, defaults and partials, which refer to parts of the model."""

    def make(self) -> None:
        norm, drop, m = self.norm, self.drop, self
        self.method, self.closure = self.b.forward, lambda x: norm(x)
        self.default = lambda x, layer=drop: layer(x)
        self.partial = functools.partial(lambda layer, x: layer(x), self.norm)
        self.me = lambda x: m.drop(m.norm(x))

        def nested(x, *, layers=(norm, [drop])):
            return layers[1][0](layers[0](x))

        self.nested = nested

    def inner(self, x):
        for step in (
            self.method,
            self.closure,
            self.default,
            self.partial,
            self.me,
            self.nested,
        ):
            x = step(x).tanh()
        return x


class Replaced(Base):
    """A forward that was replaced on the object, as libraries do it."""

    def make(self) -> None:
        before = self.forward
        self.forward = functools.partial(lambda old, x: old(x) * 2, before)
        inner = self.inner
        self.inner = lambda x: inner(x) + self.norm(x)


class Hooked(Base):
    """Hooks that refer to the model."""

    def make(self) -> None:
        self.b.register_forward_pre_hook(lambda layer, args: (self.norm(args[0]),))
        self.b.register_forward_hook(lambda layer, args, y: self.drop(y) + layer.weight.sum())
        self.norm.register_forward_hook(self.after)
        self.head.register_forward_hook(lambda layer, args, y: y + self.norm(args[0])[:, :3])
        self.norm.register_full_backward_hook(lambda *_: None)

    def after(self, layer, args, y):
        self.note = len(y)
        return y + layer.running_mean


class Holder:
    """No module, but it holds some."""

    def __init__(self, **parts) -> None:
        self.__dict__.update(parts)

    def __call__(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return self.drop(self.norm(x))


class Objects(Base):
    """Parts in objects of other classes."""

    def make(self) -> None:
        self.holder = Holder(norm=self.norm, drop=self.drop)
        self.space = types.SimpleNamespace(layers=[self.norm, self.drop], calls=0)

    def inner(self, x):
        self.space.calls += 1
        for layer in self.space.layers:
            x = layer(x)
        return self.holder(self.b(x)).tanh()


class Child(nn.Module):
    def __init__(self, parent) -> None:
        super().__init__()
        self.layer, self.parent = nn.Linear(5, 5), weakref.ref(parent)

    def forward(self, x):
        return self.parent().drop(self.parent().norm(self.layer(x)))


class Parents(Base):
    """A child that knows its parent, weakly, lest both live for ever."""

    def make(self) -> None:
        self.child = Child(self)

    def inner(self, x):
        return self.child(self.b(x)).tanh()


class Remembering(Base):
    """Counts, and keeps what it saw, in all ways."""

    def make(self) -> None:
        self.calls, self.seen, self.cache = 0, [], {}
        self.last, self.recent, self.sizes = None, collections.deque(maxlen=3), set()
        self.array, self.nested = np.zeros(2), {"deep": [[]]}
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("nothing", None)
        self.tensor, self.generator = torch.zeros(2), torch.Generator()

    def inner(self, x):
        self.calls += 1
        self.seen.append(len(x))
        self.cache[len(x)] = x
        self.cache.setdefault("all", []).append(x)
        self.last = x
        self.recent.append(x)
        self.sizes.add(len(x))
        self.array += 1
        self.nested["deep"][0].append(len(x))
        self.count += len(x)
        self.nothing = x.detach().sum()
        self.tensor.add_(1)
        torch.rand(2, generator=self.generator)
        self.b.calls = getattr(self.b, "calls", 0) + 1
        return super().inner(x)


@dataclasses.dataclass
class Numbers:
    calls: int = 0
    shapes: list = dataclasses.field(default_factory=list)


OWN = {Holder, Numbers}


class Unregistered(Base):
    """Parts that are none of the model's: no call of its eval() reaches them."""

    def make(self) -> None:
        self.hidden = [nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 5)).double()]
        self.hidden[0][0].eval()
        self.numbers = Numbers()

    def inner(self, x):
        self.numbers.calls += 1
        self.numbers.shapes.append(len(x))
        self.hidden[0][0].calls = self.numbers.calls
        return super().inner(self.hidden[0](x))


class Recurrent(Base):
    def make(self) -> None:
        self.recurrent = nn.LSTM(5, 5, batch_first=True)

    def inner(self, x):
        return super().inner(self.recurrent(x[:, None])[0][:, 0])


class Derived(Base):
    """Weights that are computed from parameters."""

    def __init__(self, how) -> None:
        self.how = how
        super().__init__()
        self.b = how(self.b)


def symmetric(layer):
    class Symmetric(nn.Module):
        def forward(self, w):
            return w + w.t()

    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


DERIVED = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of all": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "old weight_norm": torch.nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": torch.nn.utils.spectral_norm,
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.4),
    "symmetric": symmetric,
}


class Scripted(Base):
    def make(self) -> None:
        self.script = torch.jit.script(nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5)))

    def inner(self, x):
        return super().inner(self.script(x))


class Compiled(Base):
    def make(self) -> None:
        self.compiled = torch.compile(nn.Sequential(nn.Linear(5, 5), self.norm), backend="eager")

    def inner(self, x):
        return self.drop(self.compiled(self.b(x)))


def zoo() -> dict[str, object]:
    kinds = [SharedModules, Banks, Containers, Callables, Replaced, Hooked, Objects, Parents]
    kinds += [Remembering, Unregistered, Recurrent, Scripted, Compiled]
    made = {kind.__name__: kind for kind in kinds}
    return made | {name: functools.partial(Derived, how) for name, how in DERIVED.items()}


ZOO = zoo()
X = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def build(name):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ZOO[name]().double()
        model(X)  # what is made by the first call is there
    model.train()
    model.head.bias.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.norm.eval()
    return model


def literal(model, x=X):
    J = literal_jacobian(model, x, output_weights("sum", 3))[:, 0]
    return J


CALLS = {
    "features": lambda ntk: ntk.features(X),
    "gram": lambda ntk: ntk.gram(X),
    "outputs": lambda ntk: ntk.outputs(X),
    "explain": lambda ntk: ntk.explain(X),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", ZOO)
def test_right_and_untouched(name) -> None:
    model = build(name)
    J = literal(model)
    before = portrait(model)
    ntk = EmpiricalNTK(model, sketch=None)
    for _ in range(2):  # the second time from what is kept
        assert relative(ntk.features(X), J) <= 1e-10
        assert relative(ntk.gram(X, X[:3]), J @ J[:3].T) <= 1e-10
        for label, call in CALLS.items():
            call(ntk)
            assert not changes(before, portrait(model)), label
    # It still trains.
    model.zero_grad()
    model(X).sum().backward()
    named = dict(model.named_parameters())
    assert all((p.grad is not None) == p.requires_grad for p in named.values())


class Stop(BaseException):
    """Like KeyboardInterrupt, no Exception."""


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", ZOO)
def test_untouched_after_a_failure_in_any_call(name, monkeypatch) -> None:
    model = build(name)
    before = portrait(model)
    left = [10**9]
    original = functional.call

    def failing(net, batch):
        left[0] -= 1
        if left[0] == 0:
            raise kind("wanted")
        return original(net, batch)

    # Inside the network itself, too: where its last layer is done.
    monkeypatch.setattr(functional, "call", failing)
    for kind in (RuntimeError, ValueError, Stop):
        for at in range(1, 9):
            left[0] = at
            try:
                EmpiricalNTK(model, dim=32).features(X)
            except kind as error:
                assert "wanted" in str(error)
            assert not changes(before, portrait(model)), (kind, at)
            if left[0] > 0:
                break  # it has no more calls
        assert at > 1


@pytest.mark.parametrize("name", [*networks(), *(n for n in ZOO if n != "Compiled")])
@pytest.mark.filterwarnings("ignore")
def test_untouched_after_an_interrupt_anywhere(name) -> None:
    """Between any two lines of the package, wherever a Ctrl-C may come."""
    if name in ZOO:
        model, x = build(name), X
    else:
        model, x = networks()[name]
    before = portrait(model)
    lines, at = [0], [10**9]

    def local(frame, event, arg):
        if event == "line":
            lines[0] += 1
            if lines[0] == at[0]:
                raise KeyboardInterrupt
        return local

    def follow(frame, event, arg):
        code = frame.f_code
        # (Not where things are put back: that could be hit by a second one only.)
        return local if code.co_filename.startswith(HOME) and code.co_name != "isolated" else None

    def attempt():
        lines[0] = 0
        sys.settrace(follow)
        try:
            EmpiricalNTK(model, sketch="auto", dim=16, relative_error=0.9).features(x)
        finally:
            sys.settrace(None)

    attempt()
    total, generator = lines[0], random.Random(0)
    assert not changes(before, portrait(model))
    interrupted = 0
    for _ in range(6):
        at[0] = generator.randrange(total * 9 // 10)
        try:
            attempt()
        except KeyboardInterrupt:
            interrupted += 1
        except RuntimeError:
            assert name == "Scripted"  # whose interpreter makes its own error of it
        assert not changes(before, portrait(model)), at[0]
    assert interrupted >= 4


@pytest.mark.parametrize("name", ["SharedModules", "Banks", "Callables", "Remembering", "pruned"])
def test_four_threads_on_one_model(name) -> None:
    """And on one object: as alone, and nothing of the model changes, which is in training mode."""
    model = build(name).float()
    model.norm.train()
    x = X.float().repeat(4, 1)
    ntk = EmpiricalNTK(model, sketch="auto", dim=64, relative_error=0.9)
    jobs = {
        "features": lambda: EmpiricalNTK(model, sketch=None).features(x),
        "gram": lambda: ntk.gram(x, x[:5]),
        "outputs": lambda: ntk.outputs(x),
        "auto": lambda: ntk.features(x),
    }
    fresh = EmpiricalNTK(model, sketch="auto", dim=64, relative_error=0.9)
    expected = {label: job() for label, job in jobs.items() if label != "auto"}
    expected["auto"] = fresh.features(x)
    ntk._plans, ntk._chosen = {}, None  # all start with nothing
    before, filters = portrait(model), list(warnings.filters)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            order = [label for _ in range(3) for label in jobs]
            found = list(pool.map(lambda label: (label, jobs[label]()), order))
    finally:
        sys.setswitchinterval(interval)
    for label, value in found:
        assert relative(value, expected[label]) <= 1e-5, label
    assert not changes(before, portrait(model))
    assert list(warnings.filters) == filters


@pytest.mark.parametrize("state", ["empty", "filled", "without a graph", "used up"])
@pytest.mark.parametrize("name", ["symmetric", "weight_norm", "weight_norm of all"])
def test_a_cached_parametrisation_is_left_as_it_is(name, state) -> None:
    model = build(name)
    J = literal(model)
    model.eval()
    with parametrize.cached():
        if state != "empty":
            with torch.set_grad_enabled(state != "without a graph"):
                y = model(X).sum()
            if state == "used up":
                y.backward()
            assert parametrize._cache
        before = portrait(model)
        for _ in range(2):
            ntk = EmpiricalNTK(model, sketch=None)
            assert relative(ntk.features(X), J) <= 1e-10
            assert relative(ntk.gram(X), J @ J.T) <= 1e-10
            assert not changes(before, portrait(model))
    assert not parametrize._cache


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(())])
def test_generators_are_put_back_after_a_refusal(draw) -> None:
    class Drawing(Base):
        def inner(self, x):
            return super().inner(x) * float(draw())

    model = Drawing().double()
    before = portrait(model)
    for label in ("features", "gram", "explain"):
        with pytest.raises(ValueError, match="draws random numbers"):
            CALLS[label](EmpiricalNTK(model))
        assert not changes(before, portrait(model))


# What is kept of a network between the calls of one object.


def changed_in_between():
    def trained(model):
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        model(X).square().sum().backward()
        optimiser.step()

    def replaced(model):
        model.b = nn.Linear(5, 5).double()

    def rewrapped(model):
        model.b.weight = nn.Parameter(model.b.weight.data)
        model.b.weight.data.mul_(2)

    def transposed(model):
        model.b.weight.data = model.b.weight.data.t()

    def swapped(model):
        model.b.weight.data, model.extra.data = model.extra.data, model.b.weight.data

    def hooked(model):
        model.b.register_forward_hook(lambda layer, args, y: y.flip(1))

    def wider(model):
        model.inner = lambda x: model.norm(model.b(x)).tanh() + model.b(x)

    return {
        "nothing": lambda model: None,
        "trained": trained,
        "another layer": replaced,
        "another Parameter of the same memory": rewrapped,
        "the same memory transposed": transposed,
        "weights exchanged": swapped,
        "a hook": hooked,
        "another function": wider,
        "an activation": lambda model: setattr(model, "act", nn.ReLU()),
        "a setting": lambda model: setattr(model, "shift", 2),
        "a buffer": lambda model: model.places.copy_(model.places.flip(0)),
        "another buffer": lambda model: setattr(model, "places", model.places.flip(0)),
        "statistics": lambda model: model.norm.running_mean.add_(1),
    }


class Changing(Base):
    def make(self) -> None:
        self.other, self.act = nn.Linear(5, 5), nn.Tanh()
        self.extra = nn.Parameter(torch.randn(5, 5))
        self.shift = 1
        self.register_buffer("places", torch.tensor([2, 0, 1, 4, 3]))

    def forward(self, x):
        y = self.act(self.a(x))[:, self.places]
        y = self.act(self.other(y) @ self.extra).roll(self.shift, 1)
        # Of five points in an order of the model's own.
        order = self.places if len(y) == 5 else torch.arange(len(y))
        return self.head(self.inner(self.b(y[order])[order.argsort()]))


CHANGES = changed_in_between()


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_between_calls_is_noticed(name) -> None:
    torch.manual_seed(0)
    model = Changing().double()
    x = torch.cat([X, X])[:10]

    def loader(x):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), 5)

    ntk = EmpiricalNTK(model, sketch=None)
    ntk.features(loader(x))
    CHANGES[name](model)
    J = literal_jacobian(model, x, output_weights("sum", 3))[:, 0]
    assert relative(ntk.features(loader(x)), J) <= 1e-10
    assert relative(ntk.gram(loader(x)), J @ J.T) <= 1e-10


def test_mixing_points_later_is_noticed() -> None:
    class Centred(Base):
        axis = 1

        def inner(self, x):
            y = super().inner(x)
            return y - y.mean(self.axis, keepdim=True)

    model = Centred().double()
    model.axis = 1
    ntk = EmpiricalNTK(model)
    ntk.features(X)
    model.axis = 0
    with pytest.raises(ValueError, match="depend on the other points of its batch"):
        ntk.features(X)


def test_a_model_cast_between_calls() -> None:
    torch.manual_seed(0)
    model = Changing()
    ntk = EmpiricalNTK(model, sketch=None)
    assert ntk.features(X.float()).dtype == torch.float32
    model.to(torch.float64)
    J = literal(model)
    features = ntk.features(X)
    assert features.dtype == torch.float64 and relative(features, J) <= 1e-10
    assert relative(ntk.gram(X), J @ J.T) <= 1e-10


def test_other_parameters_than_before_are_refused() -> None:
    torch.manual_seed(0)
    model = Changing().double()
    ntk = EmpiricalNTK(model, sketch=None)
    expected = ntk.features(X)

    def check(what):
        message = f"changed since this EmpiricalNTK was made .{what}.*: make a new one"
        for call in (ntk.features, ntk.gram, ntk.explain):
            with pytest.raises(ValueError, match=message):
                call(X)

    model.other.bias.requires_grad_(False)
    check("'other.bias' is frozen, tied or gone")
    model.other.bias.requires_grad_(True)
    assert torch.equal(ntk.features(X), expected)
    other = model.other
    model.other = nn.Linear(5, 5, bias=False).double()
    check("'other.bias' is frozen, tied or gone")
    model.other = nn.Linear(5, 5).double()
    model.other.weight = model.b.weight
    check("'other.weight' is frozen, tied or gone")
    model.other, model.act = other, nn.PReLU().double()
    check("'act.weight' is new")
    model.act, model.extra = nn.Tanh(), nn.Parameter(torch.zeros(5, 1).double())
    check(r"'extra' has shape \(5, 1\), not \(5, 5\)")
