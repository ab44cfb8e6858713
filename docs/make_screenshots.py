"""The two pictures of the report in the README.

    python docs/make_screenshots.py RUN

Writes ``docs/images/report-overview.png`` (the first screen) and ``docs/images/report-map.png``
(the map in dark, a lasso around the largest cluster). The run must have its report.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from deepcluster.run import RunDir

IMAGES = Path(__file__).parent / "images"
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


def chromium(driver: Any) -> Any:
    """The browser, without a window."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise SystemExit("Chromium is not installed: apt-get install chromium")
    return driver.chromium.launch(executable_path=path, args=OPTIONS)


def open_page(browser: Any, run: RunDir, route: str, scheme: str) -> Any:
    """A page of the report, ready."""
    page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
    page.goto(f"{(run.report / 'index.html').resolve().as_uri()}#/{route}")
    page.wait_for_selector("html[data-ready=yes]")
    return page


def lasso_largest(page: Any) -> None:
    """Draw a lasso around the middle of the largest cluster."""
    page.get_by_role("button", name="Lasso").click()
    box = page.locator("canvas.map").bounding_box()
    x, y = page.evaluate(
        """() => {
            const { changes, table } = deepcluster;
            const rows = changes.clusters().map((c) => changes.rowsOf(c))
                .sort((a, b) => b.length - a.length)[0];
            const middle = (axis) => Float64Array.from(rows, (row) => table.places[2 * row + axis])
                .sort()[rows.length >> 1] / 65535 - 0.5;
            return [middle(0), -middle(1)];
        }"""
    )
    side = min(box["width"], box["height"]) * 0.94
    left = box["x"] + box["width"] / 2 + x * side
    top = box["y"] + box["height"] / 2 + y * side
    corners = [(-1, -0.4), (-0.4, -1), (0.4, -1), (1, -0.4), (1, 0.4), (0.4, 1), (-0.4, 1)]
    corners.append((-1, 0.4))
    reach = side * 0.09
    for i, (dx, dy) in enumerate(corners):
        page.mouse.move(left + dx * reach, top + dy * reach, steps=3)
        if i == 0:
            page.mouse.down()
    page.mouse.up()
    page.mouse.move(2, 2)


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = RunDir.open(parser.parse_args().run)
    if not (run.report / "index.html").is_file():
        raise SystemExit(f"{run.path} has no report: deepcluster report {run.path}")
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as driver, chromium(driver) as browser:
        page = open_page(browser, run, "", "light")
        page.wait_for_timeout(500)
        page.screenshot(path=IMAGES / "report-overview.png")
        page = open_page(browser, run, "map", "dark")
        lasso_largest(page)
        page.wait_for_timeout(1500)
        page.screenshot(path=IMAGES / "report-map.png")
    print(f"{IMAGES}/report-overview.png, {IMAGES}/report-map.png")


if __name__ == "__main__":
    main()
