"""Ways to learn classes from a few labelled features; each gives a head for any image.

Ridge regression is solved for all penalties at once, with its leave-one-out errors for free. With
features centred on the labelled ones (the offset is not penalised), X = U S V^T, and targets Y of
±1, the fit of penalty l is H Y with H = 1 1^T / m + U diag(s² / (s² + l)) U^T, and the prediction
of row i by the fit without row i is y_i - (y_i - (H Y)_i) / (1 - H_ii), exactly: a row that is left
out changes the fit by a multiple of its own error (Sherman and Morrison 1950; Allen 1974).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch

from deepcluster.labelling.heads import Head, Linear, Memory, Product
from deepcluster.labelling.spread import spread

PENALTIES = 10.0 ** np.arange(-3, 1.5, 0.5)
"""Of ridge regression, to features of length 1."""
STRENGTH = 100.0  # inverse penalty of logistic regression, to features of length 1
COSINE = 20.0  # what a cosine is multiplied by to be a logit, before it is calibrated
REMEMBERED = 4096  # images at most that a memory keeps


@dataclass(frozen=True)
class Pool:
    """Images whose features are known, labelled or not."""

    features: np.ndarray  # (n, d) float32, rows of length 1
    graph: scipy.sparse.csr_matrix  # (n, n), see `neighbour_graph`


Fit = Callable[[Pool, np.ndarray, np.ndarray, int], Head]


def targets(labels: np.ndarray, classes: int) -> np.ndarray:
    """``(m, classes)`` of 1 for the class of a row and -1 for the others."""
    found: np.ndarray = 2 * np.eye(classes)[labels] - 1
    return found


def leave_one_out(x: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Predictions of ridge regression for each row, by the fit to all others.

    Args:
        x: ``(m, d)`` features, m at least 2.
        y: ``(m, t)`` targets.
        penalties: ``(p,)`` above 0.

    Returns:
        ``(p, m, t)``.
    """
    centred = np.asarray(x - x.mean(axis=0), np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    mean = y.mean(axis=0)
    inner = u.T @ (y - mean)
    predictions = []
    for penalty in penalties:
        shrink = s**2 / (s**2 + penalty)
        fitted = mean + u @ (shrink[:, None] * inner)
        leverage = 1 / len(x) + (u**2 @ shrink)
        predictions.append(y - (y - fitted) / (1 - leverage)[:, None])
    return np.stack(predictions)


def fit_ridge(pool: Pool, rows: np.ndarray, labels: np.ndarray, classes: int) -> Head:
    """Ridge regression; the penalty with the smallest leave-one-out error."""
    x, y = np.asarray(pool.features[rows], np.float64), targets(labels, classes)
    errors = np.square(leave_one_out(x, y, PENALTIES) - y).sum(axis=(1, 2))
    penalty = PENALTIES[int(errors.argmin())]
    u, s, vt = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    weight = vt.T @ ((s / (s**2 + penalty))[:, None] * (u.T @ (y - y.mean(axis=0))))
    offset = y.mean(axis=0) - x.mean(axis=0) @ weight
    return Linear(torch.from_numpy(weight), torch.from_numpy(offset))


def fit_logistic(pool: Pool, rows: np.ndarray, labels: np.ndarray, classes: int) -> Head:
    """Logistic regression of all classes at once."""
    from sklearn.linear_model import LogisticRegression

    found = LogisticRegression(C=STRENGTH, max_iter=1000).fit(pool.features[rows], labels)
    weight, offset = found.coef_.T, found.intercept_
    if len(found.classes_) == 2:  # it gives the second class's logit only
        weight, offset = np.hstack([-weight, weight]) / 2, np.hstack([-offset, offset]) / 2
    return _placed(weight, offset, found.classes_, classes)


def fit_prototypes(pool: Pool, rows: np.ndarray, labels: np.ndarray, classes: int) -> Head:
    """The nearest of the classes' mean features, by the cosine."""
    known = np.unique(labels)
    means = np.stack([pool.features[rows[labels == k]].mean(axis=0) for k in known], axis=1)
    means = means / np.maximum(np.linalg.norm(means, axis=0), 1e-12)
    return _placed(COSINE * means, np.zeros(len(known)), known, classes)


def fit_spreading(pool: Pool, rows: np.ndarray, labels: np.ndarray, classes: int) -> Head:
    """Label spreading over the neighbour graph, remembered by images drawn from the pool."""
    shares = spread(pool.graph, rows, labels, classes)
    n = len(pool.features)
    kept = np.arange(n)
    if n > REMEMBERED:
        drawn = np.random.default_rng(0).permutation(n)[:REMEMBERED]
        kept = np.union1d(drawn, rows)
    keys = np.ascontiguousarray(pool.features[kept], np.float32)
    return Memory(torch.from_numpy(keys), torch.from_numpy(shares[kept]))


def fit_product(pool: Pool, rows: np.ndarray, labels: np.ndarray, classes: int) -> Head:
    """The product of label spreading and logistic regression: they err on different images."""
    memory = fit_spreading(pool, rows, labels, classes)
    linear = fit_logistic(pool, rows, labels, classes)
    return Product(**dict(memory.named_buffers()), **dict(linear.named_buffers()))


def _placed(weight: np.ndarray, offset: np.ndarray, known: np.ndarray, classes: int) -> Linear:
    """A linear head of all classes; those that are not `known` are never chosen."""
    full = np.zeros((len(weight), classes))
    full[:, known] = weight
    all_offsets = np.full(classes, -1e4)
    all_offsets[known] = offset
    return Linear(torch.from_numpy(full), torch.from_numpy(all_offsets))


CANDIDATES: dict[str, Fit] = {
    "product": fit_product,
    "spreading": fit_spreading,
    "ridge": fit_ridge,
    "logistic": fit_logistic,
    "prototypes": fit_prototypes,
}
"""The one that comes first is taken where the labels cannot tell them apart."""
