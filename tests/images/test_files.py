"""Folders, lists and several folders: what is read, what is passed over, and that it is said."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import chunk, picture, png, reasons, save
from PIL import Image, ImageFile

from deepcluster.config import DataSettings
from deepcluster.errors import NoImagesError, SourceError
from deepcluster.images import formats
from deepcluster.images.sources import list_source
from deepcluster.images.store import ImageStore, open_images, scan_images

HEIF = pytest.mark.skipif("pillow_heif" in sys.modules, reason="HEIC is read here")


def counts(store: ImageStore) -> dict[str, int]:
    return {one.kind: one.count for one in store.passed_over}


# -- one listing ------------------------------------------------------------------------------


def test_a_folder_is_walked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        save(tmp_path / "a" / f"{i}.png", picture(i))
    walked: list[str] = []
    opened: list[str] = []
    really_scan, really_open = os.scandir, Image.open

    def scandir(path: Any) -> Any:
        walked.append(str(path))
        return really_scan(path)

    def count_open(file: Any, *rest: Any, **how: Any) -> Any:
        opened.append(str(file))
        return really_open(file, *rest, **how)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(Image, "open", count_open)
    listing = list_source(tmp_path, "folders")
    assert listing.label_names == ["a"]
    scan = scan_images(listing)
    store = open_images(listing, size=scan.size)
    assert len(store) == scan.count == 4 and store.label_names == ["a"]
    assert sorted(walked) == [str(tmp_path), str(tmp_path / "a") + ""]
    assert len(opened) == 12  # each: its size, its colour, its pixels


def test_an_image_that_goes_while_it_is_read_takes_no_other_place(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png", picture(i))
    listing = list_source(tmp_path)
    (tmp_path / "1.png").unlink()
    store = open_images(listing)
    assert store.ids == ["0.png", "2.png", "3.png"]
    assert reasons(store) == {"1.png": "there is no such file"}
    for i, name in enumerate(store.ids):
        np.testing.assert_array_equal(store[i], picture(int(name[0])))
    assert store.places is not None and store.places.tolist() == [0, 2, 3] and store.listed == 4
    assert store.rows(np.array([5, 6, 7]), -1).tolist() == [5, -1, 6, 7]


# -- what is passed over ----------------------------------------------------------------------


@HEIF
def test_pictures_that_are_not_read_are_counted_with_a_cure(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"IMG_{i}.JPG")
        (tmp_path / f"IMG_{i}5.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    tif = b"II*\0\x08\0\0\0" + bytes(200)
    for name in ("a.NEF", "b.cr2", "c.dng", "slide.svs", "notes.txt", "x.xmp"):
        (tmp_path / name).write_bytes(tif)
    (tmp_path / "scan.dcm").write_bytes(bytes(128) + b"DICM" + bytes(200))
    for name in (".hidden.heic", "Thumbs.db", "._a.heic"):
        (tmp_path / name).write_bytes(tif)
    store = open_images(tmp_path)
    assert len(store) == 3 and store.skipped == []
    assert counts(store) == {
        ".heic": 3,
        ".nef": 1,
        ".cr2": 1,
        ".dng": 1,
        ".svs": 1,
        ".dcm": 1,
        ".txt": 1,
        ".xmp": 1,
    }
    cures = {one.kind: one.cure for one in store.passed_over}
    assert cures[".heic"] == "pip install 'deepcluster[heif]'" and cures[".txt"] == ""
    assert "16-bit TIFF" in cures[".nef"] and "OpenSlide" in cures[".svs"]
    sentence = store.remarks[0]
    assert sentence.startswith("passed over: 3 × .heic (pip install 'deepcluster[heif]'), ")
    assert sentence.endswith(", and 2 other files")
    assert scan_images(tmp_path).remarks == store.remarks
    (tmp_path / "only").mkdir()
    (tmp_path / "IMG_05.HEIC").rename(tmp_path / "only" / "a.HEIC")
    with pytest.raises(NoImagesError, match=r"found 1 × \.heic; .*deepcluster\[heif\]"):
        open_images(tmp_path / "only")
    with pytest.raises(SourceError, match=r"not \.heic; .*deepcluster\[heif\]"):
        open_images(tmp_path / "only" / "a.HEIC")
    listed = open_images([tmp_path / "IMG_0.JPG", tmp_path / "IMG_15.HEIC"])
    assert "deepcluster[heif]" in reasons(listed)["IMG_15.HEIC"]
    (tmp_path / "renamed.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    assert "deepcluster[heif]" in reasons(open_images(tmp_path))["renamed.jpg"]


def test_heic_is_read_where_its_reader_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stub(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self._size, self._mode = (8, 8), "L"
            self.tile = [("raw", (0, 0, 8, 8), 16, ("L", 0, 1))]

    def register() -> None:
        Image.register_open("HEIF", Stub, lambda head: head[4:12] == b"ftypheic")
        Image.register_extension("HEIF", ".heic")

    stub = types.ModuleType("pillow_heif")
    stub.register_heif_opener = register  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", stub)
    caches = (
        formats.know_formats,
        formats.formats,
        formats.extensions,
    )
    try:
        for cached in caches:
            cached.cache_clear()
        (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(range(64)))
        store = open_images(tmp_path)
        assert store.ids == ["a.HEIC"] and store.passed_over == []
        assert store[0].ravel().tolist() == list(range(64))
    finally:
        Image.OPEN.pop("HEIF", None)
        Image.EXTENSION.pop(".heic", None)
        if "HEIF" in Image.ID:
            Image.ID.remove("HEIF")
        for cached in caches:
            cached.cache_clear()


def test_names_with_dots_are_told_by_their_first_bytes(tmp_path: Path) -> None:
    for name in ("IMG.2024.05.01", "scan.001", "photo.final", "v1.2"):
        save(tmp_path / name, format="PNG")
    save(tmp_path / "kept.png.bak", format="PNG")
    (tmp_path / "data.002").write_bytes(b"numbers, not an image")
    os.mkfifo(tmp_path / "pipe.003")
    store = open_images(tmp_path)
    assert store.ids == ["IMG.2024.05.01", "photo.final", "scan.001", "v1.2"]
    assert counts(store) == {".bak": 1, ".002": 1, ".003": 1}
    assert open_images(tmp_path / "IMG.2024.05.01").ids == ["IMG.2024.05.01"]


@pytest.mark.parametrize("name", ["@eaDir", "#recycle", "$RECYCLE.BIN"])
def test_what_a_system_keeps_in_a_folder_is_no_image(name: str, tmp_path: Path) -> None:
    """A Synology NAS keeps thumbnails of the images beside them, and what was deleted."""
    for place in ("a.png", f"{name}/a.png/SYNOFILE_THUMB_M.png", f"sub/{name}/b.png", "sub/b.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / place, picture())
    found = list_source(tmp_path)
    assert found.ids == ["a.png", "sub/b.png"] and not found.passed_over


def test_a_run_inside_is_passed_over_and_said(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    run = tmp_path / "runs" / "one"
    save(run / "pictures" / "x.png")
    (run / "config.toml").touch()
    (run / "run.json").write_text(json.dumps({"schema": 1, "status": "done"}))
    store = open_images(tmp_path)
    assert store.ids == ["a.png"] and counts(store) == {"run folder of deepcluster": 1}
    assert "passed over: 1 × run folder of deepcluster" in store.remarks[0]
    with pytest.raises(SourceError, match="is a run of deepcluster"):
        open_images(run)
    (run / "run.json").write_text('{"tool": "of somebody else"}')
    assert open_images(tmp_path).ids == ["a.png", "runs/one/pictures/x.png"]


def test_further_pages_of_a_tiff_are_counted(tmp_path: Path) -> None:
    pages = [Image.new("L", (8, 8), value) for value in (10, 200, 90)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "b.gif", save_all=True, append_images=pages[1:])
    store = open_images(tmp_path)
    assert counts(store) == {"further page of TIFFs": 2}
    assert "split the files into one page each" in store.remarks[0]


def test_metadata_of_a_png_does_no_harm(tmp_path: Path) -> None:
    import zlib

    pixels = picture(1, 16)
    big = zlib.compress(b"node " * 400_000)
    chunks = {
        "ztxt": [chunk(b"zTXt", b"workflow\0\0" + big)],
        "itxt": [chunk(b"iTXt", b"workflow\0\1\0\0\0" + big)],
        "iccp": [chunk(b"iCCP", b"printer\0\0" + big)],
        "text": [chunk(b"tEXt", b"prompt\0" + b"x" * 2_000_000)],
        "much": [chunk(b"tEXt", b"k%d\0" % i + b"x" * 900_000) for i in range(80)],
        "broken": [chunk(b"tEXt", b"a\0b")[:-1] + b"!"],
    }
    for name, extra in chunks.items():
        (tmp_path / f"{name}.png").write_bytes(png(pixels, *extra))
    whole = png(pixels)
    (tmp_path / "after.png").write_bytes(whole[:-12] + chunks["ztxt"][0] + whole[-12:])
    store = open_images(tmp_path)
    assert store.skipped == [] and len(store) == 7 and store.size == 16
    for i in range(7):
        np.testing.assert_array_equal(store[i], pixels)


# -- several folders, lists -------------------------------------------------------------------


def boxes(root: Path) -> list[Path]:
    for k in range(3):
        for s in range(2):
            save(root / f"box{k}" / f"{s}.png", picture(10 * k + s))
    return [root / f"box{k}" for k in range(3)]


def test_several_folders(tmp_path: Path) -> None:
    given = boxes(tmp_path)
    store = open_images([str(box) for box in given], labels="folders")
    assert store.ids == [f"box{k}/{s}.png" for k in range(3) for s in range(2)]
    assert store.label_names == ["box0", "box1", "box2"]
    assert store.paths == [str(tmp_path / i) for i in store.ids]
    for i, name in enumerate(store.ids):
        np.testing.assert_array_equal(store[i], picture(10 * int(name[3]) + int(name[5])))


def test_folders_and_files_mixed(tmp_path: Path) -> None:
    boxes(tmp_path)
    save(tmp_path / "loose.png")
    (tmp_path / "notes.csv").touch()
    (tmp_path / "empty").mkdir()
    store = open_images(sorted(str(path) for path in tmp_path.iterdir()), labels="folders")
    assert len(store) == 7 and store.ids[-1] == "loose.png"
    assert store.labels is not None and store.labels.tolist() == [0, 0, 1, 1, 2, 2, -1]
    assert counts(store) == {".csv": 1}
    assert "no image in" in reasons(store)["empty"]
    (tmp_path / "list.txt").write_text("box1\nloose.png\nbox0/0.png\n")
    assert open_images(tmp_path / "list.txt").ids == [
        "box1/0.png",
        "box1/1.png",
        "loose.png",
        "0.png",
    ]


def test_folders_of_one_name_and_one_in_another(tmp_path: Path) -> None:
    for year in ("2023", "2024"):
        for name in ("cats", "dogs"):
            save(tmp_path / year / "pets" / name / "1.png")
    given = [tmp_path / "2023" / "pets", tmp_path / "2024" / "pets"]
    store = open_images(given, labels="folders")
    assert store.ids[0] == "2023/pets/cats/1.png" and len(set(store.ids)) == 4
    assert store.label_names == ["cats", "dogs"]  # the classes lie within, the years are none
    within = open_images([tmp_path / "2023", tmp_path / "2023" / "pets", tmp_path / "2023"])
    assert within.ids == ["2023/pets/cats/1.png", "2023/pets/dogs/1.png"]
    assert counts(within) == {"files of a folder that was given twice": 3}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_with_any_character(tmp_path: Path) -> None:
    names = ["a\nb.png", "a\r.png", "tab\t.png", 'quo"te.png', " lead.png", "trail .png"]
    names += ["u\u2028p.png", "line\x0bvt.png", "x\x85y.png", "-dash.png", "[bold]x.png"]
    for i, name in enumerate(names):
        save(tmp_path / name, picture(i), format="PNG")
    store = open_images(tmp_path)
    assert sorted(store.ids) == sorted(names)
    for i, name in enumerate(store.ids):
        np.testing.assert_array_equal(store[i], picture(names.index(name)))
    listed = [name for name in names if "\n" not in name and not name.endswith("\r")]
    (tmp_path / "list.txt").write_text("\n".join(listed) + "\n", newline="\n", encoding="utf-8")
    assert open_images(tmp_path / "list.txt").ids == listed
    (tmp_path / "list.txt").write_text("\0".join(names), newline="\n", encoding="utf-8")
    assert open_images(tmp_path / "list.txt").ids == names  # as find -print0 writes it


@pytest.mark.parametrize("how", ["'{}'", '"{}"', "  {}  ", "{}\r", "./{}"])
def test_lists_as_other_programs_write_them(tmp_path: Path, how: str) -> None:
    save(tmp_path / "d 0" / "é.png")
    (tmp_path / "list.txt").write_text(how.format("d 0/é.png") + "\n", encoding="utf-8")
    assert open_images(tmp_path / "list.txt").ids == ["d 0/é.png"]
    (tmp_path / "list.txt").write_text("d 0\\é.png\n", encoding="utf-8")
    assert open_images(tmp_path / "list.txt").ids == ["d 0/é.png"]


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.parquet")
    for name in ("y.txt", "z.npy", "w.png", "v"):
        os.mkfifo(tmp_path / name)
    for path in tmp_path.iterdir():
        with pytest.raises(SourceError, match="neither a file nor a folder"):
            open_images(path)
    with pytest.raises(ValueError, match="not a regular file"):
        open_images(tmp_path)
    save(tmp_path / "good.png")
    store = open_images(tmp_path)
    assert store.ids == ["good.png"] and reasons(store) == {"w.png": "not a regular file"}


def test_names_that_none_can_have(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no file or folder 'xxx"):
        open_images("x" * 5000)
    with pytest.raises(SourceError, match="there is no file or folder"):
        open_images("a\0b")
    save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\n" + "y" * 5000 + "\n")
    store = open_images(tmp_path / "list.txt")
    assert store.ids == ["a.png"] and [why for _, why in store.skipped] == ["file name too long"]


# -- how an image becomes a square ------------------------------------------------------------


def test_long_images_are_said_and_can_be_padded(tmp_path: Path) -> None:
    wide = np.full((20, 80, 3), 100, np.uint8)
    wide[:, :10], wide[:, -10:] = 250, 10
    for i in range(4):
        save(tmp_path / f"{i}.png", wide if i else wide.transpose(1, 0, 2))
    store = open_images(tmp_path, size=20)
    assert set(store.pixels.ravel().tolist()) == {100}
    assert store.remarks == [
        "4 of 4 images are more than twice as long as wide, and lose more than half to the square "
        "in their middle: --data.fit pad keeps all of them"
    ]
    padded = open_images(tmp_path, size=80, data=DataSettings(fit="pad"))
    assert padded.remarks == []
    middle = padded[1][..., 0].astype(int)
    np.testing.assert_allclose(middle[30:50], wide[..., 0], atol=3)
    border = int(wide.mean().round())
    assert np.abs(middle[:29] - border).max() <= 1 and np.abs(middle[51:] - border).max() <= 1
    np.testing.assert_array_equal(padded[0], padded[1].transpose(1, 0, 2))


def test_the_fingerprint_sees_every_pixel(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 256, (2000, 8, 8), dtype=np.uint8)
    other = stack.copy()
    other[1001, 3, 3] ^= 1
    first, second = open_images(stack), open_images(other)
    assert first.fingerprint() != second.fingerprint()
    by_hand = ImageStore(first.name, first.pixels, first.size, first.ids, first.paths)
    assert by_hand.fingerprint() == first.fingerprint()  # the same, taken afterwards


def test_threads_mind_what_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepcluster.images.sinks import free_cores

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert free_cores() == 1


def test_the_folder_above_a_link_is_that_of_what_it_leads_to(tmp_path: Path) -> None:
    save(tmp_path / "real" / "a.png", picture(0))
    save(tmp_path / "here" / "a.png", picture(1))
    (tmp_path / "real" / "inside").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "real" / "inside")
    (found,) = list_source(tmp_path / "here" / "link" / "..").paths
    assert found is not None and Path(found).samefile(tmp_path / "real" / "a.png")
    (plain,) = list_source(tmp_path / "real" / "inside" / "..").paths
    assert plain == str(tmp_path / "real" / "a.png")
