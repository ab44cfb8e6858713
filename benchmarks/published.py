"""Figures of other people's tables for this family of methods, measured again in parts of minutes.

    python benchmarks/published.py --data FOLDER --row iic --minutes 9      # again until it is done
    python benchmarks/published.py --data FOLDER --row and --minutes 9
    python benchmarks/published.py --data FOLDER --row solo-learn --minutes 9
    python benchmarks/tables.py

A call trains for at most so many minutes, leaves a checkpoint in runs/published-ROW, and the next
call goes on from there; the one that ends the fit measures and writes a JSON. FOLDER holds
cifar10-train.parquet and cifar10-test.parquet (Hugging Face layout).

What is taken over from each table is its method, its number of clusters, its epochs and what is
measured; the nets are the nearest ones here, so that a figure stands beside the published one and
repeats none to the letter:

- IIC (Ji, Henriques and Vedaldi, ICCV 2019), table 1: DeepCluster with as many clusters as classes,
  trained and measured on all images; ACC .374.
- AND (Huang, Dong, Gong and Zhu, ICML 2019), table 1: DeepCluster with AlexNet and about a hundred
  clusters, 200 epochs; kNN 62.3, linear 77.9 on the test images.
- solo-learn (its README): DeepCluster v2 with ResNet-18, 3,000 prototypes, 1,000 epochs; linear
  88.85 on the test images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import record

from deepcluster.config import Config, override
from deepcluster.finished import evaluate_run
from deepcluster.fitting import fit_source
from deepcluster.progress import Progress
from deepcluster.run import RunDir

ROWS: dict[str, dict[str, Any]] = {
    "iic": {
        "settings": {
            "method": "deepcluster", "backbone": "resnet18_small", "epochs": 200,
            "deepcluster.pseudo_clusters": 10, "final.algorithm": "kmeans",
        },
        "published": {"acc": 0.374},
        "measured": "all images",
    },
    "and": {
        "settings": {
            "method": "deepcluster", "backbone": "alexnet_small", "epochs": 200,
            "deepcluster.pseudo_clusters": 100,
        },
        "published": {"knn": 0.623, "linear_probe": 0.779},
        "measured": "test images",
    },
    "solo-learn": {
        "settings": {
            "method": "deepcluster-v2", "backbone": "resnet18_small", "epochs": 1000,
            "deepcluster_v2.prototypes": 3000,
        },
        "published": {"linear_probe": 0.8885},
        "measured": "test images",
    },
}  # fmt: skip


class Until(Progress):
    """Ends the call at the first epoch that comes after its time, as Ctrl-C would."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def epoch(self, line: dict[str, Any]) -> None:
        """Look at the clock."""
        if time.monotonic() > self.end:
            raise KeyboardInterrupt


def go_on(out: Path, source: Any, settings: dict[str, Any], minutes: float) -> RunDir | None:
    """Fit, or go on; None while epochs are left."""
    try:
        return fit_source(
            source,
            override(Config(), settings),
            out=out,
            resume=out.exists(),
            progress=Until(minutes),
            command=[record.command()],
        )
    except KeyboardInterrupt:
        return None


def main() -> None:
    """Fit for a while; measure at the end."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--row", choices=list(ROWS), required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--minutes", type=float, default=9, help="of this call")
    parser.add_argument("--set", default="cifar10")
    parser.add_argument("--epochs", type=int, help="fewer, to try it")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the JSON")
    args = parser.parse_args()
    row = ROWS[args.row]
    files = [str(args.data / f"{args.set}-{part}.parquet") for part in ("train", "test")]
    settings = row["settings"] | {"clusters": 10, "seed": args.seed, "device": args.device}
    if args.epochs:
        settings["epochs"] = args.epochs
    alone = row["measured"] == "test images"
    run = go_on(
        args.runs / f"published-{args.row}", files[0] if alone else files, settings, args.minutes
    )
    if run is None:
        print("epochs are left: the same command again goes on")
        return
    scores = evaluate_run(run, files[1], device=args.device) if alone else evaluate_run(run)
    line = {
        "row": args.row,
        "set": args.set,
        "epochs": run.read_config().epochs,
        "seed": args.seed,
        "seconds": run.read_info()["seconds"],
        "scores": {name: round(scores[name], 4) for name in row["published"]},
        **record.circumstances(args.device),
    }
    record.write(args.out / f"published-{args.row}-{args.seed}.json", line)
    print(args.row, line["scores"])


if __name__ == "__main__":
    main()
