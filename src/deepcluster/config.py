"""Every setting, once.

The docstring under a field is its help on the command line and its entry in the guide. ``"auto"``
means: chosen by :func:`deepcluster.training.plan.resolve` from the images' size, colour and count
and from the device, never from the data set's name; what was chosen is written to the run's
``config.toml``.
A recipe (``recipes/*.toml``) is a set of values for these fields, and nothing else.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deepcluster.errors import ConfigError

Auto = Literal["auto"]

GUESSING = ("deepcluster", "deepcluster-v2")
"""Methods whose whole loss is a guess among k clusters: a head that knows nothing has ln k."""

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class DataSettings:
    """How images are kept."""

    channels: Literal["auto", "grey", "rgb"] = "auto"
    """Keep one or three channels; auto keeps one if every image is grey."""
    margin: float = 1.0
    """Side of the kept image over the side of the view (the paper keeps 256 for views of 224);
    weights from elsewhere bring their own, below 1 where images are smaller than the net's."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter that resizes images; weights from elsewhere bring their own."""
    memory_gb: float | Auto = "auto"
    """Keep decoded images in memory up to this much, else in a memory-mapped cache; auto is a
    third of what is free."""
    workers: int | Auto = "auto"
    """Threads that decode; auto is the number of cores."""


@dataclass(frozen=True)
class ViewSettings:
    """Random views of the images. Each probability is per image; 0 turns that view off."""

    preset: Literal["auto", "photo", "small-photo", "shape", "tiny-shape", "paper", "none"] = "auto"
    """Set of views that fills every value below that is left at auto: photographs, photographs
    under 65 pixels, shapes without a mirror image such as digits and garments, such shapes under 24
    pixels, the 2018 paper, or none."""
    crop_scale: float | Auto = "auto"
    """Smallest share of the area that a random-resized crop keeps (1 is no crop)."""
    crop_scale_max: float | Auto = "auto"
    """Largest share of the area that a crop keeps; above 1 the image shrinks within the view."""
    crop_ratio: float | Auto = "auto"
    """Largest aspect ratio of a crop (1 is square)."""
    flip: float | Auto = "auto"
    """Probability of a left-right mirror image."""
    jitter: float | Auto = "auto"
    """Probability of a colour jitter."""
    brightness: float | Auto = "auto"
    """Colour jitter: brightness factor within 1 ± this."""
    contrast: float | Auto = "auto"
    """Colour jitter: contrast factor within 1 ± this."""
    saturation: float | Auto = "auto"
    """Colour jitter: saturation factor within 1 ± this (colour images only)."""
    hue: float | Auto = "auto"
    """Colour jitter: hue shift within ± this many turns, at most 0.5 (colour images only)."""
    grey: float | Auto = "auto"
    """Probability of dropping the colour."""
    blur: float | Auto = "auto"
    """Probability of a Gaussian blur."""
    blur_sigma: float | Auto = "auto"
    """Largest standard deviation of the blur, in pixels (the smallest is 0.1)."""
    solarise: float | Auto = "auto"
    """Probability of inverting the pixels above one half."""
    rotation: float | Auto = "auto"
    """Rotation within ± this many degrees."""
    shift: float | Auto = "auto"
    """Shift within ± this share of the view's half side, beside that of the crop."""
    shear: float | Auto = "auto"
    """Slant: horizontal shift within ± this share of the height."""
    elastic: float | Auto = "auto"
    """Bend by a smooth random field within ± this share of the view's half side."""


@dataclass(frozen=True)
class KMeansSettings:
    """The k-means that makes the pseudo-labels of the method ``deepcluster``."""

    init: Literal["k-means++", "random"] = "k-means++"
    """Where the first centres come from."""
    iterations: int = 20
    """Most Lloyd iterations of one run."""
    tolerance: float = 1e-4
    """Stop when the centres' squared move falls below this share of the data's variance."""
    restarts: int = 1
    """Runs from different starts; the one of lowest inertia is kept."""
    max_points_per_centre: int = 0
    """Fit the centres on a random sample of this many points a cluster (faiss takes 256); 0 takes
    all."""


@dataclass(frozen=True)
class DeepClusterSettings:
    """The method ``deepcluster`` (Caron et al., ECCV 2018)."""

    pseudo_clusters: int | Auto = "auto"
    """Clusters that make the pseudo-labels; auto over-clusters."""
    recluster_every: int = 1
    """Epochs between two clusterings."""
    reassign: float = 1.0
    """Images drawn in an epoch, as a share of all (at most 1)."""
    pca: int = 256
    """Dimensions that PCA keeps before k-means; 0 keeps the features as they are."""
    whiten: bool = True
    """Divide each principal component by its standard deviation."""
    balance: Literal["sampler", "weights", "none"] = "sampler"
    """Against large clusters: draw images uniformly over pseudo-labels, weight the loss by the
    inverse size of the cluster, or neither."""
    reset_head: bool = True
    """Draw the head anew at each clustering (the labels' numbers have changed)."""
    head_lr: float | Auto = "auto"
    """Learning rate of the head; auto is that of the backbone."""
    head_momentum: float = 0.0
    """Momentum of the head's own optimizer."""
    fixed_kmeans_seed: bool = False
    """Start every clustering from the same random state (faiss's default) rather than a new one."""


@dataclass(frozen=True)
class ContrastiveClustersSettings:
    """The method ``contrastive-clusters``: contrast, cluster, self-label."""

    temperature: float = 0.2
    """Temperature of the softmax over the images of the batch."""
    dimensions: int = 64
    """Dimensions of the projection in which views are compared."""
    label_from: float = 0.4
    """Share of the epochs after which the clusters begin to teach."""
    recluster_every: int = 3
    """Epochs between two clusterings."""
    head_temperature: float = 0.1
    """Temperature of the softmax over the clusters."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all clusters."""


@dataclass(frozen=True)
class DeepClusterV2Settings:
    """The method ``deepcluster-v2`` (Caron et al., NeurIPS 2020)."""

    heads: int = 3
    """Clusterings that train side by side."""
    prototypes: int | Auto = "auto"
    """Clusters of each head (the paper takes 3000 for ImageNet); auto over-clusters."""
    temperature: float = 0.1
    """Temperature of the softmax over a head's centroids."""
    dimensions: int = 128
    """Dimensions of the projection that is clustered."""
    hidden: int = 0
    """Width of the projector's hidden layer (the paper takes 2048); 0 is twice the features'."""
    small_views: int = 0
    """Small crops beside the two large ones (multi-crop); not for nets of one image size."""


@dataclass(frozen=True)
class TrainSettings:
    """The loop."""

    batch_size: int | Auto = "auto"
    """Images in a step."""
    optimizer: Literal["sgd", "adamw", "muon"] = "muon"
    """SGD with momentum, AdamW, or Muon for the inner layers and AdamW for the rest."""
    lr: float | Auto = "auto"
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate over the fit, after the warm-up."""
    warmup: float = 0.03
    """Share of all steps over which the learning rate rises from zero."""
    momentum: float = 0.9
    """Momentum of SGD and Muon, and the first beta of AdamW."""
    weight_decay: float = 5e-4
    """Weight decay of the weights (biases and norms are left alone unless decay_all)."""
    decay_all: bool = False
    """Decay biases and norms as well, as the paper's code does."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the net; auto takes bfloat16 where the device is faster with it."""
    checkpoint_every: int = 1
    """Epochs between two checkpoints (the last two are kept)."""


@dataclass(frozen=True)
class FinalSettings:
    """The clusters a person gets at the end."""

    algorithm: Literal["kmeans", "graph"] = "graph"
    """k-means on the final features, or a cut of their nearest-neighbour graph."""
    choose: bool = False
    """Choose the number of clusters, from 2 to `clusters`, by how well and how evenly they lie
    apart; on where `clusters` is auto."""
    pca: int = 0
    """Dimensions that PCA keeps before the final clustering; 0 keeps the features as they are."""
    whiten: bool = False
    """Divide each principal component by its standard deviation."""
    neighbours: int = 15
    """Neighbours of an image in the graph."""
    restarts: int = 10
    """Runs of the final k-means from different starts."""


@dataclass(frozen=True)
class Config:
    """All settings of a fit."""

    method: str = "contrastive-clusters"
    """How the backbone learns."""
    clusters: int | Auto = "auto"
    """Clusters to end with; auto trains with more and chooses their number at the end."""
    minutes: float | Auto = "auto"
    """Time that the whole fit takes: net, image size and epochs are chosen for it on this machine,
    where they are not given; auto: a minute for 500 images, at least one and at most 60."""
    epochs: int | Auto = "auto"
    """Passes over the images; auto follows from the minutes or from the images' number and size."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps …"""
    size: int | Auto = "auto"
    """Side of the training images in pixels."""
    start: Literal["auto", "scratch", "frozen", "adapt"] = "auto"
    """Where the net comes from: trained from scratch; frozen, with weights made elsewhere as they
    are; adapt, from such weights on; auto tries what is at hand and keeps the better, and downloads
    nothing."""
    backbone: str = "auto"
    """alexnet-bn, alexnet-small, resnet18-small, convnet-small …, any timm name, or a folder with
    a net in timm's layout (local-dir:PATH), such as an earlier run."""
    weights: str = ""
    """A .safetensors file with weights of the backbone named."""
    sobel: bool = False
    """Put the paper's fixed Sobel filter before the backbone."""
    data: DataSettings = field(default_factory=DataSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    kmeans: KMeansSettings = field(default_factory=KMeansSettings)
    deepcluster: DeepClusterSettings = field(default_factory=DeepClusterSettings)
    contrastive_clusters: ContrastiveClustersSettings = field(
        default_factory=ContrastiveClustersSettings
    )
    deepcluster_v2: DeepClusterV2Settings = field(default_factory=DeepClusterV2Settings)
    final: FinalSettings = field(default_factory=FinalSettings)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package; ``default`` is this module's own values."""
    return ["default", *sorted(path.stem for path in RECIPES.glob("*.toml"))]


def load_recipe(name: str) -> dict[str, Any]:
    """Values of a named recipe, or of a TOML file if `name` is a path that ends in ``.toml``.

    Raises:
        ConfigError: there is no such recipe or file, or it is not TOML.
    """
    if name == "default":
        return {}
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        raise ConfigError(
            f"there is no recipe {name!r}: choose one of {', '.join(recipe_names())}, "
            "or give the path of a .toml file"
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"train": {"lr": 1}}`` -> ``{"train.lr": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of `config` with some values replaced.

    Args:
        config: the settings to start from.
        values: nested (``{"train": {"lr": 0.1}}``) or dotted (``{"train.lr": 0.1}``) names.

    Raises:
        ConfigError: a name that does not exist, or a value of the wrong type.
    """
    for name, value in flatten(values).items():
        config = _replace(config, name.split("."), value, name)
    return config


def _replace(section: Any, names: list[str], value: Any, full: str) -> Any:
    fields = [f.name for f in dataclasses.fields(section)]
    if names[0] not in fields:
        near = difflib.get_close_matches(names[0], fields, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(fields)}"
        raise ConfigError(f"there is no setting {full!r}: {hint}")
    current = getattr(section, names[0])
    if dataclasses.is_dataclass(current) != (len(names) > 1):
        raise ConfigError(f"there is no setting {full!r}: {names[0]!r} is a group of settings")
    if len(names) > 1:
        return dataclasses.replace(section, **{names[0]: _replace(current, names[1:], value, full)})
    hint = typing.get_type_hints(type(section))[names[0]]
    return dataclasses.replace(section, **{names[0]: _checked(value, hint, full)})


def _checked(value: Any, hint: Any, name: str) -> Any:
    """`value` if it is of type `hint` (an int counts as a float), else a ConfigError."""
    options = typing.get_args(hint) if typing.get_origin(hint) is not Literal else (hint,)
    allowed: list[str] = []
    for option in options or (hint,):
        if typing.get_origin(option) is Literal:
            choices = typing.get_args(option)
            allowed += [repr(choice) for choice in choices]
            if value in choices and not isinstance(value, bool):
                return value
        else:
            allowed.append(option.__name__)
            if option is float and isinstance(value, int) and not isinstance(value, bool):
                return float(value)
            if isinstance(value, option) and not (option is int and isinstance(value, bool)):
                return value
    raise ConfigError(f"{name} = {value!r} will not do: it takes {' or '.join(allowed)}")


def to_toml(config: Config) -> str:
    """The settings as TOML, in the order of the fields; :func:`override` reads it back."""
    lines: list[str] = []
    sections: list[str] = []
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            sections += ["", f"[{name}]", *(f"{k} = {_toml_value(v)}" for k, v in value.items())]
        else:
            lines.append(f"{name} = {_toml_value(value)}")
    return "\n".join(lines + sections) + "\n"


def _toml_value(value: Any) -> str:
    # JSON's strings, integers and booleans are TOML's; floats need a point or an exponent, and
    # Python's repr has one.
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
