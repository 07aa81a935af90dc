"""Evaluations that go on where they were interrupted, for every task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from fssops.engine.evaluation_progress import EvaluationProgress, weights_digest, without

_NOT_DECISIVE = ("name", "description", "optim", "schedule", "engine", "model.weights")
_NOT_DECISIVE_EVAL = ("workers", "cache_mb", "cache_disk_mb", "pictures", "baseline", "checkpoint")


class ResumableEvaluation:
    """Part of a task.

    Attributes:
        keep: folder of the results, where the verbs let an evaluation keep its progress; None keeps nothing.
    """

    keep: Path | None = None
    settings: Any

    def progress(self, model: nn.Module, fabric: Fabric, title: str, **decisive: Any) -> EvaluationProgress:
        """What an evaluation has counted before and counts now; validation, which has no title, keeps nothing.

        Args:
            model: its weights decide the counts.
            fabric: launched.
            title: of the evaluation, one of a run.
            **decisive: what else decides the counts: lists of episodes, numbers of images.
        """
        if self.keep is None or not title:
            return EvaluationProgress(None, title, {}, fabric)
        hidden = (*_NOT_DECISIVE, *(f"eval.{key}" for key in _NOT_DECISIVE_EVAL))
        tables = without(self.settings.as_tables(), *hidden)
        precision = self.settings.engine.precision
        weights = weights_digest(model.state_dict())
        known = {"settings": tables, "precision": precision, "weights": weights, **decisive}
        return EvaluationProgress(self.keep, title, known, fabric)


def all_states(own: Any, progress: EvaluationProgress, fabric: Fabric) -> list[Any]:
    """The states of all processes and of earlier starts; every process must call, each gets all.

    Args:
        own: this process's state.
        progress: of the evaluation.
        fabric: launched.
    """
    states = gathered(own, fabric.world_size) if fabric.world_size > 1 else [own]
    if progress.done:
        earlier = progress.states if fabric.world_size == 1 else fabric.broadcast(progress.states)
        states += earlier
    return states


def gathered(state: Any, world_size: int) -> list[Any]:
    """The states of all processes, any picklable values."""
    found: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(found, state)
    return found
