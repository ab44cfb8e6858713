"""Run by each of some processes (see test_processes.py): what they come to together is checked.

The first one computes the same alone, on the whole batch.
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcluster import processes
from deepcluster.backbones.build import build_backbone
from deepcluster.backbones.preprocessing import Batches, Preprocessing
from deepcluster.clustering.graph import cluster_graph
from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.neighbours import knn
from deepcluster.clustering.pca import fit_pca
from deepcluster.config import Config, override
from deepcluster.errors import ConfigError
from deepcluster.images.store import open_images
from deepcluster.methods import deepcluster, load_method
from deepcluster.processes import Spread
from deepcluster.progress import Progress
from deepcluster.run import RunDir
from deepcluster.training.checkpoints import load_newest, save_checkpoint, share_state
from deepcluster.training.conclude import Clock
from deepcluster.training.loop import train
from deepcluster.training.optimizers import build_optimizer, orthogonalise_together
from deepcluster.training.resolve import resolve
from deepcluster.training.sharing import Images
from deepcluster.training.step import Step

N = 33  # images: no even number
FLOAT = torch.float32


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
        lengths = [len(range(5)[rows]) for rows in processes.shares(5)]
        assert sum(lengths) == 5 and max(lengths) - min(lengths) <= 1
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


def spread_rows() -> None:
    """Rows that lie in all processes are found, written, sent and compared wherever they are."""
    torch.manual_seed(0)
    whole = torch.randn(N, 5)
    batch = torch.randperm(N)[:13]

    def spread() -> Spread:
        return Spread(whole[processes.share(N)].clone(), N)

    def found() -> list[Tensor]:
        rows = spread()
        held = rows.mine[rows.locate(batch)[1]]
        sent = processes.exchange(held, batch, N)
        assert torch.equal(sent, whole[batch][processes.share(len(batch))])
        rows.put(batch, torch.arange(13.0)[:, None].expand(13, 5))
        collected = processes.collect(rows.mine, N)
        if processes.first():
            assert torch.equal(collected, rows.gather(rows.mine))
        else:
            rows.gather(rows.mine)
        return [spread().take(batch), rows.gather(rows.mine)]

    for one, other in zip(*both(found), strict=True):
        assert torch.equal(one, other)

    def neighbours() -> list[Tensor]:
        return [*knn(spread(), 9, queries=batch)]

    (places, distances), (others, expected) = both(neighbours)
    assert torch.equal(places, others)
    close([distances], [expected])
    close(*both(lambda: [*vars(fit_pca(spread(), 3)).values()]))
    close(*both(lambda: [*vars(fit_pca(Spread(whole[:4][processes.share(4)], 4), 3)).values()]))


def clusters() -> None:
    """k-means from the same start, its own starts, and the cut of the graph."""
    torch.manual_seed(0)
    whole = torch.randn(400, 6) + 5 * torch.randint(4, (400, 1))
    start = torch.cat([whole[:5], torch.full((2, 6), 100.0)])  # two that will be empty

    def spread() -> Spread:
        return Spread(whole[processes.share(400)], 400)

    for metric, init in (("l2", start), ("cosine", start), ("l2", "random"), ("l2", "k-means++")):
        for more in ({}, {"max_points_per_centre": 20}):

            def found(metric: Any = metric, init: Any = init, more: Any = more) -> list[Tensor]:
                generator = torch.Generator().manual_seed(0)
                x = spread()
                result = kmeans(x, 7, metric=metric, init=init, generator=generator, **more)
                numbers = [result.inertia, result.n_iter, result.n_repaired]
                return [torch.tensor(numbers, dtype=torch.float64), result.centers,
                        x.gather(result.labels).float()]  # fmt: skip

            together, alone = both(found)
            assert abs(together[0][0] / alone[0][0] - 1) < 1e-6, (metric, init)
            close(together, alone)
            assert init is not start or more or alone[0][2] > 0  # of empty clusters

    with processes.training():  # the row is the first process's: the others say the same of it
        rows = whole[processes.share(400)].clone()
        rows[0] += torch.inf if processes.first() else 0
        try:
            kmeans(Spread(rows, 400), 7, generator=torch.Generator())
        except ValueError as error:
            assert "1 of 400 rows hold NaN" in str(error)
        else:
            raise AssertionError("a row that is not finite")

    def cut() -> list[Tensor]:
        x = spread()
        found = cluster_graph(x, 4, generator=torch.Generator().manual_seed(0))
        return [found.centers, x.gather(found.assign(x.mine)[0]).float()]

    close(*both(cut))


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


def matrices() -> None:
    """Each process moves a part of the weights; of a single one, all but one process none."""
    torch.manual_seed(0)
    stacks = [torch.randn(3, 8, 20), torch.randn(1, 30, 9), torch.randn(2, 4, 4)]
    for some in (stacks, stacks[1:2]):
        both_ways = both(lambda some=some: orthogonalise_together(some, [5] * len(some), FLOAT))
        close(*both_ways, tolerance=1e-5)
    found = both_ways[0][0]
    theirs = found.clone()
    processes.equalise([theirs])
    assert torch.equal(found, theirs)


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
            "contrastive_clusters.small_views": 2,
        },
    )  # fmt: skip
    config = resolve(asked, n=N, size=16, channels=1)

    def stepped() -> list[Tensor]:
        torch.manual_seed(0)
        mine = store.only(np.arange(N)[processes.share(N)])
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
            Batches(mine, torch.device("cpu"), N),
        )
        step.begin(0)
        step(torch.randperm(N, generator=torch.Generator().manual_seed(0)))
        after = learner.state_dict()  # type: ignore[attr-defined]
        for name, dim in learner.refilled.items():
            for state in (before, after):
                state[name] = processes.gather(state[name], N, dim)
        changes = [(after[name] - before[name]).float() for name in after]
        return [step.total, *changes]

    close(*both(stepped), tolerance=1e-3)


class Hurried:
    """What the clock says to the first process alone: two epochs are enough."""

    def __call__(self, done: int, epochs: int, seconds: float) -> int:
        return 2


def epochs() -> None:
    """All stop after as many epochs; the first has the features of all, in their order."""
    store = open_images(np.random.default_rng(0).integers(256, size=(N, 16, 16), dtype=np.uint8))
    with processes.training():
        rows = processes.share(N)
    images = Images(store.only(np.arange(N)[rows]), N, Preprocessing.measure(store))
    asked = override(Config(), {"clusters": 3, "epochs": 4, "backbone": "convnet_tiny"})
    config = resolve(dataclasses.replace(asked, device="cpu"), n=N, size=16, channels=1)
    pace: Any = Hurried() if processes.first() else None
    trained = train(images, config, progress=Progress(), clock=Clock(), pace=pace)
    assert trained.config.epochs == len(trained.history) == 2
    theirs = (
        trained.embeddings if processes.first() else torch.empty(N, trained.embeddings.shape[1])
    )
    processes.equalise([theirs])
    assert theirs.shape[0] == N
    assert torch.equal(theirs if processes.first() else theirs[rows], trained.embeddings)


def who_is_late() -> None:
    """The last process computes for 9 s where the others do for 3, or all do as long."""
    last = processes.helpers() - 1
    with processes.training():
        said = processes.latecomer(9.0 if processes.rank() == last else 3.0)
        assert f"process {last} (from 0)" in said and "9.0 s an epoch, others 3.0 s" in said
        assert processes.latecomer(3.0 + 0.01 * processes.rank()) == ""
        assert processes.latecomer(0.09 if processes.rank() == last else 0.03) == ""  # too short
        with processes.computing() as spent:
            began = time.perf_counter()
            processes.agree(1)
            whole = time.perf_counter() - began
        assert 0 <= spent[0] < whole  # messages are not counted
    assert processes.latecomer(9.0) == ""  # alone


def found_labels() -> None:
    """Where the number of labels is found as it goes, the first process finds it for all."""
    if not processes.first():
        deepcluster.power_iteration_clusters = None  # type: ignore[assignment]
    store = open_images(np.random.default_rng(0).integers(256, size=(N, 16, 16), dtype=np.uint8))
    asked = {"method": "deepcluster", "deepcluster.pseudo_labels": "pic", "epochs": 2}
    asked |= {"backbone": "convnet_tiny", "device": "cpu", "clusters": 3}
    config = resolve(override(Config(), asked), n=N, size=16, channels=1)
    with processes.training():
        mine = store.only(np.arange(N)[processes.share(N)])
    images = Images(mine, N, Preprocessing.measure(store))
    trained = train(images, config, progress=Progress(), clock=Clock())
    told = [line["clusters"] for line in trained.history]
    with processes.training():
        assert [processes.agree(number) for number in told] == told


def checkpoints() -> None:
    """A bank is written whole by the first process, and each number of processes reads its rows."""
    asked = {"epochs": 4, "contrastive_clusters.label_from": 0.25, "clusters": 3}
    asked |= {"backbone": "convnet_tiny", "device": "cpu"}
    config = resolve(override(Config(), asked), n=N, size=16, channels=1)
    bank = torch.arange(float(N))[:, None].half()

    def learner() -> tuple[Any, torch.optim.Optimizer]:
        backbone = build_backbone(config.backbone, channels=1, size=16)
        method: Any = load_method(config.method)(config, backbone, N)
        return method, build_optimizer(method.groups(), config.train)

    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder)) if processes.first() else None
        with processes.training():
            method, optimizer = learner()
            assert method.reads(1)
            method.bank.copy_(bank[processes.share(N)].expand_as(method.bank))
            save_checkpoint(run, 1, method, optimizer, None)
            another, optimizer = learner()
            done = 0 if run is None else load_newest(run, another, optimizer)[0]
            assert share_state(run, done, another, optimizer) == 1
            for name, value in another.state_dict().items():
                assert torch.equal(value, method.state_dict()[name]) or not processes.first(), name
            assert torch.equal(another.bank, method.bank)
            method.epochs = 1  # who wrote this one thought that there was no epoch to come
            save_checkpoint(run, 2, method, optimizer, None)
            another, optimizer = learner()
            assert another.reads(2) and not method.reads(2)
            done = 0 if run is None else load_newest(run, another, optimizer)[0]
            assert share_state(run, done, another, optimizer) == 2 and not another.bank.any()
            if run is not None:
                (run.checkpoints / "epoch-00002.safetensors").unlink()
        if run is not None:
            alone, optimizer = learner()
            assert load_newest(run, alone, optimizer)[0] == 1
            assert torch.equal(alone.bank, bank.expand_as(alone.bank))


if __name__ == "__main__":
    with processes.joined():
        rows_and_gradients()
        spread_rows()
        clusters()
        norms()
        matrices()
        for method in sys.argv[1:]:
            steps(method)
        epochs()
        who_is_late()
        found_labels()
        checkpoints()
        if not processes.first():
            assert processes.tell(b"") == b""  # the first one leaves
    threads = [each.read_text() for each in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in threads), threads  # they abort a process that ends
