"""docs/api.md, from the docstrings of the public names.

    python docs/make_api.py      # or: make api

A test holds that the file is what this makes of the docstrings.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepcluster

ROOT = Path(__file__).parents[1]
API = ROOT / "docs/api.md"
SECTIONS = ("Args", "Attributes", "Raises", "Returns", "Source")

HEAD = """\
# The public names

Written by `make api` from the docstrings. All of them are imported from `deepcluster`;
whatever else the package holds may change.
"""


def made_by_us(value: Any) -> bool:
    """Whether something was defined in this package, not inherited or made by scikit-learn."""
    return getattr(value, "__module__", "").startswith("deepcluster.")


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class: (name, member); none that others' classes give."""
    for one in filter(made_by_us, reversed(kind.__mro__)):
        for name, value in vars(one).items():
            function = bare(value)
            if not name.startswith("_") and inspect.isfunction(function) and made_by_us(function):
                yield name, value


def bare(member: Any) -> Any:
    """The function of a property, a class method or a function."""
    return getattr(member, "fget", getattr(member, "__func__", member))


def fields(kind: type) -> list[tuple[str, str]]:
    """Fields of a dataclass, with the strings that stand behind them in the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    said = {}
    for line, after in itertools.pairwise(body):
        if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr):
            said[line.target.id] = ast.literal_eval(after.value)  # type: ignore[union-attr]
    found = []
    for field in dataclasses.fields(kind):
        group = field.default_factory
        words = said.get(field.name) or (inspect.getdoc(group) if inspect.isclass(group) else "")
        found.append((field.name, " ".join((words or "").replace("``", "`").split())))
    return found


def markdown(text: str) -> str:
    """A docstring in Google's style as Markdown: a list for each of its sections."""
    text = re.sub(r":\w+:`~?(.+?)`", r"`\1`", text).replace("``", "`")
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            section = line[:-1]
            lines += [f"*{section}*", ""]
        elif section and line.startswith("    "):
            inner = line[4:]
            listed = section not in ("Returns", "Source")
            item = listed and not inner.startswith(" ")
            name, colon, rest = inner.partition(":")
            if item and colon:
                inner = f"`{name}`:{rest}"
            lines.append(f"- {inner}" if item else f"  {inner.strip()}" if listed else inner)
        else:
            section = section if not line else ""
            lines.append(line)
    return "\n".join(lines).strip()


def signature(name: str, function: Any) -> str:
    """How it is called."""
    found = inspect.signature(function)
    shown = [
        value.replace(annotation=inspect.Parameter.empty)
        for value in found.parameters.values()
        if value.name not in ("self", "cls")
    ]
    text = str(found.replace(parameters=shown, return_annotation=inspect.Signature.empty))
    return name + re.sub(r"<function .*?>(?=[,)])", "…", text)


def entry(name: str) -> str:
    """A name's part of the document."""
    value = getattr(deepcluster, name)
    if isinstance(value, str):
        return f"## {name}\n\nThe version, a text."
    path = Path(inspect.getsourcefile(inspect.unwrap(value)) or "").resolve()
    place = path.relative_to(Path(deepcluster.__file__).resolve().parent).as_posix()
    link = f"[{place}](../src/deepcluster/{place})"
    doc = markdown(inspect.getdoc(value) or "")
    parts = [f"## {name}", link, f"`{signature(name, value)}`", doc]
    if dataclasses.is_dataclass(value):
        parts[2:3] = []
        words = [f"- `{field}`: {said}" for field, said in fields(value)]
        parts.append("\n".join(words))
    if inspect.isclass(value):
        for member, function in members(value):
            plain = isinstance(function, property)
            called = member if plain else signature(member, bare(function))
            said = markdown(inspect.getdoc(bare(function)) or "")
            parts += [f"### {name}.{member}", f"`{called}`", said]
    return "\n\n".join(parts)


def document() -> str:
    """The whole document."""
    return "\n".join([HEAD, *(f"{entry(name)}\n" for name in deepcluster.__all__)])


if __name__ == "__main__":
    API.write_text(document(), encoding="utf-8")
