"""DAVIS and YouTube-VOS: frames with masks of object numbers, as videos and as images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from example_folders import H, W, davis, halves, picture, save, youtube_vos

from fssops.data.check import check_data
from fssops.data.errors import AnnotationError, DataError, ImageSizeError, MaskSizeError
from fssops.data.layouts import LAYOUTS, open_data


@pytest.mark.parametrize("below", ["480p/", "Full-Resolution/", ""])
def test_numbers_of_masks_are_tracks(tmp_path: Path, below: str) -> None:
    davis(tmp_path, below)
    save(tmp_path / f"JPEGImages/{below}dog/00000.jpg", picture(7))
    source = open_data("auto", tmp_path, truth="video")
    assert (source.format, source.names, source.frames("bear"), source.size("bear")) == ("davis", ["bear"], 3, (H, W))
    first, second = source.tracks("bear")
    assert [(track.id, track.label) for track in (first, second)] == [(1, 0), (2, 0)]
    assert source.classes.names == ["object"]
    for frame in range(3):
        one, two = (track.mask(frame, H, W) for track in (first, second))
        assert one is not None
        assert two is not None
        assert (one == (halves(1, 0) == 1)).all()
        assert (two == ((halves(0, 1) == 1) & (frame > 0))).all()
    assert np.abs(np.asarray(source.frame("bear", 1), dtype=int) - picture(1)).mean() < 60


def test_lists_of_any_year_name_videos_or_their_files(tmp_path: Path) -> None:
    davis(tmp_path)
    old = tmp_path / "ImageSets" / "480p"
    old.mkdir()
    (old / "val.txt").write_text("/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\n" * 2)
    (old / "train.txt").write_text("nothing\n")
    assert LAYOUTS["davis"].splits(tmp_path) == ["train", "val"]
    assert open_data("davis", tmp_path, split="val", truth="video").names == ["bear"]
    assert open_data("davis", tmp_path, split="train", truth="video").names == ["bear"], "the list of 2017 counts"
    with pytest.raises(FileNotFoundError, match="split must be one of train, val, got 'test'"):
        open_data("davis", tmp_path, split="test", truth="video")
    (tmp_path / "ImageSets/2017/train.txt").write_text("bear\n../../etc\n")
    with pytest.raises(AnnotationError, match=r"train\.txt: line must be a name below its folder"):
        open_data("davis", tmp_path, truth="video")
    (tmp_path / "ImageSets/2017/train.txt").write_text("bear\ncow\n")
    with pytest.raises(FileNotFoundError, match="cow"):
        open_data("davis", tmp_path, truth="video")


def test_without_lists_all_videos_are_one_split(tmp_path: Path) -> None:
    davis(tmp_path)
    (tmp_path / "ImageSets/2017/train.txt").unlink()
    assert LAYOUTS["davis"].splits(tmp_path) == ["all"]
    assert open_data("davis", tmp_path, split="all", truth="video").names == ["bear"]


def test_white_alone_is_the_object_and_beside_numbers_is_ignored(tmp_path: Path) -> None:
    davis(tmp_path)
    for frame in range(3):
        save(tmp_path / f"Annotations/480p/bear/{frame:05d}.png", halves(0, 255))
    (track,) = open_data("davis", tmp_path, truth="video").tracks("bear")
    assert (track.mask(0, H, W) == (halves(0, 1) == 1)).all()
    assert [o.id for o in open_data("davis", tmp_path, truth="instance").truth("bear/00001").objects or ()] == [1]
    save(tmp_path / "Annotations/480p/bear/00001.png", halves(4, 255))
    assert [track.id for track in open_data("davis", tmp_path, truth="video").tracks("bear")] == [4]
    assert [
        len(open_data("davis", tmp_path, truth="instance").truth(f"bear/{n:05d}").objects or ()) for n in (0, 1)
    ] == [0, 1]


def test_youtube_vos_has_categories_and_says_nothing_of_frames_without_a_mask(tmp_path: Path) -> None:
    youtube_vos(tmp_path)
    source = open_data("auto", tmp_path, truth="video")
    assert (source.format, source.classes.names, source.has_truth) == ("youtube_vos", ["ape", "penguin"], True)
    first, second = source.tracks("003234408d")
    assert (first.label, second.label) == (1, 0)
    assert [first.mask(frame, H, W) is None for frame in range(3)] == [False, True, False]
    frames = open_data("auto", tmp_path, truth="instance")
    assert frames.names == ["003234408d/00000", "003234408d/00010"]
    assert [entry.label for entry in frames.truth(frames.names[1]).objects or ()] == [1, 0]
    few_shot = open_data("auto", tmp_path, truth="few-shot")
    assert few_shot.classes == {1: "ape", 2: "penguin"}
    assert few_shot.areas()["003234408d/00000"] == {1: H * W // 2, 2: H * W // 2}


def test_a_split_with_masks_of_first_frames_alone_has_no_truth(tmp_path: Path) -> None:
    youtube_vos(tmp_path)
    (tmp_path / "train").rename(tmp_path / "valid")
    (tmp_path / "valid/Annotations/003234408d/00010.png").unlink()
    source = open_data("auto", tmp_path, split="valid", truth="video")
    assert not source.has_truth
    with pytest.raises(AnnotationError, match=r"003234408d: video must have its masks .*got none of frame 00010"):
        source.tracks("003234408d")
    report = check_data("youtube_vos", tmp_path, truth="video")
    assert report.problems() == []
    assert "no_annotation" in report.counts()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], r"meta\.json must hold a map 'videos'"),
        ({"videos": {"003234408d": {"objects": []}}}, "objects of video '003234408d' must map numbers to objects"),
        ({"videos": {"003234408d": {"objects": {"x": {}}}}}, "must map numbers to objects"),
        (
            {"videos": {"003234408d": {"objects": {"1": {"category": "ape"}, "2": {}}}}},
            "object 2 of video '003234408d' must have a category, got none",
        ),
    ],
)
def test_a_broken_meta_file_is_refused(tmp_path: Path, content: object, told: str) -> None:
    youtube_vos(tmp_path)
    (tmp_path / "train" / "meta.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=told):
        open_data("youtube_vos", tmp_path, truth="video")


def test_objects_beyond_the_meta_file_sizes_and_missing_frames_name_the_file(tmp_path: Path) -> None:
    youtube_vos(tmp_path)
    save(tmp_path / "train/Annotations/003234408d/00010.png", halves(3, 2))
    with pytest.raises(AnnotationError, match=r"every object must be one of .*meta\.json, got 3 of video '003234408d'"):
        open_data("youtube_vos", tmp_path, truth="video").tracks("003234408d")
    save(tmp_path / "train/Annotations/003234408d/00010.png", np.zeros((3, 3)))
    with pytest.raises(MaskSizeError, match=r"00010\.png: mask must have the size of its image, 30 x 20, got 3 x 3"):
        open_data("youtube_vos", tmp_path, truth="video").tracks("003234408d")
    save(tmp_path / "train/JPEGImages/003234408d/00005.jpg", np.zeros((3, 3, 3)))
    with pytest.raises(ImageSizeError, match=r"00005\.jpg: frame must have the size of its video 003234408d, 30 x 20"):
        open_data("youtube_vos", tmp_path, truth="video").frame("003234408d", 1)
    (tmp_path / "train/JPEGImages/empty").mkdir()
    with pytest.raises(DataError, match="empty: video must have at least one frame, got none"):
        open_data("youtube_vos", tmp_path, truth="video")
