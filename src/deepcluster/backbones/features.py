"""Images -> features, and the fitted model that says which cluster a new image belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deepcluster.backbones.preprocessing import Preprocessing, to_device
from deepcluster.backbones.weights import load_timm, load_weights, save_timm
from deepcluster.clustering.corrections import Corrections
from deepcluster.clustering.graph import Prototypes
from deepcluster.clustering.pca import PCA, normalise
from deepcluster.errors import DamagedError
from deepcluster.run import reading

if TYPE_CHECKING:
    from deepcluster.images.store import ImageStore

CLUSTERS_FILE = "clusters.safetensors"

MODEL_CARD = """\
---
library_name: timm
tags: [image-feature-extraction, deepcluster]
---
# Backbone trained by deepcluster

`{name}`, {channels} channel(s), {size} pixels, {d} features, trained without labels.

```python
import timm
import deepcluster.backbones  # tells timm of the nets that are not its own

model = timm.create_model("local-dir:PATH/OF/THIS/FOLDER", pretrained=True, num_classes=0)
```

Input: images in [0, 1], less the mean {mean}, over the standard deviation {std}.
`clusters.safetensors` holds the centres of the clusters; `deepcluster predict` uses it.
"""


@torch.no_grad()
def extract(
    backbone: nn.Module,
    store: ImageStore,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 256,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Features of all images in their order, in evaluation mode.

    Args:
        backbone: ``(b, c, size, size)`` -> ``(b, d)``; left in the mode it came in.
        store: the images.
        preprocessing: crop and normalisation.
        device: where the backbone is.
        dtype: arithmetic of the net.
        batch_size: images at once.
        advance: called with the number of images done since the last call.

    Returns:
        ``(n, d)`` float32 on the CPU.
    """
    training = backbone.training
    backbone.eval()
    features: Tensor | None = None
    for start in range(0, len(store), batch_size):
        index = np.arange(start, min(start + batch_size, len(store)))
        images = preprocessing(to_device(store.batch(index), device))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            batch = backbone(images)
        if features is None:
            features = torch.empty(len(store), batch.shape[1])
        features[start : start + len(index)] = batch.float().cpu()
        advance(len(index))
    backbone.train(training)
    assert features is not None  # a store is never empty
    return features


@dataclass
class FittedModel:
    """A backbone and the clusters found with it.

    Attributes:
        backbone: the net.
        name: its name, as ``build_backbone`` takes it.
        channels: 1 or 3.
        sobel: whether the net begins with a Sobel filter.
        preprocessing: what lies between pixels and net.
        pca: projection before the clusters, if any.
        prototypes: centres, and the cluster of each.
        corrections: what a person merged and moved, if anything; not saved with the model, but
            found by :func:`deepcluster.naming.load_model`.
    """

    backbone: nn.Module
    name: str
    channels: int
    sobel: bool
    preprocessing: Preprocessing
    pca: PCA | None
    prototypes: Prototypes
    corrections: Corrections | None = None

    def embed(
        self,
        store: ImageStore,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        advance: Callable[[int], None] = lambda count: None,
    ) -> Tensor:
        """L2-normalised features of images, ``(n, d)`` float32 on the CPU."""
        self.backbone.to(device)
        return normalise(
            extract(
                self.backbone,
                store,
                self.preprocessing,
                device=device,
                dtype=dtype,
                advance=advance,
            )
        )

    def reduce(self, embeddings: Tensor) -> Tensor:
        """What the clusters are found in: the embeddings, after PCA if there is one."""
        return embeddings if self.pca is None else normalise(self.pca.apply(embeddings))

    def assign(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clusters of embeddings.

        Args:
            embeddings: ``(n, d)`` from :meth:`embed`.

        Returns:
            cluster ``(n,)`` int64, -1 for images like those that a person took out of every
            cluster; distance to the nearest centres of that cluster ``(n,)``; confidence in [0, 1]
            ``(n,)``.
        """
        reduced = self.reduce(embeddings)
        assigned = self.prototypes.assign(reduced)
        return assigned if self.corrections is None else self.corrections.apply(reduced, *assigned)

    def save(self, folder: Path) -> None:
        """Write the folder that timm and :meth:`load` read."""
        folder.mkdir(parents=True, exist_ok=True)
        save_timm(
            self.backbone,
            folder,
            name=self.name,
            channels=self.channels,
            size=self.preprocessing.size,
            mean=self.preprocessing.mean,
            std=self.preprocessing.std,
            sobel=self.sobel,
        )
        facts = self.preprocessing
        card = MODEL_CARD.format(
            name=self.name,
            channels=self.channels,
            size=facts.size,
            d=self.backbone.num_features,
            mean=[round(x, 4) for x in facts.mean],
            std=[round(x, 4) for x in facts.std],
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        tensors = {"centers": self.prototypes.centers, "cluster": self.prototypes.cluster}
        if self.pca is not None:
            tensors |= {
                "pca.mean": self.pca.mean,
                "pca.components": self.pca.components,
                "pca.scale": self.pca.scale,
            }
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, folder / CLUSTERS_FILE)
        for path in folder.glob("*.safetensors"):
            path.chmod(0o644)  # the library makes them unreadable for others

    @classmethod
    def load(cls, folder: Path, *, backbone: nn.Module | None = None) -> FittedModel:
        """Read what :meth:`save` wrote.

        Args:
            folder: the folder.
            backbone: the net, where it was a module of the user's own: gets the weights.

        Raises:
            RunError: a file is missing or damaged.
        """
        with reading(folder / "config.json"):
            facts = json.loads((folder / "config.json").read_bytes())
            pretrained = facts["pretrained_cfg"]
            channels, size, _ = pretrained["input_size"]
            numbers = torch.tensor(
                [*pretrained["mean"], *pretrained["std"], size, channels]
            ).double()
            if len(numbers) != 2 * channels + 2 or not bool(numbers.isfinite().all()):
                raise DamagedError("its numbers do not go together")
        with reading(folder / "model.safetensors"):
            net = load_timm(folder) if backbone is None else load_weights(backbone, folder)
            weights = [t for t in net.state_dict().values() if t.is_floating_point()]
            if not all(bool(weight.isfinite().all()) for weight in weights):
                raise DamagedError("a weight is not finite")
        with reading(folder / CLUSTERS_FILE):
            tensors = load_file(folder / CLUSTERS_FILE)
            _check_clusters(tensors, int(net.num_features))  # type: ignore[arg-type]
        pca = (
            PCA(tensors["pca.mean"], tensors["pca.components"], tensors["pca.scale"])
            if "pca.mean" in tensors
            else None
        )
        return cls(
            backbone=net,
            name=facts["architecture"],
            channels=channels,
            sobel=bool(facts.get("model_args", {}).get("sobel", False)),
            preprocessing=Preprocessing(size, tuple(pretrained["mean"]), tuple(pretrained["std"])),
            pca=pca,
            prototypes=Prototypes(tensors["centers"], tensors["cluster"]),
        )


def _check_clusters(tensors: dict[str, Tensor], d: int) -> None:
    """Refuse centres that no fit of a net with `d` features leaves.

    Raises:
        DamagedError: it is so.
    """
    centers, cluster = tensors["centers"], tensors["cluster"]
    if "pca.mean" in tensors:
        mean, components, scale = (tensors[f"pca.{x}"] for x in ("mean", "components", "scale"))
        if mean.shape != (d,) or components.shape != (len(scale), d):
            raise DamagedError("its projection is not of this net")
        d = len(scale)
    if centers.ndim != 2 or centers.shape[1] != d or cluster.shape != (len(centers),):
        raise DamagedError("its centres are not of this net")
    if not all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point()):
        raise DamagedError("a centre is not finite")
    numbers = cluster.unique()
    if cluster.dtype != torch.int64 or not torch.equal(numbers, torch.arange(len(numbers))):
        raise DamagedError("a cluster is missing")
