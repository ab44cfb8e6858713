"""The report in a real browser: Chromium without a window, pages opened from the disk."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from make_run import HOSTILE, make_run, training
from PIL import Image

from deepcluster.config import override
from deepcluster.report import apply_labels, write_report
from deepcluster.report.label_page import write_label_page
from deepcluster.run import RunDir

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

pytestmark = pytest.mark.browser

ROUTES = ["", "clusters", "cluster/0", "map", "unusual", "unusual/pairs", "curves"]

Open = Callable[..., Any]


@pytest.fixture
def visit(open_page: Open) -> Open:
    """Open a page of a run's report."""

    def visit(run: RunDir, route: str = "", **more: Any) -> Any:
        return open_page(f"{(run.report / 'index.html').as_uri()}#/{route}", **more)

    return visit


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that tests may look at, not change."""
    run = make_run(tmp_path_factory.mktemp("made") / "run", n=240, clusters=6)
    write_report(run)
    return run


@pytest.fixture
def run(made: RunDir, tmp_path: Path) -> RunDir:
    """A run of a test's own."""
    return RunDir(shutil.copytree(made.path, tmp_path / "Läufe 実行 #1"))


def tile(page: Any, id_: str) -> Any:
    return page.locator(f'.tile[aria-label^="{id_},"]')


def download(page: Any, to: Path) -> list[dict[str, str]]:
    with page.expect_download() as waiting:
        page.click("#download")
    assert waiting.value.suggested_filename == "labels.csv"
    waiting.value.save_as(to)
    with to.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def members(run: RunDir, cluster: int) -> list[str]:
    items = run.read_items()
    pairs = zip(items["id"].to_pylist(), items["cluster"].to_pylist(), strict=True)
    return [id_ for id_, c in pairs if c == cluster]


def choose(page: Any, cluster: str) -> None:
    """Answer "to which cluster?"; the page acts on it once its dialog is gone."""
    page.get_by_label("Find a cluster").fill(cluster)
    page.keyboard.press("Enter")
    playwright.expect(page.locator("dialog.choose")).to_have_count(0)


# -- looking -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_page_opens_and_fits(made: RunDir, visit: Open, width: int, scheme: str) -> None:
    page = visit(made, width=width, scheme=scheme)
    for route in [*ROUTES, "cluster/-1", "image/000007", "image/none", "nowhere", "image/%"]:
        page.evaluate("route => { location.hash = `#/${route}`; }", route)
        page.wait_for_timeout(60)
        playwright.expect(page.locator("h1")).to_have_count(1)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{route} is {wide} pixels wide"
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(246, 245, 242)" if scheme == "light" else "rgb(20, 23, 26)")


def test_first_screen_says_what_how_many_and_how_good(made: RunDir, visit: Open) -> None:
    page = visit(made)
    assert page.inner_text("h1") == "240 images in 6 clusters"
    playwright.expect(page.locator(".verdict.good")).to_have_count(1)
    playwright.expect(page.locator(".cover")).to_have_count(6)
    shown = [Decimal(text.removesuffix(" %")) for text in page.locator(".share").all_inner_texts()]
    assert sum(shown) == 100
    box = page.locator(".cover").first.bounding_box()
    assert box["y"] + box["height"] < 800
    playwright.expect(page.locator("svg.chart")).to_have_count(1)  # the sizes
    page.click("text=How the training went")
    playwright.expect(page.locator("svg.chart")).to_have_count(5)


def test_scores_stand_beside_those_of_the_pixels(tmp_path: Path, visit: Open) -> None:
    scores = {
        "fit": {"nmi": 0.83, "nmi_arithmetic": 0.829, "ari": 0.71, "acc": 0.9, "some_new": 0.5},
        "pixels": {"nmi": 0.4, "ari": 0.3, "acc": 0.5},
    }
    run = make_run(tmp_path / "run", n=60, info={"scores": scores})
    write_report(run)
    text = visit(run).inner_text(".overview")
    for figure in ("in the right one", "0.830", "0.400", "0.829", "0.710", "some new", "0.500"):
        assert figure in text
    assert "plain k-means on the pixels" in text


def test_a_bad_fit_is_said_first(tmp_path: Path, visit: Open) -> None:
    run = make_run(tmp_path / "run", n=60, metrics=training(6, 6, good=False))
    write_report(run)
    page = visit(run)
    box = page.locator(".verdict.bad").bounding_box()
    assert box["y"] < 200
    said = page.inner_text(".verdict")
    assert "collapsed" in said and "What to try: " in said and "--train.lr" in said


def test_pictures_belong_to_their_items(made: RunDir, visit: Open) -> None:
    """The colour in the middle of each cluster's first pictures is that of the cluster."""
    page = visit(made, "clusters")
    page.wait_for_selector(".card .picture")
    sheet = made.read_thumbnails()
    place = np.argsort(sheet.order)
    found = page.evaluate(
        """() => [...document.querySelectorAll('.card')].slice(0, 3).flatMap((card) =>
            [...card.querySelectorAll('.picture')].map((p) => [
                Number(card.dataset.cluster), decodeURIComponent(p.hash.slice(8)),
                p.style.backgroundImage, p.style.backgroundPosition]))"""
    )
    assert len(found) == 72
    for cluster, id_, image, position in found:
        assert id_ in members(made, cluster)
        row, column = divmod(int(place[int(id_)]), sheet.columns)
        assert image == 'url("thumbnails/0000.webp")'
        left, top = (-float(part.removesuffix("px")) / 40 for part in position.split())
        assert (left, top) == (column, row)


def test_neighbours_of_a_clicked_image(made: RunDir, visit: Open) -> None:
    page = visit(made, "cluster/2")
    page.locator(".tile").nth(3).click()
    page.wait_for_selector(".image-name")
    id_ = page.inner_text(".image-name")
    page.wait_for_selector(".tile")
    shown = [
        text.split(",")[0]
        for text in page.locator(".tile").evaluate_all(
            "tiles => tiles.map((tile) => tile.getAttribute('aria-label'))"
        )
    ]
    embeddings = made.read_embeddings()
    away = np.linalg.norm(embeddings - embeddings[int(id_)], axis=1)
    assert shown == [f"{i:06d}" for i in np.argsort(away)[1:13]]


def test_outliers_and_pairs(tmp_path: Path, visit: Open) -> None:
    run = make_run(tmp_path / "run", n=520)
    embeddings = np.array(run.read_embeddings())
    embeddings[5] += 100
    embeddings[11] = embeddings[12]
    np.save(run.embeddings, embeddings)
    write_report(run)
    page = visit(run, "unusual")
    page.wait_for_selector(".tile")
    assert page.locator(".tile").first.get_attribute("aria-label").startswith("000005,")
    assert "The 500 farthest of 520 images" in page.inner_text("main")
    page.click("text=Nearly the same")
    names = page.locator(".pair").first.locator(".pair-name")
    playwright.expect(names).to_have_text(["000011", "000012"])  # a pair has none until it is drawn


def test_curves_of_figures_that_not_every_epoch_has(tmp_path: Path, visit: Open) -> None:
    metrics = [{"epoch": e, "loss": 3 - e / 10, "seconds": {}} for e in range(9)]
    for e, value in ((2, 0.5), (5, 0.25), (7, 0.125)):
        metrics[e] |= {"changed": value, "nmi": 0.5 if e == 2 else None}
    run = make_run(tmp_path / "run", n=40, metrics=metrics)
    write_report(run)
    page = visit(run, "curves")
    titles = page.locator("figure h3").all_inner_texts()
    assert titles == ["Loss", "Movement"]  # a single value makes no curve
    assert page.inner_text("figure:nth-of-type(2) .readings b") == "13 %"


def test_an_image_is_shown_large_and_linked(tmp_path: Path, visit: Open, browser: Any) -> None:
    photos = tmp_path / "my photos #1 100%"
    (photos / "été").mkdir(parents=True)
    names = [f"{'été/' if i % 2 else ''}{i:02d} 写真.png" for i in range(12)]
    for name in names:
        Image.new("RGB", (300, 200), (200, 30, 30)).save(photos / name)
    run = make_run(
        tmp_path / "runs" / "one",
        n=12,
        clusters=2,
        ids=names,
        paths=[str(photos / name) for name in names],
    )
    write_report(run)
    page = visit(run, f"image/{quote(names[3], safe='')}")
    shown = page.locator(".large img")
    playwright.expect(shown).to_have_js_property("naturalWidth", 300)
    link = page.get_by_role("link", name=str(photos / names[3]))
    assert link.get_attribute("href").startswith("../../../my%20photos")  # both may move together
    # Sent to another machine: the pages open, with the small picture.
    alone = shutil.copytree(run.report, tmp_path / "report")
    other = browser.new_page()
    other.goto(f"{(alone / 'index.html').as_uri()}#/image/{quote(names[3], safe='')}")
    playwright.expect(other.locator(".large .note")).to_contain_text("A small copy")
    playwright.expect(other.locator(".large .picture")).to_have_count(1)
    other.close()


def test_what_was_passed_over_is_on_the_first_page(tmp_path: Path, visit: Open) -> None:
    over = [
        {"kind": ".heic", "count": 9, "cure": "pip install 'deepcluster[heic]'"},
        {"kind": "<b>.svs</b>", "count": 1200, "cure": ""},
    ]
    run = make_run(tmp_path / "run", n=30, info={"passed_over": over})
    write_report(run)
    page = visit(run)
    said = page.inner_text(".left-out")
    assert "9 × .heic: pip install 'deepcluster[heic]'" in said
    assert "1,200 files of other kinds: 1,200 × <b>.svs</b>" in said
    assert "1 file could not be read" in said
    page.click("text=which")
    assert "it is no image" in page.inner_text("#skipped")


def test_flags_are_not_broken_and_bars_fill_the_chart(tmp_path: Path, visit: Open) -> None:
    note = "chosen at the end; say --names-from OLD, or --clusters 4."
    run = make_run(tmp_path / "run", n=30, clusters=3, info={"notes": [note]})
    write_report(run)
    page = visit(run)
    page.evaluate("document.querySelectorAll('details').forEach((all) => { all.open = true; })")
    flags = page.locator(".remark code.flag")
    assert flags.all_inner_texts() == ["--names-from", "--clusters"]
    assert page.locator(".remark").first.inner_text() == note
    assert flags.first.evaluate("(one) => getComputedStyle(one).whiteSpace") == "nowrap"
    right = page.locator(".bar-of").last.evaluate("(bar) => bar.getBBox().x + bar.getBBox().width")
    assert right > 1000  # of 1,100


def test_the_first_page_has_no_words_of_the_trade(made: RunDir, visit: Open) -> None:
    page = visit(made)
    said = page.evaluate(
        "document.querySelector('.hero').innerText + document.querySelector('.verdict').innerText"
    )
    assert not any(word in said for word in ("resnet", "deepcluster-v2", "ln k", "rank", "epoch"))
    whole = page.inner_text("main")
    assert "ln k" not in whole and "effective rank" not in whole.lower()
    assert whole.count("Zip the folder") == 1 and str(made.report.resolve()) in whole
    page.click("text=How the training went")
    assert "ln k" in page.inner_text("main")


def test_pages_of_vectors_speak_of_no_images(tmp_path: Path, visit: Open, open_page: Open) -> None:
    """Nor of a method or of training; what a reader of the screen hears counts too."""
    run = make_run(tmp_path / "run", n=60, clusters=3, labels=False, metrics=[], parts=2)
    values = {"backbone": "given", "start": "frozen", "epochs": 0}
    run.write_config(override(run.read_config(), values))
    write_report(run)
    write_label_page(run, np.array([0, 1]), np.arange(60) % 2, {})
    pages = [visit(run, route) for route in (*ROUTES, "image/000001")]
    pages.append(open_page((run.labelling / "index.html").as_uri()))
    for page in pages:
        page.wait_for_selector("h1, h2")
        page.wait_for_selector(".waiting", state="detached")
        said = page.evaluate(
            """() => [document.title, document.body.innerText, ...Array.from(
              document.querySelectorAll("*"), (e) => `${e.ariaLabel} ${e.title}`)].join("\\n")"""
        )
        assert not re.findall(r"(?i).*\bimages?\b.*|.*deepcluster-v2.*|.*as the net sees.*", said)
        assert "vector" in said or "Nothing was trained" in said
    assert "given as vectors" in visit(run).inner_text("main")


def test_dialogs_show_typical_images(made: RunDir, visit: Open) -> None:
    page = visit(made, "cluster/0")
    page.click("text=Merge into another")
    shown = page.locator(".choices li").first.locator(".picture")
    places = shown.evaluate_all("all => all.map((p) => p.style.backgroundPosition)")
    expected = page.evaluate(
        """() => {
            const { changes, members, tileOf } = deepcluster;
            const first = members.near(0)[0];
            return [...members.ordered(changes.rowsOf(first), "typical")].slice(0, 5).map((row) => {
                const { left, top } = tileOf(row);
                return `${-left * 36}px ${-top * 36}px`;
            });
        }"""
    )
    assert len(places) == 5 and [p.replace("-0px", "0px") for p in places] == [
        p.replace("-0px", "0px") for p in expected
    ]


def test_the_command_works_from_anywhere_and_phones_show_counts(made: RunDir, visit: Open) -> None:
    page = visit(made, width=390)
    counts = page.locator(".cover-size").all_inner_texts()
    assert len(counts) == 6 and all(text.endswith(" images") for text in counts)
    assert page.locator(".cover-size").first.is_visible()
    with page.expect_download():
        page.click("#download")
    said = page.locator("#toast span")
    playwright.expect(said).to_contain_text("deepcluster apply")
    command = said.inner_text().split(": ", 1)[1]
    assert shlex.split(command) == ["deepcluster", "apply", str(made.path.resolve()), "labels.csv"]


# -- changing ------------------------------------------------------------------------------------


def test_names_merges_and_moves_go_out_and_come_back(
    run: RunDir, visit: Open, tmp_path: Path
) -> None:
    page = visit(run, "clusters")
    name = page.get_by_label("Name of cluster 1")
    name.fill('Äpfel, "りんご" 🍎')
    name.press("Enter")
    playwright.expect(page.locator("#changes")).to_have_text("1 change")

    page.goto(f"{page.url.partition('#')[0]}#/cluster/0")
    mine = members(run, 0)
    tile(page, mine[0]).locator(".check").click()
    tile(page, mine[1]).click()  # once something is selected, a click selects
    assert page.inner_text(".actions b") == "2 selected"
    page.click(".actions >> text=Move to")
    choose(page, "りんご")
    playwright.expect(tile(page, mine[0])).to_have_count(0)

    tile(page, mine[2]).locator(".check").click()
    page.click(".actions >> text=Not this")
    playwright.expect(tile(page, mine[2])).to_have_count(0)

    page.goto(f"{page.url.partition('#')[0]}#/cluster/3")
    page.click("text=Merge into another")
    choose(page, "2")
    page.wait_for_function("() => location.hash === '#/cluster/2'")
    playwright.expect(page.locator("#changes")).to_have_text("5 changes")

    wanted = {id_: (cluster, "model") for cluster in range(6) for id_ in members(run, cluster)}
    wanted |= {id_: (2, "model") for id_ in members(run, 3)}
    wanted |= {mine[0]: (1, "person"), mine[1]: (1, "person"), mine[2]: (-1, "person")}
    playwright.expect(page.locator("#download.pending")).to_have_count(1)
    rows = download(page, tmp_path / "labels.csv")
    playwright.expect(page.locator("#download.pending")).to_have_count(0)
    assert {row["id"]: (int(row["cluster"]), row["by"]) for row in rows} == wanted
    assert {row["name"] for row in rows if row["cluster"] == "1"} == {'Äpfel, "りんご" 🍎'}

    done = apply_labels(run, tmp_path / "labels.csv")
    assert (done.moved, done.taken_out, done.merged, done.renamed) == (3, 1, {3: 2}, 1)
    write_report(run)
    again = visit(run, "cluster/3")  # leads to the one it is part of now
    again.wait_for_function("() => location.hash === '#/cluster/2'")
    playwright.expect(again.locator("#changes")).to_have_text("No changes")
    assert len(members(run, 2)) == again.evaluate("deepcluster.changes.rowsOf(2).length")
    assert again.evaluate("deepcluster.changes.nameOf(1)") == 'Äpfel, "りんご" 🍎'
    rows = download(again, tmp_path / "again.csv")
    assert {row["id"]: (int(row["cluster"]), row["by"]) for row in rows} == wanted


def test_a_report_made_again_keeps_what_was_not_applied(run: RunDir, visit: Open) -> None:
    page = visit(run, "clusters")
    page.get_by_label("Name of cluster 4").fill("kept")
    page.keyboard.press("Enter")
    mine = members(run, 0)[0]
    page.evaluate("id => deepcluster.changes.move([deepcluster.table.rowOf.get(id)], 5)", mine)
    path = run.path.parent / "other.csv"
    path.write_text(f"id,cluster,name\n{members(run, 2)[0]},2,by another\n", encoding="utf-8")
    apply_labels(run, path)
    write_report(run)
    again = visit(run)
    playwright.expect(again.locator("#changes")).to_have_text("2 changes")
    titles = [again.evaluate(f"deepcluster.changes.titleOf({c})") for c in (2, 4)]
    assert titles == ["by another", "kept"]
    row = int(mine)
    assert again.evaluate(f"deepcluster.changes.clusterOf({row})") == 5
    assert "kept" in again.inner_text(".mosaic")


def test_keyboard_alone(run: RunDir, visit: Open) -> None:
    page = visit(run, "cluster/0")
    order = page.evaluate(
        "[...document.querySelectorAll('.tile')].map((t) => t.ariaLabel.slice(0, 6))"
    )
    page.locator(".tiles").focus()
    for key in ("ArrowRight", "ArrowRight", " ", "Shift+ArrowRight"):
        page.keyboard.press(key)
    assert page.inner_text(".actions b") == "2 selected"
    page.keyboard.press("m")
    choose(page, "a name of its own")
    moved = page.evaluate(
        "[...deepcluster.changes.moved].map(([row, to]) => [deepcluster.table.ids[row], to])"
    )
    assert [id_ for id_, _ in moved] in ([order[1], order[2]], [order[2], order[3]])
    assert {to for _, to in moved} == {6}
    assert page.evaluate("deepcluster.changes.nameOf(6)") == "a name of its own"
    page.locator(".tiles").focus()
    page.keyboard.press("Control+a")
    page.keyboard.press("x")
    assert page.evaluate("deepcluster.changes.rowsOf(0).length") == 0
    page.keyboard.press("Control+z")
    assert page.evaluate("deepcluster.changes.rowsOf(0).length") == len(order) - 2
    page.keyboard.press("]")
    page.wait_for_function("() => location.hash === '#/cluster/1'")
    playwright.expect(page.locator("main")).to_be_focused()  # the last step of showing it
    page.locator(".tiles").focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.wait_for_selector(".image-name")


def test_undo_and_drop(run: RunDir, visit: Open) -> None:
    page = visit(run)
    page.evaluate("deepcluster.changes.merge(0, 1); deepcluster.changes.rename(2, 'two')")
    page.click("#changes")
    playwright.expect(page.locator(".changes li")).to_have_count(2)
    page.locator(".changes li", has_text="merged").get_by_role("button").click()
    assert page.locator(".changes li").all_inner_texts() == ["Cluster 2 is named “two”\nDrop"]
    page.click("dialog >> text=Undo the last")
    playwright.expect(page.locator(".changes li")).to_have_count(2)
    page.click("dialog >> text=Drop all")
    playwright.expect(page.locator(".changes li")).to_have_count(0)
    page.keyboard.press("Escape")
    assert page.evaluate("localStorage.length") == 0


def test_lasso_selects_what_it_encloses(run: RunDir, visit: Open) -> None:
    page = visit(run, "map")
    page.click("text=Lasso")
    box = page.locator("canvas.map").bounding_box()
    middle = box["x"] + box["width"] / 2
    right, top = box["x"] + box["width"] - 2, box["y"] + 2
    bottom = box["y"] + box["height"] - 2
    page.mouse.move(middle, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (middle, bottom)):
        page.mouse.move(x, y, steps=4)
    page.mouse.up()
    items = run.read_items()
    x = items["x"].to_numpy()
    expected = {f"{i:06d}" for i in np.flatnonzero(x > (x.min() + x.max()) / 2)}
    assert 0 < len(expected) < 240
    assert page.inner_text(".shown-of") == f"{len(expected)} images in the lasso"
    page.locator(".tiles").focus()
    page.keyboard.press("Control+a")
    page.keyboard.press("m")
    choose(page, "4")
    assert expected <= {f"{row:06d}" for row in page.evaluate("[...deepcluster.changes.rowsOf(4)]")}


def test_map_hovers_zooms_and_colours(run: RunDir, visit: Open) -> None:
    page = visit(run, "map")
    clusters, classes = (
        page.evaluate(f"[...Array(40).keys()].map(k => String(deepcluster.{name}(k)))")
        for name in ("colourOf", "classColourOf")
    )
    assert len({*clusters, *classes}) == 80  # no class looks like a cluster
    items = run.read_items()
    x, y = items["x"].to_numpy(), items["y"].to_numpy()
    box = page.locator("canvas.map").bounding_box()
    side = min(box["width"], box["height"]) * 0.94
    span = max(np.ptp(x), np.ptp(y))
    far = int(np.argmax(x))  # nothing lies beyond it
    left = float(box["x"] + box["width"] / 2 + (x[far] - (x.min() + x.max()) / 2) / span * side)
    top = float(box["y"] + box["height"] / 2 - (y[far] - (y.min() + y.max()) / 2) / span * side)
    page.mouse.move(left + 1, top)
    assert page.inner_text(".tip-name") == f"{far:06d}"
    before = page.locator("canvas.map").screenshot()
    page.mouse.wheel(0, -600)
    page.keyboard.press("Tab")
    for colour in ("label", "confidence", "cluster"):
        page.get_by_label("Colour of the points").select_option(colour)
    page.locator(".key-button").first.click()
    page.wait_for_timeout(100)
    assert page.locator("canvas.map").screenshot() != before
    page.click("text=Show all")
    page.mouse.click(left + 1, top)
    page.wait_for_function(f"() => location.hash === '#/image/{far:06d}'")


# -- levels --------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> RunDir:
    """Six clusters of three parts each."""
    run = make_run(tmp_path / "run", n=240, clusters=6, parts=3)
    write_report(run)
    return run


def cuts(run: RunDir, k: int) -> list[set[int]]:
    """The clusters at a level, as docs/run-folder.md has it."""
    pairs, _, part = run.read_tree()
    root = np.arange(len(pairs) + 1)
    for i, j in pairs[: len(root) - k]:
        root[root == j] = i
    flat = root[part]
    return [set(np.flatnonzero(flat == c).tolist()) for c in np.unique(flat)]


def shown(page: Any) -> list[set[int]]:
    """The clusters as the page has them."""
    rows = page.evaluate(
        "deepcluster.changes.clusters().map((c) => [...deepcluster.changes.rowsOf(c)])"
    )
    return [set(row) for row in rows]


def same(a: list[set[int]], b: list[set[int]]) -> bool:
    return sorted(map(sorted, a)) == sorted(map(sorted, b))


def to_level(page: Any, k: int) -> None:
    page.evaluate("k => deepcluster.changes.setLevel(k)", k)


def test_the_slider_goes_through_all_cuts_of_the_tree(tree: RunDir, visit: Open) -> None:
    page = visit(tree, "clusters")
    slider = page.get_by_label("Number of clusters")
    assert [slider.get_attribute(name) for name in ("min", "max")] == ["0", "16"]
    playwright.expect(page.locator(".level-said")).to_have_text("6 clusters")
    slider.focus()
    page.keyboard.press("Home")
    for k in range(2, 19):
        playwright.expect(page.locator(".level-said")).to_have_text(f"{k} clusters")
        playwright.expect(page.locator(".card")).to_have_count(k)
        assert same(shown(page), cuts(tree, k))
        page.keyboard.press("ArrowRight")
    page.get_by_label("Fewer clusters").click()
    page.get_by_label("Fewer clusters").click()
    playwright.expect(page.locator(".level-said")).to_have_text("16 clusters")
    page.locator("main").focus()
    page.keyboard.press("-")
    playwright.expect(page.locator(".level-said")).to_have_text("15 clusters")
    page.keyboard.press("+")
    playwright.expect(page.locator(".level-said")).to_have_text("16 clusters")
    page.click("text=Back to the 6 of the fit")
    playwright.expect(page.locator(".card")).to_have_count(6)
    playwright.expect(page.locator(".ghost")).to_have_count(0)  # gone into the others
    playwright.expect(page.locator(".level-said")).to_have_text("6 clusters")
    assert same(shown(page), [set(map(int, members(tree, c))) for c in range(6)])


def test_a_step_changes_one_cluster_and_its_numbers_stay(tree: RunDir, visit: Open) -> None:
    page = visit(tree, "clusters")
    before = None
    for k in range(2, 19):
        to_level(page, k)
        now = dict(
            page.evaluate(
                "deepcluster.changes.clusters().map((c) => [c, [...deepcluster.changes.rowsOf(c)]])"
            )
        )
        if before is not None:
            fresh = now.keys() - before.keys()
            assert len(fresh) == 1 and before.keys() < now.keys()
            split = [c for c in before if before[c] != now[c]]
            assert len(split) == 1
            assert sorted(now[split[0]] + now[fresh.pop()]) == before[split[0]]
        if k == 6:
            assert now == {c: [int(i) for i in members(tree, c)] for c in range(6)}
        before = now


def test_names_stay_with_their_images_at_every_level(tree: RunDir, visit: Open) -> None:
    page = visit(tree, "clusters")
    for cluster, name in ((0, "cats"), (1, "dogs"), (2, "birds"), (3, "fish")):
        page.evaluate("([c, name]) => deepcluster.changes.rename(c, name)", [cluster, name])
    called = {frozenset(map(int, members(tree, c))): n for c, n in enumerate(("cats", "dogs"))}
    to_level(page, 12)
    finer = page.evaluate(
        """deepcluster.changes.clusters().map((c) =>
            [[...deepcluster.changes.rowsOf(c)], deepcluster.changes.nameOf(c)])"""
    )
    for rows, name in finer:  # a part of the cats is cats
        for whole, known in called.items():
            if set(rows) <= whole:
                assert name == known
    # A name of a part is the part's alone.
    cat = page.evaluate("deepcluster.changes.clusterOf(0)")
    page.evaluate("c => deepcluster.changes.rename(c, 'tabby')", cat)
    tabbies = set(page.evaluate("c => [...deepcluster.changes.rowsOf(c)]", cat))
    to_level(page, 6)
    home = page.evaluate("deepcluster.changes.clusterOf(0)")
    own = page.evaluate("c => deepcluster.changes.nameOf(c)", home)
    assert own in ("cats", "dogs", "birds", "fish", "")
    assert page.evaluate("c => deepcluster.changes.othersOf(c)", home) == [
        {"name": "tabby", "size": len(tabbies)}
    ]
    # A coarser cluster has the name that covers most of its named images, and shows the others.
    names = {c: n for c, n in enumerate(("cats", "dogs", "birds", "fish"))}
    sizes = {c: len(members(tree, c)) for c in range(6)}
    to_level(page, 2)
    for cluster in page.evaluate("deepcluster.changes.clusters()"):
        rows = set(page.evaluate("c => [...deepcluster.changes.rowsOf(c)]", cluster))
        inside = {names[c]: sizes[c] for c in names if set(map(int, members(tree, c))) <= rows}
        best = page.evaluate("c => deepcluster.changes.nameOf(c)", cluster)
        assert not inside or inside[best] == max(inside.values())
        others = page.evaluate("c => deepcluster.changes.othersOf(c).map((o) => o.name)", cluster)
        assert set(others) - {"tabby"} == inside.keys() - {best}
        if others:
            assert others[0] in page.inner_text(f'.card[data-cluster="{cluster}"] .other-names')
    page.reload()
    page.wait_for_selector("html[data-ready=yes]")
    assert page.evaluate("deepcluster.changes.level") == 2
    to_level(page, 12)
    assert page.evaluate("c => deepcluster.changes.nameOf(c)", cat) == "tabby"


def test_a_name_given_to_several_counts_as_one(tree: RunDir, visit: Open) -> None:
    page = visit(tree, "clusters")
    to_level(page, 18)
    mine = np.array(list(map(int, members(tree, 0))))
    parts = tree.read_tree()[2][mine]
    numbers, sizes = np.unique(parts, return_counts=True)
    largest, *others = numbers[np.argsort(-sizes)].tolist()
    for part, name in ((largest, "large"), (others[0], "small"), (others[1], "small")):
        page.evaluate(
            "([row, name]) => deepcluster.changes.rename(deepcluster.changes.clusterOf(row), name)",
            [int(mine[parts == part][0]), name],
        )
    page.evaluate(
        "row => deepcluster.changes.move([row], deepcluster.NO_CLUSTER)",
        int(mine[parts == largest][0]),
    )
    to_level(page, 6)
    home = page.evaluate("row => deepcluster.changes.clusterOf(row)", int(mine[-1]))
    assert page.evaluate("c => deepcluster.changes.nameOf(c)", home) == "small"  # 20 of 39
    assert page.evaluate("c => deepcluster.changes.othersOf(c)", home) == [
        {"name": "large", "size": 19}
    ]


def test_moves_and_merges_stay_with_their_images_at_every_level(tree: RunDir, visit: Open) -> None:
    page = visit(tree, "clusters")
    here, there = (list(map(int, members(tree, c))) for c in (0, 1))
    page.evaluate("rows => deepcluster.changes.move(rows, 1)", here[:2])
    page.evaluate("rows => deepcluster.changes.move(rows, deepcluster.NO_CLUSTER)", here[2:3])
    page.evaluate("deepcluster.changes.merge(2, 3)")
    joined = [int(i) for c in (2, 3) for i in members(tree, c)]
    for k in (2, 3, 5, 6, 9, 14, 18):
        to_level(page, k)
        of = page.evaluate(
            "rows => rows.map((row) => deepcluster.changes.clusterOf(row))",
            [*here[:3], *joined, *there],
        )
        assert of[2] == -1
        assert len(set(of[3 : 3 + len(joined)])) == 1  # a merge is one at every level
        assert of[0] == of[1] and of[0] in of[3 + len(joined) :]  # beside images of their new home
    to_level(page, 6)
    page.evaluate("deepcluster.changes.undo()")
    assert len(page.evaluate("deepcluster.changes.clusters()")) == 6


def test_a_merge_at_a_fine_level_takes_only_its_images_along(tree: RunDir, visit: Open) -> None:
    page = visit(tree, "clusters")
    to_level(page, 18)
    a, b = (
        page.evaluate("row => deepcluster.changes.clusterOf(row)", int(members(tree, c)[0]))
        for c in (0, 1)
    )
    moved = set(page.evaluate("c => [...deepcluster.changes.rowsOf(c)]", a))
    page.evaluate("([a, b]) => deepcluster.changes.merge(a, b)", [a, b])
    to_level(page, 6)
    assert same(
        shown(page),
        [
            set(map(int, members(tree, 0))) - moved,
            set(map(int, members(tree, 1))) | moved,
            *(set(map(int, members(tree, c))) for c in range(2, 6)),
        ],
    )


def test_a_cluster_opens_into_its_parts(tree: RunDir, visit: Open) -> None:
    page = visit(tree, "cluster/0")
    whole = set(map(int, members(tree, 0)))
    _, _, part = tree.read_tree()
    playwright.expect(page.locator(".near").first.locator(".chip")).to_have_count(3)
    page.locator(".near").first.locator(".chip").first.click()
    largest = np.bincount(part[sorted(whole)]).max()
    assert page.inner_text(".shown-of") == f"Shown {largest} of {len(whole)} images"
    page.click("text=Open into two")
    page.goto(f"{page.url.partition('#')[0]}#/clusters")
    playwright.expect(page.locator(".card")).to_have_count(7)
    opened = shown(page)
    assert sum(rows <= whole for rows in opened) == 2
    assert set().union(*(rows for rows in opened if rows <= whole)) == whole
    page.click("#changes")
    page.locator(".changes li", has_text="opened").get_by_role("button").click()
    page.keyboard.press("Escape")
    playwright.expect(page.locator(".card")).to_have_count(6)


@pytest.mark.parametrize("k", [3, 6, 11])
def test_the_chosen_level_goes_out_and_comes_back(
    tree: RunDir, visit: Open, tmp_path: Path, k: int
) -> None:
    page = visit(tree, "clusters")
    mine = list(map(int, members(tree, 0)))
    page.evaluate("rows => deepcluster.changes.move(rows, 4)", mine[:2])
    page.evaluate("deepcluster.changes.rename(4, 'kept')")
    page.get_by_label("Number of clusters").focus()
    to_level(page, k)
    wanted = shown(page)
    rows = download(page, tmp_path / "labels.csv")
    assert {row["run"] for row in rows} == {tree.fingerprint()}
    apply_labels(tree, tmp_path / "labels.csv")
    write_report(tree)
    items = tree.read_items()["cluster"].to_numpy()
    assert same([set(np.flatnonzero(items == c).tolist()) for c in np.unique(items)], wanted)
    by = tree.read_items()["by"].to_pylist()
    assert {i for i, who in enumerate(by) if who == "person"} == set(mine[:2])
    again = visit(tree, "clusters")
    playwright.expect(again.locator("#changes")).to_have_text("No changes")
    assert same(shown(again), wanted)
    assert (
        again.evaluate(
            "row => deepcluster.changes.nameOf(deepcluster.changes.clusterOf(row))", mine[0]
        )
        == "kept"
    )
    for other in (2, 18):  # and the slider goes on from there, the moved images beside the others
        to_level(again, other)
        assert len(shown(again)) == other
        four = [int(i) for i in members(tree, int(items[mine[0]]))]
        of = again.evaluate("rows => rows.map((row) => deepcluster.changes.clusterOf(row))", four)
        assert of[four.index(mine[0])] == of[four.index(mine[1])]


def test_typical_images_of_a_coarse_cluster_are_of_all_its_kinds(tree: RunDir, visit: Open) -> None:
    page = visit(tree, "clusters")
    to_level(page, 2)
    for cluster in page.evaluate("deepcluster.changes.clusters()"):
        chosen = page.evaluate(
            "c => deepcluster.members.typical(deepcluster.changes.rowsOf(c), 12)", cluster
        )
        rows = page.evaluate("c => [...deepcluster.changes.rowsOf(c)]", cluster)
        of = tree.read_items()["cluster"].to_numpy()
        kinds, sizes = np.unique(of[rows], return_counts=True)
        shown = [int((of[chosen] == kind).sum()) for kind in kinds]
        assert len(chosen) == len(set(chosen)) == min(12, len(rows))
        assert all(
            abs(n - 12 * size / len(rows)) <= 1 for n, size in zip(shown, sizes, strict=True)
        )


def test_clusters_of_one_name_are_told_apart(tree: RunDir, visit: Open) -> None:
    page = visit(tree, "clusters")
    page.evaluate("deepcluster.changes.rename(0, 'cats')")
    assert page.evaluate("deepcluster.changes.titleOf(0)") == "cats"
    to_level(page, 18)
    titles = page.evaluate(
        """deepcluster.changes.clusters().map((c) => [deepcluster.changes.nameOf(c),
            deepcluster.changes.titleOf(c), c])"""
    )
    cats = [(title, cluster) for name, title, cluster in titles if name == "cats"]
    assert len(cats) == 3 and all(title == f"cats · {cluster}" for title, cluster in cats)


ANY_ORDER = """(seed) => {
    let state = seed;
    const any = (k) => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        return Math.floor((state / 2 ** 32) * k);
    };
    const C = deepcluster.changes;
    const { all } = deepcluster.summary.levels;
    const wrong = [];
    const at = (k) => { C.setLevel(k, { settled: false }); return k; };
    const everywhere = () => JSON.stringify(all.map((k) => [at(k), window.stand()]));
    window.stand = () => C.clusters().map((c) => [c, C.nameOf(c), [...C.rowsOf(c)]]);
    const start = everywhere();
    for (let i = 0; i < 40; i++) {
        at(all[any(all.length)]);
        const clusters = C.clusters();
        const [a, b] = [clusters[any(clusters.length)], clusters[any(clusters.length)]];
        const kind = a === b ? 2 : any(5);
        const some = [...C.rowsOf(a)].slice(0, 1 + any(4));
        const there = [...C.rowsOf(b)];
        if (kind === 0) {
            const both = [...C.rowsOf(a), ...there];
            C.merge(a, b);
            for (const k of all) {
                at(k);
                if (new Set(both.map(C.clusterOf)).size > 1) wrong.push(`merge parts at ${k}`);
            }
        } else if (kind === 1) {
            C.move(some, b);
            for (const k of all) {
                at(k);
                const homes = new Set(there.map(C.clusterOf));
                if (!some.every((row) => homes.has(C.clusterOf(row)))) wrong.push(`astray at ${k}`);
            }
        } else if (kind === 2) {
            const name = any(3) ? `name ${i}` : "";
            C.rename(a, name);
            if (C.nameOf(a) !== name) wrong.push(`${a} is not called ${name}`);
        } else if (kind === 3 && C.canOpen(a)) {
            C.open(a);
            if (C.clusters().length <= clusters.length) wrong.push(`${a} did not open`);
        } else {
            const fresh = C.unused();
            C.move(some, fresh);
            for (const k of all) {
                at(k);
                if (!some.every((row) => C.clusterOf(row) === fresh)) wrong.push(`lost at ${k}`);
            }
        }
        const total = [-1, ...C.clusters()].reduce((sum, c) => sum + C.rowsOf(c).length, 0);
        if (total !== deepcluster.table.n) wrong.push(`${total} images`);
    }
    C.setLevel(all[any(all.length)]);
    window.undone = () => {
        while (C.canUndo) C.undo();
        return everywhere() === start;
    };
    return wrong;
}"""


@pytest.mark.parametrize("seed", [5, 9])
def test_whatever_is_done_in_any_order_holds(
    tree: RunDir, visit: Open, tmp_path: Path, seed: int
) -> None:
    """Names, merges, moves, new clusters, openings at all levels: kept, applied and undone."""
    page = visit(tree, "unusual")
    assert page.evaluate(ANY_ORDER, seed) == []
    stands = page.evaluate("window.stand()")
    download(page, tmp_path / "labels.csv")
    undone = page.evaluate("window.undone()")
    assert undone
    page = visit(tree, "unusual")
    page.evaluate(ANY_ORDER, seed)
    page.reload()
    page.wait_for_selector("html[data-ready=yes]")
    page.evaluate(
        """window.stand = () => deepcluster.changes.clusters().map(
            (c) => [c, deepcluster.changes.nameOf(c), [...deepcluster.changes.rowsOf(c)]])"""
    )
    assert page.evaluate("window.stand()") == stands
    download(page, tmp_path / "labels.csv")
    apply_labels(tree, tmp_path / "labels.csv")
    write_report(tree)
    again = visit(tree, "unusual")
    playwright.expect(again.locator("#changes")).to_have_text("No changes")
    items = tree.read_items()
    for cluster, name, rows in stands:
        assert set(rows) == set(map(int, members(tree, cluster)))
        assert {items["name"][row].as_py() or "" for row in rows} == {name}
    assert len(stands) == again.evaluate("deepcluster.changes.clusters().length")


def test_a_run_without_a_tree_has_no_slider(made: RunDir, visit: Open) -> None:
    page = visit(made, "clusters")
    playwright.expect(page.locator(".level")).to_have_count(0)


# -- hard cases ----------------------------------------------------------------------------------


def test_hostile_names_are_only_text(tmp_path: Path, visit: Open) -> None:
    run = make_run(
        tmp_path / "run",
        hostile=True,
        n=60,
        clusters=3,
        info={"name": "<b>mine</b></script>", "notes": ["<img src=x onerror=alert(1)>"]},
    )
    write_report(run)
    page = visit(run)
    evil = '"><img src=x onerror="document.title=9"></script>'
    page.evaluate("name => deepcluster.changes.rename(0, name)", evil)
    for route in [*ROUTES, *[f"image/{id_}" for id_ in HOSTILE]]:
        if route.startswith("image/"):
            page.evaluate(
                "id => { location.hash = `#/image/${encodeURIComponent(id)}`; }", route[6:]
            )
            page.wait_for_function(
                "id => [...document.querySelectorAll('dd')].some((d) => d.textContent === id)",
                arg=route[6:],
            )
        else:
            page.evaluate("route => { location.hash = `#/${route}`; }", route)
            page.wait_for_timeout(60)
    assert page.title().endswith("<b>mine</b></script>")
    playwright.expect(page.locator("main img, main script, main b b")).to_have_count(0)
    rows = download(page, tmp_path / "labels.csv")
    assert [row["id"] for row in rows] == run.read_items()["id"].to_pylist()
    assert [row["path"] for row in rows] == run.read_items()["path"].to_pylist()
    assert apply_labels(run, tmp_path / "labels.csv").names == {0: evil}


@pytest.mark.parametrize(("n", "clusters"), [(30, 1), (2000, 500)])
def test_one_cluster_and_five_hundred(tmp_path: Path, visit: Open, n: int, clusters: int) -> None:
    run = make_run(tmp_path / "run", n=n, clusters=clusters, labels=False, side=8, tile=8)
    write_report(run)
    page = visit(run, "clusters")
    page.wait_for_selector(".card header")
    playwright.expect(page.locator(".card")).to_have_count(clusters)
    shares = page.evaluate("[...deepcluster.clusterShares().values()]")
    assert len(shares) == clusters
    assert sum(Decimal(share.removesuffix(" %")) for share in shares) == 100
    filled = page.locator(".card header").count()
    assert filled <= 60  # the others are filled once they come into sight
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_selector(".card:last-child header")
    for route in ("", "map", "unusual/pairs"):
        page.evaluate("route => { location.hash = `#/${route}`; }", route)
        page.wait_for_timeout(60)
        playwright.expect(page.locator("h1")).to_have_count(1)


@pytest.mark.slow
def test_a_hundred_thousand_images(tmp_path: Path, visit: Open) -> None:
    n = 100_000
    rng = np.random.default_rng(0)
    places = np.where(rng.random((n, 1)) < 0.6, rng.normal(size=(n, 2)), np.nan)
    run = make_run(
        tmp_path / "run", n=n, clusters=4, side=8, tile=8, labels=False, parts=25, places=places
    )
    write_report(run)
    size = sum(path.stat().st_size for path in run.report.rglob("*") if path.is_file())
    assert size < 80e6
    page = visit(run)
    first = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert first < 2000, f"first view after {first:.0f} ms"
    page.evaluate("location.hash = '#/cluster/1'")
    page.wait_for_selector(".tile")
    rows = page.evaluate("deepcluster.changes.rowsOf(1).length")
    assert rows > 20_000 and page.locator(".tile").count() < 600
    frames = page.evaluate(
        """async () => {
            const times = [];
            for (let i = 0; i < 40; i++) {
                window.scrollBy(0, 900);
                const start = performance.now();
                await new Promise(requestAnimationFrame);
                await new Promise(requestAnimationFrame);
                times.push(performance.now() - start);
            }
            return times.sort((a, b) => a - b);
        }"""
    )
    assert frames[20] < 250, f"two frames take {frames[20]:.0f} ms"
    page.keyboard.press("End")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_selector(f'.tile[aria-posinset="{rows}"]')
    assert page.locator(".tile").count() < 600
    spent = page.evaluate(
        """() => {
            const start = performance.now();
            deepcluster.changes.move(deepcluster.changes.rowsOf(1), 2);
            return performance.now() - start;
        }"""
    )
    assert spent < 3000
    assert page.evaluate("deepcluster.changes.rowsOf(1).length") == 0
    page.evaluate("location.hash = '#/map'")
    page.wait_for_selector("canvas.map")
    on_map = int(np.isfinite(places[:, 0]).sum())
    assert f"Shown {on_map:,} of 100,000 images" in page.inner_text(".lead")
    page.evaluate("location.hash = '#/clusters'")
    page.wait_for_selector(".card header")
    spent = page.evaluate(
        """async () => {
            const times = [];
            for (const level of [5, 20, 60, 100, 30, 3]) {
                const start = performance.now();
                deepcluster.changes.setLevel(level);
                await new Promise(requestAnimationFrame);
                await new Promise(requestAnimationFrame);
                times.push(performance.now() - start);
            }
            return times;
        }"""
    )
    assert max(spent) < 2000, f"levels take {spent} ms"
    left = page.evaluate("deepcluster.changes.clusters().length")
    playwright.expect(page.locator(".card")).to_have_count(left)
