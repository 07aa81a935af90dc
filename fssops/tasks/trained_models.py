"""Models from settings, and models with settings from what a run has left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

import fssops
from fssops.engine.checkpoints import CheckpointError, newest_good_checkpoint, read_checkpoint
from fssops.engine.settings import Settings
from fssops.recipes import read_named_recipe
from fssops.tasks import load_settings, overridden_settings


def build_model(settings: Settings, say: Any = None) -> nn.Module:
    """Build the model of settings, with weights where they name some."""
    model = fssops.create_model(settings.model.name, **settings.model.options)
    if settings.model.weights:
        report = fssops.load_weights(model, settings.model.weights)
        if say is not None:
            say(f"weights        {report.source}: {len(report.loaded)} tensors of the {report.target}, {report.layout}")
            for tensor, old, new in report.reinitialised:
                say(f"               starts anew, other classes: {tensor} {list(old)} -> {list(new)}")
    return model


def load_for_use(
    path: Path, recipe: str | None, overrides: Sequence[str], which: str = "last"
) -> tuple[Settings, nn.Module, str]:
    """Load a model with the settings that it was trained with, or those of a recipe.

    Args:
        path: run folder, checkpoint of a run, or weights of any layout (then ``recipe`` is needed).
        recipe: name or file; its settings replace those of the run.
        overrides: ``table.key=value`` each.
        which: checkpoint of a run folder, "last" or "best".

    Returns:
        settings, model, and what to call it.

    Raises:
        SettingsError: no settings are to be had, or they are wrong.
        CheckpointError: the checkpoint is missing or damaged.
        ValueError: the weights are of another model.
    """
    if path.is_dir():
        if which == "best":
            checkpoint, state = path / "checkpoints" / "best.pt", read_checkpoint(path / "checkpoints" / "best.pt")
        else:
            checkpoint, state, _ = newest_good_checkpoint(path / "checkpoints")
        return _from_state(state, checkpoint, path.name, recipe, overrides)
    if not path.exists():
        raise FileNotFoundError(f"CHECKPOINT: {path} must be a run folder or a file, got nothing there")
    try:
        state = read_checkpoint(path)
    except CheckpointError:
        if recipe is None:
            raise CheckpointError(
                f"CHECKPOINT: {path} must be a whole checkpoint of fssops, got a damaged one or foreign weights; "
                "for the latter say with --recipe which model and data they are for"
            ) from None
        state = {}
    if "settings" in state:
        return _from_state(state, path, path.stem, recipe, overrides)
    settings = load_settings(str(recipe), overrides)
    model = fssops.create_model(settings.model.name, **settings.model.options)
    fssops.load_weights(model, path)
    return settings, model, f"{settings.name} {path.name}"


def _from_state(
    state: dict[str, Any], path: Path, label: str, recipe: str | None, overrides: Sequence[str]
) -> tuple[Settings, nn.Module, str]:
    tables = json.loads(state["settings"]) if recipe is None else read_named_recipe(recipe)
    settings = overridden_settings(tables, overrides, str(path))
    model = fssops.create_model(settings.model.name, **settings.model.options)
    fssops.load_weights(model, state["model"])
    return settings, model, f"{label}, step {state['step']}"
