"""Models from settings, and models with settings from what a run has left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

import fssops
from fssops.engine.checkpoints import CheckpointError, has_checkpoint
from fssops.engine.optimizers import freeze
from fssops.engine.settings import Settings
from fssops.recipes import read_named_recipe
from fssops.tasks import overridden_settings
from fssops.weights import read_weights


def build_model(settings: Settings, say: Any = None, *, new_head: Literal["refuse", "tell"] = "refuse") -> nn.Module:
    """Build the model of settings, with weights where they name some; ``new_head`` as in ``load_weights``."""
    model = fssops.create_model(settings.model.name, **settings.model.options)
    freeze(model, settings.optim.frozen)  # before: a head that is frozen must not start anew
    if settings.model.weights:
        report = fssops.load_weights(model, settings.model.weights, new_head=new_head)
        if say is not None:
            for line in report.passed_over:
                say(f"passed over    {line}")
            say(f"weights        {report.source}: {len(report.loaded)} tensors of the {report.target}, {report.layout}")
            for tensor, old, new in report.reinitialised:
                say(f"               starts anew, other classes: {tensor} {list(old)} -> {list(new)}")
    return model


def load_for_use(
    path: Path, recipe: str | None, overrides: Sequence[str], which: str = "last"
) -> tuple[Settings, nn.Module, str]:
    """Load a model with the settings that it was trained with, or those of a recipe.

    Args:
        path: run folder, checkpoint of a run, or weights of any layout, a file or a folder of transformers (then
            ``recipe`` is needed).
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
    if not path.exists():
        raise FileNotFoundError(f"CHECKPOINT: {path} must be a run folder or a file, got nothing there")
    is_run = path.is_dir() and has_checkpoint(path / "checkpoints")
    checkpoint = read_weights(path / "checkpoints" / "best.pt" if is_run and which == "best" else path)
    if recipe is None and not checkpoint.settings:
        raise CheckpointError(
            f"CHECKPOINT: {path} must be of a run, which knows its model and data, got weights alone; say with "
            "--recipe which they are for"
        )
    tables = checkpoint.settings if recipe is None else read_named_recipe(recipe)
    settings = overridden_settings(tables, overrides, f"recipe {recipe}" if recipe else checkpoint.source)
    model = fssops.create_model(settings.model.name, **settings.model.options)
    fssops.load_weights(model, checkpoint)
    if not checkpoint.settings:
        return settings, model, f"{settings.name} {path.name}"
    return settings, model, f"{path.name if is_run else path.stem}, step {checkpoint.step}"
