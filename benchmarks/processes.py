r"""A fit by several processes: time, memory of each, and what they say to each other.

    python benchmarks/processes.py        # 1 process of 2 threads, 2 of 1 thread: needs 2 cores
    python benchmarks/processes.py --of 1x4 2x2 4x1 --images 200000 --size 32
    python benchmarks/processes.py --images 600 --epochs 2 --repeats 1      # to try it
    python benchmarks/processes.py --memory --of 1x1 2x1 4x1 --images 200000 --size 32 \
        --backbone convnet_tiny --batch 64                   # takes no time of its own seriously

Each row is one way to start the same fit (processes x threads) on images of noise, as torchrun
would start it; the ways take turns, and the median of the repeats counts. Seconds are of the steps
of an epoch (the first, which builds kernels, is left out where there are others) and of the whole
fit. Messages and bytes of a step are counted by one process that only believes it has company.
Writes benchmarks/results/processes.json, with --memory processes-memory.json: the private memory of
each process before it has images, and how much more it is at its peak, in two epochs of a few steps
with a cut of all images between them, and with the features of all at the end; and of the same with
half as many images. Private memory is what no file is mapped to: the libraries, 400 MB of which lie
in memory once for all processes of a machine, are left out. What is freed goes back to the system
at once, so that a peak is of what is held.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch._dynamo  # as several processes do before they join: so one has as much to begin with

from deepcluster import processes
from deepcluster.backbones.preprocessing import Batches, Preprocessing
from deepcluster.backbones.start import build_net
from deepcluster.config import Config, DataSettings, override
from deepcluster.images.store import ImageStore, open_images
from deepcluster.methods import load_method
from deepcluster.methods.contrastive_clusters import ContrastiveClusters
from deepcluster.progress import Progress
from deepcluster.run import RunDir
from deepcluster.training.conclude import Clock
from deepcluster.training.loop import train
from deepcluster.training.optimizers import build_optimizer
from deepcluster.training.resolve import resolve
from deepcluster.training.sharing import help_with, send_fit, stored
from deepcluster.training.step import Step

STEPS = 10  # of an epoch whose memory is measured


def start(words: list[str], several: int, threads: int, **more: str) -> list[str]:
    """Start Python with these words in several processes; what each says."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(several)}
    shared |= {"LOCAL_WORLD_SIZE": str(several), "OMP_NUM_THREADS": str(threads), **more}
    started = []
    for rank in range(several):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(
            subprocess.Popen(
                [sys.executable, *words],
                env=os.environ | shared | own,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate()[0] for process in started]
    for process in started:
        if process.returncode:
            raise RuntimeError(f"a process ended with {process.returncode}: see above")
    return said


def probe(source: Path, options: argparse.Namespace) -> None:
    """One of several processes: a few steps, a cut, features; says its memory in bytes.

    That is what it had before there were images, and how much more at its peak.
    """
    order = ContrastiveClusters.order

    def few(method: ContrastiveClusters, generator: torch.Generator) -> torch.Tensor:
        method.bank.normal_()  # as after an epoch of all images
        return order(method, generator)[: STEPS * options.batch]

    ContrastiveClusters.order = few  # type: ignore[method-assign]
    with processes.joined():
        before = memory_now()["RssAnon"]
        if processes.first():
            store = open_images(source, data=stored(DataSettings()), size=options.size)
            asked = {"backbone": options.backbone, "clusters": 10, "epochs": 2, "device": "cpu"}
            asked |= {"train.batch_size": options.batch, "train.precision": "float32"}
            asked |= {"contrastive_clusters.label_from": 0.5}
            config = resolve(override(Config(), asked), n=len(store), size=store.size, channels=1)
            train(send_fit(store, config), config, progress=Progress(), clock=Clock())
        else:
            help_with(lambda *given: train(*given, progress=Progress(), clock=Clock()))
    after = memory_now()
    print(before, after["VmHWM"] - after["RssFile"] - before)


def memory_now() -> dict[str, int]:
    """What the system says of this process's memory, in bytes."""
    told = re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/self/status").read_text())
    return {name: 1024 * int(value) for name, value in told}


def memory(ways: list[tuple[int, ...]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The memory of each process, with all images and with half of them."""
    rows = []
    glibc = {"MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_TRIM_THRESHOLD_": str(2**17)}
    for several, threads in ways:
        row: dict[str, Any] = {"processes": several, "threads": threads}
        with tempfile.TemporaryDirectory() as folder:
            for name, images in (("peak", options.images), ("half", options.images // 2)):
                source = Path(folder) / f"{images}.npy"
                np.save(source, noise(images, options.size))
                words = [__file__, "--probe", str(source), "--size", str(options.size)]
                words += ["--backbone", options.backbone, "--batch", str(options.batch)]
                said = start(words, several, threads, **glibc)
                before, row[name] = zip(*(map(int, line.split()) for line in said), strict=True)
                row["before"] = max(before)
        rows.append(row)
        print(json.dumps(row))
    return rows


def noise(images: int, size: int) -> np.ndarray:
    """Images of noise, ``(n, s, s)`` uint8."""
    return np.random.default_rng(0).integers(256, size=(images, size, size), dtype=np.uint8)


def traffic(config: Config, several: int) -> dict[str, int]:
    """Messages and their bytes in one step of one of several processes."""
    sizes = messages(config, several)
    return {"messages": len(sizes), "bytes": sum(sizes)}


def messages(config: Config, several: int) -> list[int]:
    """The bytes of each message in one step of one of several processes."""
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

    def trade(rows: torch.Tensor, sent: list[int], come: list[int]) -> torch.Tensor:
        found = rows.new_zeros(sum(come), *rows.shape[1:])
        sizes.append(found[come[0] :].nbytes)  # what comes from others
        return found

    before = processes.world, processes.rank, processes._add_up, processes._trade
    processes.world, processes.rank = lambda: several, lambda: 0
    processes._add_up = lambda tensor: sizes.append(tensor.nbytes)
    processes._trade = trade
    try:
        step(torch.randperm(batch, generator=torch.Generator().manual_seed(0)))
    finally:
        processes.world, processes.rank, processes._add_up, processes._trade = before
    return sizes


def main() -> None:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", nargs="+", default=["1x2", "2x1"], help="processes x threads")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--backbone", default="convnet_small")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure memory, not time")
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.probe:
        return probe(options.probe, options)
    ways = [tuple(map(int, way.split("x"))) for way in options.of]
    kind = "processes-memory" if options.memory else "processes"
    out = options.out or record.RESULTS / f"{kind}.json"
    settings = {"images": options.images, "size": options.size, "backbone": options.backbone}
    settings |= {"batch": options.batch}
    if options.memory:
        rows = memory(ways, options)
        record.write(out, {"rows": rows, **settings, **record.circumstances()})
        return
    found: dict[tuple[int, ...], list[dict[str, Any]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "noise.npy"
        np.save(source, noise(options.images, options.size))
        flags = {
            "size": options.size, "backbone": options.backbone, "epochs": options.epochs,
            "clusters": 10, "train.batch-size": options.batch, "train.precision": "float32",
            "device": "cpu",
        }  # fmt: skip
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        for repeat in range(options.repeats):
            for several, threads in ways:
                target = Path(folder) / f"{several}x{threads}-{repeat}"
                command = ["-m", "deepcluster", "fit", str(source), "--out", str(target)]
                start([*command, "--no-report", *words], several, threads)
                run = RunDir.open(target)
                epochs = [line["seconds"]["train"] for line in run.read_metrics()]
                found[several, threads].append(
                    {
                        "epoch": statistics.median(epochs[1:] or epochs),
                        "fit": run.read_info()["seconds"],
                    }
                )
        config = run.read_config()
    rows = []
    for (several, threads), repeats in found.items():
        row: dict[str, Any] = {"processes": several, "threads": threads}
        for name in ("epoch", "fit"):
            row[name] = round(statistics.median(one[name] for one in repeats), 3)
        row |= {"messages": 0, "bytes": 0} if several == 1 else traffic(config, several)
        rows.append(row)
        print(json.dumps(row))
    settings |= {"epochs": options.epochs, "repeats": options.repeats}
    record.write(out, {"rows": rows, **settings, **record.circumstances()})


if __name__ == "__main__":
    main()
