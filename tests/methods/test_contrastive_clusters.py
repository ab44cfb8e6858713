"""The default method's own steps, each against a formula, and the digits it must beat."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from deepcluster.config import Config, override
from deepcluster.images.store import open_images
from deepcluster.methods import contrastive_clusters
from deepcluster.methods.contrastive_clusters import (
    ContrastiveClusters,
    match_labels,
    nt_xent,
    small_to_large,
)
from deepcluster.progress import Progress
from deepcluster.training.conclude import compare_with_pixels
from deepcluster.training.loop import fit
from deepcluster.training.resolve import resolve


class Flat(nn.Module):
    """A backbone whose features are the pixels."""

    num_features = 16

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def build(n: int, **settings: object) -> ContrastiveClusters:
    settings = {"small_views": 0} | settings
    values = {f"contrastive_clusters.{name}": value for name, value in settings.items()}
    torch.manual_seed(0)
    config = override(Config(), {"clusters": 3, "epochs": 10, **values})
    return ContrastiveClusters(config, Flat(), n)


def test_nt_xent_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    z = nn.functional.normalize(torch.randn(6, 4, generator=generator)).double()
    expected = 0.0
    for i in range(6):
        other = (i + 3) % 6
        scores = [math.exp(float(z[i] @ z[j]) / 0.2) for j in range(6) if j != i]
        expected -= math.log(math.exp(float(z[i] @ z[other]) / 0.2) / sum(scores)) / 6
    assert nt_xent(z, 0.2).item() == pytest.approx(expected, rel=1e-6)


def test_small_views_find_the_large_ones_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    views = nn.functional.normalize(torch.randn(6, 4, generator=generator)).double()
    small = nn.functional.normalize(torch.randn(12, 4, generator=generator)).double()  # 4 of each
    expected = 0.0
    for i, row in enumerate(small):
        scores = [math.exp(float(row @ view) / 0.2) for view in views]
        for own in (i % 3, i % 3 + 3):
            expected -= math.log(scores[own] / sum(scores)) / 24
    assert small_to_large(small, views, 0.2).item() == pytest.approx(expected, rel=1e-6)


def test_small_views_count_as_many_as_they_are() -> None:
    method = build(30, small_views=4).eval()
    views = list(torch.randn(6, 30, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    index = torch.arange(30)
    found = method.loss(views, index)
    z = nn.functional.normalize(method.projector(torch.cat(views).flatten(1)))
    parts = nt_xent(z[:60], 0.2), small_to_large(z[60:], z[:60].detach(), 0.2)
    assert found.item() == pytest.approx((2 * parts[0] + 4 * parts[1]).item() / 6, rel=1e-5)
    (2 * parts[0] + 4 * parts[1]).div(6).backward()
    weight = method.projector[0].weight
    assert weight.grad is not None
    expected, weight.grad = weight.grad, None
    found.backward()
    assert torch.allclose(weight.grad, expected, atol=1e-6)  # none into what is to be found


@pytest.mark.parametrize(
    ("values", "size", "channels", "expected"),
    [
        ({"n": 3999}, 32, 3, 0),
        ({}, 32, 3, 4),
        ({"backbone": "resnet18-small"}, 96, 3, 4),
        ({"backbone": "resnet18"}, 96, 3, 0),
        ({"contrastive_clusters.small_views": 2, "backbone": "resnet18"}, 96, 3, 2),
        ({}, 8, 3, 0),
        ({}, 28, 1, 0),
        ({"views.preset": "shape"}, 32, 3, 0),
        ({"method": "deepcluster-v2"}, 32, 3, 0),
    ],
)
def test_photographs_have_small_views(
    values: dict[str, object], size: int, channels: int, expected: int
) -> None:
    values = {"n": 4000, "clusters": 3, "device": "cpu"} | values
    n = values.pop("n")
    assert isinstance(n, int)
    found = resolve(override(Config(), values), n=n, size=size, channels=channels)
    assert found.contrastive_clusters.small_views == expected


def test_labels_keep_their_numbers() -> None:
    before = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    renamed = torch.tensor([2, 2, 0, 0, 1, 1, 0])
    assert match_labels(renamed, before, 3).tolist() == [0, 0, 1, 1, 2, 2, 1]


def test_labels_teach_only_when_it_is_time_and_are_the_images_own() -> None:
    """Three groups of images; from 40 % on, each group has one label, and the head knows it."""
    n = 90
    method = build(n, recluster_every=2)
    optimizer = torch.optim.SGD(method.groups(), lr=0.0)
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(n) % 3
    images = torch.randn(n, 16, generator=generator) * 0.05
    images[torch.arange(n), 5 * group] += 1.0
    views = [images.view(n, 1, 4, 4), images.view(n, 1, 4, 4)]
    for epoch in range(5):
        snapshot = method.start_epoch(epoch, lambda: images, optimizer, generator)
        assert method.labelling == (epoch >= 4)
        assert (snapshot is None) == (epoch == 0)
        order = method.order(generator)
        assert sorted(order.tolist()) == list(range(n))
        for index in order.split(30):
            loss = method.loss([view[index] for view in views], index)
    for k in range(3):
        assert len(set(method.labels[group == k].tolist())) == 1
    assert len(set(method.labels.tolist())) == 3
    with torch.no_grad():
        contrast = build(n).loss([view[index] for view in views], index)
    assert loss.item() > contrast.item()  # the guess is added to the contrast
    head = nn.functional.normalize(method.head.weight)
    answers = (nn.functional.normalize(images) @ head.T).argmax(1)
    assert torch.equal(answers, method.labels)


def test_nothing_is_taught_without_a_cut() -> None:
    """A fit went on from before its epochs became fewer: the bank is not there, nor are labels."""
    n = 90
    method = build(n, recluster_every=2)
    optimizer = torch.optim.SGD(method.groups(), lr=0.0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 16, generator=generator)
    views = [images.view(n, 1, 4, 4), images.view(n, 1, 4, 4)]
    method.feature_bank.copy_(torch.randn(method.feature_bank.shape, generator=generator))
    for labelling in (False, True):
        assert method.reads(4)
        method.start_epoch(4, lambda: images, optimizer, generator)
        assert method.labelling == labelling
        method.loss(views, method.order(generator).sort().values)


def test_every_image_is_in_the_bank_after_an_epoch(tiny: Config) -> None:
    store = open_images(np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8))
    config = resolve(tiny, n=50, size=8, channels=1)  # 32 do not divide 50
    assert config.train.batch_size == 32
    seen: list[int] = []
    original = ContrastiveClusters.loss

    def loss(self: ContrastiveClusters, views: list[torch.Tensor], index: torch.Tensor) -> object:
        seen.extend(index.tolist())
        return original(self, views, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContrastiveClusters, "loss", loss)
        fit(store, config)
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))


def test_figures_are_of_some_images_spread_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive_clusters, "FIGURE_ROWS", 20)
    method = build(90)  # 3 clusters: 30 rows
    assert method.rows.tolist() == list(range(0, 90, 3))
    images = torch.randn(90, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for index in torch.arange(90).split(30):
            method.loss([images[index], images[index]], index)
    expected = nn.functional.normalize(images[::3].flatten(1))
    found = nn.functional.normalize(method.feature_bank[:-1].float())
    assert torch.allclose(found, expected, atol=2e-3)
    optimizer, generator = torch.optim.SGD(method.parameters()), torch.Generator()
    snapshot = method.start_epoch(1, lambda: images, optimizer, generator)
    assert snapshot is not None and snapshot.rows is not None
    assert torch.equal(snapshot.rows, method.rows)
    assert len(snapshot.labels) == len(snapshot.features) == 30


def test_cuts_are_few_however_many_the_epochs() -> None:
    for epochs, every in [(10, 3), (100, 3), (200, 6), (1000, 30)]:
        method = build(30)
        method.epochs = epochs
        assert method.every == every


def digits_nmi(seed: int, **settings: object) -> tuple[float, float]:
    store = open_images("digits")
    config = override(Config(), {"clusters": 10, "seed": seed, "device": "cpu", **settings})
    result = fit(store, resolve(config, n=len(store), size=store.size, channels=store.channels))
    scores = compare_with_pixels(store, result, Progress()).scores
    return scores["fit"]["nmi"], scores["pixels"]["nmi"]


def test_digits_beat_k_means_on_the_pixels() -> None:
    found, pixels = digits_nmi(0, epochs=8)
    assert 0.70 < pixels < 0.78
    assert found > pixels + 0.05


@pytest.mark.slow
def test_digits_reach_their_floor_over_five_seeds() -> None:
    found = [digits_nmi(seed)[0] for seed in range(5)]
    assert np.mean(found) >= 0.90
