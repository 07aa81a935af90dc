"""Splits of one's own: shares of classes, copies and sequences kept together, lists that stand for splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fssops.data.errors import AnnotationError, DataError
from fssops.data.layouts import open_data
from fssops.data.source import ImageSource
from fssops.data.splits import Split, sequence_of, stratified_split, write_lists
from fssops.truth import Classes, Truth


class Drawn(ImageSource):
    """Images of one pixel a class; ``shades`` says which look the same."""

    def __init__(self, classes_of: Sequence[set[int]], names: Sequence[str] = (), shades: Sequence[int] = ()) -> None:
        listed = Classes.from_names(["background", "common", "rare", "rarest"])
        self.classes_of, self.shades = classes_of, shades or range(len(classes_of))
        super().__init__("semantic", "train", listed, names or [f"n{i:03d}" for i in range(len(classes_of))])

    def image(self, name: str) -> Image.Image:
        shade = self.shades[self.names.index(name)]
        return Image.new("RGB", (4, 1), (shade % 256, shade // 256, 0))

    def truth(self, name: str) -> Truth:
        labels = np.zeros((1, 4), dtype=np.uint8)
        for label in self.classes_of[self.names.index(name)]:
            labels[0, label] = label
        return Truth(1, 4, label_map=labels)


def many() -> Drawn:
    """Of 200 images 150 common, 20 rare (half of them with common beside it), 5 rarest, the rest empty."""
    return Drawn([{1}] * 140 + [{1, 2}] * 10 + [{2}] * 10 + [{3}] * 5 + [set()] * 35)


def test_every_part_has_its_share_of_every_class_and_the_same_seed_the_same_parts() -> None:
    split = stratified_split(many(), {"val": 0.2, "test": 0.2}, seed=3)
    assert {part: len(names) for part, names in split.parts.items()} == {"train": 120, "val": 40, "test": 40}
    assert split.classes["rare"] == {"train": 12, "val": 4, "test": 4}
    assert split.classes["rarest"] == {"train": 3, "val": 1, "test": 1}
    assert "background" not in split.classes
    common = split.classes["common"]
    assert sum(common.values()) == 150
    assert abs(common["val"] - 30) <= 1
    assert abs(common["test"] - 30) <= 1
    assert sorted(name for names in split.parts.values() for name in names) == many().names
    assert split.parts["train"] == sorted(split.parts["train"])
    assert stratified_split(many(), {"val": 0.2, "test": 0.2}, seed=3) == split
    assert stratified_split(many(), {"val": 0.2, "test": 0.2}, seed=4).parts != split.parts


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_a_picture_stay_in_one_part(seed: int) -> None:
    shades = [i // 3 for i in range(60)]
    split = stratified_split(Drawn([{1}] * 60, shades=shades), {"val": 0.25}, seed=seed)
    shade_of = dict(zip(Drawn([{1}] * 60).names, shades, strict=True))
    train, val = ({shade_of[name] for name in names} for names in split.parts.values())
    assert not train & val
    assert len(split.parts["val"]) == 15
    assert split.copies == 60


def test_sequences_stay_in_one_part_only_where_it_is_asked_for() -> None:
    names = [f"{camera}/frame_{number:03d}.jpg" for camera in "abcd" for number in range(10)]
    source = Drawn([{1}] * 40, names)
    kept = stratified_split(source, {"val": 0.25}, by_sequence=True).parts
    assert len({name[0] for name in kept["val"]}) == 1
    assert len(kept["val"]) == 10
    assert len({name[0] for name in stratified_split(source, {"val": 0.25}).parts["val"]}) > 1
    with pytest.raises(DataError, match="must be at least 2 sequences of images to split, got 1"):
        stratified_split(Drawn([{1}] * 2, ["a_1", "a_2"]), {"val": 0.5}, by_sequence=True)


@pytest.mark.parametrize(
    ("name", "sequence"),
    [("a/cam_0012.jpg", "a/cam"), ("b/7.png", "b"), ("7.png", "."), ("clip-2 (3).png", "clip-2 (3)"), ("x1y22", "x1y")],
)
def test_a_sequence_is_the_name_without_the_number_at_its_end(name: str, sequence: str) -> None:
    assert sequence_of(name) == sequence


def test_no_part_is_empty_and_wrong_shares_are_told() -> None:
    parts = stratified_split(Drawn([{1}, {1}, {1}]), {"val": 0.01, "test": 0.01}).parts
    assert sorted(map(len, parts.values())) == [1, 1, 1]
    with pytest.raises(DataError, match="train: there must be at least 2 different images to split, got 1"):
        stratified_split(Drawn([{1}, {1}], shades=[5, 5]), {"val": 0.5})
    for shares in ({}, {"val": 1.0}, {"val": 0.0}, {"val": 0.6, "test": 0.4}, {"train": 0.5}, {"val": float("nan")}):
        with pytest.raises(ValueError, match="shares must be above 0 and leave some for train, got"):
            stratified_split(many(), shares)


def test_lists_stand_for_splits_of_any_layout(voc_folder: Path) -> None:
    source = open_data("voc", voc_folder, split="train", truth="few-shot")
    split = stratified_split(source, {"val": 1 / 3}, seed=1)
    files = write_lists(split, voc_folder / "splits")
    assert files["val"].read_text().splitlines() == ["# split: train", *split.parts["val"]]
    for part, names in split.parts.items():
        for truth in ("few-shot", "semantic"):
            opened = open_data("auto", voc_folder, split=f"splits/{part}.txt", truth=truth)  # type: ignore[call-overload]
            assert (opened.split, opened.names) == (part, names)
    few_shot = open_data("voc", voc_folder, split=str(files["val"]), truth="few-shot")
    assert {name for label in (1, 2, 3) for name in few_shot.images_of(label)} == set(split.parts["val"])
    with pytest.raises(ValueError, match="name must be one of its 3 images"):
        few_shot.image(split.parts["train"][0])


def test_lists_are_never_lost_and_broken_ones_are_told(voc_folder: Path) -> None:
    folder = voc_folder / "splits"
    write_lists(Split({"train": ["im00"], "val": ["im01"]}, "train", {}, 0), folder)
    other = Split({"val": ["im01"], "train": ["im02"]}, "train", {}, 0)
    with pytest.raises(DataError, match=r"train\.txt: list must be new, or the same again, got another one"):
        write_lists(other, folder)
    assert (folder / "train.txt").read_text() == "# split: train\nim00\n"
    write_lists(other, folder, overwrite=True)
    assert (folder / "train.txt").read_text() == "# split: train\nim02\n"
    with pytest.raises(DataError, match="names in a list must be of one line"):
        write_lists(Split({"train": ["a\nb"]}, "train", {}, 0), folder, overwrite=True)
    for text, told in (
        ("", "must hold at least one name, got none"),
        ("# split: train\nim01\nim01\n", "every name must be listed once, got 'im01' twice"),
        ("im09\n", r"names must be of voc train, e\.g\. 'im00', got 'im09'; a first line '# split: NAME'"),
    ):
        (folder / "train.txt").write_text(text)
        with pytest.raises(AnnotationError, match=rf"train\.txt: .*{told}"):
            open_data("voc", voc_folder, split="splits/train.txt", truth="few-shot")
    with pytest.raises(FileNotFoundError, match=r"none\.txt: list of a split must exist, got no such file"):
        open_data("voc", voc_folder, split="none.txt", truth="few-shot")
