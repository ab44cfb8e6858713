"""Weights made elsewhere: found, described, built; the exported folder through timm's own eyes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from conftest import make_net, make_shapes
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from deepcluster.backbones import start
from deepcluster.backbones.features import FittedModel, find_speed, kept_features
from deepcluster.backbones.start import Weights, find_weights
from deepcluster.clustering.prototypes import Prototypes
from deepcluster.device import Compute
from deepcluster.errors import ConfigError
from deepcluster.images.sources import cache_folder
from deepcluster.images.store import open_images

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def test_a_folder_in_timms_layout(net_folder: Path):
    found = find_weights(f"local-dir:{net_folder}")
    assert found is not None and found.architecture == "resnet10t"
    assert (found.channels, found.size, found.crop_pct) == (3, 32, 0.8)
    assert found.preprocessing(32).side == 40
    assert found.terms == f"local-dir:{net_folder}: licence apache-2.0"
    net = found.build(32)
    images = torch.rand(2, 3, 32, 32)
    theirs = timm.create_model(f"local-dir:{net_folder}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        assert torch.equal(net(images), theirs(images))


def test_a_file_and_the_net_it_belongs_to(net_folder: Path):
    file = net_folder / "model.safetensors"
    found = find_weights("resnet10t", str(file))
    assert found is not None
    assert found.license == ""  # of timm's own weights, not of these
    by_folder = find_weights(str(net_folder))
    assert by_folder is not None
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found.build(32)(images), by_folder.build(32)(images))


def test_weights_that_do_not_fit_are_refused(net_folder: Path, tmp_path: Path):
    file = str(net_folder / "model.safetensors")
    with pytest.raises(ConfigError, match="do not fit"):
        find_weights("resnet26t", file).build(32)
    with pytest.raises(ConfigError, match="--backbone NAME"):
        find_weights("auto", file)
    with pytest.raises(ConfigError, match=r"takes a \.safetensors file"):
        find_weights("resnet10t", str(tmp_path / "no.safetensors"))
    with pytest.raises(ConfigError, match="holds no net"):
        find_weights(f"local-dir:{tmp_path}")


def test_weights_with_nan_are_refused(tmp_path: Path):
    make_net(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["bn1.weight"][0] = torch.nan
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(ConfigError, match="NaN"):
        find_weights(str(tmp_path)).build(32)


def test_a_vit_takes_another_size(tmp_path: Path):
    make_net(tmp_path, "vit_tiny_patch16_224", size=64, img_size=64)
    weights = find_weights(str(tmp_path))
    assert weights.multiple == 16
    with torch.no_grad():
        assert weights.build(96)(torch.rand(1, 3, 96, 96)).shape == (1, 192)


def test_a_run_of_this_package_is_a_folder_of_weights(finished):
    weights = find_weights(str(finished.path))
    assert weights.architecture == "convnet_tiny" and weights.channels == 1
    with torch.no_grad():
        assert weights.build(16)(torch.rand(1, 1, 16, 16)).shape == (1, 128)


def test_names_of_the_hub_are_found_without_a_network(monkeypatch: pytest.MonkeyPatch):
    found = find_weights("vit_small_patch16_dinov3")
    assert found.path is None and found.hub == "timm/vit_small_patch16_dinov3.lvd1689m"
    assert "under the same agreement" in found.terms
    assert found.facts()["license"] == "dinov3-license"
    assert find_weights("auto") is None
    assert find_weights("convnet-small") is None
    monkeypatch.setattr(start, "cached", lambda hub: Path("here") if "dinov2" in hub else None)
    here = find_weights("auto")
    assert here.name == "vit_small_patch14_dinov2.lvd142m" and here.path == Path("here")
    assert (here.best_size(), here.best_size(500), here.best_size(28)) == (224, 224, 154)
    assert here.license == "apache-2.0"


def test_what_is_kept_is_what_timm_sees(net_folder: Path, tmp_path: Path):
    """Photographs through timm's own transform give the features that a run keeps."""
    rng = np.random.default_rng(0)
    for i in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        coarse.resize((64 + i, 64 + i), Image.Resampling.BICUBIC).save(tmp_path / f"{i}.png")
    weights = find_weights(str(net_folder))
    preprocessing = weights.preprocessing(32)
    store = open_images(tmp_path, size=preprocessing.side)
    model = FittedModel(
        weights.build(32),
        weights.architecture,
        3,
        False,
        preprocessing,
        None,
        Prototypes(torch.zeros(1, 512), torch.zeros(1, dtype=torch.int64)),
        license=weights.license,
    )
    ours = model.embed(store, Compute(torch.device("cpu")))
    model.save(tmp_path / "model")
    said = json.loads((tmp_path / "model" / "config.json").read_text())["pretrained_cfg"]
    assert said["license"] == "apache-2.0"
    net = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, num_classes=0)
    transform = create_transform(**resolve_model_data_config(net), is_training=False)
    images = torch.stack([transform(Image.open(tmp_path / f"{i}.png")) for i in range(4)])
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(net.eval()(images))
    assert (ours * theirs).sum(1).min() > 0.999
    seen = preprocessing(torch.from_numpy(store.pixels).permute(0, 3, 1, 2))
    assert (seen - images).abs().mean() < 0.001  # of a standard deviation; bilinear: 0.012


def test_small_images_are_enlarged_as_pillow_does(net_folder: Path):
    weights = find_weights(str(net_folder))
    preprocessing = weights.preprocessing(32)
    small = make_shapes(3, side=20, colour=True)
    ours = preprocessing.enlarge(torch.from_numpy(small).permute(0, 3, 1, 2))
    for i in range(3):
        for channel in range(3):
            # as floats, since Pillow rounds and clips bytes between its two passes
            plane = Image.fromarray(small[i, ..., channel].astype(np.float32))
            theirs = np.asarray(plane.resize((40, 40), Image.Resampling.BICUBIC)).clip(0, 255)
            np.testing.assert_allclose(ours[i, channel].numpy(), theirs, atol=0.51)
    assert preprocessing(torch.from_numpy(small[..., :1]).permute(0, 3, 1, 2)).shape == (
        3,
        3,
        32,
        32,
    )


def test_features_are_kept_until_anything_changes(net_folder: Path):
    weights = find_weights(str(net_folder))
    net = weights.build(32)
    store = open_images(make_shapes(8, side=40, colour=True))
    asked = []
    net.register_forward_hook(lambda *args: asked.append(1))

    def features(**changes):
        asked.clear()
        compute = Compute(torch.device("cpu"), **changes)
        return kept_features(net, store, weights.preprocessing(32), compute), len(asked)

    first, calls = features()
    assert calls == 1
    again, calls = features()
    assert calls == 0 and torch.equal(first, again)
    assert features(dtype=torch.bfloat16)[1] == 1
    changed = make_shapes(8, side=40, colour=True)
    changed[5, 3, 3, 0] ^= 1
    store = open_images(changed)
    assert features()[1] == 1
    with torch.no_grad():
        next(net.parameters()).mul_(1.5)
    assert features()[1] == 1


def test_what_is_kept_harms_no_fit_and_no_file(
    net_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A damaged file is made again, what cannot be written is not kept, others' are left alone."""
    monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path / "cache"))
    weights = find_weights(str(net_folder))
    net, compute = weights.build(32), Compute(torch.device("cpu"))
    store = open_images(make_shapes(8, side=40, colour=True))

    def features():
        return kept_features(net, store, weights.preprocessing(32), compute)

    first = features()
    folder = cache_folder() / "features"
    (kept,) = folder.glob("*.npy")
    whole = kept.read_bytes()
    for damaged in (whole[:-9], whole[:20], b""):
        kept.write_bytes(damaged)
        assert torch.equal(features(), first) and kept.read_bytes() == whole
    mine = folder / "my-embeddings.npy"
    mine.write_bytes(whole)
    os.utime(mine, (0, 0))
    older = folder / f"{'a' * 32}.npy"
    older.write_bytes(whole)
    os.utime(older, (0, 0))
    monkeypatch.setattr("deepcluster.backbones.features.KEPT_BYTES", len(whole))
    kept.unlink()
    features()
    assert mine.exists() and kept.exists() and not older.exists()
    shutil.rmtree(folder)
    folder.write_text("a file where the folder would be")
    assert torch.equal(features(), first)


def test_pace_is_found_in_the_arithmetic_that_is_asked_for(net_folder: Path):
    net = find_weights(str(net_folder)).build(32)
    speed = find_speed(net, channels=3, size=32, device=torch.device("cpu"), dtype="float32")
    assert speed.dtype == torch.float32 and speed.batch_size in (32, 128) and speed.seconds > 0


@pytest.mark.parametrize("short", [True, False])
def test_a_trial_is_short_for_a_slow_net_and_for_a_slow_arithmetic(
    monkeypatch: pytest.MonkeyPatch, short: bool
):
    """A made-up machine: an image takes a fifth of a second, in bfloat16 a half or ten times it."""
    now, batches = 0.0, []

    class Net(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            nonlocal now
            half = torch.is_autocast_enabled("cpu")
            now += len(images) * 0.2 * ((0.5 if short else 10) if half else 1)
            batches.append(len(images))
            return images.flatten(1)

    monkeypatch.setattr("deepcluster.backbones.features.fast_bfloat16", lambda device: short)
    monkeypatch.setattr("deepcluster.backbones.features.time.perf_counter", lambda: now)
    speed = find_speed(Net(), channels=3, size=8, device=torch.device("cpu"))
    assert speed.dtype == (torch.bfloat16 if short else torch.float32) and speed.batch_size == 8
    assert speed.seconds == pytest.approx(0.1 if short else 0.2) and now < 6
    assert set(batches) == {8}


def test_weights_describe_themselves_where_nothing_is_said(tmp_path: Path):
    bare = Weights("x", "resnet10t", None, 3, 32, (0.5,) * 3, (0.5,) * 3)
    assert "licence unknown" in bare.terms


def test_a_hub_that_cannot_be_reached_says_what_to_bring(monkeypatch: pytest.MonkeyPatch):
    def offline(*args):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(ConfigError, match=r"no route to host.*--weights FILE\.safetensors"):
        find_weights("resnet18").fetch()
