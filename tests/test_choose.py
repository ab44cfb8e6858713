import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from deepcluster.choose import _quality, choose_clusters


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def groups(sizes: list[int], spread: float = 0.1, d: int = 16) -> torch.Tensor:
    """Rows around as many directions as there are sizes."""
    centers = torch.randn(len(sizes), d, generator=seeded(1))
    x = normalize(centers, dim=1).repeat_interleave(torch.tensor(sizes), 0)
    return normalize(x + spread * torch.randn(x.shape, generator=seeded(2)), dim=1)


@pytest.mark.parametrize("sizes", [[150] * 2, [100] * 4, [60] * 8, [250, 150, 100, 100]])
def test_finds_the_number_of_groups(sizes: list[int]) -> None:
    choice = choose_clusters(groups(sizes), largest=12, generator=seeded())
    assert choice.k == len(sizes)
    assert list(choice.scores) == list(range(2, 13))
    assert choice.scores[choice.k] == max(choice.scores.values())


def test_the_same_generator_chooses_the_same() -> None:
    x = groups([40] * 3, spread=0.4)
    first, second = (choose_clusters(x, largest=5, generator=seeded(3)) for _ in range(2))
    assert first == second


def test_quality_of_a_cut_by_hand() -> None:
    # Two pairs of nodes, 4 edges' ends within each pair and 1 from one to the other.
    weights = np.array([[0, 4, 1, 0], [4, 0, 0, 0], [1, 0, 0, 4], [0, 0, 4, 0]], float)
    assert _quality(weights, np.array([0, 0, 1, 1])) == pytest.approx(16 / 18 - 1 / 2)
    # One node alone: 5 of 18 ends, all of them going out.
    share = np.array([5, 13]) / 18
    evenness = -(share * np.log(share)).sum() / math.log(2)
    kept = 8 / 18
    expected = (kept - (share**2).sum()) * evenness**2
    assert _quality(weights, np.array([0, 1, 1, 1])) == pytest.approx(expected)


def test_few_rows_and_equal_rows() -> None:
    two = torch.eye(2).repeat(30, 1)
    assert choose_clusters(two, largest=10, generator=seeded()).k == 2
    assert choose_clusters(torch.ones(9, 2), largest=5, generator=seeded()).k == 1
    assert choose_clusters(torch.ones(1, 2), largest=5, generator=seeded()).scores == {}
    with pytest.raises(ValueError, match="at least 2"):
        choose_clusters(two, largest=1, generator=seeded())
