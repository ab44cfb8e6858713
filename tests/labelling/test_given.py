"""A person's table of labels, as tables come."""

from pathlib import Path

import pytest

from deepcluster.errors import RunError
from deepcluster.labelling.given import GivenLabels, read_labels

IDS = ["a.png", "b.png", "sub/c.png", "000123", "\u00e9.png", " d"]
PATHS = ["/pics/a.png", "/pics/b.png", "/pics/sub/c.png", None, None, None]


def read(tmp_path: Path, text: str | bytes) -> GivenLabels:
    file = tmp_path / "labels.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels(file, IDS, PATHS)


def pairs(given: GivenLabels) -> dict[int, str]:
    return {
        row: given.names[k]
        for row, k in zip(given.rows.tolist(), given.classes.tolist(), strict=True)
    }


@pytest.mark.parametrize(
    "text",
    [
        "id,label\na.png,cat\nb.png,dog\n",
        "path,label\n/pics/a.png,cat\n/pics/b.png,dog\n",
        "\ufeff Label ; ID \r\n cat ; a.png\r\ndog;b.png\r\n",
        "PATH\tLabel\tremark\n\\pics\\a.png\tcat\t\nb.png\tdog\tx\n",
        'id,path,label\n,/pics/a.png,cat\nb.png,/elsewhere/x.png,"dog"\n\n,,\n',
        "id,label\na.png,cat\na.png,cat\nb.png,dog\n",
        "id,path,label\na.png,,cat\nb.png,,dog\nsub/c.png,,\n",
    ],
)
def test_tables_as_they_come(tmp_path: Path, text: str) -> None:
    assert pairs(read(tmp_path, text)) == {0: "cat", 1: "dog"}


def test_numbers_are_sorted_by_size_and_ids_may_be_composed_otherwise(tmp_path: Path) -> None:
    given = read(tmp_path, "id,label\na.png,10\nb.png,9.0\n000123,x\ne\u0301.png,9\n d,x\n")
    assert given.names == ["9", "10", "x"]
    assert pairs(given) == {0: "10", 1: "9", 3: "x", 4: "9", 5: "x"}


def test_classes_that_differ_in_case_or_blanks_are_one(tmp_path: Path) -> None:
    text = "id,label\na.png,White cell\nb.png,white  cell\nsub/c.png,White cell\n000123,red\n"
    given = read(tmp_path, text)
    assert given.names == ["White cell", "red"]
    assert any(
        "'White cell' and 'white cell' differ in case or blanks only" in n for n in given.notes
    )


def test_what_is_unknown_empty_or_alone_is_said(tmp_path: Path) -> None:
    rows = "".join(f"z{i}.png,cat\n" for i in range(12))
    given = read(tmp_path, f"id,label\na.png,cat\nb.png,dog\nsub/c.png,\n{rows}")
    assert given.notes[0].startswith("not in the run: 12 images: 'z0.png', 'z1.png'")
    assert given.notes[0].endswith("and 2 more")
    assert given.notes[1] == "without a label yet: 1 row"
    assert "of one label only: 2 of 2 classes, 'cat', 'dog'" in given.notes[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,label\na.png,cat\na.png,dog\nb.png,x\n", r"'a.png' is 'cat' \(line 2\) and 'dog' \(l"),
        ("id,path,label\na.png,,cat\n,/pics/a.png,dog\n", "1 image more than one class"),
        ("id,label\na.png,cat\nb.png,Cat\n", r"all 2 labels of .*: a classifier needs two classes"),
        (
            "id,label\n123,cat\n124,dog\n",
            "none of them in the run: '123', '124'. An image .* 'a.png'",
        ),
        ("id,label\na.png,\nb.png, \n", "2 rows and no label in any"),
        ("id,class\na.png,cat\n", "the columns id, class: expected label, and id or path"),
        ("id,path,cluster,name,by\na.png,,1,,model\n", "`deepcluster apply` takes it"),
        ("id,label\na.png,cat,dog\n", "line 2: 3 values for 2 columns"),
        ("", r"\(none\): expected label"),
        (b"id,label\n\xff\xfe,cat\n", "neither UTF-8 nor"),
        ("id,label\na.png," + "x" * 300 + "\n", "too long"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(RunError, match=said):
        read(tmp_path, text)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot read"):
        read_labels(tmp_path / "none.csv", IDS, PATHS)


def test_names_that_could_be_two_images_are_not_guessed(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("id,label\n x ,one\n x,two\nx,three\n")
    given = read_labels(file, [" x", "x", "y"], [None] * 3)
    assert pairs(given) == {0: "two", 1: "three"}
    assert "' x '" in given.notes[0]


def test_ten_thousand_labels(tmp_path: Path) -> None:
    ids = [f"{i}.png" for i in range(10_000)]
    file = tmp_path / "labels.csv"
    file.write_text("id,label\n" + "".join(f"{name},{i % 7}\n" for i, name in enumerate(ids)))
    given = read_labels(file, ids, [None] * len(ids))
    assert (given.classes == given.rows % 7).all() and len(given.rows) == 10_000
