"""Sketches of one layer's gradients, and of whole networks, by time and error.

    python bench/compare_sketches.py layers
    python bench/compare_sketches.py networks --points 64

Times are of the thread per point (one thread), best of a few; errors |Phi Phi^T - K|_F / |K|_F are
root mean squares over seeds. Prints tables; what follows from them is in NOTES.md.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable

import ntk_models
import torch
from torch import Tensor, nn

from ntkfast import EmpiricalNTK
from ntkfast._ntk import choose, contract
from ntkfast._ntk.gram import Panel
from ntkfast._ntk.layers import LinearSite
from ntkfast._ntk.sketch import CountSketch, KroneckerSketch, TensorSketch

DIM, POINTS, SEEDS, ROWS = 4096, 16, 8, 14
# Positions, rows, columns: layers of wide networks, of transformers, of ResNet-18.
LAYERS = (
    (1, 512, 512),
    (1, 1024, 1024),
    (1, 4096, 4096),
    (16, 1024, 1024),
    (16, 512, 4608),
    (64, 256, 2304),
    (65, 768, 192),
    (1024, 64, 576),
)


def site(positions: int, rows: int, size: int) -> LinearSite:
    """Factors like those of a trained layer: a mean that all points share, inputs positive."""
    torch.manual_seed(0)
    left = torch.randn(POINTS, 1, positions, rows) * 0.5 + torch.randn(1, 1, 1, rows)
    right = torch.randn(POINTS, positions, size) * 0.7 + torch.randn(1, 1, size)
    return LinearSite(right.relu(), left, rows, size, 1, positions)


def count(layer: LinearSite, seed: int) -> Tensor:
    features = torch.zeros(POINTS, DIM)
    for _, left, right in contract.factors([layer], torch.float32):
        CountSketch(DIM, seed).add_gradients(left, right, 1, 0, features)
    return features


def rows(layer: LinearSite, seed: int, directions: Tensor | None) -> Tensor:
    projection = choose.row_projection(directions, layer.rows, ROWS, seed, layer.x)
    combined = layer.combined(projection)
    assert isinstance(combined, LinearSite)
    return count(combined, seed)


def kronecker(layer: LinearSite, seed: int) -> Tensor:
    sketch, features = KroneckerSketch(DIM, seed), torch.zeros(POINTS, DIM)
    tiles = contract.kronecker_tiles([layer], POINTS, torch.float32, sketch, 0)
    for samples, start, values in tiles:
        sketch.add(values[:, 0], start, features[samples])
    return features


def tensor(layer: LinearSite, seed: int) -> Tensor:
    features = torch.zeros(POINTS, DIM)
    choose.add_tensor([layer], 0, layer.rows, TensorSketch(DIM, seed), features)
    return features


def measure(features: Callable[[int], Tensor], kernel: Tensor) -> tuple[float, float]:
    """Milliseconds per point and relative error."""
    seconds, squares = [], []
    for seed in range(SEEDS):
        start = time.thread_time()
        found = features(seed)
        seconds.append(time.thread_time() - start)
        error = found.double() @ found.double().T - kernel
        squares.append(float((error.norm() / kernel.norm()) ** 2))
    return min(seconds) / len(kernel) * 1e3, (sum(squares) / SEEDS) ** 0.5


def compare_layers() -> None:
    print(f"ms per point and relative error, d {DIM}, {POINTS} points, {SEEDS} seeds")
    for shape in LAYERS:
        layer = site(*shape)
        gradients = contract.dense([layer], POINTS, torch.float32)[:, 0]
        kernel = (gradients @ gradients.T).double()
        panel = Panel(POINTS, {}, torch.float32, layer.x.device)
        known = choose.leading_directions([layer], panel, shape, 0)
        sketches: dict[str, Callable[[int], Tensor]] = {
            "count": lambda seed, layer=layer: count(layer, seed),
            "14 signs": lambda seed, layer=layer: rows(layer, seed, None),
            "14 rows": lambda seed, layer=layer, known=known: rows(layer, seed, known),
            "kronecker": lambda seed, layer=layer: kronecker(layer, seed),
            "tensor": lambda seed, layer=layer: tensor(layer, seed),
        }
        cells = []
        for name, features in sketches.items():
            milliseconds, error = measure(features, kernel)
            cells.append(f"{name} {milliseconds:.3f} {error:.3f}")
        counted = [choose.count_cost(shape), choose.rows_cost(shape, ROWS)]
        counted.append(choose.tensor_cost(shape, DIM))
        costs = " ".join(f"{cost / 1e6:.1f}" for cost in counted)
        print(f"{shape!s:18} {'   '.join(cells)}   counted (M): {costs}", flush=True)


def wide() -> nn.Module:
    """Four layers on one position each; P = 46e6."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(3072, 4096),
        nn.ReLU(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, 10),
    )


def compare_networks(names: list[str], points: int) -> None:
    networks = {**ntk_models.NETWORKS, "wide": (wide, ntk_models.images)}
    for name in names or networks:
        torch.manual_seed(0)
        make, inputs = networks[name]
        model, x = make().eval(), inputs(points)
        parameters = list(model.parameters())
        kernel = EmpiricalNTK(model).gram(x[:32]).double()
        start = time.thread_time()
        for part in x.split(16):
            torch.autograd.grad(model(part).sum(), parameters)
        print(f"{name}, {points} points, d {DIM}")
        print(f"  forward and backward pass {time.thread_time() - start:.2f} s")
        for kind in ("sparse", "kronecker", "auto"):
            ntk = EmpiricalNTK(model, sketch=kind, dim=DIM)
            expected = ""
            if kind == "auto":
                start = time.thread_time()
                error = ntk.fit_sketch(x)
                expected = f", expected {error:.3f}, fitted in {time.thread_time() - start:.2f} s"
                assert ntk._chosen is not None
                chosen = Counter(choice.method for choice in ntk._chosen.choices.values())
                expected += f": {dict(chosen)}"
            seconds = []
            for _ in range(3):
                start = time.thread_time()
                features = ntk.features(x)
                seconds.append(time.thread_time() - start)
            few = features[:32].double()
            error = float((few @ few.T - kernel).norm() / kernel.norm())
            print(f"  {kind:10} {min(seconds):.2f} s, error {error:.3f}{expected}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("layers", "networks"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--points", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "layers":
        compare_layers()
    else:
        compare_networks(arguments.names, arguments.points)


if __name__ == "__main__":
    main()
