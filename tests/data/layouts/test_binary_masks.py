"""Images and masks of 0 and 255: pairing, splits, and when they are label maps instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from example_folders import H, W, binary_masks, binary_masks_of_splits, halves, picture, save

from fssops.data.check import check_data
from fssops.data.errors import MaskSizeError, MaskValueError
from fssops.data.layouts import LAYOUTS, open_data, recognise


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("images", "labels"), ("images", "annotations")])
@pytest.mark.parametrize("ending", ["", "_mask"])
def test_white_is_the_object_whatever_masks_are_called(tmp_path: Path, images: str, masks: str, ending: str) -> None:
    save(tmp_path / images / "a.jpg", picture())
    save(tmp_path / masks / f"a{ending}.png", halves(0, 255))
    source = open_data("auto", tmp_path, truth="semantic")
    assert (source.format, source.classes.names, source.classes.things) == (
        "binary_masks",
        ["background", "object"],
        (1,),
    )
    assert (source.truth("a").semantic() == halves(0, 1)).all()
    assert open_data("auto", tmp_path, truth="semantic", name="crack").classes.names[1] == "crack"
    few_shot = open_data("auto", tmp_path, truth="few-shot")
    assert (few_shot.classes, few_shot.areas()["a"]) == ({1: "object"}, {1: H * W // 2})


def test_splits_are_folders(tmp_path: Path) -> None:
    binary_masks_of_splits(tmp_path)
    assert LAYOUTS["binary_masks"].splits(tmp_path) == ["train", "val"]
    assert open_data("auto", tmp_path, split="val", truth="semantic").names == ["a"]


def test_a_class_list_or_another_value_makes_them_label_maps(tmp_path: Path) -> None:
    binary_masks(tmp_path)
    assert recognise(tmp_path) == "binary_masks"
    (tmp_path / "classes.json").write_text('["background", "crack"]')
    assert recognise(tmp_path, "semantic") == "label_folder"
    (tmp_path / "classes.json").unlink()
    save(tmp_path / "masks" / "a_mask.png", halves(1, 255))
    assert recognise(tmp_path, "semantic") == "label_folder"


def test_masks_that_do_not_say_what_is_the_object_are_refused(tmp_path: Path) -> None:
    binary_masks(tmp_path)
    values = halves(0, 255)
    values[0, :3] = (60, 127, 128)
    save(tmp_path / "masks" / "a_mask.png", values)
    with pytest.raises(MaskValueError, match=r"a_mask\.png: mask must be of 0 and one other value .*threshold=128"):
        open_data("binary_masks", tmp_path, truth="semantic").truth("a")
    labels = open_data("binary_masks", tmp_path, truth="semantic", threshold=128).truth("a").semantic()
    assert labels[0, :4].tolist() == [0, 0, 1, 0]
    save(tmp_path / "masks" / "a_mask.png", np.zeros((H, W + 1)))
    with pytest.raises(MaskSizeError, match="must have the size of its image, 30 x 20, got 31 x 20"):
        open_data("binary_masks", tmp_path, truth="semantic").truth("a")


def test_images_without_a_mask_and_masks_without_an_image_are_told(tmp_path: Path) -> None:
    binary_masks(tmp_path)
    save(tmp_path / "images" / "b.jpg", picture(1))
    save(tmp_path / "masks" / "c.png", halves(0, 255))
    report = check_data("binary_masks", tmp_path, truth="semantic")
    assert report.counts() == {"unreadable_mask": 1, "left_out": 1}
    assert "b.png: mask must exist" in report.problems()[0].message
