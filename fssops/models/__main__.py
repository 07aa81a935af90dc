"""``python -m fssops.models``: the systems, their recipes, and the weights each accepts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from fssops.command_line import Parser, run_verb
from fssops.models import MODELS
from fssops.recipes import compact, list_recipes
from fssops.weights.sources import SOURCES, Source

_EXAMPLES = """\
examples:
  python -m fssops.models
  python -m fssops.models --weights
      weights that have a name: what weights=, --weights, --checkpoint and fssops.load take and fetch
  python -m fssops.models mask2former
      with its options and their defaults: what fssops.create_model takes, and [model] of a recipe"""


def recipes_of(model: str) -> list[str]:
    """Names of the recipes of a model: those that begin with its name, and with no longer one of another model."""

    def owner(recipe: str) -> str:
        # mask2former_vis_ytvis2019 belongs to mask2former_vis, not to mask2former.
        return max((name for name in MODELS if recipe == name or recipe.startswith(f"{name}_")), key=len, default="")

    return [recipe for recipe in list_recipes() if owner(recipe) == model]


def table(names: Sequence[str], options: bool) -> list[dict[str, Any]]:
    """A row for each model that is named, if asked for with its options and their defaults (which imports it)."""
    rows = []
    for row in map(MODELS.__getitem__, names):
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


def _print(row: dict[str, Any]) -> None:
    # Not in columns: a name that is cut or folded can be neither typed nor found.
    print(f"{row['name']}: {row['task']}\n  {row['paper']}")
    options = [f"{name} = {value!r}" for name, value in row.get("options", {}).items()]
    for title, lines in (("weights", row["weights"]), ("recipes", compact(row["recipes"])), ("options", options)):
        for number, line in enumerate(lines):
            print(f"  {'' if number else title:<9}{line}")
    print()


def _print_sources(sources: Sequence[Source], as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(row) for row in sources], indent=2))
        return
    for row in sources:
        of = f"backbone {row.backbone}" if row.backbone else f"recipe {row.recipe}"
        print(f"{row.name}: {', '.join(filter(None, (of, row.licence, row.size, row.digest)))}\n  {row.address}")
        if row.to_do:
            print(f"  {row.to_do}")


def parser() -> Parser:
    """Build the argument parser."""
    arguments = Parser("models", "List the systems, their recipes, and the weights each accepts.", _EXAMPLES)
    arguments.add_argument("model", nargs="?", help="only this model, with its options and their defaults")
    arguments.add_argument("--weights", action="store_true", help="list the weights that have a name instead")
    arguments.add_argument("--json", action="store_true", help="as JSON, options included")
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code."""
    options = parser().parse_args(arguments)
    if options.model is not None and options.model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {options.model!r}")
    if options.weights:
        sources = [row for row in SOURCES.values() if options.model is None or row.recipe in recipes_of(options.model)]
        _print_sources(sources, options.json)
        return 0
    rows = table([options.model] if options.model else list(MODELS), options.json or options.model is not None)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            _print(row)
    return 0


if __name__ == "__main__":
    run_verb("models", main)
