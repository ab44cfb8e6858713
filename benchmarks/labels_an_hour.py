"""Labels an hour through the page of `deepcluster suggest`, by groups and one by one: a model.

    python benchmarks/labels_an_hour.py RUN --set digits

The page is real, in Chromium; the person is a script that knows the labels of the run's images and
takes a fixed number of seconds an act (`--key` to look at an image and press its key, `--group` to
look over a group and press, `--click` to click one away that is of another class, `--name` to type
a new class). The page's clock goes by these alone, and the figure is the one it shows. By groups,
labels come along that nobody asked for: they are as right as the person is, and teach counts a
group as one look. Needs Playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import record
from playwright.sync_api import Page, sync_playwright

from deepcluster.finished.label import suggest_run
from deepcluster.run import RunDir

KEYS = "123456789abcdefghijklmnopqrstuvwxyz"  # of the classes, in the page


def label_all(page: Page, truth: dict[str, str], seconds: dict[str, float], *, groups: bool) -> int:
    """Label all that the page shows; how many acts it took."""
    classes: list[str] = []
    clock, acts = 1e6, 0

    def after(act: str) -> None:
        nonlocal clock, acts
        clock, acts = clock + seconds[act], acts + 1
        page.clock.set_fixed_time(clock)

    page.clock.set_fixed_time(clock)
    page.keyboard.press(" ")  # the page's clock starts with the first act: skip, and take it back
    page.keyboard.press("Backspace")
    while page.locator(".subject-name").count():
        name = truth[page.inner_text(".subject-name")]
        if groups:
            for id_ in [t.get_attribute("title") for t in page.locator(".together .picture").all()]:
                if id_ is not None and truth[id_] != name:
                    page.locator(f'.together .picture[title="{id_}"]').click()
                    after("click")
        if name in classes:
            after("group" if groups else "key")
            page.locator("main").focus()
            page.keyboard.press(("Shift+" if groups else "") + _key(KEYS[classes.index(name)]))
        else:
            if groups and page.locator("#all").count():
                page.check("#all")
            classes.append(name)
            page.fill("#new-class", name)
            after("group" if groups else "key")
            after("name")
            page.keyboard.press("Enter")
    return acts


def _key(key: str) -> str:
    """A key of the page as Playwright names it, by its place where Shift changes what it says."""
    return f"Digit{key}" if key.isdigit() else f"Key{key.upper()}"


def main() -> None:
    """Label twice, and add what came of it to the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--set", required=True, help="name of the set")
    parser.add_argument("-n", type=int, default=40, help="images that are asked for")
    parser.add_argument("--key", type=float, default=2)
    parser.add_argument("--group", type=float, default=6)
    parser.add_argument("--click", type=float, default=1)
    parser.add_argument("--name", type=float, default=3)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "labels-an-hour.json")
    args = parser.parse_args()
    seconds = {name: getattr(args, name) for name in ("key", "group", "click", "name")}
    line: dict[str, Any] = {"set": args.set, "asked": args.n, "seconds_an_act": seconds}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        run = RunDir(shutil.copytree(args.run, Path(folder) / "run"))
        items = run.read_items()
        truth = dict(zip(items["id"].to_pylist(), items["label"].to_pylist(), strict=True))
        page_file = suggest_run(run, args.n).page
        browser = play.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        for way in ("one by one", "by groups"):
            page = browser.new_context().new_page()
            page.goto(page_file.as_uri())
            page.wait_for_selector("html[data-ready=yes]")
            acts = label_all(page, truth, seconds, groups=way == "by groups")
            shown = page.inner_text("#progress")
            with page.expect_download() as waiting:
                page.click("#download")
            with waiting.value.path().open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            wrong = sum(truth[row["id"]] != row["label"] for row in rows)
            hourly = int(re.sub(r"\D", "", shown.split(" · ")[-1]))
            line[way] = {"labels": len(rows), "wrong": wrong, "acts": acts, "an_hour": hourly}
            print(way, line[way], flush=True)
        browser.close()
    known = json.loads(args.out.read_text()) if args.out.exists() else []
    known = [old for old in known if old["set"] != args.set]
    record.write(args.out, [*known, line | record.circumstances()])


if __name__ == "__main__":
    main()
