"""Nearest neighbours of every image, and what follows from them: outliers and near-duplicates.

Exact up to EXACT_UP_TO images. Above that, an inverted file (Jégou et al., "Product quantization
for nearest neighbor search", 2011, section IV, without the quantization): the images are split
into about √n cells and an image is compared with the cells nearest to its own. The share of true
neighbours this finds is measured on a sample and printed on the page.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np

NEIGHBOURS = 12
EXACT_UP_TO = 20_000
DIMENSIONS = 128  # of the space searched; wider features are projected on principal components
PROBES = 16  # cells an image is compared with
CHECKED = 256  # images whose neighbours are also found exactly, to measure the recall
DUPLICATE_RATIO = 0.25  # of the median distance to the nearest neighbour
PAIRS_SHOWN, OUTLIERS_SHOWN = 500, 500


@dataclass(frozen=True)
class Neighbours:
    """The nearest images of each image."""

    index: np.ndarray  # (n, k) uint32, nearest first, never the image itself
    distance: np.ndarray  # (n, k) float32
    recall: float  # share of the true neighbours that were found; 1 where the search is exact
    kept_variance: float  # share of the variance in the space that was searched


@dataclass(frozen=True)
class Duplicates:
    """Pairs of images that are nearly the same."""

    pairs: np.ndarray  # (m, 2) uint32, closest first, at most PAIRS_SHOWN
    distance: np.ndarray  # (m,) float32
    threshold: float
    total: int  # pairs below the threshold among the nearest neighbours


def find_neighbours(embeddings: np.ndarray, k: int = NEIGHBOURS) -> Neighbours:
    """The `k` nearest images of each image (all others, if they are fewer).

    Args:
        embeddings: ``(n, d)`` features.
        k: neighbours of an image.
    """
    n = len(embeddings)
    k = min(k, n - 1)
    if k < 1:
        return Neighbours(np.zeros((n, 0), np.uint32), np.zeros((n, 0), np.float32), 1.0, 1.0)
    points, kept = _project(embeddings)
    if n <= EXACT_UP_TO:
        index, recall = _exact(points, points, np.arange(n), k), 1.0
    else:
        index = _search_cells(points, k)
        checked = np.random.default_rng(0).choice(n, CHECKED, replace=False)
        truth = _exact(points, points[checked], checked, k)
        found = (truth[:, :, None] == index[checked][:, None, :]).any(axis=2)
        recall = float(found.mean())
    # Distances from products of matrices lose the smallest digits, which near-duplicates need.
    distance = np.empty(index.shape, np.float32)
    for rows in _chunks(n, 8192):
        difference = points[index[rows]] - points[rows, None]  # (rows, k, d)
        distance[rows] = np.linalg.norm(difference, axis=2)
    order = np.argsort(distance, axis=1, kind="stable")
    return Neighbours(
        np.take_along_axis(index, order, 1).astype(np.uint32),
        np.take_along_axis(distance, order, 1),
        recall,
        kept,
    )


def find_outliers(neighbours: Neighbours, count: int = OUTLIERS_SHOWN) -> np.ndarray:
    """The images of largest mean distance to their neighbours, ``(m,)``, farthest first."""
    if not neighbours.distance.shape[1]:
        return np.zeros(0, np.uint32)
    mean = neighbours.distance.mean(axis=1)
    return np.argsort(-mean, kind="stable")[:count].astype(np.uint32)


def find_duplicates(neighbours: Neighbours, count: int = PAIRS_SHOWN) -> Duplicates:
    """Pairs closer than a quarter of the median distance to the nearest neighbour."""
    n, k = neighbours.distance.shape
    if not k:
        return Duplicates(np.zeros((0, 2), np.uint32), np.zeros(0, np.float32), 0.0, 0)
    threshold = float(np.median(neighbours.distance[:, 0])) * DUPLICATE_RATIO
    row, column = np.nonzero(neighbours.distance <= threshold)
    pairs = np.stack([row, neighbours.index[row, column]], 1)
    distance = neighbours.distance[row, column]
    pairs.sort(axis=1)
    _, first = np.unique(pairs[:, 0].astype(np.int64) * n + pairs[:, 1], return_index=True)
    best = first[np.argsort(distance[first], kind="stable")]
    return Duplicates(
        pairs[best[:count]].astype(np.uint32), distance[best[:count]], threshold, len(best)
    )


def _project(embeddings: np.ndarray) -> tuple[np.ndarray, float]:
    """Features in at most DIMENSIONS dimensions, and the share of the variance they keep."""
    n, d = embeddings.shape
    if d <= DIMENSIONS or n <= DIMENSIONS:
        return np.ascontiguousarray(embeddings, np.float32), 1.0
    from sklearn.decomposition import PCA

    sample = np.sort(np.random.default_rng(0).choice(n, min(n, 10_000), replace=False))
    pca = PCA(DIMENSIONS, svd_solver="randomized", random_state=0)
    pca.fit(np.asarray(embeddings[sample], np.float32))
    points = np.empty((n, DIMENSIONS), np.float32)
    for rows in _chunks(n, 8192):
        points[rows] = pca.transform(np.asarray(embeddings[rows], np.float32))
    return points, float(pca.explained_variance_ratio_.sum())


def _exact(points: np.ndarray, queries: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:
    """The `k` nearest of `points` to each query, ``(m, k)``, without the query's `own` row."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(points)
    found = search.kneighbors(queries, return_distance=False)
    return _without(found, own, k)


def _without(found: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:
    """`found` ``(m, > k)`` without each row's `own` entry (it may be missing), the first `k`."""
    last = np.argsort(found == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(found, last, 1)[:, :k]


def _search_cells(points: np.ndarray, k: int) -> np.ndarray:
    """About the `k` nearest points of each point, ``(n, k)``."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    n = len(points)
    cells = round(math.sqrt(n))
    sample = np.random.default_rng(0).choice(n, min(n, 30 * cells), replace=False)
    means = KMeans(cells, init="random", n_init=1, max_iter=8, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal points leave cells empty
        means.fit(points[sample])
    centres = means.cluster_centers_.astype(np.float32)
    cell = means.predict(points)
    order = np.argsort(cell, kind="stable")
    starts = np.searchsorted(cell[order], np.arange(cells + 1))
    near = np.argsort(_squared(centres, centres), axis=1, kind="stable")
    index = np.empty((n, k), np.int64)
    for c in range(cells):
        queries = order[starts[c] : starts[c + 1]]
        if not len(queries):
            continue
        # The cell itself, then its nearest ones: PROBES of them, or more until there are enough.
        filled = np.cumsum(starts[near[c] + 1] - starts[near[c]])
        probes = max(PROBES, int(np.searchsorted(filled, k + 1)) + 1)
        candidates = np.concatenate([order[starts[j] : starts[j + 1]] for j in near[c, :probes]])
        for rows in _chunks(len(queries), max(1, 20_000_000 // len(candidates))):
            squared = _squared(points[queries[rows]], points[candidates])
            best = np.argpartition(squared, min(k, len(candidates) - 1), axis=1)[:, : k + 1]
            nearest = np.argsort(np.take_along_axis(squared, best, 1), axis=1, kind="stable")
            found = candidates[np.take_along_axis(best, nearest, 1)]
            index[queries[rows]] = _without(found, queries[rows], k)
    return index


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances ``(len(a), len(b))`` less each row's own squared length."""
    squared: np.ndarray = np.square(b).sum(axis=1) - 2 * (a @ b.T)
    return squared


def _chunks(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
