"""The net of a run, as other programs want it."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from deepcluster.backbones.features import FittedModel
from deepcluster.config import GIVEN
from deepcluster.errors import ConfigError, RunError
from deepcluster.files import Output
from deepcluster.labelling.classifier import Classifier
from deepcluster.run import RunDir


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
    if to == "onnx":
        _refuse_without_onnx()
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


def _refuse_without_onnx() -> None:
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
