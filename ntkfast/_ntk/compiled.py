"""The compiled contractions by device, on tensors; whatever has none takes the torch path.

Both engines have the operations of `ntkfast.ops`, on tensors where they lie. Only the one of the
CPU forms per-sample gradients: on a GPU the batched products of torch do that well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

from torch import Tensor

from .. import cuda_ops, ops
from .layers import Factor

__all__ = ["Contractions", "CpuContractions", "CudaContractions", "contractions"]


class CpuContractions:
    """`ntkfast.ops`: tensors share their memory with numpy arrays."""

    # Rows (samples x positions) of the factors that a ghost product spells out at once.
    ghost_rows = 4096

    def gram_add(self, a: Tensor, b: Tensor, out: Tensor, lower: bool) -> None:
        ops.gram_add(a.numpy(), b.numpy(), out.numpy(), lower=lower)

    def gram_ghost(
        self, left: Tensor, right: Tensor, left2: Tensor, right2: Tensor, out: Tensor, lower: bool
    ) -> None:
        factors = left.numpy(), right.numpy(), left2.numpy(), right2.numpy()
        ops.gram_ghost(*factors, out.numpy(), lower=lower)

    def sketch_add(
        self, values: Tensor, start: int, sign_key: int, shift_key: int, out: Tensor
    ) -> None:
        ops.sketch_add(values.numpy(), start, sign_key, shift_key, out.numpy())

    def sketch_gradients(
        self,
        left: Factor,
        right: Factor,
        groups: int,
        start: int,
        sign_key: int,
        shift_key: int,
        out: Tensor,
    ) -> None:
        keys = (start, sign_key, shift_key)
        ops.sketch_gradients(*_numpy(left), *_numpy(right), *keys, out.numpy(), groups=groups)

    def form_gradients(
        self, left: Factor, right: Factor, groups: int, out: Tensor, add: bool
    ) -> None:
        ops.form_gradients(*_numpy(left), *_numpy(right), out.numpy(), groups=groups, add=add)


class CudaContractions:
    """`ntkfast.cuda_ops`, on the current stream."""

    ghost_rows = 16384

    def gram_add(self, a: Tensor, b: Tensor, out: Tensor, lower: bool) -> None:
        # Exact to the type of `out`, whatever torch is allowed to do.
        cuda_ops.gram_add(a.to(out.dtype), b.to(out.dtype), out, lower=lower)

    def gram_ghost(
        self, left: Tensor, right: Tensor, left2: Tensor, right2: Tensor, out: Tensor, lower: bool
    ) -> None:
        a, b, a2, b2 = (factor.to(out.dtype) for factor in (left, right, left2, right2))
        cuda_ops.gram_ghost(a, b, a2, b2, out, lower=lower)

    def sketch_add(
        self, values: Tensor, start: int, sign_key: int, shift_key: int, out: Tensor
    ) -> None:
        cuda_ops.sketch_add(values, start, sign_key, shift_key, out)

    def sketch_gradients(
        self,
        left: Factor,
        right: Factor,
        groups: int,
        start: int,
        sign_key: int,
        shift_key: int,
        out: Tensor,
    ) -> None:
        keys = (start, sign_key, shift_key)
        tables = [(f.data[:, 0], f.positions, f.columns) for f in (left, right)]
        cuda_ops.sketch_gradients(*tables[0], *tables[1], *keys, out, groups=groups)


def _numpy(f: Factor) -> tuple[Any, Any, Any]:
    return f.data[:, 0].numpy(), f.positions.numpy(), f.columns.numpy()


Contractions: TypeAlias = CpuContractions | CudaContractions


@cache
def _cuda() -> CudaContractions | None:
    return CudaContractions() if cuda_ops.available() else None


_BY_DEVICE: dict[str, Callable[[], Contractions | None]] = {"cpu": CpuContractions, "cuda": _cuda}


def contractions(value: Tensor) -> Contractions | None:
    """Return the compiled contractions that take a tensor like this one, if any."""
    find = _BY_DEVICE.get(value.device.type)
    return None if find is None or not value.dtype.is_floating_point else find()
