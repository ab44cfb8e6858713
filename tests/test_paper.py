"""The paper's recipe, from a folder of class folders to clusters, on a small stand-in."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcluster.config import Config, load_recipe, override
from deepcluster.fitting import fit_source
from deepcluster.progress import Progress
from deepcluster.run import RunDir


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 pictures of 256 × 240 pixels in four class folders, as ImageNet lies on a disk."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(64):
        kind = number % 4
        coarse = rng.normal(0, 1, (4 + 4 * kind, 4 + 4 * kind, 3))
        pixels = (128 + 40 * coarse).clip(0, 255).astype(np.uint8)
        (folder / f"n{kind:08}").mkdir(exist_ok=True)
        picture = Image.fromarray(pixels).resize((256, 240), Image.Resampling.BICUBIC)
        picture.save(folder / f"n{kind:08}" / f"{number}.jpg")
    return folder


class StopAfterOne(Progress):
    def epoch(self, line: dict[str, object]) -> None:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_the_recipe_runs_stops_and_goes_on(photographs: Path, tmp_path: Path) -> None:
    asked = override(Config(), load_recipe("paper"))
    asked = override(asked, {"epochs": 2, "clusters": 4, "device": "cpu", "seed": 0})
    asked = override(asked, {"deepcluster.pseudo_clusters": 8, "deepcluster.pca": 16})
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit_source(photographs, asked, out=out, labels="folders", progress=StopAfterOne())
    run = fit_source(photographs, asked, out=out, labels="folders", resume=True)
    config = run.read_config()
    assert (config.backbone, config.size, config.sobel) == ("alexnet_bn", 224, True)
    assert config.data.margin == pytest.approx(256 / 224, abs=0.01)
    lines = run.read_metrics()
    assert [line["epoch"] for line in lines] == [0, 1]
    assert lines[0]["loss"] == pytest.approx(np.log(8), rel=0.3)  # a head that knows nothing
    features = RunDir.open(out).read_embeddings()
    assert features.shape == (64, 4096)
    assert (features < 0).any()  # from before the last ReLU
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    whole = fit_source(photographs, asked, out=tmp_path / "whole", labels="folders")
    np.testing.assert_array_equal(whole.read_embeddings(), features)
