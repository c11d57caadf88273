"""Features of four networks and Gram matrices of a ResNet-18; rows go to bench/results/cpu.csv.

    OMP_NUM_THREADS=1 NTKFAST_NUM_THREADS=1 python bench/compare_ntk.py features --points 64
    OMP_NUM_THREADS=1 NTKFAST_NUM_THREADS=1 python bench/compare_ntk.py features --network vit
    OMP_NUM_THREADS=1 NTKFAST_NUM_THREADS=1 python bench/compare_ntk.py gram --points 64

The output is the scaled sum of the logits, float32; images are 3 x 32 x 32. Of the ResNet-18 a
forward and a backward pass cost 6 x 0.56 GFLOP per image; a dense projection of the P = 11.2e6
gradients to d numbers 2 P d = 92 GFLOP per image for d = 4096, all of which is run, once. A Gram
matrix costs P N^2 FLOP when it is symmetric. Peak memory is the growth of the resident set in a
process of its own. The sketch of `sketch="auto"` is chosen before the time is taken.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import ntk_models
import record
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ntkfast import EmpiricalNTK, ops

DIM = 4096
CHUNK = 16  # points per vmap(grad); 8 take 7 % longer, 4 80 %


TITLES = {
    "resnet18": "ResNet-18, {} images",
    "wide_resnet": "WideResNet-28-10, {} images",
    "vit": "ViT (9 x 192), {} images",
    "text": "text transformer (4 x 256), {} texts",
}


def forward_backward(model: nn.Module, x: Tensor, batch: int = 16) -> None:
    """Gradients of all parameters, as training takes them."""
    parameters = list(model.parameters())
    for part in x.split(batch):
        torch.autograd.grad(model(part).sum(), parameters)


def jacobian(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """(n, P) per-sample gradients of the scaled sum of the logits, by torch.func."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def output(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        y = functional_call(model, (parameters, buffers), (x[None],))
        return y.sum() / y.shape[1] ** 0.5

    per_sample = vmap(grad(output), (None, 0))

    def rows(x: Tensor) -> Tensor:
        return torch.cat([g.flatten(1) for g in per_sample(parameters, x).values()], 1)

    return rows


def dense_projection(rows: Callable[[Tensor], Tensor], x: Tensor, signs: Tensor) -> Tensor:
    """Rademacher projection of the gradients.

    The signs of one step, made before, stand for all: new ones would only cost this opponent more.
    """
    chunks = [rows(part) for part in x.split(CHUNK)]
    step, columns = signs.shape
    result = torch.zeros(len(x), columns)
    for start in range(0, chunks[0].shape[1], step):
        part = torch.cat([chunk[:, start : start + step] for chunk in chunks])
        result += part @ signs[: part.shape[1]]
    return result * columns**-0.5


def chunked_gram(rows: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Symmetric Gram matrix, one pair of chunks at a time; column chunks are recomputed."""
    size = 64
    result = torch.empty(len(x), len(x))
    for i in range(0, len(x), size):
        left = torch.cat([rows(part) for part in x[i : i + size].split(CHUNK)])
        for j in range(0, i + 1, size):
            right = left
            if j < i:
                right = torch.cat([rows(part) for part in x[j : j + size].split(CHUNK)])
            part = left @ right.T
            result[i : i + size, j : j + size] = part
            result[j : j + size, i : i + size] = part.T
    return result


def compare_features(name: str, points: int) -> None:
    model, x = ntk_models.make(name, points)
    own = {
        "ntkfast": EmpiricalNTK(model, dim=DIM),
        'ntkfast, sketch="auto"': EmpiricalNTK(model, sketch="auto", dim=DIM),
    }
    rows = jacobian(model)
    if name == "resnet18":
        exact = rows(x[:CHUNK]).double()
        kernel = exact @ exact.T
    else:
        kernel = own["ntkfast"].gram(x[:CHUNK]).double()
    errors = {}
    for provider, ntk in own.items():
        found = ntk.features(x[:CHUNK]).double()
        errors[provider] = float((found @ found.T - kernel).norm() / kernel.norm())
    assert max(errors.values()) < 0.1, errors
    providers: dict[str, Callable[[], object]] = {
        provider: partial(ntk.features, x) for provider, ntk in own.items()
    }
    providers["forward and backward pass"] = lambda: forward_backward(model, x)
    times = record.interleaved(providers, rounds=3)
    if name == "resnet18":  # minutes, and the others differ little
        clock = time.thread_time if ops.num_threads() == 1 else time.perf_counter
        generator = torch.Generator().manual_seed(2)
        signs = torch.randint(0, 2, (1 << 16, DIM), generator=generator) * 2 - 1.0
        start = clock()
        dense_projection(rows, x, signs)
        times["vmap(grad) and dense Rademacher projection"] = [clock() - start]
    case = f"{TITLES[name]}, d {DIM}, float32".format(points)
    report(record.rows("ntk_features", case, times, errors))


def compare_gram(points: int) -> None:
    model, x = ntk_models.make("resnet18", points)
    ntk = EmpiricalNTK(model)
    rows = jacobian(model)
    name = "symmetric chunked vmap(grad) + matmul"
    providers = {"ntkfast": lambda: ntk.gram(x), name: lambda: chunked_gram(rows, x)}
    reference = EmpiricalNTK(ntk_models.resnet18().double()).gram(x[:16].double())
    errors = {
        "ntkfast": float((ntk.gram(x[:16]) - reference).norm() / reference.norm()),
        name: float((chunked_gram(rows, x[:16]) - reference).norm() / reference.norm()),
    }
    assert max(errors.values()) < 1e-5, errors
    clock = time.thread_time if ops.num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {provider: [] for provider in providers}
    for _ in range(2):
        for provider, function in providers.items():
            start = clock()
            function()
            times[provider].append(clock() - start)
    named = {}
    for provider, seconds in times.items():
        named[f"{provider}, peak {peak_memory(provider == 'ntkfast', points)} MiB"] = seconds
    found = dict(zip(named, errors.values(), strict=True))
    report(record.rows("ntk_gram", f"ResNet-18, {points} images, float32", named, found))


def peak_memory(own: bool, points: int) -> int:
    """MiB by which the Gram matrix raises the resident set of a fresh process."""
    command = [sys.executable, __file__, "memory", "--points", str(points)]
    command += ["--own"] if own else []
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def resident_peak() -> int:
    """MiB; Linux's own account, because ru_maxrss starts at the peak of the parent process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def measure_memory(own: bool, points: int) -> None:
    model, x = ntk_models.make("resnet18", points)
    forward_backward(model, x[:2])
    before = resident_peak()
    if own:
        EmpiricalNTK(model).gram(x)
    else:
        chunked_gram(jacobian(model), x)
    print(resident_peak() - before)


def report(rows: list[dict[str, object]]) -> None:
    record.show(rows)
    record.write(record.RESULTS / "cpu.csv", rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("features", "gram", "memory"))
    parser.add_argument("--network", choices=tuple(TITLES), default="resnet18")
    parser.add_argument("--points", type=int, default=64)
    parser.add_argument("--own", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(ops.num_threads())
    if arguments.what == "features":
        compare_features(arguments.network, arguments.points)
    elif arguments.what == "gram":
        compare_gram(arguments.points)
    else:
        measure_memory(arguments.own, arguments.points)


if __name__ == "__main__":
    main()
