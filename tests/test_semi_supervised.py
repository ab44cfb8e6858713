"""The semi-supervised front keeps scikit-learn's contract."""

from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, make_shapes
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError

from deepcluster import DeepCluster, DeepClusterClassifier
from deepcluster.run import RunDir

SETTINGS = {"train.batch_size": 32, "train.precision": "float32"}
TRUTH = np.arange(96) % 3


def make() -> DeepClusterClassifier:
    base = DeepCluster(
        n_clusters=3,
        epochs=1,
        device="cpu",
        settings=SETTINGS,
        backbone=TINY["backbone"],
        start="scratch",
        random_state=0,
    )
    return DeepClusterClassifier(base)


def few(labels: np.ndarray, count: int = 30) -> np.ndarray:
    """All but the first `count` labels taken away."""
    y = labels.copy()
    y[count:] = -1 if y.dtype.kind in "if" else ""
    return y


@pytest.fixture(scope="module")
def fitted() -> DeepClusterClassifier:
    return make().fit(make_shapes(), few(TRUTH))


def test_attributes(fitted: DeepClusterClassifier) -> None:
    assert is_classifier(fitted)
    assert fitted.classes_.tolist() == [0, 1, 2]
    assert fitted.transduction_.shape == (96,)
    assert fitted.transduction_[:30].tolist() == TRUTH[:30].tolist()
    assert fitted.expected_.low <= fitted.expected_.accuracy <= fitted.expected_.high
    assert fitted.n_features_in_ == fitted.clusterer_.n_features_in_


def test_probabilities_and_classes(fitted: DeepClusterClassifier) -> None:
    new = make_shapes(30, seed=5)
    probabilities = fitted.predict_proba(new)
    assert probabilities.shape == (30, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(fitted.predict(new), fitted.classes_[probabilities.argmax(axis=1)])
    assert fitted.score(new, TRUTH[:30]) > 0.5


def test_texts_are_classes_too_and_come_back_as_they_were() -> None:
    names = np.array(["bar", "cross", "ring"])[TRUTH]
    found = make().fit(make_shapes(), few(names))
    assert found.classes_.tolist() == ["bar", "cross", "ring"]
    assert set(found.predict(make_shapes(9)).tolist()) <= set(found.classes_.tolist())
    mixed = [int(k) if i < 30 else None for i, k in enumerate(TRUTH)]
    assert make().fit(make_shapes(), mixed).classes_.tolist() == [0, 1, 2]


def test_contract() -> None:
    found = make()
    with pytest.raises(NotFittedError):
        found.predict(make_shapes(3))
    copied = clone(found)
    assert copied.clusterer.get_params() == found.clusterer.get_params()
    assert "clusterer__n_clusters" in found.get_params()
    with pytest.raises(ValueError, match="labels of 1 class:"):
        make().fit(make_shapes(), np.where(TRUTH == 0, 0, -1))
    with pytest.raises(ValueError, match=r"y is \(5,\) for 96 images"):
        make().fit(make_shapes(), TRUTH[:5])


def test_a_finished_run_is_enough(finished: RunDir, folder: Path) -> None:
    words = np.array(finished.read_items()["label"].to_pylist())
    hidden = words.copy()
    hidden[::2] = ""
    found = DeepClusterClassifier(run=finished.path).fit(None, hidden)
    again = DeepClusterClassifier(run=finished.path)
    with pytest.warns(UserWarning, match="1 image left out"):
        predicted = found.predict(folder)
    assert len(predicted) == 61 and (predicted == "").sum() == 1
    assert set(predicted[predicted != ""].tolist()) <= {"bars", "crosses", "rings"}
    assert again.run == finished.path
