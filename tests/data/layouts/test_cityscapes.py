"""Cityscapes: label, instance and panoptic files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fssops.data.layouts import open_data
from fssops.data.panoptic_json import encode_ids
from fssops.truth import TruthKind

H, W = 20, 30


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


def halves(left: int, right: int) -> np.ndarray:
    values = np.full((H, W), right, dtype=np.int32)
    values[:, : W // 2] = left
    return values


@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_an_image_that_is_not_there_is_told(tmp_path: Path, kind: TruthKind) -> None:
    source = open_data("cityscapes", cityscapes_folder(tmp_path), truth=kind)
    for read in (source.image, source.truth):
        with pytest.raises(ValueError, match="cityscapes train: name must be one of its 1 images, got 'bonn'"):
            read("bonn")


def cityscapes_folder(root: Path) -> Path:
    stem = "bonn_000001_000019"
    save(root / "leftImg8bit" / "train" / "bonn" / f"{stem}_leftImg8bit.png", picture())
    labels = halves(7, 26).astype(np.uint8)
    labels[:2], labels[-2:] = 3, 33  # 3: out of roi, ignored
    save(root / "gtFine" / "train" / "bonn" / f"{stem}_gtFine_labelIds.png", labels)
    instances = halves(7, 26001).astype(np.uint16)
    instances[:2], instances[-2:] = 3, 33  # a bare 33: bicycles, not told apart
    save(root / "gtFine" / "train" / "bonn" / f"{stem}_gtFine_instanceIds.png", instances)
    return root


def test_cityscapes_semantic_remaps_label_ids(tmp_path: Path) -> None:
    source = open_data("auto", cityscapes_folder(tmp_path), truth="semantic")
    assert source.format == "cityscapes"
    assert len(source.classes) == 19
    assert source.classes.things == tuple(range(11, 19))
    label = source.truth(source.names[0]).semantic()
    assert [int(label[r, c]) for r, c in ((0, 0), (5, 0), (5, -1), (-1, 0))] == [255, 0, 13, 18]


def test_cityscapes_instances_come_from_instance_ids(tmp_path: Path) -> None:
    source = open_data("cityscapes", cityscapes_folder(tmp_path), truth="instance")
    objects = source.truth(source.names[0]).objects or []
    assert source.classes.names[2] == "car"
    assert [(source.classes.names[o.label], o.crowd) for o in objects] == [("bicycle", True), ("car", False)]
    assert source.crowds(source.names[0], "instance") == [True, False]


def test_cityscapes_panoptic_finds_images_by_city(tmp_path: Path) -> None:
    root = cityscapes_folder(tmp_path)
    stem = "bonn_000001_000019"
    save(root / "gtFine" / "cityscapes_panoptic_train" / f"{stem}_gtFine_panoptic.png", encode_ids(halves(7, 26001)))
    segments = [{"id": 7, "category_id": 7, "iscrowd": 0}, {"id": 26001, "category_id": 26, "iscrowd": 0}]
    categories = [{"id": 7, "name": "road", "isthing": 0}, {"id": 26, "name": "car", "isthing": 1}]
    content = {
        "images": [{"id": stem, "file_name": f"{stem}_gtFine_leftImg8bit.png", "height": H, "width": W}],
        "annotations": [{"image_id": stem, "file_name": f"{stem}_gtFine_panoptic.png", "segments_info": segments}],
        "categories": categories,
    }
    (root / "gtFine" / "cityscapes_panoptic_train.json").write_text(json.dumps(content))
    source = open_data("cityscapes", root, truth="panoptic")
    assert source.image(source.names[0]).size == (W, H)
    assert source.truth(source.names[0]).semantic()[0, -1] == 1


def test_cityscapes_classes_are_numbered_in_order_for_few_shot_tasks(tmp_path: Path) -> None:
    source = open_data("auto", cityscapes_folder(tmp_path), truth="few-shot")
    assert (source.classes[1], source.classes[14], len(source.classes)) == ("road", "car", 19)
    assert source.classes_of(source.names[0]) == [1, 14, 19]
    assert source.instance_map(source.names[0], 14).max() == 1  # label maps: connected components


def test_cityscapes_hidden_files_are_no_images(tmp_path: Path) -> None:
    root = cityscapes_folder(tmp_path)
    (root / "leftImg8bit" / "train" / "bonn" / "._bonn_000001_000019_leftImg8bit.png").touch()
    source = open_data("cityscapes", root, truth="semantic")
    assert len(source.names) == 1
    assert any("hidden" in text for text in source.left_out())
