"""The tree of a fit: parts of clusters, and how they merge two at a time until one is left.

Any number of clusters is a cut of the tree. The clusters of the fit are one of its cuts: parts are
merged within those before any two of them are. So more clusters than were asked for are parts of
them, fewer are unions, and what is said of a part (a name, a move) holds at every number. Another
number might be cut a little better for its own sake; what is given is the tree's, because
then no image changes its company when the number does, but by a split or a merge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FEWEST, MOST = 30, 200
"""Parts of a fit, unless more clusters were asked for or there are fewer centres."""
IMAGES = 50
"""Images a part, between those."""


@dataclass(frozen=True)
class Tree:
    """How p parts merge until one is left."""

    parts: Tensor  # (m,) int64 below p, the part of each centre
    merges: Tensor  # (p - 1, 2) int64: what part j belongs to joins what part i belongs to, i < j
    heights: Tensor  # (p - 1,) float32, rising: -ln of how closely the two were linked

    @property
    def largest(self) -> int:
        """Number of parts: the most clusters there can be."""
        return len(self.merges) + 1

    def cut(self, k: int) -> Tensor:
        """The cluster of each part, ``(p,)`` int64, where there are k clusters.

        Clusters are numbered in the order of their first parts.

        Raises:
            ValueError: k is below 1 or above the number of parts.
        """
        p = self.largest
        if not 1 <= k <= p:
            raise ValueError(f"k = {k} clusters: this tree has {p} parts, so k is from 1 to {p}")
        root = np.arange(p)
        for i, j in self.merges[: p - k].tolist():
            root[root == j] = i
        return torch.from_numpy(np.unique(root, return_inverse=True)[1])


def parts_of(n: int, k: int) -> int:
    """How many parts the tree of n images and k clusters has."""
    return max(k, min(max(n // IMAGES, FEWEST), MOST))
