"""Kinds of systems: each puts data, models, engine and evaluation together for the verbs and the Python API.

Settings become a task here: tables of a recipe or a run -> checked settings -> the task that the model's row names.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fssops.engine.settings import Settings, SettingsError, apply_overrides, validate
from fssops.models import MODELS, create_config
from fssops.recipes import read_named_recipe

if TYPE_CHECKING:
    from fssops.tasks.task import Task

TASKS: dict[str, tuple[str, str]] = {
    "few-shot": ("fssops.tasks.few_shot", "FewShotTask"),
    "few-shot, two stages": ("fssops.tasks.msanet", "MSANetTask"),
    "few-shot, proposals": ("fssops.tasks.mm_former", "MMFormerTask"),
    "proposals": ("fssops.tasks.proposals", "ProposalTask"),
    "base classes": ("fssops.tasks.base_classes", "BaseClassTask"),
    "universal": ("fssops.tasks.universal", "UniversalTask"),
    "semantic": ("fssops.tasks.universal", "UniversalTask"),
    "video": ("fssops.tasks.video", "VideoTask"),
}
"""Task of a model (the column ``task`` of ``fssops.models.MODELS``) -> module and class."""


def load_task(recipe: str, overrides: Sequence[str] = ()) -> Task:
    """Read a recipe and build its task.

    Args:
        recipe: name of a recipe of the package, or path of a TOML file.
        overrides: ``table.key=value`` each.

    Raises:
        SettingsError: one line that names what is wrong.
    """
    return task_from_tables(read_named_recipe(recipe), f"recipe {recipe}", overrides)


def task_from_tables(tables: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> Task:
    """Build the task that the tables of a recipe or a run describe.

    Args:
        tables: of settings.
        where: they come from, for messages.
        overrides: ``table.key=value`` each; they may name another kind of data set.

    Raises:
        SettingsError: one line that names what is wrong.
    """
    return task_of(settings_from_tables(apply_overrides(without_replaced(tables, overrides), overrides), where))


def without_replaced(tables: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Drop what overrides replace under another key: the old data set's settings, and steps or epochs by the other."""
    given = apply_overrides({}, overrides)
    source, length = given.get("data", {}).get("source"), given.get("schedule", {})
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in tables.items()}
    if source is not None and source != result.get("data", {}).get("source"):
        for table, keys in (
            ("data", ("root", "split", "options", "folds", "definition")),
            ("eval", ("root", "split", "options")),
        ):
            for key in keys:
                result.get(table, {}).pop(key, None)
    for key, other in (("steps", "epochs"), ("epochs", "steps")):
        if key in length:
            result.get("schedule", {}).pop(other, None)
    return result


def settings_from_tables(tables: Mapping[str, Any], where: str) -> Settings:
    """Check tables against the schema of their model's task, and its options against the model's configuration.

    Raises:
        SettingsError: one line that names what is wrong.
    """
    model = tables.get("model")
    name = model.get("name") if isinstance(model, Mapping) else None
    if name not in MODELS:
        raise SettingsError(f"{where}: model.name must be one of {', '.join(MODELS)}, got {name!r}")
    row = MODELS[name]
    options = [option.name for option in fields(row.config_class())]
    settings: Settings = validate(_task_class(row.task).settings_class, tables, where, options)
    try:
        settings.model._config = create_config(name, settings.model.options)
    except ValueError as error:
        raise SettingsError(f"{where}: [model] {str(error).removeprefix('create_model: ')}") from None
    return settings


def task_of(settings: Settings) -> Task:
    """Build the task of settings that :func:`settings_from_tables` has checked."""
    return _task_class(MODELS[settings.model.name].task)(settings)


def _task_class(task: str) -> type[Task]:
    module, name = TASKS[task]
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
