"""How many clusters there are, from the features alone.

The neighbour graph is cut into every number of clusters from 2 on, several times, each time from
other landmarks. A good number of clusters is one whose cut

- keeps edges within clusters that chance would not (modularity; Newman 2004),
- is found again from other landmarks (adjusted Rand index of two draws, over all pairs; stability
  as in Ben-Hur et al. 2002 and von Luxburg 2010), and
- has clusters of like sizes (entropy of the shares over ln k, squared).

The score is the product. Each factor alone fails on the features of a net: modularity goes on to
rise slowly when a true cluster is split, stability is as high for 2 clusters as for the true ones
wherever two lie apart, and evenness cannot tell a cut from an arbitrary one. Evenness is a prior,
the one that :mod:`deepcluster.graph` has among cuts: where the largest group is many times the
smallest, the answer tends to be too small.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from deepcluster.graph import cut, landmarks, patch_graph

DRAWS = 4
"""Sets of landmarks."""
PATCHES = 300
"""Landmarks of a set, or ten for each of the most clusters looked at."""
QUERIES = 3000
"""Rows whose edges are counted."""
JUDGED = 2000
"""Rows on which two cuts are compared."""


@dataclass(frozen=True)
class Choice:
    """A number of clusters, and what was looked at."""

    k: int
    scores: dict[int, float]  # of each number of clusters, at most 1; the best is k's


def choose_clusters(
    x: Tensor, *, largest: int, neighbours: int = 15, generator: torch.Generator
) -> Choice:
    """Choose the number of clusters of the rows, from 2 to `largest`.

    Args:
        x: ``(n, d)`` features, as a rule L2-normalised; on any device.
        largest: most clusters to look at.
        neighbours: edges that go out from a row.
        generator: a CPU generator, the only source of randomness.

    Returns:
        The number of best score, the smaller one of a tie, and all scores. Rows of which fewer
        than two differ are 1 cluster, and have no scores.

    Raises:
        ValueError: `largest` is below 2.
    """
    if largest < 2:
        raise ValueError(f"largest = {largest}: choose among at least 2 clusters")
    x, n = x.detach().float(), len(x)
    wanted = min(n, max(n // 4 if n < 4 * PATCHES else PATCHES, 10 * largest))
    judged = torch.randperm(n, generator=generator)[:JUDGED].to(x.device)
    draws = []
    for _ in range(DRAWS):
        centers, patch = landmarks(x, wanted, 2, generator)
        weights = patch_graph(x, centers, patch, neighbours, QUERIES, generator)
        draws.append((weights, patch[judged].cpu().numpy()))
    most = min(largest, *(len(weights) for weights, _ in draws))
    scores = {}
    for k in range(2, most + 1):
        cuts = [cut(weights, k) for weights, _ in draws]
        quality = [_quality(weights, c) for (weights, _), c in zip(draws, cuts, strict=True)]
        found = [c[patch] for (_, patch), c in zip(draws, cuts, strict=True)]
        again = [adjusted_rand_score(a, b) for a, b in itertools.combinations(found, 2)]
        scores[k] = float(np.mean(quality) * np.mean(again))
    return Choice(max(scores, key=lambda k: scores[k], default=1), scores)


def _quality(weights: np.ndarray, cluster: np.ndarray) -> float:
    """Modularity of a cut times the squared evenness of its clusters."""
    member = np.eye(cluster.max() + 1)[cluster]  # (m, k)
    share = weights.sum(1) @ member / weights.sum()
    kept = ((member.T @ weights) * member.T).sum() / weights.sum()
    evenness = -(share * np.log(share)).sum() / np.log(len(share))
    return float((kept - (share**2).sum()) * evenness**2)
