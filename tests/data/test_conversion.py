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
    label_folder_of_splits,
    picture,
    roboflow,
    save,
    voc,
)

from fssops import run_lengths
from fssops.data.__main__ import main
from fssops.data.conversion import convert
from fssops.data.errors import DataError
from fssops.data.layouts import open_data
from fssops.data.source import ImageSource

Write = Callable[[Path], None]


def of(write: Write, truth: str) -> str:
    return EXAMPLES[write][truth]


def objects(source: ImageSource, name: str) -> list[tuple[str, bool, bytes]]:
    truth = source.truth(name)
    found = truth.instances(source.classes.things)
    return [(source.classes.names[one.label], one.crowd, one.mask(H, W).tobytes()) for one in found]


@pytest.mark.parametrize("write", [w for w in EXAMPLES if "instance" in EXAMPLES[w] and w.__name__ not in ("ade20k",)])
def test_objects_become_coco_and_stay_the_same(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "a")
    layout = of(write, "instance")
    convert(tmp_path / "a", tmp_path / "b", "coco", layout=layout)
    before = open_data(layout, tmp_path / "a", truth="instance", split="train")
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
    assert not_said == {"empty": 0, "crowds": 1, "parts": 1}
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
    assert yaml == 'path: .\ntrain: images/train\nnames:\n  0: "cat"\n  1: "sky"\n'
    assert (tmp_path / "b" / "images" / "train" / "x.jpg").read_bytes() == (
        tmp_path / "a" / "train" / "x.jpg"
    ).read_bytes()


@pytest.mark.parametrize("write", [voc, coco, coco_panoptic, label_folder_of_splits, roboflow])
def test_classes_of_pixels_become_a_label_folder_and_stay_the_same(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "a")
    layout = of(write, "semantic")
    convert(tmp_path / "a", tmp_path / "b", "label_folder", layout=layout)
    before = open_data(layout, tmp_path / "a", truth="semantic", split="train")
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
    with pytest.raises(DataError, match="yolo holds instance truth, and layout label_folder has semantic and few-shot"):
        convert(tmp_path / "a", tmp_path / "b", "yolo", layout="label_folder")


def test_the_verb_says_what_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(tmp_path / "a")
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", "coco"]) == 0
    assert f"{tmp_path / 'b'}: coco" in capsys.readouterr().out
