"""Label Studio's COCO export: images are found whatever the tool has made of their names."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_folders import H, W, coco_json, label_studio, picture, save

from fssops.data.errors import DataError, DataWarning
from fssops.data.layouts import open_data, recognise


@pytest.mark.parametrize(
    "stated",
    [
        "images/0a1b2c3d-a b.jpg",
        "images\\0a1b2c3d-a b.jpg",
        "/data/upload/3/0a1b2c3d-a%20b.jpg",
        "https://labels.example/data/upload/3/0a1b2c3d-a%20b.jpg?token=1",
        "..\\..\\label-studio\\media\\upload\\3\\0a1b2c3d-a b.jpg",
        "/data/local-files/?d=photos/0a1b2c3d-a%20b.jpg",
    ],
)
@pytest.mark.parametrize("kept", ["0a1b2c3d-a b.jpg", "a b.jpg"])
def test_an_image_is_found_by_the_last_part_of_its_name(tmp_path: Path, stated: str, kept: str) -> None:
    save(tmp_path / "images" / kept, picture())
    coco_json(tmp_path / "result.json", images=[{"id": 1, "file_name": stated, "height": H, "width": W}])
    source = open_data("auto", tmp_path, truth="instance")
    assert source.format == "label_studio"
    assert source.names == [kept]
    assert source.truth(kept).objects[0].mask(H, W).sum() == 81


def test_an_image_that_is_not_there_is_left_out_and_named(tmp_path: Path) -> None:
    label_studio(tmp_path)
    images = [
        {"id": number, "file_name": name, "height": H, "width": W}
        for number, name in ((1, "0a1b2c3d-a.jpg"), (2, "images/gone.jpg"))
    ]
    coco_json(tmp_path / "result.json", images=images)
    with pytest.warns(DataWarning, match=r"image 2: 'images/gone.jpg' is not in .*images; left out"):
        source = open_data("label_studio", tmp_path, truth="instance")
    assert source.names == ["0a1b2c3d-a.jpg"]


def test_splits_that_are_not_there_are_refused(tmp_path: Path) -> None:
    label_studio(tmp_path)
    with pytest.raises(FileNotFoundError, match="split must be one of all, got 'val'"):
        open_data("label_studio", tmp_path, split="val", truth="instance")


def test_the_tools_own_json_is_not_taken_for_coco(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('[{"id": 1, "annotations": [], "data": {"image": "a.jpg"}}]')
    with pytest.raises(DataError, match=r"label_studio: result.json is no COCO export of Label Studio"):
        recognise(tmp_path)


def test_images_of_one_name_in_several_folders_are_told_apart_by_their_path(tmp_path: Path) -> None:
    for folder in ("b", "c"):
        save(tmp_path / "images" / folder / "a.jpg", picture())
    coco_json(tmp_path / "result.json", images=[{"id": 1, "file_name": "/data/c/a.jpg", "height": H, "width": W}])
    assert open_data("label_studio", tmp_path, truth="instance").names == ["c/a.jpg"]
    coco_json(tmp_path / "result.json", images=[{"id": 1, "file_name": "a.jpg", "height": H, "width": W}])
    with pytest.raises(DataError, match=r"file_name must mean one image, got 'a.jpg' \(fits b/a.jpg, c/a.jpg\)"):
        open_data("label_studio", tmp_path, truth="instance")


def test_an_export_without_its_images_is_refused_with_what_to_do(tmp_path: Path) -> None:
    label_studio(tmp_path)
    (tmp_path / "images" / "0a1b2c3d-a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"got none of 1, e\.g\. .*; export again as COCO with images"):
        open_data("label_studio", tmp_path, truth="instance")
