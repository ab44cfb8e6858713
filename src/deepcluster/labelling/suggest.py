"""Which images a person should label first.

The pool is cut into as many parts as images are wanted, and of each part the most typical image is
asked for: the one nearest its own neighbours on average. This is TypiClust (Hacohen et al. 2022)
with two differences: parts are communities of the neighbour graph rather than of k-means, because
ten of them meet the classes far better; and images that are labelled already count, so a part that
holds one is passed over. Once a classifier is there, parts that it doubts come first, and only
images that it doubts are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from deepcluster.clustering.graph import cluster_graph
from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.neighbours import knn
from deepcluster.labelling.candidates import Pool

GRAPH_UP_TO = 300  # parts; more of them are hardly larger than the patches that the graph joins
DOUBTED = 8  # images that may be asked for, for each that is, in later rounds
NEAR = 10  # neighbours that say how typical an image is


@dataclass(frozen=True)
class Suggestion:
    """Images to label, and which others each speaks for."""

    rows: np.ndarray  # (m,) rows of the pool, the first to be labelled first
    part: np.ndarray  # (n,) int64, the position in `rows` of the image that speaks for a row; -1


def typicality(features: np.ndarray) -> np.ndarray:
    """One over the mean distance to the nearest images, ``(n,)``."""
    count = min(NEAR, len(features) - 1)
    distance = knn(torch.from_numpy(np.ascontiguousarray(features)), count)[1].numpy()
    found: np.ndarray = 1 / (distance.mean(axis=1) + 1e-6)
    return found


def suggest(
    pool: Pool,
    count: int,
    *,
    labelled: np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
    seed: int = 0,
) -> Suggestion:
    """Choose images to label.

    Args:
        pool: the images.
        count: how many to choose; fewer come back where fewer are left.
        labelled: rows that have a label already; they are never chosen.
        probabilities: ``(n, classes)`` of the classifier so far; None in the first round.
        seed: of the parts.
    """
    n = len(pool.features)
    labelled = np.zeros(0, np.int64) if labelled is None else np.asarray(labelled, np.int64)
    open_ = np.ones(n, bool)
    open_[labelled] = False
    count = min(count, int(open_.sum()))
    if count < 1:
        return Suggestion(np.zeros(0, np.int64), np.full(n, -1))
    typical = typicality(pool.features)
    if probabilities is None:
        part = cut(pool.features, min(n, count + len(labelled)), seed)
        taken = np.unique(part[labelled])
        parts = np.array([k for k in np.unique(part) if k not in taken], np.int64)
    else:
        top = -np.sort(-probabilities, axis=1)[:, :2]
        doubt = np.where(open_, 1 - (top[:, 0] - top[:, 1]), -1)
        asked = np.argsort(-doubt, kind="stable")[: max(count, min(DOUBTED * count, n // 2))]
        asked = asked[open_[asked]]
        part = np.full(n, -1)
        part[asked] = cut(pool.features[asked], min(len(asked), count), seed)
        parts = np.arange(part.max() + 1)
    chosen: list[int] = []
    for k in sorted(parts.tolist(), key=lambda k: -int((part == k).sum())):
        members = np.flatnonzero((part == k) & open_)
        if len(members) and len(chosen) < count:
            chosen.append(int(members[typical[members].argmax()]))
    rows = _filled(pool.features, chosen, np.flatnonzero(open_), count)
    position = {int(part[row]): i for i, row in enumerate(chosen)}
    speaks = np.array([position.get(int(k), -1) for k in part]) if position else np.full(n, -1)
    speaks[labelled] = -1
    speaks[rows] = np.arange(len(rows))
    return Suggestion(rows, speaks)


def cut(features: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """The part of each image, ``(n,)``: communities of the graph, or k-means for very many."""
    x = torch.from_numpy(np.ascontiguousarray(features))
    generator = torch.Generator().manual_seed(seed)
    if parts <= GRAPH_UP_TO:
        return cluster_graph(x, parts, generator=generator).assign(x)[0].numpy()
    return kmeans(x, parts, generator=generator).labels.numpy()


def _filled(features: np.ndarray, chosen: list[int], left: np.ndarray, count: int) -> np.ndarray:
    """`chosen`, and where parts were too few the images farthest from all of them, to `count`."""
    rows = list(chosen)
    if len(rows) >= count:
        return np.array(rows, np.int64)
    left = np.setdiff1d(left, rows)
    held = features[rows] if rows else features[left].mean(axis=0, keepdims=True)
    nearest = (features[left] @ held.T).max(axis=1)
    while len(rows) < count:
        i = int(nearest.argmin())
        rows.append(int(left[i]))
        nearest = np.maximum(nearest, features[left] @ features[left[i]])
        nearest[i] = np.inf
    return np.array(rows, np.int64)
