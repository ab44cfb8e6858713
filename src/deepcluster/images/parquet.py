"""Images in Parquet shards: a struct of bytes and path, or the encoded images themselves.

The first is how the Hugging Face hub keeps them.
A row whose bytes are null is the file that its path names, relative to the shard's folder. What the
footer says (a number of rows, names of classes) is checked before it is believed, and when the rows
are read, path and label must be those that were listed: a shard that is written anew meanwhile
gives errors, never one image under the id of another.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepcluster.errors import SourceError, UnusableError
from deepcluster.images.formats import begins_as_image
from deepcluster.images.labels import encode
from deepcluster.images.listing import Listing, PassedOver, Raw, add_up, printable, reason, spread

_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "class", "category", "target")
MOST_ROWS = 1_000_000  # that a footer may claim, beyond one for each byte of the file


@dataclass
class _Shard:
    path: Path
    stem: str  # what its rows are called
    column: str
    fields: list[str]  # of the struct that are read: bytes and perhaps path; none: no struct
    linked: bool  # no row has bytes
    label: str | None
    names: list[str]  # of the classes
    unread: list[PassedOver]  # columns
    rows: int
    groups: int
    inner: list[str | None] = field(default_factory=list)  # (rows,) the paths, if it has any
    labels: list[Any] = field(default_factory=list)  # (rows,) if it has any


def is_shard(path: Path) -> bool:
    """Whether a file is Parquet with a column of images."""
    try:
        with _reading(path) as file:
            _shard(file, path, "")
    except SourceError:
        return False
    return True


def from_parquet(name: str, files: list[Path], stems: list[str]) -> Listing:
    """The images in Parquet files.

    Raises:
        SourceError: none of the files can be read as Parquet with images.
    """
    shards: list[_Shard] = []
    skipped: list[tuple[str, str]] = []
    for path, stem in zip(files, stems, strict=True):
        try:
            shards.append(_listed(path, stem))
        except SourceError as error:
            if len(files) == 1:
                raise SourceError(f"{path} {error}") from error
            skipped.append((printable(str(path)), str(error)))
    if not shards:
        raise SourceError(f"no shard of {name} can be read: {skipped[0][0]}: {skipped[0][1]}")

    inner = [path or "" for shard in shards for path in shard.inner or [None] * shard.rows]
    times = Counter(inner)
    rows_of = (f"{shard.stem}:{row}" for shard in shards for row in range(shard.rows))
    ids = [
        path if path and times[path] == 1 else row for path, row in zip(inner, rows_of, strict=True)
    ]
    labels: npt.NDArray[np.int64] | None
    names = shards[0].names
    given = [(shard, value) for shard in shards for value in shard.labels or [None] * shard.rows]
    if names and all(shard.names == names for shard in shards):
        places = [_class(value, names) for _, value in given]
        labels = np.array([-1 if place is None else place for place in places], np.int64)
    else:  # shards that number their classes differently are brought together by the names
        labels, names = encode(_word(value, shard.names) for shard, value in given)

    def read() -> Iterator[tuple[int, Raw]]:
        start = 0
        for shard in shards:
            for row, raw in _rows(shard):
                if row < shard.rows:  # what was added since is in nobody's place
                    yield start + row, raw
            start += shard.rows

    def some(most: int) -> Iterator[Raw]:
        places = [(shard, group) for shard in shards for group in range(shard.groups)]
        each = max(1, most // max(1, min(len(places), 8)))
        for i in spread(len(places), 8):
            for number, (_, raw) in enumerate(_rows(*places[i])):
                if number == each:
                    break
                yield raw

    paths = [
        printable(str(_beside(shard, path).absolute())) if shard.linked and path else None
        for shard in shards
        for path in shard.inner or [None] * shard.rows
    ]
    unread = {one for shard in shards for one in shard.unread}  # a column once, not in each shard
    return Listing(name, ids, paths, read, some, labels, names, skipped, add_up(unread))


def _class(value: Any, names: list[str]) -> int | None:
    """The number of a class that has a name; None if it is not known."""
    if isinstance(value, str):
        return names.index(value) if value in names else None
    if value is None or value != value or int(value) != value:
        return None
    return int(value) if 0 <= value < len(names) else None


def _word(value: Any, names: list[str]) -> Any:
    place = _class(value, names) if names else None
    return names[place] if place is not None else value


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """An open Parquet file; whatever goes wrong with it is said in words."""
    import pyarrow.parquet as pq

    try:
        if path.exists() and not path.is_file():
            raise SourceError("is not a regular file")  # a pipe would be waited for
        # a buffer: without one, a whole row group is read before its first row is seen
        with pq.ParquetFile(path, buffer_size=1 << 20) as file:
            yield file
    except (SourceError, GeneratorExit):
        raise
    except OSError as error:
        why = reason(error) if error.errno else str(error)
        raise SourceError(f"cannot be read as Parquet: {why}") from error
    except Exception as error:  # of a damaged file: Arrow's, of any kind
        raise SourceError(f"cannot be read as Parquet: {error or type(error).__name__}") from error


def _listed(path: Path, stem: str) -> _Shard:
    """A shard with the paths and labels of its rows, whose number is then that of what was read."""
    with _reading(path) as file:
        shard = _shard(file, path, stem)
        with_path = "path" in shard.fields
        columns = [f"{shard.column}.path"] * with_path + ([shard.label] if shard.label else [])
        if not columns:
            return shard
        shard.rows = 0
        for batch in file.iter_batches(columns=columns):
            shard.rows += batch.num_rows
            if with_path:
                shard.inner += [_path_of(row) for row in batch.column(shard.column).to_pylist()]
            if shard.label is not None:
                shard.labels += batch.column(shard.label).to_pylist()
    return shard


def _shard(file: Any, path: Path, stem: str) -> _Shard:
    schema, meta = file.schema_arrow, file.metadata
    size = path.stat().st_size
    if meta.num_rows > max(MOST_ROWS, size):
        raise SourceError(
            f"cannot be read as Parquet: it claims {meta.num_rows:,} rows in {size:,} bytes"
        )
    if meta.num_rows == 0:
        raise SourceError("has no rows")
    columns = _image_columns(file)
    column = columns[0]
    fields = _struct_fields(schema.field(column).type)
    label, names, useless = _label_column(schema)
    unread = [
        PassedOver(
            f"column {other} of images", 1, f"{column} is read: rename the one that is meant"
        )
        for other in columns[1:]
    ]
    if useless is not None:
        kind = schema.field(useless).type
        cure = "to measure by it, make it one number or text a row"
        unread.append(PassedOver(f"column {useless} of {kind}", 1, cure))
    linked = "path" in fields and all(
        not f"{chunk.path_in_schema}.".startswith(f"{column}.bytes.")
        or (chunk.statistics is not None and chunk.statistics.null_count == chunk.num_values)
        for chunk in (
            meta.row_group(group).column(i)
            for group in range(meta.num_row_groups)
            for i in range(meta.num_columns)
        )
    )
    return _Shard(
        path, stem, column, fields, linked, label, names, unread, meta.num_rows, meta.num_row_groups
    )


def _image_columns(file: Any) -> list[str]:
    """Columns that hold images, the one that is read first."""
    schema = file.schema_arrow
    found = [
        column.name
        for column in schema
        if _struct_fields(column.type)
        or (_is_bytes(column.type) and _holds_images(file, column.name))
    ]
    if not found:
        raise SourceError(
            "has no column of images (a struct with `bytes` and `path`, or encoded images such as "
            f"PNG) among {', '.join(schema.names) or '(none)'}; files that a column names can be "
            "given as a .txt list of paths"
        )
    named = [name for name in found if name.lower() in _IMAGES]
    if not named and len(found) > 1:
        raise SourceError(
            f"has several columns of images ({', '.join(found)}): rename the one that is meant to "
            "`image`"
        )
    return sorted(found, key=lambda name: name not in named)


def _struct_fields(kind: Any) -> list[str]:
    """The fields of an image's struct that are read; none if it is no such struct."""
    import pyarrow as pa

    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return []
    if not _is_bytes(kind.field("bytes").type) and not pa.types.is_null(kind.field("bytes").type):
        return []
    with_path = kind.get_field_index("path") >= 0 and _is_text(kind.field("path").type)
    return ["bytes", "path"] if with_path else ["bytes"]


def _is_bytes(kind: Any) -> bool:
    """Whether values of a type are bytes, however they are kept."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_list(kind) or types.is_large_list(kind):
        return bool(types.is_uint8(kind.value_type))
    kinds = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    return any(is_it(kind) for is_it in kinds) or str(kind) == "binary_view"


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind) in ("string", "large_string", "string_view", "large_utf8", "utf8")


def _holds_images(file: Any, column: str) -> bool:
    """Whether one of the first values in a column begins as an image does."""
    for batch in file.iter_batches(batch_size=16, columns=[column]):
        values = [value for value in batch.column(0).to_pylist() if value]
        if values:
            return any(begins_as_image(bytes(value[:16])) for value in values)
    return False


def _label_column(schema: Any) -> tuple[str | None, list[str], str | None]:
    """Name of the column of labels, if there is one that can be used, and names of its classes.

    The third is the name of one that is meant for labels and cannot be used.
    """
    import pyarrow as pa

    features: Any = None
    with contextlib.suppress(ValueError):
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    for key in ("info", "features"):
        features = features.get(key) if isinstance(features, dict) else None
    classes: dict[str, list[str]] = {}
    for name, feature in (features if isinstance(features, dict) else {}).items():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            classes[name] = [str(n) for n in names] if isinstance(names, list) else []
    lower = {name.lower(): name for name in reversed(schema.names)}
    wanted = [lower[name] for name in _LABELS if name in lower]
    useless = None
    for name in [*wanted, *(name for name in classes if name in schema.names)]:
        kind = schema.field(name).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
        if any(is_it(plain) for is_it in (*numbers, pa.types.is_boolean, _is_text)) or (
            _is_bytes(plain) and not pa.types.is_nested(plain)
        ):
            return name, classes.get(name, []), None
        if useless is None and not pa.types.is_null(kind):
            useless = name
    return None, [], useless


def _path_of(row: Any) -> str | None:
    path = row.get("path") if row else None
    return path if isinstance(path, str) else None


def _beside(shard: _Shard, path: str) -> Path:
    return shard.path.parent / path


def _rows(shard: _Shard, group: int | None = None) -> Iterator[tuple[int, Raw]]:
    """Images of a shard, or of one of its row groups, row by row."""
    columns = [f"{shard.column}.{name}" for name in shard.fields] or [shard.column]
    columns += [shard.label] if shard.label else []
    done = 0
    try:
        with _reading(shard.path) as file:
            groups = None if group is None else [group]
            for batch in file.iter_batches(batch_size=64, row_groups=groups, columns=columns):
                labels = batch.column(shard.label).to_pylist() if shard.label else []
                for i, row in enumerate(batch.column(shard.column).to_pylist()):
                    label = labels[i] if labels else None
                    same = group is not None or _is_as_listed(shard, done, row, label)
                    yield done, _picture(shard, row) if same else _CHANGED
                    done += 1
    except SourceError as error:
        if group is None:
            for row in range(done, shard.rows):
                yield row, UnusableError(f"{shard.path.name} {error}")


_CHANGED = UnusableError("its row is another one than when the file was listed")


def _is_as_listed(shard: _Shard, row: int, value: Any, label: Any) -> bool:
    if row >= shard.rows:
        return False
    if shard.inner and (not shard.fields or _path_of(value) != shard.inner[row]):
        return False
    listed = shard.labels[row] if shard.labels else None
    return label == listed or (label != label and listed != listed)  # NaN


def _picture(shard: _Shard, row: Any) -> Raw:
    content, path = ((row or {}).get("bytes"), _path_of(row)) if shard.fields else (row, None)
    if content or path is None:
        return bytes(content) if content else UnusableError("empty")
    file = _beside(shard, path)
    if not file.exists():
        return UnusableError(
            f"the row has no bytes, and there is no file {path} in the folder of {shard.path.name}"
        )
    return file
