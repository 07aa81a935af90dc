"""YouTube-VIS: tracks, splits, class lists, and what is wrong with files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from video_folder import SIZE, annotation, box, write_videos

from fssops.data.augmentation.chains import universal_chain
from fssops.data.check import check_data
from fssops.data.datasets.clips import TrainingClips
from fssops.data.errors import AnnotationError, DataWarning, ImageFileError
from fssops.data.layouts import LAYOUTS, known_classes, open_data, recognise


def cat_that_leaves(**more: Any) -> dict[str, Any]:
    return annotation(1, 1, 3, [box(0), None, box(10), box(20)], **more)


def test_ytvis_json_gives_tracks_with_null_masks_and_areas(tmp_path: Path) -> None:
    dog = annotation(5, 2, 7, [box(3)])
    polygon = annotation(6, 1, 7, [None] * 4)
    polygon["segmentations"][1] = [[2.0, 2.0, 10.0, 2.0, 10.0, 9.0, 2.0, 9.0]]
    source = open_data("ytvis", write_videos(tmp_path, [cat_that_leaves(), dog, polygon]), truth="video")
    assert source.names == ["a", "b"]
    assert [(source.frames(n), source.size(n), source.video_id(n)) for n in source.names] == [
        (4, SIZE, 1),
        (1, SIZE, 2),
    ]
    assert source.classes.names == ["cat", "dog"]
    cat, second = source.tracks("a")
    assert (cat.id, cat.label, cat.crowd, cat.areas) == (1, 0, False, [64.0, None, 64.0, 64.0])
    assert cat.mask(1, *SIZE) is None
    for frame, left in ((0, 0), (2, 10), (3, 20)):
        drawn = cat.mask(frame, *SIZE)
        assert drawn is not None
        np.testing.assert_array_equal(drawn, box(left))
    drawn = second.mask(1, *SIZE)
    assert drawn is not None
    assert drawn.sum() == 56
    assert np.asarray(source.frame("a", 2))[0, -1].tolist() == [80, 80, 80]


@pytest.mark.parametrize(
    "place", ["train.json", "train/instances.json", "annotations_train.json", "annotations/instances_train.json"]
)
def test_annotation_files_are_found_where_the_data_sets_put_them(place: str, tmp_path: Path) -> None:
    root = write_videos(tmp_path, [cat_that_leaves()])
    target = root / place
    target.parent.mkdir(exist_ok=True)
    (root / "train.json").rename(target)
    assert open_data("ytvis", root, split="train", truth="video").names == ["a", "b"]
    assert LAYOUTS["ytvis"].splits(root) == ["train"]
    assert recognise(root) == "ytvis"


def test_val_finds_valid_and_a_missing_split_is_told(tmp_path: Path) -> None:
    root = write_videos(tmp_path, [cat_that_leaves()], split="valid")
    assert open_data("ytvis", root, split="val", truth="video").split == "valid"
    with pytest.raises(
        FileNotFoundError, match=r"split 'train' must have one of train.json, .* \(splits there: valid\)"
    ):
        open_data("ytvis", root, split="train", truth="video")


@pytest.mark.parametrize(
    ("name", "count", "third"), [("ytvis2019", 40, "lizard"), ("ytvis2021", 40, "bird"), ("ovis", 25, "Cat")]
)
def test_published_class_lists(name: str, count: int, third: str, tmp_path: Path) -> None:
    classes = known_classes(name, "video")
    assert classes is not None
    assert len(classes) == len(set(classes.names)) == count
    assert (classes.names[2], classes.categories[2].id) == (third, 3)
    with pytest.raises(
        AnnotationError, match=rf"categories must be the {count} of {name}, got 'cat'|'dog'|2 in another"
    ):
        open_data(name, write_videos(tmp_path, [cat_that_leaves()]), truth="video")


def bad(change: Any) -> Any:
    row = cat_that_leaves()
    change(row)
    return row


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda row: row.update(segmentations=None), "segmentations must be a list with an entry a frame, got None"),
        (lambda row: row["segmentations"].pop(), r"segmentations must be one a frame \(4\), got 3"),
        (lambda row: [s.update(size=[9, 9]) for s in row["segmentations"] if s], r"frame 0: RLE size \[9, 9\] is not"),
        (lambda row: row.update(video_id=9), "video id 9 not in videos"),
        (lambda row: row.update(category_id=4), "category id 4 not in categories"),
        (lambda row: row.update(category_id=[3]), r"category id \[3\] not in categories"),
        (lambda row: row.update(video_id={"id": 1}), r"video id \{'id': 1\} not in videos"),
    ],
)
def test_broken_objects_are_left_out_with_a_warning_and_found_by_the_check(
    change: Any, told: str, tmp_path: Path
) -> None:
    root = write_videos(tmp_path, [bad(change), annotation(2, 1, 7, [box(5)] * 4)])
    with pytest.warns(DataWarning, match=f"annotation 1 left out: {told}"):
        source = open_data("ytvis", root, truth="video")
    assert [track.id for track in source.tracks("a")] == [2]
    report = check_data("ytvis", root)
    assert [f.kind for f in report.problems()] == ["bad_annotation"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda body: body.pop("videos"), "must hold a list 'videos', got no such table"),
        (
            lambda body: body.update(annotations={}),
            "annotations must be a list, or null in files without truth, got dict",
        ),
        (lambda body: body["videos"][1].update(id=1), "video ids must be unique, got 1 twice"),
        (
            lambda body: [video.update(width=0) for video in body["videos"]],
            "a row that can be used, got video 1: width and height must be positive integers, got 0 x 24",
        ),
    ],
)
def test_broken_files_are_an_error_that_names_them(change: Any, told: str, tmp_path: Path) -> None:
    root = write_videos(tmp_path, [cat_that_leaves()])
    body = json.loads((root / "train.json").read_text())
    change(body)
    (root / "train.json").write_text(json.dumps(body))
    with pytest.raises(AnnotationError, match=f"train.json: .*{told}"):
        open_data("ytvis", root, truth="video")
    assert [f.kind for f in check_data("ytvis", root).problems()] in (["unreadable_layout"], ["duplicate_id"])


def test_cut_off_json_is_told(tmp_path: Path) -> None:
    root = write_videos(tmp_path, [cat_that_leaves()])
    text = (root / "train.json").read_text()
    (root / "train.json").write_text(text[: len(text) // 2])
    with pytest.raises(AnnotationError, match=r"must be complete JSON, got .* was it cut short"):
        open_data("ytvis", root, truth="video")


def test_a_video_of_zero_frames_is_left_out_and_found_by_the_check(tmp_path: Path) -> None:
    root = write_videos(tmp_path, [annotation(1, 1, 3, []), annotation(2, 2, 3, [box(0)])], lengths=(0, 1))
    with pytest.warns(DataWarning, match="video 1 must have at least one frame, got 0; left out"):
        source = open_data("ytvis", root, truth="video")
    assert source.names == ["b"]
    assert [f.kind for f in check_data("ytvis", root).problems()] == ["empty_video"]


def test_a_wrong_length_is_told_and_file_names_decide(tmp_path: Path) -> None:
    root = write_videos(tmp_path, [cat_that_leaves()])
    body = json.loads((root / "train.json").read_text())
    body["videos"][0]["length"] = 9
    (root / "train.json").write_text(json.dumps(body))
    with pytest.warns(DataWarning, match="video 1: length must be the number of file_names, 4, got 9"):
        assert open_data("ytvis", root, truth="video").frames("a") == 4


def test_missing_and_ill_sized_frames_are_told_and_found_by_the_check(tmp_path: Path) -> None:
    root = write_videos(tmp_path, [cat_that_leaves()])
    folder = root / "train" / "JPEGImages" / "a"
    (folder / "00001.png").unlink()
    Image.new("RGB", (30, 24)).save(folder / "00003.png")
    source = open_data("ytvis", root, truth="video")
    with pytest.raises(FileNotFoundError, match=r"00001.png: frame 1 of video a must exist, got no such file"):
        source.frame("a", 1)
    with pytest.raises(
        ImageFileError, match=r"00003.png: frame 3 must have the size of its video a, 32 x 24, got 30 x 24"
    ):
        source.frame("a", 3)
    assert [f.kind for f in check_data("ytvis", root).problems()] == ["unreadable_image", "wrong_size"]


def test_a_file_without_truth_can_be_read_but_not_trained_on(tmp_path: Path) -> None:
    source = open_data("ytvis", write_videos(tmp_path, None), truth="video")
    assert not source.has_truth
    with pytest.raises(AnnotationError, match="annotations must be a list to train on or to score against, got none"):
        TrainingClips(source, universal_chain("none"))
    assert [f.kind for f in check_data("ytvis", tmp_path).findings] == ["no_annotation"]


def test_the_same_frame_in_training_and_validation_is_found(tmp_path: Path) -> None:
    write_videos(tmp_path, [cat_that_leaves()])
    write_videos(tmp_path, [cat_that_leaves()], split="val")
    kinds = [f.kind for f in check_data("ytvis", tmp_path).problems()]
    assert set(kinds) == {"split_leakage"}


def test_real_videos_are_read(data_root: Path) -> None:
    report = check_data("ytvis", data_root / "davis_mini")
    assert not report.problems()
    assert {k: (v["videos"], v["objects"]) for k, v in report.splits.items()} == {"train": (12, 12), "val": (4, 4)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda masks: masks[2].update(size=[9, 9]), r"frame 2: RLE size \[9, 9\] is not that of the image"),
        (lambda masks: masks[2]["counts"].append(5), "frame 2: RLE counts cover 773 pixels"),
        (lambda masks: masks.__setitem__(2, {}), "frame 2: RLE size None is not that"),
        (lambda masks: masks.__setitem__(2, [[1, 2, 3, 4]]), "frame 2: fewer than 3 points"),
        (lambda masks: masks.__setitem__(2, "x"), "frame 2: segmentation is neither polygons nor RLE but str"),
    ],
)
def test_a_broken_frame_is_left_out_alone_and_told(change: Any, told: str, tmp_path: Path) -> None:
    root = write_videos(tmp_path, [bad(lambda row: change(row["segmentations"]))])
    with pytest.warns(DataWarning, match=rf"train\.json: annotation 1: {told}.*; left out of that frame"):
        source = open_data("ytvis", root, truth="video")
    (track,) = source.tracks("a")
    assert [mask is None for mask in (track.mask(frame, *SIZE) for frame in range(4))] == [False, True, True, False]
    assert [f.kind for f in check_data("ytvis", root).problems()] == ["bad_annotation"]


def test_a_broken_polygon_of_a_frame_is_left_out_alone(tmp_path: Path) -> None:
    parts = [[2.0, 2.0, 10.0, 2.0, 10.0, 9.0, 2.0, 9.0], [1, 2, 3, 4]]
    root = write_videos(tmp_path, [bad(lambda row: row["segmentations"].__setitem__(0, parts))])
    with pytest.warns(DataWarning, match="annotation 1: frame 0: polygon 1 left out: fewer than 3 points$"):
        (track,) = open_data("ytvis", root, truth="video").tracks("a")
    drawn = track.mask(0, *SIZE)
    assert drawn is not None
    assert drawn.sum() == 56


@pytest.mark.parametrize("crowd", ["0", 0.0, None, False])
def test_iscrowd_of_a_video_is_the_number_that_it_plainly_is(crowd: object, tmp_path: Path) -> None:
    (track,) = open_data("ytvis", write_videos(tmp_path, [cat_that_leaves(iscrowd=crowd)]), truth="video").tracks("a")
    assert track.crowd is False


@pytest.mark.parametrize("area", [10**400, float("nan"), True, "64", [64]])
def test_areas_that_are_no_numbers_count_as_not_stated(area: object, tmp_path: Path) -> None:
    root = write_videos(tmp_path, [cat_that_leaves(areas=[64, None, area, 64])])
    (track,) = open_data("ytvis", root, truth="video").tracks("a")
    assert track.areas == [64.0, None, None, 64.0]


@pytest.mark.parametrize("form", [float, str])
def test_numbers_in_other_forms_are_the_same_videos(form: Any, tmp_path: Path) -> None:
    root = write_videos(tmp_path, [cat_that_leaves(id=form(1), video_id=form(1), category_id=form(3), iscrowd=form(0))])
    body = json.loads((root / "train.json").read_text())
    for row in body["videos"]:
        row.update({key: form(row[key]) for key in ("id", "width", "height", "length")})
    (root / "train.json").write_text(json.dumps(body))
    source = open_data("ytvis", root, truth="video")
    assert list(source.problems()) == []
    assert (source.size("a"), source.video_id("a"), [track.id for track in source.tracks("a")]) == (SIZE, 1, [1])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"width": 0}, "video 1: width and height must be positive integers, got 0 x 24; left out"),
        ({"file_names": ["a", None]}, "video 1: file_names must be a name below its folder, got None; left out"),
        ({"file_names": "a"}, "video 1: file_names must be a list of names, got 'a'; left out"),
        ({"id": 1.5}, r"videos\[0\] must be an object whose id is a number or a name, got .*; left out"),
    ],
)
def test_a_broken_video_is_left_out_alone_and_told(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    root = write_videos(tmp_path, [cat_that_leaves(), annotation(2, 2, 7, [box(5)])])
    body = json.loads((root / "train.json").read_text())
    body["videos"][0].update(change)
    (root / "train.json").write_text(json.dumps(body))
    with pytest.warns(DataWarning, match=told):
        source = open_data("ytvis", root, truth="video")
    assert (source.names, [track.id for track in source.tracks("b")]) == (["b"], [2])


def test_videos_whose_folders_are_called_alike_do_not_replace_each_other(tmp_path: Path) -> None:
    root = write_videos(tmp_path, [], lengths=(1, 1, 1))
    body = json.loads((root / "train.json").read_text())
    for row, folder in zip(body["videos"], ("shot-3", "x/shot", "y/shot"), strict=True):
        row["file_names"] = [f"{folder}/00000.png"]
    (root / "train.json").write_text(json.dumps(body))
    source = open_data("ytvis", root, truth="video")
    assert [source.video_id(name) for name in source.names] == [1, 2, 3]
