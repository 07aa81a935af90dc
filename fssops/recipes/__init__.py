"""Recipes: flat TOML files ``<model>_<data set>.toml``, found by name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from fssops.engine.settings import SettingsError, read_recipe

FOLDER = Path(__file__).parent
DEFAULT = "panet_generated"
"""What ``python -m fssops.train`` runs without arguments."""


def list_recipes() -> list[str]:
    """Names of all recipes of the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_named_recipe(recipe: str) -> dict[str, Any]:
    """Read a recipe by its name, or by the path of a TOML file.

    Raises:
        SettingsError: there is none; names the nearest.
    """
    if recipe in list_recipes():
        return read_recipe(FOLDER / f"{recipe}.toml")
    path = Path(recipe)
    if path.suffix == ".toml":
        return read_recipe(path)
    near = difflib.get_close_matches(recipe, list_recipes(), n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise SettingsError(f"recipe must be one of {', '.join(list_recipes())} or a .toml file, got {recipe!r}{hint}")
