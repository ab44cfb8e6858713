"""Backbones: nets that turn images into features.

``alexnet_bn`` is the net of DeepCluster (Caron et al., ECCV 2018): AlexNet with batch normalisation
in place of local response normalisation, after an optional fixed Sobel filter. Its features are the
output of the second fully connected layer *before* the ReLU; the ReLU then stands between features
and head (``feature_activation``). It differs from the paper's code in that the image side is an
argument (224 gives the paper's net; its fully connected layer has as many inputs as the last map
has values) and in that grey is a mean rather than a frozen 1×1 convolution (the same numbers).

The other nets here are for images below about 100 pixels, where nets made for 224 throw most of the
picture away in their first layers: ``alexnet_small``, and ``convnet_small`` and ``convnet_tiny``
(a small residual net for machines without an accelerator). ``resnet18_small`` (3×3 stem, no pool,
as usual for CIFAR) is made of timm's parts and stands apart. Every other name is one of timm's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcluster.errors import ConfigError

__all__ = ["ANY_SIZE", "CFGS", "NETS", "OWN_BACKBONES", "AlexNet", "ConvNet", "Sobel"]


class Sobel(nn.Module):
    """Horizontal and vertical differences of the grey image: ``(n, c, h, w) -> (n, 2, h, w)``.

    Grey is the mean of the channels. Nothing here is trained or saved. The paper's code applies it
    to images that are already normalised, and so does this package.
    """

    kernels: Tensor

    def __init__(self) -> None:
        super().__init__()
        x = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        self.register_buffer("kernels", torch.stack([x, x.T])[:, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Filter a batch; pixels beyond the border count as 0."""
        grey = images.mean(1, keepdim=True)  # (n, 1, h, w)
        return F.conv2d(grey, self.kernels.to(grey.dtype), padding=1)


class _Net(nn.Module):
    """What the nets share: the Sobel filter before, timm's ways with a classifier after."""

    def __init__(self, num_features: int, num_classes: int, in_chans: int, sobel: bool) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = num_features
        self.feature_activation: nn.Module = nn.Identity()
        self.sobel = Sobel() if sobel else nn.Identity()
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """The head; an identity if there are no classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Draw a new head for so many classes; 0 removes it."""
        self.num_classes = num_classes
        self.head: nn.Module = (
            nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        )
        initialise(self.head)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Features ``(n, d)`` as they are, or the classifier's scores if there is one."""
        if pre_logits or not self.num_classes:
            return features
        scores: Tensor = self.head(self.feature_activation(features))
        return scores


def initialise(net: nn.Module) -> None:
    """Draw the paper's way: convolutions N(0, 2/(kh·kw·out)), linear N(0, 0.01²), biases 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class AlexNet(_Net):
    """Five convolutions with batch norm, three max-poolings, two fully connected layers.

    Args:
        widths: channels of the five convolutions.
        kernels: their sides; the first has `stride`, all others 1.
        stride: of the first convolution.
        padding: of the five convolutions.
        pool_padding: of the three max-poolings (side 3, stride 2).
        hidden: width of the two fully connected layers.
        in_chans: channels of the images.
        img_size: side of the images; the fully connected layers fit this size only.
        num_classes: 0 for features.
        sobel: put the Sobel filter first.
        drop_rate: dropout before each fully connected layer.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (96, 256, 384, 384, 256),
        kernels: Sequence[int] = (11, 5, 3, 3, 3),
        stride: int = 4,
        padding: Sequence[int] = (2, 2, 1, 1, 1),
        pool_padding: int = 0,
        hidden: int = 4096,
        in_chans: int = 3,
        img_size: int | Sequence[int] = 224,
        num_classes: int = 0,
        sobel: bool = False,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__(hidden, num_classes, in_chans, sobel)
        self.feature_activation = nn.ReLU()
        sides = [img_size] * 2 if isinstance(img_size, int) else list(img_size)
        layers: list[nn.Module] = []
        channels = 2 if sobel else in_chans
        for i, (width, kernel, pad) in enumerate(zip(widths, kernels, padding, strict=True)):
            step = stride if i == 0 else 1
            layers += [
                nn.Conv2d(channels, width, kernel, step, pad),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            sides = [(side + 2 * pad - kernel) // step + 1 for side in sides]
            if i in (0, 1, 4):
                layers.append(nn.MaxPool2d(3, 2, pool_padding))
                sides = [(side + 2 * pool_padding - 3) // 2 + 1 for side in sides]
            channels = width
        if min(sides) < 1:
            raise ConfigError(
                f"alexnet-bn is for images of about 224 pixels and takes 63 at the least, not "
                f"{img_size}: choose alexnet-small, convnet-small or resnet18-small, or a larger "
                "size"
            )
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(drop_rate),
            nn.Linear(channels * sides[0] * sides[1], hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(drop_rate),
            nn.Linear(hidden, hidden),
        )
        initialise(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map, ``(n, c, h, w)``."""
        maps: Tensor = self.features(self.sobel(images))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(n, hidden)``, before the ReLU."""
        return self.forward_head(self.classifier(self.forward_features(images).flatten(1)))


class _Residual(nn.Module):
    """Two 3×3 convolutions around which the input is added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv_bn(width, width)
        self.second = _conv_bn(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, h, w)`` to the same shape."""
        return x + F.relu(self.second(F.relu(self.first(x), inplace=True)), inplace=True)


def _conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class ConvNet(_Net):
    """A small residual net: convolutions with batch norm and ReLU, two poolings, an average.

    Above 16 pixels the first convolution is 4×4 with stride 2, which is faster than 3×3 and a
    pooling: fewer bytes to move at full size. At width 32 and 32 pixels it takes 24 million
    multiply-adds. Any size from 4 pixels.

    Args:
        width: channels after the first convolution; the features have eight times as many.
        in_chans: channels of the images.
        img_size: side of the images in pixels.
        num_classes: 0 for features.
        sobel: put the Sobel filter first.
    """

    def __init__(
        self,
        *,
        width: int = 32,
        in_chans: int = 3,
        img_size: int | Sequence[int] = 32,
        num_classes: int = 0,
        sobel: bool = False,
    ) -> None:
        super().__init__(8 * width, num_classes, in_chans, sobel)
        side = img_size if isinstance(img_size, int) else min(img_size)
        kernel, stride = (4, 2) if side > 16 else (3, 1)
        relu, pool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.stem = _conv_bn(2 if sobel else in_chans, width, kernel, stride)
        self.stages = nn.Sequential(
            relu,
            *(_conv_bn(width, 2 * width), relu, pool, _Residual(2 * width)),
            *(_conv_bn(2 * width, 4 * width), relu, pool, _Residual(4 * width)),
            *(_conv_bn(4 * width, 8 * width), relu),
        )
        initialise(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map, ``(n, c, h, w)``."""
        maps: Tensor = self.stages(self.stem(self.sobel(images)))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(n, 8 · width)``: the mean over the last map."""
        return self.forward_head(self.forward_features(images).mean((2, 3)))


NETS: dict[str, Callable[..., nn.Module]] = {
    "alexnet_bn": AlexNet,
    "alexnet_small": partial(
        AlexNet,
        widths=(48, 128, 192, 192, 128),
        kernels=(5, 3, 3, 3, 3),
        stride=1,
        padding=(2, 1, 1, 1, 1),
        pool_padding=1,
        hidden=1024,
    ),
    "convnet_small": partial(ConvNet, width=32),
    "convnet_tiny": partial(ConvNet, width=16),
}
"""The nets that are built without timm, by name."""


def _cfg(size: int, first_conv: str, classifier: str, fixed: bool = False) -> dict[str, Any]:
    return {
        "num_classes": 0,
        "input_size": (3, size, size),
        "fixed_input_size": fixed,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "first_conv": first_conv,
        "classifier": classifier,
    }


CFGS = {
    "alexnet_bn": _cfg(224, "features.0", "head", fixed=True),
    "alexnet_small": _cfg(32, "features.0", "head", fixed=True),
    "convnet_small": _cfg(32, "stem.0", "head", fixed=True),
    "convnet_tiny": _cfg(32, "stem.0", "head", fixed=True),
    "resnet18_small": _cfg(32, "conv1", "fc"),
}
"""What timm shall know of each net, and of ``resnet18_small``."""

ANY_SIZE = ("convnet_small", "convnet_tiny", "resnet18_small")
"""Those that take images of another side than the one they were built for."""

OWN_BACKBONES = tuple(CFGS)
"""Names of the nets that are not timm's; each takes ``sobel=True``."""
