"""Masked average pooling: prototypes of image regions.

What it costs, for 100 proposals on three levels of a 480 x 480 image (MM-Former, float32): features and masks are read
once, 10.6 MB, and 0.24 GFLOP multiply them; an H200 (4.8 TB/s on paper) needs 2.2 us for the bytes. The published form
expands features by masks, 460 MB. PANet's form upsamples 512 channels to 417 x 417, 356 MB; here the mask is carried
to the features' grid instead, and 7.1 MB are read. The backward pass writes what the forward pass reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from fssops import reference
from fssops.ops._backend import call, check_float, empty_gradient, register, use_reference
from fssops.reference.masked_average_pooling import RESIZE_RULES

_OP = "masked_average_pooling"


def _check(features: Tensor, masks: Tensor, eps: float, resize: str) -> None:
    if features.dim() != 4:
        raise ValueError(f"{_OP}: features must have shape [B, C, h, w], got {list(features.shape)}")
    if masks.dim() != 4:
        raise ValueError(f"{_OP}: masks must have shape [B, N, H, W], got {list(masks.shape)}")
    if features.shape[0] != masks.shape[0]:
        raise ValueError(
            f"{_OP}: masks must have the batch size of features, {features.shape[0]}, got {list(masks.shape)}"
        )
    if features.device != masks.device:
        raise ValueError(f"{_OP}: masks must be on the device of features, {features.device}, got {masks.device}")
    check_float(_OP, "features", features)
    if masks.dtype not in (torch.bool, torch.uint8):
        check_float(_OP, "masks", masks)
    if resize not in RESIZE_RULES:
        raise ValueError(f"{_OP}: resize must be one of {', '.join(RESIZE_RULES)}, got {resize!r}")
    for name, tensor in (("features", features), ("masks", masks)):
        if 0 in tensor.shape[2:]:
            raise ValueError(f"{_OP}: {name} must have at least one pixel, got {list(tensor.shape)}")
    if resize == "none" and features.shape[2:] != masks.shape[2:]:
        raise ValueError(
            f"{_OP}: masks must have the size of features, {list(features.shape[2:])}, unless resize says how they are "
            f"resized, got {list(masks.shape[2:])}"
        )
    if not eps >= 0:
        raise ValueError(f"{_OP}: eps must be 0 or more, got {eps}")


@overload
def masked_average_pooling(
    features: Tensor, masks: Tensor, *, eps: float, resize: str = ..., backend: str | None = ...
) -> Tensor: ...
@overload
def masked_average_pooling(
    features: Sequence[Tensor], masks: Tensor, *, eps: float, resize: str = ..., backend: str | None = ...
) -> list[Tensor]: ...
def masked_average_pooling(
    features: Tensor | Sequence[Tensor],
    masks: Tensor,
    *,
    eps: float,
    resize: str = "none",
    backend: str | None = None,
) -> Tensor | list[Tensor]:
    r"""Mean of the features under each mask.

    .. math:: p_{bnc} = \frac{\sum_{yx} W_{bnyx} F_{bcyx}}{\sum_{yx} W_{bnyx} + \epsilon}

    where W is the mask, brought to the features' size by ``resize``. With ``upsample_features`` it is the other way
    round, as PANet pools: F is upsampled bilinearly to the masks' size (``align_corners=False``), without being formed.

    Args:
        features: [B, C, h, w] float32, float64, float16 or bfloat16, contiguous or channels-last (both without a
            copy); or a list of such levels with sizes of their own, for which a list is returned.
        masks: [B, N, H, W], soft or binary: any of those dtypes, bool or uint8 (1 = inside). Values are used as they
            are, so a uint8 mask of 255s weighs 255.
        eps: added to the divisor; the prototype of an empty mask is 0 for eps > 0 and NaN for eps = 0. Published:
            1e-5 (PANet), 5e-4 (MSANet).
        resize: ``none`` (sizes are equal), ``nearest``, ``bilinear`` or ``bilinear_align_corners`` (masks to the
            features, as ``torch.nn.functional.interpolate``, no antialiasing), or ``upsample_features``.
        backend: ``native`` or ``reference``; by default what FSSOPS_BACKEND says.

    Returns:
        [B, N, C] in the dtype of features. Half types are accumulated in float32 (on the CPU: computed in float32).
        Gradients flow to features and to float masks. Results are deterministic on every device.

    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.

    Source: PANet (Wang et al., ICCV 2019), eq. 1; SG-One (Zhang et al., 2018), eq. 1.
    """
    if not isinstance(features, Tensor):
        return [masked_average_pooling(level, masks, eps=eps, resize=resize, backend=backend) for level in features]
    _check(features, masks, eps, resize)
    if use_reference(backend, _OP):
        return reference.masked_average_pooling(features, masks, eps=eps, resize=resize)
    dtype = features.dtype
    if features.device.type == "cpu":
        if dtype not in (torch.float32, torch.float64):
            features = features.float()
        if masks.dtype not in (torch.bool, torch.uint8):
            masks = masks.to(features.dtype)
    operator, rule = torch.ops.fssops.masked_average_pooling.default, RESIZE_RULES.index(resize)
    prototypes: Tensor = call(operator, features, masks, eps, rule)[0]
    return prototypes.to(dtype)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake(features: Tensor, masks: Tensor, eps: float, resize: int) -> tuple[Tensor, Tensor]:
    batch, channels = features.shape[:2]
    divisor = features.new_empty((batch, masks.shape[1]), dtype=_accumulator(features.dtype))
    return features.new_empty((batch, masks.shape[1], channels)), divisor


def _fake_backward(
    grad: Tensor,
    features: Tensor,
    masks: Tensor,
    prototypes: Tensor,
    divisor: Tensor,
    resize: int,
    need_features: bool,
    need_masks: bool,
) -> tuple[Tensor, Tensor]:
    nothing = features.new_empty(0)
    grad_masks = torch.empty_like(masks, memory_format=torch.contiguous_format) if need_masks else nothing.clone()
    return empty_gradient(features) if need_features else nothing, grad_masks


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, masks, _, resize = inputs
    prototypes, divisor = output
    ctx.save_for_backward(features, masks, prototypes, divisor)
    ctx.resize = resize
    ctx.mark_non_differentiable(divisor)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    features, masks, prototypes, divisor = ctx.saved_tensors
    need_features, need_masks = ctx.needs_input_grad[:2]
    grad_features, grad_masks = torch.ops.fssops.masked_average_pooling_backward.default(
        grad, features, masks, prototypes, divisor, ctx.resize, need_features, need_masks
    )
    return grad_features if need_features else None, grad_masks if need_masks else None, None, None


register(_OP, fake=_fake, backward=_backward, setup_context=_setup_context)
register(f"{_OP}_backward", fake=_fake_backward, autocast_cpu=False)
