"""Every compiled operation in plain numpy float64: the oracle of the tests of `ntkfast.ops`.

Nothing here is clever and nothing is fast. The functions have the signatures of `ntkfast.ops`;
results that take the dtype of an argument there are computed in float64 here and cast at the very
end. The scoring functions form every f+ explicitly, so use them on small problems only.
"""

import numpy as np

PAIRWISE = (
    "mlmoc",
    "emoc",
    "expected_entropy",
    "expected_log_loss",
    "expected_error",
    "label_flips",
    "variance_reduction",
    "epig",
)


def criteria():
    return PAIRWISE


def cpu_isa():
    return "baseline"


def num_threads():
    return 1


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax(z):
    return np.exp(log_softmax(z))


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
):
    """Utilities (N_c,) from the covariances S_cx (N_c, N_x) of candidates and evaluation points."""
    if criterion not in PAIRWISE:
        raise ValueError(f"unknown criterion {criterion!r}")
    if criterion == "expected_log_loss" and log_loss_targets is None:
        raise ValueError("log_loss_targets is required by expected_log_loss")
    k = mean.shape[1]
    F_x, f_x = mean[evaluation], outputs[evaluation]
    base = mean if loss == "squared" else softmax(mean)
    result = np.zeros(len(candidates))
    for i, c in enumerate(candidates):
        S_xc, s_c, s_x = S_cx[i], variance[c], variance[evaluation]
        if criterion == "variance_reduction":
            result[i] = weights @ (S_xc**2 / (s_c + noise[i]))
            continue
        if criterion == "epig":
            scale = (s_c + noise[i]) * (s_x + ridge)
            rho2 = np.minimum(S_xc**2, s_c * s_x) / scale
            result[i] = -0.5 * weights @ np.log1p(-rho2)
            continue
        a = S_xc / (s_c + noise[i])
        probs = np.eye(k)[outputs[c].argmax()] if criterion == "mlmoc" else label_probs[i]
        for y in range(k):
            if probs[y] == 0:
                continue
            r = label_scale * (np.eye(k)[y] - base[c])
            f_plus = F_x + a[:, None] * r
            lp = log_softmax(f_plus / temperature)
            if criterion in ("mlmoc", "emoc"):
                value = weights @ np.linalg.norm(f_plus - f_x, axis=1)
            elif criterion == "expected_entropy":
                value = weights @ np.where(lp > -700, np.exp(lp) * lp, 0.0).sum(1)
            elif criterion == "expected_log_loss":
                value = weights @ (log_loss_targets * lp).sum(1)
            elif criterion == "expected_error":
                value = weights @ (np.exp(lp).max(1) - 1.0)
            else:
                value = weights @ (f_plus.argmax(1) != f_x.argmax(1)).astype(float)
            result[i] += probs[y] * value
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


def cholesky_append(L, cross, corner):
    n, m = len(L), len(corner)
    out = np.zeros((n + m, n + m))
    out[:n, :n] = L
    out[n:, :n] = triangular_solve(L, np.ascontiguousarray(cross.T)).T
    out[n:, n:] = cholesky(corner - out[n:, :n] @ out[n:, :n].T)
    return out


def triangular_solve(L, B, *, transpose=False):
    return np.linalg.solve(np.tril(L).T if transpose else np.tril(L), B)
