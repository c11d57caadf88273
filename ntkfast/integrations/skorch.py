"""`LookAheadLearner` for a skorch net."""

from __future__ import annotations

from typing import Any

from ..learner import LookAheadLearner
from ._surrogate import host, network_of

host("skorch", "'ntkfast[skorch]'")

__all__ = ["look_ahead_learner"]


def look_ahead_learner(net: Any, **keywords: Any) -> LookAheadLearner:
    """Return a `ntkfast.LookAheadLearner` of the network that a skorch net has trained.

    The loss is that of ``net.criterion``, the classes are ``net.classes`` or the numbers of the
    outputs. Indices of its queries refer to the pool given to its `fit`.

    Parameters
    ----------
    net : skorch.NeuralNet
        A net that is fitted, with a module that returns logits and ``criterion=CrossEntropyLoss``
        (skorch's default, NLLLoss of probabilities, hides the logits), or with MSELoss.
    **keywords
        Of `LookAheadLearner`; they come before what is read from the net.

    Returns
    -------
    LookAheadLearner
        Not fitted yet.

    Examples
    --------
    >>> learner = look_ahead_learner(net).fit(X_labeled, y_labeled, X_pool)  # doctest: +SKIP
    >>> picked = learner.query(20)                                           # doctest: +SKIP
    """
    network, loss = network_of(net)
    # Not `classes_`, which are the labels that the training data happened to have.
    found = {"loss": loss, "classes": getattr(net, "classes", None)}
    return LookAheadLearner(network, **{**found, **keywords})
