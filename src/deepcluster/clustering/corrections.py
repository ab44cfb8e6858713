"""What a person moved, as part of what assigns an image.

The centres of a model know nothing of images that a person put elsewhere. Here these are
*examples*: an image goes where its nearest example was put, unless one that stayed where the model
had it is nearer still. So each image of the fit is assigned as the person left it, and a new one
like its nearest of the fit. Few of those that stayed are needed for that: some of every cluster,
and then, in rounds, the nearest of those that an example would draw over (fast condensed nearest
neighbours, Angiulli 2005; the idea is Hart's of 1968). Differences: only images that stayed are
condensed, since each that was moved is a person's word; and the start is not the classes' means but
rows of every cluster, so that images far from all that was moved have some of their own kind near.

Images that went with a part of the tree, because a person chose another number of clusters, are
examples like those that were moved one by one.

The examples are found anew from the images' table and the features whenever a model is loaded:
there is no second file that could disagree with them, and who takes a move back has the model as
it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepcluster.clustering.neighbours import as_matrix, nearest

STAYED = -2
"""In place of the cluster of an example: the image stayed where the model has it."""
SPREAD = 1000
"""Images that stayed to begin with, in all; at least SPREAD_EACH of each cluster that has them."""
SPREAD_EACH = 10


@dataclass(frozen=True)
class Corrections:
    """Merges, and examples of what a person moved and of what stayed."""

    merged: dict[int, int]  # cluster of the model -> the one it is now part of
    rows: Tensor  # (m, d) float32, those that were moved first
    cluster: Tensor  # (m,) int64: where it was put, -1 for nowhere; STAYED

    def apply(
        self, x: Tensor, labels: Tensor, distances: Tensor, confidence: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The clusters of rows once a person's changes count.

        Args:
            x: ``(n, d)``, what the model assigned.
            labels: ``(n,)`` int64, by the model.
            distances: ``(n,)``, to these clusters.
            confidence: ``(n,)`` in [0, 1].

        Returns:
            The same three. Where an example decides, the distance is to that image, and the
            confidence 1 - distance / distance to the nearest of the images that stayed.
        """
        labels = merge(labels, self.merged)
        moved = int((self.cluster != STAYED).sum())
        if not moved or not len(x):
            return labels, distances, confidence
        rows, cluster = self.rows.to(x.device), self.cluster.to(x.device)
        nearest, near = _nearest(x, rows[:moved])
        far = torch.full_like(near, torch.inf)
        if len(rows) > moved:
            far = _nearest(x, rows[moved:])[1]
        draws = (near < far) | (near == 0)  # of copies of one picture, that which was moved decides
        labels[draws] = cluster[nearest[draws]]
        sure = (1 - near / far).nan_to_num(0.0).clamp(0, 1)  # copies of which one stayed: 0
        return (
            labels,
            torch.where(draws, near, distances),
            torch.where(draws, sure, confidence),
        )


def merge(labels: Tensor, merged: dict[int, int]) -> Tensor:
    """Clusters ``(n,)`` after merges (cluster -> the one it is part of)."""
    after = labels.clone()
    for old, new in merged.items():
        after[labels == old] = new
    return after


def find_corrections(
    x: Tensor, cluster: Tensor, moved: Tensor, merged: dict[int, int]
) -> Corrections:
    """Examples from which each row of the fit gets the cluster that it has now.

    Args:
        x: ``(n, d)`` features of the fit's images, in which the model assigns.
        cluster: ``(n,)`` int64, where they are now; -1 for nowhere.
        moved: ``(n,)`` bool, those that a person put there, or that the model puts elsewhere.
        merged: cluster of the model -> the one it is part of.

    Returns:
        What corrects the model. Only a row that is an exact copy of one a person moved gets the
        cluster of that one in place of its own.
    """
    x = as_matrix(x).float()
    examples, stayed = x[moved], x[~moved]
    kept = torch.zeros(len(stayed), dtype=torch.bool)
    if len(examples) and len(stayed):
        kept = _spread(cluster[~moved])
        example, near = _nearest(stayed, examples)
        far = _nearest(stayed, stayed[kept])[1]
        rows = torch.nonzero((near < far) & (near > 0) & ~kept).flatten()  # that examples draw over
        while len(rows):
            rows = rows[near[rows].argsort(stable=True)]
            first = torch.full((len(examples),), len(rows), dtype=torch.int64)
            first.scatter_reduce_(0, example[rows], torch.arange(len(rows)), "amin")
            new = rows[first[first < len(rows)]]  # of each example the nearest that it draws over
            kept[new] = True
            rows = rows[(near[rows] < _nearest(stayed[rows], stayed[new])[1]) & ~kept[rows]]
    return Corrections(
        merged,
        torch.cat([examples, stayed[kept]]),
        torch.cat([cluster[moved], torch.full((int(kept.sum()),), STAYED)]),
    )


def _spread(cluster: Tensor) -> Tensor:
    """Some rows of every cluster, evenly spread: a mask ``(n,)``."""
    kept = torch.zeros(len(cluster), dtype=torch.bool)
    numbers = cluster.unique()
    most = max(SPREAD_EACH, SPREAD // len(numbers))
    for number in numbers.tolist():
        rows = torch.nonzero(cluster == number).flatten()
        count = min(most, len(rows))
        kept[rows[torch.arange(count) * len(rows) // count]] = True
    return kept


def _nearest(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest of `rows` to each of `x`, and the distance, exactly 0 for a copy."""
    index = nearest(x, rows)
    return index, torch.cat(
        [
            (block - rows[chosen]).norm(dim=1)
            for block, chosen in zip(x.split(8192), index.split(8192), strict=True)
        ]
    )
