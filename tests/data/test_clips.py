"""Training clips: which frames they take, that all are augmented alike, and what is said of objects in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from video_folder import SIZE, annotation, box, write_videos

from fssops.data.augmentation.chains import universal_chain
from fssops.data.datasets.clips import ClipItem, TrainingClips, sampled_frames
from fssops.data.layouts import open_data


def cat_that_leaves() -> dict[str, Any]:
    return annotation(1, 1, 3, [box(0), None, box(10), box(20)])


def test_frames_are_sampled_in_order_within_reach_with_repeats_but_not_of_the_first() -> None:
    rng = np.random.default_rng(0)
    drawn = [sampled_frames(60, 3, 5, rng) for _ in range(2000)]
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
        low, high = sampled_frames(total, 2, reach, rng)
        counts[low, high] += 1
    wanted = np.zeros((total, total))
    for first in range(total):
        near = [i for i in range(max(0, first - reach), min(total, first + reach + 1)) if i != first]
        for other in near:
            wanted[min(first, other), max(first, other)] += 1 / total / len(near)
    np.testing.assert_allclose(counts / draws, wanted, atol=0.012)


def test_a_video_of_one_frame_repeats_it() -> None:
    assert sampled_frames(1, 3, 20, np.random.default_rng(0)) == [0, 0, 0]
    assert sampled_frames(5, 1, 20, np.random.default_rng(0))[0] in range(5)
    with pytest.raises(ValueError, match="total must be at least 1, got 0"):
        sampled_frames(0, 2, 20, np.random.default_rng(0))


def clips(root: Path, annotations: list[dict[str, Any]], chain: Any = None, **options: Any) -> TrainingClips:
    source = open_data("ytvis", write_videos(root, annotations), truth="video")
    return TrainingClips(source, chain or universal_chain("none"), **options)


def grey(item: ClipItem) -> list[int]:
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
    chain = universal_chain("flip", short_sides=[24, 36, 48, 60], longest=200)
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
    dataset = clips(tmp_path, [annotation(1, 1, 3, [box(0)] * 4)], universal_chain("flip"))
    for seed in range(6):
        item = dataset.item(0, np.random.default_rng(seed))
        left = 32 - 8 if bool(item.clip[0, 0, 0, -1] > item.clip[0, 0, 0, 0]) else 0
        for mask in item.target.masks[0].numpy():
            np.testing.assert_array_equal(mask, box(left))


def test_clips_are_a_function_of_the_generator(tmp_path: Path) -> None:
    dataset = clips(tmp_path, [cat_that_leaves()], universal_chain("flip"))
    first, again = (dataset.draw(0, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.clip, again.clip)
    assert torch.equal(first.target.masks, again.target.masks)
    seed = int(torch.randint(1 << 62, (), generator=torch.Generator().manual_seed(5)))
    expected = dataset.item(0, np.random.default_rng(seed))
    assert (first.name, first.clip.tolist()) == (expected.name, expected.clip.tolist()), "as in runs made before"
    batch = ClipItem.stack([first, again])
    assert len(batch.images) == len(batch.targets or []) == 2


def test_one_frame_videos_train_as_clips_of_that_frame(tmp_path: Path) -> None:
    item = clips(tmp_path, [annotation(1, 2, 3, [box(0)])])[1]
    assert torch.equal(item.clip[0], item.clip[1])
    assert item.target.masks.shape == (1, 2, *SIZE)
