"""Sketches chosen layer by layer: unbiased, within the error asked for, the same for all calls."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from ntk_networks import networks  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from ntkfast._ntk import choose, contract, rules  # noqa: E402
from ntkfast._ntk.replica import isolated  # noqa: E402
from ntkfast._ntk.sketch import CountSketch, TensorSketch  # noqa: E402
from ntkfast.learner import LookAheadLearner  # noqa: E402
from ntkfast.ntk import EmpiricalNTK  # noqa: E402

METHODS = ("exact", "count", "rows", "tensor")


def relative(a, b) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture
def network():
    """A convolution, a wide layer and a head, float64, with 24 points."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 20, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(180, 48),
        nn.Tanh(),
        nn.Linear(48, 4),
    )
    return model.double(), torch.randn(24, 1, 8, 8, dtype=torch.float64)


def fixed(ntk, methods, rows=14):
    """Give `ntk` a choice by hand."""
    start, choices = 0, {}
    for name, method in methods.items():
        n_rows = len(ntk._net.get_parameter(name))
        # Any orthonormal directions do; here unit vectors.
        known = torch.eye(n_rows, 2, dtype=torch.float64) if method == "rows" else None
        choices[name] = choose.Choice(method, 0.0, start, rows, directions=known)
        if method == "exact":
            start += ntk._net.get_parameter(name).numel() * (
                1 if ntk._outputs == "full" else ntk._draws
            )
    dim, seed = ntk._sketch.dim, ntk._seed
    ntk._chosen = choose.Sketches(dim, seed, start, choices, 1, 0.0, dim)
    return ntk


@pytest.mark.parametrize(("outputs", "draws"), [("sum", 1), ("random", 2), ("full", 1)])
@pytest.mark.parametrize("method", METHODS)
def test_every_sketch_is_unbiased_over_seeds(network, method, outputs, draws) -> None:
    model, x = network
    x = x[:4]
    methods = dict.fromkeys((name for name, _ in model.named_parameters()), "count")
    weights = ("0.weight", "3.weight")
    methods.update(dict.fromkeys(weights, method) if method != "exact" else {"0.weight": "exact"})
    dim, seeds = 512, 50
    K, plans, estimates = 0, {}, []
    for seed in range(seeds):
        ntk = fixed(
            EmpiricalNTK(model, outputs, draws=draws, sketch="auto", dim=dim, seed=seed), methods
        )
        # What a network does with its points does not depend on the seed, but for the combinations.
        ntk._plans = {} if outputs == "random" else plans
        features = ntk.features(x)
        plans = ntk._plans
        # The random combinations depend on the seed, so only the difference has mean zero.
        if seed == 0 or outputs == "random":
            K = ntk.gram(x)
        estimates.append(features @ features.T - K)
    values = torch.stack(estimates)
    deviation = values.mean(0).abs() / (values.std(0) / seeds**0.5)
    assert float(deviation.max()) < 4.8
    assert 0 < float(values.flatten(1).norm(dim=1).mean() / K.norm()) < 0.7


@pytest.mark.parametrize("dim", [300, 3000])
def test_chosen_sketches_are_unbiased_over_seeds(network, dim) -> None:
    model, x = network
    K = EmpiricalNTK(model).gram(x[:6])
    plans, values = {}, []
    for seed in range(60):
        ntk = EmpiricalNTK(model, sketch="auto", dim=dim, seed=seed, relative_error=0.4)
        ntk._plans = plans  # what a network does with its points does not depend on the seed
        ntk.fit_sketch(x)
        features = ntk.features(x[:6])
        plans = ntk._plans
        values.append(features @ features.T - K)
    values = torch.stack(values)
    deviation = values.mean(0).abs() / (values.std(0) / 60**0.5)
    assert float(deviation.max()) < 4.8


@pytest.mark.parametrize("outputs", ["sum", "full", "random"])
@pytest.mark.parametrize("name", sorted(networks()))
def test_the_sketch_is_one_linear_map_of_the_gradient(name, outputs, monkeypatch) -> None:
    """Whatever contraction gives the gradients: layer factors, torch.func, other batches."""
    model, x = networks()[name]
    draws = 2 if outputs == "random" else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ntk = EmpiricalNTK(
            model, outputs, draws=draws, sketch="auto", dim=64, relative_error=0.9, seed=3
        )
        ntk.fit_sketch(x)
    with isolated(model, torch.device("cpu")) as net:
        parts = ntk._prepare(net, ntk._inputs(x, "X"), explaining=True).parts
    methods = dict.fromkeys(ntk._names, "count")
    wide = [full for full in parts if choose.weight_shape(parts[full]) is not None]
    methods.update({full: ("rows", "tensor")[i % 2] for i, full in enumerate(wide)})
    smallest = min(ntk._names, key=lambda name: model.get_parameter(name).numel())
    fixed(ntk, {**methods, smallest: "exact"}, rows=3)
    features = ntk.features(x)
    other = copy.copy(ntk)
    other.memory_budget = 1
    assert relative(other.features(x), features) <= 1e-10
    with monkeypatch.context() as patch:
        patch.setattr(contract, "contractions", lambda value: None)
        patch.setattr(CountSketch, "add", CountSketch.add_by_runs)
        assert relative(ntk.features(x), features) <= 1e-10
    with monkeypatch.context() as patch:
        patch.setattr(rules, "HANDLERS", {})
        assert relative(ntk.features(x), features) <= 1e-10


@pytest.mark.parametrize(("directions", "wanted"), [(0, 0.15), (0, 0.4), (1, 0.1), (4, 0.1)])
def test_the_error_stays_within_the_one_asked_for(network, directions, wanted, monkeypatch) -> None:
    model, x = network
    monkeypatch.setattr(choose, "_DIRECTIONS", directions)
    K = EmpiricalNTK(model).gram(x)
    expected, errors = [], []
    for seed in range(24):
        ntk = EmpiricalNTK(model, sketch="auto", dim=1500, seed=seed, relative_error=wanted)
        expected.append(ntk.fit_sketch(x))
        features = ntk.features(x)
        errors.append(relative(features @ features.T, K))
    # Estimated and measured, as root mean squares over seeds.
    rms = float(torch.tensor(errors).square().mean().sqrt())
    assert max(expected) <= wanted
    assert rms <= 1.25 * wanted
    mean = sum(expected) / len(expected)
    assert rms <= 1.6 * mean
    # Directions put much of the gradient where nothing collides, which the estimate leaves out.
    assert directions or mean <= 2.5 * rms


def test_more_error_costs_less(network, monkeypatch) -> None:
    model, x = network
    monkeypatch.setattr(choose, "_DIRECTIONS", 0)
    rows = []
    for wanted in (0.05, 0.2, 0.5):
        ntk = EmpiricalNTK(model, sketch="auto", dim=3000, relative_error=wanted)
        ntk.fit_sketch(x)
        choices = ntk._chosen.choices
        assert set(choices) == set(dict(model.named_parameters()))
        # Of 48 rows; all of them where they are not combined.
        rows.append(choices["3.weight"].rows or 48)
    assert rows == sorted(rows, reverse=True) and rows[0] > rows[-1]


def test_directions_that_all_points_share_have_no_error(network) -> None:
    """Rows combined with and without the leading directions, which lower the error 10-fold."""
    model, x = network
    K = EmpiricalNTK(model).gram(x)
    ntk = EmpiricalNTK(model, sketch="auto", dim=3000, relative_error=0.3)
    ntk.fit_sketch(x)
    choice = ntk._chosen.choices["3.weight"]
    assert choice.method == "rows" and choice.directions.shape == (48, 4)
    without = {**ntk._chosen.choices, "3.weight": replace(choice, directions=None)}
    errors = []
    for choices in (ntk._chosen.choices, without):
        squares = []
        for seed in range(12):
            ntk._chosen = replace(ntk._chosen, seed=seed, choices=choices)
            features = ntk.features(x)
            squares.append(relative(features @ features.T, K) ** 2)
        errors.append((sum(squares) / 12) ** 0.5)
    assert 10 * errors[0] < errors[1]


def test_small_parameters_with_a_large_share_are_exact() -> None:
    shares = {
        "weight": choose.Share(torch.eye(4, dtype=torch.float64), 5000),
        "bias": choose.Share(torch.ones(4, 4, dtype=torch.float64), 8),
        "unused": choose.Share(torch.zeros(4, 4, dtype=torch.float64), 8),
    }
    chosen = choose.choose(shares, 256, 0, 0.2)
    assert [chosen.choices[n].method for n in shares] == ["count", "exact", "count"]
    assert chosen.exact == 8 and chosen.shared.dim == 248
    assert chosen.choices["bias"].share == pytest.approx(0.5)
    # Fewer parameters than columns: nothing collides and nothing needs columns of its own.
    few = choose.choose(shares, 8192, 0, 0.2)
    assert few.exact == 0 and few.error == 0


def test_a_tensor_sketch_that_adds_no_error_is_taken_even_without_room_for_one() -> None:
    wide = choose.Share(torch.ones(4, 4, dtype=torch.float64), 4096**2, (1, 4096, 4096), 1e9)
    other = choose.Share(torch.ones(4, 4, dtype=torch.float64), 4096**2, (1, 4096, 4096), 1e9, 0.0)
    chosen = choose.choose({"a": wide, "b": other}, 64, 0, 0.01)
    assert chosen.choices["a"].method == "count" and chosen.choices["b"].method == "tensor"
    assert chosen.error > 0.01 and chosen.needed > 64


def test_a_dim_that_is_too_small_is_named_with_one_that_is_not(network) -> None:
    model, x = network
    ntk = EmpiricalNTK(model, sketch="auto", dim=64, relative_error=0.03)
    with pytest.warns(
        UserWarning, match=r"dim=64 .* relative_error=0\.03; dim=\d+ would"
    ) as record:
        ntk.features(x)
    dim = int(str(record[0].message).rsplit("dim=", 1)[1].split()[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            EmpiricalNTK(model, sketch="auto", dim=dim, relative_error=0.03).fit_sketch(x) < 0.031
        )


def test_the_choice_is_made_once_and_reproducible(network) -> None:
    model, x = network
    options = {"sketch": "auto", "dim": 700, "relative_error": 0.3}
    ntk = EmpiricalNTK(model, **options)
    features = ntk.features(x)
    chosen = ntk._chosen
    later = ntk.features(3 * x[:3])
    assert ntk._chosen is chosen
    assert relative(later @ features.T, ntk.gram(3 * x[:3], x)) < 1
    again = EmpiricalNTK(model, **options)
    again.fit_sketch(x)
    assert torch.equal(again.features(x), features)
    # Streams lose no point to the choice.
    stream = EmpiricalNTK(model, **options).features(DataLoader(TensorDataset(x), batch_size=5))
    assert relative(stream, features) <= 1e-12
    ntk.fit_sketch(x[:4])
    assert ntk._chosen is not chosen
    with pytest.raises(ValueError, match='needs sketch="auto"'):
        EmpiricalNTK(model).fit_sketch(x)


def test_exact_where_the_gradient_fits(network) -> None:
    model, x = network
    ntk = EmpiricalNTK(model, sketch="auto", dim=9500, relative_error=1e-9)
    assert ntk.n_parameters < 9500
    assert ntk.fit_sketch(x) <= 1e-9
    features = ntk.features(x)
    assert relative(features @ features.T, ntk.gram(x)) <= 1e-12


@pytest.mark.parametrize(("rows", "size"), [(3, 5), (40, 700), (700, 40), (900, 900), (1, 1)])
def test_tensor_sketch_is_its_definition(rows, size) -> None:
    dim, n, positions = 600, 2, 3
    left = torch.randn(n, positions, rows, dtype=torch.float64)
    right = torch.randn(n, positions, size, dtype=torch.float64)
    sketch = TensorSketch(dim, 5)
    found = torch.zeros(n, dim, dtype=torch.float64)
    sketch.add(left, right, found)
    # Where single entries go, from products of unit vectors.
    some = [(o, i) for o in {0, rows // 2, rows - 1} for i in {0, size // 2, size - 1}]
    for o, i in some:
        unit = torch.zeros(1, dim, dtype=torch.float64)
        a, b = torch.zeros(1, 1, rows).double(), torch.zeros(1, 1, size).double()
        a[..., o], b[..., i] = 1, 1
        sketch.add(a, b, unit)
        assert unit.abs().max() == pytest.approx(1) and unit.abs().sum() == pytest.approx(1)
    whole = torch.einsum("nto,nti->noi", left, right)
    parts = torch.zeros_like(found)
    eye = torch.eye(rows, dtype=torch.float64).expand(n, rows, rows)
    sketch.add(eye, whole, parts)
    assert relative(found, parts) <= 1e-12
    if rows * size <= dim // 2:
        assert float(found.norm()) == pytest.approx(float(whole.norm()))


def test_explain_says_what_was_chosen_and_what_error_to_expect(network) -> None:
    model, x = network
    for sketch in ("sparse", "kronecker", "auto", None):
        ntk = EmpiricalNTK(model, sketch=sketch, dim=900, relative_error=0.3)
        text = str(ntk.explain(x))
        lines = {line.split()[0]: line for line in text.splitlines() if line}
        assert ("error of the features' Gram matrix" in text) == (sketch is not None)
        assert ("expected over seeds" in text) == (sketch in ("sparse", "auto"))
        assert ("on halves of them" in text) == (sketch is not None)
        assert "%" in lines["3.weight"]
        if sketch == "auto":
            assert "sketch: count" in text
            choice = ntk._chosen.choices["3.weight"]
            assert {"count": "count", "rows": f"{choice.rows} of 48 rows", "tensor": "tensor"}[
                choice.method
            ] in lines["3.weight"]
        elif sketch is not None:
            error = float(text.split("Gram matrix: ")[1].split()[0]) / 100
            assert error == pytest.approx(ntk.sketch_error(x), rel=0.06)
    assert "on 2 points" in str(EmpiricalNTK(model, dim=64).explain(x[:2]))
    full = EmpiricalNTK(model, "full", sketch="auto", dim=900, relative_error=0.5)
    assert "expected over seeds" in str(full.explain(x))


@pytest.mark.parametrize("dim", [1, 2, 7, 300])
def test_few_columns_few_points_and_no_kernel(network, dim) -> None:
    model, x = network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for points in (x[:1], x[:3], 0 * x):
            ntk = EmpiricalNTK(model, sketch="auto", dim=dim, relative_error=0.5)
            assert ntk.fit_sketch(points) >= 0
            assert ntk.features(x).shape == (24, dim)
            assert "nan" not in str(ntk.explain(points))
            for choice in ntk._chosen.choices.values():
                assert choice.directions is None or choice.directions.shape[1] <= len(points) // 4
    silent = nn.Sequential(nn.Linear(3, 20, bias=False), nn.ReLU(), nn.Linear(20, 2, bias=False))
    ntk = EmpiricalNTK(silent, sketch="auto", dim=dim)
    nothing = torch.zeros(6, 3)
    assert ntk.fit_sketch(nothing) == 0 and ntk.sketch_error(nothing) == 0
    assert "nan" not in str(ntk.explain(nothing))


def test_learners_pass_it_on(network) -> None:
    model, x = network
    learner = LookAheadLearner(model, sketch="auto", dim=900, relative_error=0.3)
    learner.fit(x[:8], torch.arange(8) % 4, x[8:])
    assert learner.ntk._chosen.error <= 0.3
    reference = LookAheadLearner(model, sketch=None).fit(x[:8], torch.arange(8) % 4, x[8:])
    assert relative(learner.predict(x), reference.predict(x)) < 0.5
    assert len(learner.query(3).indices) == 3


def test_bad_arguments_are_refused(network) -> None:
    for value in (0, 1, -0.1, "small", float("nan"), True):
        with pytest.raises(ValueError, match="relative_error is"):
            EmpiricalNTK(network[0], relative_error=value)
    with pytest.raises(ValueError, match='expected "sparse", "kronecker", "auto" or None'):
        EmpiricalNTK(network[0], sketch="Auto")
