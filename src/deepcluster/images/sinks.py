"""Where decoded images go: an array in memory, or a file that vanishes with its last map."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from deepcluster.images.decode import Pixels


class MemorySink:
    """Squares in one array; the system hands out its memory page by page as it fills."""

    def __init__(self, count: int, side: int) -> None:
        self._pixels = np.empty((count, side, side, 1), np.uint8)
        self._done = 0

    @property
    def channels(self) -> int:
        return self._pixels.shape[3]

    def append(self, squares: list[Pixels]) -> None:
        for square in squares:
            self._pixels[self._done] = square  # a grey square fills three channels alike
            self._done += 1

    def widen(self) -> None:
        grey = self._pixels
        self._pixels = np.empty((*grey.shape[:3], 3), np.uint8)
        self._pixels[: self._done] = grey[: self._done]

    def finish(self) -> Pixels:
        return self._pixels[: self._done]


class FileSink:
    """Squares in a file without a name, which is gone when the last map of it is."""

    def __init__(self, folder: Path, side: int) -> None:
        self._folder, self._side, self._done = folder, side, 0
        self.channels = 1
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed in finish)

    def append(self, squares: list[Pixels]) -> None:
        shape = (self._side, self._side, self.channels)
        for square in squares:
            self._file.write(np.ascontiguousarray(np.broadcast_to(square, shape)).data)
            self._done += 1

    def widen(self) -> None:
        grey, done = self._file, self._done
        self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed in finish)
        self._done, self.channels = 0, 3
        with grey:
            grey.seek(0)
            for _ in range(done):
                square = np.frombuffer(grey.read(self._side * self._side), np.uint8)
                self.append([square.reshape(self._side, self._side, 1)])

    def finish(self) -> Pixels:
        with self._file:
            self._file.flush()
            # copy on write: as writable as an array in memory, and the file stays as it is
            shape = (self._done, self._side, self._side, self.channels)
            return np.memmap(self._file, np.uint8, "c", shape=shape)
