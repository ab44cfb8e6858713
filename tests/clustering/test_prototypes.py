import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import normalize

from deepcluster.clustering.graph import cluster_graph
from deepcluster.clustering.prototypes import Prototypes


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_assignment_by_hand() -> None:
    centers = torch.tensor([[0.0, 0], [10, 0], [4, 0]])
    prototypes = Prototypes(centers, torch.tensor([0, 0, 1]))
    labels, distance, confidence = prototypes.assign(
        torch.tensor([[1.0, 0], [9, 0], [4, 0], [7, 0]])
    )
    assert labels[:3].tolist() == [0, 0, 1]
    assert distance.tolist() == pytest.approx([1, 1, 0, 3], abs=1e-5)
    assert confidence.tolist() == pytest.approx([1 - 1 / 3, 1 - 1 / 5, 1, 0], abs=1e-5)


def test_a_stray_centre_draws_nothing_over() -> None:
    centers = torch.tensor([0.0] * 7 + [4.2] + [5.0] * 8)[:, None]  # the two nearest of 8 count
    prototypes = Prototypes(centers, torch.tensor([0] * 8 + [1] * 8))
    labels, distance, confidence = prototypes.assign(torch.tensor([[4.5]]))
    assert labels.tolist() == [1]
    assert distance.tolist() == pytest.approx([0.5], abs=1e-5)
    assert confidence.tolist() == pytest.approx([1 - 0.5 / 2.4], abs=1e-5)


@pytest.mark.parametrize(
    ("size", "several"), [(1, 1), (4, 1), (5, 2), (8, 2), (16, 4), (17, 5), (300, 5)]
)
def test_a_quarter_of_the_centres_says_how_far(size: int, several: int) -> None:
    away = torch.arange(1.0, size + 1)
    prototypes = Prototypes(away[:, None], torch.full((size,), 3))
    labels, distance, _ = prototypes.assign(torch.zeros(1, 1))
    assert labels.tolist() == [3]
    assert distance.tolist() == pytest.approx([away[:several].mean().item()], rel=1e-5)


def test_distances_far_from_the_origin_are_exact() -> None:
    centers = 1000 + torch.randn(60, 3, generator=seeded())
    prototypes = Prototypes(centers, torch.arange(60) % 3)
    x = 1000 + torch.randn(40, 3, generator=seeded(1))
    labels, distance, _ = prototypes.assign(x)
    by_hand = torch.cdist(x.double(), centers.double()).view(40, 20, 3)
    expected = by_hand.topk(5, dim=1, largest=False).values.mean(1).min(1)
    np.testing.assert_allclose(distance, expected.values, atol=1e-3)
    assert labels.tolist() == expected.indices.tolist()


def test_one_cluster_is_certain_and_no_rows_are_fine() -> None:
    prototypes = Prototypes(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
    assert prototypes.assign(torch.ones(4, 3))[2].tolist() == [1] * 4
    assert [len(part) for part in prototypes.assign(torch.ones(0, 3))] == [0, 0, 0]


def test_clusters_at_the_same_place_give_no_confidence() -> None:
    prototypes = Prototypes(torch.zeros(2, 3), torch.arange(2))
    assert prototypes.assign(torch.zeros(1, 3))[2].tolist() == [0]
    centers = torch.randn(50, 8, generator=seeded())
    prototypes = Prototypes(centers.repeat(2, 1), torch.arange(100))
    _, distance, confidence = prototypes.assign(centers)
    assert distance.tolist() == confidence.tolist() == [0] * 50


def test_other_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(n, 3\) features"):
        Prototypes(torch.zeros(2, 3), torch.arange(2)).assign(torch.zeros(5, 4))


def test_confident_images_are_right_more_often() -> None:
    data = load_digits()
    x, truth = normalize(torch.from_numpy(data.data).float(), dim=1), data.target
    found, _, confidence = cluster_graph(x, 20, generator=seeded()).assign(x)
    assert 0 <= float(confidence.min()) <= float(confidence.max()) <= 1
    table = np.zeros((20, 10))
    np.add.at(table, (found.numpy(), truth), 1)
    right = table.argmax(1)[found.numpy()] == truth
    order = confidence.argsort().numpy()
    assert right[order[900:]].mean() > right[order[:900]].mean() + 0.015


def test_an_odd_image_with_a_centre_of_its_own_is_no_good_example() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(10, 2, generator=generator) * 0.1
    odd = torch.tensor([[2.0, 0.0]])  # belongs to the left, lies towards the right
    right = torch.tensor([[5.0, 0.0]]) + torch.randn(10, 2, generator=generator) * 0.1
    cluster = torch.tensor([0] * 11 + [1] * 10)
    prototypes = Prototypes(torch.cat([left, odd, right]), cluster)
    labels, distance, confidence = prototypes.assign(torch.cat([odd, left.mean(0, keepdim=True)]))
    assert labels.tolist() == [0, 0]
    assert distance[0] > 5 * distance[1]
    assert confidence[0] < 0.6 < 0.9 < confidence[1]


def test_clusters_of_any_sizes_are_measured_as_one_by_one() -> None:
    sizes = torch.tensor([1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 40])
    cluster = torch.arange(12).repeat_interleave(sizes)[
        torch.randperm(int(sizes.sum()), generator=seeded())
    ]
    centers, x = torch.randn(len(cluster), 4, generator=seeded(1)), torch.randn(300, 4)
    apart = far(x, centers, cluster)
    labels, distance, confidence = Prototypes(centers, cluster + 5).assign(x)
    assert torch.equal(labels, apart.argmin(1) + 5)
    best = apart.topk(2, largest=False).values
    np.testing.assert_allclose(distance, best[:, 0], atol=1e-5)
    np.testing.assert_allclose(confidence, 1 - best[:, 0] / best[:, 1], atol=1e-5)


def far(x: torch.Tensor, centers: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Distance to each group of centres, ``(n, g)``."""
    gaps = torch.cdist(x, centers)
    return torch.stack(
        [
            own.topk(min(5, -(-own.shape[1] // 4)), largest=False).values.mean(1)
            for own in (gaps[:, groups == g] for g in range(int(groups.max()) + 1))
        ],
        dim=1,
    )


def test_an_image_keeps_its_part_whatever_is_merged_or_split() -> None:
    part = torch.arange(12).repeat_interleave(torch.arange(3, 15))
    cluster = part // 3  # four clusters of three parts each
    centers = torch.randn(len(part), 3, generator=seeded(1))
    x = torch.randn(500, 3, generator=seeded(2))
    prototypes = Prototypes(centers, cluster, part)
    labels = prototypes.assign(x)[0]
    found = prototypes.parts_of(x)
    assert torch.equal(labels, far(x, centers, cluster).argmin(1))
    assert torch.equal(found // 3, labels)
    inside = far(x, centers, part).masked_fill(torch.arange(12) // 3 != labels[:, None], torch.inf)
    assert torch.equal(found, inside.argmin(1))
    for groups in (torch.arange(12), torch.arange(12) // 6, torch.tensor([0, 0, 1] * 4)):
        again = prototypes.regroup(groups)
        assert torch.equal(again.assign(x)[0], groups[found])
        assert torch.equal(again.parts_of(x), found)
        confidence = again.assign(x)[2]
        assert 0 <= float(confidence.min()) < float(confidence.max()) <= 1
    union = prototypes.regroup(torch.arange(12) // 6)
    nearest = far(x, centers, cluster).view(500, 2, 2).amin(2)
    np.testing.assert_allclose(union.assign(x)[1], nearest.amin(1), atol=1e-5)
    back = union.regroup(torch.arange(12) // 3)
    assert torch.equal(back.assign(x)[0], labels)
