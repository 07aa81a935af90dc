"""labelme: shapes of every kind, groups, classes from the files, and what is wrong in them."""

from __future__ import annotations

import base64
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_folders import H, W, labelme, picture, save
from PIL import Image

from fssops.data.check import check_data
from fssops.data.errors import AnnotationError, DataWarning, ImageSizeError
from fssops.data.layouts import LAYOUTS, open_data

STATED = {"imageHeight": H, "imageWidth": W, "imageData": "x" * 9}


def write(root: Path, shapes: list[dict[str, Any]], name: str = "a", **more: Any) -> Path:
    save(root / f"{name}.jpg", picture(len(name)))
    content = {"shapes": shapes, "imagePath": f"{Path(name).name}.jpg", **STATED, **more}
    (root / f"{name}.json").write_text(json.dumps(content))
    return root


def shape(
    label: str, points: list[Any], kind: str | None = "polygon", group: Any = None, **more: Any
) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": group, **more}


def png(values: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def masks(root: Path) -> list[tuple[str, np.ndarray]]:
    source = open_data("labelme", root, truth="instance")
    truth = source.truth("a")
    return [(source.classes.names[entry.label], entry.mask(H, W)) for entry in truth.objects or ()]


def test_polygons_rectangles_circles_and_masks_become_objects_with_the_classes_of_the_files(tmp_path: Path) -> None:
    drawn = np.zeros((4, 6), dtype=np.uint8)
    drawn[1:3, 2:5] = 255
    shapes = [
        shape("square", [[2, 3], [8, 3], [8, 9], [2, 9]], None),
        shape("box", [[20, 12], [12, 4]], "rectangle"),
        shape("disc", [[22, 10], [27, 10]], "circle"),
        shape("brush", [[3, 12], [8, 15]], "mask", mask=png(drawn)),
    ]
    write(tmp_path, shapes)
    assert open_data("auto", tmp_path, truth="instance").classes.names == ["box", "brush", "disc", "square"]
    found = dict(masks(tmp_path))
    expected = np.zeros((4, H, W), dtype=bool)
    expected[0, 3:9, 2:8] = expected[1, 4:12, 12:20] = True
    expected[3, 13:15, 5:8] = True
    assert (found["square"] == expected[0]).all()
    assert (found["box"] == expected[1]).all()
    assert (found["brush"] == expected[3]).all()
    rows, columns = np.mgrid[:H, :W] + 0.5
    distance = np.hypot(columns - 22, rows - 10)
    assert found["disc"][distance < 4.2].all()
    assert not found["disc"][distance > 5.8].any()


def test_shapes_of_one_label_and_group_are_one_object(tmp_path: Path) -> None:
    left, right = [[1, 1], [5, 1], [5, 5], [1, 5]], [[10, 1], [14, 1], [14, 5], [10, 5]]
    mask = png(np.full((3, 3), 255, dtype=np.uint8))
    write(
        tmp_path,
        [
            shape("cat", left, group=7),
            shape("dog", right, group=7),
            shape("cat", right, group=7),
            shape("cat", [[20, 10], [22, 12]], "mask", 3, mask=mask),
            shape("cat", left, group=3),
        ],
    )
    found = [(name, int(mask.sum())) for name, mask in masks(tmp_path)]
    assert found == [("dog", 16), ("cat", 32), ("cat", 25)]


def test_classes_are_those_of_all_splits_or_of_the_list_of_labels(tmp_path: Path) -> None:
    square = [[1, 1], [9, 1], [9, 9]]
    write(tmp_path, [shape("owl", square)], "train/a")
    write(tmp_path, [shape("ant", square)], "val/b")
    assert LAYOUTS["labelme"].splits(tmp_path) == ["train", "val"]
    for split, label in ((None, 1), ("val", 0)):
        source = open_data("auto", tmp_path, split=split, truth="instance")
        assert source.classes.names == ["ant", "owl"]
        assert [entry.label for entry in source.truth(source.names[0]).objects or ()] == [label]
    assert open_data("labelme", tmp_path, split="all", truth="instance").names == ["train/a", "val/b"]
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nowl\nbee\nant\n")
    assert open_data("labelme", tmp_path, truth="instance").classes.names == ["owl", "bee", "ant"]
    (tmp_path / "labels.txt").write_text("owl\n")
    with pytest.raises(AnnotationError, match=r"labels\.txt: list of labels must name every label, got none for 'ant'"):
        open_data("labelme", tmp_path, truth="instance")
    with pytest.raises(FileNotFoundError, match=r"got 'test' \(there: train, val\)"):
        open_data("labelme", tmp_path, split="test", truth="instance")


def test_label_maps_show_the_smaller_object_or_the_later_one(tmp_path: Path) -> None:
    small, large = [[5, 5], [9, 5], [9, 9], [5, 9]], [[0, 0], [20, 0], [20, 20], [0, 20]]
    write(tmp_path, [shape("small", small), shape("wide", large)])
    labels = open_data("labelme", tmp_path, truth="semantic").truth("a").semantic()
    assert labels[6, 6] == 1
    assert labels[1, 1] == 2
    assert labels[1, 25] == 0
    assert open_data("labelme", tmp_path, truth="semantic", overlap="later").truth("a").semantic()[6, 6] == 2
    assert open_data("labelme", tmp_path, truth="few-shot").classes_of("a") == [1, 2]


@pytest.mark.parametrize("named", ["..\\images\\a.jpg", "../images/a.jpg", "C:\\Users\\me\\a.jpg", "elsewhere/a.jpg"])
def test_images_are_found_where_they_are_said_to_be_or_beside_the_file(tmp_path: Path, named: str) -> None:
    labelme(tmp_path)
    file = tmp_path / "a.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "imagePath": named}))
    if "images" in named:
        (tmp_path / "images").mkdir()
        (tmp_path / "json").mkdir()
        (tmp_path / "a.jpg").rename(tmp_path / "images" / "a.jpg")
        file.rename(tmp_path / "json" / "a.json")
    source = open_data("auto", tmp_path, truth="instance")
    assert source.image(source.names[0]).size == (W, H)


def test_missing_images_other_sizes_and_free_images_are_told(tmp_path: Path) -> None:
    labelme(tmp_path)
    save(tmp_path / "b.jpg", picture(1))
    (note,) = open_data("labelme", tmp_path, truth="instance").left_out()
    assert note.endswith("1 left out (no JSON of their name), e.g. b.jpg")
    save(tmp_path / "a.jpg", np.zeros((H, W + 2, 3)))
    with pytest.raises(ImageSizeError, match=r"a\.jpg: image must have the size its annotations are made for, 30 x 20"):
        open_data("labelme", tmp_path, truth="instance").image("a")
    (tmp_path / "a.jpg").unlink()
    found = check_data("labelme", tmp_path, truth="instance").counts()
    assert found == {"unreadable_image": 1, "left_out": 1}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (shape("", [[1, 1], [5, 1], [5, 5]]), "label must be a class, got None"),
        (shape("__ignore__", [[1, 1], [5, 1], [5, 5]]), "label must be a class, got '__ignore__'"),
        (shape("cat", [[1, 1], [5, 1]]), "fewer than 3 points"),
        (shape("cat", [[1, 1], [5, 1]], "line"), "a 'line' has no area"),
        (shape("cat", [[1, 1], [5, "x"], [3, 3]]), "points must be pairs of numbers"),
        (shape("cat", [[1, 1], [5, float("nan")], [3, 3]]), "points must be finite"),
        (shape("cat", [[1, 1], [10**400, 2], [3, 3]]), "points must be pairs of numbers"),
        (shape("cat", [[1, 1], [1e300, 2]], "circle"), "points must be finite"),
        (shape("cat", [[1, 1]], "circle"), "a circle must have 2 points, got 1"),
        (shape("cat", [[90, 90], [95, 90], [95, 95]]), "outside the image"),
        (shape("cat", [[1, 1], [3, 3]], "mask", mask="no"), "mask must be a PNG in base64"),
        (shape("cat", [[1, 1], [3, 3]], "mask"), "mask must be a PNG in base64, got None"),
        (shape("cat", [[1, 1], [99, 3]], "mask", mask="no"), "mask must fit an image of 30 x 20"),
        (
            shape("cat", [[1, 1], [3, 3]], "mask", mask=png(np.ones((2, 2), dtype=np.uint8))),
            "mask must be of 3 x 3 as its points say, got 2 x 2",
        ),
        ({"label": ["cat"]}, "label must be a class"),
        ("cat", "label must be a class"),
    ],
)
def test_a_shape_that_cannot_be_drawn_is_left_out_and_told(tmp_path: Path, row: Any, told: str) -> None:
    write(tmp_path, [shape("cat", [[0, 0], [9, 0], [9, 9]]), row])
    with pytest.warns(DataWarning, match=told):
        assert len(masks(tmp_path)) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ((kind, message),) = open_data("labelme", tmp_path, truth="instance").problems()
    assert kind == "bad_annotation"
    assert "a.json: shapes[1]: " in message
    assert message.endswith("; left out")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"shapes": [', "must be complete JSON"),
        ('{"shapes": {}}', "must hold a list 'shapes'"),
        ('{"shapes": [], "imageWidth": 30, "imageHeight": 20}', "shapes must have at least one label, got none"),
        (
            '{"shapes": [{"label": "a"}], "imageWidth": -3, "imageHeight": 20}',
            "width and height must be positive integers, got -3 x 20",
        ),
    ],
)
def test_a_broken_file_is_refused_by_its_name(tmp_path: Path, text: str, told: str) -> None:
    save(tmp_path / "a.jpg", picture())
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(AnnotationError, match=told):
        open_data("labelme", tmp_path, truth="instance")
