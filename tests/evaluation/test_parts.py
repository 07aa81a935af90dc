"""Counting what the parts of a system reach, and the published square of MSANet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fssops.evaluation.base_classes import score_base_classes
from fssops.evaluation.feature_cache import FeatureCache
from fssops.evaluation.fewshot import compared_labels, count_runs, stretched
from fssops.evaluation.parts import PartCounts
from fssops.evaluation.protocols import PROTOCOLS
from fssops.evaluation.results import score
from fssops.structures import IGNORE, Episode

SIDE = 6


class Parted:
    """Foreground where the image's first channel is positive; its meta learner says the opposite, its base one 2."""

    def __init__(self) -> None:
        self.encoded = self.completed = 0

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        self.encoded += 1
        return {"score": images[:, 0]}

    def query_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        self.completed += 1
        return {**features, "double": 2 * features["score"]}

    def summarise(self, features: dict[str, Tensor], foreground: Tensor, background: Tensor) -> Any:
        return None

    def match(self, support: Any, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        return self.match_parts(support, features, size)["ensemble"]

    def match_parts(self, support: Any, features: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        found = F.interpolate(features["score"][:, None], size=size, mode="nearest")[:, None, 0]
        zeros = torch.zeros_like(found)
        base = torch.stack([zeros, zeros, zeros + 1], dim=2)
        return {"ensemble": torch.stack([zeros, found], 2), "meta": torch.stack([zeros, -found], 2), "base": base}


class Episodes:
    def __init__(self, truth: np.ndarray, base: np.ndarray) -> None:
        self.truth, self.base = truth, base

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Episode:
        image = torch.full((1, 3, SIDE, SIDE), -1.0)
        image[:, :, :, :3] = 1
        return Episode(
            support_images=image[None] + index,
            support_foreground=torch.ones(1, 1, SIDE, SIDE),
            support_background=torch.zeros(1, 1, SIDE, SIDE),
            query_images=image,
            query_labels=torch.from_numpy(self.truth)[None, :SIDE, :SIDE],
            classes=torch.tensor([3]),
        )

    def query_truth(self, index: int) -> list[np.ndarray]:
        return [self.truth]

    def query_base_truth(self, index: int) -> list[np.ndarray]:
        return [self.base]


def test_meta_and_base_learner_are_counted_apart() -> None:
    truth = np.zeros((SIDE, SIDE), dtype=np.int64)
    truth[:, :2] = 1
    base = np.zeros((SIDE, SIDE), dtype=np.int64)
    base[:3] = 2
    runs = [Episodes(truth, base)]
    model = Parted()
    parts = PartCounts(model, runs, PROTOCOLS["fssops"], [3], base_classes=2)
    with FeatureCache(model.encode, memory=1 << 20) as cache:
        counts = count_runs(
            parts,
            runs,
            PROTOCOLS["fssops"],
            cache,
            classes=[3],
            original_labels=lambda run, index: [torch.from_numpy(label) for label in runs[run].query_truth(index)],
            observe=parts.observe,
        )
        # The query is the same twice and the first support as well: it is encoded and completed once.
        assert (model.encoded, model.completed) == (2, 1)
    found = parts.scores(lambda flat: flat)
    # Columns 0, 1 of the predicted 0, 1, 2 are right; the meta learner predicts 3, 4, 5.
    assert score(counts, PROTOCOLS["fssops"], {3: "c"}, **SETTING).mean_iou == pytest.approx(2 / 3)
    assert found["meta mIoU"] == 0
    assert found["base mIoU"] == pytest.approx(0.5)
    # The meta learner's background is columns 0, 1, 2, the true one 2 to 5: one of six shared.
    assert found["meta binary IoU"] == pytest.approx((0 + 1 / 6) / 2)


SETTING: dict[str, Any] = {
    "model": "m",
    "dataset": "d",
    "fold": 0,
    "folds": "f",
    "ways": 1,
    "shots": 1,
    "queries": 1,
    "episodes": 2,
    "seeds": [1],
    "list_hashes": ["0" * 64],
    "annotation": "mask",
    "size": [SIDE, SIDE],
}


def test_parts_stand_in_the_result_line() -> None:
    from fssops.evaluation.fewshot import EvaluationCounts

    counts = EvaluationCounts.zeros(1, 2, 3)
    counts.classes[0, 3] = torch.tensor([1, 1, 0])
    result = score(counts, PROTOCOLS["msanet"], {3: "c"}, parts={"meta mIoU": 0.25}, **SETTING)
    assert "  meta mIoU 25.00  [m; " in result.line()
    assert result.as_json()["parts"] == {"meta mIoU": 0.25}


def test_the_square_pads_labels_and_stretches_the_whole_output() -> None:
    label = torch.ones(4, 7, dtype=torch.long)
    padded = compared_labels(PROTOCOLS["msanet"], [label], "cpu")[0]
    assert padded.shape == (7, 7)
    assert torch.equal(padded[:4], label)
    assert (padded[4:] == IGNORE).all()
    scores = torch.rand(2, 5, 5)
    expected = F.interpolate(scores[None], size=(7, 7), mode="bilinear", align_corners=True)[0]
    assert torch.equal(stretched(scores, padded), expected)
    assert compared_labels(PROTOCOLS["fssops"], [label], "cpu")[0].shape == (4, 7)


def test_the_published_protocol_names_its_seeds() -> None:
    row = PROTOCOLS["msanet"]
    assert (row.runs, row.episodes, row.false_positives, row.binary) == (5, 1000, "all", "pixels")
    assert "seeds 510 365 382 322 988, square size" in row.describe()


def test_features_of_a_query_survive_eviction_and_do_not_trouble_supports() -> None:
    model = Parted()
    images = torch.randn(3, 3, SIDE, SIDE)
    one = SIDE * SIDE * 4
    with FeatureCache(model.encode, memory=2 * one, disk=100 * one) as cache:
        first = cache.features(images[:1], model.query_features)
        assert set(first) == {"score", "double"}
        both = cache.features(images[:2])
        assert set(both) == {"score"}
        cache.features(images[2:])
        again = cache.features(images[:1], model.query_features)
        assert torch.equal(again["double"], first["double"])
        assert torch.equal(again["score"], first["score"])
    assert model.encoded == 3


def test_base_classes_are_averaged_without_the_background_and_absent_ones_are_named() -> None:
    counts = torch.tensor([[90, 5, 5], [1, 1, 2], [0, 0, 0], [3, 0, 1]])
    result = score_base_classes(
        counts,
        model="m",
        dataset="d",
        folds="f",
        fold=1,
        images=7,
        novel_images="dropped",
        size=[4, 4],
        classes={2: "a", 5: "b", 6: "c"},
    )
    assert result.miou == pytest.approx((0.25 + 0.75) / 2)
    assert result.background_iou == pytest.approx(0.9)
    assert "3 base classes, 1 of which appear in no image, 7 images" in result.line()
    assert "novel classes background, 4 x 4, novel images dropped in training" in result.line()
    assert result.as_json()["class_iou"] == [0.25, None, 0.75]
