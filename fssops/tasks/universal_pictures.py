"""Pictures of a fixed-class run: image, truth and prediction of the best, the worst and some other images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import nn

from fssops.data import universal
from fssops.evaluation.confusion_picture import confusion_picture
from fssops.evaluation.regions import result_regions, truth_regions
from fssops.evaluation.results import UniversalResult, best_and_worst, main_task
from fssops.pictures import Tile, enlarged_overlay, grid
from fssops.tasks.universal_counting import TestItem, TestItems

if TYPE_CHECKING:
    from fssops.tasks.universal import UniversalTask

_TILE = 256
"""Side of a picture in a grid, pixels."""


def file_picture(source: universal.UniversalSource, number: int) -> np.ndarray:
    """The picture of a file, [H, W, 3] uint8."""
    return np.asarray(source.image(source.names[number]))


def gallery(
    task: UniversalTask,
    model: nn.Module,
    fabric: Fabric,
    result: UniversalResult,
    folder: Path,
    before: nn.Module | None = None,
) -> list[Path]:
    """Draw ``grid.png``, ``best.png`` and ``worst.png``, and ``confusion.png`` where label maps were scored.

    Args:
        task: knows the data.
        model: as evaluated.
        fabric: launched.
        result: of this model.
        folder: where the pictures go.
        before: the untrained model, shown in a column of its own.
    """
    order = [number for number, _ in result.quality]
    if not order:
        return []
    count = task.settings.eval.pictures
    spread = sorted(order)[:: max(1, len(order) // 6)][:6]
    groups = {"grid.png": (spread, "test images")}
    if count:
        best, worst = best_and_worst(result.quality, count)
        groups |= {"best.png": (best, "best images"), "worst.png": (worst, "worst images")}
    written = []
    for name, (numbers, title) in groups.items():
        if numbers:
            _rows(task, model, fabric, result, numbers, title, before).save(folder / name)
            written.append(folder / name)
    if result.confusion is not None:
        target = folder / "confusion.png"
        confusion_picture(np.array(result.confusion), result.classes, target, f"{result.model}; {result.dataset}")
        written.append(target)
    return written


def _rows(
    task: UniversalTask,
    model: nn.Module,
    fabric: Fabric,
    result: UniversalResult,
    numbers: Sequence[int],
    title: str,
    before: nn.Module | None,
) -> Any:
    source, rules = task.source(evaluation=True), task.settings.eval
    shown = main_task(result.tasks)
    items = TestItems(source, numbers, rules.short_side, rules.longest)
    quality = dict(result.quality)
    score_name = {"panoptic": "PQ", "instance": "overlap", "semantic": "mIoU"}[shown]
    rows = []
    for place in range(len(items)):
        item = items[place]
        picture = file_picture(source, item.number)
        row = [Tile(picture, item.seen.name)]
        row.append(Tile(enlarged_overlay(picture, truth_regions(item.truth, shown, source.classes), _TILE)))
        caption = f"{score_name} {100 * quality[item.number]:.0f} %"
        row.append(Tile(_predicted(task, model, fabric, item, picture, shown), caption))
        if before is not None:
            row.append(Tile(_predicted(task, before, fabric, item, picture, shown)))
        rows.append(row)
    headings = ["image", "truth", "prediction"] + (["before training"] if before is not None else [])
    return grid(rows, headings, f"{result.model}: {title}, {result.setting()}", side=_TILE)


def _predicted(
    task: UniversalTask, model: nn.Module, fabric: Fabric, item: TestItem, picture: np.ndarray, shown: str
) -> np.ndarray:
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        result = task.segment(model, fabric, item, [shown])
    model.train(was_training)
    # A model that has just begun to learn is sure of nothing; its best guesses still say what it does.
    regions = result_regions(result, shown, task.source(evaluation=True).classes, at_least=3)
    return enlarged_overlay(picture, regions, _TILE)
