"""modAL: look-ahead as a query strategy, with settings of its own."""

from functools import partial

import numpy as np
from modAL.models import ActiveLearner
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ntkfast.integrations.modal import look_ahead

X, y = load_digits(return_X_y=True)
X, y = X[:600] / 16, y[:600]
labeled, pool = np.arange(10), np.arange(10, len(X))
for _ in range(4):
    learner = ActiveLearner(
        LogisticRegression(),
        partial(look_ahead, kernel="features"),
        X_training=X[labeled],
        y_training=y[labeled],
    )
    print(f"{len(labeled)} labels: {learner.score(X, y):.3f}")
    picked, _ = learner.query(X[pool], n_instances=10)  # indices into the pool
    labeled, pool = np.append(labeled, pool[picked]), np.delete(pool, picked)
