"""Run folders without a fit, made through RunDir only: for the tests and benchmarks of the report.

By hand: ``python tests/make_run.py OUT --images 500 --clusters 8``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import linkage

from deepcluster.config import Config, override
from deepcluster.images.content import content_of
from deepcluster.run import Neighbours, RunDir

HOSTILE = [
    '<img src=x onerror="document.title=1">.png',
    "</script><script>document.title=2</script>.png",
    "quote\"s 'n' `ticks`.png",
    "${document.title=3}{{ 7*7 }}.png",
    "=HYPERLINK(A1),semi;colon.png",
    "Grüße aus Köln – Äpfel.jpg",
    "東京タワー・猫の写真.png",
    "👩‍👩‍👧 emoji 🎉.png",
    "صورة قطة.png",
    "\u202egnp.exe right-to-left.png",
    "percent%zz%41.png",
    "hash#frag?query&amp;.png",
    "new\nline, tab\t.png",
    " leading and trailing ",
    "javascript:alert(1)",
    "__proto__",
    "constructor",
    "line\u2028separator.png",
    "C:\\windows\\style.png",
    "x" * 300 + ".png",
]


def write_run(
    path: Path,
    *,
    images: Sequence[np.ndarray] | np.ndarray,
    embeddings: np.ndarray,
    clusters: np.ndarray,
    labels: Sequence[str | None] | None = None,
    ids: Sequence[str] | None = None,
    paths: Sequence[str | None] | None = None,
    places: np.ndarray | None = None,
    contents: Sequence[int] | None = None,
    metrics: Sequence[dict[str, Any]] | None = None,
    info: dict[str, Any] | None = None,
    tile: int = 16,
    parts: int = 0,
) -> RunDir:
    """A finished run of these images with these clusters; with `parts` of each, and their tree."""
    n = len(images)
    clusters = np.asarray(clusters, np.int32)
    count = int(clusters.max()) + 1
    embeddings = np.asarray(embeddings, np.float32)
    centres = np.zeros((count, embeddings.shape[1]), np.float32)
    np.add.at(centres, clusters, embeddings)
    centres /= np.maximum(np.bincount(clusters, minlength=count), 1)[:, None]
    away = np.linalg.norm(embeddings[:, None] - centres[None], axis=2) if n <= 2000 else None
    distance = np.linalg.norm(embeddings - centres[clusters], axis=1)
    if away is not None and count > 1:
        nearest = np.sort(away, axis=1)
        confidence = np.clip(1 - nearest[:, 0] / np.maximum(nearest[:, 1], 1e-9), 0, 1)
    else:
        confidence = 1 / (1 + distance / max(float(np.median(distance)), 1e-9)) * 1.5
        confidence = np.clip(confidence, 0, 1)
    run = RunDir.create(path)
    run.write_config(
        override(
            Config(),
            {
                "method": "deepcluster",
                "backbone": "resnet18-small",
                "epochs": 60,
                "clusters": count,
                "size": 28,
            },
        )
    )
    classes = {label for label in labels or [] if label is not None}
    run.write_info(
        {
            "status": "done",
            "name": path.name,
            "command": ["deepcluster", "fit", path.name],
            "started": "2026-01-02T03:04:05+00:00",
            "seconds": 754.2,
            "timings": {"decoding": 12.0, "training": 640.5, "features": 40.1, "clusters": 61.6},
            "seed": 0,
            "hardware": {"device": "cpu", "cpu": "some CPU", "cores": 2},
            "versions": {"deepcluster": "0.1.0", "python": "3.12.1", "torch": "2.6.0"},
            "notes": [],
            "scores": {},
            **(info or {}),
            "counts": {
                **{"images": n, "skipped": 1, "clusters": count, "classes": len(classes)},
                **(info or {}).get("counts", {}),
            },
        }
    )
    for line in metrics if metrics is not None else training(12, count):
        run.append_metrics(line)
    run.write_skipped([("broken <b>file</b>.png", "it is no image")])
    np.save(run.embeddings, embeddings, allow_pickle=False)
    known = [content_of(image) for image in images] if contents is None else contents
    np.save(run.contents, np.array(known, np.uint64), allow_pickle=False)
    if places is None:
        places = np.asarray(embeddings[:, :2], np.float32)
    run.write_items(
        {
            "id": list(ids) if ids is not None else [f"{i:06d}" for i in range(n)],
            "path": list(paths) if paths is not None else [None] * n,
            "label": list(labels) if labels is not None else [None] * n,
            "cluster": clusters,
            "name": [None] * n,
            "by": ["model"] * n,
            "distance": distance.astype(np.float32),
            "confidence": confidence.astype(np.float32),
            "x": places[:, 0],
            "y": places[:, 1],
        }
    )
    if n > 2000:  # too many to look for: some of the same cluster
        order = np.argsort(clusters, kind="stable")
        ring = np.empty((n, 12), np.uint32)
        ring[order] = np.stack([np.roll(order, -step) for step in range(1, 13)], 1)
        run.write_neighbours(Neighbours(ring, np.ones((n, 12), np.float32), 1.0))
    if parts:
        run.write_tree(*make_tree(embeddings, clusters, parts))
    run.write_thumbnails(images, tile=tile, order=np.lexsort((distance, clusters)))
    return run


def make_tree(
    embeddings: np.ndarray, clusters: np.ndarray, parts: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A tree whose cut at the number of clusters is the clusters; each has `parts` parts.

    Returns:
        merges, heights and the part of each image, as :meth:`RunDir.write_tree` takes them.
    """
    count = int(clusters.max()) + 1
    part = clusters * parts
    for cluster in range(count):
        members = np.flatnonzero(clusters == cluster)
        order = members[np.argsort(embeddings[members, 0], kind="stable")]
        # parts of unequal sizes: half, a quarter, …
        sizes = np.maximum(1, len(order) // 2 ** np.arange(1, parts + 1))
        bounds = np.minimum(np.cumsum(sizes), len(order))
        for i in range(parts):
            end = len(order) if i == parts - 1 else bounds[i]
            part[order[(bounds[i - 1] if i else 0) : end]] = cluster * parts + i
    first = [cluster * parts for cluster in range(count)]
    merges = [(start, start + i) for i in range(1, parts) for start in first]
    centres = np.stack([embeddings[clusters == cluster].mean(axis=0) for cluster in range(count)])
    for a, b, *_ in linkage(centres, "average") if count > 1 else []:
        pair = sorted((first[int(a)], first[int(b)]))
        merges.append((pair[0], pair[1]))
        first.append(pair[0])
    return np.array(merges).reshape(-1, 2), np.arange(len(merges), dtype=np.float64), part


def training(epochs: int, clusters: int, *, good: bool = True) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl of a fit that goes well, or of one that collapses."""
    k = 10 * clusters
    lines = []
    for epoch in range(epochs):
        t = epoch / max(epochs - 1, 1)
        wave = 0.02 * math.sin(3 * epoch)
        learnt = 1 - math.exp(-4 * t)
        lines.append(
            {
                "epoch": epoch,
                "clusters": k,
                "loss": math.log(k) * (1 - 0.62 * learnt + wave) if good else math.log(k) * 0.995,
                "ln_k": math.log(k),
                "nmi_previous": None if epoch == 0 else 0.35 + 0.42 * learnt + wave,
                "changed": None if epoch == 0 else (0.9 - 0.62 * learnt + wave if good else 0.8),
                "largest": 1.8 / k + 0.01 * learnt if good else 0.3 + 0.6 * t,
                "smallest": 0.2 / k,
                "empty": 0 if good else int(40 * t),
                "entropy": 0.96 + 0.02 * learnt if good else 0.9 - 0.7 * t,
                "effective_rank": 30 + 60 * learnt if good else 20 * (1 - t) + 1.2,
                "lr": 0.05 * (1 + math.cos(math.pi * t)) / 2,
                "seconds": {"train": 8.1, "clusters": 1.4},
                "nmi": 0.5 + 0.25 * learnt + wave / 2,
            }
        )
    return lines


def make_run(
    path: Path,
    *,
    n: int = 240,
    clusters: int = 6,
    dimensions: int = 8,
    labels: bool = True,
    hostile: bool = False,
    side: int = 16,
    seed: int = 0,
    **more: Any,
) -> RunDir:
    """A run of coloured squares: the hue says the cluster, a bright dot tells the images apart."""
    rng = np.random.default_rng(seed)
    assigned = np.concatenate([np.arange(clusters), rng.integers(clusters, size=n - clusters)])
    centres = rng.normal(size=(clusters, dimensions)) * 4
    embeddings = centres[assigned] + rng.normal(size=(n, dimensions))
    hues = rng.integers(60, 220, size=(clusters, 3)).astype(np.uint8)
    images = np.broadcast_to(hues[assigned][:, None, None], (n, side, side, 3)).copy()
    dots = rng.integers(2, side - 2, size=(n, 2))
    for step in (-1, 0, 1):
        images[np.arange(n), dots[:, 0] + step, dots[:, 1]] = 255
        images[np.arange(n), dots[:, 0], dots[:, 1] + step] = 255
    classes = None
    if labels:
        truth = np.where(rng.random(n) < 0.85, assigned, rng.integers(clusters, size=n))
        classes = [f"class {c}" for c in truth]
    if hostile:
        names = [HOSTILE[i] if i < len(HOSTILE) else f"plain {i}.png" for i in range(n)]
        more.setdefault("ids", names)
        more.setdefault("paths", [f"/data/<b>folder</b>/{name}" for name in names])
        classes = [HOSTILE[i % 4] for i in assigned] if labels else None
    return write_run(
        path, images=images, embeddings=embeddings, clusters=assigned, labels=classes, **more
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--clusters", type=int, default=8)
    given = parser.parse_args()
    make_run(given.out, n=given.images, clusters=given.clusters)
