"""small-text 1.4 and 2.0: indices into the data set, its exceptions, its embeddings."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("small_text")

import small_text as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ntkfast.integrations.small_text import LookAhead

ROOT = Path(__file__).parents[1]
N, CLASSES = 40, 3
LABELED = np.array([30, 2, 17, 9, 5, 21, 33, 12])
IGNORED = np.array([0, 25])
POOL = np.setdiff1d(np.arange(N), np.concatenate([LABELED, IGNORED]))


class Embedding(st.SklearnClassifier):
    """A classifier whose embeddings are its inputs."""

    def embed(self, data_set, return_proba=False, pbar="tqdm", scale=1.0):
        E = scale * np.asarray(data_set.x.todense())
        return (E, self.predict_proba(data_set)) if return_proba else E


class Plain(Embedding):
    def embed(self, data_set, pbar="tqdm"):
        return super().embed(data_set)


@pytest.fixture(scope="module")
def data():
    X, y = load_digits(n_class=CLASSES, return_X_y=True)
    X, y = X[:N] / 16, y[:N]
    return X, y, st.SklearnDataset(sp.csr_matrix(X), y, target_labels=np.arange(CLASSES))


def trained(dataset, kind=Embedding):
    return kind(LogisticRegression(), CLASSES).fit(dataset[LABELED])


def literal(E, labeled, P, ridge, pool=POOL, evaluated=None):
    """Fisher variance reduction (len(pool),), summed over pool and labelled texts."""
    inside = E[labeled] @ E[labeled].T + ridge * np.eye(len(labeled))
    K = E @ E.T
    S = K - K[:, labeled] @ np.linalg.solve(inside, K[labeled])
    h = 1 - (P**2).sum(1)
    x = np.concatenate([POOL, LABELED])
    return (h[x, None] * S[np.ix_(x, pool)] ** 2).sum(0) / (S.diagonal() + ridge / h)[pool]


@pytest.mark.parametrize("kind", [Embedding, Plain])
def test_fisher_variance_reduction(data, kind):
    """Ignored texts count for nothing."""
    X, y, dataset = data
    clf = trained(dataset, kind)
    P = clf.predict_proba(dataset)
    u = literal(X, LABELED, P, 0.1)
    strategy = LookAhead("fisher_variance_reduction", ridge=0.1, mode="top")
    found = strategy.query(clf, dataset, POOL, LABELED, y[LABELED], n=6, pbar=None)
    np.testing.assert_array_equal(found, POOL[np.argsort(-u)[:6]])

    picked = LookAhead("fisher_variance_reduction", ridge=0.1).query(
        clf, dataset, POOL, LABELED, y[LABELED], n=2, pbar=None
    )
    assert picked[0] == POOL[u.argmax()]
    # The second one: after a label of the first, with the noise that its h gives it.
    h = 1 - (P**2).sum(1)
    noises = np.array([0.1] * len(LABELED) + [0.1 / h[picked[0]]])
    both = np.append(LABELED, picked[0])
    K = X @ X.T
    S = K - K[:, both] @ np.linalg.solve(K[np.ix_(both, both)] + np.diag(noises), K[both])
    x = np.concatenate([POOL, LABELED])
    u = (h[x, None] * S[x] ** 2).sum(0) / (S.diagonal() + 0.1 / h)
    left = np.setdiff1d(POOL, picked[:1])
    assert picked[1] == left[u[left].argmax()]


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, np.float32], ids=str)
def test_given_embeddings_are_those_of_the_data_set(data, form):
    """Rows of the data set, in whatever order the host hands on indices."""
    _, y, dataset = data
    clf = trained(dataset)
    E = np.random.default_rng(0).normal(size=(N, 20))
    u = literal(E, LABELED, clf.predict_proba(dataset), 0.1)
    query = dict(clf=clf, dataset=dataset, indices_labeled=LABELED, y=y[LABELED], n=5)
    order = np.random.default_rng(1).permutation(len(POOL))
    for pool in (POOL, POOL[order]):
        found = LookAhead("fisher_variance_reduction", ridge=0.1, mode="top").query(
            indices_unlabeled=pool, embeddings=form(E), **query
        )
        np.testing.assert_array_equal(found, POOL[np.argsort(-u)[:5]])
    subset = np.concatenate([POOL, LABELED])
    with pytest.raises(ValueError, match=rf"embeddings has shape \(38, 20\).*\({N}, d\)"):
        LookAhead().query(indices_unlabeled=POOL, embeddings=E[subset], **query)


def test_embed_kwargs_and_kernels(data):
    X, y, dataset = data
    clf = trained(dataset)
    query = (clf, dataset, POOL, LABELED, y[LABELED])
    keywords = dict(n=3, pbar=None)
    scaled = LookAhead("epig", "rbf", ridge=0.1, kernel_params={"gamma": 0.5})
    same = LookAhead("epig", "rbf", ridge=0.1, kernel_params={"gamma": 0.125})
    np.testing.assert_array_equal(
        scaled.query(*query, **keywords), same.query(*query, embed_kwargs={"scale": 2}, **keywords)
    )
    K = np.exp(-0.5 * ((X[:, None] - X) ** 2).sum(2))
    S = K - K[:, LABELED] @ np.linalg.solve(
        K[np.ix_(LABELED, LABELED)] + 0.1 * np.eye(8), K[LABELED]
    )
    x = np.concatenate([POOL, LABELED])
    v = S.diagonal() + 0.1
    epig = -0.5 * np.log1p(-(S[x] ** 2) / (v * v[x, None])).sum(0)
    assert scaled.query(*query, **keywords)[0] == POOL[epig[POOL].argmax()]


def test_rules(data):
    _, y, dataset = data
    clf = trained(dataset)
    strategy = LookAhead()
    first = strategy.query(clf, dataset, POOL, LABELED, y[LABELED], n=5, pbar=None)
    again = strategy.query(clf, dataset, POOL, LABELED, y[LABELED], n=5, pbar=None)
    np.testing.assert_array_equal(first, again)
    assert len(set(first.tolist())) == 5 and set(first.tolist()) <= set(POOL.tolist())
    rest = strategy.query(clf, dataset, POOL[:3], LABELED, y[LABELED], n=3, pbar=None)
    assert set(rest.tolist()) == set(POOL[:3].tolist())
    with pytest.raises(st.EmptyPoolException):
        strategy.query(clf, dataset, POOL[:0], LABELED, y[LABELED], n=1)
    with pytest.raises(st.PoolExhaustedException):
        strategy.query(clf, dataset, POOL[:3], LABELED, y[LABELED], n=4)
    with pytest.raises(RuntimeError, match="single-label"):
        strategy.query(clf, dataset, POOL, LABELED, sp.csr_matrix(np.eye(CLASSES)[y[LABELED]]))
    assert str(strategy) == "LookAhead(criterion='auto', kernel='features')"
    with pytest.raises(ValueError, match="kernel"):
        LookAhead(kernel="ntk")
    for criterion, message in ("unknown", "unknown"), ("expected_log_loss", "needs log_loss_targ"):
        with pytest.raises(ValueError, match=message):
            LookAhead(criterion)


def test_texts_without_a_label_among_the_labelled(data):
    X, y, dataset = data
    clf = trained(dataset)
    for nothing in (st.LABEL_UNLABELED, st.LABEL_IGNORED):
        partly = np.where(np.arange(len(LABELED)) < 5, y[LABELED], nothing)
        u = literal(X, LABELED[:5], clf.predict_proba(dataset), 0.1)
        found = LookAhead("fisher_variance_reduction", ridge=0.1).query(
            clf, dataset, POOL, LABELED, partly, n=1, pbar=None
        )
        assert found == POOL[u.argmax()]
    none = np.full(len(LABELED), st.LABEL_UNLABELED)
    u = literal(X, LABELED[:0], clf.predict_proba(dataset), 0.1)
    found = LookAhead("fisher_variance_reduction", ridge=0.1).query(
        clf, dataset, POOL, LABELED, none, n=1, pbar=None
    )
    assert found == POOL[u.argmax()]


def test_before_there_is_a_classifier(data):
    X, _, dataset = data
    nobody, query = np.zeros(0, int), dict(clf=None, dataset=dataset, embeddings=X, n=1)
    strategy = LookAhead("variance_reduction", "linear", ridge=0.1)
    found = strategy.query(indices_unlabeled=POOL, indices_labeled=nobody, y=None, **query)
    K = X[POOL] @ X[POOL].T
    assert found == POOL[((K**2).sum(0) / (K.diagonal() + 0.1)).argmax()]
    with pytest.raises(ValueError, match="needs a trained classifier"):
        LookAhead().query(indices_unlabeled=POOL, indices_labeled=nobody, y=None, **query)


def test_in_the_loop_of_the_host(data):
    """Queried, ignored and labelled texts never come back."""
    _, y, dataset = data

    class Factory:
        def new(self):
            return Embedding(LogisticRegression(), CLASSES)

    learner = st.PoolBasedActiveLearner(Factory(), LookAhead(), dataset)
    if hasattr(learner, "initialize_data"):  # small-text 1.4
        learner.initialize_data(LABELED, y[LABELED])
    else:
        learner.initialize(LABELED)
    learner.indices_ignored = IGNORED
    seen = set(LABELED.tolist()) | set(IGNORED.tolist())
    for _ in range(3):
        picked = learner.query(10)
        assert not seen & set(picked.tolist())
        seen |= set(picked.tolist())
        learner.update(y[picked])
    assert len(seen) == N
    with pytest.raises(st.EmptyPoolException):
        learner.query(1)


def test_example():
    runpy.run_path(str(ROOT / "examples/small_text_sentiment.py"))
