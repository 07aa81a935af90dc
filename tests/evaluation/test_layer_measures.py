"""Agreement of masks between layers and utilisation of queries, counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from fssops.evaluation.layer_measures import LayerCounts
from fssops.evaluation.universal import UniversalCounts, score

from fssops.structures import MaskPredictions

Pair = tuple[torch.Tensor, torch.Tensor]


def pairs(*found: tuple[int, int]) -> Pair:
    """Matched (query, target)."""
    table = torch.tensor(found, dtype=torch.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def predictions(masks: list[list[list[int]]]) -> MaskPredictions:
    """Masks of heads and queries over four cells in a row: the features are the unit vectors."""
    embeddings = torch.tensor(masks, dtype=torch.float32)[:, None] * 2 - 1  # [heads, 1, Q, 4]
    features = torch.eye(4).view(1, 1, 4, 1, 4)
    heads, _, queries, _ = embeddings.shape
    return MaskPredictions(torch.zeros(heads, 1, queries, 3), embeddings, features, (4, 16))


def test_agreement_is_the_mean_iou_of_consecutive_layers_over_the_finally_matched_queries() -> None:
    counts = LayerCounts(2)
    said = predictions(
        [
            [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]],
            [[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]],
            [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]],
        ]
    )
    counts.add(said, 0, (4, 16), [pairs((0, 0), (2, 1)), pairs((0, 0), (1, 1)), pairs((0, 0), (1, 1))])
    found = counts.scores()
    # Query 1 is empty before and after layer 1, which is no pair; query 2 has no target in the end.
    assert found.agreement == pytest.approx([2 / 3, (2 / 4 + 0) / 2])
    assert found.utilisation == pytest.approx([0.5, 1.0])


def test_a_query_is_of_use_if_it_keeps_its_target() -> None:
    counts = LayerCounts(2)
    said = predictions([[[1, 0, 0, 0]] * 3] * 3)
    counts.add(said, 0, (4, 16), [pairs((0, 1), (1, 0)), pairs((0, 0), (2, 1)), pairs((0, 0), (1, 1))])
    assert counts.scores().utilisation == pytest.approx([0.0, 0.5])


def test_padding_is_left_out() -> None:
    counts = LayerCounts(1)
    said = predictions([[[1, 0, 0, 1]], [[1, 0, 0, 0]]])
    counts.add(said, 0, (4, 9), [pairs((0, 0)), pairs((0, 0))])  # nine pixels are three cells
    assert counts.scores().agreement == [1.0]


def test_images_without_targets_add_nothing() -> None:
    counts = LayerCounts(1)
    counts.add(predictions([[[1, 0, 0, 1]], [[1, 0, 0, 0]]]), 0, (4, 16), [pairs(), pairs()])
    found = counts.scores()
    assert math.isnan(found.agreement[0])
    assert math.isnan(found.summary()["layer agreement"])
    assert found.table()[1:] == [["0", "-", "-"], ["1", "-", "-"]]


def test_processes_add_up_and_results_carry_the_measures() -> None:
    said = predictions([[[1, 1, 0, 0]], [[1, 0, 0, 0]]])
    other = predictions([[[1, 1, 0, 0]], [[1, 1, 0, 0]]])
    matched = [pairs((0, 0)), pairs((0, 0))]
    states = []
    for one in (said, other):
        counts = UniversalCounts.start(["semantic"], 2, layers=1)
        assert counts.layers is not None
        counts.layers.add(one, 0, (4, 16), matched)
        states.append(counts.state())
    total = UniversalCounts.start(["semantic"], 2, layers=1)
    total.merge(states)
    setting = {"model": "m", "dataset": "d", "images": 2, "of": 2, "test_size": "own", "classes": ["a", "b"]}
    result = score(total, [], boundary=False, **setting)
    assert result.layers is not None
    assert result.layers.agreement == [0.75]
    assert result.scores()["layer agreement"] == 0.75
    assert result.as_json()["layers"] == {"agreement": [0.75], "utilisation": [1.0]}
    assert "layer agreement 75.00  query utilisation 100.00" in result.line()
    assert score(UniversalCounts.start(["semantic"], 2), [], boundary=False, **setting).layers is None
