"""Inputs of masked attention's cases: tensors and masks drawn from a generator of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from fssops.testing.cases import AttentionCase


def draw_closed(case: AttentionCase, generator: torch.Generator) -> Tensor | None:
    """The case's mask, [B, 1 or M, Q, S] bool, True = may not attend; its second query has no open key."""
    if case.open_share is None:
        return None
    shape = (case.batch, case.mask_heads, case.queries, case.keys)
    if case.pattern == "scattered":
        closed = torch.rand(shape, generator=generator) >= case.open_share
    elif case.pattern == "runs":
        # A stretch of keys a query, somewhere along the sequence.
        length = max(1, round(case.open_share * case.keys))
        start = torch.randint(0, case.keys - length + 1, shape[:3], generator=generator)[..., None]
        place = torch.arange(case.keys)
        closed = (place < start) | (place >= start + length)
    elif case.pattern == "last":
        closed = (
            (torch.arange(case.keys) < case.keys - max(1, round(case.open_share * case.keys))).expand(shape).clone()
        )
    else:
        raise ValueError(f"AttentionCase: pattern must be scattered, runs or last, got {case.pattern!r}")
    if case.queries > 1:
        closed[:, :, 1] = True
    return closed


def draw_inputs(case: AttentionCase, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Query, key, value and the gradient of the output: [B, M, rows, D] views of [B, rows, M, D] memory."""
    drawn = []
    for rows in (case.queries, case.keys, case.keys, case.queries):
        memory = torch.randn(case.batch, rows, case.heads, case.head_size, generator=generator)
        drawn.append(memory.to(dtype).transpose(1, 2))
    return tuple(drawn)
