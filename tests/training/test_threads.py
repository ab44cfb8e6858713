"""How many threads train, where other programs use the cores."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from deepcluster.config import Config, override
from deepcluster.estimator import DeepCluster
from deepcluster.fitting import fit_source, plan_source
from deepcluster.images.store import open_images
from deepcluster.training import conclude as conclude_module
from deepcluster.training import loop, threads
from deepcluster.training.plan import resolve
from deepcluster.training.threads import own_threads, settle_threads

CPU = override(Config(), {"device": "cpu"})


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine of four cores of which three are in use; steps are faster with one thread."""
    for name in threads.CHOSEN_BY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_load", lambda: 3.14)
    monkeypatch.setattr(threads, "free_cores", lambda: 4)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "_are_faster", lambda fewer, usual: True)
    with own_threads():
        torch.set_num_threads(4)
        yield


def test_a_busy_machine_gets_the_threads_that_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    config, said = settle_threads(CPU, timed=True)
    assert said == "the machine is busy (load 3.1 on 4 cores): 1 thread"
    assert torch.get_num_threads() == config.train.threads == 1
    torch.set_num_threads(4)
    monkeypatch.setattr(threads, "_are_faster", lambda fewer, usual: False)
    config, said = settle_threads(CPU, timed=True)
    assert said.endswith("on 4 cores): 4 threads, still faster than 1")
    assert torch.get_num_threads() == 4 and config == CPU


def test_without_a_clock_the_number_stays_and_a_person_is_told() -> None:
    config, said = settle_threads(CPU, timed=False)
    assert said.endswith("on 4 cores): train.threads = 1 may be faster")
    assert torch.get_num_threads() == 4 and config == CPU


def test_whoever_has_chosen_a_number_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_whole_cores", lambda: 2)
    torch.set_num_threads(3)
    assert settle_threads(CPU, timed=True) == (CPU, "")
    torch.set_num_threads(2)  # as many as torch takes where a core counts as two
    assert settle_threads(CPU, timed=True)[1]
    torch.set_num_threads(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert settle_threads(CPU, timed=True) == (CPU, "")
    assert torch.get_num_threads() == 4
    given = override(CPU, {"train.threads": 3})
    assert settle_threads(given, timed=True) == (given, "") and torch.get_num_threads() == 3
    monkeypatch.setattr(threads.processes, "helpers", lambda: 2)
    torch.set_num_threads(4)
    config, said = settle_threads(given, timed=True)  # one process may have chosen it, before
    assert config == given and "is for one process" in said and torch.get_num_threads() == 4


def test_an_idle_machine_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_load", lambda: 0.4)
    monkeypatch.setattr(threads, "_are_faster", lambda fewer, usual: pytest.fail("timed"))
    assert settle_threads(CPU, timed=True) == (CPU, "")
    monkeypatch.setattr(threads, "_load", lambda: 100.0)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 128)  # of which this process has four
    assert settle_threads(CPU, timed=True) == (CPU, "")


def test_both_numbers_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    costs = iter([5.0, 4.0, 3.0, 6.0])
    timed = []

    def estimate(*args: object, **options: object) -> object:
        timed.append(torch.get_num_threads())
        return type("Cost", (), {"epoch": next(costs)})

    monkeypatch.setattr(threads, "estimate", estimate)
    assert threads._are_faster(1, 4)  # 3 is less than 4
    assert timed == [1, 4, 1, 4]
    costs = iter([5.0, 4.0, 6.0, 3.0])
    assert not threads._are_faster(1, 4)


def test_a_plan_and_a_fit_say_it_and_the_settings_keep_it(tmp_path: Path) -> None:
    small = override(CPU, {"size": 8, "backbone": "convnet_tiny", "start": "scratch"})
    images = np.random.default_rng(0).integers(256, size=(60, 8, 8), dtype=np.uint8)
    assert any("cores): 1 thread" in note for note in plan_source(images, small).notes)
    assert torch.get_num_threads() == 4  # as before
    config = override(small, {"epochs": 1, "train.threads": 1})
    run = fit_source(images, config, out=tmp_path / "one")
    assert run.read_info()["hardware"]["threads"] == run.read_config().train.threads == 1
    assert torch.get_num_threads() == 4


def test_each_way_to_fit_takes_the_number_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images in a store, and vectors made elsewhere."""
    concluded = []

    def conclude(*args: object, **options: object) -> object:
        concluded.append(torch.get_num_threads())
        return ended(*args, **options)

    ended = conclude_module.conclude
    for module in (loop, conclude_module):
        monkeypatch.setattr(module, "conclude", conclude)
    rows = np.random.default_rng(0).random((60, 64), np.float32)
    asked = {"train.threads": 2, "epochs": 1, "size": 8, "backbone": "convnet_tiny"}
    store = open_images((255 * rows.reshape(60, 8, 8)).astype(np.uint8))
    config = resolve(override(CPU, {**asked, "clusters": 3}), n=60, size=8, channels=1)
    loop.fit(store, config)
    DeepCluster(n_clusters=3, settings={"train.threads": 3}).fit_embeddings(rows)
    assert concluded == [2, 3]
    assert torch.get_num_threads() == 4  # as before
