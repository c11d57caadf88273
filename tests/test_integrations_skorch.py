"""skorch: the learner of a net is the learner of its network."""

import runpy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("skorch")

import skorch
import torch

import ntkfast as nf
from ntkfast.integrations.skorch import look_ahead_learner

ROOT = Path(__file__).parents[1]
QUIET = dict(max_epochs=30, lr=0.5, train_split=None, verbose=0)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 5)).astype(np.float32)
    return X, X[:, :3].argmax(1)


def fitted(X, y, outputs=3, **keywords):
    torch.manual_seed(0)
    settings = dict(criterion=torch.nn.CrossEntropyLoss) | QUIET | keywords
    return skorch.NeuralNetClassifier(torch.nn.Linear(5, outputs), **settings).fit(X, y)


def test_is_the_learner_of_the_network(data):
    X, y = data
    net = fitted(X[:20], y[:20])
    before = [p.clone() for p in net.module_.parameters()]
    learner = look_ahead_learner(net, ridge=0.1).fit(X[:20], y[:20], X[20:])
    expected = nf.LookAheadLearner(net.module_, ridge=0.1).fit(X[:20], y[:20], X[20:])
    picked = learner.query(5)
    np.testing.assert_array_equal(picked.indices, expected.query(5).indices)
    np.testing.assert_array_equal(learner.query(5).indices, picked.indices)
    assert learner.loss == "cross_entropy"
    assert all(torch.equal(a, b) for a, b in zip(before, net.module_.parameters(), strict=True))


def test_a_class_that_has_no_label_yet(data):
    """The net's classes_ are the labels it has seen; its outputs are more."""
    X, y = data
    seen = np.flatnonzero(y[:30] != 0)
    net = fitted(X[seen], y[seen])
    assert net.classes_.tolist() == [1, 2]
    learner = look_ahead_learner(net).fit(X[seen], y[seen], X[30:])
    assert learner.classes_.tolist() == [0, 1, 2]
    learner.update([0], [0])


def test_classes_and_loss_of_the_net(data):
    X, y = data
    net = fitted(X[:20], y[:20], classes=["a", "b", "c"])
    learner = look_ahead_learner(net).fit(X[:20], np.array(list("abc"))[y[:20]], X[20:])
    assert learner.classes_.tolist() == ["a", "b", "c"]
    assert look_ahead_learner(net, classes=[0, 1, 2]).classes == [0, 1, 2]

    torch.manual_seed(0)
    targets = X[:20, :1] * 2
    regressor = skorch.NeuralNetRegressor(torch.nn.Linear(5, 1), **QUIET | {"lr": 0.01})
    learner = look_ahead_learner(regressor.fit(X[:20], targets))
    assert learner.loss == "squared" and learner.criterion == "auto"
    assert learner.fit(X[:20], targets, X[20:]).query(3).indices.shape == (3,)
    assert learner.criterion == "variance_reduction"


def test_errors(data):
    X, y = data
    with pytest.raises(TypeError, match="not trained yet"):
        look_ahead_learner(skorch.NeuralNetClassifier(torch.nn.Linear(5, 3)))
    with pytest.raises(ValueError, match="trained with MultiMarginLoss"):
        look_ahead_learner(fitted(X, y, criterion=torch.nn.MultiMarginLoss))
    # skorch's default: the module returns probabilities, of which it takes the logarithm.
    module = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Softmax(-1))
    net = skorch.NeuralNetClassifier(module, **QUIET).fit(X, y)
    with pytest.raises(ValueError, match="pass the network without its Softmax"):
        look_ahead_learner(net).fit(X[:20], y[:20], X[20:])


def test_examples():
    runpy.run_path(str(ROOT / "examples/skorch_digits.py"))
    runpy.run_path(str(ROOT / "examples/torch_loop.py"))
