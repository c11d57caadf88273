"""What rounding leaves of a posterior: small ridges, repeated labels, float32 kernels, units.

The oracles compute with 60 digits, or in float64 with the same float32 numbers.
"""

import decimal

import numpy as np
import pytest
from problems import relative_error

import ntkfast as nf

pytestmark = pytest.mark.filterwarnings("ignore:.*outnumber a quarter")
UNIT = 2.0**-24


def inverse(matrix):
    """Gauss-Jordan, of a positive definite one."""
    n = len(matrix)
    both = np.concatenate([matrix, np.eye(n, dtype=int)], 1)
    for i in range(n):
        both[i] /= both[i, i]
        others = np.arange(n) != i
        both[others] -= both[others, i, None] * both[i]
    return both[:, n:]


def refitted(phi, f, labeled, f_labeled, T, noise):
    """F and S with 60 digits: phi M^-1 Phi^T D^-1 r and phi M^-1 phi^T, M = I + Phi^T D^-1 Phi."""
    with decimal.localcontext(decimal.Context(prec=60)):
        phi, f, labeled, residual, noise = (
            np.vectorize(decimal.Decimal, otypes=[object])(array)
            for array in (phi, f, labeled, T, noise)
        )
        residual = residual - np.vectorize(decimal.Decimal, otypes=[object])(f_labeled)
        weighted = labeled.T / noise
        across = phi @ inverse(weighted @ labeled + np.eye(labeled.shape[1], dtype=int))
        F, S = f + across @ (weighted @ residual), across @ phi.T
    return F.astype(float), S.astype(float)


def labelled_again(n, d, repeats, consistent, rank=None):
    """Fifteen points, the last n of them labelled so many times."""
    rng = np.random.default_rng(n + 100 * d)
    phi = rng.normal(size=(15, rank or d))
    if rank:
        phi = phi @ rng.normal(size=(rank, d)) / np.sqrt(rank)
    f, which = rng.normal(size=(15, 3)), np.repeat(np.arange(15 - n, 15), repeats)
    classes = rng.integers(0, 3, len(which))
    if consistent:
        classes = np.repeat(rng.integers(0, 3, n), repeats)
    return phi, f, which, np.eye(3)[classes]


SIZES = [(4, 20), (8, 20), (10, 12), (6, 8), (12, 5)]


@pytest.mark.parametrize("ridge", [1e-12, 1e-10, 1e-8, 1e-5, 1e-2, 1e2])
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_repeated_labels(n, d, ridge):
    """In one call; n < d / 2, between, and n > d; labels that agree, and that do not."""
    for repeats, consistent in [(1, True), (2, False), (5, True), (5, False), (10, False)]:
        phi, f, which, T = labelled_again(n, d, repeats, consistent)
        noise = np.full(len(which), ridge)
        F, S = refitted(phi, f, phi[which], f[which], T, noise)
        fitted = nf.Posterior.from_features(phi, f, phi[which], f[which], T, ridge)
        conditioned = nf.Posterior.from_features(phi, f, None, None, None, ridge)
        conditioned.condition(which, T)
        posts = [fitted, conditioned]
        if n <= d:  # else K is singular, and known to rounding errors only
            K = phi @ phi.T
            K = (K + K.T) / 2
            kernels = K, K[which], K[np.ix_(which, which)]
            posts.append(nf.Posterior.from_kernel(*kernels, f, f[which], T, ridge))
            posts.append(nf.Posterior.from_kernel(K, None, None, f, None, None, ridge))
            posts[-1].condition(which, T)
        for post in posts:
            assert relative_error(post.mean, F) <= 1e-10
            # Beside the ridge, as S stands in all that is computed from it.
            assert np.abs(post.covariance(range(15), range(15)) - S).max() <= (
                1e-10 * np.abs(S).max() + 1e-14 * (phi**2).sum(1).max()
            )
        assert relative_error(fitted.predict(phi, f), F) <= 1e-10


@pytest.mark.parametrize("ridge", [1e-12, 1e-10, 1e-6, 1e-2])
@pytest.mark.parametrize(("n", "d", "rank"), [(12, 16, 5), (12, 10, 5), (12, 26, 5)])
def test_features_of_lower_rank(n, d, rank, ridge):
    """No two points are equal, and yet the labels' kernel matrix is singular."""
    phi, f, which, T = labelled_again(n, d, 1, True, rank)
    T = f[which] + phi[which] @ np.random.default_rng(0).normal(size=(d, 3))  # can be fitted
    F, _ = refitted(phi, f, phi[which], f[which], T, np.full(n, ridge))
    post = nf.Posterior.from_features(phi, f, phi[which], f[which], T, ridge)
    assert relative_error(post.mean, F) <= 1e-9


def test_repeated_labels_of_their_own_noises():
    phi, f, which, T = labelled_again(4, 12, 3, False)
    noise = 1e-9 * np.random.default_rng(0).uniform(0.1, 10, len(which))
    F, S = refitted(phi, f, phi[which], f[which], T, noise)
    post = nf.Posterior.from_features(phi, f, phi[which], f[which], T, 1.0, noise=noise)
    assert relative_error(post.mean, F) <= 1e-10
    assert np.abs(post.covariance(range(15), range(15)) - S).max() <= 1e-12


def test_one_call_after_another():
    """What is left of S beside the ridge is a difference: u max K / ridge, times the conflict."""
    for ridge in (1e-10, 1e-8, 1e-6, 1e-4):
        phi, f, which, T = labelled_again(6, 8, 5, False)
        F, _ = refitted(phi, f, phi[which], f[which], T, np.full(len(which), ridge))
        bound = 2.0**-53 * (phi**2).sum(1).max() / ridge
        for representation in ("features", "kernel"):
            post = nf.Posterior.from_features(phi, f, None, None, None, ridge)
            if representation == "kernel":
                post = nf.Posterior.from_kernel(phi @ phi.T, None, None, f, None, None, ridge)
            for turn in range(5):
                post.condition(which[turn::5], T[turn::5])
            assert np.abs(post.mean - F).max() <= 20 * bound


@pytest.mark.parametrize("representation", ["features", "kernel"])
def test_the_callers_arrays_never_change(representation):
    phi, f, which, T = labelled_again(12, 8, 2, False)
    K = phi @ phi.T
    given = [phi, f, phi[which], f[which], T]
    if representation == "kernel":
        given = [K, K[which], K[np.ix_(which, which)], f, f[which], T]
    before = [array.copy() for array in given]
    make = nf.Posterior.from_features if representation == "features" else nf.Posterior.from_kernel
    post = make(*given, 1e-10)
    post.condition([0, 0], [1, 2])
    for array, kept in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, kept)


# --- float32 kernels ------------------------------------------------------------------------------


def float32_kernel(seed, labels):
    """A float32 kernel of 200 points and so many labelled ones, largest entry 1."""
    rng = np.random.default_rng(seed)
    x, f = rng.normal(size=(200 + labels, 3)), rng.normal(size=(200 + labels, 3))
    K = np.exp(-((x[:, None] - x) ** 2).sum(2) / 2).astype(np.float32)
    return K, f, np.arange(labels) % 3


def both_types(make, K):
    """Posteriors that keep S in float32 and in float64, of the same float32 numbers."""
    single, exact = make(K), make(K.astype(np.float64))
    assert "float32" in repr(single) and "float64" in repr(exact)
    return single, exact


RATIOS = [1, 10, 100, 1000, 2500, 9900]


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_float32_covariance_is_rounded_once(ratio):
    for seed, labels in ((0, 1), (1, 30), (2, 150)):
        K, f, y = float32_kernel(seed, labels)
        N = len(K) - labels

        def fit(K, N=N, f=f, y=y):
            return nf.Posterior.from_kernel(
                K[:N, :N], K[N:, :N], K[N:, N:], f[:N], f[N:], y, 1 / ratio
            )

        single, exact = both_types(fit, K)
        S, expected = (post.covariance(range(N), range(N)) for post in (single, exact))
        assert (np.abs(S - expected) <= UNIT * np.abs(expected) + 1e-12).all()
        np.testing.assert_array_equal(single.mean, exact.mean)
        np.testing.assert_array_equal(single.variance, exact.variance)


@pytest.mark.parametrize("ratio", RATIOS)
def test_every_later_call_rounds_once_more(ratio):
    """Each by u S, which the labels after it carry on like a change of the kernel."""
    K, f, _ = float32_kernel(3, 0)
    single, exact = both_types(
        lambda K: nf.Posterior.from_kernel(K, None, None, f, None, None, 1 / ratio), K
    )
    for calls in range(1, 13):
        indices = np.arange(7 * calls, 7 * calls + 7)
        for post in (single, exact):
            post.condition(indices, indices % 3)
        bound = UNIT * np.sqrt(calls * (ratio + 3))
        for found, expected in zip(
            *((post.covariance(range(200), range(200)), post.variance) for post in (single, exact)),
            strict=True,
        ):
            assert np.abs(found - expected).max() <= bound
        assert relative_error(single.mean, exact.mean) <= 2 * UNIT * ratio


CRITERIA = [  # coverage knows no ridge: its rounding is that of distances
    row.name for row in nf.criteria() if "log_loss_targets" not in row.needs and not row.coverage
]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("ratio", RATIOS)
def test_utilities_of_a_float32_kernel(criterion, ratio):
    """By no more than u max K / ridge of the largest, but for the arithmetic of float32 itself."""
    bound = UNIT * (ratio + 10)
    for seed in range(3):
        K, f, y = float32_kernel(seed, 60)
        N = len(K) - 60

        def fitted(K, f=f, y=y, N=N):
            return nf.Posterior.from_kernel(
                K[:N, :N], K[N:, :N], K[N:, N:], f[:N], f[N:], y, 1 / ratio
            )

        def conditioned(K, f=f, N=N):
            post = nf.Posterior.from_kernel(K, None, None, f, None, None, 1 / ratio)
            for i in range(0, 60, 12):
                post.condition(np.arange(N + i, N + i + 12), np.arange(12) % 3)
            return post

        for make in (fitted, conditioned):
            u, v = (nf.utilities(post, criterion, precision="auto") for post in both_types(make, K))
            if (
                criterion == "label_flips"
            ):  # counts: where a decision is a tie it may fall either way
                assert np.mean(np.abs(u - v) > bound * np.abs(v).max()) <= 0.02
            else:
                assert relative_error(u, v) <= bound


@pytest.mark.parametrize("criterion", ["variance_reduction", "epig", "emoc", "expected_entropy"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_batches_of_a_float32_kernel(criterion, ratio):
    for labels in (0, 60):
        K, f, y = float32_kernel(4, labels)
        N = 200

        def fitted(K, f=f, y=y, labels=labels, N=N):
            if labels == 0:
                return nf.Posterior.from_kernel(K, None, None, f, None, None, 1 / ratio)
            blocks = K[:N, :N], K[N:, :N], K[N:, N:]
            return nf.Posterior.from_kernel(*blocks, f[:N], f[N:], y, 1 / ratio)

        u, v = (nf.select(post, criterion, 40).utilities for post in both_types(fitted, K))
        assert relative_error(u, v) <= UNIT * (ratio + 10)


# --- Units ----------------------------------------------------------------------------------------


def scaled(representation, scale, dtype=np.float64, ridge="auto"):
    phi, f, which, T = labelled_again(6, 8, 1, True)
    phi = (scale * phi).astype(dtype)
    if representation == "features":
        return nf.Posterior.from_features(phi, f, phi[which], f[which], T, ridge)
    K = phi.astype(np.float64) @ phi.T.astype(np.float64)
    K = ((K + K.T) / 2).astype(dtype)
    return nf.Posterior.from_kernel(K, K[which], K[np.ix_(which, which)], f, f[which], T, ridge)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("representation", ["features", "kernel"])
def test_units_do_not_change_picks(representation, criterion):
    """The two criteria that reduce variances are in units of the kernel, the others have none."""
    candidates = np.arange(9)
    plain = scaled(representation, 1.0)
    expected = nf.select(plain, criterion, 5, candidates=candidates)
    for exponent in (-196, -100, -30, 30, 100, 196):
        post = scaled(representation, 2.0**exponent)
        unit = 4.0**exponent if "variance_reduction" in criterion else 1.0
        found = nf.select(post, criterion, 5, candidates=candidates)
        np.testing.assert_array_equal(found.indices, expected.indices)
        assert relative_error(found.utilities / unit, expected.utilities) <= 1e-9
        assert relative_error(post.mean, plain.mean) <= 1e-9
        assert relative_error(post.variance / 4.0**exponent, plain.variance) <= 1e-9


@pytest.mark.parametrize("criterion", ["variance_reduction", "epig", "emoc"])
def test_small_float32_features(criterion):
    expected = nf.select(scaled("features", 1.0, np.float32), criterion, 5)
    found = nf.select(scaled("features", 1e-30, np.float32), criterion, 5)
    np.testing.assert_array_equal(found.indices, expected.indices)


def test_numbers_that_would_vanish_are_refused():
    for scale, dtype in ((1e-150, np.float64), (1e-70, np.float64), (1e-35, np.float32)):
        with pytest.raises(ValueError, match=r"^features: K\(x, x\) is at most .* are too small"):
            scaled("features", scale, dtype)
    for scale, dtype in ((1e-150, np.float64), (1e-17, np.float32)):
        with pytest.raises(ValueError, match=r"^kernel: K\(x, x\) is at most .* are too small"):
            scaled("kernel", scale, dtype)
    for representation in ("features", "kernel"):
        with pytest.raises(ValueError, match=r"^ridge is 1e-150; below 1e-140 what labels leave"):
            scaled(representation, 1.0, ridge=1e-150)
        post = scaled(representation, 1.0)
        with pytest.raises(ValueError, match=r"^noise is 1e-200; below"):
            post.condition([1, 2], [0, 1], noise=[1.0, 1e-200])
        # A kernel that is zero is what it is: labels tell nothing.
        nothing = scaled(representation, 0.0, ridge=1.0)
        assert (nf.utilities(nothing, "variance_reduction") == 0).all()
