"""What is drawn: textures, scenes and videos."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from video_folder import annotation, box, write_videos

from fssops.data import folds
from fssops.data.few_shot_source import FewShotSource
from fssops.data.generated_textures import GROUPS, TEXTURES
from fssops.data.layouts import open_data


def textures(**options: Any) -> FewShotSource:
    return open_data("generated", truth="few-shot", **options)


def test_same_seed_same_pictures_and_splits_and_seeds_differ() -> None:
    pictures = {
        key: np.asarray(textures(split=split, size=64, images_per_class=2, seed=seed).image(f"{split}-00003"))
        for key, split, seed in (("a", "train", 0), ("b", "train", 0), ("val", "val", 0), ("seed", "train", 1))
    }
    assert (pictures["a"] == pictures["b"]).all()
    assert not (pictures["a"] == pictures["val"]).all()
    assert not (pictures["a"] == pictures["seed"]).all()


def test_order_of_access_does_not_matter() -> None:
    source = textures(size=48, images_per_class=2)
    forwards = [np.asarray(source.image(n)) for n in source.names[:6]]
    backwards = [np.asarray(source.image(n)) for n in reversed(source.names[:6])]
    assert all((a == b).all() for a, b in zip(forwards, reversed(backwards), strict=True))


def test_every_class_has_its_images_and_every_image_a_main_object_and_distractors() -> None:
    source = textures(size=64, images_per_class=4)
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
    source = textures(size=64, images_per_class=12)
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
    source = textures(size=64, images_per_class=8)
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
        ({"images_per_class": 0}, "images_per_class must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    ],
)
def test_bad_option_is_an_error(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        textures(**options)


def test_interleaved_folds_share_texture_kinds_but_no_class() -> None:
    source = textures(size=32, images_per_class=1)
    tested = [folds.by_name("generated", i, classes=list(source.classes)).test for i in range(4)]
    assert sorted(c for t in tested for c in t) == list(source.classes)
    assert [len(t) for t in tested] == [7, 7, 7, 7]


def cat_that_leaves(**more: Any) -> dict[str, Any]:
    return annotation(1, 1, 3, [box(0), None, box(10), box(20)], **more)


def test_generated_videos_follow_from_the_seed_alone() -> None:
    first, again = (open_data("generated_videos", split="val", videos=4, truth="video") for _ in range(2))
    other = open_data("generated_videos", split="val", videos=4, seed=1, truth="video")
    name = first.names[2]
    assert np.array_equal(first.frame(name, 3), again.frame(name, 3))
    assert not np.array_equal(first.frame(name, 3), other.frame(name, 3))
    assert not np.array_equal(first.frame(name, 3), first.frame(name, 4))


def test_generated_objects_move_hide_and_return() -> None:
    source = open_data("generated_videos", videos=30, frames=10, truth="video")
    returned, moved = 0, 0
    for name in source.names:
        for track in source.tracks(name):
            seen = [mask is not None for mask in track.segmentations]
            text = "".join(map(str, map(int, seen))).strip("0")
            returned += "0" in text
            if seen[0] and seen[-1]:
                ends = [np.argwhere(track.segmentations[k]).mean(0) for k in (0, -1)]
                moved += bool(np.abs(ends[0] - ends[1]).max() > 4)
    assert returned >= 5
    assert moved >= 15


def test_generated_masks_of_a_frame_do_not_overlap() -> None:
    source = open_data("generated_videos", videos=10, truth="video")
    for name in source.names:
        for frame in range(source.frames(name)):
            masks = [m for t in source.tracks(name) if (m := t.mask(frame, 64, 64)) is not None]
            assert not masks or np.sum(masks, axis=0).max() <= 1


def test_wrong_options_of_sources_are_told() -> None:
    for options, told in (
        ({"size": 8}, "size must be an integer from 32 to 512, got 8"),
        ({"frames": 0}, "frames must be an integer from 1 to 1000, got 0"),
        ({"split": "dev"}, "split must be one of train, val, test, got 'dev'"),
        ({"side": 3}, "options of layout generated_videos must be split, size, videos, frames, seed, got 'side'"),
    ):
        with pytest.raises(ValueError, match=told):
            open_data("generated_videos", **options, truth="video")
    with pytest.raises(ValueError, match=r"layout must be auto, .*ytvis, .* got 'mp4'"):
        open_data("mp4", truth="video")
    with pytest.raises(FileNotFoundError, match="root must be a folder, got no such folder"):
        open_data("ytvis", "nowhere", truth="video")


@pytest.mark.parametrize("wrong", ["train-9", "train-0", "train-²", "val-00000", ""])
def test_a_video_that_is_not_there_is_told(tmp_path: Path, wrong: str) -> None:
    stored = open_data("ytvis", write_videos(tmp_path, [cat_that_leaves()]), truth="video")
    for source in (stored, open_data("generated_videos", videos=2, truth="video")):
        for ask in (source.frames, source.size, source.tracks, source.video_id, partial(source.frame, index=0)):
            with pytest.raises(ValueError, match=r"train: name must be one of its 2 videos, got '"):
                ask(wrong)  # type: ignore[operator]
