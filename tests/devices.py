"""Where a test keeps its arrays: on the CPU, on doubles of a GPU, on a GPU or its emulation."""

import sys

import numpy as np
import pytest

from ntkfast import arrays, cuda_ops
from ntkfast._posterior import engines

ON_GPU = ("double", "cupy", pytest.param("gpu", marks=pytest.mark.gpu))


class Device:
    """`put` brings numpy arrays there, `host` results back; `ops` is what computes there."""

    def __init__(self, put, kind, ops=None):
        self.put, self.kind, self.ops = put, kind, ops
        self.on_gpu = kind is not np.ndarray

    def host(self, result):
        assert isinstance(result, self.kind)
        if self.kind is np.ndarray:
            return result
        return result.get() if self.kind.__module__ == "cupy" else result.cpu().numpy()

    def like_float32(self, dtype):
        """What keeps float32 inputs from being rounded to tf32 by "auto"."""
        single = dtype == np.float32 and self.on_gpu
        return dict(precision="float32") if single else {}


def _device(request, monkeypatch):
    if request.param == "cpu":
        return Device(lambda a: a, np.ndarray)
    torch = pytest.importorskip("torch")
    if request.param == "gpu":
        place = request.getfixturevalue("gpu")
        monkeypatch.setattr(arrays, "_GPU_TYPES", (place.type,))
        put = lambda a: torch.tensor(np.asarray(a), device=place)  # noqa: E731
        return Device(put, torch.Tensor, cuda_ops)
    import gpu_doubles  # which needs torch

    operations = gpu_doubles.Operations()
    monkeypatch.setattr(engines, "cuda_ops", operations)
    monkeypatch.setattr(arrays, "_GPU_TYPES", ("cuda", "cpu"))
    if request.param == "double":
        return Device(lambda a: torch.tensor(np.asarray(a)), torch.Tensor, operations)
    monkeypatch.setitem(sys.modules, "cupy", gpu_doubles.cupy)
    return Device(gpu_doubles.cupy.array, gpu_doubles.Cupy, operations)


@pytest.fixture(params=ON_GPU)
def device(request, monkeypatch):
    """A GPU, of torch or cupy, real or not."""
    return _device(request, monkeypatch)


@pytest.fixture(params=["cpu", "double", ON_GPU[-1]])
def anywhere(request, monkeypatch):
    """The CPU, or a GPU."""
    return _device(request, monkeypatch)


@pytest.fixture(params=["cpu", ON_GPU[-1]])
def cpu_or_gpu(request, monkeypatch):
    """The CPU, or a GPU or its emulation."""
    return _device(request, monkeypatch)
