"""
Compiled operations of ntkfast; see ntkfast.ops.
"""

from __future__ import annotations
import collections.abc
import numpy
import typing

__all__: list[str] = [
    "cholesky",
    "cholesky_append",
    "compiler",
    "condition_dense",
    "condition_features",
    "cpu_isa",
    "criteria",
    "cuda_available",
    "cuda_cholesky",
    "cuda_cholesky_append",
    "cuda_compiled",
    "cuda_condition_dense",
    "cuda_condition_features",
    "cuda_condition_features_workspace",
    "cuda_downdate_moments",
    "cuda_emulated",
    "cuda_gram_add",
    "cuda_gram_ghost",
    "cuda_problem",
    "cuda_product",
    "cuda_quadratic_form",
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

def cholesky(L: numpy.ndarray) -> None: ...
def cholesky_append(
    L: numpy.ndarray, cross: numpy.ndarray, corner: numpy.ndarray, out: numpy.ndarray
) -> None: ...
def compiler() -> str: ...
def condition_dense(S: numpy.ndarray, V: numpy.ndarray) -> None: ...
def condition_features(psi: numpy.ndarray, U: numpy.ndarray, C: numpy.ndarray) -> None: ...
def cpu_isa() -> str: ...
def criteria() -> list[str]: ...
def cuda_available() -> bool: ...
def cuda_cholesky(
    L: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    failed: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_cholesky_append(
    L: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    cross: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    corner: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    out: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    failed: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_compiled() -> bool: ...
def cuda_condition_dense(
    S: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    V: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_condition_features(
    psi: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    U: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    C: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    workspace: tuple[
        typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex
    ],
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_condition_features_workspace(
    num_points: typing.SupportsInt | typing.SupportsIndex,
    rank: typing.SupportsInt | typing.SupportsIndex,
) -> int: ...
def cuda_downdate_moments(
    psi: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    g: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    h: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    scalars: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    q: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    s: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_emulated() -> bool: ...
def cuda_gram_add(
    A: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    B: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    out: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    lower: bool,
    precision: str,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_gram_ghost(
    left: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    right: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    left2: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    right2: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    out: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    lower: bool,
    precision: str,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_problem() -> str: ...
def cuda_product(
    X: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    B: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    Y: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_quadratic_form(
    X: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    G: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    q: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_score_dense(
    S: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    downdate: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ]
    | None,
    update: bool,
    criterion: str,
    candidates: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ]
    | None,
    evaluation: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ]
    | None,
    mean: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    outputs: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    variance: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    noise: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    ridge: typing.SupportsFloat | typing.SupportsIndex,
    label_probs: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    weights: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    label_scale: typing.SupportsFloat | typing.SupportsIndex,
    cross_entropy: bool,
    temperature: typing.SupportsFloat | typing.SupportsIndex,
    log_loss_targets: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ]
    | None,
    utilities: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    workspace: tuple[
        typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex
    ],
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
    psi: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    precision: str,
    criterion: str,
    candidates: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ]
    | None,
    evaluation: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ]
    | None,
    mean: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    outputs: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    variance: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    noise: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    ridge: typing.SupportsFloat | typing.SupportsIndex,
    label_probs: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    weights: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    label_scale: typing.SupportsFloat | typing.SupportsIndex,
    cross_entropy: bool,
    temperature: typing.SupportsFloat | typing.SupportsIndex,
    log_loss_targets: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ]
    | None,
    utilities: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    workspace: tuple[
        typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex
    ],
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_score_features_workspace(
    criterion: str,
    num_classes: typing.SupportsInt | typing.SupportsIndex,
    num_candidates: typing.SupportsInt | typing.SupportsIndex,
    num_evaluation: typing.SupportsInt | typing.SupportsIndex,
    precision: str,
) -> int: ...
def cuda_select_variance_reduction(
    psi: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    candidates: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ]
    | None,
    G: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    q: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    s: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    noise: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    picked: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    utilities: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    workspace: tuple[
        typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex
    ],
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_select_variance_reduction_workspace(
    num_candidates: typing.SupportsInt | typing.SupportsIndex,
    num_features: typing.SupportsInt | typing.SupportsIndex,
) -> int: ...
def cuda_sketch_add(
    values: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    start: typing.SupportsInt | typing.SupportsIndex,
    sign_key: typing.SupportsInt | typing.SupportsIndex,
    shift_key: typing.SupportsInt | typing.SupportsIndex,
    out: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    workspace: tuple[
        typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex
    ],
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_sketch_gradients(
    left: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    left_positions: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    left_columns: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    right: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    right_positions: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    right_columns: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    groups: typing.SupportsInt | typing.SupportsIndex,
    start: typing.SupportsInt | typing.SupportsIndex,
    sign_key: typing.SupportsInt | typing.SupportsIndex,
    shift_key: typing.SupportsInt | typing.SupportsIndex,
    out: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    workspace: tuple[
        typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex
    ],
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_sketch_workspace(
    start: typing.SupportsInt | typing.SupportsIndex,
    count: typing.SupportsInt | typing.SupportsIndex,
    dim: typing.SupportsInt | typing.SupportsIndex,
) -> int: ...
def cuda_squared_norms(
    X: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    s: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_triangular_solve(
    L: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    X: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    transpose: bool,
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_weighted_gram(
    X: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    weights: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    G: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    stream: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def cuda_whiten(
    features: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    W: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    psi: tuple[
        typing.SupportsInt | typing.SupportsIndex,
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        str,
        typing.SupportsInt | typing.SupportsIndex,
    ],
    stream: typing.SupportsInt | typing.SupportsIndex,
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
    left: numpy.ndarray,
    left_positions: numpy.ndarray,
    left_columns: numpy.ndarray,
    right: numpy.ndarray,
    right_positions: numpy.ndarray,
    right_columns: numpy.ndarray,
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
def sketch_add(
    values: numpy.ndarray,
    start: typing.SupportsInt | typing.SupportsIndex,
    sign_key: typing.SupportsInt | typing.SupportsIndex,
    shift_key: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.ndarray,
) -> None: ...
def sketch_gradients(
    left: numpy.ndarray,
    left_positions: numpy.ndarray,
    left_columns: numpy.ndarray,
    right: numpy.ndarray,
    right_positions: numpy.ndarray,
    right_columns: numpy.ndarray,
    groups: typing.SupportsInt | typing.SupportsIndex,
    start: typing.SupportsInt | typing.SupportsIndex,
    sign_key: typing.SupportsInt | typing.SupportsIndex,
    shift_key: typing.SupportsInt | typing.SupportsIndex,
    out: numpy.ndarray,
) -> None: ...
def squared_norms(X: numpy.ndarray, s: numpy.ndarray) -> None: ...
def supported_isas() -> list[str]: ...
def triangular_solve(L: numpy.ndarray, X: numpy.ndarray, transpose: bool) -> None: ...
def weighted_gram(X: numpy.ndarray, weights: numpy.ndarray, G: numpy.ndarray) -> None: ...
def whiten(features: numpy.ndarray, W: numpy.ndarray, psi: numpy.ndarray) -> None: ...
