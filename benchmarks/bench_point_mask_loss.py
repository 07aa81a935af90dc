"""Point losses, choice of points and matching costs against the PyTorch calls of the published Mask2Former."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fssops import ops

POINTS = 12544
CANDIDATES, KEPT = 3 * POINTS, int(0.75 * POINTS)


@dataclass(frozen=True)
class Shape:
    """Predictions at 1/4 of the image, targets at its full size."""

    name: str
    masks: int
    size: int
    channels: int = 256

    @property
    def target_size(self) -> int:
        return 4 * self.size


SHAPES = [Shape("20 masks, 512 px", 20, 128), Shape("20 masks, 1024 px", 20, 256)]
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["composition", "compiled", "fssops"])
AT_SHAPES = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)


def _point_sample(maps: Tensor, points: Tensor) -> Tensor:
    """The published point_sample: maps [N, C, h, w] at points [N, P, 2]."""
    grid = 2.0 * points[:, :, None] - 1.0
    return F.grid_sample(maps, grid, align_corners=False).squeeze(3)


def _composed_loss(logits: Tensor, targets: Tensor, points: Tensor, num_masks: float) -> tuple[Tensor, Tensor]:
    """loss_masks of the published criterion, after the choice of points; targets are floats, as padded there."""
    with torch.no_grad():
        labels = _point_sample(targets[:, None], points).squeeze(1)
    at_points = _point_sample(logits[:, None], points).squeeze(1)
    cross_entropy = F.binary_cross_entropy_with_logits(at_points, labels, reduction="none").mean(1).sum() / num_masks
    inside = at_points.sigmoid().flatten(1)
    numerator = 2 * (inside * labels).sum(-1)
    dice = 1 - (numerator + 1) / (inside.sum(-1) + labels.sum(-1) + 1)
    return cross_entropy, dice.sum() / num_masks


def _composed_choice(logits: Tensor, candidates: Tensor, uniform: Tensor) -> Tensor:
    """get_uncertain_point_coords_with_randomness, with the draws given."""
    at_points = _point_sample(logits[:, None], candidates)
    uncertainty = -at_points.abs()
    chosen = torch.topk(uncertainty[:, 0], k=KEPT, dim=1)[1]
    shift = candidates.shape[1] * torch.arange(len(logits), dtype=torch.long, device=logits.device)
    chosen = chosen + shift[:, None]
    coordinates = candidates.view(-1, 2)[chosen.view(-1), :].view(len(logits), KEPT, 2)
    return torch.cat([coordinates, uniform], dim=1)


def _composed_cost(logits: Tensor, targets: Tensor, class_logits: Tensor, labels: Tensor) -> Tensor:
    """The cost matrix of the published matcher from logits [Q, P] and targets [G, P]."""
    positive = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="none")
    negative = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")
    mask = torch.einsum("nc,mc->nm", positive, targets) + torch.einsum("nc,mc->nm", negative, 1 - targets)
    inside = logits.sigmoid()
    numerator = 2 * torch.einsum("nc,mc->nm", inside, targets)
    denominator = inside.sum(-1)[:, None] + targets.sum(-1)[None, :]
    dice = 1 - (numerator + 1) / (denominator + 1)
    classes = -class_logits.softmax(-1)[:, labels]
    return 5.0 * (mask / logits.shape[1]) + 2.0 * classes + 5.0 * dice


def _chosen(
    implementation: str, device: torch.device, composition: Callable[..., object], ours: Callable[..., object]
) -> Callable[..., object]:
    if implementation == "compiled":
        return torch.compile(composition)
    return composition if implementation == "composition" else ours


def _maps(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth logits [N, h, w], bool targets [N, H, W] that resemble them, uniform points [N, P, 2]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(shape.masks, 1, 16, 16, generator=generator)
    logits = 3 * F.interpolate(coarse, size=(shape.size, shape.size), mode="bilinear")[:, 0]
    targets = F.interpolate(coarse, size=(shape.target_size, shape.target_size), mode="bilinear")[:, 0] > 0
    points = torch.rand(shape.masks, POINTS, 2, generator=generator)
    return logits.to(device), targets.to(device), points.to(device)


def _loss_bytes(shape: Shape, backward: bool, target_bytes: float) -> float:
    # Points, then the sectors that must be read: every pixel of the logits, four of the target a point at most.
    points = shape.masks * POINTS
    pixels = shape.masks * shape.size**2
    targets = min(4 * points, shape.masks * shape.target_size**2) * target_bytes
    forward = 8 * points + 4 * min(4 * points, pixels) + targets
    return forward + (8 * points + 8 * points + 4 * pixels if backward else 0)


@IMPLEMENTATIONS
@pytest.mark.parametrize("direction", ["forward", "with_backward"])
@AT_SHAPES
def test_point_mask_loss(measure, device, shape, direction, implementation) -> None:  # type: ignore[no-untyped-def]
    logits, targets, points = _maps(shape, device)
    number = float(shape.masks)
    # The published code holds its targets as floats; ours reads the bytes that they come as.
    floats = targets.float()
    loss = _chosen(
        implementation, device,
        lambda x: _composed_loss(x, floats, points, number), lambda x: ops.point_mask_loss(x, targets, points, number),
    )  # fmt: skip
    for got, want in zip(loss(logits), _composed_loss(logits, floats, points, number), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)

    def with_backward() -> Tensor | None:
        x = logits.detach().requires_grad_()
        mask, dice = loss(x)
        (5 * mask + 5 * dice).backward()
        return x.grad

    def forward() -> object:
        with torch.no_grad():
            return loss(logits)

    backward = direction == "with_backward"
    measure(
        with_backward if backward else forward,
        group=f"point_mask_loss {shape.name} {direction}",
        implementation=implementation,
        bytes_moved=_loss_bytes(shape, backward, 1.0 if implementation == "fssops" else 4.0),
    )


@pytest.mark.parametrize("form", ["bits", "runs"])
@AT_SHAPES
def test_point_mask_loss_of_packed_targets(measure, device, shape, form) -> None:  # type: ignore[no-untyped-def]
    from fssops.testing.point_masks import mask_sources

    logits, targets, points = _maps(shape, device)
    source = mask_sources(targets)[form]

    def with_backward() -> Tensor | None:
        x = logits.detach().requires_grad_()
        mask, dice = ops.point_mask_loss(x, source, points, float(shape.masks))
        (5 * mask + 5 * dice).backward()
        return x.grad

    measure(
        with_backward, group=f"point_mask_loss {shape.name} targets as {form}", implementation="fssops",
        bytes_moved=_loss_bytes(shape, True, 0.125),
    )  # fmt: skip


@IMPLEMENTATIONS
@AT_SHAPES
def test_uncertain_points(measure, device, shape, implementation) -> None:  # type: ignore[no-untyped-def]
    logits, _, _ = _maps(shape, device)
    draws = (
        torch.rand(shape.masks, CANDIDATES, 2, device=device),
        torch.rand(shape.masks, POINTS - KEPT, 2, device=device),
    )
    choose = _chosen(
        implementation, device,
        lambda x: _composed_choice(x, *draws), lambda x: ops.uncertain_points(x, POINTS, given_draws=draws),
    )  # fmt: skip

    def forward() -> object:
        with torch.no_grad():
            return choose(logits)

    measure(
        forward,
        group=f"uncertain_points {shape.name}",
        implementation=implementation,
        bytes_moved=shape.masks * (8 * (CANDIDATES + 2 * POINTS) + 4 * shape.size**2),
    )


@IMPLEMENTATIONS
@AT_SHAPES
def test_criterion_of_one_head(measure, device, shape, implementation) -> None:  # type: ignore[no-untyped-def]
    """Draws, choice of points, both losses and the gradient: what a training step does for each of ten heads."""
    logits, targets, _ = _maps(shape, device)
    number = float(shape.masks)

    def composed(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            candidates = torch.rand(shape.masks, CANDIDATES, 2, device=device)
            uniform = torch.rand(shape.masks, POINTS - KEPT, 2, device=device)
            points = _composed_choice(x, candidates, uniform)
        return _composed_loss(x, targets.to(x), points, number)

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        return ops.point_mask_loss(x, targets, ops.uncertain_points(x, POINTS), number)

    loss = _chosen(implementation, device, composed, ours)

    def step() -> Tensor | None:
        x = logits.detach().requires_grad_()
        mask, dice = loss(x)  # type: ignore[misc]
        (5 * mask + 5 * dice).backward()
        return x.grad

    measure(step, group=f"criterion of one head {shape.name}", implementation=implementation)


@IMPLEMENTATIONS
@pytest.mark.parametrize("queries", [100, 200])
def test_pairwise_cost(measure, device, queries, implementation) -> None:  # type: ignore[no-untyped-def]
    logits, targets = torch.randn(queries, POINTS, device=device) * 3, torch.rand(20, POINTS, device=device)
    class_logits, labels = torch.randn(queries, 134, device=device), torch.randint(0, 133, (20,), device=device)
    arguments = (logits, targets, class_logits, labels)
    cost = _chosen(
        implementation, device,
        _composed_cost, lambda x, t, c, g: ops.pairwise_mask_cost(x, t, class_logits=c, labels=g),
    )  # fmt: skip
    torch.testing.assert_close(cost(*arguments), _composed_cost(*arguments), rtol=1e-5, atol=1e-5)

    def forward() -> object:
        with torch.no_grad():
            return cost(*arguments)

    measure(
        forward,
        group=f"pairwise_mask_cost Q={queries} G=20 P={POINTS} float32",
        implementation=implementation,
        bytes_moved=4.0 * (queries + 20) * POINTS,
        operations=4.0 * queries * 20 * POINTS,
    )


@IMPLEMENTATIONS
@AT_SHAPES
def test_pairwise_cost_of_embeddings(measure, device, shape, implementation) -> None:  # type: ignore[no-untyped-def]
    """From the decoder's outputs: the composition forms the logits of all queries, as published."""
    queries = 100
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, shape.channels, shape.size, shape.size, generator=generator).to(device)
    embeddings = (torch.randn(queries, shape.channels, generator=generator) / 16).to(device)
    _, targets, points = _maps(shape, device)
    points = points[:1]
    class_logits, labels = torch.randn(queries, 134, device=device), torch.randint(0, 133, (20,), device=device)

    def composed() -> Tensor:
        maps = torch.einsum("qc,bchw->qhw", embeddings, features)
        logits = _point_sample(maps[:, None], points.repeat(queries, 1, 1)).squeeze(1)
        wanted = _point_sample(targets[:, None].to(maps), points.repeat(len(targets), 1, 1)).squeeze(1)
        return _composed_cost(logits, wanted, class_logits, labels)

    def ours() -> Tensor:
        factored = ops.FactoredMasks(embeddings, features)
        return ops.pairwise_mask_cost(factored, targets, points, class_logits=class_logits, labels=labels)

    run = _chosen(implementation, device, composed, ours)
    # The GPU multiplies float32 matrices in one precision or another; costs are of order 10.
    torch.testing.assert_close(run(), composed(), rtol=1e-3, atol=1e-3)
    measure(
        run,
        group=f"pairwise_mask_cost from embeddings {shape.name} float32",
        implementation=implementation,
        bytes_moved=4.0 * shape.channels * shape.size**2 + 20.0 * 4 * POINTS,
        operations=2.0 * queries * shape.channels * POINTS + 4.0 * queries * 20 * POINTS,
    )


@IMPLEMENTATIONS
def test_sample_features(measure, device, implementation) -> None:  # type: ignore[no-untyped-def]
    maps, points = torch.randn(1, 256, 128, 128, device=device), torch.rand(1, POINTS, 2, device=device)
    sample = _chosen(
        implementation, device, lambda: _point_sample(maps, points), lambda: ops.sample_points(maps, points)
    )
    torch.testing.assert_close(sample(), _point_sample(maps, points), rtol=1e-5, atol=1e-5)
    measure(
        sample,
        group="sample_points 256 channels of 128 x 128",
        implementation=implementation,
        bytes_moved=4.0 * 256 * (128 * 128 + POINTS) + 8.0 * POINTS,
    )
