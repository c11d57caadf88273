"""What is compared: baselines of scikit-activeml, baselines written here, and ours.

A strategy is a name. Ours are ``default`` and the names of `ntkfast.criteria`, with options after
plus signs: ``epig+top``, ``default+outputs=random+draws=4``, ``expected_error+T=2``. Baselines on
embeddings take ``+inputs``, which puts the raw inputs in their place.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import ntkfast as nf

from .data import Split
from .networks import embeddings, outputs, probabilities

__all__ = ["BASELINES", "SKETCH_DIMENSION", "Query", "known", "parsed", "pick"]

SKETCH_DIMENSION = 1024
_PROPOSALS = 50  # batches among which `ceiling` looks for the best


@dataclass
class Query:
    """What a strategy sees: the network, which points have labels, and which it may ask for."""

    split: Split
    model: nn.Module
    labeled: np.ndarray  # (n,), points of the pool
    candidates: np.ndarray  # (m,)
    batch: int
    loss: str
    rng: np.random.Generator
    train: Callable[[list[np.ndarray]], list[nn.Module]]  # networks like `model`, on other labels

    @functools.cached_property
    def points(self) -> np.ndarray:
        """Labelled points, then candidates."""
        return np.concatenate([self.labeled, self.candidates])

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """Of `points`."""
        f = outputs(self.model, self.split.X[self.points])
        return probabilities(f, self.loss)

    @property
    def of_candidates(self) -> np.ndarray:
        return self.probabilities[len(self.labeled) :]

    def features(self, options: dict[str, str]) -> np.ndarray:
        """Embeddings of `points`, or the raw inputs."""
        X = self.split.X[self.points]
        if "inputs" in options:
            return X.flatten(1).double().numpy()
        return embeddings(self.model, X)


Strategy = Callable[[Query, dict[str, str]], np.ndarray]  # positions among the candidates


def _best(utility: np.ndarray, batch: int) -> np.ndarray:
    return np.argsort(-utility, kind="stable")[:batch]


def _margins(p: np.ndarray) -> np.ndarray:
    top = np.partition(p, -2, axis=1)
    return top[:, -1] - top[:, -2]


def _random(query: Query, options: dict[str, str]) -> np.ndarray:
    return query.rng.choice(len(query.candidates), query.batch, replace=False)


def _entropy(query: Query, options: dict[str, str]) -> np.ndarray:
    p = query.of_candidates
    return _best(-(p * np.log(np.maximum(p, 1e-300))).sum(axis=1), query.batch)


def _margin(query: Query, options: dict[str, str]) -> np.ndarray:
    return _best(-_margins(query.of_candidates), query.batch)


def _of_skactiveml(name: str, query: Query, options: dict[str, str]) -> np.ndarray:
    """Ask a strategy of scikit-activeml: labelled points first, then the candidates."""
    from skactiveml import pool

    n, k = len(query.labeled), query.split.classes
    X = query.features(options)
    if name in ("typiclust", "probcover"):  # whose papers have features of unit length
        X = _normalized(X)
    y = np.full(len(X), np.nan)
    y[:n] = query.split.y[query.labeled]
    data: dict[str, Any] = dict(X=X, y=y, candidates=np.arange(n, len(X)), batch_size=query.batch)
    seed = int(query.rng.integers(2**31))
    clusters = {"n_init": 1, "random_state": seed}
    if name == "badge":
        strategy = pool.Badge(random_state=seed)
        data |= dict(clf=_classifier(query, X, k), fit_clf=False)
    elif name == "dropquery":
        strategy = pool.DropQuery(random_state=seed, cluster_algo_dict=clusters)
        data |= dict(clf=_classifier(query, X, k), fit_clf=False)
    elif name == "coreset":
        strategy = pool.CoreSet(random_state=seed)
    elif name == "typiclust":
        strategy = pool.TypiClust(random_state=seed, cluster_algo_dict=clusters)
    elif name == "probcover":
        strategy = pool.ProbCover(n_classes=k, random_state=seed, cluster_algo_dict=clusters)
    else:
        strategy = pool.MaxHerding(random_state=seed, metric_dict={"gamma": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ProbCover: no radius is pure enough; KMeans: duplicates
        return np.asarray(strategy.query(**data)) - n


def _classifier(query: Query, X: np.ndarray, k: int) -> Any:
    """Make a classifier of scikit-activeml out of the network's last layer.

    Its samples are embeddings, which DropQuery masks.
    """
    from skactiveml.base import SkactivemlClassifier

    last = [module for module in query.model.modules() if isinstance(module, nn.Linear)][-1]

    class LastLayer(SkactivemlClassifier):  # type: ignore[misc]
        def __init__(
            self,
            classes: Any = None,
            missing_label: float = np.nan,
            cost_matrix: Any = None,
            random_state: Any = None,
        ) -> None:
            super().__init__(
                classes=classes,
                missing_label=missing_label,
                cost_matrix=cost_matrix,
                random_state=random_state,
            )

        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
            self._validate_data(X, y, sample_weight)
            return self

        def predict_proba(self, X: Any) -> np.ndarray:
            with torch.no_grad():
                f = last(torch.as_tensor(np.asarray(X), dtype=last.weight.dtype))
            return probabilities(f.double().numpy(), query.loss)

    return LastLayer(classes=np.arange(k)).fit(X, np.full(len(X), np.nan))


def _normalized(X: np.ndarray) -> np.ndarray:
    return X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-9)


def _squared_distances(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    squares = (A * A).sum(axis=1)[:, None] + (B * B).sum(axis=1)
    return np.maximum(squares - 2 * A @ B.T, 0)


def _calibrated_temperature(query: Query) -> float:
    """Temperature with the least calibration error on a fifth of the labels.

    The network that is measured was trained on the other four fifths (arXiv 2412.20644).
    """
    order = query.rng.permutation(len(query.labeled))
    held = query.labeled[order[: max(1, len(order) // 5)]]
    (model,) = query.train([query.labeled[order[max(1, len(order) // 5) :]]])
    f, y = outputs(model, query.split.X[held]), query.split.y[held]

    def error(temperature: float) -> float:
        p = probabilities(f, query.loss, temperature)
        bins = np.minimum((p.max(axis=1) * 15).astype(int), 14)
        gap = (p.argmax(axis=1) == y) - p.max(axis=1)
        return float(np.abs(np.bincount(bins, gap, 15)).sum())

    return min(np.geomspace(0.25, 16, 25).tolist(), key=error)


def _uncertainty_herding(query: Query, options: dict[str, str]) -> np.ndarray:
    """Cover the candidates, weighted by 1 - margin (Bae, Oliveira, Sutherland, arXiv 2412.20644).

    Features of unit length, kernel exp(-|x - x'|^2 / r^2) with r the least distance of two labelled
    points, probabilities at the calibrated temperature. ``+plain``: temperature 1, and r the mean
    distance of a labelled point to its nearest.
    """
    n = len(query.labeled)
    X = _normalized(query.features(options))
    between = _squared_distances(X[:n], X[:n])
    between[np.diag_indices(n)] = np.inf
    if "plain" in options or query.loss == "squared":
        f = query.of_candidates
        temperature = 1.0
    else:
        temperature = _calibrated_temperature(query)
        f = probabilities(
            outputs(query.model, query.split.X[query.candidates]), query.loss, temperature
        )
    radius2 = between.min(axis=1).mean() if "plain" in options else between[between > 1e-12].min()
    kernel = np.exp(-_squared_distances(X[n:], X[n:]) / radius2)
    covered = np.exp(-_squared_distances(X[n:], X[:n]) / radius2).max(axis=1)
    weights = 1 - _margins(f)
    picked: list[int] = []
    for _ in range(query.batch):
        gain = weights @ np.maximum(kernel - covered[:, None], 0)
        gain[picked] = -1
        picked.append(int(gain.argmax()))
        covered = np.maximum(covered, kernel[:, picked[-1]])
    return np.array(picked)


def _bait(query: Query, options: dict[str, str]) -> np.ndarray:
    """Fisher information of the last layer, greedily (Ash et al., arXiv 2106.09675).

    Twice the batch is added, then half of it taken away again, so that tr(M^-1 F) is least: M is
    I + the information of labelled points and batch, F that of all points. Point x has the
    information V_x^T V_x, V_x (k, d) with rows sqrt(p_j) (e_j - p) (x) a. All V_x M^-1 are kept and
    moved by rank k, so that a pick costs O(m k^2 d).
    """
    p, n = query.probabilities, len(query.labeled)
    a = np.pad(query.features({}), ((0, 0), (0, 1)), constant_values=1.0)
    a /= np.sqrt((a * a).sum(axis=1).mean())
    k = p.shape[1]
    left = np.sqrt(p)[:, :, None] * (np.eye(k) - p[:, None])
    V = (left[..., None] * a[:, None, None]).reshape(len(p), k, -1).astype(np.float32)
    F = _information(V) / len(V)
    inverse = np.linalg.inv(np.eye(len(F)) + _information(V[:n])).astype(np.float32)
    V = V[n:]
    H = _rows_times(V, inverse)
    G, A = _rows_times(H, F), H @ V.transpose(0, 2, 1)
    B = G @ H.transpose(0, 2, 1)
    rows = np.arange(len(V))
    picked: list[int] = []
    for step in range(3 * query.batch):
        sign = 1 if step < 2 * query.batch else -1
        if step == 2 * query.batch:  # only what was added can go
            rows = np.array(picked)
            V, H, G, A, B = (array[rows] for array in (V, H, G, A, B))
        S = np.eye(k) + sign * A.astype(np.float64)
        gain = sign * np.trace(np.linalg.solve(S, B.astype(np.float64)), axis1=1, axis2=2)
        gain[np.isin(rows, picked) == (sign > 0)] = -np.inf
        at = int(gain.argmax())
        (picked.append if sign > 0 else picked.remove)(int(rows[at]))
        root = np.linalg.inv(np.linalg.cholesky(S[at])).astype(np.float32)
        Q = H[at].T @ root.T  # M^-1 becomes M^-1 - sign Q Q^T
        W, GQ, FQ = _rows_times(V, Q), _rows_times(G, Q), F @ Q
        WT = W.transpose(0, 2, 1)
        B = B - sign * (GQ @ WT + W @ GQ.transpose(0, 2, 1)) + W @ (Q.T @ FQ) @ WT
        A = A - sign * (W @ WT)
        H -= sign * _rows_times(W, Q.T)
        G -= sign * _rows_times(W, FQ.T)
    return np.array(picked)


def _rows_times(V: np.ndarray, M: np.ndarray) -> np.ndarray:
    """Return V @ M for V (m, k, d), by one product of matrices in place of m small ones."""
    return (V.reshape(-1, V.shape[2]) @ M).reshape(*V.shape[:2], -1)


def _information(V: np.ndarray) -> np.ndarray:
    flat = V.reshape(-1, V.shape[2])
    return flat.T @ flat


def _pseudo_labels(X: np.ndarray, y: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Clusters of points (m, h), of which the first have the labels y (n,).

    k-means with a cluster a label, at least `classes` and at most 100; a cluster with labels of
    several classes is parted, every point going with the nearest of them.
    """
    from sklearn.cluster import KMeans

    count = min(max(len(y), classes), 100)
    found = KMeans(count, n_init=1, random_state=seed).fit_predict(X)
    result = found.copy()
    for cluster in range(count):
        labels = np.flatnonzero(found[: len(y)] == cluster)
        if len(labels) == 0:
            continue
        members = np.flatnonzero(found == cluster)
        nearest = y[labels][_squared_distances(X[members], X[labels]).argmin(axis=1)]
        for label in np.unique(y[labels])[1:]:
            result[members[nearest == label]] = result.max() + 1
    return result


def _ntkcpl(query: Query, options: dict[str, str]) -> np.ndarray:
    """Most points whose predicted cluster is their own (after Wen et al., arXiv 2306.04099).

    Clusters of the embeddings of unit length stand for labels. Every candidate is tried with its
    cluster as label, and the tangent kernel predicts the cluster of every candidate (squared loss).
    Written from the description: their kernel is that of an untrained head on self-supervised
    features, ours that of the trained network.
    """
    n = len(query.labeled)
    clusters = _pseudo_labels(
        _normalized(query.features({})),
        query.split.y[query.labeled],
        query.split.classes,
        int(query.rng.integers(2**31)),
    )
    ntk = nf.EmpiricalNTK(query.model, sketch="sparse", dim=SKETCH_DIMENSION)
    phi = np.asarray(ntk.features(query.split.X[query.points]))
    zeros = np.zeros((len(phi), clusters.max() + 1))
    posterior = nf.Posterior.from_features(
        phi[n:], zeros[n:], phi[:n], zeros[:n], clusters[:n], loss="squared"
    )
    own, rows = clusters[n:], np.arange(len(phi) - n)
    picked: list[int] = []
    for _ in range(query.batch):
        S = np.asarray(posterior.covariance(rows, rows), np.float32)
        a = S / (S.diagonal() + np.float32(posterior.ridge))
        F = np.asarray(posterior.mean, np.float32)
        right = np.empty(len(rows), int)
        for c in rows:
            after = F - a[:, c, None] * F[c]
            after[:, own[c]] += a[:, c]
            right[c] = (after.argmax(axis=1) == own).sum()
        right[picked] = -1
        picked.append(int(right.argmax()))
        posterior.condition(picked[-1:], own[picked[-1:]])
    return np.array(picked)


def _ceiling(query: Query, options: dict[str, str]) -> np.ndarray:
    """Best of 50 batches by the true labels: how much there is to win (as BoSS, arXiv 2603.13109).

    Proposed are batches of our default, margin, BADGE, CoreSet and MaxHerding, and random ones out
    of the most uncertain; each is tried by training on it, and judged by the accuracy on all
    candidates. The test set is not looked at.
    """
    proposals = [
        pick_positions(query, name)
        for name in ("default", "margin", "badge", "coreset", "maxherding")
    ]
    uncertain = np.argsort(_margins(query.of_candidates))
    for i in range(_PROPOSALS - len(proposals)):
        share = (0.1, 0.2, 0.4, 0.7, 1.0)[i % 5]
        among = uncertain[: max(query.batch, int(share * len(uncertain)))]
        proposals.append(query.rng.choice(among, query.batch, replace=False))
    models = query.train(
        [np.concatenate([query.labeled, query.candidates[batch]]) for batch in proposals]
    )
    X, y = query.split.X[query.candidates], query.split.y[query.candidates]
    right = [(outputs(model, X).argmax(axis=1) == y).mean() for model in models]
    return proposals[int(np.argmax(right))]


BASELINES: dict[str, Strategy] = {
    "random": _random,
    "entropy": _entropy,
    "margin": _margin,
    "uherding": _uncertainty_herding,
    "bait": _bait,
    "ntkcpl": _ntkcpl,
    "ceiling": _ceiling,
    **{
        name: functools.partial(_of_skactiveml, name)
        for name in ("badge", "coreset", "typiclust", "probcover", "maxherding", "dropquery")
    },
}


def _look_ahead(query: Query, criterion: str, options: dict[str, str]) -> np.ndarray:
    """Ask `LookAheadLearner`; options it does not have go to the query."""
    arguments: dict[str, Any] = {"sketch": "sparse", "dim": SKETCH_DIMENSION}
    of_query: dict[str, Any] = {}
    for name, value in options.items():
        if name == "top":
            arguments["mode"] = "top"
        elif name in ("outputs", "layers"):
            arguments[name] = value
        elif name in ("draws", "dim"):
            arguments[name] = int(value)
        elif name == "published" and criterion == "uncertainty_herding":
            of_query["radius"] = None  # below
        elif name == "exact":
            arguments["sketch"] = None
        elif name == "T":
            of_query["temperature"] = float(value)
        elif name == "T_r":
            arguments["residual_temperature"] = float(value)
        else:
            raise ValueError(f"{name!r} is no option of a look-ahead strategy")
    learner = nf.LookAheadLearner(
        query.model, loss=query.loss, criterion="auto" if criterion == "default" else criterion,
        **arguments,
    )  # fmt: skip
    X, labeled = query.split.X, query.labeled
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the labels outnumber", UserWarning)
        learner.fit(X[labeled], query.split.y[labeled], X[query.candidates])
    if "radius" in of_query:  # of arXiv 2412.20644: the smallest distance of two labelled points
        phi = _normalized(np.asarray(learner.ntk.features(X[labeled]), np.float64))
        squares = _squared_distances(phi, phi)
        of_query["radius"] = float(np.sqrt(squares[squares > 1e-10].min()))
    return np.asarray(learner.query(query.batch, **of_query).indices)


def parsed(name: str) -> tuple[str, dict[str, str]]:
    """Split ``epig+top+T=2`` into the name and the options, without a value the empty string."""
    head, *options = name.split("+")
    return head, {key: value for key, _, value in (option.partition("=") for option in options)}


def known() -> list[str]:
    """Names of strategies, without options."""
    return [*BASELINES, "default", *(row.name for row in nf.criteria())]


def pick_positions(query: Query, name: str) -> np.ndarray:
    head, options = parsed(name)
    if head in BASELINES:
        return BASELINES[head](query, options)
    if head in known():
        return _look_ahead(query, head, options)
    raise ValueError(f"unknown strategy {name!r}; known: {', '.join(known())}")


def pick(query: Query, name: str) -> np.ndarray:
    """Points of the pool that a strategy asks for."""
    positions = pick_positions(query, name)
    if len(set(positions.tolist())) != query.batch:
        raise AssertionError(f"{name} picked {positions.tolist()}: not {query.batch} points")
    return query.candidates[positions]
