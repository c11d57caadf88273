"""Every kind of kernel on a GPU against this build's CPU engine in float64: a table of errors.

    python tools/gpu_smoke.py [--out smoke.tsv] [--library cupy] [--small] [--family NAME...]
    python tools/gpu_smoke.py --families         their names

Takes seconds and needs nothing but torch, or cupy: then every array has memory of its own, as
compute-sanitizer likes it, and no kernel but ours runs. A line is written as soon as it is known,
and a failing check does not end the others. Errors are relative to the largest number. The last
rows of scores are of features without a sign: their products add up without cancelling, and what
tensor cores cut off instead of rounding adds up with them.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ntkfast import _core, cuda_ops, ops

EMULATED = _core.cuda_emulated()
# Of random signs: rounding to 24, 11 and 8 bits. bf16 features are rounded before either side.
BOUNDS = {"f16x3": 2e-5, "f16": 2e-2, "bf16": 2e-5, "fma32": 2e-5, "fma64": 1e-11}

Check = tuple[str, float, Callable[[], float]]  # name, bound, error


class Torch:
    """Arrays of torch on the GPU, or where it is emulated."""

    kinds = tuple(BOUNDS)

    def __init__(self) -> None:
        import torch

        self.torch, self.device = torch, "cpu" if EMULATED else "cuda"
        if EMULATED:  # a build for tests
            sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
            import emulation

            emulation.install()

    def put(self, array: np.ndarray) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def bfloat16(self, array: np.ndarray) -> Any:
        return self.put(array).bfloat16()

    def host(self, array: Any) -> np.ndarray:
        return array.double().cpu().numpy()


class Cupy:
    """Arrays of cupy, each in memory of its own."""

    kinds = tuple(kind for kind in BOUNDS if kind != "bf16")

    def __init__(self) -> None:
        import cupy

        cupy.cuda.set_allocator(None)
        self.put = cupy.asarray

    def host(self, array: Any) -> np.ndarray:
        return array.get().astype(np.float64)


library: Any = None  # one of these, once the options are known


def there(value: Any) -> Any:
    return library.put(value) if isinstance(value, np.ndarray) else value


def as_products(array: np.ndarray, products: str) -> tuple[Any, np.ndarray]:
    """On the GPU in the type of these products, and what is left of it there, in float64."""
    if products == "bf16":
        found = library.bfloat16(array)
    else:
        found = library.put(array.astype(np.float64 if products == "fma64" else np.float32))
    return found, library.host(found)


def problem(
    N: int, d: int, k: int, *, coherent: bool = False, label_scale: float = 1.0
) -> tuple[np.ndarray, ops.ScoreInputs]:
    rng = np.random.default_rng(1000 * k + d)
    psi = rng.normal(size=(N, d)) / np.sqrt(d)
    psi = np.abs(psi) if coherent else psi
    mean = rng.normal(size=(N, k))
    candidates, evaluation = rng.permutation(N)[: N // 2], rng.permutation(N)[: N - N // 6]
    inputs = ops.ScoreInputs(
        candidates=candidates,
        evaluation=evaluation,
        mean=mean,
        outputs=mean + 0.5 * rng.normal(size=(N, k)),
        noise=rng.uniform(0.1, 1, len(candidates)),
        ridge=0.3,
        label_probs=rng.dirichlet(np.ones(k), len(candidates)),
        weights=rng.uniform(0.1, 1, len(evaluation)),
        label_scale=label_scale,
        loss="squared",
        temperature=1.0,
        log_loss_targets=rng.dirichlet(np.ones(k), len(evaluation)),
    )
    return psi, inputs


class Table:
    def __init__(self, path: Path | None) -> None:
        self.file = path.open("a") if path else None
        self.wrong = 0

    def add(self, name: str, bound: float, error: Callable[[], float]) -> None:
        try:
            found = error()
        except Exception:
            traceback.print_exc(file=sys.stdout)
            found = float("nan")
        verdict = "ok" if found <= bound else "WRONG"
        self.wrong += verdict != "ok"
        line = f"{verdict}\t{found:.1e}\t{bound:.0e}\t{name}"
        print(line, flush=True)
        if self.file:
            print(line, file=self.file, flush=True)


def relative(found: Any, expected: np.ndarray) -> float:
    difference = np.abs(library.host(found) - expected).max()
    return float(difference / np.abs(expected).max())


def scoring_error(criterion: str, products: str, psi: np.ndarray, inputs: ops.ScoreInputs) -> float:
    features, exact = as_products(psi, products)
    expected = ops.score_features(criterion, exact, inputs, variance=ops.squared_norms(exact))
    found = cuda_ops.score_features(
        criterion,
        features,
        replace(inputs, **{name: there(value) for name, value in vars(inputs).items()}),
        variance=cuda_ops.squared_norms(features),
        products=products,
    )
    return relative(found, expected)


def dense_error(criterion: str, kind: type, rank: int) -> float:
    psi, inputs = problem(300, 40, 10)
    S = (psi @ psi.T).astype(kind)
    V = (0.05 * np.random.default_rng(rank).normal(size=(rank, 300))).astype(kind)
    variance = np.diagonal(S).astype(np.float64).copy()
    expected = ops.score_dense(
        criterion, S.astype(np.float64), inputs, variance=variance, downdate=V.astype(np.float64)
    )
    found = cuda_ops.score_dense(
        criterion,
        there(S),
        replace(inputs, **{name: there(value) for name, value in vars(inputs).items()}),
        variance=there(variance),
        downdate=there(V),
    )
    return relative(found, expected)


def blocks_error(criterion: str, kind: type, k: int, N: int) -> float:
    """Of blocks of 10 k features; a GPU takes them output by output."""
    _, inputs = problem(N, 1, k)
    c, x = inputs.candidates, inputs.evaluation
    rng = np.random.default_rng(k)
    psi = (rng.normal(size=(N, k, 10 * k)) / np.sqrt(10 * k)).astype(kind)
    own = psi.astype(np.float64) @ psi.astype(np.float64).swapaxes(1, 2)
    S = (psi[c].reshape(len(c) * k, -1) @ psi[x].reshape(len(x) * k, -1).T).astype(kind)
    expected = ops.score_blocks(
        criterion, S.astype(np.float64), inputs, variance=own[c], evaluation_variance=own[x]
    )
    by_output = np.ascontiguousarray(S.reshape(-1, len(x), k).swapaxes(1, 2)).reshape(len(S), -1)
    found, wrong = cuda_ops.score_blocks(
        criterion,
        there(by_output),
        replace(inputs, **{name: there(value) for name, value in vars(inputs).items()}),
        variance=there(own[c]),
        evaluation_variance=there(own[x]),
    )
    return relative(found, expected) if not library.host(wrong).any() else float("nan")


def picks_error() -> float:
    """Largest relative error of the utilities of six picks; infinite where a pick differs."""
    rng = np.random.default_rng(3)
    psi = (rng.normal(size=(500, 64)) * np.exp(-np.arange(64) / 20)).astype(np.float32)
    exact = psi.astype(np.float64)
    G = exact.T @ exact
    x = there(psi)
    gram = cuda_ops.weighted_gram(x, there(np.ones(500)))
    picked, utilities = cuda_ops.select_variance_reduction(
        x, None, 6, gram=gram, q=cuda_ops.quadratic_form(x, gram), s=cuda_ops.squared_norms(x),
        noise=there(np.full(500, 0.1)),
    )  # fmt: skip
    C, worst, free = np.eye(64), 0.0, np.ones(500, bool)
    for pick, utility in zip(picked.tolist(), utilities.tolist(), strict=True):
        image = exact @ C
        value = ((image @ G) * image).sum(1) / ((image * exact).sum(1) + 0.1)
        best = int(np.where(free, value, -np.inf).argmax())
        if pick != best:
            return float("inf")
        worst = max(worst, abs(utility / value[best] - 1))
        free[best] = False
        C -= np.outer(image[best], image[best]) / (image[best] @ exact[best] + 0.1)
    return worst


def gram_error(products: str, n: int, depth: int, coherent: bool) -> float:
    rng = np.random.default_rng(5)
    A = rng.normal(size=(n, depth))
    A, exact = as_products(np.abs(A) if coherent else A, products)
    out = library.put(np.zeros((n, n), np.float64 if products == "fma64" else np.float32))
    cuda_ops.gram_add(A, A, out, products=products)
    return relative(out, exact @ exact.T)


def ghost_error(products: str, n: int, positions: int) -> float:
    """Of the lower triangle."""
    rng = np.random.default_rng(6)
    left, exact_left = as_products(rng.normal(size=(n, positions, 40)), products)
    right, exact_right = as_products(rng.normal(size=(n, positions, 90)), products)
    out = library.put(np.zeros((n, n), np.float64 if products == "fma64" else np.float32))
    cuda_ops.gram_ghost(left, right, left, right, out, lower=True, products=products)
    gradients = (exact_left.swapaxes(1, 2) @ exact_right).reshape(n, -1)
    return relative(library.put(np.tril(library.host(out))), np.tril(gradients @ gradients.T))


def ghost_checks(products: str, small: bool) -> Iterator[Check]:
    """One block of products, and several."""
    for n, positions in ((30, 7),) if small else ((30, 7), (300, 16), (40, 150)):
        yield (
            f"gram_ghost, {products}, {n} x {positions}",
            BOUNDS[products],
            lambda n=n, p=positions: ghost_error(products, n, p),
        )


def sketch_errors() -> Iterator[Check]:
    rng = np.random.default_rng(7)
    values, start, keys, dim = rng.normal(size=(9, 5000)), 77, (3, 5), 1024
    T, rows, size = 6, 30, 50
    left, right = rng.normal(size=(9, T * rows)), rng.normal(size=(9, T * size))
    tables = [np.arange(T) * rows, np.arange(rows), np.arange(T) * size, np.arange(size)]

    def added() -> float:
        expected, out = np.zeros((9, dim)), there(np.zeros((9, dim)))
        ops.sketch_add(values, start, *keys, expected)
        cuda_ops.sketch_add(there(values), start, *keys, out)
        return relative(out, expected)

    def formed() -> float:
        expected, out = np.zeros((9, dim)), there(np.zeros((9, dim)))
        for put, engine, target in ((lambda a: a, ops, expected), (there, cuda_ops, out)):
            engine.sketch_gradients(
                put(left), put(tables[0]), put(tables[1]), put(right), put(tables[2]),
                put(tables[3]), start, *keys, target,
            )  # fmt: skip
        return relative(out, expected)

    yield "sketch_add", 0.0, added
    yield "sketch_gradients", 1e-12, formed


def linear_errors() -> Iterator[Check]:
    rng = np.random.default_rng(8)
    X, B = rng.normal(size=(150, 130)), rng.normal(size=(130, 9))
    A = X.T @ X + 130 * np.eye(130)
    L, W = np.linalg.cholesky(A), rng.normal(size=(130, 130))
    U, C, V = rng.normal(size=(5, 130)), rng.normal(size=(5, 130)), rng.normal(size=(5, 150))
    S = X @ X.T

    def changed(change: Callable[[Any], None], start: np.ndarray, expected: np.ndarray) -> float:
        array = there(start.copy())
        change(array)
        return relative(array, expected)

    yield "cholesky", 1e-12, lambda: relative(cuda_ops.cholesky(there(A))[0], L)
    yield (
        "triangular_solve", 1e-10,
        lambda: relative(cuda_ops.triangular_solve(there(L), there(B)), np.linalg.solve(L, B)),
    )  # fmt: skip
    yield "whiten", 1e-12, lambda: relative(cuda_ops.whiten(there(X), there(W)), X @ W.T)
    yield "product", 1e-12, lambda: relative(cuda_ops.product(there(X), there(B)), X @ B)
    yield (
        "condition_features", 1e-12,
        lambda: changed(
            lambda psi: cuda_ops.condition_features(psi, there(U), there(C)), X, X - X @ U.T @ C
        ),
    )  # fmt: skip
    yield (
        "condition_dense", 1e-12,
        lambda: changed(lambda of: cuda_ops.condition_dense(of, there(V)), S, S - V.T @ V),
    )  # fmt: skip


def score_checks(products: str, small: bool) -> Iterator[Check]:
    N, bound = 60 if EMULATED else 150 if small else 600, BOUNDS[products]
    criteria = ("expected_entropy", "variance_reduction", "epig", "emoc")
    for d in (70,) if small and not EMULATED else (37, 70 if EMULATED else 1000):
        for k in (
            (10, 100) if small and not EMULATED else (2, 10, 26) if EMULATED else (2, 10, 26, 100)
        ):
            psi, inputs = problem(N, d, k)
            for criterion in criteria[:2] if small and not EMULATED else criteria:
                yield (
                    f"{criterion}, {products}, d = {d}, k = {k}", bound,
                    lambda c=criterion, psi=psi, i=inputs: scoring_error(c, products, psi, i),
                )  # fmt: skip
    for k in (10, 26):  # some steps are moderate, some large, some too large for plain sums
        psi, inputs = problem(N, 37, k, label_scale=60.0)
        for criterion in ("expected_entropy", "expected_error"):
            yield (
                f"{criterion}, {products}, large steps, k = {k}", max(bound, 5e-5),
                lambda c=criterion, psi=psi, i=inputs: scoring_error(c, products, psi, i),
            )  # fmt: skip
    if small and not EMULATED:
        return
    bound = {"f16x3": 5e-6, "fma32": 5e-6, "f16": 2e-3}.get(products, bound)
    for d in (1000, 5000) if not EMULATED else (300,):
        psi, inputs = problem(N, d, 10, coherent=True)
        for criterion in ("variance_reduction", "epig"):
            yield (
                f"{criterion}, {products}, no signs, d = {d}", bound,
                lambda c=criterion, psi=psi, i=inputs: scoring_error(c, products, psi, i),
            )  # fmt: skip


def dense_checks(small: bool) -> Iterator[Check]:
    for kind in (np.float32, np.float64):
        for rank in (1, 20) if small else (0, 1, 3, 20):
            for criterion in ("variance_reduction", "expected_entropy"):
                yield (
                    f"score_dense, {criterion}, {kind.__name__}, rank {rank}",
                    5e-5 if kind is np.float32 else 1e-11,
                    lambda c=criterion, t=kind, r=rank: dense_error(c, t, r),
                )


def blocks_checks(small: bool) -> Iterator[Check]:
    criteria = ("expected_entropy", "epig", "emoc", "variance_reduction")
    for kind in (np.float32, np.float64):
        for k in (3, 10) if small else (2, 10, 26):
            for criterion in criteria[:2] if small else criteria:
                yield (
                    f"score_blocks, {criterion}, {kind.__name__}, k = {k}",
                    5e-5 if kind is np.float32 else 1e-11,
                    lambda c=criterion, t=kind, k=k: blocks_error(c, t, k, 30 if small else 120),
                )


def gram_checks(products: str, small: bool) -> Iterator[Check]:
    """Few tiles, whose depth is shared out; narrow ones, wide ones."""
    for n, depth in ((120, 1000), (200, 300)) if small else ((120, 5000), (200, 5000), (700, 3001)):
        for coherent in (False, True):
            yield (
                f"gram_add, {products}, {n} x {depth}, {'no signs' if coherent else 'signs'}",
                BOUNDS[products],
                lambda n=n, d=depth, c=coherent: gram_error(products, n, d, c),
            )


def families(small: bool) -> dict[str, Callable[[], Iterator[Check]]]:
    """Kernels that belong together, and their checks."""
    found: dict[str, Callable[[], Iterator[Check]]] = {}
    for products in library.kinds:
        found[f"score-{products}"] = lambda p=products: score_checks(p, small)
        found[f"gram-{products}"] = lambda p=products: gram_checks(p, small)
        found[f"ghost-{products}"] = lambda p=products: ghost_checks(p, small)
    found["dense"] = lambda: dense_checks(small)
    found["blocks"] = lambda: blocks_checks(small)
    found["sketches"] = sketch_errors
    found["linear"] = linear_errors
    found["moments"] = lambda: iter([("six picks", 1e-9, picks_error)])
    return found


def main() -> None:
    global library
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--library", choices=["torch", "cupy"], default="torch")
    parser.add_argument("--small", action="store_true", help="what a sanitizer has time for")
    parser.add_argument("--family", nargs="+", help="only these")
    parser.add_argument("--families", action="store_true", help="print their names")
    options = parser.parse_args()
    # (There is no emulation of cupy.)
    cupy = options.library == "cupy" and not EMULATED
    if options.families:
        library = Cupy if cupy else Torch
        return print(*families(True))
    library = Cupy() if cupy else Torch()
    table = Table(options.out)
    for family, checks in families(options.small or EMULATED).items():
        if options.family and family not in options.family:
            continue
        for name, bound, error in checks():
            table.add(f"{name}, cupy" if cupy else name, bound, error)
    if table.wrong:
        sys.exit(f"gpu_smoke: {table.wrong} of the checks WRONG")


if __name__ == "__main__":
    main()
