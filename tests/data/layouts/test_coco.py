"""COCO instances: classes, crowds, overlaps, and broken files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fssops.data import coco_json
from fssops.data.errors import AnnotationError, DataWarning, ImageFileError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layouts import open_data
from fssops.data.layouts.coco import COCOSource


def annotations_of(source: FewShotSource) -> list[coco_json.Annotation]:
    """Usable annotations of the first image."""
    assert isinstance(source.images, COCOSource)
    return source.images.annotations_of(source.names[0])


def square(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def test_coco_numbers_classes_by_category_order_and_finds_the_year(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder([{"image_id": 1, "category_id": 4, "segmentation": [square(10, 10, 20)]}])
    source = open_data("coco", root, split="train", truth="few-shot")
    assert source.split == "train2017"
    assert source.classes == {1: "cat", 2: "dog", 3: "owl"}
    assert source.images_of(2) == ["000000000001.jpg"]
    assert source.areas()["000000000001.jpg"] == {2: 400}
    assert (source.label_map("000000000001.jpg") == 2).sum() == 400


def test_coco_smaller_object_lies_on_top_and_areas_are_of_whole_classes(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder(
        [
            {"image_id": 1, "category_id": 1, "segmentation": [square(20, 20, 5)]},
            {"image_id": 1, "category_id": 4, "segmentation": [square(10, 10, 20)]},
            {"image_id": 1, "category_id": 4, "segmentation": [square(20, 10, 20)]},
        ]
    )
    source = open_data("coco", root, split="train", truth="few-shot")
    name = source.names[0]
    label = source.label_map(name)
    assert label[22, 22] == 1
    assert (label == 2).sum() == 600 - 25
    assert (source.label_map(name, [2]) == 2).sum() == 600
    assert source.areas()[name] == {1: 25, 2: 600}
    assert {
        int(n): int(c) for n, c in zip(*np.unique(source.instance_map(name, 2), return_counts=True), strict=True)
    } == {
        0: 1800,
        1: 200,
        2: 400,
    }


def test_coco_crowds_are_ignored_or_part_of_the_class(coco_folder: Callable[..., Path]) -> None:
    counts = [40 * 30, 40 * 10, 40 * 20]  # columns 30 to 39
    crowd = {"image_id": 1, "category_id": 1, "iscrowd": 1, "segmentation": {"size": [40, 60], "counts": counts}}
    root = coco_folder([crowd, {"image_id": 1, "category_id": 1, "segmentation": [square(35, 0, 10)]}])
    ignored = open_data("coco", root, split="train", truth="few-shot")
    label = ignored.label_map(ignored.names[0], [1])
    assert (label == 1).sum() == 100
    assert (label == 255).sum() == 400 - 50
    assert ignored.areas()[ignored.names[0]] == {1: 100}
    assert (ignored.label_map(ignored.names[0], [2]) == 0).all()
    part = open_data("coco", root, split="train", crowd="object", truth="few-shot")
    assert (part.label_map(part.names[0], [1]) == 1).sum() == 450
    assert part.areas()[part.names[0]] == {1: 450}


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("image_id", [1], r"image id \[1\] not in images"),
        ("image_id", "1", "image id '1' not in images"),
        ("category_id", {"id": 1}, r"category id \{'id': 1\} not in categories"),
        ("iscrowd", "0", "iscrowd is neither 0 nor 1 but '0'"),
    ],
)
def test_annotation_with_a_field_of_another_type_is_dropped(
    coco_folder: Callable[..., Path], field: str, value: object, reason: str
) -> None:
    good = {"image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}
    with pytest.warns(DataWarning, match=f"annotation 2 dropped: {reason}"):
        source = open_data("coco", coco_folder([good, {**good, field: value}]), split="train", truth="few-shot")
    assert [a.id for a in annotations_of(source)] == [1]


def test_area_that_is_no_finite_number_counts_as_not_stated(coco_folder: Callable[..., Path]) -> None:
    good = {"image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}
    areas = [81, 10**400, "81", None, -1]
    source = open_data("coco", coco_folder([{**good, "area": area} for area in areas]), split="train", truth="few-shot")
    assert [a.area for a in annotations_of(source)] == [81.0, None, None, None, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "must hold a list 'images', got no such table"),
        (lambda c: c["images"].append(c["images"][0]), "image ids must be unique, got 1 twice"),
        (lambda c: c["categories"].append({"id": 4, "name": "x"}), "category ids must be unique, got 4 twice"),
        (
            lambda c: c["images"][1].pop("width"),
            r"images\[1\] must have a field 'width', got only id, file_name, height",
        ),
        (lambda c: c["images"][0].update(height=0), "width and height must be positive integers, got 60 x 0"),
        (lambda c: c["annotations"][0].pop("category_id"), r"annotations\[0\] must have a field 'category_id'"),
        (lambda c: c["annotations"].append(5), r"annotations\[1\] must be an object, got int"),
    ],
)
def test_broken_coco_structure_is_an_error_that_says_where(
    coco_folder: Callable[..., Path], change: Callable[[dict], None], message: str
) -> None:
    root = coco_folder([{"image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}])
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=rf"instances_train2017\.json.*{message}"):
        open_data("coco", root, split="train", truth="few-shot")


def test_coco_json_cut_anywhere_is_an_error(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder([{"image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}])
    file = root / "annotations" / "instances_train2017.json"
    whole = file.read_text()
    for kept in (0, 1, len(whole) // 2, len(whole) - 1):
        file.write_text(whole[:kept])
        with pytest.raises(AnnotationError, match="must be complete JSON"):
            open_data("coco", root, split="train", truth="few-shot")


def test_coco_duplicate_annotation_id_is_warned_of(coco_folder: Callable[..., Path]) -> None:
    one = {"id": 7, "image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}
    with pytest.warns(DataWarning, match="annotation id 7 occurs more than once"):
        open_data("coco", coco_folder([one, one]), split="train", truth="few-shot")


def test_coco_image_of_another_size_than_its_annotations_is_an_error(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder([])
    Image.fromarray(np.zeros((60, 40, 3), np.uint8)).save(root / "train2017" / "000000000001.jpg")
    with pytest.raises(ImageFileError, match=r"000000000001\.jpg.*60 x 40, got 40 x 60"):
        open_data("coco", root, split="train", truth="few-shot").image("000000000001.jpg")


def test_coco_polygon_parts_outside_the_image_are_left_out_of_a_good_object(coco_folder: Callable[..., Path]) -> None:
    parts = [square(10, 10, 5), square(100, 100, 5), square(30, 10, 5)]
    root = coco_folder([{"image_id": 1, "category_id": 1, "segmentation": parts}])
    source = open_data("coco", root, split="train", truth="few-shot")
    assert source.areas()[source.names[0]] == {1: 50}


def test_coco_without_a_root_needs_annotations_and_images(
    coco_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = coco_folder([{"image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}], split="train")
    monkeypatch.chdir(root)  # where a folder called train must not be taken without being asked for
    annotations = "annotations/instances_train.json"
    with pytest.raises(ValueError, match="root must be a folder unless annotations and images are given, got None"):
        COCOSource(None, annotations=annotations)
    with pytest.raises(ValueError, match="root must be a folder for layout coco, got None"):
        open_data("coco", annotations=annotations, truth="few-shot")
    assert len(open_data("coco", annotations=annotations, images="train", truth="few-shot").names) == 3


def test_coco_image_that_is_listed_twice_is_drawn_once(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder([{"image_id": i, "category_id": 1, "segmentation": [square(0, 0, 9)]} for i in (1, 2)])
    file = root / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text().replace("000000000002.jpg", "000000000001.jpg"))
    with pytest.warns(DataWarning, match=r"images 1 and 2 share the file 000000000001\.jpg"):
        source = open_data("coco", root, split="train", truth="few-shot")
    assert source.images_of_annotations(1) == ["000000000001.jpg"]


def test_coco_two_years_need_an_explicit_split(coco_folder: Callable[..., Path]) -> None:
    coco_folder([], split="train2014")
    root = coco_folder([], split="train2017")
    with pytest.raises(AnnotationError, match=r"got 'train' .fits train2014, train2017"):
        open_data("coco", root, split="train", truth="few-shot")
    assert open_data("coco", root, split="train2014", truth="few-shot").split == "train2014"
