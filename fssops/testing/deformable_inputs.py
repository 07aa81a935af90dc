"""Inputs of a multi-scale deformable attention call, for tests and benchmarks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fssops.testing.cases import DeformableCase


def deformable_inputs(case: DeformableCase) -> list[Tensor]:
    """Float64 tensors in the order of the call, without the shapes.

    About a quarter of the points lie outside their level. None lies within 5 % of a cell of a place where the gradient
    jumps, so that rounding does not move it across.

    Returns:
        [value, sampling_locations, attention_weights], or
        [value, reference_points, sampling_offsets, attention_logits].
    """
    levels = len(case.shapes)
    tokens = case.tokens or sum(h * w for h, w in case.shapes)
    size = torch.tensor([(w, h) for h, w in case.shapes], dtype=torch.float64)[:, None]  # [L, 1, 2]
    points = (case.batch, case.queries, case.heads, levels, case.points)
    value = torch.randn(case.batch, tokens, case.heads, case.channels, dtype=torch.float64)
    cells = (torch.rand(*points, 2, dtype=torch.float64) * (size + 2)).floor() - 1.5
    cells = cells + 0.05 + 0.9 * torch.rand(*points, 2, dtype=torch.float64)  # centre of the first cell at 0
    cells = torch.where(cells.remainder(1) < 0.05, cells + 0.05, cells)
    cells = torch.where(cells.remainder(1) > 0.95, cells - 0.05, cells)
    locations = (cells + 0.5) / size
    scores = torch.randn(points, dtype=torch.float64)
    if case.reference == 0:
        return [value, locations, scores]
    reference = torch.rand(case.batch, case.queries, levels, 2, dtype=torch.float64)
    around = locations - reference[:, :, None, :, None]
    if case.reference == 2:
        return [value, reference, around * size, scores.flatten(3)]
    extent = 0.1 + torch.rand(case.batch, case.queries, levels, 2, dtype=torch.float64)
    offsets = around / (0.5 * extent[:, :, None, :, None]) * case.points
    return [value, torch.cat([reference, extent], -1), offsets, scores.flatten(3)]


def gradients(function: Any, case: DeformableCase, tensors: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Output of ``function`` (an entry of the operator or of the reference) and the gradient of each tensor."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = function(leaves[0], case.shapes, *leaves[1:], level_start_index=case.starts)
    output.backward(grad.to(output.dtype))
    return [output.detach(), *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]
