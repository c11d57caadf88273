"""Arguments of `ops.score_blocks`, and how far from the reference rounding may take it."""

import numpy as np
import reference
from score_problems import distributions

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
    base = kw["mean"] if kw["loss"] == "squared" else reference.softmax(kw["mean"])
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


def check(found, criterion, S, kw, dtype, bound=None):
    assert found.shape == kw["candidates"].shape and found.dtype == np.float64
    assert np.isfinite(found).all()
    expected = reference.score_blocks(criterion, S, **kw)
    bound = BOUND[dtype] if bound is None else bound
    allowed = bound * np.abs(expected).max(initial=0)
    if criterion == "label_flips":
        allowed = allowed + flips_that_rounding_decides(S, kw, bound)
    assert (np.abs(found - expected) <= allowed).all(), (found, expected)
