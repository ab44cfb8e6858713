"""Decoded images that are kept for the next fit of the same files.

A file in the user's cache folder for each source and way of decoding: the pixels as .npy, and
behind them another .npy that says of each image which file it came from. An image is the same as
long as path, size and times of its file are, so what was changed, added or renamed since is
decoded, and only that. A file of the cache takes its name once it is whole, so two fits at once
leave the one or the other; one that is damaged or cannot be written costs the time of decoding and
nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from PIL import __version__ as pillow

from deepcluster.images.decode import Square, Wanted
from deepcluster.images.formats import know_formats
from deepcluster.images.grey import Pixels
from deepcluster.images.sources import cache_folder

FORMAT = 2  # of the files, and of how images are decoded: to be raised when either changes
KEPT_BYTES = 10_000_000_000
"""Of decoded images that stay in the cache folder: what was not used for longest goes first."""
YOUNG = 2.0  # seconds; a file that changed so lately may change again within one tick of its clock
ABANDONED = 86_400.0  # seconds after which an unfinished file is taken for that of a killed fit
PIECE = 1024  # images written at a time

KINDS = {"decoded": "decoded images", "features": "features of frozen nets"}
"""Folder of the cache -> what is kept there and may be removed."""

_OWN = re.compile(r"[0-9a-f]{32}\.npy")
"""Names of what is kept: nothing else in those folders is ever removed."""
_ROW = np.dtype(
    [("key", "V16"), ("content", "u8"), ("pages", "u4"), ("flags", "u1"), ("crc", "u4")]
)
_FLAGS = ("far_from_square", "outside", "own_range")  # of a Square, a bit each


class Kept:
    """What an earlier fit has left of the images of a source, and what this one leaves.

    Args:
        name: of the source.
        paths: the file of each image; None where it is none of its own, which is never kept.
        wanted: how images are decoded.
        keep: whether this one leaves any.
    """

    def __init__(
        self, name: str, paths: Sequence[str | None], wanted: Wanted, *, keep: bool
    ) -> None:
        files = [path for path in paths if path is not None]
        try:
            top = os.path.commonpath(files)
        except ValueError:  # none, or on several drives
            top = ""
        know_formats()  # it loads the reader of HEIC, where there is one
        heif = getattr(sys.modules.get("pillow_heif"), "__version__", None)
        made_by = (pillow, version("torch"), heif)
        said = repr((FORMAT, made_by, name, top, wanted)).encode("utf-8", "surrogateescape")
        self.file = folder() / f"{hashlib.blake2b(said, digest_size=16).hexdigest()}.npy"
        self._facts = np.zeros(len(paths), _ROW)
        self._new = False  # whether anything was decoded that could be kept
        self._places: dict[bytes, int] = {}
        self._grey = wanted.channels == "auto"
        self._opened: Any = None
        with contextlib.suppress(Exception):  # there is none, or it is damaged in any way
            self._open()
        asked = keep or self._opened is not None  # else no file need be looked at
        self.keys = [_key(path) if asked else None for path in paths]

    def _open(self) -> None:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(self.file.open("rb"))
            shape = _header(file)
            start = file.tell()
            file.seek(start + int(np.prod(shape)))
            rows = np.load(BytesIO(file.read()), allow_pickle=False)
            if rows.dtype != _ROW or rows.shape != shape[:1]:
                raise ValueError("it is of another kind")
            stack.pop_all()
        # This file to the end: one under its name later may be another fit's, or gone.
        self._opened, self._rows, self._start, self._shape = file, rows, start, shape[1:]
        self._places = {key.tobytes(): i for i, key in enumerate(rows["key"])}
        with contextlib.suppress(OSError):
            os.utime(self.file)

    def get(self, place: int) -> Square | None:
        """The image at that place as it was decoded before; None if it was not."""
        key = self.keys[place]
        i = self._places.get(key) if key is not None else None
        if i is None:
            return None
        size = int(np.prod(self._shape))
        try:
            self._opened.seek(self._start + i * size)
            held = self._opened.read(size)
        except OSError:  # of a bad sector, or a share that is gone
            return None
        row = self._rows[i]
        if len(held) != size or _checksum(row, held) != row["crc"]:
            return None
        pixels = np.frombuffer(held, np.uint8).reshape(self._shape)
        if self._grey and (pixels == pixels[..., :1]).all():
            pixels = pixels[..., :1]
        flags = {name: bool(row["flags"] >> bit & 1) for bit, name in enumerate(_FLAGS)}
        square = Square(pixels, int(row["pages"]), content=int(row["content"]), **flags)
        self._note(place, square)
        return square

    def add(self, place: int, square: Square) -> None:
        """Take note of an image that was decoded just now."""
        if self.keys[place] is not None:
            self._new = True
            self._note(place, square)

    def _note(self, place: int, square: Square) -> None:
        flags = sum(getattr(square, name) << bit for bit, name in enumerate(_FLAGS))
        self._facts[place] = (self.keys[place], square.content, square.pages, flags, 0)

    def close(self) -> None:
        """Let go of the file: Windows replaces none that is open."""
        if self._opened is not None:
            self._opened.close()

    def save(self, pixels: Pixels, places: Sequence[int]) -> None:
        """Keep the images, if any is new.

        Args:
            pixels: ``(n, s, s, c)``.
            places: ``(n,)``, the place of each.
        """
        facts = self._facts[list(places)]
        known = np.array([self.keys[place] is not None for place in places], bool)
        if not self._new:
            return
        with contextlib.suppress(OSError):  # of a full disk, or a folder that is not ours
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if not _make_room(self.file, known.sum() * pixels[0].nbytes):
                return
            with tempfile.NamedTemporaryFile(
                dir=self.file.parent, suffix=".part", delete=False
            ) as part:
                try:
                    _write(part, pixels, facts, known.nonzero()[0])
                    part.close()
                    Path(part.name).replace(self.file)
                finally:
                    part.close()
                    Path(part.name).unlink(missing_ok=True)


def _write(
    file: Any, pixels: Pixels, facts: npt.NDArray[Any], chosen: npt.NDArray[np.int64]
) -> None:
    shape = (len(chosen), *pixels.shape[1:])
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, header)
    for start in range(0, len(chosen), PIECE):
        some = chosen[start : start + PIECE]
        rows = pixels[some]
        facts["crc"][some] = [
            _checksum(fact, row.data) for fact, row in zip(facts[some], rows, strict=True)
        ]
        file.write(rows.data)
    held = BytesIO()
    np.save(held, facts[chosen], allow_pickle=False)
    file.write(held.getvalue())


def _checksum(row: Any, pixels: Any) -> int:
    """Of an image, and of what is said of it but the checksum itself."""
    return zlib.crc32(pixels, zlib.crc32(row.tobytes()[: -_ROW["crc"].itemsize]))


def folder() -> Path:
    """Where decoded images are kept."""
    return cache_folder() / "decoded"


def _key(path: str | None) -> bytes | None:
    """What tells a file as it is now, 16 bytes; None if it cannot be told."""
    if path is None:
        return None
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return None
    if max(found.st_mtime, found.st_ctime) > time.time() - YOUNG:
        return None
    facts = (path, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).digest()


def _header(file: Any) -> tuple[int, ...]:
    """Shape of the array of bytes that a .npy file begins with."""
    if npy.read_magic(file) != (1, 0):
        raise ValueError("it is no such file")
    shape, _, dtype = npy.read_array_header_1_0(file)
    if dtype != np.uint8 or len(shape) != 4:
        raise ValueError("it holds no images")
    return shape


def _make_room(file: Path, size: int) -> bool:
    """Remove what was not used for longest, until a file of `size` bytes may be kept: if it may.

    None may that takes more than half of what is free on the disk: a fit has more to write.
    """
    if size > min(KEPT_BYTES, shutil.disk_usage(file.parent).free / 2):
        return False
    trim(file, KEPT_BYTES - size)
    for path in folder().glob("tmp*.part"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - ABANDONED:
                path.unlink()
    return True


@dataclass(frozen=True)
class Holding:
    """What the cache folder holds of one kind."""

    kind: str
    folder: Path
    files: int
    bytes: int
    clears: bool  # whether :func:`clear` removes it


def holdings() -> list[Holding]:
    """What the cache folder holds."""
    found = []
    for name, kind in KINDS.items():
        inside = cache_folder() / name
        sizes = [size for path, _, size in files(inside) if _OWN.fullmatch(path.name)]
        found.append(Holding(kind, inside, len(sizes), sum(sizes), True))
    downloads = cache_folder() / "datasets"
    sizes = [path.stat().st_size for path in downloads.rglob("*") if path.is_file()]
    found.append(Holding("downloaded data sets", downloads, len(sizes), sum(sizes), False))
    return found


def clear() -> int:
    """Remove what can be made again without a download; how many bytes that were.

    Only files under names that this module and the features of frozen nets are kept under.
    """
    freed = 0
    for name in KINDS:
        for path, _, size in files(cache_folder() / name):
            if _OWN.fullmatch(path.name):
                with contextlib.suppress(OSError):  # Windows removes none that is open
                    path.unlink()
                    freed += size
    return freed


def trim(file: Path, room: int) -> None:
    """Remove what was not used for longest of the other files beside one, down to `room` bytes."""
    for path, _, held in reversed(files(file.parent)):  # the newest first
        if path == file:
            continue
        room -= held
        if room < 0 and _OWN.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def files(inside: Path) -> list[tuple[Path, float, int]]:
    """What is kept in a folder of the cache: file, time of its last use and bytes, oldest first."""
    found = []
    for path in inside.glob("*.npy"):
        with contextlib.suppress(OSError):  # another process has removed it
            status = path.stat()
            found.append((path, status.st_mtime, status.st_size))
    return sorted(found, key=lambda one: one[1])
