"""LookAheadLearner on small torch networks."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import ntkfast as nf
from ntkfast.learner import LookAheadLearner

pytestmark = pytest.mark.filterwarnings("ignore:.*outnumber a quarter")
NAMES = np.array(["cat", "dog", "emu"])


@pytest.fixture(scope="module")
def problem():
    """Three Gaussian classes and a network trained on a few points of two of them."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(240) % 3
    X = torch.randn(240, 6, generator=generator) + 2.5 * torch.eye(6)[y]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 3))
    labeled = torch.cat([torch.nonzero(y[:40] == c)[:4, 0] for c in (0, 1)])
    model.eval()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[labeled]), y[labeled]).backward()
        optimizer.step()
    return dict(
        model=model, X=X[labeled], y=y[labeled], pool=X[40:160], pool_y=y[40:160],
        test=X[160:], test_y=y[160:],
    )  # fmt: skip


def fitted(problem, **settings):
    learner = LookAheadLearner(problem["model"], **settings)
    assert learner.fit(problem["X"], problem["y"], problem["pool"]) is learner
    return learner


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_labels_teach_without_training(problem, loss):
    problem["model"].train()
    before = {name: value.clone() for name, value in problem["model"].state_dict().items()}
    learner = fitted(problem, loss=loss)
    accuracy = lambda: (  # noqa: E731
        (learner.predict(problem["test"]).argmax(1) == problem["test_y"]).double().mean().item()
    )
    first, asked = accuracy(), []
    for _ in range(3):
        picked = learner.query(8)
        again = learner.query(8)
        assert torch.equal(picked.indices, again.indices)
        assert torch.equal(picked.utilities, again.utilities)
        asked += picked.indices.tolist()
        learner.update(picked.indices, problem["pool_y"][picked.indices])
    assert len(set(asked)) == 24
    assert learner.posterior.labeled.tolist() == sorted(asked)
    assert accuracy() > first + 0.1
    assert problem["model"].training
    for name, value in problem["model"].state_dict().items():
        assert torch.equal(value, before[name])
    problem["model"].eval()


def test_predictions_on_the_pool_are_the_posteriors_mean(problem):
    learner = fitted(problem)
    learner.update([3, 5], [2, 0])
    found = learner.predict(problem["pool"])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, learner.posterior.mean, rtol=1e-5, atol=1e-5)


def test_it_is_select_on_a_posterior(problem):
    learner = fitted(problem, evaluation_size=None, dim=256, seed=3, ridge=0.5, label_scale=4.0)
    ntk = nf.EmpiricalNTK(problem["model"], dim=256, seed=3)
    post = nf.Posterior.from_features(
        ntk.features(problem["pool"]),
        ntk.outputs(problem["pool"]),
        ntk.features(problem["X"]),
        ntk.outputs(problem["X"]),
        problem["y"],
        0.5,
        loss="cross_entropy",
        label_scale=4.0,
    )
    assert torch.equal(learner.query(9).indices, nf.select(post, "fisher_herding", 9).indices)
    top = fitted(problem, criterion="emoc", mode="top", loss="squared", sketch=None)
    assert len(set(top.query(5).indices.tolist())) == 5


@pytest.mark.parametrize(
    ("loss", "k", "expected"),
    [
        ("cross_entropy", 3, "fisher_herding"),
        ("squared", 3, "fisher_herding"),
        ("squared", 1, "variance_reduction"),
    ],
)
def test_the_automatic_criterion(problem, loss, k, expected):
    """By what the outputs are: classes, or the number of a regression."""
    torch.manual_seed(0)
    model = torch.nn.Linear(problem["X"].shape[1], k, dtype=problem["X"].dtype)
    y = torch.arange(len(problem["X"])) % 3
    y = y if k > 1 else y.to(problem["X"].dtype)
    learner = LookAheadLearner(model, loss=loss, sketch=None, classes=range(3) if k > 1 else None)
    assert learner.criterion == (expected if loss == "cross_entropy" else "auto")
    learner.fit(problem["X"], y, problem["pool"])
    assert learner.criterion == expected
    wanted = nf.select(learner.posterior, expected, 4).indices
    assert torch.equal(learner.query(4).indices, wanted)
    assert torch.equal(learner.query(4, criterion="auto").indices, wanted)


def test_query_takes_what_select_takes(problem):
    """With the same meaning: indices into the pool as given."""
    learner = fitted(problem, evaluation_size=30, sketch=None)
    rng = np.random.default_rng(0)
    N, k, post = 120, 3, learner.posterior
    drawn = np.sort(np.random.default_rng(0).choice(N, 30, replace=False))
    candidates, evaluation = rng.permutation(N)[:40], rng.permutation(N)[:50]
    given = dict(
        candidates=candidates,
        evaluation=evaluation,
        label_probs=rng.dirichlet(np.ones(k), 40),
        weights=rng.uniform(size=50),
        noise=post.ridge * rng.uniform(0.5, 2, 40),
        temperature=0.7,
        log_loss_targets=rng.dirichlet(np.ones(k), 50),
        precision="float64",
    )
    found = []
    for criterion in ("expected_log_loss", "emoc", "epig", "fisher_variance_reduction"):
        for mode in ("top", "sequential"):
            asked = learner.query(6, criterion=criterion, mode=mode, **given)
            expected = nf.select(post, criterion, 6, mode, **given)
            assert torch.equal(asked.indices, expected.indices)
            assert torch.equal(asked.utilities, expected.utilities)
            assert set(asked.indices.tolist()) <= set(candidates.tolist())
            found.append(tuple(asked.indices.tolist()))
    assert len(set(found)) == len(found)
    # Each argument alone changes something, so that none is lost on the way.
    plain = learner.query(6, criterion="expected_log_loss", **given)
    for name in set(given) - {"precision"}:
        rest = {key: value for key, value in given.items() if key != name}
        if name == "candidates":
            rest = {key: rest[key] for key in rest if key not in ("label_probs", "noise")}
        if name == "log_loss_targets":
            rest[name] = given[name][::-1]
        if name == "evaluation":
            rest = {key: rest[key] for key in rest if key not in ("weights", "log_loss_targets")}
            rest["log_loss_targets"] = np.full((N, k), 1 / k)
        other = learner.query(6, criterion="expected_log_loss", **rest)
        assert not torch.equal(plain.utilities, other.utilities), name
    # Without evaluation: the drawn points, of weights and targets given for the whole pool.
    v, q = rng.uniform(size=N), rng.dirichlet(np.ones(k), N)
    asked = learner.query(5, criterion="expected_log_loss", weights=v, log_loss_targets=q)
    expected = nf.select(
        post, "expected_log_loss", 5, evaluation=drawn, weights=v[drawn], log_loss_targets=q[drawn]
    )
    assert torch.equal(asked.utilities, expected.utilities)
    tensors = dict(weights=torch.as_tensor(v), log_loss_targets=torch.as_tensor(q))
    again = learner.query(5, criterion="expected_log_loss", **tensors)
    assert torch.equal(asked.utilities, again.utilities)
    every = learner.query(5, evaluation=np.ones(N, bool), weights=v)
    expected = nf.select(post, "fisher_herding", 5, weights=v)
    assert torch.equal(every.utilities, expected.utilities)
    assert torch.equal(learner.query(4).indices, learner.query(4, criterion="auto").indices)


def test_coverage(problem):
    """Of the pool as given, by the kernel of the network, with labels and before any."""
    cold = LookAheadLearner(problem["model"], criterion="max_herding", layers="last")
    cold.fit(None, None, problem["pool"])
    picked = cold.query(5)
    first = cold.query(5, criterion="uncertainty_herding")
    assert torch.equal(picked.indices, first.indices)  # every class is open
    cold.update(picked, problem["pool_y"][picked.indices])
    again = cold.query(5)
    assert not set(again.indices.tolist()) & set(picked.indices.tolist())
    warm = fitted(problem, criterion="uncertainty_herding", evaluation_size=50)
    v = np.random.default_rng(0).uniform(size=120)
    settings = dict(temperature=2.0, radius=0.7)
    drawn = np.sort(np.random.default_rng(0).choice(120, 50, replace=False))
    found = warm.query(6, weights=v, **settings)
    expected = nf.select(
        warm.posterior, "uncertainty_herding", 6, evaluation=drawn, weights=v[drawn], **settings
    )
    assert torch.equal(found.utilities, expected.utilities)
    for change in (dict(radius="auto"), dict(temperature=1.0), dict(similarity="cosine")):
        other = warm.query(6, weights=v, **(settings | change))
        assert not torch.equal(found.utilities, other.utilities)
    blocks = fitted(problem, outputs="full", sketch=None)
    with pytest.raises(ValueError, match="prob_cover is of a scalar kernel"):
        blocks.query(2, criterion="prob_cover")
    assert len(blocks.query(2, criterion="d_optimal").indices) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(radius=0), "radius must be finite and > 0"),
        (dict(similarity="euclid"), 'similarity must be "rbf" or "cosine"'),
        (dict(criterion="magic"), "unknown criterion 'magic'; known: mlmoc"),
        (dict(mode="greedy"), "mode must be"),
        (dict(weights=np.ones(30)), r"weights has shape \(30,\); expected \(120,\)"),
        (dict(weights=-np.ones(120)), "weights must be >= 0"),
        (dict(log_loss_targets=np.ones((30, 3)) / 3), r"log_loss_targets has .* \(120, 3\)"),
        (dict(candidates=[120]), "candidates"),
        (dict(candidates=[1, 2], noise=np.ones(3)), r"noise has shape \(3,\); expected \(2,\)"),
        (dict(evaluation=[1, 1]), "evaluation"),
        (dict(evaluation=[1, 2], weights=np.ones(120)), r"weights has .* expected \(2,\)"),
        (dict(temperature=0), "temperature must be finite and > 0"),
        (dict(precision="float16"), "precision must be"),
        (dict(label_probs=np.ones((120, 3))), "label_probs must have rows that sum to one"),
    ],
)
def test_arguments_of_query_are_checked(problem, arguments, message):
    with pytest.raises(ValueError, match=message):
        fitted(problem, evaluation_size=30).query(3, **arguments)


def test_residual_temperature(problem):
    tempered, plain = fitted(problem), fitted(problem, residual_temperature=1.0)
    assert tempered.posterior.residual_temperature == 2.0
    assert plain.posterior.residual_temperature == 1.0
    for learner in (tempered, plain):
        post, T_r = learner.posterior, learner.posterior.residual_temperature
        F, S = post.mean, post.covariance([5], [5]).item()
        learner.update([5], [1])
        residual = post.label_scale * (torch.eye(3)[1] - torch.softmax(F[5] / T_r, 0))
        torch.testing.assert_close(
            learner.posterior.mean[5], F[5] + S / (S + post.ridge) * residual
        )


def test_evaluation_points_are_a_seeded_draw(problem):
    picks = [
        fitted(problem, evaluation_size=20, seed=seed, sketch=None).query(6) for seed in (0, 0, 1)
    ]
    assert torch.equal(picks[0].utilities, picks[1].utilities)
    assert not torch.equal(picks[0].utilities, picks[2].utilities)
    whole = fitted(problem, evaluation_size=120, sketch=None).query(6)
    every = fitted(problem, evaluation_size=None, sketch=None).query(6)
    assert torch.equal(whole.utilities, every.utilities)


def test_any_labels(problem):
    plain = fitted(problem)
    named = LookAheadLearner(problem["model"], classes=NAMES)
    named.fit(problem["X"].numpy(), NAMES[problem["y"]], problem["pool"].numpy())
    for learner, names in ((plain, np.arange(3)), (named, NAMES)):
        learner.update([4, 8], names[[2, 1]].tolist())
    found = named.predict(problem["test"].numpy())
    assert isinstance(found, np.ndarray) and named.classes_[found.argmax(1)].dtype.kind == "U"
    np.testing.assert_allclose(found, plain.predict(problem["test"]), rtol=1e-6, atol=1e-6)
    # All classes seen: sorted labels are the outputs in order.
    inferred = LookAheadLearner(problem["model"])
    inferred.fit(problem["pool"], NAMES[problem["pool_y"]], problem["test"])
    assert inferred.classes_.tolist() == NAMES.tolist()
    reordered = LookAheadLearner(problem["model"], classes=[30, 10, 20])
    reordered.fit(problem["X"], np.array([30, 10, 20])[problem["y"]], problem["pool"])
    reordered.update([4, 8], [20, 10])
    np.testing.assert_array_equal(reordered.posterior.mean, plain.posterior.mean)


@pytest.mark.parametrize("nothing", [(None, None), (None, []), (torch.empty(0, 6), torch.empty(0))])
def test_no_labels_at_all(problem, nothing):
    learner = LookAheadLearner(problem["model"]).fit(*nothing, problem["pool"])
    picked = learner.query(4)
    learner.update(picked.indices, problem["pool_y"][picked.indices])
    assert learner.predict(problem["test"]).shape == (80, 3)


def test_what_is_refused(problem):
    model, X, y, pool = (problem[key] for key in ("model", "X", "y", "pool"))
    with pytest.raises(RuntimeError, match="call fit"):
        LookAheadLearner(model).query(3)
    for settings, message in (
        (dict(loss="hinge"), "loss must be"),
        (dict(criterion="magic"), "unknown criterion"),
        (dict(evaluation_size=0), "evaluation_size must be an int >= 1 or None"),
        (dict(evaluation_size=2.5), "evaluation_size must be"),
    ):
        with pytest.raises(ValueError, match=message):
            LookAheadLearner(model, **settings)
    for classes in (["a", "b"], ["a", "b", "a"]):
        with pytest.raises(ValueError, match="classes must name the model's 3 outputs once each"):
            LookAheadLearner(model, classes=classes).fit(X, y, pool)
    with pytest.raises(ValueError, match=r"y_labeled has 7 labels; X_labeled has 8 points"):
        LookAheadLearner(model).fit(X, y[:-1], pool)
    with pytest.raises(ValueError, match="y_labeled is empty, and X_labeled is not: labels are"):
        LookAheadLearner(model).fit(X, None, pool)
    with pytest.raises(ValueError, match=r"3 outputs and y_labeled 2 different labels"):
        LookAheadLearner(model).fit(X, NAMES[y], pool)
    with pytest.raises(ValueError, match=r"y_labeled\[0\] = 5 is none of the classes 0, 1, 2"):
        LookAheadLearner(model).fit(X, y + 5, pool)
    with pytest.raises(ValueError, match="y_labeled has shape"):
        LookAheadLearner(model).fit(X, nn.functional.one_hot(y, 3), pool)
    learner = fitted(problem)
    before = learner.posterior.mean
    for indices, labels, message in (
        ([1], [7], r"y\[0\] = 7 is none of the classes"),
        ([1, 2], [0], "y has 1 labels; indices name 2 points"),
        ([400], [0], "out of range"),
        ([1, 2], ["cat"], r"y\[0\] = 'cat' is none of the classes 0, 1, 2"),
    ):
        with pytest.raises(ValueError, match=message):
            learner.update(indices, labels)
    with pytest.raises(ValueError, match="batch_size is 121"):
        learner.query(121)
    for size in (None, 30):
        picky = fitted(problem, criterion="expected_log_loss", evaluation_size=size)
        with pytest.raises(ValueError, match=r"loss needs log_loss_targets of shape \(120, 3\)"):
            picky.query(3)
    assert torch.equal(learner.posterior.mean, before)


def test_a_refused_fit_changes_nothing(problem):
    """Not even the sketch that was fitted to the pool."""
    X, y, pool = (problem[key] for key in ("X", "y", "pool"))
    learner = fitted(problem, sketch="auto", dim=64, relative_error=0.9)
    before = learner.posterior
    for labels in (y[:-1], None, y + 5):
        with pytest.raises(ValueError, match="y_labeled"):
            learner.fit(X, labels, pool[:50])
        assert learner.posterior is before
    assert learner.predict(pool[:3]).shape == (3, 3)


def test_labels_of_several_kinds(problem):
    model, X, pool = (problem[key] for key in ("model", "X", "pool"))
    unordered = np.array([object() for _ in range(8)])
    for labels, error, message in (
        ([1, "cat"] * 4, TypeError, r"mixes strings and other .*\[0\] = 1, y_labeled\[1\] = 'cat'"),
        (np.array(["cat", 1] * 4, object), TypeError, "mixes strings and other labels"),
        ([[1], [1, 2]] * 4, TypeError, "y_labeled is not a sequence of labels"),
        (unordered, TypeError, "have no order"),
    ):
        with pytest.raises(error, match=message):
            LookAheadLearner(model).fit(X, labels, pool)
    with pytest.raises(TypeError, match="classes mixes strings"):
        LookAheadLearner(model, classes=[0, "cat", 2]).fit(X, problem["y"], pool)
    # Objects are fine as such: a column of pandas is an array of them.
    learner = LookAheadLearner(model, classes=NAMES.astype(object))
    learner.fit(X, NAMES[problem["y"]].astype(object), pool)
    with pytest.raises(ValueError, match=r"y has 1 labels; indices name 2 points"):
        learner.update([1, 2], ["cat"])
    mixed = LookAheadLearner(model, classes=unordered[:3])
    mixed.fit(X, unordered[problem["y"]], pool).update([0], unordered[2:3])


def test_kronecker_sketch(problem):
    learner = fitted(problem, sketch="kronecker", dim=512)
    features = nf.EmpiricalNTK(problem["model"], sketch="kronecker", dim=512).features
    found = learner.posterior.covariance([3, 5], [3, 5])
    expected = nf.Posterior.from_features(
        features(problem["pool"]),
        learner.ntk.outputs(problem["pool"]),
        features(problem["X"]),
        learner.ntk.outputs(problem["X"]),
        problem["y"],
        loss="cross_entropy",
    ).covariance([3, 5], [3, 5])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("labels", [[0] * 20, [0, 1] * 10, ["cat", "dog"] * 10, None])
def test_one_logit_is_explained(problem, labels):
    X = None if labels is None else problem["pool"][:20]
    with pytest.raises(ValueError, match=r"two columns, \[0, logit\]"):
        LookAheadLearner(nn.Linear(6, 1)).fit(X, labels, problem["pool"])


def test_probabilities_are_explained(problem):
    X, y, pool = (problem[key] for key in ("X", "y", "pool"))
    model = nn.Sequential(problem["model"], nn.Softmax(1))
    for outputs in ("sum", "random"):
        with pytest.raises(ValueError, match=r"returns probabilities; .* without its Softmax, or"):
            LookAheadLearner(model, outputs=outputs).fit(X, y, pool)
    with pytest.raises(ValueError, match=r"sum is always 1, .* outputs='random' or 'single'"):
        LookAheadLearner(model, loss="squared").fit(X, y, pool)
    for outputs in ("random", "single"):
        learner = LookAheadLearner(model, loss="squared", outputs=outputs).fit(X, y, pool)
        assert learner.query(3).utilities.min() > 1e-8
    logarithms = nn.Sequential(problem["model"], nn.LogSoftmax(1))
    with pytest.warns(UserWarning, match="returns log-probabilities: .* without its LogSoftmax"):
        learner = LookAheadLearner(logarithms).fit(X, y, pool)
    assert learner.query(3).utilities.min() > 1e-8


def test_labels_that_the_network_does_not_know(problem):
    X, pool = problem["X"], problem["pool"]
    model = nn.Sequential(problem["model"], nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(30 * torch.eye(3))
        found = model.eval()(torch.as_tensor(X)).argmax(1).numpy()
    names = np.array(["zero", "one", "two"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LookAheadLearner(model, classes=names).fit(X, names[found], pool)
    others = (found + 1) % 3
    with pytest.warns(UserWarning, match="do not stand for 'zero', 'one', 'two' in this order"):
        LookAheadLearner(model, classes=names).fit(X, names[others], pool)


def test_numbers_that_are_no_classes(problem):
    X, y, pool = (problem[key] for key in ("X", "y", "pool"))
    model = problem["model"]
    same = LookAheadLearner(model).fit(X, np.asarray(y).astype(float), pool)
    assert same.classes_.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"y_labeled holds .*7, which is no class: pass integers"):
        LookAheadLearner(model).fit(X, np.asarray(y) + 0.7, pool)
    with pytest.raises(ValueError, match="y_labeled is boolean, and the model has 3 outputs"):
        LookAheadLearner(model).fit(X, np.asarray(y) > 1, pool)


def test_update_takes_what_query_returns(problem):
    X, y, pool = (problem[key] for key in ("X", "y", "pool"))
    learner = LookAheadLearner(problem["model"]).fit(X, y, pool)
    picked = learner.query(2)
    learner.update(picked, [0, 1])
    assert sorted(learner.posterior.labeled.tolist()) == sorted(picked.indices.tolist())
    assert "given" in repr(learner) and "not fitted" in repr(LookAheadLearner(problem["model"]))


def test_outputs_that_merely_sum_to_one(problem):
    # Least squares on one-hot targets ends there, with a kernel like any other.
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight.mul_(1e-3)
        model.weight -= model.weight.mean(0)
        model.bias.fill_(1 / 3)
    learner = LookAheadLearner(model, loss="squared")
    assert len(learner.fit(problem["X"], problem["y"], problem["pool"]).query(3).indices) == 3


@pytest.fixture(scope="module")
def regression():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(120, 6, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    X, y = X.double(), torch.sin(X[:, 0] + X[:, 1]).double()
    return dict(model=model, X=X[:10], y=y[:10], pool=X[10:90], pool_y=y[10:90], test=X[90:],
                test_y=y[90:])  # fmt: skip


@pytest.mark.parametrize("criterion", ["auto", "epig"])
def test_regression(regression, criterion):
    model, X, y, pool = (regression[key] for key in ("model", "X", "y", "pool"))
    learner = LookAheadLearner(
        model, loss="squared", criterion=criterion, sketch=None, evaluation_size=None, ridge=1e-2
    )
    learner.fit(X, y, pool)
    assert learner.classes_ is None
    first = (learner.predict(regression["test"])[:, 0] - regression["test_y"]).square().mean()
    picked = learner.query(30)
    learner.update(picked.indices, regression["pool_y"][picked.indices])
    found = learner.predict(regression["test"])
    assert found.shape == (30, 1) and found.dtype == torch.float64
    assert (found[:, 0] - regression["test_y"]).square().mean() < first
    # The same by hand: f(x) + K(x, L) (K_LL + lam)^-1 (y - f(L)).
    ntk = nf.EmpiricalNTK(model)
    seen = torch.cat([X, pool[picked.indices]])
    labels = torch.cat([y, regression["pool_y"][picked.indices]])
    K = ntk.gram(seen) + 1e-2 * torch.eye(40)
    with torch.no_grad():
        residual = labels[:, None] - model(seen)
        by_hand = model(regression["test"])
    by_hand = by_hand + ntk.gram(regression["test"], seen) @ torch.linalg.solve(K, residual)
    torch.testing.assert_close(found, by_hand, rtol=1e-6, atol=1e-6)


def test_targets_of_a_regression(regression):
    model, X, y, pool = (regression[key] for key in ("model", "X", "y", "pool"))
    fit = lambda *data: LookAheadLearner(model, loss="squared").fit(*data, pool)  # noqa: E731
    plain = fit(X, y)
    plain.update([3, 4], [1.0, 2.0])
    for targets, new in (
        (y[:, None], torch.tensor([[1.0], [2.0]])),
        (y.numpy(), np.array([1, 2])),
        (y.tolist(), [1, 2]),
    ):
        learner = fit(X, targets)
        learner.update([3, 4], new)
        np.testing.assert_array_equal(learner.posterior.mean, plain.posterior.mean)
    cold = fit(None, None)
    cold.update(cold.query(2).indices, [0.5, -0.5])
    for targets, error, message in (
        (["cat"] * 10, TypeError, "y_labeled must be numbers"),
        (torch.zeros(10, 2), ValueError, "y_labeled has shape"),
        ([float("inf")] * 10, ValueError, "y_labeled contains inf at index 0"),
        ([0.5] * 9, ValueError, "y_labeled has 9 labels; X_labeled has 10 points"),
    ):
        with pytest.raises(error, match=message):
            fit(X, targets)
    for settings, message in (
        (dict(criterion="emoc"), "emoc compares classes"),
        (dict(criterion="fisher_variance_reduction"), "compares classes"),
        (dict(classes=[0, 1]), "labels are numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            LookAheadLearner(model, loss="squared", **settings).fit(X, y, pool)
    with pytest.raises(ValueError, match="y has 1 labels; indices name 2 points"):
        plain.update([1, 2], [0.5])
