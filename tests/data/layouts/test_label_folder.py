"""Folders of label maps: ids, class files, splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fssops.data.check import check_data
from fssops.data.class_names import read_classes
from fssops.data.errors import AnnotationError, DataError, DataWarning
from fssops.data.layouts import LAYOUTS, open_data
from fssops.truth import Classes

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


def halves(left: int, right: int) -> np.ndarray:
    values = np.full((H, W), right, dtype=np.int32)
    values[:, : W // 2] = left
    return values


def test_label_folder_maps_ids_to_indices_by_ascending_id(tmp_path: Path) -> None:
    classes = {"classes": [{"id": 9, "name": "road", "color": [128, 64, 128]}, {"id": 4, "name": "tree"}]}
    root = label_folder(tmp_path, np.where(halves(9, 4) == 4, 4, halves(9, 255)).astype(np.uint8), classes)
    source = open_data("auto", root, truth="semantic")
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
        ([], "there must be at least one class, got none"),
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
    assert LAYOUTS["label_folder"].splits(root) == ["train"]
    assert open_data("label_folder", root, truth="semantic").names == ["a"]


def test_class_lists_nested_without_end_are_told(tmp_path: Path) -> None:
    root = label_folder(tmp_path, halves(0, 1).astype(np.uint8), [])
    (root / "classes.json").write_text("[" * 100_000)
    with pytest.raises(AnnotationError, match="class list must be JSON text"):
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


def test_classes_of_a_run_come_back_whatever_their_ids(tmp_path: Path) -> None:
    classes = Classes.from_names(["bolt", "nut"], [1], ids=[300, 1001])
    (tmp_path / "classes.json").write_text(json.dumps(classes.as_json()))
    assert read_classes(tmp_path / "classes.json") == classes


def numbered(root: Path, images: str, labels: str, count: int = 11) -> None:
    for number in range(1, count + 1):
        save(root / images / f"{number}.png", picture(number))
        save(root / labels / f"{number}.png", halves(0, 1).astype(np.uint8))
    (root / "classes.json").write_text('["a", "b"]')


def test_images_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    numbered(tmp_path, "images", "masks")
    assert open_data("label_folder", tmp_path, truth="semantic").names == [str(number) for number in range(1, 12)]


@pytest.mark.parametrize("labels", ["labels", "masks", "annotations"])
def test_splits_may_be_folders_of_images_and_labels(tmp_path: Path, labels: str) -> None:
    numbered(tmp_path, "train/images", f"train/{labels}", 3)
    numbered(tmp_path, "val/images", f"val/{labels}", 2)
    assert LAYOUTS["label_folder"].splits(tmp_path) == LAYOUTS["folder"].splits(tmp_path) == ["train", "val"]
    for layout, truth in (("label_folder", "semantic"), ("folder", "few-shot"), ("auto", "few-shot")):
        usual = open_data(layout, tmp_path, truth=truth)  # type: ignore[call-overload]
        assert (usual.split, len(usual.names)) == ("train", 3)
        assert len(open_data(layout, tmp_path, truth=truth, split="val").names) == 2  # type: ignore[call-overload]
    with pytest.raises(FileNotFoundError, match=r"split must hold images and labels, got 'test' \(there: train, val\)"):
        open_data("label_folder", tmp_path, truth="semantic", split="test")


def test_without_class_file_folders_are_splits_only_where_all_are_called_so(tmp_path: Path) -> None:
    for folder in ("train", "val"):
        numbered(tmp_path, f"{folder}/images", f"{folder}/masks", 1)
    (tmp_path / "classes.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"classes\.json: class list must exist, got nothing of that name"):
        open_data("auto", tmp_path, truth="few-shot")
    numbered(tmp_path, "bus/images", "bus/masks", 1)
    (tmp_path / "classes.json").unlink()
    assert open_data("auto", tmp_path, truth="few-shot").classes == {1: "bus", 2: "train", 3: "val"}


def test_images_in_sub_folders_count_where_others_lie_on_top(tmp_path: Path) -> None:
    numbered(tmp_path, "images", "labels", 2)
    numbered(tmp_path, "images/more", "labels/more", 2)
    assert LAYOUTS["label_folder"].splits(tmp_path) == ["all"]
    expected = ["1", "2", "more/1", "more/2"]
    assert open_data("label_folder", tmp_path, truth="semantic").names == expected
    assert open_data("folder", tmp_path, truth="few-shot").names == expected


def test_linked_sub_folders_are_part_of_the_data(tmp_path: Path) -> None:
    numbered(tmp_path / "elsewhere", "images", "labels", 2)
    numbered(tmp_path / "set", "images/a", "labels/a", 1)
    for folder in ("images", "labels"):
        (tmp_path / "set" / folder / "b").symlink_to(tmp_path / "elsewhere" / folder)
    assert open_data("label_folder", tmp_path / "set", truth="semantic", split="all").names == ["a/1", "b/1", "b/2"]


def test_files_that_are_not_read_are_told(tmp_path: Path) -> None:
    numbered(tmp_path, "images", "labels", 2)
    save(tmp_path / "labels" / "3.png", halves(0, 1).astype(np.uint8))
    (tmp_path / "images" / "._1.png").touch()
    source = open_data("label_folder", tmp_path, truth="semantic")
    assert source.names == ["1", "2"]
    assert [text.split(": ", 1)[1] for text in source.left_out()] == [
        "1 left out (hidden), e.g. ._1.png",
        "1 left out (no image of their name), e.g. 3",
    ]
    report = check_data("label_folder", tmp_path)
    assert [finding.kind for finding in report.findings] == ["left_out"] * 2
    assert report.problems() == []


def test_more_classes_than_a_label_map_holds_are_refused_there(tmp_path: Path) -> None:
    root = label_folder(tmp_path, halves(0, 1).astype(np.uint8), [f"c{number}" for number in range(255)])
    with pytest.raises(AnnotationError, match="label maps must be of at most 254 classes, got 255"):
        open_data("label_folder", root, truth="semantic")


def test_few_shot_numbers_are_the_ids_moved_up_where_0_is_a_class(tmp_path: Path) -> None:
    root = label_folder(tmp_path, halves(0, 5).astype(np.uint8), {"0": "sky", "5": "cat"})
    moved = open_data("label_folder", root, truth="few-shot")
    assert moved.classes == {1: "sky", 6: "cat"}
    assert sorted(np.unique(moved.label_map("a"))) == [1, 6]
    (root / "classes.json").write_text('{"5": "cat"}')
    kept = open_data("label_folder", root, truth="few-shot")
    assert kept.classes == {5: "cat"}
    assert sorted(np.unique(kept.label_map("a"))) == [0, 5]
    with pytest.raises(DataError, match="class ids 5 and 255"):
        open_data("label_folder", root, truth="semantic").truth("a")


def binary_folder(root: Path, maps: list[np.ndarray], classes: Any = ("background", "building")) -> Path:
    for number, labels in enumerate(maps):
        save(root / "images" / f"{number}.png", picture(number))
        save(root / "labels" / f"{number}.png", labels.astype(np.uint8))
    (root / "classes.json").write_text(json.dumps(classes))
    return root


@pytest.mark.parametrize("maps", [[halves(0, 255), halves(0, 0)], [halves(0, 0), halves(0, 0), halves(255, 255)]])
@pytest.mark.parametrize("truth", ["semantic", "few-shot"])
def test_255_beside_nothing_but_0_is_the_one_class_that_is_listed(
    tmp_path: Path, maps: list[np.ndarray], truth: Any
) -> None:
    root = binary_folder(tmp_path, maps)
    with pytest.warns(DataWarning, match=r"beside 0, got 0 and 255 alone: 255 is read as 'building'; say ignore=255"):
        source: Any = open_data("label_folder", root, truth=truth)
    read = source.truth if truth == "semantic" else source.label_map
    found = [read(str(number)) for number in range(len(maps))]
    for labels, stored in zip(found, maps, strict=True):
        labels = labels.semantic() if truth == "semantic" else labels
        assert (labels == (stored == 255)).all()
    notes = [f for f in check_data("label_folder", root, truth=truth).findings if f.kind == "read_as"]
    assert [note.severity for note in notes] == ["note"]
    assert source.describe()["white"] == "object" if truth == "few-shot" else source.identity() == {"white": "object"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("other", [np.where(halves(0, 1) == 1, 1, halves(255, 0)), halves(0, 1), halves(1, 1)])
def test_255_is_ignored_where_any_label_map_shows_the_class_or_settings_say_so(
    tmp_path: Path, other: np.ndarray
) -> None:
    root = binary_folder(tmp_path / "shown", [halves(0, 255), other])
    assert set(np.unique(open_data("label_folder", root, truth="semantic").truth("0").semantic())) == {0, 255}
    white = binary_folder(tmp_path / "white", [halves(0, 255)])
    source = open_data("label_folder", white, truth="semantic", ignore=255)
    assert set(np.unique(source.truth("0").semantic())) == {0, 255}
    assert open_data("folder", white, truth="few-shot", ignore=255).label_map("0").max() == 255
    assert not source.identity()


def test_255_beside_nothing_but_0_is_refused_where_it_may_be_several_classes(tmp_path: Path) -> None:
    root = binary_folder(tmp_path, [halves(0, 255)], ("background", "building", "tree"))
    with pytest.raises(DataError, match=r"labels: label maps must show a class of classes\.json beside 0"):
        open_data("label_folder", root, truth="semantic")
    with pytest.raises(ValueError, match="ignore must be 255 or left out, got 0"):
        open_data("label_folder", root, truth="semantic", ignore=0)


def test_settings_of_masks_that_have_no_effect_are_refused(tmp_path: Path) -> None:
    root = binary_folder(tmp_path, [halves(0, 1)])
    with pytest.raises(ValueError, match="object must be left out for label maps, where it says nothing, got 1"):
        open_data("folder", root, truth="few-shot", object=1)
