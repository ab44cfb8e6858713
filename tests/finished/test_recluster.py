"""Another number of clusters of a finished run: a cut of its tree; names stay with the images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from deepcluster.clustering.tree import Tree
from deepcluster.errors import ConfigError
from deepcluster.finished import predict_source, recluster_run
from deepcluster.report import write_report
from deepcluster.report.labels import change_clusters
from deepcluster.run import RunDir
from deepcluster.show.results import print_run


@pytest.fixture
def run(finished: RunDir, tmp_path: Path) -> RunDir:
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(finished.path, copy.path)
    return copy


def clusters_of(run: RunDir) -> np.ndarray:
    return run.read_items()["cluster"].to_numpy().astype(np.int64)


def cut_of(run: RunDir, k: int) -> np.ndarray:
    merges, heights, part = run.read_tree()
    tree = Tree(torch.zeros(0), torch.from_numpy(merges.astype(np.int64)), torch.tensor(heights))
    return tree.cut(k).numpy()[part]


@pytest.mark.parametrize("k", [1, 2, 7])
def test_table_model_and_run_json_follow(run: RunDir, folder: Path, k: int) -> None:
    first = run.read_items()
    assert np.array_equal(clusters_of(run), cut_of(run, 3))
    recluster_run(run, k)
    assert np.array_equal(clusters_of(run), cut_of(run, k))
    assert run.read_info()["counts"]["clusters"] == k
    assert "nmi" in run.read_info()["scores"]["fit"]
    found = predict_source(run, folder, device="cpu")
    assert found.labels.tolist() == clusters_of(run).tolist()
    assert found.confidence.tolist() == run.read_items()["confidence"].to_pylist()
    recluster_run(run, 3)
    assert run.read_items().equals(first)
    assert not list(run.path.glob(".recluster*"))


def test_scores_of_the_pixels_stay_with_their_number(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = run.read_info()["scores"]["pixels"]
    for k in (4, 5):
        recluster_run(run, k)
        assert run.read_info()["scores"]["pixels"] == pixels
        print_run(run, as_json=False)
        assert "k-means on the pixels, 3 clusters" in capsys.readouterr().out
    write_report(run)
    page = (run.report / "data/summary.js").read_text()
    assert '"pixel_clusters"' in page
    recluster_run(run, 3)
    print_run(run, as_json=False)
    assert "k-means on the pixels " in capsys.readouterr().out


def test_the_number_can_be_chosen(run: RunDir) -> None:
    recluster_run(run, "auto")
    info = run.read_info()
    assert info["counts"]["clusters"] == len(np.unique(clusters_of(run)))
    assert info["choice"]


def test_names_merges_and_moves_stay_with_their_images(run: RunDir, folder: Path) -> None:
    before = clusters_of(run)
    after = before.copy()
    moved = np.flatnonzero(before == 0)[:2]
    after[moved] = 1
    by_person = np.isin(np.arange(len(before)), moved)
    change_clusters(run, after, by_person, {0: "zero", 1: "one", 2: "two"})
    said = recluster_run(run, 6)
    assert not [line for line in said if "\n" in line]
    items, fine = run.read_items(), cut_of(run, 6)
    names = np.array(items["name"].to_pylist())
    for old, name in enumerate(("zero", "one", "two")):
        assert (names[(before == old) & ~by_person] == name).all()
    assert (names[moved] == "one").all()
    assert [by == "person" for by in items["by"].to_pylist()] == by_person.tolist()
    assert np.array_equal(clusters_of(run)[~by_person], fine[~by_person])
    found = predict_source(run, folder, device="cpu")
    assert found.labels.tolist() == clusters_of(run).tolist()
    recluster_run(run, 3)
    assert np.array_equal(clusters_of(run), after)
    assert run.read_clusters()["names"] == {"0": "zero", "1": "one", "2": "two"}


def test_merged_clusters_stay_one(run: RunDir) -> None:
    before = clusters_of(run)
    after = np.where(before == 2, 1, before)
    change_clusters(run, after, np.zeros(len(before), bool), {1: "both"})
    recluster_run(run, 6)
    found = clusters_of(run)
    assert len(np.unique(found[after == 1])) == 1
    assert len(np.unique(found[after == 0])) > 1
    names = np.array(run.read_items()["name"].to_pylist())
    assert (names[after == 1] == "both").all()


def test_more_clusters_than_parts_are_refused(run: RunDir) -> None:
    before = run.read_items()
    for k in (0, 61):
        with pytest.raises(ConfigError, match="from 1 to 30"):
            recluster_run(run, k)
    assert run.read_items().equals(before)
