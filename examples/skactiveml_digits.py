"""scikit-activeml: 40 labels of digits in batches of 10, asked for by look-ahead."""

import numpy as np
from skactiveml.classifier import SklearnClassifier
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ntkfast.integrations.skactiveml import LookAhead

X, y_true = load_digits(return_X_y=True)
X, y_true = X[:600] / 16, y_true[:600]
y = np.full(len(X), np.nan)
y[:10] = y_true[:10]
clf = SklearnClassifier(LogisticRegression(), classes=np.arange(10))
strategy = LookAhead(kernel="features", random_state=0)
for _ in range(3):
    picked = strategy.query(X, y, clf, batch_size=10)  # indices into X
    y[picked] = y_true[picked]
    print(f"{int((~np.isnan(y)).sum())} labels: {clf.fit(X, y).score(X, y_true):.3f}")
