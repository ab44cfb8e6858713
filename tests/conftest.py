"""Images, settings and a run small enough for a test."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.config import Config, override
from deepcluster.fitting import fit_source
from deepcluster.images.store import ImageStore, open_images
from deepcluster.run import RunDir

TINY = {
    "epochs": 2,
    "clusters": 3,
    "backbone": "convnet_tiny",
    "train.batch_size": 32,
    "train.precision": "float32",
    "device": "cpu",
}


def make_shapes(n: int = 96, side: int = 16, colour: bool = False, seed: int = 0) -> np.ndarray:
    """Bars, crosses and rings with noise: three classes in turn, ``(n, side, side[, 3])`` uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    images = []
    for i in range(n):
        cy, cx = rng.uniform(0.35, 0.65, 2) * side
        ring = np.abs(np.hypot(y - cy, x - cx) - side * 0.3) < 1.5
        shape = [np.abs(y - cy) < 2, (np.abs(y - cy) < 1.2) | (np.abs(x - cx) < 1.2), ring][i % 3]
        images.append(np.clip(200 * shape + rng.normal(20, 15, (side, side)), 0, 255))
    array = np.stack(images).astype(np.uint8)
    return np.stack([array, array // 2, 255 - array], -1) if colour else array


@pytest.fixture
def tiny() -> Config:
    return override(Config(), TINY)


@pytest.fixture
def shapes() -> ImageStore:
    return open_images(make_shapes())


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of small pictures in sub-folders, and one that is broken."""
    root = tmp_path_factory.mktemp("pictures")
    for i, pixels in enumerate(make_shapes(60)):
        place = root / ["bars", "crosses", "rings"][i % 3]
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i:02d}.png")
    (root / "bars" / "broken.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="session")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    out = tmp_path_factory.mktemp("runs") / "run"
    config = override(Config(), TINY)
    return fit_source(folder, config, out=out, labels="folders", report=True)
