"""A module imports only from layers below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "deepcluster"
LAYERS = [
    {"config", "run"},
    {
        "images",
        "sources",
        "named",
        "augment",
        "backbones",
        "kmeans",
        "pca",
        "neighbours",
        "graph",
        "plane",
        "choose",
        "metrics",
        "optimizers",
    },
    {"methods", "features"},
    {"plan", "train"},
    {"estimator", "report", "pictures", "commands", "finished", "terminal", "tensorboard"},
    {"cli"},
    {"__main__"},
]
WITHIN = {  # imports inside a layer that are meant
    ("run", "config"),
    ("train", "plan"),
    ("graph", "neighbours"),
    ("plane", "neighbours"),
    ("choose", "graph"),
    ("choose", "metrics"),
    ("images", "sources"),
    ("sources", "named"),
    ("commands", "report"),
    ("commands", "pictures"),
    ("commands", "tensorboard"),
}
ONLY_CONFIG_AND_RUN = {"report", "pictures"}


def room(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "deepcluster":
                found |= {f"deepcluster.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


FILES = sorted(path for path in SRC.rglob("*.py") if path != SRC / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_a_module_imports_only_from_below(path: Path) -> None:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    here = room(path)
    for module in imports(path):
        if not module.startswith("deepcluster."):
            continue
        there = module.split(".")[1]
        if there == here or there not in level:
            assert there in level or there == "__version__", f"{module} is in no layer"
            continue
        assert level[there] < level[here] or (here, there) in WITHIN, f"{here} imports {there}"
        if here in ONLY_CONFIG_AND_RUN:
            assert there in {"config", "run"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_the_report_never_imports_torch(path: Path) -> None:
    if room(path) in ONLY_CONFIG_AND_RUN | {"config", "run"}:
        assert not any(name.split(".")[0] == "torch" for name in imports(path))


@pytest.mark.parametrize(
    "code",
    ["import deepcluster", "import deepcluster.cli", "import deepcluster.report"],
)
def test_import_is_light(code: str) -> None:
    script = f"import sys; {code}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_public_names_are_there() -> None:
    import deepcluster

    for name in deepcluster.__all__:
        assert getattr(deepcluster, name) is not None
    assert dir(deepcluster) == deepcluster.__all__


def test_version_is_the_newest_of_the_changelog() -> None:
    import deepcluster

    text = (SRC.parent.parent / "CHANGELOG.md").read_text()
    newest = next(line for line in text.splitlines() if line.startswith("## "))
    assert deepcluster.__version__ in newest
