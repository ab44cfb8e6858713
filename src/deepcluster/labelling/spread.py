"""Label spreading over the graph of nearest neighbours (Zhou et al. 2004).

Classes flow along the edges from labelled images to the others, so that a few labels reach as far
as the images look alike: where a cluster is one class, one label of it is enough. Differences from
the paper: edges count 1 from both ends rather than by a Gaussian, which needs a width; each class
starts with the same mass however many labels it has, lest the larger flood the rest.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch

from deepcluster.clustering.neighbours import knn

NEIGHBOURS = 10
REACH = 0.9  # share of an image's mass that comes from its neighbours; the rest is its own label's
STEPS = 40  # 0.9^40 is 1.5 %: what is further than that does not change which class is largest


def neighbour_graph(x: np.ndarray) -> scipy.sparse.csr_matrix:
    """The symmetric normalised graph of rows, ``D^-1/2 (A + A^T) D^-1/2``.

    Args:
        x: ``(n, d)`` features, n at least 2.
    """
    n = len(x)
    k = min(NEIGHBOURS, n - 1)
    found = knn(torch.from_numpy(np.ascontiguousarray(x)), k)[0].numpy()
    edges = (np.ones(n * k), (np.repeat(np.arange(n), k), found.ravel()))
    directed = scipy.sparse.csr_matrix(edges, shape=(n, n))
    both = directed + directed.T
    scale = scipy.sparse.diags(np.asarray(both.sum(axis=1)).ravel() ** -0.5)
    return (scale @ both @ scale).tocsr()


def spread(
    graph: scipy.sparse.csr_matrix, rows: np.ndarray, labels: np.ndarray, classes: int
) -> np.ndarray:
    """Shares of the classes for every row of a graph.

    Args:
        graph: from :func:`neighbour_graph`.
        rows: ``(m,)`` the labelled rows.
        labels: ``(m,)`` their classes, from 0.
        classes: how many there are; one without a label gets nothing.

    Returns:
        ``(n, classes)`` float64, rows that add up to 1; a row that no label reaches has even
        shares of the classes that have labels.
    """
    counts = np.bincount(labels, minlength=classes)
    start = np.zeros((graph.shape[0], classes))
    start[rows, labels] = 1 / counts[labels]
    mass = start
    for _ in range(STEPS):
        mass = REACH * (graph @ mass) + (1 - REACH) * start
    total = mass.sum(axis=1, keepdims=True)
    shares: np.ndarray = np.where(
        total > 0, mass / np.maximum(total, 1e-300), (counts > 0) / (counts > 0).sum()
    )
    return shares
