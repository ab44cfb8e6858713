"""Rows as k-means reads them: in memory or in a mapped file, of one process or of several.

The engine (:mod:`.kmeans`) asks for blocks of rows, and does not know where they lie.

- Memory: on a CPU float rows for L2 are not copied: each block is shifted into a buffer that stays
  in the cache, from where the product and the sums take a half to a third of the time that they
  take from memory. Others are copied once, converted or normalised; but a memory-mapped array, or
  one that would fill more than half of a GPU, is read block by block in every pass.
- Accuracy: float64 rows are computed in float64, all others in float32. In every pass rows are
  shifted by a median of some, and divided by a power of two where they are very large or small, so
  neither a common offset nor the scale costs digits.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster import processes
from deepcluster.processes import Spread

Metric = Literal["l2", "cosine"]

FAR = 2.0**40  # from here on, or below 1 / FAR, values are scaled before they are squared
MIDDLE = 1024  # rows whose median all are shifted by
SUMMED = 2048  # rows at most whose sum is float32
CACHED = 2**18  # numbers that stay in a core's cache


def as_rows(x: Any) -> Any:
    """`x` as a tensor or array of two dimensions with something in it."""
    x = x.detach() if isinstance(x, Tensor) else np.asanyarray(x)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(
            f"found an input of shape {tuple(x.shape)}, expected (n, d) with at least one row and "
            "one feature"
        )
    if not isinstance(x, Tensor) and x.dtype.kind not in "fiub":
        raise ValueError(f"found an input of {x.dtype}, expected numbers: float, int or bool")
    return x


class Rows:
    """The rows of a matrix as the engine wants them: on the device, a block at a time.

    For L2 they are shifted by a median (any shift will do; near most rows least digits are lost)
    and scaled if their squares could be too large or small; for cosine they have unit length. Where
    several processes have a part of the rows each, blocks are of its own and indices are of all.
    """

    def __init__(
        self,
        x: Any,  # (n, d) tensor or array
        metric: Metric,
        k: int,
        chunk_size: int | None,
        device: torch.device | str | None,
        shift: Tensor | None = None,  # (d,) float64; None takes the median of some rows
        copy: bool = True,  # rows in memory: prepared once, for many passes
        spread: Spread | None = None,  # x is this process's part of
    ) -> None:
        if metric not in ("l2", "cosine"):
            raise ValueError(f"metric = {metric!r}: give 'l2' or 'cosine'")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size = {chunk_size} must be at least 1, or None")
        self.x, self.metric = x, metric
        self.n, self.d = int(x.shape[0]), int(x.shape[1])
        self.spread, self.total = spread, self.n if spread is None else len(spread)
        if device is None:
            device = x.device if isinstance(x, Tensor) else "cpu"
        self.device = torch.device(device)
        # On a CPU a thread's part of a block should stay in its cache. Blocks are of whole SUMMED,
        # so that the sums are the same with any number of threads.
        cpu = self.device.type == "cpu"
        blocks = min(max(CACHED // (SUMMED * self.d), 1), 4) * min(torch.get_num_threads(), 4)
        most = SUMMED * blocks if cpu else 2**20
        scores = 2**22 if cpu else 2**26
        several = max(scores // max(k, self.d), 256)
        if cpu and several > SUMMED:
            several -= several % SUMMED
        self.chunk_size = chunk_size or min(several, most)
        self.chunk_size = min(self.chunk_size, self.n)
        self.kept: Tensor | None = None
        self.room: Tensor | None = None  # (chunk_size, d), where a block is shifted to
        wide = str(self.x.dtype).endswith("float64") and has_float64(self.device)
        self.dtype = torch.float64 if wide else torch.float32
        self.shift = torch.zeros(self.d, dtype=torch.float64)
        self.scale = 1.0
        self._look_through(shift)
        as_it_is = metric == "l2" and cpu and _is_plain(self.x, self.dtype)
        if copy and not as_it_is and not self._stream():
            kept = torch.empty(self.n, self.d, device=self.device, dtype=self.dtype)
            for a, b in self.ranges():
                kept[a:b] = self._prepare(self._raw(a, b))
            self.kept = kept

    def _stream(self) -> bool:
        if isinstance(self.x, Tensor):
            if self.x.device == self.device:
                return False
        elif is_memory_mapped(self.x):
            return True
        if self.device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self.device)
        return bool(self.n * self.d * self.dtype.itemsize > free // 2)

    def _look_through(self, shift: Tensor | None) -> None:
        most = torch.full((self.d,), -math.inf, device=self.device, dtype=self.dtype)
        least = -most
        for a, b in self.ranges():
            block = self._raw(a, b)
            torch.maximum(most, block.amax(0), out=most)  # NaN stays
            torch.minimum(least, block.amin(0), out=least)
        most, least = most.cpu().double(), least.cpu().double()
        if self.spread is not None:
            mine = torch.stack([most, -least])[None]
            most, least = processes.gather(mine, processes.world()).amax(0)
            least = -least
        if not (self.total * torch.maximum(most.abs(), least.abs())).isfinite().all():
            self.explain_nan()
        if self.metric == "l2":
            self.shift = self._middle() if shift is None else shift
            self._fit_scale(torch.stack([most, least]))

    def _middle(self) -> Tensor:
        """Median of some rows, ``(d,)`` float64: one row far away draws a mean, but not this."""
        some = np.linspace(0, self.total - 1, min(self.total, MIDDLE)).astype(np.int64)
        rows = self.pick(torch.from_numpy(some))
        columns = np.ascontiguousarray(self._to_float(rows).cpu().numpy().T)
        middle = (columns.shape[1] - 1) // 2
        return torch.from_numpy(np.partition(columns, middle)[:, middle]).double()

    def widen(self, centers: Any) -> None:
        """Choose the scale anew so that it suits these centres as well."""
        if self.metric == "l2" and self.kept is None:
            self._fit_scale(self._to_float(centers).cpu().double())

    def _fit_scale(self, x: Tensor) -> None:
        far = float((x - self.shift).abs().max())
        if math.isfinite(far) and not 1 / FAR < far < FAR and far > 0:
            self.scale = max(2.0 ** math.floor(math.log2(far)), self.scale if far > 1 else 0.0)

    def explain_nan(self) -> None:
        """Raise a ValueError that says how many rows are not finite."""
        bad = torch.zeros(1, dtype=torch.int64, device=self.device)
        for a, b in self.ranges():
            bad += (~self._raw(a, b).isfinite().all(1)).sum()
        self.add_up(bad)
        if bad:
            raise ValueError(
                f"{int(bad)} of {self.total} rows hold NaN or infinity: leave those rows out or "
                "repair them"
            )
        raise ValueError("values are too large to add up: divide the input by a constant")

    def ranges(self) -> Iterator[tuple[int, int]]:
        """First and last + 1 row of each block."""
        for a in range(0, self.n, self.chunk_size):
            yield a, min(a + self.chunk_size, self.n)

    def _raw(self, a: int, b: int) -> Tensor:
        return self._to_float(self.x[a:b])

    def _to_float(self, x: Any) -> Tensor:
        """On the device; float64 stays (but on MPS, which has none), all else becomes float32."""
        if not isinstance(x, Tensor):
            # torch warns of arrays it may not write to: those are copied.
            dtype = np.float64 if x.dtype == np.float64 else np.float32
            x = torch.from_numpy(np.require(x, dtype, ["C", "W"]))
        wide = x.dtype == torch.float64 and has_float64(self.device)
        rows: Tensor = x.to(torch.float64 if wide else torch.float32)  # first: MPS cannot
        return rows.to(self.device)

    def _prepare(self, x: Tensor) -> Tensor:
        if self.metric == "cosine":
            return _unit(x).to(self.dtype)
        moved = x - self.shift.to(x.dtype).to(x.device)
        return (moved if self.scale == 1 else moved / self.scale).to(self.dtype)

    def block(self, a: int, b: int) -> Tensor:
        """Rows a to b, ``(b - a, d)``, which the next block may overwrite."""
        if self.kept is not None:
            return self.kept[a:b]
        raw = self._raw(a, b)
        if self.metric == "cosine" or raw.dtype != self.dtype:
            return self._prepare(raw)
        if self.room is None:
            self.room = raw.new_empty(self.chunk_size, self.d)
        moved = torch.sub(raw, self.shift.to(raw.dtype).to(raw.device), out=self.room[: b - a])
        return moved if self.scale == 1 else moved.div_(self.scale)

    def parts(self, slack: Tensor | None) -> Iterator[slice | Tensor]:
        """Each block of rows; of those whose slack is not above 0, if they are fewer than half."""
        if slack is not None:
            asked = (slack <= 0).nonzero()[:, 0]
            if 2 * len(asked) < self.n:
                yield from asked.split(self.chunk_size)
                return
        for a, b in self.ranges():
            yield slice(a, b)

    def take(self, indices: Tensor) -> Tensor:
        """The rows with these indices among all, ``(len(indices), d)``."""
        if self.spread is None:
            return self.here(indices)
        return self._prepare(self._to_float(self.pick(indices)))

    def here(self, indices: Tensor) -> Tensor:
        """The rows with these indices among those of this process, ``(len(indices), d)``."""
        if self.kept is not None:
            return self.kept[indices.to(self.device)]
        return self._prepare(self._to_float(self._pick(indices)))

    def pick(self, indices: Tensor) -> Any:
        """The rows with these indices among all, as they came."""
        return self._pick(indices) if self.spread is None else self.spread.take(indices)

    def _pick(self, indices: Tensor) -> Any:
        if isinstance(self.x, Tensor):
            return self.x[indices.to(self.x.device)]
        return self.x[indices.cpu().numpy()]

    def add_up(self, *tensors: Tensor) -> None:
        """Sums over the rows of this process become those over all rows, in place."""
        if self.spread is not None:
            self.spread.add_up(*tensors)

    def gather(self, values: Tensor) -> Tensor:
        """A value for each of this process's rows -> a value for each of all rows."""
        return values if self.spread is None else self.spread.gather(values)

    def draw(self, weights: Tensor, shares: Tensor) -> Tensor:
        """Rows at shares of the sum of all weights, sorted and each once; none if the sum is 0.

        Args:
            weights: ``(n,)`` float64 on the CPU, of this process's rows.
            shares: ``(m,)`` float64 in [0, 1).
        """
        weights = weights.cumsum(0)
        sums, own, start = weights[-1:], 0, 0
        if self.spread is not None:
            sums = processes.gather(sums, processes.world())
            own, start = processes.rank(), self.spread.rows.start
        ends = sums.cumsum(0)
        if ends[-1] <= 0:
            return torch.empty(0, dtype=torch.int64)
        targets = shares * ends[-1]
        owner = torch.searchsorted(ends, targets, right=True).clamp_(max=len(ends) - 1)
        mine = owner == own
        within = targets[mine] - (ends[own] - sums[own])
        picked = torch.zeros(len(targets), dtype=torch.int64)
        found = torch.searchsorted(weights, within, right=True)
        picked[mine] = found.clamp_(max=self.n - 1) + start
        self.add_up(picked)
        return torch.from_numpy(np.unique(picked.numpy()))

    def place(self, centers: Any) -> Tensor:
        """Centres ``(k, d)``, given in the space of `x`, shifted or normalised like the rows."""
        placed = self._prepare(self._to_float(centers))
        if not placed.isfinite().all():
            raise ValueError("the centres hold NaN or infinity: give finite ones")
        return placed

    def unplace(self, centers: Tensor) -> Tensor:
        """The inverse of :meth:`place`; cosine centres stay of unit length."""
        back: Tensor = centers.cpu().double() * self.scale + self.shift
        return back.to(self.dtype).to(self.device)

    def variance(self) -> float:
        """Mean over the features of their variance."""
        total = torch.zeros(self.d, dtype=torch.float64)
        squares = torch.zeros((), dtype=torch.float64)
        for a, b in self.ranges():
            block = self.block(a, b)
            total += block.sum(0).cpu().double()
            squares += block.square().sum().cpu().double()
        self.add_up(total, squares)
        mean = total / self.total
        return max(float(squares / self.total - mean.square().sum()), 0.0) / self.d


def _unit(x: Tensor) -> Tensor:
    """Rows of unit length, also of values whose squares are no numbers; a row of zeros stays."""
    largest = x.abs().amax(1, keepdim=True)
    return F.normalize(x / largest.where(largest > 0, torch.ones_like(largest)), dim=1)


def has_float64(device: torch.device) -> bool:
    """Whether sums there may be float64."""
    return device.type != "mps"


def _is_plain(x: Any, dtype: torch.dtype) -> bool:
    """Whether blocks of `x` are rows of this type without a copy."""
    if isinstance(x, Tensor):
        return x.dtype == dtype and x.is_contiguous()
    same = str(x.dtype) == str(dtype).removeprefix("torch.")
    return bool(same and x.flags.c_contiguous and x.flags.writeable)


def is_memory_mapped(x: Any) -> bool:
    """Whether it is an array in a file, or a view of one."""
    while isinstance(x, np.ndarray):  # a view of a memory-mapped array may be a plain one
        x = x.base
    return isinstance(x, mmap.mmap)
