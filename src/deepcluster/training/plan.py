"""What a fit will do and what it will cost, before it does it.

:func:`resolve` fills every setting left at ``"auto"`` from the images' number, size and colour and
from the device: never from the name of the data, never from labels. :func:`estimate` times a few
steps on random pixels and counts the bytes. :func:`choose_scale` and :func:`schedule_minutes` turn
the time a person has into image size, net and epochs. These are written into the settings, which
then give the same bits again without a clock.

Long, because where the net begins, size, net, epochs and memory are one answer to one budget.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from deepcluster import processes
from deepcluster.backbones.adapt import hold, keep_statistics
from deepcluster.backbones.build import auto_backbone, prepare_backbone, takes, untagged
from deepcluster.backbones.features import find_speed
from deepcluster.backbones.nets import ANY_SIZE
from deepcluster.backbones.preprocessing import Batches, Preprocessing
from deepcluster.backbones.start import (
    GIVEN,
    GOOD,
    Weights,
    build_net,
    find_weights,
)
from deepcluster.clustering.neighbours import TILE
from deepcluster.config import Config, check_settings
from deepcluster.device import fast_bfloat16, pick_device
from deepcluster.errors import ConfigError
from deepcluster.images.listing import Listing
from deepcluster.images.store import ImageStore, auto_size, scan_images
from deepcluster.methods import load_method
from deepcluster.methods.contrastive_clusters import SMALL_SIDE, ContrastiveClusters
from deepcluster.progress import counted
from deepcluster.training.optimizers import build_optimizer
from deepcluster.training.step import Step
from deepcluster.training.views import resolve_views

FEWEST_STEPS = 400
MANY_FOR_A_GPU = 20_000  # images of which a step on a GPU takes more: there are steps enough
IMAGES_A_MINUTE = 500  # where no time is given: so many minutes of training, but
LEAST_MINUTES, AN_HOUR = 1.0, 60.0  # not fewer than these, nor more
# Below so many epochs, smaller images learn more in the same time; of the smallest, a smaller net.
# (Epochs of two views: :func:`worth`.)
ENOUGH_FOR_SIDE, ENOUGH_FOR_NET = 16, 12
# Of fewer photographs steps are what misses: there are more of fewer images, and no small views.
# (Of very few it is epochs again: see FEWEST_STEPS.)
VERY_FEW_PHOTOGRAPHS, FEW_PHOTOGRAPHS = 1500, 4000
SMALL_VIEWS = 4  # of more, if their side is at least
SIDE_FOR_SMALL = 16  # pixels
MOST_EPOCHS = 1000
SIZES = (64, 48, 32)  # smaller sides that images may get, to keep to the time
LATE = 0.1  # of the minutes that were given: by so much a fit may be expected to end after them
TRIAL_SIDE = 32  # pixels; steps are timed at this side where several are to be compared
TRIAL_PIXELS = 2**22  # of a batch: of larger ones a part is timed, of half as many pixels
FIRST_PIXELS = 2**17  # of the first step, which says how many images the others may have
SLOW_STEP = 2.0  # seconds; a step that takes so long need not be timed twice
TRIAL_SHARE, TRIAL_MOST = 0.02, 10.0  # of the time that was given, and seconds: spent on timing

# What a trial of a few steps cannot time, as it was measured on two cores of an AMD EPYC with
# AVX512-BF16 (torch 2.14); seconds unless said otherwise. A machine of half the speed is late by
# half of these, while the steps themselves are always timed where they will run.
AFTERWARDS = 8e-4  # an image, once a fit: graph, map, pictures, report on one core (two: half)
# An epoch, and an image in it, beside the steps: cuts, figures, checkpoint. (On a GPU: an H200.)
BESIDE = {"cpu": (0.07, 3.3e-5), "cuda": (0.35, 1.5e-6)}
STEP_EXTRAS = 1.05  # times a timed step: reading the images
CHOOSING = 0.3  # for each number of clusters that is looked at

# Bytes, by the largest resident sizes of fits of 10,000 and 100,000 images, and a million vectors.
LIBRARIES = 800_000_000  # torch and the others, once they are loaded
KERNELS = 200_000_000  # what they keep of a net that has run
CUTTING = 170_000_000  # scores of a block and tables of the final clusters
IMAGE = 1100  # an image's id, clusters, neighbours and rows of tables and pages
BANK = 130  # an image, of the default method

ADAPT_LR = {1: 1e-3, 3: 3e-4}  # by channels: grey images lie further from what weights know
ADAPT_SIDES = (128, 96, 64)  # of images that weights are adapted on, and
ENOUGH_TO_ADAPT = 6  # epochs: the largest side that gets as many is taken
SMALL_SHAPE = 64  # pixels: grey images up to this side are learnt from scratch in minutes
LEAST = 0.05  # minutes
ADAPT_TRIAL = 64  # images in a timed step
DEFAULT_LR = {"sgd": 0.05, "adamw": 2e-3, "muon": 0.02}


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
            f"{counted(clusters, 'cluster')} cannot be made of {counted(n, 'image')}: give "
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


@dataclass(frozen=True)
class Cost:
    """What a fit is expected to take."""

    memory: int  # bytes at the peak
    epoch: float  # seconds an epoch
    rest: float  # seconds of all that comes once
    epochs: int

    @property
    def seconds(self) -> float:
        """Of the whole fit, once the images are decoded."""
        return self.rest + self.epochs * self.epoch


class Pace:
    """Looks at the clock between epochs: fewer of them, where a fit would end too late.

    The schedule is shortened, never lengthened, and not for a first epoch that is slow: three must
    be done, or half the time be gone. What it comes to is in the settings of the result.

    Args:
        minutes: that the fit was given.
        rest: seconds of what comes after the last epoch.
        began: ``time.perf_counter()`` at the fit's beginning.
        say: told in a sentence.
    """

    def __init__(
        self, minutes: float, *, rest: float, began: float, say: Callable[[str], None]
    ) -> None:
        self.seconds, self.rest, self.began, self.say = 60 * minutes, rest, began, say
        self.told = ""  # the last sentence
        self.epochs: list[float] = []  # seconds of each

    def tell(self, text: str) -> None:
        """Say a sentence, and keep it."""
        self.told = text
        self.say(text)

    def __call__(self, done: int, epochs: int, seconds: float) -> int:
        """Epochs there shall be in all, once `done` of `epochs` are; the last took `seconds`."""
        self.epochs.append(seconds)
        gone = time.perf_counter() - self.began
        each = statistics.median(self.epochs[-5:])
        late = gone + (epochs - done) * each + self.rest - self.seconds
        early = len(self.epochs) < 3 and gone < self.seconds / 2
        if early or done >= epochs or late <= LATE * self.seconds:
            return epochs
        room = self.seconds - gone - self.rest
        left = min(round(room / each), int((room + LATE * self.seconds) / each))
        fewer = min(epochs, done + max(0, left))
        if fewer < epochs:
            self.tell(
                f"{epochs} epochs would end {late:.0f} s after the {self.seconds / 60:g} minutes, "
                f"since one takes {each:.2g} s now: there will be {fewer}"
            )
        return fewer


def beside_steps(n: int, device_type: str) -> float:
    """Seconds of an epoch of `n` images beside its steps."""
    epoch, image = BESIDE["cuda" if device_type == "cuda" else "cpu"]
    return epoch + n * image


def settle_start(config: Config) -> tuple[Config, Weights | None, str]:
    """Where the net begins.

    Args:
        config: settings as asked for.

    Returns:
        The settings, with scratch in place of auto where no weights are at hand; the weights, which
        may still be at the hub; and a sentence about those that a person could have.

    Raises:
        ConfigError: weights that are asked for do not exist, or are given to no purpose.
    """
    if config.start == "scratch":
        if config.weights or config.backbone.startswith("local-dir:"):
            raise ConfigError(
                "--start scratch takes no weights: leave --weights and local-dir: out, or say "
                "--start frozen or --start adapt"
            )
        return config, None, ""
    weights = find_weights(config.backbone, config.weights)
    name, megabytes = next(iter(GOOD.items()))
    if config.start != "auto":
        if weights is None:
            raise ConfigError(
                f"--start {config.start} needs a net that has weights, and {config.backbone!r} has "
                f"none here: say --backbone {name} ({megabytes} MB, Apache-2.0, downloaded once), "
                "--backbone local-dir:FOLDER, or --weights FILE.safetensors --backbone NAME"
            )
        return config, weights, ""
    given = config.weights or config.backbone != "auto"
    at_hand = weights is not None and weights.path is not None
    if at_hand and (given or config.method == Config().method):
        return config, weights, ""
    sentence = ""
    if weights is not None:
        sentence = (
            f"from scratch: the weights of {weights.name} are not here; --start frozen downloads "
            f"them from huggingface.co/{weights.hub} (licence {weights.license or 'unknown'})"
        )
    elif config.backbone == "auto":
        sentence = (
            f"from scratch: no pretrained weights are here. --start frozen --backbone {name} "
            f"downloads {megabytes} MB (Apache-2.0), needs no training and is as a rule better on "
            "photographs"
        )
    return dataclasses.replace(config, start="scratch"), None, sentence


def take_weights(config: Config, weights: Weights, *, side: int) -> Config:
    """Settings as weights that were made elsewhere want them, where they stay as they are.

    Args:
        config: settings as asked for.
        weights: where the net begins.
        side: median of the images' shorter sides in pixels; smaller images are kept as small.
    """
    size = weights.best_size(side) if config.size == "auto" else config.size
    return _with_weights(config, weights, size, weights.preprocessing(size).side, side)


def adapt_weights(
    config: Config, weights: Weights, *, n: int, channels: int, side: int, minutes: float | None
) -> Config:
    """Settings as weights are adapted with them: on whole images, at a side for the time there is.

    Args:
        config: settings as asked for.
        weights: at hand.
        n: number of images.
        channels: of the images, 1 or 3.
        side: of the images that are kept, in pixels.
        minutes: for the training; None reads no clock and takes the largest side.
    """
    asked = dataclasses.replace(config, start="adapt", minutes="auto")
    sizes = [side // weights.multiple * weights.multiple for side in ADAPT_SIDES]
    if weights.own or weights.net is not None:
        sizes = [weights.best_size(side)]
    if config.size != "auto":
        sizes = [config.size]
    for size in sizes:
        found = _with_weights(asked, weights, size, size, side)
        if size == sizes[-1] or minutes is None or config.epochs != "auto":
            break
        resolved = resolve(found, n=n, size=size, channels=channels)
        cost = estimate(
            resolved, n=n, channels=channels, store_bytes=0, patience=0.0, net=weights.net
        )
        if 60 * minutes - cost.rest >= ENOUGH_TO_ADAPT * cost.epoch:
            break
    return dataclasses.replace(found, minutes=config.minutes)


def _with_weights(config: Config, weights: Weights, size: int, whole: int, side: int) -> Config:
    kept = min(whole, side) if side else whole
    data = dataclasses.replace(
        config.data,
        margin=kept / size,
        channels="grey" if weights.channels == 1 else config.data.channels,
        interpolation=weights.interpolation,  # type: ignore[arg-type]
    )
    backbone = weights.name if config.backbone == "auto" else config.backbone
    return dataclasses.replace(config, size=size, backbone=backbone, data=data)


def schedule_frozen(
    config: Config, weights: Weights, *, n: int, channels: int, store_bytes: int
) -> tuple[Config, Cost]:
    """Resolve the settings of a frozen net: arithmetic and batch by a timed trial.

    Args:
        config: from :func:`take_weights`.
        weights: at hand.
        n: number of images.
        channels: of the images, 1 or 3.
        store_bytes: bytes of the decoded images that stay in memory.
    """
    assert isinstance(config.size, int)
    resolved = resolve(config, n=n, size=config.size, channels=channels)
    net = weights.build(config.size)
    device = torch.device(resolved.device)
    speed = find_speed(
        net,
        channels=weights.channels,
        size=config.size,
        device=device,
        dtype=config.train.precision,
    )
    batch = speed.batch_size if config.train.batch_size == "auto" else config.train.batch_size
    train = dataclasses.replace(
        resolved.train,
        precision="bfloat16" if speed.dtype == torch.bfloat16 else "float32",
        batch_size=batch,
    )
    parameters = sum(p.numel() for p in net.parameters()) * 4
    assert isinstance(resolved.clusters, int)
    choosing = CHOOSING * resolved.clusters if resolved.final.choose else 0.0
    d = int(net.num_features)  # type: ignore[arg-type]
    cost = Cost(
        memory=store_bytes + KERNELS + 2 * parameters + concluding_bytes(n, d, resolved.final.pca),
        epoch=0.0,
        rest=n * (speed.seconds + AFTERWARDS / min(2, torch.get_num_threads())) + choosing,
        epochs=0,
    )
    return dataclasses.replace(resolved, train=train), cost


def plan_starts(
    asked: Config,
    frozen: Config,
    weights: Weights,
    *,
    n: int,
    channels: int,
    side: int,
    store_bytes: int,
    spent: float = 0.0,
    limit: float = AN_HOUR,
) -> tuple[list[Config], Config, Cost]:
    """What is tried where weights are at hand: they stay as they are, and then what time allows.

    They are adapted; small grey images, which weights know least of and nets learn soonest, are
    learnt from scratch as well, where the start is left open.

    Args:
        asked: settings as asked for.
        frozen: from :func:`take_weights`.
        weights: at hand.
        n: number of images.
        channels: of the images, 1 or 3.
        side: of the images that are kept, in pixels.
        store_bytes: bytes of the decoded images that stay in memory.
        spent: seconds since the fit began.
        limit: minutes, where none were given.

    Returns:
        Resolved settings of what is tried before, those of the last, and the cost of all.
    """
    first, cost = schedule_frozen(frozen, weights, n=n, channels=channels, store_bytes=store_bytes)
    if asked.start == "frozen":
        return [], first, cost
    rivals, before = [first], cost.seconds
    facts: dict[str, Any] = {"n": n, "channels": channels, "store_bytes": store_bytes}
    timed = asked.minutes != "auto"
    if asked.start == "auto" and channels == 1 and side <= SMALL_SHAPE:
        scratch = _from_scratch(asked, side)
        if asked.minutes != "auto":
            half = (60 * asked.minutes - spent - before) / 120
            scratch = dataclasses.replace(scratch, minutes=max(half, LEAST))
        learnt, more = schedule_minutes(scratch, **facts, size=auto_size(side), limit=limit / 2)
        rivals.append(learnt)
        before += more.seconds
    minutes = (60 * asked.minutes - spent - before) / 60 if timed else limit  # type: ignore[operator]
    wanted = adapt_weights(asked, weights, n=n, channels=channels, side=side, minutes=minutes)
    assert isinstance(wanted.size, int)
    last, more = schedule_minutes(
        wanted, **facts, size=wanted.size, spent=spent + before, limit=limit, net=weights.net
    )
    if asked.start == "auto" and timed and minutes * 60 < more.rest + more.epoch:
        return rivals[1:], first, cost  # no time to adapt
    total = Cost(max(cost.memory, more.memory), more.epoch, before + more.rest, more.epochs)
    return rivals, last, total


def untimed_starts(
    asked: Config, frozen: Config, weights: Weights, *, n: int, channels: int, side: int
) -> tuple[list[Config], Config]:
    """:func:`plan_starts` without a clock, where epochs follow from the images: the same bits."""
    facts = {"n": n, "channels": channels}
    assert isinstance(frozen.size, int)
    first = resolve(frozen, **facts, size=frozen.size)
    if asked.start == "frozen":
        return [], first
    rivals = [first]
    if asked.start == "auto" and channels == 1 and side <= SMALL_SHAPE:
        scratch = _from_scratch(asked, side)
        rivals.append(resolve(scratch, **facts, size=auto_size(side)))
    last = adapt_weights(asked, weights, **facts, side=side, minutes=None)
    assert isinstance(last.size, int)
    return rivals, resolve(last, **facts, size=last.size)


def _from_scratch(asked: Config, side: int) -> Config:
    """The settings without the weights."""
    data = dataclasses.replace(asked.data, margin=1.0)
    return dataclasses.replace(
        asked, start="scratch", backbone="auto", weights="", data=data, size=auto_size(side)
    )


def as_given(config: Config) -> Config:
    """The settings of a fit that begins with features made elsewhere."""
    return dataclasses.replace(config, start="frozen", backbone=GIVEN, weights="", minutes="auto")


def concluding_bytes(n: int, d: int, pca: int) -> int:
    """Memory, libraries included, that the end of a fit takes for `n` images' `d` features.

    Args:
        n: images.
        d: features of an image.
        pca: components that they are projected to; 0 for none.
    """
    compared = 8 * min(n, TILE) * d  # as they are, and turned
    return LIBRARIES + CUTTING + compared + n * (4 * (d + min(pca, d)) + IMAGE)


def schedule_given(config: Config, *, n: int, d: int) -> tuple[Config, Cost]:
    """Resolve the settings of a fit of features made elsewhere, ``(n, d)``."""
    resolved = resolve(config, n=n, size=1 if config.size == "auto" else config.size, channels=1)
    assert isinstance(resolved.clusters, int)
    choosing = CHOOSING * resolved.clusters if resolved.final.choose else 0.0
    rest = n * AFTERWARDS / min(2, torch.get_num_threads()) + choosing
    memory = concluding_bytes(n, d, resolved.final.pca)
    return resolved, Cost(memory=memory, epoch=0.0, rest=rest, epochs=0)


def _scale_is_open(config: Config) -> bool:
    """Whether image size or net may follow from the time: neither epochs nor a net are given.

    Raises:
        ConfigError: minutes that cannot be.
    """
    check_time(config)
    named = config.backbone != "auto" or config.start in ("frozen", "adapt")
    return config.epochs == "auto" and not named


def choose_scale(config: Config, *, n: int, size: int, channels: int) -> Config:
    """Image size and net for the minutes there are, where they are left at auto.

    The largest side that gets ENOUGH_FOR_SIDE epochs, else the smallest, with the larger net if
    that gets ENOUGH_FOR_NET; without minutes, what :func:`guess_epochs` says is enough as well. A
    step is timed at TRIAL_SIDE; its time is taken to grow with the number of pixels. With epochs or
    a backbone that were given the size stays as well: not every net takes every size.

    Args:
        config: settings as asked for.
        n: number of images.
        size: side in pixels that the images would get without a limit of time.
        channels: 1 or 3.
    """
    if not _scale_is_open(config):
        return config
    minutes = usual_minutes(config, n) if config.minutes == "auto" else config.minutes
    device = pick_device(config.device)
    sizes = [size]
    if config.size == "auto":
        sizes += [side for side in SIZES if side < size]
    options = [(side, auto_backbone(side, channels, n, device.type)) for side in sizes]
    if device.type == "cpu" and options[-1][1] == "convnet_small":
        options.append((options[-1][0], "convnet_tiny"))
    if len(options) == 1:
        return dataclasses.replace(config, size=size)
    reached = {}  # epochs in that time, as a share of those that are enough
    for net in {net for _, net in options}:
        side = min(TRIAL_SIDE, size)
        trial = dataclasses.replace(config, minutes="auto", epochs=1, size=side, backbone=net)
        resolved = resolve(trial, n=n, size=side, channels=channels)
        batch, small = resolved.train.batch_size, resolved.contrastive_clusters.small_views
        assert isinstance(batch, int) and isinstance(small, int)
        cost = estimate(resolved, n=n, channels=channels, store_bytes=0, patience=2.0)
        room, fixed = 60 * minutes - cost.rest, beside_steps(n, device.type)
        for option in options:
            if option[1] == net:
                most = ENOUGH_FOR_NET if option[0] == sizes[-1] else ENOUGH_FOR_SIDE
                enough = most / worth(small)
                if config.minutes == "auto":
                    enough = min(enough, guess_epochs(n, option[0], batch, small))
                steps = (cost.epoch - fixed) * (option[0] / side) ** 2
                reached[option] = room / (steps + fixed) / enough
    side, net = next((option for option in options if reached[option] >= 1), options[-1])
    return dataclasses.replace(config, size=side, backbone=net)


def scale_source(listing: Listing, config: Config) -> Config:
    """:func:`choose_scale` for a source that is listed, but not decoded yet."""
    if not _scale_is_open(config):  # no need to look at the images
        return config
    scan = scan_images(listing, data=config.data, size=config.size)
    return choose_scale(config, n=scan.count, size=scan.size, channels=scan.channels)


def schedule_minutes(
    config: Config,
    *,
    n: int,
    size: int,
    channels: int,
    store_bytes: int,
    spent: float = 0.0,
    limit: float = AN_HOUR,
    net: nn.Module | None = None,
) -> tuple[Config, Cost]:
    """Resolve the settings, with as many epochs as the time allows.

    Epochs that were given stay. With minutes, it is the number that ends nearest to them, at
    most LATE after and up to MOST_EPOCHS; without, epochs follow from the images, but the fit shall
    take no more than `limit`.

    Args:
        config: settings as asked for.
        n: number of images.
        size: side of the training images in pixels.
        channels: 1 or 3.
        store_bytes: bytes of the decoded images that stay in memory.
        spent: seconds since the fit began; they count where minutes were given.
        limit: minutes from then on, where none were given (:func:`usual_minutes`).
        net: the one to train, where it is a module of the user's own.

    Returns:
        The settings, with nothing but epochs in place of minutes, and what they will cost.
    """
    minutes = limit if config.minutes == "auto" else config.minutes
    resolved = resolve(config, n=n, size=size, channels=channels)
    patience = 1.0
    if config.minutes != "auto":
        patience = min(TRIAL_MOST, TRIAL_SHARE * 60 * minutes)
    began = time.perf_counter()
    cost = estimate(
        resolved, n=n, channels=channels, store_bytes=store_bytes, patience=patience, net=net
    )
    if config.epochs == "auto":
        gone = 0.0 if config.minutes == "auto" else spent + time.perf_counter() - began
        room = 60 * minutes - gone - cost.rest
        late = 0.0 if config.minutes == "auto" else LATE * 60 * minutes
        epochs = max(1, min(round(room / cost.epoch), int((room + late) / cost.epoch)))
        assert isinstance(resolved.epochs, int)
        most = resolved.epochs if config.minutes == "auto" else MOST_EPOCHS
        epochs = min(epochs, most)
        resolved = dataclasses.replace(resolved, epochs=epochs, minutes="auto")
        cost = dataclasses.replace(cost, epochs=epochs)
    return resolved, cost


def estimate(
    config: Config,
    *,
    n: int,
    channels: int,
    store_bytes: int,
    patience: float = 1.0,
    net: nn.Module | None = None,
) -> Cost:
    """Memory and time of a fit, from a few timed steps on random pixels.

    Args:
        config: resolved settings.
        n: number of images.
        channels: 1 or 3.
        store_bytes: bytes of the decoded images that stay in memory.
        patience: seconds that may go into timing, beside the first steps.
        net: as for :func:`schedule_minutes`; it stays as it is.
    """
    assert isinstance(config.size, int)
    assert isinstance(config.epochs, int)
    assert isinstance(config.clusters, int)
    assert isinstance(config.train.batch_size, int)
    device = torch.device(config.device)
    with torch.random.fork_rng(devices=[]):
        backbone, size = _net_to_time(config, channels, net)
        giant = (config.size / size) ** 2  # times the pixels of what is timed
        side = round(size * config.data.margin)
        batch = batch_size = config.train.batch_size
        if config.start == "adapt":  # a step of a large net on large images takes seconds
            batch = min(batch, ADAPT_TRIAL)
            hold(backbone)
        if device.type != "cuda" and batch * side**2 > TRIAL_PIXELS:  # a part of it tells as much
            batch = min(batch, max(2, TRIAL_PIXELS // (2 * side**2)))
        probe = dataclasses.replace(
            config,
            size=size,
            deepcluster=dataclasses.replace(config.deepcluster, pseudo_clusters=batch),
        )
        method = load_method(config.method)(probe, backbone, batch)
        method.to(device, memory_format=torch.channels_last)  # type: ignore[attr-defined]
        if config.start == "adapt":
            keep_statistics(backbone)
    optimizer = build_optimizer(method.groups(), config.train)
    pixels = np.random.default_rng(0).integers(
        256, size=(batch, side, side, channels), dtype=np.uint8
    )
    names = [str(i) for i in range(batch)]
    store = ImageStore(name="", pixels=pixels, size=size, ids=names, paths=[None] * batch)
    deep = _channels_of_net(config, channels, net)
    preprocessing = Preprocessing(size, (0.5,) * deep, (0.25,) * deep)
    one_step = Step(method, optimizer, probe, preprocessing, Batches(store, device))
    one_step.begin(0)

    updates: list[float] = []  # seconds of each step in the optimizer: the same for any batch
    optimizer.register_step_pre_hook(lambda *_: updates.append(-time.perf_counter()))
    optimizer.register_step_post_hook(
        lambda *_: updates.append(updates.pop() + time.perf_counter())
    )

    def step(count: int) -> float:
        start = time.perf_counter()
        one_step(torch.arange(count))
        float(one_step.total)  # waits for the device
        return time.perf_counter() - start

    held: dict[int, int] = {}  # storages that wait for the backward pass, and their bytes
    weights = {p.shape for p in method.parameters() if p.ndim > 1}  # type: ignore[attr-defined]

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in weights:  # those are as many for any batch
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # with what made it, it would hold itself in memory for good

    noting = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    most, slow = batch, False
    if device.type != "cuda" and batch * side**2 > FIRST_PIXELS:
        batch = min(batch, max(2, FIRST_PIXELS // side**2))
        with noting:
            first = step(batch)  # it builds kernels, which tells in short steps alone
        slow = first > SLOW_STEP
        if not slow:
            held.clear()
            each = (step(batch) - updates[-1]) / batch
            batch = min(most, max(batch, int(SLOW_STEP / each)))
    if not slow:
        with noting:
            first = step(batch)
        slow = device.type != "cuda" and first > SLOW_STEP
    if device.type == "cuda":
        step(batch)  # the second one records
    timed = [first if slow else step(batch)]
    while sum(timed) < patience or (len(timed) < 2 and timed[0] < SLOW_STEP):
        timed.append(step(batch))
    part = processes.helpers() * batch / (giant * batch_size)  # of what one process does
    update = statistics.median(updates[-len(timed) :])
    seconds = (statistics.median(timed) - update) / part + update  # a whole step's
    seconds_an_image = STEP_EXTRAS * seconds / batch_size
    choosing = CHOOSING * config.clusters if config.final.choose else 0.0
    passes = 1.5 if config.method == "deepcluster" else 1.0  # features of all images an epoch
    small = config.contrastive_clusters.small_views
    assert isinstance(small, int)
    forward = seconds_an_image / (3 * method.views * worth(small))
    d = int(backbone.num_features)  # type: ignore[arg-type]
    parameters = sum(p.numel() for p in method.parameters()) * 4  # type: ignore[attr-defined]
    activations = round(2 * sum(held.values()) / part)  # and as much for gradients and the views
    banks = n * BANK
    if config.method == "deepcluster":  # features, after PCA, and as k-means keeps them
        banks = 4 * n * (d + 2 * min(d, int(config.deepcluster.pca)))
    elif config.method == "deepcluster-v2":  # two, and one as k-means keeps it
        banks = 8 * n * config.deepcluster_v2.dimensions
    training = LIBRARIES + activations + 6 * parameters + banks
    return Cost(
        memory=store_bytes + KERNELS + max(training, concluding_bytes(n, d, config.final.pca)),
        epoch=n * passes * seconds_an_image + beside_steps(n, device.type),
        rest=n * (forward + AFTERWARDS / min(2, torch.get_num_threads())) + choosing,
        epochs=config.epochs,
    )


def _channels_of_net(config: Config, channels: int, own: nn.Module | None) -> int:
    """Channels that the net takes; grey images fill three."""
    if own is not None:
        return takes(own, channels)
    if config.start == "scratch":
        return channels
    weights = find_weights(config.backbone, config.weights)
    return channels if weights is None else weights.channels


def _net_to_time(config: Config, channels: int, own: nn.Module | None) -> tuple[nn.Module, int]:
    """The net, and the side of the images to time steps with: of giants, a part of theirs.

    The time of a net without attention grows with the number of pixels, so a part of them tells as
    much; to time a step of two whole images may take a minute.
    """
    assert isinstance(config.size, int)
    if own is not None:
        own = copy.deepcopy(own)
        return prepare_backbone(own, channels=takes(own, channels), size=config.size), config.size
    size = config.size
    while 2 * round(size * config.data.margin) ** 2 > FIRST_PIXELS:
        size //= 2
    if size < config.size and config.start == "scratch" and not config.device.startswith("cuda"):
        with contextlib.suppress(ConfigError):  # not every net takes every size
            net = build_net(dataclasses.replace(config, size=size), channels)
            if not any("attention" in type(each).__name__.lower() for each in net.modules()):
                return net, size
    return build_net(config, channels), config.size
