"""The report without a browser: what it writes, and what it takes back."""

from __future__ import annotations

import base64
import csv
import json
import math
import re
import shutil
import subprocess
import sys
import tracemalloc
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_run import HOSTILE, make_run, training, write_run
from PIL import Image
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

from deepcluster.errors import RunError
from deepcluster.report import apply_labels, levels, pages, separation, unusual, write, write_report
from deepcluster.report.levels import Tree, describe_levels, read_tree
from deepcluster.report.pages import find_originals, packed, write_data
from deepcluster.report.separation import find_separation
from deepcluster.report.verdict import Truth, judge
from deepcluster.run import Neighbours, RunDir
from deepcluster.show.pictures import write_pictures


def data_of(run: RunDir, name: str) -> dict[str, Any]:
    """What a data script hands over."""
    text = (run.report / "data" / f"{name}.js").read_text(encoding="ascii")
    assert "<" not in text
    value = json.loads(text.removeprefix(f'deepcluster.receive("{name}",').removesuffix(");\n"))
    assert isinstance(value, dict)
    return {k: _unpacked(v) for k, v in value.items()}


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"type", "base64"}:
        return np.frombuffer(base64.b64decode(value["base64"]), value["type"])
    return value


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# -- pages ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("report") / "run", hostile=True)
    assert write_report(run) == run.report / "index.html"
    return run


def test_the_same_run_gives_the_same_pages(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=60)
    write_report(run)
    first = contents(run.report)
    assert {"index.html", "style.css", "data/items.js", "thumbnails/0000.webp"} <= set(first)
    write_report(run)
    assert contents(run.report) == first
    assert not list(tmp_path.glob("run/*.part"))


def test_files_of_others_stay_in_the_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=20)
    write_report(run)
    (run.report / "labels.csv").write_text("mine", encoding="utf-8")
    write_report(run)
    assert (run.report / "labels.csv").read_text(encoding="utf-8") == "mine"


def test_report_needs_no_torch() -> None:
    code = "import sys, deepcluster.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_items_say_what_the_table_says(written: RunDir) -> None:
    items, table = data_of(written, "items"), written.read_items()
    ids = table["id"].to_pylist()
    assert items["ids"] == ids and set(HOSTILE) <= set(ids)
    paths = [
        items["prefix"] + (id_ if rest == 0 else rest)
        for id_, rest in zip(ids, items["paths"], strict=True)
    ]
    assert paths == table["path"].to_pylist()
    assert [items["classes"][c] for c in items["label"]] == table["label"].to_pylist()
    np.testing.assert_array_equal(items["cluster"], table["cluster"].to_numpy())
    np.testing.assert_array_equal(items["confidence"], table["confidence"].to_numpy())
    assert items["places"].reshape(-1, 2).max() == 65534


def test_each_tile_is_the_picture_of_its_item(tmp_path: Path) -> None:
    n = 150
    rng = np.random.default_rng(3)
    images = np.broadcast_to(rng.integers(256, size=(n, 1, 1, 3)), (n, 16, 16, 3)).astype(np.uint8)
    clusters = rng.integers(4, size=n)
    embeddings = rng.normal(size=(n, 4))
    run = write_run(tmp_path / "run", images=images, embeddings=embeddings, clusters=clusters)
    write_report(run)
    items, summary = data_of(run, "items"), data_of(run, "summary")
    sheets = summary["thumbnails"]
    for item in range(n):
        number, place = divmod(int(items["tile"][item]), sheets["columns"] * sheets["rows"])
        top, left = (16 * at + 8 for at in divmod(place, sheets["columns"]))
        with Image.open(run.report / "thumbnails" / sheets["sheets"][number]) as sheet:
            found = np.array(sheet.convert("RGB").getpixel((left, top)))
        np.testing.assert_allclose(found, images[item, 0, 0], atol=12)
    covers = summary["covers"]
    with Image.open(run.report / "data" / "covers.webp") as picture:
        for row, members in enumerate(covers["items"]):
            assert (clusters[members] == covers["clusters"][row]).all()
            for column, item in enumerate(members):
                found = np.array(picture.getpixel((16 * column + 8, 16 * row + 8)))
                np.testing.assert_allclose(found, images[item, 0, 0], atol=16)


def test_sheets_are_not_stored_twice(written: RunDir) -> None:
    for sheet in written.read_thumbnails().sheets:
        assert (written.report / "thumbnails" / sheet.name).samefile(sheet)


def test_title_cannot_leave_its_tag(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=8, clusters=2, info={"name": "</title><script>alert(1)"})
    page = write_report(run).read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;/title&gt;" in page


@pytest.mark.parametrize("n", [1, 2, 7])
def test_few_images(tmp_path: Path, n: int) -> None:
    run = make_run(tmp_path / "run", n=n, clusters=1, places=np.full((n, 2), np.nan))
    write_report(run)
    assert data_of(run, "neighbours")["index"].size == n * (n - 1)


def test_originals_are_found_from_the_pages(tmp_path: Path) -> None:
    photo = tmp_path / "photos #1" / "a.png"
    photo.parent.mkdir()
    photo.write_bytes(b"")
    paths = [None, str(photo), str(photo.with_name("b.png"))]
    found = find_originals(paths, tmp_path / "runs" / "one" / "report")
    assert found == "../../../photos%20%231/"  # below one folder: both may move together
    far = find_originals(paths, Path("/elsewhere/one/report"))
    assert far == photo.parent.as_uri() + "/"
    photo.unlink()
    assert find_originals(paths, tmp_path / "report") is None
    assert find_originals([None], tmp_path / "report") is None


def test_a_run_that_lacks_something_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=20)
    np.save(run.embeddings, run.read_embeddings()[:5])
    with pytest.raises(RunError, match="5 rows for 20 images"):
        write_report(run)
    run.embeddings.unlink()
    with pytest.raises(RunError, match=r"embeddings\.npy is missing"):
        write_report(run)
    other = make_run(tmp_path / "other", n=20)
    (other.path / "thumbnails" / "index.json").unlink()
    with pytest.raises(RunError, match="no thumbnails"):
        write_report(other)
    assert not other.report.exists()


def test_text_can_be_read_on_every_ground() -> None:
    """WCAG AA: 4.5 to 1 for text, in light and in dark."""
    style = (resources.files("deepcluster.report") / "page/style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for block in style.split("@media (prefers-color-scheme: dark)", 1)
    )

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    grounds = ("ground", "panel", "sunk")
    pairs = [(ink, ground) for ink in ("ink", "soft", "accent") for ground in grounds]
    pairs += [("accent-ink", "accent"), ("ink", "accent-soft"), ("ground", "ink")]
    pairs += [("ink", f"{level}-soft") for level in ("good", "fair", "bad")]
    pairs += [(f"{level}-soft", level) for level in ("good", "fair", "bad")]
    for colours in (light, light | dark):
        for ink, ground in pairs:
            a, b = luminance(colours[ink]), luminance(colours[ground])
            contrast = (max(a, b) + 0.05) / (min(a, b) + 0.05)
            assert contrast >= 4.5, (ink, ground, contrast)


# -- neighbours, map, tree -----------------------------------------------------------------------


def test_an_older_run_gets_its_neighbours_once_and_they_are_those_of_scikit_learn(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path / "run", n=300, dimensions=12)
    assert not run.neighbours.exists()
    write_report(run)
    distance, index = NearestNeighbors(n_neighbors=12).fit(run.read_embeddings()).kneighbors()
    known = run.read_neighbours(300)
    assert known is not None and known.recall == 1
    np.testing.assert_array_equal(known.index, index)
    np.testing.assert_allclose(known.distance, distance, rtol=1e-5)
    written = run.neighbours.stat().st_mtime_ns
    write_report(run)
    assert run.neighbours.stat().st_mtime_ns == written
    np.testing.assert_array_equal(data_of(run, "neighbours")["index"].reshape(300, 12), index)


def test_the_report_reads_the_neighbours_that_the_fit_wrote(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=30)
    index = (np.arange(30)[:, None] + np.arange(1, 4)) % 30
    run.write_neighbours(Neighbours(index, np.ones((30, 3)), 0.97))
    write_report(run)
    np.testing.assert_array_equal(data_of(run, "neighbours")["index"].reshape(30, 3), index)
    said = data_of(run, "summary")["neighbours"]
    assert said["k"] == 3 and said["recall"] == pytest.approx(0.97)


def test_neighbours_of_fewer_images_are_not_those_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=30)
    run.write_neighbours(Neighbours(np.zeros((20, 3)), np.ones((20, 3)), 1.0))
    write_report(run)
    assert data_of(run, "neighbours")["index"].size == 30 * 12


def test_equal_images_are_pairs_and_never_their_own_neighbours(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    points[10:30] = points[10]  # more copies than neighbours
    points[50] = points[51] + 1e-4
    points[7] += 50
    found = unusual.read_neighbours(RunDir.create(tmp_path / "run"), points)
    assert not (found.index == np.arange(300)[:, None]).any()
    pairs = unusual.find_duplicates(found)
    named = {tuple(pair) for pair in pairs.pairs.tolist()}
    assert (50, 51) in named and len(named) > 100
    assert all(a == 50 or (10 <= a < 30 and 10 <= b < 30) for a, b in named)
    assert (np.diff(pairs.distance) >= 0).all() and len(named) == pairs.total
    assert unusual.find_outliers(found)[0] == 7


def test_images_without_a_place_are_not_on_the_map(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    places = rng.normal(size=(60, 2))
    places[::3] = np.nan
    run = make_run(tmp_path / "run", n=60, places=places)
    write_report(run)
    assert data_of(run, "summary")["map"] == {"shown": 40}
    packed = data_of(run, "items")["places"].reshape(60, 2)
    assert (packed[::3] == 65535).all()
    shown = np.isfinite(places[:, 0])
    assert packed[shown].max() == 65534
    span = np.ptp(places[shown], axis=0).max()
    np.testing.assert_allclose(
        np.diff(packed[shown].astype(float), axis=0) / 65534,
        np.diff(places[shown], axis=0) / span,
        atol=1e-4,
    )


def ward(n: int, parts: int, seed: int = 0) -> Tree:
    """SciPy's tree of the `parts` finest clusters of some points."""
    points = np.random.default_rng(seed).normal(size=(n, 3))
    whole = linkage(points, "ward")
    part = fcluster(whole, parts, "maxclust") - 1
    means = np.stack([points[part == p].mean(axis=0) for p in range(parts)])
    merges = linkage(means, "average")
    return Tree(part, merges[:, :2].astype(np.int64))


def as_linkage(tree: Tree) -> np.ndarray:
    rest = np.arange(len(tree.merges), dtype=float), np.ones(len(tree.merges))
    return np.column_stack([tree.merges, *rest])


def test_the_tree_of_a_run_is_scipys(tmp_path: Path) -> None:
    """The run folder has it as parts that join parts; its recipe for a cut gives the same."""
    run = make_run(tmp_path / "run", n=120, clusters=5, parts=3)
    pairs, _, _ = run.read_tree()
    tree = read_tree(run, 120)
    assert tree is not None and read_tree(run, 119) is None
    for k in range(2, 16):
        root = np.arange(15)
        for i, j in pairs[: 15 - k]:
            root[root == j] = i
        _, expected = np.unique(root, return_inverse=True)
        found = fcluster(as_linkage(tree), k, "maxclust")
        assert len(set(zip(found.tolist(), expected.tolist(), strict=True))) == k


def test_numbers_of_the_tree_are_the_runs_at_its_own_level() -> None:
    tree = ward(200, 20)
    flat = fcluster(as_linkage(tree), 6, "maxclust") - 1
    clusters = np.array([40, 3, 2, 11, 0, 7])[flat[tree.part]]
    found = describe_levels(tree, clusters, np.zeros(200, bool))
    assert found["exact"] and found["own"] == 6 and found["all"] == list(range(2, 21))
    numbers = np.array(found["numbers"])
    for k in found["all"]:
        alive = levels._cut(tree, k)
        assert len(alive) == len(set(numbers[alive].tolist())) == k
        if k <= 6:
            assert set(numbers[alive].tolist()) <= {40, 3, 2, 11, 0, 7}
        else:
            assert set(numbers[alive].tolist()) > {40, 3, 2, 11, 0, 7}
    sizes = np.bincount(tree.part, minlength=20).tolist()
    for i, (a, b) in enumerate(tree.merges):
        sizes.append(sizes[a] + sizes[b])
        assert numbers[20 + i] == numbers[a if sizes[a] >= sizes[b] else b]


def test_a_cut_that_is_not_the_trees_is_no_level_of_it() -> None:
    tree = ward(200, 20)
    clusters = np.arange(200) % 5
    found = describe_levels(tree, clusters, np.zeros(200, bool))
    assert not found["exact"] and found["own"] == 5
    person = np.arange(200) < 190  # images that a person moved say nothing of the fit's cut
    clusters[190:] = (fcluster(as_linkage(tree), 4, "maxclust") - 1)[tree.part[190:]]
    assert describe_levels(tree, clusters, person)["exact"]
    many = describe_levels(tree, np.arange(200), np.zeros(200, bool))  # more than there are parts
    assert many["all"][-1] == 200 and not many["exact"]


# -- verdict -------------------------------------------------------------------------------------


GOOD = training(12, 5)[-1]


@pytest.mark.parametrize(
    ("sizes", "change", "scores", "said"),
    [
        ([100], {}, {}, "All images are in one cluster"),
        ([40, 30], {}, {}, "3 clusters were asked for, but only 2"),
        ([40, 30, 30], {"effective_rank": 1.4}, {}, "collapsed"),
        ([40, 30, 30], {"loss": GOOD["ln_k"] * 0.99}, {}, "guessing"),
        ([40, 30, 30], {"loss": math.nan}, {}, "not a number"),
        ([40, 30, 30], {"changed": 0.7}, {}, "churning"),
        ([40, 30, 30], {}, {"fit": {"nmi": 0.2}, "pixels": {"nmi": 0.4}}, "pixels follows"),
    ],
)
def test_a_bad_fit_is_called_bad(
    sizes: list[int], change: dict[str, Any], scores: dict[str, Any], said: str
) -> None:
    metrics = [*training(12, 5)[:-1], {**GOOD, **change}]
    verdict = judge(sizes, metrics, scores, method="deepcluster", asked=3)
    assert verdict.level == "bad"
    assert [said in what for what, _ in verdict.problems].count(True) == 1
    assert all(then and "--epochs" not in then for _, then in verdict.problems)


def test_size_alone_is_no_fault() -> None:
    """Real collections are unequal: 4,153 red cells, 372 white ones, 361 platelets."""
    assert judge([4153, 372, 361], training(12, 5), {}, asked=3).level == "good"


def test_a_good_fit_is_called_good() -> None:
    sizes, metrics = [40, 30, 30], training(12, 5)
    assert judge(sizes, metrics, {}).level == "good"
    scores = {"fit": {"acc": 0.83, "nmi": 0.8}, "pixels": {"acc": 0.5, "nmi": 0.5}}
    verdict = judge(sizes, metrics, scores, truth=Truth(0.83, False, 3))
    assert verdict.level == "good" and "83 %" in verdict.sentence and "50 %" in verdict.sentence
    assert judge(sizes, metrics, {}, truth=Truth(0.3, False, 3)).level == "fair"
    assert judge(sizes, [], {}).level == "fair"


@pytest.mark.parametrize(
    ("how", "cure"),
    [
        ({}, "Train longer"),
        ({"learns": False}, "--start adapt"),
        ({"learns": False, "given": True}, "vectors of another net"),
    ],
)
def test_below_the_pixels_the_advice_can_be_taken(how: dict[str, bool], cure: str) -> None:
    scores = {"fit": {"acc": 0.3, "nmi": 0.2}, "pixels": {"acc": 0.5, "nmi": 0.5}}
    verdict = judge([40, 30, 30], training(12, 5), scores, **how)
    assert any(cure in advice for _, advice in verdict.problems)


def test_figures_that_not_every_epoch_has() -> None:
    sizes = [40, 30, 30]
    metrics = [{"epoch": 0, "loss": 4.0}, {"epoch": 1, "loss": 3.0, "changed": 0.9, "ln_k": 2.3}]
    metrics += [{"epoch": 2, "loss": 2.9}]
    problems = judge(sizes, metrics, {}, method="deepcluster").problems
    assert ["churning" in problems[1][0], "guessing" in problems[0][0]] == [True, True]
    other = judge(sizes, metrics, {}, method="contrastive-clusters").problems
    assert len(other) == 1  # its loss is no guess among k


def said_of(run: RunDir) -> dict[str, Any]:
    write_report(run)
    verdict = data_of(run, "summary")["verdict"]
    assert isinstance(verdict, dict)
    return verdict


def make_gaussians(tmp_path: Path, clusters: np.ndarray, **more: Any) -> RunDir:
    """A giant of 520 points and two crumbs of 40, far apart; with the clusters given."""
    kind = np.repeat([0, 1, 2], [520, 40, 40])
    points = np.random.default_rng(0).normal(size=(600, 5)) + 14 * np.eye(3, 5)[kind]
    return write_run(
        tmp_path / "run",
        images=np.zeros((600, 16, 16, 3), np.uint8),
        embeddings=points,
        clusters=clusters,
        **more,
    )


KIND = np.repeat([0, 1, 2], [520, 40, 40])


def test_a_giant_and_two_crumbs_are_no_trouble(tmp_path: Path) -> None:
    run = make_gaussians(tmp_path, KIND, info={"counts": {"clusters": 3}})
    verdict = said_of(run)
    assert verdict["level"] == "good" and "stand apart" in verdict["sentence"]


def test_a_giant_cut_in_two_is_never_no_trouble(tmp_path: Path) -> None:
    run = make_gaussians(tmp_path, KIND)
    points = run.read_embeddings()
    halves = KMeans(2, n_init=3, random_state=0).fit_predict(points[KIND == 0])
    cut = np.concatenate([halves, KIND[KIND > 0] + 1])
    verdict = said_of(make_gaussians(tmp_path / "cut", cut))
    assert verdict["level"] == "fair"
    assert "Clusters 0 and 1 run into one another" in verdict["sentence"]
    assert "fewer" in verdict["problems"][0][1]


def test_two_kinds_in_one_cluster_are_seen(tmp_path: Path) -> None:
    verdict = said_of(make_gaussians(tmp_path, np.minimum(KIND, 1)))
    assert verdict["level"] == "fair"
    assert "Cluster 1 falls into two parts with a gap between" in verdict["sentence"]


def test_overlap_is_about_one_in_one_kind_and_about_zero_between_two() -> None:
    rng = np.random.default_rng(1)
    for dimensions in (2, 5, 20):
        points = rng.normal(size=(2000, dimensions))
        halves = KMeans(2, n_init=2, random_state=0).fit_predict(points)
        near = NearestNeighbors(n_neighbors=12).fit(points).kneighbors(return_distance=False)
        (found,) = find_separation(points, halves, near).touching
        assert found[:2] == (0, 1) and 0.7 < found[2] < 1.3
        points[halves == 1, 0] += 20
        near = NearestNeighbors(n_neighbors=12).fit(points).kneighbors(return_distance=False)
        assert find_separation(points, halves, near).touching == []
        one = find_separation(points, np.zeros(2000, int), near)
        assert [cluster for cluster, _ in one.mixed] == [0] and one.mixed[0][1] < 0.01


def test_halves_are_the_same_however_many_rows_are_read_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = np.random.default_rng(0).normal(size=(500, 24)).astype(np.float32)
    near = NearestNeighbors(n_neighbors=12).fit(points).kneighbors(return_distance=False)
    told = []
    for piece in (8192, 7):
        monkeypatch.setattr(separation, "PIECE", piece)
        told.append(find_separation(points, (points[:, 0] > 0).astype(np.int32), near))
    assert told[0] == told[1] and told[0].touching


def test_numbers_for_the_pages_are_the_same_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "BASE64", 6)
    numbers, nothing = np.arange(7), np.zeros((0, 3))
    told = {"a": packed(numbers, np.uint16), "b": [1, "<"], "c": packed(nothing, np.float32)}
    write_data(tmp_path / "some.js", "some", told)
    text = (tmp_path / "some.js").read_text()
    assert text.startswith('deepcluster.receive("some",{') and "<" not in text
    found = json.loads(text[len('deepcluster.receive("some",') : -len(");\n")])
    whole = base64.b64encode(numbers.astype("<u2").tobytes()).decode()
    assert found["a"] == {"type": "uint16", "base64": whole} and found["b"] == [1, "<"]
    assert found["c"] == {"type": "float32", "base64": ""}
    write_data(tmp_path / "none.js", "none", {})
    assert (tmp_path / "none.js").read_text() == 'deepcluster.receive("none",{});\n'


@pytest.mark.parametrize("kinds", [1, 3])
def test_fewer_different_images_than_clusters_are_said(tmp_path: Path, kinds: int) -> None:
    embeddings = np.eye(8)[np.arange(40) % kinds]
    run = write_run(
        tmp_path / "run",
        images=np.zeros((40, 16, 16, 3), np.uint8),
        embeddings=embeddings,
        clusters=np.arange(40) % kinds,
        labels=["the same"] * 40,
        info={"counts": {"clusters": 5}},
    )
    verdict = said_of(run)
    assert verdict["level"] == "bad"
    expected = (
        "All images are the same" if kinds == 1 else "only 3 different images, for 5 clusters"
    )
    assert expected in verdict["sentence"]


def test_a_single_class_is_never_ticked_green(tmp_path: Path) -> None:
    for folder, clusters in (("a", KIND), ("b", np.minimum(KIND, 1))):
        run = make_gaussians(
            tmp_path / folder,
            clusters,
            labels=["cells"] * 600,
            info={"scores": {"fit": {"acc": 1.0, "nmi": 0.0}}},
        )
        verdict = said_of(run)
        assert verdict["level"] == "fair" and "of one class" in verdict["sentence"]


def test_all_images_taken_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=12, clusters=2)
    path = tmp_path / "labels.csv"
    ids = run.read_items()["id"].to_pylist()
    path.write_text("id,cluster\n" + "".join(f"{id_},-1\n" for id_ in ids), encoding="utf-8")
    apply_labels(run, path)
    assert "taken out" in said_of(run)["sentence"]


def test_many_clusters_are_judged_by_their_most_frequent_class(tmp_path: Path) -> None:
    labels = [f"class {i % 3}" for i in range(60)]
    clusters = np.arange(60) % 6  # two pure clusters a class: ACC is one half, and yet all is well
    run = write_run(
        tmp_path / "run",
        images=np.zeros((60, 16, 16, 3), np.uint8),
        embeddings=np.random.default_rng(0).normal(size=(60, 4)),
        clusters=clusters,
        labels=labels,
        info={"scores": {"fit": {"acc": 0.5, "nmi": 0.7}}, "counts": {"clusters": 6}},
    )
    verdict = said_of(run)
    assert verdict["level"] == "good" and "100 %" in verdict["sentence"]
    # A person merges them to three: the clusters are judged as they are now, by the same measure.
    path = tmp_path / "labels.csv"
    rows = "".join(f"{i:06d},{i % 3}\n" for i in range(60))
    path.write_text("id,cluster\n" + rows, encoding="utf-8")
    apply_labels(run, path)
    after = said_of(run)
    assert after["sentence"] == verdict["sentence"] and "class most frequent" in after["sentence"]


def test_the_measure_stays_the_same_when_a_person_makes_clusters(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=120, clusters=4)
    before = said_of(run)["sentence"]
    assert "are in the right one" in before
    path = tmp_path / "labels.csv"
    path.write_text("id,cluster,name\n000000,7,a\n000001,8,b\n", encoding="utf-8")
    apply_labels(run, path)
    assert "are in the right one" in said_of(run)["sentence"]


def test_nearest_clusters_are_those_of_the_nearest_means() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, 6)).astype(np.float32)
    clusters = np.concatenate([[-1, -1], np.arange(20) * 3, rng.integers(20, size=278) * 3])
    numbers = np.arange(20) * 3
    means = np.stack([points[clusters == c].mean(axis=0) for c in numbers])
    expected = NearestNeighbors(n_neighbors=5).fit(means).kneighbors(return_distance=False)
    np.testing.assert_array_equal(write._nearest_clusters(points, clusters, numbers), expected)


def test_features_are_read_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(20_000, 64)).astype(np.float32)
    points[100:150] = points[:50]
    clusters = rng.integers(-1, 30, size=len(points))
    numbers = np.arange(30)
    tracemalloc.start()
    try:
        assert write._distinct(points) == len(points) - 50
        near = write._nearest_clusters(points, clusters, numbers)
        assert tracemalloc.get_traced_memory()[1] < points.nbytes / 3
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(write, "PIECE", len(points))
    np.testing.assert_array_equal(write._nearest_clusters(points, clusters, numbers), near)


# -- labels.csv ----------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Clusters 0, 0, 0, 1, 1, 1, 2, 2."""
    images = np.zeros((8, 16, 16, 3), np.uint8)
    clusters = np.repeat([0, 1, 2], [3, 3, 2])
    embeddings = np.random.default_rng(0).normal(size=(8, 3))
    ids = [f"{i:03d}" for i in range(8)]
    return write_run(
        tmp_path / "run", images=images, embeddings=embeddings, clusters=clusters, ids=ids
    )


def labels_csv(run: RunDir, text: str, encoding: str = "utf-8") -> Path:
    path = run.path.parent / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


def column(run: RunDir, name: str) -> list[Any]:
    values = run.read_items()[name].to_pylist()
    assert isinstance(values, list)
    return values


def test_names_moves_and_merges_go_into_the_run(run: RunDir) -> None:
    path = labels_csv(
        run,
        "id,path,cluster,name,by\r\n000,,0,Äpfel,model\r\n001,,0,Äpfel,model\r\n"
        '002,,2,"り""んご, 梨",person\r\n003,,0,Äpfel,model\r\n004,,0,Äpfel,model\r\n'
        '005,,-1,,person\r\n006,,2,"り""んご, 梨",model\r\n007,,2,"り""んご, 梨",model\r\n',
    )
    before = run.read_items()
    done = apply_labels(run, path)
    assert (done.moved, done.taken_out, done.merged, done.renamed) == (2, 1, {1: 0}, 2)
    assert done.left_alone == 0
    assert column(run, "cluster") == [0, 0, 2, 0, 0, -1, 2, 2]
    names = ["Äpfel", "Äpfel", 'り"んご, 梨', "Äpfel", "Äpfel", None, 'り"んご, 梨', 'り"んご, 梨']
    assert column(run, "name") == names
    assert [i for i, by in enumerate(column(run, "by")) if by == "person"] == [2, 5]
    # What the model measured holds for images that stayed and for merged clusters, not for moves.
    assert [i for i, c in enumerate(column(run, "confidence")) if c is None] == [2, 5]
    assert column(run, "distance")[3] == before["distance"].to_pylist()[3]
    assert run.read_clusters() == {
        "names": {"0": "Äpfel", "2": 'り"んご, 梨'},
        "merged": {"1": 0},
        "by_level": [],
        "edit": "",
    }
    again = apply_labels(run, path)
    assert (again.moved, again.merged, again.renamed) == (0, {}, 0)
    assert column(run, "by").count("person") == 2
    assert run.read_clusters()["merged"] == {"1": 0}


def test_merges_follow_one_another_and_end_when_images_come_back(run: RunDir) -> None:
    apply_labels(run, labels_csv(run, "id,cluster\n003,0\n004,0\n005,0\n"))
    assert run.read_clusters()["merged"] == {"1": 0}
    everything = "".join(f"{i:03d},2\n" for i in range(8))
    done = apply_labels(run, labels_csv(run, "id,cluster\n" + everything))
    assert done.merged == {0: 2} and run.read_clusters()["merged"] == {"0": 2, "1": 2}
    apply_labels(run, labels_csv(run, "id,cluster\n000,0\n"))
    assert run.read_clusters()["merged"] == {"1": 2}
    assert column(run, "by")[0] == "person"


def test_another_level_is_nobodys_move_and_nobodys_merge(run: RunDir) -> None:
    """Clusters 0, 0, 0, 1, 1, 1, 2, 2; `level` says that the tree was cut elsewhere."""
    rows = [0, 0, 3, 1, 1, 1, 1, 1]
    text = "".join(f"{i:03d},{c},model,3\n" for i, c in enumerate(rows))
    done = apply_labels(run, labels_csv(run, "id,cluster,by,level\n" + text))
    assert (done.moved, done.merged) == (0, {2: 1})
    assert str(done).startswith("3 clusters now, 0 clusters renamed, 1 merged, 0 images moved")
    assert column(run, "cluster") == rows and set(column(run, "by")) == {"model"}
    assert run.read_clusters()["by_level"] == [2]
    done = apply_labels(run, labels_csv(run, "id,cluster\n000,3\n001,3\n"))
    assert done.merged == {0: 3} and run.read_clusters()["by_level"] == [
        2
    ]  # this one is a person's
    write_report(run)
    assert data_of(run, "summary")["glued"] == [3]


def test_part_of_a_cluster_that_moves_is_no_merge(run: RunDir) -> None:
    done = apply_labels(run, labels_csv(run, "id,cluster\n003,0\n004,0\n"))
    assert done.merged == {} and done.moved == 2 and done.left_alone == 6
    assert column(run, "by") == ["model"] * 3 + ["person"] * 2 + ["model"] * 3


def test_a_name_goes_when_it_is_emptied_and_stays_when_it_is_not_mentioned(run: RunDir) -> None:
    apply_labels(run, labels_csv(run, "id,cluster,name\n000,0,a\n003,1,b\n"))
    assert column(run, "name")[:6] == ["a"] * 3 + ["b"] * 3
    done = apply_labels(run, labels_csv(run, "id,cluster,name\n000,0,\n"))
    assert done.renamed == 1 and done.names == {1: "b"}
    apply_labels(run, labels_csv(run, "id,cluster\n000,0\n"))
    assert run.read_clusters()["names"] == {"1": "b"}


def test_spreadsheets_write_it_otherwise(run: RunDir) -> None:
    done = apply_labels(run, labels_csv(run, "id;cluster;name\r\n000;5;Grün\r\n", "utf-8-sig"))
    assert done.moved == 1 and done.names == {5: "Grün"}
    done = apply_labels(run, labels_csv(run, "\n ID \tCluster\tname\n001\t5\tGrün\n\t\t\n"))
    assert done.moved == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected id"),
        ("id,name\n000,x\n", "has the columns id, name"),
        ("id,id,cluster\n000,000,1\n", "each once"),
        ("id,cluster\n000\n", "line 2: 1 values for 2 columns"),
        ("id,cluster\n000,one\n", "whole number"),
        ("id,cluster\n000,1.0\n", "whole number"),
        ("id,cluster\n000,²\n", "whole number"),
        ("id,cluster\n000,-2\n", "there is no cluster -2"),
        ("id,cluster\n000,999\n", "there is no cluster 999"),
        ("id,cluster\n000," + "9" * 5000 + "\n", "there is no cluster 9"),
        ("id,cluster,by\n000,1,robot\n", "expected model or person"),
        ("id,cluster,name\n000,1,a\n003,1,b\n", "one name"),
        ("id,cluster,name\n000,1," + "x" * 201 + "\n", "too long"),
        ("id,cluster,name\n000,1,a\x00b\n", "control characters"),
        ("id,cluster\n000,1\n000,2\n", "twice, in lines 2 and 3"),
        ('id,cluster\n"000,1\n', "line 2"),
        ("id,cluster\n0,1\n1,1\n" + "".join(f"x{i},1\n" for i in range(30)), "and 22 more"),
        ("id,cluster\n0,1\n", "text"),
        ("id,cluster\n" + "x" * 200_000 + ",1\n", "line"),
    ],
)
def test_a_bad_file_changes_nothing(run: RunDir, text: str, said: str) -> None:
    before = contents(run.path)
    with pytest.raises(RunError, match=re.escape(said)):
        apply_labels(run, labels_csv(run, text))
    assert contents(run.path) == before


def test_labels_of_another_run_are_refused(run: RunDir, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", n=8, clusters=3, ids=column(run, "id"))
    other.write_info({**run.read_info(), "seed": 1})  # all else is the same
    assert other.fingerprint() != run.fingerprint()
    row = f"run,id,cluster\n{other.fingerprint()},000,1\n"
    before = contents(run.path)
    with pytest.raises(RunError, match=r"another run.*deepcluster apply .*run --from"):
        apply_labels(run, labels_csv(run, row))
    assert contents(run.path) == before
    assert apply_labels(other, labels_csv(run, row)).moved == 1
    run.path.rename(tmp_path / "elsewhere")  # a run that was moved is the same run
    moved = RunDir(tmp_path / "elsewhere")
    assert apply_labels(moved, labels_csv(run, row.replace(other.fingerprint(), ""))).moved == 1
    write_report(moved)
    assert data_of(moved, "summary")["run"] == moved.fingerprint()


def test_files_that_cannot_be_read(run: RunDir) -> None:
    with pytest.raises(RunError, match="cannot read"):
        apply_labels(run, run.path.parent / "none.csv")
    with pytest.raises(RunError, match="neither UTF-8 nor"):
        apply_labels(run, labels_csv(run, "id,cluster,name\n000,0,Äpfel\n", "latin-1"))


def test_hostile_names_go_in_as_they_are(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", hostile=True, n=40, clusters=3)
    path = tmp_path / "labels.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "cluster", "name"])
        writer.writerows([id_, 0, "</script><script>alert(1)"] for id_ in column(run, "id"))
    done = apply_labels(run, path)
    assert done.names == {0: "</script><script>alert(1)"} and set(done.merged) == {1, 2}
    write_report(run)
    assert data_of(run, "summary")["names"] == {"0": "</script><script>alert(1)"}


def test_all_images_taken_out_leave_no_grids(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=12, clusters=2)
    assert {path.name for path in write_pictures(run)} >= {"clusters.png", "cluster-001.png"}
    ids = run.read_items()["id"].to_pylist()
    text = "id,cluster\n" + "".join(f"{id_},-1\n" for id_ in ids)
    apply_labels(run, labels_csv(run, text))
    assert [path.name for path in write_pictures(run)] == ["curves.svg"]


def test_a_fit_writes_what_the_report_reads(finished: RunDir, tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(finished.path, tmp_path / "run"))
    n = len(run.read_items())
    known = run.read_neighbours(n)
    assert known is not None and known.recall == 1
    distance, _ = NearestNeighbors(n_neighbors=12).fit(run.read_embeddings()).kneighbors()
    np.testing.assert_allclose(known.distance, distance, atol=1e-4)
    write_report(run)
    summary = data_of(run, "summary")
    assert summary["map"]["shown"] == n
    levels_ = summary["levels"]
    assert levels_["exact"] and levels_["own"] == len(set(run.read_items()["cluster"].to_pylist()))


@pytest.mark.parametrize("place", ["report/data", "report/thumbnails/deep", "report.part"])
def test_pages_are_not_written_over_what_no_fit_wrote(place: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_report(run)
    mine = run.path / place / "photo.png"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_bytes(b"an original")
    with pytest.raises(RunError, match="move it out of the run"):
        write_report(run)
    assert mine.read_bytes() == b"an original"
    mine.unlink()
    if place.endswith("deep"):
        mine.parent.rmdir()
    write_report(run)


def test_hidden_files_and_those_of_a_nas_are_not_in_the_way(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=40, clusters=3)
    write_report(run)
    hidden = ["report/data/.notes", "report/scripts/.git/config", "report/.stfolder/mine"]
    for name in (
        "report/@eaDir/x",
        "report/data/@eaDir/summary.js/x",
        "report/thumbnails/@eaDir/y",
    ):
        (run.path / name).parent.mkdir(parents=True)
        (run.path / name).write_text("thumbnail")
    for name in hidden:
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("mine")
    (run.report / "data/summary.js").write_text("old")
    write_report(run)
    assert [(run.path / name).read_text() for name in hidden] == ["mine"] * 3
    assert (run.report / "data/summary.js").read_text() != "old"
    assert not (run.path / "report.part").exists()
    (run.report / "data/letter.txt").write_text("mine")
    with pytest.raises(RunError, match=r"letter\.txt"):
        write_report(run)
    assert (run.report / "data/letter.txt").read_text() == "mine"


def test_a_folder_of_others_that_the_report_is_linked_to_is_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "web" / "data").mkdir(parents=True)
    (tmp_path / "web" / "data" / "theirs.txt").write_text("x")
    shutil.rmtree(run.report, ignore_errors=True)
    run.report.symlink_to(tmp_path / "web")
    with pytest.raises(RunError, match="move it out of the run"):
        write_report(run)
    assert (tmp_path / "web" / "data" / "theirs.txt").read_text() == "x"
