"""What processes of their own do in test_store.py: they write to a store, and may be killed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ntkfast import store
from ntkfast.ntk import EmpiricalNTK

POINTS, BATCH = 800, 16
# Of StoreWriter alone: points that are no multiple of a block.
ROWS, BLOCK = 10, 4


def network():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return net


def points(n=POINTS):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1))


def loader(n=POINTS):
    return DataLoader(TensorDataset(points(n)), BATCH)


def not_waiting_for_disks():
    """What a killed process has written is there; only a machine that fails needs more."""
    os.fsync, os.O_DSYNC = lambda file: None, 0


def write_pool(folder, passed=None, environment=(), **options):
    """Write the features of the pool; `passed` counts the points that were computed."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    if passed is not None:
        not_waiting_for_disks()
        store._BLOCK_SECONDS = 0.0  # every batch is a block
        write = store.StoreWriter.write

        def counted(self, start, features, outputs):
            passed.value += len(outputs)
            write(self, start, features, outputs)

        store.StoreWriter.write = counted
    EmpiricalNTK(network(), **{"dim": 32, **options}).features(loader(), out=folder)


def write_pool_auto(folder, environment):
    write_pool(folder, None, environment, sketch="auto", dim=48, relative_error=0.3)


def write_pool_in_a_group(folder, rank, world_size):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}.group", rank=rank, world_size=world_size
    )
    ntk = EmpiricalNTK(network(), dim=32)
    outputs, features = ntk.outputs_and_features(loader(), out=folder)
    again = ntk.features(loader(), out=folder, group=torch.distributed.group.WORLD)
    assert np.array_equal(features, again)
    rows = store.rows_of(rank, world_size, POINTS)
    assert len(outputs) == len(features) == len(rows)
    expected = ntk.features(points()[rows.start : rows.stop])
    assert np.allclose(features, expected, rtol=1e-5, atol=1e-6)
    torch.distributed.destroy_process_group()


def description(n=ROWS):
    return {
        "network": "n",
        "layers": ["a"],
        "outputs": "full",
        "draws": 1,
        "sketch": "sparse",
        "fitted_sketch": None,
        "seed": 0,
        "points": n,
        "data": "d",
        "dtype": "float32",
        "n_features": 5,
        "rows_per_point": 2,
        "outputs_dtype": "float64",
        "n_outputs": 2,
    }


def rows(start, stop):
    """Features and outputs of some points: every number tells its place."""
    features = np.arange(1, 1 + 2 * ROWS * 5, dtype=np.float32).reshape(2 * ROWS, 5)
    outputs = -np.arange(1, 1 + 2 * ROWS, dtype=np.float64).reshape(ROWS, 2)
    return features[2 * start : 2 * stop], outputs[start:stop]


def write_rows(folder, n=ROWS, rank=0, world_size=1):
    with store.StoreWriter(Path(folder), description(n), rank, world_size) as writer:
        for start, stop in writer.missing():
            for first in range(start, ROWS if stop is None else stop, BLOCK):
                last = min(first + BLOCK, ROWS if stop is None else stop)
                writer.write(first, *rows(first, last))
                writer.flush()
        return writer.finish()
