"""Results on stdout: tables for people, JSON for machines."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from deepcluster.config import Config
from deepcluster.errors import RunError
from deepcluster.progress import counted
from deepcluster.run import RunDir
from deepcluster.show.exact import escaped, show


def print_json(value: Any) -> None:
    """A value as JSON; nothing in it is obeyed by a terminal."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # what JSON leaves as it is, though a terminal may obey it or not be able to show it
    text = re.sub("[\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda c: f"\\u{ord(c[0]):04x}", text)
    sys.stdout.write(text + "\n")


def print_rows(head: list[str], rows: list[tuple[Any, ...]], as_json: bool) -> None:
    """A table; as JSON, the first column -> the second."""
    if as_json:
        return print_json({str(row[0]): row[1] for row in rows})
    table = Table()
    for title in head:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(escaped(str(value)) for value in row))
    width = None if sys.stdout.isatty() else 10_000  # in a pipe, nothing is broken into lines
    Console(markup=False, emoji=False, highlight=False, width=width).print(table)


def print_plan(plan: Any, as_json: bool) -> None:
    """What a fit would do (:class:`deepcluster.fitting.Plan`)."""
    config = plan.config
    chosen = config.final.choose
    clusters = f"2 to {config.clusters}, chosen at the end" if chosen else config.clusters
    if plan.dimensions is not None:
        facts = {"vectors": plan.images, "dimensions": plan.dimensions, "clusters": clusters}
    else:
        facts = {
            "images": plan.images,
            "clusters": clusters,
            "size": config.size,
            "backbone": config.backbone,
            "epochs": config.epochs,
        }
    facts = {
        "source": plan.name,
        **facts,
        "device": config.device,
        "memory_gb": round(plan.cost.memory / 1e9, 2),
        "seconds": round(plan.cost.seconds),
    }
    if as_json:
        return print_json({**facts, "notes": plan.notes})
    print_rows(["dry run", "nothing was done"], list(facts.items()), as_json=False)
    show(*plan.notes)


def print_run(run: RunDir, as_json: bool) -> None:
    """What a run is and what came of it."""
    facts = run.read_info()
    said = run.read_clusters() if facts["status"] == "done" else {"names": {}, "merged": {}}
    if as_json:
        return print_json({**facts, "run": str(run.path), **said})
    config, item = Config(), "image"
    with contextlib.suppress(RunError):  # of a newer version, or damaged: what else is told
        config, item = run.read_config(), run.item()
    counts, scores = facts["counts"], facts.get("scores", {})
    status = facts["status"]
    if status == "starting":
        status = "its images are being decoded"
    stopped = facts["status"] != "done" and not run.is_live()
    if stopped and status != "failed":
        status = "stopped before its end"
    show(
        f"{facts['name']}: {counted(counts['images'], item)}, "
        f"{counted(counts['clusters'], 'cluster')}, {status}"
        + (f" in {facts['seconds']:.0f} s" if "seconds" in facts else "")
        + (f", {counts['skipped']} left out" if counts["skipped"] else "")
    )
    history = run.read_metrics()
    last = [line["nmi_previous"] for line in history if line.get("nmi_previous") is not None]
    found = scores.get("fit", {})
    if "nmi" in found:
        rows = []
        plain, of_pixels = "k-means on the pixels", counts.get("pixel_clusters")
        if of_pixels not in (None, counts["clusters"]):
            plain += f", {counted(of_pixels, 'cluster')}"
        for name, title in (("fit", "deepcluster"), ("pixels", plain)):
            if name in scores:
                figures = [f"{scores[name][key]:.3f}" for key in ("nmi", "ari", "acc")]
                stable = f"{last[-1]:.3f}" if last and name == "fit" else ""
                rows.append((title, *figures, stable))
        print_rows(["", "NMI", "ARI", "ACC", "NMI to the previous epoch"], rows, as_json=False)
    elif last:
        show(f"NMI to the previous epoch: {last[-1]:.3f}")
    if "modularity" in found:
        differ = "seed" if config.start == "frozen" else "seed or epochs"
        show(
            f"modularity: {found['modularity']:.3f} (needs no labels; among runs that differ in "
            f"{differ} alone, higher is often better)"
        )
    if status == "done":
        _print_changes(run, said, item)
        if (run.classifier / "classifier.json").is_file():
            taught = run.read_classifier()[1]
            show(
                f"classifier: {taught['method']}, {counted(len(taught['classes']), 'class')} from "
                f"{counted(taught['labels'], 'label')}, expected to be right on "
                f"{taught['expected']['accuracy']:.0%} of {item}s like these"
            )
    if stopped:
        if isinstance(config.epochs, int) and config.epochs:
            show(f"unfinished: {len(history)} of {counted(config.epochs, 'epoch')} done")
        show(f"to go on: `{run.line_to_go_on()}`")
        if run.aside.path.exists():
            show(f"the run that was there before is whole, in {run.aside.path}, until then")
    show(f"run folder: {run.path}")
    if run.pictures.is_dir():
        show(f"pictures:   {run.pictures}")
    if (run.report / "index.html").is_file():
        show(f"report:     {run.report / 'index.html'}")


def _print_changes(run: RunDir, said: dict[str, Any], item: str) -> None:
    """What a person has made of the clusters since the fit."""
    items = run.read_items()
    moved = items["by"].to_pylist().count("person")
    names, merged = said["names"], said["merged"]
    if not (moved or names or merged):
        return
    sizes = Counter(items["cluster"].to_pylist())
    outside = sizes.pop(-1, 0)
    show(
        f"changed by a person: {counted(len(sizes), 'cluster')} now, {len(names)} with names, "
        f"{len(merged)} merged into others, {counted(moved, item)} moved ({outside} out of "
        "every cluster)"
    )
    if moved or merged:
        show("scores above are of the fit; of the clusters now: `deepcluster evaluate RUN`")
    for number, name in sorted(names.items(), key=lambda item: int(item[0])):
        show(f"  {number}: {name} ({counted(sizes[int(number)], item)})")
    for old, new in sorted(merged.items(), key=lambda item: int(item[0])):
        show(f"  {old}: now part of {new}")
