"""Agreement of masks between layers and utilisation of queries, counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fssops.evaluation.metrics.layer_measures import LayerMeasures
from fssops.evaluation.results import UniversalResult
from fssops.structures import LayerOutputs, MaskPredictions, SegmentationResult

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


def result(said: MaskPredictions, size: tuple[int, int], matches: list[Pair]) -> SegmentationResult:
    return SegmentationResult(layers=LayerOutputs(said, matches, size))


def test_agreement_is_the_mean_iou_of_consecutive_layers_over_the_finally_matched_queries() -> None:
    counts = LayerMeasures(2)
    said = predictions(
        [
            [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]],
            [[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]],
            [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]],
        ]
    )
    counts.add(0, result(said, (4, 16), [pairs((0, 0), (2, 1)), pairs((0, 0), (1, 1)), pairs((0, 0), (1, 1))]), None)
    found = counts.scores()
    # Query 1 is empty before and after layer 1, which is no pair; query 2 has no target in the end.
    assert found.agreement == pytest.approx([2 / 3, (2 / 4 + 0) / 2])
    assert found.utilisation == pytest.approx([0.5, 1.0])


def test_a_query_is_of_use_if_it_keeps_its_target() -> None:
    counts = LayerMeasures(2)
    said = predictions([[[1, 0, 0, 0]] * 3] * 3)
    counts.add(0, result(said, (4, 16), [pairs((0, 1), (1, 0)), pairs((0, 0), (2, 1)), pairs((0, 0), (1, 1))]), None)
    assert counts.scores().utilisation == pytest.approx([0.0, 0.5])


def test_padding_is_left_out() -> None:
    counts = LayerMeasures(1)
    said = predictions([[[1, 0, 0, 1]], [[1, 0, 0, 0]]])
    counts.add(0, result(said, (4, 9), [pairs((0, 0)), pairs((0, 0))]), None)  # nine pixels are three cells
    assert counts.scores().agreement == [1.0]


def test_images_without_targets_add_nothing() -> None:
    counts = LayerMeasures(1)
    counts.add(0, result(predictions([[[1, 0, 0, 1]], [[1, 0, 0, 0]]]), (4, 16), [pairs(), pairs()]), None)
    found = counts.scores()
    assert math.isnan(found.agreement[0])
    assert math.isnan(found.summary()["layer agreement"])
    assert found.tables()[0][1][1:] == [["0", "-", "-"], ["1", "-", "-"]]


def test_processes_add_up_in_any_order_and_results_carry_the_measures() -> None:
    thirds = predictions([[[1, 1, 1, 0]], [[1, 0, 0, 0]]])
    said = [predictions([[[1, 1, 0, 0]], [[1, 0, 0, 0]]]), thirds, predictions([[[1, 1, 0, 0]], [[1, 1, 0, 0]]])]
    whole, parts = LayerMeasures(1), [LayerMeasures(1), LayerMeasures(1)]
    for number, one in enumerate(said * 7):
        for counts in (whole, parts[number % 2]):
            counts.add(number, result(one, (4, 16), [pairs((0, 0)), pairs((0, 0))]), None)
    total = LayerMeasures(1)
    total.merge([part.state() for part in reversed(parts)])
    assert total.scores() == whole.scores()
    assert total.scores().agreement == [pytest.approx((1 / 2 + 1 / 3 + 1) / 3)]
    setting = {"model": "m", "dataset": "d", "images": 2, "of": 2, "test_size": "own", "classes": ["a"], "things": []}
    report = UniversalResult(measured={"layers": total.scores()}, **setting)  # type: ignore[arg-type]
    assert report.scores()["query utilisation"] == 1.0
    assert report.as_json()["layers"] == {"agreement": total.scores().agreement, "utilisation": [1.0]}
    assert "layer agreement 61.11  query utilisation 100.00" in report.line()
    assert report.tables(False)[0][0] == "m: layers of the decoder, in percent"
    assert UniversalResult(measured={}, **setting).as_json()["layers"] is None  # type: ignore[arg-type]
