"""Features made elsewhere: the same clusters wherever they lie."""

import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch

from deepcluster import DeepCluster, fitting
from deepcluster.clustering import neighbours
from deepcluster.clustering.kmeans import kmeans
from deepcluster.clustering.pca import normalise
from deepcluster.config import Config, override
from deepcluster.fitting import fit_source
from deepcluster.run import RunDir
from deepcluster.training import conclude


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = 4 * np.eye(12)[rng.integers(0, 3, 400)] + rng.normal(0, 1, (400, 12))
    np.save(tmp_path / "rows.npy", rows.astype(np.float16))
    return tmp_path / "rows.npy"


def test_rows_that_do_not_fit_in_memory_lie_in_a_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conclude, "PIECE", 64)
    monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path / "cache"))
    expected = normalise(torch.from_numpy(np.load(file).astype(np.float32)))
    mapped = np.load(file, mmap_mode="r")
    assert torch.equal(conclude.unit_rows(mapped), expected)
    monkeypatch.setattr(conclude, "free_memory", lambda: 1000.0)
    real, held = np.memmap, []

    def mapping(opened: IO[bytes], *args: Any, **options: Any) -> Any:
        held.append(os.fstat(opened.fileno()).st_size)
        return real(opened, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(np, "memmap", mapping)
        found = conclude.unit_rows(mapped)
    assert held == [expected.nbytes]  # written before it was mapped: a full disk is an error
    assert torch.equal(found, expected)
    assert not list((tmp_path / "cache" / "pixels").iterdir())  # the file has no name


def test_a_run_of_vectors_reads_them_from_its_own_file_and_its_bits_are_those_of_memory(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conclude, "PIECE", 64)
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 100)
    monkeypatch.setattr(neighbours, "PROBES", 3)
    real, seen = fitting.fit_vectors, []

    def fit_vectors(embeddings: torch.Tensor, *given: Any, **named: Any) -> conclude.FitResult:
        seen.append(torch.from_numpy(np.load(tmp_path / "run" / "embeddings.npy")))
        assert torch.equal(embeddings, seen[0])
        return real(embeddings, *given, **named)

    monkeypatch.setattr(fitting, "fit_vectors", fit_vectors)
    config = override(Config(), {"clusters": 3, "device": "cpu", "seed": 0})
    run = fit_source(None, config, embeddings=file, out=tmp_path / "run")
    assert len(seen) == 1 and torch.equal(seen[0], conclude.unit_rows(np.load(file)))
    inside = DeepCluster(n_clusters=3, device="cpu", random_state=0).fit_embeddings(np.load(file))
    other = RunDir(tmp_path / "other")
    inside.save(other.path)
    for name in ("embeddings.npy", "tree.npz", "contents.npy", "items.csv"):
        assert (run.path / name).read_bytes() == (other.path / name).read_bytes(), name
    one, two = (each.read_neighbours(400) for each in (run, other))
    assert one is not None and two is not None and one.recall == two.recall < 1
    assert np.array_equal(one.index, two.index) and np.array_equal(one.distance, two.distance)
    assert np.array_equal(inside.embeddings_, run.read_embeddings())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_k_means_of_a_mapped_file_is_that_of_an_array(
    dtype: type[np.floating], file: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "other.npy", np.load(file).astype(dtype))
    mapped = np.load(tmp_path / "other.npy", mmap_mode="r")

    def cluster(x: np.ndarray, metric: str) -> list[bytes]:
        generator = torch.Generator().manual_seed(0)
        found = kmeans(x, 7, metric=metric, n_init=2, generator=generator)  # type: ignore[arg-type]
        return [t.numpy().tobytes() for t in (found.centers, found.labels, found.distances)]

    for metric in ("l2", "cosine"):
        assert cluster(mapped, metric) == cluster(np.array(mapped), metric)


@pytest.mark.parametrize("algorithm", ["graph", "kmeans"])
def test_the_time_of_k_means_is_said_apart(algorithm: str, file: Path, tmp_path: Path) -> None:
    config = override(Config(), {"clusters": 3, "device": "cpu", "final.algorithm": algorithm})
    run = fit_source(None, config, embeddings=file, out=tmp_path / "run")
    said = run.log.read_text()
    assert ("beside k-means" in said) == (algorithm == "kmeans") and "expected: " in said
