"""Recipes: TOML files ``<model>_<data set>.toml``, found by name.

Recipes that differ in little share a file, which reads from top to bottom: its tables are what they have in common, and
a table ``[variants.<variant>]`` says what one of them changes. Tables within it are merged into the common ones; any
other value, a list too, replaces the common one. The variant is the recipe ``<file>_<variant>``, or, of a file of one's
own, ``file.toml:<variant>``. A file with a ``name`` is a recipe without its variants, too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fssops.engine.settings import SettingsError, read_recipe
from fssops.spelling import did_you_mean

FOLDER = Path(__file__).parent
DEFAULT = "panet_generated"
"""What ``python -m fssops.train`` runs without arguments."""
FEW_SHOT_DEFAULT = "prototype_matching_pascal5i"
"""The few-shot system of ``python -m fssops.predict`` and :func:`fssops.load` where none is named; its weights can be
installed (extra ``fssops[pretrained]``)."""


def list_recipes() -> list[str]:
    """Names of all recipes of the package."""
    return sorted(_places(FOLDER))


def compact(names: Sequence[str]) -> list[str]:
    """Names of the package's recipes, those of one file as a shell would write them: ``panet_voc{,_r50,_r101}``."""
    variants: dict[str, list[str]] = {}
    for name in names:
        stem = _places(FOLDER)[name][0].stem
        variants.setdefault(stem, []).append(name.removeprefix(stem))
    return [
        stem + (endings[0] if len(endings) == 1 else f"{{{','.join(endings)}}}") for stem, endings in variants.items()
    ]


def read_named_recipe(recipe: str) -> dict[str, Any]:
    """The tables of a recipe.

    Args:
        recipe: its name, or the path of a TOML file, with ``:<variant>`` where the file has variants.

    Raises:
        SettingsError: there is none; names the nearest.
    """
    if recipe in _places(FOLDER):
        path, variant = _places(FOLDER)[recipe]
    elif recipe.endswith(".toml"):
        path, variant = Path(recipe), ""
    elif ".toml:" in recipe:
        file, _, variant = recipe.rpartition(":")
        path = Path(file)
    else:
        raise SettingsError(
            f"recipe must be a name that `python -m fssops.models` lists or a .toml file, got {recipe!r}"
            f"{did_you_mean(recipe, list_recipes())}"
        )
    tables, variants = _read(path)
    if variant:
        if variant not in variants:
            raise SettingsError(
                f"recipe: {path} must hold the variant that is asked for, {', '.join(variants) or 'it has none'}, got "
                f"{variant!r}{did_you_mean(variant, variants)}"
            )
        tables["name"] = f"{tables.get('name', path.stem)}_{variant}"
        _merge(tables, variants[variant])
    elif variants and "name" not in tables:
        raise SettingsError(f"recipe: {path} must be given with a variant, {path}:{f' or {path}:'.join(variants)}")
    return tables


@cache
def _places(folder: Path) -> dict[str, tuple[Path, str]]:
    """Each recipe's name, with its file and its variant within it ("": the file's own tables)."""
    places: dict[str, tuple[Path, str]] = {}
    for path in sorted(folder.glob("*.toml")):
        tables, variants = _read(path)
        if "name" in tables:
            places[path.stem] = path, ""
        places.update({f"{path.stem}_{variant}": (path, variant) for variant in variants})
    return places


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The common tables of a file, and what each of its variants changes."""
    tables = read_recipe(path)
    variants = tables.pop("variants", {})
    if not isinstance(variants, dict) or not all(isinstance(change, dict) for change in variants.values()):
        raise SettingsError(f"recipe: variants of {path} must be tables [variants.<name>], got {variants!r:.60}")
    return tables, variants


def _merge(tables: dict[str, Any], change: Mapping[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(tables.get(key), dict):
            _merge(tables[key], value)
        else:
            tables[key] = copy.deepcopy(value)
