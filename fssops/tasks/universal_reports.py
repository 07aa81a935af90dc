"""What ``python -m fssops.evaluate`` does with fixed-class systems: scores, tables, files and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning.fabric import Fabric
from torch import nn

from fssops.engine.checkpoints import write_text_atomically
from fssops.evaluation.universal import UniversalResult
from fssops.tasks.universal import UniversalTask
from fssops.tasks.universal_pictures import gallery
from fssops.tasks.universal_settings import UniversalSettings


def evaluate_models(
    loaded: Sequence[tuple[UniversalSettings, nn.Module, str]], fabric: Fabric, folder: Path, *, classes: bool
) -> list[UniversalResult]:
    """Score models and write ``results.json`` and pictures.

    Args:
        loaded: settings, model and what to call it.
        fabric: launched.
        folder: where everything goes; of several models, pictures go into a folder each.
        classes: print a table of the classes as well.
    """
    results = []
    for number, (settings, model, label) in enumerate(loaded):
        task = UniversalTask(settings)
        task.keep = folder
        model.to(fabric.device)
        result = task.evaluate(model, fabric, label)
        results.append(result)
        if fabric.is_global_zero:
            pictures = folder if len(loaded) == 1 else folder / f"model{number}"
            pictures.mkdir(parents=True, exist_ok=True)
            gallery(task, model, fabric, result, pictures)
    if fabric.is_global_zero:
        report(results, folder, classes)
    return results


def report(results: Sequence[UniversalResult], folder: Path, classes: bool) -> None:
    """Print tables and lines, and write ``results.json``."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 160, markup=False, highlight=False)
    for result in results:
        if classes:
            rows = result.class_table()
            table = Table(*rows[0], title=f"{result.model}: each class, in percent", title_justify="left")
            for row in rows[1:]:
                table.add_row(*row)
            console.print(table)
        if result.layers is not None:
            rows = result.layers.table()
            table = Table(*rows[0], title=f"{result.model}: layers of the decoder, in percent", title_justify="left")
            for row in rows[1:]:
                table.add_row(*row)
            console.print(table)
    for result in results:
        print(result.line())
        print(f"{result.seconds:.1f} s for {result.images} images")
    body = {"results": [result.as_json() for result in results]}
    write_text_atomically(folder / "results.json", json.dumps(body, indent=2, allow_nan=False) + "\n")
    print(f"written: {folder}/ (results.json with per-class scores, grid.png, best.png, worst.png, confusion.png)")
