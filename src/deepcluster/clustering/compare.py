"""Which of several clusterings of the same images, each made in features of its own, is best?

Modularity, silhouette and the like are measured in the features that the clusters were cut from, so
a net that has learnt to pull images together praises itself: scores of different nets cannot be
compared. Here every clustering is judged in the features of *all* nets at hand: of an image's
nearest neighbours there, how well do their clusters foretell its own? Classes that are real show in
any features that are good for anything; what one net made up shows in its own alone. (TURTLE,
Gadetsky et al. 2024, chooses settings by how well a linear classifier of frozen features learns a
labelling; two or more spaces judge here, and neighbours take the place of the classifier.)

How well it ranks as NMI does, and where it fails, is in docs/log.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.neighbours import knn

JUDGED = 3000
"""Images at most, spread evenly, that are looked at."""
NEIGHBOURS = 15
"""Nearest images that vote on the cluster of one."""


def agreements(spaces: Sequence[Tensor], clusterings: Sequence[np.ndarray]) -> list[float]:
    """How far each clustering agrees with all spaces: 1 wholly, 0 as chance would.

    Args:
        spaces: ``(n, d)`` features of the same n images, of each net.
        clusterings: ``(n,)`` int64 from 0, found in each of the spaces.

    Returns:
        A mean over the spaces for each clustering: adjusted mutual information of the clusters and
        what the neighbours vote them to be. Not comparable between calls with other spaces.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    n = len(spaces[0])
    rows = np.linspace(0, n - 1, min(n, JUDGED)).astype(np.int64)
    nearest = []
    for space in spaces:
        part = space[torch.from_numpy(rows)].float()
        nearest.append(knn(part, min(NEIGHBOURS, len(rows) - 1))[0].cpu().numpy())
    scores = []
    for clusters in clusterings:
        own = clusters[rows]
        member = np.eye(int(own.max()) + 1)[own]  # (m, k)
        votes = [member[found].sum(1).argmax(1) for found in nearest]
        scores.append(float(np.mean([adjusted_mutual_info_score(own, vote) for vote in votes])))
    return scores
