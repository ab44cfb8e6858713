"""Images that are arrays, tensors, columns of a table, or the items of a data set."""

from __future__ import annotations

import math
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from PIL import Image

from deepcluster.errors import SourceError, UnusableError
from deepcluster.images.labels import encode
from deepcluster.images.listing import Listing, PassedOver, Raw, add_up, reason, spread

_IMAGE_KEYS = ("images", "image", "x", "x_train", "train_images", "data", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "y_train", "train_labels", "targets", "arr_1")
PIECE = 4096  # images of a .npy file that are mapped at a time
# What data sets call the image in an item that is a dict, and tables in a column.
_ITEM_KEYS = [
    "image",
    "img",
    "pixel_values",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "tif",
    "tiff",
    "picture",
    "photo",
    "pixels",
    "images",
    "x",
    "data",
    "bytes",
]
_PATH_KEYS = ("path", "file", "filename", "file_name", "image_path")


# -- files of arrays --------------------------------------------------------------------------


def from_npy(path: Path) -> Listing:
    """The images (and labels) in a .npy or .npz file. Nothing is unpickled.

    Raises:
        SourceError: it holds none that can be told, or cannot be read.
    """
    try:
        if path.suffix.lower() == ".npy":
            found = from_stack(path.stem, _mapped(path))
            found.read = lambda: _by_pieces(path)
            return found
        return _from_npz(path)
    except SourceError:
        raise
    except OSError as error:
        why = reason(error) if error.errno else "it is damaged"
        raise SourceError(f"{path} cannot be read: {why}") from error
    except Exception as error:  # of a damaged file: zlib's, tokenize's, zipfile's, …
        raise SourceError(
            f"{path} cannot be read: it is empty, damaged or cut off, or holds Python objects; "
            "expected arrays of numbers that np.load reads without pickle"
        ) from error


def _mapped(path: Path) -> npt.NDArray[Any]:
    mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def _by_pieces(path: Path) -> Iterator[tuple[int, Raw]]:
    """All images of a .npy file, mapped anew for each piece: one that was read takes no memory."""
    for start in range(0, len(_mapped(path)), PIECE):
        yield from enumerate(_channels_last(_mapped(path))[start : start + PIECE], start)


def _from_npz(path: Path) -> Listing:
    """Of the arrays in the file only those that are wanted are unpacked."""
    with zipfile.ZipFile(path) as archive:
        members = _members(archive)
    lower = {key.lower(): key for key in members}
    stacks = [
        key
        for key, (shape, dtype) in members.items()
        if len(shape) in (3, 4) and not dtype.hasobject
    ]
    named = [lower[key] for key in _IMAGE_KEYS if lower.get(key) in stacks]
    if not named and len(stacks) != 1:
        if members and all(dtype.hasobject for _, dtype in members.values()):
            raise ValueError("it holds Python objects, not numbers")
        raise SourceError(
            f"{path} has no array of images that can be told by its name: found "
            + (", ".join(f"{key} {shape}" for key, (shape, _) in members.items()) or "nothing")
            + f"; expected one of {', '.join(_IMAGE_KEYS)} of shape (n, h, w[, c])"
        )
    with np.load(path, allow_pickle=False) as loaded:
        key = (named or stacks)[0]
        images = loaded[key]
        found = from_stack(path.stem, images)
        likely = [lower[name] for name in _LABEL_KEYS if name in lower]
        for name in likely:
            shape, dtype = members[name]
            if not dtype.hasobject and shape and math.prod(shape) == len(images):
                found.labels, found.label_names = encode(loaded[name].ravel())
                break
    others = [PassedOver(f"array {name}", 1, f"{key} is read") for name in stacks if name != key]
    if found.labels is None and likely:
        shape, dtype = members[likely[0]]
        what = "Python objects" if dtype.hasobject else f"shape {shape}"
        cure = f"to measure by it, make it {len(images):,} numbers or texts"
        others.append(PassedOver(f"array {likely[0]} of {what}", 1, cure))
    found.passed_over = add_up(others)
    return found


def _members(archive: zipfile.ZipFile) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of each array in the file, by its name; members that are none are left."""
    members = {}
    for info in archive.infolist():
        with archive.open(info) as file:
            try:
                version = npy.read_magic(file)
            except ValueError:  # no array: whatever lies there is not unpacked
                continue
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(file)
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize > info.file_size:
            raise ValueError(f"{info.filename} holds fewer numbers than its shape {shape} says")
        members[info.filename.removesuffix(".npy")] = (shape, dtype)
    return members


# -- arrays -----------------------------------------------------------------------------------


def from_stack(name: str, stack: npt.NDArray[Any], *, channels_first: bool = False) -> Listing:
    """Images of one size in an array ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``.

    Raises:
        SourceError: its shape or type is not that of images.
    """
    shape = stack.shape
    if stack.ndim == 3 and shape[2] in (1, 3, 4) and shape[1] > 4 and len(stack):
        raise SourceError(
            f"an array of shape {shape} is one image, not many: give array[None], of shape "
            f"{(1, *shape)}, or a list of images"
        )
    if not (stack.ndim == 3 or (stack.ndim == 4 and {shape[1], shape[3]} & {1, 3, 4})):
        raise SourceError(
            f"an array of shape {shape} holds no images: expected (n, h, w), (n, h, w, c) or "
            "(n, c, h, w) with c = 1, 3 or 4"
        )
    if stack.dtype.kind not in "buif":
        raise SourceError(
            f"{name} of shape {shape}: {stack.dtype} is no type for pixels: give whole numbers, "
            "floats or bool"
        )
    stack = _channels_last(stack, channels_first=channels_first)
    return Listing(
        name,
        [str(i) for i in range(len(stack))],
        [None] * len(stack),
        lambda: iter(enumerate(stack)),
        lambda most: (stack[i] for i in spread(len(stack), most)),
    )


def _channels_last(stack: npt.NDArray[Any], *, channels_first: bool = False) -> npt.NDArray[Any]:
    """The array of :func:`from_stack` as ``(n, h, w)`` or ``(n, h, w, c)``."""
    first = stack.ndim == 4 and stack.shape[1] in (1, 3, 4)
    return (
        np.moveaxis(stack, 1, 3)
        if first and (channels_first or stack.shape[3] not in (1, 3, 4))
        else stack
    )


def tensor_values(tensor: Any) -> npt.NDArray[Any]:
    """The values of a torch tensor, wherever it lies."""
    tensor = tensor.detach().cpu().to_dense()
    # numpy has no bfloat16
    return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())


# -- tables -----------------------------------------------------------------------------------


def table_column(source: Any) -> list[Any] | None:
    """The values of a column of pandas, polars or Arrow in their own order; None if it is none.

    Of a table, the column of images is taken. ``column[i]`` of pandas is the value whose *index
    label* is i, which is another one once the rows have been sorted or selected.

    Raises:
        SourceError: no column of a table is called as images are.
    """
    if isinstance(source, Mapping | list | tuple | str | np.ndarray):
        return None
    columns = getattr(source, "column_names", None) if hasattr(source, "to_pylist") else None
    if columns is None and (hasattr(source, "iloc") or hasattr(source, "to_dicts")):
        columns = getattr(source, "columns", None)
    if columns is not None:
        names = [str(name) for name in columns]
        lower = {name.lower(): name for name in reversed(names)}
        wanted = [lower[key] for key in (*_ITEM_KEYS, *_PATH_KEYS) if key in lower]
        if not wanted and len(names) != 1:
            raise SourceError(
                f"a table with the columns {', '.join(names)} has none called "
                f"{', '.join(_ITEM_KEYS[:3])} or path: give the column of images, table[name]"
            )
        source = source[(wanted or names)[0]]
    for method in ("to_pylist", "to_list", "tolist"):
        if hasattr(source, method) and (columns is not None or _is_column(source)):
            return list(getattr(source, method)())
    return None


def _is_column(source: Any) -> bool:
    return type(source).__module__.partition(".")[0] in ("pandas", "polars", "pyarrow") or hasattr(
        source, "iloc"
    )


# -- data sets --------------------------------------------------------------------------------


def from_items(items: Any) -> Listing:
    """A list of images or a data set; what it does in ``__getitem__`` happens in this thread.

    Raises:
        SourceError: it has another number of ids than of images.
    """
    count = len(items)
    ids = [str(i) for i in getattr(items, "ids", range(count))]
    name = "images" if isinstance(items, list | tuple) else type(items).__name__.lower()
    if len(ids) != count:
        raise SourceError(f"{name} has {count} images and {len(ids)} ids")
    return Listing(
        name,
        ids,
        [None] * count,
        lambda: ((i, _item(items, i)) for i in range(count)),
        lambda most: (_item(items, i) for i in spread(count, most)),
    )


def _item(items: Any, index: int) -> Raw:
    """One image of a list or data set, without its target."""
    torch = sys.modules.get("torch")
    try:
        item = _picture(items[index])
        if isinstance(item, Image.Image):
            item.load()  # here: threads must not read one file at the same time
            return item
        if isinstance(item, str | os.PathLike):
            return Path(item)
        if isinstance(item, bytes | bytearray | memoryview):
            return bytes(item)
        if isinstance(item, BytesIO):
            return item.getvalue()
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


def _picture(item: Any) -> Any:
    """The image in an item, which may be a dict of it and of others, or (image, target, …)."""
    if isinstance(item, tuple | list):
        if not item:
            raise UnusableError("an empty item")
        for likely in (_is_image, lambda part: isinstance(part, tuple | list | Mapping)):
            for part in item:
                if likely(part):
                    return _picture(part)
        return item[0]
    if isinstance(item, Mapping):
        lower = {str(key).lower(): key for key in reversed(list(item))}
        key = next((lower[key] for key in _ITEM_KEYS if key in lower), None)
        if key is not None and (item[key] is not None or lower.get("path") is None):
            return _picture(item[key])
        named = next((lower[key] for key in _PATH_KEYS if key in lower), None)
        if named is not None and item[named] is not None:
            return item[named]
        others = [value for value in item.values() if _is_image(value)]
        if len(others) == 1:
            return others[0]
        raise UnusableError(
            f"a dict of {', '.join(map(str, item))} has no image that can be told: call it image"
        )
    if item is None:
        raise UnusableError("empty")
    return item


def _is_image(part: Any) -> bool:
    return (
        isinstance(part, Image.Image | bytes | bytearray | BytesIO) or getattr(part, "ndim", 0) >= 2
    )
