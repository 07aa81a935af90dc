"""The cache of features: what is kept where, what goes first, and that its bounds hold in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fssops.evaluation.feature_cache import FeatureCache

SIZE = 4 * 48
"""Bytes of the features of one image."""


def images(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, 4, 4, generator=generator) for _ in range(count)]


def cache_of(memory: int, disk: int, folder: Path) -> FeatureCache:
    return FeatureCache(lambda images: {"f": 2 * images}, memory=memory, disk=disk, folder=folder)


def passes_of(cache: FeatureCache, image: Tensor) -> int:
    """Passes that asking for an image takes; its features are right whether or not they were kept."""
    before = cache.passes
    assert torch.equal(cache.features(image)["f"], 2 * image)
    return cache.passes - before


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    a, b, c = images(3)
    cache = cache_of(2 * SIZE, 0, tmp_path)
    assert [passes_of(cache, image) for image in (a, b, a, c)] == [1, 1, 0, 1]
    assert [passes_of(cache, image) for image in (a, c)] == [0, 0]
    assert passes_of(cache, b) == 1
    assert passes_of(cache, a) == 1, "b took the place of a, which was asked for before c"


def test_what_leaves_memory_lies_on_disk_and_comes_back_from_there(tmp_path: Path) -> None:
    a, b, c = images(3)
    cache = cache_of(SIZE, 2 * SIZE, tmp_path)
    assert [passes_of(cache, image) for image in (a, b, c)] == [1, 1, 1]
    assert [passes_of(cache, image) for image in (c, b, a, b)] == [0, 0, 0, 0]
    assert len(list(tmp_path.rglob("*.pt"))) == 2, "two fit on disk"
    assert passes_of(cache, c) == 1, "the disk was full when it left memory"


def test_disk_takes_what_fits_and_no_more(tmp_path: Path) -> None:
    cache = cache_of(0, 2 * SIZE + SIZE // 2, tmp_path)
    several = images(4)
    assert [passes_of(cache, image) for image in several] == [1, 1, 1, 1]
    assert [passes_of(cache, image) for image in several] == [0, 0, 1, 1]
    files = list(tmp_path.rglob("*.pt"))
    assert len(files) == 2
    assert {file.parent.parent for file in files} == {tmp_path}
    cache.close()
    assert list(tmp_path.iterdir()) == []
    assert passes_of(cache, several[0]) == 1


def test_features_completed_for_a_query_replace_those_on_disk(tmp_path: Path) -> None:
    """Both sizes count: what was stored before makes room for what holds more."""
    a, b, c = images(3)
    cache = cache_of(0, 4 * SIZE, tmp_path)
    for image in (a, b):
        cache.features(image)

    def completed(features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**features, "more": 3 * features["f"]}

    for _ in range(2):
        assert torch.equal(cache.features(a, completed)["more"], 6 * a)
    assert cache.work().tolist() == [4, 2, 2, 1]
    assert [passes_of(cache, image) for image in (a, b, c)] == [0, 0, 1]
    assert [passes_of(cache, image) for image in (a, b, c)] == [0, 0, 0], "2 + 1 + 1 of four fit"


def test_several_images_come_in_their_order_and_hold_what_all_have(tmp_path: Path) -> None:
    a, b, c = images(3)
    cache = cache_of(3 * SIZE, 0, tmp_path)
    cache.features(b, lambda features: {"f": features["f"], "more": features["f"]})
    found = cache.features(torch.cat([c, b, a]))
    assert list(found) == ["f"]
    assert torch.equal(found["f"], 2 * torch.cat([c, b, a]))


def test_layouts_of_memory_are_kept_and_gaps_are_not(tmp_path: Path) -> None:
    """Half of a larger tensor would keep the whole alive."""
    wide = torch.rand(1, 6, 4, 4)

    def encode(_: Tensor) -> dict[str, Tensor]:
        channels_last = torch.rand(1, 3, 4, 4).to(memory_format=torch.channels_last)
        return {"part": wide[:, ::2], "last": channels_last, "rows": wide.transpose(2, 3)}

    with FeatureCache(encode, memory=1 << 20, folder=tmp_path) as cache:
        found = cache.features(images(1)[0])
    assert found["part"].is_contiguous()
    assert found["part"].untyped_storage().nbytes() == 4 * 48
    assert found["last"].is_contiguous(memory_format=torch.channels_last)
    assert not found["last"].is_contiguous()
    assert found["rows"].is_contiguous()
