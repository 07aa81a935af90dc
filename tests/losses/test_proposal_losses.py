"""Losses of proposals: by hand, and in mixed precision."""

from __future__ import annotations

import math

import pytest
import torch

from fssops.losses.proposals import dice_loss, ranked_similarities, ranking_loss, soft_iou, upsampled


@pytest.mark.parametrize("ignored", [False, True])
def test_overlap_is_that_of_the_upsampled_masks_where_pixels_count(ignored: bool) -> None:
    masks = torch.rand(2, 3, 4, 6)
    target = (torch.rand(2, 12, 30) < 0.3).float()
    valid = (torch.rand(2, 12, 30) < 0.7).float()
    found = soft_iou(masks, target, valid if ignored else None)
    full = torch.nn.functional.interpolate(masks, size=(12, 30), mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsampled(masks, (12, 30)), full)
    for image in range(2):
        counted = valid[image] > 0 if ignored else torch.ones(12, 30, dtype=torch.bool)
        for query in range(3):
            m, y = full[image, query][counted], target[image][counted]
            wanted = (m * y).sum() / (y.sum() + m.sum() - (m * y).sum())
            torch.testing.assert_close(found[image, query], wanted)


def test_overlap_with_nothing_is_nothing() -> None:
    assert torch.equal(soft_iou(torch.zeros(1, 2, 3, 3), torch.zeros(1, 6, 6)), torch.zeros(1, 2))


def test_dice_of_both_sides_by_hand() -> None:
    """Foreground 0.5, 1, 0 against 1, 1, 0: overlap 1.5 of 1.25 + 2, the background 1 of 1.25 + 1."""
    foreground, target = torch.tensor([[[0.5, 1.0, 0.0]]]), torch.tensor([[[1.0, 1.0, 0.0]]])
    wanted = (1 - 2 * 1.5 / (1.25 + 2)) + (1 - 2 * 1 / (1.25 + 1))
    assert float(dice_loss(foreground, target)) == pytest.approx(wanted)
    # Without the first pixel both sides are right.
    assert float(dice_loss(foreground, target, torch.tensor([[[0.0, 1.0, 1.0]]]))) == pytest.approx(0, abs=1e-6)
    # Without the last there is no background left but the half of the first pixel.
    inside = (1 - 2 * 1.5 / (1.25 + 2)) + 1
    assert float(dice_loss(foreground, target, torch.tensor([[[1.0, 1.0, 0.0]]]))) == pytest.approx(inside)
    # Of two images the mean; where nothing counts each side costs 1.
    two = dice_loss(foreground.expand(2, 1, 3), target.expand(2, 1, 3), torch.tensor([[[1.0] * 3], [[0.0] * 3]]))
    assert float(two) == pytest.approx((wanted + 2) / 2)


def test_dice_squashes_on_request_before_pixels_are_left_out() -> None:
    foreground, target = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 1.0]]])
    high, low = float(torch.tensor(1.0).sigmoid()), 0.5
    wanted = (1 - 2 * high / (high**2 + 1)) + 1
    found = dice_loss(foreground, target, torch.tensor([[[1.0, 0.0]]]), squash=True)
    assert float(found) == pytest.approx(wanted)
    total = (1 - 2 * (high + low) / (high**2 + low**2 + 2)) + 1
    assert float(dice_loss(foreground, target, squash=True)) == pytest.approx(total)


def test_similarities_are_stretched_in_every_image_and_picked_by_overlap() -> None:
    similarity = torch.tensor([[0.2, 0.8, 0.4], [-1.0, 1.0, 3.0]])
    overlap = torch.tensor([[0.5, 0.1, 0.9], [0.3, 0.2, 0.1]])
    ranked, queries = ranked_similarities(similarity, overlap)
    assert queries.tolist() == [[1, 2], [2, 0]]
    torch.testing.assert_close(ranked, torch.tensor([[1.0, 1 / 3], [1.0, 0.0]]))
    assert ranked_similarities(torch.full((1, 2), 0.7), overlap[:1, :2])[0].tolist() == [[0.0, 0.0]]


def test_ranking_wants_nought_of_the_least_and_one_of_the_most_overlapping() -> None:
    ranked = torch.tensor([[0.25, 0.5]])
    assert float(ranking_loss(ranked)) == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2)
    # Moved into 0.1..0.9: 0.3 and 0.5; the wrong extremes cost no more than the floor lets them.
    assert float(ranking_loss(ranked, 0.1)) == pytest.approx(-(math.log(0.7) + math.log(0.5)) / 2)
    wrong = torch.tensor([[1.0, 0.0]])
    assert float(ranking_loss(wrong)) == pytest.approx(100)
    assert float(ranking_loss(wrong, 0.1)) == pytest.approx(-math.log(0.1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_overlap_is_the_same_under_autocast(dtype: torch.dtype) -> None:
    """The area of a 480 x 480 image exceeds float16, and every proposal would overlap by 0."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(2, 5, 60, 60, generator=generator)
    target = (torch.rand(2, 480, 480, generator=generator) > 0.6).float()
    wanted = soft_iou(masks, target)
    with torch.autocast("cpu", dtype):
        found = soft_iou(masks, target)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


def ranking(device: str, dtype: torch.dtype) -> torch.Tensor:
    similarity = torch.tensor([[0.1, 0.9, 0.4]], device=device, requires_grad=True)
    with torch.autocast(device, dtype):
        ranked, _ = ranked_similarities(similarity.to(dtype), torch.tensor([[0.2, 0.3, 0.8]], device=device))
        loss = ranking_loss(ranked, 1e-3)
    loss.backward()
    assert similarity.grad is not None
    assert similarity.grad.isfinite().all()
    return loss


def test_ranking_loss_is_float32_under_autocast() -> None:
    assert ranking("cpu", torch.bfloat16).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ranking_loss_runs_under_autocast_on_a_gpu(dtype: torch.dtype) -> None:
    """PyTorch refuses binary cross-entropy of probabilities there."""
    assert ranking("cuda", dtype).dtype == torch.float32
