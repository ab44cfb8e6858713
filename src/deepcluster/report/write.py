"""RunDir -> a folder of static files.

``index.html`` opens from the disk. A page opened so may not read other files, but may run scripts
beside it: so the data are scripts too, each one call that hands over numbers as base64. What the
first screen needs is small and comes first (``summary.js`` and the sheet of covers); the table of
images and the neighbours follow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from deepcluster.config import GIVEN, GUESSING, flatten
from deepcluster.errors import RunError
from deepcluster.report.levels import Tree, describe_levels, read_tree
from deepcluster.report.pages import (
    find_originals,
    link,
    packed,
    shared_folder,
    write_data,
    write_page,
)
from deepcluster.report.separation import find_separation
from deepcluster.report.taught import read_taught
from deepcluster.report.unusual import (
    Duplicates,
    find_duplicates,
    find_outliers,
    read_neighbours,
)
from deepcluster.report.verdict import Truth, judge
from deepcluster.run import Neighbours, RunDir, Thumbnails

COVERED = 24  # clusters that the first screen shows, the largest
COVERS = 12  # images on the cover of a cluster: those nearest its centre
COVER_TILE = 64  # largest side of a picture on a cover
NEAR_CLUSTERS = 5  # other clusters named beside a cluster
SKIPPED_SHOWN = 200
PIECE = 1024  # images whose features are read at a time
NOWHERE = 65535  # place of an image that is not on the map

SCRIPTS = (
    *("core.js", "levels.js", "changes.js", "charts.js", "grid.js", "plot.js", "members.js"),
    *("slider.js", "overview.js", "curves.js", "clusters.js", "cluster.js", "map.js"),
    *("image.js", "unusual.js", "classes.js", "start.js"),
)
FOLDERS = ("scripts", "data", "thumbnails")
PARTS = ("index.html", "style.css", *FOLDERS)

Say = Callable[[str], None]


def write_report(run: RunDir, *, progress: Say | None = None) -> Path:
    """Write the pages of a run.

    The same run folder gives the same pages. Files that others put into the folder (a downloaded
    ``labels.csv``, say) are left alone.

    Args:
        run: a finished run.
        progress: told in a few words what is being done.

    Returns:
        The first page, ``RUN/report/index.html``.

    Raises:
        RunError: the run lacks what the report needs.
    """
    say = progress or (lambda _: None)
    made = [f"{run.report.name}/{name}" for name in FOLDERS]
    run.refuse_foreign_in(f"{run.report.name}.part", *made)
    items = run.read_items()
    embeddings = _read_embeddings(run, len(items))
    clusters = items["cluster"].to_numpy()
    thumbnails = run.read_thumbnails()
    if thumbnails.count != len(items):
        raise RunError(
            f"{run.path} has {thumbnails.count} thumbnails for {len(items)} images: it was changed "
            "by hand or only in part copied; fit again"
        )
    distance = items["distance"].to_numpy()
    say("nearest neighbours")
    neighbours = read_neighbours(run, embeddings)
    tree = read_tree(run, len(items))
    duplicates = find_duplicates(neighbours)
    say("pages")
    covers = _choose_covers(clusters, distance)

    part = run.report.with_name(f"{run.report.name}.part")
    run.clear(part.name)
    for folder in FOLDERS:
        (part / folder).mkdir(parents=True, exist_ok=True)
    for sheet in thumbnails.sheets:
        link(sheet, part / "thumbnails" / sheet.name)
    cover_layout = _write_covers(part / "data" / "covers.webp", covers, thumbnails)
    data = part / "data"
    summary = _summary(run, items, embeddings, neighbours, duplicates, tree, thumbnails)
    summary["covers"] = {
        **cover_layout,
        "clusters": list(covers),
        "items": [members.tolist() for members in covers.values()],
    }
    summary["taught"], taught = read_taught(run, items["id"].to_pylist())
    write_data(data / "summary.js", "summary", summary)
    write_data(data / "items.js", "items", _items(items, tree, thumbnails) | taught)
    write_data(
        data / "neighbours.js",
        "neighbours",
        {
            "index": packed(neighbours.index, np.uint32),
            "outliers": packed(find_outliers(neighbours), np.uint32),
            "pairs": packed(duplicates.pairs, np.uint32),
            "pairDistances": packed(duplicates.distance, np.float32),
        },
    )
    title = str(summary["title"])
    write_page(part, "index.html", title=title, styles=["style.css"], scripts=SCRIPTS)
    _take_place(run, part)
    return run.report / "index.html"


# -- what the pages are told --------------------------------------------------------------------


def _summary(
    run: RunDir,
    items: pa.Table,
    embeddings: np.ndarray,
    neighbours: Neighbours,
    duplicates: Duplicates,
    tree: Tree | None,
    thumbnails: Thumbnails,
) -> dict[str, Any]:
    """All that the first screen needs, and what is said once for all images."""
    info, metrics, said = run.read_info(), run.read_metrics(), run.read_clusters()
    clusters = items["cluster"].to_numpy()
    numbers, sizes = np.unique(clusters[clusters >= 0], return_counts=True)
    counts = info.get("counts", {})
    scores = info.get("scores", {})
    comparable = dict(scores)
    if counts.get("pixel_clusters", counts.get("clusters")) != counts.get("clusters"):
        comparable.pop("pixels", None)
    skipped = run.read_skipped()
    title = str(info.get("name") or run.path.resolve().name)
    labels = items["label"]
    # After merges, fewer clusters than were asked for are a person's wish.
    asked = None if said["merged"] else counts.get("clusters")
    config = run.read_config()
    verdict = judge(
        sizes.tolist(),
        metrics,
        comparable,
        method=config.method,
        learns=config.start != "frozen",
        given=config.backbone == GIVEN,
        item=run.item(),
        asked=asked,
        distinct=_distinct(embeddings),
        truth=_truth(clusters, labels.to_pylist(), info),
        separation=find_separation(embeddings, clusters, neighbours.index),
    )
    return {
        "id": _run_id(items["id"].to_pylist(), info),
        "run": run.fingerprint(),  # goes into labels.csv, so that it meets its own run
        "title": title,
        "item": run.item(),
        "place": {
            "run": str(run.path.resolve()),
            "report": str(run.report.resolve()),
            "apply": shlex.join(["deepcluster", "apply", str(run.path.resolve()), "labels.csv"]),
        },
        "originals": find_originals(items["path"].to_pylist(), run.report),
        "images": len(items),
        "clusters": [
            {
                "number": int(number),
                "size": int(size),
                "near": numbers[others].tolist(),
            }
            for number, size, others in zip(
                numbers, sizes, _nearest_clusters(embeddings, clusters, numbers), strict=True
            )
        ],
        "names": said["names"],
        "merged": said["merged"],
        "edit": said["edit"],
        "glued": sorted({v for k, v in said["merged"].items() if int(k) not in said["by_level"]}),
        "labelled": len(labels) - labels.null_count,
        "info": {k: v for k, v in info.items() if k not in ("scores", "schema")},
        "scores": scores,
        "settings": flatten(dataclasses.asdict(config)),
        "guessing": config.method in GUESSING,
        "metrics": metrics,
        "verdict": dataclasses.asdict(verdict),
        "skipped": skipped[:SKIPPED_SHOWN],
        "skippedTotal": len(skipped),
        "neighbours": {
            "k": int(neighbours.index.shape[1]),
            "recall": neighbours.recall,
        },
        "duplicates": {"threshold": duplicates.threshold, "total": duplicates.total},
        "levels": None if tree is None else describe_levels(tree, clusters, _by_person(items)),
        "map": {"shown": int(np.isfinite(items["x"].to_numpy()).sum())},
        "thumbnails": {
            "tile": thumbnails.tile,
            "columns": thumbnails.columns,
            "rows": thumbnails.rows,
            "count": thumbnails.count,
            "sheets": [sheet.name for sheet in thumbnails.sheets],
        },
    }


def _items(items: pa.Table, tree: Tree | None, thumbnails: Thumbnails) -> dict[str, Any]:
    """The table of images, a column at a time."""
    ids, paths = items["id"].to_pylist(), items["path"].to_pylist()
    prefix = shared_folder(paths)
    rest = [None if path is None else path[len(prefix) :] for path in paths]
    classes = sorted({label for label in items["label"].to_pylist() if label is not None})
    code = {label: i for i, label in enumerate(classes)}
    return {
        "ids": ids,
        "prefix": prefix,
        # null where there is no path, 0 where the path is the prefix and the id
        "paths": [0 if r == id_ else r for r, id_ in zip(rest, ids, strict=True)],
        "classes": classes,
        "label": packed([code.get(x, -1) for x in items["label"].to_pylist()], np.int32),
        "cluster": packed(items["cluster"].to_numpy(), np.int32),
        "byPerson": packed(_by_person(items), np.uint8),
        "part": None if tree is None else packed(tree.part, np.uint16),
        "distance": packed(items["distance"].to_numpy(), np.float32),
        "confidence": packed(items["confidence"].to_numpy(), np.float32),
        "tile": packed(thumbnails.places, np.uint32),
        "places": packed(_places(items), np.uint16),
    }


def _by_person(items: pa.Table) -> np.ndarray:
    """Whether a person put the image into its cluster, ``(n,)``."""
    found: np.ndarray = pc.equal(items["by"], "person").to_numpy()
    return found


def _places(items: pa.Table) -> np.ndarray:
    """Places on the map, ``(n, 2)`` from 0 to 65534; NOWHERE for images that are not on it."""
    given = np.stack([items["x"].to_numpy(), items["y"].to_numpy()], 1).astype(np.float64)
    known = np.isfinite(given).all(axis=1)
    places = np.full(given.shape, NOWHERE)
    if known.any():
        low, high = given[known].min(axis=0), given[known].max(axis=0)
        span = max(float((high - low).max()), 1e-9)  # one scale for both axes, each in the middle
        places[known] = np.rint(((given[known] - (low + high) / 2) / span + 0.5) * (NOWHERE - 1))
    return places


def _truth(clusters: np.ndarray, labels: list[str | None], info: Mapping[str, Any]) -> Truth | None:
    """What the labels say of the clusters as they stand.

    One cluster a class cannot be asked for where the fit gave more clusters than there are classes:
    then it is the majority of each that counts. The fit decides, so that the measure stays the same
    when a person merges clusters or makes new ones.
    """
    from deepcluster import metrics

    _, code = np.unique([label or "" for label in labels], return_inverse=True)
    known = (clusters >= 0) & np.array([bool(label) for label in labels])
    if not known.any():
        return None
    counts = info.get("counts", {})
    several = len(set(code[known].tolist()))
    majority = int(counts.get("clusters", len(np.unique(clusters[known])))) > several
    measure = metrics.purity if majority else metrics.acc
    return Truth(measure(clusters[known], code[known]), majority, several)


def _distinct(embeddings: np.ndarray) -> int:
    """Images that differ from one another, as far as the net can tell."""
    told = np.empty(len(embeddings), np.uint64)
    for start in range(0, len(embeddings), PIECE):
        rows = np.round(embeddings[start : start + PIECE], 4)
        digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
        told[start : start + PIECE] = [int.from_bytes(digest) for digest in digests]
    return len(np.unique(told))


def _run_id(ids: list[str], info: Mapping[str, Any]) -> str:
    """A name for the run's images and fit that stays the same when labels are applied."""
    digest = hashlib.sha256(str(info.get("started")).encode())
    for id_ in ids:
        digest.update(id_.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:20]


def _read_embeddings(run: RunDir, n: int) -> np.ndarray:
    if not run.embeddings.is_file():
        raise RunError(f"{run.embeddings} is missing: copy the whole run folder, or fit again")
    embeddings = run.read_embeddings()
    if len(embeddings) != n:
        raise RunError(
            f"{run.embeddings} has {len(embeddings)} rows for {n} images: it was changed by hand; "
            "fit again"
        )
    if not n:
        raise RunError(f"{run.path} has no images: there is nothing to report")
    return embeddings


def _nearest_clusters(
    embeddings: np.ndarray, clusters: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
    """The other clusters of each, the nearest mean first, ``(k, at most NEAR_CLUSTERS)``."""
    means, sizes = np.zeros((len(numbers), embeddings.shape[1])), np.zeros(len(numbers))
    for start in range(0, len(clusters), PIECE):
        own = clusters[start : start + PIECE]
        inside = np.flatnonzero(own >= 0)
        place = np.searchsorted(numbers, own[inside])
        shape = len(numbers), len(own)
        members = scipy.sparse.csr_matrix((np.ones(len(inside)), (place, inside)), shape)
        means += members @ embeddings[start : start + PIECE]
        sizes += np.bincount(place, minlength=len(numbers))
    means /= sizes[:, None]
    half = np.square(means).sum(axis=1) / 2
    kept = min(NEAR_CLUSTERS, len(numbers) - 1)
    near = np.empty((len(numbers), max(kept, 0)), np.int64)
    for start in range(0, len(numbers), 1024):
        closeness = means[start : start + 1024] @ means.T - half
        closeness[np.arange(len(closeness)), start + np.arange(len(closeness))] = -np.inf
        near[start : start + 1024] = np.argsort(-closeness, axis=1, kind="stable")[:, :kept]
    return near


# -- covers -------------------------------------------------------------------------------------


def _choose_covers(clusters: np.ndarray, distance: np.ndarray) -> dict[int, np.ndarray]:
    """The items on the covers of the largest clusters: nearest the centre, unknown ones last."""
    numbers, sizes = np.unique(clusters[clusters >= 0], return_counts=True)
    largest = numbers[np.argsort(-sizes, kind="stable")][:COVERED]
    order = np.lexsort((np.nan_to_num(distance, nan=np.inf), clusters))
    starts = np.searchsorted(clusters[order], largest)
    return {
        int(c): order[start : start + min(size, COVERS)]
        for c, start, size in zip(
            largest, starts, np.sort(sizes)[::-1][:COVERED].tolist(), strict=True
        )
    }


def _write_covers(
    path: Path, covers: dict[int, np.ndarray], thumbnails: Thumbnails
) -> dict[str, int]:
    """One picture of all covers, a row a cluster: the first screen opens no other sheet."""
    from PIL import Image

    tile = min(thumbnails.tile, COVER_TILE)
    chosen = np.concatenate([np.zeros(0, np.int64), *covers.values()])
    column = np.concatenate([np.zeros(0, np.int64), *map(np.arange, map(len, covers.values()))])
    row = np.repeat(np.arange(len(covers)), [len(members) for members in covers.values()])
    picture = Image.new("RGB", (COVERS * tile, max(1, len(covers)) * tile))
    per_sheet = thumbnails.columns * thumbnails.rows
    position = thumbnails.places
    sheets = position[chosen] // per_sheet
    for number in np.unique(sheets).tolist():
        with Image.open(thumbnails.sheets[number]) as file:
            sheet = file.convert("RGB")
        for i in np.flatnonzero(sheets == number).tolist():
            place = int(position[chosen[i]]) % per_sheet
            left = place % thumbnails.columns * thumbnails.tile
            top = place // thumbnails.columns * thumbnails.tile
            image = sheet.crop((left, top, left + thumbnails.tile, top + thumbnails.tile))
            if tile < thumbnails.tile:
                image = image.resize((tile, tile), Image.Resampling.LANCZOS)
            picture.paste(image, (int(column[i]) * tile, int(row[i]) * tile))
    picture.save(path, "WEBP", quality=85, method=2)
    return {"tile": tile, "columns": COVERS}


# -- files --------------------------------------------------------------------------------------


def _take_place(run: RunDir, part: Path) -> None:
    """Move the new pages to where the old ones are, and leave whatever else is there."""
    run.report.mkdir(exist_ok=True)
    run.clear(*(f"{run.report.name}/{name}" for name in FOLDERS))
    for name in PARTS:
        new, place = part / name, run.report / name
        if place.is_dir():  # hidden files are in it
            for file in new.iterdir():
                file.replace(place / file.name)
            new.rmdir()
        else:
            new.replace(place)
    with contextlib.suppress(OSError):  # hidden files are in it
        part.rmdir()
