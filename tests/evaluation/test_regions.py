"""Results, truths and episodes as regions and pictures: which are drawn, in which colours, under which names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fssops.evaluation.confusion_picture import confusion_picture
from fssops.evaluation.episode_pictures import Shown, ShownProposals, episode_grid, proposal_grid
from fssops.evaluation.regions import frame_regions, object_regions, result_regions, semantic_regions, truth_regions
from fssops.pictures import CROWD, object_colour, overlay
from fssops.run_lengths import encode
from fssops.structures import Episode, InstanceResult, PanopticResult, PanopticSegment, SegmentationResult
from fssops.truth import Classes, ObjectTruth, Segment, Truth

CLASSES = Classes.from_names(["cat", "sky"], things=[0])


def mask(*columns: int) -> np.ndarray:
    found = np.zeros((4, 8), dtype=bool)
    found[:, list(columns)] = True
    return found


def test_classes_of_a_label_map_have_their_names_and_colours() -> None:
    labels = np.array([[0, 0, 1, 255, 7]])
    regions = semantic_regions(labels, CLASSES.names, CLASSES.colours)
    assert [(region.caption, region.colour) for region in regions] == list(
        zip(CLASSES.names, CLASSES.colours, strict=True)
    )
    assert regions[1].mask.tolist() == [[False, False, True, False, False]]


def test_instances_are_drawn_above_a_score_the_best_on_top_in_colours_of_their_own() -> None:
    masks = torch.from_numpy(np.stack([mask(0, 1), mask(1, 2), mask(5)]))
    result = SegmentationResult(
        instance=InstanceResult(torch.tensor([0.9, 0.5, 0.1]), torch.zeros(3, dtype=torch.long), masks)
    )
    regions = result_regions(result, "instance", CLASSES)
    assert [region.caption for region in regions] == ["cat 50", "cat 90"]
    assert [region.colour for region in regions] == [object_colour(1), object_colour(0)]
    assert len(result_regions(result, "instance", CLASSES, at_least=3)) == 3
    assert len(result_regions(result, "instance", CLASSES, least_score=0.8)) == 1


def test_things_of_a_panoptic_map_differ_and_stuff_has_its_class_colour() -> None:
    ids = torch.tensor([[1, 1, 2, 3]])
    segments = [PanopticSegment(number, int(number == 3), number < 3, 0.9) for number in (1, 2, 3)]
    regions = result_regions(SegmentationResult(panoptic=PanopticResult(ids, segments)), "panoptic", CLASSES)
    assert [region.caption for region in regions] == ["cat", "cat", "sky"]
    assert [region.colour for region in regions] == [object_colour(0), object_colour(1), CLASSES.colours[1]]
    assert regions[1].mask.tolist() == [[False, False, True, False]]


def test_crowds_of_the_truth_are_grey_and_large_objects_lie_below() -> None:
    objects = [ObjectTruth(1, 0, mask(0)), ObjectTruth(2, 0, mask(0, 1, 2), crowd=True)]
    regions = truth_regions(Truth(4, 8, objects=objects), "instance", CLASSES)
    assert [int(region.mask.sum()) for region in regions] == [12, 4]
    assert regions[0].colour == CROWD != regions[1].colour
    ids = np.array([[1, 2]], dtype=np.int32)
    panoptic = Truth(1, 2, segment_ids=ids, segments=[Segment(1, 0, crowd=True), Segment(2, 1)])
    assert [region.colour for region in truth_regions(panoptic, "panoptic", CLASSES)] == [CROWD, CLASSES.colours[1]]
    assert [region.caption for region in truth_regions(panoptic, "semantic", CLASSES)] == ["cat", "sky"]


def test_colours_of_objects_stay_through_a_video() -> None:
    here, there = np.zeros((2, 60, 60), dtype=bool)
    here[10:16, 10:16], there[40:46, 40:46] = True, True
    tracks = [[encode(here), None], [encode(there), encode(there)], [encode(here), encode(here)]]
    image = np.full((60, 60, 3), 128, dtype=np.uint8)
    regions = [frame_regions(frame, tracks, [0, 1, 0], CLASSES.names, [0.9, 0.8, 0.1]) for frame in (0, 1)]
    assert [region.caption for region in regions[0]] == ["sky 80", "cat 90"]
    assert regions[0][0].colour != regions[0][1].colour
    first, second = (overlay(image, drawn) for drawn in regions)
    assert np.array_equal(first[40:46, 40:46], second[40:46, 40:46])
    assert (second[10:16, 10:16] == 128).all()
    truth = frame_regions(1, tracks, [0, 1, 0], CLASSES.names, None)
    assert [region.caption for region in truth] == ["cat", "sky"]  # the first is not in sight
    assert object_regions([None, mask()], [0, 0], CLASSES.names) == []


def episode() -> Episode:
    label = torch.zeros(1, 16, 16, dtype=torch.long)
    label[:, 4:12, 4:12] = 1
    return Episode(
        support_images=torch.zeros(1, 3, 3, 16, 16),
        support_foreground=label.expand(3, 16, 16)[None].float(),
        support_background=1 - label.expand(3, 16, 16)[None].float(),
        query_images=torch.zeros(1, 3, 16, 16),
        query_labels=label,
        classes=torch.tensor([4]),
        query_names=["q"],
    )


def test_episode_grid_draws_supports_truth_and_prediction() -> None:
    shown = Shown(episode(), [episode().query_labels[0].numpy()])
    plain = episode_grid([shown, shown], {4: "cup"}, "t")
    with_before = episode_grid([shown, shown], {4: "cup"}, "t", before=[shown, shown])
    assert with_before.width > plain.width
    assert len(np.unique(np.asarray(plain).reshape(-1, 3), axis=0)) > 20


def test_proposal_grid_draws_proposals_and_their_merge() -> None:
    masks = np.random.default_rng(0).random((2, 16, 16))
    shown = ShownProposals(episode(), masks, ["a", "b"], masks[0], "merged")
    plain = proposal_grid([shown], {4: "cup"}, "t", support=False, order="overlap")
    assert proposal_grid([shown], {}, "t", support=True, order="weight").width > plain.width
    assert len(np.unique(np.asarray(plain).reshape(-1, 3), axis=0)) > 20


def test_the_confusion_matrix_is_drawn(tmp_path: Path) -> None:
    confusion_picture(np.array([[3, 1, 0], [0, 4, 0]]), ["left", "right"], tmp_path / "c.png", "title")
    assert (tmp_path / "c.png").stat().st_size > 5000
