"""The pictures of the guide's story: its commands are run as they stand there, and looked at.

    python docs/make_story.py FOLDER

FOLDER is made, and the story runs in it, for some minutes. Writes ``docs/images/story-*.webp``:
the report, the page to label in, the page of the classes, and the folders of the sorted pictures.
The images are the digits of scikit-learn.
"""

from __future__ import annotations

import argparse
import csv
import html
import io
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from make_screenshots import IMAGES, chromium
from PIL import Image
from playwright.sync_api import sync_playwright
from sklearn.datasets import load_digits

from deepcluster.cli import run_app

GUIDE = Path(__file__).resolve().parent / "guide.md"
VIEW = {"width": 1120, "height": 640}
BESIDE = 16  # pictures of a folder that are shown
RUN = Path("runs/story")


def story() -> list[tuple[str, str]]:
    """The blocks of the story, as (language, text)."""
    text = GUIDE.read_text(encoding="utf-8").split("## One story")[1].split("\n## ")[0]
    return re.findall(r"```(py|shell)\n(.*?)```", text, re.DOTALL)


def keep(page: Any, name: str) -> None:
    """Write what the page shows."""
    page.wait_for_timeout(500)
    path = IMAGES / f"story-{name}.webp"
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(path, quality=80, method=6)
    print(f"{path}: {path.stat().st_size // 1000} kB")


def report(page: Any) -> None:
    """The first page of the report."""
    page.goto((RUN / "report/index.html").resolve().as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    keep(page, "report")


def labelling(page: Any) -> None:
    """The page to label in, with the first classes."""
    page.goto((RUN / "labelling/index.html").resolve().as_uri())
    with (RUN / "labelling/to_label.csv").open(newline="") as file:
        asked = [row["id"] for row in csv.DictReader(file)]
    for name in dict.fromkeys(str(load_digits().target[int(id_[:4])]) for id_ in asked[:3]):
        page.fill("#new-class", name)
        page.keyboard.press("Enter")
    page.locator("main").focus()
    page.evaluate("document.getElementById('toast').classList.remove('shown')")
    keep(page, "labelling")


def classes(page: Any) -> None:
    """The page of the classes, one of them opened."""
    page.goto((RUN / "report/index.html").resolve().as_uri() + "#/classes/3")
    page.wait_for_selector(".tile")
    keep(page, "classes")


def folders(page: Any) -> None:
    """Which pictures came into which folder."""
    rows = []
    for place in sorted(path for path in Path("sorted").iterdir() if path.is_dir()):
        files = sorted(place.iterdir())
        images = "".join(f'<img src="{file.resolve().as_uri()}">' for file in files[:BESIDE])
        rows.append(f"<p><b>{html.escape(place.name)}/</b>{images} {len(files)}</p>")
    Path("sorted.html").write_text(
        "<meta charset=utf-8><style>body { font: 16px system-ui; margin: 16px 24px }"
        "p { display: flex; gap: 6px; align-items: center; margin: 6px 0 } b { width: 9em }"
        "img { width: 44px; image-rendering: pixelated }</style>" + "".join(rows),
        encoding="utf-8",
    )
    page.goto(Path("sorted.html").resolve().as_uri())
    keep(page, "sorted")


PICTURES: dict[str, Callable[[Any], None]] = {
    "recluster runs/story --clusters 10": report,
    "suggest runs/story -n 40": labelling,
    "report runs/story": classes,
    "predict runs/story later": folders,
}
"""What is looked at after the command that begins so."""


def main() -> None:
    """Run the story and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True)
    os.chdir(folder)
    names: dict[str, Any] = {}
    with sync_playwright() as driver, chromium(driver) as browser:
        page = browser.new_page(viewport=VIEW, color_scheme="light")
        for language, text in story():
            if language == "py":
                exec(compile(text, "guide.md", "exec"), names)
                continue
            for line in text.strip().split("\n"):
                words = shlex.split(line, comments=True)[1:]
                assert run_app(words) == 0, line
                for begins, look in PICTURES.items():
                    if " ".join(words).startswith(begins):
                        look(page)


if __name__ == "__main__":
    main()
