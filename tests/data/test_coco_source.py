"""The COCO reader: classes, crowds, overlaps, and every way a file can be broken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fssops.data import coco_json
from fssops.data.errors import AnnotationError, DataWarning, ImageFileError
from fssops.data.layouts import open_data
from fssops.run_lengths import draw


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


def test_coco_compressed_rle_is_drawn_like_its_counts() -> None:
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    for density in (0.02, 0.5, 0.97):
        mask = rng.random((37, 53)) < density
        text = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert coco_json.fault({"size": [37, 53], "counts": text}, 53, 37) is None
        assert (draw({"size": [37, 53], "counts": text}, 53, 37) == mask).all()


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "no segmentation"),
        ("x", "neither polygons nor RLE but str"),
        ([[1, 2, 3, 4, 5]], r"odd number of coordinates \(5\)"),
        ([[1, 2, "3", 4, 5, 6]], "coordinates are not numbers"),
        ([[1, 2, float("nan"), 4, 5, 6]], "coordinates are not finite"),
        ([7, 8, 9], "polygon is not a list but int"),
        ([[-9, 1, -5, 1, -5, 8]], "outside the image"),
        ({"size": [9, 9], "counts": [81]}, r"RLE size \[9, 9\] is not that of the image, \[40, 60\]"),
        ({"size": [40, 60], "counts": [10, 10]}, "RLE counts cover 20 pixels, the image has 2400"),
        ({"size": [40, 60], "counts": [2500, -100]}, "RLE counts cover"),
        ({"size": [40, 60], "counts": [2400]}, "zero area"),
        ({"size": [40, 60], "counts": "ab~"}, "not a valid compressed string"),
        ({"size": [40, 60], "counts": "PPPPPPPPPPPPPPPP"}, "not a valid compressed string"),
        ({"size": [40, 60], "counts": "`" * 6 + "0"}, "not a valid compressed string"),
        ({"size": [40, 60], "counts": [1.5, 2]}, "neither a string nor integers"),
    ],
)
def test_unusable_segmentation_is_refused_before_pycocotools(segmentation: object, reason: str) -> None:
    found = coco_json.fault(segmentation, 60, 40)
    assert found is not None
    assert re.search(reason, found), found


def test_damaged_compressed_rle_never_reaches_pycocotools_unchecked() -> None:
    """What passes the check covers exactly the image; the string decoder of pycocotools itself checks nothing."""
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(1)
    text = coco_mask.encode(np.asfortranarray((rng.random((40, 60)) < 0.5).astype(np.uint8)))["counts"].decode()
    passed = 0
    for _ in range(300):
        damaged = list(text)
        for _ in range(int(rng.integers(0, 3))):
            damaged[int(rng.integers(len(damaged)))] = chr(int(rng.integers(40, 120)))
        rle = {"size": [40, 60], "counts": "".join(damaged)}
        if coco_json.fault(rle, 60, 40) is None:
            passed += 1
            assert draw(rle, 60, 40).shape == (40, 60)
    assert 0 < passed < 300


def test_compressed_runs_whose_sum_wraps_around_to_the_picture_are_refused() -> None:
    """64 runs of 2^58 and one of 2400 add up to 2400 modulo 2^64; pycocotools would draw far outside its buffer."""
    runs = [1 << 58] * 64 + [2400]
    text = "".join(map(_count_text, (n - (runs[i - 2] if i > 2 else 0) for i, n in enumerate(runs))))
    assert coco_json.fault({"size": [40, 60], "counts": text}, 60, 40) == "RLE counts are not a valid compressed string"


def _count_text(number: int) -> str:
    """One number in COCO's variant of LEB128."""
    text = ""
    while True:
        low, number = number & 0x1F, number >> 5
        if number == (-1 if low & 0x10 else 0):
            return text + chr(low + 48)
        text += chr((low | 0x20) + 48)


def test_runs_of_the_largest_picture_are_read() -> None:
    side = 1 << 13
    text = "".join(map(_count_text, [0, side * side - 1, 1]))
    assert coco_json.fault({"size": [side, side], "counts": text}, side, side) is None


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
    assert isinstance(source, fewshot.COCOSource)
    assert [a.id for a in source.annotations_of(source.names[0])] == [1]


def test_area_that_is_no_finite_number_counts_as_not_stated(coco_folder: Callable[..., Path]) -> None:
    good = {"image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}
    areas = [81, 10**400, "81", None, -1]
    source = open_data("coco", coco_folder([{**good, "area": area} for area in areas]), split="train", truth="few-shot")
    assert isinstance(source, fewshot.COCOSource)
    assert [a.area for a in source.annotations_of(source.names[0])] == [81.0, None, None, None, None]


def test_a_crossing_outline_of_zero_signed_area_still_counts() -> None:
    bow_tie = [10.0, 10.0, 30.0, 30.0, 30.0, 10.0, 10.0, 30.0]
    assert coco_json.fault([bow_tie], 60, 40) is None
    assert draw([bow_tie], 60, 40).sum() > 100


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
        fewshot.COCOSource(None, annotations=annotations)
    with pytest.raises(ValueError, match="root must be a folder for format coco, got None"):
        open_data("coco", annotations=annotations, truth="few-shot")
    assert len(open_data("coco", annotations=annotations, images="train", truth="few-shot").names) == 3


def test_coco_image_that_is_listed_twice_is_drawn_once(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder([{"image_id": i, "category_id": 1, "segmentation": [square(0, 0, 9)]} for i in (1, 2)])
    file = root / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text().replace("000000000002.jpg", "000000000001.jpg"))
    with pytest.warns(DataWarning, match=r"images 1 and 2 share the file 000000000001\.jpg"):
        source = open_data("coco", root, split="train", truth="few-shot")
    assert isinstance(source, fewshot.COCOSource)
    assert source.images_of_annotations(1) == ["000000000001.jpg"]


def test_coco_two_years_need_an_explicit_split(coco_folder: Callable[..., Path]) -> None:
    coco_folder([], split="train2014")
    root = coco_folder([], split="train2017")
    with pytest.raises(AnnotationError, match=r"got 'train' .fits train2014, train2017"):
        open_data("coco", root, split="train", truth="few-shot")
    assert open_data("coco", root, split="train2014", truth="few-shot").split == "train2014"
