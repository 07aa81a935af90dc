"""A folder of one's own: class folders, and label maps read as few-shot classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fssops.data.errors import (
    AnnotationError,
    DuplicateError,
    ImageFileError,
    MaskValueError,
)
from fssops.data.layouts import open_data
from fssops.data.layouts.folder import pair_files


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


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
    with pytest.raises(MaskValueError, match=r"b\.png.*got also 2; say object=2"):
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
    assert len(pair_files(Counted(tmp_path))[0]) == count
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
    assert (
        open_data("folder", tmp_path, truth="few-shot").images.paths("a")[0] == tmp_path / "images" / "train" / "a.jpg"
    )


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


def test_images_of_a_class_come_in_the_order_of_their_numbers_and_classes_by_the_alphabet(tmp_path: Path) -> None:
    for name in ("c10", "c2"):
        for number in (1, 2, 10):
            save(tmp_path / name / f"{number}.jpg", np.zeros((4, 4, 3)))
            save(tmp_path / name / f"{number}_mask.png", np.eye(4) * 255)
    source = open_data("folder", tmp_path, truth="few-shot")
    assert source.classes == {1: "c10", 2: "c2"}
    assert source.names[:3] == ["c10/1.jpg", "c10/2.jpg", "c10/10.jpg"]


def test_images_below_those_of_a_class_are_part_of_it(tmp_path: Path) -> None:
    for place in ("a", "more/a"):
        save(tmp_path / "cup" / "images" / f"{place}.jpg", np.zeros((4, 4, 3)))
        save(tmp_path / "cup" / "masks" / f"{place}_mask.png", np.eye(4) * 255)
        save(tmp_path / "pen" / f"{place}.jpg", np.zeros((4, 4, 3)))
        save(tmp_path / "pen" / f"{place}_mask.png", np.eye(4) * 255)
    save(tmp_path / "pictures" / "deep" / "a.jpg", np.zeros((4, 4, 3)))  # no image on top: no class
    source = open_data("folder", tmp_path, truth="few-shot")
    assert source.names == ["cup/a.jpg", "cup/more/a.jpg", "pen/a.jpg", "pen/more/a.jpg"]
    assert {name: dict(areas) for name, areas in source.areas().items()}["pen/more/a.jpg"] == {2: 4}


def test_masks_without_an_image_are_told(tmp_path: Path) -> None:
    save(tmp_path / "cup" / "a.jpg", np.zeros((4, 4, 3)))
    save(tmp_path / "cup" / "a_mask.png", np.eye(4) * 255)
    save(tmp_path / "cup" / "b_mask.png", np.eye(4) * 255)
    left_out = list(open_data("folder", tmp_path, truth="few-shot").images.left_out())
    assert left_out == [f"{tmp_path / 'cup'}: 1 left out (no image of their name), e.g. b_mask"]
