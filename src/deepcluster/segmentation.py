"""Regions of one image, by a small net that trains on its own labels.

Kanezaki, "Unsupervised Image Segmentation by Backpropagation" (ICASSP 2018) and Kim, Kanezaki and
Tanaka, "Unsupervised Learning of Image Segmentation Based on Differentiable Feature Clustering"
(IEEE TIP 2020). A net gives each pixel a response in each of some channels; its strongest channel
is its label, and the net learns these labels by cross-entropy. What keeps the regions whole is, in
the later paper, a loss on the differences between neighbouring responses (the default), in the
first one superpixels: each takes the label that most of its pixels have. It ends at `min_labels`
labels, when hardly a label changes any more, or after `iterations`.

Differences: edges are repeated where the papers put zeros, which give the picture a frame of its
own (adjusted Rand index .95 for .75 on drawn shapes); labels are numbered by size; while it learns,
the number of labels never falls below `min_labels` (the papers stop at the first one at or below
it). The net learns on a small copy of the picture, since most of the time goes into convolutions,
and then places the borders between the learnt regions on the picture at `side` pixels, once.
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
from deepcluster.device import fast_bfloat16, pick_device
from deepcluster.errors import ConfigError, NoImagesError, RunError, SourceError
from deepcluster.images.decode import quiet_pillow, upright
from deepcluster.images.listing import reason
from deepcluster.progress import counted

CHANNELS, LAYERS = 100, 2  # of the net and of its responses, as in the papers
RATE, MOMENTUM = 0.1, 0.9
AREAS = "areas.csv"  # of all images
LEARN = 96  # pixels of the longer side of the copy that is learnt from
STILL, MOVED = 20, 0.005  # it ends when in so many steps fewer pixels than this share moved
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
    where = pick_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = _Net()
    net.to(where).to(memory_format=torch.channels_last)
    small, large = (_shrunk(picture, side) for side in (min(LEARN, settings.side), settings.side))
    found = _train(net, small, settings, advance)
    if large.shape != small.shape:
        found = _refine(net, found.view(small.shape[:2]), large, settings)
    _, number, counts = np.unique(found.cpu().numpy(), return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    labels = rank[number].reshape(large.shape[:2]).astype(np.int32)
    whole = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    return np.asarray(whole, np.int32)


def _shrunk(picture: Image.Image, side: int) -> np.ndarray:
    """``(h, w, 3)`` uint8, no side longer than `side`."""
    scale = min(1.0, side / max(picture.size))
    size = [max(1, round(length * scale)) for length in picture.size]
    return np.asarray(picture.resize(size, Image.Resampling.BOX))


def _respond(net: _Net, pixels: np.ndarray) -> Tensor:
    """The net's responses to a picture, ``(c, h, w)`` float32."""
    device = next(net.parameters()).device
    x = torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1)[None].float() / 255
    with torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device)):
        response: Tensor = net(x.contiguous(memory_format=torch.channels_last))
    return response[0].float()


def _train(
    net: _Net, pixels: np.ndarray, settings: SegmentSettings, advance: Callable[[int], None]
) -> Tensor:
    """The label of each pixel, ``(h w,)`` int64."""
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
    parts = _superpixels(pixels) if settings.superpixels == "slic" else None
    kept = torch.zeros(pixels.shape[0] * pixels.shape[1], dtype=torch.int64)
    before = kept - 1
    for step in range(settings.iterations):
        response = _respond(net, pixels)  # (c, h, w)
        labels = response.detach().flatten(1).argmax(0).cpu()  # (h w,)
        if parts is not None:
            labels = _vote(labels, parts)
        count = len(labels.unique())
        if count < settings.min_labels and len(kept.unique()) > count:
            break  # the labels before
        kept = labels
        if count <= settings.min_labels:
            break
        if step % STILL == 0:
            if (labels != before).float().mean() < MOVED:
                break
            before = labels
        loss = F.cross_entropy(response.flatten(1).T, labels.to(response.device))
        if parts is None:
            down = (response[:, 1:] - response[:, :-1]).abs()
            right = (response[:, :, 1:] - response[:, :, :-1]).abs()
            loss = loss + settings.continuity * sum(d.mean() for d in (down, right) if d.numel())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        advance(1)
    return kept


@torch.no_grad()
def _refine(net: _Net, learnt: Tensor, pixels: np.ndarray, settings: SegmentSettings) -> Tensor:
    """Labels ``(h, w)`` of the small copy -> ``(H W,)`` of the larger picture, both int64.

    Each pixel chooses among the labels that the copy has near it: borders become those of the
    larger picture, and its noise makes no new regions.
    """
    known, number = learnt.unique(return_inverse=True)
    near = F.max_pool2d(F.one_hot(number).permute(2, 0, 1).float(), 3, 1, 1)
    near = F.interpolate(near[None], pixels.shape[:2])[0]  # (k, H, W), 0 or 1
    response = _respond(net, pixels).cpu()[known].masked_fill(near == 0, -torch.inf)
    labels = known[response.flatten(1).argmax(0)]
    return _vote(labels, _superpixels(pixels)) if settings.superpixels == "slic" else labels


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
    note: Callable[[str], None] = lambda sentence: None,
) -> list[Segmented]:
    """Segment image files: a label map and an overlay for each, and ``areas.csv`` for all.

    Files that cannot be read are left out and listed in ``skipped.csv``.

    Args:
        images: the files.
        out: a folder that is new or empty.
        settings: None takes the defaults.
        device: where the net runs.
        phase: told of each image and its iterations.
        advance: told of iterations done.
        note: told of each file that is left out.

    Raises:
        RunError: `out` holds files already.
        NoImagesError: no file is an image that Pillow reads.
    """
    settings = settings or SegmentSettings()
    pictures: list[tuple[Path, Image.Image]] = []
    skipped: list[tuple[str, str]] = []
    for path in map(Path, images):  # bad ones are found before the work
        try:
            pictures.append((path, _open(path)))
        except Exception as error:  # a broken file can make Pillow raise almost anything
            skipped.append((str(path), reason(error)))
            note(f"left out: {path}: {skipped[-1][1]}")
    if not pictures:
        raise NoImagesError(f"no image among {counted(len(skipped), 'file')}: give image files")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is there already: give a folder that is new or empty as --out")
    out.mkdir(parents=True, exist_ok=True)
    done, taken = [], set()
    with (out / AREAS).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "pixels", "share", "red", "green", "blue"])
        for path, picture in pictures:
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
    if skipped:
        with (out / "skipped.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "reason"), *skipped])
    return done


def _open(path: Path) -> Image.Image:
    with quiet_pillow():
        return upright(path).convert("RGB")


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
