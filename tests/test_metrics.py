import numpy as np
import pytest
import sklearn.metrics
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from deepcluster import metrics


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def groups(n: int, a: int, b: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two partitions of n things that agree in part."""
    first = rng(seed).integers(a, size=n)
    second = np.where(rng(seed + 1).random(n) < 0.6, first % b, rng(seed + 2).integers(b, size=n))
    return first, second


# Clusters {0, 1, 2}, {3, 4}, {5}; classes {0, 1}, {2, 3, 4, 5}.
CLUSTERS = np.array([0, 0, 0, 1, 1, 2])
LABELS = np.array([0, 0, 1, 1, 1, 1])


def test_worked_by_hand():
    h_clusters = -(1 / 2 * np.log(1 / 2) + 1 / 3 * np.log(1 / 3) + 1 / 6 * np.log(1 / 6))
    h_labels = -(1 / 3 * np.log(1 / 3) + 2 / 3 * np.log(2 / 3))
    # Pairs (cluster, class): (0, 0) 2/6, (0, 1) 1/6, (1, 1) 2/6, (2, 1) 1/6.
    h_both = -2 * (1 / 3 * np.log(1 / 3) + 1 / 6 * np.log(1 / 6))
    shared = h_clusters + h_labels - h_both
    assert metrics.nmi(CLUSTERS, LABELS) == pytest.approx(shared / np.sqrt(h_clusters * h_labels))
    assert metrics.nmi_arithmetic(CLUSTERS, LABELS) == pytest.approx(
        2 * shared / (h_clusters + h_labels)
    )
    assert metrics.acc(CLUSTERS, LABELS) == pytest.approx(4 / 6)  # 0-0 and 1-1; 2 has no class
    assert metrics.purity(CLUSTERS, LABELS) == pytest.approx(5 / 6)
    # Same-cluster pairs 4, same-class pairs 7, both 2, of 15.
    expected = 4 * 7 / 15
    assert metrics.ari(CLUSTERS, LABELS) == pytest.approx((2 - expected) / (5.5 - expected))


@pytest.mark.parametrize(("a", "b"), [(5, 5), (3, 8), (8, 3), (1, 4), (40, 40)])
def test_agree_with_scikit_learn_and_scipy(a, b):
    clusters, labels = groups(400, a, b)
    score = sklearn.metrics.normalized_mutual_info_score(labels, clusters)
    assert metrics.nmi_arithmetic(clusters, labels) == pytest.approx(score)
    assert metrics.nmi(clusters, labels) >= score - 1e-12
    assert metrics.ari(clusters, labels) == pytest.approx(
        sklearn.metrics.adjusted_rand_score(labels, clusters)
    )
    table = sklearn.metrics.cluster.contingency_matrix(clusters, labels)
    row, column = linear_sum_assignment(table, maximize=True)
    assert metrics.acc(clusters, labels) == pytest.approx(table[row, column].sum() / 400)
    assert metrics.purity(clusters, labels) == pytest.approx(table.max(1).sum() / 400)


@pytest.mark.parametrize("name", ["nmi", "nmi_arithmetic", "ari", "acc", "purity"])
def test_numbers_of_clusters_do_not_matter_and_unknown_ones_are_left_out(name):
    score = metrics.METRICS[name]
    clusters, labels = groups(200, 6, 6)
    expected = score(clusters, labels)
    assert score(100 - 7 * clusters, labels) == pytest.approx(expected)
    assert score(clusters, clusters) == pytest.approx(1)
    more = np.concatenate([labels, np.full(50, -1)])
    assert score(np.concatenate([clusters, np.zeros(50, int)]), more) == pytest.approx(expected)


def test_churn_is_the_share_that_moved():
    assert metrics.churn(np.array([0, 0, 1, 1, 2]), np.array([2, 2, 0, 0, 1])) == 0
    assert metrics.churn(np.array([0, 0, 1, 1, 1]), np.array([1, 1, 0, 0, 1])) == pytest.approx(0.2)
    # Ten clusters that all become one: the images of nine have moved.
    assert metrics.churn(np.arange(100) % 10, np.zeros(100, int)) == pytest.approx(0.9)


def test_occupancy():
    found = metrics.occupancy(np.array([0, 0, 0, 2, -1]), 4)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(4)
    assert found == {
        "largest": 0.75, "smallest": 0, "empty": 2, "entropy": pytest.approx(entropy),
    }  # fmt: skip
    assert metrics.occupancy(np.arange(12) % 4, 4)["entropy"] == pytest.approx(1)
    assert metrics.occupancy(np.zeros(3, int), 1) == {
        "largest": 1, "smallest": 1, "empty": 0, "entropy": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match="found cluster 4, expected numbers below k = 4"):
        metrics.occupancy(np.array([4]), 4)


def test_effective_rank():
    turn = np.linalg.qr(rng().standard_normal((200, 200)))[0]
    columns = turn[:, :6] - turn[:, :6].mean(0)
    columns = np.linalg.qr(columns)[0]
    # Equal singular values in 4 directions, then 3 and 1: entropy of (3/4, 1/4).
    assert metrics.effective_rank(columns[:, :4] + 5) == pytest.approx(4)
    two = columns[:, :2] * [3, 1] @ np.eye(2, 7)
    assert metrics.effective_rank(two) == pytest.approx(4 / 3**0.75)
    assert metrics.effective_rank(np.full((50, 3), 0.1)) == 0
    x = rng().standard_normal((9000, 5)) * [1, 2, 3, 4, 5]
    share = np.linalg.svd(x - x.mean(0), compute_uv=False)
    share /= share.sum()
    expected = np.exp(-(share * np.log(share)).sum())
    assert metrics.effective_rank(x.astype(np.float32)) == pytest.approx(expected, rel=1e-5)


def faces(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of four classes that overlap."""
    labels = rng(seed).integers(4, size=n)
    noise = rng(seed + 1).standard_normal((n, 6))
    return (2 * np.eye(4, 6)[labels] + noise).astype(np.float32), labels


def vote(distances: np.ndarray) -> np.ndarray:
    return np.exp((1 - distances) / 0.07)


def test_knn_is_scikit_learns_with_the_same_votes():
    x, labels = faces(300, 0)
    other, answers = faces(200, 5)
    reference = KNeighborsClassifier(20, metric="cosine", weights=vote).fit(other, answers)
    found = metrics.knn(x, labels, rng(), train=(other, answers))
    assert found == pytest.approx(reference.score(x, labels))
    # Unknown ones neither ask nor answer.
    asked, answered = labels.copy(), answers.copy()
    asked[:100], answered[:50] = -1, -1
    reference.fit(other[50:], answers[50:])
    found = metrics.knn(x, asked, rng(), train=(other, answered))
    assert found == pytest.approx(reference.score(x[100:], labels[100:]))


def test_knn_leaves_the_image_itself_out(monkeypatch):
    x, labels = faces(120, 0)
    labels[:20] = -1
    kept, truth = x[20:], labels[20:]
    right = 0
    for i in range(100):
        rest = np.arange(100) != i
        reference = KNeighborsClassifier(20, metric="cosine", weights=vote)
        right += reference.fit(kept[rest], truth[rest]).predict(kept[i : i + 1])[0] == truth[i]
    assert metrics.knn(x, labels, rng()) == pytest.approx(right / 100)
    assert metrics.knn(x[:30], labels[:30], rng()) <= 1  # fewer than 20 others
    monkeypatch.setattr(metrics, "KNN_QUERIES", 10)
    assert metrics.knn(x, labels, rng(1)) * 10 == pytest.approx(
        round(metrics.knn(x, labels, rng(1)) * 10)
    )


def test_linear_probe():
    x, labels = faces(400, 0)
    other, answers = faces(300, 5)
    bayes = metrics.linear_probe(x, labels, rng(), train=(other, answers))
    assert 0.7 < bayes < 0.95
    assert metrics.linear_probe(x, labels, rng(3)) == metrics.linear_probe(x, labels, rng(3))
    # What it is tested on must not be what it learnt from: labels of chance stay at chance.
    chance = rng(9).integers(4, size=400)
    noise = rng(8).standard_normal((400, 200))
    assert metrics.linear_probe(noise, chance, rng()) < 0.45
    assert metrics.linear_probe(x, np.zeros(400, int), rng()) == 1
    unknown = np.where(np.arange(400) < 200, labels, -1)
    assert metrics.linear_probe(x, unknown, rng()) == metrics.linear_probe(
        x[:200], labels[:200], rng()
    )


def test_modularity_by_hand(monkeypatch):
    monkeypatch.setattr(metrics, "GRAPH_NEIGHBOURS", 1)
    # On a line 0 and 1, 4 and 5.5 are one another's nearest; 8 has 5.5.
    x = np.array([[0.0], [1.0], [4.0], [5.5], [8.0]])
    clusters = np.array([0, 0, 1, 1, 2])
    chance = (2 / 5) ** 2 + (2 / 5) ** 2 + (1 / 5) ** 2
    assert metrics.modularity(x, clusters, rng()) == pytest.approx(4 / 5 - chance)
    assert metrics.modularity(x, np.zeros(5, int), rng()) == pytest.approx(0)
    with pytest.raises(metrics.TooFewError):
        metrics.modularity(x, np.array([0, -1, -1, -1, -1]), rng())


def test_silhouette(monkeypatch):
    x, labels = faces(300, 0)
    assert metrics.silhouette(x, labels, rng()) == pytest.approx(
        sklearn.metrics.silhouette_score(x, labels)
    )
    monkeypatch.setattr(metrics, "SILHOUETTE_ROWS", 100)
    rows = np.sort(rng(2).choice(300, 100, replace=False))
    assert metrics.silhouette(x, labels, rng(2)) == pytest.approx(
        sklearn.metrics.silhouette_score(x[rows], labels[rows])
    )


def test_every_metric_says_what_it_is_and_what_it_needs():
    for name, score in metrics.METRICS.items():
        assert score.__doc__, name
        assert set(metrics.needs(name)) <= {"embeddings", "clusters", "labels", "rng"}, name
    assert metrics.needs("nmi") == ("clusters", "labels")
    assert metrics.needs("knn") == ("embeddings", "labels", "rng")


def test_evaluate_gives_what_can_be_had(monkeypatch):
    x, labels = faces(60, 0)
    clusters = rng().integers(4, size=60)
    everything = metrics.evaluate(x, clusters, labels, rng=rng())
    assert list(everything) == list(metrics.METRICS)
    assert all(type(value) is float for value in everything.values())
    assert everything["nmi"] == metrics.nmi(clusters, labels)
    assert everything == metrics.evaluate(x, clusters, labels, rng=rng())
    without = metrics.evaluate(x, clusters, rng=rng())
    assert list(without) == ["silhouette", "modularity", "effective_rank"]
    assert list(metrics.evaluate(x, clusters, np.full(60, -1), rng=rng())) == list(without)
    # One image: what is undefined is left out, not an error.
    assert "knn" not in metrics.evaluate(x[:1], clusters[:1], labels[:1], rng=rng())
    monkeypatch.setitem(metrics.METRICS, "mine", lambda clusters: float(len(clusters)))
    assert metrics.evaluate(x, clusters, rng=rng())["mine"] == 60


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(2,\)"):
        metrics.acc(np.zeros(3, int), np.zeros(2, int))
    with pytest.raises(ValueError, match="no image is known in both"):
        metrics.nmi(np.zeros(3, int), np.full(3, -1))


def test_a_linear_probe_learns_from_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[tuple[int, int]] = []
    learn = LogisticRegression.fit

    def count(self: object, x: np.ndarray, y: np.ndarray, *more: object) -> object:
        rows.append(x.shape)
        return learn(self, x, y, *more)

    monkeypatch.setattr(LogisticRegression, "fit", count)
    monkeypatch.setattr(metrics, "PROBE_ROWS", 50)
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    features = np.eye(3)[labels] + rng.normal(0, 0.1, (300, 3))
    assert metrics.linear_probe(features, labels, rng) > 0.95
    assert metrics.linear_probe(features, labels, rng, (features, labels)) > 0.95
    assert rows == [(50, 3), (50, 3)]
