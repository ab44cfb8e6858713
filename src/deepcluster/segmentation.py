"""Regions of one image, by a small net that trains on its own labels.

Kanezaki, "Unsupervised Image Segmentation by Backpropagation" (ICASSP 2018) and Kim, Kanezaki and
Tanaka, "Unsupervised Learning of Image Segmentation Based on Differentiable Feature Clustering"
(IEEE TIP 2020). A net gives each pixel a response in each of some channels; its strongest channel
is its label, and the net learns these labels by cross-entropy. What keeps the regions whole is, in
the later paper, a loss on the differences between neighbouring responses (the default), in the
first one superpixels: each takes the label that most of its pixels have. It ends at `min_labels`
labels or after `iterations`.

Differences: edges are repeated where the papers put zeros, which give the picture a frame of its
own (adjusted Rand index .95 for .75 on drawn shapes); labels are numbered by size, large pictures
are worked on at a smaller side, and the number of labels never falls below `min_labels` (the papers
stop at the first one at or below it).
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from deepcluster.config import SegmentSettings
from deepcluster.device import pick_device
from deepcluster.errors import ConfigError, RunError, SourceError
from deepcluster.images.decode import quiet_pillow, upright
from deepcluster.images.listing import reason

CHANNELS, LAYERS = 100, 2  # of the net and of its responses, as in the papers
RATE, MOMENTUM = 0.1, 0.9
SUPERPIXELS, COMPACTNESS = 1000, 10.0  # at most so many; the first paper takes 10,000 at 100


class _Net(nn.Module):
    """``(1, 3, h, w)`` -> responses ``(1, CHANNELS, h, w)``, normalised over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in [3] + [CHANNELS] * (LAYERS - 1):
            layers += [
                nn.Conv2d(inputs, CHANNELS, 3, padding=1, padding_mode="replicate"),
                nn.ReLU(),
            ]
            layers += [nn.BatchNorm2d(CHANNELS, track_running_stats=False)]
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 1)]
        layers += [nn.BatchNorm2d(CHANNELS, track_running_stats=False)]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.layers(image)
        return out


def segment(
    image: Image.Image | np.ndarray,
    settings: SegmentSettings | None = None,
    *,
    device: str = "auto",
    advance: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Regions of an image.

    Args:
        image: a Pillow image, or ``(h, w)`` or ``(h, w, 3)`` uint8.
        settings: None takes the defaults.
        device: where the net runs; the same device and seed give the same labels.
        advance: called with the number of iterations done since the last call.

    Returns:
        ``(h, w)`` int32 labels, 0 the largest region.

    Raises:
        ConfigError: superpixels are asked for and scikit-image is not installed.
        SourceError: an array that is no image.

    Source:
        Kim, Kanezaki and Tanaka, "Unsupervised Learning of Image Segmentation Based on
        Differentiable Feature Clustering" (IEEE TIP 2020); with superpixels Kanezaki,
        "Unsupervised Image Segmentation by Backpropagation" (ICASSP 2018).

    >>> segment(images[0], SegmentSettings(iterations=20), device="cpu").shape
    (16, 16)
    """
    settings = settings or SegmentSettings()
    picture = _picture(image)
    size = picture.size
    if size == (1, 1):
        return np.zeros((1, 1), np.int32)
    scale = min(1.0, settings.side / max(size))
    small = picture.resize([max(1, round(s * scale)) for s in size], Image.Resampling.BOX)
    pixels = np.asarray(small)  # (h, w, 3)
    parts = _superpixels(pixels) if settings.superpixels == "slic" else None
    where = pick_device(device)
    x = torch.from_numpy(pixels.copy()).to(where).permute(2, 0, 1)[None].float() / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = _Net()
    found = _train(net.to(where), x, parts, settings, advance).cpu().numpy()
    _, number, counts = np.unique(found, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    labels = rank[number].reshape(pixels.shape[:2]).astype(np.int32)
    whole = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    return np.asarray(whole, np.int32)


def _train(
    net: _Net,
    x: Tensor,
    parts: Tensor | None,
    settings: SegmentSettings,
    advance: Callable[[int], None],
) -> Tensor:
    """The label of each pixel, ``(h w,)`` int64."""
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
    kept = torch.zeros(x.shape[2] * x.shape[3], dtype=torch.int64, device=x.device)
    for _ in range(settings.iterations):
        response = net(x)[0]  # (c, h, w)
        labels = response.detach().flatten(1).argmax(0)  # (h w,)
        if parts is not None:
            labels = _vote(labels, parts.to(labels.device))
        count = len(labels.unique())
        if count < settings.min_labels and len(kept.unique()) > count:
            break  # the labels before
        kept = labels
        if count <= settings.min_labels:
            break
        loss = F.cross_entropy(response.flatten(1).T, labels)
        if parts is None:
            down = (response[:, 1:] - response[:, :-1]).abs()
            right = (response[:, :, 1:] - response[:, :, :-1]).abs()
            loss = loss + settings.continuity * sum(d.mean() for d in (down, right) if d.numel())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        advance(1)
    return kept


def _vote(labels: Tensor, parts: Tensor) -> Tensor:
    """Each superpixel's most frequent label, given to all its pixels (the lower of a tie)."""
    count = int(parts.max()) + 1
    votes = torch.bincount(parts * CHANNELS + labels, minlength=count * CHANNELS)
    return votes.view(count, CHANNELS).argmax(1)[parts]


def _superpixels(pixels: np.ndarray) -> Tensor:
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise ConfigError(
            "superpixels need scikit-image: pip install 'deepcluster[superpixels]', or leave "
            "--superpixels out"
        ) from error
    found = slic(pixels, n_segments=SUPERPIXELS, compactness=COMPACTNESS, start_label=0)
    return torch.from_numpy(np.unique(found, return_inverse=True)[1].ravel())


def _picture(image: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size:
        raise SourceError(
            f"an array of {array.dtype} and shape {array.shape} is no image here: give "
            "(h, w) or (h, w, 3) of uint8"
        )
    return Image.fromarray(array).convert("RGB")


# -- files ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segmented:
    """What was written for an image."""

    image: str
    labels: int
    seconds: float
    files: tuple[Path, Path]  # label map, overlay


def segment_files(
    images: Sequence[str | Path],
    out: Path,
    settings: SegmentSettings | None = None,
    *,
    device: str = "auto",
    phase: Callable[[str, int], None] = lambda name, total: None,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Segmented]:
    """Segment image files: a label map and an overlay for each, and ``areas.csv`` for all.

    Args:
        images: the files.
        out: a folder that is new or empty.
        settings: None takes the defaults.
        device: where the net runs.
        phase: told of each image and its iterations.
        advance: told of iterations done.

    Raises:
        RunError: `out` holds files already.
        SourceError: a file is no image that Pillow reads.
    """
    settings = settings or SegmentSettings()
    files = [Path(image) for image in images]
    pictures = [_open(file) for file in files]  # a bad one is found before the work
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is there already: give a folder that is new or empty as --out")
    out.mkdir(parents=True, exist_ok=True)
    done, taken = [], set()
    with (out / "areas.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "pixels", "share", "red", "green", "blue"])
        for path, picture in zip(files, pictures, strict=True):
            begun = time.perf_counter()
            phase(path.name, settings.iterations)
            labels = segment(picture, settings, device=device, advance=advance)
            stem, number = path.stem, 2
            while stem.casefold() in taken:
                stem, number = f"{path.stem}-{number}", number + 1
            taken.add(stem.casefold())
            pixels = np.asarray(picture)
            counts = np.bincount(labels.ravel())
            means = [pixels[labels == k].mean(0) for k in range(len(counts))]
            for k, count in enumerate(counts.tolist()):
                colour = [round(float(c)) for c in means[k]]
                table.writerow([str(path), k, count, f"{count / labels.size:.6f}", *colour])
            targets = (out / f"{stem}.labels.png", out / f"{stem}.overlay.png")
            _label_map(labels).save(targets[0])
            _overlay(pixels, labels).save(targets[1])
            seconds = time.perf_counter() - begun
            done.append(Segmented(str(path), len(counts), seconds, targets))
    return done


def _open(path: Path) -> Image.Image:
    try:
        with quiet_pillow():
            return upright(path).convert("RGB")
    except Exception as error:  # a broken file can make Pillow raise almost anything
        raise SourceError(f"{path} cannot be read as an image: {reason(error)}") from error


def _colours(count: int) -> np.ndarray:
    """Colours that differ, ``(count, 3)`` uint8: hues a golden angle apart."""
    hues = (np.arange(count) * 0.618034 + 0.6) % 1
    hsv = np.stack([hues, np.full(count, 0.65), np.full(count, 0.95)], 1) * 255
    strip = Image.fromarray(np.rint(hsv).astype(np.uint8)[None], "HSV").convert("RGB")
    colours: np.ndarray = np.asarray(strip)[0]
    return colours


def _label_map(labels: np.ndarray) -> Image.Image:
    """Labels as values of a palette image, which viewers show in colours."""
    picture = Image.fromarray(labels.astype(np.uint8), "P")  # at most CHANNELS labels
    picture.putpalette(_colours(256).ravel().tolist())
    return picture


def _overlay(pixels: np.ndarray, labels: np.ndarray) -> Image.Image:
    """The picture, half tinted by label, with the borders between regions in white."""
    tint = _colours(int(labels.max()) + 1)[labels]
    mixed = (0.6 * pixels + 0.4 * tint).astype(np.uint8)
    border = np.zeros(labels.shape, bool)
    border[1:] |= labels[1:] != labels[:-1]
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    mixed[border] = 255
    return Image.fromarray(mixed)
