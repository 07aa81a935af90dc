"""Ctrl-C and SIGTERM as a request that is answered at once and obeyed between two steps."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from types import FrameType

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """Training was asked to stop and has saved its state. Exit code 130."""


class StopRequest:
    """While active, the first SIGINT or SIGTERM sets :attr:`received` and is answered; a second one interrupts.

    Args:
        quiet: give no answer; for the processes other than the first.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, *, quiet: bool = False) -> None:
        self.received = ""
        self.quiet = quiet
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            # Python runs handlers between two instructions, but one backward pass may take minutes. The number of a
            # signal is written into a socket at once, and another thread answers.
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._earlier = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._handlers = {number: signal.signal(number, self._note) for number in self._SIGNALS}
            self._answering = threading.Thread(target=self._answer, daemon=True)
            self._answering.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._handlers:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            signal.set_wakeup_fd(self._earlier)
            self._writer.close()
            self._answering.join(timeout=1.0)  # a forked process may hold the socket open
        self._handlers = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def _answer(self) -> None:
        answered = self.quiet
        with self._reader:
            while byte := self._reader.recv(1):
                if byte[0] in self._SIGNALS and not answered:
                    answered = True
                    name = signal.Signals(byte[0]).name
                    logger.warning("%s: finishing this step; again to stop now", name)
