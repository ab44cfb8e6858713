"""The command line: exit codes, where things are printed, and that all is documented."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_shapes
from PIL import Image

from deepcluster.cli import app, run_app
from deepcluster.run import RunDir

ROOT = Path(__file__).parent.parent
QUICK = ["--backbone", "convnet_tiny", "--epochs", "1", "--clusters", "3", "--device", "cpu"]
QUICK += ["--train.batch-size", "32"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "shapes.npy"
    np.save(path, make_shapes(60))
    return path


def test_fit_then_every_verb(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert run_app(["fit", str(source), "--out", str(run), *QUICK]) == 0
    out, err = capsys.readouterr()
    assert "run folder" in out
    assert "epoch" in err
    assert "60 images" in (run / "log.txt").read_text()
    assert run_app(["info", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "done"
    assert run_app(["info", str(run)]) == 0
    out = capsys.readouterr().out
    assert "convnet_tiny, size 16, epochs 1, seed 0, on cpu" in out
    assert run_app(["predict", str(run), str(source), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 60
    assert run_app(["predict", str(run), str(source)]) == 0
    assert capsys.readouterr().out.startswith("id,path,cluster,name,distance,confidence")
    assert run_app(["embed", str(run), str(source), "--out", str(tmp_path / "f.npy")]) == 0
    assert np.load(tmp_path / "f.npy").shape[0] == 60
    assert len((tmp_path / "f.ids.csv").read_text().splitlines()) == 61
    capsys.readouterr()
    assert run_app(["evaluate", str(run), "--json"]) == 0
    assert "silhouette" in json.loads(capsys.readouterr().out)
    assert run_app(["export", str(run), "--to", "timm"]) == 0
    assert (run / "export" / "timm" / "config.json").is_file()
    assert run_app(["report", str(run)]) == 0


def test_names_from_an_earlier_run(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run_app(["fit", str(source), "--out", str(first), "--no-report", *QUICK]) == 0
    labels = tmp_path / "labels.csv"
    ids = RunDir.open(first).read_items()["id"].to_pylist()
    rows = [f"{id_},9,made by [bold]hand,person" for id_ in ids[:5]]
    labels.write_text("\n".join(["id,cluster,name,by", *rows]))
    capsys.readouterr()
    assert run_app(["apply", str(first), str(labels)]) == 0
    out = capsys.readouterr().out
    assert "1 clusters renamed" in out and "report" not in out  # there is none to refresh
    assert run_app(["info", str(first)]) == 0
    out = capsys.readouterr().out
    assert "4 clusters now, 1 with names" in out and "9: made by [bold]hand (5 images)" in out
    assert run_app(["info", str(first), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == {"9": "made by [bold]hand"}
    command = ["fit", str(source), "--out", str(second), *QUICK]
    assert run_app([*command, "--names-from", str(first)]) == 0
    assert "60 images are in both runs" in capsys.readouterr().out
    assert RunDir.open(second).read_items()["by"].to_pylist()[:5] == ["person"] * 5
    page = second / "report" / "data" / "summary.js"
    assert "made by [bold]hand" in page.read_text()
    RunDir.open(second).write_clusters({"names": {}, "merged": {"2": 1}})
    capsys.readouterr()
    assert run_app(["info", str(second)]) == 0
    assert "2: now part of 1" in capsys.readouterr().out
    assert run_app(["apply", str(second), "--from", str(first)]) == 0
    out = capsys.readouterr().out
    assert "60 images are in both runs" in out
    assert f"report: {second / 'report' / 'index.html'}" in out
    assert run_app(["apply", str(second)]) == 2
    assert run_app(["apply", str(second), str(labels), "--from", str(first)]) == 2
    assert "--from" in capsys.readouterr().err


def test_flags_beat_file_beats_recipe(source: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("epochs = 1\nclusters = 3\n[deepcluster]\npca = 7\n[train]\nlr = 0.001\n")
    run = tmp_path / "run"
    flags = ["--train.lr", "0.002", "--deepcluster.no-whiten", *QUICK]
    command = ["fit", str(source), "--recipe", "chainer", "--config", str(file), *flags]
    assert run_app([*command, "--out", str(run)]) == 0
    config = RunDir.open(run).read_config()
    assert config.train.lr == 0.002  # flag
    assert config.deepcluster.pca == 7  # file
    assert config.train.weight_decay == 1e-4  # recipe
    assert config.deepcluster.whiten is False


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 0, ""),
        (["fit"], 2, "which images"),
        (["fit", "no/such/folder"], 2, "no/such/folder"),
        (["fit", "digits", "--recipe", "nice"], 2, "paper"),
        (["fit", "digits", "--clusters", "many"], 2, "clusters"),
        (["fit", "digits", "--train.optimizer", "magic"], 2, "sgd"),
        (["fit", "digits", "--no-such-flag"], 2, "no-such-flag"),
        (["fit", "digits", "--epochs", "0"], 2, "epochs"),
        (["fit", "digits", "--train.lr", "nan"], 2, "train.lr"),
        (["info", "no/such/run"], 2, "no run folder"),
        (["cluster", "digits"], 2, "cluster"),
    ],
)
def test_exit_codes(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(arguments) == code
    out, err = capsys.readouterr()
    assert words in (out if code == 0 else err)
    assert "Traceback" not in err


def test_no_usable_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"")
    assert run_app(["fit", str(tmp_path)]) == 3
    assert "image" in capsys.readouterr().err


def test_dry_run_says_and_does_nothing(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    command = ["fit", str(source), "--dry-run", "--train.precision", "float32", *QUICK]
    assert run_app([*command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["images"] == 60
    assert {"memory_gb", "seconds"} <= set(plan)
    assert plan["notes"] == ["60 images at 16 pixels, convnet_tiny, 1 epoch on cpu in float32"]
    assert os.listdir(source.parent) == [source.name]  # noqa: PTH208


@pytest.mark.parametrize(
    "stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_interrupt_saves_and_says_how_to_go_on(
    stop: signal.Signals, source: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "deepcluster", "fit", str(source), "--out", str(run), *QUICK]
    command[command.index("--epochs") + 1] = "100000"
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # a test run in the background has its children ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    before = []
    for line in process.stderr:
        before.append(line)
        if line.startswith("epoch"):
            break
    process.send_signal(stop)
    err = "".join(before) + process.communicate(timeout=60)[1]
    assert process.returncode == 130, err
    assert "--resume" in err
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert any((run / "checkpoints").iterdir())


def test_interrupt_before_the_training_is_said(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deepcluster.fitting.fit_source", stop)
    assert run_app(["fit", str(source)]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_reader_who_has_seen_enough_is_no_failure_to_tell_of(finished: RunDir) -> None:
    """As in ``deepcluster info RUN --json | head -1``, but with a reader that is gone for sure."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "deepcluster", "info", str(finished.path), "--json"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


HELD = """
import ctypes, sys
from deepcluster.cli import keep_freed_memory
class Mallinfo2(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc = ctypes.CDLL(None)
if not hasattr(libc, "mallinfo2"):
    sys.exit("another C library")
libc.mallinfo2.restype = Mallinfo2
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
keep_freed_memory()
before = libc.mallinfo2()
block = libc.malloc(100_000_000)
print(libc.mallinfo2().hblks - before.hblks)
libc.free(block)
print(libc.mallinfo2().fordblks >= 100_000_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_kept_unless_the_user_says_how() -> None:
    def found(**more: str) -> list[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | more
        command = [sys.executable, "-c", HELD]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.stderr == "another C library\n":
            pytest.skip(done.stderr)
        return done.stdout.split()

    assert found() == ["0", "True"]  # no block of its own from the system, and still there
    assert found(MALLOC_ARENA_MAX="2") == ["1", "False"]


def test_help_needs_no_torch() -> None:
    script = (
        "import sys; from deepcluster.cli import run_app; code = run_app(['--help']);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_every_command_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text() + (ROOT / "docs" / "guide.md").read_text()
    for name in app:
        if not name.startswith("-"):
            assert f"deepcluster {name}" in readme, name
            assert run_app([name, "--help"]) == 0
    out = capsys.readouterr().out
    for flag in [
        "--clusters",
        "--epochs",
        "--seed",
        "--out",
        "--device",
        "--recipe",
        "--backbone",
        "--size",
    ]:
        assert flag in out
        assert flag in readme
    assert re.search(r"Share of|Smallest share", out)  # field docstrings are the help


def test_unicode_folder(tmp_path: Path) -> None:
    place = tmp_path / "Bilder für Jürgen" / "写真"
    place.mkdir(parents=True)
    for i, pixels in enumerate(make_shapes(12)):
        Image.fromarray(pixels).save(place / f"猫 {i}.png")
    run = tmp_path / "run"
    command = ["fit", str(place.parent), "--labels", "folders", "--out", str(run), *QUICK]
    assert run_app(command) == 0
    assert "猫 3.png" in (run / "items.csv").read_text(encoding="utf-8")
