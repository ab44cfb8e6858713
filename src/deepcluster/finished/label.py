"""A round of labelling on a run: which images to label, and the classifier from the labels."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepcluster.errors import RunError
from deepcluster.labelling.candidates import Pool
from deepcluster.labelling.classifier import Classifier, Taught, describe, make_pool, teach
from deepcluster.labelling.given import read_labels
from deepcluster.labelling.suggest import suggest
from deepcluster.progress import counted
from deepcluster.report.label_page import write_label_page
from deepcluster.run import RunDir


@dataclass(frozen=True)
class TaughtRun:
    """A classifier in a run folder, and what is to be said of it."""

    taught: Taught
    labels: int
    notes: list[str]  # of the labels, a sentence each
    mistakes: list[str]  # labels that look like mistakes, a sentence each
    helpful: list[str]  # ids of images whose label would help most


@dataclass(frozen=True)
class SuggestedRun:
    """Images to label, and where a person does it."""

    ids: list[str]
    table: Path  # to_label.csv
    page: Path
    asked: int  # how many were asked for
    sample: int  # images that were looked at: of very many, some drawn at random
    total: int  # images of the run
    item: str = "image"

    def __str__(self) -> str:
        said = f"{counted(len(self.ids), self.item)} to label"
        if len(self.ids) == self.asked:
            return said
        return (
            f"{said}, not {self.asked:,}: all there are of {_among(self.sample, self.total)}, "
            "without those that have a label or were suggested before"
        )


def _among(sample: int, total: int) -> str:
    """The images that are looked at."""
    return f"{total:,}" if sample == total else f"a sample of {sample:,} of the run's {total:,}"


def teach_run(run: RunDir, labels_csv: Path) -> TaughtRun:
    """Make a classifier from labels of some of a run's images, and keep it in the run folder.

    Args:
        run: a finished run.
        labels_csv: as :func:`deepcluster.labelling.given.read_labels` takes it. A classifier that
            the run has already is replaced.

    Raises:
        RunError: the labels cannot be used; nothing was written.
    """
    items = run.read_items()
    ids = items["id"].to_pylist()
    given = read_labels(labels_csv, ids, items["path"].to_pylist())
    asked = set(run.read_suggested())
    drawn = sum(ids[row] in asked for row in given.rows) < len(given.rows) / 2
    pool, held = make_pool(run.read_embeddings(), given.rows)
    rows = np.searchsorted(held, given.rows)
    taught = teach(pool, rows, given.classes, given.names, groups=given.groups, drawn=drawn)
    known = {ids[row] for row in given.rows}
    if gone := [name for name in run.read_labels() if name not in known]:
        given.notes.append(
            f"forgotten, since not in {labels_csv}: {counted(len(gone), 'label')} of the "
            f"classifier before, such as that of {gone[0]}. To keep all, put them into one file"
        )
    mistakes = [
        f"{ids[given.rows[i]]} is labelled {given.names[given.classes[i]]!r} among images of "
        "another class: look again"
        for i in taught.doubtful
    ]
    helpful = [ids[held[row]] for row in taught.helpful[:20]]
    facts = describe(taught, [*given.notes, *mistakes]) | {"labels": len(given.rows)}
    probabilities = taught.classifier.probabilities(run.read_embeddings())
    taught.classifier.save(run, facts | {"drawn": drawn, "helpful": helpful})
    run.write_classes(probabilities.argmax(axis=1), probabilities.max(axis=1))
    run.write_labels(
        [(ids[row], given.names[k]) for row, k in zip(given.rows, given.classes, strict=True)]
    )
    return TaughtRun(taught, len(given.rows), given.notes, mistakes, helpful)


def suggest_run(run: RunDir, count: int, *, out: Path | None = None) -> SuggestedRun:
    """Choose images to label, write them down, and make the page to label them in.

    Args:
        run: a finished run. Images that its classifier learnt from, and those that were asked for
            before, are not asked for again; where there is a classifier, what it doubts is.
        count: images to choose.
        out: the table to write; None: ``to_label.csv`` beside the page, or
            ``to_label-2.csv`` and so on where there is one.

    Raises:
        RunError: every image has been asked for, or `out` exists.
    """
    if out is not None and out.exists():
        raise RunError(f"{out} exists already: choose another place with --out")
    items = run.read_items()
    ids, paths = items["id"].to_pylist(), items["path"].to_pylist()
    place = {id_: row for row, id_ in enumerate(ids)}
    labels = run.read_labels()
    known = {place[id_] for id_ in [*labels, *run.read_suggested()] if id_ in place}
    done = np.array(sorted(known), np.int64)
    embeddings = run.read_embeddings()
    pool, held = make_pool(embeddings, done)
    probabilities = None
    if labels:
        probabilities = Classifier.load(run).probabilities(pool.features)
    found = suggest(pool, count, labelled=np.searchsorted(held, done), probabilities=probabilities)
    if not len(found.rows):
        raise RunError(
            f"all {run.item()}s of {run.path} ({_among(len(held), len(ids))}) have a label or were "
            "suggested before: write labels for them and `deepcluster teach`"
        )
    chosen = held[found.rows]
    part = spoken_for(embeddings, pool, held, found.part)
    run.write_suggested([ids[row] for row in chosen])
    page = write_label_page(run, chosen, part, labels)
    table, number = out or run.labelling / "to_label.csv", 2
    while table.exists():  # a person may have filled in the last one
        table, number = run.labelling / f"to_label-{number}.csv", number + 1
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "label"])
        writer.writerows([ids[row], paths[row] or "", ""] for row in chosen)
    asked = [ids[row] for row in chosen]
    return SuggestedRun(asked, table, page, count, len(held), len(ids), run.item())


def spoken_for(
    embeddings: np.ndarray, pool: Pool, held: np.ndarray, part: np.ndarray
) -> np.ndarray:
    """The part of every image of the run, ``(n,)``; one outside the pool has its nearest image's.

    Args:
        embeddings: ``(n, d)`` of the run.
        pool: some of them.
        held: ``(p,)`` which.
        part: ``(p,)`` their parts.
    """
    if len(held) == len(embeddings):
        return part
    full = np.full(len(embeddings), -1)
    full[held] = part
    rest = np.setdiff1d(np.arange(len(embeddings)), held)
    for some in np.array_split(rest, max(1, len(rest) // 4096)):
        nearest = (np.asarray(embeddings[some]) @ pool.features.T).argmax(axis=1)
        full[some] = part[nearest]
    return full
