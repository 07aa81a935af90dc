"""Label maps of colours: files of every form, palettes of data sets, colours that nobody named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from example_folders import H, W, colour_labels, colours, picture, save
from PIL import Image

from fssops.data.colour_maps import voc_colours
from fssops.data.errors import AnnotationError, DataError, MaskSizeError, MaskValueError
from fssops.data.layouts import LAYOUTS, open_data

ROAD, CAR = (128, 64, 128), (0, 0, 142)


def label_map(root: Path, **options: object) -> np.ndarray:
    return open_data("colour_labels", root, truth="semantic", **options).truth("a").semantic()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("class_dict.csv", "name,r,g,b\nroad,128,64,128\ncar,0,0,142\n"),
        ("classes.csv", "road, 128, 64, 128\n\ncar;0;0;142\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nroad:128,64,128::\ncar:0,0,142:wheel,door:driving\n"),
        ("label_colors.txt", "128 64 128\troad\n0 0 142\tcar\n"),
        ("classes.txt", "road 128,64,128"),
        (
            "classes.json",
            json.dumps({"classes": [{"id": 4, "name": "road", "color": ROAD}, {"id": 9, "name": "car", "color": CAR}]}),
        ),
    ],
)
def test_colours_are_named_by_a_file_of_any_form(tmp_path: Path, file: str, text: str) -> None:
    colour_labels(tmp_path)
    (tmp_path / "class_dict.csv").unlink()
    (tmp_path / file).write_text(text)
    if file == "classes.txt":
        with pytest.raises(AnnotationError, match=r"classes\.txt: line 1 must be a name and a colour, as NAME,R,G,B"):
            label_map(tmp_path)
        return
    source = open_data("auto", tmp_path, truth="semantic")
    assert (source.classes.names, source.classes.colours) == (["road", "car"], [ROAD, CAR])
    labels = source.truth("a").semantic()
    assert (labels[:, : W // 2] == 0).all()
    assert (labels[:, W // 2 :] == 1).all()
    few_shot = open_data("auto", tmp_path, truth="few-shot")
    assert few_shot.areas()["a"] == {1: H * W // 2, 2: H * W // 2}


def test_colours_that_no_file_names_are_listed_and_asked_for(tmp_path: Path) -> None:
    colour_labels(tmp_path)
    (tmp_path / "class_dict.csv").unlink()
    save(tmp_path / "images" / "b.jpg", picture(1))
    save(tmp_path / "labels" / "b.png", colours(ROAD, (1, 2, 3)))
    told = r"classes\.csv: a file must name the colours .* NAME,R,G,B for each of 128,64,128 \(in 2\); .*1,2,3 \(in 1\)"
    with pytest.raises(AnnotationError, match=told) as error:
        open_data("auto", tmp_path, truth="semantic")
    assert "0,0,142 (in 1)" in str(error.value)
    (tmp_path / "mine.txt").write_text("road,128,64,128\nvoid,0,0,142\nsky,1,2,3\n")
    for file in ("mine.txt", tmp_path / "mine.txt"):
        source = open_data("auto", tmp_path, truth="semantic", colours=file)
        assert source.classes.names == ["road", "sky"]
        assert sorted(np.unique(source.truth("a").semantic())) == [0, 255]
        assert sorted(np.unique(source.truth("b").semantic())) == [0, 1]


def test_palettes_of_voc_and_cityscapes(tmp_path: Path) -> None:
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert {number: voc_colours(21)[number] for number in known} == known
    colour_labels(tmp_path)
    save(tmp_path / "labels" / "a.png", colours((192, 128, 128), (224, 224, 192)))
    labels = label_map(tmp_path, colours="voc")
    assert [int(labels[0, 0]), int(labels[0, -1])] == [15, 255]
    save(tmp_path / "labels" / "a.png", colours(CAR, (111, 74, 0)))
    source = open_data("colour_labels", tmp_path, truth="semantic", colours="cityscapes")
    labels = source.truth("a").semantic()
    assert (source.classes.names[labels[0, 0]], int(labels[0, -1]), len(source.classes)) == ("car", 255, 19)


def test_label_maps_with_a_palette_are_read_by_its_colours(tmp_path: Path) -> None:
    colour_labels(tmp_path)
    image = Image.fromarray(np.repeat(np.array([[3, 7]], dtype=np.uint8), H, 0).repeat(W // 2, 1), mode="P")
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[3], palette[7] = CAR, ROAD
    image.putpalette(palette.reshape(-1).tolist())
    image.save(tmp_path / "labels" / "a.png")
    labels = open_data("auto", tmp_path, truth="semantic").truth("a").semantic()
    assert [int(labels[0, 0]), int(labels[0, -1])] == [1, 0]


def test_strange_colours_are_refused_or_ignored(tmp_path: Path) -> None:
    colour_labels(tmp_path)
    values = colours(ROAD, CAR)
    values[0, 0] = (127, 64, 128)
    save(tmp_path / "labels" / "a.png", values)
    told = r"a\.png: label map must hold only the 2 colours of its classes \(road, car\), got 127,64,128 \(1 px\)"
    with pytest.raises(MaskValueError, match=told):
        label_map(tmp_path)
    labels = label_map(tmp_path, unknown="ignore")
    assert (labels == 255).sum() == 1
    assert labels[0, 0] == 255
    with pytest.raises(ValueError, match="unknown must be error or ignore, got 'drop'"):
        label_map(tmp_path, unknown="drop")
    save(tmp_path / "labels" / "a.png", values[:, 1:])
    with pytest.raises(MaskSizeError, match="must have the size of its image, 30 x 20, got 29 x 20"):
        label_map(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "road,128,64,128\ncar,128,64,128\n",
            r"a colour must be of one class, got \(128, 64, 128\) for 'road'",
        ),
        ("road,128,64,256\n", "line 1: colours must be from 0 to 255, got 128,64,256"),
        ("name,r,g,b\n", "there must be at least one class with a colour, got none"),
        ("road,128,64,128\ncar\n", "line 2 must be a name and a colour, as NAME,R,G,B, got 'car'"),
    ],
)
def test_broken_lists_of_colours_are_told(tmp_path: Path, text: str, told: str) -> None:
    colour_labels(tmp_path)
    (tmp_path / "class_dict.csv").write_text(text)
    with pytest.raises(AnnotationError, match=rf"class_dict\.csv: {told}"):
        label_map(tmp_path)


def test_a_class_list_without_colours_does_not_do(tmp_path: Path) -> None:
    colour_labels(tmp_path)
    (tmp_path / "class_dict.csv").unlink()
    (tmp_path / "classes.json").write_text('["road", "car"]')
    with pytest.raises(DataError, match=r"classes\.json: every class must have a color for labels that are coded"):
        open_data("auto", tmp_path, truth="semantic")
    assert LAYOUTS["label_folder"].recognise(tmp_path) == "label maps hold colours"
