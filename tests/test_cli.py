"""The command line: exit codes, where things are printed, and that all is documented."""

import errno
import json
import os
import re
import shutil
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
    RunDir.open(first).write_clusters({"names": {"1": "a name"}, "merged": {}})
    assert run_app(["info", str(first)]) == 0
    out = capsys.readouterr().out
    assert "1: a name" in out and "scores above" not in out  # the clusters are those of the fit
    RunDir.open(first).write_clusters({"names": {}, "merged": {}})
    ids = RunDir.open(first).read_items()["id"].to_pylist()
    rows = [f"{id_},9,made by [bold]hand,person" for id_ in ids[:5]]
    labels.write_text("\n".join(["id,cluster,name,by", *rows]))
    capsys.readouterr()
    assert run_app(["apply", str(first), str(labels)]) == 0
    out = capsys.readouterr().out
    assert "1 cluster renamed" in out and "report" not in out  # there is none to refresh
    assert run_app(["info", str(first)]) == 0
    out = capsys.readouterr().out
    assert "scores above are of the fit" in out  # images were moved
    assert "4 clusters now, 1 with names" in out and "9: made by [bold]hand (5 images)" in out
    assert run_app(["info", str(first), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == {"9": "made by [bold]hand"}
    command = ["fit", str(source), "--out", str(second), *QUICK]
    assert run_app([*command, "--names-from", str(first)]) == 0
    assert "in both runs: 60 images" in capsys.readouterr().out
    assert RunDir.open(second).read_items()["by"].to_pylist()[:5] == ["person"] * 5
    page = second / "report" / "data" / "summary.js"
    assert "made by [bold]hand" in page.read_text()
    RunDir.open(second).write_clusters({"names": {}, "merged": {"2": 1}})
    capsys.readouterr()
    assert run_app(["info", str(second)]) == 0
    assert "2: now part of 1" in capsys.readouterr().out
    assert run_app(["apply", str(second), "--from", str(first)]) == 0
    out = capsys.readouterr().out
    assert "in both runs: 60 images" in out and "\\n" not in out  # a line each
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


@pytest.mark.parametrize(
    "text",
    ["out = 'victim'", "overwrite = true", "resume = true", "labels = 'folders'", "report = false"],
)
def test_a_settings_file_holds_settings_only(
    text: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.toml").write_text(f"epochs = 1\n{text}\n")
    command = ["fit", str(source), "--config", str(tmp_path / "evil.toml"), "--dry-run"]
    assert run_app(command) == 2
    err = capsys.readouterr().err
    assert "evil.toml" in err and "there is no setting" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--clusters", "1.5"], "clusters = 1.5"),
        (["--seed", "1e20"], "seed = 1e20"),
        (["--final.neighbours", "0"], "final.neighbours = 0"),
        (["--train.warmup", "1.5"], "train.warmup = 1.5"),
        (["--contrastive-clusters.temperature", "0"], "contrastive_clusters.temperature"),
        (["--minutes", "inf"], "minutes = inf"),
        (["--views.flip", "2"], "views.flip = 2"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(
    flags: list[str],
    words: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deepcluster.fitting.open_images", None)  # would fail when called
    assert run_app(["fit", str(source), "--out", str(tmp_path / "run"), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_flag_that_is_as_by_default_counts_too(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    command = ["fit", str(source), "--out", str(run.path), *QUICK, "--no-report"]
    assert run_app([*command, "--seed", "5", "--final.pca", "7"]) == 0
    run.write_info({**run.read_info(), "status": "interrupted"})
    assert run_app([*command, "--resume", "--seed", "0"]) == 2
    assert "other settings (seed)" in capsys.readouterr().err
    assert run_app([*command, "--resume", "--final.pca", "0"]) == 0  # nothing before knows of it
    assert (run.read_config().seed, run.read_config().final.pca) == (5, 0)
    assert run_app([*command, "--resume", "--final.pca", "3"]) == 2  # done
    assert "final.pca" in capsys.readouterr().err


def test_settings_without_effect_are_named(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--deepcluster.pca", "7", "--kmeans.restarts", "5", "--final.restarts", "3"]
    assert run_app(["fit", str(source), "--dry-run", *QUICK, *flags, "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("kmeans.restarts, deepcluster.pca, final.restarts" in text for text in notes)


def test_outputs_are_refused_before_the_work(
    finished: RunDir,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over the source, over anything, into no folder; and moves that go nowhere."""
    monkeypatch.setattr("deepcluster.finished.predict.open_images", None)  # would fail when called
    before = source.read_bytes()
    run, there = str(finished.path), str(source)
    for command, words in (
        (["embed", run, there, "--out", there], "exists already"),
        (["embed", run, there, "--out", there.removesuffix(".npy")], "exists already"),
        (["predict", run, there, "--out", there], "exists already"),
        (["predict", run, there, "--out", f"{there}/p.csv"], "no folder"),
        (["predict", run, there, "--into", f"{there}/p"], "no folder"),
        (["predict", run, str(tmp_path), "--into", f"{tmp_path}/p"], "each image twice"),
        (["predict", run, there, "--how", "move"], "--into"),
        (["export", run, "--to", "timm", "--out", there], "exists already"),
    ):
        assert run_app(command) == 2, command
        assert words in capsys.readouterr().err
    assert source.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


ODD = "a [bold]b[/red] :cat: \x1b[2J " + "long " * 30


def test_what_is_printed_is_what_was_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No wrapping, no markup, nothing that a terminal obeys."""
    place = tmp_path / ODD
    run = place / "run"
    shown = str(place).replace("\x1b", "\\x1b")
    assert run_app(["fit", str(source), "--out", str(run), *QUICK]) == 0
    out = capsys.readouterr().out.splitlines()
    assert f"run folder: {shown}/run" in out
    assert f"report:     {shown}/run/report/index.html" in out
    RunDir(run).write_clusters({"names": {"0": ODD}, "merged": {"2": 1}})
    for command, line in (
        (["report", str(run)], f"{shown}/run/report/index.html"),
        (["export", str(run), "--to", "timm"], f"{shown}/run/export/timm"),
        (["embed", str(run), str(source), "--out", str(place / "f")], f"{shown}/f.ids.csv"),
        (["info", str(run)], f"run folder: {shown}/run"),
    ):
        assert run_app(command) == 0
        captured = capsys.readouterr()
        assert line in captured.out.splitlines()
        assert "\x1b" not in captured.out + captured.err
    named = [line for line in captured.out.splitlines() if line.startswith("  0: ")]
    assert len(named) == 1 and ODD.replace("\x1b", "\\x1b") in named[0]
    assert "  2: now part of 1" in captured.out
    command = ["predict", str(run), str(source), "--into", str(place / "sorted")]
    assert run_app(command) == 0
    out = capsys.readouterr().out
    assert f"which is where: {shown}/sorted/sorted.csv" in out.splitlines()
    assert any("[bold]b[_red] _cat_" in line and line.endswith("│") for line in out.splitlines())
    assert run_app(["info", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(run)


def test_damaged_settings_of_a_run_are_said_and_not_only_refused(
    finished: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    for raw in (b"epochs = [", b"\xff", b"", b"epochs = 0"):
        (tmp_path / "run" / "config.toml").write_bytes(raw)
        for verb in ("info", "report"):
            assert run_app([verb, str(tmp_path / "run")]) == 2
            assert "config.toml" in capsys.readouterr().err


def test_no_usable_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"")
    assert run_app(["fit", str(tmp_path)]) == 3
    assert "image" in capsys.readouterr().err


def test_dry_run_says_and_does_nothing(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    given = ["--train.precision", "float32", "--train.threads", "1"]  # so no load is told of
    command = ["fit", str(source), "--dry-run", *given, *QUICK]
    assert run_app([*command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["images"] == 60
    assert {"memory_gb", "seconds"} <= set(plan)
    assert plan["notes"] == ["60 images at 16 pixels, convnet_tiny, 1 epoch on cpu in float32"]
    assert os.listdir(source.parent) == [source.name]  # noqa: PTH208


@pytest.mark.parametrize(
    "stop",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
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
        # a test run in the background, or under nohup, has its children ignore it
        preexec_fn=lambda: signal.signal(stop, signal.SIG_DFL),
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
    assert "--resume" in err and "deepcluster: interrupted" not in err
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert any((run / "checkpoints").iterdir())
    said = subprocess.run(
        [sys.executable, "-m", "deepcluster", "info", str(run)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "stopped before its end" in said
    assert re.search(r"unfinished: [1-9]\d* of 100,000 epochs done", said)
    assert f"to go on: `deepcluster fit {source} --out {run} --resume`" in said


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
    for text in out.split("Usage: ")[1:]:  # lines that are broken in their midst are broken late
        lines = text.partition("╭")[0].splitlines()[1:]
        assert all(not line or line.endswith(".") or len(line) > 60 for line in lines), text
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


def test_threads_that_wait_sleep_unless_told_otherwise() -> None:
    code = (
        "import os, sys; sys.argv = ['deepcluster', '--version']\n"
        "import deepcluster.__main__ as entry; assert 'torch' not in sys.modules\n"
        "import deepcluster.cli as cli; cli.main = lambda: print(os.environ['OMP_WAIT_POLICY'])\n"
        "entry.main()"
    )
    for given, expected in [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")]:
        kept = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | given
        done = subprocess.run(
            [sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected


def test_a_place_without_rights_is_named_with_what_to_do(
    finished: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "runs/ours")

    monkeypatch.setattr("deepcluster.finished.recluster_run", refuse)
    assert run_app(["recluster", str(finished.path), "--clusters", "2"]) == 1
    said = capsys.readouterr().err
    assert "Permission denied: runs/ours" in said and "work on a copy of your own" in said
