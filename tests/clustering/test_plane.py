"""The map: neighbours stay together, and no input breaks it."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.manifold import trustworthiness
from torch.nn.functional import normalize

from deepcluster.clustering import plane
from deepcluster.clustering.plane import layout


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, np.ndarray]:
    data = load_digits()
    return normalize(torch.from_numpy(data.data).float(), dim=1), data.target


def test_the_map_keeps_neighbours_together(digits: tuple[torch.Tensor, np.ndarray]) -> None:
    x, _ = digits
    places = layout(x, generator=seeded())
    assert places.shape == (len(x), 2)
    assert places.dtype == torch.float32
    assert trustworthiness(x.numpy(), places.numpy(), n_neighbors=15) > 0.95
    assert places.equal(layout(x, generator=seeded()))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 20])
def test_a_map_of_few_rows(n: int) -> None:
    x = normalize(torch.randn(n, 6, generator=seeded()), dim=1)
    assert layout(x, generator=seeded()).isfinite().all()


def test_a_map_of_duplicates_or_of_one_feature() -> None:
    assert layout(torch.ones(30, 4), generator=seeded()).isfinite().all()
    assert layout(torch.arange(30.0)[:, None], generator=seeded()).isfinite().all()


def test_rows_that_are_not_laid_out_lie_between_their_neighbours(
    digits: tuple[torch.Tensor, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _ = digits
    monkeypatch.setattr(plane, "LAID_OUT", 900)
    places = layout(x, generator=seeded())
    assert trustworthiness(x.numpy(), places.numpy(), n_neighbors=15) > 0.93
    base, spots = torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([[0.0, 0], [4, 0], [0, 8]])
    monkeypatch.setattr(plane, "BETWEEN", 2)
    assert plane._between(torch.tensor([[0.25]]), base, spots)[0].tolist() == pytest.approx(
        [1.0, 0.0], abs=1e-4
    )


def test_rows_beyond_the_limit_are_not_on_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plane, "ON_MAP", 50)
    places = layout(torch.randn(80, 3, generator=seeded()), generator=seeded())
    assert int(places.isfinite().all(1).sum()) == 50
    assert int(places.isnan().all(1).sum()) == 30
