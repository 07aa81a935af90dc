"""Progress of everything that takes long: a bar with ETA on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)


class ProgressBar:
    """Shows how far a task is, on standard error, where the package's messages are shown (as the verbs do).

    Args:
        title: a word or two in front.
        total: number of units.
        done: units finished before this process began (a resumed run).
        quiet: show nothing; for the processes other than the first.
        interval: seconds between lines when standard error is no terminal.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, quiet: bool = False, interval: float = 10.0) -> None:
        self.title, self.total, self.done, self.interval = title, total, done, interval
        self.quiet = quiet or not logger.isEnabledFor(logging.INFO)
        self._first, self._started = done, time.monotonic()
        self._printed = self._started
        self._bar: Progress | None = None

    def __enter__(self) -> ProgressBar:
        if self.quiet:
            return self
        from rich.console import Console

        terminal = Console(file=sys.stderr)
        if terminal.is_terminal:
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(bar_width=None),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("ETA"),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[values]}"),
                console=terminal,
                expand=True,
            )
            self._bar.start()
            self._bar.add_task(self.title, total=self.total, completed=self.done, values="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """Set the number of finished units and, when given, the values shown beside the bar."""
        self.done = done
        if self.quiet:
            return
        text = "  ".join(f"{name} {value:.4g}" for name, value in (values or {}).items())
        if self._bar is not None:
            shown: dict[str, Any] = {} if values is None else {"values": text}
            self._bar.update(self._bar.task_ids[0], completed=done, **shown)
            return
        now = time.monotonic()
        if now - self._printed >= self.interval or done >= self.total:
            self._printed = now
            line = f"{self.title} {done}/{self.total}  {self._eta(now)}  {text}"
            print(line.rstrip(), file=sys.stderr, flush=True)

    def advance(self, count: int = 1) -> None:
        """Count further finished units."""
        self.update(self.done + count)

    def say(self, line: str) -> None:
        """Print a line without disturbing the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _eta(self, now: float) -> str:
        finished = self.done - self._first
        elapsed = now - self._started
        if finished <= 0:
            return "ETA unknown"
        left = max(self.total - self.done, 0) * elapsed / finished
        return f"elapsed {_clock(elapsed)} ETA {_clock(left)}"


def _clock(seconds: float) -> str:
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
