"""What is done with a finished run: predict, embed, sort, evaluate, recluster, export.

Long, because each of these is called by a person, and none of them by another.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from deepcluster import metrics
from deepcluster.backbones.features import FittedModel
from deepcluster.backbones.start import GIVEN
from deepcluster.clustering.choose import choose_clusters
from deepcluster.clustering.pca import normalise
from deepcluster.clustering.tree import Tree
from deepcluster.device import pick_inference
from deepcluster.errors import ConfigError, RunError
from deepcluster.files import Output
from deepcluster.images.labels import encode, relabel
from deepcluster.images.listing import Listing
from deepcluster.images.store import ImageStore, open_images
from deepcluster.images.vectors import pair, read_vectors
from deepcluster.labelling.classifier import Classifier
from deepcluster.naming import Remembered, carry_names, load_model
from deepcluster.progress import Progress
from deepcluster.run import RunDir
from deepcluster.sorting import How, sort_images
from deepcluster.training.loop import score
from deepcluster.training.plan import most_clusters


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
        SourceError: the source cannot be opened.
        NoImagesError: there is no usable image in it.
    """
    progress = progress or Progress()
    if run.read_config().backbone == GIVEN:
        rows, store = pair(read_vectors(source), None)
        return _predictions(run, load_model(run), store, normalise(torch.from_numpy(rows)))
    store = open_source(run, source, labels=labels, progress=progress)
    return predict_store(run, store, device=device, progress=progress)


def open_source(
    run: RunDir, source: Any, *, labels: str | None = None, progress: Progress
) -> ImageStore:
    """Images as the net of a run takes them; what is left out is told."""
    config = run.read_config()
    store = open_images(
        source,
        data=config.data,
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
    place, dtype, batch_size = pick_inference(run.read_config(), device)
    progress.phase("features", len(store))
    embeddings = model.embed(
        store, device=place, dtype=dtype, batch_size=batch_size, advance=progress.advance
    )
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
        """With classes in the place of clusters, and one more, "unsure": for :func:`sort_into`."""
        labels = np.where(self.unsure, len(self.names), self.classes)
        names: list[str | None] = [*self.names, "unsure"]
        return dataclasses.replace(
            self.predictions, labels=labels, names=[names[k] for k in labels.tolist()]
        )


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
    if not 0 < risk < 1:
        raise ConfigError(f"risk {risk}: give a share between 0 and 1, such as 0.05")
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
    features, *ids = check_embeddings_out(out)
    for output in ids:
        with output.writing() as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "path"])
            writer.writerows(zip(found.store.ids, found.store.paths, strict=True))
    with features.writing() as part, part.open("wb") as binary:
        np.save(binary, found.embeddings, allow_pickle=False)
    return [output.path for output in (features, *ids)]


def sort_into(predictions: Predictions, folder: Path, *, how: How = "copy") -> dict[str, int]:
    """Put images into a folder a cluster; which is where is in ``sorted.csv`` there.

    Images that have no file of their own (arrays, Parquet) are written as PNG at the size the net
    sees. A name that is taken already gets a number; nothing is overwritten.

    Args:
        predictions: from :func:`predict_source`.
        folder: where the folders go; made if need be.
        how: copy, hard-link (same disk only) or move the files.

    Returns:
        Folder name -> images there. A picture that is named twice is there once.

    Raises:
        RunError: a file is not there any more, the disk cannot do it, or `folder` cannot be
            written to; nothing is sorted then. Or the disk became full on the way.
    """
    return sort_images(predictions.store, predictions.labels, predictions.names, folder, how)


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
    words: list[str | None]
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
        words = [None] * len(items)
        if truth is not None:
            words = [classes[k] if k >= 0 else None for k in truth.tolist()]
        return scores | _score_classifier(
            run, run.read_embeddings(), words, items["id"].to_pylist(), items["path"].to_pylist()
        )
    found = predict_source(run, source, labels=labels, device=device, progress=progress)
    kept = found.labels >= 0  # others are like images that a person took out of every cluster
    truth, classes = found.store.labels, found.store.label_names
    _say_what_scores_mean(truth, classes, progress)
    train = None
    words = [None] * len(found.labels)
    if truth is not None:
        words = [classes[k] if k >= 0 else None for k in truth.tolist()]
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
        run, found.embeddings, words, found.store.ids, found.store.paths
    )


def _score_classifier(
    run: RunDir,
    embeddings: np.ndarray,
    labels: list[str | None],
    ids: list[str],
    paths: list[str | None],
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
    words = [found.store.label_names[k] if k >= 0 else None for k in truth.tolist()]
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


def recluster_run(run: RunDir, clusters: int | Literal["auto"]) -> list[str]:
    """Another number of clusters, a cut of the run's tree; nothing is learnt anew.

    The images' table, the model and ``run.json`` follow, and so do predict and export. What a
    person said stays with the images: a cluster takes the name of the one from which most of its
    images come, an image that was moved goes where those went that it was moved to.

    Args:
        run: a finished run; written to.
        clusters: their number, or auto to choose it from the features.

    Returns:
        Sentences: what there is now, and what found no place.

    Raises:
        ConfigError: the tree has fewer parts than that.
        RunError: the run has no tree.
    """
    merges, heights, _ = run.read_tree()
    model = FittedModel.load(run.model)
    config, info = run.read_config(), run.read_info()
    tree = Tree(
        model.prototypes.part if model.prototypes.part is not None else model.prototypes.cluster,
        torch.from_numpy(merges.astype(np.int64)),
        torch.from_numpy(heights),
    )
    embeddings = torch.from_numpy(np.array(run.read_embeddings()))
    reduced = model.reduce(embeddings)
    choice: dict[int, float] = {}
    if clusters == "auto":
        found = choose_clusters(
            reduced,
            largest=max(2, min(most_clusters(len(reduced)), tree.largest)),
            neighbours=config.final.neighbours,
            generator=torch.Generator().manual_seed(config.seed),
        )
        clusters, choice = min(found.k, tree.largest), found.scores
    assert isinstance(clusters, int)
    if not 1 <= clusters <= tree.largest:
        raise ConfigError(
            f"{clusters} clusters: the tree of this run has {tree.largest} parts, so give a number "
            f"from 1 to {tree.largest}, or fit again with --clusters {clusters}"
        )
    before = Remembered.of(run) if run.has_changes() else None
    model.prototypes = model.prototypes.regroup(tree.cut(clusters))
    labels, distances, confidence = model.prototypes.assign(reduced)
    items = run.read_items()
    columns = {name: items[name].to_pylist() for name in items.column_names}
    columns |= {"cluster": labels.numpy(), "distance": distances.numpy()}
    columns["confidence"] = confidence.numpy()
    columns |= {"name": [None] * len(labels), "by": ["model"] * len(labels)}
    info["counts"] = info["counts"] | {"clusters": clusters}
    info["choice"] = choice
    info["scores"] = {"fit": _scores(embeddings, labels, columns["label"])}
    said = (
        f"{clusters} clusters, a cut of the fit's tree: parts of its clusters or unions of them. "
        "Cut for its own sake that number might be a little better, and no image would keep its "
        "company: fit again with --clusters for that"
    )
    info["notes"] = [*info.get("notes", []), said]
    lines = [said]
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".recluster-") as folder:
        # All of it is worked out beside the run before anything in it is replaced.
        draft = RunDir(folder)
        draft.write_info(info)
        draft.write_config(config)
        draft.write_items(columns)
        if before is not None:
            draft.write_contents(before.contents)
            lines.append(str(carry_names(before, draft)))
        model.save_clusters(run.model)
        run.write_tree(merges, heights, model.prototypes.parts_of(reduced).numpy())
        table = draft.read_items()
        run.write_items({name: table[name].to_pylist() for name in table.column_names})
        if before is not None:
            run.write_clusters(draft.read_clusters())
        run.write_info(info)
    return lines


def _scores(embeddings: Tensor, labels: Tensor, known: list[str | None]) -> dict[str, float]:
    """What run.json says of the clusters."""
    classes = {name: i for i, name in enumerate(sorted({name for name in known if name}))}
    truth = np.array([classes.get(name or "", -1) for name in known])
    found = score(labels.numpy(), truth)
    if len(labels.unique()) > 1 and len(labels) > metrics.GRAPH_NEIGHBOURS:
        rows = embeddings.numpy()
        found["modularity"] = metrics.modularity(rows, labels.numpy(), np.random.default_rng(0))
    return found


class Deployed(nn.Module):
    """The net as other programs want it: pixels in [0, 1] in, features or classes out.

    Args:
        model: a fitted model.
        classifier: what makes probabilities of the features; None gives the features.
    """

    def __init__(self, model: FittedModel, classifier: Classifier | None = None) -> None:
        super().__init__()
        assert model.backbone is not None
        self.classifier = classifier
        if classifier is not None:
            self.head = classifier.head
        self.backbone = model.backbone.eval()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(model.preprocessing.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(model.preprocessing.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """``(b, c, size, size)`` in [0, 1] -> ``(b, d)`` of length 1, or ``(b, classes)``."""
        features = nn.functional.normalize(self.backbone((images - self.mean) / self.std))
        if self.classifier is None:
            return features
        return self.classifier.calibrated(self.head(features))


def export_run(
    run: RunDir, to: Literal["timm", "onnx", "torchscript"], out: Path, *, classes: bool = False
) -> Path:
    """Write the backbone for other programs.

    Args:
        run: a finished run.
        to: ``timm``: a folder for ``timm.create_model("local-dir:…")``. ``onnx`` and
            ``torchscript``: one file that takes images in [0, 1] and gives features of length 1.
        out: folder or file to write; must not exist.
        classes: ``onnx`` and ``torchscript``: the file gives probabilities of the classifier's
            classes in place of features; the names are in ``out`` with ``.classes.txt`` added.

    Returns:
        `out`.

    Raises:
        RunError: `out` exists, or the run has no net or no classifier.
        ConfigError: a package that the format needs is not installed.
    """
    if run.read_config().backbone == GIVEN:
        raise RunError(f"{run.path} was made of vectors: it has no net to export")
    if classes and to == "timm":
        raise ConfigError("timm reads the backbone alone: export --classes to onnx or torchscript")
    output = Output(out)
    if to == "timm":
        with output.writing() as part:
            shutil.copytree(run.model, part)
        return out
    model = FittedModel.load(run.model)
    classifier = Classifier.load(run) if classes else None
    deployed = Deployed(model, classifier).eval()
    if classifier is not None:
        names = Output(out.with_name(f"{out.name}.classes.txt"))
        with names.writing() as part:
            part.write_text("".join(f"{name}\n" for name in classifier.names), encoding="utf-8")
    example = torch.zeros(2, model.channels, model.preprocessing.size, model.preprocessing.size)
    if to == "torchscript":
        with warnings.catch_warnings(), output.writing() as part:
            warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)  # that it will go
            torch.jit.save(torch.jit.trace(deployed, example), str(part))
        return out
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "ONNX needs more packages: pip install 'deepcluster[onnx]', or export --to torchscript"
        ) from error
    if torch.__version__ < "2.8":  # compares as versions do, not as texts
        raise ConfigError(
            f"ONNX needs torch 2.8 or newer, and this is {torch.__version__}: update it, or export "
            "--to torchscript"
        )
    with output.writing() as part:
        torch.onnx.export(
            deployed,
            (example,),
            part,
            input_names=["images"],
            output_names=["probabilities" if classes else "features"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            external_data=False,  # the weights in the same file
            verbose=False,
        )
    return out
