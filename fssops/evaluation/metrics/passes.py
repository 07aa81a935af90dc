"""How many passes through a network an evaluation took, of those that it asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fssops.evaluation.feature_cache import FeatureCache
from fssops.evaluation.metrics.metric import EpisodeSetting, Metric, Scores


class FeaturePasses(Metric):
    """What a feature cache was asked for and what it computed.

    Args:
        cache: of the model's features.
    """

    name = "passes"
    prediction = "features"

    def __init__(self, cache: FeatureCache) -> None:
        self.cache = cache
        self.merged: Tensor | None = None

    @classmethod
    def build(cls, setting: EpisodeSetting) -> FeaturePasses:
        if setting.cache is None:
            raise ValueError("FeaturePasses.build: setting.cache must be the cache of the features, got None")
        return cls(setting.cache)

    def add(self, number: int, prediction: Any, truth: Any) -> None:
        """Count nothing: the cache does."""

    def state(self) -> dict[str, Tensor]:
        return {"work": self.cache.work() if self.merged is None else self.merged.clone()}

    def merge(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        self.merged = torch.stack([state["work"] for state in states]).sum(0)

    def scores(self) -> PassScores:
        return PassScores(*self.state()["work"].tolist())


@dataclass(frozen=True)
class PassScores(Scores):
    """Numbers of images and passes.

    Attributes:
        images, passes: images asked for and passes through the backbone.
        query_images, query_passes: queries asked for and passes through what depends on a query alone (MM-Former's
            proposals); 0 where a system has no such steps.
    """

    images: int = 0
    passes: int = 0
    query_images: int = 0
    query_passes: int = 0

    def summary(self) -> dict[str, float]:
        return {}
