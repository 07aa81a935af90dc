"""Readers of the five layouts."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fssops.data import class_index, coco_json, fewshot
from fssops.data.coco import draw
from fssops.data.errors import AnnotationError, DataError, DataWarning, ImageFileError, MaskSizeError, MaskValueError


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def square(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


# VOC


def test_voc_lists_images_of_a_class_in_the_order_of_the_list(voc_folder: Path) -> None:
    source = fewshot.open_source("voc", voc_folder, split="train")
    assert source.classes[1] == "aeroplane"
    assert len(source.classes) == 20
    assert source.images_of(1) == ["im00", "im03", "im06"]
    assert source.images_of(7) == ["im00"]
    assert source.images_of(7, min_area=5) == []
    assert source.images_of(1, min_area=400) == ["im00", "im03", "im06"]
    assert source.images_of(1, min_area=401) == []
    assert source.images_of(1, avoid=[7]) == ["im03", "im06"]
    assert source.classes_of("im00") == [1, 7]


def test_voc_label_map_keeps_asked_classes_and_ignored_pixels(voc_folder: Path) -> None:
    source = fewshot.open_source("voc", voc_folder, split="train")
    full, one = source.label_map("im00"), source.label_map("im00", [7])
    assert full.dtype == np.uint8
    assert sorted(np.unique(full)) == [0, 1, 7, 255]
    assert sorted(np.unique(one)) == [0, 7, 255]
    assert ((one == 255) == (full == 255)).all()
    assert source.image("im00").size == (60, 40)


def test_voc_root_may_be_given_one_or_two_levels_up(voc_folder: Path) -> None:
    assert fewshot.open_source("voc", voc_folder.parent, split="val").names == ["im09", "im10", "im11"]


def test_voc_split_without_a_list_names_those_there_are(voc_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"trainaug\.txt.*got 'trainaug' \(there are: train, val\)"):
        fewshot.open_source("voc", voc_folder, split="trainaug")


def test_voc_augmented_labels_are_taken_for_augmented_splits_only(voc_folder: Path) -> None:
    label = np.full((40, 60), 9)
    save(voc_folder / "SegmentationClassAug" / "im00.png", label)
    (voc_folder / "ImageSets/Segmentation/trainaug.txt").write_text("im00\n")
    augmented = fewshot.open_source("voc", voc_folder, split="trainaug")
    assert augmented.classes_of("im00") == [9]
    assert fewshot.open_source("voc", voc_folder, split="train").classes_of("im00") == [1, 7]
    assert fewshot.open_source("voc", voc_folder, split="trainaug", labels="SegmentationClass").classes_of("im00") == [
        1,
        7,
    ]


def test_voc_list_of_two_columns_names_image_and_label_files(voc_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.txt"
    file.write_text(
        "/JPEGImages/im01.jpg /SegmentationClass/im01.png\nJPEGImages/im02.jpg SegmentationClass/im02.png\n"
    )
    source = fewshot.open_source("voc", voc_folder, list_file=file)
    assert source.names == ["im01", "im02"]
    assert source.images_of(2) == ["im01"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [("", "at least one image"), ("a\nb\na\n", "'a' in lines 1 and 3"), ("a b c\n", "line 1 must hold a name")],
)
def test_broken_list_file_is_an_error_with_the_line(voc_folder: Path, text: str, rule: str) -> None:
    (voc_folder / "ImageSets/Segmentation/odd.txt").write_text(text)
    with pytest.raises(AnnotationError, match=rf"odd\.txt.*{rule}"):
        fewshot.open_source("voc", voc_folder, split="odd")


def test_voc_mask_faults_surface_before_an_episode_is_drawn(voc_folder: Path) -> None:
    save(voc_folder / "SegmentationClass" / "im04.png", np.full((40, 60), 37))
    with pytest.raises(MaskValueError, match=r"im04\.png.*got 37 \(2400 px\)"):
        fewshot.open_source("voc", voc_folder).areas()
    with pytest.warns(DataWarning):
        assert fewshot.open_source("voc", voc_folder, unknown="ignore").classes_of("im04") == []
    save(voc_folder / "SegmentationClass" / "im04.png", np.zeros((40, 61)))
    with pytest.raises(MaskSizeError, match=r"60 x 40, got 61 x 40"):
        fewshot.open_source("voc", voc_folder).areas()


def test_voc_instances_come_from_segmentation_object_else_from_components(voc_folder: Path) -> None:
    label = np.zeros((40, 60), dtype=np.uint8)
    label[0:10, 0:30] = 1
    label[20:25, 0:5] = 1
    save(voc_folder / "SegmentationClass" / "im00.png", label)
    source = fewshot.open_source("voc", voc_folder)
    assert sorted(np.unique(source.instance_map("im00", 1))) == [0, 1, 2]
    objects = np.zeros((40, 60), dtype=np.uint8)
    objects[0:10, 0:15], objects[0:10, 15:30], objects[20:25, 0:5], objects[30, 30] = 3, 4, 255, 9
    save(voc_folder / "SegmentationObject" / "im00.png", objects)
    instances = source.instance_map("im00", 1)
    assert {int(n): int((instances == n).sum()) for n in np.unique(instances)} == {0: 2100, 3: 150, 4: 150}


def test_voc_stored_scribbles_are_read(voc_folder: Path) -> None:
    source = fewshot.open_source("voc", voc_folder)
    assert source.scribble_map("im00") is None
    strokes = np.full((40, 60), 255)
    strokes[3, :] = 0
    save(voc_folder / "ScribbleAugAuto" / "im00.png", strokes)
    assert (source.scribble_map("im00") == strokes).all()


# COCO


def test_coco_numbers_classes_by_category_order_and_finds_the_year(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder([{"image_id": 1, "category_id": 4, "segmentation": [square(10, 10, 20)]}])
    source = fewshot.open_source("coco", root, split="train")
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
    source = fewshot.open_source("coco", root, split="train")
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
    ignored = fewshot.open_source("coco", root, split="train")
    label = ignored.label_map(ignored.names[0], [1])
    assert (label == 1).sum() == 100
    assert (label == 255).sum() == 400 - 50
    assert ignored.areas()[ignored.names[0]] == {1: 100}
    assert (ignored.label_map(ignored.names[0], [2]) == 0).all()
    part = fewshot.open_source("coco", root, split="train", crowd="object")
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
        ({"size": [40, 60], "counts": [1.5, 2]}, "neither a string nor integers"),
    ],
)
def test_unusable_segmentation_is_refused_before_pycocotools(segmentation: object, reason: str) -> None:
    import re

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
        fewshot.open_source("coco", root, split="train")


def test_coco_json_cut_anywhere_is_an_error(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder([{"image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}])
    file = root / "annotations" / "instances_train2017.json"
    whole = file.read_text()
    for kept in (0, 1, len(whole) // 2, len(whole) - 1):
        file.write_text(whole[:kept])
        with pytest.raises(AnnotationError, match="must be complete JSON"):
            fewshot.open_source("coco", root, split="train")


def test_coco_duplicate_annotation_id_is_warned_of(coco_folder: Callable[..., Path]) -> None:
    one = {"id": 7, "image_id": 1, "category_id": 1, "segmentation": [square(0, 0, 9)]}
    with pytest.warns(DataWarning, match="annotation id 7 occurs more than once"):
        fewshot.open_source("coco", coco_folder([one, one]), split="train")


def test_coco_image_of_another_size_than_its_annotations_is_an_error(coco_folder: Callable[..., Path]) -> None:
    root = coco_folder([])
    save(root / "train2017" / "000000000001.jpg", np.zeros((60, 40, 3)))
    with pytest.raises(ImageFileError, match=r"000000000001\.jpg.*60 x 40, got 40 x 60"):
        fewshot.open_source("coco", root, split="train").image("000000000001.jpg")


def test_coco_polygon_parts_outside_the_image_are_left_out_of_a_good_object(coco_folder: Callable[..., Path]) -> None:
    parts = [square(10, 10, 5), square(100, 100, 5), square(30, 10, 5)]
    root = coco_folder([{"image_id": 1, "category_id": 1, "segmentation": parts}])
    source = fewshot.open_source("coco", root, split="train")
    assert source.areas()[source.names[0]] == {1: 50}


def test_coco_two_years_need_an_explicit_split(coco_folder: Callable[..., Path]) -> None:
    coco_folder([], split="train2014")
    root = coco_folder([], split="train2017")
    with pytest.raises(AnnotationError, match=r"got 'train' .fits train2014, train2017"):
        fewshot.open_source("coco", root, split="train")
    assert fewshot.open_source("coco", root, split="train2014").split == "train2014"


# FSS-1000 and folders


def test_fss1000_ids_follow_all_folders_and_never_equal_255(tmp_path: Path) -> None:
    for name in ("zebra", "ant", "bee"):
        for i in range(1, 11):
            save(tmp_path / name / f"{i}.jpg", np.zeros((20, 20, 3)))
            smooth = np.zeros((20, 20, 3))
            smooth[5:10, 5:10], smooth[10, 5:10], smooth[11, 5:10] = 255, 128, 127
            save(tmp_path / name / f"{i}.png", smooth)
    (tmp_path / "test.txt").write_text("zebra\nbee\n")
    every = fewshot.open_source("fss1000", tmp_path)
    assert every.classes == {1001: "ant", 1002: "bee", 1003: "zebra"}
    assert every.images_of(1001) == [f"ant/{i}.jpg" for i in range(1, 11)]
    assert (every.label_map("bee/1.jpg") == 1002).sum() == 30
    test = fewshot.open_source("fss1000", tmp_path, split="test")
    assert test.classes == {1003: "zebra", 1002: "bee"}
    assert fewshot.guess_format(tmp_path) == "fss1000"
    with pytest.raises(FileNotFoundError, match="split 'val' must have a list of class names"):
        fewshot.open_source("fss1000", tmp_path, split="val")
    (tmp_path / "val.txt").write_text("wasp\n")
    with pytest.raises(AnnotationError, match=r"1 others, e\.g\. 'wasp'"):
        fewshot.open_source("fss1000", tmp_path, split="val")


@pytest.mark.parametrize("form", ["subfolders", "same name", "suffix"])
def test_folder_with_one_sub_folder_a_class(tmp_path: Path, form: str) -> None:
    for number, name in enumerate(("cup", "pen")):
        for i in range(3):
            mask = np.zeros((10, 12))
            mask[: i + 1 + number] = 255
            image = tmp_path / name / ("images" if form == "subfolders" else "") / f"a{i}.jpg"
            suffix = "_mask" if form == "suffix" else ""
            save(image, np.zeros((10, 12, 3)))
            save(tmp_path / name / ("masks" if form == "subfolders" else "") / f"a{i}{suffix}.png", mask)
    source = fewshot.open_source("auto", tmp_path)
    assert source.format == "folder"
    assert source.classes == {1: "cup", 2: "pen"}
    assert source.images_of(2) == ["pen/a0.jpg", "pen/a1.jpg", "pen/a2.jpg"]
    assert source.areas()["pen/a2.jpg"] == {2: 48}


def test_folder_reads_255_as_ignored_where_any_mask_uses_1_for_the_object(tmp_path: Path) -> None:
    for name, values in (("a", [0, 255]), ("b", [1, 255])):
        save(tmp_path / "cup" / f"{name}.jpg", np.zeros((2, 2, 3)))
        save(tmp_path / "cup" / f"{name}.png", np.array([values, values]))
    source = fewshot.open_source("folder", tmp_path)
    assert source.label_map("cup/a.jpg").tolist() == [[0, 255], [0, 255]]
    assert source.label_map("cup/b.jpg").tolist() == [[1, 255], [1, 255]]
    assert source.images_of(1) == ["cup/b.jpg"]
    save(tmp_path / "cup" / "b.png", np.array([[2, 0], [0, 0]]))
    with pytest.raises(MaskValueError, match=r"b\.png.*got 2 \(1 px\)"):
        fewshot.open_source("folder", tmp_path).label_map("cup/b.jpg")


def test_folder_missing_mask_is_named_when_it_is_read(tmp_path: Path) -> None:
    save(tmp_path / "cup" / "images" / "a.jpg", np.zeros((2, 2, 3)))
    (tmp_path / "cup" / "masks").mkdir()
    with pytest.raises(FileNotFoundError, match=r"masks.a\.png: mask must exist"):
        fewshot.open_source("folder", tmp_path).label_map("cup/a.jpg")


def test_folder_of_label_maps_with_a_class_list(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save(tmp_path / "images" / split / "a.jpg", np.zeros((2, 2, 3)))
        save(tmp_path / "labels" / split / "a.png", np.array([[0, 1], [2, 255]]))
    (tmp_path / "classes.json").write_text('{"names": ["background", "cat", "dog"]}')
    source = fewshot.open_source("folder", tmp_path, split="val")
    assert source.classes == {1: "cat", 2: "dog"}
    assert source.label_map("a").tolist() == [[0, 1], [2, 255]]
    # Without a background class every id moves up by one: 0 means background everywhere.
    (tmp_path / "classes.json").write_text('{"classes": [{"id": 0, "name": "sky"}, {"id": 1, "name": "cat"}]}')
    with pytest.raises(MaskValueError, match="class ids 0-1 and 255"):
        fewshot.open_source("folder", tmp_path, split="val").label_map("a")
    save(tmp_path / "labels" / "val" / "a.png", np.array([[0, 1], [1, 255]]))
    shifted = fewshot.open_source("folder", tmp_path, split="val")
    assert shifted.classes == {1: "sky", 2: "cat"}
    assert shifted.label_map("a").tolist() == [[1, 2], [2, 255]]
    with pytest.raises(FileNotFoundError, match=r"got 'test' .there: train, val"):
        fewshot.open_source("folder", tmp_path, split="test")


@pytest.mark.parametrize("text", ["{", '{"a": "cat"}', '{"300": "cat"}', '[{"id": 1}]', "[]", "5"])
def test_broken_class_list_is_an_error(tmp_path: Path, text: str) -> None:
    save(tmp_path / "images" / "a.jpg", np.zeros((2, 2, 3)))
    (tmp_path / "labels").mkdir()
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(AnnotationError, match=r"classes\.json"):
        fewshot.open_source("folder", tmp_path)


def test_folder_that_fits_no_layout_lists_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"JPEGImages \(voc\)"):
        fewshot.open_source("auto", tmp_path)
    with pytest.raises(FileNotFoundError):
        fewshot.open_source("auto", tmp_path / "nowhere")


def test_unknown_format_and_option_name_the_valid_ones(voc_folder: Path) -> None:
    with pytest.raises(ValueError, match="format must be auto, voc, coco, fss1000, folder, generated, got 'ade'"):
        fewshot.open_source("ade", voc_folder)
    with pytest.raises(ValueError, match=r"options of format voc must be split, list_file, .*got 'crowd'"):
        fewshot.open_source("voc", voc_folder, crowd="object")
    with pytest.raises(ValueError, match="root must be a folder for format voc, got None"):
        fewshot.open_source("voc")


# All


def test_unknown_image_or_class_is_an_error(voc_folder: Path) -> None:
    source = fewshot.open_source("voc", voc_folder)
    with pytest.raises(ValueError, match="name must be one of its 9 images, got 'im99'"):
        source.image("im99")
    with pytest.raises(ValueError, match="class_id must be one of the 20 classes, got 21"):
        source.images_of(21)


def test_source_survives_pickling_for_spawned_workers(voc_folder: Path) -> None:
    source = fewshot.open_source("voc", voc_folder)
    source.areas()
    again = pickle.loads(pickle.dumps(source))
    assert again.names == source.names
    assert (again.label_map("im01") == source.label_map("im01")).all()


def test_pixel_counts_are_kept_on_disk_until_a_mask_changes(
    voc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSSOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(class_index, "MIN_IMAGES", 1)
    first = fewshot.open_source("voc", voc_folder).areas()
    (entry,) = (tmp_path / "cache").glob("classes-*.json")
    read = fewshot.open_source("voc", voc_folder)
    monkeypatch.setattr(read, "_areas_of", lambda name: pytest.fail("counted again"))
    assert read.areas() == first
    entry.write_text("{ damaged")
    assert fewshot.open_source("voc", voc_folder).areas() == first
    save(voc_folder / "SegmentationClass" / "im05.png", np.full((40, 60), 12))
    assert fewshot.open_source("voc", voc_folder).classes_of("im05") == [12]


def test_unwritable_cache_costs_time_only(voc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FSSOPS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(class_index, "MIN_IMAGES", 1)
    assert fewshot.open_source("voc", voc_folder).images_of(2)
