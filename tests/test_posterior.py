"""The posterior: conditioning, new points, settings, files, interruption."""

import copy
import os
import pickle
import re
import signal
import threading
import warnings

import numpy as np
import pytest
from data import oracle
from hypothesis import given
from hypothesis import strategies as st
from problems import GOLDEN, REPRESENTATIONS, golden, posterior, random_problem, relative_error

import ntkfast as nf
from ntkfast import ops

pytestmark = pytest.mark.filterwarnings("ignore:.*outnumber a quarter")


def kernel_of(p):
    phi = np.vstack([p["phi_c"], p["phi_x"]])
    return phi @ phi.T


def state(post):
    every = np.arange(len(post))
    return post.mean, post.covariance(every, every), post.variance, post.labeled


def assert_same_state(a, b, tolerance=1e-9):
    *found, labeled = state(a)
    *expected, expected_labeled = state(b)
    np.testing.assert_array_equal(labeled, expected_labeled)
    for x, y in zip(found, expected, strict=True):
        assert relative_error(x, y) <= tolerance


def refitted(p, indices, T, noise):
    """F and S from scratch, given the labelled points and (indices, T) with their own noises."""
    phi, f = np.vstack([p["phi_c"], p["phi_x"]]), np.vstack([p["f_c"], p["f_x"]])
    labeled = np.vstack([p["phi_l"], phi[indices]])
    residual = np.vstack([p["T"] - p["f_l"], T - f[indices]])
    A = labeled @ labeled.T + np.diag(np.append(np.full(len(p["phi_l"]), p["lam"]), noise))
    K = labeled @ phi.T
    return f + K.T @ np.linalg.solve(A, residual), phi @ phi.T - K.T @ np.linalg.solve(A, K)


@pytest.mark.parametrize("name", GOLDEN)
def test_features_and_kernel_agree(name):
    p = golden(name)
    a, b = (posterior(p, representation) for representation in REPRESENTATIONS)
    assert_same_state(a, b)
    a.condition([3, 5, 3], [0, 1, 1])
    b.condition([3, 5, 3], [0, 1, 1])
    assert_same_state(a, b)


@given(seed=st.integers(0, 10**6), data=st.data())
def test_one_by_one_is_all_at_once_is_from_scratch(seed, data):
    """Squared loss: with the same noises the order and grouping of labels do not matter."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(0, 8)), int(rng.integers(1, 30))
    p = random_problem(seed, n=n, d=d)
    representation = data.draw(st.sampled_from(REPRESENTATIONS))
    b = int(rng.integers(1, 7))
    indices, classes = rng.integers(0, 16, b), rng.integers(0, 3, b)
    noise = p["lam"] * rng.uniform(0.2, 5, b)
    together, single = posterior(p, representation), posterior(p, representation)
    together.condition(indices, classes, noise)
    for i in rng.permutation(b):
        single.condition([indices[i]], [classes[i]], noise[i : i + 1])
    F, S = refitted(p, indices, np.eye(3)[classes], noise)
    for post in (together, single):
        assert relative_error(post.mean, F) <= 1e-9
        assert np.abs(post.covariance(range(16), range(16)) - S).max() <= 1e-9
        assert np.abs(post.variance - np.diag(S)).max() <= 1e-9
        assert post.labeled.tolist() == sorted(set(indices.tolist()))
        if representation == "features":
            phi, f = np.vstack([p["phi_c"], p["phi_x"]]), np.vstack([p["f_c"], p["f_x"]])
            assert relative_error(post.predict(phi, f), F) <= 1e-9


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_cross_entropy_step(representation, anywhere):
    """Residuals of one call are taken together, before the step, in units of label_scale."""
    p = golden("cross_entropy")
    post = posterior(p, representation, convert=anywhere.put)
    F, S = anywhere.host(post.mean), anywhere.host(post.covariance(range(32), range(32)))
    B, T = np.array([2, 20]), np.array([[0.5, 0.5, 0, 0], [0, 0, 0, 1.0]])
    post.condition(B, T)
    gain = S[:, B] @ np.linalg.inv(S[np.ix_(B, B)] + p["lam"] * np.eye(2))
    residual = p["scale"] * (T - oracle.softmax(F[B] / p["residual_temperature"]))
    assert relative_error(anywhere.host(post.mean), F + gain @ residual) <= 1e-10


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("T_r", [0.5, 1.0, 2.0])
def test_residuals_are_of_the_tempered_softmax(T_r, representation):
    """What look-ahead criteria predict of a label is what conditioning on it does."""
    p = golden("tempered") | dict(residual_temperature=T_r)
    post = posterior(p, representation)
    c, y, x = 3, 2, np.arange(15, 32)
    P = np.eye(4)[[y]]
    options = dict(candidates=[c], evaluation=x, label_probs=P, temperature=0.3)
    predicted = nf.utilities(post, "expected_entropy", **options)
    size = nf.utilities(post, "emoc", **options)
    before, s = post.mean, post.covariance(range(32), [c])[:, 0]
    post.condition([c], [y])
    residual = p["scale"] * (np.eye(4)[y] - oracle.softmax(before[c] / T_r))
    expected = before + np.outer(s / (s[c] + p["lam"]), residual)
    assert relative_error(post.mean, expected) <= 1e-10
    lp = oracle.log_softmax(post.mean[x] / 0.3)
    assert relative_error(predicted, np.array([(np.exp(lp) * lp).sum()])) <= 1e-10
    f = np.vstack([p["f_c"], p["f_x"]])
    moved = np.linalg.norm(post.mean[x] - f[x], axis=1).sum()
    assert relative_error(size, np.array([moved])) <= 1e-10


def test_residual_temperature_by_default():
    p = golden("cross_entropy")
    f = np.vstack([p["f_c"], p["f_x"]])
    phi = np.vstack([p["phi_c"], p["phi_x"]])
    settings = dict(loss="cross_entropy", label_scale=3.0)
    posts = [
        nf.Posterior.from_features(phi, f, None, None, None, **settings, **more)
        for more in ({}, dict(residual_temperature="auto"), dict(residual_temperature=2.0))
    ]
    posts.append(nf.Posterior.from_kernel(phi @ phi.T, None, None, f, None, None, **settings))
    for post in posts:
        assert post.residual_temperature == 2.0
        assert "residual_temperature=2>" in repr(post)
        post.condition([3, 4], [1, 0])
        assert relative_error(post.mean, posts[0].mean) <= 1e-9
    squared = nf.Posterior.from_features(phi, f, None, None, None)
    assert squared.residual_temperature == 1.0


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("name", ["plain", "more_labels_than_features", "unlabelled"])
def test_float32_stream(name, representation, anywhere):
    """A hundred labels one by one keep float32 close to float64."""
    p = golden(name)
    rng = np.random.default_rng(0)
    exact = posterior(p, representation)
    single = posterior(p, representation, np.float32, anywhere.put)
    for i, y in zip(rng.integers(0, 32, 100), rng.integers(0, 4, 100), strict=True):
        exact.condition([i], [y])
        single.condition([i], [y])
    assert relative_error(anywhere.host(single.mean), exact.mean) <= 1e-4
    assert np.abs(anywhere.host(single.variance) - exact.variance).max() <= 1e-5


@pytest.mark.parametrize("n", [0, 40])
def test_float32_features_survive_small_posterior_variances(n):
    """Labels leave 1e-5 of the variance: whitened float32 features keep it to single precision."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, 101) ** -2.0
    phi, f = rng.normal(size=(140, 100)) * spectrum, rng.normal(size=(140, 3))
    posts = []
    for dtype in (np.float64, np.float32):
        x = phi.astype(np.float32).astype(dtype)
        labels = f[100 : 100 + n], np.zeros(n, np.int64)
        post = nf.Posterior.from_features(x[:100], f[:100], x[100 : 100 + n], *labels, 1e-6)
        post.condition(np.arange(40), np.zeros(40, np.int64))
        post.extend(x[100:], f[100:])
        posts.append(post)
    assert np.median(posts[0].variance / (phi**2).sum(1)) < 1e-4
    np.testing.assert_allclose(posts[1].variance, posts[0].variance, rtol=1e-2 if n == 0 else 1e-4)
    np.testing.assert_allclose(posts[1].variance[100:], posts[0].variance[100:], rtol=1e-5)


@pytest.mark.parametrize("n", [0, 3, 20])
def test_new_points_are_like_old_ones(n):
    p = random_problem(2, n=n, d=16)
    phi, f = np.vstack([p["phi_c"], p["phi_x"]]), np.vstack([p["f_c"], p["f_x"]])
    whole = posterior(p)
    part = nf.Posterior.from_features(
        phi[:10], f[:10], p["phi_l"], p["f_l"], p["T"], p["lam"], labeled_indices=[1]
    )
    rng = np.random.default_rng(0)
    for _ in range(12):  # through the compact and the dense form of W
        i, y = rng.integers(0, 10, 2), rng.integers(0, 3, 2)
        whole.condition(i, y)
        part.condition(i, y)
    assert relative_error(part.predict(phi[10:], f[10:]), whole.mean[10:]) <= 1e-9
    labeled = part.labeled.tolist()
    assert part.extend(phi[10:], f[10:]) is None
    assert part.labeled.tolist() == labeled
    for post in (whole, part):
        post.condition([12, 3], [0, 2])
    for x, y in zip(state(whole)[:3], state(part)[:3], strict=True):
        assert relative_error(x, y) <= 1e-9


def test_long_features_stay_compact():
    """Features of 200 000 dimensions: nothing of size d x d is ever made."""
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(6, 200_000)).astype(np.float32)
    f, T = rng.normal(size=(6, 2)), np.eye(2)[[0, 1, 1]]
    post = nf.Posterior.from_features(phi[:5], f[:5], phi[3:], f[3:], T, ridge=100.0)
    K = (phi @ phi.T).astype(np.float64)
    kernel = nf.Posterior.from_kernel(K[:5, :5], K[3:, :5], K[3:, 3:], f[:5], f[3:], T, ridge=100.0)
    for p in (post, kernel):
        p.condition([0], [1])
    assert_same_state(post, kernel, 1e-4)
    post.extend(phi[5:], f[5:])
    assert len(nf.select(post, "expected_entropy", 3).indices) == 3


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_no_labels_at_all(representation):
    p = golden("unlabelled")
    phi, f = np.vstack([p["phi_c"], p["phi_x"]]), np.vstack([p["f_c"], p["f_x"]])
    K = kernel_of(p)
    if representation == "features":
        posts = [
            nf.Posterior.from_features(phi, f, *nothing)
            for nothing in (
                (None, None, None),
                (np.empty((0, 30)), np.empty((0, 4)), np.empty((0, 4))),
                (np.empty((0, 30)), None, np.empty(0, np.int64)),
            )
        ]
    else:
        posts = [
            nf.Posterior.from_kernel(K, None, None, f, None, None),
            nf.Posterior.from_kernel(K, np.empty((0, 32)), np.empty((0, 0)), f, None, []),
        ]
    for post in posts:
        np.testing.assert_array_equal(post.mean, f)
        assert relative_error(post.covariance(range(32), range(32)), K) <= 1e-12
        assert post.ridge == pytest.approx(1e-2 * np.trace(K) / 32)
        assert post.labeled.tolist() == []


def test_automatic_settings():
    p = golden("cross_entropy")
    phi, f = np.vstack([p["phi_c"], p["phi_x"]]), np.vstack([p["f_c"], p["f_x"]])
    labels = p["T"].argmax(1)
    post = nf.Posterior.from_features(phi, f, p["phi_l"], p["f_l"], labels, loss="cross_entropy")
    assert post.ridge == pytest.approx(1e-2 * (p["phi_l"] ** 2).sum(1).mean())
    own = p["f_l"][np.arange(len(labels)), labels]
    expected = (own - (p["f_l"].sum(1) - own) / 3).mean()
    assert post.label_scale == pytest.approx(max(1, expected))
    empty = nf.Posterior.from_features(phi, f, None, None, None, loss="cross_entropy")
    assert empty.label_scale == pytest.approx((f.max(1) - (f.sum(1) - f.max(1)) / 3).mean())
    flat = nf.Posterior.from_features(phi, 0 * f, None, None, None, loss="cross_entropy")
    assert flat.label_scale == 1
    squared = nf.Posterior.from_features(phi, f, p["phi_l"], p["f_l"], labels)
    assert squared.label_scale == 1


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_noise_of_labelled_points(representation):
    p = random_problem(4, n=6, d=20)
    noise = p["lam"] * np.array([1, 2, 3, 0.5, np.inf, np.inf])
    post = posterior(p, representation, noise=noise)
    part = {key: p[key][:4] for key in ("phi_l", "f_l", "T")} | dict(K_ll=p["K_ll"][:4, :4])
    same = posterior(p | part, representation, noise=noise[:4])
    assert_same_state(post, same)
    before = post.copy()
    post.condition([3], [1], [np.inf])
    np.testing.assert_array_equal(post.mean, before.mean)
    assert post.labeled.tolist() == [3]
    before.condition([3, 2], [1, 0], [np.inf, 0.1])
    post.condition([2], [0], [0.1])
    assert_same_state(post, before)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_regression_with_one_output(representation):
    p = random_problem(5, k=2)
    one = {key: p[key][:, :1] for key in ("f_l", "f_c", "f_x", "T")}
    post = posterior(p | one, representation)
    post.condition([0, 1], np.array([0.3, -2.0]))
    post.condition([2], np.array([[7.0]]))
    wide = posterior(p, representation)
    wide.condition([0, 1], np.array([[0.3, 0], [-2.0, 0]]))
    wide.condition([2], np.array([[7.0, 0]]))
    assert relative_error(post.mean[:, 0], wide.mean[:, 0]) <= 1e-12
    for criterion in ("variance_reduction", "epig"):
        np.testing.assert_array_equal(
            nf.select(post, criterion, 3).indices, nf.select(wide, criterion, 3).indices
        )
    for row in nf.criteria():
        if row.look_ahead or row.fisher:
            with pytest.raises(ValueError, match=r"two columns, \[0, logit\]"):
                nf.utilities(post, row.name)


def test_dense_precision_follows_the_conditioning():
    p = random_problem(6, n=10, d=40)
    assert posterior(p, "kernel", np.float32).covariance([0], [0]).dtype == np.float64
    close = dict(phi_l=np.vstack([p["phi_c"], p["phi_x"]])[:10])
    close["K_ll"] = close["phi_l"] @ close["phi_l"].T
    for lam, dtype in ((1e-3, "float32"), (1e-6, "float64")):
        post = posterior(p | close, "kernel", np.float32, ridge=lam)
        assert dtype in repr(post)


def rbf_posteriors(ridge, put=lambda a: a):
    """Float32 and float64 posteriors, without labels, of the same float32 numbers.

    The first of what `put` makes of them.
    """
    rng = np.random.default_rng(0)
    x, f = rng.normal(size=(300, 3)), rng.normal(size=(300, 3))
    K = np.exp(-((x[:, None] - x) ** 2).sum(2) / 2).astype(np.float32)
    return [
        nf.Posterior.from_kernel(there, None, None, f, None, None, ridge)
        for there in (put(K), K.astype(np.float64))
    ]


@pytest.mark.parametrize("calls", [1, 60])
def test_a_conditioned_float32_kernel_keeps_its_ranking(calls):
    """Labels leave 1e-6 of the kernel: what is subtracted first must not be rounded to float32."""
    single, exact = rbf_posteriors(1e-6)
    rng = np.random.default_rng(1)
    indices, classes = rng.permutation(300)[:60], rng.integers(0, 3, 60)
    for i in np.split(np.arange(60), calls):
        for post in (single, exact):
            post.condition(indices[i], classes[i])
    assert_same_state(single, exact, 1e-9)
    for criterion in ("variance_reduction", "epig", "emoc"):
        u, v = (nf.utilities(post, criterion) for post in (single, exact))
        assert relative_error(u, v) <= 1e-9
        np.testing.assert_array_equal(np.argsort(-u)[:20], np.argsort(-v)[:20])


@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
@pytest.mark.parametrize("criterion", ["variance_reduction", "epig", "emoc", "expected_entropy"])
def test_sequential_picks_from_a_float32_kernel(criterion, ridge, anywhere):
    """So must not what the picks of a batch subtract: of the ridge, or of noises below it."""
    single, exact = rbf_posteriors(ridge, anywhere.put)
    noise = np.full(300, 1e-6)
    u, v = (nf.select(post, criterion, 20, noise=noise) for post in (single, exact))
    assert anywhere.host(u.indices).tolist() == v.indices.tolist()
    assert relative_error(anywhere.host(u.utilities), v.utilities) <= 1e-9
    assert "float32" in repr(single)


COPIES = {
    "copy": nf.Posterior.copy,
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda post: pickle.loads(pickle.dumps(post)),
    "to": lambda post: post.to(np.empty(0)),
    "deepcopy.to": lambda post: copy.deepcopy(post).to(np.empty(0)),
}


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_copies_are_independent(representation, copied):
    p = golden("plain")
    post = posterior(p, representation)
    twin, same = COPIES[copied](post), posterior(p, representation)
    assert_same_state(COPIES[copied](twin), twin)
    further = twin.to(np.empty(0))
    further.condition([2], [1])
    assert_same_state(twin, same)
    post.mean[:] = 0
    post.variance[:] = 0
    post.condition([1], [1])
    assert_same_state(twin, same)
    twin.condition([1], [1])
    assert_same_state(twin, post)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["plain", "cross_entropy", "more_labels_than_features"])
def test_save_and_load(name, dtype, representation, tmp_path):
    post = posterior(golden(name), representation, dtype, labeled_indices=[7])
    post.condition([3], [1])
    post.save(tmp_path / "posterior")
    assert os.listdir(tmp_path) == ["posterior"]
    loaded = nf.Posterior.load(tmp_path / "posterior")
    for x, y in zip(state(post), state(loaded), strict=True):
        np.testing.assert_array_equal(x, y)
    assert repr(loaded) == repr(post)
    for each in (post, loaded):
        each.condition([2, 5], [0, 1])
        if representation == "features":
            phi = golden(name)["phi_l"].astype(dtype)
            each.extend(phi[:2], golden(name)["f_l"][:2])
    for x, y in zip(state(post), state(loaded), strict=True):
        np.testing.assert_array_equal(x, y)
    assert (
        nf.select(post, "emoc", 4).indices.tolist() == nf.select(loaded, "emoc", 4).indices.tolist()
    )


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_files_keep_the_residual_temperature(representation, tmp_path):
    """Versions that did not know it cannot read what they would take for another model."""
    path = tmp_path / "posterior.npz"
    for T_r in (1.0, 2.0):
        post = posterior(golden("cross_entropy"), representation, residual_temperature=T_r)
        post.save(path)
        with np.load(path) as archive:
            stored = dict(archive)
        assert stored["version"] == 3 and stored["residual_temperature"] == T_r
        loaded = nf.Posterior.load(path)
        assert loaded.residual_temperature == loaded.copy().residual_temperature == T_r
        for each in (post, loaded):
            each.condition([2], [1])
        np.testing.assert_array_equal(post.mean, loaded.mean)
    # A file of a version before.
    del stored["residual_temperature"]
    np.savez(path, **(stored | dict(version=np.array(2))))
    assert nf.Posterior.load(path).residual_temperature == 1.0
    for wrong in (0.0, np.nan, "hot"):
        np.savez(path, **(stored | dict(residual_temperature=np.array(wrong))))
        with pytest.raises(ValueError, match="is damaged: residual_temperature must be"):
            nf.Posterior.load(path)


def test_damaged_files(tmp_path):
    path = tmp_path / "posterior.npz"
    posterior(golden("plain")).save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:n] for n in (0, 10, len(whole) // 2, len(whole) - 1)]
    for at in rng.integers(0, len(whole), 60):
        damaged.append(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    original = nf.Posterior.load(path)
    for content in damaged:
        path.write_bytes(content)
        try:
            loaded = nf.Posterior.load(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:  # a flipped byte in a field of the archive that nobody reads
            assert_same_state(loaded, original, 0)
    np.savez(path, features=np.ones(3))
    with pytest.raises(ValueError, match="not a posterior"):
        nf.Posterior.load(path)
    np.save(path.with_suffix(".npy"), np.ones(3))
    with pytest.raises(ValueError, match=r"posterior\.npy is not a posterior saved by ntkfast$"):
        nf.Posterior.load(path.with_suffix(".npy"))
    np.savez(path, format=np.array([{}], dtype=object))  # a pickle, never opened
    with pytest.raises(ValueError, match="not a posterior"):
        nf.Posterior.load(path)
    with pytest.raises(FileNotFoundError):
        nf.Posterior.load(tmp_path / "nothing")


def test_stored_values_are_checked(tmp_path):
    path = tmp_path / "posterior.npz"
    posterior(golden("plain")).save(path)
    with np.load(path) as archive:
        stored = dict(archive)
    for change in (
        dict(mean=stored["mean"][:-1]),
        dict(psi=np.full_like(stored["psi"], np.nan)),
        dict(loss=np.array("hinge")),
        dict(ridge=np.array(-1.0)),
        dict(is_labeled=np.zeros(32)),
        dict(left=stored["left"][:, 1:]),
        dict(labels=np.array(-1)),
        dict(labels=np.array([3, 4])),
        dict(version=np.array("x")),
        dict(version=np.array(1.5)),
        dict(version=np.array([1])),
        dict(ridge=np.array([1.0, 2.0])),
    ):
        np.savez(path, **(stored | change))
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is damaged: "):
            nf.Posterior.load(path)
    for name in set(stored) - {"format"}:
        np.savez(path, **{key: value for key, value in stored.items() if key != name})
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is damaged: it holds no "):
            nf.Posterior.load(path)
    np.savez(path, **(stored | dict(version=np.array(99))))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} has version 99; .* up to 4$"):
        nf.Posterior.load(path)
    one = {key: stored[key][:, :1] for key in ("outputs", "mean", "theta")}
    np.savez(path, **(stored | one | dict(loss=np.array("cross_entropy"))))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is damaged: .* one output$"):
        nf.Posterior.load(path)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    post = posterior(golden("plain"))
    path = tmp_path / "posterior.npz"
    post.save(path)
    old = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        post.save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["posterior.npz"]


def test_saving_at_the_same_time(tmp_path, monkeypatch):
    """Threads of one process that write one file: each writes all of it, the last one stays."""
    posts = [posterior(golden(name)) for name in ("plain", "cross_entropy")]
    path = tmp_path / "posterior.npz"
    together, original = threading.Barrier(2, timeout=30), np.savez

    def savez(file, **arrays):
        together.wait()
        original(file, **arrays)
        together.wait()

    monkeypatch.setattr(np, "savez", savez)
    failed = []

    def save(post):
        try:
            post.save(path)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=save, args=(post,)) for post in posts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert os.listdir(tmp_path) == ["posterior.npz"]
    assert repr(nf.Posterior.load(path)) in map(repr, posts)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_saved_files_are_as_readable_as_any(tmp_path):
    posterior(golden("plain")).save(tmp_path / "posterior")
    (tmp_path / "other").touch()
    assert (tmp_path / "posterior").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_warning_when_labels_outnumber_a_quarter_of_the_features():
    p = random_problem(7, n=3, d=16)
    arguments = np.vstack([p["phi_c"], p["phi_x"]]), np.vstack([p["f_c"], p["f_x"]])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        post = nf.Posterior.from_features(*arguments, p["phi_l"], p["f_l"], p["T"])
        post.condition([0], [0])
        assert not caught
        post.condition([1], [0])
        post.condition([2], [0])
        nf.Posterior.from_features(
            *arguments, np.tile(p["phi_l"], (2, 1)), *[np.eye(3)[[0] * 6]] * 2
        )
    assert [w.category for w in caught] == [UserWarning] * 2
    assert all("quarter of the 16 feature" in str(w.message) for w in caught)
    assert all(w.filename == __file__ for w in caught)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_an_interrupted_update_is_whole(representation, monkeypatch):
    """Ctrl-C in the middle of the in-place part is delivered once the update is complete."""
    p = golden("plain")
    expected = posterior(p, representation)
    expected.condition([1, 2], [0, 1])
    name = "condition_features" if representation == "features" else "condition_dense"
    original = getattr(ops, name)

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        original(*arguments)

    post = posterior(p, representation)
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(ops, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        post.condition([1, 2], [0, 1])
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is handler
    assert_same_state(post, expected, 0)


def test_conditioning_in_another_thread():
    post, same = posterior(golden("plain")), posterior(golden("plain"))
    thread = threading.Thread(target=post.condition, args=([1], [0]))
    thread.start()
    thread.join()
    same.condition([1], [0])
    assert_same_state(post, same, 0)


def test_interrupted_scoring_changes_nothing(monkeypatch):
    p = golden("plain")
    post, same = posterior(p), posterior(p)
    original, calls = ops.score_features, []

    def interrupted(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(ops, "score_features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nf.select(post, "emoc", 5)
    assert_same_state(post, same, 0)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("step", ["built", "conditioned", "extended", "loaded"])
def test_prior_outputs_are_before_any_label(step, representation, tmp_path):
    """The trained model is F: literal regressions from a prior mean, and the changes of theirs."""
    rng = np.random.default_rng(3)
    phi, prior, ridge = rng.normal(size=(13, 20)) / 4, rng.normal(size=(13, 3)) / 4, 0.1
    K, classes = phi @ phi.T, rng.integers(3, size=13)
    labeled, N = [10, 11, 12], 10  # the others are the points

    def regression(points, classes):
        residual = np.eye(3)[classes] - prior[points]
        return prior + K[:, points] @ np.linalg.solve(
            K[np.ix_(points, points)] + ridge * np.eye(len(points)), residual
        )

    given = N if step != "extended" else 7  # the rest comes by `extend`
    targets = classes[labeled]
    rest = prior[:given], prior[labeled], targets, ridge
    if representation == "features":
        build, last = nf.Posterior.from_features, dict(features=phi[given:N])
        parts = phi[:given], rest[0], phi[labeled], *rest[1:]
    else:
        build = nf.Posterior.from_kernel
        parts = K[:given, :given], K[labeled, :given], K[np.ix_(labeled, labeled)], *rest
        last = dict(K_lv=K[labeled, given:N], K_uv=K[:given, given:N], K_vv=K[given:N, given:N])
    post = build(*parts, prior=True)
    if step != "built":
        post.condition([2, 4], classes[[2, 4]])
        labeled = [*labeled, 2, 4]
    if step == "extended":
        post.extend(outputs=prior[given:N], **last)
    if step == "loaded":
        post.save(tmp_path / "posterior")
        with np.load(tmp_path / "posterior") as archive:
            assert archive["version"] == 4  # earlier ntkfasts must not take it for what it is not
        post = nf.Posterior.load(tmp_path / "posterior").copy()
        post.condition([5], classes[[5]])
        labeled = [*labeled, 5]
    assert post.prior and ("prior=True" in repr(post)) and not build(*parts).prior

    F, P = regression(labeled, classes[labeled]), rng.dirichlet(np.ones(3), N)
    expected = {name: [] for name in ("label_flips", "emoc", "mlmoc")}
    for c in range(N):
        after = [regression([*labeled, c], [*classes[labeled], y])[:N] for y in range(3)]
        flips = [(G.argmax(1) != F[:N].argmax(1)).sum() for G in after]
        changes = [np.linalg.norm(G - F[:N], axis=1).sum() for G in after]
        expected["label_flips"].append(P[c] @ flips)
        expected["emoc"].append(P[c] @ changes)
        expected["mlmoc"].append(changes[F[c].argmax()])
    p = np.exp(F[:N] / 0.5)
    h = 1 - ((p / p.sum(1, keepdims=True)) ** 2).sum(1)
    S = post.covariance(range(N), range(N))
    expected["fisher_variance_reduction"] = h @ (S**2 / (S.diagonal() + ridge / h))
    for criterion, values in expected.items():
        options = dict(candidates=range(N), label_probs=P, temperature=0.5)
        found = nf.utilities(post, criterion, **options)
        np.testing.assert_allclose(found, values, rtol=1e-9, err_msg=criterion)


def test_prior_that_does_not_fit():
    p = golden("plain")
    with pytest.raises(TypeError, match=r"^prior must be True or False"):
        posterior(p, prior="yes")
    with pytest.raises(ValueError, match="prior=True is for squared loss; cross_entropy asks"):
        posterior(golden("cross_entropy"), prior=True)
