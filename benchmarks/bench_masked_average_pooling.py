"""Masked average pooling against the PyTorch calls of the published systems, at their shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fssops import ops


@dataclass(frozen=True)
class Work:
    """One published use."""

    name: str
    channels: int
    masks: int
    sizes: tuple[tuple[int, int], ...]
    mask_size: tuple[int, int]
    resize: str
    eps: float
    composition: Callable[[list[Tensor], Tensor], list[Tensor]]


def _panet(features: list[Tensor], masks: Tensor) -> list[Tensor]:
    # PANet upsamples the features to the image and pools there, mask by mask.
    (level,) = features
    pooled = []
    for n in range(masks.shape[1]):
        upsampled = F.interpolate(level, size=masks.shape[-2:], mode="bilinear", align_corners=False)
        mask = masks[:, n : n + 1]
        pooled.append(torch.sum(upsampled * mask, dim=(2, 3)) / (mask.sum(dim=(2, 3)) + 1e-5))
    return [torch.stack(pooled, 1)]


def _msanet(features: list[Tensor], masks: Tensor) -> list[Tensor]:
    # MSANet resizes the mask with aligned corners, multiplies and averages, then divides by the mask's mean.
    (level,) = features
    small = F.interpolate(masks, size=level.shape[-2:], mode="bilinear", align_corners=True)
    pixels = level.shape[-2] * level.shape[-1]
    area = F.avg_pool2d(small, level.shape[-2:]) * pixels + 0.0005
    return [(F.avg_pool2d(level * small, level.shape[-2:]) * pixels / area).flatten(1)[:, None]]


def _mm_former(features: list[Tensor], masks: Tensor) -> list[Tensor]:
    # MM-Former pools every proposal on every level through an expanded product.
    pooled = []
    for level in features:
        small = F.interpolate(masks, size=level.shape[-2:], mode="bilinear", align_corners=False)
        product = level[:, None] * small[:, :, None]
        pooled.append(product.sum(dim=(3, 4)) / (small.sum(dim=(2, 3))[..., None] + 5e-4))
    return pooled


WORKS = [
    Work("PANet VGG-16 417 px, 2 masks", 512, 2, ((53, 53),), (417, 417), "upsample_features", 1e-5, _panet),
    Work("MSANet ResNet-50 473 px, 1 mask", 512, 1, ((60, 60),), (473, 473), "bilinear_align_corners", 5e-4, _msanet),
    Work(
        "MM-Former 480 px, 100 masks x 3 levels",
        256,
        100,
        ((15, 15), (30, 30), (60, 60)),
        (120, 120),
        "bilinear",
        5e-4,
        _mm_former,
    ),
]


def _inputs(work: Work, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(1, work.channels, *size, generator=generator) for size in work.sizes]
    masks = (torch.rand(1, work.masks, *work.mask_size, generator=generator) > 0.7).float()
    return [f.to(device, dtype) for f in features], masks.to(device, dtype)


@pytest.mark.parametrize("implementation", ["composition", "compiled", "fssops"])
@pytest.mark.parametrize("direction", ["forward", "with_backward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("work", WORKS, ids=lambda w: w.name)
def test_masked_average_pooling(measure, device, work, dtype, direction, implementation) -> None:  # type: ignore[no-untyped-def]
    if dtype == "bfloat16" and device.type == "cpu":
        pytest.skip("half precision counts on the GPU")
    if implementation == "compiled" and device.type == "cpu" and work is not WORKS[-1]:
        pytest.skip("compiling takes long: one shape is enough")
    features, masks = _inputs(work, device, getattr(torch, dtype))
    composition = torch.compile(work.composition) if implementation == "compiled" else work.composition

    def call(levels: list[Tensor]) -> list[Tensor]:
        if implementation == "fssops":
            return ops.masked_average_pooling(levels, masks, eps=work.eps, resize=work.resize)
        return composition(levels, masks)

    expected = work.composition(features, masks)
    for got, want in zip(call(features), expected, strict=True):
        torch.testing.assert_close(
            got, want, rtol=2e-2 if dtype == "bfloat16" else 1e-4, atol=2e-2 if dtype == "bfloat16" else 1e-5
        )

    def with_backward() -> list[Tensor | None]:
        levels = [f.detach().requires_grad_() for f in features]
        torch.autograd.backward([p.sum() for p in call(levels)])
        return [level.grad for level in levels]

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return call(features)

    item = features[0].element_size()
    pixels = sum(h * w for h, w in work.sizes)
    passes = 1 if direction == "forward" else 3  # backward reads the masks again and writes the gradient of features
    measure(
        forward if direction == "forward" else with_backward,
        group=f"masked_average_pooling {work.name} {dtype} {direction}",
        implementation=implementation,
        bytes_moved=item
        * (work.channels * pixels * (1 if passes == 1 else 2) + masks.numel() * (1 if passes == 1 else 2)),
        operations=2.0 * work.channels * work.masks * pixels * (1 if passes == 1 else 2),
    )
