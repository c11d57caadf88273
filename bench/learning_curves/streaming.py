"""Labels learned by conditioning alone, beside networks that are trained again on the same labels.

A rule is a name: ``retrain``, ``retrain+steps=1000`` for other than the usual number of steps, or
``condition`` with options, as in ``condition+T_r=1``.
"""

from __future__ import annotations

import itertools
import time
import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

import ntkfast as nf

from .data import Budget, Split
from .networks import outputs, train
from .strategies import SKETCH_DIMENSION, parsed

__all__ = ["CHECKPOINTS", "RULES", "SIGNALS", "Streamed", "stream"]

CHECKPOINTS = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0)  # labels over those at first
RULES = ("retrain", "condition")

# What may tell, without a test set, that the network is due to be trained again.
SIGNALS = {
    "surprise": "share of the latest labels that the model gave wrong before it learned them",
    "stale": "the same of the network as it was trained",
    "misfit": "their residuals r before that: r^T (S_BB + D)^-1 r / (b k)",
    "moved": "share of the pool whose class is no longer the network's",
    "drift": "root mean square of F - f over that of f without its mean over classes, on the pool",
    "shrink": "mean S(x, x) of the pool over what it was at first",
}


@dataclass
class Streamed:
    """What became of one rule: a value at every checkpoint."""

    accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of learning the latest labels
    signals: dict[str, list[float]] = field(default_factory=dict)


def stream(
    split: Split,
    budget: Budget,
    first: np.ndarray,
    rules: tuple[str, ...],
    *,
    loss: str,
    seed: int,
    queried: bool,
) -> dict[str, Streamed]:
    """Train on the labels `first`, then learn seven times as many by every rule.

    All rules get the same labels: of points drawn at random or, with `queried`, of those that the
    default asks for, conditioned with each block before the next.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\d+ labels outnumber", UserWarning)
        return _stream(split, budget, first, rules, loss, seed, queried)


def _stream(
    split: Split,
    budget: Budget,
    first: np.ndarray,
    rules: tuple[str, ...],
    loss: str,
    seed: int,
    queried: bool,
) -> dict[str, Streamed]:
    (model,) = train(split, [first], loss=loss, seed=(seed, 4))
    counts = [round(share * len(first)) for share in CHECKPOINTS]
    rng = np.random.default_rng([seed, 5])
    unlabeled = rng.permutation(np.setdiff1d(np.arange(len(split.y)), first))
    pool = unlabeled[: budget.candidates + counts[-1] - counts[0]]
    if queried:
        order = _asked(model, split, first, pool, counts, loss)
    else:
        order = np.arange(counts[-1] - counts[0])
    ends = [count - len(first) for count in counts]
    blocks = [order[a:b] for a, b in itertools.pairwise(ends)]
    result = {}
    for rule in rules:
        head, options = parsed(rule)
        if head == "retrain" and options.keys() <= {"steps"}:
            steps = int(options["steps"]) if options else None
            result[rule] = _retrained(split, model, first, pool, blocks, loss, seed, steps)
        elif head == "condition":
            result[rule] = _conditioned(split, model, first, pool, blocks, loss, options)
        else:
            raise ValueError(f"unknown rule {rule!r}; known: {', '.join(RULES)}")
    return result


def _accuracy(f: np.ndarray, split: Split) -> float:
    return float((f.argmax(axis=1) == split.y_test).mean())


def _retrained(
    split: Split,
    model: nn.Module,
    first: np.ndarray,
    pool: np.ndarray,
    blocks: list[np.ndarray],
    loss: str,
    seed: int,
    steps: int | None,
) -> Streamed:
    result = Streamed([_accuracy(outputs(model, split.X_test), split)])
    labeled = first
    for block in blocks:
        labeled = np.concatenate([labeled, pool[block]])
        start = time.process_time()
        (again,) = train(split, [labeled], loss=loss, seed=(seed, 4), steps=steps)
        result.seconds.append(time.process_time() - start)
        result.accuracy.append(_accuracy(outputs(again, split.X_test), split))
    return result


def _conditioned(
    split: Split,
    model: nn.Module,
    first: np.ndarray,
    pool: np.ndarray,
    blocks: list[np.ndarray],
    loss: str,
    options: dict[str, str],
) -> Streamed:
    learner = _fitted(model, split, first, pool, loss, options)
    posterior, f = learner.posterior, outputs(model, split.X[pool])
    at_first = np.asarray(posterior.variance).mean()
    centred = np.sqrt(np.square(f - f.mean(axis=1, keepdims=True)).mean())
    signals: dict[str, list[float]] = {name: [] for name in SIGNALS}
    result = Streamed([_accuracy(_predicted(learner, split.X_test), split)], signals=signals)
    for block in blocks:
        y = split.y[pool[block]]
        F = np.asarray(posterior.mean)
        signals["surprise"].append((F[block].argmax(axis=1) != y).mean())
        signals["stale"].append((f[block].argmax(axis=1) != y).mean())
        signals["misfit"].append(_misfit(posterior, block, y))
        start = time.process_time()
        learner.update(block, y)
        result.seconds.append(time.process_time() - start)
        F = np.asarray(posterior.mean)
        signals["moved"].append((F.argmax(axis=1) != f.argmax(axis=1)).mean())
        signals["drift"].append(np.sqrt(np.square(F - f).mean()) / centred)
        signals["shrink"].append(np.asarray(posterior.variance).mean() / at_first)
        result.accuracy.append(_accuracy(_predicted(learner, split.X_test), split))
    return result


def _misfit(posterior: nf.Posterior, block: np.ndarray, y: np.ndarray) -> float:
    """Squared residuals of labels in units of what the posterior expects, mean of b k."""
    F = np.asarray(posterior.mean)[block]
    if posterior.loss == "cross_entropy":
        z = F / posterior.residual_temperature
        z = np.exp(z - z.max(axis=1, keepdims=True))
        F = z / z.sum(axis=1, keepdims=True)
    r = posterior.label_scale * (np.eye(F.shape[1])[y] - F)
    A = np.asarray(posterior.covariance(block, block)) + posterior.ridge * np.eye(len(block))
    return float((r * np.linalg.solve(A, r)).mean())


def _fitted(
    model: nn.Module,
    split: Split,
    first: np.ndarray,
    pool: np.ndarray,
    loss: str,
    options: dict[str, str],
) -> nf.LookAheadLearner:
    names = {"T_r": "residual_temperature", "s": "label_scale"}
    unknown = [name for name in options if name not in names]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no option of `condition`; known: T_r, s")
    given = {names[name]: float(value) for name, value in options.items()}
    learner = nf.LookAheadLearner(model, loss=loss, sketch="sparse", dim=SKETCH_DIMENSION, **given)
    return learner.fit(split.X[first], split.y[first], split.X[pool])


def _predicted(learner: nf.LookAheadLearner, X: torch.Tensor) -> np.ndarray:
    return np.concatenate([learner.predict(part).numpy() for part in X.split(1000)])


def _asked(
    model: nn.Module,
    split: Split,
    first: np.ndarray,
    pool: np.ndarray,
    counts: list[int],
    loss: str,
) -> np.ndarray:
    """Positions in the pool that the default asks for, block by block."""
    learner = _fitted(model, split, first, pool, loss, {})
    asked = []
    for before, after in itertools.pairwise(counts):
        picked = np.asarray(learner.query(after - before).indices)
        learner.update(picked, split.y[pool[picked]])
        asked.append(picked)
    return np.concatenate(asked)
