"""COCO panoptic: PNGs against JSON, and objects of an instances file beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_folders import training_names
from PIL import Image

from fssops.data.errors import AnnotationError, DataError, DataWarning
from fssops.data.layouts import open_data
from fssops.data.panoptic_json import decode_ids, encode_ids
from fssops.data.source import ImageSource

H, W = 20, 30


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


def panoptic_folder(root: Path, ids: np.ndarray, segments: list[dict[str, Any]], **image: Any) -> Path:
    save(root / "val2017" / "a.jpg", picture())
    save(root / "annotations" / "panoptic_val2017" / "a.png", encode_ids(ids))
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": H, "width": W, **image}],
        "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": segments}],
        "categories": [
            {"id": 90, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
            {"id": 5, "name": "cat", "isthing": 1},
        ],
    }
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(content))
    return root


def halves(left: int, right: int) -> np.ndarray:
    values = np.full((H, W), right, dtype=np.int32)
    values[:, : W // 2] = left
    return values


SEGMENTS = [{"id": 300, "category_id": 5, "iscrowd": 0}, {"id": 70000, "category_id": 90, "iscrowd": 0}]


def test_panoptic_truth_gives_all_three_forms(tmp_path: Path) -> None:
    segments = [*SEGMENTS, {"id": 44, "category_id": 5, "iscrowd": 1}]
    ids = halves(300, 70000)
    ids[:3] = 0
    ids[-2:] = 44
    source = open_data("auto", panoptic_folder(tmp_path, ids, segments), split="val", truth="panoptic")
    assert (source.format, source.split, source.image_id("a.jpg")) == ("coco_panoptic", "val2017", 7)
    assert source.classes.names == ["cat", "sky"]
    assert source.classes.things == (0,)
    truth = source.truth("a.jpg")
    assert truth.segment_ids is not None
    assert np.array_equal(truth.segment_ids, ids)
    label = truth.semantic()
    assert (label[0, 0], label[5, 0], label[5, -1], label[-1, -1]) == (255, 0, 1, 0)
    objects = truth.instances(source.classes.things)
    assert [(o.id, o.label, o.crowd) for o in objects] == [(300, 0, False), (44, 0, True)]
    assert objects[1].mask(H, W).sum() == 2 * W


def test_ids_and_pixels_are_inverse() -> None:
    ids = np.array([[0, 255, 256], [70000, (1 << 24) - 1, 65536]], dtype=np.int32)
    assert np.array_equal(decode_ids(encode_ids(ids)), ids)


@pytest.mark.parametrize(
    ("left", "segments", "image", "told"),
    [
        (301, SEGMENTS, {}, r"must hold only ids of segments_info, got 301 \(301: 300 px\)"),
        (70000, SEGMENTS, {}, "must have a pixel in the panoptic map, got none of 300"),
        (300, SEGMENTS, {"width": 31}, "panoptic map must have the size that the JSON gives, 31 x 20, got 30 x 20"),
        (300, SEGMENTS, {"width": "x"}, "image 7: width and height must be positive integers, got 'x' x 20"),
        (300, SEGMENTS, {"id": [7]}, r"images\[0\] must be an object whose id is a number or a name, got .*\[7\]"),
    ],
)
def test_panoptic_json_and_png_that_disagree(
    tmp_path: Path, left: int, segments: list[dict[str, Any]], image: dict[str, Any], told: str
) -> None:
    root = panoptic_folder(tmp_path, halves(left, 70000), segments, **image)
    with pytest.raises(DataError, match=told):
        open_data("coco_panoptic", root, split="val2017", truth="panoptic").truth("a.jpg")


@pytest.mark.parametrize(
    ("broken", "void", "told"),
    [
        ([{**SEGMENTS[0], "category_id": 6}], 300, "category_id must be one of the 2 categories, got 6"),
        ([{**SEGMENTS[0], "category_id": [5]}], 300, r"category_id must be one of the 2 categories, got \[5\]"),
        ([SEGMENTS[0], {**SEGMENTS[0], "category_id": 90}], 300, "segment ids must be unique, got 300 twice"),
        ([{**SEGMENTS[0], "iscrowd": "no"}], 300, "segment 300: iscrowd must be 0 or 1, got 'no'"),
        ([SEGMENTS[0], {"id": 1 << 24, "category_id": 5}], 0, "segment ids must be integers from 1 to 16777215, got"),
        ([SEGMENTS[0], 7], 0, "segment ids must be integers from 1 to 16777215, got 7"),
    ],
)
def test_a_broken_segment_is_void_and_the_others_are_read(
    tmp_path: Path, broken: list[Any], void: int, told: str
) -> None:
    root = panoptic_folder(tmp_path, halves(300, 70000), [*broken, SEGMENTS[1]])
    with pytest.warns(DataWarning, match=rf"panoptic_val2017.json: image 7: .*{told}.*; its pixels are read as void"):
        source = open_data("coco_panoptic", root, split="val2017", truth="panoptic")
    ids = source.truth("a.jpg").segment_ids
    assert ids is not None
    assert np.unique(ids).tolist() == ([0, 70000] if void else [300, 70000])
    assert [told for kind, told in source.problems() if "read as void" in told]


@pytest.mark.parametrize("form", [float, str])
def test_numbers_in_other_forms_are_the_same_panoptic_truth(tmp_path: Path, form: Any) -> None:
    segments = [{**row, **{key: form(row[key]) for key in ("id", "category_id", "iscrowd")}} for row in SEGMENTS]
    root = panoptic_folder(tmp_path, halves(300, 70000), segments, id=form(7), width=form(W), height=form(H))
    source = open_data("coco_panoptic", root, split="val2017", truth="panoptic")
    truth = source.truth("a.jpg")
    assert [(s.id, s.label, s.crowd) for s in truth.segments] == [(300, 0, False), (70000, 1, False)]
    assert list(source.problems()) == []


def test_image_of_another_size_than_the_json_is_told(tmp_path: Path) -> None:
    root = panoptic_folder(tmp_path, halves(300, 70000), SEGMENTS)
    save(root / "val2017" / "a.jpg", np.zeros((H, W + 2, 3), dtype=np.uint8))
    source = open_data("coco_panoptic", root, split="val2017", truth="panoptic")
    with pytest.raises(DataError, match="image must have the size its annotations are made for, 30 x 20, got 32 x 20"):
        source.image("a.jpg")


def test_instances_file_beside_a_panoptic_one_gives_overlapping_objects(tmp_path: Path) -> None:
    root = panoptic_folder(tmp_path, halves(300, 70000), SEGMENTS)
    annotation = {"id": 1, "image_id": 7, "category_id": 5, "iscrowd": 0, "area": 12.5}
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": H, "width": W}],
        "annotations": [{**annotation, "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]}],
        "categories": [{"id": 5, "name": "cat"}],
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    source = open_data("coco_panoptic", root, split="val2017", instances="auto", truth="panoptic")
    (found,) = source.truth("a.jpg").instances(source.classes.things)
    assert (found.label, found.area, int(found.mask(H, W).sum())) == (0, 12.5, 100)
    assert "instances_val2017.json" in source.label
    content["images"][0]["width"] = W + 1
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    source = open_data("coco_panoptic", root, split="val2017", instances="auto", truth="panoptic")
    with pytest.raises(DataError, match=r"instances_val2017.json: image a.jpg must have the size of its file, 30 x 20"):
        source.truth("a.jpg")


def with_instances(root: Path, rows: list[dict[str, Any]]) -> ImageSource:
    """The panoptic folder with a second image, and the rows of an instances file beside it."""
    path = root / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    save(root / "val2017" / "b.jpg", picture(1))
    save(root / "annotations" / "panoptic_val2017" / "b.png", encode_ids(halves(70000, 70000)))
    images = [*content["images"], {"id": 8, "file_name": "b.jpg", "height": H, "width": W}]
    rows_of_b = [{"image_id": 8, "file_name": "b.png", "segments_info": SEGMENTS[1:]}]
    path.write_text(json.dumps({**content, "images": images, "annotations": content["annotations"] + rows_of_b}))
    beside = {"images": images, "annotations": rows, "categories": [{"id": 5, "name": "cat"}]}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(beside))
    return open_data("coco_panoptic", root, split="val2017", instances="auto", truth="panoptic")


def test_instances_of_panoptic_truth_train_on_images_that_have_some(tmp_path: Path) -> None:
    row = {"id": 1, "category_id": 5, "iscrowd": 0, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}
    objects = with_instances(panoptic_folder(tmp_path, halves(300, 70000), SEGMENTS), [{**row, "image_id": 8}])
    assert training_names(objects, "instance") == ["b.jpg"]
    assert training_names(objects, "panoptic") == ["a.jpg", "b.jpg"]
    segments = open_data("coco_panoptic", tmp_path, split="val2017", truth="panoptic")
    assert training_names(segments, "instance") == ["a.jpg"]


def test_faults_of_the_instances_beside_a_panoptic_file_are_found_by_the_check(tmp_path: Path) -> None:
    from fssops.data.check import check_data

    row = {"id": 1, "image_id": 7, "category_id": 6, "iscrowd": 0, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}
    speck = {**row, "id": 2, "category_id": 5, "segmentation": [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]]}
    with pytest.warns(DataWarning, match="category id 6 not in categories"):
        with_instances(panoptic_folder(tmp_path, halves(300, 70000), SEGMENTS), [row, speck])
    report = check_data("coco_panoptic", tmp_path, splits=["val2017"], instances="auto")
    assert [finding.kind for finding in report.problems()] == ["bad_annotation"]
    notes = [finding.message for finding in report.findings if finding.severity == "note"]
    assert "annotation 2 must cover a pixel of a.jpg, got none; it trains nothing" in notes


def test_few_shot_classes_of_panoptic_truth_are_things_and_stuff_in_order(tmp_path: Path) -> None:
    segments = [*SEGMENTS, {"id": 44, "category_id": 5, "iscrowd": 1}, {"id": 45, "category_id": 5}]
    ids = halves(300, 70000)
    ids[:3], ids[-2:], ids[5, :4] = 0, 44, 45
    root = panoptic_folder(tmp_path, ids, segments)
    source = open_data("coco_panoptic", root, split="val2017", truth="few-shot")
    assert source.classes == {1: "cat", 2: "sky"}
    label = source.label_map("a.jpg")
    # Void, and the crowd, are ignored; of other classes the crowd is background.
    assert [int(label[row, 0]) for row in (0, 5, 8, -1)] == [255, 1, 1, 255]
    assert [int(source.label_map("a.jpg", [2])[row, column]) for row, column in ((8, 0), (8, -1), (-1, 0))] == [0, 2, 0]
    numbers = source.instance_map("a.jpg", 1)
    assert {int(n): int((numbers == n).sum()) for n in (1, 2)} == {1: (H - 5) * W // 2 - 4, 2: 4}
    assert source.areas()["a.jpg"] == {1: (H - 5) * W // 2, 2: (H - 5) * W // 2}
    for crowd, value in (("object", 1), ("background", 0)):
        other = open_data("coco_panoptic", root, split="val2017", truth="few-shot", crowd=crowd)
        assert other.label_map("a.jpg")[-1, 0] == value
        assert other.describe()["crowd"] == crowd
    with pytest.raises(ValueError, match=r"options of layout coco_panoptic must be .* crowd, got 'overlap'"):
        open_data("coco_panoptic", root, truth="few-shot", overlap="later")


def test_label_maps_of_more_than_254_classes_are_refused_where_they_are_made(tmp_path: Path) -> None:
    root = panoptic_folder(tmp_path, halves(300, 70000), SEGMENTS)
    file = root / "annotations" / "panoptic_val2017.json"
    content = json.loads(file.read_text())
    content["categories"] += [{"id": 1000 + i, "name": f"c{i}", "isthing": 1} for i in range(300)]
    content["annotations"][0]["segments_info"][0]["category_id"] = 1299
    file.write_text(json.dumps(content))
    truth = open_data("coco_panoptic", root, split="val2017", truth="panoptic").truth("a.jpg")
    assert truth.segments[0].label == 301
    with pytest.raises(AnnotationError, match="labels of 8 bits must be at most 254, got 301"):
        truth.semantic()
    few_shot = open_data("coco_panoptic", root, split="val2017", truth="few-shot")
    assert sorted(np.unique(few_shot.label_map("a.jpg"))) == [2, 303]
