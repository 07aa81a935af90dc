"""The meta learner and the base learner are counted apart, on the same queries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fssops.evaluation.episodes import EpisodeTruth, labelled_episodes, segment
from fssops.evaluation.feature_cache import FeatureCache
from fssops.evaluation.metrics import metrics_for
from fssops.evaluation.metrics.learners import LearnerIoU
from fssops.evaluation.metrics.metric import Coverage, EpisodeSetting
from fssops.protocols import PROTOCOLS
from fssops.structures import Episode

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
            query_base_labels=torch.zeros(1, SIDE, SIDE, dtype=torch.long),
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
    runs, protocol = [Episodes(truth, base)], PROTOCOLS["fssops"]
    model = Parted()
    with FeatureCache(model.encode, memory=1 << 20) as cache:
        metrics = metrics_for(["episode", "learners"], EpisodeSetting(protocol, 1, 2, [3], base_classes=2))
        for item in labelled_episodes(runs, protocol, [0, 1]):
            outputs = segment(model, cache, item.episode, item.truth.sizes, model.match_parts)
            metrics.add(item.number, outputs, item.truth)
        # The query is the same twice and the first support as well: it is encoded and completed once.
        assert (model.encoded, model.completed) == (2, 1)
    scores = metrics.scores()
    # Columns 0, 1 of the predicted 0, 1, 2 are right; the meta learner predicts 3, 4, 5.
    assert scores["few-shot"].summary()["mIoU"] == pytest.approx(2 / 3)
    found = scores["learners"].summary()
    assert found["meta mIoU"] == 0
    assert found["base mIoU"] == pytest.approx(0.5)
    # The meta learner's background is columns 0, 1, 2, the true one 2 to 5: one of six shared.
    assert found["meta binary IoU"] == pytest.approx((0 + 1 / 6) / 2)
    # One of the two base classes is shown by no query.
    assert scores["learners"].coverage() == {"meta mIoU": Coverage((1,), 1), "base mIoU": Coverage((1,), 2)}


def episode(base: Tensor | None) -> EpisodeTruth:
    return EpisodeTruth(torch.tensor([3]), [torch.tensor([[0, 1]])], [(1, 2)], None if base is None else [base])


def test_states_add_up_run_by_run() -> None:
    setting = EpisodeSetting(PROTOCOLS["fssops"], 2, 3, [3], base_classes=2)
    whole, parts = LearnerIoU(setting), [LearnerIoU(setting), LearnerIoU(setting)]
    for number in range(6):
        outputs = {"ensemble": [torch.zeros(2, 1, 2)], "meta": [torch.rand(2, 1, 2)], "base": [torch.rand(3, 1, 2)]}
        for counts in (whole, parts[number % 2]):
            counts.add(number, outputs, episode(torch.tensor([[number // 3 + 1, 0]])))
    assert whole.base[0, 2, [0, 2]].sum() == whole.base[1, 1, [0, 2]].sum() == 0  # each run shows another class
    merged = LearnerIoU(setting)
    merged.merge([part.state() for part in reversed(parts)])
    assert merged.scores() == whole.scores()
    assert not math.isnan(merged.scores().base_miou)


def test_episodes_without_base_labels_are_refused() -> None:
    outputs = {"meta": [torch.zeros(2, 1, 2)], "base": [torch.zeros(3, 1, 2)]}
    with pytest.raises(ValueError, match="episodes must come with base labels, got none"):
        LearnerIoU(EpisodeSetting(PROTOCOLS["fssops"], 1, 1, [3], 2)).add(0, outputs, episode(None))


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
