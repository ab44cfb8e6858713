"""Images -> features, and the fitted model that says which cluster a new image belongs to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deepcluster.backbones.preprocessing import Preprocessing, to_device
from deepcluster.backbones.start import weights_key
from deepcluster.backbones.weights import load_timm, load_weights, save_timm
from deepcluster.clustering.corrections import Corrections
from deepcluster.clustering.pca import PCA, normalise_
from deepcluster.clustering.prototypes import Prototypes
from deepcluster.config import GIVEN
from deepcluster.device import Compute, fast_bfloat16
from deepcluster.errors import DamagedError, RunError, SourceError
from deepcluster.files import reading, replacing
from deepcluster.images.kept import trim
from deepcluster.images.sinks import pixel_digest
from deepcluster.images.sources import cache_folder

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
from deepcluster.backbones.registered import timm  # told of the nets that are not its own

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
    compute: Compute,
    *,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Features of images in their order, in evaluation mode.

    Args:
        backbone: ``(b, c, size, size)`` -> ``(b, d)``; left in the mode it came in.
        store: the images.
        preprocessing: crop and normalisation.
        compute: where the backbone is, arithmetic and batch.
        advance: called with the number of images done since the last call.

    Returns:
        ``(n, d)`` float32 on the CPU.
    """
    training = backbone.training
    backbone.eval().to(memory_format=torch.channels_last)
    features: Tensor | None = None
    device, dtype = compute.device, compute.dtype
    for start in range(0, len(store), compute.batch_size):
        index = np.arange(start, min(len(store), start + compute.batch_size))
        images = preprocessing(to_device(store.batch(index), device))
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            batch = backbone(images)
        if features is None:
            features = torch.empty(len(store), batch.shape[1])
        features[start : start + len(index)] = batch.float().cpu()
        advance(len(index))
    backbone.train(training)
    assert features is not None  # a store is never empty
    return features


TRIAL_SECONDS = 2.0
"""A batch that would take longer is not tried, and one that does is not timed again."""
TRIAL_PIXELS = 2**20
"""Of a batch on a processor: larger ones leave its cache, and take memory that nothing needs."""
BATCHES = (8, 32, 128)
"""Batches that are tried: on a processor a large image's activations outgrow its cache early."""
CLEARLY = 1.1
"""By so much bfloat16, or a larger batch, must be the faster to be taken."""
KEPT_BYTES = 4_000_000_000
"""Features of frozen nets that stay in the user's cache folder; the oldest go first."""


@dataclass(frozen=True)
class Speed:
    """How a machine is best asked for features."""

    dtype: torch.dtype
    batch_size: int
    seconds: float  # an image


@torch.no_grad()
def find_speed(
    backbone: nn.Module, *, channels: int, size: int, device: torch.device, dtype: str = "auto"
) -> Speed:
    """The fastest arithmetic and batch for this net on this machine, by a timed trial.

    Channels-last always: no net was seen that is faster without.

    Args:
        backbone: the net; moved to the device.
        channels: of the images.
        size: their side in pixels.
        device: where it runs.
        dtype: float32 or bfloat16, where that is settled.
    """
    training = backbone.training
    backbone.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def timed(arithmetic: torch.dtype, batch: int) -> float:
        images = torch.zeros(batch, channels, size, size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        took, spent = math.inf, 0.0
        for turn in range(3):  # the first one builds kernels
            if turn and spent > TRIAL_SECONDS:
                break
            began = time.perf_counter()
            with torch.autocast(device.type, arithmetic, enabled=arithmetic != torch.float32):
                backbone(images)[0].float().cpu()  # waits for the device
            seconds = time.perf_counter() - began
            took, spent = min(took, seconds), spent + seconds
        return took / batch

    arithmetic = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    # A GPU waits for its orders where there are few images.
    least, *others = BATCHES if device.type == "cpu" else BATCHES[1:]
    best = Speed(arithmetic, least, timed(arithmetic, least))
    if dtype == "auto" and fast_bfloat16(device):  # else it takes ten times as long
        seconds = timed(torch.bfloat16, least)
        if CLEARLY * seconds < best.seconds:
            best = Speed(torch.bfloat16, least, seconds)
    for batch in others:
        large = device.type == "cpu" and batch * size**2 > TRIAL_PIXELS
        if large or batch * best.seconds > TRIAL_SECONDS:
            break
        seconds = timed(best.dtype, batch)
        if CLEARLY * seconds < best.seconds:
            best = Speed(best.dtype, batch, seconds)
    backbone.train(training)
    return best


def kept_features(
    backbone: nn.Module,
    store: ImageStore,
    preprocessing: Preprocessing,
    compute: Compute,
    *,
    advance: Callable[[int], None] = lambda count: None,
    note: Callable[[str], None] = lambda text: None,
    extract: Callable[..., Tensor] = extract,
) -> Tensor:
    """L2-normalised features of a net that does not learn, from the last fit if they are the same.

    They are kept under a hash of every pixel, every weight and all that lies between. Arguments as
    for :func:`extract`, what is told in a sentence that they were kept, and what takes the place of
    :func:`extract` where several processes share the images.
    """
    how = (str(compute.dtype), compute.device.type, torch.__version__)
    facts = (store.pixels.shape, preprocessing, *how)
    pixels = store.digest or pixel_digest(store.pixels)
    key = repr((*facts, weights_key(backbone), pixels)).encode()
    folder = cache_folder() / "features"
    file = folder / f"{hashlib.blake2b(key, digest_size=16).hexdigest()}.npy"
    found = None
    with contextlib.suppress(Exception):  # none there, or damaged in whatever way
        found = np.load(file, allow_pickle=False)
    if found is not None and found.ndim == 2 and len(found) == len(store):
        with contextlib.suppress(OSError):  # somebody else's
            file.touch()
        advance(len(store))
        note("features: those of an earlier fit were kept (`deepcluster cache` shows what is)")
        return torch.from_numpy(found)
    features = normalise_(extract(backbone, store, preprocessing, compute, advance=advance))
    with contextlib.suppress(OSError):  # a full disk, a folder that cannot be written: not kept
        _keep(file, features)
    return features


def _keep(file: Path, features: Tensor) -> None:
    """Write features, and remove those that were not asked for longest, where there are too many.

    Raises:
        OSError: they cannot be written.
    """
    folder = file.parent
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{file.stem}-{os.getpid()}.part"
    try:
        with part.open("wb") as opened:
            np.save(opened, features.numpy(), allow_pickle=False)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    trim(file, KEPT_BYTES - file.stat().st_size)


@dataclass
class FittedModel:
    """A backbone and the clusters found with it.

    Attributes:
        backbone: the net; None where the features were made elsewhere.
        name: its name, as ``build_backbone`` takes it.
        channels: 1 or 3.
        sobel: whether the net begins with a Sobel filter.
        preprocessing: what lies between pixels and net.
        pca: projection before the clusters, if any.
        prototypes: centres, and the part and the cluster of each.
        corrections: what a person merged and moved, if anything; not saved with the model, but
            found by :func:`deepcluster.naming.load_model`.
        license: that the weights it began with came with, if any.
    """

    backbone: nn.Module | None
    name: str
    channels: int
    sobel: bool
    preprocessing: Preprocessing
    pca: PCA | None
    prototypes: Prototypes
    corrections: Corrections | None = None
    license: str = ""

    def embed(
        self,
        store: ImageStore,
        compute: Compute,
        *,
        advance: Callable[[int], None] = lambda count: None,
        extract: Callable[..., Tensor] = extract,
    ) -> Tensor:
        """L2-normalised features of images, ``(n, d)`` float32 on the CPU: see :func:`extract`.

        Raises:
            RunError: the features of the fit were made elsewhere.
        """
        if self.backbone is None:
            raise RunError("this run was made of vectors, it has no net: give vectors, not images")
        self.backbone.to(compute.device)
        found = extract(self.backbone, store, self.preprocessing, compute, advance=advance)
        return normalise_(found)

    def check_width(self, rows: np.ndarray) -> None:
        """Refuse vectors ``(n, d)`` that cannot be of the net whose vectors were fitted.

        Raises:
            SourceError: they have another number of columns.
        """
        width = self.prototypes.centers.shape[1] if self.pca is None else len(self.pca.mean)
        if rows.shape[1] != width:
            raise SourceError(
                f"these vectors have {rows.shape[1]:,} numbers each, those of the fit {width:,}: "
                "give vectors of the same net, made in the same way"
            )

    def reduce(self, embeddings: Tensor) -> Tensor:
        """What the clusters are found in: the embeddings, after PCA if there is one."""
        return embeddings if self.pca is None else normalise_(self.pca.apply(embeddings))

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

    def parts_of(self, embeddings: Tensor) -> Tensor:
        """The part of the tree that each embedding belongs to, ``(n,)`` int64."""
        return self.prototypes.parts_of(self.reduce(embeddings))

    def save(self, folder: Path) -> None:
        """Write the folder that timm and :meth:`load` read."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.backbone is not None:
            self._save_net(self.backbone, folder)
        self.save_clusters(folder)

    def save_clusters(self, folder: Path) -> None:
        """Write what assigns an image, and leave the net as it is."""
        tensors = {"centers": self.prototypes.centers, "cluster": self.prototypes.cluster}
        given = {"part": self.prototypes.part, "base": self.prototypes.base}
        tensors |= {name: value for name, value in given.items() if value is not None}
        if self.pca is not None:
            tensors |= {
                "pca.mean": self.pca.mean,
                "pca.components": self.pca.components,
                "pca.scale": self.pca.scale,
            }
        with replacing(folder / CLUSTERS_FILE) as part:
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, part)
        for path in folder.glob("*.safetensors"):
            path.chmod(0o644)  # the library makes them unreadable for others

    def save_net(self, folder: Path) -> None:
        """Write the net, as timm reads it."""
        assert self.backbone is not None
        save_timm(
            self.backbone,
            folder,
            name=self.name,
            channels=self.channels,
            preprocessing=self.preprocessing,
            sobel=self.sobel,
            license=self.license,
        )

    def _save_net(self, backbone: nn.Module, folder: Path) -> None:
        self.save_net(folder)
        facts = self.preprocessing
        card = MODEL_CARD.format(
            name=self.name,
            channels=self.channels,
            size=facts.size,
            d=backbone.num_features,
            mean=[round(x, 4) for x in facts.mean],
            std=[round(x, 4) for x in facts.std],
        )
        (folder / "README.md").write_text(card, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, backbone: nn.Module | None = None) -> FittedModel:
        """Read what :meth:`save` wrote.

        Args:
            folder: the folder.
            backbone: the net, where it was a module of the user's own: gets the weights.

        Raises:
            RunError: a file is missing or damaged.
        """
        net: nn.Module | None = None
        rest: dict[str, Any] = {"name": GIVEN, "channels": 1, "sobel": False}
        preprocessing = Preprocessing(1, (0.0,), (1.0,))
        if (folder / "config.json").exists() or (folder / "model.safetensors").exists():
            net, preprocessing, rest = load_net(folder, backbone)
        with reading(folder / CLUSTERS_FILE):
            # copies: while its tensors live, Windows lets nobody replace a file that is mapped
            held = load_file(folder / CLUSTERS_FILE)
            tensors = {name: tensor.clone() for name, tensor in held.items()}
            _check_clusters(tensors, None if net is None else int(net.num_features))  # type: ignore[arg-type]
        pca = (
            PCA(tensors["pca.mean"], tensors["pca.components"], tensors["pca.scale"])
            if "pca.mean" in tensors
            else None
        )
        prototypes = Prototypes(
            tensors["centers"], tensors["cluster"], tensors.get("part"), tensors.get("base")
        )
        return cls(
            backbone=net, preprocessing=preprocessing, pca=pca, prototypes=prototypes, **rest
        )


def load_net(
    folder: Path, backbone: nn.Module | None = None
) -> tuple[nn.Module, Preprocessing, dict[str, Any]]:
    """The net of a folder, what lies before it, and what else its config.json says."""
    with reading(folder / "config.json"):
        facts = json.loads((folder / "config.json").read_bytes())
        said = facts["pretrained_cfg"]
        channels, size, _ = said["input_size"]
        crop = said["crop_pct"]
        numbers = torch.tensor([*said["mean"], *said["std"], size, channels, crop]).double()
        if len(numbers) != 2 * channels + 3 or not bool(numbers.isfinite().all()) or crop <= 0:
            raise DamagedError("its numbers do not go together")
        preprocessing = Preprocessing(
            size,
            tuple(said["mean"]),
            tuple(said["std"]),
            math.floor(size / crop),
            str(said["interpolation"]),
        )
    with reading(folder / "model.safetensors"):
        net = load_timm(folder) if backbone is None else load_weights(backbone, folder)
        weights = [t for t in net.state_dict().values() if t.is_floating_point()]
        if not all(bool(weight.isfinite().all()) for weight in weights):
            raise DamagedError("a weight is not finite")
    return (
        net,
        preprocessing,
        {
            "name": facts["architecture"],
            "channels": channels,
            "sobel": bool(facts.get("model_args", {}).get("sobel", False)),
            "license": said.get("license") or "",
        },
    )


def _check_clusters(tensors: dict[str, Tensor], d: int | None) -> None:
    """Refuse centres that no fit of a net with `d` features leaves; None is vectors of any length.

    Raises:
        DamagedError: it is so.
    """
    centers, cluster = tensors["centers"], tensors["cluster"]
    if d is None:
        d = tensors["pca.mean" if "pca.mean" in tensors else "centers"].shape[-1]
    if "pca.mean" in tensors:
        mean, components, scale = (tensors[f"pca.{x}"] for x in ("mean", "components", "scale"))
        if mean.shape != (d,) or components.shape != (len(scale), d):
            raise DamagedError("its projection is not of this net")
        d = len(scale)
    if centers.ndim != 2 or centers.shape[1] != d or cluster.shape != (len(centers),):
        raise DamagedError("its centres are not of this net")
    if not all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point()):
        raise DamagedError("a centre is not finite")
    for name in ("cluster", "part", "base"):
        groups = tensors.get(name, cluster)
        numbers = groups.unique()
        if groups.dtype != torch.int64 or groups.shape != cluster.shape:
            raise DamagedError("its centres are not of this net")
        if not torch.equal(numbers, torch.arange(len(numbers))):
            raise DamagedError(f"a {name} is missing")
