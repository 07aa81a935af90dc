"""One run per folder, and what lies in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from fssops.engine.run_folder import RunFolder, RunFolderError, latest_run, locked_run, new_run_path

_HOLD = """
import sys, time
from fssops.engine.run_folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("locked", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "locked"
    return process


def test_second_run_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    process = holder(tmp_path)
    told = f"must be free, got a run in it: process {process.pid} on"
    try:
        with pytest.raises(RunFolderError, match=told), RunFolder(tmp_path).locked():
            pass
    finally:
        process.kill()
        process.wait()


def test_lock_of_a_killed_run_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with RunFolder(tmp_path).locked():
        (record,) = caplog.records
    assert record.getMessage().startswith(f"note: the run of process {process.pid} on ")


def test_second_run_of_one_process_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    refused = pytest.raises(RunFolderError, match="a run of this process")
    with RunFolder(tmp_path).locked(), refused, RunFolder(tmp_path).locked():
        pass
    with RunFolder(tmp_path).locked():
        assert not caplog.records


def test_clock_does_not_matter_for_the_lock(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        os.utime(tmp_path / "run.lock", (0, 0))
        with pytest.raises(RunFolderError, match="must be free"), RunFolder(tmp_path).locked():
            pass
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("fails", [False, True])
def test_a_folder_in_which_nothing_happened_is_removed(tmp_path: Path, fails: bool) -> None:
    path = tmp_path / "new" / "run"
    with pytest.raises(ZeroDivisionError) if fails else nullcontext(), RunFolder(path).locked() as run:
        run.save_settings({"name": "r"})
        run.metrics.write_text("")
        1 / (not fails)
    assert list(tmp_path.iterdir()) == []
    with RunFolder(path).locked() as run:
        run.metrics.write_text("{}\n")
    assert run.metrics.exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    with RunFolder(empty).locked():
        pass
    assert empty.exists(), "a folder that was there before stays"


def test_the_first_process_chooses_the_folder_and_holds_it(tmp_path: Path) -> None:
    class Fabric:
        """Two processes in one: what the first one broadcasts is what the other gets."""

        world_size, sent = 2, None

        def __init__(self, rank: int) -> None:
            self.is_global_zero = rank == 0

        def broadcast(self, value: object) -> object:
            if self.is_global_zero:
                Fabric.sent = value
            return Fabric.sent

    def never() -> Path:
        raise AssertionError("the first process alone chooses")

    with locked_run(Fabric(0), lambda: tmp_path / "run") as first, locked_run(Fabric(1), never) as second:
        assert first.path == second.path == tmp_path / "run"
        with pytest.raises(RunFolderError, match="must be free"), RunFolder(tmp_path / "run").locked():
            pass
    with RunFolder(tmp_path / "run").locked():
        with pytest.raises(RunFolderError, match="must be free"), locked_run(Fabric(0), lambda: tmp_path / "run"):
            pass
        with pytest.raises(RuntimeError, match="must be free"), locked_run(Fabric(1), never):
            pass


def test_unwritable_places_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="must be a writable folder, got"):
        RunFolder(tmp_path / "file" / "run").create()
    with pytest.raises(RunFolderError, match="must be a writable folder"):
        RunFolder("/proc/fssops").create()


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create()
    (run.checkpoints / ".last.pt.123.tmp").write_bytes(b"half")
    with run.locked():
        assert list(run.checkpoints.iterdir()) == []


def test_new_paths_differ_even_within_a_second(tmp_path: Path) -> None:
    first = new_run_path(tmp_path, "r")
    first.mkdir()
    assert new_run_path(tmp_path, "r") != first


def test_latest_run_is_that_of_the_newest_checkpoint(tmp_path: Path) -> None:
    times = ["20260103-120000", "20260102-120000", "20260102-120000-2"]
    names = [f"r-{times[0]}", f"r-{times[1]}", f"r-{times[2]}/base", f"other-{times[0]}", f"r-large-{times[0]}"]
    for number, name in enumerate(names):
        path = tmp_path / name / "checkpoints" / "last.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        os.utime(path, ns=(number, number))
    assert latest_run(tmp_path, "r") == tmp_path / f"r-{times[2]}"
    with pytest.raises(RunFolderError, match="must hold a run of none"):
        latest_run(tmp_path, "none")


def test_settings_come_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create()
    run.save_settings({"name": "r", "optim": {"lr": 0.1}})
    assert run.load_settings() == {"name": "r", "optim": {"lr": 0.1}}
    assert "torch" in (tmp_path / "versions.json").read_text()
    with pytest.raises(RunFolderError, match="must hold settings"):
        RunFolder(tmp_path / "none").load_settings()
    for text, rule in (("[]", "must hold tables, got list"), ("{", "must be JSON")):
        run.settings.write_text(text)
        with pytest.raises(RunFolderError, match=rule):
            run.load_settings()
