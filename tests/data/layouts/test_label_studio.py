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
        "../../label-studio/media/upload/3/0a1b2c3d-a b.jpg",
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
    with pytest.warns(DataWarning, match=r"image 2: images/gone.jpg is not in .*images; left out"):
        source = open_data("label_studio", tmp_path, truth="instance")
    assert source.names == ["0a1b2c3d-a.jpg"]


def test_splits_that_are_not_there_are_refused(tmp_path: Path) -> None:
    label_studio(tmp_path)
    with pytest.raises(FileNotFoundError, match="split must be all or train, which is the same here, got 'val'"):
        open_data("label_studio", tmp_path, split="val", truth="instance")


def test_the_tools_own_json_is_not_taken_for_coco(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('[{"id": 1, "annotations": [], "data": {"image": "a.jpg"}}]')
    with pytest.raises(DataError, match=r"label_studio: result.json is no COCO export of Label Studio"):
        recognise(tmp_path)
