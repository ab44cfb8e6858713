"""Images into a folder a cluster: planned as a whole, written down, then done.

Nothing is overwritten, and no picture is ever in no place: a copy is made under another name first
and takes its own once it is whole; a move within a disk is one step, and between disks the picture
is deleted where it was once it is whole where it goes. The plan is in ``sorted.csv`` before the
first file is touched, so the same command again goes on where it was stopped, and puts nothing
there twice.

A link stands for the picture it leads to: that is what is copied or linked to. Moved, the link goes
and leads to the same picture from its new place; the picture stays, or goes with its own name.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import filecmp
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from deepcluster.errors import RunError
from deepcluster.files import replacing, take_lock
from deepcluster.progress import counted
from deepcluster.run.folder import run_around

if TYPE_CHECKING:
    from deepcluster.images.store import ImageStore

How = Literal["copy", "link", "move"]

LOG = "sorted.csv"
COLUMNS = ["id", "path", "cluster", "name", "file"]

MOST_BYTES = 240  # of a file's name: most disks take 255, and a number may come behind it
LOCK = ".deepcluster-lock"
PART = ".deepcluster-part-"  # what a file is called while it is not whole
RESERVED = {"con", "prn", "aux", "nul", *(f"{x}{i}" for x in ("com", "lpt") for i in range(1, 10))}


@dataclass(frozen=True)
class Step:
    """One image and where it goes."""

    row: int  # of the store
    source: Path | None  # None: it has no file of its own
    real: Path | None  # the picture itself, where the source is a link
    target: Path
    there: bool  # already, as whole as it will be

    @property
    def is_link(self) -> bool:
        """Whether the source leads to a picture and is none."""
        return self.source is not None and self.source.is_symlink()


def check_folder(folder: Path, sources: Sequence[str] = (), how: How = "copy") -> None:
    """Refuse a folder that cannot be sorted into, before the work.

    Args:
        folder: where images are to go.
        sources: where they come from; what is no folder does not matter.
        how: as :func:`sort_images` takes it.

    Raises:
        RunError: it is a file, cannot be written, holds a sorted.csv of something else, or lies in
            a folder of `sources`, which would have each image twice, or in a run.
    """
    for source in sources:
        around = Path(os.path.expanduser(source)).resolve()  # noqa: PTH111 (an unknown ~name stays)
        if how != "move" and around.is_dir() and folder.resolve().is_relative_to(around):
            raise RunError(
                f"{folder} lies in {source}, which would have each image twice then: say "
                f"--into {around.parent / f'{around.name}-sorted'}, or --how move"
            )
    above = folder.absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise RunError(f"{folder} cannot be written: {above} is no folder that can be written to")
    run = run_around(folder)
    if run is not None:
        raise RunError(
            f"{folder} lies in the run {run}, whose files are written anew and replaced: choose a "
            f"folder outside, such as --into {run.parent / f'{run.name}-sorted'}"
        )
    _read_log(folder)


def sort_images(
    store: ImageStore, labels: np.ndarray, names: list[str | None], folder: Path, how: How
) -> dict[str, int]:
    """Put images into a folder a cluster; which is where is in ``sorted.csv`` there.

    Images that have no file of their own (arrays, Parquet) are written as PNG at the size the net
    sees. A name that is taken already gets a number; nothing is overwritten.

    Args:
        store: the images.
        labels: ``(n,)``, their clusters.
        names: what a person called these, an entry an image.
        folder: where the folders go; made if need be.
        how: copy, hard-link (same disk only) or move the files.

    Returns:
        Folder name -> images there. A picture that is named twice is there once.

    Raises:
        RunError: a file is not there any more, the disk cannot do it, or `folder` cannot be
            written to; nothing is sorted then. Or the disk became full on the way.
    """
    check_folder(folder)
    sources = _sources(store)
    if how == "link":
        _check_disk(sources, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        return _sort(store, labels, names, sources, folder, how)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other sorting out of the folder: what is planned by one would be taken by another."""
    path = folder / LOCK
    with path.open("a", encoding="utf-8") as file:
        if not (
            take_lock(file)
            and path.exists()
            and os.path.samestat(os.fstat(file.fileno()), path.stat())
        ):
            raise RunError(
                f"another deepcluster sorts into {folder} now: wait until it has ended, then say "
                "the same again"
            )
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes none that is open
                path.unlink()


def _sort(
    store: ImageStore,
    labels: np.ndarray,
    names: list[str | None],
    sources: list[Path | None],
    folder: Path,
    how: How,
) -> dict[str, int]:
    before = _read_log(folder)
    steps = _plan(store, labels, names, sources, folder, before)
    _clean(folder, before)
    _write_log(folder, store, labels, names, steps)
    moves = {step.real: step.target for step in steps if step.real and not step.is_link}
    counts: dict[str, int] = {}
    done = 0
    try:
        # links last: what they lead to has its place by then
        for step in sorted(steps, key=lambda step: step.is_link):
            step.target.parent.mkdir(exist_ok=True)
            _do(step, store, how, moves)
            place = step.target.parent.name
            counts[place] = counts.get(place, 0) + 1
            done += 1
    except OSError as error:
        raise RunError(
            f"stopped after {done} of {len(steps)} images: {error.strerror or error}. Nothing is "
            "lost; the same command again goes on from here"
        ) from error
    return dict(sorted(counts.items()))


# -- what there is ------------------------------------------------------------------------------


def _sources(store: ImageStore) -> list[Path | None]:
    """The file of each image, under the name that the disk has for it."""
    found: list[Path | None] = []
    lost: list[str] = []
    for text in store.paths:
        if text is None:
            found.append(None)
            continue
        # A name that is not UTF-8 is told with escapes; the disk wants its bytes.
        raw = re.sub(r"\\x([89a-f][0-9a-f])", lambda c: chr(0xDC00 + int(c[1], 16)), text)
        path = next((Path(p) for p in (text, raw) if os.path.lexists(p)), None)
        if path is None or not path.exists():
            lost.append(text)
        found.append(path)
    if lost:
        raise RunError(
            f"nothing was sorted: {counted(len(lost), 'file')} cannot be found any more, the first "
            f"is {lost[0]}: run the same command again"
        )
    return found


def _check_disk(sources: list[Path | None], folder: Path) -> None:
    above = folder.absolute()
    while not above.exists():
        above = above.parent
    disk = above.stat().st_dev
    for source in sources:
        if source is not None and source.stat().st_dev != disk:
            raise RunError(
                f"nothing was sorted: {source} is on another disk than {folder}, and a hard link "
                "cannot lead there: take --how copy"
            )


# -- the plan -----------------------------------------------------------------------------------


def _plan(
    store: ImageStore,
    labels: np.ndarray,
    names: list[str | None],
    sources: list[Path | None],
    folder: Path,
    before: dict[tuple[str, str], str],
) -> list[Step]:
    """Where each image goes; each file once, and no two to one name."""
    taken: dict[str, set[str]] = {}  # place -> names in it, as a disk that ignores case sees them
    numbers: dict[tuple[str, str], int] = {}  # (place, name) -> the last number tried
    planned: set[tuple[str, str]] = set()
    steps: list[Step] = []
    sorted_before = {os.path.realpath(folder / file) for file in before.values()}
    for row, (label, name, source) in enumerate(zip(labels.tolist(), names, sources, strict=True)):
        real = None if source is None else Path(os.path.realpath(source))
        if str(real) in sorted_before:
            continue  # `folder` lies among the images
        place = "none" if label < 0 else f"{label:03d}" + (f"-{_safe(name)}" if name else "")
        if place not in taken:
            taken[place] = _names_in(folder / place)
        key = store.paths[row] or f"id:{store.ids[row]}"  # what tells one image from another
        if (key, place) in planned:
            continue  # a list may name a picture twice
        planned.add((key, place))
        known = before.get((key, place))
        if known is not None:
            target = folder / known
            if not os.path.lexists(target):
                taken[place].add(_folded(target.name))
                steps.append(Step(row, source, real, target, there=False))
                continue
            if target.exists() and _is_the_same(store, row, source, target):
                steps.append(Step(row, source, real, target, there=True))
                continue
        wanted = f"{_safe(store.ids[row])}.png" if source is None else _short(source.name)
        candidate = wanted
        while _folded(candidate) in taken[place]:
            counter = (place, _folded(wanted))
            numbers[counter] = numbers.get(counter, 0) + 1
            stem, suffix = Path(wanted).stem, Path(wanted).suffix
            candidate = f"{stem}-{numbers[counter]}{suffix}"
        taken[place].add(_folded(candidate))
        steps.append(Step(row, source, real, folder / place / candidate, there=False))
    return steps


def _names_in(place: Path) -> set[str]:
    if not place.is_dir():
        return set()
    return {_folded(name) for name in os.listdir(place)}  # noqa: PTH208 (names are wanted)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _safe(name: str) -> str:
    """A name without what a file system or a path would read as more than a name."""
    cleaned = "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in name).strip(" .")
    if cleaned.partition(".")[0].casefold() in RESERVED:  # Windows' names of devices
        cleaned = f"_{cleaned}"
    return _cut(cleaned, MOST_BYTES // 2).strip(" .") or "_"


def _short(name: str) -> str:
    """A file's name, cut before its extension where it is too long for a number behind it."""
    stem, suffix = Path(name).stem, Path(name).suffix
    if len(os.fsencode(suffix)) > MOST_BYTES // 4:
        stem, suffix = name, ""
    return _cut(stem, MOST_BYTES - len(os.fsencode(suffix))) + suffix


def _cut(text: str, most: int) -> str:
    """As much of the beginning of `text` as has `most` bytes; no character is cut in two."""
    raw = os.fsencode(text)
    if len(raw) <= most:
        return text
    while most and raw[most] & 0xC0 == 0x80:  # within a character of UTF-8
        most -= 1
    return os.fsdecode(raw[:most])


def _is_the_same(store: ImageStore, row: int, source: Path | None, target: Path) -> bool:
    """Whether `target` is the image, from when this was done before."""
    if source is not None:
        return source.samefile(target) or filecmp.cmp(source, target, shallow=False)
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(target) as image:
            return np.array_equal(np.asarray(image), _pixels(store, row))
    except (OSError, UnidentifiedImageError):
        return False


def _pixels(store: ImageStore, row: int) -> np.ndarray:
    pixels = store[row]
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


# -- the log ------------------------------------------------------------------------------------


def _read_log(folder: Path) -> dict[tuple[str, str], str]:
    """(image, place) -> file, as sorted before.

    Raises:
        RunError: there is a sorted.csv that this did not write.
    """
    return {(row[1] or f"id:{row[0]}", row[4].rpartition("/")[0]): row[4] for row in _rows(folder)}


def _rows(folder: Path) -> list[list[str]]:
    path = folder / LOG
    if not os.path.lexists(path):
        return []
    rows: list[list[str]] = []
    with (
        contextlib.suppress(csv.Error, OSError),
        path.open(newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        rows = list(csv.reader(file, strict=True))
    inside = all(len(row) == 5 and _is_inside(row[4]) for row in rows[1:])
    if not rows or rows[0] != COLUMNS or not inside:
        raise RunError(
            f"{path} is not what deepcluster writes there: move it elsewhere, or choose another "
            "folder with --into"
        )
    return rows[1:]


def _is_inside(file: str) -> bool:
    """Whether a line of the log names a file of a folder of it, and nothing elsewhere."""
    parts = file.split("/")
    return len(parts) == 2 and all(part not in ("", ".", "..") for part in parts)


def _write_log(
    folder: Path,
    store: ImageStore,
    labels: np.ndarray,
    names: list[str | None],
    steps: list[Step],
) -> None:
    """Write down what will be where; what was sorted before stays written."""
    now = []
    for step in steps:
        row, file = step.row, f"{step.target.parent.name}/{step.target.name}"
        now.append([store.ids[row], store.paths[row] or "", int(labels[row]), names[row], file])
    files = {row[4] for row in now}
    earlier = [row for row in _rows(folder) if row[4] not in files]
    with (
        replacing(folder / LOG) as part,
        part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file_,
    ):
        writer = csv.writer(file_)
        writer.writerow(COLUMNS)
        writer.writerows([*earlier, *now])


def _clean(folder: Path, before: dict[tuple[str, str], str]) -> None:
    """Delete what was not whole when this was stopped before."""
    for place in {place for _, place in before}:
        for part in (folder / place).glob(f"{PART}*"):
            part.unlink()


# -- the work -----------------------------------------------------------------------------------


def _do(step: Step, store: ImageStore, how: How, moves: dict[Path, Path]) -> None:
    source, target = step.source, step.target
    if source is None:
        if not step.there:
            from PIL import Image

            with _part(target) as part:
                Image.fromarray(_pixels(store, step.row)).save(part, format="PNG")
    elif how == "move":
        _move(source, step, moves)
    elif step.there:
        pass
    elif how == "link":
        os.link(os.path.realpath(source), target)
    else:
        with _part(target) as part:
            shutil.copy2(source, part)


def _move(source: Path, step: Step, moves: dict[Path, Path]) -> None:
    target = step.target
    if source.is_symlink():
        assert step.real is not None
        if not step.there:
            leads_to = moves.get(step.real, step.real).absolute()
            with _part(target) as part:
                part.symlink_to(leads_to)
        source.unlink()
    elif step.there:
        if not source.samefile(target):
            source.unlink()  # a copy between disks that was stopped before its last step
    else:
        _refuse_taken(target)
        try:
            source.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with _part(target) as part:
                shutil.copy2(source, part)
            source.unlink()


def _refuse_taken(target: Path) -> None:
    """Another program may have put something there since the plan was made."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, f"{target} is there since just now")


@contextlib.contextmanager
def _part(target: Path) -> Iterator[Path]:
    """A name to write under; it becomes `target` once it is whole."""
    part = target.with_name(f"{PART}{os.getpid()}")
    try:
        yield part
        _refuse_taken(target)
        part.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
