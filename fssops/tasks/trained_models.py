"""Models of tasks: built from settings, or loaded with their task from what a run has left."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from fssops.engine.checkpoints import RunCheckpointError, has_checkpoint
from fssops.engine.optimizers import freeze
from fssops.engine.random_state import seed_everything
from fssops.engine.run_folder import SETTINGS_FILE, RunFolder
from fssops.engine.settings import Settings, SettingsError
from fssops.facts import Facts
from fssops.models import MODELS
from fssops.recipes import read_named_recipe
from fssops.tasks import load_task, task_from_tables
from fssops.tasks.class_names import checked_classes, classes_of_run, file_of_run
from fssops.tasks.described_models import described_tables
from fssops.tasks.task import Task
from fssops.weights import find_weights, load_weights, read_weights
from fssops.weights.pretrained import refuse_larger_model

logger = logging.getLogger(__name__)

FACT_FILE = "facts.json"
"""In a run folder: what was counted of the training data."""


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


def build_model(
    settings: Settings, *, new_head: Literal["refuse", "tell"] = "refuse", weights: str | None = None
) -> nn.Module:
    """Build the model of settings, with weights where they name some; ``new_head`` as in ``load_weights``.

    Args:
        settings: of a recipe.
        new_head: what becomes of weights for other classes.
        weights: instead of the settings'; "" for random ones.

    Raises:
        SettingsError: they are of the backbone alone, and a first stage, which they would replace, would stay random.
    """
    model = empty_model(settings)
    freeze(model, settings.optim)  # before: a head that is frozen must not start anew
    weights = settings.model.weights if weights is None else weights
    if weights:
        report = load_weights(model, weights, new_head=new_head)
        for line in report.passed_over:
            logger.info("passed over    %s", line)
        tensors = f"{len(report.loaded)} tensors of the {report.target}"
        logger.info("weights        %s: %s, %s", report.source, tensors, report.layout)
        table = settings.first_stage
        if table and report.target not in ("model", table) and not getattr(settings, table).weights:
            raise SettingsError(
                f"model.weights: must be of all of {settings.model.name}, or of what its first stage makes, got"
                f" {weights}, which are of the {report.target} alone; start the first stage from them: --set"
                f" model.weights= --set '{table}.overrides=[\"model.weights={weights}\"]'"
            )
        for tensor, old, new in report.reinitialised:
            logger.info("               starts anew, other classes: %s %s -> %s", tensor, list(old), list(new))
    return model


def untrained_model(recipe: str, overrides: Sequence[str]) -> TrainedModel:
    """Build the model that a recipe would start from, seeded by it."""
    task = load_task(recipe, overrides)
    seed_everything(task.settings.engine.seed)
    weights = "" if task.settings.model.weights else ", random weights"
    return TrainedModel(task, build_model(task.settings), f"{task.settings.name}{weights}")


def load_trained(
    source: str | Path,
    recipe: str | None,
    overrides: Sequence[str],
    which: Literal["last", "best"] | None = None,
    where: str = "CHECKPOINT",
) -> TrainedModel:
    """Load a model with the task that it was trained for, or that of a recipe.

    Args:
        source: run folder, checkpoint of a run, or weights that say which model they are of: of ``save_pretrained``, of
            transformers, or with a name of ours. For all others ``recipe`` is needed. See
            :func:`fssops.weights.find_weights` for what is fetched.
        recipe: name or file; its settings replace those of the run.
        overrides: ``table.key=value`` each.
        which: checkpoint of a run folder; None: the one that its training evaluated at the end (``eval.checkpoint``).
        where: the argument, for messages.

    Raises:
        FileNotFoundError, UnavailableWeightsError: there are no such weights here, or they cannot be fetched.
        SettingsError: no settings are to be had, or they are wrong.
        RunCheckpointError: the checkpoint is missing or damaged.
        ValueError: the weights are of another model.
    """
    found = find_weights(source, where)
    path, row = found.path, found.row
    is_run = path.is_dir() and has_checkpoint(path / "checkpoints")
    best = is_run and (_evaluates_best(path) if which is None else which == "best")
    checkpoint = read_weights(path / "checkpoints" / "best.pt" if best else path)
    recipe = recipe or (row.recipe if row else None)
    if recipe:
        tables, origin = read_named_recipe(recipe), f"recipe {recipe}"
    elif checkpoint.settings:
        tables, origin = checkpoint.settings, checkpoint.source
    elif checkpoint.config or checkpoint.model:
        tables, origin = described_tables(checkpoint, found.called), checkpoint.source
    else:
        alone = f"alone, of the backbone {row.backbone}" if row else "alone"
        raise RunCheckpointError(
            f"{where}: {source} must be of a run, which knows its model and data, got weights {alone}; say with "
            "--recipe which they are for"
        )
    task = task_from_tables(tables, origin, overrides)
    task.trained_classes = classes_of_run(path)
    task.training_facts = facts_of_run(path)
    if checkpoint.classes:
        task.trained_classes = checked_classes(checkpoint.classes, checkpoint.source)
    if not (recipe or checkpoint.settings):
        refuse_larger_model(task.settings.model.name, task.config, checkpoint)
    model = empty_model(task.settings)
    load_weights(model, checkpoint)
    if not checkpoint.settings:
        return TrainedModel(task, model, f"{task.settings.name} {Path(found.called).name}")
    return TrainedModel(task, model, f"{path.name if is_run else path.stem}, step {checkpoint.step}")


def _evaluates_best(run: Path) -> bool:
    """Whether a run evaluates its best checkpoint, and has one: before the first validation there is none."""
    rules = RunFolder(run).load_settings().get("eval", {}) if (run / SETTINGS_FILE).is_file() else {}
    return rules.get("checkpoint") == "best" and (run / "checkpoints" / "best.pt").exists()


def facts_of_run(checkpoint: Path) -> Facts:
    """What was counted of a run's training data; nothing where it keeps none, as earlier versions.

    Raises:
        SettingsError: the file is damaged.
    """
    file = file_of_run(checkpoint, FACT_FILE)
    if file is None:
        return Facts()
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return Facts({name: (row["count"], row["of"]) for name, row in rows.items()})
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise SettingsError(f"{file}: must hold the counts of the run's data, got {error}") from None


def load_unsettled(name: str, options: Sequence[str], weights: str | Path) -> TrainedModel:
    """Load weights into a model that no recipe describes; its task has the settings' defaults.

    Args:
        name: of the model.
        options: of its configuration, ``key=value`` each; the backbone may be left to the name of its weights.
        weights: as :func:`fssops.load_weights` takes them.

    Raises:
        SettingsError: no such model or option.
        ValueError: the weights are of another model.
        FileNotFoundError, UnavailableWeightsError: there are no such weights here, or they cannot be fetched.
    """
    found = find_weights(weights, "--weights")
    overrides = [f"model.{option}" for option in options]
    backbone = {"backbone": found.row.backbone} if found.row and found.row.backbone else {}
    task = task_from_tables({"name": name, "model": {"name": name, **backbone}}, f"--model {name}", overrides)
    model = empty_model(task.settings)
    load_weights(model, found.path)
    return TrainedModel(task, model, name)
