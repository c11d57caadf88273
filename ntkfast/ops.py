"""The compiled operations: arrays in, arrays out.

They know nothing of models, strategies or frameworks. Every function here checks its arguments,
allocates its result and calls the function of the same name in the compiled core, which releases
the GIL, shares the work among the threads of `num_threads()` and gives bitwise the same result for
any number of them. Long operations raise `KeyboardInterrupt` soon after Ctrl-C; those that work in
place run to their end first.

Notation (Mohamadi, Bae, Sutherland, NeurIPS 2022; arXiv 2206.12569): ``S`` is the posterior
covariance, ``psi`` whitened features with ``S(x, x') = <psi(x), psi(x')>``, ``F`` the posterior
mean, ``f`` the outputs of the trained network, ``lam`` the ridge, ``N`` points, ``k`` classes,
``d`` features. `float` arrays are float32 or float64 and decide the type everything pairwise is
computed in; sums over points are float64 always.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ntkfast import _core

Float64 = npt.NDArray[np.float64]
Floating = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScoreInputs:
    """What every scoring operation reads besides the covariances.

    Arrays of the library that the operation works on: numpy here, torch or cupy in
    `ntkfast.cuda_ops`.

    Attributes
    ----------
    candidates, evaluation : (N_c,), (N_x,) int64 or None
        Indices into the N points; None: all of them in order.
    mean, outputs : (N, k) float64
        Posterior mean F and the trained network's outputs f.
    noise : (N_c,) float64
        Noise of each candidate's hypothetical label, in (0, inf].
    ridge : float
        Noise of an evaluation point (`epig`).
    label_probs : (N_c, k) float64
        P(y|c).
    weights : (N_x,) float64
        v(x).
    label_scale : float
        Size of a label in units of the outputs; 1 for squared loss.
    loss : {"squared", "cross_entropy"}
        What the network was trained with.
    temperature : float
        Divides outputs inside softmax (the `expected_*` criteria).
    log_loss_targets : (N_x, k) float64 or None
        q(x) of `expected_log_loss`.
    covered : (N_x,) float64 or None
        m(x) of the `*_coverage` criteria: how well the points so far cover x.
    radius : float
        Of `gaussian_coverage` and `ball_coverage`.
    residual_temperature : float
        T_r of the residual label_scale (e_y - softmax(F / T_r)) of cross-entropy.
    """

    candidates: Any
    evaluation: Any
    mean: Any
    outputs: Any
    noise: Any
    ridge: float
    label_probs: Any
    weights: Any
    label_scale: float
    loss: str
    temperature: float
    log_loss_targets: Any = None
    residual_temperature: float = 1.0
    covered: Any = None
    radius: float = 1.0

    def part(self, candidates: slice, evaluation: slice) -> ScoreInputs:
        """Return the call for some of the candidates and evaluation points."""
        targets, covered = self.log_loss_targets, self.covered
        return replace(
            self,
            candidates=self.candidates[candidates],
            noise=self.noise[candidates],
            label_probs=self.label_probs[candidates],
            evaluation=self.evaluation[evaluation],
            weights=self.weights[evaluation],
            log_loss_targets=None if targets is None else targets[evaluation],
            covered=None if covered is None else covered[evaluation],
        )


_CRITERIA = {name: frozenset(traits) for name, traits in _core.criteria()}


def criteria() -> dict[str, frozenset[str]]:
    """Names of the criteria the compiled core can score, and the traits of each.

    A trait is an argument that the criterion reads (`label_probs`, `temperature`,
    `log_loss_targets`, `covered`, `radius`), or "point_variance" (it reads S(x, x)), "look_ahead"
    (at outputs after a hypothetical label) or "moments" (it needs no pairs in weight space).
    Those that read `covered` are given the kernel K before any label in the place of S, and are not
    for blocks.
    """
    return dict(_CRITERIA)


def cpu_isa() -> str:
    """Instruction set in use: "avx512", "avx2" or "baseline"; `NTKFAST_CPU_ISA` forces one."""
    return _core.cpu_isa()


def num_threads() -> int:
    """Threads in use: `NTKFAST_NUM_THREADS`, or the processors this process may run on."""
    return _core.num_threads()


def _floating(array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Rows contiguous, native byte order; the dtype must be float32 or float64 already."""
    if not isinstance(array, np.ndarray) or array.dtype.type not in (np.float32, np.float64):
        found = getattr(array, "dtype", type(array).__name__)
        raise TypeError(f"{name}: expected a float32 or float64 numpy array, got {found}")
    if not array.dtype.isnative:
        raise TypeError(
            f"{name}: expected native byte order; .astype({array.dtype.name!r}) converts"
        )
    return (
        array
        if array.ndim != 2 or array.strides[1] == array.itemsize
        else np.ascontiguousarray(array)
    )


def _in_place(array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    if _floating(array, name) is not array or not array.flags.writeable:
        raise ValueError(f"{name}: is changed in place and must be writable with contiguous rows")
    return array


def _float64(array: npt.ArrayLike) -> Float64:
    return np.ascontiguousarray(array, dtype=np.float64)


def _indices(array: npt.ArrayLike) -> Indices:
    return np.ascontiguousarray(array, dtype=np.int64)


def _call(criterion: str, inputs: ScoreInputs, variance: Float64) -> dict[str, Any]:
    """Return a scoring call as the compiled core takes it; `utilities` is its result."""
    call = dict(vars(inputs), criterion=criterion, variance=_float64(variance))
    for name in ("candidates", "evaluation"):
        points = call[name]
        call[name] = np.arange(len(inputs.mean)) if points is None else _indices(points)
    for name in ("mean", "outputs", "noise", "label_probs", "weights"):
        call[name] = _float64(call[name])
    for name in ("log_loss_targets", "covered"):
        if call[name] is not None:
            call[name] = _float64(call[name])
    call["utilities"] = np.empty(call["candidates"].shape)
    return call


def score_features(
    criterion: str, psi: Floating, inputs: ScoreInputs, *, variance: Float64
) -> Float64:
    r"""Utilities of candidates with the covariance in weight space, ``S(x, c) = <psi(x), psi(c)>``.

    With ``a = S(x, c) / (S(c, c) + noise_c)`` and ``f+ = F(x) + a label_scale (e_y - B(c))`` (eq.
    12), where ``B`` is ``F`` for squared loss and ``softmax(F / residual_temperature)`` for
    cross-entropy, the utility of c is the sum over evaluation points of ``weights`` times the
    criterion's summand. The N_c x N_x covariance is never stored: each tile of it is scored in
    cache and dropped.

    Parameters
    ----------
    criterion : str
        One of `criteria()`.
    psi : (N, d) float
        Whitened features; their dtype is the compute type.
    inputs : ScoreInputs
        Everything else.
    variance : (N,) float64
        S(x, x).

    Returns
    -------
    (N_c,) float64
        Utilities; larger = query first. Finite for any finite input. With float32 features and
        ``|F / T| <= 100`` the `expected_*` criteria are within 1e-5 of the largest utility, or
        within 3e-8 per unit of `weights` where every point is decided already (entropies below
        2e-3).

    Raises
    ------
    ValueError
        Wrong shapes, indices out of range, or values outside their range; the message names the
        argument.
    """
    call = _call(criterion, inputs, variance)
    _core.score_features(_floating(psi, "psi"), call)
    return call["utilities"]  # type: ignore[no-any-return]


def score_dense(
    criterion: str,
    S: Floating,
    inputs: ScoreInputs,
    *,
    variance: Float64,
    downdate: Floating | None = None,
) -> Float64:
    """Utilities of candidates with the covariance in function space, ``S - downdate^T downdate``.

    S (N, N) is symmetric and is not changed; downdate (r, N), of S's dtype, holds the rows that the
    picks of a batch have added, ``S(., c) / sqrt(S(c, c) + noise_c)`` each. Everything else is as
    in `score_features`.
    """
    call = _call(criterion, inputs, variance)
    if downdate is not None:
        downdate = np.ascontiguousarray(downdate, dtype=S.dtype)
    _core.score_dense(_floating(S, "S"), downdate, call)
    return call["utilities"]  # type: ignore[no-any-return]


def score_blocks(
    criterion: str,
    covariance: Floating,
    inputs: ScoreInputs,
    *,
    variance: Float64,
    rows: Indices | None = None,
    columns: Indices | None = None,
    evaluation_variance: Float64 | None = None,
) -> Float64:
    r"""Utilities of candidates for a matrix-valued kernel: every covariance is a k x k block.

    With ``G_y = (S(c, c) + noise_c I)^-1 label_scale (e_y - B(c))`` and ``f+ = F(x) + S(x, c) G_y``
    the label criteria are those of `score_features`; `variance_reduction` and `epig` are the trace
    and the log-determinant of docs/method.md, section 6, over k, so that ``K (x) I_k`` is worth
    what the scalar kernel K is. O(k^3) multiply-adds and O(k^2) exponentials for each pair.

    Parameters
    ----------
    covariance : (B_c k, B_x k) float
        Block ``rows[i]``, ``columns[j]`` of it is S(c_i, x_j), entry (a, b) being the covariance of
        output a of c_i and output b of x_j. Its dtype is the compute type.
    inputs : ScoreInputs
        Everything else.
    rows, columns : (N_c,), (N_x,) int64, optional
        Default: blocks in the order of candidates and evaluation points. With the covariance of
        all points, pass `candidates` and `evaluation`.
    variance : (N_c, k, k) float64
        S(c, c) of each candidate; the lower triangle is read.
    evaluation_variance : (N_x, k, k) float64
        S(x, x) of each evaluation point; `epig` only.

    Returns
    -------
    (N_c,) float64
        Utilities; larger = query first. The blocks S(c, c) are factored in float64; in float32 the
        products with their inverses lose what S / noise exceeds 1 by.

    Raises
    ------
    ValueError
        As `score_features`, and where a variance plus its noise is not positive definite.
    """
    call = _call(criterion, inputs, variance)
    _core.score_blocks(
        _floating(covariance, "covariance"),
        None if rows is None else _indices(rows),
        None if columns is None else _indices(columns),
        None if evaluation_variance is None else _float64(evaluation_variance),
        call,
    )
    return call["utilities"]  # type: ignore[no-any-return]


def condition_features(psi: Floating, U: Float64, C: Float64) -> None:
    """``psi <- psi - (psi U^T) C`` in place: conditioning in weight space, rank b.

    psi (N, d) float; U, C (b, d) float64; products and sums in float64, rounded to psi's dtype
    once.
    """
    _core.condition_features(_in_place(psi, "psi"), _float64(U), _float64(C))


def condition_dense(S: Floating, V: Float64) -> None:
    """``S <- S - V^T V`` in place: conditioning in function space, rank b.

    S (N, N) float, symmetric before and bitwise symmetric after; V (b, N) float64. Products and
    sums in float64, rounded to the type of S once.
    """
    _core.condition_dense(_in_place(S, "S"), _float64(V))


def whiten(features: Floating, W: Float64) -> Floating:
    """``psi = features W^T``, (N, d) in the features' dtype; W (d, d) float64, sums in float64."""
    features = _floating(features, "features")
    psi = np.empty(features.shape, dtype=features.dtype)
    _core.whiten(features, _float64(W), psi)
    return psi


def product(X: Floating, B: Float64) -> Float64:
    """``X B``, (N, k) float64; X (N, d) float, B (d, k) float64, products and sums in float64."""
    X, B = _floating(X, "X"), _float64(B)
    Y = np.empty((X.shape[0], B.shape[-1]), dtype=np.float64)
    _core.product(X, B, Y)
    return Y


def weighted_gram(X: Floating, weights: Float64) -> Float64:
    """``sum_i weights_i x_i x_i^T``, (d, d) float64, for X (N, d) float; computed in float64."""
    X = _floating(X, "X")
    gram = np.empty((X.shape[-1], X.shape[-1]), dtype=np.float64)
    _core.weighted_gram(X, _float64(weights), gram)
    return gram


def quadratic_form(X: Floating, G: Float64) -> Float64:
    """``x_i^T G x_i``, (N,) float64, for X (N, d) float, G (d, d) float64; computed in float64."""
    X = _floating(X, "X")
    q = np.empty(X.shape[:1], dtype=np.float64)
    _core.quadratic_form(X, _float64(G), q)
    return q


def squared_norms(X: Floating, out: Float64 | None = None) -> Float64:
    """``|x_i|^2``, (N,) float64, in `out` if given; X (N, d) float, all sums in float64."""
    X = _floating(X, "X")
    norms = np.empty(X.shape[:1], dtype=np.float64) if out is None else _in_place(out, "out")
    _core.squared_norms(X, norms)
    return norms


def downdate_moments(
    psi: Floating, g: Float64, h: Float64, g_G_g: float, D: float, q: Float64, s: Float64
) -> None:
    """One sequential pick of `variance_reduction` without pairs, in one pass over psi.

    With ``alpha_x = <psi_x, g>``: ``q_x -= 2 alpha_x <psi_x, h> / D - alpha_x^2 gGg / D^2`` and
    ``s_x -= alpha_x^2 / D``. psi (N, d) float; g, h (d,) float64; q, s (N,) float64, in place.
    Products and sums in float64: these updates subtract.
    """
    _core.downdate_moments(
        _floating(psi, "psi"),
        _float64(g),
        _float64(h),
        g_G_g,
        D,
        _in_place(q, "q"),
        _in_place(s, "s"),
    )


def cholesky(A: Float64) -> Float64:
    """Lower factor L of ``A = L L^T`` (n, n) float64; only the lower triangle of A is read.

    Raises
    ------
    ValueError
        A is not positive definite; the message names the row at which that shows.
    """
    L = np.array(A, dtype=np.float64, order="C")
    _core.cholesky(L)
    return L


def triangular_solve(L: Float64, B: Float64, *, transpose: bool = False) -> Float64:
    """``L^-1 B``, or ``L^-T B`` when `transpose`; L (n, n) lower triangular, B (n, m), float64."""
    X = np.array(B, dtype=np.float64, order="C")
    _core.triangular_solve(_float64(L), X, transpose)
    return X


# --- Contractions of per-sample gradients ---


def _factor(
    name: str, data: Floating, positions: Indices, columns: Indices
) -> tuple[Floating, Indices, Indices]:
    return _floating(data, name), _indices(positions), _indices(columns)


def sketch_add(values: Floating, start: int, sign_key: int, shift_key: int, out: Floating) -> None:
    """Add the count-sketch of vectors to `out`, in place.

    Entry p of a row is parameter ``start + p`` of a gradient: bucket
    ``(start + p + shift) mod dim`` with one shift per run of `dim` parameters and the sign of a bit
    of its own, all from SplitMix64 (`ntkfast._ntk.sketch` defines them).

    values (n, m), out (n, dim), both float32 or both float64, summed in that type; sign_key,
    shift_key in [0, 2^64).
    """
    _core.sketch_add(_floating(values, "values"), start, sign_key, shift_key, _in_place(out, "out"))


def sketch_gradients(
    left: Floating,
    left_positions: Indices,
    left_columns: Indices,
    right: Floating,
    right_positions: Indices,
    right_columns: Indices,
    start: int,
    sign_key: int,
    shift_key: int,
    out: Floating,
    *,
    groups: int = 1,
) -> None:
    r"""Add the count-sketches of per-sample weight gradients to `out`, in place.

    The gradient of sample i, ``G[r, c] = sum_t L[t, r] R[t, c]`` flattened row by row from
    parameter `start` on, is formed a strip at a time and added to row i as by `sketch_add`; it
    never exists in memory. A factor is ``L[t, r] = left[i, left_positions[t] + left_columns[r]]``,
    so that the windows of a convolution need not be copied out of its input.

    Parameters
    ----------
    left, right : (n, a), (n, b) float
        Numbers the factors of each sample are taken from; float32 or float64, which is also the
        type of all products and sums.
    left_positions, right_positions : (T,) int64
        Offsets of the T positions, at least 0.
    left_columns, right_columns : (groups rows,), (groups size,) int64
        Offsets of the rows and columns of the gradient, at least 0.
    start : int
        Index of the gradient's first entry among all parameters.
    sign_key, shift_key : int
        Keys of the sketch, in [0, 2^64).
    out : (n, dim) float
        The sketches, of the type of `left`.
    groups : int
        The columns of both factors fall into this many groups, and only columns of the same group
        are multiplied: the gradient is (groups rows, size), as of a grouped convolution.

    Raises
    ------
    ValueError
        Wrong shapes or types, or offsets that leave `left` or `right`.
    """
    _core.sketch_gradients(
        _factor("left", left, left_positions, left_columns),
        _factor("right", right, right_positions, right_columns),
        groups,
        start,
        sign_key,
        shift_key,
        _in_place(out, "out"),
    )


def form_gradients(
    left: Floating,
    left_positions: Indices,
    left_columns: Indices,
    right: Floating,
    right_positions: Indices,
    right_columns: Indices,
    out: Floating,
    *,
    groups: int = 1,
    add: bool = False,
) -> None:
    """Store the per-sample weight gradients of `sketch_gradients` in `out`, or `add` them to it.

    out (n, groups rows size) float32 or float64, the type of `left` and of all products and sums;
    the factors and errors are those of `sketch_gradients`.
    """
    _core.form_gradients(
        _factor("left", left, left_positions, left_columns),
        _factor("right", right, right_positions, right_columns),
        groups,
        _in_place(out, "out"),
        add,
    )


def gram_add(A: Floating, B: Floating, out: Floating, *, lower: bool = False) -> None:
    """``out += A B^T`` in place: A (n, K), B (m, K), out (n, m), float32 or float64 throughout.

    Products and sums in that type. With `lower`, entries above the diagonal are left undefined,
    which halves the work of a symmetric product.
    """
    _core.gram_add(_floating(A, "A"), _floating(B, "B"), _in_place(out, "out"), lower)


def gram_ghost(
    left: Floating,
    right: Floating,
    left2: Floating,
    right2: Floating,
    out: Floating,
    *,
    lower: bool = False,
) -> None:
    """``out[i, j] += sum_ts <left[i, t], left2[j, s]> <right[i, t], right2[j, s]>`` in place.

    The inner products of the weight gradients ``left_i^T right_i`` and ``left2_j^T right2_j``,
    without the gradients: two tiles of products over pairs of positions are multiplied and summed
    in cache.

    left (n, T, p), right (n, T, q), left2 (m, S, p), right2 (m, S, q), out (n, m), float32 or
    float64 throughout and computed in that type. With several left factors for one right one,
    left (R, n, T, p) and left2 (R2, m, S, p), out (n R, m R2) has the products of all pairs of
    them, rows and columns sample by sample; the right factors are multiplied once for all. With
    `lower`, entries above the diagonal are left undefined.
    """

    def combinations(array: Floating, name: str) -> Floating:
        array = _floating(array, name)
        return np.ascontiguousarray(array[None] if array.ndim == 3 else array)

    _core.gram_ghost(
        combinations(left, "left"),
        np.ascontiguousarray(_floating(right, "right")),
        combinations(left2, "left2"),
        np.ascontiguousarray(_floating(right2, "right2")),
        _in_place(out, "out"),
        lower,
    )
