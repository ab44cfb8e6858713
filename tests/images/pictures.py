"""Small pictures and files of them, for the tests of the images' room."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepcluster.images.store import ImageStore


def picture(seed: int = 0, side: int | tuple[int, int] = 24, channels: int = 3) -> np.ndarray:
    """A smooth random picture, (h, w, c): photographs are smooth, and JPEG keeps them."""
    height, width = (side, side) if isinstance(side, int) else side
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))[..., :channels]


def save(path: Path, pixels: np.ndarray | None = None, mode: str | None = None, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.squeeze(picture() if pixels is None else pixels))
    (image.convert(mode) if mode else image).save(path, **how)
    return path


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(values: np.ndarray, *extra: bytes) -> bytes:
    """A PNG of 8 or 16 bits ``(h, w, c)``, c = 1 to 4, with these chunks before the pixels."""
    height, width, channels = values.shape
    bits, kind = 8 * values.dtype.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(values.dtype.newbyteorder(">")).tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", head),
            *extra,
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        )
    )


def tiff(values: np.ndarray, *, order: str = "<", packed: bool = False) -> bytes:
    """A TIFF of 16-bit colour ``(h, w, 3 or 4)``, which Pillow cannot write."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if packed else data
    tags = [(256, 4, width), (257, 4, height), (259, 3, 8 if packed else 1), (262, 3, 2)]
    tags += [(277, 3, channels), (278, 4, height), (279, 4, len(data))]
    tags += [(338, 3, 2)] if channels == 4 else []
    start = 10 + 12 * (len(tags) + 2) + 4
    entries = [(tag, kind, 1, value) for tag, kind, value in tags]
    entries += [(258, 3, channels, start), (273, 4, 1, start + 2 * channels)]
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    for tag, kind, count, value in sorted(entries):
        short = kind == 3 and tag != 258
        content = struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
        out += struct.pack(f"{order}HHI", tag, kind, count) + content
    return out + bytes(4) + struct.pack(f"{order}{channels}H", *[16] * channels) + data


def reasons(store: ImageStore) -> dict[str, str]:
    return {Path(path).name: reason for path, reason in store.skipped}


def write_npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path
