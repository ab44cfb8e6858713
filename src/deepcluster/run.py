"""RunDir: the folder a fit leaves, and the only code that knows the names of its files.

``docs/run-folder.md`` describes the files for people. Nothing here needs torch, so the report and
other tools can read a run without it. Files that matter are written under another name first and
then moved into place: a run that is cut off never leaves half a file.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import shutil
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from deepcluster.config import Config, override, to_toml
from deepcluster.errors import RunError

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


@dataclass(frozen=True)
class Tree:
    """The finest clusters of a run, and how they merge: any number of clusters is a cut of it."""

    part: np.ndarray  # (n,) int64, the finest cluster of each image, from 0
    merges: np.ndarray  # (parts - 1, 2) int64; merge i gives node parts + i, as SciPy has it
    heights: np.ndarray  # (parts - 1,) float64, of each merge, never falling


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
            RunError: the folder is not empty, or is a file; with `overwrite`, it is not a run.
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise RunError(f"{run.path} is a file: choose a folder with --out")
        if run.path.is_dir() and any(run.path.iterdir()):
            if not overwrite:
                raise RunError(
                    f"{run.path} is not empty: go on with --resume, replace it with --overwrite, "
                    "or choose another folder with --out"
                )
            if not run._info.is_file():
                raise RunError(
                    f"{run.path} is not empty and is no run, so --overwrite will not delete it: "
                    "choose another folder with --out"
                )
        return run

    @classmethod
    def create(cls, path: str | Path, *, overwrite: bool = False) -> RunDir:
        """Make the folder; with `overwrite`, in place of the run that is there.

        Raises:
            RunError: as :meth:`free`.
        """
        run = cls.free(path, overwrite=overwrite)
        if run._info.is_file():
            shutil.rmtree(run.path)
        run.path.mkdir(parents=True, exist_ok=True)
        return run

    @classmethod
    def open(cls, path: str | Path, *, finished: bool = True) -> RunDir:
        """Open a run that exists.

        Raises:
            RunError: there is none, it was written by a newer version, or, with `finished`, its
                fit has not ended.
        """
        run = cls(path)
        if not run._info.is_file():
            raise RunError(
                f"{run.path} is no run folder (it has no run.json): give the folder that "
                "`deepcluster fit` printed"
            )
        info = run.read_info()
        if info.get("schema", 0) > SCHEMA:
            raise RunError(
                f"{run.path} was written by a newer deepcluster (schema {info['schema']}, "
                f"this one reads {SCHEMA}): upgrade deepcluster"
            )
        if finished and info.get("status") != "done":
            raise RunError(
                f"the fit in {run.path} has not ended (status {info.get('status')!r}): "
                f"finish it with `deepcluster fit … --out {run.path} --resume`"
            )
        return run

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
    def embeddings(self) -> Path:
        """The final features, ``(n, d)`` float32, in the order of the items."""
        return self.path / "embeddings.npy"

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
        _write_json(self._info, {"schema": SCHEMA, **info})

    def read_info(self) -> dict[str, Any]:
        """Read run.json."""
        return cast(dict[str, Any], json.loads(self._info.read_text(encoding="utf-8")))

    def write_config(self, config: Config) -> None:
        """Write the resolved settings."""
        with _replacing(self._config) as part:
            part.write_text(to_toml(config), encoding="utf-8")

    def read_config(self) -> Config:
        """Read the resolved settings."""
        return override(Config(), tomllib.loads(self._config.read_text(encoding="utf-8")))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one epoch's line to metrics.jsonl."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one an epoch."""
        if not self._metrics.is_file():
            return []
        return [json.loads(line) for line in self._metrics.read_text(encoding="utf-8").splitlines()]

    def truncate_metrics(self, epochs: int) -> None:
        """Keep the lines of the first `epochs` epochs (a resumed fit writes the others anew)."""
        lines = [json.dumps(line) + "\n" for line in self.read_metrics() if line["epoch"] < epochs]
        with _replacing(self._metrics) as part:
            part.write_text("".join(lines), encoding="utf-8")

    def write_skipped(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Write skipped.csv: the path of each image that was left out, and the reason."""
        with (
            _replacing(self.path / "skipped.csv") as part,
            part.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["path", "reason"])
            writer.writerows(skipped)

    def read_skipped(self) -> list[tuple[str, str]]:
        """The images that were left out: (path, reason)."""
        with (self.path / "skipped.csv").open(newline="", encoding="utf-8") as file:
            return [(row["path"], row["reason"]) for row in csv.DictReader(file)]

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
        with _replacing(self._items) as part:
            pq.write_table(table, part)
        with _replacing(self.path / "items.csv") as part:
            pyarrow.csv.write_csv(table, part)

    def read_items(self) -> pa.Table:
        """The table of images, a row each, columns as in ITEMS_SCHEMA."""
        return pq.read_table(self._items)

    def read_embeddings(self) -> np.ndarray:
        """The final features, ``(n, d)`` float32, memory-mapped, in the order of the items."""
        return cast(np.ndarray, np.load(self.embeddings, mmap_mode="r", allow_pickle=False))

    def write_neighbours(self, neighbours: Neighbours) -> None:
        """Write the nearest images of each image."""
        from safetensors.numpy import save_file

        with _replacing(self.neighbours) as part:
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
        held = load_file(self.neighbours)
        if len(held["index"]) != count:
            return None
        return Neighbours(held["index"], held["distance"], float(held["recall"][0]))

    @property
    def tree(self) -> Path:
        """The tree of clusters; runs of older versions lack it."""
        return self.path / "tree.safetensors"

    def write_tree(self, tree: Tree) -> None:
        """Write the tree of clusters."""
        from safetensors.numpy import save_file

        with _replacing(self.tree) as part:
            save_file(
                {
                    "part": np.ascontiguousarray(tree.part, np.int64),
                    "merges": np.ascontiguousarray(tree.merges, np.int64),
                    "heights": np.ascontiguousarray(tree.heights, np.float64),
                },
                part,
            )

    def read_tree(self, count: int) -> Tree | None:
        """The tree of clusters.

        Args:
            count: images of the run.

        Returns:
            None where the run has none, or has one of another number of images.
        """
        from safetensors.numpy import load_file

        if not self.tree.is_file():
            return None
        held = load_file(self.tree)
        return Tree(**held) if len(held["part"]) == count else None

    def write_classifier(self, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Write the classifier: its tensors, and what is said of it."""
        from safetensors.numpy import save_file

        self.classifier.mkdir(exist_ok=True)
        with _replacing(self.classifier / "classifier.safetensors") as part:
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
        facts = json.loads((self.classifier / "classifier.json").read_text(encoding="utf-8"))
        return load_file(self.classifier / "classifier.safetensors"), facts

    def write_labels(self, rows: Iterable[tuple[str, str]]) -> None:
        """Write the (id, label) pairs that the classifier learnt from."""
        self.classifier.mkdir(exist_ok=True)
        with (
            _replacing(self.classifier / "labels.csv") as part,
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
        with path.open(newline="", encoding="utf-8") as file:
            return {row["id"]: row["label"] for row in csv.DictReader(file)}

    def write_suggested(self, ids: Sequence[str]) -> None:
        """Add images to those that a person was ever asked to label."""
        self.labelling.mkdir(exist_ok=True)
        known = self.read_suggested()
        _write_json(self._suggested, known + [id_ for id_ in ids if id_ not in set(known)])

    def read_suggested(self) -> list[str]:
        """Ids of the images that a person was ever asked to label, the first asked first."""
        if not self._suggested.is_file():
            return []
        return cast(list[str], json.loads(self._suggested.read_text(encoding="utf-8")))

    @property
    def _suggested(self) -> Path:
        return self.labelling / "suggested.json"

    def fingerprint(self) -> str:
        """Tells this fit from any other, wherever its folder lies."""
        info = self.read_info()
        facts = [info.get(key) for key in ("images", "started", "seed", "command")]
        # the letter: a spreadsheet would read 12e4567 as a number
        return "r" + hashlib.blake2b(json.dumps(facts).encode(), digest_size=6).hexdigest()

    def write_clusters(self, clusters: Mapping[str, Any]) -> None:
        """Write clusters.json: what a person said of the clusters."""
        _write_json(self._clusters, clusters)

    def read_clusters(self) -> dict[str, Any]:
        """What a person said of the clusters.

        Returns:
            ``names``: cluster number (as a string) -> name; ``merged``: cluster number (as a
            string) -> the number it now belongs to. Both empty before `deepcluster apply`.
        """
        if not self._clusters.is_file():
            return {"names": {}, "merged": {}}
        return cast(dict[str, Any], json.loads(self._clusters.read_text(encoding="utf-8")))

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
        index = json.loads((self._thumbnails / "index.json").read_text(encoding="utf-8"))
        return Thumbnails(
            **index,
            sheets=sorted(self._thumbnails.glob("*.webp")),
            order=np.load(self._thumbnails / "order.npy", allow_pickle=False),
        )


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name to write under; it takes the place of `path` once the block ends well."""
    part = path.with_name(f"{path.name}.part")
    yield part
    part.replace(path)


def _write_json(path: Path, value: Any) -> None:
    with _replacing(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
