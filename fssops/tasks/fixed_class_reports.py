"""What ``python -m fssops.evaluate`` does with systems of fixed classes: scores, tables, files and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning.fabric import Fabric
from torch import nn

from fssops.engine.checkpoints import write_text_atomically
from fssops.engine.settings import Settings
from fssops.evaluation.results import Result
from fssops.tasks import task_of


def evaluate_models(
    loaded: Sequence[tuple[Settings, nn.Module, str]], fabric: Fabric, folder: Path, *, classes: bool
) -> list[Result]:
    """Score models and write ``results.json``, pictures, and of videos submissions.

    Args:
        loaded: settings, model and what to call it.
        fabric: launched.
        folder: where everything goes; of several models, all but ``results.json`` goes into a folder each.
        classes: print a table of the classes as well.
    """
    results: list[Result] = []
    written: list[Path] = []
    for number, (settings, model, label) in enumerate(loaded):
        task = task_of(settings)
        task.keep = folder
        own = folder if len(loaded) == 1 else folder / f"model{number}"
        result, files = task.evaluate_into(own, model.to(fabric.device), fabric, label)
        results.append(result)
        written += files
    if fabric.is_global_zero:
        report(results, folder, classes)
        names = ["results.json", *(str(path.relative_to(folder)) for path in written)]
        print(f"written: {folder}/ ({', '.join(names)})")
    return results


def report(results: Sequence[Result], folder: Path, classes: bool) -> None:
    """Print tables and lines, and write ``results.json``."""
    from rich.console import Console
    from rich.table import Table

    console, kind = (
        Console(width=None if Console().is_terminal else 160, markup=False, highlight=False),
        type(results[0]),
    )
    for title, rows in kind.report_tables(results, classes):
        table = Table(*rows[0], title=title, title_justify="left")
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
    for line in kind.report_lines(results):
        print(line)
    write_text_atomically(
        folder / "results.json", json.dumps(kind.report_json(results), indent=2, allow_nan=False) + "\n"
    )
