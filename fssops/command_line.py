"""What the verbs share: help that keeps its layout, errors in one or two lines, and exit codes.

Exit codes: 0 done; 1 the work failed (a check, a full disk, NaN in training, no native library); 2 wrong usage or
input; 130 interrupted. ``FSSOPS_TRACEBACK=1`` shows where an error came from.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Argument parser with examples below the options and one-line usage errors."""

    def __init__(self, verb: str, description: str, examples: str) -> None:
        super().__init__(
            prog=f"python -m fssops.{verb}",
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Print the message and where help is, and exit with 2."""
        print(f"{self.prog}: {message}\n(see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def run_verb(verb: str, main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run ``main(sys.argv[1:])`` and exit with its code; errors become one or two lines on standard error."""
    code = exit_code_of(verb, main, sys.argv[1:])
    if "fssops.engine.launch" in sys.modules:
        sys.modules["fssops.engine.launch"].leave_processes(finished=code == 0)
    raise SystemExit(code)


def exit_code_of(verb: str, main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run ``main`` and turn what it raises into a message and an exit code."""
    try:
        return main(arguments)
    except KeyboardInterrupt:
        print(f"fssops.{verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has left; nothing is wrong.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  must stay open until exit
        return 0
    except (ValueError, TypeError, KeyError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("FSSOPS_TRACEBACK") == "1":
            traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.filename and error.strerror:
            text = f"{error.filename}: {error.strerror}"
        where = f"fssops.{verb}"
        if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
            text, where = _among_processes(error, text), f"{where}{_process_label()}"
        print(f"{where}: {text}", file=sys.stderr, flush=True)
        return exit_code(error)


def _process_label() -> str:
    from fssops.engine.launch import process_label

    return process_label()


def _among_processes(error: Exception, text: str) -> str:
    """The text of an error for a job of several processes; torchrun's own report is given it too."""
    from fssops.engine.launch import explain_lost_peer

    explained = explain_lost_peer(error)
    if explained is None and "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(RuntimeError(text))
    return explained or text


def exit_code(error: Exception) -> int:
    """Return an error's ``exit_code`` where it has one; else 1 for a failure at work and 2 for bad input."""
    own = getattr(error, "exit_code", None)
    if isinstance(own, int):
        return own
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return 1
    return 1 if isinstance(error, (RuntimeError, ImportError)) else 2
