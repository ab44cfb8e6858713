"""An image is known again by what is in it, not by its name, its place or the training size."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_shapes
from PIL import Image

from deepcluster.images.content import content_of
from deepcluster.images.store import open_images


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, pixels in enumerate(make_shapes(6, side=24)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def contents(source: object, **how: object) -> list[int]:
    found = open_images(source, **how).contents  # type: ignore[arg-type]
    assert found is not None and found.dtype == np.uint64
    return found.tolist()


def test_moved_renamed_packed_or_trained_at_another_size(photos: Path, tmp_path: Path) -> None:
    known = contents(photos)
    assert len(set(known)) == 6
    for i in range(6):  # in the other order
        (tmp_path / f"new {9 - i}.png").write_bytes((photos / f"{i}.png").read_bytes())
    assert contents(tmp_path, size=8) == known[::-1]
    structs = [{"bytes": p.read_bytes(), "path": p.name} for p in sorted(photos.iterdir())]
    pq.write_table(pa.table({"image": structs}), tmp_path / "packed.parquet")
    assert contents(tmp_path / "packed.parquet") == known
    other = photos / "0.png"
    Image.open(other).rotate(90).save(tmp_path / "turned.png")
    assert contents([tmp_path / "turned.png"])[0] not in known


def test_arrays_are_known_by_their_values(tmp_path: Path) -> None:
    array = make_shapes(5)
    known = contents(array)
    np.save(tmp_path / "stack.npy", array[..., None])
    assert contents(tmp_path / "stack.npy") == known
    assert contents(torch.from_numpy(array)[:, None]) == known
    assert contents(list(array)) == known
    assert contents([Image.fromarray(a) for a in array]) != known  # kinds are not compared


def test_what_is_left_out_has_no_content(photos: Path, tmp_path: Path) -> None:
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "2b.png").write_bytes(b"no picture")
    assert contents(tmp_path) == contents(photos)


def test_it_is_blake2_of_the_bytes(photos: Path) -> None:
    import hashlib

    data = (photos / "3.png").read_bytes()
    expected = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    assert content_of(photos / "3.png") == content_of(data) == expected
    image = Image.open(io.BytesIO(data))
    assert content_of(image) != content_of(image.convert("RGB"))


def test_some_of_a_store(photos: Path) -> None:
    store = open_images(photos)
    some = store.only(np.array([4, 1]))
    assert some.ids == ["4.png", "1.png"] and len(some) == 2
    assert np.array_equal(some[0], store[4])
    assert some.contents is not None and store.contents is not None
    assert some.contents.tolist() == store.contents[[4, 1]].tolist()
