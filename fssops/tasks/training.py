"""A training from settings to results: prepare, fit, report; with the first stage of two-stage systems before it."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import nn

from fssops.engine import nonfinite
from fssops.engine.callbacks import Callback
from fssops.engine.checkpoints import has_checkpoint, newest_good_checkpoint, read_checkpoint, write_text_atomically
from fssops.engine.curves import draw_curves
from fssops.engine.evaluation_progress import discard_progress
from fssops.engine.interrupts import Interrupted
from fssops.engine.launch import build_fabric
from fssops.engine.memory import peak_memory
from fssops.engine.random_state import preserved_random_state, restore_random_state, seed_everything
from fssops.engine.run_folder import RunFolder, locked_run, new_run_path
from fssops.engine.settings import SettingsError, changed_settings
from fssops.engine.trainer import FitResult, Trainer
from fssops.evaluation.scores import percent, without_nan
from fssops.facts import Facts
from fssops.models import MODELS
from fssops.models.interface import Trainable
from fssops.tasks import task_from_tables
from fssops.tasks.class_names import classes_of_run
from fssops.tasks.task import FirstStage, Task
from fssops.tasks.trained_models import FACT_FILE, build_model, empty_model
from fssops.weights import UnavailableWeightsError, find_weights

logger = logging.getLogger(__name__)


_RUN_FILES = [
    *("result.json", "metrics.jsonl", "metrics.csv", "curves.png", "grid.png", "best.png", "worst.png"),
    *("settings.toml", "checkpoints/last.pt", "checkpoints/best.pt"),
]


@dataclass
class Prepared:
    """A training that is about to begin.

    Attributes:
        task: what is trained.
        fabric: launched.
        run: its folder, locked.
        model: the one that is trained.
        untrained: a copy from before the first step; None where it is not evaluated.
        trainer: at the step that training goes on from.
        whole: folder of the run that the user has started: this one's, or that of the stage it is trained for.
        evaluate: whether the trained model is evaluated.
        started: ``time.perf_counter()`` at the beginning.
    """

    task: Task
    fabric: Fabric
    run: RunFolder
    model: nn.Module
    untrained: nn.Module | None
    trainer: Trainer
    whole: RunFolder
    evaluate: bool
    started: float


def check_trainable(task: Task, resumed: bool = False) -> None:
    """Refuse to train a system that has no losses or that cannot have its weights, before anything is made.

    Args:
        task: what to train.
        resumed: whether a run goes on, which has weights of its own.

    Raises:
        SettingsError: it has none.
        FileNotFoundError, UnavailableWeightsError: the weights that it starts from; says what to do.
    """
    name = task.settings.model.name
    if not issubclass(MODELS[name].model_class(), Trainable):
        raise SettingsError(
            f"model.name: a system to train must have losses, and {name} needs no training; give its weights to "
            "python -m fssops.evaluate or python -m fssops.predict"
        )
    weights = task.settings.model.weights
    if weights and not resumed:
        try:
            find_weights(weights, "model.weights")
        except UnavailableWeightsError as error:
            raise UnavailableWeightsError(
                f"{error} (--set model.weights=FILE; --set model.weights= starts from random ones)"
            ) from None


def train_in_folder(
    task: Task,
    earlier: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    *,
    out: Path | None = None,
    evaluate: bool = True,
    callbacks: Sequence[Callback] = (),
    settle: Callable[[Fabric, Path], Task] | None = None,
) -> tuple[int, Path]:
    """Train and evaluate: what the verb ``train`` and :func:`fssops.train` do once their settings are known.

    Args:
        task: what to train.
        earlier: settings that the run in ``folder`` had, to go on with it; None starts anew.
        folder: of a run that goes on.
        out: of a new run; None: one below ``runs/``.
        evaluate: evaluate the trained model.
        callbacks: told of steps and validations.
        settle: gives the task its place in the run's folder (:meth:`fssops.tasks.own_data.OwnRecipe.settled`).

    Returns:
        exit code, 0 or 130 when it was interrupted, and the run's folder.

    Raises:
        SettingsError: there is a run in ``out``, or the system cannot be trained.
    """
    check_trainable(task, resumed=earlier is not None)
    fabric = build_fabric(task.settings.engine)
    fabric.launch()
    with locked_run(fabric, lambda: folder or _new_folder(out, task.settings.name)) as run:
        if settle is not None:
            task = settle(fabric, run.path)
        return train(task, fabric, run, earlier, evaluate=evaluate, callbacks=callbacks), run.path


def _new_folder(given: Path | None, name: str) -> Path:
    folder = given or new_run_path(Path("runs"), name)
    # A first stage's checkpoints count too: it may have been trained with other settings.
    if any(has_checkpoint(below) for below in (folder / "checkpoints", *folder.glob("*/checkpoints"))):
        raise SettingsError(
            f"--out: {folder} must be a new folder, got one with a run in it; continue it with --resume"
        )
    return folder


def train(
    task: Task,
    fabric: Fabric,
    run: RunFolder,
    earlier: Mapping[str, Any] | None,
    *,
    evaluate: bool,
    outer: tuple[RunFolder, Task] | None = None,
    callbacks: Sequence[Callback] = (),
) -> int:
    """Train and evaluate in a folder, what must be trained first included.

    Args:
        task: what to train.
        fabric: launched.
        run: locked.
        earlier: settings that a run in this folder had, to go on with it; None starts anew.
        evaluate: evaluate the trained model.
        outer: of a first stage, the run and the task that it is trained for.
        callbacks: told of steps and validations, not of those of a first stage.

    Returns:
        exit code: 0, or 130 when it was interrupted.
    """
    count_steps(task)
    stage = task.first_stage(run.path)
    if stage is not None:
        count_steps(stage.task)
        if code := _train_first_stage(stage, task, fabric, run, evaluate=evaluate):
            return code
        if not has_checkpoint(run.checkpoints):
            earlier = None  # it was stopped in the first stage
    prepared = prepare(task, fabric, run, earlier, evaluate=evaluate, outer=outer, callbacks=callbacks)
    continuing = f"Continue with: python -m fssops.train --resume {prepared.whole.path}"
    try:
        fitted = prepared.trainer.fit()
    except Interrupted as stopped:
        logger.info("%s; saved. %s", stopped, continuing)
        return 130
    try:
        report(prepared, fitted)
    except KeyboardInterrupt:
        logger.info("trained; what was evaluated is kept. %s", continuing)
        raise
    return 0


def count_steps(task: Task) -> None:
    """Say ``schedule.epochs`` of a task in steps, for which its data are opened.

    Raises:
        SettingsError, DataError, FileNotFoundError: as :meth:`Task.training_data`.
    """
    schedule, batch_size = task.settings.schedule, task.settings.engine.batch_size
    if schedule.epochs:
        items = task.items_of_pass()
        steps = max(1, round(schedule.epochs * items / batch_size))
        logger.info(
            "length         %g epochs of %s items in batches of %s: %s steps",
            *(schedule.epochs, items, batch_size, steps),
        )
        said = schedule.model_copy(update={"epochs": 0.0, "steps": steps})
        task.settings = task.settings.model_copy(update={"schedule": said})


def prepare(
    task: Task,
    fabric: Fabric,
    run: RunFolder,
    earlier: Mapping[str, Any] | None,
    *,
    evaluate: bool,
    outer: tuple[RunFolder, Task] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Prepared:
    """Build model, data and trainer, restore the newest checkpoint, and write the settings; arguments as of train."""
    started, settings = time.perf_counter(), task.settings
    seed_everything(settings.engine.seed)
    goes_on = earlier is not None and has_checkpoint(run.checkpoints)
    first = not goes_on or settings.eval.baseline  # else the checkpoint has all weights
    new_head: Literal["refuse", "tell"] = "tell" if settings.model.new_classes else "refuse"
    model = build_model(settings, new_head=new_head, weights=settings.model.weights if first else "")
    _say(task.take_first_stage(model, run.path))
    count = sum(parameter.numel() for parameter in model.parameters())
    logger.info("run            %s", run.path)
    logger.info(
        "model          %s, %.2f million parameters, %s", settings.model.name, count / 1e6, settings.model.options
    )
    task.trained_classes = classes_of_run(run.path) if earlier is not None else None
    dataset, lines = task.training_data()
    _say([*lines, *(f"known of them  {text}" for text in task.training_facts.told())])
    untrained = copy.deepcopy(model) if evaluate and settings.eval.baseline else None
    trainer = Trainer(settings, fabric, model, dataset, task.collate, run, task.validation(fabric), callbacks)
    if earlier is not None and not has_checkpoint(run.checkpoints):
        logger.info("resumed        there is no checkpoint yet; from the beginning")
    elif earlier is not None:
        path, checkpoint, problems = newest_good_checkpoint(run.checkpoints)
        _say([f"passed over    {line}" for line in problems])
        _say([f"changed        {line}" for line in changed_settings(earlier, settings.as_tables())])
        trainer.restore(checkpoint)
        logger.info("resumed        %s at step %s of %s", path, trainer.step, settings.schedule.steps)
    whole = run if outer is None else outer[0]
    if fabric.is_global_zero:
        # Not before: settings that do not fit the checkpoint must not replace those that do.
        run.save_settings(settings.as_tables())
        if outer is not None:
            whole.save_settings(outer[1].settings.as_tables())
        for name, content in {**task.run_files(), FACT_FILE: task.training_facts.as_json()}.items():
            write_text_atomically(run.path / name, json.dumps(content, indent=1) + "\n")
    return Prepared(task, fabric, run, model, untrained, trainer, whole, evaluate, started)


def report(prepared: Prepared, fitted: FitResult) -> None:
    """Evaluate what training has made, and leave ``result.json``, curves and pictures in the run's folder."""
    task, fabric, run, settings = prepared.task, prepared.fabric, prepared.run, prepared.task.settings
    logger.info("trained        %s steps", fitted.steps)
    memory = peak_memory(fabric.device)
    logger.info("peak memory    %s", ", ".join(f"{name.replace('_', ' ')} {size} MB" for name, size in memory.items()))
    model = prepared.trainer.scored_model
    if prepared.trainer.sharded:
        weights = prepared.trainer.whole_model()
        model = empty_model(settings).to(fabric.device)
        model.load_state_dict(weights)
    content: dict[str, Any] = {"run": str(run.path), "steps": fitted.steps, "losses": fitted.losses}
    content |= {"best": fitted.best, "peak_memory_mb": memory}
    levels: dict[str, float] = {}
    if prepared.evaluate:
        task.progress_folder = run.path
        entries, levels = _evaluate(task, model, prepared.untrained, fabric, run.path)
        content.update(entries)
    content["seconds"] = round(time.perf_counter() - prepared.started, 1)
    if fabric.is_global_zero:
        draw_curves(run.metrics, run.path / "curves.png", f"{settings.name}, {fitted.steps} steps", levels)
        write_text_atomically(run.path / "result.json", json.dumps(without_nan(content), indent=2) + "\n")
    discard_progress(run.path, fabric)
    logger.info("finished in %.0f s; everything is in %s/:", content["seconds"], run.path)
    logger.info("  %s", "  ".join(name for name in _RUN_FILES if (run.path / name).exists()))
    if has_checkpoint(run.checkpoints):
        commands = ("fssops.evaluate {}", "fssops.predict --checkpoint {} --help")
        logger.info("  next: %s", "    ".join(f"python -m {command.format(run.path)}" for command in commands))


def _evaluate(
    task: Task, model: nn.Module, untrained: nn.Module | None, fabric: Fabric, folder: Path
) -> tuple[dict[str, Any], dict[str, float]]:
    """Score the trained model and, on the same data, the untrained one.

    Returns:
        what ``result.json`` says of it, and the scores as level lines for the curves.
    """
    label, before = task.settings.name, None
    if task.settings.eval.checkpoint == "best":
        model.load_state_dict(read_checkpoint(folder / "checkpoints" / "best.pt")["model"])
    with preserved_random_state():
        evaluation = task.evaluate(model, fabric, label, task.title)
        if untrained is not None:
            untrained = untrained.to(fabric.device)
            evaluated = task.evaluate(untrained, fabric, f"{label}, untrained", "untrained model").result
            before = replace(evaluated, training_facts=Facts())
        if fabric.is_global_zero:
            task.write(evaluation, model, fabric, folder, untrained)
    trained = evaluation.result
    entries = {"scores": trained.scores(), "line": trained.line(), **task.result_entries(trained, before)}
    levels: dict[str, float] = {}
    if before is not None:
        logger.info("untrained      %s", before.line())
    logger.info("trained        %s", trained.line())
    if trained.scores():
        name, value = trained.main
        levels[name] = value
        if before is not None:
            entries["gain"] = value - before.main[1]
            levels[f"{name}, untrained"] = before.main[1]
            sign = "+" if entries["gain"] >= 0 else ""
            logger.info("gain           %s%s points of %s", sign, percent(entries["gain"]), task.gain_of(name))
    return entries, levels


def _train_first_stage(stage: FirstStage, task: Task, fabric: Fabric, run: RunFolder, *, evaluate: bool) -> int:
    """Train what a task needs first, or go on with it; nothing where that is finished."""
    folder, earlier, steps = RunFolder(stage.folder), None, stage.task.settings.schedule.steps
    if has_checkpoint(folder.checkpoints):
        path, state, _ = newest_good_checkpoint(folder.checkpoints)
        earlier = folder.load_settings()
        if state["step"] >= steps:
            logger.info("first stage    %s: finished earlier, %s", stage.name, path)
            changed = changed_settings(earlier, stage.task.settings.as_tables())
            _say([f"not changed    {line}: it was trained so" for line in changed])
            return 0
        logger.info("first stage    %s: goes on at step %s of %s", stage.name, state["step"], steps)
    else:
        # What the second stage lacks shows now, not after hours of the first.
        task.training_data()
        if evaluate:
            task.check_evaluation()
        logger.info(
            "first stage    %s: its checkpoint is missing, so it is trained first, in %s", stage.name, folder.path
        )
    # The folder may lie outside the run, shared with runs of other shots.
    with locked_run(fabric, lambda: stage.folder) as locked:
        code = train(stage.task, fabric, locked, earlier, evaluate=evaluate, outer=(run, task))
    if not code:
        logger.info("second stage   %s", task.settings.name)
    return code


def replay(path: Path) -> int:
    """Run the step again that the guard against NaN has kept, and say what goes wrong where.

    Returns:
        exit code: 1 where it goes wrong again.

    Raises:
        SettingsError: the file is no file of the guard.
    """
    state = read_checkpoint(path)
    if state.get("kind") != "replay":
        raise SettingsError(
            f"--replay: {path} must be a file of the NaN guard, got a {state.get('kind', 'foreign')} checkpoint"
        )
    task = task_from_tables(json.loads(state["settings"]), str(path))
    model = empty_model(task.settings)
    model.load_state_dict(state["model"])
    model.train()
    batch, _ = nonfinite.load_replay(path, task.unpack_batch)  # type: ignore[arg-type]
    restore_random_state(state["random"])
    here = {"accelerator": "cpu", "devices": 1, "nodes": 1, "strategy": "auto"}
    autocast = build_fabric(task.settings.engine.model_copy(update=here)).autocast
    with torch.autograd.set_detect_anomaly(True, check_nan=False), autocast():
        losses, bad = nonfinite.checked_losses(model, model, batch)
    print(f"step {state['step']}; images: {', '.join(nonfinite.image_names(batch))}")
    for name, value in losses.items():
        print(f"  {name} = {float(value.detach())}")
    if losses:
        torch.stack([value.float() for value in losses.values()]).sum().backward()
    restore_random_state(state["random"])
    with autocast():
        module = nonfinite.first_nonfinite_module(model, batch)
    gradient = nonfinite.first_nonfinite_gradient(model)
    for what, place in (("loss", bad), ("module", module), ("gradient", gradient)):
        print(f"first bad {what}: {place or 'none'}")
    return 1 if bad or gradient or module else 0


def _say(lines: list[str]) -> None:
    for line in lines:
        logger.info("%s", line)
