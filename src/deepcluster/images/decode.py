"""One image, whatever it is read from -> a uint8 square.

The centre square of an image, resized with an antialiasing bicubic filter, which is what "resize
the shorter side, crop the centre" comes to; or the whole image, padded to a square with its mean
colour. Transparent pixels are put on white, an EXIF orientation is applied, of an animation the
first frame counts. More than 8 bits are brought to 8 by the range of the source
(:mod:`deepcluster.images.grey`).

Pillow hands out 16-bit colour by its high bytes alone. The low ones are had by telling its decoder
that the file's bytes lie the other way round, and decoding it again.

Long, because an image takes one way to a square, whatever it is read from.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepcluster.errors import UnusableError
from deepcluster.images.content import content_of
from deepcluster.images.formats import formats, heif_cure, without_text
from deepcluster.images.grey import (
    BLOCK,
    Pixels,
    Range,
    Sampled,
    find_range,
    full_range,
    mostly_outside,
    sample_values,
    shown,
)
from deepcluster.images.listing import MAX_PIXELS, Raw, reason
from deepcluster.images.resize import resize

GIANT = 2**25  # pixels; images with more are decoded one at a time
TOGETHER = 2**22  # bytes of images of one shape that are resized in one call
READ_ONCE = 2**24  # bytes; smaller files are in memory for the decoder and for the hash
_QUIET = threading.Lock()
_quiet: list[Any] = []  # who wants libtiff to say nothing
_handlers: list[Any] = []  # and what it had before, with what puts it back
_ONE_GIANT = threading.Lock()


@dataclass(frozen=True)
class Wanted:
    """How images are wanted."""

    side: int
    channels: str = "auto"
    range: Range | str | None = None
    """(low, high), "full", or None: each image's own, where the sample had none of its kind."""
    fit: Literal["crop", "pad"] = "crop"
    interpolation: str = "bicubic"

    @property
    def filter(self) -> Image.Resampling:
        """Pillow's name of the interpolation."""
        return Image.Resampling[self.interpolation.upper()]


@dataclass
class Square:
    """An image as it is kept, and what is to be said of it."""

    pixels: Pixels  # (side, side, 1 or 3); of any size until it is resized
    pages: int = 0  # of a TIFF beyond the first
    far_from_square: bool = False  # more than twice as long as wide
    outside: bool = False  # most of its grey values lie beyond the range
    own_range: bool = False  # there was no range, so it got its own
    content: int = 0  # tells the image by what is in it


Strips = Callable[[], Iterator[npt.NDArray[Any]]]


@dataclass(frozen=True)
class _Deep:
    """An image of more than 8 bits: a way to its values, strip by strip from the top."""

    strips: Strips  # (rows, w) or (rows, w, 3)
    shape: tuple[int, ...]
    whole: bool
    bits: int
    alpha: Pixels | None = None
    array: bool = False  # of a type that is wider than its numbers, as arrays often are

    def sampled(self) -> Sampled | None:
        return sample_values(self.strips(), self.shape, array=self.array)


class quiet_pillow(warnings.catch_warnings):
    """Pillow's warnings off: what they warn of is checked here, for each file.

    Bombs are skipped by :data:`MAX_PIXELS`; a broken EXIF block or odd palette is of no harm. What
    libtiff writes to stderr by itself names no file and is off as well: a file that it cannot read
    is listed with the reason. libtiff has one handler a process: the last thread to leave puts it
    back.
    """

    def __enter__(self) -> None:
        """Turn them off."""
        super().__enter__()
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with _QUIET:
            if not _quiet:
                _handlers.extend((put, put(None)) for put in _libtiff_handlers())
            _quiet.append(self)

    def __exit__(self, *error: Any) -> None:
        """Turn them on again."""
        with _QUIET:
            _quiet.remove(self)
            while _handlers and not _quiet:
                put, before = _handlers.pop()
                put(before)
        super().__exit__(*error)


@functools.cache
def _libtiff_handlers() -> list[Callable[[int | None], int | None]]:
    """Functions that put another handler of errors and of warnings into Pillow's libtiff.

    Empty where Pillow was built with libtiff inside and does not show them.
    """
    try:
        # finds the names of what it is linked with as well
        library = ctypes.CDLL(Image.core.__file__)  # type: ignore[attr-defined]
        found = [library.TIFFSetErrorHandler, library.TIFFSetWarningHandler]
    except (OSError, AttributeError):
        return []
    for put in found:
        put.argtypes, put.restype = [ctypes.c_void_p], ctypes.c_void_p
    return found  # type: ignore[return-value]


def squares(raws: Sequence[Raw], wanted: Wanted) -> list[Square | str]:
    """A square for each image, or why there is none."""
    found: list[Square | str] = []
    alike: dict[tuple[int, ...], list[int]] = {}  # shape -> places of images of it in `found`
    for raw in raws:
        try:
            if isinstance(raw, Path) and _size_of(raw) <= READ_ONCE:
                raw = raw.read_bytes()
            one = _decoded(raw, wanted)
            assert not isinstance(raw, Exception)  # it was raised
            one.content = content_of(raw)
        except Exception as error:  # a broken file can make Pillow raise almost anything
            found.append(heif_cure(raw) or reason(error))
            continue
        shape = one.pixels.shape
        places = alike.setdefault(shape, [])
        places.append(len(found))
        found.append(one)
        if len(places) * one.pixels.nbytes >= TOGETHER:
            _fit(found, alike.pop(shape), wanted)
    for places in alike.values():
        _fit(found, places, wanted)
    return found


def square(raw: Raw, wanted: Wanted) -> Square | str:
    """A square of an image, or why there is none."""
    return squares([raw], wanted)[0]


def look(raw: Raw, *, deep: bool) -> tuple[tuple[int, int], Sampled | None] | None:
    """Width and height of an image and, with `deep`, its values if they have more than 8 bits.

    None if it cannot be opened: it will be skipped, with the reason, when it is decoded.
    """
    try:
        match raw:
            case Exception():
                return None
            case np.ndarray():
                found = _deep_array(raw)
                return (raw.shape[1], raw.shape[0]), found.sampled() if deep and found else None
            case Image.Image():
                found = _deep_image(raw)
                return raw.size, found.sampled() if deep and found else None
            case _:
                with opened(raw) as image:
                    found = _deep_file(image, raw) if deep else None
                    return image.size, found.sampled() if found else None
    except Exception:
        return None


def _decoded(raw: Raw, wanted: Wanted) -> Square:
    """An image of the size it has."""
    match raw:
        case Exception():
            raise raw
        case np.ndarray():
            found = _deep_array(raw)
            return _finish(found or _from_array(raw), None, wanted)
        case Image.Image():
            return _finish(_deep_image(raw) or _plain(raw), _turn(raw), wanted)
        case _:
            try:
                return _from_file(raw, wanted)
            except Exception:
                slim = without_text(raw)
                if slim is None:
                    raise
                return _from_file(slim, wanted)


def _from_file(raw: Path | bytes, wanted: Wanted) -> Square:
    with opened(raw) as image, contextlib.ExitStack() as stack:
        if image.width * image.height > GIANT:
            stack.enter_context(_ONE_GIANT)
        # A JPEG decoder can halve an image on the way, once or more, down to the side wanted at
        # least: half the time, and as different as another filter would make it.
        image.draft(None, (wanted.side, wanted.side))
        found = _deep_file(image, raw)
        image.load()
        return _finish(found or _plain(image), _turn(image), wanted, _further_pages(image))


def _finish(
    found: _Deep | Image.Image, turn: Image.Transpose | None, wanted: Wanted, pages: int = 0
) -> Square:
    outside = own = False
    if isinstance(found, _Deep):
        scale, own = _scale(found, wanted.range)
        image, pixels = _in_eight_bits(found, scale)
        if not pixels.any() and not any(np.isfinite(rows).any() for rows in found.strips()):
            raise UnusableError("none of its values is a number")
        at_an_end = np.count_nonzero((pixels == 0) | (pixels == 255))
        if not own and at_an_end > pixels.size / 2:
            outside = mostly_outside(found.strips(), scale)
    else:
        image = found
    if turn is not None:
        image = image.transpose(turn)
    far = max(image.size) > 2 * min(image.size)
    return Square(_cut(image, wanted), pages, far, outside, own)


def _in_eight_bits(found: _Deep, scale: Range) -> tuple[Image.Image, Pixels]:
    """An image of more than 8 bits in a range, and its values without the alpha."""
    pixels = shown(found.strips(), found.shape, scale)
    layers = pixels if found.alpha is None else np.dstack([pixels, found.alpha])
    return Image.fromarray(layers), pixels


def upright(path: Path) -> Image.Image:
    """The whole image of a file, in mode L, LA, RGB or RGBA; more than 8 bits in its own range.

    Raises:
        Exception: almost any, of a broken file; :func:`deepcluster.images.listing.reason` says it.
    """
    with opened(path) as image:
        found = _deep_file(image, path)
        image.load()
        turn = _turn(image)
        if found is None:
            whole = _plain(image)
        else:
            whole, _ = _in_eight_bits(found, _scale(found, None)[0])
        return whole.copy() if turn is None else whole.transpose(turn)


def _scale(found: _Deep, given: Range | str | None) -> tuple[Range, bool]:
    """The range of an image, and whether it is its own."""
    own = given is None
    if own:
        sampled = found.sampled()
        if sampled is None:
            raise UnusableError("none of its values is a number")
        given = find_range([sampled])
    return full_range(found.whole, found.array) if given == "full" else cast(Range, given), own


def _cut(image: Image.Image, wanted: Wanted) -> Pixels:
    """What is wanted of an upright image in mode L, LA, RGB or RGBA, on white."""
    if wanted.channels == "grey" and image.mode in ("RGB", "RGBA"):
        image = image.convert("L" if image.mode == "RGB" else "LA")
    width, height = (min(image.size),) * 2 if wanted.fit == "crop" else image.size
    left, top = (image.width - width) // 2, (image.height - height) // 2
    if image.mode in ("LA", "RGBA"):  # Pillow weighs colours by their alpha
        box = (left, top, left + width, top + height)
        image = image.resize(_size(width, height, wanted.side), wanted.filter, box)
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
        image = image.convert("L" if wanted.channels == "grey" else "RGB")
        (width, height), left, top = image.size, 0, 0
    whole = np.asarray(image).reshape(image.height, image.width, -1)
    return np.array(whole[top : top + height, left : left + width])


def _size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of the same image within a square."""
    long = max(width, height)
    return max(1, round(width * side / long)), max(1, round(height * side / long))


def _fit(found: list[Square | str], places: list[int], wanted: Wanted) -> None:
    """Images of one shape become squares: one call resizes them in half the time."""
    alike = [one for one in map(found.__getitem__, places) if isinstance(one, Square)]
    pixels = [one.pixels for one in alike]
    height, width, channels = pixels[0].shape
    size = _size(width, height, wanted.side)
    try:
        together = np.stack(pixels) if len(pixels) > 1 else pixels[0][None]
        resized = resize(together, size, wanted.interpolation)
    except (MemoryError, RuntimeError):  # torch's own of a full memory is the second one
        if len(places) > 1:
            for place in places:
                _fit(found, [place], wanted)
        else:
            found[places[0]] = reason(MemoryError())
        return
    for one, made in zip(alike, resized, strict=True):
        whole = made if size[0] == size[1] else _padded(made, wanted.side)
        grey = wanted.channels == "auto" and channels == 3 and (whole == whole[..., :1]).all()
        one.pixels = whole[..., :1] if grey else whole


def _padded(pixels: Pixels, side: int) -> Pixels:
    """An image in the middle of a square of its mean colour."""
    height, width, channels = pixels.shape
    canvas = np.empty((side, side, channels), np.uint8)
    canvas[:] = np.rint(pixels.mean((0, 1)))
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return canvas


# -- files ------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(raw: Path | bytes) -> Iterator[Image.Image]:
    """The image with its header read, its pixels not yet."""
    size = len(raw) if not isinstance(raw, Path) else _size_of(raw)
    if size == 0:
        raise UnusableError("empty")
    try:
        image = _open(raw)
    except Exception:
        slim = without_text(raw)
        if slim is None:
            raise
        image = _open(slim)
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise UnusableError(
                f"too large: {image.width:,} × {image.height:,} is more than {MAX_PIXELS:,} pixels"
            )
        yield image


def _size_of(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnusableError("not a regular file")  # a pipe would be waited for
    return status.st_size


def _open(raw: Path | bytes) -> Image.Image:
    return Image.open(raw if isinstance(raw, Path) else BytesIO(raw), formats=formats())


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


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # a broken EXIF block says nothing
        return None


def _further_pages(image: Image.Image) -> int:
    """Pages of a TIFF beyond the first (of an animation the first frame stands for all)."""
    try:
        return max(0, getattr(image, "n_frames", 1) - 1) if image.format == "TIFF" else 0
    except Exception:  # a damaged list of pages: the first has been read
        return 0


def _plain(image: Image.Image) -> Image.Image:
    """The image in mode L, LA, RGB or RGBA."""
    if "transparency" in image.info or image.mode in ("PA", "RGBa"):
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        return image.convert("RGB")
    return image


# -- more than 8 bits -------------------------------------------------------------------------


def _deep_file(image: Image.Image, raw: Path | bytes) -> _Deep | None:
    """An opened file of more than 8 bits, which is loaded then; None if it has but 8."""
    layout = _deep_layout(image)  # not known any more once it is loaded
    if layout is None:
        return _deep_image(image)
    image.load()
    return _deep_colour(image, raw, layout)


def _deep_image(image: Image.Image) -> _Deep | None:
    """A grey image of 16 or 32 bits or of floats; None if it is none."""
    if not image.mode.startswith(("I", "F")):
        return None
    image.load()
    width, height = image.size
    rows = max(1, BLOCK // width)

    def strips() -> Iterator[npt.NDArray[Any]]:
        for top in range(0, height, rows):
            yield np.asarray(image.crop((0, top, width, min(height, top + rows))))

    whole = image.mode != "F"
    return _Deep(strips, (height, width), whole, 16 if ";16" in image.mode else 32)


def _deep_layout(image: Image.Image) -> str | None:
    """How the bytes of a 16-bit colour file lie, in Pillow's words; None if it is none."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return None
    args = tiles[0][3]
    layout = args if isinstance(args, str) else args[0] if args else None
    if isinstance(layout, str) and layout.partition(";")[0] in ("RGB", "RGBA", "LA"):
        return layout if layout.endswith((";16B", ";16L", ";16N")) else None
    return None


def _deep_colour(image: Image.Image, raw: Path | bytes, layout: str) -> _Deep:
    """A loaded colour file of 16 bits, whose bytes lie in that way."""
    grey = layout.startswith("LA")
    with opened(raw) as other:
        order = layout[-1] if layout[-1] != "N" else sys.byteorder[0].upper()  # N is the machine's
        swapped = "RGBA" if grey else layout[:-1] + ("L" if order == "B" else "B")
        if grey:  # two bytes each of grey and alpha: as four channels of one
            other._mode = "RGBA"
        tiles: list[Any] = other.tile  # type: ignore[attr-defined]
        other.tile = [  # type: ignore[attr-defined]
            tile._replace(args=swapped if isinstance(tile.args, str) else (swapped, *tile.args[1:]))
            for tile in tiles
        ]
        other.load()
        width, height = other.size
        rows = max(1, BLOCK // (3 * width))
        low = other.copy()
    boxes = [(0, top, width, min(height, top + rows)) for top in range(0, height, rows)]

    def strips() -> Iterator[npt.NDArray[Any]]:
        for box in boxes:
            second = np.asarray(low.crop(box))
            if grey:
                yield (second[..., 0].astype(np.uint16) << 8) | second[..., 1]
            else:
                first = np.asarray(image.crop(box))
                yield (first[..., :3].astype(np.uint16) << 8) | second[..., :3]

    alpha = None
    if grey:
        alpha = np.asarray(low)[..., 2]
    elif layout.startswith("RGBA"):
        alpha = np.asarray(image)[..., 3]
    shape = (height, width) if grey else (height, width, 3)
    return _Deep(strips, shape, True, 16, alpha)


def _deep_array(array: npt.NDArray[Any]) -> _Deep | None:
    """An array ``(h, w)`` or ``(h, w, 1, 3 or 4)`` of more than 8 bits; None if it has but 8."""
    kind, bits = array.dtype.kind, 8 * array.dtype.itemsize
    if kind not in "buif":
        raise UnusableError(
            f"{array.dtype} is no type for pixels: give whole numbers, floats or bool"
        )
    if array.size == 0:
        raise UnusableError(f"an array of shape {array.shape} has no pixel")
    if kind == "b" or (kind == "u" and bits == 8):
        return None
    alpha = None
    if array.ndim == 3 and array.shape[2] == 4:
        top = 1.0 if kind == "f" else 65535.0 if bits == 16 else 255.0
        alpha = shown(iter([array[..., 3]]), array.shape[:2], (0.0, top))
        array = array[..., :3]
    elif array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    rows = max(1, BLOCK // max(1, array[0].size))

    def strips() -> Iterator[npt.NDArray[Any]]:
        return (array[top : top + rows] for top in range(0, len(array), rows))

    wider = kind == "i" or (kind == "u" and bits > 16)
    return _Deep(strips, array.shape, kind != "f", bits, alpha, wider)


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    """An image from an array of 8 bits or of bool."""
    if array.dtype.kind == "b":
        array = array.astype(np.uint8) * 255
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(array))
