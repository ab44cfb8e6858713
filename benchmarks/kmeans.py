"""k-means against scikit-learn, faiss, SuperKMeans and fastkmeans, in one run.

    python benchmarks/kmeans.py
    OPENBLAS_CORETYPE=SkylakeX python benchmarks/kmeans.py --threads 1 --cpu-time --write
    python benchmarks/kmeans.py --quick    # one line, to be compared between two commits in turns

Each engine gets the same float32 rows, does the same number of Lloyd iterations on all of them and
then assigns them; the engines take turns, and the median of the repeats counts. A ratio above 1
means: deepcluster is slower. deepcluster, scikit-learn and faiss have the same start; the two
others draw their own. Who is not installed is left out. Two kinds of rows: Gaussian noise, nothing
an engine could skip, five iterations; and 50 groups, each on a plane of few directions, until no
row changes (deepcluster and scikit-learn, which can stop there). ``--cpu-time`` counts the
processor's time in place of the clock's, for a machine that others use, too. With
OPENBLAS_CORETYPE=SkylakeX NumPy, faiss and SuperKMeans multiply with AVX-512 where they would not
choose it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import record
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from deepcluster.clustering.kmeans import kmeans
from deepcluster.config import Config, override
from deepcluster.machine import hardware

try:
    import faiss
except ImportError:
    faiss = None
try:
    import superkmeans
except ImportError:
    superkmeans = None
try:
    import fastkmeans
except ImportError:
    fastkmeans = None

Engine = Callable[[np.ndarray, np.ndarray, int], float]


def ours(x: np.ndarray, start: np.ndarray, iterations: int) -> float:
    """This project's engine; returns the inertia."""
    generator = torch.Generator().manual_seed(0)
    return kmeans(
        x, len(start), init=start, max_iter=iterations, tol=0, generator=generator
    ).inertia


def scikit_learn(x: np.ndarray, start: np.ndarray, iterations: int) -> float:
    """Lloyd's algorithm of scikit-learn."""
    model = KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(model.fit(x).inertia_)


def faiss_cpu(x: np.ndarray, start: np.ndarray, iterations: int) -> float:
    """Lloyd's algorithm of faiss, without its subsampling."""
    model = faiss.Kmeans(
        x.shape[1], len(start), niter=iterations,
        min_points_per_centroid=1, max_points_per_centroid=len(x),
    )  # fmt: skip
    model.train(x, init_centroids=start)
    return float(model.index.search(x, 1)[0].astype(np.float64).sum())


def super_kmeans(x: np.ndarray, start: np.ndarray, iterations: int) -> float:
    """SuperKMeans on all rows, with its pruning of dimensions."""
    model = superkmeans.SuperKMeans(
        len(start), x.shape[1], hierarchical=False, iters=iterations, sampling_fraction=1.0,
        max_points_per_cluster=len(x), early_termination=False, n_threads=torch.get_num_threads(),
    )  # fmt: skip
    centers = model.train(x)
    labels = np.asarray(model.assign(x, centers)).astype(np.int64)
    return float(np.square(x - centers[labels]).sum(dtype=np.float64))


def fast_kmeans(x: np.ndarray, start: np.ndarray, iterations: int) -> float:
    """fastkmeans, whose own assignment gives the inertia."""
    model = fastkmeans.FastKMeans(x.shape[1], len(start), niter=iterations, tol=0, gpu=False)
    model.train(x)
    labels = model.predict(x)
    return float(np.square(x - model.centroids[labels]).sum(dtype=np.float64))


def rows(kind: str, n: int, d: int) -> np.ndarray:
    """Noise, or groups; ``(n, d)`` float32."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), dtype=np.float32)
    if kind == "noise":
        return x
    middles = rng.standard_normal((50, d), dtype=np.float32)
    plane = rng.standard_normal((16, d), dtype=np.float32)
    within = rng.standard_normal((n, 16), dtype=np.float32)
    return middles[rng.integers(50, size=n)] + 0.15 * within @ plane + 0.3 * x


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--features", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--clusters", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--kinds", nargs="+", default=["noise", "groups"])
    parser.add_argument("--iterations", type=int, default=5, help="of noise")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--write", action="store_true", help="to benchmarks/results/kmeans.json")
    parser.add_argument("--quick", action="store_true", help="a small task on one thread, one line")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.features, args.clusters, args.threads = [20_000], [64], [200], 1
        args.repeats, args.cpu_time, args.kinds = 7, True, ["noise"]

    torch.set_num_threads(args.threads)
    everyone: dict[str, Engine] = {"deepcluster": ours, "scikit-learn": scikit_learn}
    if faiss is not None:
        faiss.omp_set_num_threads(args.threads)
        everyone["faiss"] = faiss_cpu
    if superkmeans is not None:
        everyone["SuperKMeans"] = super_kmeans
    if fastkmeans is not None:
        everyone["fastkmeans"] = fast_kmeans
    clock = time.process_time if args.cpu_time else time.perf_counter
    lines = []
    for kind, n, d, k in itertools.product(args.kinds, args.rows, args.features, args.clusters):
        x = rows(kind, n, d)
        start = x[np.random.default_rng(1).choice(n, k, replace=False)]
        stops = ["deepcluster", "scikit-learn"]
        engines = everyone if kind == "noise" else {name: everyone[name] for name in stops}
        iterations = args.iterations if kind == "noise" else 300
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        inertia: dict[str, float] = {}
        with threadpool_limits(args.threads):
            for _ in range(args.repeats):
                for name, engine in engines.items():
                    began = clock()
                    inertia[name] = engine(x, start, iterations)
                    seconds[name].append(clock() - began)
        lines.append(
            {
                "kind": kind,
                "rows": n,
                "features": d,
                "clusters": k,
                "seconds": {name: [round(t, 4) for t in sorted(seconds[name])] for name in engines},
                "inertia": inertia,
                "load": record.load(),
            }
        )
        label = f"kmeans {record.commit()} " if args.quick else ""
        print(label + shown(lines[-1]), flush=True)
    facts = {
        "lines": lines,
        "threads": args.threads,
        "clock": "cpu" if args.cpu_time else "wall",
        "iterations": args.iterations,
        "hardware": hardware(override(Config(), {"device": "cpu"})),
        "kernels": record.kernels(),
        "versions": versions(),
        "commit": record.commit(),
        "command": record.command(),
    }
    if args.write:
        path = record.RESULTS / "kmeans.json"
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Of torch and of the peers that are installed."""
    found = {}
    for name in ("torch", "scikit-learn", "faiss-cpu", "superkmeans", "fastkmeans"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def shown(line: dict[str, Any]) -> str:
    """A cell as one line: seconds, and how they relate to each peer's."""
    times = {name: statistics.median(each) for name, each in line["seconds"].items()}
    own = times.pop("deepcluster")
    peers = ", ".join(f"{name} {own / time:.2f}" for name, time in times.items())
    cell = f"{line['kind']} {line['rows']} x {line['features']}, k = {line['clusters']}"
    return f"{cell}: {own:.3f} s; over {peers}"


if __name__ == "__main__":
    main()
