"""What a fit says: plain sentences about choices that nobody made and about what came out."""

from __future__ import annotations

import dataclasses

import numpy as np

from deepcluster.backbones.start import Weights
from deepcluster.config import GIVEN, SECTIONS, Config, changed, flatten
from deepcluster.images.store import ImageStore
from deepcluster.progress import counted, minutes, span
from deepcluster.training.conclude import FitResult
from deepcluster.training.cost import Cost
from deepcluster.training.plan import LATE, MOST_EPOCHS
from deepcluster.training.resolve import guess_epochs, resolve

FEW_TO_LEARN = 5  # images a pseudo-cluster
FEW_TO_WHITEN = 10  # images a whitened component


def about_start(weights: Weights | None, sentence: str, busy: str) -> list[str]:
    """What a person should know of where the net begins, and on what machine."""
    return [text for text in (weights.terms if weights else "", sentence, busy) if text]


def left_out(store: ImageStore) -> list[str]:
    """A sentence, if images were skipped."""
    count = len(store.skipped)
    return [f"{counted(count, 'file')} left out: see skipped.csv"] if count else []


def notes(
    asked: Config,
    resolved: Config,
    n: int,
    cost: Cost,
    *,
    limit: float,
    spent: float | None = None,
) -> list[str]:
    """Plain sentences about choices the user did not make and should know of.

    Args:
        asked: settings as asked for.
        resolved: settings as they will be.
        n: number of images.
        cost: what the fit will take.
        limit: minutes, where neither they nor epochs were asked for.
        spent: seconds that went into decoding, if it was done.
    """
    sentences = []
    assert isinstance(resolved.epochs, int)
    if resolved.final.choose:
        sentences.append(
            f"clusters: the best number from 2 to {resolved.clusters}, chosen at the end; "
            "if you know better, say --clusters K"
        )
    if resolved.backbone == GIVEN:
        return [*sentences, f"{counted(n, 'vector')} as given: nothing is trained"]
    learns = "frozen" if resolved.start == "frozen" else counted(resolved.epochs, "epoch")
    sentences.append(
        f"{counted(n, 'image')} at {resolved.size} pixels, {resolved.backbone}, "
        f"{learns} on {resolved.device} in {resolved.train.precision}"
        + ("" if asked.minutes == "auto" else f", to end after {minutes(asked.minutes)}")
    )
    if cost.room is not None and cost.room.sentence:
        sentences.append(cost.room.sentence)
    sentences += too_late(asked, cost, spent)
    if asked.minutes == asked.epochs == "auto" and resolved.start != "frozen":
        batch = resolved.train.batch_size
        assert isinstance(resolved.size, int) and isinstance(batch, int)
        small = resolved.contrastive_clusters.small_views
        assert isinstance(small, int)
        rule = guess_epochs(n, resolved.size, batch, small)
        fewer = f" ({rule} epochs would be usual)" if resolved.epochs < rule else ""
        sentences.append(
            f"no --minutes given: training takes at most {span(60 * limit)}, and size, net and "
            f"epochs suit that where you did not name them{fewer}"
        )
    sentences += too_few(resolved, n)
    idle = without_effect(asked, resolved, n)
    if idle:
        sentences.append(f"without effect with the method {resolved.method}: {', '.join(idle)}")
    if resolved.epochs == MOST_EPOCHS and asked.minutes != "auto":
        sentences.append(f"{MOST_EPOCHS} epochs are enough: this will end before its time")
    return sentences


def too_late(asked: Config, cost: Cost, spent: float | None) -> list[str]:
    """A sentence, if a fit cannot end in the minutes it was given (see :func:`notes`)."""
    if asked.minutes == "auto":
        return []
    if (spent or 0) + cost.seconds <= 60 * asked.minutes * (1 + LATE):
        return []
    decoded = "" if spent is None else f"decoding took {span(spent)}, "
    return [
        f"{minutes(asked.minutes)} {'is' if asked.minutes == 1 else 'are'} too few for so many "
        f"images on this machine: {decoded}"
        f"one epoch takes {span(cost.epoch)}, the rest {span(cost.rest)}"
    ]


def too_few(config: Config, n: int) -> list[str]:
    """Sentences about settings made for many more images than n."""
    sentences = []
    ours = config.deepcluster
    made = {
        "deepcluster": ("deepcluster.pseudo_clusters", ours.pseudo_clusters),
        "deepcluster-v2": ("deepcluster_v2.prototypes", config.deepcluster_v2.prototypes),
    }
    if config.method in made and ours.pseudo_labels == "kmeans":
        setting, k = made[config.method]
        assert isinstance(k, int) and isinstance(config.clusters, int)
        if k > config.clusters and n < FEW_TO_LEARN * k:
            sentences.append(
                f"{k} pseudo-clusters of {counted(n, 'image')} have {n / k:.1f} each, too few to "
                f"learn from: say --{setting} {max(2, n // 20)}"
            )
    kept = [("final", config.final.pca, config.final.whiten)]
    if config.method == "deepcluster":
        kept.append(("deepcluster", ours.pca if isinstance(ours.pca, int) else 0, ours.whiten))
    for section, components, whiten in kept:
        if whiten and n < FEW_TO_WHITEN * components:
            sentences.append(
                f"{components} whitened components of {counted(n, 'image')}: all are about equally "
                f"far apart then; say --{section}.pca {max(2, n // 50)}"
            )
    return sentences


def without_effect(asked: Config, resolved: Config, n: int) -> list[str]:
    """Settings that were changed and that the method does not read."""
    others = {group for groups in SECTIONS.values() for group in groups}
    others -= set(SECTIONS.get(asked.method, ()))
    plain = dataclasses.replace(asked, **{group: getattr(Config(), group) for group in others})
    if not isinstance(resolved.size, int):  # features made elsewhere
        return []
    channels = 1 if resolved.data.channels == "grey" else 3
    usual = resolve(plain, n=n, size=resolved.size, channels=channels)
    given, auto = (flatten(dataclasses.asdict(config)) for config in (asked, usual))
    # a run's own config.toml says what auto came to, which nobody asked for
    idle = [
        name
        for name in changed(asked)
        if name.partition(".")[0] in others and given[name] != auto[name]
    ]
    if asked.final.algorithm == "graph" and asked.final.restarts != Config().final.restarts:
        idle.append("final.restarts")
    return idle


def afterwards(asked: Config, result: FitResult, store: ImageStore, seconds: float) -> list[str]:
    """Plain sentences about what came out otherwise than was asked for.

    Args:
        asked: settings as asked for.
        result: of the fit.
        store: the images.
        seconds: that it took.
    """
    sentences = []
    contents = store.contents if store.contents is not None else np.arange(len(store))
    different, filled = len(np.unique(contents)), len(np.unique(result.labels))
    wanted = result.clusters if result.choice else result.config.clusters
    assert isinstance(wanted, int)
    if different < wanted or filled < wanted:
        item = result.config.item
        sentences.append(
            f"the {counted(len(result.labels), item)} hold {different} different ones: {wanted} "
            f"clusters were asked for, {filled} have {item}s"
        )
    if asked.minutes != "auto" and seconds > 60 * asked.minutes * (1 + LATE):
        training = result.timings.get("train", 0.0)
        sentences.append(
            f"took {span(seconds)}, not the {minutes(asked.minutes)} asked for: "
            f"{counted(len(result.history), 'epoch')} took {span(training)}, the rest "
            f"{span(seconds - training)}; was the machine busy?"
        )
    return sentences
