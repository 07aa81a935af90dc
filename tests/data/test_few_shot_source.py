"""What few-shot sources of all layouts share."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fssops.data import class_index
from fssops.data.errors import (
    DataWarning,
)
from fssops.data.layouts import open_data


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


def test_unknown_image_or_class_is_an_error(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, truth="few-shot")
    with pytest.raises(ValueError, match="name must be one of its 9 images, got 'im99'"):
        source.image("im99")
    with pytest.raises(ValueError, match="class_id must be one of the 20 classes, got 21"):
        source.images_of(21)


def test_source_survives_pickling_for_spawned_workers(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, truth="few-shot")
    source.areas()
    again = pickle.loads(pickle.dumps(source))
    assert again.names == source.names
    assert (again.label_map("im01") == source.label_map("im01")).all()


def test_pixel_counts_are_kept_on_disk_until_a_mask_changes(
    voc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSSOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(class_index, "MIN_IMAGES", 1)
    first = open_data("voc", voc_folder, truth="few-shot").areas()
    (entry,) = (tmp_path / "cache").glob("classes-*.json")
    read = open_data("voc", voc_folder, truth="few-shot")
    monkeypatch.setattr(read, "_areas_of", lambda name: pytest.fail("counted again"))
    assert read.areas() == first
    entry.write_text("{ damaged")
    assert open_data("voc", voc_folder, truth="few-shot").areas() == first
    save(voc_folder / "SegmentationClass" / "im05.png", np.full((40, 60), 12))
    assert open_data("voc", voc_folder, truth="few-shot").classes_of("im05") == [12]


def test_pixel_counts_of_another_class_list_are_not_taken(
    voc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSSOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(class_index, "MIN_IMAGES", 1)
    for number in (1, 2):
        source = open_data("voc", voc_folder, truth="few-shot", classes={number: "thing"}, unknown="ignore")
        with pytest.warns(DataWarning, match="mapped to 255"):
            found = source.images_of(number)
        assert found == [f"im{i:02d}" for i in range(number - 1, 9, 3)]


def test_unwritable_cache_costs_time_only(voc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FSSOPS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(class_index, "MIN_IMAGES", 1)
    assert open_data("voc", voc_folder, truth="few-shot").images_of(2)
