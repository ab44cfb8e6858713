"""DeepCluster, the scikit-learn-style front: images in, clusters out, nothing on disk.

Long, because half of it are the docstrings of one public class.
"""

from __future__ import annotations

import copy
import dataclasses
import numbers
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import nn

from deepcluster.backbones.build import CUSTOM
from deepcluster.backbones.start import Weights, weights_of
from deepcluster.config import Config, changed, flatten, load_recipe, override
from deepcluster.device import pick_inference
from deepcluster.errors import NoImagesError, RunError
from deepcluster.images.sources import list_source
from deepcluster.images.store import ImageStore, auto_size, one_row_each, open_images, scan_images
from deepcluster.images.vectors import pair, read_vectors
from deepcluster.progress import Progress, counted
from deepcluster.report import write_report
from deepcluster.results import read_result, write_finished
from deepcluster.run import RunDir
from deepcluster.saying import too_late
from deepcluster.show.pictures import write_pictures
from deepcluster.training.best import Best, fit_best
from deepcluster.training.conclude import FitResult, fit_vectors, unit_rows
from deepcluster.training.cost import Cost
from deepcluster.training.loop import fit
from deepcluster.training.plan import (
    Pace,
    as_given,
    choose_scale,
    plan_starts,
    scale_source,
    schedule_given,
    schedule_minutes,
    settle_start,
    take_weights,
    untimed_starts,
)
from deepcluster.training.resolve import resolve
from deepcluster.training.threads import own_threads, settle_threads

PIECE = 8192  # rows whose features are read at a time
ORDER = "labels_ and the like are in the order of ids_"


class DeepCluster(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    ClusterMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Train a net on unlabelled images and cluster them with it.

    Images may be of any size, so nothing checks that those of ``predict`` have the size of the
    fit's: they are brought to the size the net sees. While it is in memory a fitted estimator keeps
    the decoded images for :meth:`report`; a pickle does not.

    Args:
        n_clusters: clusters to end with; ``"auto"`` chooses their number from the features.
        recipe: a named set of settings, or the path of a .toml file.
        start: scratch, frozen, adapt or auto (see ``Config.start``).
        backbone: name of a net or a folder (see ``Config.backbone``), or an ``nn.Module`` that
            turns ``(b, c, size, size)`` into ``(b, d)``; a copy of it is used. Its weights are a
            start with ``"frozen"`` and ``"adapt"``; else it is trained as from scratch.
        epochs: passes over the images.
        minutes: time for the fit, in place of epochs; what it comes to depends on the machine and
            is in ``config_``. A fit that is cut short to keep to them, or cannot, warns once.
        size: side of the training images in pixels.
        device: auto, cpu, cuda, mps …
        settings: any other setting, by its dotted name: ``{"train.lr": 0.1}``;
            ``{"epochs": "auto"}`` undoes what a recipe sets, ``epochs="auto"`` leaves it.
        random_state: seed of everything random; an int gives the same bits again.
        verbose: show on stderr how far the work is: a bar, and a line for each epoch.

    Attributes:
        labels_: ``(n,)`` int64, the cluster of each image.
        cluster_centers_: ``(n_clusters, d)`` float32, mean embedding of each cluster.
        embeddings_: ``(n, d)`` float32, rows of length 1.
        confidence_: ``(n,)`` float32 in [0, 1].
        history_: a dict an epoch, as in metrics.jsonl.
        n_iter_: epochs done; with `minutes`, those there was time for.
        n_features_in_: values of an image as the net sees it (side × side × channels), or of a
            vector.
        ids_: a name for each image that was used, in the order of the labels.
        kept_: ``(n,)``, the places of these among the images that were given.
        n_images_: how many were given.
        skipped_: (path, reason) of the images that were left out.
        config_: the resolved settings.
        model_: the fitted model; ``model_.backbone`` is the net.
        starts_: a dict for each start that was tried, the kept one first; empty if one was.

    Source:
        the order of its steps is this project's own (docs/log.md); that k-means on a net's features
        can train it is of Caron et al., "Deep Clustering for Unsupervised Learning of Visual
        Features" (ECCV 2018).

    >>> found = DeepCluster(n_clusters=3, epochs=1, random_state=0).fit(images)
    >>> found.labels_.shape == (len(images),)
    True
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
        verbose: bool = False,
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
        self.verbose = verbose

    def fit(self, images: Any, y: Any = None) -> DeepCluster:
        """Train on the images and cluster them.

        Args:
            images: arrays ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)``, tensors, PIL images,
                a Dataset, a folder, or anything else that ``open_images`` takes.
            y: never looked at.

        Returns:
            self

        Raises:
            ConfigError: settings that do not exist or do not go together.
            SourceError: the source cannot be opened.
            NoImagesError: there is no usable image in it.
        """
        module = isinstance(self.backbone, nn.Module)
        own_net = copy.deepcopy(self.backbone).float() if module else None  # type: ignore[union-attr]
        asked = self._asked(own_net)
        if own_net is not None and asked.start == "auto":
            asked = dataclasses.replace(asked, start="scratch")
        self._started = datetime.now().astimezone().isoformat()
        with self._progress() as progress, own_threads():
            asked, busy = settle_threads(asked, timed=asked.minutes != "auto")
            if busy:
                progress.note(busy)
            return self._fit(images, asked, own_net, progress)

    def _fit(
        self, images: Any, asked: Config, own_net: nn.Module | None, progress: Progress
    ) -> DeepCluster:
        started = time.perf_counter()
        begin: Weights | nn.Module | None = None
        if own_net is None:
            asked, begin, sentence = settle_start(asked)
            if sentence:
                progress.note(sentence)
        elif asked.start != "scratch":
            begin = own_net
        if begin is not None:
            return self._fit_from(begin, images, asked, progress, started)
        timed = asked.minutes != "auto"
        if not isinstance(images, ImageStore):
            images = list_source(images)
            asked = scale_source(images, asked) if timed else asked
        store = self._open(images, asked, ORDER, progress)
        asked = dataclasses.replace(asked, data=dataclasses.replace(asked.data, range=store.range))
        facts = {"n": len(store), "size": store.size, "channels": store.channels}
        if timed and isinstance(images, ImageStore):  # decoded already: its size stays
            asked = choose_scale(dataclasses.replace(asked, size=store.size), **facts)
        pace = None
        if not timed:  # no clock: the same bits again
            config = resolve(asked, **facts)
        else:
            spent = time.perf_counter() - started
            config, cost = schedule_minutes(asked, **facts, store_bytes=0, spent=spent, net=own_net)
            pace = self._pace(asked, cost, started, spent, progress)
        result = fit(store, config, backbone=own_net, progress=progress, pace=pace)
        return self._finish(Best(result, []), store, pace)

    def _fit_from(
        self,
        begin: Weights | nn.Module,
        images: Any,
        asked: Config,
        progress: Progress,
        started: float,
    ) -> DeepCluster:
        """Fit with weights that are made already."""
        if isinstance(images, ImageStore):
            side, channels = int(images.pixels.shape[1]), images.channels
        else:
            images = list_source(images)
            scan = scan_images(images, data=asked.data)
            side, channels = scan.side, scan.channels
        if isinstance(begin, Weights):
            weights = begin.fetch()
        else:
            weights = weights_of(begin, size=auto_size(side), channels=channels)
        frozen = dataclasses.replace(asked, start="frozen", minutes="auto")
        if asked.start != "frozen":
            frozen = dataclasses.replace(frozen, epochs="auto")
        frozen = take_weights(frozen, weights, side=side)
        store = self._open(images, frozen, ORDER, progress)
        n, channels, side = len(store), store.channels, int(store.pixels.shape[1])
        asked = dataclasses.replace(asked, data=dataclasses.replace(asked.data, range=store.range))
        rivals: list[Config] = []
        pace = None
        if asked.minutes != "auto":
            spent = time.perf_counter() - started
            rivals, last, cost = plan_starts(
                asked,
                frozen,
                weights,
                n=n,
                channels=channels,
                side=side,
                store_bytes=0,
                spent=spent,
            )
            pace = self._pace(asked, cost, started, spent, progress)
        else:  # no clock: the same bits again
            rivals, last = untimed_starts(asked, frozen, weights, n=n, channels=channels, side=side)
        best = fit_best(store, last, rivals, backbone=weights.net, progress=progress, pace=pace)
        return self._finish(best, store, pace)

    def _pace(
        self, asked: Config, cost: Cost, started: float, spent: float, progress: Progress
    ) -> Pace:
        assert asked.minutes != "auto"
        pace = Pace(asked.minutes, rest=cost.rest, began=started, say=progress.note)
        for sentence in too_late(asked, cost, spent):
            pace.tell(sentence)
        return pace

    def fit_embeddings(self, embeddings: Any) -> DeepCluster:
        """Cluster features made elsewhere; :meth:`predict` and :meth:`transform` then take such.

        Args:
            embeddings: ``(n, d)`` numbers, or a .npy or .parquet file of them; their lengths do not
                count.

        Returns:
            self

        Raises:
            ConfigError: settings that do not exist or do not go together.
            SourceError: they are no such array or file.
        """
        self._started = datetime.now().astimezone().isoformat()
        rows, store = pair(read_vectors(embeddings), None)
        typed = {**(self.settings or {}), **self._named(None)}
        asked = as_given(self._asked(None), flatten(typed), images=False)
        with own_threads():
            settle_threads(asked, timed=False)
            config, _ = schedule_given(asked, n=len(rows), d=rows.shape[1], channels=store.channels)
            found = fit_vectors(unit_rows(rows), config, truth=store.labels)
        return self._finish(Best(found, []), store)

    def _asked(self, own_net: nn.Module | None) -> Config:
        """The settings, as they were given."""
        asked = override(Config(), load_recipe(self.recipe))
        asked = override(asked, dict(self.settings or {}))
        asked = override(asked, self._named(own_net))
        seed = self.random_state  # a number is the seed itself, NumPy's too
        if not isinstance(seed, numbers.Integral):
            seed = check_random_state(seed).randint(2**31 - 1)
        return override(asked, {"seed": seed})

    def _named(self, own_net: nn.Module | None) -> dict[str, Any]:
        """The settings that are arguments, where they are not left at auto."""
        given: dict[str, Any] = {
            "epochs": self.epochs,
            "minutes": self.minutes,
            "size": self.size,
            "device": self.device,
            "start": self.start,
        }
        given |= {"clusters": self.n_clusters} | (
            {"backbone": CUSTOM if own_net is not None else self.backbone}
        )
        return {name: value for name, value in given.items() if value != "auto"}

    def _finish(self, best: Best, store: ImageStore, pace: Pace | None = None) -> DeepCluster:
        if pace is not None and pace.told:
            warnings.warn(f"{pace.told}; n_iter_ is the number of epochs done", stacklevel=4)
        self.starts_ = best.facts()
        self._fingerprint = store.fingerprint()
        self._take(best.result, store)
        return self

    def _take(self, result: FitResult, store: ImageStore) -> None:
        """Set the attributes of a fitted estimator."""
        self._result, self._store = result, store
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
        side = result.model.preprocessing.size
        seen = side**2 * result.model.channels
        given = result.model.backbone is None  # vectors
        self.n_features_in_ = self.embeddings_.shape[1] if given else seen
        inside = self.labels_ >= 0  # a person may have taken images out of every cluster
        count = max(result.clusters, int(self.labels_.max()) + 1)
        sums = np.zeros((count, self.embeddings_.shape[1]), np.float32)
        for piece in np.array_split(np.flatnonzero(inside), len(inside) // PIECE + 1):
            np.add.at(sums, self.labels_[piece], self.embeddings_[piece])
        sizes = np.bincount(self.labels_[inside], minlength=count)
        self.cluster_centers_ = sums / np.maximum(sizes, 1)[:, None]

    def fit_predict(self, images: Any, y: Any = None) -> np.ndarray:
        """Fit, and the cluster of each image.

        Args:
            images: as for :meth:`fit`.
            y: never looked at.

        Returns:
            ``(n,)`` int64, in the order of the images; -1 for those that cannot be read.

        Raises:
            ConfigError: as :meth:`fit`, and so are SourceError and NoImagesError.
        """
        self.fit(images)
        return one_row_each(self.labels_, self.kept_, self.n_images_, -1)

    @contextmanager
    def _progress(self) -> Iterator[Progress]:
        if not self.verbose:
            yield Progress()
            return
        from deepcluster.show.terminal import TerminalProgress

        with TerminalProgress() as progress:
            yield progress

    def _open(self, images: Any, config: Config, rows: str, progress: Progress) -> ImageStore:
        """The images; a warning says what `rows` say of those that cannot be read."""
        if isinstance(images, ImageStore):
            return images
        store = open_images(
            images, data=config.data, size=config.size, progress=progress.callback("decoding")
        )
        if store.skipped:
            path, reason = store.skipped[0]
            warnings.warn(
                f"{counted(len(store.skipped), 'image')} left out, the first, {path}, because: "
                f"{reason}; {rows}",
                stacklevel=4,
            )
        return store

    def _embed(self, images: Any) -> np.ndarray:
        """A row for each image that was given; NaN for those that cannot be read."""
        check_is_fitted(self, "model_")
        if self.model_.backbone is None:
            vectors = read_vectors(images).rows
            self.model_.check_width(vectors)
            return unit_rows(vectors).numpy()
        given = images if isinstance(images, ImageStore) else list_source(images)
        rows = "their rows are NaN, their clusters -1"
        with self._progress() as progress:
            try:
                store = self._open(given, self.config_, rows, progress)
            except NoImagesError as error:
                warnings.warn(f"{error}; all rows are NaN, all clusters -1", stacklevel=3)
                return np.full((len(given), self.embeddings_.shape[1]), np.nan, np.float32)
            compute = pick_inference(self.config_, self.device)
            progress.phase("features", len(store))
            found = self.model_.embed(store, compute, advance=progress.advance).numpy()
        return store.rows(found, np.nan)

    def transform(self, images: Any) -> np.ndarray:
        """Embeddings of images.

        Args:
            images: as for :meth:`fit`.

        Returns:
            ``(n, d)`` float32, rows of length 1, in the order of the images; NaN for those that
            cannot be read.

        Raises:
            NotFittedError: before :meth:`fit`.
            SourceError: the source cannot be opened.
        """
        return self._embed(images)

    def predict(self, images: Any) -> np.ndarray:
        """Clusters of images.

        Args:
            images: as for :meth:`fit`.

        Returns:
            ``(n,)`` int64, in the order of the images; -1 for those that cannot be read.

        Raises:
            NotFittedError: before :meth:`fit`.
            SourceError: the source cannot be opened.
        """
        embeddings = self._embed(images)
        labels = np.full(len(embeddings), -1, np.int64)
        good = np.isfinite(embeddings).all(axis=1)
        if good.any():
            labels[good] = self.model_.assign(torch.from_numpy(embeddings[good]))[0].numpy()
        return labels

    def save(self, folder: str | Path) -> Path:
        """Write a run folder, without pickle: all that ``deepcluster fit`` leaves but checkpoints.

        The commands take it (``deepcluster predict FOLDER …``), and so does :meth:`load`.

        Args:
            folder: where to; must be empty or not exist.

        Returns:
            The folder.

        Raises:
            RunError: the folder cannot be used, or the estimator was loaded from a run in which a
                person moved or merged: copy that one.
        """
        check_is_fitted(self, "model_")
        if self.model_.corrections is not None:
            raise RunError(
                "the estimator was loaded from a run in which a person moved or merged, and does "
                "not know all that was said there: copy the folder it was loaded from"
            )
        run = RunDir.create(folder)
        parameters = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params(deep=False).items()
            if not isinstance(value, nn.Module | np.random.RandomState)
        }
        if self.settings is not None:
            parameters["settings"] = dict(self.settings)
        facts = {"started": self._started, "images": self._fingerprint, "estimator": parameters}
        write_finished(run, self._store, self._result, facts)
        return run.path

    @classmethod
    def load(cls, folder: str | Path, *, backbone: nn.Module | None = None) -> DeepCluster:
        """A fitted estimator from what :meth:`save` wrote, or from any finished run.

        What a person moved, merged or made by hand in the run since counts in ``labels_`` and in
        ``predict``.

        Args:
            folder: a run folder.
            backbone: the net, where it was a module of your own: its weights are read into it.

        Returns:
            The estimator; it holds no images.

        Raises:
            RunError: it is no finished run, or its net is a module of your own and not given.
        """
        run = RunDir.open(folder)
        result, store = read_result(run, backbone=backbone)
        info = run.read_info()
        parameters = info.get("estimator") or _parameters(result.config)
        if backbone is not None:
            parameters["backbone"] = backbone
        found = cls(**parameters)
        found._started, found._fingerprint = info["started"], info["images"]
        found.starts_ = info.get("starts", [])
        found._take(result, store)
        return found

    def report(self, folder: str | Path) -> Path:
        """Write the report: pages to look at, name and mend the clusters.

        Args:
            folder: as for :meth:`save`, which is done first unless it was.

        Returns:
            The first page, ``FOLDER/report/index.html``.

        Raises:
            RunError: the images are not in memory any more (after pickle or :meth:`load`).
        """
        check_is_fitted(self, "model_")
        run = RunDir(folder)
        if not ((run.path / "run.json").is_file() and self._is_in(run)):
            if not len(self._store.pixels):
                raise RunError(
                    "an estimator that was pickled or loaded has no images to show: write the "
                    "report of the folder it was saved in, or fit again"
                )
            self.save(folder)
        write_pictures(run)
        return write_report(run)

    def _is_in(self, run: RunDir) -> bool:
        info = run.read_info()
        return bool((info["started"], info["images"]) == (self._started, self._fingerprint))

    @property
    def _n_features_out(self) -> int:
        return int(self.embeddings_.shape[1])

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "_store" in state:  # all but the images
            store = state["_store"]
            state["_store"] = dataclasses.replace(store, pixels=store.pixels[:0].copy())
        return state

    def __sklearn_tags__(self) -> Tags:
        return take_images(super().__sklearn_tags__())


def take_images(tags: Tags) -> Tags:
    """Tags of an estimator that takes images, not rows of features."""
    tags.input_tags.two_d_array = False
    tags.input_tags.three_d_array = True
    return tags


def _parameters(config: Config) -> dict[str, Any]:
    """Parameters of an estimator that would fit as a run of the command line did."""
    # Epochs say what minutes came to, and the device is this machine's.
    own = ("clusters", "seed", "backbone", "epochs", "size", "minutes", "device")
    return {
        "n_clusters": config.clusters,
        "random_state": config.seed,
        "backbone": config.backbone,
        "epochs": config.epochs,
        "size": config.size,
        "settings": {name: value for name, value in changed(config).items() if name not in own},
    }
