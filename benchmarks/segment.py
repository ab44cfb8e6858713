"""Regions of drawn pictures: this library's two ways beside simple ones, by mIoU and adjusted Rand.

    python benchmarks/segment.py                       # needs scikit-image
    python benchmarks/segment.py --photographs imagenette-train.parquet --out FOLDER

The pictures are drawn: some shapes of a colour each on a ground, with noise, or with stripes in
place of a plain colour, so that which pixel is of which region is known. k-means on colours and
SLIC are told the number of regions; the others are not. mIoU: each true region with the found one
that suits it best, one to one (unmatched ones count 0). With --photographs no figure comes out, but
a picture: each photograph, its regions by the default way, and by superpixels.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import record
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from skimage.segmentation import felzenszwalb, mark_boundaries, slic
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from deepcluster.config import SegmentSettings
from deepcluster.segmentation import segment

SIDE = 128


def drawn(seed: int, striped: bool) -> tuple[np.ndarray, np.ndarray]:
    """A picture ``(s, s, 3)`` uint8 of three shapes on a ground, and the region of each pixel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    truth = np.zeros((SIDE, SIDE), int)
    truth[np.hypot(x - 0.28, y - 0.3) < rng.uniform(0.13, 0.2)] = 1
    truth[(np.abs(x - 0.72) < 0.16) & (np.abs(y - 0.32) < rng.uniform(0.1, 0.2))] = 2
    truth[(y > 0.62) & (np.abs(x - 0.5) < (y - 0.6) * rng.uniform(0.7, 1.2))] = 3
    hues = (np.arange(4) / 4 + rng.uniform(0, 1) + rng.uniform(-0.05, 0.05, 4)) % 1
    hsv = np.stack([hues, rng.uniform(0.4, 0.9, 4), rng.uniform(0.5, 0.95, 4)], 1) * 255
    palette = Image.fromarray(np.rint(hsv)[None].astype(np.uint8), "HSV").convert("RGB")
    picture = np.asarray(palette, float)[0][truth]
    if striped:  # dark and light in turn, in each region in its own direction
        angle = (np.arange(4) * np.pi / 4)[truth]
        wave = np.sin(2 * np.pi * 16 * (x * np.cos(angle) + y * np.sin(angle)))
        picture *= 1 + 0.35 * np.sign(wave)[..., None]
    return np.clip(picture + rng.normal(0, 15, picture.shape), 0, 255).astype(np.uint8), truth


def ours(pixels: np.ndarray, regions: int, **settings: str) -> np.ndarray:
    """This library's regions, on the processor."""
    return segment(pixels, SegmentSettings(**settings), device="cpu")  # type: ignore[arg-type]


def colours(pixels: np.ndarray, regions: int) -> np.ndarray:
    """k-means on the colours of the pixels."""
    rows = pixels.reshape(-1, 3).astype(float)
    found = KMeans(regions, n_init=4, random_state=0).fit_predict(rows)
    return np.asarray(found).reshape(pixels.shape[:2])


METHODS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "deepcluster segment": ours,
    "… --superpixels slic": lambda pixels, k: ours(pixels, k, superpixels="slic"),
    "k-means on colours": colours,
    "SLIC": lambda pixels, k: slic(pixels, n_segments=k, compactness=10.0, start_label=0),
    "Felzenszwalb": lambda pixels, k: felzenszwalb(pixels, scale=200, sigma=0.8, min_size=50),
}


def mean_iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union, the mean over the true regions under the best pairing."""
    _, a = np.unique(truth.ravel(), return_inverse=True)
    _, b = np.unique(found.ravel(), return_inverse=True)
    both = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(both, (a, b), 1)
    iou = both / (both.sum(1)[:, None] + both.sum(0)[None] - both)
    rows, columns = linear_sum_assignment(-iou)
    return float(iou[rows, columns].sum() / len(iou))


def measure(pictures: int) -> list[dict[str, object]]:
    """A line a method and kind of picture."""
    lines = []
    for striped in (False, True):
        for name, method in METHODS.items():
            scores, seconds = [], []
            for seed in range(pictures):
                pixels, truth = drawn(seed, striped)
                began = time.process_time()
                found = method(pixels, 4)
                seconds.append(time.process_time() - began)
                rand = adjusted_rand_score(truth.ravel(), found.ravel())
                scores.append((mean_iou(found, truth), rand, len(np.unique(found))))
            iou, rand, regions = np.array(scores).T
            line = {
                "pictures": "stripes" if striped else "plain", "method": name,
                "miou": iou.round(4).tolist(), "ari": rand.round(4).tolist(),
                "regions": regions.astype(int).tolist(), "seconds": np.round(seconds, 2).tolist(),
            }  # fmt: skip
            lines.append(line)
            print(f"{line['pictures']:8} {name:22} mIoU {iou.mean():.3f}  ARI {rand.mean():.3f}")
    return lines


def show(source: Path, count: int, out: Path) -> None:
    """Photographs beside their regions, as a picture."""
    column = pq.read_table(source, columns=["image"]).column("image")
    rows = []
    for i in np.linspace(0, len(column) - 1, count).astype(int):
        image = Image.open(io.BytesIO(column[int(i)].as_py()["bytes"])).convert("RGB")
        pixels = np.asarray(image.resize((192, 192)))
        cells = [pixels / 255]
        for superpixels in ("none", "slic"):
            found = ours(pixels, 0, superpixels=superpixels)
            mean = np.stack([pixels[found == k].mean(0) for k in range(found.max() + 1)]) / 255
            cells.append(mark_boundaries(mean[found], found, color=(1, 1, 1)))
        rows.append(np.hstack(cells))
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.vstack(rows) * 255).astype(np.uint8)).save(out / "photographs.png")


def main() -> None:
    """Measure and store, or show."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--photographs", type=Path, help="a Parquet file: show some, measure none")
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.photographs:
        return show(args.photographs, args.pictures, args.out)
    found = {"lines": measure(args.pictures)} | record.circumstances()
    record.write(args.out / "segment.json", found)


if __name__ == "__main__":
    main()
