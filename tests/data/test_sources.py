"""Readers of VOC, FSS-1000 and plain folders, and what all readers share."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fssops.data import class_index
from fssops.data.errors import (
    AnnotationError,
    DataError,
    DataWarning,
    DuplicateError,
    ImageFileError,
    MaskSizeError,
    MaskValueError,
)
from fssops.data.layouts import open_data, recognise
from fssops.data.layouts.folder import pair_files


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


# VOC


def test_voc_lists_images_of_a_class_in_the_order_of_the_list(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, split="train", truth="few-shot")
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
    source = open_data("voc", voc_folder, split="train", truth="few-shot")
    full, one = source.label_map("im00"), source.label_map("im00", [7])
    assert full.dtype == np.uint8
    assert sorted(np.unique(full)) == [0, 1, 7, 255]
    assert sorted(np.unique(one)) == [0, 7, 255]
    assert ((one == 255) == (full == 255)).all()
    assert source.image("im00").size == (60, 40)


def test_voc_root_may_be_given_one_or_two_levels_up(voc_folder: Path) -> None:
    assert open_data("voc", voc_folder.parent, split="val", truth="few-shot").names == ["im09", "im10", "im11"]


def test_voc_split_without_a_list_names_those_there_are(voc_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"trainaug\.txt.*got 'trainaug' \(there are: train, val\)"):
        open_data("voc", voc_folder, split="trainaug", truth="few-shot")


def test_voc_augmented_labels_are_taken_for_augmented_splits_only(voc_folder: Path) -> None:
    label = np.full((40, 60), 9)
    save(voc_folder / "SegmentationClassAug" / "im00.png", label)
    (voc_folder / "ImageSets/Segmentation/trainaug.txt").write_text("im00\n")
    augmented = open_data("voc", voc_folder, split="trainaug", truth="few-shot")
    assert augmented.classes_of("im00") == [9]
    assert open_data("voc", voc_folder, split="train", truth="few-shot").classes_of("im00") == [1, 7]
    assert open_data("voc", voc_folder, split="trainaug", labels="SegmentationClass", truth="few-shot").classes_of(
        "im00"
    ) == [
        1,
        7,
    ]


def test_voc_list_of_two_columns_names_image_and_label_files(voc_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.txt"
    file.write_text(
        "/JPEGImages/im01.jpg /SegmentationClass/im01.png\nJPEGImages/im02.jpg SegmentationClass/im02.png\n"
    )
    source = open_data("voc", voc_folder, list_file=file, truth="few-shot")
    assert source.names == ["im01", "im02"]
    assert source.images_of(2) == ["im01"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [("", "at least one image"), ("a\nb\na\n", "'a' in lines 1 and 3"), ("a b c\n", "line 1 must hold a name")],
)
def test_broken_list_file_is_an_error_with_the_line(voc_folder: Path, text: str, rule: str) -> None:
    (voc_folder / "ImageSets/Segmentation/odd.txt").write_text(text)
    with pytest.raises(AnnotationError, match=rf"odd\.txt.*{rule}"):
        open_data("voc", voc_folder, split="odd", truth="few-shot")


def test_voc_mask_faults_surface_before_an_episode_is_drawn(voc_folder: Path) -> None:
    save(voc_folder / "SegmentationClass" / "im04.png", np.full((40, 60), 37))
    with pytest.raises(MaskValueError, match=r"im04\.png.*got 37 \(2400 px\)"):
        open_data("voc", voc_folder, truth="few-shot").areas()
    with pytest.warns(DataWarning):
        assert open_data("voc", voc_folder, unknown="ignore", truth="few-shot").classes_of("im04") == []
    save(voc_folder / "SegmentationClass" / "im04.png", np.zeros((40, 61)))
    with pytest.raises(MaskSizeError, match=r"60 x 40, got 61 x 40"):
        open_data("voc", voc_folder, truth="few-shot").areas()


def test_voc_instances_come_from_segmentation_object_else_from_components(voc_folder: Path) -> None:
    label = np.zeros((40, 60), dtype=np.uint8)
    label[0:10, 0:30] = 1
    label[20:25, 0:5] = 1
    save(voc_folder / "SegmentationClass" / "im00.png", label)
    source = open_data("voc", voc_folder, truth="few-shot")
    assert sorted(np.unique(source.instance_map("im00", 1))) == [0, 1, 2]
    objects = np.zeros((40, 60), dtype=np.uint8)
    objects[0:10, 0:15], objects[0:10, 15:30], objects[20:25, 0:5], objects[30, 30] = 3, 4, 255, 9
    save(voc_folder / "SegmentationObject" / "im00.png", objects)
    instances = source.instance_map("im00", 1)
    assert {int(n): int((instances == n).sum()) for n in np.unique(instances)} == {0: 2100, 3: 150, 4: 150}


def test_voc_stored_scribbles_are_read(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, truth="few-shot")
    assert source.scribble_map("im00") is None
    strokes = np.full((40, 60), 255)
    strokes[3, :] = 0
    save(voc_folder / "ScribbleAugAuto" / "im00.png", strokes)
    assert (source.scribble_map("im00") == strokes).all()


# FSS-1000 and folders


def test_fss1000_ids_follow_all_folders_and_never_equal_255(tmp_path: Path) -> None:
    for name in ("zebra", "ant", "bee"):
        for i in range(1, 11):
            save(tmp_path / name / f"{i}.jpg", np.zeros((20, 20, 3)))
            smooth = np.zeros((20, 20, 3))
            smooth[5:10, 5:10], smooth[10, 5:10], smooth[11, 5:10] = 255, 128, 127
            save(tmp_path / name / f"{i}.png", smooth)
    (tmp_path / "test.txt").write_text("zebra\nbee\n")
    every = open_data("fss1000", tmp_path, truth="few-shot")
    assert every.classes == {1001: "ant", 1002: "bee", 1003: "zebra"}
    assert every.images_of(1001) == [f"ant/{i}.jpg" for i in range(1, 11)]
    assert (every.label_map("bee/1.jpg") == 1002).sum() == 30
    test = open_data("fss1000", tmp_path, split="test", truth="few-shot")
    assert test.classes == {1003: "zebra", 1002: "bee"}
    assert recognise(tmp_path, "few-shot") == "fss1000"
    with pytest.raises(FileNotFoundError, match="split 'val' must have a list of class names"):
        open_data("fss1000", tmp_path, split="val", truth="few-shot")
    (tmp_path / "val.txt").write_text("wasp\n")
    with pytest.raises(AnnotationError, match=r"1 others, e\.g\. 'wasp'"):
        open_data("fss1000", tmp_path, split="val", truth="few-shot")


def test_fss1000_refuses_masks_of_zeros_and_ones(tmp_path: Path) -> None:
    """Numbered files look like FSS-1000; read as brightness, such a mask would be empty."""
    for number in (1, 2):
        save(tmp_path / "cup" / f"{number}.jpg", np.zeros((2, 2, 3)))
        save(tmp_path / "cup" / f"{number}.png", np.array([[1, 0], [0, 0]]))
    assert recognise(tmp_path, "few-shot") == "fss1000"
    with pytest.raises(MaskValueError, match=r"1\.png: .*values from 128 .*got 0 and 1; the format folder reads"):
        open_data("auto", tmp_path, truth="few-shot").areas()
    assert open_data("folder", tmp_path, truth="few-shot").images_of(1) == ["cup/1.jpg", "cup/2.jpg"]


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
    source = open_data("auto", tmp_path, truth="few-shot")
    assert source.format == "folder"
    assert source.classes == {1: "cup", 2: "pen"}
    assert source.images_of(2) == ["pen/a0.jpg", "pen/a1.jpg", "pen/a2.jpg"]
    assert source.areas()["pen/a2.jpg"] == {2: 48}


def test_folder_reads_255_as_ignored_where_any_mask_uses_1_for_the_object(tmp_path: Path) -> None:
    for name, values in (("a", [0, 255]), ("b", [1, 255])):
        save(tmp_path / "cup" / f"{name}.jpg", np.zeros((2, 2, 3)))
        save(tmp_path / "cup" / f"{name}.png", np.array([values, values]))
    source = open_data("folder", tmp_path, truth="few-shot")
    assert source.label_map("cup/a.jpg").tolist() == [[0, 255], [0, 255]]
    assert source.label_map("cup/b.jpg").tolist() == [[1, 255], [1, 255]]
    assert source.images_of(1) == ["cup/b.jpg"]
    save(tmp_path / "cup" / "b.png", np.array([[2, 0], [0, 0]]))
    with pytest.raises(MaskValueError, match=r"b\.png.*got 2 \(1 px\)"):
        open_data("folder", tmp_path, truth="few-shot").label_map("cup/b.jpg")


def test_folder_with_an_unreadable_mask_still_reads_the_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / "cup" / f"{name}.jpg", np.zeros((2, 2, 3)))
        save(tmp_path / "cup" / f"{name}.png", np.array([[255, 0], [0, 0]]))
    (tmp_path / "cup" / "b.png").write_bytes(b"")
    source = open_data("folder", tmp_path, truth="few-shot")
    assert source.label_map("cup/a.jpg").tolist() == [[1, 0], [0, 0]]
    with pytest.raises(ImageFileError, match=r"b\.png: mask must not be empty"):
        source.label_map("cup/b.jpg")


def test_folder_of_thousands_of_pairs_is_paired_at_once(tmp_path: Path) -> None:
    """Pairing compares each file with a set, not with every other file."""
    compared = 0

    class Counted(type(tmp_path)):  # type: ignore[misc]
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return bool(super().__eq__(other))

        __hash__ = type(tmp_path).__hash__

    count = 200
    for number in range(count):
        (tmp_path / f"{number}.jpg").touch()
        (tmp_path / f"{number}.png").touch()
    assert len(pair_files(Counted(tmp_path))) == count
    assert compared < 10 * count


def test_folder_missing_mask_is_named_when_it_is_read(tmp_path: Path) -> None:
    save(tmp_path / "cup" / "images" / "a.jpg", np.zeros((2, 2, 3)))
    (tmp_path / "cup" / "masks").mkdir()
    with pytest.raises(FileNotFoundError, match=r"masks.a\.png: mask must exist"):
        open_data("folder", tmp_path, truth="few-shot").label_map("cup/a.jpg")


def test_folder_of_label_maps_with_a_class_list(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save(tmp_path / "images" / split / "a.jpg", np.zeros((2, 2, 3)))
        save(tmp_path / "labels" / split / "a.png", np.array([[0, 1], [2, 255]]))
    (tmp_path / "classes.json").write_text('{"names": ["background", "cat", "dog"]}')
    source = open_data("folder", tmp_path, split="val", truth="few-shot")
    assert source.classes == {1: "cat", 2: "dog"}
    assert source.label_map("a").tolist() == [[0, 1], [2, 255]]
    # Without a background class every id moves up by one: 0 means background everywhere.
    (tmp_path / "classes.json").write_text('{"classes": [{"id": 0, "name": "sky"}, {"id": 1, "name": "cat"}]}')
    with pytest.raises(MaskValueError, match="class ids 0-1 and 255"):
        open_data("folder", tmp_path, split="val", truth="few-shot").label_map("a")
    save(tmp_path / "labels" / "val" / "a.png", np.array([[0, 1], [1, 255]]))
    shifted = open_data("folder", tmp_path, split="val", truth="few-shot")
    assert shifted.classes == {1: "sky", 2: "cat"}
    assert shifted.label_map("a").tolist() == [[1, 2], [2, 255]]
    with pytest.raises(FileNotFoundError, match=r"got 'test' .there: train, val"):
        open_data("folder", tmp_path, split="test", truth="few-shot")
    # Without a split: train, as of every layout that has splits.
    assert open_data("folder", tmp_path, truth="few-shot").split == "train"
    assert open_data("folder", tmp_path, truth="few-shot").paths("a")[0] == tmp_path / "images" / "train" / "a.jpg"


def test_folder_with_two_images_of_one_name_is_an_error(tmp_path: Path) -> None:
    for suffix in ("jpg", "png"):
        save(tmp_path / "images" / f"a.{suffix}", np.zeros((2, 2, 3)))
    save(tmp_path / "labels" / "a.png", np.zeros((2, 2)))
    (tmp_path / "classes.json").write_text('["background", "cat"]')
    with pytest.raises(DuplicateError, match=r"a\.png: images must differ in name, got also a\.jpg"):
        open_data("folder", tmp_path, truth="few-shot")


@pytest.mark.parametrize("text", ["{", '{"a": "cat"}', '{"300": "cat"}', '[{"id": 1}]', "[]", "5"])
def test_broken_class_list_is_an_error(tmp_path: Path, text: str) -> None:
    save(tmp_path / "images" / "a.jpg", np.zeros((2, 2, 3)))
    (tmp_path / "labels").mkdir()
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(AnnotationError, match=r"classes\.json"):
        open_data("folder", tmp_path, truth="few-shot")


def test_folder_that_fits_no_layout_lists_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"JPEGImages \(voc\)"):
        open_data("auto", tmp_path, truth="few-shot")
    with pytest.raises(FileNotFoundError):
        open_data("auto", tmp_path / "nowhere", truth="few-shot")


def test_unknown_format_and_option_name_the_valid_ones(voc_folder: Path) -> None:
    with pytest.raises(ValueError, match="format must be auto, voc, coco, fss1000, folder, generated, got 'ade'"):
        open_data("ade", voc_folder, truth="few-shot")
    with pytest.raises(ValueError, match=r"options of format voc must be split, list_file, .*got 'crowd'"):
        open_data("voc", voc_folder, crowd="object", truth="few-shot")
    with pytest.raises(ValueError, match="root must be a folder for format voc, got None"):
        open_data("voc", truth="few-shot")


# All


def test_unknown_image_or_class_is_an_error(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, truth="few-shot")
    with pytest.raises(ValueError, match="name must be one of its 9 images, got 'im99'"):
        source.image("im99")
    with pytest.raises(ValueError, match="class_id must be one of the 20 classes, got 21"):
        source.images_of(21)


def test_source_survives_pickling_for_spawned_workers(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, truth="few-shot")
    source.areas()
    again = pickle.loads(pickle.dumps(source))
    assert again.names == source.names
    assert (again.label_map("im01") == source.label_map("im01")).all()


def test_pixel_counts_are_kept_on_disk_until_a_mask_changes(
    voc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSSOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(class_index, "MIN_IMAGES", 1)
    first = open_data("voc", voc_folder, truth="few-shot").areas()
    (entry,) = (tmp_path / "cache").glob("classes-*.json")
    read = open_data("voc", voc_folder, truth="few-shot")
    monkeypatch.setattr(read, "_areas_of", lambda name: pytest.fail("counted again"))
    assert read.areas() == first
    entry.write_text("{ damaged")
    assert open_data("voc", voc_folder, truth="few-shot").areas() == first
    save(voc_folder / "SegmentationClass" / "im05.png", np.full((40, 60), 12))
    assert open_data("voc", voc_folder, truth="few-shot").classes_of("im05") == [12]


def test_pixel_counts_of_another_class_list_are_not_taken(
    voc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSSOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(class_index, "MIN_IMAGES", 1)
    for number in (1, 2):
        source = fewshot.VOCSource(voc_folder, classes={number: "thing"}, unknown="ignore")
        with pytest.warns(DataWarning, match="mapped to 255"):
            found = source.images_of(number)
        assert found == [f"im{i:02d}" for i in range(number - 1, 9, 3)]


def test_unwritable_cache_costs_time_only(voc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FSSOPS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(class_index, "MIN_IMAGES", 1)
    assert open_data("voc", voc_folder, truth="few-shot").images_of(2)
