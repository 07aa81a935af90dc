"""What the verbs do for each kind of task: its settings, its data, its evaluation, its pictures.

A task is where the layers meet: it may import data, models, evaluation and engine, and only the verbs import it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from fssops.engine.settings import Settings, SettingsError, apply_overrides, validate
from fssops.recipes import read_named_recipe

TASKS: dict[str, tuple[str, str]] = {
    "few-shot": ("fssops.tasks.fewshot", "FewShotTask"),
    "few-shot, two stages": ("fssops.tasks.msanet", "MSANetTask"),
    "few-shot, proposals": ("fssops.tasks.mm_former", "MMFormerTask"),
    "proposals": ("fssops.tasks.proposals", "ProposalTask"),
    "base classes": ("fssops.tasks.base_classes", "BaseClassTask"),
    "universal": ("fssops.tasks.universal", "UniversalTask"),
    "semantic": ("fssops.tasks.universal", "UniversalTask"),
    "video": ("fssops.tasks.video", "VideoTask"),
}
"""Task of a model (the column ``task`` of ``fssops.models.MODELS``) -> module and class that train and evaluate it."""


def load_settings(recipe: str, overrides: Sequence[str] = ()) -> Settings:
    """Read and check a recipe.

    Args:
        recipe: name of a recipe of the package, or path of a TOML file.
        overrides: ``table.key=value`` each.

    Raises:
        SettingsError: one line that names what is wrong.
    """
    return overridden_settings(read_named_recipe(recipe), overrides, f"recipe {recipe}")


def overridden_settings(tables: Mapping[str, Any], overrides: Sequence[str], where: str) -> Settings:
    """Check the tables of a recipe or a run under overrides, which may name another kind of data set.

    Args:
        tables: of settings.
        overrides: ``table.key=value`` each.
        where: the tables come from, for messages.

    Raises:
        SettingsError: one line that names what is wrong.
    """
    return settings_from_tables(apply_overrides(_for_another_data_set(tables, overrides), overrides), where)


def _for_another_data_set(tables: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Drop what tables say of their own data set when an override names another kind of source."""
    chosen = apply_overrides({}, overrides).get("data", {}).get("source")
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in tables.items()}
    if chosen is not None and chosen != result.get("data", {}).get("source"):
        for table, keys in (
            ("data", ("root", "split", "options", "folds", "definition")),
            ("eval", ("root", "split", "options")),
        ):
            for key in keys:
                result.get(table, {}).pop(key, None)
    return result


def settings_from_tables(tables: Mapping[str, Any], where: str) -> Settings:
    """Check the tables of a recipe against the schema of its model's task, the model's options included.

    Raises:
        SettingsError: one line that names what is wrong.
    """
    from fssops.models import MODELS, create_config

    model = tables.get("model")
    name = model.get("name") if isinstance(model, Mapping) else None
    if name not in MODELS:
        raise SettingsError(f"{where}: model.name must be one of {', '.join(MODELS)}, got {name!r}")
    row = MODELS[name]
    if row.task not in TASKS:
        raise SettingsError(f"{where}: model.name must be a model of task {', '.join(TASKS)}, got {name} ({row.task})")
    options = [option.name for option in fields(row.config_class())]
    settings: Settings = validate(task_class(row.task).settings_class, tables, where, options)
    try:
        create_config(name, settings.model.options)
    except ValueError as error:
        raise SettingsError(f"{where}: [model] {error}") from None
    return settings


def task_class(task: str) -> Any:
    """Return the class of :data:`TASKS`."""
    module, name = TASKS[task]
    return getattr(importlib.import_module(module), name)


def task_of(settings: Settings) -> Any:
    """Build the task that settings describe."""
    from fssops.models import MODELS

    return task_class(MODELS[settings.model.name].task)(settings)
