"""
Compiled operations of ntkfast; see ntkfast.ops.
"""

from __future__ import annotations
import collections.abc
import numpy
import typing

__all__: list[str] = [
    "View",
    "cholesky",
    "compiler",
    "condition_dense",
    "condition_features",
    "cpu_isa",
    "criteria",
    "cuda_available",
    "cuda_cholesky",
    "cuda_compiled",
    "cuda_condition_dense",
    "cuda_condition_features",
    "cuda_condition_features_workspace",
    "cuda_emulated",
    "cuda_gram_add",
    "cuda_gram_add_workspace",
    "cuda_gram_ghost",
    "cuda_gram_ghost_workspace",
    "cuda_problem",
    "cuda_product",
    "cuda_quadratic_form",
    "cuda_score_blocks",
    "cuda_score_blocks_workspace",
    "cuda_score_dense",
    "cuda_score_dense_workspace",
    "cuda_score_features",
    "cuda_score_features_workspace",
    "cuda_select_variance_reduction",
    "cuda_select_variance_reduction_workspace",
    "cuda_sketch_add",
    "cuda_sketch_gradients",
    "cuda_sketch_workspace",
    "cuda_squared_norms",
    "cuda_triangular_solve",
    "cuda_weighted_gram",
    "cuda_weighted_gram_workspace",
    "cuda_whiten",
    "downdate_moments",
    "form_gradients",
    "gram_add",
    "gram_ghost",
    "num_threads",
    "product",
    "quadratic_form",
    "score_blocks",
    "score_dense",
    "score_features",
    "sketch_add",
    "sketch_gradients",
    "squared_norms",
    "supported_isas",
    "triangular_solve",
    "weighted_gram",
    "whiten",
]

class View:
    def __init__(
        self,
        name: str,
        address: typing.SupportsInt | typing.SupportsIndex,
        shape: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        strides: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        dtype: str,
        device: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """
        An array in GPU memory: address, shape, strides in elements, dtype, device number.
        """

def cholesky(A: numpy.ndarray) -> None: ...
def compiler() -> str: ...
def condition_dense(S: numpy.ndarray, V: numpy.ndarray) -> None: ...
def condition_features(psi: numpy.ndarray, U: numpy.ndarray, C: numpy.ndarray) -> None: ...
def cpu_isa() -> str: ...
def criteria() -> list[tuple[str, list[str]]]: ...
def cuda_available() -> bool: ...
def cuda_cholesky(
    A: View, failed: View, stream: typing.SupportsInt | typing.SupportsIndex
) -> None: ...
def cuda_compiled() -> bool: ...
def cuda_condition_dense(
    S: View, V: View, stream: typing.SupportsInt | typing.SupportsIndex
) -> None: ...
def cuda_condition_features(
    psi: View, U: View, C: View, workspace: View, stream: typing.SupportsInt | typing.SupportsIndex
) -> None: ...
def cuda_condition_features_workspace(
    num_points: typing.SupportsInt | typing.SupportsIndex,
    rank: typing.SupportsInt | typing.SupportsIndex,
) -> int: ...
def cuda_emulated() -> bool: ...
def cuda_gram_add(
    A: View,
    B: View,
    out: View,
    lower: bool,
    products: str,
    workspace: View,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_gram_add_workspace(A: View, B: View, lower: bool, products: str) -> int: ...
def cuda_gram_ghost(
    left: View,
    right: View,
    left2: View,
    right2: View,
    out: View,
    lower: bool,
    products: str,
    workspace: View,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_gram_ghost_workspace(
    left: View, right: View, left2: View, right2: View, lower: bool, products: str
) -> int: ...
def cuda_problem() -> str: ...
def cuda_product(
    X: View, B: View, Y: View, stream: typing.SupportsInt | typing.SupportsIndex
) -> None: ...
def cuda_quadratic_form(
    X: View, G: View, q: View, stream: typing.SupportsInt | typing.SupportsIndex
) -> None: ...
def cuda_score_blocks(
    covariance: View,
    evaluation_variance: View | None,
    call: dict[str, typing.Any],
    wrong: View,
    workspace: View,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_score_blocks_workspace(
    criterion: str,
    num_classes: typing.SupportsInt | typing.SupportsIndex,
    num_candidates: typing.SupportsInt | typing.SupportsIndex,
    num_evaluation: typing.SupportsInt | typing.SupportsIndex,
    double_precision: bool,
) -> int: ...
def cuda_score_dense(
    S: View,
    downdate: View | None,
    call: dict[str, typing.Any],
    workspace: View,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_score_dense_workspace(
    criterion: str,
    num_classes: typing.SupportsInt | typing.SupportsIndex,
    num_candidates: typing.SupportsInt | typing.SupportsIndex,
    num_evaluation: typing.SupportsInt | typing.SupportsIndex,
    double_precision: bool,
) -> int: ...
def cuda_score_features(
    psi: View,
    call: dict[str, typing.Any],
    products: str,
    workspace: View,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_score_features_workspace(psi: View, call: dict[str, typing.Any], products: str) -> int: ...
def cuda_select_variance_reduction(
    psi: View,
    candidates: View | None,
    G: View,
    q: View,
    s: View,
    noise: View,
    picked: View,
    utilities: View,
    workspace: View,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_select_variance_reduction_workspace(
    num_candidates: typing.SupportsInt | typing.SupportsIndex,
    num_features: typing.SupportsInt | typing.SupportsIndex,
) -> int: ...
def cuda_sketch_add(
    values: View,
    start: typing.SupportsInt | typing.SupportsIndex,
    sign_key: typing.SupportsInt | typing.SupportsIndex,
    shift_key: typing.SupportsInt | typing.SupportsIndex,
    out: View,
    workspace: View,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_sketch_gradients(
    left: tuple[View, View, View],
    right: tuple[View, View, View],
    groups: typing.SupportsInt | typing.SupportsIndex,
    start: typing.SupportsInt | typing.SupportsIndex,
    sign_key: typing.SupportsInt | typing.SupportsIndex,
    shift_key: typing.SupportsInt | typing.SupportsIndex,
    out: View,
    workspace: View,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_sketch_workspace(
    start: typing.SupportsInt | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    dim: typing.SupportsInt | typing.SupportsIndex,
) -> int: ...
def cuda_squared_norms(
    X: View, s: View, stream: typing.SupportsInt | typing.SupportsIndex
) -> None: ...
def cuda_triangular_solve(
    L: View, B: View, transpose: bool, stream: typing.SupportsInt | typing.SupportsIndex
) -> None: ...
def cuda_weighted_gram(
    X: View,
    weights: View,
    G: View,
    workspace: View,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_weighted_gram_workspace(
    num_points: typing.SupportsInt | typing.SupportsIndex,
    num_features: typing.SupportsInt | typing.SupportsIndex,
) -> int: ...
def cuda_whiten(
    features: View, W: View, psi: View, stream: typing.SupportsInt | typing.SupportsIndex
) -> None: ...
def downdate_moments(
    psi: numpy.ndarray,
    g: numpy.ndarray,
    h: numpy.ndarray,
    g_G_g: typing.SupportsFloat | typing.SupportsIndex,
    D: typing.SupportsFloat | typing.SupportsIndex,
    q: numpy.ndarray,
    s: numpy.ndarray,
) -> None: ...
def form_gradients(
    left: tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray],
    right: tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray],
    groups: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.ndarray,
    add: bool,
) -> None: ...
def gram_add(A: numpy.ndarray, B: numpy.ndarray, out: numpy.ndarray, lower: bool) -> None: ...
def gram_ghost(
    left: numpy.ndarray,
    right: numpy.ndarray,
    left2: numpy.ndarray,
    right2: numpy.ndarray,
    out: numpy.ndarray,
    lower: bool,
) -> None: ...
def num_threads() -> int: ...
def product(X: numpy.ndarray, B: numpy.ndarray, Y: numpy.ndarray) -> None: ...
def quadratic_form(X: numpy.ndarray, G: numpy.ndarray, q: numpy.ndarray) -> None: ...
def score_blocks(
    covariance: numpy.ndarray,
    rows: numpy.ndarray | None,
    columns: numpy.ndarray | None,
    evaluation_variance: numpy.ndarray | None,
    call: dict[str, typing.Any],
) -> None: ...
def score_dense(
    S: numpy.ndarray, downdate: numpy.ndarray | None, call: dict[str, typing.Any]
) -> None: ...
def score_features(psi: numpy.ndarray, call: dict[str, typing.Any]) -> None: ...
def sketch_add(
    values: numpy.ndarray,
    start: typing.SupportsInt | typing.SupportsIndex,
    sign_key: typing.SupportsInt | typing.SupportsIndex,
    shift_key: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.ndarray,
) -> None: ...
def sketch_gradients(
    left: tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray],
    right: tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray],
    groups: typing.SupportsInt | typing.SupportsIndex,
    start: typing.SupportsInt | typing.SupportsIndex,
    sign_key: typing.SupportsInt | typing.SupportsIndex,
    shift_key: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.ndarray,
) -> None: ...
def squared_norms(X: numpy.ndarray, s: numpy.ndarray) -> None: ...
def supported_isas() -> list[str]: ...
def triangular_solve(L: numpy.ndarray, B: numpy.ndarray, transpose: bool) -> None: ...
def weighted_gram(X: numpy.ndarray, weights: numpy.ndarray, G: numpy.ndarray) -> None: ...
def whiten(features: numpy.ndarray, W: numpy.ndarray, psi: numpy.ndarray) -> None: ...
