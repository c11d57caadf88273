"""The memory that calls may take, and how many points at a time, where nobody says."""

from __future__ import annotations

import torch

__all__ = ["automatic_budget", "largest_batch"]

_ELSEWHERE = 1 << 31


def automatic_budget(device: torch.device) -> int:
    """Bytes: 2 GiB, or with CUDA the largest power of two that is at most half of its free memory.

    What torch has reserved and does not use is free, too. A power of two, so that what else lies on
    the GPU rarely changes how points are divided, and with it the last bits of results.
    """
    if device.type != "cuda":
        return _ELSEWHERE
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    free += torch.cuda.memory_reserved(device) - allocated
    # torch may be held to less than all of the GPU; older ones do not say so.
    share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device)
    free = min(free, int(share * total) - allocated)
    return 1 << max(0, max(0, free // 2).bit_length() - 1)


def largest_batch(device: torch.device) -> int:
    """Points per forward and backward pass, at most.

    On a CPU more gain nothing and leave the caches. A GPU waits for what a pass costs the host.
    Primes: an axis of a layer that is as long as the batch looks like one of points, which each
    batch is then checked for.
    """
    return 1009 if device.type == "cuda" else 251
