"""Cosine correlation of query and support features, over all layers, images, masks and shots at once.

What it costs, for 13 layers of a 473 x 473 episode in MSANet with 15 % of the support kept (float32): features are
read once, 237 MB, and 55.7 GFLOP multiply them; cosines of all positions would be 372 GFLOP and 52 MB a layer. In half
precision on an H200 (989 TFLOP/s, 4.8 TB/s on paper) that is 56 us of products and 25 us of bytes. The backward pass
of a mean makes the products again and takes both gradients from a slab of coefficients, three products of the same
size in all; that of a maximum or of the k largest touches the chosen columns alone. On the CPU the operands are packed
once and a tile of products is reduced in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from fssops import reference
from fssops.ops._backend import call, check_float, register, use_reference
from fssops.reference.cosine_correlation import DIVISORS, EPS_RULES, REDUCTIONS, SHOTS

_OP = "cosine_correlation"
MAX_K = 32
"""The largest ``k`` of the reduction ``topk_mean``."""


def _check_layer(query: Tensor, support: Tensor, masks: Tensor) -> None:
    if query.dim() != 4:
        raise ValueError(f"{_OP}: query must have shape [B, C, h, w], got {list(query.shape)}")
    if support.dim() != 5:
        raise ValueError(f"{_OP}: support must have shape [B, K, C, y, x], got {list(support.shape)}")
    if masks.dim() not in (4, 5):
        raise ValueError(f"{_OP}: masks must have shape [B, K, y, x] or [B, N, K, y, x], got {list(masks.shape)}")
    batch, channels = query.shape[:2]
    if support.shape[0] != batch or support.shape[2] != channels:
        raise ValueError(
            f"{_OP}: support must have the images and channels of query, [{batch}, K, {channels}, y, x], got "
            f"{list(support.shape)}"
        )
    shots, size = support.shape[1], list(support.shape[3:])
    if shots == 0:
        raise ValueError(f"{_OP}: support must have at least one shot, got {list(support.shape)}")
    if masks.shape[0] != batch or masks.shape[-3] != shots or list(masks.shape[-2:]) != size:
        raise ValueError(
            f"{_OP}: masks must have the images, shots and size of support, "
            f"[{batch}, (N,) {shots}, {size[0]}, {size[1]}], got {list(masks.shape)}"
        )
    for name, tensor in (("query", query), ("support", support)):
        check_float(_OP, name, tensor)
        if 0 in tensor.shape[-2:]:
            raise ValueError(f"{_OP}: {name} must have at least one position, got {list(tensor.shape)}")
    if masks.dtype not in (torch.bool, torch.uint8):
        check_float(_OP, "masks", masks)
    for name, tensor in (("support", support), ("masks", masks)):
        if tensor.device != query.device:
            raise ValueError(f"{_OP}: {name} must be on the device of query, {query.device}, got {tensor.device}")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{_OP}: {name} must be one of {', '.join(allowed)}, got {value!r}")


def _as_layers(name: str, value: Tensor | Sequence[Tensor], count: int) -> list[Tensor]:
    layers = [value] if isinstance(value, Tensor) else list(value)
    if name == "masks" and isinstance(value, Tensor):
        layers *= count
    if len(layers) != count:
        raise ValueError(f"{_OP}: {name} must have as many layers as query, {count}, got {len(layers)}")
    return layers


@overload
def cosine_correlation(
    query: Tensor,
    support: Tensor,
    masks: Tensor,
    *,
    reduction: str = ...,
    k: int = ...,
    divisor: str = ...,
    relu: bool = ...,
    eps: float = ...,
    eps_rule: str = ...,
    shots: str = ...,
    backend: str | None = ...,
) -> Tensor: ...
@overload
def cosine_correlation(
    query: Sequence[Tensor],
    support: Sequence[Tensor],
    masks: Tensor | Sequence[Tensor],
    *,
    reduction: str = ...,
    k: int = ...,
    divisor: str = ...,
    relu: bool = ...,
    eps: float = ...,
    eps_rule: str = ...,
    shots: str = ...,
    backend: str | None = ...,
) -> list[Tensor]: ...
def cosine_correlation(
    query: Tensor | Sequence[Tensor],
    support: Tensor | Sequence[Tensor],
    masks: Tensor | Sequence[Tensor],
    *,
    reduction: str = "mean",
    k: int = 1,
    divisor: str = "kept",
    relu: bool = True,
    eps: float = 1e-5,
    eps_rule: str = "add_to_norms",
    shots: str = "separate",
    backend: str | None = None,
) -> Tensor | list[Tensor]:
    r"""What every query position has in common with the support positions under a mask.

    .. math:: r_p = \operatorname{reduce}_{s:\, m_s \ne 0} \max\!\left(0, \frac{\langle q_p, m_s f_s\rangle}
              {(|q_p| + \epsilon)(|m_s f_s| + \epsilon)}\right)

    A support position is kept where its mask is not 0; the features there are multiplied by the mask. Those outside
    are zero vectors: their cosine is 0 and they are not read, whatever is in them. The array of all cosines is never
    formed.

    As published:

    - MSANet, multi-similarity: the defaults; masks = where(m >= mean of the positive m, m, 0); then the mean
      over shots.
    - The same in HSNet's dense form, averaged over all positions: ``divisor="all"``.
    - PFENet and BAM (MSANet), prior mask: ``reduction="max", divisor="all", relu=False, eps=1e-7,
      eps_rule="add_to_product"``; the caller scales the result to 0..1 per image.

    Args:
        query: [B, C, h, w], or a list of layers, each with channels and size of its own. float32, float64, float16 or
            bfloat16; contiguous and channels-last memory are both read without a copy on the CPU.
        support: [B, K, C, y, x] of the same dtype, or as many layers; y x may differ from h w.
        masks: [B, K, y, x], or [B, N, K, y, x] for several masks of the same images; one tensor for all layers (if
            their sizes agree) or one per layer: how a mask is resized is the caller's choice. bool, uint8 or float.
        reduction: ``mean``, ``max``, or ``topk_mean``: the mean of the ``k`` largest.
        k: 1 to 32, for ``topk_mean``; if fewer positions count, all of them enter.
        divisor: ``kept``: the reduction runs over the kept positions. ``all``: over all positions, the others as 0.
        relu: negative cosines count as 0.
        eps: 0 or more; see ``eps_rule``.
        eps_rule: the product of lengths is ``add_to_norms``: (\|q\| + eps)(\|mf\| + eps); ``add_to_product``:
            \|q\|\|mf\| + eps; ``clamp_norms``: max(\|q\|, eps) max(\|mf\|, eps).
        shots: ``separate``: one map per shot. ``joint``: the positions of all shots are reduced together.
        backend: ``native`` or ``reference``; by default what FSSOPS_BACKEND says.

    Returns:
        [B, K, h, w] (K = 1 if joint; [B, N, K, h, w] if masks have N), in the dtype of query, or a list of them. 0
        where no position counts. Products and sums are float32 (float64 for float64). bfloat16 on the CPU uses its dot
        products where the processor has them; autocast leaves half types as they are.
        Gradients flow to query and support, not to masks; of equal largest cosines the first one gets it. Results are
        deterministic on every device.

    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.

    Source: MSANet (Iqbal et al., 2022), section 3.2; HSNet (Min et al., ICCV 2021), eq. 1; PFENet (Tian et al., TPAMI
    2020), eq. 4 to 6.
    """
    single = isinstance(query, Tensor)
    queries = [query] if isinstance(query, Tensor) else list(query)
    if not queries:
        raise ValueError(f"{_OP}: query must have at least one layer, got 0")
    supports = _as_layers("support", support, len(queries))
    mask_layers = _as_layers("masks", masks, len(queries))
    for q, s, m in zip(queries, supports, mask_layers, strict=True):
        _check_layer(q, s, m)
        if m.dim() != mask_layers[0].dim() or m.shape[:-2] != mask_layers[0].shape[:-2]:
            raise ValueError(
                f"{_OP}: masks must have the same images, masks and shots in every layer, {list(mask_layers[0].shape)},"
                f" got {list(m.shape)}"
            )
        if q.dtype != queries[0].dtype:
            raise TypeError(f"{_OP}: query must have one dtype in all layers, {queries[0].dtype}, got {q.dtype}")
        if s.dtype != q.dtype:
            raise TypeError(f"{_OP}: support must have the dtype of query, {q.dtype}, got {s.dtype}")
    _check_choice("reduction", reduction, REDUCTIONS)
    _check_choice("divisor", divisor, DIVISORS)
    _check_choice("eps_rule", eps_rule, EPS_RULES)
    _check_choice("shots", shots, SHOTS)
    if not 1 <= k <= MAX_K:
        raise ValueError(f"{_OP}: k must be 1 to {MAX_K}, got {k}")
    if not eps >= 0:
        raise ValueError(f"{_OP}: eps must be 0 or more, got {eps}")

    dtype = queries[0].dtype
    has_masks_axis = mask_layers[0].dim() == 5
    if not has_masks_axis:
        mask_layers = [m[:, None] for m in mask_layers]
    if use_reference(backend, _OP):
        results = [
            reference.cosine_correlation(
                q, s, m, reduction=reduction, k=k, divisor=divisor, relu=relu, eps=eps, eps_rule=eps_rule, shots=shots
            )
            for q, s, m in zip(queries, supports, mask_layers, strict=True)
        ]
    else:
        if queries[0].device.type == "cpu" and dtype == torch.float16:
            queries, supports = [q.float() for q in queries], [s.float() for s in supports]
        accumulator = _accumulator(dtype)
        values: Tensor = call(
            torch.ops.fssops.cosine_correlation.default,
            queries,
            supports,
            [m.detach().to(accumulator) for m in mask_layers],
            REDUCTIONS.index(reduction),
            k,
            divisor == "all",
            relu,
            float(eps),
            EPS_RULES.index(eps_rule),
            shots == "joint",
        )[0]
        batch, count, groups = mask_layers[0].shape[:3]
        groups = 1 if shots == "joint" else groups
        shapes = [(batch, count, groups, *q.shape[2:]) for q in queries]
        parts = values.split([batch * count * groups * q.shape[2] * q.shape[3] for q in queries])
        results = [part.view(shape).to(dtype) for part, shape in zip(parts, shapes, strict=True)]
    if not has_masks_axis:
        results = [r[:, 0] for r in results]
    return results[0] if single else results


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake(
    query: list[Tensor],
    support: list[Tensor],
    masks: list[Tensor],
    reduction: int,
    k: int,
    all_positions: bool,
    relu: bool,
    eps: float,
    eps_rule: int,
    joint: bool,
) -> tuple[Tensor, Tensor]:
    batch, count, shots = masks[0].shape[:3]
    units = batch * count * (1 if joint else shots)
    rows = sum(units * q.shape[2] * q.shape[3] for q in query)
    support_positions = (0, rows, k * rows)[reduction]
    return masks[0].new_empty((rows,)), masks[0].new_empty((support_positions,), dtype=torch.int32)


def _fake_backward(
    grad: Tensor,
    query: list[Tensor],
    support: list[Tensor],
    masks: list[Tensor],
    support_positions: Tensor,
    reduction: int,
    k: int,
    all_positions: bool,
    relu: bool,
    eps: float,
    eps_rule: int,
    joint: bool,
    need_query: bool,
    need_support: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    # The CPU adds gradients up in float32 and leaves rounding to the caller.
    dtype = _accumulator(query[0].dtype) if query[0].device.type == "cpu" else query[0].dtype
    return (
        [q.new_empty(q.shape, dtype=dtype) for q in query] if need_query else [],
        [s.new_empty(s.shape, dtype=dtype) for s in support] if need_support else [],
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, support, masks, *settings = inputs
    _, support_positions = output
    ctx.save_for_backward(*query, *support, *masks, support_positions)
    ctx.settings = settings
    ctx.mark_non_differentiable(support_positions)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    *tensors, support_positions = ctx.saved_tensors
    count = len(tensors) // 3
    query, support, masks = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
    need_query, need_support = any(ctx.needs_input_grad[0]), any(ctx.needs_input_grad[1])
    grad_query, grad_support = torch.ops.fssops.cosine_correlation_backward.default(
        grad, query, support, masks, support_positions, *ctx.settings, need_query, need_support
    )
    dtype = query[0].dtype
    grad_query, grad_support = [g.to(dtype) for g in grad_query], [g.to(dtype) for g in grad_support]
    nothing = [None] * count
    return grad_query or nothing, grad_support or nothing, nothing, *[None] * len(ctx.settings)


register(_OP, fake=_fake, backward=_backward, setup_context=_setup_context, autocast_cpu=False)
register(f"{_OP}_backward", fake=_fake_backward, autocast_cpu=False)
