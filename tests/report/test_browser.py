"""The report in a real browser: Chromium without a window, pages opened from the disk.

Every page that is opened is watched: a message on the console, an error, a request for anything
but a file, or an address of another kind fails the test that did it.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_run import HOSTILE, make_run, training

from deepcluster.report import apply_labels, write_report
from deepcluster.run import RunDir

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"
    ),
]

OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
ROUTES = ["", "clusters", "cluster/0", "map", "unusual", "unusual/pairs", "curves"]

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Open a page of a run's report; all pages of a test share what the browser keeps."""
    contexts: dict[str, Any] = {}
    seen: list[str] = []

    def open_page(run: RunDir, route: str = "", *, width: int = 1280, scheme: str = "light") -> Any:
        key = f"{width}{scheme}"
        if key not in contexts:
            contexts[key] = browser.new_context(
                viewport={"width": width, "height": 800}, color_scheme=scheme
            )
        page = contexts[key].new_page()
        page.set_default_timeout(8000)
        page.on("console", lambda message: seen.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on(
            "dialog", lambda dialog: (seen.append(f"dialog: {dialog.message}"), dialog.accept())
        )
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "blob:", "data:")) or seen.append(request.url)
            ),
        )
        page.goto(f"{(run.report / 'index.html').as_uri()}#/{route}")
        page.wait_for_selector("html[data-ready=yes]")
        return page

    yield open_page
    for context in contexts.values():
        context.close()
    assert seen == []


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
    for figure in ("90 %", "0.830", "0.400", "0.829", "0.710", "some new", "0.500"):
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
    run = make_run(tmp_path / "run", n=80)
    embeddings = np.array(run.read_embeddings())
    embeddings[5] += 100
    embeddings[11] = embeddings[12]
    np.save(run.embeddings, embeddings)
    write_report(run)
    page = visit(run, "unusual")
    page.wait_for_selector(".tile")
    assert page.locator(".tile").first.get_attribute("aria-label").startswith("000005,")
    page.click("text=Nearly the same")
    names = page.locator(".pair").first.locator(".pair-name")
    playwright.expect(names).to_have_text(["000011", "000012"])  # a pair has none until it is drawn


def test_curves_of_figures_that_not_every_epoch_has(tmp_path: Path, visit: Open) -> None:
    metrics = [{"epoch": e, "loss": 3 - e / 10} for e in range(9)]
    for e, value in ((2, 0.5), (5, 0.25), (7, 0.125)):
        metrics[e] |= {"changed": value, "nmi": 0.5 if e == 2 else None}
    run = make_run(tmp_path / "run", n=40, metrics=metrics)
    write_report(run)
    page = visit(run, "curves")
    titles = page.locator("figure h3").all_inner_texts()
    assert titles == ["Loss", "Movement"]  # a single value makes no curve
    assert page.inner_text("figure:nth-of-type(2) .readings b") == "13 %"


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


def test_fifty_thousand_images(tmp_path: Path, visit: Open) -> None:
    n = 50_000
    run = make_run(tmp_path / "run", n=n, clusters=4, side=8, tile=8, labels=False)
    write_report(run)
    size = sum(path.stat().st_size for path in run.report.rglob("*") if path.is_file())
    assert size < 40e6
    page = visit(run)
    first = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert first < 2000, f"first view after {first:.0f} ms"
    page.evaluate("location.hash = '#/cluster/1'")
    page.wait_for_selector(".tile")
    rows = page.evaluate("deepcluster.changes.rowsOf(1).length")
    assert rows > 10_000 and page.locator(".tile").count() < 600
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
