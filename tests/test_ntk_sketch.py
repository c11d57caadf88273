"""The count-sketch: its definition, unbiasedness, variance, and independence of chunks."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from ntkfast._ntk.sketch import CountSketch, mix, mix_int  # noqa: E402


def test_tensor_and_integer_hash_agree_with_splitmix64() -> None:
    # First outputs of SplitMix64 seeded with 0, from its authors' reference code.
    reference = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    state, golden, mask = 0, 0x9E3779B97F4A7C15, (1 << 64) - 1
    for i, expected in enumerate(reference):
        assert mix_int(state) == expected
        assert int(mix(torch.tensor([i]), 0)[0]) & mask == expected
        state = (state + golden) & mask


@given(
    dim=st.integers(1, 3000),
    start=st.integers(0, 20000),
    count=st.integers(0, 3000),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=60, deadline=None)
def test_adding_runs_is_the_sum_over_buckets(dim, start, count, seed) -> None:
    sketch = CountSketch(dim, seed)
    values = torch.randn(2, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    index = torch.arange(start, start + count)
    bucket, sign = sketch.lookup(index)
    assert ((bucket >= 0) & (bucket < dim)).all() and (sign.abs() == 1).all()
    for run in {start // dim, (start + count) // dim}:
        assert sketch.lookup(torch.tensor([run * dim]))[0] == sketch.shift(run) % dim
    expected = torch.zeros(2, dim, dtype=torch.float64).index_add_(1, bucket, values * sign)
    whole = torch.zeros_like(expected)
    sketch.add(values, start, whole)
    torch.testing.assert_close(whole, expected, rtol=1e-12, atol=1e-12)
    pieces = torch.zeros_like(expected)
    cut = count // 3
    sketch.add(values[:, :cut], start, pieces)
    sketch.add(values[:, cut:], start + cut, pieces)
    torch.testing.assert_close(pieces, expected, rtol=1e-12, atol=1e-12)
    scattered = torch.zeros_like(expected)
    order = torch.randperm(count)
    sketch.add_scattered(values[:, order], index[order].expand(2, -1), scattered)
    torch.testing.assert_close(scattered, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [32, 600])
def test_inner_products_are_unbiased_with_the_variance_of_a_random_hash(dim) -> None:
    g = torch.Generator().manual_seed(0)
    u = torch.randn(1, 5000, dtype=torch.float64, generator=g) + 0.3
    v = torch.randn(1, 5000, dtype=torch.float64, generator=g) + 0.3
    estimates = []
    for seed in range(400):
        out = torch.zeros(2, dim, dtype=torch.float64)
        CountSketch(dim, seed).add(torch.cat([u, v]), 11, out)
        estimates.append(out[0] @ out[1])
    values = torch.stack(estimates)
    exact = float((u * v).sum())
    bound = float((u.square().sum() * v.square().sum() + exact**2) / dim)
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / 400**0.5
    assert float(values.var()) < 1.2 * bound


def test_signs_are_balanced_and_uncorrelated() -> None:
    sketch = CountSketch(1000, 7)
    signs = sketch.signs(0, 1 << 17, torch.device("cpu"), torch.float64)
    n = len(signs)
    assert abs(float(signs.sum())) < 4 * n**0.5
    for lag in (1, 2, 63, 64, 65, 128, 1000):
        assert abs(float((signs[lag:] * signs[:-lag]).sum())) < 4.5 * n**0.5


@pytest.mark.parametrize("dim", [64, 700])
def test_compiled_sketch_is_the_torch_one(dim) -> None:
    """`add`, compiled on a CPU, and `add_by_runs`, which other devices take."""
    sketch = CountSketch(dim, 3)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        values = torch.randn(3, 5000, dtype=dtype, generator=torch.Generator().manual_seed(0))
        compiled, reference = torch.zeros(2, 3, dim, dtype=dtype)
        sketch.add(values, 12345, compiled)
        sketch.add_by_runs(values, 12345, reference)
        assert (compiled - reference).norm() <= tolerance * reference.norm()
