"""New images a day later: where they belong, which fit nowhere, and whether a new fit is due.

What fits nowhere is told by the features: an image is odd if its few nearest images of the fit are
far from it (deep nearest neighbours; Sun et al. 2022, "Out-of-distribution detection with deep
nearest neighbors"). Far is measured by its cluster: how far images of the fit there are from their
own nearest, the median of which is 1, lest a rare kind that lies thin count as odd. The distance to
a cluster's centres finds as many strangers, but calls twice as many images odd that are not, since
the centres are made of images of the fit (docs/log.md).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcluster.clustering.neighbours import knn, score_blocks
from deepcluster.config import GIVEN
from deepcluster.device import read_only
from deepcluster.errors import RunError
from deepcluster.finished.predict import open_source, predict_store
from deepcluster.progress import Progress, counted
from deepcluster.run import RunDir

NEAREST = 5
"""Images of the fit whose mean distance says how far an image is from them."""
ODD = 0.99
"""An image fits nowhere if it is farther than this share of the fit's own images."""
MEASURED = 5000
"""Images of the fit, at most, that say how far is far."""
DUE_ODD, DUE_ODD_IMAGES = 0.05, 10
"""Share of the new images that fit nowhere, and their number, from which on a fit is due."""
DUE_NEW = 0.25
"""New images, as a share of those of the fit, from which on a fit is due."""


@dataclass(frozen=True)
class Updated:
    """What :func:`update_run` found."""

    file: Path | None  # the CSV file; None without new images
    fitted: int  # images of the fit
    known: int  # images of the source that the fit or an earlier update knows
    new: int
    nowhere: int  # of the new
    clusters: dict[str, int]  # cluster (its name, where it has one) -> new images that fit there
    due: list[str]  # why a new fit is due

    def facts(self) -> dict[str, Any]:
        """For machines."""
        return {**vars(self), "file": None if self.file is None else str(self.file)}

    def __str__(self) -> str:
        if self.file is None:
            return f"no new image: the run knows all {self.known:,}"
        lines = [f"{counted(self.new, 'new image')} ({self.known:,} known already)"]
        lines += [f"  {name}: {count:,}" for name, count in self.clusters.items()]
        share = f"{self.nowhere / self.new:.0%}, of the fit's own images {1 - ODD:.0%} would"
        lines.append(f"  fit nowhere: {self.nowhere:,} ({share})")
        lines.append(f"list: {self.file}")
        if self.due:
            lines.append(f"a new fit is due: {'; '.join(self.due)}")
            lines.append("  deepcluster fit OLD_PHOTOS/ NEW_PHOTOS/ --names-from RUN")
        return "\n".join(lines + ([] if self.due else ["no new fit is due"]))


def update_run(
    run: RunDir, source: Any, *, device: str = "auto", progress: Progress | None = None
) -> Updated:
    """Say where images that came after the fit belong; writes a list into ``updates/`` of the run.

    The fit's own files stay as they are.

    Args:
        run: a finished run.
        source: whatever ``open_images`` takes; images that the fit or an earlier update knows, by
            what is in them, are passed over.
        device: where the net runs.
        progress: told what happens.

    Raises:
        RunError: the run was made of vectors, or does not say what is in its images.
    """
    progress = progress or Progress()
    if run.read_config().backbone == GIVEN:
        raise RunError(f"{run.path} was made of vectors: `deepcluster predict` assigns new ones")
    earlier = run.read_updates()
    clusters = torch.from_numpy(run.read_items()["cluster"].to_numpy().astype(np.int64))
    fitted = len(clusters)
    seen = {int(content) for content in run.read_contents()}
    seen |= {content for content, _ in earlier}
    store = open_source(run, source, progress=progress)
    if store.contents is None:
        raise RunError("these images do not say what is in them: give a source, not a store")
    new = []
    for i, content in enumerate(store.contents.tolist()):
        if content not in seen:  # a copy of a new image is no second one
            seen.add(content)
            new.append(i)
    known = len(store) - len(new)
    if not new:
        return Updated(None, fitted, known, 0, 0, {}, [])
    found = predict_store(run, store.only(np.array(new)), device=device, progress=progress)
    own = read_only(run.read_embeddings())
    labels = torch.from_numpy(found.labels)
    odd = find_odd(torch.from_numpy(found.embeddings), labels, own, clusters)
    fits = (~odd & (labels >= 0)).numpy()
    contents = found.store.contents
    assert contents is not None
    path = run.write_update(
        {
            "id": row["id"],
            "path": row["path"],
            "cluster": row["cluster"],
            "name": row["name"],
            "fits": "yes" if fit else "no",
            "content": f"x{content:016x}",
        }
        for row, fit, content in zip(found.rows(), fits, contents.tolist(), strict=True)
    )
    names = [
        f"{number:03d}" + (f" {name}" if name else "")
        for number, name in zip(found.labels.tolist(), found.names, strict=True)
    ]
    fitting = Counter(name for name, fit in zip(names, fits, strict=True) if fit)
    nowhere = len(new) - int(fits.sum())
    before = sum(not fit for _, fit in earlier)
    return Updated(
        file=path,
        fitted=fitted,
        known=known,
        new=len(new),
        nowhere=nowhere,
        clusters=dict(sorted(fitting.items())),
        due=_why_due(fitted, len(new) + len(earlier), nowhere + before),
    )


def find_odd(x: Tensor, labels: Tensor, own: Tensor, clusters: Tensor) -> Tensor:
    """Which rows are farther from their nearest of the fit than nearly all of the fit's own.

    Args:
        x: ``(m, d)`` features of new images.
        labels: ``(m,)`` int64, their clusters.
        own: ``(n, d)`` features of the fit's images.
        clusters: ``(n,)`` int64, their clusters.

    Returns:
        ``(m,)`` bool.
    """
    count = min(NEAREST, len(own) - 1)
    if count < 1:  # one image says nothing of how far is far
        return torch.zeros(len(x), dtype=torch.bool)
    some = torch.arange(min(MEASURED, len(own))) * len(own) // min(MEASURED, len(own))
    usual = knn(own, count, queries=some)[1].mean(1)
    overall = float(usual.median())
    scale = torch.full((int(max(clusters.max(), labels.max())) + 2,), overall)
    for number in clusters[some].unique().tolist():
        scale[number] = usual[clusters[some] == number].median()  # -1 is the last
    scale = scale.clamp_min(max(overall / 100, 1e-12))  # a cluster of copies
    limit = (usual / scale[clusters[some]]).quantile(ODD)
    near = torch.cat(
        [
            (block[:, None] - own[scores.topk(count, dim=1).indices]).norm(dim=2).mean(1)
            for block, scores in score_blocks(x, own)
        ]
    )
    return near / scale[labels] > limit


def _why_due(fitted: int, new: int, nowhere: int) -> list[str]:
    """Reasons for a new fit; of all updates together."""
    reasons = []
    if nowhere >= DUE_ODD_IMAGES and nowhere >= DUE_ODD * new:
        reasons.append(
            f"{nowhere:,} of the {new:,} images since the fit fit nowhere ({nowhere / new:.0%}; "
            f"{DUE_ODD:.0%} is much)"
        )
    if new >= DUE_NEW * fitted:
        reasons.append(f"{counted(new, 'image')} came since the fit, which knew {fitted:,}")
    return reasons
