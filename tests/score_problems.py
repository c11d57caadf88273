"""Arguments of the scoring operations, and how far from the reference rounding may take them."""

import numpy as np
import reference

from ntkfast import ops

EPSILON = {np.float32: 2.0**-24, np.float64: 2.0**-53}
LABEL_CRITERIA = tuple(c for c, traits in ops.criteria().items() if "look_ahead" in traits)


def distributions(rng, rows, k):
    """Rows that sum to one, with zeros among them."""
    p = rng.dirichlet(np.full(k, 0.5), size=rows)
    if k > 2 and rows:
        p[rng.random(p.shape) < 0.2] = 0
        p[:, 0] += 1 - p.sum(1)
    return p


def problem(
    seed,
    *,
    N=40,
    d=12,
    k=3,
    candidates=9,
    evaluation=21,
    dtype=np.float64,
    loss="squared",
    spread=1.0,
    label_scale=4.0,
    temperature=0.3,
    kernel=1.0,
):
    """psi and keywords for `ops.score_features`; candidates and evaluation are sizes."""
    rng = np.random.default_rng(seed)
    psi = (rng.normal(size=(N, d)) * np.sqrt(kernel / max(d, 1))).astype(dtype)
    mean = rng.normal(size=(N, k)) * spread
    noise = np.exp(rng.normal(size=candidates)) * kernel
    noise[rng.random(candidates) < 0.1] = np.inf
    return psi, dict(
        candidates=rng.integers(0, N, candidates) if N else np.zeros(0, np.int64),
        evaluation=rng.integers(0, N, evaluation) if N else np.zeros(0, np.int64),
        mean=mean,
        outputs=mean + rng.normal(size=(N, k)) * spread * 0.3,
        variance=(psi.astype(np.float64) ** 2).sum(1),
        noise=noise,
        ridge=0.4 * kernel,
        label_probs=distributions(rng, candidates, k),
        weights=rng.uniform(size=evaluation) * (rng.random(evaluation) < 0.9),
        label_scale=1.0 if loss == "squared" else label_scale,
        loss=loss,
        temperature=temperature,
        log_loss_targets=distributions(rng, evaluation, k),
    )


def some_candidates(keywords, rows):
    """The same call for some of its candidates: they do not see each other."""
    return keywords | {
        name: keywords[name][rows] for name in ("candidates", "noise", "label_probs")
    }


def some_evaluation(keywords, columns):
    return keywords | {
        name: keywords[name][columns] for name in ("evaluation", "weights", "log_loss_targets")
    }


def steps(S_cx, kw):
    """Every f+ (N_c, k, N_x, k)."""
    k = kw["mean"].shape[1]
    base = kw["mean"] if kw["loss"] == "squared" else reference.softmax(kw["mean"])
    a = S_cx / (kw["variance"][kw["candidates"]] + kw["noise"])[:, None]
    r = kw["label_scale"] * (np.eye(k)[None] - base[kw["candidates"]][:, None])
    return kw["mean"][kw["evaluation"]] + a[:, None, :, None] * r[:, :, None, :]


def one_minus_rho2(S_cx, kw):
    """1 - rho^2 of `epig` where the reference would cancel, and the least that it can be."""
    s_c, s_x = kw["variance"][kw["candidates"]][:, None], kw["variance"][kw["evaluation"]]
    total_c, total_x = s_c + kw["noise"][:, None], s_x + kw["ridge"]
    p_c, p_x, q_x = s_c / total_c, s_x / total_x, kw["ridge"] / total_x
    q_c = 1 / (1 + s_c / kw["noise"][:, None])
    least = q_c + p_c * q_x
    return least + np.maximum(p_c * p_x - S_cx**2 / (total_c * total_x), 0.0), least


def tolerance(criterion, S_cx, kw, dtype, factor=16.0):
    """What rounding in `dtype` may change in each utility, (N_c,).

    Rounding moves f+ by a few units of its own size. Bounded criteria follow with the slope they
    have; a label flip is decided otherwise where two outputs come closer than that.
    """
    eps = factor * EPSILON[dtype]
    v = np.abs(kw["weights"])
    if criterion == "variance_reduction":
        size = S_cx**2 / (kw["variance"][kw["candidates"]] + kw["noise"])[:, None]
        # The covariance is a sum of products: each of the largest size there is.
        return eps * size.max(initial=0) * v.sum() + np.zeros(len(S_cx))
    if criterion == "epig":
        rest, least = one_minus_rho2(S_cx, kw)  # known to 2 eps, and not below `least`
        near = np.maximum(rest, 4 * eps)
        log = np.where(rest > 4 * eps, near / (near - 2 * eps), 1 + 2 * eps / least)
        return (np.log(log) + eps * (1 - np.log(rest))) @ v
    f_plus = steps(S_cx, kw)
    size = np.abs(f_plus).max(initial=0)
    step = np.abs(f_plus - kw["mean"][kw["evaluation"]]).max(initial=0)
    k = f_plus.shape[-1]
    if criterion == "label_flips":
        if k * f_plus.size == 0:
            return np.zeros(len(S_cx))
        top = np.sort(f_plus, axis=-1)[..., -2:]
        close = top[..., 1] - top[..., 0] <= eps * (size + step)
        return 1e-12 + np.einsum("cyx,cy,x->c", close, kw["label_probs"], v) + eps * v.sum()
    if criterion in ("mlmoc", "emoc"):
        change = np.linalg.norm(f_plus - kw["outputs"][kw["evaluation"]], axis=-1)
        return eps * v.sum() * (change.max(initial=0) + size + step) + np.zeros(len(S_cx))
    logits = np.log(k) + (size + step) / kw["temperature"]
    return eps * v.sum() * (1 + logits) + np.zeros(len(S_cx))


def bounds(criterion, kw):
    """What a utility is worth per unit of weight, at least and at most."""
    k = kw["mean"].shape[1]
    return {
        "expected_entropy": (-np.log(k), 0),
        "expected_log_loss": (-np.inf, 0),
        "expected_error": (1 / k - 1, 0),
        "label_flips": (0, 1),
    }.get(criterion, (0, np.inf))


def check(found, criterion, S_cx, kw, dtype, rows=None, factor=16.0):
    """Utilities of the candidates `rows` against the reference."""
    assert found.shape == kw["candidates"].shape and found.dtype == np.float64
    assert np.isfinite(found).all()
    low, high = bounds(criterion, kw)
    per_weight = found / max(kw["weights"].sum(), 1e-300)
    assert (low - 1e-5 <= per_weight).all() and (per_weight <= high + 1e-5).all()
    rows = np.arange(len(found)) if rows is None else rows
    kw, S_cx = some_candidates(kw, rows), S_cx[rows]
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = reference.score(criterion, S_cx, **kw)
    if criterion == "epig":
        rest, _ = one_minus_rho2(S_cx, kw)
        cancels = (rest < 1e-3).any(axis=1)
        expected[cancels] = -0.5 * np.log(rest[cancels]) @ kw["weights"]
    excess = np.abs(found[rows] - expected) - tolerance(criterion, S_cx, kw, dtype, factor)
    assert (excess <= 0).all(), (found[rows], expected)


def covariance(psi, kw):
    psi = psi.astype(np.float64)
    return psi[kw["candidates"]] @ psi[kw["evaluation"]].T
