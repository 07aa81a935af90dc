"""Small data sets written on the fly, so that the data layer is tested without the shared packs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def pytest_configure(config: pytest.Config) -> None:
    """pycocotools' compiled part still uses numpy 1's form of ``__array__``; one warning a mask says nothing new."""
    config.addinivalue_line(
        "filterwarnings", "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
    )


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    """Random pixels, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def voc_folder(tmp_path: Path) -> Path:
    """VOC layout with 12 images of 60 x 40: image i holds class i % 3 + 1 as a 20 x 20 square, 255 in one column.

    Images 0 to 8 are in train, the rest in val. Image 0 also holds class 7 in four pixels.
    """
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = [f"im{i:02d}" for i in range(12)]
    for i, name in enumerate(names):
        Image.fromarray(picture(seed=i)).save(root / "JPEGImages" / f"{name}.jpg")
        label = np.zeros((40, 60), dtype=np.uint8)
        label[10:30, 5 + i : 25 + i] = i % 3 + 1
        label[:, 59] = 255
        if i == 0:
            label[0, :4] = 7
        mask = Image.fromarray(label, mode="P")
        mask.putpalette([v for c in range(256) for v in (c, 255 - c, c // 2)])
        mask.save(root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("\n".join(names[:9]) + "\n")
    (lists / "val.txt").write_text("\n".join(names[9:]) + "\n")
    return root


@pytest.fixture
def coco_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a COCO layout: ``write(annotations, images=3, split="train2017", categories=...)``.

    Images are 60 x 40 and numbered from 1; annotations are dicts without id, which is given from 1 on.
    """

    def write(
        annotations: list[dict[str, Any]],
        images: int = 3,
        split: str = "train2017",
        categories: tuple[tuple[int, str], ...] = ((1, "cat"), (4, "dog"), (9, "owl")),
    ) -> Path:
        root = tmp_path / "coco"
        (root / split).mkdir(parents=True, exist_ok=True)
        (root / "annotations").mkdir(exist_ok=True)
        entries = []
        for i in range(1, images + 1):
            Image.fromarray(picture(seed=i)).save(root / split / f"{i:012d}.jpg")
            entries.append({"id": i, "file_name": f"{i:012d}.jpg", "width": 60, "height": 40})
        content = {
            "images": entries,
            "annotations": [{"id": n, "iscrowd": 0, **a} for n, a in enumerate(annotations, start=1)],
            "categories": [{"id": i, "name": name} for i, name in categories],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        return root

    return write
