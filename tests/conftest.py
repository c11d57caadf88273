import os
import signal

# A shell starts its background jobs with Ctrl-C ignored, and their children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before numpy and torch start their pools: the tests' matrices are small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import contextlib
import math

import pytest
from devices import anywhere, cpu_or_gpu, device  # noqa: F401 (fixtures)

# Where a GPU is lent, only what its tests need may be installed.
with contextlib.suppress(ModuleNotFoundError):
    from hypothesis import settings

    # No deadlines: the first example pays for imports, and CI machines stutter. Fixed examples: a
    # failure in CI is a failure at home.
    settings.register_profile("ntkfast", deadline=None, derandomize=True, max_examples=25)
    settings.load_profile("ntkfast")


# Files with tests that need a GPU. A run of these alone (`-m gpu`) reads nothing else.
WITH_GPU = {
    "test_blocks.py",
    "test_coverage.py",
    "test_cuda.py",
    "test_device.py",
    "test_golden.py",
    "test_new_points.py",
    "test_ntk.py",
    "test_posterior.py",
    "test_selection.py",
}


def pytest_ignore_collect(collection_path, config):
    if config.option.markexpr == "gpu" and collection_path.name.startswith("test_"):
        return collection_path.name not in WITH_GPU or None
    return None


@pytest.fixture
def gpu(monkeypatch):
    """The torch device of `ntkfast.cuda_ops`: of a GPU, or of a build that emulates one (`make \
test-emulated`). Without either a skip, or a failure where NTKFAST_REQUIRE_GPU=1.

    Outputs and workspace hold NaN before they are used, and what lies around them is watched.
    """
    torch = pytest.importorskip("torch")
    from ntkfast import _core, cuda_ops

    missing = cuda_ops.problem()
    emulated = _core.cuda_emulated()
    if not missing and not emulated and not torch.cuda.is_available():
        missing = "this torch has no CUDA"
    if missing:
        required = os.environ.get("NTKFAST_REQUIRE_GPU") == "1"
        (pytest.fail if required else pytest.skip)(missing)

    import emulation  # which needs torch

    if emulated:
        from emulated_memory import DeviceMemory

        emulation.install(monkeypatch.setattr)
        DeviceMemory().wrap(monkeypatch)
    library = cuda_ops._Torch
    allocate, guarded = library.empty, []

    def empty(self, shape, dtype):
        kind = getattr(torch, dtype)
        count, guard, nothing = math.prod(shape), 256 // kind.itemsize, emulation.unwritten(kind)
        memory = allocate(self, (guard + count + guard,), dtype).fill_(nothing)
        guarded.append((memory, guard, count, nothing))
        return memory[guard : guard + count].view(shape)

    monkeypatch.setattr(library, "empty", empty)
    yield torch.device("cpu" if emulated else "cuda")
    for memory, guard, count, nothing in guarded:
        around = torch.cat([memory[:guard], memory[guard + count :]])
        untouched = around.isnan() if nothing != nothing else around == nothing
        assert untouched.all(), "a kernel wrote before or behind its output or workspace"


@pytest.fixture
def true_gpu(gpu):
    """The device, where the emulation cannot stand in for it."""
    if gpu.type == "cpu":
        pytest.skip("streams, graphs and the memory of a GPU are not emulated")
    return gpu
