"""scikit-activeml's expected error reduction, which really refits, as an outside oracle."""

import numpy as np
import pytest
from problems import relative_error
from sklearn.datasets import load_digits

import ntkfast as nf

pool = pytest.importorskip("skactiveml.pool")
base = pytest.importorskip("skactiveml.base")

LAM, TEMPERATURE, LABELED, POINTS, CLASSES = 0.3, 0.2, 20, 50, 10


class KernelRidge(base.SkactivemlClassifier):
    """Kernel ridge regression on one-hot targets; class probabilities by soft-max."""

    def __init__(self, classes=None, missing_label=np.nan, cost_matrix=None, random_state=None):
        super().__init__(classes, missing_label, cost_matrix, random_state)

    def fit(self, X, y, sample_weight=None):
        X, y, _ = self._validate_data(X, y, sample_weight)  # missing labels become -1
        self.X_ = X[y >= 0]
        targets = np.eye(CLASSES)[y[y >= 0]]
        self.dual_ = np.linalg.solve(self.X_ @ self.X_.T + LAM * np.eye(len(self.X_)), targets)
        return self

    def predict_proba(self, X):
        z = X @ self.X_.T @ self.dual_ / TEMPERATURE
        z = np.exp(z - z.max(1, keepdims=True))
        return z / z.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:POINTS] / 16, y[:POINTS]


@pytest.mark.parametrize(
    ("method", "criterion"),
    [("log_loss", "expected_entropy"), ("misclassification_loss", "expected_error")],
)
@pytest.mark.parametrize("representation", ["features", "kernel"])
def test_expected_error_reduction(digits, method, criterion, representation):
    X, y = digits
    partly = np.where(np.arange(POINTS) < LABELED, y, np.nan)
    clf = KernelRidge(classes=np.arange(CLASSES))
    _, theirs = pool.MonteCarloEER(method=method, random_state=0).query(
        X, partly, clf, return_utilities=True
    )
    theirs = theirs[0, LABELED:]  # minus the expected loss summed over all of X
    assert np.isfinite(theirs).all()

    # The network whose outputs are zero: F is then kernel ridge regression.
    f = np.zeros((POINTS, CLASSES))
    labels = f[:LABELED], y[:LABELED], LAM
    known = dict(labeled_indices=np.arange(LABELED))
    if representation == "features":
        with pytest.warns(UserWarning, match="outnumber a quarter"):
            post = nf.Posterior.from_features(X, f, X[:LABELED], *labels, **known)
    else:
        K = X @ X.T
        post = nf.Posterior.from_kernel(K, K[:LABELED], K[:LABELED, :LABELED], f, *labels, **known)
    P = clf.fit(X, partly).predict_proba(X[LABELED:])
    ours = nf.utilities(post, criterion, label_probs=P, temperature=TEMPERATURE)
    assert relative_error(ours, theirs) <= 1e-10
    assert ours.argmax() == theirs.argmax()
