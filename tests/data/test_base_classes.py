"""Base-class label maps made from annotations, alone and beside episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fssops.data import folds
from fssops.data.datasets.base_classes import BaseClassDataset, base_labels
from fssops.data.datasets.episodes import EpisodeDataset, RepeatedEpisodes
from fssops.data.episodes import EpisodeList
from fssops.data.errors import TooFewImagesError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layouts import open_data
from fssops.structures import FewShotBatch, LabelMapBatch


@pytest.fixture(scope="module")
def source() -> FewShotSource:
    return open_data("generated", split="train", size=48, images_per_class=4, truth="few-shot")


@pytest.fixture(scope="module")
def fold(source: FewShotSource) -> folds.FoldClasses:
    return folds.by_name("generated", 1, classes=sorted(source.classes))


def test_classes_become_their_place_and_novel_ones_background() -> None:
    label = np.array([[0, 3, 7, 9], [255, 12, 3, 300]], dtype=np.uint16)
    expected = np.array([[0, 1, 0, 2], [255, 0, 1, 3]], dtype=np.uint8)
    found = base_labels(label, [3, 9, 300])
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


def test_items_hold_every_image_with_its_base_classes(source: FewShotSource, fold: folds.FoldClasses) -> None:
    dataset = BaseClassDataset(source, fold.train, (48, 48))
    assert dataset.names == source.names
    batch = LabelMapBatch.stack([dataset[i] for i in range(3)])
    assert batch.images.shape == (3, 3, 48, 48)
    assert batch.names == source.names[:3]
    for labels, name in zip(batch.labels, batch.names, strict=True):
        truth = source.label_map(name)
        for place, class_id in enumerate(fold.train, start=1):
            assert np.array_equal(labels.numpy() == place, truth == class_id)
        assert np.array_equal(labels.numpy() == 0, np.isin(truth, [0, *fold.test]))


def test_images_with_novel_classes_can_be_left_out(source: FewShotSource, fold: folds.FoldClasses) -> None:
    kept = BaseClassDataset(source, fold.train, (48, 48), avoid=fold.test).names
    expected = [n for n in source.names if not np.isin(source.label_map(n), fold.test).any()]
    assert kept == expected
    assert 0 < len(kept) < len(source.names)
    with pytest.raises(TooFewImagesError, match="got none of"):
        BaseClassDataset(source, fold.train, (48, 48), avoid=sorted(source.classes))


def test_augmentation_depends_on_the_generator_alone(source: FewShotSource, fold: folds.FoldClasses) -> None:
    dataset = BaseClassDataset(source, fold.train, (40, 40), augment="msanet_base")
    first, again, other = (dataset.draw(2, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)
    seed = int(torch.randint(2**63 - 1, (), generator=torch.Generator().manual_seed(1)))
    assert torch.equal(first.images, dataset.item(2, np.random.default_rng(seed)).images), "as in runs made before"
    assert torch.equal(dataset[2].images, dataset.item(2, np.random.default_rng(2)).images)
    assert first.labels.shape == (1, 40, 40)


def test_queries_of_episodes_come_with_base_labels(source: FewShotSource, fold: folds.FoldClasses) -> None:
    for classes, novel in ((fold.train, False), (fold.test, True)):
        episodes = EpisodeList.draw(source, classes, shots=1, episodes=3, seed=4)
        plain = EpisodeDataset(source, episodes, (48, 48))
        dataset = EpisodeDataset(source, episodes, (48, 48), base_classes=fold.train)
        batch = FewShotBatch.stack([dataset[i] for i in range(3)])
        assert batch.query_base_labels is not None
        assert batch.base_channels is not None
        assert FewShotBatch.stack([plain[0]]).query_base_labels is None
        for i in range(3):
            assert torch.equal(plain[i].query_labels, dataset[i].query_labels)
            truth = base_labels(source.label_map(episodes[i].query[0]), fold.train)
            assert np.array_equal(batch.query_base_labels[i, 0].numpy(), truth)
            assert np.array_equal(dataset.query_base_truth(i)[0], truth)
            channel = 0 if novel else fold.train.index(episodes[i].classes[0]) + 1
            assert batch.base_channels[i].tolist() == [channel]
            inside = batch.query_labels[i, 0] == 1
            assert set(batch.query_base_labels[i, 0][inside].tolist()) == {channel}


def test_a_repeated_list_is_augmented_anew(source: FewShotSource, fold: folds.FoldClasses) -> None:
    episodes = EpisodeList.draw(source, fold.train, episodes=2, seed=4)
    dataset = RepeatedEpisodes(
        EpisodeDataset(source, episodes, (40, 40), augment="msanet_pascal", base_classes=fold.train)
    )
    first, again, other = (dataset.draw(1, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.query_names == other.query_names
    assert torch.equal(first.query_images, again.query_images)
    assert not torch.equal(first.query_images, other.query_images)
    epoch = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(1)))
    assert torch.equal(first.query_images, dataset.dataset.item(1, epoch).query_images), "as in runs made before"
    assert len(dataset) == 2
    assert dataset[0].query_names == list(episodes[0].query)
