"""MP-Former: the authors' cases, and what piloted queries may and may not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import parity
import pytest
import torch
from parity_cases.universal import watched_masks
from torch import Tensor
from universal_toys import SMALL, small_batch

import fssops
from fssops.losses.point_sources import RandomPoints
from fssops.models.mask_piloting import RandomNoise, build_pilots
from fssops.models.mp_former import MPFormer, MPFormerConfig
from fssops.ops import AttentionMask
from fssops.structures import ImageBatch, MaskPredictions


@pytest.mark.parametrize("case", ["mpformer_r50", "mpformer_r50_shift"])
def test_every_array_of_the_authors_cases_is_reproduced(oracle_root: Path, case: str) -> None:
    """Attention bits, walls, predictions, points and losses of both parts, gradients, first step, inference."""
    lines = list(parity.lines_of(oracle_root / case))
    assert not [str(line) for line in lines if line.out]
    assert not [line.name for line in lines if line.error is None and "input" not in line.measure]
    assert sum(line.error is not None for line in lines) > 110


SIZE: dict[str, Any] = {
    **SMALL,
    "encoder_layers": 1,
    "encoder_hidden": 32,
    "decoder_layers": 4,
    "decoder_hidden": 32,
    "train_points": 64,
    "pilot_groups": 2,
    "noise_scale": 0.5,
    "label_noise": 0.5,
}
MODES = ("points", "shift", "scale", "shift_scale", "patch", "points_MAE")
CPU = torch.device("cpu")


def small(**options: Any) -> MPFormer:
    """A small model in training mode; the same weights whatever the options of piloting."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return MPFormer(MPFormerConfig(**{**SIZE, **options})).train()


def draws(seed: int) -> RandomNoise:
    return RandomNoise(CPU, torch.Generator().manual_seed(seed))


def points(seed: int = 0) -> RandomPoints:
    return RandomPoints(CPU, torch.Generator().manual_seed(seed))


def predicted(
    model: MPFormer, seed: int, batch: ImageBatch | None = None
) -> tuple[MaskPredictions, MaskPredictions | None]:
    """Predictions of both parts; weights and images are the same for all seeds."""
    batch = batch or small_batch()
    assert batch.targets is not None
    images, _ = model.image_input(batch.images)
    normal, piloted, _ = model.predict_piloted(images, None, batch.targets, draws(seed))
    return normal, piloted


def test_normal_predictions_do_not_depend_on_what_pilots_are_told() -> None:
    """Bit for bit; the piloted ones do depend on it."""
    model = small()
    with torch.no_grad():
        (first, first_piloted), (second, second_piloted) = predicted(model, 1), predicted(model, 2)
    assert torch.equal(first.class_logits, second.class_logits)
    assert torch.equal(first.mask_embeddings, second.mask_embeddings)
    assert first_piloted is not None
    assert second_piloted is not None
    assert not torch.equal(first_piloted.class_logits[-1], second_piloted.class_logits[-1])


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_normal_predictions_are_those_of_the_model_without_pilots(training: bool) -> None:
    """Up to the rounding of products of other sizes."""
    model, batch = small(), small_batch()
    with torch.no_grad():
        model.train(training)
        images, _ = model.image_input(batch.images)
        alone = model.predict(images, None, auxiliary=True)
        normal, _ = predicted(model, 1)
    torch.testing.assert_close(normal.class_logits, alone.class_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(normal.mask_embeddings, alone.mask_embeddings, rtol=1e-4, atol=1e-5)


def test_inference_knows_nothing_of_piloting() -> None:
    """Neither its options nor the embedding of classes change a bit, and nothing is computed for it."""
    batch = small_batch()
    results = []
    for options in ({"pilot_groups": 0}, {"pilot_groups": 5, "pilot_mode": "shift", "noise_scale": 0.9}):
        model = small(tasks=("semantic",), **options).eval()
        if options["pilot_groups"]:
            torch.nn.init.constant_(model.transformer_decoder.label_enc.weight, float("nan"))
        results.append(model.segment(batch))
    for first, second in zip(*results, strict=True):
        assert first.semantic is not None
        assert second.semantic is not None
        assert torch.equal(first.semantic.scores, second.semantic.scores)


def test_groups_do_not_see_each_other() -> None:
    """Other content and other masks of the second group leave the first one as it is, bit for bit."""
    model, batch = small(), small_batch()
    assert batch.targets is not None
    decoder = model.transformer_decoder
    images, _ = model.image_input(batch.images)
    with torch.no_grad():
        features = model.encode(images, None)
        memory = model.memory_of(features, None)
        pilots = build_pilots(
            batch.targets,
            decoder.label_enc,
            model.config.pilots,
            draws(1),
            classes=5,
            queries=6,
            layers=4,
            sizes=features.sizes,
            padded_size=(64, 96),
            padding=memory.padding,
        )
        assert pilots is not None
        width = pilots.layout.width
        _, before = decoder.decode_piloted(memory, pilots)
        pilots.content[:, width:] = torch.randn(pilots.content[:, width:].shape)
        second = torch.arange(pilots.layout.total) >= width
        pilots.masks = [mask.with_open_queries(second) for mask in pilots.masks if mask is not None]
        _, after = decoder.decode_piloted(memory, pilots)
    assert before is not None
    assert after is not None
    assert torch.equal(before.class_logits[:, :, :width], after.class_logits[:, :, :width])
    assert torch.equal(before.mask_embeddings[:, :, :width], after.mask_embeddings[:, :, :width])
    assert not torch.equal(before.class_logits[-1, :, width:], after.class_logits[-1, :, width:])


def test_gradients_flow_from_pilots_to_normal_queries_and_not_back() -> None:
    model = small()
    decoder = model.transformer_decoder
    normal, piloted = predicted(model, 1)
    assert piloted is not None
    told, learnt = decoder.label_enc.weight, decoder.query_feat.weight
    (of_normal,) = torch.autograd.grad(normal.class_logits[-1].sum(), told, retain_graph=True)
    assert not of_normal.any()
    grads = torch.autograd.grad(piloted.class_logits[-1].pow(2).sum(), (told, learnt))
    assert grads[0].any()
    assert grads[1].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("labels", [[[0, 3], [4]], [[2], []], [[], []]], ids=["both", "one", "none"])
def test_every_mode_trains_with_and_without_targets(mode: str, labels: list[list[int]]) -> None:
    """The names of the losses are always the same, and every parameter gets a gradient."""
    model = small(pilot_mode=mode, label_noise=0.0 if mode == "shift" else 0.5)
    losses = model.losses(small_batch(labels))
    suffixes = ("", "_0", "_1", "_2", "_3")
    assert set(losses) == {
        f"loss_{kind}{part}{suffix}" for kind in ("ce", "mask", "dice") for part in ("", "_dn") for suffix in suffixes
    }
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    if labels == [[], []]:
        assert not any(float(value.detach()) for name, value in losses.items() if "_dn" in name)
    else:
        assert all(float(value.detach()) > 0 for name, value in losses.items() if "_dn" in name)


def test_losses_of_normal_queries_are_mask2formers() -> None:
    """Same weights, same points: the piloted part adds terms and changes none."""
    model = small()
    with torch.no_grad():
        losses = model.losses(small_batch(), points(), draws(1))
        alone = small(pilot_groups=0).losses(small_batch(), points())
    for name in (name for name in alone if "_dn" not in name):
        torch.testing.assert_close(losses[name], alone[name], rtol=1e-4, atol=1e-5, msg=name)
    assert not any(alone[name] for name in alone if "_dn" in name)


def test_losses_are_a_function_of_the_generators() -> None:
    model = small()
    with torch.no_grad():
        totals = [
            float(sum(model.losses(small_batch(), points(), draws(seed), points(3)).values())) for seed in (1, 1, 2)
        ]
    assert totals[0] == totals[1] != totals[2]


def test_piloted_mask_losses_are_a_mean_over_the_copies() -> None:
    """More groups of exact, equal copies do not raise the loss, which has points of its own for each copy."""
    exact = {"noise_scale": 0.0, "label_noise": 0.0, "train_points": 4096}
    found = []
    for groups in (1, 4):
        with torch.no_grad():
            found.append(small(pilot_groups=groups, **exact).losses(small_batch(), points(), draws(1)))
    for name in ("loss_mask_dn", "loss_dice_dn"):
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0.05, atol=0)


def test_the_class_loss_of_pilots_can_be_left_out() -> None:
    names = set(small(classify_piloted=False).losses(small_batch()))
    assert not [name for name in names if name.startswith("loss_ce_dn")]
    assert {"loss_ce", "loss_mask_dn", "loss_dice_dn_3"} <= names


def test_padding_is_closed_to_pilots_where_it_is_closed_to_queries() -> None:
    batch = small_batch()
    assert batch.targets is not None
    for mask_padding in (False, True):
        model, masks = small(mask_padding=mask_padding), []
        images, padding = model.image_input(batch.images)

        def record(layer: int, mask: AttentionMask, masks: list[Tensor] = masks) -> None:
            masks.append(mask.closed()[:, 0, :4])

        with torch.no_grad(), watched_masks(model.transformer_decoder, record):
            features = model.encode(images, padding)
            blocked = model.memory_of(features, padding).padding
            model.predict_piloted(images, padding if mask_padding else None, batch.targets, draws(1))
        for layer, closed in enumerate(masks):
            level = blocked[layer % 3]
            assert level is not None
            inside = level[:, None].expand_as(closed)
            assert bool(closed[inside].all()) == (mask_padding or not inside.any())


def test_bfloat16_losses_are_close_to_single_precision() -> None:
    model = small()
    with torch.no_grad():
        single = model.losses(small_batch(), points(), draws(1))
        with torch.autocast("cpu", torch.bfloat16):
            half = model.losses(small_batch(), points(), draws(1))
    assert set(single) == set(half)
    for name, value in single.items():
        torch.testing.assert_close(half[name].float(), value, rtol=0.1, atol=0.02, msg=name)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pilot_mode": "circles"}, "pilot_mode must be one of points, shift, .*, got 'circles'"),
        ({"pilot_mode": "shift", "noise_scale": 0.0}, "noise_scale must be more than 0 in mode shift, got 0.0"),
        ({"noise_scale": -0.1}, "noise_scale must be at least 0 in mode points, got -0.1"),
        ({"noise_scale": float("nan")}, "noise_scale must be at least 0 in mode points, got nan"),
        ({"label_noise": -1.0}, r"label_noise must be in 0\.\.1, got -1.0"),
        ({"enlarge_above": 1.5}, r"enlarge_above must be in 0\.\.1, got 1.5"),
        ({"pilot_groups": -1}, "pilot_groups must be at least 0, got -1"),
        ({"pilot_mode": "patch", "head_noise": True}, "head_noise must be off but in mode points, got mode patch"),
        ({"behaviour": "right"}, "behaviour must be one of sound, published, got 'right'"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        MPFormerConfig(**{**SIZE, **options})


def test_options_from_recipes_are_told_too() -> None:
    with pytest.raises(ValueError, match=r"pilot_mode must be one of points, .*got 'circles'"):
        fssops.create_model("mp_former", pilot_mode="circles")
    with pytest.raises(ValueError, match="noise_scale must be more than 0 in mode scale"):
        fssops.create_model("mp_former", pilot_mode="scale")


def test_wrong_targets_are_told() -> None:
    model, batch = small(), small_batch()
    assert batch.targets is not None
    masks = batch.targets[1].masks
    batch.targets[1].masks = masks.to(torch.uint8)
    with pytest.raises(ValueError, match=r"targets\[1\].masks must be bool \[1, 61, 40\] .* got torch.uint8"):
        model.losses(batch)
    batch.targets[1].masks = masks[:, 1:]
    with pytest.raises(ValueError, match=r"targets\[1\].masks must be bool \[1, 61, 40\] .* \[1, 60, 40\]"):
        model.losses(batch)
    batch.targets[1].masks, batch.targets[1].labels = masks, torch.tensor([5])
    with pytest.raises(ValueError, match=r"targets\[1\].labels must be in 0..4, got 5..5"):
        model.losses(batch)
    batch.targets[1].labels = torch.tensor([1, 2])  # more than masks: no copy may be looked for
    with pytest.raises(ValueError, match=r"targets\[1\].masks must be bool \[2, 61, 40\] .* \[1, 61, 40\]"):
        model.losses(batch)
    batch.targets.pop()
    with pytest.raises(ValueError, match=r"batch.targets must be one an item \(2\), got 1"):
        model.losses(batch)
    batch.targets = None
    with pytest.raises(ValueError, match=r"batch\.targets must be given"):
        model.losses(batch)


def test_published_models_have_their_number_of_parameters() -> None:
    """Mask2Former's less 100 query positions, plus 80 class contents."""
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in fssops.create_model(name, num_classes=80).parameters())
            for name in ("mask2former", "mp_former")
        ]
    assert counts[1] - counts[0] == (80 - 100) * 256
