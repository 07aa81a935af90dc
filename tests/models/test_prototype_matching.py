"""Prototype matching: every option against a plain definition, and supports of every kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fssops
from fssops.models.insid3.refinement import refine
from fssops.models.interface import FewShotModel, Trainable
from fssops.models.prototype_matching import PrototypeMatching, PrototypeMatchingConfig, clusters
from fssops.normalisation import MEAN, STD
from fssops.structures import FewShotBatch


def small(**options: object) -> PrototypeMatching:
    """The first two stages of an EfficientNet-Lite0 with random weights, in float64."""
    torch.manual_seed(3)
    options = {"backbone": "efficientnet_lite0", "taps": ["stage1", "stage2"], **options}
    model = fssops.create_model("prototype_matching", **options)
    assert isinstance(model, PrototypeMatching)
    return model.double().eval()


def episodes(
    batch: int = 1, ways: int = 1, shots: int = 1, queries: int = 1, side: tuple[int, int] = (44, 36)
) -> FewShotBatch:
    """Blobs of noise of two colours; the foreground of each support is one rectangle."""
    generator = torch.Generator().manual_seed(5)

    def images(*leading: int) -> Tensor:
        coarse = torch.randn(*leading, 3, 6, 5, generator=generator, dtype=torch.float64)
        return F.interpolate(coarse.flatten(0, -4), size=side, mode="bilinear").unflatten(0, leading)

    foreground = torch.zeros(batch, ways, shots, *side, dtype=torch.float64)
    for number, mask in enumerate(foreground.flatten(0, 2)):
        mask[4 + number : 23 + number, 6:27] = 1
    background = 1 - foreground
    background[..., :3, :] = 0
    return FewShotBatch(
        support_images=images(batch, ways, shots),
        support_foreground=foreground,
        support_background=background,
        query_images=images(batch, queries),
        query_labels=torch.zeros(batch, queries, *side, dtype=torch.int64),
        classes=torch.ones(batch, ways, dtype=torch.int64),
    )


def unit(x: Tensor, dim: int = 0) -> Tensor:
    return x / x.norm(dim=dim, keepdim=True)


def plain_features(model: PrototypeMatching, image: Tensor) -> Tensor:
    """[C, h, w] of an image [3, H, W]."""
    maps = model.backbone(image[None])
    mirrored = model.backbone(image[None].flip(3))
    found = []
    for tap in model.config.taps:
        level = unit(maps[tap][0])
        if model.config.flip:
            level = level + unit(mirrored[tap][0]).flip(2)
        found.append(unit(F.adaptive_avg_pool2d(level, maps[model.config.taps[-1]].shape[-2:])))
    return torch.cat(found)


def plain_prototypes(features: list[Tensor], masks: list[Tensor], count: int) -> Tensor:
    """[P, C] of images [C, h, w] and masks [H, W]."""
    if count == 1:
        size = masks[0].shape
        large = [F.interpolate(f[None], size=size, mode="bilinear")[0] for f in features]
        pooled = [(f * m).sum((1, 2)) / (m.sum() + 1e-5) for f, m in zip(large, masks, strict=True)]
        return torch.stack(pooled).mean(0)[None]
    points = []
    for f, m in zip(features, masks, strict=True):
        share = F.adaptive_avg_pool2d(m[None], f.shape[1:])[0]
        points.append(f[:, share >= min(0.5, float(share.max()))].T if m.any() else f.new_empty(0, len(f)))
    joined = torch.cat(points)
    return joined if count == 0 else clusters(joined, count)


def plain_logits(model: PrototypeMatching, batch: FewShotBatch, episode: int, query: int) -> Tensor:
    """[1 + N, h, w] scores of a query, one prototype after another."""
    config = model.config
    ways, shots = batch.support_foreground.shape[1:3]
    features = [[plain_features(model, batch.support_images[episode, n, k]) for k in range(shots)] for n in range(ways)]
    fore = [
        plain_prototypes(features[n], list(batch.support_foreground[episode, n]), config.foreground_prototypes)
        for n in range(ways)
    ]
    back = plain_prototypes(
        [one for way in features for one in way],
        list(batch.support_background[episode].flatten(0, 1)),
        config.background_prototypes,
    )
    image = plain_features(model, batch.query_images[episode, query])

    def best(prototypes: Tensor) -> Tensor:
        return torch.stack([F.cosine_similarity(image, p[:, None, None], dim=0) for p in prototypes]).amax(0)

    scores = torch.stack([best(back), *(best(p) for p in fore)])
    if not config.self_support:
        return scores
    shares = (scores * config.scale).softmax(0)
    own, certain = [], []
    for n in range(ways + 1):
        chosen = shares[n] > (config.certain_foreground if n else config.certain_background)
        if chosen.sum() < 12:
            chosen = shares[n] >= shares[n].flatten().sort(descending=True).values[11]
        certain.append(chosen)
        own.append(image[:, chosen].mean(1))
    adaptive = torch.zeros_like(scores[0])
    places = unit(image[:, certain[0]])
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            here = unit(image[:, y, x])
            weights = (places.T @ here / config.adaptive_temperature).softmax(0)
            adaptive[y, x] = unit(places @ weights) @ here
    share, t = config.adaptive_background, config.support_background
    behind = (1 - t) * ((1 - share) * best(own[0][None]) + share * adaptive) + t * scores[0]
    a = config.self_support
    result = [behind]
    for n in range(ways):
        if config.foreground_prototypes:
            mixed = torch.stack([(1 - a) * unit(p) + a * unit(own[n + 1]) for p in fore[n]])
            result.append(best(mixed))
        else:
            result.append((1 - a) * scores[n + 1] + a * best(own[n + 1][None]))
    return torch.stack(result)


OPTIONS = {
    "self-support": {},
    "prototypes alone": {"self_support": 0.0},
    "one map": {"taps": ["stage2"], "self_support": 0.0},
    "another share and certainty": {"self_support": 0.3, "certain_foreground": 0.55, "certain_background": 0.52},
    "no adaptive background": {"adaptive_background": 0.0},
    "adaptive background alone": {"adaptive_background": 1.0, "adaptive_temperature": 0.5},
    "the supports' background too": {"support_background": 0.4},
    "mirror image": {"flip": True},
    "clusters": {"foreground_prototypes": 2, "background_prototypes": 4, "support_background": 0.5},
    "clusters of the background alone": {"background_prototypes": 3, "self_support": 0.0},
    "every position": {"foreground_prototypes": 0, "background_prototypes": 0, "support_background": 0.5},
    "every position of the background": {"background_prototypes": 0, "self_support": 0.0},
    "every position of the foreground": {"foreground_prototypes": 0, "background_prototypes": 2},
    "another scale": {"scale": 5.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 2, 3, 2)], ids=["1-way 1-shot", "2 episodes, 2-way 3-shot"])
def test_every_option_is_its_plain_definition(options: dict[str, object], shape: tuple[int, ...]) -> None:
    model, batch = small(**options), episodes(*shape)
    found = model(batch)
    size = batch.query_images.shape[-2:]
    assert found.shape == (shape[0], shape[3], 1 + shape[1], *size)
    with torch.no_grad():
        for episode in range(shape[0]):
            for query in range(shape[3]):
                scores = plain_logits(model, batch, episode, query) * model.config.scale
                expected = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
                torch.testing.assert_close(found[episode, query], expected, rtol=1e-7, atol=1e-7)


def test_options_change_the_result() -> None:
    batch = episodes()
    seen = [small(**options)(batch) for options in OPTIONS.values()]
    for number, one in enumerate(seen):
        assert not any(torch.allclose(one, other) for other in seen[:number]), list(OPTIONS)[number]


def test_it_offers_the_steps_of_few_shot_models_and_no_training() -> None:
    model = small()
    assert isinstance(model, FewShotModel)
    assert not isinstance(model, Trainable)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_steps_give_what_the_whole_gives() -> None:
    for options in ({}, {"background_prototypes": 0, "refinement": "crf"}):
        model, batch = small(**options), episodes(2, 2, 2, 1)
        support = model.summarise(
            model.encode(batch.support_images.flatten(0, 2)), batch.support_foreground, batch.support_background
        )
        query = model.query_features(model.encode(batch.query_images.flatten(0, 1)))
        assert torch.equal(model.match(support, query, batch.query_images.shape[-2:]), model(batch))
        assert torch.equal(model(batch), model(batch))


def test_refinement_moves_outlines_as_the_field_does() -> None:
    batch = episodes(1, 2)
    plain, refined = small(), small(refinement="crf")
    size = (88, 72)  # of the picture; the image that entered is resized to it
    support = refined.summarise(
        refined.encode(batch.support_images.flatten(0, 2)), batch.support_foreground, batch.support_background
    )
    found = refined.match(support, refined.encode(batch.query_images[0]), size)[0, 0]
    shares = plain.match(support, plain.encode(batch.query_images[0]), size)[0, 0].softmax(0)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    colours = F.interpolate(batch.query_images[0] * std + mean, size=size, mode="bilinear")[0].clamp(0, 1).float()
    assert torch.equal(found.argmax(0), refine(shares, colours).argmax(0))
    assert not torch.equal(found.argmax(0), shares.argmax(0))


def test_the_way_that_no_support_shows_is_never_found_and_leaves_the_others() -> None:
    for options in ({}, {"foreground_prototypes": 3}, {"foreground_prototypes": 0, "background_prototypes": 0}):
        model, batch = small(**options), episodes(1, 2, 2)
        batch.support_foreground[0, 1] = 0
        found = model(batch)[0, 0]
        assert not (found.argmax(0) == 2).any()
        assert (found.argmax(0) == 1).any()
        assert torch.isfinite(found).all()


def test_a_shot_that_does_not_show_the_way_does_not_count() -> None:
    batch = episodes(1, 1, 2)
    batch.support_foreground[0, 0, 1] = 0
    batch.support_background[0, 0, 1] = 0
    one = replace(
        batch,
        support_images=batch.support_images[:, :, :1],
        support_foreground=batch.support_foreground[:, :, :1],
        support_background=batch.support_background[:, :, :1],
    )
    for options in ({}, {"foreground_prototypes": 2, "background_prototypes": 2}, {"background_prototypes": 0}):
        model = small(**options)
        torch.testing.assert_close(model(batch), model(one))


def test_supports_that_are_all_foreground_make_everything_alike_foreground() -> None:
    for options in ({"self_support": 0.0}, {"self_support": 0.0, "background_prototypes": 0}):
        model, batch = small(**options), episodes()
        batch.support_foreground[:], batch.support_background[:] = 1, 0
        batch.query_images[0, 0] = batch.support_images[0, 0, 0]
        assert (model(batch).argmax(2) == 1).all()


def test_a_mask_smaller_than_a_position_still_has_prototypes() -> None:
    batch = episodes()
    batch.support_foreground[:] = 0
    batch.support_foreground[..., 20, 17] = 1
    for count in (0, 1, 2):
        found = small(foreground_prototypes=count, self_support=0.0)(batch)
        assert (found.argmax(2) == 1).any(), count


@pytest.mark.parametrize("side", [(37, 53), (41, 29)])
def test_sizes_that_the_stride_does_not_divide(side: tuple[int, int]) -> None:
    model, batch = small(), episodes(1, 1, 2, side=side)
    with torch.no_grad():
        scores = plain_logits(model, batch, 0, 0) * model.config.scale
    expected = F.interpolate(scores[None], size=side, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(model(batch)[0, 0], expected, rtol=1e-7, atol=1e-7)


def test_half_precision_of_the_backbone_changes_few_labels_and_matching_stays_in_float32() -> None:
    model, batch = small().float(), episodes()
    whole = FewShotBatch(
        **{
            name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in vars(batch).items()
        }
    )
    exact = model(whole)
    with torch.autocast("cpu", torch.bfloat16):
        features = model.encode(whole.query_images[0])
        found = model(whole)
    assert features["features"].dtype == found.dtype == torch.float32
    assert not torch.equal(found, exact)
    assert (found.argmax(2) == exact.argmax(2)).float().mean() > 0.9


def test_clusters_are_the_groups_that_points_form() -> None:
    generator = torch.Generator().manual_seed(2)
    centres = F.normalize(torch.randn(3, 16, generator=generator), dim=1)
    group = torch.arange(60) % 3
    points = centres[group] + 0.02 * torch.randn(60, 16, generator=generator)
    found = clusters(points * torch.rand(60, 1, generator=generator).add(0.5), 3)
    assert sorted((found @ centres.T).argmax(1).tolist()) == [0, 1, 2]
    assert (found @ centres.T).amax(1).min() > 0.995
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert torch.equal(clusters(points[:1], 2), F.normalize(points[:1], dim=1).expand(2, -1))
    assert not clusters(points[:0], 2).any()


def test_every_map_counts_alike() -> None:
    model, batch = small(), episodes()
    features = model.encode(batch.query_images[0])["features"]
    for level in features.split([16, 24], dim=1):
        torch.testing.assert_close(level.norm(dim=1), torch.full_like(level[:, 0], 0.5**0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "alexnet"}, "backbone must be one of vgg16"),
        ({"taps": ["stage9"]}, r"taps of efficientnet_lite2 must be among res2, .*stage7, got \('stage9',\)"),
        ({"taps": []}, "taps of efficientnet_lite2 must be among"),
        ({"backbone": "resnet50", "taps": ["stage5"]}, "taps of resnet50 must be among res2, res3, res4, res5"),
        ({"self_support": 1.5}, r"self_support must be in 0\.\.1, got 1.5"),
        ({"background_prototypes": -1}, "background_prototypes must be at least 0, got -1"),
        ({"adaptive_temperature": 0}, "adaptive_temperature must be more than 0, got 0"),
        ({"refinement": "bilateral"}, "refinement must be one of none, crf"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fssops.create_model("prototype_matching", **options)


def test_every_backbone_is_taken() -> None:
    for name, taps in (("resnet18", ["res3", "res4"]), ("vgg16", ["res4", "res5"]), ("swin_tiny", ["res3", "res4"])):
        model = PrototypeMatching(PrototypeMatchingConfig(backbone=name, taps=tuple(taps))).eval()
        features = model.encode(torch.randn(1, 3, 64, 64))["features"]
        assert features.shape[1] == model.channels
        assert features.shape[2] == 64 // model.stride
