"""What a fit tells while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

EPOCH_COLUMNS = [
    ("loss", "loss", "{:.3f}"),
    ("ln_k", "guessing is", "{:.2f}"),
    ("nmi_previous", "NMI before", "{:.3f}"),
    ("changed", "moved", "{:.0%}"),
    ("empty", "empty", "{}"),
    ("largest", "largest", "{:.1%}"),
    ("effective_rank", "directions", "{:.1f}"),
    ("nmi", "NMI", "{:.3f}"),
]


class Progress:
    """What a fit tells while it runs. This one is silent; the command line has one that shows."""

    def phase(self, name: str, total: int) -> None:
        """A piece of work begins: its name, and how many images it goes through."""

    def advance(self, count: int) -> None:
        """So many images more are done."""

    def epoch(self, line: dict[str, Any]) -> None:
        """An epoch has ended; its line of metrics.jsonl."""

    def note(self, text: str) -> None:
        """A sentence the user should read."""

    def callback(self, name: str) -> Callable[[int, int], None]:
        """A phase as the function of (done, total) that ``open_images`` takes."""
        done_before = -1

        def tell(done: int, total: int) -> None:
            nonlocal done_before
            if done_before < 0:
                self.phase(name, total)
                done_before = 0
            self.advance(done - done_before)
            done_before = done

        return tell


class Lines(Progress):
    """A line on stderr for each piece of work, and for each sentence."""

    def phase(self, name: str, total: int) -> None:
        """Its name."""
        self.note(name)

    def note(self, text: str) -> None:
        """The sentence."""
        sys.stderr.write(f"{text}\n")


def counted(number: int, what: str) -> str:
    """A number and a noun, in the plural where it is not one."""
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number:,} {what if number == 1 else plural}"


def minutes(number: float) -> str:
    """A number of minutes in words, as it was given."""
    return f"{number:g} {'minute' if number == 1 else 'minutes'}"


def span(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:.0f} h"


def epoch_sentence(line: dict[str, Any]) -> str:
    """A line of metrics.jsonl for people."""
    parts = [
        f"{title} {form.format(line[key])}"
        for key, title, form in EPOCH_COLUMNS
        if line.get(key) is not None
    ]
    return f"epoch {line['epoch'] + 1:>3}  " + "  ".join(parts)
