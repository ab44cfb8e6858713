"""k-means against scikit-learn and faiss, from the same start, in one run.

    python benchmarks/kmeans.py
    python benchmarks/kmeans.py --rows 100000 --features 256 --clusters 4000 --json
    python benchmarks/kmeans.py --quick    # one line, to be compared between two commits in turns

Each engine gets the same float32 rows and the same start centres, does the same number of Lloyd
iterations on all rows and then assigns them; the engines take turns, and the median of the repeats
counts. A ratio above 1 means: deepcluster is slower. faiss is left out where it is not installed.
The rows are Gaussian noise: nothing an engine could skip. ``--cpu-time`` counts the processor's
time in place of the clock's, for a machine that others use, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import record
import sklearn
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_info, threadpool_limits

from deepcluster.clustering.kmeans import kmeans

try:
    import faiss
except ImportError:
    faiss = None

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


def kernels() -> list[str]:
    """What multiplies: torch's instructions, and the kernels of each BLAS that NumPy may use."""
    libraries = {
        f"{lib['internal_api']} {lib['architecture']}"
        for lib in threadpool_info()
        if "architecture" in lib
    }
    return [torch.backends.cpu.get_cpu_capability(), *sorted(libraries)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--clusters", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a small task on one thread, one line")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.features, args.clusters, args.threads = 20_000, 64, [200], 1
        args.repeats, args.cpu_time = 7, True

    torch.set_num_threads(args.threads)
    engines: dict[str, Engine] = {"deepcluster": ours, "scikit-learn": scikit_learn}
    if faiss is not None:
        faiss.omp_set_num_threads(args.threads)
        engines["faiss"] = faiss_cpu
    clock = time.process_time if args.cpu_time else time.perf_counter
    rng = np.random.default_rng(0)
    x = rng.standard_normal((args.rows, args.features), dtype=np.float32)
    lines = []
    for k in args.clusters:
        start = x[rng.choice(args.rows, k, replace=False)]
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        inertia: dict[str, float] = {}
        with threadpool_limits(args.threads):
            for _ in range(args.repeats):
                for name, engine in engines.items():
                    began = clock()
                    inertia[name] = engine(x, start, args.iterations)
                    seconds[name].append(clock() - began)
        median = {name: statistics.median(times) for name, times in seconds.items()}
        for name in engines:
            lines.append(
                {
                    "rows": args.rows,
                    "features": args.features,
                    "clusters": k,
                    "iterations": args.iterations,
                    "engine": name,
                    "seconds": round(median[name], 3),
                    "spread": [round(min(seconds[name]), 3), round(max(seconds[name]), 3)],
                    "ratio": round(median["deepcluster"] / median[name], 2),
                    "inertia": inertia[name],
                }
            )
    setting = {
        "threads": args.threads,
        "clock": "cpu" if args.cpu_time else "wall",
        "processor": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "kernels": kernels(),
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "faiss": faiss.__version__ if faiss is not None else None,
    }
    if args.quick:
        times = "  ".join(f"{line['engine']} {line['seconds']:.3f} s" for line in lines)
        print(f"kmeans {record.commit()}  {times}  ratio {lines[1]['ratio']:.2f} to scikit-learn")
        return
    if args.json:
        print(json.dumps({"setting": setting, "results": lines}))
        return
    print(", ".join(f"{name} {value}" for name, value in setting.items()))
    print(f"n = {args.rows}, d = {args.features}, {args.iterations} iterations")
    print(f"{'k':>6} {'engine':<13} {'seconds':>8} {'min-max':>14} {'ratio':>6} {'inertia':>16}")
    for line in lines:
        low, high = line["spread"]
        print(
            f"{line['clusters']:>6} {line['engine']:<13} {line['seconds']:>8.3f} "
            f"{f'{low:.2f}-{high:.2f}':>14} {line['ratio']:>6.2f} {line['inertia']:>16.1f}"
        )


if __name__ == "__main__":
    main()
