"""What a source of images is: how each kind is told, listed and read, before anything is decoded.

A source is a folder, an image file, a list of files, Parquet shards, an array or a tensor, a data
set, or a name of :mod:`deepcluster.images.named`. Whatever it is, :func:`resolve` makes a
:class:`Source` of it: an id for each image, its file if it has one, its label if there is one, and
a way to read the images in the order of the ids, as often as wanted. What is read is a path,
encoded bytes, an image or an array (:data:`Raw`); to decode it is the work of
:mod:`deepcluster.images.store`. An image that cannot be read is no end of the reading: its place is
taken by the exception that says why.

Ids name images and are the same whenever the source is read again: in a folder the paths relative
to it, sorted; of a file in a list its path as given; in Parquet the path in the row, else the shard
and the row; else what the data set says, or the position. They are in Unicode's composed form, and
equal ones are told apart by #2, #3 and so on. Nothing is unpickled, and only a named data set ever
uses the network.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import os
import re
import sys
import unicodedata
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from deepcluster.errors import NoImagesError, SourceError, UnusableError
from deepcluster.images.named import TORCHVISION, NamedSetError, digits, from_torchvision

NAMED = ("digits", *TORCHVISION)
"""Data sets that can be asked for by name; ``name:split`` asks for another split than the first."""

MAX_PIXELS = 178_956_970
"""Images with more pixels are skipped as decompression bombs; Pillow, too, refuses them."""

SAMPLE = 256  # images whose size is looked at to choose the training side

# Formats that no text begins like, of which files are read without an extension as well.
SIGNED = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "JPEG2000", "AVIF")
# Pillow only recognises these and cannot read them, or (EPS) hands them to another program.
NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

Labels = str | os.PathLike[str] | Sequence[Any] | npt.NDArray[Any]

# What a source yields for an image: where to read it, or its encoded bytes, or itself, or why not.
Raw = Path | bytes | Image.Image | npt.NDArray[Any] | Exception


# -- sources ----------------------------------------------------------------------------------


@dataclass
class Source:
    """A source, listed but not decoded."""

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
        self.ids = _unique([unicodedata.normalize("NFC", _printable(i)) for i in self.ids])


def resolve(source: Any, labels: Labels | None) -> Source:
    """Find out what a source is, list it, and give it the labels that were asked for.

    Args:
        source: as for :func:`deepcluster.images.store.open_images`.
        labels: as there; None keeps those the source has.

    Raises:
        SourceError: the source or its labels cannot be opened.
        NoImagesError: there is no image in it.
    """
    found = _find(source)
    if labels is not None:
        _relabel(found, labels)
    if not found.ids:
        bad = f"; {found.skipped[0][0]}: {found.skipped[0][1]}" if found.skipped else ""
        raise NoImagesError(f"no image in {found.name}: it is empty{bad}")
    return found


def _find(source: Any) -> Source:
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    if isinstance(source, str | os.PathLike):
        return _from_name(os.fspath(source))
    if torch is not None and isinstance(source, torch.Tensor):
        return _from_stack("tensor", _tensor_values(source), channels_first=True)
    if isinstance(source, np.ndarray) and source.dtype != object:
        return _from_stack("array", source)
    if isinstance(source, list | tuple) and source:
        files = [Path(item) for item in source if isinstance(item, str | os.PathLike)]
        if len(files) == len(source):
            if all(file.suffix.lower() == ".parquet" for file in files):
                return _from_parquet(files[0].stem, files, [file.stem for file in files])
            return _from_files("images", files, [file.as_posix() for file in files])
    if (
        hasattr(source, "__len__")
        and hasattr(source, "__getitem__")
        and not isinstance(source, dict)
    ):
        return _from_items(source)
    raise SourceError(
        f"a {type(source).__name__} is no source of images: give a path, a name, an array, a "
        "tensor, a list of images, or a data set with __len__ and __getitem__"
    )


def _from_name(text: str) -> Source:
    path = Path(text).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        match path.suffix.lower():
            case ".txt":
                return _from_list(path)
            case ".parquet":
                return _from_parquet(path.stem, [path], [path.stem])
            case ".npy" | ".npz":
                return _from_npy(path)
            case suffix if suffix in _extensions():
                return _from_files(path.stem, [path], [path.name])
            case "" if _begins_as_image(path):
                return _from_files(path.name, [path], [path.name])
            case suffix:
                raise SourceError(
                    f"{path} is no source of images: a file must be an image, a .txt of paths, "
                    f".parquet, .npy or .npz, not {suffix or 'one without an extension'}"
                )
    name, _, split = text.partition(":")
    if name in TORCHVISION or (name == "digits" and not split):
        return _from_named(name, split)
    near = difflib.get_close_matches(text.lower(), NAMED, 1)
    if path.parent.is_dir():
        beside = {p.name: str(p) for p in path.parent.iterdir() if not p.name.startswith(".")}
        near += [beside[n] for n in difflib.get_close_matches(path.name, beside, 2)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise SourceError(
        f"there is no file or folder {text!r}: {hint}a source is a folder of images, a .txt of "
        f"paths, a .parquet, .npy or .npz file, or one of {', '.join(NAMED)}"
    )


# -- files ------------------------------------------------------------------------------------


def _from_folder(root: Path) -> Source:
    root = root.absolute()
    files, unread = _walk(root)
    images = [file for file in files if Path(file).suffix.lower() in _extensions()]
    shards = [file for file in files if file.endswith(".parquet")]
    if images or not shards:
        images += [
            file for file in files if not Path(file).suffix and _begins_as_image(root / file)
        ]
        images.sort()
    name = root.resolve().name
    if not images and shards:
        stems = [file.removesuffix(".parquet") for file in shards]
        found = _from_parquet(name, [root / file for file in shards], stems)
        found.skipped = unread + found.skipped
        return found
    if not images:
        kinds = Counter(Path(file).suffix.lower() or "no extension" for file in files)
        what = ", ".join(f"{count:,} × {kind}" for kind, count in kinds.most_common(5))
        bad = f"; {unread[0][0]}: {unread[0][1]}" if unread else ""
        raise NoImagesError(
            f"no image in {root}: found {what or 'no file'}{bad}; expected files that Pillow reads "
            "(.jpg, .png, .webp, .tif, …) or .parquet"
        )
    found = _from_files(name, [root / file for file in images], images)
    found.skipped = unread
    return found


def _walk(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Files under a folder, as sorted relative paths, and the folders that cannot be read.

    Hidden files and folders are left out, and the run folders of this tool. Links to folders are
    followed after all real folders, and no folder is entered twice, so a loop of links ends and a
    link never renames what it points to.
    """
    files: list[str] = []
    unread: list[tuple[str, str]] = []
    entered: set[tuple[int, int]] = set()
    real, links = [""], deque[str]()
    while real or links:
        folder = real.pop() if real else links.popleft()
        try:
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            unread.append((_printable(str(root / folder)), reason(error)))
            continue
        if {"run.json", "config.toml"} <= {entry.name for entry in inside}:
            continue  # a run folder: its pictures are of the images, not images
        for entry in inside:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if not _is_folder(entry):
                files.append(path)
            elif entry.is_symlink():
                links.append(path)
            else:
                real.append(path)
    return sorted(files), unread


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: listed as a file, and skipped with the reason
        return False


def _from_list(path: Path) -> Source:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text: a list has one path a line") from error
    names = [os.path.normpath(line.strip()) for line in lines if line.strip()]
    files = [path.absolute().parent / name for name in names]
    return _from_files(path.stem, files, [Path(name).as_posix() for name in names])


def _from_files(name: str, files: list[Path], ids: list[str]) -> Source:
    def some() -> Iterator[Raw]:
        return (files[i] for i in spread(len(files), SAMPLE))

    paths: list[str | None] = [_printable(os.path.normpath(file.absolute())) for file in files]
    return Source(name, ids, paths, lambda: iter(files), some)


# -- Parquet ----------------------------------------------------------------------------------


@dataclass
class _Shard:
    path: Path
    stem: str  # what its rows are called
    column: str
    rows: int
    groups: int


def _from_parquet(name: str, files: list[Path], stems: list[str]) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards: list[_Shard] = []
    skipped: list[tuple[str, str]] = []
    inner: list[str] = []  # the paths in the struct column
    parts: list[tuple[list[Any], list[str]]] = []  # labels of a shard, and the names of the classes
    for path, stem in zip(files, stems, strict=True):
        try:
            with pq.ParquetFile(path) as file:
                column, label, names = _columns(file.schema_arrow)
                rows = file.metadata.num_rows
                shards.append(_Shard(path, stem, column, rows, file.num_row_groups))
                has_path = file.schema_arrow.field(column).type.get_field_index("path") >= 0
                wanted = [f"{column}.path"] * has_path + [label] * (label is not None)
                table = file.read(columns=wanted) if wanted else {}
                structs = table[column].to_pylist() if has_path else [{}] * rows
                inner += [(struct or {}).get("path") or "" for struct in structs]
                parts.append((table[label].to_pylist() if label else [None] * rows, names))
        except (OSError, ValueError, pa.ArrowException) as error:
            if len(files) == 1:
                raise SourceError(f"{path} cannot be read as Parquet: {error}") from error
            skipped.append((_printable(str(path)), f"cannot be read as Parquet: {error}"))
    if not shards:
        raise SourceError(f"no shard of {name} can be read: {skipped[0][0]}: {skipped[0][1]}")

    times = Counter(inner)
    rows_of = (f"{shard.stem}:{row}" for shard in shards for row in range(shard.rows))
    ids = [
        path if path and times[path] == 1 else row for path, row in zip(inner, rows_of, strict=True)
    ]
    labels: npt.NDArray[np.int64] | None
    names = parts[0][1]
    if names and all(part[1] == names for part in parts):
        values = [-1 if v is None else v for part in parts for v in part[0]]
        labels = np.array([v if 0 <= v < len(names) else -1 for v in values], np.int64)
    else:  # shards that number their classes differently are brought together by the names
        words = [
            own[v] if own and v is not None and 0 <= v < len(own) else v
            for part, own in parts
            for v in part
        ]
        labels, names = _encode(words)

    def read() -> Iterator[Raw]:
        for shard in shards:
            yield from _rows(shard)

    def some() -> Iterator[Raw]:
        places = [(shard, group) for shard in shards for group in range(shard.groups)]
        for i in spread(len(places), 8):
            for number, raw in enumerate(_rows(*places[i])):
                if number == SAMPLE // 8:
                    break
                yield raw

    paths: list[str | None] = [None] * len(ids)
    return Source(name, ids, paths, read, some, labels, names, skipped)


def _columns(schema: Any) -> tuple[str, str | None, list[str]]:
    """Name of the image column, of the label column, and the names of the classes."""
    import pyarrow as pa

    structs = [
        column.name
        for column in schema
        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
    ]
    if not structs:
        raise SourceError(
            "there is no column of images (a struct with `bytes` and `path`) among "
            + ", ".join(schema.names)
        )
    column = next((name for name in ("image", "img") if name in structs), structs[0])
    meta = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = meta.get("info", {}).get("features", {})
    classes = {
        name: feature.get("names") or []
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
    label = next((n for n in ("label", "labels", *classes) if n in schema.names), None)
    if label is not None:
        kind = schema.field(label).type
        label = label if pa.types.is_integer(kind) or pa.types.is_string(kind) else None
    names = classes.get(label or "", [])
    return column, label, [str(n) for n in names] if isinstance(names, list) else []


def _rows(shard: _Shard, group: int | None = None) -> Iterator[Raw]:
    """Encoded images of a shard, or of one of its row groups, row by row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = 0
    try:
        # a buffer: without one, a whole row group is read before its first row is seen
        with pq.ParquetFile(shard.path, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(
                batch_size=64,
                row_groups=None if group is None else [group],
                columns=[f"{shard.column}.bytes"],
            ):
                for struct in batch.column(0).to_pylist():
                    done += 1
                    yield (struct or {}).get("bytes") or b""
    except (OSError, ValueError, pa.ArrowException) as error:
        if group is not None:
            return
        for _ in range(done, shard.rows):
            yield UnusableError(f"cannot be read from {shard.path.name}: {error}")


# -- arrays and data sets ---------------------------------------------------------------------

_IMAGE_KEYS = ("images", "image", "x", "x_train", "train_images", "data", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "y_train", "train_labels", "targets", "arr_1")


def _from_npy(path: Path) -> Source:
    try:
        if path.suffix.lower() == ".npy":
            return _from_stack(path.stem, np.load(path, mmap_mode="r", allow_pickle=False))
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
            found = _from_stack(path.stem, images)
            for key in _LABEL_KEYS:
                if key in lower and math.prod(shapes[lower[key]]) == len(images):
                    found.labels, found.label_names = _encode(loaded[lower[key]].ravel())
                    break
            return found
    except SourceError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{path} cannot be read: {error}; expected arrays of numbers that np.load reads "
            "without pickle"
        ) from error


def _from_stack(name: str, stack: npt.NDArray[Any], *, channels_first: bool = False) -> Source:
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

    return Source(
        name,
        [str(i) for i in range(len(stack))],
        [None] * len(stack),
        lambda: iter(stack),
        lambda: iter(stack[:1]),
    )


def _from_items(items: Any) -> Source:
    """A list of images or a data set; what it does in ``__getitem__`` happens in this thread."""
    count = len(items)
    ids = [str(i) for i in getattr(items, "ids", range(count))]
    name = "images" if isinstance(items, list | tuple) else type(items).__name__.lower()
    if len(ids) != count:
        raise SourceError(f"{name} has {count} images and {len(ids)} ids")

    def some() -> Iterator[Raw]:
        return (_item(items, i) for i in spread(count, SAMPLE))

    return Source(name, ids, [None] * count, lambda: (_item(items, i) for i in range(count)), some)


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
        array = _tensor_values(item) if channels_first else np.asarray(item)
    except Exception as error:  # a data set that decodes can raise whatever Pillow does
        return error
    first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
    last = array.ndim == 3 and array.shape[2] in (1, 3, 4)
    if array.ndim != 2 and not first and not last:
        return UnusableError(
            f"an array of shape {array.shape} is no image: expected (h, w), (h, w, c) or (c, h, w)"
        )
    return np.moveaxis(array, 0, 2) if first and (channels_first or not last) else array


def _tensor_values(tensor: Any) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu()
    # numpy has no bfloat16
    return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())


def _from_named(name: str, split: str) -> Source:
    try:
        if name == "digits":
            held = digits()
        else:
            held = from_torchvision(name, split, cache_folder() / "datasets")
    except NamedSetError as error:
        raise SourceError(str(error)) from error.__cause__
    if isinstance(held.images, list):
        files = held.images
        found = _from_files(held.name, files, [f"{f.parent.name}/{f.name}" for f in files])
    else:
        found = _from_stack(held.name, held.images)
    found.labels, found.label_names = held.labels, held.label_names
    return found


# -- labels -----------------------------------------------------------------------------------


def _relabel(found: Source, labels: Labels) -> None:
    """Replace the labels of a source by those a person gave."""
    values: list[Any]
    if isinstance(labels, str) and labels == "folders":
        if not any(found.paths):
            raise SourceError(f'labels="folders" needs a folder of images, {found.name} is none')
        values = [Path(i).parent.as_posix() for i in found.ids]
        values = [None if value == "." else value for value in values]
        if not any(values):
            raise SourceError(f'labels="folders": the images of {found.name} are in no sub-folders')
    elif isinstance(labels, str | os.PathLike):
        values = _labels_of(found, Path(labels))
    else:
        values = list(labels)
        if len(values) != len(found.ids):
            raise SourceError(f"{len(values):,} labels for {len(found.ids):,} images")
    found.labels, found.label_names = _encode(values)


def _labels_of(found: Source, path: Path) -> list[Any]:
    """The label of each image in a CSV file; None where it has none."""
    if not path.is_file():
        raise SourceError(
            f'there is no file {path}: labels are "folders" or a CSV file with the columns path '
            "and label"
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or []
            if "label" not in columns or not {"path", "id"} & set(columns):
                raise SourceError(
                    f"{path} has the columns {', '.join(columns) or '(none)'}: expected path and "
                    "label"
                )
            given = {
                unicodedata.normalize("NFC", Path(key).as_posix()): row["label"]
                for row in rows
                if (key := row.get("path") or row.get("id"))
            }
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read as UTF-8 CSV: {error}") from error
    values: list[Any] = []
    for name, file_path in zip(found.ids, found.paths, strict=True):
        keys = (name, unicodedata.normalize("NFC", file_path or name))
        values.append(next((given.pop(key) for key in keys if key in given), None) or None)
    if given and values and all(value is None for value in values):
        raise SourceError(
            f"no path in {path} is an image of {found.name}: it names {next(iter(given))!r}, an "
            f"image there is {found.ids[0]!r}"
        )
    found.skipped += [(key, f"named in {path.name}, but not among the images") for key in given]
    return values


def _encode(values: Iterable[Any]) -> tuple[npt.NDArray[np.int64] | None, list[str]]:
    """Numbers from 0 for labels of any kind, and their names.

    None, an empty string, NaN and numbers below 0 are unknown (-1).
    """

    def plain(value: Any) -> int | str | None:
        value = value.item() if hasattr(value, "item") else value
        if value is None or value == "" or value != value:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str) and re.fullmatch(r"\d{1,18}", value) and str(int(value)) == value:
            value = int(value)
        if isinstance(value, int):
            return int(value) if value >= 0 else None
        return str(value)

    known = [plain(value) for value in values]
    classes = {v for v in known if v is not None}
    order: list[int | str] = [
        *sorted(v for v in classes if isinstance(v, int)),
        *sorted(v for v in classes if isinstance(v, str)),
    ]
    number = {value: i for i, value in enumerate(order)}
    codes = np.array([-1 if v is None else number[v] for v in known], np.int64)
    return (codes, [str(v) for v in order]) if order else (None, [])


# -- why an image is left out -----------------------------------------------------------------


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


# -- small things -----------------------------------------------------------------------------


@cache
def _extensions() -> frozenset[str]:
    Image.init()
    openable = set(Image.OPEN) - (NOT_READ - {"EPS", "WMF"})  # pictures: not read, but listed
    return frozenset(e for e, name in Image.registered_extensions().items() if name in openable)


def _begins_as_image(path: Path) -> bool:
    """Whether a file without an extension begins as images of the common formats do."""
    Image.init()
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(16)  # what Pillow looks at
    except OSError:
        return False
    accepts = (Image.OPEN[name][1] for name in SIGNED if name in Image.OPEN)
    return len(head) == 16 and any(
        accept is not None and accept(head) is True for accept in accepts
    )


def cache_folder() -> Path:
    """The folder of downloads and of decoded images: DEEPCLUSTER_CACHE, or one in the home."""
    return Path(os.environ.get("DEEPCLUSTER_CACHE") or "~/.cache/deepcluster").expanduser()


def _unique(names: list[str]) -> list[str]:
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


def _printable(text: str) -> str:
    """Text that can be written as UTF-8 (a file's name on Linux need not be)."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers below `count`, spread evenly."""
    return [i * count // min(count, most) for i in range(min(count, most))]
