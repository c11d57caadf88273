"""Every criterion against literal refitting by data/oracle.py, of the problems in data/*.npz."""

import functools

import numpy as np
import pytest
from data import oracle
from problems import GOLDEN, REPRESENTATIONS, golden, keywords, posterior, relative_error

import ntkfast as nf

TOLERANCE = {np.float64: 1e-9, np.float32: 1e-4}


@functools.cache
def refitted(name, criterion):
    p = golden(name)
    return oracle.utilities(criterion, p, p["temperature"])


@pytest.mark.parametrize("name", GOLDEN)
def test_the_oracle_is_what_it_was(name):
    """The first criteria's utilities are stored with the problems; other BLAS round otherwise."""
    p = golden(name)
    stored = [key.removeprefix("u_") for key in p if key.startswith("u_")]
    assert stored
    for criterion in stored:
        assert relative_error(refitted(name, criterion), p[f"u_{criterion}"]) <= 1e-12


def margin_of_flips(p):
    """Smallest gap of the two largest refitted outputs over all (c, y, x)."""
    gaps = []
    for c in range(len(p["f_c"])):
        for y in range(p["P"].shape[1]):
            largest = np.sort(oracle.refit(c, y, p), axis=1)[:, -2:]
            gaps.append((largest[:, 1] - largest[:, 0]).min())
    return min(gaps)


# The CPU takes every problem in every form. A GPU differs in what surrounds the formulas, not in
# them: each criterion meets each problem once, in forms that take turns, so that all pairs are
# there, and each criterion in each form on each device.
FORMS = [(r, t) for r in REPRESENTATIONS for t in (np.float64, np.float32)]
CASES = [
    *(("cpu", c, name, *form) for c in oracle.CRITERIA for name in GOLDEN for form in FORMS),
    *(
        pytest.param(place, c, name, *FORMS[(i + j) % 4], marks=marks)
        for place, marks in (("double", ()), ("gpu", pytest.mark.gpu))
        for i, c in enumerate(oracle.CRITERIA)
        for j, name in enumerate(GOLDEN)
    ),
]


@pytest.mark.parametrize(
    ("anywhere", "criterion", "name", "representation", "dtype"), CASES, indirect=["anywhere"]
)
def test_golden(criterion, name, representation, dtype, anywhere):
    p = golden(name)
    if criterion == "label_flips" and dtype == np.float32:
        # A step: only problems whose closest decision float32 can tell are comparable.
        scale = max(np.abs(p["f_x"]).max(), p["scale"])
        if margin_of_flips(p) < 1e-5 * scale:
            pytest.skip("a decision is closer than float32 resolves")
    post = posterior(p, representation, dtype, anywhere.put)
    options = keywords(p, anywhere.put) | anywhere.like_float32(dtype)
    found = anywhere.host(nf.utilities(post, criterion, **options))
    assert found.dtype == np.float64
    assert relative_error(found, refitted(name, criterion)) <= TOLERANCE[dtype]
    expected = np.vstack([p["F_c"], p["F_x"]])
    assert relative_error(anywhere.host(post.mean), expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", GOLDEN)
def test_pool_that_evaluates_itself(name):
    """Candidates that are evaluation points too, by one index."""
    p = golden(name)
    post = posterior(p)
    every = np.arange(len(post))
    pool = dict(
        f_c=np.vstack([p["f_c"], p["f_x"]]),
        K_lc=np.hstack([p["K_lc"], p["K_lx"]]),
        K_cx=post_kernel(p),
        k_cc=np.append(p["k_cc"], p["k_xx"]),
        lam_c=np.full(len(every), p["lam"]),
        P=np.full((len(every), p["P"].shape[1]), 1 / p["P"].shape[1]),
    )
    evaluation = dict(f_x=pool["f_c"], K_lx=pool["K_lc"], k_xx=pool["k_cc"], v=np.ones(len(every)))
    for criterion in ("emoc", "expected_entropy", "epig"):
        expected = oracle.utilities(criterion, p | pool | evaluation, temperature=0.5)
        found = nf.utilities(post, criterion, label_probs=pool["P"], temperature=0.5)
        assert relative_error(found, expected) <= 1e-9


def post_kernel(p):
    phi = np.vstack([p["phi_c"], p["phi_x"]])
    return phi @ phi.T


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_fisher_variance_reduction(loss, representation):
    p = golden("cross_entropy" if loss == "cross_entropy" else "trained")
    post = posterior(p, representation)
    f = np.vstack([p["f_c"], p["f_x"]])
    h = 1 - (oracle.softmax(f / (1.0 if loss == "cross_entropy" else 0.1)) ** 2).sum(1)
    N_c = len(p["f_c"])
    expected = oracle.utilities("variance_reduction", p | dict(v=h[N_c:], lam_c=p["lam"] / h[:N_c]))
    where = dict(candidates=np.arange(N_c), evaluation=np.arange(N_c, len(f)))
    assert (
        relative_error(nf.utilities(post, "fisher_variance_reduction", **where), expected) <= 1e-9
    )
    expected = oracle.utilities(
        "variance_reduction", p | dict(v=h[N_c:] * p["v"], lam_c=p["lam_c"] / h[:N_c])
    )
    found = nf.utilities(
        post, "fisher_variance_reduction", weights=p["v"], noise=p["lam_c"], **where
    )
    assert relative_error(found, expected) <= 1e-9
    h = 1 - (oracle.softmax(f / 0.7) ** 2).sum(1)
    expected = oracle.utilities("variance_reduction", p | dict(v=h[N_c:], lam_c=p["lam"] / h[:N_c]))
    found = nf.utilities(post, "fisher_variance_reduction", temperature=0.7, **where)
    assert relative_error(found, expected) <= 1e-9
