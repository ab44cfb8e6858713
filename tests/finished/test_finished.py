"""What is done with a finished run, and that new images meet the same clusters."""

import csv
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import timm
import torch
from conftest import make_shapes
from PIL import Image
from safetensors.torch import load_file, save_file

from deepcluster import metrics
from deepcluster.backbones.features import FittedModel
from deepcluster.errors import ConfigError, RunError
from deepcluster.finished import (
    evaluate_run,
    export_run,
    predict_source,
    sort_into,
    write_embeddings,
)
from deepcluster.images.store import open_images
from deepcluster.progress import Progress
from deepcluster.run import RunDir


def test_prediction_of_the_same_images_is_the_same(finished: RunDir, folder: Path) -> None:
    class Notes(Progress):
        said: ClassVar[list[str]] = []

        def note(self, text: str) -> None:
            self.said.append(text)

    found = predict_source(finished, folder, device="cpu", progress=Notes())
    assert [text.split("/")[-1] for text in Notes.said] == [
        "broken.png: not an image in a format that Pillow reads",
        "passed over: 1 × .nef (export them as JPEG or 16-bit TIFF)",
    ]
    items = finished.read_items()
    assert found.labels.tolist() == items["cluster"].to_pylist()
    assert np.array_equal(found.embeddings, finished.read_embeddings())
    assert np.array_equal(found.confidence, items["confidence"].to_numpy())


def test_an_image_alone_meets_the_same_cluster(finished: RunDir, folder: Path) -> None:
    items = finished.read_items().to_pylist()
    for item in items[::20]:
        found = predict_source(finished, [item["path"]], device="cpu")
        assert found.labels.tolist() == [item["cluster"]]


def test_names_and_merges_of_a_person_hold(finished: RunDir, folder: Path, tmp_path: Path) -> None:
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(finished.path, copy.path)
    copy.write_clusters({"names": {"0": "bars/and more"}, "merged": {"2": 0}})
    found = predict_source(copy, folder, device="cpu")
    assert set(found.labels.tolist()) == {0, 1}
    counts = sort_into(found, tmp_path / "sorted")
    assert sum(counts.values()) == 60
    assert set(counts) == {"000-bars_and more", "001"}


@pytest.mark.parametrize("how", ["copy", "link", "move"])
def test_sorting_loses_nothing(how: str, finished: RunDir, folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    before = {p.read_bytes() for p in mine.rglob("*.png")}
    for name in ("00.png", "01.png"):  # the same name twice in one cluster must not collide
        shutil.copy(mine / "bars" / "00.png", mine / f"again-{name}")
    (mine / "again").mkdir()
    shutil.copy(mine / "bars" / "00.png", mine / "again" / "00.png")
    found = predict_source(finished, mine, device="cpu")
    out = tmp_path / "out"
    counts = sort_into(found, out, how=how)  # type: ignore[arg-type]
    assert sum(counts.values()) == 63 == len([p for p in out.rglob("*.png")])
    left = 1 if how == "move" else 64  # what could not be read stays where it is
    assert len(list(mine.rglob("*.png"))) == left
    assert {p.read_bytes() for p in out.rglob("*.png")} == before - {b"no picture"}


def test_sorting_does_all_or_nothing(finished: RunDir, folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    found = predict_source(finished, mine, device="cpu")
    (mine / "bars" / "00.png").unlink()
    with pytest.raises(RunError, match=r"00\.png"):
        sort_into(found, tmp_path / "out", how="move")
    assert len(list(mine.rglob("*.png"))) == 60
    assert not (tmp_path / "out").exists()


def test_arrays_are_sorted_as_pictures(finished: RunDir, tmp_path: Path) -> None:
    found = predict_source(finished, make_shapes(6), device="cpu")
    sort_into(found, tmp_path)
    assert len(list(tmp_path.rglob("*.png"))) == 6


def test_evaluate_own_and_others(finished: RunDir, folder: Path, tmp_path: Path) -> None:
    own = evaluate_run(finished)
    assert {"nmi", "ari", "acc", "knn", "linear_probe", "silhouette"} <= set(own)
    assert own["nmi"] == pytest.approx(finished.read_info()["scores"]["fit"]["nmi"])
    other = evaluate_run(finished, folder, labels="folders", device="cpu")
    assert other["nmi"] == pytest.approx(own["nmi"])
    foreign = tmp_path / "foreign.csv"  # classes the run has never heard of
    rows = [f"{p},x{i % 3}" for i, p in enumerate(sorted(folder.rglob("[0-9]*.png")))]
    foreign.write_text("\n".join(["path,label", *rows]))
    assert {"nmi", "knn"} <= set(evaluate_run(finished, folder, labels=str(foreign), device="cpu"))
    by_ids = evaluate_run(finished, labels="folders")  # needs no source: the run knows its images
    assert by_ids["nmi"] == pytest.approx(own["nmi"])
    unlabelled = evaluate_run(finished, make_shapes(30), device="cpu")
    assert "nmi" not in unlabelled
    assert "silhouette" in unlabelled


class Said(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_nothing_learns_from_what_is_tested(
    finished: RunDir, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's own images, copies of them under other names, some of them and strangers."""
    learnt: list[metrics.Train | None] = []
    monkeypatch.setattr(metrics, "knn", lambda *a, train=None, **k: learnt.append(train) or 0.0)
    monkeypatch.setitem(
        metrics.METRICS,
        "knn",
        lambda embeddings, labels, rng, train=None: learnt.append(train) or 0.0,
    )
    progress = Said()
    evaluate_run(finished, folder, labels="folders", device="cpu", progress=progress)
    assert learnt.pop() is None
    assert any("60 of the run's 60 images" in text for text in progress.said)
    for i, path in enumerate(sorted(folder.rglob("[0-9]*.png"))[::4]):  # of each class
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.parent.name / f"copy {i}.png")
    progress = Said()
    evaluate_run(finished, tmp_path, labels="folders", device="cpu", progress=progress)
    train = learnt.pop()
    assert train is not None and len(train[0]) == 45
    assert any("15 of the run's 60 images" in text for text in progress.said)
    tested = {row.tobytes() for row in predict_source(finished, tmp_path).embeddings}
    assert not tested & {np.asarray(row).tobytes() for row in train[0]}


def test_labels_of_a_single_class_are_said(finished: RunDir, folder: Path) -> None:
    progress = Said()
    evaluate_run(finished, folder / "rings", labels=["ring"] * 20, progress=progress)  # type: ignore[arg-type]
    assert any("of one class, 'ring'" in text for text in progress.said)


def test_embeddings_are_written_beside_ids_that_read_back(finished: RunDir, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("a\nb.png", 'c,d"e.png', "f\u2028g.png"):
        Image.fromarray(make_shapes(1)[0]).save(mine / name)
    found = predict_source(finished, mine, device="cpu")
    features, ids = write_embeddings(found, tmp_path / "v1.2 of mine")
    assert (features.name, ids.name) == ("v1.2 of mine.npy", "v1.2 of mine.ids.csv")
    assert np.array_equal(np.load(features), found.embeddings)
    with ids.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == found.store.ids
    assert [row["path"] for row in rows] == found.store.paths
    for name in ("v1.2 of mine", "v1.2 of mine.npy"):
        with pytest.raises(RunError, match="exists already"):
            write_embeddings(found, tmp_path / name)
    features.unlink()
    with pytest.raises(RunError, match=r"ids\.csv exists already"):
        write_embeddings(found, features)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"centers": torch.full((3, 64), torch.nan)}, "centre is not finite"),
        ({"cluster": torch.tensor([0, 1])}, "centres are not of this net"),
        ({"cluster": torch.tensor([0, 1, 7])}, "a cluster is missing"),
        ({"centers": torch.zeros(3, 5)}, "centres are not of this net"),
    ],
)
def test_a_damaged_model_is_refused(
    change: dict[str, torch.Tensor], words: str, finished: RunDir, tmp_path: Path
) -> None:
    shutil.copytree(finished.model, tmp_path / "model")
    file = tmp_path / "model" / "clusters.safetensors"
    features = int(FittedModel.load(finished.model).backbone.num_features)  # type: ignore[arg-type]
    whole = {"centers": torch.zeros(3, features), "cluster": torch.tensor([0, 1, 2])}
    if change.get("centers", torch.zeros(1, 5)).shape[1] == 64:
        change = {"centers": torch.full((3, features), torch.nan)}
    save_file(whole | change, file)
    with pytest.raises(RunError, match=words) as caught:
        FittedModel.load(tmp_path / "model")
    assert "clusters.safetensors" in str(caught.value)
    file.write_bytes(b"x")
    with pytest.raises(RunError, match=r"clusters\.safetensors was damaged"):
        FittedModel.load(tmp_path / "model")


def test_weights_that_are_not_finite_are_refused(finished: RunDir, tmp_path: Path) -> None:
    shutil.copytree(finished.model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name, value in weights.items() if value.is_floating_point())
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(RunError, match=r"model\.safetensors .*a weight is not finite"):
        FittedModel.load(tmp_path / "model")


def test_timm_loads_the_backbone(finished: RunDir, folder: Path) -> None:
    net = timm.create_model(f"local-dir:{finished.model}", pretrained=True, num_classes=0).eval()
    model = FittedModel.load(finished.model)
    config = finished.read_config()
    store = open_images(folder, data=config.data, size=config.size)
    images = torch.from_numpy(np.stack([store[i] for i in range(8)])).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = net(model.preprocessing(images))
    expected = torch.from_numpy(np.array(finished.read_embeddings()[:8]))
    assert torch.allclose(torch.nn.functional.normalize(features), expected, atol=1e-5)


def test_onnx_says_which_torch_it_needs(
    finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.6.0+cu124"))
    with pytest.raises(ConfigError, match=r"torch 2\.8 or newer, and this is 2\.6"):
        export_run(finished, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["timm", "onnx", "torchscript"])
@pytest.mark.filterwarnings("ignore")  # both exporters of torch warn of their own future
def test_export(to: str, finished: RunDir, folder: Path, tmp_path: Path) -> None:
    if to == "onnx":
        pytest.importorskip("onnxscript")
    out = export_run(finished, to, tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(RunError, match="exists already"):
        export_run(finished, to, out)  # type: ignore[arg-type]
    if to == "timm":
        assert (out / "model.safetensors").is_file()
        return
    assert list(tmp_path.iterdir()) == [out]  # weights and all
    config = finished.read_config()
    store = open_images(folder, data=config.data, size=config.size)
    images = np.stack([store[i] for i in range(5)]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        features = session.run(None, {"images": images})[0]
    else:
        features = torch.jit.load(str(out))(torch.from_numpy(images)).detach().numpy()
    assert np.allclose(features, finished.read_embeddings()[:5], atol=1e-4)
