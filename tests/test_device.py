"""`Posterior`, `utilities`, `select` and the learner on GPU arrays, against the same on numpy ones.

Everything runs on doubles of the operations (with torch tensors and cupy arrays in host memory),
and, marked `gpu`, on a GPU or its emulation (`make test-emulated`).
"""

import copy
import pickle
import signal
import subprocess
import sys

import gpu_doubles
import numpy as np
import pytest
import torch
from problems import REPRESENTATIONS, golden, keywords, posterior, random_problem, relative_error

import ntkfast as nf
from ntkfast import _core, arrays, cuda_ops
from ntkfast._posterior import engines

pytestmark = pytest.mark.filterwarnings("ignore:.*outnumber a quarter")

NAMES = tuple(row.name for row in nf.criteria())
# Of utilities, relative to the largest: features are rounded to 24, 24, 11 and 8 bits.
TOLERANCE = {"float64": 1e-9, "float32": 5e-5, "tf32": 2e-2, "bf16": 2e-1}


@pytest.fixture
def torch_device(device):
    """A device with torch tensors, where a test needs torch."""
    if device.kind is not torch.Tensor:
        pytest.skip("about torch")
    return device


def assert_agree(found, expected, device, tolerance=1e-9):
    """States of a posterior there and of one on the CPU."""
    every = np.arange(len(expected))
    for x, y in (
        (found.mean, expected.mean),
        (found.variance, expected.variance),
        (found.covariance(every, every[::2]), expected.covariance(every, every[::2])),
    ):
        assert relative_error(device.host(x), y) <= tolerance
    np.testing.assert_array_equal(device.host(found.labeled), expected.labeled)


def both(device, p, representation, dtype=np.float64, **settings):
    return (
        posterior(p, representation, dtype, device.put, **settings),
        posterior(p, representation, dtype, **settings),
    )


# --- The posterior ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize(
    "name", ["plain", "cross_entropy", "more_labels_than_features", "unlabelled"]
)
def test_posterior(device, name, representation, dtype):
    p = golden(name)
    tolerance = 1e-9 if dtype == np.float64 else 2e-5
    post, same = both(device, p, representation, dtype, labeled_indices=[7])
    assert_agree(post, same, device, tolerance)
    assert repr(post) == repr(same)
    copied, before = post.copy(), same.copy()
    for points, classes in (([3], [1]), ([5, 3, 20], [0, 1, 2]), (np.arange(20), [1] * 20)):
        post.condition(device.put(points), device.put(classes))
        same.condition(points, classes)
        assert_agree(post, same, device, tolerance)
    noise = np.array([0.1, np.inf])
    post.condition(device.put([1, 2]), [0, 1], device.put(noise))
    same.condition([1, 2], [0, 1], noise)
    assert_agree(post, same, device, tolerance)
    assert_agree(copied, before, device, tolerance)
    if representation == "features":
        phi, f = p["phi_l"][:4].astype(dtype), p["f_l"][:4]
        if len(phi) == 0:
            phi, f = p["phi_c"][:4].astype(dtype), p["f_c"][:4]
        expected = same.predict(phi, f)
        assert relative_error(device.host(post.predict(device.put(phi), f)), expected) <= tolerance
        assert relative_error(post.predict(phi, device.put(f)), expected) <= tolerance
        post.extend(device.put(phi), device.put(f))
        same.extend(phi, f)
        post.condition([32], [1])
        same.condition([32], [1])
        assert_agree(post, same, device, tolerance)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_noises_and_regression(device, representation):
    p = random_problem(4, n=6, d=20, k=2)
    noise = p["lam"] * np.array([1, 2, 3, 0.5, np.inf, np.inf])
    one = {key: p[key][:, :1] for key in ("f_l", "f_c", "f_x", "T")}
    post, same = both(device, p | one, representation, noise=noise)
    post.condition(device.put([0, 1]), device.put([0.3, -2.0]))
    same.condition([0, 1], [0.3, -2.0])
    assert_agree(post, same, device)
    for criterion in ("variance_reduction", "epig"):
        found, expected = (nf.select(each, criterion, 4) for each in (post, same))
        np.testing.assert_array_equal(device.host(found.indices), expected.indices)


def test_awkward_memory(torch_device):
    """Views, gradients and bfloat16."""
    device, p = torch_device, random_problem(2)
    expected = posterior(p)

    def spread(a):
        wide = device.put(np.full((2 * len(a), 3 * a.shape[1] + 1), np.nan))
        wide[::2, 1::3] = device.put(a)
        return wide[::2, 1::3]

    for change in (
        lambda a: device.put(a.T.copy()).T,
        lambda a: device.put(a).requires_grad_(),
        spread,
    ):
        for representation in REPRESENTATIONS:
            post = posterior(p, representation, convert=change)
            assert_agree(post, expected, device)
            post.condition([3], device.put(np.eye(3)[[1]]))
            assert not post.mean.requires_grad
    phi, f = (
        device.put(np.vstack([p["phi_c"], p["phi_x"]])).bfloat16(),
        device.put(np.vstack([p["f_c"], p["f_x"]])),
    )
    post = nf.Posterior.from_features(phi, f.bfloat16(), phi[:3], f[:3], np.zeros(3, int))
    f16, phi16 = f.bfloat16().double().cpu().numpy(), phi.float().cpu().numpy()
    same = nf.Posterior.from_features(phi16, f16, phi16[:3], f[:3].cpu().numpy(), np.zeros(3, int))
    assert_agree(post, same, device, 1e-6)
    assert "float32" in repr(post)
    u, v = (nf.utilities(each, "emoc", precision="float32") for each in (post, same))
    assert relative_error(device.host(u), v) <= 1e-5


def test_the_callers_arrays_never_change(device):
    p, given = random_problem(3), []

    def put(a):
        there = device.put(a)
        given.append((np.array(a), there))
        return there

    for representation in REPRESENTATIONS:
        post = posterior(p, representation, convert=put)
        post.condition(put(np.array([1, 2])), put(np.eye(3)[:2]), put(np.full(2, 0.3)))
        for criterion in NAMES:
            nf.select(post, criterion, 3, **keywords(p, put))
        for result in (post.mean, post.variance, nf.utilities(post, "emoc")):
            device.host(result)[:] = 0
    for before, after in given:
        np.testing.assert_array_equal(device.host(after), before)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_files_and_moves(device, representation, tmp_path):
    p = golden("plain")
    post, same = both(device, p, representation, labeled_indices=[7])
    post.condition([3], [1])
    same.condition([3], [1])
    post.save(tmp_path / "posterior")
    loaded = nf.Posterior.load(tmp_path / "posterior")
    assert isinstance(loaded.mean, np.ndarray)
    again = loaded.to(device.put(np.empty(0)))
    for each in (post, loaded, again, again.to(np.empty(0)), loaded.to(np.empty(0))):
        each.condition([2, 5], [0, 1])
    same.condition([2, 5], [0, 1])
    assert_agree(post, same, device)
    assert_agree(again, same, device)
    options = dict(precision="float64")
    expected = nf.select(same, "emoc", 4, **options).indices
    np.testing.assert_array_equal(nf.select(loaded, "emoc", 4, **options).indices, expected)
    found = nf.select(again, "emoc", 4, **options).indices
    np.testing.assert_array_equal(device.host(found), expected)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda post: pickle.loads(pickle.dumps(post)),
        lambda post: post.to(post.mean),
    ],
)
def test_copies(torch_device, representation, copied):
    post, same = both(torch_device, golden("plain"), representation)
    twin = copied(post)
    post.condition([3], [1])
    assert_agree(twin, same, torch_device)
    twin.condition([3], [1])
    assert_agree(twin, post.to(np.empty(0)), torch_device)


def test_moves_by_name(torch_device):
    post, same = both(torch_device, random_problem(1), "features")
    place = post.mean.device
    for target in (str(place), place):
        assert_agree(same.to(target), same, torch_device)
    with pytest.raises(TypeError, match=r'target must be a device of torch \("cuda".*got 3'):
        post.to(3)
    with pytest.raises(RuntimeError, match="'meta', which is not supported"):
        post.to("meta")
    with pytest.raises(RuntimeError, match="torch cannot use device 'nowhere'"):
        post.to("nowhere")


# --- Scoring --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float64", "float32", "tf32", "bf16"])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("criterion", NAMES)
def test_utilities(device, criterion, representation, precision):
    if precision == "bf16" and device.kind is gpu_doubles.Cupy:
        pytest.skip("cupy has no bfloat16")
    p = random_problem(11, n=8, N_c=30, N_x=41, d=20, k=4, loss="cross_entropy", scale=4.0)
    post, same = both(device, p, representation, np.float32)
    # No distance is near the radius, where rounding would decide.
    radius = dict(radius=1.2 if criterion == "prob_cover" else "auto")
    options = keywords(p, device.put) | dict(precision=precision) | radius
    if representation == "kernel" and precision in ("tf32", "bf16"):
        with pytest.raises(ValueError, match=f'precision="{precision}" would lose the ranking'):
            nf.utilities(post, criterion, **options)
        return
    expected = nf.utilities(same, criterion, **keywords(p), **radius, precision="float64")
    found = nf.utilities(post, criterion, **options)
    tolerance = max(TOLERANCE[precision], 1e-6 if precision == "float64" else 0)
    if criterion == "label_flips":  # a rounded output may decide one comparison
        tolerance = max(tolerance, 5e-2)
    assert relative_error(device.host(found), expected) <= tolerance


# Of 16 batches five, with every pair of a loss, a representation, a mode, and what is given.
BATCHES = [
    ("squared", "features", "top", False),
    ("squared", "kernel", "sequential", True),
    ("cross_entropy", "features", "sequential", True),
    ("cross_entropy", "kernel", "top", True),
    ("cross_entropy", "kernel", "sequential", False),
]


@pytest.mark.parametrize(("loss", "representation", "mode", "given"), BATCHES)
@pytest.mark.parametrize("criterion", NAMES)
def test_batches(device, criterion, loss, representation, mode, given):
    """Of every criterion, with all of its arguments given or none."""
    p = random_problem(3, d=15, loss=loss, scale=1.0 if loss == "squared" else 4.0, spread=1.5)
    post, same = both(device, p, representation, labeled_indices=[2])
    options, there = keywords(p), keywords(p, device.put)
    if not given:
        N, k = same.mean.shape
        targets = np.full((N, k), 1 / k)
        options, there = dict(log_loss_targets=targets), dict(log_loss_targets=device.put(targets))
    found = nf.select(post, criterion, 5, mode, **there)
    expected = nf.select(same, criterion, 5, mode, **options)
    assert device.host(found.indices).dtype == np.int64
    if criterion != "label_flips":  # counts: rounding decides between equals
        np.testing.assert_array_equal(device.host(found.indices), expected.indices)
        assert relative_error(device.host(found.utilities), expected.utilities) <= 1e-8
    assert_agree(post, same, device)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("criterion", ["mlmoc", "expected_entropy", "epig"])
def test_batches_in_low_precision(torch_device, criterion, precision):
    """Picks condition float32 features whatever the pairs are rounded to: errors do not add up."""
    p = random_problem(12, n=8, N_c=30, N_x=41, d=20, k=4, loss="cross_entropy", scale=4.0)
    post, same = both(torch_device, p, "features", np.float32)
    options = dict(precision=precision)
    found = nf.select(post, criterion, 8, **options, **keywords(p, torch_device.put))
    indices = torch_device.host(found.indices)
    assert len(set(indices.tolist())) == 8
    for i, c in enumerate(indices):  # the batch so far, one label at a time
        left = np.setdiff1d(np.arange(30), indices[:i])
        every = keywords(p) | dict(candidates=left)
        every |= {name: every[name][left] for name in ("noise", "label_probs")}
        exact = nf.utilities(same, criterion, **every, precision="float64")
        value = exact[left == c].item()
        scale = np.abs(exact).max()
        assert exact.max() - value <= 2 * TOLERANCE[precision] * scale
        assert abs(torch_device.host(found.utilities)[i] - value) <= TOLERANCE[precision] * scale
        # The pseudo-label of the pick: a batch is F's most likely classes.
        same.condition([c], [same.mean[c].argmax()], p["lam_c"][[c]])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("criterion", ["variance_reduction", "fisher_variance_reduction"])
def test_batches_by_moments(device, criterion, dtype, share):
    """A whole batch in one call, and the same picks as from pairs."""
    p = random_problem(5, n=10, N_c=60, N_x=71, d=8, k=4, loss="cross_entropy", spread=2.0)
    post, same = both(device, p, "features", dtype)
    rng = np.random.default_rng(0)
    candidates, evaluation = (rng.permutation(131)[: int(131 * share)] for _ in range(2))
    options = dict(weights=rng.uniform(0.1, 1, len(evaluation)))
    options |= dict(noise=rng.uniform(0.1, 1, len(candidates)))
    options["noise"][:5] = np.inf
    options |= dict(candidates=candidates, evaluation=evaluation)
    for first in (0, 2):
        post.condition([first, first + 1], [0, 1])
        same.condition([first, first + 1], [0, 1])
        found = nf.select(post, criterion, 15, **{k: device.put(v) for k, v in options.items()})
        expected = nf.select(same, criterion, 15, **options)
        np.testing.assert_array_equal(device.host(found.indices), expected.indices)
        tolerance = 1e-9 if dtype == np.float64 else 1e-5
        assert relative_error(device.host(found.utilities), expected.utilities) <= tolerance
        alike = dict(candidates=candidates, precision="float32" if dtype == np.float32 else "auto")
        u, v = (nf.utilities(each, criterion, **alike) for each in (post, same))
        assert relative_error(device.host(u), v) <= tolerance
    if device.ops is not cuda_ops:
        assert device.ops.calls.count("select_variance_reduction") == 2
        assert "downdate_moments" not in device.ops.calls


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("criterion", ["variance_reduction", "expected_entropy"])
def test_long_batches_from_a_kernel(device, criterion, dtype, monkeypatch):
    """Rows are subtracted in a copy of S when there are many; S itself stays."""
    monkeypatch.setattr(engines.GpuEngine, "largest_downdate", 3)
    p = random_problem(5, n=3, N_c=30, N_x=20)
    post, same = both(device, p, "kernel", dtype)
    found, expected = (nf.select(each, criterion, 12) for each in (post, same))
    np.testing.assert_array_equal(device.host(found.indices), expected.indices)
    tolerance = 1e-9 if dtype == np.float64 else 1e-4
    assert relative_error(device.host(found.utilities), expected.utilities) <= tolerance
    assert_agree(post, same, device, tolerance)
    if device.ops is not cuda_ops:
        assert (
            device.ops.calls.count("condition_dense") == 1 + 3
        )  # of 11 rows the last two are not subtracted


def test_what_stays_is_brought_to_the_gpu_once(device, monkeypatch):
    p = random_problem(5, n=3, N_c=30, N_x=20)
    posts = [posterior(p, representation, convert=device.put) for representation in REPRESENTATIONS]
    brought, put = [], engines.GpuEngine.put
    monkeypatch.setattr(
        engines.GpuEngine, "put", lambda self, a: brought.append(a.shape) or put(self, a)
    )
    options = dict(candidates=np.arange(30), evaluation=np.arange(30, 50))
    for post in posts:
        brought.clear()
        nf.select(post, "expected_entropy", 4, **options)
        assert brought.count((50, 3)) == 1 + 4  # outputs; and F of every pick
        assert brought.count((20,)) == 2  # weights and evaluation points


def test_ties_go_to_the_lowest_point(device):
    p = random_problem(9, N_c=20)
    thrice = dict(phi_c=np.tile(p["phi_c"], (3, 1)), f_c=np.tile(p["f_c"], (3, 1)))
    post, same = both(device, p | thrice, "features")
    chosen = np.random.default_rng(0).permutation(60)
    for criterion in ("variance_reduction", "expected_entropy"):
        for mode in ("top", "sequential"):
            found, expected = (
                nf.select(each, criterion, 1, mode, candidates=chosen) for each in (post, same)
            )
            assert device.host(found.indices).tolist() == expected.indices.tolist()
            assert expected.indices[0] < 20


def products_of(device, post, criterion, mode="top", **options):
    """What "auto" hands to the compiled scoring."""
    seen = []
    for name in ("score_features", "score_dense"):
        original = getattr(type(device.ops), name)

        def spy(self, criterion, X, *arguments, original=original, **keywords):
            seen.append(keywords.get("products", str(X.dtype).removeprefix("torch.")))
            return original(self, criterion, X, *arguments, **keywords)

        device.ops.__dict__[name] = spy.__get__(device.ops)
    nf.select(post, criterion, 2, mode, **options)
    device.ops.__dict__.clear()
    device.ops.calls = []
    return set(seen)


def test_automatic_precision(device):
    if device.ops is cuda_ops:
        pytest.skip("about what is called")
    p = random_problem(6, n=4, d=40)
    single, double = (posterior(p, "features", t, device.put) for t in (np.float32, np.float64))
    assert products_of(device, single, "emoc") == {"f16"}
    assert products_of(device, single, "epig") == {"f16x3"}
    assert products_of(device, single, "emoc", precision="float32") == {"f16x3"}
    assert products_of(device, double, "emoc", precision="float32") == {"f16x3"}
    assert products_of(device, double, "emoc") == {"fma64"}
    tiny = posterior(p, "features", np.float32, device.put, ridge=1e-5)
    assert products_of(device, tiny, "epig") == {"fma64"}
    assert products_of(device, tiny, "emoc") == {"f16"}
    dense = posterior(p, "kernel", np.float32, device.put)
    assert products_of(device, dense, "emoc", "sequential") == {"float32"}
    options = dict(noise=np.full(16, 1e-6))
    assert products_of(device, dense, "emoc", "sequential", **options) == {"float64"}
    options = dict(precision="tf32", candidates=[0, 1])
    assert products_of(device, single, "emoc", "sequential", **options) == {"f16"}


@pytest.mark.parametrize("precision", ["auto", "float32", "tf32", "bf16"])
@pytest.mark.parametrize("criterion", ["variance_reduction", "epig", "emoc", "expected_entropy"])
def test_rank_agreement(torch_device, criterion, precision):
    """Labels explain most: of 600 (the emulation: 200) the best 30 are found in every precision."""
    device, rng = torch_device, np.random.default_rng(8)
    N, d = (200 if _core.cuda_emulated() else 600), 128
    phi = (rng.normal(size=(N + 200, d)) * np.exp(-np.arange(d) / 20)).astype(np.float32)
    f = rng.normal(size=(N + 200, 4)).astype(np.float32)
    labels = phi[N:], f[N:], rng.integers(0, 4, 200)
    post = nf.Posterior.from_features(device.put(phi[:N]), f[:N], *labels)
    same = nf.Posterior.from_features(
        phi[:N].astype(np.float64), f[:N], labels[0].astype(np.float64), *labels[1:]
    )
    assert np.median(same.variance / (phi[:N] ** 2).sum(1)) < 0.05
    found = device.host(nf.utilities(post, criterion, precision=precision))
    exact = nf.utilities(same, criterion)
    best, truly = np.argsort(-found)[:30], np.argsort(-exact)[:30]
    assert len(np.intersect1d(best, truly)) >= (27 if precision == "bf16" else 29)


def test_bfloat16_needs_torch(device):
    if device.kind is not gpu_doubles.Cupy:
        pytest.skip("about cupy")
    post, _ = both(device, random_problem(1), "features", np.float32)
    with pytest.raises(ValueError, match='precision="bf16" needs torch'):
        nf.utilities(post, "emoc", precision="bf16")


def test_what_float32_cannot_hold(device):
    rng = np.random.default_rng(0)
    phi, f = (rng.normal(size=(40, 16)) * 1e20).astype(np.float32), rng.normal(size=(40, 3))
    post = nf.Posterior.from_features(device.put(phi), f, None, None, None)
    same = nf.Posterior.from_features(phi, f, None, None, None)
    u, v = (nf.utilities(each, "emoc") for each in (post, same))
    assert relative_error(device.host(u), v) <= 1e-9
    for precision in ("float32", "tf32"):
        with pytest.raises(ValueError, match=f'precision="{precision}" cannot hold'):
            nf.utilities(post, "emoc", precision=precision)


# --- Errors ---------------------------------------------------------------------------------------


def test_bad_numbers_are_located(device):
    p = random_problem(1)
    phi, f = np.vstack([p["phi_c"], p["phi_x"]]), np.vstack([p["f_c"], p["f_x"]])
    K = phi @ phi.T

    def spoilt(a, row, column, value):
        a = a.copy()
        a[row, column] = value
        return device.put(a)

    def features(**changes):
        good = dict(features=device.put(phi), outputs=f, labeled_features=device.put(phi[:4]))
        good |= dict(labeled_outputs=f[:4], targets=np.zeros(4, int))
        nf.Posterior.from_features(**(good | changes))

    def kernel(K_uu, K_ll):
        nf.Posterior.from_kernel(K_uu, device.put(K[:4]), K_ll, f, f[:4], np.zeros(4, int))

    for name, a in (("features", phi), ("labeled_features", phi[:4])):
        for value, word in ((np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf")):
            with pytest.raises(ValueError, match=f"^{name} contains {word} at row 3, column 7$"):
                features(**{name: spoilt(a, 3, 7, value)})
    with pytest.raises(ValueError, match=r"^outputs contains NaN at row 2, column 1$"):
        features(outputs=spoilt(f, 2, 1, np.nan))
    with pytest.raises(ValueError, match="would overflow"):  # the squares do, not the numbers
        features(features=device.put(phi * 1e160))
    good = device.put(K[:4, :4])
    kernel(device.put(K), good)
    for change, message in (
        ((15, 4, np.nan), "K_uu contains NaN at row 15, column 4"),
        ((3, 5, 90.0), r"K_uu is not symmetric: entry \(3, 5\) is 90, entry \(5, 3\)"),
        ((2, 2, -1.0), r"K_uu is no kernel matrix: entry \(2, 2\) is -1 < 0"),
    ):
        with pytest.raises(ValueError, match=message):
            kernel(spoilt(K, *change), good)
    large = K.copy()
    large[3, 5] = large[5, 3] = 500
    with pytest.raises(ValueError, match=r"no kernel matrix: entry \(3, 5\) is 500, beyond"):
        kernel(device.put(large), good)
    with pytest.raises(ValueError, match="matrix of the labelled points plus their noise is not"):
        kernel(device.put(K), device.put(1.9 * np.eye(4) - 0.9))  # no entry tells that it is none


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a[:, 1:], ValueError, r"labeled_features has shape \(4, 11\); expected \(n, 12"),
        (lambda a: a[0], ValueError, r"labeled_features has shape \(12,\); expected \(n, 12\)"),
        (lambda a: a.astype(np.int64), TypeError, "labeled_features has dtype int64; .* .float"),
        (lambda a: a.astype(np.float16), TypeError, "labeled_features has dtype float16; .* .flo"),
    ],
)
def test_shapes_and_types(device, change, error, message):
    p = random_problem(1)
    phi, f = device.put(p["phi_c"]), p["f_c"]
    with pytest.raises(error, match=message):
        nf.Posterior.from_features(phi, f, device.put(change(p["phi_c"][:4])), f[:4], [0, 1, 0, 1])


def test_arguments_anywhere_else(torch_device):
    """Small ones may be on the host; another GPU, or a GPU for a posterior on the CPU: an error."""
    device, p = torch_device, random_problem(1)
    post, same = both(device, p, "features")
    on_gpu = device.put(np.ones(16))
    with pytest.raises(RuntimeError, match=r"^weights is on device '.*', and the features or the "):
        nf.utilities(same, "emoc", weights=on_gpu)
    with pytest.raises(RuntimeError, match=r"^indices is on device .* nothing is moved there"):
        same.condition(device.put([1]), [0])
    elsewhere = torch.ones(16, device="meta")
    with pytest.raises(RuntimeError, match="weights is on device 'meta', which is not supported"):
        nf.utilities(post, "emoc", weights=elsewhere)
    arrays._GPU_TYPES += ("meta",)  # as if it were a second GPU
    with pytest.raises(RuntimeError, match=r"weights is a torch array on device 'meta', .* one GP"):
        nf.utilities(post, "emoc", weights=elsewhere)
    with pytest.raises(RuntimeError, match=r"^features is a torch array on device 'meta'"):
        post.extend(torch.ones(1, 12, device="meta"), np.ones((1, 3)))


def test_another_current_device_of_cupy(device, monkeypatch):
    if device.kind is not gpu_doubles.Cupy:
        pytest.skip("about cupy")
    monkeypatch.setattr(gpu_doubles.Cupy, "device", "GPU 1")
    with pytest.raises(
        RuntimeError, match=r"arrays are on GPU 1, .* current device of cupy is GPU 0"
    ):
        posterior(random_problem(1), convert=device.put)


def test_a_build_without_kernels_says_so(monkeypatch):
    """Never a silent copy: what is missing, as the build or the driver words it."""
    monkeypatch.setattr(arrays, "_GPU_TYPES", ("cuda", "cpu"))
    monkeypatch.setattr(cuda_ops, "problem", lambda: "this build holds no GPU kernels")
    f = np.ones((3, 2))
    expected = "^the arrays are on device 'cpu', .* behind your back, but this build holds no GPU k"
    for build in (
        lambda: nf.Posterior.from_features(torch.ones(3, 2), f, None, None, None),
        lambda: nf.Posterior.from_kernel(torch.eye(3), None, None, f, None, None),
        lambda: nf.Posterior.from_features(f, f, None, None, None).to("cpu"),
    ):
        with pytest.raises(RuntimeError, match=expected):
            build()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="torch cannot use device 'cuda'"):
            nf.Posterior.from_features(f, f, None, None, None).to("cuda")


def test_nothing_initialises_cuda():
    code = """
import numpy as np, torch, ntkfast as nf
from ntkfast import cuda_ops
def refuse(): raise AssertionError("CUDA was asked for")
cuda_ops.problem = cuda_ops._core.cuda_problem = torch.cuda._lazy_init = refuse
for convert in (np.asarray, torch.from_numpy):
    f = convert(np.eye(4))
    post = nf.Posterior.from_features(f, f, None, None, None)
    nf.select(post, "emoc", 2)
    post.condition([0], [1])
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- All or nothing -------------------------------------------------------------------------------


def takes_memory(name, arguments, keywords):
    """Whether an operation allocates on the device: all but those that work in place."""
    given = keywords.get("out", arguments[1] if len(arguments) > 1 else None)
    return not (name == "condition_dense" or (name == "squared_norms" and given is not None))


@pytest.mark.parametrize("labels", [1, 7])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_out_of_memory_changes_nothing(device, representation, labels, monkeypatch):
    """Wherever in a call the memory of the device runs out."""
    p = random_problem(1, d=10)
    post, same = both(device, p, representation)
    left = [0]

    def limited(owner, name):
        original = getattr(owner, name)

        def allocate(*arguments, **keywords):
            if takes_memory(name, arguments, keywords):
                left[0] -= 1
                if left[0] < 0:
                    raise MemoryError(name)
            return original(*arguments, **keywords)

        monkeypatch.setattr(owner, name, allocate)

    for name in ("put", "empty", "eye", "copy", "rows", "part", "stack", "column_norms"):
        limited(engines.GpuEngine, name)
    for name in (
        "squared_norms", "product", "weighted_gram", "whiten", "condition_features",
        "condition_dense", "cholesky", "triangular_solve",
    ):  # fmt: skip
        limited(engines.cuda_ops, name)
    calls = [lambda each: each.condition(np.arange(labels), np.zeros(labels, int))]
    if representation == "features":
        calls.append(lambda each: each.extend(p["phi_l"], p["f_l"]))
    for call in calls:
        for limit in range(100):
            left[0] = limit
            try:
                call(post)
            except MemoryError:
                left[0] = 10**9
                assert_agree(post, same, device)
            else:
                break
        assert limit > 5
        left[0] = 10**9
        call(same)
        assert_agree(post, same, device)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_an_interrupted_update_is_whole(device, representation, monkeypatch):
    """Ctrl-C in the middle of the in-place part is delivered once the update is complete."""
    p = golden("plain")
    post, same = both(device, p, representation)
    name = "condition_features" if representation == "features" else "condition_dense"
    original = getattr(engines.cuda_ops, name)

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        original(*arguments)

    monkeypatch.setattr(engines.cuda_ops, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        post.condition([1, 2], [0, 1])
    same.condition([1, 2], [0, 1])
    assert_agree(post, same, device)


# --- The learner ----------------------------------------------------------------------------------


def network(loss="cross_entropy"):
    torch.manual_seed(0)
    outputs = 3 if loss == "cross_entropy" else 1
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, outputs)
    ).double()


@pytest.mark.parametrize("inputs", ["tensors", "arrays", "dataset"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_learner(torch_device, loss, inputs, monkeypatch):
    """A model on the GPU: its features stay there; picks come back in the library of the pool."""
    device, rng = torch_device, np.random.default_rng(0)
    X, X_labeled, X_test = (rng.normal(size=(n, 6)) for n in (40, 5, 7))
    y, y_new = rng.integers(0, 3, 5), rng.integers(0, 3, 4)
    if loss == "squared":
        y, y_new = rng.normal(size=5), rng.normal(size=4)
    convert = {
        "tensors": device.put,
        "arrays": lambda a: a,
        "dataset": lambda a: torch.utils.data.TensorDataset(torch.tensor(a)),
    }[inputs]
    there = device.put(np.zeros(1)).device
    options = dict(loss=loss, dim=256, evaluation_size=30)
    learner = nf.LookAheadLearner(network(loss).to(there), **options)
    learner.fit(convert(X_labeled), device.put(y), convert(X))
    assert learner.posterior._space.engine.on_gpu
    picked = learner.query(4)
    if inputs == "arrays":
        assert isinstance(picked.indices, np.ndarray)
        assert isinstance(picked.utilities, np.ndarray)
    else:
        assert picked.indices.device.type == ("cpu" if inputs == "dataset" else there.type)
    indices = np.asarray(picked.indices if inputs == "arrays" else picked.indices.cpu())
    learner.update(device.put(indices), device.put(y_new))
    predicted = learner.predict(convert(X_test))
    predicted = predicted if inputs == "arrays" else predicted.cpu().numpy()
    if inputs == "arrays":  # a build without kernels
        monkeypatch.setattr(engines, "missing_for", lambda library: "kernels")
        monkeypatch.setattr(nf.learner, "missing_for", lambda library: "kernels")
        learner.fit(X_labeled, y, X)
        assert learner.query(4).indices.tolist() == indices.tolist()
        assert not learner.posterior._space.engine.on_gpu
    monkeypatch.setattr(arrays, "_GPU_TYPES", ())  # the same on the CPU
    same = nf.LookAheadLearner(network(loss), **options).fit(X_labeled, y, X)
    assert same.query(4).indices.tolist() == indices.tolist()
    same.update(indices, y_new)
    assert relative_error(predicted, same.predict(X_test)) <= 1e-8
