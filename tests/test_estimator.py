"""The scikit-learn-style front keeps scikit-learn's contract, on images."""

import dataclasses
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, make_shapes
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deepcluster import DeepCluster
from deepcluster.config import Config, load_recipe, override
from deepcluster.errors import ConfigError, RunError
from deepcluster.finished import predict_source, update_run
from deepcluster.images.store import ImageStore
from deepcluster.naming import Remembered, carry_names
from deepcluster.report import apply_labels
from deepcluster.run import RunDir
from deepcluster.training.cost import Cost
from deepcluster.training.plan import Pace
from deepcluster.training.resolve import resolve

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
    with pytest.warns(UserWarning, match="1 image left out"):
        found.fit(images)
    assert len(found.labels_) == len(found.ids_) == 20
    assert len(found.skipped_) == 1


def test_one_row_out_for_each_image_in(fitted: DeepCluster, tmp_path: Path) -> None:
    shapes = make_shapes()
    bad = [*shapes[:3], np.zeros((0, 0), np.uint8), shapes[3], str(tmp_path / "gone.png")]
    with pytest.warns(UserWarning, match="2 images left out.* NaN, their clusters -1"):
        labels = fitted.predict(bad)
    kept = [0, 1, 2, 4]
    assert labels.dtype == np.int64 and labels[[3, 5]].tolist() == [-1, -1]
    assert np.array_equal(labels[kept], fitted.labels_[:4])
    with pytest.warns(UserWarning, match="left out"):
        embeddings = fitted.transform(bad)
    assert np.array_equal(embeddings[kept], fitted.embeddings_[:4])
    assert np.isnan(embeddings[[3, 5]]).all()
    with pytest.warns(UserWarning, match="no usable image"):
        assert fitted.predict(bad[3:4]).tolist() == [-1]
    found = make()
    with pytest.warns(UserWarning, match="1 image left out"):
        whole = found.fit_predict([*shapes[:20], None, *shapes[20:40]])
    assert len(whole) == 41 and whole[20] == -1 and found.n_images_ == 41
    assert np.array_equal(np.delete(whole, 20), found.labels_)
    assert found.kept_.tolist() == [*range(20), *range(21, 41)]


def test_predict_has_the_grey_range_of_the_fit() -> None:
    dim = make_shapes().astype(np.uint16) + 135
    found = make().fit(dim)
    low, high = found.config_.data.range
    assert 130 < low < 170 and 300 < high <= 390  # type: ignore[operator]
    alone = np.concatenate([found.transform(dim[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(alone, found.embeddings_[:5], atol=1e-5)


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


# -- with scikit-learn, on disk, and told what happens ---------------------------------------------


def test_names_of_features_and_output_as_a_table(fitted: DeepCluster) -> None:
    names = fitted.get_feature_names_out()
    assert len(names) == fitted.embeddings_.shape[1]
    assert names[:2].tolist() == ["deepcluster0", "deepcluster1"]
    with pytest.raises(NotFittedError):
        make().get_feature_names_out()
    assert fitted.n_features_in_ == 16 * 16
    assert not fitted.__sklearn_tags__().input_tags.two_d_array
    pd = pytest.importorskip("pandas")
    table = make().set_output(transform="pandas").fit(make_shapes()).transform(make_shapes())
    assert isinstance(table, pd.DataFrame) and table.columns.tolist() == names.tolist()


def test_in_a_pipeline() -> None:
    images, truth = make_shapes(60), np.arange(60) % 3
    steps = make_pipeline(make(), StandardScaler(), LogisticRegression())
    assert steps.fit(images, truth).score(images, truth) > 0.6
    assert len(steps[:-1].get_feature_names_out()) == steps[0].embeddings_.shape[1]
    assert steps[:-1].set_output(transform="default").transform(images).shape[0] == 60


def test_grid_search_over_numpy_numbers() -> None:
    images, truth = make_shapes(45), np.arange(45) % 3
    search = GridSearchCV(
        make(), {"n_clusters": np.arange(2, 4)}, scoring="adjusted_rand_score", cv=2
    )
    search.fit(images, truth)
    assert search.best_params_["n_clusters"] in (2, 3)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(search.predict(images)) == 45


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, pixels in enumerate(make_shapes(48)):
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def of_photos(photos: Path) -> DeepCluster:
    with pytest.warns(UserWarning, match="left out"):
        return make(n_clusters=np.int64(3), random_state=np.int64(0)).fit(photos)


def same(a: DeepCluster, b: DeepCluster) -> None:
    for name in ("labels_", "embeddings_", "confidence_", "cluster_centers_"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    for name in ("ids_", "skipped_", "n_iter_", "n_features_in_", "history_", "config_"):
        assert getattr(a, name) == getattr(b, name), name


def test_save_and_load_without_pickle(of_photos: DeepCluster, photos: Path, tmp_path: Path) -> None:
    folder = of_photos.save(tmp_path / "saved")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert not any(name.endswith((".pkl", ".pt", ".joblib")) for name in files)
    assert {"run.json", "items.parquet", "model/model.safetensors", "contents.npy"} <= files
    with pytest.raises(RunError, match="not empty"):
        of_photos.save(folder)
    again = DeepCluster.load(folder)
    same(again, of_photos)
    assert again.get_params() == of_photos.get_params()
    assert all(type(again.get_params()[name]) is int for name in ("n_clusters", "random_state"))
    images = make_shapes(20, seed=3)
    assert np.array_equal(again.predict(images), of_photos.predict(images))
    assert np.array_equal(again.transform(images), of_photos.transform(images))
    assert np.array_equal(
        clone(again).fit(make_shapes()).labels_, make().fit(make_shapes()).labels_
    )
    found = predict_source(RunDir.open(folder), images, device="cpu")  # the commands take it
    assert np.array_equal(found.labels, of_photos.predict(images))
    same(DeepCluster.load(again.save(tmp_path / "twice")), of_photos)
    same(DeepCluster.load(pickle.loads(pickle.dumps(of_photos)).save(tmp_path / "pickled")), again)
    with pytest.raises(NotFittedError):
        make().save(tmp_path / "none")


def test_load_a_run_of_the_command_line_and_what_a_person_moved(
    finished: RunDir, folder: Path, tmp_path: Path
) -> None:
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(finished.path, copy.path)
    ids = copy.read_items()["id"].to_pylist()
    labels = tmp_path / "labels.csv"
    rows = [f"{ids[0]},4,mine,person", f"{ids[1]},-1,,person"]
    labels.write_text("\n".join(["id,cluster,name,by", *rows]))
    apply_labels(copy, labels)
    found = DeepCluster.load(copy.path)
    assert found.labels_[:2].tolist() == [4, -1]
    with pytest.warns(UserWarning, match="left out"):
        predicted = found.predict(folder)
    assert predicted[20] == -1  # it cannot be read
    assert np.array_equal(np.delete(predicted, 20), found.labels_)
    assert found.cluster_centers_.shape[0] == 5
    with pytest.raises(RunError, match="copy the folder"):
        found.save(tmp_path / "again")
    params = found.get_params()
    assert (params["n_clusters"], params["random_state"], params["epochs"]) == (3, 0, 2)
    with pytest.warns(UserWarning, match="left out"):
        again = clone(found).set_params(device="cpu").fit(folder)
    assert np.array_equal(again.embeddings_, finished.read_embeddings())


def test_a_net_of_ones_own_is_given_again(tmp_path: Path) -> None:
    def net(width: int = 12) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, width))

    found = make(backbone=net()).fit(make_shapes())
    folder = found.save(tmp_path / "saved")
    with pytest.raises(RunError, match="module of your own"):
        DeepCluster.load(folder)
    with pytest.raises(RunError, match="of another net"):
        DeepCluster.load(folder, backbone=net(13))
    again = DeepCluster.load(folder, backbone=net())
    assert np.array_equal(again.predict(make_shapes(9)), found.predict(make_shapes(9)))


def test_report(of_photos: DeepCluster, tmp_path: Path) -> None:
    page = of_photos.report(tmp_path / "run")
    assert page == tmp_path / "run" / "report" / "index.html" and page.is_file()
    assert of_photos.report(tmp_path / "run") == page  # it is saved there already
    assert DeepCluster.load(tmp_path / "run").report(tmp_path / "run") == page
    again = pickle.loads(pickle.dumps(of_photos))
    with pytest.raises(RunError, match="no images to show"):
        again.report(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    other = make(random_state=1).fit(make_shapes(9))
    with pytest.raises(RunError, match="not empty"):
        other.report(tmp_path / "run")


def test_a_pickle_holds_no_images(of_photos: DeepCluster) -> None:
    of_photos._store.pixels[0, 0, :8, 0] = np.frombuffer(b"needles!", np.uint8)
    assert b"needles!" in of_photos._store.pixels.tobytes()
    assert b"needles!" not in pickle.dumps(of_photos)


def test_verbose_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    make().fit(make_shapes(12))
    assert capsys.readouterr() == ("", "")
    make(verbose=True).fit(make_shapes(12))
    out, err = capsys.readouterr()
    assert out == "" and "epoch   1  loss" in err


def test_vectors_are_saved_and_loaded_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = (np.eye(5)[np.arange(60) % 3] + 0.1 * rng.normal(size=(60, 5))).astype(np.float32)
    found = DeepCluster(n_clusters=3, random_state=0).fit_embeddings(rows)
    assert found.n_features_in_ == 5
    folder = found.save(tmp_path / "saved")
    again = DeepCluster.load(folder)
    same(again, found)
    assert np.array_equal(again.predict(rows), found.labels_)
    assert found.report(folder).is_file()
    moved = rows[:5] + np.float32(0)
    old = Remembered.of(RunDir.open(folder))
    other = DeepCluster(n_clusters=2, random_state=0).fit_embeddings(moved).save(tmp_path / "b")
    assert carry_names(old, RunDir.open(other)).common == 5  # known by their values
    with pytest.raises(RunError, match="made of vectors"):
        update_run(RunDir.open(folder), make_shapes(3))


def test_numpy_numbers_are_numbers_here_too(shapes: ImageStore) -> None:
    more: dict[str, Any] = {"size": 16, "backbone": "convnet_tiny", "device": "cpu"}
    more["settings"] = {"train.batch_size": 32, "train.precision": "float32"}
    numpy = DeepCluster(
        n_clusters=np.int64(3), epochs=np.int32(1), random_state=np.int64(0), **more
    ).fit(shapes)
    plain = DeepCluster(n_clusters=3, epochs=1, random_state=0, **more).fit(shapes)
    assert numpy.config_ == plain.config_ and numpy.config_.seed == 0
    assert np.array_equal(numpy.embeddings_, plain.embeddings_)


def test_auto_in_settings_undoes_what_a_recipe_sets(shapes: ImageStore) -> None:
    model = DeepCluster(recipe="chainer", settings={"final.pca": 7, "clusters": "auto"})
    assert model.settings is not None
    asked = override(override(Config(), load_recipe("chainer")), model.settings)
    assert asked.clusters == "auto" and asked.final.pca == 7
    with pytest.raises(ConfigError, match=r"train\.warmup = 1\.5"):
        DeepCluster(settings={"train.warmup": 1.5}).fit(shapes)


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        (Cost(10**9, 0.01, 0.0, 50), "there will be 1"),  # an epoch takes longer than expected
        (Cost(10**9, 60.0, 0.0, 1), "minutes are too few"),
    ],
)
def test_minutes_that_cannot_be_kept_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, cost: Cost, words: str
) -> None:
    def known(config: Config, **_: Any) -> tuple[Config, Cost]:
        planned = dataclasses.replace(config, epochs=cost.epochs, minutes="auto")
        return resolve(planned, n=40, size=16, channels=1), cost

    def cut(self: Pace, done: int, epochs: int, seconds: float) -> int:
        if epochs > 1:
            self.tell("there will be 1")
        return 1

    monkeypatch.setattr("deepcluster.estimator.schedule_minutes", known)
    monkeypatch.setattr(Pace, "__call__", cut)
    with pytest.warns(UserWarning, match=words) as caught:
        model = make(epochs="auto", minutes=0.5, size=16).fit(make_shapes(40))
    assert len(caught) == 1 and caught[0].filename == __file__
    assert model.n_iter_ == model.config_.epochs == 1
