"""Cosine correlation against the PyTorch calls of the published systems: MSANet's taps of ResNet-50 at 473 x 473."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fssops import ops

CHANNELS = (512,) * 4 + (1024,) * 6 + (2048,) * 3
SIDE = 60
FOREGROUND = 0.15
Layers = list[Tensor]


def _unit(features: Tensor) -> Tensor:
    """[B, C, P] over its lengths, eps added, as HSNet and MSANet divide."""
    return features / (features.norm(dim=1, keepdim=True) + 1e-5)


def _dense_mean(query: Layers, support: Layers, mask: Tensor) -> Layers:
    # HSNet's form: masked features, all positions against all, clamped; averaged over the support.
    maps = []
    for q, s in zip(query, support, strict=True):
        correlation = torch.bmm(_unit(q.flatten(2)).transpose(1, 2), _unit((s[:, 0] * mask).flatten(2)))
        maps.append(correlation.clamp(min=0).mean(dim=2).view(q.shape[0], 1, *q.shape[2:]))
    return maps


def _kept_mean(query: Layers, support: Layers, mask: Tensor) -> Layers:
    # MSANet: a loop over taps and samples; positions at or above the mean of the positive mask values are kept.
    maps = []
    for q, s in zip(query, support, strict=True):
        for b in range(q.shape[0]):
            values = mask[b].flatten()
            kept = values >= values[values > 0].mean()
            columns = (s[b, 0] * mask[b]).flatten(1)[:, kept]
            correlation = torch.matmul(_unit(q[b : b + 1].flatten(2)).transpose(1, 2), _unit(columns[None]))
            maps.append(correlation.clamp(min=0).mean(dim=2).view(1, 1, *q.shape[2:]))
    return maps


def _prior(query: Layers, support: Layers, mask: Tensor) -> Layers:
    # PFENet and MSANet: masked features of layer4, all positions against all, the largest of each query position.
    maps = []
    for q, s in zip(query, support, strict=True):
        a, b = q.flatten(2), (s[:, 0] * mask).flatten(2).transpose(1, 2)
        lengths = torch.bmm(b.norm(dim=2, keepdim=True), a.norm(dim=1, keepdim=True))
        maps.append((torch.bmm(b, a) / (lengths + 1e-7)).max(dim=1).values.view(q.shape[0], 1, *q.shape[2:]))
    return maps


@dataclass(frozen=True)
class Work:
    """One published use."""

    name: str
    channels: tuple[int, ...]
    composition: Callable[[Layers, Layers, Tensor], Layers]
    rule: dict[str, object]


PRIOR_RULE = {"reduction": "max", "divisor": "all", "relu": False, "eps": 1e-7, "eps_rule": "add_to_product"}
WORKS = [
    Work("13 layers, mean of the dense form", CHANNELS, _dense_mean, {"divisor": "all"}),
    Work("13 layers, mean of kept positions", CHANNELS, _kept_mean, {"divisor": "kept"}),
    Work("prior mask of layer4", (2048,), _prior, PRIOR_RULE),
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
IMPLEMENTATIONS = ("composition", "compiled", "fssops")


def _inputs(work: Work, device: torch.device, dtype: torch.dtype) -> tuple[Layers, Layers, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def layer(channels: int) -> Tensor:
        return torch.randn(1, channels, SIDE, SIDE, generator=generator).to(device, dtype)

    query = [layer(c) for c in work.channels]
    support = [layer(c)[:, None] for c in work.channels]
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    distance = (x / 1.2) ** 2 + (y - 0.1) ** 2  # one ellipse, as an object is
    mask = (distance <= distance.flatten().quantile(FOREGROUND)).to(device, dtype)
    return query, support, mask[None, None]


def _function(
    work: Work, implementation: str, query: Layers, support: Layers, mask: Tensor
) -> Callable[[], Layers | Tensor]:
    if implementation == "fssops":
        return lambda: ops.cosine_correlation(query, support, mask, **work.rule)  # type: ignore[call-overload]
    composition = work.composition
    if implementation == "compiled":
        composition = torch.compile(composition, dynamic=False)
    return lambda: composition(query, support, mask)


def _least(work: Work, mask: Tensor, size: int) -> tuple[float, float]:
    """Bytes that must be moved, and operations on kept columns."""
    kept, positions = int(mask.sum()), SIDE * SIDE
    return sum(work.channels) * (positions + kept) * size, 2.0 * positions * kept * sum(work.channels)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("work", WORKS, ids=lambda w: w.name)
def test_forward(
    work: Work, dtype: str, implementation: str, measure: Callable[..., None], device: torch.device
) -> None:
    query, support, mask = _inputs(work, device, DTYPES[dtype])
    moved, operations = _least(work, mask, query[0].element_size())
    with torch.no_grad():
        function = _function(work, implementation, query, support, mask)
        group = f"cosine_correlation forward {dtype}: {work.name}"
        measure(function, group=group, implementation=implementation, bytes_moved=moved, operations=operations)


@pytest.mark.parametrize("implementation", ["composition", "fssops"])
def test_forward_of_bfloat16_against_float32(
    implementation: str, measure: Callable[..., None], device: torch.device
) -> None:
    # What bfloat16 features bring on a processor with bfloat16 dot products: the published loop stays in float32.
    work = WORKS[1]
    dtype = torch.bfloat16 if implementation == "fssops" else torch.float32
    query, support, mask = _inputs(work, device, dtype)
    moved, operations = _least(work, mask, 2)
    with torch.no_grad():
        function = _function(work, implementation, query, support, mask)
        group = f"cosine_correlation forward bf16, composition in float32: {work.name}"
        measure(function, group=group, implementation=implementation, bytes_moved=moved, operations=operations)


@pytest.mark.parametrize("implementation", ["composition", "fssops"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_and_backward(
    dtype: str, implementation: str, measure: Callable[..., None], device: torch.device
) -> None:
    work = Work("4 layers of 512 channels, mean of kept positions", CHANNELS[:4], _kept_mean, {"divisor": "kept"})
    query, support, mask = _inputs(work, device, DTYPES[dtype])
    leaves = [t.requires_grad_() for t in (*query, *support)]
    function = _function(work, implementation, query, support, mask)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad([m.square().sum() for m in function()], leaves)

    moved, operations = _least(work, mask, query[0].element_size())
    group = f"cosine_correlation with backward {dtype}: {work.name}"
    measure(step, group=group, implementation=implementation, bytes_moved=3 * moved, operations=3 * operations)


@pytest.mark.parametrize("work", WORKS, ids=lambda w: w.name)
def test_same_values(work: Work, device: torch.device) -> None:
    query, support, mask = _inputs(work, device, torch.float32)
    with torch.no_grad():
        got = ops.cosine_correlation(query, support, mask, **work.rule)  # type: ignore[call-overload]
        want = work.composition(query, support, mask)
    for value, expected in zip(got, want, strict=True):
        torch.testing.assert_close(value, expected, atol=2e-6, rtol=1e-4)
