"""Drop-in for the extension ``MultiScaleDeformableAttention`` of Deformable DETR, on CPU and CUDA.

The same two functions, with the arguments, the order and the results of the authors' (Zhu et al., ICLR 2021; repository
fundamentalvision/Deformable-DETR), to be called from an ``autograd.Function`` as theirs are. Differences, all of them
wider: they run on the CPU, take half types, strided and mixed inputs, any ``im2col_step``, and add up the gradient of
value in a fixed order where ``torch.use_deterministic_algorithms`` is set.

Importing this module registers it under the top-level name; see :mod:`fssops.compat`.
"""

from __future__ import annotations

import sys

from torch import Tensor

from fssops.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_gradients

__all__ = ["ms_deform_attn_backward", "ms_deform_attn_forward"]


def register() -> None:
    """Put this module where ``import MultiScaleDeformableAttention`` finds it."""
    sys.modules["MultiScaleDeformableAttention"] = sys.modules[__name__]


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    im2col_step: int,
) -> Tensor:
    """Sample and sum; see :func:`fssops.ops.ms_deform_attn`.

    Args:
        value: [B, S, M, D].
        spatial_shapes: [L, 2] integers, (height, width) of each level. They and level_start_index are brought to the
            host once for each tensor, not once for each call.
        level_start_index: [L] integers, first token of each level.
        sampling_loc: [B, Q, M, L, P, 2], (x, y) from 0 to 1.
        attn_weight: [B, Q, M, L, P].
        im2col_step: accepted for the interface; nothing is buffered here, so it has no effect.

    Returns:
        [B, Q, M * D].
    """
    return ms_deform_attn(value, spatial_shapes, sampling_loc, attn_weight, level_start_index=level_start_index)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Tensor,
    im2col_step: int,
) -> list[Tensor]:
    """Gradients of :func:`ms_deform_attn_forward`.

    Args:
        value: as in the forward call; so are the next four.
        spatial_shapes: see there.
        level_start_index: see there.
        sampling_loc: see there.
        attn_weight: see there.
        grad_output: [B, Q, M * D].
        im2col_step: without effect.

    Returns:
        [grad_value, grad_sampling_loc, grad_attn_weight], each with the shape and dtype of its tensor.
    """
    grads = ms_deform_attn_gradients(
        grad_output, value, spatial_shapes, sampling_loc, attn_weight, level_start_index=level_start_index
    )
    return list(grads)


register()
