"""DeepClusterClassifier, the scikit-learn-style front for images of which a few have labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from deepcluster.estimator import DeepCluster, take_images
from deepcluster.images.store import one_row_each
from deepcluster.labelling.classifier import make_pool, teach
from deepcluster.progress import counted


class DeepClusterClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Learn classes from a few labels and all images.

    The contract is that of scikit-learn's semi-supervised estimators: ``y`` has an entry for each
    image, and -1 (or None, or an empty text) says that it has no label.

    Args:
        clusterer: what features come from, and how: a copy of it is fitted to all images. None:
            ``DeepCluster()``.
        run: a finished run folder in its place; nothing is trained then but the classifier.

    Attributes:
        classes_: ``(c,)`` the classes, sorted.
        transduction_: ``(n,)`` the class of each image of the fit: its label where it has one.
        expected_: how often it will be right, with a 90 % interval, from the labels alone.
        clusterer_: the fitted DeepCluster.
        classifier_: what makes probabilities of its features.
        n_features_in_: as of the clusterer.
    """

    def __init__(
        self, clusterer: DeepCluster | None = None, *, run: str | Path | None = None
    ) -> None:
        self.clusterer = clusterer
        self.run = run

    def fit(self, images: Any, y: Any) -> DeepClusterClassifier:
        """Learn from images, labelled or not.

        Args:
            images: as for :meth:`DeepCluster.fit`; with `run`, None takes the run's own images.
            y: ``(n,)`` numbers or texts, -1, None or "" for images without a label.

        Returns:
            self

        Raises:
            ValueError: `y` has another length than the images, or labels of one class only.
        """
        labels = np.asarray(y)
        if self.run is not None:
            base = DeepCluster.load(self.run)
            embeddings = base.embeddings_ if images is None else base.transform(images)
        else:
            base = clone(self.clusterer if self.clusterer is not None else DeepCluster())
            base.fit(images)
            embeddings = one_row_each(base.embeddings_, base.kept_, base.n_images_, np.nan)
        if labels.shape != (len(embeddings),):
            raise ValueError(
                f"y is {labels.shape} for {counted(len(embeddings), 'image')}: give a label for "
                "each, -1 for those that have none"
            )
        known = np.array([not _is_open(label) for label in labels.tolist()])
        good = np.isfinite(embeddings).all(axis=1)
        self.classes_, codes = np.unique(np.array(labels[known].tolist()), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has labels of {counted(len(self.classes_), 'class')}: a classifier needs two "
                "or more"
            )
        all_codes = np.full(len(labels), -1)
        all_codes[known] = codes
        rows = np.flatnonzero(known[good])
        pool, held = make_pool(embeddings[good], rows)
        taught = teach(
            pool,
            np.searchsorted(held, rows),
            all_codes[good][rows],
            [str(name) for name in self.classes_],
        )
        self.clusterer_, self.classifier_ = base, taught.classifier
        self.expected_ = taught.expected
        self.n_features_in_ = base.n_features_in_
        self.transduction_ = self._named(self._probabilities(embeddings))
        self.transduction_[known] = self.classes_[codes]
        return self

    def predict_proba(self, images: Any) -> np.ndarray:
        """Calibrated probabilities of the classes.

        Args:
            images: as for :meth:`DeepCluster.predict`.

        Returns:
            ``(n, c)`` float64, columns as in ``classes_``, rows that sum to 1; NaN for images that
            cannot be read.

        Raises:
            NotFittedError: before :meth:`fit`.
            SourceError: the source cannot be opened.
        """
        check_is_fitted(self, "classifier_")
        return self._probabilities(self.clusterer_.transform(images))

    def predict(self, images: Any) -> np.ndarray:
        """The class of each image.

        Args:
            images: as for :meth:`DeepCluster.predict`.

        Returns:
            ``(n,)``, of the type of ``classes_``; -1 or "" for images that cannot be read.

        Raises:
            NotFittedError: before :meth:`fit`.
            SourceError: the source cannot be opened.
        """
        return self._named(self.predict_proba(images))

    def _probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        good = np.isfinite(embeddings).all(axis=1)
        found = np.full((len(embeddings), len(self.classes_)), np.nan)
        if good.any():
            found[good] = self.classifier_.probabilities(embeddings[good])
        return found

    def _named(self, probabilities: np.ndarray) -> np.ndarray:
        good = np.isfinite(probabilities).all(axis=1)
        words = self.classes_.dtype.kind in "US"
        found = np.full(len(good), "" if words else -1, dtype=self.classes_.dtype)
        found[good] = self.classes_[probabilities[good].argmax(axis=1)]
        return found

    def __sklearn_tags__(self) -> Tags:
        return take_images(super().__sklearn_tags__())


def _is_open(label: Any) -> bool:
    """Whether this entry of y says that there is no label."""
    return label is None or label == "" or label in (-1, "-1") or label != label
