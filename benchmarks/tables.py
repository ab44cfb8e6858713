"""Tables and pictures of docs/benchmarks.md and the README, from the JSON in benchmarks/results/.

    python benchmarks/tables.py

Fills the documents' marked places, ``<!--name-->…<!--/-->``, and draws docs/images/minutes.svg. A
test holds that the documents are what this makes of the JSON.

Long, because every table of the documents is here, each a function that shares the cells.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
DOCUMENTS = [ROOT / "docs/benchmarks.md", ROOT / "README.md", ROOT / "docs/guide.md"]
DOCUMENTS += [ROOT / "docs/scale.md"]
LOG = ROOT / "docs/log.md"
PICTURE = ROOT / "docs/images/minutes.svg"

SAME = {"62ef4d0": "8b0494c", "8e1e596": "8b0494c"}
"""Versions whose fits of few clusters give the same bits as another's with the same settings: one
line in the picture, under that other's name."""

METHODS = {
    "pixels": "k-means on the pixels",
    "pca": "PCA, k-means",
    "umap-kmeans": "UMAP, k-means",
    "umap-hdbscan": "UMAP, HDBSCAN",
    "dec": "DEC",
    "idec": "IDEC",
    "dcn": "DCN",
    "deepcluster": "**deepcluster**",
}
FULL = {"pretrain_epochs": 100, "clustering_epochs": 150}  # ClustPy's defaults
GPU_ROWS = [("mnist", 3, 10), ("fashion-mnist", 3, 10), ("cifar10", 10, 10), ("imagenette", 8, 10)]
GPU_ROWS += [("kmnist", 3, 10), ("svhn", 8, 10), ("stl10", 8, 10)]
GPU_ROWS += [("cifar100", 8, 100), ("cifar100:coarse", 8, 20)]
"""What benchmarks/gpu.py is to measure: set, minutes, clusters."""
PUBLISHED = {
    "iic": "IIC, table 1: DeepCluster, k = 10",
    "and": "AND, table 1: DeepCluster, AlexNet",
    "solo-learn": "solo-learn: DeepCluster v2, ResNet-18",
}
SCORES = {"acc": "ACC", "knn": "kNN", "linear_probe": "linear probe"}

IN_README = [("mnist", 10), ("fashion-mnist", 15), ("cifar10", 15), ("cifar10", 60)]
IN_README += [("imagenette", 15)]
"""Sets and minutes asked for; digits stand before them."""

Line = dict[str, Any]

# -- cells ------------------------------------------------------------------------------------


def spread(values: Iterable[float], form: str = "{:.3f}") -> str:
    """Mean and, of several, ± their standard deviation."""
    found = list(values)
    mean = form.format(statistics.mean(found))
    return f"{mean} ± {form.format(statistics.stdev(found))}" if len(found) > 1 else mean


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is words, the others are figures."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(line: Line) -> str:
    """What a line was measured on, and in which arithmetic."""
    facts = line["hardware"]
    if "gpu" in facts:
        return str(facts["gpu"])
    threads = "1 thread" if line["threads"] == 1 else f"{line['threads']} threads"
    faster = ", bfloat16" if line.get("precision") == "bfloat16" else ""
    return f"{facts['cpu']}{faster}, {threads} on {facts['cores']} cores"


def listed(values: Iterable[Any]) -> str:
    """Different values, in order, between commas."""
    return ", ".join(map(str, sorted(set(values))))


def together(lines: Iterable[Line], key: Callable[[Line], Any]) -> dict[Any, list[Line]]:
    """Lines by a key, in the order in which the keys come first."""
    groups: dict[Any, list[Line]] = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return groups


def sources(lines: list[Line]) -> str:
    """Where figures come from: machine, version and commands, for each machine."""
    parts = []
    for where, some in together(lines, machine).items():
        torch = listed(line["versions"]["torch"] for line in some)
        commands = dict.fromkeys(
            re.sub(r" (--seed|--out|--stop-after) \S+", "", line["command"]) for line in some
        )
        parts.append(f"{where}; torch {torch}:\n\n```sh\n" + "\n".join(commands) + "\n```")
    return "\n\n".join(parts)


# -- the three tables -------------------------------------------------------------------------


def note(line: Line) -> str:
    """What a method was given that is not its default, and what it found."""
    words = []
    settings = line["settings"]
    if "pretrain_epochs" in settings and settings != FULL:
        words.append(
            f"{settings['pretrain_epochs']} + {settings['clustering_epochs']} epochs "
            f"in place of {FULL['pretrain_epochs']} + {FULL['clustering_epochs']}"
        )
    if line["method"] == "deepcluster":
        words += [f"{name} {value:g}" for name, value in settings.items()]
    return "; ".join(words)


def quality(runs: list[Line]) -> str:
    """A table a set and machine, a row a method."""
    if not runs:
        return "Not measured."
    columns = ["method", "NMI", "ACC", "ARI", "clusters", "seconds", "processor s"]
    columns += ["seeds", "commit"]
    parts = []
    for (name, images, where), some in together(
        runs, lambda line: (line["set"], line["images"], machine(line))
    ).items():
        rows = []
        for method, title in METHODS.items():
            own = [line for line in some if line["method"] == method]
            rows += [
                [
                    title + (f" ({words})" if words else ""),
                    *(spread(line[score] for line in lines) for score in ("nmi", "acc", "ari")),
                    listed(line["clusters"] for line in lines),
                    spread((line["seconds"] for line in lines), "{:.1f}"),
                    spread((line["cpu_seconds"] for line in lines), "{:.1f}"),
                    listed(line["seed"] for line in lines),
                    listed(line["commit"] for line in lines),
                ]
                for words, lines in together(own, note).items()
            ] or [[title, "not measured", *[""] * 7]]
        parts.append(f"**{name}**, {images:,} images; {where}\n\n" + table(columns, rows))
    return "\n\n".join([*parts, sources(runs)])


def name_of(line: Line) -> str:
    """The set; the train split is meant where none is named."""
    return str(line["set"]).removesuffix("-train")


def trained(line: Line) -> tuple[str, float, int]:
    """What the seeds of a row share: the net and its image size, and how long it was trained.

    That is the minutes asked for, which come to other epochs from run to run, or else the epochs.
    """
    asked = line["minutes"] or 0.0
    return f"{line['backbone']}, {line['size']} px", asked, 0 if asked else int(line["epochs"])


def processor_minutes(line: Line) -> float:
    """Minutes of the processor; of the clock where only these are known."""
    return float(line.get("processor_seconds") or line["seconds"]) / 60


def fit_cells(lines: list[Line]) -> list[str]:
    """What a fit reached, over its seeds."""
    several = [
        f"{statistics.mean(line['kmeans_nmi'][k] for line in lines):.3f}"
        for k in lines[0]["kmeans_nmi"]
    ]
    return [
        spread((line["seconds"] / 60 for line in lines), "{:.1f}"),
        spread(map(processor_minutes, lines), "{:.1f}"),
        *(spread(line["fit"][score] for line in lines) for score in ("nmi", "acc", "ari")),
        spread(line["pixels"]["nmi"] for line in lines),
        spread(line["knn"] for line in lines),
        spread(line["linear_probe"] for line in lines),
        " / ".join(several),
        listed(line["seed"] for line in lines),
        listed(line["commit"] for line in lines),
    ]


FIT_COLUMNS = ["took", "processor", "NMI", "ACC", "ARI", "pixels NMI", "kNN", "linear probe"]
FIT_COLUMNS += ["k-means 10 / 20 / 50 / 100", "seeds", "commit"]


def fits(runs: list[Line]) -> str:
    """A row a set, its net and how long it was trained."""
    if not runs:
        return "Not measured."
    runs = sorted(
        runs,
        key=lambda line: (
            line["set"],
            line["images"],
            machine(line),
            line["minutes"] or 0,
            line["epochs"],
            line["seed"],
        ),
    )
    groups = together(
        runs,
        lambda line: (name_of(line), line["images"], *trained(line), machine(line), line["commit"]),
    )
    rows = []
    for (name, images, net, asked, _, where, _), lines in groups.items():
        cells = [f"{name}, {images:,}; {where}", f"{asked:g}" if asked else "–", net]
        rows.append([*cells, listed(line["epochs"] for line in lines), *fit_cells(lines)])
    columns = ["images", "minutes asked for", "net", "epochs", *FIT_COLUMNS]
    return table(columns, rows) + "\n\n" + sources(runs)


def gpu(runs: list[Line]) -> str:
    """A row a set and its minutes, the planned ones too."""
    figures = ["images/s", "GFLOP an image", "share of peak", "peak TFLOP/s"]
    columns = ["images", "minutes", *FIT_COLUMNS, *figures]
    measured = together(
        runs,
        lambda line: (name_of(line), f"{line['minutes']:g}", machine(line), line["commit"]),
    )
    rows = []
    for (name, minutes, where, _), lines in measured.items():
        figure = {
            "images_per_second": (1, "{:,.0f}"),
            "flop_per_image": (1e9, "{:.3f}"),
            "share_of_peak": (0.01, "{:.1f} %"),
            "peak_flop_per_second": (1e12, "{:.1f}"),
        }
        cells = [
            spread((line[field] / unit for line in lines), form)
            for field, (unit, form) in figure.items()
        ]
        images = f"{name}, {lines[0]['images']:,}; {where}"
        rows.append([images, minutes, *fit_cells(lines), *cells])
    done = {(name, minutes) for name, minutes, *_ in measured}
    commands = []
    for name, minutes, clusters in GPU_ROWS:
        if (name.replace(":", "-"), f"{minutes:g}") not in done:
            rows.append([name, f"{minutes:g}", "not measured", *[""] * (len(columns) - 3)])
            many = "" if clusters == 10 else f" --clusters {clusters}"
            commands.append(f"python benchmarks/gpu.py --set {name} --minutes {minutes}{many}")
    text = table(columns, rows)
    if commands:
        todo = "\n".join(commands)
        text += "\n\nWhat measures the others, each in one call (downloads the set):"
        text += f"\n\n```sh\n{todo}\n```"
    return f"{text}\n\n{sources(runs)}" if runs else text


def published(runs: list[Line]) -> str:
    """A row a published figure: what it says, what was measured here."""
    import published as script

    rows = []
    for name, title in PUBLISHED.items():
        own = [line for line in runs if line["row"] == name]
        task = script.ROWS[name]
        for score, value in task["published"].items():
            cells = ["not measured", "", ""]
            if own:
                cells = [
                    spread(line["scores"][score] for line in own),
                    listed(line["epochs"] for line in own),
                    f"{listed(map(machine, own))}; {listed(line['commit'] for line in own)}",
                ]
            command = f"`python benchmarks/published.py --data FOLDER --row {name} --minutes 9`"
            words = [title, SCORES[score], task["measured"], f"{value:.4g}", *cells, command]
            rows.append(words)
    head = ["CIFAR-10", "score", "on", "published", "here", "epochs", "where", "command"]
    return table(head, rows)


def paper(runs: list[Line]) -> str:
    """What a whole run of the paper's recipe would cost, a sentence a machine."""
    script = (
        "`python benchmarks/paper_cost.py --photographs FILE.parquet --device cuda --batch 256`"
    )
    said = []
    for line in runs:
        whole = line["whole"]
        said.append(
            f"{machine(line)}: {whole['hours']:,.0f} hours, {whole['epoch_hours']:.1f} an epoch "
            f"({whole['kmeans_share']:.0%} of it PCA and k-means), and {whole['decode_hours']:.1f} "
            f"to decode once; {whole['memory_gb']:.0f} GB of memory, {whole['disk_gb']:.0f} GB of "
            "disk."
        )
    if not any("gpu" in line["hardware"] for line in runs):
        said.append(f"On a GPU: not measured; {script} does.")
    return "\n".join(f"- {sentence}" for sentence in said)


# -- the README's table -----------------------------------------------------------------------


def readme(runs: list[Line], peers: list[Line]) -> str:
    """A row a set, machine and version: what the default recipe reaches."""
    rows = []
    digits = [line for line in peers if line["set"] == "digits"]
    pixels = [line for line in digits if line["method"] == "pixels"]
    for (_, _, asked), own in together(
        [line for line in digits if line["method"] == "deepcluster"],
        lambda line: (machine(line), line["commit"], line["settings"]["minutes"]),
    ).items():
        title = f"digits, {own[0]['images']:,} at 8 px"
        rows.append([title, both(pixels), *reached(own, own, asked)])
    for name, asked in IN_README:
        some = [line for line in runs if (name_of(line), line["minutes"]) == (name, asked)]
        for own in together(some, lambda line: (machine(line), line["commit"])).values():
            title = f"{name}, {own[0]['images']:,} at {own[0]['size']} px"
            pixels = [line["pixels"] for line in own]
            rows.append([title, both(pixels), *reached([line["fit"] for line in own], own, asked)])
    head = ["images", "plain k-means on the pixels", "default recipe", "took", "commit"]
    return table(head, rows)


def both(scores: list[Line]) -> str:
    """NMI and ACC, means over the seeds."""
    nmi, acc = (statistics.mean(line[score] for line in scores) for score in ("nmi", "acc"))
    return f"NMI {nmi:.3f} / ACC {acc:.3f}"


def reached(scores: list[Line], lines: list[Line], asked: float) -> list[str]:
    """The last cells: scores, minutes, and the version."""
    words = f"{spread(line['nmi'] for line in scores)} / {spread(line['acc'] for line in scores)}"
    count = len(lines)
    took = statistics.mean(line["seconds"] for line in lines) / 60
    cores = "one core" if lines[0]["threads"] == 1 else f"{lines[0]['threads']} cores"
    return [
        f"{words}, {count} seed{'s' if count > 1 else ''}",
        f"{took:.1f} minutes on {cores} (`--minutes {asked:g}`)",
        lines[0]["commit"],
    ]


def logged(row: str, column: str) -> str:
    """A cell of the table of starts in the log, which says its seeds and its machine."""
    text = LOG.read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    head = next(cells for cells in lines if column in cells)
    cells = next(cells for cells in lines[lines.index(head) :] if cells and cells[0] == row)
    nmi = cells[head.index(column)].strip("*").split()[0]
    return f"{float(nmi):.3f}"


def first(peers: list[Line], sizes: list[Line]) -> str:
    """NMI of a few kinds of images, for the README's first screen."""

    def of(name: str, method: str) -> str:
        scores = [line["nmi"] for line in peers if (line["set"], line["method"]) == (name, method)]
        return f"{statistics.mean(scores):.3f}" if scores else "not measured"

    def unequal(name: str, ratio: int | None, method: str) -> str:
        lines = [line for found in sizes for line in found["lines"]]
        scores = [
            line["nmi"][method] for line in lines if (line["set"], line["ratio"]) == (name, ratio)
        ]
        return f"{statistics.mean(scores):.3f}" if scores else "not measured"

    def row(title: str, name: str, frozen: str) -> list[str]:
        ours = (of(name, method) for method in ("pixels", "umap-hdbscan"))
        return [title, *ours, frozen, of(name, "deepcluster")]

    def uneven_row(title: str, name: str, ratio: int | None) -> list[str]:
        given = [f"{unequal(name, ratio, method)} \\*" for method in ("k-means", "HDBSCAN")]
        return [title, *given, "not measured", unequal(name, ratio, "ours")]

    rows = [
        row("1,797 digits", "digits", logged("digits", "frozen 160 px")),
        row("10,000 photographs (CIFAR-10)", "cifar10", logged("CIFAR-10", "frozen 160 px")),
        [
            "the same, with `--start adapt`",
            "",
            "",
            "",
            logged("CIFAR-10", "adapted by the product"),
        ],
        uneven_row("blood cells, 4,153 / 372 / 361", "blood", None),
        uneven_row("MNIST, the largest group 50 times the smallest", "mnist", 50),
    ]
    head = ["NMI", "k-means on the pixels", "UMAP, HDBSCAN", "a frozen net"]
    return table([*head, "deepcluster"], rows)


# -- the documents ----------------------------------------------------------------------------


def read(pattern: str) -> list[Line]:
    """The results in files of that name."""
    paths = sorted(RESULTS.glob(pattern))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def budgets(runs: list[Line]) -> dict[str, list[Line]]:
    """The fits of the sets that were asked for in several minutes, by set, machine and version."""
    groups = together(
        [line for line in runs if line["minutes"]],
        lambda line: (
            f"{name_of(line)}, {line['images']:,}; {machine(line)}; "
            f"{SAME.get(line['commit'], line['commit'])}"
        ),
    )
    return {
        name: lines for name, lines in groups.items() if len({trained(line) for line in lines}) > 1
    }


def draw(runs: list[Line]) -> None:
    """NMI against minutes; k-means on the pixels as a dashed line."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "deepcluster"  # the same file from the same figures
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, (name, lines) in enumerate(budgets(runs).items()):
        colour = f"C{number}"
        groups = together(sorted(lines, key=processor_minutes), trained)
        nmi = [[line["fit"]["nmi"] for line in some] for some in groups.values()]
        axes.errorbar(
            [statistics.mean(map(processor_minutes, some)) for some in groups.values()],
            [statistics.mean(values) for values in nmi],
            [statistics.stdev(values) if len(values) > 1 else 0 for values in nmi],
            marker="o",
            capsize=3,
            color=colour,
            label=name,
        )
        pixels = statistics.mean(line["pixels"]["nmi"] for line in lines)
        axes.axhline(pixels, color=colour, linestyle="--", linewidth=0.8)
    axes.set(xlabel="minutes of the processor", ylabel="NMI", xlim=(0, None), ylim=(0, 1))
    axes.legend(fontsize="small")
    figure.savefig(PICTURE, metadata={"Date": None})
    plt.close(figure)


def picture(runs: list[Line]) -> str:
    """The picture's place in the document."""
    if not budgets(runs):
        return "No set has been measured with more than one length of training yet."
    return (
        "![NMI against minutes](images/minutes.svg)\n\n"
        "Mean and standard deviation over the seeds; dashed: k-means on the pixels. Versions that "
        "give the same bits are one line."
    )


def uneven(found: list[Line]) -> str:
    """Clusters of unequal sizes: a row a set and ratio, the median of all at each ratio last."""
    lines = [line for each in found for line in each["lines"]]
    if not lines:
        return "Not measured yet."
    methods = list(lines[0]["nmi"])

    def row(first: list[str], some: list[Line], middle: Callable[[list[float]], str]) -> list[str]:
        scores = [middle([line["nmi"][method] for line in some]) for method in methods]
        return [*first, *scores]

    rows = []
    for (name, ratio), some in together(lines, lambda line: (line["set"], line["ratio"])).items():
        sizes = listed(line["smallest"] for line in some)
        chosen = ", ".join(str(line["chosen"]) for line in some)
        first = [name, "as it is" if ratio is None else f"{ratio} to 1", sizes]
        rows.append([*row(first, some, spread), f"{chosen} of {some[0]['classes']}"])
    parts = [line for line in lines if line["ratio"] is not None]
    for ratio, some in together(parts, lambda line: line["ratio"]).items():
        first = ["**median**", f"{ratio} to 1", ""]
        rows.append([*row(first, some, lambda scores: f"{statistics.median(scores):.3f}"), ""])
    error = statistics.mean(line["chosen_error"] for line in lines)
    head = ["", "sizes", "smallest", *methods, "number chosen"]
    facts = found[0]
    return (
        f"{table(head, rows)}\n\nMean |ln(chosen / true)|: {error:.3f}. "
        f"{machine(facts)}; commit {facts['commit']}; `{facts['command']}`"
    )


def few(lines: list[Line]) -> str:
    """A few labels: a row a set and number of labels, a column a way to use them."""
    if not lines:
        return "Not measured yet."

    def column(line: Line) -> str:
        if line["method"] in ("scratch", "pixels"):
            return str(line["method"])
        return f"{line['method']}, {'our fit' if line['net'] == 'ours' else line['net']}"

    found = {column(line) for line in lines}
    last = sorted(found - {"scratch", "pixels", "random, our fit", "ours, our fit"}, reverse=True)
    shown = ["scratch", "pixels", "random, our fit", "ours, our fit", *last]
    columns = [name for name in shown if name in found]
    sets = list(dict.fromkeys(line["set"] for line in lines))
    cells = together(lines, lambda line: (line["set"], line["labels"], column(line)))

    def accuracies(*key: Any) -> list[float]:
        return [line["accuracy"] for line in cells.get(key, [])]

    rows = []
    for labels in sorted({line["labels"] for line in lines}):
        for name in sets:
            figures = [accuracies(name, labels, way) for way in columns]
            rows.append([name, str(labels), *(spread(f) if f else "–" for f in figures)])
        means = []
        for way in columns:
            each = [accuracies(name, labels, way) for name in sets]
            full = all(each)
            means.append(f"{statistics.mean(map(statistics.mean, each)):.3f}" if full else "–")
        rows.append(["**mean**", str(labels), *means])
    told = [line for line in lines if "low" in line and line["set"] != "blood-cells"]
    parts = []
    for labels, some in sorted(together(told, lambda line: line["labels"]).items()):
        inside = sum(line["low"] <= line["accuracy"] <= line["high"] for line in some)
        parts.append(f"{inside} of {len(some)} with {labels}")
    given = listed(line["given"] for line in lines if "given" in line)
    words = f" scratch: {given} s of the processor a draw." if given else ""
    return (
        f"{table(['set', 'labels', *columns], rows)}\n\n±: over the draws.{words} What `teach` "
        "said beforehand, an interval for nine draws in ten, held the accuracy on the images that "
        f"were held back in {', '.join(parts)} labels (blood-cells, with balanced accuracy, left "
        f"out). Commit {listed(line['commit'] for line in lines)}. {sources(lines)}"
    )


def hourly(lines: list[Line]) -> str:
    """Labels an hour through the page, by the model of `benchmarks/labels_an_hour.py`."""
    if not lines:
        return "Not measured yet."
    rows = []
    for line in lines:
        rows += [
            [f"{line['set']}, {way}", *(f"{line[way][k]:,}" for k in ("labels", "acts", "an_hour"))]
            for way in ("one by one", "by groups")
        ]
    acts = lines[0]["seconds_an_act"]
    words = f"{acts['key']:g} s an image and its key, {acts['group']:g} s to look over a group, "
    words += f"{acts['click']:g} s to click one away, {acts['name']:g} s to type a new class"
    head = table(["", "labels", "acts", "labels an hour"], rows)
    return f"{head}\n\nA model, no person: {words}. {sources(lines)}"


def frozen(found: list[Line]) -> str:
    """Features of a frozen net: ours beside the plain loop and the best one by hand."""
    if not found:
        return "Not measured yet."
    rows = []
    for line in found:
        speeds = line["images_per_second"]
        hand = {name: each for name, each in speeds.items() if name.startswith("by hand")}
        best = max(hand, key=lambda name: hand[name])
        plain = max(
            (each for name, each in hand.items() if "contiguous_format, float32" in name),
            default=None,
        )
        rows.append(
            [
                f"{line['backbone']}, {line['size']} px; {machine(line)}",
                f"{speeds['extract']:.1f}",
                f"{hand[best]:.1f} ({best.removeprefix('by hand: ')})",
                f"{speeds['extract'] / hand[best]:.2f}",
                "not measured" if plain is None else f"{plain:.1f}",
                line["commit"],
            ]
        )
    head = ["net", "images/s", "best loop by hand", "ratio", "as timm builds it", "commit"]
    return table(head, rows)


def regions(found: list[Line]) -> str:
    """Regions of drawn pictures: a row a kind of picture and way."""
    if not found:
        return "Not measured yet."
    facts = found[0]
    rows = [
        [line["pictures"], line["method"], spread(line["miou"]), spread(line["ari"]),
         listed(line["regions"]), f"{statistics.median(line['seconds']):.1f}"]
        for line in facts["lines"]
    ]  # fmt: skip
    head = ["", "way", "mIoU", "adjusted Rand", "regions", "processor s"]
    pictures = len(facts["lines"][0]["miou"])
    return (
        f"{table(head, rows)}\n\n{pictures} pictures of each kind. {machine(facts)}; commit "
        f"{facts['commit']}; `{facts['command']}`"
    )


def engines(found: list[Line]) -> str:
    """k-means beside its peers: a row a kind of rows, their number, their width and k."""
    if not found:
        return "Not measured yet."
    facts = found[0]
    names = list(facts["lines"][0]["seconds"])[1:]
    rows = []
    for line in facts["lines"]:
        middle = {name: statistics.median(each) for name, each in line["seconds"].items()}
        own = middle["deepcluster"]
        over = [f"{own / middle[name]:.2f}" if name in middle else "–" for name in names]
        cell = [f"{line[name]:,}" for name in ("rows", "features", "clusters")]
        rows.append([line["kind"], *cell, f"{own:.3f}", *over, f"{line['load']:.0f}"])
    head = ["", "rows", "features", "k", "seconds", *(f"over {name}" for name in names), "load"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return (
        f"{table(head, rows)}\n\n{machine(facts)}; {facts['clock']} time of {facts['threads']} "
        f"thread(s); kernels {', '.join(facts['kernels'])}; {versions}; commit {facts['commit']}; "
        f"`{facts['command']}`"
    )


def processes(found: list[Line]) -> str:
    """The same fit by several processes: seconds, and what a step sends."""
    if not found:
        return "Not measured yet."
    facts = found[0]
    first = facts["rows"][0]
    rows = [
        [f"{row['processes']} × {row['threads']}", f"{row['epoch']:.2f}",
         f"{first['epoch'] / row['epoch']:.2f}", f"{row['fit']:.1f}", str(row["messages"]),
         f"{row['bytes'] / 1e6:.1f} MB"]
        for row in facts["rows"]
    ]  # fmt: skip
    head = ["processes × threads", "s an epoch", "speed", "s the fit", "messages a step", "of"]
    what = f"{facts['epochs']} epochs, the median of {facts['repeats']} fits; {machine(facts)}"
    return f"{table(head, rows)}\n\n{_noise(facts)}, {what}; {_origin(facts)}"


def memory(found: list[Line]) -> str:
    """Memory of each of several processes beyond what it had before the images."""
    if not found:
        return "Not measured yet."
    facts = found[0]

    def cells(row: Line) -> list[str]:
        more = [a - b for a, b in zip(row["peak"], row["half"], strict=True)]
        more = [each * 1e5 / (facts["images"] / 2) for each in more]
        others = [f"{max(x[1:]) / 1e6:.0f}" if x[1:] else "–" for x in (row["peak"], more)]
        return [str(row["processes"]), f"{row['before'] / 1e6:.0f}",
                f"{row['peak'][0] / 1e6:.0f}", others[0], f"{more[0] / 1e6:.0f}",
                others[1]]  # fmt: skip

    head = ["processes", "MB before the images", "at the peak, more by: the first", "each other"]
    head += ["for 100,000 images more: the first", "each other"]
    rows = [cells(row) for row in facts["rows"]]
    return f"{table(head, rows)}\n\n{_noise(facts)}; {_origin(facts)}"


def reading(made: list[Line], decoded: list[Line], read: list[Line]) -> str:
    """What images cost before the net: views, decoding, a store that lies in a file."""
    rows, notes = [], []
    for facts in made:
        times = {name: statistics.median(each) for name, each in facts["milliseconds"].items()}
        own = times.pop("deepcluster")
        what = f"views of {facts['batch']} images, {facts['size']} px"
        beside = [f"{name} {time / own:.1f} times" for name, time in times.items()]
        rows.append([what, f"{own:.1f} ms", ", ".join(beside).replace("Loader", "Loader of two")])
        notes.append(facts)
    for facts in decoded:
        one, two = (statistics.median(facts["seconds"][workers]) for workers in "12")
        each = 1000 * statistics.median(facts["processor"]["1"]) / facts["images"]
        what = f"decoding {facts['images']} files to {facts['size']} px, one worker"
        told = f"{one / two:.2f} times as fast with two"
        rows.append([what, f"{one:.2f} s, {each:.2f} ms of processor an image", told])
        notes.append(facts)
    for facts in read:
        speeds = dict(facts["images_a_second"])
        beside = f"{speeds.pop('memory, at random'):,} from memory"
        what = f"images a second from a file of {facts['images']:,}, {facts['size']} px, "
        rows += [[what + name.removeprefix("file, "), f"{speed:,}", beside]
                 for name, speed in speeds.items()]  # fmt: skip
        notes.append(facts)
    if not rows:
        return "Not measured yet."
    told = [
        f"{machine(facts)}, load {facts['load']:.0f}, kernels {', '.join(facts['kernels'])}; "
        f"{_origin(facts)}"
        for facts in notes
    ]
    return "\n\n".join([table(["what", "ours", "beside it"], rows), *told])


def _noise(facts: Line) -> str:
    return (
        f"{facts['images']:,} images of noise, {facts['size']} pixels, {facts['backbone']}, "
        f"batches of {facts['batch']}"
    )


def _origin(facts: Line) -> str:
    return f"commit {facts['commit']}; `{facts['command']}`"


def fill(text: str) -> str:
    """A document, its marked places filled from the results."""
    found = RESULTS / "quality.json"
    peers = json.loads(found.read_text(encoding="utf-8")) if found.exists() else []
    timed = read("fit-*.json")
    filled = {
        "quality": quality(peers),
        "first": first(peers, read("uneven.json")),
        "readme": readme(timed, peers),
        "fits": fits(timed),
        "picture": picture(timed),
        "gpu": gpu(read("gpu-*.json")),
        "paper": paper(read("paper-cost-*.json")),
        "published": published(read("published-*.json")),
        "uneven": uneven(read("uneven.json")),
        "few": few([line for each in read("few-labels.json") for line in each]),
        "hourly": hourly([line for each in read("labels-an-hour.json") for line in each]),
        "frozen": frozen(read("frozen-*.json")),
        "regions": regions(read("segment.json")),
        "reading": reading(read("views.json"), read("decode.json"), read("read.json")),
        "engines": engines(read("kmeans.json")),
        "processes": processes(read("processes.json")),
        "processes-memory": memory(read("processes-memory.json")),
    }

    def place(match: re.Match[str]) -> str:
        return f"<!--{match[1]}-->\n{filled[match[1]]}\n<!--/-->"

    return re.sub(r"<!--([\w-]+)-->.*?<!--/-->", place, text, flags=re.DOTALL)


def main() -> None:
    """Write the documents, and the picture if there is something to see."""
    for document in DOCUMENTS:
        document.write_text(fill(document.read_text(encoding="utf-8")), encoding="utf-8")
    timed = read("fit-*.json")
    if budgets(timed):
        draw(timed)


if __name__ == "__main__":
    main()
