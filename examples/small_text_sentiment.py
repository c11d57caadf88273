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
X, start = TfidfVectorizer().fit_transform(texts), np.array([y.argmin(), y.argmax()])
labels = np.where(np.isin(np.arange(300), start), y, st.LABEL_UNLABELED)
dataset = st.SklearnDataset(X, labels, target_labels=[0, 1])
factory = st.SklearnClassifierFactory(LogisticRegression(), 2)
learner = st.PoolBasedActiveLearner(factory, LookAhead(), dataset)
is_2 = hasattr(learner, "initialize")  # small-text 2.0
learner.initialize(start) if is_2 else learner.initialize_data(start, y[start])
for _ in range(3):
    picked = learner.query(5, query_strategy_kwargs={"embeddings": X})  # indices into the dataset
    learner.update(y[picked])
    right = (learner.classifier.predict(dataset) == y).mean()
    print(f"{len(learner.indices_labeled)} labels: {right:.3f}")
