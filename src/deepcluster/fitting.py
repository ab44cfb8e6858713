"""The fit of the command line, as functions to call from Python as well.

The way through :func:`fit_source`: source -> Listing -> size and net -> ImageStore -> resolved
settings -> loop -> run folder. What it says is in ``saying.py``.

Long, because these steps are read in one go, from the source to the folder that is left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from deepcluster import processes
from deepcluster.backbones.start import Weights
from deepcluster.clustering.rows import is_memory_mapped
from deepcluster.config import GIVEN, Config, changed, check_settings, flatten, older, override
from deepcluster.device import read_only
from deepcluster.errors import ConfigError, RunError, Stopped
from deepcluster.images.files import is_there
from deepcluster.images.listing import Listing
from deepcluster.images.sources import list_source
from deepcluster.images.store import ImageStore, open_images, scan_images
from deepcluster.images.vectors import Vectors, pair, read_vectors
from deepcluster.machine import hardware, launcher, versions
from deepcluster.naming import Remembered, carry_names
from deepcluster.progress import Progress, counted, epoch_sentence, span
from deepcluster.report import write_report
from deepcluster.results import write_finished, write_result
from deepcluster.run import RunDir
from deepcluster.saying import (
    about_start,
    afterwards,
    left_out,
    notes,
)
from deepcluster.show.pictures import write_pictures
from deepcluster.show.tensorboard import TensorBoard
from deepcluster.training.best import Best, fit_best
from deepcluster.training.conclude import (
    FitResult,
    compare_with_pixels,
    cuts_graph,
    fit_vectors,
    unit_pieces,
)
from deepcluster.training.cost import Cost
from deepcluster.training.plan import (
    Pace,
    as_given,
    plan_starts,
    scale_source,
    schedule_given,
    schedule_minutes,
    settle_start,
    take_weights,
)
from deepcluster.training.resolve import usual_minutes
from deepcluster.training.sharing import refuse_one_gpu, stored
from deepcluster.training.threads import own_threads, settle_threads


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
    """Found, or vectors; images that cannot be read are left out when they are decoded."""
    config: Config
    cost: Cost
    notes: list[str]
    dimensions: int | None = None
    """Of vectors."""


def default_out(name: str) -> Path:
    """``runs/<source>-<time>``."""
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def plan_source(
    source: Any,
    config: Config,
    *,
    labels: str | None = None,
    embeddings: Any = None,
    given: Collection[str] = (),
) -> Plan:
    """Look at a source and say what a fit of it would do; writes nothing.

    Arguments are as for :func:`fit_source`, and so are the errors.
    """
    check_settings(config)
    if embeddings is not None:
        with own_threads():
            return _plan_vectors(source, config, embeddings, labels, given)
    listing = list_source(source, labels)
    with own_threads():
        return _plan(listing, *settle_threads(config, timed=config.epochs == "auto"))


def _plan_vectors(
    source: Any, config: Config, embeddings: Any, labels: str | None, given: Collection[str]
) -> Plan:
    asked, _ = settle_threads(_as_given(config, given, source, labels), timed=False)
    vectors = read_vectors(embeddings)
    n, d = vectors.rows.shape
    sentences = []
    if source is not None:
        beside = len(list_source(source, labels))
        sentences.append(f"{counted(beside, 'image')} beside them, decoded in the fit, come on top")
    resolved, cost = schedule_given(asked, n=n, d=d, channels=1, held=_held(vectors.rows))
    sentences += notes(asked, resolved, n, cost, limit=0.0)
    return Plan(vectors.name, n, resolved, cost, sentences, d)


def _held(*arrays: np.ndarray) -> int:
    """Bytes of those that lie in memory, not in a mapped file."""
    return sum(each.nbytes for each in arrays if not is_memory_mapped(each))


def _as_given(config: Config, given: Collection[str], source: Any, labels: str | None) -> Config:
    """:func:`as_given`; refuses labels of no images as well."""
    asked = as_given(config, given, images=source is not None)
    if labels is not None and source is None:
        raise ConfigError(
            "--labels are those of images: give these with --images, or vectors as .parquet with a "
            "column label"
        )
    return asked


def _plan(listing: Listing, config: Config, busy: str) -> Plan:
    asked, weights, sentence = settle_start(config)
    if weights is not None and weights.path is None:
        raise ConfigError(
            f"the weights of {weights.name} are not here, and a dry run downloads nothing: run it "
            "without --dry-run"
        )
    opened = _as_opened(listing, asked, weights)
    scan = scan_images(listing, data=opened.data, size=opened.size)
    limit = usual_minutes(config, scan.count)
    facts: dict[str, Any] = {
        "n": scan.count,
        "channels": scan.channels,
        "store_bytes": scan.bytes_needed if scan.in_memory else 0,
        "limit": limit,
    }
    if weights is None:
        asked = opened
        resolved, cost = schedule_minutes(asked, size=scan.size, **facts)
    else:
        side = round(scan.size * opened.data.margin)
        _, resolved, cost = plan_starts(asked, opened, weights, side=side, **facts)
    sentences = scan.remarks + about_start(weights, sentence, busy)
    sentences += notes(asked, resolved, scan.count, cost, limit=limit)
    return Plan(scan.name, scan.count, resolved, cost, sentences)


def _as_opened(listing: Any, asked: Config, weights: Weights | None) -> Config:
    """The settings that the images are decoded with."""
    if weights is None:
        return scale_source(listing, asked)
    side = scan_images(listing, data=asked.data).side
    frozen = dataclasses.replace(asked, start="frozen", epochs="auto", minutes="auto")
    if asked.start == "frozen":
        frozen = dataclasses.replace(frozen, epochs=asked.epochs)
    return take_weights(frozen, weights, side=side)


def fit_source(
    source: Any,
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    labels: str | None = None,
    names_from: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: bool = False,
    tensorboard: bool = False,
    embeddings: Any = None,
    progress: Progress | None = None,
    command: Sequence[str] = (),
    given: Collection[str] = (),
) -> RunDir:
    """Fit on a source and leave a run folder.

    Args:
        source: whatever ``open_images`` takes; None for `embeddings` without their images.
        config: settings; None is the default recipe.
        out: the run folder; None is :func:`default_out`.
        labels: for measuring only: ``"folders"``, or a CSV file with columns ``path,label``.
        names_from: an earlier run, whose names and moves go over to the clusters at the end
            (:func:`deepcluster.naming.carry_names`).
        resume: go on with the fit in `out`, with the settings it was started with.
        overwrite: replace the run in `out`; it is put aside, and deleted once the new one is done.
        report: write the report as well.
        tensorboard: write event files for TensorBoard into ``tensorboard/`` of the run as well.
        embeddings: features made elsewhere, as ``read_vectors`` takes them; nothing is trained.
        progress: told what happens.
        command: the command line, for run.json.
        given: names of settings that count as asked for although they are as by default, where a
            fit is gone on with.

    Returns:
        The finished run.

    Raises:
        NoImagesError: nothing in the source can be used.
        RunError: `out` cannot be used.
        ConfigError: settings that do not exist or do not go together.
    """
    progress = progress or Progress()
    asked = config or Config()
    check_settings(asked)
    sitting = Sitting()
    if processes.follows():
        raise RunError(
            "this is not the first process of its launcher: only that one leaves a run, the others "
            "call deepcluster.training.loop.follow()"
        )
    with contextlib.ExitStack() as held:
        held.enter_context(processes.joined())
        held.enter_context(own_threads())
        refuse_one_gpu(asked.device)
        undone = held.enter_context(contextlib.ExitStack())  # ends after the lock: see withdraw
        run, rivals = None, None
        if resume:
            run, asked = _reopen(out, asked, given)
            held.enter_context(run.locked())
            if run.read_info()["status"] == "done":
                return _complete(run, report=report, progress=progress)
            if embeddings is not None and asked.backbone != GIVEN:
                raise ConfigError(
                    f"{run.path} was begun with images, not with vectors: leave --embeddings out, "
                    "and give the images as SOURCE"
                )
            labels = labels or run.read_info().get("labels")
            names_from = names_from or run.read_info().get("names_from")
            rivals = [override(older(), values) for values in run.read_info().get("rivals", [])]
            if run.read_info()["status"] == "starting":  # nothing was done: as if begun now
                resume, rivals = False, None
        elif out is not None:
            _refuse_own_net(asked, RunDir.free(out, overwrite=overwrite))
        remembered = _remember(names_from, out)
        progress.phase("looking at the source", 1)
        if embeddings is not None:
            asked = _as_given(asked, given, source, labels)
        vectors = None if embeddings is None else read_vectors(embeddings)
        alone = vectors is not None and source is None
        images = vectors if alone else list_source(source, labels)
        assert images is not None
        first: dict[str, Any] = {
            "name": images.name,
            "command": list(command),
            "source": _words(source, embeddings),
            "labels": labels,
            "started": sitting.started.isoformat(timespec="seconds"),
            "seed": asked.seed,
            "minutes": None if asked.minutes == "auto" else asked.minutes,
            "versions": versions(),
            "names_from": None if names_from is None else str(names_from),
        }
        if run is None:
            there = out is not None and Path(out).is_dir()
            run = _begin(out, asked, first, len(images), overwrite=overwrite)
            held.enter_context(run.locked())
            undone.callback(run.withdraw, keep_folder=there)
        timed = vectors is None and asked.epochs == "auto"
        asked, busy = settle_threads(asked, timed=timed)
        if vectors is not None:
            work = _take(vectors, images, asked, sitting, progress)
        else:
            assert isinstance(images, Listing)
            work = _look(images, asked, sitting, progress, rivals)
        if remembered is not None and work.store.contents is not None:
            remembered.check(work.store.contents)
        info = first | _facts(work, busy)
        if resume:
            work, info = _continue(run, work, info)
        run.write_config(work.resolved)
        run.write_skipped(work.store.skipped)
        run.write_info(info)
        undone.pop_all()
        run.remove_unfinished()
        board = TensorBoard(progress, run.tensorboard) if tensorboard else None
        logged = Logged(board or progress, run.log)
        result = _train(
            run,
            work,
            info,
            sitting,
            resume=resume,
            report=report,
            remembered=remembered,
            log=logged,
        )
        return _complete(run, report=report, progress=logged, board=board, done=(work, result))


# -- the steps of a fit -----------------------------------------------------------------------


class Sitting:
    """The clock and the processor's time since a fit was begun or gone on with."""

    def __init__(self) -> None:
        self.started = datetime.now().astimezone()
        self.clock, self.processor = time.perf_counter(), time.process_time()

    def taken(self, before: Mapping[str, Any]) -> dict[str, float]:
        """Seconds so far, with those of the sittings before."""
        spent = {
            "seconds": time.perf_counter() - self.clock,
            "processor_seconds": time.process_time() - self.processor,
        }
        return {name: round(before.get(name, 0.0) + value, 3) for name, value in spent.items()}


@dataclass(frozen=True)
class Work:
    """Decoded images and what is to be done with them."""

    store: ImageStore
    asked: Config  # with size and net, where these follow from the time
    resolved: Config
    cost: Cost
    limit: float  # minutes, where neither they nor epochs were asked for
    spent: float  # seconds until the images were decoded
    weights: Weights | None = None  # that it begins with
    sentence: str = ""  # about those that it could begin with
    rivals: list[Config] = field(default_factory=list)  # resolved; what is tried before
    rows: np.ndarray | None = None  # (n, d) features, where they were made elsewhere
    seen: bool = True  # whether the images are more than blanks


def _look(
    listing: Listing,
    asked: Config,
    sitting: Sitting,
    progress: Progress,
    rivals: list[Config] | None,
) -> Work:
    """Decode the images and make the plan; `rivals` are those of a run that is gone on with."""
    progress.phase("looking at the images", 1)
    given = asked
    asked, weights, sentence = settle_start(asked)
    if weights is not None and weights.path is None:
        progress.phase(f"downloading {weights.name}", 1)
        weights = weights.fetch()
    gone_on = rivals is not None and weights is not None
    opened = (rivals or [asked])[0] if gone_on else _as_opened(listing, asked, weights)
    store = open_images(
        listing,
        data=stored(opened.data),
        size=opened.size,
        keep=True,
        progress=progress.callback("decoding"),
    )
    opened = dataclasses.replace(opened, data=dataclasses.replace(opened.data, range=store.range))
    asked = dataclasses.replace(asked, data=dataclasses.replace(asked.data, range=store.range))
    if weights is None:
        asked = opened
    spent = time.perf_counter() - sitting.clock
    limit = usual_minutes(given, len(store))
    several = processes.helpers()
    mapped = several == 1 and isinstance(store.pixels, np.memmap)
    facts: dict[str, Any] = {
        "n": len(store),
        "channels": store.channels,
        "store_bytes": 0 if mapped else store.pixels.nbytes // several,
        "spent": spent,
        "limit": limit,
    }
    tried: list[Config] = rivals or []
    if weights is None or (gone_on and asked.start != "frozen"):
        assert weights is None or isinstance(asked.size, int)
        size = store.size if weights is None else asked.size
        resolved, cost = schedule_minutes(asked, size=size, **facts)  # type: ignore[arg-type]
    else:
        side = int(store.pixels.shape[1])
        tried, resolved, cost = plan_starts(asked, opened, weights, side=side, **facts)
    return Work(store, asked, resolved, cost, limit, spent, weights, sentence, tried)


def _take(
    vectors: Vectors,
    images: Vectors | Listing,
    asked: Config,
    sitting: Sitting,
    progress: Progress,
) -> Work:
    """Vectors in the place of a net, with their images if there are any, and the plan."""
    store = None
    if isinstance(images, Listing):
        store = open_images(
            images, data=asked.data, keep=True, progress=progress.callback("decoding")
        )
    rows, store = pair(vectors, store)
    seen = isinstance(images, Listing)
    resolved, cost = schedule_given(
        asked,
        n=len(rows),
        d=rows.shape[1],
        channels=store.channels,
        held=_held(rows, store.pixels) if seen else _held(rows),
    )
    spent = time.perf_counter() - sitting.clock
    return Work(store, asked, resolved, cost, 0.0, spent, rows=rows, seen=seen)


def _facts(work: Work, busy: str) -> dict[str, Any]:
    """What run.json says while the fit is at work, beside what it said at the beginning."""
    store, resolved = work.store, work.resolved
    return {
        "status": "running",
        "asked": changed(work.asked),
        "hardware": hardware(resolved),
        "images": store.fingerprint(),
        "counts": {
            "images": len(store),
            "skipped": len(store.skipped),
            "clusters": resolved.clusters,
            "classes": len(store.label_names) if store.labels is not None else 0,
        },
        "passed_over": [dataclasses.asdict(one) for one in store.passed_over],
        "weights": None if work.weights is None else work.weights.facts(),
        "rivals": [flatten(dataclasses.asdict(rival)) for rival in work.rivals],
        "notes": left_out(store)
        + store.remarks
        + about_start(work.weights, work.sentence, busy)
        + notes(work.asked, resolved, len(store), work.cost, limit=work.limit, spent=work.spent),
    }


def _begin(
    out: str | Path | None, asked: Config, first: dict[str, Any], count: int, *, overwrite: bool
) -> RunDir:
    """Make the run folder, before the images are decoded: it says at once what was asked for."""
    counts = {"images": count, "skipped": 0, "clusters": 0}
    info = {"status": "starting", **first, "asked": changed(asked), "counts": counts}

    def write(run: RunDir) -> None:
        run.write_config(asked)
        run.write_info(info)

    if out is None:
        return RunDir.create_unique(default_out(first["name"]), write)
    return RunDir.create(out, overwrite=overwrite, begin=write)


def _continue(run: RunDir, work: Work, info: dict[str, Any]) -> tuple[Work, dict[str, Any]]:
    """Check that the images are those of the run, and take over what its sittings have noted."""
    before = run.read_info()
    if before.get("images") != info["images"]:
        raise RunError(
            f"{run.path} was fitted on other images than the source holds now: "
            "give the same source, or start anew in another folder"
        )
    kept = ("started", "command", "minutes", "asked")
    info |= {name: before[name] for name in kept if name in before}
    # what the sittings before took, not lost if this one is killed
    info |= {name: before.get(name, 0.0) for name in ("seconds", "processor_seconds")}
    assert isinstance(work.resolved.epochs, int)
    left = max(0, work.resolved.epochs - len(run.read_metrics()))
    return dataclasses.replace(work, cost=dataclasses.replace(work.cost, epochs=left)), info


def _train(
    run: RunDir,
    work: Work,
    info: dict[str, Any],
    sitting: Sitting,
    *,
    resume: bool,
    report: bool,
    remembered: Remembered | None,
    log: Logged,
) -> FitResult:
    """Fit, and write the result; whatever happens, run.json says how it ended."""
    pace = None
    if work.asked.minutes != "auto" and not resume:
        pace = Pace(work.asked.minutes, rest=work.cost.rest, began=sitting.clock, say=log.note)
    try:
        for sentence in info["notes"]:
            log.note(sentence)
        memory = f"about {work.cost.memory / 1e9:.1f} GB of memory"
        clusters, n = work.resolved.clusters, len(work.store)
        assert isinstance(clusters, int)
        beside = "" if cuts_graph(work.resolved, clusters, n) else " beside k-means"
        seconds = work.cost.seconds  # without what is loaded and written once, in any fit
        lasts = span(seconds) if seconds > 30 else "less than a minute"
        log.note(f"expected: {lasts}{beside}, {memory}")
        best = _fit(run, work, resume=resume, log=log, pace=pace)
        result = best.result
        if result.config.start != work.resolved.start:
            run.write_config(result.config)
            run.truncate_metrics(0)
        write_result(run, work.store, result, log)
        for other in best.others:
            told = {name: info[name] for name in ("started", "images", "weights")}
            told["starts"] = best.facts(other)
            _write_other(run.other(other.config.start), work.store, other, told, report=report)
        info["starts"] = best.facts()
        if remembered is not None:
            info["carried"] = str(carry_names(remembered, run)).splitlines()
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        with contextlib.suppress(OSError):  # a full disk: the status stays, and so does the run
            ended = {"status": "interrupted" if stopped else "failed", **sitting.taken(info)}
            run.write_info({**info, **ended})
        with contextlib.suppress(OSError):  # of a terminal that is gone, or the log's disk
            _say_how_to_go_on(run, log, stopped=stopped)
            if stopped:
                raise Stopped from error
        raise
    taken = sitting.taken(info)
    if result.tree is not None and result.tree.largest > result.clusters:
        log.note(
            f"another number, from 2 to {result.tree.largest}: `deepcluster recluster`, or the "
            "slider of the report; both split or unite these clusters"
        )
    said = info["notes"] + afterwards(work.asked, result, work.store, taken["seconds"])
    for sentence in said[len(info["notes"]) :]:
        log.note(sentence)
    run.write_info(
        {
            **info,
            "notes": said,
            "counts": info["counts"] | {"clusters": len(np.unique(result.labels))},
            "choice": result.choice,
            "status": "done",
            **taken,
            "timings": result.timings,
            "scores": result.scores,
            "unwritten": ["pictures", *(["report"] if report else [])],
        }
    )
    return result


def _fit(run: RunDir, work: Work, *, resume: bool, log: Logged, pace: Pace | None) -> Best:
    """Train, or take what is given, and cluster; the features are in the run then."""
    if work.rows is not None:
        run.write_embeddings(unit_pieces(work.rows), work.rows.shape)
        rows = read_only(np.load(run.embeddings, mmap_mode="r"))
        truth = work.store.labels
        found = fit_vectors(rows, work.resolved, truth=truth, progress=log)
        return Best(found, [])
    best = fit_best(
        work.store,
        work.resolved,
        work.rivals,
        run=run,
        resume=resume,
        progress=log,
        pace=pace,
        again=None if work.cost.room is None else work.cost.room.again,
    )
    run.write_embeddings([best.result.embeddings], best.result.embeddings.shape)
    return best


def _write_other(
    run: RunDir, store: ImageStore, result: FitResult, facts: dict[str, Any], *, report: bool
) -> None:
    """A run folder, in that of the start which was kept, for one that was not."""
    run.remove()
    run.path.mkdir()
    write_finished(run, store, result, facts)
    write_pictures(run)
    if report:
        write_report(run)


def _say_how_to_go_on(run: RunDir, log: Logged, *, stopped: bool) -> None:
    """After a fit that was stopped or failed: what is kept, and what to type."""
    if stopped:
        log.note(f"stopped and saved. To go on: {run.line_to_go_on(launcher())}")
    else:
        with run.log.open("a", encoding="utf-8") as file:
            file.write(traceback.format_exc())
    if run.aside.path.exists():
        log.note(
            f"the run that was in {run.path} before is whole, in {run.aside.path}, until this one "
            "has ended; to have it back, rename the folders"
        )


def _complete(
    run: RunDir,
    *,
    report: bool,
    progress: Progress,
    board: TensorBoard | None = None,
    done: tuple[Work, FitResult] | None = None,
) -> RunDir:
    """Write what a finished run still lacks: the pictures, the report.

    What is `done` just now is compared first, where there are labels.
    """
    info = run.read_info()
    lacking = set(info.pop("unwritten", []))
    lacking |= set() if run.pictures.is_dir() else {"pictures"}
    lacking |= {"report"} if report and not (run.report / "index.html").is_file() else set()
    if not lacking and board is None:
        progress.note(f"{run.path} has ended already: nothing to do")
    try:
        if done is not None and done[0].seen:
            result = compare_with_pixels(done[0].store, done[1], progress)
            info |= {"scores": result.scores, "timings": result.timings}
            run.write_info({**info, "unwritten": sorted(lacking)})
        if "pictures" in lacking:
            write_pictures(run)
        if board is not None:
            board.close(run)
        if "report" in lacking:
            write_report(run, progress=progress.note)
    except KeyboardInterrupt as error:
        progress.note(
            f"the clusters are saved in {run.path}; its {' and '.join(sorted(lacking))} may not "
            "be: write them with `deepcluster report`"
        )
        raise Stopped from error
    run.write_info(info)
    kept = run.remove_replaced()
    if kept is not None:
        progress.note(
            f"the run that was in {run.path} before is kept in {kept}: it holds a person's work "
            "(names, moves, labels)"
        )
    return run


def _reopen(out: str | Path | None, asked: Config, given: Collection[str]) -> tuple[RunDir, Config]:
    """The run to go on with and its settings; settings asked for that differ are refused.

    Those of the last step may differ while it is not done, as far as nothing before depends on
    them.
    """
    if out is None:
        raise ConfigError("--resume needs --out: the folder of the run to go on with")
    run = RunDir.open(out, finished=False)
    saved, info = run.read_config(), run.read_info()
    if info["status"] == "starting":  # the file may say already what the settings came to
        saved = override(Config(), info["asked"])
    wanted, kept = (flatten(dataclasses.asdict(config)) for config in (asked, saved))
    before = info.get("asked", {})  # what the kept ones came from: minutes, say, from which epochs
    if info.get("minutes") is not None:
        before["minutes"] = info["minutes"]
    differing = {
        name: value
        for name, value in wanted.items()
        if name in changed(asked).keys() | set(given)
        and value not in (kept[name], before.get(name), "auto")
        and name != "device"
    }
    late = {
        name: value
        for name, value in differing.items()
        if name.startswith("final.")
        and (name != "final.neighbours" or saved.method != "contrastive-clusters")
    }
    refused = differing.keys() - (late.keys() if info["status"] != "done" else set())
    if refused:
        raise ConfigError(
            f"{run.path} was started with other settings ({', '.join(sorted(refused))}): "
            "--resume goes on with its own; leave those flags out, or start anew in another folder"
        )
    saved = override(saved, late)
    if asked.device not in ("auto", saved.device):
        train = dataclasses.replace(saved.train, precision="auto")
        saved = dataclasses.replace(saved, device=asked.device, train=train)
    return run, saved


def _refuse_own_net(asked: Config, run: RunDir) -> None:
    """Refuse to begin with the net of the run that is to be replaced."""
    for net in (asked.backbone.removeprefix("local-dir:"), asked.weights):
        if net and run.path.exists() and run.path.resolve() in Path(net).resolve().parents:
            raise ConfigError(
                f"the net in {net} is of the run that would be replaced: choose another folder "
                "with --out"
            )


def _remember(names_from: str | Path | None, out: str | Path | None) -> Remembered | None:
    """What an earlier run says of its images, read before the work."""
    if names_from is None:
        return None
    if out is not None and Path(out).resolve() == Path(names_from).resolve():
        raise ConfigError(
            f"names from {names_from}, which is also where the new run would go: choose another "
            "folder with --out"
        )
    return Remembered.of(RunDir.open(names_from))


def _words(source: Any, embeddings: Any) -> list[str]:
    """A source as it is typed on the command line, from any folder; arrays cannot be typed."""
    if embeddings is not None:
        images = [] if source is None else ["--images", *_words(source, None)]
        return ["--embeddings", *_words(embeddings, None), *images]
    parts = source if isinstance(source, list | tuple) else [source]
    if not all(isinstance(part, str | Path) for part in parts):
        return ["…"]
    return [str(Path(part).absolute()) if is_there(Path(part)) else str(part) for part in parts]
