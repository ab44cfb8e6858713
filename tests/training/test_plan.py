"""The dial: minutes become net, size and epochs; what was found needs no clock to be repeated."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_shapes

from deepcluster import DeepCluster
from deepcluster.backbones.start import find_weights
from deepcluster.config import Config, override
from deepcluster.errors import ConfigError
from deepcluster.images.store import ImageStore
from deepcluster.training import cost as cost_of
from deepcluster.training import plan
from deepcluster.training import resolve as resolving
from deepcluster.training.cost import Cost
from deepcluster.training.plan import Pace, adapt_weights, choose_scale, schedule_minutes
from deepcluster.training.resolve import resolve

FACTS: dict[str, Any] = {"n": 10_000, "size": 32, "channels": 3}


def costs(monkeypatch: pytest.MonkeyPatch, epoch: dict[str, float], rest: float = 20.0) -> None:
    """Put known costs, a net, in place of the timed ones."""

    def known(config: Config, **_: Any) -> Cost:
        assert isinstance(config.epochs, int)
        return Cost(10**9, epoch[config.backbone], rest, config.epochs)

    monkeypatch.setattr(plan, "estimate", known)


def schedule(config: Config, spent: float = 0.0, limit: float = 20.0) -> tuple[Config, Cost]:
    return schedule_minutes(config, **FACTS, store_bytes=0, spent=spent, limit=limit)


def test_epochs_fill_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    costs(monkeypatch, {"convnet_small": 5.0})
    config = override(Config(), {"minutes": 3, "backbone": "convnet_small", "device": "cpu"})
    found, cost = schedule(config, spent=8.0)
    assert found.epochs == 30  # 152 s of 180 are left, 30.4 epochs
    assert cost.seconds == pytest.approx(170)
    assert found.minutes == "auto"  # the settings that are written down name epochs alone
    assert resolve(found, **FACTS) == found
    assert schedule(dataclasses.replace(config, minutes=0.01))[0].epochs == 1
    assert schedule(dataclasses.replace(config, minutes=1e4))[0].epochs == plan.MOST_EPOCHS
    for seconds, nearest in [(29.9, 2), (27.4, 1)]:  # 20 s go elsewhere
        assert schedule(dataclasses.replace(config, minutes=seconds / 60))[0].epochs == nearest
    costs(monkeypatch, {"convnet_small": 60.0})
    late = schedule(dataclasses.replace(config, minutes=2), spent=5.0)[0]
    assert late.epochs == 1  # 2 are nearer, but would end a fifth after the time


def test_without_minutes_the_images_number_is_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = (24, 500, 3_000, 30_000, 1_000_000)
    assert [resolving.usual_minutes(Config(), n) for n in counts] == [1, 1, 6, 60, 60]
    for named in ({"backbone": "resnet18"}, {"size": 96}):
        assert resolving.usual_minutes(override(Config(), named), 24) == 60
    config = override(Config(), {"backbone": "convnet_small", "device": "cpu"})
    rule = resolve(config, **FACTS).epochs
    assert isinstance(rule, int)
    costs(monkeypatch, {"convnet_small": 1.0})
    assert schedule(config)[0].epochs == rule
    costs(monkeypatch, {"convnet_small": 58.0})
    assert schedule(config)[0].epochs == 20  # of the 20 minutes, 20 s go elsewhere
    assert schedule(config, spent=1000)[0].epochs == 20  # a download is no training
    costs(monkeypatch, {"convnet_small": 750.0})
    assert schedule(config)[0].epochs == 1  # 1.57 fit
    assert schedule(dataclasses.replace(config, epochs=100))[0].epochs == 100


def test_few_images_get_enough_steps_and_no_more() -> None:
    for n, steps in [(24, 1), (256, 1), (428, 2), (3_012, 12)]:
        assert (resolving.guess_epochs(n, 96, 256) - 1) * steps < resolving.FEWEST_STEPS
        assert resolving.guess_epochs(n, 96, 256) * steps >= resolving.FEWEST_STEPS


@pytest.mark.parametrize("small_views", [0, 4])
@pytest.mark.parametrize(
    ("minutes", "size", "expected"),
    [
        (60, 32, (32, "convnet_small")),  # 30 s an epoch: 119 of them
        (3, 32, (32, "convnet_tiny")),  # 5 of the small net, 20 of the tiny one
        (100, 96, (96, "convnet_small")),  # nine times the pixels: 22
        (60, 96, (64, "convnet_small")),  # 13 at 96 pixels, 29 at 64
        (1, 96, (32, "convnet_tiny")),  # nothing reaches 12: the smallest
        (30, 64, (48, "convnet_small")),  # 15 at 64 pixels, 26 at 48
        (10, 96, (32, "convnet_small")),  # 8 at 48 pixels, 19 at 32
        (20, 96, (48, "convnet_small")),  # 10 at 64 pixels, 17 at 48
    ],
)
def test_size_and_net_follow_from_the_minutes(
    minutes: float,
    size: int,
    expected: tuple[int, str],
    small_views: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With small views epochs take half as long again, and fewer are enough."""
    longer = resolving.worth(small_views)
    costs(monkeypatch, {"convnet_small": 30.0 * longer, "convnet_tiny": 8.0 * longer})
    values = {"device": "cpu", "contrastive_clusters.small_views": small_views}
    asked = override(Config(), {"minutes": minutes, **values})
    found = choose_scale(asked, n=10_000, size=size, channels=3)
    assert (found.size, found.backbone) == expected


def test_without_minutes_no_more_is_wanted_than_the_usual_epochs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs(monkeypatch, {"convnet_small": 20.0, "convnet_tiny": 8.0}, rest=0.0)
    assert resolving.guess_epochs(20_000, 96, 256) == 15
    asked = override(Config(), {"device": "cpu", "contrastive_clusters.small_views": 0})
    for minutes, size in [(45, 96), (42, 64)]:  # 15.5 and 14.5 epochs of 96 pixels
        monkeypatch.setattr(resolving, "IMAGES_A_MINUTE", 20_000 / minutes)
        found = choose_scale(asked, n=20_000, size=96, channels=3)
        assert found.size == size


def test_what_was_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    costs(monkeypatch, {"convnet_small": 1e9, "convnet_tiny": 1e9})
    asked = override(Config(), {"minutes": 1, "size": 80, "device": "cpu"})
    assert choose_scale(asked, n=100, size=80, channels=3).size == 80
    for given in ({"minutes": 1, "backbone": "resnet18"}, {"epochs": 3}):
        asked = override(Config(), {"device": "cpu", **given})
        assert choose_scale(asked, n=100, size=96, channels=3) == asked


@pytest.mark.parametrize(
    "values", [{"minutes": 0}, {"minutes": -1.0}, {"minutes": 1e308}, {"minutes": 1, "epochs": 3}]
)
def test_minutes_that_will_not_do(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="minutes"):  # however the settings were made
        resolve(dataclasses.replace(Config(), **values), **FACTS)
    refuses = (
        choose_scale if "epochs" in values else lambda config, **facts: override(config, values)
    )
    with pytest.raises(ConfigError, match="minutes"):  # before any work
        refuses(dataclasses.replace(Config(), **values), **FACTS)


def test_a_fit_in_minutes_repeats_from_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    costs(monkeypatch, {"convnet_tiny": 80.0})  # so that seven fit, on however busy a machine
    images = make_shapes(64)
    settings = {
        "train.batch_size": 32, "train.precision": "float32", "backbone": "convnet_tiny",
        "train.threads": 1,  # with minutes they are timed, and the bits follow from them
    }  # fmt: skip
    first = DeepCluster(n_clusters=3, minutes=10, settings=settings, random_state=0).fit(images)
    assert first.n_iter_ == 7
    again = DeepCluster(
        n_clusters=3, epochs=first.n_iter_, settings=settings, random_state=0, device="cpu"
    ).fit(images)
    assert np.array_equal(first.embeddings_, again.embeddings_)


@pytest.mark.slow
def test_from_python_no_clock_is_read_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Cost:
        raise AssertionError("steps were timed")

    monkeypatch.setattr(plan, "estimate", refuse)
    monkeypatch.setattr(resolving, "FEWEST_STEPS", 5)
    assert DeepCluster(n_clusters=3, random_state=0).fit(make_shapes(12)).n_iter_ == 80
    with pytest.raises(AssertionError, match="timed"):
        DeepCluster(n_clusters=3, minutes=1).fit(make_shapes(12))


def test_a_gpu_takes_larger_batches_of_many_images() -> None:
    asked = [(50_000, "cuda"), (2000, "cuda"), (50_000, "cpu"), (50_000, "mps")]
    assert [resolving.usual_batch(n, device) for n, device in asked] == [512, 256, 256, 256]


@pytest.mark.parametrize(
    ("values", "n", "channels", "batch"),
    [
        ({}, 3999, 3, 128),
        ({}, 1500, 3, 128),
        ({}, 1499, 3, 256),
        ({"method": "deepcluster-v2"}, 3999, 3, 256),
        ({}, 4000, 3, 256),
        ({}, 3999, 1, 256),
        ({"train.batch_size": 64}, 3999, 3, 64),
        ({}, 50, 3, 50),
    ],
)
def test_few_photographs_get_more_steps(
    values: dict[str, Any], n: int, channels: int, batch: int
) -> None:
    config = override(Config(), {"clusters": 3, "device": "cpu", **values})
    assert resolve(config, n=n, size=32, channels=channels).train.batch_size == batch


@pytest.mark.parametrize(
    ("values", "channels", "lr"),
    [
        ({}, 3, 0.04),
        ({}, 1, 0.02),
        ({"backbone": "resnet18"}, 3, 0.02),
        ({"method": "deepcluster-v2"}, 3, 0.02),
        ({"train.optimizer": "adamw"}, 3, 2e-3),
        ({"train.lr": 0.01}, 3, 0.01),
    ],
)
def test_photographs_are_learnt_at_a_higher_rate(
    values: dict[str, Any], channels: int, lr: float
) -> None:
    config = override(Config(), {"clusters": 3, "device": "cpu", **values})
    assert resolve(config, n=5000, size=32, channels=channels).train.lr == lr


@pytest.mark.parametrize(
    ("channels", "side", "size"), [(1, 28, 64), (1, 64, 64), (1, 65, 128), (3, 32, 128)]
)
def test_weights_are_adapted_on_small_shapes_at_a_small_side(
    net_folder: Path, channels: int, side: int, size: int
) -> None:
    weights = find_weights(f"local-dir:{net_folder}")
    assert weights is not None
    facts: dict[str, Any] = {"n": 1000, "channels": channels, "side": side, "minutes": None}
    assert adapt_weights(Config(), weights, **facts).size == size
    assert adapt_weights(Config(size=96), weights, **facts).size == 96


def test_giants_are_timed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []

    def record(**how: Any) -> ImageStore:
        sizes.append(how["pixels"].shape)
        return ImageStore(**how)

    monkeypatch.setattr(cost_of, "ImageStore", record)
    settings = {"backbone": "convnet_tiny", "device": "cpu", "epochs": 1, "clusters": 2}
    config = override(Config(), settings)
    few = resolve(override(config, {"size": 48}), n=40, size=48, channels=1)
    whole = cost_of.estimate(few, n=40, channels=1, store_bytes=0, patience=0)
    monkeypatch.setattr(cost_of, "TRIAL_PIXELS", 48**2 * 20)
    part = cost_of.estimate(few, n=40, channels=1, store_bytes=0, patience=0)
    assert sizes == [(40, 48, 48, 1), (10, 48, 48, 1)]
    assert 0.8 < part.memory / whole.memory < 1.25


@pytest.mark.parametrize("speed", [1e-5, 1e-6, 1e-7])
@pytest.mark.parametrize("size", [64, 224, 1000])
@pytest.mark.parametrize("first", [1.0, 2.0])
def test_trials_end_soon_and_foretell_a_whole_step(
    monkeypatch: pytest.MonkeyPatch, size: int, speed: float, first: float
) -> None:
    """A made-up machine: `speed` seconds a pixel, and half a second of the optimizer a step.

    The first step of a size takes `first` times as long.
    """
    now, pixels = 0.0, []

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Made:
        def __init__(
            self, method: Any, optimizer: Any, config: Config, *_: Any, record: bool
        ) -> None:
            self.side, self.total, self.optimizer = config.size, torch.zeros(()), optimizer
            optimizer.register_step_post_hook(lambda *_: spend(0.5))

        def begin(self, seed: int) -> None:
            pass

        def __call__(self, index: torch.Tensor) -> None:
            pixels.append(len(index) * self.side**2)
            spend(speed * pixels[-1] * (1 if pixels[-1] in pixels[:-1] else first))
            self.optimizer.step()

    monkeypatch.setattr(cost_of, "Step", Made)
    monkeypatch.setattr("deepcluster.training.cost.time.perf_counter", lambda: now)
    settings = {"backbone": "convnet_tiny", "device": "cpu", "epochs": 1, "clusters": 2}
    config = resolve(override(Config(), {**settings, "size": size}), n=64, size=size, channels=3)
    cost = cost_of.estimate(config, n=64, channels=3, store_bytes=0, patience=0)
    whole = speed * 64 * size**2 + 0.5
    assert cost.epoch == pytest.approx(
        cost_of.STEP_EXTRAS * whole + cost_of.beside_steps(64, "cpu")
    )
    assert now < first * 3 * cost_of.SLOW_STEP + 5 * 0.5, pixels


def test_a_fit_that_would_be_late_gets_fewer_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 100 s given, 10 s of rest, 20 epochs of 4 s planned; they take 8 s each."""
    now = 0.0
    monkeypatch.setattr("deepcluster.training.plan.time.perf_counter", lambda: now)
    said: list[str] = []
    pace = Pace(100 / 60, rest=10, began=0, say=said.append)
    for done in (1, 2):  # too early to judge
        now += 8
        assert pace(done, 20, 8.0) == 20
    now += 8
    assert pace(3, 20, 8.0) == 11  # (100 - 24 - 10) / 8 = 8.25 more
    assert len(said) == 1 and "there will be 11" in said[0]
    for done in range(4, 12):
        now += 8
        assert pace(done, 11, 8.0) == 11
    assert now + 10 < 110 and len(said) == 1


def test_a_first_epoch_that_is_slow_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("deepcluster.training.plan.time.perf_counter", lambda: now)
    pace = Pace(1, rest=0, began=0, say=pytest.fail)
    for done in range(1, 11):
        now += 10 if done == 1 else 5
        assert pace(done, 10, 10.0 if done == 1 else 5.0) == 10


def test_where_the_time_is_gone_the_fit_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepcluster.training.plan.time.perf_counter", lambda: 59.0)
    assert Pace(1, rest=5, began=0, say=lambda _: None)(2, 10, 30.0) == 2


def test_a_million_small_images_fit_in_six_gigabytes() -> None:
    rows, kept = cost_of.concluding_bytes(10**6, 128, 0), 10**6 * 32 * 32 * 3
    assert rows + cost_of.KERNELS + kept < 6e9
    assert cost_of.concluding_bytes(10**6, 128, 64) - rows == 10**6 * 4 * 64  # and the projection


def test_the_memory_of_vectors_grows_with_their_number_and_hardly_with_their_length() -> None:
    few, many, long, most = (
        plan.schedule_given(Config(), n=n, d=d, channels=1)[1].memory
        for n, d in ((1000, 64), (10**6, 64), (10**6, 512), (10**7, 128))
    )
    assert few < 1.2e9 and many - few > 2.5e8 and long - many < 3e8 and most < 6e9
    held = plan.schedule_given(Config(), n=1000, d=64, channels=1, held=10**9)[1].memory
    assert held == few + 10**9
