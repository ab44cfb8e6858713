"""Progress of a fit on a terminal's stderr."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)

from deepcluster.progress import Progress, epoch_sentence
from deepcluster.show.exact import escaped

QUIET_LINES_EVERY = 10.0  # seconds between epoch lines where there is no terminal


class TerminalProgress(Progress):
    """Bars where stderr is a terminal, now and then a line where it is not.

    Args:
        quiet: show nothing but notes.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(
            stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False
        )
        self.quiet = quiet
        self.bars = Bars(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            TextColumn("{task.completed:,}/{task.total:,}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self.task: Any = None
        self.last_line = -QUIET_LINES_EVERY

    def __enter__(self) -> TerminalProgress:
        self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def phase(self, name: str, total: int) -> None:
        """A new bar in place of the last."""
        if self.task is not None:
            self.bars.remove_task(self.task)
        self.task = self.bars.add_task(name, total=total)

    def advance(self, count: int) -> None:
        """Move the bar."""
        if self.task is not None:
            self.bars.advance(self.task, count)

    def epoch(self, line: dict[str, Any]) -> None:
        """A line for the epoch."""
        now = time.perf_counter()
        if self.quiet or (
            not self.console.is_terminal and now - self.last_line < QUIET_LINES_EVERY
        ):
            return
        self.last_line = now
        self.console.print(epoch_sentence(line))

    def note(self, text: str) -> None:
        """A sentence."""
        self.console.print(escaped(text, but="\n"))
