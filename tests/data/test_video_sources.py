"""Video data: readers, what is wrong with files, the generated set, sampling and clip-wise augmentation."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from video_folder import SIZE, annotation, box, write_videos

from fssops.data import universal, video
from fssops.data.errors import AnnotationError, DataWarning, ImageFileError
from fssops.data.video.check import check_videos


def cat_that_leaves(**more: Any) -> dict[str, Any]:
    return annotation(1, 1, 3, [box(0), None, box(10), box(20)], **more)


def test_ytvis_json_gives_tracks_with_null_masks_and_areas(tmp_path: Path) -> None:
    dog = annotation(5, 2, 7, [box(3)])
    polygon = annotation(6, 1, 7, [None] * 4)
    polygon["segmentations"][1] = [[2.0, 2.0, 10.0, 2.0, 10.0, 9.0, 2.0, 9.0]]
    source = video.open_source("ytvis", write_videos(tmp_path, [cat_that_leaves(), dog, polygon]))
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
    assert video.open_source("ytvis", root, split="train").names == ["a", "b"]
    assert video.splits_of("ytvis", root) == ["train"]
    assert video.looks_like_videos(root)


def test_val_finds_valid_and_a_missing_split_is_told(tmp_path: Path) -> None:
    root = write_videos(tmp_path, [cat_that_leaves()], split="valid")
    assert video.open_source("ytvis", root, split="val").split == "valid"
    with pytest.raises(
        FileNotFoundError, match=r"split 'train' must have one of train.json, .* \(splits there: valid\)"
    ):
        video.open_source("ytvis", root, split="train")


@pytest.mark.parametrize(
    ("name", "count", "third"), [("ytvis2019", 40, "lizard"), ("ytvis2021", 40, "bird"), ("ovis", 25, "Cat")]
)
def test_published_class_lists(name: str, count: int, third: str, tmp_path: Path) -> None:
    classes = video.known_classes(name)
    assert classes is not None
    assert len(classes) == len(set(classes.names)) == count
    assert (classes.names[2], classes.categories[2].id) == (third, 3)
    with pytest.raises(
        AnnotationError, match=rf"categories must be the {count} of {name}, got 'cat'|'dog'|2 in another"
    ):
        video.open_source(name, write_videos(tmp_path, [cat_that_leaves()]))


def bad(change: Any) -> Any:
    row = cat_that_leaves()
    change(row)
    return row


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda row: row.update(segmentations=None), "segmentations must be a list with an entry a frame, got None"),
        (lambda row: row["segmentations"].pop(), r"segmentations must be one a frame \(4\), got 3"),
        (
            lambda row: row["segmentations"][2].update(size=[9, 9]),
            r"frame 2: RLE size \[9, 9\] is not that of the image",
        ),
        (lambda row: row["segmentations"][0]["counts"].append(5), "frame 0: RLE counts cover 773 pixels"),
        (lambda row: row.update(video_id=9), "video id 9 not in videos"),
        (lambda row: row.update(category_id=4), "category id 4 not in categories"),
    ],
)
def test_broken_objects_are_left_out_with_a_warning_and_found_by_the_check(
    change: Any, told: str, tmp_path: Path
) -> None:
    root = write_videos(tmp_path, [bad(change), annotation(2, 1, 7, [box(5)] * 4)])
    with pytest.warns(DataWarning, match=f"annotation 1 left out: {told}"):
        source = video.open_source("ytvis", root)
    assert [track.id for track in source.tracks("a")] == [2]
    report = check_videos("ytvis", root)
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
            lambda body: body["videos"][0].update(width=0),
            "video 1: width and height must be positive integers, got 0 x 24",
        ),
        (lambda body: body["videos"][0].update(file_names=["a", None]), "video 1: file_names must be a list of names"),
        (
            lambda body: body["annotations"].append({"video_id": 1}),
            r"annotations\[1\] must be an object with an integer id",
        ),
    ],
)
def test_broken_files_are_an_error_that_names_them(change: Any, told: str, tmp_path: Path) -> None:
    root = write_videos(tmp_path, [cat_that_leaves()])
    body = json.loads((root / "train.json").read_text())
    change(body)
    (root / "train.json").write_text(json.dumps(body))
    with pytest.raises(AnnotationError, match=f"train.json: .*{told}"):
        video.open_source("ytvis", root)
    assert [f.kind for f in check_videos("ytvis", root).problems()] in (["unreadable_layout"], ["duplicate_id"])


def test_cut_off_json_is_told(tmp_path: Path) -> None:
    root = write_videos(tmp_path, [cat_that_leaves()])
    text = (root / "train.json").read_text()
    (root / "train.json").write_text(text[: len(text) // 2])
    with pytest.raises(AnnotationError, match=r"must be complete JSON, got .* was it cut short"):
        video.open_source("ytvis", root)


def test_a_video_of_zero_frames_is_left_out_and_found_by_the_check(tmp_path: Path) -> None:
    root = write_videos(tmp_path, [annotation(1, 1, 3, []), annotation(2, 2, 3, [box(0)])], lengths=(0, 1))
    with pytest.warns(DataWarning, match="video 1 must have at least one frame, got 0; left out"):
        source = video.open_source("ytvis", root)
    assert source.names == ["b"]
    assert [f.kind for f in check_videos("ytvis", root).problems()] == ["empty_video"]


def test_a_wrong_length_is_told_and_file_names_decide(tmp_path: Path) -> None:
    root = write_videos(tmp_path, [cat_that_leaves()])
    body = json.loads((root / "train.json").read_text())
    body["videos"][0]["length"] = 9
    (root / "train.json").write_text(json.dumps(body))
    with pytest.warns(DataWarning, match="video 1: length must be the number of file_names, 4, got 9"):
        assert video.open_source("ytvis", root).frames("a") == 4


def test_missing_and_ill_sized_frames_are_told_and_found_by_the_check(tmp_path: Path) -> None:
    root = write_videos(tmp_path, [cat_that_leaves()])
    folder = root / "train" / "JPEGImages" / "a"
    (folder / "00001.png").unlink()
    Image.new("RGB", (30, 24)).save(folder / "00003.png")
    source = video.open_source("ytvis", root)
    with pytest.raises(FileNotFoundError, match=r"00001.png: frame 1 of video a must exist, got no such file"):
        source.frame("a", 1)
    with pytest.raises(
        ImageFileError, match=r"00003.png: frame 3 must have the size of its video a, 32 x 24, got 30 x 24"
    ):
        source.frame("a", 3)
    assert [f.kind for f in check_videos("ytvis", root).problems()] == ["unreadable_image", "wrong_size"]


def test_a_file_without_truth_can_be_read_but_not_trained_on(tmp_path: Path) -> None:
    source = video.open_source("ytvis", write_videos(tmp_path, None))
    assert not source.has_truth
    with pytest.raises(AnnotationError, match="annotations must be a list to train on or to score against, got none"):
        video.TrainingClips(source, universal.pipeline("none"))
    assert [f.kind for f in check_videos("ytvis", tmp_path).findings] == ["no_annotation"]


def test_the_same_frame_in_training_and_validation_is_found(tmp_path: Path) -> None:
    write_videos(tmp_path, [cat_that_leaves()])
    write_videos(tmp_path, [cat_that_leaves()], split="val")
    kinds = [f.kind for f in check_videos("ytvis", tmp_path).problems()]
    assert set(kinds) == {"split_leakage"}


def test_real_videos_are_read(data_root: Path) -> None:
    report = check_videos("ytvis", data_root / "davis_mini")
    assert not report.problems()
    assert {k: (v["videos"], v["objects"]) for k, v in report.splits.items()} == {"train": (12, 12), "val": (4, 4)}


# Sampling.


def test_frames_are_sampled_in_order_within_reach_with_repeats_but_not_of_the_first() -> None:
    rng = np.random.default_rng(0)
    drawn = [video.sampled_frames(60, 3, 5, rng) for _ in range(2000)]
    assert all(frames == sorted(frames) for frames in drawn)
    assert all(frames[-1] - frames[0] <= 10 for frames in drawn)
    # With three frames one is the reference: the other two may be equal, never all three.
    assert {len(set(frames)) for frames in drawn} == {2, 3}
    assert {frame for frames in drawn for frame in frames} == set(range(60))


def test_pairs_follow_the_published_distribution() -> None:
    """Reference even over the video, partner even over what is in reach of it."""
    rng = np.random.default_rng(1)
    total, reach, draws = 6, 2, 20000
    counts = np.zeros((total, total))
    for _ in range(draws):
        low, high = video.sampled_frames(total, 2, reach, rng)
        counts[low, high] += 1
    wanted = np.zeros((total, total))
    for first in range(total):
        near = [i for i in range(max(0, first - reach), min(total, first + reach + 1)) if i != first]
        for other in near:
            wanted[min(first, other), max(first, other)] += 1 / total / len(near)
    np.testing.assert_allclose(counts / draws, wanted, atol=0.012)


def test_a_video_of_one_frame_repeats_it() -> None:
    assert video.sampled_frames(1, 3, 20, np.random.default_rng(0)) == [0, 0, 0]
    assert video.sampled_frames(5, 1, 20, np.random.default_rng(0))[0] in range(5)
    with pytest.raises(ValueError, match="total must be at least 1, got 0"):
        video.sampled_frames(0, 2, 20, np.random.default_rng(0))


# Clips.


def clips(root: Path, annotations: list[dict[str, Any]], chain: Any = None, **options: Any) -> video.TrainingClips:
    source = video.open_source("ytvis", write_videos(root, annotations))
    return video.TrainingClips(source, chain or universal.pipeline("none"), **options)


def grey(item: video.ClipItem) -> list[int]:
    """Numbers of the frames of a clip, read from their colours."""
    return [int(frame.min()) // 40 for frame in item.clip]


def test_clips_hold_the_frames_they_name_with_the_masks_of_those_frames(tmp_path: Path) -> None:
    dataset = clips(tmp_path, [cat_that_leaves()], frames=3)
    for seed in range(10):
        item = dataset.item(0, np.random.default_rng(seed))
        chosen = grey(item)
        assert item.name == f"a {','.join(map(str, chosen))}"
        assert item.target.labels.tolist() == [0]
        assert item.target.annotated is not None
        assert item.target.annotated.tolist() == [[frame != 1 for frame in chosen]]
        for position, frame in enumerate(chosen):
            left = {0: 0, 2: 10, 3: 20}.get(frame)
            wanted = np.zeros(SIZE, dtype=bool) if left is None else box(left)
            np.testing.assert_array_equal(item.target.masks[0, position].numpy(), wanted)


def test_objects_that_no_frame_of_the_clip_shows_and_crowds_are_left_out(tmp_path: Path) -> None:
    late = annotation(2, 1, 7, [None, None, None, box(4)])
    crowd = annotation(3, 1, 7, [box(4)] * 4, iscrowd=1)
    hidden = annotation(4, 1, 7, [np.zeros(SIZE, dtype=bool)] * 4)
    dataset = clips(tmp_path, [late, crowd, hidden])
    for seed in range(8):
        item = dataset.item(0, np.random.default_rng(seed))
        assert item.target.labels.tolist() == ([1] if 3 in grey(item) else [])
        assert item.target.masks.shape[1:] == (2, *SIZE)


def test_a_mask_that_is_empty_but_there_counts_as_annotated(tmp_path: Path) -> None:
    masks = [box(0), np.zeros(SIZE, dtype=bool), None, None]
    item = clips(tmp_path, [annotation(1, 1, 3, masks)], frames=8).item(0, np.random.default_rng(2))
    assert item.target.annotated is not None
    assert item.target.annotated[0].tolist() == [frame in (0, 1) for frame in grey(item)]


def test_all_frames_of_a_clip_are_augmented_alike(tmp_path: Path) -> None:
    chain = universal.pipeline("flip", short_sides=[24, 36, 48, 60], longest=200)
    dataset = clips(tmp_path, [cat_that_leaves()], chain, frames=4)
    sizes, flips = set(), set()
    for seed in range(20):
        item = dataset.item(0, np.random.default_rng(seed))
        sizes.add(tuple(item.clip.shape[2:]))
        flipped = [bool(frame[0, 0, -1] > frame[0, 0, 0]) for frame in item.clip]
        assert len(set(flipped)) == 1
        flips.add(flipped[0])
        assert item.target.masks.shape == (1, 4, *item.clip.shape[2:])
    assert sizes == {(24, 32), (36, 48), (48, 64), (60, 80)}
    assert flips == {True, False}


def test_a_flip_moves_masks_with_their_frame(tmp_path: Path) -> None:
    dataset = clips(tmp_path, [annotation(1, 1, 3, [box(0)] * 4)], universal.pipeline("flip"))
    for seed in range(6):
        item = dataset.item(0, np.random.default_rng(seed))
        left = 32 - 8 if bool(item.clip[0, 0, 0, -1] > item.clip[0, 0, 0, 0]) else 0
        for mask in item.target.masks[0].numpy():
            np.testing.assert_array_equal(mask, box(left))


def test_clips_are_a_function_of_the_generator(tmp_path: Path) -> None:
    dataset = clips(tmp_path, [cat_that_leaves()], universal.pipeline("flip"))
    first, again = (dataset.draw(0, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.clip, again.clip)
    assert torch.equal(first.target.masks, again.target.masks)
    batch = video.ClipItem.stack([first, again])
    assert len(batch.images) == len(batch.targets or []) == 2


def test_one_frame_videos_train_as_clips_of_that_frame(tmp_path: Path) -> None:
    item = clips(tmp_path, [annotation(1, 2, 3, [box(0)])])[1]
    assert torch.equal(item.clip[0], item.clip[1])
    assert item.target.masks.shape == (1, 2, *SIZE)


# The generated set.


def test_generated_videos_follow_from_the_seed_alone() -> None:
    first, again = (video.open_source("generated_videos", split="val", videos=4) for _ in range(2))
    other = video.open_source("generated_videos", split="val", videos=4, seed=1)
    name = first.names[2]
    assert np.array_equal(first.frame(name, 3), again.frame(name, 3))
    assert not np.array_equal(first.frame(name, 3), other.frame(name, 3))
    assert not np.array_equal(first.frame(name, 3), first.frame(name, 4))


def test_generated_objects_move_hide_and_return() -> None:
    source = video.open_source("generated_videos", videos=30, frames=10)
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
    source = video.open_source("generated_videos", videos=10)
    for name in source.names:
        for frame in range(source.frames(name)):
            masks = [m for t in source.tracks(name) if (m := t.mask(frame, 64, 64)) is not None]
            assert not masks or np.sum(masks, axis=0).max() <= 1


def test_wrong_options_of_sources_are_told() -> None:
    for options, told in (
        ({"size": 8}, "size must be an integer from 32 to 512, got 8"),
        ({"frames": 0}, "frames must be an integer from 1 to 1000, got 0"),
        ({"split": "dev"}, "split must be one of train, val, test, got 'dev'"),
        ({"side": 3}, "options of format generated_videos must be .* got 'side'"),
    ):
        with pytest.raises(ValueError, match=told):
            video.open_source("generated_videos", **options)
    with pytest.raises(ValueError, match=r"format must be ytvis, .* got 'mp4'"):
        video.open_source("mp4")
    with pytest.raises(FileNotFoundError, match="root must be a folder, got no such folder"):
        video.open_source("ytvis", "nowhere")


@pytest.mark.parametrize("wrong", ["train-9", "train-0", "train-²", "val-00000", ""])
def test_a_video_that_is_not_there_is_told(tmp_path: Path, wrong: str) -> None:
    stored = video.open_source("ytvis", write_videos(tmp_path, [cat_that_leaves()]))
    for source in (stored, video.open_source("generated_videos", videos=2)):
        for ask in (source.frames, source.size, source.tracks, source.video_id, partial(source.frame, index=0)):
            with pytest.raises(ValueError, match=r"train: name must be one of its 2 videos, got '"):
                ask(wrong)  # type: ignore[operator]
