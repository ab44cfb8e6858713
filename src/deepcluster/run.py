"""RunDir: the folder a fit leaves, and the only code that knows the names of its files.

``docs/run-folder.md`` describes the files for people. Nothing here needs torch, so the report and
other tools can read a run without it. Files that matter are written under another name first and
then moved into place: a run that is cut off never leaves half a file. What is read is checked, and
an error names the file and what to do (:mod:`deepcluster.files`).

Nothing but this module deletes a run, and only files of the names that a fit writes (`_OWN`). A run
that is replaced lies beside the new one, as ``NAME.replaced``, until that one has ended.

Long, because writer and checked reader of every file stand side by side in the one room that may
know its name.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from deepcluster.config import Config, override, parse_toml, to_toml
from deepcluster.errors import ConfigError, DamagedError, RunError
from deepcluster.files import CURE, check, reading, refuse_unwritable, replacing, take_lock

SCHEMA = 1
"""Version of the run folder; readers refuse a newer one."""

TOOL = "deepcluster"
"""Who wrote the folder, in run.json: nothing is deleted that lacks it."""

ITEMS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # stable name of the image, unique in the run
        ("path", pa.string()),  # where it was read from; null for arrays
        ("label", pa.string()),  # its class, if the source has one; null otherwise
        ("cluster", pa.int32()),
        ("name", pa.string()),  # what a person called the cluster; null before that
        ("by", pa.string()),  # who put it there: "model" or "person"
        ("distance", pa.float32()),  # to the nearest centres of its cluster, in feature space
        ("confidence", pa.float32()),  # 0 to 1
        ("x", pa.float32()),  # place on the map; null if the image is not on it
        ("y", pa.float32()),
    ]
)

UPDATE_COLUMNS = ["id", "path", "cluster", "name", "fits", "content"]
"""Of the lists in ``updates/``: `fits` is yes or no, `content` is x and that of contents.npy in hex
(the x: a spreadsheet would read 12e4567 as a number)."""
MOST_CLUSTERS = 1_000_000
"""Numbers of clusters lie below this, and as many more as there are images."""

SHEET_SIDE = 1024
"""Side of a full sheet of thumbnails in pixels (about; a whole number of tiles)."""

NEIGHBOURS = 12
"""Nearest images that are kept of each image."""


@dataclass(frozen=True)
class Thumbnails:
    """Sheets of small pictures, row by row."""

    tile: int  # side of a tile in pixels
    columns: int  # tiles in a row
    rows: int  # rows in a sheet
    count: int  # tiles in all
    sheets: list[Path]  # the WebP files, in order
    order: np.ndarray  # (count,) the item (its row in the table) that each tile shows


@dataclass(frozen=True)
class Neighbours:
    """The nearest images of each image, in the order of the items."""

    index: np.ndarray  # (n, k) uint32, nearest first, never the image itself
    distance: np.ndarray  # (n, k) float32, Euclidean, in feature space
    recall: float  # share of the true neighbours that were found; 1 where the search was exact


_OWN = re.compile(
    r"""((frozen|scratch|adapt)/)?  # a run within, of a start that was not kept
    (run\.json | config\.toml | metrics\.jsonl | log\.txt | skipped\.csv | fit\.lock
    | items\.(parquet|csv) | clusters\.json | (embeddings|contents)\.npy
    | neighbours\.safetensors | tree\.npz
    | model/((config\.json) | (model|clusters)\.safetensors | README\.md)
    | thumbnails/(\d{4,}\.webp | order\.npy | index\.json)
    | checkpoints/epoch-\d+\.safetensors
    | updates/\d{8}-\d{6}(-\d+)?\.csv
    | pictures/(curves\.svg | clusters\.png | cluster-\d+\.png)
    | tensorboard/events\.out\.tfevents\.[^/]+
    | classifier/(classifier\.(safetensors|json) | labels\.csv)
    | labelling/(suggested\.json | to_label(-\d+)?\.csv)
    | (report|report\.part|labelling)/(index\.html | style\.css | scripts/[a-z-]+\.js
        | data/[a-z-]+\.(js|webp) | thumbnails/\d{4,}\.webp)
    )(\.part)?
    | (.+/)?(\.DS_Store | Thumbs\.db | desktop\.ini)  # what file managers leave
    """,
    re.VERBOSE,
)
"""Paths, in the run folder, of all that a fit, the report and a person's work with them write."""

_OWN_FOLDERS = re.compile(
    r"(frozen|scratch|adapt)|((frozen|scratch|adapt)/)?"
    r"(model|thumbnails|checkpoints|pictures|tensorboard|updates|classifier"
    r"|(report|report\.part|labelling)(/(scripts|data|thumbnails))?)"
)

_STATUSES = ("starting", "running", "interrupted", "failed", "done")


class RunDir:
    """One run on disk.

    Args:
        path: the folder. Nothing is read or written until a method is called.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    # -- making and opening -------------------------------------------------------------------

    @classmethod
    def free(cls, path: str | Path, *, overwrite: bool = False) -> RunDir:
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
            if not overwrite:
                raise RunError(
                    f"{run.path} is not empty: go on with --resume, replace it with --overwrite, "
                    "or choose another folder with --out"
                )
            if not run._is_ours():
                raise RunError(
                    f"{run.path} is not empty and is no run of deepcluster, so --overwrite will "
                    "not delete it: choose another folder with --out"
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
        begin: Callable[[RunDir], None] | None = None,
    ) -> RunDir:
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
                else:
                    run.remove()  # it is to replace the one aside, which stays, and has not ended
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
    def create_unique(cls, path: Path, begin: Callable[[RunDir], None]) -> RunDir:
        """:meth:`create`, under the first of the names NAME, NAME-2, NAME-3 … that is not taken."""
        number, name = 1, path
        while True:
            if not name.exists():
                with contextlib.suppress(RunError):
                    return cls.create(name, begin=begin)
            number += 1
            name = path.with_name(f"{path.name}-{number}")

    @classmethod
    def open(cls, path: str | Path, *, finished: bool = True) -> RunDir:
        """Open a run that exists.

        Raises:
            RunError: there is none, it was written by a newer version, or, with `finished`, its
                fit has not ended.
        """
        run = cls(path)
        run._restore()
        if not run._info.is_file():
            raise RunError(
                f"{run.path} is no run folder (it has no run.json): give the folder that "
                "`deepcluster fit` printed"
            )
        info = run.read_info()
        if finished and info["status"] != "done":
            if run.is_live():
                raise RunError(f"the fit in {run.path} is still at work: wait until it has ended")
            raise RunError(
                f"the fit in {run.path} has not ended (status {info['status']!r}): "
                f"finish it with `deepcluster fit … --out {run.path} --resume`"
            )
        return run

    # -- replacing and deleting ---------------------------------------------------------------

    @property
    def aside(self) -> RunDir:
        """Where the run lies that this one replaces, until this one has ended."""
        place = self.path.resolve()
        return RunDir(place.with_name(f"{place.name}.replaced"))

    def _restore(self) -> None:
        """Put back a run that was put aside for one that never came to be."""
        aside = self.aside
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

    def remove(self) -> None:
        """Delete the run: files of the names that a fit writes, and the folders this empties."""
        if not self.path.is_dir() or self.path.is_symlink():
            return
        folders = []
        for folder, inside, files in os.walk(self.path, topdown=True):
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

        Args:
            keep_folder: leave an empty folder, if there was no run.
        """
        run = RunDir(self.path.resolve())
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

    def other(self, start: str) -> RunDir:
        """A run within this one: the same images by another start, which was not kept."""
        return RunDir(self.path / start)

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

    # -- what happened ------------------------------------------------------------------------

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Write run.json (status, versions, hardware, seed, command, counts, timings, scores)."""
        _write_json(self._info, {"schema": SCHEMA, "tool": TOOL, **info})

    def read_info(self) -> dict[str, Any]:
        """Read run.json.

        Raises:
            RunError: it is damaged, or of a newer version.
        """
        with reading(self._info):
            info = json.loads(self._info.read_bytes())
            check(isinstance(info, dict), "it is no JSON object")
            schema = info.get("schema", 0)
            if isinstance(schema, int) and schema > SCHEMA:
                raise RunError(
                    f"{self.path} was written by a newer deepcluster (schema {schema}, "
                    f"this one reads {SCHEMA}): upgrade deepcluster"
                )
            _check_info(info)
        return cast(dict[str, Any], info)

    def write_config(self, config: Config) -> None:
        """Write the resolved settings."""
        with replacing(self._config) as part:
            part.write_text(to_toml(config), encoding="utf-8")

    def read_config(self) -> Config:
        """Read the resolved settings.

        Raises:
            RunError: they are damaged.
        """
        with reading(self._config):
            try:
                values = parse_toml(self._config.read_bytes(), str(self._config))
                values.pop("pretrained", None)  # runs made before there was `start`
                config = override(Config(), {"start": "scratch", **values})
            except ConfigError as error:
                raise DamagedError(str(error)) from error
            # cut off, TOML may still be TOML
            needed = {"method", "clusters", "epochs", "size", "backbone", "data", "train", "final"}
            missing = needed - values.keys()
            check(not missing, f"it says nothing of {', '.join(sorted(missing))}")
        return config

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one epoch's line to metrics.jsonl."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one an epoch; a last one that is broken off is left out.

        Raises:
            RunError: another line is broken.
        """
        if not self._metrics.is_file():
            return []
        lines: list[dict[str, Any]] = []
        with reading(self._metrics):
            raw = [line for line in self._metrics.read_bytes().split(b"\n") if line.strip(b" \r\0")]
            for number, text in enumerate(raw):
                try:
                    line = json.loads(text)
                    fits = (
                        isinstance(line, dict) and _fits(line, _LINE) and _is_number(line["epoch"])
                    )
                except (ValueError, KeyError, RecursionError):
                    fits = False
                if fits:
                    lines.append(line)
                else:
                    check(
                        number == len(raw) - 1, f"its line {number + 1} is broken: delete that line"
                    )
        return lines

    def truncate_metrics(self, epochs: int) -> None:
        """Keep the lines of the first `epochs` epochs (a resumed fit writes the others anew)."""
        lines = [json.dumps(line) + "\n" for line in self.read_metrics() if line["epoch"] < epochs]
        with replacing(self._metrics) as part:
            part.write_text("".join(lines), encoding="utf-8")

    def write_skipped(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Write skipped.csv: the path of each image that was left out, and the reason."""
        with (
            replacing(self._skipped) as part,
            part.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["path", "reason"])
            writer.writerows(skipped)

    def read_skipped(self) -> list[tuple[str, str]]:
        """The images that were left out: (path, reason)."""
        with (
            reading(self._skipped),
            self._skipped.open(newline="", encoding="utf-8") as file,
        ):
            rows = csv.reader(file, strict=True)
            check(next(rows, None) == ["path", "reason"], "its columns are not path, reason")
            pairs = list(rows)
            check(all(len(row) == 2 for row in pairs), "a row has not two values")
            return [(path, reason) for path, reason in pairs]

    # -- the images' table --------------------------------------------------------------------

    def write_items(self, columns: Mapping[str, Any]) -> None:
        """Write items.parquet and items.csv.

        Args:
            columns: a value for each column of ITEMS_SCHEMA, each of length n; NaN in a float
                column and None elsewhere become null.
        """
        arrays = [
            pa.array(columns[f.name], f.type, from_pandas=True)  # from_pandas: NaN is null
            for f in ITEMS_SCHEMA
        ]
        table = pa.Table.from_arrays(arrays, schema=ITEMS_SCHEMA)
        with replacing(self._items) as part:
            pq.write_table(table, part)
        with replacing(self.path / "items.csv") as part:
            pyarrow.csv.write_csv(table, part)

    def read_items(self) -> pa.Table:
        """The table of images, a row each, columns as in ITEMS_SCHEMA.

        Raises:
            RunError: it is damaged.
        """
        with reading(self._items):
            table = pq.read_table(self._items)
            missing = [name for name in ITEMS_SCHEMA.names if name not in table.column_names]
            check(not missing, f"it has no column {', '.join(missing)}")
            table = table.select(ITEMS_SCHEMA.names).cast(ITEMS_SCHEMA)
            table.validate(full=True)
            n = len(table)
            check(n > 0, "it has no row")
            check(table["id"].null_count == 0, "an image has no id")
            check(pc.count_distinct(table["id"]).as_py() == n, "two images have one id")
            clusters = table["cluster"]
            check(clusters.null_count == 0, "an image has no cluster")
            bounds = pc.min_max(clusters).as_py()
            low, high = bounds["min"], bounds["max"]
            check(low >= -1, f"there is no cluster {low}")
            check(high < MOST_CLUSTERS + n, f"there is no cluster {high}")
            by = set(pc.unique(table["by"]).to_pylist())
            check(by <= {"model", "person"}, "`by` is something else than model or person")
            for name in ("distance", "confidence", "x", "y"):
                finite = pc.all(pc.is_finite(table[name]), skip_nulls=True).as_py()
                check(finite is not False, f"a {name} is not a finite number")
        return table

    def write_embeddings(self, embeddings: np.ndarray) -> None:
        """Write the final features, ``(n, d)`` float32, in the order of the items."""
        with replacing(self.embeddings) as part, part.open("wb") as file:
            np.save(file, embeddings, allow_pickle=False)

    def read_embeddings(self) -> np.ndarray:
        """The final features, ``(n, d)`` float32, memory-mapped, in the order of the items.

        Raises:
            RunError: they are damaged, or not of this run's images.
        """
        with reading(self._items):
            n = pq.read_metadata(self._items).num_rows
        with reading(self.embeddings):
            found = np.load(self.embeddings, mmap_mode="r", allow_pickle=False)
            check(found.ndim == 2 and found.dtype == np.float32, "it is no table of float32")
            check(len(found) == n, f"it has {len(found)} rows for {n} images")
            check(found.shape[1] > 0, "it has no column")
            rows = max(1, 2**22 // found.shape[1])
            blocks = (found[start : start + rows] for start in range(0, n, rows))
            check(all(np.isfinite(block).all() for block in blocks), "a feature is not finite")
        return cast(np.ndarray, found)

    def write_contents(self, contents: np.ndarray) -> None:
        """Write what tells the images by their content, ``(n,)`` uint64."""
        with replacing(self.contents) as part, part.open("wb") as file:
            np.save(file, contents, allow_pickle=False)

    def read_contents(self) -> np.ndarray:
        """What tells the images by their content, ``(n,)`` uint64, in the order of the items.

        Raises:
            RunError: the run was fitted before there was such a file, or it is damaged.
        """
        if not self.contents.is_file():
            raise RunError(
                f"{self.path} does not say what is in its images ({self.contents.name} is "
                "missing): it was fitted by an older deepcluster, or is only in part copied"
            )
        with reading(self._items):
            n = pq.read_metadata(self._items).num_rows
        with reading(self.contents):
            found = np.load(self.contents, allow_pickle=False)
            check(found.shape == (n,), f"it has {found.size} rows for {n} images")
            check(found.dtype == np.uint64, "it holds no contents")
        return cast(np.ndarray, found)

    def write_neighbours(self, neighbours: Neighbours) -> None:
        """Write the nearest images of each image."""
        from safetensors.numpy import save_file

        with replacing(self.neighbours) as part:
            save_file(
                {
                    "index": np.ascontiguousarray(neighbours.index, np.uint32),
                    "distance": np.ascontiguousarray(neighbours.distance, np.float32),
                    "recall": np.array([neighbours.recall], np.float32),
                },
                part,
            )

    def read_neighbours(self, count: int) -> Neighbours | None:
        """The nearest images of each image.

        Args:
            count: images of the run.

        Returns:
            None where the run has none, or has them of another number of images.
        """
        from safetensors.numpy import load_file

        if not self.neighbours.is_file():
            return None
        with reading(self.neighbours):
            held = load_file(self.neighbours)
            index, distance, recall = held["index"], held["distance"], float(held["recall"][0])
            check(index.ndim == 2 and index.shape == distance.shape, "its shapes do not agree")
            if len(index) != count:
                return None
            check(index.dtype == np.uint32 and int(index.max(initial=0)) < count, "no such image")
            check(bool(np.isfinite(distance).all()) and 0 <= recall <= 1, "not finite")
        return Neighbours(index, distance, recall)

    def write_tree(self, merges: np.ndarray, heights: np.ndarray, part: np.ndarray) -> None:
        """Write tree.npz: how the parts of the clusters merge.

        Args:
            merges: ``(p - 1, 2)`` pairs i < j of p parts, in order: all that belongs with j joins
                what belongs with i.
            heights: ``(p - 1,)``, of each merge, rising.
            part: ``(n,)``, the part of each image, in the order of the items.
        """
        with replacing(self.tree) as path, path.open("wb") as file:
            np.savez(
                file,
                merges=merges.astype(np.int32).reshape(-1, 2),
                heights=heights.astype(np.float32),
                part=part.astype(np.int32),
            )

    def read_tree(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Merges, heights and the part of each image, as :meth:`write_tree` took them.

        Raises:
            RunError: the run has no tree, or it is damaged.
        """
        if not self.tree.is_file():
            raise RunError(
                f"{self.path} has no tree of its clusters (tree.npz): it was fitted by an older "
                "deepcluster or with more than a few thousand clusters; fit again"
            )
        with reading(self.tree), np.load(self.tree, allow_pickle=False) as arrays:
            merges, heights, part = arrays["merges"], arrays["heights"], arrays["part"]
            p = len(merges) + 1
            check(merges.shape == (p - 1, 2) and heights.shape == (p - 1,), "its shapes disagree")
            check(part.ndim == 1 and merges.dtype == part.dtype == np.int32, "no whole numbers")
            check(bool(((part >= 0) & (part < p)).all()), "it has no such part")
            gone = merges[:, 1]  # joins another, once, and is in no merge after that
            check(bool((merges[:, 0] >= 0).all() and (merges[:, 0] < gone).all()), "no such merge")
            check(np.array_equal(np.sort(gone), np.arange(1, p)), "its merges are no tree")
            check(bool(np.isfinite(heights).all()), "a height is not finite")
        return merges, heights, part

    def write_classifier(self, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Write the classifier: its tensors, and what is said of it."""
        from safetensors.numpy import save_file

        self.classifier.mkdir(exist_ok=True)
        with replacing(self.classifier / "classifier.safetensors") as part:
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, part)
        _write_json(self.classifier / "classifier.json", facts)

    def read_classifier(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What :meth:`write_classifier` wrote.

        Raises:
            RunError: there is none.
        """
        from safetensors.numpy import load_file

        if not (self.classifier / "classifier.json").is_file():
            raise RunError(
                f"{self.path} has no classifier: label some images (`deepcluster suggest "
                f"{self.path}` says which), then `deepcluster teach {self.path} labels.csv`"
            )
        with reading(self.classifier / "classifier.json"):
            facts = json.loads((self.classifier / "classifier.json").read_bytes())
            check(isinstance(facts, dict), "it is no JSON object")
        with reading(self.classifier / "classifier.safetensors"):
            tensors = load_file(self.classifier / "classifier.safetensors")
            finite = (np.isfinite(t).all() for t in tensors.values() if t.dtype.kind == "f")
            check(all(finite), "a number in it is not finite")
        return tensors, facts

    def write_labels(self, rows: Iterable[tuple[str, str]]) -> None:
        """Write the (id, label) pairs that the classifier learnt from."""
        self.classifier.mkdir(exist_ok=True)
        with (
            replacing(self.classifier / "labels.csv") as part,
            part.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["id", "label"])
            writer.writerows(rows)

    def read_labels(self) -> dict[str, str]:
        """The label of each image that the classifier learnt from, by id; empty without one."""
        path = self.classifier / "labels.csv"
        if not path.is_file():
            return {}
        with reading(path), path.open(newline="", encoding="utf-8") as file:
            return {row["id"]: row["label"] for row in csv.DictReader(file, strict=True)}

    def write_suggested(self, ids: Sequence[str]) -> None:
        """Add images to those that a person was ever asked to label."""
        self.labelling.mkdir(exist_ok=True)
        known = self.read_suggested()
        _write_json(self._suggested, known + [id_ for id_ in ids if id_ not in set(known)])

    def read_suggested(self) -> list[str]:
        """Ids of the images that a person was ever asked to label, the first asked first."""
        if not self._suggested.is_file():
            return []
        with reading(self._suggested):
            ids = json.loads(self._suggested.read_bytes())
            sound = isinstance(ids, list) and all(isinstance(id_, str) for id_ in ids)
            check(sound, "it is no list of ids")
        return cast(list[str], ids)

    @property
    def _suggested(self) -> Path:
        return self.labelling / "suggested.json"

    def fingerprint(self) -> str:
        """Tells this fit, and its number of clusters, from any other, wherever its folder lies."""
        info = self.read_info()
        facts = [info.get(key) for key in ("images", "started", "seed", "command")]
        facts.append(info.get("counts", {}).get("clusters"))
        # the letter: a spreadsheet would read 12e4567 as a number
        return "r" + hashlib.blake2b(json.dumps(facts).encode(), digest_size=6).hexdigest()

    def has_changes(self) -> bool:
        """Whether a person has named, moved or merged anything since the fit."""
        return self._clusters.is_file()

    def write_clusters(self, clusters: Mapping[str, Any]) -> None:
        """Write clusters.json: what a person said of the clusters."""
        _write_json(self._clusters, clusters)

    def read_clusters(self) -> dict[str, Any]:
        """What a person said of the clusters.

        Returns:
            ``names``: cluster number (as a string) -> name; ``merged``: cluster number (as a
            string) -> the number it now belongs to; ``by_level``: the clusters among these that
            are merged because a person chose fewer clusters of the tree; ``edit``: tells the
            labels.csv that was applied last from any other. All empty before `deepcluster apply`.
        """
        nothing: dict[str, Any] = {"names": {}, "merged": {}, "by_level": [], "edit": ""}
        if not self._clusters.is_file():
            return nothing
        limit = self._read_limit()  # apply writes clusters.json before the images' clusters
        with reading(self._clusters):
            said = json.loads(self._clusters.read_bytes())
            check(_fits(said, {"names": dict, "merged": dict}), "names or merged are missing")
            for key in (*said["names"], *said["merged"]):
                check(re.fullmatch(r"\d{1,9}", key) is not None, f"{key[:20]!r} is no cluster")
            for name in said["names"].values():
                check(isinstance(name, str), "a name is no text")
            for new in said["merged"].values():
                there = type(new) is int and 0 <= new < limit
                check(there, f"a cluster is merged into {str(new)[:20]}, which does not exist")
            cut = said.get("by_level", [])
            check(isinstance(cut, list) and all(type(c) is int for c in cut), "by_level is wrong")
            check(isinstance(said.get("edit", ""), str), "edit is no text")
        return nothing | cast(dict[str, Any], said)

    def _read_limit(self) -> int:
        """A cluster has a lower number than this: there may be a new one for each image."""
        with reading(self._items):
            clusters = pq.read_table(self._items, columns=["cluster"])["cluster"]
            top = int(pc.max(clusters).as_py()) if len(clusters) else -1
        asked = int(self.read_info()["counts"]["clusters"])
        return max(asked, top + 1) + len(clusters)

    # -- images that came later ---------------------------------------------------------------

    def write_update(self, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Write a list of images that came after the fit into ``updates/``.

        Args:
            rows: a value for each of UPDATE_COLUMNS.

        Returns:
            The file, named by the time.
        """
        self._updates.mkdir(exist_ok=True)
        time, number = f"{datetime.now():%Y%m%d-%H%M%S}", 1
        path = self._updates / f"{time}.csv"
        while path.exists():
            number += 1
            path = path.with_name(f"{time}-{number}.csv")
        with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, UPDATE_COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        return path

    def read_updates(self) -> list[tuple[int, bool]]:
        """What tells each image of the updates by its content, and whether it fits somewhere.

        Raises:
            RunError: a file there is no such list.
        """
        found = []
        for path in sorted(self._updates.glob("*.csv")):
            try:
                with path.open(newline="", encoding="utf-8-sig") as file:
                    found += [
                        (int(row["content"].removeprefix("x"), 16), row["fits"] == "yes")
                        for row in csv.DictReader(file)
                    ]
            except (KeyError, ValueError, AttributeError, csv.Error) as error:
                raise RunError(
                    f"{path} is no list of `deepcluster update`, or was changed by hand ({error}): "
                    "move it elsewhere"
                ) from error
        return found

    # -- small pictures -----------------------------------------------------------------------

    def write_thumbnails(
        self,
        images: Sequence[np.ndarray] | np.ndarray,
        *,
        tile: int,
        order: np.ndarray | None = None,
    ) -> None:
        """Write WebP sheets of all images.

        Args:
            images: n uint8 arrays ``(h, w, 1 or 3)``; an image larger than a tile is shrunk.
            tile: side of a tile in pixels.
            order: the image on each tile, a permutation of 0 … n - 1. Sorted by cluster and by
                distance, a page that shows one cluster opens few sheets. Default: as they come.
        """
        from PIL import Image

        order = np.arange(len(images)) if order is None else np.asarray(order)
        if not np.array_equal(np.sort(order), np.arange(len(images))):
            raise ValueError(f"order must hold each of the {len(images)} images once")
        shutil.rmtree(self._thumbnails, ignore_errors=True)
        self._thumbnails.mkdir()
        side = max(1, SHEET_SIDE // tile)
        for number, start in enumerate(range(0, len(images), side * side)):
            shown = order[start : start + side * side]
            sheet = Image.new("RGB", (side * tile, -(-len(shown) // side) * tile))
            for i, item in enumerate(shown):
                pixels = np.asarray(images[int(item)])
                image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
                if image.width > tile or image.height > tile:
                    image.thumbnail((tile, tile), Image.Resampling.LANCZOS)
                left, top = (tile - image.width) // 2, (tile - image.height) // 2
                sheet.paste(image, ((i % side) * tile + left, (i // side) * tile + top))
            sheet.save(self._thumbnails / f"{number:04d}.webp", quality=80, method=2)
        np.save(self._thumbnails / "order.npy", order.astype(np.uint32))
        _write_json(
            self._thumbnails / "index.json",
            {"tile": tile, "columns": side, "rows": side, "count": len(images)},
        )

    def read_thumbnails(self) -> Thumbnails:
        """Where the sheets are and how they are laid out.

        Raises:
            RunError: the run has none.
        """
        if not (self._thumbnails / "index.json").is_file():
            raise RunError(
                f"{self.path} has no thumbnails: copy the whole run folder, or fit again"
            )
        index = self._thumbnails / "index.json"
        with reading(index):
            facts = json.loads(index.read_bytes())
            whole = {"tile": int, "columns": int, "rows": int, "count": int}
            check(_fits(facts, whole) and min(facts[k] for k in whole) > 0, "a number is missing")
            check(facts["columns"] * facts["rows"] < 10**8, "its sheets are too large")
        order = self._thumbnails / "order.npy"
        with reading(order):
            found = np.load(order, allow_pickle=False)
            check(found.ndim == 1 and found.dtype.kind in "ui", "it is no list of numbers")
            check(len(found) == facts["count"], f"it has {len(found)} of {facts['count']} images")
            check(np.array_equal(np.sort(found), np.arange(len(found))), "it misses an image")
        sheets = sorted(self._thumbnails.glob("[0-9]*.webp"))
        needed = -(-facts["count"] // (facts["columns"] * facts["rows"]))
        if len(sheets) != needed:
            raise RunError(f"{self._thumbnails} holds {len(sheets)} of {needed} sheets: {CURE}")
        return Thumbnails(**{k: facts[k] for k in whole}, sheets=sheets, order=found)


# -- checked reading ---------------------------------------------------------------------------

_LINE = {"epoch": int, "loss": (int, float), "seconds": dict}
_INFO = {"status": str, "name": str, "command": list, "started": str, "counts": dict}
_INFO_MAY = {
    "scores": dict, "timings": dict, "versions": dict, "hardware": dict, "choice": dict,
    "asked": dict,
    "notes": list, "unwritten": list, "seconds": (int, float), "processor_seconds": (int, float),
    "minutes": (int, float, type(None)), "labels": (str, type(None)), "images": str, "seed": int,
}  # fmt: skip


def _fits(value: Any, kinds: Mapping[str, Any]) -> bool:
    """Whether a dict has these keys, with values of these types."""
    return isinstance(value, dict) and all(
        isinstance(value.get(key), kind) and not isinstance(value[key], bool)
        for key, kind in kinds.items()
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _check_info(info: dict[str, Any]) -> None:
    """Refuse a run.json that says something else than a fit would.

    Raises:
        DamagedError: it is so.
    """
    for key in _INFO:
        check(_fits(info, {key: _INFO[key]}), f"{key!r} is missing or something else")
    for key in _INFO_MAY.keys() & info.keys():
        check(_fits(info, {key: _INFO_MAY[key]}), f"{key!r} is something else")
    check(info["status"] in _STATUSES, f"there is no status {info['status'][:20]!r}")
    check(all(isinstance(word, str) for word in info["command"]), "'command' is something else")
    check(all(isinstance(word, str) for word in info.get("notes", [])), "'notes' is no text")
    whole = {"images": int, "skipped": int, "clusters": int}
    check(_fits(info["counts"], whole), "'counts' is something else")
    check(all(_is_number(info["counts"][key]) for key in whole), "'counts' is something else")
    for scores in info.get("scores", {}).values():
        sound = isinstance(scores, dict) and all(
            isinstance(x, int | float) for x in scores.values()
        )
        check(sound, "'scores' is something else")


# -- files -------------------------------------------------------------------------------------


def _write_json(path: Path, value: Any) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
