"""Expected entropy at 512 x 2048, n = 1000, k = 10, float32: ntkfast and every opponent.

For the ratios that count, taken within one run, see compare_scoring.py.
"""

import numpy as np
import opponents
import pytest

from ntkfast import ops

PROVIDERS = opponents.NAMES


@pytest.fixture(scope="module")
def case():
    p = opponents.problem()
    return p, opponents.reference(p), opponents.providers(p)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_expected_entropy(benchmark, case, provider):
    _, expected, providers = case
    slow = provider.startswith("k^2")
    found = benchmark.pedantic(
        providers[provider], rounds=2 if slow else 10, warmup_rounds=1, iterations=1
    )
    assert np.abs(found[: len(expected)] - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("criterion", ops.criteria())
def test_score_features(benchmark, case, criterion):
    p, _, _ = case
    arguments = opponents.ntkfast_arguments(p, criterion)
    found = benchmark(lambda: ops.score_features(psi=p.psi, **arguments))
    few = arguments | dict(inputs=arguments["inputs"].part(slice(8), slice(None)))
    expected = ops.score_features(psi=p.psi.astype(np.float64), **few)
    tolerance = 1e-3 if criterion == "label_flips" else 1e-5  # a step function: a tie is a vote
    assert np.abs(found[:8] - expected).max() <= tolerance * np.abs(expected).max()


def test_covariances_alone(benchmark, case):
    """What any implementation on torch cannot go below."""
    t = opponents.tensors(case[0])
    assert benchmark(lambda: opponents.gemm_alone(t)).shape == (512, 2048)
