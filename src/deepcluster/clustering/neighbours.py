"""Exact nearest rows, in blocks that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

GROUP = 16  # scores that one maximum stands for, in knn
BLOCK = 2**25  # scores at a time


def knn(
    x: Tensor, k: int, *, queries: Tensor | None = None, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of each row, exactly, itself left out; nearest first.

    Args:
        x: ``(n, d)``, on any device.
        k: neighbours, below n.
        queries: ``(q,)`` indices of the rows that ask; None for all.
        chunk: rows that ask at a time; None chooses.

    Returns:
        indices ``(q, k)`` int64 and Euclidean distances ``(q, k)``, on the device of `x`.

    Raises:
        ValueError: `x` is no matrix or holds NaN or infinity; k is below 1 or not below n.
    """
    x = as_matrix(x)
    n = len(x)
    if not 1 <= k < n:
        raise ValueError(f"k = {k} neighbours of n = {n} rows: k must be from 1 to n - 1")
    queries = torch.arange(n, device=x.device) if queries is None else queries.to(x.device)
    chunk = chunk or max(1, BLOCK // n)
    centred = x - x.mean(0)  # smaller numbers, smaller rounding errors
    # A row's k best scores lie in the k groups with the best maxima: one cheap pass over all n
    # and a sort of few, where topk would sort them all. Groups are columns of the padded row.
    columns = -(-n // GROUP)
    table = torch.zeros(x.shape[1], columns * GROUP, device=x.device)
    table[:, :n] = centred.T
    half = torch.full((columns * GROUP,), torch.inf, device=x.device)
    half[:n] = 0.5 * centred.square().sum(1)
    steps = columns * torch.arange(GROUP, device=x.device)
    room = torch.empty(min(chunk, len(queries)), columns * GROUP, device=x.device)
    indices, distances = [], []
    for asking in queries.split(chunk):
        rows = centred[asking]  # (b, d)
        scores = torch.mm(rows, table, out=room[: len(asking)]).sub_(half)
        scores.scatter_(1, asking[:, None], -torch.inf)
        if columns > k:
            best = scores.view(len(asking), GROUP, columns).amax(1).topk(k, dim=1).indices
            found = (best[:, :, None] + steps).flatten(1)  # (b, k GROUP)
            found = found.gather(1, scores.gather(1, found).topk(k, dim=1).indices)
        else:
            found = scores.topk(k, dim=1).indices
        distance = (rows[:, None, :] - centred[found]).norm(dim=2)
        distance, order = distance.sort(dim=1, stable=True)
        indices.append(found.gather(1, order))
        distances.append(distance)
    return torch.cat(indices), torch.cat(distances)


def as_matrix(x: Tensor) -> Tensor:
    """`x` in float32.

    Raises:
        ValueError: it is no ``(n, d)`` of at least one row, or holds NaN or infinity.
    """
    if x.ndim != 2 or not len(x):
        raise ValueError(f"x is {tuple(x.shape)}: give features as (n, d), n at least 1")
    x = x.detach().float()
    if not bool(x.isfinite().all()):
        bad = int((~x.isfinite().all(1)).sum())
        raise ValueError(f"{bad} of {len(x)} rows of x hold NaN or infinity: remove them")
    return x


def score_blocks(
    x: Tensor, centers: Tensor, middle: Tensor | float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of rows less `middle`, and their scores: half (square less squared distance)."""
    half = 0.5 * centers.square().sum(1)
    for rows in x.split(max(1, min(BLOCK // len(centers), 8192))):
        rows = rows.detach().float() - middle
        yield rows, rows @ centers.T - half
