"""Nearest rows, in blocks that fit in memory: exact, or of very many rows nearly so.

Nearly: by an inverted file (Jégou et al., "Product quantization for nearest neighbor search", 2011,
section IV, without the quantization). The rows are split into about √n cells, and a row is compared
with those of the cells nearest to its own. The share of true neighbours that are found is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

GROUP = 16  # scores that one maximum stands for, in knn
BLOCK = 2**25  # scores at a time
CACHED = 2**22  # on a CPU, where they are read again at once
EXACT_UP_TO = 30_000  # rows whose neighbours are all found exactly, in nearest_rows
PROBES = 20  # cells that a row is compared with, beyond
CHECKED = 256  # rows whose neighbours are also found exactly, to measure the recall


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
    # On a CPU the halves of the squares are one more feature, which spares a pass over all scores;
    # a GPU wants an even number of them.
    d, more = x.shape[1], x.device.type == "cpu"
    table = torch.zeros(d + more, columns * GROUP, device=x.device)
    table[:d, :n] = centred.T
    half = torch.full((columns * GROUP,), torch.inf, device=x.device)
    half[:n] = 0.5 * centred.square().sum(1)
    table[d:] = half
    steps = columns * torch.arange(GROUP, device=x.device)
    room = torch.empty(min(chunk, len(queries)), columns * GROUP, device=x.device)
    indices, distances = [], []
    for asking in queries.split(chunk):
        rows = centred[asking]  # (b, d)
        wide = F.pad(rows, (0, int(more)), value=-1)
        scores = torch.mm(wide, table, out=room[: len(asking)])
        if not more:
            scores -= half
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


def nearest_rows(x: Tensor, k: int) -> tuple[Tensor, Tensor, float]:
    """The k nearest rows of each row, itself left out; nearest first.

    Args:
        x: ``(n, d)``, on any device.
        k: neighbours; all others if they are fewer.

    Returns:
        indices ``(n, k)`` int64 and Euclidean distances ``(n, k)``, on the device of `x`, and the
        recall: the share of the true neighbours that were found, 1 up to EXACT_UP_TO rows.

    Raises:
        ValueError: `x` is no matrix or holds NaN or infinity.
    """
    x = as_matrix(x)
    n = len(x)
    k = min(k, n - 1)
    if k < 1:
        return torch.empty(n, 0, dtype=torch.int64), torch.empty(n, 0), 1.0
    if n <= EXACT_UP_TO:
        return *knn(x, k), 1.0
    generator = torch.Generator().manual_seed(0)
    indices, distances = _knn_in_cells(x, k, generator)
    checked = torch.randperm(n, generator=generator)[:CHECKED].to(x.device)
    truth, _ = knn(x, k, queries=checked)
    found = (truth[:, :, None] == indices[checked][:, None, :]).any(2)
    return indices, distances, float(found.float().mean())


def _knn_in_cells(x: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """About the k nearest rows of each row, and their distances, both ``(n, k)``."""
    n = len(x)
    centred = x - x.mean(0)
    cells = round(math.sqrt(n))
    sample = centred[torch.randperm(n, generator=generator)[: 30 * cells].to(x.device)]
    centres = sample[:cells]
    for _ in range(3):  # steps of k-means: cells need only be compact
        nearest = torch.cat([s.argmax(1) for _, s in score_blocks(sample, centres)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, sample)
        counts = nearest.bincount(minlength=cells)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    cell = torch.cat([s.argmax(1) for _, s in score_blocks(centred, centres)])
    order = cell.argsort(stable=True)
    sizes = cell.bincount(minlength=cells).cpu()
    starts = [0, *sizes.cumsum(0).tolist()]
    half = 0.5 * centred.square().sum(1)
    near = torch.cdist(centres, centres).argsort(1).cpu()  # a cell itself comes first
    indices = torch.empty(n, k, dtype=torch.int64, device=x.device)
    distances = torch.empty(n, k, device=x.device)
    for c in range(cells):
        # The nearest cells: PROBES of them, or more until there are enough rows.
        enough = int(torch.searchsorted(sizes[near[c]].cumsum(0), k + 1)) + 1
        probed = near[c, : max(PROBES, enough)].tolist()
        candidates = torch.cat([order[starts[j] : starts[j + 1]] for j in probed])
        table = centred[candidates]
        for asking in order[starts[c] : starts[c + 1]].split(max(1, BLOCK // len(candidates))):
            rows = centred[asking]
            scores = rows @ table.T - half[candidates]
            scores[candidates == asking[:, None]] = -torch.inf
            found = candidates[scores.topk(k, dim=1).indices]
            distance = (rows[:, None, :] - centred[found]).norm(dim=2)
            distances[asking], by = distance.sort(dim=1, stable=True)
            indices[asking] = found.gather(1, by)
    return indices, distances


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
    scores = CACHED if x.device.type == "cpu" else BLOCK
    for rows in x.split(min(max(scores // len(centers), 256), 8192)):
        rows = rows.detach().float() - middle
        yield rows, rows @ centers.T - half
