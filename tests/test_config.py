"""Settings: read back as written, refused with a hint when wrong."""

import dataclasses
import tomllib

import pytest

from deepcluster.config import Config, flatten, load_recipe, override, recipe_names, to_toml
from deepcluster.errors import ConfigError


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


def test_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="chainer, paper"):
        load_recipe("nice")


def test_every_field_has_a_docstring() -> None:
    import ast
    from pathlib import Path

    import deepcluster.config as module

    tree = ast.parse(Path(module.__file__).read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Settings", "Config")):
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign) and "field(" not in ast.unparse(field):
                    documented = isinstance(after, ast.Expr) and isinstance(
                        after.value, ast.Constant
                    )
                    assert documented, f"{node.name}.{ast.unparse(field.target)}"


def test_flatten_names_every_setting() -> None:
    names = flatten(dataclasses.asdict(Config()))
    assert {"clusters", "train.lr", "views.flip"} <= set(names)
