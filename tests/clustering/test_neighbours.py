"""Nearest rows against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from deepcluster.clustering import neighbours
from deepcluster.clustering.neighbours import knn, score_blocks


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("n", "k", "chunk"), [(1000, 15, None), (1000, 15, 7), (40, 39, 64), (2, 1, 1)]
)
def test_neighbours_are_those_of_scikit_learn(n: int, k: int, chunk: int | None) -> None:
    x = torch.randn(n, 8, generator=seeded()) + 100  # an offset costs precision if not removed
    indices, distances = knn(x, k, chunk=chunk)
    reference = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x.double().numpy())
    expected_distances, expected = reference.kneighbors()
    np.testing.assert_allclose(distances, expected_distances, atol=1e-3)
    assert (indices.numpy() == expected).mean() > 0.999


def test_neighbours_of_a_few_rows_are_those_among_all() -> None:
    x = torch.randn(300, 4, generator=seeded())
    some = torch.tensor([7, 3, 299])
    assert knn(x, 5, queries=some)[0].equal(knn(x, 5)[0][some])


@pytest.mark.parametrize("tile", [16, 96, 320])
def test_rows_are_compared_tile_by_tile(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(331, 6, generator=seeded())  # the last tile has fewer rows than neighbours
    whole, apart = knn(x, 15)
    monkeypatch.setattr(neighbours, "TILE", tile)
    indices, distances = knn(x, 15)
    assert indices.equal(whole)
    torch.testing.assert_close(distances, apart)


def test_scores_of_all_blocks_lie_in_one_place() -> None:
    """Each in a place of its own, between results that stay, left holes of 20 MB each."""
    blocks = score_blocks(torch.randn(9000, 4), torch.randn(3, 4))
    assert len({scores.data_ptr() for _, scores in blocks}) == 1


def test_a_row_is_not_its_own_neighbour_even_among_duplicates() -> None:
    indices, distances = knn(torch.ones(50, 3), 10)
    assert (indices != torch.arange(50)[:, None]).all()
    assert (distances == 0).all()
    assert all(len(set(row.tolist())) == 10 for row in indices)


@pytest.mark.parametrize("k", [0, 5])
def test_neighbours_must_be_fewer_than_rows(k: int) -> None:
    with pytest.raises(ValueError, match="from 1 to n - 1"):
        knn(torch.zeros(5, 2), k)


def test_all_rows_are_found_up_to_some_number_and_most_beyond(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.nn.functional.normalize(torch.randn(900, 12, generator=seeded()))
    expected, apart = knn(x, 6)
    indices, distances, recall = neighbours.nearest_rows(x, 6)
    assert indices.equal(expected) and recall == 1
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 100)
    monkeypatch.setattr(neighbours, "PROBES", 100)  # all cells: exact again
    indices, distances, recall = neighbours.nearest_rows(x, 6)
    assert indices.equal(expected) and recall == 1
    torch.testing.assert_close(distances, apart)
    monkeypatch.setattr(neighbours, "PROBES", 5)
    indices, distances, recall = neighbours.nearest_rows(x, 6)
    true = (indices[:, :, None] == expected[:, None, :]).any(2).float().mean()
    assert 0.5 < true < 1 and abs(recall - float(true)) < 0.06
    assert not (indices == torch.arange(900)[:, None]).any()
    torch.testing.assert_close(distances, (x[:, None] - x[indices]).norm(dim=2))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_rows_have_few_neighbours(n: int) -> None:
    indices, distances, recall = neighbours.nearest_rows(torch.randn(n, 3), 12)
    assert indices.shape == distances.shape == (n, n - 1) and recall == 1


def test_copies_that_fill_a_cell_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 100)
    x = torch.randn(500, 4, generator=seeded())
    x[:300] = x[0]
    indices, distances, _ = neighbours.nearest_rows(x, 12)
    assert (indices[:300] < 300).all() and (distances[:300] == 0).all()


def test_cells_that_all_but_coincide_find_their_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some centres are nearer to others than to themselves, by the rounding of a product."""
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 100)
    groups = torch.nn.functional.normalize(torch.randn(20, 64, generator=seeded()))
    near = torch.randn(900, 64, generator=seeded()) * 1e-5
    x = torch.nn.functional.normalize(groups[torch.arange(900) % 20] + near)
    indices, distances, _ = neighbours.nearest_rows(x, 6)
    assert (indices % 20 == (torch.arange(900) % 20)[:, None]).all()
    torch.testing.assert_close(distances, (x[:, None] - x[indices]).norm(dim=2), atol=1e-3, rtol=0)
