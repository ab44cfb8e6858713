"""A run is replaced, read and deleted safely: nothing of a person's goes, nothing odd comes in."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY as QUICK
from conftest import make_shapes
from make_run import make_run

from deepcluster.config import Config, override
from deepcluster.errors import NoImagesError, RunError
from deepcluster.files import Output, read_table
from deepcluster.fitting import fit_source
from deepcluster.progress import Progress
from deepcluster.run import RunDir

TINY = {**QUICK, "epochs": 1}


class Notes(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): b"" if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_run(tmp_path_factory.mktemp("made") / "run", n=40, clusters=3)


@pytest.fixture
def run(made: RunDir, tmp_path: Path) -> RunDir:
    shutil.copytree(made.path, tmp_path / "run")
    return RunDir(tmp_path / "run")


# -- replacing ----------------------------------------------------------------------------------


def test_all_that_a_fit_writes_is_its_own(finished: RunDir) -> None:
    assert finished.foreign() == []


def test_removing_leaves_nothing_of_a_run(finished: RunDir, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    RunDir(tmp_path / "run").remove()
    assert list(tmp_path.iterdir()) == []


def _note(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def _thesis(folder: Path) -> None:
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter1.tex").write_text("years")


def _sorted(folder: Path) -> None:
    (folder / "sorted" / "000").mkdir(parents=True)
    (folder / "sorted" / "000" / "a.png").write_bytes(b"the only copy")


def _labels(folder: Path) -> None:
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "labels.csv").write_text("id,cluster\n")


def _picture(folder: Path) -> None:
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / "pictures" / "holiday.png").write_bytes(b"mine")


def _sheet(folder: Path) -> None:
    (folder / "thumbnails" / "cat.webp").write_bytes(b"mine")


def _link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "a.png").write_bytes(b"mine")
    (folder / "model").symlink_to(folder.parent / "elsewhere")


def _link_to_a_file(folder: Path) -> None:
    (folder / "items.csv").unlink()
    (folder / "items.csv").symlink_to(folder / "run.json")


def _export(folder: Path) -> None:
    (folder / "export" / "timm").mkdir(parents=True)
    (folder / "export" / "timm" / "config.json").write_text("{}")


def _empty_folder(folder: Path) -> None:
    (folder / "later").mkdir()


@pytest.mark.parametrize(
    "put",
    [
        _note, _thesis, _sorted, _labels, _picture, _sheet, _link, _link_to_a_file, _export,
        _empty_folder,
    ],
)  # fmt: skip
def test_a_run_with_something_of_a_persons_is_not_replaced(
    put: Callable[[Path], None], run: RunDir
) -> None:
    put(run.path)
    before = everything(run.path.parent)
    with pytest.raises(RunError, match="move that to another folder first"):
        fit_source(make_shapes(9), override(Config(), TINY), out=run.path, overwrite=True)
    assert everything(run.path.parent) == before


@pytest.mark.parametrize(
    "info",
    [
        {"tool": "something else"},
        {"tool": "something else", "schema": 1},
        {"schema": 1, "status": "done"},
        {"tool": "deepcluster"},
        [],
        "",
    ],
)
def test_a_folder_that_only_has_a_run_json_is_not_replaced(info: object, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(info) if info != "" else "")
    (tmp_path / "config.toml").write_text("mine = true")
    before = everything(tmp_path)
    with pytest.raises(RunError, match="no run of deepcluster"):
        RunDir.free(tmp_path, overwrite=True)
    assert everything(tmp_path) == before


def test_a_source_within_the_run_is_not_deleted(run: RunDir, tmp_path: Path) -> None:
    _sorted(run.path)
    with pytest.raises(RunError, match="sorted/"):
        fit_source(run.path / "sorted", out=run.path, overwrite=True)
    assert (run.path / "sorted" / "000" / "a.png").is_file()


class Fails(Progress):
    """Breaks off as soon as an epoch has ended."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.said: list[str] = []

    def epoch(self, line: dict[str, object]) -> None:
        raise self.error

    def note(self, text: str) -> None:
        self.said.append(text)


def test_the_old_run_is_there_until_the_new_one_is_done(run: RunDir) -> None:
    """Fails, is stopped, fails; then goes on: the old one goes only then."""
    config, images = override(Config(), {**TINY, "epochs": 2}), make_shapes(30)
    before = everything(run.path)
    progress = Fails(OSError("disk on fire"))
    with pytest.raises(OSError, match="on fire"):
        fit_source(images, config, out=run.path, overwrite=True, progress=progress)
    aside = run.path.with_name("run.replaced")
    assert everything(aside) == before
    assert any(str(aside) in text for text in progress.said)
    assert run.read_info()["status"] == "failed"
    with pytest.raises(KeyboardInterrupt):  # what failed is replaced, the old run stays
        fit_source(
            images, config, out=run.path, overwrite=True, progress=Fails(KeyboardInterrupt())
        )
    assert everything(aside) == before
    assert run.read_info()["status"] == "interrupted"
    unfinished = everything(run.path)
    (run.path.parent / "photos").mkdir()
    (run.path.parent / "photos/a.png").write_bytes(b"no picture")
    with pytest.raises(NoImagesError):  # what was to be replaced, and the old run, stay
        fit_source(run.path.parent / "photos", config, out=run.path, overwrite=True)
    assert everything(run.path) == unfinished
    assert everything(aside) == before
    shutil.rmtree(run.path.parent / "photos")
    fit_source(images, config, out=run.path, resume=True)
    assert os.listdir(run.path.parent) == ["run"]  # noqa: PTH208
    assert run.read_info()["counts"]["images"] == 30


def test_a_run_that_a_person_worked_on_is_kept(run: RunDir) -> None:
    run.write_clusters({"names": {"0": "cats"}, "merged": {}})
    notes = Notes()
    fit_source(
        make_shapes(30), override(Config(), TINY), out=run.path, overwrite=True, progress=notes
    )
    kept = RunDir(run.path.with_name("run.old"))
    assert kept.read_clusters()["names"] == {"0": "cats"}
    assert run.read_clusters()["names"] == {}
    assert any("run.old" in text for text in notes.said)


def test_a_link_to_a_run_leads_to_the_new_one(run: RunDir, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("run")
    fit_source(make_shapes(30), override(Config(), TINY), out=link, overwrite=True)
    assert link.is_symlink()
    assert RunDir.open(run.path).read_info()["counts"]["images"] == 30


def test_a_run_put_aside_for_nothing_comes_back(run: RunDir) -> None:
    run.path.rename(run.aside.path)  # and there the process was killed
    assert RunDir.open(run.path).read_info()["status"] == "done"
    run.path.rename(run.aside.path)
    with pytest.raises(RunError, match="not empty"):
        RunDir.free(run.path)


def test_a_folder_in_the_way_is_left_alone(run: RunDir) -> None:
    run.aside.path.mkdir()
    (run.aside.path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="in the way"):
        RunDir.free(run.path, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", ["photos", "photos/deep"])
def test_nothing_is_written_among_the_images(tmp_path: Path, place: str, overwrite: bool) -> None:
    (tmp_path / "photos/deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        (tmp_path / "photos" / name).write_bytes(b"mine")
    before = everything(tmp_path)
    with pytest.raises(RunError, match="no run of deepcluster, so nothing is written there"):
        fit_source(tmp_path / "photos", out=tmp_path / place, overwrite=overwrite)
    assert everything(tmp_path) == before


def test_a_folder_that_is_no_run_is_not_to_be_gone_on_with(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("mine")
    with pytest.raises(RunError, match=r"no run of deepcluster.*choose another folder") as caught:
        RunDir.free(tmp_path / "mine")
    assert "--resume" not in str(caught.value)
    with pytest.raises(RunError, match="--resume, replace it with --overwrite"):
        RunDir.free(run.path)


def test_what_a_nas_leaves_is_no_work_of_a_person(run: RunDir) -> None:
    for name in ("@eaDir/config.toml@SynoEAStream", "pictures/@eaDir/a.png/SYNOFILE_THUMB_M.png"):
        (run.path / name).parent.mkdir(parents=True)
        (run.path / name).write_bytes(b"thumbnail")
    (run.path / "pictures/THUMBS.DB").write_bytes(b"thumbnails")
    assert run.foreign() == []
    fit_source(make_shapes(9), override(Config(), TINY), out=run.path, overwrite=True)
    assert os.listdir(run.path.parent) == ["run"]  # noqa: PTH208
    (run.path / "@eaDir.txt").write_text("mine")
    assert run.foreign() == ["@eaDir.txt"]


def test_default_folders_are_never_the_same(tmp_path: Path) -> None:
    """Three processes that choose one name at one time."""
    code = (
        "import sys; from pathlib import Path; from deepcluster.run import RunDir\n"
        "facts = {'status': 'running', 'name': '', 'command': [], 'started': '', 'counts': {}}\n"
        "for _ in range(20): RunDir.create_unique(Path(sys.argv[1]), lambda r: r.write_info(facts))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"run", *(f"run-{i}" for i in range(2, 61))}


@pytest.mark.parametrize("above", ["file", "file/deeper"])
def test_a_default_folder_that_cannot_be_made_is_refused(tmp_path: Path, above: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="cannot be written"):
        RunDir.create_unique(tmp_path / above / "run", lambda run: None)


def test_one_fit_at_a_time(run: RunDir) -> None:
    run.write_info({**run.read_info(), "status": "interrupted"})
    with run.locked():
        for arguments in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(RunError, match=f"at work in .*process {os.getpid()}"):
                fit_source(make_shapes(9), out=run.path, **arguments)  # type: ignore[arg-type]
        with pytest.raises(RunError, match="still at work"):
            RunDir.open(run.path)
    assert run.foreign() == [] and not (run.path / "fit.lock").exists()


def test_the_lock_of_a_dead_process_does_not_hold(run: RunDir) -> None:
    code = (
        "import sys, os; from deepcluster.run import RunDir\n"
        "with RunDir(sys.argv[1]).locked(): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=False)
    assert (run.path / "fit.lock").exists()
    with run.locked():
        assert run.is_live()
    assert not run.is_live()


# -- what commands write beside runs --------------------------------------------------------------


def test_an_output_is_never_written_over(tmp_path: Path) -> None:
    there = tmp_path / "photos.npy"
    there.write_bytes(b"mine")
    (tmp_path / "dangling.npy").symlink_to("nowhere")
    for path in (there, tmp_path, tmp_path / "dangling.npy"):
        with pytest.raises(RunError, match="exists already"):
            Output(path)
    with pytest.raises(RunError, match=r"photos\.npy is no folder"):
        Output(there / "x.npy")
    new = Output(tmp_path / "a" / "b" / "new.csv")
    assert not (tmp_path / "a").exists()
    with new.writing() as part:
        part.write_text("whole")
    assert new.path.read_text() == "whole"
    assert os.listdir(new.path.parent) == ["new.csv"]  # noqa: PTH208
    with pytest.raises(OSError, match="full"), Output(tmp_path / "c").writing() as part:
        part.write_text("ha")
        raise OSError("disk full")
    assert sorted(os.listdir(tmp_path)) == ["a", "dangling.npy", "photos.npy"]  # noqa: PTH208


@pytest.mark.skipif(sys.platform == "win32", reason="no /dev/null")
def test_a_device_is_written_to_as_it_is() -> None:
    with Output(Path("/dev/null")).writing() as part:
        part.write_text("gone")
    assert not Path("/dev/null.npy").exists()


# -- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [b'{"epoch": 12, "lo', b"\0" * 64, b"[]\n", b'{"epoch": "9"}\n'])
def test_a_last_line_that_is_broken_off_is_dropped(rest: bytes, run: RunDir) -> None:
    before = run.read_metrics()
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + rest)
    assert run.read_metrics() == before
    run.truncate_metrics(5)
    assert [line["epoch"] for line in run.read_metrics()] == [0, 1, 2, 3, 4]
    path.write_bytes(rest + b"\n" + path.read_bytes())
    if rest.strip(b"\0"):
        with pytest.raises(RunError, match=r"metrics\.jsonl .*its line 1 is broken: delete"):
            run.read_metrics()


def _items(**change: object) -> Callable[[RunDir], None]:
    def write(run: RunDir) -> None:
        table = run.read_items()
        columns = {name: table[name].to_pylist() for name in table.column_names}
        for name, value in change.items():
            columns[name][0] = value
        run.write_items(columns)

    return write


def _clusters(said: object) -> Callable[[RunDir], None]:
    return lambda run: (run.path / "clusters.json").write_text(json.dumps(said)) and None


def _cut(name: str, before: bytes) -> Callable[[RunDir], None]:
    def change(run: RunDir) -> None:
        raw = (run.path / name).read_bytes()
        (run.path / name).write_bytes(raw[: raw.index(before)])

    return change


def _bytes(name: str, raw: bytes) -> Callable[[RunDir], None]:
    return lambda run: (run.path / name).write_bytes(raw) and None


def _array(name: str, array: np.ndarray) -> Callable[[RunDir], None]:
    return lambda run: np.save(run.path / name, array)


def _read_all(run: RunDir) -> None:
    run = RunDir.open(run.path)
    run.read_config()
    run.read_metrics()
    run.read_skipped()
    run.read_items()
    run.read_embeddings()
    run.read_clusters()
    run.read_thumbnails()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_bytes("run.json", b""), r"run\.json was damaged"),
        (_bytes("run.json", b"{}"), r"run\.json .*'status' is missing"),
        (_bytes("run.json", b"[" * 100_000), r"run\.json was damaged"),
        (_bytes("config.toml", b""), r"config\.toml .*says nothing of backbone"),
        (_cut("config.toml", b"[train]"), r"config\.toml .*says nothing of .*train"),
        (_bytes("config.toml", b'backbone = "\xe9"'), r"config\.toml is not UTF-8"),
        (_bytes("config.toml", b"clusters = -3"), r"config\.toml .*clusters = -3 will not do"),
        (_bytes("items.parquet", b"PAR1nonsense"), r"items\.parquet"),
        (_items(cluster=-7), r"items\.parquet .*no cluster -7"),
        (_items(cluster=2**31 - 1), r"items\.parquet .*no cluster"),
        (_items(cluster=None), r"items\.parquet .*no cluster"),
        (_items(id="000001"), r"items\.parquet .*one id"),
        (_items(id=None), r"items\.parquet .*no id"),
        (_items(by="nobody"), r"items\.parquet .*by"),
        (_items(distance=float("inf")), r"items\.parquet .*distance"),
        (_array("embeddings.npy", np.zeros((39, 8), np.float32)), r"39 rows for 40 images"),
        (_array("embeddings.npy", np.full((40, 8), np.nan, np.float32)), "not finite"),
        (_array("embeddings.npy", np.zeros(40, np.float32)), "no table of float32"),
        (_bytes("embeddings.npy", b"\x93NUMPY"), r"embeddings\.npy"),
        (_clusters({"names": []}), r"clusters\.json .*names or merged"),
        (_clusters({"names": {"-1": "x"}, "merged": {}}), r"clusters\.json .*'-1' is no cluster"),
        (_clusters({"names": {}, "merged": {"2": 99999}}), r"clusters\.json .*99999"),
        (_clusters({"names": {"0": 7}, "merged": {}}), r"clusters\.json .*no text"),
        (_array("thumbnails/order.npy", np.zeros(40, np.uint32)), r"order\.npy .*misses an image"),
        (_array("thumbnails/order.npy", np.arange(9, dtype=np.uint32)), "9 of 40"),
        (_bytes("thumbnails/index.json", b'{"tile": 0}'), r"index\.json"),
        (_bytes("skipped.csv", b"a,b\n"), r"skipped\.csv"),
    ],
)
def test_a_damaged_file_is_named_and_refused(
    change: Callable[[RunDir], None], words: str, run: RunDir
) -> None:
    change(run)
    with pytest.raises(RunError, match=words) as caught:
        _read_all(run)
    assert "copy the whole run folder anew" in str(caught.value)


def test_settings_say_nothing_of_what_there_was_not(tmp_path: Path) -> None:
    """A run that began without small views goes on without them."""
    run = fit_source(make_shapes(24, colour=True), override(Config(), TINY), out=tmp_path / "run")
    text = (run.path / "config.toml").read_text(encoding="utf-8")
    assert run.read_config().contrastive_clusters.small_views == 0
    lines = [line for line in text.splitlines() if not line.startswith("small_views")]
    assert len(lines) < len(text.splitlines())
    (run.path / "config.toml").write_text("\n".join(lines), encoding="utf-8")
    assert run.read_config().contrastive_clusters.small_views == 0


@pytest.mark.parametrize("name", ["config.toml", "items.parquet", "embeddings.npy", "skipped.csv"])
def test_a_missing_file_is_named(name: str, run: RunDir) -> None:
    (run.path / name).unlink()
    with pytest.raises(RunError, match=f"{name} is missing"):
        _read_all(run)


def test_mutated_files_are_read_or_refused_in_our_own_words(made: RunDir, tmp_path: Path) -> None:
    """Bytes changed, cut, doubled, by chance with a seed: no other exception than RunError."""
    rng = np.random.default_rng(0)
    names = [
        "run.json", "config.toml", "metrics.jsonl", "items.parquet", "embeddings.npy",
        "skipped.csv", "clusters.json", "thumbnails/order.npy", "thumbnails/index.json",
    ]  # fmt: skip
    run = RunDir(tmp_path / "run")
    shutil.copytree(made.path, run.path)
    run.write_clusters({"names": {"0": "a"}, "merged": {"5": 1}})
    refused = 0
    for name in names:
        path = run.path / name
        whole = path.read_bytes()
        for _ in range(25):
            path.write_bytes(mutated(whole, rng))
            try:
                _read_all(run)
            except RunError as error:
                refused += 1
                assert name.split("/")[0] in str(error), error
        path.write_bytes(whole)
    _read_all(run)
    assert refused > 100


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """A file as a bad disk, a half copy or a hand that slipped would leave it."""
    raw = bytearray(whole)
    at, length = (int(x) for x in rng.integers(0, max(1, len(raw)), 2))
    match int(rng.integers(6)):
        case 0:
            del raw[at:]
        case 1:
            for i in rng.integers(0, len(raw), 8):
                raw[i] ^= 1 << int(rng.integers(8))
        case 2:
            raw[at : at + length] = bytes(length)
        case 3:
            raw[at:at] = raw[at : at + length]
        case 4:
            del raw[at : at + 1 + length // 8]
        case _:
            raw[at : at + 4] = rng.bytes(4)
    return bytes(raw)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_table_of_a_person_in_any_unicode(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "labels.csv").write_bytes("id\tlabel\r\na/é.png\tforêt\r\n".encode(encoding))
    header, rows = read_table(tmp_path / "labels.csv")
    assert header == ["id", "label"]
    assert [row for _, row in rows] == [{"id": "a/é.png", "label": "forêt"}]


def test_features_of_too_few_rows_are_not_written(run: RunDir) -> None:
    before = run.embeddings.read_bytes()
    with pytest.raises(ValueError, match="2 rows of features for 3"):
        run.write_embeddings([np.ones((2, 4), np.float32)], (3, 4))
    assert run.embeddings.read_bytes() == before
