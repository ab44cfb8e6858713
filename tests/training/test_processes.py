"""Several processes, as torchrun starts them, come to what one comes to."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import make_shapes
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from deepcluster import cli, processes
from deepcluster.cli import run_app
from deepcluster.config import Config
from deepcluster.errors import ConfigError, ProcessError, RunError
from deepcluster.fitting import fit_source
from deepcluster.images.sinks import free_memory
from deepcluster.images.store import open_images
from deepcluster.run import RunDir
from deepcluster.training import sharing

TOGETHER = Path(__file__).with_name("together.py")
FIT = [
    "--clusters", "3", "--epochs", "5", "--backbone", "convnet_tiny", "--device", "cpu",
    "--train.batch-size", "32", "--train.precision", "float32", "--train.lr", "0.002",
]  # fmt: skip
"""At a slow rate: at the usual one even roundings, as of other threads, grow to more than 1e-3."""
PATCHED = """
import errno, os, signal, sys
from deepcluster import __main__, processes
from deepcluster.training import checkpoints
from deepcluster.training.step import Step

step, save, done = Step.__call__, checkpoints.save_file, []

def at(thing):
    done.append(thing)
    return len(done) == int(os.environ["AT"])

def dies():
    os.kill(os.getpid(), signal.SIGKILL)

def interrupted():
    os.kill(os.getpid(), signal.SIGTERM)

def waits():
    sys.stdin.readline()

def stepped(self, index):
    if processes.world() > 1 and at(index):  # the first process makes steps before, to plan
        what()
    step(self, index)

def full(tensors, path, metadata):
    if at(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    save(tensors, path, metadata)

what = globals()[os.environ["WHAT"]]
if what is full:
    checkpoints.save_file = full
else:
    Step.__call__ = stepped
__main__.main()
"""
"""A process to which something happens; an epoch of 97 images has four steps."""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def begin(commands: Sequence[Sequence[str]], **more: str) -> list[subprocess.Popen[str]]:
    """Start a process for each command, as torchrun does."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(len(commands)), "LOCAL_WORLD_SIZE": str(len(commands)), **more}
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, **shared, "RANK": str(rank)},
            stdin=pipe, stdout=pipe, stderr=pipe, text=True,
        )
        for rank, words in enumerate(commands)
    ]  # fmt: skip


def end(started: Sequence[subprocess.Popen[str]]) -> list[Ended]:
    """Wait until all have ended."""
    said = [process.communicate() for process in started]
    return [Ended(p.returncode, *texts) for p, texts in zip(started, said, strict=True)]


def start(commands: Sequence[Sequence[str]], **more: str) -> list[Ended]:
    """Start a process for each command, and wait until all have ended."""
    return end(begin(commands, **more))


def fit_words(source: Path, out: Path, *more: str) -> list[str]:
    return ["-m", "deepcluster", "fit", str(source), "--out", str(out), *FIT, *more]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "shapes.npy"
    np.save(path, make_shapes(97))  # no even number
    return path


@pytest.fixture(scope="module")
def alone(source: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    out = tmp_path_factory.mktemp("alone") / "run"
    assert run_app(fit_words(source, out)[2:]) == 0
    return RunDir.open(out)


def check_the_same(run: RunDir, other: RunDir) -> None:
    """Files, images and loss curve of a run that was fitted otherwise."""
    names = [{str(p.relative_to(r.path)) for p in r.path.rglob("*")} for r in (run, other)]
    assert names[0] == names[1]
    assert run.read_info()["status"] == "done"
    assert run.read_info()["images"] == other.read_info()["images"]
    lines, others = run.read_metrics(), other.read_metrics()
    assert [line.keys() for line in lines] == [line.keys() for line in others]
    losses = [line["loss"] for line in lines]
    assert losses == pytest.approx([line["loss"] for line in others], rel=1e-3)
    features, expected = run.read_embeddings(), other.read_embeddings()
    assert (features * expected).sum(1).min() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_compute_what_one_does(count: int) -> None:
    methods = ["contrastive-clusters", "deepcluster", "deepcluster-v2"]
    for ended in start([[str(TOGETHER), *methods]] * count):
        assert ended.code == 0, ended.err


@pytest.fixture(scope="module")
def together(source: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A fit of two processes, of which only the first sees the images."""
    path = tmp_path_factory.mktemp("together")
    nowhere = path / "nowhere"
    first, second = start([fit_words(source, path / "run"), fit_words(nowhere, nowhere)])
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "run folder: " in first.out
    assert "epoch" in first.err
    assert second.out == second.err == ""
    assert not nowhere.exists()
    return RunDir.open(path / "run")


@pytest.mark.slow
def test_a_fit_of_two_processes_is_that_of_one(together: RunDir, alone: RunDir) -> None:
    check_the_same(together, alone)


@pytest.mark.slow
def test_as_many_processes_come_to_the_same_bits(
    source: Path, together: RunDir, tmp_path: Path
) -> None:
    again = start([fit_words(source, tmp_path / "run")] * 2)
    assert [ended.code for ended in again] == [0, 0]
    run = RunDir.open(tmp_path / "run")
    for name in ("model/model.safetensors", "model/clusters.safetensors", "embeddings.npy"):
        assert (run.path / name).read_bytes() == (together.path / name).read_bytes(), name
    newest = [max((r.path / "checkpoints").iterdir()) for r in (run, together)]
    assert newest[0].read_bytes() == newest[1].read_bytes()


@pytest.mark.slow
def test_when_one_is_killed_the_others_stop_and_fewer_go_on(
    source: Path, alone: RunDir, tmp_path: Path
) -> None:
    """Four, then two, then one."""
    words = fit_words(source, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    for count, steps, epochs in ((4, 6, 1), (2, 10, 3)):
        dies = ["-c", PATCHED, *words[2:]]
        *others, last = start([*[words] * (count - 1), dies], WHAT="dies", AT=str(steps))
        assert last.code == -signal.SIGKILL
        for other in others:
            assert other.code == 1
            assert "another process of this fit has ended" in other.err and "--resume" in other.err
        assert run.read_info()["status"] == "failed"
        assert [line["epoch"] for line in run.read_metrics()] == list(range(epochs))
        words = fit_words(source, tmp_path / "run", "--resume")
    assert run_app(words[2:]) == 0
    assert "another process" in run.log.read_text()  # the only file that says so
    check_the_same(run, alone)


@pytest.mark.slow
def test_one_waits_for_another_that_is_slow(source: Path, alone: RunDir, tmp_path: Path) -> None:
    """The second stands still in its second epoch until the first has said its first."""
    words = fit_words(source, tmp_path / "run")
    started = begin([words, ["-c", PATCHED, *words[2:]]], WHAT="waits", AT="6")
    assert started[0].stderr is not None and started[1].stdin is not None
    for line in started[0].stderr:
        if line.split()[:2] == ["epoch", "1"]:  # later ones are said now and then
            break
    assert started[0].poll() is None
    started[1].stdin.write("go on\n")
    started[1].stdin.flush()
    assert [ended.code for ended in end(started)] == [0, 0]
    check_the_same(RunDir.open(tmp_path / "run"), alone)


@pytest.mark.slow
def test_a_full_disk_and_a_person_who_stops_are_said(source: Path, tmp_path: Path) -> None:
    """And the checkpoint before is whole: it is gone on with."""
    words = fit_words(source, tmp_path / "run")
    first, second = start([["-c", PATCHED, *words[2:]], words], WHAT="full", AT="3")
    assert (first.code, second.code) == (1, 1)
    assert "No space left on device" in first.err
    assert "another process of this fit has ended" in second.err
    words = [*words, "--resume"]
    stops = ["-c", PATCHED, *words[2:]]
    first, second = start([stops, stops], WHAT="interrupted", AT="6")
    assert first.code == 130
    assert "torchrun --standalone --nproc-per-node 2 -m -- deepcluster fit" in first.err
    run = RunDir(tmp_path / "run")
    assert run.read_info()["status"] == "interrupted"
    assert [line["epoch"] for line in run.read_metrics()] == [0, 1]


@pytest.mark.slow
def test_a_finished_run_is_used_by_two_processes(
    source: Path, alone: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, images = str(alone.path), str(source)
    out = tmp_path / "features.npy"
    commands = [["predict", run, images], ["embed", run, images, "--out", str(out)],
                ["evaluate", run, images, "--json"]]  # fmt: skip
    for words in commands:
        expected = [*words[:-1], str(tmp_path / "alone.npy")] if words[0] == "embed" else words
        assert run_app(expected) == 0
        said = capsys.readouterr().out
        first, second = start([["-m", "deepcluster", *words]] * 2)
        assert (first.code, second.code) == (0, 0), first.err + second.err
        assert second.out == second.err == ""
        if words[0] == "embed":
            expected_rows, rows = np.load(tmp_path / "alone.npy"), np.load(out)
            assert np.abs(rows - expected_rows).max() < 1e-4
        elif words[0] == "predict":
            columns = [[line.split(",")[:3] for line in text.split()] for text in (said, first.out)]
            assert columns[0] == columns[1]
        else:
            scores, others = json.loads(said), json.loads(first.out)
            assert scores == pytest.approx(others, abs=1e-3)


@pytest.mark.slow
def test_features_of_a_net_as_it_came_are_shared(
    source: Path, alone: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others get the net and their images; what is kept for the next fit is the same."""
    words = [str(source), "--start", "frozen", "--backbone", f"local-dir:{alone.path / 'model'}",
             "--clusters", "3", "--train.precision", "float32", "--device", "cpu"]  # fmt: skip
    monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path / "one"))
    assert run_app(["fit", *words, "--out", str(tmp_path / "a")]) == 0
    command = ["-m", "deepcluster", "fit", *words, "--out", str(tmp_path / "b")]
    first, second = start([command] * 2, DEEPCLUSTER_CACHE=str(tmp_path / "two"))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    features = [RunDir.open(tmp_path / name).read_embeddings() for name in "ab"]
    assert np.abs(features[0] - features[1]).max() < 1e-4
    kept = [list((tmp_path / name / "features").iterdir()) for name in ("one", "two")]
    assert [path.name for path in kept[0]] == [path.name for path in kept[1]]


@pytest.mark.slow
def test_the_example_for_slurm_runs(source: Path, alone: RunDir, tmp_path: Path) -> None:
    """As it stands; what stands in for Slurm starts two tasks."""
    programs = {
        "deepcluster": f'exec {sys.executable} -m deepcluster "$@"',
        "scontrol": "echo 127.0.0.1; echo elsewhere",
        "srun": """
            export SLURM_NTASKS=2 "SLURM_TASKS_PER_NODE=2(x1)"
            SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $!""",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    facts = {"SLURM_JOB_NODELIST": "a[1-2]", "SLURM_JOB_ID": str(os.getpid())}
    facts |= {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parents[2] / "examples" / "fit-slurm.sh"
    words = ["bash", str(script), *fit_words(source, tmp_path / "run")[3:]]
    done = subprocess.run(words, env=os.environ | facts, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder: ") == 1  # of the first: two alone would both say it
    check_the_same(RunDir.open(tmp_path / "run"), alone)


@pytest.mark.slow
def test_when_the_first_has_nothing_to_do_the_other_stops(tmp_path: Path) -> None:
    first, second = start([fit_words(tmp_path / "nowhere", tmp_path / "run")] * 2)
    assert first.code == 2 and "there is no file or folder" in first.err
    assert second.code == 1 and "another process of this fit has ended" in second.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "nowhere", "--clusters", "3"], "there is no file or folder"),
        (["fit", "nowhere", "--clusters", "nope"], "nope"),
    ],
)
def test_torchrun_says_last_what_failed(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows what it finds in a file of its own below its traceback."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.chdir(tmp_path)
    assert run_app(words) == 2
    failure = ProcessFailure(0, 1, 2, str(tmp_path / "error.json"))
    shown = str(ChildFailedError("deepcluster", {0: failure}))
    assert said in shown.partition("Root Cause")[2]

    def ends(arguments: list[str] | None, **how: bool) -> None:
        raise ProcessError("another process of this fit has ended")

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "later.json"))
    monkeypatch.setattr(cli, "app", ends)
    assert run_app(words) == 1
    later = ProcessFailure(1, 2, 1, str(tmp_path / "later.json"))
    shown = str(ChildFailedError("deepcluster", {1: later, 0: failure}))
    assert "another process" in shown.partition("Root Cause")[0]
    assert said in shown.partition("Root Cause")[2]


# -- alone --------------------------------------------------------------------------------------


def test_without_a_launcher_nothing_happens() -> None:
    rows = torch.ones(3)
    with processes.joined(), processes.training():
        assert (processes.world(), processes.helpers(), processes.rank()) == (1, 1, 0)
        assert processes.first() and not processes.follows()
        assert processes.share(3) == slice(0, 3)
        assert processes.gather(rows, 3) is rows
        assert processes.agree(4) == 4
        assert processes.tell(b"word") == b"word"


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is the second process of a launcher."""
    names = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)


def test_only_the_first_process_leaves_a_run(second: None, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="follow"):
        fit_source(make_shapes(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_the_first_process_says_a_plan(
    second: None, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["fit", str(source), "--dry-run"]) == 0
    assert capsys.readouterr().out == ""


def test_what_is_not_shared_is_done_by_the_first_alone(
    second: None, finished: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["info"], ["export", "--to", "timm", "--out", f"{finished.path}-timm"]):
        assert run_app([words[0], str(finished.path), *words[1:]]) == 0
    assert capsys.readouterr().out == ""
    assert not Path(f"{finished.path}-timm").exists()


def test_memory_is_shared_by_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = free_memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert free_memory() < whole / 100


def test_images_are_sent_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one process sends in order, the other receives in order: its part, and no more."""
    store, sent = open_images(make_shapes(7, colour=True)), []
    monkeypatch.setattr(sharing, "PIECE", 2 * 16 * 16 * 3)
    monkeypatch.setattr(processes, "helpers", lambda: 2)
    monkeypatch.setattr(processes, "world", lambda: 2)
    monkeypatch.setattr(processes, "tell", sent.append)
    monkeypatch.setattr(processes, "send", lambda tensor, to: sent.append(tensor))
    images = sharing.send_fit(store, Config(clusters=5))
    assert np.array_equal(images.mine.pixels, store.pixels[:3])
    assert len(sent) == 2 + 2
    monkeypatch.setattr(processes, "rank", lambda: 1)
    monkeypatch.setattr(processes, "tell", lambda message: sent.pop(0) if sent else b"")
    monkeypatch.setattr(processes, "receive", lambda piece, sender: piece.copy_(sent.pop(0)))
    received: list[tuple[sharing.Images, Config]] = []
    sharing.help_with(lambda *fit: received.append(fit))
    ((theirs, config),) = received
    assert np.array_equal(theirs.mine.pixels, store.pixels[3:])
    assert theirs.n == 7 and theirs.mine.size == store.size and config == Config(clusters=5)
    assert theirs.measured == images.measured and theirs.labels is None


def test_one_gpu_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "helpers", lambda: 2)
    with pytest.raises(ConfigError, match="--device cuda, and each takes"):
        sharing.send_fit(open_images(make_shapes(7)), Config(device="cuda:0"))


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_fewer_gpus_than_processes_are_refused(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "helpers", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="1 GPU for 2 processes: say --nproc-per-node 1"):
        sharing.refuse_one_gpu(device)
    sharing.refuse_one_gpu("cpu")
