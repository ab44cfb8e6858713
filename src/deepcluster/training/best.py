"""Several starts on the same images, and the one of them that is kept, chosen without labels."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from deepcluster.clustering.compare import agreements
from deepcluster.config import Config
from deepcluster.progress import Progress
from deepcluster.run import RunDir
from deepcluster.training.conclude import FitResult
from deepcluster.training.loop import fit
from deepcluster.training.plan import Pace

if TYPE_CHECKING:
    from deepcluster.images.store import ImageStore


@dataclass(frozen=True)
class Best:
    """The start that is kept, and the others."""

    result: FitResult
    others: list[FitResult]

    def facts(self, seen_from: FitResult | None = None) -> list[dict[str, Any]]:
        """For run.json: that of the kept start or, if it lies within, of another.

        Returns:
            The run's own start first, then the others with the folders, from the run's own, where
            they are; empty if there was no choice.
        """
        if not self.others:
            return []
        own = seen_from or self.result
        inside = own is not self.result

        def folder(each: FitResult) -> str | None:
            if each is own:
                return None
            if each is self.result:
                return ".."
            return f"../{each.config.start}" if inside else each.config.start

        order = [own, *(each for each in (self.result, *self.others) if each is not own)]
        return [
            {
                "start": each.config.start,
                "agreement": round(each.scores["fit"]["agreement"], 4),
                "clusters": each.clusters,
                "folder": folder(each),
            }
            for each in order
        ]


def fit_best(
    store: ImageStore,
    config: Config,
    rivals: Sequence[Config] = (),
    *,
    backbone: nn.Module | None = None,
    run: RunDir | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    pace: Pace | None = None,
    again: bool | None = None,
) -> Best:
    """Fit with several settings and keep the one whose clusters agree most with all features.

    Args:
        store: the images, as large as any of the settings wants them.
        config: resolved settings of the fit that `run`, `resume` and `pace` are for, and that is
            done last.
        rivals: resolved settings of the others; of equals, the first is kept.
        backbone: a net in place of that of the settings; each fit gets a copy.
        run: as for :func:`deepcluster.training.loop.fit`.
        resume: as there.
        progress: told what happens.
        pace: as there.
        again: as there.
    """
    progress = progress or Progress()
    done = [
        fit(_sized(store, each), each, backbone=copy.deepcopy(backbone), progress=progress)
        for each in rivals
    ]
    last = fit(
        _sized(store, config) if rivals else store,
        config,
        backbone=backbone,
        run=run,
        resume=resume,
        progress=progress,
        pace=pace,
        again=again,
    )
    if not done:
        return Best(last, [])
    done.append(last)
    scores = agreements([torch.from_numpy(r.embeddings) for r in done], [r.labels for r in done])
    for result, score in zip(done, scores, strict=True):
        result.scores["fit"]["agreement"] = score
    best = done[scores.index(max(scores))]
    told = ", ".join(f"{r.config.start} {s:.3f}" for r, s in zip(done, scores, strict=True))
    progress.note(f"kept: {best.config.start} (agreement with all features: {told})")
    return Best(best, [result for result in done if result is not best])


def _sized(store: ImageStore, config: Config) -> ImageStore:
    """The images as these settings want them."""
    assert isinstance(config.size, int)
    small = store.at(round(config.size * config.data.margin))
    return dataclasses.replace(small, size=config.size)
