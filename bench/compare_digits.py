"""One query over the whole digits pool (1777 candidates x 1797 points x 10 classes), interleaved.

    python bench/compare_digits.py

Writes rows to bench/results/cpu.csv: the whole query (posterior and scoring), scoring alone, and
scikit-activeml's MonteCarloEER on three candidates (its time grows with their number; the row says
what was run, nothing is extrapolated).
"""

from __future__ import annotations

import warnings

import bench_digits
import numpy as np
import record
from skactiveml.classifier import SklearnClassifier
from skactiveml.pool import MonteCarloEER
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import ntkfast as nf


def main() -> None:
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, y = (X[order] / 16).astype(np.float32), y[order]
    post = bench_digits.posterior(X, y)
    exact = bench_digits.query(X.astype(np.float64), y)

    partly = np.where(np.arange(len(X)) < bench_digits.LABELED, y, np.nan)
    few = np.arange(bench_digits.LABELED, bench_digits.LABELED + bench_digits.FEW)
    classifier = SklearnClassifier(LogisticRegression(max_iter=200), classes=np.arange(10))
    eer = MonteCarloEER(method="log_loss", random_state=0)
    providers = {
        "ntkfast, posterior and scoring": lambda: bench_digits.query(X, y),
        "ntkfast, scoring": lambda: nf.utilities(post, "expected_entropy"),
        f"scikit-activeml MonteCarloEER, {bench_digits.FEW} candidates only": lambda: eer.query(
            X, partly, classifier, candidates=few
        ),
    }
    errors = {
        name: float(np.abs(providers[name]() - exact).max() / np.abs(exact).max())
        for name in ("ntkfast, posterior and scoring", "ntkfast, scoring")
    }
    assert max(errors.values()) < 1e-5, errors
    slow = {name: 1 for name in providers if name.startswith("scikit")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = record.interleaved(providers, rounds=15, slow=slow)
    rows = record.rows(
        "digits_query", "1777 x 1797 x 10, d 64, squared loss, temperature 0.1", times, errors
    )
    record.show(rows)
    record.write(record.RESULTS / "cpu.csv", rows)


if __name__ == "__main__":
    main()
