"""Pictures of a run on videos: frames of the best, the worst and some other videos, the truth above the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fssops.evaluation.pictures import Tile, grid
from fssops.evaluation.video import VideoRecords
from fssops.evaluation.video_pictures import DrawnObject, draw_frame, drawn_objects, object_colour
from fssops.evaluation.video_results import VideoEvaluation
from fssops.run_lengths import decode
from fssops.tasks.video import VideoTask, true_tracks, video_number

_COLUMNS = 5
"""Frames of a video in a picture."""

_TILE = 224


def gallery(task: VideoTask, result: VideoEvaluation, records: VideoRecords, folder: Path) -> list[Path]:
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
    if result.instances is not None:
        groups["best.png"] = (order[:count], "best videos")
        groups["worst.png"] = (order[count:][::-1][:count], "worst videos")
    written = []
    for name, (numbers, title) in groups.items():
        if numbers:
            rows = [row for number in numbers for row in _rows(task, records, number, dict(result.quality)[number])]
            heading = [f"{k + 1} of {_COLUMNS}" for k in range(_COLUMNS)]
            picture = grid(rows, heading, f"{result.model}: {title}, {result.setting()}", side=_TILE)
            picture.save(folder / name)
            written.append(folder / name)
    return written


def _rows(task: VideoTask, records: VideoRecords, number: int, quality: float) -> list[list[Tile]]:
    """Truth and prediction of a video, at frames evenly spread over it."""
    source = task.source(evaluation=True)
    name = source.names[number]
    frames = np.linspace(0, source.frames(name) - 1, _COLUMNS).round().astype(int).tolist()
    names = source.classes.names
    detections = records.videos[video_number(source, name, number)]["detections"]
    found = drawn_objects([d[0] for d in detections], [d[1] for d in detections], names)
    if not found and detections:  # a model that has just begun to learn is sure of nothing
        found = drawn_objects([detections[0][0]], [detections[0][1]], names, 0.0)
    rows = []
    if source.has_truth:
        tracks = true_tracks(source, name)
        known = {k: DrawnObject(object_colour(k), names[track[0]]) for k, track in enumerate(tracks)}
        rows.append(_row(task, name, frames, known, [track[1] for track in tracks], "truth"))
    rows.append(_row(task, name, frames, found, [d[2] for d in detections], f"overlap {100 * quality:.0f} %"))
    return rows


def _row(
    task: VideoTask,
    name: str,
    frames: Sequence[int],
    objects: dict[int, DrawnObject],
    masks: Sequence[Sequence[Any]],
    caption: str,
) -> list[Tile]:
    source, tiles = task.source(evaluation=True), []
    for frame in frames:
        image = np.asarray(source.frame(name, frame))
        seen = {k: decode(masks[k][frame]) for k in objects if masks[k][frame] is not None}
        tiles.append(Tile(_enlarged_drawing(image, objects, seen), f"{name} frame {frame}: {caption}"))
    return tiles


def _enlarged_drawing(image: np.ndarray, objects: dict[int, DrawnObject], masks: dict[int, np.ndarray]) -> np.ndarray:
    """Small pictures are enlarged first, so that names on them can be read."""
    times = -(-_TILE // max(image.shape[:2]))
    if times > 1:
        image = image.repeat(times, 0).repeat(times, 1)
        masks = {k: mask.repeat(times, 0).repeat(times, 1) for k, mask in masks.items()}
    return draw_frame(image, objects, masks)
