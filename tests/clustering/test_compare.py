"""Clusterings of different features, compared without labels."""

import numpy as np
import torch

from deepcluster.clustering.compare import agreements


def test_what_one_net_made_up_loses_to_what_all_features_show():
    """Two nets see the classes; one of them has, as well, pulled together groups of its own."""
    rng = np.random.default_rng(0)
    truth, own = np.arange(400) % 4, rng.integers(4, size=400)
    fair = np.eye(4)[truth] + rng.normal(0, 0.35, (400, 4))
    vain = np.hstack([0.5 * np.eye(4)[truth], 2 * np.eye(4)[own]]) + rng.normal(0, 0.1, (400, 8))
    spaces = [torch.from_numpy(x).float() for x in (fair, vain)]
    right, made_up = agreements(spaces, [truth, own])
    assert right > made_up
    alone = agreements(spaces[1:], [own])[0]
    assert alone > 0.95  # in its own features nothing looks better


def test_chance_is_nought_and_the_same_is_one():
    rng = np.random.default_rng(0)
    clusters = np.arange(300) % 3
    space = torch.from_numpy(np.eye(3)[clusters] + rng.normal(0, 0.01, (300, 3)))
    noise = torch.from_numpy(rng.normal(size=(300, 3)))
    assert agreements([space], [clusters]) == [1.0]
    assert abs(agreements([noise], [clusters])[0]) < 0.05


def test_two_images():
    assert len(agreements([torch.eye(2)], [np.array([0, 1])])) == 1
