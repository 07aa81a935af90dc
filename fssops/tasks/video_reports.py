"""What is left of an evaluation on videos: scores, tables, files in the submission format, and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric import Fabric
from torch import nn

from fssops.engine.checkpoints import write_text_atomically
from fssops.evaluation.instance import decode
from fssops.evaluation.pictures import Tile, grid
from fssops.evaluation.video import VideoRecords
from fssops.evaluation.video_pictures import DrawnObject, draw_frame, drawn_objects, object_colour
from fssops.evaluation.video_results import VideoEvaluation, rows_of_records, write_submission
from fssops.tasks.video import VideoTask, true_tracks, video_number
from fssops.tasks.video_settings import VideoSettings

_COLUMNS = 5
"""Frames of a video in a picture."""

_TILE = 224


def evaluate_models(
    loaded: Sequence[tuple[VideoSettings, nn.Module, str]], fabric: Fabric, folder: Path, *, classes: bool
) -> list[VideoEvaluation]:
    """Score models and write ``results.json``, submissions and pictures.

    Args:
        loaded: settings, model and what to call it.
        fabric: launched.
        folder: where everything goes; of several models, files go into a folder each.
        classes: print a table of the classes as well.
    """
    results = []
    for number, (settings, model, label) in enumerate(loaded):
        task = VideoTask(settings)
        task.keep = folder
        model.to(fabric.device)
        result, records = task.evaluate(model, fabric, label)
        results.append(result)
        if fabric.is_global_zero:
            own = folder if len(loaded) == 1 else folder / f"model{number}"
            own.mkdir(parents=True, exist_ok=True)
            write_results(task, records, own)
            gallery(task, result, records, own)
    if fabric.is_global_zero:
        report(results, folder, classes)
    return results


def write_results(task: VideoTask, records: VideoRecords, folder: Path) -> None:
    """Write ``submission.json`` and ``submission.zip`` in the official format."""
    ids = [category.id for category in task.source(evaluation=True).metadata.categories]
    write_submission(folder / "submission.json", rows_of_records(records, ids))


def report(results: Sequence[VideoEvaluation], folder: Path, classes: bool) -> None:
    """Print tables and lines, and write ``results.json``."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 160, markup=False, highlight=False)
    for result in results:
        if classes:
            rows = result.class_table()
            table = Table(*rows[0], title=f"{result.model}: each class, in percent", title_justify="left")
            for row in rows[1:]:
                table.add_row(*row)
            console.print(table)
    for result in results:
        print(result.line())
        print(f"{result.seconds:.1f} s for {result.frames} frames of {result.videos} videos")
    body = {"results": [result.as_json() for result in results]}
    write_text_atomically(folder / "results.json", json.dumps(body, indent=2, allow_nan=False) + "\n")
    print(f"written: {folder}/ (results.json, submission.json, submission.zip, grid.png, best.png, worst.png)")


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
    names = source.metadata.names
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
