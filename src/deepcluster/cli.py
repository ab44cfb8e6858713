"""The command line: one short function a verb, each calling one library function.

Results go to stdout, progress and log to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 no
usable images, 130 interrupted.

Long, because a verb's parameters and their help stand with it; the work is in other rooms.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import io
import json
import os
import re
import shlex
import signal
import sys
import time
import typing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import App, Group, Parameter

from deepcluster.config import (
    GIVEN,
    Config,
    SegmentSettings,
    flatten,
    load_recipe,
    override,
    recipe_names,
)
from deepcluster.errors import (
    ConfigError,
    NoImagesError,
    ProcessError,
    RunError,
    SourceError,
    Stopped,
)
from deepcluster.files import Output
from deepcluster.methods import METHODS
from deepcluster.progress import counted
from deepcluster.run import RunDir
from deepcluster.show.exact import escaped, show
from deepcluster.show.results import print_json, print_plan, print_rows, print_run
from deepcluster.version import __version__

if TYPE_CHECKING:
    from deepcluster.show.terminal import TerminalProgress

DONE, FAILED, USAGE, NO_IMAGES, INTERRUPTED = 0, 1, 2, 3, 130

SHARED = ("fit", "predict", "embed", "evaluate")
"""Commands that several processes of a launcher do together; others are done by the first alone."""

EVERYDAY = Group("Everyday flags", sort_key=0)
SETTINGS = Group("Settings", help="In recipes and config.toml under the same names.", sort_key=1)


_typed: ContextVar[frozenset[str]] = ContextVar("typed", default=frozenset())
"""Settings that the command line itself names."""


def read_recipe(
    app: App, commands: tuple[str, ...], arguments: cyclopts.ArgumentCollection
) -> None:
    """Fill in what the command line leaves open: from --config, then from --recipe.

    Both may hold settings and nothing else: never where to write, or what to overwrite.
    """
    by_name = {argument.name: argument for argument in arguments}
    if "--recipe" not in by_name:
        return
    settings = {key: by_name["--" + key.replace("_", "-")] for key in SETTING_NAMES}
    _typed.set(frozenset(key for key, argument in settings.items() if argument.tokens))
    for key, argument in settings.items():
        _refuse_fractions(key, argument)
    for flag in ("--config", "--recipe"):
        tokens = by_name[flag].tokens
        name = tokens[0].value if tokens else ""
        if not name:
            continue
        if flag == "--config" and not name.endswith(".toml"):
            raise ConfigError(f"--config takes a .toml file, not {name!r}")
        values = load_recipe(name)
        try:
            override(Config(), values)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
        for key, value in flatten(values).items():
            if not settings[key].tokens:
                for i, one in enumerate(value if isinstance(value, list) else [value]):
                    text = str(one).lower() if isinstance(one, bool) else str(one)
                    token = cyclopts.Token(keyword=key, value=text, source=name, index=i)
                    settings[key].append(token)


def _refuse_fractions(key: str, argument: cyclopts.Argument) -> None:
    """The parser rounds 1.5 where a whole number is wanted; a person should know."""
    kinds = {argument.hint, *typing.get_args(argument.hint)}
    for token in argument.tokens:
        if int in kinds and float not in kinds and re.fullmatch(r"[-+]?[\d_.]+(e.*)?", token.value):
            try:
                int(token.value)
            except ValueError:
                raise ConfigError(
                    f"{key} = {token.value} will not do: it takes a whole number"
                ) from None


app = App(
    name="deepcluster",
    help="Cluster unlabelled images, and get a backbone pretrained on them.",
    help_format="plaintext",
    version=__version__,
    config=read_recipe,
    suppress_keyboard_interrupt=False,
)

SETTING_NAMES = tuple(flatten(dataclasses.asdict(Config())))
AsJson = Annotated[
    bool, Parameter(name="--json", negative="", help="Print the result as JSON.", group=EVERYDAY)
]
RunPath = Annotated[Path, Parameter(help="A run folder.")]
Source = Annotated[str, Parameter(help="Images, as for fit.")]
Device = Annotated[str, Parameter(help="Where the net runs.")]


@app.command(help_epilogue=f"Methods: {', '.join(METHODS)}.")
def fit(
    *source: str,
    recipe: Annotated[
        str,
        Parameter(group=EVERYDAY, help=f"A named set of settings: {', '.join(recipe_names())}."),
    ] = "default",
    config: Annotated[str | None, Parameter(group=EVERYDAY)] = None,
    out: Annotated[Path | None, Parameter(group=EVERYDAY)] = None,
    labels: Annotated[str | None, Parameter(group=EVERYDAY)] = None,
    names_from: Annotated[Path | None, Parameter(group=EVERYDAY)] = None,
    resume: Annotated[bool, Parameter(negative="", group=EVERYDAY)] = False,
    overwrite: Annotated[bool, Parameter(negative="", group=EVERYDAY)] = False,
    dry_run: Annotated[bool, Parameter(negative="", group=EVERYDAY)] = False,
    report: Annotated[bool, Parameter(group=EVERYDAY)] = True,
    tensorboard: Annotated[bool, Parameter(negative="", group=EVERYDAY)] = False,
    embeddings: Annotated[Path | None, Parameter(group=EVERYDAY)] = None,
    images: Annotated[
        list[str] | None, Parameter(group=EVERYDAY, negative="", consume_multiple=True)
    ] = None,
    as_json: AsJson = False,
    settings: Annotated[Config, Parameter(name="*", group=SETTINGS)] = Config(),  # noqa: B008
) -> None:
    """Train on images and cluster them; leaves a run folder.

    Parameters
    ----------
    source
        A folder of images, a .txt of paths, Parquet files, .npy or .npz arrays, or one of:
        digits mnist fashion-mnist kmnist cifar10 cifar100 svhn stl10 imagenette (all but the
        first are downloaded).
    config
        A TOML file with settings, on top of the recipe.
    out
        The run folder; by default runs/<source>-<time>.
    labels
        For measuring only: "folders" (sub-folders are classes) or a CSV file with columns
        path,label.
    names_from
        An earlier run: its names, merges and moves go over to the clusters that hold the same
        images, wherever these lie now.
    resume
        Go on with the fit in --out.
    overwrite
        Replace the run in --out.
    dry_run
        Say what would be done, how much memory and time it takes, and do nothing.
    report
        Write the report at the end.
    tensorboard
        Write scalars and a grid for each cluster for TensorBoard as well.
    embeddings
        Features made elsewhere (.npy or .parquet), in place of SOURCE: nothing is trained.
    images
        The images that --embeddings are of, for the report; several folders or files, as SOURCE.
    """
    from deepcluster import fitting, processes
    from deepcluster.machine import command_line

    if processes.follows():
        return None if dry_run else _follow()
    seen: Any = _one_or_many(tuple(images)) if images else None
    if embeddings is None:
        seen = _one_or_many(source)
    elif source:
        raise ConfigError("--embeddings stands in place of SOURCE; their pictures go to --images")
    if images is not None and embeddings is None:
        raise ConfigError("--images are those of --embeddings: give images as SOURCE")
    if dry_run:
        plan = fitting.plan_source(
            seen, settings, labels=labels, embeddings=embeddings, given=_typed.get()
        )
        return print_plan(plan, as_json)
    with _progress(as_json) as progress:
        run = fitting.fit_source(
            seen,
            settings,
            out=out,
            labels=labels,
            names_from=names_from,
            resume=resume,
            overwrite=overwrite,
            report=report,
            tensorboard=tensorboard,
            embeddings=embeddings,
            progress=progress,
            command=command_line(),
            given=_typed.get(),
        )
    print_run(run, as_json)
    if not as_json and names_from is not None:
        show(*run.read_info()["carried"])


@app.command
def predict(
    run: RunPath,
    *source: Source,
    out: Path | None = None,
    into: Path | None = None,
    how: Literal["copy", "link", "move"] | None = None,
    classes: Annotated[bool, Parameter(negative="")] = False,
    risk: float = 0.05,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Say which cluster images belong to, or with --classes which class.

    Parameters
    ----------
    out
        Write a CSV file (id, path, cluster, name, distance, confidence) in place of stdout; it must
        not exist.
    into
        Put the images into a folder a cluster under this one; sorted.csv there says which is where.
        The same command again goes on where it was stopped, and puts nothing there twice. It lies
        outside of a source that is a folder, the fit's as well, unless they are moved.
    how
        Copy, hard-link or move them there; copy, if not given.
    classes
        Say classes, with the classifier that `deepcluster teach` made; the columns are id, path,
        class, probability, unsure. With --into, unsure images come into a folder of their own.
    risk
        Share of wrong ones that you bear among the images that are not unsure.
    """
    from deepcluster import finished, processes

    if processes.follows():
        return _follow()
    if how is not None and into is None:
        raise ConfigError(f"--how {how} needs --into: the folder to put the images in")
    finished.check_risk(risk)
    opened = RunDir.open(run)
    target = None if out is None else Output(out)
    if into is not None:
        if opened.read_config().backbone == GIVEN:
            raise ConfigError(
                "--into sorts pictures, and this run knows vectors alone: --out FILE.csv writes a "
                "table"
            )
        among = [*source, *opened.read_info().get("source", [])]  # the fit's own images as well
        finished.check_folder(into, among, how or "copy")
    if classes:
        opened.read_classifier()  # before any work
    with processes.joined(), _progress(as_json) as progress:
        found: Any = finished.predict_source(
            opened, _one_or_many(source), device=device, progress=progress
        )
    if classes:
        found = finished.classify(opened, found, risk=risk)
    if target is not None:
        with target.writing() as part, part.open("w", newline="", encoding="utf-8") as file:
            found.write_csv(file)
        if not target.device and not (into is not None and as_json):
            print_rows(["file", "images"], [(out, len(found.rows()))], as_json)
    if into is not None:
        placed = found.as_predictions() if classes else found
        counts = finished.sort_into(placed, into, how=how or "copy")
        print_rows(["folder", "images"], list(counts.items()), as_json)
        if not as_json:
            show(f"which is where: {into / finished.LOG}")
    elif out is None:
        if as_json:
            return print_json(found.rows())
        text = io.StringIO(newline="")
        found.write_csv(text)
        rows = text.getvalue()  # as data to a program, but nothing that a terminal obeys
        sys.stdout.write(escaped(rows, but="\r\n") if sys.stdout.isatty() else rows)


@app.command
def embed(
    run: RunPath,
    *source: Source,
    out: Path,
    shard: str | None = None,
    device: Device = "auto",
) -> None:
    """Write features of images as a .npy array, a row an image.

    Parameters
    ----------
    out
        The .npy file; ids and paths go beside it, as .ids.csv. Neither must exist.
    shard
        Only the part I/N of the images, such as 3/8 (the third of eight): --out is a Parquet file
        then, and `deepcluster merge` joins all of them.
    """
    from deepcluster import finished, processes

    if processes.follows():
        return _follow()
    opened, images = RunDir.open(run), _one_or_many(source)
    if shard is not None:
        part = finished.Shard.parse(shard)
        with processes.joined(), _progress(False) as progress:
            count = finished.embed_part(opened, images, part, out, device=device, progress=progress)
        return show(f"{out}: {counted(count, 'image')}, part {part}")
    finished.check_embeddings_out(out)
    with processes.joined(), _progress(False) as progress:
        found = finished.predict_source(opened, images, device=device, progress=progress)
    _show_features(finished.write_embeddings(found, out))


@app.command
def merge(*parts: Path, out: Path) -> None:
    """Join the parts that `deepcluster embed --shard` wrote to what embed writes of all images.

    Parameters
    ----------
    parts
        All parts, in any order.
    out
        The .npy file; ids and paths go beside it, as .ids.csv. Neither must exist.
    """
    from deepcluster import finished

    finished.check_embeddings_out(out)
    with _progress(False) as progress:
        files = finished.join_parts(parts, out, progress=progress)
    _show_features(files)


def _show_features(files: list[Path]) -> None:
    import numpy as np

    for path in files:
        if path.suffix == ".npy":
            rows, columns = np.load(path, mmap_mode="r").shape
            show(f"{path}: {rows} × {columns} float32")
        else:
            show(str(path))


@app.command
def evaluate(
    run: RunPath,
    *source: str,
    labels: str | None = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure a run, on its own images or on others that have labels.

    Parameters
    ----------
    source
        Other images, as for fit; none: the run's own.
    labels
        "folders" or a CSV file with columns path,label; without a source, of the run's own images.
    """
    from deepcluster import finished, processes

    if processes.follows():
        return _follow()
    with processes.joined(), _progress(as_json) as progress:
        scores = finished.evaluate_run(
            RunDir.open(run),
            _one_or_many(source) if source else None,
            labels=labels,
            device=device,
            progress=progress,
        )
    print_rows(["score", "value"], [(k, round(v, 4)) for k, v in scores.items()], as_json)


@app.command
def export(
    run: RunPath,
    *,
    to: Literal["timm", "onnx", "torchscript"],
    out: Path | None = None,
    classes: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write the backbone, or the whole way from image to class, for other programs.

    Parameters
    ----------
    to
        A folder that timm reads, an ONNX file or a TorchScript file.
    out
        Where to write; by default a name under the run folder.
    classes
        One ONNX or TorchScript file from image to the probabilities of the classes, with the
        classifier that `deepcluster teach` made.
    """
    from deepcluster import finished

    opened = RunDir.open(run)
    names = {"timm": "timm", "onnx": "model.onnx", "torchscript": "model.pt"}
    target = out or opened.path / "export" / names[to]
    show(str(finished.export_run(opened, to, target, classes=classes)))


@app.command
def suggest(
    run: RunPath,
    *,
    n: Annotated[int, Parameter(name=["-n", "--images"])] = 40,
    out: Path | None = None,
) -> None:
    """Choose the images that a person should label next, and make a page to label them in.

    Parameters
    ----------
    n
        How many images. After `deepcluster teach` those that the classifier doubts come first.
    out
        The table to fill in by hand; by default to_label.csv beside the page.
    """
    from deepcluster import finished

    if n < 1:
        raise ConfigError(f"-n {n}: ask for 1 image or more")
    opened = RunDir.open(run)
    found = finished.suggest_run(opened, n, out=out)
    show(
        str(found),
        f"page:  {found.page}",
        f"table: {found.table}",
        f"then:  deepcluster teach {shlex.quote(str(run))} labels.csv",
    )


@app.command
def teach(run: RunPath, labels: Path, *, as_json: AsJson = False) -> None:
    """Make a classifier from labels of some of the images.

    Parameters
    ----------
    labels
        A table with the columns label and id or path; from the page of `deepcluster suggest`, or
        any other.
    """
    from deepcluster import finished

    opened = RunDir.open(run)
    found = finished.teach_run(opened, labels)
    if as_json:
        return print_json(opened.read_classifier()[1])
    expected = found.taught.expected
    show(
        f"{counted(found.labels, 'label')}, {counted(len(found.taught.classes), 'class')}, "
        f"{found.taught.classifier.method}",
        f"expected to be right on {expected.accuracy:.0%} of images like these (nine times in ten "
        f"between {expected.low:.0%} and {expected.high:.0%}; {expected.right} of "
        f"{counted(expected.checked, 'label')} held out)",
    )
    rows = []
    for row in found.taught.classes:
        held = f"{row.right} of {row.checked}" if row.checked else "–"
        share = f"{row.expected:.0%}" if row.predicted else "–"
        rows.append((row.name, row.labels, held, f"{row.predicted:,}", share))
    if not opened.read_classifier()[1]["drawn"]:
        show("this holds if every class has a label: of others, labels say nothing")
    head = ["class", "labels", "held out, right", "images", "expected right"]
    print_rows(head, rows, as_json=False)
    show(*(found.notes + found.mistakes or ["no label looks like a mistake"]))
    if found.helpful:
        show(
            f"labels that would help most: {', '.join(found.helpful[:5])} … "
            f"(deepcluster suggest {shlex.quote(str(run))})"
        )
    show(
        f"classifier: {opened.classifier}",
        f"to look at the classes: deepcluster report {shlex.quote(str(run))}",
    )


@app.command
def info(run: RunPath, *, as_json: AsJson = False) -> None:
    """Say what a run is: source, main settings, scores, time."""
    opened = RunDir.open(run, finished=False)
    if not as_json:
        facts, config = opened.read_info(), opened.read_config()
        show(shlex.join(facts["command"]) or "from Python")
        show(f"begun {facts['started']}: {config.learning}, seed {config.seed}, on {config.device}")
    print_run(opened, as_json)


@app.command
def cache(
    *,
    clear: Annotated[
        bool, Parameter(help="Remove decoded images and features; downloads stay.", negative="")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is kept in the cache folder.

    Decoded images and features of frozen nets, and data sets that were downloaded.
    The next fit of the same files takes seconds with them.
    DEEPCLUSTER_CACHE names another folder.
    """
    from deepcluster.images import kept

    freed = kept.clear() if clear else 0
    found = kept.holdings()
    if as_json:
        rows = [{**dataclasses.asdict(one), "folder": str(one.folder)} for one in found]
        print_json({"freed": freed, "kept": rows})
        return
    if clear:
        show(f"freed {freed / 1e6:.1f} MB")
    for one in found:
        show(f"{one.kind}: {counted(one.files, 'file')}, {one.bytes / 1e6:.1f} MB in {one.folder}")


@app.command
def report(run: RunPath) -> None:
    """Write the report of a run again: pages to look at, name and mend the clusters."""
    opened = RunDir.open(run)
    with _progress(False) as progress:
        page = _write_report(opened, progress)
    show(str(page))


@app.command
def apply(
    run: RunPath,
    labels: Path | None = None,
    *,
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
) -> None:
    """Write names, merges and moves into the run: the report's labels.csv, or another run's.

    Parameters
    ----------
    labels
        The labels.csv that the report of this run gave.
    from_
        Another run: what a person said of it goes over by the images that both know.
    """
    from deepcluster.report import apply_labels

    opened = RunDir.open(run)
    if (labels is None) == (from_ is None):
        raise ConfigError("give the labels.csv of the run's report, or another run with --from")
    if labels is not None:
        done = str(apply_labels(opened, labels))
    else:
        from deepcluster.naming import Remembered, carry_names

        assert from_ is not None
        done = str(carry_names(Remembered.of(RunDir.open(from_)), opened))
    show(*done.split("\n"))
    if opened.report.is_dir():
        with _progress(False) as progress:
            show(f"report: {_write_report(opened, progress)}")


@app.command
def recluster(run: RunPath, *, clusters: int | Literal["auto"]) -> None:
    """Take another number of clusters; names stay with the images, nothing is trained.

    Parameters
    ----------
    clusters
        How many, or auto to choose.
    """
    from deepcluster import finished

    opened = RunDir.open(run)
    for sentence in finished.recluster_run(opened, clusters):
        show(sentence)
    with _progress(False) as progress:
        show(f"report: {_write_report(opened, progress)}")


@app.command
def update(
    run: Path,
    *source: str,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Say where images belong that came after the fit, which fit nowhere, and if a fit is due.

    Parameters
    ----------
    run
        A run folder; the list goes into its updates/.
    source
        Images, as for fit. Those that the run or an earlier update knows are passed over.
    """
    from deepcluster import finished

    opened = RunDir.open(run)
    with _progress(as_json) as progress:
        found = finished.update_run(opened, _one_or_many(source), device=device, progress=progress)
    if as_json:
        print_json(found.facts())
    else:
        show(*str(found).splitlines())


@app.command
def segment(
    *images: Path,
    out: Path,
    settings: Annotated[SegmentSettings, Parameter(name="*")] = SegmentSettings(),  # noqa: B008
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Cut single images into regions; nothing is learnt from other images.

    Parameters
    ----------
    images
        Image files.
    out
        A new folder: NAME.labels.png and NAME.overlay.png for each image, and areas.csv;
        files that cannot be read are in skipped.csv.
    """
    from deepcluster.segmentation import AREAS, segment_files

    with _progress(as_json) as progress:
        done = segment_files(
            images,
            out,
            settings,
            device=device,
            phase=progress.phase,
            advance=progress.advance,
            note=progress.note,
        )
    rows = [
        (item.image, f"{counted(item.labels, 'region')} in {item.seconds:.0f} s") for item in done
    ]
    print_rows(["image", "result"], rows, as_json)
    if not as_json:
        show(f"areas: {out / AREAS}")


def _write_report(run: RunDir, progress: TerminalProgress) -> Path:
    from deepcluster.report import write_report
    from deepcluster.show.pictures import write_pictures

    write_pictures(run)
    return write_report(run, progress=progress.note)


# -- printing ---------------------------------------------------------------------------------


def _one_or_many(source: tuple[str, ...]) -> str | list[str]:
    if not source:
        raise ConfigError("which images? Give a folder, files, or a name such as digits")
    return source[0] if len(source) == 1 else list(source)


def _follow() -> None:
    """What a process does that is not the launcher's first, which says and writes everything."""
    from deepcluster.training.loop import follow

    follow()


@contextmanager
def _progress(quiet: bool) -> Iterator[TerminalProgress]:
    from deepcluster.show.terminal import TerminalProgress

    with TerminalProgress(quiet=quiet) as progress:
        yield progress


# -- entry ------------------------------------------------------------------------------------


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks for the next step, where the user has not set it up otherwise.

    glibc gets each large block (above 32 MiB at the most) from the system and gives it back as soon
    as it is freed. A step with photographs has dozens of those, and to have their pages zeroed each
    time is a third of a step with 96 pixels and an eighth with 64. For a program of our own only:
    it holds until the process ends (mallopt(3): M_MMAP_MAX is -4, M_TRIM_THRESHOLD -1).
    """
    user = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if sys.platform == "linux" and not user:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(-4, 0)
            mallopt(-1, -1)


def _tell_torchrun(text: str, *, after_another: bool = False) -> None:
    """Leave what was said where torchrun, which speaks last, finds it and says it again.

    The file's name and form are those of torch.distributed.elastic's errors. Last of all stands
    what failed first, to the second: so what failed `after_another` process is put into the next.
    """
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        when = int(time.time()) + after_another
        said = {"message": text, "extraInfo": {"timestamp": str(when)}}
        Path(file).write_text(json.dumps({"message": said}), encoding="utf-8")


def run_app(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""

    def tell(text: str) -> None:
        with suppress(OSError):  # a terminal that is gone
            sys.stderr.write(escaped(text, but="\n") + "\n")
            said.append(text)
            _tell_torchrun("\n".join(said), after_another=after_another)

    words = sys.argv[1:] if arguments is None else arguments
    if "RANK" in os.environ and words and words[0] not in SHARED:
        from deepcluster import processes

        if processes.follows():
            return DONE
    said: list[str] = []
    after_another = False
    try:
        app(arguments, exit_on_error=False, print_error=True)
    except cyclopts.CycloptsError as error:
        with suppress(OSError):
            _tell_torchrun(str(error))
        return USAGE
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except (ConfigError, RunError) as error:
        tell(f"deepcluster: {error}")
        return USAGE
    except Stopped:  # which has been said
        with suppress(OSError):
            _tell_torchrun("deepcluster: interrupted")
        return INTERRUPTED
    except KeyboardInterrupt:
        tell("deepcluster: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        with suppress(OSError):  # as where there is no such file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        after_another = isinstance(error, ProcessError)
        if isinstance(error, OSError) and error.strerror:
            place = f": {error.filename}" if error.filename is not None else ""
            tell(f"deepcluster: {error.strerror}{place}")
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                tell("ask for the right to read and write there, or work on a copy of your own")
        else:
            tell(f"deepcluster: {error}" if str(error) else f"deepcluster: {error!r}")
        if isinstance(error, NoImagesError):
            return NO_IMAGES
        return USAGE if isinstance(error, SourceError) else FAILED
    return DONE


def main() -> None:
    """Entry point of the ``deepcluster`` command."""
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):  # Windows lacks the second, others the third
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a file's name need not be UTF-8, and a pipe's encoding may lack letters of one
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="surrogateescape")
    keep_freed_memory()
    sys.exit(run_app())
