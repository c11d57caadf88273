"""Whatever does not fit is refused with an error that names it, and nothing has changed."""

import numpy as np
import pytest
import torch
from problems import REFITTED, REPRESENTATIONS, posterior, random_problem

import ntkfast as nf

N, D, K, n = 16, 12, 3, 5


def arguments(**changes):
    rng = np.random.default_rng(0)
    good = dict(
        features=rng.normal(size=(N, D)),
        outputs=rng.normal(size=(N, K)),
        labeled_features=rng.normal(size=(n, D)),
        labeled_outputs=rng.normal(size=(n, K)),
        targets=rng.integers(0, K, n),
    )
    return changed(good, changes)


def changed(good, changes):
    return good | {
        name: change(good[name]) if callable(change) else change for name, change in changes.items()
    }


def kernel_arguments(**changes):
    a = arguments()
    phi, labeled = a.pop("features"), a.pop("labeled_features")
    good = dict(K_uu=phi @ phi.T, K_lu=labeled @ phi.T, K_ll=labeled @ labeled.T) | a
    return changed(good, changes)


def put(row, column, value):
    def change(a):
        a = a.astype(np.float64)
        a[row, column] = value
        return a

    return change


BAD_FEATURES = {
    "NaN in features": (
        dict(features=put(3, 7, np.nan)),
        ValueError,
        "features contains NaN at row 3, column 7",
    ),
    "inf in labelled features": (
        dict(labeled_features=put(1, 0, np.inf)),
        ValueError,
        "labeled_features contains inf at row 1, column 0",
    ),
    "NaN in outputs": (
        dict(outputs=put(15, 2, np.nan)),
        ValueError,
        "outputs contains NaN at row 15, column 2",
    ),
    "inf in labelled outputs": (
        dict(labeled_outputs=put(4, 1, -np.inf)),
        ValueError,
        "labeled_outputs contains -inf at row 4",
    ),
    "NaN in targets": (
        dict(targets=np.full((n, K), np.nan)),
        ValueError,
        "targets contains NaN at row 0, column 0",
    ),
    "too few outputs": (
        dict(outputs=lambda a: a[:-1]),
        ValueError,
        r"outputs has shape \(15, 3\); expected \(16, k\)",
    ),
    "another number of features": (
        dict(labeled_features=lambda a: a[:, 1:]),
        ValueError,
        r"labeled_features has shape \(5, 11\); expected \(n, 12\)",
    ),
    "another number of classes": (
        dict(labeled_outputs=lambda a: a[:, 1:]),
        ValueError,
        r"labeled_outputs has shape \(5, 2\); expected \(5, 3\)",
    ),
    "too many targets": (
        dict(targets=np.zeros(6, int)),
        ValueError,
        r"targets has shape \(6,\); expected \(5,\)",
    ),
    "targets of another width": (
        dict(targets=np.zeros((5, 4))),
        ValueError,
        r"targets has shape \(5, 4\); expected \(5, 3\)",
    ),
    "three axes": (dict(features=lambda a: a[:, None]), ValueError, "features has shape"),
    "one axis": (
        dict(outputs=lambda a: a[:, 0]),
        ValueError,
        r"outputs has shape \(16,\); expected \(16, k\)",
    ),
    "no points": (
        dict(features=lambda a: a[:0], outputs=lambda a: a[:0]),
        ValueError,
        "features has shape .* no empty dimension",
    ),
    "no features": (
        dict(features=lambda a: a[:, :0]),
        ValueError,
        "features has shape .* no empty dimension",
    ),
    "no classes": (
        dict(outputs=lambda a: a[:, :0]),
        ValueError,
        "outputs has shape .* no empty dimension",
    ),
    "labels without targets": (dict(targets=None), ValueError, "targets is missing"),
    "labels without outputs": (dict(labeled_outputs=None), TypeError, "labeled_outputs is"),
    "outputs of nobody": (dict(labeled_features=None), ValueError, "labeled_outputs has shape"),
    "class too large": (
        dict(targets=np.array([0, 1, 3, 0, 0])),
        ValueError,
        r"targets\[2\] = 3 is no class of a model with 3 outputs",
    ),
    "class negative": (dict(targets=np.array([0, -1, 2, 0, 0])), ValueError, r"targets\[1\] = -1"),
    "class as float": (dict(targets=np.zeros(5)), TypeError, "targets has dtype float64"),
    "class as string": (dict(targets=np.array(list("abcab"))), TypeError, "targets has dtype <U1"),
    "float16": (
        dict(features=lambda a: a.astype(np.float16)),
        TypeError,
        r"features has dtype float16; expected float32 or float64: convert with \.astype\(np",
    ),
    "half tensors": (
        dict(features=lambda a: torch.tensor(a).half()),
        TypeError,
        "features has dtype float16",
    ),
    "complex": (dict(features=lambda a: a + 0j), TypeError, "complex128; expected .* float64$"),
    "integers": (
        dict(features=lambda a: a.astype(int)),
        TypeError,
        r"features has dtype int64; .* convert with \.astype\(np\.float32\), in torch with \.float",
    ),
    "integer outputs": (
        dict(outputs=lambda a: a.astype(np.int32)),
        TypeError,
        "outputs has dtype int32",
    ),
    "longdouble": (
        dict(features=lambda a: a.astype(np.longdouble)),
        TypeError,
        "features has dtype",
    ),
    "objects": (dict(features=lambda a: a.astype(object)), TypeError, "features has dtype object"),
    "a ragged list": (
        dict(features=[[1.0], [1.0, 2.0]]),
        TypeError,
        "features is not a rectangular array",
    ),
    "nothing": (dict(features=None), TypeError, "features is not a dense array of numbers"),
    "a masked array": (
        dict(features=lambda a: np.ma.masked_less(a, 0)),
        TypeError,
        "features is a masked array with [0-9]+ of 192 entries masked, first at",
    ),
    "a sparse tensor": (
        dict(features=lambda a: torch.tensor(a).to_sparse()),
        TypeError,
        "features is a torch.sparse_coo tensor",
    ),
    "a nested tensor": (
        dict(features=lambda a: torch.nested.nested_tensor(list(torch.tensor(a)))),
        TypeError,
        "features is a nested tensor",
    ),
    "targets that overflow": (
        dict(labeled_outputs=lambda a: a * 0 - 1.5e308, targets=np.full((n, K), 1e308)),
        ValueError,
        "the posterior would overflow float64: features or kernel, outputs or targets",
    ),
    "ridge beyond float64": (dict(ridge=10**400), ValueError, "ridge must be finite"),
    "ridge zero": (dict(ridge=0.0), ValueError, "ridge must be finite and > 0; got 0"),
    "ridge negative": (dict(ridge=-1), ValueError, "ridge must be finite and > 0"),
    "ridge infinite": (dict(ridge=np.inf), ValueError, "ridge must be finite"),
    "ridge NaN": (dict(ridge=np.nan), ValueError, "ridge must be finite"),
    "ridge a word": (dict(ridge="small"), TypeError, "ridge must be a number"),
    "ridge of nothing": (
        dict(labeled_features=lambda a: 0 * a),
        ValueError,
        'ridge="auto" is 1e-2 times .* give ridge > 0',
    ),
    "ridge far too small": (
        dict(
            labeled_features=lambda a: np.ones_like(a) * np.arange(1.0, len(a) + 1)[:, None],
            ridge=1e-100,
        ),
        ValueError,
        "not positive definite",
    ),
    "ridge that vanishes": (dict(ridge=1e-300), ValueError, "ridge is 1e-300; below 1e-140"),
    "loss": (
        dict(loss="hinge"),
        ValueError,
        'loss must be "squared" or "cross_entropy"; got .hinge.',
    ),
    "label_scale": (
        dict(loss="cross_entropy", label_scale=0),
        ValueError,
        "label_scale must be finite and > 0",
    ),
    "label_scale of squared loss": (
        dict(label_scale=3),
        ValueError,
        "label_scale belongs to cross-entropy",
    ),
    "residual_temperature": (
        dict(loss="cross_entropy", residual_temperature=0),
        ValueError,
        "residual_temperature must be finite and > 0",
    ),
    "residual_temperature that hides everything": (
        dict(loss="cross_entropy", residual_temperature=1e-305),
        ValueError,
        "residual_temperature is 1e-305; expected a temperature from 1e-30 to 1e30",
    ),
    "residual_temperature of squared loss": (
        dict(residual_temperature=2),
        ValueError,
        "residual_temperature belongs to cross-entropy; .*: leave it out",
    ),
    "residual_temperature as text": (
        dict(loss="cross_entropy", residual_temperature="hot"),
        TypeError,
        "residual_temperature must be a number; got 'hot'",
    ),
    "label_scale as an array": (
        dict(loss="cross_entropy", label_scale=np.ones(3)),
        TypeError,
        r"label_scale must be a number; got an array of shape \(3,\)",
    ),
    "label_scale of squared loss as an array": (
        dict(label_scale=torch.ones(1)),
        TypeError,
        r"label_scale must be a number; got an array of shape \(1,\)",
    ),
    "label_scale as a list": (
        dict(label_scale=[1.0]),
        TypeError,
        r"label_scale must be a number; got \[1.0\]",
    ),
    "one logit": (
        dict(loss="cross_entropy", outputs=lambda a: a[:, :1]),
        ValueError,
        r"two columns, \[0, logit\]",
    ),
    "targets of cross-entropy": (
        dict(loss="cross_entropy", targets=np.ones((5, 3))),
        ValueError,
        "targets must have rows that sum to one; row 0 sums to 3",
    ),
    "noise zero": (
        dict(noise=np.array([1, 1, 0, 1, 1.0])),
        ValueError,
        r"noise must be in \(0, inf\]; it is 0 at index 2",
    ),
    "noise NaN": (
        dict(noise=np.array([1, np.nan, 1, 1, 1])),
        ValueError,
        "noise .* it is nan at index 1",
    ),
    "noise of another length": (
        dict(noise=np.ones(4)),
        ValueError,
        r"noise has shape \(4,\); expected \(5,\)",
    ),
    "labelled indices twice": (
        dict(labeled_indices=[1, 4, 1]),
        ValueError,
        "labeled_indices contains 1 more than once",
    ),
    "labelled indices outside": (
        dict(labeled_indices=[1, 16]),
        ValueError,
        r"labeled_indices\[1\] = 16 is out of range for 16 points",
    ),
    "labelled indices negative": (
        dict(labeled_indices=[-1]),
        ValueError,
        r"labeled_indices\[0\] = -1 is out of range",
    ),
    "labelled mask": (
        dict(labeled_indices=np.ones(15, bool)),
        ValueError,
        "labeled_indices is a mask of length 15; expected 16",
    ),
    "labelled indices as floats": (
        dict(labeled_indices=[1.0]),
        TypeError,
        "labeled_indices has dtype float64",
    ),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors", "ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("case", BAD_FEATURES)
def test_from_features(case):
    changes, error, message = BAD_FEATURES[case]
    with pytest.raises(error, match=message):
        nf.Posterior.from_features(**arguments(**changes))


BAD_KERNELS = {
    "NaN": (dict(K_uu=put(3, 7, np.nan)), ValueError, "K_uu contains NaN at row 3, column 7"),
    "not square": (
        dict(K_uu=lambda a: a[:, 1:]),
        ValueError,
        r"K_uu has shape \(16, 15\); expected \(N, N\)",
    ),
    "K_ll not square": (dict(K_ll=lambda a: a[:, 1:]), ValueError, r"K_ll has shape \(5, 4\)"),
    "K_lu transposed": (
        dict(K_lu=lambda a: a.T),
        ValueError,
        r"K_lu has shape \(16, 5\); expected \(5, 16\)",
    ),
    "K_lu missing": (dict(K_lu=None), ValueError, r"K_lu has shape \(0, 16\); expected \(5, 16\)"),
    "K_ll missing": (dict(K_ll=None), ValueError, "expected"),
    "not symmetric": (
        dict(K_uu=put(3, 7, 100.0)),
        ValueError,
        r"K_uu is not symmetric: entry \(3, 7\) is 100",
    ),
    "negative diagonal": (
        dict(K_uu=put(2, 2, -1.0)),
        ValueError,
        r"K_uu is no kernel matrix: entry \(2, 2\) is -1 < 0",
    ),
    "indefinite": (
        dict(K_ll=1.9 * np.eye(n) - 0.9),
        ValueError,
        "not positive definite",
    ),
    "no kernel among the labelled points": (
        dict(K_ll=lambda a: a - 0.9 * np.diag(np.diag(a))),
        ValueError,
        r"K_ll is no kernel matrix: entry \(\d, \d\) is",
    ),
    "other kernels": (
        dict(K_uu=lambda a: a / 100),
        ValueError,
        "K_uu, K_lu and K_ll are not parts of one kernel matrix",
    ),
    "float16": (dict(K_uu=lambda a: a.astype(np.float16)), TypeError, "K_uu has dtype float16"),
    "neither a scalar kernel nor one with blocks": (
        dict(outputs=np.ones((5, 4))),
        ValueError,
        r"outputs has shape \(5, 4\); expected \(16, k\) .* or \(N, k\) with N k = 16 for",
    ),
    "blocks, but too few rows of labels for them": (
        dict(outputs=np.ones((4, 4))),
        ValueError,
        "K_ll has 5 rows; expected k = 4 for each point",
    ),
}


@pytest.mark.parametrize("case", BAD_KERNELS)
def test_from_kernel(case):
    changes, error, message = BAD_KERNELS[case]
    with pytest.raises(error, match=message):
        nf.Posterior.from_kernel(**kernel_arguments(**changes))


@pytest.mark.parametrize("size", [5, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_kernel_without_labels(dtype, size):
    """No Cholesky factor tells when n = 0."""
    distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(dtype)
    fives = np.full((size, size), 5, dtype)
    np.fill_diagonal(fives, 1)
    late = np.eye(size, dtype=dtype)
    late[-1, 1] = late[1, -1] = -1.1
    last = size - 1
    for K, message in (
        (distance, rf"entry \(0, {min(last, 299)}\) is {last}, beyond the root 0 of"),
        (fives, r"entry \(0, 1\) is 5, beyond the root 1 of the product of the diagonal"),
        (late, rf"entry \(1, {last}\) is -1.1"),
    ):
        with pytest.raises(ValueError, match="K_uu is no kernel matrix: " + message):
            nf.Posterior.from_kernel(K, None, None, np.ones((size, 2)), None, None, 1.0)
    x = np.random.default_rng(0).normal(size=(size, 2)).astype(dtype)
    for K in (x @ x.T, np.ones((size, size), dtype), np.diag(np.arange(size)).astype(dtype)):
        nf.Posterior.from_kernel(K, None, None, np.ones((size, 2)), None, None, 1.0)


BAD_LABELS = {
    "no indices": (([], []), ValueError, "indices is empty"),
    "outside": (([16], [0]), ValueError, r"indices\[0\] = 16 is out of range for 16 points"),
    "negative": (([-1], [0]), ValueError, "out of range"),
    "a float": (([1.0], [0]), TypeError, "indices has dtype float64"),
    "a number": ((1, [0]), ValueError, r"indices has shape \(\)"),
    "too few targets": (([1, 2], [0]), ValueError, r"targets has shape \(1,\); expected \(2,\)"),
    "no such class": (([1, 2], [0, 3]), ValueError, r"targets\[1\] = 3"),
    "NaN": (([1], [[0, np.nan, 1]]), ValueError, "targets contains NaN at row 0, column 1"),
    "noise": (([1], [0], [0.0]), ValueError, r"noise must be in \(0, inf\]"),
    "noise length": (([1], [0], [1.0, 1.0]), ValueError, "noise has shape"),
    "targets that overflow": (
        ([1, 2], [[1.7e308] * 3, [-1.7e308] * 3], [1e-9, 1e-9]),
        ValueError,
        "would overflow float64",
    ),
}


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("case", BAD_LABELS)
def test_condition(case, representation):
    post = posterior(random_problem(1), representation)
    before = post.mean, post.variance, post.labeled
    given, error, message = BAD_LABELS[case]
    with pytest.raises(error, match=message):
        post.condition(*given)
    for old, new in zip(before, (post.mean, post.variance, post.labeled), strict=True):
        np.testing.assert_array_equal(old, new)


def test_new_points():
    post = posterior(random_problem(1))
    for method in (post.extend, post.predict):
        with pytest.raises(ValueError, match=r"features has shape \(2, 11\); expected \(m, 12\)"):
            method(np.ones((2, 11)), np.ones((2, 3)))
        with pytest.raises(ValueError, match=r"outputs has shape \(3, 3\); expected \(2, 3\)"):
            method(np.ones((2, 12)), np.ones((3, 3)))
        with pytest.raises(ValueError, match="features contains NaN at row 1, column 2"):
            method(put(1, 2, np.nan)(np.ones((2, 12))), np.ones((2, 3)))
    single = posterior(random_problem(1), dtype=np.float32)
    with pytest.raises(ValueError, match="features, converted to float32, contains inf at row 1"):
        single.extend(put(1, 2, 1e39)(np.ones((2, 12))), np.ones((2, 3)))
    with pytest.raises(ValueError, match="would overflow float64"), np.errstate(all="ignore"):
        post.extend(put(1, 2, 1e200)(np.ones((2, 12))), np.ones((2, 3)))
    assert len(post) == 16
    assert len(post) == len(single) == 16
    kernel = posterior(random_problem(1), "kernel")
    for method in (kernel.extend, kernel.predict):
        with pytest.raises(TypeError, match="of a posterior from a kernel takes no features"):
            method(np.ones((2, 12)), np.ones((2, 3)))


BAD_QUESTIONS = {
    "criterion": (dict(criterion="magic"), ValueError, "unknown criterion 'magic'; known: mlmoc"),
    "no candidates": (dict(candidates=[]), ValueError, "candidates is empty"),
    "no candidate in the mask": (
        dict(candidates=np.zeros(N, bool)),
        ValueError,
        "candidates is empty",
    ),
    "no evaluation points": (dict(evaluation=np.array([], int)), ValueError, "evaluation is empty"),
    "candidates twice": (
        dict(candidates=[1, 2, 1]),
        ValueError,
        "candidates contains 1 more than once",
    ),
    "evaluation twice": (
        dict(evaluation=[5, 5]),
        ValueError,
        "evaluation contains 5 more than once",
    ),
    "candidates negative": (
        dict(candidates=[0, -2]),
        ValueError,
        r"candidates\[1\] = -2 is out of range",
    ),
    "evaluation outside": (
        dict(evaluation=[16]),
        ValueError,
        r"evaluation\[0\] = 16 is out of range",
    ),
    "beyond int64": (dict(evaluation=np.array([2**63], np.uint64)), ValueError, "out of range"),
    "mask too short": (
        dict(candidates=np.ones(3, bool)),
        ValueError,
        "candidates is a mask of length 3; expected 16",
    ),
    "candidates as floats": (dict(candidates=[0.5]), TypeError, "candidates has dtype float64"),
    "candidates in a matrix": (dict(candidates=[[0, 1]]), ValueError, "candidates has shape"),
    "probabilities": (
        dict(label_probs=np.full((N, K), 0.5)),
        ValueError,
        "label_probs must have rows that sum to one; row 0 sums to 1.5",
    ),
    "negative probabilities": (
        dict(label_probs=np.tile([1.5, -0.5, 0], (N, 1))),
        ValueError,
        "label_probs is negative at row 0, column 1",
    ),
    "too few probabilities": (
        dict(label_probs=np.full((3, K), 1 / 3)),
        ValueError,
        "label_probs has shape",
    ),
    "NaN weights": (
        dict(weights=np.full(N, np.nan)),
        ValueError,
        "weights contains NaN at index 0",
    ),
    "negative weights": (
        dict(weights=-np.ones(N)),
        ValueError,
        "weights must be >= 0; it is -1 at index 0",
    ),
    "too few weights": (
        dict(weights=np.ones(3)),
        ValueError,
        r"weights has shape \(3,\); expected \(16,\)",
    ),
    "noise zero": (dict(noise=np.zeros(N)), ValueError, r"noise must be in \(0, inf\]"),
    "noise negative": (dict(noise=-np.ones(N)), ValueError, r"noise must be in \(0, inf\]"),
    "noise NaN": (dict(noise=np.full(N, np.nan)), ValueError, r"noise must be in \(0, inf\]"),
    "temperature zero": (dict(temperature=0), ValueError, "temperature must be finite and > 0"),
    "temperature infinite": (dict(temperature=np.inf), ValueError, "temperature must be finite"),
    "temperature beyond float64": (
        dict(temperature=1e-310),
        ValueError,
        "temperature is 1e-310; expected a temperature from 1e-30 to 1e30",
    ),
    "temperature a word": (dict(temperature="hot"), TypeError, "temperature must be a number"),
    "targets missing": (
        dict(criterion="expected_log_loss"),
        ValueError,
        r"needs log_loss_targets of shape \(16, 3\)",
    ),
    "targets not one": (
        dict(log_loss_targets=np.ones((N, K))),
        ValueError,
        "log_loss_targets must have rows that sum to one",
    ),
    "precision": (dict(precision="half"), ValueError, "precision must be"),
    "tf32": (dict(precision="tf32"), ValueError, "needs tensor cores"),
    "bf16": (dict(precision="bf16"), ValueError, "needs tensor cores"),
    "posterior": (dict(post=None), TypeError, "post must be a Posterior; got NoneType"),
}


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("case", BAD_QUESTIONS)
def test_utilities_and_select(case, representation):
    changes, error, message = BAD_QUESTIONS[case]
    good = dict(post=posterior(random_problem(1), representation), criterion="emoc")
    with pytest.raises(error, match=message):
        nf.utilities(**(good | changes))
    for mode in ("top", "sequential"):
        with pytest.raises(error, match=message):
            nf.select(batch_size=2, mode=mode, **(good | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(batch_size=17), ValueError, "batch_size is 17, but only 16 unlabelled candidates"),
        (dict(batch_size=3, candidates=[1, 2]), ValueError, "only 2 unlabelled candidates"),
        (dict(batch_size=0), ValueError, "batch_size must be >= 1; got 0"),
        (dict(batch_size=-1), ValueError, "batch_size must be >= 1"),
        (dict(batch_size=2.0), TypeError, "batch_size must be an integer; got 2.0"),
        (dict(batch_size=True), TypeError, "batch_size must be an integer"),
        (dict(batch_size=10**30), ValueError, "only 16 unlabelled"),
        (dict(batch_size=1, mode="greedy"), ValueError, 'mode must be "top" or "sequential"'),
    ],
)
def test_batches(changes, error, message):
    with pytest.raises(error, match=message):
        nf.select(posterior(random_problem(1)), "emoc", **changes)


def test_every_point_labelled():
    post = posterior(random_problem(1), labeled_indices=np.ones(N, bool))
    for call in (nf.utilities, lambda *a: nf.select(*a, 1)):
        with pytest.raises(ValueError, match="every point is labelled"):
            call(post, "emoc")
    with pytest.raises(ValueError, match="only 0 unlabelled candidates"):
        nf.select(post, "emoc", 1, candidates=[3])
    assert np.isfinite(nf.utilities(post, "emoc", candidates=[3])).all()


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("criterion", REFITTED)
def test_what_float32_cannot_hold_is_refused(criterion, representation):
    """Its overflow need not reach the utilities as inf or NaN: they would be finite and wrong."""
    p = random_problem(1)
    for scale, ridge in ((1e20, "auto"), (1e-20, "auto"), (1e-12, 1.0), (1.0, 1e-35), (1.0, 1e35)):
        scaled = p | {key: scale * p[key] for key in ("phi_c", "phi_x", "phi_l")}
        scaled["K_ll"] = scale**2 * p["K_ll"]
        scaled |= {key: p[key][:0] for key in ("phi_l", "f_l", "T")} | dict(K_ll=np.empty((0, 0)))
        post = posterior(scaled, representation, ridge=ridge)
        options = dict(log_loss_targets=np.full((N, K), 1 / K))
        with pytest.raises(ValueError, match='precision="float32" cannot hold'):
            nf.utilities(post, criterion, precision="float32", **options)
        for mode in ("top", "sequential"):
            with pytest.raises(ValueError, match='precision="float32" cannot hold'):
                nf.select(post, criterion, 2, mode, precision="float32", **options)
            assert np.isfinite(nf.select(post, criterion, 2, mode, **options).utilities).all()


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_integer_weights_and_noises_are_numbers(representation):
    p = random_problem(1)
    whole, same = (
        posterior(p, representation, noise=np.arange(1, len(p["f_l"]) + 1).astype(dtype))
        for dtype in (np.int32, np.float64)
    )
    for post, dtype in ((whole, np.uint8), (same, np.float64)):
        post.condition([3], [1], np.array([2], dtype))
    np.testing.assert_array_equal(whole.mean, same.mean)
    u, v = (
        nf.utilities(post, "emoc", weights=w, noise=z)
        for post, w, z in (
            (whole, torch.arange(N), [2] * 15),
            (same, np.arange(N) * 1.0, np.full(15, 2.0)),
        )
    )
    np.testing.assert_array_equal(u, v)
    with pytest.raises(ValueError, match=r"noise must be in \(0, inf\]; it is 0 at index 0"):
        nf.utilities(whole, "emoc", noise=np.arange(15))
    with pytest.raises(ValueError, match="weights must be >= 0; it is -1 at index 0"):
        nf.utilities(whole, "emoc", weights=np.arange(N) - 1)


def test_sizes_that_do_not_fit():
    """A view of more numbers than there can be memory for fails as memory does."""
    huge = np.broadcast_to(np.float32(1.0), (2**40, 2**10))
    with pytest.raises(MemoryError):
        nf.Posterior.from_features(huge, np.ones((1, 2)), None, None, None)
