"""Sketches and Gram matrices of per-sample gradients against numpy in float64."""

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from ntkfast import ops

DTYPES = [np.float32, np.float64]
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
seeds = st.integers(0, 2**32 - 1)
keys = st.integers(0, 2**64 - 1)
dims = st.sampled_from([1, 7, 64, 100, 512, 700])
starts = st.sampled_from([0, 1, 63, 64, 1000, 123457])


def check(operation, dtype, *arguments, out, keep=slice(None), **keywords):
    """Run the operation and the reference from the same `out`; compare what `keep` selects."""
    expected = out.astype(np.float64)
    getattr(reference, operation)(*arguments, expected, **keywords)
    getattr(ops, operation)(*arguments, out, **keywords)
    error = np.abs(out - expected)[keep]
    scale = max(1.0, np.abs(expected).max(initial=0))
    assert error.max(initial=0) <= TOLERANCE[dtype] * scale


@dtypes
@given(seed=seeds, start=starts, dim=dims, m=st.integers(0, 900), sign=keys, shift=keys)
def test_sketch_add(dtype, seed, start, dim, m, sign, shift):
    rng = np.random.default_rng(seed)
    wide = np.full((3, dim + 2), np.nan, dtype=dtype)
    out = wide[:, 1:-1]
    out[...] = rng.normal(size=out.shape)
    values = rng.normal(size=(3, m + 1)).astype(dtype)[:, 1:]
    check("sketch_add", dtype, values, start, sign, shift, out=out)
    assert np.isnan(wide[:, [0, -1]]).all()


def linear(rng, n, positions, size, dtype):
    """A factor stored position by position."""
    data = rng.normal(size=(n, positions * size)).astype(dtype)
    return data, np.arange(positions) * size, np.arange(size)


def channels(rng, n, positions, size, dtype):
    """A factor stored channel by channel."""
    data = rng.normal(size=(n, positions * size)).astype(dtype)
    return data, np.arange(positions), np.arange(size) * positions


def windows(rng, n, height, width, size, stride, dtype):
    """3 x 3 windows of images, `size` of their 9 C entries."""
    rows, cols = (height - 1) * stride + 3, (width - 1) * stride + 3
    data = rng.normal(size=(n, -(-size // 9) * rows * cols)).astype(dtype)
    places = np.arange(height)[:, None] * stride * cols + np.arange(width) * stride
    offsets = np.arange(3)[:, None] * cols + np.arange(3)
    channel = np.arange(-(-size // 9))[:, None] * rows * cols
    return data, places.ravel(), (channel + offsets.ravel()).ravel()[:size]


@dtypes
@given(
    seed=seeds,
    start=starts,
    dim=dims,
    rows=st.sampled_from([1, 3, 14, 15, 33]),
    size=st.sampled_from([1, 5, 31, 32, 33, 130]),
    shape=st.sampled_from([(1, 1), (1, 5), (4, 4), (3, 8), (2, 16), (5, 7)]),
    layout=st.sampled_from(["linear", "channels", "windows", "strided"]),
)
def test_sketch_gradients(dtype, seed, start, dim, rows, size, shape, layout):
    rng = np.random.default_rng(seed)
    positions, n = shape[0] * shape[1], 2
    if layout == "linear":
        left, right = linear(rng, n, positions, rows, dtype), linear(rng, n, positions, size, dtype)
    else:
        left = channels(rng, n, positions, rows, dtype)
        right = windows(rng, n, *shape, size, 1 + (layout == "strided"), dtype)
        if layout == "channels":
            right = channels(rng, n, positions, size, dtype)
    out = rng.normal(size=(n, dim)).astype(dtype)
    check("sketch_gradients", dtype, *left, *right, start, seed, seed + 1, out=out)


@dtypes
@pytest.mark.parametrize("add", [False, True])
@given(
    seed=seeds,
    groups=st.sampled_from([1, 2, 5]),
    rows=st.sampled_from([1, 3, 15]),
    size=st.sampled_from([1, 9, 130]),
    positions=st.sampled_from([0, 1, 16, 35]),
)
def test_groups_and_gradients_as_they_are(dtype, add, seed, groups, rows, size, positions):
    rng = np.random.default_rng(seed)
    left = channels(rng, 2, positions, groups * rows, dtype)
    right = linear(rng, 2, positions, groups * size, dtype)
    out = rng.normal(size=(2, 77)).astype(dtype)
    check("sketch_gradients", dtype, *left, *right, 5, 1, 2, out=out, groups=groups)
    wide = np.full((2, groups * rows * size + 2), np.nan, dtype=dtype)
    out = wide[:, 1:-1]
    out[...] = rng.normal(size=out.shape) if add else np.nan
    with np.errstate(invalid="ignore"):
        check("form_gradients", dtype, *left, *right, out=out, groups=groups, add=add)
    assert np.isnan(wide[:, [0, -1]]).all()


@dtypes
def test_sketch_gradients_deeper_than_a_slice(dtype):
    rng = np.random.default_rng(0)
    left, right = linear(rng, 2, 5000, 3, dtype), linear(rng, 2, 5000, 40, dtype)
    out = np.zeros((2, 64), dtype=dtype)
    check("sketch_gradients", dtype, *left, *right, 5, 1, 2, out=out)


@dtypes
@pytest.mark.parametrize("lower", [False, True])
@given(
    seed=seeds,
    n=st.sampled_from([0, 1, 5, 113, 240]),
    m=st.sampled_from([0, 1, 9, 129]),
    K=st.sampled_from([0, 1, 33, 4100]),
)
def test_gram_add(dtype, lower, seed, n, m, K):
    rng = np.random.default_rng(seed)
    A, B = (rng.normal(size=(rows, K)).astype(dtype) for rows in (n, m))
    out = rng.normal(size=(n, m)).astype(dtype)
    keep = np.tril_indices(n, 0, m) if lower else slice(None)
    check("gram_add", dtype, A, B, out=out, keep=keep, lower=lower)


@dtypes
@pytest.mark.parametrize("lower", [False, True])
@given(
    seed=seeds,
    n=st.sampled_from([1, 5, 60]),
    m=st.sampled_from([1, 9, 40]),
    T=st.sampled_from([0, 1, 3, 16, 130]),
    S=st.sampled_from([0, 1, 16, 150]),
    p=st.sampled_from([0, 1, 20]),
    q=st.sampled_from([1, 37]),
)
def test_gram_ghost(dtype, lower, seed, n, m, T, S, p, q):
    rng = np.random.default_rng(seed)
    shapes = (n, T, p), (n, T, q), (m, S, p), (m, S, q)
    factors = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    out = rng.normal(size=(n, m)).astype(dtype)
    keep = np.tril_indices(n, 0, m) if lower else slice(None)
    check("gram_ghost", dtype, *factors, out=out, keep=keep, lower=lower)


@dtypes
@pytest.mark.parametrize("lower", [False, True])
@given(
    seed=seeds,
    n=st.sampled_from([1, 5, 30]),
    m=st.sampled_from([1, 20]),
    R=st.sampled_from([1, 3]),
    R2=st.sampled_from([1, 2]),
    T=st.sampled_from([1, 7, 130]),
    p=st.sampled_from([0, 1, 20]),
)
def test_gram_ghost_of_several_left_factors(dtype, lower, seed, n, m, R, R2, T, p):
    rng = np.random.default_rng(seed)
    shapes = (R, n, T, p), (n, T, 9), (R2, m, 5, p), (m, 5, 9)
    factors = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    out = rng.normal(size=(n * R, m * R2)).astype(dtype)
    sample, other = np.arange(n * R) // R, np.arange(m * R2) // R2
    keep = other <= sample[:, None] if lower else slice(None)
    check("gram_ghost", dtype, *factors, out=out, keep=keep, lower=lower)


def test_errors_name_the_argument():
    out, table = np.zeros((2, 8)), np.arange(3)
    data = np.zeros((2, 4))
    good = [data, table[:2], table, data, table[:2], table, 0, 1, 2, out]
    ops.sketch_gradients(*good)
    for position, value, message in [
        (0, np.zeros((2, 3)), "left: positions and columns reach element 3 of 3"),
        (0, np.zeros((3, 4)), r"left: expected shape \(2, \*\)"),
        (0, np.zeros((2, 4), np.float32), "left: expected float64"),
        (4, table, r"right_positions: expected shape \(2,\)"),
        (5, table - 1, "right_columns: expected offsets from 0"),
        (6, -1, "start: expected at least 0"),
        (9, np.zeros((2, 0)), "out: expected at least one column"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.sketch_gradients(*[value if i == position else a for i, a in enumerate(good)])
    with pytest.raises(ValueError, match="out: expected shape"):
        ops.gram_add(data, data, np.zeros((2, 3)))
    with pytest.raises(ValueError, match="right2: expected shape"):
        ops.gram_ghost(*[np.zeros((2, 3, 4))] * 3, np.zeros((2, 3, 5)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="out: expected shape"):
        ops.sketch_add(np.zeros((3, 4)), 0, 1, 2, out)
    with pytest.raises(ValueError, match="groups: expected a divisor of the 3 and 3 columns"):
        ops.sketch_gradients(*good, groups=2)
    with pytest.raises(ValueError, match=r"out: expected shape \(2, 9\)"):
        ops.form_gradients(*good[:6], out)
    with pytest.raises(ValueError, match=r"right: expected shape \(2, \*\)"):
        ops.form_gradients(*good[:3], np.zeros((3, 4)), *good[4:6], out)
    assert not out.any()
