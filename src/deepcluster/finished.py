"""What is done with a finished run: predict, embed, sort into folders, evaluate, export."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster import metrics
from deepcluster.backbones.features import FittedModel
from deepcluster.device import pick_inference
from deepcluster.errors import ConfigError, RunError
from deepcluster.images.store import ImageStore, open_images
from deepcluster.labelling.classifier import Classifier
from deepcluster.progress import Progress
from deepcluster.run import RunDir


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
        source: whatever ``open_images`` takes.
        labels: for measuring, as in :func:`deepcluster.fit_source`.
        device: where the net runs.
        progress: told what happens.
    """
    progress = progress or Progress()
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
    model = FittedModel.load(run.model)
    place, dtype = pick_inference(config, device)
    progress.phase("features", len(store))
    embeddings = model.embed(store, device=place, dtype=dtype, advance=progress.advance)
    labels_, distances, confidence = model.assign(embeddings)
    said = run.read_clusters()
    merged = {int(old): int(new) for old, new in said["merged"].items()}
    final = np.array([merged.get(k, k) for k in labels_.tolist()], dtype=np.int64)
    return Predictions(
        store=store,
        embeddings=embeddings.numpy(),
        labels=final,
        names=[said["names"].get(str(k)) for k in final.tolist()],
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


def write_embeddings(found: Predictions, out: Path) -> None:
    """Write the features as .npy and the ids, a line each, beside it as .ids.txt."""
    out.parent.mkdir(parents=True, exist_ok=True)
    np.save(out, found.embeddings, allow_pickle=False)
    out.with_suffix(".ids.txt").write_text(
        "".join(f"{name}\n" for name in found.store.ids), encoding="utf-8"
    )


def sort_into(
    predictions: Predictions, folder: Path, *, how: Literal["copy", "link", "move"] = "copy"
) -> dict[str, int]:
    """Put images into a folder a cluster.

    Images that have no file of their own (arrays, Parquet) are written as PNG at the size the net
    sees. A name that is taken already gets a number; nothing is overwritten.

    Args:
        predictions: from :func:`predict_source`.
        folder: where the folders go; made if need be.
        how: copy, hard-link (same disk only) or move the files.

    Returns:
        Folder name -> images put there.

    Raises:
        RunError: a file is not there any more; nothing is sorted then.
    """
    lost = [path for path in predictions.store.paths if path and not Path(path).exists()]
    if lost:
        raise RunError(
            f"nothing was sorted: {len(lost)} files cannot be found, the first is "
            f"{lost[0]} (a name that is not UTF-8 is shown with escapes: rename such files)"
        )
    counts: dict[str, int] = {}
    for i, (label, name) in enumerate(
        zip(predictions.labels.tolist(), predictions.names, strict=True)
    ):
        place = f"{label:03d}" + (f"-{_safe(name)}" if name else "")
        (folder / place).mkdir(parents=True, exist_ok=True)
        path = predictions.store.paths[i]
        if path is None:
            _save_png(
                predictions.store[i],
                _free(folder / place / _safe(f"{predictions.store.ids[i]}.png")),
            )
        else:
            target = _free(folder / place / Path(path).name)
            if how == "copy":
                shutil.copy2(path, target)
            elif how == "link":
                os.link(path, target)
            else:
                shutil.move(path, target)
        counts[place] = counts.get(place, 0) + 1
    return dict(sorted(counts.items()))


def _safe(name: str) -> str:
    """A name without what a file system or a path would read as more than a name."""
    cleaned = "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in name).strip(" .")
    return cleaned[:100] or "_"


def _free(path: Path) -> Path:
    """`path`, or the first of `name-1`, `name-2` … that does not exist."""
    candidate, number = path, 0
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def _save_png(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


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
        labels: where the source's labels are, as in :func:`deepcluster.fit_source`.
        device: where the net runs.
        progress: told what happens.

    Returns:
        The scores of METRICS that can be had: those that need labels only where there are labels.
        With a source, kNN and the linear probe learn from the run's own images if these have labels
        of the same classes, and are measured on the source's.
    """
    items = run.read_items()
    known = items["label"].to_pylist()
    names = sorted({name for name in known if name is not None})
    position = {name: k for k, name in enumerate(names)}
    own = np.array([position.get(name, -1) for name in known]) if names else None
    if source is None:
        if labels is not None:
            raise ConfigError("--labels needs the images it belongs to: give the source as well")
        clusters = items["cluster"].to_numpy()
        kept = clusters >= 0  # a person may have taken images out of every cluster
        scores = metrics.evaluate(
            run.read_embeddings()[kept],
            clusters[kept],
            None if own is None else own[kept],
            rng=np.random.default_rng(0),
        )
        return scores | _score_classifier(
            run, run.read_embeddings(), known, items["id"].to_pylist(), items["path"].to_pylist()
        )
    found = predict_source(run, source, labels=labels, device=device, progress=progress)
    truth = found.store.labels
    if truth is None:
        return metrics.evaluate(found.embeddings, found.labels, None, rng=np.random.default_rng(0))
    train = None
    if own is not None and any(name in position for name in found.store.label_names):
        train = (run.read_embeddings(), own)
    for name in found.store.label_names:  # classes that the run does not know keep their own number
        position.setdefault(name, len(position))
    matched = np.array(
        [position[found.store.label_names[k]] if k >= 0 else -1 for k in truth.tolist()]
    )
    scores = metrics.evaluate(
        found.embeddings,
        found.labels,
        matched,
        train=train,
        rng=np.random.default_rng(0),
    )
    words = [found.store.label_names[k] if k >= 0 else None for k in truth.tolist()]
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


class Deployed(nn.Module):
    """The net as other programs want it: pixels in [0, 1] in, features or classes out.

    Args:
        model: a fitted model.
        classifier: what makes probabilities of the features; None gives the features.
    """

    def __init__(self, model: FittedModel, classifier: Classifier | None = None) -> None:
        super().__init__()
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
        RunError: `out` exists, or the run has no classifier.
        ConfigError: a package that the format needs is not installed.
    """
    if out.exists():
        raise RunError(f"{out} exists already: choose another place with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    if classes and to == "timm":
        raise ConfigError("timm reads the backbone alone: export --classes to onnx or torchscript")
    if to == "timm":
        shutil.copytree(run.model, out)
        return out
    model = FittedModel.load(run.model)
    classifier = Classifier.load(run) if classes else None
    deployed = Deployed(model, classifier).eval()
    if classifier is not None:
        names = out.with_name(f"{out.name}.classes.txt")
        names.write_text("".join(f"{name}\n" for name in classifier.names), encoding="utf-8")
    example = torch.zeros(2, model.channels, model.preprocessing.size, model.preprocessing.size)
    if to == "torchscript":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)  # that it will go
            torch.jit.save(torch.jit.trace(deployed, example), str(out))
        return out
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError("ONNX needs two more packages: pip install onnx onnxscript") from error
    torch.onnx.export(
        deployed,
        (example,),
        out,
        input_names=["images"],
        output_names=["probabilities" if classes else "features"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        dynamo=True,
        external_data=False,  # the weights in the same file
        verbose=False,
    )
    return out
