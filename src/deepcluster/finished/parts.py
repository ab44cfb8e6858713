"""Features of many images in parts: each by a process of its own, whatever starts it; then joined.

A part is a Parquet file (id, path and features of the images of one stretch of the listing) that
says in its header which run and which listing it is of, and which part of how many. Only parts that
are all there, once, and of the same run and listing are joined.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deepcluster.errors import ConfigError, NoImagesError, RunError
from deepcluster.files import Output
from deepcluster.finished.predict import predict_source, write_features
from deepcluster.images.listing import Listing
from deepcluster.images.sources import list_source
from deepcluster.progress import Progress, counted
from deepcluster.run import RunDir

HEADER = b"deepcluster.part"  # of a part's Parquet metadata; its value is JSON
ROWS = 2**16  # of a part that are in memory at once while parts are joined


@dataclass(frozen=True)
class Shard:
    """One part of several, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``"3/8"``, the third of eight.

        Raises:
            ConfigError: it is no such thing.
        """
        first, _, last = text.partition("/")
        numbers = first.isdecimal() and last.isdecimal()
        if not numbers or not 1 <= int(first) <= int(last):
            raise ConfigError(
                f"--shard {text!r} will not do: 3/8 is the third of eight, 8/8 the last"
            )
        return cls(int(first), int(last))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def places(self, n: int) -> range:
        """Of `n` images, those of this part: a stretch; sizes differ by one at most."""
        return range((self.number - 1) * n // self.count, self.number * n // self.count)


def embed_part(
    run: RunDir,
    source: Any,
    shard: Shard,
    out: Path,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> int:
    """Write the features of one part of a source.

    Args:
        run: a finished run.
        source: whatever ``open_images`` takes; the same for every part.
        shard: which part.
        out: the Parquet file; it must not exist.
        device: where the net runs.
        progress: told what happens.

    Returns:
        How many images the part holds; none, if none of its images can be used.

    Raises:
        RunError: `out` exists, or the run is one of vectors.
        ConfigError: there are more parts than images.
    """
    if out.suffix == ".npy":
        raise ConfigError(f"{out}: a part is a Parquet file, name it {out.with_suffix('.parquet')}")
    output = Output(out)
    net = run.model / "model.safetensors"
    if not net.is_file():
        raise RunError("this run was made of vectors, it has no net: there is nothing to compute")
    listing = list_source(source)
    places = shard.places(len(listing))
    if not places:
        raise ConfigError(
            f"--shard {shard}: {counted(len(listing), 'image')} cannot be parted into "
            f"{shard.count}; say --shard {shard.number}/N with N up to {len(listing)}"
        )
    header = {
        "run": _hash_file(net, run.model / "config.json"),
        "listing": hash_listing(listing),
        "images": len(places),
        "shard": shard.number,
        "shards": shard.count,
    }
    try:
        found = predict_source(run, listing.only(places), device=device, progress=progress)
        ids, paths, features = found.store.ids, found.store.paths, found.embeddings
    except NoImagesError as error:
        (progress or Progress()).note(f"this part is empty: {error}")
        ids, paths, features = [], [], np.empty((0, run.read_embeddings().shape[1]), np.float32)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    table = pa.table({"id": pa.array(ids, pa.string()), "path": pa.array(paths, pa.string())})
    table = table.append_column("embedding", rows)
    table = table.replace_schema_metadata({HEADER: json.dumps(header).encode()})
    with output.writing() as part:
        pq.write_table(table, part, use_dictionary=False, write_page_checksum=True)
    return len(ids)


def join_parts(parts: Sequence[Path], out: Path, *, progress: Progress | None = None) -> list[Path]:
    """Join parts to what ``embed`` writes of the whole source, in the order of its listing.

    Args:
        parts: all of them, in any order.
        out: the .npy file; ids and paths go beside it, as .ids.csv. Neither must exist.
        progress: is told of parts that lack images.

    Returns:
        The files written.

    Raises:
        RunError: parts are missing, there twice, damaged, or of different runs or listings.
    """
    if not parts:
        raise RunError("which parts? Give the files that `deepcluster embed --shard` wrote")
    headers = {path: _read_header(path) for path in parts}
    first, wanted = next(iter(headers.items()))
    if len(headers) < len(parts):
        twice = next(path for path in parts if parts.count(path) > 1)
        raise RunError(f"{twice} is given twice: give each part once")
    by_number: dict[int, Path] = {}
    for path, header in headers.items():
        for name, said in _SAME.items():
            if header[name] != wanted[name]:
                raise RunError(f"{path} and {first} are not of {said}: make one of them anew")
        other = by_number.setdefault(header["shard"], path)
        if other != path:
            raise RunError(
                f"{path} and {other} are both part {header['shard']}/{header['shards']}: leave one "
                "of them out"
            )
    missing = sorted(set(range(1, wanted["shards"] + 1)) - by_number.keys())
    if missing:
        few = ", ".join(f"{number}/{wanted['shards']}" for number in missing[:10])
        raise RunError(
            f"{len(missing)} of {wanted['shards']} parts are missing: make them with --shard {few}"
            + (" …" if len(missing) > 10 else "")
        )
    ordered = [by_number[number] for number in sorted(by_number)]
    shapes = [_shape(path) for path in ordered]
    widths = sorted({width for _, width in shapes})
    if len(widths) > 1:
        raise RunError(f"the parts hold features of {widths[0]} and {widths[1]} numbers")
    for path, (rows, _) in zip(ordered, shapes, strict=True):
        if rows < (listed := headers[path]["images"]):
            (progress or Progress()).note(
                f"{path} has {rows} of its {counted(listed, 'image')}: the others could not be "
                "used when it was made; if they can be now, make it anew"
            )
    if not sum(rows for rows, _ in shapes):
        raise NoImagesError(f"no usable image in any of the {len(ordered)} parts")
    return write_features(
        out,
        (sum(rows for rows, _ in shapes), shapes[0][1]),
        ids=_names(ordered),
        chunks=_features(ordered),
    )


_SAME = {
    "run": "the same run",
    "shards": "the same number of parts",
    "listing": "the same images (the source has changed, or another was given)",
}


def hash_listing(listing: Listing) -> str:
    """A hash of the ids of a listing, in their order: whether another lists the same images."""
    digest = hashlib.blake2b(digest_size=16)
    for name in listing.ids:
        digest.update(name.encode() + b"\0")
    return digest.hexdigest()


def _hash_file(*paths: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads((pq.read_schema(path).metadata or {})[HEADER])
        return {name: header[name] for name in ("images", "shard", *_SAME)}
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError) as error:  # pyarrow's of damaged files are ValueErrors
        raise RunError(
            f"{path} is no part, or damaged: give the files that `deepcluster embed --shard` wrote"
        ) from error


def _shape(path: Path) -> tuple[int, int]:
    with pq.ParquetFile(path) as file:
        return file.metadata.num_rows, file.schema_arrow.field("embedding").type.list_size


def _batches(paths: Sequence[Path], columns: list[str]) -> Iterator[pa.RecordBatch]:
    for path in paths:
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                yield from file.iter_batches(ROWS, columns=columns)
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is damaged ({error}): make it anew") from error


def _names(paths: Sequence[Path]) -> Iterator[tuple[str, str | None]]:
    for batch in _batches(paths, ["id", "path"]):
        yield from zip(batch["id"].to_pylist(), batch["path"].to_pylist(), strict=True)


def _features(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    for batch in _batches(paths, ["embedding"]):
        yield batch["embedding"].flatten().to_numpy()
