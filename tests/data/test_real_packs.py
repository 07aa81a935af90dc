"""The small packs of real images: counts as stated in stats.json, and every file readable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fssops.data import check, folds
from fssops.data.datasets.episodes import EpisodeDataset
from fssops.data.episodes import EpisodeList
from fssops.data.errors import TooFewImagesError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layouts import open_data
from fssops.structures import FewShotBatch


@pytest.fixture(scope="module")
def stats(data_root: Path) -> dict[str, Any]:
    return json.loads((data_root / "stats.json").read_text())


@pytest.fixture(scope="module")
def coco(data_root: Path) -> dict[str, FewShotSource]:
    return {s: open_data("coco", data_root / "coco_mini", split=s, truth="few-shot") for s in ("train", "val")}


@pytest.fixture(scope="module")
def voc(data_root: Path) -> dict[str, FewShotSource]:
    return {
        s: open_data("voc", data_root / "voc_mini", split=s, truth="few-shot") for s in ("train", "val", "trainval")
    }


def test_coco_images_annotations_and_crowds_are_all_there(stats: dict[str, Any], coco: dict[str, Any]) -> None:
    for split, source in coco.items():
        facts = stats["coco_mini"][f"{split}2017"]
        annotations = [a for name in source.names for a in source.images.annotations_of(name)]
        assert source.images.file.dropped == {}
        assert len(source.names) == facts["images"]
        assert len(annotations) == facts["annotations"]
        assert sum(a.crowd for a in annotations) == facts["crowd_annotations"]


@pytest.mark.parametrize("fold", range(4))
def test_coco_usable_images_of_every_class_are_as_stated(
    stats: dict[str, Any], coco: dict[str, FewShotSource], fold: int
) -> None:
    facts = stats["coco_mini"]["coco20i_folds"][str(fold)]
    classes = folds.coco20i(fold, "msanet").test
    for split, source in coco.items():
        # Stated for "more than 2048 px"; min_area is inclusive.
        counted = {source.classes[c]: len(source.images_of(c, min_area=2049)) for c in classes}
        assert counted == {name: counts[split] for name, counts in facts["images_per_class"].items()}
        assert sum(n >= 2 for n in counted.values()) == facts["classes_with_2_or_more"][split]


def test_voc_lists_and_images_of_every_class_are_as_stated(stats: dict[str, Any], voc: dict[str, Any]) -> None:
    facts = stats["voc_mini"]
    for split, source in voc.items():
        key = "all" if split == "trainval" else split
        assert len(source.names) == facts["images"][split]
        counted = {name: len(source.images_of(c, min_area=2048)) for c, name in source.classes.items()}
        assert counted == {name: counts[key] for name, counts in facts["images_per_class"].items()}


def test_voc_images_of_every_fold_are_as_stated(voc: dict[str, FewShotSource]) -> None:
    # shared/data/README.md, last table.
    for split, expected in (("train", [26, 37, 81, 23]), ("val", [14, 30, 89, 22])):
        source = voc[split]
        images = [len({n for c in folds.pascal5i(i).test for n in source.images_of(c, 2048)}) for i in range(4)]
        assert images == expected


def test_camvid_is_read_as_a_folder_of_label_maps(data_root: Path) -> None:
    source = open_data("auto", data_root / "camvid", split="val", truth="few-shot")
    assert source.format == "folder"
    assert len(source.names) == 101
    assert source.classes[1] == "Sky"
    assert len(source.classes) == 11
    label = source.label_map(source.names[0])
    assert set(np.unique(label)) <= {*range(1, 12), 255}
    assert source.image(source.names[0]).size == (label.shape[1], label.shape[0])


def test_every_real_image_has_three_channels_and_the_size_its_annotations_state(
    coco: dict[str, FewShotSource],
) -> None:
    for source in coco.values():
        for name in source.names[:40]:
            image = source.image(name)
            assert image.mode == "RGB"
            assert source.label_map(name).shape == (image.height, image.width)


@pytest.mark.parametrize("annotation", ["mask", "box", "scribble"])
def test_episodes_of_real_images_show_their_classes(voc: dict[str, FewShotSource], annotation: str) -> None:
    source, fold = voc["trainval"], folds.pascal5i(0)
    episodes = EpisodeList.draw(source, fold.test, ways=2, shots=1, episodes=4, min_area=2048, fold=fold)
    dataset = EpisodeDataset(source, episodes, size=(161, 161), annotation=annotation)
    batch = FewShotBatch.stack([dataset[i] for i in range(4)])
    assert (batch.support_foreground.sum((-1, -2)) > 0).all()
    assert (batch.support_background.sum((-1, -2)) > 0).all()
    assert ((batch.support_foreground * batch.support_background).sum() == 0).item()
    assert set(batch.query_labels.unique().tolist()) <= {0, 1, 2, 255}


def test_class_without_enough_real_images_is_named_with_its_fold(voc: dict[str, FewShotSource]) -> None:
    fold = folds.pascal5i(0)
    with pytest.raises(TooFewImagesError, match=r"voc val: every class of pascal5i fold 0 .*'boat' \(4\): 0"):
        EpisodeList.draw(voc["val"], fold.test, min_area=2048, fold=fold)


def test_check_finds_nothing_wrong_in_the_packs_but_empty_classes(data_root: Path) -> None:
    for name, images in (("coco_mini", 328), ("voc_mini", 490)):
        report = check.check_data("auto", data_root / name)
        assert sum(s["images"] for s in report.splits.values()) == images
        assert {f.kind for f in report.problems()} <= {"empty_class"}
        assert not report.problems(allow=["empty_class"])
