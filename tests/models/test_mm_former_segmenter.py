"""MM-Former's first stage: proposals, its losses, and backbones tuned by singular values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_mm_former import SMALL, spread
from torch import Tensor

import fssops
from fssops.losses import proposals as proposal_losses
from fssops.models.layers.convolution import ConvNorm
from fssops.models.layers.singular_values import SingularValueConv, adapted_kernels, tune_singular_values
from fssops.models.mm_former.segmenter import MMFormerSegmenter, regions
from fssops.structures import IGNORE, ProposalBatch
from fssops.testing.dispatched import DispatchedOperations

MATCHING = ("align_heads", "align_hidden", "matching_hidden", "short_side")
OPTIONS = {name: value for name, value in SMALL.items() if name not in MATCHING}


def small_segmenter(**options: Any) -> MMFormerSegmenter:
    torch.manual_seed(2)
    model = fssops.create_model("mm_former_segmenter", **{**OPTIONS, **options})
    assert isinstance(model, MMFormerSegmenter)
    spread(model)
    return model


def small_batch() -> ProposalBatch:
    labels = torch.zeros(2, 64, 96, dtype=torch.long)
    labels[:, 8:40, 10:50], labels[:, 30:60, 60:90] = 3, 7
    labels[1, :, :5] = IGNORE
    return ProposalBatch(torch.randn(2, 3, 64, 96), labels, torch.where(labels == IGNORE, labels, (labels == 3).long()))


def test_a_region_for_each_value_but_ignored_ones() -> None:
    label = torch.tensor([[0, 0, 4], [255, 2, 4]])
    found = regions(label)
    assert found.masks.long().tolist() == [
        [[1, 1, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0]],
        [[0, 0, 1], [0, 0, 1]],
    ]
    assert len(regions(torch.full((4, 4), IGNORE)).masks) == 0


def test_losses_of_all_heads_and_of_the_object_and_no_class_term() -> None:
    model = small_segmenter().train()
    losses = model.losses(small_batch())
    heads = ["", "_0", "_1", "_2"]
    assert set(losses) == {f"loss_{kind}{head}" for kind in ("mask", "dice") for head in heads} | {"loss_object"}
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert not [name for name, p in model.backbone.named_parameters() if p.grad is not None]


def test_an_image_without_any_region_trains() -> None:
    batch = small_batch()
    batch.labels[:], batch.objects[:] = IGNORE, IGNORE
    losses = small_segmenter().train().losses(batch)
    assert all(value.isfinite() for value in losses.values())


def test_the_object_takes_the_best_proposal_or_as_published_the_second() -> None:
    overlap = torch.tensor([[0.1, 0.7, 0.5], [0.9, 0.2, 0.3]])
    assert small_segmenter().chosen_proposal(overlap).tolist() == [1, 0]
    assert small_segmenter(behaviour="published").chosen_proposal(overlap).tolist() == [2, 2]


def test_overlaps_without_upsampled_masks_equal_those_with() -> None:
    masks, target = torch.rand(2, 5, 8, 12), (torch.rand(2, 32, 48) > 0.7).float()
    valid = (torch.rand(2, 32, 48) > 0.2).float()
    full = F.interpolate(masks, size=(32, 48), mode="bilinear") * valid[:, None]
    both = (full * target[:, None]).sum((2, 3))
    union = (target * valid).sum((1, 2))[:, None] + full.sum((2, 3)) - both
    torch.testing.assert_close(proposal_losses.soft_iou(masks, target, valid), both / (union + 1e-7))


def test_dice_of_a_perfect_mask_is_zero_only_without_the_second_sigmoid() -> None:
    target = torch.zeros(1, 8, 8)
    target[:, 2:5] = 1
    assert float(proposal_losses.dice_loss(target, target)) == pytest.approx(0, abs=1e-6)
    assert float(proposal_losses.dice_loss(target, target, squash=True)) > 0.3


def test_the_wrong_extreme_costs_little_and_pulls_gently_with_a_floor() -> None:
    wrong = torch.tensor([[1.0, 0.0]], requires_grad=True)
    published, sound = proposal_losses.ranking_loss(wrong), proposal_losses.ranking_loss(wrong, 1e-3)
    assert float(published.detach()) == pytest.approx(100)
    assert float(sound.detach()) == pytest.approx(6.9, abs=0.1)
    gradient = torch.autograd.grad(sound, wrong)[0]
    assert float(gradient.abs().max()) < 1e3


# -- backbones tuned by their singular values -------------------------------------------------------------------------


def test_a_product_kernel_computes_and_learns_as_three_layers_do() -> None:
    layer = SingularValueConv(ConvNorm(6, 8, 3, stride=2, dilation=2))
    x = torch.randn(2, 6, 14, 14)
    left, values, right = layer.left, layer.singular_values.detach().clone().requires_grad_(), layer.right
    three = F.conv2d(x, right, stride=2, padding=2, dilation=2) * values[:, None, None]
    three = F.conv2d(three, left[:, :, None, None])
    assert layer.bias is not None
    found = layer(x) - layer.bias[:, None, None]
    torch.testing.assert_close(found, three)
    found.square().sum().backward()
    three.square().sum().backward()
    torch.testing.assert_close(layer.singular_values.grad, values.grad)


def test_a_product_is_formed_once_until_its_values_change() -> None:
    layer, x = SingularValueConv(ConvNorm(6, 8, 1, bias=False)), torch.randn(1, 6, 5, 5)
    with torch.no_grad():
        first = layer(x)
        with DispatchedOperations() as operations:
            assert layer(x).shape == first.shape
        assert dict(operations.counts) == {"aten::convolution": 1}
        layer.singular_values.mul_(2)
        torch.testing.assert_close(layer(x), 2 * first)


def test_only_the_singular_values_of_the_last_three_stages_are_tuned() -> None:
    model = small_segmenter(tuning="singular_values", levels="stride8").train()
    torch.stack(list(model.losses(small_batch()).values())).sum().backward()
    tuned = [name for name, p in model.backbone.named_parameters() if p.grad is not None]
    assert tuned
    assert all(name.endswith("singular_values") for name in tuned)
    assert {name.split(".")[0] for name in tuned} == {"res3", "res4", "res5"}


def test_plain_and_product_backbones_fill_each_other() -> None:
    plain, split = small_segmenter(), small_segmenter(tuning="singular_values")
    x = torch.randn(1, 3, 64, 64)
    for source, target in ((plain, split), (split, plain)):
        with torch.no_grad():
            for name, value in source.state_dict().items():
                if name.endswith(("singular_values", "conv1.weight")):
                    value.mul_(1.1)
        fssops.load_weights(target, source.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(target.eval()(x), source.eval()(x), rtol=1e-3, atol=1e-3)


def test_adapting_leaves_other_tensors_alone() -> None:
    backbone = small_segmenter().backbone
    tune_singular_values([backbone.res4])  # type: ignore[list-item]
    state: dict[str, Tensor] = {"somewhere.weight": torch.ones(3)}
    assert adapted_kernels(backbone, state).keys() == state.keys()
