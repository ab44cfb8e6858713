"""DeepCluster-v2: what its re-implementations got wrong must be right here."""

import math

import pytest
import torch
from torch import nn

from deepcluster.config import Config, override
from deepcluster.images.store import ImageStore
from deepcluster.methods.deepcluster_v2 import DeepClusterV2
from deepcluster.training.loop import fit
from deepcluster.training.resolve import resolve


class Flat(nn.Module):
    """A backbone whose features are the pixels."""

    num_features = 16

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def build(n: int, **settings: object) -> DeepClusterV2:
    values = {"prototypes": 6, "heads": 3, "dimensions": 8, **settings}
    torch.manual_seed(0)
    names = {f"deepcluster_v2.{name}": value for name, value in values.items()}
    return DeepClusterV2(override(Config(), {"epochs": 3, **names}), Flat(), n)


def test_the_first_epoch_trains_on_labels_of_all_images() -> None:
    method = build(60)
    features = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(method.groups(), lr=0.1)
    method.eval()
    snapshot = method.start_epoch(0, lambda: features, optimizer, torch.Generator().manual_seed(0))
    assert snapshot is not None
    for head in range(3):
        assert torch.bincount(method.labels[head], minlength=6).min() > 0  # none empty, none left
    lengths = method.centroids.norm(dim=2)
    assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-5)
    # with the views the bank was filled from, every embedding is nearest its own centroid
    images = features.view(60, 1, 4, 4)
    loss = method.loss([images, images], torch.arange(60))
    assert loss.item() < math.log(6)
    method.train()
    loss = method.loss([images, images], torch.arange(60))
    loss.backward()
    assert method.projector[0].weight.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert not method.centroids.requires_grad


def test_only_large_views_fill_the_bank() -> None:
    method = build(10, small_views=1).eval()
    images = torch.randn(10, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    method.loss([images, 2 * images, 0 * images], torch.arange(10))
    with torch.no_grad():
        expected = nn.functional.normalize(method.projector((2 * images).flatten(1)))
    assert torch.equal(method.bank[1], expected.half())


@pytest.mark.parametrize("small_views", [0, 2])
def test_multi_crop_changes_the_fit(small_views: int, tiny: Config, shapes: ImageStore) -> None:
    values = {"method": "deepcluster-v2", "deepcluster_v2.small_views": small_views}
    config = resolve(override(tiny, values), n=len(shapes), size=shapes.size, channels=1)
    losses = [line["loss"] for line in fit(shapes, config).history]
    plain = resolve(override(tiny, {"method": "deepcluster-v2"}), n=96, size=16, channels=1)
    assert ([line["loss"] for line in fit(shapes, plain).history] == losses) == (small_views == 0)
