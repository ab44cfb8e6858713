"""Is this fit to be trusted? One sentence, and what to try if not.

The thresholds are rules of thumb for a person's first look, not tests; the page prints the figures
beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from deepcluster.config import GUESSING

GIANT = 0.5  # share of all images in one cluster, from three clusters on
STUCK = 0.97  # final loss over ln k, the loss of guessing
CHURN = 0.5  # share of images that the last clustering moved to another cluster
FLAT = 3.0  # effective rank of the features
HALF_RIGHT, MOST_RIGHT = 0.5, 0.75  # shares of images in the right cluster


@dataclass(frozen=True)
class Verdict:
    """What the first screen says of the fit."""

    level: Literal["good", "fair", "bad"]
    sentence: str
    problems: list[tuple[str, str]] = field(default_factory=list)  # (what is wrong, what to try)


def judge(
    sizes: Sequence[int],
    metrics: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, float]],
    *,
    method: str = "",
    asked: int | None = None,
    purity: float | None = None,
) -> Verdict:
    """Look for the known ways a deep clustering goes wrong.

    Args:
        sizes: images in each cluster that has any.
        metrics: the lines of metrics.jsonl.
        scores: ``fit`` and ``pixels`` scores, as in run.json.
        method: how the backbone learned.
        asked: clusters that were asked for.
        purity: share of the images that are of the most frequent class of their cluster. It takes
            the place of ACC where there are more clusters than classes, so that one cluster a
            class cannot be asked for.
    """
    fit, pixels = scores.get("fit") or {}, scores.get("pixels") or {}
    problems = [
        *_of_sizes(sizes, asked),
        *_of_training(metrics, method),
        *_against_pixels(fit, pixels),
    ]
    if problems:
        sentence = problems[0][0]
        return Verdict("bad", sentence, problems)
    known = _of_classes(fit, pixels, purity)
    if known is not None:
        return known
    if not metrics:
        return Verdict("fair", "Nothing is known of the training; judge by the pictures.")
    sentence = (
        "No sign of trouble in training. There are no labels to check against, so judge by the "
        "pictures: the doubtful members of each cluster show where it ends."
    )
    return Verdict("good", sentence)


def _of_classes(
    fit: Mapping[str, float], pixels: Mapping[str, float], purity: float | None
) -> Verdict | None:
    """What the labels say, if there are any."""
    right = _number(fit, "acc") if purity is None else purity
    if right is None:
        return None
    if right < HALF_RIGHT:
        start = "The clusters follow the known classes only in part"
    elif right < MOST_RIGHT:
        start = "The clusters follow the known classes for the most part"
    else:
        start = "The clusters match the known classes"
    if purity is not None:
        sentence = f"{_percent(right)} of the images are of the class most frequent in theirs."
    else:
        sentence = f"{_percent(right)} of the images are in the right one"
        base = _number(pixels, "acc")
        plain = "" if base is None else f" ({_percent(base)} with plain k-means on the pixels)"
        sentence += f"{plain}."
    return Verdict("good" if right >= MOST_RIGHT else "fair", f"{start}: {sentence}")


def _of_sizes(sizes: Sequence[int], asked: int | None) -> list[tuple[str, str]]:
    found = []
    total, clusters = sum(sizes), len(sizes)
    if clusters == 1 and total > 1:
        found.append(
            (
                "All images are in one cluster.",
                "Ask for more clusters (--clusters), or train longer (--epochs).",
            )
        )
    elif clusters > 2 and max(sizes) / total >= GIANT:
        found.append(
            (
                f"One cluster holds {_percent(max(sizes) / total)} of all images.",
                "Look at it first: if it is a mix, ask for more clusters (--clusters), or train "
                "longer (--epochs). If most images really are alike, it may be right.",
            )
        )
    if asked is not None and 1 < clusters < asked:
        found.append(
            (
                f"{asked} clusters were asked for, but only {clusters} have images.",
                f"Ask for {clusters} clusters, or train longer (--epochs).",
            )
        )
    return found


def _of_training(metrics: Sequence[Mapping[str, Any]], method: str) -> list[tuple[str, str]]:
    found = []
    # Not every epoch clusters anew: of each figure, the last one there is.
    last = {name: value for line in metrics for name, value in line.items() if value is not None}
    rank, changed = _number(last, "effective_rank"), _number(last, "changed")
    loss, ln_k = _number(last, "loss"), _number(last, "ln_k")
    if loss is None and "loss" in last:
        found.append(
            (
                "The loss is not a number: the training went astray.",
                "Fit again with a lower learning rate (--train.lr).",
            )
        )
    if rank is not None and rank < FLAT:
        found.append(
            (
                f"The features have collapsed: they vary along about {rank:.1f} directions only.",
                "Fit again with a lower learning rate (--train.lr) or another seed (--seed).",
            )
        )
    if method in GUESSING and loss is not None and ln_k and loss > STUCK * ln_k:
        found.append(
            (
                f"The net has hardly learned: its loss {loss:.2f} is still that of guessing "
                f"(ln k = {ln_k:.2f}).",
                "Train longer (--epochs), or with another learning rate (--train.lr).",
            )
        )
    if changed is not None and changed > CHURN and len(metrics) > 2:
        found.append(
            (
                "The clusters were still churning: the last time they were made anew, "
                f"{_percent(changed)} of the images went to another one.",
                "Train longer (--epochs), so that the clusters can settle.",
            )
        )
    return found


def _against_pixels(fit: Mapping[str, float], pixels: Mapping[str, float]) -> list[tuple[str, str]]:
    ours, theirs = _number(fit, "nmi"), _number(pixels, "nmi")
    if ours is None or theirs is None or ours >= theirs:
        return []
    return [
        (
            f"Plain k-means on the pixels follows the classes better (NMI {theirs:.2f} against "
            f"{ours:.2f}).",
            "Train longer (--epochs); for very few images, plain k-means may be the right tool.",
        )
    ]


def _number(values: Mapping[str, Any], name: str) -> float | None:
    """The value if it is a finite number."""
    value = values.get(name)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
