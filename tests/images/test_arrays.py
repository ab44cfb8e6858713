"""Tables, items of data sets, .npz files: every picture in its own order, nothing unpickled."""

from __future__ import annotations

import io
import weakref
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.lib import format as npy
from pictures import encoded, picture, reasons, save
from PIL import Image

from deepcluster.errors import SourceError
from deepcluster.images.store import ImageStore, list_source, open_images


def shows(store: ImageStore, seeds: list[int], side: int = 16) -> None:
    expected = np.stack([picture(seed, side) for seed in seeds])
    np.testing.assert_array_equal(store.pixels, expected)


# -- tables -----------------------------------------------------------------------------------


class Column:
    """A column as pandas has it: [i] is the value whose index label is i, not the i-th."""

    iloc = None  # what tells it from a list

    def __init__(self, values: list[Any], index: list[int]) -> None:
        self.values, self.index = values, index

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, label: int) -> Any:
        return self.values[self.index.index(label)]

    def tolist(self) -> list[Any]:
        return list(self.values)


class Frame:
    iloc = None

    def __init__(self, **columns: Column) -> None:
        self.content = columns
        self.columns = list(columns)

    def __getitem__(self, name: str) -> Column:
        return self.content[name]


ORDER = [2, 0, 3, 1]


@pytest.mark.parametrize("kind", ["arrays", "paths", "bytes", "structs", "PIL"])
def test_a_column_is_read_in_its_own_order(tmp_path: Path, kind: str) -> None:
    made: dict[str, Any] = {
        "arrays": lambda i: picture(i, 16),
        "paths": lambda i: str(save(tmp_path / f"{i}.png", picture(i, 16))),
        "bytes": lambda i: encoded(picture(i, 16)),
        "structs": lambda i: {"bytes": encoded(picture(i, 16)), "path": None},
        "PIL": lambda i: Image.fromarray(picture(i, 16)),
    }
    column = Column([made[kind](i) for i in ORDER], ORDER)
    shows(open_images(column), ORDER)
    named = Frame(label=Column(list("abcd"), ORDER), image=column)
    shows(open_images(named), ORDER)
    labels = Column(list("cadb"), ORDER)
    store = open_images(column, labels=labels.tolist())
    assert store.labels is not None and store.labels.tolist() == [2, 0, 3, 1]


def test_columns_of_pandas_and_polars(tmp_path: Path) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    files = [str(save(tmp_path / f"{i}.png", picture(i, 16))) for i in range(4)]
    frame = pandas.DataFrame({"path": files, "label": [0, 1, 0, None]}).sort_values(
        "path", ascending=False
    )
    for source in (frame, frame["path"], frame[["path"]]):
        shows(open_images(source, labels=frame["label"]), [3, 2, 1, 0])
    assert open_images(frame, labels=frame["label"]).labels.tolist() == [-1, 0, 1, 0]  # type: ignore[union-attr]
    table = polars.DataFrame({"path": files[::-1]})
    for source in (table, table["path"]):
        shows(open_images(source), [3, 2, 1, 0])


def test_arrow_tables_and_names_that_say_nothing() -> None:
    table = pa.table({"n": [0, 1], "image": [encoded(picture(i, 16)) for i in ORDER[:2]]})
    shows(open_images(table), ORDER[:2])
    shows(open_images(table["image"]), ORDER[:2])
    with pytest.raises(SourceError, match="columns a, b has none called image"):
        open_images(Frame(a=Column([], []), b=Column([], [])))


# -- items of data sets -----------------------------------------------------------------------


def image(i: int) -> Image.Image:
    return Image.fromarray(picture(i, 16))


ITEMS: dict[str, Any] = {
    "image": lambda i: {"image": image(i), "label": 3},
    "img": lambda i: {"label": 3, "img": image(i)},
    "pixel_values": lambda i: {"pixel_values": picture(i, 16).transpose(2, 0, 1), "labels": 0},
    "jpg": lambda i: {"jpg": image(i), "cls": 1, "__key__": "x"},
    "Image": lambda i: {"Image": image(i)},
    "the only one": lambda i: {"scan": image(i), "size": 16},
    "bytes": lambda i: {"image": {"bytes": encoded(picture(i, 16)), "path": None}},
    "(image, target)": lambda i: (image(i), 0),
    "(index, image)": lambda i: (i, image(i)),
    "(index, array)": lambda i: (np.int64(i), picture(i, 16), "name"),
    "two views": lambda i: ([image(i), image(5)], 0),
    "dict in a tuple": lambda i: ({"image": image(i)}, 0),
    "encoded": lambda i: encoded(picture(i, 16)),
    "file": lambda i: io.BytesIO(encoded(picture(i, 16))),
}


@pytest.mark.parametrize("kind", ITEMS)
def test_items_of_data_sets(kind: str) -> None:
    class Set:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            return ITEMS[kind](index)

    shows(open_images(Set()), [0, 1, 2])
    if kind != "(image, target)":
        shows(open_images([ITEMS[kind](i) for i in range(3)]), [0, 1, 2])


def test_items_that_hold_no_image() -> None:
    items = [picture(0, 16), {"a": 1, "b": 2}, None, (), np.zeros((8, 8, 2)), "gone.png", b"junk"]
    store = open_images([*items, {"image": None, "path": "lost.png"}])
    shows(store, [0])
    assert [why for _, why in store.skipped] == [
        "a dict of a, b has no image that can be told: call it image",
        "empty",
        "an empty item",
        "an array of shape (8, 8, 2) is no image: expected (h, w), (h, w, c) or (c, h, w)",
        "there is no such file",
        "not an image in a format that Pillow reads",
        "there is no such file",
    ]
    assert store.rows(np.array([[0.5, 0.5]]), np.nan).shape == (8, 2)


# -- .npz -------------------------------------------------------------------------------------


def test_an_object_beside_good_images_is_left_where_it_is(tmp_path: Path) -> None:
    stack = np.stack([picture(i, 16) for i in range(3)])
    info = np.array([{"a": 1}], object)
    np.savez(tmp_path / "a.npz", x=stack, info=info, y=np.array([2, 1, 2]), allow_pickle=True)
    store = open_images(tmp_path / "a.npz")
    shows(store, [0, 1, 2])
    assert store.label_names == ["1", "2"]
    np.savez(tmp_path / "b.npz", x=stack, y=np.array(["a", None, "b"], object), allow_pickle=True)
    store = open_images(tmp_path / "b.npz")
    assert store.labels is None
    assert store.remarks == [
        "passed over: 1 × array y of Python objects (to measure by it, make it 3 numbers or texts)"
    ]


@pytest.mark.parametrize("labels", [np.eye(3), np.arange(2), np.zeros((3, 2))])
def test_arrays_that_are_not_read_are_said(tmp_path: Path, labels: np.ndarray) -> None:
    stack = np.stack([picture(i, 16) for i in range(3)])
    np.savez(tmp_path / "a.npz", images=stack, masks=stack[..., 0], labels=labels)
    store = open_images(tmp_path / "a.npz")
    shows(store, [0, 1, 2])
    assert store.labels is None
    assert store.remarks == [
        f"passed over: 1 × array labels of shape {labels.shape} (to measure by it, make it 3 "
        "numbers or texts), 1 × array masks (images is read)"
    ]


def test_labels_of_several_values_are_refused() -> None:
    images = np.stack([picture(i, 16) for i in range(3)])
    for labels in (np.eye(3), [[1], [2], [3]], [("a",), ("b",), ("c",)]):
        with pytest.raises(SourceError, match="one number or text for each image"):
            open_images(images, labels=labels)
    assert open_images(images, labels=np.array(["a", "b", "a"], "S1")).label_names == ["a", "b"]


@pytest.mark.parametrize("raw", [b"", bytes(1000), b"\x93NUMPY\x01\x00", b"\x80\x04K\x01."])
def test_files_of_no_arrays_are_refused_in_our_words(tmp_path: Path, raw: bytes) -> None:
    for name in ("a.npy", "a.npz"):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(SourceError, match=r"it is empty, damaged or cut off") as caught:
            open_images(tmp_path / name)
        assert "unsafely" not in str(caught.value)


def test_sparse_tensors_are_read() -> None:
    import torch

    stack = np.stack([picture(i, 16)[..., 0] for i in range(3)])
    store = open_images(torch.from_numpy(stack).to_sparse())
    assert np.array_equal(store.pixels[..., 0], stack)


def test_an_empty_text_is_not_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    for nothing in ("", " "):
        with pytest.raises(SourceError, match="empty text"):
            open_images(nothing)
    assert open_images(".").ids == ["a.png"]


def test_what_is_not_wanted_of_a_file_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in (("x", picture(0, 16)[None]), ("junk", np.zeros(4_000_000, np.uint8))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                npy.write_array(file, array)
        archive.writestr("notes.bin", bytes(4_000_000))
    assert (tmp_path / "a.npz").stat().st_size < 20_000
    read: list[int] = []
    really_read = zipfile.ZipExtFile.read

    def count(self: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        got = really_read(self, n)
        read.append(len(got))
        return got

    monkeypatch.setattr(zipfile.ZipExtFile, "read", count)
    shows(open_images(tmp_path / "a.npz"), [0])
    assert sum(read) < 10_000


def test_a_shape_that_the_file_does_not_hold(tmp_path: Path) -> None:
    file = io.BytesIO()
    npy.write_array(file, np.zeros((2, 8, 8), np.uint8))
    lying = file.getvalue().replace(b"(2, 8, 8), }          ", b"(2000000, 800, 800), }")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", lying)
    (tmp_path / "a.npy").write_bytes(lying)
    for name in ("a.npz", "a.npy"):
        with pytest.raises(SourceError, match=rf"{name} cannot be read: .*without pickle"):
            open_images(tmp_path / name)


def test_reasons_name_files(tmp_path: Path) -> None:
    store = open_images([save(tmp_path / "a.png"), tmp_path / "b.png"])
    assert reasons(store) == {"b.png": "there is no such file"}


@pytest.mark.parametrize("shape", [(5, 6, 6), (5, 6, 6, 3), (5, 3, 6, 6)])
def test_a_file_is_mapped_piece_by_piece(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read leaves memory: a store of a large file needs no more than the store."""
    stack = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    np.save(tmp_path / "x.npy", stack)
    expected = open_images(stack, size=6).pixels
    monkeypatch.setattr("deepcluster.images.arrays.PIECE", 2)
    assert np.array_equal(open_images(tmp_path / "x.npy", size=6).pixels, expected)
    listing, maps = list_source(tmp_path / "x.npy"), []
    for _, image in listing.read():
        while isinstance(image.base, np.ndarray):
            image = image.base
        maps.append(weakref.ref(image))
        del image
    assert len(maps) == 5 and not any(one() for one in maps)
