"""Sketches of a gradient whose hashes and signs are computed, never stored.

The count-sketch puts parameter ``p`` of the flattened gradient in bucket
``(p + shift(p // d)) mod d`` with sign ``(-1)^bit(p)``; every run of ``d`` consecutive parameters
has its own random shift. The estimate ``<S u, S v>`` is unbiased because the signs are independent
of each other and of the buckets. Two parameters of one run never collide and two of different runs
collide with probability ``1 / d``, so the variance is at most that of a fully random hash,
``(|u|^2 |v|^2 + <u, v>^2) / d``; and a run is added with unit stride, which is what makes the
sketch cheap.

Signs are the bits of a 64-bit word per 64 parameters, so one hash serves 64 of them. Everything is
integer arithmetic on the parameter's index and the seed: the sketch does not depend on chunk
sizes, devices or torch's generators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from .compiled import contractions
from .layers import Factor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)

# Below this many buckets the Python loop over runs costs more than a gather of random buckets.
_SHORTEST_RUN = 512
# Numbers per factor that a tensor-sketch transforms at once.
_TRANSFORMED = 1 << 16


def _signed(value: int) -> int:
    """Return the int64 with the bits of an unsigned 64-bit integer."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def mix_int(value: int) -> int:
    """SplitMix64 finaliser of one unsigned integer (Steele, Lea, Flood 2014)."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _MULTIPLIERS[0]) & _MASK
    value = ((value ^ (value >> 27)) * _MULTIPLIERS[1]) & _MASK
    return value ^ (value >> 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask drops the copies of the sign bit.
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def mix(index: Tensor, key: int) -> Tensor:
    """``mix_int(key + index * golden)`` for every int64 of `index`, as int64 bit patterns."""
    value = index * _signed(_GOLDEN) + _signed(key + _GOLDEN)
    value = (value ^ _shift_right(value, 30)) * _signed(_MULTIPLIERS[0])
    value = (value ^ _shift_right(value, 27)) * _signed(_MULTIPLIERS[1])
    return value ^ _shift_right(value, 31)


def sign_pattern(count: int, key: int, device: torch.device) -> Tensor:
    """(count,) float64 of +-1 from the bits of the words ``mix(i, key)``."""
    index = torch.arange(count, dtype=torch.int64, device=device)
    bits = (mix(index >> 6, key) >> (index & 63)) & 1
    return 1.0 - 2.0 * bits.double()


def sign_projection(
    length: int, count: int, key: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(length, count) random signs / sqrt(count): ``E P P^T = I``."""
    signs = sign_pattern(length * count, key, device).view(length, count)
    scale: float = count**-0.5
    return (signs * scale).to(dtype)


@lru_cache(maxsize=8)
def _sign_table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(256, 8): the signs of the bits of every byte, lowest first."""
    octets = torch.arange(256, device=device)[:, None]
    return (1 - 2 * ((octets >> torch.arange(8, device=device)) & 1)).to(dtype)


@dataclass(frozen=True)
class CountSketch:
    """Sketch of vectors of any length to `dim` buckets, defined by `seed` alone."""

    dim: int
    seed: int

    def key(self, purpose: int, number: int) -> int:
        """Return the key of other random numbers of the same seed: those of parameter `number`."""
        return mix_int(mix_int(self.seed) ^ purpose ^ (number << 32))

    @cached_property
    def _sign_key(self) -> int:
        return mix_int(mix_int(self.seed) ^ 0x5349474E)

    @cached_property
    def _shift_key(self) -> int:
        return mix_int(mix_int(self.seed) ^ 0x5348494654)

    def shift(self, run: int) -> int:
        """Where run `run` (parameters ``run * dim`` to ``run * dim + dim - 1``) starts."""
        return mix_int((self._shift_key + run * _GOLDEN) & _MASK) % self.dim

    def signs(self, start: int, count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(count,) signs of the parameters from `start` on."""
        first = start // 64
        words = mix(
            torch.arange(first, (start + count - 1) // 64 + 1, dtype=torch.int64, device=device),
            self._sign_key,
        )
        # One look-up turns a byte into its eight signs: far fewer passes than single bits.
        octets = (words[:, None] >> (8 * torch.arange(8, device=device))) & 255
        table = _sign_table(device, dtype)
        signs = torch.nn.functional.embedding(octets.reshape(-1), table).reshape(-1)
        return signs[start - 64 * first :][:count]

    def lookup(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return bucket and sign (both int64) of every parameter index: the definition."""
        run = torch.div(index, self.dim, rounding_mode="floor")
        # The unsigned remainder of a 64-bit word: its high half separately, since torch only has
        # signed int64.
        word = mix(run, self._shift_key)
        high, low = _shift_right(word, 32), word & 0xFFFFFFFF
        shift = ((high % self.dim) * ((1 << 32) % self.dim) + low % self.dim) % self.dim
        bits = (mix(index >> 6, self._sign_key) >> (index & 63)) & 1
        return (index + shift) % self.dim, 1 - 2 * bits

    def add(self, values: Tensor, start: int, out: Tensor) -> None:
        """Add to `out` (n, dim) the entries `values` (n, m) of the m parameters from `start` on."""
        compiled = contractions(out)
        if compiled is None:
            self.add_by_runs(values, start, out)
        else:
            compiled.sketch_add(values, start, self._sign_key, self._shift_key, out)

    def add_gradients(
        self, left: Factor, right: Factor, groups: int, start: int, out: Tensor
    ) -> None:
        """Add to `out` (n, dim) the gradients ``left^T right`` (n, 1, .) of a weight at `start`.

        The gradients never exist. Only where there are compiled contractions.
        """
        compiled = contractions(out)
        assert compiled is not None
        compiled.sketch_gradients(left, right, groups, start, self._sign_key, self._shift_key, out)

    def add_by_runs(self, values: Tensor, start: int, out: Tensor) -> None:
        """Do as :meth:`add`, with torch on any device: the reference of the compiled operation."""
        count = values.shape[1]
        if count == 0:
            return
        if self.dim < _SHORTEST_RUN and count > self.dim:
            buckets, sign = self.lookup(torch.arange(start, start + count, device=values.device))
            out.index_add_(1, buckets, values * sign.to(values.dtype))
            return
        signs = self.signs(start, count, values.device, values.dtype)
        # Twice as wide, a run does not wrap around; for a short one that costs more than it saves.
        wide = out.new_zeros((len(out), 2 * self.dim)) if count > self.dim else None
        position = start
        while position < start + count:
            run, column = position // self.dim, position % self.dim
            stop = min(start + count, (run + 1) * self.dim)
            bucket = (column + self.shift(run)) % self.dim
            while position < stop:
                room = 2 * self.dim if wide is not None else self.dim
                length = min(stop - position, room - bucket)
                piece = slice(position - start, position - start + length)
                target = out if wide is None else wide
                target[:, bucket : bucket + length].addcmul_(values[:, piece], signs[piece])
                position, bucket = position + length, 0
        if wide is not None:
            out += wide[:, : self.dim]
            out += wide[:, self.dim :]

    def add_scattered(self, values: Tensor, index: Tensor, out: Tensor) -> None:
        """Add `values` (n, m) of the parameters `index` (n, m), which may repeat within a row."""
        bucket, sign = self.lookup(index)
        out.scatter_add_(1, bucket, values * sign.to(values.dtype))


@dataclass(frozen=True)
class KroneckerSketch(CountSketch):
    """Weight gradients as ``(P_o^T left)^T (P_i^T right)`` with random signs, then count-sketched.

    Cheaper than the count-sketch of the whole gradient, because the gradient is never formed, and
    unbiased too; but the error falls as ``dim ** -0.25`` only, since the positions of a point
    share a large mean.
    """

    def shape(self, rows: int, size: int) -> tuple[int, int]:
        """Rows and columns a weight gradient of `rows` x `size` is compressed to."""
        few = min(rows, max(1, math.isqrt(self.dim)))
        return few, min(size, max(1, self.dim // few))

    def projection(
        self, length: int, count: int, key: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor | None:
        """(length, count) random signs / sqrt(count), or None where nothing is compressed."""
        if count >= length:
            return None
        key = mix_int(mix_int(self.seed) ^ 0x4B524F4E ^ (key << 20))
        return sign_projection(length, count, key, dtype, device)


@dataclass(frozen=True)
class TensorSketch:
    """Count-sketch of ``left^T right`` (flattened) in the time of its factors.

    The circular convolution of a count-sketch of every row of `left` with one of the row of
    `right`, summed over rows (Pham, Pagh 2013): entry (o, i) goes to bucket
    ``h(o) + g(i) mod dim`` with sign ``s(o) t(i)``. Products of independent signs have mean zero
    wherever one of the two indices differs, so the estimate is unbiased. A left factor shorter than
    `dim` is spread out evenly, so that the sums reach every bucket and no two of its entries meet.
    """

    dim: int
    seed: int

    def add(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        """Add to `out` (n, dim) the sketches of the products of left (n, T, O), right (n, T, I)."""
        n, positions, rows = left.shape
        hashes = CountSketch(self.dim, self.seed), CountSketch(self.dim, mix_int(self.seed))
        signs = hashes[0].signs(0, rows, left.device, left.dtype)
        stride = self.dim // rows
        # Transforms of a few positions at a time stay in the second-level cache.
        few = max(1, min(positions, _TRANSFORMED // self.dim))
        step = max(1, _TRANSFORMED // (few * self.dim))
        for start in range(0, n, step):
            part = slice(start, start + step)
            total: Tensor | None = None
            for first in range(0, positions, few):
                a, b = left[part, first : first + few], right[part, first : first + few]
                buckets = out.new_zeros((2, *a.shape[:2], self.dim))
                if stride:
                    buckets[0, :, :, : rows * stride : stride] = a * signs
                else:
                    hashes[0].add(a.flatten(0, 1), 0, buckets[0].flatten(0, 1))
                hashes[1].add(b.flatten(0, 1).contiguous(), 0, buckets[1].flatten(0, 1))
                spectra = torch.fft.rfft(buckets)
                product = (spectra[0] * spectra[1]).sum(1)
                total = product if total is None else total + product
            if total is not None:
                out[part] += torch.fft.irfft(total, n=self.dim)
