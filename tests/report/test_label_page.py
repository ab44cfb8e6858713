"""The labelling page in a real browser: keys, whole groups, undo, what is kept and downloaded."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_run import HOSTILE, make_run

from deepcluster.labelling.given import read_labels
from deepcluster.report.label_page import BESIDE, write_label_page
from deepcluster.run import RunDir

pytestmark = pytest.mark.browser

Open = Callable[[RunDir], Any]


@pytest.fixture
def visit(open_page: Callable[..., Any]) -> Open:
    """Open the labelling page of a run."""
    return lambda run: open_page((run.labelling / "index.html").as_uri())


def prepared(path: Path, labels: dict[str, str] | None = None, **more: Any) -> RunDir:
    run = make_run(path, n=240, clusters=4, **more)
    clusters = run.read_items()["cluster"].to_numpy()
    rows = np.array([int(np.flatnonzero(clusters == k)[0]) for k in range(4)])
    write_label_page(run, rows, clusters, labels or {})
    return run


def download(page: Any, to: Path) -> dict[str, dict[str, str]]:
    with page.expect_download() as waiting:
        page.click("#download")
    waiting.value.save_as(to)
    with to.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_keys_groups_undo_and_what_comes_out(visit: Open, tmp_path: Path) -> None:
    run = prepared(tmp_path / "run")
    clusters = dict(
        zip(
            run.read_items()["id"].to_pylist(), run.read_items()["cluster"].to_pylist(), strict=True
        )
    )
    page = visit(run)
    page.fill("#new-class", "shirt")
    page.keyboard.press("Enter")  # the first image is a shirt, alone
    assert page.inner_text("#progress").startswith("1 of 4")
    page.fill("#new-class", "shoe")
    page.keyboard.press("Enter")
    page.locator("main").focus()
    beside = page.locator(".together .picture")
    assert beside.count() == min(BESIDE, list(clusters.values()).count(2) - 1)
    out = beside.nth(0).get_attribute("aria-label")
    beside.nth(0).click()  # this one is not like the others
    page.keyboard.press("Shift+Digit1")  # the whole group
    assert page.inner_text("#progress").startswith("3 of 4")
    page.keyboard.press("Backspace")
    assert page.inner_text("#progress").startswith("2 of 4")
    page.keyboard.press("Shift+Digit1")
    page.keyboard.press("2")
    assert page.inner_text("h1") == "That was all"
    found = download(page, tmp_path / "labels.csv")
    lead = {k: next(id_ for id_, c in clusters.items() if c == k) for k in range(4)}
    assert found[lead[0]]["label"] == "shirt" and found[lead[1]]["label"] == "shoe"
    assert found[lead[3]]["label"] == "shoe" and out not in found
    together = [row for row in found.values() if row["group"] == lead[2]]
    assert len(together) == min(BESIDE, list(clusters.values()).count(2) - 1)
    assert all(row["label"] == "shirt" and clusters[row["id"]] == 2 for row in together)
    given = read_labels(tmp_path / "labels.csv", list(clusters), [None] * 240)
    assert len(given.rows) == len(found) and len(np.unique(given.groups)) == 4
    # and it is still there after the page was closed
    again = visit(run)
    assert again.inner_text("h1") == "That was all"
    again.keyboard.press("Backspace")  # nothing to take back in a new page
    assert download(again, tmp_path / "again.csv") == found


def test_labels_of_earlier_rounds_are_there(visit: Open, tmp_path: Path) -> None:
    run = prepared(tmp_path / "run", labels={"000200": "old", "000201": "older"})
    page = visit(run)
    assert page.locator(".class-button span").all_inner_texts() == ["old", "older"]
    page.keyboard.press("2")
    page.keyboard.press("Space")
    assert page.inner_text("#progress").startswith("1 of 4")
    found = download(page, tmp_path / "labels.csv")
    assert sorted(row["label"] for row in found.values()) == ["old", "older", "older"]


def test_names_that_attack_are_only_names(visit: Open, tmp_path: Path) -> None:
    run = prepared(tmp_path / "run", hostile=True)
    page = visit(run)
    for name in HOSTILE[:4]:
        page.fill("#new-class", name)
        page.keyboard.press("Enter")
    assert "label images" in page.title()
    ids = run.read_items()["id"].to_pylist()
    found = download(page, tmp_path / "labels.csv")
    assert {row["label"] for row in found.values()} == {" ".join(n.split()) for n in HOSTILE[:4]}
    assert set(found) <= set(ids)
