"""Images that are arrays, tensors, or the items of a data set."""

from __future__ import annotations

import math
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepcluster.errors import SourceError, UnusableError
from deepcluster.images.labels import encode
from deepcluster.images.listing import SAMPLE, Listing, Raw, spread

_IMAGE_KEYS = ("images", "image", "x", "x_train", "train_images", "data", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "y_train", "train_labels", "targets", "arr_1")


def from_npy(path: Path) -> Listing:
    try:
        if path.suffix.lower() == ".npy":
            return from_stack(path.stem, np.load(path, mmap_mode="r", allow_pickle=False))
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
            found = from_stack(path.stem, images)
            for key in _LABEL_KEYS:
                if key in lower and math.prod(shapes[lower[key]]) == len(images):
                    found.labels, found.label_names = encode(loaded[lower[key]].ravel())
                    break
            return found
    except SourceError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{path} cannot be read: {error}; expected arrays of numbers that np.load reads "
            "without pickle"
        ) from error


def from_stack(name: str, stack: npt.NDArray[Any], *, channels_first: bool = False) -> Listing:
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
            problem = unfit(stack[start : start + 4096])
            if problem:
                raise SourceError(f"{name} of shape {shape}: {problem}")

    return Listing(
        name,
        [str(i) for i in range(len(stack))],
        [None] * len(stack),
        lambda: iter(stack),
        lambda: iter(stack[:1]),
    )


def from_items(items: Any) -> Listing:
    """A list of images or a data set; what it does in ``__getitem__`` happens in this thread."""
    count = len(items)
    ids = [str(i) for i in getattr(items, "ids", range(count))]
    name = "images" if isinstance(items, list | tuple) else type(items).__name__.lower()
    if len(ids) != count:
        raise SourceError(f"{name} has {count} images and {len(ids)} ids")

    def some() -> Iterator[Raw]:
        return (_item(items, i) for i in spread(count, SAMPLE))

    return Listing(name, ids, [None] * count, lambda: (_item(items, i) for i in range(count)), some)


def _item(items: Any, index: int) -> Raw:
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
        array = tensor_values(item) if channels_first else np.asarray(item)
    except Exception as error:  # a data set that decodes can raise whatever Pillow does
        return error
    first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
    last = array.ndim == 3 and array.shape[2] in (1, 3, 4)
    if array.ndim != 2 and not first and not last:
        return UnusableError(
            f"an array of shape {array.shape} is no image: expected (h, w), (h, w, c) or (c, h, w)"
        )
    return np.moveaxis(array, 0, 2) if first and (channels_first or not last) else array


def tensor_values(tensor: Any) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu()
    # numpy has no bfloat16
    return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())


def unfit(array: npt.NDArray[Any]) -> str | None:
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
