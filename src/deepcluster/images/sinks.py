"""Where decoded images go: an array in memory, or a file that vanishes with its last map.

Every pixel passes through a hash on its way, so that a store of the same images can be told later.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepcluster.images.grey import Pixels


def pixel_digest(images: Pixels) -> str:
    """The hash of a store's pixels, ``(n, s, s, c)``."""
    digest = hashlib.blake2b(digest_size=16)
    for image in images:
        digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


class MemorySink:
    """Squares in one array; the system hands out its memory page by page as it fills.

    Args:
        count: the most images that may come.
        side: of the squares.
    """

    def __init__(self, count: int, side: int) -> None:
        self._pixels = np.empty((count, side, side, 1), np.uint8)
        self._done = 0
        self._digest = hashlib.blake2b(digest_size=16)

    @property
    def channels(self) -> int:
        """1 until :meth:`widen`, then 3."""
        return self._pixels.shape[3]

    def append(self, squares: list[Pixels]) -> None:
        """Add squares ``(s, s, 1 or 3)``."""
        block = self._pixels[self._done : self._done + len(squares)]
        for place, square in enumerate(squares):
            block[place] = square  # a grey square fills three channels alike
        self._digest.update(block.data)  # all at once: other threads need not wait for this one
        self._done += len(squares)

    def widen(self) -> None:
        """From one channel to three."""
        grey = self._pixels
        self._pixels = np.empty((*grey.shape[:3], 3), np.uint8)
        done, self._done = self._done, 0
        self._digest = hashlib.blake2b(digest_size=16)
        self.append(list(grey[:done]))

    def finish(self) -> tuple[Pixels, str]:
        """The images that came, and their hash."""
        return self._pixels[: self._done], self._digest.hexdigest()


class FileSink:
    """Squares in a file without a name, which is gone when the last map of it is.

    Args:
        folder: where the file lies.
        side: of the squares.
    """

    def __init__(self, folder: Path, side: int) -> None:
        self._folder, self._side, self._done = folder, side, 0
        self.channels = 1
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed in finish)
        self._digest = hashlib.blake2b(digest_size=16)

    def append(self, squares: list[Pixels]) -> None:
        """Add squares ``(s, s, 1 or 3)``."""
        shape = (self._side, self._side, self.channels)
        for square in squares:
            whole = np.ascontiguousarray(np.broadcast_to(square, shape)).data
            self._file.write(whole)
            self._digest.update(whole)
            self._done += 1

    def widen(self) -> None:
        """From one channel to three."""
        grey, done = self._file, self._done
        self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed in finish)
        self._digest = hashlib.blake2b(digest_size=16)
        self._done, self.channels = 0, 3
        with grey:
            grey.seek(0)
            for _ in range(done):
                square = np.frombuffer(grey.read(self._side * self._side), np.uint8)
                self.append([square.reshape(self._side, self._side, 1)])

    def finish(self) -> tuple[Pixels, str]:
        """A map of the images that came, and their hash."""
        with self._file:
            self._file.flush()
            # copy on write: as writable as an array in memory, and the file stays as it is
            shape = (self._done, self._side, self._side, self.channels)
            pixels = np.memmap(self._file, np.uint8, "c", shape=shape)
            return pixels, self._digest.hexdigest()


def read_ahead(pixels: Pixels, rows: npt.NDArray[np.integer[Any]]) -> None:
    """Ask the system for images of a mapped file together: one by one, each waits for the disk.

    Args:
        pixels: ``(n, s, s, c)``, of a store.
        rows: ``(b,)``, those that are read next.
    """
    file: Any = pixels.base
    if not isinstance(file, mmap.mmap) or not hasattr(mmap, "MADV_WILLNEED"):
        return
    size = pixels[0].nbytes
    with contextlib.suppress(OSError):  # it is a hint, which not every file system takes
        for row in (rows % len(pixels)).tolist():
            start = row * size // mmap.PAGESIZE * mmap.PAGESIZE
            file.madvise(mmap.MADV_WILLNEED, start, (row + 1) * size - start)


def free_memory() -> float:
    """Bytes this process may still take, minding a container's limit; 4 GB where unknown.

    Where a launcher started several here, each may take its part.
    """
    free = math.inf
    if (meminfo := Path("/proc/meminfo")).is_file():
        match = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
        free = int(match[1]) * 1024 if match else free
    elif "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    group = Path("/sys/fs/cgroup")
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            stat = (group / limit).with_name("memory.stat").read_text()
            match = re.search(rf"^{cached} (\d+)", stat, re.MULTILINE)
            reclaimable = int(match[1]) if match else 0
            room = int((group / limit).read_text()) - int((group / used).read_text()) + reclaimable
            free = min(free, max(room, 0))
        except (OSError, ValueError):  # no such file; "max": no limit
            continue
    several = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return (free if free < math.inf else 4e9) / several


def free_cores() -> int:
    """Processor cores this process may use, minding its affinity and a container's share."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file; "max": no limit
        pass
    return cores
