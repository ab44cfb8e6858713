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
from deepcluster.progress import counted
from deepcluster.report.separation import Separation

STUCK = 0.97  # final loss over ln k, the loss of guessing
CHURN = 0.5  # share of images that the last clustering moved to another cluster
FLAT = 3.0  # effective rank of the features
HALF_RIGHT, MOST_RIGHT = 0.5, 0.75  # shares of images in the right cluster
NAMED = 3  # clusters, or pairs of them, that a sentence names


@dataclass(frozen=True)
class Verdict:
    """What the first screen says of the fit."""

    level: Literal["good", "fair", "bad"]
    sentence: str
    problems: list[tuple[str, str]] = field(default_factory=list)  # (what is wrong, what to try)


@dataclass(frozen=True)
class Truth:
    """What the known classes say of the clusters as they stand."""

    right: float  # share of the images in the right cluster
    majority: bool  # of a class most frequent in theirs; else if each cluster is given one class
    classes: int


def judge(
    sizes: Sequence[int],
    metrics: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, float]],
    *,
    method: str = "",
    learns: bool = True,
    given: bool = False,
    item: str = "image",
    asked: int | None = None,
    distinct: int | None = None,
    truth: Truth | None = None,
    separation: Separation | None = None,
) -> Verdict:
    """Look for the known ways a deep clustering goes wrong.

    Args:
        sizes: images in each cluster that has any.
        metrics: the lines of metrics.jsonl.
        scores: ``fit`` and ``pixels`` scores, as in run.json.
        method: how the backbone learned.
        learns: whether it did.
        given: whether the features were made elsewhere.
        item: what was clustered, in a word.
        asked: clusters that were asked for.
        distinct: images that differ from one another.
        truth: what the labels say, if there are any.
        separation: how far the clusters stand apart.
    """
    fit, pixels = scores.get("fit") or {}, scores.get("pixels") or {}
    cure = "Train longer (--minutes)" if learns else "Adapt the net (--start adapt)"
    if given:
        cure = "Try vectors of another net, or fit the images themselves"
    problems = [
        *_of_sizes(sizes, asked, distinct, item, ", or train longer (--minutes)" if learns else ""),
        *_of_training(metrics, method),
        *_against_pixels(fit, pixels, cure),
    ]
    if problems:
        sentence = problems[0][0]
        return Verdict("bad", sentence, problems)
    if not sizes:
        return Verdict("fair", f"Every {item} was taken out of its cluster.")
    borders = _of_borders(separation)
    by = "the pictures" if item == "image" else "what lies together"
    one_class = (
        f"All labelled {item}s are of one class, so the labels cannot say which clusters are right."
    )
    known = _of_classes(truth, pixels, item)
    if known is not None:
        return known if known.level == "good" else Verdict(known.level, known.sentence, borders)
    if borders:
        start = "" if truth is None else f"{one_class} "
        return Verdict("fair", start + borders[0][0], borders)
    if truth is not None:
        return Verdict("fair", f"{one_class} Judge by {by}.")
    if not metrics:
        what = "Nothing is known of the training" if learns else "Nothing was trained"
        return Verdict("fair", f"{what}; judge by {by}.")
    apart = ", and the clusters stand apart" if separation and separation.looked > 1 else ""
    sentence = (
        f"No sign of trouble in training{apart}. There are no labels to check against, so judge by "
        "the pictures: the doubtful members of each cluster show where it ends."
    )
    return Verdict("good", sentence)


def _of_classes(truth: Truth | None, pixels: Mapping[str, float], item: str) -> Verdict | None:
    """What the labels say, if there are any of at least two classes."""
    if truth is None or truth.classes < 2:
        return None
    right = truth.right
    if right < HALF_RIGHT:
        start = "The clusters follow the known classes only in part"
    elif right < MOST_RIGHT:
        start = "The clusters follow the known classes for the most part"
    else:
        start = "The clusters match the known classes"
    if truth.majority:
        sentence = f"{_percent(right)} of the {item}s are of the class most frequent in theirs."
    else:
        sentence = f"{_percent(right)} of the {item}s are in the right one"
        base = _number(pixels, "acc")
        plain = "" if base is None else f" ({_percent(base)} with plain k-means on the pixels)"
        sentence += f"{plain}."
    return Verdict("good" if right >= MOST_RIGHT else "fair", f"{start}: {sentence}")


def _of_borders(separation: Separation | None) -> list[tuple[str, str]]:
    """Clusters that may be one kind cut in two, or two kinds in one."""
    found = []
    if separation is not None and separation.touching:
        pairs = [f"{a} and {b}" for a, b, _ in separation.touching[:NAMED]]
        more = len(separation.touching) - len(pairs)
        what = f"Clusters {' · '.join(pairs)}{f' and {more} more pairs' if more else ''}"
        found.append(
            (
                f"{what} run into one another, as the halves of one kind would.",
                "Look at them side by side: if they are alike, merge them, or choose fewer "
                "clusters.",
            )
        )
    if separation is not None and separation.mixed:
        numbers = [str(cluster) for cluster, _ in separation.mixed[:NAMED]]
        one = len(separation.mixed) == 1
        more = len(separation.mixed) - len(numbers)
        what = (
            f"Cluster{'' if one else 's'} {', '.join(numbers)}{f' and {more} more' if more else ''}"
        )
        found.append(
            (
                f"{what} {'falls' if one else 'fall'} into two parts with a gap between.",
                "Look for two kinds in it: if there are, choose more clusters.",
            )
        )
    return found


def _of_sizes(
    sizes: Sequence[int], asked: int | None, distinct: int | None, item: str, longer: str
) -> list[tuple[str, str]]:
    found = []
    total, clusters = sum(sizes), len(sizes)
    if distinct is not None and distinct < max(clusters, asked or 0):
        found.append(
            (
                f"There are only {distinct} different {item}s, for {max(clusters, asked or 0)} "
                "clusters."
                if distinct > 1
                else f"All {item}s are the same.",
                f"Ask for at most {counted(distinct, 'cluster')} (--clusters), or look for what "
                f"went wrong when the {item}s were written.",
            )
        )
    elif clusters == 1 and total > 1:
        found.append(
            (
                f"All {item}s are in one cluster.",
                f"Ask for more clusters (--clusters){longer}.",
            )
        )
    elif asked is not None and 1 < clusters < asked:
        found.append(
            (
                f"{asked} clusters were asked for, but only {clusters} have {item}s.",
                f"Ask for {clusters} clusters{longer}.",
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
                "Train longer (--minutes), or with another learning rate (--train.lr).",
            )
        )
    if changed is not None and changed > CHURN and len(metrics) > 2:
        found.append(
            (
                "The clusters were still churning: the last time they were made anew, "
                f"{_percent(changed)} of the images went to another one.",
                "Train longer (--minutes), so that the clusters can settle.",
            )
        )
    return found


def _against_pixels(
    fit: Mapping[str, float], pixels: Mapping[str, float], cure: str
) -> list[tuple[str, str]]:
    ours, theirs = _number(fit, "nmi"), _number(pixels, "nmi")
    if ours is None or theirs is None or ours >= theirs:
        return []
    return [
        (
            f"Plain k-means on the pixels follows the classes better (NMI {theirs:.2f} against "
            f"{ours:.2f}).",
            f"{cure}; for very few images, plain k-means may be the right tool.",
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
