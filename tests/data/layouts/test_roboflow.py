"""Roboflow's COCO export: its splits, and the category above the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_folders import H, W, coco_json, picture, roboflow, save

from fssops.data.errors import AnnotationError, DataWarning
from fssops.data.layouts import open_data


def test_the_category_above_the_others_is_left_out_and_told(tmp_path: Path) -> None:
    roboflow(tmp_path)
    with pytest.warns(DataWarning, match="category 0, 'pets', has no object and is above the others"):
        source = open_data("auto", tmp_path, split="train", truth="instance")
    assert source.classes.names == ["cat"]
    assert source.truth("a.jpg").objects[0].mask(H, W).sum() == 81


def test_a_first_category_with_objects_stays(tmp_path: Path) -> None:
    roboflow(tmp_path)
    file = tmp_path / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 0
    file.write_text(json.dumps(content))
    assert open_data("roboflow", tmp_path, split="train", truth="instance").classes.names == ["pets", "cat"]


def test_val_finds_the_folder_valid_and_other_names_are_refused(tmp_path: Path) -> None:
    roboflow(tmp_path)
    save(tmp_path / "valid" / "a.jpg", picture(1))
    coco_json(tmp_path / "valid" / "_annotations.coco.json")
    assert open_data("roboflow", tmp_path, split="val", truth="instance").names == ["a.jpg"]
    with pytest.raises(FileNotFoundError, match="split must be one of train, valid, got 'test'"):
        open_data("roboflow", tmp_path, split="test", truth="instance")


def test_an_export_without_splits_is_all_of_it(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", picture())
    coco_json(tmp_path / "_annotations.coco.json")
    assert open_data("auto", tmp_path, split="all", truth="few-shot").names == ["a.jpg"]


def test_json_that_is_no_coco_is_refused(tmp_path: Path) -> None:
    roboflow(tmp_path)
    (tmp_path / "train" / "_annotations.coco.json").write_text('{"shapes": []}')
    with pytest.raises(AnnotationError, match=r"_annotations.coco.json: annotation file must hold a list 'images'"):
        open_data("roboflow", tmp_path, split="train", truth="instance")


def test_a_category_that_another_split_uses_stays_in_all(tmp_path: Path) -> None:
    roboflow(tmp_path)
    save(tmp_path / "valid" / "a.jpg", picture(1))
    content = json.loads((tmp_path / "train" / "_annotations.coco.json").read_text())
    content["annotations"][0]["category_id"] = 0
    (tmp_path / "valid" / "_annotations.coco.json").write_text(json.dumps(content))
    names = [open_data("roboflow", tmp_path, split=split, truth="instance").classes.names for split in ("train", "val")]
    assert names == [["pets", "cat"]] * 2


def test_an_export_of_boxes_or_without_its_images_is_refused_with_what_to_do(tmp_path: Path) -> None:
    roboflow(tmp_path)
    file = tmp_path / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    (tmp_path / "train" / "a.jpg").unlink()
    with (
        pytest.warns(DataWarning),
        pytest.raises(FileNotFoundError, match=r"a\.jpg: the images of .* got none of 1; put the export's images"),
    ):
        open_data("roboflow", tmp_path, truth="instance")
    content["annotations"][0]["segmentation"] = []
    file.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match="outlines, got 1 boxes alone; export again as COCO Segmentation"):
        open_data("roboflow", tmp_path, truth="instance")
