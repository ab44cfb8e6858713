"""What lies between an image's pixels and the net, without chance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcluster import processes

if TYPE_CHECKING:
    from deepcluster.images.store import ImageStore


RESIDENT_SHARE = 0.25  # of a GPU's free memory: images that take no more stay there


def to_device(pixels: np.ndarray, device: torch.device) -> Tensor:
    """``(b, s, s, c)`` uint8 from an ImageStore -> ``(b, c, s, s)`` uint8 on the device."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2)


class Batches:
    """Images of a store, batch by batch on a device; on a GPU all lie there, if they fit.

    Args:
        store: the images; where several processes train, those that this one holds.
        device: where batches are wanted.
        n: images in all processes; None: all are here.
    """

    def __init__(self, store: ImageStore, device: torch.device, n: int | None = None) -> None:
        self._store, self._device = store, device
        self._n = len(store) if n is None else n
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

    def share(self, index: Tensor) -> Tensor:
        """This process's share of a batch ``(b,)`` of all images, as by :meth:`__call__`."""
        if processes.world() == 1:
            return self(index)
        rows = processes.share(self._n)
        held = self(index[(index >= rows.start) & (index < rows.stop)] - rows.start)
        return processes.exchange(held, index, self._n)


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


def enlarge(images: Tensor, side: int, interpolation: str = "bicubic") -> Tensor:
    """Smaller images resized to `side` pixels; others as they are.

    Args:
        images: ``(n, c, s, s)`` uint8.
        side: of the result.
        interpolation: bicubic or bilinear.

    Returns:
        ``(n, c, side, side)`` uint8: what Pillow gives, but for its rounding between two passes.
    """
    if images.shape[-1] >= side:
        return images
    larger = F.interpolate(images.float(), (side, side), mode=interpolation, antialias=True)
    return larger.round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Preprocessing:
    """What lies between an image's pixels and the net."""

    size: int  # side of the net's input in pixels
    mean: tuple[float, ...]  # a channel
    std: tuple[float, ...]
    side: int = 0  # of the image from whose centre the input is taken; 0: as large as it is kept
    interpolation: str = "bicubic"  # how an image is resized to that side

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
        side = int(store.pixels.shape[1])
        return cls(store.size, tuple(mean.tolist()), tuple(std.tolist()), side)

    @classmethod
    def of_module(cls, net: nn.Module, size: int) -> Preprocessing | None:
        """What a net of timm says that it wants; None for a net that says nothing."""
        said = getattr(net, "pretrained_cfg", None)
        if not isinstance(said, dict) or not said.get("mean") or not said.get("std"):
            return None
        side = math.floor(size / (said.get("crop_pct") or 1.0))
        how = said.get("interpolation")
        how = how if how in ("bicubic", "bilinear") else "bicubic"
        return cls(size, tuple(said["mean"]), tuple(said["std"]), side, how)

    def of_channels(self, channels: int) -> Preprocessing:
        """For a net that takes so many channels: one that all share, or the mean of all."""
        if len(self.mean) == channels:
            return self
        mean, std = (sum(each) / len(each) for each in (self.mean, self.std))
        return dataclasses.replace(self, mean=(mean,) * channels, std=(std,) * channels)

    @property
    def crop_pct(self) -> float:
        """Share of the resized image's side that the net sees, such that timm takes that side."""
        side = max(self.side, self.size)
        share = self.size / side
        return share if math.floor(self.size / share) == side else self.size / (side + 0.5)

    def __call__(self, images: Tensor) -> Tensor:
        """The view without chance: ``(b, c, s, s)`` uint8 -> ``(b, c, size, size)`` float32."""
        return self.normalise(centre(self.enlarge(images), self.size))

    def enlarge(self, images: Tensor) -> Tensor:
        """Images smaller than what the net sees a part of, resized to that; others unchanged."""
        return enlarge(images, max(self.side, self.size), self.interpolation)

    def normalise(self, views: Tensor) -> Tensor:
        """``(b, c, h, w)`` in [0, 1] -> mean 0, standard deviation 1 a channel.

        Grey images before a net of three channels fill all three.
        """
        if views.shape[1] == 1 < len(self.mean):
            views = views.expand(-1, len(self.mean), -1, -1)
        return normalise(views, self.mean, self.std)
