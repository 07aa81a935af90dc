"""Progress of everything that takes long: a bar with ETA on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressBar:
    """Shows how far a task is, on standard error.

    Args:
        title: a word or two in front.
        total: number of units.
        done: units finished before this process began (a resumed run).
        quiet: show nothing; for the processes other than the first.
        interval: seconds between lines when standard error is no terminal.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        done: int = 0,
        quiet: bool = False,
        interval: float = 10.0,
    ) -> None:
        self.title, self.total, self.done, self.quiet, self.interval = (
            title,
            total,
            done,
            quiet,
            interval,
        )
        self._first, self._started, self._printed = (
            done,
            time.monotonic(),
            time.monotonic(),
        )
        self._console = Console(file=sys.stderr)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        if not self.quiet and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"),
                console=self._console,
                expand=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, values="")
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
        if self._bar is not None and self._task is not None:
            if values is None:
                self._bar.update(self._task, completed=done)
            else:
                self._bar.update(self._task, completed=done, values=text)
            return
        now = time.monotonic()
        if now - self._printed >= self.interval or done >= self.total:
            self._printed = now
            print(
                f"{self.title} {done}/{self.total}  {self._eta(now)}  {text}".rstrip(),
                file=sys.stderr,
                flush=True,
            )

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
