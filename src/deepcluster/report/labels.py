"""A person's ``labels.csv``, back into the run.

The file has a row an image: ``id, path, cluster, name, by``, and ``run``, which tells the fit it is
of: the numbers of its clusters mean nothing in another. It comes out of the report's page, but
may have been through a spreadsheet or be written by hand, so nothing of it is believed unchecked,
and nothing is written unless all of it can be.

A row that puts an image into another cluster than the run does is a move, by a person. If a whole
cluster goes into one other, and no row of it says ``by`` person, the two are merged: new images of
the one will then count as the other (``clusters.json``). Cluster -1 holds images that a person took
out of their cluster without giving another.

A column ``level`` says that the slider of the page stood at another number of clusters: images that
change cluster then, and whose row says ``by`` model, went with a part of the fit's tree, and nobody
moved them. ``edit`` tells the page, once it is written again, that the run has it all.
"""

from __future__ import annotations

import dataclasses
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepcluster.errors import RunError
from deepcluster.files import read_table
from deepcluster.progress import counted
from deepcluster.run import RunDir

NO_CLUSTER = -1
"""Cluster of the images that a person took out of theirs."""

MAX_NAME = 200  # characters
LISTED = 10  # ids or lines named in an error


@dataclass(frozen=True)
class AppliedLabels:
    """What :func:`apply_labels` did."""

    renamed: int  # clusters whose name is new, changed or gone
    moved: int  # images in another cluster than before, merged ones not counted
    taken_out: int  # of those, into no cluster (-1)
    merged: dict[int, int]  # cluster -> the one it is now part of
    left_alone: int  # images of the run that the file does not mention
    names: dict[int, str]  # names of all clusters that have one
    level: int | None = None  # clusters that there are now, if the file is of another number
    item: str = "image"  # what is clustered, in a word

    def __str__(self) -> str:
        number = "" if self.level is None else f"{counted(self.level, 'cluster')} now, "
        return (
            f"{number}{counted(self.renamed, 'cluster')} renamed, {len(self.merged)} merged, "
            f"{counted(self.moved, self.item)} moved ({self.taken_out} of them out of every "
            f"cluster), {self.left_alone} not mentioned"
        )


@dataclass(frozen=True)
class _Row:
    line: int
    position: int  # row of the image in the run's table
    cluster: int
    name: str | None  # None: the file has no such column
    by_person: bool
    by_level: bool  # the file has another number of clusters of the same tree
    edit: str  # tells this file from any other; empty in one written by hand


def apply_labels(run: RunDir, labels_csv: Path) -> AppliedLabels:
    """Write a person's names, merges and moves into the run's table and ``clusters.json``.

    Args:
        run: a finished run.
        labels_csv: the file that the report's page downloads, or one with at least the columns
            ``id`` and ``cluster``. Images that it does not mention stay as they are.

    Returns:
        What changed. Applying the same file twice changes nothing more.

    Raises:
        RunError: the file is missing or malformed, or names images that the run does not have;
            nothing was written.
    """
    items = run.read_items()
    before = items["cluster"].to_numpy()
    positions = {id_: i for i, id_ in enumerate(items["id"].to_pylist())}
    limit = max(int(before.max(initial=0)) + 1, 0) + len(before)  # a new cluster for each, at most
    rows = list(_read_rows(labels_csv, positions, limit, run))

    after = before.copy()
    by_person, by_level = np.zeros((2, len(before)), bool)
    for row in rows:
        after[row.position] = row.cluster
        by_person[row.position] = row.by_person
        by_level[row.position] = row.by_level
    old_names = {int(k): str(v) for k, v in run.read_clusters()["names"].items()}
    names = _names_after(old_names, rows, labels_csv)
    edit = rows[0].edit if rows else ""
    applied = change_clusters(run, after, by_person, names, by_level, edit)
    level = len(np.unique(after[after != NO_CLUSTER])) if by_level.any() else None
    return dataclasses.replace(applied, left_alone=len(before) - len(rows), level=level)


def change_clusters(
    run: RunDir,
    after: np.ndarray,
    by_person: np.ndarray,
    names: dict[int, str],
    by_level: np.ndarray | None = None,
    edit: str = "",
) -> AppliedLabels:
    """Write other clusters and names into the run: the one way in which a person changes it.

    Args:
        run: a finished run.
        after: ``(n,)``, the cluster of each image from now on.
        by_person: ``(n,)``, the images of which a person says so one by one. The others that leave
            their cluster go with all that is left of it (a merge), or count as moved by a person.
        names: of all clusters that have one.
        by_level: ``(n,)``, the images that go with a part of the tree, where there are more or
            fewer clusters from now on.
        edit: tells the page that what it keeps under this mark is in the run now.
    """
    items = run.read_items()
    columns = {name: items[name].to_pylist() for name in items.column_names}
    before = items["cluster"].to_numpy()
    merged = _find_merges(before, after, by_person)
    target = np.array([merged.get(int(c), int(c)) for c in before])
    level = np.zeros(len(before), bool) if by_level is None else by_level
    moved = (after != before) & (by_person | ((after != target) & ~level))
    person = np.array([by == "person" for by in columns["by"]]) | by_person | moved

    said = run.read_clusters()
    old_names = {int(k): str(v) for k, v in said["names"].items()}
    all_merged = {int(k): int(v) for k, v in said["merged"].items()} | merged
    # Merges of the tree, for there are fewer clusters now: nobody said that the two are one.
    by_cut = set(said["by_level"]) - merged.keys()
    by_cut |= {old for old in merged if level[before == old].all()}
    present = set(np.unique(after).tolist())
    all_merged = {old: _root(all_merged, old) for old in all_merged if old not in present}
    names = {k: v for k, v in names.items() if k not in all_merged}

    columns["cluster"] = after
    columns["name"] = [names.get(int(c)) for c in after]
    columns["by"] = ["person" if p else "model" for p in person]
    for measure in ("distance", "confidence"):  # the model's, of a cluster the image has left
        values = np.array(columns[measure], np.float32)
        values[moved] = np.nan
        columns[measure] = values
    # In this order: if it is stopped between the two, the same file again does all that is left.
    run.write_clusters(
        {
            "names": {str(k): names[k] for k in sorted(names)},
            "merged": {str(k): all_merged[k] for k in sorted(all_merged)},
            "by_level": sorted(by_cut & all_merged.keys()),
            "edit": edit,
        }
    )
    run.write_items(columns)
    touched = (old_names.keys() | names.keys()) - all_merged.keys()
    return AppliedLabels(
        renamed=sum(old_names.get(k) != names.get(k) for k in touched),
        moved=int(moved.sum()),
        taken_out=int((moved & (after == NO_CLUSTER)).sum()),
        merged=merged,
        left_alone=0,
        names=names,
        item=run.item(),
    )


def _find_merges(before: np.ndarray, after: np.ndarray, moved: np.ndarray) -> dict[int, int]:
    """Clusters that went into one other as a whole, apart from images `moved` one by one."""
    merged = {}
    for cluster in np.unique(before).tolist():
        rest = np.unique(after[(before == cluster) & ~moved])
        if cluster != NO_CLUSTER and len(rest) == 1 and rest[0] not in (cluster, NO_CLUSTER):
            merged[cluster] = int(rest[0])
    return {old: new for old, new in merged.items() if old not in merged.values()}


def _root(merged: dict[int, int], cluster: int) -> int:
    """The cluster that `cluster` is part of in the end; a cycle is cut where it closes."""
    seen = {cluster}
    while (following := merged.get(cluster, cluster)) not in seen:
        cluster = following
        seen.add(cluster)
    return cluster


def _names_after(old: dict[int, str], rows: list[_Row], path: Path) -> dict[int, str]:
    """Names of the clusters once the rows are taken over."""
    given: dict[int, tuple[str, int]] = {}
    for row in rows:
        if row.name is None or row.cluster == NO_CLUSTER:
            continue
        name, line = given.setdefault(row.cluster, (row.name, row.line))
        if name != row.name:
            raise RunError(
                f"{path} calls cluster {row.cluster} {name!r} in line {line} and {row.name!r} in "
                f"line {row.line}: give a cluster one name; nothing was written"
            )
    names = old | {cluster: name for cluster, (name, _) in given.items()}
    return {cluster: name for cluster, name in names.items() if name}


def _read_rows(path: Path, positions: dict[str, int], limit: int, run: RunDir) -> Iterator[_Row]:
    """The rows of the file, each checked; the images that the run lacks are reported together."""
    unknown: list[str] = []
    lines: dict[int, int] = {}
    fingerprint = run.fingerprint()
    header, table = read_table(path)
    if not {"id", "cluster"} <= set(header):
        raise RunError(
            f"{path} has the columns {', '.join(header)[:200] or '(none)'}; expected id, path, "
            "cluster, name, by (at least id and cluster); nothing was written"
        )
    for line, fields in table:
        if fields.get("run", fingerprint).strip() not in (fingerprint, ""):
            raise RunError(
                f"{path} was made in the report of another run: its clusters are others, and their "
                "numbers mean other things here. To take names and moves over by the images that "
                f"both runs know: deepcluster apply {shlex.quote(str(run.path))} --from THAT_RUN; "
                "nothing was written"
            )
        id_ = fields["id"]
        if id_ not in positions:
            unknown.append(id_)
            continue
        position = positions[id_]
        if position in lines:
            raise RunError(
                f"{path} has the image {id_!r} twice, in lines {lines[position]} and {line}: keep "
                "one; nothing was written"
            )
        lines[position] = line
        cluster, by = fields["cluster"].strip(), fields.get("by", "").strip()
        if not (cluster.removeprefix("-").isascii() and cluster.removeprefix("-").isdigit()):
            raise RunError(
                f"{path}, line {line}: the cluster is {cluster!r}, expected a whole number "
                f"(or {NO_CLUSTER} for none); nothing was written"
            )
        if len(cluster) > 10 or not NO_CLUSTER <= int(cluster) < limit:
            raise RunError(
                f"{path}, line {line}: there is no cluster {cluster[:20]}, expected {NO_CLUSTER} "
                f"to {limit - 1}; nothing was written"
            )
        if by not in ("model", "person", ""):
            raise RunError(
                f"{path}, line {line}: by is {by!r}, expected model or person; nothing was written"
            )
        name = fields.get("name")
        yield _Row(
            line,
            position,
            int(cluster),
            None if name is None else _checked_name(name, path, line),
            by == "person",
            bool(fields.get("level", "").strip()),
            fields.get("edit", "").strip(),
        )
    if unknown:
        shown = ", ".join(repr(id_) for id_ in unknown[:LISTED])
        more = f" and {len(unknown) - LISTED} more" if len(unknown) > LISTED else ""
        raise RunError(
            f"{path} has {counted(len(unknown), 'image')} that the run does not know: "
            f"{shown}{more}. Is it of another run? A spreadsheet may also have changed the ids "
            "(000123 to 123): import the column as text. Nothing was written"
        )


def _checked_name(name: str, path: Path, line: int) -> str:
    name = " ".join(name.split())
    if len(name) > MAX_NAME or any(unicodedata.category(c) == "Cc" for c in name):
        raise RunError(
            f"{path}, line {line}: the name {name[:40]!r} is too long (over {MAX_NAME} characters) "
            "or has control characters; nothing was written"
        )
    return name
