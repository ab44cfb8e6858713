"""What is shipped: the package and nothing else."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import deepcluster

ROOT = Path(__file__).parents[1]
NAME = f"deepcluster-{deepcluster.__version__}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", out], cwd=ROOT, check=True)
    return out


def package() -> set[str]:
    """Every file of the package, by its path below the package's own folder."""
    src = ROOT / "src"
    files = (path for path in src.rglob("*") if path.is_file())
    return {
        path.relative_to(src).as_posix() for path in files if "__pycache__" not in path.parts
    } - {path.relative_to(src).as_posix() for path in src.rglob("*.egg-info/*")}


def test_the_wheel_holds_the_package_and_its_licence(built: Path) -> None:
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        held = set(wheel.namelist())
        assert wheel.testzip() is None
    info = f"{NAME}.dist-info"
    said = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    assert held == package() | {f"{info}/{name}" for name in said}
    assert {"deepcluster/report/page/index.html", "deepcluster/recipes/paper.toml"} <= held


def test_the_sdist_holds_the_package_and_what_builds_it(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        held = {Path(name).relative_to(NAME).as_posix() for name in archive.getnames()}
    said = {"PKG-INFO", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"}
    assert held == {f"src/{name}" for name in package()} | said | {".gitignore"}
