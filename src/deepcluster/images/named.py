"""Data sets that can be asked for by name: where they come from and what they hold.

The digits come with scikit-learn; the others are read, and if need be downloaded, by torchvision.
Its classes are used for the files alone: the images are taken as they lie in them, without its
transforms, and decoded like those of any other source.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class NamedSetError(ValueError):
    """A named data set, or a split of it, cannot be had; says what there is or how to get it."""


@dataclass(frozen=True)
class Named:
    """A data set of torchvision: the class, its splits (the default first), its files."""

    cls: str
    splits: tuple[str, ...]
    folder: str  # below the cache folder's datasets/
    files: str
    page: str  # where a person finds them


@dataclass(frozen=True)
class NamedSet:
    """One split of a named data set."""

    name: str
    """The name, and the split unless it is the default."""
    images: npt.NDArray[Any] | list[Path]
    """``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``, or the image files."""
    labels: npt.NDArray[np.int64]
    """``(n,)``, -1 where unknown."""
    label_names: list[str]
    """Name of each label."""


_IDX = (
    "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    "t10k-labels-idx1-ubyte.gz"
)
TORCHVISION = {
    "mnist": Named(
        "MNIST",
        ("train", "test"),
        "MNIST/raw",
        _IDX,
        "https://ossci-datasets.s3.amazonaws.com/mnist",
    ),
    "fashion-mnist": Named(
        "FashionMNIST",
        ("train", "test"),
        "FashionMNIST/raw",
        _IDX,
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    ),
    "kmnist": Named(
        "KMNIST",
        ("train", "test"),
        "KMNIST/raw",
        _IDX,
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist",
    ),
    "cifar10": Named(
        "CIFAR10",
        ("train", "test"),
        "",
        "cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz",
    ),
    "cifar100": Named(
        "CIFAR100",
        ("train", "test"),
        "",
        "cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz",
    ),
    "svhn": Named(
        "SVHN",
        ("train", "test", "extra"),
        "",
        "train_32x32.mat (test_32x32.mat, extra_32x32.mat)",
        "http://ufldl.stanford.edu/housenumbers",
    ),
    "stl10": Named(
        "STL10",
        ("train+unlabeled", "train", "unlabeled", "test"),
        "",
        "stl10_binary.tar.gz",
        "http://ai.stanford.edu/~acoates/stl10",
    ),
    "imagenette": Named(
        "Imagenette",
        ("train", "val"),
        "",
        "imagenette2-320.tgz",
        "https://s3.amazonaws.com/fast-ai-imageclas",
    ),
}


COARSE = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
"""The 20 super-classes of CIFAR-100 (Krizhevsky 2009, section 3.1) and their classes."""


def digits() -> NamedSet:
    """The 1,797 handwritten digits of scikit-learn, ``(n, 8, 8)`` uint8."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    stack = np.rint(loaded.images * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255
    names = [str(name) for name in loaded.target_names]
    return NamedSet("digits", stack, loaded.target.astype(np.int64), names)


def from_torchvision(name: str, split: str, root: Path) -> NamedSet:
    """One split of a data set of :data:`TORCHVISION`, downloaded if it is not there yet.

    Args:
        name: a key of :data:`TORCHVISION`.
        split: one of its splits; an empty one is the first. Of cifar100 also ``coarse`` and
            ``test:coarse``, with the super-classes for labels.
        root: the folder of torchvision's data sets.

    Raises:
        NamedSetError: there is no such split, or the files are not there and cannot be downloaded.
    """
    named = TORCHVISION[name]
    coarse = name == "cifar100" and split.split(":")[-1] == "coarse"
    if coarse:
        split = split.removesuffix("coarse").removesuffix(":")
    split = split or named.splits[0]
    if split not in named.splits:
        more = ", and coarse or test:coarse for its 20 super-classes" if name == "cifar100" else ""
        raise NamedSetError(
            f"{name} has no split {split!r}: choose from {', '.join(named.splits)}{more}"
        )
    import torchvision.datasets

    make = getattr(torchvision.datasets, named.cls)
    settings: dict[str, Any] = {"root": root}
    if named.splits == ("train", "test"):
        settings["train"] = split == "train"
    else:
        settings["split"] = split
    if name == "imagenette":
        settings["size"] = "320px"
    try:
        dataset = make(**settings)
    except (OSError, RuntimeError):  # not there yet
        try:
            root.mkdir(parents=True, exist_ok=True)
            dataset = make(**settings, download=True)
        except (OSError, RuntimeError) as error:
            raise NamedSetError(
                f"{name} is not in {root} and could not be downloaded ({error}): connect to the "
                f"network once, or put {named.files} from {named.page} into {root / named.folder}"
            ) from error

    label = name if split == named.splits[0] else f"{name}-{split}"
    images: npt.NDArray[Any] | list[Path]
    if name == "imagenette":
        # decoded here, like any file
        files = torchvision.datasets.ImageFolder(root / "imagenette2-320" / split)
        images, targets = [Path(file) for file, _ in files.samples], files.targets
    else:
        targets = dataset.targets if hasattr(dataset, "targets") else dataset.labels
        images = np.asarray(dataset.data)
    # svhn names no classes: they are the digits
    classes = getattr(dataset, "classes", [str(digit) for digit in range(10)])
    # of imagenette's synonyms the first
    names = [c if isinstance(c, str) else c[0] for c in classes]
    if coarse:
        number = {fine: k for k, members in enumerate(COARSE.values()) for fine in members.split()}
        targets = np.array([number[fine] for fine in names])[np.asarray(targets)]
        label, names = f"{label}-coarse", list(COARSE)
    return NamedSet(label, images, np.asarray(targets, np.int64), names)
