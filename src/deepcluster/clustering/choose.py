"""How many clusters there are, from the features alone.

The neighbour graph is cut into every number of clusters from 2 on, several times, each time from
other landmarks. The score of a number is the product of

- their modularity: edges kept within clusters, less those that chance would keep (Newman 2004);
- their stability: adjusted mutual information of two cuts, over all pairs (von Luxburg 2010);
- the gap between them: of two rows of one cluster, how often the one with a neighbour in another
  cluster lies farther from its neighbours than one without. Between two groups rows are sparse;
  where a group was cut in two they are as dense as elsewhere. It has no wish for any size.

Each alone fails on the features of a net. Stability as a rule falls with each further cut and
prefers two, and the gap does so where groups touch; modularity rises when a class is split.

How far these and other criteria land from the truth is in docs/log.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.graph import (
    agglomerate,
    between_clusters,
    cluster_at,
    edges,
    landmarks,
    patch_graph,
    refine,
)
from deepcluster.processes import Spread

DRAWS = 4
"""Sets of landmarks."""
PATCHES = 200
"""Landmarks of a set, unless ten for each of the most clusters are more."""
QUERIES = 3000
"""Rows whose edges are counted."""
JUDGED = 1500
"""Rows on which cuts are judged."""


@dataclass(frozen=True)
class Choice:
    """A number of clusters, and what was looked at."""

    k: int
    scores: dict[int, float]  # of each number of clusters, at most 1; the best is k's


def choose_clusters(
    x: Tensor, *, largest: int, neighbours: int = 15, generator: torch.Generator
) -> Choice:
    """Choose the number of clusters of the rows, from 2 to `largest`.

    Time grows with `largest` and hardly with n; above 40 not every number is looked at.

    Args:
        x: ``(n, d)`` features, as a rule L2-normalised; on any device.
        largest: most clusters to look at.
        neighbours: edges that go out from a row.
        generator: a CPU generator, the only source of randomness.

    Returns:
        The number of best score, the smaller one of a tie, and all scores. Fewer than three rows
        that differ are as many clusters, and have no scores.

    Raises:
        ValueError: `largest` is below 2.
    """
    if largest < 2:
        raise ValueError(f"largest = {largest}: choose among at least 2 clusters")
    from sklearn.metrics import adjusted_mutual_info_score

    x, n = x.detach(), len(x)
    wanted = min(n, max(PATCHES, 10 * largest))
    judged = torch.randperm(n, generator=generator)[:JUDGED].to(x.device)
    draws = []
    for _ in range(DRAWS):
        centers, patch = landmarks(Spread(x, n), wanted, 2, generator)
        asking, found = edges(Spread(x, n), neighbours, QUERIES, generator)
        weights = patch_graph(centers, patch, asking, found)
        away = (x[found].float() - x[asking].float()[:, None]).norm(dim=2).mean(1)
        numbers = [patch[judged], patch[asking], patch[found], away]
        draws.append((weights, agglomerate(weights)[0], *(each.cpu().numpy() for each in numbers)))
    fewest = min(len(draw[0]) for draw in draws)
    scores = {}
    for k in _numbers(min(largest, fewest - 1)):
        kept, apart, cuts = [], [], []
        for weights, merges, seen, own, beside, away in draws:
            cluster = refine(weights, cluster_at(merges, len(weights), k))  # of each patch
            cuts.append(cluster[seen])
            kept.append(_modularity(between_clusters(weights, cluster)))
            apart.append(gap(cluster[own], cluster[beside], away))
        again = [adjusted_mutual_info_score(a, b) for a, b in itertools.combinations(cuts, 2)]
        factors = [np.mean(kept), np.mean(again), np.mean(apart)]
        scores[k] = float(np.prod(np.maximum(factors, 0)))
    return Choice(max(scores, key=lambda k: scores[k], default=fewest), scores)


def _numbers(largest: int) -> Iterator[int]:
    """All numbers from 2 to 40, then one in 20, and the largest."""
    k = 2
    while k < largest:
        yield k
        k += max(1, k // 20)
    if largest >= 2:
        yield largest


def _modularity(share: np.ndarray) -> float:
    """Share of the edges within clusters, less what chance would keep there."""
    return float(share.trace() - (share.sum(0) ** 2).sum())


def gap(cluster: np.ndarray, beside: np.ndarray, away: np.ndarray) -> float:
    """How sparse the rows between clusters are, from -1 to 1: 0 as dense as elsewhere.

    Twice the area under the ROC curve, less 1, of `away` telling the rows with a neighbour in
    another cluster from the others of their cluster; mean over the clusters, weighted by size. One
    without such rows counts as 1, one with no others as 0.

    Args:
        cluster: ``(q,)`` int64 from 0, the cluster of each row.
        beside: ``(q, neighbours)``, the clusters of its neighbours.
        away: ``(q,)``, how far they are.
    """
    between = (beside != cluster[:, None]).any(1)
    size = np.bincount(cluster)
    order = np.lexsort((away, cluster))
    place = np.arange(1, len(cluster) + 1) - (np.cumsum(size) - size)[cluster[order]]
    steps = (np.diff(cluster[order]) != 0) | (np.diff(away[order]) != 0)
    tie = np.append(0, np.cumsum(steps))  # equal rows share the mean of their places
    rank = np.empty(len(cluster))
    rank[order] = (np.bincount(tie, place) / np.bincount(tie))[tie]
    outer = np.bincount(cluster, between)
    pairs = outer * (size - outer)
    won = np.bincount(cluster, between * rank) - outer * (outer + 1) / 2
    area = np.where(pairs > 0, won / np.maximum(pairs, 1), np.where(outer > 0, 0.5, 1))
    return float(2 * (size * area).sum() / size.sum() - 1)
