"""Final clusters from the nearest-neighbour graph of the features.

Where neighbours are mostly alike, clusters are shapes rather than balls, and k-means cuts through
them; the graph of nearest neighbours knows them. Here its communities are found among *landmarks*:
rows that took a few steps of k-means, so that each stands for a small patch of the data. Edges of
the graph are counted between the patches, and patches are merged until k clusters are left. That
is done several times, with other landmarks and, of many rows, other edges, and the cuts vote on k
clusters. The landmarks of the first then assign any image, old or new, to the cluster whose nearest
landmarks are nearest on average: the clusters of the training images are what their features say,
without the graph.

The pair that is linked most closely goes first, whatever the k that was asked for. How closely is
a matter of size. The share of their edges that two clusters have with each other (the geometric
mean of both shares) has no wish for any size, and lets a lone landmark stand as a cluster of its
own beside all others; edges over those that chance would put there, as in modularity (Newman 2004)
and in the cuts by resolution of Bonald et al. (2018), join the small before the large and, where
one kind is most of the data, cut it in two and merge the rare. There is no rank between them that
serves both: with less wish for even sizes a clear group of a few rows stands in the place of one
of two large classes that touch. And no edges tell a class of fewer rows than a row has neighbours.
So three cuts are made, with a rank half-way (SIZE), by modularity and by average linkage of the
landmarks, which knows distances alone, and the one is taken whose edges tell most: the mutual
information of the clusters at their ends, over their entropy to the power EVENNESS. A kind whose
cuts of other landmarks hardly agree is set aside: halves of one group lie elsewhere each time.

Landmarks move afterwards to the cluster that most of their edges go to, at the half-way price of
size. No cluster is refused for being small. What makes a group is that its rows are one another's
neighbours: one that has more edges outwards than within (no community even in the weak sense of
Radicchi et al. 2004), as a few odd rows have, is merged before any two of the others are.

Long, because the three cuts, the vote and the tree share one way to merge.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import scipy.cluster.hierarchy
import scipy.sparse
import scipy.sparse.csgraph
import scipy.special
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from deepcluster.clustering.neighbours import as_matrix, knn, nearest
from deepcluster.clustering.prototypes import Prototypes
from deepcluster.clustering.tree import Tree, parts_of
from deepcluster.metrics import nmi
from deepcluster.processes import Spread

CUTS = 5
"""Cuts that vote on the clusters, unless so many landmarks are asked for that one is dear."""
LANDMARKS = 1000
"""Landmarks at most, unless k asks for more."""
QUERIES, QUERIES_A_CUT = 30_000, 15_000
"""Rows at most whose edges are found, so that time grows with n and not with its square, and rows
whose edges one cut counts."""
SETTLING = 20_000
"""Rows at most, unless there are more landmarks, that tell landmarks where to settle."""
SIZE = 0.25
"""Wish for even sizes: 0 is none (and leaves lone landmarks), 1/2 joins by density alone."""
EVENNESS = 0.8
"""Power of the entropy of the sizes by which the information of an edge is divided: at 1 an island
of a few rows outweighs two large classes that touch, at 0 halves of a giant outweigh all else."""
STEADY = 0.6
"""NMI of two cuts of one kind below which that kind is set aside where another's are more alike."""
KEPT = 0.25 - 1e-9
"""Share of its edges that a group of average linkage keeps at least. Of five rows apart from all
others, with 15 neighbours each, it is 0.4, of three 0.2. A hair below a quarter: a group that keeps
just that counts in whatever order its edges are summed."""
FINER = 4  # times k: the most groups among which k of average linkage are looked for

LLOYD_STEPS = 4
SWEEPS = 20
WEAK = 0.05  # of a landmark's mean degree: an edge between pieces of the graph
UNLINKED = 1e-12  # rank of two groups of one cluster that no edge links
LATER, LAST = 1e-20, 1e-60  # times a rank: below that of all pairs that go first


def cluster_graph(
    x: Tensor | Spread, k: int, *, neighbours: int = 15, generator: torch.Generator
) -> Prototypes:
    """Find k clusters in the nearest-neighbour graph of the rows: those that several cuts agree on.

    Time and memory grow with n, not with its square: at most QUERIES rows, drawn at random, look
    for their neighbours among all.

    Args:
        x: ``(n, d)`` features, as a rule L2-normalised; on any device. Where several processes have
            a part of the rows, all of them cut, and come to the same. Half precision is converted
            a block at a time, so a mapped file of it is never whole in memory
            (``torch.from_numpy(np.load(path, mmap_mode="c"))``).
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
    return _cut_by_vote(x, k, neighbours, generator)[0]


def cluster_tree(
    x: Tensor, k: int, *, neighbours: int = 15, generator: torch.Generator
) -> tuple[Prototypes, Tree]:
    """As :func:`cluster_graph`, with the tree of the clusters' parts.

    Returns:
        What assigns any row to a part and so to one of k clusters, and the tree of which these are
        a cut.
    """
    prototypes, weights = _cut_by_vote(x, k, neighbours, generator)
    tree = grow(weights, prototypes.cluster, parts_of(len(x), k))
    cluster = tree.cut(min(k, tree.largest))[tree.parts]
    return Prototypes(prototypes.centers, cluster, tree.parts), tree


def tree_of(
    x: Tensor, prototypes: Prototypes, *, neighbours: int = 15, generator: torch.Generator
) -> Tree:
    """The tree of clusters that were found without the graph, as by k-means.

    Args:
        x: ``(n, d)``, the rows.
        prototypes: one centre for each of at least one cluster, numbered from 0.
        neighbours: edges that go out from a row.
        generator: draws the rows whose edges are counted.
    """
    x = as_matrix(x)
    patch = prototypes.assign(x)[0]
    asking, found = edges(_spread(x), neighbours, QUERIES_A_CUT, generator)
    weights = patch_graph(prototypes.centers.to(x.device), patch, asking, found)
    return grow(weights, prototypes.cluster, len(weights))


def _cut_by_vote(
    given: Tensor | Spread, k: int, neighbours: int, generator: torch.Generator
) -> tuple[Prototypes, np.ndarray]:
    """The clusters that several cuts vote for, and the graph of the landmarks."""
    x = _spread(given)
    n = len(x)
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} clusters of n = {n} rows: k must be from 1 to n")
    if neighbours < 1:
        raise ValueError(f"neighbours = {neighbours}: a row needs at least 1")
    wanted = min(n, max(min(n // 4, LANDMARKS), min(4 * k, 6000), k, 400))
    several = wanted <= LANDMARKS
    asking, found = edges(x, neighbours, QUERIES if several else QUERIES_A_CUT, generator)
    cuts: dict[str, list[Prototypes]] = defaultdict(list)
    worths: dict[str, float] = defaultdict(float)
    graph = np.empty((0, 0))
    for _ in range(CUTS if several else 1):
        centers, patch = landmarks(x, wanted, k, generator)
        some = torch.randperm(len(asking), generator=generator)[:QUERIES_A_CUT].to(asking.device)
        if len(centers) <= k:  # many duplicates
            if cuts:
                continue
            weights = patch_graph(centers, patch, asking[some], found[some])
            return Prototypes(centers.cpu(), torch.arange(len(centers))), weights
        weights = patch_graph(centers, patch, asking[some], found[some])
        if not cuts:
            graph = weights
        kinds = {
            "half-way": cut(weights, k),
            "modularity": cut(weights, k, even=True),
            "linkage": linked(weights, centers, k),
        }
        for kind, cluster in kinds.items():
            if cluster is None:
                worths[kind] = -np.inf
                continue
            worths[kind] += worth(weights, cluster)
            cuts[kind].append(Prototypes(centers.cpu(), torch.from_numpy(cluster)))
    drawn = {kind: Draws.of(each) for kind, each in cuts.items()}
    least = min(STEADY, max(each.steadiness for each in drawn.values()))
    kept = [kind for kind, each in drawn.items() if each.steadiness >= least]
    return drawn[max(kept, key=lambda kind: worths[kind])].vote(k), graph


@dataclass(frozen=True)
class Draws:
    """Cuts of the same rows, each with other landmarks."""

    centers: Tensor  # (m, d), the landmarks of the first
    said: np.ndarray  # (c, m) int64, their clusters as each of the cuts has them
    alike: np.ndarray  # (c, c) float64, NMI of each two

    @classmethod
    def of(cls, cuts: list[Prototypes]) -> Draws:
        """At least one cut."""
        first, others = cuts[0], cuts[1:]
        assigned = [each.assign(first.centers)[0].numpy() for each in others]
        said = np.stack([first.cluster.numpy(), *assigned])
        alike = np.eye(len(cuts))
        for i, j in itertools.combinations(range(len(cuts)), 2):
            alike[i, j] = alike[j, i] = nmi(said[i], said[j])
        return cls(first.centers, said, alike)

    @property
    def steadiness(self) -> float:
        """NMI of two of the cuts, from 0 to 1: the mean over all pairs; 1 of a lone cut."""
        pairs = self.alike[np.triu_indices(len(self.said), 1)]
        return float(pairs.mean()) if len(pairs) else 1.0

    def vote(self, k: int) -> Prototypes:
        """The k clusters that the cuts vote for.

        A cut swings with its landmarks where clusters touch, and a vote swings less. Clusters of
        the other cuts take the numbers of the one that is most like them all, as well as they
        match, and that one has a vote more in a tie.

        Args:
            k: number of clusters of each cut.

        Returns:
            The landmarks of the first cut, in the clusters of the vote.
        """
        own, middle = self.said[0], self.said[int(self.alike.sum(1).argmax())]
        if len(self.said) == 1:
            return Prototypes(self.centers, torch.from_numpy(own))
        votes = np.zeros((len(own), k))
        votes[np.arange(len(own)), middle] = 0.5
        for one in self.said:
            shared = np.zeros((k, k))
            np.add.at(shared, (one, middle), 1)
            number = linear_sum_assignment(shared, maximize=True)[1]
            votes[np.arange(len(own)), number[one]] += 1
        for cluster in (votes.argmax(1), middle, own):  # a cluster may be outvoted everywhere
            if len(np.unique(cluster)) == k:
                break
        return Prototypes(self.centers, torch.from_numpy(cluster))


def edges(
    x: Spread, neighbours: int, queries: int, generator: torch.Generator
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
    asking = torch.randperm(n, generator=generator)[:queries].to(x.mine.device)
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


def cut(weights: np.ndarray, k: int, *, even: bool = False) -> np.ndarray:
    """Cut a symmetric connected graph into k communities: the community of each node.

    Args:
        weights: ``(m, m)`` float64.
        k: at most m.
        even: by modularity, with more wish for even sizes.
    """
    return refine(weights, cluster_at(agglomerate(weights, even=even)[0], len(weights), k))


def linked(weights: np.ndarray, centers: Tensor, k: int) -> np.ndarray | None:
    """Cut a graph into k communities by the distances of its nodes: the community of each node.

    Groups of average linkage count that keep a share KEPT of their edges. The others, as a few odd
    rows are, go to the one that most of their edges go to.

    Args:
        weights: ``(m, m)`` float64, symmetric.
        centers: ``(m, d)``, the places of the nodes.
        k: at most m.

    Returns:
        ``(m,)`` int64; None if down to FINER times k groups there are never k that count.
    """
    m, merges = len(weights), average_linkage(centers)
    finest, level = min(m, FINER * k), 0
    number = cluster_at(merges, m, finest)
    between = between_clusters(weights, number)
    for groups in range(finest, k - 1, -1):
        if _keeps(between).sum() == k:
            level = groups
        if groups > k:
            i, j = number[merges[m - groups]]
            between[i] += between[j]
            between[:, i] += between[:, j]
            between[j] = between[:, j] = 0
    if not level:
        return None
    group = cluster_at(merges, m, level)
    between = between_clusters(weights, group)
    keeps = np.flatnonzero(_keeps(between))
    goes = keeps[between[:, keeps].argmax(1)]
    goes[keeps] = keeps
    return refine(weights, np.unique(goes[group], return_inverse=True)[1].astype(np.int64))


def _keeps(between: np.ndarray) -> np.ndarray:
    """Which groups keep a share KEPT of their edges, ``(k,)`` bool; no empty one does."""
    size = between.sum(0)
    found: np.ndarray = (size > 0) & (between.diagonal() >= KEPT * size)
    return found


def worth(weights: np.ndarray, cluster: np.ndarray) -> float:
    """How much an edge tells in two cuts of one graph: larger is better, the scale is logarithmic.

    Args:
        weights: ``(m, m)`` float64, a symmetric graph.
        cluster: ``(m,)``, from 0.
    """
    told, entropy = told_by_edges(between_clusters(weights, cluster))
    return float(np.log(max(told, UNLINKED)) - EVENNESS * np.log(max(entropy, UNLINKED)))


def between_clusters(weights: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Share of the edges between each pair of clusters, ``(k, k)``."""
    ones, node = np.ones(len(cluster)), np.arange(len(cluster))
    member = scipy.sparse.csr_array((ones, (cluster, node)))  # (k, m)
    share: np.ndarray = member @ weights @ member.T / weights.sum()
    return share


def told_by_edges(between: np.ndarray) -> tuple[float, float]:
    """Mutual information of the clusters at the two ends of an edge, and their entropy, in nats.

    Args:
        between: from :func:`between_clusters`.
    """
    size = between.sum(0)
    chance = np.outer(size, size)
    told = scipy.special.xlogy(between, between / np.where(chance > 0, chance, 1)).sum()
    return float(told), float(-scipy.special.xlogy(size, size).sum())


def agglomerate(
    weights: np.ndarray, within: np.ndarray | None = None, *, even: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the nodes of a symmetric connected graph until one is left, most closely linked first.

    Pairs of which neither has more edges outwards than within wait for all others.

    Args:
        weights: ``(m, m)`` float64.
        within: ``(m,)``, clusters that are whole before any two of them are merged.
        even: rank by the edges over those that chance would put there.

    Returns:
        ``(m - 1, 2)`` int64, pairs i < j: what j belongs to joins what i belongs to; and their
        ranks ``(m - 1,)``.
    """
    m = len(weights)
    weights = weights / weights.sum() if m > 1 else np.ones((1, 1))
    size = weights.sum(1)
    within = np.zeros(m, int) if within is None else within

    def ranks(i: int) -> np.ndarray:
        root = np.sqrt(size[i] * size)
        rank = weights[i] / root - root + 1 if even else weights[i] / root ** (1 + 2 * SIZE)
        strong = weights.diagonal() >= 0.5 * size
        rank = np.maximum(rank, UNLINKED) * np.where(strong & strong[i], LATER, 1)
        found: np.ndarray = np.where(within == within[i], rank, rank * LAST)
        return found

    alive = np.ones(m, bool)
    table = np.stack([ranks(i) for i in range(m)])
    np.fill_diagonal(table, -np.inf)
    partner = table.argmax(1)
    best = table[np.arange(m), partner]
    merges, rank = np.empty((m - 1, 2), np.int64), np.empty(m - 1)
    for step in range(m - 1):
        i = int(best.argmax())
        i, j = sorted((i, int(partner[i])))
        merges[step] = i, j
        rank[step] = weights[i, j] / (size[i] * size[j]) ** (0.5 + SIZE)
        size[i] += size[j]
        weights[i] += weights[j]
        weights[:, i] += weights[:, j]
        alive[j] = False
        row = ranks(i)
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
    return merges, rank


def average_linkage(centers: Tensor) -> np.ndarray:
    """Merge the pair of groups whose rows are nearest on average, until one is left.

    Args:
        centers: ``(m, d)``.

    Returns:
        ``(m - 1, 2)`` int64, as :func:`agglomerate`.
    """
    if len(centers) == 1:
        return np.empty((0, 2), np.int64)
    first = list(range(len(centers)))  # node of each group
    merges = []
    for a, b in scipy.cluster.hierarchy.linkage(centers.cpu().numpy(), "average")[:, :2]:
        merges.append(sorted((first[int(a)], first[int(b)])))
        first.append(merges[-1][0])
    return np.array(merges)


def cluster_at(merges: np.ndarray, m: int, k: int) -> np.ndarray:
    """The cluster of each of m nodes, ``(m,)`` int64, after all but the last k - 1 merges."""
    root = np.arange(m)
    for i, j in merges[: max(0, m - k)]:
        root[root == j] = i
    return np.unique(root, return_inverse=True)[1].astype(np.int64)


def grow(weights: np.ndarray, cluster: Tensor, parts: int) -> Tree:
    """The tree of the parts of clusters.

    Args:
        weights: ``(m, m)``, a symmetric connected graph.
        cluster: ``(m,)``, the cluster of each node: one of the tree's cuts.
        parts: number of parts, at least that of the clusters; at most m are made.
    """
    m = len(weights)
    parts = min(parts, m)
    merges, ranks = agglomerate(weights, cluster.numpy())
    part = cluster_at(merges, m, parts)
    heights = np.maximum.accumulate(-np.log(np.maximum(ranks, UNLINKED)))[m - parts :]
    return Tree(
        torch.from_numpy(part),
        torch.from_numpy(part[merges[m - parts :]]),
        torch.from_numpy(heights.astype(np.float32)),
    )


def _spread(x: Tensor | Spread) -> Spread:
    """Rows, checked."""
    if isinstance(x, Spread):
        return Spread(as_matrix(x.mine), len(x))
    return Spread(as_matrix(x), len(x))


def landmarks(x: Spread, m: int, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """At most m centres of patches of `x`, none without rows, and the patch of each row."""
    some = x.take(torch.randperm(len(x), generator=generator)[: max(m, SETTLING)]).float()
    centers = some[:m]
    for _ in range(LLOYD_STEPS):
        centers, patch = _drop_empty(centers, nearest(some, centers))
        counts = torch.bincount(patch, minlength=len(centers))[:, None]
        centers = torch.zeros_like(centers).index_add_(0, patch, some) / counts
    centers, patch = _drop_empty(centers, x.gather(nearest(x.mine, centers)))
    if len(centers) < k:  # many duplicates: rows that differ will do
        rows = torch.unique(x.gather(x.mine), dim=0).float()
        centers = rows[torch.randperm(len(rows), generator=generator)[:m].to(rows.device)]
        centers, patch = _drop_empty(centers, x.gather(nearest(x.mine, centers)))
    return centers, patch


def _drop_empty(centers: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
    used = torch.bincount(patch, minlength=len(centers)) > 0
    return centers[used], (used.cumsum(0) - 1)[patch]


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


def refine(weights: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Move nodes, one at a time, to the cluster that most of their edges go to.

    Edges to a large cluster count less, as in :func:`agglomerate`; no cluster loses more than half.
    """
    weights = weights / weights.sum() if len(weights) > 1 else weights
    cluster = cluster.copy()
    degree, own = weights.sum(1), weights.diagonal()
    member = np.eye(cluster.max() + 1)[cluster]  # (m, k)
    links, volume = weights @ member, degree @ member
    least = volume / 2
    node = np.arange(len(cluster))
    for _ in range(SWEEPS):
        gain = links / np.maximum(volume, UNLINKED) ** SIZE
        without = np.maximum(volume[cluster] - degree, UNLINKED) ** SIZE
        stay = gain[node, cluster] = (links[node, cluster] - own) / without
        moved = False
        for i in np.flatnonzero(gain.max(1) > stay * (1 + 1e-12)):  # others would stay
            a = cluster[i]
            if volume[a] - degree[i] < least[a]:
                continue
            others, to = volume.copy(), links[i].copy()
            others[a] -= degree[i]  # without itself
            to[a] -= own[i]
            row = to / np.maximum(others, UNLINKED) ** SIZE
            b = int(row.argmax())
            if row[b] <= row[a] * (1 + 1e-12):  # by now
                continue
            cluster[i], moved = b, True
            links[:, a] -= weights[:, i]
            links[:, b] += weights[:, i]
            volume[a] -= degree[i]
            volume[b] += degree[i]
        if not moved:
            break
    return cluster
