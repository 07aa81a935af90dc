"""PASCAL VOC: lists, label maps, objects and scribbles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from example_folders import colours, halves, training_names, voc_of_cvat
from PIL import Image

from fssops.data.check import check_data
from fssops.data.errors import (
    AnnotationError,
    DataError,
    DataWarning,
    MaskSizeError,
    MaskValueError,
)
from fssops.data.layouts import known_classes, open_data


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


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


def test_voc_semantic_has_21_classes_and_its_own_background(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, truth="semantic")
    assert (len(source.classes), source.classes.names[0], source.classes.background) == (21, "background", 0)
    assert source.classes.things == tuple(range(1, 21))
    label = source.truth("im00").semantic()
    assert sorted(np.unique(label)) == [0, 1, 7, 255]
    assert (label == open_data("voc", voc_folder, truth="few-shot").label_map("im00")).all()
    assert source.classes == known_classes("voc", "semantic")


def test_voc_instances_are_regions_of_segmentation_object_with_the_class_below(voc_folder: Path) -> None:
    objects = np.zeros((40, 60))
    objects[10:30, 5:15], objects[10:30, 15:25], objects[:, 59] = 1, 2, 255
    for number in range(9):
        save(voc_folder / "SegmentationObject" / f"im{number:02d}.png", objects * (number != 1))
    source = open_data("voc", voc_folder, truth="instance")
    assert source.classes.names[0] == "aeroplane"
    assert len(source.classes) == 20
    found = source.truth("im00").instances(source.classes.things)
    assert [(o.id, o.label, int(o.mask(40, 60).sum())) for o in found] == [(1, 0, 200), (2, 0, 200)]
    assert source.truth("im01").objects == []
    assert training_names(source, "instance") == [f"im{number:02d}" for number in range(9) if number != 1]
    save(voc_folder / "SegmentationObject" / "im00.png", np.pad(np.full((1, 1), 3), ((35, 4), (2, 57))))
    with pytest.raises(MaskValueError, match=r"im00\.png: object 3 must lie on a class of the label map"):
        source.truth("im00")
    (voc_folder / "SegmentationObject" / "im02.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"im02\.png: instance map must exist"):
        source.truth("im02")


def test_voc_split_that_contains_another_is_looked_at_once(voc_folder: Path) -> None:
    lists = voc_folder / "ImageSets" / "Segmentation"
    (lists / "trainval.txt").write_text((lists / "train.txt").read_text() + (lists / "val.txt").read_text())
    seen: list[tuple[int, int]] = []
    check_data("voc", voc_folder, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 12) for number in range(1, 13)]


def test_voc_of_cvat_has_the_classes_and_colours_of_its_label_map(tmp_path: Path) -> None:
    voc_of_cvat(tmp_path)
    semantic = open_data("auto", tmp_path, truth="semantic")
    assert (semantic.classes.names, semantic.classes.things) == (["background", "bolt"], (1,))
    assert (semantic.truth("a").semantic() == halves(0, 1)).all()
    assert semantic.image("a").size == (30, 20), "the image is a PNG"
    save(tmp_path / "SegmentationObject" / "a.png", colours((0, 128, 0), (128, 0, 0)))
    save(tmp_path / "SegmentationClass" / "a.png", colours((250, 50, 83), (250, 50, 83)))
    instances = open_data("auto", tmp_path, truth="instance")
    assert instances.classes.names == ["bolt"]
    found = instances.truth("a").objects or ()
    assert [(entry.label, int(entry.mask(20, 30).sum())) for entry in found] == [(0, 300), (0, 300)]
    assert sorted(np.unique(open_data("auto", tmp_path, truth="few-shot").instance_map("a", 1)))[0] > 0
    save(tmp_path / "SegmentationClass" / "a.png", colours((250, 50, 84), (0, 0, 0)))
    with pytest.raises(MaskValueError, match=r"a\.png: label map must hold only the 2 colours .*got 250,50,84"):
        semantic.truth("a")


def test_jpeg_images_without_label_maps_are_not_voc(tmp_path: Path) -> None:
    save(tmp_path / "JPEGImages" / "a.jpg", np.zeros((4, 4, 3)))
    with pytest.raises(DataError, match="voc: no SegmentationClass beside JPEGImages"):
        open_data("auto", tmp_path, truth="semantic")
