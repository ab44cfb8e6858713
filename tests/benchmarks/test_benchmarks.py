"""The benchmarks' document is what the results say; what writes the results says what it should."""

import importlib
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_shapes
from make_run import write_run
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def one(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield one
    for name in (
        "record",
        "quality",
        "kmeans",
        "tables",
        "fit",
        "gpu",
        "uneven",
        "published",
        "processes",
        "paper_cost",
        "views",
        "decoding",
    ):
        sys.modules.pop(name, None)


def run_main(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(module.__file__), *words])
    threads = torch.get_num_threads()  # a benchmark sets them for the whole process
    try:
        module.main()
    finally:
        torch.set_num_threads(threads)


def line(**changes: Any) -> dict[str, Any]:
    hardware = {"cpu": "CPU", "cores": 2, "device": "cpu", "threads": 1}
    facts = {"threads": 1, "hardware": hardware, "versions": {"torch": "2"}, "commit": "abc"}
    scores = {"nmi": 0.5, "acc": 0.25, "ari": 0.125}
    fit = {"set": "mnist-train", "images": 60000, "minutes": 1.0, "seed": 0, "seconds": 66.0}
    fit |= {"backbone": "tiny", "size": 28, "epochs": 3, "processor_seconds": 60.0}
    fit |= {"fit": scores, "pixels": scores, "knn": 0.9, "linear_probe": 0.8}
    fit |= {"kmeans_nmi": {"10": 0.4, "20": 0.3}, "command": "deepcluster fit mnist --seed 0"}
    return {**facts, **fit, **changes}


def test_the_documents_are_what_the_results_say(load: Any) -> None:
    tables = load("tables")
    for document in tables.DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert text == tables.fill(text), "python benchmarks/tables.py writes it anew"
        assert "<!--/-->" in text
    assert tables.PICTURE.exists() == bool(tables.budgets(tables.read("fit-*.json")))


def test_the_readme_has_a_row_a_set(load: Any) -> None:
    runs = [line(minutes=10.0), line(minutes=10.0, seed=1), line(minutes=7.0)]
    peers = [
        line(set="digits", images=9, method=method, nmi=nmi, acc=0.5, settings={"minutes": 1})
        for method, nmi in (("pixels", 0.25), ("deepcluster", 0.75), ("dec", 0.5))
    ]
    head, _, digits, mnist = load("tables").readme(runs, peers).splitlines()
    assert head.startswith("| images")
    assert digits.startswith("| digits, 9 at 8 px | NMI 0.250 / ACC 0.500 | 0.750 / 0.500, 1 seed")
    assert "| 0.500 ± 0.000 / 0.250 ± 0.000, 2 seeds | 1.1 minutes on one core (`--min" in mnist


def test_rows_are_means_over_seeds(load: Any) -> None:
    tables = load("tables")
    better = {"nmi": 0.7, "acc": 0.35, "ari": 0.2}
    again = "deepcluster fit mnist --seed 1"
    text = tables.fits([line(), line(seed=1, fit=better, epochs=4, command=again)])
    assert "| mnist, 60,000; CPU, 1 thread on 2 cores | 1 | tiny, 28 px | 3, 4 |" in text
    assert "| 1.1 ± 0.0 | 1.0 ± 0.0 | 0.600 ± 0.141 |" in text
    assert "| 0.400 / 0.300 | 0, 1 | abc |" in text
    assert text.count("deepcluster fit mnist") == 1  # the seed is no command of its own


def test_only_sets_of_several_budgets_are_drawn(load: Any) -> None:
    tables = load("tables")
    runs = [line(), line(minutes=5.0), line(set="digits"), line(set="digits", epochs=5)]
    assert list(tables.budgets(runs)) == ["mnist, 60,000; CPU, 1 thread on 2 cores; abc"]
    versions = [line(commit=each, minutes=m) for m, each in enumerate(("62ef4d0", "8e1e596"), 1)]
    assert [len(same) for same in tables.budgets(versions).values()] == [2]
    assert not tables.budgets([line(), line(minutes=None, size=64)])  # not a longer budget
    assert "minutes.svg" in tables.picture(runs)
    assert "minutes.svg" not in tables.picture(runs[:1])


def test_epochs_and_arithmetic_tell_rows_apart(load: Any) -> None:
    tables = load("tables")
    runs = [line(minutes=None), line(minutes=None, epochs=5), line(precision="bfloat16")]
    text = tables.fits(runs)
    assert "| mnist, 60,000; CPU, 1 thread on 2 cores | – | tiny, 28 px | 3 |" in text
    assert "| – | tiny, 28 px | 5 |" in text
    assert "| mnist, 60,000; CPU, bfloat16, 1 thread on 2 cores | 1 | tiny, 28 px | 3 |" in text


def test_gpu_rows_that_nobody_measured_say_so(load: Any) -> None:
    tables = load("tables")
    assert tables.gpu([]).count("not measured") == len(tables.GPU_ROWS)
    speed = {"images_per_second": 1e4, "flop_per_image": 2e9}
    speed |= {"share_of_peak": 0.25, "peak_flop_per_second": 8e13}
    speed["minutes"] = float(tables.GPU_ROWS[0][1])
    text = tables.gpu([line(hardware={"gpu": "H"}, **speed)])
    assert text.count("not measured") == len(tables.GPU_ROWS) - 1
    assert "| 10,000 | 2.000 | 25.0 % | 80.0 |" in text
    versions = [line(hardware={"gpu": "H"}, commit=commit, **speed) for commit in ("a", "b")]
    assert tables.gpu(versions).count("| 10,000 | 2.000 |") == 2  # never averaged


def test_unequal_sizes_have_a_row_a_ratio_and_their_median(load: Any) -> None:
    facts = {"ratio": 50, "smallest": 9, "classes": 10, "chosen": 8, "chosen_error": 0.2}
    lines = [
        facts | {"set": name, "seed": seed, "nmi": {"ours": nmi, "k-means": 0.5}}
        for name, seed, nmi in (("mnist", 0, 0.9), ("mnist", 1, 0.8), ("digits", 0, 0.6))
    ]
    tables = load("tables")
    text = tables.uneven([{**line(command="python benchmarks/uneven.py"), "lines": lines}])
    assert "| mnist | 50 to 1 | 9 | 0.850 ± 0.071 | 0.500 ± 0.000 | 8, 8 of 10 |" in text
    assert "| **median** | 50 to 1 |  | 0.800 | 0.500 |  |" in text
    assert "Mean |ln(chosen / true)|: 0.200." in text
    assert tables.uneven([]) == "Not measured yet."


def test_regions_have_a_row_a_way(load: Any) -> None:
    one = {"pictures": "plain", "method": "SLIC", "miou": [0.5, 0.7], "ari": [0.5, 0.5]}
    one |= {"regions": [4, 3], "seconds": [1.0, 2.0]}
    tables = load("tables")
    text = tables.regions([line(lines=[one], command="python benchmarks/segment.py")])
    assert "| plain | SLIC | 0.600 ± 0.141 | 0.500 ± 0.000 | 3, 4 | 1.5 |" in text
    assert "2 pictures of each kind" in text and tables.regions([]) == "Not measured yet."


def test_the_cost_of_the_whole_run_is_the_sum_of_its_parts(load: Any) -> None:
    cost = load("paper_cost")
    assert min(cost.PCA_ROWS) > cost.FEATURES  # with fewer rows PCA goes another way
    parts = dict.fromkeys(("decode", "train", "forward", "pca", "pca_once", "iteration"), 0.0)
    assert cost.whole(parts | {"train": 3.6, "decode": 1.8}, 1000)["epoch_hours"] == 1
    assert cost.whole(parts | {"pca": 3.6, "pca_once": 3600}, 1000)["epoch_hours"] == 2
    whole = cost.whole(parts | {"train": 3.6, "forward": 3.6, "decode": 1.8}, 1000)
    assert whole["hours"] == 200 * 2 + 0.5


def test_parts_fall_exponentially(load: Any) -> None:
    y = np.repeat(np.arange(5), 100)
    x, labels = load("uneven").part(y[:, None].astype(float), y, 16, 0, 10**6)
    assert sorted(np.bincount(labels).tolist()) == [6, 12, 25, 50, 100]
    assert (x[:, 0] == labels).all()


def test_commands_lose_the_folders_of_the_machine(load: Any) -> None:
    shown = load("record").shown
    words = ["deepcluster", "fit", "/a/b/mnist.parquet", "--out=/c/x/", "runs/demo"]
    assert shown(words) == "deepcluster fit mnist.parquet --out=x runs/demo"
    assert shown(["local-dir:/a/net", "hub:c/d"]) == "local-dir:net hub:c/d"


def test_a_result_is_written_as_it_ends_and_not_repeated(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quality = load("quality")
    out = tmp_path / "quality.json"
    words = ["--sets", "digits", "--images", "300", "--methods", "pixels", "pca", "--out", str(out)]
    run_main(quality, monkeypatch, *words)
    first = json.loads(out.read_text(encoding="utf-8"))
    assert [run["method"] for run in first] == ["pixels", "pca"]
    assert first[0]["images"] == 300
    assert 0.4 < first[0]["nmi"] < 1
    run_main(quality, monkeypatch, *words)
    assert json.loads(out.read_text(encoding="utf-8")) == first
    assert "not measured" in load("tables").quality(first)  # ours


def test_a_peer_that_is_not_installed_is_left_out(
    load: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("umap", "clustpy", "clustpy.deep", "clustpy.deep.neural_networks"):
        monkeypatch.setitem(sys.modules, name, None)
    words = ["--sets", "digits", "--images", "100", "--methods", "umap-kmeans", "dec"]
    run_main(load("quality"), monkeypatch, *words, "--out", str(tmp_path / "quality.json"))
    assert capsys.readouterr().out.count("is left out") == 2


def test_a_finished_run_gives_its_figures(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    clusters = np.arange(120) % 3
    embeddings = np.eye(8)[clusters] + rng.normal(0, 0.01, (120, 8))
    scores = {"nmi": 1.0, "acc": 1.0, "ari": 1.0}
    write_run(
        tmp_path / "run",
        images=np.zeros((120, 8, 8, 1), np.uint8),
        embeddings=embeddings.astype(np.float32),
        clusters=clusters,
        labels=[f"class {c}" for c in clusters],
        info={
            "seconds": 90.0,
            "scores": {"fit": scores, "pixels": scores},
            "hardware": line()["hardware"],
            "versions": {"torch": "2"},
            "command": ["deepcluster", "fit", "/somewhere/images"],
        },
    )
    out = tmp_path / "results"
    run_main(load("fit"), monkeypatch, str(tmp_path / "run"), "--out", str(out), "--commit", "abc")
    (path,) = out.glob("fit-*.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["knn"] == found["linear_probe"] == 1
    assert found["kmeans_nmi"]["10"] > 0.5
    assert found["command"] == "deepcluster fit images"
    assert "0.000" not in load("tables").fits([found])


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_processor(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["--set", "digits", "--minutes", "0.2", "--device", "cpu", "--out", str(tmp_path)]
    run_main(load("gpu"), monkeypatch, *words)
    (path,) = tmp_path.glob("gpu-*.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert 0 < found["share_of_peak"] < 1
    assert found["flop_per_image"] > 1e5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kmeans", "quality"])
def test_quick_prints_one_line(
    load: Any, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_main(load(name), monkeypatch, "--quick")
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(name) and " s" in said


@pytest.mark.slow
def test_published_rows_go_on_from_call_to_call(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [{"bytes": _png(picture), "path": None} for picture in make_shapes(60)]
    for part in ("train", "test"):
        labels = pa.array([i % 3 for i in range(60)])
        pq.write_table(
            pa.table({"image": images, "label": labels}), tmp_path / f"shapes-{part}.parquet"
        )
    words = ["--row", "and", "--data", str(tmp_path), "--set", "shapes", "--epochs", "2"]
    words += ["--device", "cpu", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    published = load("published")
    small = published.ROWS["and"]["settings"] | {"backbone": "convnet_tiny", "clusters": 3}
    monkeypatch.setitem(published.ROWS["and"], "settings", small)
    run_main(published, monkeypatch, *words, "--minutes", "0")
    assert "again goes on" in capsys.readouterr().out
    run_main(published, monkeypatch, *words)
    found = json.loads((tmp_path / "published-and-0.json").read_text(encoding="utf-8"))
    assert found["epochs"] == 2 and 0 < found["scores"]["knn"] <= 1
    assert load("tables").published([found]).count("not measured") == 2


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def test_the_messages_of_a_step_are_counted(load: Any) -> None:
    from deepcluster import processes
    from deepcluster.config import Config, override
    from deepcluster.training.resolve import resolve

    asked = {"backbone": "convnet_tiny", "clusters": 3, "epochs": 2, "device": "cpu"}
    config = resolve(override(Config(), asked), n=40, size=16, channels=1)
    before = processes.world, processes._trade
    sizes = load("processes").messages(config, 2)
    assert (processes.world, processes._trade) == before
    weights = 189_936  # of the net alone
    gradients = [size for size in sizes if size > 4 * weights]
    assert len(gradients) == 1
    assert sum(sizes) < 2 * gradients[0]  # Muon's matrices: half of them to the other
    assert len(sizes) == 1 + 2 * 8 + 2 + 1 + 1  # images, norms, features, gradients, matrices


def test_processes_have_a_row_each(load: Any) -> None:
    tables = load("tables")
    facts = line(images=2000, size=28, batch=256, epochs=3, repeats=3)
    rows = [{"processes": 1, "threads": 2, "epoch": 2.0, "fit": 9.0, "messages": 0, "bytes": 0},
            {"processes": 2, "threads": 1, "epoch": 2.5, "fit": 10.0, "messages": 20,
             "bytes": 4_800_000}]  # fmt: skip
    found = tables.processes([{**facts, "rows": rows}])
    assert "| 1 × 2 | 2.00 | 1.00 | 9.0 | 0 | 0.0 MB |" in found
    assert "| 2 × 1 | 2.50 | 0.80 | 10.0 | 20 | 4.8 MB |" in found
    rows = [{"processes": 1, "before": 3e8, "peak": [600_000_000], "half": [400_000_000]},
            {"processes": 2, "before": 3e8, "peak": [520_000_000, 500_000_000],
             "half": [400_000_000, 390_000_000]}]  # fmt: skip
    found = tables.memory([{**facts, "images": 200_000, "rows": rows}])
    assert "| 1 | 300 | 600 | – | 200 | – |" in found
    assert "| 2 | 300 | 520 | 500 | 120 | 110 |" in found


@pytest.mark.slow
def test_ways_to_start_processes_are_measured(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent / "src"))
    small = ["--images", "60", "--size", "16", "--backbone", "convnet_tiny", "--batch", "32"]
    few = ["--epochs", "2", "--repeats", "1", "--out", str(tmp_path / "out.json")]
    run_main(load("processes"), monkeypatch, *small, *few)
    one, two = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (one["processes"], one["threads"], one["messages"]) == (1, 2, 0)
    assert (two["processes"], two["threads"]) == (2, 1)
    assert two["messages"] > 0 and min(one["epoch"], two["epoch"]) > 0
    run_main(load("processes"), monkeypatch, *small, "--memory", "--of", "2x1", *few[4:])
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(row["peak"]) == len(row["half"]) == 2 and min(row["peak"] + row["half"]) > 1e5


def test_views_and_reading_have_a_row_each(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views, decoding = load("views"), load("decoding")
    monkeypatch.setattr(load("record"), "RESULTS", tmp_path)
    monkeypatch.setattr(views, "BATCHES", 2)
    monkeypatch.setenv("DEEPCLUSTER_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(np.full((20, 20, 3), 40 * i, np.uint8)).save(folder / f"{i}.jpg")
    run_main(views, monkeypatch, "--batch", "4", "--size", "16", "--turns", "1", "--write")
    run_main(decoding, monkeypatch, "decode", str(folder), "--size", "8", "--turns", "1", "--write")
    run_main(decoding, monkeypatch, "read", "--images", "2600", "--size", "8", "--write")
    names = ("views", "decode", "read")
    found = [json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    assert all({"kernels", "load", "threads"} <= facts.keys() for facts in found)
    text = load("tables").reading(*([facts] for facts in found))
    assert "| views of 4 images, 16 px |" in text and "DataLoader of two" in text
    assert "| decoding 5 files to 8 px, one worker |" in text
    assert text.count("| images a second from a file of 2,600, 8 px, ") == 4
