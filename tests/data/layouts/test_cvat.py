"""CVAT's COCO export: where images lie, what subsets are called, and objects drawn as masks."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_folders import H, W, coco_json, cvat, cvat_by_subset, picture, save

from fssops.data.errors import AnnotationError, DataError, DataWarning
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layouts import open_data
from fssops.data.source import ImageSource


def opened(root: Path, split: str | None = None, **options: str) -> ImageSource:
    source = open_data("auto", root, truth="instance", split=split, **options)
    assert source.format == "cvat"
    return source


@pytest.mark.parametrize("split", [None, "train", "all", "default"])
@pytest.mark.parametrize("folder", ["images", "images/default", "default"])
def test_the_default_subset_is_the_whole_set(tmp_path: Path, folder: str, split: str | None) -> None:
    cvat(tmp_path)
    (tmp_path / "images").rename(tmp_path / "moved")
    (tmp_path / folder).parent.mkdir(exist_ok=True)
    (tmp_path / "moved").rename(tmp_path / folder)
    with pytest.warns(DataWarning):
        source = opened(tmp_path, split)
    assert source.split == "default"
    assert source.image("a.jpg").size == (W, H)


def test_scores_on_what_was_trained_on_are_not_given(tmp_path: Path) -> None:
    cvat(tmp_path)
    with pytest.raises(FileNotFoundError, match="split must be one of default, got 'val'"):
        opened(tmp_path, "val")


def test_objects_drawn_as_masks_are_objects_and_crowds_only_where_that_is_said(tmp_path: Path) -> None:
    cvat(tmp_path)
    with pytest.warns(DataWarning, match="1 annotations with iscrowd 1 are read as objects drawn as masks"):
        source = opened(tmp_path)
    objects = source.truth("a.jpg").objects or []
    assert [(one.crowd, int(one.mask(H, W).sum())) for one in objects] == [(False, 81), (False, 200)]
    crowds = opened(tmp_path, crowd_rule="crowd")
    assert [one.crowd for one in crowds.truth("a.jpg").objects or []] == [False, True]
    assert crowds.identity() != source.identity()
    with pytest.raises(ValueError, match="crowd_rule must be object or crowd, got 'yes'"):
        opened(tmp_path, crowd_rule="yes")


@pytest.mark.parametrize(("split", "subset"), [("train", "Train"), ("val", "Validation"), ("Validation", "Validation")])
def test_subsets_are_found_as_they_are_usually_called(tmp_path: Path, split: str, subset: str) -> None:
    cvat_by_subset(tmp_path)
    source = opened(tmp_path, split)
    assert source.split == subset
    assert source.image_file("a.jpg") == tmp_path / "images" / subset / "a.jpg"


def test_label_maps_and_few_shot_classes_hold_masks_too(tmp_path: Path) -> None:
    cvat(tmp_path)
    with pytest.warns(DataWarning):
        labels = open_data("cvat", tmp_path, truth="semantic").truth("a.jpg").semantic()
    assert [(labels == value).sum() for value in (1, 2, 255)] == [81, 200 - 4 * 9, 0], "the smaller on top"
    with pytest.warns(DataWarning):
        few_shot = open_data("cvat", tmp_path, truth="few-shot")
    assert isinstance(few_shot, FewShotSource)
    assert few_shot.areas()["a.jpg"] == {1: 81, 2: 200}


def test_what_an_export_lacks_is_said_with_what_to_do(tmp_path: Path) -> None:
    cvat(tmp_path)
    (tmp_path / "images" / "a.jpg").unlink()
    with (
        pytest.warns(DataWarning),
        pytest.raises(
            FileNotFoundError, match=r"a\.jpg: the images of .* got none of 1; export again with Save images"
        ),
    ):
        opened(tmp_path)
    (tmp_path / "images").rmdir()
    with pytest.raises(FileNotFoundError, match="got no such folder; export again with Save images"):
        opened(tmp_path)
    save(tmp_path / "images" / "a.jpg", picture())
    boxes = [{"id": 1, "image_id": 1, "category_id": 3, "segmentation": [], "bbox": [0, 0, 9, 9], "area": 81}]
    coco_json(tmp_path / "annotations" / "instances_default.json", annotations=boxes)
    with pytest.raises(AnnotationError, match=r"must have outlines, got 1 boxes alone; mark objects by polygons"):
        opened(tmp_path)


def test_files_of_two_tools_in_one_folder_are_refused(tmp_path: Path) -> None:
    cvat(tmp_path)
    (tmp_path / "result.json").write_bytes((tmp_path / "annotations" / "instances_default.json").read_bytes())
    with pytest.raises(DataError, match=r"data of one layout, got several \(cvat: .*; label_studio: .*--format"):
        opened(tmp_path)
