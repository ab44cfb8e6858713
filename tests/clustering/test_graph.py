import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, make_circles, make_moons
from sklearn.metrics import normalized_mutual_info_score as nmi
from torch.nn.functional import normalize

from deepcluster.clustering import graph
from deepcluster.clustering.graph import Prototypes, cluster_graph, consensus


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels_of(x: torch.Tensor, k: int, seed: int = 0) -> torch.Tensor:
    return cluster_graph(x, k, generator=seeded(seed)).assign(x)[0]


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, np.ndarray]:
    data = load_digits()
    return normalize(torch.from_numpy(data.data).float(), dim=1), data.target


# -- clusters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["moons", "rings"])
@pytest.mark.parametrize("seed", [0, 1])
def test_shapes_that_k_means_cuts_are_found_whole(make: str, seed: int) -> None:
    if make == "moons":
        points, truth = make_moons(1000, noise=0.06, random_state=seed)
    else:
        points, truth = make_circles(1000, noise=0.04, factor=0.5, random_state=seed)
    cut = KMeans(2, n_init=3, random_state=0).fit_predict(points)
    assert nmi(truth, cut) < 0.3
    found = labels_of(torch.from_numpy(points), 2, seed)
    assert nmi(truth, found.numpy()) > 0.95


def test_digits_are_told_apart_better_than_by_k_means(
    digits: tuple[torch.Tensor, np.ndarray],
) -> None:
    x, truth = digits
    plain = KMeans(10, n_init=3, random_state=0).fit_predict(x.numpy())
    assert nmi(truth, labels_of(x, 10).numpy()) > nmi(truth, plain) + 0.08


def test_groups_of_near_duplicates_are_put_with_their_like(
    digits: tuple[torch.Tensor, np.ndarray],
) -> None:
    x, truth = digits
    rows = torch.randperm(len(x), generator=seeded())[:150].repeat_interleave(30)
    copies = x[rows] + 0.01 * torch.randn(len(rows), 64, generator=seeded())
    assert nmi(truth[rows], labels_of(copies, 10).numpy()) > 0.65


@pytest.mark.parametrize("first", [0, 1, 2])
def test_cuts_agree_on_what_most_of_them_say(first: int) -> None:
    places = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]])
    said = [[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]]  # numbers mean nothing
    cuts = [Prototypes(places, torch.tensor(clusters)) for clusters in said]
    agreed = consensus([cuts[first], *cuts[:first], *cuts[first + 1 :]], torch.ones(6), 2)
    assert agreed.cluster.tolist() in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
    assert torch.equal(agreed.centers, places)


def test_cuts_that_nearly_agree_keep_their_clusters() -> None:
    """Shares of few cuts are mostly ties; a tree of such ties is where libraries stumble."""
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 9, 700)
    places = torch.from_numpy(rng.normal(size=(700, 8)) + 9 * np.eye(9)[groups][:, :8]).float()
    cuts = []
    for _ in range(5):
        said = np.where(rng.random(700) < 0.08, rng.integers(0, 9, 700), groups)
        cuts.append(Prototypes(places, torch.from_numpy(said)))
    agreed = consensus(cuts, torch.ones(700), 9).cluster.numpy()
    assert nmi(agreed, groups) == pytest.approx(1)


def test_a_landmark_of_many_rows_is_no_crumb() -> None:
    places = torch.cat([torch.arange(20.0), 40 + torch.arange(79.0), torch.tensor([200.0])])[
        :, None
    ]
    said = torch.tensor([0] * 20 + [1] * 40 + [2] * 39 + [3])  # four groups: one must go
    cuts = [Prototypes(places, said)] * 2
    rows = torch.ones(100)
    agreed = consensus(cuts, rows, 3).cluster
    assert agreed.bincount().tolist() == [20, 40, 40], "the crumb goes to the nearest"
    rows[-1] = 100
    agreed = consensus(cuts, rows, 3).cluster
    assert agreed.bincount().tolist() == [20, 79, 1]


def test_cuts_that_agree_swing_less(
    digits: tuple[torch.Tensor, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def likeness(cuts: int) -> float:
        monkeypatch.setattr(graph, "CUTS", cuts)
        found = [labels_of(digits[0], 10, seed).numpy() for seed in range(4)]
        return float(np.mean([nmi(a, b) for a, b in itertools.combinations(found, 2)]))

    assert likeness(5) > likeness(1) + 0.005


def test_same_seed_same_prototypes(digits: tuple[torch.Tensor, np.ndarray]) -> None:
    first, second = (cluster_graph(digits[0], 10, generator=seeded(3)) for _ in range(2))
    assert first.centers.equal(second.centers)
    assert first.cluster.equal(second.cluster)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (10, 1), (10, 3), (10, 10), (300, 7), (300, 150)])
def test_k_is_kept(n: int, k: int) -> None:
    x = normalize(torch.randn(n, 5, generator=seeded()), dim=1)
    assert set(labels_of(x, k).tolist()) == set(range(k))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_k_is_kept_on_pieces_without_a_path_between_them(k: int) -> None:
    x = torch.randn(300, 3, generator=seeded()) + 100 * torch.arange(3).repeat(100)[:, None]
    found = labels_of(x, k)
    assert set(found.tolist()) == set(range(k))
    if k == 3:
        assert nmi(np.arange(300) % 3, found.numpy()) == pytest.approx(1)


def test_k_is_kept_when_most_rows_are_duplicates() -> None:
    x = torch.zeros(3000, 2)
    x[:4] = torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]])
    assert set(labels_of(x, 5).tolist()) == set(range(5))


def test_fewer_different_rows_than_k_leave_clusters_empty() -> None:
    x = torch.tensor([[0.0, 1], [1, 0]]).repeat(20, 1)
    found = labels_of(x, 3)
    assert set(found.tolist()) == {0, 1}
    assert found[0::2].unique().numel() == found[1::2].unique().numel() == 1


def test_there_are_no_crumbs_on_data_without_clusters() -> None:
    x = normalize(torch.randn(4000, 20, generator=seeded()), dim=1)
    assert np.bincount(labels_of(x, 10)).min() > 4000 / 10 / 20 / 2


def test_fewer_queries_than_rows_find_the_same_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "QUERIES", 300)
    x, truth = make_moons(1000, noise=0.05, random_state=0)
    assert nmi(truth, labels_of(torch.from_numpy(x), 2).numpy()) > 0.95


def test_what_cannot_be_clustered_is_refused() -> None:
    x = torch.zeros(5, 2)
    for k in (0, 6):
        with pytest.raises(ValueError, match="k must be from 1 to n"):
            cluster_graph(x, k, generator=seeded())
    with pytest.raises(ValueError, match="needs at least 1"):
        cluster_graph(x, 2, neighbours=0, generator=seeded())
    with pytest.raises(ValueError, match="n at least 1"):
        cluster_graph(x[:0], 1, generator=seeded())
    x[3, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 5 rows"):
        cluster_graph(x, 2, generator=seeded())


# -- prototypes -------------------------------------------------------------------------------


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


def test_confident_images_are_right_more_often(digits: tuple[torch.Tensor, np.ndarray]) -> None:
    x, truth = digits
    found, _, confidence = cluster_graph(x, 20, generator=seeded()).assign(x)
    assert 0 <= float(confidence.min()) <= float(confidence.max()) <= 1
    table = np.zeros((20, 10))
    np.add.at(table, (found.numpy(), truth), 1)
    right = table.argmax(1)[found.numpy()] == truth
    order = confidence.argsort().numpy()
    assert right[order[900:]].mean() > right[order[:900]].mean() + 0.03


# -- merging and moving -----------------------------------------------------------------------


def test_a_move_that_would_leave_a_crumb_is_not_made() -> None:
    # Nodes 0, 1 and 2 belong together; 3 is hardly linked to anything, 4 and 5 are a pair.
    weights = np.zeros((6, 6))
    for i, j, weight in [(0, 1, 9), (0, 2, 9), (1, 2, 9), (2, 3, 0.1), (4, 5, 20), (3, 4, 0.05)]:
        weights[i, j] = weights[j, i] = weight
    cluster = np.array([0, 0, 1, 1, 2, 2])
    assert graph._refine(weights, cluster).tolist() == cluster.tolist()
    weights[3, 3] = 9  # now what 2 leaves behind is a cluster of its own
    assert graph._refine(weights, cluster).tolist() == [0, 0, 0, 1, 2, 2]


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
