"""What a person moved decides for images like it, and for no others."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from deepcluster.clustering import corrections as corrections_module
from deepcluster.clustering.corrections import STAYED, Corrections, find_corrections
from deepcluster.clustering.pca import normalise
from deepcluster.clustering.prototypes import Prototypes


def blobs(n: int = 600, groups: int = 6, spread: float = 0.22, seed: int = 0) -> tuple[Tensor, ...]:
    """Rows of length 1 around `groups` directions, 12 features, and the group of each."""
    generator = torch.Generator().manual_seed(seed)
    group = torch.arange(n) % groups
    middles = torch.eye(12)[:groups]
    return normalise(middles[group] + spread * torch.randn(n, 12, generator=generator)), group


def assign(x: Tensor, model: Prototypes, corrections: Corrections) -> tuple[Tensor, ...]:
    return corrections.apply(x, *model.assign(x))


@pytest.fixture
def two_in_one() -> tuple[Tensor, Tensor, Prototypes]:
    """Six groups, of which the model has the first two as one cluster, 0."""
    x, group = blobs()
    middles = torch.stack([x[group == g].mean(0) for g in range(6)])
    return x, group, Prototypes(middles, torch.tensor([0, 0, 2, 3, 4, 5]))


def test_a_cluster_made_by_hand_is_learned(
    two_in_one: tuple[Tensor, Tensor, Prototypes],
) -> None:
    x, group, model = two_in_one
    before = model.assign(x)[0]
    moved = group == 1
    after = torch.where(moved, 9, before)
    corrections = find_corrections(x, after, moved, {})
    found, distance, confidence = assign(x, model, corrections)
    assert torch.equal(found, after)
    assert torch.equal(distance[moved], torch.zeros(100)) and bool((confidence[moved] == 1).all())
    new, truth = blobs(3000, seed=1)
    labels = assign(new, model, corrections)[0]
    assert (labels[truth == 1] == 9).float().mean() > 0.95
    untouched = truth >= 2  # other clusters are as they were
    assert (labels[untouched] == model.assign(new)[0][untouched]).float().mean() > 0.99
    # few examples draw their like, and no image that stayed
    few = moved & (torch.cumsum(moved, 0) <= 5)
    after = torch.where(few, 9, before)
    corrections = find_corrections(x, after, few, {})
    assert torch.equal(assign(x, model, corrections)[0], after)


def test_the_nearest_of_the_fits_images_decides(
    two_in_one: tuple[Tensor, Tensor, Prototypes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the images that stayed few are kept, and they decide (nearly) as all of them would."""
    monkeypatch.setattr(corrections_module, "SPREAD", 50)
    x, group, model = two_in_one
    moved = (group == 1) & (torch.arange(600) // 6 % 2 == 0)
    before = model.assign(x)[0]
    corrections = find_corrections(x, torch.where(moved, 9, before), moved, {})
    assert 50 < (corrections.cluster == STAYED).sum() < 0.5 * (~moved).sum()
    assert torch.equal(assign(x, model, corrections)[0], torch.where(moved, 9, before))
    new, _ = blobs(2000, seed=2)
    nearest = NearestNeighbors(n_neighbors=1).fit(x.numpy()).kneighbors(new, return_distance=False)
    expected = moved.numpy()[nearest[:, 0]]
    drawn = assign(new, model, corrections)[0].numpy() == 9
    assert (drawn == expected).mean() > 0.97


def test_merges_come_first_and_nowhere_is_a_place(
    two_in_one: tuple[Tensor, Tensor, Prototypes],
) -> None:
    x, group, model = two_in_one
    merged = {2: 3}
    before = model.assign(x)[0]
    out = torch.zeros(600, dtype=torch.bool)
    out[torch.nonzero(group == 4).flatten()[:3]] = True
    after = torch.where(before == 2, 3, before)
    after[out] = -1
    found = assign(x, model, find_corrections(x, after, out, merged))[0]
    assert torch.equal(found, after)
    alone = find_corrections(x, after, torch.zeros(600, dtype=torch.bool), merged)
    labels, distance, _ = assign(x, model, alone)
    assert not bool((labels == 2).any()) and torch.equal(distance, model.assign(x)[1])


def test_copies_of_a_picture_do_not_end_in_a_loop() -> None:
    x = normalise(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)))
    x[1] = x[0]
    moved = torch.arange(40) == 0
    after = torch.where(moved, 7, 0)
    model = Prototypes(x[:2].clone(), torch.tensor([0, 0]))
    found, _, confidence = assign(x, model, find_corrections(x, after, moved, {}))
    assert found[:2].tolist() == [7, 7] and not bool(found[2:].any())
    assert 0 <= float(confidence[1]) <= 1


def test_all_moved() -> None:
    x, group = blobs(60)
    everything = torch.ones(60, dtype=torch.bool)
    model = Prototypes(x[:3], torch.tensor([0, 1, 2]))
    found, _, confidence = assign(x, model, find_corrections(x, group, everything, {}))
    assert torch.equal(found, group) and bool((confidence == 1).all())
    none = find_corrections(x, group, ~everything, {})
    for given, same in zip(assign(x, model, none), model.assign(x), strict=True):
        assert np.array_equal(given, same)


def test_images_far_from_all_that_was_moved_stay() -> None:
    """They have some of their own kind among the examples, not only those at the border."""
    x, group = blobs(spread=0.3)
    middles = torch.stack([x[group == g].mean(0) for g in range(6)])
    model = Prototypes(middles, torch.tensor([0, 0, 2, 3, 4, 5]))
    moved = group == 1
    after = torch.where(moved, 9, model.assign(x)[0])
    new, _ = blobs(6000, spread=0.3, seed=4)
    before = model.assign(new)[0]
    found = assign(new, model, find_corrections(x, after, moved, {}))[0]
    others = before >= 2
    assert (found[others] != before[others]).float().mean() < 0.02
