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

from deepcluster import processes
from deepcluster.processes import Spread

GROUP = 16  # scores that one maximum stands for, in knn
BLOCK = 2**25  # scores at a time
TILE = 2**16  # rows that are compared with at a time: those alone are copied
CACHED = 2**22  # on a CPU, where they are read again at once
NEAR = 256  # rows whose distances to their neighbours are worked out at a time
EXACT_UP_TO = 30_000  # rows whose neighbours are all found exactly, in nearest_rows
PROBES = 20  # cells that a row is compared with, beyond
CHECKED = 256  # rows whose neighbours are also found exactly, to measure the recall


def knn(
    x: Tensor | Spread, k: int, *, queries: Tensor | None = None, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of each row, exactly, itself left out; nearest first.

    Args:
        x: ``(n, d)``, on any device; where several processes have a part of the rows, all look.
            Rows of half precision, as in a file that is mapped, are converted a tile at a time.
        k: neighbours, below n.
        queries: ``(q,)`` indices of the rows that ask; None for all.
        chunk: rows that ask at a time; None chooses.

    Returns:
        indices ``(q, k)`` int64 and Euclidean distances ``(q, k)``, on the device of `x`.

    Raises:
        ValueError: `x` is no matrix or holds NaN or infinity; k is below 1 or not below n.
    """
    spread = x if isinstance(x, Spread) else Spread(x, len(x))
    x, n = as_matrix(spread.mine), len(spread)
    if not 1 <= k < n:
        raise ValueError(f"k = {k} neighbours of n = {n} rows: k must be from 1 to n - 1")
    queries = torch.arange(n, device=x.device) if queries is None else queries.to(x.device)
    middle = _mean(x)  # less which numbers are smaller, and their rounding errors
    if len(x) == n:
        return _knn(x, middle, k, queries, None, chunk)
    places = torch.where(spread.locate(queries)[0], queries - spread.rows.start, -1)
    few = min(k, len(x))  # of which a row that asks may be one
    indices, distances = _knn(x, middle, few, places, spread.take(queries), chunk)
    distances[(indices == places[:, None]) | (indices >= len(x))] = torch.inf
    indices = torch.nn.functional.pad(indices + spread.rows.start, (0, k - few))
    distances = torch.nn.functional.pad(distances, (0, k - few), value=torch.inf)
    every = processes.world()
    indices = processes.gather(indices[None], every).transpose(0, 1).flatten(1)  # (q, every k)
    distances = processes.gather(distances[None], every).transpose(0, 1).flatten(1)
    distances, order = distances.sort(dim=1, stable=True)
    return indices.gather(1, order[:, :k]), distances[:, :k]


def _knn(
    x: Tensor, middle: Tensor, k: int, queries: Tensor, asked: Tensor | None, chunk: int | None
) -> tuple[Tensor, Tensor]:
    """The k nearest of the rows `x` ``(n, d)``, as :func:`knn`.

    Args:
        x: the rows.
        middle: ``(d,)``, near them.
        k: below n; or n itself, where a place from n on says that there was no other row.
        queries: ``(q,)``, the rows that ask, by their places among these; -1 for others.
        asked: ``(q, d)``, what these are; None: all are among the rows.
        chunk: that ask at a time; None chooses.
    """
    n = len(x)
    chunk = chunk or max(1, BLOCK // min(n, TILE))
    chunks = queries.split(chunk)

    def rows_of(number: int) -> Tensor:
        if asked is None:
            return x[chunks[number]] - middle
        return asked[number * chunk : (number + 1) * chunk] - middle

    best: list[tuple[Tensor, Tensor]] = []  # of each chunk: scores and indices so far, (b, k)
    for start in range(0, n, TILE):
        tile = _Tile(x[start : start + TILE] - middle, start, min(chunk, len(queries)))
        found = [tile.best(rows_of(i), asking, k) for i, asking in enumerate(chunks)]
        best = [_better(*both, k) for both in zip(best, found, strict=True)] if start else found
    indices = torch.cat([places for _, places in best])
    distances = middle.new_empty(indices.shape)
    for a in range(0, len(queries), NEAR):
        some = slice(a, a + NEAR)
        asking = (x[queries[some]] if asked is None else asked[some]) - middle
        near = x[indices[some] if asked is None else indices[some].clamp(max=n - 1)] - middle
        distances[some], order = (asking[:, None, :] - near).norm(dim=2).sort(dim=1, stable=True)
        indices[some] = indices[some].gather(1, order)
    return indices, distances


class _Tile:
    """Rows that all others are compared with, in one product.

    A row's k best scores lie in the k groups with the best maxima: one cheap pass over all and a
    sort of few, where topk would sort them all. Groups are columns of the padded row.
    """

    def __init__(self, rows: Tensor, start: int, several: int) -> None:
        n, self.start = len(rows), start
        self.columns = -(-n // GROUP)
        self.table = rows.new_zeros(rows.shape[1], self.columns * GROUP)
        self.table[:, :n] = rows.T
        self.half = rows.new_full((self.columns * GROUP,), torch.inf)
        self.half[:n] = 0.5 * rows.square().sum(1)
        self.steps = self.columns * torch.arange(GROUP, device=rows.device)
        self.room = rows.new_empty(several, self.columns * GROUP)

    def best(self, rows: Tensor, asking: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores and indices, both up to ``(b, k)``, for the rows ``(b, d)`` with these indices."""
        scores = torch.mm(rows, self.table, out=self.room[: len(rows)]).sub_(self.half)
        own = asking - self.start
        here = ((own >= 0) & (own < scores.shape[1])).nonzero()[:, 0]
        scores[here, own[here]] = -torch.inf
        if self.columns > k:
            groups = scores.view(len(rows), GROUP, self.columns).amax(1).topk(k, dim=1).indices
            found = (groups[:, :, None] + self.steps).flatten(1)  # (b, k GROUP)
            most, place = scores.gather(1, found).topk(k, dim=1)
            return most, found.gather(1, place) + self.start
        most, found = scores.topk(min(k, scores.shape[1]), dim=1)
        return most, found + self.start


def _better(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], k: int
) -> tuple[Tensor, Tensor]:
    """The k best of two lists of scores ``(b, m)`` and indices ``(b, m)``."""
    scores, indices = (torch.cat(both, dim=1) for both in zip(one, other, strict=True))
    best, place = scores.topk(k, dim=1)
    return best, indices.gather(1, place)


def nearest_rows(x: Tensor, k: int) -> tuple[Tensor, Tensor, float]:
    """The k nearest rows of each row, itself left out; nearest first.

    Args:
        x: ``(n, d)``, on any device.
        k: neighbours; all others if they are fewer.

    Returns:
        indices ``(n, k)`` int32 and Euclidean distances ``(n, k)``, on the device of `x`, and the
        recall: the share of the true neighbours that were found, 1 up to EXACT_UP_TO rows.

    Raises:
        ValueError: `x` is no matrix or holds NaN or infinity.
    """
    x = as_matrix(x)
    n = len(x)
    k = min(k, n - 1)
    if k < 1:
        return torch.empty(n, 0, dtype=torch.int32), torch.empty(n, 0), 1.0
    if n <= EXACT_UP_TO:
        indices, distances = knn(x, k)
        return indices.int(), distances, 1.0
    generator = torch.Generator().manual_seed(0)
    indices, distances = _knn_in_cells(x, k, generator)
    checked = torch.randperm(n, generator=generator)[:CHECKED].to(x.device)
    truth, _ = knn(x, k, queries=checked)
    found = (truth[:, :, None] == indices[checked][:, None, :]).any(2)
    return indices, distances, float(found.float().mean())


def _knn_in_cells(x: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """About the k nearest rows of each row, and their distances, both ``(n, k)``."""
    n = len(x)
    middle = _mean(x)
    cells = round(math.sqrt(n))
    sample = x[torch.randperm(n, generator=generator)[: 30 * cells].to(x.device)] - middle
    centres = sample[:cells]
    for _ in range(3):  # steps of k-means: cells need only be compact
        home = nearest(sample, centres)
        sums = torch.zeros_like(centres).index_add_(0, home, sample)
        counts = home.bincount(minlength=cells)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    cell = nearest(x, centres, middle)
    order = cell.argsort(stable=True)
    sizes = cell.bincount(minlength=cells).cpu()
    starts = [0, *sizes.cumsum(0).tolist()]
    # A cell itself comes first, also where others lie nearer than the rounding of a distance.
    near = torch.cdist(centres, centres).fill_diagonal_(-1).argsort(1).cpu()
    indices = torch.empty(n, k, dtype=torch.int32, device=x.device)
    distances = torch.empty(n, k, device=x.device)
    for c in range(cells):
        # The nearest cells: PROBES of them, or more until there are enough rows.
        enough = int(torch.searchsorted(sizes[near[c]].cumsum(0), k + 1)) + 1
        probed = near[c, : max(PROBES, enough)].tolist()
        candidates = torch.cat([order[starts[j] : starts[j + 1]] for j in probed])
        table = x[candidates].float().sub_(middle)
        own = torch.arange(starts[c + 1] - starts[c], device=x.device)  # the first of them
        several = max(1, (CACHED if x.device.type == "cpu" else BLOCK) // len(candidates))
        tile = _Tile(table, 0, min(several, max(len(own), 1)))
        for asking in own.split(several):
            rows = table[asking]
            place = tile.best(rows, asking, k)[1]
            distance = (rows[:, None, :] - table[place]).norm(dim=2)
            at = candidates[asking]
            distances[at], by = distance.sort(dim=1, stable=True)
            indices[at] = candidates[place.gather(1, by)].int()
    return indices, distances


def as_matrix(x: Tensor) -> Tensor:
    """`x` in float32; half precision, which may be that of a mapped file, stays as it is.

    Raises:
        ValueError: it is no ``(n, d)`` of at least one row, or holds NaN or infinity.
    """
    if x.ndim != 2 or not len(x):
        raise ValueError(f"x is {tuple(x.shape)}: give features as (n, d), n at least 1")
    x = x.detach()
    if x.dtype != torch.float16:
        x = x.float()
    if not all(bool(end.isfinite()) for end in x.aminmax()):  # NaN stays; no copy of the rows
        bad = int((~x.isfinite().all(1)).sum())
        raise ValueError(f"{bad} of {len(x)} rows of x hold NaN or infinity: remove them")
    return x


def _mean(x: Tensor) -> Tensor:
    """Of rows from :func:`as_matrix`, ``(d,)`` float32."""
    if x.dtype == torch.float32:
        return x.mean(0)
    sums = torch.zeros(x.shape[1], device=x.device)
    for rows in x.split(TILE):
        sums += rows.float().sum(0)
    return sums / len(x)


def nearest(x: Tensor, centers: Tensor, middle: Tensor | float = 0.0) -> Tensor:
    """The nearest centre of each row, ``(n,)`` int64, the first one on a tie.

    Args:
        x: ``(n, d)``, on any device.
        centers: ``(m, d)`` float32, less `middle`.
        middle: ``(d,)``, or 0: what is taken from the rows first.
    """
    found = torch.empty(len(x), dtype=torch.int64, device=x.device)
    start = 0  # in one place: small results between blocks of scores leave holes in memory
    for rows, scores in score_blocks(x, centers, middle):
        found[start : start + len(rows)] = best_column(scores)
        start += len(rows)
    return found


def best_column(scores: Tensor) -> Tensor:
    """The column of the largest score of each row, the first one on a tie."""
    # On a CPU, NumPy's is vectorised over a row and torch's is not.
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.numpy().argmax(1))
    return scores.argmax(1)


def score_blocks(
    x: Tensor, centers: Tensor, middle: Tensor | float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of rows less `middle`, and their scores: half (square less squared distance).

    The scores lie where those of the block before lay: whoever wants them longer copies them.
    """
    half = 0.5 * centers.square().sum(1)
    scores = CACHED if x.device.type == "cpu" else BLOCK
    block = min(max(scores // len(centers), 256), 8192, max(len(x), 1))
    room = centers.new_empty(block, len(centers))
    for rows in x.split(block):
        rows = rows.detach().float() - middle
        yield rows, torch.mm(rows, centers.T, out=room[: len(rows)]).sub_(half)
