"""The built-in data set."""

from __future__ import annotations

import numpy as np
import pytest
from fssops.data.generated import GROUPS, TEXTURES, GeneratedSource

from fssops.data import folds
from fssops.data.layouts import open_data


def test_same_seed_same_pictures_and_splits_and_seeds_differ() -> None:
    pictures = {
        key: np.asarray(GeneratedSource(split, size=64, images_per_class=2, seed=seed).image(f"{split}-00003"))
        for key, split, seed in (("a", "train", 0), ("b", "train", 0), ("val", "val", 0), ("seed", "train", 1))
    }
    assert (pictures["a"] == pictures["b"]).all()
    assert not (pictures["a"] == pictures["val"]).all()
    assert not (pictures["a"] == pictures["seed"]).all()


def test_order_of_access_does_not_matter() -> None:
    source = GeneratedSource(size=48, images_per_class=2)
    forwards = [np.asarray(source.image(n)) for n in source.names[:6]]
    backwards = [np.asarray(source.image(n)) for n in reversed(source.names[:6])]
    assert all((a == b).all() for a, b in zip(forwards, reversed(backwards), strict=True))


def test_every_class_has_its_images_and_every_image_a_main_object_and_distractors() -> None:
    source = GeneratedSource(size=64, images_per_class=4)
    assert len(source.classes) == 2 * len(TEXTURES) == 28
    assert len(source.names) == 28 * 4
    for class_id in source.classes:
        assert len(source.images_of(class_id, min_area=100)) >= 4
    distractors = 0
    for name in source.names:
        found = source.classes_of(name)
        main = int(name[-5:]) % 28 + 1
        assert main in found
        assert all((c - main) % GROUPS == 0 for c in found)
        distractors += len(found) > 1
    assert distractors > 0.9 * len(source.names)


def test_objects_stand_out_from_the_background_by_texture_not_by_colour() -> None:
    """Colours are no cue: over many objects of a class, the mean colour says nothing about the class."""
    source = GeneratedSource(size=64, images_per_class=12)
    means = {}
    for class_id in (1, 6, 11):
        pixels = []
        for name in source.images_of(class_id):
            inside = source.label_map(name) == class_id
            pixels.append(np.asarray(source.image(name))[inside].mean(axis=0))
        means[class_id] = np.mean(pixels, axis=0)
    spread = np.abs(np.array(list(means.values())) - np.mean(list(means.values()), axis=0)).max()
    assert spread < 25


def test_instances_partition_the_class() -> None:
    source = GeneratedSource(size=64, images_per_class=8)
    several = 0
    for name in source.names[:60]:
        for class_id in source.classes_of(name):
            numbers = source.instance_map(name, class_id)
            assert ((numbers > 0) == (source.label_map(name) == class_id)).all()
            several += len(np.unique(numbers)) > 2
    assert several > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "trainval"}, "split must be one of train, val, test, got 'trainval'"),
        ({"size": 16}, "size must be an integer from 32 to 512, got 16"),
        ({"images_per_class": 0}, "images_per_class must be at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    ],
)
def test_bad_option_is_an_error(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_data("generated", **options, truth="few-shot")


def test_interleaved_folds_share_texture_kinds_but_no_class() -> None:
    source = GeneratedSource(size=32, images_per_class=1)
    tested = [folds.by_name("generated", i, classes=list(source.classes)).test for i in range(4)]
    assert sorted(c for t in tested for c in t) == list(source.classes)
    assert [len(t) for t in tested] == [7, 7, 7, 7]
