"""Criteria of coverage, and d_optimal, against their definitions in loops over numpy arrays."""

import tracemalloc

import numpy as np
import pytest
from problems import posterior, random_problem, relative_error

import ntkfast as nf
from ntkfast import selection
from ntkfast._posterior import coverage

pytestmark = pytest.mark.filterwarnings("ignore:.*outnumber a quarter")

HERDING = ("max_herding", "uncertainty_herding")
NAMES = (*HERDING, "prob_cover")
FORMS = [(name, similarity) for name in HERDING for similarity in ("rbf", "cosine")]
FORMS.append(("prob_cover", None))


# --- The definitions ---


def similarity_of(kind, a, b, radius):
    """k of two feature vectors."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    if kind == "cosine":
        return float(a @ b)
    distance = np.linalg.norm(a - b)
    return (
        float(distance < radius) if kind == "ball" else float(np.exp(-((distance / radius) ** 2)))
    )


def margin_uncertainty(logits, temperature):
    p = np.exp((logits - logits.max()) / temperature)
    p = np.sort(p / p.sum())
    return 1 - (p[-1] - p[-2])


def literal_utilities(kind, phi, candidates, evaluation, labeled, weights, radius):
    """sum_x v max(0, k(x, c) - max_l k(x, l)), one pair after the other."""
    result = np.zeros(len(candidates))
    for j, x in enumerate(evaluation):
        m = max([similarity_of(kind, phi[x], label, radius) for label in labeled], default=0.0)
        for i, c in enumerate(candidates):
            gain = similarity_of(kind, phi[x], phi[c], radius) - max(m, 0.0)
            result[i] += weights[j] * max(gain, 0.0)
    return result


def literal_batch(kind, phi, candidates, evaluation, labeled, weights, radius, b):
    picks, values = [], []
    for _ in range(b):
        covering = [*labeled, *phi[picks]]
        u = literal_utilities(kind, phi, candidates, evaluation, covering, weights, radius)
        u = [-1.0 if c in picks else u[i] for i, c in enumerate(candidates)]
        best = min((c for i, c in enumerate(candidates) if u[i] == max(u)))
        picks.append(int(best))
        values.append(max(u))
    return picks, values


def nearest_distance(labeled):
    """Root mean square of the distances to the nearest different one."""
    unit = [label / np.linalg.norm(label) for label in labeled]
    nearest = []
    for a in unit:
        others = [d for b in unit if (d := np.linalg.norm(a - b)) > 1e-6]
        nearest += [min(others)] if others else []
    return np.sqrt(np.mean(np.square(nearest))) if nearest else 1.0


def problem(seed, n=6, **settings):
    """Points 0 to 29, of which 3 and 17 get labels later; n labelled ones from the start."""
    settings = dict(loss="cross_entropy", scale=4.0, spread=2.0) | settings
    p = random_problem(seed, n=n, N_c=12, N_x=18, k=3, **settings)
    rng = np.random.default_rng(seed)
    p |= dict(candidates=rng.permutation(30)[:15], evaluation=rng.permutation(30)[:22])
    p["v"] = rng.uniform(0.2, 1, 22) * (rng.random(22) < 0.9)
    p["phi"], p["f"] = np.vstack([p["phi_c"], p["phi_x"]]), np.vstack([p["f_c"], p["f_x"]])
    return p


def conditioned(p, representation, dtype=np.float64, convert=lambda a: a):
    post = posterior(p, representation, dtype, convert)
    post.condition([3], [1])
    post.condition([17, 3], [0, 2])
    return post


def options_of(p, convert=lambda a: a):
    return {
        "candidates": convert(p["candidates"]),
        "evaluation": convert(p["evaluation"]),
        "weights": convert(p["v"]),
    }


def literal_settings(name, similarity, p, F, labeled, radius="auto", temperature=1.0):
    """Kind of k, weights and radius of a criterion, as its authors have them."""
    kind = similarity if name != "prob_cover" else "ball"
    v = p["v"]
    if name == "uncertainty_herding" and len(labeled):
        v = v * [margin_uncertainty(F[x], temperature) for x in p["evaluation"]]
    if radius == "auto":
        radius = nearest_distance(labeled) if name == "uncertainty_herding" else 1.0
    return kind, v, radius


@pytest.mark.parametrize("representation", ["features", "kernel"])
@pytest.mark.parametrize(("name", "similarity"), FORMS)
@pytest.mark.parametrize(("n", "d"), [(6, 12), (6, 40), (0, 12), (20, 5)])
def test_utilities_and_batches_are_the_definition(n, d, name, similarity, representation, anywhere):
    """With labels from the start and later, subsets and weights; from few features and many."""
    p = problem(n + d, n=n, d=d)
    post = conditioned(p, representation, convert=anywhere.put)
    labeled = [*p["phi_l"], p["phi"][3], p["phi"][17]]
    radius = 1.1 if name == "prob_cover" else "auto"
    options = options_of(p, anywhere.put) | dict(similarity=similarity, radius=radius)
    F = anywhere.host(post.mean)
    kind, v, r = literal_settings(name, similarity, p, F, labeled, radius)
    found = anywhere.host(nf.utilities(post, name, **options))
    expected = literal_utilities(kind, p["phi"], p["candidates"], p["evaluation"], labeled, v, r)
    assert np.abs(found - expected).max() <= 1e-8 * max(expected.max(), 1e-3)
    free = [c for c in p["candidates"] if c not in (3, 17)]
    picks, values = literal_batch(kind, p["phi"], free, p["evaluation"], labeled, v, r, 7)
    batch = nf.select(post, name, 7, **options)
    np.testing.assert_allclose(anywhere.host(batch.utilities), values, rtol=1e-7, atol=1e-10)
    same = next((i for i in range(7) if values[i] < 1e-9), 7)  # of nothing any is as good
    assert anywhere.host(batch.indices).tolist()[:same] == picks[:same]
    top = nf.select(post, name, 5, "top", **options)
    among = np.isin(p["candidates"], free)
    best = np.lexsort((p["candidates"][among], -expected[among]))[:5]
    np.testing.assert_allclose(
        anywhere.host(top.utilities), expected[among][best], rtol=1e-7, atol=1e-10
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_label_at_all(name):
    """Every point is a candidate and counts; the published radii."""
    p = problem(5, n=0)
    post = posterior(p)
    radius = 0.9 if name == "prob_cover" else "auto"
    kind = "ball" if name == "prob_cover" else "rbf"
    r = 0.9 if name == "prob_cover" else 1.0
    every = np.arange(30)
    found = nf.select(post, name, 6, radius=radius)
    picks, values = literal_batch(kind, p["phi"], every, every, [], np.ones(30), r, 6)
    assert found.indices.tolist() == picks
    np.testing.assert_allclose(found.utilities, values, rtol=1e-10)


@pytest.mark.parametrize("representation", ["features", "kernel"])
@pytest.mark.parametrize(("name", "similarity"), FORMS)
def test_float32(name, similarity, representation):
    p = problem(3)
    radius = 1.1 if name == "prob_cover" else "auto"
    options = options_of(p) | dict(similarity=similarity, radius=radius)
    exact = conditioned(p, representation)
    single = conditioned(p, representation, np.float32)
    found, expected = (nf.utilities(post, name, **options) for post in (single, exact))
    assert relative_error(found, expected) <= 2e-5
    forced = nf.utilities(single, name, precision="float64", **options)
    assert relative_error(forced, expected) <= 2e-5


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_temperature_of_uncertainty(loss):
    """Of labels from the start, which are none of the points."""
    p = problem(9, **(dict(loss=loss, scale=1.0, spread=0.5) if loss == "squared" else {}))
    post = posterior(p)
    for temperature in (None, 3.0):
        kind, v, r = literal_settings(
            "uncertainty_herding",
            "rbf",
            p,
            post.mean,
            p["phi_l"],
            temperature=temperature or {"cross_entropy": 1.0, "squared": 0.1}[loss],
        )
        expected = literal_utilities(
            kind, p["phi"], p["candidates"], p["evaluation"], p["phi_l"], v, r
        )
        found = nf.utilities(post, "uncertainty_herding", temperature=temperature, **options_of(p))
        assert relative_error(found, expected) <= 1e-9


# --- Products ---


def remaining_variance(x, given, noises):
    """Variance of the point with features x, labels with these noises given."""
    if not given:
        return x @ x
    given = np.array(given)
    k = given @ x
    return x @ x - k @ np.linalg.solve(given @ given.T + np.diag(noises), k)


def literal_reductions(p, candidates, h, given, noises, at_first):
    """sum_x v h (variance before - variance after a label of c with noise lam / h(c)) / (S + lam).

    S is the variance before the batch.
    """
    result = []
    for c in candidates:
        after = [*given, p["phi"][c]], [*noises, p["lam"] / h[c]]
        result.append(0.0)
        for x, v in zip(p["evaluation"], p["v"], strict=True):
            now, then = (
                remaining_variance(p["phi"][x], *labels) for labels in ((given, noises), after)
            )
            result[-1] += v * h[x] / (at_first[x] + p["lam"]) * (now - then)
    return np.array(result)


def literal_concentration(phi):
    """Mean squared distance to the nearest other point, as a share of that of two points."""
    unit = [x / np.linalg.norm(x) for x in phi]
    others = [[((a - b) ** 2).sum() for b in unit if b is not a] for a in unit]
    return min(np.mean([min(distances) for distances in others]) / np.mean(others), 1.0)


def probabilities_of(F, temperature):
    e = np.exp((F - F.max(1, keepdims=True)) / temperature)
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("representation", ["features", "kernel"])
@pytest.mark.parametrize(("n", "d"), [(6, 12), (6, 40), (0, 12), (20, 5)])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_fisher_herding_is_the_definition(loss, n, d, representation, anywhere, monkeypatch):
    """What is covered times what the variance loses, of each and in a batch.

    Of few features points have near neighbours, of many none: coverage counts, or entropy does.
    But of less than a hundred points that is not told.
    """
    squared = loss == "squared"
    p = problem(n + d, n=n, d=d, **(dict(loss=loss, scale=1.0, spread=0.5) if squared else {}))
    post = conditioned(p, representation, convert=anywhere.put)
    options = options_of(p, anywhere.put)
    T = 0.1 if squared else 1.0
    h = 1 - (probabilities_of(p["f"], T) ** 2).sum(1)
    labeled = [*p["phi_l"], p["phi"][3], p["phi"][17]]
    given = [*labeled, p["phi"][3]]  # twice, which covers nothing more
    noises = [p["lam"]] * len(given)
    F = anywhere.host(post.mean)
    w = np.clip(2 * literal_concentration(p["phi"][p["evaluation"][p["v"] > 0]]) - 0.5, 0, 1)
    assert {5: w < 0.1, 12: 0.1 < w < 0.5, 40: w > 0.5}[d], w
    if squared:  # the soft-max of the logarithms is what is normalised
        F = np.log(np.maximum(F, 1e-3))
    H = -(probabilities_of(F, 1.0) * np.log(probabilities_of(F, 1.0))).sum(1)
    kind, v, r = literal_settings("uncertainty_herding", "rbf", p, F, labeled)
    at_first = [remaining_variance(x, given, noises) for x in p["phi"]]

    def literal(candidates, picks, rounding=0.0, w=w):
        covered = rounding + literal_utilities(
            kind, p["phi"], candidates, p["evaluation"], [*labeled, *p["phi"][picks]], v, 0.5 * r
        )
        more = [p["lam"] / h[c] for c in picks]
        reduced = literal_reductions(
            p, candidates, h, [*given, *p["phi"][picks]], [*noises, *more], at_first
        )
        return reduced * covered ** (1 - w) * H[candidates] ** (2 * w)

    found = anywhere.host(nf.utilities(post, "fisher_herding", **options))
    assert relative_error(found, literal(p["candidates"], [], w=0)) <= 1e-8
    monkeypatch.setattr(selection, "_ENOUGH", (p["v"] > 0).sum())
    found = anywhere.host(nf.utilities(post, "fisher_herding", **options))
    expected = literal(p["candidates"], [])
    # The power makes much of what rounding leaves of nothing, of candidates that have labels.
    rounded = literal(p["candidates"], [], rounding=1e-14) - expected
    assert (np.abs(found - expected) <= rounded + 1e-8 * max(expected.max(), 1e-6)).all()
    batch = nf.select(post, "fisher_herding", 5, **options)
    free, picks = [c for c in p["candidates"] if c not in (3, 17)], []
    for value in anywhere.host(batch.utilities):
        u = literal(free, picks)
        assert value == pytest.approx(u.max(), rel=1e-6)
        picks.append(int(free.pop(int(u.argmax()))))
    assert anywhere.host(batch.indices).tolist() == picks


def test_fisher_herding_without_labels():
    """All is as open as any, whatever the outputs say: two factors, of the radius 1/2."""
    p = problem(4, n=0, d=40)  # distances are alike
    h = 1 - (probabilities_of(p["f"], 1.0) ** 2).sum(1)
    at_first = (p["phi"] ** 2).sum(1)
    for representation in ("features", "kernel"):
        post = posterior(p, representation)
        covered = literal_utilities(
            "rbf", p["phi"], p["candidates"], p["evaluation"], [], p["v"], 0.5
        )
        expected = covered * literal_reductions(p, p["candidates"], h, [], [], at_first)
        found = nf.utilities(post, "fisher_herding", **options_of(p))
        assert relative_error(found, expected) <= 1e-9
        assert nf.select(post, "fisher_herding", 1, **options_of(p)).utilities[0] == found.max()


def test_concentration_of_distances():
    """Of a part of many points; 1 where none has a neighbour, 0 where all are in one place."""
    rng = np.random.default_rng(3)

    def concentration(phi, evaluation=None):
        f = np.zeros((len(phi), 2))
        post = nf.Posterior.from_features(phi, f, None, None, None, ridge=1.0, loss="cross_entropy")
        kernel = coverage.kernel_before(
            post._space, post._given, np.empty(0, int), np.arange(len(phi)), has_labels=False
        )
        return coverage.concentration(
            kernel, np.arange(len(phi)) if evaluation is None else evaluation
        )

    phi = rng.normal(size=(60, 7))
    phi[40] = phi[7]
    assert concentration(phi) == pytest.approx(literal_concentration(phi), rel=1e-9)
    many = rng.normal(size=(1500, 5))
    many[:700] *= [9, 1, 1, 1, 1]  # the first are nearer to each other
    assert concentration(many) == pytest.approx(literal_concentration(many), rel=0.1)
    assert concentration(many, rng.permutation(1500)) == concentration(many)
    assert concentration(np.eye(20)) == pytest.approx(1, rel=1e-9)
    assert concentration(np.ones((20, 3), np.float32)) == 0
    assert concentration(np.ones((1, 3))) == 0
    nowhere = np.vstack([phi[:50], np.zeros((9, 7)), phi[50:]])
    assert concentration(nowhere) == pytest.approx(literal_concentration(phi), rel=1e-9)
    assert concentration(np.zeros((20, 3))) == 0
    one_place = np.outer(rng.uniform(1, 9, 20), rng.normal(size=4)).astype(np.float32)
    assert concentration(one_place) == 0  # but for rounding


@pytest.mark.parametrize("representation", ["features", "kernel", "disk"])
def test_fisher_herding_where_all_distances_are_alike(representation, tmp_path, monkeypatch):
    """Then w is 1, and coverage counts nothing; a label is about its own point alone."""
    monkeypatch.setattr(selection, "_ENOUGH", 14)
    rng = np.random.default_rng(0)
    variance, f = rng.uniform(0.5, 2, 14), rng.normal(size=(14, 3))
    f[9] = [1e4, 0, 0]  # settled: entropy and h are 0
    phi = np.diag(np.sqrt(variance))
    settings = dict(loss="cross_entropy", ridge=0.1, labeled_indices=[2, 5])
    if representation == "kernel":
        K = np.diag(variance)
        post = nf.Posterior.from_kernel(
            K, K[[2, 5]], K[[2, 5]][:, [2, 5]], f, f[[2, 5]], [0, 2], **settings
        )
    else:
        np.save(tmp_path / "phi.npy", phi)
        features = np.load(tmp_path / "phi.npy", mmap_mode="r") if representation == "disk" else phi
        post = nf.Posterior.from_features(features, f, phi[[2, 5]], f[[2, 5]], [0, 2], **settings)
    p = probabilities_of(f, 2.0)
    h, H = 1 - (p**2).sum(1), -(p * np.log(np.maximum(p, 1e-300))).sum(1)
    shares = h * variance**2 / ((variance + 0.1) * (variance + 0.1 / np.maximum(h, 1e-300)))
    free = np.setdiff1d(np.arange(14), [2, 5])
    expected = (shares * H**2)[free]
    found = nf.utilities(post, "fisher_herding", temperature=2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    order = np.lexsort((free, -expected))
    for mode in ("sequential", "top"):
        picked = nf.select(post, "fisher_herding", 12, mode, temperature=2.0)
        assert picked.indices.tolist() == free[order].tolist()
        np.testing.assert_allclose(picked.utilities, expected[order], rtol=1e-9)


# --- Ties, exhausted pools, what covers ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_copies_of_points(name, dtype):
    """Of equal candidates the lowest; a copy of what is covered adds exactly nothing."""
    rng = np.random.default_rng(0)
    places = rng.normal(size=(9, 331)).astype(dtype)
    of = rng.permutation(np.repeat(np.arange(9), 6))
    post = nf.Posterior.from_features(places[of], rng.normal(size=(54, 3)), None, None, None)
    picked = nf.select(post, name, 54, radius=0.5)
    first = picked.indices[:9]
    assert sorted(of[first]) == list(range(9))
    assert all(c == np.flatnonzero(of == of[c])[0] for c in first)
    assert (picked.utilities[:9] > 0).all() and (picked.utilities[9:] == 0).all()
    rest = np.setdiff1d(np.arange(54), first)
    assert picked.indices[9:].tolist() == rest.tolist()  # nothing is left to cover


def test_lengths_of_features_do_not_matter():
    p = problem(2)
    v = np.random.default_rng(1).uniform(0.5, 1, 30)  # two points that only cover each other tie
    lengths = np.exp(np.random.default_rng(0).normal(size=(30, 1)))
    for name in NAMES:
        found = [
            nf.select(
                nf.Posterior.from_features(scale * p["phi"], p["f"], None, None, None, ridge=1.0),
                name, 8, weights=v, radius=1.0,
            )
            for scale in (1.0, lengths, 1e25, 1e-25)
        ]  # fmt: skip
        for each in found[1:]:
            assert each.indices.tolist() == found[0].indices.tolist()
            np.testing.assert_allclose(each.utilities, found[0].utilities, rtol=1e-8)
    tiny = [
        nf.select(
            nf.Posterior.from_features(
                (scale * p["phi"]).astype(np.float32), p["f"], None, None, None, ridge=1.0
            ),
            "max_herding", 8, weights=v,
        )
        for scale in (1.0, 1e20, 1e-20)
    ]  # fmt: skip
    assert [each.indices.tolist() for each in tiny[1:]] == [tiny[0].indices.tolist()] * 2


def test_a_point_without_features_covers_nothing():
    p = problem(2, n=0)
    p["phi"][4] = 0
    post = nf.Posterior.from_features(p["phi"], p["f"], None, None, None)
    found = nf.utilities(post, "max_herding", similarity="cosine")
    assert found[4] == 0 and np.isfinite(found).all()


def test_many_picks_are_those_of_scoring_all_again(monkeypatch):
    """The lazy batch leaves candidates out that cannot be best, and only those."""
    rng = np.random.default_rng(1)
    phi = rng.normal(size=(12, 24))[rng.integers(0, 12, 400)] + 0.3 * rng.normal(size=(400, 24))
    post = nf.Posterior.from_features(phi, rng.normal(size=(400, 3)), None, None, None)
    scored, score = [], coverage.Cover.score
    monkeypatch.setattr(
        coverage.Cover, "score", lambda self, which: scored.append(len(which)) or score(self, which)
    )
    v = rng.uniform(0.5, 1, 400)  # two points that only cover each other would tie
    lazy = nf.select(post, "max_herding", 40, radius=0.7, weights=v)
    assert sum(scored) < 0.5 * 40 * 400
    unit = phi / np.linalg.norm(phi, axis=1, keepdims=True)
    K = np.exp((2 * unit @ unit.T - 2) / 0.7**2)
    m, free, picks = np.zeros(400), np.ones(400, bool), []
    for _ in range(40):
        gain = np.maximum(K - m, 0) @ v
        picks.append(int(np.where(free, gain, -1).argmax()))
        free[picks[-1]] = False
        m = np.maximum(m, K[picks[-1]])
    assert lazy.indices.tolist() == picks


def test_labels_of_a_call_and_from_the_start_cover_alike():
    """Whichever way a point got its label; labelled_indices as well, though they teach nothing."""
    p = problem(7, n=4)
    for representation in ("features", "kernel"):
        late = posterior(p | {k: p[k][:0] for k in ("phi_l", "f_l", "T")}
                         | dict(K_ll=p["K_ll"][:0, :0]), representation)  # fmt: skip
        extra = posterior(p, representation, labeled_indices=[2, 9])
        phi = p["phi"]
        found = nf.utilities(extra, "max_herding")
        labeled = [*p["phi_l"], phi[2], phi[9]]
        free = np.setdiff1d(np.arange(30), [2, 9])
        expected = literal_utilities("rbf", phi, free, np.arange(30), labeled, np.ones(30), 1.0)
        assert relative_error(found, expected) <= 1e-9
        late.condition([5, 6], [0, 1])
        expected = literal_utilities(
            "rbf", phi, np.setdiff1d(np.arange(30), [5, 6]), np.arange(30), phi[[5, 6]],
            np.ones(30), 1.0,
        )  # fmt: skip
        assert relative_error(nf.utilities(late, "max_herding"), expected) <= 1e-9


@pytest.mark.parametrize("representation", ["features", "kernel"])
@pytest.mark.parametrize("untold", [[1, 3], [0, 1, 2, 3, 4, 5]])
def test_labels_that_teach_nothing_cover_like_others(untold, representation, tmp_path):
    """An infinite noise is the limit of large ones, from the start as later."""
    p = problem(12)
    noise = np.full(6, 1e-2)
    posts = []
    for large in (np.inf, 1e200):
        noise[untold] = large
        post = posterior(p, representation, noise=noise)
        post.condition([3, 17], [1, 0], [0.01, large])
        posts.append(post)
    labeled = [*p["phi_l"], p["phi"][3], p["phi"][17]]
    expected = literal_utilities(
        "rbf", p["phi"], p["candidates"], p["evaluation"], labeled, p["v"], 1.0
    )
    path = tmp_path / "posterior.npz"
    posts[0].save(path)
    new = np.random.default_rng(0).normal(size=(2, p["phi"].shape[1]))
    phi, every = np.vstack([p["phi"], new]), np.arange(32)
    free = np.setdiff1d(every, [3, 17])
    grown = literal_utilities("rbf", phi, free, every, labeled, np.ones(32), 1.0)
    radii = []
    for post in (*posts, nf.Posterior.load(path)):
        found = nf.utilities(post, "max_herding", **options_of(p))
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)
        found = nf.utilities(post, "uncertainty_herding", **options_of(p))
        radii.append(found)
        if representation == "features":
            post.extend(new, np.zeros((2, 3)))
        else:
            post.extend(outputs=np.zeros((2, 3)), K_lv=p["phi_l"] @ new.T, K_uv=p["phi"] @ new.T,
                        K_vv=new @ new.T)  # fmt: skip
        np.testing.assert_allclose(nf.utilities(post, "max_herding"), grown, rtol=1e-8, atol=1e-10)
    for other in radii[1:]:
        np.testing.assert_allclose(other, radii[0], rtol=1e-8, atol=1e-10)


def test_labels_that_the_network_has_seen_make_classes_less_open():
    """Whether they are given, or only where they are."""
    rng = np.random.default_rng(0)
    phi, f, labeled = rng.normal(size=(20, 9)), 3 * rng.normal(size=(20, 3)), [1, 2, 3]
    settings = dict(loss="cross_entropy", labeled_indices=labeled, ridge=1.0)
    places = nf.Posterior.from_features(phi, f, None, None, None, **settings)
    given = nf.Posterior.from_features(
        phi,
        f,
        phi[labeled],
        f[labeled],
        f[labeled].argmax(1),
        **settings,
        residual_temperature=1e-3,
    )
    assert np.allclose(given.mean, f)
    found = [nf.utilities(post, "uncertainty_herding", radius=1.0) for post in (places, given)]
    assert np.allclose(*found, rtol=1e-6)


@pytest.mark.parametrize("representation", ["features", "kernel"])
def test_state_is_kept(representation, tmp_path):
    """By files, copies and extend; a file that does not know the labelled points is refused."""
    p = problem(4)
    post = conditioned(p, representation)
    expected = nf.utilities(post, "uncertainty_herding", **options_of(p))
    path = tmp_path / "posterior.npz"
    post.save(path)
    loaded = nf.Posterior.load(path)
    for each in (post.copy(), loaded, post.to(np.ones(1))):
        found = nf.utilities(each, "uncertainty_herding", **options_of(p))
        np.testing.assert_array_equal(found, expected)
    new = np.random.default_rng(0).normal(size=(2, p["phi"].shape[1]))
    phi = np.vstack([p["phi"], new])
    if representation == "features":
        loaded.extend(new, np.zeros((2, 3)))
    else:
        loaded.extend(outputs=np.zeros((2, 3)), K_lv=p["phi_l"] @ new.T, K_uv=p["phi"] @ new.T,
                      K_vv=new @ new.T)  # fmt: skip
    labeled = [*p["phi_l"], p["phi"][3], p["phi"][17]]
    free = np.setdiff1d(np.arange(32), [3, 17])
    grown = literal_utilities("rbf", phi, free, np.arange(32), labeled, np.ones(32), 1.0)
    assert relative_error(nf.utilities(loaded, "max_herding"), grown) <= 1e-9
    with np.load(path) as archive:
        stored = dict(archive)
    np.savez(path, **(stored | dict(version=np.array(2))))
    with pytest.raises(ValueError, match=r"comes from a file of an earlier version.*coverage"):
        nf.utilities(nf.Posterior.load(path), "max_herding")
    for name in ("holds_labeled", {"features": "labeled_features"}.get(representation,
                 "labeled_diagonal")):  # fmt: skip
        np.savez(path, **{key: value for key, value in stored.items() if key != name})
        with pytest.raises(ValueError, match="is damaged: it holds no"):
            nf.Posterior.load(path)


def test_the_posterior_does_not_change():
    p = problem(6)
    post = conditioned(p, "features", np.float32)
    before = post.mean, post.variance, post.covariance(range(30), range(30))
    for name in (*NAMES, "d_optimal"):
        nf.select(post, name, 5, radius=0.8)
    after = post.mean, post.variance, post.covariance(range(30), range(30))
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x, y)


def test_what_labels_have_left_of_float32():
    """Tiny noises take the labelled features out of psi: float32 cannot give them back."""
    p = problem(8, d=40)
    for dtype, noise in ((np.float32, 1e-9), (np.float64, 1e-9), (np.float32, 1e-3)):
        post = posterior(p, dtype=dtype, ridge=1e-3)
        post.condition([3, 17], [1, 0], [noise, noise])
        if dtype == np.float32 and noise < 1e-6:
            with pytest.raises(
                ValueError, match=r"labels have shrunk .* does not hold the kernel.*float64"
            ):
                nf.utilities(post, "max_herding", radius=0.5)
            continue
        labeled = [*p["phi_l"], p["phi"][3], p["phi"][17]]
        free = np.setdiff1d(np.arange(30), [3, 17])
        expected = literal_utilities(
            "rbf", p["phi"], free, np.arange(30), labeled, np.ones(30), 1.0
        )
        bound = 1e-7 if dtype == np.float64 else 1e-3
        assert relative_error(nf.utilities(post, "max_herding"), expected) <= bound


def test_what_a_float32_kernel_holds():
    """Its rounding is that of squared distances: small radii are refused, not guessed."""
    rng = np.random.default_rng(0)
    x, f = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    K = np.exp(-((x[:, None] - x) ** 2).sum(2) / 2).astype(np.float32)
    single, exact = (
        nf.Posterior.from_kernel(A[:30, :30], A[30:, :30], A[30:, 30:], f[:30], f[30:],
                                 np.arange(10) % 3, 0.01)
        for A in (K, K.astype(np.float64))
    )  # fmt: skip
    for radius in (1.0, 0.1, 0.02):
        u, v = (nf.utilities(post, "max_herding", radius=radius) for post in (single, exact))
        assert relative_error(u, v) <= 16 * 2.0**-24 / radius**2
    with pytest.raises(ValueError, match=r"^float32 does not hold the kernel .* radius of 0\.004"):
        nf.utilities(single, "max_herding", radius=0.004)
    nf.utilities(exact, "max_herding", radius=0.004)
    nf.utilities(single, "max_herding", similarity="cosine", radius=0.004)  # has no radius


def test_the_callers_features_may_change():
    """What is kept of labelled points is the posterior's own."""
    p = problem(5)
    mine = {key: p[key].copy() for key in ("phi_l", "phi")}
    for representation in ("features", "kernel"):
        kernels = [mine["phi"] @ mine["phi"].T, mine["phi_l"] @ mine["phi"].T,
                   mine["phi_l"] @ mine["phi_l"].T]  # fmt: skip
        arrays = [mine["phi"].copy(), mine["phi_l"].copy()]
        if representation == "features":
            post = nf.Posterior.from_features(arrays[0], p["f"], arrays[1], p["f_l"], p["T"])
        else:
            post = nf.Posterior.from_kernel(*kernels, p["f"], p["f_l"], p["T"])
        before = nf.utilities(post, "max_herding")
        for array in (*arrays, *kernels):
            array[...] = 7
        np.testing.assert_array_equal(nf.utilities(post, "max_herding"), before)


def test_memory_of_large_pools(monkeypatch):
    """From features neither pairs of points nor all columns of labelled ones are formed."""
    monkeypatch.setattr(coverage, "_COLUMN_BYTES", 1 << 20)
    N, n = 6000, 500
    rng = np.random.default_rng(0)
    phi, f = rng.normal(size=(N, 8)), rng.normal(size=(N, 3))
    post = nf.Posterior.from_features(
        phi, f, phi[:n], f[:n], np.zeros(n, np.int64), loss="cross_entropy"
    )
    evaluation = np.arange(0, N, 10)
    for name in NAMES:
        tracemalloc.start()
        picked = nf.select(post, name, 3, candidates=np.arange(n, N), evaluation=evaluation)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(set(picked.indices.tolist())) == 3
        assert peak < 8 * n * N / 3 < 8 * N * N


# --- Radii ---


def test_radius_of_uncertainty_herding():
    rng = np.random.default_rng(0)
    phi, f = rng.normal(size=(20, 8)), rng.normal(size=(20, 3))
    for labels, expected in (
        ([], 1.0),
        ([4], 1.0),
        ([4, 4, 9], nearest_distance(phi[[4, 9]])),
        ([4, 4, 9, 11], nearest_distance(phi[[4, 9, 11]])),
        ([4, 9, 11, 2], nearest_distance(phi[[4, 9, 11, 2]])),
    ):
        for from_start in (True, False):
            given = labels if from_start else []
            post = nf.Posterior.from_features(
                phi, f, phi[given], f[given], np.zeros(len(given), np.int64), loss="cross_entropy"
            )
            if not from_start and labels:
                post.condition(labels, np.zeros(len(labels), np.int64))
            found = nf.utilities(post, "uncertainty_herding", candidates=np.arange(20))
            same = nf.utilities(
                post, "uncertainty_herding", candidates=np.arange(20), radius=expected
            )
            np.testing.assert_allclose(found, same, rtol=1e-9, atol=1e-12)


def test_a_radius_counts_every_labelled_point_once():
    """By its features and by its number, from the start and later; those of length zero not."""
    rng = np.random.default_rng(1)
    phi, f, y = rng.normal(size=(60, 6)), rng.normal(size=(60, 3)), rng.integers(3, size=60)
    labeled = np.arange(12)
    for first in (12, 3):
        post = nf.Posterior.from_features(
            phi, f, phi[:first], f[:first], y[:first], ridge=1.0, loss="cross_entropy",
            labeled_indices=labeled[:first],
        )  # fmt: skip
        if first < 12:
            post.condition(labeled[first:], y[first:12])
        for name, share in (("uncertainty_herding", 1.0), ("fisher_herding", 0.5)):
            np.testing.assert_allclose(
                nf.utilities(post, name),
                nf.utilities(post, name, radius=share * nearest_distance(phi[labeled])),
                rtol=1e-9,
            )
    phi[0] = 0
    post = nf.Posterior.from_features(
        phi, f, phi[:1], f[:1], y[:1], ridge=1.0, loss="cross_entropy"
    )
    np.testing.assert_array_equal(
        nf.utilities(post, "uncertainty_herding"),
        nf.utilities(post, "uncertainty_herding", radius=1.0),
    )


def test_radius_of_a_collapsed_network():
    """Labels nearer to each other than float32 holds K after them."""
    rng = np.random.default_rng(1)
    y = rng.integers(5, size=1500)
    phi = (rng.normal(size=(5, 64))[y] + 0.003 * rng.normal(size=(1500, 64))).astype(np.float32)
    f = 8 * np.eye(5)[y]
    post = nf.Posterior.from_features(
        phi, f, phi[:500], f[:500], y[:500], loss="cross_entropy", labeled_indices=np.arange(500)
    )
    assert len(set(nf.select(post, "fisher_herding", 5).indices.tolist())) == 5
    with pytest.raises(ValueError, match="float32 does not hold the kernel before any label"):
        nf.select(post, "fisher_herding", 5, radius=1e-3)


def purity(phi, label, radius):
    """Share of points whose ball holds no point of another cluster."""
    unit = phi / np.linalg.norm(phi, axis=1, keepdims=True)
    pure = 0
    for x in range(len(unit)):
        inside = np.linalg.norm(unit - unit[x], axis=1) < radius
        pure += bool((label[inside] == label[x]).all())
    return pure / len(unit)


@pytest.mark.parametrize("representation", ["features", "kernel"])
def test_radius_of_prob_cover(representation):
    """Clusters apart are found, and the radius is the largest with 95 % of pure balls."""
    rng = np.random.default_rng(3)
    centres = np.eye(4, 10) * 3
    label = rng.integers(0, 4, 160)
    phi = centres[label] + 0.55 * rng.normal(size=(160, 10))
    f = np.zeros((160, 4))
    if representation == "features":
        post = nf.Posterior.from_features(phi, f, None, None, None)
    else:
        post = nf.Posterior.from_kernel(phi @ phi.T, None, None, f, None, None)
    kernel = coverage.kernel_before(
        post._space, post._given, np.empty(0, int), np.arange(160), has_labels=False
    )
    cluster = coverage._clusters(kernel, 4, np.random.default_rng(0))
    table = np.zeros((4, 4))
    np.add.at(table, (label, cluster), 1)
    assert (table.max(1) / table.sum(1)).min() > 0.95
    radius = coverage.largest_pure_radius(kernel, 4)
    below, above = (purity(phi, cluster, radius * share) for share in (1, 1 + 2e-5))
    assert below >= 0.95 > above
    found = nf.select(post, "prob_cover", 4)
    expected = nf.select(post, "prob_cover", 4, radius=radius)
    assert found.indices.tolist() == expected.indices.tolist()
    assert len(set(label[found.indices])) == 4


def test_clusters_are_kmeans():
    """Points of a cluster are nearest to its own mean."""
    rng = np.random.default_rng(5)
    phi = rng.normal(size=(80, 6))
    post = nf.Posterior.from_features(phi, np.zeros((80, 5)), None, None, None)
    kernel = coverage.kernel_before(
        post._space, post._given, np.empty(0, int), np.arange(80), has_labels=False
    )
    cluster = coverage._clusters(kernel, 5, np.random.default_rng(1))
    unit = phi / np.linalg.norm(phi, axis=1, keepdims=True)
    means = np.stack([unit[cluster == c].mean(0) for c in range(5)])
    nearest = np.linalg.norm(unit[:, None] - means, axis=2).argmin(1)
    assert (nearest == cluster).mean() > 0.97  # twenty rounds at most


# --- d_optimal ---


@pytest.mark.parametrize("representation", ["features", "kernel"])
def test_d_optimal(representation, anywhere):
    p = problem(11)
    post = conditioned(p, representation, convert=anywhere.put)
    S = anywhere.host(post.covariance(range(30), range(30)))
    free = np.array([c for c in p["candidates"] if c not in (3, 17)])
    lam = np.random.default_rng(0).uniform(0.01, 0.2, len(free))
    lam[2] = np.inf
    noise = dict(zip(free.tolist(), lam.tolist(), strict=True))
    options = dict(candidates=anywhere.put(free), noise=anywhere.put(lam))
    found = anywhere.host(nf.utilities(post, "d_optimal", **options))
    np.testing.assert_allclose(found, np.log1p(S[free, free] / lam), rtol=1e-9)
    batch = nf.select(post, "d_optimal", 6, **options)
    picks, total = [], 0.0
    for _ in range(6):
        values = {}
        for c in set(noise) - set(picks):
            B = [*picks, c]
            D = np.array([noise[i] for i in B])
            scale = 1 / np.sqrt(D)
            values[c] = np.linalg.slogdet(
                np.eye(len(B)) + scale[:, None] * S[np.ix_(B, B)] * scale
            )[1]
        best = max(values, key=lambda c: (values[c], -c))
        picks.append(best)
        total = values[best]
    assert anywhere.host(batch.indices).tolist() == picks
    assert anywhere.host(batch.utilities).sum() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("representation", ["features", "kernel"])
def test_d_optimal_of_blocks(representation):
    rng = np.random.default_rng(0)
    phi, f = rng.normal(size=(24, 10)), rng.normal(size=(8, 3))
    if representation == "features":
        post = nf.Posterior.from_features(phi, f, None, None, None, ridge=0.3)
    else:
        post = nf.Posterior.from_kernel(phi @ phi.T, None, None, f, None, None, ridge=0.3)
    K = phi @ phi.T

    def whole(B):
        rows = np.concatenate([np.arange(3 * c, 3 * c + 3) for c in B])
        return np.linalg.slogdet(np.eye(len(rows)) + K[np.ix_(rows, rows)] / 0.3)[1] / 3

    u = nf.utilities(post, "d_optimal")
    np.testing.assert_allclose(u, [whole([c]) for c in range(8)], rtol=1e-9)
    batch = nf.select(post, "d_optimal", 4)
    picks = []
    for _ in range(4):
        left = [c for c in range(8) if c not in picks]
        picks.append(max(left, key=lambda c: whole([*picks, c])))
    assert batch.indices.tolist() == picks
    assert batch.utilities.sum() == pytest.approx(whole(picks), rel=1e-9)


# --- Calibration ---


def test_calibration_temperature():
    """The first smallest expected calibration error, in loops."""
    rng = np.random.default_rng(0)
    for k in (2, 5):
        logits = 6 * rng.normal(size=(300, k))
        classes = (logits / 6 + rng.gumbel(size=(300, k))).argmax(1)
        errors = []
        for T in np.arange(10, 200) / 10:
            p = np.exp(logits / T - (logits / T).max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            error = 0.0
            for b in range(k):
                inside = (p.max(1) > b / k) & (p.max(1) <= (b + 1) / k)
                if inside.any():
                    right = (p.argmax(1) == classes)[inside].mean()
                    error += abs(right - p.max(1)[inside].mean()) * inside.mean()
            errors.append(error)
        found = nf.calibration_temperature(logits, classes)
        # The smallest but for the rounding of equal ones.
        assert errors[round(10 * found) - 10] <= min(errors) + 1e-12
        assert 3 < found < 12
    for arguments, error, message in (
        ((np.ones((3, 1)), [0, 0, 0]), ValueError, "outputs has shape .* two classes or more"),
        ((np.ones((3, 2)), [0, 1]), ValueError, "targets has shape"),
        ((np.ones((3, 2)), [0, 1, 2]), ValueError, "targets must be classes from 0 to 1"),
        ((np.ones((3, 2)), [0.0, 1.0, 1.0]), TypeError, "integer classes"),
        ((np.full((3, 2), np.nan), [0, 1, 1]), ValueError, "outputs contains NaN"),
    ):
        with pytest.raises(error, match=message):
            nf.calibration_temperature(*arguments)


# --- What does not fit ---


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("max_herding", dict(radius=0), "radius must be finite and > 0"),
        ("max_herding", dict(radius=np.inf), "radius must be finite and > 0"),
        ("emoc", dict(radius=-1), "radius must be finite and > 0"),
        ("max_herding", dict(similarity="ball"), 'similarity must be "rbf" or "cosine"'),
        ("max_herding", dict(precision="float16"), "precision must be"),
        ("max_herding", dict(precision="tf32"), "needs tensor cores"),
        ("uncertainty_herding", dict(temperature=0), "temperature must be"),
        ("prob_cover", dict(weights=-np.ones(30)), "weights must be >= 0"),
    ],
)
def test_what_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        nf.utilities(posterior(problem(1)), name, **arguments)


def test_what_has_no_meaning_is_refused():
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(24, 10))
    blocks = nf.Posterior.from_features(phi, rng.normal(size=(8, 3)), None, None, None)
    for name in (*NAMES, "fisher_herding"):
        with pytest.raises(ValueError, match=f"{name} is of a scalar kernel, .* k x k blocks"):
            nf.select(blocks, name, 2)
    one = nf.Posterior.from_features(phi, rng.normal(size=(24, 1)), None, None, None)
    with pytest.raises(ValueError, match="uncertainty_herding compares classes"):
        nf.select(one, "uncertainty_herding", 2)
    with pytest.raises(ValueError, match=r"balls of one class only, .* one output: give radius"):
        nf.select(one, "prob_cover", 2)
    assert len(nf.select(one, "prob_cover", 2, radius=0.5).indices) == 2
    assert len(nf.select(one, "max_herding", 2).indices) == 2
    on_each_other = nf.Posterior.from_features(phi[:1].repeat(9, 0), np.zeros((9, 3)), None, None,
                                               None)  # fmt: skip
    assert nf.select(on_each_other, "prob_cover", 2).utilities.tolist() == [9.0, 0.0]
    small = nf.Posterior.from_features(
        (1e-20 * phi).astype(np.float32), np.zeros((24, 2)), None, None, None, ridge=1.0
    )
    with pytest.raises(ValueError, match='"float32" cannot hold kernels'):
        nf.utilities(small, "max_herding", precision="float32")
