"""A tiny trained run that the tests of all verbs share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Makes tiny_recipe importable, whatever pytest's import mode.
sys.path.insert(0, str(Path(__file__).parent))

from tiny_recipe import settings_arguments


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run; do not write into it."""
    from fssops.train import main

    folder = tmp_path_factory.mktemp("tiny") / "run"
    assert main(["--out", str(folder), *settings_arguments()]) == 0
    return folder


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run a verb's main as the shell would: (exit code, standard output, standard error)."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        import importlib

        from fssops.command_line import exit_code_of

        main = importlib.import_module(f"fssops.{name}").main
        capsys.readouterr()
        try:
            code = exit_code_of(name, main, [str(argument) for argument in arguments])
        except SystemExit as left:
            code = int(left.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
