"""Recall, best proposal and best merge, on masks whose answers are plain to see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fssops.evaluation.feature_cache import FeatureCache
from fssops.evaluation.proposals import ProposalCounts, ProposalTally, best_merge, count_proposals
from fssops.evaluation.protocols import PROTOCOLS
from fssops.structures import IGNORE, Episode

PROTOCOL = PROTOCOLS["mm_former"]


def boxes(*spans: tuple[int, int]) -> Tensor:
    """Bool masks [P, 8, 8] of whole columns first..last."""
    masks = torch.zeros(len(spans), 8, 8, dtype=torch.bool)
    for mask, (first, last) in zip(masks, spans, strict=True):
        mask[:, first : last + 1] = True
    return masks


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


def test_the_tally_gives_recall_and_both_bounds() -> None:
    tally = ProposalTally(1, [3, 4], "all")
    halves = boxes((0, 1), (2, 3), (7, 7))  # the object in two halves: the best covers half, the merge all
    label = boxes((0, 3))[0].long()
    tally.add(0, torch.tensor([3]), halves, label)
    tally.add(0, torch.tensor([4]), boxes((5, 7), (1, 1)), boxes((5, 6))[0].long())  # IoU 2/3
    tally.add(0, torch.tensor([4]), boxes((0, 0)), torch.zeros(8, 8, dtype=torch.long))  # the class is not there
    scores = tally.scores(lambda flat: flat, "skip")
    assert scores["oracle merge mIoU"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["best proposal mIoU"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores["recall at 50"] == pytest.approx(1.0)
    assert scores["recall at 75"] == pytest.approx(0.0)


class Columns:
    """A segmenter whose proposals are columns, whatever the image."""

    def __init__(self, *spans: tuple[int, int]) -> None:
        self.masks, self.passes = boxes(*spans).float(), 0

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        self.passes += 1
        return {"proposals": self.masks[None], "size": torch.tensor([[8, 8]])}

    def full_size(self, masks: Tensor, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        assert size == (8, 8)
        return masks

    def query_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features

    def summarise(self, *_: Any) -> None:
        return None

    def match(self, support: Any, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        return torch.stack([1 - self.masks[0], self.masks[0]])[None, None]


def episode(label: Tensor) -> Episode:
    blank = torch.zeros(1, 1, 3, 8, 8)
    return Episode(blank, blank[:, :, 0], blank[:, :, 0], blank[0], label[None], torch.tensor([1]))


def test_the_first_stage_is_scored_by_its_best_or_as_published_second_best_proposal() -> None:
    label = boxes((0, 3))[0].long()
    label[:, 7] = IGNORE
    model = Columns((0, 2), (0, 7), (5, 6))  # IoU 3/4, 4/7 (the last column does not count), 0
    for second, expected in ((False, 3 / 4), (True, 4 / 7)):
        tally = ProposalTally(1, [1], "all")
        with FeatureCache(model.encode, memory=1 << 20) as cache:
            counts = count_proposals(model, [[episode(label)] * 2], PROTOCOL, cache, tally, second=second)  # type: ignore[list-item]
        tp, fp, fn = counts.classes[0, 1].tolist()
        assert tp / (tp + fp + fn) == pytest.approx(expected)
        assert counts.work.tolist() == [2, 1, 0, 0]
        assert tally.found.tolist() == [[2, 2, 2]]


@pytest.mark.parametrize(
    ("protocol", "classes", "told"),
    [
        ("fssops", [1], "original_labels must be given for protocol 'fssops', got None"),
        ("mm_former", [1, 2], "count_proposals: episodes must be of one way, got 2"),
    ],
)
def test_what_the_first_stage_cannot_be_scored_on_is_refused(protocol: str, classes: list[int], told: str) -> None:
    found = episode(boxes((0, 3))[0].long())
    found.classes = torch.tensor(classes)
    model = Columns((0, 2))
    with FeatureCache(model.encode, memory=0) as cache, pytest.raises(ValueError, match=told):
        count_proposals(model, [[found]], PROTOCOLS[protocol], cache, ProposalTally(1, [1, 2], "all"))  # type: ignore[list-item]


def test_an_observer_counts_the_proposals_of_every_match() -> None:
    model = Columns((0, 3), (5, 6))
    counts = ProposalCounts(model, [[]], PROTOCOL, [1])
    logits = counts.match(None, model.encode(torch.zeros(1, 3, 8, 8)), (8, 8))
    assert logits.shape == (1, 1, 2, 8, 8)
    counts.observe(0, 0, episode(boxes((0, 3))[0].long()))
    assert counts.scores(lambda flat: flat)["best proposal mIoU"] == pytest.approx(1.0)
