"""Time of the views of a batch: ours, batched, against torchvision's, one image after the other.

Torchvision's are made here, and by a DataLoader of two workers, which is how they are used; all
take turns. Run: ``python benchmarks/views.py --write`` (options: ``--device cuda``, ``--size 224``,
``--batch 64``, ``--threads 1``).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import record
import torch
import torchvision.transforms.v2 as tv
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deepcluster.config import ViewSettings
from deepcluster.training.views import Views, resolve_views

WORKERS = 2
BATCHES = 12  # of the loader in a turn, and none between: it makes them ahead


def torchvision_views(settings: ViewSettings, size: int) -> Callable[[Tensor], Tensor]:
    """The same views as a torchvision pipeline for one image."""
    ratio = float(settings.crop_ratio)
    steps: list[torch.nn.Module] = [
        tv.RandomResizedCrop(size, (settings.crop_scale, 1.0), (1 / ratio, ratio), antialias=False),
        tv.RandomHorizontalFlip(settings.flip),
        tv.RandomApply(
            [
                tv.ColorJitter(
                    settings.brightness, settings.contrast, settings.saturation, settings.hue
                )
            ],
            settings.jitter,
        ),
        tv.RandomGrayscale(settings.grey),
    ]
    if settings.blur:
        kernel = 2 * round(3 * settings.blur_sigma) + 1
        blur = tv.GaussianBlur(kernel, (0.1, settings.blur_sigma))
        steps.append(tv.RandomApply([blur], settings.blur))
    return tv.Compose([*steps, tv.ToDtype(torch.float32, scale=True)])


class Viewed(Dataset[Tensor]):
    """Views of images, BATCHES of each."""

    def __init__(self, images: Tensor, pipeline: Callable[[Tensor], Tensor]) -> None:
        self.images, self.pipeline = images, pipeline

    def __len__(self) -> int:
        return BATCHES * len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.pipeline(self.images[index % len(self.images)])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="to benchmarks/results/views.json")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    shape = (options.batch, 3, options.size, options.size)
    rng = torch.Generator(options.device).manual_seed(0)
    images = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8, device=options.device)
    settings = resolve_views(ViewSettings(), options.size, 3)
    views, pipeline = Views(settings, options.size), torchvision_views(settings, options.size)
    loader = DataLoader(
        Viewed(images.cpu(), pipeline), options.batch, num_workers=WORKERS, persistent_workers=True
    )

    def ours() -> None:
        for _ in range(10):
            views(images, rng)

    def alone() -> None:
        torch.stack([pipeline(image) for image in images])

    def loaded() -> None:
        assert sum(len(batch) for batch in loader) == BATCHES * len(images)

    ways = {"deepcluster": (ours, 10), "torchvision": (alone, 1), "DataLoader": (loaded, BATCHES)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.turns + 1):
        for name, (way, count) in ways.items():
            start = time.perf_counter()
            way()
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn:  # the first calls warm up
                times[name].append(1000 * (time.perf_counter() - start) / count)
    middle = {name: statistics.median(each) for name, each in times.items()}
    print(
        f"{options.batch} images of {options.size} px, {options.device}, preset {settings.preset}"
    )
    for name, each in middle.items():
        print(f"{name} {each:.1f} ms, over deepcluster {each / middle['deepcluster']:.1f}")
    if options.write:
        told = {"batch": options.batch, "size": options.size, "preset": settings.preset}
        lines = {name: [round(each, 2) for each in sorted(found)] for name, found in times.items()}
        told |= {"workers": WORKERS, "milliseconds": lines}
        record.write(record.RESULTS / "views.json", told | record.circumstances(options.device))


if __name__ == "__main__":
    main()
