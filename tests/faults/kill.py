"""A fit killed at many moments: each time it goes on, and ends with the same bits.

``python tests/faults/kill.py [MOMENTS]`` kills with each of the signals that this system has
(SIGKILL, SIGTERM, SIGINT, SIGHUP) at that many moments (100), spread evenly over a fit, half of the
fits in place of an older run. After each: there is no folder yet, or the fit goes on with --resume;
the features are those of a fit that was never stopped, pictures and report are there, an older run
is whole until then. Prints a line for each outcome that is another, and the counts. Exit 1 if any.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process would wait for ever for the others' threads

import numpy as np

from deepcluster.cli import main, run_app
from deepcluster.errors import RunError
from deepcluster.run import RunDir

SIGNALS = [
    getattr(signal, name)
    for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")
    if hasattr(signal, name)
]
FLAGS = ["--epochs", "3", "--clusters", "3", "--backbone", "convnet_tiny", "--device", "cpu"]
FLAGS += ["--train.batch-size", "32", "--train.precision", "float32"]


def make_source(path: Path) -> Path:
    """Sixty small images in an array."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import make_shapes

    np.save(path, make_shapes(60))
    return path


def run_forked(command: list[str], log: Path) -> int:
    """Begin a command line in a process of its own; its number.

    It is forked, with all libraries loaded, so that what happens to it falls on the fit.
    """
    child = os.fork()
    if child:
        return child
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["deepcluster", *command]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        main()
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    finally:
        os._exit(code)


def exit_code(child: int) -> int:
    """Wait for a process; minus the signal, if one has ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after(command: list[str], seconds: float, number: int, log: Path) -> int | None:
    """Run a command line and kill it; its exit code, None if it was over before."""
    child = run_forked(command, log)
    time.sleep(seconds)
    done, _ = os.waitpid(child, os.WNOHANG)
    if done:
        return None
    os.kill(child, number)
    return exit_code(child)


def embeddings(run: Path) -> bytes:
    """The features of a run, as bytes."""
    return np.asarray(RunDir(run).read_embeddings()).tobytes()


def check_one(source: Path, place: Path, old: Path | None, whole: bytes, log: Path) -> str:
    """What a killed fit has left, and whether it goes on to the same end: a word, or what is wrong.

    Args:
        source: the images.
        place: where the fit was to be.
        old: a copy of the run that it was to replace.
        whole: features of a fit that was never stopped.
        log: what the command says.
    """
    aside = place.with_name(f"{place.name}.replaced")
    if old is not None:
        kept = aside if aside.exists() else place
        ended = RunDir(place)._peek().get("status") == "done" and not aside.exists()
        if not ended and embeddings(kept) != embeddings(old):
            return "WRONG: the old run is gone before the new one is done"
        if not ended and kept == place:
            return "not begun, the old run is whole"
    if not place.exists() and not aside.exists():
        return "no folder yet"
    try:
        status = RunDir.open(place, finished=False).read_info()["status"]
    except RunError as error:
        return f"WRONG: {error}"
    command = ["fit", str(source), "--out", str(place), "--resume"]
    code = exit_code(run_forked(command, log))
    if code:
        return f"WRONG: status {status}, --resume exits {code}: {log.read_text()[-300:]}"
    run = RunDir.open(place)
    if embeddings(place) != whole:
        return f"WRONG: status {status}, other features"
    if not (run.pictures / "clusters.png").is_file() or not (run.report / "index.html").is_file():
        return f"WRONG: status {status}, no pictures or report"
    if run.foreign() or aside.exists() or (place / "fit.lock").exists():
        return f"WRONG: status {status}, something is left behind"
    return f"went on from {status}"


def check_all(folder: Path, moments: int, signals: list[int]) -> Counter[str]:
    """Kill and go on, and count what came of it."""
    source, log = make_source(folder / "shapes.npy"), folder / "log.txt"
    command = ["fit", str(source), *FLAGS, "--out"]
    assert run_app([*command, str(folder / "whole")]) == 0  # loads all libraries
    began = time.perf_counter()
    assert exit_code(run_forked([*command, str(folder / "timed")], log)) == 0
    length = time.perf_counter() - began
    whole = embeddings(folder / "whole")
    outcomes: Counter[str] = Counter()
    for number in signals:
        for moment in range(moments):
            place = folder / "killed"
            old = folder / "timed" if moment % 2 else None
            more = []
            if old is not None:
                shutil.copytree(old, place)
                more = ["--overwrite"]
            seconds = length * (moment + 0.5) / moments
            code = kill_after([*command, str(place), *more], seconds, number, log)
            name = signal.Signals(number).name
            outcome = "over before" if code is None else check_one(source, place, old, whole, log)
            if code is not None and number != signal.SIGKILL and code not in (0, 130, -number):
                outcome = f"WRONG: exit {code}: {log.read_text()[-300:]}"
            outcomes[f"{name}: {outcome}"] += 1
            if "WRONG" in outcome:
                sys.stdout.write(f"{name} at {seconds:.2f} s of {length:.2f}: {outcome}\n")
            for left in folder.glob("*killed*"):
                shutil.rmtree(left)
    return outcomes


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = check_all(Path(place), int(sys.argv[1]) if len(sys.argv) > 1 else 100, SIGNALS)
    for outcome, count in sorted(found.items()):
        sys.stdout.write(f"{count:4} {outcome}\n")
    sys.exit(any("WRONG" in outcome for outcome in found))
