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
    residual_temperature=1.7,
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
        residual_temperature=1.0 if loss == "squared" else residual_temperature,
        covered=rng.uniform(size=evaluation) * (rng.random(evaluation) < 0.7),
        radius=1.3,
    )


def some_candidates(keywords, rows):
    """The same call for some of its candidates: they do not see each other."""
    return keywords | {
        name: keywords[name][rows] for name in ("candidates", "noise", "label_probs")
    }


def some_evaluation(keywords, columns):
    """The same for some of its evaluation points, of a call of `score_blocks` too."""
    names = ("evaluation", "weights", "log_loss_targets", "columns", "evaluation_variance")
    names = (*names, "covered")
    return keywords | {name: keywords[name][columns] for name in names if name in keywords}


def baseline(mean, kw):
    """B of the residuals s (e_y - B), of some of the points."""
    if kw["loss"] == "squared":
        return mean
    return reference.softmax(mean / kw.get("residual_temperature", 1.0))


def steps(S_cx, kw):
    """Every f+ (N_c, k, N_x, k)."""
    k = kw["mean"].shape[1]
    base = baseline(kw["mean"], kw)
    a = S_cx / (kw["variance"][kw["candidates"]] + kw["noise"])[:, None]
    r = kw["label_scale"] * (np.eye(k)[None] - base[kw["candidates"]][:, None])
    return kw["mean"][kw["evaluation"]] + a[:, None, :, None] * r[:, :, None, :]


def rho2_of(S_cx, kw):
    """rho^2 of `epig`, how far below its largest value it is, and one minus that value.

    1 - rho^2 is the sum of the last two, and nothing cancels.
    """
    s_c, s_x = kw["variance"][kw["candidates"]][:, None], kw["variance"][kw["evaluation"]]
    total_c, total_x = s_c + kw["noise"][:, None], s_x + kw["ridge"]
    p_c, p_x, q_x = s_c / total_c, s_x / total_x, kw["ridge"] / total_x
    q_c = 1 / (1 + s_c / kw["noise"][:, None])
    rho2 = np.minimum(S_cx**2 / (total_c * total_x), p_c * p_x)
    return rho2, p_c * p_x - rho2, q_c + p_c * q_x


def hypothetical(criterion, kw):
    """P(y|c) as the criterion takes it, (N_c, k)."""
    if criterion != "mlmoc":
        return kw["label_probs"]
    return np.eye(kw["mean"].shape[1])[kw["outputs"][kw["candidates"]].argmax(1)]


def pairs(criterion, S_cx, kw):
    """What each evaluation point alone, of weight one, makes every candidate worth (N_c, N_x)."""
    if criterion == "epig":
        rho2, between, least = rho2_of(S_cx, kw)
        near = np.log(between + least)
        return -0.5 * np.where(rho2 < 0.5, np.log1p(-np.minimum(rho2, 0.5)), near)
    if criterion in reference.COVERAGE:
        s_c, s_x = kw["variance"][kw["candidates"]][:, None], kw["variance"][kw["evaluation"]]
        k = reference.similarity(criterion, S_cx, s_c, s_x, kw["radius"])
        return np.maximum(k - kw["covered"], 0)
    if criterion == "variance_reduction":
        return S_cx**2 / (kw["variance"][kw["candidates"]] + kw["noise"])[:, None]
    f_plus, f_x = steps(S_cx, kw), kw["outputs"][kw["evaluation"]]
    P, T, targets = hypothetical(criterion, kw), kw["temperature"], kw["log_loss_targets"]
    total = np.zeros(S_cx.shape)
    for c, y in zip(*np.nonzero(P), strict=True):
        every = np.eye(len(f_x))  # the weights: a row for each point
        total[c] += P[c, y] * reference._label_value(
            criterion, f_plus[c, y], f_x, every, T, targets
        )
    return total


def tolerance(criterion, S_cx, kw, dtype, factor=16.0, size=None):
    """What rounding in `dtype` may change in each of `pairs` (N_c, N_x).

    `size` (N_c, N_x): of what covariances are computed from; by default |psi_c| |psi_x|.
    """
    eps = factor * EPSILON[dtype]
    s_c, s_x = kw["variance"][kw["candidates"]][:, None], kw["variance"][kw["evaluation"]]
    size = np.sqrt(s_c) * np.sqrt(s_x) if size is None else size
    if criterion in reference.COVERAGE:
        return coverage_tolerance(criterion, S_cx, s_c, s_x, size, kw["radius"], eps)
    total = s_c + kw["noise"][:, None]
    if criterion == "variance_reduction":
        return eps * (2 * size + np.abs(S_cx)) * np.abs(S_cx) / total + (eps * size) ** 2 / total
    if criterion == "epig":
        rho2, between, least = rho2_of(S_cx, kw)
        scale = size / np.sqrt(total * (s_x + kw["ridge"]))
        wrong = 2 * eps * np.sqrt(rho2) * scale + (eps * scale) ** 2 + eps * rho2
        more = np.log1p(np.minimum(wrong, between) / (least + np.maximum(between - wrong, 0)))
        less = np.log1p(wrong / (least + between))
        return np.maximum(more, less) + eps * np.abs(pairs(criterion, S_cx, kw))
    F_c, k = kw["mean"][kw["candidates"]], kw["mean"].shape[1]
    base = baseline(F_c, kw)
    r = kw["label_scale"] * (np.eye(k) - base[:, None])  # (N_c, k, k)
    step = (size / total)[:, None] * np.linalg.norm(r, axis=2)[..., None]
    return label_tolerance(criterion, steps(S_cx, kw), step, kw, eps)


def coverage_tolerance(criterion, S_cx, s_c, s_x, size, radius, eps):
    """`tolerance` of coverage: rho moves by eps of `size`; near the edge of a ball anything may."""
    length = np.sqrt(s_c) * np.sqrt(s_x)
    wrong = eps * (1 + np.divide(size, length, out=np.zeros_like(length), where=length > 0))
    if criterion == "cosine_coverage":
        return wrong
    if criterion == "gaussian_coverage":
        k = reference.similarity(criterion, S_cx, s_c, s_x, radius)
        return np.minimum(k * np.expm1(np.minimum(2 * wrong / radius**2, 30)) + eps, 1)
    at = np.divide(S_cx, length, out=np.zeros_like(length), where=length > 0)
    return (np.abs(2 - 2 * at - radius**2) <= 4 * wrong) + eps


def label_tolerance(criterion, f_plus, step, kw, eps):
    """`tolerance` of a label criterion, from every f+ and the most its steps can be (N_c, k, N_x).

    Rounding moves f+ by `eps` of the step and of the spread of F there. What that makes of the
    criterion depends on how far the decision is. Where one class is ahead by more, hardly anything
    is allowed, however large the logits are; where it is not, the whole range of this pair and
    label is.
    """
    F_x, f_x, k = kw["mean"][kw["evaluation"]], kw["outputs"][kw["evaluation"]], f_plus.shape[-1]
    own = 8 * EPSILON[np.float64] * np.abs(f_plus).max(-1)  # what the reference rounds
    moved = eps * (np.ptp(F_x, axis=1) + step) + own
    if criterion in ("mlmoc", "emoc"):  # the root of a sum whose terms may cancel
        change = np.linalg.norm(f_plus - f_x, axis=-1)
        wrong = np.sqrt(eps) * (np.linalg.norm(F_x - f_x, axis=1) + step)
        allowed = wrong * (wrong / np.maximum(np.maximum(change, wrong), 1e-300)) + own
    elif criterion == "label_flips":
        top = np.sort(f_plus, axis=-1)[..., -2:]
        allowed = (top[..., 1] - top[..., 0] <= 2 * moved) + eps
    elif criterion == "expected_log_loss":
        allowed = 2 * moved / kw["temperature"] + eps * (1 + np.log(k))
    else:
        moved = np.minimum(2 * moved / kw["temperature"], 700)  # differences of logits
        p = np.exp(np.sort(reference.log_softmax(f_plus / kw["temperature"]), axis=-1))
        behind = p[..., :-1].sum(-1)  # how likely all but the leading class are
        if criterion == "expected_entropy":
            entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(-1)
            q = np.minimum(behind * np.exp(moved), 1 - 1 / k)
            largest = q * np.log((k - 1) / np.maximum(q, 1e-300)) - (1 - q) * np.log1p(-q)
            allowed = np.minimum((1 + np.log(k)) * moved, np.maximum(entropy, largest))
        else:  # changes by no more than the probabilities do
            allowed = np.minimum(2 * behind * np.expm1(moved), 1)
        allowed = allowed + eps * (1 + np.log(k))
    return np.einsum("cyx,cy->cx", allowed, hypothetical(criterion, kw))


def bounds(criterion, kw):
    """What a utility is worth per unit of weight, at least and at most."""
    if "temperature" in ops.criteria()[criterion]:  # at least where softmax knows nothing
        if "log_loss_targets" in ops.criteria()[criterion]:
            return -np.inf, 0
        even = np.zeros((1, kw["mean"].shape[1]))
        return reference._label_value(criterion, even, even, np.ones(1), 1.0, None), 0
    shares = ("label_flips", *reference.COVERAGE)
    return (0, 1) if criterion in shares else (0, np.inf)


def all_certain(criterion, kw, right):
    """Whether zero is right of every pair: nothing moves, or softmax knows every class."""
    low, high = bounds(criterion, kw)
    return np.abs(right).max() <= (1e-5 * (high - low) if np.isfinite(high - low) else 0)


def check(found, criterion, S_cx, kw, dtype, rows=None, factor=16.0, size=None):
    """Utilities of the candidates `rows` against the reference."""
    assert found.shape == kw["candidates"].shape and found.dtype == np.float64
    assert np.isfinite(found).all()
    low, high = bounds(criterion, kw)
    per_weight = found / max(kw["weights"].sum(), 1e-300)
    assert (low - 1e-5 <= per_weight).all() and (per_weight <= high + 1e-5).all()
    rows = np.arange(len(found)) if rows is None else rows
    kw, S_cx = some_candidates(kw, rows), S_cx[rows]
    size = size if size is None else size[rows]
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = reference.score(criterion, S_cx, **kw)
    if criterion == "epig":  # the reference subtracts from one
        cancels = (rho2_of(S_cx, kw)[0] > 0.999).any(axis=1)
        expected[cancels] = (pairs(criterion, S_cx, kw) @ kw["weights"])[cancels]
    allowed = tolerance(criterion, S_cx, kw, dtype, factor, size) @ np.abs(kw["weights"])
    assert (np.abs(found[rows] - expected) <= allowed).all(), (found[rows], expected, allowed)


def check_pairs(score, kw, expected, allowed):
    """Each evaluation point alone (N_c, N_x): no pair hides behind the others' part of a sum."""
    alone = kw | dict(weights=np.ones(len(kw["evaluation"])))
    found = np.stack(
        [score(**some_evaluation(alone, [x])) for x in range(len(alone["weights"]))], 1
    )
    excess = np.abs(found - expected) - allowed
    worst = np.unravel_index(np.argmax(excess), excess.shape)
    assert np.isfinite(found).all() and excess[worst] <= 0, (
        f"candidate {worst[0]}, point {worst[1]}: {found[worst]} is not {expected[worst]} "
        f"within {allowed[worst]}"
    )


def operation_that_returns(values):
    """For `check_pairs`: an operation whose pairs are `values`, right or wrong."""
    columns = iter(values.T)
    return lambda **_: next(columns)


def covariance(psi, kw):
    psi = psi.astype(np.float64)
    return psi[kw["candidates"]] @ psi[kw["evaluation"]].T
