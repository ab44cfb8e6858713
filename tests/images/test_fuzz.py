"""Damaged files end in words that name them: no foreign exception, no endless loop.

Each file is damaged in seeded ways: bits flipped, pieces cut out, doubled or overwritten, the end
lost. A longer run by hand: ``python tests/images/test_fuzz.py 2000``.
"""

from __future__ import annotations

import io
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encoded, picture, png, tiff

from deepcluster.errors import NoImagesError, SourceError
from deepcluster.images.store import open_images


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(len(data)))
        match int(rng.integers(6)):
            case 0:
                data[place] ^= 1 << int(rng.integers(8))
            case 1:
                data[place] = int(rng.choice([0, 1, 127, 128, 255]))
            case 2:
                del data[place : place + int(rng.integers(1, 40))]
            case 3:
                data[place:place] = data[place : place + int(rng.integers(1, 40))]
            case 4:
                data[place : place + 4] = rng.bytes(4)
            case _:
                del data[max(place, 8) :]
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


def seeds() -> dict[str, bytes]:
    stack = np.stack([picture(i, 12) for i in range(3)])
    deep = picture(0, 12).astype(np.uint16) * 16
    array, arrays, table = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, stack)
    np.savez_compressed(arrays, x=stack, y=np.arange(3))
    struct = [{"bytes": encoded(one), "path": f"{i}.png"} for i, one in enumerate(stack)]
    meta = {b"huggingface": b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}'}
    rows = pa.table({"image": pa.array(struct), "label": pa.array([0, 1, None])})
    pq.write_table(rows.replace_schema_metadata(meta), table)
    return {
        "a.npy": array.getvalue(),
        "a.npz": arrays.getvalue(),
        "a.parquet": table.getvalue(),
        "a.png": encoded(stack[0]),
        "deep.png": png(deep),
        "a.jpg": encoded(stack[0], "JPEG"),
        "a.webp": encoded(stack[0], "WEBP"),
        "a.tif": tiff(deep),
        "packed.tif": tiff(deep, packed=True),
        "a.txt": b"a.png\nb.png\n",
    }


def words(path: Path) -> str | None:
    """What is said of the file; None if it is read. Anything but our own words is raised."""
    try:
        store = open_images(path, size=12)
    except (SourceError, NoImagesError) as error:
        return str(error)
    return store.skipped[0][1] if store.skipped else None


@pytest.mark.parametrize("name", list(seeds()))
def test_damaged_files(tmp_path: Path, name: str) -> None:
    fuzz(tmp_path, name, seeds()[name], 25)


def fuzz(folder: Path, name: str, content: bytes, times: int) -> int:
    rng = np.random.default_rng(0)
    said = 0
    path = folder / name
    path.write_bytes(content)
    assert words(path) is None or name == "a.txt"
    for _ in range(times):
        path.write_bytes(damaged(content, rng))
        with warnings.catch_warnings():
            warnings.simplefilter("error", ResourceWarning)
            told = words(path)
        said += told is not None
    return said


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for file, whole in seeds().items():
            count = fuzz(Path(place), file, whole, int(sys.argv[1]))
            sys.stdout.write(f"{file}: {count} of {sys.argv[1]} refused in words\n")
