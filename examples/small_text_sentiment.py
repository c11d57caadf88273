"""small-text: look-ahead in the embeddings of the texts (here tf-idf, of made-up reviews)."""

import numpy as np
import small_text as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from ntkfast.integrations.small_text import LookAhead

rng = np.random.default_rng(0)
words = [["dull", "weak", "tired"], ["bright", "strong", "fresh"]]
y = rng.integers(2, size=300)
texts = [" ".join([*rng.choice(words[k], 2), *rng.choice(["film", "plot", "cast"], 4)]) for k in y]
X = TfidfVectorizer().fit_transform(texts)
dataset = st.SklearnDataset(X, np.full(len(texts), st.LABEL_UNLABELED), target_labels=[0, 1])
factory = st.SklearnClassifierFactory(LogisticRegression(), 2)
learner = st.PoolBasedActiveLearner(factory, LookAhead(), dataset)
start = np.array([np.flatnonzero(y == k)[0] for k in (0, 1)])
learner.initialize_data(start, y[start])
for _ in range(3):
    picked = learner.query(5, query_strategy_kwargs={"embeddings": X})  # indices into the dataset
    learner.update(y[picked])
    print(f"{2 + 5 * (_ + 1)} labels: {(learner.classifier.predict(dataset) == y).mean():.3f}")
