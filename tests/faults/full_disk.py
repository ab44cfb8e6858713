"""A disk that becomes full at each file of a fit: then there is room again, and the fit goes on.

``python tests/faults/full_disk.py [MOMENTS]``: from one of the files on that a fit opens to write,
the system says that there is no space left, and goes on saying so until the command ends, as a disk
does; at up to that many files (100), spread evenly. After each: no folder yet, or --resume goes on
and ends with the features of a fit that was never stopped.

``python tests/faults/full_disk.py EPOCHS FOLDER``, with a folder on a small disk of its own (a few
megabytes): another program fills it for real after each epoch in turn.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from kill import FLAGS, embeddings, make_source

from deepcluster.cli import run_app
from deepcluster.config import Config, override
from deepcluster.errors import RunError
from deepcluster.fitting import fit_source
from deepcluster.progress import Progress
from deepcluster.run import RunDir

SETTINGS = {"epochs": 3, "clusters": 3, "backbone": "convnet_tiny", "device": "cpu"}
SETTINGS |= {"train.batch_size": 32, "train.precision": "float32"}


class Disk:
    """Counts the files that are opened for writing; from one of them on there is no room."""

    def __init__(self, folder: Path, full_at: int | None) -> None:
        self.folder, self.full_at, self.opened = str(folder), full_at, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook of Python's: it sees each file that is opened."""
        if event != "open" or self.full_at is None:
            return
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        if writes and str(path).startswith(self.folder):
            self.opened += 1
            if self.opened >= self.full_at:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))


@contextmanager
def disk(folder: Path, full_at: int) -> Iterator[Disk]:
    """A disk that is full from the given write on, for a block."""
    hook = Disk(folder, full_at)
    sys.addaudithook(hook)  # stays for good, but does nothing once full_at is None
    try:
        yield hook
    finally:
        hook.full_at = None


class Fills(Progress):
    """Fills the disk of a folder once an epoch has ended."""

    def __init__(self, epoch: int, file: Path) -> None:
        self.at, self.file = epoch, file

    def epoch(self, line: dict[str, Any]) -> None:
        """Write until there is no room."""
        if line["epoch"] == self.at:
            try:
                with self.file.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))
            except OSError:
                pass


def check_one(source: Path, place: Path, whole: bytes) -> str:
    """What is left, and whether it goes on once there is room: a word, or what is wrong."""
    if not place.exists():
        return "no folder yet"
    try:
        status = RunDir.open(place, finished=False).read_info()["status"]
    except RunError as error:
        return f"WRONG: {error}"
    if run_app(["fit", str(source), "--out", str(place), "--resume"]):
        return f"WRONG: status {status}, --resume fails"
    if embeddings(place) != whole:
        return f"WRONG: status {status}, other features"
    run = RunDir(place)
    if not (run.report / "index.html").is_file() or run.foreign():
        return f"WRONG: status {status}, no report, or something is left behind"
    return f"went on from {status}"


def check_writes(folder: Path, moments: int) -> Counter[str]:
    """The disk is full from one write on, from the first to the last."""
    source = make_source(folder / "shapes.npy")
    command = ["fit", str(source), *FLAGS, "--out"]
    with disk(folder / "disk", 10**9) as counting:
        assert run_app([*command, str(folder / "disk" / "whole")]) == 0
    whole = embeddings(folder / "disk" / "whole")
    outcomes: Counter[str] = Counter()
    for moment in range(min(moments, counting.opened)):
        full_at = 1 + moment * counting.opened // min(moments, counting.opened)
        place = folder / "disk" / "run"
        with disk(folder / "disk", full_at):
            code = run_app([*command, str(place)])
        outcome = check_one(source, place, whole) if code else "over before"
        outcomes[outcome] += 1
        if "WRONG" in outcome:
            sys.stdout.write(f"full at write {full_at} of {counting.opened}: {outcome}\n")
        for left in (folder / "disk").glob("*run*"):
            shutil.rmtree(left)
    return outcomes


def check_small_disk(folder: Path, epochs: int) -> Counter[str]:
    """Another program fills the disk after each epoch in turn."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as elsewhere:
        source = make_source(Path(elsewhere) / "shapes.npy")
        config = override(Config(), {**SETTINGS, "epochs": epochs})
        fit_source(np.load(source), config, out=Path(elsewhere) / "whole")
        whole = embeddings(Path(elsewhere) / "whole")
        for epoch in range(epochs):
            place, filler = folder / "run", folder / "filler"
            try:
                fit_source(str(source), config, out=place, progress=Fills(epoch, filler))
                outcome = "over before"
            except OSError:
                filler.unlink(missing_ok=True)
                outcome = check_one(source, place, whole)
            filler.unlink(missing_ok=True)
            outcomes[outcome] += 1
            if "WRONG" in outcome:
                sys.stdout.write(f"full after epoch {epoch}: {outcome}\n")
            shutil.rmtree(place, ignore_errors=True)
    return outcomes


if __name__ == "__main__":
    moments = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    if len(sys.argv) > 2:
        found = check_small_disk(Path(sys.argv[2]), moments)
    else:
        with tempfile.TemporaryDirectory() as place:
            found = check_writes(Path(place), moments)
    for outcome, count in sorted(found.items()):
        sys.stdout.write(f"{count:4} {outcome}\n")
    sys.exit(any("WRONG" in outcome for outcome in found))
