"""Any source -> an :class:`ImageStore`: stable ids, uint8 squares, labels if there are any.

Images are decoded once, by threads (Pillow gives up the interpreter lock while it decodes, so
processes gain nothing), and kept as uint8 squares: the centre square of an image, resized with an
antialiasing bicubic filter, which is what "resize the shorter side, crop the centre" comes to. The
store lies in memory if it fits, else in an unnamed memory-mapped file that vanishes with it. A file
that cannot be used is skipped and listed with the reason; ids name images, positions do not, so the
others keep their ids.

How a pixel becomes 8 bits: 16 bits are scaled by their full range (65535 -> 255), floats in arrays
must lie in [0, 1], transparent pixels are put on white, an EXIF orientation is applied, and of an
animation the first frame counts.

Labels are for measuring only; nothing that learns reads them.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import difflib
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import statistics
import sys
import tempfile
import unicodedata
import warnings
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from deepcluster.config import DataSettings

MAX_PIXELS = 178_956_970
"""Images with more pixels are skipped as decompression bombs; Pillow, too, refuses them."""

NAMED = (
    "digits",
    "mnist",
    "fashion-mnist",
    "kmnist",
    "cifar10",
    "cifar100",
    "svhn",
    "stl10",
    "imagenette",
)
"""Data sets that can be asked for by name; ``name:split`` asks for another split than the first."""

CHUNK = 256  # images decoded between two looks at the clock: bounds memory and the progress step
PIECE = 16  # images a thread takes at a time
FEW = 8  # images that are decoded to judge whether there is colour
SAMPLE = 256  # images whose size is looked at to choose the training side

# Pillow only recognises these and cannot read them, or (EPS) hands them to another program.
_NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

Labels = str | os.PathLike[str] | Sequence[Any] | npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]

# What a source yields for an image: where to read it, or its encoded bytes, or itself, or why not.
_Raw = Path | bytes | Image.Image | npt.NDArray[Any] | Exception


class SourceError(ValueError):
    """The source, or its labels, cannot be opened; says what could have been meant."""


class NoImagesError(ValueError):
    """The source has no usable image; says what was found there."""


class _UnusableError(ValueError):
    """Why this one image is skipped, in words for a person."""


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
        for index in _spread(len(self), 1024):
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
    found = _resolve(source, labels)
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
              relative to it. Hidden files and files that are no images by their name are ignored;
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
    found = _resolve(source, labels)
    scan = _scan(found, data, size)
    side = round(scan.size * data.margin)
    sink: _MemorySink | _FileSink
    if scan.in_memory:
        sink = _MemorySink(scan.count, side)
    else:
        folder = Path(cache_dir) if cache_dir is not None else _cache() / "pixels"
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
                for piece in pool.map(lambda p, c=channels: _squares(p, side, c), pieces)
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


def _scan(found: _Source, data: DataSettings, size: int | Literal["auto"]) -> Scan:
    if size == "auto":
        with _quiet_pillow():
            sides = [side for raw in found.sample() if (side := _short_side(raw))]
            if not sides:  # only bad ones in the sample: take the first that is good, if any
                sides = [next((s for raw in found.read() if (s := _short_side(raw))), 1)]
        size = auto_size(round(statistics.median(sides)))
    if size < 1 or round(size * data.margin) < 1:
        raise SourceError(f"size {size} with margin {data.margin} leaves no pixel to train on")
    side = round(size * data.margin)
    needed = len(found.ids) * side * side * (1 if data.channels == "grey" else 3)
    limit = _free_memory() / 3 if data.memory_gb == "auto" else data.memory_gb * 1e9
    return Scan(found.name, len(found.ids), size, needed, needed <= limit)


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


# -- one image ------------------------------------------------------------------------------------


class _quiet_pillow(warnings.catch_warnings):
    """Pillow's warnings off: what they warn of is checked here, for each file.

    Bombs are skipped by :data:`MAX_PIXELS`; a broken EXIF block or odd palette is of no harm.
    """

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def _squares(raws: Sequence[_Raw], side: int, channels: str) -> list[Pixels | str]:
    """A square ``(side, side, 1 or 3)`` for each image, or why there is none."""
    return [_square(raw, side, channels) for raw in raws]


def _square(raw: _Raw, side: int, channels: str) -> Pixels | str:
    try:
        image = _image(raw, side)
        if channels == "grey" and image.mode in ("RGB", "RGBA"):
            image = image.convert("L" if image.mode == "RGB" else "LA")
        short = min(image.size)
        if image.size != (side, side):
            left, top = (image.width - short) // 2, (image.height - short) // 2
            box = (left, top, left + short, top + short)
            image = image.resize((side, side), Image.Resampling.BICUBIC, box)
        if image.mode in ("LA", "RGBA"):
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
            image = image.convert("L" if channels == "grey" else "RGB")
        pixels = np.asarray(image)
    except Exception as error:  # a broken file can make Pillow raise almost anything
        return _reason(error)
    if pixels.ndim == 2:
        return pixels[..., None]
    if channels == "auto" and (pixels == pixels[..., :1]).all():
        return pixels[..., :1]
    return pixels


def _reason(error: Exception) -> str:
    match error:
        case _UnusableError():
            return str(error)
        case FileNotFoundError():
            return "there is no such file"
        case PermissionError():
            return "no permission to read it"
        case UnidentifiedImageError():
            return "not an image in a format that Pillow reads"
        case Image.DecompressionBombError():
            return f"too large: more than {MAX_PIXELS:,} pixels"
        case MemoryError():
            return "too large for the memory"
        case OSError(strerror=str(text)):  # without the file's name, which is listed beside it
            return text.lower()
        case _:
            return f"damaged: {str(error) or type(error).__name__}"


def _image(raw: _Raw, side: int) -> Image.Image:
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
        raise _UnusableError("not a regular file")  # a pipe would be waited for
    if (raw.stat().st_size if isinstance(raw, Path) else len(raw)) == 0:
        raise _UnusableError("empty")
    file = raw if isinstance(raw, Path) else io.BytesIO(raw)
    with Image.open(file, formats=_formats()) as image:
        if image.width * image.height > MAX_PIXELS:
            raise _UnusableError(
                f"too large: {image.width:,} × {image.height:,} is more than {MAX_PIXELS:,} pixels"
            )
        yield image


@cache
def _formats() -> list[str]:
    Image.init()
    first = ["JPEG", "PNG"]  # asked in this order, for each image
    return first + sorted(set(Image.OPEN) - _NOT_READ - set(first))


@cache
def _extensions() -> frozenset[str]:
    Image.init()
    openable = set(Image.OPEN) - (_NOT_READ - {"EPS", "WMF"})  # pictures: not read, but listed
    return frozenset(e for e, name in Image.registered_extensions().items() if name in openable)


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
        raise _UnusableError(f"an array of shape {array.shape} has no pixel")
    problem = _unfit(array)
    if problem:
        raise _UnusableError(problem)
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


def _unfit(array: npt.NDArray[Any]) -> str | None:
    """Why these values cannot be pixels; None if they can."""
    kind = array.dtype.kind
    if kind == "b" or (kind == "u" and array.dtype.itemsize <= 2):
        return None
    if kind not in "uif":
        return f"{array.dtype} is no type for pixels: give uint8, uint16, or floats in [0, 1]"
    low, high = float(array.min()), float(array.max())
    if kind == "f" and not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN, too, is not
        return f"floats must lie in [0, 1], these reach from {low:g} to {high:g}: scale them"
    if kind != "f" and not (low >= 0 and high <= 255):
        return (
            f"{array.dtype} must lie in 0..255, these reach from {low:g} to {high:g}: "
            "scale them, or give 16 bits as uint16"
        )
    return None


def _short_side(raw: _Raw) -> int | None:
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


# -- sources ----------------------------------------------------------------------------------


@dataclass
class _Source:
    """A source, listed but not decoded."""

    name: str
    ids: list[str]
    paths: list[str | None]
    read: Callable[[], Iterator[_Raw]]  # all images, in the order of the ids
    sample: Callable[[], Iterator[_Raw]]  # some, spread evenly
    labels: npt.NDArray[np.int64] | None = None
    label_names: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = re.sub(r"[^\w.-]+", "-", self.name).strip("-.") or "images"
        self.ids = _unique([unicodedata.normalize("NFC", _printable(i)) for i in self.ids])


def _resolve(source: Any, labels: Labels | None) -> _Source:
    found = _find(source)
    if labels is not None:
        _relabel(found, labels)
    if not found.ids:
        bad = f"; {found.skipped[0][0]}: {found.skipped[0][1]}" if found.skipped else ""
        raise NoImagesError(f"no image in {found.name}: it is empty{bad}")
    return found


def _find(source: Any) -> _Source:
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    if isinstance(source, str | os.PathLike):
        return _from_name(os.fspath(source))
    if torch is not None and isinstance(source, torch.Tensor):
        return _from_stack("tensor", _tensor_values(source), channels_first=True)
    if isinstance(source, np.ndarray) and source.dtype != object:
        return _from_stack("array", source)
    if isinstance(source, list | tuple) and source:
        files = [Path(item) for item in source if isinstance(item, str | os.PathLike)]
        if len(files) == len(source):
            if all(file.suffix.lower() == ".parquet" for file in files):
                return _from_parquet(files[0].stem, files, [file.stem for file in files])
            return _from_files("images", files, [file.as_posix() for file in files])
    if (
        hasattr(source, "__len__")
        and hasattr(source, "__getitem__")
        and not isinstance(source, dict)
    ):
        return _from_items(source)
    raise SourceError(
        f"a {type(source).__name__} is no source of images: give a path, a name, an array, a "
        "tensor, a list of images, or a data set with __len__ and __getitem__"
    )


def _from_name(text: str) -> _Source:
    path = Path(text).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        match path.suffix.lower():
            case ".txt":
                return _from_list(path)
            case ".parquet":
                return _from_parquet(path.stem, [path], [path.stem])
            case ".npy" | ".npz":
                return _from_npy(path)
            case suffix if suffix in _extensions():
                return _from_files(path.stem, [path], [path.name])
            case suffix:
                raise SourceError(
                    f"{path} is no source of images: a file must be an image, a .txt of paths, "
                    f".parquet, .npy or .npz, not {suffix or 'one without an extension'}"
                )
    name, _, split = text.partition(":")
    if name == "digits" and not split:
        return _digits()
    if name in _TORCHVISION:
        return _from_torchvision(name, split)
    near = difflib.get_close_matches(text.lower(), NAMED, 1)
    if path.parent.is_dir():
        beside = {p.name: str(p) for p in path.parent.iterdir()}
        near += [beside[n] for n in difflib.get_close_matches(path.name, beside, 2)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise SourceError(
        f"there is no file or folder {text!r}: {hint}a source is a folder of images, a .txt of "
        f"paths, a .parquet, .npy or .npz file, or one of {', '.join(NAMED)}"
    )


# -- files ------------------------------------------------------------------------------------


def _from_folder(root: Path) -> _Source:
    root = root.absolute()
    files, unread = _walk(root)
    images = [file for file in files if Path(file).suffix.lower() in _extensions()]
    shards = [file for file in files if file.endswith(".parquet")]
    name = root.resolve().name
    if not images and shards:
        stems = [file.removesuffix(".parquet") for file in shards]
        found = _from_parquet(name, [root / file for file in shards], stems)
        found.skipped = unread + found.skipped
        return found
    if not images:
        kinds = Counter(Path(file).suffix.lower() or "no extension" for file in files)
        what = ", ".join(f"{count:,} × {kind}" for kind, count in kinds.most_common(5))
        bad = f"; {unread[0][0]}: {unread[0][1]}" if unread else ""
        raise NoImagesError(
            f"no image in {root}: found {what or 'no file'}{bad}; expected files that Pillow reads "
            "(.jpg, .png, .webp, .tif, …) or .parquet"
        )
    found = _from_files(name, [root / file for file in images], images)
    found.skipped = unread
    return found


def _walk(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Files under a folder, as sorted relative paths, and the folders that cannot be read.

    Hidden files and folders are left out. Links to folders are followed after all real folders, and
    no folder is entered twice, so a loop of links ends and a link never renames what it points to.
    """
    files: list[str] = []
    unread: list[tuple[str, str]] = []
    entered: set[tuple[int, int]] = set()
    real, links = [""], deque[str]()
    while real or links:
        folder = real.pop() if real else links.popleft()
        try:
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            unread.append((_printable(str(root / folder)), _reason(error)))
            continue
        for entry in inside:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if not _is_folder(entry):
                files.append(path)
            elif entry.is_symlink():
                links.append(path)
            else:
                real.append(path)
    return sorted(files), unread


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: listed as a file, and skipped with the reason
        return False


def _from_list(path: Path) -> _Source:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text: a list has one path a line") from error
    names = [os.path.normpath(line.strip()) for line in lines if line.strip()]
    files = [path.absolute().parent / name for name in names]
    return _from_files(path.stem, files, [Path(name).as_posix() for name in names])


def _from_files(name: str, files: list[Path], ids: list[str]) -> _Source:
    def some() -> Iterator[_Raw]:
        return (files[i] for i in _spread(len(files), SAMPLE))

    paths: list[str | None] = [_printable(os.path.normpath(file.absolute())) for file in files]
    return _Source(name, ids, paths, lambda: iter(files), some)


# -- Parquet ----------------------------------------------------------------------------------


@dataclass
class _Shard:
    path: Path
    stem: str  # what its rows are called
    column: str
    rows: int
    groups: int


def _from_parquet(name: str, files: list[Path], stems: list[str]) -> _Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards: list[_Shard] = []
    skipped: list[tuple[str, str]] = []
    inner: list[str] = []  # the paths in the struct column
    parts: list[tuple[list[Any], list[str]]] = []  # labels of a shard, and the names of the classes
    for path, stem in zip(files, stems, strict=True):
        try:
            with pq.ParquetFile(path) as file:
                column, label, names = _columns(file.schema_arrow)
                rows = file.metadata.num_rows
                shards.append(_Shard(path, stem, column, rows, file.num_row_groups))
                has_path = file.schema_arrow.field(column).type.get_field_index("path") >= 0
                wanted = [f"{column}.path"] * has_path + [label] * (label is not None)
                table = file.read(columns=wanted) if wanted else {}
                structs = table[column].to_pylist() if has_path else [{}] * rows
                inner += [(struct or {}).get("path") or "" for struct in structs]
                parts.append((table[label].to_pylist() if label else [None] * rows, names))
        except (OSError, ValueError, pa.ArrowException) as error:
            if len(files) == 1:
                raise SourceError(f"{path} cannot be read as Parquet: {error}") from error
            skipped.append((_printable(str(path)), f"cannot be read as Parquet: {error}"))
    if not shards:
        raise SourceError(f"no shard of {name} can be read: {skipped[0][0]}: {skipped[0][1]}")

    times = Counter(inner)
    rows_of = (f"{shard.stem}:{row}" for shard in shards for row in range(shard.rows))
    ids = [
        path if path and times[path] == 1 else row for path, row in zip(inner, rows_of, strict=True)
    ]
    labels: npt.NDArray[np.int64] | None
    names = parts[0][1]
    if names and all(part[1] == names for part in parts):
        values = [-1 if v is None else v for part in parts for v in part[0]]
        labels = np.array([v if 0 <= v < len(names) else -1 for v in values], np.int64)
    else:  # shards that number their classes differently are brought together by the names
        words = [
            own[v] if own and v is not None and 0 <= v < len(own) else v
            for part, own in parts
            for v in part
        ]
        labels, names = _encode(words)

    def read() -> Iterator[_Raw]:
        for shard in shards:
            yield from _rows(shard)

    def some() -> Iterator[_Raw]:
        places = [(shard, group) for shard in shards for group in range(shard.groups)]
        for i in _spread(len(places), 8):
            for number, raw in enumerate(_rows(*places[i])):
                if number == SAMPLE // 8:
                    break
                yield raw

    paths: list[str | None] = [None] * len(ids)
    return _Source(name, ids, paths, read, some, labels, names, skipped)


def _columns(schema: Any) -> tuple[str, str | None, list[str]]:
    """Name of the image column, of the label column, and the names of the classes."""
    import pyarrow as pa

    structs = [
        column.name
        for column in schema
        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
    ]
    if not structs:
        raise SourceError(
            "there is no column of images (a struct with `bytes` and `path`) among "
            + ", ".join(schema.names)
        )
    column = next((name for name in ("image", "img") if name in structs), structs[0])
    meta = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = meta.get("info", {}).get("features", {})
    classes = {
        name: feature.get("names") or []
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
    label = next((n for n in ("label", "labels", *classes) if n in schema.names), None)
    if label is not None:
        kind = schema.field(label).type
        label = label if pa.types.is_integer(kind) or pa.types.is_string(kind) else None
    names = classes.get(label or "", [])
    return column, label, [str(n) for n in names] if isinstance(names, list) else []


def _rows(shard: _Shard, group: int | None = None) -> Iterator[_Raw]:
    """Encoded images of a shard, or of one of its row groups, row by row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = 0
    try:
        # a buffer: without one, a whole row group is read before its first row is seen
        with pq.ParquetFile(shard.path, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(
                batch_size=64,
                row_groups=None if group is None else [group],
                columns=[f"{shard.column}.bytes"],
            ):
                for struct in batch.column(0).to_pylist():
                    done += 1
                    yield (struct or {}).get("bytes") or b""
    except (OSError, ValueError, pa.ArrowException) as error:
        if group is not None:
            return
        for _ in range(done, shard.rows):
            yield _UnusableError(f"cannot be read from {shard.path.name}: {error}")


# -- arrays and data sets ---------------------------------------------------------------------

_IMAGE_KEYS = ("images", "image", "x", "x_train", "train_images", "data", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "y_train", "train_labels", "targets", "arr_1")


def _from_npy(path: Path) -> _Source:
    try:
        if path.suffix.lower() == ".npy":
            return _from_stack(path.stem, np.load(path, mmap_mode="r", allow_pickle=False))
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            shapes = {key: loaded[key].shape for key in loaded.files}
            lower = {key.lower(): key for key in loaded.files}
            stacks = [key for key, shape in shapes.items() if len(shape) in (3, 4)]
            named = [lower[key] for key in _IMAGE_KEYS if lower.get(key) in stacks]
            if not named and len(stacks) != 1:
                raise SourceError(
                    f"{path} has no array of images that can be told by its name: found "
                    + ", ".join(f"{key} {shape}" for key, shape in shapes.items())
                    + f"; expected one of {', '.join(_IMAGE_KEYS)} of shape (n, h, w[, c])"
                )
            images = loaded[(named or stacks)[0]]
            found = _from_stack(path.stem, images)
            for key in _LABEL_KEYS:
                if key in lower and math.prod(shapes[lower[key]]) == len(images):
                    found.labels, found.label_names = _encode(loaded[lower[key]].ravel())
                    break
            return found
    except SourceError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{path} cannot be read: {error}; expected arrays of numbers that np.load reads "
            "without pickle"
        ) from error


def _from_stack(name: str, stack: npt.NDArray[Any], *, channels_first: bool = False) -> _Source:
    """Images of one size in an array ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``."""
    shape = stack.shape
    first = stack.ndim == 4 and shape[1] in (1, 3, 4)
    last = stack.ndim == 4 and shape[3] in (1, 3, 4)
    if not (stack.ndim == 3 or first or last):
        raise SourceError(
            f"an array of shape {shape} holds no images: expected (n, h, w), (n, h, w, c) or "
            "(n, c, h, w) with c = 1, 3 or 4"
        )
    if first and (channels_first or not last):
        stack = np.moveaxis(stack, 1, 3)
    if stack.size:  # in pieces, since it may be a memory map
        for start in range(0, len(stack), 4096):
            problem = _unfit(stack[start : start + 4096])
            if problem:
                raise SourceError(f"{name} of shape {shape}: {problem}")

    return _Source(
        name,
        [str(i) for i in range(len(stack))],
        [None] * len(stack),
        lambda: iter(stack),
        lambda: iter(stack[:1]),
    )


def _from_items(items: Any) -> _Source:
    """A list of images or a data set; what it does in ``__getitem__`` happens in this thread."""
    count = len(items)
    ids = [str(i) for i in getattr(items, "ids", range(count))]
    name = "images" if isinstance(items, list | tuple) else type(items).__name__.lower()
    if len(ids) != count:
        raise SourceError(f"{name} has {count} images and {len(ids)} ids")

    def some() -> Iterator[_Raw]:
        return (_item(items, i) for i in _spread(count, SAMPLE))

    return _Source(name, ids, [None] * count, lambda: (_item(items, i) for i in range(count)), some)


def _item(items: Any, index: int) -> _Raw:
    """One image of a list or data set, without its target."""
    torch = sys.modules.get("torch")
    try:
        item = items[index]
        if isinstance(item, tuple | list):
            item = item[0]
        elif isinstance(item, dict):
            item = item["image"] if "image" in item else item["img"]
        if isinstance(item, Image.Image):
            item.load()  # here: threads must not read one file at the same time
            return item
        if isinstance(item, str | os.PathLike):
            return Path(item)
        channels_first = torch is not None and isinstance(item, torch.Tensor)
        array = _tensor_values(item) if channels_first else np.asarray(item)
    except Exception as error:  # a data set that decodes can raise whatever Pillow does
        return error
    first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
    last = array.ndim == 3 and array.shape[2] in (1, 3, 4)
    if array.ndim != 2 and not first and not last:
        return _UnusableError(
            f"an array of shape {array.shape} is no image: expected (h, w), (h, w, c) or (c, h, w)"
        )
    return np.moveaxis(array, 0, 2) if first and (channels_first or not last) else array


def _tensor_values(tensor: Any) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu()
    # numpy has no bfloat16
    return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())


# -- named data sets --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Named:
    """A data set of torchvision: the class, its splits (the default first), its files."""

    cls: str
    splits: tuple[str, ...]
    folder: str  # below the cache folder's datasets/
    files: str
    page: str  # where a person finds them


_IDX = (
    "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    "t10k-labels-idx1-ubyte.gz"
)
_TORCHVISION = {
    "mnist": _Named(
        "MNIST",
        ("train", "test"),
        "MNIST/raw",
        _IDX,
        "https://ossci-datasets.s3.amazonaws.com/mnist",
    ),
    "fashion-mnist": _Named(
        "FashionMNIST",
        ("train", "test"),
        "FashionMNIST/raw",
        _IDX,
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    ),
    "kmnist": _Named(
        "KMNIST",
        ("train", "test"),
        "KMNIST/raw",
        _IDX,
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist",
    ),
    "cifar10": _Named(
        "CIFAR10",
        ("train", "test"),
        "",
        "cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz",
    ),
    "cifar100": _Named(
        "CIFAR100",
        ("train", "test"),
        "",
        "cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz",
    ),
    "svhn": _Named(
        "SVHN",
        ("train", "test", "extra"),
        "",
        "train_32x32.mat (test_32x32.mat, extra_32x32.mat)",
        "http://ufldl.stanford.edu/housenumbers",
    ),
    "stl10": _Named(
        "STL10",
        ("train+unlabeled", "train", "unlabeled", "test"),
        "",
        "stl10_binary.tar.gz",
        "http://ai.stanford.edu/~acoates/stl10",
    ),
    "imagenette": _Named(
        "Imagenette",
        ("train", "val"),
        "",
        "imagenette2-320.tgz",
        "https://s3.amazonaws.com/fast-ai-imageclas",
    ),
}


def _digits() -> _Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    stack = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255
    found = _from_stack("digits", stack)
    found.labels = digits.target.astype(np.int64)
    found.label_names = [str(name) for name in digits.target_names]
    return found


def _from_torchvision(name: str, split: str) -> _Source:
    named = _TORCHVISION[name]
    split = split or named.splits[0]
    if split not in named.splits:
        raise SourceError(f"{name} has no split {split!r}: choose from {', '.join(named.splits)}")
    import torchvision.datasets

    make = getattr(torchvision.datasets, named.cls)
    root = _cache() / "datasets"
    settings: dict[str, Any] = {"root": root}
    if named.splits == ("train", "test"):
        settings["train"] = split == "train"
    else:
        settings["split"] = split
    if name == "imagenette":
        settings |= {"size": "320px", "loader": Path}  # paths: decoded here, like any file
    try:
        dataset = make(**settings)
    except (OSError, RuntimeError):  # not there yet
        try:
            root.mkdir(parents=True, exist_ok=True)
            dataset = make(**settings, download=True)
        except (OSError, RuntimeError) as error:
            raise SourceError(
                f"{name} is not in {root} and could not be downloaded ({error}): connect to the "
                f"network once, or put {named.files} from {named.page} into {root / named.folder}"
            ) from error

    label = name if split == named.splits[0] else f"{name}-{split}"
    if name == "imagenette":
        files, targets = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
        found = _from_files(label, list(files), [f"{f.parent.name}/{f.name}" for f in files])
    else:
        targets = dataset.targets if hasattr(dataset, "targets") else dataset.labels
        found = _from_stack(label, np.asarray(dataset.data))
    found.labels = np.asarray(targets, np.int64)
    # svhn names no classes: they are the digits
    classes = getattr(dataset, "classes", [str(digit) for digit in range(10)])
    # of imagenette's synonyms the first
    found.label_names = [c if isinstance(c, str) else c[0] for c in classes]
    return found


# -- labels -----------------------------------------------------------------------------------


def _relabel(found: _Source, labels: Labels) -> None:
    """Replace the labels of a source by those a person gave."""
    values: list[Any]
    if isinstance(labels, str) and labels == "folders":
        if not any(found.paths):
            raise SourceError(f'labels="folders" needs a folder of images, {found.name} is none')
        values = [Path(i).parent.as_posix() for i in found.ids]
        values = [None if value == "." else value for value in values]
        if not any(values):
            raise SourceError(f'labels="folders": the images of {found.name} are in no sub-folders')
    elif isinstance(labels, str | os.PathLike):
        values = _labels_of(found, Path(labels))
    else:
        values = list(labels)
        if len(values) != len(found.ids):
            raise SourceError(f"{len(values):,} labels for {len(found.ids):,} images")
    found.labels, found.label_names = _encode(values)


def _labels_of(found: _Source, path: Path) -> list[Any]:
    """The label of each image in a CSV file; None where it has none."""
    if not path.is_file():
        raise SourceError(
            f'there is no file {path}: labels are "folders" or a CSV file with the columns path '
            "and label"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or []
            if "label" not in columns or not {"path", "id"} & set(columns):
                raise SourceError(
                    f"{path} has the columns {', '.join(columns) or '(none)'}: expected path and "
                    "label"
                )
            given = {
                unicodedata.normalize("NFC", Path(key).as_posix()): row["label"]
                for row in rows
                if (key := row.get("path") or row.get("id"))
            }
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read as UTF-8 CSV: {error}") from error
    values: list[Any] = []
    for name, file_path in zip(found.ids, found.paths, strict=True):
        keys = (name, unicodedata.normalize("NFC", file_path or name))
        values.append(next((given.pop(key) for key in keys if key in given), None) or None)
    if given and values and all(value is None for value in values):
        raise SourceError(
            f"no path in {path} is an image of {found.name}: it names {next(iter(given))!r}, an "
            f"image there is {found.ids[0]!r}"
        )
    found.skipped += [(key, f"named in {path.name}, but not among the images") for key in given]
    return values


def _encode(values: Iterable[Any]) -> tuple[npt.NDArray[np.int64] | None, list[str]]:
    """Numbers from 0 for labels of any kind, and their names.

    None, an empty string, NaN and numbers below 0 are unknown (-1).
    """

    def plain(value: Any) -> int | str | None:
        value = value.item() if hasattr(value, "item") else value
        if value is None or value == "" or value != value:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str) and re.fullmatch(r"\d{1,18}", value) and str(int(value)) == value:
            value = int(value)
        if isinstance(value, int):
            return int(value) if value >= 0 else None
        return str(value)

    known = [plain(value) for value in values]
    classes = {v for v in known if v is not None}
    order: list[int | str] = [
        *sorted(v for v in classes if isinstance(v, int)),
        *sorted(v for v in classes if isinstance(v, str)),
    ]
    number = {value: i for i, value in enumerate(order)}
    codes = np.array([-1 if v is None else number[v] for v in known], np.int64)
    return (codes, [str(v) for v in order]) if order else (None, [])


# -- small things -----------------------------------------------------------------------------


def _cache() -> Path:
    return Path(os.environ.get("DEEPCLUSTER_CACHE") or "~/.cache/deepcluster").expanduser()


def _unique(names: list[str]) -> list[str]:
    """The names, with #2, #3 … after those that came before."""
    if len(set(names)) == len(names):
        return names
    taken, seen, unique = set(names), set[str](), []
    for name in names:
        number, candidate = 1, name
        while candidate in seen or (number > 1 and candidate in taken):
            number += 1
            candidate = f"{name}#{number}"
        seen.add(candidate)
        unique.append(candidate)
    return unique


def _printable(text: str) -> str:
    """Text that can be written as UTF-8 (a file's name on Linux need not be)."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers below `count`, spread evenly."""
    return [i * count // min(count, most) for i in range(min(count, most))]


def _chunks(items: Iterator[_Raw], size: int) -> Iterator[list[_Raw]]:
    chunk: list[_Raw] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
