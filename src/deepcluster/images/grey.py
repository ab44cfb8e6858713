"""Grey values of more than 8 bits: one range for a whole source, found from its images.

A microscope keeps 12 bits in files of 16, a camera counts from 135 to 380, a satellite marks what
it has not seen by -9999: what a file's type could hold says little of what lies in it. One range is
found for all images of a source (a range an image would make brightness a matter of its brightest
spot) and shown as 0 to 255; what lies outside is shown as the nearest end, what is no number as
black. Images of 8 bits are left as they are.

The range is that of the values in a sample of up to 256 images, but for

- numbers that mark missing values: -9999, the ends of a type and the like, where they lie farther
  from all others than these are apart, and infinities and NaN;
- isolated pixels (hot ones, dead ones): those that the median of their 3 x 3 neighbourhood does not
  know, if they are fewer than one in a thousand. A bright spot of a few pixels is no such;
- a few images whose values would leave the others next to nothing (damaged files): one in fifty,
  in a sample of 20 images and more, if the others had less than a sixteenth of the range; one in
  ten, and at least one of three, if they had less than one of the 256 values.

So no picture is saturated for the sake of others but those few. Where it makes good use of a usual
range (a number of bits, 0 to 1, -1 to 1), that one is taken. Where one range does not serve all,
since some images have less than a sixteenth of it or lie beyond it, :func:`misfits` finds how many
and the range that would serve them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Range = tuple[float, float]
Pixels = npt.NDArray[np.uint8]

GRID = 96  # places in each direction at which an image of the sample is looked at
TRIM = 1e-3  # of all values at each end: so many may lie outside, where they are isolated
BLOCK = 2**20  # values that are scaled at a time
MARKS = {0.0, -999.0, -9999.0, -99999.0, -32767.0, -32768.0, 32767.0, 65535.0}  # of missing values
HUGE = 1e9  # so large a number that lies far from all others is a mark as well
LEAST = 16  # times the values of an image: a range so wide shows next to nothing of it
MANY_DIM = 0.1  # of the images: a share that is said
FEWEST = 16  # distinct values; pictures of fewer are drawings, and none of theirs is a mark


@dataclass(frozen=True)
class Sampled:
    """Values of one image at the places of a grid."""

    values: npt.NDArray[np.float64]  # (m,) finite
    calm: npt.NDArray[np.float64]  # (m,) medians of their neighbourhoods
    whole: bool  # numbers without fractions
    bits: int  # of the type
    array: bool  # of an array, not of a file


def sample_values(
    strips: Iterator[npt.NDArray[Any]], shape: tuple[int, ...], *, array: bool
) -> Sampled | None:
    """What lies in an image; None if nothing in it is a number.

    Args:
        strips: its rows, from the top, some at a time.
        shape: ``(h, w)`` or ``(h, w, c)``.
        array: whether it is an array of a type that is wider than 16 bits.
    """
    rows, columns = (
        np.arange((step := max(1, length // GRID)) // 2, length, step) for length in shape[:2]
    )
    needed = np.unique(np.clip(rows + np.array([[-1], [0], [1]]), 0, shape[0] - 1))
    taken, top = [], 0
    for strip in strips:
        taken.append(strip[needed[(needed >= top) & (needed < top + len(strip))] - top])
        top += len(strip)
    values = np.concatenate(taken)
    around = np.stack(
        [
            values[np.searchsorted(needed, np.clip(rows + dy, 0, shape[0] - 1))][
                :, np.clip(columns + dx, 0, shape[1] - 1)
            ]
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ]
    ).astype(np.float64)
    around[~np.isfinite(around)] = np.nan
    centre = around[4].ravel()
    around.sort(axis=0)  # NaN last
    middle = np.maximum((~np.isnan(around)).sum(axis=0) - 1, 0) // 2
    calm = np.take_along_axis(around, middle[None], 0)[0].ravel()
    good = ~np.isnan(centre)
    if not good.any():
        return None
    whole = values.dtype.kind in "ui"
    return Sampled(centre[good], calm[good], whole, 8 * values.dtype.itemsize, array)


def find_range(samples: Sequence[Sampled]) -> Range | Literal["full"]:
    """The range of a source, from values of its images.

    Returns:
        (low, high); "full" where that is what their type means anyway (:func:`full_range`), and
        for images of several types that have no common scale.
    """
    found = {kind: _find(own) for kind, own in _by_kind(samples).items()}
    if all(scale == full_range(*kind) for kind, scale in found.items()):
        return "full"
    spans = [high - low for low, high in found.values()]
    return _find(samples) if max(spans) < 16 * min(spans) else "full"


def _by_kind(samples: Sequence[Sampled]) -> dict[tuple[bool, bool], list[Sampled]]:
    kinds: dict[tuple[bool, bool], list[Sampled]] = {}
    for sample in samples:
        kinds.setdefault((sample.whole, sample.array and sample.whole), []).append(sample)
    return kinds


def _find(samples: Sequence[Sampled]) -> Range:
    first, last = _measured(np.concatenate([sample.values for sample in samples]))
    inside = [(one.values >= first) & (one.values <= last) for one in samples]
    values = [one.values[kept] for one, kept in zip(samples, inside, strict=True) if kept.any()]
    calm = [one.calm[kept] for one, kept in zip(samples, inside, strict=True) if kept.any()]
    # a neighbourhood of marks alone has one for its median
    calm = [np.clip(one, first, last) for one in calm]
    lows, highs = np.array([one.min() for one in calm]), np.array([one.max() for one in calm])
    kept = _without_odd_images(lows, highs)
    pool = np.sort(np.concatenate([values[i] for i in kept]))
    trim = int(TRIM * len(pool))
    low = min(float(lows[kept].min()), float(pool[trim]))
    high = max(float(highs[kept].max()), float(pool[len(pool) - 1 - trim]))
    whole = all(sample.whole for sample in samples)
    if whole and all(one.array for one in samples) and pool[0] >= 0 and pool[-1] <= 255:
        return 0.0, 255.0  # pictures of 8 bits in an array of a wider type
    return _usual(low, high, whole)


def _measured(pool: npt.NDArray[np.float64]) -> Range:
    """The smallest and the largest value that is no mark of a missing one."""
    distinct, counts = np.unique(pool, return_counts=True)
    until = np.cumsum(counts)  # values up to and with each distinct one
    first, last = 0, len(distinct) - 1

    def extent(start: int, end: int) -> float:
        """Of the values between, but for the trim at both ends."""
        before = int(until[start - 1]) if start else 0
        trim = int(TRIM * (int(until[end]) - before))
        ends = np.searchsorted(until, [before + trim, int(until[end]) - 1 - trim], "right")
        return float(distinct[ends[1]] - distinct[ends[0]])

    while last - first >= FEWEST:
        low, above = float(distinct[first]), float(distinct[first + 1])
        high, below = float(distinct[last]), float(distinct[last - 1])
        low_marks = low in MARKS or abs(low) >= HUGE or low < 0 <= above
        high_marks = high in MARKS or abs(high) >= HUGE
        inner = extent(first + 1, last - 1)
        if low_marks and above - low > extent(first + 1, last):
            first += 1
        elif high_marks and high - below > extent(first, last - 1):
            last -= 1
        elif low_marks and high_marks and min(above - low, high - below) > inner:
            first, last = first + 1, last - 1
        else:
            break
    return float(distinct[first]), float(distinct[last])


def _without_odd_images(
    lows: npt.NDArray[np.float64], highs: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Places of the images that have a say, by the lowest and highest value of each."""
    n = len(lows)
    kept, whole = np.arange(n), highs.max() - lows.min()
    fewest = math.ceil(n / 50) if n >= 20 else 0
    for count in range(1, max(fewest, math.ceil(n / 10)) + 1 if n >= 3 else 1):
        above = highs[kept].max() - np.median(highs)
        below = np.median(lows) - lows[kept].min()
        kept = np.delete(kept, highs[kept].argmax() if above >= below else lows[kept].argmin())
        span = highs[kept].max() - lows[kept].min()
        if span > 0 and whole > (LEAST if count <= fewest else 256) * span:
            return kept
    return np.arange(n)


@dataclass(frozen=True)
class Misfits:
    """Images of a sample that its range does not suit."""

    dim: int
    """How many have less than a sixteenth of the range."""
    beyond: int
    """How many lie beyond it for the most part."""
    count: int
    """How many there are in all."""
    dim_range: Range | None
    """The range of the dim ones."""
    whole_range: Range
    """One in which all of them lie."""


def misfits(samples: Sequence[Sampled], scale: Range | Literal["full"]) -> Misfits:
    """The images that a range, from :func:`find_range`, shows next to nothing of.

    Images of one value are none of them: no range shows more.
    """
    dim, beyond = [], 0
    for one in samples:
        low, high = full_range(one.whole, one.array and one.whole) if scale == "full" else scale
        inside = np.sort(one.calm[(one.calm >= low) & (one.calm <= high)])
        if len(inside) < len(one.calm) / 2:
            beyond += len(np.unique(one.calm)) > 1
            continue
        trim = int(TRIM * len(inside))
        extent = inside[len(inside) - 1 - trim] - inside[trim]
        if 0 < extent < (high - low) / LEAST:
            dim.append(one)
    lows, highs = zip(*(_measured(one.values) for one in samples), strict=True)
    whole = all(one.whole for one in samples)
    return Misfits(
        len(dim),
        beyond,
        len(samples),
        _find(dim) if dim else None,
        _usual(min(lows), max(highs), whole),
    )


def _usual(low: float, high: float, whole: bool) -> Range:
    """A usual range, if the values lie in it and make good use of it; else their own."""
    usual: list[tuple[float, float, float]]  # from, to, and how much of it must be made use of
    if whole:
        usual, over = [(0.0, 2.0**bits - 1, 0.5) for bits in range(8, 17)], 0.0
    else:  # a sharpened picture reaches a hair beyond
        usual = [(0.0, 1.0, 0.25), (-1.0, 1.0, 0.5), (0.0, 255.0, 0.5), (0.0, 65535.0, 0.5)]
        over = 0.05
    for start, end, use in usual:
        room = over * (end - start)
        if start - room <= low and high <= end + room:
            if high - low >= use * (end - start) or high == low:
                return start, end
            break
    if high == low:
        return low, low + 1
    rounded = float(f"{low:.6g}"), float(f"{high:.6g}")  # as it is said and written down
    return rounded if rounded[0] < rounded[1] else (low, high)


def depth(samples: Sequence[Sampled]) -> str:
    """What images of more than 8 bits are, in words."""
    bits = max((one.bits for one in samples if one.whole), default=0)
    words = [f"{bits} bits"] * (bits > 0) + ["floats"] * any(not one.whole for one in samples)
    return " and ".join(words)


def full_range(whole: bool, array: bool) -> Range:
    """What the values mean by convention.

    Args:
        whole: numbers without fractions.
        array: they come in an array of a type that is wider than 16 bits.

    Returns:
        0 to 1 for floats, 0 to 65535 for whole numbers, but 0 to 255 in arrays of a wider type.
    """
    if not whole:
        return 0.0, 1.0
    return (0.0, 255.0) if array else (0.0, 65535.0)


def shown(strips: Iterator[npt.NDArray[Any]], shape: tuple[int, ...], scale: Range) -> Pixels:
    """Values as 0 to 255: the low end of the range is 0, the high end 255.

    Args:
        strips: rows of the image, from the top; in strips, since a giant need not be there twice.
        shape: of the image.
        scale: the range.
    """
    low, high = scale
    pixels = np.empty(shape, np.uint8)
    top = 0
    for strip in strips:
        block = strip.astype(np.float64)
        lost = ~np.isfinite(block)
        with np.errstate(over="ignore", invalid="ignore"):  # of values at the end of float64
            block -= low
            block *= 255 / (high - low)
        block[lost] = 0
        np.clip(block, 0, 255, out=block)
        pixels[top : top + len(strip)] = np.rint(block, out=block)
        top += len(strip)
    return pixels


def mostly_outside(strips: Iterator[npt.NDArray[Any]], scale: Range) -> bool:
    """Whether more than half of an image lies beyond one end, at more than one value."""
    count, above, below = 0, [0, math.inf, -math.inf], [0, math.inf, -math.inf]
    for strip in strips:
        count += strip.size
        for beyond, side in ((strip > scale[1], above), (strip < scale[0], below)):
            values = strip[beyond & np.isfinite(strip)]
            if values.size:
                side[0] += values.size
                side[1] = min(side[1], float(values.min()))
                side[2] = max(side[2], float(values.max()))
    return any(side[0] > count / 2 and side[1] < side[2] for side in (above, below))


def said(scale: Range | str, depth: str) -> str:
    """The range in a sentence."""
    if scale == "full":
        return f"{depth}: whole numbers are shown by 0–65535, floats by 0–1, as 0–255"
    assert isinstance(scale, tuple)
    ends = (
        f"{scale[0]:.6g}–{scale[1]:.6g}" if scale[0] >= 0 else f"{scale[0]:.6g} to {scale[1]:.6g}"
    )
    return f"grey values {ends} of {depth} are shown as 0–255 (data.range)"


def said_of_misfits(found: Misfits) -> list[str]:
    """Sentences about the images that the range of a source does not suit, and what to type."""

    def typed(scale: Range) -> str:
        return f"--data.range {scale[0]:.6g} {scale[1]:.6g}"

    sentences = []
    if found.dim_range is not None and found.dim > MANY_DIM * found.count:
        sentences.append(
            f"{found.dim / found.count:.0%} of the images are dim: they have less than a sixteenth "
            f"of the range, and little of them is seen. {typed(found.dim_range)} shows these, and "
            "the others white; or fit the two kinds apart"
        )
    if found.beyond:
        sentences.append(
            f"{found.beyond:,} of {found.count:,} images that were looked at lie for the most part "
            "outside the range of grey values, which would leave the others next to nothing: look "
            f"whether they are damaged; {typed(found.whole_range)} shows them"
        )
    return sentences
