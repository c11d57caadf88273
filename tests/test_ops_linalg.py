"""Conditioning, whitening, products and factors against numpy in float64."""

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkfast import ops

DTYPES = [np.float32, np.float64]
SIZES = [
    0,
    1,
    2,
    3,
    13,
    14,
    15,
    31,
    32,
    33,
    63,
    64,
    65,
    107,
    108,
    109,
    111,
    112,
    113,
    127,
    128,
    129,
]
# A block of the factorisations is 64, a stripe of columns 256.
ORDERS = [0, 1, 2, 63, 64, 65, 127, 128, 129, 200, 330]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
sizes = st.sampled_from(SIZES)
orders = st.sampled_from(ORDERS)
seeds = st.integers(0, 2**32 - 1)
UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}


def rows(rng, n, d, dtype):
    """(n, d) rows, now and then a view into a wider array."""
    if rng.random() < 0.5:
        return rng.normal(size=(n, d)).astype(dtype)
    wide = np.full((2 * n, d + 5), np.nan, dtype=dtype)
    wide[::2, 2 : 2 + d] = rng.normal(size=(n, d))
    return wide[::2, 2 : 2 + d]


def assert_close(found, expected, size, unit=UNIT[np.float64], factor=8.0):
    """Within some units of `size`, the sum of the absolute values of all that was added up."""
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    error = np.abs(found.astype(np.float64) - expected)
    assert (error <= factor * unit * size).all(), (error / np.where(size > 0, size, 1)).max()


def magnitude(*factors):
    """The product of the absolute values, in float64."""
    result = np.abs(factors[0]).astype(np.float64)
    for factor in factors[1:]:
        result = result @ np.abs(factor).astype(np.float64)
    return result


# --- Conditioning ---


@dtypes
@given(seed=seeds, N=sizes, d=sizes, b=st.sampled_from([0, 1, 2, 5, 17, 70]))
def test_condition_features(dtype, seed, N, d, b):
    rng = np.random.default_rng(seed)
    psi, U, C = rows(rng, N, d, dtype), rng.normal(size=(b, d)), rng.normal(size=(b, d))
    expected = psi.astype(np.float64) - (psi.astype(np.float64) @ U.T) @ C
    size = np.abs(psi).astype(np.float64) + magnitude(psi, U.T, C)
    surroundings = np.isnan(psi.base).sum() if psi.base is not None else 0
    ops.condition_features(psi, U, C)
    # float32 is rounded once, at the end.
    error = np.abs(psi.astype(np.float64) - expected)
    assert (error <= UNIT[dtype] * np.abs(expected) * 1.01 + (d + b) * 2.0**-53 * size).all()
    assert surroundings == (np.isnan(psi.base).sum() if psi.base is not None else 0)


@dtypes
def test_condition_features_in_several_stripes(dtype):
    """More than 4096 rows, and a product deeper than 4096."""
    rng = np.random.default_rng(0)
    for N, d, b in ((5000, 3, 2), (3, 5000, 2)):
        psi, U, C = rows(rng, N, d, dtype), rng.normal(size=(b, d)), rng.normal(size=(b, d))
        expected, size = psi - (psi @ U.T) @ C, np.abs(psi) + magnitude(psi, U.T, C)
        expected = psi.astype(np.float64) - (psi.astype(np.float64) @ U.T) @ C
        ops.condition_features(psi, U, C)
        assert_close(psi, expected, size, UNIT[dtype])


@dtypes
@given(seed=seeds, N=sizes, b=st.sampled_from([0, 1, 2, 17, 70]))
def test_condition_dense(dtype, seed, N, b):
    rng = np.random.default_rng(seed)
    S, V = rows(rng, N, N, dtype), rng.normal(size=(b, N))
    S[...] = np.tril(S) + np.tril(S, -1).T
    expected, size = S - V.T @ V, np.abs(S) + magnitude(V.T, V)
    ops.condition_dense(S, V)
    once = UNIT[dtype] * np.abs(expected)  # rounded once, whatever was subtracted
    assert (np.abs(S - expected) <= once + (b + 3) * UNIT[np.float64] * size).all()
    assert np.array_equal(S, S.T)


@dtypes
@given(seed=seeds, N=st.sampled_from([*SIZES, 255, 256, 257, 600]), d=sizes)
def test_downdate_moments(dtype, seed, N, d):
    rng = np.random.default_rng(seed)
    psi, g, h = rows(rng, N, d, dtype), rng.normal(size=d), rng.normal(size=d)
    q, s = rng.normal(size=(2, N))
    expected_q, expected_s = q.copy(), s.copy()
    reference.downdate_moments(psi, g, h, 1.7, 0.6, expected_q, expected_s)
    a, b = magnitude(psi, g), magnitude(psi, h)
    size_q = np.abs(q) + 2 * a * b / 0.6 + a**2 * 1.7 / 0.36
    size_s = np.abs(s) + a**2 / 0.6
    ops.downdate_moments(psi, g, h, 1.7, 0.6, q, s)
    assert_close(q, expected_q, size_q, factor=d + 8.0)
    assert_close(s, expected_s, size_s, factor=d + 8.0)


# --- Products ---


@dtypes
@given(seed=seeds, N=sizes, d=sizes)
def test_whiten(dtype, seed, N, d):
    rng = np.random.default_rng(seed)
    features, W = rows(rng, N, d, dtype), np.tril(rng.normal(size=(d, d)))
    expected = features.astype(np.float64) @ W.T
    found = ops.whiten(features, W)
    assert found.dtype == dtype
    error = np.abs(found - expected)
    slack = (d + 1) * 2.0**-53 * magnitude(features, W.T)
    assert (error <= UNIT[dtype] * np.abs(expected) * 1.01 + slack).all()


@dtypes
@pytest.mark.parametrize("d", [4096, 4097])
def test_whiten_deep(dtype, d):
    """Above 4096 features slices of the sums are added up: in float64, then rounded once."""
    rng = np.random.default_rng(d)
    features = rng.normal(size=(3, d)).astype(dtype)
    W = np.eye(d)
    W[0], W[-1], W[:, 0] = rng.normal(size=(3, d))
    expected = features.astype(np.float64) @ W.T
    error = np.abs(ops.whiten(features, W) - expected)
    slack = 100 * 2.0**-53 * magnitude(features, W.T)
    assert (error <= UNIT[dtype] * np.abs(expected) * 1.01 + slack).all()


@dtypes
@given(seed=seeds, N=sizes, d=sizes, k=st.sampled_from([0, 1, 2, 10, 129]))
def test_product(dtype, seed, N, d, k):
    rng = np.random.default_rng(seed)
    X, B = rows(rng, N, d, dtype), rng.normal(size=(d, k))
    assert_close(ops.product(X, B), reference.product(X, B), magnitude(X, B), factor=d + 1.0)


@dtypes
@given(seed=seeds, N=sizes, d=sizes)
def test_weighted_gram(dtype, seed, N, d):
    rng = np.random.default_rng(seed)
    X, weights = rows(rng, N, d, dtype), rng.normal(size=N)
    found = ops.weighted_gram(X, weights)
    size = magnitude(X.T * weights, X)
    assert_close(found, reference.weighted_gram(X, weights), size, factor=N + 3.0)
    assert np.array_equal(found, found.T)


@dtypes
@given(seed=seeds, N=sizes, d=sizes)
def test_quadratic_form(dtype, seed, N, d):
    rng = np.random.default_rng(seed)
    X, G = rows(rng, N, d, dtype), rng.normal(size=(d, d))
    size = (magnitude(X, G) * np.abs(X)).sum(1)
    found = ops.quadratic_form(X, G)
    assert_close(found, reference.quadratic_form(X, G), size, factor=2 * d + 2.0)


@dtypes
@given(seed=seeds, N=st.sampled_from([*SIZES, 511, 512, 513, 1100]), d=sizes)
def test_squared_norms(dtype, seed, N, d):
    X = rows(np.random.default_rng(seed), N, d, dtype)
    expected = reference.squared_norms(X)
    assert_close(ops.squared_norms(X), expected, expected, factor=d + 1.0)


@dtypes
def test_deep_and_tall(dtype):
    """Sums over more than 4096 points or features, and more rows than are held at a time."""
    rng = np.random.default_rng(1)
    for N, d in ((9000, 5), (5, 4500)):
        X = rng.normal(size=(N, d)).astype(dtype)
        B, weights = rng.normal(size=(d, 3)), rng.normal(size=N)
        assert_close(ops.product(X, B), reference.product(X, B), magnitude(X, B), factor=100.0)
        expected = reference.squared_norms(X)
        assert_close(ops.squared_norms(X), expected, expected, factor=100.0)
        if d < N:
            G = rng.normal(size=(d, d))
            size = (magnitude(X, G) * np.abs(X)).sum(1)
            found = ops.quadratic_form(X, G)
            assert_close(found, reference.quadratic_form(X, G), size, factor=100.0)
            found, size = ops.weighted_gram(X, weights), magnitude(X.T * weights, X)
            assert_close(found, reference.weighted_gram(X, weights), size, factor=100.0)


# --- Factors ---


def positive_definite(rng, n, condition=1e3):
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0] if n else np.zeros((0, 0))
    return (Q * np.geomspace(1, 1 / condition, n)) @ Q.T if n else Q


@settings(max_examples=15)
@given(seed=seeds, n=orders)
def test_cholesky(seed, n):
    A = positive_definite(np.random.default_rng(seed), n)
    A = A + np.triu(np.full((n, n), np.nan), 1)  # what lies above the diagonal is not read
    before = A.copy()
    L = ops.cholesky(A)
    assert np.array_equal(A, before, equal_nan=True)
    assert np.array_equal(L, np.tril(L))
    A = np.tril(A) + np.tril(A, -1).T
    assert_close(L @ L.T, A, np.ones_like(A), factor=n + 8.0)
    if n:
        assert_close(L, np.linalg.cholesky(A), np.ones_like(A), factor=1e3 * (n + 8.0))


@pytest.mark.parametrize("transpose", [False, True])
@settings(max_examples=20)
@given(seed=seeds, n=orders, m=st.sampled_from([0, 1, 2, 63, 64, 65, 129, 255, 257, 513]))
def test_triangular_solve(transpose, seed, n, m):
    rng = np.random.default_rng(seed)
    L = np.tril(rng.normal(size=(n, n))) / np.sqrt(max(n, 1)) + 2 * np.eye(n)
    L += np.triu(np.full((n, n), np.nan), 1)  # what lies above the diagonal is not read
    B = np.asfortranarray(rng.normal(size=(n, m)))
    before = B.copy()
    X = ops.triangular_solve(L, B, transpose=transpose)
    assert np.array_equal(B, before)
    T = np.tril(L).T if transpose else np.tril(L)
    assert_close(T @ X, B, magnitude(T, X) + np.abs(B), factor=n + 8.0)
