"""What the verbs share: the command `fssops`, help that keeps its layout, messages, tables, errors and exit codes.

Exit codes: 0 done; 1 the work failed (a check, a full disk, NaN in training, no native library); 2 wrong usage or
input; 130 interrupted. ``FSSOPS_TRACEBACK=1`` shows where an error came from.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from fssops._version import VERSION

if TYPE_CHECKING:
    from rich.console import Console

Main = Callable[[Sequence[str]], int]

VERBS = {
    "train": ("fssops.train", "train a model from a recipe and evaluate it"),
    "evaluate": ("fssops.evaluate", "score trained models by a named protocol"),
    "predict": ("fssops.predict", "segment images or videos: fixed classes, or new ones from a few examples"),
    "compare": ("fssops.compare", "put runs side by side: settings, scores, curves"),
    "convert": ("fssops.convert", "write a checkpoint of any known layout as safetensors"),
    "models": ("fssops.models.__main__", "list the systems, their recipes and the weights each accepts"),
    "data": ("fssops.data.__main__", "look at a data set, check it, fix its episodes"),
    "doctor": ("fssops.doctor", "say what was built, what runs here, and whether it computes right"),
}
"""Verb -> module whose ``main`` runs it, and what it does; ``python -m fssops.<verb>`` is the same."""


class CallableVerb(ModuleType):
    """The module of a verb that Python may call: ``fssops.train(...)`` is :func:`fssops.api.train`.

    ``python -m fssops.train`` and ``from fssops.train import main`` want a module of that name, and importing it makes
    it the package's attribute, whatever stood there. So the module itself can be called: Python's data model provides
    for a module's ``__class__`` to be set ("Customizing module attribute access"). Type checkers are told of the
    function by ``fssops/__init__.py``.
    """

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())

    def _function(self) -> Callable[..., Any]:
        from fssops import api

        return getattr(api, self.__name__.rpartition(".")[2])  # type: ignore[no-any-return]

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Call the function of :mod:`fssops.api` with the verb's name."""
        return self._function()(*arguments, **settings)


class Parser(argparse.ArgumentParser):
    """Argument parser with examples below the options and one-line usage errors.

    Args:
        verb: one of :data:`VERBS`, for the name in help and errors; None: ``prog`` is among the keywords.
        description: above the options.
        examples: below them.
        **keywords: of ``argparse.ArgumentParser``.
    """

    def __init__(self, verb: str | None = None, description: str = "", examples: str = "", **keywords: Any) -> None:
        if verb is not None:
            keywords["prog"] = typed_command(verb)
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(
            description=description, epilog=examples, **{"formatter_class": layout, "allow_abbrev": False, **keywords}
        )

    def error(self, message: str) -> NoReturn:
        """Print the message and where help is, and exit with 2."""
        print(f"{self.prog}: {message}\n(see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def typed_command(verb: str) -> str:
    """How a verb was called: ``fssops train``, ``python -m fssops train`` or ``python -m fssops.train``."""
    program = Path(sys.argv[0])
    if program.stem == "fssops":
        return f"fssops {verb}".rstrip()
    if program.parts[-2:] == ("fssops", "__main__.py"):
        return f"python -m fssops {verb}".rstrip()
    return f"python -m fssops.{verb}"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``fssops <verb> ...``, which ``python -m fssops`` is too."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbs = "\n".join(f"  {verb:<10}{purpose}" for verb, (_, purpose) in VERBS.items())
    command = typed_command("")
    parser = Parser(
        prog=command,
        usage=f"{command} VERB ...",
        description=f"Mask segmentation, few-shot and universal.\n\nverbs:\n{verbs}",
        examples=f"{command} VERB --help explains each.",
    )
    parser.add_argument("--version", action="version", version=f"fssops {VERSION}")
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help=argparse.SUPPRESS)
    verb = parser.parse_args(given[:1]).verb
    run_verb(verb, lambda rest: importlib.import_module(VERBS[verb][0]).main(rest), given[1:])  # type: ignore[no-any-return]


def run_verb(verb: str, main: Main, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``main`` and exit with its code; errors become one or two lines on standard error.

    Args:
        verb: one of :data:`VERBS`, for messages.
        main: takes the arguments and returns the exit code.
        arguments: without the verb; None: those of the process.
    """
    code = exit_code_of(verb, main, sys.argv[1:] if arguments is None else arguments)
    if "fssops.engine.launch" in sys.modules:
        sys.modules["fssops.engine.launch"].leave_processes(finished=code == 0)
    raise SystemExit(code)


def exit_code_of(verb: str, main: Main, arguments: Sequence[str]) -> int:
    """Run ``main``, show what it logs, and turn what it raises into a message and an exit code."""
    try:
        with messages_shown():
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
        total = os.environ.get("WORLD_SIZE", "1")
        if total not in ("", "1"):
            text, where = _among_processes(error, text), f"{where} [process {_process_rank()} of {total}]"
        print(f"{where}: {text}", file=sys.stderr, flush=True)
        return exit_code(error)


@contextmanager
def messages_shown() -> Iterator[None]:
    """Print what the package logs, as plain lines: information on standard output, warnings on standard error.

    Of several processes the first one alone gives information; warnings come from all.
    """
    logger, handler = logging.getLogger("fssops"), _PrintingHandler()
    before = logger.level
    if not any(isinstance(other, _PrintingHandler) for other in logger.handlers):
        logger.addHandler(handler)
    logger.setLevel(logging.WARNING if _process_rank() else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _PrintingHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # The streams of this moment: a progress bar replaces them while it is on a terminal, and prints above itself.
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(self.format(record), file=stream, flush=True)


def console() -> Console:
    """Standard output for tables and long lines, which are never cut: as wide as they need where it is no terminal.

    Names of files and classes are shown as they are, whatever brackets and colons they hold.
    """
    from rich.console import Console

    plain = {"markup": False, "emoji": False, "highlight": False}
    terminal = Console(**plain)  # type: ignore[arg-type]
    return terminal if terminal.is_terminal else Console(width=10_000, **plain)  # type: ignore[arg-type]


def print_table(
    rows: Sequence[Sequence[str]], header: Sequence[str] = (), *, title: str | None = None, lines: bool = False
) -> None:
    """Print a table on standard output; what a narrow terminal cannot hold goes on in the next line.

    Args:
        rows: of cells.
        header: names of the columns, or none.
        title: above the table.
        lines: draw lines between the rows.
    """
    from rich.table import Column, Table

    columns = [Column(name, overflow="fold") for name in header or [""] * max(map(len, rows), default=0)]
    table = Table(*columns, title=title, title_justify="left", show_header=bool(header), show_lines=lines)
    for row in rows:
        table.add_row(*row)
    console().print(table)


def _process_rank() -> int:
    """Number of this process among those of its job; torchrun, Lightning and SLURM each have a name for it."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return max(int(os.environ.get(name) or 0) for name in names)


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
    stated = getattr(error, "exit_code", None)
    if isinstance(stated, int):
        return stated
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return 1
    return 1 if isinstance(error, (RuntimeError, ImportError)) else 2
