"""The GPU operations against their limits and the opponents: rows for bench/results/<device>.csv.

    python bench/bench_cuda.py [--only a b selection dense] [--out bench/results/<device>.csv]
    python bench/bench_cuda.py --own         no opponents: what takes seconds, not minutes
    python bench/bench_cuda.py --dry-run     tiny cases; also on the emulated build

ceilings: what torch's libraries reach here: a copy, matrix products.
a: 1e4 candidates x 1e4 points, d = 1000, 10 classes, float32-accurate products.
b: 1e5 x 1e5, d = 5000, 100 classes, products of float16 numbers (the bits of tf32). b-part: its
    first 8448 candidates. b-small: 2048 x 20000 of it, for profiles.
dense: score of a covariance in device memory less the row of a pick; N = 2e4, 10 classes.
blocks: 1500 candidates x 1500 points, d = 1000, blocks of 10 x 10: covariances, then their score.
selection: sequential variance_reduction, 1000 picks from 1e6 x 1024.
gram: A A^T, 8192 x 32768, by kind of products. gram-few: the lower half of 1000 x 262144 and of
    190 x 262144, as for the Gram matrix of a network: fewer tiles than multiprocessors.
contract: a Gram matrix and sketches of the last stage of ResNet-18, from factors of its gradients.
resnet, resnet-large: the Gram matrix of 1000 and of 1e4 images of 3 x 32 x 32 under a ResNet-18
    (P = 11.2e6), convolutions in float32 but where a row says tf32. resnet-features: of 2048
    images. resnet-trace: what both spend their time with, by torch.

CUDA events around each call, all providers of a case once per round, the second-level cache flushed
before each. Opponents too slow for the whole case run on its first candidates, against all points;
their time is scaled by the number of candidates, and the row says so. Rows are written case by
case, or without --out shown only; what fails is reported, and the rest goes on.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ntk_models
import record
import torch
from opponents import trick_chunk, trick_chunk_compiled

from ntkfast import _core, cuda_ops
from ntkfast.ntk import EmpiricalNTK
from ntkfast.ops import ScoreInputs

GIB = 2**30
EMULATED = _core.cuda_emulated()
DEVICE = "cpu" if EMULATED else "cuda"
if EMULATED:  # a build for tests
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import emulation

    emulation.install()

Provider = tuple[Callable[[], Any], float]  # the call, and what its time is multiplied by


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


class Bench:
    """Options of a run, and what failed in it."""

    def __init__(self, own: bool, variant: str, rounds: int | None, chunks: list[int]) -> None:
        self.own, self.variant, self.rounds, self.chunks = own, variant, rounds, chunks
        self.failed: list[str] = []

    def attempt(self, name: str, function: Callable[[], Any]) -> Any:
        """What the function returns; where it fails, that is told, and None comes back."""
        try:
            return function()
        except Exception:
            traceback.print_exc(file=sys.stdout)
            self.failed.append(name)
            return None

    def ours(self, name: str = "") -> str:
        """Name of a provider of this build."""
        name = f"ntkfast, {name}" if name else "ntkfast"
        return f"{name} ({self.variant})" if self.variant else name

    def check(self, name: str, error: float, bound: float) -> None:
        if not error <= bound:
            print(f"WRONG: {name}: error {error:.1e}, at most {bound:.1e} expected")
            self.failed.append(name)

    def measure(
        self,
        benchmark: str,
        case: str,
        providers: dict[str, Provider],
        rounds: int,
        errors: dict[str, float] | None = None,
        warm: bool = True,
    ) -> list[dict[str, Any]]:
        """Rows of a case, without the providers that fail.

        Without `warm` the first call of each counts: what takes long, of kernels that have run.
        """
        flush = torch.empty(1 if EMULATED else GIB // 4, dtype=torch.uint8, device=DEVICE)
        times: dict[str, list[float]] = {}
        for name, (function, _) in providers.items():
            if not warm or self.attempt(
                name, lambda f=function: (f(), elapsed(lambda: None, flush))
            ):
                times[name] = []
        for _ in range(self.rounds or rounds):
            for name in times:
                function, factor = providers[name]
                took = self.attempt(name, lambda f=function: elapsed(f, flush))
                if took is not None:
                    times[name].append(factor * took / 1e3)
        times = {name: found for name, found in times.items() if found}
        if not times:
            return []
        new = record.rows(benchmark, case, times, errors or {})
        for row in new:
            row.update(device=device_name(), isa="cuda", threads="")
        record.show(new)
        return new

    def tuned(self, function: Any, tensors: tuple[torch.Tensor, ...], count: int, chunks: Any):
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


def ceilings(bench: Bench, copied: int = 4 * GIB, n: int = 8192) -> list[dict[str, Any]]:
    """What a copy and the products of torch reach on this device."""
    source = torch.empty(copied // 2, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    copy = f"copy, {copied >> 20} MiB read and written"
    providers: dict[str, Provider] = {copy: (lambda: target.copy_(source), 1.0)}
    amounts = {copy: (copied, "TB/s")}
    for kind, size in (("bfloat16", n), ("tf32", n), ("float32", n // 2), ("float64", n // 2)):
        a = torch.randn(size, size, device=DEVICE).to(getattr(torch, kind, torch.float32))
        out = torch.empty_like(a)

        def product(a=a, out=out, fast=kind == "tf32") -> None:
            torch.backends.cuda.matmul.allow_tf32 = fast
            torch.mm(a, a.T, out=out)

        providers[f"A A^T, {kind}, {size}^3"] = (product, 1.0)
        amounts[f"A A^T, {kind}, {size}^3"] = (2 * size**3, "TFLOP/s")
    rows = bench.measure("cuda ceilings", "torch", providers, 10)
    for row in rows:
        amount, unit = amounts[row["provider"]]
        print(f"    {row['provider']}: {amount / float(row['median_ms']) / 1e9:.4g} {unit}")
    return rows


def scoring(
    bench: Bench,
    case: str,
    candidates: int,
    points: int,
    d: int,
    k: int,
    products: str,
    sample: int,
) -> list[dict[str, Any]]:
    """Expected entropy; `sample` candidates for the opponents, fewer for k^2."""
    flops, labels = 2 * candidates * points * d, candidates * points * k
    print(f"case {case}: GEMM {flops:.3g} FLOP, {labels:.3g} (point, candidate, label) triples")
    # Opponents with the same products.
    torch.backends.cuda.matmul.allow_tf32 = products == "f16"  # as many bits
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

    def own(products: str, criterion: str = "expected_entropy") -> Callable[[], Any]:
        features = psi.bfloat16() if products == "bf16" else psi
        return lambda: cuda_ops.score_features(
            criterion, features, inputs, variance=variance, products=products
        )

    def gemm() -> None:
        out = psi.new_empty(min(8192, candidates), points)
        for i in range(0, candidates, 8192):
            rows = psi[i : min(i + 8192, candidates)]
            torch.mm(rows, psi.T, out=out[: len(rows)])

    exact_psi = psi.double()
    exact_tensors = (exact_psi, mean.double(), probs.double(), 1 / (variance[:candidates] + noise))
    exact = in_chunks(trick_chunk, exact_tensors, min(64, sample), 4)()
    del exact_psi, exact_tensors

    def error(found: torch.Tensor) -> float:
        return float(((found[: len(exact)] - exact).abs().max() / exact.abs().max()).item())

    bounds = {"f16x3": 1e-5, "fma32": 1e-5, "f16": 1e-3, "bf16": 2e-2}
    kinds = [products]
    if candidates * points <= 10**9:
        kinds += [p for p in bounds if p != products]
    errors, providers = {}, {}
    for kind in kinds:
        name = bench.ours(kind)
        found = bench.attempt(name, own(kind))
        if found is None:
            continue
        errors[name] = error(found)
        bench.check(name, errors[name], bounds[kind])
        providers[name] = (own(kind), 1.0)
    reduction = own(products, "variance_reduction")
    providers[bench.ours(f"{products}, variance_reduction: bound by products")] = (reduction, 1.0)
    if not bench.own:
        few = max(1, sample // (8 if k <= 10 else 64))
        tensors = (psi, mean, probs, inverse)
        part = "" if candidates == sample else f" (timed on {sample} candidates)"
        for name, function, count, chunks in (
            (f"trick, torch.compile{part}", trick_chunk_compiled, sample, bench.chunks),
            (f"trick, eager{part}", trick_chunk, sample, bench.chunks),
            (f"k^2 labels, eager (timed on {few} candidates)", k_squared_chunk, few, [1, 4, 16]),
        ):
            call = bench.attempt(
                name, lambda f=function, n=count, c=chunks: bench.tuned(f, tensors, n, c)
            )
            if call is not None:
                providers[name] = (call, candidates / count)
                if count >= len(exact):
                    errors[name] = error(call())
        providers["GEMM alone, torch"] = (gemm, 1.0)
    label = f"{candidates} x {points}, d = {d}, k = {k}"
    rounds = 20 if case == "a" else 1 if bench.own else 3
    return bench.measure(f"cuda scoring {case}", label, providers, rounds, errors)


def selection(
    bench: Bench, N: int = 10**6, d: int = 1024, picks: int = 1000
) -> list[dict[str, Any]]:
    """Sequential variance_reduction; limit: one read of psi per pick."""
    psi = torch.randn(N, d, device=DEVICE) / d**0.5
    gram = cuda_ops.weighted_gram(psi, torch.ones(N, dtype=torch.float64, device=DEVICE))
    q, s = cuda_ops.quadratic_form(psi, gram), cuda_ops.squared_norms(psi)
    noise = torch.full((N,), 0.1, dtype=torch.float64, device=DEVICE)
    other = torch.empty_like(psi[: N // 2])
    providers: dict[str, Provider] = {
        bench.ours(): (
            lambda: cuda_ops.select_variance_reduction(
                psi, None, picks, gram=gram, q=q.clone(), s=s.clone(), noise=noise
            ),
            1.0,
        ),
        # Half of psi read and written moves as many bytes as all of it read.
        "memory alone": (lambda: other.copy_(psi[: N // 2]), float(picks)),
        bench.ours("weighted_gram"): (
            lambda: cuda_ops.weighted_gram(psi, torch.ones_like(noise)),
            1.0,
        ),
        bench.ours("quadratic_form"): (lambda: cuda_ops.quadratic_form(psi, gram), 1.0),
    }
    if not bench.own:

        def wide(chunk: int = 65536) -> torch.Tensor:
            out = torch.zeros(d, d, dtype=torch.float64, device=DEVICE)
            for i in range(0, N, chunk):
                x = psi[i : i + chunk].double()
                out.addmm_(x.T * ones[i : i + chunk], x)
            return out

        ones = torch.ones_like(noise)
        providers["weighted_gram, torch in float64"] = (wide, 1.0)
    exact = psi[:4096].double()
    found = cuda_ops.weighted_gram(psi[:4096], 1.0 + noise[:4096])
    expected = (exact.T * (1.0 + noise[:4096])) @ exact
    error = float((found - expected).abs().max() / expected.abs().max())
    bench.check("weighted_gram", error, 1e-12)
    forms = ((exact @ gram) * exact).sum(1)
    bench.check("quadratic_form", float(((q[:4096] - forms) / forms).abs().max()), 1e-12)
    rounds = 1 if bench.own else 3
    return bench.measure("cuda selection", f"{picks} picks, {N} x {d}", providers, rounds)


def dense(bench: Bench, N: int = 20_000, k: int = 10) -> list[dict[str, Any]]:
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
    providers: dict[str, Provider] = {
        bench.ours(criterion): (
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
    return bench.measure("cuda dense", f"N = {N}, k = {k}, rank 1", providers, 20)


def blocks(bench: Bench, N: int = 1500, d: int = 1000, k: int = 10) -> list[dict[str, Any]]:
    """A panel of k x k covariances, and its scores; limit of both together: products."""
    psi = torch.randn(N, k, d, device=DEVICE) / d**0.5
    down, across = psi.reshape(N * k, d), psi.swapaxes(0, 1).reshape(k * N, d)  # output by output
    panel = torch.zeros(N * k, k * N, device=DEVICE)
    cuda_ops.gram_add(down, across.contiguous(), panel, products="f16x3")
    variance = psi.double() @ psi.double().swapaxes(1, 2)
    mean = torch.randn(N, k, dtype=torch.float64, device=DEVICE)
    ones = torch.ones(N, dtype=torch.float64, device=DEVICE)
    inputs = ScoreInputs(
        candidates=None, evaluation=None, mean=mean, outputs=mean, noise=0.1 * ones, ridge=0.1,
        label_probs=torch.softmax(mean, 1), weights=ones, label_scale=1.0, loss="squared",
        temperature=1.0,
    )  # fmt: skip
    again = torch.empty_like(panel)
    providers: dict[str, Provider] = {
        bench.ours(f"score_blocks, {criterion}"): (
            lambda criterion=criterion: cuda_ops.score_blocks(
                criterion, panel, inputs, variance=variance, evaluation_variance=variance
            ),
            1.0,
        )
        for criterion in ("variance_reduction", "emoc", "expected_entropy", "epig")
    }
    providers[bench.ours("the panel, f16x3")] = (
        lambda: cuda_ops.gram_add(down, across.contiguous(), again, products="f16x3"),
        1.0,
    )
    half = panel[: N * k // 2]
    # Half of it read and written moves as many bytes as all of it read.
    providers["memory alone"] = (lambda: again[: N * k // 2].copy_(half), 1.0)
    label = f"{N} x {N} blocks of {k} x {k}, d = {d}"
    return bench.measure("cuda blocks", label, providers, 10)


def gram(
    bench: Bench, n: int = 8192, depth: int = 32768, lower: bool = False
) -> list[dict[str, Any]]:
    """out += A A^T; limit: products."""
    wide = torch.randn(n, depth, device=DEVICE) / depth**0.5
    narrow, out = wide.bfloat16(), torch.zeros(n, n, device=DEVICE)
    exact = wide[:32].double() @ wide[:64].double().T
    kept = (lambda part: part.tril()) if lower else (lambda part: part)
    providers: dict[str, Provider] = {}
    errors = {}
    bounds = {"bf16": 1e-2, "f16": 1e-3, "f16x3": 1e-5, "fma32": 1e-5}
    for kind, bound in bounds.items():
        A, name = narrow if kind == "bf16" else wide, bench.ours(kind)
        call = lambda A=A, kind=kind: cuda_ops.gram_add(A, A, out, lower=lower, products=kind)  # noqa: E731
        out.zero_()
        bench.attempt(name, call)
        errors[name] = float((kept(out[:32, :64] - exact)).abs().max() / exact.abs().max())
        bench.check(name, errors[name], bound)
        providers[name] = (call, 1.0)
    for kind, A in (("bf16", narrow), ("tf32", wide), ("float32", wide)):

        def product(A=A, fast=kind == "tf32") -> None:
            torch.backends.cuda.matmul.allow_tf32 = fast
            torch.mm(A, A.T)

        providers[f"torch.mm, {kind}"] = (product, 1.0)
    case = f"{n} x {depth}, lower half" if lower else f"{n} x {depth}"
    rows = bench.measure("cuda gram", case, providers, 5, errors)
    for row in rows:
        amount = (1.0 if lower and row["provider"].startswith("ntkfast") else 2.0) * n * n * depth
        print(f"    {row['provider']}: {amount / float(row['median_ms']) / 1e9:.4g} TFLOP/s")
    return rows


def contract(
    bench: Bench, n: int = 512, T: int = 16, p: int = 512, q: int = 4608, dim: int = 4096
) -> list[dict[str, Any]]:
    """Of weight gradients (p, q) that are sums over T positions: a Gram matrix, and sketches."""
    left = torch.randn(n, T, p, device=DEVICE)
    right = torch.randn(n, T, q, device=DEVICE) / q**0.5
    out = torch.zeros(n, n, device=DEVICE)
    sketches = torch.zeros(n, dim, device=DEVICE)
    positions, rows = torch.arange(T, device=DEVICE), torch.arange(p, device=DEVICE)
    columns = torch.arange(q, device=DEVICE)
    factors = (
        left.flatten(1), positions * p, rows, right.flatten(1), positions * q, columns
    )  # fmt: skip
    gradients = left.mT @ right
    providers: dict[str, Provider] = {
        bench.ours(f"gram_ghost, {kind}"): (
            lambda a=a, b=b, kind=kind: cuda_ops.gram_ghost(a, b, a, b, out, products=kind),
            1.0,
        )
        for kind, a, b in (
            ("f16x3", left, right),
            ("f16", left, right),
            ("bf16", left.bfloat16(), right.bfloat16()),
        )
    }
    providers[bench.ours("sketch_gradients")] = (
        lambda: cuda_ops.sketch_gradients(*factors, 0, 1, 2, sketches),
        1.0,
    )
    # What the sketch of gradients that exist costs at least: they are written and read once.
    providers["gradients formed, torch"] = (
        lambda: torch.matmul(left.mT, right, out=gradients),
        1.0,
    )
    case = f"{n} samples, {T} positions, {p} x {q}, d = {dim}"
    return bench.measure("cuda contractions", case, providers, 3)


def in_tf32(function: Callable[[], Any], allowed: bool) -> Callable[[], Any]:
    """The same with convolutions in tf32, torch's default, or in float32; products in float32."""

    def run() -> Any:
        torch.backends.cudnn.allow_tf32 = allowed
        torch.backends.cuda.matmul.allow_tf32 = False
        return function()

    return run


def resnet18(n: int, every: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """ResNet-18, and images of every `every`-th pixel."""
    model, x = ntk_models.make("resnet18", n)
    return model.to(DEVICE), x[:, :, ::every, ::every].to(DEVICE)


def resnet(
    bench: Bench, n: int = 1000, every: int = 1, large: bool = False
) -> list[dict[str, Any]]:
    """Gram matrix of a ResNet-18, scalar outputs; without opponents and warming where `large`."""
    model, x = resnet18(n, every)
    ntk, few = EmpiricalNTK(model), x[:8]
    exact = EmpiricalNTK(copy.deepcopy(model).double()).gram(few.double())
    opponent = "vmap(grad) of all points, torch.mm in float32"
    calls: dict[str, tuple[Callable[[torch.Tensor], Any], bool, float]] = {
        bench.ours("Gram"): (ntk.gram, False, 1e-4),
        bench.ours("Gram, convolutions in tf32"): (ntk.gram, True, 1e-2),
        opponent: (lambda points: by_gradients(model, points, 50), False, 1e-3),
    }
    if bench.own or large:
        del calls[opponent]
    errors: dict[str, float] = {}
    providers: dict[str, Provider] = {}
    for name, (call, fast, bound) in calls.items():
        found = bench.attempt(name, in_tf32(lambda call=call: call(few), fast))
        if found is None:
            continue
        errors[name] = float((found.double() - exact).norm() / exact.norm())
        bench.check(name, errors[name], bound)
        providers[name] = (in_tf32(lambda call=call: call(x), fast), 1.0)
    case = f"Gram of {n} images"
    return bench.measure("cuda ResNet-18", case, providers, 1, errors, warm=not large)


def resnet_features(
    bench: Bench, points: int = 2048, every: int = 1, dim: int = 4096
) -> list[dict[str, Any]]:
    """Sketched features of a ResNet-18; a forward and backward pass is the least they cost."""
    model, x = resnet18(points, every)
    ntk = EmpiricalNTK(model, dim=dim)
    providers: dict[str, Provider] = {
        bench.ours("features"): (in_tf32(lambda: ntk.features(x), False), 1.0),
        bench.ours("features, convolutions in tf32"): (in_tf32(lambda: ntk.features(x), True), 1.0),
        "forward and backward pass": (in_tf32(lambda: forward_backward(model, x, 256), False), 1.0),
    }
    if not bench.own:
        some = max(1, points // 16)
        signs = torch.randint(0, 2, (1 << 16, dim), device=DEVICE) * 2 - 1.0
        projected = lambda: dense_projection(model, x[:some], signs, 64)  # noqa: E731
        name = f"vmap(grad), dense projection (timed on {some} images)"
        providers[name] = (in_tf32(projected, False), points / some)
    case = f"features of {points} images, d = {dim}"
    return bench.measure("cuda ResNet-18", case, providers, 1)


def resnet_trace(bench: Bench, n: int = 1000, every: int = 1) -> list[dict[str, Any]]:
    """What the calls of `resnet` spend their time with, by torch's profiler; no rows."""
    model, x = resnet18(n, every)
    gram, sketched = EmpiricalNTK(model), EmpiricalNTK(model, dim=4096)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if not EMULATED:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    torch.backends.cudnn.allow_tf32 = False
    flush = torch.empty(1, device=DEVICE)
    for name, call in (("Gram", gram.gram), ("features", sketched.features)):
        call(x)
        alone = elapsed(lambda call=call: call(x), flush)
        with torch.profiler.profile(activities=activities) as found:
            took = elapsed(lambda call=call: call(x), flush)
        events = found.key_averages()
        busy = sum(event.self_device_time_total for event in events) / 1e3
        counts = {event.key: event.count for event in events}
        launches = sum(n for key, n in counts.items() if key.startswith(("cudaLaunch", "cuLaunch")))
        waits = sum(n for key, n in counts.items() if "Synchronize" in key)
        key = "self_cpu_time_total" if EMULATED else "self_device_time_total"
        print(events.table(sort_by=key, row_limit=25, max_name_column_width=90))
        print(
            f"    {name} of {n} images: {alone:.0f} ms ({took:.0f} when traced), of which the "
            f"device is busy for {busy:.0f}; {launches} launches, {waits} waits"
        )
    return []


def rows_of_gradients(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """(n, P) per-sample gradients of the scaled sum of the logits, by torch.func."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def output(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        y = torch.func.functional_call(model, (parameters, buffers), (x[None],))
        return y.sum() / y.shape[1] ** 0.5

    per_sample = torch.func.vmap(torch.func.grad(output), (None, 0))
    return lambda x: torch.cat([g.flatten(1) for g in per_sample(parameters, x).values()], 1)


def by_gradients(model: torch.nn.Module, x: torch.Tensor, chunk: int) -> Any:
    """Gram matrix of all gradients at once: 45 GB for 1000 points of ResNet-18."""
    rows = rows_of_gradients(model)
    found: torch.Tensor | None = None
    for i in range(0, len(x), chunk):
        part = rows(x[i : i + chunk])
        if found is None:
            found = part.new_empty(len(x), part.shape[1])
        found[i : i + chunk] = part
    return found @ found.T


def dense_projection(
    model: torch.nn.Module, x: torch.Tensor, signs: torch.Tensor, chunk: int
) -> torch.Tensor:
    """Rademacher projection; the signs of one step, made before, stand for all."""
    rows = rows_of_gradients(model)
    result = torch.zeros(len(x), signs.shape[1], device=x.device)
    for i in range(0, len(x), chunk):
        part = rows(x[i : i + chunk])
        for start in range(0, part.shape[1], len(signs)):
            piece = part[:, start : start + len(signs)]
            result[i : i + chunk] += piece @ signs[: piece.shape[1]]
    return result * signs.shape[1] ** -0.5


def forward_backward(model: torch.nn.Module, x: torch.Tensor, batch: int) -> None:
    """Gradients of all parameters, as training takes them."""
    parameters = list(model.parameters())
    for part in x.split(batch):
        torch.autograd.grad(model(part).sum(), parameters)


CASES: dict[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "ceilings": ceilings,
    "a": lambda bench: scoring(bench, "a", 10**4, 10**4, 1000, 10, "f16x3", 1024),
    "b": lambda bench: scoring(bench, "b", 10**5, 10**5, 5000, 100, "f16", 256),
    "b-part": lambda bench: scoring(bench, "b", 66 * 128, 10**5, 5000, 100, "f16", 256),
    "b-small": lambda bench: scoring(bench, "b", 2048, 20_000, 5000, 100, "f16", 256),
    "dense": dense,
    "blocks": blocks,
    "selection": selection,
    "gram": gram,
    "gram-few": lambda bench: gram(bench, 1000, 2**18, True) + gram(bench, 190, 2**18, True),
    "contract": contract,
    "resnet": resnet,
    "resnet-features": resnet_features,
    "resnet-trace": resnet_trace,
    "resnet-large": lambda bench: resnet(bench, 10_000, large=True),
}
TINY: dict[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "ceilings": lambda bench: ceilings(bench, 2**16, 32),
    "a": lambda bench: scoring(bench, "a", 70, 80, 20, 10, "f16x3", 64),
    "b": lambda bench: scoring(bench, "b", 70, 80, 20, 100, "f16", 64),
    "b-part": lambda bench: scoring(bench, "b", 7, 80, 20, 100, "f16", 7),
    "b-small": lambda bench: scoring(bench, "b", 7, 90, 20, 100, "f16", 7),
    "dense": lambda bench: dense(bench, 80),
    "blocks": lambda bench: blocks(bench, 40, 20, 3),
    "selection": lambda bench: selection(bench, 100, 8, 3),
    "gram": lambda bench: gram(bench, 70, 40),
    "gram-few": lambda bench: gram(bench, 40, 700, True),
    "contract": lambda bench: contract(bench, 3, 4, 5, 6, 20),
    "resnet": lambda bench: resnet(bench, 3, 8),
    "resnet-features": lambda bench: resnet_features(bench, 2, 8, 64),
    "resnet-trace": lambda bench: resnet_trace(bench, 3, 8),
    "resnet-large": lambda bench: resnet(bench, 4, 8, large=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES)
    parser.add_argument("--out", type=Path, help="default bench/results/<device>.csv")
    parser.add_argument("--own", action="store_true", help="no opponents")
    parser.add_argument("--variant", default="", help="of the build, said in the rows")
    parser.add_argument("--rounds", type=int, help="instead of those of each case")
    parser.add_argument("--chunks", type=int, nargs="+", help="of opponents; the fastest counts")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny cases, one round, to --out only"
    )
    options = parser.parse_args()
    if cuda_ops.problem():
        sys.exit(f"bench_cuda: {cuda_ops.problem()}")  # never a silent skip
    if EMULATED and not options.dry_run:
        sys.exit("bench_cuda: this build emulates the GPU; only --dry-run means anything")
    slug = device_name().lower().replace(" ", "-").replace("/", "-")
    out = options.out or (None if options.dry_run else record.RESULTS / f"{slug}.csv")
    print(f"{device_name()}, {datetime.date.today()}, commit {record.commit()}")
    chunks = options.chunks or ([64] if options.dry_run else [4, 16, 64, 256])
    rounds = options.rounds or (1 if options.dry_run else None)
    bench = Bench(options.own, options.variant, rounds, chunks)
    cases = TINY if options.dry_run else CASES
    parts = ("b-part", "b-small", "resnet-trace")
    for name in options.only or [case for case in cases if case not in parts]:
        if name not in cases:
            continue
        new = bench.attempt(name, lambda name=name: cases[name](bench)) or []
        if out and new:
            out.parent.mkdir(parents=True, exist_ok=True)
            record.write(out, new)  # after each case: a time limit must not lose what was measured
        if new:
            own = statistics.mean(float(row["median_ms"]) for row in new[:1])
            print(f"  {name}: {own:.4g} ms", flush=True)
        if not EMULATED:
            torch.cuda.empty_cache()
    if bench.failed:
        sys.exit(f"bench_cuda: FAILED: {'; '.join(bench.failed)}")


if __name__ == "__main__":
    main()
