"""A small data set in the form of YouTube-VIS, written to disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (24, 32)


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed run lengths, column by column from a run of zeros on, as YouTube-VIS writes them."""
    flat = mask.T.reshape(-1).astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + runs}


def box(left: int, top: int = 4, side: int = 8) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def annotation(
    identifier: int, video: int, category: int, masks: list[np.ndarray | None], **more: Any
) -> dict[str, Any]:
    """A row with run lengths, null where a mask is None."""
    return {
        "id": identifier,
        "video_id": video,
        "category_id": category,
        "iscrowd": 0,
        "segmentations": [None if mask is None else run_lengths(mask) for mask in masks],
        "areas": [None if mask is None else int(mask.sum()) for mask in masks],
        "bboxes": [None if mask is None else [0, 0, 1, 1] for mask in masks],
        **more,
    }


def write_videos(
    root: Path,
    annotations: list[dict[str, Any]] | None,
    lengths: tuple[int, ...] = (4, 1),
    split: str = "train",
    **more: Any,
) -> Path:
    """Write frames and JSON of videos a, b, .. with ids 1, 2, ..; the grey value of a frame is 40 times its number."""
    videos = []
    for number, length in enumerate(lengths):
        name = "abcdefgh"[number]
        folder = root / split / "JPEGImages" / name
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for frame in range(length):
            picture = np.full((*SIZE, 3), 40 * frame, dtype=np.uint8)
            picture[:, : SIZE[1] // 2] += 20  # left and right differ, so a flip is seen
            Image.fromarray(picture).save(folder / f"{frame:05d}.png")
            files.append(f"{name}/{frame:05d}.png")
        videos.append({"id": number + 1, "width": SIZE[1], "height": SIZE[0], "length": length, "file_names": files})
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    body = {"videos": videos, "annotations": annotations, "categories": categories, **more}
    (root / f"{split}.json").write_text(json.dumps(body))
    return root
