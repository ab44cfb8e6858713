"""Every setting left at ``"auto"``, from the images' number, size and colour and the device.

Never from the name of the data, never from labels. What the time for it decides is chosen before,
in ``training/plan.py``.
"""

from __future__ import annotations

import dataclasses
import math

from deepcluster.backbones.build import auto_backbone, untagged
from deepcluster.backbones.nets import ANY_SIZE
from deepcluster.config import Config, check_settings
from deepcluster.device import fast_bfloat16, pick_device
from deepcluster.errors import ConfigError
from deepcluster.methods import load_method
from deepcluster.methods.contrastive_clusters import SMALL_SIDE, ContrastiveClusters
from deepcluster.progress import counted
from deepcluster.training.views import resolve_views

FEWEST_STEPS = 400
MANY_FOR_A_GPU = 20_000  # images of which a step on a GPU takes more: there are steps enough
IMAGES_A_MINUTE = 500  # where no time is given: so many minutes of training, but
LEAST_MINUTES, AN_HOUR = 1.0, 60.0  # not fewer than these, nor more
# Of fewer photographs steps are what misses: there are more of fewer images, and no small views.
# (Of very few it is epochs again: see FEWEST_STEPS.)
VERY_FEW_PHOTOGRAPHS, FEW_PHOTOGRAPHS = 1500, 4000
SMALL_VIEWS = 4  # of more, if their side is at least
SIDE_FOR_SMALL = 16  # pixels
ADAPT_LR = {1: 1e-3, 3: 3e-4}  # by channels: grey images lie further from what weights know
DEFAULT_LR = {"sgd": 0.05, "adamw": 2e-3, "muon": 0.02}
PHOTOGRAPHS_LR = 0.04  # of Muon, where a small net learns them from scratch


def check_time(config: Config) -> None:
    """Refuse minutes beside epochs.

    Raises:
        ConfigError: both are given.
    """
    if "auto" not in (config.minutes, config.epochs):
        raise ConfigError(
            f"minutes = {config.minutes:g} and epochs = {config.epochs} (given, or of the recipe) "
            "say the same thing twice: leave one of them out"
        )


def most_clusters(n: int) -> int:
    """Clusters to train with, and most to choose from, where none were asked for.

    30, or one for 10 images where there are fewer than 300; never fewer than 2.
    """
    return min(max(2, n // 10), 30, n)


def usual_batch(n: int, device_type: str, *, photographs: bool = False) -> int:
    """Images in a step: more on a GPU, which has little to do else; fewer of few photographs."""
    if photographs and VERY_FEW_PHOTOGRAPHS <= n < FEW_PHOTOGRAPHS:
        return 128
    return 512 if device_type == "cuda" and n >= MANY_FOR_A_GPU else 256


def worth(small_views: int) -> float:
    """Epochs of two views alone for one that has so many small ones beside them.

    By the pixels that the net sees, and so by the time.
    """
    return 1 + small_views * SMALL_SIDE**2 / ContrastiveClusters.views


def guess_epochs(n: int, size: int, batch_size: int, small_views: int = 0) -> int:
    """Epochs where none were asked for: fewer of more and of larger images.

    24 of 60,000 small images, growing with the inverse of the number to the power 0.3 up to 80;
    fewer where each is :func:`worth` more; never fewer than FEWEST_STEPS steps, nor than 5 epochs.
    """
    epochs = min(80.0, 24 * math.pow(60_000 / n, 0.3)) * min(1.0, (64 / size) ** 2)
    epochs /= worth(small_views)
    return max(5, round(epochs), math.ceil(FEWEST_STEPS / math.ceil(n / batch_size)))


def usual_minutes(config: Config, n: int) -> float:
    """Minutes that training on `n` images takes at most where neither time nor epochs are given.

    An hour where the net or the images' size is asked for: what these cost is known to whoever
    asks.
    """
    if config.backbone != "auto" or config.size != "auto":
        return AN_HOUR
    return min(max(n / IMAGES_A_MINUTE, LEAST_MINUTES), AN_HOUR)


def resolve(config: Config, *, n: int, size: int, channels: int) -> Config:
    """The settings with every ``"auto"`` filled in.

    Args:
        config: settings as asked for.
        n: number of images.
        size: side of the training images in pixels.
        channels: 1 or 3.

    Raises:
        ConfigError: settings that cannot hold together.
    """
    check_settings(config)
    load_method(config.method)
    check_time(config)
    start = "scratch" if config.start == "auto" else config.start
    if start == "frozen" and config.epochs not in ("auto", 0):
        raise ConfigError(
            f"epochs = {config.epochs}: a frozen net learns nothing; leave epochs out, or say "
            "--start adapt"
        )
    if start != "frozen" and config.epochs == 0:
        raise ConfigError("epochs = 0: give a number from 1, or say --start frozen")
    device = pick_device(config.device)
    clusters = most_clusters(n) if config.clusters == "auto" else config.clusters
    if not 1 <= clusters <= n:
        raise ConfigError(
            f"{counted(clusters, 'cluster')} cannot be made of {counted(n, config.item)}: give "
            f"--clusters a number from 1 to {n}"
        )
    backbone = config.backbone
    if backbone == "auto":
        backbone = auto_backbone(size, channels, n, device.type)
    # a small image that is enlarged for its net stays a small image
    views = resolve_views(config.views, min(size, round(size * config.data.margin)), channels)
    contrast = config.method == "contrastive-clusters"
    photographs = contrast and start == "scratch" and views.preset in ("photo", "small-photo")
    train, deepcluster = config.train, config.deepcluster
    small_views = config.contrastive_clusters.small_views
    if small_views == "auto":
        wanted = (
            photographs
            and n >= FEW_PHOTOGRAPHS
            and untagged(backbone) in ANY_SIZE
            and size >= SIDE_FOR_SMALL
        )
        small_views = SMALL_VIEWS if wanted else 0
    elif not contrast:
        small_views = 0
    precision = train.precision
    if precision == "auto":
        precision = "bfloat16" if fast_bfloat16(device) else "float32"
    batch_size = min(
        n,
        usual_batch(n, device.type, photographs=photographs)
        if train.batch_size == "auto"
        else train.batch_size,
    )
    optimizer = train.optimizer
    if optimizer == "auto":
        optimizer = "adamw" if start == "adapt" else "muon"
    lr = train.lr
    if lr == "auto":
        lr = ADAPT_LR[channels] if start == "adapt" else DEFAULT_LR[optimizer]
        if optimizer == "muon" and photographs and untagged(backbone) in ANY_SIZE:
            lr = PHOTOGRAPHS_LR
    epochs = config.epochs
    if epochs == "auto":
        epochs = 0 if start == "frozen" else guess_epochs(n, size, batch_size, small_views)
    pseudo_clusters = deepcluster.pseudo_clusters
    if pseudo_clusters == "auto":
        pseudo_clusters = max(clusters, min(10 * clusters, n // 20))
    return dataclasses.replace(
        config,
        clusters=clusters,
        final=dataclasses.replace(
            config.final,
            choose=clusters > 2 and (config.final.choose or config.clusters == "auto"),
        ),
        epochs=epochs,
        start=start,
        device=str(device),
        size=size,
        backbone=backbone,
        views=views,
        data=dataclasses.replace(config.data, channels="grey" if channels == 1 else "rgb"),
        train=dataclasses.replace(
            train,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=lr,
            precision=precision,
        ),
        contrastive_clusters=dataclasses.replace(
            config.contrastive_clusters, small_views=small_views
        ),
        deepcluster_v2=dataclasses.replace(
            config.deepcluster_v2,
            prototypes=pseudo_clusters
            if config.deepcluster_v2.prototypes == "auto"
            else config.deepcluster_v2.prototypes,
        ),
        deepcluster=dataclasses.replace(
            deepcluster,
            pseudo_clusters=min(pseudo_clusters, n),
            # Whitened, n rows of about n components are all equally far apart.
            pca=min(256, max(2, n // 50)) if deepcluster.pca == "auto" else deepcluster.pca,
            head_lr=lr if deepcluster.head_lr == "auto" else deepcluster.head_lr,
        ),
    )
