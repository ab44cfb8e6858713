"""A few of the moments at which kill.py and full_disk.py stop a fit, and damaged checkpoints."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY as QUICK
from conftest import make_shapes
from make_run import make_run

from deepcluster import cli
from deepcluster.config import Config, override
from deepcluster.errors import NoImagesError, RunError
from deepcluster.fitting import fit_source
from deepcluster.progress import Progress
from deepcluster.report import apply_labels
from deepcluster.run import RunDir

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_fit_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "kill.py"), "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "went on from" in done.stdout


@pytest.mark.slow
def test_a_fit_goes_on_once_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    outcomes = importlib.import_module("full_disk").check_writes(tmp_path, 8)
    assert not [outcome for outcome in outcomes if "WRONG" in outcome], outcomes
    assert any("went on" in outcome for outcome in outcomes)


TINY = {**QUICK, "epochs": 4}


class Stops(Progress):
    def epoch(self, line: dict[str, object]) -> None:
        if line["epoch"] == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_the_newest_checkpoint_that_is_whole_is_gone_on_from(tmp_path: Path) -> None:
    config, images = override(Config(), TINY), make_shapes(40)
    whole = fit_source(images, config, out=tmp_path / "whole").read_embeddings().tobytes()
    for name, damage in (
        ("empty", lambda path: path.write_bytes(b"")),
        ("half", lambda path: os.truncate(path, path.stat().st_size // 2)),
        ("zeros", lambda path: path.write_bytes(bytes(path.stat().st_size))),
        ("not finite", _with_nan),
        ("another epoch", lambda path: path.write_bytes(path.read_bytes().replace(b'"3"', b'"9"'))),
    ):
        run = RunDir(tmp_path / name)
        with pytest.raises(KeyboardInterrupt):
            fit_source(images, config, out=run.path, progress=Stops())
        newest = sorted(run.checkpoints.iterdir())[-1]
        assert newest.name == "epoch-00003.safetensors"
        damage(newest)
        with (run.path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"epoch": 3, "lo')
        fit_source(images, config, out=run.path, resume=True)
        assert run.read_embeddings().tobytes() == whole, name
        assert [line["epoch"] for line in run.read_metrics()] == [0, 1, 2, 3]
    run.write_info({**run.read_info(), "status": "interrupted"})
    for path in run.checkpoints.iterdir():
        path.write_bytes(b"")
    said = fit_source(images, config, out=run.path, resume=True).read_info()["notes"]
    assert run.read_embeddings().tobytes() == whole  # from the beginning
    assert not [text for text in said if "without effect" in text]


@pytest.mark.slow
def test_a_fit_that_is_killed_while_it_decodes_begins_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is there first, with what was asked for; what a kill leaves is copied then."""
    values = {**TINY, "epochs": 2, "data.range": [0, 200], "train.lr": 0.01}
    config, images = override(Config(), values), make_shapes(40)
    np.save(tmp_path / "a.npy", images)
    whole = fit_source(tmp_path / "a.npy", config, out=tmp_path / "whole").read_embeddings()
    run = RunDir(tmp_path / "run")

    class Copies(Progress):
        def phase(self, name: str, total: int) -> None:
            if name == "decoding":
                shutil.copytree(run.path, tmp_path / "killed")
                with pytest.raises(RunError, match="another fit is at work"):
                    RunDir.free(run.path, overwrite=True)
                assert cli.run_app(["info", str(run.path)]) == 0

    fit_source(tmp_path / "a.npy", config, out=run.path, progress=Copies())
    assert "its images are being decoded" in capsys.readouterr().out
    killed = RunDir(tmp_path / "killed")
    assert killed.read_info()["status"] == "starting"
    assert cli.run_app(["info", str(killed.path)]) == 0
    said = capsys.readouterr().out
    assert "40 images, 0 clusters, stopped before its end" in said
    assert f"deepcluster fit {tmp_path / 'a.npy'} --out {killed.path} --resume" in said
    with pytest.raises(RunError, match="has not ended"):
        RunDir.open(killed.path)
    killed.write_config(run.read_config())  # as if it was killed a moment later
    command = ["fit", str(tmp_path / "a.npy"), "--out", str(killed.path), "--resume"]
    assert cli.run_app([*command, "--train.lr", "0.3"]) == 2
    assert cli.run_app(command) == 0
    assert np.array_equal(killed.read_embeddings(), whole)
    assert killed.read_config() == run.read_config()
    assert killed.read_info()["asked"] == run.read_info()["asked"]


@pytest.mark.parametrize("before", ["nothing", "empty", "run", "link"])
def test_a_fit_that_cannot_decode_leaves_what_was_there(tmp_path: Path, before: str) -> None:
    place = tmp_path / "run"
    if before == "empty":
        place.mkdir()
    elif before != "nothing":
        made = make_run(tmp_path / ("real" if before == "link" else "run"), n=30, clusters=3)
        if before == "link":
            place.symlink_to(made.path)
    there = sorted(tmp_path.rglob("*"))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    class Stops(Progress):
        def phase(self, name: str, total: int) -> None:
            assert name != "decoding" or (place / "fit.lock").exists()

    with pytest.raises(NoImagesError):
        fit_source(tmp_path / "pictures", out=place, overwrite=True, progress=Stops())
    shutil.rmtree(tmp_path / "pictures")
    assert sorted(tmp_path.rglob("*")) == there
    if before in ("run", "link"):
        assert RunDir.open(place)


def _with_nan(path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(name for name, value in tensors.items() if value.is_floating_point())
    tensors[name].view(-1)[0] = np.nan
    save_file(tensors, path, facts)


def test_what_is_missing_after_the_end_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while the pictures or the report are written; or somebody deleted them."""
    config, images = override(Config(), {**TINY, "epochs": 1}), make_shapes(40)
    run = RunDir(tmp_path / "run")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for what in ("write_pictures", "write_report"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"deepcluster.fitting.{what}", stop)
            fit_source(images, config, out=run.path, report=True, overwrite=run.path.exists())
        assert run.read_info()["status"] == "done"
        fit_source(images, config, out=run.path, report=True, resume=True)
        assert (run.pictures / "clusters.png").is_file()
        assert (run.report / "index.html").is_file()
        assert "unwritten" not in run.read_info()
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_status_of_a_fit_on_a_full_disk_can_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run.json cannot be written any more: the run stays, and goes on once there is room."""
    config, images = override(Config(), {**TINY, "epochs": 2}), make_shapes(40)
    run = RunDir(tmp_path / "run")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    class Full(Progress):
        def epoch(self, line: dict[str, object]) -> None:
            monkeypatch.setattr(RunDir, "write_info", full)
            full()

    with pytest.raises(OSError, match="No space left"):
        fit_source(images, config, out=run.path, progress=Full())
    monkeypatch.undo()
    assert run.read_info()["status"] == "running" and not run.is_live()
    fit_source(images, config, out=run.path, resume=True)
    assert RunDir.open(run.path)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")
def test_under_nohup_a_fit_is_not_hung_up() -> None:
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "import deepcluster.cli as cli; cli.run_app = lambda: 0\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN\n"
        "assert signal.getsignal(signal.SIGTERM) is cli._interrupt"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_apply_that_is_stopped_is_done_by_the_same_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its two writes: the merge is not lost, whichever was first."""
    run = make_run(tmp_path / "run", n=30, clusters=3)
    items = run.read_items()
    rows = ["id,cluster,name,by"]
    for id_, cluster in zip(items["id"].to_pylist(), items["cluster"].to_pylist(), strict=True):
        rows.append(f"{id_},{0 if cluster == 2 else cluster},{'a' if cluster != 1 else 'b'},model")
    (tmp_path / "labels.csv").write_text("\n".join(rows))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for write in ("write_items", "write_clusters"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(RunDir, write, stop)
            apply_labels(run, tmp_path / "labels.csv")
    apply_labels(run, tmp_path / "labels.csv")
    said = run.read_clusters()
    assert (said["names"], said["merged"]) == ({"0": "a", "1": "b"}, {"2": 0})
    assert set(run.read_items()["cluster"].to_pylist()) == {0, 1}


def test_few_different_images_are_said(tmp_path: Path) -> None:
    said: list[str] = []

    class Said(Progress):
        def note(self, text: str) -> None:
            said.append(text)

    images = np.repeat(make_shapes(2), 20, axis=0)
    run = fit_source(images, override(Config(), TINY), out=tmp_path / "run", progress=Said())
    filled = len(set(run.read_items()["cluster"].to_pylist()))
    assert run.read_info()["counts"]["clusters"] == filled
    assert any("40 images hold 2 different ones: 3 clusters were asked for" in x for x in said)
    assert any("hold 2 different ones" in text for text in run.read_info()["notes"])
