"""Behaviour that MaskFormer and Mask2Former share: training on any targets, padding, and what errors say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from universal_toys import box_target, small_batch, small_model

import fssops
from fssops.models.backbones.build import BACKBONES, swin_row
from fssops.models.backbones.swin import SwinForm
from fssops.models.interface import Trainable
from fssops.models.mask2former import Mask2FormerConfig
from fssops.structures import ImageBatch, MaskTargets

BOTH = pytest.mark.parametrize("name", ["maskformer", "mask2former"])


@BOTH
def test_models_train_and_every_parameter_is_reached(name: str) -> None:
    model = small_model(name).train()
    assert isinstance(model, Trainable)
    sum(model.losses(small_batch()).values()).backward()
    lost = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    assert not lost


@BOTH
@pytest.mark.parametrize("labels", [[[], []], [[2], []]], ids=["no-object-at-all", "one-empty-image"])
def test_images_without_objects_train_and_reach_every_parameter(name: str, labels: list[list[int]]) -> None:
    model = small_model(name).train()
    losses = model.losses(small_batch(labels))
    if labels == [[], []]:
        assert all(float(v.detach()) == 0 for k, v in losses.items() if "mask" in k or "dice" in k)
    assert float(losses["loss_ce"].detach()) > 0
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@BOTH
def test_a_mask_that_a_crop_emptied_trains(name: str) -> None:
    batch = small_batch()
    assert batch.targets is not None
    batch.targets[0].masks[1] = False
    losses = small_model(name).train().losses(batch)
    assert all(value.isfinite() for value in losses.values())


@BOTH
def test_data_of_one_class_train(name: str) -> None:
    model = small_model(name, num_classes=1, things=None).train()
    losses = model.losses(small_batch([[0, 0], [0]]))
    assert all(value.isfinite() for value in losses.values())


@BOTH
def test_more_objects_than_queries_train(name: str) -> None:
    losses = small_model(name, num_queries=1).train().losses(small_batch([[0, 1, 2], [3, 4]]))
    assert all(value.isfinite() for value in losses.values())


@BOTH
def test_a_few_steps_lower_the_loss(name: str) -> None:
    model = small_model(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batch, seen = small_batch(), []
    for _ in range(8):
        loss = torch.stack(list(model.losses(batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert min(seen[-3:]) < 0.85 * seen[0]


@BOTH
def test_half_precision_trains_and_segments(name: str) -> None:
    """Under autocast costs, losses and results stay float32 and near those of full precision."""
    model = small_model(name).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        full = model.losses(small_batch())
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.losses(small_batch())
        result = model.segment(small_batch(), ("semantic", "instance", "panoptic"))[0]
    assert result.semantic is not None
    assert result.semantic.scores.dtype == torch.float32
    assert {value.dtype for value in half.values()} == {torch.float32}
    total, wanted = (float(torch.stack(list(losses.values())).sum().detach()) for losses in (half, full))
    assert total == pytest.approx(wanted, rel=0.1)
    torch.stack(list(half.values())).sum().backward()


@BOTH
def test_images_in_bytes_and_floats_give_the_same(name: str) -> None:
    model = small_model(name).eval()
    batch = small_batch()
    floats = ImageBatch([image.float() for image in batch.images])
    with torch.no_grad():
        assert torch.equal(model(batch).class_logits, model(floats).class_logits)


@BOTH
def test_evaluation_returns_the_final_head_of_training(name: str) -> None:
    model = small_model(name)
    batch = small_batch()
    with torch.no_grad():
        training, evaluation = model.train()(batch), model.eval()(batch)
    assert len(evaluation.class_logits) == 1 < len(training.class_logits)
    torch.testing.assert_close(evaluation.class_logits[0], training.class_logits[-1])
    torch.testing.assert_close(evaluation.mask_embeddings[0], training.mask_embeddings[-1])


@BOTH
def test_padding_is_attended_to_unless_masked(name: str) -> None:
    """With ``mask_padding`` the transformers do not see what the padding holds; without, as published, they do."""
    options = {"encoder_layers": 1} if name == "maskformer" else {}
    changes = {}
    for masked in (False, True):
        model = small_model(name, mask_padding=masked, **options).eval()
        images, padding = model.image_input(small_batch().images)
        features = model.backbone(images)
        # Only tokens that are padding altogether: convolutions mix the others with the image.
        area = torch.nn.functional.interpolate(padding[:, None].float(), features["res5"].shape[-2:])[:, 0] > 0.5
        spoilt = {key: value.clone() for key, value in features.items()}
        spoilt["res5"].permute(0, 2, 3, 1)[area] += 3.0
        given = padding if masked else None
        with torch.no_grad():
            plain = model.pixel_decoder(features, given).memory[0]
            other = model.pixel_decoder(spoilt, given).memory[0]
        real = ~area.flatten(1)
        changes[masked] = float((plain - other)[real].abs().max())
    # GroupNorm of Mask2Former's projections spans the whole map, so there a small change remains.
    assert changes[False] > 0
    if name == "maskformer":
        assert changes[True] == 0


def test_targets_that_do_not_fit_are_named() -> None:
    model = small_model("mask2former").train()
    batch = small_batch()
    with pytest.raises(ValueError, match=r"targets\[1\]\.labels must be in 0\.\.4, got 5\.\.5"):
        model.losses(small_batch([[0], [5]]))
    with pytest.raises(ValueError, match="targets must be given, got None"):
        model.losses(ImageBatch(batch.images))
    with pytest.raises(ValueError, match=r"one an item \(2\), got 1"):
        model.losses(ImageBatch(batch.images, [box_target((48, 70), [1])]))
    wide = MaskTargets(torch.tensor([1]), torch.ones(1, 48, 400, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"targets\[0\]\.masks must be bool \[1, 48, 70\] .* \[1, 48, 400\]"):
        model.losses(ImageBatch(batch.images, [wide, box_target((61, 40), [1])]))


@BOTH
@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (torch.tensor([5, 0]), r"targets\[0\]\.labels must be in 0\.\.4, got 0\.\.5"),
        (torch.tensor([-1, 0]), r"targets\[0\]\.labels must be in 0\.\.4, got -1\.\.0"),
        (torch.tensor([1, 0], dtype=torch.int32), r"targets\[0\]\.labels must be int64 \[G\], got torch.int32 \[2\]"),
        (torch.tensor([[1], [0]]), r"targets\[0\]\.labels must be int64 \[G\], got torch.int64 \[2, 1\]"),
    ],
    ids=["too-large", "negative", "int32", "matrix"],
)
def test_bad_labels_are_named_in_the_losses_and_when_a_step_is_shared(name: str, labels: Tensor, told: str) -> None:
    """Training asks for the counts of all parts of a step before any loss."""
    model, batch = small_model(name).train(), small_batch()
    assert batch.targets is not None
    batch.targets[0].labels = labels
    for ask in (model.losses, model.loss_counts):
        with pytest.raises(ValueError, match=told):
            ask(batch)


@BOTH
def test_what_is_asked_of_inference_is_checked(name: str) -> None:
    model, batch = small_model(name).eval(), small_batch()
    for tasks, got in ((("semantic", "depth"), r"\('semantic', 'depth'\)"), ("semantic", "'semantic'")):
        with pytest.raises(ValueError, match=f"segment: tasks must be some of semantic, .*, got {got}"):
            model.segment(batch, tasks)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"output_sizes must be one an item \(2\), got 3"):
        model.segment(ImageBatch(batch.images, output_sizes=[(8, 8)] * 3))
    assert [result.semantic for result in model.segment(batch, ())] == [None, None]


def test_images_of_a_wrong_form_are_named() -> None:
    model = small_model("maskformer").eval()
    with pytest.raises(ValueError, match=r"images\[0\] must be \[3, H, W\], got \[4, 8, 8\]"):
        model(ImageBatch([torch.zeros(4, 8, 8)]))
    with pytest.raises(ValueError, match="must not be empty"):
        model(ImageBatch([]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_path": 1.0}, "drop_path must be at least 0 and less than 1, got 1.0"),
        ({"dropout": -0.5}, "dropout must be at least 0 and less than 1, got -0.5"),
        ({"no_object_weight": 0.0}, "no_object_weight must be more than 0, got 0.0"),
        ({"overlap_threshold": float("nan")}, r"overlap_threshold must be in 0\.\.1, got nan"),
        ({"decoder_layers": -1}, "decoder_layers must be at least 0, got -1"),
        ({"decoder_hidden": 0}, "decoder_hidden must be at least 1, got 0"),
        ({"class_weight": -1.0}, "class_weight must be at least 0, got -1.0"),
        ({"channels": 48}, "channels must be divisible by 32"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"tasks": ("depth",)}, "tasks"),
        ({"things": (133,)}, "things must be classes in 0..132"),
        ({"importance_ratio": 1.5}, "importance_ratio"),
        ({"backbone": "resnet20"}, "backbone"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fssops.create_model("mask2former", **options)


def test_options_are_taken_as_toml_writes_them_and_every_bad_one_is_named() -> None:
    config = fssops.models.create_config("mask2former", {"tasks": ["semantic", "panoptic"], "things": [0, 2]})
    assert (config.tasks, config.things) == (("semantic", "panoptic"), (0, 2))
    told = (
        r"Mask2FormerConfig: num_queries must be a valid integer, .*, got 2.5; tasks must have at least 1 item.*, got "
        r"\(\); dropout must be at least 0 and less than 1, got 3"
    )
    with pytest.raises(ValueError, match=told):
        Mask2FormerConfig(dropout=3, num_queries=2.5, tasks=())  # type: ignore[arg-type]


def test_a_swin_of_another_size_may_be_added_to_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "swin_small_windows", swin_row(SwinForm(16, (1, 1, 1, 1), (1, 2, 4, 8), 3)))
    model = small_model("mask2former", backbone="swin_small_windows").train()
    assert all(value.isfinite() for value in model.losses(small_batch()).values())


def test_maskformer_has_a_layer_that_predicts() -> None:
    with pytest.raises(ValueError, match="MaskFormerConfig: decoder_layers must be at least 1, got 0"):
        small_model("maskformer", decoder_layers=0)


def test_number_of_masks_is_averaged_by_the_hook() -> None:
    """Twice the mean count halves the mask terms and leaves the class term."""
    model = small_model("maskformer").eval()
    with torch.no_grad():
        once = model.losses(small_batch())
        model.criterion.reduce_num_masks = lambda count: 2 * count
        twice = model.losses(small_batch())
    torch.testing.assert_close(twice["loss_mask"], once["loss_mask"] / 2)
    torch.testing.assert_close(twice["loss_ce"], once["loss_ce"])


@BOTH
def test_padding_to_the_largest_image_is_an_option(name: str) -> None:
    model = small_model(name, size_divisor=0)
    images, padding = model.image_input(small_batch().images)
    assert tuple(images.shape) == (2, 3, 61, 70)
    assert int((~padding[0]).sum()) == 48 * 70
    assert float(images[0, :, 48:].abs().max()) == 0
    losses = model.train().losses(small_batch())
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (torch.linspace(0.1, 0.9, 192).view(3, 8, 8), "floats of 0.1 to 0.9; multiply what is 0..1 by 255"),
        (torch.linspace(-2, 2, 192).view(3, 8, 8), "floats of -2 to 2; "),
        (torch.full((3, 8, 8), float("nan")), "floats of nan"),
        (torch.full((3, 8, 8), 65535.0), "floats of 6.55e"),
    ],
)
def test_floats_that_are_not_0_to_255_are_refused(image: torch.Tensor, got: str) -> None:
    with pytest.raises(ValueError, match=rf"images\[0\] must be RGB of 0..255, got {got}"):
        small_model("maskformer").segment(ImageBatch([image]))
