"""One look-ahead query over the whole digits pool (1797 x 64, 10 classes): what users type today.

scikit-activeml's MonteCarloEER needs minutes for the pool, so it ranks a few candidates and its
time is per candidate; ntkfast ranks all of them.
"""

import warnings

import numpy as np
import pytest

import ntkfast as nf

datasets = pytest.importorskip("sklearn.datasets")
LABELED = 20
FEW = 3


@pytest.fixture(scope="module")
def digits():
    X, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    return (X[order] / 16).astype(np.float32), y[order]


def posterior(X, y):
    outputs = np.full((len(X), 10), 0.1)
    L = slice(0, LABELED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 20 labels are many for 64 dimensions: exact features
        return nf.Posterior.from_features(
            X, outputs, X[L], outputs[L], y[L], labeled_indices=np.arange(LABELED)
        )


def query(X, y, **keywords):
    return nf.utilities(posterior(X, y), "expected_entropy", **keywords)


def test_whole_query(benchmark, digits):
    X, y = digits
    found = benchmark(lambda: query(X, y))
    exact = query(X.astype(np.float64), y, candidates=np.arange(LABELED, LABELED + 20))
    assert np.abs(found[:20] - exact).max() <= 1e-4 * np.abs(exact).max()


def test_monte_carlo_eer_per_candidate(benchmark, digits):
    pool = pytest.importorskip("skactiveml.pool")
    from skactiveml.classifier import SklearnClassifier
    from sklearn.linear_model import LogisticRegression

    X, y = digits
    partly = np.where(np.arange(len(X)) < LABELED, y, np.nan)
    strategy = pool.MonteCarloEER(method="log_loss", random_state=0)
    classifier = SklearnClassifier(LogisticRegression(max_iter=200), classes=np.arange(10))
    candidates = np.arange(LABELED, LABELED + FEW)
    picked = benchmark.pedantic(
        lambda: strategy.query(X, partly, classifier, candidates=candidates), rounds=1
    )
    benchmark.extra_info["candidates"] = FEW
    assert picked[0] in candidates
