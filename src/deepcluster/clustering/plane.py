"""A map of the features in the plane, on which neighbours lie together.

The map is a neighbour embedding after UMAP (McInnes et al. 2018) with the edges unweighted, which
changes little (Damrich and Hamprecht 2021), and whole-batch steps that share their negatives.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from deepcluster.clustering.neighbours import as_matrix, knn, score_blocks

ON_MAP = 60_000
"""Rows at most on the map."""
LAID_OUT = 20_000
"""Rows at most whose places the map works out; the others go between their nearest of these."""
BETWEEN = 3  # neighbours that say where on the map a row lies that was not laid out


def layout(
    x: Tensor, *, neighbours: int = 15, steps: int = 300, generator: torch.Generator
) -> Tensor:
    """Places of the rows on a map that keeps neighbours together.

    Args:
        x: ``(n, d)`` features, as a rule L2-normalised; on any device.
        neighbours: edges that go out from a row.
        steps: of the embedding.
        generator: a CPU generator, the only source of randomness.

    Returns:
        ``(n, 2)`` float32 on the CPU. Above LAID_OUT rows, that many are drawn at random and laid
        out, and the others go between their nearest of these; above ON_MAP, that many are placed;
        the others are NaN.

    Raises:
        ValueError: `x` is no matrix or holds NaN or infinity.
    """
    x = as_matrix(x)
    if len(x) > ON_MAP:
        places = torch.full((len(x), 2), torch.nan)
        drawn = torch.randperm(len(x), generator=generator)[:ON_MAP].sort().values
        places[drawn] = layout(
            x[drawn.to(x.device)], neighbours=neighbours, steps=steps, generator=generator
        )
        return places
    x = x.float()
    if len(x) > LAID_OUT:
        order = torch.randperm(len(x), generator=generator)
        drawn, others = order[:LAID_OUT], order[LAID_OUT:]
        places = torch.empty(len(x), 2)
        base = x[drawn.to(x.device)]
        places[drawn] = layout(base, neighbours=neighbours, steps=steps, generator=generator)
        places[others] = _between(x[others.to(x.device)], base, places[drawn])
        return places
    n = len(x)
    if n < 3:
        return torch.tensor([[0.0, 0.0], [1.0, 0.0]])[:n]
    found, _ = knn(x, min(neighbours, n - 1))
    k = found.shape[1]
    graph = scipy.sparse.csr_matrix(
        (np.ones(n * k, np.float32), found.cpu().numpy().ravel(), np.arange(0, n * k + 1, k)),
        (n, n),
    )
    graph = graph.maximum(graph.T).tocsr()
    degree = torch.from_numpy(np.diff(graph.indptr).astype(np.float32))[:, None]
    start = torch.from_numpy(np.repeat(np.arange(n), np.diff(graph.indptr)))
    end = torch.from_numpy(graph.indices.astype(np.int64))
    y = _principal_plane(x).cpu()
    y = y / y.abs().max().clamp_min(1e-12) + 1e-3 * torch.randn(n, 2, generator=generator)
    for _ in range(100):  # towards the slowest modes of a walk on the graph, UMAP's start
        y = (y + torch.from_numpy(graph @ y.numpy()) / degree) / 2
        y = torch.linalg.qr(y - (degree * y).sum(0) / degree.sum())[0]
    y = 10 * y / y.abs().max()
    negatives, ratio = 64, 5.0  # per edge, ratio negatives, as UMAP has it
    mean, square = torch.zeros(n, 2), torch.zeros(n, 1)
    for step in range(steps):
        # Attraction of Student's t kernel, 1 / (1 + d²), along the edges.
        pull = 1 / (1 + (y[start] - y[end]).square().sum(1))
        graph.data = pull.numpy()
        pulled = torch.from_numpy(graph @ torch.cat([y, torch.ones(n, 1)], 1).numpy())
        gradient = (pulled[:, 2:] * y - pulled[:, :2]) / degree
        # Repulsion from a few rows that all share.
        drawn = torch.randint(n, (negatives,), generator=generator)
        distance = torch.cdist(y, y[drawn], compute_mode="donot_use_mm_for_euclid_dist").square_()
        push = 1 / ((distance + 0.05) * (1 + distance))
        push[drawn, torch.arange(negatives)] = 0
        push *= ratio / negatives * min(1.0, 2 * step / steps)  # later, so that parts can pass
        gradient -= push.sum(1, keepdim=True) * y - push @ y[drawn]
        # Adam with one variance for both coordinates, and the step going to 0.
        mean.lerp_(gradient, 0.1)
        square.lerp_(gradient.square().mean(1, keepdim=True), 0.01)
        first, second = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.99 ** (step + 1))
        y -= (1 - step / steps) * first / (second.sqrt() + 1e-8)
    return y


def _between(x: Tensor, base: Tensor, places: Tensor) -> Tensor:
    """Places for rows: the mean place of the BETWEEN nearest rows of `base`, nearer ones first."""
    found = []
    for rows, scores in score_blocks(x, base):
        nearest = scores.topk(min(BETWEEN, len(base)), dim=1).indices  # (b, BETWEEN)
        distance = (rows[:, None, :] - base[nearest]).norm(dim=2)
        weight = 1 / (distance + 1e-6)
        weight = (weight / weight.sum(1, keepdim=True)).cpu()
        found.append((weight[:, :, None] * places[nearest.cpu()]).sum(1))
    return torch.cat(found)


def _principal_plane(x: Tensor) -> Tensor:
    """The rows on their first two principal axes, ``(n, 2)``."""
    centred = x - x.mean(0)
    _, axes = torch.linalg.eigh((centred.T @ centred / len(x)).double())
    plane = centred @ axes[:, -2:].flip(1).float()
    return plane if plane.shape[1] == 2 else torch.nn.functional.pad(plane, (0, 1))
