"""Images that are files: a folder, one file, a list of them, several folders.

What lies in a folder and is no image is counted by its kind (:mod:`deepcluster.images.formats`),
with what to do about kinds that hold pictures all the same. Hidden files and what systems leave
behind are not counted.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from deepcluster.errors import NoImagesError, SourceError, UnusableError
from deepcluster.images.formats import CURES, cure_of, extensions, kind_of
from deepcluster.images.labels import encode
from deepcluster.images.listing import (
    Listing,
    PassedOver,
    Raw,
    add_up,
    printable,
    read_text,
    reason,
    spread,
)
from deepcluster.images.parquet import from_parquet, is_shard

_LEFT_BY_SYSTEMS = frozenset(
    {"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"}
    # thumbnails of a Synology NAS, and what was deleted there or in Windows
    | {"@eadir", "#recycle", "$recycle.bin", "system volume information"}
)
_TWICE = "files of a folder that was given twice"


def from_folder(root: Path) -> Listing:
    """A folder of images or of Parquet shards; where there are both, what holds more of them."""
    root = root.absolute()
    files, unread, runs = _walk(root)
    if runs and not files:
        raise SourceError(
            f"{root} is a run of deepcluster, and its pictures are of the images, not images: give "
            "the folder of the images themselves"
        )
    kinds = {file: kind_of(root / file) for file in files}
    images = [file for file in files if kinds[file] == "image"]
    shards = [file for file in files if kinds[file] == ".parquet"]
    if images:  # a table beside them may hold anything
        shards = [file for file in shards if is_shard(root / file)]
    name = root.resolve().name
    found = None
    if shards:
        stems = [file[: -len(".parquet")] for file in shards]
        found = from_parquet(name, [root / file for file in shards], stems)
    if found is not None and len(found) <= len(images):
        found = None
    left = Counter(kind for file, kind in kinds.items() if kind != "image")
    if found is None:
        if not images:
            raise NoImagesError(_nothing(root, left, unread))
        found = from_files(name, [root / file for file in images], images)
    else:
        del left[".parquet"]
        left["image beside Parquet files"] = len(images)
    found.skipped = unread + found.skipped
    found.passed_over = add_up([*found.passed_over, *_passed_over(left, runs)])
    return found


def _nothing(root: Path, left: Counter[str], unread: list[tuple[str, str]]) -> str:
    what = ", ".join(f"{count:,} × {kind}" for kind, count in left.most_common(5))
    bad = f"; {unread[0][0]}: {unread[0][1]}" if unread else ""
    cures = [f"for {kind}: {cure_of(kind)}" for kind, _ in left.most_common(5) if cure_of(kind)]
    return (
        f"no image in {root}: found {what or 'no file'}{bad}; expected files that Pillow reads "
        "(.jpg, .png, .webp, .tif, …) or .parquet" + "".join(f"; {cure}" for cure in cures)
    )


def _passed_over(left: Counter[str], runs: int) -> list[PassedOver]:
    found = [PassedOver(kind, count, cure_of(kind)) for kind, count in left.items() if count]
    if runs:
        cure = "its pictures are of the images, not images; move others out of it"
        found.append(PassedOver("run folder of deepcluster", runs, cure))
    return add_up(found)


def _walk(root: Path) -> tuple[list[str], list[tuple[str, str]], int]:
    """Files under a folder, as sorted relative paths; folders that cannot be read; runs.

    Hidden files and folders are left out, and the run folders of this tool. Links to folders are
    followed after all real folders, and no folder is entered twice, so a loop of links ends and a
    link never renames what it points to.
    """
    files: list[str] = []
    unread: list[tuple[str, str]] = []
    runs = 0
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
            unread.append((printable(str(root / folder)), reason(error)))
            continue
        if {"run.json", "config.toml"} <= {e.name for e in inside} and _is_run(root / folder):
            runs += 1  # its pictures are of the images, not images
            continue
        for entry in inside:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith((".", "__MACOSX")) or entry.name.lower() in _LEFT_BY_SYSTEMS:
                continue
            if not _is_folder(entry):
                files.append(path)
            elif entry.is_symlink():
                links.append(path)
            else:
                real.append(path)
    return sorted(files), unread, runs


def _is_run(folder: Path) -> bool:
    """Whether run.json is ours: other programs use the name, too."""
    try:
        info = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(info, dict) and "schema" in info


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: listed as a file, and skipped with the reason
        return False


def from_list(path: Path) -> Listing:
    """The images and folders that a text file names, one a line (or between NULs), relative to it.

    Only a line feed ends a line: names may hold any other character.
    """
    text = read_text(path, "; a list has one path a line")
    here = path.absolute().parent
    lines = text.split("\0") if "\0" in text else [line.rstrip("\r") for line in text.split("\n")]
    names = [os.path.normpath(_meant(here, line)) for line in lines if line.strip()]
    return from_paths(path.stem, [here / name for name in names], names)


def _meant(here: Path, line: str) -> str:
    """The path in a line, without the blanks, quotes or backslashes that other programs write."""
    bare = line.strip()
    odd = bare != line or bare[0] in "'\"" or "\\" in bare
    if not odd or os.path.lexists(here / line):
        return line
    quoted = len(bare) > 2 and bare[0] in "'\"" and bare[-1] == bare[0]
    tried = [bare, bare[1:-1] if quoted else bare]
    tried += [name.replace("\\", "/") for name in tried]
    return next((name for name in tried if os.path.lexists(here / name)), bare)


def from_paths(name: str, files: list[Path], names: list[str]) -> Listing:
    """Image files and folders in one list, folders with all that is in them.

    Of files alone the ids are their names as given; where there are folders, ids in them begin with
    the folder's name, and those of single files are the last part of theirs.
    """
    folders = [file for file in files if is_there(file) and file.is_dir()]
    if not folders:
        return from_files(name, files, [Path(given).as_posix() for given in names])
    tops = iter(_short_names([folder.resolve() for folder in dict.fromkeys(folders)]))
    parts: list[tuple[str, Listing]] = []
    skipped: list[tuple[str, str]] = []
    single: list[Path] = []
    left: Counter[str] = Counter()
    known: dict[Path, None] = {}  # folders, in the order in which they came
    for file in files:
        if not is_there(file):
            single.append(file)
        elif file.is_dir():
            if file in known:
                left[_TWICE] += 1
                continue
            known[file] = None
            try:
                parts.append((next(tops), from_folder(file)))
            except (NoImagesError, SourceError) as error:
                skipped.append((printable(str(file)), str(error)))
        elif kind_of(file) == "image":
            single.append(file)
        elif (kind := kind_of(file)) == ".parquet":
            parts.append((file.stem, from_parquet(file.stem, [file], [file.stem])))
        else:
            left[kind] += 1
    parts = _without_doubles(parts, left)
    if single:
        parts.append(("", from_files(name, single, [file.name for file in single])))
    found = _join(name, [part for _, part in parts], [top for top, _ in parts])
    found.skipped = skipped + found.skipped
    own = [PassedOver(kind, count, cure_of(kind)) for kind, count in left.items() if count]
    found.passed_over = add_up([*own, *found.passed_over])
    return found


def _join(name: str, parts: Sequence[Listing], tops: Sequence[str]) -> Listing:
    """Several listings as one; ids begin with the part's name, where it has one.

    Labels are brought together by their names.
    """
    starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()

    def read() -> Iterator[tuple[int, Raw]]:
        for part, start in zip(parts, starts, strict=False):
            for place, raw in part.read():
                if place < len(part):
                    yield start + place, raw

    def sample(most: int) -> Iterator[Raw]:
        for i in spread(len(parts), most):
            yield from parts[i].sample(max(1, most // len(parts)))

    labels, names = encode(
        part.label_names[k] if k >= 0 else None
        for part in parts
        for k in (part.labels.tolist() if part.labels is not None else [-1] * len(part))
    )
    return Listing(
        name,
        [
            f"{top}/{i}" if top else i
            for part, top in zip(parts, tops, strict=True)
            for i in part.ids
        ],
        [path for part in parts for path in part.paths],
        read,
        sample,
        labels,
        names,
        [one for part in parts for one in part.skipped],
        add_up(one for part in parts for one in part.passed_over),
        [top for top in tops if top],
    )


def _without_doubles(
    parts: list[tuple[str, Listing]], left: Counter[str]
) -> list[tuple[str, Listing]]:
    """Folders without the files that an earlier one holds: ``A A/sub`` is A."""
    seen: set[str] = set()
    kept = []
    for top, part in parts:
        paths = [path for path in part.paths if path is not None]
        new = [i for i, path in enumerate(part.paths) if path is None or path not in seen]
        seen.update(paths)
        if len(new) < len(part):
            left[_TWICE] += len(part) - len(new)
            part = part.only(new)
        if len(part) or part.skipped:
            kept.append((top, part))
    return kept


def _short_names(folders: list[Path]) -> list[str]:
    """A name for each folder: its last part, with as many before it as tell it from the others."""
    names = []
    for folder in folders:
        parts = folder.parts
        for count in range(1, len(parts) + 1):
            own = parts[-count:]
            if sum(other.parts[-count:] == own for other in folders) == 1:
                break
        names.append("/".join(part.strip("/") for part in own) or "images")
    return names


def from_files(name: str, files: list[Path], ids: list[str]) -> Listing:
    """Image files under these names."""

    def some(most: int) -> Iterator[Raw]:
        return (_as_raw(files[i]) for i in spread(len(files), most))

    plain = {folder: _plain(folder) for folder in {file.parent for file in files}}
    paths: list[str | None] = [printable(str(plain[file.parent] / file.name)) for file in files]
    return Listing(
        name, ids, paths, lambda: ((i, _as_raw(file)) for i, file in enumerate(files)), some
    )


def _plain(folder: Path) -> Path:
    """The absolute path without ``..``; behind a link, that is not what stands before it."""
    plain = Path(os.path.normpath(folder.absolute()))
    if ".." in folder.parts and os.path.realpath(plain) != os.path.realpath(folder):
        return Path(os.path.realpath(folder))
    return plain


def _as_raw(file: Path) -> Raw:
    suffix = file.suffix.lower()
    if suffix in CURES and suffix not in extensions() and is_there(file):
        return UnusableError(f"{suffix} is not read: {CURES[suffix]}")
    return file


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; a name that none can have is of none."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
