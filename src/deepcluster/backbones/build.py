"""A net by its name: one of ours, or one of timm's."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster.backbones.nets import CFGS, NETS, OWN_BACKBONES
from deepcluster.errors import ConfigError

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
    model = create(name.replace("-", "_"), **options)
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


def takes(net: nn.Module, channels: int) -> int:
    """Channels of the images that a module takes: those of its first convolution, 1 or 3.

    Args:
        net: of the user's own.
        channels: of the images, for one that has no convolution.
    """
    first = next((each for each in net.modules() if isinstance(each, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 3) else channels


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


def create(name: str, **options: Any) -> nn.Module:
    """A net with random weights, by timm only if it is made of timm's parts."""
    if name in NETS:
        return NETS[name](**options)
    from deepcluster.backbones.registered import timm

    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model


def known(architecture: str) -> bool:
    """Whether there is a net of that name, ours or timm's."""
    if architecture in OWN_BACKBONES:
        return True
    from deepcluster.backbones.registered import timm

    return bool(timm.is_model(architecture))


def architecture_of(name: str) -> str:
    """Name of the architecture at timm, without the tag of its weights."""
    architecture = untagged(name)
    if known(architecture):
        return architecture
    from deepcluster.backbones.registered import timm

    near = difflib.get_close_matches(architecture, timm.list_models(), 3)
    hint = f"did you mean {' or '.join(near)}? Else " if near else ""
    raise ConfigError(
        f"there is no backbone {name!r}: {hint}choose one of {_names(OWN_BACKBONES)}, or a name "
        "that timm.list_models() lists, such as resnet50"
    )


def untagged(name: str) -> str:
    """A name as the table of nets has it: underscores, and no tag of weights."""
    return name.replace("-", "_").split(".")[0]


def _names(names: Sequence[str]) -> str:
    return ", ".join(name.replace("_", "-") for name in names)


def cfg_of(architecture: str) -> dict[str, Any]:
    """What timm knows of an architecture, or of one with the tag of its weights; or nothing."""
    if architecture in CFGS:
        return CFGS[architecture]
    from deepcluster.backbones.registered import timm

    cfg = timm.models.get_pretrained_cfg(architecture)
    return {} if cfg is None else dataclasses.asdict(cfg)


def has_fixed_size(architecture: str) -> bool:
    """Whether a net takes images of one side only."""
    return bool(cfg_of(architecture).get("fixed_input_size"))
