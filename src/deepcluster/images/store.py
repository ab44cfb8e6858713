"""Any source -> an :class:`ImageStore`: stable ids, uint8 squares, labels if there are any.

Images are decoded once, by threads (Pillow gives up the interpreter lock while it decodes, so
processes gain nothing), and kept as uint8 squares: the centre square of an image, resized with an
antialiasing bicubic filter, which is what "resize the shorter side, crop the centre" comes to. The
store lies in memory if it fits, else in an unnamed memory-mapped file that vanishes with it. A file
that cannot be used is skipped and listed with the reason; ids name images, positions do not, so the
others keep their ids. What a source can be, and how it is listed and read, is told in
:mod:`deepcluster.images.sources`; this module decodes and keeps.

How a pixel becomes 8 bits: 16 bits are scaled by their full range (65535 -> 255), floats in arrays
must lie in [0, 1], transparent pixels are put on white, an EXIF orientation is applied, and of an
animation the first frame counts.

Labels are for measuring only; nothing that learns reads them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepcluster.config import DataSettings
from deepcluster.errors import NoImagesError, SourceError, UnusableError
from deepcluster.images.sources import (
    MAX_PIXELS,
    NAMED,
    NOT_READ,
    Labels,
    Raw,
    Source,
    cache_folder,
    reason,
    resolve,
    spread,
    unfit,
)

__all__ = [
    "NAMED",
    "ImageStore",
    "NoImagesError",
    "Scan",
    "SourceError",
    "auto_size",
    "open_images",
    "scan_images",
]

CHUNK = 256  # images decoded between two looks at the clock: bounds memory and the progress step
PIECE = 16  # images a thread takes at a time
FEW = 8  # images that are decoded to judge whether there is colour

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Scan:
    """What a source holds, before anything is decoded."""

    name: str
    """Short name of the source, usable in a folder name."""
    count: int
    """Images found; some may turn out to be unreadable."""
    size: int
    """Training side in pixels."""
    bytes_needed: int
    """Bytes of the decoded store: an upper bound, for three channels unless grey is forced."""
    in_memory: bool
    """Whether the store will lie in memory, not in a memory-mapped file."""
    channels: int = 3
    """Channels it will have, judged by a few images."""
    side: int = 0
    """Median of the images' shorter sides in pixels; 0 where nobody looked."""

    def __str__(self) -> str:
        where = "in memory" if self.in_memory else "in a memory-mapped file"
        return (
            f"{self.name}: {self.count:,} images, training side {self.size} pixels, "
            f"at most {_bytes(self.bytes_needed)} {where}"
        )


@dataclass(repr=False)
class ImageStore:
    """Decoded images, all of one size, in a fixed order."""

    name: str
    """Short name of the source, usable in a folder name."""
    pixels: Pixels
    """``(n, s, s, c)`` uint8, an array or a memory map; s = round(size × margin), c is 1 or 3."""
    size: int
    """Training side in pixels."""
    ids: list[str]
    """A name for each image, unique, and the same whenever the source is read again."""
    paths: list[str | None]
    """The file of each image; None where an image is not a file of its own."""
    labels: npt.NDArray[np.int64] | None = None
    """``(n,)``, -1 where unknown; None if the source has no labels. For measuring only."""
    label_names: list[str] = field(default_factory=list)
    """Name of each label."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """What was left out: (path or id, reason)."""

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return int(self.pixels.shape[3])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Pixels:
        """One image, ``(s, s, c)`` uint8."""
        return np.array(self.pixels[index])

    def __repr__(self) -> str:
        return f"ImageStore({self.name!r}, {'×'.join(map(str, self.pixels.shape))})"

    def batch(self, indices: npt.NDArray[np.integer[Any]]) -> Pixels:
        """A copy of some images, ``(b, s, s, c)`` uint8, in the order of `indices` ``(b,)``."""
        return np.asarray(self.pixels[indices])

    def fingerprint(self) -> str:
        """A hash that tells whether another store holds the same images.

        It covers the ids, the shape and the pixels of up to 1,024 images spread evenly.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps([self.ids, list(self.pixels.shape)]).encode())
        for index in spread(len(self), 1024):
            digest.update(np.ascontiguousarray(self.pixels[index]).tobytes())
        return digest.hexdigest()


def auto_size(median_short_side: int) -> int:
    """The training side for images of this size.

    Images up to 64 pixels keep their size (at least 8, rounded up to a multiple of 4); up to 128
    pixels they are trained at 64, larger ones at 96: what two processor cores can learn from in an
    evening, while the paper's 224 pixels take a GPU.

    Args:
        median_short_side: median of the images' shorter sides, in pixels.
    """
    if median_short_side <= 64:
        return max(8, math.ceil(median_short_side / 4) * 4)
    return 64 if median_short_side <= 128 else 96


def scan_images(
    source: Any,
    *,
    data: DataSettings = DataSettings(),  # noqa: B008 (frozen)
    size: int | Literal["auto"] = "auto",
    labels: Labels | None = None,
) -> Scan:
    """Look at what a source holds; a few images are opened for their size and colour.

    Args:
        source: as for :func:`open_images`.
        data: how images are to be kept.
        size: training side in pixels, or auto.
        labels: as for :func:`open_images`; only checked here.

    Raises:
        SourceError: the source or its labels cannot be opened.
        NoImagesError: there is no image in it.
    """
    found = resolve(source, labels)
    scan = _scan(found, data, size)
    if data.channels == "rgb":
        return scan
    with _quiet_pillow():
        few = [_square(raw, 16, data.channels) for raw in itertools.islice(found.sample(), FEW)]
    colour = any(square.shape[2] == 3 for square in few if not isinstance(square, str))
    return dataclasses.replace(scan, channels=3 if colour else 1)


def open_images(
    source: Any,
    *,
    data: DataSettings = DataSettings(),  # noqa: B008 (frozen)
    size: int | Literal["auto"] = "auto",
    labels: Labels | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageStore:
    """Decode all images of a source.

    Args:
        source: one of

            - a folder of images, flat or nested, in any format that Pillow reads; ids are the paths
              relative to it. Hidden files are ignored, and those that are no images by their name
              or, without an extension, by their first bytes;
            - an image file, or a list of image files;
            - a ``.txt`` file of paths, one a line, relative to it;
            - a Parquet file in the Hugging Face layout (a struct column ``{bytes, path}``), a list
              of them, or a folder of shards; its integer column ``label`` becomes the labels;
            - a ``.npy`` or ``.npz`` file of an array of images (``x``, ``images``, …) and perhaps
              labels (``y``, ``labels``, …);
            - a name of :data:`NAMED`, such as ``mnist`` or ``mnist:test``: the train split (of
              stl10 train+unlabeled) is downloaded if it is not in the cache folder yet. A file or
              folder of that name comes first;
            - an array or a tensor ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)`` with c = 1, 3
              or 4, of 8 or 16 bits or of floats in [0, 1]; a list of arrays or of Pillow images of
              any size; or a data set with ``__len__`` and ``__getitem__ -> image or (image,
              target)``, whose targets are ignored, and perhaps ``ids``.
        data: how images are to be kept.
        size: training side in pixels; auto follows from the images (:func:`auto_size`).
        labels: ``"folders"`` takes an image's folder for its label; the path of a CSV file with the
            columns ``path`` and ``label``; or a label for each image in the order of the source.
            None keeps those the source has.
        cache_dir: folder for the memory-mapped file if the images do not fit in memory; by default
            one in the user's cache folder.
        progress: called with (images done, images in all).

    Raises:
        SourceError: the source or its labels cannot be opened.
        NoImagesError: there is no usable image in it.
    """
    found = resolve(source, labels)
    scan = _scan(found, data, size)
    side = round(scan.size * data.margin)
    sink: _MemorySink | _FileSink
    if scan.in_memory:
        sink = _MemorySink(scan.count, side)
    else:
        folder = Path(cache_dir) if cache_dir is not None else cache_folder() / "pixels"
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < scan.bytes_needed:
            raise SourceError(
                f"the decoded images need up to {_bytes(scan.bytes_needed)} in {folder}, where "
                f"{_bytes(free)} are free: free some, choose a smaller size, or set "
                "DEEPCLUSTER_CACHE to a folder on a larger disk"
            )
        sink = _FileSink(folder, side)
    if data.channels == "rgb":
        sink.widen()

    kept: list[int] = []
    skipped = list(found.skipped)
    start = 0
    workers = (os.cpu_count() or 1) if data.workers == "auto" else max(1, data.workers)
    with _quiet_pillow(), ThreadPoolExecutor(workers) as pool:
        for chunk in _chunks(found.read(), CHUNK):
            # one channel until the first colour: then nothing needs to look for it any more
            channels = "rgb" if sink.channels == 3 else data.channels
            pieces = [chunk[i : i + PIECE] for i in range(0, len(chunk), PIECE)]
            squares: list[Pixels] = []
            for i, square in enumerate(
                result
                for piece in pool.map(
                    lambda p, c=channels: _squares(p, side, c, data.interpolation), pieces
                )
                for result in piece
            ):
                if isinstance(square, str):
                    skipped.append((found.paths[start + i] or found.ids[start + i], square))
                else:
                    kept.append(start + i)
                    squares.append(square)
            if any(square.shape[2] > sink.channels for square in squares):
                sink.widen()
            sink.append(squares)
            start += len(chunk)
            if progress is not None:
                progress(start, scan.count)
    if not kept:
        path, reason = skipped[0]
        raise NoImagesError(
            f"no usable image in {found.name}: none of {scan.count:,} could be used, the first, "
            f"{path}, because: {reason}"
        )
    known = found.labels is not None and bool((found.labels[kept] >= 0).any())
    return ImageStore(
        name=found.name,
        pixels=sink.finish(),
        size=scan.size,
        ids=[found.ids[i] for i in kept],
        paths=[found.paths[i] for i in kept],
        labels=found.labels[kept] if found.labels is not None and known else None,
        label_names=found.label_names if known else [],
        skipped=skipped,
    )


# -- where decoded images go ------------------------------------------------------------------


class _MemorySink:
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


class _FileSink:
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


def _scan(found: Source, data: DataSettings, size: int | Literal["auto"]) -> Scan:
    median = 0
    if size == "auto":
        with _quiet_pillow():
            sides = [side for raw in found.sample() if (side := _short_side(raw))]
            if not sides:  # only bad ones in the sample: take the first that is good, if any
                sides = [next((s for raw in found.read() if (s := _short_side(raw))), 1)]
        median = round(statistics.median(sides))
        size = auto_size(median)
    if size < 1 or round(size * data.margin) < 1:
        raise SourceError(f"size {size} with margin {data.margin} leaves no pixel to train on")
    side = round(size * data.margin)
    needed = len(found.ids) * side * side * (1 if data.channels == "grey" else 3)
    limit = _free_memory() / 3 if data.memory_gb == "auto" else data.memory_gb * 1e9
    return Scan(found.name, len(found.ids), size, needed, needed <= limit, side=median)


def _free_memory() -> float:
    """Bytes this process may still take, minding a container's limit; 4 GB where unknown."""
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
    return free if free < math.inf else 4e9


# -- one image --------------------------------------------------------------------------------


class _quiet_pillow(warnings.catch_warnings):
    """Pillow's warnings off: what they warn of is checked here, for each file.

    Bombs are skipped by :data:`MAX_PIXELS`; a broken EXIF block or odd palette is of no harm.
    """

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def _squares(
    raws: Sequence[Raw], side: int, channels: str, interpolation: str
) -> list[Pixels | str]:
    """A square ``(side, side, 1 or 3)`` for each image, or why there is none."""
    return [_square(raw, side, channels, interpolation) for raw in raws]


def _square(raw: Raw, side: int, channels: str, interpolation: str = "bicubic") -> Pixels | str:
    try:
        image = _image(raw, side)
        if channels == "grey" and image.mode in ("RGB", "RGBA"):
            image = image.convert("L" if image.mode == "RGB" else "LA")
        short = min(image.size)
        if image.size != (side, side):
            left, top = (image.width - short) // 2, (image.height - short) // 2
            box = (left, top, left + short, top + short)
            image = image.resize((side, side), Image.Resampling[interpolation.upper()], box)
        if image.mode in ("LA", "RGBA"):
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
            image = image.convert("L" if channels == "grey" else "RGB")
        pixels = np.asarray(image)
    except Exception as error:  # a broken file can make Pillow raise almost anything
        return reason(error)
    if pixels.ndim == 2:
        return pixels[..., None]
    if channels == "auto" and (pixels == pixels[..., :1]).all():
        return pixels[..., :1]
    return pixels


def _image(raw: Raw, side: int) -> Image.Image:
    """The image, upright, in mode L, LA, RGB or RGBA."""
    match raw:
        case Exception():
            raise raw
        case np.ndarray():
            return _from_array(raw)
        case Image.Image():
            return _plain(raw)
        case _:
            with _opened(raw) as image:
                # a JPEG decoder can halve an image on the way; twice the side keeps it faithful
                image.draft(None, (2 * side, 2 * side))
                image.load()
                return _plain(image)


@contextlib.contextmanager
def _opened(raw: Path | bytes) -> Iterator[Image.Image]:
    """The image with its header read, its pixels not yet."""
    if isinstance(raw, Path) and raw.exists() and not raw.is_file():
        raise UnusableError("not a regular file")  # a pipe would be waited for
    if (raw.stat().st_size if isinstance(raw, Path) else len(raw)) == 0:
        raise UnusableError("empty")
    file = raw if isinstance(raw, Path) else io.BytesIO(raw)
    with Image.open(file, formats=_formats()) as image:
        if image.width * image.height > MAX_PIXELS:
            raise UnusableError(
                f"too large: {image.width:,} × {image.height:,} is more than {MAX_PIXELS:,} pixels"
            )
        yield image


@cache
def _formats() -> list[str]:
    Image.init()
    first = ["JPEG", "PNG"]  # asked in this order, for each image
    return first + sorted(set(Image.OPEN) - NOT_READ - set(first))


# Operations that turn an image upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _plain(image: Image.Image) -> Image.Image:
    """An upright copy in mode L, LA, RGB or RGBA."""
    try:
        turn = _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # a broken EXIF block says nothing
        turn = None
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_eight_bits(image))
    elif "transparency" in image.info or image.mode in ("PA", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    return image.transpose(turn) if turn is not None else image


def _eight_bits(image: Image.Image) -> Pixels:
    """Grey values of a 16-bit, 32-bit or float image, ``(h, w)``, scaled to 0..255.

    I;16 is scaled by its full range. I and F do not say what their range is: values within 0..1
    (F), 0..255 or 0..65535 are taken for such, others are stretched from their own range.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = float(values.min()), float(values.max())
    top = 65535.0
    if image.mode in ("I", "F"):
        tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        top = next((t for t in tops if low >= 0 and high <= t), high - low)
        if low < 0 or high > 65535:
            values = values - low
    return np.asarray(np.rint(values * (255 / top)), np.uint8)


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    """An image from an array ``(h, w)`` or ``(h, w, 1, 3 or 4)``."""
    if array.size == 0:
        raise UnusableError(f"an array of shape {array.shape} has no pixel")
    problem = unfit(array)
    if problem:
        raise UnusableError(problem)
    match array.dtype.kind:
        case "f":
            array = np.rint(np.clip(array, 0, 1) * 255)
        case "b":
            array = array.astype(np.uint8) * 255
        case "u" if array.dtype.itemsize == 2:
            array = np.rint(array / 257)
        case _:
            pass
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(array, np.uint8))


def _short_side(raw: Raw) -> int | None:
    """The shorter side in pixels; None if the image cannot be opened."""
    try:
        match raw:
            case Exception():
                return None
            case np.ndarray():
                return int(min(raw.shape[:2]))
            case Image.Image():
                return min(raw.size)
            case _:
                with _opened(raw) as image:
                    return min(image.size)
    except Exception:  # it will be skipped, with the reason, when it is decoded
        return None


# -- small things -----------------------------------------------------------------------------


def _chunks(items: Iterator[Raw], size: int) -> Iterator[list[Raw]]:
    chunk: list[Raw] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
