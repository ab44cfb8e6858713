"""Backbones: nets that turn images into features.

``alexnet_bn`` is the net of DeepCluster (Caron et al., ECCV 2018): AlexNet with batch normalisation
in place of local response normalisation, after an optional fixed Sobel filter. Its features are the
output of the second fully connected layer *before* the ReLU; the ReLU then stands between features
and head (``feature_activation``). It differs from the paper's code in that the image side is an
argument (224 gives the paper's net; its fully connected layer has as many inputs as the last map
has values) and in that grey is a mean rather than a frozen 1×1 convolution (the same numbers).

The other nets here are for images below about 100 pixels, where nets made for 224 throw most of the
picture away in their first layers: ``alexnet_small``, ``resnet18_small`` (3×3 stem, no pool, as
usual for CIFAR), ``convnet_small`` and ``convnet_tiny`` (a small residual net for machines
without an accelerator). Every other name is one of timm's.

All nets register with timm, and :func:`save_timm` writes a folder that timm reads: after
``import deepcluster.backbones``, ``timm.create_model("local-dir:RUN/model", pretrained=True)``
gives the same features (timm 1.0.16 or newer). Weights are safetensors, never pickle.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from deepcluster.errors import ConfigError

__all__ = [
    "OWN_BACKBONES",
    "AlexNet",
    "ConvNet",
    "SmallResNet",
    "Sobel",
    "auto_backbone",
    "build_backbone",
    "prepare_backbone",
]

OWN_BACKBONES = ("alexnet_bn", "alexnet_small", "convnet_small", "convnet_tiny", "resnet18_small")
"""Names of the nets defined here; each takes ``sobel=True``."""

CUSTOM = "custom"
"""Architecture of an exported net that is not timm's: its weights are saved, its code is not."""


def build_backbone(name: str, *, channels: int, size: int, sobel: bool = False) -> nn.Module:
    """Build a net that maps images ``(n, channels, size, size)`` to features ``(n, num_features)``.

    The weights are drawn from torch's global generator: seed it before.

    Args:
        name: one of OWN_BACKBONES (hyphens count as underscores) or any timm name.
        channels: 1 (grey) or 3.
        size: side of the images in pixels.
        sobel: put the fixed Sobel filter before the net (own nets only).

    Returns:
        The net, with ``num_features`` and ``feature_activation`` (what goes between features and
        head).

    Raises:
        ConfigError: an unknown name, a size the net cannot take, or Sobel before a timm net.
    """
    architecture = architecture_of(name)
    options: dict[str, Any] = {"in_chans": channels, "num_classes": 0}
    if architecture in OWN_BACKBONES:
        options["sobel"] = sobel
    elif sobel:
        raise ConfigError(
            f"the Sobel filter cannot stand before {name!r}, a net of timm: leave sobel off, or "
            f"choose one of {_names(OWN_BACKBONES)}"
        )
    if has_fixed_size(architecture):
        options["img_size"] = size
    model = timm.create_model(name.replace("-", "_"), pretrained=False, **options)
    return prepare_backbone(model, channels=channels, size=size, name=name)


def prepare_backbone(
    model: nn.Module, *, channels: int, size: int, name: str = "this net"
) -> nn.Module:
    """Give a net the two attributes that training reads, and see that it takes the images.

    ``num_features`` is measured on a blank image; ``feature_activation`` is an identity unless the
    net has one.

    Raises:
        ConfigError: the net cannot take images of this size, or its output is not ``(n, d)``.
    """
    parameter = next(model.parameters(), torch.zeros(()))
    training = model.training
    model.eval()  # batch norm keeps its statistics, dropout draws nothing
    try:
        with torch.no_grad():
            features = model(
                torch.zeros(2, channels, size, size, device=parameter.device, dtype=parameter.dtype)
            )
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"{name} cannot take {channels}-channel images of {size} × {size} pixels ({error}): "
            "choose another size or backbone (convnet-small and resnet18-small take small images)"
        ) from error
    model.train(training)
    if not isinstance(features, Tensor) or features.ndim != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ConfigError(
            f"{name} must give features of shape (n, d), one row an image, but gave {found} for 2 "
            "images: end it with a pooling and a flatten"
        )
    model.num_features = features.shape[1]  # type: ignore[assignment]
    if not hasattr(model, "feature_activation"):
        model.feature_activation = nn.Identity()
    return model


def auto_backbone(size: int, channels: int, n: int, device_type: str) -> str:
    """Name of the backbone that suits the images and the machine.

    Small images get a net that keeps their pixels; without an accelerator, the cheapest one.

    Args:
        size: side of the images in pixels.
        channels: 1 or 3.
        n: number of images.
        device_type: ``cpu``, ``cuda``, ``mps`` …
    """
    if device_type == "cpu":
        if size > 96:
            return "resnet18"
        return "convnet_tiny" if channels == 1 and size <= 32 else "convnet_small"
    if size <= 64:
        return "resnet18_small"
    return "resnet50" if n >= 100_000 else "resnet18"


def architecture_of(name: str) -> str:
    """Name of the architecture at timm, without the tag of its weights."""
    architecture = untagged(name)
    if timm.is_model(architecture):
        return architecture
    near = difflib.get_close_matches(architecture, timm.list_models(), 3)
    hint = f"did you mean {' or '.join(near)}? Else " if near else ""
    raise ConfigError(
        f"there is no backbone {name!r}: {hint}choose one of {_names(OWN_BACKBONES)}, or a name "
        "that timm.list_models() lists, such as resnet50"
    )


def untagged(name: str) -> str:
    return name.replace("-", "_").split(".")[0]


def _names(names: Sequence[str]) -> str:
    return ", ".join(name.replace("_", "-") for name in names)


def has_fixed_size(architecture: str) -> bool:
    cfg = timm.models.get_pretrained_cfg(architecture)
    return bool(cfg and cfg.fixed_input_size)


# -- the nets -----------------------------------------------------------------------------------


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
        _initialise(self.head)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Features ``(n, d)`` as they are, or the classifier's scores if there is one."""
        if pre_logits or not self.num_classes:
            return features
        scores: Tensor = self.head(self.feature_activation(features))
        return scores


def _initialise(net: nn.Module) -> None:
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
        _initialise(self)

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
        _initialise(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map, ``(n, c, h, w)``."""
        maps: Tensor = self.stages(self.stem(self.sobel(images)))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(n, 8 · width)``: the mean over the last map."""
        return self.forward_head(self.forward_features(images).mean((2, 3)))


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
        _initialise(stem)
        self.add_module("conv1", stem)  # in the place of timm's
        self.add_module("maxpool", nn.Identity())
        self.sobel = Sobel() if sobel else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, ``(n, 512, h, w)``."""
        return super().forward_features(self.sobel(x))


# -- their names at timm ------------------------------------------------------------------------


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


default_cfgs = {
    "alexnet_bn": _cfg(224, "features.0", "head", fixed=True),
    "alexnet_small": _cfg(32, "features.0", "head", fixed=True),
    "convnet_small": _cfg(32, "stem.0", "head", fixed=True),
    "convnet_tiny": _cfg(32, "stem.0", "head", fixed=True),
    "resnet18_small": _cfg(32, "conv1", "fc"),
}
"""Read by timm's register_model."""


def _create(net: type[nn.Module], name: str, pretrained: bool, **options: Any) -> nn.Module:
    model: nn.Module = build_model_with_cfg(net, name, pretrained, **options)
    return model


@register_model
def alexnet_bn(pretrained: bool = False, **options: Any) -> nn.Module:
    """AlexNet-BN of the paper; 4096 features, images of about 224 pixels."""
    return _create(AlexNet, "alexnet_bn", pretrained, **options)


@register_model
def alexnet_small(pretrained: bool = False, **options: Any) -> nn.Module:
    """AlexNet-BN at half width with small strides; 1024 features, images of 8 to 64 pixels."""
    shape = {
        "widths": (48, 128, 192, 192, 128),
        "kernels": (5, 3, 3, 3, 3),
        "stride": 1,
        "padding": (2, 1, 1, 1, 1),
        "pool_padding": 1,
        "hidden": 1024,
    }
    return _create(AlexNet, "alexnet_small", pretrained, **{**shape, **options})


@register_model
def convnet_small(pretrained: bool = False, **options: Any) -> nn.Module:
    """ConvNet of width 32; 256 features."""
    return _create(ConvNet, "convnet_small", pretrained, **{"width": 32, **options})


@register_model
def convnet_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    """ConvNet of width 16, for grey images such as digits; 128 features."""
    return _create(ConvNet, "convnet_tiny", pretrained, **{"width": 16, **options})


@register_model
def resnet18_small(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-18 for small images; 512 features."""
    return _create(SmallResNet, "resnet18_small", pretrained, **options)
