"""An active-learning loop for baal 2.1: `look_ahead_loop`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from ..arrays import ArgumentTypeError, Array
from ..learner import LookAheadLearner
from ._surrogate import check_criterion, host

host("baal", "'ntkfast[baal]'")

from baal.active import ActiveLearningDataset, ActiveLearningLoop  # noqa: E402
from baal.active.heuristics import Precomputed  # noqa: E402

__all__ = ["LookAhead", "look_ahead_loop"]


class LookAhead:
    """What `ActiveLearningLoop` takes as `get_probabilities`: the scores themselves.

    baal's heuristics see predictions only, and no labelled data. So the scores are computed here,
    and ranked by ``heuristics.Precomputed(reverse=True)``; without ``reverse`` the worst points
    would be picked. `look_ahead_loop` puts both together.

    Parameters
    ----------
    model : torch.nn.Module or baal.ModelWrapper
        The network, which returns logits. Not changed; read at every step, after its training.
    dataset : baal.active.ActiveLearningDataset
        Its labelled items are what the network was trained on, items (x, y).
    query_size : int
        So many points are chosen to be labelled together, as `LookAheadLearner.query` does.
    **keywords
        Of `ntkfast.LookAheadLearner`: criterion, mode, ridge, sketch, ...
    """

    def __init__(self, model: Any, dataset: Any, query_size: int = 1, **keywords: Any) -> None:
        if not isinstance(dataset, ActiveLearningDataset):
            raise ArgumentTypeError(
                "dataset",
                f"dataset must be an ActiveLearningDataset; got a {type(dataset).__name__}",
            )
        self.network = getattr(model, "model", model)
        self.dataset = dataset
        self.query_size = query_size
        self.keywords = keywords
        check_criterion(keywords.get("criterion", "auto"))
        LookAheadLearner(self.network, **keywords)  # refuses now what it would refuse later

    def __call__(self, pool: Any, **ignored: Any) -> Array:
        """Return scores (len(pool),), float64, in the order of the pool; larger = label first.

        The points that are best labelled together come first, in the order of their picks; all
        others by their utility before the first pick.
        """
        indices = np.flatnonzero(self.dataset.labelled)
        labels = [_label(self.dataset.get_raw(int(i)), int(i)) for i in indices]
        # Labelled items without augmentation: as the pool of a data set labelled the other way.
        twin = copy.copy(self.dataset)
        twin.labelled_map = (~self.dataset.labelled).astype(int)
        learner = LookAheadLearner(self.network, **self.keywords)
        learner.fit(twin.pool if labels else None, np.array(labels) if labels else None, pool)
        scores = np.full(len(pool), np.nan)

        def choose(points: Array, utility: Array) -> int:
            if np.isnan(scores).any():
                scores[points] = utility
            return int(utility.argmax())

        b = min(self.query_size, len(pool))
        picked = np.asarray(learner.query(b, choose=choose).indices)
        # Just above all others: the host logs their mean.
        step = 1e-6 * (abs(scores).max() or 1.0)
        scores[picked] = scores.max() + step * np.arange(b, 0, -1)
        return scores


def _label(item: Any, index: int) -> Any:
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise TypeError(
            f"item {index} of the data set is a {type(item).__name__}; expected (x, y), y the label"
        )
    label = item[-1]
    return label.item() if hasattr(label, "item") else label


def look_ahead_loop(
    model: Any, dataset: Any, query_size: int = 1, *, max_sample: int = -1, **keywords: Any
) -> Any:
    """Return a `baal.active.ActiveLearningLoop` that labels what changes the network most.

    Its `step` labels `query_size` items; train the model between steps. As everywhere in baal,
    indices refer to the pool: the unlabelled items, in their order.

    Parameters
    ----------
    model, dataset, query_size
        As of `LookAhead`.
    max_sample : int
        Each step looks at so many items of the pool, drawn at random; -1: at all.
    **keywords
        Of `ntkfast.LookAheadLearner`.
    """
    scores = LookAhead(model, dataset, query_size, **keywords)
    return ActiveLearningLoop(
        dataset, scores, Precomputed(reverse=True), query_size=query_size, max_sample=max_sample
    )
