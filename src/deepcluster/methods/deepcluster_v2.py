"""DeepCluster-v2: centroids of a memory bank are the classifier.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS
2020, section 4 and appendix D. The embeddings that training computes anyway are kept in a bank;
once an epoch, spherical k-means on the bank gives each of several heads its centroids, which are
the frozen weights of its classifier, so labels and head always agree and nothing is drawn anew.

Where this differs from public code, and why:

- The bank is first filled by a pass over all images, so the first epoch has labels to train on
  (one re-implementation ignores every image of its first epoch).
- All images keep a label, whatever the batches leave out.
- Banks, centroids and labels are buffers: a fit that resumes has them. Banks are float16.
- Empty clusters are filled by the k-means engine (the authors keep the old centroid).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.clustering.kmeans import kmeans
from deepcluster.config import Config
from deepcluster.methods import SmallViews, Snapshot
from deepcluster.processes import Spread, features_of_all, share

BANKS = 2  # a bank a large view; head h is clustered on bank h mod 2, as in the authors' code
SMALL = 96 / 224, (0.05, 0.14)  # side of the small crops and their area, as in the authors' code
LLOYD = 10  # iterations of k-means, as in the authors' code


class DeepClusterV2(nn.Module):
    """The contract is :class:`deepcluster.methods.Method`."""

    views = BANKS
    refilled = {"bank": 1}  # noqa: RUF012 (never written to)

    def __init__(self, config: Config, backbone: nn.Module, n: int) -> None:
        super().__init__()
        self.settings = config.deepcluster_v2
        assert self.settings.prototypes != "auto"
        self.k, self.n = min(self.settings.prototypes, n), n
        assert isinstance(config.epochs, int)
        self.epochs = config.epochs
        count = self.settings.small_views
        self.small_views = SmallViews(count, *SMALL) if count else None
        self.backbone = backbone
        d, out = int(backbone.num_features), self.settings.dimensions  # type: ignore[arg-type]
        hidden = self.settings.hidden or 2 * d
        self.projector = nn.Sequential(
            nn.Linear(d, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out),
        )
        heads = self.settings.heads
        self.bank: Tensor
        self.centroids: Tensor
        self.labels: Tensor
        held = share(n)
        bank = torch.zeros(BANKS, held.stop - held.start, out, dtype=torch.float16)
        self.register_buffer("bank", bank)
        self.register_buffer("centroids", torch.zeros(heads, self.k, out))
        self.register_buffer("labels", torch.zeros(heads, n, dtype=torch.int32))

    def reads(self, epoch: int) -> bool:
        """Every epoch does but the first, which begins with a pass over the images."""
        return 0 < epoch < self.epochs

    @torch.no_grad()
    def start_epoch(
        self,
        epoch: int,
        extract: Callable[[], Tensor],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> Snapshot | None:
        """Spherical k-means of each head's bank; the centroids become its classifier."""
        if epoch == 0:
            features = extract()
            for start in range(0, len(features), 4096):
                chunk = features[start : start + 4096].to(self.bank.device)
                self.bank[:, start : start + 4096] = F.normalize(self.projector(chunk))
        for head in range(len(self.centroids)):
            bank = Spread(self.bank[head % BANKS], self.n)
            result = kmeans(
                bank,
                self.k,
                metric="cosine",
                init="random",
                max_iter=LLOYD,
                tol=0.0,
                generator=generator,
            )
            self.centroids[head] = result.centers
            self.labels[head] = bank.gather(result.labels)
        return Snapshot(self.labels[0].cpu(), self.k, Spread(self.bank[0], self.n))

    def order(self, generator: torch.Generator) -> Tensor:
        """A permutation of all images."""
        return torch.randperm(self.n, generator=generator)

    def groups(self) -> list[dict[str, Any]]:
        """The backbone and the projector; its last layer is no matrix for Muon."""
        return [
            {"params": [p for p in self.backbone.parameters() if p.requires_grad]},
            {"params": list(self.projector[:-1].parameters())},
            {"params": list(self.projector[-1].parameters()), "matrices": False},
        ]

    def loss(self, views: list[Tensor], index: Tensor) -> Tensor:
        """Mean over heads and views of the cross-entropy of the bank's labels."""
        z = self._project(views[:BANKS], len(index))  # BANKS of (b, out)
        for number, embedding in enumerate(z):
            Spread(self.bank[number], self.n).put(index, embedding.detach().half())
        if len(views) > BANKS:
            z += self._project(views[BANKS:], len(index))
        targets = self.labels[:, index].long()  # (heads, b)
        with torch.autocast(z[0].device.type, enabled=False):  # cosines over 0.1 need the digits
            losses = [
                F.cross_entropy(embedding @ centroids.T / self.settings.temperature, target)
                for embedding in z
                for centroids, target in zip(self.centroids, targets, strict=True)
            ]
        return torch.stack(losses).mean()

    def _project(self, views: list[Tensor], n: int) -> tuple[Tensor, ...]:
        features = features_of_all(self.backbone, views, n)
        return torch.split(F.normalize(self.projector(features).float()), n)
