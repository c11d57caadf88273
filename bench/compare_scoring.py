"""Interleaved comparison of scoring with every opponent; writes rows to bench/results/cpu.csv.

    OMP_NUM_THREADS=1 NTKFAST_NUM_THREADS=1 python bench/compare_scoring.py

Expected entropy at 512 candidates x 2048 points, n = 1000, k = 10, float32. Ratios pair times of
the same round. The work of the covariances is 2 N_c N_x n = 2.1 GFLOP; the k exponentials of each
of the 1.05e6 pairs come on top.
"""

from __future__ import annotations

import numpy as np
import opponents
import record
import torch

from ntkfast import ops


def main() -> None:
    torch.set_num_threads(ops.num_threads())
    p = opponents.problem()
    expected = opponents.reference(p)
    providers = opponents.providers(p)
    errors = {}
    for name, function in providers.items():
        found = function()[: len(expected)]
        errors[name] = float(np.abs(found - expected).max() / np.abs(expected).max())
        assert errors[name] < 1e-5, (name, errors[name])
    t = opponents.tensors(p)
    providers["covariances alone, torch matmul"] = lambda: opponents.gemm_alone(t)
    arguments = opponents.ntkfast_arguments(p, "variance_reduction")
    providers["covariances alone, ntkfast"] = lambda: ops.score_features(psi=p.psi, **arguments)
    slow = {"k^2 labels, torch.compile": 3, "k^2 labels, eager": 3}
    rows = record.rows(
        "expected_entropy",
        "512 x 2048, n 1000, k 10, float32",
        record.interleaved(providers, rounds=15, slow=slow),
        errors,
    )
    empty = opponents.empty_call()
    calls = {"ntkfast": lambda: [empty() for _ in range(1000)]}
    rows += record.rows("empty scoring call", "1000 calls", record.interleaved(calls, 15), {})
    record.show(rows)
    record.write(record.RESULTS / "cpu.csv", rows)


if __name__ == "__main__":
    main()
