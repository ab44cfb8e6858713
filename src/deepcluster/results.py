"""What a fit found: into its run folder, and out of it again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from deepcluster.clustering.neighbours import nearest_rows
from deepcluster.clustering.tree import Tree
from deepcluster.device import give_back_memory
from deepcluster.images.store import ImageStore
from deepcluster.machine import hardware, versions
from deepcluster.naming import load_model
from deepcluster.progress import Progress
from deepcluster.run import NEIGHBOURS, Neighbours, RunDir
from deepcluster.saying import left_out
from deepcluster.training.conclude import FitResult, compare_with_pixels

SMALL_TILE, LARGE_TILE, FEW_IMAGES = 64, 96, 20_000  # sides of the thumbnails, in pixels


def write_result(run: RunDir, store: ImageStore, result: FitResult, progress: Progress) -> None:
    """Write what a fit found beside the features: clusters, neighbours, tree, model, pictures."""
    progress.phase("nearest images", 1)
    _write_neighbours(run, result)
    progress.advance(1)
    progress.phase("writing the run folder", len(store))
    give_back_memory()
    n = len(store)
    classes: list[str | None] = [None] * n
    if store.labels is not None:
        classes = [store.label_names[k] if k >= 0 else None for k in store.labels.tolist()]
    if store.contents is not None:
        run.write_contents(store.contents)
    run.write_items(
        {
            "id": store.ids,
            "path": store.paths,
            "label": classes,
            "cluster": result.labels,
            "name": [None] * n,
            "by": ["model"] * n,
            "distance": result.distances,
            "confidence": result.confidence,
            "x": result.places[:, 0],
            "y": result.places[:, 1],
        }
    )
    if result.tree is not None:
        run.write_tree(result.tree.merges.numpy(), result.tree.heights.numpy(), result.parts)
    result.model.save(run.model)
    if not len(store.pixels):  # an estimator that was pickled has none
        return
    tile = min(store.pixels.shape[1], LARGE_TILE if n <= FEW_IMAGES else SMALL_TILE)
    order = np.lexsort((result.distances, result.labels))  # a cluster lies on few sheets
    run.write_thumbnails(store.pixels, tile=tile, order=order)
    progress.advance(n)


def _write_neighbours(run: RunDir, result: FitResult) -> None:
    give_back_memory()
    features = torch.from_numpy(result.embeddings).to(result.config.device)
    index, distance, recall = nearest_rows(features, NEIGHBOURS)
    rows = index.cpu().numpy().view(np.uint32)
    run.write_neighbours(Neighbours(rows, distance.cpu().numpy(), recall))


def write_finished(
    run: RunDir, store: ImageStore, result: FitResult, facts: dict[str, Any]
) -> None:
    """Write the run folder of a fit that was made in memory.

    Args:
        run: an empty folder.
        store: the images; without pixels, no thumbnails are written.
        result: of the fit.
        facts: when it was ``started``, the fingerprint of the ``images``, and what else goes into
            run.json.
    """
    run.write_config(result.config)
    run.write_skipped(store.skipped)
    for line in result.history:
        run.append_metrics(line)
    run.write_embeddings([result.embeddings], result.embeddings.shape)
    write_result(run, store, result, Progress())
    if result.model.backbone is not None:  # vectors may have blanks for images
        result = compare_with_pixels(store, result, Progress())
    classes = len(store.label_names) if store.labels is not None else 0
    run.write_info(
        {
            "status": "done",
            "name": store.name,
            "command": [],
            "labels": None,
            "seed": result.config.seed,
            "minutes": None,
            "versions": versions(),
            "hardware": hardware(result.config),
            "counts": {
                "images": len(store),
                "skipped": len(store.skipped),
                "clusters": result.clusters,
                "classes": classes,
            },
            "notes": left_out(store),
            "choice": result.choice,
            "timings": result.timings,
            "scores": result.scores,
            **facts,
        }
    )


def read_result(run: RunDir, *, backbone: nn.Module | None = None) -> tuple[FitResult, ImageStore]:
    """What a finished run holds, with what a person changed; the images without their pixels.

    Args:
        run: a finished run.
        backbone: the net, where it was a module of the user's own.
    """
    info, items = run.read_info(), run.read_items()
    columns = {name: items[name].to_pylist() for name in ("id", "path", "label")}
    config = run.read_config()
    model = load_model(run, backbone=backbone)
    names = sorted({label for label in columns["label"] if label is not None})
    number = {name: i for i, name in enumerate(names)}
    assert isinstance(config.size, int)
    store = ImageStore(
        name=info["name"],
        pixels=np.empty((0, config.size, config.size, model.channels), np.uint8),
        size=config.size,
        ids=columns["id"],
        paths=columns["path"],
        labels=np.array([number.get(x, -1) for x in columns["label"]]) if names else None,
        label_names=names,
        skipped=run.read_skipped(),
        contents=run.read_contents() if run.contents.is_file() else None,
    )
    tree, parts = None, items["cluster"].to_numpy().astype(np.int64)
    if run.tree.is_file():
        merges, heights, part = run.read_tree()
        parts, own = part.astype(np.int64), model.prototypes.part
        tree = Tree(
            model.prototypes.cluster if own is None else own,
            torch.from_numpy(merges.astype(np.int64)),
            torch.from_numpy(heights),
        )
    result = FitResult(
        tree=tree,
        parts=parts,
        config=config,
        model=model,
        embeddings=np.array(run.read_embeddings()),
        labels=items["cluster"].to_numpy().astype(np.int64),
        distances=items["distance"].to_numpy(),
        confidence=items["confidence"].to_numpy(),
        places=np.stack([items["x"].to_numpy(), items["y"].to_numpy()], axis=1),
        history=run.read_metrics(),
        clusters=info["counts"]["clusters"],
        choice={int(k): score for k, score in (info.get("choice") or {}).items()},
        scores=info["scores"],
        timings=info["timings"],
    )
    return result, store
