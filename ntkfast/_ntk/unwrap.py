"""The network inside the wrappers that users put around it."""

from __future__ import annotations

import torch
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's network inside ``torch.compile`` and data-parallel wrappers.

    Hooks do not fire inside compiled graphs and replicas have other parameters; the wrapped
    network computes the same function. Sharded and scripted models have no such network and are
    refused.
    """
    while True:
        if isinstance(model, torch.jit.ScriptModule):
            raise TypeError(
                "model is a TorchScript module; per-layer gradients need the original nn.Module"
            )
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod") and isinstance(model._orig_mod, nn.Module):
            model = model._orig_mod
        else:
            break
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        # By name: importing torch.distributed takes a while, and is not possible everywhere.
        if kinds & {"FullyShardedDataParallel", "FSDPModule"}:
            where = f" (at {name!r})" if name else ""
            raise TypeError(
                f"model is sharded by FSDP{where}: no process has whole parameters to take "
                "gradients of; load its full state dict into a plain model"
            )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "placements"):
            raise TypeError(
                f"parameter {name!r} is a distributed tensor; load the full state dict into a "
                "plain model"
            )
    return model
