"""From every layout to every other that can be written: the same images, classes and masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from example_folders import (
    EXAMPLES,
    H,
    W,
    coco,
    coco_json,
    coco_panoptic,
    coco_with_both,
    cvat_by_subset,
    halves,
    label_folder_of_splits,
    picture,
    save,
    splits_without_a_class_file,
)

from fssops import run_lengths
from fssops.data.__main__ import main
from fssops.data.conversion import convert
from fssops.data.errors import DataError
from fssops.data.layouts import LAYOUTS, open_data
from fssops.data.source import ImageSource

Write = Callable[[Path], None]


def of(write: Write, truth: str) -> str:
    return EXAMPLES[write][truth]


def objects(source: ImageSource, name: str) -> list[tuple[str, bool, bytes]]:
    truth = source.truth(name)
    found = truth.instances(source.classes.things)
    return [(source.classes.names[one.label], one.crowd, one.mask(H, W).tobytes()) for one in found]


def first_split(layout: str, root: Path) -> str:
    there = LAYOUTS[layout].splits(root)
    return "train" if "train" in there else there[0]


@pytest.mark.parametrize("write", [w for w in EXAMPLES if "instance" in EXAMPLES[w] and w.__name__ not in ("ade20k",)])
def test_objects_become_coco_and_stay_the_same(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "a")
    layout = of(write, "instance")
    convert(tmp_path / "a", tmp_path / "b", "coco", layout=layout)
    before = open_data(layout, tmp_path / "a", truth="instance", split=first_split(layout, tmp_path / "a"))
    after = open_data("coco", tmp_path / "b", truth="instance", split=before.split)
    assert isinstance(before, ImageSource)
    assert isinstance(after, ImageSource)
    assert objects(after, after.names[0]) == objects(before, before.names[0]) != []
    there, here = (np.asarray(source.image(source.names[0])) for source in (after, before))
    assert (there == here).all()


def test_objects_become_yolo_polygons_that_draw_the_same(tmp_path: Path) -> None:
    """A ring, an object of two parts, and a crowd, which YOLO cannot say."""
    save(tmp_path / "a" / "train" / "x.jpg", picture())
    ring, parts = np.zeros((H, W), bool), np.zeros((H, W), bool)
    ring[2:12, 3:15] = True
    ring[5:8, 6:10] = False
    parts[1:4, 20:25] = parts[10:15, 22:29] = True
    rows = [
        {"id": 1, "image_id": 1, "category_id": 7, "iscrowd": 0, "segmentation": run_lengths.encode(ring)},
        {"id": 2, "image_id": 1, "category_id": 3, "iscrowd": 0, "segmentation": run_lengths.encode(parts)},
        {"id": 3, "image_id": 1, "category_id": 3, "iscrowd": 1, "segmentation": run_lengths.encode(parts)},
    ]
    images = [{"id": 1, "file_name": "x.jpg", "height": H, "width": W}]
    coco_json(tmp_path / "a" / "annotations" / "instances_train.json", annotations=rows, images=images)
    not_said = convert(tmp_path / "a", tmp_path / "b", "yolo")
    assert {what: count for what, count in not_said.items() if count} == {"crowds": 1, "parts": 1, "holes": 1}
    lines = (tmp_path / "b" / "labels" / "train" / "x.txt").read_text().splitlines()
    drawn = []
    for line in lines:
        label, *values = line.split()
        outline = (np.array(values, float).reshape(-1, 2) * (W, H)).flatten().tolist()
        drawn.append((int(label), run_lengths.draw([outline], W, H)))
    assert [label for label, _ in drawn] == [1, 0]
    assert (drawn[0][1] == ring).all()
    assert (drawn[1][1] == parts).all()
    yaml = (tmp_path / "b" / "data.yaml").read_text()
    assert yaml == 'train: "images/train"\nnames:\n  0: "cat"\n  1: "sky"\n'
    assert (tmp_path / "b" / "images" / "train" / "x.jpg").read_bytes() == (
        tmp_path / "a" / "train" / "x.jpg"
    ).read_bytes()


@pytest.mark.parametrize(
    "write", [w for w in EXAMPLES if "instance" in EXAMPLES[w] and w.__name__ not in ("ade20k", "cityscapes")]
)
def test_objects_become_yolo_and_are_read_back_the_same(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "a")
    layout = of(write, "instance")
    convert(tmp_path / "a", tmp_path / "b", "yolo", layout=layout)
    before = open_data(layout, tmp_path / "a", truth="instance", split=first_split(layout, tmp_path / "a"))
    after = open_data("auto", tmp_path / "b", truth="instance", split="train")
    assert isinstance(before, ImageSource)
    assert isinstance(after, ImageSource)
    assert after.format == "yolo"
    assert objects(after, after.names[0]) == objects(before, before.names[0]) != []


@pytest.mark.parametrize(
    "write", [w for w in EXAMPLES if "semantic" in EXAMPLES[w] and w is not splits_without_a_class_file]
)
def test_classes_of_pixels_become_a_label_folder_and_stay_the_same(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "a")
    layout = of(write, "semantic")
    convert(tmp_path / "a", tmp_path / "b", "label_folder", layout=layout)
    before = open_data(layout, tmp_path / "a", truth="semantic", split=first_split(layout, tmp_path / "a"))
    after = open_data("label_folder", tmp_path / "b", truth="semantic", split=before.split)
    assert isinstance(before, ImageSource)
    assert isinstance(after, ImageSource)
    assert after.classes.names == before.classes.names
    labels = [source.truth(source.names[0]).semantic() for source in (before, after)]
    assert (labels[0] == labels[1]).all()
    assert len(np.unique(labels[0])) > 1


def test_segments_become_coco_panoptic_and_stay_the_same(tmp_path: Path) -> None:
    coco_panoptic(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", "coco_panoptic")
    before, after = (open_data("coco_panoptic", tmp_path / one, truth="panoptic", split="train") for one in "ab")
    assert (before.truth("a.jpg").segment_ids == after.truth("a.jpg").segment_ids).all()
    assert before.truth("a.jpg").segments == after.truth("a.jpg").segments
    assert [category.is_thing for category in after.classes.categories] == [True, False]


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path: Path) -> None:
    coco(tmp_path / "a")
    content = json.loads((tmp_path / "a" / "annotations" / "instances_train.json").read_text())
    gone = {"id": 2, "file_name": "gone.jpg", "height": H, "width": W}
    coco_json(tmp_path / "a" / "annotations" / "instances_train.json", images=[*content["images"], gone])
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        convert(tmp_path / "a", tmp_path / "b", "yolo")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_there_is_never_written_into(tmp_path: Path) -> None:
    coco(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(FileExistsError, match="out must be a new folder, got one that exists"):
        convert(tmp_path / "a", tmp_path / "b", "coco")


def test_truth_that_the_data_does_not_have_is_refused(tmp_path: Path) -> None:
    label_folder_of_splits(tmp_path / "a")
    with pytest.raises(DataError, match="coco_panoptic holds panoptic truth, and layout label_folder has semantic and"):
        convert(tmp_path / "a", tmp_path / "b", "coco_panoptic", layout="label_folder")
    with pytest.raises(DataError, match="folder must be of a layout with panoptic truth, got none"):
        convert(tmp_path / "a", tmp_path / "b", "coco_panoptic")


def test_classes_of_label_maps_become_objects_and_draw_the_same_label_maps(tmp_path: Path) -> None:
    save(tmp_path / "a" / "images" / "x.jpg", picture())
    labels = halves(0, 1)
    labels[:4], labels[10:13] = 2, 255
    save(tmp_path / "a" / "labels" / "x.png", labels)
    (tmp_path / "a" / "classes.json").write_text('["background", "road", "tree"]')
    not_said = convert(tmp_path / "a", tmp_path / "b", "coco")
    assert {what: count for what, count in not_said.items() if count} == {"regions": 2, "void": 1}
    after = open_data("coco", tmp_path / "b", truth="semantic", split="all")
    assert after.classes.names == ["background", "road", "tree"]
    assert (after.truth("x.jpg").semantic() == np.where(labels == 255, 0, labels)).all()
    convert(tmp_path / "a", tmp_path / "c", "yolo")
    text = (tmp_path / "c" / "data.yaml").read_text()
    assert text == 'train: "images/all"\nnames:\n  0: "road"\n  1: "tree"\n'
    lines = (tmp_path / "c" / "labels" / "all" / "x.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1"]


def test_what_coco_cannot_hold_of_segments_is_told(tmp_path: Path) -> None:
    coco_panoptic(tmp_path / "a")
    not_said = convert(tmp_path / "a", tmp_path / "b", "coco")
    assert {what: count for what, count in not_said.items() if count} == {"stuff": 1}
    assert open_data("coco", tmp_path / "b", truth="instance", split="train").classes.names == ["cat"]


def test_objects_beside_segments_are_taken_as_they_are_annotated(tmp_path: Path) -> None:
    coco_with_both(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", "coco")
    (cat,) = open_data("coco", tmp_path / "b", truth="instance", split="train").truth("a.jpg").objects or []
    assert cat.mask(H, W).sum() == 81
    convert(tmp_path / "a", tmp_path / "c", "coco_panoptic")
    assert (tmp_path / "c" / "annotations" / "panoptic_train.json").is_file()


def test_splits_of_one_name_for_yolo_are_all_listed(tmp_path: Path) -> None:
    for split in ("train2014", "train2017", "val2017"):
        save(tmp_path / "a" / split / "a.jpg", picture())
        coco_json(tmp_path / "a" / "annotations" / f"instances_{split}.json")
    convert(tmp_path / "a", tmp_path / "b", "yolo")
    lines = (tmp_path / "b" / "data.yaml").read_text().splitlines()
    assert lines[:2] == ['train: ["images/train2014", "images/train2017"]', 'val: "images/val2017"']
    cvat_by_subset(tmp_path / "c")
    convert(tmp_path / "c", tmp_path / "d", "yolo")
    assert (tmp_path / "d" / "data.yaml").read_text().startswith('train: "images/Train"\nval: "images/Validation"\n')


def test_splits_with_other_classes_are_refused(tmp_path: Path) -> None:
    coco(tmp_path / "a")
    save(tmp_path / "a" / "val" / "a.jpg", picture())
    swapped = [{"id": 3, "name": "sky"}, {"id": 7, "name": "cat"}]
    coco_json(tmp_path / "a" / "annotations" / "instances_val.json", categories=swapped)
    with pytest.raises(DataError, match="all splits must have one list of classes, got others in val than in train"):
        convert(tmp_path / "a", tmp_path / "b", "yolo")


def test_images_whose_labels_would_be_one_file_are_refused(tmp_path: Path) -> None:
    for name in ("x.jpg", "x.png"):
        save(tmp_path / "a" / "train" / name, picture())
    images = [{"id": n, "file_name": name, "height": H, "width": W} for n, name in ((1, "x.jpg"), (2, "x.png"))]
    coco_json(tmp_path / "a" / "annotations" / "instances_train.json", images=images)
    with pytest.raises(DataError, match=r"x\.png: images must differ in name but for the suffix, got x twice"):
        convert(tmp_path / "a", tmp_path / "b", "yolo")
    assert not (tmp_path / "b").exists()


def test_folders_of_names_that_the_target_has_itself_are_left_out(tmp_path: Path) -> None:
    names = ["images/train/x.jpg", "b/y.jpg", "train/z.jpg"]
    for name in names:
        save(tmp_path / "a" / "train" / name, picture())
    images = [{"id": n, "file_name": name, "height": H, "width": W} for n, name in enumerate(names)]
    coco_json(tmp_path / "a" / "annotations" / "instances_train.json", images=images)
    convert(tmp_path / "a", tmp_path / "b", "yolo")
    below = [path.relative_to(tmp_path / "b").as_posix() for path in (tmp_path / "b").rglob("*.???")]
    images_and_labels = [(f"images/train/{n}.jpg", f"labels/train/{n}.txt") for n in ("x", "b/y", "z")]
    assert sorted(below) == sorted(path for pair in images_and_labels for path in pair)


def test_a_folder_inside_the_one_that_is_read_is_refused(tmp_path: Path) -> None:
    coco(tmp_path / "a")
    with pytest.raises(DataError, match="out must not lie in the folder that is read"):
        convert(tmp_path / "a", tmp_path / "a" / "b", "coco")


def test_the_verb_says_what_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(tmp_path / "a")
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", "coco"]) == 0
    assert f"{tmp_path / 'b'}: coco" in capsys.readouterr().out
