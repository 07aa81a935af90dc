"""Trainings that must be finished before another starts, and the settings that they take over from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fssops.engine.settings import SettingsError, apply_overrides
from fssops.recipes import read_named_recipe
from fssops.tasks import task_from_tables
from fssops.tasks.task import FirstStage, Task
from fssops.weights import find_weights, load_weights, read_weights

_TAKEN_OVER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("data", ("source", "root", "split", "options", "folds", "definition", "fold")),
    (
        "engine",
        ("seed", "accelerator", "devices", "nodes", "strategy", "precision", "workers", "threads", "tensorboard"),
    ),
    ("eval", ("root", "split", "validation_split")),
)
"""What the first stage shares with the second: the data set, the fold and the machine."""


def first_stage_task(
    settings: Any, table: str, recipe: str, overrides: Sequence[str], kind: str, model: Mapping[str, Any]
) -> Task:
    """The training that a first stage is.

    Args:
        settings: of the second stage.
        table: of the second stage's recipe that describes the first, for names and messages.
        recipe: of the first stage.
        overrides: of that recipe, ``table.key=value`` each.
        kind: name of the first stage's model.
        model: options of it that the second has decided.

    Raises:
        SettingsError: they are wrong, or of another model or fold.
    """
    mine, tables = settings.as_tables(), read_named_recipe(recipe)
    where = f"{table}.recipe {recipe}"
    tables["model"] = {**tables["model"], **model}
    for name, keys in _TAKEN_OVER:
        given = {key: mine[name][key] for key in keys if mine[name].get(key) is not None}
        tables[name] = {**tables.get(name, {}), **given}
    tables["name"] = f"{settings.name}_{table}"
    tables = apply_overrides(tables, overrides)
    check_trained(tables, f"{where} with {table}.overrides" if overrides else where, kind, settings.data)
    return task_from_tables(tables, where)


def take_weights(part: nn.Module, stage: FirstStage | None, given: str, table: str, model: str, data: Any) -> str:
    """Load what the first stage has learnt into its part of the model.

    Args:
        part: of the second stage's model.
        stage: as it was trained here; None where its weights are given.
        given: run folder, checkpoint of a run, or weights of any layout (:func:`fssops.weights.find_weights`).
        table: of the second stage's recipe, for messages.
        model: name of the first stage's model.
        data: ``[data]`` of the second stage.

    Returns:
        a line that says what was loaded.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is damaged or does not fit.
        SettingsError: it was trained for other classes.
    """
    if stage is not None:
        path = stage.folder / "checkpoints" / f"{stage.task.settings.eval.checkpoint}.pt"
    else:
        path = find_weights(given, f"{table}.weights").path
    checkpoint = read_weights(path)
    if checkpoint.settings:
        check_trained(checkpoint.settings, f"{table}.weights: {checkpoint.source}", model, data)
    report = load_weights(part, checkpoint)
    return f"{checkpoint.source}: {len(report.loaded)} tensors, {report.layout}"


def check_trained(tables: Mapping[str, Any], where: str, model: str, data: Any) -> None:
    """Refuse a training of another model, or one that has seen the classes that this fold tests.

    Args:
        tables: settings of that training.
        where: for the message.
        model: name of the model that is wanted.
        data: ``[data]`` of the second stage.

    Raises:
        SettingsError: says which.
    """
    name = tables["model"].get("name")
    if name != model:
        raise SettingsError(f"{where} must be a training of {model}, got one of {name}")
    ours = _fold(vars(data))
    theirs = _fold(tables["data"])
    if ours != theirs:
        raise SettingsError(
            f"{where} must be trained on the base classes of {ours}, got {theirs}, which has seen classes that are "
            "novel here"
        )


def _fold(data: Mapping[str, Any]) -> str:
    """A fold in words; the definition belongs to COCO-20i alone."""
    definition = f" ({data.get('definition')})" if data.get("folds") == "coco20i" else ""
    return f"{data.get('folds')}{definition} fold {data.get('fold')}"
