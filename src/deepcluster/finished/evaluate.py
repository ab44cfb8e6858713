"""Scores of a run, on its own images or on others."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyarrow as pa

from deepcluster import metrics
from deepcluster.errors import RunError
from deepcluster.finished.predict import Predictions, predict_source
from deepcluster.images.labels import encode, relabel
from deepcluster.images.listing import Listing
from deepcluster.labelling.classifier import Classifier
from deepcluster.progress import Progress
from deepcluster.run import RunDir


def evaluate_run(
    run: RunDir,
    source: Any = None,
    *,
    labels: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, float]:
    """Scores of a run, on its own images or on others.

    Args:
        run: a finished run.
        source: other images; None takes the run's own.
        labels: where the source's labels are, as in :func:`deepcluster.fit_source`; without a
            source, of the run's own images by their ids or paths.
        device: where the net runs.
        progress: told what happens.

    Returns:
        The scores of METRICS that can be had: those that need labels only where there are labels.
        With a source, kNN and the linear probe learn from the run's own images if these have labels
        of the same classes, and are measured on the source's; never from an image that is among
        these, by its file or by what is in it.

    Raises:
        RunError: the run is damaged, or a person took every image out of its cluster.
        SourceError: the source or its labels cannot be opened.
        NoImagesError: there is no usable image in it.
    """
    progress = progress or Progress()
    items = run.read_items()
    if source is None:
        truth, classes = _own_labels(run, items, labels)
        clusters = items["cluster"].to_numpy()
        kept = clusters >= 0  # a person may have taken images out of every cluster
        if not kept.any():
            raise RunError(f"a person took every image of {run.path} out of its cluster")
        _say_what_scores_mean(truth, classes, progress)
        scores = metrics.evaluate(
            run.read_embeddings()[kept],
            clusters[kept],
            None if truth is None else truth[kept],
            rng=np.random.default_rng(0),
        )
        words = _words(truth, classes, len(items))
        return scores | _score_classifier(
            run,
            run.read_embeddings(),
            words,
            items["id"].to_pylist(),
            items["path"].to_pylist(),
            progress,
        )
    found = predict_source(run, source, labels=labels, device=device, progress=progress)
    kept = found.labels >= 0  # others are like images that a person took out of every cluster
    truth, classes = found.store.labels, found.store.label_names
    _say_what_scores_mean(truth, classes, progress)
    train = None
    words = _words(truth, classes, len(found.labels))
    if truth is not None:
        train, truth = _to_learn_from(run, items, found, truth, progress)
        truth = truth[kept]
    scores = metrics.evaluate(
        found.embeddings[kept],
        found.labels[kept],
        truth,
        train=train,
        rng=np.random.default_rng(0),
    )
    return scores | _score_classifier(
        run, found.embeddings, words, found.store.ids, found.store.paths, progress
    )


def _score_classifier(
    run: RunDir,
    embeddings: np.ndarray,
    labels: list[str | None],
    ids: list[str],
    paths: list[str | None],
    progress: Progress,
) -> dict[str, float]:
    """Scores of the run's classifier on the labelled images that it did not learn from."""
    learnt = run.read_labels()
    if not learnt or not any(label is not None for label in labels):
        return {}
    items = run.read_items()
    file = dict(zip(items["id"].to_pylist(), items["path"].to_pylist(), strict=True))
    files = {file.get(id_) for id_ in learnt} - {None}
    # An id alone names an image only where neither has a file: a.png may be in many folders.
    new = np.array(
        [
            label is not None and (path not in files if path else id_ not in learnt)
            for label, id_, path in zip(labels, ids, paths, strict=True)
        ]
    )
    if not new.any():
        return {}
    classifier = Classifier.load(run)
    number = {name: k for k, name in enumerate(classifier.names)}
    truth = np.array([number.get(str(label), -1) for label in labels])[new]
    if (truth < 0).all():
        progress.note(
            f"no label here is one of the classifier's classes ({', '.join(classifier.names)}): it "
            "is not measured; give the labels under these names"
        )
        return {}
    probabilities = classifier.probabilities(embeddings[new])
    return {
        "classifier_images": float(new.sum()),
        "classifier_accuracy": float((probabilities.argmax(1) == truth).mean()),
        "classifier_balanced_accuracy": metrics.balanced_accuracy(probabilities.argmax(1), truth),
        "classifier_ece": metrics.calibration_error(
            probabilities.max(1), probabilities.argmax(1) == truth
        ),
    }


def _own_labels(
    run: RunDir, items: pa.Table, labels: str | None
) -> tuple[np.ndarray | None, list[str]]:
    """Labels of the run's own images: those it was fitted with, or those of a file."""
    if labels is None:
        return encode(items["label"].to_pylist())
    ids, paths = items["id"].to_pylist(), items["path"].to_pylist()
    listing = Listing(run.read_info()["name"], ids, paths, lambda: iter(()), lambda most: iter(()))
    relabel(listing, labels)
    return listing.labels, listing.label_names


def _words(truth: np.ndarray | None, classes: list[str], count: int) -> list[str | None]:
    """The class of each of so many images in words; None where it is not known."""
    if truth is None:
        return [None] * count
    return [classes[k] if k >= 0 else None for k in truth.tolist()]


def _say_what_scores_mean(truth: np.ndarray | None, classes: list[str], progress: Progress) -> None:
    present: list[int] = [] if truth is None else np.unique(truth[truth >= 0]).tolist()
    if len(present) == 1:
        progress.note(
            f"every image with a label is of one class, {classes[present[0]]!r}: scores against "
            "labels say nothing then"
        )


def _to_learn_from(
    run: RunDir, items: pa.Table, found: Predictions, truth: np.ndarray, progress: Progress
) -> tuple[metrics.Train | None, np.ndarray]:
    """The run's own labelled images that are not among those to be tested on.

    Returns:
        Embeddings and labels, None where too few are left; and the labels to be tested on, numbered
        alike.
    """
    own = items["label"].to_pylist()
    words = _words(truth, found.store.label_names, len(truth))
    number = {word: k for k, word in enumerate(dict.fromkeys(w for w in own + words if w))}
    labels = np.array([number.get(word, -1) for word in own])
    truth = np.array([number.get(word, -1) for word in words])
    shared = set(labels[labels >= 0].tolist()) & set(truth[truth >= 0].tolist())
    if not shared:
        return None, truth
    embeddings = run.read_embeddings()
    features = {row.tobytes() for row in found.embeddings}
    paths = {os.path.realpath(path) for path in found.store.paths if path is not None}
    tested = np.array(
        [
            row.tobytes() in features or (path is not None and os.path.realpath(path) in paths)
            for row, path in zip(embeddings, items["path"].to_pylist(), strict=True)
        ]
    )
    if run.contents.is_file() and found.store.contents is not None:
        tested |= np.isin(run.read_contents(), found.store.contents)
    left = ~tested & (labels >= 0)
    if tested.any():
        progress.note(
            f"{tested.sum()} of the run's {len(items)} images are among those to be tested on: "
            "nothing learns from them"
        )
    if not shared <= set(labels[left].tolist()):
        progress.note(
            "too few other images of the run have labels: kNN and the linear probe learn from a "
            "part of the images given, and are tested on the rest"
        )
        return None, truth
    return (embeddings[left], labels[left]), truth
