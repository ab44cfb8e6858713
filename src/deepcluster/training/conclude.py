"""Features of all images -> what a fit gives: clusters, their tree, the map, scores.

Labels, where there are any, are read by :func:`score` alone.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster import metrics
from deepcluster.backbones.features import FittedModel
from deepcluster.backbones.preprocessing import Preprocessing, to_device
from deepcluster.clustering.choose import choose_clusters
from deepcluster.clustering.graph import cluster_tree, tree_of
from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.pca import PCA, fit_pca, normalise, normalise_
from deepcluster.clustering.plane import layout
from deepcluster.clustering.prototypes import Prototypes
from deepcluster.clustering.tree import Tree
from deepcluster.config import Config
from deepcluster.device import give_back_memory
from deepcluster.images.sinks import free_memory
from deepcluster.images.sources import pixels_folder
from deepcluster.progress import Progress, counted
from deepcluster.training.chance import ORDER, mix

if TYPE_CHECKING:
    from deepcluster.images.store import ImageStore

PIECE = 8192  # rows of features made elsewhere that are read at a time
PIXEL_IMAGES = 10_000  # images at most, or ten a cluster, for the yardstick: k-means on the pixels
PIXEL_SIDE = 32  # pixels: it sees images averaged down to this side
PIXEL_ROWS = 1000  # images a cluster on which the yardstick, k-means on the pixels, is fitted
MOST_IN_TREE = 3000  # clusters: its table grows with their square
MOST_GRAPH_CLUSTERS = 1000  # beyond, clusters are as small as the graph's patches: k-means it is


@dataclass(frozen=True)
class FitResult:
    """What a fit gives; every array is in the order of the images."""

    config: Config  # resolved
    model: FittedModel
    embeddings: np.ndarray  # (n, d) float32, rows of length 1
    labels: np.ndarray  # (n,) int64, the clusters
    distances: np.ndarray  # (n,) float32
    confidence: np.ndarray  # (n,) float32 in [0, 1]
    tree: Tree | None  # the clusters are one of its cuts; None beyond MOST_IN_TREE
    parts: np.ndarray  # (n,) int64, the part of the tree
    places: np.ndarray  # (n, 2) float32 on the map, NaN where an image is not on it
    history: list[dict[str, Any]]  # the lines of metrics.jsonl
    clusters: int  # their number
    choice: dict[int, float]  # score of each number that was looked at, if it was chosen
    scores: dict[str, dict[str, float]]  # of "fit" and, once compared, of "pixels"
    timings: dict[str, float]  # seconds a phase


@dataclass
class Clock:
    """Seconds spent in each phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, phase: str) -> None:
        """Book the time since the last lap."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


@dataclass(frozen=True)
class Begun:
    """A net before its first epoch.

    Attributes:
        backbone: the net; None where the features come from elsewhere.
        name: as :func:`deepcluster.backbones.build.build_backbone` takes it.
        channels: of its images.
        preprocessing: what lies between pixels and net.
        license: of the weights it begins with.
    """

    backbone: nn.Module | None
    name: str
    channels: int
    preprocessing: Preprocessing
    license: str = ""


def fit_vectors(
    embeddings: Tensor,
    config: Config,
    *,
    truth: np.ndarray | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Clusters of features made elsewhere.

    Args:
        embeddings: ``(n, d)`` float32, rows of length 1, in memory or in a file that is mapped.
        config: settings, as :func:`deepcluster.training.plan.schedule_given` gives them.
        truth: ``(n,)`` labels, for measuring only.
        progress: told what happens.
    """
    begun = Begun(None, config.backbone, 1, Preprocessing(1, (0.0,), (1.0,)))
    return conclude(
        embeddings,
        config,
        begun,
        clock=Clock(),
        progress=progress or Progress(),
        truth=truth,
    )


def unit_rows(rows: np.ndarray) -> Tensor:
    """Rows at length 1, ``(n, d)`` float32.

    Where they would take more than a third of the memory that is free, they lie in a file without
    a name in the user's cache folder, which the system reads as it is needed.

    Args:
        rows: ``(n, d)`` numbers, wherever they lie: they are read piece by piece.
    """
    if rows.size * 4 > free_memory() / 3:
        with tempfile.TemporaryFile(dir=pixels_folder()) as file:
            for piece in unit_pieces(rows):
                file.write(piece.data)  # a full disk is an error; through a map it is a signal
            file.flush()
            return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=rows.shape))
    found = torch.empty(rows.shape)
    start = 0
    for piece in unit_pieces(rows):
        found[start : start + len(piece)] = torch.from_numpy(piece)
        start += len(piece)
    return found


def unit_pieces(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rows ``(n, d)`` at length 1, float32, some at a time."""
    for start in range(0, len(rows), PIECE):
        piece = np.require(rows[start : start + PIECE], np.float32, ["C", "W"])
        yield normalise(torch.from_numpy(piece)).numpy()


def conclude(
    embeddings: Tensor,
    config: Config,
    begun: Begun,
    *,
    clock: Clock,
    progress: Progress,
    truth: np.ndarray | None = None,
    history: list[dict[str, Any]] | None = None,
) -> FitResult:
    """What is done with the features of all images: clusters, map, scores.

    Args:
        embeddings: ``(n, d)``, rows of length 1.
        config: resolved settings.
        begun: the net they are of.
        clock: goes on.
        progress: told what happens.
        truth: ``(n,)`` labels, for measuring only.
        history: the lines of the epochs.
    """
    assert isinstance(config.epochs, int)
    generator = torch.Generator().manual_seed(mix(config.seed, config.epochs, ORDER))
    progress.phase("clusters", 1)
    give_back_memory()
    pca, prototypes, tree, choice = final_clusters(embeddings, config, generator, progress)
    clusters = len(prototypes.cluster.unique())
    if choice:
        progress.note(f"{counted(clusters, 'cluster')}, chosen among 2 to {max(choice)}")
    model = FittedModel(
        backbone=begun.backbone,
        name=begun.name,
        channels=begun.channels,
        sobel=config.sobel,
        preprocessing=begun.preprocessing,
        pca=pca,
        prototypes=prototypes,
        license=begun.license,
    )
    labels, distances, confidence = model.assign(embeddings)
    parts = model.parts_of(embeddings)
    progress.advance(1)
    clock.lap("clusters")
    progress.phase("map", 1)
    give_back_memory()
    places = layout(model.reduce(embeddings), generator=generator)
    progress.advance(1)
    clock.lap("map")
    scores = {"fit": fit_scores(embeddings.numpy(), labels.numpy(), truth, seed=config.seed)}
    clock.lap("measure")
    return FitResult(
        config=config,
        model=model,
        embeddings=embeddings.numpy(),
        labels=labels.numpy(),
        distances=distances.numpy(),
        confidence=confidence.numpy(),
        tree=tree,
        parts=parts.numpy(),
        places=np.asarray(places),
        history=history or [],
        clusters=clusters,
        choice=choice,
        scores=scores,
        timings={name: round(seconds, 3) for name, seconds in clock.seconds.items()},
    )


def score(labels: np.ndarray, truth: np.ndarray | None) -> dict[str, float]:
    """NMI (of both kinds), ARI and ACC of clusters against labels; nothing without labels."""
    if truth is None or not (truth >= 0).any():
        return {}
    known = truth >= 0
    names = ("nmi", "nmi_arithmetic", "ari", "acc")
    return {name: getattr(metrics, name)(labels[known], truth[known]) for name in names}


def fit_scores(
    embeddings: np.ndarray, labels: np.ndarray, truth: np.ndarray | None, *, seed: int
) -> dict[str, float]:
    """What run.json says of the clusters of a fit.

    Args:
        embeddings: ``(n, d)``, rows of length 1.
        labels: ``(n,)``, the clusters.
        truth: ``(n,)``, for measuring only.
        seed: of the rows that the modularity is measured on, where they are many.
    """
    found = score(labels, truth)
    if len(np.unique(labels)) > 1 and len(labels) > metrics.GRAPH_NEIGHBOURS:
        rng = np.random.default_rng(seed)
        found["modularity"] = metrics.modularity(embeddings, labels, rng)
    return found


def cuts_graph(config: Config, k: int, n: int) -> bool:
    """Whether k clusters of n images are a cut of their graph, and not those of k-means."""
    return config.final.algorithm == "graph" and k < min(n, MOST_GRAPH_CLUSTERS)


def final_clusters(
    embeddings: Tensor,
    config: Config,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> tuple[PCA | None, Prototypes, Tree | None, dict[int, float]]:
    """The clusters a person gets, their tree, and the scores of numbers if one is chosen."""
    final = config.final
    assert isinstance(config.clusters, int)
    kept = min(final.pca, *embeddings.shape)
    half = config.train.precision == "bfloat16"
    rounding = torch.finfo(torch.bfloat16 if half else torch.float32).eps
    pca = fit_pca(embeddings, kept, whiten=final.whiten, rounding=rounding) if kept else None
    x = embeddings if pca is None else normalise_(pca.apply(embeddings))
    device = config.device if config.device.startswith("cuda") else "cpu"  # MPS has no float64
    x = x.to(device)
    k, choice = config.clusters, {}
    if final.choose:
        chosen = choose_clusters(x, largest=k, neighbours=final.neighbours, generator=generator)
        k, choice = chosen.k, chosen.scores
    if cuts_graph(config, k, len(x)):
        found = cluster_tree(x, k, neighbours=final.neighbours, generator=generator)
        return pca, *found, choice
    result = kmeans(
        x, k, max_iter=300, n_init=final.restarts, generator=generator, progress=progress
    )
    prototypes = Prototypes(result.centers.cpu(), torch.arange(k))
    if k > MOST_IN_TREE:
        return pca, prototypes, None, choice
    tree = tree_of(x, prototypes, neighbours=final.neighbours, generator=generator)
    return pca, prototypes, tree, choice


def compare_with_pixels(store: ImageStore, result: FitResult, progress: Progress) -> FitResult:
    """The result with the scores of the yardstick beside its own; as it is without labels.

    Args:
        store: the images.
        result: of a fit of them.
        progress: told what happens.
    """
    if store.labels is None or not len(store.pixels):
        return result
    progress.phase("k-means on the pixels, to compare", 1)
    clock = Clock()
    generator = torch.Generator().manual_seed(result.config.seed)
    rows, found = pixel_clusters(store, result.clusters, generator)
    scores = {**result.scores, "pixels": score(found, store.labels[rows])}
    progress.advance(1)
    clock.lap("compare")
    timings = result.timings | {"compare": round(clock.seconds["compare"], 3)}
    return dataclasses.replace(result, scores=scores, timings=timings)


def pixel_clusters(
    store: ImageStore, k: int, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Plain k-means on the pixels of at most PIXEL_IMAGES images: the yardstick.

    Large images are averaged down first.

    Returns:
        which images, ``(m,)``, and the cluster of each.
    """
    several = min(len(store), max(PIXEL_IMAGES, 10 * k))
    rows = np.arange(several) * len(store) // several
    side = min(store.pixels.shape[1], PIXEL_SIDE)
    flat = torch.empty(several, side * side * store.channels)
    for start in range(0, several, 1024):
        index = rows[start : start + 1024]
        images = to_device(store.batch(index), torch.device("cpu")).float() / 255
        small = nn.functional.adaptive_avg_pool2d(images, side)
        flat[start : start + len(index)] = small.flatten(1)
    result = kmeans(
        flat,
        k,
        max_iter=100,
        n_init=3,
        max_points_per_centre=PIXEL_ROWS,
        generator=generator,
    )
    return rows, result.labels.numpy()
