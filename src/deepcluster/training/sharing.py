"""What the first process of a launcher gives the others to do, and the images for it.

The others neither look for the source nor decode it, so they cannot see another one. Each gets the
stretch of the decoded images that it works on, and settings or a net.
"""

from __future__ import annotations

import dataclasses
import json
import math
import mmap
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster import processes
from deepcluster.backbones.build import CUSTOM
from deepcluster.backbones.features import extract, load_net
from deepcluster.backbones.preprocessing import Preprocessing
from deepcluster.config import Config, DataSettings, flatten, override
from deepcluster.device import Compute
from deepcluster.errors import ConfigError
from deepcluster.images.sinks import FileSink, MemorySink, free_memory
from deepcluster.images.sources import pixels_folder
from deepcluster.images.store import ImageStore
from deepcluster.progress import counted

PIECE = 2**26  # bytes of images that are sent at a time
NET = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class Images:
    """The images of a fit, of which this process holds its share.

    Attributes:
        mine: those that are here, a stretch of all; without names and labels where there are more.
        n: images in all.
        measured: what lies between pixels and a net that begins from scratch.
        labels: ``(n,)`` of all, for measuring only; of the first process.
    """

    mine: ImageStore
    n: int
    measured: Preprocessing
    labels: np.ndarray | None = None

    @classmethod
    def whole(cls, store: ImageStore) -> Images:
        """All of them are here."""
        return cls(store, len(store), Preprocessing.measure(store), store.labels)


def stored(data: DataSettings) -> DataSettings:
    """How images are to be decoded: those of several processes into a file, not into memory.

    Each then takes its stretch of them into its own memory, the first process, too.
    """
    return data if processes.helpers() == 1 else dataclasses.replace(data, memory_gb=0.0)


def send_fit(store: ImageStore, config: Config) -> Images:
    """Tell the other processes, if there are any, what to fit; what is left to this one.

    Raises:
        ConfigError: there are fewer images than processes, or all would use one GPU.
    """
    images = Images.whole(store)
    if processes.helpers() == 1:
        return images
    refuse_one_gpu(config.device)
    settings = flatten(dataclasses.asdict(config))
    _tell("fit", config=settings, measured=dataclasses.asdict(images.measured))
    return dataclasses.replace(images, mine=_send_images(store))


def features_of_all(
    net: nn.Module,
    store: ImageStore,
    preprocessing: Preprocessing,
    compute: Compute,
    *,
    save: Callable[[Path], None] | None,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """As :func:`deepcluster.backbones.features.extract`; each process sees its share of the images.

    Args:
        net: on its device.
        store: the images.
        preprocessing: crop and normalisation.
        compute: device, arithmetic and batch.
        save: writes the net into a folder, from which the others read it; None: it cannot be.
        advance: called with the number of images done since the last call.

    Raises:
        ConfigError: all processes would use one GPU.
    """
    files = None if save is None or processes.helpers() == 1 else _net_files(save)
    if files is None or len(store) < processes.helpers():
        return extract(net, store, preprocessing, compute, advance=advance)
    refuse_one_gpu(str(compute.device))
    how = {"device": compute.device.type, "dtype": str(compute.dtype).removeprefix("torch.")}
    _tell("features", **how, batch_size=compute.batch_size)
    for content in files:
        processes.tell(content)
    mine = _send_images(store)
    with processes.training():
        found = extract(net, mine, preprocessing, compute, advance=advance)
        return processes.collect(found, len(store))


def help_with(fit: Callable[[Images, Config], Any]) -> None:
    """Do what the first process asks for, until it needs no other any more.

    Args:
        fit: trains along.
    """
    while message := processes.tell(b""):
        told = json.loads(message)
        if told.pop("task") == "fit":
            measured = told["measured"]
            own = Preprocessing(**{k: _tuple(v) for k, v in measured.items()})
            mine, n = _receive_images()
            fit(Images(mine, n, own), override(Config(), told["config"]))
            continue
        with tempfile.TemporaryDirectory() as folder:
            for name in NET:
                (Path(folder) / name).write_bytes(processes.tell(b""))
            net, preprocessing, _ = load_net(Path(folder))
        dtype = getattr(torch, told["dtype"])
        compute = Compute(torch.device(told["device"]), dtype, told["batch_size"])
        mine, n = _receive_images()
        with processes.training():
            found = extract(net.to(compute.device), mine, preprocessing, compute)
            processes.collect(found, n)


def _tell(task: str, **facts: Any) -> None:
    processes.tell(json.dumps({"task": task, **facts}).encode())


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def refuse_one_gpu(device: str) -> None:
    """Refuse to put several processes on one GPU.

    Args:
        device: as it was asked for.

    Raises:
        ConfigError: it is so.
    """
    if processes.helpers() == 1:
        return
    if device.startswith("cuda:"):
        raise ConfigError(
            f"device {device!r} is one GPU for {processes.helpers()} processes: say --device cuda, "
            "and each takes the one of its number"
        )
    here, there = int(os.environ.get("LOCAL_WORLD_SIZE") or 1), torch.cuda.device_count()
    if device in ("auto", "cuda") and torch.cuda.is_available() and here > there:
        raise ConfigError(
            f"{counted(there, 'GPU')} for {here} processes: say --nproc-per-node {there}, or "
            "--device cpu"
        )


def _net_files(save: Callable[[Path], None]) -> list[bytes] | None:
    """What a net is read from; None for a module of the user's own."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        files = [(Path(folder) / name).read_bytes() for name in NET]
    return None if json.loads(files[0])["architecture"] == CUSTOM else files


# -- images -------------------------------------------------------------------------------------


def _send_images(store: ImageStore) -> ImageStore:
    """Send each other process its stretch of the images; this one's own is returned."""
    pixels, whole = store.pixels, store.pixels.shape
    with processes.training():
        shares = processes.shares(len(store))
    processes.tell(json.dumps({"size": store.size, "shape": whole}).encode())
    for number, rows in enumerate(shares[1:], start=1):
        for some in _pieces(rows, whole):
            processes.send(torch.from_numpy(np.array(pixels[some])), number)
            _forget(pixels)
    rows = shares[0]
    own = _room(rows.stop - rows.start, whole)
    for some in _pieces(rows, whole):
        own.append(list(pixels[some]))
        _forget(pixels)
    return _part(own.finish()[0], store.size)


def _receive_images() -> tuple[ImageStore, int]:
    """This process's stretch of the images, and how many there are in all."""
    told = json.loads(processes.tell(b""))
    whole = tuple(told["shape"])
    with processes.training():
        rows = processes.share(whole[0])
    own = _room(rows.stop - rows.start, whole)
    for some in _pieces(rows, whole):
        pixels = torch.empty(some.stop - some.start, *whole[1:], dtype=torch.uint8)
        own.append(list(processes.receive(pixels, 0).numpy()))
    return _part(own.finish()[0], told["size"]), whole[0]


def _room(count: int, whole: tuple[int, ...]) -> MemorySink | FileSink:
    """Where some of the images go: memory if they fit there, else an unnamed file."""
    side, channels = whole[1], whole[3]
    sink: MemorySink | FileSink
    if count * math.prod(whole[1:]) <= free_memory() / 3:
        sink = MemorySink(count, side)
    else:
        sink = FileSink(pixels_folder(), side)
    if channels == 3:
        sink.widen()
    return sink


def _part(pixels: Any, size: int) -> ImageStore:
    """A store of images whose names only the first process knows."""
    return ImageStore("", pixels, size, [str(i) for i in range(len(pixels))], [None] * len(pixels))


def _pieces(rows: slice, whole: tuple[int, ...]) -> list[slice]:
    """Stretches of rows that are sent at a time."""
    step = max(1, PIECE // math.prod(whole[1:]))
    starts = range(rows.start, rows.stop, step)
    return [slice(start, min(rows.stop, start + step)) for start in starts]


def _forget(pixels: np.ndarray) -> None:
    """Give back the memory of pages of a mapped file, which can be read again."""
    base: Any = pixels
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)
