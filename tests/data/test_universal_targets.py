"""The truth of a test image as the masks that a model is trained on, at the size the model sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fssops.data.universal.dataset import target_at
from fssops.truth import ObjectTruth, Segment, Truth, TruthKind


def truth() -> Truth:
    """Sky above, one thing and a crowd below; a stripe is void."""
    ids = np.zeros((8, 12), dtype=np.int32)
    ids[:4], ids[4:, :4], ids[4:, 4:8] = 1, 2, 3
    return Truth(8, 12, segment_ids=ids, segments=[Segment(1, 0), Segment(2, 5), Segment(3, 5, crowd=True)])


@pytest.mark.parametrize(
    ("kind", "labels", "areas"),
    [("panoptic", [0, 5], [48, 16]), ("semantic", [0, 5], [48, 32]), ("instance", [5], [16])],
)
def test_each_kind_has_its_masks(kind: TruthKind, labels: list[int], areas: list[int]) -> None:
    found = target_at(truth(), kind, (8, 12), [5])
    assert found.labels.tolist() == labels
    assert found.masks.flatten(1).sum(1).tolist() == areas
    assert found.masks.dtype == torch.bool


@pytest.mark.parametrize("kind", ["panoptic", "semantic", "instance"])
def test_masks_follow_the_size_of_the_image(kind: TruthKind) -> None:
    own = target_at(truth(), kind, (8, 12), [5])
    double = target_at(truth(), kind, (16, 24), [5])
    assert torch.equal(double.masks, own.masks.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_polygons_are_drawn_at_the_size_and_the_truth_stays_as_it_is() -> None:
    square = [np.array([[2.0, 2.0], [6.0, 2.0], [6.0, 6.0], [2.0, 6.0]])]
    known = Truth(8, 12, objects=[ObjectTruth(1, 3, square), ObjectTruth(2, 4, square, crowd=True)])
    found = target_at(known, "instance", (16, 24), [3, 4])
    assert found.labels.tolist() == [3]
    assert int(found.masks.sum()) == 64
    assert known.objects is not None
    assert len(known.objects) == 2
    ids = truth()
    target_at(ids, "instance", (8, 12), [5])
    assert ids.objects is None
