"""What a few labels give: five ways to use 10 to 1,000 of them, with the spread over five draws.

    python benchmarks/few_labels.py --features digits.npz --set digits --images digits
    python benchmarks/few_labels.py --features mnist.npz --set mnist \
        --images FOLDER/mnist-train.parquet --methods scratch pixels random ours --labels 10 40

A features file holds `x` ``(n, d)`` rows of length 1, `y` ``(n,)`` classes and, where its rows are
not all of the images in their order, `index` ``(n,)``. `--features-of RUN` makes one of a run
folder whose images have labels. Three tenths of the rows, the same for every method and draw, are
held back: no label comes from them, no class spreads over them, and accuracy is measured on them.
(The net saw them without labels, where its fit was of all images.)

- scratch: a net of the kind that the fit uses, from scratch, on the labelled images alone, with
  shifts, small turns and changes of contrast; AdamW, as many seconds as `--seconds` says.
- pixels: logistic regression on the pixels of randomly drawn images.
- random: logistic regression on the features of the same images.
- ours: images from `suggest`, classifier from `teach`; beyond 40 labels in rounds of 40, 100, 250,
  1,000, as a person would.

On blood-cells, whose classes are very unequal, the figure is the balanced accuracy.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
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
    end = time.perf_counter() + seconds
    start = time.perf_counter()
    while time.perf_counter() < end:
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
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - (time.perf_counter() - start) / seconds)
        loss = F.cross_entropy(head(backbone(batch)), labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    backbone.eval()
    with torch.no_grad():
        parts = [head(backbone((part - mean) / std)).argmax(1) for part in held.split(500)]
    return torch.cat(parts).numpy()


def whole(pool: Pool, y: np.ndarray, labels: int, seed: int) -> Taught:
    """Suggest, be told, teach; in rounds."""
    names = [str(k) for k in range(int(y.max()) + 1)]
    rows = np.zeros(0, np.int64)
    taught = None
    for goal in [n for n in LABELS[1:] if n < labels] + [labels]:
        probabilities = None if taught is None else taught.classifier.probabilities(pool.features)
        more = suggest(
            pool, goal - len(rows), labelled=rows, probabilities=probabilities, seed=seed
        )
        rows = np.concatenate([rows, more.rows])
        taught = teach(pool, rows, y[rows], names, drawn=False, seed=seed)
    assert taught is not None
    return taught


def features_of(run: RunDir, out: Path) -> None:
    """The features file of a run."""
    words = run.read_items()["label"].to_pylist()
    names = sorted(set(words))
    y = np.array([names.index(word) for word in words])
    np.savez(out, x=run.read_embeddings().astype(np.float16), y=y)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--features-of", type=Path, help="run folder to make the file of")
    parser.add_argument("--set", required=True, help="name of the set in the table")
    parser.add_argument("--net", default="ours", help="whose features: ours, or a name")
    parser.add_argument("--images", help="source of the images, for scratch and pixels")
    parser.add_argument("--methods", nargs="+", default=["random", "ours"])
    parser.add_argument("--labels", type=int, nargs="+", default=LABELS)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--rows", type=int, default=6000, help="images at most, of those given")
    parser.add_argument("--seconds", type=float, default=30, help="of scratch, on one thread")
    parser.add_argument("--scratch-net", default="convnet_tiny")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "few-labels.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.features_of:
        features_of(RunDir.open(args.features_of), args.features)
    held = np.load(args.features)
    order = np.random.default_rng(0).permutation(len(held["y"]))[: args.rows]
    x = held["x"].astype(np.float32)[order]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = held["y"][order]
    cut = len(y) * 3 // 10
    pool = Pool(x[cut:], neighbour_graph(x[cut:]))
    pixels = None
    if args.images:
        index = held["index"] if "index" in held else np.arange(len(held["y"]))
        pixels = open_images(args.images).pixels[index[order]]
    circumstances = record.circumstances()
    for method in args.methods:
        for labels in args.labels:
            for draw in range(args.draws):
                key = {"set": args.set, "net": args.net, "method": method, "labels": labels}
                key |= {"draw": draw, "rows": len(y)}
                done = json.loads(args.out.read_text()) if args.out.exists() else []
                if any(all(line[k] == v for k, v in key.items()) for line in done):
                    continue
                if labels > len(y) - cut:
                    continue
                rows = np.random.default_rng(draw).choice(len(y) - cut, labels, replace=False)
                began = time.perf_counter()
                more: dict[str, Any] = {}
                if method == "ours":
                    taught = whole(pool, y[cut:], labels, draw)
                    probabilities = taught.classifier.probabilities(x[:cut])
                    predicted = probabilities.argmax(1)
                    right = predicted == y[:cut]
                    more = {
                        "candidate": taught.classifier.method,
                        "expected": round(taught.expected.accuracy, 4),
                        "low": round(taught.expected.low, 4),
                        "high": round(taught.expected.high, 4),
                        "ece": round(metrics.calibration_error(probabilities.max(1), right), 4),
                    }
                elif method == "random":
                    predicted = logistic(pool.features[rows], y[cut:][rows], x[:cut])
                else:
                    assert pixels is not None, "give --images"
                    own, test = pixels[cut:][rows], pixels[:cut]
                    if method == "pixels":
                        flat = [p.reshape(len(p), -1) / 255 for p in (own, test)]
                        predicted = logistic(flat[0], y[cut:][rows], flat[1])
                    else:
                        more = {"scratch_net": args.scratch_net, "scratch_seconds": args.seconds}
                        predicted = scratch(
                            own,
                            y[cut:][rows],
                            test,
                            net=args.scratch_net,
                            seconds=args.seconds,
                            seed=draw,
                        )
                figure = round(score(args.set, predicted, y[:cut]), 4)
                line = {**key, "accuracy": figure, "seconds": round(time.perf_counter() - began, 1)}
                done = json.loads(args.out.read_text()) if args.out.exists() else []
                record.write(args.out, [*done, line | more | circumstances])
                print(*key.values(), figure, *more.values(), flush=True)


if __name__ == "__main__":
    main()
