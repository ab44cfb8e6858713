"""Decoded images of the last fit: the same pixels, only of files that are still the same."""

import json
import os
import sys
import threading
import types
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pictures import picture, save
from PIL import Image

from deepcluster.cli import run_app
from deepcluster.config import DataSettings
from deepcluster.images import kept
from deepcluster.images import store as stores
from deepcluster.images.decode import Wanted
from deepcluster.images.store import ImageStore, open_images

Disk = namedtuple("Disk", ["total", "used", "free"])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "YOUNG", 0.0)  # the files of a test were all made just now
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the files that were decoded."""
    names: list[str] = []
    real = stores.squares

    def counting(raws: list[Path], wanted: Wanted) -> list[object]:
        names.extend(raw.name for raw in raws)
        return real(raws, wanted)

    monkeypatch.setattr(stores, "squares", counting)
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(6):
        save(tmp_path / "images" / f"{seed}.png", picture(seed))
    (tmp_path / "images" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "images"


def same(one: ImageStore, other: ImageStore) -> None:
    assert one.fingerprint() == other.fingerprint()
    assert np.array_equal(one.pixels, other.pixels)
    assert np.array_equal(one.contents, other.contents)
    assert one.skipped == other.skipped and one.remarks == other.remarks


@pytest.mark.parametrize("memory_gb", ["auto", 0.0])
def test_the_second_time_nothing_is_decoded(
    memory_gb: str | float, cache: Path, folder: Path, decoded: list[str]
) -> None:
    data = DataSettings(memory_gb=memory_gb)  # type: ignore[arg-type]
    first = open_images(folder, size=8, data=data, keep=True)
    assert len(decoded) == 7
    decoded.clear()
    same(open_images(folder, size=8, data=data, keep=True), first)
    assert decoded == ["broken.png"]
    decoded.clear()
    other = open_images(folder, size=12, data=data)  # nor was it kept at this size, or is it now
    assert len(decoded) == 7 and other.pixels.shape[1] == 12 and len(list(cache.iterdir())) == 1


def test_what_was_changed_removed_or_added_is_noticed(
    cache: Path, folder: Path, decoded: list[str]
) -> None:
    open_images(folder, size=8, keep=True)
    save(folder / "1.png", picture(9))
    (folder / "2.png").unlink()
    save(folder / "7.png", picture(7))
    (folder / "3.png").rename(folder / "a.png")
    decoded.clear()
    found = open_images(folder, size=8, keep=True)
    assert sorted(decoded) == ["1.png", "7.png", "a.png", "broken.png"]
    (cache / next(cache.iterdir())).unlink()
    same(found, open_images(folder, size=8))


def test_the_last_image_in_colour_goes(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for seed in range(3):
        grey = np.repeat(picture(seed)[..., :1], 3, axis=2)
        save(folder / f"{seed}.png", grey)
    save(folder / "9.png", picture(9))
    assert open_images(folder, size=8, keep=True).channels == 3
    (folder / "9.png").unlink()
    found = open_images(folder, size=8)
    assert found.channels == 1
    next(cache.iterdir()).unlink()
    same(found, open_images(folder, size=8))


@pytest.mark.parametrize("damage", ["cut", "pixel", "content", "header", "text", "empty"])
def test_a_damaged_file_costs_time_alone(
    damage: str, cache: Path, folder: Path, decoded: list[str]
) -> None:
    first = open_images(folder, size=8, keep=True)
    file = next(cache.iterdir())
    held = bytearray(file.read_bytes())
    if damage == "pixel":
        held[200] ^= 1
    elif damage == "content":
        held[-10] ^= 1  # before the pages, flags and checksum of the last image
    elif damage == "header":
        held[held.index(b"}")] = ord(" ")
    other = {"cut": held[:-300], "text": b"pixels", "empty": b""}
    file.write_bytes(other.get(damage, held))
    decoded.clear()
    same(open_images(folder, size=8, keep=True), first)
    assert len(decoded) == (2 if damage in ("pixel", "content") else 7)
    decoded.clear()
    same(open_images(folder, size=8), first)  # it was mended
    assert decoded == ["broken.png"]


def test_where_nothing_is_kept_or_to_be_no_file_is_looked_at(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    real = kept._key
    monkeypatch.setattr(kept, "_key", lambda path: asked.append(path) or real(path))
    open_images(folder, size=8)
    assert not asked
    open_images(folder, size=8, keep=True)
    assert len(asked) == 7
    open_images(folder, size=8)
    assert len(asked) == 14


@pytest.mark.parametrize("library", ["pillow", "pillow-heif"])
def test_another_version_of_what_decodes_decodes_again(
    library: str,
    cache: Path,
    folder: Path,
    decoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = types.ModuleType("pillow_heif")
    reader.__version__ = "1.0"  # type: ignore[attr-defined]
    monkeypatch.setattr(kept, "know_formats", lambda: True)
    monkeypatch.setitem(sys.modules, "pillow_heif", reader)
    open_images(folder, size=8, keep=True)
    decoded.clear()
    if library == "pillow":
        monkeypatch.setattr(kept, "pillow", "0.1")
    else:
        reader.__version__ = "1.1"  # type: ignore[attr-defined]
    open_images(folder, size=8, keep=True)
    assert len(decoded) == 7


def test_a_file_that_changed_just_now_is_not_kept(
    cache: Path, folder: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change again within a tick of the disk's clock, and keep its time."""
    monkeypatch.setattr(kept, "YOUNG", 3600.0)
    open_images(folder, size=8, keep=True)
    assert not cache.exists() or not list(cache.iterdir())


def test_two_at_once_leave_a_whole_file(
    cache: Path, folder: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, stores_ = threading.Barrier(3), []

    def one() -> None:
        start.wait()
        stores_.append(open_images(folder, size=8, keep=True))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    decoded.clear()
    for store in stores_:
        same(open_images(folder, size=8), store)
    assert set(decoded) == {"broken.png"} and len(list(cache.iterdir())) == 1


def test_one_that_another_process_clears_is_read_to_its_end(
    cache: Path, folder: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_images(folder, size=8, keep=True)
    real = np.load

    def clearing(*args: object, **options: object) -> object:
        kept.clear()
        return real(*args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(np, "load", clearing)
    decoded.clear()
    same(open_images(folder, size=8), first)
    assert decoded == ["broken.png"]


def test_what_was_not_used_for_longest_goes_first(
    cache: Path, folder: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "KEPT_BYTES", 4000)  # two of 6 × 8 × 8 × 3 and what is said of them
    cache.mkdir(parents=True)
    (cache / "mine.txt").write_text("a person's")
    for fit in ("crop", "pad"):
        open_images(folder, size=8, data=DataSettings(fit=fit), keep=True)  # type: ignore[arg-type]
        for path, _, _ in kept.files(cache):
            path.touch()
    first, second = (path for path, _, _ in kept.files(cache))
    os.utime(first, (1, 1))
    open_images(folder, size=8, data=DataSettings(interpolation="bilinear"), keep=True)
    left = [path for path, _, _ in kept.files(cache)]
    assert first not in left and second in left and len(left) == 2
    assert (cache / "mine.txt").exists()
    monkeypatch.setattr(kept, "KEPT_BYTES", 100)
    open_images(folder, size=8, data=DataSettings(channels="grey"), keep=True)
    assert [path for path, _, _ in kept.files(cache)] == left  # too large by itself: none goes


def test_a_file_that_is_replaced_takes_no_room_beside_the_new_one(
    cache: Path, folder: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "KEPT_BYTES", 4000)  # two of 6 or 7 × 8 × 8 × 3
    for fit in ("crop", "pad"):
        open_images(folder, size=8, data=DataSettings(fit=fit), keep=True)  # type: ignore[arg-type]
    save(folder / "7.png", picture(7))
    open_images(folder, size=8, data=DataSettings(fit="pad"), keep=True)
    assert len(list(cache.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_no_failure(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(kept, "YOUNG", 0.0)
    assert len(open_images(folder, size=8, keep=True)) == 6


def test_images_that_are_no_files_are_not_kept(cache: Path) -> None:
    assert len(open_images([Image.fromarray(picture(i)) for i in range(3)], keep=True)) == 3
    assert not cache.exists()


def test_clear_removes_what_was_kept_and_nothing_else(
    cache: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_images(folder, size=8, keep=True)
    others = [cache / "notes.npy", cache.parent / "datasets" / "x.npy", cache.parent / "mine.npy"]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_text("a person's")
    assert run_app(["cache", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["freed"] == 0 and [one["files"] for one in said["kept"]] == [1, 0, 1]
    assert run_app(["cache", "--clear"]) == 0
    told = capsys.readouterr().out
    assert "freed 0.0 MB" in told and "sets: 1 file," in told and "images: 0 files," in told
    assert run_app(["cache", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["files"] for one in said["kept"]] == [0, 0, 1]
    assert all(other.exists() for other in others)


def test_what_a_fit_has_to_write_has_room(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for free, files in ((2000, 0), (4000, 1)):  # 6 × 8 × 8 × 3 bytes and what is said of them
        monkeypatch.setattr(kept.shutil, "disk_usage", lambda path, free=free: Disk(0, 0, free))
        open_images(folder, size=8, keep=True)
        assert len(list(cache.glob("*"))) == files
