"""What a fit will cost: steps timed on random pixels, and bytes counted."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from deepcluster import processes
from deepcluster.backbones.adapt import counting, hold, in_pieces, keep_statistics
from deepcluster.backbones.build import prepare_backbone, takes
from deepcluster.backbones.preprocessing import Batches, Preprocessing
from deepcluster.backbones.start import build_net, find_weights
from deepcluster.clustering.neighbours import TILE
from deepcluster.config import Config
from deepcluster.errors import ConfigError
from deepcluster.images.store import ImageStore
from deepcluster.methods import load_method
from deepcluster.training.optimizers import build_optimizer
from deepcluster.training.resolve import worth
from deepcluster.training.room import Room, find_room
from deepcluster.training.step import Step

TRIAL_PIXELS = 2**22  # of a batch: of larger ones a part is timed, of half as many pixels
FIRST_PIXELS = 2**17  # of the first step, which says how many images the others may have
SLOW_STEP = 2.0  # seconds that a timed step may take; the first of a size, which takes longer, may
# take twice as long, or it is all that is timed
ADAPT_TRIAL = 64  # images in a timed step

# What a trial of a few steps cannot time, as it was measured on two cores of an AMD EPYC with
# AVX512-BF16 (torch 2.14); seconds unless said otherwise. A machine of half the speed is late by
# half of these, while the steps themselves are always timed where they will run.
AFTERWARDS = 8e-4  # an image, once a fit: graph, map, pictures, report on one core (two: half)
# An epoch, and an image in it, beside the steps: cuts, figures, checkpoint. (On a GPU: an H200.)
BESIDE = {"cpu": (0.07, 3.3e-5), "cuda": (0.35, 1.5e-6)}
STEP_EXTRAS = 1.05  # times a timed step: reading the images
CHOOSING = 0.3  # for each number of clusters that is looked at

# Bytes, by the largest resident sizes of fits of 10,000, 100,000 and a million images.
LIBRARIES = 800_000_000  # torch and the others, once they are loaded
KERNELS = 100_000_000  # what they keep of a net that has run
CUTTING = 170_000_000  # scores of a block and tables of the final clusters
IMAGE = 1100  # an image's id, clusters, neighbours and rows of tables and pages
VECTOR = 470  # the same of a vector without an image, beside its features, which stay in a file
DRAWING = 150  # a pixel of a batch: views while they are drawn, where no activations are more
BANK = 130  # an image, of the default method


@dataclass(frozen=True)
class Cost:
    """What a fit is expected to take."""

    memory: int  # bytes at the peak
    epoch: float  # seconds an epoch
    rest: float  # seconds of all that comes once
    epochs: int
    room: Room | None = None  # of a net that is adapted

    @property
    def seconds(self) -> float:
        """Of the whole fit, once the images are decoded."""
        return self.rest + self.epochs * self.epoch


def beside_steps(n: int, device_type: str) -> float:
    """Seconds of an epoch of `n` images beside its steps."""
    epoch, image = BESIDE["cuda" if device_type == "cuda" else "cpu"]
    return epoch + n * image


def concluding_bytes(n: int, d: int, pca: int) -> int:
    """Memory, libraries included, that the end of a fit takes for `n` images' `d` features.

    Args:
        n: images.
        d: features of an image.
        pca: components that they are projected to; 0 for none.
    """
    compared = 8 * min(n, TILE) * d  # as they are, and turned
    return LIBRARIES + CUTTING + compared + n * (4 * (d + min(pca, d)) + IMAGE)


def vectors_bytes(n: int, d: int, pca: int) -> int:
    """As :func:`concluding_bytes`, where the features are in the run's file, which is mapped."""
    compared = 8 * min(n, TILE) * d
    return LIBRARIES + max(CUTTING + compared, n * VECTOR) + n * 4 * min(pca, d)


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
        deep = _channels_of_net(config, channels, net)
        room = find_room(method, config, deep) if config.start == "adapt" else None
        if config.start == "adapt":
            keep_statistics(backbone)
        if room is not None and room.piece:
            in_pieces(backbone, room.piece, again=room.again)
    optimizer = build_optimizer(method.groups(), config.train)
    pixels = np.random.default_rng(0).integers(
        256, size=(batch, side, side, channels), dtype=np.uint8
    )
    names = [str(i) for i in range(batch)]
    store = ImageStore(name="", pixels=pixels, size=size, ids=names, paths=[None] * batch)
    preprocessing = Preprocessing(size, (0.5,) * deep, (0.25,) * deep)
    one_step = Step(
        method,
        optimizer,
        probe,
        preprocessing,
        Batches(store, device),
        record=room is None or not room.again,
    )
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

    most, slow = batch, False
    if device.type != "cuda" and batch * side**2 > FIRST_PIXELS:
        batch = min(batch, max(2, FIRST_PIXELS // side**2))
        with counting(method) as held:  # type: ignore[arg-type]
            first = step(batch)  # it builds kernels, which tells in short steps alone
        slow = first > 2 * SLOW_STEP
        larger = batch
        if not slow:
            each = (step(batch) - updates[-1]) / batch
            larger = min(most, max(batch, int((SLOW_STEP - updates[-1]) / each)))
        if 2 * larger > 3 * batch:
            batch = larger
            with counting(method) as held:  # type: ignore[arg-type]
                step(batch)  # it is handed its memory, which may take as long as the step itself
    else:
        with counting(method) as held:  # type: ignore[arg-type]
            first = step(batch)
        slow = device.type != "cuda" and first > 2 * SLOW_STEP
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
    activations = 2 * sum(held.values()) / part  # and as much for gradients and the views
    if room is not None and room.piece:  # gradients of a piece at a time
        drawing = DRAWING * batch_size / processes.helpers() * config.size**2
        beside = activations + drawing if room.again else max(0.0, activations - 2 * room.kept)
        activations = room.bytes + beside
    banks = n * BANK
    if config.method == "deepcluster":  # features, after PCA, and as k-means keeps them
        banks = 4 * n * (d + 2 * min(d, int(config.deepcluster.pca)))
    elif config.method == "deepcluster-v2":  # two, and one as k-means keeps it
        banks = 8 * n * config.deepcluster_v2.dimensions
    training = LIBRARIES + round(activations) + 6 * parameters + banks
    return Cost(
        memory=store_bytes + KERNELS + max(training, concluding_bytes(n, d, config.final.pca)),
        epoch=n * passes * seconds_an_image + beside_steps(n, device.type),
        rest=n * (forward + AFTERWARDS / min(2, torch.get_num_threads())) + choosing,
        epochs=config.epochs,
        room=room,
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
