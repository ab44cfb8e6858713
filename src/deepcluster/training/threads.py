"""How many threads train on a processor that other programs use as well.

A thread that has done its part of a product waits for the others. Where one of them shares its core
with another program, all wait for that one, and two threads may be slower than one. So where the
load of the machine leaves fewer cores than there are threads, a few steps are timed with both
numbers, and the faster one is taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from deepcluster import processes
from deepcluster.config import Config
from deepcluster.device import pick_device
from deepcluster.images.sinks import free_cores
from deepcluster.progress import counted
from deepcluster.training.cost import estimate
from deepcluster.training.plan import TRIAL_SIDE
from deepcluster.training.resolve import resolve

CHOSEN_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
TRIALS = 2  # of each number of threads, in turns
PATIENCE = 0.3  # seconds of steps in a trial


@contextlib.contextmanager
def own_threads() -> Iterator[None]:
    """Torch has as many threads afterwards as it had before."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def settle_threads(config: Config, *, timed: bool) -> tuple[Config, str]:
    """Train with the threads that are asked for, or with fewer where these are faster.

    A number that the environment or the caller of torch has chosen stays.

    Args:
        config: settings as asked for.
        timed: whether the plan asks the clock anyway; where it does not, the number stays as well,
            since other threads may give other bits.

    Returns:
        The settings, with the number of threads where that is not torch's own; and a sentence, if
        the machine is busy.

    Raises:
        ConfigError: threads are asked for in one of several processes.
    """
    threads = config.train.threads
    if threads != "auto":
        if processes.helpers() > 1:  # it may have been chosen by a run that one process began
            return config, f"train.threads = {threads} is for one process; several have their own"
        torch.set_num_threads(threads)
        return config, ""
    usual, cores, load = torch.get_num_threads(), free_cores(), _load()
    fewer = max(1, min(cores, round((os.cpu_count() or cores) - load)))
    if fewer >= usual or processes.helpers() > 1 or pick_device(config.device).type != "cpu":
        return config, ""
    if any(os.environ.get(name) for name in CHOSEN_BY) or usual not in (cores, _whole_cores()):
        return config, ""
    busy = f"the machine is busy (load {load:.1f} on {counted(cores, 'core')})"
    if not timed:
        return config, f"{busy}: train.threads = {fewer} may be faster"
    if not _are_faster(fewer, usual):
        return config, f"{busy}: {counted(usual, 'thread')}, still faster than {fewer}"
    torch.set_num_threads(fewer)
    train = dataclasses.replace(config.train, threads=fewer)
    return dataclasses.replace(config, train=train), f"{busy}: {counted(fewer, 'thread')}"


def _load() -> float:
    """Programs that compute or wait for a core, in the last minute; 0 where that is not known."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _whole_cores() -> int:
    """Cores, of which each may count as two; 0 where that is not known."""
    where = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    return len({path.read_text(encoding="ascii") for path in where})


def _are_faster(fewer: int, usual: int) -> bool:
    """Whether steps of a small net take no longer with fewer threads; the usual ones stay set."""
    config = dataclasses.replace(
        Config(), device="cpu", clusters=10, epochs=1, size=TRIAL_SIDE, backbone="convnet_tiny"
    )
    n = 64  # a batch
    trial = resolve(config, n=n, size=TRIAL_SIDE, channels=3)

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        return estimate(trial, n=n, channels=3, store_bytes=0, patience=PATIENCE).epoch

    timed = [(seconds(fewer), seconds(usual)) for _ in range(TRIALS)]
    return min(few for few, _ in timed) <= min(many for _, many in timed)
