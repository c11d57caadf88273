"""A query strategy for libact 0.2: `LookAhead`."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import numpy as np

from ..arrays import ArgumentTypeError, Array
from ._surrogate import (
    Kernel,
    Surrogate,
    array_of,
    check_criterion,
    check_kernel,
    host,
    kernel_model,
    linearised,
    numbered,
    with_two_classes,
)

host("libact", "git+https://github.com/ntucllab/libact  # 0.2; 0.1.6 of PyPI is too old")

from libact.base.interfaces import ProbabilisticModel, QueryStrategy  # noqa: E402

__all__ = ["LookAhead"]


class LookAhead(QueryStrategy):  # type: ignore[misc]
    """Query what would change the predictions everywhere for the better, without retraining.

    Parameters
    ----------
    dataset : libact.base.dataset.Dataset
        All samples; those without a label (None) are the candidates, and predictions count on all.
        Labels that arrive by its `update` count in the next query.
    model : libact.base.interfaces.ProbabilisticModel, optional
        Tells how likely each label of a candidate is; a copy of it is trained for every query.
        Default: the kernel's own prediction. kernel="features" needs it.
    criterion, ridge, kernel_params, criterion_params
        As of `ntkfast.integrations.skactiveml.LookAhead`.
    kernel : str or callable
        As there, but "ntk": models of libact are no networks.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        model: Any = None,
        criterion: str = "auto",
        kernel: Kernel = "rbf",
        ridge: float | Literal["auto"] = "auto",
        kernel_params: Mapping[str, Any] | None = None,
        criterion_params: Mapping[str, Any] | None = None,
    ) -> None:
        check_criterion(criterion)
        check_kernel(kernel, networks=False)
        if model is not None and not isinstance(model, ProbabilisticModel):
            raise ArgumentTypeError(
                "model", f"model must be a ProbabilisticModel; got a {type(model).__name__}"
            )
        if model is None and kernel == "features":
            raise ArgumentTypeError("model", 'kernel="features" needs a model')
        super().__init__(dataset)
        self.model = model
        self.criterion = criterion
        self.kernel = kernel
        self.ridge = ridge
        self.kernel_params = kernel_params
        self.criterion_params = criterion_params

    def _get_scores(self) -> tuple[Array, Array]:
        """Return the entry ids of the unlabelled samples, in the data set, and their utilities."""
        entries, _ = self.dataset.get_unlabeled_entries()
        if len(entries) == 0:
            return np.zeros(0, np.int64), np.zeros(0)
        entries = np.asarray(entries, np.int64)
        return entries, self._surrogate().utilities(self.criterion, entries, self.criterion_params)

    def make_query(self, return_score: bool = False) -> Any:
        """Choose one sample; changes nothing.

        Parameters
        ----------
        return_score : bool
            Whether to return the utilities too.

        Returns
        -------
        ask_id : int
            Its entry id in the data set; of equal utilities the lowest id.
        score : list of (int, float)
            Entry ids and utilities of all unlabelled samples. Larger is better.

        Raises
        ------
        ValueError
            Every sample is labelled.
        """
        entries, scores = self._get_scores()
        if len(entries) == 0:
            raise ValueError("every sample of the data set is labelled: nothing is left to query")
        ask_id = int(entries[scores.argmax()])
        if not return_score:
            return ask_id
        return ask_id, list(zip(entries.tolist(), scores.tolist(), strict=True))

    def _surrogate(self) -> Surrogate:
        X = array_of(self.dataset.get_entries()[0])
        mask = self.dataset.get_labeled_mask()
        labels = self.dataset.get_labeled_entries()[1]
        model = None
        if self.model is not None:
            model = deepcopy(self.model)
            model.train(self.dataset)
            P = np.asarray(model.predict_proba(X), np.float64)
        targets, k = numbered("dataset.y", labels, None)
        labeled = X[np.flatnonzero(mask)]
        if model is None:
            return Surrogate(
                kernel_model(self.kernel, self.kernel_params, X, labeled, targets, k, self.ridge),
                network=False,
            )
        if self.kernel == "features":
            return Surrogate(linearised(X, labeled, P, P[mask], targets, self.ridge))
        posterior = kernel_model(
            self.kernel, self.kernel_params, X, labeled, targets, k, self.ridge
        )
        P = with_two_classes(P)
        return Surrogate(posterior, lambda of: P[of], network=False)
