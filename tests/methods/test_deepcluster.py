"""DeepCluster's own steps, each against a formula."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from deepcluster.config import Config, override
from deepcluster.methods.deepcluster import DeepCluster, inverse_size_weights, uniform_order


class Means(nn.Module):
    """A backbone whose features are eight numbers of the image."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(1))


def build(n: int = 200, k: int = 5, **settings: object) -> DeepCluster:
    values = {
        "deepcluster.pca": 256,
        "deepcluster.pseudo_clusters": k,
        "deepcluster.head_lr": 0.05,
        "train.lr": 0.05,
    }
    values |= {f"deepcluster.{name}": value for name, value in settings.items()}
    torch.manual_seed(0)
    return DeepCluster(override(Config(), values), Means(), n)


def skewed(n: int, k: int) -> torch.Tensor:
    """Labels of clusters as unequal as real ones: sizes from Dirichlet(0.5), none empty."""
    rng = np.random.default_rng(0)
    sizes = rng.multinomial(n - k, rng.dirichlet([0.5] * k)) + 1
    return torch.from_numpy(rng.permutation(np.repeat(np.arange(k), sizes)))


def epoch(method: DeepCluster, features: torch.Tensor, number: int = 0) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(method.groups(), lr=0.05, momentum=0.9)
    method.start_epoch(number, lambda: features, optimizer, torch.Generator().manual_seed(number))
    return optimizer


def test_sampler_is_flat_on_skewed_clusters() -> None:
    labels = skewed(5000, 20)
    order = uniform_order(labels, torch.Generator().manual_seed(0))
    seen = torch.bincount(labels[order], minlength=20)
    assert seen.max() - seen.min() <= 1
    # and any stretch of it is flat up to chance, so batches are
    first = torch.bincount(labels[order[:1000]], minlength=20).numpy()
    assert chisquare(first).pvalue > 1e-3
    assert chisquare(torch.bincount(labels, minlength=20).numpy()).pvalue < 1e-9


def test_sampler_takes_all_of_a_small_cluster_equally_often() -> None:
    labels = torch.tensor([0] * 96 + [1] * 4)
    order = uniform_order(labels, torch.Generator().manual_seed(0))
    times = torch.bincount(order, minlength=100)
    assert times[:96].max() == 1  # no repetition where there are enough
    assert set(times[96:].tolist()) <= {12, 13}
    assert len(order) == 100


def test_sampler_skips_labels_that_do_not_occur() -> None:
    labels = torch.tensor([0, 0, 7, 7])
    order = uniform_order(labels, torch.Generator().manual_seed(0))
    assert sorted(labels[order].tolist()) == [0, 0, 7, 7]


def test_pairs_of_image_and_label_are_right() -> None:
    """Each drawn index carries the label of that image, in the order of the images."""
    method = build(n=200, k=2, balance="sampler", pca=0)
    truth = torch.arange(200) % 7 == 0  # one in seven
    features = torch.where(truth[:, None], 1.0, -1.0) + 0.01 * torch.randn(200, 8)
    epoch(method, features)
    assert len(set(method.labels[truth].tolist())) == 1
    assert len(set(method.labels[~truth].tolist())) == 1
    order = method.order(torch.Generator().manual_seed(0))
    assert truth[order].float().mean() == pytest.approx(0.5, abs=0.01)
    logits = torch.zeros(200, 2)
    logits[torch.arange(200), method.labels] = 20.0
    method._scores = lambda features: logits[order]  # type: ignore[method-assign]
    assert float(method.loss([torch.zeros(200, 1, 4, 4)], order)) < 1e-6


@pytest.mark.parametrize("balance", ["sampler", "weights", "none"])
def test_first_loss_is_ln_k(balance: str) -> None:
    method = build(n=500, k=10, balance=balance)
    epoch(method, torch.randn(500, 8, generator=torch.Generator().manual_seed(1)) ** 3)
    images = torch.randn(500, 1, 4, 4)
    loss = method.loss([images], torch.arange(500)).item()
    assert loss == pytest.approx(math.log(10), rel=0.01)
    half = method.loss([images[:50]], torch.arange(50)).item()  # whatever is in the batch
    assert half == pytest.approx(math.log(10), rel=0.01)


def test_weights_by_hand() -> None:
    weights = inverse_size_weights(torch.tensor([0, 0, 0, 2]), 3)
    # two clusters occur: 4 / (2 * 3), none, 4 / (2 * 1); the mean over the images is one
    assert weights.tolist() == pytest.approx([2 / 3, 0, 2])
    assert float(weights[torch.tensor([0, 0, 0, 2])].mean()) == pytest.approx(1)


def test_head_is_drawn_anew_with_its_momentum() -> None:
    features = torch.randn(200, 8)
    method = build(head_momentum=0.9)
    optimizer = epoch(method, features)
    loss = method.loss([torch.randn(200, 1, 4, 4)], torch.arange(200))
    loss.backward()
    optimizer.step()
    before = method.head.weight.clone()
    assert method.head.weight in optimizer.state
    method.start_epoch(1, lambda: features, optimizer, torch.Generator().manual_seed(1))
    assert not torch.equal(method.head.weight, before)
    assert method.head.weight not in optimizer.state
    assert method.backbone.linear.weight in optimizer.state
    assert method.head.weight.std().item() == pytest.approx(0.01, rel=0.3)
    assert not method.head.bias.any()


def test_head_can_stay() -> None:
    method = build(reset_head=False)
    before = method.head.weight.clone()
    epoch(method, torch.randn(200, 8))
    assert torch.equal(method.head.weight, before)


def test_reclusters_every_n_epochs() -> None:
    method = build(recluster_every=3)

    def refuse() -> torch.Tensor:
        raise AssertionError("no feature pass is due")

    optimizer = epoch(method, torch.randn(200, 8))
    assert method.start_epoch(2, refuse, optimizer, torch.Generator()) is None
    found = method.start_epoch(3, lambda: torch.randn(200, 8), optimizer, torch.Generator())
    assert found is not None
    assert found.clusters == 5


def test_groups_have_their_own_rates() -> None:
    trunk, head = build(head_lr=0.5).groups()
    assert "lr" not in trunk
    assert (head["lr"], head["momentum"]) == (0.5, 0.0)


def test_fewer_images_between_two_clusterings() -> None:
    method = build(n=200, reassign=0.3)
    assert len(method.order(torch.Generator().manual_seed(0))) == 60


def test_a_head_of_another_size_is_one_that_the_optimizer_holds() -> None:
    method = build(pseudo_labels="pic")
    optimizer = torch.optim.SGD(method.groups(), lr=0.05)
    method.adopt({"head.weight": torch.zeros(7, 8)}, optimizer)
    assert method.head.weight.shape == (7, 8) and method.class_weights.shape == (7,)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in method.parameters()} == held
