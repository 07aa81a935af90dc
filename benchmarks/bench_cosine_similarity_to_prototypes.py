"""The cosine with prototypes against the PyTorch calls of PANet and MM-Former, at their shapes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fssops import ops

# PANet's features at 417 px, images of an episode, prototypes of 1 and 5 ways; MM-Former's proposals.
SHAPES = {
    "PANet 1-way, 1 image": (1, 512, 53, 53, 2),
    "PANet 5-way, 5 images": (5, 512, 53, 53, 6),
    "100 prototypes of 768 at 30 x 30": (1, 768, 30, 30, 100),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _composition(features: Tensor, prototypes: Tensor) -> Tensor:
    # PANet's calDist, prototype by prototype.
    scores = [F.cosine_similarity(features, p[..., None, None], dim=1) * 20 for p in prototypes.unbind(1)]
    return torch.stack(scores, dim=1)


def _inputs(shape: str, device: torch.device, dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch, channels, height, width, count = SHAPES[shape]
    features = torch.randn(batch, channels, height, width, generator=generator).to(device, dtype)
    if channels_last:
        features = features.to(memory_format=torch.channels_last)
    return features, torch.randn(batch, count, channels, generator=generator).to(device, dtype)


def _function(implementation: str) -> Callable[[Tensor, Tensor], Tensor]:
    if implementation == "fssops":
        return lambda f, p: ops.cosine_similarity_to_prototypes(f, p, scale=20.0)
    return torch.compile(_composition) if implementation == "compiled" else _composition


@pytest.mark.parametrize("implementation", ["composition", "compiled", "fssops"])
@pytest.mark.parametrize("memory", ["channels-first", "channels-last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward(
    shape: str, dtype: str, memory: str, implementation: str, measure: Callable[..., None], device: torch.device
) -> None:
    features, prototypes = _inputs(shape, device, DTYPES[dtype], memory == "channels-last")
    function = _function(implementation)
    with torch.no_grad():
        measure(
            lambda: function(features, prototypes),
            group=f"prototype cosine forward {dtype} {memory}: {shape}",
            implementation=implementation,
            bytes_moved=features.numel() * features.element_size(),
            operations=2.0 * features.numel() * (prototypes.shape[1] + 1),
        )


@pytest.mark.parametrize("implementation", ["composition", "fssops"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_and_backward(
    dtype: str, implementation: str, measure: Callable[..., None], device: torch.device
) -> None:
    shape = "PANet 5-way, 5 images"
    leaves = [t.requires_grad_() for t in _inputs(shape, device, DTYPES[dtype], False)]
    function = _function(implementation)
    measure(
        lambda: torch.autograd.grad(function(*leaves).square().sum(), leaves),
        group=f"prototype cosine with backward {dtype}: {shape}",
        implementation=implementation,
        bytes_moved=4 * leaves[0].numel() * leaves[0].element_size(),
        operations=6.0 * leaves[0].numel() * (leaves[1].shape[1] + 1),
    )
