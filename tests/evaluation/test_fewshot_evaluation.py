"""Evaluation of episodes: exact over processes, identical with and without kept features, fully described."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fssops.evaluation.feature_cache import FeatureCache, digest
from fssops.evaluation.fewshot import EvaluationCounts, count_runs, shard
from fssops.evaluation.protocols import PROTOCOLS, FewShotProtocol, find_protocol
from fssops.evaluation.results import FewShotResult, class_table, fold_mean_line, fold_table, score, to_json
from fssops.structures import IGNORE, Episode


class PrototypeModel(nn.Module):
    """The smallest few-shot model: one convolution, mean prototypes, dot products."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.convolution = nn.Conv2d(3, 6, 3, padding=1)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self.convolution(images)}

    def query_features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features

    def summarise(self, features: dict[str, Tensor], foreground: Tensor, background: Tensor) -> Tensor:
        maps = features["features"].unflatten(0, foreground.shape[:3])  # [1, N, K, C, H, W]

        def mean(masks: Tensor, over: tuple[int, ...]) -> Tensor:
            return (maps * masks[:, :, :, None]).sum(over) / (masks[:, :, :, None].sum(over) + 1e-5)

        behind = mean(background, (2, 4, 5)).mean(1, keepdim=True)
        return torch.cat([behind, mean(foreground, (2, 4, 5))], dim=1)

    def match(self, support: Tensor, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        scores = torch.einsum("qchw,bnc->bqnhw", features["features"], support)
        return nn.functional.interpolate(scores[0], size=size, mode="bilinear")[None]


class Episodes:
    """Random episodes over a few images, so that images recur."""

    def __init__(self, length: int, seed: int, ways: int = 1, shots: int = 2, images: int = 6) -> None:
        generator = torch.Generator().manual_seed(7)
        self.images = torch.rand(images, 3, 12, 10, generator=generator)
        self.labels = torch.randint(0, 2, (images, 12, 10), generator=generator)
        self.labels[:, 0] = IGNORE
        self.length, self.seed, self.ways, self.shots = length, seed, ways, shots

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Episode:
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        order = torch.randperm(len(self.images), generator=generator)[: self.ways * self.shots + 1]
        support, query = order[:-1].view(self.ways, self.shots), int(order[-1])
        foreground = (self.labels[support] == 1).float()
        label = self.labels[query] * (1 + index % self.ways)
        return Episode(
            support_images=self.images[support],
            support_foreground=foreground,
            support_background=(self.labels[support] == 0).float(),
            query_images=self.images[query][None],
            query_labels=torch.where(self.labels[query] == IGNORE, IGNORE, label)[None],
            classes=torch.tensor([3, 5][: self.ways]),
            query_names=[f"image{query}"],
            index=index,
        )


NETWORK = dataclasses.replace(PROTOCOLS["panet"], runs=2, episodes=7)


def counted(memory: int = 1 << 20, disk: int = 0, protocol: FewShotProtocol = NETWORK, **options: Any) -> Any:
    model = PrototypeModel().eval()
    ways = options.pop("ways", 1)
    runs = [Episodes(7, seed, ways=ways) for seed in (1, 2)]
    with FeatureCache(model.encode, memory=memory, disk=disk, folder=options.pop("folder", None)) as cache:
        return count_runs(model, runs, protocol, cache, classes=[3, 5], **options)


def assert_same(first: EvaluationCounts, second: EvaluationCounts) -> None:
    for name in ("classes", "foreground", "episodes"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_kept_features_change_no_count_and_save_passes(tmp_path: Path) -> None:
    plain = counted(memory=0)
    assert plain.work.tolist() == [42, 42, 0, 0]
    kept = counted()
    assert kept.work.tolist() == [42, 6, 0, 0]  # 2 runs x 7 episodes x 3 images, of 6 different ones
    one_image = 6 * 12 * 10 * 4
    bounded = counted(memory=2 * one_image)
    assert 6 < int(bounded.work[1]) < 42
    spilled = counted(memory=2 * one_image, disk=1 << 20, folder=tmp_path)
    assert int(spilled.work[1]) == 6
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


@pytest.mark.parametrize("world", [2, 3, 5, 20])
def test_sums_over_uneven_processes_are_exact(world: int) -> None:
    whole = counted(ways=1)
    parts = [counted(ways=1, rank=rank, world_size=world) for rank in range(world)]

    def total(name: str) -> Tensor:
        return torch.stack([getattr(part, name) for part in parts]).sum(0)

    for name in ("classes", "foreground", "episodes"):
        assert torch.equal(total(name), getattr(whole, name))


@pytest.mark.parametrize(("total", "world"), [(10, 3), (2, 5), (0, 2), (7, 7)])
def test_shards_cover_every_episode_once(total: int, world: int) -> None:
    assert sorted(place for rank in range(world) for place in shard(total, rank, world)) == list(range(total))


def test_summed_adds_all_parts_in_one_reduction() -> None:
    counts = counted()
    doubled = counts.summed(lambda flat: flat * 2)
    for name in ("classes", "foreground", "episodes", "work"):
        assert torch.equal(getattr(doubled, name), 2 * getattr(counts, name))


def test_loader_processes_change_nothing() -> None:
    assert_same(counted(), counted(workers=1))


def test_ways_are_counted_under_their_class_ids() -> None:
    counts = counted(ways=2)
    assert counts.classes.shape == (2, 6, 3)
    assert int(counts.classes[:, [1, 2, 4]].sum()) == 0
    assert int(counts.classes[:, 3].sum()) > 0
    assert (counts.classes[:, 5].sum(1) > 0).all()


def test_original_size_uses_the_original_labels() -> None:
    protocol = dataclasses.replace(PROTOCOLS["fssops"], runs=2, episodes=7)
    label = torch.zeros(30, 20, dtype=torch.long)
    counts = counted(protocol=protocol, original_labels=lambda run, index: [label])
    assert int(counts.foreground[0].sum(0)[[0, 2]].sum()) == 7 * 600
    with pytest.raises(ValueError, match="original_labels must be given for protocol 'fssops'"):
        counted(protocol=protocol)


def test_runs_must_be_of_one_length() -> None:
    model = PrototypeModel()
    cache = FeatureCache(model.encode, memory=0)
    with pytest.raises(ValueError, match=r"runs must be of one length, got \[3, 4\]"):
        count_runs(model, [Episodes(3, 0), Episodes(4, 0)], NETWORK, cache, classes=[3])


def result(counts: EvaluationCounts, protocol: FewShotProtocol = NETWORK, fold: int = 0) -> FewShotResult:
    return score(
        counts,
        protocol,
        {3: "cup", 5: "plate"},
        model="m",
        dataset="voc val",
        fold=fold,
        folds="pascal5i (panet)",
        ways=1,
        shots=5,
        queries=1,
        episodes=7,
        seeds=[1234, 1235],
        list_hashes=["ab" * 32, "cd" * 32],
        annotation="mask",
        size=[12, 10],
    )


def by_hand() -> EvaluationCounts:
    counts = EvaluationCounts.zeros(runs=2, episodes=3, largest_class=5)
    counts.classes[0, 0] = torch.tensor([80, 10, 10])
    counts.classes[0, 3] = torch.tensor([6, 2, 2])
    counts.classes[0, 5] = torch.tensor([1, 0, 1])
    counts.classes[1, 0] = torch.tensor([50, 25, 25])
    counts.classes[1, 3] = torch.tensor([4, 4, 8])
    counts.classes[1, 5] = torch.tensor([0, 1, 1])
    counts.foreground[:] = torch.tensor([[3, 1, 0], [1, 0, 1]])
    counts.episodes[0] = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 0]])
    counts.episodes[1] = torch.tensor([[3, 1, 0], [0, 0, 0], [1, 3, 0]])
    return counts


def test_scores_follow_from_counts_by_hand() -> None:
    found = result(by_hand())
    assert found.class_iou == [[0.6, 0.5], [0.25, 0.0]]
    assert found.miou == [0.55, 0.125]
    assert found.mean_iou == pytest.approx(0.3375)
    # Published: the counts of all classes added up, then the mean with the background.
    assert found.binary_iou == pytest.approx([(0.8 + 7 / 12) / 2, (0.5 + 4 / 18) / 2])
    sound = result(by_hand(), dataclasses.replace(PROTOCOLS["fssops"], runs=2))
    assert sound.binary_iou == pytest.approx([(0.75 + 0.5) / 2] * 2)


def test_class_that_never_appears_follows_the_protocol() -> None:
    counts = by_hand()
    counts.classes[:, 5] = 0
    assert result(counts).as_json()["mean_iou"] is None
    assert result(counts, dataclasses.replace(PROTOCOLS["fssops"], runs=2)).mean_iou == pytest.approx((0.6 + 0.25) / 2)


def test_every_line_states_the_whole_setting() -> None:
    line = result(by_hand()).line()
    for part in (
        "mIoU 33.75 ± 21.25",
        "voc val",
        "pascal5i (panet)",
        "fold 0",
        "1-way 5-shot",
        "2 x 7 episodes",
        "seed 1234..1235",
        "protocol panet",
        "list abababab+cdcdcdcd",
    ):
        assert part in line
    mean = fold_mean_line([result(by_hand(), fold=fold) for fold in range(4)])
    assert "fold mean of 0,1,2,3" in mean
    assert "mIoU 33.75" in mean


def test_folds_with_seeds_of_their_own_name_all_of_them() -> None:
    results = [dataclasses.replace(result(by_hand(), fold=fold), seeds=[90 + fold, 7]) for fold in (0, 1)]
    assert "fold mean of 0,1, 1-way 5-shot, 2 x 7 episodes, seed 90 7 | 91 7, protocol panet" in fold_mean_line(results)
    assert fold_table(results)[0] == ["fold", "mIoU", "binary IoU", "run 1", "run 2"]
    assert fold_table(results[:1])[0][3:] == ["run 90", "run 7"]


def test_best_and_worst_episodes_do_not_overlap() -> None:
    best, worst = result(by_hand()).best_and_worst(2)
    assert best == [(0, 0), (1, 0)]
    assert worst == [(0, 1), (1, 2)]


def test_tables_and_json_agree_with_the_result() -> None:
    results = [result(by_hand(), fold=fold) for fold in (0, 1)]
    assert fold_table(results)[-1][:3] == ["mean", "33.75", fold_table(results)[1][2].split(" ")[0]]
    assert class_table(results[0])[1] == ["3", "cup", "42.50 ± 17.50", "60.00", "25.00"]
    body = json.loads(to_json(results))
    assert body["folds"][0]["miou"] == [0.55, 0.125]
    assert body["folds"][0]["episode_iou"][1][1] is None
    assert body["mean"] == fold_mean_line(results)


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"protocol must be one of fssops, panet.*did you mean 'panet'"):
        find_protocol("pa-net")


def test_published_protocol_has_the_published_numbers() -> None:
    row = PROTOCOLS["panet"]
    assert (row.runs, row.episodes, row.first_seed) == (5, 1000, 1234)
    assert (row.size, row.false_positives, row.binary, row.absent) == ("network", "present", "class_sums", "nan")
