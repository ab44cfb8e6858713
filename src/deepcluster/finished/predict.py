"""Which cluster or class new images belong to, and their features."""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from torch import Tensor

from deepcluster.backbones.features import FittedModel
from deepcluster.config import GIVEN
from deepcluster.device import pick_inference
from deepcluster.errors import ConfigError
from deepcluster.files import Output
from deepcluster.finished.sorting import How, sort_images
from deepcluster.images.store import ImageStore, open_images
from deepcluster.images.vectors import pair, read_vectors
from deepcluster.labelling.classifier import Classifier
from deepcluster.naming import load_model
from deepcluster.progress import Progress
from deepcluster.run import RunDir
from deepcluster.training.conclude import unit_rows
from deepcluster.training.sharing import features_of_all, stored


@dataclass(frozen=True)
class Predictions:
    """Clusters of images; every column is in the order of the images."""

    store: ImageStore
    embeddings: np.ndarray  # (n, d) float32
    labels: np.ndarray  # (n,) int64
    names: list[str | None]  # of the clusters, where a person gave one
    distances: np.ndarray  # (n,) float32
    confidence: np.ndarray  # (n,) float32

    def rows(self) -> list[dict[str, Any]]:
        """A dict an image."""
        return [
            {
                "id": self.store.ids[i],
                "path": self.store.paths[i],
                "cluster": int(self.labels[i]),
                "name": self.names[i],
                "distance": round(float(self.distances[i]), 6),
                "confidence": round(float(self.confidence[i]), 6),
            }
            for i in range(len(self.store))
        ]

    def write_csv(self, file: TextIO) -> None:
        """A row an image."""
        columns = ["id", "path", "cluster", "name", "distance", "confidence"]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(self.rows())


def predict_source(
    run: RunDir,
    source: Any,
    *,
    labels: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Predictions:
    """Clusters and features of images with the model of a run.

    Args:
        run: a finished run.
        source: whatever ``open_images`` takes; of a run of vectors, what ``read_vectors`` takes.
        labels: for measuring, as in :func:`deepcluster.fit_source`.
        device: where the net runs.
        progress: told what happens.

    Returns:
        Columns in the order of the images that could be read: ``labels`` ``(n,)`` int64,
        ``embeddings`` ``(n, d)`` float32 of length 1, ``distances`` and ``confidence`` ``(n,)``
        float32, ``names`` and the images, ``store``.

    Raises:
        RunError: the run is damaged.
        SourceError: the source cannot be opened, or its vectors are of another net.
        NoImagesError: there is no usable image in it.
    """
    progress = progress or Progress()
    if run.read_config().backbone == GIVEN:
        rows, store = pair(read_vectors(source), None)
        model = load_model(run)
        model.check_width(rows)
        return _predictions(run, model, store, unit_rows(rows))
    store = open_source(run, source, labels=labels, progress=progress)
    return predict_store(run, store, device=device, progress=progress)


def open_source(
    run: RunDir, source: Any, *, labels: str | None = None, progress: Progress
) -> ImageStore:
    """Images as the net of a run takes them; what is left out is told."""
    config = run.read_config()
    store = open_images(
        source,
        data=stored(config.data),
        size=config.size,
        labels=labels,
        progress=progress.callback("decoding"),
    )
    for path, reason in store.skipped:
        progress.note(f"left out: {path}: {reason}")
    for sentence in store.remarks:
        progress.note(sentence)
    return store


def predict_store(
    run: RunDir, store: ImageStore, *, device: str = "auto", progress: Progress
) -> Predictions:
    """Clusters and features of decoded images with the model of a run."""
    model = load_model(run)
    compute = pick_inference(run.read_config(), device)
    progress.phase("features", len(store))
    extract = functools.partial(features_of_all, save=model.save_net)
    embeddings = model.embed(store, compute, advance=progress.advance, extract=extract)
    return _predictions(run, model, store, embeddings)


def _predictions(
    run: RunDir, model: FittedModel, store: ImageStore, embeddings: Tensor
) -> Predictions:
    labels_, distances, confidence = model.assign(embeddings)
    names = run.read_clusters()["names"]
    return Predictions(
        store=store,
        embeddings=embeddings.numpy(),
        labels=labels_.numpy(),
        names=[names.get(str(k)) for k in labels_.tolist()],
        distances=distances.numpy(),
        confidence=confidence.numpy(),
    )


@dataclass(frozen=True)
class Classes:
    """Classes of images; every column is in the order of the images."""

    predictions: Predictions
    classes: np.ndarray  # (n,) int64, numbers into `names`
    probability: np.ndarray  # (n,) float64, of that class
    unsure: np.ndarray  # (n,) bool
    names: list[str]

    def rows(self) -> list[dict[str, Any]]:
        """A dict an image."""
        store = self.predictions.store
        return [
            {
                "id": store.ids[i],
                "path": store.paths[i],
                "class": self.names[self.classes[i]],
                "probability": round(float(self.probability[i]), 4),
                "unsure": bool(self.unsure[i]),
            }
            for i in range(len(store))
        ]

    def write_csv(self, file: TextIO) -> None:
        """A row an image."""
        writer = csv.DictWriter(file, ["id", "path", "class", "probability", "unsure"])
        writer.writeheader()
        writer.writerows(self.rows())

    def as_predictions(self) -> Predictions:
        """With classes in the place of clusters, and one more, "unsure": for :func:`sort_into`.

        Where a class is called so, that one is "unsure images".
        """
        labels = np.where(self.unsure, len(self.names), self.classes)
        other = "unsure"
        while other in {name.casefold() for name in self.names}:
            other += " images"
        names: list[str | None] = [*self.names, other]
        return dataclasses.replace(
            self.predictions, labels=labels, names=[names[k] for k in labels.tolist()]
        )


def check_risk(risk: float) -> None:
    """Refuse what is no share of images.

    Raises:
        ConfigError: it is not between 0 and 1.
    """
    if not 0 < risk < 1:
        raise ConfigError(f"risk {risk}: give a share between 0 and 1, such as 0.05")


def classify(run: RunDir, predictions: Predictions, *, risk: float = 0.05) -> Classes:
    """What the classifier of a run makes of images.

    Args:
        run: a run with a classifier (`deepcluster teach`).
        predictions: from :func:`predict_source`.
        risk: share of wrong ones among the images that are not unsure, as far as the classifier can
            tell, if the images are like the run's.

    Raises:
        RunError: the run has no classifier.
    """
    check_risk(risk)
    classifier = Classifier.load(run)
    probabilities = classifier.probabilities(predictions.embeddings)
    top = probabilities.max(axis=1)
    return Classes(
        predictions=predictions,
        classes=probabilities.argmax(axis=1),
        probability=top,
        unsure=top < classifier.threshold(risk),
        names=classifier.names,
    )


def check_embeddings_out(out: Path) -> list[Output]:
    """The files that :func:`write_embeddings` will write: features, and ids with paths.

    Raises:
        RunError: one of them exists already, or there is no folder to write into.
    """
    features = Output(out)
    if features.device:
        return [features]
    stem = out.name.removesuffix(".npy")
    return [Output(out.with_name(f"{stem}.npy")), Output(out.with_name(f"{stem}.ids.csv"))]


def write_embeddings(found: Predictions, out: Path) -> list[Path]:
    """Write the features as .npy, and the ids and paths beside it as .ids.csv.

    Returns:
        The files written.

    Raises:
        RunError: as :func:`check_embeddings_out`.
    """
    names = zip(found.store.ids, found.store.paths, strict=True)
    return write_features(out, found.embeddings.shape, ids=names, chunks=[found.embeddings])


def write_features(
    out: Path,
    shape: tuple[int, ...],
    *,
    ids: Iterable[tuple[str, str | None]],
    chunks: Iterable[np.ndarray],
) -> list[Path]:
    """Write features that need not all be in memory.

    Args:
        out: as for :func:`write_embeddings`.
        shape: ``(n, d)``.
        ids: id and path of each image.
        chunks: its features, float32: some rows at a time, in the same order.

    Returns:
        The files written.

    Raises:
        RunError: as :func:`check_embeddings_out`.
    """
    features, *beside = check_embeddings_out(out)
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with features.writing() as part:
        with part.open("wb") as binary:
            np.lib.format.write_array_header_1_0(binary, header)
            for chunk in chunks:
                binary.write(np.ascontiguousarray(chunk, "<f4").data)
        for output in beside:  # within: neither file without the other
            with output.writing() as names, names.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["id", "path"])
                writer.writerows(ids)
    return [output.path for output in (features, *beside)]


def sort_into(predictions: Predictions, folder: Path, *, how: How = "copy") -> dict[str, int]:
    """Put images into a folder a cluster, as :func:`deepcluster.finished.sorting.sort_images`."""
    return sort_images(predictions.store, predictions.labels, predictions.names, folder, how)
