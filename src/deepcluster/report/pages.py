"""The files of a page that opens from the disk: data as scripts, pictures, styles, originals."""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader

BASE64 = 3 * 2**18  # bytes that are turned into text at a time; threes of them are four letters


def write_page(
    folder: Path,
    name: str,
    *,
    title: str,
    styles: Sequence[str],
    scripts: Sequence[str],
    item: str = "image",
) -> Path:
    """Write ``index.html`` from the template `name`, with its styles and scripts.

    Args:
        folder: where; its folder ``scripts`` is there.
        name: of a template in ``page/``.
        title: of the run.
        styles: files of ``page/`` that go beside it.
        scripts: files of ``page/`` that go into ``scripts``.
        item: what the page calls one of the things in the run.

    Returns:
        The page.
    """
    pages = Environment(autoescape=True, loader=PackageLoader("deepcluster.report", "page"))
    text = pages.get_template(name).render(title=title, item=item, scripts=scripts)
    (folder / "index.html").write_text(text, encoding="utf-8")
    sources = resources.files("deepcluster.report") / "page"
    for place, names in ((folder, styles), (folder / "scripts", scripts)):
        for file in names:
            content = (sources / file).read_text(encoding="utf-8")
            (place / file).write_text(content, encoding="utf-8")
    return folder / "index.html"


@dataclass(frozen=True)
class Packed:
    """An array for the page: little-endian numbers as base64, which are worked out as written."""

    array: np.ndarray

    def write(self, file: IO[str]) -> None:
        """Write it as JSON."""
        file.write(f'{{"type":"{self.array.dtype.name}","base64":"')
        raw = self.array.reshape(-1).view(np.uint8)
        for start in range(0, len(raw), BASE64):
            file.write(base64.b64encode(raw[start : start + BASE64].data).decode())
        file.write('"}')


def packed(values: Any, dtype: type[np.generic]) -> Packed:
    """An array for the page, of that type."""
    return Packed(np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<")))


def write_data(path: Path, name: str, value: Mapping[str, Any]) -> None:
    """A script that hands `value` over. ASCII only, and no ``<``: no name in it can end a tag.

    Args:
        path: of the script.
        name: of what it hands over.
        value: what JSON has; arrays, of which there may be many millions of numbers, are
            :class:`Packed`, and stand in this mapping itself.
    """
    with path.open("w", encoding="ascii") as file:
        file.write(f'deepcluster.receive("{name}",{{')
        for number, (key, part) in enumerate(value.items()):
            file.write(f"{',' if number else ''}{_json(key)}:")
            if isinstance(part, Packed):
                part.write(file)
            else:
                file.write(_json(part))
        file.write("});\n")


def _json(value: Any) -> str:
    return json.dumps(_finite(value), separators=(",", ":")).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    """`value` with None for the numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def shared_folder(paths: list[str | None]) -> str:
    """The folder that all paths begin with, and its separator."""
    given = [path for path in paths if path is not None]
    prefix = os.path.commonprefix(given)  # noqa: RUF071 (by character, then cut at a folder)
    return prefix[: max(prefix.rfind("/"), prefix.rfind("\\")) + 1]


def find_originals(paths: list[str | None], report: Path) -> str | None:
    """Where the pages find the files below :func:`shared_folder`, if they are files.

    Relative where the folder of the pages and the files have a folder in common, so that both can
    move together; else by its full address.
    """
    first = next((path for path in paths if path is not None), None)
    if first is None or not Path(first).is_file():
        return None
    folder, report = Path(shared_folder(paths)).absolute(), report.absolute()
    common = os.path.commonpath([folder, report]) if folder.drive == report.drive else ""
    if len(Path(common).parts) > 1:
        return quote(Path(os.path.relpath(folder, report)).as_posix()) + "/"
    return folder.as_uri().rstrip("/") + "/"


def link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the disk cannot do that."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
