"""What an operation cannot work with it refuses, names, and leaves as it was."""

import numpy as np
import pytest
import scoring
from score_problems import LABEL_CRITERIA, problem

from ntkfast import ops

N, D, K = 12, 5, 3
rng = np.random.default_rng(0)


def call(**changes):
    """A good call of score_features or score_dense, with some arguments changed."""
    psi, kw = problem(0, N=N, d=D, k=K, candidates=4, evaluation=6)
    kw |= dict(criterion="expected_log_loss", psi=psi, S=psi @ psi.T)
    for name, change in changes.items():
        kw[name] = change(kw[name]) if callable(change) else change
    return kw


def put(position, value):
    def change(array):
        array = array.copy()
        array[position] = value
        return array

    return change


# name of the argument -> what is wrong with it, how the message goes on
BAD_SCORE = {
    "candidates: out of range": (
        dict(candidates=put(2, N)),
        rf"candidates: index {N} at position 2 is outside \[0, {N}\)",
    ),
    "candidates: negative": (
        dict(candidates=put(0, -1)),
        "candidates: index -1 at position 0",
    ),
    "evaluation: out of range": (
        dict(evaluation=put(5, 2**40)),
        f"evaluation: index {2**40} at position 5",
    ),
    "candidates: matrix": (dict(candidates=np.zeros((4, 1), int)), "candidates: expected shape"),
    "evaluation: matrix": (dict(evaluation=np.zeros((6, 1), int)), "evaluation: expected shape"),
    "mean: rows": (
        dict(mean=lambda a: a[:-1]),
        rf"mean: expected shape \({N}, {K}\), got \({N - 1}, {K}\)",
    ),
    "mean: vector": (dict(mean=lambda a: a[:, 0]), "mean: expected shape"),
    "outputs: columns": (dict(outputs=lambda a: a[:, :-1]), r"outputs: expected shape \(12, 3\)"),
    "variance": (dict(variance=lambda a: a[:-1]), r"variance: expected shape \(12,\), got \(11,\)"),
    "noise": (dict(noise=lambda a: a[:-1]), r"noise: expected shape \(4,\)"),
    "label_probs": (dict(label_probs=lambda a: a[:, 1:]), r"label_probs: expected shape \(4, 3\)"),
    "weights": (dict(weights=lambda a: a[:, None]), r"weights: expected shape \(6,\)"),
    "log_loss_targets": (
        dict(log_loss_targets=lambda a: a[1:]),
        r"log_loss_targets: expected shape \(6, 3\)",
    ),
    "log_loss_targets: missing": (
        dict(log_loss_targets=None),
        "log_loss_targets: criterion 'expected_log_loss' needs them",
    ),
    "no classes": (
        {n: lambda a: a[:, :0] for n in ("mean", "outputs", "label_probs", "log_loss_targets")},
        "mean: expected between 1 and",
    ),
    "temperature: zero": (dict(temperature=0.0), "temperature: expected a finite number > 0"),
    "temperature: inf": (dict(temperature=np.inf), "temperature: expected a finite number > 0"),
    "temperature: nan": (dict(temperature=np.nan), "temperature: expected a finite number > 0"),
    "ridge: zero": (dict(ridge=0.0), "ridge: expected a finite number > 0"),
    "ridge: negative": (dict(ridge=-1.0), "ridge: expected a finite number > 0"),
    "label_scale: nan": (dict(label_scale=np.nan), "label_scale: expected a finite number"),
    "residual_temperature: zero": (
        dict(residual_temperature=0.0),
        "residual_temperature: expected a finite number > 0",
    ),
    "residual_temperature: nan": (
        dict(residual_temperature=np.nan),
        "residual_temperature: expected a finite number > 0",
    ),
    "loss": (dict(loss="hinge"), "loss: expected 'squared' or 'cross_entropy', got 'hinge'"),
}


@pytest.mark.parametrize("operation", ["score_features", "score_dense"])
@pytest.mark.parametrize("case", BAD_SCORE)
def test_score(case, operation):
    changes, message = BAD_SCORE[case]
    kw = call(**changes)
    matrix = kw.pop("psi"), kw.pop("S")
    with pytest.raises(ValueError, match=message):
        getattr(scoring, operation)(kw.pop("criterion"), matrix[operation == "score_dense"], **kw)


def score(**changes):
    kw = call(**changes)
    kw.pop("S")
    return scoring.score_features(kw.pop("criterion"), kw.pop("psi"), **kw)


def score_dense(**changes):
    kw = call(**changes)
    kw.pop("psi")
    return scoring.score_dense(kw.pop("criterion"), kw.pop("S"), **kw)


def test_unknown_criterion_lists_the_known():
    with pytest.raises(ValueError, match="unknown name 'entropie'; expected one of") as error:
        score(criterion="entropie")
    assert all(name in str(error.value) for name in ops.criteria())


@pytest.mark.parametrize("criterion", LABEL_CRITERIA)
def test_one_column_of_outputs(criterion):
    names = ("mean", "outputs", "label_probs", "log_loss_targets")
    message = f"'{criterion}' compares classes and needs at least two columns"
    with pytest.raises(ValueError, match=message):
        score(criterion=criterion, **{name: lambda a: a[:, :1] for name in names})


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((N, D), np.float16),
        np.zeros((N, D), np.int64),
        np.zeros((N, D), np.complex128),
        np.zeros((N, D), np.longdouble),
        np.zeros((N, D), object),
        [[0.0] * D] * N,
        None,
    ],
    ids=lambda a: str(getattr(a, "dtype", type(a).__name__)),
)
def test_dtype(wrong):
    vector, square = np.zeros(D), np.zeros((D, D))
    for name, operation in {
        "psi": lambda a: score(psi=a),
        "S": lambda a: score_dense(S=a),
        "features": lambda a: ops.whiten(a, square),
        "X": lambda a: ops.weighted_gram(a, np.zeros(N)),
        "X ": lambda a: ops.quadratic_form(a, square),
        "X  ": lambda a: ops.squared_norms(a),
        "X   ": lambda a: ops.product(a, square),
        "psi ": lambda a: ops.condition_features(a, vector[None], vector[None]),
        "S ": lambda a: ops.condition_dense(a, vector[None]),
        "psi  ": lambda a: ops.downdate_moments(
            a, vector, vector, 1.0, 1.0, np.zeros(N), np.zeros(N)
        ),
    }.items():
        with pytest.raises(TypeError, match=f"^{name.strip()}: expected a float32 or float64"):
            operation(wrong)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_byte_order(dtype):
    swapped = np.zeros((N, D), np.dtype(dtype).newbyteorder())
    with pytest.raises(TypeError, match="psi: expected native byte order"):
        score(psi=swapped)
    with pytest.raises(TypeError, match="X: expected native byte order"):
        ops.squared_norms(swapped)
    with pytest.raises(TypeError, match="psi: expected native byte order"):
        ops.condition_features(swapped, np.zeros((1, D)), np.zeros((1, D)))


def test_strides_between_elements():
    """Rows of a packed record: their distance is no multiple of a number's size."""
    records = np.zeros(N, np.dtype([("x", np.float64, D), ("tag", np.int8)]))
    with pytest.raises(ValueError, match="X: strides are no multiples of the element size"):
        ops.squared_norms(records["x"])


def matrix(*shape):
    return rng.normal(size=shape)


BAD_SHAPES = {
    "score_features psi": (lambda: score(psi=matrix(N, D, 1)), "psi"),
    "score_dense S": (lambda: score_dense(S=matrix(N, N - 1)), "S"),
    "score_dense downdate": (lambda: score_dense(downdate=matrix(2, N - 1)), "downdate"),
    "condition_features U": (
        lambda: ops.condition_features(matrix(N, D), matrix(2, D - 1), matrix(2, D)),
        "U",
    ),
    "condition_features C": (
        lambda: ops.condition_features(matrix(N, D), matrix(2, D), matrix(1, D)),
        "C",
    ),
    "condition_dense S": (lambda: ops.condition_dense(matrix(N, D), matrix(1, D)), "S"),
    "condition_dense V": (lambda: ops.condition_dense(matrix(N, N), matrix(1, D)), "V"),
    "whiten features": (lambda: ops.whiten(matrix(D), matrix(D, D)), "features"),
    "whiten W": (lambda: ops.whiten(matrix(N, D), matrix(D, D - 1)), "W"),
    "product X": (lambda: ops.product(matrix(D), matrix(D, 2)), "X"),
    "product B": (lambda: ops.product(matrix(N, D), matrix(D - 1, 2)), "B"),
    "product B vector": (lambda: ops.product(matrix(N, D), matrix(D)), "B"),
    "weighted_gram X": (lambda: ops.weighted_gram(matrix(N), matrix(N)), "X"),
    "weighted_gram weights": (lambda: ops.weighted_gram(matrix(N, D), matrix(D)), "weights"),
    "quadratic_form G": (lambda: ops.quadratic_form(matrix(N, D), matrix(D, N)), "G"),
    "squared_norms X": (lambda: ops.squared_norms(matrix(N)), "X"),
    "cholesky A": (lambda: ops.cholesky(matrix(N, D)), "A"),
    "triangular_solve L": (lambda: ops.triangular_solve(matrix(D, N), matrix(D, 1)), "L"),
    "triangular_solve B": (lambda: ops.triangular_solve(np.eye(D), matrix(N, 1)), "B"),
    "triangular_solve B vector": (lambda: ops.triangular_solve(np.eye(D), matrix(D)), "B"),
    "downdate_moments g": (
        lambda: ops.downdate_moments(
            matrix(N, D), matrix(N), matrix(D), 1, 1, matrix(N), matrix(N)
        ),
        "g",
    ),
    "downdate_moments h": (
        lambda: ops.downdate_moments(
            matrix(N, D), matrix(D), matrix(N), 1, 1, matrix(N), matrix(N)
        ),
        "h",
    ),
    "downdate_moments s": (
        lambda: ops.downdate_moments(
            matrix(N, D), matrix(D), matrix(D), 1, 1, matrix(N), matrix(D)
        ),
        "s",
    ),
}


@pytest.mark.parametrize("case", BAD_SHAPES)
def test_shape(case):
    operation, name = BAD_SHAPES[case]
    with pytest.raises(ValueError, match=rf"^{name}: expected shape .*, got \("):
        operation()


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "change",
    [read_only, np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2]],
    ids=["read-only", "column-major", "strided"],
)
def test_in_place_arrays_are_never_copied(change):
    psi, S = change(matrix(N, D)), change(matrix(N, N))
    before = psi.copy(), S.copy()
    with pytest.raises(ValueError, match=r"^psi: is changed in place and must be writable"):
        ops.condition_features(psi, matrix(1, D), matrix(1, D))
    with pytest.raises(ValueError, match=r"^S: is changed in place and must be writable"):
        ops.condition_dense(S, matrix(1, N))
    assert np.array_equal(psi, before[0]) and np.array_equal(S, before[1])


@pytest.mark.parametrize("name", ["q", "s"])
@pytest.mark.parametrize(
    "change",
    [read_only, lambda a: np.repeat(a, 2)[::2], lambda a: a.astype(np.float32)],
    ids=["read-only", "strided", "float32"],
)
def test_moments_that_cannot_be_updated(change, name):
    psi, g, moments = matrix(N, D), matrix(D), dict(q=matrix(N), s=matrix(N))
    moments[name] = change(moments[name])
    before = {n: a.copy() for n, a in moments.items()}
    with pytest.raises(ValueError, match=f"^{name}: "):
        ops.downdate_moments(psi, g, g, 1.0, 1.0, **moments)
    assert all(np.array_equal(moments[n], before[n]) for n in moments)


@pytest.mark.parametrize("D_", [0.0, -1.0, np.inf, np.nan])
def test_moments_without_a_divisor(D_):
    q, s = matrix(N), matrix(N)
    before = q.copy(), s.copy()
    with pytest.raises(ValueError, match="D: expected a finite number > 0"):
        ops.downdate_moments(matrix(N, D), matrix(D), matrix(D), 1.0, D_, q, s)
    assert np.array_equal(q, before[0]) and np.array_equal(s, before[1])


def test_a_failed_update_changes_nothing():
    psi, S = matrix(N, D), matrix(N, N)
    before = psi.copy(), S.copy()
    with pytest.raises(ValueError, match=r"^C: "):
        ops.condition_features(psi, matrix(2, D), matrix(3, D))
    with pytest.raises(ValueError, match=r"^V: "):
        ops.condition_dense(S, matrix(2, D))
    assert np.array_equal(psi, before[0]) and np.array_equal(S, before[1])


@pytest.mark.parametrize("row", [0, 1, 63, 64, 129])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_not_positive_definite(row, value):
    A = np.eye(130)
    A[row, row] = value
    before = A.copy()
    with pytest.raises(ValueError, match=rf"not positive definite \(row {row}\)"):
        ops.cholesky(A)
    assert np.array_equal(A, before, equal_nan=True)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_zero_on_the_diagonal(value, transpose):
    L, B = np.eye(70), matrix(70, 2)
    L[66, 66] = value
    before = B.copy()
    with pytest.raises(ValueError, match="L: diagonal element 66 is zero or not finite"):
        ops.triangular_solve(L, B, transpose=transpose)
    assert np.array_equal(B, before)
