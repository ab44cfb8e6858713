"""What finished fits reached, as one small JSON file a run, for docs/benchmarks.md.

    deepcluster fit mnist --clusters 10 --minutes 5 --seed 0 --out runs/mnist-5-0
    python benchmarks/fit.py runs/mnist-5-0 [RUN ...]
    python benchmarks/tables.py

The run folder gives the settings, the time, the hardware and the scores of the clusters beside
k-means on the pixels. What only the embeddings tell is measured here: the vote of the 20 nearest
neighbours among all other images, asked of at most 10,000 images; a linear probe on at most 20,000
images (it learns from four fifths of them); and the NMI of plain k-means (best of 3 starts) on at
most 20,000 embeddings with 10, 20, 50 and 100 clusters. Labels are for measuring only.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch

from deepcluster import metrics
from deepcluster.clustering.kmeans import kmeans
from deepcluster.run import RunDir

MOST = 20_000  # images for the linear probe and for k-means
CLUSTERS = (10, 20, 50, 100)


def labels_of(run: RunDir) -> np.ndarray:
    """The class of each image as a number, ``(n,)``, -1 where unknown."""
    known = run.read_items()["label"].to_pylist()
    numbers = {name: k for k, name in enumerate(sorted({name for name in known if name}))}
    return np.array([numbers.get(name, -1) for name in known])


def embedding_scores(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """kNN, linear probe and the NMI of k-means with several numbers of clusters."""
    rng = np.random.default_rng(0)
    drawn = np.sort(rng.permutation(len(labels))[:MOST])
    some, classes = embeddings[drawn], labels[drawn]
    generator = torch.Generator().manual_seed(0)
    return {
        "knn": metrics.knn(embeddings, labels, rng),
        "linear_probe": metrics.linear_probe(some, classes, rng),
        "kmeans_nmi": {
            str(k): metrics.nmi(
                kmeans(some, k, n_init=3, generator=generator).labels.cpu().numpy(), classes
            )
            for k in CLUSTERS
            if k < len(some)
        },
    }


def rounded(value: Any) -> Any:
    """Scores at four digits, in nested dicts too."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def measure(run: RunDir, commit: str) -> dict[str, Any]:
    """All that the tables need to know of a finished run whose images have labels."""
    info, config = run.read_info(), run.read_config()
    embeddings, labels = np.array(run.read_embeddings()), labels_of(run)
    scores: dict[str, Any] = {**info["scores"], **embedding_scores(embeddings, labels)}
    return {
        "set": info["name"],
        "images": len(labels),
        "clusters": config.clusters,
        "minutes": info.get("minutes"),  # None: epochs were given, or followed from the images
        "epochs": config.epochs,
        "backbone": config.backbone,
        "size": config.size,
        "precision": config.train.precision,
        "seed": info["seed"],
        "seconds": info["seconds"],
        "processor_seconds": info.get("processor_seconds"),
        "threads": info["hardware"]["threads"],
        **rounded(scores),
        "hardware": info["hardware"],
        "versions": info["versions"],
        "commit": commit,
        "command": record.shown(info["command"]),
    }


def file_name(kind: str, line: dict[str, Any]) -> str:
    """A name that tells runs of other images, minutes, threads, arithmetic, seeds or versions."""
    given = f"{line['epochs']}epochs" if line["minutes"] is None else f"{line['minutes']:g}min"
    parts = (
        line["set"],
        line["images"],
        given,
        f"{line['threads']}threads",
        line["precision"],
        line["seed"],
        line["commit"],
    )
    return "-".join(map(str, (kind, *parts))) + ".json"


def main() -> None:
    """Write the JSON of each run given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of `deepcluster fit`")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the JSON")
    parser.add_argument(
        "--commit", help="what the fits ran on; the commit of this tree if not said"
    )
    args = parser.parse_args()
    for path in args.runs:
        line = measure(RunDir.open(path), args.commit or record.commit())
        target = args.out / file_name("fit", line)
        record.write(target, line)
        print(f"{target.name}  NMI {line['fit']['nmi']:.3f}  ACC {line['fit']['acc']:.3f}")


if __name__ == "__main__":
    main()
