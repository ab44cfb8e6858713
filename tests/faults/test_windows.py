"""What Windows forbids: to rename, replace or delete a file that this process has open or mapped.

There is no Windows here, so Linux is made as strict: before each such call the process's open
files and maps are looked through. What else differs there (paths, consoles) has tests of its own.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepcluster import DeepCluster
from deepcluster.cli import run_app
from deepcluster.config import Config
from deepcluster.errors import NoImagesError
from deepcluster.fitting import fit_source
from deepcluster.progress import Progress
from deepcluster.run import RunDir

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

QUICK = ["--backbone", "convnet_tiny", "--epochs", "2", "--clusters", "3", "--device", "cpu"]
QUICK += ["--train.batch-size", "32"]


def in_use() -> set[str]:
    """Files that this process has open or mapped."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found.add(os.readlink(descriptor))  # noqa: PTH115 (a text)
        except OSError:  # the one that lists them
            continue
    for line in Path("/proc/self/maps").read_text().splitlines():
        found.add(line[73:])
    return found


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """os refuses as Windows does."""

    def refuse(path: Any, dir_fd: int | None) -> None:
        base = Path.cwd() if dir_fd is None else Path(os.readlink(f"/proc/self/fd/{dir_fd}"))  # noqa: PTH115
        name = str(base / os.fsdecode(path))
        for held in in_use():
            if held == name or (held.startswith(f"{name}/") and dir_fd is None):
                raise PermissionError(13, "the file is in use", name)

    def guarded(real: Callable[..., None], paths: int) -> Callable[..., None]:
        def call(*given: Any, dir_fd: int | None = None, **more: Any) -> None:
            for path in given[:paths]:
                refuse(path, dir_fd)
            real(*given, **more, **({} if dir_fd is None else {"dir_fd": dir_fd}))

        return call

    for name, paths in (("replace", 2), ("rename", 2), ("unlink", 1), ("remove", 1), ("rmdir", 1)):
        monkeypatch.setattr(os, name, guarded(getattr(os, name), paths))
    monkeypatch.chdir(tmp_path)


def test_the_stand_in_refuses_what_windows_refuses(strict: None, tmp_path: Path) -> None:
    for name in ("a/b", "c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with (tmp_path / "a/b").open():
        for attempt in (
            (tmp_path / "a/b").unlink,
            lambda: (tmp_path / "c").replace(tmp_path / "a/b"),
            lambda: (tmp_path / "a").rename(tmp_path / "d"),
            lambda: shutil.rmtree(tmp_path / "a"),
        ):
            with pytest.raises(PermissionError):
                attempt()
    shutil.rmtree(tmp_path / "a")


@pytest.mark.slow
def test_no_command_changes_a_file_that_it_has_open(
    strict: None, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, "photos")
    fit = ["fit", "photos", "--labels", "folders", "--out", "run", *QUICK]
    assert run_app(fit) == 0
    assert run_app([*fit, "--overwrite"]) == 0
    items = RunDir.open("run").read_items()
    columns = (items[name].to_pylist()[:24] for name in ("id", "label"))
    rows = [",".join(row) for row in zip(*columns, strict=True)]
    Path("labels.csv").write_text("\n".join(["id,label", *rows]))
    Path("names.csv").write_text(f"id,cluster,name,by\n{items['id'][0]},1,one,person\n")
    for line in (
        "recluster run --clusters 4",
        "apply run names.csv",
        "report run",
        "suggest run -n 5",
        "teach run labels.csv",
        "teach run labels.csv",
        "update run photos",
        "evaluate run",
        "export run --to timm",
        "embed run photos --out f.npy",
        "fit photos --names-from run --out second " + " ".join(QUICK),
        "apply second --from run",
        "predict run photos --into sorted --how move",
    ):
        assert run_app(line.split()) == 0, line
    loaded = DeepCluster.load("run")  # is kept
    assert run_app(["recluster", "run", "--clusters", "3"]) == 0
    assert len(loaded.labels_) == 60


class Stop(Progress):
    """Ends a fit in its second epoch, as Ctrl-C does."""

    def epoch(self, line: Any) -> None:
        raise KeyboardInterrupt


def test_a_stopped_fit_goes_on(strict: None, folder: Path, tiny: Config) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit_source(folder, tiny, out="run", progress=Stop())
    run = fit_source(folder, tiny, out="run", resume=True)
    assert run.read_info()["status"] == "done"


def test_a_fit_that_cannot_decode_leaves_nothing(strict: None, tiny: Config) -> None:
    Path("pictures").mkdir()
    Path("pictures/bad.png").write_bytes(b"no picture")
    with pytest.raises(NoImagesError):
        fit_source("pictures", tiny, out="run")
    assert os.listdir() == ["pictures"]  # noqa: PTH208 (names)


def test_what_a_pipe_cannot_show_is_written_as_utf_8(tmp_path: Path) -> None:
    """A pipe on Windows has an encoding of the system's, which lacks most letters."""
    done = subprocess.run(
        [sys.executable, "-m", "deepcluster", "info", "картина"],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
    )
    assert "картина is no run folder" in done.stderr.decode("utf-8")
    assert done.returncode == 2
