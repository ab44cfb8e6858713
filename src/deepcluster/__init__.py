"""Cluster unlabelled images, and get a backbone pretrained on them.

>>> from deepcluster import DeepCluster
>>> clusters = DeepCluster(n_clusters=10, minutes=30).fit_predict(images)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from deepcluster.version import __version__

if TYPE_CHECKING:
    from deepcluster.classifier import DeepClusterClassifier
    from deepcluster.clustering.estimator import KMeans
    from deepcluster.clustering.kmeans import kmeans
    from deepcluster.config import Config, load_recipe, override
    from deepcluster.estimator import DeepCluster
    from deepcluster.finished import evaluate_run, export_run, predict_source
    from deepcluster.fitting import fit_source
    from deepcluster.images.store import ImageStore, open_images
    from deepcluster.run import RunDir
    from deepcluster.segmentation import segment

_HOMES = {
    "Config": "config",
    "DeepCluster": "estimator",
    "DeepClusterClassifier": "classifier",
    "ImageStore": "images.store",
    "KMeans": "clustering.estimator",
    "RunDir": "run",
    "evaluate_run": "finished",
    "export_run": "finished",
    "fit_source": "fitting",
    "kmeans": "clustering.kmeans",
    "load_recipe": "config",
    "open_images": "images.store",
    "override": "config",
    "segment": "segmentation",
    "predict_source": "finished",
}

__all__ = [
    "Config",
    "DeepCluster",
    "DeepClusterClassifier",
    "ImageStore",
    "KMeans",
    "RunDir",
    "__version__",
    "evaluate_run",
    "export_run",
    "fit_source",
    "kmeans",
    "load_recipe",
    "open_images",
    "override",
    "predict_source",
    "segment",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for, so that the import itself is fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'deepcluster' has no attribute {name!r}")
    return getattr(importlib.import_module(f"deepcluster.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
