"""What the other processes of a launcher get from the first one, so that they can train along.

Settings and decoded images: the others neither look for the source nor decode it, so they cannot
see another one.
"""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import torch

from deepcluster import processes
from deepcluster.config import Config, flatten, override
from deepcluster.images.sinks import FileSink, MemorySink
from deepcluster.images.sources import cache_folder
from deepcluster.images.store import ImageStore

PIECE = 2**26  # bytes of images that are sent at a time


def send_fit(store: ImageStore, config: Config) -> None:
    """Tell the other processes, if there are any, what to fit."""
    if processes.helpers() == 1:
        return
    message = {
        "config": flatten(dataclasses.asdict(config)),
        "size": store.size,
        "shape": store.pixels.shape,
        "in_memory": not isinstance(store.pixels, np.memmap),
    }
    processes.tell(json.dumps(message).encode())
    for rows in _pieces(store.pixels.shape):
        processes.equalise([torch.from_numpy(np.array(store.pixels[rows]))])


def receive_fit() -> tuple[ImageStore, Config] | None:
    """What the first process sent: images, without ids or labels, and settings; None at the end."""
    message = processes.tell(b"")
    if not message:
        return None
    told = json.loads(message)
    n, side, _, channels = shape = tuple(told["shape"])
    sink: MemorySink | FileSink
    if told["in_memory"]:
        sink = MemorySink(n, side)
    else:
        folder = cache_folder() / "pixels"
        folder.mkdir(parents=True, exist_ok=True)
        sink = FileSink(folder, side)
    if channels == 3:
        sink.widen()
    for rows in _pieces(shape):
        pixels = torch.empty(rows.stop - rows.start, *shape[1:], dtype=torch.uint8)
        processes.equalise([pixels])
        sink.append(list(pixels.numpy()))
    ids = [str(i) for i in range(n)]
    store = ImageStore("", sink.finish()[0], told["size"], ids, [None] * n)
    return store, override(Config(), told["config"])


def _pieces(shape: tuple[int, ...]) -> list[slice]:
    """Stretches of rows that are sent at a time."""
    n, step = shape[0], max(1, PIECE // math.prod(shape[1:]))
    return [slice(start, min(n, start + step)) for start in range(0, n, step)]
