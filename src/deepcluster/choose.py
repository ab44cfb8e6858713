"""How many clusters there are, from the features alone.

The neighbour graph is cut into every number of clusters from 2 on, several times, each time from
other landmarks. The score of a number is the mean over these cuts of

    silhouette coefficient (Rousseeuw 1987) × squared evenness of the clusters,

where evenness is the entropy of the shares over ln k (:func:`metrics.even_silhouette`). The
silhouette alone goes on to rise a little when a class falls apart into two that do lie apart, say
sevens with and without a bar; then the clusters are less even. That is a prior, the one that
:mod:`deepcluster.graph` has among cuts: where the largest group is many times the smallest, the
answer tends to be too small.

Other criteria that were tried, and how far each landed, are in docs/log.md: stability under other
landmarks, prediction strength, modularity, the eigengap, edges between the closest clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepcluster.graph import cut, landmarks, patch_graph
from deepcluster.metrics import TooFewError, even_silhouette

DRAWS = 4
"""Sets of landmarks."""
PATCHES = 200
"""Landmarks of a set, unless ten for each of the most clusters are more."""
QUERIES = 3000
"""Rows whose edges are counted."""
JUDGED = 1500
"""Rows that the silhouette is of."""


@dataclass(frozen=True)
class Choice:
    """A number of clusters, and what was looked at."""

    k: int
    scores: dict[int, float]  # of each number of clusters, at most 1; the best is k's


def choose_clusters(
    x: Tensor, *, largest: int, neighbours: int = 15, generator: torch.Generator
) -> Choice:
    """Choose the number of clusters of the rows, from 2 to `largest`.

    Time grows with `largest` and hardly with n.

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
    rows = x[judged].cpu().numpy()
    draws = []
    for _ in range(DRAWS):
        centers, patch = landmarks(x, wanted, 2, generator)
        weights = patch_graph(x, centers, patch, neighbours, QUERIES, generator)
        draws.append((weights, patch[judged].cpu().numpy()))
    fewest = min(len(weights) for weights, _ in draws)
    scores = {
        k: float(np.mean([_score(rows, cut(weights, k)[own]) for weights, own in draws]))
        for k in range(2, min(largest, fewest - 1) + 1)
    }
    return Choice(max(scores, key=lambda k: scores[k], default=fewest), scores)


def _score(rows: np.ndarray, clusters: np.ndarray) -> float:
    """Even silhouette; the lowest there is where these rows are all of one cluster."""
    try:
        return even_silhouette(rows, clusters, np.random.default_rng(0))
    except TooFewError:
        return -1.0
