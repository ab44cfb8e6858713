"""A number for what an image is, whatever it is called and wherever it lies.

It tells which images two runs have in common: of the encoded bytes where there are any, so that a
file that was moved, renamed or packed into Parquet keeps its number, whatever size it is trained
at; else of the values. An image that was saved again counts as another.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image


def content_of(raw: Path | bytes | Image.Image | npt.NDArray[Any]) -> int:
    """64 bits of BLAKE2 of an image, as a source yields it.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    match raw:
        case Path():
            with raw.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        case bytes():
            digest.update(raw)
        case Image.Image():
            digest.update(f"{raw.mode} {raw.size}".encode())
            digest.update(raw.tobytes())
        case _:
            values = raw[..., 0] if raw.ndim == 3 and raw.shape[2] == 1 else raw
            digest.update(f"{values.dtype.str} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
    return int.from_bytes(digest.digest(), "little")
