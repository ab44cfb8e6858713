"""Another number of clusters, from the tree of a run."""

from __future__ import annotations

import tempfile
from typing import Literal

import numpy as np
import torch

from deepcluster.backbones.features import FittedModel
from deepcluster.clustering.choose import choose_clusters
from deepcluster.clustering.tree import Tree
from deepcluster.device import read_only
from deepcluster.errors import ConfigError
from deepcluster.images.labels import encode
from deepcluster.naming import Remembered, carry_names
from deepcluster.progress import counted
from deepcluster.run import RunDir
from deepcluster.training.conclude import fit_scores
from deepcluster.training.resolve import most_clusters


def recluster_run(run: RunDir, clusters: int | Literal["auto"]) -> list[str]:
    """Another number of clusters, a cut of the run's tree; nothing is learnt anew.

    The images' table, the model and ``run.json`` follow, and so do predict and export. What a
    person said stays with the images: a cluster takes the name of the one from which most of its
    images come, an image that was moved goes where those went that it was moved to.

    Args:
        run: a finished run; written to.
        clusters: their number, or auto to choose it from the features.

    Returns:
        Sentences: what there is now, and what found no place.

    Raises:
        ConfigError: the tree has fewer parts than that.
        RunError: the run has no tree.
    """
    merges, heights, _ = run.read_tree()
    model = FittedModel.load(run.model)
    config, info = run.read_config(), run.read_info()
    tree = Tree(
        model.prototypes.part if model.prototypes.part is not None else model.prototypes.cluster,
        torch.from_numpy(merges.astype(np.int64)),
        torch.from_numpy(heights),
    )
    embeddings = read_only(run.read_embeddings())
    reduced = model.reduce(embeddings)
    choice: dict[int, float] = {}
    if clusters == "auto":
        found = choose_clusters(
            reduced,
            largest=max(2, min(most_clusters(len(reduced)), tree.largest)),
            neighbours=config.final.neighbours,
            generator=torch.Generator().manual_seed(config.seed),
        )
        clusters, choice = min(found.k, tree.largest), found.scores
    assert isinstance(clusters, int)
    if not 1 <= clusters <= tree.largest:
        raise ConfigError(
            f"{counted(clusters, 'cluster')}: the tree of this run has "
            f"{counted(tree.largest, 'part')}, so give a number from 1 to {tree.largest}, or fit "
            f"again with --clusters {clusters}"
        )
    before = Remembered.of(run) if run.has_changes() else None
    model.prototypes = model.prototypes.regroup(tree.cut(clusters))
    labels, distances, confidence = model.prototypes.assign(reduced)
    items = run.read_items()
    columns = {name: items[name].to_pylist() for name in items.column_names}
    columns |= {"cluster": labels.numpy(), "distance": distances.numpy()}
    columns["confidence"] = confidence.numpy()
    columns |= {"name": [None] * len(labels), "by": ["model"] * len(labels)}
    of_pixels = {"pixels": info["scores"]["pixels"]} if "pixels" in info["scores"] else {}
    if of_pixels:  # those of as many clusters as the fit had
        info["counts"].setdefault("pixel_clusters", info["counts"]["clusters"])
    info["counts"]["clusters"] = clusters
    info["choice"] = choice
    truth, _ = encode(columns["label"])
    fit = fit_scores(embeddings.numpy(), labels.numpy(), truth, seed=0)
    info["scores"] = {"fit": fit, **of_pixels}
    said = (
        f"{counted(clusters, 'cluster')}, a cut of the fit's tree: parts of its clusters or unions "
        "of them. A fit with --clusters for that number may group the "
        f"{run.item()}s a little better, but quite anew"
    )
    info["notes"] = [*info.get("notes", []), said]
    lines = [said]
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".recluster-") as folder:
        # All of it is worked out beside the run before anything in it is replaced.
        draft = RunDir(folder)
        draft.write_info(info)
        draft.write_config(config)
        draft.write_items(columns)
        if before is not None:
            draft.write_contents(before.contents)
            lines += str(carry_names(before, draft)).split("\n")
        model.save_clusters(run.model)
        run.write_tree(merges, heights, model.prototypes.parts_of(reduced).numpy())
        table = draft.read_items()
        run.write_items({name: table[name].to_pylist() for name in table.column_names})
        if before is not None:
            run.write_clusters(draft.read_clusters())
        run.write_info(info)
    return lines
