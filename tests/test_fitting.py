"""The fit as a command: what it leaves, what it refuses, and that it goes on where it stopped."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_shapes
from make_run import make_run
from PIL import Image

from deepcluster.config import Config, override
from deepcluster.errors import ConfigError, RunError
from deepcluster.fitting import fit_source, plan_source
from deepcluster.images.store import open_images
from deepcluster.progress import Progress
from deepcluster.run import RunDir
from deepcluster.saying import too_few
from deepcluster.training.plan import Pace
from deepcluster.training.resolve import resolve


def test_the_files_of_a_run(finished: RunDir) -> None:
    files = {
        str(path.relative_to(finished.path))
        for path in finished.path.rglob("*")
        if path.is_file() and path.relative_to(finished.path).parts[0] != "report"
    }
    assert files == {
        "run.json",
        "config.toml",
        "metrics.jsonl",
        "log.txt",
        "items.parquet",
        "items.csv",
        "skipped.csv",
        "embeddings.npy",
        "contents.npy",
        "neighbours.safetensors",
        "tree.npz",
        "model/config.json",
        "model/model.safetensors",
        "model/README.md",
        "model/clusters.safetensors",
        "thumbnails/0000.webp",
        "thumbnails/index.json",
        "thumbnails/order.npy",
        "pictures/curves.svg",
        "pictures/clusters.png",
        "pictures/cluster-000.png",
        "pictures/cluster-001.png",
        "pictures/cluster-002.png",
        "checkpoints/epoch-00001.safetensors",
        "checkpoints/epoch-00002.safetensors",
    }
    assert (finished.report / "index.html").is_file()


def test_run_json_says_what_happened(finished: RunDir) -> None:
    info = finished.read_info()
    assert info["status"] == "done"
    assert info["counts"] == {"images": 60, "skipped": 1, "clusters": 3, "classes": 3}
    assert set(info["scores"]) == {"fit", "pixels"}
    assert {"nmi", "nmi_arithmetic", "ari", "acc"} == set(info["scores"]["pixels"])
    assert info["versions"]["torch"] == torch.__version__
    assert finished.read_skipped()[0][0].endswith("broken.png")
    cure = "export them as JPEG or 16-bit TIFF"
    assert info["passed_over"] == [{"kind": ".nef", "count": 1, "cure": cure}]
    assert f"passed over: 1 × .nef ({cure})" in info["notes"]


def test_items_are_in_the_order_of_their_ids(finished: RunDir) -> None:
    items = finished.read_items()
    assert len(items) == len(set(items["id"].to_pylist())) == 60
    for name, path, label in zip(
        items["id"].to_pylist(), items["path"].to_pylist(), items["label"].to_pylist(), strict=True
    ):
        assert path.endswith(name)
        assert name.startswith(label)
    assert finished.read_embeddings().shape[0] == 60


def test_a_plan_does_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conftest import TINY

    monkeypatch.chdir(tmp_path)
    plan = plan_source(folder, override(Config(), TINY))
    assert plan.images == 61  # the broken one is found when it is decoded
    assert list(tmp_path.iterdir()) == []


def test_a_plan_of_several_folders_says_what_a_fit_would(folder: Path) -> None:
    from conftest import TINY

    given = [str(folder / name) for name in ("bars", "rings")]
    plan = plan_source(given, override(Config(), TINY), labels="folders")
    assert plan.images == 41 and any("1 × .nef" in note for note in plan.notes)


def test_resume_refuses_other_settings_and_images(finished: RunDir, tmp_path: Path) -> None:
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(finished.path, copy.path)
    copy.write_info({**copy.read_info(), "status": "interrupted"})
    with pytest.raises(ConfigError, match=r"train\.lr"):
        fit_source("x", override(Config(), {"train.lr": 0.7}), out=copy.path, resume=True)
    (tmp_path / "rings").mkdir()
    for i, pixels in enumerate(make_shapes(4)):
        Image.fromarray(pixels).save(tmp_path / "rings" / f"other {i}.png")
    with pytest.raises(RunError, match="other images"):
        fit_source(tmp_path, out=copy.path, resume=True)
    with pytest.raises(ConfigError, match="--out"):
        fit_source(make_shapes(60), resume=True)


def test_a_finished_run_is_not_run_over(finished: RunDir) -> None:
    with pytest.raises(RunError, match="--resume"):
        fit_source(make_shapes(9), out=finished.path)
    assert fit_source(make_shapes(9), out=finished.path, resume=True).path == finished.path


def test_overwrite_deletes_nothing_before_it_can_fit(finished: RunDir, tmp_path: Path) -> None:
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(finished.path, copy.path)
    for source, settings in (("no/such/folder", {}), (make_shapes(9), {"backbone": "nonsense"})):
        with pytest.raises(ValueError, match=r"no/such|nonsense"):
            fit_source(source, override(Config(), settings), out=copy.path, overwrite=True)
        assert RunDir.open(copy.path).read_info()["status"] == "done"


def test_the_result_is_written_before_the_pixels_are_clustered(
    folder: Path, tmp_path: Path
) -> None:
    from conftest import TINY

    class Stop(Progress):
        def phase(self, name: str, total: int) -> None:
            if "pixels" in name:
                raise KeyboardInterrupt

    config, out = override(Config(), TINY), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit_source(folder, config, out=out, labels="folders", report=True, progress=Stop())
    info = RunDir.open(out).read_info()  # it is a finished run
    assert set(info["scores"]) == {"fit"} and not (out / "report").exists()
    run = fit_source(folder, config, out=out, resume=True)
    assert (run.report / "index.html").is_file() and run.pictures.is_dir()


def test_resume_remembers_where_the_labels_are(folder: Path, tmp_path: Path) -> None:
    from conftest import TINY

    class Stop(Progress):
        def epoch(self, line: dict[str, object]) -> None:
            raise KeyboardInterrupt

    config = override(Config(), TINY)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit_source(folder, config, out=out, labels="folders", progress=Stop())
    before = RunDir(out).read_info()
    assert before["status"] == "interrupted"
    RunDir(out).write_info({**before, "seconds": before["seconds"] + 1000})
    run = fit_source(folder, config, out=out, resume=True)
    assert run.read_info()["seconds"] > 1000  # of both sittings
    assert run.read_info()["notes"][0] == "1 file left out: see skipped.csv"
    assert run.read_info()["counts"]["classes"] == 3
    assert "nmi" in run.read_info()["scores"]["fit"]


def test_overwrite_deletes_only_runs(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="no run"):
        fit_source(make_shapes(9), out=tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").is_file()


def test_a_run_of_tomorrow_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema": 99, "status": "done"}))
    with pytest.raises(RunError, match="upgrade"):
        RunDir.open(tmp_path)


@pytest.mark.filterwarnings("ignore")  # of TensorBoard's own imports
def test_tensorboard_gets_scalars_and_grids(tmp_path: Path) -> None:
    from conftest import TINY

    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = override(Config(), TINY)
    run = fit_source(make_shapes(60), config, out=tmp_path / "run", tensorboard=True)
    events = EventAccumulator(str(run.tensorboard)).Reload()
    losses = [event.value for event in events.Scalars("loss")]
    assert losses == pytest.approx([line["loss"] for line in run.read_metrics()])
    assert sorted(events.Tags()["images"]) == ["cluster-000", "cluster-001", "cluster-002"]


def test_a_run_folder_among_the_images_is_not_read(finished: RunDir, tmp_path: Path) -> None:
    for i, pixels in enumerate(make_shapes(5)):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    shutil.copytree(finished.path, tmp_path / "runs" / "first")
    assert len(open_images(tmp_path)) == 5


def test_a_chosen_number_of_clusters_and_minutes_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped and resumed with the same flags; then again from the settings alone."""
    images = make_shapes(48)
    quick = {"backbone": "convnet_tiny", "train.batch_size": 32, "device": "cpu", "minutes": 0.02}
    asked = override(Config(), quick)
    monkeypatch.setattr(Pace, "__call__", lambda _, done, epochs, seconds: epochs)  # never late
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit_source(images, asked, out=out, progress=StopAfterAnEpoch())
    run = fit_source(images, asked, out=out, resume=True)
    info, config = run.read_info(), run.read_config()
    assert info["minutes"] == 0.02
    assert (config.minutes, config.clusters, config.final.choose) == ("auto", 4, True)
    scores = {int(k): score for k, score in info["choice"].items()}
    assert list(scores) == [2, 3, 4]
    assert info["counts"]["clusters"] == max(scores, key=lambda k: scores[k])
    assert len(set(run.read_items()["cluster"].to_pylist())) == info["counts"]["clusters"]
    assert any("from 2 to 4" in sentence for sentence in info["notes"])
    again = fit_source(images, config, out=tmp_path / "again")
    assert np.array_equal(again.read_embeddings(), run.read_embeddings())
    assert again.read_info()["choice"] == info["choice"]
    with pytest.raises(ConfigError, match="minutes"):
        fit_source(images, override(asked, {"minutes": 5}), out=out, resume=True)


class StopAfterAnEpoch(Progress):
    def epoch(self, line: dict[str, object]) -> None:
        raise KeyboardInterrupt


def test_settings_made_for_many_more_images_are_told() -> None:
    asked = override(Config(), {"method": "deepcluster", "deepcluster.pseudo_clusters": 500})
    config = resolve(asked, n=1000, size=16, channels=1)
    assert config.deepcluster.pca == 20  # of 1,000 images
    assert too_few(config, 1000) == [
        "500 pseudo-clusters of 1,000 images have 2.0 each, too few to learn from: say "
        "--deepcluster.pseudo_clusters 50"
    ]
    config = override(config, {"deepcluster.pca": 256, "deepcluster.pseudo_clusters": 50})
    assert "256 whitened components of 1,000 images" in too_few(config, 1000)[0]
    assert "say --deepcluster.pca 20" in too_few(config, 1000)[0]
    assert not too_few(override(config, {"deepcluster.whiten": False}), 1000)
    assert not too_few(resolve(Config(), n=1000, size=16, channels=1), 1000)
    assert resolve(asked, n=10**6, size=16, channels=1).deepcluster.pca == 256


def test_places_where_no_run_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "run", tmp_path / "file" / "a" / "run"):
        with pytest.raises(RunError, match=r"file is no folder that can be written to"):
            fit_source("digits", out=place)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_net_is_not_taken_from_the_run_that_it_replaces(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=30, clusters=3)
    (tmp_path / "link").symlink_to(run.path)
    for values in (
        {"start": "frozen", "backbone": f"local-dir:{run.model}"},
        {"start": "adapt", "weights": str(tmp_path / "link" / "model" / "model.safetensors")},
    ):
        with pytest.raises(ConfigError, match="is of the run that would be replaced"):
            fit_source("digits", override(Config(), values), out=run.path, overwrite=True)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["link", "run"]
    assert RunDir.open(run.path)
