"""skorch: the tangent kernel of a trained net picks a batch and learns its labels without SGD."""

import torch
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier

from ntkfast.integrations.skorch import look_ahead_learner

X, y = load_digits(return_X_y=True)
X, y = X[:600].astype("float32") / 16, y[:600]
torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
net = NeuralNetClassifier(
    module,
    criterion=torch.nn.CrossEntropyLoss,  # the module returns logits
    max_epochs=100,
    lr=0.5,
    train_split=None,
    verbose=0,
)
net.fit(X[:50], y[:50])
learner = look_ahead_learner(net).fit(X[:50], y[:50], X[50:])
picked = learner.query(20)  # indices into the pool, X[50:]
learner.update(picked.indices, y[50:][picked.indices])
print(f"{net.score(X, y):.3f} -> {(learner.predict(X).argmax(1) == y).mean():.3f}")
