"""Mask losses and matching against plain compositions of PyTorch functions."""

from __future__ import annotations

import itertools

import pytest
import torch
from parity_cases.recorded import RecordedPoints
from torch import Tensor
from torch.nn import functional as F

from fssops.losses.dense_mask_loss import dense_mask_cost, dense_mask_loss
from fssops.losses.mask_criterion import LossWeights, matched_mask_logits
from fssops.losses.matcher import Match, assign
from fssops.losses.point_criterion import PointSetCriterion
from fssops.losses.point_sources import RandomPoints
from fssops.structures import MaskPredictions, MaskTargets

WEIGHTS = LossWeights(2.0, 5.0, 5.0)


def plain_dense_loss(logits: Tensor, masks: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The published composition: upsample, sigmoid focal loss, dice."""
    x = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].flatten(1)
    target = F.pad(masks.to(x.dtype), (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1])).flatten(1)
    p = x.sigmoid()
    p_t = p * target + (1 - p) * (1 - target)
    alpha = 0.25 * target + 0.75 * (1 - target)
    focal = alpha * (1 - p_t) ** 2 * F.binary_cross_entropy_with_logits(x, target, reduction="none")
    dice = 1 - (2 * (p * target).sum(1) + 1) / (p.sum(1) + target.sum(1) + 1)
    return focal.mean(1), dice


@pytest.mark.parametrize("chunk", [1, 1 << 20], ids=["mask-by-mask", "all-at-once"])
def test_dense_loss_equals_the_composition_with_its_gradient(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fssops.losses.dense_mask_loss._CHUNK_PIXELS", chunk)
    logits = (3 * torch.randn(3, 5, 7, dtype=torch.float64)).requires_grad_()
    masks, size, scale = torch.rand(3, 17, 25) < 0.4, (20, 28), torch.rand(2, 3, dtype=torch.float64)
    found = dense_mask_loss(logits, masks, size)
    (grad,) = torch.autograd.grad((torch.stack(found) * scale).sum(), logits)
    wanted = plain_dense_loss(logits, masks, size)
    (wanted_grad,) = torch.autograd.grad((torch.stack(wanted) * scale).sum(), logits)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(grad, wanted_grad)


def test_dense_loss_stands_large_logits() -> None:
    logits = torch.tensor([[[-200.0, 200.0]]], requires_grad=True)
    focal, dice = dense_mask_loss(logits, torch.tensor([[[True, True]]]), (1, 2))
    (focal + dice).sum().backward()
    assert focal.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_costs_of_pairs_equal_the_losses_of_each_pair() -> None:
    logits, targets = torch.randn(4, 30), (torch.rand(3, 30) < 0.5).float()
    focal, dense_dice = dense_mask_cost(logits, targets)
    for q, g in itertools.product(range(4), range(3)):
        dense = plain_dense_loss(logits[q].view(1, 5, 6), targets[g].view(1, 5, 6), (5, 6))
        torch.testing.assert_close(torch.stack((focal[q, g], dense_dice[q, g])), torch.cat(dense))


def test_assignment_is_the_cheapest_and_sorted_by_query() -> None:
    cost = torch.rand(5, 3)
    match, none = assign([cost, torch.zeros(5, 0)])
    best = min(sum(float(cost[q, g]) for g, q in enumerate(rows)) for rows in itertools.permutations(range(5), 3))
    assert float(cost[match.queries, match.targets].sum()) == pytest.approx(best)
    assert match.queries.tolist() == sorted(match.queries.tolist())
    assert len(none.queries) == 0


def test_a_cost_that_is_not_finite_says_so() -> None:
    with pytest.raises(ValueError, match=r"assign: costs\[1\] must"):
        assign([torch.zeros(2, 2), torch.tensor([[0.0, float("nan")]])])


def predictions_of(
    heads: int, images: int, queries: int, frames: int = 1, size: tuple[int, int] = (6, 8)
) -> MaskPredictions:
    """Random predictions of 4 classes."""
    return MaskPredictions(
        torch.randn(heads, images, queries, 5, requires_grad=True),
        torch.randn(heads, images, queries, 8, requires_grad=True),
        torch.randn(images, frames, 8, *size, requires_grad=True),
        (size[0] * 4, size[1] * 4),
    )


def test_logits_of_matched_queries_are_rows_of_all_logits() -> None:
    predictions = predictions_of(2, 2, 4)
    matches = [
        [Match(torch.tensor([0, 2]), torch.tensor([1, 0])), Match(torch.tensor([3]), torch.tensor([0]))],
        [Match(torch.tensor([1, 3]), torch.tensor([0, 1])), Match(torch.tensor([2]), torch.tensor([0]))],
    ]
    found = matched_mask_logits(predictions, matches)
    assert [tuple(own.shape) for own in found] == [(2, 2, 1, 6, 8), (2, 1, 1, 6, 8)]
    for head, row, image, query in ((0, 1, 0, 2), (0, 0, 1, 3), (1, 0, 0, 1), (1, 0, 1, 2)):
        torch.testing.assert_close(found[image][head, row], predictions.mask_logits(image, head)[query])


@pytest.mark.parametrize("points", [16, 100], ids=["features-sampled", "map-sampled"])
def test_matching_cost_does_not_depend_on_how_logits_are_formed(points: int) -> None:
    """With more points than pixels the map is formed first; both equal sampling the full map."""
    predictions = predictions_of(1, 1, 4)
    target = MaskTargets(torch.tensor([1, 3]), torch.rand(2, 20, 30) < 0.5)
    drawn = torch.rand(points, 2)
    criterion = PointSetCriterion(4, WEIGHTS, num_points=points)
    found = criterion.matching_cost(predictions, 0, 0, target, drawn)
    grid = 2 * drawn[None, None] - 1
    logits = F.grid_sample(predictions.mask_logits(0, 0).transpose(0, 1), grid, align_corners=False)[0, :, 0]
    padded = F.pad(target.masks.float(), (0, 32 - 30, 0, 24 - 20))
    wanted = F.grid_sample(padded[None], grid, align_corners=False)[0, :, 0]
    probability = predictions.class_logits[0, 0].softmax(-1)[:, [1, 3]]
    for q, g in itertools.product(range(4), range(2)):
        x, t = logits[q], wanted[g]
        cross_entropy = F.binary_cross_entropy_with_logits(x, t)
        dice = 1 - (2 * (x.sigmoid() * t).sum() + 1) / (x.sigmoid().sum() + t.sum() + 1)
        torch.testing.assert_close(found[q, g], 5 * cross_entropy + 5 * dice - 2 * probability[q, g])


def test_uncertain_points_come_first_and_the_rest_is_fresh() -> None:
    """Half of 4 points from 8 candidates: the two whose logits are nearest to zero."""
    criterion = PointSetCriterion(4, WEIGHTS, num_points=4, oversample_ratio=2.0, importance_ratio=0.5)
    logits = torch.arange(8.0).view(1, 1, 1, 1, 8) - 2.2
    candidates = torch.stack(((torch.arange(8) + 0.5) / 8, torch.full((8,), 0.5)), dim=1)[None]
    fresh = torch.rand(1, 2, 2)
    (chosen,) = criterion.choose_points([logits], RecordedPoints({}, {-1: candidates}, {-1: fresh}))
    assert sorted((chosen[0, 0, :2, 0] * 8 - 0.5).round().tolist()) == [2, 3]
    assert torch.equal(chosen[0, :, 2:], fresh)


def test_frames_of_a_clip_are_masks_of_their_own() -> None:
    """The mask losses of a clip are the sums over its frames taken as images, with the same points."""
    torch.manual_seed(3)
    clip = predictions_of(1, 1, 3, frames=2)
    target = MaskTargets(torch.tensor([1]), torch.rand(1, 2, 24, 32) < 0.5)
    criterion = PointSetCriterion(4, WEIGHTS, num_points=6, importance_ratio=0.0)
    fresh = torch.rand(2, 6, 2)
    matches = [[Match(torch.tensor([2]), torch.tensor([0]))]]
    nothing = torch.zeros(2, 18, 2)
    found = criterion.mask_losses(clip, matches, [target], RecordedPoints({}, {-1: nothing}, {-1: fresh}))
    total = torch.zeros(2)
    for frame in range(2):
        image = MaskPredictions(
            clip.class_logits, clip.mask_embeddings, clip.mask_features[:, frame : frame + 1], clip.padded_size
        )
        own = RecordedPoints({}, {-1: nothing[:1]}, {-1: fresh[frame : frame + 1]})
        single = criterion.mask_losses(image, matches, [MaskTargets(target.labels, target.masks[:, frame])], own)
        total = total + torch.cat(single)
    torch.testing.assert_close(torch.cat(found), total)


def test_class_loss_is_divided_by_the_weights_of_its_targets() -> None:
    """Two queries, one matched to class 1, the other no-object with weight 0.1."""
    logits = torch.randn(1, 1, 2, 5)
    criterion = PointSetCriterion(4, WEIGHTS)
    matches = [[Match(torch.tensor([1]), torch.tensor([0]))]]
    targets = [MaskTargets(torch.tensor([1]), torch.zeros(1, 4, 4, dtype=torch.bool))]
    logs = logits[0, 0].log_softmax(-1)
    wanted = -(0.1 * logs[0, 4] + logs[1, 1]) / 1.1
    torch.testing.assert_close(criterion.class_losses(logits, matches, targets)[0], wanted)


def test_points_of_equal_seeds_are_equal_and_recorded_shapes_are_checked() -> None:
    draws = [RandomPoints(torch.device("cpu"), torch.Generator().manual_seed(5)).matching(-1, 0, 9) for _ in range(2)]
    assert torch.equal(*draws)
    assert 0 <= float(draws[0].min()) <= float(draws[0].max()) < 1
    with pytest.raises(ValueError, match=r"oversampled\[-1\] must have shape \(2, 6, 2\), got \(2, 5, 2\)"):
        RecordedPoints({}, {-1: torch.zeros(2, 5, 2)}, {}).oversampled(-1, 2, 6)
