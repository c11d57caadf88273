"""Query strategies for scikit-activeml 1.x: `LookAhead`, and `FastEER` for `MonteCarloEER`."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import numpy as np

from ..arrays import ArgumentTypeError, ArgumentValueError, Array, as_choice, as_positive
from ..loss import softmax
from ..selection import utilities
from ._surrogate import (
    Kernel,
    Surrogate,
    check_criterion,
    check_kernel,
    host,
    kernel_matrix,
    kernel_model,
    linearised,
    network_model,
    network_of,
    with_two_classes,
)

host("skactiveml", "'ntkfast[skactiveml]'")

from skactiveml.base import (  # noqa: E402
    SingleAnnotatorPoolQueryStrategy,
    SkactivemlClassifier,
)
from skactiveml.pool import MonteCarloEER  # noqa: E402
from skactiveml.utils import (  # noqa: E402
    MISSING_LABEL,
    ExtLabelEncoder,
    check_equal_missing_label,
    check_type,
    is_labeled,
    rand_argmax,
    simple_batch,
)
from sklearn.base import clone  # noqa: E402
from sklearn.utils.validation import check_array, check_is_fitted  # noqa: E402

__all__ = ["FastEER", "KernelRidgeClassifier", "LookAhead"]


class LookAhead(SingleAnnotatorPoolQueryStrategy):  # type: ignore[misc]
    """Query what would change the predictions everywhere for the better, without retraining.

    Parameters
    ----------
    criterion : str, default="auto"
        A name of `ntkfast.criteria`, but for those that need targets. "auto":
        fisher_herding for the kernels "ntk" and "features" (of k x k blocks
        fisher_variance_reduction), variance_reduction for the others.
    kernel : str or callable, default="rbf"
        The model whose retraining is foreseen:

        - "rbf", "linear", any other kernel of `sklearn.metrics.pairwise`, or a callable
          ``kernel(A, B)`` that returns the matrix (len(A), len(B)), for example one of
          `sklearn.gaussian_process.kernels`: kernel ridge regression on one-hot labels. The
          classifier tells only how likely each label of a candidate is.
        - "ntk": the network of a `SkorchClassifier` (or of a skorch net in a `SklearnClassifier`),
          linearised: its tangent kernel, from its outputs.
        - "features": the classifier, taken as linear in `X` (logistic regression on embeddings, the
          last layer of a network), from the logarithms of its probabilities. Where
          ``clf.predict_proba`` returns ``(P, embeddings)``, in the embeddings.
    ridge : float or "auto", default="auto"
        Noise of a label, in units of the kernel; see `ntkfast.Posterior.from_features`.
    mode : {"sequential", "top"}, default="sequential"
        How batches are built: with a look at the picks made so far, or the best ones alone; see
        `ntkfast.select`.
    kernel_params : dict, optional
        Keywords of the kernel (``{"gamma": 0.1}``), with "ntk" of `ntkfast.LookAheadLearner`
        (``{"sketch": "auto", "layers": "last"}``), with "features" of ``clf.predict_proba``
        (``{"extra_outputs": "emb"}`` for a `SkorchClassifier` whose `forward_outputs` has one).
    criterion_params : dict, optional
        What the criterion reads besides, keywords of `ntkfast.select`: ``{"temperature": 0.5}``,
        ``{"radius": 0.7}``, ...
    missing_label : scalar or string or np.nan or None, default=np.nan
        Value to represent a missing label.
    random_state : int or RandomState or None, default=None
        Breaks ties.

    Notes
    -----
    The kernels but "ntk", "features" and "linear" take O(N^2) memory for N = len(X).

    Examples
    --------
    >>> from ntkfast.integrations.skactiveml import KernelRidgeClassifier, LookAhead
    >>> clf = KernelRidgeClassifier(classes=["no", "yes"], missing_label=None)
    >>> strategy = LookAhead("expected_entropy", missing_label=None)
    >>> strategy.query([[0.0], [1.0], [4.0]], ["no", "yes", None], clf)
    array([2])
    """

    def __init__(
        self,
        criterion: str = "auto",
        kernel: Kernel = "rbf",
        ridge: float | Literal["auto"] = "auto",
        mode: Literal["sequential", "top"] = "sequential",
        kernel_params: Mapping[str, Any] | None = None,
        criterion_params: Mapping[str, Any] | None = None,
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(missing_label=missing_label, random_state=random_state)
        self.criterion = criterion
        self.kernel = kernel
        self.ridge = ridge
        self.mode = mode
        self.kernel_params = kernel_params
        self.criterion_params = criterion_params

    def query(
        self,
        X: Any,
        y: Any,
        clf: Any,
        fit_clf: bool = True,
        candidates: Any = None,
        batch_size: int = 1,
        return_utilities: bool = False,
        X_eval: Any = None,
    ) -> Any:
        """Choose the samples to be labelled.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            All samples, labelled and unlabelled.
        y : array-like of shape (n_samples,)
            Their labels, `missing_label` where there is none.
        clf : skactiveml.base.SkactivemlClassifier
            The classifier; not changed.
        fit_clf : bool, default=True
            Whether a copy of `clf` is fitted on `X` and `y` first, or `clf` is already fitted.
        candidates : None or array-like of int (n_candidates,) or array-like (n_candidates, ...)
            None: all unlabelled samples of `X`; indices into `X`; or samples. Labelled samples
            given here are scored as if their label were asked for once more.
        batch_size : int, default=1
            Number of samples to choose; all candidates if there are fewer (with a warning).
        return_utilities : bool, default=False
            Whether to return the utilities too.
        X_eval : array-like of shape (n_eval, ...), optional
            The samples on which predictions count; default: `X`.

        Returns
        -------
        query_indices : ndarray (batch_size,)
            Indices into `X`; into `candidates` if those are samples.
        utilities : ndarray (batch_size, n_samples) or (batch_size, n_candidates)
            Utilities at the time of each pick, with the same indexing; NaN for what is no candidate
            (labelled) or was picked before. Larger is better.

        Raises
        ------
        ValueError, TypeError
            There are no candidates; an argument that does not fit, by name.
        """
        X, y, candidates, batch_size, return_utilities = self._validate_data(
            X, y, candidates, batch_size, return_utilities, reset=True
        )
        X_cand, mapping = self._transform_candidates(candidates, X, y)
        check_type(clf, "clf", SkactivemlClassifier)
        check_equal_missing_label(clf.missing_label, self.missing_label_)
        check_type(fit_clf, "fit_clf", bool)
        check_criterion(self.criterion)
        check_kernel(self.kernel, networks=True)
        as_choice("mode", self.mode, ("sequential", "top"))
        if len(X_cand) == 0:
            raise ValueError("y has no missing label: there is nothing left to query")
        clf = clone(clf).fit(X, y) if fit_clf else deepcopy(clf)
        if not hasattr(clf, "classes_"):
            clf.predict_proba(X[:1])  # a network names its classes now; others are not fitted

        points, cand = (X, mapping) if mapping is not None else _appended(X, X_cand)
        evaluation = np.arange(len(X))
        if X_eval is not None:
            points, evaluation = _appended(points, check_array(X_eval, allow_nd=True))
        surrogate = self._surrogate(clf, points, X, y)

        place = np.full(len(points), -1)
        place[cand] = np.arange(len(cand)) if mapping is None else mapping
        width = len(cand) if mapping is None else len(X)
        rounds: list[Array] = []

        def choose(left: Array, utility: Array) -> int:
            row = np.full(width, np.nan)
            row[place[left]] = utility
            rounds.append(row)
            best = rand_argmax(row, random_state=self.random_state_)[0]
            return int(np.flatnonzero(place[left] == best)[0])

        picked, _ = surrogate.select(
            self.criterion,
            cand,
            batch_size,
            self.mode,
            self.criterion_params,
            evaluation=evaluation,
            choose=choose,
        )
        return (place[picked], np.array(rounds)) if return_utilities else place[picked]

    def _surrogate(self, clf: Any, points: Any, X: Any, y: Any) -> Surrogate:
        """Model of the points: kernel ridge regression, the network, or the classifier."""
        labeled, classes, targets = _labels(clf, X, y, self.missing_label_)
        k = len(classes)
        if self.kernel == "ntk":
            network, loss = network_of(clf)
            k = _probabilities(clf.predict_proba(X[:1]))[0].shape[1]
            if hasattr(clf, "estimator_") and not np.array_equal(classes, np.arange(k)):
                raise ArgumentValueError(
                    "clf",
                    "clf hands its net the labels as they are, which must be the numbers of the "
                    f"net's outputs, and it has the classes {classes.tolist()}: use a "
                    "SkorchClassifier, which numbers them",
                )
            dtype = getattr(clf, "sample_dtype", None)
            points, labeled = (a if dtype is None else a.astype(dtype) for a in (points, labeled))
            return Surrogate(
                network_model(
                    network, loss, self.kernel_params, points, labeled, targets, k, self.ridge
                )
            )
        if self.kernel == "features":
            keywords = dict(self.kernel_params or {})
            P, features = _probabilities(clf.predict_proba(points, **keywords))
            if features is None:
                features = points
            inside = np.arange(len(X))[is_labeled(y, missing_label=self.missing_label_)]
            return Surrogate(
                linearised(features, features[inside], P, P[inside], targets, self.ridge)
            )
        post = kernel_model(
            self.kernel, self.kernel_params, points, labeled, targets, k, self.ridge
        )
        return Surrogate(
            post,
            lambda of: with_two_classes(_probabilities(clf.predict_proba(points[of]))[0]),
            network=False,
        )


def _appended(points: Any, more: Any) -> tuple[Any, Array]:
    """Append points; return all, and the indices of the new ones."""
    if points.shape[1:] != more.shape[1:]:
        raise ValueError(
            f"samples have shape {more.shape[1:]}, and those of X have {points.shape[1:]}"
        )
    return np.concatenate([points, more]), np.arange(len(points), len(points) + len(more))


def _labels(clf: Any, X: Any, y: Any, missing_label: Any) -> tuple[Any, Array, Array]:
    """Return the labelled samples, the classes, and the number of each label's class."""
    encoder = ExtLabelEncoder(classes=clf.classes_, missing_label=missing_label)
    encoded = encoder.fit_transform(y)
    return X[encoded >= 0], clf.classes_, encoded[encoded >= 0].astype(np.int64)


def _probabilities(returned: Any) -> tuple[Array, Any]:
    """Split what predict_proba returns into P and embeddings, or None."""
    if isinstance(returned, tuple):
        return np.asarray(returned[0], np.float64), returned[1]
    return np.asarray(returned, np.float64), None


class KernelRidgeClassifier(SkactivemlClassifier):  # type: ignore[misc]
    r"""Kernel ridge regression on one-hot labels, with class probabilities by soft-max.

    .. math::

        F(x) = K(x, L) (K_{LL} + \mathrm{ridge}\, W^{-1})^{-1} T, \qquad
        P(x) = \mathrm{softmax}(F(x) / \mathrm{temperature})

    for labelled samples L with one-hot labels T and weights W. Without labels F = 0, P is uniform.

    Parameters
    ----------
    kernel : str or callable, default="rbf"
        A kernel of `sklearn.metrics.pairwise`, or ``kernel(A, B)`` that returns the matrix.
    ridge : float, default=0.01
        Noise of a label, in units of the kernel.
    temperature : float, default=0.1
        Divides F inside the soft-max: F is near one-hot, whose soft-max would be flat.
    kernel_params : dict, optional
        Keywords of the kernel.
    classes, missing_label, cost_matrix, random_state
        As of every `SkactivemlClassifier`.
    """

    def __init__(
        self,
        kernel: Kernel = "rbf",
        ridge: float = 0.01,
        temperature: float = 0.1,
        kernel_params: Mapping[str, Any] | None = None,
        classes: Any = None,
        missing_label: Any = MISSING_LABEL,
        cost_matrix: Any = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            classes=classes,
            missing_label=missing_label,
            cost_matrix=cost_matrix,
            random_state=random_state,
        )
        self.kernel = kernel
        self.ridge = ridge
        self.temperature = temperature
        self.kernel_params = kernel_params

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> KernelRidgeClassifier:
        """Fit to the labelled samples; those of weight 0 are left out.

        Parameters
        ----------
        X : array-like (n_samples, n_features)
        y : array-like (n_samples,)
            Labels, `missing_label` where there is none.
        sample_weight : array-like (n_samples,), optional
            Weights >= 0.

        Returns
        -------
        KernelRidgeClassifier
            Itself.
        """
        check_kernel(self.kernel, networks=False)
        ridge = as_positive("ridge", self.ridge)
        as_positive("temperature", self.temperature)
        X, y, sample_weight = self._validate_data(X, y, sample_weight)
        used = y >= 0
        if sample_weight is not None:
            weight = _weights("sample_weight", sample_weight, len(y))
            used &= weight > 0
            self.noise_ = ridge / weight[used]
        else:
            self.noise_ = np.full(used.sum(), ridge)
        self.X_, self.targets_ = X[used], y[used].astype(np.int64)
        self.dual_ = np.zeros((0, len(self.classes_)))
        if used.any():
            K = kernel_matrix(self.kernel, self.kernel_params, self.X_, self.X_)
            one_hot = np.eye(len(self.classes_))[self.targets_]
            self.dual_ = np.linalg.solve(K + np.diag(self.noise_), one_hot)
        return self

    def decision_function(self, X: Any) -> Array:
        """F (n_samples, n_classes), columns in the order of `classes_`."""
        check_is_fitted(self, "dual_")
        X = check_array(X)
        if len(self.X_) == 0:
            return np.zeros((len(X), len(self.classes_)))
        F: Array = kernel_matrix(self.kernel, self.kernel_params, X, self.X_) @ self.dual_
        return F

    def predict_proba(self, X: Any) -> Array:
        """P (n_samples, n_classes), columns in the order of `classes_`."""
        return softmax(self.decision_function(X) / self.temperature)


class FastEER(MonteCarloEER):  # type: ignore[misc]
    r"""`skactiveml.pool.MonteCarloEER` of a `KernelRidgeClassifier`, in closed form.

    The same parameters and the same utilities: minus the expected loss of the classifier fitted
    again with the candidate c under each label y, summed over the evaluation samples x,

    .. math::

        u(c) = -\sum_y P(y|c) \sum_x w(x)\, \mathrm{loss}(P^+_{c,y}(x)), \qquad
        P^+_{c,y}(x) = \mathrm{softmax}\bigl((F(x) + a(x, c)\, (e_y - F(c))) / T\bigr)

    with the classifier's temperature T, a(x, c) = S(x, c) / (S(c, c) + ridge / w_c) and the
    posterior covariance S of its kernel (Roy and McCallum, ICML 2001; Mohamadi, Bae and Sutherland,
    NeurIPS 2022, eq. 12), all of it in float64. `MonteCarloEER` fits n_candidates x n_classes
    classifiers, this none.

    Parameters
    ----------
    method : {"misclassification_loss", "log_loss"}, default="misclassification_loss"
        The expected loss: of the 0/1 loss or `cost_matrix`, or the entropy.
    cost_matrix, subtract_current, missing_label, random_state
        As of `MonteCarloEER`. A `cost_matrix` other than a multiple of the 0/1 loss takes the time
        of one soft-max per candidate, label and evaluation sample.

    Examples
    --------
    >>> from ntkfast.integrations.skactiveml import FastEER, KernelRidgeClassifier
    >>> clf = KernelRidgeClassifier(classes=[0, 1], kernel="linear")
    >>> FastEER("log_loss").query([[0.0, 1], [1, 0], [1, 2]], [0, 1, float("nan")], clf)
    array([2])
    """

    def query(
        self,
        X: Any,
        y: Any,
        clf: Any,
        fit_clf: bool = True,
        ignore_partial_fit: bool = True,
        sample_weight: Any = None,
        candidates: Any = None,
        sample_weight_candidates: Any = None,
        X_eval: Any = None,
        sample_weight_eval: Any = None,
        batch_size: int = 1,
        return_utilities: bool = False,
    ) -> Any:
        """Choose the samples to be labelled, as `MonteCarloEER.query` does.

        Parameters
        ----------
        X, y, candidates, batch_size, return_utilities
            As of `LookAhead.query`. A labelled sample among the candidates is scored with its label
            replaced.
        clf : KernelRidgeClassifier
            The classifier; not changed.
        fit_clf : bool, default=True
            Whether a copy of `clf` is fitted first, or `clf` is already fitted. `MonteCarloEER`
            cannot do the latter.
        ignore_partial_fit : bool, default=True
            Has no effect: there is no `partial_fit`.
        sample_weight, sample_weight_candidates : array-like, optional
            Weights of `X`, and of the candidates if those are samples.
        X_eval : array-like (n_eval, n_features), optional
            Evaluation samples; default: `X`, labelled ones and the candidate included.
        sample_weight_eval : array-like, optional
            Weights of the evaluation samples. They count for "log_loss" too, where `MonteCarloEER`
            ignores them.

        Returns
        -------
        query_indices : ndarray (batch_size,)
            Indices into `X`; into `candidates` if those are samples.
        utilities : ndarray (batch_size, n_samples) or (batch_size, n_candidates)
            With the same indexing; NaN for what is no candidate or was picked before.

        Raises
        ------
        TypeError
            `clf` is no `KernelRidgeClassifier`: its retraining has no closed form here.
        """
        X, y, _, clf, candidates, _, _, _, batch_size, return_utilities = self._validate_data(
            X,
            y,
            sample_weight,
            clf,
            candidates,
            sample_weight_candidates,
            X_eval,
            sample_weight_eval,
            batch_size,
            return_utilities,
        )
        X_cand, mapping = self._transform_candidates(candidates, X, y)
        check_type(fit_clf, "fit_clf", bool)
        check_type(ignore_partial_fit, "ignore_partial_fit", bool)
        if not isinstance(clf, KernelRidgeClassifier):
            raise ArgumentTypeError(
                "clf",
                f"clf is a {type(clf).__name__}; FastEER knows in closed form what a "
                "KernelRidgeClassifier would predict: use that, or LookAhead, which takes any",
            )
        if len(X_cand) == 0:
            raise ValueError("y has no missing label: there is nothing left to query")
        if mapping is not None and sample_weight_candidates is not None:
            raise ArgumentValueError(
                "sample_weight_candidates",
                "sample_weight_candidates goes with candidates that are samples; weights of those "
                "in X are in sample_weight",
            )
        weight = _weights("sample_weight", sample_weight, len(X))
        w_cand = (
            weight[mapping]
            if mapping is not None
            else _weights("sample_weight_candidates", sample_weight_candidates, len(X_cand))
        )
        if X_eval is not None:
            X_eval = check_array(X_eval)
        w_eval = _weights(
            "sample_weight_eval", sample_weight_eval, len(X if X_eval is None else X_eval)
        )
        if fit_clf:
            clf = clone(clf).fit(X, y, None if sample_weight is None else weight)
        else:
            check_is_fitted(clf, "dual_")
        self._validate_cost_matrix(len(clf.classes_))

        if X_eval is None and mapping is not None:
            points, cand, evaluation = X, mapping, np.arange(len(X))
        else:
            evaluated = X if X_eval is None else X_eval
            points, cand = _appended(evaluated, X_cand)
            evaluation = np.arange(len(evaluated))
        P = clf.predict_proba(X_cand)
        scored = _Scored(self, points, evaluation, w_eval)
        result = scored.utilities(clf, cand, P, w_cand)
        if mapping is not None and fit_clf:
            for i in np.flatnonzero(is_labeled(y[mapping], missing_label=self.missing_label_)):
                others = np.arange(len(X)) != mapping[i]
                without = (
                    clone(clf)
                    .set_params(classes=clf.classes_)
                    .fit(X[others], y[others], None if sample_weight is None else weight[others])
                )
                one = slice(i, i + 1)
                result[one] = scored.utilities(without, cand[one], P[one], w_cand[one])
        if self.subtract_current:
            result += scored.loss(clf.predict_proba(points[evaluation]))
        if mapping is not None:
            result, found = np.full(len(X), np.nan), result
            result[mapping] = found
        return simple_batch(
            result, self.random_state_, batch_size=batch_size, return_utilities=return_utilities
        )


def _weights(name: str, weight: Any, n: int) -> Array:
    """Weights (n,), finite and >= 0; default: 1."""
    if weight is None:
        return np.ones(n)
    numbers: Array = check_array(weight, ensure_2d=False, dtype=np.float64, input_name=name)
    if numbers.shape != (n,) or (numbers < 0).any():
        raise ArgumentValueError(
            name, f"{name} must be {n} numbers >= 0; got shape {numbers.shape}"
        )
    return numbers


class _Scored:
    """Expected losses on the evaluation points, as a strategy defines them."""

    def __init__(self, strategy: FastEER, points: Array, evaluation: Array, weight: Array) -> None:
        self.points, self.evaluation, self.weight = points, evaluation, weight
        self.log_loss = strategy.method == "log_loss"
        self.costs = np.asarray(strategy.cost_matrix_, np.float64)
        unit = 1 - np.eye(len(self.costs))
        self.scale = float(self.costs.max(initial=0.0))
        self.is_zero_one = self.scale > 0 and np.array_equal(self.costs, self.scale * unit)

    def loss(self, P: Array) -> Any:
        """Weighted loss, summed over the evaluation points, of P (..., N_x, k)."""
        if self.log_loss:
            each = -(P * np.log(np.maximum(P, np.finfo(np.float64).tiny))).sum(-1)
        else:
            each = (P @ self.costs).min(-1)
        return (each * self.weight).sum(-1)

    def utilities(self, clf: Any, candidates: Array, P: Array, weight: Array) -> Array:
        """Minus the expected loss (N_c,) after each candidate's label.

        Of candidates of weight 0, whose label changes nothing, minus the loss as it is.
        """
        k = len(clf.classes_)
        post = kernel_model(
            clf.kernel,
            clf.kernel_params,
            self.points,
            clf.X_,
            clf.targets_,
            k,
            clf.ridge,
            noise=clf.noise_,
        )
        with np.errstate(divide="ignore"):
            noise = clf.ridge / weight
        if k > 1 and (self.log_loss or self.is_zero_one):
            found: Array = utilities(
                post,
                "expected_entropy" if self.log_loss else "expected_error",
                candidates,
                self.evaluation,
                label_probs=P,
                weights=self.weight,
                noise=noise,
                temperature=clf.temperature,
            )
            return found if self.log_loss else self.scale * found
        F = post.mean[:, :k]
        a = post.covariance(self.evaluation, candidates)
        a /= post.variance[candidates] + noise
        changes = np.eye(k) - F[candidates][:, None]  # r(c, y), by candidate and label
        result = np.empty(len(candidates))
        for i, (step, change) in enumerate(zip(a.T, changes, strict=True)):
            after = F[self.evaluation] + step[:, None] * change[:, None]  # (k, N_x, k)
            result[i] = -(P[i] @ self.loss(_softmax(after / clf.temperature)))
        return result


def _softmax(z: Array) -> Array:
    P: Array = softmax(z.reshape(-1, z.shape[-1])).reshape(z.shape)
    return P
