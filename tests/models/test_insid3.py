"""INSID3: every step by hand or by brute force, against the published composition, and the authors' case."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as F
from scipy.cluster import hierarchy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fssops
from fssops.evaluation.episodes import segment
from fssops.evaluation.feature_cache import FeatureCache
from fssops.models.backbones.vit import VIT, ViTForm
from fssops.models.insid3 import INSID3, INSID3Config
from fssops.models.insid3.aggregation import score_clusters
from fssops.models.insid3.clustering import _nearest_of_all as nearest_of_all
from fssops.models.insid3.clustering import average_linkage
from fssops.models.insid3.debiasing import content_basis, unit
from fssops.models.insid3.matching import backward_votes, feature_masks, forward_matches, prototypes
from fssops.models.insid3.output import class_shares
from fssops.models.insid3.refinement import Lattice, outline_bands, refine_masks
from fssops.models.interface import FewShotModel, Trainable
from fssops.structures import FewShotBatch
from fssops.testing.published_insid3 import PublishedINSID3

TINY = ViTForm(8, 32, 2, 2, 64, registers=4, norm_eps=1e-5, qkv_bias="no_key")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VIT, "tiny", TINY)


def small(**options: Any) -> INSID3:
    """A tiny one whose features differ from place to place; few components, so that something is left."""
    torch.manual_seed(11)
    model = fssops.create_model("insid3", **{"backbone": "tiny", "components": 4, **options})
    assert isinstance(model, INSID3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.5 if parameter.dim() > 1 else 0.2
            parameter.copy_(torch.randn_like(parameter) * scale + float("norm" in name and "weight" in name))
    return model


def scene(side: int, seed: int, hue: float = 1.0) -> tuple[Tensor, Tensor]:
    """An image [3, S, S] of flat regions and noise with one blob of its own colour, and the blob's mask [S, S]."""
    generator = torch.Generator().manual_seed(seed)
    regions = F.interpolate(torch.randn(1, 3, 4, 4, generator=generator), size=(side, side), mode="nearest")[0]
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    cy, cx = (torch.rand(2, generator=generator) - 0.5).tolist()
    mask = ((x - cx) ** 2 + (y - cy) ** 2 < 0.16).float()
    colour = torch.tensor([2.0, -2.0, 2.0]).view(3, 1, 1) * hue
    image = torch.where(mask > 0, colour, 0.5 * regions)
    return image + 0.05 * torch.randn(3, side, side, generator=generator), mask


def episode(side: int = 64, ways: int = 1, shots: int = 1, queries: int = 1, seed: int = 0) -> FewShotBatch:
    supports = [scene(side, seed + 10 * way + shot, 1.0 - way) for way in range(ways) for shot in range(shots)]
    targets = [scene(side, seed + 100 + number) for number in range(queries)]
    masks = torch.stack([mask for _, mask in supports]).view(1, ways, shots, side, side)
    return FewShotBatch(
        support_images=torch.stack([image for image, _ in supports]).view(1, ways, shots, 3, side, side),
        support_foreground=masks,
        support_background=1 - masks,
        query_images=torch.stack([image for image, _ in targets])[None],
        query_labels=torch.stack([mask for _, mask in targets]).long()[None],
        classes=torch.arange(1, ways + 1)[None],
    )


def clustered(count: int, channels: int, centres: int, spread: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randn(centres, channels, generator=generator, dtype=torch.float64)
    which = torch.randint(0, centres, (count,), generator=generator)
    return unit(middle[which] + spread * torch.randn(count, channels, generator=generator, dtype=torch.float64))


def by_scipy(vectors: Tensor, threshold: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Labels and merge heights of the hierarchy over all distances."""
    distances = (1 - (vectors @ vectors.T).clamp(-1, 1)).numpy()
    tree = hierarchy.linkage(distances[np.triu_indices(len(vectors), k=1)], method="average")
    labels = hierarchy.fcluster(tree, np.nextafter(threshold, 0), "distance")
    return labels, tree[:, 2][tree[:, 2] < threshold]


def same_partition(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> bool:
    pairs = len(np.unique(np.stack([first, second]), axis=1).T)
    return pairs == len(np.unique(first)) == len(np.unique(second))


@pytest.mark.parametrize("matrix_limit", [1, 40, 10_000], ids=["products", "both", "matrix"])
@pytest.mark.parametrize(
    ("count", "centres", "spread"), [(2, 2, 1.0), (65, 3, 0.5), (300, 12, 0.7), (301, 301, 1.0), (500, 5, 0.3)]
)
@pytest.mark.parametrize("threshold", [0.05, 0.4, 0.9, 3.0])
def test_clusters_are_those_of_the_whole_matrix(
    count: int, centres: int, spread: float, threshold: float, matrix_limit: int
) -> None:
    vectors = clustered(count, 24, centres, spread)
    labels, heights = average_linkage(vectors, threshold, matrix_limit=matrix_limit, rows_a_block=32)
    expected, expected_heights = by_scipy(vectors, threshold)
    assert same_partition(labels.numpy(), expected)
    assert heights.numpy() == pytest.approx(expected_heights, abs=1e-12)
    firsts = [int((labels == label).nonzero()[0]) for label in range(int(labels.max()) + 1)]
    assert firsts == sorted(firsts)


def smooth_field(count: int, channels: int, seed: int = 0) -> Tensor:
    """Unit vectors along a path that a few directions explain, as an image's positions are, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    knots = torch.randn(1, 6, count // 12, generator=generator, dtype=torch.float64)
    path = F.interpolate(knots, size=count, mode="linear")[0].T
    spread = torch.randn(6, channels, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, channels, generator=generator, dtype=torch.float64)
    return unit(path @ spread + 0.05 * noise)


@pytest.mark.parametrize("threshold", [0.02, 0.4, 3.0])
def test_clusters_found_by_bounds_are_those_of_the_whole_matrix(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> tuple[Tensor, Tensor]:
        raise AssertionError("all products were made")

    monkeypatch.setattr("fssops.models.insid3.clustering._nearest_of_all", refused)
    vectors = smooth_field(600, 96)
    labels, heights = average_linkage(vectors, threshold, matrix_limit=20, rows_a_block=64)
    expected, expected_heights = by_scipy(vectors, threshold)
    assert same_partition(labels.numpy(), expected)
    assert heights.numpy() == pytest.approx(expected_heights, abs=1e-12)


def test_bounds_that_tell_nothing_apart_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return nearest_of_all(*arguments)

    monkeypatch.setattr("fssops.models.insid3.clustering._nearest_of_all", counted)
    vectors = clustered(400, 96, 400, 1.0)
    labels, _ = average_linkage(vectors, 0.95, matrix_limit=20, rows_a_block=64)
    assert calls
    assert same_partition(labels.numpy(), by_scipy(vectors, 0.95)[0])


def test_one_position_is_one_cluster() -> None:
    labels, heights = average_linkage(unit(torch.randn(1, 8)), 0.4)
    assert labels.tolist() == [0]
    assert heights.numel() == 0


def test_a_merge_at_the_threshold_is_not_made() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5], [0.0, -1.0]], dtype=torch.float64)
    distance = float(1 - vectors[0] @ vectors[1])
    assert average_linkage(vectors, distance)[0].tolist() == [0, 1, 2]
    assert average_linkage(vectors, np.nextafter(distance, 1))[0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("matrix_limit", [1, 10_000], ids=["products", "matrix"])
def test_equal_vectors_end_in_one_cluster(matrix_limit: int) -> None:
    vectors = clustered(6, 16, 6, 0.0)
    repeated = vectors[torch.arange(6).repeat(20)]
    labels, _ = average_linkage(repeated, 0.4, matrix_limit=matrix_limit, rows_a_block=16)
    expected, _ = by_scipy(vectors, 0.4)
    assert same_partition(labels[:6].numpy(), expected)
    assert torch.equal(labels, labels[:6].repeat(20))


def test_clustering_leaves_its_input_alone_and_is_deterministic() -> None:
    vectors = clustered(400, 16, 8, 0.6).float()
    before = vectors.clone()
    first = average_linkage(vectors, 0.4, matrix_limit=50)
    assert torch.equal(vectors, before)
    second = average_linkage(vectors, 0.4, matrix_limit=50)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(("count", "components"), [(60, 5), (60, 0), (12, 40)])
def test_content_basis_spans_what_the_leading_components_leave(count: int, components: int) -> None:
    tokens = clustered(count, 24, 10, 1.0)
    basis = content_basis(tokens, components)
    left, _, _ = torch.linalg.svd((tokens - tokens.mean(0)).T)
    taken = left[:, : min(components, count - 1)]
    assert basis.shape == (24, 24 - taken.shape[1])
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), atol=1e-10)
    assert torch.allclose(basis @ basis.T + taken @ taken.T, torch.eye(24, dtype=torch.float64), atol=1e-8)
    # The coordinates have the inner products of the published projection, which stays in all channels.
    projected = unit(tokens - tokens @ taken @ taken.T)
    coordinates = unit(tokens @ basis)
    assert torch.allclose(coordinates @ coordinates.T, projected @ projected.T, atol=1e-8)


def test_feature_masks_read_the_middle_of_each_cell_or_else_less() -> None:
    masks = torch.zeros(5, 32, 48)
    masks[0, 7:9, 7:9] = 1  # the four central pixels of the first cell
    masks[0, 7, 8] = 0  # three of four are enough
    masks[1, 7, 7:9] = 1  # two are not, and no cell begins there: the cell of the mean
    masks[2, 16, 32] = 1  # the first pixel of a cell: nearest reads it
    masks[3, 20, 40:46] = 1
    small = feature_masks(masks, 16)
    assert small.shape == (5, 2, 3)
    assert [mask.nonzero().tolist() for mask in small] == [[[0, 0]], [[0, 0]], [[1, 2]], [[1, 2]], []]


def test_feature_masks_of_sides_that_are_no_multiple_are_padded_with_nothing() -> None:
    mask = torch.ones(1, 30, 20)
    assert feature_masks(mask, 16)[0].tolist() == [[True, False], [True, False]]


def test_prototype_weighs_shots_alike_and_leaves_out_those_without_the_class() -> None:
    references = unit(torch.randn(3, 10, 6, dtype=torch.float64))
    foreground = torch.zeros(3, 10, dtype=torch.bool)
    foreground[0, :7] = foreground[1, 3] = True
    expected = unit((references[0, :7].mean(0) + references[1, 3]) / 2)
    assert torch.allclose(prototypes(references, foreground), expected)
    assert torch.equal(prototypes(references, foreground & False), torch.zeros(6, dtype=torch.float64))


def test_forward_matches_fall_back_to_the_best_tenth() -> None:
    assert forward_matches(torch.tensor([0.1, 0.0, -0.1])).tolist() == [True, False, False]
    below = -torch.arange(1.0, 21.0)
    assert forward_matches(below).nonzero()[:, 0].tolist() == [0, 1]


def brute_votes(target: Tensor, references: Tensor, foreground: Tensor, compared: Tensor) -> Tensor:
    votes = torch.zeros(len(target), dtype=torch.int64)
    for reference, mask, among in zip(references, foreground, compared, strict=True):
        votes += mask[(target @ reference.T).masked_fill(~among, -2).argmax(1)]
    return votes


@pytest.mark.parametrize("case", ["plain", "partly compared", "everything inside", "ties"])
def test_backward_votes_are_those_of_the_best_match_among_all_positions(case: str) -> None:
    references, target = clustered(3 * 50, 12, 20, 0.6).view(3, 50, 12), clustered(70, 12, 20, 0.6, 1)
    foreground = torch.rand(3, 50) < 0.3
    compared = torch.ones_like(foreground)
    if case == "partly compared":
        compared = foreground | (torch.rand(3, 50) < 0.5)
    if case == "everything inside":
        foreground[1] = True
    if case == "ties":
        references[:, 25:] = references[:, :25]
        target[:25] = references[0, :25]
        references, target = references.float(), target.float()
    votes = backward_votes(target, references, foreground, compared)
    assert torch.equal(votes, brute_votes(target, references, foreground, compared))


def test_cluster_scores_by_hand() -> None:
    tokens = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.6, 0.8]])
    debiased = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.8, 0.6], [0.8, 0.6]])
    labels = torch.tensor([0, 0, 1, 2, 2])
    candidates = torch.tensor([True, False, False, True, True])
    scores = score_clusters(labels, tokens, debiased, torch.tensor([1.0, 0.0]), candidates)
    assert scores.labels.tolist() == [0, 2]
    assert scores.area.tolist() == [2, 2]
    assert scores.hits.tolist() == [1, 2]
    assert scores.seed_similarity.tolist() == pytest.approx([0.5**0.5, 0.8])
    assert int(scores.seed) == 1
    assert scores.cross.tolist() == pytest.approx([0.5, 0.8])
    assert scores.intra.tolist() == pytest.approx([0.6, 1.0])
    assert scores.weight.tolist() == pytest.approx([0.5, 1.0])
    assert scores.score.tolist() == pytest.approx([0.15, 0.8])
    every = score_clusters(labels, tokens, debiased, torch.tensor([1.0, 0.0]), candidates, every=True)
    assert every.labels.tolist() == [0, 1, 2]
    assert every.weight.tolist() == pytest.approx([0.5, 0.0, 1.0])
    assert int(every.seed) == 2


@pytest.mark.parametrize("shots", [1, 2, 3])
@pytest.mark.parametrize("components", [0, 4])
def test_prediction_is_that_of_the_published_composition(shots: int, components: int) -> None:
    model = small(behaviour="published", components=components, merge_threshold=0.05)
    published = PublishedINSID3(model, 96)
    sizes = set()
    for seed in range(6):
        batch = episode(96, shots=shots, seed=1000 * seed)
        arguments = (batch.support_images[0, 0], batch.support_foreground[0, 0], batch.query_images[0, 0])
        support = model.summarise(
            model.encode(batch.support_images[0, 0]), batch.support_foreground, batch.support_background
        )
        query = model.encode(batch.query_images[0])
        for size in ((96, 96), (70, 131)):
            expected = published(*arguments, size=None if size == (96, 96) else size)
            got = model.match(support, query, size)[0, 0].argmax(0) == 1
            assert torch.equal(got, expected)
            sizes.add(int(expected.sum()))
    assert len(sizes) > 4, "the scenes must give masks of different sizes to say anything"


def test_forward_equals_its_steps_and_shares_add_up_to_one() -> None:
    model = small()
    batch = episode(64, ways=2, shots=2, queries=2)
    logits = model(batch)
    assert logits.shape == (1, 2, 3, 64, 64)
    support = model.summarise(
        model.encode(batch.support_images.flatten(0, 2)), batch.support_foreground, batch.support_background
    )
    assert torch.equal(logits, model.match(support, model.encode(batch.query_images[0]), (64, 64)))
    assert torch.allclose(logits.exp().sum(2), torch.ones(1, 2, 64, 64), atol=1e-4)
    assert isinstance(model, FewShotModel)


def test_a_batch_is_its_episodes() -> None:
    model = small()
    first, second = episode(64, ways=2, queries=2), episode(64, ways=2, queries=2, seed=50)
    both = FewShotBatch(
        **{
            name: torch.cat([getattr(first, name), getattr(second, name)])
            for name in ("support_images", "support_foreground", "support_background", "query_images")
        },
        query_labels=torch.cat([first.query_labels, second.query_labels]),
        classes=torch.cat([first.classes, second.classes]),
    )
    assert torch.allclose(model(both), torch.cat([model(first), model(second)]), atol=1e-4)


def test_two_ways_keep_apart_and_the_higher_score_has_a_position() -> None:
    absent = -torch.inf
    scores = torch.tensor([[0.9, 0.3, absent, absent], [0.5, 0.6, 0.2, absent]])
    shares = class_shares(scores, (2, 2), 8, (16, 16), (2, 2), hard=False, colours=None)
    assert shares.argmax(0).tolist() == [[1, 2], [2, 0]]
    assert torch.equal(shares.sum(0), torch.ones(2, 2))


def test_ways_alone_give_what_they_give_together_where_they_do_not_meet() -> None:
    model = small()
    batch = episode(64, ways=2)
    supports, query = model.encode(batch.support_images[0].flatten(0, 1)), model.encode(batch.query_images[0])
    foreground, background = batch.support_foreground, batch.support_background
    together = model.match(model.summarise(supports, foreground, background), query, (8, 8))[0, 0].argmax(0)
    alone = []
    for way in range(2):
        part = {name: value[way : way + 1] for name, value in supports.items()}
        summary = model.summarise(part, foreground[:, way : way + 1], background[:, way : way + 1])
        alone.append(model.match(summary, query, (8, 8))[0, 0].argmax(0) == 1)
    assert bool(alone[0].any() | alone[1].any())
    assert torch.equal(together == 0, ~alone[0] & ~alone[1])
    assert not bool(((together == 1) & ~alone[0]).any() | ((together == 2) & ~alone[1]).any())


def test_position_is_known_from_a_black_image_of_the_same_size() -> None:
    model = small()
    tokens = unit(model.backbone(torch.zeros(1, 3, 1, 1).expand(1, 3, 64, 64) + black())["block1"].permute(0, 2, 3, 1))
    expected = content_basis(tokens.flatten(0, 2), 4)
    basis = model.basis((8, 8))
    assert torch.allclose(basis @ basis.T, expected @ expected.T, atol=1e-5)
    assert model.basis((8, 8)) is basis
    assert model.encode(torch.randn(1, 3, 64, 64))["debiased"].shape == (1, 8, 8, 28)


def black() -> Tensor:
    return -torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def test_new_weights_make_a_new_basis() -> None:
    model = small()
    before = model.basis((8, 8))
    fssops.load_weights(model, {name: 1.5 * value for name, value in model.state_dict().items()})
    assert not torch.equal(model.basis((8, 8)), before)


def test_default_components_go_with_the_width() -> None:
    assert small(components=None).components == 32 * 500 // 1024
    with torch.device("meta"):
        assert INSID3(INSID3Config()).components == 500
        assert INSID3(INSID3Config(backbone="dinov3_vits16")).components == 187


def test_the_seed_stays_unless_as_published() -> None:
    for seed in range(20):
        batch = episode(64, seed=300 * seed)
        sound, published = (small(behaviour=name, merge_threshold=1.0) for name in ("sound", "published"))
        support = sound.summarise(
            sound.encode(batch.support_images[0, 0]), batch.support_foreground, batch.support_background
        )
        query = sound.encode(batch.query_images[0])
        found, _ = sound.candidates(support, 0, 0, query["debiased"][0].flatten(0, 1))
        assert not bool((published(batch)[0, 0].argmax(0) == 1).any())
        score = sound.score_way(support, 0, 0, {k: v[0] for k, v in sound.query_features(query).items()})
        inside = score > -torch.inf
        assert bool(inside.any()) == bool(found.any())
        if bool(inside.any()):
            assert len(sound.query_features(query)["labels"].flatten()[inside].unique()) == 1
            return
    pytest.fail("no scene has a candidate")


def test_masks_are_decided_once_unless_as_published() -> None:
    scores = torch.full((1, 16), -torch.inf)
    scores[0, [5, 6]] = 1.0
    once, twice = (
        class_shares(scores, (4, 4), 8, (32, 32), (50, 50), hard=hard, colours=None).argmax(0) for hard in (False, True)
    )
    cells = (scores > -torch.inf).float().view(1, 1, 4, 4)
    for size in ((32, 32), (50, 50)):
        cells = (F.interpolate(cells, size=size, mode="bilinear") > 0.5).float()
    assert torch.equal(twice, cells[0, 0].long())
    assert not torch.equal(once, twice)


def test_unlabelled_pixels_are_not_matched_unless_as_published() -> None:
    sound, published = small(), small(behaviour="published")
    batch = episode(64)
    features = sound.encode(batch.support_images[0, 0])
    nowhere = torch.zeros_like(batch.support_background)
    nowhere[..., :8, :] = 1
    background = batch.support_background * nowhere
    compared = sound.summarise(features, batch.support_foreground, background).compared.view(8, 8)
    inside = feature_masks(batch.support_foreground[0, 0], 8)[0]
    assert torch.equal(compared[1:], inside[1:])
    assert bool(compared[0].all())
    assert bool(published.summarise(features, batch.support_foreground, background).compared.all())


def test_without_the_class_there_is_background_only() -> None:
    model = small()
    batch = episode(64, ways=2, shots=2)
    batch.support_foreground[:, 1] = 0
    batch.support_background[:, 1] = 1
    labels = model(batch)[0, 0].argmax(0)
    assert not bool((labels == 2).any())
    batch.support_foreground.zero_()
    batch.support_background.fill_(1)
    assert not bool(model(batch)[0, 0].argmax(0).any())


def test_a_shot_without_the_class_does_not_count() -> None:
    model = small()
    batch = episode(64, shots=3)
    batch.support_foreground[0, 0, 1] = 0
    others = [0, 2]
    fewer = FewShotBatch(
        support_images=batch.support_images[:, :, others],
        support_foreground=batch.support_foreground[:, :, others],
        support_background=batch.support_background[:, :, others],
        query_images=batch.query_images,
        query_labels=batch.query_labels,
        classes=batch.classes,
    )
    assert torch.equal(model(batch), model(fewer))


@pytest.mark.parametrize("size", [(61, 77), (64, 50)])
def test_odd_sizes_are_padded_and_come_back(size: tuple[int, int]) -> None:
    model = small()
    batch = episode(80)
    cut = (..., slice(0, size[0]), slice(0, size[1]))
    odd = FewShotBatch(
        support_images=batch.support_images[cut],
        support_foreground=batch.support_foreground[cut],
        support_background=batch.support_background[cut],
        query_images=batch.query_images[cut],
        query_labels=batch.query_labels[cut],
        classes=batch.classes,
    )
    with pytest.warns(UserWarning, match="multiples of the patch"):
        logits = model(odd)
    assert logits.shape == (1, 1, 2, *size)
    assert bool(logits.isfinite().all())


def test_queries_of_another_size_than_the_supports_are_refused() -> None:
    model = small()
    batch = episode(64)
    support = model.summarise(
        model.encode(batch.support_images[0, 0]), batch.support_foreground, batch.support_background
    )
    with pytest.raises(ValueError, match="must have the size of the supports, 8 x 8 patches, got 10 x 8"):
        model.match(support, model.encode(torch.randn(1, 3, 80, 64)), (80, 64))


@pytest.mark.parametrize("swiglu", [False, True])
def test_official_weights_of_the_backbone_alone_fill_it(swiglu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VIT, "tiny", replace(TINY, swiglu=swiglu))
    source, model = small(), fssops.create_model("insid3", backbone="tiny", components=4)
    state: dict[str, Tensor] = {}
    for name, value in source.backbone.state_dict().items():
        if ".w12." in name:
            state[name.replace("w12", "w1")], state[name.replace("w12", "w2")] = value.chunk(2)
        else:
            state[name.replace("register_tokens", "storage_tokens")] = value
    report = fssops.load_weights(model, state)
    assert report.complete
    assert (report.target, report.layout[:12]) == ("backbone", "official ViT")
    batch = episode(64)
    assert torch.equal(model(batch), source(batch))


def test_there_is_nothing_to_train() -> None:
    model = small()
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert not model.train().backbone.training
    assert not isinstance(model, Trainable)


def test_the_same_again_gives_the_same_and_keeps_no_gradient() -> None:
    model = small()
    batch = episode(64, ways=2, shots=2)
    first = model(batch)
    assert not first.requires_grad
    assert torch.equal(model(batch), first)


def test_matching_is_exact_under_autocast() -> None:
    model = small()
    batch = episode(64)
    support, query = model.encode(batch.support_images[0, 0]), model.encode(batch.query_images[0])
    exact = model.match(model.summarise(support, batch.support_foreground, batch.support_background), query, (64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.match(
            model.summarise(support, batch.support_foreground, batch.support_background), query, (64, 64)
        )
        coarse = model.encode(batch.query_images[0])
    assert torch.equal(mixed, exact)
    assert coarse["tokens"].dtype == coarse["debiased"].dtype == torch.float32
    assert (coarse["tokens"] - query["tokens"]).abs().max() < 0.1


class LargestTensor(TorchDispatchMode):
    """Records the number of entries of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.numel())
        return result


def test_nothing_of_the_size_positions_by_positions_is_formed() -> None:
    model = small()
    side = 384  # 48 x 48 positions
    batch = episode(side, shots=2)
    positions, channels = (side // 8) ** 2, 32
    support = model.encode(batch.support_images[0, 0])
    query = model.encode(batch.query_images[0])
    with LargestTensor() as largest:
        summary = model.summarise(support, batch.support_foreground, batch.support_background)
        logits = model.match(summary, query, (48, 48))
    assert bool((logits.argmax(2) == 1).any())
    assert largest.entries < positions**2 / 4
    assert largest.entries <= max(1024**2, 256 * positions, 2 * positions * channels)


def test_clusters_of_an_image_are_found_once_for_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    calls = []

    def counted(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return average_linkage(*arguments, **options)

    monkeypatch.setattr("fssops.models.insid3.model.average_linkage", counted)
    batch = episode(64, ways=2)
    first, second = batch.query_images[0], batch.query_images[0]
    with FeatureCache(model.encode, memory=1 << 24) as cache, torch.inference_mode():
        for query in (first, second):
            one = fssops.structures.Episode(
                support_images=batch.support_images[0],
                support_foreground=batch.support_foreground[0],
                support_background=batch.support_background[0],
                query_images=query,
                query_labels=batch.query_labels[0],
                classes=batch.classes[0],
            )
            (segmented,) = segment(model, cache, one).values()
    assert len(calls) == 1
    assert torch.equal(segmented[0], model(batch)[0, 0])


def test_predictor_segments_at_the_pictures_own_size() -> None:
    model = small()
    image, mask = scene(90, 3)
    picture = ((image - image.min()) / (image.max() - image.min())).clamp(0, 1)
    predictor = fssops.FewShotPredictor(model, size=64)
    predictor.set_support({"blob": [picture]}, {"blob": [mask.bool().numpy()]})
    result = predictor.segment(picture)
    assert result.label_map.shape == (90, 90)
    assert set(np.unique(result.label_map)) <= {0, 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(predictor.segment(picture).label_map, result.label_map)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "dinov4"}, "backbone must be one of dino_vits16, "),
        ({"components": 32}, "components must be 0 to 31, since tiny has 32 channels, got 32"),
        ({"components": -1}, "components must be 0 to 31"),
        ({"cluster_similarity": 1.5}, "cluster_similarity must be in -1..1"),
        ({"merge_threshold": float("nan")}, "merge_threshold must be in -1..1"),
        ({"behaviour": "paper"}, "behaviour"),
        ({"refinement": "gram"}, "refinement"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("channels", [2, 5])
def test_lattice_filters_as_gaussians_do(channels: int) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1500, channels, generator=generator) * 1.5
    values = features[:, 0].sign() + features[:, 1] + 0.3 * torch.randn(1500, generator=generator)
    kernel = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
    expected = (kernel @ values) / kernel.sum(1)
    lattice = Lattice(features)
    got = lattice(values[None])[0]
    assert torch.corrcoef(torch.stack([got, expected]))[0, 1] > 0.99
    assert torch.allclose(lattice.weights.sum(1), torch.ones(1500), atol=1e-4)
    assert lattice.weights.min() > -1e-4


def test_band_lies_within_five_pixels_of_the_outline_and_along_the_image_edge() -> None:
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[:, :20] = True
    rows = outline_bands(mask[None])[0, 20]
    assert rows.nonzero()[:, 0].tolist() == [*range(5), *range(15, 25)]


def test_refined_outlines_follow_the_colours() -> None:
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    disc = (x - 60) ** 2 + (y - 66) ** 2 < 34**2
    colours = (0.3 + 0.4 * disc + 0.02 * torch.randn(3, 128, 128)).clamp(0, 1)
    cells = F.interpolate(disc[None, None].float(), size=(16, 16), mode="bilinear") > 0.5
    coarse = F.interpolate(cells.float(), size=(128, 128), mode="bilinear")[0, 0] > 0.5

    def overlap(mask: Tensor) -> float:
        return float((mask & disc).sum() / (mask | disc).sum())

    refined = refine_masks(coarse[None], colours)[0]
    assert overlap(coarse) < 0.96
    assert overlap(refined) > 0.985
    elsewhere = ~outline_bands(coarse[None])[0]
    assert torch.equal(refined[elsewhere], coarse[elsewhere])
    nothing = torch.zeros(1, 128, 128, dtype=torch.bool)
    assert torch.equal(refine_masks(nothing, colours), nothing)


def test_refinement_is_an_option_of_the_model() -> None:
    batch = episode(64, ways=2)
    plain, refined = small()(batch)[0, 0].argmax(0), small(refinement="crf")(batch)[0, 0]
    assert refined.shape == (3, 64, 64)
    assert not torch.equal(refined.argmax(0), plain)
    assert torch.allclose(refined.exp().amax(0), torch.ones(64, 64))


def test_parity_with_the_authors_code(oracle_root: Path) -> None:
    lines = list(parity.lines_of(oracle_root / "insid3_dinov3_vits16_1shot"))
    compared = {line.name for line in lines if line.error is not None}
    assert {"features", "debiased", "votes", "candidates", "cluster_labels", "merge_heights"} <= compared
    assert {"cluster.score", "seed", "mask_low", "mask_S", "mask_final", "probe.down"} <= compared
    assert not [str(line) for line in lines if line.out]
