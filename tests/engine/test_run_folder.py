"""One run per folder, and what lies in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fssops.engine.run_folder import RunFolder, RunFolderError, latest_run, new_run_path

_HOLD = """
import sys, time
from fssops.engine.run_folder import RunFolder
run = RunFolder(sys.argv[1]); run.create(); run.lock(); print("locked", flush=True); time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "locked"
    return process


def test_second_run_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(RunFolderError, match=f"must be free, got a run in it: process {process.pid} on"):
            RunFolder(tmp_path).lock()
    finally:
        process.kill()
        process.wait()


def test_lock_of_a_killed_run_is_taken_over(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = RunFolder(tmp_path)
    run.lock()
    assert f"process {process.pid}" in run.took_over
    run.unlock()


def test_second_run_of_one_process_is_refused(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    first.lock()
    with pytest.raises(RunFolderError, match="a run of this process"):
        RunFolder(tmp_path).lock()
    first.unlock()
    again = RunFolder(tmp_path)
    again.lock()
    assert again.took_over == ""
    again.unlock()


def test_clock_does_not_matter_for_the_lock(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        os.utime(tmp_path / "run.lock", (0, 0))
        with pytest.raises(RunFolderError, match="must be free"):
            RunFolder(tmp_path).lock()
    finally:
        process.kill()
        process.wait()


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
    run.lock()
    assert list(run.checkpoints.iterdir()) == []
    run.unlock()


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
