"""DeepCluster, the scikit-learn-style front: images in, clusters out, no run folder."""

from __future__ import annotations

import copy
import dataclasses
import time
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn

from deepcluster.backbones.nets import CUSTOM
from deepcluster.clustering.pca import normalise
from deepcluster.config import Config, load_recipe, override
from deepcluster.device import pick_inference
from deepcluster.errors import ConfigError
from deepcluster.images.store import ImageStore, open_images, scan_images
from deepcluster.images.vectors import pair, read_vectors
from deepcluster.training.loop import FitResult, fit, fit_vectors
from deepcluster.training.plan import (
    as_given,
    choose_scale,
    resolve,
    scale_source,
    schedule_given,
    schedule_minutes,
    settle_start,
    take_weights,
)


class DeepCluster(ClusterMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Train a net on unlabelled images and cluster them with it.

    Args:
        n_clusters: clusters to end with; ``"auto"`` chooses their number from the features.
        recipe: a named set of settings, or the path of a .toml file.
        start: scratch, frozen, adapt or auto (see ``Config.start``).
        backbone: name of a net or a folder (see ``Config.backbone``), or an ``nn.Module`` that
            turns ``(b, c, size, size)`` into ``(b, d)``; a copy of it is used, and trained unless
            it is frozen.
        epochs: passes over the images.
        minutes: time for the fit, in place of epochs; what it comes to depends on the machine and
            is in ``config_``.
        size: side of the training images in pixels.
        device: auto, cpu, cuda, mps …
        settings: any other setting, by its dotted name: ``{"train.lr": 0.1}``.
        random_state: seed of everything random; an int gives the same bits again.

    Attributes:
        labels_: ``(n,)`` int64, the cluster of each image.
        cluster_centers_: ``(n_clusters, d)`` float32, mean embedding of each cluster.
        embeddings_: ``(n, d)`` float32, rows of length 1.
        confidence_: ``(n,)`` float32 in [0, 1].
        history_: a dict an epoch, as in metrics.jsonl.
        n_iter_: epochs done.
        ids_: a name for each image that was used, in the order of the labels.
        skipped_: (path, reason) of the images that were left out.
        config_: the resolved settings.
        model_: the fitted model; ``model_.backbone`` is the net.
    """

    def __init__(
        self,
        *,
        n_clusters: int | Literal["auto"] = "auto",
        recipe: str = "default",
        start: Literal["auto", "scratch", "frozen", "adapt"] = "auto",
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
        self.start = start
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
        asked = self._asked(own_net)
        if own_net is not None and asked.minutes != "auto":
            raise ConfigError("minutes cannot be kept with a net of your own: give epochs instead")
        started = time.perf_counter()
        if own_net is not None:
            weights = None
            if asked.start == "auto":
                asked = dataclasses.replace(asked, start="scratch")
        else:
            asked, weights, _ = settle_start(asked)
        timed = asked.minutes != "auto" and weights is None
        if weights is not None:
            weights = weights.fetch()
            given_store = isinstance(images, ImageStore)
            side = images.pixels.shape[1] if given_store else scan_images(images).side
            asked = take_weights(asked, weights, side=side)
        elif timed and not isinstance(images, ImageStore):
            asked = scale_source(images, asked)
        store = self._open(images, asked)
        size = asked.size if weights is not None else store.size
        assert isinstance(size, int)
        facts = {"n": len(store), "size": size, "channels": store.channels}
        if timed and isinstance(images, ImageStore):  # decoded already: its size stays
            asked = choose_scale(dataclasses.replace(asked, size=store.size), **facts)
        if not timed:  # no clock: the same bits again
            config = resolve(asked, **facts)
        else:
            spent = time.perf_counter() - started
            config, _ = schedule_minutes(asked, **facts, store_bytes=0, spent=spent)
        if own_net is not None:
            config = dataclasses.replace(config, backbone=CUSTOM)
        result = fit(store, config, backbone=own_net)
        return self._take(result, store)

    def fit_embeddings(self, embeddings: Any) -> DeepCluster:
        """Cluster features made elsewhere; :meth:`predict` and :meth:`transform` then take such.

        Args:
            embeddings: ``(n, d)`` numbers; their lengths do not count.

        Returns:
            self
        """
        rows, store = pair(read_vectors(embeddings), None)
        config, _ = schedule_given(as_given(self._asked(None)), n=len(rows))
        return self._take(fit_vectors(rows, config), store)

    def _asked(self, own_net: nn.Module | None) -> Config:
        """The settings, as they were given."""
        asked = override(Config(), load_recipe(self.recipe))
        asked = override(asked, dict(self.settings or {}))
        given: dict[str, Any] = {
            "epochs": self.epochs,
            "minutes": self.minutes,
            "size": self.size,
            "device": self.device,
            "start": self.start,
        }
        given |= {"clusters": self.n_clusters} | (
            {} if own_net is not None else {"backbone": self.backbone}
        )
        asked = override(asked, {name: value for name, value in given.items() if value != "auto"})
        if isinstance(self.random_state, int):
            seed = self.random_state
        else:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return dataclasses.replace(asked, seed=seed)

    def _take(self, result: FitResult, store: ImageStore) -> DeepCluster:
        """Keep what a fit gave."""
        self.config_ = result.config
        self.model_ = result.model
        self.labels_ = result.labels
        self.embeddings_ = result.embeddings
        self.confidence_ = result.confidence
        self.history_ = result.history
        self.n_iter_ = len(result.history)
        self.ids_ = store.ids
        self.skipped_ = store.skipped
        sums = np.zeros((result.clusters, self.embeddings_.shape[1]), np.float32)
        np.add.at(sums, self.labels_, self.embeddings_)
        sizes = np.bincount(self.labels_, minlength=len(sums))
        self.cluster_centers_ = sums / np.maximum(sizes, 1)[:, None]
        return self

    def _open(self, images: Any, config: Config) -> ImageStore:
        if isinstance(images, ImageStore):
            return images
        store = open_images(images, data=config.data, size=config.size)
        if store.skipped:
            path, reason = store.skipped[0]
            warnings.warn(
                f"{len(store.skipped)} images were left out, the first, {path}, because: {reason}; "
                "results are in the order of ids_",
                stacklevel=3,
            )
        return store

    def transform(self, images: Any) -> np.ndarray:
        """Embeddings of images, ``(n, d)`` float32, rows of length 1."""
        check_is_fitted(self, "model_")
        if self.model_.backbone is None:
            rows = torch.from_numpy(read_vectors(images).rows)
            return normalise(rows).numpy()
        store = self._open(images, self.config_)
        device, dtype, batch_size = pick_inference(self.config_, self.device)
        embeddings = self.model_.embed(store, device=device, dtype=dtype, batch_size=batch_size)
        return embeddings.numpy()

    def predict(self, images: Any) -> np.ndarray:
        """Clusters of images, ``(n,)`` int64."""
        embeddings = torch.from_numpy(self.transform(images))
        return self.model_.assign(embeddings)[0].numpy()
