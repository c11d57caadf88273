"""baal: its loop labels what `LookAheadLearner.query` picks; indices refer to its pool."""

import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("baal", reason="baal is not installed (it requires all of jupyter)")

import torch
from baal import ModelWrapper
from baal.active import ActiveLearningDataset
from baal.bayesian.dropout import patch_module
from baal.modelwrapper import TrainingArgs

import ntkfast as nf
from ntkfast.integrations.baal import LookAhead, look_ahead_loop

ROOT = Path(__file__).parents[1]
N, LABELED = 50, 12


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(N, 6, generator=generator)
    return X, X[:, :3].argmax(1)


def network():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        model[-1].weight.mul_(20)  # as sure as a trained one
    return model


@pytest.fixture
def dataset(data):
    X, y = data
    items = torch.utils.data.TensorDataset(X, y)
    labelled = np.zeros(N, int)
    labelled[np.random.default_rng(0).permutation(N)[:LABELED]] = 1
    return ActiveLearningDataset(items, labelled=labelled)


@pytest.fixture(autouse=True)
def untrained():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*hardly above the others")
        yield


def expected_of(model, data, dataset, b, **keywords):
    """Picks, as indices of all items; utilities of the pool before the first pick."""
    X, y = data
    labelled = np.flatnonzero(dataset.labelled)
    pool = np.flatnonzero(~dataset.labelled)
    learner = nf.LookAheadLearner(model, **keywords).fit(X[labelled], y[labelled], X[pool])
    utilities = nf.utilities(learner.posterior, learner.criterion).numpy()
    return pool[learner.query(b).indices], utilities


@pytest.mark.parametrize("criterion", ["auto", "expected_entropy"])
def test_steps_label_what_the_learner_picks(data, dataset, criterion):
    model = network()
    loop = look_ahead_loop(model, dataset, query_size=4, criterion=criterion)
    for _ in range(3):
        picked, _ = expected_of(model, data, dataset, 4, criterion=criterion)
        before = set(np.flatnonzero(dataset.labelled))
        assert loop.step()
        assert set(np.flatnonzero(dataset.labelled)) - before == set(picked)


def test_scores(data, dataset):
    """Picks first, in their order; the others by their utility; repeatable; nothing changed."""
    model = network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    picked, utilities = expected_of(model, data, dataset, 5)
    scores = LookAhead(model, dataset, 5)
    found = scores(dataset.pool)
    pool = np.flatnonzero(~dataset.labelled)
    np.testing.assert_array_equal(pool[(-found).argsort()[:5]], picked)
    others = ~np.isin(pool, picked)
    np.testing.assert_allclose(found[others], utilities[others], rtol=1e-6)
    assert found[others].max() < found[~others].min()
    np.testing.assert_array_equal(scores(dataset.pool), found)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert dataset.n_labelled == LABELED


def test_a_wrapper_and_part_of_the_pool(data, dataset):
    model = network()
    wrapper = ModelWrapper(model, TrainingArgs(workers=0))
    np.testing.assert_array_equal(
        LookAhead(wrapper, dataset, 3)(dataset.pool), LookAhead(model, dataset, 3)(dataset.pool)
    )
    some = torch.utils.data.Subset(dataset.pool, [7, 3, 20])
    assert LookAhead(model, dataset, 5)(some).shape == (3,)
    assert look_ahead_loop(model, dataset, 2, max_sample=5).step()
    assert dataset.n_labelled == LABELED + 2


def test_augmentation_is_for_training_only(data):
    """Labelled items are read as those of the pool are."""
    X, y = data

    class Shifted(torch.utils.data.Dataset):
        def __init__(self):
            self.shift = 100.0

        def __len__(self):
            return N

        def __getitem__(self, i):
            return X[i] + self.shift, y[i]

    labelled = (np.arange(N) < LABELED).astype(int)
    shifted = ActiveLearningDataset(Shifted(), labelled, pool_specifics={"shift": 0.0})
    plain = ActiveLearningDataset(torch.utils.data.TensorDataset(X, y), labelled)
    a, b = (LookAhead(network(), d, 3)(d.pool) for d in (shifted, plain))
    np.testing.assert_array_equal(a, b)
    assert shifted[0][0][0] > 50  # training goes on with it


def test_no_label_and_an_empty_pool(data):
    X, y = data
    none = ActiveLearningDataset(torch.utils.data.TensorDataset(X, y))
    assert look_ahead_loop(network(), none, 3).step()
    assert none.n_labelled == 3
    everything = ActiveLearningDataset(torch.utils.data.TensorDataset(X, y), np.ones(N, int))
    assert look_ahead_loop(network(), everything, 3).step() is False
    last = ActiveLearningDataset(
        torch.utils.data.TensorDataset(X, y), (np.arange(N) > 1).astype(int)
    )
    loop = look_ahead_loop(network(), last, 3)
    assert loop.step() and last.n_unlabelled == 0


def test_labels_of_only_the_last_steps(data, dataset):
    """`last_active_steps` is for training; the network knows all labels."""
    X, y = data
    limited = ActiveLearningDataset(
        torch.utils.data.TensorDataset(X, y), dataset.labelled_map.copy(), last_active_steps=1
    )
    limited.label([0])
    dataset.label([0])
    np.testing.assert_array_equal(*(LookAhead(network(), d, 3)(d.pool) for d in (limited, dataset)))


def test_errors(data, dataset):
    X, y = data
    model = network()
    with pytest.raises(TypeError, match="dataset must be an ActiveLearningDataset; got a Tensor"):
        LookAhead(model, torch.utils.data.TensorDataset(X, y))
    for keywords, message in [
        (dict(criterion="unknown"), "unknown criterion"),
        (dict(criterion="expected_log_loss"), "needs log_loss_targets, which this host"),
        (dict(mode="unknown"), "mode must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            look_ahead_loop(model, dataset, **keywords)
    alone = ActiveLearningDataset(torch.utils.data.TensorDataset(X, y), dataset.labelled_map)
    alone._dataset = list(X)
    with pytest.raises(TypeError, match=r"expected \(x, y\)"):
        LookAhead(model, alone)(dataset.pool)
    # Dropout that stays on while predicting has no tangent kernel.
    dropout = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(), torch.nn.Linear(8, 3))
    assert patch_module(dropout)
    with pytest.raises(ValueError, match="draws random numbers in eval mode"):
        look_ahead_loop(dropout, dataset, 3).step()


def test_example():
    runpy.run_path(str(ROOT / "examples/baal_digits.py"))
