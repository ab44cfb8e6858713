import numpy as np
import pytest
import sklearn.decomposition
import torch

from deepcluster.clustering import pca as pca_module
from deepcluster.clustering.pca import fit_pca, normalise


def features(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Correlated features with clearly different variances and a mean far from 0."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    x = rng.standard_normal((n, d)) * np.geomspace(5, 0.5, d) @ turn + 3
    return torch.from_numpy(x.astype(np.float32))


def same_up_to_sign(found: np.ndarray, expected: np.ndarray, atol: float) -> None:
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, atol=atol)


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize(("n", "d"), [(200, 12), (10, 30)])
def test_is_scikit_learns(n, d, whiten):
    x = features(n, d)
    reference = sklearn.decomposition.PCA(6, whiten=whiten, svd_solver="full").fit(
        x.numpy().astype(np.float64)
    )
    expected = reference.transform(x.numpy())
    same_up_to_sign(fit_pca(x, 6, whiten=whiten).apply(x).numpy(), expected, atol=2e-5)


@pytest.mark.parametrize(("n", "d"), [(200, 12), (10, 30)])
def test_whitening_is_that_of_faiss_but_for_one_factor(n, d):
    faiss = pytest.importorskip("faiss")
    x = features(n, d)
    reference = faiss.PCAMatrix(d, 6, -0.5)
    reference.train(x.numpy())
    expected = reference.apply(x.numpy()) * np.sqrt(n - 1)  # faiss: the sum of squares is 1
    same_up_to_sign(fit_pca(x, 6, whiten=True).apply(x).numpy(), expected, atol=1e-4)


def test_whitened_components_are_uncorrelated_with_variance_one():
    x = features(300, 8)
    found = fit_pca(x, 8, whiten=True).apply(x).double()
    torch.testing.assert_close(torch.cov(found.T), torch.eye(8).double(), atol=1e-5, rtol=0)


def test_blocks_change_nothing(monkeypatch):
    x = features(50, 8)
    whole = fit_pca(x, 5)
    monkeypatch.setattr(pca_module, "BLOCK", 8 * 7)
    parts = fit_pca(x, 5)
    torch.testing.assert_close(parts.components, whole.components)
    torch.testing.assert_close(parts.apply(x), whole.apply(x))


def test_the_largest_entry_of_a_component_is_positive():
    components = fit_pca(features(100, 10), 10).components
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(components @ components.T, torch.eye(10), atol=1e-6, rtol=0)


def test_more_components_than_rows_or_features_are_clipped():
    assert fit_pca(features(5, 20), 256).apply(features(3, 20)).shape == (3, 5)
    assert fit_pca(features(50, 20), 256).apply(features(3, 20)).shape == (3, 20)
    assert (fit_pca(features(1, 4), 2).apply(features(1, 4)) == 0).all()


def test_a_constant_or_repeated_direction_does_not_explode():
    x = features(100, 6)
    x[:, 3] = 7.1  # constant
    x[:, 4] = x[:, 0]  # repeated: one direction has only rounding noise
    pca = fit_pca(x, 6, whiten=True)
    assert (pca.scale > 0).sum() == 4
    assert pca.apply(x).abs().max() < 10


def test_a_large_mean_does_not_pass_for_variance():
    x = features(100, 4) + 1000
    x = torch.cat([x, torch.full((100, 1), 1 / 3)], 1)
    pca = fit_pca(x, 5, whiten=True)
    assert pca.scale[:4].min() > 0
    assert pca.scale[4] == 0


def test_a_zero_row_stays_zero():
    found = normalise(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert found.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="NaN"):
        fit_pca(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), 1)
    with pytest.raises(ValueError, match="at least one row"):
        fit_pca(torch.zeros(0, 3), 1)
    with pytest.raises(ValueError, match="dim = 0"):
        fit_pca(features(5, 3), 0)
    with pytest.raises(ValueError, match="rows of 3 features"):
        fit_pca(features(5, 3), 2).apply(torch.zeros(2, 4))


def test_rounding_of_fewer_digits_is_no_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(2000, 20, generator=generator)
    basis = torch.randn(20, 128, generator=generator)
    x = (low.bfloat16() @ basis.bfloat16()).float()  # kept in more digits than it has
    alive = [int((fit_pca(x, 128, rounding=eps).scale > 0).sum()) for eps in (None, 2.0**-7)]
    assert alive[0] > 100
    assert alive[1] == 20
