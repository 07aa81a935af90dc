"""YOLO segmentation: data.yaml of every tool, polygons, and mistakes by file and line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from example_folders import H, W, labelme, picture, save, yolo, yolo_of_label_studio

from fssops.data.check import check_data
from fssops.data.errors import AnnotationError, DataError, DuplicateError
from fssops.data.layouts import LAYOUTS, open_data


def labels(root: Path, text: str) -> Path:
    yolo(root)
    (root / "labels" / "train" / "a.txt").write_text(text)
    return root


def test_a_polygon_covers_its_share_of_the_image_and_has_its_class(tmp_path: Path) -> None:
    labels(tmp_path, "\n1 0.2 0.25 0.5 0.25 0.5 0.75 0.2 0.75\n0 0 0 1 0 1 0.1 0 0.1\n")
    source = open_data("auto", tmp_path, truth="instance")
    assert (source.classes.names, source.classes.things, source.names) == (
        ["cat", "dog"],
        (0, 1),
        ["images/train/a.jpg"],
    )
    first, second = source.truth("images/train/a.jpg").objects or ()
    expected = np.zeros((H, W), dtype=bool)
    expected[H // 4 : 3 * H // 4, 6:15] = True
    assert (first.mask(H, W) == expected).all()
    assert (first.label, second.label) == (1, 0)
    label_map = open_data("yolo", tmp_path, truth="semantic").truth("images/train/a.jpg").semantic()
    assert (label_map[expected] == 2).all()
    assert (label_map[0] == 1).all()
    assert label_map[-1, -1] == 0
    few_shot = open_data("yolo", tmp_path, truth="few-shot")
    assert few_shot.classes == {1: "cat", 2: "dog"}
    assert few_shot.areas()["images/train/a.jpg"] == {1: 60, 2: 90}


@pytest.mark.parametrize(
    "text",
    [
        "path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n",
        "path: ../datasets/mine\ntrain: ./images/train\nval: images/val\nnames: {0: cat, 1: dog}\nnc: 2\n",
        "train: ../images/train\nval: ['images/val']\nnc: 2\nnames:\n- cat\n- dog\n",
        "train: train.txt\nval: val.txt\nnames: {1: dog, 0: cat}\n",
    ],
)
def test_splits_and_names_of_every_form_of_data_yaml(tmp_path: Path, text: str) -> None:
    yolo(tmp_path)
    save(tmp_path / "images" / "val" / "b.png", picture(1))
    for split, name in (("train", "a.jpg"), ("val", "b.png")):
        (tmp_path / f"{split}.txt").write_text(f"./images/{split}/{name}\n\n")
    (tmp_path / "data.yaml").write_text(text)
    assert LAYOUTS["yolo"].splits(tmp_path) == ["train", "val"]
    source = open_data("auto", tmp_path, split="val", truth="instance")
    assert (source.names, source.classes.names) == (["images/val/b.png"], ["cat", "dog"])
    assert open_data("auto", tmp_path, truth="instance").names == ["images/train/a.jpg"]


def test_class_numbers_may_have_gaps_and_only_those_listed_are_classes(tmp_path: Path) -> None:
    labels(tmp_path, "7 0 0 1 0 1 1\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: {3: cat, 7: yes}\n")
    source = open_data("yolo", tmp_path, truth="instance")
    assert source.classes.names == ["cat", "True"]  # YAML 1.1 reads yes so, as it does for Ultralytics
    assert [entry.label for entry in source.truth(source.names[0]).objects or ()] == [1]
    (tmp_path / "labels" / "train" / "a.txt").write_text("4 0 0 1 0 1 1\n")
    with pytest.raises(AnnotationError, match=r"a\.txt: line 1: class must be one of data\.yaml, 3 to 7, got 4"):
        source.truth(source.names[0])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2 0 0 1 0 1 1", r"class must be one of data\.yaml, 0 to 1, got 2"),
        ("-1 0 0 1 0 1 1", "class must be one of"),
        ("0.5 0 0 1 0 1 1", "class must be one of"),
        ("nan 0 0 1 0 1 1", "class must be one of"),
        ("0 0.5 0.5 0.2 0.2", r"polygon of at least 3 points, got a box \(labels for detection\); boxes=ignore"),
        ("0 0 0 1 0 1 1 0.5", "x and y of at least 3 points, got 8 numbers"),
        ("0 0 0 1 0", "got a box"),
        ("0 0 0 1", "x and y of at least 3 points, got 4 numbers"),
        ("0 0 0 x 0 1 1", "must be a class and numbers, got '0 0 0 x 0 1 1'"),
        ("0 10 10 600 10 300 400", r"shares of the image's size, from 0 to 1, got 10 \(are they pixels\?\)"),
        ("0 0 0 1 0 1 1.02", r"from 0 to 1, got 1\.02$"),
        ("0 0 0 1 0 1 inf", "from 0 to 1, got inf"),
    ],
)
def test_a_wrong_line_is_refused_with_file_and_line(tmp_path: Path, line: str, told: str) -> None:
    labels(tmp_path, f"0 0 0 1 0 1 1\n{line}\n")
    source = open_data("yolo", tmp_path, truth="instance")
    with pytest.raises(AnnotationError, match=rf"a\.txt: line 2.*{told}"):
        source.truth(source.names[0])
    assert check_data("yolo", tmp_path, truth="instance").counts()["unreadable_mask"] == 1


def test_boxes_are_left_out_only_where_it_is_asked_for(tmp_path: Path) -> None:
    labels(tmp_path, "0 0.5 0.5 0.2 0.2\n1 0 0 1 0 1 1\n")
    source = open_data("yolo", tmp_path, truth="instance", boxes="ignore")
    assert [entry.label for entry in source.truth(source.names[0]).objects or ()] == [1]
    with pytest.raises(ValueError, match="boxes must be error or ignore, got 'draw'"):
        open_data("yolo", tmp_path, truth="instance", boxes="draw")


def test_images_without_labels_have_no_object_and_files_that_pair_with_nothing_are_told(tmp_path: Path) -> None:
    labels(tmp_path, "")
    save(tmp_path / "images" / "train" / "b.jpg", picture(1))
    (tmp_path / "labels" / "train" / "c.txt").write_text("0 0 0 1 0 1 1\n")
    source = open_data("yolo", tmp_path, truth="instance")
    assert [source.truth(name).objects for name in source.names] == [[], []]
    assert [text.split(": ", 1)[1] for text in source.left_out()] == [
        "1 left out (no image of their name), e.g. c.txt",
        "1 images without a label file have no object, e.g. b.jpg",
    ]


def test_label_studio_names_classes_in_a_file_of_their_own(tmp_path: Path) -> None:
    yolo_of_label_studio(tmp_path)
    source = open_data("auto", tmp_path, truth="instance")
    assert (source.split, source.names, source.classes.names) == ("all", ["images/a.jpg"], ["cat", "dog"])
    assert len(source.truth("images/a.jpg").objects or ()) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train: images/train\nnames: [cat\n", r"data\.yaml: data\.yaml must be YAML, got"),
        ("- names:\n- train:\n", r"data\.yaml must say names, train and val, got no file"),
        ("train: images/train\nnames: cat\n", "names must be a list, or map numbers to names, got 'cat'"),
        ("train: images/train\nnc: 3\nnames: [cat, dog]\n", "nc must be the number of names, 2, got 3"),
        ("train: images/train\nnames: {a: cat}\n", "must have an integer id"),
        ("train: nowhere\nnames: [cat]\n", "train must be a folder of images below .*, got 'nowhere'"),
        ("train: /etc\nnames: [cat]\n", "train must be a folder of images below"),
        ("train: images/../../..\nnames: [cat]\n", "train must be a folder of images below"),
        ("val: images/train\nnames: [cat]\n", r"train must name a folder of images, got None \(splits there: val\)"),
        ("train: labels\nnames: [cat]\n", "train must hold at least one image, got none"),
        ("train: [images/train, images]\nnames: [cat]\n", "train must name every image once, got images/train/a.jpg"),
        ("train: list.txt\nnames: [cat]\n", r"list\.txt: line 2 must name an image below"),
    ],
)
def test_a_broken_data_yaml_is_refused(tmp_path: Path, text: str, told: str) -> None:
    yolo(tmp_path)
    (tmp_path / "list.txt").write_text("images/train/a.jpg\n../../secret.jpg\n")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises((DataError, FileNotFoundError, DuplicateError), match=told):
        open_data("yolo", tmp_path, split="train", truth="instance")


def test_files_of_two_tools_in_one_folder_are_not_guessed(tmp_path: Path) -> None:
    yolo(tmp_path)
    labelme(tmp_path)
    with pytest.raises(DataError, match=r"must hold data of one layout, got several \(labelme: .*yolo: .*--format"):
        open_data("auto", tmp_path, truth="instance")
    assert len(open_data("yolo", tmp_path, truth="instance").names) == 1
