"""Why a port of DeepCluster stayed below plain k-means on CIFAR-10: one cause at a time.

    python benchmarks/why_it_failed.py --data FOLDER --seeds 0 1 2
    python benchmarks/why_it_failed.py --data FOLDER --variants port alone:C2 ladder:C7
    python benchmarks/why_it_failed.py --data FOLDER --variants all:10 all:100
    python benchmarks/why_it_failed.py --draw    # pictures and tables of docs/why-it-failed.md

FOLDER holds cifar10-train.parquet and cifar10-test.parquet (Hugging Face layout). The port's
choices are the recipe ``chainer``; its accidents, which are no settings of the product, are here:
a map that shrinks to 1×1, a loss scaled down by k over the batch, images that are not normalised,
batch norm behind the ReLU, and the authors' sampler, whose indices mean another order than its
loader's. ``port`` has them all; ``alone:C1`` is the port with that one cause undone, ``ladder:C3``
the port with all causes up to that one undone. Every run ends with the same measure: k-means
(k = 10, best of 10 starts) on the L2-normalised features, and the vote of the 20 nearest
neighbours among the other images. ``all:10`` and ``all:100`` train a net three times as wide for 30
epochs on all 50,000 images, in bfloat16 where the processor has it, and are tested on the test
split, too. Labels are for measuring only.

Runs that the results already hold are not repeated; each is written as it ends.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import record
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepcluster.training.loop as library
from deepcluster import metrics
from deepcluster.backbones.features import extract
from deepcluster.backbones.nets import Sobel
from deepcluster.backbones.preprocessing import Preprocessing
from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.pca import normalise
from deepcluster.config import Config, load_recipe, override
from deepcluster.device import Compute
from deepcluster.images.store import ImageStore, open_images
from deepcluster.machine import hardware
from deepcluster.methods.deepcluster import DeepCluster, uniform_order
from deepcluster.training.resolve import resolve

ROOT = Path(__file__).parents[1]
EVERY = 10  # every tenth image of CIFAR-10's train split
EPOCHS = 8
EPOCHS_OF_ALL = 30  # of the two runs on all images
CLASSES = 10

# -- the port's accidents ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shape:
    """The net. The defaults are the port's, at a third of its widths."""

    collapsed: bool = True
    """C1: 11×11 of stride 4 and two poolings leave a 32-pixel image a map of 1×1."""
    deep: bool = False
    """C4, undone: features are the second fully connected layer before its ReLU."""
    norm_all: bool = False
    """C11, undone: batch norm at every convolution, before the ReLU."""
    raw: bool = True
    """C8: images stay in [0, 1]."""
    sobel: bool = True
    """Edges of the grey image instead of the colours; the original's choice, too."""
    wide: bool = False
    """Three times as wide; with small strides that is half of what the port has."""


class Net(nn.Module):
    """AlexNet's four convolutions as in the port, or with small strides (about as cheap)."""

    def __init__(self, shape: Shape, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.shape = shape
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None])
        self.sobel = Sobel() if shape.sobel else nn.Identity()
        channels = 2 if shape.sobel else 3
        if shape.collapsed:
            widths, kernels, stride, first = (32, 96, 128, 128), (11, 5), 4, 0
            pool, last = nn.MaxPool2d(3, 2, ceil_mode=True), nn.Identity()  # 6 -> 3 -> 1
        else:
            widths, kernels, stride, first = (16, 48, 64, 64), (5, 3), 2, 2
            pool = last = nn.MaxPool2d(3, 2, 1)  # 16 -> 8 -> 4 -> 2
        a, b, c, d = (3 * width if shape.wide else width for width in widths)
        early, late = ("before", "before") if shape.norm_all else ("after", "none")
        self.maps = nn.Sequential(
            *convolution(channels, a, kernels[0], stride, first, early),
            pool,
            *convolution(a, b, kernels[1], 1, kernels[1] // 2, early),
            pool,
            *convolution(b, c, 3, 1, 1, late),
            *convolution(c, d, 3, 1, 1, late),
            last,
            nn.Flatten(),
        )
        wide = d if shape.collapsed else 4 * d
        # fc6 and fc7, as wide as the features (the port: 4096)
        layers = [nn.Linear(wide, wide), nn.ReLU(), nn.Dropout(), nn.Linear(wide, wide)]
        if shape.deep:
            self.maps.extend(layers)
            self.feature_activation: nn.Module = nn.ReLU()
        else:
            self.feature_activation = nn.Sequential(*layers, nn.ReLU(), nn.Dropout())
        for module in self.modules():  # Chainer's default: N(0, 1 / fan-in)
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """``(b, 3, 32, 32)``, normalised -> ``(b, d)``."""
        if self.shape.raw:
            images = images * self.std + self.mean
        features: Tensor = self.maps(self.sobel(images))
        return features


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int, padding: int, norm: str
) -> list[nn.Module]:
    """A convolution and its ReLU, with batch norm before the ReLU, after it, or none."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding)
    if norm == "none":
        return [layer, nn.ReLU()]
    rest = [nn.BatchNorm2d(outputs), nn.ReLU()]
    return [layer, *(rest if norm == "before" else rest[::-1])]


class ScaledLoss(DeepCluster):
    """C2: weights of one over the label's count in the batch, a sum divided by the batch."""

    def loss(self, views: list[Tensor], index: Tensor) -> Tensor:
        """A k-th over b of what it should be, while all labels are in the batch."""
        logits, labels = self.logits(views[0]).float(), self.labels[index]
        weight = 1 / (torch.bincount(labels, minlength=self.k) + 1e-5)
        return F.cross_entropy(logits, labels, weight, reduction="sum") / len(labels)


class MisreadSampler(DeepCluster):
    """O1: a uniform draw of the images' indices, read as places in the list by cluster."""

    def order(self, generator: torch.Generator) -> Tensor:
        """As skewed as the clusters are."""
        return torch.argsort(self.labels, stable=True)[uniform_order(self.labels, generator)]


# -- the variants -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cure:
    """What undoes one cause."""

    title: str
    shape: dict[str, bool] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    method: type[DeepCluster] | None = None


CURES = {
    "C1": Cure("small strides: a map of 2×2 instead of 1×1", {"collapsed": False}),
    "C2": Cure("loss divided by the sum of its weights", method=DeepCluster),
    "C3": Cure(
        "head drawn anew at each clustering",
        settings={"deepcluster.reset_head": True, "deepcluster.head_momentum": 0.0},
    ),
    "C4": Cure("features before the ReLU, of the second full layer", {"deep": True}),
    "C5": Cure(
        "PCA whitened, 256 dimensions",
        settings={"deepcluster.whiten": True, "deepcluster.pca": 256},
    ),
    "C6": Cure(
        "k-means on all images, another seed each time",
        settings={"kmeans.max_points_per_centre": 0, "deepcluster.fixed_kmeans_seed": False},
    ),
    "C7": Cure("100 pseudo-clusters", settings={"deepcluster.pseudo_clusters": 100}),
    "C8": Cure("images normalised", {"raw": False}),
    "C9": Cure("random crops", settings={"views.preset": "paper"}),
    "C11": Cure("batch norm everywhere, before the ReLU", {"norm_all": True}),
    "C12": Cure(
        "learning rate .05, weight decay 1e-5",
        settings={
            "train.lr": 0.05,
            "deepcluster.head_lr": 0.05,
            "train.weight_decay": 1e-5,
        },
    ),
    "sampler": Cure(
        "uniform sampler instead of weights", settings={"deepcluster.balance": "sampler"}
    ),
    "colour": Cure(
        "colours instead of Sobel's edges, jittered",
        {"sobel": False},
        {"views.preset": "small-photo"},
    ),
}
ALONE = [name for name in CURES if name.startswith("C")]
LADDER = list(CURES)[1:]  # its first rung is alone:C1
OTHERS = {
    "untrained:port": "the port's net, untrained",
    "untrained:C12": "the net with all causes undone, untrained",
    "untrained:colour": "the same in colour, untrained",
    "untrained:methods": "its last map, untrained",
    "sampler:misread": "the authors' sampler, as its indices are read",
    "sampler:none": "neither sampler nor weights",
    "v2": "`deepcluster-v2`",
    "default": "`contrastive-clusters`",
}
VARIANTS = ["port", *(f"alone:{c}" for c in ALONE), *(f"ladder:{c}" for c in LADDER), *OTHERS]

MEASURE = {"epochs": EPOCHS, "clusters": CLASSES, "device": "cpu", "train.precision": "float32"}
PLAIN_END = {"final.pca": 0, "final.restarts": 1}  # the measure's own k-means comes after


def cures_of(variant: str) -> list[Cure]:
    """The causes undone in a variant of the port."""
    kind, _, name = variant.partition(":")
    if kind == "port" or name == "port":
        return []
    if kind == "alone":
        return [CURES[name]]
    last = {"sampler": "sampler", "all": "colour"}.get(kind, name)
    names = list(CURES)
    return [CURES[name] for name in names[: names.index(last) + 1]]


def build(
    variant: str, store: ImageStore, seed: int
) -> tuple[Config, nn.Module, type[DeepCluster] | None]:
    """Settings, net and method of a variant; None is the library's method of that name."""
    preprocessing = Preprocessing.measure(store)
    config = override(Config(), {**MEASURE, "seed": seed})
    method: type[DeepCluster] | None = None
    if variant in ("v2", "default", "untrained:methods"):
        if variant == "v2":
            config = override(config, {"method": "deepcluster-v2"})
        shape = Shape(collapsed=False, norm_all=True, raw=False, sobel=False)
    else:
        changed: dict[str, bool] = {}
        method = ScaledLoss
        config = override(config, {**load_recipe("chainer"), **MEASURE, **PLAIN_END})
        for cure in cures_of(variant):
            changed |= cure.shape
            config = override(config, cure.settings)
            method = cure.method or method
        if variant == "sampler:misread":
            method = MisreadSampler
        elif variant == "sampler:none":
            config = override(config, {"deepcluster.balance": "none"})
        elif variant == "all:10":
            config = override(config, {"deepcluster.pseudo_clusters": CLASSES})
        if variant.startswith("all"):
            config = override(config, {"epochs": EPOCHS_OF_ALL, "train.precision": "auto"})
            changed["wide"] = True
        shape = Shape(**changed)
    torch.manual_seed(seed)
    net = Net(shape, preprocessing)
    config = resolve(config, n=len(store), size=store.size, channels=store.channels)
    return config, net, method


# -- a run ------------------------------------------------------------------------------------


def scores(embeddings: Tensor, truth: np.ndarray) -> dict[str, float]:
    """The measure: k-means with as many clusters as classes, and the neighbours' vote."""
    generator = torch.Generator().manual_seed(0)
    found = kmeans(embeddings, CLASSES, n_init=10, max_iter=300, generator=generator).labels
    clusters = found.numpy()
    return {
        "nmi": metrics.nmi(clusters, truth),
        "acc": metrics.acc(clusters, truth),
        "knn": metrics.knn(embeddings.numpy(), truth, np.random.default_rng(0)),
        "rank": metrics.effective_rank(embeddings.numpy()),
    }


@torch.no_grad()
def head_clusters(method: DeepCluster, store: ImageStore) -> np.ndarray:
    """C10: what the head answers for each training image, in evaluation mode."""
    method.eval()

    def answer(images: Tensor) -> Tensor:
        return method.logits(images)

    net = Answer(answer)
    logits = extract(net, store, Preprocessing.measure(store), Compute(torch.device("cpu")))
    return logits.argmax(1).numpy()


class Answer(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        """``(b, c, h, w)`` -> ``(b, k)``."""
        return self.function(images)


def run(
    variant: str,
    seed: int,
    store: ImageStore,
    truth: np.ndarray,
    test: tuple[ImageStore, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Train a variant and measure it; the fit itself sees no labels."""
    start = time.process_time()
    config, net, method = build(variant, store, seed)
    if variant.startswith("untrained"):
        device = torch.device("cpu")
        features = extract(net, store, Preprocessing.measure(store), Compute(device))
        return scores(normalise(features), truth) | {"seconds": time.process_time() - start}
    made: list[Any] = []
    load = library.load_method

    def make(*arguments: Any) -> Any:
        made.append((method or load(config.method))(*arguments))
        return made[0]

    def no_map(x: Tensor, **options: Any) -> Tensor:
        return torch.full((len(x), 2), torch.nan)

    with (
        mock.patch.object(library, "load_method", lambda name: make),  # the head is looked at below
        mock.patch.object(library, "layout", no_map),  # the map is not looked at
    ):
        result = library.fit(store, config, backbone=net)
    record = scores(torch.from_numpy(result.embeddings), truth)
    record |= {"own_nmi": metrics.nmi(result.labels, truth)}
    record |= {"own_acc": metrics.acc(result.labels, truth)}
    if isinstance(made[0], DeepCluster):
        answers = head_clusters(made[0], store)
        record |= {"head_nmi": metrics.nmi(answers, truth)}
        record |= {"head_used": len(np.unique(answers))}
        drawn = made[0].labels[made[0].order(torch.Generator().manual_seed(seed))]
        record |= {"evenness": metrics.occupancy(drawn.numpy(), made[0].k)["entropy"]}
        raw = metrics.occupancy(made[0].labels.numpy(), made[0].k)
        record |= {"evenness_of_clusters": raw["entropy"], "largest": raw["largest"]}
    if test is not None:
        asked = result.model.embed(test[0], Compute(torch.device("cpu"))).numpy()
        rng, train = np.random.default_rng(0), (result.embeddings, truth)
        record |= {"knn_test": metrics.knn(asked, test[1], rng, train)}
        record |= {"linear_test": metrics.linear_probe(asked, test[1], rng, train)}
        record |= {"images": len(store), "epochs": config.epochs}
        record |= {"precision": config.train.precision}
    last = result.history[-1]
    record |= {name: last[name] for name in ("loss", "ln_k", "nmi_previous") if name in last}
    record |= {"first_loss": result.history[0]["loss"]}
    return record | {"seconds": time.process_time() - start}


def plain_kmeans(store: ImageStore, truth: np.ndarray) -> dict[str, float]:
    """The yardstick, on the same images: k-means on the pixels, and their neighbours' vote."""
    start = time.process_time()
    pixels = torch.from_numpy(store.pixels.reshape(len(store), -1)).float() / 255
    generator = torch.Generator().manual_seed(0)
    found = kmeans(pixels, CLASSES, n_init=10, max_iter=300, generator=generator).labels.numpy()
    return {
        "nmi": metrics.nmi(found, truth),
        "acc": metrics.acc(found, truth),
        "knn": metrics.knn(pixels.numpy(), truth, np.random.default_rng(0)),
        "seconds": time.process_time() - start,
    }


def subset(path: Path, every: int) -> tuple[ImageStore, np.ndarray]:
    """Every so manieth image, without its label, and the labels for measuring."""
    store = open_images(path)
    return record.part_of(store, np.arange(0, len(store), every))


# -- results ----------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """The results so far."""
    return json.loads(path.read_text()) if path.exists() else {"setting": {}, "runs": []}


def write(path: Path, results: dict[str, Any]) -> None:
    """All results, a line a run."""
    lines = ",\n  ".join(json.dumps(line) for line in results["runs"])
    setting = json.dumps(results["setting"], indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"setting": {setting},\n "runs": [\n  {lines}\n]}}\n')


def rounded(record: dict[str, Any]) -> dict[str, Any]:
    """Five digits are enough."""
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()}


# -- pictures and tables ----------------------------------------------------------------------

DOCUMENT = ROOT / "docs/why-it-failed.md"
PICTURES = ROOT / "docs/images"
Rows = list[tuple[str, str]]  # a variant and what it is called


def title(variant: str) -> str:
    """What a variant is called in tables and pictures."""
    name = variant.partition(":")[2]
    if variant == "port":
        return "the port as it was"
    if variant in OTHERS:
        return OTHERS[variant]
    return f"{name}: {CURES[name].title}" if name in ALONE else CURES[name].title


def values(runs: list[dict[str, Any]], variant: str, name: str) -> list[float]:
    """A figure of a variant, a value a seed."""
    return [line[name] for line in runs if line["variant"] == variant and name in line]


def number(value: float) -> str:
    """Three digits, without the nought before the point."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.3f}")


def spread(runs: list[dict[str, Any]], variant: str, name: str) -> str:
    """Mean ± standard deviation over the seeds; a dash if it was not measured."""
    found = values(runs, variant, name)
    if not found:
        return "–"
    mean = number(statistics.mean(found))
    return f"{mean} ± {number(statistics.stdev(found))}" if len(found) > 1 else mean


def table(runs: list[dict[str, Any]], rows: Rows, columns: dict[str, str]) -> str:
    """A Markdown table: a row a variant, a column a figure."""
    heads = [*columns.values(), "seeds"]
    lines = ["|  | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for variant, text in rows:
        cells = [spread(runs, variant, name) for name in columns]
        cells.append(str(len(values(runs, variant, "nmi"))))
        lines.append(f"| {text} | " + " | ".join(cells) + " |")
    return "\n" + "\n".join(lines) + "\n"


def picture(path: Path, runs: list[dict[str, Any]], rows: Rows, line: str, heading: str) -> None:
    """A dot a seed and a bar for their mean, a row a variant, beside k-means on the pixels."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "deepcluster"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.4, 0.8 + 0.3 * len(rows)), layout="constrained")
    yardstick = values(runs, "pixels", "nmi")[0]
    reference = statistics.mean(values(runs, line, "nmi"))
    axes.axvline(yardstick, color="#c0392b", lw=1.2)
    axes.axvline(reference, color="#999999", lw=1.2, ls=":")
    for y, (variant, _) in enumerate(rows):
        found = values(runs, variant, "nmi")
        if found:
            colour = "#1f5f8b" if statistics.mean(found) > yardstick else "#8fa3b0"
            axes.barh(y, statistics.mean(found), height=0.62, color=colour, alpha=0.55)
            axes.plot(found, [y] * len(found), "o", ms=3.5, color="#222222")
        else:
            axes.text(0, y, " not run", color="#999999", fontsize=8, va="center")
    axes.set_yticks(range(len(rows)), [text.replace("`", "") for _, text in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -1.4)
    side = "left" if 2 * yardstick < axes.get_xlim()[1] else "right"
    axes.text(yardstick, -0.75, " k-means on the pixels ", color="#c0392b", fontsize=8, ha=side)
    axes.set_xlabel("NMI with the ten classes, of k-means (k = 10) on the features", fontsize=9)
    axes.set_title(heading, fontsize=10, loc="left")
    axes.set_xlim(0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    pyplot.close(figure)


def draw(results: dict[str, Any]) -> None:
    """Make the pictures, and fill the document's marked places: ``<!--name-->…<!--/-->``."""
    runs = results["runs"]
    alone = [(v, title(v)) for v in VARIANTS if v.startswith("alone:")]
    rungs = [(v, "+ " + title(v)) for v in VARIANTS if v.startswith("ladder:")]
    ladder = [("port", title("port")), ("alone:C1", "+ " + title("alone:C1")), *rungs]
    methods = [(v, title(v)) for v in ("v2", "default")]
    yardstick = [("pixels", "k-means on the pixels")]
    untrained = [(v, title(v)) for v in OTHERS if v.startswith("untrained")]
    columns = {"nmi": "NMI", "acc": "ACC", "knn": "kNN", "head_nmi": "NMI of the head's answer"}
    sampler = [
        ("ladder:C12", "weights over all images"),
        ("ladder:sampler", "uniform sampler"),
        ("sampler:misread", OTHERS["sampler:misread"]),
        ("sampler:none", OTHERS["sampler:none"]),
    ]
    evenness = {"evenness_of_clusters": "evenness of the clusters", "evenness": "of what is drawn"}
    port = [("port", title("port"))]
    filled = {
        "alone": table(runs, [*yardstick, *untrained[:1], *port, *alone], columns),
        "ladder": table(runs, [*yardstick, *untrained, *ladder, *methods], columns),
        "sampler": table(runs, sampler, {"nmi": "NMI", "knn": "kNN", **evenness}),
        "own": table(runs, methods, {"own_nmi": "NMI", "own_acc": "ACC"}),
        "all": table(
            runs,
            [("all:10", "k = 10"), ("all:100", "k = 100")],
            {"nmi": "NMI", "acc": "ACC", "knn_test": "kNN", "linear_test": "linear"},
        ),
    }
    for line in runs:
        for name, value in line.items():
            if isinstance(value, float) and name != "seconds":
                filled[f"{line['variant']}.{name}"] = spread(runs, line["variant"], name)
        taken = values(runs, line["variant"], "seconds")
        if taken:
            filled[f"{line['variant']}.seconds"] = f"{statistics.mean(taken):.0f}"
    filled |= {f"setting.{name}": f"{value}" for name, value in results["setting"].items()}
    small = [line for line in runs if not line["variant"].startswith("all:")]
    filled["total.minutes"] = f"{sum(line.get('seconds', 0) for line in small) / 60:.0f}"
    filled["total.runs"] = str(len(small))
    filled["total.seeds"] = str(max(line["seed"] for line in runs) + 1)

    def place(match: re.Match[str]) -> str:
        return f"<!--{match[1]}-->{filled.get(match[1], '(not measured)')}<!--/-->"

    text = DOCUMENT.read_text(encoding="utf-8")
    text = re.sub(r"<!--([\w:.-]+)-->.*?<!--/-->", place, text, flags=re.DOTALL)
    DOCUMENT.write_text(text, encoding="utf-8")
    picture(
        PICTURES / "why-it-failed-alone.svg",
        runs,
        [*port, *alone],
        "port",
        "The port, with one cause undone at a time",
    )
    picture(
        PICTURES / "why-it-failed-ladder.svg",
        runs,
        [*ladder, *methods],
        "port",
        "The causes undone one after the other; then two later methods",
    )


def main() -> None:
    """Run what is missing, or draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of cifar10-train.parquet")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/why-it-failed.json")
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after these")
    parser.add_argument("--draw", action="store_true")
    args = parser.parse_args()
    if args.draw:
        draw(read(args.out))
        return
    began = time.perf_counter()
    torch.set_num_threads(1)
    store, truth = subset(args.data / "cifar10-train.parquet", EVERY)
    results = read(args.out)
    results["setting"] |= {
        "images": len(store),
        "every": EVERY,
        "epochs": EPOCHS,
        "processor": hardware(Config(device="cpu"))["cpu"],
        "threads": 1,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    done = {(line["variant"], line["seed"]) for line in results["runs"]}
    commit = record.commit()
    for seed in args.seeds:
        for variant in ["pixels", *args.variants] if seed == 0 else args.variants:
            if (variant, seed) in done:
                continue
            if time.perf_counter() - began > 60 * args.minutes:
                print("out of time")
                return
            if variant == "pixels":
                found = plain_kmeans(store, truth)
            elif variant.startswith("all"):
                whole = subset(args.data / "cifar10-train.parquet", 1)
                test = subset(args.data / "cifar10-test.parquet", 1)
                found = run(variant, seed, *whole, test)
            else:
                found = run(variant, seed, store, truth)
            line = {"variant": variant, "seed": seed, "commit": commit, **rounded(found)}
            results["runs"].append(line)
            write(args.out, results)
            shown = ("nmi", "acc", "knn", "head_nmi", "first_loss", "loss", "seconds")
            text = "  ".join(f"{name} {line[name]:.3f}" for name in shown if name in line)
            print(f"{variant:16} {seed}  {text}", flush=True)


if __name__ == "__main__":
    main()
