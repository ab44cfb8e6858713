"""The number of clusters without labels, and the best run without labels.

    python benchmarks/auto_clusters.py --data FOLDER --features FOLDER

Short fits of many kinds on digits and on parts of MNIST, Fashion-MNIST and CIFAR-10, each with its
features kept in ``--features`` (a second call goes on from there; ``--minutes`` ends a call). Then:

- ``chosen``: the number of clusters that ``choose_clusters`` finds in the features of the fits
  "good20" (trained with 20 clusters) and "nolab" (without any), for all ten classes and for the
  images of 3, 5 and 7 of them;
- ``runs``: NMI of each fit, its features cut into ten, beside the scores that need no labels;
- ``spearman``: their rank correlation with NMI over the fits on the same images.

The score was settled on digits, Fashion-MNIST and CIFAR-10; MNIST confirms.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from scipy.stats import spearmanr

from deepcluster import metrics
from deepcluster.clustering.choose import choose_clusters
from deepcluster.clustering.graph import cluster_graph
from deepcluster.config import Config, override
from deepcluster.images.store import ImageStore, open_images
from deepcluster.training import loop as train
from deepcluster.training.resolve import resolve

CLASSES = 10
LARGEST = 30
SETS = {  # name: (source, images, batch, epochs over those below)
    "digits": ("digits", 1797, 256, 2),
    "mnist": ("mnist-train.parquet", 2500, 128, 1),
    "fashion": ("fashion-mnist-train.parquet", 2500, 128, 1),
    "cifar10": ("cifar10-train.parquet", 2500, 128, 1),
    "cifar1k": ("cifar10-train.parquet", 1000, 128, 1),
}

RUNS: dict[str, dict[str, Any]] = {
    "good20": {"epochs": 8, "clusters": 20},
    "good10": {"epochs": 8},
    "e1": {"epochs": 1},
    "e2": {"epochs": 2, "seed": 1},
    "e4": {"epochs": 4, "seed": 2},
    "nolab": {"epochs": 6, "contrastive_clusters.label_from": 1.0, "seed": 3},
    "lowlr": {"epochs": 2, "train.lr": 0.001},
    "noviews": {"epochs": 2, "views.preset": "none"},
    "otherviews": {"epochs": 3, "views.preset": "photo"},
    "sgd": {"epochs": 3, "train.optimizer": "sgd"},
    "hot": {"epochs": 3, "contrastive_clusters.temperature": 1.0, "seed": 5},
    "early": {"epochs": 4, "contrastive_clusters.label_from": 0.1, "seed": 4},
    "v2e4": {"epochs": 3, "method": "deepcluster-v2"},
    "dc": {"epochs": 2, "method": "deepcluster"},
}
SUBSETS = [list(range(10)), [0, 1, 2], [1, 4, 6, 8, 9], [0, 1, 3, 4, 5, 7, 9]]
SCORES = ("silhouette", "modularity", "effective_rank")


def part(name: str, data: Path) -> ImageStore:
    """The images of a set, drawn at random."""
    source, n, _, _ = SETS[name]
    store = open_images(source if source == "digits" else str(data / source))
    if len(store) <= n:
        return store
    drawn = np.sort(np.random.default_rng(0).choice(len(store), n, replace=False))
    assert store.labels is not None
    return dataclasses.replace(
        store,
        pixels=store.pixels[drawn],
        ids=[store.ids[i] for i in drawn],
        paths=[store.paths[i] for i in drawn],
        labels=store.labels[drawn],
    )


def fit(store: ImageStore, name: str, run: str, file: Path) -> None:
    """One fit; its features and the labels go into `file`."""
    _, _, batch, factor = SETS[name]
    values = {"clusters": CLASSES, "device": "cpu", "train.batch_size": batch, **RUNS[run]}
    values["epochs"] *= factor
    config = override(Config(), values)
    config = resolve(config, n=len(store), size=store.size, channels=store.channels)
    result = train.fit(store, config)
    np.savez(file, embeddings=result.embeddings, labels=store.labels)


def seeded() -> torch.Generator:
    """A new generator, always the same."""
    return torch.Generator().manual_seed(0)


def main() -> None:
    """Fit what is missing, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30, help="no fit begins after these")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/auto-clusters.json"))
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 3, 5, 7], help="of SUBSETS")
    args = parser.parse_args()
    args.features.mkdir(exist_ok=True, parents=True)
    args.out.parent.mkdir(exist_ok=True, parents=True)
    end = time.monotonic() + 60 * args.minutes
    for name in SETS:
        missing = [run for run in RUNS if not (args.features / f"{name}-{run}.npz").exists()]
        store = part(name, args.data) if missing and time.monotonic() < end else None
        for run in missing:
            if store is not None and time.monotonic() < end:
                fit(store, name, run, args.features / f"{name}-{run}.npz")
                print(f"{name} {run}", file=sys.stderr)

    chosen, runs = [], []
    for file in sorted(args.features.glob("*.npz")):
        name, run = file.stem.split("-")
        if name not in SETS or run not in RUNS:
            continue
        kept = np.load(file)
        x, labels = torch.from_numpy(kept["embeddings"]), kept["labels"]
        clusters = cluster_graph(x, CLASSES, generator=seeded()).assign(x)[0].numpy()
        found = metrics.evaluate(x.numpy(), clusters, rng=np.random.default_rng(0))
        line = {"set": name, "run": run, "nmi": metrics.nmi(clusters, labels)}
        runs.append(line | {score: found[score] for score in SCORES})
        subsets = [subset for subset in SUBSETS if len(subset) in args.classes]
        for classes in subsets if run in ("good20", "nolab") else []:
            rows = torch.from_numpy(np.isin(labels, classes))
            choice = choose_clusters(x[rows], largest=LARGEST, generator=seeded())
            line = {"set": name, "run": run, "classes": len(classes), "chosen": choice.k}
            chosen.append(line | {"scores": {k: round(v, 4) for k, v in choice.scores.items()}})
            print(*line.values(), flush=True)
    spearman = []
    for name in SETS:
        here = [line for line in runs if line["set"] == name]
        if len(here) < 3:
            continue
        nmi = [line["nmi"] for line in here]
        rank = {
            score: round(float(spearmanr([line[score] for line in here], nmi).statistic), 3)
            for score in SCORES
        }
        spearman.append({"set": name, "runs": len(here), "from": min(nmi), "to": max(nmi)} | rank)
        print(spearman[-1])
    record.write(args.out, {"chosen": chosen, "spearman": spearman, "runs": runs})


if __name__ == "__main__":
    main()
