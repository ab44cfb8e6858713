"""suggest, teach, predict --classes, evaluate and export on a real run folder."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepcluster.cli import run_app
from deepcluster.errors import ConfigError, RunError
from deepcluster.finished import classify, evaluate_run, export_run, predict_source
from deepcluster.finished.label import SuggestedRun, suggest_run, teach_run
from deepcluster.progress import Progress
from deepcluster.run import RunDir


@pytest.fixture
def run(finished: RunDir, tmp_path: Path) -> RunDir:
    return RunDir(shutil.copytree(finished.path, tmp_path / "run"))


class Told(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def truth(run: RunDir) -> dict[str, str]:
    items = run.read_items()
    return dict(zip(items["id"].to_pylist(), items["label"].to_pylist(), strict=True))


def answer(run: RunDir, table: Path, to: Path) -> Path:
    """The table, filled in by somebody who knows."""
    known = truth(run)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with to.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "path", "label"])
        writer.writeheader()
        writer.writerows({**row, "label": known[row["id"]]} for row in rows)
    return to


def taught(run: RunDir, tmp_path: Path, count: int = 15) -> Path:
    labels = answer(run, suggest_run(run, count).table, tmp_path / "labels.csv")
    teach_run(run, labels)
    return labels


def test_a_round_and_the_next(run: RunDir, tmp_path: Path) -> None:
    first = suggest_run(run, 12)
    filled_in = first.table.read_bytes()
    assert len(set(first.ids)) == 12
    assert first.page.is_file()
    labels = answer(run, first.table, tmp_path / "labels.csv")
    found = teach_run(run, labels)
    assert found.labels == 12
    assert not set(found.helpful) & set(first.ids)
    assert run.foreign() == []  # so that it can be replaced
    facts = run.read_classifier()[1]
    assert facts["drawn"] is False and facts["labels"] == 12
    assert sorted(facts["classes"]) == ["bars", "crosses", "rings"]
    again = suggest_run(run, 12)
    assert again.table != first.table and first.table.read_bytes() == filled_in
    assert not set(again.ids) & set(first.ids)
    suggest_run(run, 1000)
    with pytest.raises(RunError, match=r"all images of .* \(60\) have a label or were suggested"):
        suggest_run(run, 1)


def test_fewer_images_than_asked_for_are_said(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["suggest", str(run.path), "-n", "12"]) == 0
    assert "12 images to label\n" in capsys.readouterr().out
    few = SuggestedRun(["a"], Path("t"), Path("p"), 9, 20_000, 50_000)
    assert "1 image to label, not 9: all there are of a sample of 20,000 of the run's" in str(few)
    assert run_app(["suggest", str(run.path), "-n", "5000"]) == 0
    assert "48 images to label, not 5,000: all there are of 60, without" in capsys.readouterr().out


def test_labels_that_nobody_suggested_count_as_drawn(run: RunDir, tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    rows = list(truth(run).items())[::3]
    file.write_text("id,label\n" + "".join(f"{id_},{label}\n" for id_, label in rows))
    teach_run(run, file)
    assert run.read_classifier()[1]["drawn"] is True


def test_labels_that_are_forgotten_are_told(run: RunDir, tmp_path: Path) -> None:
    lines = taught(run, tmp_path).read_text().splitlines(keepends=True)
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("".join(lines[:-3]))
    assert any(
        note.startswith("forgotten, since") and "3 labels of" in note
        for note in teach_run(run, fewer).notes
    )
    assert not any("forgotten" in note for note in teach_run(run, fewer).notes)


def test_a_failed_teach_leaves_the_classifier(run: RunDir, tmp_path: Path) -> None:
    taught(run, tmp_path)
    before = {p.name: p.read_bytes() for p in run.classifier.iterdir()}
    bad = tmp_path / "bad.csv"
    bad.write_text("id,label\nnone,x\n")
    with pytest.raises(RunError, match="none of them in the run"):
        teach_run(run, bad)
    assert {p.name: p.read_bytes() for p in run.classifier.iterdir()} == before


def test_classes_of_images(run: RunDir, folder: Path, tmp_path: Path) -> None:
    taught(run, tmp_path)
    found = classify(run, predict_source(run, folder, device="cpu"), risk=0.2)
    rows = found.rows()
    assert set(rows[0]) == {"id", "path", "class", "probability", "unsure"}
    assert {row["class"] for row in rows} <= {"bars", "crosses", "rings"}
    strict = classify(run, found.predictions, risk=1e-6)
    assert strict.unsure.sum() >= found.unsure.sum()
    placed = strict.as_predictions()
    assert [name == "unsure" for name in placed.names] == strict.unsure.tolist()
    named = replace(strict, names=["Unsure", *strict.names[1:]])
    assert [n == "unsure images" for n in named.as_predictions().names] == strict.unsure.tolist()


def test_evaluate_measures_on_what_it_never_saw(run: RunDir, folder: Path, tmp_path: Path) -> None:
    labels = taught(run, tmp_path, 20)
    with labels.open() as file:
        learnt = {row["id"] for row in csv.DictReader(file)}
    own = evaluate_run(run)
    assert own["classifier_images"] == 40
    other = evaluate_run(run, folder, labels="folders", device="cpu")
    assert other["classifier_images"] == 40  # the same files are known again
    probabilities = classify(run, predict_source(run, folder, device="cpu"))
    hits = [
        row["class"] == truth(run)[row["id"]]
        for row in probabilities.rows()
        if row["id"] not in learnt
    ]
    assert own["classifier_accuracy"] == pytest.approx(np.mean(hits))
    assert 0 <= own["classifier_ece"] <= 1


def test_without_onnx_nothing_is_written(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught(run, tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match="ONNX needs more packages"):
        export_run(run, "onnx", tmp_path / "model", classes=True)
    assert not list(tmp_path.glob("model*"))


def test_a_classifier_is_not_measured_by_other_words(
    run: RunDir, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "own.csv"
    rows = list(truth(run).items())[::3]
    file.write_text("id,label\n" + "".join(f"{id_},my {label}\n" for id_, label in rows))
    teach_run(run, file)
    told = Told()
    scores = evaluate_run(run, folder, labels="folders", device="cpu", progress=told)
    assert "nmi" in scores and not [name for name in scores if name.startswith("classifier")]
    assert any("(my bars, my crosses, my rings)" in note for note in told.notes)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("to", ["onnx", "torchscript"])
def test_one_file_from_image_to_class(to: str, run: RunDir, folder: Path, tmp_path: Path) -> None:
    if to == "onnx":
        pytest.importorskip("onnxscript")
    taught(run, tmp_path)
    found = predict_source(run, folder, device="cpu")
    expected = classify(run, found)
    out = export_run(run, to, tmp_path / "model", classes=True)  # type: ignore[arg-type]
    pixels = found.store.pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
    if to == "onnx":
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(out, providers=["CPUExecutionProvider"])
        (probabilities,) = session.run(None, {"images": pixels})
    else:
        import torch

        probabilities = torch.jit.load(str(out))(torch.from_numpy(pixels)).detach().numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(probabilities.max(axis=1), expected.probability, atol=0.02)
    names = (tmp_path / "model.classes.txt").read_text().split()
    assert names == expected.names


def test_the_command_line(
    run: RunDir, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["predict", str(run.path), str(folder), "--classes"]) == 2
    assert "has no classifier" in capsys.readouterr().err
    assert run_app(["suggest", str(run.path), "-n", "12"]) == 0
    table = run.labelling / "to_label.csv"
    assert str(table) in capsys.readouterr().out
    labels = answer(run, table, tmp_path / "labels.csv")
    assert run_app(["teach", str(run.path), str(labels)]) == 0
    said = capsys.readouterr().out
    assert "12 labels, 3 classes" in said and "nine times in ten between" in said
    assert run_app(["teach", str(run.path), str(labels), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == 12
    assert run_app(["predict", str(run.path), str(folder), "--classes"]) == 0
    assert capsys.readouterr().out.startswith("id,path,class,probability,unsure")
    out = tmp_path / "found.csv"
    command = ["predict", str(run.path), str(folder), "--classes", "--json", "--out", str(out)]
    assert run_app(command) == 0
    assert json.loads(capsys.readouterr().out) == {str(out): 60}
    assert run_app([*command[:-1], "/dev/null"]) == 0
    assert capsys.readouterr().out == ""
    into = tmp_path / "sorted"
    command = ["predict", str(run.path), str(folder), "--classes", "--risk", "0.000001"]
    assert run_app([*command, "--into", str(into)]) == 0
    assert any(place.name.endswith("unsure") for place in into.iterdir())
    assert run_app(["predict", str(run.path), "nowhere", "--risk", "2"]) == 2  # before any work
    assert "risk 2" in capsys.readouterr().err
