"""Cosine similarity of pixels with prototypes, and of prototypes with each other.

What it costs: features are read once and a map a prototype is written; for 512 channels at 53 x 53 and two prototypes
(PANet, float32) 5.8 MB and 5.8 MFLOP, so memory is the limit: 1.2 us at an H200's 4.8 TB/s on paper. Lengths are found
in the same pass; nothing normalised is stored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fssops import reference
from fssops.ops._backend import call, check_float, empty_gradient, register, use_reference

_OP = "cosine_similarity_to_prototypes"


def _check(op: str, first: str, features: Tensor, second: str, prototypes: Tensor, eps: float) -> None:
    if prototypes.dim() != 3:
        raise ValueError(f"{op}: {second} must have shape [B, N, C], got {list(prototypes.shape)}")
    check_float(op, first, features)
    check_float(op, second, prototypes)
    if prototypes.device != features.device:
        raise ValueError(f"{op}: {second} must be on the device of {first}, {features.device}, got {prototypes.device}")
    if not eps >= 0:
        raise ValueError(f"{op}: eps must be 0 or more, got {eps}")


def cosine_similarity_to_prototypes(
    features: Tensor, prototypes: Tensor, *, scale: float = 1.0, eps: float = 1e-8, backend: str | None = None
) -> Tensor:
    r"""Scaled cosine of the feature vector of every pixel with every prototype of its image.

    .. math:: s_{bnyx} = \alpha\,
              \frac{\langle f_{byx}, p_{bn}\rangle}{\max(|f_{byx}|, \epsilon)\,\max(|p_{bn}|, \epsilon)}

    The features are read once for their lengths and the products with all prototypes (of a block of four, with many);
    ``torch.nn.functional.cosine_similarity`` reads them once a prototype.

    Args:
        features: [B, C, h, w] float32, float64, float16 or bfloat16, contiguous or channels-last (both without a copy).
        prototypes: [B, N, C]; converted to the wider dtype of the two.
        scale: :math:`\alpha`; 20 in PANet.
        eps: lengths are clamped to it from below, so a zero vector gives 0.
        backend: ``native`` or ``reference``; by default what FSSOPS_BACKEND says.

    Returns:
        [B, N, h, w] in the wider dtype of the two. Half types are accumulated in float32 (on the CPU, and under its
        autocast: computed in float32). Gradients flow to both. Results are deterministic on every device.

    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.

    Source: PANet (Wang et al., ICCV 2019), eq. 3.
    """
    if features.dim() != 4:
        raise ValueError(f"{_OP}: features must have shape [B, C, h, w], got {list(features.shape)}")
    _check(_OP, "features", features, "prototypes", prototypes, eps)
    batch, channels, *size = features.shape
    if prototypes.shape[0] != batch or prototypes.shape[2] != channels:
        raise ValueError(
            f"{_OP}: prototypes must have the images and channels of features, [{batch}, N, {channels}], got "
            f"{list(prototypes.shape)}"
        )
    dtype = torch.promote_types(features.dtype, prototypes.dtype)
    if use_reference(backend, _OP):
        return reference.cosine_similarity_to_prototypes(features.to(dtype), prototypes.to(dtype), scale=scale, eps=eps)
    if features.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        compute = torch.float32
    else:
        compute = dtype
    values: Tensor = call(
        torch.ops.fssops.cosine_similarity_to_prototypes.default,
        features.to(compute),
        prototypes.to(compute),
        float(scale),
        float(eps),
    )[0]
    return values.view(batch, prototypes.shape[1], *size).to(dtype)


def prototype_similarity(a: Tensor, b: Tensor, *, eps: float = 1e-8, backend: str | None = None) -> Tensor:
    r"""Cosine of every prototype of one set with every prototype of the other.

    Args:
        a: [B, N, C] float32, float64, float16 or bfloat16.
        b: [B, M, C].
        eps: lengths are clamped to it from below, so a zero prototype gives 0.
        backend: ``native`` or ``reference``; by default what FSSOPS_BACKEND says.

    Returns:
        [B, N, M], with gradients to both; otherwise as :func:`cosine_similarity_to_prototypes`.

    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.

    Source: MM-Former (Jiao et al., NeurIPS 2022), section 3.3.
    """
    op = "prototype_similarity"
    if a.dim() != 3:
        raise ValueError(f"{op}: a must have shape [B, N, C], got {list(a.shape)}")
    _check(op, "a", a, "b", b, eps)
    if b.shape[0] != a.shape[0] or b.shape[2] != a.shape[2]:
        raise ValueError(
            f"{op}: b must have the batch and channels of a, [{a.shape[0]}, M, {a.shape[2]}], got {list(b.shape)}"
        )
    if use_reference(backend, op):
        dtype = torch.promote_types(a.dtype, b.dtype)
        return reference.prototype_similarity(a.to(dtype), b.to(dtype), eps=eps)
    # The vectors of b are the pixels of an image in channels-last memory.
    return cosine_similarity_to_prototypes(b.transpose(1, 2)[..., None], a, eps=eps, backend=backend)[..., 0]


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake(features: Tensor, prototypes: Tensor, scale: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _accumulator(features.dtype)
    batch, count, pixels = features.shape[0], prototypes.shape[1], features.shape[2] * features.shape[3]
    return (
        features.new_empty((batch, count, pixels), dtype=dtype),
        features.new_empty((batch, pixels), dtype=dtype),
        features.new_empty((batch, count), dtype=dtype),
    )


def _fake_backward(
    grad: Tensor,
    features: Tensor,
    prototypes: Tensor,
    values: Tensor,
    feature_lengths: Tensor,
    prototype_lengths: Tensor,
    scale: float,
    eps: float,
    need_features: bool,
    need_prototypes: bool,
) -> tuple[Tensor, Tensor]:
    return (
        empty_gradient(features) if need_features else features.new_empty(0),
        prototypes.new_empty(prototypes.shape) if need_prototypes else features.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    features, prototypes, ctx.scale, ctx.eps = inputs
    ctx.save_for_backward(features, prototypes, *output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    need_features, need_prototypes = ctx.needs_input_grad[:2]
    grad_features, grad_prototypes = torch.ops.fssops.cosine_similarity_to_prototypes_backward.default(
        grad, *ctx.saved_tensors, ctx.scale, ctx.eps, need_features, need_prototypes
    )
    return grad_features if need_features else None, grad_prototypes if need_prototypes else None, None, None


register(_OP, fake=_fake, backward=_backward, setup_context=_setup_context)
register(f"{_OP}_backward", fake=_fake_backward, autocast_cpu=False)
