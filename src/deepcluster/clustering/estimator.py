"""k-means as a scikit-learn estimator; apart from the engine, which needs no scikit-learn.

Rows are computed in float32 where that holds them, else in float64.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from deepcluster.clustering.kmeans import assign, every_distance, inertia_of, kmeans
from deepcluster.clustering.rows import Metric, is_memory_mapped
from deepcluster.progress import Lines

_NARROW = {"float32", "float16", "bfloat16", "bool", "uint8", "int8", "uint16", "int16"}


def _types_for(X: Any) -> list[type[np.floating[Any]]] | None:
    """What may be computed in, the first where a conversion is needed: one that holds all digits.

    Lists, large whole numbers and foreign byte orders would lose an offset in float32. None where
    a mapped file is converted to float32 a block at a time.
    """
    narrow = str(getattr(X, "dtype", "")).removeprefix("torch.") in _NARROW
    if narrow and is_memory_mapped(X):
        return None
    return [np.float32, np.float64] if narrow else [np.float64, np.float32]


class KMeans(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    ClusterMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """k-means as a scikit-learn estimator: numpy in, numpy out.

    Args:
        n_clusters: number of clusters.
        init: ``"k-means++"``, ``"random"`` or ``(n_clusters, n_features)`` centres.
        n_init: random starts, of which the best is kept; ``"auto"`` is scikit-learn's: 10 of
            random rows, else 1.
        max_iter: iterations at most.
        tol: tolerance of the centres' shift, relative to the variance.
        metric: ``"l2"`` or ``"cosine"``.
        max_points_per_centre: fit on a random subset of this many rows per cluster; 0 is all.
        chunk_size: rows scored at a time; None chooses.
        device: where to compute; None is the CPU.
        random_state: an int, a numpy RandomState or None, as everywhere in scikit-learn.
        verbose: say on stderr how long a fit of a minute or more will take at most, and its
            iterations.

    Attributes (after ``fit``): ``labels_``, ``cluster_centers_``, ``inertia_``, ``n_iter_``,
    ``n_repaired_``, ``n_features_in_``. Centres and distances are float64 where the rows are, else
    float32. Fewer different rows than clusters are told by a ``ConvergenceWarning``.

    >>> round(KMeans(2, random_state=0).fit([[0.0], [0.1], [5.0], [5.1]]).inertia_, 6)
    0.01
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: str | np.ndarray = "k-means++",
        n_init: int | Literal["auto"] = 1,
        max_iter: int = 300,
        tol: float = 1e-4,
        metric: Metric = "l2",
        max_points_per_centre: int = 0,
        chunk_size: int | None = None,
        device: str | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.metric = metric
        self.max_points_per_centre = max_points_per_centre
        self.chunk_size = chunk_size
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: np.ndarray, y: None = None) -> KMeans:
        """Cluster the rows of `X`.

        Args:
            X: ``(n, d)`` numbers, also in a file that is mapped: it is read in blocks then.
            y: ignored.

        Returns:
            self

        Raises:
            ValueError: as :func:`kmeans`.
        """
        X = self._valid(X, reset=True)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        starts = self.n_init
        if starts == "auto":
            starts = 10 if isinstance(self.init, str) and self.init == "random" else 1
        result = kmeans(
            X,
            self.n_clusters,
            metric=self.metric,
            init=self.init,
            max_iter=self.max_iter,
            tol=self.tol,
            n_init=starts,
            max_points_per_centre=self.max_points_per_centre,
            chunk_size=self.chunk_size,
            generator=torch.Generator().manual_seed(seed),
            device=self.device,
            progress=Lines() if self.verbose else None,
        )
        self.cluster_centers_ = result.centers.cpu().numpy()
        self.labels_ = result.labels.cpu().numpy()
        self.inertia_ = result.inertia
        self.n_iter_ = result.n_iter
        self.n_repaired_ = result.n_repaired
        self._shift = result.shift
        found = len(np.unique(self.labels_))
        if found < self.n_clusters:
            warnings.warn(
                f"{found} different clusters were found where {self.n_clusters} were asked for: "
                "there may be rows that are alike",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The cluster of each row.

        Args:
            X: ``(n, d)`` numbers.

        Returns:
            ``(n,)`` int64.

        Raises:
            NotFittedError: before :meth:`fit`.
            ValueError: rows of another length than those of the fit.
        """
        return self._assign(X)[0].cpu().numpy()

    def transform(self, X: np.ndarray) -> np.ndarray:
        """The distance of each row to each centre.

        Args:
            X: ``(n, d)`` numbers.

        Returns:
            ``(n, k)``, of the type of `X`: Euclidean, or 1 - cosine.

        Raises:
            NotFittedError: before :meth:`fit`.
            ValueError: rows of another length than those of the fit.
        """
        return every_distance(self._checked(X), self.cluster_centers_, **self._how())

    def score(self, X: np.ndarray, y: None = None) -> float:
        """How near the rows are to the centres: larger is better.

        Args:
            X: ``(n, d)`` numbers.
            y: ignored.

        Returns:
            Minus the inertia of `X` under the fitted centres.

        Raises:
            NotFittedError: before :meth:`fit`.
            ValueError: rows of another length than those of the fit.
        """
        return -inertia_of(self._assign(X)[1], self.metric)

    def _assign(self, X: np.ndarray) -> tuple[Tensor, Tensor]:
        return assign(self._checked(X), self.cluster_centers_, **self._how())

    def _checked(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        return self._valid(X, reset=False)

    def _valid(self, X: Any, *, reset: bool) -> np.ndarray:
        # Whether all are finite the engine sees, block by block.
        how: dict[str, Any] = {"dtype": _types_for(X), "ensure_all_finite": False}
        valid: np.ndarray = validate_data(self, X, reset=reset, **how)
        return valid

    def _how(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "chunk_size": self.chunk_size,
            "device": self.device,
            "shift": self._shift,
        }

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)
