"""What a source of images is: how each kind is told, before anything is decoded.

A source is a folder, an image file, a list of files and folders, Parquet shards, an array or a
tensor, a column of a table, a data set, or a name of :mod:`deepcluster.images.named`. Whatever it
is, :func:`list_source` makes one :class:`~deepcluster.images.listing.Listing` of it: an id for each
image, its file if it has one, its label if there is one, what was passed over, and a way to read
the images as often as wanted. The plan looks at the listing, the store decodes it: a source is
listed once.

Ids name images and are the same whenever the source is listed again: in a folder the paths relative
to it, sorted (in several folders, behind the folder's name); of a file in a list its path as given;
in Parquet the path in the row, else the shard and the row; else what the data set says, or the
position. They are in Unicode's composed form, and equal ones are told apart by #2, #3 and so on.
Nothing is unpickled (but for CIFAR, which torchvision unpickles after it has checked its MD5), and
only a named data set ever uses the network.
"""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.errors import NoImagesError, SourceError
from deepcluster.images.arrays import (
    from_items,
    from_npy,
    from_stack,
    table_column,
    tensor_values,
)
from deepcluster.images.files import (
    from_files,
    from_folder,
    from_list,
    from_paths,
    is_there,
)
from deepcluster.images.formats import cure_of, kind_of
from deepcluster.images.labels import relabel
from deepcluster.images.listing import Labels, Listing
from deepcluster.images.named import TORCHVISION, NamedSetError, digits, from_torchvision
from deepcluster.images.parquet import from_parquet

NAMED = ("digits", *TORCHVISION)
"""Data sets that can be asked for by name; ``name:split`` asks for another split than the first."""


def list_source(source: Any, labels: Labels | None = None) -> Listing:
    """Find out what a source is, list it, and give it the labels that were asked for.

    Args:
        source: as for :func:`deepcluster.images.store.open_images`; a listing stays as it is.
        labels: as there; None keeps those the source has.

    Raises:
        SourceError: the source or its labels cannot be opened.
        NoImagesError: there is no image in it.
    """
    found = source if isinstance(source, Listing) else _find(source)
    if labels is not None:
        relabel(found, labels)
    if not found.ids:
        bad = f"; {found.skipped[0][0]}: {found.skipped[0][1]}" if found.skipped else ""
        raise NoImagesError(f"no image in {found.name}: it is empty{bad}")
    return found


def _find(source: Any) -> Listing:
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    if isinstance(source, str | os.PathLike):
        return _from_name(os.fspath(source))
    if torch is not None and isinstance(source, torch.Tensor):
        return from_stack("tensor", tensor_values(source), channels_first=True)
    if isinstance(source, np.ndarray) and source.dtype != object:
        return from_stack("array", source)
    column = table_column(source)
    if column is not None:
        source = column
    if isinstance(source, list | tuple) and source:
        files = [Path(item) for item in source if isinstance(item, str | os.PathLike)]
        if len(files) == len(source):
            if all(file.suffix.lower() == ".parquet" for file in files):
                return from_parquet(files[0].stem, files, [file.stem for file in files])
            return from_paths("images", files, [str(file) for file in files])
    if (
        hasattr(source, "__len__")
        and hasattr(source, "__getitem__")
        and not isinstance(source, dict)
    ):
        return from_items(source)
    raise SourceError(
        f"a {type(source).__name__} is no source of images: give a path, a name, an array, a "
        "tensor, a list of images, or a data set with __len__ and __getitem__"
    )


def _from_name(text: str) -> Listing:
    if not text.strip():  # as of a variable of the shell that is not set
        raise SourceError("the source is an empty text: give a folder, for this one `.`")
    path = Path(text).expanduser()
    there = is_there(path)
    if there and path.is_dir():
        return from_folder(path)
    if there and path.is_file():
        match path.suffix.lower():
            case ".txt":
                return from_list(path)
            case ".parquet":
                return from_parquet(path.stem, [path], [path.stem])
            case ".npy" | ".npz":
                return from_npy(path)
            case _ if (kind := kind_of(path)) == "image":
                return from_files(path.stem, [path], [path.name])
            case suffix:
                cure = f"; for {kind}: {cure_of(kind)}" if cure_of(kind) else ""
                raise SourceError(
                    f"{path} is no source of images: a file must be an image, a .txt of paths, "
                    f".parquet, .npy or .npz, not {suffix or 'one without an extension'}{cure}"
                )
    if there:
        raise SourceError(f"{path} is no source of images: it is neither a file nor a folder")
    name, _, split = text.partition(":")
    if name in TORCHVISION or (name == "digits" and not split):
        return _from_named(name, split)
    near = difflib.get_close_matches(text.lower(), NAMED, 1)
    if is_there(path.parent) and path.parent.is_dir():
        beside = {p.name: str(p) for p in path.parent.iterdir() if not p.name.startswith(".")}
        near += [beside[n] for n in difflib.get_close_matches(path.name, beside, 2)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise SourceError(
        f"there is no file or folder {text[:300]!r}: {hint}a source is a folder of images, a .txt "
        f"of paths, a .parquet, .npy or .npz file, or one of {', '.join(NAMED)}"
    )


def _from_named(name: str, split: str) -> Listing:
    try:
        if name == "digits":
            held = digits()
        else:
            held = from_torchvision(name, split, cache_folder() / "datasets")
    except NamedSetError as error:
        raise SourceError(str(error)) from error.__cause__
    if isinstance(held.images, list):
        files = held.images
        found = from_files(held.name, files, [f"{f.parent.name}/{f.name}" for f in files])
    else:
        found = from_stack(held.name, held.images)
    found.labels, found.label_names = held.labels, held.label_names
    return found


def cache_folder() -> Path:
    """The folder of downloads and of decoded images: DEEPCLUSTER_CACHE, or one in the home."""
    return Path(os.environ.get("DEEPCLUSTER_CACHE") or "~/.cache/deepcluster").expanduser()


def pixels_folder() -> Path:
    """The folder for what does not fit in memory, made if need be.

    Raises:
        SourceError: it cannot be made.
    """
    folder = cache_folder() / "pixels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(
            f"what does not fit in memory would go to {folder}, which cannot be made "
            f"({error.strerror}): set DEEPCLUSTER_CACHE to a folder that can be written"
        ) from error
    return folder
