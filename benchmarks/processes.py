r"""A fit by several processes: time, memory of each, and what they say to each other.

    python benchmarks/processes.py        # 1 process of 2 threads, 2 of 1 thread: needs 2 cores
    python benchmarks/processes.py --of 1x4 2x2 4x1 --images 200000 --size 32
    python benchmarks/processes.py --images 600 --epochs 2 --repeats 1      # to try it

Each row is one way to start the same fit (processes x threads) on images of noise, as torchrun
would start it; the ways take turns, and the median of the repeats counts. Seconds are of the steps
of an epoch (the first, which builds kernels, is left out where there are others) and of the whole
fit; memory is the peak of each process. Messages and bytes of a step are counted by one process
that only believes it has company. Writes benchmarks/results/processes.json.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch

from deepcluster import processes
from deepcluster.backbones.preprocessing import Batches, Preprocessing
from deepcluster.backbones.start import build_net
from deepcluster.config import Config
from deepcluster.images.store import ImageStore
from deepcluster.methods import load_method
from deepcluster.run import RunDir
from deepcluster.training.optimizers import build_optimizer
from deepcluster.training.step import Step


def fit(words: list[str], several: int, threads: int) -> list[int]:
    """Fit, and return the peak memory of each process in bytes."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(several)}
    shared |= {"LOCAL_WORLD_SIZE": str(several), "OMP_NUM_THREADS": str(threads)}
    started = []
    for rank in range(several):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "deepcluster", "fit", *words],
                env=os.environ | shared | own,
                stdout=subprocess.DEVNULL,
            )
        )
    peaks = []
    for process in started:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"a process ended with {process.returncode}: see above")
        peaks.append(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    return peaks


def traffic(config: Config, several: int) -> dict[str, int]:
    """Messages and their bytes in one step of one of several processes."""
    assert isinstance(config.size, int) and isinstance(config.train.batch_size, int)
    batch, side = config.train.batch_size, round(config.size * config.data.margin)
    pixels = np.zeros((batch, side, side, 1 if config.data.channels == "grey" else 3), np.uint8)
    names = [str(i) for i in range(batch)]
    store = ImageStore("", pixels, config.size, names, [None] * batch)
    method = load_method(config.method)(config, build_net(config, store.channels), batch)
    method.train()  # type: ignore[attr-defined]
    optimizer = build_optimizer(method.groups(), config.train)
    images = Batches(store, torch.device("cpu"))
    step = Step(method, optimizer, config, Preprocessing.measure(store), images)
    step.begin(0)
    sizes: list[int] = []
    before = processes.world, processes.rank, processes._add_up
    processes.world, processes.rank = lambda: several, lambda: 0
    processes._add_up = lambda tensor: sizes.append(tensor.nbytes)
    try:
        step(torch.arange(batch))
    finally:
        processes.world, processes.rank, processes._add_up = before
    return {"messages": len(sizes), "bytes": sum(sizes)}


def main() -> None:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", nargs="+", default=["1x2", "2x1"], help="processes x threads")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--backbone", default="convnet_small")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=record.RESULTS / "processes.json")
    options = parser.parse_args()
    ways = [tuple(map(int, way.split("x"))) for way in options.of]
    found: dict[tuple[int, ...], list[dict[str, Any]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "noise.npy"
        shape = (options.images, options.size, options.size)
        np.save(source, np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8))
        flags = {
            "size": options.size, "backbone": options.backbone, "epochs": options.epochs,
            "clusters": 10, "train.batch-size": options.batch, "train.precision": "float32",
            "device": "cpu",
        }  # fmt: skip
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        for repeat in range(options.repeats):
            for several, threads in ways:
                out = Path(folder) / f"{several}x{threads}-{repeat}"
                peaks = fit(
                    [str(source), "--out", str(out), "--no-report", *words], several, threads
                )
                run = RunDir.open(out)
                epochs = [line["seconds"]["train"] for line in run.read_metrics()]
                found[several, threads].append(
                    {
                        "epoch": statistics.median(epochs[1:] or epochs),
                        "fit": run.read_info()["seconds"],
                        "memory": peaks,
                    }
                )
        config = run.read_config()
    rows = []
    for (several, threads), repeats in found.items():
        row: dict[str, Any] = {"processes": several, "threads": threads}
        for name in ("epoch", "fit"):
            row[name] = round(statistics.median(one[name] for one in repeats), 3)
        row["memory"] = max(max(one["memory"] for one in repeats))
        row |= {"messages": 0, "bytes": 0} if several == 1 else traffic(config, several)
        rows.append(row)
        print(json.dumps(row))
    record.write(
        options.out,
        {
            "rows": rows,
            "settings": vars(options) | {"out": options.out.name},
            **record.circumstances(),
        },
    )


if __name__ == "__main__":
    main()
