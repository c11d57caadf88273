"""Active learning around a torch model: fit, query, update, predict."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ._ntk.inputs import as_tensor
from ._posterior.engines import missing_for
from .arrays import Array, Library, as_floats, as_indices, as_numpy, library_of
from .criteria import find
from .ntk import EmpiricalNTK, SketchName
from .posterior import Loss, Posterior
from .selection import Selection, select

__all__ = ["LookAheadLearner"]


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
        A name of `ntkfast.criteria`; "auto": fisher_variance_reduction for cross-entropy,
        variance_reduction for squared loss. (`expected_log_loss` needs targets: use `select`.)
    evaluation_size : int or None
        The criterion sums over so many points of the pool, drawn at random once per `fit`; None:
        over the whole pool.
    mode : {"sequential", "top"}
        How batches are built, see `ntkfast.select`.
    ridge, label_scale
        See `Posterior.from_features`.
    classes : sequence, optional
        Label of each output. Default: 0, ..., k - 1 for integer labels, else the sorted labels of
        `fit`, which then must be k different ones. None for a regression.
    seed : int
        Of the evaluation points and of the sketch.
    outputs, draws, sketch, dim, relative_error, layers, memory_budget
        See `EmpiricalNTK`. ``sketch="auto"`` is fitted to the first points of the pool at every
        `fit`.

    Attributes
    ----------
    posterior : Posterior
        State after `fit` and `update`; its points are the pool.
    classes_ : ndarray (k,) or None
        Label of each output, known after `fit`; None for a regression.

    Examples
    --------
    >>> learner = nf.LookAheadLearner(model).fit(X_labeled, y_labeled, X_pool)  # doctest: +SKIP
    >>> picked = learner.query(20)                                              # doctest: +SKIP
    >>> learner.update(picked.indices, ask(X_pool[picked.indices]))             # doctest: +SKIP
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
        classes: Sequence[Any] | None = None,
        seed: int = 0,
        outputs: Literal["sum", "single", "random", "full"] | int = "sum",
        draws: int = 1,
        sketch: SketchName | None = "sparse",
        dim: int = 4096,
        relative_error: float = 0.05,
        layers: Literal["last"] | Sequence[str] | None = None,
        memory_budget: int = 2**31,
    ) -> None:
        if loss not in ("squared", "cross_entropy"):
            raise ValueError(f'loss must be "squared" or "cross_entropy"; got {loss!r}')
        if criterion == "auto":
            criterion = (
                "fisher_variance_reduction" if loss == "cross_entropy" else "variance_reduction"
            )
        if "log_loss_targets" in find(criterion).needs:
            raise ValueError(
                f"{criterion} needs log_loss_targets, which a learner does not have: call "
                "ntkfast.select(learner.posterior, ...)"
            )
        if evaluation_size is not None and (
            isinstance(evaluation_size, bool)
            or not isinstance(evaluation_size, (int, np.integer))
            or evaluation_size < 1
        ):
            raise ValueError(
                f"evaluation_size must be an int >= 1 or None; got {evaluation_size!r}"
            )
        self.loss: Loss = loss
        self.criterion = criterion
        self.evaluation_size = evaluation_size
        self.mode = mode
        self.ridge = ridge
        self.label_scale = label_scale
        self.classes = classes
        self.seed = seed
        self._outputs = outputs
        self.ntk = EmpiricalNTK(
            model,
            outputs,
            draws=draws,
            sketch=sketch,
            dim=dim,
            relative_error=relative_error,
            seed=seed,
            layers=layers,
            memory_budget=memory_budget,
        )
        self._posterior: Posterior | None = None

    def __repr__(self) -> str:
        state = "not fitted" if self._posterior is None else repr(self._posterior)
        return f"<LookAheadLearner with {self.criterion} on {self.ntk!r}: {state}>"

    @property
    def posterior(self) -> Posterior:
        """State after `fit` and `update`; its points are the pool."""
        if self._posterior is None:
            raise RuntimeError("call fit(X_labeled, y_labeled, X_pool) first")
        return self._posterior

    def fit(self, X_labeled: Any, y_labeled: Any, X_pool: Any) -> LookAheadLearner:
        """Build the posterior of the pool given the labelled data. Trains nothing.

        With a model on a GPU the features stay and are worked on there. Only for a pool of numpy
        arrays, whose features are arrays too, a build without GPU kernels will do: it takes the
        CPU. Labels may be on either.

        Parameters
        ----------
        X_labeled, X_pool : Tensor, ndarray, dict of them, Dataset or DataLoader
            Inputs of the model. `X_labeled` may be None, or empty, without labels.
        y_labeled : array (n,) or None
            Their labels, of any kind that `classes` names: integers, strings, ...; for a regression
            numbers, (n,) or (n, 1).

        Returns
        -------
        LookAheadLearner
            Itself.

        Raises
        ------
        ValueError
            Labels that do not fit the model's outputs; with cross-entropy a model that returns one
            logit, or probabilities instead of logits; probabilities with ``outputs="sum"``.
        """
        library = _library_of_inputs(X_pool)
        X_pool, X_labeled = self._kept_there(X_pool), self._kept_there(X_labeled)
        outputs = self.ntk.outputs(X_pool)
        (y_labeled,) = library_of(outputs).fetch(y_labeled=y_labeled)
        k = outputs.shape[1]
        self._check_outputs(outputs)
        y_labeled = [] if y_labeled is None else y_labeled
        if k == 1:
            classes = None
            labels = _numbers("y_labeled", y_labeled)
        else:
            labels = _labels("y_labeled", y_labeled)
            classes = self._classes_of(labels, k)
        labeled_features = labeled_outputs = targets = None
        if len(labels):
            targets = labels if classes is None else _encode("y_labeled", labels, classes)
            labeled_outputs = self.ntk.outputs(X_labeled)
            if len(labeled_outputs) != len(labels):
                raise ValueError(
                    f"y_labeled has {len(labels)} labels; X_labeled has {len(labeled_outputs)} "
                    "points"
                )
        elif X_labeled is not None and len(X_labeled):
            raise ValueError(
                "y_labeled is empty, and X_labeled is not: labels are not read from a dataset or "
                "loader, pass them as y_labeled"
            )
        if self.ntk.sketch == "auto":
            self._posterior = None  # its features will not fit those of the new sketch
            self.ntk.fit_sketch(X_pool)
        features = self.ntk.features(X_pool)
        self._check_features(features, outputs)
        if len(labels):
            labeled_features = self.ntk.features(X_labeled)
        posterior = Posterior.from_features(
            features,
            outputs,
            labeled_features,
            labeled_outputs,
            targets,
            self.ridge,
            loss=self.loss,
            label_scale=self.label_scale,
        )
        N = len(posterior)
        self._evaluation: Array | None = None
        if self.evaluation_size is not None and self.evaluation_size < N:
            rng = np.random.default_rng(self.seed)
            self._evaluation = np.sort(rng.choice(N, self.evaluation_size, replace=False))
        self.classes_: Array | None = classes
        self._library = library
        self._posterior = posterior
        if len(labels):
            self._warn_of_strange_labels()
        return self

    def query(self, batch_size: int) -> Selection:
        """Choose `batch_size` points of the pool; changes nothing, so asking twice is harmless.

        Returns
        -------
        Selection
            `indices` into `X_pool` as given to `fit`, and the `utilities` of the picks, in the
            library of `X_pool` and on its device.
        """
        posterior = self.posterior
        picked = select(
            posterior, self.criterion, batch_size, self.mode, evaluation=self._evaluation
        )
        if posterior._library == self._library:
            return picked
        return Selection(
            *(
                self._library.wrap(as_numpy("picks", array))
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
            Their labels, as in `fit`.
        """
        posterior = self.posterior
        if isinstance(indices, Selection):
            indices = indices.indices
        indices, y = posterior._library.fetch(indices=indices, y=y)
        if self.classes_ is None:
            targets = _numbers("y", y)
        else:
            targets = _encode("y", _labels("y", y), self.classes_)
        block = as_indices("indices", indices, len(posterior), duplicates=True)
        if len(targets) != len(block):
            raise ValueError(f"y has {len(targets)} labels; indices name {len(block)} points")
        posterior.condition(block, targets)

    def predict(self, X: Any) -> Any:
        """Return outputs (m, k) of the updated model at any points, float64.

        Logits for cross-entropy, numbers for a regression. The class of each is
        ``classes_[predict(X).argmax(1)]``.
        """
        posterior, there = self.posterior, self._kept_there(X)
        result = posterior.predict(self.ntk.features(there), self.ntk.outputs(there))
        if there is not X:
            (result,) = posterior._library.fetch(result=result)
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

    def _check_outputs(self, outputs: Any) -> None:
        """Refuse a network whose outputs are not what loss and criterion read."""
        if self.loss != "cross_entropy":
            row = find(self.criterion)
            if outputs.shape[1] == 1 and (row.look_ahead or row.fisher):
                raise ValueError(
                    f"{self.criterion} compares classes, and the model has one output: use "
                    "variance_reduction or epig, or give a one-logit classifier two columns, "
                    "[0, logit]"
                )
            if outputs.shape[1] == 1 and self.classes is not None:
                raise ValueError(
                    f"classes is {self.classes!r}; a model with one output and squared loss has "
                    "none: its labels are numbers"
                )
            return
        if outputs.shape[1] == 1:
            raise ValueError(
                "the model has one output, and the soft-max of one logit is always 1: give a "
                "one-logit classifier two columns, [0, logit], and classes 0 and 1, or pass "
                "loss='squared' for a regression"
            )
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

    def _warn_of_strange_labels(self) -> None:
        """Warn where the network does not believe its own training labels.

        The automatic scale is how far the logit of the label is above the others; 1 is its floor.
        """
        if self.loss == "cross_entropy" and self.label_scale == "auto":
            if self.posterior.label_scale > 1:
                return
            warnings.warn(
                "on the labelled points the logit of the label is hardly above the others: the "
                "network is not trained on these labels, or they belong to other points, or the "
                f"outputs do not stand for {_shortened(self.classes_)} in this order: name them "
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
                raise ValueError(
                    f"classes must name the model's {k} outputs once each; got {self.classes!r}"
                )
            return classes
        try:
            found = np.unique(labels)
        except TypeError:  # objects without an order
            raise TypeError(
                "y_labeled holds labels that have no order: name them with classes=[...]"
            ) from None
        whole = labels.dtype.kind == "f" and bool((labels == np.floor(labels)).all())
        if labels.dtype.kind == "f" and not whole:
            raise ValueError(
                f"y_labeled holds {labels[labels != np.floor(labels)][0]:g}, which is no class: "
                "pass integers, strings, or name the values in order with classes=[...]"
            )
        if labels.dtype.kind == "b" and k != 2:
            raise ValueError(
                f"y_labeled is boolean, and the model has {k} outputs: pass classes, or is a "
                "comparison in the place of labels?"
            )
        if labels.dtype.kind in "iub" or whole or len(labels) == 0:
            classes = np.arange(k)
        elif len(found) == k:
            classes = found
        else:
            raise ValueError(
                f"the model has {k} outputs and y_labeled {len(found)} different labels: which "
                "output is which? Name them in order with classes=[...]"
            )
        return classes


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
            raise TypeError(f"{name} is not a sequence of labels, one per point, (n,)") from None
    else:
        labels = as_numpy(name, y)
    if labels.ndim != 1:
        raise ValueError(f"{name} has shape {labels.shape}; expected one label per point, (n,)")
    # Of numbers among strings numpy makes strings.
    if labels.dtype.kind == "O" or (labels.dtype.kind in "US" and not isinstance(y, np.ndarray)):
        for i, label in enumerate(y):
            if label is None:
                raise ValueError(f"{name}[{i}] is None: every point needs a label")
        first = next(iter(y), None)
        for i, label in enumerate(y):
            if isinstance(label, str) != isinstance(first, str):
                raise TypeError(
                    f"{name} mixes strings and other labels: {name}[0] = {first!r}, "
                    f"{name}[{i}] = {label!r}"
                )
    return labels


def _numbers(name: str, y: Any) -> Array:
    """Targets (n,) of a regression on one output, float64, from numbers (n,) or (n, 1)."""
    try:
        values = as_numpy(name, y)
    except TypeError:  # objects, among them None
        values = np.asarray(None)
    if values.dtype.kind not in "iuf":
        raise TypeError(
            f"{name} must be numbers, (n,) or (n, 1): the model has one output and squared loss"
        )
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    return as_floats(name, values.astype(np.float64), (None,))


def _shortened(classes: Any) -> str:
    """List the first ten classes."""
    names = [repr(label) for label in classes.tolist()]
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _encode(name: str, labels: Array, classes: Array) -> Array:
    """Output number of each label."""
    number = {label: i for i, label in enumerate(classes.tolist())}
    values = labels.tolist()
    for i, label in enumerate(values):
        if label not in number:
            raise ValueError(
                f"{name}[{i}] = {label!r} is none of the classes {_shortened(classes)}; name the "
                "classes in the order of the model's outputs with classes=[...]"
            )
    return np.array([number[label] for label in values], np.int64)
