"""The one loop of every evaluation: items shared among processes, counts that survive an interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import nn

from fssops.engine.evaluation_progress import EvaluationProgress, weights_digest, without
from fssops.engine.progress import ProgressBar
from fssops.evaluation.metrics.metric import MetricSet
from fssops.facts import FACTS
from fssops.tasks.task import Task

Item = TypeVar("Item")

_NOT_DECISIVE = ("name", "description", "optim", "schedule", "engine", "model.weights")
_NOT_DECISIVE_EVAL = ("workers", "cache_mb", "cache_disk_mb", "pictures", "baseline", "checkpoint")


def count_items(
    task: Task,
    model: nn.Module,
    fabric: Fabric,
    *,
    title: str,
    numbers: Sequence[int],
    items: Callable[[list[int]], Iterable[Item]],
    count: Callable[[int, Item], None],
    metrics: MetricSet,
    decisive: Mapping[str, Any],
) -> None:
    """Count items with metrics: on one process or many, going on where an earlier start was interrupted.

    Args:
        task: whose settings decide the counts; its ``progress_folder`` keeps them.
        model: put into evaluation mode meanwhile; its weights decide the counts.
        fabric: launched; every process must call.
        title: of the evaluation, one of a run; validation, which has none, shows and keeps nothing.
        numbers: of all items.
        items: gives the items of this process's numbers, in their order.
        count: adds an item to the metrics.
        metrics: they hold the counts of all processes and starts afterwards.
        decisive: what else decides the counts: lists of episodes, names of images.
    """
    progress = _progress(task, model, fabric, title, decisive)
    mine = progress.mine(numbers)
    quiet = not title or not fabric.is_global_zero
    with progress, in_evaluation(model), ProgressBar(title, len(mine), quiet=quiet) as bar:
        for number, item in zip(mine, items(mine), strict=True):
            count(number, item)
            progress.counted(number, metrics.state)
            bar.advance()
    if fabric.world_size > 1 or progress.done:
        metrics.merge(all_states(metrics.state(), progress, fabric))


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Within it the model is in evaluation mode, and nothing is recorded for gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def evenly_spread(total: int, limit: int) -> list[int]:
    """Numbers of ``limit`` items of ``total``, all for 0: neighbours in a list often show the same."""
    count = min(limit or total, total)
    return [place * total // count for place in range(count)]


def _progress(
    task: Task, model: nn.Module, fabric: Fabric, title: str, decisive: Mapping[str, Any]
) -> EvaluationProgress:
    if task.progress_folder is None or not title:
        return EvaluationProgress(None, title, {}, fabric)
    hidden = (*_NOT_DECISIVE, *(f"eval.{key}" for key in _NOT_DECISIVE_EVAL))
    everything = {
        "settings": without(task.settings.as_tables(), *hidden),
        "precision": task.settings.engine.precision,
        "weights": weights_digest(model.state_dict()),
        "facts": list(FACTS),  # counts without them, of an earlier version, are not gone on with
        **decisive,
    }
    return EvaluationProgress(task.progress_folder, title, everything, fabric)


def all_states(state: Any, progress: EvaluationProgress, fabric: Fabric) -> list[Any]:
    """The states of all processes and of earlier starts; every process must call, each gets all.

    Args:
        state: of this process, plain values.
        progress: of the evaluation.
        fabric: launched.
    """
    states = gathered(state, fabric.world_size) if fabric.world_size > 1 else [state]
    if progress.done:
        states += progress.states if fabric.world_size == 1 else fabric.broadcast(progress.states)
    return states


def gathered(state: Any, world_size: int) -> list[Any]:
    """The states of all processes, any picklable values."""
    states: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(states, state)
    return states
