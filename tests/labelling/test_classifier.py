"""What is said of a classifier is true, and it survives being written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from make_run import make_run
from test_candidates import blobs

from deepcluster.errors import RunError
from deepcluster.labelling.candidates import CANDIDATES, Pool
from deepcluster.labelling.classifier import (
    Classifier,
    find_mistakes,
    folds,
    make_pool,
    shifted,
    teach,
)
from deepcluster.labelling.spread import neighbour_graph


def hard(n: int = 600, seed: int = 0, apart: float = 1.4) -> tuple[Pool, np.ndarray]:
    """Images of four classes that overlap."""
    rng = np.random.default_rng(seed)
    y = rng.integers(4, size=n)
    x = rng.normal(size=(4, 6))[y] * apart + rng.normal(size=(n, 6))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return Pool(x, neighbour_graph(x)), y


NAMES = ["a", "b", "c", "d"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_interval_covers_nine_times_in_ten(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for slow in ("product", "logistic"):  # minutes of them would say no more
        monkeypatch.delitem(CANDIDATES, slow)
    pool, y = hard(seed=seed, apart=1.0)
    covered = []
    for draw in range(200):
        rows = np.random.default_rng(draw).choice(len(y), 40, replace=False)
        found = teach(pool, rows, y[rows], NAMES, seed=draw)
        right = found.classifier.probabilities(pool.features).argmax(axis=1) == y
        truth = np.delete(right, rows).mean()
        covered.append(found.expected.low <= truth <= found.expected.high)
    assert 0.85 <= np.mean(covered) <= 0.95


def test_what_is_expected_is_near_the_truth_and_narrower_with_more_labels() -> None:
    pool, y = hard()
    widths = []
    for count in (20, 80, 320):
        rows = np.random.default_rng(0).choice(len(y), count, replace=False)
        found = teach(pool, rows, y[rows], NAMES)
        right = found.classifier.probabilities(pool.features).argmax(axis=1) == y
        said = found.expected
        assert said.low - 0.05 < np.delete(right, rows).mean() < said.high + 0.05
        assert said.low <= said.accuracy <= said.high
        widths.append(said.high - said.low)
    assert widths[0] > widths[1] > widths[2]


def test_what_is_expected_is_of_new_images_though_the_hard_ones_were_labelled() -> None:
    pool, y = hard(1200)
    own = Pool(pool.features[:600], neighbour_graph(pool.features[:600]))
    means = np.stack([own.features[y[:600] == k].mean(axis=0) for k in range(4)])
    alike = np.sort(own.features @ means.T, axis=1)
    rows = np.argsort(alike[:, -1] - alike[:, -2])[:300]  # where two classes meet
    found = teach(own, rows, y[rows], NAMES, drawn=False)
    right = found.classifier.probabilities(pool.features).argmax(axis=1) == y
    assert np.delete(right[:600], rows).mean() > found.expected.high  # the easy ones are left
    assert found.expected.low < right[600:].mean() < found.expected.high


def test_probabilities_are_calibrated_and_a_risk_is_kept() -> None:
    pool, y = hard(2000)
    rows = np.random.default_rng(0).choice(len(y), 200, replace=False)
    classifier = teach(pool, rows, y[rows], NAMES).classifier
    probabilities = classifier.probabilities(pool.features)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    right = probabilities.argmax(axis=1) == y
    assert abs(probabilities.max(axis=1).mean() - right.mean()) < 0.06
    for risk in (0.05, 0.1):
        sure = probabilities.max(axis=1) >= classifier.threshold(risk)
        assert sure.any()
        assert 1 - right[sure].mean() < risk + 0.05
    assert classifier.threshold(0.05) >= classifier.threshold(0.1) >= classifier.threshold(0.9)


def test_a_threshold_is_where_the_mean_error_reaches_the_risk() -> None:
    pool, y = hard()
    one = teach(pool, np.arange(40), y[:40], NAMES).classifier
    classifier = Classifier(one.head, NAMES, 1, 1, 0, np.array([0.5, 0.6, 0.9, 0.98]), "ridge")
    assert classifier.threshold(0.06) == 0.9  # (0.02 + 0.1) / 2
    assert classifier.threshold(0.021) == 0.98
    assert classifier.threshold(0.01) > 1  # not even the surest
    assert classifier.threshold(0.3) == 0.5


def test_a_shift_moves_the_largest_and_leaves_a_distribution() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]], dtype=torch.float64)
    moved = shifted(p, 1.0, -1.0)
    torch.testing.assert_close(moved.sum(1), torch.ones(2, dtype=torch.float64), atol=1e-5, rtol=0)
    assert moved[0, 0].logit() == pytest.approx(p[0, 0].logit() - 1)
    assert moved[0, 1] / moved[0, 2] == pytest.approx(2)


def test_a_shift_never_changes_the_class() -> None:
    p = torch.tensor([[0.2, 0.3, 0.25, 0.25], [0.9, 0.05, 0.05, 0.0]])
    for shift in (-6.0, 0.0, 6.0):
        moved = shifted(p, 0.7, shift)
        assert moved.argmax(1).tolist() == [1, 0]
        torch.testing.assert_close(moved.sum(1), torch.ones(2), atol=1e-5, rtol=0)


def test_folds_hold_each_label_out_once_and_classes_are_spread() -> None:
    labels = np.array([0] * 20 + [1] * 20 + [2])
    fold = folds(labels, np.random.default_rng(0), alone=False)
    assert fold[-1] == -1
    assert all(np.bincount(fold[labels == k]).tolist() == [2] * 10 for k in (0, 1))
    assert folds(labels, np.random.default_rng(0), alone=True).min() == 0
    assert (folds(np.array([0, 1, 2]), np.random.default_rng(0), alone=False) == -1).all()


def test_all_images_may_have_a_label_and_each_be_alone_in_its_class() -> None:
    x, _ = blobs(3)
    everything = Pool(x, neighbour_graph(x))
    found = teach(everything, np.arange(3), np.arange(3), NAMES, drawn=False)
    assert found.expected.checked == 0 and len(found.classifier.confidences) == 3


def test_classes_of_one_label_each_give_a_wide_interval() -> None:
    pool, y = hard()
    rows = np.array([int(np.flatnonzero(y == k)[0]) for k in range(4)])
    found = teach(pool, rows, y[rows], NAMES, drawn=False)
    assert found.expected.checked == 0 and found.scores == {}
    assert found.classifier.method == "spreading"
    assert found.expected.high - found.expected.low > 0.3


@pytest.mark.parametrize(("labels", "method"), [(99, "spreading"), (100, "product")])
def test_what_is_taken_unless_another_wins(labels: int, method: str) -> None:
    pool, y = hard(apart=6.0)
    rows = np.random.default_rng(0).permutation(len(y))[:labels]
    found = teach(pool, rows, y[rows], NAMES)
    assert min(found.scores.values()) > 0.95  # none can win
    assert found.classifier.method == method


def test_images_of_one_act_are_held_out_together() -> None:
    pool, y = hard()
    rows = np.arange(60)
    groups = np.where(rows < 30, y[:60], 100 + rows)  # an act a class, and thirty more
    found = teach(pool, rows, y[:60], NAMES, groups=groups)
    assert found.expected.checked == 34


def test_a_label_alone_among_others_is_found() -> None:
    x, y = blobs(90)
    wrong = y.copy()
    wrong[[4, 50]] = (wrong[[4, 50]] + 1) % 3
    assert find_mistakes(x, wrong).tolist() == [4, 50]
    assert find_mistakes(x, y).tolist() == []
    assert find_mistakes(x[:4], y[:4]).tolist() == []


def test_help_is_wanted_where_the_classes_meet() -> None:
    x, y = blobs(400, classes=2, d=4)
    pool = Pool(x, neighbour_graph(x))
    rows = np.array([0, 1, 2, 3])
    found = teach(pool, rows, y[rows], ["a", "b"])
    assert not set(found.helpful.tolist()) & set(rows.tolist())
    means = [x[y == k].mean(axis=0) for k in (0, 1)]
    between = np.abs(x @ means[0] - x @ means[1])
    assert between[found.helpful[:20]].mean() < between.mean()


def test_a_pool_is_bounded_and_holds_the_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepcluster.labelling.classifier.POOL", 100)
    x, _ = blobs()
    pool, rows = make_pool(x, np.array([7, 299]))
    assert 100 <= len(rows) <= 102 and {7, 299} <= set(rows.tolist())
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(pool.features, x[rows])


@pytest.mark.parametrize("method", CANDIDATES)
def test_it_comes_back_from_a_run_folder_without_pickle(tmp_path: Path, method: str) -> None:
    run = make_run(tmp_path / "run", n=40)
    pool, y = hard()
    rows = np.arange(40)
    head = CANDIDATES[method](pool, rows, y[rows], 4)
    made = Classifier(head, NAMES, 1.7, 0.9, 0.3, np.linspace(0.3, 1, 50), method)
    with pytest.raises(RunError, match="has no classifier: label some images"):
        Classifier.load(run)
    made.save(run, {"note": 1})
    again = Classifier.load(run)
    assert again.names == NAMES and again.method == method
    np.testing.assert_allclose(
        again.probabilities(pool.features), made.probabilities(pool.features), atol=1e-7
    )
    files = {path.name for path in run.classifier.iterdir()}
    assert files == {"classifier.json", "classifier.safetensors"}


SURE = {"confidences": np.ones(3, "f")}
LINEAR = SURE | {"weight": np.zeros((8, 2), "f"), "offset": np.zeros(2, "f")}
MEMORY = SURE | {"keys": np.zeros((9, 8), "f"), "values": np.ones((9, 2), "f")}
FACTS = {"kind": "linear", "method": "x", "classes": ["a", "b"], "temperature": 1.0, "shift": 0.0}


@pytest.mark.parametrize(
    ("tensors", "facts", "words"),
    [
        (LINEAR, FACTS | {"classes": ["a"]}, "not as many"),
        (LINEAR, FACTS | {"classes": ["a", 7]}, "no name"),
        (LINEAR, FACTS | {"temperature": 0.0}, "not finite"),
        (LINEAR, FACTS | {"slope": -1.0}, "not finite"),
        (LINEAR, FACTS | {"temperature": "warm"}, "classifier was damaged"),
        (LINEAR, {"kind": "linear"}, "classifier was damaged"),
        (LINEAR, FACTS | {"kind": "forest"}, "classifier was damaged"),
        (LINEAR | {"offset": np.zeros(3, "f")}, FACTS, "do not go together"),
        (LINEAR | {"weight": np.zeros(8, "f")}, FACTS, "classifier was damaged"),
        (LINEAR | {"offset": np.full(2, np.nan, "f")}, FACTS, r"safetensors .*not finite"),
        (LINEAR | {"confidences": np.zeros(0, "f")}, FACTS, "no confidences"),
        (MEMORY | {"values": np.ones((4, 2), "f")}, FACTS | {"kind": "memory"}, "do not go togeth"),
        (MEMORY, FACTS, "classifier was damaged"),
    ],
)
def test_a_classifier_that_cannot_be_is_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], facts: dict[str, object], words: str
) -> None:
    run = make_run(tmp_path / "run", n=12)
    run.write_classifier(LINEAR, FACTS)
    Classifier.load(run)
    run.write_classifier(tensors, facts)
    with pytest.raises(RunError, match=words) as caught:
        Classifier.load(run)
    assert "copy the whole run folder anew" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("classifier/classifier.json", b"{"),
        ("classifier/classifier.json", b"[]"),
        ("classifier/classifier.safetensors", b"PK"),
        ("classifier/labels.csv", b"id,label\n1\n"),
        ("classifier/labels.csv", b"id\n1\n"),
        ("classifier/labels.csv", b"id,label\n\xff,a\n"),
        ("labelling/suggested.json", b"["),
        ("labelling/suggested.json", b"[1]"),
    ],
)
def test_a_damaged_file_of_a_round_is_named(tmp_path: Path, name: str, raw: bytes) -> None:
    run = make_run(tmp_path / "run", n=12)
    run.write_classifier(LINEAR, FACTS)
    run.write_labels([("1", "a")])
    run.write_suggested(["1"])
    assert run.read_labels() == {"1": "a"} and run.read_suggested() == ["1"]
    (run.path / name).write_bytes(raw)
    with pytest.raises(RunError, match=f"{name} was damaged.*copy the whole run folder anew"):
        (Classifier.load(run), run.read_labels(), run.read_suggested())


def test_a_classifier_needs_two_classes() -> None:
    pool, _ = hard()
    with pytest.raises(ValueError, match="two classes"):
        teach(pool, np.arange(3), np.zeros(3, int), ["a"])
