"""Files read and written so that nothing is lost and whatever is wrong is said in words.

What is written takes its name once it is whole (:func:`replacing`, :class:`Output`); what is read
is checked, and an error names the file and what to do (:func:`reading`).
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from deepcluster.errors import DamagedError, RunError

SAVE_AS_UTF8 = (
    "is text in neither UTF-8 nor UTF-16: save it as UTF-8 (in a spreadsheet as “CSV UTF-8”, in an "
    "editor by its encoding)"
)
CURE = "copy the whole run folder anew from where it was made, or fit again"


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into words: which file, and what to do.

    Raises:
        RunError: of whatever was raised in the block.
    """
    try:
        yield
    except DamagedError as error:
        raise RunError(f"{path} was damaged or changed by hand ({error}): {CURE}") from error
    except RunError:
        raise
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: {CURE}") from error
    except OSError as error:
        why = error.strerror or "it is no such file"
        raise RunError(f"{path} cannot be read ({why}): {CURE}") from error
    except Exception as error:  # whatever a decoder makes of foreign bytes
        raise RunError(f"{path} was damaged or changed by hand: {CURE}") from error


def check(sound: bool, words: str) -> None:
    """Refuse what is read in a :func:`reading` block, unless it is sound."""
    if not sound:
        raise DamagedError(words)


def decode_text(raw: bytes) -> str:
    """A text file, in UTF-8 or in UTF-16: by its mark, or since every second byte is 0.

    Raises:
        UnicodeDecodeError: it is neither: say so with :data:`SAVE_AS_UTF8`.
    """
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not wide and len(raw) > 16 and 5 * raw.count(0) > 2 * len(raw):
        return raw.decode("utf-16-le" if raw[1] == 0 else "utf-16-be")
    return raw.decode("utf-16" if wide else "utf-8-sig")


def read_table(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """A person's table: UTF-8 or UTF-16, separated by commas, semicolons or tabs.

    It may come out of a page, a spreadsheet or an editor, so separator, case of the header and
    blank lines are taken as they come.

    Returns:
        The names of its columns, without blanks around them and in lower case; and (line, column ->
        value) of each row that is not blank.

    Raises:
        RunError: it cannot be read, names a column twice or has a row of another length. Of a row,
            when that row is asked for.
    """
    try:
        text = decode_text(path.read_bytes())
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{path} {SAVE_AS_UTF8}; nothing was written") from error
    first = text.lstrip().partition("\n")[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)

    def wrong(words: str) -> RunError:
        return RunError(f"{path}, line {reader.line_num}: {words}; nothing was written")

    try:
        header = [name.strip().casefold() for name in next((row for row in reader if any(row)), [])]
    except csv.Error as error:
        raise wrong(str(error)) from error
    if len(set(header)) < len(header):
        raise wrong("two columns have one name: give each once")

    def rows() -> Iterator[tuple[int, dict[str, str]]]:
        try:
            for values in reader:
                if not any(value.strip() for value in values):
                    continue
                if len(values) != len(header):
                    raise wrong(
                        f"{len(values)} values for {len(header)} columns: put quotes around a "
                        "value that holds the separator"
                    )
                yield reader.line_num, dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise wrong(str(error)) from error

    return header, rows()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write under; it takes the place of `path` once the block ends well."""
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name and no content
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def refuse_unwritable(path: Path) -> None:
    """Refuse a path that nothing can be put at.

    Raises:
        RunError: what lies above it is no folder, or none that can be written to.
    """
    above = path.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise RunError(f"{path} cannot be written: {above} is no folder that can be written to")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented for people."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class Output:
    """A file or folder that a command is to write beside runs: never over one that is there.

    Args:
        path: where to write. A device such as ``/dev/null`` is written to as it is.

    Raises:
        RunError: it exists already, or there is no folder to write into.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.device = path.exists() and not (path.is_file() or path.is_dir())
        if self.device:
            return
        if path.exists() or path.is_symlink():
            raise RunError(
                f"{path} exists already, and nothing is written over: choose another name with "
                "--out, or delete it first"
            )
        refuse_unwritable(path)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """A name to write under; it becomes the file once the block ends well."""
        if self.device:
            yield self.path
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".deepcluster-", dir=self.path.parent) as place:
            part = Path(place) / f"part{self.path.suffix}"
            yield part
            Output(self.path)  # still nothing there?
            part.rename(self.path)


def take_lock(file: IO[str]) -> bool:
    """Try to lock an open file; the lock falls when it is closed or the process ends.

    Returns:
        Whether nobody else had it. Where the file system knows no locks, nobody ever has it.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(2**20)  # a byte that nobody reads: on Windows a locked one cannot be read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
