"""Features in parts come to what they are in one go, and nothing else is joined."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import make_shapes

from deepcluster.cli import run_app
from deepcluster.errors import ConfigError, NoImagesError, RunError
from deepcluster.finished import Shard, embed_part, join_parts, predict_source, write_embeddings
from deepcluster.finished.parts import HEADER
from deepcluster.images.listing import Listing
from deepcluster.images.vectors import read_vectors
from deepcluster.run import RunDir

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def parts(finished: RunDir, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three parts; one of the 61 files is broken."""
    place = tmp_path_factory.mktemp("parts")
    paths = [place / f"part-{number}.parquet" for number in (1, 2, 3)]
    counts = [
        embed_part(finished, folder, Shard(number, 3), path, device="cpu")
        for number, path in enumerate(paths, 1)
    ]
    assert sum(counts) == 60 and max(counts) <= 21
    return paths


@pytest.fixture
def own(parts: list[Path], tmp_path: Path) -> list[Path]:
    """Copies of the parts, to do with as a test likes."""
    return [Path(shutil.copy(path, tmp_path)) for path in parts]


def test_parts_join_to_what_embed_writes(
    finished: RunDir, folder: Path, parts: list[Path], tmp_path: Path
) -> None:
    whole = write_embeddings(predict_source(finished, folder, device="cpu"), tmp_path / "whole")
    joined = join_parts(parts[::-1], tmp_path / "joined.npy")
    assert [path.name for path in joined] == ["joined.npy", "joined.ids.csv"]
    assert joined[1].read_bytes() == whole[1].read_bytes()
    one, other = np.load(joined[0]), np.load(whole[0])
    assert one.shape == other.shape and one.dtype == other.dtype
    assert np.allclose(one, other, atol=1e-6)  # the batches are other ones
    assert joined[0].stat().st_size == whole[0].stat().st_size


def test_a_part_is_a_table_that_a_fit_can_begin_with(parts: list[Path], finished: RunDir) -> None:
    vectors = read_vectors(parts[0])
    assert vectors.rows.shape[1] == finished.read_embeddings().shape[1]
    assert vectors.ids is not None and vectors.ids == finished.read_items()["id"].to_pylist()[:20]


@pytest.mark.parametrize(
    ("text", "places"), [("1/3", range(0, 3)), ("3/3", range(6, 10)), ("1/1", range(0, 10))]
)
def test_a_shard_is_a_stretch(text: str, places: range) -> None:
    assert Shard.parse(text).places(10) == places
    assert str(Shard.parse(text)) == text


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/4", "²/3"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="the third of eight"):
        Shard.parse(text)


def test_missing_and_doubled_parts_are_refused(own: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    with pytest.raises(RunError, match=r"1 of 3 parts are missing: .*--shard 2/3$"):
        join_parts([own[0], own[2]], out)
    with pytest.raises(RunError, match="given twice"):
        join_parts([*own, own[0]], out)
    again = Path(shutil.copy(own[1], tmp_path / "again.parquet"))
    with pytest.raises(RunError, match="both part 2/3"):
        join_parts([*own, again], out)
    with pytest.raises(RunError, match="which parts"):
        join_parts([], out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("run", "same run"), ("listing", "same images"), ("shards", "same number of parts")],
)
def test_parts_of_something_else_are_refused(
    name: str, words: str, own: list[Path], tmp_path: Path
) -> None:
    table = pq.read_table(own[1])
    header = json.loads(table.schema.metadata[HEADER])
    header[name] = 4 if name == "shards" else "another"
    pq.write_table(table.replace_schema_metadata({HEADER: json.dumps(header)}), own[1])
    with pytest.raises(RunError, match=words):
        join_parts(own, tmp_path / "out.npy")


def test_a_source_that_has_changed_is_noticed(
    finished: RunDir, folder: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder / "rings", mine)
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    embed_part(finished, mine, Shard(1, 2), paths[0], device="cpu")
    next(mine.iterdir()).unlink()
    embed_part(finished, mine, Shard(2, 2), paths[1], device="cpu")
    with pytest.raises(RunError, match="the source has changed"):
        join_parts(paths, tmp_path / "out.npy")


def test_what_is_no_part_is_refused(own: list[Path], tmp_path: Path) -> None:
    for raw in (b"", own[0].read_bytes()[:-9], b"id,path\n"):
        own[0].write_bytes(raw)
        with pytest.raises(RunError, match="no part, or damaged"):
            join_parts(own, tmp_path / "out.npy")
    own[0].unlink()
    with pytest.raises(RunError, match="cannot be read"):
        join_parts(own, tmp_path / "out.npy")


def test_nothing_is_written_over(
    finished: RunDir, folder: Path, own: list[Path], tmp_path: Path
) -> None:
    before = own[0].read_bytes()
    with pytest.raises(RunError, match="exists already"):
        embed_part(finished, folder, Shard(1, 3), own[0])
    assert own[0].read_bytes() == before
    (tmp_path / "out.ids.csv").touch()
    with pytest.raises(RunError, match=r"ids\.csv exists already"):
        join_parts(own, tmp_path / "out.npy")


def test_a_part_may_be_empty_but_not_all(finished: RunDir, tmp_path: Path) -> None:
    from PIL import Image

    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("a.png", "b.png"):
        (mine / name).write_bytes(b"no picture")
    Image.fromarray(make_shapes(1)[0]).save(mine / "c.png")
    paths = [tmp_path / f"{number}.parquet" for number in (1, 2, 3)]
    counts = [
        embed_part(finished, mine, Shard(number, 3), path, device="cpu")
        for number, path in enumerate(paths, 1)
    ]
    assert counts == [0, 0, 1]
    features, _ = join_parts(paths, tmp_path / "out.npy")
    assert np.load(features).shape[0] == 1
    with pytest.raises(ConfigError, match="3 images cannot be parted into 4"):
        embed_part(finished, mine, Shard(1, 4), tmp_path / "4.parquet")
    (mine / "c.png").write_bytes(b"nor this")
    bad = [tmp_path / f"bad-{number}.parquet" for number in (1, 2)]
    for number, path in enumerate(bad, 1):
        embed_part(finished, mine, Shard(number, 2), path, device="cpu")
    with pytest.raises(NoImagesError, match="any of the 2 parts"):
        join_parts(bad, tmp_path / "none.npy")


def test_the_command_line_parts_and_joins(
    finished: RunDir, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, paths = str(finished.path), [str(tmp_path / f"{number}.parquet") for number in (1, 2)]
    for number, path in enumerate(paths, 1):
        words = ["embed", run, str(folder), "--shard", f"{number}/2", "--out", path]
        assert run_app([*words, "--device", "cpu"]) == 0
    assert "part 2/2" in capsys.readouterr().out
    assert run_app(["merge", *paths, "--out", str(tmp_path / "f.npy")]) == 0
    assert f"{tmp_path}/f.npy: 60 × " in capsys.readouterr().out
    assert run_app(["merge", paths[0], "--out", str(tmp_path / "g.npy")]) == 2
    assert "missing" in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_scripts_run(finished: RunDir, folder: Path, tmp_path: Path) -> None:
    """As they stand, with a `deepcluster` that is this one."""
    command = tmp_path / "bin" / "deepcluster"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m deepcluster "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}

    def bash(script: str, *words: object, **more: str) -> str:
        done = subprocess.run(
            ["bash", str(EXAMPLES / script), *map(str, words)],
            env=environment | more, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    parts = tmp_path / "parts"
    for task in ("2", "1", "1"):  # the last is there already
        facts = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_MAX": "2"}
        bash("embed-slurm.sh", finished.path, folder, parts, **facts)
    join_parts(sorted(parts.glob("*.parquet")), tmp_path / "slurm.npy")
    bash("embed-loop.sh", finished.path, folder, tmp_path / "loop.npy", 2)
    assert np.array_equal(np.load(tmp_path / "slurm.npy"), np.load(tmp_path / "loop.npy"))


def test_what_lies_behind_a_part_is_not_read() -> None:
    read = []

    def pictures() -> Iterator[tuple[int, np.ndarray]]:
        for place in range(10):
            read.append(place)
            yield place, make_shapes(1)[0]

    listing = Listing(
        "x", [str(i) for i in range(10)], [None] * 10, pictures, lambda count: iter(())
    )
    assert [name for name, _ in listing.only(range(2, 4)).pictures()] == ["2", "3"]
    assert read == [0, 1, 2, 3, 4]


def test_a_bit_that_fell_over_is_found_and_nothing_is_left(own: list[Path], tmp_path: Path) -> None:
    whole = bytearray(own[1].read_bytes())
    rows = pq.ParquetFile(own[1]).read()["embedding"].combine_chunks().flatten().to_numpy()
    place = bytes(whole).index(rows[:4].tobytes())
    whole[place + 2] ^= 0x40
    own[1].write_bytes(whole)
    with pytest.raises(RunError, match=f"{own[1].name} is damaged"):
        join_parts(own, tmp_path / "joined.npy")
    assert not list(tmp_path.glob("joined*"))


def test_a_part_is_not_called_npy(finished: RunDir, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name it .*one\.parquet"):
        embed_part(finished, folder, Shard(1, 3), tmp_path / "one.npy", device="cpu")


def test_a_part_that_lacks_images_is_told(
    parts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_app(["merge", *map(str, parts), "--out", str(tmp_path / "joined.npy")])
    said = capsys.readouterr().err
    assert said.count("of its") == 1 and "of its 21 images" in said.replace(
        "20 images", "21 images"
    )
