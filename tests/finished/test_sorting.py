"""Sorting into folders: nothing lost, nothing twice, whatever the files are called."""

import csv
import errno
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deepcluster.errors import RunError
from deepcluster.finished import sorting
from deepcluster.finished.sorting import sort_images
from deepcluster.images.store import ImageStore, open_images
from deepcluster.run import RunDir


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path, format="PNG")
    return path


def sort(source: Any, out: Path, how: str = "copy", labels: list[int] | None = None) -> Any:
    store = source if isinstance(source, ImageStore) else open_images(source)
    numbers = np.zeros(len(store), np.int64) if labels is None else np.array(labels)
    return sort_images(store, numbers, [None] * len(store), out, how)  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    """Contents by name, of all that is no sorted.csv."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "sorted.csv"
    }


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / "sorted.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as f:
        return list(csv.DictReader(f))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(4):
        picture(tmp_path / "photos" / "ab"[i % 2] / f"{i // 2}.png", i)
    return tmp_path / "photos"


@pytest.mark.parametrize("how", ["copy", "link", "move"])
def test_the_log_says_what_is_where(how: str, photos: Path, tmp_path: Path) -> None:
    before = files(photos)
    assert sort(photos, tmp_path / "out", how, [0, 1, 1, 0]) == {"000": 2, "001": 2}
    rows = log(tmp_path / "out")
    assert [row["file"] for row in rows] == [
        "000/0.png", "001/1.png", "001/0.png", "000/1.png",
    ]  # fmt: skip
    for row in rows:
        assert (tmp_path / "out" / row["file"]).read_bytes() == before[row["id"]]
        assert row["path"] == str(photos / row["id"])
    assert files(photos) == ({} if how == "move" else before)


@pytest.mark.parametrize("how", ["copy", "link", "move"])
def test_again_puts_nothing_there_twice(how: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    store = open_images(photos)
    sort(store, out, how)
    once = files(out)
    if how == "move":
        with pytest.raises(RunError, match="cannot be found any more"):
            sort(store, out, how)
        picture(photos / "a" / "0.png", 99)  # a new picture under a name that was used
        sort(photos, out, how)
        assert len(files(out)) == 5 and once.items() < files(out).items()
    else:
        sort(store, out, how)
        picture(photos / "0" / "0.png", 200)  # comes first in the order
        sort(photos, out, how)
        assert len(files(out)) == 5 and once.items() < files(out).items()
    assert len(log(out)) == 5


def test_a_picture_that_changed_since_is_another(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sort(photos, out)
    once = files(out)
    picture(photos / "a" / "0.png", 77)
    sort(photos, out)
    assert len(files(out)) == 5 and once.items() < files(out).items()


def test_foreign_files_of_the_same_name_stay(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "000").mkdir(parents=True)
    (tmp_path / "out" / "000" / "0.PNG").write_bytes(b"mine")  # also where case does not count
    sort(photos, tmp_path / "out")
    assert set(files(tmp_path / "out")) == {
        "000/0.PNG", "000/0-1.png", "000/0-2.png", "000/1.png", "000/1-1.png",
    }  # fmt: skip
    assert (tmp_path / "out" / "000" / "0.PNG").read_bytes() == b"mine"


def test_a_foreign_log_is_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for text in ("my,own,list\n", "", "id,path,cluster,name,file\na,b,0,,../../x.png\n"):
        (out / "sorted.csv").write_text(text)
        with pytest.raises(RunError, match=r"sorted\.csv is not what deepcluster writes"):
            sort(photos, out)
        assert (out / "sorted.csv").read_text() == text and files(out) == {}


@pytest.mark.parametrize("how", ["copy", "link", "move"])
def test_a_list_may_name_a_picture_twice(how: str, photos: Path, tmp_path: Path) -> None:
    names = ["a/0.png", "b/0.png", "a/0.png", "./b/0.png", "a/../a/0.png"]
    (photos / "list.txt").write_text("\n".join(names))
    before = files(photos)
    assert sort(photos / "list.txt", tmp_path / "out", how) == {"000": 2}
    assert set(files(tmp_path / "out").values()) == {before["a/0.png"], before["b/0.png"]}


@pytest.mark.parametrize("how", ["copy", "link", "move"])
@pytest.mark.parametrize("beside", [False, True])
def test_links_never_dangle(how: str, beside: bool, photos: Path, tmp_path: Path) -> None:
    """Relative links to pictures elsewhere, links to links, two to one; or beside the picture."""
    links = photos if beside else tmp_path / "links"
    links.mkdir(exist_ok=True)
    for i, target in enumerate(sorted(photos.rglob("*.png"))):
        (links / f"link{i}.png").symlink_to(os.path.relpath(target, links))
    (links / "chain.png").symlink_to("link0.png")
    originals = files(photos)
    out = tmp_path / "out"
    seen = {name: content for name, content in files(links).items()}
    sort(links, out, how)
    sorted_now = files(out)  # read through links: none dangles
    assert sorted(sorted_now.values()) == sorted(seen.values())
    assert len([p for p in out.rglob("*.png") if p.is_symlink() or p.is_file()]) == len(seen)
    if not beside or how != "move":
        assert files(photos) == originals  # pictures that are not sorted stay


def test_names_too_long_and_without_an_end(tmp_path: Path) -> None:
    cjk = "猫" * 82 + ".png"  # 250 bytes, and the same twice
    for i, folder in enumerate("ab"):
        picture(tmp_path / "in" / folder / cjk, i)
        picture(tmp_path / "in" / folder / ("x" * 250), 10 + i)  # no extension
    before = files(tmp_path / "in")
    store = open_images(tmp_path / "in")
    names: list[str | None] = ["名" * 100] * 4
    sort_images(store, np.zeros(4, np.int64), names, tmp_path / "out", "copy")
    found = files(tmp_path / "out")
    assert sorted(found.values()) == sorted(before.values())
    assert sum(name.endswith(".png") for name in found) == 2
    assert all(len(os.fsencode(part)) <= 255 for name in found for part in name.split("/"))


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8")
@pytest.mark.parametrize("how", ["copy", "link", "move"])
def test_names_that_are_not_utf8(how: str, photos: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9 \\x41.png")
    picture(photos / "plain.png", 200).rename(photos / odd)
    before = files(photos)
    assert sort(photos, tmp_path / "out", how) == {"000": 5}
    assert sorted(files(tmp_path / "out").values()) == sorted(before.values())
    assert (tmp_path / "out" / "000" / odd).is_file()


def test_arrays_and_their_ids(tmp_path: Path) -> None:
    class Items:
        ids = ("a/../../b", "CON", "x" * 300, "a:b", "a?b", "")

        def __len__(self) -> int:
            return 6

        def __getitem__(self, i: int) -> np.ndarray:
            return np.full((8, 8), 40 * i, np.uint8)

    out = tmp_path / "out"
    sort(Items(), out)
    sort(Items(), out)  # and nothing twice
    assert set(files(tmp_path)) == {
        f"out/000/{name}.png"
        for name in ("a_.._.._b", "_CON", "x" * 120, "a_b", "a_b-1", "_")
    }  # fmt: skip
    with Image.open(out / "000" / "a_b-1.png") as image:
        assert np.asarray(image).max() == 160


def test_a_folder_among_its_own_images(photos: Path) -> None:
    for _ in range(3):
        sort(photos, photos / "sorted")
    assert len(files(photos)) == 8


@pytest.mark.parametrize("how", ["copy", "move"])
def test_stopped_and_gone_on_with(
    how: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step; what lies half written is never under a picture's name."""
    before = files(photos)
    for stop in range(4):
        mine, out = tmp_path / f"mine{stop}", tmp_path / f"out{stop}"
        shutil.copytree(photos, mine)
        left = stop

        def half(source: Path, target: Path) -> None:
            nonlocal left
            left -= 1
            Path(target).write_bytes(Path(source).read_bytes()[: None if left >= 0 else 9])
            if left < 0:
                os.rename(target, f"{target}x")  # noqa: PTH104 (as a killed process leaves it)
                raise KeyboardInterrupt

        def other_disk(self: Path, target: Path) -> Path:
            raise OSError(errno.EXDEV, "another disk")

        with monkeypatch.context() as patch:
            patch.setattr(sorting.shutil, "copy2", half)
            if how == "move":
                patch.setattr(Path, "rename", other_disk)
            with pytest.raises(KeyboardInterrupt):
                sort(mine, out, how)
        whole = {k: v for k, v in files(out).items() if ".deepcluster-part" not in k}
        assert set(whole.values()) <= set(before.values())
        assert set(files(mine).values()) | set(whole.values()) == set(before.values())
        sort(mine, out, how)
        assert sorted(files(out).values()) == sorted(before.values())


def test_a_full_disk_says_how_to_go_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"ha")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sorting.shutil, "copy2", full)
    with pytest.raises(RunError, match="stopped after 0 of 4 images: No space left"):
        sort(photos, tmp_path / "out")
    assert files(tmp_path / "out") == {}


def test_many_files_of_one_name_take_no_square_of_time(tmp_path: Path) -> None:
    """Counted, not timed: names looked at in a plan of 2,000."""
    store = open_images(np.zeros((1, 8, 8), np.uint8))
    n = 2000
    paths = [f"/nowhere/{i}/slice.png" for i in range(n)]
    store = ImageStore("x", np.zeros((n, 1, 1, 1), np.uint8), 1, [str(i) for i in range(n)], paths)
    folded = 0

    def counted(name: str) -> str:
        nonlocal folded
        folded += 1
        return name.casefold()

    original, sorting._folded = sorting._folded, counted
    try:
        steps = sorting._plan(
            store, np.zeros(n, np.int64), [None] * n, [Path(p) for p in paths], tmp_path, {}
        )
    finally:
        sorting._folded = original
    assert len({step.target for step in steps}) == n
    assert folded < 6 * n


def test_before_the_work_a_folder_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="no folder"):
        sorting.check_folder(tmp_path / "file" / "out")
    sorting.check_folder(tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_nothing_is_sorted_into_a_run(photos: Path, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    run.write_info({"name": "x"})
    for folder in (run.path, run.report / "data", run.path / "new" / "deep"):
        with pytest.raises(RunError, match=r"lies in the run .* choose a folder outside"):
            sort(photos, folder, "move")
    assert len(files(photos)) == 4 and not run.report.exists()


def test_two_do_not_sort_into_one_folder(photos: Path, tmp_path: Path) -> None:
    """What one has planned the other would take; and what is there since is never replaced."""
    out = tmp_path / "out"
    out.mkdir()
    with sorting._alone(out), pytest.raises(RunError, match="another deepcluster sorts into"):
        sort(photos, out, "move")
    assert len(files(photos)) == 4 and not files(out)
    plan = sorting._plan

    def late(*args: Any) -> list[sorting.Step]:
        steps = plan(*args)
        picture(steps[-1].target, 99)  # by another program
        return steps

    for how in ("move", "copy"):
        mine = tmp_path / how
        picture(mine / "0.png", 5)
        before = files(mine)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sorting, "_plan", late)
            with pytest.raises(RunError, match="Nothing is lost"):
                sort(mine, tmp_path / f"to-{how}", how)
        assert files(mine) == before and len(files(tmp_path / f"to-{how}")) == 1


def test_no_image_is_put_into_its_own_source_a_second_time(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the two are called; moved, each is there once."""
    (tmp_path / "link").symlink_to(photos)
    monkeypatch.chdir(photos)
    for folder in (photos / "sorted", photos, tmp_path / "link" / "a" / "sorted", Path("sorted")):
        for source in (str(photos), str(tmp_path / "link"), "."):
            with pytest.raises(RunError, match=r"--into .*photos-sorted, or --how move"):
                sorting.check_folder(folder, [str(tmp_path / "b.npy"), source], "link")
            sorting.check_folder(folder, [source], "move")
    sorting.check_folder(tmp_path / "photos-sorted", [str(photos), "digits"])
    assert len(files(photos)) == 4
