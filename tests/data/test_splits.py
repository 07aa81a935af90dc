"""Dividing data: in proportion, seeded, written as lists and read back; and repeats for rare classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_folders import halves, label_folder, picture, save

from fssops.data.errors import DataError
from fssops.data.image_lists import open_listed, write_lists
from fssops.data.repeat_factors import repeat_factors
from fssops.data.splits import stratified_split

ITEMS = {
    f"i{number:03d}": {0} | ({1} if number % 4 == 0 else set()) | ({2} if number < 5 else set())
    for number in range(100)
}


def test_each_class_is_divided_in_proportion() -> None:
    parts = stratified_split(ITEMS, {"train": 0.8, "val": 0.2}, seed=1)
    assert sorted(parts["train"] + parts["val"]) == sorted(ITEMS)
    assert len(parts["val"]) == 20
    counts = [sum(number in ITEMS[name] for name in parts["val"]) for number in (0, 1, 2)]
    assert counts == [20, 5, 1]
    assert parts == stratified_split(ITEMS, {"train": 0.8, "val": 0.2}, seed=1)
    assert parts != stratified_split(ITEMS, {"train": 0.8, "val": 0.2}, seed=2)


def test_every_split_gets_an_item_and_wrong_shares_are_refused() -> None:
    assert all(stratified_split({"a": {1}, "b": {1}, "c": {1}}, {"train": 0.8, "val": 0.1, "test": 0.1}, 0).values())
    with pytest.raises(ValueError, match=r"there must be an item for each of .* got 1"):
        stratified_split({"a": {1}}, {"train": 0.5, "val": 0.5}, 0)
    with pytest.raises(ValueError, match="fractions must be above 0 and together 1"):
        stratified_split(ITEMS, {"train": 0.8, "val": 0.1}, 0)


def test_images_of_rare_classes_are_repeated_by_the_root_of_what_they_lack() -> None:
    # Class 1 is in half of the images, class 2 in a twentieth: sqrt(0.2 / 0.05) = 2.
    classes = [{1} if number % 2 else {3} for number in range(19)] + [{1, 2}]
    assert repeat_factors(classes, 0.2) == [1.0] * 19 + [pytest.approx(2.0)]
    assert repeat_factors([set(), {1}], 0.001) == [1.0, 1.0]


def test_lists_are_splits_of_their_own(tmp_path: Path) -> None:
    label_folder(tmp_path)
    for name in "bcd":
        save(tmp_path / "images" / f"{name}.jpg", picture())
        save(tmp_path / "labels" / f"{name}.png", halves(0, 1))
    lists = tmp_path / "split.json"
    write_lists(lists, "all", {"train": ["a", "c", "d"], "val": ["b"]})

    def opened(split: str | None, truth: str = "semantic") -> list[str]:
        source = open_listed(str(lists), "auto", tmp_path, split, truth, {})
        assert source.split == (split or "train")
        return list(source.names)

    assert opened("val") == ["b"]
    assert opened(None, "few-shot") == ["a", "c", "d"]
    few_shot = open_listed(str(lists), "auto", tmp_path, "train", "few-shot", {})
    assert set(few_shot.areas()) == {"a", "c", "d"}
    with pytest.raises(ValueError, match="name must be one of its 3 images, got 'b'"):
        few_shot.images.truth("b")
    for content, message in (
        ({"of": "all", "splits": {"train": ["a", "z"]}}, "split.json: .*name must be one of its 4 images, got 'z'"),
        ({"of": "all", "splits": {"val": ["a"]}}, "split.json: split must be val, got 'train'"),
        ({"splits": {"train": []}}, "split.json: lists must read"),
        ([], "split.json: lists must read"),
    ):
        lists.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            opened("train")
