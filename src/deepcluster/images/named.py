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
        split: one of its splits; an empty one is the first.
        root: the folder of torchvision's data sets.

    Raises:
        NamedSetError: there is no such split, or the files are not there and cannot be downloaded.
    """
    named = TORCHVISION[name]
    split = split or named.splits[0]
    if split not in named.splits:
        raise NamedSetError(f"{name} has no split {split!r}: choose from {', '.join(named.splits)}")
    import torchvision.datasets

    make = getattr(torchvision.datasets, named.cls)
    settings: dict[str, Any] = {"root": root}
    if named.splits == ("train", "test"):
        settings["train"] = split == "train"
    else:
        settings["split"] = split
    if name == "imagenette":
        settings |= {"size": "320px", "loader": Path}  # paths: decoded here, like any file
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
        files, targets = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
        images = list(files)
    else:
        targets = dataset.targets if hasattr(dataset, "targets") else dataset.labels
        images = np.asarray(dataset.data)
    # svhn names no classes: they are the digits
    classes = getattr(dataset, "classes", [str(digit) for digit in range(10)])
    # of imagenette's synonyms the first
    names = [c if isinstance(c, str) else c[0] for c in classes]
    return NamedSet(label, images, np.asarray(targets, np.int64), names)
