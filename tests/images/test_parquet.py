"""Parquet as pandas, polars and the hub write it; footers that lie; shards that change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encoded, picture, reasons, save

from deepcluster.errors import NoImagesError, SourceError
from deepcluster.images.sources import list_source
from deepcluster.images.store import ImageStore, open_images

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows(seeds: list[int], paths: list[str | None] | None = None) -> list[dict[str, Any]]:
    """Rows of a struct column; a seed below 0 has no bytes."""
    given = paths or [None] * len(seeds)
    return [
        {"bytes": encoded(picture(seed, 16)) if seed >= 0 else None, "path": path}
        for seed, path in zip(seeds, given, strict=True)
    ]


def table(path: Path, meta: bytes | None = None, **columns: Any) -> Path:
    arrays = {
        name: pa.array(column, STRUCT) if isinstance(column, list) else column
        for name, column in columns.items()
    }
    made = pa.table(arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        pq.write_table(
            made.replace_schema_metadata({b"huggingface": meta}) if meta is not None else made,
            path,
            row_group_size=None if "view" in str(made.schema) else 3,  # Arrow cannot slice views
        )
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"this Arrow cannot write such a file: {error}")
    return path


def shows(store: ImageStore, seeds: list[int]) -> None:
    np.testing.assert_array_equal(store.pixels, np.stack([picture(seed, 16) for seed in seeds]))


# -- types ------------------------------------------------------------------------------------

WORDS = ["b", "a", "b", "c"]
LABELS = {
    "int64": (pa.array([1, 0, 1, 2]), [1, 0, 1, 2]),
    "uint8": (pa.array([1, 0, 1, 2], pa.uint8()), [1, 0, 1, 2]),
    "string": (pa.array(WORDS), [1, 0, 1, 2]),
    "large_string": (pa.array(WORDS, pa.large_string()), [1, 0, 1, 2]),
    "string_view": (pa.array(WORDS, pa.string_view()), [1, 0, 1, 2]),
    "dictionary": (pa.array(WORDS).dictionary_encode(), [1, 0, 1, 2]),
    "large dictionary": (pa.array(WORDS, pa.large_string()).dictionary_encode(), [1, 0, 1, 2]),
    "double": (pa.array([1.0, 0.0, 1.0, 2.0]), [1, 0, 1, 2]),
    "double with gaps": (pa.array([1.0, None, 0.0, float("nan")]), [1, -1, 0, -1]),
    "float": (pa.array([1.0, 0.0, 1.0, 2.0], pa.float32()), [1, 0, 1, 2]),
    "bool": (pa.array([True, False, True, None]), [1, 0, 1, -1]),
    "decimal": (pa.array([1, 0, 1, 2]).cast(pa.decimal128(24, 1)), [1, 0, 1, 2]),
    "bytes": (pa.array([b"b", b"a", None, b"b"]), [1, 0, -1, 1]),
    "words for unknown": (pa.array(["b", "", "a ", None]), [1, -1, 0, -1]),
}


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([[1], [0], [1], [2]], pa.list_(pa.field("element", pa.int64()))),
        pa.array([{"a": 1}] * 4),
        pa.array([1, 2, 3, 4], pa.timestamp("ns")),
    ],
)
def test_labels_that_are_none_are_said(tmp_path: Path, labels: pa.Array) -> None:
    (tmp_path / "folder").mkdir()
    file = table(tmp_path / "folder" / "a.parquet", image=rows([0, 1, 2, 3]), label=labels)
    for source in (file, tmp_path / "folder"):
        store = open_images(source)
        assert store.labels is None
        assert store.remarks == [
            f"passed over: 1 × column label of {labels.type} (to measure by it, make it one number "
            "or text a row)"
        ]


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("column", ["label", "Labels", "target"])
def test_types_of_labels(tmp_path: Path, kind: str, column: str) -> None:
    labels, expected = LABELS[kind]
    file = table(tmp_path / "a.parquet", image=rows([0, 1, 2, 3]), **{column: labels})
    store = open_images(file)
    assert store.labels is not None and store.labels.tolist() == expected


def test_classes_by_name_in_any_type(tmp_path: Path) -> None:
    meta = b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}'
    for i, labels in enumerate((pa.array([1.0, 0.0, None, 5.0]), pa.array([1, 0, -1, 2]))):
        file = table(tmp_path / f"{i}.parquet", meta, image=rows([0, 1, 2, 3]), label=labels)
        store = open_images(file)
        assert store.labels is not None and store.labels.tolist() == [1, 0, -1, -1]
        assert store.label_names == ["cat", "dog"]


IMAGES = {
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.binary()),
    "list of uint8": pa.list_(pa.uint8()),
    "large list of uint8": pa.large_list(pa.uint8()),
    "struct": STRUCT,
    "struct of large": pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]),
    "struct of views": pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())]),
    "struct of bytes": pa.struct([("bytes", pa.binary())]),
    "struct of lists": pa.struct([("bytes", pa.list_(pa.uint8())), ("path", pa.string())]),
    "struct with more": pa.struct(
        [("bytes", pa.binary()), ("w", pa.int64()), ("path", pa.int64())]
    ),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_types_of_images(tmp_path: Path, kind: str) -> None:
    contents = [encoded(picture(i, 16), "PNG" if i else "WEBP") for i in (1, 2, 3, 4)]
    values: list[Any] = [*contents[:2], None, *contents[2:]]
    if "list" in kind:
        values = [None if v is None else list(v) for v in values]
    if "struct" in kind:
        values = [None if v is None else {"bytes": v} for v in values]
    column = pa.array(values, IMAGES[kind])
    file = table(tmp_path / "a.parquet", picture=column, other=pa.array([b"not an image"] * 5))
    store = open_images(file)
    shows(store, [1, 2, 3, 4])
    assert store.ids == ["a:0", "a:1", "a:3", "a:4"] and store.skipped == [("a:2", "empty")]


def test_one_of_several_columns_of_images(tmp_path: Path) -> None:
    mask, photo = rows([9, 9, 9]), rows([0, 1, 2])
    with pytest.raises(SourceError, match=r"several columns of images \(mask, photo\): rename"):
        open_images(table(tmp_path / "a.parquet", mask=mask, photo=photo))
    store = open_images(table(tmp_path / "b.parquet", mask=mask, image=photo))
    shows(store, [0, 1, 2])
    assert store.remarks == [
        "passed over: 1 × column mask of images (image is read: rename the one that is meant)"
    ]
    shows(open_images(table(tmp_path / "c.parquet", mask=mask, Img=photo)), [0, 1, 2])


@pytest.mark.parametrize(
    "meta",
    [
        b'{"info": null}',
        b"[]",
        b"null",
        b'"x"',
        b"not json",
        b"\xff",
        b'{"info": {"features": []}}',
        b'{"info": {"features": {"label": null}}}',
        b'{"info": {"features": {"label": [1]}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": 3}}}}',
    ],
)
def test_metadata_that_says_nothing(tmp_path: Path, meta: bytes) -> None:
    file = table(tmp_path / "a.parquet", meta, image=rows([0, 1]), label=pa.array([1, 0]))
    store = open_images(file)
    shows(store, [0, 1])
    assert store.label_names == ["0", "1"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([encoded(picture(0)).hex()]),  # text
        pa.array([[{"bytes": encoded(picture(0))}]]),
        pa.array([{"image": {"bytes": encoded(picture(0))}}]),
        pa.array([{"bytes": "text", "path": "x"}]),
        pa.array([b"no image at all, but bytes"]),
    ],
)
def test_layouts_that_are_refused(tmp_path: Path, column: Any) -> None:
    with pytest.raises(SourceError, match=r"a\.parquet has no column of images .* among x"):
        open_images(table(tmp_path / "a.parquet", x=column))


# -- paths in place of bytes ------------------------------------------------------------------


def test_rows_without_bytes_are_the_files_they_name(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "set" / "files" / f"{i}.png", picture(i, 16))
    away = str(tmp_path / "set" / "files" / "1.png")
    names: list[str | None] = ["files/0.png", away, "files/2.png", "files/gone.png", "3.png"]
    file = table(tmp_path / "set" / "a.parquet", image=rows([-1, -1, -1, -1, 3], names))
    store = open_images(file)
    shows(store, [0, 1, 2, 3])
    assert store.ids == ["files/0.png", away, "files/2.png", "3.png"]
    (name, why), *rest = store.skipped
    assert name == "files/gone.png" and not rest
    assert (
        why
        == "the row has no bytes, and there is no file files/gone.png in the folder of a.parquet"
    )
    assert store.paths == [None] * 4
    linked = table(tmp_path / "set" / "b.parquet", image=rows([-1, -1], names[:2]))
    assert open_images(linked).paths == [str(tmp_path / "set" / "files/0.png"), away]


# -- files that lie or change -----------------------------------------------------------------


def shard(root: Path, name: str, seeds: list[int], labels: list[str], named: bool) -> None:
    paths: list[str | None] = [f"{name}{seed}.png" if named else None for seed in seeds]
    table(root / f"{name}.parquet", image=rows(seeds, paths), label=pa.array(labels))


@pytest.mark.parametrize("named", [True, False])
def test_a_shard_that_shrinks_or_grows_shifts_nothing(tmp_path: Path, named: bool) -> None:
    shard(tmp_path, "a", [0, 1, 2, 3], list("wxyz"), named)
    shard(tmp_path, "b", [4, 5, 6, 7], list("wxyz"), named)
    ids = open_images(tmp_path).ids
    listing = list_source(tmp_path)
    shard(tmp_path, "a", [0, 1], list("wx"), named)
    store = open_images(listing)
    shows(store, [0, 1, 4, 5, 6, 7])
    assert store.ids == ids[:2] + ids[4:]
    assert store.labels is not None
    assert [store.label_names[k] for k in store.labels] == list("wxwxyz")
    assert store.skipped == [(name, "not there any more") for name in ids[2:4]]

    listing = list_source(tmp_path)
    shard(tmp_path, "a", [0, 1, 2, 3], list("wxyz"), named)
    store = open_images(listing)
    shows(store, [0, 1, 4, 5, 6, 7])
    assert store.ids == ids[:2] + ids[4:] and store.skipped == []

    listing = list_source(tmp_path)
    shard(tmp_path, "a", [3, 1, 2, 0], list("zxyw"), named)  # in another order
    store = open_images(listing)
    assert store.ids == ids[1:3] + ids[4:]
    shows(store, [1, 2, 4, 5, 6, 7])
    assert {why for _, why in store.skipped} == {
        "its row is another one than when the file was listed"
    }
    listing = list_source(tmp_path)
    (tmp_path / "a.parquet").unlink()
    store = open_images(listing)
    shows(store, [4, 5, 6, 7])
    assert all("a.parquet cannot be read as Parquet" in why for _, why in store.skipped)


def test_a_footer_that_claims_too_many_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = table(tmp_path / "a.parquet", image=pa.array([encoded(picture(0, 16))]))
    honest = file.read_bytes()
    # the footer's number of rows is a varint: 1 (zigzag 2) twice, once in each row group
    place = honest.rindex(b"\x16\x02\x19")
    (tmp_path / "a.parquet").write_bytes(
        honest[:place] + b"\x16\x80\xc2\xd7\x2f\x19" + honest[place + 3 : -8]
        + (len(honest) - 8 - int.from_bytes(honest[-8:-4], "little") and b"")
        + (int.from_bytes(honest[-8:-4], "little") + 3).to_bytes(4, "little")
        + b"PAR1"
    )  # fmt: skip
    with pytest.raises(SourceError, match=r"it claims 50,000,000 rows in .* bytes"):
        open_images(file)


def test_a_pipe_that_is_called_parquet(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"x\.parquet is not a regular file"):
        open_images(tmp_path)
    table(tmp_path / "y.parquet", image=rows([0, 1]))
    store = open_images(tmp_path)
    shows(store, [0, 1])
    assert reasons(store) == {"x.parquet": "is not a regular file"}


# -- beside other files -----------------------------------------------------------------------


def test_what_holds_more_images_is_read_and_the_rest_said(tmp_path: Path) -> None:
    table(tmp_path / "data" / "train.PARQUET", image=rows([0, 1, 2]))
    save(tmp_path / "assets" / "banner.png", picture(9, 16))
    table(tmp_path / "meta.parquet", x=pa.array([1] * 50))
    store = open_images(tmp_path)
    shows(store, [0, 1, 2])
    assert store.ids == ["data/train:0", "data/train:1", "data/train:2"]
    assert {one.kind: one.count for one in store.passed_over} == {"image beside Parquet files": 1}
    assert "passed over: 1 × image beside Parquet files" in store.remarks[0]
    for i in range(4):
        save(tmp_path / "photos" / f"{i}.png", picture(i, 16))
    store = open_images(tmp_path)
    assert len(store) == 5 and store.ids[0] == "assets/banner.png"
    assert {one.kind: one.count for one in store.passed_over} == {".parquet": 2}
    with pytest.raises(NoImagesError):
        open_images([])
