"""Features made elsewhere, a row an image: what a fit can begin with in place of pixels.

A ``.npy`` array ``(n, d)``, beside it perhaps the images' ids: ``.ids.csv`` with a column ``id``
(so writes ``deepcluster embed``) or ``.ids.txt``, a line each; or Parquet with a column of lists of
numbers, as most engines write, and perhaps columns ``id`` (or ``path``) and ``label``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster.errors import RunError, SourceError
from deepcluster.files import read_table
from deepcluster.images.arrays import tensor_values
from deepcluster.images.content import content_of
from deepcluster.images.labels import encode
from deepcluster.images.listing import read_text, reason
from deepcluster.images.store import ImageStore
from deepcluster.progress import counted

BLANK = 16  # side in pixels of what stands for an image that nobody gave
LARGE = 1e18  # of a float32; the square of a longer vector may be infinite
PIECE = 8192  # rows that are looked at at a time
COLUMNS = ("embedding", "embeddings", "vector", "features")
"""Names that are looked for where a table has several columns of lists."""


@dataclass(frozen=True)
class Vectors:
    """Rows, and what they belong to."""

    name: str
    rows: np.ndarray  # (n, d) numbers that are finite in float32; of a .npy file, its map
    ids: list[str] | None = None
    labels: np.ndarray | None = None  # (n,) int64; for measuring only
    label_names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.rows)


def read_vectors(source: Any) -> Vectors:
    """Vectors of a file, or an array ``(n, d)``.

    Raises:
        SourceError: there are none, or some are not finite.
    """
    if not isinstance(source, str | Path):
        torch = sys.modules.get("torch")  # whoever has a tensor has imported it
        if torch is not None and isinstance(source, torch.Tensor):
            source = tensor_values(source)
        try:
            rows = np.asarray(source)
        except ValueError as error:
            raise SourceError("vectors: the rows are of several lengths") from error
        return _checked(Vectors("vectors", rows))
    path = Path(source)
    if path.is_dir():
        raise SourceError(
            f"{path} is a folder, and vectors are asked for: make them of its images with the net "
            "that made the others, as a .npy or .parquet file"
        )
    if not path.is_file():
        raise SourceError(f"there is no file {path}: give a .npy or .parquet file of vectors")
    read = {".npy": _from_npy, ".parquet": _from_parquet}.get(path.suffix.lower())
    if read is None:
        raise SourceError(f"{path}: vectors come as .npy or .parquet")
    try:
        return _checked(read(path))
    except SourceError:
        raise
    except OSError as error:
        why = reason(error) if error.errno else "it is damaged"
        raise SourceError(f"{path} cannot be read: {why}") from error
    except Exception as error:  # of a damaged file, of any kind
        raise SourceError(
            f"{path} cannot be read: it is empty, damaged or cut off, or holds Python objects "
            "(save np.stack(rows).astype('float32')); expected vectors (n, d)"
        ) from error


def _from_npy(path: Path) -> Vectors:
    table, beside = path.with_suffix(".ids.csv"), path.with_suffix(".ids.txt")
    ids = None
    if table.is_file() and beside.is_file():
        raise SourceError(
            f"{table.name} and {beside.name} both give ids: delete the one that is not of {path}"
        )
    if not beside.is_file() and _is_of_run(path):
        table = path.with_name("items.csv")
    if table.is_file():
        try:
            header, rows = read_table(table)
            if "id" not in header:
                raise SourceError(f"{table} has no column id: give one, or delete the file")
            ids = [row["id"] for _, row in rows]
        except RunError as error:
            raise SourceError(str(error)) from error
    elif beside.is_file():
        text = read_text(beside).removesuffix("\n")
        ids = [line.removesuffix("\r") for line in text.split("\n")]
    return Vectors(path.stem, np.load(path, mmap_mode="r", allow_pickle=False), ids)


def _is_of_run(path: Path) -> bool:
    """Whether they are the features that a fit has left, whose ids stand in its table of images."""
    there = all(path.with_name(name).is_file() for name in ("run.json", "items.csv"))
    return path.name == "embeddings.npy" and there and not path.with_suffix(".ids.csv").is_file()


def _from_parquet(path: Path) -> Vectors:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    lists = [
        field.name
        for field in table.schema
        if pa.types.is_list(field.type)
        or pa.types.is_large_list(field.type)
        or pa.types.is_fixed_size_list(field.type)
    ]
    named = [name for name in COLUMNS if name in lists]
    if not named and len(lists) != 1:
        raise SourceError(
            f"{path} has {len(lists)} columns of lists ({', '.join(lists) or 'none'}): the vectors "
            f"belong in one named {COLUMNS[0]!r}"
        )
    column = table[named[0] if named else lists[0]].combine_chunks()
    lengths = {len(row) if row.is_valid else 0 for row in column}
    if len(lengths) != 1 or column.null_count:
        raise SourceError(f"{path}: the vectors are of several lengths, or some are missing")
    rows = np.asarray(column.flatten()).reshape(len(table), -1)
    key = next((name for name in ("id", "path") if name in table.column_names), None)
    ids = None
    if key is not None:
        ids = [str(value) for value in table[key].to_pylist()]
        if table[key].null_count:
            raise SourceError(f"{path}: {table[key].null_count:,} rows have no {key}")
    labels, names = None, None
    if "label" in table.column_names:
        labels, names = encode(table["label"].to_pylist())
    return Vectors(path.stem, rows, ids, labels, names)


def _checked(found: Vectors) -> Vectors:
    rows = found.rows
    if rows.ndim != 2 or 0 in rows.shape or rows.dtype.kind not in "fiu":
        raise SourceError(
            f"{found.name}: vectors are an array (n, d) of numbers, not {rows.dtype} of shape "
            f"{rows.shape}"
        )
    bad, first = 0, 0
    with np.errstate(over="ignore"):  # what float32 cannot hold is not finite then
        for start in range(0, len(rows), PIECE):
            some = rows[start : start + PIECE].astype(np.float32)
            wrong = np.flatnonzero(~(np.abs(some) < LARGE).all(1))
            first = first if bad or not len(wrong) else start + int(wrong[0])
            bad += len(wrong)
    if bad:
        raise SourceError(
            f"{found.name}: {bad:,} of {len(rows):,} vectors hold NaN, infinity or numbers from "
            f"{LARGE:.0e} on, the first is row {first:,}: leave them out, and their images with "
            "--images, or divide all by the same number"
        )
    if found.ids is not None and len(set(found.ids)) != len(rows):
        raise SourceError(
            f"{found.name}: {len(set(found.ids)):,} different ids for {len(rows):,} vectors; there "
            "must be one for each"
        )
    return Vectors(found.name, rows, found.ids, found.labels, found.label_names)


def pair(vectors: Vectors, store: ImageStore | None) -> tuple[np.ndarray, ImageStore]:
    """The vectors in the order of the images, and the images; blank ones where there are none.

    Where the vectors have ids, these say what belongs together, as ids or paths of the images, else
    the order does.

    Raises:
        SourceError: images without vectors, or another number of them.
    """
    n = len(vectors.rows)
    if store is None:
        pixels = np.broadcast_to(np.uint8(224), (n, BLANK, BLANK, 1))  # one byte in all
        ids = vectors.ids or [str(i) for i in range(n)]
        known = vectors.labels is not None
        names = (vectors.label_names or []) if known else []
        store = ImageStore(vectors.name, pixels, BLANK, ids, [None] * n, vectors.labels, names)
        told = (content_of(row.astype(np.float32)) for row in vectors.rows)
        store.contents = np.fromiter(told, np.uint64, n)
        return vectors.rows, store
    if vectors.ids is not None:
        row = {name: i for i, name in enumerate(vectors.ids)}
        lost = store.ids
        for names in (store.ids, [path or "" for path in store.paths]):
            lost = min(lost, [name for name in names if name not in row], key=len)
            if not lost:
                return vectors.rows[[row[name] for name in names]], store
        raise SourceError(
            f"{len(lost):,} of {len(store):,} images have no vector, the first is {lost[0]} "
            f"(vectors are called {vectors.ids[0]} …): the ids of the vectors must be those of the "
            "images, or their paths (items.csv shows both); without any the order counts"
        )
    if store.skipped or len(store) != n:
        raise SourceError(
            f"{counted(n, 'vector')}, but {counted(len(store), 'image')} ({len(store.skipped):,} "
            "left out): without ids there must be a vector for each image, in their order; with a "
            "table of ids beside them, as `deepcluster embed` writes it, those that are left out "
            "are in nobody's way"
        )
    return vectors.rows, store
