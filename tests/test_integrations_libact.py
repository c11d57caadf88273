"""libact 0.2: entry ids of the data set, labels that arrive through its update."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip(
    "libact", reason="libact 0.2 is not on PyPI: pip install it from its repository"
)

from libact.base.dataset import Dataset
from libact.models import SklearnAdapter, SklearnProbaAdapter
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ntkfast.integrations.libact import LookAhead

ROOT = Path(__file__).parents[1]
N, LABELED = 30, 10


@pytest.fixture(scope="module")
def data():
    X, y = load_digits(n_class=3, return_X_y=True)
    return X[:N] / 16, y[:N]


def dataset(X, y, labeled=LABELED):
    return Dataset(X, [*y[:labeled], *[None] * (X.shape[0] - labeled)])


def model():
    return SklearnProbaAdapter(LogisticRegression())


def literal(X, labeled, ridge):
    K = X @ X.T
    inside = K[np.ix_(labeled, labeled)] + ridge * np.eye(len(labeled))
    return K - K[:, labeled] @ np.linalg.solve(inside, K[labeled])


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_variance_reduction_with_labels_arriving(data, form):
    X, y = data
    entries = dataset(form(X), y)
    strategy = LookAhead(entries, kernel="linear", ridge=0.1)
    labeled = list(range(LABELED))
    for _ in range(4):
        S = literal(X, labeled, 0.1)
        expected = (S**2).sum(0) / (S.diagonal() + 0.1)
        ids, scores = strategy._get_scores()
        np.testing.assert_array_equal(ids, np.setdiff1d(np.arange(N), labeled))
        np.testing.assert_allclose(scores, expected[ids], rtol=1e-8)
        ask_id = strategy.make_query()
        assert type(ask_id) is int and ask_id == ids[scores.argmax()]
        assert strategy.make_query(return_score=True) == (
            ask_id,
            list(zip(ids, scores, strict=True)),
        )
        entries.update(ask_id, y[ask_id])
        labeled.append(ask_id)


def test_features_of_the_model(data):
    X, y = data
    settings = dict(criterion="fisher_variance_reduction", kernel="features", ridge=0.1)
    strategy = LookAhead(dataset(X, y), model=model(), **settings)
    P = LogisticRegression().fit(X[:LABELED], y[:LABELED]).predict_proba(X)
    S, h = literal(X, np.arange(LABELED), 0.1), 1 - (P**2).sum(1)
    expected = (h[:, None] * S**2).sum(0) / (S.diagonal() + 0.1 / h)
    np.testing.assert_allclose(strategy._get_scores()[1], expected[LABELED:], rtol=1e-8)


def test_the_model_tells_how_likely_labels_are(data):
    X, y = data
    settings = dict(criterion="expected_entropy", kernel="linear", ridge=0.1)
    settings["criterion_params"] = {"temperature": 0.2}
    strategy = LookAhead(dataset(X, y), model=model(), **settings)
    P = LogisticRegression().fit(X[:LABELED], y[:LABELED]).predict_proba(X)
    S = literal(X, np.arange(LABELED), 0.1)
    K = X @ X[:LABELED].T
    F = K @ np.linalg.solve(
        X[:LABELED] @ X[:LABELED].T + 0.1 * np.eye(LABELED), np.eye(3)[y[:LABELED]]
    )
    expected = np.zeros(N)
    for c in range(N):
        for label in range(3):
            z = F + (S[:, c] / (S[c, c] + 0.1))[:, None] * (np.eye(3)[label] - F[c])
            p = np.exp(z / 0.2) / np.exp(z / 0.2).sum(1, keepdims=True)
            expected[c] += P[c, label] * (p * np.log(p)).sum()
    np.testing.assert_allclose(strategy._get_scores()[1], expected[LABELED:], rtol=1e-8)


def test_rules(data):
    X, y = data
    entries, given = dataset(X, y), model()
    strategy = LookAhead(entries, model=given)
    assert strategy.make_query() == strategy.make_query()
    assert not hasattr(given._model, "coef_") and entries.len_labeled() == LABELED
    entries.append(X[3] + 1)
    assert N in strategy._get_scores()[0]
    words = Dataset(X, [*np.array(["ant", "bee", "cat"])[y[:LABELED]], *[None] * (N - LABELED)])
    numbered = LookAhead(dataset(X, y), model=model(), kernel="features")
    named = LookAhead(words, model=model(), kernel="features")
    np.testing.assert_allclose(named._get_scores()[1], numbered._get_scores()[1], rtol=1e-8)


@pytest.mark.parametrize("known", [0, 1])
def test_few_labels(data, known):
    X, y = data
    strategy = LookAhead(dataset(X, y, known), criterion="expected_entropy")
    ids, scores = strategy._get_scores()
    assert len(ids) == N - known and np.isfinite(scores).all()
    assert known <= strategy.make_query() < N


def test_the_pool_runs_out(data):
    X, y = data
    strategy = LookAhead(dataset(X, y, N))
    assert [len(part) for part in strategy._get_scores()] == [0, 0]
    with pytest.raises(ValueError, match="nothing is left to query"):
        strategy.make_query()


def test_errors(data):
    X, y = data
    with pytest.raises(TypeError, match="must be a ProbabilisticModel; got a SklearnAdapter"):
        LookAhead(dataset(X, y), model=SklearnAdapter(LogisticRegression()))
    with pytest.raises(TypeError, match="needs a model"):
        LookAhead(dataset(X, y), kernel="features")
    with pytest.raises(ValueError, match="kernel"):
        LookAhead(dataset(X, y), kernel="ntk")
    for criterion, message in ("unknown", "unknown"), ("expected_log_loss", "needs log_loss_targ"):
        with pytest.raises(ValueError, match=message):
            LookAhead(dataset(X, y), criterion=criterion)
    with pytest.raises(TypeError, match="criterion_params has 'mode'"):
        LookAhead(dataset(X, y), criterion_params={"mode": "top"}).make_query()


def test_example():
    runpy.run_path(str(ROOT / "examples/libact_digits.py"))
