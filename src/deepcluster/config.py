"""Every setting, once.

The docstring under a field is its help on the command line and its entry in the guide; beside it
stands the range of its numbers (:func:`within`), which :func:`override` and :func:`check_settings`
hold to: a setting that cannot work is refused before any work. ``"auto"``
means: chosen by :func:`deepcluster.training.resolve.resolve` from the images' size, colour and
count and from the device, never from the data set's name; what was chosen is written to the run's
``config.toml``.
A recipe (``recipes/*.toml``) is a set of values for these fields, and nothing else.

Long, because each setting stands here with its help and its range, and nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import numbers
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from deepcluster.errors import ConfigError

Auto = Literal["auto"]

GUESSING = ("deepcluster", "deepcluster-v2")
"""Methods whose whole loss is a guess among k clusters: a head that knows nothing has ln k."""

SECTIONS = {
    "contrastive-clusters": ("contrastive_clusters",),
    "deepcluster": ("deepcluster", "kmeans"),
    "deepcluster-v2": ("deepcluster_v2",),
}
"""Groups of settings that one method alone reads."""

RECIPES = Path(__file__).parent / "recipes"

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The numbers a setting takes: finite ones from `low` to `high`."""

    low: float
    high: float = math.inf
    above: bool = False  # `low` itself is left out
    below: bool = False  # `high` itself is left out

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return math.isfinite(value) and over and under

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"a number above {self.low:g}" if self.above else f"a number from {self.low:g}"
        start = f"above {self.low:g}, " if self.above else f"from {self.low:g} "
        high = f"{self.high:g}" if self.high < 1e6 else f"{int(self.high):,}"
        return f"a number {start}{'below' if self.below else 'to'} {high}"


def within(
    default: T, low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> T:
    """A field whose numbers lie in a :class:`Range`."""
    made: T = field(default=default, metadata={"range": Range(low, high, above, below)})
    return made


@dataclass(frozen=True)
class DataSettings:
    """How images are kept."""

    channels: Literal["auto", "grey", "rgb"] = "auto"
    """Keep one or three channels; auto keeps one if every image is grey."""
    margin: float = within(1.0, 0.01, 4)
    """Side of the kept image over the side of the view (the paper keeps 256 for views of 224);
    weights from elsewhere bring their own, below 1 where images are smaller than the net's."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter that resizes images; weights from elsewhere bring their own."""
    memory_gb: float | Auto = within("auto", 0)
    """Keep decoded images in memory up to this much, else in a memory-mapped cache; auto is a
    third of what is free."""
    workers: int | Auto = within("auto", 1, 1024)
    """Threads that decode; auto is the number of cores."""
    range: Literal["auto", "full"] | tuple[float, float] = "auto"
    """Grey values that are shown as 0 to 255, of images of more than 8 bits: low and high, the full
    range (0 to 65535, floats 0 to 1), or auto: one range for all images, found from them."""
    fit: Literal["crop", "pad"] = "crop"
    """How an image becomes a square: its middle, or all of it, padded with its mean colour."""


@dataclass(frozen=True)
class ViewSettings:
    """Random views of the images. Each probability is per image; 0 turns that view off."""

    preset: Literal["auto", "photo", "small-photo", "shape", "tiny-shape", "paper", "none"] = "auto"
    """Set of views that fills every value below that is left at auto: photographs, photographs
    under 65 pixels, shapes without a mirror image such as digits and garments, such shapes under 24
    pixels, the 2018 paper, or none."""
    crop_scale: float | Auto = within("auto", 0.01, 1)
    """Smallest share of the area that a random-resized crop keeps (1 is no crop)."""
    crop_scale_max: float | Auto = within("auto", 0.01, 4)
    """Largest share of the area that a crop keeps; above 1 the image shrinks within the view."""
    crop_ratio: float | Auto = within("auto", 1, 100)
    """Largest aspect ratio of a crop (1 is square)."""
    flip: float | Auto = within("auto", 0, 1)
    """Probability of a left-right mirror image."""
    jitter: float | Auto = within("auto", 0, 1)
    """Probability of a colour jitter."""
    brightness: float | Auto = within("auto", 0)
    """Colour jitter: brightness factor within 1 ± this."""
    contrast: float | Auto = within("auto", 0)
    """Colour jitter: contrast factor within 1 ± this."""
    saturation: float | Auto = within("auto", 0)
    """Colour jitter: saturation factor within 1 ± this (colour images only)."""
    hue: float | Auto = within("auto", 0, 0.5)
    """Colour jitter: hue shift within ± this many turns, at most 0.5 (colour images only)."""
    grey: float | Auto = within("auto", 0, 1)
    """Probability of dropping the colour."""
    blur: float | Auto = within("auto", 0, 1)
    """Probability of a Gaussian blur."""
    blur_sigma: float | Auto = within("auto", 0.1, 100)
    """Largest standard deviation of the blur, in pixels (the smallest is 0.1)."""
    solarise: float | Auto = within("auto", 0, 1)
    """Probability of inverting the pixels above one half."""
    rotation: float | Auto = within("auto", 0, 180)
    """Rotation within ± this many degrees."""
    shift: float | Auto = within("auto", 0, 1)
    """Shift within ± this share of the view's half side, beside that of the crop."""
    shear: float | Auto = within("auto", 0, 1)
    """Slant: horizontal shift within ± this share of the height."""
    elastic: float | Auto = within("auto", 0, 1)
    """Bend by a smooth random field within ± this share of the view's half side."""


@dataclass(frozen=True)
class KMeansSettings:
    """The k-means that makes the pseudo-labels of the method ``deepcluster``."""

    init: Literal["k-means++", "random"] = "k-means++"
    """Where the first centres come from."""
    iterations: int = within(20, 1)
    """Most Lloyd iterations of one run."""
    tolerance: float = within(1e-4, 0)
    """Stop when the centres' squared move falls below this share of the data's variance."""
    restarts: int = within(1, 1)
    """Runs from different starts; the one of lowest inertia is kept."""
    max_points_per_centre: int = within(0, 0)
    """Fit the centres on a random sample of this many points a cluster (faiss takes 256); 0 takes
    all."""


@dataclass(frozen=True)
class DeepClusterSettings:
    """The method ``deepcluster`` (Caron et al., ECCV 2018)."""

    pseudo_labels: Literal["kmeans", "pic"] = "kmeans"
    """What makes the pseudo-labels: k-means, or power iteration clustering on the neighbour graph,
    which finds their number itself."""
    pseudo_clusters: int | Auto = within("auto", 1)
    """Clusters that make the pseudo-labels; auto over-clusters. Of no effect with pic."""
    recluster_every: int = within(1, 1)
    """Epochs between two clusterings."""
    reassign: float = within(1.0, 0, 1, above=True)
    """Images drawn in an epoch, as a share of all (at most 1)."""
    pca: int | Auto = within("auto", 0)
    """Dimensions that PCA keeps before k-means; 0 keeps the features as they are, auto is the
    paper's 256, or one for 50 images where these are fewer."""
    whiten: bool = True
    """Divide each principal component by its standard deviation."""
    balance: Literal["sampler", "weights", "none"] = "sampler"
    """Against large clusters: draw images uniformly over pseudo-labels, weight the loss by the
    inverse size of the cluster, or neither."""
    reset_head: bool = True
    """Draw the head anew at each clustering (the labels' numbers have changed)."""
    head_lr: float | Auto = within("auto", 0, above=True)
    """Learning rate of the head; auto is that of the backbone."""
    head_momentum: float = within(0.0, 0, 1, below=True)
    """Momentum of the head's own optimizer."""
    fixed_kmeans_seed: bool = False
    """Start every clustering from the same random state (faiss's default) rather than a new one."""


@dataclass(frozen=True)
class ContrastiveClustersSettings:
    """The method ``contrastive-clusters``: contrast, cluster, self-label."""

    temperature: float = within(0.2, 0, above=True)
    """Temperature of the softmax over the images of the batch."""
    dimensions: int = within(64, 1)
    """Dimensions of the projection in which views are compared."""
    label_from: float = within(0.4, 0, 1)
    """Share of the epochs after which the clusters begin to teach."""
    recluster_every: int = within(3, 1)
    """Epochs between two clusterings."""
    head_temperature: float = within(0.1, 0, above=True)
    """Temperature of the softmax over the clusters."""
    label_smoothing: float = within(0.1, 0, 1)
    """Share of the target that is spread over all clusters."""
    small_views: int | Auto = within("auto", 0)
    """Views of half the side beside the two large ones: each learns to find those of its image.
    auto is 4 for 4,000 photographs or more, from 16 pixels on, that convnet-small, convnet-tiny or
    resnet18-small learns from scratch, else 0. Not for nets of one image size."""


@dataclass(frozen=True)
class DeepClusterV2Settings:
    """The method ``deepcluster-v2`` (Caron et al., NeurIPS 2020)."""

    heads: int = within(3, 1)
    """Clusterings that train side by side."""
    prototypes: int | Auto = within("auto", 1)
    """Clusters of each head (the paper takes 3000 for ImageNet); auto over-clusters."""
    temperature: float = within(0.1, 0, above=True)
    """Temperature of the softmax over a head's centroids."""
    dimensions: int = within(128, 1)
    """Dimensions of the projection that is clustered."""
    hidden: int = within(0, 0)
    """Width of the projector's hidden layer (the paper takes 2048); 0 is twice the features'."""
    small_views: int = within(0, 0)
    """Small crops beside the two large ones (multi-crop); not for nets of one image size."""


@dataclass(frozen=True)
class TrainSettings:
    """The loop."""

    batch_size: int | Auto = within("auto", 1)
    """Images in a step."""
    optimizer: Literal["auto", "sgd", "adamw", "muon"] = "auto"
    """SGD with momentum, AdamW, or Muon for the inner layers and AdamW for the rest; auto is Muon,
    and AdamW where weights are adapted."""
    lr: float | Auto = within("auto", 0, above=True)
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate over the fit, after the warm-up."""
    warmup: float = within(0.03, 0, 1, below=True)
    """Share of all steps over which the learning rate rises from zero."""
    momentum: float = within(0.9, 0, 1, below=True)
    """Momentum of SGD and Muon, and the first beta of AdamW."""
    weight_decay: float = within(5e-4, 0)
    """Weight decay of the weights (biases and norms are left alone unless decay_all)."""
    decay_all: bool = False
    """Decay biases and norms as well, as the paper's code does."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the net; auto takes bfloat16 where the device is faster with it."""
    threads: int | Auto = within("auto", 1, 1024)
    """Threads of a processor; auto is torch's number (OMP_NUM_THREADS), or fewer where other
    programs use the cores, fewer are faster in a trial, and epochs follow from the clock anyway."""
    checkpoint_every: int = within(1, 1)
    """Epochs between two checkpoints, at least: a fit writes a hundred (the last two are kept)."""


@dataclass(frozen=True)
class FinalSettings:
    """The clusters a person gets at the end."""

    algorithm: Literal["kmeans", "graph"] = "graph"
    """k-means on the final features, or a cut of their nearest-neighbour graph."""
    choose: bool = False
    """Choose the number of clusters, from 2 to `clusters`, by how well and how evenly they lie
    apart; on where `clusters` is auto."""
    pca: int = within(0, 0)
    """Dimensions that PCA keeps before the final clustering; 0 keeps the features as they are."""
    whiten: bool = False
    """Divide each principal component by its standard deviation."""
    neighbours: int = within(15, 1)
    """Neighbours of an image in the graph."""
    restarts: int = within(10, 1)
    """Runs of the final k-means from different starts."""


GIVEN = "given"
"""The backbone of a fit that began with vectors: there is none."""


@dataclass(frozen=True)
class Config:
    """All settings of a fit: frozen, no value is checked before :func:`override` or a fit.

    >>> override(Config(), {"clusters": 12, "train.lr": 0.1}).clusters
    12
    """

    method: str = "contrastive-clusters"
    """How the backbone learns."""
    clusters: int | Auto = within("auto", 1)
    """Clusters to end with; auto trains with more and chooses their number at the end."""
    minutes: float | Auto = within("auto", 0, 100_000, above=True)
    """Time that the whole fit takes: net, image size and epochs are chosen for it on this machine,
    where they are not given; auto: a minute for 500 images, at least one and at most 60."""
    epochs: int | Auto = within("auto", 0, 1_000_000)
    """Passes over the images; auto follows from the minutes or from the images' number and size."""
    seed: int = within(0, 0, 2**63 - 1)
    """Seed of everything random."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps …"""
    size: int | Auto = within("auto", 1, 4096)
    """Side of the training images in pixels."""
    start: Literal["auto", "scratch", "frozen", "adapt"] = "auto"
    """Where the net comes from: trained from scratch; frozen, with weights made elsewhere as they
    are; adapt, trained on from such weights, and frozen if that is no worse; auto tries what is at
    hand, keeps the best, and downloads nothing."""
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

    @property
    def item(self) -> str:
        """What a sentence calls one of the things that are clustered: vectors may be of texts."""
        return "vector" if self.backbone == GIVEN else "image"

    @property
    def learning(self) -> str:
        """What a sentence says of how the features came about: by which method, if any."""
        if self.backbone == GIVEN:
            return "vectors as given"
        if self.start == "frozen":
            return f"frozen features of {self.backbone}, size {self.size}"
        return f"{self.method}, {self.backbone}, size {self.size}, epochs {self.epochs}"


@dataclass(frozen=True)
class SegmentSettings:
    """Regions of single images (``deepcluster segment``)."""

    superpixels: Literal["none", "slic"] = "none"
    """What keeps regions whole: none is a loss on differences between neighbouring pixels, slic
    lets each superpixel vote (needs scikit-image)."""
    min_labels: int = 3
    """Stop when no more labels are left than these."""
    iterations: int = 500
    """Stop after so many steps."""
    continuity: float = 15.0
    """Weight of that loss; larger gives fewer and larger regions."""
    side: int = 256
    """Give labels to the picture with its longer side at most this, in pixels."""
    seed: int = 0
    """Of the net's first weights."""


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package; ``default`` is this module's own values."""
    return ["default", *sorted(path.stem for path in RECIPES.glob("*.toml"))]


def load_recipe(name: str) -> dict[str, Any]:
    """Values of a named recipe, or of a TOML file if `name` is a path that ends in ``.toml``.

    Args:
        name: default, paper, chainer, or a path.

    Returns:
        Nested values, as :func:`override` takes them; none for ``default``.

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
    return parse_toml(path.read_bytes(), str(path))


def parse_toml(raw: bytes, name: str) -> dict[str, Any]:
    """Values of a TOML file of settings.

    Args:
        raw: what is in the file.
        name: what to call it in an error.

    Raises:
        ConfigError: it is not UTF-8 or not TOML.
    """
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name} is not UTF-8 text (byte {error.start + 1}): save it as UTF-8"
        ) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{name} is not TOML: {error}") from error


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"train": {"lr": 1}}`` -> ``{"train.lr": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changed(config: Config) -> dict[str, Any]:
    """Settings that are not as by default."""
    default, wanted = (flatten(dataclasses.asdict(each)) for each in (Config(), config))
    return {name: value for name, value in wanted.items() if value != default[name]}


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of `config` with some values replaced.

    Args:
        config: the settings to start from.
        values: nested (``{"train": {"lr": 0.1}}``) or dotted (``{"train.lr": 0.1}``) names.

    Returns:
        The copy; `config` stays as it is.

    Raises:
        ConfigError: a name that does not exist, or a value of the wrong type or out of its range.
    """
    for name, value in flatten(values).items():
        config = _replace(config, name.split("."), value, name)
    return config


def older() -> Config:
    """What a run began with where its settings say nothing, since they were not there yet."""
    return override(Config(), {"start": "scratch", "contrastive_clusters.small_views": 0})


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
    limits = {f.name: f.metadata.get("range") for f in dataclasses.fields(section)}[names[0]]
    return dataclasses.replace(section, **{names[0]: _checked(value, hint, limits, full)})


def check_settings(config: Config) -> None:
    """Refuse values that cannot work, however the settings were made.

    Raises:
        ConfigError: a value of the wrong type or out of its range.
    """
    override(Config(), dataclasses.asdict(config))


def _checked(value: Any, hint: Any, limits: Range | None, name: str) -> Any:
    """`value` if it is of type `hint` and in its range, else a ConfigError.

    An int counts as a float, and NumPy's numbers count as Python's.
    """
    options = typing.get_args(hint) if typing.get_origin(hint) is not Literal else (hint,)
    allowed: list[str] = []
    flag = isinstance(value, bool) or type(value).__name__ == "bool"  # NumPy's own is no bool
    for option in options or (hint,):
        if typing.get_origin(option) is Literal:
            choices = typing.get_args(option)
            allowed += [repr(choice) for choice in choices]
            if isinstance(value, str) and value in choices:
                return str(value)
            continue
        if typing.get_origin(option) is tuple:
            allowed.append("two numbers, the lower one first")
            if isinstance(value, list | tuple) and len(value) == 2 and _in_order(*value):
                return float(value[0]), float(value[1])
            continue
        allowed.append(option.__name__)
        number: int | float
        if option is int and isinstance(value, numbers.Integral) and not flag:
            number = int(value)
        elif option is float and isinstance(value, numbers.Real) and not flag:
            number = float(value)
        elif option is bool and flag:
            return bool(value)
        elif option is str and isinstance(value, str):
            return str(value)
        else:
            continue
        if limits is not None and number not in limits:
            also = " or 'auto'" if "auto" in _choices(hint) else ""
            raise ConfigError(f"{name} = {value} will not do: give {limits}{also}")
        return number
    raise ConfigError(f"{name} = {value!r} will not do: it takes {' or '.join(allowed)}")


def _choices(hint: Any) -> list[Any]:
    """The words that a setting takes."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return list(parts)
    return [word for part in parts for word in _choices(part)]


def _in_order(low: Any, high: Any) -> bool:
    """Whether these are two finite numbers, of Python or of NumPy, and the first is the lower."""
    numeric = all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in (low, high))
    return numeric and math.isfinite(low) and math.isfinite(high) and low < high


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
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
