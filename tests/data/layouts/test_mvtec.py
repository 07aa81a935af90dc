"""Folders of products with defects, as MVTec AD has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from example_folders import H, W, halves, mvtec, picture, save

from fssops.data.errors import DataError, MaskSizeError
from fssops.data.layouts import LAYOUTS, open_data
from fssops.data.splits import stratified_split


def test_defects_are_classes_and_good_images_are_background(tmp_path: Path) -> None:
    mvtec(tmp_path)
    source = open_data("auto", tmp_path, truth="semantic")
    assert source.classes.names == ["background", "bottle/dent", "bottle/scratch"]
    assert source.names == [f"bottle/{n}/000.png" for n in ("test/dent", "test/good", "test/scratch", "train/good")]
    found = [source.truth(name).semantic() for name in source.names]
    assert (found[0] == halves(0, 1)).all()
    assert (found[2] == halves(0, 2)).all()
    for number in (1, 3):
        assert found[number].shape == (H, W)
        assert not found[number].any()
    few_shot = open_data("auto", tmp_path, truth="few-shot")
    assert {number: few_shot.images_of(number) for number in few_shot.classes} == {
        1: ["bottle/test/dent/000.png"],
        2: ["bottle/test/scratch/000.png"],
    }


def test_one_product_is_a_data_set_of_its_own(tmp_path: Path) -> None:
    mvtec(tmp_path)
    source = open_data("auto", tmp_path / "bottle", split="test", truth="semantic")
    assert source.classes.names == ["background", "dent", "scratch"]
    assert source.names == ["test/dent/000.png", "test/good/000.png", "test/scratch/000.png"]
    assert LAYOUTS["mvtec"].splits(tmp_path / "bottle") == ["all"]
    good = open_data("mvtec", tmp_path / "bottle", split="train", truth="semantic")
    assert (good.names, good.classes) == (["train/good/000.png"], source.classes)


def test_all_images_can_be_taken_apart(tmp_path: Path) -> None:
    mvtec(tmp_path)
    for number in range(1, 6):
        for kind in ("good", "dent"):
            save(tmp_path / f"bottle/test/{kind}/{number:03d}.png", picture(10 + 2 * number + (kind == "good")))
        save(tmp_path / f"bottle/ground_truth/dent/{number:03d}_mask.png", halves(0, 255))
    split = stratified_split(open_data("mvtec", tmp_path, truth="semantic"), {"val": 0.34})
    assert split.classes["bottle/dent"] == {"train": 4, "val": 2}
    assert split.of == "all"


def test_missing_and_wrong_masks_name_the_file(tmp_path: Path) -> None:
    mvtec(tmp_path)
    mask = tmp_path / "bottle/ground_truth/dent/000_mask.png"
    mask.unlink()
    with pytest.raises(FileNotFoundError, match=r"dent/000_mask\.png: mask must exist"):
        open_data("mvtec", tmp_path, truth="semantic").truth("bottle/test/dent/000.png")
    save(mask, np.zeros((3, 3)))
    with pytest.raises(MaskSizeError, match="30 x 20, got 3 x 3"):
        open_data("mvtec", tmp_path, truth="semantic").truth("bottle/test/dent/000.png")
    save(tmp_path / "bottle/train/rust/1.png", picture(9))
    with pytest.raises(DataError, match="train/rust: folder must be good, or a defect of test, got 'rust'"):
        open_data("mvtec", tmp_path, truth="semantic")
    with pytest.raises(FileNotFoundError, match="split must be all, train or test, got 'val'"):
        open_data("mvtec", tmp_path, split="val", truth="semantic")
