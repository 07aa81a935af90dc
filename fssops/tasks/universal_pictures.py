"""Pictures of a fixed-class run: image, truth and prediction of the best, the worst and some other images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import nn

from fssops.data.source import ImageSource
from fssops.evaluation.pictures import Tile, grid
from fssops.evaluation.universal import UniversalResult
from fssops.evaluation.universal_pictures import (
    Region,
    confusion_picture,
    overlay_regions,
    semantic_regions,
    shade,
)
from fssops.structures import SegmentationResult
from fssops.tasks.universal_counting import TestItem, TestItems
from fssops.truth import Classes, Truth

if TYPE_CHECKING:
    from fssops.tasks.universal import UniversalTask

_TILE = 256
"""Side of a picture in a grid, pixels."""

SHOWN_SCORE = 0.3
"""Instances below this score are left out of pictures."""


def main_task(tasks: Sequence[str]) -> str:
    """The task that pictures show, of those asked for."""
    return next(task for task in ("panoptic", "instance", "semantic") if task in tasks)


def result_regions(
    result: SegmentationResult,
    task: str,
    classes: Classes,
    least_score: float = SHOWN_SCORE,
    at_least: int = 0,
) -> list[Region]:
    """Regions of a result, for overlays.

    Args:
        result: of one image.
        task: which of its parts.
        classes: for names and colours.
        least_score: instances below it are left out; the best are on top.
        at_least: show that many instances whatever their scores.
    """
    names, colours = classes.names, classes.colours
    if task == "semantic":
        assert result.semantic is not None
        return semantic_regions(result.semantic.label_map.cpu().numpy(), names, colours)
    if task == "panoptic":
        assert result.panoptic is not None
        ids = result.panoptic.segment_ids.cpu().numpy()
        return [
            Region(ids == s.id, shade(colours[s.label], s.id if s.is_thing else 0), names[s.label])
            for s in result.panoptic.segments
        ]
    assert result.instance is not None
    found = result.instance
    rows = zip(found.scores.tolist(), found.labels.tolist(), found.masks.cpu().numpy(), strict=True)
    regions = [
        Region(mask, shade(colours[label], number), f"{names[label]} {100 * score:.0f}")
        for number, (score, label, mask) in enumerate(rows)
        if score >= least_score or number < at_least
    ]
    return regions[::-1]


def truth_regions(truth: Truth, task: str, classes: Classes) -> list[Region]:
    """Regions of the truth, for overlays; crowds in grey."""
    names, colours = classes.names, classes.colours
    if task == "semantic":
        return semantic_regions(truth.semantic(), names, colours)
    grey = (150, 150, 150)
    if task == "panoptic" and truth.segment_ids is not None:
        ids, things = truth.segment_ids, set(classes.things)
        return [
            Region(
                ids == s.id,
                grey if s.crowd else shade(colours[s.label], n if s.label in things else 0),
                names[s.label],
            )
            for n, s in enumerate(truth.segments)
        ]
    objects = sorted(
        ((o, o.mask(truth.height, truth.width)) for o in truth.instances(classes.things)), key=lambda e: -e[1].sum()
    )
    return [
        Region(mask, grey if o.crowd else shade(colours[o.label], n), names[o.label])
        for n, (o, mask) in enumerate(objects)
    ]


def file_picture(source: ImageSource, number: int) -> np.ndarray:
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
        groups["best.png"] = (order[:count], "best images")
        groups["worst.png"] = (order[count:][::-1][:count], "worst images")
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
        row.append(Tile(_drawn(picture, truth_regions(item.truth, shown, source.classes))))
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
    return _drawn(picture, result_regions(result, shown, task.source(evaluation=True).classes, at_least=3))


def _drawn(picture: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
    """An overlay; small pictures are enlarged first, so that names on them can be read."""
    times = -(-_TILE // max(picture.shape[:2]))
    if times > 1:
        picture = picture.repeat(times, 0).repeat(times, 1)
        regions = [Region(r.mask.repeat(times, 0).repeat(times, 1), r.colour, r.caption) for r in regions]
    return overlay_regions(picture, regions)
