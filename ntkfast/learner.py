"""Active learning around a torch model: fit, query, update, predict."""

from __future__ import annotations

import copy
import functools
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from .arrays import (
    ArgumentTypeError,
    ArgumentValueError,
    Array,
    Library,
    as_choice,
    as_floats,
    as_indices,
    as_numpy,
    as_probabilities,
    as_weights,
    library_of,
)
from .criteria import automatic, find
from .lock import Lock
from .loss import Loss, as_loss
from .ntk import EmpiricalNTK, InputFields, SketchName, as_tensor
from .posterior import Posterior, group_of, missing, missing_for
from .selection import Choose, Precision, Selection, Similarity, select

__all__ = ["LookAheadLearner"]


@dataclass(frozen=True)
class _Fitted:
    """What a fit has made, all of it at once; only the posterior changes later."""

    posterior: Posterior
    ntk: EmpiricalNTK
    classes: Array | None
    evaluation: Array | None
    library: Library  # of the pool


class LookAheadLearner:
    """Ask a trained network for the labels it would learn most from, and learn them without SGD.

    `fit` linearises the network (its empirical tangent kernel) and conditions on the labelled data;
    `query` picks points of the pool; `update` conditions on their labels. The network itself is
    only evaluated: train it again whenever there are enough new labels, and call `fit` again.

    Parameters
    ----------
    model : torch.nn.Module
        The trained network, k outputs per point.
    loss : {"cross_entropy", "squared"}
        What it was trained with. With squared loss and one output the labels are numbers: a
        regression (with several, give the targets to `Posterior`).
    criterion : str
        A name of `ntkfast.criteria`; "auto": fisher_herding for classes, or with
        ``outputs="full"`` or a `group` fisher_variance_reduction; variance_reduction for a
        regression. What it needs besides (the targets of `expected_log_loss`) is given to `query`.
    evaluation_size : int or None
        The criterion sums over so many points of the pool, drawn at random once per `fit`; None:
        over the whole pool.
    mode : {"sequential", "top"}
        How batches are built, see `ntkfast.select`.
    ridge, label_scale, residual_temperature
        See `Posterior.from_features`.
    classes : sequence, optional
        Label of each output. Default: 0, ..., k - 1 for integer labels, else the sorted labels of
        `fit`, which then must be k different ones. None for a regression.
    seed : int
        Of the evaluation points and of the sketch.
    outputs, draws, sketch, dim, relative_error, layers, inputs, memory_budget
        See `EmpiricalNTK`. ``sketch="auto"`` is fitted to the first points of the pool at every
        `fit`.
    group : torch.distributed.ProcessGroup, optional
        The pool is shared by the ranks of this group, each of which has the same model and makes
        every call. `fit` takes the labelled points of all, the same on every rank, and the rank's
        own part of the pool; pool points are numbered over all ranks, see
        `Posterior.from_features`. ``sketch="auto"`` is refused.

    Attributes
    ----------
    posterior : Posterior
        State after `fit` and `update`; its points are the pool.
    classes_ : ndarray (k,) or None
        Label of each output, known after `fit`; None for a regression.

    Examples
    --------
    >>> import torch, ntkfast as nf
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> X_labeled, X_pool = torch.randn(9, 2), torch.randn(100, 2)
    >>> y_labeled = model(X_labeled).argmax(1)  # as if it had been trained on them
    >>> learner = nf.LookAheadLearner(model, label_scale=4.0).fit(X_labeled, y_labeled, X_pool)
    >>> picked = learner.query(20)
    >>> len(picked.indices)
    20
    >>> learner.update(picked.indices, torch.randint(3, (20,)))  # the labels that people gave
    >>> learner.predict(X_pool).shape
    torch.Size([100, 3])
    """

    def __init__(
        self,
        model: Any,
        *,
        loss: Loss = "cross_entropy",
        criterion: str = "auto",
        evaluation_size: int | None = 4096,
        mode: Literal["sequential", "top"] = "sequential",
        ridge: float | Literal["auto"] = "auto",
        label_scale: float | Literal["auto"] = "auto",
        residual_temperature: float | Literal["auto"] = "auto",
        classes: Sequence[Any] | None = None,
        seed: int = 0,
        outputs: Literal["sum", "single", "random", "full"] | int = "sum",
        draws: int = 1,
        sketch: SketchName | None = "sparse",
        dim: int = 4096,
        relative_error: float = 0.05,
        layers: Literal["last"] | Sequence[str] | None = None,
        inputs: InputFields = None,
        memory_budget: int | None = None,
        group: Any = None,
    ) -> None:
        as_loss(loss)
        if group is not None and sketch == "auto":
            raise ArgumentValueError(
                "sketch",
                'sketch="auto" is fitted to the first points of the pool, which are others on each '
                'rank of group; use "sparse"',
            )
        if criterion != "auto":
            find(criterion)
        as_choice("mode", mode, ("sequential", "top"))
        if evaluation_size is not None and (
            isinstance(evaluation_size, bool)
            or not isinstance(evaluation_size, (int, np.integer))
            or evaluation_size < 1
        ):
            raise ArgumentValueError(
                "evaluation_size",
                f"evaluation_size must be an int >= 1 or None; got {evaluation_size!r}",
            )
        self.loss: Loss = loss
        self._criterion = criterion
        self.evaluation_size = evaluation_size
        self.mode = mode
        self.ridge = ridge
        self.label_scale = label_scale
        self.residual_temperature = residual_temperature
        self.classes = classes
        self.seed = seed
        try:  # weakly: a group that is held after its destruction may abort the process
            self._group = None if group is None else weakref.ref(group)
        except TypeError:
            raise ArgumentTypeError(
                "group", f"group must be a process group of torch.distributed; got {group!r}"
            ) from None
        self._outputs = outputs
        self._new_ntk = functools.partial(
            EmpiricalNTK,
            model,
            outputs,
            draws=draws,
            sketch=sketch,
            dim=dim,
            relative_error=relative_error,
            seed=seed,
            layers=layers,
            inputs=inputs,
            memory_budget=memory_budget,
        )
        self.ntk = self._new_ntk()
        self._fitted: _Fitted | None = None
        self._lock = Lock()

    def __repr__(self) -> str:
        state = "not fitted" if self._fitted is None else repr(self._fitted.posterior)
        return f"<LookAheadLearner with {self.criterion} on {self.ntk!r}: {state}>"

    @property
    def posterior(self) -> Posterior:
        """State after `fit` and `update`; its points are the pool."""
        return self._state.posterior

    @property
    def group(self) -> Any:
        """The process group that shares the pool; None: there is none."""
        if self._group is None:
            return None
        group = self._group()
        if group is None:
            raise RuntimeError("the process group of this learner has been destroyed")
        return group

    @property
    def _state(self) -> _Fitted:
        if self._fitted is None:
            raise RuntimeError("call fit(X_labeled, y_labeled, X_pool) first")
        return self._fitted

    @property
    def classes_(self) -> Array | None:
        """Label of each output; None for a regression."""
        if self._fitted is None:
            raise AttributeError("classes_ is known after fit")
        return self._fitted.classes

    @property
    def criterion(self) -> str:
        """Name of the criterion; "auto" as long as nobody knows what it stands for.

        That is until `fit`, for squared loss: there the number of outputs tells classes from a
        regression.
        """
        if self._criterion != "auto":
            return self._criterion
        if self.loss == "cross_entropy":
            return automatic(classes=True, covers=self._covers)
        fitted = self._fitted
        if fitted is None:
            return "auto"
        return self._automatic(fitted.posterior)

    @property
    def _covers(self) -> bool:
        """Whether the kernel is scalar, and of one process."""
        return self._outputs != "full" and self._group is None

    def _automatic(self, posterior: Posterior) -> str:
        return automatic(classes=posterior._mean.shape[1] > 1, covers=self._covers)

    def __copy__(self) -> LookAheadLearner:
        """Return a learner of the same model with a state of its own."""
        twin = object.__new__(type(self))
        with self._lock:
            twin.__dict__ |= self.__dict__
            if self._fitted is not None:
                twin._fitted = replace(self._fitted, posterior=self._fitted.posterior.copy())
        twin.ntk, twin._lock = copy.copy(self.ntk), Lock()
        return twin

    def fit(self, X_labeled: Any, y_labeled: Any, X_pool: Any) -> LookAheadLearner:
        """Build the posterior of the pool given the labelled data. Trains nothing.

        With a model on a GPU the features stay and are worked on there. Only for a pool of numpy
        arrays, whose features are arrays too, a build without GPU kernels will do: it takes the
        CPU. Labels may be on either. The pool is read once.

        Parameters
        ----------
        X_labeled, X_pool : Tensor, ndarray, dict of them, Dataset or DataLoader
            Inputs of the model. `X_labeled` may be None, or empty, without labels.
        y_labeled : array (n,) or None
            Their labels, of any kind that `classes` names: integers, strings, ...; for a regression
            numbers, (n,) or (n, 1). Missing ones (None, NaN, NaT, `pandas.NA`, masked entries)
            mean that a point is not labelled: it is left out.

        Returns
        -------
        LookAheadLearner
            Itself.

        Raises
        ------
        ValueError
            Labels that do not fit the model's outputs; with cross-entropy a model that returns one
            logit, or probabilities instead of logits; probabilities with ``outputs="sum"``.

        Warns
        -----
        UserWarning
            How many labels are missing; labels that the network does not believe.
        """
        library = _library_of_inputs(X_pool)
        X_pool, X_labeled = self._kept_there(X_pool), self._kept_there(X_labeled)
        kept = library_of(next(self.ntk.model.parameters()))
        (y_labeled,) = kept.fetch(y_labeled=[] if y_labeled is None else y_labeled)
        with group_of(self.group, kept).together("fit", {}):
            # Its sketch is fitted to the pool, and counts once everything else is in order.
            ntk = self._new_ntk() if self.ntk.sketch == "auto" else self.ntk
            y_labeled, labelled = _without_missing("y_labeled", y_labeled)
            labels = targets = labeled_outputs = labeled_features = classes = None
            if len(labelled):
                if ntk is self.ntk and labelled.any():
                    labeled_outputs, labeled_features = ntk.outputs_and_features(X_labeled)
                else:
                    labeled_outputs = ntk.outputs(X_labeled)
                k = labeled_outputs.shape[1]
                self._check_width(k)
                labels, classes, targets = self._read_labels(y_labeled, k)
                if len(labeled_outputs) != len(labelled):
                    raise ArgumentValueError(
                        "y_labeled",
                        f"y_labeled has {len(labelled)} labels; X_labeled has "
                        f"{len(labeled_outputs)} points",
                    )
                self._refuse_shifted_labels(labels, labeled_outputs, labelled)
            elif X_labeled is not None and len(X_labeled):
                raise ArgumentValueError(
                    "y_labeled",
                    "y_labeled is empty, and X_labeled is not: labels are not read from a dataset "
                    "or loader, pass them as y_labeled",
                )
            outputs, features = ntk.outputs_and_features(X_pool)
            if labels is None:
                self._check_width(outputs.shape[1])
                _, classes, targets = self._read_labels([], outputs.shape[1])
            self._check_scale(outputs)
            self._check_features(features, outputs)
            if labelled.any():
                if labeled_features is None:
                    labeled_outputs, labeled_features = ntk.outputs_and_features(X_labeled)
                labeled_outputs = _rows(labeled_outputs, labelled)
                labeled_features = _rows(labeled_features, labelled)
            else:
                labeled_outputs = labeled_features = targets = None
        posterior = Posterior.from_features(
            features,
            outputs,
            labeled_features,
            labeled_outputs,
            targets,
            self.ridge,
            loss=self.loss,
            label_scale=self.label_scale,
            residual_temperature=self.residual_temperature,
            group=self.group,
        )
        N = len(posterior)
        evaluation: Array | None = None
        if self.evaluation_size is not None and self.evaluation_size < N:
            rng = np.random.default_rng(self.seed)
            evaluation = np.sort(rng.choice(N, self.evaluation_size, replace=False))
        with self._lock:
            self.ntk = ntk
            self._fitted = _Fitted(posterior, ntk, classes, evaluation, library)
        if labelled.any():
            self._warn_of_strange_labels(posterior, classes)
        return self

    def query(
        self,
        batch_size: int,
        *,
        criterion: str | None = None,
        mode: Literal["sequential", "top"] | None = None,
        candidates: Any = None,
        evaluation: Any = None,
        label_probs: Any = None,
        weights: Any = None,
        noise: Any = None,
        temperature: float | None = None,
        log_loss_targets: Any = None,
        precision: Precision = "auto",
        similarity: Similarity | None = None,
        radius: float | Literal["auto"] = "auto",
        choose: Choose | None = None,
    ) -> Selection:
        """Choose `batch_size` points of the pool; changes nothing, so asking twice is harmless.

        Parameters
        ----------
        batch_size : int
            Number of picks, at most the number of unlabelled candidates.
        criterion, mode : str, optional
            For this query; default: those of the learner. "auto" as for the learner.
        candidates : array, optional
            Points of `X_pool` that may be picked, by their position or as a mask of all N; default:
            all that are not labelled.
        evaluation : array, optional
            Points of `X_pool` that the criterion sums over, likewise; default: the
            `evaluation_size` points that `fit` has drawn.
        label_probs : array (N_c, k), optional
            P(y|c) in the order of `candidates`, columns in the order of `classes_`.
        weights, log_loss_targets : array (N_x,), (N_x, k), optional
            v(x) >= 0 and the distributions q(x) of `expected_log_loss`, in the order of
            `evaluation`. Without `evaluation` one row for each of the N points of `X_pool`, of
            which those of the drawn points count.
        noise : array (N_c,), optional
            Noise of the candidates' labels in (0, inf], in the order of `candidates`.
        temperature, precision, similarity, radius, choose
            As in `ntkfast.select`, like the meaning of all the others.

        Returns
        -------
        Selection
            `indices` into `X_pool` as given to `fit`, and the `utilities` of the picks, in the
            library of `X_pool` and on its device.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            As `ntkfast.select`: an argument that does not fit, by name.
        """
        fitted = self._state
        posterior = fitted.posterior
        criterion = self.criterion if criterion is None else criterion
        if criterion == "auto":
            criterion = self._automatic(posterior)
        if evaluation is None and fitted.evaluation is not None:
            evaluation = fitted.evaluation
            N, k = len(posterior), posterior._mean.shape[1]
            with posterior._group.together("query", {}):
                weights, log_loss_targets = posterior._library.fetch(
                    weights=weights, log_loss_targets=log_loss_targets
                )
                if weights is not None:
                    weights = as_weights("weights", weights, N)[evaluation]
                if log_loss_targets is not None:
                    log_loss_targets = as_probabilities(
                        "log_loss_targets", log_loss_targets, (N, k)
                    )[evaluation]
                elif "log_loss_targets" in find(criterion).needs:
                    raise ArgumentValueError(
                        "log_loss_targets",
                        f"{criterion} needs log_loss_targets of shape ({N}, {k}): the "
                        "distributions that the points of the pool should have",
                    )
        picked = select(
            posterior,
            criterion,
            batch_size,
            self.mode if mode is None else mode,
            candidates=candidates,
            evaluation=evaluation,
            label_probs=label_probs,
            weights=weights,
            noise=noise,
            temperature=temperature,
            log_loss_targets=log_loss_targets,
            precision=precision,
            similarity=similarity,
            radius=radius,
            choose=choose,
        )
        if posterior._library == fitted.library:
            return picked
        return Selection(
            *(
                fitted.library.wrap(as_numpy("picks", array))
                for array in posterior._library.fetch(i=picked.indices, u=picked.utilities)
            )
        )

    def update(self, indices: Any, y: Any) -> None:
        """Learn labels of pool points by conditioning, without SGD; they are not queried again.

        Parameters
        ----------
        indices : array (b,) or Selection
            Points of the pool, or what `query` returned. A point given twice, or in two calls, has
            two noisy labels, both of which count.
        y : array (b,)
            Their labels, as in `fit`. Points whose label is missing stay unlabelled, with a
            warning, and can be queried again.
        """
        with self._lock:
            fitted = self._state
            posterior = fitted.posterior
            if isinstance(indices, Selection):
                indices = indices.indices
            with posterior._group.together("update", {}):
                indices, y = posterior._library.fetch(indices=indices, y=y)
                y, labelled = _without_missing("y", y)
                targets = self._targets("y", y, fitted.classes)
                points = as_indices("indices", indices, len(posterior), duplicates=True)
                if len(labelled) != len(points):
                    raise ArgumentValueError(
                        "y", f"y has {len(labelled)} labels; indices name {len(points)} points"
                    )
            if labelled.any():
                posterior.condition(points[labelled], targets)

    def predict(self, X: Any) -> Any:
        """Return outputs (m, k) of the updated model at any points, float64.

        Logits for cross-entropy, numbers for a regression. The class of each is
        ``classes_[predict(X).argmax(1)]``. The points are read once.
        """
        fitted, there = self._state, self._kept_there(X)
        outputs, features = fitted.ntk.outputs_and_features(there)
        result = fitted.posterior.predict(features, outputs)
        if there is not X:
            (result,) = fitted.posterior._library.fetch(result=result)
        return result

    def _kept_there(self, X: Any) -> Any:
        """Make arrays tensors if model and posterior can be on a GPU, so that features stay there.

        `EmpiricalNTK` answers arrays with arrays, and a posterior of arrays is one on the CPU.
        """
        library = library_of(next(self.ntk.model.parameters()))
        if library.device is None or missing_for(library):
            return X
        if isinstance(X, np.ndarray):
            return as_tensor(X, "X")
        if isinstance(X, Mapping) and all(isinstance(value, np.ndarray) for value in X.values()):
            return {key: as_tensor(value, f"X[{key!r}]") for key, value in X.items()}
        return X

    def _check_width(self, k: int) -> None:
        """Refuse a network with so few outputs that loss and criterion mean nothing."""
        if self.loss != "cross_entropy":
            if self._criterion != "auto":
                find(self._criterion).check_outputs(k, "the model")
            if k == 1 and self.classes is not None:
                raise ArgumentValueError(
                    "classes",
                    f"classes is {self.classes!r}; a model with one output and squared loss has "
                    "none: its labels are numbers",
                )
        elif k == 1:
            raise ValueError(
                "the model has one output, and the soft-max of one logit is always 1: give a "
                "one-logit classifier two columns, [0, logit], and classes 0 and 1, or pass "
                "loss='squared' for a regression"
            )

    def _check_scale(self, outputs: Any) -> None:
        """Refuse probabilities where logits are needed."""
        if self.loss != "cross_entropy":
            return
        if _are_log_probabilities(outputs):
            warnings.warn(
                "the model returns log-probabilities: predictions are as good, but their kernel is "
                "not that of the logits, which the method means, and ranks other points first; "
                "better pass the network without its LogSoftmax",
                UserWarning,
                stacklevel=3,
            )
        if _are_probabilities(outputs):
            raise ValueError(
                "the model returns probabilities; loss='cross_entropy' needs logits: pass the "
                "network without its Softmax, or loss='squared'"
            )

    def _read_labels(self, y: Any, k: int) -> tuple[Array, Array | None, Array]:
        """Return the labels that are there, the classes of k outputs, and the targets."""
        if k == 1:
            labels = _numbers("y_labeled", y)
            return labels, None, labels
        labels = _labels("y_labeled", y)
        classes = self._classes_of(labels, k)
        return labels, classes, self._targets("y_labeled", labels, classes)

    def _targets(self, name: str, y: Any, classes: Array | None) -> Array:
        """Targets of the posterior: numbers of outputs, or the labels of a regression."""
        if classes is None:
            return _numbers(name, y)
        return _encode(name, _labels(name, y), classes, named=self.classes is not None)

    def _refuse_shifted_labels(self, labels: Array, outputs: Any, labelled: Array) -> None:
        """Refuse integers that the network itself takes for labels counted from 1."""
        k = outputs.shape[1]
        if k == 1 or self.classes is not None or labels.dtype.kind not in "iuf":
            return
        if len(np.unique(labels)) < 2 or labels.min() < 1:
            return
        found = outputs.argmax(1)
        found = (found.cpu().numpy() if isinstance(found, torch.Tensor) else found)[labelled]
        as_they_are, shifted = (int((found == labels - by).sum()) for by in (0, 1))
        if 2 * as_they_are < len(labels) < 2 * shifted:
            raise ArgumentValueError(
                "y_labeled",
                f"y_labeled has no label 0, and the network puts {shifted} of {len(labels)} points "
                f"where labels counted from 1 would be, {as_they_are} where labels from 0 are: "
                f"pass classes=range(1, {k + 1}) if they are counted from 1, and "
                f"classes=range({k}) if not",
            )

    def _warn_of_strange_labels(self, posterior: Posterior, classes: Array | None) -> None:
        """Warn where the network does not believe its own training labels.

        The automatic scale is how far the logit of the label is above the others; 1 is its floor.
        """
        if self.loss == "cross_entropy" and self.label_scale == "auto":
            if posterior.label_scale > 1:
                return
            warnings.warn(
                "on the labelled points the logit of the label is hardly above the others: the "
                "network is not trained on these labels, or they belong to other points, or the "
                f"outputs do not stand for {_shortened(classes)} in this order: name them "
                "with classes=[...]",
                UserWarning,
                stacklevel=3,
            )

    def _check_features(self, features: Any, outputs: Any) -> None:
        """Refuse the gradient of a sum that is always one: it is made of rounding errors.

        Only a Softmax has it near zero: 1e-8 is far above its rounding (1e-16 times the kernel of
        the logits) and far below the kernel of any network whose outputs merely sum to one.
        """
        if (
            self._outputs == "sum"
            and _are_probabilities(outputs)
            and float((features**2).sum(1).mean()) < 1e-8
        ):
            raise ValueError(
                "the model returns probabilities, whose sum is always 1, so that outputs='sum' "
                "has no gradient: pass the network without its Softmax, or outputs='random' or "
                "'single'"
            )

    def _classes_of(self, labels: Array, k: int) -> Array:
        """Label of each of the k outputs."""
        if self.classes is not None:
            classes = _labels("classes", self.classes)
            if classes.shape != (k,) or len(set(classes.tolist())) < k:
                raise ArgumentValueError(
                    "classes",
                    f"classes must name the model's {k} outputs once each; got {self.classes!r}",
                )
            return classes
        try:
            found = np.unique(labels)
        except TypeError:  # objects without an order
            raise ArgumentTypeError(
                "y_labeled",
                "y_labeled holds labels that have no order: name them with classes=[...]",
            ) from None
        whole = labels.dtype.kind == "f" and bool((labels == np.floor(labels)).all())
        if labels.dtype.kind == "f" and not whole:
            raise ArgumentValueError(
                "y_labeled",
                f"y_labeled holds {labels[labels != np.floor(labels)][0]:g}, which is no class: "
                "pass integers, strings, or name the values in order with classes=[...]",
            )
        if labels.dtype.kind == "b" and k != 2:
            raise ArgumentValueError(
                "y_labeled",
                f"y_labeled is boolean, and the model has {k} outputs: pass classes, or is a "
                "comparison in the place of labels?",
            )
        if labels.dtype.kind in "iub" or whole or len(labels) == 0:
            classes = np.arange(k)
        elif len(found) == k and not set(found.tolist()) & set(_SPELT_MISSING):
            classes = found
        else:
            for label in found.tolist():
                if label in _SPELT_MISSING:
                    raise ArgumentValueError(
                        "y_labeled",
                        f"y_labeled holds {label!r}: if that is a missing label, pass None in its "
                        "place; if it is a class, name all of them in order with classes=[...]",
                    )
            raise ValueError(
                f"the model has {k} outputs and y_labeled {len(found)} different labels: which "
                "output is which? Name them in order with classes=[...]"
            )
        return classes


# What is left of missing labels where numpy or a file has made strings of everything.
_SPELT_MISSING = ("", "nan", "NaN", "None", "NaT", "<NA>", "NA", "null", "--")


def _without_missing(name: str, y: Any) -> tuple[Any, Array]:
    """Return the labels that are there, and which of all (n,) those are; warn of the others."""
    absent = missing(y)
    if not absent.any():
        return y, ~absent
    warnings.warn(
        f"{name} is missing for {int(absent.sum())} of {len(absent)} points, at first for point "
        f"{int(absent.argmax())}: these count as not labelled, and are left out",
        UserWarning,
        stacklevel=3,
    )
    if isinstance(y, (list, tuple)):
        return [label for label, gone in zip(y, absent, strict=True) if not gone], ~absent
    return np.asarray(y)[~absent], ~absent


def _rows(array: Any, which: Array) -> Any:
    """Rows of an array or tensor by a mask."""
    return array if which.all() else array[np.flatnonzero(which)]


def _library_of_inputs(X: Any) -> Library:
    """Return the library and device of inputs; for datasets torch on the CPU."""
    if isinstance(X, Mapping):
        X = next(iter(X.values()), None)
    return library_of(X) if isinstance(X, (np.ndarray, torch.Tensor)) else Library("torch")


def _are_probabilities(outputs: Any) -> bool:
    """Whether every row (of at least two numbers) is a probability distribution."""
    return bool(
        outputs.shape[1] > 1 and (outputs >= 0).all() and (abs(outputs.sum(1) - 1) <= 1e-4).all()
    )


def _are_log_probabilities(outputs: Any) -> bool:
    """Whether the exponentials of every row (of at least two numbers) sum to one."""
    if outputs.shape[1] < 2 or (outputs > 0).any():
        return False
    sums = np.exp(outputs).sum(1) if isinstance(outputs, np.ndarray) else outputs.exp().sum(1)
    return bool((abs(sums - 1) <= 1e-4).all())


def _labels(name: str, y: Any) -> Array:
    """Labels (n,) of any one type."""
    if isinstance(y, np.ndarray) or not hasattr(y, "__dlpack__"):
        try:
            labels = np.asarray(y)
        except ValueError:  # a ragged list
            raise ArgumentTypeError(
                name, f"{name} is not a sequence of labels, one per point, (n,)"
            ) from None
    else:
        labels = as_numpy(name, y)
    if labels.ndim != 1:
        raise ArgumentValueError(
            name, f"{name} has shape {labels.shape}; expected one label per point, (n,)"
        )
    if labels.dtype.kind == "O" and all(
        isinstance(label, (int, float, np.number)) for label in labels
    ):
        labels = np.array(labels.tolist())  # numbers like any
    # Of numbers among strings numpy makes strings.
    if labels.dtype.kind == "O" or (labels.dtype.kind in "US" and not isinstance(y, np.ndarray)):
        for i, label in enumerate(y):
            if label is None:
                raise ArgumentValueError(name, f"{name}[{i}] is None: every point needs a label")
        first = next(iter(y), None)
        for i, label in enumerate(y):
            if isinstance(label, str) != isinstance(first, str):
                raise ArgumentTypeError(
                    name,
                    f"{name} mixes strings and other labels: {name}[0] = {first!r}, "
                    f"{name}[{i}] = {label!r}",
                )
    return labels


def _numbers(name: str, y: Any) -> Array:
    """Targets (n,) of a regression on one output, float64, from numbers (n,) or (n, 1)."""
    try:
        values = as_numpy(name, y)
    except TypeError:  # objects, among them None
        values = np.asarray(None)
    if values.dtype.kind not in "iuf":
        raise ArgumentTypeError(
            name,
            f"{name} must be numbers, (n,) or (n, 1): the model has one output and squared loss",
        )
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    return as_floats(name, values.astype(np.float64), (None,))


def _shortened(classes: Any) -> str:
    """List the first ten classes."""
    names = [repr(label) for label in classes.tolist()]
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _encode(name: str, labels: Array, classes: Array, *, named: bool) -> Array:
    """Output number of each label; `named`: whether the user has named the classes."""
    number = {label: i for i, label in enumerate(classes.tolist())}
    values, k = labels.tolist(), len(classes)
    for i, label in enumerate(values):
        if label in number:
            continue
        message = f"{name}[{i}] = {label!r} is none of the classes {_shortened(classes)}"
        if label in _SPELT_MISSING:
            message += "; if the label is missing, pass None, or leave the point out"
        elif named or labels.dtype.kind not in "iuf":
            message += "; name the classes in the order of the model's outputs with classes=[...]"
        elif labels.min() == 1 and labels.max() == k:
            message += (
                f", which are counted from 0; yours are from 1 to {k}: pass "
                f"classes=range(1, {k + 1})"
            )
        elif label < 0:
            message += "; if it means that the point has no label, pass None, or leave it out"
        else:
            message += (
                f", which are counted from 0; pass classes=range(1, {k + 1}) if yours are counted "
                "from 1, else name them in the order of the model's outputs with classes=[...]"
            )
        raise ArgumentValueError(name, message)
    return np.array([number[label] for label in values], np.int64)
