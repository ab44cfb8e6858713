"""Any source -> an :class:`ImageStore`: stable ids, uint8 squares, labels if there are any.

The way of the images, in one direction: a source is listed once
(:func:`~deepcluster.images.sources.list_source`), the plan looks at the listing
(:func:`scan_images`), then its images are decoded (:func:`open_images`), by threads (Pillow and
torch give up the interpreter lock while they decode and resize, but not while a header is read, so
that of small files a second thread does half as many), and kept as uint8 squares in memory if they
fit, else in an unnamed memory-mapped file that vanishes with the store. An image that cannot be
used is skipped and listed with the reason; ids name images, positions do not, so the others keep
their ids. How a pixel becomes 8 bits is told in :mod:`deepcluster.images.decode` and
:mod:`deepcluster.images.grey`.

Labels are for measuring only; nothing that learns reads them.

Long, because what opens a store and what is read of it share the order and the ids of its images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from deepcluster.config import DataSettings
from deepcluster.errors import NoImagesError, SourceError
from deepcluster.images.decode import Square, Wanted, look, quiet_pillow, square, squares
from deepcluster.images.grey import (
    Pixels,
    Range,
    Sampled,
    depth,
    find_range,
    misfits,
    said,
    said_of_misfits,
)
from deepcluster.images.kept import Kept
from deepcluster.images.listing import SAMPLE, Labels, Listing, Look, PassedOver, Raw, add_up
from deepcluster.images.resize import resize
from deepcluster.images.sinks import (
    FileSink,
    MemorySink,
    free_cores,
    free_memory,
    pixel_digest,
    read_ahead,
)
from deepcluster.images.sources import NAMED, list_source, pixels_folder
from deepcluster.progress import counted

__all__ = [
    "NAMED",
    "ImageStore",
    "NoImagesError",
    "Scan",
    "SourceError",
    "auto_size",
    "list_source",
    "open_images",
    "scan_images",
]

CHUNK = 256  # images decoded between two looks at the clock: bounds memory and the progress step
PIECE = 16  # images a thread takes at a time
FEW = 8  # images that are decoded to judge whether there is colour
SAMPLE_PIXELS = 2**28  # of images of more than 8 bits, decoded to find their range


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
    remarks: list[str] = field(default_factory=list)
    """What was passed over and how the images are shown, in sentences."""
    side: int = 0
    """Median of the images' shorter sides in pixels; 0 where the sample has none."""

    def __str__(self) -> str:
        where = "in memory" if self.in_memory else "in a memory-mapped file"
        return (
            f"{self.name}: {counted(self.count, 'image')}, training side {self.size} pixels, at "
            f"most {_bytes(self.bytes_needed)} {where}"
        )


@dataclass(repr=False)
class ImageStore:
    """Decoded images, all of one size, in a fixed order: what :func:`open_images` gives.

    ``len(store)`` is their number n, ``store[i]`` one image, ``(s, s, c)`` uint8.
    """

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
    passed_over: list[PassedOver] = field(default_factory=list)
    """What lies in the source and is no image of it, by kind."""
    range: Range | Literal["auto", "full"] = "auto"
    """The range of grey values that is shown as 0 to 255: "auto" if no image has more than 8 bits,
    so that none was needed, else that of the settings' ``data.range``."""
    places: npt.NDArray[np.int64] | None = None
    """``(n,)``, the place of each image among all that were listed; None: all of them are here."""
    listed: int | None = None
    """How many were listed, those that were left out among them; None: as many as are here."""
    remarks: list[str] = field(default_factory=list)
    """What was passed over and how the images are shown, in sentences."""
    digest: str | None = field(default=None, repr=False)
    """The hash of the pixels, if it was taken while they were decoded."""
    contents: npt.NDArray[np.uint64] | None = None
    """``(n,)``, a number that tells each image by what is in it (:mod:`.content`)."""

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
        read_ahead(self.pixels, indices)
        return np.asarray(self.pixels[indices])

    def at(self, side: int) -> ImageStore:
        """The same images at a smaller side in pixels; these, if they are no larger."""
        if self.pixels.shape[1] <= side:
            return self
        pixels = np.empty((len(self), side, side, self.channels), np.uint8)
        for a in range(0, len(self), CHUNK):
            pixels[a : a + CHUNK] = resize(np.array(self.pixels[a : a + CHUNK]), (side, side))
        return dataclasses.replace(self, pixels=pixels, size=side, digest=None)

    def only(self, rows: npt.NDArray[np.integer[Any]]) -> ImageStore:
        """A store of some of the images, in the order of `rows` ``(m,)``."""
        return dataclasses.replace(
            self,
            pixels=self.pixels[rows],
            ids=[self.ids[i] for i in rows],
            paths=[self.paths[i] for i in rows],
            labels=None if self.labels is None else self.labels[rows],
            contents=None if self.contents is None else self.contents[rows],
            places=None if self.places is None else self.places[rows],
            digest=None,
        )

    def rows(self, values: npt.NDArray[Any], empty: Any) -> npt.NDArray[Any]:
        """A row for each image that was listed, from `values` ``(n, …)``, a row for each here.

        Args:
            values: in the order of the images here.
            empty: what stands in the rows of those that were left out.
        """
        if self.places is None or self.listed is None:
            return values
        return one_row_each(values, self.places, self.listed, empty)

    def fingerprint(self) -> str:
        """A hash of ids, shape and pixels: whether another store holds the same images."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps([self.ids, list(self.pixels.shape)]).encode())
        digest.update((self.digest or pixel_digest(self.pixels)).encode())
        return digest.hexdigest()


def one_row_each(
    values: npt.NDArray[Any], places: npt.NDArray[np.int64], count: int, empty: Any
) -> npt.NDArray[Any]:
    """`values` ``(n, …)`` at their `places` ``(n,)`` among `count` rows, the others `empty`."""
    if len(values) == count:
        return values
    result = np.full((count, *values.shape[1:]), empty, values.dtype)
    result[places] = values
    return result


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
        source: as for :func:`open_images`; a :class:`Listing` is not listed again.
        data: how images are to be kept.
        size: training side in pixels, or auto.
        labels: as for :func:`open_images`; only checked here.

    Raises:
        SourceError: the source or its labels cannot be opened.
        NoImagesError: there is no image in it.
    """
    found = list_source(source, labels)
    seen = _look(found, data)
    scan = _scan(found, seen, data, size)
    if data.channels == "rgb":
        return scan
    wanted = Wanted(16, data.channels, _range(data, seen), data.fit)
    with quiet_pillow():
        few = [square(raw, wanted) for raw in itertools.islice(found.sample(FEW), FEW)]
    colour = any(one.pixels.shape[2] == 3 for one in few if isinstance(one, Square))
    return dataclasses.replace(scan, channels=3 if colour else 1)


def open_images(
    source: Any,
    *,
    data: DataSettings = DataSettings(),  # noqa: B008 (frozen)
    size: int | Literal["auto"] = "auto",
    labels: Labels | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    keep: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ImageStore:
    """Decode all images of a source.

    Args:
        source: one of

            - a folder of images, flat or nested, in any format that Pillow reads (HEIC with
              ``pip install 'deepcluster[heif]'``); ids are the paths relative to it. Hidden files
              are ignored; what is no image by its name or, under an unknown name, by its first
              bytes, is passed over and counted;
            - an image file, or a list of image files and of folders;
            - a ``.txt`` file of such paths, one a line, relative to it;
            - a Parquet file in the Hugging Face layout (a struct column ``{bytes, path}``) or with
              a column of encoded images, a list of them, or a folder of shards; its column
              ``label`` becomes the labels;
            - a ``.npy`` or ``.npz`` file of an array of images (``x``, ``images``, …) and perhaps
              labels (``y``, ``labels``, …);
            - a name of :data:`NAMED`, such as ``mnist`` or ``mnist:test``: the train split (of
              stl10 train+unlabeled) is downloaded if it is not in the cache folder yet. A file or
              folder of that name comes first;
            - an array or a tensor ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)`` with c = 1, 3
              or 4, of whole numbers, floats or bool; a list of arrays or of Pillow images of any
              size; a column of pandas, polars or Arrow; or a data set with ``__len__`` and
              ``__getitem__ -> image``, ``(image, target)`` or a dict with an image, whose targets
              are ignored, and perhaps ``ids``;
            - a :class:`Listing`, from :func:`list_source`.
        data: how images are to be kept.
        size: training side in pixels; auto follows from the images (:func:`auto_size`).
        labels: ``"folders"`` takes an image's folder for its label; the path of a CSV file with the
            columns ``path`` and ``label``; or a label for each image in the order of the source.
            None keeps those the source has.
        cache_dir: folder for the memory-mapped file if the images do not fit in memory; by default
            one in the user's cache folder.
        keep: keep decoded files in the user's cache folder, so that whoever opens them again as
            they are need not decode them (:mod:`deepcluster.images.kept`).
        progress: called with (images done, images in all).

    Returns:
        The images, ``(n, s, s, c)`` uint8 in ``pixels``, with their ids, paths and labels, and what
        was left out.

    Raises:
        SourceError: the source or its labels cannot be opened.
        NoImagesError: there is no usable image in it.
    """
    found = list_source(source, labels)
    seen = _look(found, data)
    scan = _scan(found, seen, data, size)
    side = round(scan.size * data.margin)
    wanted = Wanted(side, data.channels, _range(data, seen), data.fit, data.interpolation)
    sink: MemorySink | FileSink
    if scan.in_memory:
        sink = MemorySink(scan.count, side)
    else:
        folder = Path(cache_dir) if cache_dir is not None else pixels_folder()
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < scan.bytes_needed:
            raise SourceError(
                f"the decoded images need up to {_bytes(scan.bytes_needed)} in {folder}, where "
                f"{_bytes(free)} are free: free some, choose a smaller size, or set "
                "DEEPCLUSTER_CACHE to a folder on a larger disk"
            )
        sink = FileSink(folder, side)
    if data.channels == "rgb":
        sink.widen()

    before = Kept(found.name, found.paths, wanted, keep=keep)
    kept: list[int] = []
    contents: list[int] = []
    skipped = list(found.skipped)
    tally = _Tally()
    workers = free_cores() if data.workers == "auto" else max(1, data.workers)
    with quiet_pillow(), closing(before), _Pool(workers) as pool:

        def begun() -> Iterator[tuple[list[Square | None], Iterator[Square | str]]]:
            """For each chunk what an earlier fit has left, and the others, which are on their way.

            Where the store has three channels nothing needs to look for colour any more.
            """
            start = 0
            for chunk in _chunks(found.pictures(), CHUNK):
                colour = dataclasses.replace(wanted, channels="rgb")
                earlier = [before.get(place) for place in range(start, start + len(chunk))]
                raws = [raw for (_, raw), one in zip(chunk, earlier, strict=True) if one is None]
                pieces = [raws[i : i + PIECE] for i in range(0, len(raws), PIECE)]
                how = itertools.repeat(colour if sink.channels == 3 else wanted)
                yield earlier, itertools.chain.from_iterable(pool.map(squares, pieces, how))
                start += len(chunk)

        done = 0
        for earlier, made in _one_ahead(begun()):  # workers go on while one chunk is put away
            good: list[Pixels] = []
            for place, old in enumerate(earlier, done):
                one = next(made) if old is None else old
                if isinstance(one, str):
                    skipped.append((found.paths[place] or found.ids[place], one))
                else:
                    kept.append(place)
                    good.append(one.pixels)
                    contents.append(one.content)
                    tally.add(one)
                    if old is None:
                        before.add(place, one)
            if any(one.shape[2] > sink.channels for one in good):
                sink.widen()
            sink.append(good)
            done += len(earlier)
            if progress is not None:
                progress(done, scan.count)
    if not kept:
        path, why = skipped[0]
        raise NoImagesError(
            f"no usable image in {found.name}: none of {scan.count:,} could be used, the first, "
            f"{path}, because: {why}"
        )
    known = found.labels is not None and bool((found.labels[kept] >= 0).any())
    passed_over = found.passed_over
    if tally.pages:
        cure = "split the files into one page each"
        passed_over = add_up([*passed_over, PassedOver("further page of TIFFs", tally.pages, cure)])
    pixels, digest = sink.finish()
    if keep:
        before.save(pixels, kept)
    return ImageStore(
        name=found.name,
        pixels=pixels,
        size=scan.size,
        ids=[found.ids[i] for i in kept],
        paths=[found.paths[i] for i in kept],
        labels=found.labels[kept] if found.labels is not None and known else None,
        label_names=found.label_names if known else [],
        skipped=skipped,
        passed_over=passed_over,
        range=_range(data, seen) or data.range,
        places=np.array(kept, np.int64),
        listed=len(found),
        remarks=_remarks(data, seen, passed_over, tally, len(kept)),
        digest=digest,
        contents=np.array(contents, np.uint64),
    )


# -- what is seen and said of the images ------------------------------------------------------


@dataclass
class _Tally:
    """What is counted while images are decoded."""

    pages: int = 0
    far: int = 0
    outside: int = 0
    own_range: int = 0

    def add(self, one: Square) -> None:
        self.pages += one.pages
        self.far += one.far_from_square
        self.outside += one.outside
        self.own_range += one.own_range


def _look(found: Listing, data: DataSettings) -> Look:
    """What a sample shows; looked at once for each listing."""
    deep = data.range == "auto"
    if deep not in found.looks:
        sizes: list[tuple[int, int]] = []
        values: list[Sampled] = []
        with quiet_pillow():
            for i, raw in enumerate(itertools.islice(found.sample(SAMPLE), SAMPLE)):
                # of large images a few are enough, and 256 would take minutes
                often = SAMPLE * math.prod(sizes[-1]) // SAMPLE_PIXELS if sizes else 0
                one = look(raw, deep=deep and (not values or i % max(1, often) == 0))
                if one is not None:
                    sizes.append(one[0])
                    values += [one[1]] if one[1] is not None else []
        scale = find_range(values) if values else None
        found.looks[deep] = Look(
            short_side=round(statistics.median(min(size) for size in sizes)) if sizes else None,
            far_from_square=statistics.fmean(max(s) > 2 * min(s) for s in sizes) if sizes else 0.0,
            range=scale,
            depth=depth(values),
            mixed=len({one.whole for one in values}) > 1,
            misfits=misfits(values, scale) if scale is not None else None,
        )
    return found.looks[deep]


def _range(data: DataSettings, seen: Look) -> Any:
    """The range that images are decoded with; None if the sample has none that need one."""
    return seen.range if data.range == "auto" else data.range


def _remarks(
    data: DataSettings,
    seen: Look,
    passed_over: list[PassedOver],
    tally: _Tally | None = None,
    count: int = 0,
) -> list[str]:
    """What a person should know of how the images are shown and of what is not among them."""
    sentences = []
    wanted = [f"{one.count:,} × {one.kind} ({one.cure})" for one in passed_over if one.cure]
    if wanted:
        others = sum(one.count for one in passed_over if not one.cure)
        more = f", and {counted(others, 'other file')}" if others else ""
        sentences.append(f"passed over: {', '.join(wanted)}{more}")
    if data.range == "auto" and seen.range is not None and (seen.range != "full" or seen.mixed):
        sentences.append(said(seen.range, seen.depth))
    found = seen.misfits if data.range == "auto" else None
    if found is not None:
        sentences += said_of_misfits(found)
    if tally is not None and tally.outside and not (found and found.beyond):
        sentences.append(
            f"{tally.outside:,} of {count:,} images lie for the most part outside the range of "
            "grey values: give another one with --data.range LOW HIGH"
        )
    if tally is not None and tally.own_range:
        sentences.append(
            f"of more than 8 bits among others of 8: {counted(tally.own_range, 'image')}, each "
            "shown by its own range: give one for all with --data.range LOW HIGH"
        )
    far = seen.far_from_square if tally is None else tally.far / count
    if far > 0.1 and data.fit == "crop":
        number = f"{tally.far:,} of {count:,}" if tally is not None else f"{100 * far:.0f} % of the"
        sentences.append(
            f"{number} images are more than twice as long as wide, and lose more than half to the "
            "square in their middle: --data.fit pad keeps all of them"
        )
    return sentences


def _scan(found: Listing, seen: Look, data: DataSettings, size: int | Literal["auto"]) -> Scan:
    if size == "auto":
        short = seen.short_side
        if short is None:  # only bad ones in the sample: take the first that is good, if any
            with quiet_pillow():
                each = (look(raw, deep=False) for _, raw in found.pictures())
                short = next((min(one[0]) for one in each if one), 1)
        size = auto_size(short)
    if size < 1 or round(size * data.margin) < 1:
        raise SourceError(f"size {size} with margin {data.margin} leaves no pixel to train on")
    side = round(size * data.margin)
    needed = len(found.ids) * side * side * (1 if data.channels == "grey" else 3)
    limit = free_memory() / 3 if data.memory_gb == "auto" else data.memory_gb * 1e9
    return Scan(
        found.name,
        len(found.ids),
        size,
        needed,
        needed <= limit,
        side=seen.short_side or 0,
        remarks=_remarks(data, seen, found.passed_over),
    )


def _chunks(items: Iterator[tuple[str, Raw]], size: int) -> Iterator[list[tuple[str, Raw]]]:
    chunk: list[tuple[str, Raw]] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


T = TypeVar("T")


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same, each once the next one is there as well."""
    waiting = list(itertools.islice(items, 1))
    for item in items:
        yield waiting.pop()
        waiting.append(item)
    yield from waiting


class _Pool(ThreadPoolExecutor):
    """Threads that do nothing more, once they are left early."""

    def __exit__(self, *error: object) -> None:
        self.shutdown(cancel_futures=True)


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
