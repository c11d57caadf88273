"""modAL: a tuple of positions in the pool and utilities, whatever form the data have."""

import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import pytest
import scipy.sparse as sp
import sklearn

pytest.importorskip(
    "modAL", reason="modAL is not installed (its own pins exclude a current skorch)"
)

from modAL.models import ActiveLearner, Committee, DeepActiveLearner
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

import ntkfast as nf
from ntkfast.integrations.modal import look_ahead

ROOT = Path(__file__).parents[1]
N, LABELED = 40, 12


@pytest.fixture(scope="module")
def data():
    X, y = load_digits(n_class=3, return_X_y=True)
    return X[:LABELED] / 16, y[:LABELED], X[LABELED : LABELED + N] / 16


def learner_of(X, y, strategy=look_ahead, **keywords):
    return ActiveLearner(LogisticRegression(), strategy, X_training=X, y_training=y, **keywords)


def literal(X, labeled, ridge):
    """S of the pool after the labels, for the linear kernel."""
    cross = labeled @ X.T
    inside = labeled @ labeled.T + ridge * np.eye(len(labeled))
    return X @ X.T - cross.T @ np.linalg.solve(inside, cross)


def test_variance_reduction(data):
    X, y, pool = data
    learner = learner_of(X, y)
    settings = dict(criterion="variance_reduction", kernel="linear", ridge=0.1)
    picked, samples, utilities = learner.query(pool, n_instances=3, return_metrics=True, **settings)
    for i in range(3):
        S = literal(pool, np.concatenate([X, pool[picked[:i]]]), 0.1)
        expected = (S**2).sum(0) / (S.diagonal() + 0.1)
        expected[picked[:i]] = -np.inf
        assert picked[i] == expected.argmax()
        assert utilities[i] == pytest.approx(expected.max(), rel=1e-8)
    np.testing.assert_array_equal(samples, pool[picked])


def test_features(data):
    X, y, pool = data
    learner = learner_of(X, y)
    settings = dict(criterion="fisher_variance_reduction", kernel="features", ridge=0.1)
    (picked,), (utility,) = look_ahead(learner, pool, **settings)
    S, P = literal(pool, X, 0.1), learner.predict_proba(pool)
    h = 1 - (P**2).sum(1)
    expected = (h[:, None] * S**2).sum(0) / (S.diagonal() + 0.1 / h)
    assert picked == expected.argmax() and utility == pytest.approx(expected.max(), rel=1e-8)


def test_labels_of_a_linear_estimator(data):
    """What a label does is measured on the training samples: their logits set its size."""
    X, y, pool = data
    learner = learner_of(X, y)
    settings = dict(criterion="expected_entropy", kernel="features", mode="top", ridge=0.1)
    settings["criterion_params"] = {"temperature": 2.0}
    picked, utilities = look_ahead(learner, pool, N, **settings)
    f, f_labeled = (np.log(learner.predict_proba(a)) for a in (pool, X))
    own = f_labeled[np.arange(LABELED), y]
    scale = max(1, (own - (f_labeled.sum(1) - own) / 2).mean())
    arguments = pool @ pool.T, X @ pool.T, X @ X.T, f, f_labeled, y, 0.1
    post = nf.Posterior.from_kernel(*arguments, loss="cross_entropy", label_scale=scale)
    expected = nf.utilities(post, "expected_entropy", temperature=2.0)
    np.testing.assert_allclose(utilities, expected[picked], rtol=1e-8)


def test_expected_entropy_reads_the_estimator(data):
    """P(y|c) is the estimator's: with it certain of one class, that label alone counts."""
    X, y, pool = data
    learner = learner_of(X, y)
    settings = dict(criterion="expected_entropy", n_instances=N, mode="top", ridge=0.1)
    picked, utilities = look_ahead(learner, pool, **settings)
    found = np.empty(N)
    found[picked] = utilities
    P = learner.predict_proba(pool)
    by_label = np.empty((N, 3))
    for label in range(3):
        learner.predict_proba = lambda X, label=label: np.eye(3)[np.full(len(X), label)]
        picked, utilities = look_ahead(learner, pool, **settings)
        by_label[picked, label] = utilities
    np.testing.assert_allclose(found, (P * by_label).sum(1), rtol=1e-10)


FORMS = {
    "list": lambda a: a.tolist(),
    "DataFrame": lambda a: pandas.DataFrame(a) if a.ndim == 2 else pandas.Series(a),
    "csr": lambda a: sp.csr_matrix(a) if a.ndim == 2 else a,
    "coo": lambda a: sp.coo_matrix(a) if a.ndim == 2 else a,
    "strings": lambda a: a if a.ndim == 2 else np.array(["ant", "bee", "cat"])[a],
    "objects": lambda a: a if a.ndim == 2 else np.array(["ant", "bee", "cat"], object)[a],
}


@pytest.mark.parametrize("kernel", ["rbf", "linear", "features"])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_data(data, form, kernel):
    X, y, pool = data
    settings = dict(n_instances=4, kernel=kernel)
    expected = look_ahead(learner_of(X, y), pool, **settings)
    X, y, pool = map(FORMS[form], data)
    found = look_ahead(learner_of(X, y), pool, **settings)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-8)
    assert found[0].dtype.kind == "i"


def test_nothing_is_changed_and_the_answer_stays(data):
    X, y, pool = data
    learner = learner_of(X, y)
    before = learner.estimator.coef_.copy(), pool.copy()
    first = learner.query(pool, n_instances=5)
    second = learner.query(pool, n_instances=5)
    np.testing.assert_array_equal(first[0], second[0])
    assert len(set(first[0].tolist())) == 5
    np.testing.assert_array_equal(learner.estimator.coef_, before[0])
    np.testing.assert_array_equal(pool, before[1])


def test_random_ties(data):
    X, y, _ = data
    pool = np.repeat(X[:1] + 0.5, 30, axis=0)
    learner = learner_of(X, y)
    assert look_ahead(learner, pool)[0] == [0]
    found = {int(look_ahead(learner, pool, random_tie_break=True)[0][0]) for _ in range(10)}
    assert len(found) > 1


def test_pipelines(data):
    """With on_transformed the kernel sees what the estimator sees."""
    X, y, pool = data
    pipe = make_pipeline(StandardScaler(), LogisticRegression())
    learner = ActiveLearner(pipe, look_ahead, X_training=X, y_training=y, on_transformed=True)
    found = look_ahead(learner, pool, 3, kernel="features")
    scaler = StandardScaler().fit(X)
    expected = look_ahead(
        learner_of(scaler.transform(X), y), scaler.transform(pool), 3, kernel="features"
    )
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


def test_few_labels(data):
    _, _, pool = data
    cold = ActiveLearner(LogisticRegression(), look_ahead)
    S = literal(pool, pool[:0], 0.1)
    expected = (S**2).sum(0) / (S.diagonal() + 0.1)
    assert look_ahead(cold, pool, kernel="linear", ridge=0.1)[0] == expected.argmax()
    with pytest.raises(TypeError, match="needs a learner whose estimator is fitted"):
        look_ahead(cold, pool, kernel="features")

    tree = DecisionTreeClassifier()  # which takes one class
    one = ActiveLearner(tree, look_ahead, X_training=pool[:2], y_training=np.array(["a", "a"]))
    for kernel in ("rbf", "features"):
        picked, utilities = look_ahead(one, pool, 2, kernel=kernel, criterion="expected_entropy")
        assert len(set(picked.tolist())) == 2 and np.isfinite(utilities).all()


def network():
    torch = pytest.importorskip("torch")
    skorch = pytest.importorskip("skorch")
    torch.manual_seed(0)
    return skorch.NeuralNetClassifier(
        torch.nn.Linear(64, 3),
        criterion=torch.nn.CrossEntropyLoss,
        **dict(max_epochs=30, lr=0.5, train_split=None, verbose=0),
    )


def test_tangent_kernel(data):
    """A class without labels keeps its output; a learner that keeps no data is given them."""
    X, y, pool = (a.astype(np.float32) if a.dtype.kind == "f" else a for a in data)
    X, y = X[y != 0], y[y != 0]
    learner = ActiveLearner(network(), look_ahead, X_training=X, y_training=y)
    settings = dict(n_instances=4, criterion="fisher_variance_reduction", kernel="ntk", ridge=0.1)
    picked, utilities = look_ahead(learner, pool, **settings)
    K = np.concatenate([X, pool]).astype(float)
    K = K @ K.T + 1  # of a linear network
    n = len(X)
    S = K[n:, n:] - K[n:, :n] @ np.linalg.solve(K[:n, :n] + 0.1 * np.eye(n), K[:n, n:])
    P = learner.predict_proba(pool).astype(float)
    h = 1 - (P**2).sum(1)
    expected = (h[:, None] * S**2).sum(0) / (S.diagonal() + 0.1 / h)
    assert picked[0] == expected.argmax()
    assert utilities[0] == pytest.approx(expected.max(), rel=1e-4)

    deep = DeepActiveLearner(network(), look_ahead)
    deep.estimator = learner.estimator
    found = deep.query(pool, X_training=X, y_training=y, **settings)
    np.testing.assert_array_equal(found[0], picked)


def test_errors(data):
    X, y, pool = data
    learner = learner_of(X, y)
    with pytest.raises(ValueError, match="n_instances is 41; the pool has 40"):
        look_ahead(learner, pool, 41)
    with pytest.raises(ValueError, match="the pool has 0"):
        look_ahead(learner, pool[:0])
    with pytest.raises(TypeError, match="learner is a Committee"):
        look_ahead(Committee([learner]), pool)
    with pytest.raises(TypeError, match="needs a torch network"):
        look_ahead(learner, pool, kernel="ntk")
    for criterion, message in ("unknown", "unknown"), ("expected_log_loss", "needs log_loss_targ"):
        with pytest.raises(ValueError, match=message):
            look_ahead(learner, pool, criterion=criterion)
    with pytest.raises(TypeError, match="criterion_params has 'choose'"):
        look_ahead(learner, pool, criterion_params={"choose": max})
    learner.y_training = np.where(y == 0, 7, y)
    with pytest.raises(ValueError, match=r"y_training\[0\] is 7.*fit it again"):
        look_ahead(learner, pool)


@pytest.mark.skipif(
    tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 8),
    reason="modAL 0.4.2 cannot teach with scikit-learn >= 1.8 (check_X_y has no force_all_finite)",
)
def test_teaching(data):
    X, y, pool = data
    labels = load_digits(n_class=3).target[LABELED : LABELED + N]
    learner = learner_of(X, y, partial(look_ahead, kernel="features"))
    for _ in range(3):
        picked, samples = learner.query(pool, n_instances=5)
        learner.teach(samples, labels[picked])
        pool, labels = np.delete(pool, picked, axis=0), np.delete(labels, picked)
    assert len(learner.X_training) == LABELED + 15


def test_example():
    runpy.run_path(str(ROOT / "examples/modal_digits.py"))
