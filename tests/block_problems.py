"""Arguments of `ops.score_blocks`, and how far from the reference rounding may take it."""

import numpy as np
import reference
from score_problems import EPSILON, baseline, distributions, hypothetical, label_tolerance

BOUND = {np.float32: 1e-5, np.float64: 1e-10}  # of the largest utility


def blocks(
    seed,
    *,
    N=30,
    k=3,
    candidates=9,
    evaluation=21,
    loss="squared",
    label_scale=4.0,
    d=None,
    dtype=np.float64,
):
    """S (N k, N k) of random features of every output, and keywords of `ops.score_blocks`."""
    rng = np.random.default_rng(seed)
    d = 2 * k if d is None else d
    psi = rng.normal(size=(N * k, d)) / np.sqrt(d)
    S = (psi @ psi.T).astype(dtype)
    mean = rng.normal(size=(N, k))
    at = rng.integers(0, N, candidates), rng.integers(0, N, evaluation)
    diagonal = (psi @ psi.T).reshape(N, k, N, k)[np.arange(N), :, np.arange(N)]
    noise = np.exp(rng.normal(size=candidates))
    noise[rng.random(candidates) < 0.1] = np.inf
    return S, dict(
        candidates=at[0],
        evaluation=at[1],
        rows=at[0],
        columns=at[1],
        mean=mean,
        outputs=mean + 0.3 * rng.normal(size=(N, k)),
        variance=diagonal[at[0]],
        evaluation_variance=diagonal[at[1]],
        noise=noise,
        ridge=0.4,
        label_probs=distributions(rng, candidates, k),
        weights=rng.uniform(size=evaluation) * (rng.random(evaluation) < 0.9),
        label_scale=1.0 if loss == "squared" else label_scale,
        loss=loss,
        temperature=0.3,
        log_loss_targets=distributions(rng, evaluation, k),
        residual_temperature=1.0 if loss == "squared" else 1.7,
    )


def panel(S, kw):
    """The blocks of candidates and evaluation points in their order, and keywords for those."""
    N, k = kw["mean"].shape
    P = S.reshape(N, k, N, k)[kw["rows"]][:, :, kw["columns"]]
    P = np.ascontiguousarray(P).reshape(len(kw["rows"]) * k, len(kw["columns"]) * k)
    return P, kw | dict(rows=None, columns=None)


def flips_that_rounding_decides(S, kw, margin):
    """Weight of the evaluation points where the two largest of an f+ are closer than `margin`."""
    k = kw["mean"].shape[1]
    P, _ = panel(S.astype(np.float64), kw)
    P = P.reshape(len(kw["rows"]), k, len(kw["columns"]), k)
    base = baseline(kw["mean"], kw)
    total = np.zeros(len(P))
    for i, c in enumerate(kw["candidates"]):
        if np.isfinite(kw["noise"][i]):
            gain = np.linalg.inv(kw["variance"][i] + kw["noise"][i] * np.eye(k))
            r = kw["label_scale"] * (np.eye(k) - base[c])
            f_plus = kw["mean"][kw["evaluation"]] + np.einsum("axb,ac,yc->yxb", P[i], gain, r)
            top = np.sort(f_plus, axis=-1)
            close = top[..., -1] - top[..., -2] < margin
            total[i] = kw["label_probs"][i] @ close @ kw["weights"]
    return total


def check(found, criterion, S, kw, dtype, bound=None, expected=None):
    assert found.shape == kw["candidates"].shape and found.dtype == np.float64
    assert np.isfinite(found).all()
    if expected is None:
        expected = reference.score_blocks(criterion, S, **kw)
    bound = BOUND[dtype] if bound is None else bound
    allowed = bound * np.abs(expected).max(initial=0)
    if criterion == "label_flips":
        allowed = allowed + flips_that_rounding_decides(S, kw, bound)
    assert (np.abs(found - expected) <= allowed).all(), (found, expected)


def terms(S, kw):
    """Of every pair: the block S(x, c) (N_c, N_x, k, k), L_c^-1 and A_c^-1 (N_c, k, k)."""
    k = kw["mean"].shape[1]
    P, _ = panel(S.astype(np.float64), kw)
    P = P.reshape(len(kw["rows"]), k, len(kw["columns"]), k).transpose(0, 2, 3, 1)
    inverse_L, inverse_A = np.zeros((2, len(P), k, k))
    for i in np.flatnonzero(np.isfinite(kw["noise"])):
        A = kw["variance"][i] + kw["noise"][i] * np.eye(k)
        inverse_L[i], inverse_A[i] = np.linalg.inv(np.linalg.cholesky(A)), np.linalg.inv(A)
    return P, inverse_L, inverse_A


def pairs_and_tolerance(criterion, S, kw, dtype, factor=16.0):
    """What each evaluation point alone, of weight one, makes every candidate worth (N_c, N_x), and
    what rounding in `dtype` may change in that (`score_problems.label_tolerance`).
    """
    eps, k = factor * EPSILON[dtype], kw["mean"].shape[1]
    P, inverse_L, inverse_A = terms(S, kw)
    if criterion in ("variance_reduction", "epig"):
        left = np.eye(k)[None]
        if criterion == "epig":
            A_x = kw["evaluation_variance"] + kw["ridge"] * np.eye(k)
            left = np.linalg.inv(np.linalg.cholesky(A_x))
        M = left @ P @ inverse_L[:, None].swapaxes(2, 3)
        wrong = eps * np.abs(left) @ np.abs(P) @ np.abs(inverse_L[:, None]).swapaxes(2, 3)
        square = (2 * np.abs(M) * wrong + wrong**2).sum((2, 3))
        if criterion == "variance_reduction":
            return (M**2).sum((2, 3)) / k, square / k
        t = np.linalg.svd(M, compute_uv=False) ** 2  # E = I - M M^T has the eigenvalues 1 - t
        least = (1 - t).min(-1)
        value = -0.5 / k * np.log1p(-t).sum(-1)
        off = square / np.maximum(least, 1e-300)  # of E^-1/2 (M M^T) E^-1/2, in any norm
        change = np.where(off < 0.5, -np.log1p(-np.minimum(off, 0.5)), np.inf)
        return value, 0.5 * change + eps * (value + 1)
    F_x, f_x = kw["mean"][kw["evaluation"]], kw["outputs"][kw["evaluation"]]
    F_c = kw["mean"][kw["candidates"]]
    base = baseline(F_c, kw)
    r = kw["label_scale"] * (np.eye(k) - base[:, None])  # (N_c, y, k)
    z = r @ inverse_A
    f_plus = F_x + np.einsum("cxba,cya->cyxb", P, z)
    step = np.linalg.norm(np.einsum("cxba,cya->cyxb", np.abs(P), np.abs(z)), axis=-1)
    probs = hypothetical(criterion, kw)
    value = np.zeros(P.shape[:2])
    for c, y in zip(*np.nonzero(probs), strict=True):
        value[c] += probs[c, y] * reference._label_value(
            criterion,
            f_plus[c, y],
            f_x,
            np.eye(len(f_x)),
            kw["temperature"],
            kw["log_loss_targets"],
        )
    return value, label_tolerance(criterion, f_plus, step, kw, eps)
