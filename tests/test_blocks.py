"""Matrix-valued kernels: posteriors with k x k blocks against literal refitting."""

import contextlib

import numpy as np
import pytest
import reference
from problems import REFITTED as NAMES
from problems import REPRESENTATIONS, random_problem, relative_error

import ntkfast as nf
from ntkfast._posterior import blocks, moments

with contextlib.suppress(ModuleNotFoundError):  # posteriors need none
    import torch

pytestmark = pytest.mark.filterwarnings("ignore:.*outnumber a quarter")

LOSSES = ("squared", "cross_entropy")
TEMPERATURE = 0.3
every_criterion = pytest.mark.parametrize("criterion", NAMES)
both = pytest.mark.parametrize("representation", REPRESENTATIONS)
losses = pytest.mark.parametrize("loss", LOSSES)


def problem(seed, *, N=9, n=3, k=3, d=25, loss="squared", lam=0.3):
    """Features of every output of N points and n labelled ones, and all that criteria read."""
    rng = np.random.default_rng(seed)
    C, X = np.arange(5), np.arange(2, N)
    return dict(
        phi=rng.normal(size=(N * k, d)) / np.sqrt(d),
        phi_l=rng.normal(size=(n * k, d)) / np.sqrt(d),
        f=rng.normal(size=(N, k)),
        f_l=rng.normal(size=(n, k)),
        T=rng.dirichlet(np.ones(k), n),
        lam=lam,
        noise=lam * rng.uniform(0.3, 3, n),
        loss=loss,
        scale=4.0 if loss == "cross_entropy" else 1.0,
        residual_temperature=2.0 if loss == "cross_entropy" else 1.0,
        candidates=C,
        evaluation=X,
        P=rng.dirichlet(np.ones(k), len(C)),
        v=rng.uniform(0.2, 1, len(X)),
        lam_c=lam * rng.uniform(0.3, 3, len(C)),
        Q=rng.dirichlet(np.ones(k), len(X)),
    )


def posterior(p, representation="features", dtype=np.float64, put=np.asarray, **settings):
    phi, phi_l = p["phi"], p["phi_l"]
    kept = ("loss", "noise", "residual_temperature")
    settings = dict(label_scale=p["scale"]) | {name: p[name] for name in kept} | settings
    labels = put(p["f"]), put(p["f_l"]), put(p["T"])
    if representation == "features":
        phi, phi_l = (put(a.astype(dtype)) for a in (phi, phi_l))
        return nf.Posterior.from_features(phi, labels[0], phi_l, *labels[1:], p["lam"], **settings)
    kernels = (phi @ phi.T, phi_l @ phi.T, phi_l @ phi_l.T)
    return nf.Posterior.from_kernel(
        *(put(K.astype(dtype)) for K in kernels), *labels, p["lam"], **settings
    )


def keywords(p, put=np.asarray):
    return dict(
        candidates=put(p["candidates"]),
        evaluation=put(p["evaluation"]),
        label_probs=put(p["P"]),
        weights=put(p["v"]),
        noise=put(p["lam_c"]),
        temperature=TEMPERATURE,
        log_loss_targets=put(p["Q"]),
    )


# --- Literal refitting ---


def rows(points, k):
    return np.concatenate([np.arange(i * k, i * k + k) for i in points] or [np.arange(0)])


def refit(p, points=(), residual=(), noise=()):
    """F (N, k) and S (N k, N k) from the labelled points and further ones, all solved at once."""
    (N, k), phi = p["f"].shape, p["phi"]
    known = p["T"] - p["f_l"] if p["loss"] == "squared" else np.zeros_like(p["T"])
    r = np.concatenate([known.ravel(), np.asarray(residual).ravel()])
    A = np.vstack([p["phi_l"], phi[rows(points, k)]])
    K = A @ A.T + np.diag(np.repeat(np.append(p["noise"], noise), k))
    cross = A @ phi.T
    return (
        p["f"] + (cross.T @ np.linalg.solve(K, r)).reshape(N, k),
        phi @ phi.T - cross.T @ np.linalg.solve(K, cross),
    )


def literal(criterion, p):
    """Utilities: a refit for every candidate and label."""
    f, X, v, lam_c = p["f"], p["evaluation"], p["v"], p["lam_c"]
    k = f.shape[1]
    if criterion == "fisher_variance_reduction":
        h = 1 - (reference.softmax(f / TEMPERATURE) ** 2).sum(1)
        v, lam_c = v * h[X], lam_c / h[p["candidates"]]
    _, before = refit(p)
    result = np.zeros(len(p["candidates"]))
    for i, c in enumerate(p["candidates"]):
        _, after = refit(p, [c], np.zeros(k), [lam_c[i]])
        parts = [rows([x], k) for x in X]
        if "variance_reduction" in criterion:
            result[i] = v @ [np.trace((before - after)[np.ix_(x, x)]) for x in parts] / k
            continue
        if criterion == "epig":
            information = [
                np.linalg.slogdet(S[np.ix_(x, x)] + p["lam"] * np.eye(k))[1]
                for S in (before, after)
                for x in parts
            ]
            information = np.subtract(*np.split(np.array(information), 2))
            result[i] = v @ information / (2 * k)
            continue
        P = np.eye(k)[f[c].argmax()] if criterion == "mlmoc" else p["P"][i]
        for y in range(k):
            if p["loss"] == "squared":
                r = np.eye(k)[y] - f[c]
            else:
                r = p["scale"] * (
                    np.eye(k)[y] - reference.softmax(f[c] / p["residual_temperature"])
                )
            f_plus = refit(p, [c], r, [lam_c[i]])[0][X]
            result[i] += P[y] * reference._label_value(
                criterion, f_plus, f[X], v, TEMPERATURE, p["Q"]
            )
    return result


@both
@losses
@every_criterion
@pytest.mark.parametrize("n, k", [(3, 3), (0, 4), (5, 2)])
def test_utilities_are_literal_refitting(cpu_or_gpu, criterion, loss, representation, n, k):
    p, put = problem(n, n=n, k=k, loss=loss), cpu_or_gpu.put
    post = posterior(p, representation, put=put)
    found = nf.utilities(post, criterion, **keywords(p, put))
    assert relative_error(cpu_or_gpu.host(found), literal(criterion, p)) <= 1e-9


@both
@losses
def test_state_is_literal_refitting(cpu_or_gpu, representation, loss):
    """Mean, covariance and variances; labels without information count for nothing."""
    p, host = problem(1, loss=loss), cpu_or_gpu.host
    F, S = refit(p)
    post = posterior(p, representation, put=cpu_or_gpu.put)
    assert relative_error(host(post.mean), F) <= 1e-10
    assert relative_error(host(post.covariance(range(9), range(9))), S) <= 1e-10
    assert relative_error(host(post.variance), np.diag(S).reshape(9, 3)) <= 1e-10
    part = host(post.covariance([4, 0], [8]))
    assert relative_error(part, S[np.ix_(rows([4, 0], 3), rows([8], 3))]) <= 1e-10
    p["noise"][1] = np.inf
    kept = p | {n: np.delete(p[n], 1, axis=0) for n in ("f_l", "T", "noise")}
    kept["phi_l"] = np.delete(p["phi_l"], rows([1], 3), axis=0)
    F, S = refit(kept)
    silent = posterior(p, representation, put=cpu_or_gpu.put)
    assert relative_error(host(silent.mean), F) <= 1e-10
    assert relative_error(host(silent.covariance(range(9), range(9))), S) <= 1e-10


@both
@pytest.mark.parametrize("b", [1, 4, 12])
def test_one_by_one_is_a_block_is_from_scratch(cpu_or_gpu, representation, b):
    p, put, host = problem(2, d=30), cpu_or_gpu.put, cpu_or_gpu.host
    rng = np.random.default_rng(b)
    indices, classes = rng.integers(0, 9, b), rng.integers(0, 3, b)
    noise = p["lam"] * rng.uniform(0.2, 5, b)
    block, single = (posterior(p, representation, put=put) for _ in range(2))
    block.condition(put(indices), put(classes), put(noise))
    for i in rng.permutation(b):
        single.condition([indices[i]], [classes[i]], noise[i : i + 1])
    F, S = refit(p, indices, np.eye(3)[classes] - p["f"][indices], noise)
    for post in (block, single):
        assert relative_error(host(post.mean), F) <= 1e-9
        assert relative_error(host(post.covariance(range(9), range(9))), S) <= 1e-9
        assert relative_error(host(post.variance), np.diag(S).reshape(9, 3)) <= 1e-9
        assert host(post.labeled).tolist() == sorted(set(indices.tolist()))
        if representation == "features":
            assert relative_error(host(post.predict(put(p["phi"]), put(p["f"]))), F) <= 1e-9


@both
@losses
@every_criterion
def test_sequential_is_conditioning_on_each_pick(cpu_or_gpu, criterion, loss, representation):
    """A batch is what `utilities` and `condition` on the pseudo-labels make of copies."""
    p, put, host = problem(3, loss=loss), cpu_or_gpu.put, cpu_or_gpu.host
    post, twin = (posterior(p, representation, put=put) for _ in range(2))
    before = host(post.mean), host(post.variance)
    options = keywords(p, put) | dict(label_probs=None)
    found = nf.select(post, criterion, 4, **options)
    lam_c = p["lam_c"]
    if criterion == "fisher_variance_reduction":
        lam_c = lam_c / (1 - (reference.softmax(p["f"] / TEMPERATURE) ** 2).sum(1)[:5])
    left = np.arange(5)
    for pick, utility in zip(host(found.indices), host(found.utilities), strict=True):
        part = options | dict(candidates=left, noise=p["lam_c"][left])
        u = host(nf.utilities(twin, criterion, **part))
        assert pick == left[u.argmax()]
        assert abs(utility - u.max()) <= 1e-9 * max(1, abs(u).max())
        label = host(twin.mean)[pick].argmax()
        twin.condition([pick], [label], lam_c[pick : pick + 1])
        left = np.setdiff1d(left, pick)
    np.testing.assert_array_equal(host(post.mean), before[0])
    np.testing.assert_array_equal(host(post.variance), before[1])


@both
@every_criterion
def test_top_is_the_sorted_utilities(cpu_or_gpu, criterion, representation):
    p, put, host = problem(4), cpu_or_gpu.put, cpu_or_gpu.host
    post = posterior(p, representation, put=put)
    u = host(nf.utilities(post, criterion, **keywords(p, put)))
    best = nf.select(post, criterion, 3, "top", **keywords(p, put))
    assert host(best.indices).tolist() == sorted(range(5), key=lambda i: (-u[i], i))[:3]


@both
@every_criterion
def test_panels_in_portions(cpu_or_gpu, criterion, representation, monkeypatch):
    """Memory for a few blocks: candidates and evaluation points come in portions."""
    p, put, host = problem(5, N=20), cpu_or_gpu.put, cpu_or_gpu.host
    options, post = keywords(p, put), posterior(p, representation, put=put)
    whole = host(nf.utilities(post, criterion, **options))
    batch = host(nf.select(post, criterion, 3, **options).indices)
    for size in (40 * 9 * 8,) if cpu_or_gpu.on_gpu else (1, 3 * 9 * 8, 40 * 9 * 8):
        monkeypatch.setattr(blocks, "PANEL_BYTES", size)
        found = host(nf.utilities(post, criterion, **options))
        assert relative_error(found, whole) <= 1e-12
        again = host(nf.select(post, criterion, 3, **options).indices)
        assert again.tolist() == batch.tolist()


@pytest.mark.parametrize("criterion", ["variance_reduction", "fisher_variance_reduction"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_moments_are_the_pairs(cpu_or_gpu, criterion, dtype, share, monkeypatch):
    N, put, host = 24 if cpu_or_gpu.on_gpu else 60, cpu_or_gpu.put, cpu_or_gpu.host
    p = problem(17, N=N, n=4, d=10, loss="cross_entropy")
    rng = np.random.default_rng(0)
    size = int(N * share)
    options = {name: np.sort(rng.permutation(N)[:size]) for name in ("candidates", "evaluation")}
    options |= dict(weights=rng.uniform(0.1, 1, size), noise=0.3 * rng.uniform(0.3, 3, size))
    options["noise"][rng.permutation(size)[:3]] = np.inf
    options = {name: put(value) for name, value in options.items()}
    post = posterior(p, dtype=dtype, put=put)
    if cpu_or_gpu.on_gpu:  # where so few points would not pay for them
        monkeypatch.setattr(type(post._space.engine), "float64_cost", 1.0)

    def scores():
        batch = nf.select(post, criterion, 9, **options)
        utilities = nf.utilities(post, criterion, **options)
        return tuple(map(host, (utilities, batch.utilities, batch.indices)))

    found = scores()
    with monkeypatch.context() as little:
        little.setattr(blocks, "PANEL_BYTES", 7 * 3 * 10 * 8)
        portions = host(nf.utilities(post, criterion, **options))
    assert relative_error(portions, found[0]) <= 1e-12
    paid_off = []
    pay_off = moments.pay_off
    monkeypatch.setattr(moments, "pay_off", lambda *a: paid_off.append(pay_off(*a)) and False)
    pairs = scores()
    assert paid_off == [True, True]
    tolerance = 1e-11 if dtype == np.float64 else 1e-5
    assert relative_error(found[0], pairs[0]) <= tolerance
    assert relative_error(found[1], pairs[1]) <= tolerance
    assert found[2].tolist() == pairs[2].tolist()


# --- Blocks K (x) I_k are the scalar kernel ---


@both
@losses
def test_kernel_times_identity_is_the_scalar_kernel(loss, representation):
    p = random_problem(6, N_c=8, N_x=9, k=3, loss=loss, scale=4.0 if loss != "squared" else 1.0)
    phi, f = np.vstack([p["phi_c"], p["phi_x"]]), np.vstack([p["f_c"], p["f_x"]])
    settings = dict(ridge=p["lam"], loss=loss, label_scale=p["scale"])
    labels = f, p["f_l"], p["T"]

    def build(each):
        if representation == "features":
            a, b = each(phi), each(p["phi_l"])
            return nf.Posterior.from_features(a, labels[0], b, *labels[1:], **settings)
        kernels = (phi @ phi.T, p["phi_l"] @ phi.T, p["phi_l"] @ p["phi_l"].T)
        return nf.Posterior.from_kernel(*map(each, kernels), *labels, **settings)

    scalar, full = build(lambda a: a), build(lambda a: np.kron(a, np.eye(3)))
    options = dict(
        candidates=np.arange(8),
        evaluation=np.arange(4, 17),
        weights=np.linspace(0.2, 1, 13),
        log_loss_targets=np.random.default_rng(0).dirichlet(np.ones(3), 13),
        temperature=0.3,
    )
    for _ in range(2):
        assert relative_error(full.mean, scalar.mean) <= 1e-10
        S = scalar.covariance(range(17), range(17))
        assert relative_error(full.covariance(range(17), range(17)), np.kron(S, np.eye(3))) <= 1e-9
        assert relative_error(full.variance, np.repeat(scalar.variance[:, None], 3, 1)) <= 1e-9
        for criterion in NAMES:
            u = [nf.utilities(post, criterion, **options) for post in (full, scalar)]
            assert relative_error(*u) <= 1e-9, criterion
            for mode in ("top", "sequential"):
                a, b = (nf.select(post, criterion, 5, mode, **options) for post in (full, scalar))
                assert relative_error(a.utilities, b.utilities) <= 1e-9, criterion
                if criterion != "label_flips":
                    assert a.indices.tolist() == b.indices.tolist(), criterion
        for post in (full, scalar):
            post.condition([1, 12], [0, 2], [0.1, 0.3])
        options["candidates"] = np.array([0, 2, 3, 5, 6, 7])


# --- EmpiricalNTK(outputs="full") ---


def network(seed=0):
    pytest.importorskip("torch")
    torch.manual_seed(seed)
    layers = torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)
    return torch.nn.Sequential(*layers).double()


def test_gram_is_features_of_a_network():
    net, X = network(), torch.randn(14, 4, dtype=torch.float64)
    ntk = nf.EmpiricalNTK(net, "full", sketch=None)
    f, y = ntk.outputs(X), torch.tensor([0, 1, 2, 2])
    L, U = X[:4], X[4:]
    options = dict(loss="cross_entropy")
    a = nf.Posterior.from_features(ntk.features(U), f[4:], ntk.features(L), f[:4], y, **options)
    kernels = ntk.gram(U), ntk.gram(L, U), ntk.gram(L)
    b = nf.Posterior.from_kernel(*kernels, f[4:], f[:4], y, **options)
    assert isinstance(a.variance, torch.Tensor) and a.variance.shape == (10, 3)
    assert a.ridge == pytest.approx(b.ridge)
    assert b.ridge == pytest.approx(1e-2 * float(torch.diagonal(kernels[2]).mean()))
    for post in (a, b):
        post.condition([0, 3], [1, 1])
    assert relative_error(a.mean, b.mean.numpy()) <= 1e-9
    options = dict(log_loss_targets=torch.full((10, 3), 1 / 3))
    for criterion in NAMES:
        u, w = (nf.utilities(post, criterion, **options) for post in (a, b))
        assert isinstance(u, torch.Tensor) and relative_error(u, w.numpy()) <= 1e-8
        picks = [nf.select(post, criterion, 3, **options) for post in (a, b)]
        assert relative_error(picks[0].utilities, picks[1].utilities.numpy()) <= 1e-8


@losses
def test_learner(loss):
    net, X = network(1), torch.randn(30, 4, dtype=torch.float64)
    learner = nf.LookAheadLearner(net, loss=loss, outputs="full", sketch=None)
    learner.fit(X[:6], [0, 1, 2, 0, 1, 2], X[6:])
    assert learner.posterior.variance.shape == (24, 3)
    picked = learner.query(4).indices
    assert len(set(picked.tolist())) == 4
    learner.update(picked, [0, 1, 2, 1])
    assert not set(learner.query(4).indices.tolist()) & set(picked.tolist())
    assert relative_error(learner.predict(X[6:]), learner.posterior.mean.numpy()) <= 1e-8


# --- The rest of a posterior ---


@both
def test_copies_and_files(representation, tmp_path):
    p = problem(7)
    post = posterior(p, representation, dtype=np.float32)
    post.condition([1, 2], [0, 1])
    twin = post.copy()
    post.save(tmp_path / "post.npz")
    loaded = nf.Posterior.load(tmp_path / "post.npz")
    assert repr(loaded) == repr(post)
    assert "3 outputs" in repr(post) and "of 3 x 3 blocks (float32), given 5 labels" in repr(post)
    for other in (twin, loaded, post.to(np.zeros(1))):
        for name in ("mean", "variance", "labeled"):
            np.testing.assert_array_equal(getattr(other, name), getattr(post, name))
        u = [nf.utilities(one, "emoc") for one in (other, post)]
        np.testing.assert_array_equal(*u)
        other.condition([3], [2])
        assert not np.array_equal(other.mean, post.mean)
    if representation == "features":
        loaded.extend(p["phi"][:6], p["f"][:2])
        assert loaded.variance.shape == (11, 3)


def test_a_label_of_blocks_is_k_numbers():
    with pytest.warns(UserWarning, match="3 labels x 3 outputs outnumber a quarter of the 35 feat"):
        posterior(problem(18, d=35))


def test_new_points_are_like_old_ones():
    p = problem(8)
    whole = posterior(p)
    part = posterior(p | dict(phi=p["phi"][:12], f=p["f"][:4]))
    for post in (whole, part):
        post.condition([0, 3], [1, 2])
    assert relative_error(part.predict(p["phi"][12:], p["f"][4:]), whole.mean[4:]) <= 1e-10
    part.extend(p["phi"][12:], p["f"][4:])
    for post in (whole, part):
        post.condition([6], [0])
    assert relative_error(part.mean, whole.mean) <= 1e-10
    assert relative_error(part.variance, whole.variance) <= 1e-10
    u = [nf.utilities(post, "epig") for post in (part, whole)]
    assert relative_error(*u) <= 1e-9


@both
@every_criterion
def test_float32(criterion, representation):
    p = problem(9, loss="cross_entropy", lam=0.5)
    options = keywords(p)
    exact = nf.utilities(posterior(p, representation), criterion, **options)
    single = nf.utilities(posterior(p, representation, np.float32), criterion, **options)
    assert relative_error(single, exact) <= 1e-5
    a, b = (
        nf.select(posterior(p, representation, dtype), criterion, 4, **options)
        for dtype in (np.float64, np.float32)
    )
    assert relative_error(b.utilities, a.utilities) <= 1e-4


@both
def test_small_noise_takes_float64(representation):
    """Beside a ridge of 1e-6 of the kernel, float32 products with the inverse would lose all."""
    p = problem(10, lam=1e-6)
    p["noise"][:], p["lam_c"][:] = 1e-6, 1e-6
    options = keywords(p)
    double = posterior(p, representation)
    single = posterior(p, representation, np.float32)
    if representation == "kernel":
        assert single._space.dtype == np.float64
    exact = nf.utilities(double, "mlmoc", **options)
    assert relative_error(exact, literal("mlmoc", p)) <= 1e-5
    forced = nf.utilities(single, "mlmoc", precision="float64", **options)
    np.testing.assert_array_equal(nf.utilities(single, "mlmoc", **options), forced)


def test_noise_without_end_changes_nothing():
    p = problem(11)
    for representation in REPRESENTATIONS:
        post = posterior(p, representation)
        options = keywords(p) | dict(noise=np.full(5, np.inf))
        for criterion in ("variance_reduction", "epig", "fisher_variance_reduction"):
            assert not nf.utilities(post, criterion, **options).any()
            assert not nf.select(post, criterion, 3, **options).utilities.any()
        mean = post.mean
        post.condition([1], [2], [np.inf])
        np.testing.assert_array_equal(post.mean, mean)


def test_automatic_settings():
    p = problem(12, loss="cross_entropy")
    settings = dict(loss="cross_entropy")
    post = nf.Posterior.from_features(p["phi"], p["f"], None, None, None, **settings)
    assert post.ridge == pytest.approx(1e-2 * (p["phi"] ** 2).sum(1).mean())
    assert post.labeled.tolist() == []
    K = p["phi"] @ p["phi"].T
    kernel = nf.Posterior.from_kernel(K, None, None, p["f"], None, None, **settings)
    assert kernel.ridge == pytest.approx(post.ridge)
    np.testing.assert_array_equal(kernel.mean, p["f"])
    marked = nf.Posterior.from_kernel(K, None, None, p["f"], None, None, labeled_indices=[2])
    assert marked.labeled.tolist() == [2]
    found = nf.select(marked, "variance_reduction", 8)
    assert sorted(found.indices.tolist()) == [0, 1, 3, 4, 5, 6, 7, 8]


# --- What does not fit ---

BAD_KERNELS = {
    "outputs of neither": (
        dict(f=np.zeros((10, 3))),
        r"outputs has shape \(10, 3\); expected \(27, k\) .* or \(N, k\) with N k = 27 for",
    ),
    "K_lu of points": (dict(K_lu=np.zeros((3, 9))), r"K_lu has shape \(3, 9\); expected \(9, 27\)"),
    "K_ll of no whole points": (
        dict(K_ll=np.eye(8)),
        "K_ll has 8 rows; expected k = 3 for each point",
    ),
    "not square": (dict(K_uu=np.zeros((27, 26))), r"expected \(N, N\), or \(N k, N k\) for blocks"),
    "K_ll not square": (dict(K_ll=np.zeros((9, 8))), r"expected \(n, n\), or \(n k, n k\) for"),
    "another number of labels": (dict(T=np.zeros(4, int)), r"targets has shape \(4,\); expected"),
    "noise of rows": (dict(noise=np.ones(9)), r"noise has shape \(9,\); expected \(3,\)"),
    "not symmetric": (dict(K_uu=np.triu(np.ones((27, 27)))), "K_uu is not symmetric: entry"),
}


@pytest.mark.parametrize("case", BAD_KERNELS)
def test_refused_kernels(case):
    changes, message = BAD_KERNELS[case]
    p = problem(13)
    phi, phi_l = p["phi"], p["phi_l"]
    a = p | dict(K_uu=phi @ phi.T, K_lu=phi_l @ phi.T, K_ll=phi_l @ phi_l.T) | changes
    with pytest.raises(ValueError, match=message):
        nf.Posterior.from_kernel(
            a["K_uu"], a["K_lu"], a["K_ll"], a["f"], a["f_l"], a["T"], noise=a["noise"]
        )


def test_refused_features():
    p = problem(14)
    with pytest.raises(ValueError, match=r"\(N, k\) with N k = 26 for k rows per point"):
        posterior(p | dict(phi=p["phi"][1:]))
    with pytest.raises(ValueError, match="labeled_features has 8 rows; expected k = 3 for each"):
        posterior(p | dict(phi_l=p["phi_l"][1:]))
    post = posterior(p)
    with pytest.raises(ValueError, match="features has 2 rows; expected k = 3 for each point"):
        post.extend(p["phi"][:2], p["f"][:2])
    with pytest.raises(ValueError, match=r"outputs has shape \(2, 3\); expected \(1, 3\)"):
        post.predict(p["phi"][:3], p["f"][:2])
    assert len(post) == 9
    with pytest.raises(TypeError, match="takes no features, but outputs and K_lv=, K_uv="):
        posterior(p, "kernel").predict(p["phi"], p["f"])


def test_the_wrong_kernel_names_the_point():
    p = problem(15)
    K = p["phi"] @ p["phi"].T
    with pytest.raises(ValueError, match=r"the variance of point [0-8] would be"):
        nf.Posterior.from_kernel(
            K, 9 * p["phi_l"] @ p["phi"].T, p["phi_l"] @ p["phi_l"].T, p["f"], p["f_l"], p["T"], 0.1
        )


# --- On a GPU ---


def assert_agree(found, expected, host, tolerance=1e-9):
    every = np.arange(len(expected))
    for x, y in (
        (found.mean, expected.mean),
        (found.variance, expected.variance),
        (found.covariance(every, every[::2]), expected.covariance(every, every[::2])),
    ):
        assert relative_error(host(x), y) <= tolerance
    np.testing.assert_array_equal(host(found.labeled), expected.labeled)


@both
def test_the_life_of_a_posterior(device, representation, tmp_path):
    """All that one can do there, on arrays of every library, as on the CPU."""
    p, put, host = problem(19, N=12, n=4), device.put, device.host
    post, same = posterior(p, representation, put=put), posterior(p, representation)
    assert repr(post) == repr(same)
    for criterion in NAMES:
        found, expected = (
            nf.select(each, criterion, 4, **keywords(p, there))
            for each, there in ((post, put), (same, np.asarray))
        )
        assert host(found.indices).tolist() == expected.indices.tolist(), criterion
        assert relative_error(host(found.utilities), expected.utilities) <= 1e-8, criterion
    post.condition(put([1, 3]), put([0, 2]), put([0.1, np.inf]))
    same.condition([1, 3], [0, 2], [0.1, np.inf])
    assert_agree(post, same, host)
    if representation == "features":
        predicted = post.predict(put(p["phi"][:6]), put(p["f"][:2]))
        assert relative_error(host(predicted), same.predict(p["phi"][:6], p["f"][:2])) <= 1e-9
        post.extend(put(p["phi"][:6]), put(p["f"][:2]))
        same.extend(p["phi"][:6], p["f"][:2])
    post.save(tmp_path / "post.npz")
    loaded = nf.Posterior.load(tmp_path / "post.npz")
    for other in (post, post.copy(), loaded.to(put(np.zeros(1)))):
        assert other._space.engine.on_gpu
        assert_agree(other, same, host)
    for other in (loaded, post.to(np.zeros(1))):
        assert_agree(other, same, np.asarray)


@pytest.mark.parametrize("precision", ["float64", "float32", "tf32", "bf16"])
@both
def test_precisions(device, representation, precision):
    if precision == "bf16" and device.kind.__module__ == "cupy":
        pytest.skip("cupy has no bfloat16")
    p, put = problem(20, N=40, k=4, loss="cross_entropy"), device.put
    post = posterior(p, representation, np.float32, put)
    same = posterior(p, representation, np.float32)
    options = dict(precision=precision)
    for criterion in NAMES:
        if representation == "kernel" and precision in ("tf32", "bf16"):
            with pytest.raises(ValueError, match=f'precision="{precision}" would lose the ranking'):
                nf.utilities(post, criterion, **options, **keywords(p, put))
            continue
        found = nf.utilities(post, criterion, **options, **keywords(p, put))
        exact = nf.utilities(same, criterion, **keywords(p), precision="float64")
        tolerance = {"float64": 1e-6, "float32": 5e-5, "tf32": 2e-2, "bf16": 2e-1}[precision]
        if criterion == "label_flips":  # a rounded output may decide one comparison
            tolerance = max(tolerance, 5e-2)
        assert relative_error(device.host(found), exact) <= tolerance, criterion


def test_no_covariance_on_a_gpu(device, monkeypatch):
    """The blocks of the points are checked there, and the message is that of a CPU."""
    p = problem(21)
    post = posterior(p, put=device.put)
    monkeypatch.setattr(
        blocks._FeatureScorer,
        "_variances",
        lambda self, points: -np.tile(np.eye(3), (len(points), 1, 1)),
    )
    for criterion, name in (("emoc", "variance"), ("epig", "evaluation_variance")):
        with pytest.raises(
            ValueError, match=rf"^{name}: block 0 \(point \d\) plus its noise is not"
        ):
            nf.utilities(post, criterion, candidates=[3], evaluation=[4])
