"""FastEER and the MonteCarloEER that it stands in for, on the whole digits pool.

    OMP_NUM_THREADS=1 NTKFAST_NUM_THREADS=1 python bench/compare_eer.py --kernel rbf

One query each, 1777 candidates x 10 labels x 1797 evaluation points, kernel ridge regression on 20
labels. Every utility is compared; the error is the largest difference relative to the largest
utility. MonteCarloEER fits 17770 classifiers, for minutes: it is run once. On one thread times are
processor times, which other processes disturb least. Rows go to bench/results/cpu.csv.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import record
from skactiveml.pool import MonteCarloEER
from sklearn.datasets import load_digits

from ntkfast import ops
from ntkfast.integrations.skactiveml import FastEER, KernelRidgeClassifier

LABELED = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", choices=["linear", "rbf"], default="rbf")
    parser.add_argument("--candidates", type=int, default=None, help="the first so many, to try it")
    arguments = parser.parse_args()

    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, y = X[order] / 16, y[order]
    partly = np.where(np.arange(len(X)) < LABELED, y, np.nan)
    candidates = np.arange(LABELED, len(X))[: arguments.candidates]
    clf = KernelRidgeClassifier(kernel=arguments.kernel, classes=np.arange(10))
    query = (X, partly, clf)
    keywords = dict(candidates=candidates, return_utilities=True)

    fast = FastEER(method="log_loss", random_state=0)
    times = record.interleaved(
        {"ntkfast FastEER": lambda: fast.query(*query, **keywords)}, rounds=15
    )
    found, ours = fast.query(*query, **keywords)

    clock = time.thread_time if ops.num_threads() == 1 else time.perf_counter
    slow = MonteCarloEER(method="log_loss", random_state=0)
    start = clock()
    expected, theirs = slow.query(*query, **keywords)
    times["scikit-activeml MonteCarloEER"] = [clock() - start]

    error = float(np.nanmax(np.abs(ours - theirs)) / np.nanmax(np.abs(theirs)))
    assert error < 1e-9, error
    assert found == expected
    rows = record.rows(
        "monte_carlo_eer",
        f"{len(candidates)} x {len(X)} x 10, d 64, {arguments.kernel} kernel, log loss",
        times,
        {"ntkfast FastEER": error},
    )
    record.show(rows)
    if arguments.candidates is None:
        record.write(record.RESULTS / "cpu.csv", rows)


if __name__ == "__main__":
    main()
