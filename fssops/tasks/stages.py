"""Trainings that must be finished before another starts, and the settings that they take over from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fssops.engine.settings import Settings, apply_overrides
from fssops.recipes import read_named_recipe
from fssops.tasks import settings_from_tables

_TAKEN_OVER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("data", ("source", "root", "split", "options", "folds", "definition", "fold")),
    (
        "engine",
        ("seed", "accelerator", "devices", "nodes", "strategy", "precision", "workers", "threads", "tensorboard"),
    ),
    ("eval", ("root", "split")),
)
"""What the first stage shares with the second: the data set, the fold and the machine."""


@dataclass(frozen=True)
class FirstStage:
    """A training that must be finished before this one starts.

    Attributes:
        name: for messages.
        settings: its resolved recipe.
        folder: its run folder.
    """

    name: str
    settings: Settings
    folder: Path


def first_stage_settings(
    settings: Settings, table: str, recipe: str, overrides: Sequence[str], model: Mapping[str, Any]
) -> Settings:
    """The settings of a first stage.

    Args:
        settings: of the second stage.
        table: of the second stage's recipe that describes the first, for names and messages.
        recipe: of the first stage.
        overrides: of that recipe, ``table.key=value`` each.
        model: options of the first stage's model that the second has decided.

    Raises:
        SettingsError: they are wrong.
    """
    mine, tables = settings.as_tables(), read_named_recipe(recipe)
    tables["model"] = {**tables["model"], **model}
    for name, keys in _TAKEN_OVER:
        given = {key: mine[name][key] for key in keys if mine[name].get(key) is not None}
        tables[name] = {**tables.get(name, {}), **given}
    tables["name"] = f"{settings.name}_{table}"
    return settings_from_tables(apply_overrides(tables, overrides), f"{table}.recipe {recipe}")
