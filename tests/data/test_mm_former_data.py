"""Data of MM-Former: its draw of episodes, painted masks, and regions for the first stage."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fssops.data import folds
from fssops.data.datasets.proposals import ProposalDataset
from fssops.data.episodes import EpisodeList
from fssops.data.errors import TooFewImagesError
from fssops.data.few_shot_source import FewShotSource
from fssops.data.layouts import open_data
from fssops.structures import IGNORE


@pytest.fixture(scope="module")
def source() -> FewShotSource:
    return open_data("generated", size=48, images_per_class=6, split="train", truth="few-shot")


def test_shuffled_episodes_follow_the_published_order_of_draws(source: FewShotSource) -> None:
    classes = sorted(source.classes)[:4]
    drawn = EpisodeList.draw(source, classes, shots=1, episodes=30, seed=77, draw="shuffled")
    rng = random.Random(77)
    pools = {c: source.images_of(c) for c in classes}
    order = [name for name in source.names if any(name in pool for pool in pools.values())]
    queries = list(order)
    while len(queries) < 30:
        queries += order
    rng.shuffle(queries)
    for spec, query in zip(drawn, queries, strict=False):
        present = [c for c in source.classes_of(query) if c in pools]
        class_id = present[rng.randint(1, len(present)) - 1]
        taken: list[int] = []
        for _ in range(5):
            rng.randint(1, len(pools[class_id]))
            number = rng.randint(1, len(pools[class_id])) - 1
            while pools[class_id][number] == query or (len(pools[class_id]) > 5 and number in taken):
                number = rng.randint(1, len(pools[class_id])) - 1
            taken.append(number)
        assert (spec.query, spec.classes) == ((query,), (class_id,))
        assert spec.support == ((pools[class_id][taken[0]],),)


def test_one_and_five_shots_see_the_same_queries_and_the_first_support(source: FewShotSource) -> None:
    classes = sorted(source.classes)[:4]
    one, five = (EpisodeList.draw(source, classes, shots=k, episodes=20, seed=5, draw="shuffled") for k in (1, 5))
    assert [e.query for e in one] == [e.query for e in five]
    assert [e.support[0][0] for e in one] == [e.support[0][0] for e in five]


def test_regions_hide_novel_classes_and_one_base_class_is_the_object(source: FewShotSource) -> None:
    fold = folds.by_name("generated", 0, "msanet", sorted(source.classes))
    dataset = ProposalDataset(source, fold.train, fold.test, (48, 48), augment="flip")
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for index in range(len(dataset))[::7]:
        item = dataset.draw(index, generator)
        values = set(item.labels.unique().tolist())
        assert not values & set(fold.test)
        inside = item.labels[item.objects == 1].unique()
        assert len(inside) == 1
        assert int(inside) in fold.train
        assert torch.equal(item.objects == IGNORE, item.labels == IGNORE)
        seen |= values
    assert len(seen & set(fold.train)) > 10
    assert torch.equal(dataset[3].labels, dataset[3].labels)


def test_the_object_is_drawn_among_all_base_classes_that_are_left(source: FewShotSource) -> None:
    fold = folds.by_name("generated", 0, "msanet", sorted(source.classes))
    dataset = ProposalDataset(source, fold.train, fold.test, (48, 48), augment="mm_former")
    counted = {}
    for index in range(0, len(dataset), 5):
        items = [dataset.item(index, np.random.default_rng(seed)) for seed in range(8)]
        assert all((item.objects == 1).any() for item in items), "cropped anew until a base class is left"
        present = set().union(*(item.labels.unique().tolist() for item in items)) & set(fold.train)
        counted[index] = (present, {int(item.labels[item.objects == 1][0]) for item in items})
    shown = [taken for present, taken in counted.values() if len(present) > 1]
    assert max(map(len, shown)) > 1


def test_images_with_novel_classes_or_too_little_of_a_base_class_are_left_out(source: FewShotSource) -> None:
    fold = folds.by_name("generated", 0, "msanet", sorted(source.classes))
    areas = source.areas()
    for drop, least in ((False, 1), (True, 1), (False, 400)):
        names = ProposalDataset(source, fold.train, fold.test, (48, 48), drop_novel=drop, min_area=least).names
        expected = [
            name
            for name in source.names
            if any(areas[name].get(c, 0) >= least for c in fold.train)
            and not (drop and any(c in areas[name] for c in fold.test))
        ]
        assert names == expected
        assert 0 < len(names) < len(source.names)
    with pytest.raises(TooFewImagesError, match="the segmenter must have an image, got none"):
        ProposalDataset(source, fold.train, fold.test, min_area=10**6)


def test_painted_coco_masks_follow_the_file_and_leave_crowds_out(data_root: Path) -> None:
    options = {"split": "val2017"}
    ours = open_data("coco", data_root / "coco_mini", **options, truth="few-shot")
    options["crowd"], options["overlap"] = "background", "later"
    painted = open_data("coco", data_root / "coco_mini", truth="few-shot", **options)
    differ = 0
    for name in ours.names[:40]:
        label = painted.label_map(name)
        assert not (label == IGNORE).any()
        everything = np.zeros(label.shape, np.uint8)
        for entry in painted.images.truth(name).objects or ():
            if not entry.crowd:
                everything[entry.mask(*label.shape)] = entry.label + 1
        assert np.array_equal(label, everything)
        one = int(label.max())
        assert np.array_equal(painted.label_map(name, [one]), np.where(everything == one, one, 0))
        differ += not np.array_equal(label, ours.label_map(name))
    assert differ
    assert painted.describe() != ours.describe()
