"""Features of a frozen net: images a second of `extract`, against loops written by hand.

    python benchmarks/frozen.py --backbone local-dir:FOLDER --size 224
    python benchmarks/frozen.py --backbone resnet18.a1_in1k --size 96 --images 512 --threads 1
    python benchmarks/tables.py    # then write docs/benchmarks.md anew

The hand-written loops are the plain one (as timm builds the net) and those a person who knows the
machine would write: channels-last, bfloat16, both, each with small and large batches. Images are
random pixels that lie in memory; every loop reads, normalises and keeps the features. Each is timed
three times in turn, on a processor by its seconds and not the clock's; the best counts.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import record
import torch
from torch import Tensor, nn

from deepcluster.backbones.features import extract, find_speed
from deepcluster.backbones.preprocessing import Preprocessing
from deepcluster.backbones.start import find_weights
from deepcluster.device import Compute, pick_device
from deepcluster.images.store import ImageStore


def by_hand(
    net: nn.Module,
    pixels: np.ndarray,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    dtype: torch.dtype,
    layout: torch.memory_format,
    batch: int,
) -> Tensor:
    """The loop of a script that somebody writes for this net and this machine."""
    mean = torch.tensor(preprocessing.mean, device=device).view(1, -1, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=device).view(1, -1, 1, 1) * 255
    net.to(device, memory_format=layout)
    found = []
    with torch.inference_mode(), torch.autocast(device.type, dtype, dtype != torch.float32):
        for start in range(0, len(pixels), batch):
            images = torch.from_numpy(pixels[start : start + batch]).to(device).permute(0, 3, 1, 2)
            images = ((images.float() - mean) / std).contiguous(memory_format=layout)
            found.append(net(images).float().cpu())
    return torch.cat(found)


def main() -> None:
    """Time all loops and print images a second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--plain", action="store_true", help="also as timm builds the net")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    weights = find_weights(asked.backbone)
    if weights is None:
        raise SystemExit(f"no weights for {asked.backbone}")
    net = weights.fetch().build(asked.size)
    device = pick_device(asked.device)
    preprocessing = Preprocessing(asked.size, weights.mean, weights.std, asked.size)
    shape = (asked.images, asked.size, asked.size, weights.channels)
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    names = [str(i) for i in range(asked.images)]
    store = ImageStore("random", pixels, asked.size, names, [None] * asked.images)
    speed = find_speed(net, channels=weights.channels, size=asked.size, device=device)

    loops: dict[str, Callable[[], Tensor]] = {
        "extract": lambda: extract(
            net,
            store,
            preprocessing,
            Compute(device, speed.dtype, speed.batch_size),
        )
    }
    layouts = [torch.channels_last] + [torch.contiguous_format] * asked.plain
    for layout, dtype, batch in itertools.product(
        layouts, (torch.bfloat16, torch.float32), (16, 64, 256)
    ):
        name = f"by hand: {layout}, {dtype}, batches of {batch}".replace("torch.", "")
        loops[name] = lambda layout=layout, dtype=dtype, batch=batch: by_hand(  # type: ignore[misc]
            net,
            pixels,
            preprocessing,
            device=device,
            dtype=dtype,
            layout=layout,
            batch=batch,
        )
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    took = dict.fromkeys(loops, float("inf"))
    for _ in range(3):
        for name, loop in loops.items():
            began = clock()
            loop()
            took[name] = min(took[name], clock() - began)
    best = min(seconds for name, seconds in took.items() if name != "extract")
    facts = {"backbone": Path(asked.backbone).name, "size": asked.size, "images": asked.images}
    speeds = {name: round(asked.images / seconds, 2) for name, seconds in took.items()}
    line = {**facts, "images_per_second": speeds, **record.circumstances(device.type)}
    name = f"frozen-{facts['backbone']}-{asked.size}-{device.type}-{torch.get_num_threads()}.json"
    record.write(record.RESULTS / name, line)
    for name, seconds in sorted(took.items(), key=lambda item: item[1]):
        print(f"{asked.images / seconds:8.1f} images/s  {best / seconds:.2f}  {name}")


if __name__ == "__main__":
    main()
