"""Loaded models scored one after the other: what the verb ``evaluate`` and :func:`fssops.evaluate` share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning_fabric import Fabric

from fssops.engine.checkpoints import write_text_atomically
from fssops.engine.evaluation_progress import discard_progress
from fssops.evaluation.results import Result
from fssops.tasks.trained_models import TrainedModel


def score(
    loaded: Sequence[TrainedModel], wanted: Sequence[tuple[int, int | None]], fabric: Fabric, folder: Path | None
) -> tuple[list[Result], list[Path]]:
    """Score models; every process must call.

    Args:
        loaded: the models, all of one kind.
        wanted: pairs of (place of the model, fold or None), as ``Task.evaluations`` gives them.
        fabric: launched.
        folder: where the first process writes ``results.json``, pictures and files, of several models into a folder
            each, and how far evaluation has come until it is done; None writes nothing.

    Returns:
        a result a pair, and the files written.
    """
    results: list[Result] = []
    written: list[Path] = []
    distinct = len({fold for _, fold in wanted}) == len(wanted)
    for place, fold in wanted:
        one = loaded[place]
        one.task.progress_folder = folder
        model = one.model.to(fabric.device).eval()
        title = "evaluate" if fold is None else f"fold {fold}"
        evaluation = one.task.evaluate(model, fabric, one.label, title, fold)
        results.append(evaluation.result)
        if folder is not None and fabric.is_global_zero:
            below = folder / (f"fold{fold}" if distinct and fold is not None else f"model{place}")
            files = folder if len(wanted) == 1 else below
            files.mkdir(exist_ok=True)
            written += one.task.write(evaluation, model, fabric, files)
    if folder is not None and fabric.is_global_zero:
        body = json.dumps(type(results[0]).report_json(results), indent=2, allow_nan=False)
        write_text_atomically(folder / "results.json", body + "\n")
        written.insert(0, folder / "results.json")
    if folder is not None:
        discard_progress(folder, fabric)
    return results, written


def seen_folds(loaded: Sequence[TrainedModel], wanted: Sequence[tuple[int, int | None]]) -> list[str]:
    """A warning for each trained model that is scored on another fold than its own."""
    others = [fold for place, fold in wanted if fold is not None and fold != loaded[place].task.settings.data.fold]
    return [
        f"warning: fold {fold} is not the fold that was trained: its classes may have been seen in training"
        for fold in others
    ]
