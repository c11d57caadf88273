"""Honest opponents: expected entropy on one fixed problem, by every means a user has today.

The problem is the benchmark case of the field: 512 candidates, 2048 evaluation points, covariances
of inner dimension 1000, 10 classes, squared loss. Every opponent maps a `Problem` to utilities
(N_c,) and is checked against float64 before it is timed. PyTorch's own chunk sizes are tuned, not
guessed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from ntkfast import ops


@dataclass(frozen=True)
class Problem:
    psi: np.ndarray  # (N, d) float32: the first N_c rows are the candidates, all rows are evaluated
    mean: np.ndarray  # (N, k) float64
    probs: np.ndarray  # (N_c, k)
    noise: float
    temperature: float

    @property
    def num_candidates(self) -> int:
        return len(self.probs)

    @property
    def flops(self) -> float:
        """Of the covariances: 2 N_c N_x d."""
        return 2.0 * self.num_candidates * len(self.psi) * self.psi.shape[1]


def problem(
    num_candidates: int = 512, num_points: int = 2048, d: int = 1000, k: int = 10, seed: int = 0
) -> Problem:
    r = np.random.default_rng(seed)
    psi = (r.normal(size=(num_points, d)) / np.sqrt(d)).astype(np.float32)
    mean = r.normal(size=(num_points, k))
    return Problem(psi, mean, r.dirichlet(np.ones(k), num_candidates), 0.1, 1.0)


def reference(p: Problem, rows: slice = slice(0, 16)) -> np.ndarray:
    """Float64, every f+ written out, for some of the candidates."""
    psi, c = p.psi.astype(np.float64), np.arange(p.num_candidates)[rows]
    a = (psi[c] @ psi.T) / ((psi[c] ** 2).sum(1) + p.noise)[:, None]
    out = np.zeros(len(c))
    for y in range(p.mean.shape[1]):
        r = np.eye(p.mean.shape[1])[y] - p.mean[c]
        z = (p.mean[None] + a[:, :, None] * r[:, None]) / p.temperature
        z -= z.max(-1, keepdims=True)
        lp = z - np.log(np.exp(z).sum(-1, keepdims=True))
        out += p.probs[c, y] * (np.exp(lp) * lp).sum((1, 2))
    return out


@dataclass(frozen=True)
class Tensors:
    psi: torch.Tensor
    mean: torch.Tensor
    probs: torch.Tensor
    inverse: torch.Tensor  # 1 / (S(c, c) + noise)


def tensors(p: Problem) -> Tensors:
    psi = torch.from_numpy(p.psi)
    inverse = 1 / ((psi[: p.num_candidates] ** 2).sum(1) + p.noise)
    return Tensors(
        psi, torch.from_numpy(p.mean).float(), torch.from_numpy(p.probs).float(), inverse
    )


# A chunk function takes tensors only (no indices), so that torch.compile compiles it once per
# shape: # psi_c (c, d), mean_c (c, k), probs_c (c, k), inverse_c (c,), psi (N, d), mean (N, k) ->
# (c,).


def k_squared_chunk(psi_c, mean_c, probs_c, inverse_c, psi, mean):
    """All labels of a chunk, each with its own softmax: k^2 exponentials per pair."""
    a = (psi_c @ psi.T) * inverse_c[:, None]
    residual = torch.eye(mean.shape[1])[None] - mean_c[:, None]  # (c, y, j)
    lp = (mean[None, :, None] + a[:, :, None, None] * residual[:, None]).log_softmax(-1)
    return ((lp.exp() * lp).sum(-1).sum(1) * probs_c).sum(1)


def trick_chunk(psi_c, mean_c, probs_c, inverse_c, psi, mean):
    """The O(1)-per-label trick: one set of k exponentials per pair serves all k labels."""
    a = ((psi_c @ psi.T) * inverse_c[:, None])[:, :, None]
    u = mean[None] - a * mean_c[:, None]
    w = u.exp()
    total, moment = w.sum(-1, keepdim=True), (u * w).sum(-1, keepdim=True)
    grown = a.exp()
    z = total + w * (grown - 1)
    n = moment + w * (u * (grown - 1) + a * grown)
    return ((n / z - z.log()) * probs_c[:, None]).sum((1, 2))


def guarded_trick_chunk(psi_c, mean_c, probs_c, inverse_c, psi, mean):
    """The trick made safe where it overflows or cancels first: relative to the largest logit, with
    the arg-max kept apart from the sum of the others. (ntkfast's own guard goes further.)"""
    a = ((psi_c @ psi.T) * inverse_c[:, None])[:, :, None]
    u = mean[None] - a * mean_c[:, None]
    t = u - u.amax(-1, keepdim=True)
    w = t.exp()
    top = t == 0
    others = torch.where(top, 0.0, w).sum(-1, keepdim=True)
    moment = (t * w).sum(-1, keepdim=True)
    grown = a.exp()
    z = torch.where(top, others, 1 + others - w) + w * grown
    n = moment - t * w + w * (t * grown + a * grown)
    return ((n / z - z.log()) * probs_c[:, None]).sum((1, 2))


trick_chunk_compiled = torch.compile(trick_chunk, dynamic=False)
guarded_trick_chunk_compiled = torch.compile(guarded_trick_chunk, dynamic=False)
k_squared_chunk_compiled = torch.compile(k_squared_chunk, dynamic=False)


def chunked(chunk_function: Any, t: Tensors, chunk: int) -> np.ndarray:
    parts = []
    for i in range(0, len(t.probs), chunk):
        c = slice(i, i + chunk)
        parts.append(
            chunk_function(
                t.psi[c], t.mean[: len(t.probs)][c], t.probs[c], t.inverse[c], t.psi, t.mean
            )
        )
    return torch.cat(parts).numpy()


@cache
def tuned_chunk(chunk_function: Any, candidates: tuple[int, ...]) -> int:
    """The fastest chunk on the benchmark problem, found by trying."""
    t = tensors(problem())
    best = {}
    for chunk in candidates:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            chunked(chunk_function, t, chunk)
            times.append(time.perf_counter() - start)
        best[chunk] = min(times[1:])
    return min(best, key=best.__getitem__)


def numpy_closed_form(p: Problem, chunk: int = 8) -> np.ndarray:
    """The trick in NumPy, float32."""
    psi, mean = p.psi, p.mean.astype(np.float32)
    n_c = p.num_candidates
    inverse = 1 / ((psi[:n_c] ** 2).sum(1) + np.float32(p.noise))
    out = np.empty(n_c)
    for i in range(0, n_c, chunk):
        c = slice(i, min(i + chunk, n_c))
        a = ((psi[c] @ psi.T) * inverse[c, None])[:, :, None]
        u = mean[None] - a * mean[c, None]
        w = np.exp(u)
        total, moment = w.sum(-1, keepdims=True), (u * w).sum(-1, keepdims=True)
        grown = np.exp(a)
        z = total + w * (grown - 1)
        n = moment + w * (u * (grown - 1) + a * grown)
        out[c] = ((n / z - np.log(z)) * p.probs[c, None].astype(np.float32)).sum((1, 2))
    return out


def ntkfast_arguments(p: Problem, criterion: str = "expected_entropy") -> dict[str, Any]:
    n, n_c, k = len(p.psi), p.num_candidates, p.mean.shape[1]
    inputs = ops.ScoreInputs(
        candidates=np.arange(n_c),
        evaluation=np.arange(n),
        mean=p.mean,
        outputs=p.mean,
        noise=np.full(n_c, p.noise),
        ridge=p.noise,
        label_probs=p.probs,
        weights=np.ones(n),
        label_scale=1.0,
        loss="squared",
        temperature=p.temperature,
        log_loss_targets=np.full((n, k), 1 / k),
    )
    return dict(criterion=criterion, inputs=inputs, variance=ops.squared_norms(p.psi))


def empty_call() -> Callable[[], np.ndarray]:
    """The smallest scoring call there is: what Python, checks and the binding cost."""
    none, two = np.ones(0), np.ones((2, 2))
    inputs = ops.ScoreInputs(
        candidates=np.arange(0), evaluation=np.arange(0), mean=two, outputs=two, noise=none,
        ridge=1.0, label_probs=np.ones((0, 2)), weights=none, label_scale=1.0, loss="squared",
        temperature=1.0,
    )  # fmt: skip
    psi, variance = two.astype(np.float32), np.ones(2)
    return lambda: ops.score_features("variance_reduction", psi, inputs, variance=variance)


def gemm_alone(t: Tensors) -> np.ndarray:
    """The covariances and nothing else: the floor of any implementation on torch."""
    return (t.psi[: len(t.probs)] @ t.psi.T).numpy()


_CHUNK_FUNCTIONS = {
    "trick, torch.compile": trick_chunk_compiled,
    "trick with overflow guard, torch.compile": guarded_trick_chunk_compiled,
    "trick, eager": trick_chunk,
    "k^2 labels, torch.compile": k_squared_chunk_compiled,
    "k^2 labels, eager": k_squared_chunk,
}
NAMES = ("ntkfast", "ntkfast, epilogue alone", *_CHUNK_FUNCTIONS, "closed form, numpy")


def providers(p: Problem) -> dict[str, Any]:
    """Every name of `NAMES` as a function of no argument that returns utilities."""
    t = tensors(p)
    dense = (p.psi @ p.psi.T).astype(np.float32)
    arguments = ntkfast_arguments(p)

    def in_chunks(name: str) -> Any:
        function = _CHUNK_FUNCTIONS[name]
        chunk = tuned_chunk(function, (4, 16) if name.startswith("k^2") else (8, 16, 32, 64, 128))
        return lambda: chunked(function, t, chunk)

    return {
        "ntkfast": lambda: ops.score_features(psi=p.psi, **arguments),
        "ntkfast, epilogue alone": lambda: ops.score_dense(S=dense, **arguments),
        **{name: in_chunks(name) for name in _CHUNK_FUNCTIONS},
        "closed form, numpy": lambda: numpy_closed_form(p),
    }
