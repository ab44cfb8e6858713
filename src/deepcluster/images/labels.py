"""Labels of a source: from its folders, from a CSV file, or one by one. For measuring only."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepcluster.errors import SourceError
from deepcluster.images.listing import Labels, Listing, printable, read_text

# Folders that part a data set, and are no classes.
SPLITS = frozenset(
    [
        "train",
        "training",
        "val",
        "valid",
        "validation",
        "test",
        "testing",
        "dev",
        "eval",
        "evaluation",
        "unlabeled",
    ]
)


def relabel(found: Listing, labels: Labels) -> None:
    """Replace the labels of a source by those a person gave.

    Raises:
        SourceError: they do not fit the images, contradict themselves or cannot be read.
    """
    values: list[Any]
    if isinstance(labels, str) and labels == "folders":
        values = _folders_of(found)
    elif isinstance(labels, str | os.PathLike):
        values = _labels_of(found, Path(labels))
    else:
        values = list(labels)
        if len(values) != len(found.ids):
            raise SourceError(f"{len(values):,} labels for {len(found.ids):,} images")
        if any(np.ndim(value) for value in values):
            raise SourceError("a label is one number or text for each image, not several")
    found.labels, found.label_names = encode(values)


def _folders_of(found: Listing) -> list[str | None]:
    """The folder of each image, without those that part the set into training and test."""
    if not any(found.paths):
        raise SourceError(f'labels="folders" needs a folder of images, {found.name} is none')
    folders = [i.split("/")[:-1] for i in found.ids]
    if found.tops:  # several folders: each is a class, unless the classes lie in them
        tops = [top.split("/") for top in found.tops]
        inner = [
            folder[len(top) :]
            for folder in folders
            if folder
            for top in tops
            if folder[: len(top)] == top
        ]
        if len(inner) == sum(map(bool, folders)) and all(inner):
            left = iter(inner)
            folders = [next(left) if folder else folder for folder in folders]
    for end in (0, -1):
        while any(folders) and all(f[end].lower() in SPLITS for f in folders if f):
            folders = [f[1:] if end == 0 else f[:-1] for f in folders]
    values = ["/".join(folder) or None for folder in folders]
    if not any(values):
        raise SourceError(
            f'labels="folders": the images of {found.name} are in no sub-folders (but for those '
            "that part a set, such as train and test)"
        )
    return values


def _labels_of(found: Listing, path: Path) -> list[Any]:
    """The label of each image in a CSV file; None where it has none."""
    if not path.is_file():
        raise SourceError(
            f'there is no file {path}: labels are "folders" or a CSV file with the columns path '
            "and label"
        )
    place: dict[str, list[int]] = {}  # of every name that an image may be called by
    for i, (own, file) in enumerate(zip(found.ids, found.paths, strict=True)):
        for name in dict.fromkeys((own, unicodedata.normalize("NFC", file or own))):
            place.setdefault(name, []).append(i)
    values: list[Any] = [None] * len(found.ids)
    given: dict[int, str] = {}
    unknown: dict[str, None] = {}
    rows = _rows_of(path)
    for names, label in rows:
        at = next((place[key] for name in names for key in _keys(name, path) if key in place), None)
        if at is None:
            unknown[names[0]] = None
            continue
        files = [f for i in at if (f := found.paths[i])]  # a file may be in a list twice
        for i in {*at, *(i for f in files for i in place[unicodedata.normalize("NFC", f)])}:
            if _plain(given.setdefault(i, label)) != _plain(label):
                raise SourceError(
                    f"{path} gives {names[0]!r} two labels, {given[i]!r} and {label!r}: leave one "
                    "of the rows out"
                )
            values[i] = label
    if rows and not given and values:
        raise SourceError(
            f"no path in {path} is an image of {found.name}: it names {rows[0][0][0]!r}, an "
            f"image there is {found.ids[0]!r}"
        )
    found.skipped += [(key, f"named in {path.name}, but not among the images") for key in unknown]
    return values


def _rows_of(path: Path) -> list[tuple[list[str], str]]:
    """(path and id, as far as there are any; label) of each row of a CSV file."""
    text = read_text(path)
    separator = ","
    if text.lower().startswith("sep=") and len(text) > 4:  # a spreadsheet's first line
        separator, _, text = text[4], text[5:].partition("\n")[0], text.partition("\n")[2]
    else:
        head = text.partition("\n")[0]
        separator = max(",;\t", key=head.count) if head else ","
    try:
        table = list(
            csv.reader(StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        )
    except csv.Error as error:
        raise SourceError(f"{path} cannot be read as CSV: {error}") from error
    columns = [name.strip().lower() for name in table[0]] if table else []
    if "label" not in columns or not {"path", "id"} & set(columns):
        raise SourceError(
            f"{path} has the columns {', '.join(columns) or '(none)'}: expected path and label"
        )
    if columns.count("label") > 1:
        raise SourceError(
            f"{path} has {columns.count('label')} columns called label: rename others"
        )
    label = columns.index("label")
    keys = [columns.index(name) for name in ("path", "id") if name in columns]
    rows = []
    for row in table[1:]:
        names = [row[i] for i in keys if i < len(row) and row[i].strip()]
        if names:
            rows.append((names, row[label] if label < len(row) else ""))
    return rows


def _keys(name: str, table: Path) -> list[str]:
    """What an image may be called that a row names so, the likeliest first."""
    tried = [name, name.strip()]
    tried += [one.replace("\\", "/") for one in tried if "\\" in one]
    tried += [Path(os.path.normpath(one)).as_posix() for one in tried]
    tried += [printable(os.path.normpath(table.absolute().parent / one)) for one in tried]
    return [unicodedata.normalize("NFC", one) for one in dict.fromkeys(tried)]


def encode(values: Iterable[Any]) -> tuple[npt.NDArray[np.int64] | None, list[str]]:
    """Numbers from 0 for labels of any kind, and their names.

    Unknown (-1) are None, NaN, numbers below 0, an empty text, and what other programs write for
    these. Texts are compared without blanks around them, and in Unicode's composed form.
    """
    known = [_plain(value) for value in values]
    classes = {v for v in known if v is not None}
    order: list[int | str] = [
        *sorted(v for v in classes if isinstance(v, int)),
        *sorted(v for v in classes if isinstance(v, str)),
    ]
    number = {value: i for i, value in enumerate(order)}
    codes = np.array([-1 if v is None else number[v] for v in known], np.int64)
    return (codes, [str(v) for v in order]) if order else (None, [])


_UNKNOWN = frozenset(("", "nan", "NaN", "NAN", "<NA>", "None", "null", "NULL", "-1", "-1.0"))


def _plain(value: Any) -> int | str | None:
    value = value.item() if hasattr(value, "item") else value
    if value is None or type(value).__name__ == "NAType" or value != value:
        return None
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        value = unicodedata.normalize("NFC", value).strip()
        if value in _UNKNOWN:
            return None
        whole = re.fullmatch(r"(0|[1-9][0-9]{0,17})(\.0+)?", value)
        value = int(whole[1]) if whole else value
    if isinstance(value, int):
        return value if value >= 0 else None
    if isinstance(value, float) and value < 0:
        return None
    return str(value)
