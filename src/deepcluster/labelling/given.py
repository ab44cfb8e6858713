"""A person's labels: a table of images and classes, held against a run.

The table may come out of the labelling page, a spreadsheet or an editor, so its separator, the
case of its header and its blanks are taken as they come, and nothing is guessed that could be
wrong: an image that the run does not have is named, and one image with two classes ends it.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deepcluster.errors import RunError
from deepcluster.files import read_table
from deepcluster.progress import counted

LISTED = 10  # names in one sentence
MAX_NAME = 200  # characters of a class's name


@dataclass(frozen=True)
class GivenLabels:
    """Labels of some images of a run, an image once."""

    rows: np.ndarray  # (m,) int64, rows of the run's table, ascending
    classes: np.ndarray  # (m,) int64, numbers into `names`
    names: list[str]  # the classes, numbers by size and then words
    groups: np.ndarray  # (m,) int64, equal for images that were labelled in one act
    notes: list[str] = field(default_factory=list)  # what a person should know, a sentence each


def read_labels(path: Path, ids: Sequence[str], paths: Sequence[str | None]) -> GivenLabels:
    """The labels in a file, of the images of a run.

    Args:
        path: a table with a column ``label`` and a column ``id`` or ``path`` (or both: the id
            counts, where it is one). Separated by commas, semicolons or tabs. A row without a
            label is one that nobody has labelled yet. Rows with the same word in a column
            ``group`` were labelled in one act and count as one where a classifier is checked.
        ids: of the run's images.
        paths: of the run's images; None where there is no file.

    Raises:
        RunError: the file cannot be read, no image of it is in the run, an image has two
            classes, or there are fewer than two classes.
    """
    images = _Images(ids, paths)
    given: dict[int, list[tuple[str, int]]] = {}  # row -> its labels, and the lines they stand in
    group: dict[int, str] = {}
    unknown: list[str] = []
    empty = total = 0
    header, table = read_table(path)
    if "label" not in header or not {"id", "path"} & set(header):
        hint = (
            ". That is the file of the report's page: `deepcluster apply` takes it"
            if {"cluster", "by"} <= set(header)
            else ""
        )
        raise RunError(
            f"{path} has the columns {', '.join(header)[:200] or '(none)'}: expected label, and id "
            f"or path{hint}"
        )
    for line, fields in table:
        total += 1
        label = _class_name(fields["label"], path, line)
        if not label:
            empty += 1
            continue
        keys = [fields[name] for name in ("id", "path") if fields.get(name, "").strip()]
        row = images.find(keys)
        if row is None:
            unknown.append(keys[0] if keys else f"(nothing, in line {line})")
            continue
        given.setdefault(row, []).append((label, line))
        group[row] = fields.get("group", "").strip() or f"line {line}"
    if unknown and not given:
        raise RunError(
            f"{path} labels {counted(len(unknown), 'image')}, none of them in the run: "
            f"{_some(unknown)}. An image there is {ids[0]!r}. Is it of another run? A spreadsheet "
            "may also have changed the ids (000123 to 123): import the column as text"
        )
    if not given:
        raise RunError(
            f"{path} has {counted(total, 'row')} and no label in any: write the class of an image "
            "into the column label"
        )
    notes = []
    if unknown:
        notes.append(f"not in the run: {counted(len(unknown), 'image')}: {_some(unknown)}")
    if empty:
        notes.append(f"without a label yet: {counted(empty, 'row')}")
    spelling = _spellings([label for labels in given.values() for label, _ in labels], notes)
    twice = {
        row: labels
        for row, labels in given.items()
        if len({spelling[label] for label, _ in labels}) > 1
    }
    if twice:
        said = [
            f"{ids[row]!r} is "
            + " and ".join(f"{label!r} (line {line})" for label, line in labels[:4])
            for row, labels in sorted(twice.items())
        ]
        raise RunError(
            f"{path} gives {counted(len(twice), 'image')} more than one class: "
            f"{'; '.join(said[:LISTED])}{' …' if len(said) > LISTED else ''}. Keep one line of each"
        )
    rows = sorted(given)
    words = [spelling[given[row][0][0]] for row in rows]
    names = sorted(set(words), key=_place)
    if len(names) < 2:
        raise RunError(
            f"all {len(rows):,} labels of {path} are {names[0]!r}: a classifier needs two classes "
            "or more; label some images that are something else"
        )
    number = {name: k for k, name in enumerate(names)}
    alone = [name for name, size in Counter(words).items() if size == 1]
    if alone:
        notes.append(
            f"of one label only: {len(alone)} of {len(names)} classes, {_some(sorted(alone))}: "
            "learnt, but not checked"
        )
    return GivenLabels(
        rows=np.array(rows, np.int64),
        classes=np.array([number[word] for word in words], np.int64),
        names=names,
        groups=np.unique([group[row] for row in rows], return_inverse=True)[1].astype(np.int64),
        notes=notes,
    )


def _place(name: str) -> tuple[bool, int, str]:
    """What classes are sorted by: numbers first, by their size."""
    number = name.isascii() and name.isdigit()
    return (False, int(name), name) if number else (True, 0, name)


class _Images:
    """Which row of the run a name in a table means."""

    def __init__(self, ids: Sequence[str], paths: Sequence[str | None]) -> None:
        self.exact: dict[str, int] = {}
        self.bare: dict[str, int | None] = {}  # blanks and slashes set right; None: it could be two
        for names in (paths, ids):  # where an id is another's path, the id counts
            for row, name in enumerate(names):
                if name is not None:
                    self.exact[unicodedata.normalize("NFC", name)] = row
                    key = _bare(name)
                    self.bare[key] = row if self.bare.get(key, row) == row else None

    def find(self, names: Sequence[str]) -> int | None:
        """The row of the first of `names` that the run has."""
        for name in names:
            row = self.exact.get(unicodedata.normalize("NFC", name), self.bare.get(_bare(name)))
            if row is None and name.strip():
                with contextlib.suppress(OSError, ValueError):  # no path of this system
                    row = self.bare.get(_bare(str(Path(name.strip()).resolve())))
            if row is not None:
                return row
        return None


def _bare(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip().replace("\\", "/"))


def _class_name(text: str, path: Path, line: int) -> str:
    """A class as it was written, without blanks around it; 3.0 of a spreadsheet is 3."""
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if re.fullmatch(r"\d{1,18}\.0+", name):
        name = name.partition(".")[0]
    if len(name) > MAX_NAME or any(unicodedata.category(c) == "Cc" for c in name):
        raise RunError(
            f"{path}, line {line}: the label {name[:40]!r} is too long (over {MAX_NAME} "
            "characters) or has control characters"
        )
    return name


def _spellings(labels: list[str], notes: list[str]) -> dict[str, str]:
    """Each label -> the spelling it counts as: of those that differ in case, the most frequent."""
    counts = Counter(labels)
    alike: dict[str, list[str]] = {}
    for label in counts:
        alike.setdefault(label.casefold().replace(" ", ""), []).append(label)
    taken: dict[str, str] = {}
    for variants in alike.values():
        best = max(variants, key=lambda label: (counts[label], label))
        if len(variants) > 1:
            written = " and ".join(repr(variant) for variant in sorted(variants))
            notes.append(f"{written} differ in case or blanks only: taken as one class, {best!r}")
        taken |= dict.fromkeys(variants, best)
    return taken


def _some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(repr(name[:100]) for name in names[:LISTED]) + more
