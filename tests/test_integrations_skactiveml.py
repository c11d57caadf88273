"""scikit-activeml: values against refitting and literal formulas, and the host's rules."""

import os
import runpy
from copy import deepcopy
from pathlib import Path

import joblib
import numpy as np
import pytest
from problems import relative_error

pytest.importorskip("skactiveml", minversion="1.0")

import skactiveml
from skactiveml.classifier import SklearnClassifier
from skactiveml.pool import MonteCarloEER
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB

import ntkfast as nf
from ntkfast.integrations.skactiveml import FastEER, KernelRidgeClassifier, LookAhead

ROOT = Path(__file__).parents[1]
N, LABELED, CLASSES = 24, 8, 3


@pytest.fixture(scope="module")
def data():
    X, y = load_digits(n_class=CLASSES, return_X_y=True)
    return X[:N] / 16, np.where(np.arange(N) < LABELED, y[:N], np.nan)


def ridge_classifier(**keywords):
    settings = dict(ridge=0.3, temperature=0.2, classes=np.arange(CLASSES)) | keywords
    return KernelRidgeClassifier(**settings)


def logistic(**keywords):
    return SklearnClassifier(LogisticRegression(), **dict(classes=np.arange(CLASSES)) | keywords)


def literal(K, labeled, ridge):
    """S (N, N) after the labels."""
    inside = K[np.ix_(labeled, labeled)] + ridge * np.eye(len(labeled))
    return K - K[:, labeled] @ np.linalg.solve(inside, K[labeled])


# FastEER against classifiers that are really fitted again

WEIGHTS = np.linspace(0.5, 2, N)
QUERIES = {
    "plain": {},
    "weights": dict(sample_weight=WEIGHTS),
    "a weight of zero": dict(sample_weight=np.where(np.arange(N) % 5 == 2, 0.0, WEIGHTS)),
    "labelled candidates": dict(candidates=[2, 5, 9, 20]),
    "weighted labelled candidates": dict(candidates=[2, 9, 20], sample_weight=WEIGHTS),
    "samples": dict(candidates="samples", sample_weight_candidates=[1.0, 0.3, 2.0]),
    "evaluation samples": dict(X_eval="samples"),
    "batch": dict(batch_size=4),
}


@pytest.mark.parametrize("method", ["log_loss", "misclassification_loss"])
@pytest.mark.parametrize("name", QUERIES)
def test_fast_eer_is_monte_carlo_eer(data, name, method):
    X, y = data
    keywords = {
        key: X[:3] + 0.1 if isinstance(value, str) else value
        for key, value in QUERIES[name].items()
    }
    clf = ridge_classifier(kernel="linear" if "batch" in name else "rbf")
    theirs, ours = (
        strategy(method=method, random_state=0).query(X, y, clf, return_utilities=True, **keywords)
        for strategy in (MonteCarloEER, FastEER)
    )
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-12, atol=0)


COSTS = np.random.default_rng(0).uniform(1, 2, (CLASSES, CLASSES)) * (1 - np.eye(CLASSES))


@pytest.mark.parametrize("costs", [COSTS, 3 * (1 - np.eye(CLASSES))], ids=["any", "zero-one"])
@pytest.mark.parametrize("subtract_current", [False, True])
def test_costs(data, costs, subtract_current):
    X, y = data
    theirs, ours = (
        strategy(cost_matrix=costs, subtract_current=subtract_current, random_state=0).query(
            X, y, ridge_classifier(), sample_weight_eval=WEIGHTS, return_utilities=True
        )
        for strategy in (MonteCarloEER, FastEER)
    )
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-10, atol=1e-12)


def test_fast_eer_weighs_the_log_loss(data):
    """Two copies of an evaluation sample are one of weight two; MonteCarloEER ignores weights."""
    X, y = data
    twice = np.concatenate([X, X[:5]])
    query = dict(X=X, y=y, clf=ridge_classifier(), return_utilities=True)
    strategy = FastEER(method="log_loss", random_state=0)
    weighted = strategy.query(
        **query, X_eval=X, sample_weight_eval=np.where(np.arange(N) < 5, 2.0, 1.0)
    )[1]
    np.testing.assert_allclose(strategy.query(**query, X_eval=twice)[1], weighted, rtol=1e-12)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_fast_eer_is_float64_whatever_the_samples_are(data, kernel, dtype):
    X, y = data
    X = (16 * X).astype(dtype)
    query = dict(y=y, clf=ridge_classifier(kernel=kernel), return_utilities=True)
    found = FastEER("log_loss", random_state=0).query(X, **query)[1]
    exact = FastEER("log_loss", random_state=0).query(X.astype(np.float64), **query)[1]
    np.testing.assert_allclose(found, exact, rtol=1e-12)


def test_fast_eer_of_a_fitted_classifier(data):
    X, y = data
    clf = ridge_classifier().fit(X, y)
    fitted, anew = (
        FastEER(random_state=0).query(X, y, clf, fit_clf=fit, return_utilities=True)[1]
        for fit in (False, True)
    )
    np.testing.assert_array_equal(fitted, anew)


def test_kernel_ridge_classifier(data):
    X, y = data
    weight = np.where(np.arange(N) == 1, 0, WEIGHTS)
    clf = ridge_classifier(kernel="linear").fit(X, y, weight)
    used = np.array([0, 2, 3, 4, 5, 6, 7])
    K = X @ X.T
    inside = K[np.ix_(used, used)] + np.diag(0.3 / weight[used])
    F = K[:, used] @ np.linalg.solve(inside, np.eye(CLASSES)[y[used].astype(int)])
    np.testing.assert_allclose(clf.decision_function(X), F, rtol=1e-10)
    P = np.exp(F / 0.2) / np.exp(F / 0.2).sum(1, keepdims=True)
    np.testing.assert_allclose(clf.predict_proba(X), P, rtol=1e-10)
    np.testing.assert_array_equal(clf.predict(X), P.argmax(1))
    assert clf.score(X[:LABELED], y[:LABELED]) == 1
    with pytest.raises(NotFittedError):
        ridge_classifier().predict(X)


# LookAhead against formulas written out


def test_look_ahead_is_expected_error_reduction_of_the_kernel(data):
    X, y = data
    clf = ridge_classifier()
    strategy = LookAhead(
        "expected_entropy", ridge=0.3, criterion_params={"temperature": 0.2}, random_state=0
    )
    ours = strategy.query(X, y, clf, return_utilities=True)
    theirs = MonteCarloEER("log_loss", random_state=0).query(X, y, clf, return_utilities=True)
    assert ours[0] == theirs[0]
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-10)


def test_what_criteria_compare_with_is_the_regression(data):
    """Its F before the label: the model has no other outputs."""
    X = np.random.default_rng(0).normal(size=(40, 2))
    truth = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)
    known, ridge = np.arange(9), 1e-2
    y = np.full(40, np.nan)
    y[known] = truth[known]
    clf = SklearnClassifier(LogisticRegression(), classes=[0, 1, 2]).fit(X, y)
    K = np.exp(-np.square(X[:, None] - X[None]).sum(-1) / 2)

    def regression(labeled, targets):
        inverse = K[np.ix_(labeled, labeled)] + ridge * np.eye(len(labeled))
        return K[:, labeled] @ np.linalg.solve(inverse, np.eye(3)[targets])

    F, P = regression(known, truth[known]), clf.predict_proba(X)
    expected = {"label_flips": [], "emoc": [], "mlmoc": []}
    for c in range(9, 40):
        after = [regression(np.r_[known, c], np.r_[truth[known], y]) for y in range(3)]
        flips = [(G.argmax(1) != F.argmax(1)).sum() for G in after]
        changes = [np.linalg.norm(G - F, axis=1).sum() for G in after]
        expected["label_flips"].append(P[c] @ flips)
        expected["emoc"].append(P[c] @ changes)
        expected["mlmoc"].append(changes[F[c].argmax()])
    for criterion, values in expected.items():
        strategy = LookAhead(
            criterion, "rbf", kernel_params={"gamma": 0.5}, mode="top", random_state=0, ridge=ridge
        )
        _, found = strategy.query(X, y, clf, batch_size=3, return_utilities=True)
        assert np.allclose(found[0, 9:], values, rtol=1e-9), criterion


@pytest.mark.parametrize("kernel", ["rbf", "linear", RBF(2.0), "laplacian"], ids=str)
def test_batch_of_variance_reduction(data, kernel):
    """Every row of the utilities is what it would be with the earlier picks labelled."""
    X, y = data
    K = {
        "rbf": np.exp(-((X[:, None] - X) ** 2).sum(2) / 64),
        "laplacian": np.exp(-np.abs(X[:, None] - X).sum(2) / 64),
        "linear": X @ X.T,
    }.get(str(kernel), np.exp(-((X[:, None] - X) ** 2).sum(2) / 8))
    strategy = LookAhead("variance_reduction", kernel, ridge=0.1, random_state=0)
    picked, rows = strategy.query(X, y, logistic(), batch_size=3, return_utilities=True)
    labeled = list(range(LABELED))
    for pick, row in zip(picked, rows, strict=True):
        S = literal(K, labeled, 0.1)
        expected = (S**2).sum(0) / (S.diagonal() + 0.1)
        expected[labeled] = np.nan
        np.testing.assert_allclose(row, expected, rtol=1e-8)
        assert pick == np.nanargmax(expected)
        labeled.append(pick)


def fisher(S, P, ridge):
    h = 1 - (P**2).sum(1)
    return (h[:, None] * S**2).sum(0) / (S.diagonal() + ridge / h)


def test_features_of_a_linear_classifier(data):
    X, y = data
    clf = logistic().fit(X, y)
    picked, (row,) = LookAhead("fisher_variance_reduction", "features", ridge=0.1).query(
        X, y, clf, fit_clf=False, return_utilities=True
    )
    expected = fisher(literal(X @ X.T, np.arange(LABELED), 0.1), clf.predict_proba(X), 0.1)
    np.testing.assert_allclose(row[LABELED:], expected[LABELED:], rtol=1e-8)
    assert picked == LABELED + expected[LABELED:].argmax()


@pytest.mark.parametrize("dtype", [np.float64, np.int8])
def test_labels_of_a_linear_classifier(data, dtype):
    """What a label does is measured on the labelled samples: their logits set its size."""
    X, y = data
    X = (16 * X).astype(dtype)
    clf = logistic().fit(X, y)
    strategy = LookAhead("expected_entropy", "features", ridge=2.0)
    row = strategy.query(X, y, clf, fit_clf=False, return_utilities=True)[1][0, LABELED:]
    f, labeled = np.log(clf.predict_proba(X)), np.arange(LABELED)
    classes = y[labeled].astype(int)
    others = (f[labeled].sum(1) - f[labeled, classes]) / (CLASSES - 1)
    scale = max(1, (f[labeled, classes] - others).mean())
    K = X.astype(float) @ X.T.astype(float)
    arguments = K, K[labeled], K[np.ix_(labeled, labeled)], f, f[labeled], classes, 2.0
    post = nf.Posterior.from_kernel(*arguments, loss="cross_entropy", label_scale=scale)
    expected = nf.utilities(post, "expected_entropy", np.arange(LABELED, N))
    np.testing.assert_allclose(row, expected, rtol=1e-8)


class Embedding(SklearnClassifier):
    def predict_proba(self, X, scale=None):
        P = super().predict_proba(X)
        return P if scale is None else (P, scale * X[:, :20])


def test_features_are_the_embeddings_of_the_classifier(data):
    X, y = data
    clf = Embedding(LogisticRegression(), classes=np.arange(CLASSES)).fit(X, y)
    strategy = LookAhead(
        "fisher_variance_reduction", "features", ridge=0.1, kernel_params={"scale": 2.0}
    )
    row = strategy.query(X, y, clf, return_utilities=True)[1][0, LABELED:]
    E = 2 * X[:, :20]
    expected = fisher(literal(E @ E.T, np.arange(LABELED), 0.1), clf.predict_proba(X), 0.1)
    np.testing.assert_allclose(row, expected[LABELED:], rtol=1e-8)


def test_evaluation_samples(data):
    X, y = data
    strategy = LookAhead("variance_reduction", "linear", ridge=0.1)
    row = strategy.query(X, y, logistic(), X_eval=X[:5] + 1, return_utilities=True)[1][0]
    points = np.concatenate([X, X[:5] + 1])
    S = literal(points @ points.T, np.arange(LABELED), 0.1)
    expected = (S[N:, :N] ** 2).sum(0) / (S.diagonal()[:N] + 0.1)
    np.testing.assert_allclose(row[LABELED:], expected[LABELED:], rtol=1e-8)


def linear_network(**keywords):
    torch = pytest.importorskip("torch")
    pytest.importorskip("skorch")
    from skactiveml.classifier import SkorchClassifier

    torch.manual_seed(0)
    return SkorchClassifier(
        torch.nn.Linear(64, CLASSES),
        neural_net_param_dict=dict(max_epochs=30, lr=0.5, train_split=None, verbose=0),
        **dict(classes=np.arange(CLASSES)) | keywords,
    )


def test_tangent_kernel_of_a_network(data):
    """Of a linear one the kernel is <x, x'> + 1, exactly."""
    X, y = data
    clf = linear_network().fit(X, y)
    strategy = LookAhead(
        "fisher_variance_reduction", "ntk", ridge=0.1, kernel_params={"outputs": "sum"}
    )
    row = strategy.query(X, y, clf, fit_clf=False, return_utilities=True)[1][0, LABELED:]
    expected = fisher(
        literal(X @ X.T + 1, np.arange(LABELED), 0.1), clf.predict_proba(X).astype(float), 0.1
    )
    assert relative_error(row, expected[LABELED:]) < 1e-4  # float32
    for name in ("evaluation_size", "criterion", "no"):
        decided = LookAhead(kernel="ntk", kernel_params={name: 5})
        with pytest.raises(TypeError, match=f"kernel_params has '{name}'.*LookAheadLearner here"):
            decided.query(X, y, clf, fit_clf=False)


def test_given_label_probs_stay(data):
    """What is given as a parameter of the criterion is not replaced by the classifier's own."""
    X, y = data
    P = np.random.default_rng(0).dirichlet(np.ones(CLASSES), N - LABELED)
    K, known = np.exp(-((X[:, None] - X) ** 2).sum(2) / 64), np.arange(LABELED)
    S, one_hot = literal(K, known, 0.3), np.eye(CLASSES)
    inverse = K[:LABELED, :LABELED] + 0.3 * np.eye(LABELED)
    F = K[:, known] @ np.linalg.solve(inverse, one_hot[y[known].astype(int)])
    steps = abs(S / (S.diagonal() + 0.3)).sum(0)[LABELED:]
    changes = np.linalg.norm(one_hot - F[LABELED:, None], axis=2)
    expected = steps * (P * changes).sum(1)
    strategy = LookAhead("emoc", ridge=0.3, criterion_params={"label_probs": P}, random_state=0)
    found = strategy.query(X, y, logistic(), return_utilities=True)[1][0, LABELED:]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_network_that_is_fitted_elsewhere(data):
    X, _ = data
    clf = linear_network()
    picked = LookAhead(kernel="ntk").query(X, np.full(N, np.nan), clf, fit_clf=False)
    assert picked.shape == (1,) and not hasattr(clf, "neural_net_")


def test_a_network_of_several_outputs(data):
    torch = pytest.importorskip("torch")

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(64, CLASSES)

        def forward(self, x):
            return x, self.linear(x)

    X, y = data
    torch.manual_seed(0)
    clf = linear_network()
    two = linear_network(
        forward_outputs={"proba": (1, torch.nn.Softmax(dim=-1)), "emb": (0, None)},
        criterion_output_keys="proba",
    ).set_params(module=Two())
    two.module.linear.load_state_dict(clf.module.state_dict())
    rows = [
        LookAhead(kernel="ntk").query(X, y, model, return_utilities=True)[1] for model in (clf, two)
    ]
    np.testing.assert_allclose(*rows, rtol=1e-5)
    given = LookAhead(kernel="features", kernel_params={"extra_outputs": "emb"})  # which are X
    rows = [
        strategy.query(X, y, model, return_utilities=True)[1]
        for strategy, model in ((LookAhead(kernel="features"), clf), (given, two))
    ]
    np.testing.assert_allclose(*rows, rtol=1e-4)


def test_a_skorch_net_in_a_wrapper_of_sklearn(data):
    torch = pytest.importorskip("torch")
    skorch = pytest.importorskip("skorch")
    X, y = data
    net = skorch.NeuralNetClassifier(
        linear_network().module,
        criterion=torch.nn.CrossEntropyLoss,
        **dict(max_epochs=30, lr=0.5, train_split=None, verbose=0),
    )
    X = X.astype(np.float32)
    # The net wants integers; with NaN among the labels the host makes floats of them all.
    whole = np.where(np.isnan(y), -1, y).astype(int)
    integers = dict(classes=np.arange(CLASSES), missing_label=-1)
    rows = [
        LookAhead(kernel="ntk", missing_label=-1).query(X, whole, model, return_utilities=True)[1]
        for model in (SklearnClassifier(net, **integers), linear_network(missing_label=-1))
    ]
    np.testing.assert_allclose(*rows, rtol=1e-3)
    floats = SklearnClassifier(net, classes=np.arange(CLASSES))
    with (
        pytest.warns(UserWarning, match="could not be fitted"),
        pytest.raises(ValueError, match="could not be fitted"),
    ):
        LookAhead(kernel="ntk").query(X, y, floats)
    clf = SklearnClassifier(net, **dict(integers, classes=[0, 2, 5]))
    with pytest.raises(ValueError, match="numbers of the net's outputs"):
        LookAhead(kernel="ntk", missing_label=-1).query(X, 2 * whole.clip(-0.5, 1), clf)


# The host's rules

STRATEGIES = {
    "rbf": (LookAhead(random_state=0), ridge_classifier),
    "expected error": (LookAhead("expected_error", mode="top", random_state=0), logistic),
    "features": (LookAhead(kernel="features", random_state=0), logistic),
    "ntk": (LookAhead(kernel="ntk", random_state=0), linear_network),
    "FastEER": (FastEER(random_state=0), ridge_classifier),
}
every_strategy = pytest.mark.parametrize("name", STRATEGIES)


def made(name, missing_label=np.nan, **keywords):
    strategy, classifier = STRATEGIES[name]
    return clone(strategy).set_params(missing_label=missing_label), classifier(
        missing_label=missing_label, **keywords
    )


@every_strategy
def test_parameters_are_stored_and_nothing_else(name):
    kind = type(STRATEGIES[name][0])
    settings = {key: object() for key in STRATEGIES[name][0].get_params()}
    strategy = kind(**settings)
    assert strategy.get_params() == settings
    stored = vars(strategy)
    stored.pop("enforce_mapping", None)  # which MonteCarloEER sets
    assert stored == settings
    copy = clone(kind(**dict.fromkeys(settings, "value")))
    assert set(copy.get_params().values()) == {"value"}


@every_strategy
@pytest.mark.parametrize("missing_label", [None, -1, "", "nan"])
@pytest.mark.filterwarnings("error:.*could not be fitted")
def test_labels_of_any_kind(data, name, missing_label):
    X, y = data
    strategy, clf = made(name)
    expected = strategy.query(X, y, clf, batch_size=3, return_utilities=True)
    classes, dtype = ["ant", "bee", "cat"], str
    if missing_label == -1:
        classes, dtype = [10, 20, 30], int
    elif missing_label is None:
        dtype = object
    named = [missing_label if np.isnan(label) else classes[int(label)] for label in y]
    strategy, clf = made(name, missing_label, classes=classes)
    found = strategy.query(X, np.array(named, dtype), clf, batch_size=3, return_utilities=True)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


# Without the names of the classes a label must be there, and a network has more outputs than one.
FEW = [(name, known, True) for name in STRATEGIES for known in (0, 1, 2)]
FEW += [(name, known, False) for name in STRATEGIES if name != "ntk" for known in (1, 2)]


@pytest.mark.parametrize(("name", "known", "named"), FEW)
@pytest.mark.filterwarnings("ignore")
def test_few_labels(data, name, known, named):
    """No label, or labels of one class."""
    X, _ = data
    strategy, clf = made(name, classes=np.arange(CLASSES) if named else None)
    few = np.full(N, np.nan)
    few[:known] = 1
    picked, rows = strategy.query(X, few, clf, batch_size=2, return_utilities=True)
    assert len(set(picked)) == 2 and (picked >= known).all()
    assert np.isfinite(rows[0, known:]).all()
    if name == "FastEER" and not named:
        np.testing.assert_array_equal(rows[0, known:], 0)  # one class: there is no error


@every_strategy
def test_candidates(data, name):
    """Indices into X, or samples: the same points, the same utilities, their own indices."""
    X, y = data
    strategy, clf = made(name)
    everything = strategy.query(X, y, clf, return_utilities=True)[1][0]
    some = np.array([20, 11, 15])
    picked, (row,) = strategy.query(X, y, clf, candidates=some, return_utilities=True)
    np.testing.assert_allclose(row[some], everything[some], rtol=1e-6)
    assert np.isnan(np.delete(row, some)).all() and picked[0] == np.nanargmax(row)
    picked, (row,) = strategy.query(X, y, clf, candidates=X[some], return_utilities=True)
    np.testing.assert_allclose(row, everything[some], rtol=1e-5)
    assert picked[0] == row.argmax()
    assert strategy.query(X, y, clf, candidates=[3]) == [3]  # labelled: asked for once more


@every_strategy
@pytest.mark.parametrize("candidates", [None, [9, 12, 13, 17, 20], "samples"])
def test_batches(data, name, candidates):
    X, y = data
    strategy, clf = made(name)
    candidates = X[[9, 12, 13, 17, 20]] if candidates == "samples" else candidates
    at = np.arange(5) if np.ndim(candidates) == 2 else candidates
    at = np.arange(LABELED, N) if at is None else at
    width = 5 if np.ndim(candidates) == 2 else N
    query = dict(X=X, y=y, clf=clf, candidates=candidates)
    picked, rows = strategy.query(**query, batch_size=4, return_utilities=True)
    assert rows.shape == (4, width) and picked.dtype.kind == "i"
    left = set(np.asarray(at).tolist())
    for pick, row in zip(picked.tolist(), rows, strict=True):
        assert set(np.flatnonzero(~np.isnan(row)).tolist()) == left
        assert row[pick] == np.nanmax(row)
        left.remove(pick)
    np.testing.assert_array_equal(strategy.query(**query, batch_size=4), picked)


@every_strategy
@pytest.mark.parametrize("fit", [True, False])
def test_nothing_is_changed(data, name, fit):
    X, y = data
    strategy, clf = made(name)
    if not fit:
        clf.fit(X, y)
    before = joblib.hash((clf, X, y, strategy.get_params()))
    strategy.query(X, y, clf, fit_clf=fit, batch_size=2)
    assert joblib.hash((clf, X, y, strategy.get_params())) == before


@every_strategy
@pytest.mark.parametrize("seed", [3, np.random.RandomState(3)], ids=["int", "RandomState"])
def test_repeatable(data, name, seed):
    """Many equal utilities, so that chance decides: the same way every time."""
    X, y = data
    X = np.where(np.arange(N)[:, None] < LABELED, X, X[-1])
    strategy, clf = made(name)
    strategy.set_params(random_state=seed)
    first = strategy.query(X, y, clf, batch_size=3)
    for _ in range(2):
        np.testing.assert_array_equal(strategy.query(X, y, clf, batch_size=3), first)
    if name in ("rbf", "FastEER"):  # the utilities of the others differ in the last digit
        seeds = range(12)
        assert (
            len({int(strategy.set_params(random_state=s).query(X, y, clf)[0]) for s in seeds}) > 1
        )


@every_strategy
def test_the_pool_runs_out(data, name):
    X, y = data
    strategy, clf = made(name)
    y = np.where(np.arange(N) < N - 2, np.arange(N) % CLASSES, np.nan)
    with pytest.warns(UserWarning, match="batch_size=5"):
        picked = strategy.query(X, y, clf, batch_size=5)
    assert set(picked.tolist()) == {N - 2, N - 1}
    with (
        pytest.warns(UserWarning, match="batch_size=1"),
        pytest.raises(ValueError, match="nothing left to query"),
    ):
        strategy.query(X, np.arange(N) % float(CLASSES), clf)


def test_errors(data):
    X, y = data
    for strategy, error, message in [
        (LookAhead("unknown"), ValueError, "unknown criterion 'unknown'"),
        (LookAhead("expected_log_loss"), ValueError, "needs log_loss_targets"),
        (LookAhead(kernel="unknown"), ValueError, "kernel"),
        (LookAhead(kernel=3), TypeError, "kernel must be a name or a callable"),
        (LookAhead(kernel=lambda A, B: A), ValueError, r"shape \(24, 64\); expected \(24, 24\)"),
        (LookAhead(kernel="ntk"), TypeError, "needs a torch network, and a LogisticRegression"),
        (LookAhead(mode="unknown"), ValueError, "mode"),
        (LookAhead(ridge=-1), ValueError, "ridge"),
        (
            LookAhead(kernel_params={"gama": 1}),
            TypeError,
            "kernel_params has 'gama', which is not for rbf_kernel here; expected some of gamma$",
        ),
        (
            LookAhead(criterion_params={"candidates": [3]}),
            TypeError,
            "criterion_params has 'candidates', which is not for select here; .* label_probs, wei",
        ),
        (FastEER(), TypeError, "clf is a SklearnClassifier; FastEER knows"),
        (FastEER(method="unknown"), ValueError, "unknown"),
    ]:
        with pytest.raises(error, match=message):
            strategy.query(X, y, logistic())
    for strategy, clf in ((LookAhead(), logistic()), (FastEER(), ridge_classifier())):
        with pytest.raises(NotFittedError):
            strategy.query(X, y, clf, fit_clf=False)
    with pytest.raises(ValueError, match="samples have shape"):
        LookAhead().query(X, y, logistic(), X_eval=X[:, :5])
    with pytest.raises(ValueError, match="sample_weight must be 24 numbers"):
        FastEER().query(X, y, ridge_classifier(), sample_weight=-WEIGHTS)
    with pytest.raises(ValueError, match="goes with candidates that are samples"):
        FastEER().query(X, y, ridge_classifier(), sample_weight_candidates=WEIGHTS)
    with pytest.raises(ValueError, match="ridge"):
        ridge_classifier(ridge=0).fit(X, y)


def test_a_network_with_an_unknown_loss(data):
    torch = pytest.importorskip("torch")
    X, y = data
    clf = linear_network(criterion=torch.nn.MultiMarginLoss)
    with pytest.raises(ValueError, match=r"trained with .*MultiMarginLoss"):
        LookAhead(kernel="ntk").query(X, y, clf)


def test_example():
    runpy.run_path(str(ROOT / "examples/skactiveml_digits.py"))


# The host's own tests of strategies, which its wheels leave out. SKACTIVEML_SOURCE is a checkout.

if "SKACTIVEML_SOURCE" in os.environ:
    skactiveml.__path__.append(os.environ["SKACTIVEML_SOURCE"] + "/skactiveml")
try:
    from skactiveml.tests.template_query_strategy import (
        TemplateSingleAnnotatorPoolQueryStrategy as Template,
    )
except ModuleNotFoundError:

    @pytest.mark.skip(
        reason="scikit-activeml's test templates: SKACTIVEML_SOURCE names no checkout"
    )
    def test_templates_of_the_host():
        pass

else:
    import unittest

    class OfTheHost(Template):
        strategy = LookAhead
        clf = logistic(classes=[0, 1])

        def setUp(self):
            super().setUp(
                qs_class=self.strategy,
                init_default_params={},
                query_default_params_clf={
                    "X": np.linspace(0, 1, 20).reshape(10, 2),
                    "y": np.hstack([[0, 1], np.full(8, np.nan)]),
                    "clf": deepcopy(self.clf),
                },
            )

        def test_query(self):
            X, y = self.query_default_params_clf["X"], self.query_default_params_clf["y"]
            assert self.strategy().query(X, y, self.clf).shape == (1,)

    class TestLookAhead(OfTheHost, unittest.TestCase):
        def test_query_param_clf(self):
            super().test_query_param_clf(
                test_cases=[(logistic(), None), (ridge_classifier(), None)]
            )

        def test_init_param_criterion(self):
            self._test_param("init", "criterion", [("epig", None), ("none", ValueError)])

        def test_init_param_kernel(self):
            cases = [("linear", None), (RBF(), None), ("none", ValueError), (1, TypeError)]
            self._test_param("init", "kernel", cases)

        def test_init_param_ridge(self):
            self._test_param("init", "ridge", [(0.1, None), (0, ValueError), ("x", TypeError)])

        def test_init_param_mode(self):
            self._test_param("init", "mode", [("top", None), ("none", ValueError)])

        def test_init_param_criterion_params(self):
            cases = [({"temperature": 0.5}, None), ({"temperature": -1}, ValueError)]
            self._test_param("init", "criterion_params", [*cases, ({"no": 1}, TypeError)])

        def test_init_param_kernel_params(self):
            self._test_param(
                "init", "kernel_params", [({"gamma": 2.0}, None), ({"no": 1}, TypeError)]
            )

        def test_query_param_X_eval(self):
            cases = [(np.ones((3, 2)), None), (np.ones((3, 3)), ValueError)]
            self._test_param("query", "X_eval", cases)

    class TestFeatures(TestLookAhead):
        def setUp(self):
            super().setUp()
            self.init_default_params["kernel"] = "features"

        def test_init_param_kernel_params(self):
            pass  # of this kernel: those of the classifier

    class TestFastEER(OfTheHost, unittest.TestCase):
        strategy = FastEER
        clf = ridge_classifier(classes=[0, 1])

        def test_query_param_clf(self):
            super().test_query_param_clf(
                test_cases=[(GaussianNB(), TypeError), (logistic(), TypeError)]
            )

        def test_init_param_method(self):
            self._test_param("init", "method", [("log_loss", None), ("none", ValueError)])

        def test_init_param_cost_matrix(self):
            cases = [
                (np.ones((3, 3)), ValueError),
                (np.ones((2, 3)), ValueError),
                ("x", ValueError),
            ]
            self._test_param("init", "cost_matrix", cases)

        def test_init_param_subtract_current(self):
            self._test_param("init", "subtract_current", [(True, None), (2, TypeError)])

        def test_query_param_ignore_partial_fit(self):
            self._test_param("query", "ignore_partial_fit", [(False, None), (2, TypeError)])

        def test_query_param_sample_weight_candidates(self):
            cases = [(np.ones(8), ValueError), (None, None)]
            self._test_param("query", "sample_weight_candidates", cases)

        def test_query_param_X_eval(self):
            self._test_param("query", "X_eval", [(np.ones((3, 2)), None), (np.ones(3), ValueError)])

        def test_query_param_sample_weight_eval(self):
            cases = [(np.ones(10), None), (np.ones(9), ValueError)]
            self._test_param("query", "sample_weight_eval", cases)
