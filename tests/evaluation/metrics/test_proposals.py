"""Recall, best proposal and best merge, on masks whose answers are plain to see."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fssops.evaluation.episodes import EpisodeTruth
from fssops.evaluation.metrics import metrics_for, proposals
from fssops.evaluation.metrics.metric import Coverage, EpisodeSetting
from fssops.evaluation.metrics.proposals import ProposalBounds, best_merge, best_proposals, full_masks
from fssops.protocols import PROTOCOLS
from fssops.structures import IGNORE

FSSOPS = PROTOCOLS["fssops"]


def boxes(*spans: tuple[int, int]) -> Tensor:
    """Bool masks [P, 8, 8] of whole columns first..last."""
    masks = torch.zeros(len(spans), 8, 8, dtype=torch.bool)
    for mask, (first, last) in zip(masks, spans, strict=True):
        mask[:, first : last + 1] = True
    return masks


def truth(label: Tensor, class_id: int) -> EpisodeTruth:
    """Of a 1-way episode with one query."""
    return EpisodeTruth(torch.tensor([class_id]), [label], [(8, 8)])


def everywhere() -> Tensor:
    return torch.ones(8, 8, dtype=torch.bool)


def test_the_merge_takes_the_parts_of_an_object_and_leaves_what_harms() -> None:
    masks = boxes((0, 1), (2, 3), (2, 7), (6, 7))
    union, taken = best_merge(masks, boxes((0, 3))[0], everywhere())
    assert torch.equal(union, boxes((0, 3))[0])
    assert sorted(taken) == [0, 1]


def test_a_harmful_overlap_outside_does_not_count_where_pixels_are_ignored() -> None:
    valid = everywhere()
    valid[:, 4:] = False
    union, taken = best_merge(boxes((2, 7), (0, 1)), boxes((0, 3))[0], valid)
    assert sorted(taken) == [0, 1]
    assert torch.equal(union & valid, boxes((0, 3))[0])


def test_without_a_proposal_on_the_object_the_merge_is_empty() -> None:
    union, taken = best_merge(boxes((6, 7), (5, 5)), boxes((0, 1))[0], everywhere())
    assert not union.any()
    assert taken == []


def test_the_bounds_are_recall_best_proposal_and_best_merge() -> None:
    bounds = ProposalBounds(1, 3, [3, 4, 9], FSSOPS)
    halves = boxes((0, 1), (2, 3), (7, 7))  # the object in two halves: the best covers half, the merge all
    bounds.add(0, {"proposals": [halves]}, truth(boxes((0, 3))[0].long(), 3))
    bounds.add(1, {"proposals": [boxes((5, 7), (1, 1))]}, truth(boxes((5, 6))[0].long(), 4))  # IoU 2/3
    bounds.add(2, {"proposals": [boxes((0, 0))]}, truth(torch.zeros(8, 8, dtype=torch.long), 4))  # no object
    found = bounds.scores()
    scores = found.summary()
    assert scores["oracle merge mIoU"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["best proposal mIoU"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores["recall at 50"] == pytest.approx(1.0)
    assert scores["recall at 75"] == pytest.approx(0.0)
    # One of the three classes is never shown.
    assert found.coverage() == dict.fromkeys(("oracle merge mIoU", "best proposal mIoU"), Coverage((2,), 3))


def test_a_proposal_that_reaches_into_void_is_compared_without_it() -> None:
    label = boxes((0, 3))[0].long()
    label[:, 4:] = IGNORE
    bounds = ProposalBounds(1, 1, [1], FSSOPS)
    # The first covers the object and all of the void, the second three quarters of the object and nothing else.
    bounds.add(0, {"proposals": [boxes((0, 7), (0, 2))]}, truth(label, 1))
    assert bounds.recalled.tolist() == [[1, 1, 1]]
    assert bounds.best[0, 1].tolist() == bounds.merged[0, 1].tolist() == [32, 0, 0]
    scores = bounds.scores().summary()
    assert scores["best proposal mIoU"] == scores["oracle merge mIoU"] == scores["recall at 75"] == 1.0


def test_recall_of_no_object_is_not_a_number() -> None:
    bounds = ProposalBounds(1, 1, [1], FSSOPS)
    bounds.add(0, {"proposals": [boxes((0, 0))]}, truth(torch.zeros(8, 8, dtype=torch.long), 1))
    assert math.isnan(bounds.scores().summary()["recall at 50"])


def test_states_of_runs_add_up() -> None:
    parts = [ProposalBounds(2, 1, [1], FSSOPS), ProposalBounds(2, 1, [1], FSSOPS)]
    for number, part in enumerate(parts):
        part.add(number, {"proposals": [boxes((0, 1 + 2 * number))]}, truth(boxes((0, 3))[0].long(), 1))
    whole = ProposalBounds(2, 1, [1], FSSOPS)
    whole.merge([part.state() for part in reversed(parts)])
    assert whole.recalled.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert whole.scores().summary()["best proposal mIoU"] == pytest.approx((1 / 2 + 1) / 2)


def unchanged(masks: Tensor, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
    assert size == (8, 8)
    return masks


def test_the_first_stage_is_scored_by_its_best_or_as_published_second_best_proposal() -> None:
    label = boxes((0, 3))[0].long()
    label[:, 7] = IGNORE
    columns = {"proposals": boxes((0, 2), (0, 7), (5, 6)).float()[None]}  # IoU 3/4, 4/7 (the last is ignored), 0
    for second, expected in ((False, 3 / 4), (True, 4 / 7)):
        metrics = metrics_for(["episode", "proposals"], EpisodeSetting(PROTOCOLS["mm_former"], 1, 2, [1]))
        for number in range(2):
            outputs = best_proposals(unchanged, [columns], truth(label, 1), second=second)
            metrics.add(number, outputs, truth(label, 1))
        scores = metrics.scores()
        assert scores["few-shot"].summary()["mIoU"] == pytest.approx(expected)
        assert scores["proposals"].summary()["recall at 75"] == 1.0
        assert metrics.quality == {0: pytest.approx(expected), 1: pytest.approx(expected)}


def test_proposals_are_taken_to_the_size_of_the_label_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    soft = torch.rand(1, 7, 8, 8)
    label = torch.zeros(8, 8, dtype=torch.long)
    label[:2], label[6:] = 1, IGNORE
    whole = full_masks(unchanged, {"proposals": soft}, (8, 8), label)
    monkeypatch.setattr(proposals, "_AT_ONCE", 130)  # two at a time
    masks, sums = full_masks(unchanged, {"proposals": soft}, (8, 8), label)
    assert torch.equal(masks, whole[0])
    torch.testing.assert_close(sums, whole[1])
    assert torch.equal(masks, soft[0] > 0.5)
    torch.testing.assert_close(sums, torch.stack([soft[0, :, :2].sum((1, 2)), soft[0, :, :6].sum((1, 2))], dim=1))


def test_episodes_of_several_ways_have_no_best_proposal() -> None:
    several = EpisodeTruth(torch.tensor([1, 2]), [boxes((0, 3))[0].long()], [(8, 8)])
    with pytest.raises(ValueError, match="best_proposals: episodes must be of one way, got 2"):
        best_proposals(unchanged, [{"proposals": boxes((0, 1)).float()[None]}], several)
