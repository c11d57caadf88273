"""Every kind of products on a GPU against this build's CPU engine in float64: a table of errors.

    python tools/gpu_smoke.py [--out smoke.tsv]

Takes seconds and needs nothing but torch. A line is written as soon as it is known, and a failing
check does not end the others. Errors are relative to the largest utility. The last rows are of
features without a sign: their products add up without cancelling, and what tensor cores cut off
instead of rounding adds up with them.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ntkfast import _core, cuda_ops, ops

EMULATED = _core.cuda_emulated()
if EMULATED:  # a build for tests
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import emulation

    emulation.install()
DEVICE = "cpu" if EMULATED else "cuda"
TYPES = {"fma64": torch.float64, "bf16": torch.bfloat16}
# Of random signs: rounding to 24, 11 and 8 bits. bf16 features are rounded before either side.
BOUNDS = {"fma64": 1e-11, "fma32": 2e-5, "f16x3": 2e-5, "f16": 2e-2, "bf16": 2e-5}


def there(value: Any) -> Any:
    return torch.from_numpy(value).to(DEVICE) if isinstance(value, np.ndarray) else value


def problem(
    N: int, d: int, k: int, *, coherent: bool = False
) -> tuple[np.ndarray, ops.ScoreInputs]:
    rng = np.random.default_rng(1000 * k + d)
    psi = rng.normal(size=(N, d)) / np.sqrt(d)
    psi = np.abs(psi) if coherent else psi
    mean = rng.normal(size=(N, k))
    candidates, evaluation = rng.permutation(N)[: N // 2], rng.permutation(N)[: N - N // 6]
    inputs = ops.ScoreInputs(
        candidates=candidates,
        evaluation=evaluation,
        mean=mean,
        outputs=mean + 0.5 * rng.normal(size=(N, k)),
        noise=rng.uniform(0.1, 1, len(candidates)),
        ridge=0.3,
        label_probs=rng.dirichlet(np.ones(k), len(candidates)),
        weights=rng.uniform(0.1, 1, len(evaluation)),
        label_scale=1.0,
        loss="squared",
        temperature=1.0,
        log_loss_targets=rng.dirichlet(np.ones(k), len(evaluation)),
    )
    return psi, inputs


class Table:
    def __init__(self, path: Path | None) -> None:
        self.file = path.open("a") if path else None
        self.wrong = 0

    def add(self, name: str, bound: float, error: Callable[[], float]) -> None:
        try:
            found = error()
        except Exception:
            traceback.print_exc(file=sys.stdout)
            found = float("nan")
        verdict = "ok" if found <= bound else "WRONG"
        self.wrong += verdict != "ok"
        line = f"{verdict}\t{found:.1e}\t{bound:.0e}\t{name}"
        print(line, flush=True)
        if self.file:
            print(line, file=self.file, flush=True)


def relative(found: Any, expected: np.ndarray) -> float:
    difference = np.abs(found.double().cpu().numpy() - expected).max()
    return float(difference / np.abs(expected).max())


def scoring_error(criterion: str, products: str, psi: np.ndarray, inputs: ops.ScoreInputs) -> float:
    features = torch.from_numpy(psi).to(TYPES.get(products, torch.float32))
    exact = features.double().numpy()
    expected = ops.score_features(criterion, exact, inputs, variance=ops.squared_norms(exact))
    features = features.to(DEVICE)
    found = cuda_ops.score_features(
        criterion,
        features,
        replace(inputs, **{name: there(value) for name, value in vars(inputs).items()}),
        variance=cuda_ops.squared_norms(features),
        products=products,
    )
    return relative(found, expected)


def dense_error(criterion: str, kind: type, rank: int) -> float:
    psi, inputs = problem(300, 40, 10)
    S = (psi @ psi.T).astype(kind)
    V = (0.05 * np.random.default_rng(rank).normal(size=(rank, 300))).astype(kind)
    variance = np.diagonal(S).astype(np.float64).copy()
    expected = ops.score_dense(
        criterion, S.astype(np.float64), inputs, variance=variance, downdate=V.astype(np.float64)
    )
    found = cuda_ops.score_dense(
        criterion,
        there(S),
        replace(inputs, **{name: there(value) for name, value in vars(inputs).items()}),
        variance=there(variance),
        downdate=there(V),
    )
    return relative(found, expected)


def blocks_error(criterion: str, kind: type, k: int) -> float:
    """Of blocks of 10 k features; a GPU takes them output by output."""
    N = 30 if EMULATED else 120
    _, inputs = problem(N, 1, k)
    c, x = inputs.candidates, inputs.evaluation
    rng = np.random.default_rng(k)
    psi = (rng.normal(size=(N, k, 10 * k)) / np.sqrt(10 * k)).astype(kind)
    own = psi.astype(np.float64) @ psi.astype(np.float64).swapaxes(1, 2)
    S = (psi[c].reshape(len(c) * k, -1) @ psi[x].reshape(len(x) * k, -1).T).astype(kind)
    expected = ops.score_blocks(
        criterion, S.astype(np.float64), inputs, variance=own[c], evaluation_variance=own[x]
    )
    by_output = np.ascontiguousarray(S.reshape(-1, len(x), k).swapaxes(1, 2)).reshape(len(S), -1)
    found, wrong = cuda_ops.score_blocks(
        criterion,
        there(by_output),
        replace(inputs, **{name: there(value) for name, value in vars(inputs).items()}),
        variance=there(own[c]),
        evaluation_variance=there(own[x]),
    )
    return relative(found, expected) if not bool(wrong.any()) else float("nan")


def picks_error() -> float:
    """Largest relative error of the utilities of six picks; infinite where a pick differs."""
    rng = np.random.default_rng(3)
    psi = (rng.normal(size=(500, 64)) * np.exp(-np.arange(64) / 20)).astype(np.float32)
    exact = psi.astype(np.float64)
    G = exact.T @ exact
    x = there(psi)
    gram = cuda_ops.weighted_gram(x, there(np.ones(500)))
    picked, utilities = cuda_ops.select_variance_reduction(
        x, None, 6, gram=gram, q=cuda_ops.quadratic_form(x, gram), s=cuda_ops.squared_norms(x),
        noise=there(np.full(500, 0.1)),
    )  # fmt: skip
    C, worst, free = np.eye(64), 0.0, np.ones(500, bool)
    for pick, utility in zip(picked.tolist(), utilities.tolist(), strict=True):
        image = exact @ C
        value = ((image @ G) * image).sum(1) / ((image * exact).sum(1) + 0.1)
        best = int(np.where(free, value, -np.inf).argmax())
        if pick != best:
            return float("inf")
        worst = max(worst, abs(utility / value[best] - 1))
        free[best] = False
        C -= np.outer(image[best], image[best]) / (image[best] @ exact[best] + 0.1)
    return worst


def gram_error(products: str, coherent: bool) -> float:
    rng = np.random.default_rng(5)
    A = rng.normal(size=(200, 5000 if not EMULATED else 300))
    A = torch.from_numpy(np.abs(A) if coherent else A).to(TYPES.get(products, torch.float32))
    exact = A.double().numpy()
    kind = torch.float64 if products == "fma64" else torch.float32
    out = torch.zeros(200, 200, dtype=kind, device=DEVICE)
    A = A.to(DEVICE)
    cuda_ops.gram_add(A, A, out, products=products)
    return relative(out, exact @ exact.T)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    table = Table(parser.parse_args().out)
    N = 60 if EMULATED else 600
    for d in (37, 1000 if not EMULATED else 70):
        for k in (2, 10, 26):
            psi, inputs = problem(N, d, k)
            for products, bound in BOUNDS.items():
                for criterion in ("expected_entropy", "variance_reduction", "epig", "emoc"):
                    table.add(
                        f"{criterion}, {products}, d = {d}, k = {k}", bound,
                        lambda c=criterion, p=products, psi=psi, i=inputs: scoring_error(
                            c, p, psi, i
                        ),
                    )  # fmt: skip
    for kind in (np.float32, np.float64):
        for rank in (0, 1, 3, 20):
            for criterion in ("variance_reduction", "expected_entropy"):
                table.add(
                    f"score_dense, {criterion}, {kind.__name__}, rank {rank}",
                    5e-5 if kind is np.float32 else 1e-11,
                    lambda c=criterion, t=kind, r=rank: dense_error(c, t, r),
                )
    for kind in (np.float32, np.float64):
        for k in (2, 10, 26):
            for criterion in ("expected_entropy", "emoc", "variance_reduction", "epig"):
                table.add(
                    f"score_blocks, {criterion}, {kind.__name__}, k = {k}",
                    5e-5 if kind is np.float32 else 1e-11,
                    lambda c=criterion, t=kind, k=k: blocks_error(c, t, k),
                )
    table.add("six picks", 1e-9, picks_error)
    for products, bound in BOUNDS.items():
        for coherent in (False, True):
            sign = "no signs" if coherent else "signs"
            table.add(
                f"gram_add, {products}, {sign}", bound,
                lambda p=products, c=coherent: gram_error(p, c),
            )  # fmt: skip
    for d in (1000, 5000) if not EMULATED else (300,):
        psi, inputs = problem(N, d, 10, coherent=True)
        for products, bound in (BOUNDS | {"f16x3": 5e-6, "fma32": 5e-6, "f16": 2e-3}).items():
            for criterion in ("variance_reduction", "epig"):
                table.add(
                    f"{criterion}, {products}, no signs, d = {d}", bound,
                    lambda c=criterion, p=products, psi=psi, i=inputs: scoring_error(c, p, psi, i),
                )  # fmt: skip
    if table.wrong:
        sys.exit(f"gpu_smoke: {table.wrong} of the checks WRONG")


if __name__ == "__main__":
    main()
