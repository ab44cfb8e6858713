"""Time of decoding a folder, and of reading a store that does not fit in memory.

    python benchmarks/decoding.py decode PHOTOS/ --write  # one worker and two, in turns
    python benchmarks/decoding.py read --write  # a file of 200,000 images

``read`` writes noise into the cache folder, maps it as the store of images that do not fit does,
and takes a tenth of it in batches at random, as steps do, and in order, as features are worked out:
right after the system was asked to forget the file, and again. Beside it an array in memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import record

from deepcluster.config import DataSettings
from deepcluster.images.sinks import read_ahead
from deepcluster.images.sources import pixels_folder
from deepcluster.images.store import open_images

BATCH = 256


def decode(source: Path, size: int, turns: int) -> dict[str, Any]:
    """Seconds by the clock and of the processor, with one worker and with two."""
    seconds: dict[str, list[float]] = {"1": [], "2": []}
    processor: dict[str, list[float]] = {"1": [], "2": []}
    for turn in range(turns + 1):
        for workers in (1, 2):
            began, used = time.perf_counter(), time.process_time()
            store = open_images(source, size=size, data=DataSettings(workers=workers))
            if turn:  # the first reads the files into memory
                seconds[str(workers)].append(round(time.perf_counter() - began, 4))
                processor[str(workers)].append(round(time.process_time() - used, 4))
    one, two = (statistics.median(seconds[each]) for each in ("1", "2"))
    used = statistics.median(processor["1"])
    print(f"{len(store)} images at {size} px: {1000 * used / len(store):.3f} ms of processor each")
    print(f"by the clock {one:.2f} s, {two:.2f} s with a second worker: {one / two:.2f} times")
    return {"images": len(store), "size": size, "seconds": seconds, "processor": processor}


def read(images: int, size: int) -> dict[str, Any]:
    """Images a second, of a file and of memory."""
    rng = np.random.default_rng(0)
    noise = rng.integers(256, size=(1024, size, size, 3), dtype=np.uint8)
    shape = (images, *noise.shape[1:])
    several = images // 10 // BATCH  # batches that are read
    order = rng.permutation(images)[: several * BATCH].reshape(several, BATCH)
    rows = np.arange(several * BATCH).reshape(several, BATCH)
    found: dict[str, int] = {}

    def speed(name: str, pixels: np.ndarray, batches: np.ndarray) -> None:
        began = time.perf_counter()
        for batch in batches:
            read_ahead(pixels, batch)
            np.asarray(pixels[batch])
        found[name] = round(batches.size / (time.perf_counter() - began))
        print(f"{name}: {found[name]:,} images a second", flush=True)

    with tempfile.TemporaryFile(dir=pixels_folder()) as file:
        for start in range(0, images, len(noise)):
            file.write(noise[: images - start].data)
        file.flush()
        os.fsync(file.fileno())
        for name, batches in (("at random", order), ("in order", rows)):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            pixels = np.memmap(file, np.uint8, "c", shape=shape)  # as a store of files has it
            speed(f"file, {name}", pixels, batches)
            speed(f"file, {name}, again", pixels, batches)
            del pixels  # pages that are mapped are not forgotten
    memory = np.resize(noise, (several * BATCH, *noise.shape[1:]))
    speed("memory, at random", memory, rng.permutation(several * BATCH).reshape(several, BATCH))
    return {"images": images, "size": size, "images_a_second": found}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    tasks = parser.add_subparsers(required=True, dest="task")
    for name in ("decode", "read"):
        task = tasks.add_parser(name)
        task.add_argument("--size", type=int, default=96)
        task.add_argument("--write", action="store_true", help="to benchmarks/results/")
        if name == "decode":
            task.add_argument("source", type=Path, help="folder of images")
            task.add_argument("--turns", type=int, default=7)
        else:
            task.add_argument("--images", type=int, default=200_000)
    args = parser.parse_args()
    if args.task == "decode":
        found = decode(args.source, args.size, args.turns)
    else:
        found = read(args.images, args.size)
    if args.write:
        record.write(record.RESULTS / f"{args.task}.json", found | record.circumstances())


if __name__ == "__main__":
    main()
