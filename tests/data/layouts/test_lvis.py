"""LVIS: where images lie, and what is known to be missing from the labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_folders import H, W, coco_json, lvis, picture, save

from fssops.data.errors import DataWarning
from fssops.data.layouts import LAYOUTS, open_data
from fssops.data.layouts.lvis import LVISSource


def test_images_are_found_by_the_end_of_their_address(tmp_path: Path) -> None:
    lvis(tmp_path)
    source = open_data("auto", tmp_path, split="train", truth="instance")
    assert source.names == ["val2017/a.jpg"]
    assert source.image("val2017/a.jpg").size == (W, H)
    assert source.truth("val2017/a.jpg").objects[0].mask(H, W).sum() == 81


def test_images_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    lvis(tmp_path / "lvis")
    save(tmp_path / "coco" / "val2017" / "a.jpg", picture(1))
    source = open_data("lvis", tmp_path / "lvis", split="train", truth="instance", images=tmp_path / "coco")
    assert source.image_file("val2017/a.jpg") == tmp_path / "coco" / "val2017" / "a.jpg"


def test_labels_known_to_be_incomplete_are_told(tmp_path: Path) -> None:
    lvis(tmp_path)
    row = {"id": 1, "coco_url": "http://x/val2017/a.jpg", "height": H, "width": W, "not_exhaustive_category_ids": [3]}
    coco_json(tmp_path / "lvis_v1_train.json", images=[row])
    with pytest.warns(DataWarning, match="1 images are not labelled with all objects of some classes"):
        open_data("lvis", tmp_path, split="train", truth="instance")


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    lvis(tmp_path)
    with pytest.raises(FileNotFoundError, match="split must be one of train, got 'val'"):
        open_data("lvis", tmp_path, split="val", truth="instance")


def test_what_an_image_says_of_classes_is_kept(tmp_path: Path) -> None:
    lvis(tmp_path)
    row = {"id": 1, "coco_url": "http://x/val2017/a.jpg", "height": H, "width": W}
    facts = {"neg_category_ids": [7], "not_exhaustive_category_ids": [3, 99]}
    coco_json(tmp_path / "lvis_v1_train.json", images=[{**row, **facts}])
    with pytest.warns(DataWarning, match="image 1: not_exhaustive_category_ids must be ids of categories"):
        source = open_data("lvis", tmp_path, split="train", truth="instance")
    assert isinstance(source, LVISSource)
    name = source.names[0]
    assert (source.negative(name), source.not_exhaustive(name)) == ([1], [0])


def test_lists_of_images_are_no_splits_and_minival_is_one(tmp_path: Path) -> None:
    lvis(tmp_path)
    (tmp_path / "lvis_v1_train.json").rename(tmp_path / "lvis_v1_minival.json")
    (tmp_path / "lvis_v1_image_info_test_dev.json").write_text("{}")
    assert LAYOUTS["lvis"].splits(tmp_path) == ["minival"]
    assert open_data("lvis", tmp_path, truth="instance").split == "minival"
