"""What a whole run of the paper's recipe on ImageNet would cost, from parts measured here.

    python benchmarks/paper_cost.py --photographs imagenette-train.parquet
    python benchmarks/paper_cost.py --photographs imagenette-train.parquet --device cuda --batch 256
    python benchmarks/tables.py

Each part is the median of several times, on a processor of one thread and by the processor's own
time, which other work does not change much: seconds an image to decode, to train on and to take
features of (AlexNet at 224 pixels, one step), seconds of PCA and of an iteration of k-means at a
small size. (On a GPU all parts are measured by the clock, decoding on all cores.) The rest is
arithmetic: PCA has a part that grows with the images and one that does not, which two numbers of
rows tell apart; an iteration of k-means grows with images times clusters; memory and disk are
counted in bytes. No whole run was made.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import record
import torch
from torch.nn import functional as F

from deepcluster.backbones.start import build_net
from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.pca import fit_pca
from deepcluster.config import Config, load_recipe, override
from deepcluster.images.store import open_images

IMAGES = 1_281_167
SIDE, FEATURES = 256, 4096  # of the decoded images, of the net
ROWS, CENTRES = 8192, 1000  # of the small k-means
PCA_ROWS = 5000, 13_000  # both more than FEATURES: with fewer, PCA goes another way
REPEATS = 3


def seconds(work: Callable[[], Any], device: str) -> float:
    """The median of some times; on a processor, which others may use, of its own time."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    spent = []
    for _ in range(REPEATS):
        began = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        spent.append(clock() - began)
    return statistics.median(spent)


def measure(photographs: Path, device: str, batch: int) -> dict[str, float]:
    """The parts, in seconds."""
    config = override(Config(), load_recipe("paper") | {"device": device, "start": "scratch"})
    part = pq.ParquetFile(photographs).read_row_group(0).slice(0, 64)
    column = part.column("image")
    decode = seconds(lambda: open_images(column, data=config.data, size=224), device) / len(column)
    net = build_net(config, 3).to(device).train()
    head = torch.nn.Linear(FEATURES, config.deepcluster.pseudo_clusters).to(device)
    parameters = [*(p for p in net.parameters() if p.requires_grad), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    images = torch.randn(batch, 3, 224, 224, device=device)
    labels = torch.randint(config.deepcluster.pseudo_clusters, (batch,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(head(net(images).relu()), labels).backward()
        optimizer.step()

    def look() -> None:
        with torch.no_grad():
            net(images)

    train, forward = seconds(step, device), seconds(look, device)
    x = torch.randn(PCA_ROWS[1], FEATURES, device=device)
    few, many = (
        seconds(lambda n=n: fit_pca(x[:n], 256, whiten=True).apply(x[:n]), device) for n in PCA_ROWS
    )
    pca = (many - few) / (PCA_ROWS[1] - PCA_ROWS[0])
    y, generator = x[:ROWS, :256].contiguous(), torch.Generator()
    lloyd = [
        seconds(
            lambda n=n: kmeans(y, CENTRES, init="random", max_iter=n, tol=0, generator=generator),
            device,
        )
        for n in (1, 21)
    ]
    return {
        "decode": decode, "train": train / batch, "forward": forward / batch, "pca": pca,
        "pca_once": few - PCA_ROWS[0] * pca, "iteration": (lloyd[1] - lloyd[0]) / 20,
    }  # fmt: skip


def whole(parts: dict[str, float], images: int = IMAGES) -> dict[str, float]:
    """Hours, memory and disk of a run on so many images, from the measured parts.

    Args:
        parts: of :func:`measure`, in seconds.
        images: their number.
    """
    recipe = override(Config(), load_recipe("paper"))
    k, epochs = int(recipe.deepcluster.pseudo_clusters), int(recipe.epochs)
    lloyd = recipe.kmeans.iterations * parts["iteration"] * images / ROWS * k / CENTRES
    pca = parts["pca_once"] + parts["pca"] * images
    epoch = images * (parts["train"] + parts["forward"]) + pca + lloyd
    parameters = 4 * (62_000_000 + FEATURES * k)
    return {
        "decode_hours": images * parts["decode"] / 3600,
        "epoch_hours": epoch / 3600,
        "kmeans_share": (lloyd + pca) / epoch,
        "hours": (epochs * epoch + images * parts["decode"]) / 3600,
        "memory_gb": (2 * 4 * images * FEATURES + 4 * images * 256) / 1e9,
        "disk_gb": (images * SIDE * SIDE * 3 + 4 * images * FEATURES + 4 * parameters) / 1e9,
    }


def main() -> None:
    """Measure, compute and store."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photographs", type=Path, required=True, help="a Parquet file")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = measure(args.photographs, args.device, args.batch)
    line = {"parts": parts, "whole": whole(parts), "batch": args.batch}
    record.write(
        args.out / f"paper-cost-{args.device}.json", line | record.circumstances(args.device)
    )
    print(parts, whole(parts))


if __name__ == "__main__":
    main()
