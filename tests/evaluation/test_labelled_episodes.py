"""Episodes with their truth, what a model says of them, and features that are kept: bit by bit the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from few_shot_samples import Episodes, PrototypeModel
from torch import Tensor

from fssops.evaluation.episodes import compared_labels, labelled_episodes, segment, stretched
from fssops.evaluation.feature_cache import FeatureCache, digest
from fssops.evaluation.metrics import metrics_for
from fssops.evaluation.metrics.few_shot import FewShotIoU
from fssops.evaluation.metrics.metric import EpisodeSetting, MetricSet
from fssops.evaluation.metrics.passes import FeaturePasses
from fssops.protocols import PROTOCOLS, FewShotProtocol
from fssops.structures import IGNORE

NETWORK = dataclasses.replace(PROTOCOLS["panet"], seeds=(1, 2), episodes=7)
ORIGINAL = dataclasses.replace(PROTOCOLS["fssops"], seeds=(1, 2), episodes=7)


def evaluated(
    memory: int = 1 << 20, disk: int = 0, protocol: FewShotProtocol = NETWORK, numbers: Any = range(14), **options: Any
) -> MetricSet:
    """The counts of some episodes, as a task counts them."""
    model = PrototypeModel().eval()
    folder, workers = options.pop("folder", None), options.pop("workers", 0)
    runs = [Episodes(7, seed, **options) for seed in (1, 2)]
    with FeatureCache(model.encode, memory=memory, disk=disk, folder=folder) as cache, torch.inference_mode():
        metrics = metrics_for(["episode", "features"], EpisodeSetting(protocol, 2, 7, [3, 5], cache=cache))
        for item in labelled_episodes(runs, protocol, list(numbers), workers=workers):
            metrics.add(item.number, segment(model, cache, item.episode, item.truth.sizes), item.truth)
        passes = metrics.metrics["passes"]
        passes.merge([passes.state()])  # the cache ends here
    return metrics


def counts(metrics: MetricSet) -> FewShotIoU:
    found = metrics.metrics["few-shot"]
    assert isinstance(found, FewShotIoU)
    return found


def work(metrics: MetricSet) -> list[int]:
    found = metrics.metrics["passes"]
    assert isinstance(found, FeaturePasses)
    return [int(count) for count in found.state()["work"]]


def assert_same(first: MetricSet, second: MetricSet) -> None:
    for name in ("classes", "foreground", "episodes"):
        assert torch.equal(getattr(counts(first), name), getattr(counts(second), name)), name
    assert first.quality == second.quality


def test_kept_features_change_no_count_and_save_passes(tmp_path: Path) -> None:
    plain = evaluated(memory=0)
    assert work(plain) == [42, 42, 0, 0]
    kept = evaluated()
    assert work(kept) == [42, 6, 0, 0]  # 2 runs x 7 episodes x 3 images, of 6 different ones
    one_image = 6 * 12 * 10 * 4
    bounded = evaluated(memory=2 * one_image)
    assert 6 < work(bounded)[1] < 42
    spilled = evaluated(memory=2 * one_image, disk=1 << 20, folder=tmp_path)
    assert work(spilled)[1] == 6
    assert list(tmp_path.iterdir()) == []
    for other in (kept, bounded, spilled):
        assert_same(plain, other)


def test_cached_features_are_bit_identical() -> None:
    model = PrototypeModel().eval()
    images = torch.rand(5, 3, 9, 9)
    with torch.inference_mode():
        without = FeatureCache(model.encode, memory=0).features(images)
        cache = FeatureCache(model.encode, memory=1 << 20)
        cache.features(images[[3, 1]])
        assert torch.equal(cache.features(images)["features"], without["features"])
    assert cache.passes == 5


def test_cache_stays_within_its_bound() -> None:
    size = 4 * 100
    cache = FeatureCache(lambda images: {"f": images.reshape(1, -1)[:, :100]}, memory=3 * size)
    for image in torch.rand(10, 3, 8, 8):
        cache.features(image[None])
        assert cache._kept_bytes <= 3 * size
    assert len(cache._kept) == 3


def test_digest_tells_images_apart() -> None:
    image = torch.rand(3, 4, 5)
    other = image.clone()
    other[0, 0, 0] += 1e-3
    assert digest(image) == digest(image.clone())
    assert len({digest(image), digest(other), digest(image.view(3, 5, 4)), digest(image.double())}) == 4


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_a_system_that_computes_nothing_of_a_query_alone_counts_no_such_passes(memory: int) -> None:
    cache = FeatureCache(lambda images: {"f": images}, memory=memory)
    for image in torch.rand(3, 3, 4, 4):
        assert torch.equal(cache.features(image[None], lambda features: features)["f"], image[None])
    assert cache.work().tolist() == [3, 3, 0, 0]


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_what_is_computed_of_a_query_takes_the_place_of_its_features_kept_or_not(memory: int) -> None:
    def doubled(features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"f": features["f"], "double": 2 * features["f"]}

    cache = FeatureCache(lambda images: {"f": images, "needless": images}, memory=memory)
    images = torch.rand(2, 3, 4, 4)
    assert set(cache.features(images)) == {"f", "needless"}
    for _ in range(2):
        features = cache.features(images[:1], doubled)
        assert set(features) == {"f", "double"}
        assert torch.equal(features["double"], 2 * images[:1])
    assert cache.work().tolist() == ([4, 2, 2, 1] if memory else [4, 4, 2, 2])


@pytest.mark.parametrize("world", [2, 3, 5, 20])
def test_sums_over_uneven_processes_are_exact(world: int) -> None:
    whole = evaluated()
    parts = [evaluated(numbers=range(14)[rank::world]) for rank in range(world)]
    states = [part.state() for part in reversed(parts)]
    parts[0].merge(states)
    assert_same(parts[0], whole)
    assert work(parts[0])[0] == work(whole)[0]


def test_loader_processes_change_nothing() -> None:
    assert_same(evaluated(), evaluated(workers=1))


def test_ways_are_counted_under_their_class_ids() -> None:
    classes = counts(evaluated(ways=2)).classes
    assert classes.shape == (2, 6, 3)
    assert int(classes[:, [1, 2, 4]].sum()) == 0
    assert int(classes[:, 3].sum()) > 0
    assert (classes[:, 5].sum(1) > 0).all()


def test_original_size_uses_the_original_labels() -> None:
    metrics = evaluated(protocol=ORIGINAL, original=np.zeros((30, 20), dtype=np.int64))
    assert int(counts(metrics).foreground[0].sum(0)[[0, 2]].sum()) == 7 * 600
    assert metrics.quality == dict.fromkeys(range(14), 0.0) or not metrics.quality


def test_results_are_given_at_the_size_that_the_protocol_compares() -> None:
    original = np.zeros((30, 20), dtype=np.int64)
    for protocol, size, shape in (
        (NETWORK, (12, 10), (12, 10)),
        (ORIGINAL, (30, 20), (30, 20)),
        (dataclasses.replace(NETWORK, size="square"), (12, 10), (30, 30)),
    ):
        [item] = labelled_episodes([Episodes(7, 1, original=original)], protocol, [3])
        assert item.truth.sizes == [size]
        assert [tuple(label.shape) for label in item.truth.labels] == [shape]
        assert item.truth.base_labels is None


def test_episodes_are_numbered_through_the_runs() -> None:
    runs = [Episodes(7, seed) for seed in (1, 2)]
    items = list(labelled_episodes(runs, NETWORK, [8, 0]))
    assert [item.number for item in items] == [8, 0]
    assert [item.episode.index for item in items] == [1, 0]
    assert torch.equal(items[0].episode.query_images, runs[1][1].query_images)


def test_runs_must_be_of_one_length() -> None:
    with pytest.raises(ValueError, match=r"runs must be of one length, got \[3, 4\]"):
        labelled_episodes([Episodes(3, 0), Episodes(4, 0)], NETWORK, [0])


def test_a_model_may_say_more_than_its_logits() -> None:
    model = PrototypeModel().eval()

    def match(support: Tensor, features: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        return {"system": model.match(support, features, size), "shape": torch.tensor([[size]])}

    episode = Episodes(7, 1)[0]
    with FeatureCache(model.encode, memory=0) as cache, torch.inference_mode():
        plain = segment(model, cache, episode)
        outputs = segment(model, cache, episode, [(5, 6)], match)
        full = segment(model, cache, episode, None, match)
    assert list(plain) == [""]
    assert torch.equal(full["system"][0], plain[""][0])
    assert outputs["system"][0].shape == (2, 5, 6)
    assert outputs["shape"][0].tolist() == [5, 6]


def test_the_square_pads_labels_and_stretches_the_whole_output() -> None:
    label = torch.ones(4, 7, dtype=torch.long)
    padded = compared_labels(PROTOCOLS["msanet"], [label])[0]
    assert padded.shape == (7, 7)
    assert torch.equal(padded[:4], label)
    assert (padded[4:] == IGNORE).all()
    scores = torch.rand(2, 5, 5)
    expected = F.interpolate(scores[None], size=(7, 7), mode="bilinear", align_corners=True)[0]
    assert torch.equal(stretched(scores, padded), expected)
    assert compared_labels(PROTOCOLS["fssops"], [label])[0].shape == (4, 7)
