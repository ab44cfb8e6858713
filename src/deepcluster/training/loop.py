"""The one loop: images in, a fitted model and its clusters out.

Read :func:`fit` from top to bottom. All chance in epoch `e` comes from generators seeded by the
fit's seed and `e`, so a fit that resumes after epoch `e` needs no random state and gives the same
bits as one that was never stopped. What is done with the features at the end is in ``conclude.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster import metrics, processes
from deepcluster.backbones.adapt import hold, in_pieces, keep_statistics
from deepcluster.backbones.build import prepare_backbone, takes
from deepcluster.backbones.features import extract, kept_features
from deepcluster.backbones.preprocessing import Batches, Preprocessing
from deepcluster.backbones.start import build_net, find_weights
from deepcluster.backbones.weights import save_timm
from deepcluster.clustering.pca import normalise_
from deepcluster.config import Config
from deepcluster.device import Compute
from deepcluster.errors import ConfigError
from deepcluster.methods import Snapshot, load_method
from deepcluster.progress import Progress
from deepcluster.run import RunDir
from deepcluster.training.chance import DROPOUT, ORDER, VIEWS, mix, seeded
from deepcluster.training.checkpoints import load_newest, save_checkpoint, share_state
from deepcluster.training.conclude import Begun, Clock, FitResult, conclude, score
from deepcluster.training.optimizers import build_optimizer
from deepcluster.training.plan import Pace
from deepcluster.training.room import find_room
from deepcluster.training.sharing import Images, features_of_all, help_with, send_fit
from deepcluster.training.step import Step
from deepcluster.training.threads import own_threads, settle_threads

if TYPE_CHECKING:
    from deepcluster.images.store import ImageStore

RANK_ROWS = 10_000  # rows, spread evenly, whose effective rank is measured each epoch
MOST_CHECKPOINTS = 100  # in a fit: on a GPU an epoch may take little longer than writing one


@own_threads()
def fit(
    store: ImageStore,
    config: Config,
    *,
    backbone: nn.Module | None = None,
    run: RunDir | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    pace: Pace | None = None,
    again: bool | None = None,
) -> FitResult:
    """Train on the images and cluster them.

    Args:
        store: the images.
        config: settings, as :func:`deepcluster.training.resolve.resolve` gives them.
        backbone: a net to train in place of ``config.backbone``: ``(b, c, size, size)`` ->
            ``(b, d)``.
        run: where metrics and checkpoints go; None keeps nothing on disk.
        resume: go on from the run's last checkpoint.
        progress: told what happens.
        pace: asked after each epoch how many there shall be; the result's settings say it.
        again: whether activations are computed again, where a net is adapted, as the plan has said;
            None asks what memory is free.

    Returns:
        Clusters, features, the fitted model and what was measured.
    """
    progress = progress or Progress()
    clock = Clock()
    if config.train.threads != "auto":
        settle_threads(config, timed=False)
    if config.start == "frozen":
        trained = _frozen(store, config, backbone, clock, progress)
    else:
        trained = train(
            send_fit(store, config),
            config,
            backbone=backbone,
            run=run,
            resume=resume,
            progress=progress,
            pace=pace,
            again=again,
            clock=clock,
        )
    return conclude(
        trained.embeddings,
        trained.config,
        trained.begun,
        clock=clock,
        progress=progress,
        truth=store.labels,
        history=trained.history,
    )


def follow() -> None:
    """Do what the first process of a launcher asks for, until it needs no other any more.

    Raises:
        ProcessError: it, or another one, has ended before.
    """
    with processes.joined():
        help_with(functools.partial(train, progress=Progress(), clock=Clock()))


@dataclass(frozen=True)
class Trained:
    """What the loop leaves."""

    embeddings: Tensor  # (n, d), rows of length 1; in other processes than the first their share
    config: Config  # with the epochs that there were in the end
    begun: Begun
    history: list[dict[str, Any]] = field(default_factory=list)  # the lines of the epochs


@processes.training()
def train(
    images: Images,
    config: Config,
    *,
    progress: Progress,
    clock: Clock,
    backbone: nn.Module | None = None,
    run: RunDir | None = None,
    resume: bool = False,
    pace: Pace | None = None,
    again: bool | None = None,
) -> Trained:
    """The loop; arguments as of :func:`fit`.

    All processes of a launcher go through it, each with its share of the images; one has a run.
    """
    device = torch.device(config.device)
    dtype = getattr(torch, config.train.precision)
    assert isinstance(config.epochs, int)
    assert isinstance(config.train.batch_size, int)
    assert isinstance(config.train.lr, float)
    recorded = backbone is None
    releases: list[Callable[[], None]] = []
    with seeded(config.seed):
        begun = begin(images, config, backbone)
        assert begun.backbone is not None
        if config.start == "adapt":
            releases.append(hold(begun.backbone))
        method: Any = load_method(config.method)(config, begun.backbone, images.n)
    method.to(device, memory_format=torch.channels_last)
    if config.start == "adapt":
        room = find_room(method, config, begun.channels, again=again)
        if room is not None and room.piece:
            releases.append(in_pieces(begun.backbone, room.piece, again=room.again))
            recorded = recorded and not room.again  # it asks for the state of random numbers
            if again is None and room.sentence:
                progress.note(room.sentence)
    optimizer = build_optimizer(method.groups(), config.train)
    preprocessing = begun.preprocessing
    batches_of = Batches(images.mine, device, images.n)
    step = Step(method, optimizer, config, preprocessing, batches_of, record=recorded)

    def extract_mine() -> Tensor:
        progress.phase("features", len(images.mine))
        compute, advance = Compute(device, dtype), progress.advance
        return extract(method.backbone, images.mine, preprocessing, compute, advance=advance)

    first, previous, history = 0, None, []
    if resume and run is not None:
        first, previous = load_newest(run, method, optimizer)
        run.truncate_metrics(first)
        history = run.read_metrics()
    first = share_state(run, first, method, optimizer)
    kept = bool(processes.agree(int(run is not None)))
    if kept and not first:
        save_checkpoint(run, 0, method, optimizer, None)
    every = max(config.train.checkpoint_every, math.ceil(config.epochs / MOST_CHECKPOINTS))
    clock.lap("set-up")
    late = ""  # which process is slow: said once

    for epoch in range(first, config.epochs):
        if epoch >= config.epochs:  # fewer than when the loop began
            break
        generator = torch.Generator().manual_seed(mix(config.seed, epoch, ORDER))
        watch = Clock()
        method.eval()
        snapshot: Snapshot | None = method.start_epoch(epoch, extract_mine, optimizer, generator)
        processes.equalise(v for k, v in method.state_dict().items() if k not in method.refilled)
        watch.lap("cluster")

        # dropout draws from torch's global generator
        with seeded(mix(config.seed, epoch, DROPOUT) + processes.rank()):
            method.train()
            if config.start == "adapt":
                keep_statistics(method.backbone)
            order = method.order(generator)
            # as few batches as there must be, of sizes that differ by one at most: none is left out
            batches = order.tensor_split(math.ceil(len(order) / config.train.batch_size))
            progress.phase(f"epoch {epoch + 1}/{config.epochs}", len(order))
            step.begin(mix(config.seed, epoch, VIEWS))
            with processes.computing() as spent:
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
        if not late and device.type != "cuda":  # CUDA does not wait in messages
            late = processes.latecomer(*spent)
            if late:
                progress.note(late)

        line: dict[str, Any] = {"epoch": epoch, "loss": mean_loss, "lr": config.train.lr * rate}
        if snapshot is not None:
            line |= describe(snapshot, previous, images.labels)
            previous = snapshot.labels.clone()  # the method may write over its own
            snapshot = None  # its features may be as many as the images
        watch.lap("measure")
        line["seconds"] = {name: round(value, 3) for name, value in watch.seconds.items()}
        fewer = config.epochs
        if pace is not None:
            fewer = pace(epoch + 1, fewer, sum(watch.seconds.values()))
        fewer = processes.agree(fewer)
        if fewer < config.epochs:
            config = dataclasses.replace(config, epochs=fewer)
            method.epochs = line["epochs"] = fewer
            if run is not None:
                run.write_config(config)
        history.append(line)
        if run is not None:
            run.append_metrics(line)
        if kept and ((epoch + 1) % every == 0 or epoch + 1 == config.epochs):
            save_checkpoint(run, epoch + 1, method, optimizer, previous)
        progress.epoch(line)
    clock.lap("train")

    method.eval()
    embeddings = processes.collect(normalise_(extract_mine()), images.n)
    for release in releases:
        release()
    clock.lap("features")
    return Trained(embeddings, config, begun, history)


def begin(images: Images, config: Config, backbone: nn.Module | None) -> Begun:
    """The net of the settings with the weights it begins with, or one of the user's own."""
    assert isinstance(config.size, int)
    own, channels = images.measured, images.mine.channels
    if backbone is not None:
        said = Preprocessing.of_module(backbone, config.size)
        if config.start != "scratch" and said is not None:
            own = said
        if config.start == "adapt":  # it learns on whole images
            own = dataclasses.replace(own, side=config.size)
        if takes(backbone, channels) < channels:
            raise ConfigError(
                "this net takes grey images and these have colour: say data.channels = grey"
            )
        own = own.of_channels(takes(backbone, len(own.mean)))
        backbone = prepare_backbone(backbone, channels=len(own.mean), size=config.size)
        return Begun(backbone, config.backbone, len(own.mean), own)
    built = build_net(config, channels)
    if config.start == "scratch":
        return Begun(built, config.backbone, channels, own)
    weights = find_weights(config.backbone, config.weights)
    assert weights is not None
    preprocessing = weights.preprocessing(config.size)
    if config.start == "adapt":  # it learns on whole images
        preprocessing = dataclasses.replace(preprocessing, side=config.size)
    return Begun(built, weights.architecture, weights.channels, preprocessing, weights.license)


def _frozen(
    store: ImageStore,
    config: Config,
    backbone: nn.Module | None,
    clock: Clock,
    progress: Progress,
) -> Trained:
    """Features of a net as it came."""
    with seeded(config.seed):
        begun = begin(Images.whole(store), config, backbone)
    assert begun.backbone is not None
    assert isinstance(config.train.batch_size, int)
    dtype = getattr(torch, config.train.precision)
    compute = Compute(torch.device(config.device), dtype, config.train.batch_size)
    begun.backbone.to(compute.device)
    clock.lap("set-up")
    progress.phase("features", len(store))
    save = functools.partial(
        save_timm,
        begun.backbone,
        name=begun.name,
        channels=begun.channels,
        preprocessing=begun.preprocessing,
        sobel=config.sobel,
    )
    embeddings = kept_features(
        begun.backbone,
        store,
        begun.preprocessing,
        compute,
        advance=progress.advance,
        note=progress.note,
        extract=functools.partial(features_of_all, save=save),
    )
    clock.lap("features")
    return Trained(embeddings, config, begun)


# -- pieces of the loop -----------------------------------------------------------------------


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
    some = torch.arange(0, len(labels), -(-len(labels) // RANK_ROWS))
    if truth is not None and snapshot.rows is not None:
        truth = truth[snapshot.rows.numpy()]
    line: dict[str, Any] = {
        "clusters": snapshot.clusters,
        "ln_k": math.log(snapshot.clusters),
        "nmi_previous": None,
        "changed": None,
        **metrics.occupancy(labels, snapshot.clusters),
        "effective_rank": metrics.effective_rank(
            snapshot.features.take(some).float().cpu().numpy()
        ),
    }
    if previous is not None:
        before = previous.numpy()
        line["nmi_previous"] = metrics.nmi(labels, before)
        line["changed"] = metrics.churn(before, labels)
    return line | score(labels, truth)
