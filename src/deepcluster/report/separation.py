"""Do the clusters stand apart? Told from the nearest neighbours of the images, without labels.

Two clusters that are two kinds have few neighbours across. How few is few depends on the data: in a
space of many directions, a cut through the middle of one kind crosses a third of all edges, in the
plane hardly any. So the share of edges that cross between two clusters is set against the share
that cross when one of them is itself cut in two (by k-means): the *overlap* of the pair. About 1
means that the border is like a cut through the middle of a kind, near 0 that there is a gap. The
other way round, a cluster whose halves hardly overlap is two kinds in one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOUCHING = 0.3  # overlap of two clusters that may be one kind cut in two
CROSSING = 0.015  # share of edges across, below which there is a gap whatever the overlap
MIXED = 0.13  # overlap of the halves of a cluster that may be two kinds
LOOKED_AT = 100  # clusters, the largest
LEAST_INSIDE = 0.02  # share taken for the inside of clusters whose halves cross less
FEWEST = 30  # images of a cluster that is looked at: of fewer, a share says nothing
SMALL_HALF = 0.05  # of a cluster's images: fewer are outliers, not a kind
SPLIT_ON = 2000  # images on which the halves of a cluster are found
PIECE = 8192  # images whose features are read at a time


@dataclass(frozen=True)
class Separation:
    """Clusters that may be one kind cut in two, or two kinds in one."""

    touching: list[tuple[int, int, float]]  # two clusters and their overlap, the largest first
    mixed: list[tuple[int, float]]  # a cluster and the overlap of its halves, the smallest first
    looked: int  # clusters that were looked at; the others are too small, or one of very many


def find_separation(
    embeddings: np.ndarray, clusters: np.ndarray, neighbours: np.ndarray
) -> Separation:
    """Look at the borders between clusters, and inside them.

    Args:
        embeddings: ``(n, d)`` features.
        clusters: ``(n,)``, -1 for none.
        neighbours: ``(n, k)`` the nearest images of each.
    """
    numbers, sizes = np.unique(clusters[clusters >= 0], return_counts=True)
    looked = numbers[np.argsort(-sizes, kind="stable")][:LOOKED_AT]
    looked = looked[np.sort(sizes)[::-1][:LOOKED_AT] >= FEWEST]
    touching: dict[tuple[int, int], float] = {}
    mixed = []
    for cluster in looked.tolist():
        rows = np.flatnonzero(clusters == cluster)
        halves = _halve(embeddings, rows)
        inside = _crossing(rows, halves, neighbours, len(clusters))
        if inside is None:
            continue
        near = clusters[neighbours[rows]]
        own = int((near == cluster).sum())
        for other in looked.tolist():
            across = int((near == other).sum())
            if other != cluster and across:
                pair = (min(cluster, other), max(cluster, other))
                share = across / (across + own)
                if share > CROSSING:
                    overlap = share / max(inside, LEAST_INSIDE)
                    touching[pair] = max(touching.get(pair, 0.0), overlap)
        parts = [rows[halves == side] for side in (0, 1)]
        if min(map(len, parts)) >= max(FEWEST, SMALL_HALF * len(rows)):
            within = [_crossing(p, _halve(embeddings, p), neighbours, len(clusters)) for p in parts]
            known = [share for share in within if share is not None]
            if len(known) == 2:
                mixed.append((cluster, inside / max(min(known), 1e-9)))
    pairs = sorted(((a, b, v) for (a, b), v in touching.items()), key=lambda p: -p[2])
    return Separation(
        [p for p in pairs if p[2] > TOUCHING],
        sorted((m for m in mixed if m[1] < MIXED), key=lambda m: m[1]),
        len(looked),
    )


def _halve(embeddings: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """0 or 1 for each of the rows: the two clusters of k-means."""
    from sklearn.cluster import KMeans

    some = np.asarray(embeddings[rows[:: -(-len(rows) // SPLIT_ON)]], np.float32)
    if not np.ptp(some, axis=0).any():
        return np.zeros(len(rows), np.int64)
    means = KMeans(2, n_init=1, max_iter=20, random_state=0).fit(some).cluster_centers_
    halves = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), PIECE):
        points = np.asarray(embeddings[rows[start : start + PIECE]], np.float32)
        first, second = (np.square(points - mean).sum(axis=1) for mean in means)
        halves[start : start + PIECE] = first > second
    return halves


def _crossing(rows: np.ndarray, halves: np.ndarray, neighbours: np.ndarray, n: int) -> float | None:
    """Share of a half's edges among the rows that lead to the other half, of the worse half."""
    if halves.min() == halves.max():
        return None
    half = np.full(n, -1, np.int8)
    half[rows] = halves
    ends = half[neighbours[rows]]
    shares = []
    for side in (0, 1):
        mine = ends[halves == side]
        own, across = int((mine == side).sum()), int((mine == 1 - side).sum())
        if not own + across:
            return None
        shares.append(across / (own + across))
    return max(shares)
