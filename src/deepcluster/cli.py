"""The command line: one short function a verb, each calling one library function.

Results go to stdout, progress and log to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 no
usable images, 130 interrupted.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import App, Group, Parameter
from rich.console import Console
from rich.table import Table

from deepcluster.config import Config, flatten, load_recipe, recipe_names
from deepcluster.errors import ConfigError, RunError
from deepcluster.methods import METHODS
from deepcluster.run import RunDir
from deepcluster.version import __version__

if TYPE_CHECKING:
    from deepcluster.show.terminal import TerminalProgress

DONE, FAILED, USAGE, NO_IMAGES, INTERRUPTED = 0, 1, 2, 3, 130

EVERYDAY = Group("Everyday flags", sort_key=0)
SETTINGS = Group("Settings", help="In recipes and config.toml under the same names.", sort_key=1)


def read_recipe(
    app: App, commands: tuple[str, ...], arguments: cyclopts.ArgumentCollection
) -> None:
    """Fill in what the command line leaves open: from --config, then from --recipe."""
    by_name = {argument.name: argument for argument in arguments}
    if "--recipe" not in by_name:
        return
    for flag in ("--config", "--recipe"):
        tokens = by_name[flag].tokens
        name = tokens[0].value if tokens else ""
        if not name:
            continue
        if flag == "--config" and not name.endswith(".toml"):
            raise ConfigError(f"--config takes a .toml file, not {name!r}")
        for key, value in flatten(load_recipe(name)).items():
            argument = by_name.get("--" + key.replace("_", "-"))
            if argument is None:
                raise ConfigError(f"{name}: there is no setting {key!r}")
            if not argument.tokens:
                text = str(value).lower() if isinstance(value, bool) else str(value)
                argument.append(cyclopts.Token(keyword=key, value=text, source=name))


app = App(
    name="deepcluster",
    help="Cluster unlabelled images, and get a backbone pretrained on them.",
    help_format="plaintext",
    version=__version__,
    config=read_recipe,
    suppress_keyboard_interrupt=False,
)

SourceArguments = Annotated[str, Parameter(name="SOURCE")]
AsJson = Annotated[
    bool, Parameter(name="--json", negative="", help="Print the result as JSON.", group=EVERYDAY)
]


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
    resume: Annotated[bool, Parameter(negative="", group=EVERYDAY)] = False,
    overwrite: Annotated[bool, Parameter(negative="", group=EVERYDAY)] = False,
    dry_run: Annotated[bool, Parameter(negative="", group=EVERYDAY)] = False,
    report: Annotated[bool, Parameter(group=EVERYDAY)] = True,
    tensorboard: Annotated[bool, Parameter(negative="", group=EVERYDAY)] = False,
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
    """
    from deepcluster import fitting

    images = _one_or_many(source)
    if dry_run:
        plan = fitting.plan_source(images, settings, labels=labels)
        return _print_plan(plan, as_json)
    with _progress(as_json) as progress:
        run = fitting.fit_source(
            images,
            settings,
            out=out,
            labels=labels,
            resume=resume,
            overwrite=overwrite,
            report=report,
            tensorboard=tensorboard,
            progress=progress,
            command=fitting.command_line(),
        )
    _print_run(run, as_json)


@app.command
def predict(
    run: Path,
    *source: str,
    out: Path | None = None,
    into: Path | None = None,
    how: Literal["copy", "link", "move"] = "copy",
    classes: Annotated[bool, Parameter(negative="")] = False,
    risk: float = 0.05,
    device: str = "auto",
    as_json: AsJson = False,
) -> None:
    """Say which cluster images belong to, or with --classes which class.

    Parameters
    ----------
    run
        A run folder.
    source
        Images, as for fit.
    out
        Write a CSV file (id, path, cluster, name, distance, confidence) in place of stdout.
    into
        Put the images into a folder a cluster under this one.
    how
        Copy, hard-link or move them there.
    classes
        Say classes, with the classifier that `deepcluster teach` made; the columns are id, path,
        class, probability, unsure. With --into, unsure images come into a folder of their own.
    risk
        Share of wrong ones that you bear among the images that are not unsure.
    device
        Where the net runs.
    """
    from deepcluster import finished

    opened = RunDir.open(run)
    if classes:
        opened.read_classifier()  # before any work
    with _progress(as_json) as progress:
        found: Any = finished.predict_source(
            opened, _one_or_many(source), device=device, progress=progress
        )
    if classes:
        found = finished.classify(opened, found, risk=risk)
    if out is not None:
        with out.open("w", newline="", encoding="utf-8") as file:
            found.write_csv(file)
    if into is not None:
        placed = found.as_predictions() if classes else found
        counts = finished.sort_into(placed, into, how=how)
        _print_rows(["folder", "images"], list(counts.items()), as_json)
    elif out is None:
        rows = found.rows()
        if as_json:
            _print_json(rows)
        else:
            found.write_csv(sys.stdout)


@app.command
def embed(run: Path, *source: str, out: Path, device: str = "auto") -> None:
    """Write features of images as a .npy array, a row an image.

    Parameters
    ----------
    run
        A run folder.
    source
        Images, as for fit.
    out
        The .npy file; the ids go beside it, as .ids.txt.
    device
        Where the net runs.
    """
    from deepcluster import finished

    with _progress(False) as progress:
        found = finished.predict_source(
            RunDir.open(run), _one_or_many(source), device=device, progress=progress
        )
    finished.write_embeddings(found, out)
    Console().print(f"{out}: {found.embeddings.shape[0]} × {found.embeddings.shape[1]} float32")


@app.command
def evaluate(
    run: Path,
    *source: str,
    labels: str | None = None,
    device: str = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure a run, on its own images or on others that have labels.

    Parameters
    ----------
    run
        A run folder.
    source
        Other images, as for fit; none: the run's own.
    labels
        "folders" or a CSV file with columns path,label.
    device
        Where the net runs.
    """
    from deepcluster import finished

    with _progress(as_json) as progress:
        scores = finished.evaluate_run(
            RunDir.open(run),
            _one_or_many(source) if source else None,
            labels=labels,
            device=device,
            progress=progress,
        )
    _print_rows(["score", "value"], [(k, round(v, 4)) for k, v in scores.items()], as_json)


@app.command
def export(
    run: Path,
    *,
    to: Literal["timm", "onnx", "torchscript"],
    out: Path | None = None,
    classes: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write the backbone, or the whole way from image to class, for other programs.

    Parameters
    ----------
    run
        A run folder.
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
    Console().print(str(finished.export_run(opened, to, target, classes=classes)))


@app.command
def suggest(
    run: Path,
    *,
    n: Annotated[int, Parameter(name=["-n", "--images"])] = 40,
    out: Path | None = None,
) -> None:
    """Choose the images that a person should label next, and make a page to label them in.

    Parameters
    ----------
    run
        A run folder.
    n
        How many images. After `deepcluster teach` those that the classifier doubts come first.
    out
        The table to fill in by hand; by default to_label.csv beside the page.
    """
    from deepcluster import rounds

    if n < 1:
        raise ConfigError(f"-n {n}: ask for 1 image or more")
    found = rounds.suggest_run(RunDir.open(run), n, out=out)
    _print_text(
        f"{len(found.ids)} images to label\npage:  {found.page}\ntable: {found.table}\n"
        f"then:  deepcluster teach {shlex.quote(str(run))} labels.csv"
    )


@app.command
def teach(run: Path, labels: Path, *, as_json: AsJson = False) -> None:
    """Make a classifier from labels of some of the images.

    Parameters
    ----------
    run
        A run folder.
    labels
        A table with the columns label and id or path; from the page of `deepcluster suggest`, or
        any other.
    """
    from deepcluster import rounds

    opened = RunDir.open(run)
    found = rounds.teach_run(opened, labels)
    if as_json:
        return _print_json(opened.read_classifier()[1])
    expected = found.taught.expected
    _print_text(
        f"{found.labels:,} labels, {len(found.taught.classes)} classes, "
        f"{found.taught.classifier.method}\n"
        f"expected to be right on {expected.accuracy:.0%} of images like these (nine times in ten "
        f"between {expected.low:.0%} and {expected.high:.0%}; {expected.right} of "
        f"{expected.checked} labels that were held out)"
    )
    table = Table("class", "labels", "held out, right", "images", "expected right")
    for row in found.taught.classes:
        held = f"{row.right} of {row.checked}" if row.checked else "–"
        share = f"{row.expected:.0%}" if row.predicted else "–"
        table.add_row(row.name, str(row.labels), held, f"{row.predicted:,}", share)
    Console().print(table)
    _print_text("\n".join([*found.notes, *found.mistakes]) or "no label looks like a mistake")
    _print_text(
        f"labels that would help most: {', '.join(found.helpful[:5])} … "
        f"(deepcluster suggest {shlex.quote(str(run))})"
    )


@app.command
def info(run: Path, *, as_json: AsJson = False) -> None:
    """Say what a run is: source, main settings, scores, time.

    Parameters
    ----------
    run
        A run folder.
    """
    opened = RunDir.open(run, finished=False)
    if not as_json:
        facts, config = opened.read_info(), opened.read_config()
        _print_text(
            f"{shlex.join(facts['command']) or 'from Python'}\n"
            f"begun {facts['started']}: {config.method}, {config.backbone}, size {config.size}, "
            f"epochs {config.epochs}, seed {config.seed}, on {config.device}"
        )
    _print_run(opened, as_json)


@app.command
def report(run: Path) -> None:
    """Write the report of a run again: pages to look at, name and mend the clusters.

    Parameters
    ----------
    run
        A run folder.
    """
    from deepcluster.report import write_report
    from deepcluster.show.pictures import write_pictures

    opened = RunDir.open(run)
    with _progress(False) as progress:
        write_pictures(opened)
        page = write_report(opened, progress=progress.note)
    Console().print(str(page))


@app.command
def apply(run: Path, labels: Path) -> None:
    """Write names, merges and moves from the report's labels.csv into the run.

    Parameters
    ----------
    run
        A run folder.
    labels
        The labels.csv that the report gave.
    """
    from deepcluster.report import apply_labels

    Console().print(str(apply_labels(RunDir.open(run), labels)))


# -- printing ---------------------------------------------------------------------------------


def _one_or_many(source: tuple[str, ...]) -> str | list[str]:
    if not source:
        raise ConfigError("which images? Give a folder, files, or a name such as digits")
    return source[0] if len(source) == 1 else list(source)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _print_text(text: str) -> None:
    Console(soft_wrap=True, markup=False, highlight=False).print(text)


def _print_rows(head: list[str], rows: list[tuple[Any, ...]], as_json: bool) -> None:
    if as_json:
        return _print_json({str(row[0]): row[1] for row in rows})
    table = Table(*head)
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)


def _print_plan(plan: Any, as_json: bool) -> None:
    config = plan.config
    chosen = config.final.choose
    facts = {
        "source": plan.name,
        "images": plan.images,
        "clusters": f"2 to {config.clusters}, chosen at the end" if chosen else config.clusters,
        "size": config.size,
        "backbone": config.backbone,
        "epochs": config.epochs,
        "device": config.device,
        "memory_gb": round(plan.cost.memory / 1e9, 2),
        "seconds": round(plan.cost.seconds),
    }
    if as_json:
        return _print_json({**facts, "notes": plan.notes})
    _print_rows(["dry run", "nothing was done"], list(facts.items()), as_json=False)
    _print_text("\n".join(plan.notes))


def _print_run(run: RunDir, as_json: bool) -> None:
    facts = run.read_info()
    if as_json:
        return _print_json({**facts, "run": str(run.path)})
    console = Console()
    counts, scores = facts["counts"], facts.get("scores", {})
    console.print(
        f"{facts['name']}: {counts['images']:,} images, {counts['clusters']} clusters, "
        f"{facts['status']}"
        + (f" in {facts['seconds']:.0f} s" if "seconds" in facts else "")
        + (f", {counts['skipped']} left out" if counts["skipped"] else "")
    )
    history = run.read_metrics()
    last = [line["nmi_previous"] for line in history if line.get("nmi_previous") is not None]
    found = scores.get("fit", {})
    if "nmi" in found:
        table = Table("", "NMI", "ARI", "ACC", "NMI to the previous epoch")
        for name, title in (("fit", "deepcluster"), ("pixels", "k-means on the pixels")):
            if name in scores:
                figures = [f"{scores[name][key]:.3f}" for key in ("nmi", "ari", "acc")]
                stable = f"{last[-1]:.3f}" if last and name == "fit" else ""
                table.add_row(title, *figures, stable)
        console.print(table)
    elif last:
        console.print(f"NMI to the previous epoch: {last[-1]:.3f}")
    if "modularity" in found:
        console.print(
            f"modularity: {found['modularity']:.3f} (needs no labels; among runs that differ in "
            "seed or epochs alone, higher is often better)",
            soft_wrap=True,
        )
    console.print(f"run folder: {run.path}", soft_wrap=True)
    if run.pictures.is_dir():
        console.print(f"pictures:   {run.pictures}", soft_wrap=True)
    if (run.report / "index.html").is_file():
        console.print(f"report:     {run.report / 'index.html'}", soft_wrap=True)


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


def run_app(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        app(arguments, exit_on_error=False, print_error=True)
    except (cyclopts.CycloptsError, tomllib.TOMLDecodeError):
        return USAGE
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except (ConfigError, RunError) as error:
        errors.print(f"deepcluster: {error}")
        return USAGE
    except KeyboardInterrupt:
        errors.print("deepcluster: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        with suppress(OSError):  # as where there is no such file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        from deepcluster.errors import NoImagesError, SourceError

        errors.print(f"deepcluster: {error}" if str(error) else f"deepcluster: {error!r}")
        if isinstance(error, NoImagesError):
            return NO_IMAGES
        return USAGE if isinstance(error, SourceError) else FAILED
    return DONE


def main() -> None:
    """Entry point of the ``deepcluster`` command."""
    signal.signal(signal.SIGTERM, _interrupt)
    keep_freed_memory()
    sys.exit(run_app())
