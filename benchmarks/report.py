"""Size, time and first view of a report.

    python benchmarks/report.py                 # 60,000 made-up colour images of 32 pixels
    python benchmarks/report.py RUN             # the report of a run, written anew

Prints one JSON object: images, seconds and processor seconds to write, megabytes, and, where
Chromium and Playwright are installed, milliseconds to the first picture on the screen and until
the whole table is read, and milliseconds a frame while scrolling through the largest cluster.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from make_run import write_run

from deepcluster.report import write_report
from deepcluster.run import RunDir

OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


def made_up_run(path: Path, n: int, *, side: int = 32, clusters: int = 10) -> RunDir:
    """Images with the texture of small photographs: blurred noise on blurred noise."""
    rng = np.random.default_rng(0)
    assigned = rng.integers(clusters, size=n)
    coarse = rng.integers(256, size=(n, 4, 4, 3), dtype=np.uint8)
    images = np.stack([np.asarray(Image.fromarray(c).resize((side, side), 2)) for c in coarse])
    fine = rng.normal(0, 14, size=(1000, side, side, 1)).astype(np.float32)
    fine = (fine + np.roll(fine, 1, 1) + np.roll(fine, 1, 2)) / 1.7
    for i in range(n):
        images[i] = np.clip(images[i] + fine[i % 1000], 0, 255)
    embeddings = rng.normal(size=(clusters, 128))[assigned] * 1.5 + rng.normal(size=(n, 128))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    nowhere = np.full((n, 2), np.nan)
    labels = [f"class {c}" for c in assigned]
    return write_run(
        path,
        images=images,
        embeddings=embeddings,
        clusters=assigned,
        labels=labels,
        places=nowhere,
        tile=side,
    )


def view(page_path: Path) -> dict[str, float]:
    """What a browser takes to show it; empty where there is none."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if chromium is None:
        return {}
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=OPTIONS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(page_path.as_uri())
        page.wait_for_selector("html[data-ready=yes]")
        result: dict[str, Any] = page.evaluate(
            """async () => {
                const ready = performance.now();
                const first = performance.getEntriesByName("first-contentful-paint")[0].startTime;
                const { changes } = deepcluster;
                const largest = changes.clusters()
                    .sort((a, b) => changes.rowsOf(b).length - changes.rowsOf(a).length)[0];
                location.hash = `#/cluster/${largest}`;
                await new Promise((done) => setTimeout(done, 1000));
                const frames = [];
                for (let i = 0; i < 100; i++) {
                    window.scrollBy(0, 300);
                    const start = performance.now();
                    await new Promise(requestAnimationFrame);
                    frames.push(performance.now() - start);
                }
                frames.sort((a, b) => a - b);
                return { first_view_ms: first, table_ms: ready, frame_median_ms: frames[50],
                         frame_95_ms: frames[95] };
            }"""
        )
        browser.close()
    return {name: round(value, 1) for name, value in result.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=60_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.run is None:
            run = made_up_run(Path(folder) / "run", given.images)
        else:
            run = RunDir.open(given.run)
        wall, processor = time.perf_counter(), time.process_time()
        page = write_report(run)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        size = sum(path.stat().st_size for path in run.report.rglob("*") if path.is_file())
        print(
            json.dumps(
                {
                    "images": len(run.read_items()),
                    "seconds": round(wall, 1),
                    "processor_seconds": round(processor, 1),
                    "megabytes": round(size / 1e6, 1),
                    **view(page),
                }
            )
        )


if __name__ == "__main__":
    main()
