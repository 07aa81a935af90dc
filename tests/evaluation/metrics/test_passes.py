"""Passes are what the caches of all processes and starts have counted together."""

from __future__ import annotations

import pytest
import torch

from fssops.evaluation.feature_cache import FeatureCache
from fssops.evaluation.metrics.metric import EpisodeSetting
from fssops.evaluation.metrics.passes import FeaturePasses, PassScores
from fssops.protocols import PROTOCOLS


def test_passes_of_several_caches_add_up() -> None:
    caches = [FeatureCache(lambda images: {"f": images}, memory=1 << 20) for _ in range(2)]
    metrics = [FeaturePasses(cache) for cache in caches]
    images = torch.rand(3, 3, 4, 4)
    caches[0].features(images)
    caches[1].features(images[[0, 0]])
    assert metrics[0].scores() == PassScores(3, 3, 0, 0)
    states = [metric.state() for metric in metrics]
    caches[0].features(images)
    metrics[1].merge(states)
    assert metrics[1].scores() == PassScores(5, 4, 0, 0)
    assert metrics[1].scores().summary() == {}


def test_without_a_cache_there_is_nothing_to_count() -> None:
    with pytest.raises(ValueError, match=r"setting\.cache must be the cache of the features, got None"):
        FeaturePasses.build(EpisodeSetting(PROTOCOLS["fssops"], 1, 1, [1]))
