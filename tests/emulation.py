"""What `ntkfast.cuda_ops` needs on the build that emulates a GPU: host memory taken for a GPU's.

Torch tensors there are those of a device 0. It is some thousand times slower than a GPU.
"""

import math

import torch

from ntkfast import arrays, cuda_ops


class EmulatedTorch(cuda_ops._Torch):
    """Allocates like a GPU: aligned, and full of what must show where nothing writes."""

    def empty(self, shape, dtype):
        kind = getattr(self.torch, dtype)
        alignment, count = 256 // kind.itemsize, math.prod(shape)
        memory = self.torch.empty(count + alignment, dtype=kind)
        start = -memory.data_ptr() % 256 // kind.itemsize
        return memory[start : start + count].fill_(unwritten(kind)).view(shape)

    def stream(self):
        return 0


def unwritten(kind):
    """What memory that nothing has written holds."""
    return float("nan") if kind.is_floating_point else torch.iinfo(kind).min


def install(patch=setattr):
    """Make host memory the device of `ntkfast.cuda_ops`."""
    patch(cuda_ops, "_Torch", EmulatedTorch)
    patch(arrays, "_GPU_TYPES", ("cpu",))
