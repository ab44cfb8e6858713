"""k-means: Lloyd's algorithm on any device, in blocks.

Lloyd, "Least squares quantization in PCM" (1982); seeding after Arthur and Vassilvitskii,
"k-means++" (2007); with ``metric="cosine"`` the spherical k-means of Dhillon and Modha (2001).
Written by hand because no library runs it on CPU, GPU and MPS alike, out of core, and says how
often it had to repair an empty cluster. scikit-learn and faiss are its references in the tests.
How rows are read, shifted and scaled is told in :mod:`.rows`. Long, because starts, iterations and
repairs share one way to find the nearest centre.

- Memory: at most `chunk_size` x k scores exist at once.
- Work: once few rows change their cluster, sums are mended by those alone, and a row is looked at
  again only when the centres have moved so far that its nearest one could be another (the bound of
  Hamerly, "Making k-means even faster", 2010, with one number a row in place of two).
- Accuracy: rows and centres are shifted before ||x||^2 - 2xc + ||c||^2 is formed; sums over a
  cluster are float64 (of at most 2048 rows float32, where the rows are); distances that are
  returned come from x - c itself and are never negative. On a GPU the product follows torch's own
  float32 matmul precision.
- Empty clusters: the centre moves to the row that lies farthest from its own centre, which leaves
  that row's cluster (scikit-learn's rule); the next empty one takes the next farthest, different
  row. Rows that lie on their centre, and a cluster's only row, are never taken; with more clusters
  than distinct rows some clusters therefore stay empty. Each move is counted.
- Same seed, same bits on a CPU. On a GPU float64 sums are added in any order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster import processes
from deepcluster.clustering.rows import SUMMED, Metric, Rows, as_rows, has_float64
from deepcluster.processes import Spread
from deepcluster.progress import Progress, span

RARE = 50  # once so small a part of the rows changes its cluster, the others are left alone
WIDTH = 16  # on a CPU, a product with so many columns takes half the time of one with 10
ONE_BY_ONE = 256  # k-means++ draws this many centres one at a time, later ones in blocks
# Of more rows, k-means++ draws from a random sample: so many rows a centre, and at least so many.
SEEDING, FEWEST_SEEDING = 64, 2**16
TIMED = 16  # blocks of rows that are timed, to say how long an iteration takes
LONG = 60.0  # seconds that all iterations may take before anything is told of them


@dataclass(frozen=True)
class KMeansResult:
    """What :func:`kmeans` found; tensors on the device that computed them."""

    centers: Tensor
    """``(k, d)``, float64 if the rows are, else float32; unit length for cosine."""
    labels: Tensor
    """``(n,)`` int64, from 0: ``assign(x, centers)``, so a repaired cluster may still be empty."""
    distances: Tensor
    """``(n,)``, as the centres: Euclidean distance to the centre, or 1 - cosine."""
    inertia: float
    """Sum over all rows of the squared Euclidean distance, or of 1 - cosine."""
    n_iter: int
    """Iterations of the best start."""
    n_repaired: int
    """Centres of empty clusters that were moved, summed over the iterations of the best start."""
    shift: Tensor
    """``(d,)`` float64: where the rows lie, for :func:`assign`; zeros for cosine."""


@torch.no_grad()
def kmeans(
    x: Tensor | np.ndarray | Spread,
    k: int,
    *,
    metric: Metric = "l2",
    init: str | Tensor | np.ndarray = "k-means++",
    max_iter: int = 20,
    tol: float = 1e-4,
    n_init: int = 1,
    max_points_per_centre: int = 0,
    chunk_size: int | None = None,
    generator: torch.Generator,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> KMeansResult:
    """Cluster the rows of `x` into `k` clusters.

    Args:
        x: ``(n, d)``, any float or integer type; a tensor, an array or a memory-mapped array; where
            several processes have a part of the rows, all of them cluster and come to the same
            centres, each with the labels and distances of its rows.
        k: number of clusters, at most n.
        metric: ``"l2"``, or ``"cosine"`` for spherical k-means: rows and centres of unit length.
        init: ``"k-means++"`` (of very many rows, among a random sample), ``"random"`` for k
            different rows, or ``(k, d)`` centres to start from.
        max_iter: iterations at most.
        tol: stop when the summed squared shift of the centres is at most `tol` times the mean
            variance of a feature (scikit-learn's rule).
        n_init: random starts, of which the one with the smallest inertia wins; 1 if `init` is given
            as centres.
        max_points_per_centre: fit on a random subset of at most this many rows per cluster; 0 fits
            on all. Labels and distances are for all rows either way.
        chunk_size: rows scored at a time; None chooses by k, d and the device.
        generator: a CPU generator, the only source of randomness.
        device: where to compute; None is where `x` is.
        progress: told, where the iterations could take a minute or more, how long they will take at
            most, and how far they are.

    Returns:
        Tensors on the device that computed them: ``centers`` ``(k, d)``, ``labels`` ``(n,)`` int64,
        ``distances`` ``(n,)``; numbers: ``inertia``, ``n_iter`` and ``n_repaired``.

    Raises:
        ValueError: `x` is empty, not a matrix or holds NaN or infinity; k > n; a setting that
            cannot be.

    Source:
        Lloyd, "Least squares quantization in PCM" (1982); Arthur and Vassilvitskii, "k-means++"
        (SODA 2007).

    >>> import torch
    >>> rows = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    >>> found = kmeans(rows, 2, generator=torch.Generator().manual_seed(0))
    >>> round(found.inertia, 6)
    0.01
    """
    spread = x if isinstance(x, Spread) and len(x.mine) < len(x) else None
    mine: Any = as_rows(x.mine if isinstance(x, Spread) else x)
    n, d = mine.shape if spread is None else (len(spread), mine.shape[1])
    if k < 1:
        raise ValueError(f"k = {k} clusters: k must be at least 1")
    if k > n:
        raise ValueError(
            f"k = {k} clusters need at least as many rows, but there are only n_samples = {n}: "
            "lower k or give more rows"
        )
    if max_iter < 1 or n_init < 1 or tol < 0 or max_points_per_centre < 0:
        raise ValueError(
            f"max_iter = {max_iter} and n_init = {n_init} must be at least 1, tol = {tol} and "
            f"max_points_per_centre = {max_points_per_centre} at least 0"
        )
    given = None if isinstance(init, str) else as_rows(init)
    if given is None and init not in ("k-means++", "random"):
        raise ValueError(f"init = {init!r}: give 'k-means++', 'random' or centres ({k}, {d})")
    if given is not None:
        n_init = 1
        if given.shape != (k, d):
            raise ValueError(f"init has shape {tuple(given.shape)}, expected (k, d) = ({k}, {d})")

    fitted = mine
    if max_points_per_centre and n > k * max_points_per_centre:
        chosen = torch.randperm(n, generator=generator)[: k * max_points_per_centre].sort().values
        if spread is not None:  # the same rows in each process
            fitted = spread.take(chosen)
        else:
            fitted = mine[chosen.to(mine.device) if isinstance(mine, Tensor) else chosen.numpy()]
    part = spread if fitted is mine else None
    rows = Rows(fitted, metric, k, chunk_size, device, spread=part)
    stop = tol * rows.variance() if tol else 0.0
    if progress is not None:
        seconds = _seconds_an_iteration(rows, k)
        if seconds * max_iter * n_init < LONG:
            progress = None
        else:
            progress.note(_expected(rows.total, k, seconds, max_iter, n_init))
    told = _Told(progress, seconds) if progress is not None else None
    best: tuple[Tensor, int, int] | None = None
    least = math.inf
    for number in range(1, n_init + 1):
        if given is not None:
            start = rows.place(given)
        elif init == "random":
            start = rows.take(torch.randperm(rows.total, generator=generator)[:k])
        else:
            start = rows.take(_seeds(rows, k, generator))
        of = f", start {number} of {n_init}" if n_init > 1 else ""
        found = _lloyd(rows, start, max_iter, stop, told, of)
        # With one start there is nothing to compare.
        inertia = 0.0 if n_init == 1 else _inertia(_measure(rows, found[0])[1], metric, part)
        if best is None or inertia < least:
            best, least = found, inertia
    assert best is not None
    centers, n_iter, n_repaired = best
    centers, shift = rows.unplace(centers), rows.shift
    if fitted is mine:
        labels, distances = _measure(rows, rows.place(centers))
    else:
        labels, distances = assign(
            mine, centers, metric=metric, chunk_size=chunk_size, device=device, shift=shift
        )
    inertia = _inertia(distances, metric, spread)
    return KMeansResult(centers, labels, distances, inertia, n_iter, n_repaired, shift)


@torch.no_grad()
def assign(
    x: Tensor | np.ndarray,
    centers: Tensor | np.ndarray,
    *,
    metric: Metric = "l2",
    chunk_size: int | None = None,
    device: torch.device | str | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The nearest centre of each row, the first one on a tie.

    Args:
        x: ``(n, d)``, as for :func:`kmeans`.
        centers: ``(k, d)``.
        metric: as the centres were found with.
        chunk_size: rows scored at a time; None chooses.
        device: where to compute; None is where `x` is.
        shift: ``(d,)``, of the result that the centres come from; None is found from `x`.

    Returns:
        labels ``(n,)`` int64 and distances ``(n,)``, float64 if the rows are, else float32:
        Euclidean, or 1 - cosine (a zero row has cosine 0 with everything).

    Raises:
        ValueError: `x` is empty or holds NaN or infinity, or its width is not the centres'.
    """
    x, centers = as_rows(x), as_rows(centers)
    if x.shape[1] != centers.shape[1]:
        raise ValueError(
            f"rows have {x.shape[1]} features, centres have {centers.shape[1]}: give both alike"
        )
    rows = Rows(x, metric, len(centers), chunk_size, device, shift=shift, copy=False)
    rows.widen(centers)
    return _measure(rows, rows.place(centers))


@torch.no_grad()
def every_distance(
    x: np.ndarray,
    centers: np.ndarray,
    *,
    metric: Metric,
    chunk_size: int | None,
    device: str | None,
    shift: Tensor,
) -> np.ndarray:
    """The distance of each row to each centre, ``(n, k)``; arguments as for :func:`assign`."""
    rows = Rows(x, metric, len(centers), chunk_size, device, shift=shift, copy=False)
    rows.widen(centers)
    placed = rows.place(centers)
    out = np.empty((rows.n, len(centers)), str(rows.dtype).removeprefix("torch."))
    for a, b in rows.ranges():
        block = rows.block(a, b)
        if metric == "cosine":
            out[a:b] = (1 - block @ placed.T).clamp_(min=0).cpu().numpy()
        else:
            # From the differences: a product would leave 0.6 where 0 is right.
            gaps = torch.cdist(block, placed, compute_mode="donot_use_mm_for_euclid_dist")
            out[a:b] = (gaps * rows.scale).cpu().numpy()
    return out


def inertia_of(distances: Tensor, metric: Metric) -> float:
    """The inertia of rows ``(n,)`` at such distances from their centres."""
    exact = distances.cpu().double()
    total: Tensor = (exact if metric == "cosine" else exact.square()).sum()
    return total.item()


def _inertia(distances: Tensor, metric: Metric, spread: Spread | None) -> float:
    """As :func:`inertia_of`, of all rows where each process has the distances of a part."""
    total = torch.tensor(inertia_of(distances, metric), dtype=torch.float64)
    if spread is not None:
        spread.add_up(total)
    return total.item()


def _offsets(centers: Tensor, metric: Metric) -> Tensor:
    """What is added to -2xc: ||c||^2, ``(k,)``; 0 for cosine, whose centres are all as long."""
    if metric == "cosine":
        return centers.new_zeros(len(centers))
    return centers.square().sum(1)


def _argmin(scores: Tensor) -> Tensor:
    # On a CPU, NumPy's argmin over rows is vectorised and torch's is not: at d = 128 they take 3 %
    # and 33 % of the time of the product.
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.numpy().argmin(1))
    return scores.argmin(1)


def _product(x: Tensor, centers: Tensor, offsets: Tensor, out: Tensor | None = None) -> Tensor:
    """Offsets ``(k,)`` less twice the inner products of rows and centres, ``(b, k)``."""
    return torch.addmm(offsets, x, centers.T, alpha=-2, out=out)


def _padded(centers: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """On a CPU, few centres filled up to WIDTH by ones that are nearest to nothing."""
    missing = WIDTH - len(centers) if centers.device.type == "cpu" else 0
    if missing <= 0:
        return centers, offsets
    return F.pad(centers, (0, 0, 0, missing)), F.pad(offsets, (0, missing), value=math.inf)


def _nearest(
    rows: Rows, centers: Tensor, slack: Tensor | None = None
) -> Iterator[tuple[slice | Tensor, Tensor, Tensor]]:
    """For each block: which rows, the rows, and the nearest centre of each.

    With `slack` ``(n,)``, only rows where it is not above 0; theirs becomes a lower bound of how
    much farther the second nearest centre is than the nearest.
    """
    k = len(centers)
    padded, offsets = _padded(centers, _offsets(centers, rows.metric))
    room = torch.empty(rows.chunk_size, len(padded), device=rows.device, dtype=rows.dtype)
    # Rounding of a score, of which a d-th is usual, and of the squares that it is made of.
    rounding = 128 * torch.finfo(rows.dtype).eps
    for where in rows.parts(slack):
        x = rows.block(where.start, where.stop) if isinstance(where, slice) else rows.here(where)
        scores = _product(x, padded, offsets, room[: len(x)])
        nearest = _argmin(scores)
        if slack is not None and k > 1:
            own = nearest[:, None]
            first = scores.gather(1, own)[:, 0]
            second = scores.scatter_(1, own, math.inf).amin(1)
            square = x.square().sum(1)
            error = rounding * (square + offsets[:k].max())
            apart = (second - first - 2 * error).clamp_(min=0)
            sides = [(square + score + error).clamp_(min=0).sqrt() for score in (first, second)]
            slack[where] = apart / (sides[0] + sides[1])
        yield where, x, nearest


def _measure(rows: Rows, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Labels ``(n,)`` and distances ``(n,)`` to placed centres."""
    labels = torch.empty(rows.n, dtype=torch.int64, device=rows.device)
    distances = torch.empty(rows.n, device=rows.device, dtype=rows.dtype)
    room = centers.new_empty(rows.chunk_size, rows.d)
    for where, x, nearest in _nearest(rows, centers):
        labels[where] = nearest
        own = torch.index_select(centers, 0, nearest, out=room[: len(x)])
        distances[where] = _distance(x, own, rows.metric)
    return labels, distances if rows.scale == 1 else distances * rows.scale


def _distance(x: Tensor, own: Tensor, metric: Metric) -> Tensor:
    """Distance of each row to its own centre, ``(n,)``; the difference itself cancels nothing.

    `own` is overwritten: a new tensor for each block would cost more than the arithmetic.
    """
    if metric == "cosine":
        return (1 - (x * own).sum(1)).clamp_(min=0)
    away: Tensor = torch.linalg.vector_norm(own.sub_(x), dim=1)
    return away


def _seconds_an_iteration(rows: Rows, k: int) -> float:
    """About how long one takes, by blocks from all over the rows: a file is read as it lies."""
    centers = rows.take(torch.linspace(0, rows.total - 1, k, dtype=torch.float64).long())
    padded, offsets = _padded(centers, _offsets(centers, rows.metric))
    sums = centers.new_zeros(k, rows.d, dtype=torch.float64 if has_float64(rows.device) else None)
    ranges = list(rows.ranges())
    ranges = ranges[:1] + ranges[:: -(-len(ranges) // TIMED)]  # the first builds kernels
    done = 0
    for number, (a, b) in enumerate(ranges):
        if number == 1:
            began = time.perf_counter()
        x = rows.block(a, b)
        _add_rows(sums, x, _argmin(_product(x, padded, offsets)))
        float(sums[0, 0])  # waits for the device
        done += b - a if number else 0
    return (time.perf_counter() - began) * rows.n / done


def _expected(n: int, k: int, seconds: float, max_iter: int, n_init: int) -> str:
    """A sentence about the time that k-means takes."""
    starts = "" if n_init == 1 else f"{n_init} starts of "
    return (
        f"k-means, {n:,} rows, k = {k:,}: {starts}at most {max_iter} iterations of about "
        f"{seconds:.2g} s: at most {span(n_init * max_iter * seconds)}"
    )


class _Told:
    """What is told of a long k-means, and told anew where iterations take another time by now."""

    def __init__(self, progress: Progress, seconds: float) -> None:
        self.progress, self.seconds = progress, seconds  # that an iteration takes, as was said
        self.began = 0.0

    def begin(self, iteration: int, max_iter: int, of: str, rows: int) -> None:
        """An iteration begins; the last one is done."""
        now = time.perf_counter()
        taken, self.began = now - self.began, now
        checked = iteration > 1 and (iteration - 1).bit_count() == 1  # after 1, 2, 4, 8 …
        if checked and not 0.8 < taken / self.seconds < 1.25:
            self.seconds = taken
            left = (max_iter - iteration + 1) * taken
            self.progress.note(
                f"an iteration takes about {taken:.2g} s now: at most {span(left)} more{of}"
            )
        self.progress.phase(f"k-means {iteration}/{max_iter}{of}", rows)


def _lloyd(
    rows: Rows,
    centers: Tensor,
    max_iter: int,
    stop: float,
    told: _Told | None = None,
    of: str = "",
) -> tuple[Tensor, int, int]:
    """Iterate from `centers`; returns centres, iterations and repairs."""
    k = len(centers)
    labels = torch.full((rows.n,), -1, dtype=torch.int64, device=rows.device)
    home = rows.device if has_float64(rows.device) else torch.device("cpu")
    own_sums = torch.zeros(k, rows.d, dtype=torch.float64, device=home)  # of this process's rows
    slack: Tensor | None = None
    n_changed = rows.total  # by the last iteration
    n_repaired = 0
    for iteration in range(1, max_iter + 1):
        # On a GPU, to ask which rows could change costs more than to look at all.
        if rows.device.type != "cpu" or rows.metric != "l2" or RARE * n_changed >= rows.total:
            slack = None
            own_sums.zero_()
        elif slack is None:
            slack = torch.zeros(rows.n, dtype=rows.dtype)
        last = labels.clone()
        if told is not None:
            told.begin(iteration, max_iter, of, rows.n)
        for where, x, nearest in _nearest(rows, centers, slack):
            labels[where] = nearest
            if told is not None:
                told.progress.advance(len(x))
            if slack is None:
                _add_rows(own_sums, x, nearest)
                continue
            left = last[where]
            index = (left != nearest).nonzero()[:, 0]
            if len(index):
                x = x[index]
                _add_rows(own_sums, torch.cat([x, -x]), torch.cat([nearest[index], left[index]]))
        changed = (labels != last).sum()
        sums = own_sums if rows.spread is None else own_sums.clone()
        counts = torch.bincount(labels.to(home), minlength=k)
        rows.add_up(sums, counts, changed)
        n_changed = int(changed)
        moved = 0
        if bool((counts == 0).any()):
            moved = _repair(rows, centers, labels, sums, counts)
            n_repaired += moved
        before, centers = centers, _means(sums, counts, centers, rows.metric)
        if moved:
            n_changed = rows.total  # the sums are not those of the labels
        steps = (centers - before).norm(dim=1)
        if not moved and (not n_changed or float(steps.square().sum()) <= stop):
            return centers, iteration, n_repaired
        if slack is not None:
            slack -= steps[labels] + steps.max()
    return centers, max_iter, n_repaired


def _add_rows(sums: Tensor, x: Tensor, labels: Tensor) -> None:
    """Add each row of a block to the sum ``(k, d)`` of its cluster."""
    few = x.device.type == "cpu" and x.dtype == torch.float32 and 8 * len(sums) <= SUMMED
    if few or not has_float64(x.device):
        # Sums of SUMMED rows are float32, theirs float64: a third of the time of the other way.
        for rows, own in zip(x.split(SUMMED), labels.split(SUMMED), strict=True):
            part = torch.zeros(sums.shape, device=x.device).index_add_(0, own, rows)
            sums += part.to(sums.device)
    else:  # expanded scatter_add_ is, on a CPU, several times as fast as index_add_ for float64
        sums.scatter_add_(0, labels[:, None].expand_as(x), x.double())


def _means(sums: Tensor, counts: Tensor, centers: Tensor, metric: Metric) -> Tensor:
    """New centres ``(k, d)``; one without rows, or whose unit rows cancel, stays where it is."""
    size = counts.clamp(min=1).double()[:, None]
    new = sums / size
    known = counts > 0
    if metric == "cosine":
        length = new.norm(dim=1)
        known = known & (length > 1e-6)
        new = new / length.clamp(min=1e-6)[:, None]
    new = new.to(centers.dtype).to(centers.device)
    return torch.where(known[:, None].to(centers.device), new, centers)


def _repair(rows: Rows, centers: Tensor, labels: Tensor, sums: Tensor, counts: Tensor) -> int:
    """Move the farthest rows into the empty clusters, in `sums` and `counts`; returns how many."""
    distances = torch.empty(rows.n, device=rows.device, dtype=rows.dtype)
    for a, b in rows.ranges():
        distances[a:b] = _distance(rows.block(a, b), centers[labels[a:b]], rows.metric)
    labels = rows.gather(labels)
    farthest, order = rows.gather(distances).sort(descending=True, stable=True)
    order = order[: int((farthest > 0).sum())]
    empty = (counts == 0).nonzero()[:, 0]
    looked_at = 2 * len(empty)
    while True:
        index = order[:looked_at]
        taken = rows.take(index).to(sums.device).double()
        other = torch.ones(len(index), dtype=torch.bool, device=sums.device)
        other[1:] = (taken[1:] != taken[:-1]).any(1)  # copies of a row are as far: side by side
        donor, taken = labels[index].to(sums.device)[other], taken[other]
        spare = _rank(donor) < counts[donor] - 1  # a cluster keeps its last row
        if int(spare.sum()) >= len(empty) or looked_at >= len(order):
            break
        looked_at *= 2
    donor, taken = donor[spare][: len(empty)], taken[spare][: len(empty)]
    filled = len(donor)
    sums.index_add_(0, donor, -taken)
    counts.index_add_(0, donor, counts.new_full((filled,), -1))
    sums[empty[:filled]] = taken
    counts[empty[:filled]] = 1
    return filled


def _rank(groups: Tensor) -> Tensor:
    """How many of the same group come before, ``(n,)``."""
    order = groups.argsort(stable=True)
    place = torch.arange(len(groups), device=groups.device)
    ordered = groups[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    start = torch.where(first, place, 0).cummax(0).values
    rank = torch.empty_like(place)
    rank[order] = place - start
    return rank


def _seeds(rows: Rows, k: int, generator: torch.Generator) -> Tensor:
    """The rows ``(k,)`` to start from, by k-means++: of very many, among a random sample."""
    several = max(SEEDING * k, FEWEST_SEEDING)
    if rows.total <= several:
        return _plus_plus(rows, k, generator)
    some = torch.randperm(rows.total, generator=generator)[:several].sort().values
    sample = Rows(rows.pick(some), rows.metric, k, rows.chunk_size, rows.device)
    seeds = some[_plus_plus(sample, k, generator)]
    if rows.spread is not None:  # each has drawn by itself, perhaps with other roundings
        processes.equalise([seeds])
    return seeds


def _plus_plus(rows: Rows, k: int, generator: torch.Generator) -> Tensor:
    """Rows ``(k,)``, drawn with probability proportional to D^2.

    D is the distance to the nearest centre drawn so far. The first 256 are drawn one at a time,
    each the best of 2 + ln k draws (greedy k-means++, as in scikit-learn). Further ones come in
    blocks of an eighth of those drawn before: about 8 ln(k / 256) more passes over the data instead
    of k - 256.
    """
    trials = 2 + int(math.log(k))
    lengths = torch.cat([rows.block(a, b).square().sum(1) for a, b in rows.ranges()])  # (n,)
    nearest = torch.full_like(lengths, math.inf)  # D^2 of each row
    lowered = lengths.new_empty(rows.n, trials)  # what it becomes with a candidate
    picked = torch.randint(rows.total, (1,), generator=generator)
    drawn = [picked]
    count = 1
    for a, b, squares in _squares(rows, lengths, picked):
        nearest[a:b] = squares[:, 0]
    while count < k:
        mine = picked if rows.spread is None else rows.spread.locate(picked)[1]
        nearest[mine.to(rows.device)] = 0  # rounding must not draw a row twice
        greedy = count < ONE_BY_ONE
        block = trials if greedy else min(count // 8, k - count)
        shares = torch.rand(block, dtype=torch.float64, generator=generator)
        picked = rows.draw(nearest.cpu().double(), shares)
        if not len(picked):  # fewer distinct rows than clusters
            free = torch.ones(rows.total, dtype=torch.bool)
            free[torch.cat(drawn)] = False
            rest = free.nonzero()[:, 0]
            drawn.append(rest[torch.randperm(len(rest), generator=generator)[: k - count]])
            break
        if greedy:
            potential = torch.zeros(len(picked), dtype=torch.float64)
            for a, b, squares in _squares(rows, lengths, picked):
                low = torch.minimum(squares, nearest[a:b, None], out=squares)
                lowered[a:b, : len(picked)] = low
                potential += low.sum(0).cpu().double()
            rows.add_up(potential)
            best = int(potential.argmin())
            nearest, picked = lowered[:, best].clone(), picked[best : best + 1]
        else:
            for a, b, squares in _squares(rows, lengths, picked):
                torch.minimum(nearest[a:b], squares.amin(1), out=nearest[a:b])
        drawn.append(picked)
        count += len(picked)
    return torch.cat(drawn)


def _squares(rows: Rows, lengths: Tensor, indices: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """For each block its range and the squared distances to the rows `indices`, ``(b - a, m)``."""
    centers = rows.take(indices)
    known = rows.spread is None  # of other processes' rows the lengths are not
    offsets = lengths[indices.to(rows.device)] if known else centers.square().sum(1)
    padded, offsets = _padded(centers, offsets)
    for a, b in rows.ranges():
        squares = _product(rows.block(a, b), padded, offsets)[:, : len(centers)]
        yield a, b, squares.add_(lengths[a:b, None]).clamp_(min=0)
