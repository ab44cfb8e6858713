"""What a fit will do with the time there is, before it does it.

:func:`settle_start` and :func:`plan_starts` say where the net begins; :func:`choose_scale` and
:func:`schedule_minutes` turn the time a person has into image size, net and epochs, by what
``training/cost.py`` times. All is written into the settings, which then give the same bits again
without a clock.

Long, because each start is planned with the time that the others leave.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from deepcluster.backbones.build import auto_backbone
from deepcluster.backbones.features import find_speed
from deepcluster.backbones.start import (
    GOOD,
    Weights,
    find_weights,
)
from deepcluster.config import GIVEN, Config, changed, flatten
from deepcluster.device import pick_device
from deepcluster.errors import ConfigError
from deepcluster.images.listing import Listing
from deepcluster.images.store import auto_size, scan_images
from deepcluster.progress import minutes
from deepcluster.training.cost import (
    AFTERWARDS,
    CHOOSING,
    KERNELS,
    Cost,
    beside_steps,
    concluding_bytes,
    estimate,
    vectors_bytes,
)
from deepcluster.training.resolve import (
    AN_HOUR,
    check_time,
    guess_epochs,
    resolve,
    usual_minutes,
    worth,
)

# Below so many epochs, smaller images learn more in the same time; of the smallest, a smaller net.
# (Epochs of two views: :func:`worth`.)
ENOUGH_FOR_SIDE, ENOUGH_FOR_NET = 16, 12
MOST_EPOCHS = 1000
SIZES = (64, 48, 32)  # smaller sides that images may get, to keep to the time
LATE = 0.1  # of the minutes that were given: by so much a fit may be expected to end after them
TRIAL_SIDE = 32  # pixels; steps are timed at this side where several are to be compared
TRIAL_SHARE, TRIAL_MOST = 0.02, 10.0  # of the time that was given, and seconds: spent on timing

ADAPT_SIDES = (128, 96, 64)  # of images that weights are adapted on, and
ENOUGH_TO_ADAPT = 6  # epochs: the largest side that gets as many is taken
SMALL_SHAPE = 64  # pixels: grey images up to this side are learnt from scratch in minutes, and
# weights are adapted on them at the smallest of the sides, for more epochs
LEAST = 0.05  # minutes
NAMED = 5  # settings that an error names; of more it says how many


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
                f"{epochs} epochs would end {late:.0f} s after the {minutes(self.seconds / 60)} "
                f"given, since one takes {each:.2g} s now: there will be {fewer}"
            )
        return fewer


def settle_start(config: Config) -> tuple[Config, Weights | None, str]:
    """Where the net begins.

    Args:
        config: settings as asked for.

    Returns:
        The settings, with scratch in place of auto where no weights are at hand; the weights, which
        may still be at the hub; and a sentence about those that a person could have.

    Raises:
        ConfigError: weights that are asked for do not exist, or are given to no purpose; or the
            settings are those of a fit of vectors.
    """
    if config.backbone == GIVEN:
        raise ConfigError(
            "these settings are of a fit of vectors, which has no net: give the vectors with "
            "--embeddings FILE, and the images that they are of with --images"
        )
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
        minutes: for the training; None reads no clock and takes the largest side there is.
    """
    asked = dataclasses.replace(config, start="adapt", minutes="auto")
    sides = ADAPT_SIDES[-1:] if channels == 1 and side <= SMALL_SHAPE else ADAPT_SIDES
    sizes = [side // weights.multiple * weights.multiple for side in sides]
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
    total = Cost(
        max(cost.memory, more.memory), more.epoch, before + more.rest, more.epochs, more.room
    )
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


def as_given(config: Config, typed: Collection[str] = (), *, images: bool) -> Config:
    """The settings of a fit that begins with features made elsewhere.

    Args:
        config: settings as asked for; they may be those of the config.toml of such a fit.
        typed: names of those that a person gave now.
        images: whether the vectors have images beside them.

    Raises:
        ConfigError: some mean nothing to such a fit.
    """
    _refuse_unheard(config, typed, images=images)
    return dataclasses.replace(config, start="frozen", backbone=GIVEN, weights="", minutes="auto")


def _refuse_unheard(config: Config, typed: Collection[str], *, images: bool) -> None:
    of_images = ("data.",) if images else ()
    heard = ("clusters", "seed", "device", "start", "final.", "train.threads", *of_images)
    values = flatten(dataclasses.asdict(config))
    said = [name for name in values if name in typed and values[name] != "auto"]
    if config.backbone != GIVEN:  # else the others are what an earlier fit of vectors came to
        said += [name for name in changed(config) if name not in said]
    unheard = [name for name in said if not name.startswith(heard)]
    if config.start not in ("auto", "frozen"):
        unheard.append("start")
    if unheard:
        given = ", ".join(f"{name} = {values[name]}" for name in unheard[:NAMED])
        more = f" and {len(unheard) - NAMED} more" if len(unheard) > NAMED else ""
        without = "no net learns" if images else "no net learns and no image is read"
        raise ConfigError(
            f"{given}{more}: features that were made elsewhere are cut as they are, {without}, so "
            "this says nothing; leave it out, or give images"
        )


def schedule_given(
    config: Config, *, n: int, d: int, channels: int, held: int = 0
) -> tuple[Config, Cost]:
    """Resolve the settings of a fit of features made elsewhere, ``(n, d)``, and their images.

    How images are read stays as asked for, since no net sees them; and what PCA rounds by does not
    follow from the device, on which the vectors were not made.

    Args:
        config: settings as asked for.
        n: number of vectors.
        d: their length.
        channels: of the images, 1 or 3.
        held: bytes of vectors and images that lie in memory, not in a mapped file.
    """
    size = 1 if config.size == "auto" else config.size
    precision = "float32" if config.train.precision == "auto" else config.train.precision
    train = dataclasses.replace(config.train, precision=precision)
    exact = dataclasses.replace(config, train=train)
    resolved = resolve(exact, n=n, size=size, channels=channels)
    resolved = dataclasses.replace(resolved, data=config.data)
    assert isinstance(resolved.clusters, int)
    choosing = CHOOSING * resolved.clusters if resolved.final.choose else 0.0
    rest = n * AFTERWARDS / min(2, torch.get_num_threads()) + choosing
    memory = held + vectors_bytes(n, d, resolved.final.pca)
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
