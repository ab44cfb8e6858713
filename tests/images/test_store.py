"""Sources of every kind, odd and broken images, ids, labels and the store itself."""

from __future__ import annotations

import io
import json
import mmap
import os
import random
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import picture, reasons, save
from PIL import Image

from deepcluster.config import DataSettings
from deepcluster.errors import NoImagesError, SourceError
from deepcluster.images import decode, sinks, store
from deepcluster.images.named import TORCHVISION
from deepcluster.images.resize import resize
from deepcluster.images.store import NAMED, auto_size, open_images, scan_images

GREY = DataSettings(channels="grey")
RGB = DataSettings(channels="rgb")


# -- formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode", "how", "far"),
    [
        ("a.png", None, {}, 0),
        ("a.PNG", None, {}, 0),
        ("a.bmp", None, {}, 0),
        ("a.tif", None, {}, 0),
        ("a.tif", None, {"compression": "tiff_lzw"}, 0),
        ("a.ppm", None, {}, 0),
        ("a.tga", None, {}, 0),
        ("a.webp", None, {"lossless": True}, 0),
        ("a.jp2", None, {"irreversible": False}, 0),
        ("a.ico", None, {"sizes": [(24, 24)]}, 0),
        ("a.jpg", None, {"quality": 98, "subsampling": 0}, 8),
        ("a.JPEG", None, {"quality": 98, "progressive": True, "subsampling": 0}, 8),
        ("a.png", "P", {}, 60),  # 256 colours of the web palette
        ("a.gif", "P", {}, 60),
        ("a.png", "RGBA", {}, 0),
        ("a.tif", "CMYK", {}, 1),
        ("a.jpg", "CMYK", {"quality": 98, "subsampling": 0}, 8),
        ("ein größeres Bild.png", None, {}, 0),
        ("猫/写真.png", None, {}, 0),
    ],
)
def test_colour_formats(tmp_path: Path, name: str, mode: str | None, how: Any, far: int) -> None:
    save(tmp_path / name, mode=mode, **how)
    store = open_images(tmp_path, size=24)
    assert store.ids == [name] and store.skipped == []
    assert store.paths == [str(tmp_path / name)]
    assert store.pixels.shape == (1, 24, 24, 3) and store.pixels.dtype == np.uint8
    assert np.abs(store[0].astype(int) - picture()).max() <= far


@pytest.mark.parametrize(("mode", "name"), [("L", "a.png"), ("LA", "a.png"), ("L", "a.jpg")])
def test_grey_formats(tmp_path: Path, mode: str, name: str) -> None:
    save(tmp_path / name, mode=mode)
    expected = np.asarray(Image.fromarray(picture()).convert("L"))
    store = open_images(tmp_path, size=24)
    assert store.pixels.shape == (1, 24, 24, 1)
    assert np.abs(store[0][..., 0].astype(int) - expected).max() <= (8 if name == "a.jpg" else 0)


def test_one_bit(tmp_path: Path) -> None:
    bits = np.indices((16, 16)).sum(0) % 2 == 0
    Image.fromarray(bits).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "1"
    np.testing.assert_array_equal(open_images(tmp_path, size=16)[0][..., 0], bits * 255)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_scaled_by_their_full_range(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    expected = np.round(values / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(open_images(tmp_path, size=32)[0][..., 0], expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 100], [200, 255]], np.int32), [[0, 100], [200, 255]]),
        (np.array([[0, 65535], [257, 514]], np.int32), [[0, 255], [1, 2]]),
        (np.array([[-1000, 1000], [0, 500]], np.int32), [[0, 255], [128, 191]]),
        (np.array([[0, 1], [0.5, 0.2]], np.float32), [[0, 255], [128, 51]]),
        (np.array([[0, 255], [np.nan, 7]], np.float32), [[0, 255], [0, 7]]),
    ],
)
def test_wide_tiff(tmp_path: Path, values: np.ndarray, expected: Any) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    got = open_images(tmp_path, size=2)[0][..., 0].astype(int)
    assert np.abs(got - expected).max() <= 1


def test_alpha_is_put_on_white(tmp_path: Path) -> None:
    clear = np.dstack([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)])
    half = clear.copy()
    half[..., 3] = 128
    save(tmp_path / "clear.png", clear)
    save(tmp_path / "half.png", half)
    save(tmp_path / "palette.gif", np.zeros((8, 8), np.uint8), transparency=0)
    keyed = np.zeros((8, 8, 3), np.uint8)
    Image.fromarray(keyed).save(tmp_path / "keyed.png", transparency=(0, 0, 0))
    store = open_images(tmp_path, size=8, data=RGB)
    values = {i: set(store[n].ravel().tolist()) for n, i in enumerate(store.ids)}
    assert values == {
        "clear.png": {255},
        "half.png": {127},
        "keyed.png": {255},
        "palette.gif": {255},
    }


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str) -> None:
    upright = Image.fromarray(picture(side=(32, 48)))
    # what a camera stores so that the tag turns it upright: the tag's operation, undone
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    how: dict[str, Any] = {".jpg": {"quality": 98}, ".webp": {"lossless": True}}.get(suffix, {})
    for tag, operation in undo.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        stored = upright.transpose(operation) if operation is not None else upright
        stored.save(tmp_path / f"{tag}{suffix}", exif=exif, **how)
    store = open_images(tmp_path, size=32)
    assert len(store) == 8
    for i in range(8):
        np.testing.assert_allclose(store[i], np.asarray(upright)[:, 8:40], atol=12)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (10, 200, 90)]
    for suffix in (".gif", ".png", ".webp", ".tif"):
        how = {"lossless": True} if suffix == ".webp" else {}
        frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], **how)
    store = open_images(tmp_path, size=8)
    assert len(store) == 4
    assert set(store.pixels.ravel().tolist()) == {10}


def test_from_one_pixel_to_a_hundred_million(tmp_path: Path) -> None:
    save(tmp_path / "dot.png", np.full((1, 1, 3), 77, np.uint8))
    save(tmp_path / "line.png", np.full((1, 500, 3), 78, np.uint8))
    Image.new("L", (10_000, 10_000), 79).save(tmp_path / "wall.png", compress_level=1)
    store = open_images(tmp_path, size=16)
    assert store.ids == ["dot.png", "line.png", "wall.png"]
    assert [set(store[i].ravel().tolist()) for i in range(3)] == [{77}, {78}, {79}]


def test_a_square_image_is_resized_as_pillow_does_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 50, 3), dtype=np.uint8)
    save(tmp_path / "a.png", pixels)
    for side in (20, 70):
        expected = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        difference = np.abs(open_images(tmp_path, size=side)[0].astype(int) - np.asarray(expected))
        assert difference.max() <= 1 and difference.mean() < 0.01


def test_a_full_memory_costs_only_the_images_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png", np.full((50, 50, 3), (i, 0, 0), np.uint8))

    def full(images: Any, *args: Any) -> Any:
        if len(images) > 1 or images[0, 0, 0, 0] == 2:
            raise RuntimeError("not enough memory: you tried to allocate")
        return resize(images, *args)

    monkeypatch.setattr(decode, "resize", full)
    store = open_images(tmp_path, size=32)
    assert [image[0, 0, 0] for image in store.pixels] == [0, 1, 3]
    assert reasons(store) == {"2.png": "too large for the memory"}


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_images_that_are_resized_together_come_out_as_each_by_itself(
    tmp_path: Path, fit: Any
) -> None:
    shapes = [(60, 90), (40, 40), (60, 90), (90, 60), (40, 40), (60, 90), (2000, 900), (2000, 900)]
    for i, shape in enumerate(shapes):
        save(tmp_path / f"{i}.png", picture(i, shape, 1 if i == 4 else 3))
    data = DataSettings(fit=fit)
    together = open_images(tmp_path, size=32, data=data)
    for i in range(len(shapes)):
        alone = open_images(tmp_path / f"{i}.png", size=32, data=data)[0]
        np.testing.assert_array_equal(together[i], np.broadcast_to(alone, (32, 32, 3)))


def test_resize_and_crop_agree_with_torchvision(tmp_path: Path) -> None:
    from torchvision.transforms import v2

    reference = v2.Compose(
        [v2.Resize(48, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(48)]
    )
    for height, width in ((96, 152), (240, 144)):  # sizes whose crop falls on whole pixels
        image = Image.fromarray(picture(1, (height, width)))
        image.save(tmp_path / "a.png")
        got = open_images(tmp_path, size=48)[0].astype(int)
        difference = np.abs(got - np.asarray(reference(image)).astype(int))
        # torchvision's filter sees a little beyond the crop, so only the border may differ
        assert difference[3:-3, 3:-3].max() <= 1
        assert difference.max() < 12


@pytest.mark.parametrize("side", [200, 800])
def test_large_jpegs_keep_their_look(tmp_path: Path, side: int) -> None:
    """The decoder's own halving must not be seen."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(open_images(tmp_path, size=32)[0].astype(int) - expected)
    assert difference.mean() < 2.5 and difference.max() <= 14


def test_a_jpeg_is_halved_by_its_decoder_down_to_the_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.jpg", picture(0, 224))
    widths = []

    def seen(images: Any, *args: Any) -> Any:
        widths.append(images.shape[2])
        return resize(images, *args)

    monkeypatch.setattr(decode, "resize", seen)
    for side in (120, 96, 50):
        open_images(tmp_path, size=side)
    assert widths == [224, 112, 56]


def test_no_format_of_pillow_hands_a_file_to_another_program(tmp_path: Path) -> None:
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    save(tmp_path / "b.png")
    assert reasons(open_images(tmp_path)) == {"a.eps": "not an image in a format that Pillow reads"}


# -- what is skipped --------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims to be huge."""

    def block(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = block(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + data + block(b"IEND", b"")


def test_bad_files_are_skipped_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = save(tmp_path / "good.png")
    save(tmp_path / "png named.jpg", format="PNG")
    save(tmp_path / "whole.jpg", picture(3, 64), quality=98)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-60])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image at all")
    (tmp_path / "bomb.png").write_bytes(bomb(14_000, 14_000))
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    save(tmp_path / "secret.png")
    really_open = Path.open

    def refuse(file: Path, *rest: Any, **how: Any) -> Any:
        if file.name == "secret.png":  # root may read everything
            raise PermissionError(13, "Permission denied", str(file))
        return really_open(file, *rest, **how)

    monkeypatch.setattr(Path, "open", refuse)
    store = open_images(tmp_path, size=24)
    assert store.ids == ["good.png", "png named.jpg", "whole.jpg"]
    found = reasons(store)
    assert found.pop("cut.jpg").startswith("damaged: ")
    assert found.pop("cut.png").startswith("damaged: ")
    assert "14,000 × 14,000" in found["bomb.png"] or "178,956,970" in found["bomb.png"]
    del found["bomb.png"]
    assert "symbolic links" in found.pop("self.png")
    assert found == {
        "empty.jpg": "empty",
        "text.jpg": "not an image in a format that Pillow reads",
        "lost.png": "there is no such file",
        "pipe.png": "not a regular file",
        "secret.png": "no permission to read it",
    }


def test_bombs_are_skipped_even_if_pillow_was_told_to_allow_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    save(tmp_path / "good.png")
    (tmp_path / "bomb.png").write_bytes(bomb(60_000, 60_000))
    assert "60,000 × 60,000" in reasons(open_images(tmp_path))["bomb.png"]


def test_warnings_of_others_are_left_as_they_were(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    before = list(warnings.filters)
    open_images(tmp_path)
    assert list(warnings.filters) == before


def test_what_is_no_image_is_ignored(tmp_path: Path) -> None:
    save(tmp_path / "a" / "good.png")
    for name in ("Thumbs.db", ".DS_Store", "notes.txt", "labels.csv", "a/._good.png", "film.mpg"):
        (tmp_path / name).write_bytes(b"something")
    save(tmp_path / ".hidden" / "no.png")
    save(tmp_path / "__MACOSX" / "no.png")
    store = open_images(tmp_path)
    assert store.ids == ["a/good.png"] and store.skipped == []


def test_images_without_an_extension_are_read(tmp_path: Path) -> None:
    save(tmp_path / "b.png")
    save(tmp_path / "IMG4", format="JPEG")
    save(tmp_path / "b.png.bak", format="JPEG")  # a second copy
    save(tmp_path / "cut", format="PNG")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:60])
    (tmp_path / "README").write_text("Python made these images")  # begins as a PPM does
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for ever
    store = open_images(tmp_path)
    assert store.ids == ["IMG4", "b.png"]
    assert [Path(path).name for path, _ in store.skipped] == ["cut"]
    assert open_images(tmp_path / "IMG4").ids == ["IMG4"]


def test_links(tmp_path: Path) -> None:
    """Links are followed, a loop ends, and a link does not rename what it points to."""
    root, other = tmp_path / "root", tmp_path / "other"
    save(root / "b" / "1.png")
    save(other / "2.png")
    (root / "a").symlink_to(root / "b")
    (root / "b" / "loop").symlink_to(root)
    (root / "z").symlink_to(other)
    (other / "back").symlink_to(other)
    assert open_images(root).ids == ["b/1.png", "z/2.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes((tmp_path / "good.png").read_bytes())
    store = open_images(tmp_path)
    assert store.ids == ["caf\\xe9.png", "good.png"]
    json.dumps([store.ids, store.paths], ensure_ascii=False).encode()  # can be written


def test_no_usable_image(tmp_path: Path) -> None:
    with pytest.raises(NoImagesError, match="found no file"):
        open_images(tmp_path)
    for i in range(3):
        (tmp_path / f"{i}.csv").touch()
    with pytest.raises(NoImagesError, match=r"found 3 × \.csv; expected files that Pillow reads"):
        scan_images(tmp_path)
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(NoImagesError, match=r"none of 1 .*a\.jpg.*not an image"):
        open_images(tmp_path)
    for nothing in ([], np.zeros((0, 8, 8), np.uint8)):
        with pytest.raises(NoImagesError, match="it is empty"):
            open_images(nothing)
    assert issubclass(NoImagesError, ValueError) and issubclass(SourceError, ValueError)


def test_a_source_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="did you mean mnist"):
        open_images("minst")
    save(tmp_path / "photos" / "a.png")
    with pytest.raises(SourceError, match=r"did you mean .*photos"):
        open_images(tmp_path / "photo")
    with pytest.raises(SourceError, match="one of digits, mnist"):
        open_images(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="has no split 'valid': choose from train, test"):
        open_images("mnist:valid")
    (tmp_path / "a.pdf").touch()
    with pytest.raises(SourceError, match=r"not \.pdf"):
        open_images(tmp_path / "a.pdf")
    with pytest.raises(SourceError, match="a generator is no source"):
        open_images(i for i in range(3))


# -- ids --------------------------------------------------------------------------------------


def test_ids_and_pixels_do_not_depend_on_the_other_files(tmp_path: Path) -> None:
    names = ["b/2.png", "a/1.png", "c.png", "b/10.png"]
    order = random.Random(0).sample(range(4), 4)
    for i in order:
        save(tmp_path / names[i], picture(i))
    first = open_images(tmp_path, size=24)
    assert first.ids == sorted(names)
    by_id = {name: first[i].tobytes() for i, name in enumerate(first.ids)}

    (tmp_path / "a/1.png").write_text("broken")
    save(tmp_path / "aa.png", picture(9))
    (tmp_path / "c.png").unlink()
    second = open_images(tmp_path, size=24)
    assert second.ids == ["aa.png", "b/10.png", "b/2.png"]
    for i, name in enumerate(second.ids):
        if name in by_id:
            assert second[i].tobytes() == by_id[name]
    assert second.fingerprint() != first.fingerprint()
    assert second.fingerprint() == open_images(tmp_path, size=24).fingerprint()


def test_ids_are_the_same_for_composed_and_decomposed_names(tmp_path: Path) -> None:
    save(tmp_path / "a" / "Mu\u0308ll.png")  # as macOS writes it
    save(tmp_path / "b" / "M\u00fcll.png")
    assert open_images(tmp_path / "a").ids == open_images(tmp_path / "b").ids


def test_a_list_of_paths(tmp_path: Path) -> None:
    far = save(tmp_path / "far" / "away.png")
    save(tmp_path / "here" / "x.png")
    save(tmp_path / "here" / "ü" / "y z.png")
    listing = tmp_path / "here" / "list.txt"
    lines = ["x.png", "", f"{far}", "./ü/y z.png  ", "x.png", "gone.png", "../far/away.png"]
    listing.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    store = open_images(listing)
    assert store.name == "list"
    assert store.ids == ["x.png", far.as_posix(), "ü/y z.png", "x.png#2", "../far/away.png"]
    assert store.paths[1] == store.paths[4] == str(far)
    assert reasons(store) == {"gone.png": "there is no such file"}
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"):
        listing.write_bytes("\r\n".join(lines).encode(encoding))
        assert open_images(listing).ids == store.ids
    for wrong in (b"\xff\xfe\x00", "été.png".encode("cp1252")):
        listing.write_bytes(wrong)
        with pytest.raises(SourceError, match="neither UTF-8 nor UTF-16: save it as UTF-8"):
            open_images(listing)


def test_a_damaged_tiff_is_listed_and_libtiff_says_nothing_itself(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "good.png")
    for how in ("tiff_lzw", "tiff_deflate"):
        file = save(tmp_path / f"{how}.tif", compression=how)
        raw = bytearray(file.read_bytes())
        raw[8:40] = b"\xff" * 32
        file.write_bytes(raw)
    store = open_images(tmp_path)
    assert store.ids == ["good.png"] and len(store.skipped) == 2
    if sys.platform == "linux":  # elsewhere Pillow may hold a libtiff that it does not show
        assert capfd.readouterr() == ("", "")
    from deepcluster.images.decode import _libtiff_handlers, quiet_pillow

    one, other = quiet_pillow(), quiet_pillow()  # as of two threads
    one.__enter__()
    other.__enter__()
    one.__exit__()
    other.__exit__()
    for put in _libtiff_handlers():  # back as it was, for others in the process
        before = put(None)
        assert before is not None
        put(before)


def test_one_file_and_several(tmp_path: Path) -> None:
    one, two = save(tmp_path / "1.png"), save(tmp_path / "2.png")
    assert open_images(str(one)).ids == ["1.png"]
    assert open_images([one, str(two)]).paths == [str(one), str(two)]


# -- Parquet ----------------------------------------------------------------------------------


def write_parquet(
    path: Path,
    seeds: list[int],
    *,
    names: list[str] | None = None,
    paths: list[str | None] | None = None,
    labels: list[int | None] | None = None,
    column: str = "image",
) -> Path:
    rows = []
    for i, seed in enumerate(seeds):
        file = io.BytesIO()
        Image.fromarray(picture(seed, 16)).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": paths[i] if paths else f"{seed}.png"})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {column: pa.array(rows, kind)}
    features: dict[str, Any] = {column: {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
        if names is not None:
            features["label"] = {"names": names, "_type": "ClassLabel"}
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns).replace_schema_metadata(meta)
    pq.write_table(table, path, row_group_size=3)
    return path


def test_parquet(tmp_path: Path) -> None:
    file = write_parquet(
        tmp_path / "train.parquet", [0, 1, 2, 3], names=["cat", "dog"], labels=[1, 0, None, -1]
    )
    store = open_images(file)
    assert store.name == "train" and store.ids == ["0.png", "1.png", "2.png", "3.png"]
    assert store.paths == [None] * 4
    assert store.labels is not None and store.labels.tolist() == [1, 0, -1, -1]
    assert store.labels.dtype == np.int64
    assert store.label_names == ["cat", "dog"]
    for i in range(4):
        np.testing.assert_array_equal(store[i], picture(i, 16))


def test_parquet_ids_where_paths_do_not_serve(tmp_path: Path) -> None:
    file = write_parquet(
        tmp_path / "s.parquet", [0, 1, 2, 3], paths=[None, "same.png", "same.png", "own.png"]
    )
    store = open_images(file)
    assert store.ids == ["s:0", "s:1", "s:2", "own.png"] and store.labels is None


def test_parquet_shards(tmp_path: Path) -> None:
    root = tmp_path / "set"
    one = write_parquet(root / "data" / "b.parquet", [0, 1], names=["x", "y"], labels=[0, 1])
    two = write_parquet(root / "data" / "a.parquet", [1, 2], names=["y", "z"], labels=[0, 1])
    (root / "data" / "broken.parquet").write_bytes(one.read_bytes()[:100])
    store = open_images(root)
    assert store.name == "set"
    assert store.ids == ["data/a:0", "2.png", "0.png", "data/b:1"]
    assert store.labels is not None
    assert [store.label_names[i] for i in store.labels] == ["y", "z", "x", "y"]
    assert "cannot be read as Parquet" in reasons(store)["broken.parquet"]
    both = open_images([one, two])
    assert both.ids == ["0.png", "b:1", "a:0", "2.png"]
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        open_images(root / "data" / "broken.parquet")


def test_parquet_rows_without_an_image(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", [0, 1], column="img")
    table = pq.read_table(file)
    rows = [*table["img"].to_pylist(), {"bytes": None, "path": "n.png"}, None]
    rows.append({"bytes": b"junk", "path": "j.png"})
    table = pa.table({"img": pa.array(rows, table["img"].type)})
    pq.write_table(table, file)
    store = open_images(file)
    assert store.ids == ["0.png", "1.png"]
    assert store.skipped == [
        ("n.png", "the row has no bytes, and there is no file n.png in the folder of a.parquet"),
        ("a:3", "empty"),
        ("j.png", "not an image in a format that Pillow reads"),
    ]
    pq.write_table(pa.table({"x": [1, 2]}), file)
    with pytest.raises(SourceError, match=r"no column of images .* among x"):
        open_images(file)


# -- arrays, tensors, data sets ---------------------------------------------------------------


def test_array_layouts() -> None:
    stack = np.stack([picture(i, 16) for i in range(5)])  # (n, h, w, c)
    expected = open_images(stack)
    assert expected.ids == ["0", "1", "2", "3", "4"] and expected.paths == [None] * 5
    np.testing.assert_array_equal(expected.pixels, stack)
    for other in (
        stack.transpose(0, 3, 1, 2),
        stack.astype(np.int64),
        stack.astype(np.float32) / 255,
        stack.astype(np.uint16) * 257,
        list(stack),
        [(image, "target") for image in stack],
        [Image.fromarray(image) for image in stack],
        np.array([*stack, None], object)[:5],
    ):
        np.testing.assert_array_equal(open_images(other).pixels, stack)
    grey = stack[..., 0]
    for other in (grey, grey[..., None], grey[:, None]):
        np.testing.assert_array_equal(open_images(other).pixels, grey[..., None])
    np.testing.assert_array_equal(open_images(grey > 127).pixels, (grey[..., None] > 127) * 255)
    clear = np.concatenate([stack, np.zeros_like(stack[..., :1])], 3)
    assert (open_images(clear).pixels == 255).all()


def test_arrays_that_are_no_images() -> None:
    for array, message in (
        (np.zeros((5, 64)), r"shape \(5, 64\) holds no images"),
        (np.zeros((5, 8, 8, 7)), "holds no images"),
        (np.zeros((48, 64, 3)), r"is one image, not many: give array\[None\], of shape \(1, 48,"),
        (np.zeros((48, 64, 1)), "is one image"),
        (np.zeros((5, 8, 8), complex), "no type for pixels"),
        (np.full((5, 8, 8), "a"), "no type for pixels"),
    ):
        with pytest.raises(SourceError, match=message):
            open_images(array)
    with pytest.raises(NoImagesError, match="none of its values is a number"):
        open_images(np.full((5, 8, 8), np.nan))
    assert open_images(np.zeros((5, 4, 4))).pixels.shape == (5, 8, 8, 1)  # so small they are square


def test_lists_of_any_size() -> None:
    items = [picture(0, 16), picture(1, (20, 40)), np.zeros((3, 7)), np.zeros((2, 2, 2, 2))]
    store = open_images([*items, "no-such-file.png"], size=16)
    assert store.ids == ["0", "1", "2"]
    assert [path for path, _ in store.skipped] == ["3", "4"]


def test_tensors() -> None:
    import torch

    stack = np.stack([picture(i, 16) for i in range(4)])
    tensor = torch.from_numpy(stack.transpose(0, 3, 1, 2).copy())
    for other in (tensor, tensor.float() / 255, tensor.permute(0, 2, 3, 1), list(tensor)):
        np.testing.assert_array_equal(open_images(other).pixels, stack)
    half = open_images((tensor.float() / 255).to(torch.bfloat16).requires_grad_())
    assert np.abs(half.pixels.astype(int) - stack).max() <= 1
    # three rows and three channels: a tensor has its channels first
    narrow = torch.zeros(2, 3, 8, 3, dtype=torch.uint8)
    narrow[:, 0] = 255
    assert open_images(narrow).channels == 3


def test_a_data_set() -> None:
    class Photos:
        ids = ("x", "y", "z")

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            if index == 1:
                raise OSError("the disk is on fire")
            return Image.fromarray(picture(index)), 7

    store = open_images(Photos())
    assert store.name == "photos" and store.ids == ["x", "z"]
    assert store.labels is None
    assert store.skipped == [("y", "damaged: the disk is on fire")]
    assert open_images(Photos(), labels=["a", "b", "a"]).label_names == ["a", "b"]


def test_npy_and_npz(tmp_path: Path) -> None:
    stack = np.stack([picture(i, 16) for i in range(4)])
    np.save(tmp_path / "a.npy", stack)
    np.testing.assert_array_equal(open_images(tmp_path / "a.npy").pixels, stack)
    labels = np.array([[2], [0], [2], [5]])
    np.savez(tmp_path / "a.npz", x_test=stack[:1], X_train=stack, y_train=labels)
    store = open_images(tmp_path / "a.npz")
    np.testing.assert_array_equal(store.pixels, stack)
    assert store.labels is not None and store.labels.tolist() == [1, 0, 1, 2]
    assert store.label_names == ["0", "2", "5"]
    np.savez(tmp_path / "one.npz", stack, other=np.zeros(3))
    assert len(open_images(tmp_path / "one.npz")) == 4
    np.savez(tmp_path / "two.npz", left=stack, right=stack)
    with pytest.raises(SourceError, match=r"found left \(4, 16, 16, 3\), right"):
        open_images(tmp_path / "two.npz")


def test_pickles_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=np.array([{"x": 1}], object))
    (tmp_path / "b.npy").write_bytes(b"junk")
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04junk")
    for name in ("a.npy", "a.npz", "b.npy", "b.npz"):
        with pytest.raises(SourceError, match="without pickle"):
            open_images(tmp_path / name)


# -- named data sets --------------------------------------------------------------------------


def test_digits() -> None:
    from sklearn.datasets import load_digits

    store = open_images("digits", size=8)
    assert store.pixels.shape == (1797, 8, 8, 1)
    expected = np.round(load_digits().images * 255 / 16)
    np.testing.assert_array_equal(store.pixels[..., 0], expected)
    assert store.labels is not None
    np.testing.assert_array_equal(store.labels, load_digits().target)
    assert store.label_names == [str(i) for i in range(10)]
    assert scan_images("digits").size == 8


@pytest.mark.parametrize("name", ["mnist", "kmnist", "cifar10", "svhn", "stl10", "imagenette"])
def test_named_sets_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", fail)
    with pytest.raises(SourceError, match="could not be downloaded") as caught:
        open_images(name)
    message = str(caught.value)
    named = TORCHVISION[name]
    assert named.files in message and named.page in message and str(tmp_path) in message


def test_named_sets_agree_with_torchvision() -> None:
    """Classes, splits, file names and addresses are those of the installed torchvision."""
    import torchvision.datasets as tv

    for name in ("mnist", "fashion-mnist", "kmnist"):
        named = TORCHVISION[name]
        cls = getattr(tv, named.cls)
        assert all(file in named.files for file, _ in cls.resources)
        assert any(mirror.rstrip("/") == named.page for mirror in cls.mirrors)
    for name in ("cifar10", "cifar100", "stl10"):
        named = TORCHVISION[name]
        assert getattr(tv, named.cls).url == f"{named.page}/{named.files}"
    svhn = TORCHVISION["svhn"]
    assert set(tv.SVHN.split_list) == set(svhn.splits)
    assert all(file in svhn.files for _, file, _ in tv.SVHN.split_list.values())
    assert set(tv.STL10.splits) == set(TORCHVISION["stl10"].splits)
    assert ("digits", *TORCHVISION) == NAMED


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files."""
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def test_a_named_set_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path))
    raw = tmp_path / "datasets" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 3)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8)))
    store = open_images("mnist")
    assert store.name == "mnist" and store.pixels.shape == (6, 28, 28, 1)
    assert store.labels is not None and store.labels.tolist() == list(range(6))
    assert len(store.label_names) == 10
    test = open_images("mnist:test")
    assert test.name == "mnist-test"
    np.testing.assert_array_equal(test.pixels[..., 0], pixels)


def test_imagenette_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path))
    root = tmp_path / "datasets" / "imagenette2-320" / "train"
    save(root / "n01440764" / "1.JPEG", picture(0, 160))
    save(root / "n03888257" / "2.JPEG", picture(1, 160))
    (root / "n03888257" / "3.JPEG").touch()
    store = open_images("imagenette")
    assert store.ids == ["n01440764/1.JPEG", "n03888257/2.JPEG"]
    assert store.label_names == ["tench", "parachute"] and store.size == 96
    assert list(reasons(store)) == ["3.JPEG"]


def test_a_path_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "digits" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert open_images("digits").ids == ["a.png"]


# -- labels -----------------------------------------------------------------------------------


def test_labels_from_folders(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/big/2.png", "3.png"):
        save(tmp_path / name)
    assert open_images(tmp_path).labels is None
    store = open_images(tmp_path, labels="folders")
    assert store.labels is not None and store.ids == ["3.png", "cat/1.png", "dog/big/2.png"]
    assert store.labels.tolist() == [-1, 0, 1] and store.label_names == ["cat", "dog/big"]
    with pytest.raises(SourceError, match="needs a folder"):
        open_images(np.zeros((3, 8, 8)), labels="folders")
    with pytest.raises(SourceError, match="in no sub-folders"):
        open_images(tmp_path / "cat", labels="folders")


def test_labels_from_csv(tmp_path: Path) -> None:
    for name in ("1.png", "ü/2.png", "3.png", "4.png"):
        save(tmp_path / "set" / name)
    (tmp_path / "set" / "1.png").write_text("broken")
    table = tmp_path / "labels.csv"
    rows = ["path,label", "./3.png,10", "ü/2.png,9", f"{tmp_path}/set/4.png,", "x.png,9", "1.png,2"]
    table.write_text("\n".join(rows), encoding="utf-8")
    store = open_images(tmp_path / "set", labels=str(table))
    assert store.ids == ["3.png", "4.png", "ü/2.png"]
    assert store.labels is not None and store.labels.tolist() == [2, -1, 1]
    assert store.label_names == ["2", "9", "10"]
    assert ("x.png", "named in labels.csv, but not among the images") in store.skipped
    assert len(store.skipped) == 2

    table.write_text("path,label\nnope.png,1\n")
    with pytest.raises(SourceError, match=r"no path in .* it names 'nope\.png'"):
        open_images(tmp_path / "set", labels=table)
    table.write_text("file,class\na,b\n")
    with pytest.raises(SourceError, match="has the columns file, class: expected path and label"):
        open_images(tmp_path / "set", labels=table)
    with pytest.raises(SourceError, match="there is no file"):
        scan_images(tmp_path / "set", labels="folder")


def test_labels_one_by_one() -> None:
    stack = np.zeros((4, 8, 8), np.uint8)
    store = open_images(stack, labels=np.array([7, -1, 3, 7]))
    assert store.labels is not None and store.labels.tolist() == [1, -1, 0, 1]
    assert store.label_names == ["3", "7"]
    store = open_images(stack, labels=["b", None, "a", float("nan")])
    assert store.labels is not None and store.labels.tolist() == [1, -1, 0, -1]
    with pytest.raises(SourceError, match="3 labels for 4 images"):
        open_images(stack, labels=[1, 2, 3])


def test_labels_stay_with_their_images_when_others_are_skipped() -> None:
    items = [picture(0), np.zeros((0, 0)), picture(2)]
    store = open_images(items, labels=["a", "b", "c"])
    assert store.ids == ["0", "2"] and store.labels is not None
    assert [store.label_names[i] for i in store.labels] == ["a", "c"]


# -- the store --------------------------------------------------------------------------------


def test_channels(tmp_path: Path) -> None:
    flat = np.repeat(picture()[..., :1], 3, 2)
    assert open_images([flat, picture()[..., 0]]).channels == 1  # RGB that is grey
    mixed = open_images([flat, picture()])
    assert mixed.channels == 3
    np.testing.assert_array_equal(mixed[0], flat)
    np.testing.assert_array_equal(open_images([flat], data=RGB)[0], flat)
    grey = open_images([picture()], data=GREY)
    expected = np.asarray(Image.fromarray(picture()).convert("L"))
    np.testing.assert_array_equal(grey[0][..., 0], expected)


@pytest.mark.parametrize("colour_at", [0, 299, None])
def test_a_memory_map_holds_the_same_bits(tmp_path: Path, colour_at: int | None) -> None:
    items: list[np.ndarray] = [picture(i, 12)[..., 0] for i in range(300)]
    items[5] = np.zeros((0, 0))
    if colour_at is not None:
        items[colour_at] = picture(colour_at, 12)
    there = open_images(items, size=12)
    mapped = open_images(items, size=12, data=DataSettings(memory_gb=0), cache_dir=tmp_path / "c")
    assert isinstance(mapped.pixels, np.memmap) and not isinstance(there.pixels, np.memmap)
    assert there.pixels.shape == (299, 12, 12, 1 if colour_at is None else 3)
    np.testing.assert_array_equal(mapped.pixels, there.pixels)
    assert mapped.fingerprint() == there.fingerprint()
    some = np.array([7, 3, 3, 298])
    np.testing.assert_array_equal(mapped.batch(some), there.pixels[some])
    assert type(mapped.batch(some)) is np.ndarray and mapped.batch(some).flags.writeable
    if sys.platform != "win32":
        assert list((tmp_path / "c").iterdir()) == []  # nothing is left behind


def test_a_full_disk_is_noticed_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 10})())
    with pytest.raises(SourceError, match=r"need up to .* where 0\.0 MB are free"):
        open_images([picture()], data=DataSettings(memory_gb=0), cache_dir=tmp_path)


def test_the_number_of_threads_changes_nothing() -> None:
    items = [picture(i, 20 + i % 7) for i in range(70)]
    one, four = (open_images(items, data=DataSettings(workers=w)) for w in (1, 4))
    assert one.fingerprint() == four.fingerprint()
    np.testing.assert_array_equal(one.pixels, four.pixels)


def test_scan(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "my photos" / f"{i}.png", picture(i, (40, 50 + i)))
    scan = scan_images(tmp_path / "my photos", data=DataSettings(margin=1.25))
    assert (scan.name, scan.count, scan.size) == ("my-photos", 3, 40)
    assert scan.bytes_needed == 3 * 50 * 50 * 3 and scan.in_memory
    assert str(scan).startswith("my-photos: 3 images, training side 40 pixels, at most 0.0 MB in m")
    store = open_images(tmp_path / "my photos", data=DataSettings(margin=1.25))
    assert store.size == 40 and store.pixels.shape == (3, 50, 50, 3)
    assert scan_images(tmp_path / "my photos", data=GREY).bytes_needed == 3 * 40 * 40
    with pytest.raises(SourceError, match="leaves no pixel"):
        scan_images(tmp_path / "my photos", size=0)


def test_auto_size() -> None:
    sides = {1: 8, 8: 8, 9: 12, 28: 28, 30: 32, 32: 32, 64: 64, 65: 64, 128: 64, 129: 96, 4000: 96}
    assert {side: auto_size(side) for side in sides} == sides


def test_progress() -> None:
    seen: list[tuple[int, int]] = []
    report: Callable[[int, int], None] = lambda done, total: seen.append((done, total))  # noqa: E731
    open_images(np.zeros((600, 4, 4), np.uint8), progress=report)
    assert seen == [(256, 600), (512, 600), (600, 600)]


def test_a_fingerprint_sees_ids_shape_and_pixels() -> None:
    stack = np.stack([picture(i, 16) for i in range(3)])
    other = stack.copy()
    other[2, 5, 5, 0] ^= 1
    prints = {
        open_images(s, data=d).fingerprint()
        for s, d in (
            (stack, RGB),
            (other, RGB),
            (stack[:2], RGB),
            (stack[[1, 0, 2]], RGB),
            (stack, GREY),
        )
    }
    assert len(prints) == 5


def test_importing_does_not_import_torch() -> None:
    code = "import deepcluster.images.store, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_cache_folder_that_cannot_be_made_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "images" / "one.png")
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path / "file"))
    with pytest.raises(SourceError, match="set DEEPCLUSTER_CACHE to a folder"):
        open_images(tmp_path / "images", data=DataSettings(memory_gb=0.0))


# -- threads ----------------------------------------------------------------------------------


def many(count: int) -> list[np.ndarray]:
    return [np.full((4, 4), i % 256, np.uint8) for i in range(count)]


def test_the_next_chunk_is_decoded_while_one_is_put_away(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    before: list[int] = []  # chunks asked for when each is put away
    begin, append = store._Pool.map, sinks.MemorySink.append

    def map(pool: Any, *args: Any) -> Any:
        asked.append(1)
        return begin(pool, *args)

    def put_away(sink: Any, squares: Any) -> None:
        before.append(len(asked))
        append(sink, squares)

    monkeypatch.setattr(store, "CHUNK", 16)
    monkeypatch.setattr(store._Pool, "map", map)
    monkeypatch.setattr(sinks.MemorySink, "append", put_away)
    found = open_images(many(64), size=4)
    assert before == [2, 3, 4, 4]
    assert found.pixels[:, 0, 0, 0].tolist() == list(range(64))


def test_who_stops_does_not_wait_for_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()
    shutdown, squares = ThreadPoolExecutor.shutdown, store.squares
    ran: list[int] = []

    def held(raws: Any, wanted: Any) -> Any:
        ran.append(len(raws))
        assert len(ran) <= 1 or stopped.wait(60)
        return squares(raws, wanted)

    def leave(pool: Any, wait: bool = True, **how: Any) -> None:
        shutdown(pool, wait=False, **how)
        stopped.set()
        shutdown(pool)

    def stop(done: int, count: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "CHUNK", store.PIECE)
    monkeypatch.setattr(store, "squares", held)
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", leave)
    # The last chunk that is asked for before the first is put away has three pieces, of which one
    # is under way.
    chunks = iter([many(16), many(48)])
    monkeypatch.setattr(store, "_chunks", lambda *_: ([("", x) for x in each] for each in chunks))
    with pytest.raises(KeyboardInterrupt):
        open_images(many(64), size=4, data=DataSettings(workers=1), progress=stop)
    assert sum(ran) <= 32


def test_images_of_a_mapped_file_are_asked_for_together() -> None:
    told: list[tuple[int, ...]] = []

    class Told(mmap.mmap):
        def madvise(self, *args: int) -> None:
            told.append(args)

    page, shape = mmap.PAGESIZE, (10, 50, 50, 3)
    pixels = np.ndarray(shape, np.uint8, buffer=Told(-1, 75_000))
    found = store.ImageStore("x", pixels, 50, [str(i) for i in range(10)], [None] * 10)
    assert found.batch(np.array([7, 0])).shape == (2, 50, 50, 3)
    start = 52_500 // page * page
    assert told == [(mmap.MADV_WILLNEED, start, 60_000 - start), (mmap.MADV_WILLNEED, 0, 7500)]


def test_batches_of_a_mapped_file_are_those_of_memory() -> None:
    images = many(40)
    mapped = open_images(images, size=4, data=DataSettings(memory_gb=0))
    assert isinstance(mapped.pixels, np.memmap) and isinstance(mapped.pixels.base, mmap.mmap)
    rows = np.array([39, 3, 3, 0])
    np.testing.assert_array_equal(mapped.batch(rows), open_images(images, size=4).batch(rows))
