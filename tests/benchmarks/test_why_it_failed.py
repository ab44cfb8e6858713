"""The accidents that the benchmark repeats are the ones it says they are."""

import importlib
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from deepcluster.backbones.preprocessing import Preprocessing
from deepcluster.config import Config, override
from deepcluster.methods.deepcluster import DeepCluster

N, K, BATCH = 2560, 10, 256


@pytest.fixture(scope="module")
def why() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        return importlib.import_module("why_it_failed")


class Zeros(nn.Module):
    num_features = 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.new_zeros(len(images), 4)


def build(method: type[DeepCluster], sizes: np.ndarray) -> DeepCluster:
    settings = {"deepcluster.pseudo_clusters": K, "deepcluster.balance": "sampler"}
    made = method(override(Config(), settings), Zeros(), N)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(K), sizes))
    made.labels.copy_(torch.from_numpy(labels))
    return made


def test_scaled_loss_is_k_over_b_of_the_right_one(why: ModuleType) -> None:
    images, index = [torch.zeros(BATCH, 3, 4, 4)], torch.arange(BATCH)
    for sizes in (np.full(K, N // K), np.array([N - 9 * 128] + [128] * 9)):
        right = build(DeepCluster, sizes).loss(images, index)
        scaled = build(why.ScaledLoss, sizes).loss(images, index)
        assert right.item() == pytest.approx(math.log(K))  # 2.303
        assert scaled.item() == pytest.approx(math.log(K) * K / BATCH, rel=1e-4)  # .0899


def test_misread_sampler_draws_as_unevenly_as_the_clusters_are(why: ModuleType) -> None:
    sizes = np.array([N - 9 * 128] + [128] * 9)
    shares = {}
    for name, method in (("right", DeepCluster), ("misread", why.MisreadSampler)):
        made = build(method, sizes)
        order = made.order(torch.Generator().manual_seed(0))
        shares[name] = np.bincount(made.labels[order].numpy(), minlength=K) / N
    assert shares["right"] == pytest.approx(0.1, abs=0.001)
    assert shares["misread"] == pytest.approx(sizes / N, abs=0.03)


@pytest.mark.parametrize(
    ("collapsed", "wide", "features", "positions"),
    [(True, False, 128, 1), (False, False, 256, 4), (False, True, 768, 4)],
)
def test_map_of_the_port_is_one_by_one(
    why: ModuleType, collapsed: bool, wide: bool, features: int, positions: int
) -> None:
    preprocessing = Preprocessing(32, (0.5,) * 3, (0.25,) * 3)
    net = why.Net(why.Shape(collapsed=collapsed, wide=wide), preprocessing).eval()
    out = net(torch.zeros(2, 3, 32, 32))
    convolutions = [module for module in net.maps if isinstance(module, nn.Conv2d)]
    assert out.shape == (2, features)
    assert out.shape[1] == convolutions[-1].out_channels * positions
