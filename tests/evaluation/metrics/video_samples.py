"""Truth and predictions in YouTube-VIS' files, drawn from a seed; official_video_scores.json says how they score.

Those numbers come from youtubevos/cocoapi at f3f9948 (``ytvos.py`` and ``ytvoseval.py``, with ``np.float``, ``unicode``
and a float count of ``np.linspace`` replaced, which today's Python and numpy refuse), run on what :func:`sample` and
:func:`predictions_for` return.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fssops.run_lengths import decode, encode

HEIGHT, WIDTH = 360, 480
CASES = ("plain", "crowded", "ties", "sizes", "gaps", "davis")


def ellipse(centre: tuple[float, float], radii: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """A filled ellipse, bool [H, W]."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    inside = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 < 1
    return np.asarray(inside)


def rle(mask: np.ndarray) -> dict[str, Any] | None:
    return encode(mask) if mask.any() else None


def sample(case: str, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(content of an annotation file, rows of a results file) of a case."""
    rng = np.random.default_rng([CASES.index(case), seed])
    videos, annotations = [], []
    for video in range(1, 6):
        frames = int(rng.integers(2, 6))
        names = [f"v{video}/{t:05d}.jpg" for t in range(frames)]
        shape = {"width": WIDTH, "height": HEIGHT, "length": frames}
        videos.append({"id": video * 7 % 11, **shape, "file_names": names})
        for _ in range(int(rng.integers(0, 5))):
            large = rng.uniform(20, 300) if case == "sizes" else rng.uniform(15, 60)
            start, speed = rng.uniform(40, 260, 2), rng.uniform(-15, 15, 2)
            masks = []
            for t in range(frames):
                x, y = start + t * speed
                mask = ellipse((float(x), float(y)), (large, large * 0.7), (HEIGHT, WIDTH))
                masks.append(None if case == "gaps" and rng.random() < 0.4 else rle(mask))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": video * 7 % 11,
                    "category_id": int(rng.integers(1, 5)),
                    "iscrowd": int(case == "crowded" and rng.random() < 0.35),
                    "segmentations": masks,
                    "areas": [None if m is None else int(decode(m).sum()) for m in masks],
                    "bboxes": [None if m is None else [0, 0, 1, 1] for m in masks],
                }
            )
    categories = [{"id": k, "name": f"class{k}"} for k in range(1, 6)]
    truth = {"info": {}, "videos": videos, "annotations": annotations, "categories": categories}
    return truth, predictions_for(truth, case, rng)


def predictions_for(truth: dict[str, Any], case: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Shifted, thinned and mistaken copies of the truth, and some that fit nothing."""
    rows = []
    for video in truth["videos"]:
        size, frames = (video["height"], video["width"]), len(video["file_names"])
        own = [a for a in truth["annotations"] if a["video_id"] == video["id"]]
        for annotation in own:
            for _ in range(int(rng.integers(0, 4))):
                shift = rng.normal(0, 6, 2).round().astype(int)
                masks = []
                for segmentation in annotation["segmentations"]:
                    if segmentation is None or rng.random() < 0.08:
                        masks.append(encode(np.zeros(size, dtype=bool)) if rng.random() < 0.5 else None)
                    else:
                        masks.append(encode(np.roll(decode(segmentation), shift, axis=(0, 1))))
                wrong = rng.random() < 0.2
                category = int(rng.integers(1, 5)) if wrong else annotation["category_id"]
                rows.append(_row(video, category, masks, case, rng))
        for _ in range(int(rng.integers(0, 3))):
            centre = (float(rng.uniform(0, size[1])), float(rng.uniform(0, size[0])))
            mask = encode(ellipse(centre, (30.0, 20.0), size))
            kept = [mask if rng.random() < 0.7 else None for _ in range(frames)]
            rows.append(_row(video, int(rng.integers(1, 5)), kept, case, rng))
    return rows


def _row(video: Any, category: int, masks: list[Any], case: str, rng: np.random.Generator) -> dict[str, Any]:
    score = float(rng.random())
    score = round(score, 1) if case == "ties" else score
    return {"video_id": video["id"], "category_id": category, "score": score, "segmentations": masks}
