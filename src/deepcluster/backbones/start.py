"""Weights that were made elsewhere: where they are, what they want of an image, and their terms.

A net may begin with the weights of a folder in timm's layout (``model/`` of an earlier run is one),
of a safetensors file, or of a timm name, from timm's cache or, when that is asked for, from the
hub. Nothing here goes to the network but :meth:`Weights.fetch`.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from deepcluster.backbones.build import (
    CUSTOM,
    architecture_of,
    build_backbone,
    cfg_of,
    has_fixed_size,
    prepare_backbone,
    takes,
)
from deepcluster.backbones.nets import OWN_BACKBONES
from deepcluster.backbones.preprocessing import Preprocessing
from deepcluster.config import Config
from deepcluster.errors import ConfigError

USUAL_SIDE, SIDE_OF_SMALL = 224, 160
"""Sides in pixels above which a net that takes any side gets no larger images by itself; the second
one for images that are small themselves: more is slower, and was not better."""
SMALL = 64
"""Images up to this side in pixels are small."""

GOOD = {
    "vit_small_patch14_dinov2.lvd142m": 88,
    "vit_small_patch14_reg4_dinov2.lvd142m": 88,
    "vit_small_patch16_224.dino": 87,
    "resnet50.a1_in1k": 102,
    "tf_efficientnet_lite0.in1k": 19,
}
"""Weights under the Apache licence that are looked for in timm's cache where no net is named, and
the megabytes of each; the first is the one to recommend."""

TERMS = {
    "dinov3-license": "not an open-source licence: what is made from these weights may be passed "
    "on under the same agreement only, with a copy of it; publications must name DINOv3; no "
    "military use, no reverse engineering (facebookresearch/dinov3, LICENSE.md)",
    "fair-noncommercial": "for non-commercial use only",
    "cc-by-nc-4.0": "for non-commercial use only, with attribution",
    "apple-amlr": "for research only",
    "apple-ascl": "Apple's sample code licence: see the weights' page",
}
"""What licences ask that are not permissive."""

FREE = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause")


@dataclass(frozen=True)
class Weights:
    """Weights, and what goes with them.

    Attributes:
        name: as it was given.
        architecture: timm's name of the net, for weights of the hub with their tag.
        path: a folder in timm's layout or a safetensors file; None while only the hub has them.
        channels: of the images.
        size: side in pixels of the images the net was trained on.
        mean: of each channel.
        std: of each channel.
        crop_pct: share of the resized image's side that the net sees.
        interpolation: how an image is resized.
        license: as the weights say; empty if they do not.
        hub: repository at the hub.
        net: a module of the user's own, in place of a file: it holds its weights.
    """

    name: str
    architecture: str
    path: Path | None
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    license: str = ""
    hub: str = ""
    net: nn.Module | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def multiple(self) -> int:
        """Sides that a net with patches takes are multiples of this."""
        found = re.search(r"patch(\d+)", self.architecture)
        return int(found[1]) if found else 1

    @property
    def terms(self) -> str:
        """The licence in a sentence."""
        if self.license in TERMS:
            return f"{self.name}: licence {self.license}, {TERMS[self.license]}"
        if self.license in FREE:
            return f"{self.name}: licence {self.license}"
        return f"{self.name}: licence {self.license or 'unknown'}; see where the weights come from"

    def best_size(self, side: int = 0) -> int:
        """Side that images get where none is asked for; `side` is their own, 0 if unknown."""
        if self.own:
            return self.size
        usual = SIDE_OF_SMALL if 0 < side <= SMALL else USUAL_SIDE
        return min(self.size, usual // self.multiple * self.multiple)

    @property
    def own(self) -> bool:
        """Whether the net is one of this package's, as an earlier run leaves it."""
        return self.architecture in OWN_BACKBONES

    def preprocessing(self, size: int) -> Preprocessing:
        """What lies between an image and the net at `size` pixels: the weights' own ways."""
        side = math.floor(size / self.crop_pct)
        return Preprocessing(size, self.mean, self.std, side, self.interpolation)

    def fetch(self) -> Weights:
        """The weights at hand: downloaded from the hub unless they are there already.

        Raises:
            ConfigError: they cannot be had.
        """
        if self.path is not None or self.net is not None:
            return self
        from huggingface_hub import hf_hub_download

        try:
            file = hf_hub_download(self.hub, "model.safetensors")
        except Exception as error:  # the hub's client raises errors of half a dozen libraries
            raise ConfigError(
                f"could not load the weights of {self.name!r} ({type(error).__name__}: {error}). "
                f"They are downloaded from huggingface.co/{self.hub}: connect this machine, or "
                "bring its model.safetensors over and give --weights FILE.safetensors beside "
                f"--backbone {self.name}"
            ) from error
        return dataclasses.replace(self, path=Path(file))

    def build(self, size: int) -> nn.Module:
        """The net with these weights, for images of `size` pixels, in evaluation mode.

        Raises:
            ConfigError: the weights do not fit the net or the size, or hold NaN.
        """
        if self.net is not None:
            net = copy.deepcopy(self.net)
            return prepare_backbone(net, channels=self.channels, size=size).eval()
        assert self.path is not None, "fetch first"
        from deepcluster.backbones.registered import timm

        options: dict[str, Any] = {"num_classes": 0, "in_chans": self.channels}
        if has_fixed_size(architecture_of(self.architecture)):
            options["img_size"] = size
        try:
            if self.path.is_dir():
                model = timm.create_model(f"local-dir:{self.path}", pretrained=True, **options)
            else:
                model = timm.create_model(
                    self.architecture,
                    pretrained=True,
                    pretrained_cfg_overlay=self._overlay(),
                    **options,
                )
        except (RuntimeError, KeyError, ValueError, safetensors.SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"the weights in {self.path} do not fit {self.architecture} at {size} pixels "
                f"({reason}): give the name that they were made with, or leave --size out"
            ) from error
        _refuse_nan(model, str(self.path))
        return prepare_backbone(
            model, channels=self.channels, size=size, name=self.architecture
        ).eval()

    def _overlay(self) -> dict[str, Any]:
        """What timm must know of a file: a head that is not in it cannot be taken off."""
        overlay: dict[str, Any] = {"file": str(self.path)}
        heads = cfg_of(self.architecture).get("classifier") or ()
        assert self.path is not None
        with safetensors.safe_open(self.path, framework="pt") as file:
            names = set(file.keys())
        if not any(
            f"{head}.weight" in names for head in ([heads] if isinstance(heads, str) else heads)
        ):
            overlay["num_classes"] = 0
        return overlay

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "path": None if self.path is None else str(self.path),
            "license": self.license or None,
            "terms": self.terms,
        }


def find_weights(backbone: str, file: str = "") -> Weights | None:
    """The weights that a name stands for; None where there are none.

    Args:
        backbone: ``auto`` (those of GOOD that are in timm's cache), a folder in timm's layout with
            or without ``local-dir:`` before it, a run folder, or a timm name.
        file: a safetensors file with weights of `backbone`.

    Raises:
        ConfigError: there is no such net, folder or file.
    """
    if file:
        return _of_file(backbone, Path(file))
    if backbone == "auto":
        known = (_of_hub(name) for name in GOOD)
        return next((w for w in known if w is not None and w.path is not None), None)
    folder = Path(backbone.removeprefix("local-dir:")).expanduser()
    if backbone.startswith("local-dir:") or (folder.is_dir() and _model_in(folder) is not None):
        return _of_folder(backbone, folder)
    architecture = architecture_of(backbone)
    return None if architecture in OWN_BACKBONES else _of_hub(backbone.replace("-", "_"))


def weights_of(net: nn.Module, *, size: int, channels: int) -> Weights:
    """A module of the user's own that brings its weights.

    Args:
        net: ``(b, c, s, s)`` -> ``(b, d)``. A net of timm says what it wants of an image.
        size: side in pixels, for one that does not.
        channels: of the images, for one that does not.

    Raises:
        ConfigError: its weights hold NaN.
    """
    _refuse_nan(net, "this net")
    found = Weights(CUSTOM, CUSTOM, None, channels, size, (), (), net=net)
    if Preprocessing.of_module(net, size) is not None:  # else they are the images' own
        said: dict[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
        found = dataclasses.replace(_described(CUSTOM, CUSTOM, said, path=None), net=net)
    return dataclasses.replace(found, channels=takes(net, found.channels))


def _refuse_nan(net: nn.Module, name: str) -> None:
    if any(not tensor.isfinite().all() for tensor in net.state_dict().values()):
        raise ConfigError(
            f"the weights in {name} hold NaN or infinity: the file is damaged, or the "
            "training they come from has failed; take another"
        )


def _model_in(folder: Path) -> Path | None:
    for place in (folder, folder / "model"):
        if (place / "config.json").is_file():
            return place
    return None


def _of_folder(name: str, folder: Path) -> Weights:
    place = _model_in(folder)
    if place is None or not (place / "model.safetensors").is_file():
        raise ConfigError(
            f"{folder} holds no net (config.json and model.safetensors): give a folder in timm's "
            "layout, or model/ of a run"
        )
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        config = {**config, **config.get("pretrained_cfg", {})}
        architecture = str(config["architecture"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{place / 'config.json'} is not timm's: {error}") from error
    if architecture == CUSTOM:
        raise ConfigError(
            f"the net in {place} was a module of somebody's own, and only its weights are there: "
            "build it in Python and give it as DeepCluster(backbone=…)"
        )
    return _described(name, architecture_of(architecture), config, path=place.resolve())


def _of_file(name: str, file: Path) -> Weights:
    if name == "auto":
        raise ConfigError(f"--weights {file} needs the net they belong to: --backbone NAME")
    if file.suffix != ".safetensors" or not file.is_file():
        raise ConfigError(f"--weights takes a .safetensors file, and {file} is none")
    architecture = name.replace("-", "_")
    config = cfg_of(architecture_of(name) if "." not in name else architecture)
    config = {**config, "license": None}  # of timm's weights, not of these
    return _described(str(file), architecture, config, path=file.resolve())


def _of_hub(name: str) -> Weights | None:
    architecture_of(name)
    cfg = cfg_of(name)
    if not cfg.get("hf_hub_id"):
        return None
    hub = str(cfg["hf_hub_id"])
    return _described(name, f"{name.split('.')[0]}.{cfg['tag']}", cfg, path=cached(hub), hub=hub)


def cached(hub: str) -> Path | None:
    """The file of weights in the hub's cache, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub, "model.safetensors")
    return Path(found) if isinstance(found, str) else None


def _described(
    name: str, architecture: str, config: dict[str, Any], *, path: Path | None, hub: str = ""
) -> Weights:
    channels, size = tuple(config.get("input_size") or (3, 224, 224))[:2]
    if channels not in (1, 3):
        raise ConfigError(f"{name} takes images of {channels} channels; here they have 1 or 3")
    interpolation = str(config.get("interpolation") or "bicubic")
    return Weights(
        name=name,
        architecture=architecture,
        path=path,
        channels=channels,
        size=size,
        mean=tuple(config.get("mean") or (0.485, 0.456, 0.406)[:channels]),
        std=tuple(config.get("std") or (0.229, 0.224, 0.225)[:channels]),
        crop_pct=float(config.get("crop_pct") or 1.0),
        interpolation=interpolation if interpolation in ("bicubic", "bilinear") else "bicubic",
        license=str(config.get("license") or ""),
        hub=hub,
    )


def build_net(config: Config, channels: int) -> nn.Module:
    """The net of resolved settings, with the weights it begins with; those must be at hand.

    Args:
        config: resolved settings.
        channels: of the images; a net with weights from elsewhere has its own.
    """
    assert isinstance(config.size, int)
    if config.start == "scratch":
        return build_backbone(
            config.backbone, channels=channels, size=config.size, sobel=config.sobel
        )
    weights = find_weights(config.backbone, config.weights)
    if weights is None:
        raise ConfigError(f"there are no weights for {config.backbone!r}: say --start scratch")
    return weights.build(config.size)


def weights_key(model: nn.Module) -> str:
    """A hash of all weights of a net."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
