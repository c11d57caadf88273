"""Scoring with k x k blocks beside torch, interleaved; writes rows to bench/results/cpu.csv.

    OMP_NUM_THREADS=1 NTKFAST_NUM_THREADS=1 python bench/compare_blocks.py

Expected entropy of a matrix-valued kernel in memory, k = 10, float32. What everybody computes for a
pair of points is k^3 multiply-adds and k^2 exponentials; torch does it as one batched product and
one log-softmax for some candidates at a time.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import record
import torch

from ntkfast import ops


def problem(num_candidates: int, num_points: int, k: int, seed: int = 0) -> dict[str, Any]:
    """What `by_ntkfast` takes; the first points are the candidates, all are evaluated."""
    r = np.random.default_rng(seed)
    psi = (r.normal(size=(num_points * k, 4 * k)) / np.sqrt(4 * k)).astype(np.float32)
    S = psi @ psi.T
    mean = r.normal(size=(num_points, k))
    blocks = S.reshape(num_points, k, num_points, k)
    points = np.arange(num_points)
    return dict(
        covariance=S[: num_candidates * k],
        candidates=points[:num_candidates],
        evaluation=points,
        mean=mean,
        outputs=mean,
        variance=blocks[points, :, points][:num_candidates].astype(np.float64),
        noise=np.full(num_candidates, 0.1),
        ridge=0.1,
        label_probs=r.dirichlet(np.ones(k), num_candidates),
        weights=np.ones(num_points),
        label_scale=1.0,
        loss="squared",
        temperature=1.0,
        log_loss_targets=None,
    )


def by_ntkfast(criterion: str, p: dict[str, Any]) -> np.ndarray:
    own = {name: p[name] for name in ("covariance", "variance", "evaluation_variance") if name in p}
    inputs = ops.ScoreInputs(**{name: p[name] for name in p if name not in own})
    return ops.score_blocks(criterion, inputs=inputs, **own)


def gains(p: dict[str, Any]) -> np.ndarray:
    """(S(c, c) + lam I)^-1 (e_y - F(c)) (N_c, k, k), a row for each label; float64."""
    k = p["mean"].shape[1]
    residual = np.eye(k) - p["mean"][p["candidates"]][:, None]
    A = p["variance"] + p["noise"][:, None, None] * np.eye(k)
    return np.linalg.solve(A, residual.transpose(0, 2, 1)).transpose(0, 2, 1)


def by_torch(p: dict[str, Any], chunk: int, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Every f+ of `chunk` candidates at a time."""
    k = p["mean"].shape[1]
    S = torch.from_numpy(p["covariance"]).reshape(-1, k, len(p["mean"]) * k)
    mean, probs = (torch.from_numpy(p[name]).to(dtype) for name in ("mean", "label_probs"))
    gain = torch.from_numpy(gains(p)).to(dtype)
    parts = []
    for i in range(0, len(S), chunk):
        c = slice(i, i + chunk)
        change = torch.bmm(gain[c], S[c].to(dtype)).reshape(-1, k, len(mean), k)
        lp = (mean + change).log_softmax(-1)
        parts.append(((lp.exp() * lp).sum((2, 3)) * probs[c]).sum(1))
    return torch.cat(parts).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=256)
    parser.add_argument("--points", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--show-only", action="store_true", help="write no rows")
    options = parser.parse_args()
    torch.set_num_threads(ops.num_threads())
    p = problem(options.candidates, options.points, options.classes)
    few = {name: p[name][:8] for name in ("candidates", "variance", "noise", "label_probs")}
    few["covariance"] = p["covariance"][: 8 * options.classes]
    expected = by_torch(p | few, 8, torch.float64)
    chunks = (1, 2, 4, 8, 16, 32)
    providers = {"ntkfast": lambda: by_ntkfast("expected_entropy", p)}
    trials = {f"{n}": (lambda n=n: by_torch(p, n)) for n in chunks}
    times = record.interleaved(trials, rounds=2)
    best = int(min(times, key=lambda name: min(times[name])))
    providers["torch, k^2 labels in chunks"] = lambda: by_torch(p, best)
    errors = {}
    for name, function in providers.items():
        found = function()[:8]
        errors[name] = float(np.abs(found - expected).max() / np.abs(expected).max())
        assert errors[name] < 1e-5, (name, errors[name])
    case = f"{options.candidates} x {options.points}, k {options.classes}, float32"
    rows = record.rows(
        "score_blocks, expected_entropy",
        case,
        record.interleaved(providers, rounds=options.rounds),
        errors,
    )
    record.show(rows)
    if not options.show_only:
        record.write(record.RESULTS / "cpu.csv", rows)


if __name__ == "__main__":
    main()
