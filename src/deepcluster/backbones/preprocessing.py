"""What lies between an image's pixels and the net, without chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from deepcluster.images.store import ImageStore


RESIDENT_SHARE = 0.25  # of a GPU's free memory: images that take no more stay there


def to_device(pixels: np.ndarray, device: torch.device) -> Tensor:
    """``(b, s, s, c)`` uint8 from an ImageStore -> ``(b, c, s, s)`` uint8 on the device."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2)


class Batches:
    """Images of a store, batch by batch on a device; on a GPU all lie there, if they fit.

    Args:
        store: the images.
        device: where batches are wanted.
    """

    def __init__(self, store: ImageStore, device: torch.device) -> None:
        self._store, self._device = store, device
        self._all: Tensor | None = None  # (n, c, s, s) uint8
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if store.pixels.nbytes <= RESIDENT_SHARE * free:
                self._all = to_device(store.pixels, device)

    @property
    def resident(self) -> bool:
        """Whether all images are on the device."""
        return self._all is not None

    def __call__(self, index: Tensor) -> Tensor:
        """``(b, c, s, s)`` uint8 on the device, of ``(b,)`` int64."""
        if self._all is not None:
            return self._all[index.to(self._device)]
        return to_device(self._store.batch(index.cpu().numpy()), self._device)


def centre(images: Tensor, size: int) -> Tensor:
    """The view of evaluation: the central square.

    Args:
        images: ``(n, c, H, W)`` uint8.
        size: its side in pixels, at most H and W.

    Returns:
        ``(n, c, size, size)`` float32 in [0, 1].

    Raises:
        ValueError: the images are smaller than `size`.
    """
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise ValueError(f"cannot take {size} pixels out of images of {height} × {width}")
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size].float() / 255


def normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract the channels' mean and divide by their standard deviation: ``(n, c, h, w)``."""
    shape = (1, -1, 1, 1)
    return (x - filled(x, mean).view(shape)) / filled(x, std).view(shape)


def filled(like: Tensor, values: Sequence[float]) -> Tensor:
    """These values as a tensor, of the type and on the device of another, without a copy to it.

    A copy waits for the GPU, and cannot be recorded as part of a step.
    """
    return torch.stack([like.new_full((), value) for value in values])


@dataclass(frozen=True)
class Preprocessing:
    """What lies between an image's pixels and the net."""

    size: int  # side of the net's input in pixels
    mean: tuple[float, ...]  # a channel
    std: tuple[float, ...]

    @classmethod
    def measure(cls, store: ImageStore, sample: int = 10_000) -> Preprocessing:
        """Mean and standard deviation of each channel, of images spread evenly over the store."""
        index = np.linspace(0, len(store) - 1, min(sample, len(store))).astype(np.int64)
        total, squares, count = np.zeros(store.channels), np.zeros(store.channels), 0
        for chunk in np.array_split(index, -(-len(index) // 256)):
            pixels = store.batch(chunk).reshape(-1, store.channels) / 255.0
            total += pixels.sum(0)
            squares += (pixels**2).sum(0)
            count += len(pixels)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 1e-4))
        return cls(store.size, tuple(mean.tolist()), tuple(std.tolist()))

    def __call__(self, images: Tensor) -> Tensor:
        """The view without chance: ``(b, c, s, s)`` uint8 -> ``(b, c, size, size)`` float32."""
        return self.normalise(centre(images, self.size))

    def normalise(self, views: Tensor) -> Tensor:
        """``(b, c, h, w)`` in [0, 1] -> mean 0, standard deviation 1 a channel."""
        return normalise(views, self.mean, self.std)
