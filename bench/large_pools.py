"""Pools that are on disk, or shared by processes: time, memory, passes, collectives.

    python large_pools.py disk --points 1000000 --features 512 --picks 1000 --check
    python large_pools.py processes --points 200000 --features 256 --picks 100 --ranks 1 2

`disk` ranks a pool from a file of its own making and prints the peak resident memory of its
process; `--check` then compares the picks with those from memory. `processes` shares one pool by
more and more ranks (strong scaling), and pools of one size for each (weak scaling), on gloo, one
thread each, and prints what went between them.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record

import ntkfast as nf
from ntkfast._posterior import pool

CLASSES, LABELS = 10, 40


class Pool:
    """Features of a mixture of clusters, with a spectrum that falls like 1 / sqrt(i)."""

    def __init__(self, features: int) -> None:
        rng = np.random.default_rng(0)
        self.spectrum = (1 / np.sqrt(1 + np.arange(features))).astype(np.float32)
        self.centres = rng.standard_normal((1000, features), np.float32)
        self.readout = rng.standard_normal((features, CLASSES), np.float32) / 2

    def block(self, number: int, rows: int) -> np.ndarray:
        rng = np.random.default_rng([1, number])
        noise = rng.standard_normal((rows, len(self.spectrum)), np.float32)
        return (noise + self.centres[rng.integers(1000, size=rows)]) * self.spectrum

    def outputs(self, phi: np.ndarray) -> np.ndarray:
        return (phi @ self.readout).astype(np.float64)

    def posterior(self, features: Any, outputs: np.ndarray, **group: Any) -> nf.Posterior:
        labelled = self.block(-1 % 2**32, LABELS)
        f = self.outputs(labelled)
        return nf.Posterior.from_features(
            features, outputs, labelled, f, f.argmax(1), loss="cross_entropy", **group
        )


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def disk(options: argparse.Namespace) -> None:
    made, rows = Pool(options.features), 1 << 14
    outputs = np.empty((options.points, CLASSES))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "features.npy"
        with path.open("wb") as file:
            header = dict(
                descr=np.lib.format.dtype_to_descr(np.dtype(np.float32)),
                fortran_order=False,
                shape=(options.points, options.features),
            )
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, options.points, rows):
                block = made.block(start, min(rows, options.points - start))
                outputs[start : start + len(block)] = made.outputs(block)
                block.tofile(file)
        passes = []
        one_pass = pool.PoolMoments._pass
        pool.PoolMoments._pass = lambda *a: (passes.append(1), one_pass(*a))[1]
        times = {}

        @contextlib.contextmanager
        def timed(name: str) -> Iterator[None]:
            clock, own = time.perf_counter(), time.process_time()
            yield
            times[name] = time.perf_counter() - clock, time.process_time() - own
            print(f"{name}: {times[name][0]:.1f} s", flush=True)

        with timed("from_features"):
            post = made.posterior(np.load(path, mmap_mode="r"), outputs)
        with timed("utilities"):
            utilities = nf.utilities(post, options.criterion)
        with timed("select"):
            picked = nf.select(post, options.criterion, options.picks)
        peak = peak_mib()
        case = f"{options.points:.0e} x {options.features} float32, {CLASSES} classes"
        print(
            f"{case}: {path.stat().st_size / 2**20:.0f} MiB on disk, peak {peak:.0f} MiB, of that"
        )
        print(f"  outputs, F, numbers of the points: {outputs.nbytes * 3 / 2**20:.0f} MiB and more")
        print(
            f"  {options.picks} picks took {len(passes)} passes after those for G, q and the first"
        )
        assert np.isfinite(utilities).all() and len(set(picked.indices.tolist())) == options.picks
        new = []
        for name, (seconds, own) in times.items():
            print(f"  {name}: {seconds:.1f} s, {own:.1f} s of cores")
            of = f", {options.picks} picks, {len(passes)} passes" if name == "select" else ""
            new += record.rows(
                "large_pool_disk",
                f"{case}, {name}{of}, {own:.0f} s of cores",
                {f"ntkfast, peak {peak:.0f} MiB": [seconds]},
                {},
            )
        if options.write:
            record.write(record.RESULTS / "cpu.csv", new)
        if options.check:
            held = made.posterior(np.array(np.load(path, mmap_mode="r")), outputs)
            in_memory = nf.select(held, options.criterion, options.picks)
            same = np.array_equal(picked.indices, in_memory.indices) and np.array_equal(
                picked.utilities, in_memory.utilities
            )
            print(f"  the same picks and utilities from memory, bit for bit: {same}")
            assert same


def rank_of(rank: int, size: int, folder: str, options: argparse.Namespace, points: int) -> None:
    os.environ["NTKFAST_NUM_THREADS"] = "1"
    import datetime

    import torch.distributed as dist

    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(minutes=30),
    )
    made, block = Pool(options.features), 10000
    blocks = range(points // block * rank // size, points // block * (rank + 1) // size)
    parts = [made.block(number, block) for number in blocks]
    phi = np.concatenate(parts)
    outputs = np.concatenate([made.outputs(part) for part in parts])  # of any ranks the same
    post = made.posterior(phi, outputs, group=dist.group.WORLD)
    nf.select(post, options.criterion, 2)  # threads, connections
    group = post._group
    result: dict[str, Any] = {"rank": rank}
    for name, picks in (("utilities", 0), ("select", options.picks)):
        dist.barrier()
        before = group.collectives, group.sent
        clock, own = time.perf_counter(), time.process_time()
        if picks:
            picked = nf.select(post, options.criterion, picks)
            result["first"] = picked.indices[:5].tolist()
            result["all"] = hash(picked.indices.tobytes() + picked.utilities.tobytes())
        else:
            nf.utilities(post, options.criterion)
        result[name] = (
            time.perf_counter() - clock,
            time.process_time() - own,
            group.collectives - before[0],
            group.sent - before[1],
        )
    if rank == 0:
        np.save(f"{folder}/result.npy", np.array([result], object), allow_pickle=True)
    dist.barrier()
    dist.destroy_process_group()


def processes(options: argparse.Namespace) -> None:
    context = multiprocessing.get_context("spawn")
    os.environ |= {"OMP_NUM_THREADS": "1", "NTKFAST_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    new, picks = [], {}
    for kind in ("strong", "weak"):
        for size in options.ranks:
            points = options.points * (size if kind == "weak" else 1)
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                ranks = [
                    context.Process(target=rank_of, args=(r, size, folder, options, points))
                    for r in range(size)
                ]
                for one in ranks:
                    one.start()
                for one in ranks:
                    one.join()
                result = np.load(f"{folder}/result.npy", allow_pickle=True)[0]
            assert picks.setdefault(points, result["all"]) == result["all"], "picks differ"
            case = f"{kind}: {points:.1e} x {options.features}, {size} ranks"
            for name in ("utilities", "select"):
                wall, own, collectives, sent = result[name]
                each = f"{collectives} collectives, {sent} bytes"
                if name == "select":
                    record_bytes = 8 * (options.features + 3) * size
                    each += f", of that {record_bytes} in one collective a pick"
                print(f"{case}, {name}: {wall:.2f} s, {own:.2f} s of rank 0's core; {each}")
                new += record.rows(
                    "large_pool_processes", f"{case}, {name}, {each}", {"ntkfast": [wall]}, {}
                )
    if options.write:
        record.write(record.RESULTS / "cpu.csv", new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("disk", "processes"))
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--picks", type=int, default=1000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--criterion", default="fisher_variance_reduction")
    parser.add_argument("--folder", help="where the pool is kept while it is ranked")
    parser.add_argument("--check", action="store_true", help="compare with the picks from memory")
    parser.add_argument("--write", action="store_true", help="into results/cpu.csv")
    options = parser.parse_args()
    {"disk": disk, "processes": processes}[options.what](options)


if __name__ == "__main__":
    main()
