"""Settings: read back as written, refused with a hint when wrong."""

import dataclasses
import math
import re
import tomllib
import typing
from pathlib import Path

import numpy as np
import pytest

from deepcluster.config import (
    SECTIONS,
    Config,
    TrainSettings,
    flatten,
    load_recipe,
    override,
    recipe_names,
    to_toml,
)
from deepcluster.errors import ConfigError
from deepcluster.methods import METHODS
from deepcluster.training.resolve import resolve


def test_toml_reads_back() -> None:
    config = override(Config(), {"train": {"lr": 1e-7}, "backbone": 'a "quoted"\\ näme'})
    assert override(Config(), tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_hold_only_settings(name: str) -> None:
    override(Config(), load_recipe(name))


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"trian.lr": 0.1}, "did you mean 'train'"),
        ({"train.lr": "fast"}, "float or 'auto'"),
        ({"train": 3}, "group of settings"),
        ({"clusters": True}, "int or 'auto'"),
        ({"views.preset": "nice"}, "'photo'"),
        ({"epochs": 1.5}, "int or 'auto'"),
    ],
)
def test_wrong_settings_say_what_to_do(values: dict[str, object], hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        override(Config(), values)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"train.warmup": 1.5}, "from 0 below 1"),
        ({"train.warmup": 1.0}, "from 0 below 1"),
        ({"train.checkpoint_every": 0}, "from 1"),
        ({"contrastive_clusters.recluster_every": 0}, "from 1"),
        ({"contrastive_clusters.temperature": 0}, "above 0"),
        ({"contrastive_clusters.temperature": math.nan}, "above 0"),
        ({"deepcluster_v2.dimensions": 0}, "from 1"),
        ({"final.neighbours": 0}, "from 1"),
        ({"final.pca": -3}, "from 0"),
        ({"final.restarts": 0}, "from 1"),
        ({"data.margin": 9}, "to 4"),
        ({"data.memory_gb": math.inf}, "from 0 or 'auto'"),
        ({"deepcluster.reassign": 0.0}, "above 0, to 1"),
        ({"kmeans.tolerance": -1}, "from 0"),
        ({"train.lr": math.inf}, "above 0 or 'auto'"),
        ({"seed": 10**20}, "from 0 to 9,223,372,036,854,775,807"),
        ({"seed": -1}, "from 0"),
        ({"minutes": 0}, "above 0, to 100000"),
        ({"clusters": 0}, "from 1"),
    ],
)
def test_a_number_out_of_its_range_is_refused(values: dict[str, object], hint: str) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=re.escape(name) + " = .* will not do: give a number"):
        override(Config(), values)
    with pytest.raises(ConfigError, match=hint):
        override(Config(), values)


def test_every_number_has_a_range() -> None:
    for section in (Config(), *vars(Config()).values()):
        if dataclasses.is_dataclass(section):
            hints = typing.get_type_hints(type(section))
            for field in dataclasses.fields(section):
                kinds = {hints[field.name], *typing.get_args(hints[field.name])}
                assert ("range" in field.metadata) == bool({int, float} & kinds), field.name


def test_settings_made_without_override_are_checked_too() -> None:
    config = dataclasses.replace(Config(), train=TrainSettings(warmup=1.5))
    with pytest.raises(ConfigError, match=r"train\.warmup"):
        resolve(config, n=10, size=16, channels=1)


def test_numpy_numbers_are_numbers() -> None:
    values = {"clusters": np.int64(5), "minutes": np.float32(2), "seed": np.uint8(3)}
    config = override(
        Config(), {**values, "sobel": np.bool_(True), "method": np.str_("deepcluster")}
    )
    assert (config.clusters, config.minutes, config.seed, config.sobel) == (5, 2.0, 3, True)
    assert {type(config.clusters), type(config.seed), type(config.sobel)} == {int, bool}
    assert override(Config(), tomllib.loads(to_toml(config))) == config
    with pytest.raises(ConfigError, match="int or 'auto'"):
        override(Config(), {"clusters": np.bool_(True)})


def test_a_settings_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    for raw, words in ((b'backbone = "caf\xe9"', "UTF-8"), (b"epochs = ", "not TOML")):
        file.write_bytes(raw)
        with pytest.raises(ConfigError, match=words) as caught:
            load_recipe(str(file))
        assert str(file) in str(caught.value)
    file.write_bytes(b"\xef\xbb\xbfepochs = 3")  # as Windows' editors save it
    assert load_recipe(str(file)) == {"epochs": 3}


def test_every_method_has_its_settings() -> None:
    assert set(SECTIONS) == set(METHODS)
    groups = {f.name for f in dataclasses.fields(Config)}
    assert all(section in groups for names in SECTIONS.values() for section in names)


def test_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="chainer, paper"):
        load_recipe("nice")


def test_every_field_has_a_docstring() -> None:
    import ast

    import deepcluster.config as module

    tree = ast.parse(Path(module.__file__).read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Settings", "Config")):
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign) and "default_factory" not in ast.unparse(field):
                    documented = isinstance(after, ast.Expr) and isinstance(
                        after.value, ast.Constant
                    )
                    assert documented, f"{node.name}.{ast.unparse(field.target)}"


def test_flatten_names_every_setting() -> None:
    names = flatten(dataclasses.asdict(Config()))
    assert {"clusters", "train.lr", "views.flip"} <= set(names)
