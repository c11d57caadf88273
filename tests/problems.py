"""Problems with known answers, in the forms that the package takes."""

import warnings
from pathlib import Path

import numpy as np
from data import oracle

import ntkfast as nf

DATA = Path(__file__).parent / "data"
GOLDEN = sorted(path.stem for path in DATA.glob("*.npz"))
REPRESENTATIONS = ("features", "kernel")
# Criteria that refitting defines; tests/test_coverage.py has the others.
REFITTED = tuple(
    row.name for row in nf.criteria() if row.compiled in oracle.CRITERIA and not row.coverage
)


def golden(name):
    with np.load(DATA / f"{name}.npz") as archive:
        p = {key: archive[key] for key in archive.files}
    p.setdefault("residual_temperature", np.array(1.0))  # what the first problems are of
    numbers = ("lam", "scale", "loss", "temperature", "residual_temperature")
    return p | {key: p[key].item() for key in numbers}


def posterior(p, representation="features", dtype=np.float64, convert=lambda a: a, **settings):
    """Candidates first, then the evaluation points. Labelled points keep float64."""
    phi = np.vstack([p["phi_c"], p["phi_x"]])
    f = np.vstack([p["f_c"], p["f_x"]])
    settings = {
        "ridge": p["lam"],
        "loss": p["loss"],
        "label_scale": p["scale"],
        "residual_temperature": p["residual_temperature"],
    } | settings
    labels = [convert(p["f_l"]), convert(p["T"])]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*outnumber a quarter")
        if representation == "features":
            return nf.Posterior.from_features(
                convert(phi.astype(dtype)),
                convert(f),
                convert(p["phi_l"].astype(dtype)),
                *labels,
                **settings,
            )
        return nf.Posterior.from_kernel(
            convert((phi @ phi.T).astype(dtype)),
            convert((p["phi_l"] @ phi.T).astype(dtype)),
            convert(p["K_ll"].astype(dtype)),
            convert(f),
            *labels,
            **settings,
        )


def keywords(p, convert=lambda a: a):
    """Everything that a golden utility depends on, for `utilities` and `select`."""
    N_c, N_x = len(p["f_c"]), len(p["f_x"])
    return dict(
        candidates=convert(np.arange(N_c)),
        evaluation=convert(np.arange(N_c, N_c + N_x)),
        label_probs=convert(p["P"]),
        weights=convert(p["v"]),
        noise=convert(p["lam_c"]),
        temperature=p.get("temperature", 0.3),
        log_loss_targets=convert(p["Q"]),
    )


def random_problem(seed, **options):
    """A problem of the oracle, small enough for literal refitting."""
    return oracle.problem(seed, **(dict(n=5, N_c=7, N_x=9, k=3, d=12) | options))


def relative_error(found, expected):
    """Largest error relative to the largest expected value."""
    scale = np.abs(expected).max()
    return np.abs(np.asarray(found) - expected).max() / (scale if scale > 0 else 1)
