"""``ntkfast bench``: how long scoring takes here, beside NumPy with one softmax per label."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import ntkfast as nf

__all__ = ["Timing", "time_expected_entropy"]

Floats = npt.NDArray[Any]


@dataclass(frozen=True)
class Timing:
    """Median seconds and the largest relative error of the utilities against float64 NumPy."""

    name: str
    seconds: float
    error: float


def time_expected_entropy(
    candidates: int, points: int, classes: int, dimension: int, rounds: int
) -> list[Timing]:
    """Time expected entropy in float32: the compiled scoring, then NumPy, interleaved.

    Both get the whitened features, both compute the covariances and every label's softmax; the
    posterior is built before the clock starts.
    """
    rng = np.random.default_rng(0)
    features = rng.standard_normal((points, dimension), dtype=np.float32) / np.sqrt(dimension)
    features = features.astype(np.float32)
    outputs = 3 * rng.standard_normal((points, classes), dtype=np.float32)
    labeled = np.arange(min(points, dimension // 4))
    targets = rng.integers(classes, size=len(labeled))
    post = nf.Posterior.from_features(
        features,
        outputs,
        features[labeled],
        outputs[labeled],
        targets,
        loss="cross_entropy",
        label_scale=4.0,
        residual_temperature=1.0,  # B is then P: one soft-max of the candidates for either
        labeled_indices=labeled,
    )
    chosen = np.arange(candidates)
    mean, variance = np.asarray(post.mean), np.asarray(post.variance)

    # psi = W phi with M = I + Phi_L^T Phi_L / lam = R^T R and W = R^-T (method: weight space).
    phi = features[labeled].astype(np.float64)
    factor = np.linalg.cholesky(np.eye(dimension) + phi.T @ phi / post.ridge)
    psi = np.linalg.solve(factor, features.T.astype(np.float64)).T

    def numpy_utilities(dtype: type[np.floating[Any]]) -> Floats:
        return _numpy_expected_entropy(
            psi32 if dtype is np.float32 else psi,
            mean.astype(dtype),
            variance[:candidates].astype(dtype),
            candidates,
            scale=4.0,
            ridge=post.ridge,
        )

    psi32 = psi.astype(np.float32)
    contenders: dict[str, Callable[[], Floats]] = {
        "ntkfast": lambda: np.asarray(
            nf.utilities(post, "expected_entropy", candidates=chosen, temperature=1.0)
        ),
        "NumPy, one softmax per label": lambda: numpy_utilities(np.float32),
    }
    exact = numpy_utilities(np.float64)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    errors = {}
    for _ in range(rounds):
        for name, score in contenders.items():
            start = time.perf_counter()
            result = score()
            seconds[name].append(time.perf_counter() - start)
            errors[name] = float(np.max(np.abs(result - exact) / np.abs(exact)))
    return [Timing(name, float(np.median(seconds[name])), errors[name]) for name in contenders]


def _numpy_expected_entropy(
    psi: Floats, mean: Floats, variance: Floats, candidates: int, scale: float, ridge: float
) -> Floats:
    """Evaluate expected entropy, one candidate and label after the other, in psi's dtype."""
    shifted = np.exp(mean - mean.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    influence = psi @ psi[:candidates].T  # S(x, c)
    influence *= scale / (variance + ridge).astype(psi.dtype)
    utilities = np.zeros(candidates)
    for c in range(candidates):
        a = influence[:, c]
        base = mean - a[:, None] * probabilities[c]
        for y in range(mean.shape[1]):
            logits = base.copy()
            logits[:, y] += a
            logits -= logits.max(axis=1, keepdims=True)
            weights = np.exp(logits)
            total = weights.sum(axis=1)
            entropy = np.log(total) - (weights * logits).sum(axis=1) / total
            utilities[c] -= probabilities[c, y] * entropy.sum(dtype=np.float64)
    return utilities
