"""ADE20K: label maps, and the classes of each form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fssops.data.layouts import known_classes, open_data

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


def test_ade20k_semantic_counts_from_one_and_ignores_zero(tmp_path: Path) -> None:
    for folder in ("training", "validation"):
        save(tmp_path / "images" / folder / "a.jpg", picture())
        save(tmp_path / "annotations" / folder / "a.png", halves(0, 150).astype(np.uint8))
    source = open_data("auto", tmp_path, split="val", truth="semantic")
    assert source.format == "ade20k"
    label = source.truth("a").semantic()
    assert (label[0, 0], label[0, -1]) == (255, 149)
    assert source.classes.names[149] == "flag"


def test_known_instances_of_ade20k_have_the_ids_of_its_instance_files() -> None:
    known = known_classes("ade20k", "instance")
    assert known is not None
    assert [(c.id, c.name, c.is_thing) for c in known.categories][:2] == [(7, "bed", True), (8, "window", True)]
    assert known.categories[-1].id == 149


def test_ade20k_classes_have_the_numbers_of_its_files_for_few_shot_tasks(tmp_path: Path) -> None:
    for folder in ("training", "validation"):
        save(tmp_path / "images" / folder / "a.jpg", picture())
        save(tmp_path / "annotations" / folder / "a.png", halves(0, 150).astype(np.uint8))
    source = open_data("auto", tmp_path, truth="few-shot")
    assert (source.classes[1], source.classes[150]) == ("wall", "flag")
    assert sorted(np.unique(source.label_map("a"))) == [150, 255]
