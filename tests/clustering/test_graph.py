import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.cluster.hierarchy
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, make_circles, make_moons
from sklearn.metrics import normalized_mutual_info_score as nmi
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from deepcluster.clustering import graph, neighbours
from deepcluster.clustering.graph import Draws, cluster_graph, cluster_tree
from deepcluster.clustering.prototypes import Prototypes


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels_of(x: torch.Tensor, k: int, seed: int = 0) -> torch.Tensor:
    return cluster_graph(x, k, generator=seeded(seed)).assign(x)[0]


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, np.ndarray]:
    data = load_digits()
    return normalize(torch.from_numpy(data.data).float(), dim=1), data.target


# -- clusters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["moons", "rings"])
@pytest.mark.parametrize("seed", [0, 1])
def test_shapes_that_k_means_cuts_are_found_whole(make: str, seed: int) -> None:
    if make == "moons":
        points, truth = make_moons(1000, noise=0.06, random_state=seed)
    else:
        points, truth = make_circles(1000, noise=0.04, factor=0.5, random_state=seed)
    cut = KMeans(2, n_init=3, random_state=0).fit_predict(points)
    assert nmi(truth, cut) < 0.3
    found = labels_of(torch.from_numpy(points), 2, seed)
    assert nmi(truth, found.numpy()) > 0.95


def test_digits_are_told_apart_better_than_by_k_means(
    digits: tuple[torch.Tensor, np.ndarray],
) -> None:
    x, truth = digits
    plain = KMeans(10, n_init=3, random_state=0).fit_predict(x.numpy())
    assert nmi(truth, labels_of(x, 10).numpy()) > nmi(truth, plain) + 0.08


@pytest.mark.parametrize("k", [20, 30, 40])
def test_groups_at_the_border_leave_the_number_of_clusters(k: int) -> None:
    places = torch.randn(300, 3, generator=seeded(1), dtype=torch.float64)
    near = torch.cdist(places, places).argsort(dim=1)[:, :7].numpy()
    weights = np.zeros((300, 300))
    weights[np.arange(300)[:, None], near] = 1  # of so few edges many a group keeps a quarter
    found = graph.linked(weights + weights.T, places, k)
    assert found is not None and len(np.unique(found)) == k


def test_groups_of_near_duplicates_are_put_with_their_like(
    digits: tuple[torch.Tensor, np.ndarray],
) -> None:
    x, truth = digits
    rows = torch.randperm(len(x), generator=seeded())[:150].repeat_interleave(30)
    copies = x[rows] + 0.01 * torch.randn(len(rows), 64, generator=seeded())
    assert nmi(truth[rows], labels_of(copies, 10).numpy()) > 0.65


@pytest.mark.parametrize("first", [0, 1, 2])
def test_cuts_agree_on_what_most_of_them_say(first: int) -> None:
    places = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]])
    said = [[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]]  # numbers mean nothing
    cuts = [Prototypes(places, torch.tensor(clusters)) for clusters in said]
    agreed = Draws.of([cuts[first], *cuts[:first], *cuts[first + 1 :]]).vote(2)
    assert agreed.cluster.tolist() in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
    assert torch.equal(agreed.centers, places)


def test_cuts_that_nearly_agree_keep_their_clusters() -> None:
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 9, 700)
    places = torch.from_numpy(rng.normal(size=(700, 8)) + 9 * np.eye(9)[groups][:, :8]).float()
    cuts = []
    for _ in range(5):
        said = np.where(rng.random(700) < 0.08, rng.integers(0, 9, 700), groups)
        cuts.append(Prototypes(places, torch.from_numpy(rng.permutation(9)[said])))
    agreed = Draws.of(cuts).vote(9).cluster.numpy()
    assert nmi(agreed, groups) > 0.99


def test_a_cluster_that_is_outvoted_everywhere_is_kept() -> None:
    places = torch.arange(4.0)[:, None]
    said = [[0, 0, 1, 2], [0, 0, 1, 1], [1, 1, 0, 0]]
    cuts = [Prototypes(places, torch.tensor(clusters)) for clusters in said]
    agreed = Draws.of(cuts).vote(3)
    assert len(agreed.cluster.unique()) == 3


def test_cuts_that_agree_swing_less(
    digits: tuple[torch.Tensor, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def likeness(cuts: int) -> float:
        monkeypatch.setattr(graph, "CUTS", cuts)
        found = [labels_of(digits[0], 10, seed).numpy() for seed in range(4)]
        return float(np.mean([nmi(a, b) for a, b in itertools.combinations(found, 2)]))

    assert likeness(5) > likeness(1) + 0.005


def test_same_seed_same_prototypes(digits: tuple[torch.Tensor, np.ndarray]) -> None:
    first, second = (cluster_graph(digits[0], 10, generator=seeded(3)) for _ in range(2))
    assert first.centers.equal(second.centers)
    assert first.cluster.equal(second.cluster)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (10, 1), (10, 3), (10, 10), (300, 7), (300, 150)])
def test_k_is_kept(n: int, k: int) -> None:
    x = normalize(torch.randn(n, 5, generator=seeded()), dim=1)
    assert set(labels_of(x, k).tolist()) == set(range(k))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_k_is_kept_on_pieces_without_a_path_between_them(k: int) -> None:
    x = torch.randn(300, 3, generator=seeded()) + 100 * torch.arange(3).repeat(100)[:, None]
    found = labels_of(x, k)
    assert set(found.tolist()) == set(range(k))
    if k == 3:
        assert nmi(np.arange(300) % 3, found.numpy()) == pytest.approx(1)


def test_k_is_kept_when_most_rows_are_duplicates() -> None:
    x = torch.zeros(3000, 2)
    x[:4] = torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]])
    assert set(labels_of(x, 5).tolist()) == set(range(5))


def test_fewer_different_rows_than_k_leave_clusters_empty() -> None:
    x = torch.tensor([[0.0, 1], [1, 0]]).repeat(20, 1)
    found = labels_of(x, 3)
    assert set(found.tolist()) == {0, 1}
    assert found[0::2].unique().numel() == found[1::2].unique().numel() == 1


def test_fewer_queries_than_rows_find_the_same_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "QUERIES", 300)
    x, truth = make_moons(1000, noise=0.05, random_state=0)
    assert nmi(truth, labels_of(torch.from_numpy(x), 2).numpy()) > 0.95


def test_what_cannot_be_clustered_is_refused() -> None:
    x = torch.zeros(5, 2)
    for k in (0, 6):
        with pytest.raises(ValueError, match="k must be from 1 to n"):
            cluster_graph(x, k, generator=seeded())
    with pytest.raises(ValueError, match="needs at least 1"):
        cluster_graph(x, 2, neighbours=0, generator=seeded())
    with pytest.raises(ValueError, match="n at least 1"):
        cluster_graph(x[:0], 1, generator=seeded())
    x[3, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 5 rows"):
        cluster_graph(x, 2, generator=seeded())


# -- sizes as they are ------------------------------------------------------------------------


def around(sizes: list[int], spread: float, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Rows around as many random directions as there are sizes."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(len(sizes), 16))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    x = centers[truth] + spread * rng.normal(size=(len(truth), 16))
    return normalize(torch.from_numpy(x).float(), dim=1), truth


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_giant_is_not_cut_while_there_are_small_groups(seed: int) -> None:
    x, truth = around([1880, 60, 60], 0.12, seed)
    assert nmi(truth, labels_of(x, 3, seed).numpy()) > 0.97


def test_a_long_giant_is_not_cut_either() -> None:
    x, truth = around([1880, 60, 60], 0.12)
    along = normalize(torch.randn(16, generator=seeded(5)), dim=0)
    x[:1880] += 0.4 * torch.randn(1880, 1, generator=seeded(6)) * along
    assert nmi(truth, labels_of(normalize(x, dim=1), 3).numpy()) > 0.97


@pytest.mark.parametrize("ratio", [1, 10, 50])
def test_groups_of_any_sizes_are_found(ratio: int) -> None:
    share = float(ratio) ** (-np.arange(10) / 9)
    x, truth = around((2500 * share / share.sum()).round().astype(int).tolist(), 0.16)
    assert nmi(truth, labels_of(x, 10).numpy()) > 0.97


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_cuts_that_differ_each_time_are_not_given(seed: int) -> None:
    """Most is told by the edges of halves of the two, which lie elsewhere with other landmarks."""
    points, truth = make_moons((1200, 300), noise=0.06, random_state=seed)
    found = labels_of(torch.from_numpy(points), 2, seed)
    assert nmi(truth, found.numpy()) > 0.95


def test_steadiness_is_the_mean_nmi_of_two_cuts() -> None:
    x = torch.arange(8.0)[:, None]
    said = [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0]]
    cuts = [Prototypes(x, torch.tensor(clusters)) for clusters in said]
    assert Draws.of(cuts).steadiness == pytest.approx(1 / 3, abs=1e-6)
    assert Draws.of(cuts[:1]).steadiness == 1


def blocks(between: np.ndarray, nodes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Edges spread evenly over the nodes of blocks, and the block of each node."""
    block = np.repeat(np.arange(len(nodes)), nodes)
    each = np.array(nodes)
    return (between / np.outer(each, each))[block][:, block], block


def better(weights: np.ndarray, k: int) -> tuple[np.ndarray, bool]:
    cuts = [graph.cut(weights, k, even=even) for even in (False, True)]
    worths = [graph.worth(weights, cluster) for cluster in cuts]
    return cuts[int(np.argmax(worths))], worths[1] > worths[0]


def test_what_an_edge_tells_is_the_information_of_its_ends() -> None:
    rng = np.random.default_rng(0)
    ends = rng.integers(0, 4, 3000)
    others = np.where(rng.random(3000) < 0.7, ends, rng.integers(0, 4, 3000))
    weights = np.zeros((4, 4))
    np.add.at(weights, (ends, others), 1)
    np.add.at(weights, (others, ends), 1)
    both = np.concatenate([ends, others]), np.concatenate([others, ends])
    told, entropy = graph.told_by_edges(graph.between_clusters(weights, np.arange(4)))
    assert told / entropy == pytest.approx(nmi(*both))
    assert graph.told_by_edges(graph.between_clusters(weights, np.zeros(4, int))) == (0, 0)


def test_an_island_is_not_worth_a_class_that_touches_another() -> None:
    between = np.diag([160.0] * 6 + [16.0])
    between[4, 5] = between[5, 4] = 3.2  # two classes touch
    between[0, 6] = between[6, 0] = 0.16  # an island beside the first
    between[range(5), range(1, 6)] += 0.1
    between[range(1, 6), range(5)] += 0.1
    weights, block = blocks(between, [20] * 6 + [2])
    found, even = better(weights, 6)
    assert even
    assert nmi(found, np.where(block == 6, 0, block)) == pytest.approx(1)
    uneven = graph.cut(weights, 6)
    assert nmi(uneven, np.where(block == 5, 4, block)) == pytest.approx(1)


def test_small_groups_are_worth_more_than_halves_of_a_giant() -> None:
    between = np.diag([400.0, 400.0, 25.0, 25.0])
    between[0, 1] = between[1, 0] = 60  # one kind, in two halves
    between[[0, 0, 2, 3], [2, 3, 0, 0]] = 1
    weights, block = blocks(between, [40, 40, 3, 3])
    found, even = better(weights, 3)
    assert not even
    assert nmi(found, np.maximum(block, 1)) == pytest.approx(1)
    assert nmi(graph.cut(weights, 3, even=True), np.maximum(block, 1)) < 0.9


def test_rows_of_an_island_go_where_they_belong() -> None:
    centers = np.eye(16)[:7]
    centers[5] = centers[4] + 0.6 * centers[5]  # two classes touch
    centers[6] = centers[0] + 0.9 * centers[6]  # an island beside the first
    truth = np.repeat(np.arange(7), [200] * 6 + [20])
    x = centers[truth] / np.linalg.norm(centers, axis=1)[truth, None]
    x += 0.1 * np.random.default_rng(0).normal(size=x.shape)
    found = labels_of(normalize(torch.from_numpy(x).float(), dim=1), 6).numpy()
    assert nmi(np.where(truth == 6, 0, truth), found) > 0.98


def test_a_class_of_fewer_rows_than_neighbours_is_found() -> None:
    x, truth = around([150, 120, 90, 60, 40, 5], 0.12, seed=2)
    assert nmi(truth, labels_of(x, 6).numpy()) > 0.99


def test_odd_rows_stand_for_no_class() -> None:
    """Average linkage would give one of them, and two classes as one."""
    rng = np.random.default_rng(0)
    truth = np.arange(400) % 5
    x = rng.normal(size=(5, 8))[truth] * 2 + rng.normal(size=(400, 8)) * 0.8
    found = labels_of(normalize(torch.from_numpy(x).float(), dim=1), 5)
    assert found.bincount().min() > 60
    assert nmi(truth, found.numpy()) > 0.93


def test_average_linkage_is_scipys() -> None:
    centers = torch.randn(60, 3, generator=seeded())
    linkage = scipy.cluster.hierarchy.linkage(centers.numpy(), "average")
    for k in (1, 2, 7, 30):
        expected = scipy.cluster.hierarchy.fcluster(linkage, k, "maxclust")
        found = graph.cluster_at(graph.average_linkage(centers), 60, k)
        assert nmi(expected, found) == pytest.approx(1)
        assert len(np.unique(found)) == k


def test_odd_rows_are_no_group() -> None:
    x, truth = around([500, 500], 0.12)
    odd = normalize(torch.randn(12, 16, generator=seeded(3)), dim=1)
    found = labels_of(torch.cat([x, odd]), 2).numpy()
    assert nmi(truth, found[:1000]) > 0.97


# -- the tree ---------------------------------------------------------------------------------


def test_merges_by_hand() -> None:
    """Two triples and a pair: each comes together, then the two that an edge of weight 1 links."""
    weights = np.zeros((8, 8))
    pairs = [(0, 1, 9), (0, 2, 9), (1, 2, 9), (3, 4, 9), (3, 5, 9), (4, 5, 9), (6, 7, 9)]
    for i, j, weight in [*pairs, (2, 3, 1), (5, 6, 0.1)]:
        weights[i, j] = weights[j, i] = weight
    weights += 20 * np.eye(8)
    merges, ranks = graph.agglomerate(weights)
    assert graph.cluster_at(merges, 8, 3).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert graph.cluster_at(merges, 8, 2).tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    shares = weights / weights.sum()
    sizes = [shares[:6].sum(), shares[6:].sum()]
    between = shares[:6, 6:].sum()
    assert ranks[-1] == pytest.approx(between / (sizes[0] * sizes[1]) ** (0.5 + graph.SIZE))
    within = np.array([0, 0, 1, 1, 1, 1, 2, 2])
    merges, _ = graph.agglomerate(weights, within)
    assert graph.cluster_at(merges, 8, 3).tolist() == within.tolist()


def test_merges_are_those_of_a_plain_search() -> None:
    rng = np.random.default_rng(0)
    weights = rng.random((40, 40)) ** 6
    weights += weights.T
    merges, ranks = graph.agglomerate(weights)
    table, alive = weights / weights.sum(), list(range(40))
    for (i, j), rank in zip(merges.tolist(), ranks, strict=True):
        size = table.sum(1)
        pairs = [(a, b) for a, b in itertools.combinations(alive, 2)]
        plain = {
            pair: table[pair] / (size[pair[0]] * size[pair[1]]) ** (0.5 + graph.SIZE)
            for pair in pairs
        }
        assert (i, j) == max(plain, key=lambda pair: plain[pair])
        assert rank == pytest.approx(plain[i, j])
        table[i] += table[j]
        table[:, i] += table[:, j]
        table[j] = table[:, j] = 0
        alive.remove(j)


def test_the_clusters_are_a_cut_of_the_tree(digits: tuple[torch.Tensor, np.ndarray]) -> None:
    x, truth = digits
    prototypes, tree = cluster_tree(x, 10, generator=seeded())
    labels, part = prototypes.assign(x)[0], prototypes.parts_of(x)
    assert tree.largest == 35  # 1,797 images
    assert set(part.tolist()) <= set(range(35))
    assert torch.equal(tree.cut(10)[part], labels)
    assert nmi(truth, labels.numpy()) > nmi(truth, labels_of(x, 10).numpy()) - 0.01
    assert (tree.heights.diff() >= 0).all()
    for k in range(1, 35):  # each cut is inside the one before
        pairs = torch.stack([tree.cut(k), tree.cut(k + 1)], dim=1).unique(dim=0)
        assert len(pairs) == k + 1
    with pytest.raises(ValueError, match="35 parts"):
        tree.cut(36)
    again = prototypes.regroup(tree.cut(4))
    assert torch.equal(again.assign(x)[0], tree.cut(4)[part])


def test_the_tree_of_clusters_by_k_means(digits: tuple[torch.Tensor, np.ndarray]) -> None:
    x, truth = digits
    found = KMeans(40, n_init=1, random_state=0).fit(x.numpy())
    prototypes = Prototypes(torch.from_numpy(found.cluster_centers_), torch.arange(40))
    tree = graph.tree_of(x, prototypes, generator=seeded())
    assert tree.largest == 40
    assert tree.cut(40).tolist() == list(range(40))
    assert nmi(truth, tree.cut(10)[prototypes.assign(x)[0]].numpy()) > 0.8


class Made(TorchDispatchMode):
    """Keeps the shapes of the float32 tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple) else (made,):
            if isinstance(each, torch.Tensor) and each.dtype == torch.float32:
                self.shapes.add(tuple(each.shape))
        return made


def test_a_mapped_file_of_half_precision_is_cut_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, d = 3000, 16
    x = 8 * torch.eye(d)[torch.randint(5, (n,), generator=seeded())]
    x += torch.randn(n, d, generator=seeded()).mul_(16).round_().div_(16)  # exact, and its mean
    np.save(tmp_path / "x.npy", x.numpy().astype(np.float16))
    mapped = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c"))
    monkeypatch.setattr(graph, "SETTLING", 1000)
    for name in ("QUERIES", "QUERIES_A_CUT"):
        monkeypatch.setattr(graph, name, 1000)
    monkeypatch.setattr(neighbours, "TILE", 1024)
    monkeypatch.setattr(neighbours, "CACHED", 2**18)
    expected, whole = cluster_tree(x, 5, generator=seeded())
    with Made() as made:
        found, tree = cluster_tree(mapped, 5, generator=seeded())
        clusters = found.assign(mapped)
    assert torch.equal(found.centers, expected.centers)
    assert torch.equal(tree.merges, whole.merges)
    assert all(torch.equal(*both) for both in zip(clusters, expected.assign(x), strict=True))
    assert (1000, d) in made.shapes and (n, d) not in made.shapes
