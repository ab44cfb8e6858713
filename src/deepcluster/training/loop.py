"""The one loop: images in, a fitted model and its clusters out.

Read :func:`fit` from top to bottom. All chance in epoch `e` comes from generators seeded by the
fit's seed and `e`, so a fit that resumes after epoch `e` needs no random state and gives the same
bits as one that was never stopped. Labels, where the store has any, are read by :func:`score`
alone.

A little long, so that the way from images to clusters is read in one place.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster import metrics
from deepcluster.backbones.adapt import hold, keep_statistics
from deepcluster.backbones.features import FittedModel, extract, kept_features
from deepcluster.backbones.nets import prepare_backbone
from deepcluster.backbones.preprocessing import Batches, Preprocessing, to_device
from deepcluster.backbones.start import build_net, find_weights
from deepcluster.clustering.choose import choose_clusters
from deepcluster.clustering.graph import cluster_tree, tree_of
from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.pca import PCA, fit_pca, normalise
from deepcluster.clustering.plane import layout
from deepcluster.clustering.prototypes import Prototypes
from deepcluster.clustering.tree import Tree
from deepcluster.config import Config
from deepcluster.methods import Snapshot, load_method
from deepcluster.progress import Progress
from deepcluster.run import RunDir
from deepcluster.training.checkpoints import load_newest, save_checkpoint
from deepcluster.training.optimizers import build_optimizer
from deepcluster.training.plan import PIXEL_IMAGES, PIXEL_SIDE, Pace
from deepcluster.training.step import Step

if TYPE_CHECKING:
    from deepcluster.images.store import ImageStore

ORDER, VIEWS, DROPOUT = range(3)  # uses of chance in an epoch, each with a seed of its own
RANK_ROWS = 10_000  # rows, spread evenly, whose effective rank is measured each epoch
MOST_CHECKPOINTS = 100  # in a fit: on a GPU an epoch may take little longer than writing one
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
    scores: dict[str, dict[str, float]]  # of "fit" and of "pixels"
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


def fit(
    store: ImageStore,
    config: Config,
    *,
    backbone: nn.Module | None = None,
    run: RunDir | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    pace: Pace | None = None,
) -> FitResult:
    """Train on the images and cluster them.

    Args:
        store: the images.
        config: settings, as :func:`deepcluster.training.plan.resolve` gives them.
        backbone: a net to train in place of ``config.backbone``: ``(b, c, size, size)`` ->
            ``(b, d)``.
        run: where metrics and checkpoints go; None keeps nothing on disk.
        resume: go on from the run's last checkpoint.
        progress: told what happens.
        pace: asked after each epoch how many there shall be; the result's settings say it.

    Returns:
        Clusters, features, the fitted model and what was measured.
    """
    progress = progress or Progress()
    clock = Clock()
    device = torch.device(config.device)
    dtype = getattr(torch, config.train.precision)
    assert isinstance(config.epochs, int)
    assert isinstance(config.train.batch_size, int)
    assert isinstance(config.train.lr, float)
    assert isinstance(config.clusters, int)

    known = backbone is None
    with seeded(config.seed):
        begun = begin(store, config, backbone)
        assert begun.backbone is not None
        if config.start == "frozen":
            return _frozen(store, config, begun, clock, progress)
        if config.start == "adapt":
            release = hold(begun.backbone)
        method: Any = load_method(config.method)(config, begun.backbone, len(store))
    method.to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(method.groups(), config.train)
    preprocessing = begun.preprocessing
    step = Step(method, optimizer, config, preprocessing, Batches(store, device), record=known)

    def extract_all() -> Tensor:
        progress.phase("features", len(store))
        return extract(
            method.backbone,
            store,
            preprocessing,
            device=device,
            dtype=dtype,
            advance=progress.advance,
        )

    first, previous, history = 0, None, []
    if resume and run is not None:
        first, previous = load_newest(run, method, optimizer)
        run.truncate_metrics(first)
        history = run.read_metrics()
    elif run is not None:
        save_checkpoint(run, 0, method, optimizer, None)
    every = max(config.train.checkpoint_every, math.ceil(config.epochs / MOST_CHECKPOINTS))
    clock.lap("set-up")

    for epoch in range(first, config.epochs):
        if epoch >= config.epochs:  # fewer than when the loop began
            break
        generator = torch.Generator().manual_seed(mix(config.seed, epoch, ORDER))
        watch = Clock()
        method.eval()
        snapshot: Snapshot | None = method.start_epoch(epoch, extract_all, optimizer, generator)
        watch.lap("cluster")

        with seeded(
            mix(config.seed, epoch, DROPOUT)
        ):  # dropout draws from torch's global generator
            method.train()
            if config.start == "adapt":
                keep_statistics(method.backbone)
            order = method.order(generator)
            # as few batches as there must be, of sizes that differ by one at most: none is left out
            batches = order.tensor_split(math.ceil(len(order) / config.train.batch_size))
            progress.phase(f"epoch {epoch + 1}/{config.epochs}", len(order))
            step.begin(mix(config.seed, epoch, VIEWS))
            for number, index in enumerate(batches):
                rate = schedule((epoch + (number + 0.5) / len(batches)) / config.epochs, config)
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * rate
                step(index)
                progress.advance(len(index))
            mean_loss = float(step.total) / len(batches)
        if not math.isfinite(mean_loss):
            raise FloatingPointError(
                f"the loss became {mean_loss} in epoch {epoch + 1}: "
                "lower --train.lr, or set --train.precision float32"
            )
        watch.lap("train")

        line: dict[str, Any] = {"epoch": epoch, "loss": mean_loss, "lr": config.train.lr * rate}
        if snapshot is not None:
            line |= describe(snapshot, previous, store.labels)
            previous = snapshot.labels.clone()  # the method may write over its own
            snapshot = None  # its features may be as many as the images
        watch.lap("measure")
        line["seconds"] = {name: round(value, 3) for name, value in watch.seconds.items()}
        if pace is not None:
            fewer = pace(epoch + 1, config.epochs, sum(watch.seconds.values()))
            if fewer < config.epochs:
                config = dataclasses.replace(config, epochs=fewer)
                method.epochs = line["epochs"] = fewer
                if run is not None:
                    run.write_config(config)
        history.append(line)
        if run is not None:
            run.append_metrics(line)
            if (epoch + 1) % every == 0 or epoch + 1 == config.epochs:
                save_checkpoint(run, epoch + 1, method, optimizer, previous)
        progress.epoch(line)
    clock.lap("train")

    method.eval()
    if config.start == "adapt":
        release()
    embeddings = normalise(extract_all())
    clock.lap("features")
    return conclude(
        embeddings,
        config,
        begun,
        clock=clock,
        progress=progress,
        store=store,
        truth=store.labels,
        history=history,
    )


@dataclass(frozen=True)
class Begun:
    """A net before its first epoch.

    Attributes:
        backbone: the net; None where the features come from elsewhere.
        name: as :func:`deepcluster.backbones.nets.build_backbone` takes it.
        channels: of its images.
        preprocessing: what lies between pixels and net.
        license: of the weights it begins with.
    """

    backbone: nn.Module | None
    name: str
    channels: int
    preprocessing: Preprocessing
    license: str = ""


def begin(store: ImageStore, config: Config, backbone: nn.Module | None) -> Begun:
    """The net of the settings with the weights it begins with, or one of the user's own."""
    assert isinstance(config.size, int)
    own = Preprocessing.measure(store)
    if backbone is not None:
        said = Preprocessing.of_module(backbone, config.size)
        if config.start != "scratch" and said is not None:
            own = said
        backbone = prepare_backbone(backbone, channels=len(own.mean), size=config.size)
        return Begun(backbone, config.backbone, len(own.mean), own)
    built = build_net(config, store.channels)
    if config.start == "scratch":
        return Begun(built, config.backbone, store.channels, own)
    weights = find_weights(config.backbone, config.weights)
    assert weights is not None
    preprocessing = weights.preprocessing(config.size)
    if config.start == "adapt":  # it learns on whole images
        preprocessing = dataclasses.replace(preprocessing, side=config.size)
    return Begun(built, weights.architecture, weights.channels, preprocessing, weights.license)


def _frozen(
    store: ImageStore, config: Config, begun: Begun, clock: Clock, progress: Progress
) -> FitResult:
    """Clusters of a net as it came."""
    assert begun.backbone is not None
    assert isinstance(config.train.batch_size, int)
    device = torch.device(config.device)
    begun.backbone.to(device)
    clock.lap("set-up")
    progress.phase("features", len(store))
    embeddings = kept_features(
        begun.backbone,
        store,
        begun.preprocessing,
        device=device,
        dtype=getattr(torch, config.train.precision),
        batch_size=config.train.batch_size,
        advance=progress.advance,
    )
    clock.lap("features")
    return conclude(
        embeddings,
        config,
        begun,
        clock=clock,
        progress=progress,
        store=store,
        truth=store.labels,
    )


def fit_vectors(
    rows: np.ndarray,
    config: Config,
    *,
    store: ImageStore | None = None,
    truth: np.ndarray | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Clusters of features made elsewhere.

    Args:
        rows: ``(n, d)`` float32; their lengths do not count.
        config: settings, as :func:`deepcluster.training.plan.schedule_given` gives them.
        store: the images they are of, if there are any.
        truth: ``(n,)`` labels, for measuring only.
        progress: told what happens.
    """
    begun = Begun(None, config.backbone, 1, Preprocessing(1, (0.0,), (1.0,)))
    return conclude(
        normalise(torch.from_numpy(rows)),
        config,
        begun,
        clock=Clock(),
        progress=progress or Progress(),
        store=store,
        truth=truth,
    )


def conclude(
    embeddings: Tensor,
    config: Config,
    begun: Begun,
    *,
    clock: Clock,
    progress: Progress,
    store: ImageStore | None = None,
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
        store: the images, if there are any.
        truth: ``(n,)`` labels, for measuring only.
        history: the lines of the epochs.
    """
    assert isinstance(config.epochs, int)
    generator = torch.Generator().manual_seed(mix(config.seed, config.epochs, ORDER))
    progress.phase("clusters", 1)
    pca, prototypes, tree, choice = final_clusters(embeddings, config, generator)
    clusters = len(prototypes.cluster.unique())
    if choice:
        progress.note(f"{clusters} clusters, chosen among 2 to {max(choice)}")
    if tree is not None and tree.largest > clusters:
        progress.note(
            f"these {clusters} clusters were cut for their own sake; `deepcluster recluster` makes "
            f"any number up to {tree.largest} of their parts, which keeps images together"
        )
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
    places = layout(model.reduce(embeddings), generator=generator)
    progress.advance(1)
    clock.lap("map")
    scores = {"fit": score(labels.numpy(), truth)}
    if clusters > 1 and len(labels) > metrics.GRAPH_NEIGHBOURS:
        scores["fit"]["modularity"] = metrics.modularity(
            embeddings.numpy(), labels.numpy(), np.random.default_rng(config.seed)
        )
    clock.lap("measure")
    if store is not None and truth is not None:
        progress.phase("k-means on the pixels, to compare", 1)
        rows, found = pixel_clusters(store, clusters, generator)
        scores["pixels"] = score(found, truth[rows])
        progress.advance(1)
        clock.lap("compare")
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


# -- pieces of the loop -----------------------------------------------------------------------


def mix(seed: int, epoch: int, stream: int) -> int:
    """A seed for one use of chance in an epoch, far from all others."""
    return int(np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)[0] >> 1)


class seeded:
    """Seed torch's global CPU and device generators for a block; the CPU's is put back after."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.state = torch.get_rng_state()
        torch.manual_seed(self.seed)

    def __exit__(self, *exception: object) -> None:
        torch.set_rng_state(self.state)


def schedule(done: float, config: Config) -> float:
    """Learning rate over its peak, when the share `done` of all steps is done."""
    warmup = config.train.warmup
    if done < warmup:
        return done / warmup
    if config.train.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def describe(
    snapshot: Snapshot, previous: Tensor | None, truth: np.ndarray | None
) -> dict[str, Any]:
    """An epoch's figures about its clusters; those of `truth` only where there are labels."""
    labels = snapshot.labels.numpy()
    if truth is not None and snapshot.rows is not None:
        truth = truth[snapshot.rows.numpy()]
    line: dict[str, Any] = {
        "clusters": snapshot.clusters,
        "ln_k": math.log(snapshot.clusters),
        "nmi_previous": None,
        "changed": None,
        **metrics.occupancy(labels, snapshot.clusters),
        "effective_rank": metrics.effective_rank(
            snapshot.features[:: -(-len(labels) // RANK_ROWS)].numpy()
        ),
    }
    if previous is not None:
        before = previous.numpy()
        line["nmi_previous"] = metrics.nmi(labels, before)
        line["changed"] = metrics.churn(before, labels)
    return line | score(labels, truth)


def score(labels: np.ndarray, truth: np.ndarray | None) -> dict[str, float]:
    """NMI (of both kinds), ARI and ACC of clusters against labels; nothing without labels."""
    if truth is None or not (truth >= 0).any():
        return {}
    known = truth >= 0
    names = ("nmi", "nmi_arithmetic", "ari", "acc")
    return {name: getattr(metrics, name)(labels[known], truth[known]) for name in names}


def final_clusters(
    embeddings: Tensor, config: Config, generator: torch.Generator
) -> tuple[PCA | None, Prototypes, Tree | None, dict[int, float]]:
    """The clusters a person gets, their tree, and the scores of numbers if one is chosen."""
    final = config.final
    assert isinstance(config.clusters, int)
    kept = min(final.pca, *embeddings.shape)
    half = config.train.precision == "bfloat16"
    rounding = torch.finfo(torch.bfloat16 if half else torch.float32).eps
    pca = fit_pca(embeddings, kept, whiten=final.whiten, rounding=rounding) if kept else None
    x = embeddings if pca is None else normalise(pca.apply(embeddings))
    device = config.device if config.device.startswith("cuda") else "cpu"  # MPS has no float64
    x = x.to(device)
    k, choice = config.clusters, {}
    if final.choose:
        chosen = choose_clusters(x, largest=k, neighbours=final.neighbours, generator=generator)
        k, choice = chosen.k, chosen.scores
    if final.algorithm == "graph" and k < min(len(x), MOST_GRAPH_CLUSTERS):
        found = cluster_tree(x, k, neighbours=final.neighbours, generator=generator)
        return pca, *found, choice
    result = kmeans(x, k, max_iter=300, n_init=final.restarts, generator=generator)
    prototypes = Prototypes(result.centers.cpu(), torch.arange(k))
    if k > MOST_IN_TREE:
        return pca, prototypes, None, choice
    tree = tree_of(x, prototypes, neighbours=final.neighbours, generator=generator)
    return pca, prototypes, tree, choice


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
