"""The default fit beside its peers: same images, same machine, same number of threads.

    python benchmarks/quality.py --data FOLDER --sets mnist --images 10000 --seeds 0 1 2
    python benchmarks/quality.py --sets digits --methods pixels dec deepcluster
    python benchmarks/quality.py --data FOLDER --sets mnist --methods deepcluster --minutes 5
    python benchmarks/tables.py    # then write docs/benchmarks.md anew
    python benchmarks/quality.py --quick    # one line, to be compared between two commits in turns

FOLDER holds mnist-train.parquet, fashion-mnist-train.parquet and cifar10-train.parquet (Hugging
Face layout); the digits come with scikit-learn. Of a larger set every so manieth image is taken.
The peers need `pip install '.[peers]'`; one that is not installed is left out with a sentence.

Each method gets the number of classes as its number of clusters (HDBSCAN, which finds its own,
does not) and its authors' settings:

- k-means: scikit-learn's, best of 10 starts, on the pixels or on their first 50 principal
  components;
- DEC, IDEC, DCN: ClustPy's defaults (autoencoder 500-500-2000-10, Adam, batches of 256, 100 epochs
  of reconstruction, then 150 of clustering), on pixels scaled to a mean square of 1 as in the DEC
  paper. The epochs can be cut. One autoencoder a seed starts all three; its time counts for each;
- UMAP: the settings its manual gives for clustering (30 neighbours, minimal distance 0, 2
  dimensions), then k-means, or HDBSCAN with 10 samples and clusters of at least n / 140 images (the
  manual's 500 of 70,000). Images that HDBSCAN leaves out count as one more cluster. One map a seed
  serves both; its time counts for each. numba compiles it before the clock starts.

Seconds are from the pixels in memory to the clusters, of the wall clock and of the processor: on a
machine that others use only the latter can be compared. Labels are for measuring
only. A result is written as it ends, and what the file already holds is not repeated.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from deepcluster import metrics
from deepcluster.estimator import DeepCluster
from deepcluster.images.store import ImageStore, open_images

SETS = ("digits", "mnist", "fashion-mnist", "cifar10")


@dataclass(frozen=True, eq=False)
class Task:
    """One set of images and the settings of the methods."""

    store: ImageStore  # without labels
    k: int
    pretrain_epochs: int
    clustering_epochs: int
    ours: dict[str, Any]  # minutes or epochs of our fit, where given

    @functools.cached_property
    def flat(self) -> np.ndarray:
        """``(n, d)`` float32 in [0, 1]."""
        return self.store.pixels.reshape(len(self.store), -1).astype(np.float32) / 255


@dataclass(frozen=True)
class Start:
    """Work that several methods share: done once a seed, and its time counts for each."""

    x: np.ndarray  # (n, d) what the methods go on with
    net: Any = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class Watch:
    """Seconds of the wall clock and of the processor since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Both, by the names of :class:`Start`."""
        wall, cpu = self.start
        return {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
        }


@functools.lru_cache(maxsize=1)
def flat(task: Task, seed: int) -> Start:
    """The pixels as they are."""
    return Start(task.flat)


def umap_places(x: np.ndarray, seed: int) -> np.ndarray:
    """The map that UMAP makes of rows, ``(n, 2)``."""
    from umap import UMAP

    settings = {"n_neighbors": 30, "min_dist": 0.0, "n_components": 2, "n_jobs": 1}
    return np.asarray(UMAP(**settings, random_state=seed).fit_transform(x))


@functools.cache
def warm_up(rows: int) -> None:
    """Let numba compile what UMAP needs for so many rows (from 4,096 on it goes another way)."""
    umap_places(np.random.default_rng(0).random((rows, 16), np.float32), 0)


@functools.lru_cache(maxsize=1)
def umap(task: Task, seed: int) -> Start:
    """UMAP's map of the pixels."""
    warm_up(min(len(task.flat), 4500))
    watch = Watch()
    places = umap_places(task.flat, seed)
    return Start(places, **watch.read())


@functools.lru_cache(maxsize=1)
def autoencoder(task: Task, seed: int) -> Start:
    """A pre-trained autoencoder, and the pixels as it takes them."""
    from clustpy.deep.neural_networks import FeedforwardAutoencoder

    watch = Watch()
    x = task.flat / np.sqrt((task.flat**2).mean())
    net = FeedforwardAutoencoder([x.shape[1], 500, 500, 2000, 10], random_state=seed)
    net.fit(task.pretrain_epochs, {"lr": 1e-3}, 256, data=x)
    return Start(x, net, **watch.read())


def kmeans(task: Task, seed: int, start: Start) -> np.ndarray:
    """k-means of scikit-learn."""
    return KMeans(task.k, n_init=10, random_state=seed).fit_predict(start.x)


def pca_kmeans(task: Task, seed: int, start: Start) -> np.ndarray:
    """k-means on principal components."""
    x = PCA(min(50, start.x.shape[1]), random_state=seed).fit_transform(start.x)
    return kmeans(task, seed, Start(x))


def hdbscan(task: Task, seed: int, start: Start) -> np.ndarray:
    """HDBSCAN of scikit-learn; what it leaves out is one more cluster."""
    model = HDBSCAN(min_cluster_size=max(2, len(start.x) // 140), min_samples=10, copy=True)
    clusters = model.fit_predict(start.x)
    return np.where(clusters < 0, clusters.max() + 1, clusters)


def clustpy(name: str, task: Task, seed: int, start: Start) -> np.ndarray:
    """A deep clustering of ClustPy; it trains a copy of the autoencoder."""
    import clustpy.deep

    model = getattr(clustpy.deep, name)(
        task.k,
        neural_network=start.net,
        clustering_epochs=task.clustering_epochs,
        device="cpu",
        random_state=seed,
    )
    return model.fit(start.x).labels_


def ours(task: Task, seed: int, start: Start) -> np.ndarray:
    """The default fit of this project."""
    model = DeepCluster(n_clusters=task.k, random_state=seed, device="cpu", settings=task.ours)
    return model.fit_predict(task.store.pixels)


METHODS: dict[str, tuple[Callable[..., Start], Callable[..., np.ndarray]]] = {
    "pixels": (flat, kmeans),
    "pca": (flat, pca_kmeans),
    "umap-kmeans": (umap, kmeans),
    "umap-hdbscan": (umap, hdbscan),
    "dec": (autoencoder, functools.partial(clustpy, "DEC")),
    "idec": (autoencoder, functools.partial(clustpy, "IDEC")),
    "dcn": (autoencoder, functools.partial(clustpy, "DCN")),
    "deepcluster": (flat, ours),
}
"""What a method starts from, and the method."""


def settings(method: str, task: Task) -> dict[str, Any]:
    """What the command line says about a method."""
    if method == "deepcluster":
        return task.ours
    if method in ("dec", "idec", "dcn"):
        return {name: getattr(task, name) for name in ("pretrain_epochs", "clustering_epochs")}
    return {}


def open_set(name: str, folder: Path | None, images: int) -> tuple[ImageStore, np.ndarray]:
    """Every so manieth image of a set, without its label, and the labels for measuring."""
    if name == "digits":
        folder = None
    elif folder is None:
        raise SystemExit(f"{name} is read from FOLDER/{name}-train.parquet: give --data FOLDER")
    store = open_images(name if folder is None else folder / f"{name}-train.parquet")
    return record.part_of(store, np.arange(0, len(store), max(1, len(store) // images))[:images])


def measure(
    method: tuple[Callable[..., Start], Callable[..., np.ndarray]],
    task: Task,
    seed: int,
    threads: int,
    truth: np.ndarray,
) -> dict[str, Any]:
    """Run one method and score its clusters."""
    prepare, cluster = method
    with threadpool_limits(threads):
        begun = prepare(task, seed)
        watch = Watch()
        clusters = np.asarray(cluster(task, seed, begun))
        spent = watch.read()
    scores = {name: metrics.METRICS[name](clusters, truth) for name in ("nmi", "acc", "ari")}
    times = {name: round(value + getattr(begun, name), 2) for name, value in spent.items()}
    rounded = {name: round(value, 4) for name, value in scores.items()}
    return {**rounded, "clusters": len(np.unique(clusters)), **times}


def read(path: Path) -> list[dict[str, Any]]:
    """The results so far."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the Parquet files")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "quality.json")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--images", type=int, default=10_000, help="most images of a set")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="given to our fit; auto if left out")
    parser.add_argument("--epochs", type=int, help="of our fit; auto if left out")
    parser.add_argument("--pretrain-epochs", type=int, default=100, help="of DEC, IDEC and DCN")
    parser.add_argument("--clustering-epochs", type=int, default=150, help="of DEC, IDEC and DCN")
    parser.add_argument("--again", action="store_true", help="replace what the file holds")
    parser.add_argument("--stop-after", type=float, help="start nothing after so many minutes")
    parser.add_argument("--quick", action="store_true", help="our fit of the digits in ten epochs")
    args = parser.parse_args()
    if args.quick:
        torch.set_num_threads(1)
        store, truth = open_set("digits", None, 1797)
        line = measure(METHODS["deepcluster"], Task(store, 10, 0, 0, {"epochs": 10}), 0, 1, truth)
        figures = "  ".join(f"{n} {line[n]:.4f}" for n in ("nmi", "acc", "ari"))
        print(f"quality {record.commit()}  {figures}  {line['cpu_seconds']:.1f} s of the processor")
        return
    began = time.perf_counter()
    torch.set_num_threads(args.threads)
    circumstances = record.circumstances()
    given = {"minutes": args.minutes, "epochs": args.epochs}
    given = {name: value for name, value in given.items() if value is not None}
    key = ("set", "images", "method", "seed", "threads", "settings")
    for name in args.sets:
        store, truth = open_set(name, args.data, args.images)
        k = len(np.unique(truth))
        task = Task(store, k, args.pretrain_epochs, args.clustering_epochs, given)
        for seed in args.seeds:
            for method in args.methods:
                facts = (name, len(store), method, seed, args.threads, settings(method, task))
                line: dict[str, Any] = dict(zip(key, facts, strict=True))
                old = [
                    run for run in read(args.out) if all(run[part] == line[part] for part in key)
                ]
                if old and not args.again:
                    continue
                if args.stop_after and time.perf_counter() - began > 60 * args.stop_after:
                    print("out of time")
                    return
                try:
                    line |= measure(METHODS[method], task, seed, args.threads, truth)
                except ImportError as error:
                    print(f"{method} is left out: {error}; pip install '.[peers]'")
                    continue
                kept = [run for run in read(args.out) if run not in old]
                record.write(args.out, [*kept, line | circumstances])
                figures = "  ".join(f"{n} {line[n]:.3f}" for n in ("nmi", "acc", "ari", "seconds"))
                print(f"{name:14} {method:12} {seed}  {figures}", flush=True)


if __name__ == "__main__":
    main()
