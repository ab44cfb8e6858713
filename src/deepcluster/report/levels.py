"""What the slider of the pages needs: the tree of clusters, and a number for each of its nodes.

Any number of clusters is a cut of the tree. The numbers are such that little changes on the way
from one to the next: at the run's own number of clusters they are the run's, of the two that a node
splits into the larger keeps its number, and the other gets one that nobody had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from deepcluster.run import RunDir


@dataclass(frozen=True)
class Tree:
    """The finest clusters of a run, and how they merge: any number of clusters is a cut of it."""

    part: np.ndarray  # (n,) the finest cluster of each image, from 0
    merges: np.ndarray  # (parts - 1, 2) two nodes; merge i gives node parts + i


def read_tree(run: RunDir, count: int) -> Tree | None:
    """The tree of a run; None where it has none of at least two parts, or of other images.

    Args:
        run: a finished run.
        count: its images.

    Raises:
        RunError: the tree is damaged.
    """
    if not run.tree.is_file():
        return None
    pairs, _, part = run.read_tree()
    if len(part) != count or not len(pairs):
        return None
    node = np.arange(len(pairs) + 1)  # where what belongs with a part is by now
    merges = []
    for i, (a, b) in enumerate(pairs.tolist()):
        merges.append((node[a], node[b]))
        node[a] = len(pairs) + 1 + i
    return Tree(part, np.array(merges))


def describe_levels(tree: Tree, clusters: np.ndarray, by_person: np.ndarray) -> dict[str, Any]:
    """The tree for the pages.

    Args:
        tree: of the run.
        clusters: ``(n,)`` the clusters of the images, -1 for none.
        by_person: ``(n,)`` whether a person put the image there.

    Returns:
        ``parts``: their number; ``merges``: the two nodes of each merge, the first merge first;
        ``numbers``: of all nodes, parts first; ``all``: the numbers of clusters to choose from;
        ``own``: the run's; ``exact``: whether the run's clusters are a cut of the tree.
    """
    parts = len(tree.merges) + 1
    placed = (clusters >= 0) & ~by_person
    given, column = np.unique(clusters[placed], return_inverse=True)
    own = max(1, len(given))
    counts = np.zeros((parts, own), np.int64)  # images of each part in each cluster
    np.add.at(counts, (tree.part[placed], column), 1)
    nodes = np.zeros((2 * parts - 1, own), np.int64)
    nodes[:parts] = counts
    for i, (a, b) in enumerate(tree.merges):
        nodes[parts + i] = nodes[a] + nodes[b]
    shown = _cut(tree, min(own, parts))
    row, matched = linear_sum_assignment(-nodes[shown])
    agreeing = nodes[shown][row, matched].sum()
    numbers = np.full(2 * parts - 1, -1)
    if len(given):
        numbers[shown[row]] = given[matched]
    top = int(max(clusters.max(initial=-1), numbers.max())) + 1
    for node in shown[numbers[shown] < 0]:
        numbers[node], top = top, top + 1
    sizes = nodes.sum(axis=1)
    for i, (a, b) in enumerate(tree.merges):  # up from the run's clusters
        if numbers[parts + i] < 0 and numbers[a] >= 0:
            numbers[parts + i] = numbers[a if sizes[a] >= sizes[b] else b]
    for i in range(parts - 2, -1, -1):  # and down
        larger, other = sorted(tree.merges[i].tolist(), key=lambda node: (-sizes[node], node))
        if numbers[larger] < 0:
            numbers[larger] = numbers[parts + i]
        if numbers[other] < 0:
            numbers[other], top = top, top + 1
    return {
        "parts": parts,
        "merges": tree.merges.tolist(),
        "numbers": numbers.tolist(),
        "all": sorted({*range(2, parts + 1), own}),
        "own": own,
        "exact": bool(own <= parts and agreeing == placed.sum()),
    }


def _cut(tree: Tree, k: int) -> np.ndarray:
    """The nodes that are left when the last k - 1 merges are not made."""
    parts = len(tree.merges) + 1
    made = parts - k
    merged = tree.merges[:made].ravel()
    return np.setdiff1d(np.arange(parts + made), merged)
