"""What a few labels give: ways to use 10 to 1,000 of them, with the spread over five draws.

    python benchmarks/few_labels.py --features digits.npz --set digits --images digits
    python benchmarks/few_labels.py --features mnist.npz --set mnist \
        --images FOLDER/mnist-train.parquet --methods scratch --labels 40 --draws 3
    python benchmarks/few_labels.py --weights local-dir:FOLDER --net NAME --set mnist \
        --images FOLDER/mnist-train.parquet --features new.npz

A features file holds `x` ``(n, d)``, `y` ``(n,)`` classes and, where its rows are not all of the
images in their order, `index` ``(n,)``. `--features-of RUN` makes one of a run folder whose images
have labels, `--weights` one of a net that exists, as it is. Each draw takes `--rows` images and
holds three tenths of them back, the same for every method: no label comes from them, no class
spreads over them, and accuracy is measured on them. (The net of a run saw them without labels,
where its fit was of all images.)

- scratch: a net of the kind that the fit uses, from scratch, on the labelled images alone, with
  shifts, small turns and changes of contrast; AdamW, `--seconds` of the processor.
- pixels: logistic regression on the pixels of randomly drawn images.
- random: logistic regression on the features of the same images.
- ours: images from `suggest`, classifier from `teach`; beyond 40 labels in rounds of 40, 100, 250,
  1,000, as a person would.

scratch and pixels see images of 32 pixels or less. On blood-cells, whose classes are very unequal,
the figure is the balanced accuracy.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from deepcluster import metrics
from deepcluster.backbones.build import build_backbone
from deepcluster.backbones.start import find_weights
from deepcluster.images.store import open_images
from deepcluster.labelling.candidates import Pool
from deepcluster.labelling.classifier import Taught, teach
from deepcluster.labelling.spread import neighbour_graph
from deepcluster.labelling.suggest import suggest
from deepcluster.run import RunDir

LABELS = (10, 40, 100, 250, 1000)
BALANCED = {"blood-cells"}


def score(name: str, predicted: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy, balanced where the set's classes are unequal."""
    if name in BALANCED:
        return metrics.balanced_accuracy(predicted, truth)
    return float((predicted == truth).mean())


def logistic(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Classes of `test`; with labels of one class alone, that class."""
    if len(np.unique(y)) < 2:
        return np.full(len(test), y[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=10, max_iter=500).fit(x, y).predict(test)


def scratch(
    pixels: np.ndarray, y: np.ndarray, test: np.ndarray, *, net: str, seconds: float, seed: int
) -> np.ndarray:
    """Classes of `test` by a net that saw the labelled images alone, ``(n, h, w, c)`` uint8."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x, held = (torch.from_numpy(p).permute(0, 3, 1, 2).float() / 255 for p in (pixels, test))
    mean, std = x.mean(), x.std()
    backbone = build_backbone(net, channels=x.shape[1], size=x.shape[-1])
    head = torch.nn.Linear(backbone.num_features, int(y.max()) + 1)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.05)
    labels = torch.from_numpy(y)
    start = time.process_time()
    while (gone := (time.process_time() - start) / seconds) < 1:
        some = torch.randint(len(x), (min(64, max(8, len(x))),), generator=generator)
        n = len(some)
        angle = (torch.rand(n, generator=generator) - 0.5) * 0.5
        shift = (torch.rand(n, 2, generator=generator) - 0.5) * 0.25
        turn = torch.zeros(n, 2, 3)
        turn[:, 0, 0] = turn[:, 1, 1] = angle.cos()
        turn[:, 0, 1], turn[:, 1, 0], turn[:, :, 2] = -angle.sin(), angle.sin(), shift
        grid = F.affine_grid(turn, [n, *x.shape[1:]], align_corners=False)
        batch = F.grid_sample(x[some], grid, align_corners=False, padding_mode="border")
        batch = (batch - mean) / std * (0.7 + 0.6 * torch.rand(n, 1, 1, 1, generator=generator))
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - gone)
        loss = F.cross_entropy(head(backbone(batch)), labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    backbone.eval()
    with torch.no_grad():
        parts = [head(backbone((part - mean) / std)).argmax(1) for part in held.split(500)]
    return torch.cat(parts).numpy()


def rounds(
    pool: Pool, y: np.ndarray, goals: list[int], seed: int
) -> Iterator[tuple[int, Taught, float]]:
    """Suggest, be told, teach, for ever more labels: how many, what came of them, seconds."""
    names = [str(k) for k in range(int(y.max()) + 1)]
    rows = np.zeros(0, np.int64)
    taught = None
    for goal in goals:
        began = time.process_time()
        probabilities = None if taught is None else taught.classifier.probabilities(pool.features)
        more = suggest(
            pool, goal - len(rows), labelled=rows, probabilities=probabilities, seed=seed
        )
        rows = np.concatenate([rows, more.rows])
        taught = teach(pool, rows, y[rows], names, drawn=False, seed=seed)
        yield goal, taught, time.process_time() - began


def ours(
    pool: Pool, y: np.ndarray, labels: list[int], seed: int
) -> Iterator[tuple[int, Taught, float]]:
    """`rounds` for some of LABELS: fewer than 40 in one go, the others one after the other."""
    yield from rounds(pool, y, [n for n in labels if n < LABELS[1]][:1], seed)
    goals = [n for n in LABELS[1:] if n <= max(labels)]
    yield from (found for found in rounds(pool, y, goals, seed) if found[0] in labels)


def features_of_run(run: RunDir, out: Path) -> None:
    """The features file of a run."""
    words = run.read_items()["label"].to_pylist()
    names = sorted(set(words))
    y = np.array([names.index(word) for word in words])
    np.savez(out, x=run.read_embeddings().astype(np.float16), y=y)


def features_of_net(weights: str, images: str, out: Path, *, rows: int, side: int) -> None:
    """The features file of a net that exists, for images drawn from a source."""
    found = find_weights(weights)
    if found is None:
        raise SystemExit(f"no weights for {weights}")
    net = found.fetch().build(side).eval().to(memory_format=torch.channels_last)
    store = open_images(images, size="auto")
    assert store.labels is not None
    index = np.sort(np.random.default_rng(0).permutation(len(store))[:rows])
    words = np.asarray(store.labels)[index]
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (found.mean, found.std))
    parts = []
    with torch.no_grad():
        for some in np.array_split(index, -(-len(index) // 32)):
            batch = torch.from_numpy(store.pixels[some]).permute(0, 3, 1, 2).float() / 255
            batch = F.interpolate(batch, size=(side, side), mode="bicubic", antialias=True)
            batch = batch.expand(-1, found.channels, -1, -1)
            parts.append(net(((batch - mean) / std).contiguous(memory_format=torch.channels_last)))
    y = np.unique(words, return_inverse=True)[1]
    np.savez(out, x=torch.cat(parts).numpy().astype(np.float16), y=y, index=index)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--features-of", type=Path, help="run folder to make the file of")
    parser.add_argument("--weights", help="net to make the file of, as for a fit's --backbone")
    parser.add_argument("--side", type=int, default=96, help="of the images that it sees")
    parser.add_argument("--set", required=True, help="name of the set in the table")
    parser.add_argument("--net", default="ours", help="whose features: ours, or a name")
    parser.add_argument("--images", help="source of the images, for scratch, pixels and --weights")
    parser.add_argument("--methods", nargs="+", default=["random", "ours"])
    parser.add_argument("--labels", type=int, nargs="+", default=LABELS)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--rows", type=int, default=3000, help="images of a draw, at most")
    parser.add_argument("--seconds", type=float, default=60, help="of scratch, on one thread")
    parser.add_argument("--scratch-net", default="convnet_tiny")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "few-labels.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.features_of:
        features_of_run(RunDir.open(args.features_of), args.features)
    elif args.weights and not args.features.exists():
        features_of_net(args.weights, args.images, args.features, rows=args.rows, side=args.side)
    held = np.load(args.features)
    every = held["x"].astype(np.float32)
    every /= np.linalg.norm(every, axis=1, keepdims=True)
    pixels = None
    if not {"scratch", "pixels"}.isdisjoint(args.methods):
        pixels = open_images(args.images, size=32).pixels
    circumstances = record.circumstances()

    def known() -> list[dict[str, Any]]:
        return json.loads(args.out.read_text()) if args.out.exists() else []

    for draw in range(args.draws):
        order = np.random.default_rng(draw).permutation(len(every))[: args.rows]
        cut = len(order) * 3 // 10
        x, y = every[order], held["y"][order]
        own, test, names, truth = x[cut:], x[:cut], y[cut:], y[:cut]
        key = {"set": args.set, "net": args.net, "draw": draw, "rows": len(order)}

        def keep(method: str, labels: int, predicted: np.ndarray, **more: Any) -> None:
            """Write a line down."""
            figure = round(score(args.set, predicted, truth), 4)  # noqa: B023 (called at once)
            line = {**key, "method": method, "labels": labels, "accuracy": figure}  # noqa: B023
            record.write(args.out, [*known(), line | more | circumstances])
            print(*line.values(), *more.values(), flush=True)

        for method in args.methods:
            done = {
                line["labels"]
                for line in known()
                if line["method"] == method and all(line[k] == v for k, v in key.items())
            }
            labels = [n for n in args.labels if n not in done and n <= len(own)]
            if method == "ours" and labels:
                pool = Pool(own, neighbour_graph(own))
                for count, taught, seconds in ours(pool, names, labels, draw):
                    probabilities = taught.classifier.probabilities(test)
                    predicted = probabilities.argmax(1)
                    keep(
                        method,
                        count,
                        predicted,
                        processor_seconds=round(seconds, 1),
                        candidate=taught.classifier.method,
                        expected=round(taught.expected.accuracy, 4),
                        low=round(taught.expected.low, 4),
                        high=round(taught.expected.high, 4),
                        ece=round(
                            metrics.calibration_error(probabilities.max(1), predicted == truth), 4
                        ),
                    )
                continue
            for count in labels:
                rows = np.random.default_rng(draw).choice(len(own), count, replace=False)
                if method == "random":
                    keep(method, count, logistic(own[rows], names[rows], test))
                    continue
                assert pixels is not None
                index = (held["index"] if "index" in held else np.arange(len(every)))[order]
                seen, asked = pixels[index[cut:][rows]], pixels[index[:cut]]
                if method == "pixels":
                    flat = [p.reshape(len(p), -1) / 255 for p in (seen, asked)]
                    keep(method, count, logistic(flat[0], names[rows], flat[1]))
                else:
                    found = scratch(
                        seen,
                        names[rows],
                        asked,
                        net=args.scratch_net,
                        seconds=args.seconds,
                        seed=draw,
                    )
                    keep(method, count, found, net_of=args.scratch_net, given=args.seconds)


if __name__ == "__main__":
    main()
