"""Run by each of two processes (see test_processes.py): what they come to together is checked.

The first one computes the same alone, on the whole batch.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster import processes
from deepcluster.backbones.build import build_backbone
from deepcluster.backbones.preprocessing import Batches, Preprocessing
from deepcluster.config import Config, override
from deepcluster.errors import ConfigError
from deepcluster.images.store import open_images
from deepcluster.methods import load_method
from deepcluster.progress import Progress
from deepcluster.training.conclude import Clock
from deepcluster.training.loop import train
from deepcluster.training.optimizers import build_optimizer
from deepcluster.training.plan import resolve
from deepcluster.training.step import Step

N = 33  # images: no even number


def close(ones: list[Tensor], others: list[Tensor], tolerance: float = 1e-4) -> None:
    """Each within a share of its largest value; what is 0 but for roundings may differ by those."""
    largest = max(float(other.abs().max()) for other in others)
    for number, (one, other) in enumerate(zip(ones, others, strict=True)):
        assert one.shape == other.shape
        error = (one - other).abs().max() / other.abs().max().clamp(min=1e-3 * largest)
        assert error < tolerance, (number, float(error))


def both(function: Callable[[], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """What a function gives together and alone."""
    with processes.training():
        together = function()
    return together, function()


def rows_and_gradients() -> None:
    torch.manual_seed(0)
    whole = torch.randn(5, 3)

    def gathered() -> list[Tensor]:
        mine = whole[processes.share(5)].clone().requires_grad_()
        found = processes.gather(mine, 5)
        (found.prod(0).sum() / processes.world()).backward()
        assert mine.grad is not None
        return [found.detach(), processes.gather(mine.grad, 5)]

    close(*both(gathered))
    with processes.training():
        assert len(range(5)[processes.share(5)]) == 2 + processes.rank()
        try:
            processes.share(1)
        except ConfigError as error:
            assert "start fewer" in str(error)
        else:
            raise AssertionError("one image for two processes")
        assert processes.agree(7 + processes.rank()) == 7
    assert processes.tell(b"word" if processes.first() else b"") == b"word"
    half = torch.full((3,), float(processes.rank()), dtype=torch.float16)
    processes.equalise([half])
    assert not half.any()


def norms() -> None:
    """Two kinds of batch norm, with far means, and what they keep for later."""
    torch.manual_seed(0)
    images = torch.randn(N, 4, 5, 5) * torch.arange(1, N + 1).view(-1, 1, 1, 1) + 100

    def normed() -> list[Tensor]:
        torch.manual_seed(1)
        last = [nn.BatchNorm2d(6, affine=False), nn.Flatten(), nn.BatchNorm1d(54)]
        net = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, bias=False), *last)
        found = processes.features_of_all(net, [images[processes.share(N)]], N)
        found.pow(3).mean().backward()
        processes.average_gradients(net.parameters())
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        buffers = [b.float() for b in net.buffers()]
        return [found.detach(), *gradients, *buffers]

    close(*both(normed))


def steps(method: str) -> None:
    """Weights, banks and loss after one step."""
    pixels = np.random.default_rng(0).integers(256, size=(N, 16, 16, 1), dtype=np.uint8)
    store = open_images(pixels)
    asked = override(
        Config(),
        {
            "method": method, "clusters": 3, "epochs": 2, "backbone": "convnet_tiny",
            "device": "cpu", "train.precision": "float32", "train.optimizer": "sgd",
            "deepcluster.pseudo_clusters": 5, "deepcluster_v2.prototypes": 5,
        },
    )  # fmt: skip
    config = resolve(asked, n=N, size=16, channels=1)

    def stepped() -> list[Tensor]:
        torch.manual_seed(0)
        learner = load_method(method)(
            config, build_backbone(config.backbone, channels=1, size=16), N
        )
        before = {name: value.clone() for name, value in learner.state_dict().items()}
        optimizer = build_optimizer(learner.groups(), config.train)
        learner.labels.copy_(torch.arange(N) % 3)  # type: ignore[attr-defined]
        learner.labelling = True  # type: ignore[attr-defined]
        learner.train()  # type: ignore[attr-defined]
        step = Step(
            learner,
            optimizer,
            config,
            Preprocessing.measure(store),
            Batches(store, torch.device("cpu")),
        )
        step.begin(0)
        step(torch.randperm(N, generator=torch.Generator().manual_seed(0)))
        after = learner.state_dict()  # type: ignore[attr-defined]
        changes = [(after[name] - before[name]).float() for name in after]
        return [step.total, *changes]

    close(*both(stepped), tolerance=1e-3)


class Hurried:
    """What the clock says to the first process alone: two epochs are enough."""

    def __call__(self, done: int, epochs: int, seconds: float) -> int:
        return 2


def epochs() -> None:
    """All stop after as many epochs, and hold the same features."""
    store = open_images(np.random.default_rng(0).integers(256, size=(N, 16, 16), dtype=np.uint8))
    asked = override(Config(), {"clusters": 3, "epochs": 4, "backbone": "convnet_tiny"})
    config = resolve(dataclasses.replace(asked, device="cpu"), n=N, size=16, channels=1)
    pace: Any = Hurried() if processes.first() else None
    trained = train(store, config, progress=Progress(), clock=Clock(), pace=pace)
    assert trained.config.epochs == len(trained.history) == 2
    theirs = trained.embeddings.clone()
    processes.equalise([theirs])
    assert torch.equal(theirs, trained.embeddings)


if __name__ == "__main__":
    with processes.joined():
        rows_and_gradients()
        norms()
        for method in sys.argv[1:]:
            steps(method)
        epochs()
        if not processes.first():
            assert processes.tell(b"") == b""  # the first one leaves
