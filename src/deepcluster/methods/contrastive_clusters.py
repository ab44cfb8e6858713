"""Contrast, cluster, self-label: the default method.

Where DeepCluster trains from the first step on clusters of a net that knows nothing, this begins
with what no cluster is needed for, and lets clusters teach only once they are worth something:

1. Contrast: two views of an image belong together, all other images of the batch do not (NT-Xent;
   Chen et al., "SimCLR", ICML 2020). Of photographs there are
   small views as well, of half the side, which cost a quarter: each is to find the two large views
   of its image. (SwAV's multi-crop, Caron et al., NeurIPS 2020, has small crops in their place;
   with crops as large as those of the large views the features were better: docs/log.md.)
2. Cluster: from a share `label_from` of the fit on, the neighbour graph of the projections is cut
   into the k clusters asked for (``clustering/graph.py``), every few epochs. Projections come from
   a bank that the training pass fills, so no pass over the images is spent on it (as in
   DeepCluster-v2).
3. Self-label: a cosine head of k classes learns those clusters on random views, while the contrast
   goes on (Asano et al., "Self-labelling", ICLR 2020, and SCAN, ECCV 2020, end like this). The
   labels keep their numbers from one clustering to the next (best matching), so the head is never
   drawn anew. It is there to shape the features: the final clusters are cut out of their neighbour
   graph once more, which is better than the head's own answer.

Where a net with weights from elsewhere is adapted, the clusters of its own features are worth
something before the first step: they teach from then on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from deepcluster.clustering.graph import cluster_graph
from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.pca import normalise_
from deepcluster.config import Config
from deepcluster.methods import SmallViews, Snapshot
from deepcluster.processes import Spread, features_of_all, share

FIGURE_ROWS = 2000  # images, spread evenly, of which an epoch's figures are, or ten a cluster
ADAPT_HIDDEN = 512  # width of the projector's hidden layer where weights are adapted, and
ADAPT_HEAD_LR = 1e-3  # the least learning rate of what is new then
SMALL_SIDE = 0.5  # of small views, over that of the large ones
MOST_CUTS = 20  # about, in a fit: a cut takes as long as many steps on a GPU


class ContrastiveClusters(nn.Module):
    """The contract is :class:`deepcluster.methods.Method`."""

    views = 2
    refilled = {"bank": 0}  # noqa: RUF012 (never written to)

    def __init__(self, config: Config, backbone: nn.Module, n: int) -> None:
        super().__init__()
        self.settings = config.contrastive_clusters
        assert isinstance(config.clusters, int)
        assert isinstance(config.epochs, int)
        count = self.settings.small_views
        assert count != "auto"
        self.small_views = SmallViews(count, SMALL_SIDE) if count else None
        self.k, self.epochs, self.n = config.clusters, config.epochs, n
        self.neighbours = config.final.neighbours
        self.backbone = backbone
        self.adapts = config.start == "adapt"
        self.lr = config.train.lr
        d, out = int(backbone.num_features), self.settings.dimensions  # type: ignore[arg-type]
        hidden = ADAPT_HIDDEN if self.adapts else 2 * d
        self.projector = nn.Sequential(
            nn.Linear(d, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out),
        )
        self.head = nn.Linear(d, self.k, bias=False)
        # Banks are rewritten every epoch: in half precision, and of the features only those of
        # some images. The last row is for all others.
        several = min(n, max(FIGURE_ROWS, 10 * self.k))
        rows, held = torch.arange(several) * n // several, share(n)
        self.bank: Tensor
        self.feature_bank: Tensor
        self.rows: Tensor
        self.labels: Tensor
        bank = torch.zeros(held.stop - held.start, out, dtype=torch.float16)
        self.register_buffer("bank", bank)
        self.register_buffer("feature_bank", torch.zeros(several + 1, d, dtype=torch.float16))
        self.register_buffer("rows", rows, persistent=False)
        few = self.k <= torch.iinfo(torch.uint8).max + 1
        self.register_buffer("labels", torch.zeros(n, dtype=torch.uint8 if few else torch.int32))
        self.centers: Tensor
        self.register_buffer("centers", torch.zeros(self.k, d))
        self.labelling = False

    @property
    def first(self) -> int:
        """The epoch in which the clusters begin to teach."""
        if self.adapts:  # the clusters of the weights' own features are worth teaching
            return 0
        return max(1, round(self.settings.label_from * self.epochs))

    @property
    def every(self) -> int:
        """Epochs between two cuts."""
        return max(self.settings.recluster_every, math.ceil((self.epochs - self.first) / MOST_CUTS))

    def reads(self, epoch: int) -> bool:
        """Whether the graph is cut at the start of an epoch, which takes the whole bank."""
        if not max(self.first, 1) <= epoch < self.epochs:
            return False
        fresh = not bool(self.labels.any())  # not epoch == first: the epochs may become fewer
        return fresh or (epoch - self.first) % self.every == 0

    def start_epoch(
        self,
        epoch: int,
        extract: Callable[[], Tensor],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> Snapshot | None:
        """New labels from the bank, once it is time and every few epochs from then on.

        The figures of an epoch are of k-means on the features that the training pass has seen of
        some images, going on from the last epoch's centres: cheap, there from the second epoch on,
        and the same measure all along. The final cut of the graph is as a rule better than they
        say.
        """
        self.labelling = epoch >= self.first
        if epoch == 0:  # the bank is empty
            if self.adapts:
                whole = Spread(F.normalize(extract()).to(self.centers.device), self.n)
                self.feature_bank[:-1] = whole.take(self.rows).half()
                self._relabel(whole, generator, fresh=True)
            return None
        # a checkpoint of a fit whose epochs became fewer in this very epoch may lack the bank
        if self.reads(epoch) and bool(self.bank.any()):
            fresh = not bool(self.labels.any())
            bank = Spread(normalise_(self.bank.float()), self.n)
            self._relabel(bank, generator, fresh=fresh)
        if not bool(self.labels.any()):
            self.labelling = False  # they would teach that all images are of one class
        features = F.normalize(self.feature_bank[:-1].float())
        result = kmeans(
            features,
            self.k,
            metric="cosine",
            init="k-means++" if epoch == 1 else self.centers,
            generator=generator,
        )
        self.centers.copy_(result.centers)
        seen = Spread(features, len(features))  # of some images, but in each process
        return Snapshot(result.labels.cpu(), self.k, seen, self.rows.cpu())

    @torch.no_grad()
    def _relabel(self, bank: Spread, generator: torch.Generator, *, fresh: bool) -> None:
        prototypes = cluster_graph(bank, self.k, neighbours=self.neighbours, generator=generator)
        found = bank.gather(prototypes.assign(bank.mine)[0])
        if fresh:
            own, features = found[self.rows], self.feature_bank[:-1].float()
            means = torch.zeros_like(self.head.weight).index_add_(0, own, features)
            seen = torch.bincount(own, minlength=self.k)[:, None] > 0
            self.head.weight.copy_(F.normalize(torch.where(seen, means, self.head.weight)))
        else:
            found = match_labels(found, self.labels.long(), self.k)
        self.labels.copy_(found)

    def order(self, generator: torch.Generator) -> Tensor:
        """A permutation of all images."""
        return torch.randperm(self.n, generator=generator)

    def groups(self) -> list[dict[str, Any]]:
        """Backbone, projector and head; the last layers are no matrices for Muon."""
        last = [*self.projector[-1].parameters(), *self.head.parameters()]
        new: dict[str, Any] = {}
        if self.adapts:
            assert isinstance(self.lr, float)
            new = {"lr": max(self.lr, ADAPT_HEAD_LR)}
        return [
            {"params": [p for p in self.backbone.parameters() if p.requires_grad]},
            {"params": list(self.projector[:-1].parameters()), **new},
            {"params": last, "matrices": False, **new},
        ]

    def loss(self, views: list[Tensor], index: Tensor) -> Tensor:
        """The contrast and, once there are labels, the cross-entropy of both large views."""
        features, z = self._seen(views[: self.views], len(index))  # (2b, d), (2b, out)
        features = F.normalize(features.float())
        Spread(self.bank, self.n).put(index, z.detach().unflatten(0, (2, -1)).sum(0).half())
        both = features.detach().unflatten(0, (2, -1)).sum(0)
        self.feature_bank[self._slots(index)] = both.half()
        settings = self.settings
        small = self._seen(views[self.views :], len(index))[1] if self.small_views else None
        with torch.autocast(z.device.type, enabled=False):  # cosines over 0.1 need the digits
            loss = nt_xent(z, settings.temperature)
            if small is not None:
                found = small_to_large(small, z.detach(), settings.temperature)
                loss = torch.lerp(loss, found, len(small) / (len(z) + len(small)))  # mean of views
            if self.labelling:
                logits = features @ F.normalize(self.head.weight).T / settings.head_temperature
                targets = self.labels[index].long().repeat(2)
                smoothing = settings.label_smoothing
                loss = loss + F.cross_entropy(logits, targets, label_smoothing=smoothing)
        return loss

    def _seen(self, views: list[Tensor], batch: int) -> tuple[Tensor, Tensor]:
        """Features ``(vb, d)`` of the views of all processes, and their projections of length 1."""
        features = features_of_all(self.backbone, views, batch)
        return features, F.normalize(self.projector(features).float())

    def _slots(self, index: Tensor) -> Tensor:
        """Where the features of images ``(b,)`` go: the last row, unless they are among `rows`."""
        several = len(self.rows)
        slot = (index * several + self.n - 1) // self.n
        own = self.rows[slot.clamp(max=several - 1)] == index
        return torch.where(own, slot, several)


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding an image's other view among all others of the batch.

    SimCLR, equation 1.

    Args:
        z: ``(2b, d)`` rows of length 1; row i and row b + i are views of one image.
        temperature: of the softmax.
    """
    b = len(z) // 2
    scores = z @ z.T / temperature  # (2b, 2b)
    scores.fill_diagonal_(-torch.inf)
    other = torch.arange(2 * b, device=z.device).roll(b)
    return F.cross_entropy(scores, other)


def small_to_large(small: Tensor, views: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding the two large views of a small view's image among all of the batch.

    Args:
        small: ``(mb, d)`` rows of length 1; row i is a view of image i modulo b.
        views: ``(2b, d)`` rows of length 1; rows i and b + i are views of one image.
        temperature: of the softmax.
    """
    b = len(views) // 2
    scores = (small @ views.T / temperature).view(-1, b, 2 * b)
    mean = (scores[..., :b].diagonal(0, 1, 2) + scores[..., b:].diagonal(0, 1, 2)) / 2
    return (scores.logsumexp(2) - mean).mean()


def match_labels(labels: Tensor, before: Tensor, k: int) -> Tensor:
    """Renumber clusters so that as many images as possible keep their number.

    Args:
        labels: ``(n,)`` int64 below `k`.
        before: ``(n,)`` int64 below `k`, the numbering to keep.
        k: number of clusters.

    Returns:
        ``(n,)`` int64, `labels` under a permutation of the numbers.
    """
    shared = torch.bincount(labels * k + before, minlength=k * k).view(k, k)
    rows, columns = linear_sum_assignment(shared.cpu().numpy(), maximize=True)
    number = torch.empty(k, dtype=torch.int64)
    number[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return number.to(labels.device)[labels]
