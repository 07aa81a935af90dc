"""The plain PyTorch definition of multi-scale deformable attention; see :mod:`fssops.ops.ms_deform_attn`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    level_start_index: Sequence[int] | None = None,
) -> Tensor:
    """Output [B, Q, M * D]: level by level with ``grid_sample``, bilinear, zeros outside, ``align_corners=False``.

    What ``grid_sample`` leaves open is fixed here: a point at infinity lies outside, a NaN location gives NaN. Half
    types are computed in float32.
    """
    out_dtype = value.dtype
    dtype = torch.float32 if out_dtype in (torch.float16, torch.bfloat16) else out_dtype
    value, locations, weights = (t.to(dtype) for t in (value, sampling_locations, attention_weights))
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    out = value.new_zeros(batch * heads, channels, queries)
    starts = _starts(spatial_shapes) if level_start_index is None else level_start_index
    for level, ((height, width), start) in enumerate(zip(spatial_shapes, starts, strict=True)):
        points = locations[:, :, :, level].transpose(1, 2).flatten(0, 1)  # [B * M, Q, P, 2]
        if 0 in (*out.shape, *points.shape):
            continue
        plane = value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(-1, channels, height, width)
        # A level spans 0 to 1, so -1 and 2 lie outside for every size; infinities would make grid_sample give NaN.
        grid = 2 * points.clamp(-1, 2) - 1
        sampled = F.grid_sample(plane, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        undefined = points.isnan().any(-1)[:, None]
        sampled = torch.where(undefined, torch.full_like(sampled, torch.nan), sampled)  # [B * M, D, Q, P]
        out = out + (sampled * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    result: Tensor = out.view(batch, heads * channels, queries).transpose(1, 2).to(out_dtype)
    return result


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    level_start_index: Sequence[int] | None = None,
) -> Tensor:
    """Output [B, Q, M * D] from raw offsets and logits: locations and softmax, then :func:`ms_deform_attn`."""
    dtype = torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype
    shape = sampling_offsets.shape[:-1]  # [B, Q, M, L, P]
    weights = attention_logits.to(dtype).flatten(3).softmax(-1).view(shape)
    locations = sampling_locations(spatial_shapes, reference_points.to(dtype), sampling_offsets.to(dtype))
    return ms_deform_attn(value, spatial_shapes, locations, weights, level_start_index=level_start_index)


def sampling_locations(
    spatial_shapes: Sequence[tuple[int, int]], reference_points: Tensor, sampling_offsets: Tensor
) -> Tensor:
    """Locations [B, Q, M, L, P, 2] of offsets of that shape around reference points [B, Q, L, 2] or boxes [B, Q, L, 4].

    Offsets from a point are counted in cells of the level; offsets from a box (centre x, y, width, height) in halves of
    the box, divided by the number of points.
    """
    if reference_points.shape[-1] == 2:
        size = sampling_offsets.new_tensor([(width, height) for height, width in spatial_shapes])  # [L, 2]
        around: Tensor = reference_points[:, :, None, :, None] + sampling_offsets / size[:, None]
        return around
    centre, extent = reference_points[:, :, None, :, None, :2], reference_points[:, :, None, :, None, 2:]
    return centre + sampling_offsets / sampling_offsets.shape[-2] * extent * 0.5


def _starts(spatial_shapes: Sequence[tuple[int, int]]) -> list[int]:
    starts = [0]
    for height, width in spatial_shapes:
        starts.append(starts[-1] + height * width)
    return starts[:-1]
