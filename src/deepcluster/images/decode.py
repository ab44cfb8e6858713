"""One image, whatever it is read from -> a uint8 square."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepcluster.errors import UnusableError
from deepcluster.images.arrays import unfit
from deepcluster.images.content import content_of
from deepcluster.images.files import NOT_READ
from deepcluster.images.listing import MAX_PIXELS, Raw, reason

Pixels = npt.NDArray[np.uint8]


class quiet_pillow(warnings.catch_warnings):
    """Pillow's warnings off: what they warn of is checked here, for each file.

    Bombs are skipped by :data:`MAX_PIXELS`; a broken EXIF block or odd palette is of no harm.
    """

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def squares(raws: Sequence[Raw], side: int, channels: str) -> list[tuple[Pixels | str, int]]:
    """A square ``(side, side, 1 or 3)`` for each image, or why there is none; and its content."""
    return [_square_and_content(raw, side, channels) for raw in raws]


def _square_and_content(raw: Raw, side: int, channels: str) -> tuple[Pixels | str, int]:
    made = square(raw, side, channels)
    if isinstance(made, str) or isinstance(raw, Exception):
        return made, 0
    try:
        return made, content_of(raw)
    except OSError as error:  # gone since it was decoded
        return reason(error), 0


def square(raw: Raw, side: int, channels: str) -> Pixels | str:
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
            with opened(raw) as image:
                # a JPEG decoder can halve an image on the way; twice the side keeps it faithful
                image.draft(None, (2 * side, 2 * side))
                image.load()
                return _plain(image)


@contextlib.contextmanager
def opened(raw: Path | bytes) -> Iterator[Image.Image]:
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


def short_side(raw: Raw) -> int | None:
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
                with opened(raw) as image:
                    return min(image.size)
    except Exception:  # it will be skipped, with the reason, when it is decoded
        return None
