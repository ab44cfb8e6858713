"""Which net sees the images? Own nets, timm's, their weights, and the fitted model.

Where timm is loaded already, to import this tells it of the nets that are not its own;
``from deepcluster.backbones.registered import timm`` always does.
"""

import sys

from deepcluster.backbones.build import auto_backbone, build_backbone, prepare_backbone
from deepcluster.backbones.features import FittedModel, extract
from deepcluster.backbones.preprocessing import Preprocessing
from deepcluster.backbones.weights import load_timm, save_timm

__all__ = [
    "FittedModel",
    "Preprocessing",
    "auto_backbone",
    "build_backbone",
    "extract",
    "load_timm",
    "prepare_backbone",
    "save_timm",
]

if "timm" in sys.modules:
    from deepcluster.backbones import registered  # noqa: F401
