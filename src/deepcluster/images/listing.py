"""A source as a list: what every kind of source becomes before anything is decoded.

What is read is a path, encoded bytes, an image or an array (:data:`Raw`); to decode it is the work
of :mod:`deepcluster.images.decode`. An image that cannot be read is no end of the reading: its
place is taken by the exception that says why.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from deepcluster.errors import UnusableError

MAX_PIXELS = 178_956_970
"""Images with more pixels are skipped as decompression bombs; Pillow, too, refuses them."""

SAMPLE = 256  # images whose size is looked at to choose the training side

Labels = str | os.PathLike[str] | Sequence[Any] | npt.NDArray[Any]

# What a source yields for an image: where to read it, or its encoded bytes, or itself, or why not.
Raw = Path | bytes | Image.Image | npt.NDArray[Any] | Exception


@dataclass
class Listing:
    """A source, listed once and not decoded yet."""

    name: str
    ids: list[str]
    paths: list[str | None]
    read: Callable[[], Iterator[Raw]]  # all images, in the order of the ids
    sample: Callable[[], Iterator[Raw]]  # some, spread evenly
    labels: npt.NDArray[np.int64] | None = None
    label_names: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = re.sub(r"[^\w.-]+", "-", self.name).strip("-.") or "images"
        self.ids = unique([unicodedata.normalize("NFC", printable(i)) for i in self.ids])


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
    taken, seen, unique = set(names), set[str](), []
    for name in names:
        number, candidate = 1, name
        while candidate in seen or (number > 1 and candidate in taken):
            number += 1
            candidate = f"{name}#{number}"
        seen.add(candidate)
        unique.append(candidate)
    return unique


def printable(text: str) -> str:
    """Text that can be written as UTF-8 (a file's name on Linux need not be)."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers below `count`, spread evenly."""
    return [i * count // min(count, most) for i in range(min(count, most))]
