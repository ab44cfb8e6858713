"""Final clusters from the nearest-neighbour graph of the features.

Where neighbours are mostly alike, clusters are shapes rather than balls, and k-means cuts through
them; the graph of nearest neighbours knows them. Here its communities are found among *landmarks*:
rows that took a few steps of k-means, so that each stands for a small patch of the data. Edges of
the graph are counted between the patches, and patches are merged until k clusters are left. That
is done several times, with other landmarks and, of many rows, other edges, and the cuts agree on k
clusters. The landmarks of the first then assign any image, old or new, to the cluster whose nearest
landmarks are nearest on average: the clusters of the training images are what their features say,
without the graph.

The merges follow modularity (Newman 2004, "Fast algorithm for detecting community structure in
networks"). Differences, and why: the gain of a merge is divided by the geometric mean of the two
degrees, because plain greedy merging grows a few communities and leaves crumbs (Danon et al. 2006
divide by the smaller degree, for that reason). Merging ends at the k that was asked for, before
the largest modularity or past it. Where no merge gains any more the densest pair goes first, that
is the one that a coarser resolution would merge first (Bonald et al. 2018), lest two shapes that
do not touch are joined for being small. Crumbs never count among the k while something larger
could. Single landmarks move afterwards while that raises the modularity (Blondel et al. 2008), at
the resolution where none of the k would merge, and without making a crumb.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import torch
from torch import Tensor

from deepcluster.clustering.neighbours import as_matrix, knn, score_blocks

CUTS = 5
"""Cuts that agree on the clusters, unless so many landmarks are asked for that one is dear."""
LANDMARKS = 1000
"""Landmarks at most, unless k asks for more."""
QUERIES, QUERIES_A_CUT = 30_000, 15_000
"""Rows at most whose edges are found, so that time grows with n and not with its square, and rows
whose edges one cut counts."""
SETTLING = 20_000
"""Rows at most, unless there are more landmarks, that tell landmarks where to settle."""
NEAREST = 5
"""Centres of a cluster, at most, that say how far an image is from it."""

LLOYD_STEPS = 4
WEAK = 0.05  # of a landmark's mean degree: an edge between pieces of the graph
CRUMB = 0.05  # a cluster below this share of the mean size is a crumb
TIE = 1e-3  # of the largest distance: less than any two shares of the cuts differ
ROUNDING = 2e-6  # a squared distance below this share of the row's square is rounding


@dataclass(frozen=True)
class Prototypes:
    """Centres, each of one cluster: what assigns an image."""

    centers: Tensor  # (m, d) float32
    cluster: Tensor  # (m,) int64, the cluster of each centre

    def assign(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest cluster.

        A cluster is as far from an image as its nearest centres are on average: a quarter of them,
        rounded up, at most NEAREST. So the landmark of a few odd images does not draw others over
        to a large cluster that has nothing else near them.

        Args:
            x: ``(n, d)``, on any device.

        Returns:
            labels ``(n,)`` int64, the Euclidean distance to the cluster, and the confidence in
            [0, 1]: 1 - distance / distance to the second nearest cluster (the simplified
            silhouette), 1 if there is only one cluster. On the device of `x`.

        Raises:
            ValueError: the centres have another number of features.
        """
        if x.ndim != 2 or x.shape[1] != self.centers.shape[1]:
            raise ValueError(
                f"x is {tuple(x.shape)}, the centres are {tuple(self.centers.shape)}: give (n, "
                f"{self.centers.shape[1]}) features of the same backbone and PCA"
            )
        order = self.cluster.argsort(stable=True)  # a cluster's centres side by side
        numbers, counts = self.cluster.unique(return_counts=True)
        numbers, sizes = numbers.to(x.device), counts.tolist()
        middle = self.centers.mean(0).to(x.device, torch.float32)
        centers = self.centers[order].to(x.device, torch.float32) - middle
        labels, distances, confidences = [], [], []
        for rows, scores in score_blocks(x, centers, middle):
            own = rows.square().sum(1, keepdim=True)
            squares = own - 2 * scores
            squares.masked_fill_(squares < ROUNDING * own, 0)  # the same place
            apart = torch.stack(
                [
                    part.topk(_several(size), dim=1, largest=False).values.sqrt().mean(1)
                    for part, size in zip(squares.split(sizes, dim=1), sizes, strict=True)
                ],
                dim=1,
            )  # (b, clusters)
            two = apart.topk(min(2, len(sizes)), dim=1, largest=False)
            distance = two.values[:, 0]
            confidence = torch.ones_like(distance)
            if len(sizes) > 1:
                # Two clusters at the same place: no telling them apart.
                confidence = (1 - distance / two.values[:, 1]).nan_to_num(0.0)
            labels.append(numbers[two.indices[:, 0]])
            distances.append(distance)
            confidences.append(confidence)
        if not labels:
            return numbers.new_empty(0), centers.new_empty(0), centers.new_empty(0)
        return torch.cat(labels), torch.cat(distances), torch.cat(confidences)


def _several(size: int) -> int:
    """Centres that say how far a cluster of `size` centres is: few of few, lest it lose its own."""
    return min(NEAREST, -(-size // 4))


def cluster_graph(
    x: Tensor, k: int, *, neighbours: int = 15, generator: torch.Generator
) -> Prototypes:
    """Find k clusters in the nearest-neighbour graph of the rows: those that several cuts agree on.

    Time and memory grow with n, not with its square: at most QUERIES rows, drawn at random, look
    for their neighbours among all.

    Args:
        x: ``(n, d)`` features, as a rule L2-normalised; on any device.
        k: number of clusters, at most n. From a thousand on, clusters are hardly larger than
            the patches of the landmarks, and k-means does as well.
        neighbours: edges that go out from a row.
        generator: a CPU generator, the only source of randomness.

    Returns:
        What assigns any row to one of k clusters, on the CPU; ``.assign(x)`` gives the clusters of
        the rows. As a rule none of the k is empty then, unless `x` has fewer than k different rows.

    Raises:
        ValueError: `x` is no matrix or holds NaN or infinity; k is below 1 or above n;
            `neighbours` is below 1.
    """
    x = as_matrix(x)
    n = len(x)
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} clusters of n = {n} rows: k must be from 1 to n")
    if neighbours < 1:
        raise ValueError(f"neighbours = {neighbours}: a row needs at least 1")
    wanted = min(n, max(min(n // 4, LANDMARKS), min(4 * k, 6000), k, 200))
    several = wanted <= LANDMARKS
    asking, found = edges(x, neighbours, QUERIES if several else QUERIES_A_CUT, generator)
    cuts: list[Prototypes] = []
    patches: list[Tensor] = []
    for _ in range(CUTS if several else 1):
        centers, patch = landmarks(x, wanted, k, generator)
        if len(centers) <= k:  # many duplicates
            if cuts:
                continue
            return Prototypes(centers.cpu(), torch.arange(len(centers)))
        some = torch.randperm(len(asking), generator=generator)[:QUERIES_A_CUT].to(x.device)
        weights = patch_graph(centers, patch, asking[some], found[some])
        cuts.append(Prototypes(centers.cpu(), torch.from_numpy(cut(weights, k))))
        patches.append(patch)
    return cuts[0] if len(cuts) == 1 else consensus(cuts, torch.bincount(patches[0]).cpu(), k)


def consensus(cuts: list[Prototypes], rows: Tensor, k: int) -> Prototypes:
    """The k clusters that several cuts of the same rows agree on most.

    Landmarks of the first cut are as alike as the share of the cuts that keep them together, and
    are merged by average linkage (evidence accumulation; Fred and Jain 2005): a cut swings with its
    landmarks where clusters touch, and this swings less. Of pairs equally alike the nearer counts
    as more alike.

    Args:
        cuts: of the same rows.
        rows: ``(m,)``, how many rows each landmark of the first cut stands for.
        k: number of clusters, at most m.
    """
    centers = cuts[0].centers
    found = torch.stack([each.assign(centers)[0] for each in cuts], dim=1)  # (m, cuts)
    gaps = torch.cdist(centers, centers)
    alike = (found[:, None] == found).double().mean(2) - TIE * gaps / gaps.max().clamp_min(1e-12)
    table, size = alike.numpy(), (rows / rows.sum()).double().numpy()

    def join(i: int, j: int) -> np.ndarray:
        share = size[j] / size[i]  # i counts the rows of j already
        row: np.ndarray = (1 - share) * table[i] + share * table[j]
        return row

    return Prototypes(centers, torch.from_numpy(_agglomerate(table, size, k, join)))


def edges(
    x: Tensor, neighbours: int, queries: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Edges from rows, drawn at random, to their nearest neighbours among all.

    Args:
        x: ``(n, d)``.
        neighbours: edges that go out from a row.
        queries: rows at most.
        generator: draws them.

    Returns:
        ``(q,)`` and ``(q, neighbours)`` int64, the rows and their neighbours; with fewer rows than
        neighbours, edges to all the others.
    """
    n = len(x)
    asking = torch.randperm(n, generator=generator)[:queries].to(x.device)
    if n == 1:
        return asking, asking.new_empty(1, 0)
    return asking, knn(x, min(neighbours, n - 1), queries=asking)[0]


def patch_graph(centers: Tensor, patch: Tensor, asking: Tensor, found: Tensor) -> np.ndarray:
    """Edges between patches of the rows, counted from both ends: a connected symmetric graph.

    Args:
        centers: ``(m, d)``, the landmarks.
        patch: ``(n,)`` int64 below m, the landmark of each row.
        asking: ``(q,)`` int64, rows from which edges go out.
        found: ``(q, neighbours)`` int64, the rows to which they go.

    Returns:
        ``(m, m)`` float64.
    """
    m = len(centers)
    between = patch[asking][:, None] * m + patch[found]
    weights = torch.bincount(between.flatten(), minlength=m * m).cpu().double().view(m, m).numpy()
    return _join(weights + weights.T, centers.cpu(), found.shape[1])


def cut(weights: np.ndarray, k: int) -> np.ndarray:
    """Cut a symmetric connected graph into k communities: the community of each node.

    Merged past the best modularity by size and by density; the better of both by `_merit`.
    """
    cuts = [_refine(weights, _merge(weights, k, by_density)) for by_density in (False, True)]
    return max(cuts, key=lambda cluster: _merit(weights, cluster))


def _nearest(x: Tensor, centers: Tensor) -> Tensor:
    return torch.cat([scores.argmax(1) for _, scores in score_blocks(x, centers)])


def landmarks(x: Tensor, m: int, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """At most m centres of patches of `x`, none without rows, and the patch of each row."""
    some = x[torch.randperm(len(x), generator=generator)[: max(m, SETTLING)].to(x.device)]
    centers = some[:m]
    for _ in range(LLOYD_STEPS):
        centers, patch = _drop_empty(centers, _nearest(some, centers))
        counts = torch.bincount(patch, minlength=len(centers))[:, None]
        centers = torch.zeros_like(centers).index_add_(0, patch, some) / counts
    centers, patch = _drop_empty(centers, _nearest(x, centers))
    if len(centers) < k:  # many duplicates: rows that differ will do
        rows = torch.unique(x, dim=0)
        centers = rows[torch.randperm(len(rows), generator=generator)[:m].to(x.device)]
        centers, patch = _drop_empty(centers, _nearest(x, centers))
    return centers, patch


def _drop_empty(centers: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
    used, patch = torch.unique(patch, return_inverse=True)
    return centers[used], patch


def _join(weights: np.ndarray, centers: Tensor, neighbours: int) -> np.ndarray:
    """Add weak edges between the pieces of a graph that is not connected.

    A group of near-duplicates is such a piece: its rows are one another's neighbours. Without
    these edges nothing would tell which pieces lie side by side.
    """
    pieces, piece = scipy.sparse.csgraph.connected_components(weights, directed=False)
    if pieces == 1:
        return weights
    order = np.argsort(piece, kind="stable")
    bounds = np.append(np.searchsorted(piece[order], np.arange(pieces)), len(order))
    weight = WEAK * weights.sum() / len(weights) or 1.0
    joined = weights.copy()
    for i in range(pieces):
        inside = order[bounds[i] : bounds[i + 1]]
        gaps = torch.cdist(centers[inside], centers[order]).numpy()
        nearest = gaps.argmin(0)  # landmark of this piece that is nearest to each landmark
        gaps = gaps.min(0)
        gap = np.minimum.reduceat(gaps, bounds[:-1])  # to each piece
        gap[i] = np.inf
        for j in np.argsort(gap, kind="stable")[: min(neighbours, pieces - 1)]:
            there = bounds[j] + gaps[bounds[j] : bounds[j + 1]].argmin()
            a, b = inside[nearest[there]], order[there]
            share = float(gap.min() / gap[j]) ** 2 if gap[j] > 0 else 1.0
            joined[a, b] += weight * share / 2
            joined[b, a] += weight * share / 2
    return joined


def _merit(weights: np.ndarray, cluster: np.ndarray) -> float:
    """How good a cut is: share of its edges that a cluster keeps, plus evenness of the sizes.

    The mean over clusters of the first (one less the normalised cut over k, Shi and Malik 2000) is
    blind to a group that is split while two others are joined; the entropy of the sizes over ln k
    is not. Both are at most 1.
    """
    member = np.eye(cluster.max() + 1)[cluster]  # (m, k)
    if member.shape[1] == 1:
        return 2.0
    kept = ((member.T @ weights) * member.T).sum(1)
    volume = weights.sum(1) @ member
    share = volume / volume.sum()
    entropy = -(share * np.log(share)).sum() / np.log(len(share))
    return float((kept / volume).mean() + entropy)


def _merge(weights: np.ndarray, k: int, by_density: bool) -> np.ndarray:
    """Merge nodes of a symmetric graph until k communities are left: the community of each node."""
    weights = weights / weights.sum()
    degree = weights.sum(1)

    def ranks(i: int) -> np.ndarray:
        root = np.sqrt(degree[i] * degree)
        excess = weights[i] / root - root
        # Above 0 the excess counts, below it the density, less all that an excess can be.
        density = weights[i] / root**2 - 2
        rank: np.ndarray = np.where(excess > 0, excess, density if by_density else excess)
        return rank

    def join(i: int, j: int) -> np.ndarray:
        weights[i] += weights[j]
        weights[:, i] += weights[:, j]
        return ranks(i)

    return _agglomerate(np.stack([ranks(i) for i in range(len(weights))]), degree, k, join)


def _agglomerate(
    table: np.ndarray, size: np.ndarray, k: int, join: Callable[[int, int], np.ndarray]
) -> np.ndarray:
    """Merge the pair of highest rank until k groups are left: the group of each node.

    Once no more than k groups are larger than crumbs, two of these are not merged while there is a
    crumb: the smallest crumb is, with the partner it ranks highest.

    Args:
        table: ``(m, m)`` float64, the rank of each pair; written over.
        size: ``(m,)`` float64, shares of all; written over with those of the groups.
        k: number of groups, at most m.
        join: merges the second group into the first, whose size counts both already, and gives the
            ranks of the first.
    """
    m = len(table)
    alive = np.ones(m, bool)
    parent = np.arange(m)
    np.fill_diagonal(table, -np.inf)
    partner = table.argmax(1)
    best = table[np.arange(m), partner]
    for _ in range(m - k):
        i = int(best.argmax())
        large = alive & (size >= CRUMB / k)
        if large[i] and large[partner[i]] and large.sum() <= k:
            i = int(np.where(alive & ~large, size, np.inf).argmin())
        i, j = sorted((i, int(partner[i])))
        size[i] += size[j]
        row = join(i, j)
        alive[j] = False
        parent[parent == j] = i
        row[~alive] = row[i] = -np.inf
        table[i] = table[:, i] = row
        table[j] = table[:, j] = best[j] = -np.inf
        stale = np.flatnonzero(alive & ((partner == i) | (partner == j)))
        stale = np.append(stale, i)
        partner[stale] = table[stale].argmax(1)
        closer = alive & (table[:, i] > best)
        closer[stale] = False
        partner[closer] = i
        best[closer] = table[closer, i]
        best[stale] = table[stale, partner[stale]]
    return np.searchsorted(np.flatnonzero(alive), parent)


def _refine(weights: np.ndarray, cluster: np.ndarray, sweeps: int = 20) -> np.ndarray:
    """Move nodes, one at a time, to where the modularity is largest; none becomes a crumb."""
    weights = weights / weights.sum()
    cluster = cluster.copy()
    degree, own = weights.sum(1), weights.diagonal()
    member = np.eye(cluster.max() + 1)[cluster]  # (m, k)
    links, volume, size = weights @ member, degree @ member, member.sum(0)
    between = (member.T @ links) / np.outer(volume, volume)
    np.fill_diagonal(between, 0)
    resolution = between.max()
    volume = volume * resolution
    for _ in range(sweeps):
        moved = False
        for i, a in enumerate(cluster):
            if size[a] == 1 or volume[a] < resolution * (degree[i] + CRUMB / len(volume)):
                continue
            gain = links[i] - degree[i] * volume
            gain[a] += resolution * degree[i] ** 2 - own[i]  # without itself
            b = int(gain.argmax())
            if gain[b] <= gain[a] + 1e-12:
                continue
            cluster[i], moved = b, True
            links[:, a] -= weights[:, i]
            links[:, b] += weights[:, i]
            volume[a] -= resolution * degree[i]
            volume[b] += resolution * degree[i]
            size[a] -= 1
            size[b] += 1
        if not moved:
            break
    return cluster
