from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import make_circles, make_moons
from sklearn.metrics import roc_auc_score
from torch.nn.functional import normalize

from deepcluster.clustering.choose import _modularity, choose_clusters, gap
from deepcluster.clustering.graph import between_clusters


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def groups(sizes: list[int], spread: float = 0.1, d: int = 16) -> torch.Tensor:
    """Rows around as many directions as there are sizes."""
    centers = torch.randn(len(sizes), d, generator=seeded(1))
    x = normalize(centers, dim=1).repeat_interleave(torch.tensor(sizes), 0)
    return normalize(x + spread * torch.randn(x.shape, generator=seeded(2)), dim=1)


@pytest.mark.parametrize("sizes", [[150] * 2, [100] * 4, [60] * 8, [250, 150, 100, 100]])
def test_finds_the_number_of_groups(sizes: list[int]) -> None:
    choice = choose_clusters(groups(sizes), largest=len(sizes) + 3, generator=seeded())
    assert choice.k == len(sizes)
    assert list(choice.scores) == list(range(2, len(sizes) + 4))
    assert choice.scores[choice.k] == max(choice.scores.values())


def test_the_same_generator_chooses_the_same() -> None:
    x = groups([40] * 3, spread=0.4)
    first, second = (choose_clusters(x, largest=5, generator=seeded(3)) for _ in range(2))
    assert first == second


def test_modularity_by_hand() -> None:
    # Two pairs of nodes: 8 ends of edges within each, and one edge from pair to pair.
    weights = np.array([[0, 4, 1, 0], [4, 0, 0, 0], [1, 0, 0, 4], [0, 0, 4, 0]], float)
    assert _modularity(between_clusters(weights, np.array([0, 0, 1, 1]))) == pytest.approx(
        16 / 18 - 1 / 2
    )
    assert _modularity(between_clusters(weights, np.zeros(4, int))) == pytest.approx(0)


def test_gap_is_the_roc_area_within_clusters() -> None:
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 3, 400)
    beside = np.where(rng.random((400, 5)) < 0.9, cluster[:, None], rng.integers(0, 3, (400, 5)))
    away = rng.random(400)
    between = (beside != cluster[:, None]).any(1)
    areas = [roc_auc_score(between[cluster == c], away[cluster == c]) for c in range(3)]
    expected = 2 * np.average(areas, weights=np.bincount(cluster)) - 1
    assert gap(cluster, beside, away) == pytest.approx(expected)
    assert gap(cluster, cluster[:, None], away) == 1  # nothing lies between
    assert gap(cluster, beside, np.ones(400)) == pytest.approx(0)  # ties count half
    assert gap(cluster, (cluster[:, None] + 1) % 3, away) == 0  # everything does


def shapes(kind: str) -> torch.Tensor:
    """Two half moons or two rings in the plane."""
    make = {
        "moons": partial(make_moons, noise=0.06),
        "rings": partial(make_circles, noise=0.04, factor=0.5),
    }[kind]
    return torch.from_numpy(make(1500, random_state=0)[0]).float()


@pytest.mark.parametrize("kind", ["moons", "rings"])
def test_a_long_group_is_one(kind: str) -> None:
    assert choose_clusters(shapes(kind), largest=8, generator=seeded()).k == 2


@pytest.mark.parametrize("sizes", [[900, 60, 40], [600, 200, 60, 40]])
def test_rare_groups_count(sizes: list[int]) -> None:
    assert choose_clusters(groups(sizes), largest=10, generator=seeded()).k == len(sizes)


def test_few_rows_and_equal_rows() -> None:
    two = torch.eye(2).repeat(30, 1)
    assert choose_clusters(two, largest=10, generator=seeded()).k == 2
    assert choose_clusters(torch.ones(9, 2), largest=5, generator=seeded()).k == 1
    assert choose_clusters(torch.ones(1, 2), largest=5, generator=seeded()).scores == {}
    with pytest.raises(ValueError, match="at least 2"):
        choose_clusters(two, largest=1, generator=seeded())
