"""The classes of a classifier beside the clusters, in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_run import HOSTILE, make_run

from deepcluster.errors import RunError
from deepcluster.report import write_report
from deepcluster.report.taught import read_taught
from deepcluster.run import RunDir

NAMES = ["shirt", HOSTILE[0]]


def taught(path: Path, names: list[str] = NAMES) -> tuple[RunDir, np.ndarray, np.ndarray]:
    """A run of 40 images, two of them labelled, with what a classifier says of them."""
    run = make_run(path, n=40, clusters=2)
    ids = run.read_items()["id"].to_pylist()
    classes, sure = np.arange(40) % 2, 1 - np.arange(40) / 80
    run.write_classifier(
        {"confidences": np.ones(3, "f")},
        {
            "classes": names,
            "expected": {"accuracy": 0.8, "low": 0.6, "high": 0.95},
            "method": "spreading",
            "labels": 2,
            "helpful": [ids[9], ids[7]],
        },
    )
    run.write_labels([(ids[0], names[0]), (ids[2], names[-1])])  # the second against the classifier
    run.write_classes(classes, sure)
    return run, classes, sure


def test_what_is_told_leaves_out_what_a_person_labelled(tmp_path: Path) -> None:
    run, classes, sure = taught(tmp_path / "run")
    words, columns = read_taught(run, run.read_items()["id"].to_pylist())
    assert words is not None and set(columns) == {"said", "sure"}
    open_ = (classes == 0) & ~np.isin(np.arange(40), [0, 2])
    assert words["expectedOf"][0] == pytest.approx(sure[open_].mean(), abs=1e-6)
    assert words["next"] == [9, 7] and words["accuracy"] == 0.8
    assert words["suggest"].startswith("deepcluster suggest ")


def test_a_run_that_was_not_taught_has_no_classes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=12)
    assert read_taught(run, run.read_items()["id"].to_pylist()) == (None, {})


def test_classes_that_do_not_go_with_their_classifier_are_refused(tmp_path: Path) -> None:
    run, _, _ = taught(tmp_path / "run", names=["shirt"])
    with pytest.raises(RunError, match=r"classes are fewer.*copy the whole run folder anew"):
        write_report(run)
    with pytest.raises(RunError, match="it is not of 41 images"):
        run.read_classes(41)


@pytest.mark.browser
def test_classes_stand_beside_clusters_the_doubtful_first(
    tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    run, classes, _ = taught(tmp_path / "run")
    items = run.read_items()
    ids, clusters = items["id"].to_pylist(), items["cluster"].to_numpy()
    address = write_report(run).as_uri()
    page = open_page(f"{address}#/classes")
    assert page.locator("h2").inner_text() == "Label these 2 next"
    assert [t.get_attribute("aria-label").split(",")[0] for t in page.locator(".tile").all()] == [
        ids[9],
        ids[7],
    ]
    page.click('a[href="#/classes/1"]')
    page.get_by_role("heading", level=2, name=NAMES[1].strip()).wait_for()
    first = page.locator(".tile").first.get_attribute("aria-label")
    assert first.startswith(f"{ids[39]},")  # the least sure
    for width in (420, 320):  # nothing in the bar is broken, and nothing sticks out
        page = open_page(f"{address}#/classes", width=width)
        for link in page.locator(".bar nav a").all():
            box = link.bounding_box()
            assert box["height"] < 36 and box["x"] + box["width"] <= width
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page = open_page(f"{address}#/cluster/0")
    inside = np.bincount(np.where(np.arange(40) == 2, 1, classes)[clusters == 0], minlength=2)
    words = page.locator(".cluster-head p.mix-words").inner_text()
    share = float(words.split("shirt")[1].split("%")[0])
    assert share == pytest.approx(100 * inside[0] / inside.sum(), abs=0.11)
    page = open_page(f"{address}#/image/{ids[9]}")
    assert "(89 %)" in page.locator(".facts").inner_text()
    assert "(labelled)" in open_page(f"{address}#/image/{ids[2]}").locator(".facts").inner_text()
