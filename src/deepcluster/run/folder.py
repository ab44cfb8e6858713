"""The folder of a run: its names, whose it is, who is at work in it, and what becomes of it.

Nothing but this module deletes a run, and only files of the names that a fit writes (`_OWN`). A run
that is replaced lies beside the new one, as ``NAME.replaced``, until that one has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from deepcluster.errors import RunError
from deepcluster.files import refuse_unwritable, take_lock

TOOL = "deepcluster"
"""Who wrote the folder, in run.json: nothing is deleted that lacks it."""

_OWN = re.compile(
    r"""((frozen|scratch|adapt)/)?  # a run within, of a start that was not kept
    (run\.json | config\.toml | metrics\.jsonl | log\.txt | skipped\.csv | fit\.lock
    | items\.(parquet|csv) | clusters\.json | (embeddings|contents)\.npy
    | neighbours\.safetensors | tree\.npz
    | model/((config\.json) | (model|clusters)\.safetensors | README\.md)
    | thumbnails/(\d{4,}\.webp | order\.npy | index\.json)
    | checkpoints/epoch-\d+\.safetensors
    | updates/\d{8}-\d{6}(-\d+)?\.csv
    | pictures/(curves\.svg | clusters\.png | cluster-\d{3,}\.png)
    | tensorboard/events\.out\.tfevents\.[^/]+
    | classifier/((classifier|images)\.safetensors | classifier\.json | labels\.csv)
    | labelling/(suggested\.json | to_label(-\d+)?\.csv)
    | (report|report\.part|labelling)/(index\.html | (style|label)\.css | scripts/[a-z-]+\.js
        | data/[a-z-]+\.(js|webp) | thumbnails/\d{4,}\.webp)
    )(\.part)?
    | (.+/)?(\.DS_Store | (?i:thumbs\.db | ehthumbs\.db | desktop\.ini) | Icon\r | \.directory
        | \._[^/]+ | @eaDir/.+)  # of file managers and of a Synology NAS
    """,
    re.VERBOSE,
)
"""Paths, in the run folder, of all that a fit, the report and a person's work with them write."""

_OWN_FOLDERS = re.compile(
    r"(frozen|scratch|adapt)|((frozen|scratch|adapt)/)?"
    r"(model|thumbnails|checkpoints|pictures|tensorboard|updates|classifier"
    r"|(report|report\.part|labelling)(/(scripts|data|thumbnails))?)"
    r"|(.+/)?@eaDir(/.+)?"
)


def run_around(path: Path) -> Path | None:
    """The run that a path lies in, or is, if any: its files are written anew and deleted."""
    places = [path.resolve(), *path.resolve().parents]
    return next((each for each in places if RunFolder(each)._is_ours()), None)


class RunFolder:
    """What can be said and done of a run without reading what is in its files.

    Args:
        path: the folder. Nothing is read or written until a method is called.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    # -- making and opening -------------------------------------------------------------------

    @classmethod
    def free(cls, path: str | Path, *, overwrite: bool = False) -> Self:
        """The run that :meth:`create` will make there; nothing is made or deleted yet.

        Raises:
            RunError: the folder is not empty, or is a file; with `overwrite`, it is not a run, a
                fit is at work in it, or it holds what no fit wrote.
        """
        run = cls(path)
        run._restore()
        if run.path.exists() and not run.path.is_dir():
            raise RunError(f"{run.path} is a file: choose a folder with --out")
        refuse_unwritable(run.path)
        if run.path.is_dir() and any(run.path.iterdir()):
            if not run._is_ours():
                raise RunError(
                    f"{run.path} is not empty and is no run of deepcluster, so nothing is written "
                    "there, nor deleted with --overwrite: choose another folder with --out"
                )
            if not overwrite:
                raise RunError(
                    f"{run.path} is not empty, a run is in it: go on with --resume, replace it "
                    "with --overwrite, or choose another folder with --out"
                )
            run._refuse_foreign()
            run.refuse_if_live()
            if run.aside.path.exists() and not run.aside._is_ours():
                raise RunError(
                    f"{run.aside.path} is in the way, where {run.path} would be put until the new "
                    "run has ended: rename it, or choose another folder with --out"
                )
        return run

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        overwrite: bool = False,
        begin: Callable[[Self], None] | None = None,
    ) -> Self:
        """Make the folder; with `overwrite`, in place of the run there, which is put aside.

        The folder takes its place at once with all that `begin` wrote, so that there never is one
        that is not a run yet. What was put aside is in :attr:`aside` until
        :meth:`remove_replaced`.

        Args:
            path: the folder.
            overwrite: replace the run that is there.
            begin: writes the first files.

        Raises:
            RunError: as :meth:`free`.
        """
        run = cls.free(path, overwrite=overwrite)
        place = run.path.resolve()  # of a link to a run, the run
        place.parent.mkdir(parents=True, exist_ok=True)
        part = cls(place.with_name(f".{place.name}.part-{os.getpid()}"))
        part.remove()
        part.path.mkdir()
        try:
            if begin is not None:
                begin(part)
            if overwrite and run._is_ours():
                if not run.aside.path.exists():
                    place.replace(run.aside.path)
                elif run._peek().get("status") == "done":
                    run.remove_replaced()  # what a fit that was killed at its very end has left
                    place.replace(run.aside.path)
                elif run.unfinished.path.exists():
                    run.remove()  # it was to replace that one, and did nothing yet
                else:  # it is to replace the one aside, which stays, and has not ended
                    place.replace(run.unfinished.path)
            try:
                if place.is_dir():
                    place.rmdir()  # empty: a folder takes only a name that nothing has
                part.path.rename(place)
            except OSError as error:  # somebody was faster
                raise RunError(f"{run.path} is not empty: choose another folder") from error
        finally:
            part.remove()
        return run

    @classmethod
    def create_unique(cls, path: Path, begin: Callable[[Self], None]) -> Self:
        """:meth:`create`, under the first of the names NAME, NAME-2, NAME-3 … that is not taken."""
        number, name = 1, path
        while True:
            if not name.exists():
                try:
                    return cls.create(name, begin=begin)
                except RunError:
                    if not name.exists():  # else somebody was faster
                        raise
            number += 1
            name = path.with_name(f"{path.name}-{number}")

    # -- replacing and deleting ---------------------------------------------------------------

    @property
    def aside(self) -> Self:
        """Where the run lies that this one replaces, until this one has ended."""
        place = self.path.resolve()
        return type(self)(place.with_name(f"{place.name}.replaced"))

    @property
    def unfinished(self) -> Self:
        """Where a run lies that has not ended and that this one replaces, until this one trains."""
        place = self.path.resolve()
        return type(self)(place.with_name(f"{place.name}.unfinished"))

    def remove_unfinished(self) -> None:
        """Delete the run that has not ended and that this one has replaced."""
        if self.unfinished._is_ours():
            self.unfinished.remove()

    def _restore(self) -> None:
        """Put back a run that was put aside for one that never came to be."""
        for aside in (self.unfinished, self.aside):
            if not self.path.exists() and not self.path.is_symlink() and aside._is_ours():
                with contextlib.suppress(OSError):  # then it is told that there is none
                    aside.path.rename(self.path)

    def _peek(self) -> dict[str, Any]:
        """run.json as it is, unchecked; nothing where there is none."""
        try:
            info = json.loads(self._info.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return info if isinstance(info, dict) else {}

    def _is_ours(self) -> bool:
        """Whether run.json says that a fit of deepcluster wrote this folder."""
        info = self._peek()
        by = info.get("versions") if "tool" not in info else {str(info["tool"]): ""}
        known = isinstance(by, dict) and TOOL in by  # the first runs name the tool only there
        return known and isinstance(info.get("schema"), int)

    def foreign(self) -> list[str]:
        """What lies in the folder that no fit writes: relative paths, a folder of it as one."""
        found: list[str] = []
        folders = [""]
        while folders:
            folder = folders.pop()
            with os.scandir(self.path / folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if not entry.is_symlink() and entry.is_dir():
                        if _OWN_FOLDERS.fullmatch(name):
                            folders.append(name)
                        else:
                            found.append(f"{name}/")
                    elif not entry.is_file(follow_symlinks=False) or not _OWN.fullmatch(name):
                        found.append(name)
        return sorted(found)

    def _refuse_foreign(self) -> None:
        foreign = self.foreign()
        if foreign:
            shown = ", ".join(foreign[:5]) + (" …" if len(foreign) > 5 else "")
            raise RunError(
                f"{self.path} holds what no fit wrote ({shown}), so --overwrite will not replace "
                "it: move that to another folder first, or choose another one with --out"
            )

    def clear(self, *names: str) -> None:
        """Delete folders of the run that are made anew; one stays if hidden files are in it.

        Args:
            names: of the folders, relative to the run.

        Raises:
            RunError: one holds what no fit wrote; nothing is deleted then.
        """
        self.refuse_foreign_in(*names)
        for name in names:
            self._remove_own(name)

    def refuse_foreign_in(self, *names: str) -> None:
        """Refuse to make folders anew that hold, or are, what no fit wrote: see :meth:`clear`."""
        if not self.path.is_dir():
            return
        for foreign in self.foreign():  # a folder ends with /, and a link is what it leads to
            above = foreign.rstrip("/") + "/"
            hidden = above.split("/")[-2].startswith(".")  # of programs: not in the way, and stays
            if not hidden and any(
                f"{name}/".startswith(above) or foreign.startswith(f"{name}/") for name in names
            ):
                raise RunError(
                    f"{self.path / foreign} is in a folder that is made anew, and no fit wrote it: "
                    "move it out of the run, then say the same again"
                )

    def remove_pictures(self) -> None:
        """Delete the pictures of clusters, of which there may be others now."""
        for path in self.pictures.glob("cluster-*.png"):
            if _OWN.fullmatch(f"{self.pictures.name}/{path.name}"):
                path.unlink()

    def remove(self) -> None:
        """Delete the run: files of the names that a fit writes, and the folders this empties."""
        self._remove_own("")

    def _remove_own(self, below: str) -> None:
        top = self.path / below
        if not top.is_dir() or top.is_symlink():
            return
        folders = []
        for folder, inside, files in os.walk(top, topdown=True):
            relative = Path(folder).relative_to(self.path).as_posix()
            prefix = "" if relative == "." else f"{relative}/"
            inside[:] = [name for name in inside if _OWN_FOLDERS.fullmatch(prefix + name)]
            folders.append(folder)
            for name in files:
                if _OWN.fullmatch(prefix + name):
                    (Path(folder) / name).unlink()
        for folder in reversed(folders):
            with contextlib.suppress(OSError):  # something of a person's is in it
                Path(folder).rmdir()

    def remove_replaced(self) -> Path | None:
        """Delete the run that this one has replaced.

        Returns:
            Where it is kept, if it holds a person's work (names, moves, labels) or what no fit
            wrote.
        """
        aside = self.aside
        if not aside._is_ours():
            return None
        try:
            named = any(aside.path.glob(f"**/{aside._clusters.name}"))  # in another start's too
            work = (aside._updates, aside.classifier, aside.labelling)
            untouched = not (named or any(path.exists() for path in work) or aside.foreign())
        except OSError:
            untouched = False
        if untouched:
            aside.remove()
            return None
        number, kept = 1, aside.path.with_name(f"{self.path.resolve().name}.old")
        while kept.exists():
            number += 1
            kept = kept.with_name(f"{self.path.resolve().name}.old-{number}")
        aside.path.rename(kept)
        return kept

    def withdraw(self, *, keep_folder: bool) -> None:
        """Delete a run in which nothing was done yet; the one it was to replace is back then.

        Not while its lock is held: Windows deletes no file that is open.

        Args:
            keep_folder: leave an empty folder, if there was no run.
        """
        run = type(self)(self.path.resolve())
        run.remove()
        run._restore()
        if keep_folder:
            run.path.mkdir(exist_ok=True)

    # -- one fit at a time --------------------------------------------------------------------

    @property
    def _lock(self) -> Path:
        return self.path / "fit.lock"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other fits out of the folder for a block; the lock falls with the process.

        Raises:
            RunError: a fit is at work in it.
        """
        with self._lock.open("a+", encoding="utf-8") as file:
            if not take_lock(file):
                self.refuse_if_live()
                if not take_lock(file):  # else whoever had it has only looked
                    raise RunError(f"another fit is at work in {self.path}")
            file.truncate(0)
            json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
            file.flush()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # Windows: not while it is open
                    self._lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._lock.unlink(missing_ok=True)

    def is_live(self) -> bool:
        """Whether a fit is at work in the folder."""
        try:
            with self._lock.open("r+", encoding="utf-8") as file:
                return not take_lock(file)
        except OSError:
            return False

    def refuse_if_live(self) -> None:
        """Refuse a folder in which a fit is at work.

        Raises:
            RunError: it is so.
        """
        if self.is_live():
            who = ""
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                by = json.loads(self._lock.read_text(encoding="utf-8"))
                who = f" (process {int(by['pid'])} on {str(by['host'])[:100]})"
            raise RunError(
                f"another fit is at work in {self.path}{who}: wait until it has ended, or stop it"
            )

    # -- files --------------------------------------------------------------------------------

    @property
    def _info(self) -> Path:
        return self.path / "run.json"

    @property
    def _config(self) -> Path:
        return self.path / "config.toml"

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _items(self) -> Path:
        return self.path / "items.parquet"

    @property
    def _clusters(self) -> Path:
        return self.path / "clusters.json"

    @property
    def _skipped(self) -> Path:
        return self.path / "skipped.csv"

    @property
    def _thumbnails(self) -> Path:
        return self.path / "thumbnails"

    @property
    def log(self) -> Path:
        """The log, for people."""
        return self.path / "log.txt"

    @property
    def model(self) -> Path:
        """Folder of the exported backbone, readable by timm."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def other(self, start: str) -> Self:
        """A run within this one: the same images by another start, which was not kept."""
        return type(self)(self.path / start)

    @property
    def pictures(self) -> Path:
        """Folder of the curves and the grids of clusters."""
        return self.path / "pictures"

    @property
    def report(self) -> Path:
        """Folder of the report; ``index.html`` is its first page."""
        return self.path / "report"

    @property
    def tensorboard(self) -> Path:
        """Folder of the event files for TensorBoard, where they were asked for."""
        return self.path / "tensorboard"

    @property
    def tree(self) -> Path:
        """How the clusters split and merge; runs of older versions lack it."""
        return self.path / "tree.npz"

    @property
    def embeddings(self) -> Path:
        """The final features, ``(n, d)`` float32, in the order of the items."""
        return self.path / "embeddings.npy"

    @property
    def contents(self) -> Path:
        """What tells the images by their content, ``(n,)`` uint64, in the order of the items."""
        return self.path / "contents.npy"

    @property
    def _updates(self) -> Path:
        return self.path / "updates"

    @property
    def neighbours(self) -> Path:
        """The nearest images of each image; runs of older versions lack it."""
        return self.path / "neighbours.safetensors"

    @property
    def classifier(self) -> Path:
        """Folder of the classifier that a few labels made (absent before `deepcluster teach`)."""
        return self.path / "classifier"

    @property
    def labelling(self) -> Path:
        """Folder of the page to label images in (absent before `deepcluster suggest`)."""
        return self.path / "labelling"

    @property
    def _labels(self) -> Path:
        return self.classifier / "labels.csv"

    @property
    def _classes(self) -> Path:
        return self.classifier / "images.safetensors"

    @property
    def _suggested(self) -> Path:
        return self.labelling / "suggested.json"
