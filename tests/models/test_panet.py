"""PANet: prototypes, scores and alignment loss by hand, against a plain composition, and the authors' cases."""

from __future__ import annotations

import math
from pathlib import Path

import parity
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fssops
from fssops.models.interface import FewShotModel
from fssops.models.panet import PANet, PANetConfig
from fssops.structures import IGNORE, FewShotBatch


def small(**options: object) -> PANet:
    """A narrow PANet in eval mode, in float64."""
    model = fssops.create_model("panet", backbone_width=4, **options)
    assert isinstance(model, PANet)
    return model.double().eval()


def episodes(batch: int, ways: int, shots: int, queries: int, side: int = 40, seed: int = 1) -> FewShotBatch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    foreground = (normal(batch, ways, shots, side, side) > 0.5).double()
    background = ((normal(batch, ways, shots, side, side) > 0) & (foreground == 0)).double()
    labels = torch.randint(0, ways + 1, (batch, queries, side, side), generator=generator)
    labels[..., :3, :] = IGNORE
    return FewShotBatch(
        support_images=normal(batch, ways, shots, 3, side, side),
        support_foreground=foreground,
        support_background=background,
        query_images=normal(batch, queries, 3, side, side),
        query_labels=labels,
        classes=torch.arange(1, ways + 1).expand(batch, ways),
    )


def published_encoder(model: PANet) -> nn.Sequential:
    """The encoder written out with plain layers, sharing the model's weights."""
    layers: list[nn.Module] = []
    for stage in range(1, 6):
        convolutions = list(model.backbone.get_submodule(f"stage{stage}"))  # type: ignore[call-overload]
        for position, convolution in enumerate(convolutions):
            dilation = 2 if stage == 5 else 1
            plain = nn.Conv2d(*convolution.weight.shape[1::-1], 3, padding=dilation, dilation=dilation)
            plain.weight, plain.bias = convolution.weight, convolution.bias
            layers.append(plain)
            if stage < 5 or position < 2:
                layers.append(nn.ReLU())
        if stage < 5:
            layers.append(nn.MaxPool2d(3, stride=1 if stage == 4 else 2, padding=1))
    return nn.Sequential(*layers)


def published(model: PANet, batch: FewShotBatch) -> tuple[Tensor, Tensor]:
    """Logits [B, Q, 1 + N, H, W] and alignment losses [B], one episode, way and shot at a time."""
    encoder = published_encoder(model)
    count, ways, shots = batch.support_foreground.shape[:3]
    size = batch.query_images.shape[-2:]

    def cosine(features: Tensor, prototype: Tensor) -> Tensor:
        return model.config.scale * F.cosine_similarity(features, prototype[None, :, None, None], dim=1)

    def pooled(features: Tensor, mask: Tensor) -> Tensor:
        large = F.interpolate(features[None], size=size, mode="bilinear")[0]
        return (large * mask).sum((1, 2)) / (mask.sum() + 1e-5)

    logits, losses = [], []
    for b in range(count):
        support = [[encoder(batch.support_images[b, w, s][None])[0] for s in range(shots)] for w in range(ways)]
        query = encoder(batch.query_images[b])
        fore = [
            torch.stack([pooled(support[w][s], batch.support_foreground[b, w, s]) for s in range(shots)]).mean(0)
            for w in range(ways)
        ]
        back = torch.stack(
            [
                torch.stack([pooled(support[w][s], batch.support_background[b, w, s]) for s in range(shots)]).mean(0)
                for w in range(ways)
            ]
        ).mean(0)
        scores = torch.stack([cosine(query, p) for p in (back, *fore)], dim=1)
        logits.append(F.interpolate(scores, size=size, mode="bilinear"))
        predicted = scores.argmax(1)
        total = torch.zeros((), dtype=torch.float64)
        prototypes = []
        for k in range(ways + 1):
            mask = (predicted == k)[:, None].double()
            prototypes.append((query * mask).sum((0, 2, 3)) / (mask.sum() + 1e-5))
        for w in range(ways):
            if not (predicted == w + 1).any():
                continue
            for s in range(shots):
                pair = [cosine(support[w][s][None], p) for p in (prototypes[0], prototypes[w + 1])]
                found = F.interpolate(torch.stack(pair, dim=1), size=size, mode="bilinear")
                target = torch.full(size, IGNORE)
                target[batch.support_foreground[b, w, s] == 1] = 1
                target[batch.support_background[b, w, s] == 1] = 0
                total = total + F.cross_entropy(found, target[None], ignore_index=IGNORE) / (shots * ways)
        losses.append(total)
    return torch.stack(logits), torch.stack(losses)


@pytest.mark.parametrize(
    ("batch", "ways", "shots", "queries", "scale"), [(1, 1, 1, 1, 20.0), (2, 2, 3, 2, 20.0), (1, 3, 2, 1, 7.0)]
)
def test_forward_and_losses_equal_the_published_composition(
    batch: int, ways: int, shots: int, queries: int, scale: float
) -> None:
    model = small(scale=scale).train()
    data = episodes(batch, ways, shots, queries)
    logits, align = published(model, data)
    expected = F.cross_entropy(logits.flatten(0, 1), data.query_labels.flatten(0, 1), ignore_index=IGNORE)
    (expected + align.mean()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    torch.testing.assert_close(model(data), logits, rtol=1e-9, atol=1e-9)
    losses = model.losses(data)
    torch.testing.assert_close(losses["loss_query"], expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(losses["loss_align"], align.mean(), rtol=1e-9, atol=0)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-7, atol=1e-12)


def test_prototypes_and_scores_of_a_hand_made_feature_map() -> None:
    model = small()
    # Two channels over 1 x 2 positions; the mask has the features' size, so nothing is resized.
    features = torch.tensor([[[[3.0, 0.0]], [[4.0, 5.0]]]], dtype=torch.float64)
    foreground = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 1, 2)
    summary = model.summarise({"features": features}, foreground, 1 - foreground)
    # Foreground is the vector (3, 4), background (0, 5), each over one pixel: divided by 1 + 1e-5.
    expected = torch.tensor([[[0.0, 5.0], [3.0, 4.0]]], dtype=torch.float64) / (1 + 1e-5)
    torch.testing.assert_close(summary.prototypes, expected)
    logits = model.match(summary, {"features": features}, (1, 2))
    # cos((3, 4), (0, 5)) = 20 / 25 = 0.8; scaled by 20.
    wanted = torch.tensor([[16.0, 20.0], [20.0, 16.0]], dtype=torch.float64).view(1, 1, 2, 1, 2)
    torch.testing.assert_close(logits, wanted)


def test_support_without_foreground_scores_zero() -> None:
    model, data = small(), episodes(1, 1, 1, 1)
    data.support_foreground.zero_()
    with torch.no_grad():
        logits = model(data)
    assert (logits[:, :, 1] == 0).all()
    assert logits[:, :, 0].abs().max() > 0


def test_steps_equal_forward_and_a_cached_support_serves_many_queries() -> None:
    model, data = small(), episodes(2, 2, 2, 3)
    assert isinstance(model, FewShotModel)
    with torch.no_grad():
        whole = model(data)
        support = model.encode(data.support_images.flatten(0, 2))
        summary = model.summarise(support, data.support_foreground, data.support_background)
        for q in range(3):
            query = model.encode(data.query_images[:, q])
            one = model.match(summary, query, (40, 40))
            torch.testing.assert_close(one[:, 0], whole[:, q])


def test_logits_come_at_the_size_that_is_asked_for() -> None:
    model, data = small(), episodes(1, 1, 1, 1)
    with torch.no_grad():
        summary = model.summarise(
            model.encode(data.support_images.flatten(0, 2)), data.support_foreground, data.support_background
        )
        assert model.match(summary, model.encode(data.query_images[0]), (31, 57)).shape == (1, 1, 2, 31, 57)


def test_ways_that_the_prediction_lacks_have_no_term_and_the_divisor_is_an_option() -> None:
    data = episodes(1, 2, 1, 1)
    model, fair = small(), small(align_divisor="used_ways")
    features = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    scores = torch.zeros(1, 3, 5, 5, dtype=torch.float64)
    scores[:, 1, 2:4] = 1.0  # way 1 is predicted in two rows, way 2 nowhere
    arguments = (features[:2], data.support_foreground, data.support_background, features[2:], scores)
    published_value, fair_value = model.alignment_losses(*arguments), fair.alignment_losses(*arguments)
    assert published_value.item() > 0
    torch.testing.assert_close(fair_value, 2 * published_value)

    nothing = model.alignment_losses(*arguments[:4], torch.zeros_like(scores))
    assert nothing.tolist() == [0.0]


def test_alignment_against_all_ways_equals_the_binary_form_for_one_way() -> None:
    data = episodes(2, 1, 2, 1)
    one, two = small().train(), small(align_classes="all").train()
    two.load_state_dict(one.state_dict())
    torch.testing.assert_close(one.losses(data)["loss_align"], two.losses(data)["loss_align"])


def test_alignment_against_all_ways_targets_the_number_of_the_way() -> None:
    model = small(align_classes="all")
    # Each class has a channel of its own, in query and supports alike: a perfect episode of two ways.
    query = torch.eye(3, dtype=torch.float64).view(1, 3, 1, 3)
    scores = torch.eye(3, dtype=torch.float64).view(1, 3, 1, 3)
    support = torch.zeros(2, 3, 1, 2, dtype=torch.float64)
    support[:, 0, :, 0] = 1
    support[0, 1, :, 1] = support[1, 2, :, 1] = 1
    foreground = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(1, 2, 1, 1, 2)
    loss = model.alignment_losses(support, foreground, 1 - foreground, query, scores)
    # Every pixel: logits 20 for its class and 0 for the two others.
    torch.testing.assert_close(loss, torch.log1p(2 * torch.exp(torch.tensor([-20.0], dtype=torch.float64))))


def test_alignment_against_all_ways_leaves_out_ways_that_the_query_does_not_show() -> None:
    """At scale 5: 5 for the class of the pixel, 0 for the other, -5 for the absent way, whose term is missing."""
    model = small(align_classes="all", scale=5.0)
    query = torch.eye(3, dtype=torch.float64).view(1, 3, 1, 3)[..., :2]
    scores = torch.eye(3, dtype=torch.float64).view(1, 3, 1, 3)[..., :2]
    support = torch.zeros(2, 3, 1, 2, dtype=torch.float64)
    support[:, 0, :, 0] = support[:, 1, :, 1] = 1
    foreground = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(1, 2, 1, 1, 2)
    loss = model.alignment_losses(support, foreground, 1 - foreground, query, scores)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-5) + math.exp(-10)) / 2, rel=1e-6)


def test_nearest_background_takes_the_best_of_the_support_backgrounds() -> None:
    data = episodes(1, 2, 2, 1)
    mean, nearest = small(), small(background="nearest")
    nearest.load_state_dict(mean.state_dict())
    with torch.no_grad():
        support = nearest.encode(data.support_images.flatten(0, 2))
        query = nearest.encode(data.query_images[0])
        summary = nearest.summarise(support, data.support_foreground, data.support_background)
        assert summary.background.shape == (1, 4, nearest.channels)
        size = (query["features"].shape[-2], query["features"].shape[-1])
        logits = nearest.match(summary, query, size)
        each = [20 * F.cosine_similarity(query["features"], p[None, :, None, None]) for p in summary.background[0]]
        torch.testing.assert_close(logits[0, 0, 0], torch.stack(each).amax(0)[0])
        torch.testing.assert_close(
            logits[0, 0, 1:],
            mean.match(mean.summarise(support, data.support_foreground, data.support_background), query, size)[
                0, 0, 1:
            ],
        )


@pytest.mark.parametrize("rule", ["bilinear", "nearest"])
def test_pooling_may_resize_the_mask_instead_of_the_features(rule: str) -> None:
    data = episodes(1, 1, 1, 1)
    model = small(pooling=rule)
    with torch.no_grad():
        features = model.encode(data.support_images.flatten(0, 2))
        summary = model.summarise(features, data.support_foreground, data.support_background)
        mask = F.interpolate(data.support_foreground[0, 0][None], size=features["features"].shape[-2:], mode=rule)[0]
        wanted = (features["features"][0] * mask).sum((1, 2)) / (mask.sum() + 1e-5)
    torch.testing.assert_close(summary.foreground[0, 0], wanted)


def test_images_pass_the_encoder_in_groups_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    images = torch.randn(5, 3, 24, 32, dtype=torch.float64)
    with torch.no_grad():
        whole = model.encode(images)["features"]
        monkeypatch.setattr("fssops.models.panet._PIXELS_A_PASS", {"cpu": 2 * 24 * 32})
        seen: list[int] = []
        model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        parts = model.encode(images)["features"]
    assert seen == [2, 2, 1]
    torch.testing.assert_close(parts, whole)


def test_a_batch_without_labelled_pixels_gives_zero_loss_not_nan() -> None:
    model, data = small().train(), episodes(1, 1, 1, 1)
    data.query_labels.fill_(IGNORE)
    data.support_background.zero_()
    data.support_foreground.zero_()
    losses = model.losses(data)
    assert losses["loss_query"].item() == 0.0
    assert losses["loss_align"].item() == 0.0


def test_alignment_can_be_switched_off_and_weighted() -> None:
    data = episodes(1, 1, 1, 1)
    plain, half = small().train(), small(align_weight=0.5).train()
    half.load_state_dict(plain.state_dict())
    assert set(small(align=False).losses(data)) == {"loss_query"}
    torch.testing.assert_close(half.losses(data)["loss_align"], 0.5 * plain.losses(data)["loss_align"])


@pytest.mark.parametrize(
    ("backbone", "last_stage", "channels"),
    [("resnet18", "res5", 32), ("resnet34", "res4", 16), ("resnet50", "res5", 128), ("resnet101", "res4", 64)],
)
def test_resnet_backbones_keep_stride_8(backbone: str, last_stage: str, channels: int) -> None:
    model = small(backbone=backbone, last_stage=last_stage)
    assert model.stride == 8
    with torch.no_grad():
        features = model.encode(torch.randn(1, 3, 41, 57, dtype=torch.float64))["features"]
    assert features.shape == (1, channels, 6, 8)
    assert (features < 0).any()  # no ReLU before the cosine


def test_batch_norm_backbone_trains_from_random_weights() -> None:
    model = fssops.create_model("panet", backbone="resnet18", backbone_norm="batch", backbone_width=8).train()
    data = episodes(1, 1, 1, 1)
    data = FewShotBatch(
        **{k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in vars(data).items()}
    )
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    losses: list[float] = []
    for _ in range(12):
        loss = sum(model.losses(data).values())  # type: ignore[operator]
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # One episode at this rate swings from step to step, and rounding decides where: what counts is how low it got.
    assert min(losses) < 0.8 * losses[0]


def test_bfloat16_autocast_stays_close_and_returns_float32_scores() -> None:
    model = small().float()
    data = episodes(1, 1, 1, 1)
    data = FewShotBatch(
        **{k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in vars(data).items()}
    )
    with torch.no_grad():
        exact = model(data)
        with torch.autocast("cpu", torch.bfloat16):
            assert model.encode(data.query_images[0])["features"].dtype == torch.bfloat16
            rough = model(data)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.5  # of a range of 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vgg19"}, "backbone must be one of vgg16"),
        ({"scale": 0.0}, "scale must be more than 0, got 0.0"),
        ({"align_weight": -1.0}, "align_weight must be at least 0, got -1.0"),
        ({"backbone_width": 0}, "backbone_width must be at least 1"),
        ({"pooling": "none"}, "pooling must be one of upsample_features"),
    ],
)
def test_configuration_refuses_bad_values(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PANetConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 7, 40), "at least 8 pixels a side, got 7 x 40"),
        (torch.zeros(1, 4, 40, 40), r"must be float \[n, 3, H, W\], got \[1, 4, 40, 40\]"),
        (torch.zeros(1, 3, 40, 40, dtype=torch.uint8), "must be float"),
    ],
)
def test_encode_refuses_images_it_cannot_take(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small().encode(images)


@pytest.mark.parametrize("name", ["panet_vgg16_1way1shot", "panet_vgg16_2way2shot_par_train"])
def test_parity_with_the_authors_code(oracle_root: Path, name: str) -> None:
    lines = list(parity.lines_of(oracle_root / name))
    compared = {line.name for line in lines if line.error is not None}
    assert {"query_pred", "prototypes", "dist_lowres", "query_loss", "query_argmax", "feat.sample"} <= compared
    if "par_train" in name:
        assert {"align_loss", "total_loss", "grad.encoder.backbone.features.0.0.weight"} <= compared
    assert not [str(line) for line in lines if line.out]
