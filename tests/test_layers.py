"""A module imports only from layers below it."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from deepcluster.run import RunDir

SRC = Path(__file__).parent.parent / "src" / "deepcluster"
LAYERS = [  # a room imports only from rooms above it in this list
    {"errors", "version"},
    {"config", "progress", "files"},
    {"run"},
    {"metrics", "device", "processes"},
    {"images", "clustering"},
    {"backbones"},
    {"training.views", "training.optimizers", "training.chance"},
    {"methods"},
    {"training.room", "training.step", "training.checkpoints", "training.sharing"},
    {"training.resolve"},
    {"training.cost"},
    {"training.plan"},
    {"training.threads"},
    {"training.conclude"},
    {"training.loop"},
    {"training.best"},
    {"labelling", "report", "show"},
    {"machine", "naming", "saying"},
    {"results"},
    {"fitting", "finished", "segmentation"},
    {"estimator"},
    {"classifier"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: number for number, names in enumerate(LAYERS) for name in names}
WITHOUT_TORCH = {"report", "errors", "version", "config", "progress", "files", "run", "images"}


def room(module: str) -> str:
    """The room of a module, named without ``deepcluster.``: its folder, or of training its file."""
    parts = module.split(".")
    return ".".join(parts[:2] if parts[0] == "training" else parts[:1])


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in names if is_module(name)}
            found |= modules | ({node.module} if len(modules) < len(names) else set())
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def is_module(name: str) -> bool:
    path = SRC.parent / name.replace(".", "/")
    return name.startswith("deepcluster.") and (path.is_dir() or path.with_suffix(".py").is_file())


FILES = sorted(path for path in SRC.rglob("*.py") if path != SRC / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_imports_only_from_below(path: Path) -> None:
    here = room(name_of(path))
    if here == "training":  # its face has no imports
        return
    for module in imports(path):
        if module.startswith("deepcluster."):
            there = room(module.removeprefix("deepcluster."))
            assert there == here or LEVEL[there] < LEVEL[here], f"{here} imports {there}"


def test_no_imports_go_in_a_circle() -> None:
    graph = {}
    for path in FILES:
        own = {m.removeprefix("deepcluster.") for m in imports(path) if m.startswith("deepcluster")}
        graph[name_of(path)] = own - {name_of(path)}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_these_rooms_never_import_torch(path: Path) -> None:
    if name_of(path) == "images.resize":  # when it is called: its filters are torch's
        return
    if room(name_of(path)) in WITHOUT_TORCH or name_of(path) == "show.pictures":
        assert not any(name.split(".")[0] == "torch" for name in imports(path))


@pytest.mark.parametrize(
    "code",
    ["import deepcluster", "import deepcluster.cli", "import deepcluster.report"],
)
def test_import_is_light(code: str) -> None:
    script = f"import sys; {code}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


HEAVY = ("timm", "torch._dynamo", "torchvision", "sympy", "matplotlib")
"""What takes a second to load, and is needed by some fits and pages only."""


def loaded(code: str) -> set[str]:
    """Of HEAVY and scikit-learn, what a fresh Python has loaded after `code`."""
    script = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, encoding="utf-8"
    )
    return {*HEAVY, "pyarrow", "sklearn"} & set(done.stderr.split())


def test_the_estimator_loads_little() -> None:
    assert loaded("from deepcluster import DeepCluster") <= {"pyarrow", "sklearn"}


def test_predict_loads_little(finished: RunDir, folder: Path) -> None:
    """With a net of this package; one of timm's needs timm."""
    code = f"from deepcluster.cli import app; app(['predict', {str(finished.path)!r}"
    code += f", {str(folder)!r}, '--device', 'cpu'], result_action='return_value')"
    assert loaded(code) == {"pyarrow"}


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


def test_the_citation_has_the_version_and_the_licence() -> None:
    import deepcluster

    text = (SRC.parent.parent / "CITATION.cff").read_text()
    assert f"\nversion: {deepcluster.__version__}\n" in text
    assert "\nlicense: Apache-2.0\n" in text
