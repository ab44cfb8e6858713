"""What the pages are told of the classifier that `deepcluster teach` made."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np

from deepcluster.files import check, reading
from deepcluster.report.pages import packed
from deepcluster.run import RunDir

NEXT = 20  # images whose label would help most that are shown


def read_taught(run: RunDir, ids: list[str]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """What is said of the classifier as a whole, and its columns of the table of images.

    Args:
        run: a finished run.
        ids: of its images.

    Returns:
        None and no column where there is no classifier.

    Raises:
        RunError: it is damaged.
    """
    found = run.read_classes(len(ids))
    if found is None:
        return None, {}
    classes, sure = found
    facts = run.read_classifier()[1]
    place = {id_: row for row, id_ in enumerate(ids)}
    with reading(run.classifier / "classifier.json"):
        names, expected = list(facts["classes"]), facts["expected"]
        check(classes.max(initial=0) < len(names), "its classes are fewer than its images say")
        code = {name: k for k, name in enumerate(names)}
        given = np.full(len(ids), -1)
        for id_, name in run.read_labels().items():
            if id_ in place:
                given[place[id_]] = code.get(name, -1)
        open_ = given < 0
        means = [float(sure[open_ & (classes == k)].mean()) for k in np.unique(classes[open_])]
        told = dict(zip(np.unique(classes[open_]).tolist(), means, strict=True))
        helpful = [place[id_] for id_ in facts["helpful"][:NEXT] if id_ in place]
        words = {
            "names": names,
            "expectedOf": [told.get(k) for k in range(len(names))],
            "method": str(facts["method"]),
            "labels": int(facts["labels"]),
            **{name: float(expected[name]) for name in ("accuracy", "low", "high")},
            "next": helpful,
            "suggest": shlex.join(
                ["deepcluster", "suggest", str(run.path.resolve()), "-n", str(NEXT)]
            ),
        }
    columns = {
        "said": packed(np.where(open_, classes, given), np.int32),
        "sure": packed(np.where(open_, sure, np.nan), np.float32),
    }
    return words, columns
