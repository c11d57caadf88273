"""A query strategy for small-text 1.4 and 2.0: `LookAhead`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ..arrays import ArgumentValueError, Array, as_choice, as_numpy
from ._surrogate import (
    Kernel,
    Surrogate,
    array_of,
    check_criterion,
    check_kernel,
    host,
    kernel_model,
    linearised,
    rows_of,
    with_two_classes,
)

host("small_text", "'ntkfast[small-text]'")

from small_text.query_strategies import EmbeddingBasedQueryStrategy  # noqa: E402

__all__ = ["LookAhead"]


class LookAhead(EmbeddingBasedQueryStrategy):  # type: ignore[misc]
    """Query what would change the predictions everywhere for the better, without retraining.

    Parameters
    ----------
    criterion, ridge, mode, kernel_params, criterion_params
        As of `ntkfast.integrations.skactiveml.LookAhead`; keywords of the classifier's `embed` go
        with the query as `embed_kwargs`.
    kernel : str or callable, default="features"
        "features": the classifier, taken as linear in the embeddings of the texts (for most that is
        the tangent kernel of their last layer). Or a kernel of the embeddings, as there, but "ntk".
    """

    def __init__(
        self,
        criterion: str = "auto",
        kernel: Kernel = "features",
        ridge: float | Literal["auto"] = "auto",
        mode: Literal["sequential", "top"] = "sequential",
        kernel_params: Mapping[str, Any] | None = None,
        criterion_params: Mapping[str, Any] | None = None,
    ) -> None:
        check_criterion(criterion)
        check_kernel(kernel, networks=False)
        as_choice("mode", mode, ("sequential", "top"))
        self.criterion = criterion
        self.kernel = kernel
        self.ridge = ridge
        self.mode = mode
        self.kernel_params = kernel_params
        self.criterion_params = criterion_params

    def query(
        self,
        clf: Any,
        dataset: Any,
        indices_unlabeled: Array,
        indices_labeled: Array,
        y: Array,
        n: int = 10,
        pbar: str | None = "tqdm",
        embeddings: Any = None,
        embed_kwargs: Mapping[str, Any] | None = None,
    ) -> Array:
        """Choose texts of the unlabelled pool.

        Parameters
        ----------
        clf : small_text.classifiers.Classifier or None
            The trained classifier; its `embed` makes the embeddings, unless they are given. None,
            before there is one (small-text 2.0): needs embeddings and another kernel than
            "features".
        dataset : small_text.data.datasets.Dataset
            All texts.
        indices_unlabeled, indices_labeled : ndarray of int
            Candidates and labelled texts, in `dataset`; texts in neither count for nothing.
        y : ndarray of int
            Labels of the labelled ones, classes from 0; LABEL_UNLABELED and LABEL_IGNORED are no
            labels.
        n : int
            Number of texts to choose.
        pbar, embed_kwargs
            For ``clf.embed``.
        embeddings : array (len(dataset), d), optional
            Embeddings of all of `dataset`, in its order.

        Returns
        -------
        ndarray (n,) of int
            Indices in `dataset`, best (or first) one first.

        Raises
        ------
        EmptyPoolException, PoolExhaustedException
            No candidates, or fewer than n.
        ValueError, RuntimeError
            Labels of several classes a text; embeddings that do not fit.
        """
        if hasattr(y, "toarray"):
            raise RuntimeError(
                "y is a sparse matrix, labels of several classes a text; LookAhead is for "
                "single-label classification"
            )
        everything = np.concatenate([indices_unlabeled, indices_labeled]).astype(np.int64)
        if embeddings is not None:
            embeddings = array_of(embeddings)
            if embeddings.ndim != 2 or rows_of(embeddings) != len(dataset):
                raise ArgumentValueError(
                    "embeddings",
                    f"embeddings has shape {embeddings.shape}; expected ({len(dataset)}, d), one "
                    "row per text of the data set",
                )
            # The host wants them in the order in which it hands on its subset.
            embeddings = embeddings[everything]
        chosen: Array = super().query(
            clf,
            dataset,
            indices_unlabeled,
            indices_labeled,
            y,
            n=n,
            pbar=pbar,
            embeddings=embeddings,
            embed_kwargs=dict(embed_kwargs or {}),
        )
        return chosen

    def sample(
        self,
        clf: Any,
        dataset: Any,
        indices_unlabeled: Array,
        indices_labeled: Array,
        y: Array,
        n: int,
        embeddings: Any,
        embeddings_proba: Any = None,
    ) -> Array:
        """Choose among embeddings; indices refer to `dataset` and `embeddings`, as given here.

        `query` calls it with the texts that are labelled or candidates.
        """
        embeddings = array_of(embeddings)
        P = embeddings_proba
        if P is None and clf is not None:
            P = clf.predict_proba(dataset)
        if P is not None:
            P = with_two_classes(as_numpy("embeddings_proba", P))
        elif self.kernel == "features":
            raise ArgumentValueError(
                "kernel",
                'kernel="features" needs a trained classifier, and there is none yet: query with '
                'another kernel first, LookAhead(kernel="rbf")',
            )
        y = np.zeros(0) if y is None else np.asarray(y)
        known = y >= 0  # LABEL_UNLABELED and LABEL_IGNORED are negative
        labeled, targets = np.asarray(indices_labeled)[known], y[known].astype(np.int64)
        surrogate = self._surrogate(embeddings, labeled, P, targets)
        return surrogate.select(
            self.criterion,
            np.asarray(indices_unlabeled, np.int64),
            n,
            self.mode,
            self.criterion_params,
        )[0]

    def _surrogate(self, E: Any, labeled: Array, P: Array | None, targets: Array) -> Surrogate:
        if P is None:
            k = int(targets.max(initial=0)) + 1
            return Surrogate(
                kernel_model(
                    self.kernel, self.kernel_params, E, E[labeled], targets, k, self.ridge
                ),
                network=False,
            )
        if self.kernel == "features":
            return Surrogate(linearised(E, E[labeled], P, P[labeled], targets, self.ridge))
        posterior = kernel_model(
            self.kernel, self.kernel_params, E, E[labeled], targets, P.shape[1], self.ridge
        )
        return Surrogate(posterior, lambda of: P[of], network=False)

    def __str__(self) -> str:
        return f"LookAhead(criterion={self.criterion!r}, kernel={self.kernel!r})"
