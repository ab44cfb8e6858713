import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

from deepcluster.clustering.pic import power_iteration_clusters


def restated(x: np.ndarray, neighbours: int, sigma: float, alpha: float, steps: int) -> list[int]:
    """The algorithm as its authors wrote it: node after node."""
    n = len(x)
    gaps, index = NearestNeighbors(n_neighbors=neighbours).fit(x).kneighbors()
    weights = np.zeros((n, n))
    for i in range(n):
        for gap, j in zip(gaps[i], index[i], strict=True):
            weights[i, j] += np.exp(-(gap**2) / sigma**2)
            weights[j, i] += np.exp(-(gap**2) / sigma**2)
    v = np.ones(n) / n
    for _ in range(steps):
        v = alpha * weights.T @ v + (1 - alpha) / n
        v /= np.abs(v).sum()
    label = []
    for i in range(n):
        here = i
        while True:
            gains = weights[here] * (v - v[here])
            if gains.max() <= 0:
                break
            here = int(gains.argmax())
        label.append(here)
    sizes = {j: label.count(j) for j in label}
    joined = list(label)
    for i in range(n):
        if sizes[label[i]] == 1:
            for j in index[i]:
                if sizes[label[j]] > 1:
                    joined[i] = label[j]
                    break
    return joined


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_published_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, 5)) + 6 * rng.integers(0, 3, size=(200, 1))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    result = power_iteration_clusters(torch.from_numpy(x))
    expected = restated(x.astype(np.float32).astype(np.float64), 5, 0.2, 0.001, 200)
    assert adjusted_rand_score(expected, result.labels) == 1.0
    assert result.clusters == len(set(expected)) == len(result.labels.unique())
    assert result.walk.sum() == pytest.approx(1)


def test_no_group_reaches_over_a_gap() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 60)
    x = np.eye(3)[truth] + rng.normal(0, 0.02, (180, 3))
    found = power_iteration_clusters(torch.from_numpy(x)).labels.numpy()
    for label in np.unique(found):
        assert len(np.unique(truth[found == label])) == 1


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_few_rows(n: int) -> None:
    result = power_iteration_clusters(torch.eye(4)[:n])
    assert len(result.labels) == n and 1 <= result.clusters <= n


def test_equal_rows_are_no_trouble() -> None:
    result = power_iteration_clusters(torch.ones(30, 4))
    assert result.labels.shape == (30,) and result.clusters == len(result.labels.unique())
