"""The loop: same bits again, after a stop too; labels never matter."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcluster.backbones.start import build_net
from deepcluster.config import Config, override
from deepcluster.errors import RunError
from deepcluster.images.store import ImageStore
from deepcluster.methods import METHODS, load_method
from deepcluster.progress import Progress
from deepcluster.run import RunDir
from deepcluster.training import conclude
from deepcluster.training.checkpoints import load_checkpoint, save_checkpoint
from deepcluster.training.conclude import FitResult
from deepcluster.training.cost import estimate
from deepcluster.training.loop import fit, schedule
from deepcluster.training.optimizers import build_optimizer
from deepcluster.training.resolve import most_clusters, resolve


def resolved(config: Config, store: ImageStore) -> Config:
    return resolve(config, n=len(store), size=store.size, channels=store.channels)


def bits(result: FitResult) -> list[Any]:
    weights = [p.detach().numpy().tobytes() for p in result.model.backbone.parameters()]
    return [result.embeddings.tobytes(), result.labels.tobytes(), weights]


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bits(method: str, tiny: Config, shapes: ImageStore) -> None:
    config = resolved(override(tiny, {"method": method}), shapes)
    first, second = fit(shapes, config), fit(shapes, config)
    assert bits(first) == bits(second)
    other = fit(shapes, dataclasses.replace(config, seed=1))
    assert bits(other) != bits(first)


@pytest.mark.parametrize("method", METHODS)
def test_labels_do_not_matter(method: str, tiny: Config, shapes: ImageStore) -> None:
    config = resolved(override(tiny, {"method": method}), shapes)
    without = fit(shapes, config)
    shapes.label_names = ["a", "b", "c"]
    shapes.labels = np.arange(len(shapes)) % 3
    with_labels = fit(shapes, config)
    shapes.labels = np.random.default_rng(0).permutation(shapes.labels)
    shuffled = fit(shapes, config)
    assert bits(without) == bits(with_labels) == bits(shuffled)
    assert "nmi" in with_labels.scores["fit"]
    assert set(without.scores) == {"fit"}
    shapes.labels = None
    assert conclude.compare_with_pixels(shapes, without, Progress()) is without
    assert set(without.scores["fit"]) == {"modularity"}  # needs no labels


class StopAfter(Progress):
    """Ctrl-C as soon as an epoch has ended, or in the middle of one."""

    def __init__(self, epoch: int, in_the_middle: bool) -> None:
        self.remaining, self.in_the_middle = epoch, in_the_middle

    def epoch(self, line: dict[str, Any]) -> None:
        self.remaining -= 1
        if self.remaining == 0 and not self.in_the_middle:
            raise KeyboardInterrupt

    def advance(self, count: int) -> None:
        if self.remaining == 0 and self.in_the_middle:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("stop", "in_the_middle"), [(0, True), (1, False), (2, True)], ids=["first", "end", "middle"]
)
def test_stop_and_resume_gives_the_same_bits(
    method: str, stop: int, in_the_middle: bool, tiny: Config, shapes: ImageStore, tmp_path: Path
) -> None:
    config = resolved(override(tiny, {"method": method, "epochs": 3}), shapes)
    whole = fit(shapes, config)
    run = RunDir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(shapes, config, run=run, progress=StopAfter(stop, in_the_middle))
    rest = fit(shapes, config, run=run, resume=True)
    assert bits(rest) == bits(whole)

    def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if k != "seconds"} for line in history]

    assert timeless(rest.history) == timeless(whole.history) == timeless(run.read_metrics())


def test_a_checkpoint_that_misses_something_is_refused(
    tiny: Config, shapes: ImageStore, tmp_path: Path
) -> None:
    config = resolved(tiny, shapes)
    run = RunDir(tmp_path)
    fit(shapes, config, run=run)
    kept = sorted(path.name for path in run.checkpoints.iterdir())
    assert kept == ["epoch-00001.safetensors", "epoch-00002.safetensors"]
    other, optimizer = method_of(override(tiny, {"contrastive_clusters.dimensions": 32}), 96)
    with pytest.raises(RunError, match="another net or method"):
        load_checkpoint(run.checkpoints / kept[0], other, optimizer)


def method_of(config: Config, n: int) -> tuple[Any, torch.optim.Optimizer]:
    """A method before its first step, for `n` grey images of 16 pixels."""
    config = resolve(config, n=n, size=16, channels=1)
    method: Any = load_method(config.method)(config, build_net(config, 1), n)
    return method, build_optimizer(method.groups(), config.train)


def test_a_checkpoint_grows_by_128_bytes_an_image_at_most(tmp_path: Path) -> None:
    n, epochs = 100_000, 8
    config = override(Config(), {"backbone": "convnet_tiny", "epochs": epochs, "device": "cpu"})
    method, optimizer = method_of(config, n)
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    net = sum(parameter.nbytes for parameter in method.parameters())
    method.bank += 1
    method.labels += 1
    previous = torch.zeros(len(method.rows), dtype=torch.int64)
    sizes = []
    for epoch in range(epochs + 1):
        save_checkpoint(RunDir(tmp_path), epoch, method, optimizer, previous)
        path = tmp_path / "checkpoints" / f"epoch-{epoch:05d}.safetensors"
        sizes.append(path.stat().st_size)
    assert max(sizes) <= 3 * net + 64 * 2 * n
    cuts = [epoch for epoch in range(epochs + 1) if method.reads(epoch)]
    assert cuts == [3, 6]
    assert max(size for epoch, size in enumerate(sizes) if epoch not in cuts) <= 3 * net


def test_a_cut_waits_for_the_bank_that_a_checkpoint_lacks(tmp_path: Path) -> None:
    config = override(Config(), {"epochs": 8, "device": "cpu", "backbone": "convnet_tiny"})
    method, optimizer = method_of(config, 50)
    method.bank.normal_()
    save_checkpoint(RunDir(tmp_path), 2, method, optimizer, None)
    resumed, optimizer = method_of(config, 50)
    resumed.epochs = 4  # fewer, said by the very epoch after that checkpoint: the first cut is now
    load_checkpoint(tmp_path / "checkpoints" / "epoch-00002.safetensors", resumed, optimizer)
    assert resumed.reads(2)
    resumed.start_epoch(2, lambda: None, optimizer, torch.Generator())
    assert not resumed.labels.any()
    resumed.bank.normal_()
    resumed.start_epoch(3, lambda: None, optimizer, torch.Generator())
    assert resumed.labels.any()


def test_every_line_has_its_figures(tiny: Config, shapes: ImageStore) -> None:
    history = fit(shapes, resolved(override(tiny, {"method": "deepcluster"}), shapes)).history
    assert [line["epoch"] for line in history] == [0, 1]
    for key in ("loss", "ln_k", "largest", "smallest", "empty", "entropy", "effective_rank"):
        assert all(isinstance(line[key], int | float) for line in history), key
    assert history[0]["nmi_previous"] is None
    assert 0 <= history[1]["nmi_previous"] <= 1
    assert 0 <= history[1]["changed"] <= 1
    assert set(history[0]["seconds"]) == {"cluster", "train", "measure"}


def test_loss_that_is_not_a_number_says_what_to_do(tiny: Config, shapes: ImageStore) -> None:
    config = resolved(override(tiny, {"method": "deepcluster", "train.lr": 1e30}), shapes)
    with pytest.raises(FloatingPointError, match=r"--train\.lr"):
        fit(shapes, config)


@pytest.mark.parametrize("final", ["kmeans", "graph"])
def test_as_many_clusters_as_asked_for(final: str, tiny: Config, shapes: ImageStore) -> None:
    config = resolved(override(tiny, {"final.algorithm": final, "clusters": 7}), shapes)
    result = fit(shapes, config)
    assert sorted(set(result.labels.tolist())) == list(range(7))
    assert ((result.confidence >= 0) & (result.confidence <= 1)).all()
    assert np.allclose(np.linalg.norm(result.embeddings, axis=1), 1, atol=1e-5)


def test_schedule_by_hand(tiny: Config) -> None:
    cosine = override(tiny, {"train.schedule": "cosine", "train.warmup": 0.1})
    assert [schedule(x, cosine) for x in (0.0, 0.05, 0.1)] == pytest.approx([0, 0.5, 1])
    assert schedule(0.55, cosine) == pytest.approx(0.5)
    assert schedule(1.0, cosine) == pytest.approx(0)
    assert schedule(0.9, override(tiny, {"train.schedule": "constant"})) == 1


def test_over_clustering_is_sensible() -> None:
    assert [most_clusters(n) for n in (1, 7, 1797, 60_000, 10**6)] == [1, 2, 30, 30, 30]


def test_estimate_needs_no_images(tiny: Config) -> None:
    cost = estimate(resolve(tiny, n=1000, size=16, channels=1), n=1000, channels=1, store_bytes=0)
    assert 0 < cost.seconds < 100
    assert 10**8 < cost.memory < 10**10


def test_a_timed_step_steps_the_optimizer(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def counting(*args: Any) -> torch.optim.Optimizer:
        optimizer = build_optimizer(*args)
        optimizer.register_step_post_hook(lambda *_: steps.append(1))
        return optimizer

    monkeypatch.setattr("deepcluster.training.cost.build_optimizer", counting)
    monkeypatch.setattr("deepcluster.training.cost.SLOW_STEP", float("inf"))  # a busy machine's is
    config = resolve(tiny, n=1000, size=16, channels=1)
    estimate(config, n=1000, channels=1, store_bytes=0, patience=0.0)
    assert len(steps) == 3  # one that is not timed, and two that are


def test_everything_is_resolved(tiny: Config) -> None:
    from deepcluster.config import flatten

    config = resolve(Config(), n=1000, size=32, channels=3)
    left = {k for k, v in flatten(dataclasses.asdict(config)).items() if v == "auto"}
    assert left <= {"data.memory_gb", "data.range", "data.workers", "minutes", "train.threads"}


def test_more_clusters_than_images_are_refused(tiny: Config) -> None:
    from deepcluster.errors import ConfigError

    with pytest.raises(ConfigError, match="from 1 to 10"):
        resolve(override(tiny, {"clusters": 11}), n=10, size=16, channels=1)


def test_pseudo_labels_by_power_iteration_resume_as_well(
    tiny: Config, shapes: ImageStore, tmp_path: Path
) -> None:
    values = {"method": "deepcluster", "deepcluster.pseudo_labels": "pic", "epochs": 3}
    config = resolved(override(tiny, values), shapes)
    whole = fit(shapes, config)
    found = [line["clusters"] for line in whole.history]
    assert all(1 <= k < len(shapes) for k in found) and max(found) > 1, found
    assert [line["ln_k"] for line in whole.history] == pytest.approx(np.log(found))
    run = RunDir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(shapes, config, run=run, progress=StopAfter(2, in_the_middle=False))
    assert bits(fit(shapes, config, run=run, resume=True)) == bits(whole)


def test_the_yardstick_is_of_some_images(shapes: ImageStore) -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conclude, "PIXEL_IMAGES", 12)
        rows, found = conclude.pixel_clusters(shapes, 3, generator)
    assert len(rows) == len(found) == 30  # ten a cluster
    assert (np.diff(rows) >= 3).all()
    assert rows[0] == 0 and rows[-1] >= 90  # spread over all 96
    rows, found = conclude.pixel_clusters(shapes, 3, generator)
    assert rows.tolist() == list(range(96))


@pytest.mark.parametrize("method", METHODS)
def test_a_schedule_is_shortened_and_says_so(
    method: str, tiny: Config, shapes: ImageStore, tmp_path: Path
) -> None:
    """From 9 epochs to 5 after the second: clusters still teach, and a resumed fit knows of it."""
    config = resolved(override(tiny, {"method": method, "epochs": 9}), shapes)
    run = RunDir(tmp_path)
    result = fit(shapes, config, run=run, pace=lambda done, epochs, _: 5 if done == 2 else epochs)  # type: ignore[arg-type]
    assert result.config.epochs == 5 == len(result.history) == run.read_config().epochs
    assert [line.get("epochs") for line in result.history] == [None, 5, None, None, None]
    assert (run.checkpoints / "epoch-00005.safetensors").is_file()
    assert all(np.isfinite(line["loss"]) for line in result.history)
    again = fit(shapes, result.config, run=run, resume=True)
    assert bits(again) == bits(result)
    now = fit(shapes, config, pace=lambda done, epochs, _: done)  # type: ignore[arg-type]
    assert len(now.history) == 1
