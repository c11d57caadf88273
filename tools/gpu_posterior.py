"""A posterior on a GPU whose memory runs out, and one on arrays of cupy: a table like gpu_smoke's.

    python tools/gpu_posterior.py memory [--out smoke.tsv]
    python tools/gpu_posterior.py cupy [--out smoke.tsv]

memory: all but the last MiB of the GPU is taken, then calls are made that need more. Each must end
in the error of the library, which says what to do; afterwards the posterior is bit for bit what it
was, and the same calls succeed. cupy: features and kernels, all that a posterior does, against
numpy. On the build that emulates a GPU, memory runs out when it is told to, and cupy is a stand-in.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gpu_smoke
import numpy as np
from gpu_smoke import EMULATED, Table

import ntkfast as nf

CRITERIA = ("expected_entropy", "variance_reduction", "epig", "fisher_variance_reduction")


def features(N: int, d: int, k: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    n = 10
    return dict(
        phi=rng.normal(size=(N, d)).astype(np.float32) / np.float32(d**0.5),
        f=rng.normal(size=(N, k)),
        phi_l=rng.normal(size=(n, d)).astype(np.float32) / np.float32(d**0.5),
        f_l=rng.normal(size=(n, k)),
        y=rng.integers(0, k, n),
    )


def posterior(p: dict[str, Any], put: Callable[[Any], Any]) -> nf.Posterior:
    given = (p["phi"], p["f"], p["phi_l"], p["f_l"])
    return nf.Posterior.from_features(*(put(a) for a in given), p["y"])


# --- Memory that runs out -----------------------------------------------------------------------


@contextmanager
def no_memory(torch: Any) -> Iterator[None]:
    """All of the GPU's memory is taken but less than a MiB."""
    if EMULATED:
        from ntkfast import cuda_ops

        allocate = cuda_ops._Torch.empty

        def refuse(self: Any, shape: Any, dtype: str) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory: pretended")

        def empty(self: Any, shape: Any, dtype: str) -> Any:
            with nf.arrays.memory_advice(cuda_ops._ADVICE):
                return refuse(self, shape, dtype)

        cuda_ops._Torch.empty = empty  # type: ignore[method-assign]
        try:
            yield
        finally:
            cuda_ops._Torch.empty = allocate  # type: ignore[method-assign]
        return
    torch.cuda.empty_cache()
    taken, size = [], 1 << 36
    while size >= 1 << 20:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    print(f"    taken: {sum(map(len, taken)) / 2**30:.2f} GiB in {len(taken)} pieces", flush=True)
    try:
        yield
    finally:
        del taken
        torch.cuda.empty_cache()


def memory(table: Table) -> None:
    import torch

    library = gpu_smoke.Torch()
    N = 100 if EMULATED else 200_000
    p = features(N, 64, 5)
    post = posterior(p, library.put)
    few = np.arange(0, N, max(1, N // 50))

    def state(of: nf.Posterior) -> list[Any]:
        found = [of.mean, of.variance, of.covariance(few, few)]
        found += [nf.utilities(of, c, candidates=few) for c in CRITERIA]
        return [library.host(array) for array in found]

    before = state(post)
    network = torch.nn.Sequential(
        torch.nn.Linear(64, 300), torch.nn.Tanh(), torch.nn.Linear(300, 5)
    )
    network = network.to(library.device)
    ntk, x = nf.EmpiricalNTK(network), library.put(p["phi"][:4000])
    calls: dict[str, Callable[[], Any]] = {
        "utilities": lambda: nf.utilities(post, "expected_entropy"),
        "select": lambda: nf.select(post, "fisher_variance_reduction", 5),
        "condition": lambda: post.condition(np.arange(40), np.zeros(40, int)),
        "extend": lambda: post.extend(p["phi"], p["f"]),
        "Gram matrix of a network": lambda: ntk.gram(x),
    }
    for name, call in calls.items():
        if EMULATED and name.startswith("Gram"):
            continue  # on the CPU
        said = ""
        with no_memory(torch):
            try:
                call()
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
        print(f"    {name}: {said or 'found room'}", flush=True)

        def refused(said: str = said) -> float:
            return 0.0 if said.startswith("OutOfMemoryError") else 1.0

        def advised(said: str = said) -> float:
            return 0.0 if "at a time" in said or "memory_budget" in said else 1.0

        table.add(f"out of memory, {name}: refused by the library", 0.0, refused)
        table.add(f"out of memory, {name}: says what to do", 0.0, advised)
        table.add(
            f"out of memory, {name}: nothing has changed", 0.0,
            lambda: float(not all(map(np.array_equal, before, state(post)))),
        )  # fmt: skip
    for name, call in calls.items():
        table.add(f"memory is back, {name}", 0.0, lambda call=call: (call(), 0.0)[1])


# --- cupy ---------------------------------------------------------------------------------------


def cupy(table: Table) -> None:
    if EMULATED:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        import gpu_doubles

        from ntkfast import arrays
        from ntkfast._posterior import engines

        engines.cuda_ops = gpu_doubles.Operations()  # type: ignore[attr-defined]
        arrays._GPU_TYPES = ("cuda", "cpu")
        sys.modules["cupy"] = gpu_doubles.cupy
        put, kind = gpu_doubles.cupy.array, gpu_doubles.Cupy
    else:
        import cupy as library

        put, kind = library.asarray, library.ndarray
    p = features(300, 40, 4)
    p = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in p.items()}
    N, every = len(p["phi"]), np.vstack([p["phi"], p["phi_l"]])
    K = every @ every.T

    def by_kernel(move: Callable[[Any], Any]) -> nf.Posterior:
        parts = K[:N, :N], K[N:, :N], K[N:, N:], p["f"], p["f_l"]
        return nf.Posterior.from_kernel(*(move(np.ascontiguousarray(a)) for a in parts), p["y"])

    for name, make in (("features", lambda move: posterior(p, move)), ("kernel", by_kernel)):
        post, same = make(put), make(np.asarray)

        def error(found: Any, expected: np.ndarray) -> float:
            if not isinstance(found, kind):
                return float("inf")
            return float(np.abs(found.get() - expected).max() / np.abs(expected).max())

        def check(what: str, of: Callable[[nf.Posterior], Any], name: str = name) -> None:
            table.add(
                f"cupy, {name}: {what}", 1e-9,
                lambda: error(of(post), of(same)),  # noqa: B023 (called at once)
            )  # fmt: skip

        def states(when: str) -> None:
            check(f"mean {when}", lambda one: one.mean)
            check(f"variance {when}", lambda one: one.variance)
            for criterion in CRITERIA:
                check(f"{criterion} {when}", lambda one, c=criterion: nf.utilities(one, c))

        states("at first")
        check(
            "five picks",
            lambda one: nf.select(one, "fisher_variance_reduction", 5).indices,
        )
        for each in (post, same):
            each.condition([3, 70, 5], [0, 2, 1])
        states("after three labels")
        if name == "features":
            check(
                "predict",
                lambda one, ours=post: one.predict(
                    *((put if one is ours else np.asarray)(p[a][:7]) for a in ("phi", "f"))
                ),
            )
            for each in (post, same):
                each.extend(p["phi"][:9], p["f"][:9])
            states("after nine points more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("check", choices=["memory", "cupy"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table = Table(options.out)
    {"memory": memory, "cupy": cupy}[options.check](table)
    if table.wrong:
        sys.exit(f"gpu_posterior: {table.wrong} of the checks WRONG")


if __name__ == "__main__":
    main()
