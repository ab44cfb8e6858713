"""Weights of a net, in the folder that timm reads and writes: ``config.json`` and safetensors."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from deepcluster.backbones.build import CUSTOM, cfg_of, create, known, prepare_backbone, untagged
from deepcluster.backbones.nets import OWN_BACKBONES
from deepcluster.backbones.preprocessing import Preprocessing
from deepcluster.errors import RunError


def save_timm(
    model: nn.Module,
    folder: Path,
    *,
    name: str,
    channels: int,
    preprocessing: Preprocessing,
    sobel: bool,
    license: str = "",
) -> None:
    """Write a folder that timm reads: config.json and model.safetensors.

    A net that timm does not know (a module of the user's own) is saved as weights only, under the
    architecture "custom".

    Args:
        model: the backbone (no head).
        folder: where to write; made if it does not exist.
        name: the name it was built by; anything else for a user's own module.
        channels: of its input.
        preprocessing: what timm shall do to an image before it.
        sobel: whether it was built with the Sobel filter.
        license: that the weights came with, if any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = preprocessing.size
    architecture = untagged(name) if known(untagged(name)) else CUSTOM
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": model.num_features,
    }
    pretrained_cfg: dict[str, Any] = {
        "num_classes": 0,
        "input_size": [channels, size, size],
        "fixed_input_size": False,
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_pct,
        "crop_mode": "center",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
    if license:
        pretrained_cfg["license"] = license
    if architecture != CUSTOM:
        arguments: dict[str, Any] = {"in_chans": channels}
        cfg = cfg_of(architecture)
        if architecture in OWN_BACKBONES:
            arguments["sobel"] = sobel
        if cfg.get("fixed_input_size"):
            arguments["img_size"] = size
            pretrained_cfg["fixed_input_size"] = True
        config["model_args"] = arguments
        # The first convolution is named so that timm can adapt it to other channels; behind the
        # Sobel filter it always has two.
        pretrained_cfg["first_conv"] = None if sobel else cfg.get("first_conv")
        pretrained_cfg["classifier"] = cfg.get("classifier")
    config["pretrained_cfg"] = pretrained_cfg
    # Contiguous copies: safetensors refuses channels-last tensors and tensors that share memory.
    weights = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in model.state_dict().items()
    }
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    text = json.dumps(config, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def load_timm(folder: str | Path) -> nn.Module:
    """Load what :func:`save_timm` wrote, on the CPU, in evaluation mode.

    Raises:
        RunError: the folder has no such model, or its net is the user's own module.
    """
    folder = Path(folder)
    for file in (folder / "config.json", folder / "model.safetensors"):
        if not file.is_file():
            raise RunError(
                f"{folder} holds no model ({file.name} is missing): give the model/ folder of a run"
            )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["architecture"] == CUSTOM:
        raise RunError(
            f"the net in {folder} was a module of your own, and only its weights are saved: "
            "build it again and give it load_state_dict(safetensors.torch.load_file("
            f"{str(folder / 'model.safetensors')!r}))"
        )
    if not known(config["architecture"]):
        raise RunError(
            f"the net in {folder} is {config['architecture']!r}, which timm {version('timm')} "
            "does not know: upgrade timm and deepcluster"
        )
    model = create(config["architecture"], num_classes=0, **config.get("model_args", {}))
    model.pretrained_cfg = model.default_cfg = config["pretrained_cfg"]  # timm reads it
    model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    channels, size, _ = config["pretrained_cfg"]["input_size"]
    return prepare_backbone(model, channels=channels, size=size).eval()


def load_weights(net: nn.Module, folder: Path) -> nn.Module:
    """Give a module of the user's own the weights that :func:`save_timm` wrote; it is changed.

    Raises:
        RunError: the weights are of another net.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    channels, size, _ = config["pretrained_cfg"]["input_size"]
    net = prepare_backbone(net, channels=channels, size=size)
    try:
        net.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    except RuntimeError as error:
        raise RunError(
            f"the weights in {folder} are of another net than was given: {error}"
        ) from error
    return net.eval()
