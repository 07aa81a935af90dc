"""Recipes: flat TOML files ``<model>_<data set>.toml``, found by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fssops.engine.settings import SettingsError, read_recipe

FOLDER = Path(__file__).parent
DEFAULT = "panet_generated"
"""What ``python -m fssops.train`` runs without arguments."""


def list_recipes() -> list[str]:
    """Names of all recipes of the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def compact(names: Sequence[str]) -> list[str]:
    """Write names that differ only in their last part once, as a shell would: ``mask2former_camvid_{r50,r101}``.

    The last part is a backbone (``r50``, ``swin_large``, ``resnet101``, ``vgg16``) at the end of the name.
    """
    backbones: dict[str, list[str]] = {}
    for name in names:
        found = re.fullmatch(r"(.+)_(r\d+c?|resnet\d+|vgg\d+|swin_[a-z]+)", name)
        backbones.setdefault(found[1] if found else name, []).append(found[2] if found else "")
    lines = []
    for stem, parts in backbones.items():
        if parts == [""]:
            lines.append(stem)
        elif len(parts) == 1:
            lines.append(f"{stem}_{parts[0]}")
        else:
            lines.append(f"{stem}{{{','.join(part and '_' + part for part in parts)}}}")
    return lines


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
    raise SettingsError(
        f"recipe must be a name that `python -m fssops.models` lists or a .toml file, got {recipe!r}{hint}"
    )
