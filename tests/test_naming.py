"""Names, merges and moves of one run, in another run of (some of) the same images."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, make_shapes
from make_run import write_run
from PIL import Image

from deepcluster.config import Config, override
from deepcluster.errors import ConfigError, RunError
from deepcluster.finished import predict_source, sort_into
from deepcluster.fitting import fit_source
from deepcluster.images.content import content_of
from deepcluster.naming import Carried, Remembered, carry_names
from deepcluster.progress import Progress
from deepcluster.report import apply_labels
from deepcluster.run import RunDir


def run_of(path: Path, clusters: Sequence[int], contents: Sequence[int]) -> RunDir:
    n = len(clusters)
    embeddings = np.random.default_rng(0).normal(size=(n, 3))
    images = np.zeros((n, 8, 8, 1), np.uint8)
    return write_run(
        path, images=images, embeddings=embeddings, clusters=np.array(clusters), contents=contents
    )


def say(run: RunDir, rows: str) -> None:
    """Apply ``row,cluster,name,by`` lines, the row by its number."""
    lines = [f"{int(i):06d},{rest}" for i, rest in (r.split(",", 1) for r in rows.split())]
    file = run.path.parent / "labels.csv"
    file.write_text("\n".join(["id,cluster,name,by", *lines]), encoding="utf-8")
    apply_labels(run, file)


def carry(old: RunDir, new: RunDir) -> Carried:
    return carry_names(Remembered.of(old), new)


def column(run: RunDir, name: str) -> list[object]:
    values = run.read_items()[name].to_pylist()
    assert isinstance(values, list)
    return values


OLD = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
NEW = [2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 1, 1]


@pytest.fixture
def old(tmp_path: Path) -> RunDir:
    return run_of(tmp_path / "old", OLD, range(12))


def test_names_follow_the_images_not_the_numbers(old: RunDir, tmp_path: Path) -> None:
    say(old, "0,0,cats,model 4,1,dogs,model")
    # the other way round, other numbers, one image is in another cluster, three are new
    new = run_of(tmp_path / "new", [1, *NEW[1:], 2, 0, 1][::-1], [*range(12), 97, 98, 99][::-1])
    carried = carry(old, new)
    assert (carried.common, carried.here, carried.there) == (12, 15, 12)
    assert new.read_clusters()["names"] == {"0": "dogs", "2": "cats"}
    assert column(new, "by") == ["model"] * 15  # no image was moved
    assert carried.applied.renamed == 2 and carried.applied.moved == 0
    assert carried.unmatched == []
    assert "cluster 2: cats (3 of its 3 known images)" in str(carried)
    before = new.read_items()
    again = carry(old, new)
    assert (again.applied.renamed, again.applied.moved) == (0, 0)
    assert new.read_items().equals(before)


def test_moves_of_a_person_come_along(old: RunDir, tmp_path: Path) -> None:
    """To a cluster that matches, into none, to one made by hand; also where the model agrees."""
    say(old, "0,1,,person 4,-1,,person 8,7,owls,person 9,7,owls,person 1,0,,person")
    new = run_of(tmp_path / "new", NEW, range(12))
    carried = carry(old, new)
    assert column(new, "cluster") == [0, 2, 2, 2, -1, 0, 0, 0, 3, 3, 1, 1]
    persons = [i for i, by in enumerate(column(new, "by")) if by == "person"]
    assert persons == [0, 1, 4, 8, 9]
    assert new.read_clusters()["names"] == {"3": "owls"}
    assert carried.applied.moved == 4 and carried.applied.taken_out == 1
    assert any("made by hand there, 2 images" in line for line in carried.named)
    before = new.read_items()
    carry(old, new)
    assert new.read_items().equals(before)


def test_a_cluster_made_by_hand_that_the_new_fit_found_is_that_one(
    old: RunDir, tmp_path: Path
) -> None:
    say(old, "8,7,owls,person 9,7,owls,person 10,7,owls,person")
    new = run_of(tmp_path / "new", [0] * 8 + [1, 1, 0, 0], range(12))
    carry(old, new)
    assert new.read_clusters()["names"] == {"1": "owls"}
    assert column(new, "cluster")[8:] == [1, 1, 1, 0]


def test_merges_come_along(old: RunDir, tmp_path: Path) -> None:
    say(old, "4,0,pets, 5,0,pets, 6,0,pets, 7,0,pets,")
    assert old.read_clusters()["merged"] == {"1": 0}
    new = run_of(tmp_path / "new", NEW, range(12))
    carried = carry(old, new)
    assert carried.applied.merged == {2: 0}
    assert new.read_clusters()["names"] == {"0": "pets"}
    assert new.read_clusters()["merged"] == {"2": 0}
    assert column(new, "by") == ["model"] * 12
    # a fit that splits a cluster nobody merged gives the name to both, and merges nothing
    split = run_of(tmp_path / "split", [0] * 8 + [1, 1, 2, 2], range(12))
    say(old, "8,2,fish,")
    assert carry(old, split).applied.merged == {}
    assert split.read_clusters()["names"] == {"0": "pets", "1": "fish", "2": "fish"}


def test_what_does_not_match_is_listed(old: RunDir, tmp_path: Path) -> None:
    say(old, "0,0,cats,model 4,1,dogs,model 8,1,dogs,person 3,0,cats,person")
    # cats are torn apart; cluster 3 is all new
    new = run_of(tmp_path / "new", [1, 1, 0, 2, 0, 0, 0, 0, 1, 1, 1, 2, 3, 3], range(14))
    carried = carry(old, new)
    assert new.read_clusters()["names"] == {"0": "dogs"}
    assert (column(new, "cluster")[8], column(new, "cluster")[3]) == (0, 2)
    text = str(carried)
    assert (
        "the name cats (cluster 0 there): its images are in the clusters 1 (2), 0 (1), 2 (1)"
        in text
    )
    assert "1 image that a person put into cats there: left where the model has them" in text
    assert "cluster 3 here: its 2 images are not in the other run" in text
    assert "cluster 1 here: its 5 images are in the clusters 0 (2), 2 (2), 1 (1)" in text


def test_what_was_said_here_stays(old: RunDir, tmp_path: Path) -> None:
    say(old, "0,0,cats,model 4,1,dogs,model 8,0,cats,person")
    new = run_of(tmp_path / "new", NEW, range(12))
    say(new, "0,2,kittens,model 8,0,,person")
    carry(old, new)
    assert new.read_clusters()["names"] == {"0": "dogs", "2": "kittens"}
    assert column(new, "cluster")[8] == 0


def test_copies_of_an_image_go_with_one_another(tmp_path: Path) -> None:
    old = run_of(tmp_path / "old", [0, 0, 1, 1], [5, 5, 6, 7])
    say(old, "1,1,,person")
    new = run_of(tmp_path / "new", [1, 1, 1, 0, 0], [5, 5, 5, 6, 7])
    assert carry(old, new).common == 4
    assert column(new, "cluster") == [1, 0, 1, 0, 0]


def test_other_images_are_refused(old: RunDir, tmp_path: Path) -> None:
    new = run_of(tmp_path / "new", NEW, range(100, 112))
    say(old, "0,0,cats,model")
    before = new.read_items()
    with pytest.raises(RunError, match="no image in common"):
        carry(old, new)
    assert new.read_items().equals(before) and new.read_clusters()["names"] == {}


def test_a_run_from_before_is_read_from_its_files(old: RunDir, tmp_path: Path) -> None:
    say(old, "0,0,cats,model")
    contents = np.load(old.contents)
    old.contents.unlink()
    with pytest.raises(RunError, match="older deepcluster"):
        Remembered.of(old)
    items = old.read_items()
    columns = {name: items[name].to_pylist() for name in items.column_names}
    files = []
    for i in range(12):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(files[-1])
    old.write_items({**columns, "path": [str(file) for file in files]})
    assert Remembered.of(old).contents.tolist() == [content_of(file) for file in files]
    np.save(old.contents, contents[:5])
    with pytest.raises(RunError, match="5 rows for 12 images"):
        Remembered.of(old)


def test_fewer_clusters_of_the_tree_are_no_merge(old: RunDir, tmp_path: Path) -> None:
    """Whoever looked at fewer clusters did not say that two of them are one."""
    file = tmp_path / "labels.csv"
    rows = [f"{i:06d},0,pets,model,2" for i in range(4, 8)]
    file.write_text("\n".join(["id,cluster,name,by,level", *rows]), encoding="utf-8")
    apply_labels(old, file)
    assert old.read_clusters()["by_level"] == [1]
    new = run_of(tmp_path / "new", NEW, range(12))
    carried = carry(old, new)
    assert carried.applied.merged == {}
    assert new.read_clusters()["names"] == {"0": "pets", "2": "pets"}


# -- with a model --------------------------------------------------------------------------------


def test_predict_follows_what_a_person_moved(
    finished: RunDir, folder: Path, tmp_path: Path
) -> None:
    """A cluster made by hand, and images moved: they are met again where they were put."""
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(finished.path, copy.path)
    items = copy.read_items().to_pylist()
    mine = [item for item in items if item["cluster"] == 0][::2]
    rows = [f"{item['id']},7,made by hand,person" for item in mine[:-1]]
    rows.append(f"{mine[-1]['id']},-1,,person")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["id,cluster,name,by", *rows]), encoding="utf-8")
    apply_labels(copy, labels)
    found = predict_source(copy, folder, device="cpu")
    after = copy.read_items()
    assert found.store.ids == after["id"].to_pylist()
    assert found.labels.tolist() == after["cluster"].to_pylist()
    assert (found.labels == 7).sum() == len(mine) - 1 and (found.labels == -1).sum() == 1
    assert set(np.array(found.names)[found.labels == 7]) == {"made by hand"}
    counts = sort_into(found, tmp_path / "sorted")
    assert counts["none"] == 1 and counts["007-made by hand"] == len(mine) - 1
    # the model itself is as it was, and who takes the moves back has it again
    back = [f"{item['id']},{item['cluster']},,person" for item in mine]
    labels.write_text("\n".join(["id,cluster,name,by", *back]), encoding="utf-8")
    apply_labels(copy, labels)
    before = [item["cluster"] for item in items]
    assert predict_source(copy, folder, device="cpu").labels.tolist() == before


def test_predict_follows_more_clusters_of_the_tree(
    finished: RunDir, folder: Path, tmp_path: Path
) -> None:
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(finished.path, copy.path)
    items = copy.read_items().to_pylist()
    part = [item["id"] for item in items if item["cluster"] == 0][1::2]
    labels = tmp_path / "labels.csv"
    rows = [f"{id_},5,,model,4" for id_ in part]
    labels.write_text("\n".join(["id,cluster,name,by,level", *rows]), encoding="utf-8")
    apply_labels(copy, labels)
    after = copy.read_items()
    assert set(after["by"].to_pylist()) == {"model"} and 5 in after["cluster"].to_pylist()
    found = predict_source(copy, folder, device="cpu")
    assert found.labels.tolist() == after["cluster"].to_pylist()


def test_a_fit_takes_names_from_an_earlier_one(
    finished: RunDir, folder: Path, tmp_path: Path
) -> None:
    """The photographs were moved and renamed since, and there are some more."""
    first = RunDir(tmp_path / "first")
    shutil.copytree(finished.path, first.path)
    items = first.read_items().to_pylist()
    first.write_clusters({"names": {"0": "bars", "1": "crosses", "2": "rings"}, "merged": {}})
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, item in enumerate(reversed(items)):
        shutil.copy(item["path"], photos / f"{i}.png")
    for i, pixels in enumerate(make_shapes(6, seed=5)):
        Image.fromarray(pixels).save(photos / f"new {i}.png")
    config = override(Config(), {**TINY, "epochs": 1})
    out = tmp_path / "second"
    with pytest.raises(ConfigError, match="choose another"):
        fit_source(photos, config, out=first.path, names_from=first.path, overwrite=True)
    with pytest.raises(RunError, match="no image in common"):
        fit_source(make_shapes(9), config, out=out, names_from=first.path)
    assert not out.exists()
    second = fit_source(photos, config, out=out, names_from=first.path)
    was = {content_of(Path(item["path"])): item["cluster"] for item in items}
    names = first.read_clusters()["names"]
    carried = second.read_info()["carried"]
    assert carried[0] == "in both runs: 60 images (of 66 here and 60 there)"
    rows = second.read_items().to_pylist()
    for cluster, name in second.read_clusters()["names"].items():
        known = [
            names[str(was[content])]
            for row in rows
            if row["cluster"] == int(cluster) and (content := content_of(Path(row["path"]))) in was
        ]
        assert 2 * known.count(name) > len(known)
    assert second.read_clusters()["names"]


@pytest.mark.slow
def test_a_stopped_fit_still_knows_whose_names_it_takes(tmp_path: Path) -> None:
    class Stop(Progress):
        def epoch(self, line: dict[str, object]) -> None:
            raise KeyboardInterrupt

    config = override(Config(), TINY)
    first = fit_source(make_shapes(48), config, out=tmp_path / "first")
    labels = tmp_path / "labels.csv"
    labels.write_text("id,cluster,by\n0,5,person\n1,5,person\n2,5,person\n", encoding="utf-8")
    apply_labels(first, labels)
    with pytest.raises(KeyboardInterrupt):
        fit_source(
            make_shapes(48),
            config,
            out=tmp_path / "second",
            names_from=first.path,
            progress=Stop(),
        )
    second = fit_source(make_shapes(48), config, out=tmp_path / "second", resume=True)
    assert column(second, "by")[:3] == ["person"] * 3
