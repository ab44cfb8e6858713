"""RunDir: the files of a run, each with its writer and its checked reader.

``docs/run-folder.md`` describes the files for people. Nothing here needs torch, so the report and
other tools can read a run without it. Files that matter are written under another name first and
then moved into place: a run that is cut off never leaves half a file. What is read is checked, and
an error names the file and what to do (:mod:`deepcluster.files`).

Long, because what a file holds is known where it is written and read, and nowhere else.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from deepcluster.config import GIVEN, Config, older, override, parse_toml, to_toml
from deepcluster.errors import ConfigError, DamagedError, RunError
from deepcluster.files import check, reading, replacing, write_json
from deepcluster.run.checks import LINE, check_info, fits, is_number
from deepcluster.run.folder import TOOL, RunFolder
from deepcluster.run.thumbnails import Thumbnails, read_sheets, write_sheets

SCHEMA = 1
"""Version of the run folder; readers refuse a newer one."""

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

NEIGHBOURS = 12
"""Nearest images that are kept of each image."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest images of each image, in the order of the items."""

    index: np.ndarray  # (n, k) uint32, nearest first, never the image itself
    distance: np.ndarray  # (n, k) float32, Euclidean, in feature space
    recall: float  # share of the true neighbours that were found; 1 where the search was exact


class RunDir(RunFolder):
    """One run on disk.

    Args:
        path: the folder. Nothing is read or written until a method is called.
    """

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
                f"finish it with `{run.line_to_go_on()}`"
            )
        return run

    def line_to_go_on(self, launcher: Sequence[str] = ()) -> str:
        """What is typed to go on with a fit that has not ended; `launcher` comes before it."""
        source = self.read_info().get("source", ["…"])
        words = [*launcher, "deepcluster", "fit", *source, "--out", str(self.path), "--resume"]
        return shlex.join(words).replace("'…'", "…")

    # -- what happened ------------------------------------------------------------------------

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Write run.json (status, versions, hardware, seed, command, counts, timings, scores)."""
        write_json(self._info, {"schema": SCHEMA, "tool": TOOL, **info})

    def item(self) -> str:
        """What pages call one of the things in it: an image, or a vector that has none beside it.

        Raises:
            RunError: as :meth:`read_info` and :meth:`read_config`.
        """
        alone = "--images" not in (self.read_info().get("source") or [])
        return "vector" if self.read_config().backbone == GIVEN and alone else "image"

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
            check_info(info)
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
                config = override(older(), values)
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
                    sound = isinstance(line, dict) and fits(line, LINE) and is_number(line["epoch"])
                except (ValueError, KeyError, RecursionError):
                    sound = False
                if sound:
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
        _write_pairs(self._skipped, ["path", "reason"], skipped)

    def read_skipped(self) -> list[tuple[str, str]]:
        """The images that were left out: (path, reason)."""
        return _read_pairs(self._skipped, ["path", "reason"])

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

    def write_embeddings(self, pieces: Iterable[np.ndarray], shape: tuple[int, ...]) -> None:
        """Write the final features in the order of the items.

        Args:
            pieces: some rows at a time, float32.
            shape: ``(n, d)`` of all.

        Raises:
            ValueError: the pieces are not so many rows.
        """
        rows = 0
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        with replacing(self.embeddings) as part, part.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for piece in pieces:
                file.write(np.ascontiguousarray(piece, "<f4").data)
                rows += len(piece)
            if rows != shape[0]:
                raise ValueError(f"{rows:,} rows of features for {shape[0]:,}")

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
        self._classes.unlink(missing_ok=True)  # of the classifier before
        with replacing(self.classifier / "classifier.safetensors") as part:
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, part)
        write_json(self.classifier / "classifier.json", facts)

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

    def write_classes(self, classes: np.ndarray, probabilities: np.ndarray) -> None:
        """Write what the classifier says of the run's images.

        Args:
            classes: ``(n,)``, numbers into its classes.
            probabilities: ``(n,)`` of those.
        """
        from safetensors.numpy import save_file

        self.classifier.mkdir(exist_ok=True)
        columns = {"class": classes.astype(np.int32), "probability": probabilities.astype("f")}
        with replacing(self._classes) as part:
            save_file(columns, part)

    def read_classes(self, count: int) -> tuple[np.ndarray, np.ndarray] | None:
        """What :meth:`write_classes` wrote, ``(count,)`` each; None where there is no classifier.

        Raises:
            RunError: it is damaged, or of other images.
        """
        from safetensors.numpy import load_file

        if not self._classes.is_file():
            return None
        with reading(self._classes):
            columns = load_file(self._classes)
            classes, sure = columns["class"], columns["probability"]
            check(classes.shape == sure.shape == (count,), f"it is not of {count} images")
            check(bool(((sure >= 0) & (sure <= 1)).all()), "a probability is not from 0 to 1")
            check(bool((classes >= 0).all()), "there is no class below 0")
        return classes, sure

    def write_labels(self, rows: Iterable[tuple[str, str]]) -> None:
        """Write the (id, label) pairs that the classifier learnt from."""
        self.classifier.mkdir(exist_ok=True)
        _write_pairs(self._labels, ["id", "label"], rows)

    def read_labels(self) -> dict[str, str]:
        """The label of each image that the classifier learnt from, by id; empty without one."""
        known = self._labels.is_file()
        return dict(_read_pairs(self._labels, ["id", "label"])) if known else {}

    def write_suggested(self, ids: Sequence[str]) -> None:
        """Add images to those that a person was ever asked to label."""
        self.labelling.mkdir(exist_ok=True)
        known = self.read_suggested()
        write_json(self._suggested, known + [id_ for id_ in ids if id_ not in set(known)])

    def read_suggested(self) -> list[str]:
        """Ids of the images that a person was ever asked to label, the first asked first."""
        if not self._suggested.is_file():
            return []
        with reading(self._suggested):
            ids = json.loads(self._suggested.read_bytes())
            sound = isinstance(ids, list) and all(isinstance(id_, str) for id_ in ids)
            check(sound, "it is no list of ids")
        return cast(list[str], ids)

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
        write_json(self._clusters, clusters)

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
            check(fits(said, {"names": dict, "merged": dict}), "names or merged are missing")
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
        """Write sheets of all images, as :func:`deepcluster.run.thumbnails.write_sheets` does."""
        self.clear(self._thumbnails.name)
        write_sheets(self._thumbnails, images, tile=tile, order=order)

    def read_thumbnails(self) -> Thumbnails:
        """Where the sheets are and how they are laid out.

        Raises:
            RunError: the run has none, or they are damaged.
        """
        return read_sheets(self._thumbnails)


def _write_pairs(path: Path, columns: list[str], pairs: Iterable[tuple[str, str]]) -> None:
    """Write a table of two columns."""
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(pairs)


def _read_pairs(path: Path, columns: list[str]) -> list[tuple[str, str]]:
    """The rows of a table of two columns.

    Raises:
        RunError: it is missing or damaged.
    """
    with reading(path), path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file, strict=True)
        check(next(rows, None) == columns, f"its columns are not {', '.join(columns)}")
        pairs = list(rows)
        check(all(len(row) == 2 for row in pairs), "a row has not two values")
        return [(first, second) for first, second in pairs]
