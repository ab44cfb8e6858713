"""Names that stay: what a person said of the clusters of one run, in another run and in the model.

The clusters of two fits have nothing in common but the images: their numbers, their limits and even
how many there are differ. So what is carried over goes by the images that both runs know, told by
their content: a cluster takes the name of the old cluster from which most of its known images come,
and an image that a person put somewhere follows that cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deepcluster.backbones.features import FittedModel
from deepcluster.clustering.corrections import find_corrections, merge
from deepcluster.device import read_only
from deepcluster.errors import RunError
from deepcluster.images.content import content_of
from deepcluster.progress import counted
from deepcluster.report.labels import NO_CLUSTER, AppliedLabels, change_clusters
from deepcluster.run import RunDir

LISTED = 20  # clusters that are told one by one
BESIDE = 3  # other clusters named beside one


def load_model(run: RunDir, *, backbone: nn.Module | None = None) -> FittedModel:
    """The model of a run with all that a person merged and moved in it.

    Args:
        run: a finished run.
        backbone: the net, where it was a module of the user's own.
    """
    model = FittedModel.load(run.model, backbone=backbone)
    if run.has_changes():
        items = run.read_items()
        merged = {int(old): int(new) for old, new in run.read_clusters()["merged"].items()}
        clusters = merge(torch.from_numpy(items["cluster"].to_numpy().astype(np.int64)), merged)
        features = model.reduce(read_only(run.read_embeddings()))
        others = merge(model.prototypes.assign(features)[0], merged) != clusters
        by_person = torch.tensor([by == "person" for by in items["by"].to_pylist()])
        model.corrections = find_corrections(features, clusters, others | by_person, merged)
    return model


@dataclass(frozen=True)
class Remembered:
    """What a run knows of its images, and what a person said of its clusters."""

    contents: np.ndarray  # (n,) uint64
    clusters: np.ndarray  # (n,) int64, -1 for none
    by_person: np.ndarray  # (n,) bool
    names: dict[int, str]
    merged: frozenset[int]  # clusters into which a person merged others

    @classmethod
    def of(cls, run: RunDir) -> Remembered:
        """Read it.

        Raises:
            RunError: the run does not say what is in its images, and their files are gone.
        """
        items, said = run.read_items(), run.read_clusters()
        return cls(
            _contents(run, items["path"].to_pylist()),
            items["cluster"].to_numpy().astype(np.int64),
            np.array([by == "person" for by in items["by"].to_pylist()], bool),
            {int(k): str(v) for k, v in said["names"].items()},
            frozenset(
                int(new) for old, new in said["merged"].items() if int(old) not in said["by_level"]
            ),
        )

    def check(self, contents: np.ndarray) -> None:
        """Refuse other images of which not one is known.

        Raises:
            RunError: no content is among those of this run.
        """
        if not np.isin(contents, self.contents).any():
            raise RunError(
                f"names cannot be carried over: the runs have no image in common, by what is in "
                f"their {len(contents):,} and {len(self.contents):,} images; nothing was written"
            )


def _contents(run: RunDir, paths: list[str | None]) -> np.ndarray:
    """What tells the run's images; of a run that does not say, read from their files."""
    if not run.contents.is_file() and all(path and Path(path).is_file() for path in paths):
        return np.array([content_of(Path(path)) for path in paths if path], np.uint64)
    return run.read_contents()


@dataclass(frozen=True)
class Carried:
    """What came over from another run."""

    applied: AppliedLabels
    common: int  # images that both runs know
    here: int  # images of this run
    there: int  # images of the other
    named: list[str]  # a line for each cluster that has a name now
    unmatched: list[str]  # a line for each thing that found no place

    def __str__(self) -> str:
        applied = self.applied
        lines = [
            f"in both runs: {counted(self.common, applied.item)} (of {self.here:,} here and "
            f"{self.there:,} there)",
            *self.named,
            f"{counted(applied.renamed, 'cluster')} named, {len(applied.merged)} merged, "
            f"{counted(applied.moved, applied.item)} moved ({applied.taken_out} of them out of "
            "every cluster)",
        ]
        if self.unmatched:
            lines += ["without a match:", *(f"  {line}" for line in self.unmatched)]
        return "\n".join(lines)


def carry_names(old: Remembered, run: RunDir) -> Carried:
    """Take names, merges and moves of another run over, by the images that both know.

    A cluster of `run` matches the old one from which most of its known images come, if that is more
    than half of them, and takes its name. An image that a person put into an old cluster goes to
    the one that matches it (the most alike, of several), and into none where the person took it out
    of every cluster. A cluster that a person made by hand and that nothing matches is made again.
    Clusters that match one that a person merged others into are merged. What a person said in `run`
    itself stays. Doing it twice changes nothing more.

    Args:
        old: of the other run.
        run: a finished run; written to.

    Raises:
        RunError: the runs have no image in common; nothing was written.
    """
    new = Remembered.of(run)
    old.check(new.contents)
    there, here = _pairs(old.contents, new.contents)
    known = Counter(zip(new.clusters[here].tolist(), old.clusters[there].tolist(), strict=True))
    overlap = {pair: count for pair, count in known.items() if min(pair) >= 0}
    match = _match(overlap)
    matching: dict[int, list[int]] = {}  # old cluster -> those here, the most alike first
    for cluster, before in match.items():
        matching.setdefault(before, []).append(cluster)
    for before, clusters in matching.items():
        clusters.sort(key=lambda cluster: (-overlap[cluster, before], cluster))

    after, by_person = new.clusters.copy(), np.zeros(len(new.clusters), bool)
    homeless: Counter[int] = Counter()
    fresh = int(after.max(initial=-1)) + 1
    by_hand = set(old.clusters.tolist()) - set(old.clusters[~old.by_person].tolist())
    for i, j in zip(there.tolist(), here.tolist(), strict=True):
        before = int(old.clusters[i])
        if not old.by_person[i] or new.by_person[j]:
            continue
        if before != NO_CLUSTER and before not in matching:
            if before not in by_hand:
                homeless[before] += 1
                continue
            matching[before] = [fresh]
            fresh += 1
        places = [NO_CLUSTER] if before == NO_CLUSTER else matching[before]
        after[j] = after[j] if after[j] in places else places[0]
        by_person[j] = True
    for before in old.merged & matching.keys():
        for cluster in matching[before][1:]:
            after[after == cluster] = matching[before][0]

    names = {
        cluster: old.names[before]
        for before, clusters in sorted(matching.items())
        for cluster in clusters
        if before in old.names
    }
    applied = change_clusters(run, after, by_person, names | new.names)
    return Carried(
        applied,
        common=len(here),
        here=len(new.contents),
        there=len(old.contents),
        named=list(_few(_named(matching, overlap, applied.names, old, after))),
        unmatched=list(_few(_unmatched(match, matching, overlap, old, new, homeless))),
    )


def _pairs(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the images that both hold; of several copies the first goes with the first."""

    def numbered(contents: np.ndarray) -> list[tuple[int, int]]:
        seen: Counter[int] = Counter()
        keys = []
        for content in contents.tolist():
            keys.append((content, seen[content]))
            seen[content] += 1
        return keys

    rows = {key: i for i, key in enumerate(numbered(old))}
    pairs = [(rows[key], j) for j, key in enumerate(numbered(new)) if key in rows]
    there, here = np.array(pairs, np.int64).reshape(-1, 2).T
    return there, here


def _match(overlap: dict[tuple[int, int], int]) -> dict[int, int]:
    """Cluster here -> the old cluster that more than half of its known images come from."""
    total: Counter[int] = Counter()
    for (cluster, _), count in overlap.items():
        total[cluster] += count
    return {
        cluster: before
        for (cluster, before), count in sorted(overlap.items())
        if 2 * count > total[cluster]
    }


def _named(
    matching: dict[int, list[int]],
    overlap: dict[tuple[int, int], int],
    names: dict[int, str],
    old: Remembered,
    after: np.ndarray,
) -> Iterator[str]:
    for before, clusters in sorted(matching.items()):
        for cluster in clusters:
            if before not in old.names or cluster not in names:
                continue
            known = sum(count for (c, _), count in overlap.items() if c == cluster)
            why = f"{overlap.get((cluster, before), 0):,} of its {known:,} known images"
            if not known:
                why = f"made by hand there, {counted(int((after == cluster).sum()), 'image')}"
            yield f"cluster {cluster}: {names[cluster]} ({why})"


def _unmatched(
    match: dict[int, int],
    matching: dict[int, list[int]],
    overlap: dict[tuple[int, int], int],
    old: Remembered,
    new: Remembered,
    homeless: Counter[int],
) -> Iterator[str]:
    for before, name in sorted(old.names.items()):
        if before not in matching:
            found = Counter({c: count for (c, b), count in overlap.items() if b == before})
            where = _beside(found) or "are not in this run"
            yield f"the name {name} (cluster {before} there): its images {where}"
    for before, count in sorted(homeless.items()):
        name = old.names.get(before, f"cluster {before}")
        yield (
            f"{counted(count, 'image')} that a person put into {name} there: left where the model "
            "has them"
        )
    for cluster, size in zip(*np.unique(new.clusters, return_counts=True), strict=True):
        if cluster == NO_CLUSTER or int(cluster) in match or int(cluster) in new.names:
            continue
        found = Counter({b: count for (c, b), count in overlap.items() if c == cluster})
        where = _beside(found) or "are not in the other run"
        yield f"cluster {cluster} here: its {counted(int(size), 'image')} {where}"


def _beside(found: Counter[int]) -> str:
    """Where images are: the clusters that hold the most of them."""
    if not found:
        return ""
    parts = [f"{cluster} ({count:,})" for cluster, count in found.most_common(BESIDE)]
    more = ", …" if len(found) > BESIDE else ""
    return f"are in the clusters {', '.join(parts)}{more}"


def _few(lines: Iterator[str]) -> Iterator[str]:
    """The first lines, and how many more there are."""
    every = list(lines)
    yield from every[:LISTED]
    if len(every) > LISTED:
        yield f"and {len(every) - LISTED} more"
