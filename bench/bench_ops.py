"""The other operations, each beside what numpy does with the same arrays; float64 is the check."""

import compare_blocks
import numpy as np
import opponents
import pytest

from ntkfast import ops

N, D, B = 20_000, 512, 20


@pytest.fixture(scope="module")
def arrays():
    r = np.random.default_rng(0)
    psi = (r.normal(size=(N, D)) / np.sqrt(D)).astype(np.float32)
    square = r.normal(size=(D, D)) / np.sqrt(D)
    return psi, square, r.normal(size=(B, D)) / np.sqrt(D), r.uniform(size=N)


def close(found, expected, tolerance=1e-12):
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_whiten(benchmark, arrays):
    psi, square, _, _ = arrays
    found = benchmark(lambda: ops.whiten(psi, square))
    close(found, psi.astype(np.float64) @ square.T, 1e-7)


def test_whiten_numpy(benchmark, arrays):
    psi, square, _, _ = arrays
    benchmark(lambda: (psi.astype(np.float64) @ square.T).astype(np.float32))


def test_weighted_gram(benchmark, arrays):
    psi, _, _, weights = arrays
    found = benchmark(lambda: ops.weighted_gram(psi, weights))
    close(found, psi.T.astype(np.float64) @ (psi * weights[:, None]))


def test_weighted_gram_numpy(benchmark, arrays):
    psi, _, _, weights = arrays
    benchmark(lambda: psi.astype(np.float64).T @ (psi * weights[:, None]))


def test_quadratic_form(benchmark, arrays):
    psi, square, _, _ = arrays
    found = benchmark(lambda: ops.quadratic_form(psi, square))
    close(found, ((psi.astype(np.float64) @ square) * psi).sum(1))


def test_product(benchmark, arrays):
    psi, _, U, _ = arrays
    columns = np.ascontiguousarray(U[:10].T)
    found = benchmark(lambda: ops.product(psi, columns))
    close(found, psi.astype(np.float64) @ columns)


def test_squared_norms(benchmark, arrays):
    psi = arrays[0]
    close(benchmark(lambda: ops.squared_norms(psi)), (psi.astype(np.float64) ** 2).sum(1))


@pytest.mark.parametrize("rank", [1, B])
def test_condition_features(benchmark, arrays, rank):
    psi, _, U, _ = arrays
    U, C = U[:rank], U[-rank:] / 100
    work = psi.copy()
    ops.condition_features(work, U, C)
    close(work, psi - (psi.astype(np.float64) @ U.T) @ C, 1e-6)
    benchmark(lambda: ops.condition_features(work, U, 0 * C))


@pytest.mark.parametrize("rank", [1, B])
def test_condition_dense(benchmark, rank):
    r = np.random.default_rng(0)
    S = r.normal(size=(4000, 4000)).astype(np.float32)
    S += S.T
    V = r.normal(size=(rank, 4000))
    work = S.copy()
    ops.condition_dense(work, V)
    close(work, S - V.T @ V, 1e-6)
    benchmark(lambda: ops.condition_dense(work, 0 * V))


def test_downdate_moments(benchmark, arrays):
    psi = arrays[0]
    g = np.random.default_rng(1).normal(size=D)
    q, s = np.zeros(N), np.zeros(N)
    ops.downdate_moments(psi, g, g, 1.0, 2.0, q, s)
    close(s, -((psi.astype(np.float64) @ g) ** 2) / 2)
    benchmark(lambda: ops.downdate_moments(psi, g, g, 1.0, 2.0, q, s))


def spd(n):
    A = np.random.default_rng(0).normal(size=(n, n))
    return A @ A.T + n * np.eye(n)


def test_cholesky(benchmark):
    A = spd(2000)
    close(benchmark(lambda: ops.cholesky(A)), np.linalg.cholesky(A))


def test_cholesky_numpy(benchmark):
    A = spd(2000)
    benchmark(lambda: np.linalg.cholesky(A))


@pytest.mark.parametrize("transpose", [False, True])
def test_triangular_solve(benchmark, transpose):
    A = spd(1000)
    L, right = ops.cholesky(A), A[:, :500]
    found = benchmark(lambda: ops.triangular_solve(L, right, transpose=transpose))
    close((L.T if transpose else L) @ found, right)


def test_empty_scoring_call(benchmark):
    assert benchmark(opponents.empty_call()).shape == (0,)


@pytest.mark.parametrize("criterion", ["expected_entropy", "variance_reduction", "epig"])
def test_score_blocks(benchmark, criterion):
    p = compare_blocks.problem(64, 512, 10)
    p["evaluation_variance"] = np.repeat(p["variance"][:1], 512, axis=0)
    found = benchmark(lambda: compare_blocks.by_ntkfast(criterion, p))
    double = p | dict(covariance=p["covariance"].astype(np.float64))
    close(found, compare_blocks.by_ntkfast(criterion, double), 1e-5)


def test_score_blocks_torch(benchmark):
    p = compare_blocks.problem(64, 512, 10)
    benchmark(lambda: compare_blocks.by_torch(p, 8))
