"""How many clusters there are, from the features alone.

The neighbour graph is cut into every number of clusters from 2 on, several times, each time from
other landmarks. The score of a number is the product of

- what an edge tells: the mutual information of the clusters at its two ends, over their entropy. A
  rare group that lies apart raises it, half of a large one lowers it, whatever the sizes;
- their modularity: edges kept within clusters, less those that chance would keep (Newman 2004);
- their stability: adjusted mutual information of two cuts, over all pairs (von Luxburg 2010).

Each alone fails on the features of a net. What an edge tells falls with each further cut, and
so does stability as a rule: both prefer two; modularity rises when a class is split.

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
    told_by_edges,
)

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
    x, n = x.detach().float(), len(x)
    wanted = min(n, max(PATCHES, 10 * largest))
    judged = torch.randperm(n, generator=generator)[:JUDGED].to(x.device)
    draws = []
    for _ in range(DRAWS):
        centers, patch = landmarks(x, wanted, 2, generator)
        weights = patch_graph(centers, patch, *edges(x, neighbours, QUERIES, generator))
        draws.append((weights, agglomerate(weights)[0], patch[judged].cpu().numpy()))
    from sklearn.metrics import adjusted_mutual_info_score

    fewest = min(len(weights) for weights, _, _ in draws)
    scores = {}
    for k in _numbers(min(largest, fewest - 1)):
        cuts = [
            refine(weights, cluster_at(merges, len(weights), k)) for weights, merges, _ in draws
        ]
        found = [c[own] for c, (_, _, own) in zip(cuts, draws, strict=True)]
        shares = [
            between_clusters(weights, c) for c, (weights, _, _) in zip(cuts, draws, strict=True)
        ]
        told = [_told(share) for share in shares]
        kept = [_modularity(share) for share in shares]
        again = [adjusted_mutual_info_score(a, b) for a, b in itertools.combinations(found, 2)]
        factors = [np.mean(told), np.mean(kept), np.mean(again)]
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


def _told(share: np.ndarray) -> float:
    """Normalised mutual information of the clusters at the two ends of an edge."""
    told, entropy = told_by_edges(share)
    return told / entropy if entropy > 0 else 0.0
