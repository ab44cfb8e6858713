"""The fit of the command line, as functions to call from Python as well.

The way through :func:`fit_source`: source -> ImageStore -> resolved settings -> loop -> run folder.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepcluster.backbones.start import GIVEN, Weights
from deepcluster.config import Config, flatten
from deepcluster.errors import ConfigError, RunError
from deepcluster.images.store import ImageStore, open_images, scan_images
from deepcluster.images.vectors import pair, read_vectors
from deepcluster.progress import Progress, epoch_sentence
from deepcluster.report import write_report
from deepcluster.run import RunDir
from deepcluster.show.pictures import write_pictures
from deepcluster.show.tensorboard import TensorBoard
from deepcluster.training.loop import FitResult, fit, fit_vectors
from deepcluster.training.plan import (
    LATE,
    MOST_EPOCHS,
    Cost,
    as_given,
    guess_epochs,
    scale_source,
    schedule_frozen,
    schedule_given,
    schedule_minutes,
    settle_start,
    take_weights,
    usual_minutes,
)
from deepcluster.version import __version__

SMALL_TILE, LARGE_TILE, FEW_IMAGES = 64, 96, 20_000  # sides of the thumbnails, in pixels


class Logged(Progress):
    """Passes on what it is told, and keeps epochs and notes in a file.

    Args:
        progress: told everything.
        log: the file to add to.
    """

    def __init__(self, progress: Progress, log: Path) -> None:
        self.progress, self.log = progress, log
        self.phase, self.advance = progress.phase, progress.advance  # type: ignore[method-assign]

    def epoch(self, line: dict[str, Any]) -> None:
        """A line for the epoch."""
        self._write(epoch_sentence(line))
        self.progress.epoch(line)

    def note(self, text: str) -> None:
        """A sentence."""
        self._write(text)
        self.progress.note(text)

    def _write(self, text: str) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%H:%M:%S} {text}\n")


@dataclass(frozen=True)
class Plan:
    """What a fit would do: the answer to ``--dry-run``."""

    name: str
    images: int
    """Found; those that cannot be read are left out when they are decoded."""
    config: Config
    cost: Cost
    notes: list[str]


def default_out(name: str) -> Path:
    """``runs/<source>-<time>``."""
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def plan_source(source: Any, config: Config, *, labels: str | None = None) -> Plan:
    """Look at a source and say what a fit of it would do; decodes nothing, writes nothing."""
    asked, weights, sentence = settle_start(config)
    if weights is None:
        asked = scale_source(source, asked, labels=labels)
    else:
        if weights.path is None:
            raise ConfigError(
                f"the weights of {weights.name} are not here, and a dry run downloads nothing: run "
                "it without --dry-run"
            )
        asked = _take_weights(source, asked, weights, labels)
    scan = scan_images(source, data=asked.data, size=asked.size, labels=labels)
    limit = usual_minutes(config, scan.count)
    resolved, cost = _schedule(
        asked,
        weights,
        n=scan.count,
        size=scan.size,
        channels=scan.channels,
        store_bytes=scan.bytes_needed if scan.in_memory else 0,
        limit=limit,
    )
    sentences = about_start(weights, sentence)
    sentences += notes(asked, resolved, scan.count, cost, limit=limit)
    return Plan(scan.name, scan.count, resolved, cost, sentences)


def _take_weights(source: Any, config: Config, weights: Weights, labels: str | None) -> Config:
    """The settings as the weights want them, for images as large as these."""
    side = scan_images(source, data=config.data, labels=labels).side
    return take_weights(config, weights, side=side)


def _schedule(
    config: Config,
    weights: Weights | None,
    *,
    n: int,
    size: int,
    channels: int,
    store_bytes: int,
    spent: float = 0.0,
    limit: float,
) -> tuple[Config, Cost]:
    facts = {"n": n, "channels": channels, "store_bytes": store_bytes}
    if config.backbone == GIVEN:
        return schedule_given(config, n=n)
    if config.start == "frozen":
        assert weights is not None
        return schedule_frozen(config, weights, **facts)
    return schedule_minutes(config, **facts, size=size, spent=spent, limit=limit)


def about_start(weights: Weights | None, sentence: str) -> list[str]:
    """What a person should know of where the net begins."""
    return [text for text in (weights.terms if weights else "", sentence) if text]


def fit_source(
    source: Any,
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    labels: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: bool = False,
    tensorboard: bool = False,
    embeddings: Any = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> RunDir:
    """Fit on a source and leave a run folder.

    Args:
        source: whatever ``open_images`` takes; None for `embeddings` without their images.
        config: settings; None is the default recipe.
        out: the run folder; None is :func:`default_out`.
        labels: for measuring only: ``"folders"``, or a CSV file with columns ``path,label``.
        resume: go on with the fit in `out`, with the settings it was started with.
        overwrite: replace the run in `out`.
        report: write the report as well.
        tensorboard: write event files for TensorBoard into ``tensorboard/`` of the run as well.
        embeddings: features made elsewhere, as ``read_vectors`` takes them; nothing is trained.
        progress: told what happens.
        command: the command line, for run.json.

    Returns:
        The finished run.

    Raises:
        NoImagesError: nothing in the source can be used.
        RunError: `out` cannot be used.
        ConfigError: settings that do not exist or do not go together.
    """
    progress = progress or Progress()
    asked = config or Config()
    started = datetime.now().astimezone()
    clock, processor = time.perf_counter(), time.process_time()
    run = None
    if resume:
        run, asked = _reopen(out, asked)
        if run.read_info()["status"] == "done":
            progress.note(f"{run.path} has ended already: nothing to do")
            return run
        labels = labels or run.read_info()["labels"]
    elif out is not None:
        RunDir.free(out, overwrite=overwrite)  # refused before the work, made after it
    given, vectors = asked, None
    if embeddings is None:
        asked, weights, sentence = settle_start(asked)
    else:
        vectors, weights, sentence = read_vectors(embeddings), None, ""
        asked = as_given(asked)
    if weights is not None and weights.path is None:
        progress.phase(f"downloading {weights.name}", 1)
        weights = weights.fetch()
    progress.phase("looking at the images", 1)
    if weights is None:
        asked = scale_source(source, asked, labels=labels)
    elif not resume:
        asked = _take_weights(source, asked, weights, labels)
    store = None
    if source is not None:
        store = open_images(
            source,
            data=asked.data,
            size=asked.size,
            labels=labels,
            progress=progress.callback("decoding"),
        )
    if vectors is not None:
        rows, store = pair(vectors, store)
    assert store is not None
    spent = time.perf_counter() - clock
    limit = usual_minutes(given, len(store))
    resolved, cost = _schedule(
        asked,
        weights,
        n=len(store),
        size=store.size,
        channels=store.channels,
        store_bytes=0 if isinstance(store.pixels, np.memmap) else store.pixels.nbytes,
        spent=spent,
        limit=limit,
    )
    if run is None:
        run = RunDir.create(out or default_out(store.name), overwrite=overwrite)
    board = TensorBoard(progress, run.tensorboard) if tensorboard else None
    progress = Logged(board or progress, run.log)
    info: dict[str, Any] = {
        "status": "running",
        "name": store.name,
        "command": list(command),
        "labels": labels,
        "started": started.isoformat(timespec="seconds"),
        "seed": resolved.seed,
        "minutes": None if asked.minutes == "auto" else asked.minutes,
        "versions": versions(),
        "hardware": hardware(resolved),
        "images": store.fingerprint(),
        "counts": {
            "images": len(store),
            "skipped": len(store.skipped),
            "clusters": resolved.clusters,
            "classes": len(store.label_names) if store.labels is not None else 0,
        },
        "weights": None if weights is None else weights.facts(),
        "notes": left_out(store)
        + about_start(weights, sentence)
        + notes(asked, resolved, len(store), cost, limit=limit, spent=spent),
    }
    if resume:
        before = run.read_info()
        if before["images"] != info["images"]:
            raise RunError(
                f"{run.path} was fitted on other images than the source holds now: "
                "give the same source, or start anew in another folder"
            )
        info |= {name: before[name] for name in ("started", "command", "minutes")}
        # what the sittings before took, not lost if this one is killed
        info |= {name: before.get(name, 0.0) for name in ("seconds", "processor_seconds")}
        assert isinstance(resolved.epochs, int)
        left = max(0, resolved.epochs - len(run.read_metrics()))
        cost = dataclasses.replace(cost, epochs=left)
    run.write_config(resolved)
    run.write_skipped(store.skipped)
    run.write_info(info)

    def taken() -> dict[str, float]:
        return {
            "seconds": round(info.get("seconds", 0.0) + time.perf_counter() - clock, 3),
            "processor_seconds": round(
                info.get("processor_seconds", 0.0) + time.process_time() - processor, 3
            ),
        }

    try:
        for sentence in info["notes"]:
            progress.note(sentence)
        memory = f"about {cost.memory / 1e9:.1f} GB of memory"
        progress.note(f"expected: {_span(cost.seconds)}, {memory}")
        if vectors is None:
            result = fit(store, resolved, run=run, resume=resume, progress=progress)
        else:
            seen = store if source is not None else None
            result = fit_vectors(rows, resolved, store=seen, truth=store.labels, progress=progress)
        _write_result(run, store, result, progress)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        run.write_info({**info, "status": "interrupted" if stopped else "failed", **taken()})
        if stopped:
            again = shlex.join(["deepcluster", "fit", *_words(source), "--out", str(run.path)])
            progress.note(f"stopped and saved. To go on: {again} --resume")
        else:
            with run.log.open("a", encoding="utf-8") as log:
                log.write(traceback.format_exc())
        raise
    run.write_info(
        {
            **info,
            "counts": info["counts"] | ({"clusters": result.clusters} if result.choice else {}),
            "choice": result.choice,
            "status": "done",
            **taken(),
            "timings": result.timings,
            "scores": result.scores,
        }
    )
    write_pictures(run)
    if board is not None:
        board.close(run)
    if report:
        write_report(run, progress=progress.note)
    return run


def _reopen(out: str | Path | None, asked: Config) -> tuple[RunDir, Config]:
    """The run to go on with and its settings; settings asked for that differ are refused."""
    if out is None:
        raise ConfigError("--resume needs --out: the folder of the run to go on with")
    run = RunDir.open(out, finished=False)
    saved = run.read_config()
    default, wanted, kept = (
        flatten(dataclasses.asdict(config)) for config in (Config(), asked, saved)
    )
    kept["minutes"] = run.read_info()["minutes"]  # the settings hold the epochs these came to
    differing = [
        name
        for name, value in wanted.items()
        if value not in (default[name], kept[name]) and name != "device"
    ]
    if differing:
        raise ConfigError(
            f"{run.path} was started with other settings ({', '.join(differing)}): "
            "--resume goes on with its own; leave those flags out, or start anew in another folder"
        )
    if asked.device not in ("auto", saved.device):
        train = dataclasses.replace(saved.train, precision="auto")
        saved = dataclasses.replace(saved, device=asked.device, train=train)
    return run, saved


def _write_result(run: RunDir, store: ImageStore, result: FitResult, progress: Progress) -> None:
    progress.phase("writing the run folder", len(store))
    n = len(store)
    classes: list[str | None] = [None] * n
    if store.labels is not None:
        classes = [store.label_names[k] if k >= 0 else None for k in store.labels.tolist()]
    np.save(run.embeddings, result.embeddings, allow_pickle=False)
    run.write_items(
        {
            "id": store.ids,
            "path": store.paths,
            "label": classes,
            "cluster": result.labels,
            "name": [None] * n,
            "by": ["model"] * n,
            "distance": result.distances,
            "confidence": result.confidence,
            "x": result.places[:, 0],
            "y": result.places[:, 1],
        }
    )
    result.model.save(run.model)
    tile = min(store.pixels.shape[1], LARGE_TILE if n <= FEW_IMAGES else SMALL_TILE)
    order = np.lexsort((result.distances, result.labels))  # a cluster lies on few sheets
    run.write_thumbnails(store.pixels, tile=tile, order=order)
    progress.advance(n)


def _words(source: Any) -> list[str]:
    """A source as it is typed on the command line; arrays cannot be typed."""
    parts = source if isinstance(source, list | tuple) else [source]
    return [str(part) for part in parts] if all(isinstance(p, str | Path) for p in parts) else ["…"]


def left_out(store: ImageStore) -> list[str]:
    """A sentence, if images were skipped."""
    count = len(store.skipped)
    return [f"{_count(count, 'file')} left out: see skipped.csv"] if count else []


def notes(
    asked: Config,
    resolved: Config,
    n: int,
    cost: Cost,
    *,
    limit: float,
    spent: float | None = None,
) -> list[str]:
    """Plain sentences about choices the user did not make and should know of.

    Args:
        asked: settings as asked for.
        resolved: settings as they will be.
        n: number of images.
        cost: what the fit will take.
        limit: minutes, where neither they nor epochs were asked for.
        spent: seconds that went into decoding, if it was done.
    """
    sentences = []
    assert isinstance(resolved.epochs, int)
    if resolved.final.choose:
        sentences.append(
            f"clusters: the best number from 2 to {resolved.clusters}, chosen at the end; "
            "if you know better, say --clusters K"
        )
    if resolved.backbone == GIVEN:
        return [*sentences, f"{_count(n, 'vector')} as given: nothing is trained"]
    learns = "frozen" if resolved.start == "frozen" else _count(resolved.epochs, "epoch")
    sentences.append(
        f"{_count(n, 'image')} at {resolved.size} pixels, {resolved.backbone}, "
        f"{learns} on {resolved.device} in {resolved.train.precision}"
        + ("" if asked.minutes == "auto" else f", to end after {asked.minutes:g} minutes")
    )
    if asked.minutes != "auto" and (spent or 0) + cost.seconds > 60 * asked.minutes * (1 + LATE):
        decoded = "" if spent is None else f"decoding took {_span(spent)}, "
        sentences.append(
            f"{asked.minutes:g} minutes are too few for so many images on this machine: {decoded}"
            f"one epoch takes {_span(cost.epoch)}, the rest {_span(cost.rest)}"
        )
    if asked.minutes == asked.epochs == "auto" and resolved.start != "frozen":
        batch = resolved.train.batch_size
        assert isinstance(resolved.size, int) and isinstance(batch, int)
        rule = guess_epochs(n, resolved.size, batch)
        fewer = f" ({rule} epochs would be usual)" if resolved.epochs < rule else ""
        sentences.append(
            f"no --minutes given: training takes at most {_span(60 * limit)}, and size, net and "
            f"epochs suit that where you did not name them{fewer}"
        )
    if resolved.epochs == MOST_EPOCHS and asked.minutes != "auto":
        sentences.append(f"{MOST_EPOCHS} epochs are enough: this will end before its time")
    return sentences


def versions() -> dict[str, str]:
    """Versions of what computes."""
    import sklearn
    import timm
    import torchvision

    return {
        "deepcluster": __version__,
        "python": platform.python_version(),
        **{m.__name__: m.__version__ for m in (torch, torchvision, timm, sklearn, np)},
    }


def hardware(config: Config) -> dict[str, Any]:
    """What the fit runs on."""
    facts: dict[str, Any] = {
        "device": config.device,
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu": _cpu_name(),
    }
    if config.device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(config.device)
    return facts


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def command_line() -> list[str]:
    """The command as it was typed."""
    return ["deepcluster", *sys.argv[1:]]
