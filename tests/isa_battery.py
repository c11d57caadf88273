"""Every compiled operation on fixed problems, for test_isa.py: python isa_battery.py results.npz"""

import sys

import numpy as np
from block_problems import blocks
from data import oracle
from score_problems import problem
from scoring import score_blocks, score_dense, score_features

from ntkfast import ops

DTYPES = (np.float32, np.float64)
# Several tiles in both directions; more than 64 tiles of evaluation points once.
SHAPES = {
    "ragged": dict(N=300, d=35, k=3, candidates=241, evaluation=700),
    "ten classes": dict(N=90, d=300, k=10, candidates=130, evaluation=150, loss="cross_entropy"),
    "two classes": dict(N=90, d=2, k=2, candidates=17, evaluation=8400),
    "large steps": dict(
        N=90, d=20, k=26, candidates=60, evaluation=200, loss="cross_entropy", label_scale=30.0
    ),
}


def score_calls():
    """Yield (name, criterion, dtype, psi, keywords) of every scoring call."""
    for shape, sizes in SHAPES.items():
        for dtype in DTYPES:
            psi, keywords = problem(len(shape), dtype=dtype, **sizes)
            for criterion in ops.criteria():
                name = f"{criterion}, {shape}, {np.dtype(dtype).name}"
                yield name, criterion, dtype, psi, keywords


def factors():
    """Yield (name, arguments of `linear_algebra`)."""
    for dtype in DTYPES:
        rng = np.random.default_rng(7)
        N, d, b = 333, 77, 5
        X = rng.normal(size=(N, d)).astype(dtype)
        G = rng.normal(size=(d, d)) / np.sqrt(d)
        yield np.dtype(dtype).name, X, G, rng.normal(size=(b, N)) / 20, rng.normal(size=N)


def linear_algebra(ops, X, G, V, w):
    """Every other operation; `ops` may be the reference."""
    psi, S = X.copy(), (X.astype(np.float64) @ X.T).astype(X.dtype)
    S = np.tril(S) + np.tril(S, -1).T
    ops.condition_features(psi, V[:, : X.shape[1]].copy(), 0.1 * V[::-1, : X.shape[1]].copy())
    ops.condition_dense(S, V)
    q, s = ops.quadratic_form(X, G), ops.squared_norms(X)
    ops.downdate_moments(X, G[0].copy(), G[1].copy(), 0.3, 1.9, q, s)
    A = np.eye(len(X)) + X.astype(np.float64) @ X.T
    L = ops.cholesky(A)
    sketch, gradients = np.zeros((len(X), 100), X.dtype), np.zeros((len(X), 100), X.dtype)
    gram, ghost = np.zeros((len(X), 200), X.dtype), np.zeros((len(X), 200), X.dtype)
    ops.sketch_add(X, 150, 3, 4, sketch)
    seven, eleven = np.arange(7), np.arange(11)
    ops.sketch_gradients(
        X, seven * 11, eleven, X[:, ::-1].copy(), seven, eleven * 7, 150, 3, 4, gradients
    )
    # Two groups of rows, and one row a group.
    formed, depthwise = np.zeros((len(X), 8 * 6), X.dtype), np.zeros((len(X), 4 * 6), X.dtype)
    eight, twelve = np.arange(8) * 7, np.arange(12) * 6
    ops.form_gradients(X, seven, eight, X, seven, twelve, formed, groups=2)
    ops.form_gradients(X, seven, eight[:4], X, seven, np.arange(24), depthwise, groups=4)
    ops.gram_add(X, X[:200], gram)
    left, right = X[:, :60].reshape(-1, 5, 12), X[:, 7:].reshape(-1, 5, 14)
    ops.gram_ghost(left, right, left[:200], right[:200], ghost)
    return dict(
        sketch_add=sketch,
        sketch_gradients=gradients,
        form_gradients=formed,
        form_gradients_of_few_rows=depthwise,
        gram_add=gram,
        gram_ghost=ghost,
        condition_features=psi,
        condition_dense=S,
        downdated_q=q,
        downdated_s=s,
        whiten=ops.whiten(X, G),
        product=ops.product(X, G[:, :3].copy()),
        weighted_gram=ops.weighted_gram(X, w),
        cholesky=L,
        solve=ops.triangular_solve(L, X.astype(np.float64)),
        solve_transposed=ops.triangular_solve(L, X.astype(np.float64), transpose=True),
    )


def battery():
    results = {}
    for name, criterion, _, psi, keywords in score_calls():
        results[name] = score_features(criterion, psi, **keywords)
    for name, *arguments in factors():
        for operation, value in linear_algebra(ops, *arguments).items():
            results[f"{operation}, {name}"] = value
    psi, keywords = problem(1, **SHAPES["ragged"])
    V = np.random.default_rng(0).normal(size=(3, len(psi))) / 30
    for criterion in ops.criteria():
        results[f"{criterion}, dense"] = score_dense(criterion, psi @ psi.T, downdate=V, **keywords)
    for dtype in DTYPES:
        for criterion, S, kw in block_calls(dtype):
            name = f"{criterion}, blocks, {np.dtype(dtype).name}"
            results[name] = score_blocks(criterion, S, **kw)
    return results


def block_calls(dtype):
    """Yield (criterion, S, keywords) of every call of score_blocks."""
    S, keywords = blocks(5, N=40, k=11, candidates=37, evaluation=600, dtype=dtype)
    for criterion in oracle.CRITERIA:
        yield criterion, S, keywords


if __name__ == "__main__":
    np.savez(sys.argv[1], **battery())
    print(ops.cpu_isa(), ops.num_threads())
