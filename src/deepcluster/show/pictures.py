"""Pictures of a finished run: curves over the epochs, and a grid of images for each cluster.

A pure function of the run folder; needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from deepcluster.config import GUESSING
from deepcluster.progress import counted
from deepcluster.run import RunDir, Thumbnails

GRID_SIDE = 8  # images on a side of a cluster's grid
ROW_LENGTH = 16  # images of a cluster in the overview
MOST_ROWS = 100  # clusters in the overview
GAP, MARGIN, LABEL = 2, 12, 150  # pixels
PAPER, INK = (255, 255, 255), (40, 40, 40)


def write_pictures(run: RunDir) -> list[Path]:
    """Write ``pictures/`` of a run: ``curves.svg``, ``clusters.png`` and a grid for each cluster.

    Returns:
        The files written; no grids where a person took every image out of its cluster.
    """
    run.pictures.mkdir(exist_ok=True)
    written = [run.pictures / "curves.svg"]
    guessing = run.read_config().method in GUESSING
    draw_curves(run.read_metrics(), written[0], ln_k=guessing)
    items = run.read_items()
    clusters = items["cluster"].to_numpy()
    confidence = np.nan_to_num(items["confidence"].to_numpy().astype(np.float64))
    thumbnails = run.read_thumbnails()
    pick, tile = _tile_reader(thumbnails), thumbnails.tile
    rows, item = [], run.item()
    run.remove_pictures()
    for cluster in np.unique(clusters[clusters >= 0]):
        members = np.flatnonzero(clusters == cluster)
        best = members[np.argsort(-confidence[members], kind="stable")]
        path = run.pictures / f"cluster-{cluster:03d}.png"
        side = min(GRID_SIDE, math.ceil(math.sqrt(len(best))))
        _grid([[pick(i) for i in row] for row in _chunks(best[: side * side], side)], tile).save(
            path
        )
        written.append(path)
        rows.append(
            (
                f"{cluster}: {counted(len(members), item)}",
                [pick(i) for i in best[:ROW_LENGTH]],
            )
        )
    if not rows:
        return written
    overview = run.pictures / "clusters.png"
    shown = rows[:MOST_ROWS]
    sheet = _grid([images for _, images in shown], tile, left=LABEL)
    pen = ImageDraw.Draw(sheet)
    for number, (text, _) in enumerate(shown):
        pen.text((MARGIN, MARGIN + number * (tile + GAP) + tile // 2 - 6), text, fill=INK)
    if len(rows) > MOST_ROWS:
        pen.text((MARGIN, 0), f"shown {MOST_ROWS} of {len(rows)} clusters", fill=INK)
    sheet.save(overview)
    return [*written, overview]


def _tile_reader(thumbnails: Thumbnails) -> Callable[[int], Image.Image]:
    """A function from an item's number to its small picture; each sheet is decoded once."""
    per_sheet = thumbnails.columns * thumbnails.rows
    tile_of = np.argsort(thumbnails.order)  # the inverse of a permutation
    sheets: dict[int, Image.Image] = {}

    def pick(item: int) -> Image.Image:
        number, place = divmod(int(tile_of[item]), per_sheet)
        if number not in sheets:
            sheets[number] = Image.open(thumbnails.sheets[number]).convert("RGB")
        row, column = divmod(place, thumbnails.columns)
        x, y = column * thumbnails.tile, row * thumbnails.tile
        return sheets[number].crop((x, y, x + thumbnails.tile, y + thumbnails.tile))

    return pick


def _chunks(values: np.ndarray, size: int) -> list[np.ndarray]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _grid(rows: list[list[Image.Image]], tile: int, left: int = 0) -> Image.Image:
    step = tile + GAP
    columns = max(len(row) for row in rows)
    width = left + columns * step - GAP + 2 * MARGIN
    sheet = Image.new("RGB", (width, len(rows) * step - GAP + 2 * MARGIN), PAPER)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (MARGIN + left + x * step, MARGIN + y * step))
    return sheet


def draw_curves(lines: list[dict[str, Any]], path: Path, *, ln_k: bool) -> None:
    """Draw the loss, NMI, and the clusters' sizes over the epochs.

    Args:
        lines: of metrics.jsonl.
        path: the file to write; its suffix chooses the format.
        ln_k: draw ln k beside the loss.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    curves = [
        (
            "loss",
            [("loss", "loss"), *[("ln_k", "ln k: a head that knows nothing")] * ln_k],
        ),
        (
            "NMI",
            [
                ("nmi_previous", "to the previous epoch"),
                ("nmi", "to the labels (never seen by the fit)"),
            ],
        ),
        (
            "clusters",
            [
                ("entropy", "evenness of the sizes"),
                ("largest", "share of the largest"),
                ("changed", "share of images that moved"),
            ],
        ),
    ]
    for panel, (title, series) in zip(panels, curves, strict=True):
        for key, label in series:
            points = [(x["epoch"] + 1, x[key]) for x in lines if x.get(key) is not None]
            if points:
                dashed = "--" if key == "ln_k" else "-"
                panel.plot(*zip(*points, strict=True), dashed, label=label)
        panel.set_title(title)
        panel.set_xlabel("epoch")
        if panel.lines:
            panel.legend(frameon=False, fontsize=8)
        if title != "loss":
            panel.set_ylim(0, 1.02)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
