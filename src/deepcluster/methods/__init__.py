"""What a method is, and the table of methods.

A method owns everything that learns. It answers three questions: what do I need (``__init__``),
which clusters do I see now (``start_epoch``), what is wrong with this batch (``loss``). The loop in
``training/loop.py`` does the rest: batches, views, steps, metrics, checkpoints.

To add one: a file here with a class that follows :class:`Method`, and a line in METHODS.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor, nn

    from deepcluster.config import Config
    from deepcluster.processes import Spread

METHODS: dict[str, str] = {
    "contrastive-clusters": "deepcluster.methods.contrastive_clusters:ContrastiveClusters",
    "deepcluster": "deepcluster.methods.deepcluster:DeepCluster",
    "deepcluster-v2": "deepcluster.methods.deepcluster_v2:DeepClusterV2",
}
"""Name -> "module:class". Strings, so that asking for the names imports no torch."""


@dataclass(frozen=True)
class Snapshot:
    """The clusters a method sees at the start of an epoch, for its metrics."""

    labels: Tensor  # (m,) int64, on the CPU
    clusters: int  # labels are below this
    features: Spread  # (m, d) what was clustered
    rows: Tensor | None = None  # (m,) int64, on the CPU: images they are of; None: all, in order


@dataclass(frozen=True)
class SmallViews:
    """Views of fewer pixels beside the large ones."""

    count: int
    side: float  # over that of the large views
    scale: tuple[float, float] | None = None  # of the area that a crop keeps, if not as of those


class Method(Protocol):
    """The contract. Implementations are ``nn.Module``: what `state_dict` holds is checkpointed.

    Attributes:
        views: random views of each image that :meth:`loss` takes.
        small_views: of fewer pixels beside them, behind them in the list.
        epochs: of the fit, for those that go by it; the loop lowers it where time is short.
        n: images in the fit.
        refilled: buffers with a row an image that every epoch's steps write anew, and which of
            their dimensions the rows are: where several processes train, each holds those of its
            :func:`deepcluster.processes.share`, and a checkpoint has them only before an epoch that
            reads them first.
    """

    views: int
    small_views: SmallViews | None
    n: int
    refilled: Mapping[str, int]

    def __init__(self, config: Config, backbone: nn.Module, n: int) -> None:
        """Set up.

        Args:
            config: resolved settings.
            backbone: ``(b, c, size, size)`` -> ``(b, backbone.num_features)``.
            n: images in the fit.
        """

    def start_epoch(
        self,
        epoch: int,
        extract: Callable[[], Tensor],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> Snapshot | None:
        """Cluster anew where the method does so.

        Args:
            epoch: from 0.
            extract: a pass over all images, ``() -> (n, d)`` features in the order of the images,
                where several processes train of this one's share of them; costs a forward pass each
                time it is called.
            optimizer: of :meth:`groups`, to drop the state of what is drawn anew.
            generator: on the CPU, seeded by the fit's seed and the epoch.
        """

    def reads(self, epoch: int) -> bool:
        """Whether :meth:`start_epoch` of this epoch, from 0, reads what is `refilled`.

        A fit has no epoch ``epochs``; its last checkpoint is of that one.
        """

    def order(self, generator: torch.Generator) -> Tensor:
        """Indices of the images of this epoch's batches, in order: ``(m,)`` int64."""

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer, the backbone's first.

        Keys but ``params`` override the settings; ``matrices: False`` keeps a group from Muon.
        """

    def loss(self, views: list[Tensor], index: Tensor) -> Tensor:
        """Loss of a batch, a mean over its images.

        Args:
            views: :attr:`views` tensors ``(b, c, size, size)``, normalised, and those of
                :attr:`small_views`; where several processes share a batch, of this one's share of
                it.
            index: which images, ``(b,)`` int64, on the views' device; always those of the whole
                batch: :func:`deepcluster.processes.features_of_all` gives their features.
        """


def load_method(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        ConfigError: there is no such method.
    """
    from deepcluster.errors import ConfigError

    if name not in METHODS:
        raise ConfigError(f"there is no method {name!r}: choose one of {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
