"""What the verbs print: messages of the package, tables that are never cut, errors in one or two lines."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from collections.abc import Sequence

import pytest

from fssops.command_line import console, exit_code_of, print_table
from fssops.engine.progress import ProgressBar

NAME = "a_name_longer_than_any_column/of [brackets]/and:smile:colons" * 3


def log(arguments: Sequence[str]) -> int:
    logger = logging.getLogger("fssops.engine.trainer")
    logger.info("step %d", 3)
    logger.warning("step %d is bad", 4)
    logger.debug("hidden")
    with ProgressBar("train", 2) as bar:
        bar.advance(2)
    return 0


def test_a_verb_prints_information_and_warnings_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of("train", lambda rest: exit_code_of("train", log, rest), []) == 0
    captured = capsys.readouterr()
    assert captured.out == "step 3\n", "once, also where one verb runs another"
    assert captured.err.splitlines()[0] == "step 4 is bad"
    assert "train 2/2" in captured.err


def test_a_library_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import logging, fssops\n"
        "logging.getLogger('fssops.engine').warning('bad')\n"
        "from fssops.engine.progress import ProgressBar\n"
        "with ProgressBar('train', 2) as bar: bar.advance(2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
    exit_code_of("train", log, [])
    capsys.readouterr()
    log([])
    captured = capsys.readouterr()
    assert captured.out + captured.err == "", "what a verb shows ends with it"


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_other_processes_give_warnings_only(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "1")
    exit_code_of("train", log, [])
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "step 4 is bad\n")


def test_tables_and_lines_are_as_wide_as_they_need_where_no_terminal_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table([(NAME, "1"), ("b", NAME)], ("name", "value"), title="Names")
    print_table([(NAME, NAME)])
    console().print(NAME + " " + NAME)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip() == "Names"
    assert sum(NAME in line for line in lines) == 4
    assert sum(line.count(NAME) == 2 for line in lines) == 2


def test_a_narrow_terminal_folds_and_cuts_nothing() -> None:
    code = f"from fssops.command_line import print_table; print_table([({NAME!r}, 'second')])"
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": "40", "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=child, stderr=child, env=environment)
    os.close(child)
    text = b""
    while True:
        try:
            text += os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
    os.close(parent)
    assert process.wait() == 0
    rows = [line.split("│") for line in text.decode().splitlines() if "│" in line]
    assert max(map(len, text.decode().splitlines())) <= 40
    assert "".join(row[1] for row in rows).replace(" ", "") == NAME.replace(" ", "")
    assert "".join(row[2].strip() for row in rows) == "second"
