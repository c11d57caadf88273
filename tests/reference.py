"""Every compiled operation in plain numpy float64: the oracle of the tests of `ntkfast.ops`.

Nothing here is clever and nothing is fast. The functions have the signatures of `ntkfast.ops`;
results that take the dtype of an argument there are computed in float64 here and cast at the very
end. The scoring functions form every f+ explicitly, so use them on small problems only.
"""

import numpy as np
from data import oracle
from data.oracle import log_softmax, softmax  # noqa: F401 (for others)

COVERAGE = ("cosine_coverage", "gaussian_coverage", "ball_coverage")
PAIRWISE = (*oracle.CRITERIA, *COVERAGE)
_label_value = oracle.label_value


def criteria():
    return PAIRWISE


def cpu_isa():
    return "baseline"


def num_threads():
    return 1


def similarity(criterion, S_xc, s_c, s_x, radius):
    """k of coverage, by distances of features of length one."""
    size = np.sqrt(s_c * s_x)
    rho = np.divide(S_xc, size, out=np.zeros_like(S_xc), where=size > 0)
    distance = np.sqrt(np.maximum(2 - 2 * rho, 0))
    if criterion == "cosine_coverage":
        return np.minimum(rho, 1)
    if criterion == "ball_coverage":
        return (distance < radius).astype(float)
    return np.exp(-((distance / radius) ** 2))


def score(
    criterion,
    S_cx,
    candidates,
    evaluation,
    *,
    mean,
    outputs,
    variance,
    noise,
    ridge,
    label_probs,
    weights,
    label_scale,
    loss,
    temperature,
    log_loss_targets,
    residual_temperature=1.0,
    covered=None,
    radius=1.0,
):
    """Utilities (N_c,) from the covariances S_cx (N_c, N_x) of candidates and evaluation points."""
    if criterion not in PAIRWISE:
        raise ValueError(f"unknown criterion {criterion!r}")
    if criterion == "expected_log_loss" and log_loss_targets is None:
        raise ValueError("log_loss_targets is required by expected_log_loss")
    k = mean.shape[1]
    labels = np.eye(k)
    F_x, f_x = mean[evaluation], outputs[evaluation]
    base = mean if loss == "squared" else softmax(mean / residual_temperature)
    result = np.zeros(len(candidates))
    for i, c in enumerate(candidates):
        S_xc, s_c, s_x = S_cx[i], variance[c], variance[evaluation]
        if criterion in COVERAGE:
            k_xc = similarity(criterion, S_xc, s_c, s_x, radius)
            result[i] = weights @ np.maximum(k_xc - covered, 0)
            continue
        if criterion == "variance_reduction":
            result[i] = weights @ (S_xc**2 / (s_c + noise[i]))
            continue
        if criterion == "epig":
            scale = (s_c + noise[i]) * (s_x + ridge)
            rho2 = np.minimum(S_xc**2, s_c * s_x) / scale
            result[i] = -0.5 * weights @ np.log1p(-rho2)
            continue
        a = S_xc / (s_c + noise[i])
        probs = labels[outputs[c].argmax()] if criterion == "mlmoc" else label_probs[i]
        for y in range(k):
            if probs[y] == 0:
                continue
            r = label_scale * (labels[y] - base[c])
            f_plus = F_x + a[:, None] * r
            result[i] += probs[y] * _label_value(
                criterion, f_plus, f_x, weights, temperature, log_loss_targets
            )
    return result


def score_features(criterion, psi, candidates, evaluation, **keywords):
    psi = psi.astype(np.float64)
    return score(criterion, psi[candidates] @ psi[evaluation].T, candidates, evaluation, **keywords)


def score_dense(criterion, S, candidates, evaluation, *, downdate=None, **keywords):
    S_cx = S[np.ix_(candidates, evaluation)].astype(np.float64)
    if downdate is not None:
        V = downdate.astype(np.float64)
        S_cx = S_cx - V[:, candidates].T @ V[:, evaluation]
    return score(criterion, S_cx, candidates, evaluation, **keywords)


def score_blocks(
    criterion,
    covariance,
    candidates,
    evaluation,
    *,
    mean,
    outputs,
    variance,
    noise,
    ridge,
    label_probs,
    weights,
    label_scale,
    loss,
    temperature,
    log_loss_targets,
    residual_temperature=1.0,
    covered=None,
    radius=1.0,
    rows=None,
    columns=None,
    evaluation_variance=None,
):
    """Utilities (N_c,): every block taken out of `covariance`, every f+ formed."""
    if criterion == "expected_log_loss" and log_loss_targets is None:
        raise ValueError("log_loss_targets is required by expected_log_loss")
    k = mean.shape[1]
    labels = np.eye(k)
    rows = np.arange(len(candidates)) if rows is None else rows
    columns = np.arange(len(evaluation)) if columns is None else columns
    blocks = covariance.astype(np.float64).reshape(len(covariance) // k, k, -1, k)
    F_x, f_x = mean[evaluation], outputs[evaluation]
    base = mean if loss == "squared" else softmax(mean / residual_temperature)
    result = np.zeros(len(candidates))
    for i, c in enumerate(candidates):
        S_cx = blocks[rows[i]][:, columns].transpose(1, 0, 2)  # (N_x, k, k), outputs of c first
        gain = np.zeros_like(S_cx)
        if np.isfinite(noise[i]):
            gain = np.linalg.solve(variance[i] + noise[i] * np.eye(k), S_cx)
        if criterion == "variance_reduction":
            result[i] = weights @ np.einsum("xab,xab->x", S_cx, gain) / k
            continue
        if criterion == "epig":
            A_x = evaluation_variance + ridge * np.eye(k)
            taken = np.linalg.solve(A_x, S_cx.transpose(0, 2, 1) @ gain)
            result[i] = -0.5 / k * weights @ np.linalg.slogdet(np.eye(k) - taken)[1]
            continue
        probs = labels[outputs[c].argmax()] if criterion == "mlmoc" else label_probs[i]
        for y in range(k):
            if probs[y] == 0:
                continue
            r = label_scale * (labels[y] - base[c])
            f_plus = F_x + np.einsum("xab,a->xb", gain, r)
            result[i] += probs[y] * _label_value(
                criterion, f_plus, f_x, weights, temperature, log_loss_targets
            )
    return result


def condition_features(psi, U, C):
    psi[...] = psi - (psi.astype(np.float64) @ U.T) @ C


def condition_dense(S, V):
    S[...] = S - V.T @ V


def whiten(features, W):
    return (features.astype(np.float64) @ W.T).astype(features.dtype)


def product(X, B):
    return X.astype(np.float64) @ B


def weighted_gram(X, weights):
    X = X.astype(np.float64)
    return X.T @ (weights[:, None] * X)


def quadratic_form(X, G):
    X = X.astype(np.float64)
    return ((X @ G) * X).sum(1)


def squared_norms(X):
    return (X.astype(np.float64) ** 2).sum(1)


def downdate_moments(psi, g, h, g_G_g, D, q, s):
    psi = psi.astype(np.float64)
    alpha = psi @ g
    q -= 2 * alpha * (psi @ h) / D - alpha**2 * g_G_g / D**2
    s -= alpha**2 / D


def cholesky(A):
    try:
        return np.linalg.cholesky(A)
    except np.linalg.LinAlgError as error:
        raise ValueError("the matrix is not positive definite") from error


def triangular_solve(L, B, *, transpose=False):
    return np.linalg.solve(np.tril(L).T if transpose else np.tril(L), B)


# --- Contractions of per-sample gradients ---


def splitmix64(key, index):
    """Word `index` of the sequence seeded with `key`, as Python integers."""
    mask = (1 << 64) - 1
    z = (key + (index + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def sketch_add(values, start, sign_key, shift_key, out):
    dim = out.shape[1]
    total = out.astype(np.float64)
    for p in range(start, start + values.shape[1]):
        bucket = (p + splitmix64(shift_key, p // dim)) % dim
        minus = splitmix64(sign_key, p // 64) >> (p % 64) & 1
        total[:, bucket] += (1 - 2 * minus) * values[:, p - start].astype(np.float64)
    out[...] = total


def form_gradients(
    left,
    left_positions,
    left_columns,
    right,
    right_positions,
    right_columns,
    out,
    *,
    groups=1,
    add=False,
):
    L = left[:, left_positions[:, None] + left_columns].astype(np.float64)
    R = right[:, right_positions[:, None] + right_columns].astype(np.float64)
    L, R = (a.reshape(*a.shape[:2], groups, a.shape[2] // groups) for a in (L, R))
    gradients = np.einsum("itgr,itgc->igrc", L, R).reshape(len(out), -1)
    out[...] = out + gradients if add else gradients


def sketch_gradients(*factors, groups=1):
    *factors, start, sign_key, shift_key, out = factors
    size = len(factors[5]) // groups
    gradients = np.empty((len(out), len(factors[2]) * size))
    form_gradients(*factors, gradients, groups=groups)
    sketch_add(gradients, start, sign_key, shift_key, out)


def gram_add(A, B, out, *, lower=False):
    out += A.astype(np.float64) @ B.astype(np.float64).T


def gram_ghost(left, right, left2, right2, out, *, lower=False):
    def gradients(left, right):
        left = left if left.ndim == 4 else left[None]
        G = np.einsum("aitp,itq->iapq", left.astype(np.float64), right.astype(np.float64))
        return G.reshape(G.shape[0] * G.shape[1], *G.shape[2:])

    out += np.einsum("ipq,jpq->ij", gradients(left, right), gradients(left2, right2))
