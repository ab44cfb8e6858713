"""Each way to learn from a few labels, against an independent reference."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestCentroid

from deepcluster.labelling.candidates import (
    CANDIDATES,
    COSINE,
    PENALTIES,
    REMEMBERED,
    STRENGTH,
    Pool,
    fit_logistic,
    fit_product,
    fit_prototypes,
    fit_ridge,
    fit_spreading,
    leave_one_out,
    targets,
)
from deepcluster.labelling.classifier import logits_of
from deepcluster.labelling.heads import Linear, Memory, Product, kind_of, restored
from deepcluster.labelling.spread import NEIGHBOURS, REACH, neighbour_graph, spread


def blobs(
    n: int = 300, classes: int = 3, d: int = 8, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features of length 1 around as many directions as classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = rng.normal(size=(classes, d))[y] * 2 + rng.normal(size=(n, d)) * 0.8
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), y


@pytest.fixture(scope="module")
def pool() -> Pool:
    x, _ = blobs()
    return Pool(x, neighbour_graph(x))


ROWS = np.arange(0, 60, 2)


@pytest.mark.parametrize(("m", "d"), [(12, 30), (40, 5)])
def test_leave_one_out_of_ridge_is_what_refitting_gives(m: int, d: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(m, d)), targets(np.arange(m) % 3, 3)
    penalties = np.array([1e-3, 0.3, 50.0])
    found = leave_one_out(x, y, penalties)
    for p, penalty in enumerate(penalties):
        for i in range(m):
            rest = np.arange(m) != i
            reference = Ridge(alpha=penalty, solver="svd").fit(x[rest], y[rest]).predict(x[[i]])[0]
            np.testing.assert_allclose(found[p, i], reference, rtol=1e-6, atol=1e-8)


def test_ridge_takes_the_penalty_of_the_smallest_error(pool: Pool) -> None:
    _, y = blobs()
    x = np.asarray(pool.features[ROWS], np.float64)
    errors = {
        alpha: sum(
            np.square(
                Ridge(alpha=alpha)
                .fit(np.delete(x, i, 0), np.delete(targets(y[ROWS], 3), i, 0))
                .predict(x[[i]])
                - targets(y[ROWS], 3)[i]
            ).sum()
            for i in range(len(x))
        )
        for alpha in PENALTIES
    }
    best = min(errors, key=errors.__getitem__)
    reference = Ridge(alpha=best).fit(x, targets(y[ROWS], 3)).predict(pool.features)
    head = fit_ridge(pool, ROWS, y[ROWS], 3)
    np.testing.assert_allclose(logits_of(head, pool.features), reference, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression_is_the_librarys(classes: int) -> None:
    x, y = blobs(classes=classes)
    pool = Pool(x, neighbour_graph(x))
    rows = np.arange(30)
    head = fit_logistic(pool, rows, y[rows], classes)
    reference = LogisticRegression(C=STRENGTH, max_iter=1000).fit(x[rows], y[rows])
    shares = torch.from_numpy(logits_of(head, x)).softmax(1).numpy()
    np.testing.assert_allclose(shares, reference.predict_proba(x), atol=1e-4)


def test_prototypes_are_the_nearest_means(pool: Pool) -> None:
    _, y = blobs()
    head = fit_prototypes(pool, ROWS, y[ROWS], 3)
    reference = NearestCentroid().fit(pool.features[ROWS], y[ROWS])
    means = reference.centroids_ / np.linalg.norm(reference.centroids_, axis=1, keepdims=True)
    np.testing.assert_allclose(
        logits_of(head, pool.features), COSINE * pool.features @ means.T, atol=1e-4
    )


def test_the_product_is_of_spreading_and_logistic_regression(pool: Pool) -> None:
    _, y = blobs()
    parts = [
        torch.from_numpy(logits_of(fit(pool, ROWS, y[ROWS], 3), pool.features)).softmax(1)
        for fit in (fit_spreading, fit_logistic)
    ]
    both = parts[0] * parts[1]
    found = torch.from_numpy(logits_of(fit_product(pool, ROWS, y[ROWS], 3), pool.features))
    shares = found.softmax(1)
    torch.testing.assert_close(shares, both / both.sum(1, keepdim=True), atol=1e-5, rtol=0)


def test_spreading_solves_its_equation(pool: Pool) -> None:
    _, y = blobs()
    graph = pool.graph.toarray()
    shares = spread(pool.graph, ROWS, y[ROWS], 3)
    start = np.zeros((len(y), 3))
    start[ROWS, y[ROWS]] = 1
    start /= start.sum(axis=0)
    exact = np.linalg.solve(np.eye(len(y)) - REACH * graph, (1 - REACH) * start)
    exact /= exact.sum(axis=1, keepdims=True)
    assert np.abs(shares - exact).max() < 0.02  # what STEPS leave over
    assert (shares.argmax(1) == exact.argmax(1)).mean() > 0.99
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_the_graph_is_symmetric_and_normalised(pool: Pool) -> None:
    graph = pool.graph.toarray()
    np.testing.assert_allclose(graph, graph.T)
    assert np.linalg.eigvalsh(graph).max() == pytest.approx(1)
    assert ((graph > 0).sum(axis=1) >= NEIGHBOURS).all()


def test_rows_that_no_label_reaches_know_nothing() -> None:
    x = np.repeat(np.eye(2, 4, dtype=np.float32), 20, axis=0)
    x += np.random.default_rng(0).normal(size=x.shape).astype(np.float32) * 1e-3
    x[20:] += 5  # another piece of the graph
    shares = spread(neighbour_graph(x), np.array([0, 1]), np.array([0, 2]), 3)
    np.testing.assert_allclose(shares[20:], [[0.5, 0, 0.5]] * 20)


@pytest.mark.parametrize("name", CANDIDATES)
def test_each_learns_a_class_of_one_label_and_never_says_one_without(name: str, pool: Pool) -> None:
    _, y = blobs()
    rows = np.array([0, 1, 2, 3, 6, 9])  # classes 0 1 2 0 0 0
    head = CANDIDATES[name](pool, rows, y[rows], 4)
    said = logits_of(head, pool.features).argmax(axis=1)
    assert (said == y).mean() > 0.85
    assert set(said.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("name", CANDIDATES)
def test_heads_come_back_from_their_tensors(name: str, pool: Pool) -> None:
    _, y = blobs()
    head = CANDIDATES[name](pool, ROWS, y[ROWS], 3)
    again = restored(kind_of(head), dict(head.state_dict()))
    assert type(again) is type(head) and isinstance(head, Linear | Memory | Product)
    np.testing.assert_array_equal(logits_of(head, pool.features), logits_of(again, pool.features))


def test_a_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, pool: Pool) -> None:
    monkeypatch.setattr("deepcluster.labelling.candidates.REMEMBERED", 50)
    _, y = blobs()
    head = fit_spreading(pool, ROWS, y[ROWS], 3)
    assert isinstance(head, Memory) and 50 <= len(head.keys) <= 80 < REMEMBERED
    assert (logits_of(head, pool.features).argmax(1) == y).mean() > 0.9
