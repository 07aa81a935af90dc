"""Models of tasks: built from settings, or loaded with their task from what a run has left."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fssops.engine.checkpoints import CheckpointError, newest_good_checkpoint, read_checkpoint
from fssops.engine.settings import Settings
from fssops.models import MODELS
from fssops.recipes import read_named_recipe
from fssops.tasks import load_task, task_from_tables
from fssops.tasks.task import Task
from fssops.weights import load_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """A model with the task that it was trained for.

    Attributes:
        task: data, evaluation and prediction of the model.
        model: with its weights, on the CPU.
        label: what to call it.
    """

    task: Task
    model: nn.Module
    label: str


def empty_model(settings: Settings) -> nn.Module:
    """Build the model of settings with random weights."""
    return MODELS[settings.model.name].model_class()(settings.model.config)


def build_model(settings: Settings) -> nn.Module:
    """Build the model that training starts from, with weights where settings name some."""
    model = empty_model(settings)
    if settings.model.weights:
        report = load_weights(model, settings.model.weights)
        logger.info(
            "weights        %s: %s tensors of the %s, %s",
            report.source,
            len(report.loaded),
            report.target,
            report.layout,
        )
        for tensor, old, new in report.reinitialised:
            logger.info("               starts anew, other classes: %s %s -> %s", tensor, list(old), list(new))
    return model


def untrained_model(recipe: str, overrides: Sequence[str]) -> TrainedModel:
    """Build the model that a recipe would start from, seeded by it."""
    from fssops.engine.random_state import seed_everything

    task = load_task(recipe, overrides)
    seed_everything(task.settings.engine.seed)
    weights = "" if task.settings.model.weights else ", random weights"
    return TrainedModel(task, build_model(task.settings), f"{task.settings.name}{weights}")


def load_trained(path: Path, recipe: str | None, overrides: Sequence[str], which: str = "last") -> TrainedModel:
    """Load a model with the task that it was trained for, or that of a recipe.

    Args:
        path: run folder, checkpoint of a run, or weights of any layout (then ``recipe`` is needed).
        recipe: name or file; its settings replace those of the run.
        overrides: ``table.key=value`` each.
        which: checkpoint of a run folder, "last" or "best".

    Raises:
        SettingsError: no settings are to be had, or they are wrong.
        CheckpointError: the checkpoint is missing or damaged.
        ValueError: the weights are of another model.
    """
    if path.is_dir() and not (path / "config.json").is_file():
        if which == "best":
            file = path / "checkpoints" / "best.pt"
            state = read_checkpoint(file)
        else:
            file, state, _ = newest_good_checkpoint(path / "checkpoints")
        return _from_state(state, file, path.name, recipe, overrides)
    if not path.exists():
        raise FileNotFoundError(f"CHECKPOINT: {path} must be a run folder or a file, got nothing there")
    try:
        state = {} if path.is_dir() else read_checkpoint(path)
    except CheckpointError:
        state = {}
    if "settings" in state:
        return _from_state(state, path, path.stem, recipe, overrides)
    if recipe is None:
        raise CheckpointError(
            f"CHECKPOINT: {path} must be a whole checkpoint of fssops, got a damaged one or foreign weights; "
            "for the latter say with --recipe which model and data they are for"
        )
    task = load_task(recipe, overrides)
    model = empty_model(task.settings)
    load_weights(model, path)
    return TrainedModel(task, model, f"{task.settings.name} {path.name}")


def load_unsettled(name: str, options: Sequence[str], weights: Path) -> TrainedModel:
    """Load weights into a model that no recipe describes; its task has the settings' defaults.

    Args:
        name: of the model.
        options: of its configuration, ``key=value`` each.
        weights: of any layout.

    Raises:
        SettingsError: no such model or option.
        ValueError: the weights are of another model.
    """
    overrides = [f"model.{option}" for option in options]
    task = task_from_tables({"name": name, "model": {"name": name}}, f"--model {name}", overrides)
    model = empty_model(task.settings)
    load_weights(model, weights)
    return TrainedModel(task, model, name)


def _from_state(
    state: Mapping[str, Any], path: Path, label: str, recipe: str | None, overrides: Sequence[str]
) -> TrainedModel:
    tables = json.loads(state["settings"]) if recipe is None else read_named_recipe(recipe)
    task = task_from_tables(tables, str(path), overrides)
    model = empty_model(task.settings)
    load_weights(model, state["model"])
    return TrainedModel(task, model, f"{label}, step {state['step']}")
