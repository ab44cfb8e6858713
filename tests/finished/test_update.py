"""Images that came after the fit: assigned, counted once, and odd ones found."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_shapes
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from deepcluster.cli import run_app
from deepcluster.errors import RunError
from deepcluster.finished import predict_source
from deepcluster.finished.update import _why_due, find_odd, update_run
from deepcluster.run import RunDir


def files(run: RunDir) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in run.path.rglob("*") if p.is_file()}


def photos(folder: Path, count: int, seed: int) -> Path:
    folder.mkdir(exist_ok=True)
    for i, pixels in enumerate(make_shapes(count, seed=seed)):
        Image.fromarray(pixels).save(folder / f"{seed}-{i:02d}.png")
    return folder


@pytest.fixture
def run(finished: RunDir, tmp_path: Path) -> RunDir:
    copy = RunDir(tmp_path / "run")
    shutil.copytree(finished.path, copy.path)
    copy.write_clusters({"names": {"0": "bars"}, "merged": {}})
    return copy


def test_new_images_are_told_and_known_ones_passed_over(
    run: RunDir, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = photos(tmp_path / "mine", 9, seed=1)
    for i, path in enumerate(sorted(folder.rglob("[0-9]*.png"))[:20]):
        shutil.copy(path, mine / f"old {i}.png")  # known by what is in them
    shutil.copy(mine / "1-00.png", mine / "again.png")
    before = files(run)
    found = update_run(run, mine, device="cpu")
    assert (found.new, found.known, found.fitted) == (9, 21, 60)
    assert found.file is not None and found.file.parent == run.path / "updates"
    after = files(run)
    assert after.pop(str(found.file)) and after == before  # the fit's own files stay
    with found.file.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    predicted = {row["id"]: row for row in predict_source(run, mine, device="cpu").rows()}
    assert {row["id"] for row in rows} == {f"1-{i:02d}.png" for i in range(9)}
    for row in rows:
        assert int(row["cluster"]) == predicted[row["id"]]["cluster"]
        assert row["name"] == ("bars" if row["cluster"] == "0" else "")
        assert row["path"].endswith(row["id"]) and row["fits"] in ("yes", "no")
    assert sum(found.clusters.values()) + found.nowhere == 9
    assert all(name == "000 bars" or name in ("001", "002") for name in found.clusters)

    assert update_run(run, mine, device="cpu").file is None  # all known by now
    photos(mine, 9, seed=2)
    assert run_app(["update", str(run.path), str(mine), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "9 new images (30 known already)" in out
    assert "a new fit is due: 18 images came since the fit, which knew 60" in out
    assert len(list((run.path / "updates").iterdir())) == 2


def test_a_list_that_is_none_is_named(run: RunDir, tmp_path: Path) -> None:
    mine = photos(tmp_path / "mine", 3, seed=1)
    (run.path / "updates").mkdir()
    (run.path / "updates" / "notes.csv").write_text("id,content\n1,12e456\n")
    with pytest.raises(RunError, match=r"notes\.csv is no list"):
        update_run(run, mine, device="cpu")


def test_odd_is_what_is_far_by_the_measure_of_its_cluster() -> None:
    """Against scikit-learn's neighbours; a thin cluster is no odd one."""
    rng = np.random.default_rng(0)
    spread = np.array([0.02, 0.2])

    def draw(cluster: np.ndarray) -> np.ndarray:
        middles = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0]])[cluster]
        return (middles + spread[cluster, None] * rng.normal(size=(len(cluster), 4))).astype("f4")

    clusters = np.repeat([0, 1], [900, 100])
    own, labels = draw(clusters), np.repeat([0, 1], [450, 50])
    new = draw(labels)
    strange = np.array([[1, 0, 0.3, 0]], np.float32)  # far for the first, not for the second
    x, labels = np.concatenate([new, strange]), np.append(labels, 0)
    odd = find_odd(*map(torch.from_numpy, (x, labels, own, clusters))).numpy()

    neighbours = NearestNeighbors(n_neighbors=5).fit(own)
    usual = neighbours.kneighbors()[0].mean(1)
    median = np.array([np.median(usual[clusters == c]) for c in (0, 1)])
    limit = np.quantile(usual / median[clusters], 0.99)
    expected = neighbours.kneighbors(x)[0].mean(1) / median[labels] > limit
    assert (odd == expected).mean() > 0.995  # torch takes the lower of two middle values
    assert odd[-1] and odd[:-1].mean() < 0.04


def test_odd_with_hardly_any_images() -> None:
    one = torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64)
    assert not bool(find_odd(torch.ones(2, 3), torch.tensor([0, -1]), *one).any())
    same = torch.zeros(30, 3), torch.zeros(30, dtype=torch.int64)  # copies of one image
    odd = find_odd(torch.tensor([[0.0, 0, 0], [1, 0, 0]]), torch.tensor([0, 0]), *same)
    assert odd.tolist() == [False, True]


def test_when_a_fit_is_due() -> None:
    assert _why_due(1000, 200, 9) == []
    assert len(_why_due(1000, 200, 10)) == 1
    assert _why_due(1000, 249, 12) == []
    assert len(_why_due(1000, 250, 13)) == 2
