"""What follows from the nearest neighbours of every image: outliers and near-duplicates.

The fit has written the neighbours into the run folder. A run of an older version gets them here,
once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deepcluster.run import NEIGHBOURS, Neighbours, RunDir

DUPLICATE_RATIO = 0.25  # of the median distance to the nearest neighbour
PAIRS_SHOWN, OUTLIERS_SHOWN = 500, 500


@dataclass(frozen=True)
class Duplicates:
    """Pairs of images that are nearly the same."""

    pairs: np.ndarray  # (m, 2) uint32, closest first, at most PAIRS_SHOWN
    distance: np.ndarray  # (m,) float32
    threshold: float
    total: int  # pairs below the threshold among the nearest neighbours


def read_neighbours(run: RunDir, embeddings: np.ndarray) -> Neighbours:
    """The run's neighbours; found and written first where a run of an older version lacks them."""
    n = len(embeddings)
    known = run.read_neighbours(n)
    if known is not None:
        return known
    k = min(NEIGHBOURS, n - 1)
    index = np.zeros((n, 0), np.int64)
    if k:
        from sklearn.neighbors import NearestNeighbors

        points = np.asarray(embeddings, np.float32)
        index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors()[1]
    # Distances from products of matrices lose the smallest digits, which near-duplicates need.
    distance = np.empty(index.shape, np.float32)
    for start in range(0, n, 8192):
        rows = slice(start, start + 8192)
        distance[rows] = np.linalg.norm(embeddings[index[rows]] - embeddings[rows, None], axis=2)
    order = np.argsort(distance, axis=1, kind="stable")
    found = Neighbours(
        np.take_along_axis(index, order, 1).astype(np.uint32),
        np.take_along_axis(distance, order, 1),
        1.0,
    )
    run.write_neighbours(found)
    return found


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
