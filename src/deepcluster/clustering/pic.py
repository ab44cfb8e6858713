"""Power iteration clustering: groups are the hills of a random walk on the neighbour graph.

Lin and Cohen, "Power Iteration Clustering" (ICML 2010), in the form in which DeepCluster (Caron et
al., ECCV 2018, section 4.4 and the authors' code) makes pseudo-labels with it: the number of
clusters is not asked for but found. It differs from that code in that nodes are not walked through
one by one: every step is an operation on the sparse graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from deepcluster.clustering.neighbours import knn

NEIGHBOURS, SIGMA, ALPHA, STEPS = 5, 0.2, 0.001, 200  # as in the authors' code


@dataclass(frozen=True)
class PICResult:
    """Groups that power iteration finds.

    Attributes:
        labels: ``(n,)`` int64 on the CPU, from 0 on, every number used.
        clusters: how many there are.
        walk: ``(n,)`` float64, the stationary vector, of sum 1.
    """

    labels: Tensor
    clusters: int
    walk: np.ndarray


def power_iteration_clusters(
    x: Tensor,
    *,
    neighbours: int = NEIGHBOURS,
    sigma: float = SIGMA,
    alpha: float = ALPHA,
    steps: int = STEPS,
) -> PICResult:
    """Cluster rows by power iteration; there is no chance in it.

    Edges go from each row to its nearest neighbours with weight exp(-d²/sigma²) and are added to
    their reverse. From a uniform vector, `steps` times: v <- alpha W'v + (1 - alpha) / n, of sum 1.
    Then every row points to the neighbour j of largest W_ij (v_j - v_i), if that is above 0, and a
    cluster is what ends at the same summit. A row that is alone joins the nearest of its neighbours
    that is not. The iteration is of what v differs from 1 / n by, which keeps its digits.

    Args:
        x: ``(n, d)`` features, as a rule L2-normalised; on any device.
        neighbours: edges that go out from a row (all others, if they are fewer).
        sigma: width of the kernel.
        alpha: share of the walk that follows the edges.
        steps: power iterations, at least one.

    Raises:
        ValueError: `x` is no matrix or holds NaN or infinity.
    """
    n = len(x)
    if n < 3:
        return PICResult(torch.zeros(n, dtype=torch.int64), min(n, 1), np.full(n, 1 / max(n, 1)))
    found, distances = knn(x, min(neighbours, n - 1))
    index, gaps = found.cpu().numpy(), distances.cpu().numpy().astype(np.float64)
    k = index.shape[1]
    directed = scipy.sparse.csr_matrix(
        (np.exp(-(gaps**2) / sigma**2).ravel(), index.ravel(), np.arange(0, n * k + 1, k)), (n, n)
    )
    graph = (directed + directed.T).tocsr()  # symmetric
    # v = (1 + e) / n: features that are far apart have weights below the rounding of v itself
    degree, e = np.asarray(graph.sum(1)).ravel(), np.zeros(n)
    for _ in range(steps):
        height = alpha / (1 - alpha) * (degree + graph @ e)
        e = (height - height.mean()) / (1 + height.mean())
    labels = _join_lone(_basins(_climb(graph, height)), index)
    return PICResult(torch.from_numpy(labels), int(labels.max()) + 1, (1 + e) / n)


def _climb(graph: scipy.sparse.csr_matrix, height: np.ndarray) -> np.ndarray:
    """The row that each row points to: itself on a summit, ``(n,)``."""
    rows = np.repeat(np.arange(len(height)), np.diff(graph.indptr))
    gain = graph.data * (height[graph.indices] - height[rows])
    # the best edge of a row comes last among its edges; of equal ones the first neighbour
    order = np.lexsort((-np.arange(len(gain)), gain, rows))
    last = graph.indptr[1:] - 1  # every row has an edge
    best = order[last]
    target: np.ndarray = np.where(gain[best] > 0, graph.indices[best], np.arange(len(height)))
    return target.astype(np.int64)


def _basins(target: np.ndarray) -> np.ndarray:
    """The summit of each row, as a number from 0 on: pointers are doubled until none moves."""
    while not np.array_equal(further := target[target], target):
        target = further
    return np.unique(target, return_inverse=True)[1]


def _join_lone(labels: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Rows that are alone join the first of their neighbours that is not."""
    alone = np.bincount(labels)[labels] == 1
    others = ~alone[index]  # (n, k)
    joins = alone & others.any(1)
    nearest = index[np.arange(len(index)), others.argmax(1)]
    labels = np.where(joins, labels[nearest], labels)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
