import itertools
from typing import Any

import numpy as np
import pytest
import sklearn.cluster
import torch
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import check_estimator

from deepcluster.clustering import estimator
from deepcluster.clustering import kmeans as engine
from deepcluster.clustering import rows as reading
from deepcluster.clustering.estimator import KMeans
from deepcluster.clustering.kmeans import assign, kmeans
from deepcluster.clustering.rows import is_memory_mapped
from deepcluster.progress import Progress

SHAPES = [(300, 2, 3), (1000, 16, 10), (800, 40, 60), (50, 5, 50), (64, 3, 1)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Overlapping clusters, far from the origin."""
    x, _ = make_blobs(n, d, centers=7, cluster_std=4.0, random_state=seed)
    return (x + 30).astype(np.float32)


def start(x: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    return x[np.random.default_rng(seed).choice(len(x), k, replace=False)]


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
@pytest.mark.parametrize("max_iter", [3, 200])
def test_is_scikit_learns_from_the_same_start(n, d, k, max_iter):
    x = blobs(n, d)
    first = start(x, k)
    reference = sklearn.cluster.KMeans(k, init=first, n_init=1, max_iter=max_iter, tol=1e-4)
    reference.fit(x.astype(np.float64))
    found = kmeans(x, k, init=first, max_iter=max_iter, tol=1e-4, generator=generator())
    np.testing.assert_array_equal(found.labels, reference.labels_)
    np.testing.assert_allclose(found.centers, reference.cluster_centers_, rtol=1e-5)
    assert found.inertia == pytest.approx(reference.inertia_, rel=1e-5, abs=1e-6)
    assert found.n_iter == reference.n_iter_


def test_is_faiss_from_the_same_start():
    faiss = pytest.importorskip("faiss")
    x = blobs(2000, 24)
    first = start(x, 20)
    reference = faiss.Kmeans(24, 20, niter=8, max_points_per_centroid=10**6)
    reference.train(x, init_centroids=first)
    squares, labels = reference.index.search(x, 1)
    found = kmeans(x, 20, init=first, max_iter=8, tol=0, generator=generator())
    np.testing.assert_array_equal(found.labels, labels[:, 0])
    assert found.inertia == pytest.approx(squares.astype(np.float64).sum(), rel=1e-5)


def test_a_far_origin_costs_no_digits():
    x = blobs(400, 8)
    near = kmeans(x, 6, init=start(x, 6), generator=generator())
    far = x.astype(np.float64) + 2.0**20
    found = kmeans(far, 6, init=start(far, 6), generator=generator())
    np.testing.assert_array_equal(found.labels, near.labels)


def spherical_lloyd(x: np.ndarray, centers: np.ndarray, steps: int) -> tuple[np.ndarray, ...]:
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    centers = centers / np.linalg.norm(centers, axis=1, keepdims=True)
    for _ in range(steps):
        labels = (x @ centers.T).argmax(1)
        centers = np.stack([x[labels == j].sum(0) for j in range(len(centers))])
        centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    similarity = x @ centers.T
    return centers, similarity.argmax(1), 1 - similarity.max(1)


def test_cosine_is_spherical_lloyd_written_out():
    x = blobs(500, 6) - 30
    first = start(x, 9)
    centers, labels, distances = spherical_lloyd(x.astype(np.float64), first, 7)
    found = kmeans(x, 9, metric="cosine", init=first, max_iter=7, tol=0, generator=generator())
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.centers, centers, atol=1e-6)
    np.testing.assert_allclose(found.distances, distances, atol=1e-6)
    assert found.inertia == pytest.approx(distances.sum(), rel=1e-5)


def test_cosine_of_unit_rows_gives_scikit_learns_first_labels():
    # On unit rows and unit centres the two metrics order the centres alike.
    x = blobs(500, 6) - 30
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    first = start(x, 9)
    reference = sklearn.cluster.KMeans(9, init=first, n_init=1, max_iter=1).fit(x)
    np.testing.assert_array_equal(
        assign(x, first, metric="cosine")[0],
        np.argmin(sklearn.metrics.pairwise_distances(x, first), 1),
    )
    found = kmeans(x, 9, metric="cosine", init=first, max_iter=1, generator=generator())
    unit = reference.cluster_centers_
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose(found.centers, unit, atol=1e-6)


def test_a_zero_row_and_rows_that_cancel_do_not_break_cosine():
    x = np.array([[1.0, 0], [-1, 0], [0, -2], [0, 0]])
    first = np.array([[0.0, 1], [0, -1]])  # the first takes two rows that add up to 0
    found = kmeans(x, 2, metric="cosine", init=first, generator=generator())
    assert found.centers.tolist() == first.tolist()
    assert found.distances.tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_chunks_change_nothing(metric, init):
    x = blobs(300, 12)

    def run(chunk_size):
        return kmeans(
            x,
            8,
            metric=metric,
            init=init,
            max_iter=50,
            chunk_size=chunk_size,
            generator=generator(),
        )

    whole = run(None)
    for chunk_size in (7, 97, 10_000):
        found = run(chunk_size)
        assert torch.equal(found.labels, whole.labels)
        torch.testing.assert_close(found.centers, whole.centers, rtol=1e-6, atol=1e-6)
        assert found.n_iter == whole.n_iter


def test_an_empty_cluster_takes_the_farthest_rows():
    x = np.array([[0.0], [1], [2], [3], [50], [9], [0.5]])
    # Nothing is near 1000 or 2000: they take 50 and 9, the farthest from 1.5.
    first = np.array([[1.5], [1000], [2000]])
    found = kmeans(x, 3, init=first, max_iter=1, tol=0, generator=generator())
    assert found.n_repaired == 2
    np.testing.assert_allclose(found.centers, [[1.3], [50], [9]], rtol=1e-6)
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 2, 0]


def test_repair_is_scikit_learns():
    x = blobs(300, 4)
    first = start(x, 6)
    first[[1, 4]] = 500  # captures nothing
    reference = sklearn.cluster.KMeans(6, init=first, n_init=1).fit(x.astype(np.float64))
    found = kmeans(x, 6, init=first, max_iter=300, generator=generator())
    assert found.n_repaired == 2
    # Which empty cluster takes which row is not fixed in scikit-learn: compare the partitions.
    assert sklearn.metrics.adjusted_rand_score(found.labels, reference.labels_) == 1
    assert found.inertia == pytest.approx(reference.inertia_, rel=1e-5)
    assert len(found.labels.unique()) == 6


def test_repair_for_cosine_keeps_unit_centres():
    x = blobs(200, 4) - 30
    first = start(x, 4)
    first[3] = first[2]  # a tie: the second one gets nothing
    found = kmeans(x, 4, metric="cosine", init=first, generator=generator())
    assert found.n_repaired >= 1
    torch.testing.assert_close(found.centers.norm(dim=1), torch.ones(4))
    assert len(found.labels.unique()) == 4


@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_fewer_distinct_rows_than_clusters_ends(init, metric):
    x = np.repeat(np.eye(3), 20, axis=0)
    found = kmeans(x, 7, init=init, metric=metric, max_iter=50, generator=generator())
    assert len(found.labels.unique()) == 3
    assert found.inertia == pytest.approx(0, abs=1e-9)
    assert found.centers.isfinite().all()


def test_one_cluster_and_as_many_as_rows():
    x = blobs(40, 3)
    one = kmeans(x, 1, generator=generator())
    np.testing.assert_allclose(one.centers[0], x.mean(0), rtol=1e-6)
    assert one.n_iter < 20
    all_of_them = kmeans(x, 40, generator=generator())
    assert sorted(all_of_them.labels.tolist()) == list(range(40))
    assert all_of_them.inertia == pytest.approx(0, abs=1e-6)


def test_tolerance_and_iterations_stop():
    x = blobs(1000, 8)
    exact = kmeans(x, 20, max_iter=300, tol=0, generator=generator())
    loose = kmeans(x, 20, max_iter=300, tol=1e-1, generator=generator())
    cut = kmeans(x, 20, max_iter=2, tol=0, generator=generator())
    assert loose.n_iter < exact.n_iter < 300
    assert cut.n_iter == 2
    # At a fixed point every centre is the mean of its rows.
    for j in range(20):
        mean = x[exact.labels.numpy() == j].astype(np.float64).mean(0)
        np.testing.assert_allclose(exact.centers[j], mean, rtol=1e-6)


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_same_seed_same_bits(init):
    x = blobs(600, 10)
    one, two, other = (kmeans(x, 12, init=init, generator=generator(s)) for s in (3, 3, 4))
    assert torch.equal(one.centers, two.centers)
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(one.distances, two.distances)
    assert not torch.equal(one.centers, other.centers)


@pytest.mark.parametrize("d", [768, 1280])
def test_threads_sum_the_same_rows(d, monkeypatch):
    x = torch.randn(7000, d, generator=generator(0))
    sizes = set()
    for threads in (1, 2, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        sizes.add(engine.Rows(x, "l2", 10, None, None).chunk_size % engine.SUMMED)
    assert sizes == {0}


def test_more_starts_are_no_worse():
    x = blobs(400, 2)
    one = kmeans(x, 12, init="random", n_init=1, generator=generator())
    ten = kmeans(x, 12, init="random", n_init=10, generator=generator())
    assert ten.inertia < one.inertia  # the first start is the same


def test_any_kind_of_input(tmp_path):
    x = blobs(500, 6)
    expected = kmeans(x, 5, generator=generator())
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    frozen = x.copy()
    frozen.flags.writeable = False
    kinds = [torch.from_numpy(x), x.astype(np.float64), np.asfortranarray(x), frozen, mapped,
             np.asarray(mapped), mapped[:], x.tolist()]  # fmt: skip
    for kind in kinds:
        found = kmeans(kind, 5, chunk_size=100, generator=generator())
        assert torch.equal(found.labels, expected.labels)
        wide = isinstance(kind, list) or str(kind.dtype).endswith("float64")
        assert found.centers.dtype == (torch.float64 if wide else torch.float32)
        torch.testing.assert_close(found.centers.float(), expected.centers)
    assert engine.Rows(mapped, "l2", 5, 64, None).kept is None
    assert engine.Rows(np.asarray(mapped), "l2", 5, 64, None).kept is None
    assert engine.Rows(x, "l2", 5, 64, None).kept is None
    assert engine.Rows(x.astype(np.int32), "l2", 5, 64, None).kept is not None
    cosine = kmeans(mapped, 5, metric="cosine", chunk_size=64, generator=generator())
    same = kmeans(x, 5, metric="cosine", generator=generator())
    assert torch.equal(cosine.labels, same.labels)
    half = kmeans(torch.from_numpy(x).bfloat16(), 5, generator=generator())
    assert half.centers.dtype == torch.float32
    assert x.max() == blobs(500, 6).max()  # the input is left alone


@pytest.mark.parametrize(("d", "k"), [(2, 12), (16, 40), (30, 200)])
def test_rows_that_are_left_alone_change_nothing(d, k, monkeypatch):
    x = blobs(4000, d)
    first = start(x, k)
    taken = []
    monkeypatch.setattr(
        engine.Rows,
        "here",
        lambda rows, i, here=engine.Rows.here: taken.append(len(i)) or here(rows, i),
    )

    def run(rare):
        monkeypatch.setattr(engine, "RARE", rare)
        taken.clear()
        return kmeans(x, k, init=first, max_iter=300, tol=0, generator=generator()), sum(taken)

    plain, none = run(10**9)
    found, looked_at = run(1)  # from the second iteration on
    assert none == 0 and 0 < looked_at < 4000 * found.n_iter / 2
    assert torch.equal(found.labels, plain.labels)
    torch.testing.assert_close(found.centers, plain.centers, rtol=1e-6, atol=1e-6)
    assert found.n_iter == plain.n_iter
    reference = sklearn.cluster.KMeans(k, init=first, n_init=1, max_iter=300, tol=0)
    reference.fit(x.astype(np.float64))
    np.testing.assert_array_equal(found.labels, reference.labels_)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_device_without_float64_agrees(metric, monkeypatch):
    x = blobs(500, 6)
    expected = kmeans(x, 5, metric=metric, generator=generator())
    for module in (engine, reading):
        monkeypatch.setattr(module, "has_float64", lambda device: False)
    found = kmeans(x.astype(np.float64), 5, metric=metric, chunk_size=64, generator=generator())
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.centers, expected.centers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_gpu_agrees(metric):
    x = blobs(2000, 12)
    first = start(x, 9)
    first[4] = 500
    expected = kmeans(x, 9, metric=metric, init=first, generator=generator())
    found = kmeans(x, 9, metric=metric, init=first, generator=generator(), device="cuda")
    assert found.labels.is_cuda
    assert torch.equal(found.labels.cpu(), expected.labels)
    torch.testing.assert_close(found.centers.cpu(), expected.centers)
    seeded = kmeans(torch.from_numpy(x).cuda(), 9, metric=metric, generator=generator())
    assert seeded.inertia == pytest.approx(
        kmeans(x, 9, metric=metric, generator=generator()).inertia, rel=0.05
    )


def test_a_subset_per_centre():
    x = blobs(1000, 5)
    found = kmeans(x, 4, max_points_per_centre=20, max_iter=100, generator=generator())
    chosen = torch.randperm(1000, generator=generator())[:80].sort().values
    np.testing.assert_array_equal(found.labels, assign(x, found.centers)[0])
    labels = found.labels[chosen].numpy()
    means = np.stack([x[chosen][labels == j].mean(0) for j in range(4)])
    np.testing.assert_allclose(found.centers, means, rtol=1e-5)
    assert len(found.labels) == 1000


def test_assign_agrees_with_the_fit_and_with_brute_force():
    x = blobs(300, 6)
    found = kmeans(x, 8, generator=generator())
    labels, distances = assign(x, found.centers)
    assert torch.equal(labels, found.labels)
    assert torch.equal(distances, found.distances)
    brute = np.linalg.norm(x[:, None].astype(np.float64) - found.centers.numpy(), axis=2)
    np.testing.assert_array_equal(labels, brute.argmin(1))
    np.testing.assert_allclose(distances, brute.min(1), rtol=1e-5)
    assert found.inertia == pytest.approx((brute.min(1) ** 2).sum(), rel=1e-6)
    # A row that is a centre lies at distance 0 from it, not at what rounding leaves.
    assert (assign(found.centers, found.centers)[1] == 0).all()


def test_plus_plus_is_better_than_random_and_draws_different_rows(monkeypatch):
    x, blob = make_blobs(900, 2, centers=30, cluster_std=0.01, random_state=0)
    for seed in range(5):  # the best of several draws: without that, one or two are missed
        rows = engine.Rows(x, "l2", 30, None, None)
        drawn = engine._plus_plus(rows, 30, generator(seed))
        assert len(np.unique(blob[drawn])) == 30
    random = kmeans(x, 30, init="random", generator=generator())
    found = kmeans(x, 30, generator=generator())
    assert found.inertia < random.inertia / 50
    monkeypatch.setattr(engine, "ONE_BY_ONE", 8)  # so that blocks are drawn here, too
    rows = engine.Rows(x, "l2", 300, None, None)
    drawn = engine._plus_plus(rows, 300, generator())
    assert drawn.shape == (300,)
    assert len(drawn.unique()) == 300


def test_among_very_many_rows_a_sample_is_read_for_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "FEWEST_SEEDING", 200)
    monkeypatch.setattr(engine, "SEEDING", 10)
    x, blob = make_blobs(3000, 2, centers=30, cluster_std=0.01, random_state=0)
    x = x.astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    passes = []
    ranges = engine.Rows.ranges

    def counting(rows):
        passes.append(rows.n)
        return ranges(rows)

    monkeypatch.setattr(engine.Rows, "ranges", counting)
    rows = engine.Rows(np.load(tmp_path / "x.npy", mmap_mode="r"), "l2", 30, 512, None)
    drawn = engine._seeds(rows, 30, generator())
    assert passes.count(3000) == 1 and passes.count(300) > 29  # once, to look for NaN
    assert len(np.unique(blob[drawn])) > 25 and len(drawn.unique()) == 30
    found = [kmeans(each, 30, metric=metric, chunk_size=512, generator=generator())
             for each in (x, rows.x) for metric in ("l2", "cosine")]  # fmt: skip
    for one, other in zip(found[:2], found[2:], strict=True):
        assert torch.equal(one.centers, other.centers)
        assert torch.equal(one.labels, other.labels)


class Told(Progress):
    def __init__(self):
        self.notes, self.phases, self.rows = [], [], 0

    def phase(self, name, total):
        self.phases.append((name, total))

    def advance(self, count):
        self.rows += count

    def note(self, text):
        self.notes.append(text)


def test_long_work_is_told(monkeypatch):
    x = blobs(500, 6)
    told = Told()
    silent = kmeans(x, 5, max_iter=3, n_init=2, generator=generator(), progress=told)
    assert not told.notes and not told.phases  # it takes no time
    monkeypatch.setattr(engine, "_seconds_an_iteration", lambda rows, k: 20.04)
    clock = itertools.count(0, 20)
    monkeypatch.setattr(engine.time, "perf_counter", lambda: next(clock))
    found = kmeans(x, 5, max_iter=3, tol=0, n_init=2, generator=generator(), progress=told)
    assert told.notes == [
        "k-means, 500 rows, k = 5: 2 starts of at most 3 iterations of about 20 s: at most 2 min"
    ]
    names = [f"k-means {i}/3, start {j} of 2" for j in (1, 2) for i in (1, 2, 3)]
    assert told.phases == [(name, 500) for name in names]
    assert told.rows == 6 * 500
    assert torch.equal(found.labels, silent.labels)  # and draws nothing


def test_time_is_told_anew_where_iterations_take_longer(monkeypatch):
    x = blobs(500, 6)
    monkeypatch.setattr(engine, "_seconds_an_iteration", lambda rows, k: 20.0)
    for each, notes in ((40, ["an iteration takes about 40 s now: at most 5 min more"]), (21, [])):
        told = Told()
        clock = itertools.count(0, each)
        monkeypatch.setattr(engine.time, "perf_counter", lambda clock=clock: next(clock))
        start = x[[0, 100, 200, 300, 301, 302]]
        kmeans(x, 6, max_iter=9, tol=0, init=start, generator=generator(), progress=told)
        assert told.notes[1:] == notes


def test_the_time_of_an_iteration_is_that_of_some_blocks(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(engine.time, "perf_counter", lambda: next(clock))
    for metric in ("l2", "cosine"):
        rows = engine.Rows(blobs(5000, 6), metric, 5, 10, None)  # 500 blocks, of which 16
        assert engine._seconds_an_iteration(rows, 5) == pytest.approx(500 / 16)


def test_the_estimator_reads_a_mapped_file_in_blocks_and_tells(tmp_path, monkeypatch, capsys):
    x = blobs(500, 6).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    seen = []
    real = estimator.kmeans
    monkeypatch.setattr(estimator, "kmeans", lambda X, *a, **b: seen.append(X) or real(X, *a, **b))
    monkeypatch.setattr(engine, "LONG", 0)
    model = KMeans(5, random_state=0, verbose=True).fit(mapped)
    assert is_memory_mapped(seen[0]) and seen[0].dtype == np.float16
    assert "at most 300 iterations" in capsys.readouterr().err
    whole = KMeans(5, random_state=0).fit(x)
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(model.labels_, whole.labels_)
    assert model.transform(mapped).dtype == np.float32
    np.testing.assert_array_equal(model.transform(mapped), whole.transform(x))
    with pytest.raises(ValueError, match="1 of 2 rows hold NaN"):
        KMeans(2).fit(np.array([[0.0, np.nan], [1, 2]]))


def test_rows_that_are_no_numbers_are_refused():
    for rows in (np.array([["a", "b"]], object), np.array([["a", "b"]]), np.array([[1j]])):
        with pytest.raises(ValueError, match="numbers"):
            kmeans(rows, 1, generator=generator())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 11}, "k = 11 clusters need at least as many rows.*n_samples = 10.*lower k"),
        ({"k": 0}, "k must be at least 1"),
        ({"x": np.zeros((0, 3))}, r"shape \(0, 3\)"),
        ({"x": np.zeros(3)}, r"shape \(3,\)"),
        ({"x": np.array([[0.0, np.nan], [1, 2], [np.inf, 2]])}, "2 of 3 rows hold NaN"),
        ({"x": np.full((3, 2), 1e308)}, "too large"),
        ({"metric": "cosine", "x": np.array([[0.0, np.nan], [1, 2]])}, "1 of 2 rows hold NaN"),
        ({"metric": "l1"}, "give 'l2' or 'cosine'"),
        ({"init": "first"}, "give 'k-means.."),
        ({"init": np.zeros((3, 3))}, r"expected \(k, d\) = \(2, 3\)"),
        ({"init": np.full((2, 3), np.nan)}, "centres hold NaN"),
        ({"max_iter": 0}, "max_iter = 0"),
        ({"chunk_size": 0}, "chunk_size = 0"),
    ],
)
def test_says_what_is_wrong(change, message):
    settings = {"x": blobs(10, 3), "k": 2, "generator": generator()} | change
    with pytest.raises(ValueError, match=message):
        kmeans(**settings)


def test_assign_says_what_is_wrong():
    with pytest.raises(ValueError, match="rows have 3 features, centres have 2"):
        assign(blobs(10, 3), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="1 of 2 rows"):
        assign(np.array([[np.nan], [1.0]]), np.zeros((2, 1)))


def test_the_estimator_passes_scikit_learns_checks():
    results = check_estimator(KMeans(), on_skip=None)
    assert {r["status"] for r in results} <= {"passed", "skipped"}
    # The one for array libraries runs only where scikit-learn is told to, for its own as well.
    skipped = {r["check_name"] for r in results if r["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}


def test_the_estimator_is_the_engine():
    x = blobs(300, 6)
    model = KMeans(5, init=start(x, 5), random_state=0).fit(x)
    reference = sklearn.cluster.KMeans(5, init=start(x, 5), n_init=1).fit(x.astype(np.float64))
    np.testing.assert_array_equal(model.labels_, reference.labels_)
    np.testing.assert_array_equal(model.predict(x), model.labels_)
    np.testing.assert_allclose(model.transform(x), reference.transform(x), rtol=1e-4)
    assert model.score(x) == pytest.approx(-model.inertia_)
    assert model.inertia_ == pytest.approx(reference.inertia_, rel=1e-5)
    assert model.n_iter_ == reference.n_iter_
    assert list(model.get_feature_names_out()) == [f"kmeans{j}" for j in range(5)]
    cosine = KMeans(3, metric="cosine", random_state=0).fit(x)
    np.testing.assert_array_equal(cosine.transform(x).argmin(1), cosine.labels_)


# -- any offset, any scale ----------------------------------------------------------------------


def three(dtype=np.float64):
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 50)
    return (np.eye(3)[truth] * 5 + rng.normal(0, 0.3, (150, 3))).astype(dtype), truth


@pytest.mark.parametrize(
    ("scale", "offset"),
    [
        (1, 0),
        (1, 1e6),
        (1, 1e8),
        (1, 1e10),
        (1e-25, 0),
        (1e-30, 0),
        (1e19, 0),
        (1e30, 0),
        (1, -1e8),
    ],
)
def test_float64_gives_scikit_learns_labels_at_any_offset_and_scale(scale, offset):
    x, truth = three()
    x = x * scale + offset
    found = KMeans(3, n_init=5, random_state=0).fit(x)
    reference = sklearn.cluster.KMeans(3, init=found.cluster_centers_, n_init=1).fit(x)
    assert adjusted_rand_score(truth, found.labels_) == 1
    assert (found.labels_ == reference.labels_).all()
    assert found.inertia_ == pytest.approx(reference.inertia_, rel=1e-6)
    assert found.cluster_centers_.dtype == found.transform(x).dtype == np.float64
    assert (found.predict(x) == found.labels_).all()
    assert (found.transform(x).argmin(1) == found.labels_).all()
    np.testing.assert_allclose(
        found.transform(found.cluster_centers_).diagonal(), 0, atol=1e-9 * scale
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1, 1e15, 1e19, 1e30, 1e36])
def test_float32_of_any_scale(scale):
    x, truth = three()
    found = KMeans(3, n_init=5, random_state=0).fit((x * scale).astype(np.float32))
    assert adjusted_rand_score(truth, found.labels_) == 1
    assert found.inertia_ == pytest.approx(39.9 * scale**2, rel=1e-2)


@pytest.mark.parametrize("far", [1e5, 1e6, 1e7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_centre_far_away_spoils_no_label(far, dtype):
    x = np.concatenate([make_blobs(2000, 2, centers=4, random_state=0)[0], [[far, far]]]).astype(
        dtype
    )
    found = KMeans(5, n_init=3, random_state=0).fit(x)
    gaps = np.linalg.norm(x[:, None].astype(float) - found.cluster_centers_.astype(float), axis=2)
    nearest = gaps.argmin(1)
    assert (found.labels_ == nearest).mean() > 0.999
    assert (found.predict(x) == found.labels_).all()


def test_two_groups_far_apart_and_a_column_that_dwarfs_the_others():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 0.3, (400, 2)) + np.eye(2)[np.arange(400) % 2] * 4
    truth = np.arange(400) % 2 + 2 * (np.arange(400) // 200)
    x += np.where(np.arange(400) < 200, 1e4, -1e4)[:, None]
    assert adjusted_rand_score(truth, KMeans(4, n_init=10, random_state=0).fit(x).labels_) == 1


def test_a_constant_row_many_times_is_one_cluster():
    found = kmeans(np.full((20, 3), 1e-30), 1, generator=generator())
    assert found.inertia == pytest.approx(0, abs=1e-60)


def test_fewer_different_rows_than_clusters_are_told():
    x = np.repeat(three()[0][:3], 20, 0)
    with pytest.warns(ConvergenceWarning, match="3 different clusters .* 5 were asked for"):
        found = KMeans(5, random_state=0).fit(x)
    assert len(set(found.labels_)) == 3


@pytest.mark.parametrize(("init", "starts"), [("random", 10), ("k-means++", 1)])
def test_auto_starts_are_scikit_learns(init, starts, monkeypatch):
    seen = []

    def spy(*given, n_init, **named):
        seen.append(n_init)
        return kmeans(*given, n_init=n_init, **named)

    monkeypatch.setattr("deepcluster.clustering.estimator.kmeans", spy)
    KMeans(3, init=init, n_init="auto", random_state=0).fit(three()[0])
    assert seen == [starts]


@pytest.mark.parametrize(
    "kind",
    [
        lambda x: x.tolist(),
        lambda x: x.astype(np.int64),
        lambda x: x.astype(">f8"),
        lambda x: x.astype(np.longdouble),
        lambda x: x.astype(object),
        torch.from_numpy,
    ],
)
def test_wide_numbers_of_any_kind_keep_their_digits(kind: Any) -> None:
    """Four groups 100 apart, a billion from 0: float32 has no place between them."""
    labels = np.repeat(np.arange(4), 25)
    rng = np.random.default_rng(0)
    x = np.round(100 * np.eye(4)[labels] + rng.normal(0, 3, (100, 4))) + 1e9
    model = KMeans(4, random_state=0).fit(kind(x))
    assert adjusted_rand_score(labels, model.labels_) == 1
    assert np.array_equal(model.predict(kind(x)), model.labels_)
    for narrow in (np.uint8, np.int16, np.float16, np.float32):  # need no more
        found = KMeans(4, random_state=0).fit((x - 1e9 + 20).astype(narrow))
        assert found.cluster_centers_.dtype == np.float32


def test_sums_of_many_rows_lose_no_digits():
    """Those of so many rows in float32 alone are off by 1e-5."""
    x = np.random.default_rng(0).uniform(0, 1, (300_000, 2)).astype(np.float32)
    x[0] = 1000  # the start centre of a cluster of its own
    start = np.array([[0.5, 0.5], [1000, 1000]])
    found = kmeans(x, 2, init=start, max_iter=1, chunk_size=len(x), generator=generator())
    exact = x[1:].mean(0, dtype=np.float64)
    assert found.centers[0].double().numpy() == pytest.approx(exact, abs=1e-7)
