"""Clusters of unequal sizes, against what others find in the same features.

    python benchmarks/uneven.py --features FOLDER

FOLDER holds features of fits as ``NAME-seedS.npz``: ``x`` (n, d), rows of length 1, and ``y`` (n,),
labels from 0. Of sets with at least four classes, parts are drawn whose sizes fall exponentially,
the largest class RATIO times the smallest, in an order drawn anew for each seed; others are taken
as they are. Shapes made here come beside them: a giant with two groups of 3 % (round, and long),
two moons, two rings, blobs. The graph cut, k-means, average linkage and a Gaussian mixture (full
covariances of 20 principal components) get the true number of clusters, and HDBSCAN (the same
components, groups of 15) and EVoC (of the extra ``peers``) find their own; their noise counts as
a cluster. Last, the number of clusters that ``choose_clusters`` finds among 2 to 30.

NMI with the labels, which serve for nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.datasets import make_blobs, make_circles, make_moons
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from deepcluster.clustering.choose import choose_clusters
from deepcluster.clustering.graph import cluster_graph
from deepcluster.metrics import nmi

RATIOS = (1, 4, 10, 50)
LARGEST = 30
FEW = 5  # images of a class, at least

Rows = tuple[np.ndarray, np.ndarray]


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32."""
    rows: np.ndarray = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return rows


def shapes(seed: int) -> Iterator[tuple[str, Rows]]:
    """Points whose groups are known."""
    rng = np.random.default_rng(seed)
    centers, along = unit(rng.normal(size=(3, 16))), unit(rng.normal(size=(1, 16)))
    y = np.repeat([0, 1, 2], [1880, 60, 60])
    x = centers[y] + 0.12 * rng.normal(size=(2000, 16))
    yield "giant", (unit(x), y)
    long = x + (y == 0)[:, None] * 0.4 * rng.normal(size=(2000, 1)) * along
    yield "long giant", (unit(long), y)
    for name, (points, truth) in {
        "moons": make_moons(1500, noise=0.06, random_state=seed),
        "rings": make_circles(1500, noise=0.04, factor=0.5, random_state=seed),
        "blobs": make_blobs(2000, 16, centers=8, cluster_std=2.5, random_state=seed)[:2],
    }.items():
        yield name, (points.astype(np.float32), truth)


def part(x: np.ndarray, y: np.ndarray, ratio: int, seed: int, most: int) -> Rows:
    """Classes of exponentially falling sizes, at most `most` rows."""
    rng = np.random.default_rng(seed)
    counts = np.bincount(y)
    order = rng.permutation(len(counts))
    share = float(ratio) ** (-np.arange(len(counts)) / (len(counts) - 1))
    top = min(most / share.sum(), (counts[order] / share).min())
    sizes = np.maximum(FEW, np.round(top * share).astype(int))
    rows = [
        rng.choice(np.flatnonzero(y == c), min(size, counts[c]), replace=False)
        for c, size in zip(order, sizes, strict=True)
    ]
    kept = np.sort(np.concatenate(rows))
    return x[kept], y[kept]


def sets(folder: Path, seed: int, most: int) -> Iterator[tuple[str, int | None, Rows]]:
    """Name, ratio and rows of all that is measured with this seed."""
    for path in sorted(folder.glob(f"*-seed{seed}.npz")):
        arrays = np.load(path)
        x, y = unit(arrays["x"].astype(np.float32)), arrays["y"].astype(np.int64)
        name = re.sub(r"-seed\d+$", "", path.stem)
        if len(np.unique(y)) < 4:
            yield name, None, (x, y)
            continue
        for ratio in RATIOS:
            yield name, ratio, part(x, y, ratio, seed, most)
    for name, rows in shapes(seed):
        yield name, None, rows


def ours(x: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The graph cut."""
    rows = torch.from_numpy(x)
    found = cluster_graph(rows, k, generator=torch.Generator().manual_seed(seed))
    return found.assign(rows)[0].numpy()


def peers(x: np.ndarray, k: int, seed: int) -> dict[str, np.ndarray]:
    """What others find."""
    few = PCA(min(20, x.shape[1]), random_state=seed).fit_transform(x)
    mixture = GaussianMixture(k, reg_covar=1e-4, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Best performing initialization")  # did not converge
        mixed = mixture.fit_predict(few)
    found = {
        "k-means": KMeans(k, n_init=3, random_state=seed).fit_predict(x),
        "average linkage": AgglomerativeClustering(k, linkage="average").fit_predict(x),
        "HDBSCAN": HDBSCAN(min_cluster_size=15, copy=True).fit_predict(few) + 1,  # noise is 0
        "Gaussian mixture": mixed,
    }
    if importlib.util.find_spec("evoc"):
        import evoc

        wide = np.pad(x, ((0, 0), (0, max(0, 8 - x.shape[1]))))  # it needs more than two columns
        found["EVoC"] = evoc.EVoC(random_state=seed).fit_predict(wide) + 1
    return found


def measure(x: np.ndarray, y: np.ndarray, seed: int) -> dict[str, Any]:
    """All figures of one set."""
    k = len(np.unique(y))
    began = time.perf_counter()
    found = {"ours": ours(x, k, seed)}
    seconds = time.perf_counter() - began
    found |= peers(x, k, seed)
    generator = torch.Generator().manual_seed(seed)
    chosen = choose_clusters(torch.from_numpy(x), largest=LARGEST, generator=generator).k
    scores = {name: round(nmi(labels, y), 4) for name, labels in found.items()}
    sizes = np.bincount(y)
    return {
        "rows": len(x),
        "classes": k,
        "smallest": int(sizes[sizes > 0].min()),
        "nmi": scores,
        "seconds": round(seconds, 2),
        "chosen": chosen,
        "chosen_error": round(float(abs(np.log(chosen / k))), 4),
    }


def main() -> None:
    """Measure what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=2500, help="of a part, at most")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "uneven.json")
    args = parser.parse_args()
    lines = []
    for seed in args.seeds:
        for name, ratio, (x, y) in sets(args.features, seed, args.rows):
            line = {"set": name, "ratio": ratio, "seed": seed, **measure(x, y, seed)}
            lines.append(line)
            print(line, file=sys.stderr)
            record.write(args.out, {**record.circumstances(), "lines": lines})


if __name__ == "__main__":
    main()
