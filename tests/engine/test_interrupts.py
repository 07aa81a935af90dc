"""Signals: answered at once, even while Python itself has no turn; the second one stops at once."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time

import pytest

from fssops.engine.interrupts import StopRequest

ANSWER = "finishing this step; again to stop now"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_answer_comes_while_the_step_goes_on(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    block = bytes(1 << 29)
    with StopRequest() as stop:
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        hashlib.sha256(block)  # one call into C, in which no handler of Python's runs
        finished = time.time()
    assert stop.received == number.name
    (record,) = caplog.records
    assert record.getMessage() == f"{number.name}: {ANSWER}"
    assert record.created < finished - 0.1


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_now(first: signal.Signals, second: signal.Signals) -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), first)
        assert stop.received == first.name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), second)


def test_handlers_are_put_back_and_other_processes_are_quiet(caplog: pytest.LogCaptureFixture) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads = threading.active_count()
    with StopRequest(quiet=True) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    assert stop.received == "SIGTERM"
    assert not caplog.records
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    time.sleep(0.1)
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(-1) == -1
