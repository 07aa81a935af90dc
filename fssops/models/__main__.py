"""python -m fssops.models: the systems, their recipes, and the weights each accepts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib import resources
from typing import Any

from fssops.models import MODELS


def recipes_of(model: str) -> list[str]:
    """Names of the recipes of a model: files of ``fssops/recipes`` that start with its name."""
    folder = resources.files("fssops") / "recipes"
    if not folder.is_dir():
        return []
    recipes = []
    for entry in folder.iterdir():
        recipe = entry.name.removesuffix(".toml")
        # mask2former_vis_ytvis2019 belongs to mask2former_vis, not to mask2former.
        owners = [name for name in MODELS if recipe == name or recipe.startswith(f"{name}_")]
        if entry.name.endswith(".toml") and owners and max(owners, key=len) == model:
            recipes.append(recipe)
    return sorted(recipes)


def table(options: bool) -> list[dict[str, Any]]:
    """A row for each model, if asked for with its options and their defaults (which imports every model)."""
    rows = []
    for row in MODELS.values():
        entry: dict[str, Any] = {
            "name": row.name,
            "task": row.task,
            "paper": row.paper,
            "recipes": recipes_of(row.name),
            "weights": list(row.weights),
        }
        if options:
            config = row.config_class()()
            entry["options"] = {option.name: getattr(config, option.name) for option in fields(config)}
        rows.append(entry)
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from fssops.recipes import compact

    shown = Table(show_lines=True)
    for column in ("model", "task", "recipes", "weights", "paper"):
        shown.add_column(column, overflow="fold")  # a name that is cut off can't be typed
    for row in rows:
        shown.add_row(
            row["name"], row["task"], "\n".join(compact(row["recipes"])) or "-", "\n".join(row["weights"]), row["paper"]
        )
    # Without a terminal, rich would cut the table at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False)
    console.print(shown)
    for row in rows:
        if "options" in row:
            console.print(f"\noptions of {row['name']} (fssops.create_model, and [model] of a recipe)")
            for name, value in row["options"].items():
                console.print(f"  {name} = {value!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fssops.models", description=__doc__)
    parser.add_argument("model", nargs="?", help="only this model, with its options and their defaults")
    parser.add_argument("--json", action="store_true", help="as JSON, options included")
    options = parser.parse_args(arguments)
    if options.model is not None and options.model not in MODELS:
        print(f"error: model must be one of {', '.join(MODELS)}, got {options.model!r}", file=sys.stderr)
        return 2
    try:
        rows = [row for row in table(options.json or options.model is not None) if options.model in (None, row["name"])]
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        _print(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
