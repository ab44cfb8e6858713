"""Scores of clusters and of features: numpy in, a float out.

To add one, write a function and its line in METRICS. The names of its parameters say what it needs:

- ``clusters``: the cluster of each image, ``(n,)`` integers;
- ``labels``: the true class of each image, ``(n,)`` integers;
- ``embeddings``: the features, ``(n, d)``;
- ``rng``: a numpy Generator, for what is drawn at random;
- ``train``: another ``(embeddings, labels)`` to learn from, or None.

:func:`evaluate` hands them over, and leaves a score out whose needs are not there. A negative
cluster or label means unknown; such rows are left out everywhere.

The article's NMI is normalised by the geometric mean, sqrt(H(A) H(B)), and is called ``nmi`` here;
scikit-learn's default is the arithmetic mean, ``nmi_arithmetic``, which is never larger.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

Train = tuple[np.ndarray, np.ndarray]

NEIGHBOURS, TEMPERATURE = 20, 0.07
KNN_QUERIES = 10_000
PROBE_ROWS, PROBE_QUERIES = 20_000, 50_000
SILHOUETTE_ROWS = 5_000
MODULARITY_ROWS, GRAPH_NEIGHBOURS = 5_000, 15


class TooFewError(ValueError):
    """There are too few rows, classes or clusters for this score to exist."""


def nmi(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Normalised mutual information, by the geometric mean of the entropies (the article's)."""
    return _nmi(clusters, labels, "geometric")


def nmi_arithmetic(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Normalised mutual information, by the arithmetic mean (scikit-learn's default)."""
    return _nmi(clusters, labels, "arithmetic")


def _nmi(clusters: np.ndarray, labels: np.ndarray, mean: str) -> float:
    from sklearn.metrics import normalized_mutual_info_score

    a, b = _known(clusters, labels)
    return float(normalized_mutual_info_score(b, a, average_method=mean))


def ari(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Adjusted Rand index: 1 is the same partition, 0 what chance gives."""
    from sklearn.metrics import adjusted_rand_score

    a, b = _known(clusters, labels)
    return float(adjusted_rand_score(b, a))


def acc(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Share of images that are right under the best one-to-one matching of clusters and classes.

    With more clusters than classes the clusters without a class count as wrong, and vice versa.
    """
    a, b = _known(clusters, labels)
    return _matched(a, b) / len(a)


def purity(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Share of images that belong to the most frequent class of their cluster.

    It rises with the number of clusters, up to 1 for a cluster an image.
    """
    a, b = _known(clusters, labels)
    return float(_contingency(a, b).max(axis=1).sum() / len(a))


def knn(
    embeddings: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    train: Train | None = None,
) -> float:
    """Accuracy of the 20 nearest neighbours' vote.

    By cosine; a neighbour of similarity s has exp(s / 0.07) votes (Wu et al., "Unsupervised Feature
    Learning via Non-Parametric Instance Discrimination", 2018). Without `train` the neighbours are
    the other images of the same set. Of more than 10,000 images that many are asked, drawn by
    `rng`.
    """
    queries = np.flatnonzero(labels >= 0)
    bank, answers = (embeddings, labels) if train is None else train
    members = np.flatnonzero(answers >= 0)
    if len(queries) == 0 or len(members) < (2 if train is None else 1):
        raise TooFewError("kNN needs an image to ask and, beside it, one to answer, with labels")
    if len(queries) > KNN_QUERIES:
        queries = np.sort(rng.choice(queries, KNN_QUERIES, replace=False))
    classes, votes_for = np.unique(answers[members], return_inverse=True)
    bank = _unit(bank[members])
    k = min(NEIGHBOURS, len(members) - (train is None))
    right = 0
    block = max(2**25 // len(members), 1)
    for start in range(0, len(queries), block):
        asked = queries[start : start + block]
        similarity = _unit(embeddings[asked]) @ bank.T  # (b, m)
        if train is None:  # nobody is their own neighbour
            similarity[np.arange(len(asked)), np.searchsorted(members, asked)] = -np.inf
        nearest = np.argpartition(similarity, -k, axis=1)[:, -k:]  # (b, k)
        weights = np.exp(np.take_along_axis(similarity, nearest, 1).astype(float) / TEMPERATURE)
        votes = np.zeros((len(asked), len(classes)))
        np.add.at(votes, (np.arange(len(asked))[:, None], votes_for[nearest]), weights)
        right += int((classes[votes.argmax(1)] == labels[asked]).sum())
    return right / len(queries)


def linear_probe(
    embeddings: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    train: Train | None = None,
) -> float:
    """Accuracy of a logistic regression (C = 1) on standardised features.

    It learns from `train`; without, from four fifths of the images, drawn by `rng`, and is measured
    on the rest. It learns from 20,000 images at most and is measured on 50,000, drawn by `rng`.
    """
    known = np.flatnonzero(labels >= 0)
    if train is None:
        known = rng.permutation(known)
        held = max(len(known) // 5, 1)
        test, rest = np.sort(known[:held]), np.sort(known[held:])
        train = (embeddings[rest], labels[rest])
    else:
        test = known
        answered = np.flatnonzero(train[1] >= 0)
        train = (train[0][answered], train[1][answered])
    if len(test) == 0 or len(train[1]) == 0:
        raise TooFewError("a linear probe needs labelled images to learn from and to test on")
    test = _some(test, PROBE_QUERIES, rng)
    learnt = _some(np.arange(len(train[1])), PROBE_ROWS, rng)
    train = (train[0][learnt], train[1][learnt])
    if len(np.unique(train[1])) == 1:
        return float((labels[test] == train[1][0]).mean())
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(np.asarray(train[0], dtype=np.float64), train[1])
    return float(probe.score(np.asarray(embeddings[test], dtype=np.float64), labels[test]))


def silhouette(embeddings: np.ndarray, clusters: np.ndarray, rng: np.random.Generator) -> float:
    """Mean silhouette coefficient, Euclidean; of at most 5,000 images, drawn by `rng`."""
    rows = np.flatnonzero(clusters >= 0)
    if len(rows) > SILHOUETTE_ROWS:
        rows = np.sort(rng.choice(rows, SILHOUETTE_ROWS, replace=False))
    if not 2 <= len(np.unique(clusters[rows])) < len(rows):
        raise TooFewError("the silhouette needs two clusters and fewer clusters than images")
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(np.asarray(embeddings[rows]), clusters[rows]))


def modularity(embeddings: np.ndarray, clusters: np.ndarray, rng: np.random.Generator) -> float:
    """Share of an image's 15 nearest that are in its cluster, less what chance would give.

    Newman's modularity ("Fast algorithm for detecting community structure in networks", 2004) of
    the neighbour graph, every image with the same number of edges; Euclidean; of at most 5,000
    images that ask, drawn by `rng`. It needs no labels and tells runs on the same images apart, if
    they have the same number of clusters.
    """
    rows = np.flatnonzero(clusters >= 0)
    if len(rows) <= GRAPH_NEIGHBOURS:
        raise TooFewError(f"modularity needs more than {GRAPH_NEIGHBOURS} images with a cluster")
    x, own = embeddings, clusters
    if len(rows) < len(x):
        x, own = np.asarray(x[rows]), own[rows]
    asked = np.arange(len(rows))
    if len(rows) > MODULARITY_ROWS:
        asked = np.sort(rng.choice(len(rows), MODULARITY_ROWS, replace=False))
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=GRAPH_NEIGHBOURS + 1, algorithm="brute")
    found = search.fit(x).kneighbors(x[asked], return_distance=False)  # itself among them
    kept = (own[found] == own[asked][:, None])[found != asked[:, None]].mean()
    share = np.unique(own, return_counts=True)[1] / len(own)
    return float(kept - (share**2).sum())


def effective_rank(embeddings: np.ndarray) -> float:
    """In how many directions the features spread: 1 to d, and 0 if they are all the same.

    exp of the entropy of the singular values, divided by their sum (Roy and Vetterli, "The
    effective rank", 2007), of the centred features; from their covariance, in float64.
    """
    n, d = embeddings.shape
    blocks = range(0, n, 8192)
    mean = sum(np.asarray(embeddings[i : i + 8192], np.float64).sum(0) for i in blocks) / n
    covariance = np.zeros((d, d))
    for i in blocks:
        centred = np.asarray(embeddings[i : i + 8192], np.float64) - mean
        covariance += centred.T @ centred
    variance = np.linalg.eigvalsh(covariance)
    # What lies below float64's own error would otherwise count, after the root, as 1e-8.
    floor = max(variance[-1] * d, n * float((mean**2).max())) * np.finfo(np.float64).eps
    singular = np.sqrt(variance[variance > floor])
    if len(singular) == 0:
        return 0.0
    share = singular / singular.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def balanced_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the true classes of the share of their images that are predicted right.

    Not in METRICS: it is of a classifier, whose numbers mean the labels' classes. A label below 0
    is a class of its own, which no prediction meets.
    """
    return float(np.mean([(predicted[labels == k] == k).mean() for k in np.unique(labels)]))


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: how far confidences are from the shares of right answers.

    Args:
        confidence: ``(n,)`` probability of the predicted class.
        right: ``(n,)`` whether it was right.
        bins: of equal width, between 0 and 1 (15 in Guo et al. 2017).
    """
    place = np.minimum((np.asarray(confidence, np.float64) * bins).astype(int), bins - 1)
    gap = np.bincount(place, weights=confidence - np.asarray(right, np.float64), minlength=bins)
    return float(np.abs(gap).sum() / len(place))


METRICS: dict[str, Callable[..., float]] = {
    "nmi": nmi,
    "nmi_arithmetic": nmi_arithmetic,
    "ari": ari,
    "acc": acc,
    "purity": purity,
    "knn": knn,
    "linear_probe": linear_probe,
    "silhouette": silhouette,
    "modularity": modularity,
    "effective_rank": effective_rank,
}
"""Every score by name; the first line of a function's docstring says what it is."""


def needs(name: str) -> tuple[str, ...]:
    """What the score `name` cannot do without: of embeddings, clusters, labels, rng."""
    parameters = inspect.signature(METRICS[name]).parameters.values()
    return tuple(p.name for p in parameters if p.default is inspect.Parameter.empty)


def evaluate(
    embeddings: np.ndarray,
    clusters: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    train: Train | None = None,
    rng: np.random.Generator,
) -> dict[str, float]:
    """All scores of METRICS that can be had, by name, in its order.

    Args:
        embeddings: ``(n, d)``.
        clusters: ``(n,)`` integers, negative for unknown.
        labels: ``(n,)`` integers, negative for unknown, or None.
        train: embeddings and labels that kNN and the linear probe learn from; None is this set.
        rng: for what is drawn at random.
    """
    if labels is not None and not (np.asarray(labels) >= 0).any():
        labels = None
    given: dict[str, Any] = {
        "embeddings": embeddings,
        "clusters": np.asarray(clusters),
        "labels": None if labels is None else np.asarray(labels),
        "rng": rng,
        "train": train,
    }
    scores: dict[str, float] = {}
    for name, score in METRICS.items():
        if any(given[need] is None for need in needs(name)):
            continue
        wanted = {key: given[key] for key in inspect.signature(score).parameters}
        try:
            scores[name] = score(**wanted)
        except TooFewError:
            continue
    return scores


def occupancy(clusters: np.ndarray, k: int) -> dict[str, float]:
    """How evenly the images fill k clusters.

    Returns:
        ``largest`` and ``smallest``: share of the images in the largest and smallest cluster;
        ``empty``: clusters without an image; ``entropy``: of the shares over ln k, 1 if all are
        alike.
    """
    clusters = np.asarray(clusters)
    sizes = np.bincount(clusters[clusters >= 0], minlength=k)
    if len(sizes) > k:
        raise ValueError(f"found cluster {len(sizes) - 1}, expected numbers below k = {k}")
    if sizes.sum() == 0:
        raise TooFewError("no image has a cluster")
    share = sizes / sizes.sum()
    filled = share[share > 0]
    return {
        "largest": float(share.max()),
        "smallest": float(share.min()),
        "empty": int((sizes == 0).sum()),
        "entropy": float(-(filled * np.log(filled)).sum() / np.log(k)) if k > 1 else 1.0,
    }


def churn(previous: np.ndarray, now: np.ndarray) -> float:
    """Share of images that changed their cluster, under the best matching of old to new numbers."""
    a, b = _known(previous, now)
    return 1 - _matched(a, b) / len(a)


def _some(rows: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """At most so many of the rows, in their order."""
    return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))


def _known(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that are known in both, as two arrays of one length."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"found shapes {a.shape} and {b.shape}, expected two of one length (n,)")
    known = (a >= 0) & (b >= 0)
    if not known.any():
        raise TooFewError("no image is known in both")
    return a[known], b[known]


def _contingency(a: np.ndarray, b: np.ndarray) -> scipy.sparse.csr_matrix:
    """Images in each pair of a group of `a` and one of `b`, float64."""
    row, column = np.unique(a, return_inverse=True)[1], np.unique(b, return_inverse=True)[1]
    counts = scipy.sparse.coo_matrix((np.ones(len(a)), (row, column)))
    return counts.tocsr()  # which adds up what is in one place


def _matched(a: np.ndarray, b: np.ndarray) -> int:
    """Images in the pairs of the best one-to-one matching of the groups of `a` and `b`.

    Only pairs that share an image are looked at: 10,000 x 10,000 clusters would not fit otherwise.
    """
    counts = _contingency(a, b)
    counts.eliminate_zeros()
    rows = int(counts.shape[0])
    # A column of its own for each group of `a`, to stay alone in; the 1 added to every weight is in
    # each full matching `rows` times, and keeps a weight from being 0, which means absent here.
    weights = counts.copy()
    weights.data += 1
    weights = scipy.sparse.hstack([weights, scipy.sparse.identity(rows)], format="csr")
    row, column = min_weight_full_bipartite_matching(weights, maximize=True)
    return round(float(weights[row, column].sum())) - rows


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows of unit length, float32; a row of zeros stays zero."""
    x = np.asarray(x, dtype=np.float32)
    unit: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit
