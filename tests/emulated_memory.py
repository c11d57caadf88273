"""Memory that only kernels may touch, as a GPU's: for the build that emulates one."""

import ctypes
import mmap
import os

from ntkfast import _core

READ_WRITE, NOTHING = mmap.PROT_READ | mmap.PROT_WRITE, 0
ITEM = {"bfloat16": 2, "float32": 4, "float64": 8, "int64": 8}
ALIGNMENT = 256  # of an address: kept, since kernels look at it


CoreView = _core.View


class View:
    """An array of a call, to be moved."""

    def __init__(self, *arguments):
        CoreView(*arguments)  # refuses what it refuses
        self.arguments = arguments


class DeviceMemory:
    """Takes the arrays of a call to `_core` into pages that the host cannot touch meanwhile.

    The launcher opens them while a kernel runs (tests/cpp/cuda/emulated/cuda/launch.cuh). Around
    each array lie pages that stay closed, the one behind it at most 255 bytes away. Whatever reads
    or writes where it must not ends in a segmentation fault, and pytest says in which call.
    """

    def __init__(self, size=1 << 30):
        self.memory = mmap.mmap(-1, size)  # pages are real once they are touched
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.size = size
        self.mprotect = ctypes.CDLL(None, use_errno=True).mprotect
        self.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def protect(self, start, size, flags):
        if self.mprotect(self.base + start, size, flags):
            raise OSError(ctypes.get_errno(), "mprotect")

    def call(self, function, arguments):
        end, pages, moved, places = mmap.PAGESIZE, [], [], {}

        def move(value):
            nonlocal end
            if isinstance(value, dict):
                return {name: move(member) for name, member in value.items()}
            if isinstance(value, tuple):
                return tuple(move(member) for member in value)
            if not isinstance(value, View):
                return value
            name, address, shape, strides, dtype, device = value.arguments
            span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
            size = span * ITEM[dtype] if min(shape) > 0 and dtype in ITEM else 0
            if size == 0:
                return CoreView(*value.arguments)
            if places.get(address, (0, 0))[1] >= size:  # operations look at what is the same
                return CoreView(name, places[address][0], shape, strides, dtype, device)
            first = end
            end += -(-(size + ALIGNMENT) // mmap.PAGESIZE) * mmap.PAGESIZE
            start = end - size
            start -= (start - address) % ALIGNMENT
            assert end + mmap.PAGESIZE <= self.size, "arrays larger than the memory of the test"
            ctypes.memmove(self.base + start, address, size)
            moved.append((address, start, size))
            places[address] = (self.base + start, size)
            pages.append((first, end - first))
            end += mmap.PAGESIZE
            return CoreView(name, self.base + start, shape, strides, dtype, device)

        arguments = [move(value) for value in arguments]
        self.protect(0, self.size, NOTHING)
        os.environ["NTKFAST_EMULATION_MEMORY"] = "".join(
            f"{self.base + first}:{size};" for first, size in pages
        )
        try:
            return function(*arguments)
        finally:
            del os.environ["NTKFAST_EMULATION_MEMORY"]
            self.protect(0, self.size, READ_WRITE)
            for to, start, size in moved:
                ctypes.memmove(to, self.base + start, size)

    def wrap(self, monkeypatch):
        """All operations of `_core` on a GPU take their arrays into this memory."""

        def wrapped(function):
            return lambda *arguments: self.call(function, arguments)

        monkeypatch.setattr(_core, "View", View)
        for name in dir(_core):
            if name.startswith("cuda_"):
                monkeypatch.setattr(_core, name, wrapped(getattr(_core, name)))
