"""The networks of the experiments and their training, from the start in every round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from .data import Split

__all__ = ["embeddings", "outputs", "probabilities", "train"]

_STEPS = 200
_MINIBATCH = 64  # of an MLP
_WIDTH = 64
_RATE = 3e-3


def train(
    split: Split,
    labeled: Sequence[np.ndarray],
    *,
    loss: str,
    seed: Sequence[int],
    steps: int | None = None,
) -> list[nn.Module]:
    """Train one network for each array of labelled points (all of one length), in eval mode.

    `seed` decides initial weights and minibatches, which all of them share. Networks do not depend
    on the company they are trained in. `steps`: other than usual.
    """
    if split.network == "mlp":
        return _train_mlps(split, labeled, loss=loss, seed=seed, steps=steps or _STEPS)
    return [
        _train_with_torch(split, points, loss=loss, seed=seed, steps=steps) for points in labeled
    ]


def outputs(model: nn.Module, X: torch.Tensor) -> np.ndarray:
    """Outputs (n, k), float64."""
    device = next(model.parameters()).device
    with torch.no_grad():
        parts = [model(part.to(device)).double().cpu() for part in X.split(2000)]
    return torch.cat(parts).numpy()


def embeddings(model: nn.Module, X: torch.Tensor) -> np.ndarray:
    """What the last linear layer sees (n, h), float64."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, args: seen.append(args[0].cpu()))
    try:
        outputs(model, X)
    finally:
        handle.remove()
    return torch.cat(seen).double().numpy()


def probabilities(f: np.ndarray, loss: str, temperature: float = 1.0) -> np.ndarray:
    """Class probabilities of outputs: soft-max, or for squared loss outputs clipped to >= 1e-3."""
    if loss == "squared":
        p = np.maximum(f, 1e-3)
    else:
        p = np.exp((f - f.max(axis=1, keepdims=True)) / temperature)
    return p / p.sum(axis=1, keepdims=True)


def _minibatches(rng: np.random.Generator, n: int, steps: int, size: int) -> np.ndarray:
    """Points of every step: all of them where they fit."""
    if n <= size:
        return np.broadcast_to(np.arange(n), (steps, n))
    return rng.integers(n, size=(steps, size))


def _train_mlps(
    split: Split, labeled: Sequence[np.ndarray], *, loss: str, seed: Sequence[int], steps: int
) -> list[nn.Module]:
    """Two hidden layers, Adam with a cosine schedule: all networks step by step together.

    numpy multiplies a stack of matrices one by one, so that each network is bitwise what it would
    be alone; a step of ten networks takes three times as long as one of a single network.
    """
    rng = np.random.default_rng(seed)
    inputs, k, count = split.X.shape[1], split.classes, len(labeled)
    shapes = [(inputs, _WIDTH), (_WIDTH, _WIDTH), (_WIDTH, k)]
    theta = np.empty((count, sum(a * b + b for a, b in shapes)), np.float32)
    gradient = np.empty_like(theta)
    W, b, dW, db, at = [], [], [], [], 0
    for rows, columns in shapes:
        for name, size in (("W", rows * columns), ("b", columns)):
            # As torch initialises nn.Linear.
            theta[:, at : at + size] = rng.uniform(-1, 1, size).astype(np.float32) / rows**0.5
            views = [array[:, at : at + size] for array in (theta, gradient)]
            if name == "W":
                views = [view.reshape(count, rows, columns) for view in views]
            (W if name == "W" else b).append(views[0])
            (dW if name == "W" else db).append(views[1])
            at += size
    X = split.X.numpy()[np.stack(labeled)]
    Y = np.eye(k, dtype=np.float32)[split.y[np.stack(labeled)]]
    first, second, scratch = (np.zeros_like(theta) for _ in range(3))
    for step, batch in enumerate(_minibatches(rng, X.shape[1], steps, _MINIBATCH)):
        x, y = X[:, batch], Y[:, batch]
        h1 = np.maximum(x @ W[0] + b[0][:, None], 0)
        h2 = np.maximum(h1 @ W[1] + b[1][:, None], 0)
        f = h2 @ W[2] + b[2][:, None]
        if loss == "cross_entropy":
            f -= f.max(axis=2, keepdims=True)
            np.exp(f, out=f)
            f /= f.sum(axis=2, keepdims=True)
            delta = (f - y) / np.float32(len(batch))
        else:
            delta = (f - y) * np.float32(2 / len(batch))
        for layer, (below, h) in reversed(
            list(enumerate(zip((x, h1, h2), (None, h1, h2), strict=True)))
        ):
            np.matmul(below.transpose(0, 2, 1), delta, out=dW[layer])
            delta.sum(axis=1, out=db[layer])
            if h is not None:
                delta = (delta @ W[layer].transpose(0, 2, 1)) * (h > 0)
        _adam(theta, gradient, first, second, scratch, step, steps)
    result: list[nn.Module] = []
    for i in range(count):
        layers = [nn.Linear(*shape) for shape in shapes]
        with torch.no_grad():
            for layer, weight, bias in zip(layers, W, b, strict=True):
                layer.weight.copy_(torch.from_numpy(weight[i].T))
                layer.bias.copy_(torch.from_numpy(bias[i]))
        model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        result.append(model.eval())
    return result


def _adam(
    theta: np.ndarray,
    gradient: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    scratch: np.ndarray,
    step: int,
    steps: int,
) -> None:
    """One step of Adam in place."""
    rate = _RATE * 0.5 * (1 + np.cos(np.pi * step / steps)) / (1 - 0.9 ** (step + 1))
    first *= np.float32(0.9)
    np.multiply(gradient, np.float32(0.1), out=scratch)
    first += scratch
    second *= np.float32(0.999)
    np.square(gradient, out=scratch)
    scratch *= np.float32(0.001)
    second += scratch
    np.multiply(second, np.float32(1 / (1 - 0.999 ** (step + 1))), out=scratch)
    np.sqrt(scratch, out=scratch)
    scratch += np.float32(1e-8)
    np.divide(first, scratch, out=scratch)
    scratch *= np.float32(rate)
    theta -= scratch


def _cnn(k: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, k),
    )


def _resnet18(k: int) -> nn.Module:
    from ..ntk_models import ResNet18

    return ResNet18(k)


# How to make it, steps, minibatch.
_TORCH: dict[str, tuple[Any, int, int]] = {
    "cnn": (_cnn, 200, 32),
    "resnet18": (_resnet18, 4000, 128),
}


def _train_with_torch(
    split: Split, labeled: np.ndarray, *, loss: str, seed: Sequence[int], steps: int | None
) -> nn.Module:
    """Adam with a cosine schedule, on a GPU where there is one and the network is large."""
    make, usual, size = _TORCH[split.network]
    steps = steps or usual
    large = split.network == "resnet18"
    device = torch.device("cuda" if large and torch.cuda.is_available() else "cpu")
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        model = make(split.classes).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if large else 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    x = split.X[labeled].to(device)
    y = torch.from_numpy(split.y[labeled]).to(device)
    target = y if loss == "cross_entropy" else nn.functional.one_hot(y, split.classes).float()
    batches = _minibatches(rng, len(x), steps, size)
    for batch in torch.from_numpy(batches.copy()).to(device):
        f = model(x[batch])
        if loss == "cross_entropy":
            value = nn.functional.cross_entropy(f, target[batch])
        else:
            value = (f - target[batch]).square().sum(dim=1).mean()
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
        schedule.step()
    return model.eval()
