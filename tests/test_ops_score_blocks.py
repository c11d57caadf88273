"""score_blocks against the reference, which solves with every block and forms every f+."""

from functools import partial

import numpy as np
import pytest
import reference
from block_problems import (
    BOUND,
    blocks,
    check,
    flips_that_rounding_decides,
    pairs_and_tolerance,
    panel,
)
from data import oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from score_problems import (
    EPSILON,
    LABEL_CRITERIA,
    check_pairs,
    operation_that_returns,
    problem,
)
from scoring import score_blocks, score_dense

DTYPES = [np.float32, np.float64]
LOSSES = ["squared", "cross_entropy"]
# Around a panel of rows and the lanes of a tile (8, 16 or 32 points).
SIZES = [0, 1, 2, 7, 15, 16, 17, 31, 32, 33, 70]
CLASSES = [2, 3, 10, 26]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
losses = pytest.mark.parametrize("loss", LOSSES)
every_criterion = pytest.mark.parametrize("criterion", oracle.CRITERIA)


@dtypes
@losses
@every_criterion
@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**32 - 1),
    candidates=st.sampled_from(SIZES),
    evaluation=st.sampled_from(SIZES),
    k=st.sampled_from(CLASSES[:3]),
)
def test_any_sizes(criterion, loss, dtype, seed, candidates, evaluation, k):
    """A panel, and the blocks of the same points in the matrix of all points."""
    sizes = dict(candidates=candidates, evaluation=evaluation, k=k, loss=loss, dtype=dtype)
    S, kw = blocks(seed, **sizes)
    found = score_blocks(criterion, S, **kw)
    check(found, criterion, S, kw, dtype)
    P, in_order = panel(S, kw)
    assert np.array_equal(score_blocks(criterion, P, **in_order), found)


@dtypes
@losses
@every_criterion
def test_alphabet(criterion, loss, dtype):
    S, kw = blocks(1, k=26, candidates=5, evaluation=40, loss=loss, dtype=dtype)
    check(score_blocks(criterion, S, **kw), criterion, S, kw, dtype)


@dtypes
@every_criterion
def test_many_classes(criterion, dtype):
    S, kw = blocks(2, N=3, k=120, candidates=1, evaluation=2, dtype=dtype, loss="cross_entropy")
    check(score_blocks(criterion, S, **kw), criterion, S, kw, dtype)


@dtypes
@every_criterion
def test_several_groups_and_segments(criterion, dtype):
    """More than 64 tiles of evaluation points, and units of some candidates each."""
    S, kw = blocks(3, k=2, candidates=70, evaluation=4500, dtype=dtype)
    check(score_blocks(criterion, S, **kw), criterion, S, kw, dtype)


@pytest.mark.parametrize("criterion", ["variance_reduction", "epig"])
@dtypes
def test_one_output_is_the_scalar_kernel(criterion, dtype):
    S, kw = blocks(4, k=1, dtype=dtype)
    kw["log_loss_targets"] = None
    check(score_blocks(criterion, S, **kw), criterion, S, kw, dtype)


@dtypes
@losses
@every_criterion
@settings(max_examples=6)
@given(seed=st.integers(0, 2**32 - 1), k=st.sampled_from([2, 3, 10]))
def test_kernel_times_identity_is_the_scalar_kernel(criterion, dtype, loss, seed, k):
    """K (x) I_k is worth what K is, by `score_dense`."""
    psi, kw = problem(seed, k=k, candidates=20, evaluation=40, loss=loss)
    S = (psi @ psi.T).astype(dtype)
    diagonal = np.diagonal(S).astype(np.float64)[:, None, None] * np.eye(k)
    scalar = kw | dict(variance=np.diagonal(S).astype(np.float64))
    in_blocks = kw | dict(
        variance=diagonal[kw["candidates"]],
        evaluation_variance=diagonal[kw["evaluation"]],
        rows=kw["candidates"],
        columns=kw["evaluation"],
    )
    expected = score_dense(criterion, S.astype(np.float64), **scalar)
    found = score_blocks(criterion, np.kron(S, np.eye(k, dtype=dtype)), **in_blocks)
    allowed = BOUND[dtype] * np.abs(expected).max()
    if criterion == "label_flips":
        S = np.kron(S, np.eye(k))
        allowed = allowed + flips_that_rounding_decides(S, in_blocks, BOUND[dtype])
    assert (np.abs(found - expected) <= allowed).all()


@dtypes
@every_criterion
def test_views(criterion, dtype):
    """Rows may lie apart or backwards; columns are made contiguous."""
    S, kw = blocks(5, k=3, candidates=20, evaluation=30, dtype=dtype)
    expected = score_blocks(criterion, S, **kw)
    padded = np.full((2 * len(S), len(S) + 9), np.nan, dtype)
    padded[::2, 4:-5] = S
    for view in (padded[::2, 4:-5], np.ascontiguousarray(S[::-1])[::-1], np.asfortranarray(S)):
        assert np.array_equal(score_blocks(criterion, view, **kw), expected)


@dtypes
@every_criterion
def test_candidates_do_not_see_each_other(criterion, dtype):
    S, kw = blocks(6, k=3, candidates=40, evaluation=50, dtype=dtype)
    found = score_blocks(criterion, S, **kw)
    names = ("candidates", "rows", "noise", "label_probs", "variance")
    parts = [
        score_blocks(criterion, S, **(kw | {n: kw[n][part] for n in names}))
        for part in np.split(np.random.default_rng(0).permutation(40), [1, 17])
    ]
    order = np.random.default_rng(0).permutation(40)
    assert np.array_equal(np.concatenate(parts), found[order])


@dtypes
@pytest.mark.parametrize("criterion", oracle.CRITERIA)
def test_a_candidate_without_noise_or_variance_teaches_nothing(criterion, dtype):
    S, kw = blocks(7, k=3, candidates=12, dtype=dtype)
    unmoved = kw | dict(noise=np.full(12, np.inf))
    found = score_blocks(criterion, S, **unmoved)
    check(found, criterion, S, unmoved, dtype)
    zero = {name: np.zeros_like(kw[name]) for name in ("variance", "evaluation_variance")}
    other = score_blocks(criterion, np.zeros_like(S), **(kw | zero))
    np.testing.assert_allclose(other, found, rtol=1e-5 if dtype == np.float32 else 1e-13)
    if criterion in ("variance_reduction", "epig"):
        assert not found.any() and not other.any()


def extreme(dtype, loss, size, temperature):
    """Logits and labels of +-1e4, at any temperature, and hardly any noise."""
    S, kw = blocks(8, k=4, candidates=12, loss=loss, label_scale=size, dtype=dtype)
    kw["mean"], kw["outputs"] = size * kw["mean"], size * kw["outputs"]
    kw["temperature"] = temperature
    kw["noise"][:4] = [1e-6, np.inf, 1e6, 1e-3]
    return S, kw


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e3, 1e6])
@every_criterion
def test_extremes(criterion, temperature, size):
    """The whole call, and every pair: those that rounding cannot decide must be right."""
    for dtype in DTYPES:
        for loss in LOSSES:
            S, kw = extreme(dtype, loss, size, temperature)
            right, allowed = pairs_and_tolerance(criterion, S, kw, dtype)
            score = partial(score_blocks, criterion, S)
            off = np.abs(score(**kw) - reference.score_blocks(criterion, S, **kw))
            assert (off <= allowed @ kw["weights"]).all()
            check_pairs(score, kw, right, allowed)


@pytest.mark.parametrize("temperature", [1e3, 1e6])  # below, all are certain of their class
@every_criterion
def test_extremes_see_faults(criterion, temperature):
    """Kernels that return zeros, or somewhat more than they should, fail `test_extremes`."""
    for dtype in DTYPES:
        for loss in LOSSES:
            S, kw = extreme(dtype, loss, 1e4, temperature)
            right, allowed = pairs_and_tolerance(criterion, S, kw, dtype)
            for wrong in (0 * right, 1.01 * right):
                with pytest.raises(AssertionError, match="candidate"):
                    check_pairs(operation_that_returns(wrong), kw, right, allowed)


@dtypes
def test_huge_and_tiny_kernels(dtype):
    """Utilities scale with the kernel as they should, from 1e-18 to 1e18."""
    for criterion in oracle.CRITERIA:
        S, kw = blocks(9, k=3, dtype=dtype)
        expected = score_blocks(criterion, S, **kw)
        for scale in (1e-18, 1e18):
            scaled = kw | dict(ridge=kw["ridge"] * scale, noise=kw["noise"] * scale)
            for name in ("variance", "evaluation_variance"):
                scaled[name] = kw[name] * scale
            found = score_blocks(criterion, (S * dtype(scale)), **scaled)
            if criterion == "variance_reduction":
                found = found / scale
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_epig_without_cancellation():
    """A point that is its own candidate: within a rounding of rho^2, and bounded in float32 too."""
    k = 4
    _, kw = blocks(0, N=2, k=k, candidates=1, evaluation=1)
    kw |= dict(candidates=[0], evaluation=[1], rows=None, columns=None, weights=[1.0])
    kw |= dict(variance=np.eye(k)[None], evaluation_variance=np.eye(k)[None])
    for noise in (1.0, 1e-3, 1e-6, 1e-9, 1e-12):
        kw |= dict(noise=[noise], ridge=noise)
        q = noise / (1 + noise)
        expected = -0.5 * np.log(q * (2 - q))
        found = score_blocks("epig", np.eye(k), **kw)[0]
        assert abs(found - expected) <= EPSILON[np.float64] * (4 * expected + 2 / q)
        found = score_blocks("epig", np.eye(k, dtype=np.float32), **kw)[0]
        assert abs(found - expected) <= 2e-6 * expected  # the bound on 1 - rho^2 is exact


def test_small_information_keeps_its_digits():
    """rho^2 of 1e-12: log(1 - rho^2) without the rounding of 1 - rho^2."""
    S, kw = blocks(10, k=3, d=60)
    kw["noise"] = np.where(np.isinf(kw["noise"]), np.inf, 1e12)
    expected = reference.score_blocks("variance_reduction", S, **kw)
    shrunk = kw | dict(ridge=1e12)
    found = score_blocks("epig", S.astype(np.float32), **shrunk)
    # -1/2 log det(I - M) = tr M / 2 for small M.
    np.testing.assert_allclose(found, expected / 1e12 / 2, rtol=1e-5)


def test_exact_ties_go_to_the_lowest_class():
    rng = np.random.default_rng(0)
    N, k = 40, 3
    S = np.kron(rng.integers(-1, 2, size=(N, N)), np.eye(k))
    kw = dict(
        candidates=np.arange(N),
        evaluation=np.arange(N),
        mean=rng.integers(-1, 2, size=(N, k)) * 0.5,
        outputs=rng.integers(-1, 2, size=(N, k)) * 0.5,
        variance=np.tile(np.eye(k), (N, 1, 1)),
        noise=np.full(N, 3.0),
        ridge=1.0,
        label_probs=np.full((N, k), 1 / 16),
        weights=np.full(N, 1.0),
        label_scale=1.0,
        loss="squared",
        temperature=1.0,
        log_loss_targets=None,
    )
    for dtype in DTYPES:
        found = score_blocks("label_flips", S.astype(dtype), **kw)
        assert np.array_equal(found, reference.score_blocks("label_flips", S, **kw))
    assert len(np.unique(found)) > 3


# --- What does not fit ---


def put(position, value):
    def change(array):
        array = array.copy()
        array[position] = value
        return array

    return change


BAD = {
    "no blocks": (
        dict(S=lambda S: S[:-1]),
        r"covariance: expected blocks of 3 x 3, got \(89, 90\)",
    ),
    "no matrix": (dict(S=lambda S: S[0]), "covariance: expected shape"),
    "rows out of range": (
        dict(rows=put(1, 30)),
        r"rows: index 30 at position 1 is outside \[0, 30",
    ),
    "columns out of range": (dict(columns=put(0, -1)), "columns: index -1 at position 0"),
    "rows of another length": (dict(rows=lambda a: a[1:]), r"rows: expected shape \(9,\)"),
    "too few blocks": (
        dict(S=lambda S: S[:24], rows=None),
        "covariance: has 8 block rows for 9 points",
    ),
    "variance": (
        dict(variance=lambda a: a[:, 0]),
        r"variance: expected shape \(9, 3, 3\), got \(9, 3\)",
    ),
    "variance of another length": (
        dict(variance=lambda a: a[1:]),
        r"variance: expected shape \(9, 3, 3\), got \(8, 3, 3\)",
    ),
    "evaluation_variance": (
        dict(evaluation_variance=lambda a: a[1:]),
        r"evaluation_variance: expected shape \(21, 3, 3\)",
    ),
    "evaluation_variance: missing": (
        dict(evaluation_variance=None),
        "evaluation_variance: criterion 'epig' needs it",
    ),
    "variance: indefinite": (
        dict(variance=put(4, -9 * np.eye(3)), noise=put(4, 1.0)),
        r"variance: block 4 \(point \d+\) plus its noise is not positive definite",
    ),
    "evaluation_variance: indefinite": (
        dict(evaluation_variance=put(20, -np.eye(3))),
        r"evaluation_variance: block 20 \(point \d+\) plus its noise is not positive",
    ),
    "variance: NaN": (dict(variance=put(0, np.nan), noise=put(0, 1.0)), "variance: block 0"),
    "noise": (dict(noise=lambda a: a[1:]), r"noise: expected shape \(9,\)"),
    "loss": (dict(loss="hinge"), "loss: expected 'squared' or 'cross_entropy'"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case):
    changes, message = BAD[case]
    S, kw = blocks(11)
    kw["S"] = S
    for name, change in changes.items():
        kw[name] = change(kw[name]) if callable(change) else change
    with pytest.raises(ValueError, match=message):
        score_blocks("epig", kw.pop("S"), **kw)


@pytest.mark.parametrize("criterion", LABEL_CRITERIA)
def test_one_column_of_outputs(criterion):
    S, kw = blocks(12, k=1)
    with pytest.raises(ValueError, match=f"'{criterion}' compares classes and needs"):
        score_blocks(criterion, S, **kw)


def test_needed_targets_and_types():
    S, kw = blocks(13)
    with pytest.raises(ValueError, match="log_loss_targets: criterion"):
        score_blocks("expected_log_loss", S, **(kw | dict(log_loss_targets=None)))
    with pytest.raises(TypeError, match="covariance: expected a float32 or float64"):
        score_blocks("emoc", S.astype(np.int64), **kw)
