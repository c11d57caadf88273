"""The short form of `fuzz_ntk.py`: fixed cases, and that the fuzzer notices what it must."""

from __future__ import annotations

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fuzz_ntk  # noqa: E402
from fuzz_ntk import Case, draw, guarded  # noqa: E402
from fuzz_pieces import PIECES, Piece  # noqa: E402

from ntkfast.ntk import EmpiricalNTK  # noqa: E402

CASES, BLOCK = 60, 20


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("first", range(0, CASES, BLOCK))
def test_drawn_networks_are_right_or_refused_by_name(first) -> None:
    results = [guarded(draw(seed)) for seed in range(first, first + BLOCK)]
    bad = [r for r in results if r.verdict in fuzz_ntk.BAD]
    lines = [f"{r.verdict} {r.message}\n{r.case.text()}" for r in bad]
    assert not bad, "\n\n".join(lines) + "\n(python tests/fuzz_ntk.py --seed S --count 1)"
    assert sum(r.verdict == "right" for r in results) >= BLOCK // 2


def test_a_case_depends_on_its_seed_alone() -> None:
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    first = draw(5)
    model, data = fuzz_ntk.build(first), fuzz_ntk.make(first)
    torch.rand(3)
    again = Case(**eval(repr(fuzz_ntk.asdict(draw(5)))))
    assert again == first
    for p, q in zip(model.parameters(), fuzz_ntk.build(again).parameters(), strict=True):
        assert torch.equal(p, q)
    for key, value in fuzz_ntk.make(again).items():
        assert torch.equal(value, data[key])
    assert random.getstate() == state[0]
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002


def test_every_piece_runs_in_the_cases_of_an_hour() -> None:
    kinds = set().union(*(draw(seed).kinds for seed in range(1000)))
    assert kinds == set(PIECES)


def plain(**changes) -> Case:
    nodes = [("linear", {"bias": True, "glue": "tanh"}, [])]
    case = Case(
        seed=1,
        entry="vector",
        shape=(4,),
        options={},
        body=nodes,
        head="linear",
        k=2,
        n=6,
        data=[("scales", 6)],
        deliver="tensor",
        batch=2,
        outputs="sum",
        draws=1,
        dtype="float64",
        frozen=0,
    )
    return fuzz_ntk.replace(case, **changes)


def piece(name: str, inside=(), **options) -> list:
    return [(name, {"glue": "plain", **options}, [list(c) for c in inside])]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("outputs", ["sum", "full", "random", "single"])
@pytest.mark.parametrize(
    "fault",
    ["", "swapped", "smallest point", "parameter", "order", "gram", "cross gram", "outputs"],
)
def test_wrong_numbers_are_noticed(fault, outputs, dtype, monkeypatch) -> None:
    features, gram, outputs_of = EmpiricalNTK.features, EmpiricalNTK.gram, EmpiricalNTK.outputs

    def changed(self, X):
        value = features(self, X).clone()
        rows = value.view(6, -1, value.shape[1])
        if fault == "swapped":
            rows[[0, 1]] = rows[[1, 0]]
        elif fault == "smallest point":
            rows[int(rows.flatten(1).norm(dim=1).argmin())] *= 1.01
        elif fault == "parameter":
            value[:, 0] = 0
        elif fault == "order":
            value = value.flip(1)
        return value

    def changed_gram(self, X, Y=None):
        value = gram(self, X, Y).clone()
        if fault == ("gram" if Y is None else "cross gram"):
            smallest = int(value.diag().argmin())
            value[smallest, smallest] *= 1.01
        return value

    def changed_outputs(self, X):
        value = outputs_of(self, X)
        return value.flip(0) if fault == "outputs" else value

    monkeypatch.setattr(EmpiricalNTK, "features", changed)
    monkeypatch.setattr(EmpiricalNTK, "gram", changed_gram)
    monkeypatch.setattr(EmpiricalNTK, "outputs", changed_outputs)
    result = guarded(plain(outputs=outputs, dtype=dtype))
    assert result.verdict == ("wrong" if fault else "right"), result.message


@pytest.mark.parametrize(
    "fault",
    [
        "parameter",
        "second name",
        "value",
        "grad",
        "flag",
        "frozen",
        "buffer",
        "hook",
        "attribute",
        "module",
        "torch",
        "numpy",
        "python",
        "data",
    ],
)
def test_damage_is_noticed(fault, monkeypatch) -> None:
    features = EmpiricalNTK.features

    def damaging(self, X):
        result = features(self, X)
        model, layer = self.model, self.model.head
        if fault == "parameter":
            layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
        elif fault == "second name":
            bank = self.model.body.pieces[0].second_name
            bank._parameters["weight"] = bank.weight.detach()
        elif fault == "value":
            layer.weight.data[0, 0] += 1e-12
        elif fault == "grad":
            layer.weight.grad = torch.zeros_like(layer.weight)
        elif fault == "flag":
            layer.training = not layer.training
        elif fault == "frozen":
            layer.weight.requires_grad_(False)
        elif fault == "buffer":
            model.get_buffer("body.pieces.1.calls").fill_(1)
        elif fault == "hook":
            layer.register_forward_hook(lambda *_: None)
        elif fault == "attribute":
            layer.note = 1
        elif fault == "module":
            model.head = torch.nn.Linear(4, 2)
        elif fault == "torch":
            torch.rand(1)
        elif fault == "numpy":
            np.random.rand()  # noqa: NPY002
        elif fault == "python":
            random.random()
        else:
            X += 1
        return result

    monkeypatch.setattr(EmpiricalNTK, "features", damaging)
    nodes = piece("banked", what="linear", named=True) + piece("counter", how="nan")
    result = guarded(plain(body=nodes))
    assert result.verdict == "damaged", result.message


MIXING = ("centre", "softmax", "largest", "attention", "cumsum", "roll", "place", "ghost", "norm")
RANDOM = ("dropout", "noise", "depth", "permutation", "mask", "small")


@pytest.mark.parametrize(
    ("kind", "how"), [("mixed", how) for how in MIXING] + [("random", how) for how in RANDOM]
)
def test_what_has_no_gradients_of_its_points_must_be_refused(kind, how, monkeypatch) -> None:
    case = plain(n=30, body=piece(kind, how=how, p=0.2) + piece("linear", bias=True))
    assert guarded(case).verdict == "right"

    def accepted(self, *points):
        return torch.zeros(30, self.n_parameters, dtype=torch.float64)

    for method in ("features", "gram", "outputs"):
        monkeypatch.setattr(EmpiricalNTK, method, accepted)
    assert guarded(case).verdict == "wrong"


def test_errors_that_ntkfast_does_not_raise_are_crashes(monkeypatch) -> None:
    for error, verdict in ((IndexError, "crashed"), (ValueError, "crashed")):

        def failing(self, X, error=error):
            raise error("not from ntkfast's own files")

        monkeypatch.setattr(EmpiricalNTK, "features", failing)
        assert guarded(plain()).verdict == verdict
    monkeypatch.undo()
    assert guarded(plain(head="squeeze", k=1, outputs="single")).verdict == "right"


def test_a_failure_is_made_small(monkeypatch) -> None:
    """Only a LayerNorm inside a fold is wrong; what remains is that."""
    features = EmpiricalNTK.features

    def wrong(self, X):
        value = features(self, X)
        for m in self.model.modules():
            if type(m).__name__ == "Folded" and any(
                isinstance(inner, torch.nn.LayerNorm) for inner in m.chains.modules()
            ):
                return value * 1.1
        return value

    norm = piece("norm", kind="layer")
    linear = piece("linear", bias=True)
    fold = piece("folded", [piece("copies", [linear + norm], how="cat", flip=True, merge="mean")])
    fold[0][1]["how"] = "points"
    body = linear + piece("wrapped", [linear + fold], how="twice") + linear
    case = plain(entry="sequence", shape=(3, 4), body=body, outputs="full", n=9)
    assert guarded(case).verdict == "right"
    monkeypatch.setattr(EmpiricalNTK, "features", wrong)
    small = fuzz_ntk.shrink(guarded(case)).case
    assert small.body == piece("folded", [norm], how="points")
    assert (small.n, small.data, small.k, small.outputs) == (2, [], 1, "sum")


def test_pieces_keep_the_shape_of_a_point() -> None:
    assert all(issubclass(cls, Piece) and cls.on for cls in PIECES.values())
    for seed in range(60):
        case = draw(seed)
        model, data = fuzz_ntk.build(case).eval(), fuzz_ntk.make(case)
        try:
            shape = fuzz_ntk.outputs_of(model, data).shape
        except RuntimeError:
            continue  # In-place operations that autograd refuses.
        assert shape[0] == case.n
