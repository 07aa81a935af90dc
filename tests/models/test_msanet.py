"""MSANet: against its published composition, and what each behaviour does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as F
from parity_cases import msanet as cases
from parity_cases.case import Case
from torch import nn

import fssops
from fssops.models.msanet import MSANet, MSANetConfig
from fssops.models.msanet.compared_layers import SupportLayers
from fssops.models.msanet.guided_decoder import ChannelGate, ShotScorer
from fssops.models.msanet.records import MSANetResult
from fssops.models.msanet.similarity import positions_above_mean, prior_mask
from fssops.structures import IGNORE, FewShotBatch
from fssops.testing.published_msanet import PublishedMSANet

SMALL = {"backbone_width": 8, "channels": 16, "similarity_channels": 8, "head_channels": 16, "base_classes": 4}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and scales that a missing or misplaced normalisation would show by."""
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, value in state.items():
        if name.endswith("running_var") or (name.endswith("norm.weight") and value.dim() == 1):
            value.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith(("bias", "running_mean")):
            value.normal_(0, 0.1, generator=generator)
    model.get_parameter("scene_merge.weight").data.copy_(torch.tensor([0.9, 0.3]).view(1, 2, 1, 1))
    model.get_parameter("base_merge.weight").data.copy_(torch.tensor([0.8, 0.4]).view(1, 2, 1, 1))
    return model


def small_model(**options: Any) -> MSANet:
    torch.manual_seed(1)
    model = fssops.create_model("msanet", **{**SMALL, "backbone": "resnet18", **options})
    assert isinstance(model, MSANet)
    randomised(model)
    return model.eval()


def small_batch(
    *,
    episodes: int = 1,
    ways: int = 1,
    shots: int = 1,
    queries: int = 1,
    size: tuple[int, int] = (65, 65),
    seed: int = 3,
) -> FewShotBatch:
    generator = torch.Generator().manual_seed(seed)

    def images(*lead: int) -> torch.Tensor:
        return torch.randn(*lead, 3, *size, generator=generator)

    blobs = torch.rand(episodes, ways, shots, 5, 6, generator=generator).flatten(0, 1)
    foreground = (F.interpolate(blobs, size=size, mode="bilinear") > 0.55).float().unflatten(0, (episodes, ways))
    labels = torch.randint(0, ways + 1, (episodes, queries, *size), generator=generator)
    labels[..., :4] = IGNORE
    return FewShotBatch(
        support_images=images(episodes, ways, shots),
        support_foreground=foreground,
        support_background=1 - foreground,
        query_images=images(episodes, queries),
        query_labels=labels,
        classes=torch.arange(1, ways + 1).expand(episodes, ways),
        query_base_labels=torch.randint(0, 5, (episodes, queries, *size), generator=generator),
        base_channels=torch.arange(1, ways + 1).expand(episodes, ways),
    )


def _compared(model: MSANet, batch: FewShotBatch) -> MSANetResult:
    features = model.encode(batch.support_images.flatten(0, 2))
    support = model.summarise(features, batch.support_foreground, batch.support_background)
    return model.compare(support, model.encode(batch.query_images.flatten(0, 1)))


@pytest.mark.parametrize(
    ("backbone", "shots", "hidden"),
    [("resnet50", 1, 2), ("resnet101", 2, 2), ("vgg16", 1, 2), ("vgg16", 3, 2), ("resnet18", 5, 0)],
)
def test_every_backbone_and_number_of_shots_gives_what_the_published_composition_gives(
    backbone: str, shots: int, hidden: int
) -> None:
    model = small_model(backbone=backbone, shots=shots, shot_hidden=hidden, behaviour="published")
    batch = small_batch(episodes=2, shots=shots)
    expected = PublishedMSANet(model)(
        batch.query_images[:, 0], batch.support_images[:, 0], batch.support_foreground[:, 0]
    )
    with torch.no_grad():
        query = model.encode(batch.query_images[:, 0])
        support = model.summarise(
            model.encode(batch.support_images.flatten(0, 2)), batch.support_foreground, batch.support_background
        )
        found = model.match_parts(support, query, (65, 65))
    for part, want in zip(("ensemble", "meta", "base"), expected, strict=True):
        assert want.std() > 1e-3
        assert (found[part][:, 0] - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize(
    ("data_set", "words", "step"),
    [
        ("pascal", "base logits (eval), subsampled: every 4th row/column from 0 for pascal, every 8th for coco", 4),
        ("coco", "base logits (eval), subsampled: every 4th row/column from 0 for pascal, every 8th for coco", 8),
        ("coco", "base logits, every 3rd row and column", 3),
        ("coco", "", 4),
    ],
)
def test_a_case_keeps_the_rows_that_its_words_say(data_set: str, words: str, step: int) -> None:
    """Cases of COCO call every eighth row ``_s4`` too."""
    model, batch = small_model(base_classes=60), small_batch()
    with torch.no_grad():
        support = model.summarise(
            model.encode(batch.support_images.flatten(0, 2)), batch.support_foreground, batch.support_background
        )
        base = model.match_parts(support, model.encode(batch.query_images[:, 0]), (65, 65))["base"][:, 0]
    assert base.shape == (1, 61, 65, 65)
    description = {"config": {"data_set": data_set}, "arrays": {"base_out_s4": {"what": words}}}
    case = Case(Path("coco"), description, {}, fill=lambda *_: np.zeros(0))
    found = cases.shortened(case, {"base_out": base}, "base_out_s4")
    assert found is not None
    assert torch.equal(found, base[:, :, ::step, ::step])


def test_the_open_case_agrees_in_every_array(oracle_root: Path) -> None:
    lines = list(parity.lines_of(oracle_root / "msanet_resnet50_1shot"))
    assert [str(line) for line in lines if line.out] == []
    assert sum(line.error is not None for line in lines) == 77


def test_forward_is_encode_summarise_match_and_keeps_rows_apart() -> None:
    model = small_model()
    batch = small_batch(episodes=2, ways=2, shots=3, queries=2, size=(48, 80))
    with torch.no_grad():
        whole = model(batch)
        assert whole.shape == (2, 2, 3, 48, 80)
        query = model.query_features(model.encode(batch.query_images[1, 1:]))
        for way in range(2):
            support = model.summarise(
                model.encode(batch.support_images[1, way]),
                batch.support_foreground[1:, way : way + 1],
                batch.support_background[1:, way : way + 1],
            )
            alone = model.match(support, query, (48, 80))
            torch.testing.assert_close(alone[0, 0, 1], whole[1, 1, 1 + way], rtol=1e-3, atol=1e-4)
    assert torch.count_nonzero(whole[:, :, 0]) == 0


@pytest.mark.parametrize("backbone", ["resnet18", "vgg16"])
def test_forward_without_gradients_gives_the_same(backbone: str) -> None:
    model = small_model(shots=3, backbone=backbone)
    batch = small_batch(episodes=2, shots=3, queries=2, size=(48, 64))
    batch.support_foreground[1, 0, 2] = 0
    whole = model(batch).detach()
    with torch.no_grad():
        streamed = model(batch)
    torch.testing.assert_close(streamed, whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backbone", ["resnet18", "vgg16"])
def test_a_summary_holds_no_position_that_no_support_keeps(backbone: str) -> None:
    model = small_model(shots=3, backbone=backbone)
    batch = small_batch(episodes=2, shots=3, size=(48, 64))
    with torch.no_grad():
        features = model.encode(batch.support_images.flatten(0, 2))
        support = model.summarise(features, batch.support_foreground, batch.support_background)
    for name, layer, mask in zip(model.layer_names, support.layers, support.masks, strict=True):
        most = int((mask > 0).sum((-2, -1)).max())
        assert layer.shape == (2, 3, features[name].shape[1], 1, most)
        assert most < features[name][0, 0].numel()


def test_sound_and_published_agree_on_the_label_map_of_one_shot() -> None:
    sound, published = small_model(), small_model(behaviour="published")
    published.load_state_dict(sound.state_dict())
    batch = small_batch()
    with torch.no_grad():
        ours, theirs = sound(batch)[0, 0], published(batch)[0, 0]
    assert ours.std() > 1e-2
    assert (ours.argmax(0) == theirs.argmax(0)).float().mean() > 0.999
    shares = theirs.clamp(min=1e-4)
    torch.testing.assert_close(ours.softmax(0), shares / shares.sum(0), rtol=1e-3, atol=1e-4)


def test_shot_weights_follow_their_shot_unless_published() -> None:
    torch.manual_seed(0)
    distances = torch.tensor([[0.3, 0.1, 0.2]])
    sound = ShotScorer(3, 2, unsort=True)
    published = ShotScorer(3, 2, unsort=False)
    published.load_state_dict(sound.state_dict())
    with torch.no_grad():
        nearest_first = published(distances)
    assert nearest_first.std() > 1e-3
    assert torch.equal(nearest_first, published(distances[:, [2, 0, 1]]).detach())
    assert torch.allclose(sound(distances).detach()[0, [1, 2, 0]], nearest_first[0])
    assert float(nearest_first.sum()) == pytest.approx(1)


def test_shots_in_another_order_give_the_same_result_only_when_sound() -> None:
    batch = small_batch(shots=3)
    turned = small_batch(shots=3)
    turned.support_images = batch.support_images.flip(2)
    turned.support_foreground = batch.support_foreground.flip(2)
    for behaviour in ("sound", "published"):
        model = small_model(shots=3, behaviour=behaviour, backbone="vgg16")
        with torch.no_grad():
            found = [_compared(model, one) for one in (batch, turned)]
        close = torch.allclose(found[0].similarity, found[1].similarity, atol=1e-6)
        weights = torch.allclose(found[0].shot_weights, found[1].shot_weights.flip(1), atol=1e-6)
        assert (close, weights) == ((True, True) if behaviour == "sound" else (False, False))
        assert torch.allclose(found[0].similarity[:, 3:], found[1].similarity[:, 3:], atol=1e-6)


def test_equal_mask_values_are_kept_together_unless_the_mean_is_exact() -> None:
    masks = torch.zeros(1, 1, 60, 60)
    masks[..., 10:43, 7:40] = 0.1
    kept = positions_above_mean(masks, exact_mean=False)
    assert torch.equal(kept, masks)
    exact = positions_above_mean(masks, exact_mean=True)
    mean = masks[masks > 0].mean()
    assert torch.equal(exact, torch.where(masks >= mean, masks, 0))
    ramp = torch.arange(16.0).view(1, 1, 4, 4)
    for rule in (True, False):
        assert (positions_above_mean(ramp, exact_mean=rule) > 0).sum() == 8
        assert positions_above_mean(torch.zeros(1, 2, 4, 4), exact_mean=rule).sum() == 0


def test_masks_go_through_twice_the_first_size_and_every_size_on_the_way() -> None:
    masks = torch.rand(2, 97, 97, generator=torch.Generator().manual_seed(0)).round()
    layers = SupportLayers(masks, (25, 25), exact_mean=False)
    take = layers.taker([0, 1])
    for side in (13, 13, 7):
        take(torch.ones(2, 4, side, side))
    layers.take_top([0, 1], torch.ones(2, 4, 7, 7))
    _, kept, _, _ = layers.of_sets(2)
    step, found = masks[:, None], {}
    for side in (50, 25, 13, 7):
        step = F.interpolate(step, size=(side, side), mode="bilinear", align_corners=True)
        found[side] = positions_above_mean(step, exact_mean=False)
    straight = positions_above_mean(
        F.interpolate(masks[:, None], size=(13, 13), mode="bilinear", align_corners=True), exact_mean=False
    )
    for mask, side in zip(kept, (13, 13, 7), strict=True):
        for image in range(2):
            expected, columns = found[side][image, 0], mask[image, 0, 0]
            assert torch.equal(columns[columns > 0], expected[expected > 0])
    assert (straight > 0).sum() != (found[13] > 0).sum()


def test_a_support_without_an_object_gives_a_finite_answer() -> None:
    for behaviour in ("sound", "published"):
        model = small_model(behaviour=behaviour)
        batch = small_batch()
        batch.support_foreground.zero_()
        with torch.no_grad():
            found = _compared(model, batch)
        assert found.similarity.abs().max() == 0
        assert found.prior.abs().max() == 0
        assert found.prototype.abs().max() == 0
        assert torch.isfinite(found.ensemble).all()


def test_the_prior_spans_zero_to_one_and_is_highest_at_the_object_itself() -> None:
    features = torch.rand(1, 12, 6, 6, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 1, 6, 6)
    mask[0, 0, 2, 3] = 1
    prior = prior_mask(features, features[:, None], mask)
    assert prior.shape == (1, 1, 6, 6)
    assert prior.flatten().argmax() == 2 * 6 + 3
    assert prior.min() == 0
    assert prior.max() == pytest.approx(1, abs=1e-5)


def test_losses_are_cross_entropies_and_leave_out_the_episode_class() -> None:
    model = small_model()
    batch = small_batch(episodes=2)
    losses = model.losses(batch)
    assert set(losses) == {"loss_final", "loss_meta", "loss_base"}
    logits = model(batch)[:, 0]
    labels = batch.query_labels[:, 0]
    assert not losses["loss_base"].requires_grad
    with_all = FewShotBatch(**{**vars(batch), "base_channels": None, "query_base_labels": None})
    without = model.losses(with_all)
    assert set(without) == {"loss_final", "loss_meta"}
    torch.testing.assert_close(
        without["loss_final"], F.cross_entropy(logits, labels, ignore_index=IGNORE), rtol=1e-4, atol=1e-5
    )
    # Less background evidence without the class's own channel, so the foreground gains.
    assert not torch.allclose(without["loss_final"], losses["loss_final"], rtol=1e-4)
    torch.testing.assert_close(without["loss_meta"], losses["loss_meta"])


def test_foreground_pixels_weigh_as_much_as_is_asked_for() -> None:
    model, batch = small_model(foreground_weight=3.0), small_batch(episodes=2)
    weighted = model.losses(batch)
    plain = small_model().losses(batch)
    labels = batch.query_labels[:, 0]
    only_foreground = FewShotBatch(
        **{**vars(batch), "query_labels": batch.query_labels.masked_fill(batch.query_labels == 0, IGNORE)}
    )
    share = (labels == 1).sum() / (labels != IGNORE).sum()
    for name in ("loss_final", "loss_meta"):
        added = 2 * share * small_model().losses(only_foreground)[name]
        torch.testing.assert_close(weighted[name], plain[name] + added, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weighted["loss_base"], plain["loss_base"])


def test_only_the_meta_learner_trains() -> None:
    model = small_model().train()
    before = {name: value.clone() for name, value in model.base_learner.state_dict().items()}
    torch.manual_seed(0)
    torch.stack(list(model.losses(small_batch(episodes=2, shots=2)).values())).sum().backward()
    without_gradient = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is None}
    assert without_gradient == {"base_learner"}
    assert all(torch.equal(value, before[name]) for name, value in model.base_learner.state_dict().items())


def test_published_behaviour_freezes_statistics_and_keeps_the_base_learners_dropout() -> None:
    published, sound = small_model(behaviour="published").train(), small_model().train()
    assert published.similarity.norm is not None
    assert sound.similarity.norm is not None
    assert (published.similarity.norm.training, sound.similarity.norm.training) == (False, True)
    assert (published.base_learner.head.dropout.training, sound.base_learner.head.dropout.training) == (True, False)
    assert not published.base_learner.backbone.training
    assert not published.eval().base_learner.head.dropout.training


def test_a_dropped_gate_is_one_half_as_published() -> None:
    torch.manual_seed(0)
    pooled = torch.randn(1, 64, 1, 1)
    published = ChannelGate(64, 0.5, "logits").train()(pooled)
    assert 10 < (published == 0.5).sum() < 54
    assert (ChannelGate(64, 0.5, "hidden").train()(pooled) == 0.5).sum() == 0


def test_published_behaviour_refuses_what_was_never_published() -> None:
    model = small_model(behaviour="published", shots=2)
    with pytest.raises(ValueError, match="must have 1 way and 2 shots with behaviour 'published', got 1 and 1"):
        model(small_batch())
    with pytest.raises(ValueError, match="must be at least 8 pixels a side, got 4 x 90"):
        model.encode(torch.zeros(1, 3, 4, 90))
    with pytest.raises(ValueError, match="behaviour must be one of sound, published, got 'authors'"):
        MSANetConfig(behaviour="authors")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="foreground_weight must be more than 0, got 0"):
        MSANetConfig(foreground_weight=0)


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({"backbone": "resnet50"}, 5_131_782),
        ({"backbone": "resnet101", "base_classes": 60}, 5_132_870),
        ({"backbone": "vgg16"}, 4_738_182),
        ({"backbone": "resnet50", "shots": 5}, 5_131_782 + 27),
    ],
)
def test_the_trained_parameters_are_as_many_as_published(options: dict[str, Any], trained: int) -> None:
    with torch.device("meta"):
        model = fssops.create_model("msanet", **options)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained


def test_the_predictor_segments_pictures_of_any_size_with_several_classes() -> None:
    generator = np.random.default_rng(5)
    pictures = [generator.integers(0, 256, (40, 70, 3), dtype=np.uint8) for _ in range(3)]
    masks = [np.zeros((40, 70), dtype=bool) for _ in range(2)]
    masks[0][5:25, 10:40] = masks[1][10:35, 30:60] = True
    predictor = fssops.FewShotPredictor(small_model(), size=64, fit="pad")
    predictor.set_support({"cup": pictures[:1], "jug": pictures[1:2]}, {"cup": masks[:1], "jug": masks[1:]})
    found = predictor.segment(pictures[2])
    assert found.classes == ("background", "cup", "jug")
    assert found.label_map.shape == (40, 70)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
    assert found.probabilities.std() > 1e-3
