"""The page in which a person labels images: one large, the images it speaks for beside it.

Built as the report is: static files, data as scripts, thumbnails of the run. What a person does is
kept in the browser and comes out as ``labels.csv``, which ``deepcluster teach`` takes.
"""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment

from deepcluster.report.write import _link, _originals, _prefix, _write_data
from deepcluster.run import RunDir

BESIDE = 59  # images beside the large one, that can be labelled with it in one act
SCRIPTS = ("core.js", "label.js")
STYLES = ("style.css", "label.css")


def write_label_page(
    run: RunDir, rows: np.ndarray, part: np.ndarray, labels: dict[str, str]
) -> Path:
    """Write the page in place of the one before; other files of the folder are left alone.

    Args:
        run: a finished run.
        rows: ``(m,)`` images to label, the first first.
        part: ``(n,)`` position in `rows` of the image that speaks for each image of the run; -1.
        labels: of images that have one already, by id: their classes have keys from the start, and
            they are in the file that comes out.

    Returns:
        The page.
    """
    items = run.read_items()
    ids, paths = items["id"].to_pylist(), items["path"].to_pylist()
    embeddings = run.read_embeddings()
    thumbnails = run.read_thumbnails()
    tile = np.empty(len(ids), np.int64)
    tile[thumbnails.order] = np.arange(len(ids))
    groups = []
    for i, row in enumerate(rows.tolist()):
        members = np.setdiff1d(np.flatnonzero(part == i), [row])
        alike = np.asarray(embeddings[members], np.float32) @ np.asarray(embeddings[row])
        nearest = members[np.argsort(-alike, kind="stable")][:BESIDE]
        groups.append([row, *nearest.tolist()])
    shown = sorted({row for group in groups for row in group})
    position = {row: i for i, row in enumerate(shown)}
    prefix = _prefix(paths)
    folder = run.labelling
    for name in ("scripts", "data", "thumbnails"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    for sheet in thumbnails.sheets:
        _link(sheet, folder / "thumbnails" / sheet.name)
    title = str(run.read_info().get("name") or run.path.resolve().name)
    _write_data(
        folder / "data" / "label.js",
        "label",
        {
            "id": run.fingerprint(),
            "folder": run.path.resolve().name,
            "ids": [ids[row] for row in shown],
            "files": [None if paths[row] is None else paths[row][len(prefix) :] for row in shown],
            "originals": _originals(paths, folder),
            "tiles": tile[shown].tolist(),
            "groups": [[position[row] for row in group] for group in groups],
            "labels": labels,
            "thumbnails": {
                "columns": thumbnails.columns,
                "rows": thumbnails.rows,
                "sheets": [sheet.name for sheet in thumbnails.sheets],
            },
        },
    )
    sources = resources.files("deepcluster.report") / "page"
    template = (sources / "label.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True).from_string(template).render(title=title)
    (folder / "index.html").write_text(page, encoding="utf-8")
    for name in STYLES:
        text = (sources / name).read_text(encoding="utf-8")
        (folder / name).write_text(text, encoding="utf-8")
    for name in SCRIPTS:
        text = (sources / name).read_text(encoding="utf-8")
        (folder / "scripts" / name).write_text(text, encoding="utf-8")
    return folder / "index.html"
