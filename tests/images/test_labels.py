"""Labels from folders, CSV files and lists, as people and programs write them."""

from __future__ import annotations

import codecs
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import save

from deepcluster.errors import SourceError
from deepcluster.images.labels import encode
from deepcluster.images.store import ImageStore, open_images

ROWS = [
    ("d0/s0.png", "chat"),
    ("d0/sé.png", "chien"),
    ("d1/s0.png", "naïve"),
    ("d1/s1.png", "chat"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled") / "p"
    for name, _ in ROWS:
        save(root / name)
    return root


def known(store: ImageStore) -> dict[str, str | None]:
    assert store.labels is not None
    names = [store.label_names[k] if k >= 0 else None for k in store.labels]
    return dict(zip(store.ids, names, strict=True))


def table(separator: str = ",", head: str = "path,label", how: Any = None) -> str:
    lines = [head.replace(",", separator)]
    for path, label in ROWS:
        left, right = how(path, label) if how else (path, label)
        lines.append(f"{left}{separator}{right}")
    return "\n".join(lines) + "\n"


FORMS: dict[str, Any] = {
    "plain": table(),
    "bom": "\ufeff" + table(),
    "crlf": table().replace("\n", "\r\n"),
    "semicolon": table(";"),
    "tab": table("\t"),
    "sep line": "sep=;\n" + table(";"),
    "header": table(head="Path,LABEL"),
    "blanks": table(", ", head="path, label"),
    "blanks in labels": table(how=lambda p, v: (p, f" {v}  ")),
    "quoted": table(how=lambda p, v: (f'"{p}"', f'"{v}"')),
    "backslashes": table(how=lambda p, v: (p.replace("/", "\\"), v)),
    "dots": table(how=lambda p, v: (f"./{p}", v)),
    "from the table's folder": table(how=lambda p, v: (f"p/{p}", v)),
    "decomposed": unicodedata.normalize("NFD", table()),
    "half decomposed": table(
        how=lambda p, v: (p, unicodedata.normalize("NFD" if "d0" in p else "NFC", v))
    ),
    "more columns": table(head="path,label,score", how=lambda p, v: (p, f"{v},0.5")),
    "said twice alike": table() + "d0/s0.png,chat \n",
    "empty rows": table() + ",\n,\n\n",
    "by id": table(head="id,label"),
    "by id, files moved": table(head="path,id,label", how=lambda p, v: (f"/old/{p},{p}", v)),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_table(pictures: Path, form: str) -> None:
    file = pictures.parent / "labels.csv"
    file.write_bytes(FORMS[form].encode())
    store = open_images(pictures, labels=file)
    assert known(store) == dict(ROWS) and store.skipped == []
    assert store.label_names == ["chat", "chien", "naïve"]


@pytest.mark.parametrize("nothing", ["", " ", "-1", "-1.0", "nan", "NaN", "None", "<NA>", "null"])
def test_what_stands_for_an_unknown_label(pictures: Path, nothing: str) -> None:
    file = pictures.parent / "unknown.csv"
    file.write_text(table().replace("naïve", nothing), encoding="utf-8")
    store = open_images(pictures, labels=file)
    assert known(store) == {**dict(ROWS), "d1/s0.png": None}


def test_numbers_with_gaps_are_the_numbers(pictures: Path) -> None:
    file = pictures.parent / "gaps.csv"
    numbers = iter(["0.0", "", "10.0", "9.0"])
    file.write_text(table(how=lambda p, v: (p, next(numbers))), encoding="utf-8")
    store = open_images(pictures, labels=file)
    assert list(known(store).values()) == ["0", None, "10", "9"]
    assert store.label_names == ["0", "9", "10"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (table() + "d0/s0.png,chien\n", r"gives 'd0/s0\.png' two labels, 'chat' and 'chien'"),
        (table() + "./d0/s0.png,-1\n", "two labels"),
        (table(head="path,id,label", how=lambda p, v: (f"{p},d0/s0.png", v)), None),
        (table(head="file,class"), "has the columns file, class: expected path and label"),
        ("path,label,Label\nd0/s0.png,a,b\n", "2 columns called label"),
        ("", r"has the columns \(none\)"),
        ("path,label\nelsewhere.png,1\n", "no path in"),
        ('path,label\n"open', "no path in"),
    ],
)
def test_tables_that_are_refused(pictures: Path, text: str, message: str | None) -> None:
    file = pictures.parent / "bad.csv"
    file.write_text(text, encoding="utf-8")
    if message is None:  # the path comes before the id
        assert known(open_images(pictures, labels=file)) == dict(ROWS)
        return
    with pytest.raises(SourceError, match=message):
        open_images(pictures, labels=file)
    file.write_bytes("path,label\nd0/sé.png,é\n".encode("cp1252"))
    with pytest.raises(SourceError, match=r"bad\.csv is text in neither .* save it as UTF-8"):
        open_images(pictures, labels=file)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_any_encoding_with_a_mark(
    pictures: Path, encoding: str, separator: str, end: str
) -> None:
    rows = [("path", "label"), ("d0/s0.png", "forêt"), ("d1/s1.png", "été")]
    text = "".join(separator.join(row) + end for row in rows)
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    (pictures.parent / "wide.csv").write_bytes(mark + text.encode(encoding))
    found = known(open_images(pictures, labels=pictures.parent / "wide.csv"))
    assert (found["d0/s0.png"], found["d1/s1.png"]) == ("forêt", "été")


def test_a_file_that_is_listed_twice_has_one_label(pictures: Path) -> None:
    lines = "p/d0/s0.png\np/d1/s1.png\n./p/d0/s0.png\n"
    (pictures.parent / "list.txt").write_text(lines, encoding="utf-8")
    (pictures.parent / "few.csv").write_text("path,label\np/d0/s0.png,x\n", encoding="utf-8")
    store = open_images(pictures.parent / "list.txt", labels=pictures.parent / "few.csv")
    assert list(known(store).values()) == ["x", None, "x"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["train/cat/1", "train/dog/2", "test/cat/1", "val/dog/3"], ["cat", "dog", "cat", "dog"]),
        (["Train/images/cat/1", "Test/images/dog/1"], ["images/cat", "images/dog"]),
        (["cat/train/1", "dog/test/1"], ["cat", "dog"]),
        (["cat/1", "test/1"], ["cat", "test"]),  # a class of that name
        (["train/cat/1", "train/2", "3"], ["cat", None, None]),
        (["data/train/cat/1", "data/test/dog/1"], ["data/train/cat", "data/test/dog"]),
    ],
)
def test_folders_that_part_a_set_are_no_classes(
    tmp_path: Path, files: list[str], expected: list[str | None]
) -> None:
    for file in files:
        save(tmp_path / f"{file}.png")
    store = open_images(tmp_path, labels="folders")
    assert [known(store)[f"{file}.png"] for file in files] == expected


def test_a_set_that_is_only_parted_has_no_classes(tmp_path: Path) -> None:
    save(tmp_path / "train" / "1.png")
    save(tmp_path / "test" / "1.png")
    with pytest.raises(SourceError, match="in no sub-folders"):
        open_images(tmp_path, labels="folders")
    save(tmp_path / "train" / "cat" / "1.png")
    save(tmp_path / "val" / "cat" / "1.png")
    given = [tmp_path / "train", tmp_path / "val"]
    assert known(open_images(given, labels="folders")) == {
        "train/1.png": None,
        "train/cat/1.png": "cat",
        "val/cat/1.png": "cat",
    }


def test_values_of_any_kind() -> None:
    codes, names = encode([np.int64(3), 1.0, "2", None, float("nan"), -1, "", "x ", "x", True])
    assert names == ["1", "2", "3", "True", "x"]
    assert codes is not None and codes.tolist() == [2, 0, 1, -1, -1, -1, -1, 4, 4, 3]
    assert encode([None, -1, ""]) == (None, [])
