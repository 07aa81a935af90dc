"""FSS-1000: class folders, lists of classes, smoothed masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fssops.data.errors import (
    AnnotationError,
    MaskValueError,
)
from fssops.data.layouts import open_data, recognise


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def test_fss1000_ids_follow_all_folders_and_never_equal_255(tmp_path: Path) -> None:
    for name in ("zebra", "ant", "bee"):
        for i in range(1, 11):
            save(tmp_path / name / f"{i}.jpg", np.zeros((20, 20, 3)))
            smooth = np.zeros((20, 20, 3))
            smooth[5:10, 5:10], smooth[10, 5:10], smooth[11, 5:10] = 255, 128, 127
            save(tmp_path / name / f"{i}.png", smooth)
    (tmp_path / "test.txt").write_text("zebra\nbee\n")
    every = open_data("fss1000", tmp_path, truth="few-shot")
    assert every.classes == {1001: "ant", 1002: "bee", 1003: "zebra"}
    assert every.images_of(1001) == [f"ant/{i}.jpg" for i in range(1, 11)]
    assert (every.label_map("bee/1.jpg") == 1002).sum() == 30
    test = open_data("fss1000", tmp_path, split="test", truth="few-shot")
    assert test.classes == {1003: "zebra", 1002: "bee"}
    assert recognise(tmp_path, "few-shot") == "fss1000"
    with pytest.raises(FileNotFoundError, match="split 'val' must have a list of class names"):
        open_data("fss1000", tmp_path, split="val", truth="few-shot")
    (tmp_path / "val.txt").write_text("wasp\n")
    with pytest.raises(AnnotationError, match=r"1 others, e\.g\. 'wasp'"):
        open_data("fss1000", tmp_path, split="val", truth="few-shot")


def test_fss1000_refuses_masks_of_zeros_and_ones(tmp_path: Path) -> None:
    """Numbered files look like FSS-1000; read as brightness, such a mask would be empty."""
    for number in (1, 2):
        save(tmp_path / "cup" / f"{number}.jpg", np.zeros((2, 2, 3)))
        save(tmp_path / "cup" / f"{number}.png", np.array([[1, 0], [0, 0]]))
    assert recognise(tmp_path, "few-shot") == "fss1000"
    with pytest.raises(MaskValueError, match=r"1\.png: .*values from 128 .*got 0 and 1; the format folder reads"):
        open_data("auto", tmp_path, truth="few-shot").areas()
    assert open_data("folder", tmp_path, truth="few-shot").images_of(1) == ["cup/1.jpg", "cup/2.jpg"]
