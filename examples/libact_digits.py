"""libact: one query at a time, labels arriving through Dataset.update."""

from libact.base.dataset import Dataset
from libact.models import SklearnProbaAdapter
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ntkfast.integrations.libact import LookAhead

X, y = load_digits(return_X_y=True)
X, y = X[:400] / 16, y[:400]
dataset = Dataset(X, [*y[:10], *[None] * (len(X) - 10)])
model = SklearnProbaAdapter(LogisticRegression())
strategy = LookAhead(dataset, model=model, kernel="features")
for _ in range(20):
    ask_id = strategy.make_query()  # an entry id of the data set
    dataset.update(ask_id, y[ask_id])
model.train(dataset)
print(f"{dataset.len_labeled()} labels: {model.score(Dataset(X, y)):.3f}")
