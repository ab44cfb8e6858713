"""Images that are files: a folder, one file, a list of them."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import Image

from deepcluster.errors import NoImagesError, SourceError
from deepcluster.images.listing import SAMPLE, Listing, Raw, printable, reason, spread
from deepcluster.images.parquet import from_parquet

# Formats that no text begins like, of which files are read without an extension as well.
SIGNED = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "JPEG2000", "AVIF")
# Pillow only recognises these and cannot read them, or (EPS) hands them to another program.
NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


def from_folder(root: Path) -> Listing:
    root = root.absolute()
    files, unread = _walk(root)
    images = [file for file in files if Path(file).suffix.lower() in extensions()]
    shards = [file for file in files if file.endswith(".parquet")]
    if images or not shards:
        images += [file for file in files if not Path(file).suffix and begins_as_image(root / file)]
        images.sort()
    name = root.resolve().name
    if not images and shards:
        stems = [file.removesuffix(".parquet") for file in shards]
        found = from_parquet(name, [root / file for file in shards], stems)
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
    found = from_files(name, [root / file for file in images], images)
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
            unread.append((printable(str(root / folder)), reason(error)))
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


def from_list(path: Path) -> Listing:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text: a list has one path a line") from error
    names = [os.path.normpath(line.strip()) for line in lines if line.strip()]
    files = [path.absolute().parent / name for name in names]
    return from_files(path.stem, files, [Path(name).as_posix() for name in names])


def from_files(name: str, files: list[Path], ids: list[str]) -> Listing:
    def some() -> Iterator[Raw]:
        return (files[i] for i in spread(len(files), SAMPLE))

    paths: list[str | None] = [printable(os.path.normpath(file.absolute())) for file in files]
    return Listing(name, ids, paths, lambda: iter(files), some)


@cache
def extensions() -> frozenset[str]:
    Image.init()
    openable = set(Image.OPEN) - (NOT_READ - {"EPS", "WMF"})  # pictures: not read, but listed
    return frozenset(e for e, name in Image.registered_extensions().items() if name in openable)


def begins_as_image(path: Path) -> bool:
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
