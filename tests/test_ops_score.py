"""score_features and score_dense against the reference, which forms every f+."""

from functools import partial

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from score_problems import (
    EPSILON,
    LABEL_CRITERIA,
    all_certain,
    check,
    check_pairs,
    covariance,
    operation_that_returns,
    pairs,
    problem,
    some_candidates,
    some_evaluation,
    tolerance,
)
from scoring import score_dense, score_features

from ntkfast import ops

DTYPES = [np.float32, np.float64]
LOSSES = ["squared", "cross_entropy"]
# Around one row, a panel of 14 rows, a register or two of lanes, a tile of 108 ... 112 x 128.
SIZES = [0, 1, 2, 13, 14, 15, 31, 32, 33, 107, 108, 109, 111, 112, 113, 127, 128, 129, 300]
DEPTHS = [0, 1, 2, 15, 16, 17, 33, 64, 65, 255, 256, 257]
CLASSES = [2, 3, 10, 11, 26]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
losses = pytest.mark.parametrize("loss", LOSSES)
every_criterion = pytest.mark.parametrize("criterion", ops.criteria())


def spread_rows(n, seed=0, most=6):
    """The first and last rows and a few between."""
    rng = np.random.default_rng(seed)
    return np.unique(np.append(rng.integers(0, n, most), [0, n - 1])) if n else np.arange(0)


@dtypes
@losses
@every_criterion
@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32 - 1),
    candidates=st.sampled_from(SIZES),
    evaluation=st.sampled_from(SIZES),
    d=st.sampled_from(DEPTHS),
    k=st.sampled_from(CLASSES),
)
def test_features(criterion, loss, dtype, seed, candidates, evaluation, d, k):
    """Any sizes; candidates and evaluation points are drawn with repeats from the same points."""
    sizes = dict(candidates=candidates, evaluation=evaluation, d=d, k=k)
    psi, kw = problem(seed, dtype=dtype, loss=loss, **sizes)
    found = score_features(criterion, psi, **kw)
    check(found, criterion, covariance(psi, kw), kw, dtype, spread_rows(candidates, seed))


@dtypes
@every_criterion
@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32 - 1),
    candidates=st.sampled_from(SIZES),
    evaluation=st.sampled_from(SIZES),
    rank=st.sampled_from([None, 0, 1, 2, 15, 16, 33]),
    k=st.sampled_from(CLASSES),
)
def test_dense(criterion, dtype, seed, candidates, evaluation, rank, k):
    """A matrix in memory, with and without the rows that the picks of a batch have added."""
    loss = LOSSES[seed % 2]
    psi, kw = problem(seed, k=k, candidates=candidates, evaluation=evaluation, loss=loss)
    K = psi @ psi.T
    V = None
    if rank is not None:  # covariance and variance after `rank` picks of noise 1
        picked = np.random.default_rng(seed).choice(len(psi), rank, replace=False)
        L = np.linalg.cholesky(K[np.ix_(picked, picked)] + np.eye(rank))
        V = np.linalg.solve(L, K[picked]).reshape(rank, len(psi)).astype(dtype)
        kw["variance"] = np.diagonal(K) - (V.astype(np.float64) ** 2).sum(0)
    S = K.astype(dtype)
    before = S.copy()
    found = score_dense(criterion, S, **kw, downdate=V)
    assert np.array_equal(S, before)
    C = S.astype(np.float64) - (0 if V is None else V.T.astype(np.float64) @ V.astype(np.float64))
    S_cx = C[np.ix_(kw["candidates"], kw["evaluation"])]
    rows = spread_rows(candidates, seed)
    # The subtraction rounds relative to the covariance before it.
    diagonal = np.sqrt(np.diagonal(K))
    size = np.outer(diagonal[kw["candidates"]], diagonal[kw["evaluation"]])
    check(found, criterion, S_cx, kw, dtype, rows, size=size)


@dtypes
@every_criterion
@pytest.mark.parametrize("k", [100, 1000])
def test_many_classes(criterion, k, dtype):
    sizes = dict(candidates=1, evaluation=7) if k == 1000 else dict(candidates=3, evaluation=150)
    psi, kw = problem(1, k=k, dtype=dtype, loss="cross_entropy", **sizes)
    found = score_features(criterion, psi, **kw)
    check(found, criterion, covariance(psi, kw), kw, dtype)


@dtypes
@every_criterion
def test_deep_features(criterion, dtype):
    psi, kw = problem(2, d=4500, candidates=30, evaluation=140, k=3, dtype=dtype)
    found = score_features(criterion, psi, **kw)
    check(found, criterion, covariance(psi, kw), kw, dtype, spread_rows(30))


@dtypes
@every_criterion
def test_several_segments_and_groups(criterion, dtype):
    """More than 64 tiles of evaluation points and more than 1024 candidates."""
    psi, kw = problem(3, N=500, d=3, candidates=2300, evaluation=8200, k=2, dtype=dtype)
    found = score_features(criterion, psi, **kw)
    rows = np.array([0, 1007, 1008, 1150, 1151, 2299])
    part = some_candidates(kw, rows)
    check(found[rows], criterion, covariance(psi, part), part, dtype)


@dtypes
@every_criterion
def test_dense_equals_features(criterion, dtype):
    psi, kw = problem(4, candidates=150, evaluation=140, k=10, dtype=dtype)
    S = psi.astype(np.float64)
    S = (S @ S.T).astype(dtype)
    rows = spread_rows(150)
    found = score_dense(criterion, S, **kw)
    check(found, criterion, covariance(psi, kw), kw, dtype, rows)
    check(score_features(criterion, psi, **kw), criterion, covariance(psi, kw), kw, dtype, rows)


@dtypes
@every_criterion
def test_views(criterion, dtype):
    """Rows may lie apart, backwards or one upon another; columns are made contiguous."""
    psi, kw = problem(5, N=50, d=20, candidates=40, evaluation=60, k=3, dtype=dtype)
    expected = score_features(criterion, psi, **kw)
    padded = np.full((100, 31), np.nan, dtype=dtype)
    padded[::2, 3:23] = psi
    for view in (
        padded[::2, 3:23],
        np.ascontiguousarray(psi[::-1])[::-1],
        np.asfortranarray(psi),
        np.repeat(psi, 2, axis=1)[:, ::2],
    ):
        assert np.array_equal(score_features(criterion, view, **kw), expected)
    S = np.ascontiguousarray(psi @ psi.T)
    S = np.triu(S) + np.triu(S, 1).T
    expected = score_dense(criterion, S, **kw)
    padded = np.full((100, 70), np.nan, dtype=dtype)
    padded[::2, 5:55] = S
    for view in (padded[::2, 5:55], np.asfortranarray(S)):
        assert np.array_equal(score_dense(criterion, view, **kw), expected)
    same = np.broadcast_to(psi[:1], psi.shape)
    kw["variance"] = (same.astype(np.float64) ** 2).sum(1)
    found = score_features(criterion, same, **kw)
    assert np.array_equal(found, score_features(criterion, same.copy(), **kw))


def test_other_arguments_in_any_layout():
    psi, kw = problem(6, candidates=20, evaluation=30, k=3)
    expected = score_features("expected_log_loss", psi, **kw)
    for change in (
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: a.astype(a.dtype.newbyteorder()),
        lambda a: a.tolist(),
    ):
        arrays = {n: change(a) for n, a in kw.items() if isinstance(a, np.ndarray)}
        assert np.array_equal(score_features("expected_log_loss", psi, **(kw | arrays)), expected)


@dtypes
@every_criterion
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), k=st.sampled_from([2, 3, 10]))
def test_order_does_not_matter(criterion, dtype, seed, k):
    """Points, candidates, evaluation points and classes may come in any order."""
    psi, kw = problem(seed, candidates=120, evaluation=140, k=k, d=7, dtype=dtype)
    rng = np.random.default_rng(seed)
    found = score_features(criterion, psi, **kw)

    order = rng.permutation(len(psi))  # new point i is old point order[i]
    place = np.argsort(order)
    moved = kw | {n: kw[n][order] for n in ("mean", "outputs", "variance")}
    moved |= {n: place[kw[n]] for n in ("candidates", "evaluation")}
    assert np.array_equal(score_features(criterion, psi[order], **moved), found)

    rows = rng.permutation(120)
    moved = some_candidates(kw, rows)
    assert np.array_equal(score_features(criterion, psi, **moved), found[rows])

    some = spread_rows(120, seed)
    S_cx = covariance(psi, kw)
    columns = rng.permutation(140)
    check(
        score_features(criterion, psi, **some_evaluation(kw, columns)),
        criterion, S_cx, kw, dtype, some,
    )  # fmt: skip

    classes = rng.permutation(k)
    names = ("mean", "outputs", "label_probs", "log_loss_targets")
    moved = kw | {n: np.ascontiguousarray(kw[n][:, classes]) for n in names}
    check(score_features(criterion, psi, **moved), criterion, S_cx, kw, dtype, some)


@dtypes
@every_criterion
@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**32 - 1),
    cut=st.sampled_from([1, 13, 14, 111, 112, 113]),
    column=st.sampled_from([1, 15, 16, 127, 128, 129]),
)
def test_parts_make_the_whole(criterion, dtype, seed, cut, column):
    """A pool at once, in parts, and with further points appended."""
    psi, kw = problem(seed, N=40, candidates=130, evaluation=260, k=3, d=9, dtype=dtype)
    found = score_features(criterion, psi, **kw)
    parts = [
        score_features(criterion, psi, **some_candidates(kw, rows))
        for rows in np.split(np.arange(130), [cut])
    ]
    assert np.array_equal(np.concatenate(parts), found)

    parts = sum(
        score_features(criterion, psi, **some_evaluation(kw, columns))
        for columns in np.split(np.arange(260), [column])
    )
    # A few units in the last place of sums that may lose to cancellation in `expected_log_loss`.
    assert np.abs(parts - found).max() <= 16 * EPSILON[dtype] * np.abs(found).max()

    extra = np.concatenate([kw["evaluation"], np.arange(column) % 40])
    appended = kw | dict(
        evaluation=extra,
        weights=np.append(kw["weights"], np.zeros(column)),
        log_loss_targets=np.vstack([kw["log_loss_targets"], np.full((column, 3), 1 / 3)]),
        covered=np.append(kw["covered"], np.zeros(column)),
    )
    appended = score_features(criterion, psi, **appended)
    assert np.abs(appended - found).max() <= 16 * EPSILON[dtype] * np.abs(found).max()


# --- Accuracy ---


@pytest.mark.parametrize("k", [2, 3, 10, 26])
@losses
@pytest.mark.parametrize("spread", [0.1, 1, 5, 25, 100])
@pytest.mark.parametrize("step", [0.01, 1, 30, 1000])
def test_accuracy_of_expected_entropy(loss, spread, step, k):
    """|F / T| <= spread, labels that move logits by up to about `step`: 1e-5 (float) and 1e-11.

    Relative to the largest utility, or half a rounding of Z = 1 for each point: the entropy of a
    softmax decided to 1e-3 nats is not known to 1e-5 of itself in float32.
    """
    temperature = 0.37
    for seed in range(2):
        psi, kw = problem(
            seed, d=30, candidates=12, evaluation=150, k=k, dtype=np.float32, loss=loss,
            temperature=temperature,
        )  # fmt: skip
        rng = np.random.default_rng(seed)
        kw["mean"] = rng.uniform(-spread, spread, size=kw["mean"].shape) * temperature
        size = 1 + np.abs(kw["mean"]).max() if loss == "squared" else 1
        kw["label_scale"] = 1.0 if loss == "squared" else step * temperature
        if loss == "squared":  # the size of a label is one: move by the covariance instead
            psi *= np.float32(np.sqrt(step * temperature / size))
            kw["variance"] = (psi.astype(np.float64) ** 2).sum(1)
            kw["noise"] = np.where(np.isinf(kw["noise"]), np.inf, 1.0)
        expected = reference.score("expected_entropy", covariance(psi, kw), **kw)
        largest = np.abs(expected).max()
        for dtype, bound in ((np.float32, 1e-5), (np.float64, 1e-11)):
            found = score_features("expected_entropy", psi.astype(dtype), **kw)
            rounding = EPSILON[dtype] / 2 * kw["weights"].sum()
            assert np.abs(found - expected).max() <= max(bound * largest, rounding)


# --- Extreme values ---


def extreme(name, dtype, k):
    """psi and keywords of a call at the edge of what a user can ask for."""
    base = dict(k=k, candidates=17, evaluation=40, dtype=dtype)
    loss = "squared" if name.startswith("squared ") else "cross_entropy"
    psi, kw = problem(k, **base, loss=loss)
    kw["noise"] = np.where(np.isinf(kw["noise"]), 1.0, kw["noise"])
    setting = name.split(" ", 1)[1]
    if setting == "cold":
        kw["temperature"] = 1e-6
    elif setting == "hot":
        kw["temperature"] = 1e6
    elif setting == "large logits":
        signs = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=kw["mean"].shape)
        kw["mean"], kw["outputs"] = 1e4 * signs, 1e4 * signs[::-1].copy()
    elif setting == "large and cold":
        kw["mean"], kw["temperature"] = 1e4 * kw["mean"], 1e-3
    elif setting == "large labels":
        kw["label_scale"] = 1e4
    elif setting == "large, opposite labels":
        kw["label_scale"] = -1e4
    elif setting == "large, cold labels":
        kw["label_scale"], kw["temperature"] = 1e4, 1e-6
    elif setting == "noise inf":
        kw["noise"][:] = np.inf
    elif setting == "tiny noise":
        kw["noise"][:] = 1e-12
    elif setting == "smallest noise":
        kw["noise"][:] = np.finfo(np.float64).tiny
    elif setting == "zero features":
        psi[:] = 0
    elif setting == "zero features, smallest noise":
        psi[:] = 0
        kw["noise"][:] = np.finfo(np.float64).tiny
    elif setting == "huge kernel":
        psi *= dtype(1e9)
    elif setting == "tiny kernel":
        psi *= dtype(1e-9)
        kw["noise"] *= 1e-18
        kw["ridge"] *= 1e-18
    elif setting == "weak candidates":  # a step of up to 1e9 at other points
        psi[kw["candidates"]] *= dtype(1e-9)
        kw["noise"] *= 1e-18
    elif setting == "identical points":
        psi[:] = psi[0]
        kw["mean"][:], kw["outputs"][:] = kw["mean"][0], kw["outputs"][0]
    elif setting == "equal outputs":
        kw["mean"][:], kw["outputs"][:] = 0.25, 0.25
    else:
        raise KeyError(setting)
    kw["variance"] = (psi.astype(np.float64) ** 2).sum(1)
    return psi, kw


SETTINGS = [
    "cold", "hot", "large logits", "large and cold", "large labels", "large, opposite labels",
    "large, cold labels", "noise inf", "tiny noise", "smallest noise", "zero features",
    "zero features, smallest noise", "huge kernel", "tiny kernel", "weak candidates",
    "identical points", "equal outputs",
]  # fmt: skip


# Of 12 combinations six, with every pair of a dtype and a loss, a dtype and a k, a loss and a k.
COVERING = [
    (dtype, LOSSES[(i + j) % 2], k)
    for i, dtype in enumerate(DTYPES)
    for j, k in enumerate((2, 3, 10))
]
extremes = pytest.mark.parametrize("setting", SETTINGS)


@extremes
@every_criterion
def test_extreme(criterion, setting):
    """The whole call, and every pair: those that rounding cannot decide must be right."""
    for dtype, loss, k in COVERING:
        psi, kw = extreme(f"{loss} {setting}", dtype, k)
        S_cx, score = covariance(psi, kw), partial(score_features, criterion, psi)
        check(score(**kw), criterion, S_cx, kw, dtype)
        right, allowed = pairs(criterion, S_cx, kw), tolerance(criterion, S_cx, kw, dtype)
        check_pairs(score, kw, right, allowed)


@extremes
@every_criterion
def test_extreme_sees_faults(criterion, setting):
    """Kernels that return zeros, or somewhat more than they should, fail `test_extreme`."""
    for dtype, loss, k in COVERING[1::3]:
        psi, kw = extreme(f"{loss} {setting}", dtype, k)
        S_cx = covariance(psi, kw)
        right, allowed = pairs(criterion, S_cx, kw), tolerance(criterion, S_cx, kw, dtype)
        if all_certain(criterion, kw, right):
            continue
        with pytest.raises(AssertionError):
            check(np.zeros(len(right)), criterion, S_cx, kw, dtype)
        factor = 1.01 if dtype == np.float64 else 1.25  # near ties 1.1 may be rounding in float32
        for wrong in (0 * right, factor * right):
            with pytest.raises(AssertionError, match="candidate"):
                check_pairs(operation_that_returns(wrong), kw, right, allowed)


@dtypes
@pytest.mark.parametrize("k", [2, 3, 10])
def test_exact_ties_go_to_the_lowest_class(k, dtype):
    """Small integers and powers of two: every f+ is exact, and many outputs of it are equal."""
    rng = np.random.default_rng(k)
    N = 60
    psi = rng.integers(-1, 2, size=(N, 4)).astype(dtype)
    variance = (psi.astype(np.float64) ** 2).sum(1)
    candidates = np.arange(N)
    kw = dict(
        candidates=candidates,
        evaluation=np.arange(N),
        mean=rng.integers(-1, 2, size=(N, k)) * 0.5,
        outputs=rng.integers(-1, 2, size=(N, k)) * 0.5,
        variance=variance,
        noise=8 - variance,
        ridge=1.0,
        label_probs=np.full((N, k), 1 / 16),
        weights=np.full(N, 1.0),
        label_scale=1.0,
        loss="squared",
        temperature=1.0,
        log_loss_targets=None,
    )
    found = score_features("label_flips", psi, **kw)
    expected = reference.score_features("label_flips", psi, **kw)
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 3


@dtypes
@pytest.mark.parametrize("criterion", LABEL_CRITERIA)
def test_a_candidate_without_noise_or_variance_teaches_nothing(criterion, dtype):
    """noise = inf, and zero features: f+ = F, exactly what a step of zero gives."""
    psi, kw = problem(8, candidates=12, evaluation=30, k=3, dtype=dtype)
    unmoved = kw | dict(noise=np.full(12, np.inf))
    found = score_features(criterion, psi, **unmoved)
    zero = kw | dict(variance=np.zeros(len(psi)))
    assert np.array_equal(found, score_features(criterion, np.zeros_like(psi), **zero))
    check(found, criterion, covariance(psi, kw), unmoved, dtype)


@dtypes
@pytest.mark.parametrize("criterion", ["variance_reduction", "epig"])
def test_one_output_column_will_do_for_the_variance_criteria(criterion, dtype):
    psi, kw = problem(9, candidates=20, evaluation=50, k=1, dtype=dtype)
    kw["log_loss_targets"] = None
    check(score_features(criterion, psi, **kw), criterion, covariance(psi, kw), kw, dtype)


def test_epig_without_cancellation():
    """With noise far below the kernel 1 - rho^2 is what two ones leave: exact in float too."""
    psi = np.ones((2, 1), np.float32)
    _, kw = problem(0, N=2, candidates=1, evaluation=1)
    kw |= dict(candidates=[0], evaluation=[1], variance=np.ones(2), weights=[1.0])
    for noise in (1.0, 1e-3, 1e-6, 1e-9, 1e-12):
        kw |= dict(noise=[noise], ridge=noise)
        q = noise / (1 + noise)
        expected = -0.5 * np.log(q * (2 - q))  # 1 - p^2, p = 1 - q
        for dtype, bound in ((np.float32, 2e-6), (np.float64, 1e-14)):
            found = score_features("epig", psi.astype(dtype), **kw)[0]
            assert abs(found - expected) <= bound * expected
