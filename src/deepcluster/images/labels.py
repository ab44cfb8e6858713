"""Labels of a source: from its folders, from a CSV file, or one by one. For measuring only."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepcluster.errors import SourceError
from deepcluster.images.listing import Labels, Listing


def relabel(found: Listing, labels: Labels) -> None:
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
    found.labels, found.label_names = encode(values)


def _labels_of(found: Listing, path: Path) -> list[Any]:
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


def encode(values: Iterable[Any]) -> tuple[npt.NDArray[np.int64] | None, list[str]]:
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
