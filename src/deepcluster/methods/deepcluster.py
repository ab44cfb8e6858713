"""DeepCluster: k-means on the net's own features makes the labels that train it.

Caron, Bojanowski, Joulin, Douze, "Deep Clustering for Unsupervised Learning of Visual Features",
ECCV 2018. Once an epoch: features of all images, PCA-whitened and L2-normalised, k-means, then
cross-entropy against the clusters through a linear head that is drawn anew.

Where this differs from the authors' code, and why:

- Images are drawn uniformly over pseudo-labels (paper, section 3.3). In the authors' code the
  sampler's indices mean the images' order while the loader's mean the order by cluster, so the
  labels stay as skewed as the clusters are.
- The alternative the paper calls equivalent, weighting the loss by the inverse size of the cluster,
  uses sizes over all images and divides by the sum of the weights, so the loss before the first
  step is ln k. Two public ports divide by the batch size and train with a loss of 1/k of that.
- Empty clusters are filled by the k-means engine, so the head keeps its size. With power iteration
  clustering (``pseudo_labels = "pic"``; paper, section 4.4) the head has as many outputs as groups
  were found, anew at each clustering.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.pca import fit_pca, normalise_
from deepcluster.clustering.pic import power_iteration_clusters
from deepcluster.config import Config
from deepcluster.methods import Snapshot
from deepcluster.processes import Spread, agree, collect, equalise, features_of_all, first

HEAD_STD = 0.01  # of the head's first weights, as in the authors' code
FAISS_SEED = 1234  # faiss's own default, which some ports leave in place at every clustering


class DeepCluster(nn.Module):
    """The method of 2018; the contract is :class:`deepcluster.methods.Method`."""

    views = 1
    small_views = None
    refilled: Mapping[str, int] = {}

    def __init__(self, config: Config, backbone: nn.Module, n: int) -> None:
        super().__init__()
        self.config = config
        settings = config.deepcluster
        self.settings = settings
        assert settings.pseudo_clusters != "auto"
        self.k, self.n = min(settings.pseudo_clusters, n), n
        self.backbone = backbone
        self.head = nn.Linear(int(backbone.num_features), self.k)  # type: ignore[arg-type]
        self._draw_head()
        self.labels: Tensor
        self.class_weights: Tensor
        self.register_buffer("labels", torch.zeros(n, dtype=torch.int64))
        self.register_buffer("class_weights", torch.ones(self.k))

    def _resize(self, k: int, optimizer: torch.optim.Optimizer) -> None:
        """Give the head `k` outputs, in parameters that are yet to be drawn."""
        self.k = k
        before = list(self.head.parameters())
        weight = self.head.weight.data
        self.head = nn.Linear(weight.shape[1], k, device="meta").to_empty(device=weight.device)
        self.class_weights = self.class_weights.new_ones(k)
        _exchange(optimizer, before, list(self.head.parameters()))

    def adopt(self, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Give the head as many outputs as that of a checkpoint has, whatever number was found."""
        weight = state.get("head.weight")
        if self.settings.pseudo_labels == "pic" and weight is not None and len(weight) != self.k:
            self._resize(len(weight), optimizer)

    def _draw_head(self, generator: torch.Generator | None = None) -> None:
        weight = torch.empty(self.head.weight.shape).normal_(0, HEAD_STD, generator=generator)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.zero_()

    def reads(self, epoch: int) -> bool:
        """There is nothing that it could read."""
        return False

    def start_epoch(
        self,
        epoch: int,
        extract: Callable[[], Tensor],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> Snapshot | None:
        """Features, PCA, k-means, new pseudo-labels and a new head."""
        settings = self.settings
        if epoch % settings.recluster_every:
            return None
        features = extract()  # (n, d), of this process's share
        if settings.pca:
            assert settings.pca != "auto"
            kept = min(settings.pca, self.n, features.shape[1])  # there may be no more
            half = self.config.train.precision == "bfloat16"
            rounding = torch.finfo(torch.bfloat16 if half else torch.float32).eps
            whole = Spread(features, self.n)
            pca = fit_pca(whole, kept, whiten=settings.whiten, rounding=rounding)
            features = pca.apply(features)
        spread = Spread(normalise_(features), self.n)
        if settings.pseudo_labels == "pic":
            found, k = self._pic(spread)
        else:
            found, k = spread.gather(self._kmeans(spread, generator)), self.k
        self.labels.copy_(found)
        if k != self.k:
            self._resize(k, optimizer)
        self.class_weights.copy_(inverse_size_weights(self.labels, k))
        if settings.reset_head or settings.pseudo_labels == "pic":
            self._draw_head(generator)
            for parameter in self.head.parameters():
                optimizer.state.pop(parameter, None)
        return Snapshot(found.cpu(), k, spread)

    def _pic(self, features: Spread) -> tuple[Tensor, int]:
        """Groups that the first process finds, in all of them: the walk wants the whole graph."""
        whole, found, k = collect(features.mine, self.n), self.labels.cpu(), 0
        if first():
            groups = power_iteration_clusters(whole)
            found, k = groups.labels, groups.clusters
        equalise([found])
        return found, agree(k)

    def _kmeans(self, features: Spread, generator: torch.Generator) -> Tensor:
        kmeans_settings = self.config.kmeans
        return kmeans(
            features,
            self.k,
            init=kmeans_settings.init,
            max_iter=kmeans_settings.iterations,
            tol=kmeans_settings.tolerance,
            n_init=kmeans_settings.restarts,
            max_points_per_centre=kmeans_settings.max_points_per_centre,
            generator=torch.Generator().manual_seed(FAISS_SEED)
            if self.settings.fixed_kmeans_seed
            else generator,
            device=self.labels.device,
        ).labels

    def order(self, generator: torch.Generator) -> Tensor:
        """Uniform over pseudo-labels, or a permutation; the share `reassign` of it."""
        n = len(self.labels)
        if self.settings.balance == "sampler":
            order = uniform_order(self.labels.cpu(), generator)
        else:
            order = torch.randperm(n, generator=generator)
        return order[: max(1, round(self.settings.reassign * n))]

    def groups(self) -> list[dict[str, Any]]:
        """The backbone, and the head with its own rate and momentum."""
        settings, train = self.settings, self.config.train
        head_lr = train.lr if settings.head_lr == "auto" else settings.head_lr
        return [
            {"params": [p for p in self.backbone.parameters() if p.requires_grad]},
            {
                "params": list(self.head.parameters()),
                "lr": head_lr,
                "momentum": settings.head_momentum,
                "matrices": False,
            },
        ]

    def logits(self, images: Tensor) -> Tensor:
        """Scores of the pseudo-labels, ``(b, c, h, w)`` -> ``(b, k)``."""
        return self._scores(self.backbone(images))

    def _scores(self, features: Tensor) -> Tensor:
        activation: nn.Module = getattr(self.backbone, "feature_activation", nn.Identity())
        return self.head(activation(features))  # type: ignore[no-any-return]

    def loss(self, views: list[Tensor], index: Tensor) -> Tensor:
        """Cross-entropy against the pseudo-labels."""
        weight = self.class_weights if self.settings.balance == "weights" else None
        logits = self._scores(features_of_all(self.backbone, views, len(index)))
        return F.cross_entropy(logits.float(), self.labels[index], weight)


def _exchange(
    optimizer: torch.optim.Optimizer, before: list[nn.Parameter], after: list[nn.Parameter]
) -> None:
    """Put parameters in the places of others in an optimizer, without the state of those."""
    place = {id(old): new for old, new in zip(before, after, strict=True)}
    for group in optimizer.param_groups:
        group["params"] = [place.get(id(p), p) for p in group["params"]]
    for old in before:
        optimizer.state.pop(old, None)


def uniform_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """An epoch of images drawn uniformly over the labels (paper, section 3.3).

    Every label that occurs gives n / (number of labels) images, give or take one: without
    repetition where it has that many, else each of its images as often as any other, give or take
    one.

    Args:
        labels: ``(n,)`` int64, a label an image.
        generator: on the CPU.

    Returns:
        ``(n,)`` int64 indices into `labels`, shuffled.
    """
    n = len(labels)
    sizes = torch.bincount(labels)
    sizes = sizes[sizes > 0]
    quotas = torch.full((len(sizes),), n // len(sizes))
    quotas[torch.randperm(len(sizes), generator=generator)[: n % len(sizes)]] += 1
    drawn = []
    members_of = torch.argsort(labels, stable=True).split(sizes.tolist())
    for members, quota in zip(members_of, quotas.tolist(), strict=True):
        rounds = -(-quota // len(members))
        shuffled = [
            members[torch.randperm(len(members), generator=generator)] for _ in range(rounds)
        ]
        drawn.append(torch.cat([members[:0], *shuffled])[:quota])
    order = torch.cat(drawn)
    return order[torch.randperm(n, generator=generator)]


def inverse_size_weights(labels: Tensor, k: int) -> Tensor:
    """Weights of the loss, inverse to the clusters' sizes; a mean of one over the images.

    Args:
        labels: ``(n,)`` int64 below `k`.
        k: number of labels.

    Returns:
        ``(k,)`` float32, zero for a label that does not occur.
    """
    sizes = torch.bincount(labels, minlength=k).float()
    present = int((sizes > 0).sum())
    return torch.where(sizes > 0, len(labels) / (present * sizes.clamp(min=1)), 0)
