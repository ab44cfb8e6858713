"""Images in Parquet shards, as the Hugging Face hub keeps them: a struct of bytes and path."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepcluster.errors import SourceError, UnusableError
from deepcluster.images.labels import encode
from deepcluster.images.listing import SAMPLE, Listing, Raw, printable, spread


@dataclass
class _Shard:
    path: Path
    stem: str  # what its rows are called
    column: str
    rows: int
    groups: int


def from_parquet(name: str, files: list[Path], stems: list[str]) -> Listing:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards: list[_Shard] = []
    skipped: list[tuple[str, str]] = []
    inner: list[str] = []  # the paths in the struct column
    parts: list[tuple[list[Any], list[str]]] = []  # labels of a shard, and the names of the classes
    for path, stem in zip(files, stems, strict=True):
        try:
            with pq.ParquetFile(path) as file:
                column, label, names = _columns(file.schema_arrow)
                rows = file.metadata.num_rows
                shards.append(_Shard(path, stem, column, rows, file.num_row_groups))
                has_path = file.schema_arrow.field(column).type.get_field_index("path") >= 0
                wanted = [f"{column}.path"] * has_path + [label] * (label is not None)
                table = file.read(columns=wanted) if wanted else {}
                structs = table[column].to_pylist() if has_path else [{}] * rows
                inner += [(struct or {}).get("path") or "" for struct in structs]
                parts.append((table[label].to_pylist() if label else [None] * rows, names))
        except (OSError, ValueError, pa.ArrowException) as error:
            if len(files) == 1:
                raise SourceError(f"{path} cannot be read as Parquet: {error}") from error
            skipped.append((printable(str(path)), f"cannot be read as Parquet: {error}"))
    if not shards:
        raise SourceError(f"no shard of {name} can be read: {skipped[0][0]}: {skipped[0][1]}")

    times = Counter(inner)
    rows_of = (f"{shard.stem}:{row}" for shard in shards for row in range(shard.rows))
    ids = [
        path if path and times[path] == 1 else row for path, row in zip(inner, rows_of, strict=True)
    ]
    labels: npt.NDArray[np.int64] | None
    names = parts[0][1]
    if names and all(part[1] == names for part in parts):
        values = [-1 if v is None else v for part in parts for v in part[0]]
        labels = np.array([v if 0 <= v < len(names) else -1 for v in values], np.int64)
    else:  # shards that number their classes differently are brought together by the names
        words = [
            own[v] if own and v is not None and 0 <= v < len(own) else v
            for part, own in parts
            for v in part
        ]
        labels, names = encode(words)

    def read() -> Iterator[Raw]:
        for shard in shards:
            yield from _rows(shard)

    def some() -> Iterator[Raw]:
        places = [(shard, group) for shard in shards for group in range(shard.groups)]
        for i in spread(len(places), 8):
            for number, raw in enumerate(_rows(*places[i])):
                if number == SAMPLE // 8:
                    break
                yield raw

    paths: list[str | None] = [None] * len(ids)
    return Listing(name, ids, paths, read, some, labels, names, skipped)


def _columns(schema: Any) -> tuple[str, str | None, list[str]]:
    """Name of the image column, of the label column, and the names of the classes."""
    import pyarrow as pa

    structs = [
        column.name
        for column in schema
        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
    ]
    if not structs:
        raise SourceError(
            "there is no column of images (a struct with `bytes` and `path`) among "
            + ", ".join(schema.names)
        )
    column = next((name for name in ("image", "img") if name in structs), structs[0])
    meta = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = meta.get("info", {}).get("features", {})
    classes = {
        name: feature.get("names") or []
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
    label = next((n for n in ("label", "labels", *classes) if n in schema.names), None)
    if label is not None:
        kind = schema.field(label).type
        label = label if pa.types.is_integer(kind) or pa.types.is_string(kind) else None
    names = classes.get(label or "", [])
    return column, label, [str(n) for n in names] if isinstance(names, list) else []


def _rows(shard: _Shard, group: int | None = None) -> Iterator[Raw]:
    """Encoded images of a shard, or of one of its row groups, row by row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = 0
    try:
        # a buffer: without one, a whole row group is read before its first row is seen
        with pq.ParquetFile(shard.path, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(
                batch_size=64,
                row_groups=None if group is None else [group],
                columns=[f"{shard.column}.bytes"],
            ):
                for struct in batch.column(0).to_pylist():
                    done += 1
                    yield (struct or {}).get("bytes") or b""
    except (OSError, ValueError, pa.ArrowException) as error:
        if group is not None:
            return
        for _ in range(done, shard.rows):
            yield UnusableError(f"cannot be read from {shard.path.name}: {error}")
