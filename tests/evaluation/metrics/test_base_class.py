"""Base classes are averaged without the background, and those that no image shows are left out and told."""

from __future__ import annotations

import pytest
import torch

from fssops.evaluation.metrics.base_class import BaseClassIoU
from fssops.evaluation.metrics.metric import Coverage
from fssops.structures import IGNORE


def test_base_classes_are_averaged_without_the_background() -> None:
    metric = BaseClassIoU(3)
    metric.counts += torch.tensor([[90, 5, 5], [1, 1, 2], [0, 0, 0], [3, 0, 1]])
    found = metric.scores()
    assert found.miou == pytest.approx((0.25 + 0.75) / 2)
    assert found.background_iou == pytest.approx(0.9)
    assert found.as_json()["class_iou"][::2] == [0.25, 0.75]
    assert found.coverage() == {"base mIoU": Coverage(2, 3)}


def test_an_image_goes_as_well_as_its_share_of_right_pixels() -> None:
    metric = BaseClassIoU(2)
    assert metric.add(0, torch.tensor([[0, 1, 2, 2]]), torch.tensor([[0, 1, 1, IGNORE]])) == pytest.approx(2 / 3)
    assert metric.counts.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert metric.add(1, torch.tensor([[1]]), torch.tensor([[IGNORE]])) is None


def test_states_add_up() -> None:
    parts = [BaseClassIoU(1), BaseClassIoU(1)]
    for part in parts:
        part.add(0, torch.tensor([[0, 1]]), torch.tensor([[1, 1]]))
    whole = BaseClassIoU(1)
    whole.merge([part.state() for part in parts])
    assert whole.counts.tolist() == [[0, 2, 0], [2, 0, 2]]
