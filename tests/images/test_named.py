"""Named sets from files that lie in the cache; nothing is downloaded."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision.datasets as tv

from deepcluster.errors import SourceError
from deepcluster.images.named import COARSE
from deepcluster.images.store import open_images

FINE = sorted(fine for members in COARSE.values() for fine in members.split())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path))
    folder = tmp_path / "datasets"
    folder.mkdir()
    return folder


@pytest.fixture
def cifar100(cache: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """One image of each class in train, the first ten classes in test."""
    folder = cache / "cifar-100-python"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (100, 3072), dtype=np.uint8)
    for name, count in (("train", 100), ("test", 10)):
        entry = {"data": pixels[:count], "fine_labels": list(range(count))}
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": FINE}))
    monkeypatch.setattr(tv.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr(tv.cifar, "check_integrity", lambda *arguments: True)
    return pixels.reshape(100, 3, 32, 32).transpose(0, 2, 3, 1)


def test_cifar100_and_its_super_classes(cifar100: np.ndarray) -> None:
    assert len(FINE) == len(set(FINE)) == 100 and len(COARSE) == 20
    fine, coarse = open_images("cifar100"), open_images("cifar100:coarse")
    np.testing.assert_array_equal(coarse.pixels, cifar100)
    np.testing.assert_array_equal(coarse.pixels, fine.pixels)
    assert fine.labels is not None and coarse.labels is not None
    assert fine.label_names == FINE and coarse.name == "cifar100-coarse"
    assert np.bincount(coarse.labels).tolist() == [5] * 20
    for f, c in zip(fine.labels, coarse.labels, strict=True):
        assert FINE[f] in COARSE[coarse.label_names[c]].split()
    assert open_images("cifar100:test:coarse").name == "cifar100-test-coarse"
    with pytest.raises(SourceError, match="coarse"):
        open_images("cifar100:fine")


def test_only_cifar100_has_super_classes(cache: Path) -> None:
    with pytest.raises(SourceError, match="no split 'coarse'"):
        open_images("cifar10:coarse")


def test_svhn(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    numbers = np.array([[10], [1], [2], [9]], np.uint8)  # its zero is a 10
    scipy.io.savemat(cache / "train_32x32.mat", {"X": pixels, "y": numbers})
    monkeypatch.setattr(tv.SVHN, "_check_integrity", lambda self: True)
    store = open_images("svhn")
    np.testing.assert_array_equal(store.pixels, pixels.transpose(3, 0, 1, 2))
    assert store.labels is not None and store.labels.tolist() == [0, 1, 2, 9]
    assert store.label_names == [str(digit) for digit in range(10)]


def test_stl10(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    parts = {}
    for name, count in (("train", 3), ("unlabeled", 2)):
        parts[name] = rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        parts[name].transpose(0, 1, 3, 2).tofile(folder / f"{name}_X.bin")  # columns first
    np.array([1, 2, 10], np.uint8).tofile(folder / "train_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    monkeypatch.setattr(tv.STL10, "_check_integrity", lambda self: True)
    store = open_images("stl10", size=96)
    expected = np.concatenate([parts["train"], parts["unlabeled"]]).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(store.pixels, expected)
    assert store.labels is not None and store.labels.tolist() == [0, 1, 9, -1, -1]


def test_kmnist(cache: Path) -> None:
    raw = cache / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    header = (0x0803).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in (6, 28, 28))
    (raw / "train-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    labels = (0x0801).to_bytes(4, "big") + (6).to_bytes(4, "big") + bytes(range(6))
    (raw / "train-labels-idx1-ubyte").write_bytes(labels)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (raw / name).write_bytes(labels)
    store = open_images("kmnist")
    np.testing.assert_array_equal(store.pixels[..., 0], pixels)
    assert store.labels is not None and store.labels.tolist() == list(range(6))
