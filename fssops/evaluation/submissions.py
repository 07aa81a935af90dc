"""Results in the formats of others: COCO's results of instances, and the submissions of YouTube-VIS."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fssops.evaluation.metrics.video_instance import VideoPrecision
from fssops.run_lengths import encode

Row = dict[str, Any]
"""One object of a submission: video_id, category_id, score, and segmentations: run lengths or null, one a frame."""


def coco_results(
    image_id: int | str, labels: Sequence[int], scores: Sequence[float], masks: np.ndarray, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Rows of COCO's results format for the instances of one image.

    Args:
        image_id: as the annotation file calls the image.
        labels: class indices [K].
        scores: [K].
        masks: bool [K, H, W].
        category_ids: id of each class in the annotation file.
    """
    return [
        {"image_id": image_id, "category_id": category_ids[label], "segmentation": encode(mask), "score": float(score)}
        for label, score, mask in zip(labels, scores, masks, strict=True)
    ]


def submission_rows(
    video_id: int | str,
    labels: Sequence[int],
    scores: Sequence[float],
    masks: Sequence[Sequence[Mapping[str, Any] | None]],
    category_ids: Sequence[int],
) -> list[Row]:
    """Rows of a submission for one video.

    Args:
        video_id: as the annotation file calls the video.
        labels: class indices [K].
        scores: [K].
        masks: K lists of run lengths, one a frame, None where the object is not in sight.
        category_ids: id of each class in the annotation file.
    """
    return [
        {
            "video_id": video_id,
            "category_id": category_ids[label],
            "score": float(score),
            "segmentations": [None if mask is None else dict(mask) for mask in own],
        }
        for label, score, own in zip(labels, scores, masks, strict=True)
    ]


def recorded_rows(metric: VideoPrecision, category_ids: Sequence[int]) -> list[Row]:
    """The rows of all videos that a metric has counted, by ascending id."""
    rows: list[Row] = []
    for record in metric.by_id():
        for label, score, masks in record["detections"]:
            rows += submission_rows(record["id"], [label], [score], [masks], category_ids)
    return rows


def write_submission(path: Path, rows: Sequence[Row], *, zipped: bool = True) -> list[Path]:
    """Write rows as JSON, and beside it the zip file that the evaluation servers take, which holds ``results.json``.

    Args:
        path: ends in ``.json``.
        rows: of :func:`submission_rows`.
        zipped: write the zip file too.

    Returns:
        the files written.

    Raises:
        ValueError: another ending.
    """
    if path.suffix != ".json":
        raise ValueError(f"write_submission: path must end in .json, got {path}")
    text = json.dumps(list(rows))
    path.write_text(text, encoding="utf-8")
    if not zipped:
        return [path]
    archive = path.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("results.json", text)
    return [path, archive]
