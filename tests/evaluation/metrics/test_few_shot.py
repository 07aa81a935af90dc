"""Scores of few-shot episodes follow from their counts, by hand and by the rules of a protocol."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from fssops.evaluation.episodes import EpisodeTruth
from fssops.evaluation.metrics.few_shot import FewShotIoU
from fssops.evaluation.metrics.metric import Coverage
from fssops.protocols import PROTOCOLS, FewShotProtocol
from fssops.structures import IGNORE

PANET, FSSOPS = PROTOCOLS["panet"], PROTOCOLS["fssops"]


def by_hand(protocol: FewShotProtocol = PANET) -> FewShotIoU:
    counts = FewShotIoU(2, 3, [3, 5], protocol)
    counts.classes[0, 0] = torch.tensor([80, 10, 10])
    counts.classes[0, 3] = torch.tensor([6, 2, 2])
    counts.classes[0, 5] = torch.tensor([1, 0, 1])
    counts.classes[1, 0] = torch.tensor([50, 25, 25])
    counts.classes[1, 3] = torch.tensor([4, 4, 8])
    counts.classes[1, 5] = torch.tensor([0, 1, 1])
    counts.foreground[:] = torch.tensor([[3, 1, 0], [1, 0, 1]])
    counts.episodes[0] = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 0]])
    counts.episodes[1] = torch.tensor([[3, 1, 0], [0, 0, 0], [1, 3, 0]])
    return counts


def test_scores_follow_from_counts_by_hand() -> None:
    found = by_hand().scores()
    assert found.class_iou == [[0.6, 0.5], [0.25, 0.0]]
    assert found.miou == [0.55, 0.125]
    assert found.summary()["mIoU"] == pytest.approx(0.3375)
    # Published: the counts of all classes added up, then the mean with the background.
    assert found.binary_iou == pytest.approx([(0.8 + 7 / 12) / 2, (0.5 + 4 / 18) / 2])
    assert by_hand(FSSOPS).scores().binary_iou == pytest.approx([(0.75 + 0.5) / 2] * 2)


def test_class_that_never_appears_follows_the_protocol_and_is_told() -> None:
    for protocol in (PANET, FSSOPS):
        counts = by_hand(protocol)
        counts.classes[0, 5] = 0
        found = counts.scores()
        assert found.coverage() == {"mIoU": Coverage((1, 2), 2)}
        assert found.coverage()["mIoU"].text() == " (1 to 2 of 2 classes)"
        if protocol is PANET:
            assert math.isnan(found.miou[0])
        else:
            assert found.miou == pytest.approx([0.6, 0.125])


def truth(label: Tensor, classes: tuple[int, ...]) -> EpisodeTruth:
    return EpisodeTruth(torch.tensor(classes), [label], [(int(label.shape[0]), int(label.shape[1]))])


def logits(labels: Tensor, ways: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, 1 + ways).permute(2, 0, 1).float()


def test_an_episode_is_counted_in_its_run_under_its_classes_and_returns_its_overlap() -> None:
    counts = FewShotIoU(2, 4, [3, 5], FSSOPS)
    label, said = torch.tensor([[0, 1, 2, IGNORE]]), torch.tensor([[1, 1, 0, 2]])
    assert counts.add(6, {"": [logits(said, 2)]}, truth(label, (5, 3))) == pytest.approx(1 / 3)
    assert counts.classes[0].sum() == 0
    assert counts.classes[1, [0, 3, 5]].tolist() == [[0, 1, 1], [0, 0, 1], [1, 1, 0]]
    assert counts.foreground[1].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert counts.episodes[1, 2].tolist() == [1, 1, 1]


def test_an_episode_without_anything_to_find_has_no_overlap() -> None:
    label = torch.tensor([[0, IGNORE]])
    counts = FewShotIoU(1, 1, [3], FSSOPS)
    assert counts.add(0, {"": [logits(torch.tensor([[0, 1]]), 1)]}, truth(label, (3,))) is None


def test_another_output_than_the_systems_own_is_counted_where_asked_for() -> None:
    label = torch.tensor([[0, 1]])
    outputs = {"system": [logits(torch.tensor([[0, 1]]), 1)], "part": [logits(torch.tensor([[0, 0]]), 1)]}
    assert FewShotIoU(1, 1, [3], FSSOPS).add(0, outputs, truth(label, (3,))) == 1.0
    assert FewShotIoU(1, 1, [3], FSSOPS, "part").add(0, outputs, truth(label, (3,))) == 0.0


def test_predictions_are_stretched_to_the_size_of_the_label() -> None:
    scores = torch.tensor([[[0.0, 0.0]], [[-1.0, 3.0]]])  # foreground where -1 + 4 x > 0: from the second column on
    counts = FewShotIoU(1, 1, [3], FSSOPS)
    counts.add(0, {"": [scores]}, truth(torch.tensor([[0, 1, 1, 1, 1]]), (3,)))
    assert counts.classes[0, [0, 3]].tolist() == [[1, 1, 0], [3, 0, 1]]


def test_states_add_up_and_later_episodes_do_not_change_them() -> None:
    first, second = by_hand(), by_hand()
    second.classes *= 3
    state = first.state()
    first.classes += 1
    total = FewShotIoU(2, 3, [3, 5], PANET)
    total.merge([second.state(), state])
    assert torch.equal(total.classes, 4 * by_hand().classes)
    assert torch.equal(total.episodes, 2 * by_hand().episodes)


def test_the_rule_of_false_positives_is_the_protocols() -> None:
    outputs = {"": [logits(torch.tensor([[2, 1]]), 2)]}
    for rule, expected in (("present", 0), ("all", 1)):
        counts = FewShotIoU(1, 1, [3, 5], dataclasses.replace(FSSOPS, false_positives=rule))  # type: ignore[arg-type]
        counts.add(0, outputs, truth(torch.tensor([[0, 1]]), (3, 5)))
        assert int(counts.classes[0, 5, 1]) == expected
