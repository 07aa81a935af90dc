"""Pictures of a run on videos: frames of the best, the worst and some other videos, the truth above the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fssops.evaluation.metrics.video_instance import VideoPrecision
from fssops.evaluation.regions import frame_regions
from fssops.evaluation.results import VideoEvaluation, best_and_worst
from fssops.pictures import Tile, enlarged_overlay, grid
from fssops.tasks.video import VideoTask

_COLUMNS = 5
"""Frames of a video in a picture."""

_TILE = 224


def gallery(task: VideoTask, result: VideoEvaluation, records: VideoPrecision, folder: Path) -> list[Path]:
    """Draw ``grid.png``, ``best.png`` and ``worst.png``: frames of videos, the truth above the prediction.

    Args:
        task: knows the data.
        result: of a model.
        records: what it was formed from.
        folder: where the pictures go.
    """
    order, count = [number for number, _ in result.quality], task.settings.eval.pictures
    if not order or not count:
        return []
    spread = sorted(order)[:: max(1, len(order) // count)][:count]
    groups = {"grid.png": (spread, "test videos")}
    if result.measured:
        best, worst = best_and_worst(result.quality, count)
        groups |= {"best.png": (best, "best videos"), "worst.png": (worst, "worst videos")}
    written = []
    for name, (numbers, title) in groups.items():
        if numbers:
            rows = [row for number in numbers for row in _rows(task, records, number, dict(result.quality)[number])]
            heading = [f"{k + 1} of {_COLUMNS}" for k in range(_COLUMNS)]
            picture = grid(rows, heading, f"{result.model}: {title}, {result.setting()}", side=_TILE)
            picture.save(folder / name)
            written.append(folder / name)
    return written


def _rows(task: VideoTask, records: VideoPrecision, number: int, quality: float) -> list[list[Tile]]:
    """Truth and prediction of a video, at frames evenly spread over it."""
    source = task.source(evaluation=True)
    name, record = source.names[number], records.records[number]
    frames = np.linspace(0, source.frames(name) - 1, _COLUMNS).round().astype(int).tolist()
    rows = []
    if source.has_truth:
        rows.append(_row(task, name, frames, record["truth"], None, "truth"))
    scores = [score for _, score, _ in record["detections"]]
    detections = [(label, masks) for label, _, masks in record["detections"]]
    rows.append(_row(task, name, frames, detections, scores, f"overlap {100 * quality:.0f} %"))
    return rows


def _row(
    task: VideoTask,
    name: str,
    frames: Sequence[int],
    objects: Sequence[Sequence[Any]],
    scores: Sequence[float] | None,
    caption: str,
) -> list[Tile]:
    """Frames with objects (class, masks, ..) on them."""
    source, tiles = task.source(evaluation=True), []
    labels, tracks = [entry[0] for entry in objects], [entry[1] for entry in objects]
    for frame in frames:
        image = np.asarray(source.frame(name, frame))
        # A model that has just begun to learn is sure of nothing: its best guess is drawn in any case.
        regions = frame_regions(frame, tracks, labels, source.classes.names, scores, at_least=1)
        tiles.append(Tile(enlarged_overlay(image, regions, _TILE), f"{name} frame {frame}: {caption}"))
    return tiles
