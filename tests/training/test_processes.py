"""Two processes, as torchrun starts them, come to what one comes to."""

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

from deepcluster import processes
from deepcluster.cli import run_app
from deepcluster.config import Config
from deepcluster.errors import RunError
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
DIES = """
import os, signal
from deepcluster import __main__
from deepcluster.training.step import Step

step, done = Step.__call__, []

def killed(self, index):
    done.append(index)
    if len(done) == 10:  # in the third epoch
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, index)

Step.__call__ = killed
__main__.main()
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def start(commands: Sequence[Sequence[str]]) -> list[Ended]:
    """Start a process for each command, as torchrun does, and wait until all have ended."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, **shared, "WORLD_SIZE": str(len(commands)), "RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, words in enumerate(commands)
    ]  # fmt: skip
    said = [process.communicate() for process in started]
    return [Ended(p.returncode, *texts) for p, texts in zip(started, said, strict=True)]


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
def test_two_processes_compute_what_one_does() -> None:
    methods = ["contrastive-clusters", "deepcluster", "deepcluster-v2"]
    for ended in start([[str(TOGETHER), *methods]] * 2):
        assert ended.code == 0, ended.err


@pytest.mark.slow
def test_a_fit_of_two_processes_is_that_of_one(source: Path, alone: RunDir, tmp_path: Path) -> None:
    """Though only the first one sees the images."""
    nowhere = tmp_path / "nowhere"
    words = [fit_words(source, tmp_path / "run"), fit_words(nowhere, nowhere)]
    first, second = start(words)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "run folder: " in first.out
    assert "epoch" in first.err
    assert second.out == second.err == ""
    assert not nowhere.exists()
    check_the_same(RunDir.open(tmp_path / "run"), alone)


@pytest.mark.slow
def test_when_one_is_killed_the_other_stops_and_three_go_on(
    source: Path, alone: RunDir, tmp_path: Path
) -> None:
    words = fit_words(source, tmp_path / "run")
    first, second = start([words, ["-c", DIES, *words[2:]]])
    assert second.code == -signal.SIGKILL
    assert first.code == 1
    assert "another process of this fit has ended" in first.err and "--resume" in first.err
    run = RunDir.open(tmp_path / "run", finished=False)
    assert run.read_info()["status"] == "failed"
    assert [line["epoch"] for line in run.read_metrics()] == [0, 1]
    assert [ended.code for ended in start([[*words, "--resume"]] * 3)] == [0, 0, 0]
    assert "another process" in run.log.read_text()  # the only file that says so
    check_the_same(run, alone)


@pytest.mark.slow
def test_when_the_first_has_nothing_to_do_the_other_stops(tmp_path: Path) -> None:
    first, second = start([fit_words(tmp_path / "nowhere", tmp_path / "run")] * 2)
    assert first.code == 2 and "there is no file or folder" in first.err
    assert second.code == 1 and "another process of this fit has ended" in second.err


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


def test_memory_is_shared_by_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = free_memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert free_memory() < whole / 100


def test_images_are_sent_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one process sends in order, the other receives in order."""
    store, sent = open_images(make_shapes(7, colour=True)), []
    monkeypatch.setattr(sharing, "PIECE", 2 * 16 * 16 * 3)
    monkeypatch.setattr(processes, "helpers", lambda: 2)
    monkeypatch.setattr(processes, "tell", sent.append)
    monkeypatch.setattr(processes, "equalise", sent.extend)
    sharing.send_fit(store, Config(clusters=5))
    assert len(sent) == 1 + 4

    def next_piece(tensors: list[torch.Tensor]) -> None:
        tensors[0].copy_(sent.pop(0))

    monkeypatch.setattr(processes, "tell", lambda message: sent.pop(0))
    monkeypatch.setattr(processes, "equalise", next_piece)
    received = sharing.receive_fit()
    assert received is not None
    assert np.array_equal(received[0].pixels, store.pixels)
    assert received[0].size == store.size and received[1] == Config(clusters=5)
