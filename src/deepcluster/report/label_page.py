"""The page in which a person labels images: one large, the images it speaks for beside it.

Built as the report is: static files, data as scripts, thumbnails of the run. What a person does is
kept in the browser and comes out as ``labels.csv``, which ``deepcluster teach`` takes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deepcluster.report.pages import find_originals, link, shared_folder, write_data, write_page
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
    groups = []
    for i, row in enumerate(rows.tolist()):
        members = np.setdiff1d(np.flatnonzero(part == i), [row])
        alike = np.asarray(embeddings[members], np.float32) @ np.asarray(embeddings[row])
        nearest = members[np.argsort(-alike, kind="stable")][:BESIDE]
        groups.append([row, *nearest.tolist()])
    shown = sorted({row for group in groups for row in group})
    position = {row: i for i, row in enumerate(shown)}
    prefix = shared_folder(paths)
    folder = run.labelling
    parts = ("scripts", "data", "thumbnails")
    run.clear(*(f"{folder.name}/{name}" for name in parts))
    for name in parts:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for sheet in thumbnails.sheets:
        link(sheet, folder / "thumbnails" / sheet.name)
    title = str(run.read_info().get("name") or run.path.resolve().name)
    write_data(
        folder / "data" / "label.js",
        "label",
        {
            "id": run.fingerprint(),
            "item": run.item(),
            "folder": run.path.resolve().name,
            "ids": [ids[row] for row in shown],
            "files": [None if paths[row] is None else paths[row][len(prefix) :] for row in shown],
            "originals": find_originals(paths, folder),
            "tiles": thumbnails.places[shown].tolist(),
            "groups": [[position[row] for row in group] for group in groups],
            "labels": labels,
            "thumbnails": {
                "columns": thumbnails.columns,
                "rows": thumbnails.rows,
                "sheets": [sheet.name for sheet in thumbnails.sheets],
            },
        },
    )
    return write_page(
        folder, "label.html", title=title, item=run.item(), styles=STYLES, scripts=SCRIPTS
    )
