"""What is printed, character for character: for programs that read it, and for terminals.

A path comes out as it is, in one line: nothing is wrapped, nothing is read as markup. Only what a
terminal would obey, or that would break the line, is escaped.
"""

from __future__ import annotations

import sys
import unicodedata

_OBEYED = ("Cc", "Zl", "Zp")  # Unicode's categories: control characters, separators of lines


def escaped(text: str, *, but: str = "") -> str:
    r"""`text` with control characters as ``\x1b``, ``\n`` and so on; those in `but` stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode()
        if c not in but and unicodedata.category(c) in _OBEYED
        else c
        for c in text
    )


def show(*lines: str) -> None:
    """Write lines to stdout."""
    sys.stdout.write("".join(f"{escaped(line)}\n" for line in lines))
