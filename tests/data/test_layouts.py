"""Opening, naming and recognising data sets of all layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fssops.data.errors import DataError
from fssops.data.layout import DataTruth
from fssops.data.layouts import ade20k, coco_panoptic, known_classes, open_data


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8)


H, W = 20, 30


def halves(left: int, right: int) -> np.ndarray:
    values = np.full((H, W), right, dtype=np.int32)
    values[:, : W // 2] = left
    return values


def test_folder_that_fits_no_layout_lists_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got none \(.*voc: no JPEGImages"):
        open_data("auto", tmp_path, truth="few-shot")
    with pytest.raises(FileNotFoundError):
        open_data("auto", tmp_path / "nowhere", truth="few-shot")


def test_unknown_format_and_option_name_the_valid_ones(voc_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"layout must be auto, .*coco, .*folder, fss1000, .*voc, got 'ade'"):
        open_data("ade", voc_folder, truth="few-shot")
    with pytest.raises(ValueError, match=r"options of layout voc must be split, list_file, .*got 'crowd'"):
        open_data("voc", voc_folder, crowd="object", truth="few-shot")
    with pytest.raises(ValueError, match="root must be a folder for layout voc, got None"):
        open_data("voc", truth="few-shot")


@pytest.mark.parametrize(
    ("layout", "truth"), [("generated", "few-shot"), ("generated", "panoptic"), ("generated_videos", "video")]
)
def test_a_folder_is_not_passed_over_where_data_are_drawn(layout: str, truth: DataTruth, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=f"root must be left out for layout {layout}, which has no files, got {tmp_path}"
    ):
        open_data(layout, tmp_path, truth=truth)


def test_wrong_requests_are_told(tmp_path: Path) -> None:
    for arguments, told in (
        (("fss1000", tmp_path), "truth must be few-shot for layout fss1000, got 'semantic'"),
        (("label_folder",), "root must be a folder for layout label_folder, got None"),
        (("auto", tmp_path), "cityscapes: no leftImg8bit"),
    ):
        with pytest.raises((ValueError, DataError), match=told):
            open_data(*arguments, truth="semantic")
    with pytest.raises(ValueError, match="options of layout generated must be split, size, images, seed, got 'roof'"):
        open_data("generated", roof=1, truth="panoptic")
    save(tmp_path / "train" / "a.png", picture())
    save(tmp_path / "trainannot" / "a.png", halves(0, 0).astype(np.uint8))
    with pytest.raises(ValueError, match="truth must be semantic or few-shot for layout camvid, got 'panoptic'"):
        open_data("camvid", tmp_path, truth="panoptic")


def test_class_lists_are_whole() -> None:
    assert (len(coco_panoptic.NAMES), len(ade20k.NAMES), len(ade20k.THINGS)) == (133, 150, 100)
    for names in (coco_panoptic.NAMES, ade20k.NAMES):
        assert len(set(names)) == len(names)
    for format in ("coco_panoptic", "ade20k", "cityscapes"):
        found = known_classes(format, "panoptic")
        assert found is not None
        assert len(found.things) in (80, 100, 8)


def test_known_classes_are_those_of_the_real_file(data_root: Path) -> None:
    source = open_data("coco_panoptic", data_root / "panoptic_sample", split="val2017", truth="panoptic")
    known = known_classes("coco_panoptic", "panoptic")
    assert known is not None
    assert (known.names, known.things) == (source.classes.names, source.classes.things)
    assert known.index_of == source.classes.index_of  # results files of a model without its data name classes by id
    objects = open_data("coco_instances", data_root / "coco_mini", split="val", truth="instance").classes
    countable = known_classes("coco_instances", "instance")
    assert countable is not None
    assert (countable.names, countable.things, countable.index_of) == (objects.names, objects.things, objects.index_of)


def test_real_camvid_and_coco_open(data_root: Path) -> None:
    camvid = open_data("label_folder", data_root / "camvid", split="val", truth="semantic")
    assert (len(camvid.names), camvid.classes.names) == (
        101,
        open_data("camvid", data_root / "camvid", truth="semantic").classes.names,
    )
    coco = open_data("coco_instances", data_root / "coco_mini", split="train", truth="instance")
    assert (len(coco.names), len(coco.training_names("instance"))) == (166, 166)
    crowds = [o.crowd for name in coco.names for o in coco.truth(name).objects or ()]
    assert (len(crowds), sum(crowds)) == (1580, 15)
