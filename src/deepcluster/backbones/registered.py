"""timm, told of the nets that are not its own.

After ``from deepcluster.backbones.registered import timm``, a run's features are those of
``timm.create_model("local-dir:RUN/model", pretrained=True)`` (timm 1.0.16 or newer). Apart from the
nets, and imported where it is needed: timm takes longer to load than everything else together.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from deepcluster.backbones.nets import CFGS, NETS, Sobel, initialise

__all__ = ["SmallResNet", "timm"]


class SmallResNet(ResNet):
    """timm's ResNet-18 with a 3×3 stem of stride 1 and no stem pooling, for small images.

    Args:
        in_chans: channels of the images.
        num_classes: 0 for features.
        sobel: put the Sobel filter first.
    """

    def __init__(self, *, in_chans: int = 3, num_classes: int = 0, sobel: bool = False) -> None:
        block: Any = BasicBlock  # timm's annotation asks for an instance
        super().__init__(block, (2, 2, 2, 2), num_classes=num_classes, in_chans=in_chans)
        stem = nn.Conv2d(2 if sobel else in_chans, 64, 3, padding=1, bias=False)
        initialise(stem)
        self.add_module("conv1", stem)  # in the place of timm's
        self.add_module("maxpool", nn.Identity())
        self.sobel = Sobel() if sobel else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, ``(n, 512, h, w)``."""
        return super().forward_features(self.sobel(x))


default_cfgs = CFGS
"""Read by timm's register_model."""


def _register(name: str, net: Any) -> None:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(net, name, pretrained, **options)
        return model

    create.__name__ = name
    register_model(create)


for _name, _net in {**NETS, "resnet18_small": SmallResNet}.items():
    _register(_name, _net)
