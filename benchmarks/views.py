"""Time of the views of one batch: ours, batched, against torchvision's, one image after the other.

Run: ``python benchmarks/views.py`` (options: ``--device cuda``, ``--size 224``, ``--batch 64``).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision.transforms.v2 as tv
from torch import Tensor

from deepcluster.config import ViewSettings
from deepcluster.training.views import Views, resolve_views


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


def milliseconds(function: Callable[[], object], device: str, repeats: int) -> float:
    """Median time of a call."""
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        function()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        if i:  # the first call warms up
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    shape = (options.batch, 3, options.size, options.size)
    rng = torch.Generator(options.device).manual_seed(0)
    images = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8, device=options.device)
    settings = resolve_views(ViewSettings(), options.size, 3)
    views, pipeline = Views(settings, options.size), torchvision_views(settings, options.size)

    ours = milliseconds(lambda: views(images, rng), options.device, 20)
    theirs = milliseconds(lambda: torch.stack([pipeline(i) for i in images]), options.device, 3)
    threads = f", {torch.get_num_threads()} threads" if options.device == "cpu" else ""
    print(f"{options.batch} images of {options.size} px, {options.device}{threads}")
    print(f"preset {settings.preset}: deepcluster {ours:.1f} ms, torchvision {theirs:.1f} ms")
    print(f"torchvision / deepcluster = {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
