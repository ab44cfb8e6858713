"""Fits that begin with what exists: a frozen net, and vectors made elsewhere."""

import json
import re
import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from conftest import make_shapes
from PIL import Image

from deepcluster import DeepCluster, fitting
from deepcluster.backbones import features as features_module
from deepcluster.cli import run_app
from deepcluster.config import Config, override
from deepcluster.errors import ConfigError, RunError, SourceError, Stopped
from deepcluster.finished import (
    evaluate_run,
    export_run,
    predict_source,
    write_embeddings,
)
from deepcluster.fitting import fit_source, plan_source
from deepcluster.images.vectors import read_vectors
from deepcluster.progress import Progress
from deepcluster.run import RunDir
from deepcluster.training import best, room

FROZEN = {"start": "frozen", "clusters": 3, "device": "cpu", "train.precision": "float32"}


def settings(net: Path, **values: object) -> Config:
    return override(Config(), FROZEN | {"backbone": f"local-dir:{net}"} | values)


@pytest.fixture(scope="module")
def frozen(net_folder: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    out = tmp_path_factory.mktemp("frozen") / "run"
    return fit_source(folder, settings(net_folder), out=out, labels="folders", report=True)


def test_a_frozen_run_is_a_run_like_any_other(frozen: RunDir, folder: Path, tmp_path: Path):
    info, config = frozen.read_info(), frozen.read_config()
    assert info["status"] == "done" and info["scores"]["fit"]["nmi"] > 0
    assert info["weights"]["license"] == "apache-2.0"
    assert any("licence apache-2.0" in note for note in info["notes"])
    assert (config.start, config.epochs, config.size) == ("frozen", 0, 32)
    assert (frozen.report / "index.html").is_file()
    found = predict_source(frozen, folder, device="cpu")
    assert found.labels.tolist() == frozen.read_items()["cluster"].to_pylist()
    assert np.array_equal(found.embeddings, frozen.read_embeddings())
    assert evaluate_run(frozen)["nmi"] == pytest.approx(info["scores"]["fit"]["nmi"])
    net = timm.create_model(
        f"local-dir:{export_run(frozen, 'timm', tmp_path / 'net')}", pretrained=True, num_classes=0
    )
    assert net.pretrained_cfg["crop_pct"] == 0.8


def test_the_settings_of_a_frozen_run_repeat_it(
    frozen: RunDir, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same bits, with the features that were kept: the net is not asked again."""

    def never(*args: object, **options: object) -> None:
        raise AssertionError("the features were kept")

    monkeypatch.setattr(features_module, "extract", never)
    again = fit_source(folder, frozen.read_config(), out=tmp_path / "again")
    assert "features: those of an earlier fit were kept" in again.log.read_text()
    assert np.array_equal(again.read_embeddings(), frozen.read_embeddings())
    assert again.read_items()["cluster"] == frozen.read_items()["cluster"]
    other = override(frozen.read_config(), {"clusters": 2})
    two = fit_source(folder, other, out=tmp_path / "two")
    assert set(two.read_items()["cluster"].to_pylist()) == {0, 1}


def test_a_dry_run_of_a_frozen_net(net_folder: Path, folder: Path):
    plan = plan_source(folder, settings(net_folder))
    assert plan.cost.epochs == 0 and plan.cost.seconds > 0
    assert any("frozen on cpu" in note for note in plan.notes)


def test_starts_that_cannot_be(net_folder: Path, folder: Path):
    with pytest.raises(ConfigError, match=r"needs a net that has weights.*dinov2"):
        plan_source(folder, override(Config(), FROZEN))
    with pytest.raises(ConfigError, match="takes no weights"):
        plan_source(folder, settings(net_folder, start="scratch"))
    with pytest.raises(ConfigError, match="learns nothing"):
        plan_source(folder, settings(net_folder, epochs=3))
    with pytest.raises(ConfigError, match="downloads nothing"):
        plan_source(folder, override(Config(), FROZEN | {"backbone": "resnet18"}))


def test_auto_without_weights_is_scratch_and_a_sentence(folder: Path):
    plan = plan_source(folder, override(Config(), {"device": "cpu", "epochs": 1}))
    assert plan.config.start == "scratch"
    assert any("--start frozen --backbone vit_small_patch14_dinov2" in note for note in plan.notes)


def test_estimator_with_a_frozen_net(net_folder: Path, tmp_path: Path):
    images = make_shapes(30, side=24, colour=True)
    options = {"n_clusters": 3, "start": "frozen", "device": "cpu", "random_state": 0}
    named = DeepCluster(backbone=f"local-dir:{net_folder}", **options).fit(images)
    assert named.n_iter_ == 0
    assert named.config_.size == 32
    assert np.array_equal(named.predict(images), named.labels_)
    assert np.array_equal(named.transform(images), named.embeddings_)
    assert np.array_equal(named.fit(images).embeddings_, named.embeddings_)
    module = timm.create_model(f"local-dir:{net_folder}", pretrained=True, num_classes=0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    own = DeepCluster(backbone=module, size=32, **options).fit(images)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert own.model_.preprocessing.mean == named.model_.preprocessing.mean


@pytest.mark.parametrize("minutes", ["auto", 0.05])
@pytest.mark.parametrize("kind", ["of timm", "plain"])
def test_a_module_is_adapted_from_its_own_weights(net_folder: Path, kind: str, minutes: Any):
    images = make_shapes(40, side=24, colour=True)
    options = {"n_clusters": 3, "device": "cpu", "random_state": 0}
    if kind == "of timm":
        module = timm.create_model(f"local-dir:{net_folder}", pretrained=True, num_classes=0)
    else:
        module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 2),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(968, 9),
        )
    before = {name: value.clone() for name, value in module.state_dict().items()}
    length = {"epochs": 2} if minutes == "auto" else {"minutes": minutes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a slow machine says that it was late
        found = DeepCluster(backbone=module, start="adapt", **length, **options).fit(images)
    assert {each["start"] for each in found.starts_} == {"adapt", "frozen"}
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert np.array_equal(found.predict(images), found.labels_)
    if kind == "of timm":
        assert found.config_.size == 32  # as the net says, with its own mean
        assert found.model_.preprocessing.mean == pytest.approx((0.5, 0.4, 0.3), abs=0.3)
    else:
        assert found.config_.size == 24
    if minutes == "auto":
        again = DeepCluster(backbone=module, start="adapt", **length, **options).fit(images)
        assert np.array_equal(again.embeddings_, found.embeddings_)


def test_adapting_a_module_begins_with_its_weights():
    images, seen = make_shapes(40, side=24, colour=True), []
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1728, 9))
    for start in ("frozen", "adapt"):  # at a rate of nothing, adapted is frozen
        found = DeepCluster(
            n_clusters=3,
            backbone=module,
            start=start,
            epochs=1 if start == "adapt" else "auto",
            device="cpu",
            random_state=0,
            settings={"train.lr": 1e-12, "train.weight_decay": 0, "train.precision": "float32"},
        ).fit(images)
        seen.append(found.embeddings_)
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-5)


def conv(channels: int) -> torch.nn.Module:
    layers = torch.nn.Conv2d(channels, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    return torch.nn.Sequential(*layers)


MODULES = {
    "grey": lambda: conv(1),
    "three channels": lambda: conv(3),
    "of timm, grey": lambda: timm.create_model("resnet10t", num_classes=0, in_chans=1),
    "no weights": lambda: torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten()),
    "float64": lambda: conv(1).double(),
}


@pytest.mark.parametrize("start", ["frozen", "adapt", "scratch"])
@pytest.mark.parametrize("kind", MODULES)
def test_modules_of_many_kinds_on_grey_images(kind: str, start: Any):
    images, length = make_shapes(40, side=32), {} if start == "frozen" else {"minutes": 0.02}
    options = {"n_clusters": 3, "device": "cpu", "random_state": 0, "size": 32}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a slow machine says that it was late
        found = DeepCluster(backbone=MODULES[kind](), start=start, **length, **options).fit(images)
    assert np.array_equal(found.predict(images), found.labels_)
    assert found.embeddings_.dtype == np.float32


def test_modules_that_cannot_be_a_start():
    options = {"n_clusters": 3, "device": "cpu", "random_state": 0, "size": 24}
    nan = conv(3)
    torch.nn.init.constant_(nan[0].weight, torch.nan)
    with pytest.raises(ConfigError, match="NaN"):
        DeepCluster(backbone=nan, start="frozen", **options).fit(make_shapes(20, side=24))
    colour = make_shapes(20, side=24, colour=True)
    with pytest.raises(ConfigError, match=r"data\.channels = grey"):
        DeepCluster(backbone=conv(1), epochs=1, **options).fit(colour)
    grey = DeepCluster(backbone=conv(1), start="frozen", **options).fit(colour)  # made so by itself
    assert grey.config_.data.channels == "grey"


# -- adapted, and the best of several ------------------------------------------------------------

ADAPT = {"start": "adapt", "epochs": 2, "size": 32, "train.batch_size": 32}


@pytest.fixture(scope="module")
def adapted(net_folder: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    out = tmp_path_factory.mktemp("adapted") / "run"
    return fit_source(folder, settings(net_folder, **ADAPT), out=out, labels="folders", report=True)


def test_adapt_keeps_the_better_and_shows_the_other(adapted: RunDir, folder: Path):
    kept, other = adapted.read_info()["starts"]
    assert {kept["start"], other["start"]} == {"adapt", "frozen"}
    assert kept["agreement"] >= other["agreement"]
    assert (kept["folder"], other["folder"]) == (None, other["start"])
    from_there = adapted.other(other["start"]).read_info()["starts"]
    assert [each["folder"] for each in from_there] == [None, ".."]
    assert adapted.read_config().start == kept["start"]
    beside = adapted.other(other["start"])
    for run in (adapted, beside):
        assert (run.report / "index.html").is_file()
        found = predict_source(run, folder, device="cpu")
        assert np.array_equal(found.embeddings, run.read_embeddings())
        assert found.labels.tolist() == run.read_items()["cluster"].to_pylist()
    assert beside.read_config().start == other["start"]
    assert adapted.foreign() == []
    assert adapted.log.read_text().count("another number, from 2") == 1


@pytest.mark.slow
def test_where_memory_is_short_activations_are_computed_again(
    net_folder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is said before, with the memory that it takes, and the bits are the same."""
    monkeypatch.setattr(room, "PIECE", {"cpu": 7 * 32**2})
    config = override(Config(), {"backbone": f"local-dir:{net_folder}", "device": "cpu", **ADAPT})
    config = override(config, {"clusters": 3})
    plans, runs = [], []
    for name, free in (("kept", 1e15), ("again", 0.0)):
        monkeypatch.setattr(room, "free_memory", lambda free=free: free)
        plans.append(plan_source(folder, config))
        runs.append(fit_source(folder, config, out=tmp_path / name))
    said = ["computed again" in " ".join(plan.notes) for plan in plans]
    assert said == ["computed again" in " ".join(run.read_info()["notes"]) for run in runs]
    assert said == [False, True]
    assert plans[1].cost.room.bytes < plans[1].cost.room.whole == plans[0].cost.room.bytes
    one, other = (run.read_embeddings() for run in runs)
    assert np.array_equal(one, other)
    assert runs[0].read_config() == runs[1].read_config()


def test_frozen_is_given_where_adapting_made_it_worse(
    net_folder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(best, "agreements", lambda spaces, clusterings: [0.5, 0.4])
    run = fit_source(folder, settings(net_folder, **ADAPT), out=tmp_path / "run")
    assert [each["start"] for each in run.read_info()["starts"]] == ["frozen", "adapt"]
    assert run.read_config().start == "frozen" and run.read_metrics() == []
    found = predict_source(run, folder, device="cpu")
    assert np.array_equal(found.embeddings, run.read_embeddings())
    assert "kept: frozen" in run.log.read_text()


@pytest.mark.slow
def test_adapting_goes_on_where_it_stopped(
    adapted: RunDir, net_folder: Path, folder: Path, tmp_path: Path, monkeypatch
):
    """The same bits as without a stop."""
    config = settings(net_folder, **ADAPT)

    class Stop(Progress):
        def epoch(self, line: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_source(folder, config, out=tmp_path / "run", labels="folders", progress=Stop())
    run = fit_source(folder, out=tmp_path / "run", resume=True)
    assert run.read_info()["starts"] == adapted.read_info()["starts"]
    assert np.array_equal(run.read_embeddings(), adapted.read_embeddings())


@pytest.mark.slow
def test_auto_with_weights_of_small_grey_images_tries_all_three(net_folder: Path, tmp_path: Path):
    config = settings(net_folder, start="auto", epochs=1, size=32)
    run = fit_source(make_shapes(40), config, out=tmp_path / "run")
    assert {each["start"] for each in run.read_info()["starts"]} == {"adapt", "frozen", "scratch"}
    colour = fit_source(make_shapes(40, colour=True), config, out=tmp_path / "colour")
    assert {each["start"] for each in colour.read_info()["starts"]} == {"adapt", "frozen"}


@pytest.mark.slow
def test_auto_in_the_time_there_is(net_folder: Path, tmp_path: Path):
    config = settings(net_folder, start="auto", minutes=0.1)
    run = fit_source(make_shapes(40, colour=True), config, out=tmp_path / "run")
    assert run.read_config().minutes == "auto"
    assert run.read_info()["status"] == "done"


def test_estimator_adapts(net_folder: Path):
    images = make_shapes(30, side=24, colour=True)
    options = {"n_clusters": 3, "epochs": 1, "size": 32, "device": "cpu", "random_state": 0}
    made = [
        DeepCluster(start="adapt", backbone=f"local-dir:{net_folder}", **options).fit(images)
        for _ in range(2)
    ]
    assert {each["start"] for each in made[0].starts_} == {"adapt", "frozen"}
    assert np.array_equal(made[0].embeddings_, made[1].embeddings_)
    assert np.array_equal(made[0].predict(images), made[0].labels_)


# -- vectors made elsewhere ---------------------------------------------------------------------


def blobs(n: int = 90) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = np.arange(n) % 3
    return (np.eye(8)[truth] + rng.normal(0, 0.1, (n, 8))).astype(np.float32), truth


def test_vectors_in_clusters_and_a_report_out(tmp_path: Path):
    rows, truth = blobs()
    table = pa.table({"id": [f"a/{i}" for i in range(90)], "v": rows.tolist(), "label": truth})
    pq.write_table(table, tmp_path / "rows.parquet")
    config = override(Config(), {"clusters": 3, "device": "cpu"})
    run = fit_source(
        None, config, embeddings=tmp_path / "rows.parquet", out=tmp_path / "run", report=True
    )
    info, items = run.read_info(), run.read_items()
    assert info["scores"]["fit"]["nmi"] == 1.0 and info["counts"]["images"] == 90
    assert "pixels" not in info["scores"]
    assert items["id"].to_pylist()[:2] == ["a/0", "a/1"]
    assert (run.report / "index.html").is_file()
    np.save(tmp_path / "new.npy", 5 * rows[:7])  # lengths do not count
    found = predict_source(run, tmp_path / "new.npy")
    assert found.labels.tolist() == items["cluster"].to_pylist()[:7]
    assert evaluate_run(run)["nmi"] == 1.0
    with pytest.raises(RunError, match="no net"):
        export_run(run, "timm", tmp_path / "net")


def test_vectors_with_their_images(folder: Path, frozen: RunDir, tmp_path: Path):
    """What `embed` wrote goes back in, ids first: the order of the rows does not matter."""
    found = predict_source(frozen, folder, device="cpu")
    write_embeddings(found, tmp_path / "rows.npy")
    order = np.random.default_rng(0).permutation(60)
    np.save(tmp_path / "rows.npy", found.embeddings[order])
    (tmp_path / "rows.ids.csv").unlink()
    (tmp_path / "rows.ids.txt").write_text("".join(f"{found.store.ids[i]}\n" for i in order))
    config = override(Config(), {"clusters": 3, "device": "cpu"})
    run = fit_source(folder, config, embeddings=tmp_path / "rows.npy", out=tmp_path / "run")
    assert run.read_items()["id"].to_pylist() == found.store.ids
    assert run.item() == "image"  # which the vectors are of
    assert np.allclose(run.read_embeddings(), found.embeddings, atol=1e-6)
    (tmp_path / "rows.ids.txt").unlink()
    with pytest.raises(SourceError, match="60 images"):  # one of the 61 cannot be read
        fit_source(folder, config, embeddings=tmp_path / "rows.npy", out=tmp_path / "other")


def test_a_fit_of_vectors_that_was_stopped_goes_on_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of colour images as well, which a net with one channel would not know again."""
    rows, truth = blobs(30)
    np.save(tmp_path / "rows.npy", rows)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, colour in enumerate(np.array(["red", "green", "blue"])[truth]):
        Image.new("RGB", (16, 16), str(colour)).save(folder / f"{i:02}.png")
    config = override(Config(), {"clusters": 3, "device": "cpu"})
    told: list[str] = []

    class Heard(Progress):
        def note(self, sentence: str) -> None:
            told.append(sentence)

    def stop(*args: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    given: dict[str, Any] = {"embeddings": tmp_path / "rows.npy", "out": tmp_path / "run"}
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "fit_vectors", stop)
        with pytest.raises(Stopped):  # of which the command line says no more
            fit_source(folder, config, progress=Heard(), **given)
    assert f"--embeddings {tmp_path / 'rows.npy'} --images {folder} --out" in told[-1]
    run = fit_source(folder, Config(), resume=True, **given)
    assert run.read_info()["status"] == "done" and len(run.read_items()) == 30


def test_settings_that_say_nothing_to_vectors_are_refused(tmp_path: Path):
    rows, _ = blobs()
    np.save(tmp_path / "rows.npy", rows)
    asked = override(Config(), {"epochs": 3, "minutes": 2.0, "train.lr": 0.1, "clusters": 3})
    with pytest.raises(ConfigError, match=r"minutes = 2.0, epochs = 3, train.lr = 0.1: .*no net"):
        fit_source(None, asked, embeddings=tmp_path / "rows.npy", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for name, value in {"start": "adapt", "backbone": "resnet18", "size": 32}.items():
        with pytest.raises(ConfigError, match=f"{name} = .*no net learns"):
            DeepCluster(n_clusters=3, **{name: value}).fit_embeddings(rows)
    run = fit_source(
        None,
        override(Config(), {"clusters": 3, "device": "cpu"}),
        embeddings=tmp_path / "rows.npy",
        out=tmp_path / "run",
    )
    again = fit_source(  # what they came to is no such setting
        None, run.read_config(), embeddings=tmp_path / "rows.npy", out=tmp_path / "again"
    )
    assert again.read_items()["cluster"] == run.read_items()["cluster"]
    kept = {"final.neighbours": 5, "start": "frozen", "train.threads": 1}
    DeepCluster(n_clusters=3, device="cpu", settings=kept).fit_embeddings(rows)


@pytest.fixture
def of_vectors(tmp_path: Path) -> RunDir:
    np.save(tmp_path / "rows.npy", blobs(30)[0])
    config = override(Config(), {"clusters": 3, "device": "cpu"})
    return fit_source(None, config, embeddings=tmp_path / "rows.npy", out=tmp_path / "run")


def test_where_nothing_learnt_no_method_is_named(
    frozen: RunDir, of_vectors: RunDir, capsys: pytest.CaptureFixture[str]
):
    for run, words in ((frozen, "frozen features of local-dir:"), (of_vectors, "vectors as given")):
        assert run_app(["info", str(run.path)]) == 0
        said = capsys.readouterr().out
        assert f": {words}" in said and "epochs" not in said and Config().method not in said


def test_a_dry_run_of_vectors_says_what_they_are_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    np.save(tmp_path / "rows.npy", blobs(30)[0])
    command = ["fit", "--embeddings", str(tmp_path / "rows.npy"), "--dry-run"]
    assert run_app([*command, "--clusters", "3", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["vectors"], plan["dimensions"], plan["clusters"]) == (30, 8, 3)
    assert {"memory_gb", "seconds"} <= set(plan) and not {"epochs", "backbone"} & set(plan)
    assert run_app([*command, "--minutes", "2"]) == 2  # as of a fit
    assert "minutes = 2" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npy"]


def test_a_run_of_vectors_has_no_pictures_to_sort(
    of_vectors: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    new = [str(photos(tmp_path)), str(tmp_path / "rows.npy")]
    assert run_app(["predict", str(of_vectors.path), new[1], "--into", str(tmp_path / "in")]) == 2
    assert "vectors alone: --out" in capsys.readouterr().err
    assert not (tmp_path / "in").exists()
    assert run_app(["predict", str(of_vectors.path), new[0]]) == 2
    assert "make them of its images with the net" in capsys.readouterr().err


def test_nothing_is_sorted_among_the_images_of_the_fit(
    frozen: RunDir, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    new, before = photos(tmp_path), sorted(folder.rglob("*"))
    for into in (folder, folder / "sorted"):
        assert run_app(["predict", str(frozen.path), str(new), "--into", str(into)]) != 0
        assert "each image twice" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_a_dry_run_counts_vectors_that_lie_in_memory(tmp_path: Path):
    rows = blobs(3000)[0].astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    pq.write_table(pa.table({"vector": column}), tmp_path / "rows.parquet")
    config = override(Config(), {"clusters": 3, "device": "cpu"})
    mapped, held = (
        plan_source(None, config, embeddings=tmp_path / f"rows.{kind}").cost.memory
        for kind in ("npy", "parquet")
    )
    assert held - mapped == rows.nbytes


def photos(tmp_path: Path, name: str = "photos", n: int = 30) -> Path:
    (tmp_path / name).mkdir()
    for i in range(n):
        colour = ("red", "green", "blue")[i % 3]
        Image.new("RGB", (16, 16), colour).save(tmp_path / name / f"{i:02}.png")
    return tmp_path / name


@pytest.mark.parametrize(
    "words",
    [
        ["--method", "deepcluster"],
        ["--method", "contrastive-clusters"],
        ["--minutes", "2"],
        ["--epochs", "3"],
        ["--start", "adapt"],
        ["--train.lr", "0.1"],
        ["--train.precision", "bfloat16"],
        ["--backbone", "resnet18"],
        ["--data.fit", "pad"],
    ],
)
def test_what_is_typed_beside_settings_of_vectors_is_refused_too(
    words: list[str], of_vectors: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fit = ["fit", "--embeddings", str(tmp_path / "rows.npy"), "--out", str(tmp_path / "again")]
    fit += ["--config", str(of_vectors.path / "config.toml"), "--no-report"]
    assert run_app([*fit, *words]) == 2
    error = capsys.readouterr().err
    assert re.search(rf"{words[0][2:]} = {words[1]}\b.*no net learns", error.replace("\n", " "))
    assert not (tmp_path / "again").exists()
    assert run_app([*fit, "--seed", "1", "--final.neighbours", "5"]) == 0


def test_what_an_estimator_is_given_beside_settings_of_vectors_is_refused(of_vectors: RunDir):
    recipe, rows = str(of_vectors.path / "config.toml"), blobs(30)[0]
    for more in ({"epochs": 3}, {"settings": {"train": {"lr": 0.1}}}):
        with pytest.raises(ConfigError, match="no net learns"):
            DeepCluster(recipe=recipe, **more).fit_embeddings(rows)
    found = DeepCluster(recipe=recipe, random_state=0).fit_embeddings(rows)
    assert found.labels_.tolist() == of_vectors.read_items()["cluster"].to_pylist()


def test_settings_of_images_are_refused_where_vectors_have_none(tmp_path: Path):
    np.save(tmp_path / "rows.npy", blobs(30)[0])
    given: dict[str, Any] = {"embeddings": tmp_path / "rows.npy", "out": tmp_path / "run"}
    config = override(Config(), {"clusters": 3, "device": "cpu", "data.fit": "pad"})
    with pytest.raises(ConfigError, match=r"data.fit = pad: .*no image is read"):
        fit_source(None, config, **given)
    with pytest.raises(ConfigError, match="--labels are those of images"):
        fit_source(None, override(config, {"data.fit": "crop"}), labels="folders", **given)
    assert fit_source(photos(tmp_path), config, **given).read_config().data.fit == "pad"


def test_a_recipe_beside_vectors_is_not_listed_whole():
    with pytest.raises(ConfigError) as caught:
        DeepCluster(recipe="paper").fit_embeddings(blobs(30)[0])
    assert re.search(r"method = deepcluster, .* and \d\d more: ", str(caught.value))
    assert str(caught.value).count(" = ") == 5


def test_vectors_are_not_rounded_by_what_their_device_is_fast_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("deepcluster.training.resolve.fast_bfloat16", lambda _: True)
    config = override(Config(), {"clusters": 3, "device": "cpu", "final.pca": 4})
    run = fit_source(None, config, embeddings=blobs(30)[0], out=tmp_path / "run")
    assert run.read_config().train.precision == "float32"


def test_settings_of_vectors_alone_leave_images_their_colour(of_vectors: RunDir, tmp_path: Path):
    run = fit_source(
        photos(tmp_path),
        of_vectors.read_config(),
        embeddings=tmp_path / "rows.npy",
        out=tmp_path / "seen",
    )
    with Image.open(run.path / "thumbnails" / "0000.webp") as sheet:
        red, green, _ = np.asarray(sheet.convert("RGB"))[8, 8].tolist()
    assert red > green + 100


def test_a_run_of_vectors_says_that_it_needs_them(of_vectors: RunDir, tmp_path: Path, folder: Path):
    of_vectors.write_info({**of_vectors.read_info(), "status": "interrupted"})
    with pytest.raises(ConfigError, match=r"of a fit of vectors.*--embeddings FILE"):
        fit_source(folder, out=of_vectors.path, resume=True)
    for front in (fit_source, plan_source):
        with pytest.raises(ConfigError, match=r"of a fit of vectors.*--embeddings FILE"):
            front(folder, of_vectors.read_config())


def test_a_run_of_images_says_that_it_has_no_vectors(frozen: RunDir, tmp_path: Path, folder: Path):
    run = RunDir(shutil.copytree(frozen.path, tmp_path / "run"))
    run.write_info({**run.read_info(), "status": "interrupted"})
    with pytest.raises(ConfigError, match=r"begun with images.*leave --embeddings out"):
        fit_source(folder, embeddings=blobs(60)[0], out=run.path, resume=True)


def test_several_folders_of_images_beside_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The line to go on, from Python as well, is one that the command line takes."""

    def stop(*args: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    np.save(tmp_path / "rows.npy", blobs(30)[0])
    several = [photos(tmp_path, name, 15) for name in ("a", "b")]
    given: dict[str, Any] = {"embeddings": tmp_path / "rows.npy", "out": tmp_path / "run"}
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "fit_vectors", stop)
        with pytest.raises(KeyboardInterrupt):
            fit_source(several, override(Config(), {"clusters": 3, "device": "cpu"}), **given)
    assert run_app(["info", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "30 images" in said
    line = re.search(r"to go on: `deepcluster (.*)`", said)
    assert line is not None and f"--images {several[0]} {several[1]} --out" in line[1]
    assert run_app([*shlex.split(line[1]), "--no-report"]) == 0
    assert RunDir.open(tmp_path / "run").read_items()["id"].to_pylist()[-1] == "b/14.png"


def test_vectors_are_not_called_images():
    with pytest.raises(ConfigError, match="60 clusters cannot be made of 30 vectors"):
        DeepCluster(n_clusters=60).fit_embeddings(blobs(30)[0])


def test_vectors_of_another_net_are_refused(tmp_path: Path):
    rows, _ = blobs()
    np.save(tmp_path / "rows.npy", rows)
    for pca in (None, 4):
        config = override(Config(), {"clusters": 3, "device": "cpu", "final.pca": pca or 0})
        out = tmp_path / f"run{pca}"
        run = fit_source(None, config, embeddings=tmp_path / "rows.npy", out=out)
        with pytest.raises(SourceError, match="have 5 numbers each, those of the fit 8"):
            predict_source(run, rows[:, :5])
        fitted = DeepCluster.load(out)
        with pytest.raises(SourceError, match="have 5 numbers each, those of the fit 8"):
            fitted.predict(rows[:, :5])


def test_estimator_on_vectors():
    rows, truth = blobs()
    fitted = DeepCluster(n_clusters=3, random_state=0, device="cpu").fit_embeddings(rows)
    assert len({(a, b) for a, b in zip(fitted.labels_, truth, strict=True)}) == 3
    assert np.array_equal(fitted.predict(rows * 2), fitted.labels_)
    assert fitted.transform(rows).shape == (90, 8)


def test_vectors_that_cannot_be(tmp_path: Path):
    rows, _ = blobs()
    rows[3, 2] = np.nan
    np.save(tmp_path / "nan.npy", rows)
    with pytest.raises(SourceError, match=r"1 of 90 vectors hold NaN.*the first is row 3:"):
        read_vectors(tmp_path / "nan.npy")
    rows[3, 2] = 1e30
    with pytest.raises(SourceError, match="or divide all by the same number"):
        read_vectors(rows)
    with pytest.raises(SourceError, match=r"not float64 of shape \(3,\)"):
        read_vectors(np.zeros(3))
    with pytest.raises(SourceError, match="there is no file"):
        read_vectors(tmp_path / "none.npy")
    (tmp_path / "a.csv").touch()
    with pytest.raises(SourceError, match=r"as \.npy or \.parquet"):
        read_vectors(tmp_path / "a.csv")
    pq.write_table(pa.table({"v": [[1.0], [1.0, 2.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(SourceError, match="several lengths"):
        read_vectors(tmp_path / "ragged.parquet")
