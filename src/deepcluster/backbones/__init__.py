"""Which net sees the images? Own nets, timm's, their weights, and the fitted model.

To import this tells timm of the nets that are not its own, now or as soon as anybody loads it:
timm takes longer to load than everything else together.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

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


class _TellTimm(MetaPathFinder):
    """Registers the nets once timm is there."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("timm")
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_tell(module: ModuleType) -> None:
            load(module)
            from deepcluster.backbones import registered  # noqa: F401

        spec.loader.exec_module = load_and_tell  # type: ignore[method-assign]
        return spec


if "timm" in sys.modules:
    from deepcluster.backbones import registered  # noqa: F401
else:
    sys.meta_path.insert(0, _TellTimm())
