"""Prototypes: centres that stand for parts of clusters, and assign any image to a cluster.

A part is a few centres of one cluster that lie together (``tree.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcluster.clustering.neighbours import best_column, score_blocks

NEAREST = 5
"""Centres of a cluster, at most, that say how far an image is from it."""
DESCRIBED = torch.int64, torch.float32, torch.float32  # label, distance, confidence
ROUNDING = 2e-6  # a squared distance below this share of the row's square is rounding


@dataclass(frozen=True)
class Prototypes:
    """Centres, each of one part of one cluster: what assigns an image.

    An image goes to the nearest cluster of the fit, and to the nearest part of that. So it is in
    the same part whatever the number of clusters is changed to afterwards.
    """

    centers: Tensor  # (m, d) float32
    cluster: Tensor  # (m,) int64, the cluster of each centre
    part: Tensor | None = None  # (m,) int64, the part of each centre; None: a cluster is a part
    base: Tensor | None = None  # (m,) int64, its cluster in the fit; None: still the same

    def assign(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest cluster.

        A cluster is as far from an image as its nearest centres are on average: a quarter of them,
        rounded up, at most NEAREST. So the landmark of a few odd images does not draw others over
        to a large cluster that has nothing else near them. Since the fit clusters may have been
        merged or split: the nearest of what was merged counts, and where one was split, parts do.

        Args:
            x: ``(n, d)``, on any device.

        Returns:
            labels ``(n,)`` int64, the Euclidean distance to the cluster, and the confidence in
            [0, 1]: 1 - distance / distance to the second nearest cluster (the simplified
            silhouette), 1 if there is only one cluster. On the device of `x`.

        Raises:
            ValueError: the centres have another number of features.
        """
        labels, distance, confidence = _joined(x, *DESCRIBED, blocks=self._nearest_cluster(x))
        return labels, distance, confidence

    def _nearest_cluster(self, x: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """As :meth:`assign`, for blocks of rows."""
        base = self.cluster if self.base is None else self.base
        split = len(torch.stack([base, self.cluster]).unique(dim=1)[0]) > len(base.unique())
        if split:
            assert self.part is not None
            groups = self.part
        else:
            groups = base
        cluster = self.cluster[_first(groups)[1]].to(x.device)  # of each group
        clusters, column = cluster.unique(return_inverse=True)
        if len(clusters) == len(self.centers) > 1:
            yield from self._nearest_centers(x)
            return
        labels = clusters[column[self._nearest_part(x)]] if split else None
        start = 0
        for apart in self._apart(x, groups):
            if len(clusters) < len(cluster):
                nearest = apart.new_full((len(apart), len(clusters)), torch.inf)
                apart = nearest.scatter_reduce_(1, column.expand_as(apart), apart, "amin")
            elif not torch.equal(clusters, cluster):
                apart = apart[:, column.argsort()]
            if labels is None:
                two = apart.topk(min(2, len(clusters)), dim=1, largest=False)
                own, distance, other = two.indices[:, 0], two.values[:, 0], two.values[:, -1]
            else:
                own = torch.searchsorted(clusters, labels[start : start + len(apart)])
                distance = apart.gather(1, own[:, None])[:, 0]
                other = apart.scatter(1, own[:, None], torch.inf).amin(1)
                start += len(apart)
            confidence = torch.ones_like(distance)
            if len(clusters) > 1:
                # Two clusters at the same place: no telling them apart.
                confidence = (1 - distance / other).nan_to_num(0.0).clamp_(min=0)
            yield clusters[own], distance, confidence

    def _nearest_centers(self, x: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """As :meth:`assign`, for blocks of rows, where each centre is a cluster."""
        self._check(x)
        numbers = self.cluster.to(x.device)
        middle = self.centers.mean(0).to(x.device, torch.float32)
        centers = self.centers.to(x.device, torch.float32) - middle
        for rows, scores in score_blocks(x, centers, middle):
            nearest = best_column(scores)
            distance = (rows - centers[nearest]).norm(dim=1)
            second = best_column(scores.scatter_(1, nearest[:, None], -torch.inf))
            confidence = 1 - distance / (rows - centers[second]).norm(dim=1)
            yield numbers[nearest], distance, confidence.nan_to_num(0.0).clamp_(min=0)

    def parts_of(self, x: Tensor) -> Tensor:
        """The part of each row, ``(n,)`` int64: the nearest in the nearest cluster of the fit."""
        if self.part is None:
            return self.assign(x)[0]
        found: Tensor = self.part.unique().to(x.device)[self._nearest_part(x)]
        return found

    def regroup(self, cluster: Tensor) -> Prototypes:
        """The same parts in other clusters.

        Args:
            cluster: ``(p,)`` int64, the cluster of each part.
        """
        base = self.cluster if self.base is None else self.base
        part = self.cluster if self.part is None else self.part
        return Prototypes(self.centers, cluster[part], part, base)

    def _nearest_part(self, x: Tensor) -> Tensor:
        """As :meth:`parts_of`, as the place of the part among the sorted ones."""
        return _joined(x, torch.int64, blocks=self._nearest_parts(x))[0]

    def _nearest_parts(self, x: Tensor) -> Iterator[tuple[Tensor]]:
        assert self.part is not None
        base = self.cluster if self.base is None else self.base
        home = base[_first(self.part)[1]]  # of each part
        for far, apart in zip(self._apart(x, base), self._apart(x, self.part), strict=True):
            nearest = base.unique().to(x.device)[far.argmin(1)]
            apart = apart.masked_fill_(nearest[:, None] != home.to(x.device), torch.inf)
            yield (apart.argmin(1),)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.centers.shape[1]:
            raise ValueError(
                f"x is {tuple(x.shape)}, the centres are {tuple(self.centers.shape)}: give (n, "
                f"{self.centers.shape[1]}) features of the same backbone and PCA"
            )

    def _apart(self, x: Tensor, groups: Tensor) -> Iterator[Tensor]:
        """For blocks of rows, the distance ``(b, g)`` to each group of centres."""
        self._check(x)
        order = groups.argsort(stable=True)  # a group's centres side by side
        columns = _columns(groups.unique(return_counts=True)[1], x.device)
        middle = self.centers.mean(0).to(x.device, torch.float32)
        centers = self.centers[order].to(x.device, torch.float32) - middle
        for rows, scores in score_blocks(x, centers, middle):
            own = rows.square().sum(1, keepdim=True)
            squares = scores.mul_(-2).add_(own)
            squares.masked_fill_(squares < ROUNDING * own, 0)  # the same place
            if len(columns) == 1 and columns[0].counted is None:
                yield squares.sqrt_()
                continue
            apart = squares.new_empty(len(squares), sum(len(each.group) for each in columns))
            for each in columns:
                if each.counted is None:
                    apart[:, each.group] = squares[:, each.centers[:, 0]].sqrt_()
                    continue
                several = each.counted.shape[1]
                wanted = each.centers.flatten().expand(len(squares), -1)
                around = squares.gather(1, wanted).unflatten(1, each.missing.shape)
                around.masked_fill_(each.missing, torch.inf)
                near = _least(around, several).sqrt_()
                near.masked_fill_(each.counted == 0, 0)
                apart[:, each.group] = (near * each.counted).sum(2)
            yield apart


@dataclass(frozen=True)
class _Columns:
    """Groups of about as many centres: all are measured in one step."""

    group: Tensor  # (q,) number of each group among the sorted ones
    centers: Tensor  # (q, width) its centres, in their order by group; of fewer the last again
    missing: Tensor  # (q, width) which are only there to fill the row
    counted: Tensor | None  # (q, several) weight of its nearest, 2nd … centre; None: it has one


def _columns(sizes: Tensor, device: torch.device) -> list[_Columns]:
    """Groups by their sizes, up to the next power of two."""
    start = sizes.cumsum(0) - sizes
    width = 2 ** torch.log2(sizes.double()).ceil().long()
    columns = []
    for wide in width.unique().tolist():
        group = (width == wide).nonzero()[:, 0]
        size = sizes[group, None]
        place = torch.arange(wide)
        several = (size + 3).div(4, rounding_mode="floor").clamp_max(NEAREST)
        rank = torch.arange(int(several.max()))
        counted = (rank < several) / several
        columns.append(
            _Columns(
                group.to(device),
                (start[group, None] + place.minimum(size - 1)).to(device),
                (place >= size).to(device),
                None if wide == 1 else counted.float().to(device),
            )
        )
    return columns


def _joined(
    x: Tensor, *dtypes: torch.dtype, blocks: Iterable[tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Columns ``(n,)`` of values of the rows `x`, from those of blocks.

    Each block's go to their place at once: kept apart, they would leave holes in memory that the
    next block does not fit in.
    """
    columns = tuple(torch.empty(len(x), dtype=dtype, device=x.device) for dtype in dtypes)
    start = 0
    for block in blocks:
        for column, values in zip(columns, block, strict=True):
            column[start : start + len(values)] = values
        start += len(block[0])
    return columns


def _least(x: Tensor, several: int) -> Tensor:
    """The least values of the last dimension, rising; `x` is overwritten."""
    if several == 1:
        return x.amin(-1, keepdim=True)
    if x.device.type == "cpu":  # NumPy's sort is vectorised, torch's and its topk are not
        x.numpy().sort(axis=-1)
        return x[..., :several]
    return x.topk(several, dim=-1, largest=False).values


def _first(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The groups' numbers, and a centre of each."""
    numbers, inverse = groups.unique(return_inverse=True)
    first = torch.empty(len(numbers), dtype=torch.int64, device=groups.device)
    first[inverse] = torch.arange(len(groups), device=groups.device)
    return numbers, first
