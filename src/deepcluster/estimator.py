"""DeepCluster, the scikit-learn-style front: images in, clusters out, nothing on disk."""

from __future__ import annotations

import copy
import dataclasses
import numbers
import time
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn

from deepcluster.backbones.nets import CUSTOM
from deepcluster.config import Config, load_recipe, override
from deepcluster.device import pick_inference
from deepcluster.errors import ConfigError, NoImagesError
from deepcluster.images.sources import list_source
from deepcluster.images.store import ImageStore, one_row_each, open_images
from deepcluster.training.loop import fit
from deepcluster.training.plan import Pace, choose_scale, resolve, scale_source, schedule_minutes


class DeepCluster(ClusterMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Train a net on unlabelled images and cluster them with it.

    Args:
        n_clusters: clusters to end with; ``"auto"`` chooses their number from the features.
        recipe: a named set of settings, or the path of a .toml file.
        backbone: name of a net (see ``Config.backbone``), or an ``nn.Module`` that turns
            ``(b, c, size, size)`` into ``(b, d)``; a copy of it is trained.
        epochs: passes over the images.
        minutes: time for the fit, in place of epochs; what it comes to depends on the machine and
            is in ``config_``.
        size: side of the training images in pixels.
        device: auto, cpu, cuda, mps …
        settings: any other setting, by its dotted name: ``{"train.lr": 0.1}``;
            ``{"epochs": "auto"}`` undoes what a recipe sets, ``epochs="auto"`` leaves it.
        random_state: seed of everything random; an int gives the same bits again.

    Attributes:
        labels_: ``(n,)`` int64, the cluster of each image.
        cluster_centers_: ``(n_clusters, d)`` float32, mean embedding of each cluster.
        embeddings_: ``(n, d)`` float32, rows of length 1.
        confidence_: ``(n,)`` float32 in [0, 1].
        history_: a dict an epoch, as in metrics.jsonl.
        n_iter_: epochs done.
        ids_: a name for each image that was used, in the order of the labels.
        kept_: ``(n,)``, the places of these among the images that were given.
        n_images_: how many were given.
        skipped_: (path, reason) of the images that were left out.
        config_: the resolved settings.
        model_: the fitted model; ``model_.backbone`` is the net.
    """

    def __init__(
        self,
        *,
        n_clusters: int | Literal["auto"] = "auto",
        recipe: str = "default",
        backbone: str | nn.Module = "auto",
        epochs: int | Literal["auto"] = "auto",
        minutes: float | Literal["auto"] = "auto",
        size: int | Literal["auto"] = "auto",
        device: str = "auto",
        settings: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.recipe = recipe
        self.backbone = backbone
        self.epochs = epochs
        self.minutes = minutes
        self.size = size
        self.device = device
        self.settings = settings
        self.random_state = random_state

    def fit(self, images: Any, y: Any = None) -> DeepCluster:
        """Train on the images and cluster them.

        Args:
            images: arrays ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``, tensors, PIL images,
                a Dataset, a folder, or anything else that ``open_images`` takes.
            y: never looked at.

        Returns:
            self
        """
        own_net = copy.deepcopy(self.backbone) if isinstance(self.backbone, nn.Module) else None
        asked = override(Config(), load_recipe(self.recipe))
        asked = override(asked, dict(self.settings or {}))
        given: dict[str, Any] = {
            "epochs": self.epochs,
            "minutes": self.minutes,
            "size": self.size,
            "device": self.device,
        }
        given |= {"clusters": self.n_clusters} | (
            {} if own_net is not None else {"backbone": self.backbone}
        )
        asked = override(asked, {name: value for name, value in given.items() if value != "auto"})
        seed = self.random_state  # a number is the seed itself, NumPy's too
        if not isinstance(seed, numbers.Integral):
            seed = check_random_state(seed).randint(2**31 - 1)
        asked = override(asked, {"seed": seed})
        if own_net is not None and asked.minutes != "auto":
            raise ConfigError("minutes cannot be kept with a net of your own: give epochs instead")
        started = time.perf_counter()
        timed = asked.minutes != "auto"
        if not isinstance(images, ImageStore):
            images = list_source(images)
            asked = scale_source(images, asked) if timed else asked
        store = self._open(images, asked, "labels_ and the like are in the order of ids_")
        asked = dataclasses.replace(asked, data=dataclasses.replace(asked.data, range=store.range))
        facts = {"n": len(store), "size": store.size, "channels": store.channels}
        if timed and isinstance(images, ImageStore):  # decoded already: its size stays
            asked = choose_scale(dataclasses.replace(asked, size=store.size), **facts)
        pace = None
        if not timed:  # no clock: the same bits again
            config = resolve(asked, **facts)
        else:
            spent = time.perf_counter() - started
            config, cost = schedule_minutes(asked, **facts, store_bytes=0, spent=spent)
            assert asked.minutes != "auto"
            pace = Pace(asked.minutes, rest=cost.rest, began=started, say=lambda _: None)
        if own_net is not None:
            config = dataclasses.replace(config, backbone=CUSTOM)
        result = fit(store, config, backbone=own_net, pace=pace)
        self.config_ = result.config
        self.model_ = result.model
        self.labels_ = result.labels
        self.embeddings_ = result.embeddings
        self.confidence_ = result.confidence
        self.history_ = result.history
        self.n_iter_ = len(result.history)
        self.ids_ = store.ids
        self.skipped_ = store.skipped
        self.kept_ = np.arange(len(store)) if store.places is None else store.places
        self.n_images_ = len(store) if store.listed is None else store.listed
        sums = np.zeros((result.clusters, self.embeddings_.shape[1]), np.float32)
        np.add.at(sums, self.labels_, self.embeddings_)
        sizes = np.bincount(self.labels_, minlength=len(sums))
        self.cluster_centers_ = sums / np.maximum(sizes, 1)[:, None]
        return self

    def fit_predict(self, images: Any, y: Any = None) -> np.ndarray:
        """Fit, and the cluster of each image, ``(n,)`` int64; -1 for those that cannot be read."""
        self.fit(images)
        return one_row_each(self.labels_, self.kept_, self.n_images_, -1)

    def _open(self, images: Any, config: Config, rows: str) -> ImageStore:
        """The images; a warning says what `rows` say of those that cannot be read."""
        if isinstance(images, ImageStore):
            return images
        store = open_images(images, data=config.data, size=config.size)
        if store.skipped:
            path, reason = store.skipped[0]
            warnings.warn(
                f"{len(store.skipped)} images were left out, the first, {path}, because: {reason}; "
                f"{rows}",
                stacklevel=4,
            )
        return store

    def _embed(self, images: Any) -> np.ndarray:
        """A row for each image that was given; NaN for those that cannot be read."""
        check_is_fitted(self, "model_")
        given = images if isinstance(images, ImageStore) else list_source(images)
        try:
            store = self._open(given, self.config_, "their rows are NaN, their clusters -1")
        except NoImagesError as error:
            warnings.warn(f"{error}; all rows are NaN, all clusters -1", stacklevel=3)
            return np.full((len(given), self.embeddings_.shape[1]), np.nan, np.float32)
        device, dtype = pick_inference(self.config_, self.device)
        return store.rows(self.model_.embed(store, device=device, dtype=dtype).numpy(), np.nan)

    def transform(self, images: Any) -> np.ndarray:
        """Embeddings of images, ``(n, d)`` float32, rows of length 1.

        There is a row for each image, in their order; of those that cannot be read it is NaN.
        """
        return self._embed(images)

    def predict(self, images: Any) -> np.ndarray:
        """Clusters of images, ``(n,)`` int64, in their order; -1 for those that cannot be read."""
        import torch

        embeddings = self._embed(images)
        labels = np.full(len(embeddings), -1, np.int64)
        good = np.isfinite(embeddings).all(axis=1)
        if good.any():
            labels[good] = self.model_.assign(torch.from_numpy(embeddings[good]))[0].numpy()
        return labels
