"""
Compiled operations of ntkfast; see ntkfast.ops.
"""

from __future__ import annotations
import numpy
import typing

__all__: list[str] = [
    "cholesky",
    "cholesky_append",
    "condition_dense",
    "condition_features",
    "cpu_isa",
    "criteria",
    "downdate_moments",
    "num_threads",
    "product",
    "quadratic_form",
    "score_dense",
    "score_features",
    "squared_norms",
    "triangular_solve",
    "weighted_gram",
    "whiten",
]

def cholesky(L: numpy.ndarray) -> None: ...
def cholesky_append(
    L: numpy.ndarray, cross: numpy.ndarray, corner: numpy.ndarray, out: numpy.ndarray
) -> None: ...
def condition_dense(S: numpy.ndarray, V: numpy.ndarray) -> None: ...
def condition_features(psi: numpy.ndarray, U: numpy.ndarray, C: numpy.ndarray) -> None: ...
def cpu_isa() -> str: ...
def criteria() -> list[str]: ...
def downdate_moments(
    psi: numpy.ndarray,
    g: numpy.ndarray,
    h: numpy.ndarray,
    g_G_g: typing.SupportsFloat | typing.SupportsIndex,
    D: typing.SupportsFloat | typing.SupportsIndex,
    q: numpy.ndarray,
    s: numpy.ndarray,
) -> None: ...
def num_threads() -> int: ...
def product(X: numpy.ndarray, B: numpy.ndarray, Y: numpy.ndarray) -> None: ...
def quadratic_form(X: numpy.ndarray, G: numpy.ndarray, q: numpy.ndarray) -> None: ...
def score_dense(
    S: numpy.ndarray,
    downdate: numpy.ndarray | None,
    criterion: str,
    candidates: numpy.ndarray,
    evaluation: numpy.ndarray,
    mean: numpy.ndarray,
    outputs: numpy.ndarray,
    variance: numpy.ndarray,
    noise: numpy.ndarray,
    ridge: typing.SupportsFloat | typing.SupportsIndex,
    label_probs: numpy.ndarray,
    weights: numpy.ndarray,
    label_scale: typing.SupportsFloat | typing.SupportsIndex,
    cross_entropy: bool,
    temperature: typing.SupportsFloat | typing.SupportsIndex,
    log_loss_targets: numpy.ndarray | None,
    utilities: numpy.ndarray,
) -> None: ...
def score_features(
    psi: numpy.ndarray,
    criterion: str,
    candidates: numpy.ndarray,
    evaluation: numpy.ndarray,
    mean: numpy.ndarray,
    outputs: numpy.ndarray,
    variance: numpy.ndarray,
    noise: numpy.ndarray,
    ridge: typing.SupportsFloat | typing.SupportsIndex,
    label_probs: numpy.ndarray,
    weights: numpy.ndarray,
    label_scale: typing.SupportsFloat | typing.SupportsIndex,
    cross_entropy: bool,
    temperature: typing.SupportsFloat | typing.SupportsIndex,
    log_loss_targets: numpy.ndarray | None,
    utilities: numpy.ndarray,
) -> None: ...
def squared_norms(X: numpy.ndarray, s: numpy.ndarray) -> None: ...
def triangular_solve(L: numpy.ndarray, X: numpy.ndarray, transpose: bool) -> None: ...
def weighted_gram(X: numpy.ndarray, weights: numpy.ndarray, G: numpy.ndarray) -> None: ...
def whiten(features: numpy.ndarray, W: numpy.ndarray, psi: numpy.ndarray) -> None: ...
