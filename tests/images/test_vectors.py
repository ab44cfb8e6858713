"""Vectors of files and arrays: read with their ids and labels, or refused in our words."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import save
from PIL import Image

from deepcluster.errors import SourceError
from deepcluster.images.store import open_images
from deepcluster.images.vectors import Vectors, pair, read_vectors

ROWS = np.random.default_rng(0).normal(size=(6, 4))


@pytest.mark.parametrize(
    "given",
    [
        ROWS,
        ROWS.astype(np.float16),
        ROWS.tolist(),
        torch.from_numpy(ROWS).requires_grad_(),
        torch.from_numpy(ROWS).bfloat16(),
    ],
)
def test_arrays_and_tensors(given: Any) -> None:
    np.testing.assert_allclose(read_vectors(given).rows, ROWS, atol=0.02)


def test_ids_end_at_a_line_feed(tmp_path: Path) -> None:
    ids = ["a\x0bb", "c\u2028d", "e", "f", "g", "h"]
    np.save(tmp_path / "v.npy", ROWS)
    for encoding, end in (("utf-8", "\n"), ("utf-16", "\n"), ("utf-8", "\r\n")):
        (tmp_path / "v.ids.txt").write_bytes(end.join([*ids, ""]).encode(encoding))
        assert read_vectors(tmp_path / "v.npy").ids == ids
    (tmp_path / "v.npy").rename(tmp_path / "v.NPY")
    assert read_vectors(tmp_path / "v.NPY").ids == ids
    (tmp_path / "v.ids.txt").write_bytes(b"\xff\n" * 6)
    with pytest.raises(SourceError, match=r"v\.ids\.txt is text in neither .* save it as UTF-8"):
        read_vectors(tmp_path / "v.NPY")


def test_ids_as_embed_writes_them(tmp_path: Path) -> None:
    ids = ["a,b", 'c"d', "e\nf", "g", "h", "i"]
    np.save(tmp_path / "v.npy", ROWS)
    with (tmp_path / "v.ids.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "path"], *([id_, f"/x/{id_}"] for id_ in ids)])
    assert read_vectors(tmp_path / "v.npy").ids == ids
    (tmp_path / "v.ids.csv").write_text("name\na\n")
    with pytest.raises(SourceError, match=r"v\.ids\.csv has no column id"):
        read_vectors(tmp_path / "v.npy")
    (tmp_path / "v.ids.txt").write_text("a\nb\nc\nd\ne\nf\n")
    with pytest.raises(SourceError, match="both give ids: delete the one"):
        read_vectors(tmp_path / "v.npy")


def test_labels_are_as_those_of_images(tmp_path: Path) -> None:
    labels = pa.array([1.0, 2.0, None, float("nan"), -1.0, 1.0])
    pq.write_table(pa.table({"vector": ROWS.tolist(), "label": labels}), tmp_path / "v.parquet")
    found = read_vectors(tmp_path / "v.parquet")
    assert found.labels is not None and found.labels.tolist() == [0, 1, -1, -1, -1, 0]
    assert found.label_names == ["1", "2"]


def _parquet(path: Path) -> None:
    pq.write_table(pa.table({"v": ROWS.tolist(), "id": ["a", None, *"cdef"]}), path)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("a.npy", lambda path: path.write_bytes(b""), "empty, damaged or cut off"),
        ("a.npy", lambda path: path.write_bytes(bytes(1000)), "empty, damaged or cut off"),
        ("a.parquet", lambda path: path.write_bytes(b"PAR1junk"), "empty, damaged or cut off"),
        ("a.parquet", _parquet, "1 rows have no id"),
        ("a.csv", lambda path: path.write_text("1,2"), r"come as \.npy or \.parquet"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, write: Any, words: str) -> None:
    write(tmp_path / name)
    with pytest.raises(SourceError, match=words) as caught:
        read_vectors(tmp_path / name)
    assert name in str(caught.value)


def test_a_shape_that_the_file_does_not_hold(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 4)))
    raw = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(raw.replace(b"(2, 4), }          ", b"(90000000000, 4), }"))
    with pytest.raises(SourceError, match="empty, damaged or cut off"):
        read_vectors(tmp_path / "a.npy")


def test_rows_of_several_lengths() -> None:
    with pytest.raises(SourceError, match="several lengths"):
        read_vectors([[1.0], [2.0, 3.0]])


def test_vectors_and_images_meet_by_id_or_path_and_never_by_chance(tmp_path: Path) -> None:
    for i in range(6):
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    store = open_images(str(tmp_path))
    paths = [str(path) for path in store.paths]
    for names in (store.ids, paths):
        found = pair(Vectors("v", ROWS, names[::-1]), store)[0]
        np.testing.assert_array_equal(found, ROWS[::-1])
    np.testing.assert_array_equal(pair(Vectors("v", ROWS, None), store)[0], ROWS)
    for strange in ([f"x{i}" for i in range(6)], [*paths[:5], "x"]):
        with pytest.raises(SourceError, match=r"of 6 images have no vector, .* or their paths"):
            pair(Vectors("v", ROWS, strange), store)


def test_the_features_of_a_run_meet_images_by_its_table(tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        save(tmp_path / f"photos/{name}.png", np.full((8, 8, 3), i, np.uint8))
    np.save(tmp_path / "embeddings.npy", np.eye(3, 4, dtype=np.float32))
    (tmp_path / "items.csv").write_text("id,path,cluster\nc.png,,0\na.png,,0\nb.png,,1\n")
    assert read_vectors(tmp_path / "embeddings.npy").ids is None
    (tmp_path / "run.json").write_text("{}")
    vectors = read_vectors(tmp_path / "embeddings.npy")
    rows, _ = pair(vectors, open_images(tmp_path / "photos"))
    assert rows.argmax(1).tolist() == [1, 2, 0]
    (tmp_path / "photos/c.png").write_text("broken")
    rows, store = pair(vectors, open_images(tmp_path / "photos"))
    assert rows.argmax(1).tolist() == [1, 2] and store.ids == ["a.png", "b.png"]
    (tmp_path / "photos/a.png").rename(tmp_path / "photos/z.png")
    with pytest.raises(SourceError, match="1 of 2 images have no vector"):
        pair(vectors, open_images(tmp_path / "photos"))


def test_a_row_that_is_missing_is_said(tmp_path: Path) -> None:
    pq.write_table(pa.table({"embedding": [[1.0, 2.0], None, [3.0, 4.0]]}), tmp_path / "v.parquet")
    with pytest.raises(SourceError, match="some are missing"):
        read_vectors(tmp_path / "v.parquet")
