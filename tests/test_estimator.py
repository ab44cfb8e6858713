"""The scikit-learn-style front keeps scikit-learn's contract, on images."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, make_shapes
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from deepcluster import DeepCluster

SETTINGS = {"train.batch_size": 32, "train.precision": "float32"}


def make(**changes: object) -> DeepCluster:
    values = {"n_clusters": 3, "epochs": 1, "device": "cpu", "settings": SETTINGS}
    values |= {"backbone": TINY["backbone"], "random_state": 0, **changes}
    return DeepCluster(**values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted() -> DeepCluster:
    return make().fit(make_shapes())


def test_attributes(fitted: DeepCluster) -> None:
    assert fitted.labels_.shape == (96,)
    assert fitted.labels_.dtype == np.int64
    assert isinstance(fitted.embeddings_, np.ndarray)
    assert fitted.cluster_centers_.shape == (3, fitted.embeddings_.shape[1])
    assert fitted.n_iter_ == len(fitted.history_) == 1


def test_predict_and_transform_repeat_the_fit(fitted: DeepCluster) -> None:
    assert np.array_equal(fitted.predict(make_shapes()), fitted.labels_)
    assert np.array_equal(fitted.transform(make_shapes()), fitted.embeddings_)


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_predict_repeats_the_fit_in_its_own_arithmetic(precision: str) -> None:
    found = make(settings={"train.batch_size": 32, "train.precision": precision})
    found.fit(make_shapes())
    assert np.array_equal(found.transform(make_shapes()), found.embeddings_)


def test_images_that_are_left_out_are_told(tmp_path: Path) -> None:
    images = [*make_shapes(20), np.zeros((0, 0), np.uint8)]
    found = make()
    with pytest.warns(UserWarning, match="1 images were left out"):
        found.fit(images)
    assert len(found.labels_) == len(found.ids_) == 20
    assert len(found.skipped_) == 1


def test_fit_predict_and_random_state(fitted: DeepCluster) -> None:
    assert np.array_equal(make().fit_predict(make_shapes()), fitted.labels_)
    other = make(random_state=1).fit(make_shapes())
    assert not np.array_equal(other.embeddings_, fitted.embeddings_)


def test_init_only_stores() -> None:
    strange = DeepCluster(n_clusters=-3, recipe="no such thing")
    assert strange.get_params()["n_clusters"] == -3
    with pytest.raises(ValueError, match="no recipe"):
        strange.fit(make_shapes())
    with pytest.raises(TypeError):
        DeepCluster(10)  # type: ignore[misc]


def test_clone_and_params(fitted: DeepCluster) -> None:
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "labels_")
    assert copy.set_params(n_clusters=5).n_clusters == 5


def test_not_fitted() -> None:
    with pytest.raises(NotFittedError):
        make().predict(make_shapes(3))


def test_pickle(fitted: DeepCluster) -> None:
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict(make_shapes()), fitted.labels_)


@pytest.mark.parametrize("kind", ["array", "channels first", "tensor", "list", "dataset"])
def test_many_kinds_of_images(kind: str, fitted: DeepCluster) -> None:
    array = make_shapes()
    images = {
        "array": array[..., None],
        "channels first": array[:, None],
        "tensor": torch.from_numpy(array)[:, None].float() / 255,
        "list": list(array),
        "dataset": [(image, "a target nobody reads") for image in array],
    }[kind]
    assert np.array_equal(fitted.predict(images), fitted.labels_)


def test_own_net(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 12), torch.nn.ReLU())
    before = net[1].weight.detach().clone()
    found = make(backbone=net).fit(make_shapes())
    assert found.embeddings_.shape == (96, 12)
    assert torch.equal(net[1].weight, before)  # a copy is trained
    assert np.array_equal(make(backbone=net).fit(make_shapes()).embeddings_, found.embeddings_)
    assert found.config_.backbone == "custom"


def test_y_is_never_looked_at(fitted: DeepCluster) -> None:
    again = make().fit(make_shapes(), y=object())
    assert np.array_equal(again.labels_, fitted.labels_)
