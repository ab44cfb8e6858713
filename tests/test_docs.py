"""What the documents say can be typed: each line is parsed, and what is cheap is run."""

import ast
import csv
import doctest
import importlib.util
import inspect
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import make_shapes
from PIL import Image

import deepcluster
from deepcluster.backbones.features import MODEL_CARD
from deepcluster.cli import app, run_app
from deepcluster.run import RunDir

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs/make_api.py")
assert spec and spec.loader
make_api = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_api)
DOCUMENTS = ("README.md", "docs/guide.md", "docs/scale.md", "docs/run-folder.md", "CONTRIBUTING.md")
QUICK = ["--backbone", "convnet_tiny", "--epochs", "1", "--train.batch-size", "32"]


class Block(NamedTuple):
    """A code block of a document."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(document: str) -> list[Block]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        Block(document, text[: match.start()].count("\n") + 1, match[1], match[2])
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


ALL = [block for document in DOCUMENTS for block in blocks(document)]
SHELL = [block for block in ALL if block.language == "sh"]
PYTHON = [block for block in ALL if block.language == "python"]


def commands(block: Block) -> list[list[str]]:
    """The words of each line, without comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words]


def spans(document: str) -> list[str]:
    """Commands within sentences."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(r"`(deepcluster [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [span for span in found if "…" not in span]


def write_labels(path: Path, ids: list[str], classes: list[str]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "label"), *zip(ids, classes, strict=True)])


@pytest.fixture
def world(
    finished: RunDir, folder: Path, net_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """A folder in which all that the documents name lies, and where commands are run."""
    monkeypatch.chdir(tmp_path)
    for name in ("RUN", "OLD_RUN", "NEW_RUN", "runs/demo", "runs/mine"):
        shutil.copytree(finished.path, tmp_path / name)
    for name in ("PHOTOS", "SOURCE", "NEW", "TEST", "photos", "2023", "2024"):
        (tmp_path / name).symlink_to(folder)
    (tmp_path / "NET").symlink_to(net_folder)
    small = Image.fromarray(make_shapes(1)[0]).resize((4, 4))
    small.save(tmp_path / "IMAGE", format="PNG")
    small.save(tmp_path / "IMAGE.png")
    np.save(tmp_path / "images.npy", make_shapes(12))
    (tmp_path / "list.txt").write_text("IMAGE.png\n")
    (tmp_path / "config.toml").write_text("epochs = 1\n")
    items = finished.read_items()
    write_labels(tmp_path / "labels.csv", *(items[c].to_pylist()[:24] for c in ("id", "label")))
    return tmp_path


def parse(words: list[str]) -> None:
    app.parse_args(words, exit_on_error=False, print_error=False)


# -- the shell --------------------------------------------------------------------------------


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_each_command_of_a_shell_block_exists(block: Block, world: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(block):
        if words[0] == "torchrun":
            words = words[words.index("--") + 1 :]
        if words[0] == "deepcluster":
            parse(words[1:])
        elif words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
        elif words[0] == "python":
            script = (ROOT / words[1]).read_text(encoding="utf-8")
            for flag in (word for word in words[2:] if word.startswith("--")):
                assert f'"{flag}"' in script, words
        else:
            assert words[0] in (".", "pip", "uvx", "pipx", "git", "cd"), words


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_command_in_a_sentence_exists(document: str, world: Path) -> None:
    for span in spans(document):
        words = shlex.split(span)[1:]
        if words[1:] and words[1:] != ["--help"]:
            parse(words)
        else:
            assert words[0] in app, span


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_flag_exists(document: str) -> None:
    known = {"--help", "--version", "--json"}
    for command in app:
        if not command.startswith("-"):
            for argument in app[command].assemble_argument_collection():
                known |= set(argument.names)
    text = (ROOT / document).read_text(encoding="utf-8")
    text = re.sub(r"<!--.*?-->", "", text)
    text = re.sub(r"torchrun .*? -- ", "", text)
    text = re.sub(r"^.*(python |pip |make |uv ).*$", "", text, flags=re.MULTILINE)
    named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*[a-z]", text))
    assert named <= known, named - known


def trains_nothing(block: Block) -> list[list[str]]:
    return [w for w in commands(block) if w[0] == "deepcluster" and w[1] != "fit"]


@pytest.mark.parametrize("onnx", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("block", [b for b in SHELL if trains_nothing(b)], ids=str)
def test_a_block_of_commands_runs_as_it_stands(block: Block, onnx: bool, world: Path) -> None:
    for words in trains_nothing(block):
        if "onnx" in words and not onnx:
            continue
        out = world / "sorted"
        if "--into" in words and out.exists():
            shutil.rmtree(out)  # of an earlier line, which put clusters there
        ids = RunDir.open("RUN").read_items()["id"].to_pylist()
        if words[1] == "apply":  # the table that a report gives
            rows = [("id", "cluster", "name", "by"), (ids[0], "1", "a name", "person")]
            with (world / "labels.csv").open("w", newline="") as file:
                csv.writer(file).writerows(rows)
        assert run_app(words[1:]) == 0, words


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        words
        for block in SHELL
        for words in commands(block)
        if words[:2] == ["deepcluster", "fit"] and "frozen" not in words
    ],
    ids=" ".join,
)
def test_each_fit_of_the_documents_runs_with_few_epochs(words: list[str], world: Path) -> None:
    words = words[1:]
    if "--minutes" in words:
        place = words.index("--minutes")
        words[place : place + 2] = []
    quick = QUICK[2:] if "--backbone" in words else QUICK
    assert run_app([*words, *quick, "--out", "new"]) == 0


# -- Python -----------------------------------------------------------------------------------


@pytest.fixture
def few_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that says nothing of epochs takes two."""
    defaults = deepcluster.DeepCluster.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "epochs", 2)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_block_of_python_runs(block: Block, world: Path, few_epochs: None) -> None:
    if "DeepCluster(" in block.text:
        shutil.rmtree("runs/mine")  # it is written
    merges, _, part = RunDir.open("RUN").read_tree()
    names = {"images": make_shapes(60), "np": np, "merges": merges, "part": part}
    names |= {"p": len(merges) + 1, "k": 3}
    exec(compile(block.text, str(block), "exec"), names)


def test_the_example_in_a_model_card_runs(finished: RunDir) -> None:
    code = re.search(r"```python\n(.*?)```", MODEL_CARD, re.DOTALL)
    assert code
    exec(code[1].replace("PATH/OF/THIS/FOLDER", str(finished.model)), {})


def public() -> Iterator[tuple[str, Any]]:
    """Public names, and methods of their own of those that are classes."""
    yield "deepcluster", deepcluster
    for name in deepcluster.__all__:
        value = getattr(deepcluster, name)
        if not isinstance(value, str):
            yield name, value
        if inspect.isclass(value):
            for member, function in make_api.members(value):
                yield f"{name}.{member}", make_api.bare(function)


PUBLIC = dict(public())
EXAMPLES = [name for name, value in PUBLIC.items() if ">>>" in (value.__doc__ or "")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_in_docstrings_run(name: str, few_epochs: None) -> None:
    value = PUBLIC[name]
    home = value if inspect.ismodule(value) else inspect.getmodule(inspect.unwrap(value))
    names = vars(home) | {"images": make_shapes(40)}
    doc = (inspect.getdoc(value) or "").replace("minutes=30", "random_state=0")
    test = doctest.DocTestParser().get_doctest(doc, names, name, None, None)
    runner = doctest.DocTestRunner(verbose=False)
    said: list[str] = []
    runner.run(test, out=said.append)
    assert not said, "".join(said)


# -- docstrings -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_docstring(name: str) -> None:
    first = (inspect.getdoc(PUBLIC[name]) or "").partition("\n")[0]
    assert first.endswith((".", ":"))


FUNCTIONS = [n for n in PUBLIC if inspect.isfunction(inspect.unwrap(PUBLIC[n])) and "." not in n]
ESTIMATORS = ("DeepCluster.", "DeepClusterClassifier.", "KMeans.")
FUNCTIONS += [n for n in PUBLIC if n.startswith(ESTIMATORS)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_says_what_it_takes_gives_and_raises(name: str) -> None:
    function = inspect.unwrap(PUBLIC[name])
    doc = inspect.getdoc(function) or ""
    for section in ("Args", "Returns", "Raises"):
        assert f"\n{section}:\n" in doc, section
    for parameter in inspect.signature(function).parameters:
        if parameter not in ("self", "cls"):
            assert re.search(rf"^    {parameter}: ", doc, re.MULTILINE), parameter
    if "np.ndarray" in str(inspect.signature(function).return_annotation):
        assert re.search(r"``\(.*?\)``", doc[doc.index("Returns:") :]), "no shape"


def test_all_holds_what_is_promised_and_no_more() -> None:
    tree = ast.parse((ROOT / "src/deepcluster/__init__.py").read_text())
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deepcluster")
        for alias in node.names
    }
    assert set(deepcluster.__all__) == imported
    assert set(deepcluster._HOMES) == imported - {"__version__"}
    assert deepcluster.__all__ == sorted(deepcluster.__all__)


def test_the_api_document_is_what_the_docstrings_say() -> None:
    assert make_api.API.read_text(encoding="utf-8") == make_api.document(), "make api"
