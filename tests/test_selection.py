"""Batches: sequential picks against refitting from scratch, and what must hold of any ranking."""

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from problems import REFITTED as NAMES
from problems import REPRESENTATIONS, keywords, posterior, random_problem, relative_error
from score_problems import check

import ntkfast as nf
from ntkfast._posterior import moments

SETTINGS = dict(
    squared=dict(trained=True, heteroscedastic=True),
    cross_entropy=dict(
        loss="cross_entropy", scale=4.0, spread=1.5, heteroscedastic=True, residual_temperature=2.0
    ),
)


def class_probabilities(outputs, loss):
    if loss == "cross_entropy":
        return reference.softmax(outputs)
    clipped = np.maximum(outputs, 1e-3)
    return clipped / clipped.sum(1, keepdims=True)


def softened(F, p):
    return reference.softmax(F / p["residual_temperature"])


def refitted_batch(p, criterion, b, k_given, rank=0):
    """Picks and utilities, everything solved anew from the kernel before each pick.

    `rank`: how many of the left candidates are better than each pick.
    """
    phi = np.vstack([p["phi_c"], p["phi_x"]])
    f = np.vstack([p["f_c"], p["f_x"]])
    N_c = len(p["f_c"])
    candidates, evaluation = np.arange(N_c), np.arange(N_c, len(f))
    labeled, noise = p["phi_l"], np.full(len(p["phi_l"]), p["lam"])
    residual = p["T"] - p["f_l"] if p["loss"] == "squared" else np.zeros_like(p["T"])
    weights, lam_c, compiled = p["v"], p["lam_c"], criterion
    if criterion == "fisher_variance_reduction":
        h = 1 - (reference.softmax(f / 0.3) ** 2).sum(1)
        weights, lam_c, compiled = (
            weights * h[evaluation],
            lam_c / h[candidates],
            "variance_reduction",
        )
    picks, values = [], []
    for _ in range(b):
        A = labeled @ labeled.T + np.diag(noise)
        cross = labeled @ phi.T
        S = phi @ phi.T - cross.T @ np.linalg.solve(A, cross)
        F = f + cross.T @ np.linalg.solve(A, residual)
        left = np.setdiff1d(candidates, picks)
        P = p["P"][left] if k_given else class_probabilities(F[left], p["loss"])
        utility = reference.score(
            compiled,
            S[np.ix_(left, evaluation)],
            left,
            evaluation,
            mean=F,
            outputs=f,
            variance=np.diag(S),
            noise=lam_c[left],
            ridge=p["lam"],
            label_probs=P,
            weights=weights,
            label_scale=p["scale"],
            loss=p["loss"],
            temperature=0.3,
            log_loss_targets=p["Q"],
            residual_temperature=p["residual_temperature"],
        )
        best = utility.argsort()[-1 - rank]
        c = int(left[best])
        picks.append(c)
        values.append(utility[best])
        expected = F[c] if p["loss"] == "squared" else softened(F[c], p)
        step = p["scale"] * (np.eye(f.shape[1])[F[c].argmax()] - expected)
        labeled = np.vstack([labeled, phi[c]])
        noise = np.append(noise, lam_c[c])
        # The residual that makes the joint fit take this step: the sum of all there was at c.
        residual = np.vstack([residual, step + F[c] - f[c]])
    return picks, np.array(values)


# All eight on the CPU; on a GPU, which shares everything but where the arrays lie, the four that
# hold every pair of a loss, a d and a P.
BATCHES = [(loss, d, k_given) for loss in SETTINGS for d in (5, 40) for k_given in (True, False)]
BATCHES_ON_GPU = [BATCHES[i] for i in (0, 3, 5, 6)]


@pytest.mark.parametrize(
    ("anywhere", "loss", "d", "k_given"),
    [
        *(("cpu", *batch) for batch in BATCHES),
        *(("double", *batch) for batch in BATCHES_ON_GPU),
        *(pytest.param("gpu", *batch, marks=pytest.mark.gpu) for batch in BATCHES_ON_GPU),
    ],
    indirect=["anywhere"],
)
@pytest.mark.parametrize("criterion", NAMES)
def test_sequential_is_refitting_after_each_pick(criterion, loss, d, k_given, anywhere):
    """From more points than features and the reverse, P given or following F."""
    p = random_problem(3, d=d, **SETTINGS[loss])
    options = keywords(p, anywhere.put)
    if not k_given:
        options["label_probs"] = None
    picks, values = refitted_batch(p, criterion, 5, k_given)
    for representation in REPRESENTATIONS:
        post = posterior(p, representation, convert=anywhere.put)
        before = post.mean, post.variance
        found = nf.select(post, criterion, 5, **options)
        indices = anywhere.host(found.indices).tolist()
        # Flips are counted: rounding decides between equals, and then batches go apart.
        same = 5 if indices == picks else next(i for i in range(5) if indices[i] != picks[i]) + 1
        assert same == 5 or criterion == "label_flips"
        assert relative_error(anywhere.host(found.utilities)[:same], values[:same]) <= 1e-9
        for now, then in zip((post.mean, post.variance), before, strict=True):
            np.testing.assert_array_equal(anywhere.host(now), anywhere.host(then))


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("criterion", ["expected_entropy", "variance_reduction", "epig"])
def test_choose(criterion, representation, anywhere):
    """Who chooses sees all that is left, each with its utility; here the second best is taken."""
    p = random_problem(3, d=5, N_x=60, **SETTINGS["squared"])
    picks, values = refitted_batch(p, criterion, 4, True, rank=1)
    post = posterior(p, representation, convert=anywhere.put)
    options, seen = keywords(p, anywhere.put), []

    def second(points, utilities):
        seen.append((points.copy(), utilities.copy()))
        return utilities.argsort()[-2]

    found = nf.select(post, criterion, 4, choose=second, **options)
    assert anywhere.host(found.indices).tolist() == picks
    assert relative_error(anywhere.host(found.utilities), values) <= 1e-9
    everything = anywhere.host(options["candidates"])
    for i, (points, utilities) in enumerate(seen):
        np.testing.assert_array_equal(np.sort(points), np.setdiff1d(everything, picks[:i]))
        assert utilities[points == picks[i]] == pytest.approx(values[i], rel=1e-9)

    seen.clear()
    top = nf.select(post, criterion, 4, "top", choose=second, **options)
    first = anywhere.host(nf.utilities(post, criterion, **options))
    order = everything[(-first).argsort(kind="stable")]
    np.testing.assert_array_equal(anywhere.host(top.indices), order[1:5])
    for points, utilities in seen:
        place = [everything.tolist().index(point) for point in points]
        np.testing.assert_array_equal(utilities, first[place])

    for wrong in (-1, len(everything)):
        for mode in ("top", "sequential"):
            with pytest.raises(
                ValueError, match=f"choose returned {wrong}; expected a position in"
            ):
                nf.select(post, criterion, 2, mode, choose=lambda *_, w=wrong: w, **options)
    for wrong in (None, 1.0, True):
        with pytest.raises(TypeError, match=f"choose returned {wrong}; expected the position of"):
            nf.select(post, criterion, 2, choose=lambda *_, w=wrong: w, **options)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("criterion", ["max_herding", "prob_cover", "d_optimal"])
def test_choose_among_what_picks_have_left(criterion, representation):
    """Every round shows the utilities that labels of the picks so far would leave."""
    p = random_problem(5, d=6, N_x=60, **SETTINGS["squared"])
    post, seen = posterior(p, representation), []

    def second(points, utilities):
        seen.append((points.copy(), utilities.copy()))
        return utilities.argsort()[-2]

    radius = dict(radius=0.7) if criterion != "d_optimal" else {}
    found = nf.select(post, criterion, 4, choose=second, **radius)
    for i, (points, utilities) in enumerate(seen):
        twin = post.copy()
        if i:
            twin.condition(found.indices[:i], np.zeros(i, int))
        expected = nf.utilities(twin, criterion, points, **radius)
        np.testing.assert_allclose(utilities, expected, rtol=1e-9, atol=1e-12)
        assert found.utilities[i] == utilities[points == found.indices[i]]
        assert (utilities > found.utilities[i]).sum() <= 1


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("criterion", NAMES)
def test_float32_batches_agree(criterion, representation, anywhere):
    p = random_problem(11, n=8, N_c=30, N_x=40, d=20, **SETTINGS["cross_entropy"])
    exact = nf.select(posterior(p, representation), criterion, 6, **keywords(p))
    for dtype, precision in (
        (np.float32, anywhere.like_float32(np.float32)),
        (np.float64, dict(precision="float32")),
        (np.float32, dict(precision="float64")),
    ):
        post = posterior(p, representation, dtype, anywhere.put)
        other = nf.select(post, criterion, 6, **precision, **keywords(p, anywhere.put))
        assert relative_error(anywhere.host(other.utilities), exact.utilities) <= 1e-4
        if criterion != "label_flips":
            assert anywhere.host(other.indices).tolist() == exact.indices.tolist()


@pytest.mark.parametrize("criterion", ["variance_reduction", "fisher_variance_reduction"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_moments_are_the_pairs(criterion, dtype, share, monkeypatch):
    p = random_problem(5, n=10, N_c=60, N_x=70, d=8, k=4, loss="cross_entropy", spread=2.0)
    post = posterior(p, dtype=dtype)
    rng = np.random.default_rng(0)
    candidates, evaluation = (rng.permutation(130)[: int(130 * share)] for _ in range(2))
    options = dict(candidates=candidates, evaluation=evaluation)
    options["weights"] = rng.uniform(0.1, 1, len(options["evaluation"]))
    paid_off = []
    pay_off = moments.pay_off
    monkeypatch.setattr(moments, "pay_off", lambda *a: paid_off.append(pay_off(*a)) or paid_off[-1])
    u, picked = nf.utilities(post, criterion, **options), nf.select(post, criterion, 15, **options)
    assert paid_off == [True, True]
    monkeypatch.setattr(moments, "pay_off", lambda *a: False)
    tolerance = 1e-11 if dtype == np.float64 else 1e-5
    assert relative_error(nf.utilities(post, criterion, **options), u) <= tolerance
    pairs = nf.select(post, criterion, 15, **options)
    assert relative_error(pairs.utilities, picked.utilities) <= tolerance
    assert pairs.indices.tolist() == picked.indices.tolist()


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("ratio", [0.9e5, 1e8])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_batches_where_labels_leave_little(dtype, ratio, k):
    """More picks than features: S falls by `ratio`, and every pick is still the best there is."""
    rng, N = np.random.default_rng(0), 40
    phi = rng.normal(size=(N * k, 4)).astype(dtype)
    ridge = float((phi**2).sum(1).max() / ratio)
    outputs = np.zeros((N, 2 if k == 1 else k))
    post = nf.Posterior.from_features(phi, outputs, None, None, None, ridge)
    picked = nf.select(post, "variance_reduction", 15)
    S, left = (phi.astype(np.longdouble) @ phi.T).reshape(N, k, N, k), np.ones(N, bool)
    for i, found in zip(picked.indices, picked.utilities, strict=True):
        u = np.zeros(N)
        for c in np.flatnonzero(left):
            A = (S[c, :, c] + ridge * np.eye(k)).astype(float)
            across = S[c].reshape(k, -1).astype(float)
            u[c] = (across * np.linalg.solve(A, across)).sum() / k
        assert u[i] >= (1 - 1e-4) * u.max()
        assert abs(found / u[i] - 1) <= 1e-3
        A = S[i, :, i] + ridge * np.eye(k)
        inverse = np.linalg.inv(A.astype(float)).astype(np.longdouble)
        inverse = inverse @ (2 * np.eye(k) - A @ inverse)  # one Newton step, for long double
        across = S[i].reshape(k, -1)
        S = S - (across.T @ inverse @ across).reshape(S.shape)
        left[i] = False


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("criterion", NAMES)
def test_top_is_the_sorted_utilities(criterion, representation):
    p = random_problem(6, N_c=12, **SETTINGS["squared"])
    post = posterior(p, representation)
    u = nf.utilities(post, criterion, **keywords(p))
    best = nf.select(post, criterion, 4, "top", **keywords(p))
    order = sorted(range(12), key=lambda i: (-u[i], i))[:4]
    assert best.indices.tolist() == order
    np.testing.assert_array_equal(best.utilities, u[order])


@given(seed=st.integers(0, 10**6), data=st.data())
def test_order_of_the_arguments_does_not_matter(seed, data):
    """Permuting the points, the candidates and the evaluation points permutes the utilities."""
    p = random_problem(seed, heteroscedastic=True)
    representation = data.draw(st.sampled_from(REPRESENTATIONS))
    criterion = data.draw(st.sampled_from([n for n in NAMES if n != "label_flips"]))
    u = nf.utilities(posterior(p, representation), criterion, **keywords(p))
    rng = np.random.default_rng(seed)
    c, x = rng.permutation(len(p["f_c"])), rng.permutation(len(p["f_x"]))
    m = rng.permutation(len(p["f_l"]))
    k = p["T"].shape[1]
    y = rng.permutation(k) if criterion != "mlmoc" else np.arange(k)
    shuffled = p | dict(
        phi_c=p["phi_c"][c],
        f_c=p["f_c"][c][:, y],
        lam_c=p["lam_c"][c],
        P=p["P"][c][:, y],
        phi_x=p["phi_x"][x],
        f_x=p["f_x"][x][:, y],
        v=p["v"][x],
        Q=p["Q"][x][:, y],
        phi_l=p["phi_l"][m],
        f_l=p["f_l"][m][:, y],
        T=p["T"][m][:, y],
        K_ll=p["K_ll"][np.ix_(m, m)],
    )
    found = nf.utilities(posterior(shuffled, representation), criterion, **keywords(shuffled))
    assert relative_error(found, u[c]) <= 1e-9


@given(seed=st.integers(0, 10**6))
def test_features_and_kernel_agree(seed):
    rng = np.random.default_rng(seed)
    p = random_problem(
        seed,
        n=int(rng.integers(0, 9)),
        d=int(rng.integers(1, 20)),
        k=int(rng.integers(2, 5)),
        loss=rng.choice(["squared", "cross_entropy"]),
        spread=2.0,
    )
    a, b = (posterior(p, representation) for representation in REPRESENTATIONS)
    for criterion in NAMES:
        if criterion == "label_flips":
            continue
        options = keywords(p)
        u, v = (nf.utilities(post, criterion, **options) for post in (a, b))
        assert relative_error(u, v) <= 1e-8


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("mode", ["top", "sequential"])
@pytest.mark.parametrize("criterion", NAMES)
def test_never_a_labelled_point_nor_one_twice(criterion, mode, representation):
    p = random_problem(8)
    post = posterior(p, representation, labeled_indices=[0, 9])
    post.condition([4], [1])
    options = dict(log_loss_targets=np.full((16, 3), 1 / 3))
    whole = nf.select(post, criterion, 13, mode, **options)
    assert sorted(whole.indices) == sorted(set(range(16)) - {0, 4, 9})
    # The same points among the candidates are left out, with the rows that belong to them.
    options |= dict(candidates=np.arange(10), label_probs=p["P"][np.arange(10) % 7])
    some = nf.select(post, criterion, 7, mode, **options)
    assert sorted(some.indices) == [1, 2, 3, 5, 6, 7, 8]
    left = np.array([1, 2, 3, 5, 6, 7, 8])
    options |= dict(candidates=left, label_probs=p["P"][left % 7])
    again = nf.select(post, criterion, 7, mode, **options)
    assert some.indices.tolist() == again.indices.tolist()
    with pytest.raises(ValueError, match="batch_size is 8, but only 7"):
        nf.select(post, criterion, 8, mode, **options)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("mode", ["top", "sequential"])
@pytest.mark.parametrize("criterion", NAMES)
def test_ties_go_to_the_lowest_point(criterion, mode, representation):
    """Three copies of every candidate; the batch takes first copies as long as they differ."""
    p = random_problem(9, N_c=6)
    thrice = dict(phi_c=np.tile(p["phi_c"], (3, 1)), f_c=np.tile(p["f_c"], (3, 1)))
    post = posterior(p | thrice, representation)
    options = dict(evaluation=np.arange(18, 27), log_loss_targets=p["Q"])
    chosen = np.random.default_rng(0).permutation(18)
    picked = nf.select(post, criterion, 1, mode, candidates=chosen, **options)
    assert picked.indices[0] < 6
    top = nf.select(post, criterion, 18, "top", candidates=chosen, **options)
    u = nf.utilities(post, criterion, candidates=np.arange(18), **options)
    assert top.indices.tolist() == sorted(range(18), key=lambda i: (-u[i], i))


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_masks_and_default_sets(representation):
    p = random_problem(10)
    post = posterior(p, representation, labeled_indices=np.arange(16) < 3)
    u = nf.utilities(post, "epig")
    assert len(u) == 13
    mask = np.zeros(16, bool)
    mask[[5, 3, 8]] = True
    np.testing.assert_array_equal(nf.utilities(post, "epig", mask), u[[0, 2, 5]])
    np.testing.assert_array_equal(
        nf.utilities(post, "epig", evaluation=mask),
        nf.utilities(post, "epig", evaluation=[3, 5, 8]),
    )
    assert nf.select(post, "epig", 2, candidates=mask).indices.tolist()[0] in (3, 5, 8)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("criterion", NAMES)
def test_infinite_noise_means_no_information(criterion, representation):
    p = random_problem(12, **SETTINGS["squared"])
    post = posterior(p, representation)
    options = keywords(p) | dict(noise=np.full(7, np.inf))
    u = nf.utilities(post, criterion, **options)
    assert np.isfinite(u).all()
    if not nf.criteria()[NAMES.index(criterion)].look_ahead:
        np.testing.assert_array_equal(u, 0)
    picked = nf.select(post, criterion, 7, **options)
    if criterion not in ("mlmoc", "emoc"):  # which compare with f, not with F
        assert np.ptp(picked.utilities) <= 1e-12 * max(1, np.abs(u).max())


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_all_zero_and_repeated_points(representation):
    p = random_problem(13)
    zero = dict(phi_c=np.vstack([np.zeros((1, 12)), p["phi_c"][1:]]))
    zero["phi_l"] = np.vstack([p["phi_l"][:3], p["phi_l"][:2]])
    zero["K_ll"] = zero["phi_l"] @ zero["phi_l"].T
    post = posterior(p | zero, representation)
    for criterion in NAMES:
        u = nf.utilities(post, criterion, **keywords(p))
        assert np.isfinite(u).all()
        picked = nf.select(post, criterion, 7, **keywords(p))
        assert len(set(picked.indices)) == 7
    assert nf.utilities(post, "variance_reduction", **keywords(p))[0] == 0


def test_certain_classes_carry_no_fisher_information():
    p = random_problem(14, loss="cross_entropy", spread=1.0)
    p["f_c"][:, 0] += 1e4
    post = posterior(p)
    u = nf.utilities(post, "fisher_variance_reduction")
    assert (u[:7] == 0).all()
    assert (u[7:] > 0).all()
    assert len(nf.select(post, "fisher_variance_reduction", 16).indices) == 16


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("criterion", NAMES)
def test_extreme_logits(criterion, representation):
    """Of the same numbers in float32 and float64: all that rounding does not decide is right."""
    row = nf.criteria()[NAMES.index(criterion)]
    for scale in (1.0, 1e4):
        p = random_problem(15, loss="cross_entropy", spread=1e4, scale=scale, lam=1e-4)
        options = keywords(p)
        for dtype in (np.float32, np.float64):
            rounded = lambda a, dtype=dtype: a.astype(dtype).astype(a.dtype)  # noqa: E731
            post = posterior(p, representation, dtype, rounded)
            exact = posterior(p, representation, np.float64, rounded)
            kw = options | dict(mean=exact.mean, variance=exact.variance, ridge=p["lam"])
            kw |= dict(outputs=rounded(np.vstack([p["f_c"], p["f_x"]])), label_scale=scale)
            kw |= dict(loss="cross_entropy")
            c, x = kw["candidates"], kw["evaluation"]
            if row.fisher:
                h = 1 - (reference.softmax(kw["outputs"]) ** 2).sum(1)
                with np.errstate(divide="ignore"):
                    kw |= dict(weights=kw["weights"] * h[x], noise=kw["noise"] / h[c])
            prior = np.linalg.norm(np.vstack([p["phi_c"], p["phi_x"]]), axis=1)
            u = nf.utilities(post, criterion, **options)
            size = np.outer(prior[c], prior[x])
            check(u, row.compiled, exact.covariance(c, x), kw, dtype, size=size)
            picked = nf.select(post, criterion, 3, **options)
            assert np.isfinite(picked.utilities).all()
            assert relative_error(picked.utilities[:1], u.max()) <= 1e-5


@pytest.mark.parametrize("scale", [1e25, 1e20, 1e-20, 1e-25])
@pytest.mark.parametrize("criterion", NAMES)
def test_units_of_the_features_do_not_matter(criterion, scale):
    """Float32 features whose squares float32 cannot hold: "auto" computes in float64."""
    rng = np.random.default_rng(0)
    phi, f = rng.normal(size=(40, 16)), rng.normal(size=(40, 3))
    q = np.full((40, 3), 1 / 3)
    scaled = (phi * scale).astype(np.float32)
    post = nf.Posterior.from_features(scaled, f, None, None, None)
    same = nf.Posterior.from_features(scaled.astype(np.float64) / scale, f, None, None, None)
    options = dict(log_loss_targets=q)
    u, v = nf.utilities(post, criterion, **options), nf.utilities(same, criterion, **options)
    units = scale**2 if criterion in ("variance_reduction", "fisher_variance_reduction") else 1
    assert relative_error(u / units, v) <= 1e-9
    if criterion != "label_flips":  # counts: rounding decides between equals
        found, expected = (nf.select(each, criterion, 4, **options) for each in (post, same))
        assert found.indices.tolist() == expected.indices.tolist()


def test_table_of_criteria():
    table = nf.criteria()
    text = str(table)
    assert max(map(len, text.splitlines())) <= 110
    for row in table:
        assert row.name in text and row.formula in text
        assert row.compiled in (*nf.ops.criteria(), "")
