"""Ctrl-C and SIGTERM as a request that training answers between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupted(Exception):
    """Training was asked to stop and has saved its state. Exit code 130."""


class StopRequest:
    """While active, the first SIGINT or SIGTERM sets :attr:`received`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received = ""
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
