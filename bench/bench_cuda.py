"""The GPU operations against their limits and the opponents: rows for bench/results/<device>.csv.

    python bench/bench_cuda.py [--only a b selection dense] [--out bench/results/<device>.csv]
    python bench/bench_cuda.py --dry-run     tiny cases, nothing written; also on the emulated build

a: 1e4 candidates x 1e4 points, d = 1000, 10 classes, float32-accurate products.
b: 1e5 x 1e5, d = 5000, 100 classes, tf32 products.
selection: sequential variance_reduction, 1000 picks from 1e6 x 1024.
dense: score of a covariance in device memory less the row of a pick; N = 2e4, 10 classes.

CUDA events around each call, all providers of a case once per round, the second-level cache flushed
before each. Opponents too slow for the whole case run on its first candidates, against all points;
their time is scaled by the number of candidates, and the row says so.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import torch
from opponents import trick_chunk, trick_chunk_compiled

from ntkfast import _core, cuda_ops
from ntkfast.ops import ScoreInputs

GIB = 2**30
EMULATED = _core.cuda_emulated()
DEVICE = "cpu" if EMULATED else "cuda"
if EMULATED:  # a build for tests
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import emulation

    emulation.install()


def device_name() -> str:
    return "emulation" if EMULATED else torch.cuda.get_device_name()


def k_squared_chunk(psi_c, mean_c, probs_c, inverse_c, psi, mean):
    """All labels, each with its own softmax: k^2 exponentials per pair."""
    a = (psi_c @ psi.T) * inverse_c[:, None]
    residual = torch.eye(mean.shape[1], device=mean.device)[None] - mean_c[:, None]
    lp = (mean[None, :, None] + a[:, :, None, None] * residual[:, None]).log_softmax(-1)
    return ((lp.exp() * lp).sum(-1).sum(1) * probs_c).sum(1)


def in_chunks(function: Any, tensors: tuple[torch.Tensor, ...], count: int, chunk: int) -> Any:
    psi, mean, probs, inverse = tensors

    def run() -> torch.Tensor:
        parts = []
        for i in range(0, count, chunk):
            c = slice(i, min(i + chunk, count))
            parts.append(function(psi[c], mean[c], probs[c], inverse[c], psi, mean))
        return torch.cat(parts)

    return run


def elapsed(function: Callable[[], Any], flush: torch.Tensor) -> float:
    """Milliseconds on the device, from a cold second-level cache."""
    flush.zero_()
    if EMULATED:
        begin = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - begin)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def measure(
    benchmark: str,
    case: str,
    providers: dict[str, tuple[Callable[[], Any], float]],
    rounds: int,
    errors: dict[str, float],
) -> list[dict[str, Any]]:
    """Rows of a case. Providers: the call, and what its time is multiplied by."""
    flush = torch.empty(1 if EMULATED else GIB // 4, dtype=torch.uint8, device=DEVICE)
    times: dict[str, list[float]] = {name: [] for name in providers}
    for function, _ in providers.values():
        function()
    for _ in range(rounds):
        for name, (function, factor) in providers.items():
            times[name].append(factor * elapsed(function, flush) / 1e3)
    new = record.rows(benchmark, case, times, errors)
    for row in new:
        row.update(device=device_name(), isa="cuda", threads="")
    record.show(new)
    return new


def tuned(function: Any, tensors: tuple[torch.Tensor, ...], count: int, chunks: list[int]) -> Any:
    """The call with the chunk that is fastest here."""
    flush = torch.empty(1, device=DEVICE)
    best: dict[int, float] = {}
    for chunk in chunks:
        run = in_chunks(function, tensors, count, min(chunk, count))
        try:
            run()
            best[chunk] = min(elapsed(run, flush) for _ in range(2))
        except torch.cuda.OutOfMemoryError:
            break
    chunk = min(best, key=best.__getitem__)
    print(f"    chunk {chunk} of {sorted(best)}")
    return in_chunks(function, tensors, count, min(chunk, count))


def scoring(
    case: str, candidates: int, points: int, d: int, k: int, products: str, sample: int
) -> list[dict[str, Any]]:
    """Expected entropy; `sample` candidates for the opponents, fewer for k^2."""
    flops, labels = 2 * candidates * points * d, candidates * points * k
    print(f"case {case}: GEMM {flops:.3g} FLOP, {labels:.3g} (point, candidate, label) triples")
    # Opponents with the same products.
    torch.backends.cuda.matmul.allow_tf32 = products == "tf32"
    generator = torch.Generator(device=DEVICE).manual_seed(0)
    psi = torch.randn(points, d, device=DEVICE, generator=generator) / d**0.5
    mean = torch.randn(points, k, device=DEVICE, generator=generator)
    probs = torch.softmax(torch.randn(candidates, k, device=DEVICE, generator=generator), 1)
    noise = 0.1
    variance = cuda_ops.squared_norms(psi)
    inverse = (1 / (variance[:candidates] + noise)).float()
    ones = torch.ones(points, dtype=torch.float64, device=DEVICE)
    index = torch.arange(candidates, device=DEVICE)
    inputs = ScoreInputs(
        candidates=index, evaluation=None, mean=mean.double(), outputs=mean.double(), ridge=noise,
        noise=torch.full((candidates,), noise, dtype=torch.float64, device=DEVICE),
        label_probs=probs.double(), weights=ones, label_scale=1.0, loss="squared", temperature=1.0,
    )  # fmt: skip

    def own(products: str) -> Callable[[], Any]:
        return lambda: cuda_ops.score_features(
            "expected_entropy", psi, inputs, variance=variance, products=products
        )

    def gemm() -> None:
        out = psi.new_empty(min(8192, candidates), points)
        for i in range(0, candidates, 8192):
            rows = psi[i : min(i + 8192, candidates)]
            torch.mm(rows, psi.T, out=out[: len(rows)])

    few = max(1, sample // (8 if k <= 10 else 64))
    tensors = (psi, mean, probs, inverse)
    chunks = [4, 16, 64, 256]
    compiled = tuned(trick_chunk_compiled, tensors, sample, chunks)
    eager = tuned(trick_chunk, tensors, sample, chunks)
    k_squared = tuned(k_squared_chunk, tensors, few, [1, 4, 16])

    exact_psi = psi.double()
    exact_tensors = (exact_psi, mean.double(), probs.double(), 1 / (variance[:candidates] + noise))
    exact = in_chunks(trick_chunk, exact_tensors, min(64, sample), 4)()
    del exact_psi, exact_tensors

    def error(found: torch.Tensor) -> float:
        return float(((found[: len(exact)] - exact).abs().max() / exact.abs().max()).item())

    others = [p for p in ("tf32x3", "tf32", "fma32") if p != products]
    found = own(products)()
    errors = {f"ntkfast, {products}": error(found), "trick, torch.compile": error(compiled())}
    assert errors[f"ntkfast, {products}"] < (1e-5 if products != "tf32" else 1e-3)
    scale = candidates / sample
    part = "" if scale == 1 else f" (timed on {sample} candidates)"
    providers: dict[str, tuple[Callable[[], Any], float]] = {
        f"ntkfast, {products}": (own(products), 1.0),
        f"trick, torch.compile{part}": (compiled, scale),
        f"trick, eager{part}": (eager, scale),
        f"k^2 labels, eager (timed on {few} candidates)": (k_squared, candidates / few),
        "GEMM alone, torch": (gemm, 1.0),
        "GEMM-bound criterion (variance_reduction)": (
            lambda: cuda_ops.score_features(
                "variance_reduction", psi, inputs, variance=variance, products=products
            ),
            1.0,
        ),
    }
    if candidates * points <= 10**9:
        providers.update({f"ntkfast, {p}": (own(p), 1.0) for p in others})
    errors[f"trick, torch.compile{part}"] = errors.pop("trick, torch.compile")
    label = f"{candidates} x {points}, d = {d}, k = {k}"
    return measure(f"cuda scoring {case}", label, providers, 20 if case == "a" else 3, errors)


def selection(N: int = 10**6, d: int = 1024, picks: int = 1000) -> list[dict[str, Any]]:
    """Sequential variance_reduction; limit: one read of psi per pick."""
    psi = torch.randn(N, d, device=DEVICE) / d**0.5
    gram = cuda_ops.weighted_gram(psi, torch.ones(N, dtype=torch.float64, device=DEVICE))
    q, s = cuda_ops.quadratic_form(psi, gram), cuda_ops.squared_norms(psi)
    noise = torch.full((N,), 0.1, dtype=torch.float64, device=DEVICE)

    def select(count: int) -> Callable[[], Any]:
        return lambda: cuda_ops.select_variance_reduction(
            psi, None, count, gram=gram, q=q.clone(), s=s.clone(), noise=noise
        )

    other = torch.empty_like(psi[: N // 2])
    providers: dict[str, tuple[Callable[[], Any], float]] = {
        "ntkfast": (select(picks), 1.0),
        # Half of psi read and written moves as many bytes as all of it read.
        "memory alone": (lambda: other.copy_(psi[: N // 2]), float(picks)),
        "weighted_gram": (
            lambda: cuda_ops.weighted_gram(psi, torch.ones_like(noise)),
            1.0,
        ),
        "quadratic_form": (lambda: cuda_ops.quadratic_form(psi, gram), 1.0),
    }
    return measure("cuda selection", f"{picks} picks, {N} x {d}", providers, 3, {})


def dense(N: int = 20_000, k: int = 10) -> list[dict[str, Any]]:
    """Scoring of S less the row of a pick; limit: S read once."""
    psi = torch.randn(N, 256, device=DEVICE) / 16
    S = psi @ psi.T
    mean = torch.randn(N, k, dtype=torch.float64, device=DEVICE)
    ones = torch.ones(N, dtype=torch.float64, device=DEVICE)
    V = 1e-3 * torch.randn(1, N, device=DEVICE)
    inputs = ScoreInputs(
        candidates=None, evaluation=None, mean=mean, outputs=mean, noise=0.1 * ones, ridge=0.1,
        label_probs=torch.softmax(mean, 1), weights=ones, label_scale=1.0, loss="squared",
        temperature=1.0,
    )  # fmt: skip
    variance = S.diagonal().double()
    providers: dict[str, tuple[Callable[[], Any], float]] = {
        f"ntkfast, {criterion}": (
            lambda criterion=criterion: cuda_ops.score_dense(
                criterion, S, inputs, variance=variance, downdate=V
            ),
            1.0,
        )
        for criterion in ("variance_reduction", "expected_error", "expected_entropy")
    }
    other = torch.empty_like(S[: N // 2])
    # Half of S read and written moves as many bytes as all of it read.
    providers["memory alone"] = (lambda: other.copy_(S[: N // 2]), 1.0)
    return measure("cuda dense", f"N = {N}, k = {k}, rank 1", providers, 20, {})


CASES: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "a": lambda: scoring("a", 10**4, 10**4, 1000, 10, "tf32x3", 1024),
    "b": lambda: scoring("b", 10**5, 10**5, 5000, 100, "tf32", 256),
    "selection": selection,
    "dense": dense,
}
TINY: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "a": lambda: scoring("a", 70, 80, 20, 10, "tf32x3", 64),
    "b": lambda: scoring("b", 70, 80, 20, 100, "tf32", 64),
    "selection": lambda: selection(100, 8, 3),
    "dense": lambda: dense(80),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="tiny cases, nothing is written")
    options = parser.parse_args()
    if cuda_ops.problem():
        sys.exit(f"bench_cuda: {cuda_ops.problem()}")  # never a silent skip
    if EMULATED and not options.dry_run:
        sys.exit("bench_cuda: this build emulates the GPU; only --dry-run means anything")
    slug = device_name().lower().replace(" ", "-").replace("/", "-")
    out = options.out or record.RESULTS / f"{slug}.csv"
    source = record.commit()
    print(f"{device_name()}, {datetime.date.today()}, commit {source}")
    for name in options.only:
        new = (TINY if options.dry_run else CASES)[name]()
        if not options.dry_run:
            out.parent.mkdir(parents=True, exist_ok=True)
            record.write(out, new)  # after each case: a time limit must not lose what was measured
        own = statistics.mean(float(row["median_ms"]) for row in new[:1])
        print(f"  {name}: {own:.4g} ms")
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
