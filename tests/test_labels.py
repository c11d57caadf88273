"""Labels as people have them: counted from 1, missing here and there, in all containers."""

import warnings

import numpy as np
import pytest
import torch
from problems import REPRESENTATIONS, posterior, random_problem
from torch import nn

import ntkfast as nf

pandas = pytest.importorskip("pandas")
pytestmark = pytest.mark.filterwarnings("ignore:.*outnumber a quarter")
NAMES = np.array(["cat", "dog", "emu"])


@pytest.fixture(scope="module")
def problem():
    """Twelve labelled points, four of each class, of a network that knows them."""
    torch.manual_seed(0)
    y = np.arange(12) % 3
    X = np.random.default_rng(0).normal(size=(60, 6))
    X[:12] += 3 * np.eye(6)[y]
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.tensor(X[:12])), torch.tensor(y)).backward()
        optimizer.step()
    model.eval()
    assert (model(torch.tensor(X[:12])).argmax(1).numpy() == y).all()
    return dict(model=model, X=X[:12], y=y, pool=X[12:])


def learner(problem, y, X=None, **settings):
    X = problem["X"] if X is None else X
    return nf.LookAheadLearner(problem["model"], sketch=None, **settings).fit(X, y, problem["pool"])


def same(found, expected):
    np.testing.assert_allclose(found.posterior.mean, expected.posterior.mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        found.posterior.variance, expected.posterior.variance, rtol=1e-9, atol=1e-12
    )


# --- Counted from one -----------------------------------------------------------------------------

COUNTED_FROM_ONE = {
    "int array": lambda y: y + 1,
    "list": lambda y: (y + 1).tolist(),
    "float": lambda y: y + 1.0,
    "uint8": lambda y: (y + 1).astype(np.uint8),
    "tensor": lambda y: torch.tensor(y + 1),
    "series": lambda y: pandas.Series(y + 1),
    "objects": lambda y: np.array((y + 1).tolist(), dtype=object),
}


@pytest.mark.parametrize("kind", COUNTED_FROM_ONE)
@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_labels_counted_from_one(problem, kind, loss):
    labels = COUNTED_FROM_ONE[kind](problem["y"])
    with pytest.raises(ValueError, match=r"from 1 to 3: pass classes=range\(1, 4\)$"):
        learner(problem, labels, loss=loss)
    named = learner(problem, labels, loss=loss, classes=range(1, 4))
    plain = learner(problem, problem["y"], loss=loss)
    assert named.classes_.tolist() == [1, 2, 3]
    same(named, plain)
    named.update([3, 4], labels[:2])
    plain.update([3, 4], problem["y"][:2])
    same(named, plain)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_the_largest_label_has_not_been_seen(problem, loss):
    """1 and 2 of three classes could be either: the network knows its own labels."""
    few = problem["y"] < 2
    X, y = problem["X"][few], problem["y"][few]
    with pytest.raises(ValueError, match=r"network puts 8 of 8 .* 1 would be, 0 .*range\(1, 4\)"):
        learner(problem, y + 1, X, loss=loss)
    same(
        learner(problem, y + 1, X, loss=loss, classes=range(1, 4)),
        learner(problem, y, X, loss=loss),
    )
    # Counted from 0, without class 0: taken as they are.
    late = problem["y"] > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = learner(problem, problem["y"][late], problem["X"][late], loss=loss)
    assert found.classes_.tolist() == [0, 1, 2]


def test_updates_counted_from_one(problem):
    found = learner(problem, problem["y"])
    before = found.posterior.mean
    for labels, message in (
        ([1, 2, 3], r"y\[2\] = 3 .* from 1 to 3: pass classes=range\(1, 4\)$"),
        ([3], r"y\[0\] = 3 .* pass classes=range\(1, 4\) if yours are counted from 1"),
        ([-1], r"y\[0\] = -1 is none .*; if it means that the point has no label, pass None"),
    ):
        with pytest.raises(ValueError, match=message):
            found.update(np.arange(len(labels)), labels)
    np.testing.assert_array_equal(found.posterior.mean, before)
    assert found.posterior.labeled.tolist() == []


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_targets_counted_from_one(representation):
    p = random_problem(0, n=6)
    labels = np.array([1, 2, 3, 1, 2, 3])
    with pytest.raises(ValueError, match=r"targets\[2\] = 3 .* not from 1, so pass targets - 1$"):
        posterior(p | dict(T=labels), representation)
    post = posterior(p, representation)
    with pytest.raises(ValueError, match=r"targets\[5\] = 3 .* so pass targets - 1$"):
        post.condition(range(6), [1, 2, 1, 2, 2, 3])
    with pytest.raises(ValueError, match=r"= -1 is no class .*: if it means .* leave that point"):
        post.condition([0, 1], [0, -1])
    assert post.labeled.tolist() == []


# --- Missing --------------------------------------------------------------------------------------

GONE = [1, 5, 6]


def holes(y, value, dtype=object):
    labels = np.array(y, dtype=dtype)
    labels[GONE] = value
    return labels


def masked(y):
    return np.ma.MaskedArray(y, np.isin(np.arange(len(y)), GONE))


# From integers (12,) with values at GONE that do not count.
MISSING = {
    "float nan": lambda y: holes(y, np.nan, float),
    "float32 nan": lambda y: holes(y, np.nan, np.float32),
    "tensor nan": lambda y: torch.tensor(holes(y, np.nan, float)),
    "list with nan": lambda y: holes(y, np.nan, float).tolist(),
    "list with None": lambda y: holes(y, None).tolist(),
    "tuple with None": lambda y: tuple(holes(y, None).tolist()),
    "objects with None": lambda y: holes(y, None),
    "objects with nan": lambda y: holes(y, float("nan")),
    "objects with NA": lambda y: holes(y, pandas.NA),
    "objects with NaT": lambda y: holes(y, pandas.NaT),
    "objects with numpy NaT": lambda y: holes(y, np.datetime64("NaT")),
    "list with masked": lambda y: [np.ma.masked if i in GONE else int(v) for i, v in enumerate(y)],
    "masked array": masked,
    "masked floats and nan": lambda y: np.ma.MaskedArray(
        holes(y, np.nan, float), np.arange(len(y)) == 1
    ),
    "series of Int64": lambda y: pandas.Series(holes(y, pandas.NA), dtype="Int64"),
    "series of floats": lambda y: pandas.Series(holes(y, np.nan, float)),
    "extension array": lambda y: pandas.array(holes(y, pandas.NA), dtype="Int64"),
}
MISSING_NAMES = {
    "list with None": lambda y: holes(y, None).tolist(),
    "list with nan": lambda y: holes(y, float("nan")).tolist(),
    "list with NA": lambda y: holes(y, pandas.NA).tolist(),
    "objects with NaT": lambda y: holes(y, pandas.NaT),
    "masked array": masked,
    "series of strings": lambda y: pandas.Series(holes(y, None), dtype="string"),
    "series of objects": lambda y: pandas.Series(holes(y, None), dtype=object),
    "categorical": lambda y: pandas.Series(holes(y, None), dtype="category"),
}
warned = pytest.warns(
    UserWarning, match="^y_labeled is missing for 3 of 12 points, at first for point 1: these"
)


@pytest.mark.parametrize("kind", MISSING)
def test_missing_numbers(problem, kind):
    keep = np.delete(np.arange(12), GONE)
    expected = learner(problem, problem["y"][keep], problem["X"][keep])
    with warned as caught:
        found = learner(problem, MISSING[kind](problem["y"]))
    assert [w.filename for w in caught] == [__file__]
    assert found.classes_.tolist() == [0, 1, 2]
    same(found, expected)
    # Of updates too: those points stay unlabelled.
    points = np.arange(20, 32)
    expected.update(points[keep], problem["y"][keep])
    with pytest.warns(UserWarning, match="^y is missing for 3 of 12 points, at first for point 1"):
        found.update(points, MISSING[kind](problem["y"]))
    same(found, expected)
    assert found.posterior.labeled.tolist() == points[keep].tolist()


@pytest.mark.parametrize("kind", MISSING_NAMES)
@pytest.mark.parametrize("classes", [None, NAMES])
def test_missing_names(problem, kind, classes):
    keep, names = np.delete(np.arange(12), GONE), NAMES[problem["y"]]
    expected = learner(problem, names[keep], problem["X"][keep], classes=classes)
    with warned:
        found = learner(problem, MISSING_NAMES[kind](names), classes=classes)
    assert found.classes_.tolist() == NAMES.tolist()
    same(found, expected)


@pytest.mark.parametrize("kind", ["float nan", "list with None", "masked array", "tensor nan"])
def test_missing_numbers_of_a_regression(problem, kind):
    torch.manual_seed(0)
    regression = dict(
        problem, model=nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    )
    keep, y = np.delete(np.arange(12), GONE), problem["y"] - 0.5
    expected = learner(regression, y[keep], problem["X"][keep], loss="squared")
    with warned:
        found = learner(regression, MISSING[kind](y), loss="squared")
    same(found, expected)
    column = holes(y, np.nan, float)[:, None]
    with warned:
        same(learner(regression, column, loss="squared"), expected)


@pytest.mark.parametrize("labels", [[None] * 12, np.full(12, np.nan), np.ma.masked_all(12)])
def test_all_labels_are_missing(problem, labels):
    with pytest.warns(UserWarning, match="missing for 12 of 12"):
        found = learner(problem, labels)
    same(found, learner(problem, None, np.empty((0, 6))))
    with pytest.warns(UserWarning, match="missing for 2 of 2"):
        found.update([1, 2], [None, None])
    assert found.posterior.labeled.tolist() == []


def test_every_kind_of_inputs_leaves_out_the_same(problem):
    keep = np.delete(np.arange(12), GONE)
    expected = learner(problem, problem["y"][keep], problem["X"][keep])
    X = torch.tensor(problem["X"])
    data = torch.utils.data.TensorDataset(X)
    for inputs in (X, data, torch.utils.data.DataLoader(data, batch_size=5)):
        with warned:
            found = learner(problem, holes(problem["y"], None), inputs)
        same(found, expected)
    with pytest.raises(ValueError, match="y_labeled has 11 labels; X_labeled has 12 points"):
        learner(problem, problem["y"][:-1])
    with warned, pytest.raises(ValueError, match="y_labeled has 12 labels; X_labeled has 9"):
        learner(problem, holes(problem["y"], None), problem["X"][keep])


def test_what_could_be_a_missing_label_is_not_a_class(problem):
    """Empty strings, and what numpy makes of a missing label among strings."""
    for spelt in ("", "nan", "None", "<NA>"):
        names = NAMES[problem["y"]].astype("U9")
        names[names == "emu"] = spelt
        with pytest.raises(ValueError, match=f"y_labeled holds '{spelt}': if that is a missing"):
            learner(problem, names)
        with pytest.raises(ValueError, match=r"is none of the classes .*; if the label is missing"):
            learner(problem, names, classes=NAMES)
        named = learner(problem, names, classes=["cat", "dog", spelt])
        same(named, learner(problem, problem["y"]))
    with pytest.raises(ValueError, match=r"= -1 is none of .*; if it means .* has no label"):
        learner(problem, holes(problem["y"], -1, int))


@pytest.mark.parametrize("kind", MISSING)
def test_missing_targets_of_a_posterior(kind):
    """There the points themselves are given without them, so that nothing can be left out."""
    p = random_problem(0, n=12)
    post = posterior(p)
    labels = MISSING[kind](np.arange(12) % 3)
    message = r"^targets\[1\] is (NaN|None|<NA>|NaT|masked), no label \(3 of 12 are missing\)"
    with pytest.raises(ValueError, match=message):
        posterior(p | dict(T=labels))
    with pytest.raises(ValueError, match=message):
        post.condition(range(12), labels)
    assert post.labeled.tolist() == []
