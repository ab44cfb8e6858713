"""A source as a list: what every kind of source becomes before anything is decoded.

What is read is a path, encoded bytes, an image or an array (:data:`Raw`); to decode it is the work
of :mod:`deepcluster.images.decode`. An image that cannot be read is no end of the reading: its
place is taken by the exception that says why. A reader says which place of the list each picture
belongs to, and :meth:`Listing.pictures` hands it on with its id: where a file has changed since it
was listed, pictures are missing, but none comes under another's id.
"""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from deepcluster.errors import SourceError, UnusableError
from deepcluster.files import SAVE_AS_UTF8, decode_text
from deepcluster.images.grey import Misfits

MAX_PIXELS = 178_956_970
"""Images with more pixels are skipped as decompression bombs; Pillow, too, refuses them."""

SAMPLE = 256  # images that are looked at before the others, to choose the training side and range

Labels = str | os.PathLike[str] | Sequence[Any] | npt.NDArray[Any]

# What a source yields for an image: where to read it, or its encoded bytes, or itself, or why not.
Raw = Path | bytes | Image.Image | npt.NDArray[Any] | Exception


@dataclass(frozen=True)
class PassedOver:
    """Files that lie in a source and are no images of it, of one kind."""

    kind: str
    """What they are: ``.heic``, ``run folder``, …"""
    count: int
    """How many."""
    cure: str = ""
    """What to do if they are wanted; empty for what is no picture."""


@dataclass(frozen=True)
class Look:
    """What a sample of the images shows."""

    short_side: int | None
    """Median of the shorter sides in pixels; None if none of them can be opened."""
    far_from_square: float
    """Share of those that are more than twice as long as wide, from 0 to 1."""
    range: tuple[float, float] | str | None
    """The range of grey values, where there are images of more than 8 bits
    (:func:`deepcluster.images.grey.find_range`)."""
    depth: str
    """What they are, in words: ``16 bits``; empty if there are none."""
    mixed: bool
    """Whether there are whole numbers and floats."""
    misfits: Misfits | None
    """Those of more than 8 bits that the range does not suit; None if there are none."""


@dataclass
class Listing:
    """A source, listed once and not decoded yet."""

    name: str
    """Short name of the source, usable in a folder name."""
    ids: list[str]
    """A name for each image, unique, and the same whenever the source is listed again."""
    paths: list[str | None]
    """The file of each image; None where an image is not a file of its own."""
    read: Callable[[], Iterator[tuple[int, Raw]]]
    """All images, each with its place in the ids, in their order."""
    sample: Callable[[int], Iterator[Raw]]
    """Up to so many of them, spread evenly."""
    labels: npt.NDArray[np.int64] | None = None
    """``(n,)``, -1 where unknown; None if there are none."""
    label_names: list[str] = field(default_factory=list)
    """Name of each label."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Images that cannot be had, known without decoding: (path, reason)."""
    passed_over: list[PassedOver] = field(default_factory=list)
    """What lies in the source and is no image of it."""
    tops: list[str] | None = None
    """For several folders: the first part of the ids, that of each folder."""
    looks: dict[bool, Look] = field(default_factory=dict, repr=False)
    """What was seen of it, so that nothing is opened twice (:mod:`deepcluster.images.store`)."""

    def __post_init__(self) -> None:
        self.name = re.sub(r"[^\w.-]+", "-", self.name).strip("-.") or "images"
        self.ids = unique([unicodedata.normalize("NFC", printable(i)) for i in self.ids])

    def __len__(self) -> int:
        return len(self.ids)

    def pictures(self) -> Iterator[tuple[str, Raw]]:
        """(id, picture) for every id, in their order.

        An image that is not there any more is an error in its place; what was added since is left.
        """
        expected = 0
        for place, raw in self.read():
            if place >= len(self.ids):
                break
            for gone in range(expected, place):
                yield self.ids[gone], UnusableError("not there any more")
            yield self.ids[place], raw
            expected = place + 1
        for gone in range(expected, len(self.ids)):
            yield self.ids[gone], UnusableError("not there any more")

    def only(self, places: Sequence[int]) -> Listing:
        """The listing of some of the images, in their order."""
        number = {place: i for i, place in enumerate(places)}
        last = max(places, default=-1)  # what lies behind it need not be read

        def read() -> Iterator[tuple[int, Raw]]:
            wanted = itertools.takewhile(lambda one: one[0] <= last, self.read())
            return ((number[place], raw) for place, raw in wanted if place in number)

        return Listing(
            self.name,
            [self.ids[i] for i in places],
            [self.paths[i] for i in places],
            read,
            self.sample,
            self.labels[list(places)] if self.labels is not None else None,
            self.label_names,
            self.skipped,
            self.passed_over,
        )


def add_up(found: Iterable[PassedOver]) -> list[PassedOver]:
    """One line a kind, those with a cure first, then the most frequent."""
    counts: Counter[tuple[str, str]] = Counter()
    for one in found:
        counts[one.kind, one.cure] += one.count
    order = sorted(counts.items(), key=lambda item: (not item[0][1], -item[1], item[0][0]))
    return [PassedOver(kind, count, cure) for (kind, cure), count in order]


def read_text(path: Path, meant: str = "") -> str:
    """The text of a file of a person's, UTF-8 or UTF-16.

    Args:
        path: the file.
        meant: what such a file holds, to end the sentence of a refusal.

    Raises:
        SourceError: it cannot be read, or is text in neither.
    """
    try:
        return decode_text(path.read_bytes())
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} {SAVE_AS_UTF8}{meant}") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Why an image (or a folder) is skipped, in words for a person."""
    match error:
        case UnusableError():
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


def unique(names: list[str]) -> list[str]:
    """The names, with #2, #3 … after those that came before."""
    if len(set(names)) == len(names):
        return names
    taken, seen, result = set(names), set[str](), []
    last: dict[str, int] = {}  # the number that a name was given last: a thousand alike stay fast
    for name in names:
        number, candidate = last.get(name, 1), name
        while candidate in seen or (number > 1 and candidate in taken):
            number += 1
            candidate = f"{name}#{number}"
        last[name] = number
        seen.add(candidate)
        result.append(candidate)
    return result


def printable(text: str) -> str:
    """Text that can be written as UTF-8 (a file's name on Linux need not be)."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers below `count`, spread evenly."""
    return [i * count // min(count, most) for i in range(min(count, most))]
