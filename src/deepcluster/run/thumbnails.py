"""Small pictures of all images, on sheets: a page that shows thousands opens few files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepcluster.errors import RunError
from deepcluster.files import CURE, check, reading, write_json
from deepcluster.run.checks import fits

SHEET_SIDE = 1024
"""Side of a full sheet of thumbnails in pixels (about; a whole number of tiles)."""


@dataclass(frozen=True)
class Thumbnails:
    """Sheets of small pictures, row by row."""

    tile: int  # side of a tile in pixels
    columns: int  # tiles in a row
    rows: int  # rows in a sheet
    count: int  # tiles in all
    sheets: list[Path]  # the WebP files, in order
    order: np.ndarray  # (count,) the item (its row in the table) that each tile shows

    @property
    def places(self) -> np.ndarray:
        """The tile that shows each item, ``(count,)`` int64."""
        return np.argsort(self.order)


def write_sheets(
    folder: Path,
    images: Sequence[np.ndarray] | np.ndarray,
    *,
    tile: int,
    order: np.ndarray | None = None,
) -> None:
    """Write WebP sheets of all images.

    Args:
        folder: where; there is none yet.
        images: n uint8 arrays ``(h, w, 1 or 3)``; an image larger than a tile is shrunk.
        tile: side of a tile in pixels.
        order: the image on each tile, a permutation of 0 … n - 1. Sorted by cluster and by
            distance, a page that shows one cluster opens few sheets. Default: as they come.
    """
    from PIL import Image

    order = np.arange(len(images)) if order is None else np.asarray(order)
    if not np.array_equal(np.sort(order), np.arange(len(images))):
        raise ValueError(f"order must hold each of the {len(images)} images once")
    folder.mkdir(exist_ok=True)
    side = max(1, SHEET_SIDE // tile)
    for number, start in enumerate(range(0, len(images), side * side)):
        shown = order[start : start + side * side]
        sheet = Image.new("RGB", (side * tile, -(-len(shown) // side) * tile))
        for i, item in enumerate(shown):
            pixels = np.asarray(images[int(item)])
            image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
            if image.width > tile or image.height > tile:
                image.thumbnail((tile, tile), Image.Resampling.LANCZOS)
            left, top = (tile - image.width) // 2, (tile - image.height) // 2
            sheet.paste(image, ((i % side) * tile + left, (i // side) * tile + top))
        sheet.save(folder / f"{number:04d}.webp", quality=80, method=2)
    np.save(folder / "order.npy", order.astype(np.uint32))
    write_json(
        folder / "index.json",
        {"tile": tile, "columns": side, "rows": side, "count": len(images)},
    )


def read_sheets(folder: Path) -> Thumbnails:
    """Where the sheets of a run's `folder` are and how they are laid out.

    Raises:
        RunError: there are none, or they are damaged.
    """
    index = folder / "index.json"
    if not index.is_file():
        raise RunError(
            f"{folder.parent} has no thumbnails: copy the whole run folder, or fit again"
        )
    with reading(index):
        facts = json.loads(index.read_bytes())
        whole = {"tile": int, "columns": int, "rows": int, "count": int}
        check(fits(facts, whole) and min(facts[k] for k in whole) > 0, "a number is missing")
        check(facts["columns"] * facts["rows"] < 10**8, "its sheets are too large")
    order = folder / "order.npy"
    with reading(order):
        found = np.load(order, allow_pickle=False)
        check(found.ndim == 1 and found.dtype.kind in "ui", "it is no list of numbers")
        check(len(found) == facts["count"], f"it has {len(found)} of {facts['count']} images")
        check(np.array_equal(np.sort(found), np.arange(len(found))), "it misses an image")
    sheets = sorted(folder.glob("[0-9]*.webp"))
    needed = -(-facts["count"] // (facts["columns"] * facts["rows"]))
    if len(sheets) != needed:
        raise RunError(f"{folder} holds {len(sheets)} of {needed} sheets: {CURE}")
    return Thumbnails(**{k: facts[k] for k in whole}, sheets=sheets, order=found)
