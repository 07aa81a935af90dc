"""Run parity cases: python tests/parity.py FOLDER...

A case folder holds inputs and what the authors' code gave for them (``case.json``, ``arrays.npz``); the weights of both
sides come from ``fill`` in the ``oracle_weights.py`` beside the folders. A line is printed for every array. Exit code
0: all within tolerance; 1: one is out; 2: a folder is no case, or of a system that has not landed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import torch
from parity_cases import SYSTEMS
from parity_cases.case import Case, CaseError, Line


def system_of(case: Case) -> tuple[str, ModuleType]:
    """Name and module of the system that a case belongs to.

    Raises:
        CaseError: none of the systems that have landed recognises it.
    """
    for name, path in SYSTEMS.items():
        module = importlib.import_module(path)
        if module.recognise(case.description):
            return name, module
    said = case.description.get("model") or case.description.get("system") or "nothing"
    raise CaseError(f"{case.folder}: system must be one of {', '.join(SYSTEMS)}, got a case of {said}")


def lines_of(folder: Path, oracle_weights: Path | None = None) -> Iterator[Line]:
    """Run a folder and compare its arrays.

    Raises:
        CaseError: the folder is no case, or of an unknown system.
    """
    case = Case.read(folder, oracle_weights)
    _, module = system_of(case)
    before = torch.get_num_threads()
    torch.set_num_threads(threads_of(case))
    try:
        yield from module.run(case)
    finally:
        torch.set_num_threads(before)


def threads_of(case: Case) -> int:
    """As many threads as the reference had: one where the case says so, else two.

    Rounding goes with the number of threads, and gradients jump where it decides: with one thread three sampling points
    of ``mask2former_video_r50`` lie on the other side of a cell's border and two inputs of ReLUs, of 1e-6, on the other
    side of 0, which moves single gradients by 5 % (the authors' code moves likewise: its fact sheet, "measured noise").
    """
    return 1 if "one thread" in json.dumps(case.description) else 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the folders of a command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--oracle-weights", type=Path, help="oracle_weights.py, where it is not beside the folders")
    options = parser.parse_args(arguments)
    code = 0
    for folder in options.folders:
        print(f"== {folder}")
        try:
            lines = []
            for line in lines_of(folder, options.oracle_weights):
                print(line, flush=True)
                lines.append(line)
        except (CaseError, FileNotFoundError) as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
            continue
        out = [line for line in lines if line.out]
        compared = [line for line in lines if line.error is not None]
        print(f"-- {len(compared)} compared, {len(out)} out, {len(lines) - len(compared)} not compared")
        if out or not compared:
            code = max(code, 1)
    return code


if __name__ == "__main__":
    sys.exit(main())
