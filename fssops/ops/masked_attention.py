"""Masked attention: attention under a mask of bits that the heads share.

What it costs, for the largest level of a 1024 x 1024 image in Mask2Former (100 queries, 8 heads of 32, 16,384 keys,
half of them open, half precision): key and value are read once, 16.8 MB, and the mask is 0.2 MB, where bytes for every
head would be 13 MB and the attention matrix 26 MB. Open pairs take 0.84 GFLOP. An H200 (4.8 TB/s, 989 TFLOP/s on
paper) needs 3.5 us for the bytes and 0.9 us for the products: memory is the limit, which is why closed tiles are
skipped before their keys are read, and why keys are split over blocks where queries are few. The backward pass reads
key and value again and writes their gradients, 34 MB in half precision, and makes the products anew: 2.9 GFLOP. Making
the mask from logits reads them once, 13 MB; from embeddings and features it reads 8.4 MB and multiplies 0.84 GFLOP.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fssops import reference
from fssops.ops._backend import call, check_float, register, use_reference
from fssops.ops.attention_mask import AttentionMask, pack_attention_mask

_OP = "masked_attention"
LARGEST_HEAD = 128
"""The largest head size that the kernels take."""


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.dim() != 4:
        raise ValueError(f"{_OP}: query must have shape [B, M, Q, D], got {list(query.shape)}")
    check_float(_OP, "query", query)
    batch, heads, _, depth = query.shape
    if not 1 <= depth <= LARGEST_HEAD:
        raise ValueError(f"{_OP}: query must have a head size of 1 to {LARGEST_HEAD}, got {list(query.shape)}")
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dim() != 4 or tensor.shape[:2] != (batch, heads) or tensor.shape[3] != depth:
            raise ValueError(
                f"{_OP}: {name} must have shape [B, M, S, D] = [{batch}, {heads}, S, {depth}], got {list(tensor.shape)}"
            )
        if tensor.dtype != query.dtype:
            raise TypeError(f"{_OP}: {name} must have the dtype of query, {query.dtype}, got {tensor.dtype}")
        if tensor.device != query.device:
            raise ValueError(f"{_OP}: {name} must be on the device of query, {query.device}, got {tensor.device}")
    if key.shape[2] != value.shape[2]:
        raise ValueError(f"{_OP}: value must have as many rows as key, {key.shape[2]}, got {list(value.shape)}")


def _check_mask(mask: AttentionMask, query: Tensor, key: Tensor) -> None:
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    if mask.keys != keys:
        raise ValueError(f"{_OP}: mask must be for the {keys} keys given, got one for {mask.keys}")
    words, shape = (keys + 31) // 32, mask.bits.shape
    if len(shape) != 4 or shape[0] != batch or shape[1] not in (1, heads) or shape[2] != queries or shape[3] != words:
        raise ValueError(f"{_OP}: mask must have bits [{batch}, 1 or {heads}, {queries}, {words}], got {list(shape)}")
    if mask.bits.dtype != torch.int32:
        raise TypeError(f"{_OP}: mask must have int32 bits, got {mask.bits.dtype}")
    if mask.bits.device != query.device:
        raise ValueError(f"{_OP}: mask must be on the device of query, {query.device}, got {mask.bits.device}")


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask | Tensor | None = None,
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Attention under a mask that says, query by query, which keys are open.

    .. math:: o_{bmq} = \sum_s \operatorname{softmax}_{s \in \text{open}(b, q)}\bigl(\sigma\,
        q_{bmq} \cdot k_{bms}\bigr)\, v_{bms}

    Nothing of size Q S is formed but the mask's bits: keys are read tile by tile with a running softmax, and the
    backward pass computes the weights anew. Closed tiles are skipped. Half types are accumulated in float32 (on the
    CPU: computed in float32). Results are deterministic on every device, forward and backward.

    Args:
        query: [B, M, Q, D] float32, float64, float16 or bfloat16; D is 1 to 128. Views such as
            ``[B, Q, M, D].transpose(1, 2)`` are read in place.
        key: [B, M, S, D], dtype and device of query.
        value: [B, M, S, D].
        mask: an :class:`AttentionMask`; or bool [B, Q, S] or [B, 1 or M, Q, S], True = may not attend (packed by
            :func:`pack_attention_mask`, which opens a query with no open key to all keys, as published); None: all
            open.
        scale: :math:`\sigma`; by default :math:`D^{-1/2}`.
        backend: ``native`` or ``reference``; by default what FSSOPS_BACKEND says.

    Returns:
        [B, M, Q, D] in the dtype of query, laid out as [B, Q, M, D] in memory. A query with no key at all (S = 0, or
        every key is padding) gives 0, and no gradient. NaN and Inf at open keys give NaN and Inf; at closed keys they
        are multiplied by 0 or skipped, and which is not specified. Gradients flow to query, key and value.

    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.

    Source: Mask2Former (Cheng et al., CVPR 2022), eq. 2 to 4; the running softmax: Milakov and Gimelshein (2018), Dao
    et al. (FlashAttention, 2022), algorithm 1.
    """
    if query.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        wanted = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(wanted), key.to(wanted), value.to(wanted)
    _check(query, key, value)
    if scale is None:
        scale = float(query.shape[3]) ** -0.5
    if isinstance(mask, Tensor):
        if mask.dtype != torch.bool:
            raise TypeError(f"{_OP}: mask must be bool, True = may not attend, or an AttentionMask, got {mask.dtype}")
        mask = pack_attention_mask(mask, backend=backend)
    if mask is not None:
        _check_mask(mask, query, key)
    if use_reference(backend, _OP):
        closed = None if mask is None else mask.closed()
        return reference.masked_attention(query, key, value, closed, scale=scale, open_empty=False)
    dtype = query.dtype
    if query.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        query, key, value = query.float(), key.float(), value.float()
    bits = None if mask is None else mask.bits
    out: Tensor = call(torch.ops.fssops.masked_attention.default, query, key, value, bits, scale)[0]
    return out if out.dtype == dtype else out.to(dtype)


def _heads_last(like: Tensor, rows: int) -> Tensor:
    batch, heads, _, depth = like.shape
    return like.new_empty((batch, rows, heads, depth)).transpose(1, 2)


def _fake(query: Tensor, key: Tensor, value: Tensor, bits: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    accumulator = torch.float64 if query.dtype == torch.float64 else torch.float32
    return _heads_last(query, query.shape[2]), query.new_empty(query.shape[:3], dtype=accumulator)


def _fake_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bits: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
    need_query: bool,
    need_key: bool,
    need_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = ((need_query, query.shape[2]), (need_key, key.shape[2]), (need_value, key.shape[2]))
    grads = [_heads_last(query, rows) if need else query.new_empty(0) for need, rows in wanted]
    return grads[0], grads[1], grads[2]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, bits, scale = inputs
    out, logsumexp = output
    ctx.save_for_backward(query, key, value, bits, out, logsumexp)
    ctx.scale = scale
    ctx.mark_non_differentiable(logsumexp)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
    query, key, value, bits, out, logsumexp = ctx.saved_tensors
    need = ctx.needs_input_grad[:3]
    grads = torch.ops.fssops.masked_attention_backward.default(
        grad, query, key, value, bits, out, logsumexp, ctx.scale, need[0], need[1], need[2]
    )
    wanted = [g if n else None for g, n in zip(grads, need, strict=True)]
    return wanted[0], wanted[1], wanted[2], None, None


register(_OP, fake=_fake, backward=_backward, setup_context=_setup_context)
register(f"{_OP}_backward", fake=_fake_backward, autocast_cpu=False)
