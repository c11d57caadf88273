"""The operations on a GPU against the plain numpy reference; tests marked `gpu` need a device.

On a machine without one they are skipped, unless NTKFAST_REQUIRE_GPU=1: then they fail, so that a
skipped test is never read as a pass. `make test-emulated` runs them on the CPU, all but those that
need a true device: wrappers, checks, workspace, launches and kernels are the same.
"""

import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import reference
from block_problems import BOUND, blocks, panel
from block_problems import check as check_blocks
from data import oracle
from score_problems import check, covariance, problem
from scoring import (
    cuda_score_blocks,
    cuda_score_dense,
    cuda_score_features,
    output_by_output,
    score_features,
)

from ntkfast import _core, cuda_ops, ops

torch = pytest.importorskip("torch")

from ntk_networks import networks  # noqa: E402

from ntkfast._ntk import compiled, contract  # noqa: E402
from ntkfast._ntk.sketch import CountSketch  # noqa: E402
from ntkfast.ntk import EmpiricalNTK  # noqa: E402

INDICES = ("candidates", "evaluation")
ARRAYS = ("mean", "outputs", "variance", "noise", "label_probs", "weights", "log_loss_targets",
          "covered")  # fmt: skip
# Relative to the largest utility. Features are rounded to 11 bits (f16) and 8 (bf16).
TOLERANCE = {"fma64": 1e-11, "fma32": 2e-5, "f16x3": 2e-5, "f16": 2e-2, "bf16": 1e-1}


def close(found, expected, tolerance):
    found = found.detach().cpu().double().numpy()
    scale = np.abs(expected).max() if expected.size else 1.0
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(scale, 1e-300))


def close_scores(found, criterion, psi, keywords, products, tolerance):
    """Utilities of features, or of float32 covariances: `products` "dense"."""
    if criterion == "ball_coverage":  # a step: rounding decides where distances are near the radius
        dtype = np.float64 if products == "fma64" else np.float32
        factor = 16.0 * (2**13 if products == "f16" else 1)
        found = found.cpu().numpy()
        return check(found, criterion, covariance(psi, keywords), keywords, dtype, factor=factor)
    if criterion == "label_flips":  # a rounded logit may decide one comparison
        tolerance = max(tolerance, 2e-2)
    close(found, reference.score_features(criterion, psi, **keywords), tolerance)


def on(device, keywords):
    """A call's arguments on the device."""
    return {
        name: torch.from_numpy(np.ascontiguousarray(value)).to(device)
        if name in INDICES + ARRAYS
        else value
        for name, value in keywords.items()
    }


def features(psi, products, device):
    dtype = {"float64": torch.float64, "fma64": torch.float64, "bf16": torch.bfloat16}.get(
        products, torch.float32
    )
    return torch.from_numpy(np.ascontiguousarray(psi)).to(device=device, dtype=dtype)


def rounded(psi, products):
    """What the kernel sees of the features: bf16 features are rounded before it starts."""
    return features(psi, products, "cpu").double().numpy()


def score(products, criterion, psi, keywords, device):
    return cuda_score_features(
        criterion, features(psi, products, device), products=products, **on(device, keywords)
    )


# --- Without a device ---------------------------------------------------------------------------


def test_import_and_status_need_no_device():
    assert isinstance(cuda_ops.available(), bool)
    assert cuda_ops.available() == (cuda_ops.problem() == "")
    assert cuda_ops.available() <= _core.cuda_compiled()


def test_no_silent_fallback():
    if not _core.cuda_emulated():
        with pytest.raises((RuntimeError, TypeError), match=r"GPU kernels|CUDA tensor"):
            cuda_ops.squared_norms(torch.zeros(3, 2))
    with pytest.raises((RuntimeError, TypeError), match=r"GPU kernels|CUDA tensor"):
        cuda_ops.squared_norms(np.zeros((3, 2)))


def test_cupy_streams_are_those_of_the_device_of_the_array(monkeypatch):
    current = [0]

    class Device:
        def __init__(self, number):
            self.number = number

        def __enter__(self):
            current.append(self.number)

        def __exit__(self, *_):
            current.pop()

    cuda = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=100 + current[-1]))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    library = cuda_ops._Cupy(SimpleNamespace(device=Device(1)))
    assert (library.stream(), current) == (101, [0])


# --- Scoring ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("k", [2, 3, 10, 26])
@pytest.mark.parametrize("products", TOLERANCE)
@pytest.mark.parametrize("criterion", ops.criteria())
def test_score_features(gpu, criterion, products, k):
    psi, keywords = problem(k, N=300, d=37, k=k, candidates=150, evaluation=211)
    tolerance = TOLERANCE[products] if products != "bf16" else 2e-5
    found = score(products, criterion, psi, keywords, gpu)
    close_scores(found, criterion, rounded(psi, products), keywords, products, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("k", [100, 1000])
@pytest.mark.parametrize("products", [*TOLERANCE, "dense"])
def test_many_classes(gpu, products, k):
    psi, keywords = problem(k, N=20, d=20, k=k, candidates=3, evaluation=5)
    psi = rounded(psi, products)
    tolerance = TOLERANCE[products] if products not in ("bf16", "dense") else 2e-5
    for criterion in ops.criteria():
        if products == "dense":
            S = torch.tensor((psi @ psi.T).astype(np.float32), device=gpu)
            found = cuda_score_dense(criterion, S, **on(gpu, keywords))
        else:
            found = score(products, criterion, psi, keywords, gpu)
        close_scores(found, criterion, psi, keywords, products, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("k", [10, 26])
@pytest.mark.parametrize("products", TOLERANCE)
def test_score_features_extreme_logits(gpu, products, k):
    """Finite, and right where the rounding of features and logits does not decide."""
    psi, keywords = problem(1, N=90, d=20, k=k, candidates=40, evaluation=70, spread=1e4)
    psi = rounded(psi, products)
    S_cx, dtype = covariance(psi, keywords), np.float64 if products == "fma64" else np.float32
    factor = 16.0 * (2**13 if products == "f16" else 1)  # features of 11 bits instead of 24
    for criterion in ops.criteria():
        found = score(products, criterion, psi, keywords, gpu).cpu().numpy()
        check(found, criterion, S_cx, keywords, dtype, factor=factor)


@pytest.mark.gpu
@pytest.mark.parametrize("k", [2, 3, 10, 26])
@pytest.mark.parametrize("products", ["fma64", "fma32", "f16x3"])
def test_score_features_steps_of_every_size(gpu, products, k):
    """Steps A from small over large to any: each has its own sums over the labels."""
    for label_scale in (0.5, 8.0, 1000.0):
        psi, keywords = problem(
            k, N=70, d=20, k=k, candidates=20, evaluation=40, loss="cross_entropy",
            label_scale=label_scale, temperature=1.0,
        )  # fmt: skip
        for criterion in ("expected_entropy", "expected_log_loss", "expected_error"):
            expected = reference.score_features(criterion, psi, **keywords)
            # Logits are as precise as they are large.
            close(
                score(products, criterion, psi, keywords, gpu),
                expected,
                TOLERANCE[products] * max(1.0, label_scale / 8),
            )


@pytest.mark.gpu
@pytest.mark.parametrize("d", [1, 31, 33, 500])
@pytest.mark.parametrize("products", TOLERANCE)
def test_score_features_any_depth(gpu, products, d):
    """Unaligned rows too: d = 31 floats are no multiple of 16 bytes."""
    psi, keywords = problem(d, N=400, d=d, k=2, candidates=300, evaluation=391)
    expected = reference.score_features("variance_reduction", rounded(psi, products), **keywords)
    tolerance = TOLERANCE[products] if products != "bf16" else 2e-5
    close(score(products, "variance_reduction", psi, keywords, gpu), expected, tolerance)


@pytest.mark.gpu
def test_long_sums_without_signs(gpu):
    """Tensor cores cut off what a sum cannot hold, in the emulation too: it must not add up.

    In one chain of instructions S would be 4e-5 too small here, and `variance_reduction` 8e-5.
    """
    psi, keywords = problem(18, N=40, d=5000, k=2, candidates=10, evaluation=30)
    psi = np.abs(psi).astype(np.float32).astype(np.float64)
    keywords["variance"] = (psi**2).sum(1)
    for criterion in ("variance_reduction", "epig"):
        expected = reference.score_features(criterion, psi, **keywords)
        close(score("f16x3", criterion, psi, keywords, gpu), expected, 3e-6)
    A = features(psi[:5], "f16x3", gpu)
    out = torch.zeros((5, 5), device=gpu)
    cuda_ops.gram_add(A, A, out, products="f16x3")
    close(out, psi[:5] @ psi[:5].T, 1.5e-6)


@pytest.mark.gpu
def test_score_features_large_pool_is_reproducible(gpu, monkeypatch):
    """The same bits every time, and in any order of blocks.

    Several tiles per block on a GPU; the emulation's are in tests/cpp/cuda/score_tensor.cc.
    """
    if _core.cuda_emulated():
        kinds, tolerance = ("f16",), 1e-3
        psi, keywords = problem(5, N=500, d=8, k=2, candidates=400, evaluation=450)
    else:
        kinds, tolerance = ("f16x3", "fma32"), 2e-5
        psi, keywords = problem(5, N=9000, d=64, k=10, candidates=8000, evaluation=8500)
    expected = score_features("expected_error", psi.astype(np.float64), **keywords)
    for products in kinds:
        monkeypatch.delenv("NTKFAST_EMULATION_ORDER", raising=False)
        found = score(products, "expected_error", psi, keywords, gpu)
        close(found, expected, tolerance)
        monkeypatch.setenv("NTKFAST_EMULATION_ORDER", "2")
        assert torch.equal(found, score(products, "expected_error", psi, keywords, gpu))


@pytest.mark.gpu
@pytest.mark.parametrize(("candidates", "evaluation"), [(0, 5), (5, 0), (0, 0)])
def test_score_features_empty_sets(gpu, candidates, evaluation):
    psi, keywords = problem(3, candidates=candidates, evaluation=evaluation)
    found = score("fma32", "expected_entropy", psi, keywords, gpu)
    assert found.shape == (candidates,)
    assert (found == 0).all()


@pytest.mark.gpu
def test_score_features_of_a_view(gpu):
    psi, keywords = problem(4, N=60, d=16, k=3, candidates=20, evaluation=30)
    wide = torch.full((120, 24), float("nan"), device=gpu)
    view = wide[::2, :16]
    view.copy_(torch.from_numpy(psi))
    expected = reference.score_features("epig", psi, **keywords)
    found = cuda_score_features("epig", view, products="f16x3", **on(gpu, keywords))
    close(found, expected, 2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [0, 3])
def test_score_dense(gpu, dtype, rank):
    psi, keywords = problem(6, N=150, d=12, k=10, candidates=70, evaluation=131)
    S = (psi @ psi.T).astype(dtype)
    V = (0.05 * np.random.default_rng(0).normal(size=(rank, 150))).astype(dtype)
    for criterion in ops.criteria():
        expected = reference.score_dense(criterion, S, downdate=V, **keywords)
        found = cuda_score_dense(
            criterion,
            torch.from_numpy(S).to(gpu),
            downdate=torch.from_numpy(V).to(gpu),
            **on(gpu, keywords),
        )
        close(found, expected, 2e-2 if criterion in ("label_flips", "ball_coverage") else 5e-5)


def score_in_blocks(criterion, S, keywords, device):
    """Utilities for a matrix-valued kernel, and what is wrong with whose blocks."""
    P, keywords = panel(S, keywords)
    P = output_by_output(P, keywords["mean"].shape[1])
    arguments = on(device, keywords)
    for name in ("rows", "columns", "evaluation_variance"):
        value = arguments.pop(name)
        if value is not None:
            arguments[name] = torch.from_numpy(value).to(device)
    found, wrong = cuda_score_blocks(criterion, torch.from_numpy(P).to(device), **arguments)
    return found.cpu().numpy(), wrong.cpu().numpy()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("criterion", oracle.CRITERIA)
def test_score_blocks(gpu, criterion, dtype):
    for loss, k, candidates, evaluation in (
        ("squared", 2, 40, 70),
        ("cross_entropy", 3, 3, 300),
        ("squared", 10, 33, 31),
        ("cross_entropy", 26, 3, 40),
    ):
        sizes = dict(k=k, candidates=candidates, evaluation=evaluation, loss=loss, dtype=dtype)
        S, keywords = blocks(k, **sizes)
        found, wrong = score_in_blocks(criterion, S, keywords, gpu)
        # The special functions of a GPU are good to 22 bits.
        bound = BOUND[dtype] if dtype == np.float64 else 2e-5
        check_blocks(found, criterion, S, keywords, dtype, bound=bound)
        assert not wrong.any()


@pytest.mark.gpu
@pytest.mark.parametrize("criterion", ["expected_entropy", "epig"])
def test_score_blocks_many_classes(gpu, criterion):
    S, keywords = blocks(2, N=3, k=60, candidates=2, evaluation=2, loss="cross_entropy")
    found, _ = score_in_blocks(criterion, S, keywords, gpu)
    check_blocks(found, criterion, S, keywords, np.float64)


@pytest.mark.gpu
@pytest.mark.parametrize(("candidates", "evaluation"), [(0, 5), (5, 0), (0, 0)])
def test_score_blocks_empty_sets(gpu, candidates, evaluation):
    S, keywords = blocks(3, candidates=candidates, evaluation=evaluation)
    found, wrong = score_in_blocks("epig", S, keywords, gpu)
    assert found.shape == (candidates,) and not found.any()
    assert wrong.shape == (candidates + evaluation,) and not wrong.any()


@pytest.mark.gpu
def test_score_blocks_tells_what_is_no_covariance(gpu):
    S, keywords = blocks(11)
    keywords["variance"][4], keywords["noise"][4] = -9 * np.eye(3), 1.0
    found, wrong = score_in_blocks("emoc", S, keywords, gpu)
    assert np.flatnonzero(wrong).tolist() == [4]
    assert np.flatnonzero(np.isnan(found)).tolist() == [4]
    keywords["evaluation_variance"][20] = -np.eye(3)
    found, wrong = score_in_blocks("epig", S, keywords, gpu)
    assert np.flatnonzero(wrong).tolist() == [4, 9 + 20]
    assert np.isnan(found).all()


@pytest.mark.gpu
@pytest.mark.parametrize("criterion", ["expected_entropy", "epig"])
def test_score_blocks_is_reproducible(gpu, criterion, monkeypatch):
    """The same bits every time, and in the emulation in any order of threads and blocks."""
    S, keywords = blocks(5, N=60, k=3, candidates=30, evaluation=200, dtype=np.float32)
    found, _ = score_in_blocks(criterion, S, keywords, gpu)
    for order in ("1", "2"):
        monkeypatch.setenv("NTKFAST_EMULATION_ORDER", order)
        assert np.array_equal(found, score_in_blocks(criterion, S, keywords, gpu)[0])


@pytest.mark.gpu
def test_score_blocks_names_the_argument(gpu):
    S, keywords = blocks(12)
    with pytest.raises(ValueError, match="'ball_coverage' is of a scalar kernel"):
        score_in_blocks("ball_coverage", S, keywords | dict(covered=np.zeros(21)), gpu)
    with pytest.raises(ValueError, match="evaluation_variance: criterion 'epig' needs it"):
        score_in_blocks("epig", S, keywords | dict(evaluation_variance=None), gpu)
    wrong = keywords | dict(variance=keywords["variance"][:, 0])
    with pytest.raises(ValueError, match=r"variance: expected shape \(9, 3, 3\), got \(9, 3\)"):
        score_in_blocks("epig", S, wrong, gpu)
    arguments = on(gpu, panel(S, keywords)[1])
    for name in ("rows", "columns"):
        del arguments[name]
    arguments["evaluation_variance"] = None
    with pytest.raises(ValueError, match=r"covariance: expected shape \(27, 63\), got \(27, 62\)"):
        cuda_score_blocks("emoc", torch.zeros((27, 62), device=gpu), **arguments)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("products", "kept"), [("fma32", 30), ("f16x3", 30), ("f16", 30), ("bf16", 30)]
)
def test_rank_agreement_with_ill_conditioned_features(gpu, products, kept):
    """Top 30 of 600 with explained directions (median S / K far below 1); docs/method.md, 3."""
    rng = np.random.default_rng(8)
    d, labelled = 256, 400
    phi = rng.normal(size=(600 + labelled, d)) * np.exp(-np.arange(d) / 40)
    ridge = 1e-2 * (phi[600:] ** 2).sum(1).mean()
    M = np.eye(d) + phi[600:].T @ phi[600:] / ridge
    psi = np.linalg.solve(np.linalg.cholesky(M), phi[:600].T).T
    _, keywords = problem(8, N=600, d=1, k=10, candidates=600, evaluation=600)
    keywords.update(
        candidates=np.arange(600), evaluation=np.arange(600), variance=(psi**2).sum(1),
        noise=np.full(600, ridge), ridge=ridge, weights=np.ones(600),
    )  # fmt: skip
    exact = score_features("variance_reduction", psi, **keywords)
    keywords["variance"] = (rounded(psi, products) ** 2).sum(1)
    found = score(products, "variance_reduction", psi, keywords, gpu).cpu().numpy()
    assert len(set(np.argsort(-exact)[:30]) & set(np.argsort(-found)[:30])) >= kept - 1


# --- Streams, graphs, errors ----------------------------------------------------------------------


@pytest.mark.gpu
def test_other_stream_and_graph(true_gpu):
    gpu = true_gpu
    psi, keywords = problem(9, N=200, d=40, k=10, candidates=90, evaluation=150)
    expected = reference.score_features("expected_error", psi, **keywords)
    arguments, psi_gpu = on(gpu, keywords), features(psi, "f16x3", gpu)

    def call():
        return cuda_score_features("expected_error", psi_gpu, products="f16x3", **arguments)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = call()
    torch.cuda.current_stream().wait_stream(stream)
    close(found, expected, 2e-5)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    found.fill_(float("nan"))
    graph.replay()
    close(found, expected, 2e-5)


@pytest.mark.gpu
def test_errors_name_the_argument(gpu):
    psi, keywords = problem(10)
    arguments = on(gpu, keywords)
    psi = features(psi, "float32", gpu)
    with pytest.raises(ValueError, match="criterion: unknown name"):
        cuda_score_features("entropy", psi, **arguments)
    with pytest.raises(ValueError, match="products"):
        cuda_score_features("epig", psi, products="fp8", **arguments)
    with pytest.raises(ValueError, match=r"bf16.*bfloat16"):
        cuda_score_features("epig", psi, products="bf16", **arguments)
    with pytest.raises(ValueError, match="noise: expected shape"):
        cuda_score_features("epig", psi, **{**arguments, "noise": arguments["noise"][1:]})
    with pytest.raises(TypeError, match="weights"):
        cuda_score_features("epig", psi, **{**arguments, "weights": keywords["weights"]})
    with pytest.raises(ValueError, match="rows must be contiguous"):
        cuda_score_features("epig", psi.T.contiguous().T, **arguments)
    if torch.cuda.device_count() > 1:
        with pytest.raises(ValueError, match="one device"):
            elsewhere = {**arguments, "noise": arguments["noise"].to("cuda:1")}
            cuda_score_features("epig", psi, **elsewhere)


@pytest.mark.gpu
def test_an_error_is_not_found_again(gpu):
    """What CUDA refuses is told once, and the next call is as good as any."""
    x = torch.ones((3, 4), dtype=torch.float64, device=gpu)
    s = torch.zeros(3, dtype=torch.float64, device=gpu)
    nowhere = [
        _core.View(name, a.data_ptr(), a.shape, a.stride(), "float64", 99)
        for name, a in (("X", x), ("s", s))
    ]
    with pytest.raises(RuntimeError, match=r"device"):
        _core.cuda_squared_norms(*nowhere, 0)
    close(cuda_ops.squared_norms(x), np.full(3, 4.0), 1e-12)


# --- Linear algebra -------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_conditioning(gpu, dtype):
    rng = np.random.default_rng(11)
    N, d, b = 333, 70, 5
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    psi = rng.normal(size=(N, d)).astype(dtype)
    U, C, V = rng.normal(size=(b, d)), rng.normal(size=(b, d)), 0.1 * rng.normal(size=(b, N))
    S = (psi @ psi.T).astype(dtype)
    t = {name: torch.tensor(a, device=gpu) for name, a in dict(U=U, C=C, V=V, S=S, x=psi).items()}
    cuda_ops.condition_dense(t["S"], t["V"])
    reference.condition_dense(S, V)
    close(t["S"], S, tolerance)
    cuda_ops.condition_features(t["x"], t["U"], t["C"])
    reference.condition_features(psi, U, C)
    close(t["x"], psi, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64", "bf16"])
def test_contractions(gpu, dtype):
    """All that only reads features takes them in bfloat16 too."""
    rng = np.random.default_rng(11)
    N, d, k = 333, 70, 11
    x = features(rng.normal(size=(N, d)), dtype, gpu)
    psi = x.double().cpu().numpy()
    W, B, weights = rng.normal(size=(d, d)), rng.normal(size=(d, k)), rng.uniform(size=N)
    G = W @ W.T
    t = {n: torch.tensor(a, device=gpu) for n, a in dict(W=W, B=B, G=G, w=weights).items()}
    whitened = cuda_ops.whiten(x, t["W"])
    assert whitened.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    close(whitened, reference.whiten(psi, W), 1e-12 if dtype == "float64" else 1e-5)
    close(cuda_ops.weighted_gram(x, t["w"]), reference.weighted_gram(psi, weights), 1e-12)
    close(cuda_ops.quadratic_form(x, t["G"]), reference.quadratic_form(psi, G), 1e-12)
    close(cuda_ops.squared_norms(x), reference.squared_norms(psi), 1e-12)
    close(cuda_ops.product(x, t["B"]), reference.product(psi, B), 1e-12)
    close(cuda_ops.product(x, t["B"][:, :0]), reference.product(psi, B[:, :0]), 1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64", "bf16"])
def test_moments_of_many_points(gpu, dtype):
    """Points are shared out among blocks, features among tiles of 128."""
    rng = np.random.default_rng(18)
    for N, d in ((2500, 9), (1100, 131), (1, 1), (0, 3)):
        x = features(rng.normal(size=(N, d + 1)), dtype, gpu)[:, 1:]
        exact, weights = x.double().cpu().numpy(), rng.normal(size=N)
        gram = cuda_ops.weighted_gram(x, torch.tensor(weights, device=gpu))
        close(gram, reference.weighted_gram(exact, weights), 1e-12)
        assert torch.equal(gram, gram.T)
        G = rng.normal(size=(d, d))  # need not be symmetric
        q = cuda_ops.quadratic_form(x, torch.tensor(G, device=gpu))
        close(q, ((exact @ G) * exact).sum(1), 1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64", "bf16"])
@pytest.mark.parametrize("k", [1, 2, 3, 10, 16, 17])
def test_product(gpu, dtype, k):
    """A few columns are multiplied in one pass over X, and in parts where they do not fit."""
    rng = np.random.default_rng(17)
    shapes = [(1, 0), (1, 1), (33, 512), (70, 4100)] + [(17000, 3)] * (k == 1)
    for N, d in shapes:
        x = features(rng.normal(size=(N, d + 1)), dtype, gpu)[:, 1:]
        B = rng.normal(size=(d, k + 1))
        found = cuda_ops.product(x, torch.tensor(B, device=gpu)[:, 1:])
        close(found, reference.product(x.double().cpu().numpy(), B[:, 1:]), 1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 64, 65, 300])
def test_cholesky(gpu, n):
    rng = np.random.default_rng(n)
    X = rng.normal(size=(n, n + 40))
    A = X @ X.T / (n + 40) + 0.1 * np.eye(n)
    there = torch.from_numpy(A).to(gpu, copy=True)
    L, failed = cuda_ops.cholesky(there)
    assert failed.item() == 0
    close(L, np.linalg.cholesky(A), 1e-11)
    B = rng.normal(size=(n, 7))
    for transpose in (False, True):
        found = cuda_ops.triangular_solve(L, torch.from_numpy(B).to(gpu), transpose=transpose)
        close(found, reference.triangular_solve(L.cpu().numpy(), B, transpose=transpose), 1e-10)
    there[n // 2, n // 2] = -1
    assert cuda_ops.cholesky(there)[1].item() == n // 2 + 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float64", "bf16"])
def test_select_variance_reduction(gpu, dtype):
    rng = np.random.default_rng(12)
    N, d, picks = (700, 33, 12) if _core.cuda_emulated() else (3000, 96, 40)
    x = features(rng.normal(size=(N, d)) * np.exp(-np.arange(d) / 20), dtype, gpu)
    weights = rng.uniform(size=N)
    G = cuda_ops.weighted_gram(x, torch.from_numpy(weights).to(gpu))
    q, s = cuda_ops.quadratic_form(x, G), cuda_ops.squared_norms(x)
    picked, utilities = cuda_ops.select_variance_reduction(
        x, None, picks, gram=G, q=q, s=s, noise=torch.full((N,), 0.05, device=gpu).double()
    )
    exact, C, free = x.double().cpu().numpy(), np.eye(d), np.ones(N, bool)
    gram = reference.weighted_gram(exact, weights)
    for t in range(picks):
        image = exact @ C
        score = ((image @ gram) * image).sum(1) / ((image * exact).sum(1) + 0.05)
        best = int(np.where(free, score, -np.inf).argmax())
        assert picked[t].item() == best
        assert utilities[t].item() == pytest.approx(score[best], rel=1e-9)
        g = image[best]
        C -= np.outer(g, g) / (g @ exact[best] + 0.05)
        free[best] = False


def every_operation(device):
    """Results of one small call of each operation, by name."""
    rng = np.random.default_rng(14)
    psi, keywords = problem(14, N=150, d=37, k=3, candidates=140, evaluation=135)
    arguments = on(device, keywords)

    def array(*shape):
        return torch.tensor(rng.normal(size=shape), device=device)

    results = {
        f"score_features {dtype}": score(dtype, "expected_error", psi, keywords, device)
        for dtype in TOLERANCE
    }
    x, S = features(psi, "float32", device), torch.tensor(psi @ psi.T, device=device)
    results["score_dense"] = cuda_score_dense("emoc", S, downdate=0.1 * array(3, 150), **arguments)
    cuda_ops.condition_dense(S, 0.1 * array(3, 150))
    results["condition_dense"] = S
    results["whiten"] = cuda_ops.whiten(x, array(37, 37))
    results["product"] = cuda_ops.product(x, array(37, 5))
    G = results["weighted_gram"] = cuda_ops.weighted_gram(x, array(150) ** 2)
    q = results["quadratic_form"] = cuda_ops.quadratic_form(x, G)
    s = results["squared_norms"] = cuda_ops.squared_norms(x)
    results["picked"], results["utilities"] = cuda_ops.select_variance_reduction(
        x, None, 6, gram=G, q=q.clone(), s=s.clone(), noise=torch.ones_like(q)
    )
    results["condition_features"] = x.clone()
    cuda_ops.condition_features(results["condition_features"], array(4, 37), array(4, 37))
    A = array(70, 70)
    L, _ = cuda_ops.cholesky(A @ A.T + torch.eye(70, device=device))
    results["cholesky"] = L
    results["triangular_solve"] = cuda_ops.triangular_solve(L, array(70, 70), transpose=True)
    return results


@pytest.mark.gpu
def test_every_operation_is_reproducible(gpu, monkeypatch):
    """The same bits every time, and in the emulation in any order of threads and blocks."""
    first = every_operation(gpu)
    assert all(torch.isfinite(array).all() for array in first.values())
    for order in "123":
        monkeypatch.setenv("NTKFAST_EMULATION_ORDER", order)
        for name, array in every_operation(gpu).items():
            assert torch.equal(array, first[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("d", [37, 101])
@pytest.mark.parametrize("k", [2, 3, 10])
def test_small_shared_memory(gpu, monkeypatch, k, d):
    """GPUs made for graphics have 99 KB of it: fewer slices at a time, the same bits.

    Other than those of compute capability 9.0 they multiply by warps, not by warpgroups, which
    adds up in another order. Each criterion with each k and d; the products take turns, so that
    each meets all of them.
    """
    if not _core.cuda_emulated():
        pytest.skip("shared memory is as large as it is")
    psi, keywords = problem(15, N=200, d=d, k=k, candidates=70, evaluation=140)
    first = [2, 3, 10].index(k) + [37, 101].index(d)
    for i, criterion in enumerate(ops.criteria(), start=first):
        products = ("bf16", "f16", "f16x3")[i % 3]
        by_warpgroups = score(products, criterion, psi, keywords, gpu)
        with monkeypatch.context() as patch:
            patch.setenv("NTKFAST_EMULATION_WARPGROUPS", "0")
            found = score(products, criterion, psi, keywords, gpu)
            patch.setenv("NTKFAST_EMULATION_SHARED_MEMORY", str(99 * 1024))
            again = score(products, criterion, psi, keywords, gpu)
        assert torch.isfinite(found).all() and torch.equal(found, again)
        if criterion not in ("ball_coverage", "label_flips"):  # steps
            close(by_warpgroups, found.numpy(), 1e-5)


# --- Contractions of gradients --------------------------------------------------------------------


def exact_tolerance(products):
    """bf16 factors are rounded before the reference sees them."""
    return TOLERANCE[products] if products != "bf16" else 2e-5


@pytest.mark.gpu
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("products", TOLERANCE)
@pytest.mark.parametrize("warpgroups", [False, True])
def test_gram_add(gpu, products, lower, warpgroups, monkeypatch):
    if warpgroups and products.startswith("fma"):
        pytest.skip("without tensor cores")
    if not warpgroups:
        monkeypatch.setenv("NTKFAST_EMULATION_SHARED_MEMORY", str(99 * 1024))  # enough
    rng = np.random.default_rng(14)
    for n, m, depth in [(150, 131, 333), (3, 5, 5000), (1, 1, 1), (0, 3, 4), (3, 2, 0)]:
        wide = features(rng.normal(size=(n + m, depth + 1)), products, gpu)
        A, B = wide[:n, 1:], wide[n:, :depth]  # one of them unaligned
        out = torch.zeros((n, m), dtype=torch.float64 if products == "fma64" else torch.float32)
        out = (out + 0.5).to(gpu)
        expected = np.full((n, m), 0.5)
        reference.gram_add(*(f.double().cpu().numpy() for f in (A, B)), expected)
        cuda_ops.gram_add(A, B, out, lower=lower, products=products)
        keep = (lambda a: a.tril()) if lower else (lambda a: a)
        close(keep(out), keep(torch.from_numpy(expected)).numpy(), exact_tolerance(products))


@pytest.mark.gpu
def test_workspace_is_what_is_needed(gpu, monkeypatch):
    """Where warps multiply bfloat16 numbers they read them as they are."""
    if not _core.cuda_emulated():
        pytest.skip("of two kinds of GPU")
    original, sizes = cuda_ops._workspace, []

    def workspace(library, size):
        sizes.append(size)
        return original(library, size)

    monkeypatch.setattr(cuda_ops, "_workspace", workspace)
    psi, keywords = problem(1, d=500)
    A = features(psi, "bf16", gpu)
    out = torch.zeros(40, 40, device=gpu)
    for warpgroups in ("1", "0"):
        monkeypatch.setenv("NTKFAST_EMULATION_WARPGROUPS", warpgroups)
        score("bf16", "expected_entropy", psi, keywords, gpu)
        cuda_ops.gram_add(A, A[:39].clone(), out[:, :39], products="bf16")
    packed = 2 * 128 * 512 * 2  # 128 rows of either operand, 512 numbers of 2 bytes
    assert sizes[0] - sizes[2] >= packed // 2 and sizes[1] - sizes[3] >= packed
    assert sizes[3] < 6 * 128 * 128 * 4  # sums of a few shares of the depth, or none


@pytest.mark.gpu
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("products", ["bf16", "f16", "f16x3"])
def test_gram_add_of_many_rows(gpu, products, lower):
    """Where wide tiles are worth it; on a GPU also longer than a chain of sums may be."""
    if _core.cuda_emulated():
        n, sizes, depth = 400, (300, 261), 70
    else:
        n, sizes, depth = 2000, (2100, 2101), 16500
    random = torch.Generator(gpu).manual_seed(16)
    for m in sizes:  # numbers of out lie at even places, or do not
        data = torch.randn(n + m, depth, generator=random, device=gpu)
        data = data.bfloat16() if products == "bf16" else data
        A, B = data[:n], data[n:]
        out = torch.full((n, m), 0.5, device=gpu)
        cuda_ops.gram_add(A, B, out, lower=lower, products=products)
        expected = 0.5 + A.double() @ B.double().T
        keep = (lambda a: a.tril()) if lower else (lambda a: a)
        close(keep(out), keep(expected).cpu().numpy(), exact_tolerance(products))


@pytest.mark.gpu
@pytest.mark.parametrize("products", TOLERANCE)
def test_gram_ghost(gpu, products, monkeypatch):
    monkeypatch.setenv("NTKFAST_EMULATION_SHARED_MEMORY", str(99 * 1024))  # enough
    rng = np.random.default_rng(15)
    for n, m, T, S, p, q, combinations in [
        (9, 4, 17, 17, 5, 40, ()), (3, 40, 1, 3, 8, 9, ()), (2, 3, 150, 40, 3, 4, ()),
        (3, 2, 9, 9, 4, 18, (2, 3)), (0, 2, 3, 3, 2, 2, ()), (2, 2, 3, 3, 0, 2, ()),
        (70, 3, 64, 2, 2, 3, ()),
    ]:  # fmt: skip
        several, several2 = ((c,) for c in combinations) if combinations else ((), ())
        shapes = (*several, n, T, p), (n, T, q), (*several2, m, S, p), (m, S, q)
        factors = [features(rng.normal(size=shape), products, gpu) for shape in shapes]
        rows, cols = (size * np.prod(c, dtype=int) for size, c in ((n, several), (m, several2)))
        expected = np.zeros((rows, cols))
        reference.gram_ghost(*(f.double().cpu().numpy() for f in factors), expected)
        kind = torch.float64 if products == "fma64" else torch.float32
        out = torch.zeros((rows, cols), dtype=kind, device=gpu)
        cuda_ops.gram_ghost(*factors, out, products=products)
        close(out, expected, exact_tolerance(products))


@pytest.mark.gpu
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("products", TOLERANCE)
def test_gram_ghost_of_factors_with_themselves(gpu, products, lower):
    """Rows are packed once where they are the same, not for unlike combinations."""
    rng = np.random.default_rng(25)
    for R, n, T, p, q in [(2, 20, 4, 300, 10), (1, 20, 4, 30, 10), (3, 1, 5, 30, 10)]:
        left, right = (
            features(rng.normal(size=shape), products, gpu) for shape in ((R, n, T, p), (n, T, q))
        )
        out = torch.zeros(n * R, n * R, device=gpu)
        out = out.double() if products == "fma64" else out
        cuda_ops.gram_ghost(left, right, left, right, out, lower=lower, products=products)
        gradients = torch.einsum("antp,ntq->napq", left.double().cpu(), right.double().cpu())
        expected = gradients.flatten(0, 1).flatten(1) @ gradients.flatten(0, 1).flatten(1).T
        keep = (lambda a: a.tril()) if lower else (lambda a: a)
        close(keep(out), keep(expected).numpy(), exact_tolerance(products))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 100, 4096, 30000])
@pytest.mark.parametrize("shared_memory", [99, 227])
def test_sketches(gpu, dtype, dim, shared_memory, monkeypatch):
    monkeypatch.setenv("NTKFAST_EMULATION_SHARED_MEMORY", str(shared_memory * 1024))
    rng = np.random.default_rng(16)
    start, keys = 123457, (2**64 - 3, 12345)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    values, out = rng.normal(size=(3, 5000)).astype(dtype), np.ones((3, dim), dtype=dtype)
    found = torch.tensor(out, device=gpu)
    ops.sketch_add(values, start, *keys, out)
    cuda_ops.sketch_add(torch.tensor(values, device=gpu), start, *keys, found)
    assert np.array_equal(found.cpu().numpy(), out)
    for T, groups, rows, size in [(16, 1, 9, 600), (100, 1, 70, 30), (4, 3, 2, 9)]:
        left = rng.normal(size=(2, groups * rows * T)).astype(dtype)
        right = rng.normal(size=(2, groups * size * T)).astype(dtype)
        channels = np.arange(T), np.arange(groups * rows) * T
        positions = np.arange(T) * (groups * size), np.arange(groups * size)
        factors = left, *channels, right, *positions
        expected = np.zeros((2, dim))
        reference.sketch_gradients(*factors, start, *keys, expected, groups=groups)
        found = torch.zeros((2, dim), dtype=getattr(torch, np.dtype(dtype).name), device=gpu)
        on_device = [torch.tensor(a, device=gpu) for a in factors]
        cuda_ops.sketch_gradients(*on_device, start, *keys, found, groups=groups)
        close(found, expected, tolerance)


@pytest.mark.gpu
def test_errors_of_contractions_name_the_argument(gpu):
    data, table = torch.zeros((2, 6), device=gpu), torch.arange(3, device=gpu)
    out = torch.zeros((2, 2), device=gpu)
    with pytest.raises(ValueError, match="out: expected shape"):
        cuda_ops.gram_add(data, data, data)
    with pytest.raises(ValueError, match="products: unknown name"):
        cuda_ops.gram_add(data, data, out, products="fp8")
    with pytest.raises(ValueError, match="A: expected bfloat16"):
        cuda_ops.gram_add(data, data, out, products="bf16")
    with pytest.raises(ValueError, match="right2: expected shape"):
        cuda_ops.gram_ghost(*[data.view(2, 3, 2)] * 3, data.view(2, 2, 3), out)
    factors = data, table, table, data, table, table
    with pytest.raises(ValueError, match="start: expected at least 0"):
        cuda_ops.sketch_gradients(*factors, -1, 1, 2, out)
    with pytest.raises(ValueError, match="groups: expected a divisor"):
        cuda_ops.sketch_gradients(*factors, 0, 1, 2, out, groups=2)
    with pytest.raises(ValueError, match="right_positions: expected shape"):
        cuda_ops.sketch_gradients(*factors[:4], table[:2], table, 0, 1, 2, out)


@pytest.mark.gpu
@pytest.mark.parametrize("outputs", ["sum", "full"])
@pytest.mark.parametrize("name", ["conv", "resnet", "attention", "everything"])
def test_tangent_kernel(gpu, name, outputs, monkeypatch):
    """Features and Gram matrices of models on a GPU, against the torch path of a CPU."""
    model, x = networks()[name]
    expected = []
    with monkeypatch.context() as patch:
        patch.setattr(contract, "contractions", lambda value: None)
        patch.setattr(CountSketch, "add", CountSketch.add_by_runs)
        ntk = EmpiricalNTK(model, outputs, dim=100)
        expected += [ntk.features(x), ntk.gram(x)]
    used = []
    for operation in ("gram_add", "gram_ghost", "sketch_add", "sketch_gradients"):
        count = partial(_counted, getattr(cuda_ops, operation), used, operation)
        monkeypatch.setattr(cuda_ops, operation, count)
    monkeypatch.setitem(compiled._BY_DEVICE, gpu.type, compiled.CudaContractions)
    ntk = EmpiricalNTK(model.to(gpu), outputs, dim=100)
    for found, by_torch in zip(
        (ntk.features(x.to(gpu)), ntk.gram(x.to(gpu))), expected, strict=True
    ):
        close(found, by_torch.numpy(), 1e-11)
    assert set(used) == {"gram_add", "sketch_add", "sketch_gradients", "gram_ghost"}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_gram_matrices_are_exact_whatever_torch_may_do(gpu, precision):
    a = torch.randn(40, 700, generator=torch.Generator().manual_seed(0)).to(gpu)
    factors = [a.reshape(1, 40, 7, 100)[..., :c].contiguous() for c in (30, 50)]
    contractions, before = compiled.CudaContractions(), torch.get_float32_matmul_precision()
    direct, ghost = (torch.zeros(40, 40, device=a.device) for _ in range(2))
    torch.set_float32_matmul_precision(precision)
    try:
        contractions.gram_add(a, a, direct, lower=False)
        contractions.gram_ghost(factors[0], factors[1][0], factors[0], factors[1][0], ghost, False)
    finally:
        torch.set_float32_matmul_precision(before)
    left, right = (f.double().cpu().reshape(40, 7, -1) for f in factors)
    gradients = (left.mT @ right).flatten(1)
    close(direct, (a.double().cpu() @ a.double().cpu().T).numpy(), 1e-5)
    close(ghost, (gradients @ gradients.T).numpy(), 1e-5)


def _counted(operation, used, name, *arguments, **keywords):
    used.append(name)
    return operation(*arguments, **keywords)


@pytest.mark.gpu
def test_cupy_arrays(gpu):
    cupy = pytest.importorskip("cupy")
    X = np.random.default_rng(13).normal(size=(50, 20))
    norms = cuda_ops.squared_norms(cupy.asarray(X))
    assert isinstance(norms, cupy.ndarray)
    np.testing.assert_allclose(norms.get(), reference.squared_norms(X), rtol=1e-12)
