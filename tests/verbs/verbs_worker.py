"""Runs verbs, one after the other, in the processes that torchrun has started: FOLDER, then JSON lists of arguments.

Every process but the first fails when it writes below FOLDER, but for how far it has come in an evaluation.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fssops.command_line import run_verb
from fssops.engine.evaluation_progress import FOLDER

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def forbid_writing(folder: str) -> None:
    """Make this process fail when it writes below a folder, but for its own progress of an evaluation."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not arguments or FOLDER in Path(str(arguments[0])).parts:
            return
        if event in ("os.mkdir", "os.rename", "os.remove") and str(arguments[0]).startswith(folder):
            raise RuntimeError(f"{event} {arguments}")
        if event == "open" and str(arguments[0]).startswith(folder) and (arguments[2] or 0) & _WRITING:
            raise RuntimeError(f"{event} {arguments}")

    sys.addaudithook(hook)


def main(arguments: Sequence[str]) -> int:
    folder, *verbs = arguments
    if os.environ["RANK"] != "0":
        forbid_writing(folder)
    for text in verbs:
        verb, *rest = json.loads(text)
        code = importlib.import_module(f"fssops.{verb}").main(rest)
        if code:
            return int(code)
    return 0


if __name__ == "__main__":
    run_verb("worker", main)
