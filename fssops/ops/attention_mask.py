"""Masks of masked attention, one bit a key: made from logits, from embeddings or from booleans, and combined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fssops.ops._backend import check_float, register, use_reference
from fssops.reference.masked_attention import (
    WORD_BITS,
    closed_from_embeddings,
    closed_from_logits,
    unpack_bits,
)
from fssops.reference.masked_attention import pack_bits as pack_bits_reference


class AttentionMask(NamedTuple):
    """Where each query may attend, one bit a key.

    A query whose mask closes every key is open to all of them already, so ``bits`` says what will be attended to.

    Attributes:
        bits: [B, 1 or M, Q, ceil(S / 32)] int32; bit i of word w is 1 where key 32 w + i is open. What is past the last
            key is not read. The second size is 1 where the heads share the mask.
        keys: S.
    """

    bits: Tensor
    keys: int

    def closed(self) -> Tensor:
        """[B, 1 or M, Q, S] bool, True = may not attend."""
        return unpack_bits(self.bits, self.keys)

    def with_padding(self, padding: Tensor) -> AttentionMask:
        """This mask with padded keys closed to every query.

        A query that had open keys only among the padded ones attends to every real key: the order is mask, padding,
        opening of empty queries, padding again. Where every key of an image is padding, its queries give 0.

        Args:
            padding: [B, S] bool, True = padding.
        """
        _expect("padding", padding, torch.bool, (self.bits.shape[0], self.keys), "[B, S] bool")
        return self._within(pack_bits(padding[:, None, None], open_empty=False))

    def with_groups(self, query_groups: Tensor, key_groups: Tensor) -> AttentionMask:
        """This mask with every key closed to the queries outside its group.

        Groups are how mask-piloted queries (MP-Former) are kept apart in self-attention: group k of them is numbered k,
        normal queries and keys -1. A key of group -1 is open to all, a key of group k >= 0 to queries of group k only.
        A query left with no open key attends to every key that its group permits.

        Args:
            query_groups: [Q] or [B, Q] integers.
            key_groups: [S] or [B, S] integers.
        """
        batch, _, queries, _ = self.bits.shape
        query_groups = _each("query_groups", query_groups, batch, queries)
        key_groups = _each("key_groups", key_groups, batch, self.keys)
        closed = (key_groups[:, None] >= 0) & (key_groups[:, None] != query_groups[:, :, None])
        return self._within(pack_bits(closed[:, None], open_empty=False))

    def with_open_queries(self, queries: Tensor) -> AttentionMask:
        """This mask with the chosen queries open to every key.

        Args:
            queries: [Q] or [B, Q] bool, True = open everywhere.
        """
        batch, _, count, _ = self.bits.shape
        if queries.dtype != torch.bool:
            raise TypeError(f"attention mask: queries must be bool, got {queries.dtype}")
        opens = _each("queries", queries, batch, count)[:, None, :, None]
        opened = pack_bits(queries.new_zeros(1, 1, 1, self.keys), open_empty=False)
        return AttentionMask(torch.where(opens, opened, self.bits), self.keys)

    def _within(self, permitted: Tensor) -> AttentionMask:
        both = self.bits & permitted
        return AttentionMask(torch.where((both == 0).all(-1, keepdim=True), permitted, both), self.keys)


def concatenate_attention_masks(masks: Sequence[AttentionMask]) -> AttentionMask:
    """The mask of several sets of queries in one sequence, in the order given.

    MP-Former's cross-attention: the noised ground-truth masks of the piloted queries first, then the predicted masks.
    A mask shared by the heads joins one of its own a head.

    Raises:
        ValueError: if there is none, or they differ in batch, keys or heads of their own.
    """
    if not masks:
        raise ValueError("concatenate_attention_masks: masks must hold at least one mask, got none")
    first = masks[0]
    for mask in masks[1:]:
        if mask.keys != first.keys or mask.bits.shape[0] != first.bits.shape[0]:
            raise ValueError(
                f"concatenate_attention_masks: masks must be of one batch and number of keys, {first.bits.shape[0]} "
                f"and {first.keys}, got {mask.bits.shape[0]} and {mask.keys}"
            )
    counts = {mask.bits.shape[1] for mask in masks if mask.bits.shape[1] != 1}
    if len(counts) > 1:
        raise ValueError(f"concatenate_attention_masks: masks must be of 1 or the same heads, got {sorted(counts)}")
    heads = max(counts, default=1)
    bits = [mask.bits.expand(-1, heads, -1, -1) for mask in masks]
    return AttentionMask(torch.cat(bits, dim=2), first.keys)


def _expect(argument: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], rule: str) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(
            f"attention mask: {argument} must be {rule}, {list(shape)}, got {list(tensor.shape)} {tensor.dtype}"
        )


def _each(argument: str, tensor: Tensor, batch: int, count: int) -> Tensor:
    """[B, count] of a tensor [count] or [B, count]."""
    if tuple(tensor.shape) not in ((count,), (batch, count)):
        raise ValueError(
            f"attention mask: {argument} must have shape [{count}] or [{batch}, {count}], got {list(tensor.shape)}"
        )
    return tensor.expand(batch, count)


def pack_bits(closed: Tensor, *, open_empty: bool, backend: str | None = None) -> Tensor:
    """Bits [B, 1 or M, Q, words] of closed [B, 1 or M, Q, S] bool."""
    if use_reference(backend, "attention_mask_pack"):
        return pack_bits_reference(closed, open_empty)
    bits: Tensor = torch.ops.fssops.attention_mask_pack.default(closed, open_empty)
    return bits


def pack_attention_mask(closed: Tensor, *, backend: str | None = None) -> AttentionMask:
    """Packs a boolean mask; a query with no open key is opened to all of them.

    Args:
        closed: [B, Q, S] (shared by the heads) or [B, 1 or M, Q, S] bool, True = may not attend.
        backend: ``native`` or ``reference``; by default what FSSOPS_BACKEND says.

    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.
    """
    if closed.dtype != torch.bool:
        raise TypeError(f"pack_attention_mask: closed must be bool, got {closed.dtype}")
    if closed.dim() not in (3, 4):
        raise ValueError(
            f"pack_attention_mask: closed must have shape [B, Q, S] or [B, M, Q, S], got {list(closed.shape)}"
        )
    if closed.dim() == 3:
        closed = closed[:, None]
    return AttentionMask(pack_bits(closed, open_empty=True, backend=backend), closed.shape[-1])


def attention_mask_from_logits(
    mask_logits: Tensor, size: tuple[int, int], *, backend: str | None = None
) -> AttentionMask:
    """The mask that predicted mask logits draw, at another size.

    The logits are resized bilinearly (``align_corners=False``, no antialiasing) and a key is closed where the result is
    negative, which is where its sigmoid is below 0.5; exactly 0 and NaN are open. (Published code asks for the rounded
    sigmoid, which calls logits between -1e-7 and 0 open.) A query with every key closed is opened to all of them.

    Args:
        mask_logits: [B, Q, h, w] float32, float64, float16 or bfloat16 (computed in float32). No gradient.
        size: (H, W) of the keys, S = H W in rows.
        backend: ``native`` or ``reference``; by default what FSSOPS_BACKEND says.

    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.

    Source: Mask2Former (Cheng et al., CVPR 2022), eq. 4 and its code.
    """
    op = "attention_mask_from_logits"
    if mask_logits.dim() != 4:
        raise ValueError(f"{op}: mask_logits must have shape [B, Q, h, w], got {list(mask_logits.shape)}")
    check_float(op, "mask_logits", mask_logits)
    height, width = size
    if height < 0 or width < 0 or height >= 1 << 15 or width >= 1 << 15:
        raise ValueError(f"{op}: size must be two numbers of 0 to 32767, got {size}")
    if 0 in mask_logits.shape[2:] and height * width > 0:
        raise ValueError(f"{op}: mask_logits must have at least one pixel, got {list(mask_logits.shape)}")
    mask_logits = mask_logits.detach()
    if mask_logits.device.type == "cpu" and mask_logits.dtype in (torch.float16, torch.bfloat16):
        mask_logits = mask_logits.float()
    if use_reference(backend, op):
        bits = pack_bits_reference(closed_from_logits(mask_logits, (height, width)))[:, None]
    else:
        bits = torch.ops.fssops.attention_mask_from_logits.default(mask_logits, height, width)
    return AttentionMask(bits, height * width)


def attention_mask_from_embeddings(
    mask_embeddings: Tensor,
    mask_features: Tensor,
    size: tuple[int, int] | None = None,
    *,
    backend: str | None = None,
) -> AttentionMask:
    """The mask that mask embeddings draw on mask features, without forming their product.

    Resizing is linear: resized ``einsum(embedding, features)`` equals ``einsum(embedding, resized features)``. So the
    features are resized once an image and level, and every decoder layer's mask comes from them. A key is closed where
    <embedding, feature> is negative; exactly 0 and NaN are open; a query with every key closed is opened to all keys.

    Args:
        mask_embeddings: [B, Q, C] float32, float64, float16 or bfloat16 (accumulated in float32). No gradient.
        mask_features: [B, C, h, w] or, flattened, [B, C, S], of the same dtype. No gradient.
        size: (H, W) to which features [B, C, h, w] are resized first (bilinear, ``align_corners=False``); None where
            they have the size of the keys already.
        backend: ``native`` or ``reference``; by default what FSSOPS_BACKEND says.

    Raises:
        ValueError, TypeError: naming the argument, the rule and the value.

    Source: Mask2Former (Cheng et al., CVPR 2022), eq. 4; the order of resizing and projection is ours.
    """
    op = "attention_mask_from_embeddings"
    if mask_embeddings.dim() != 3:
        raise ValueError(f"{op}: mask_embeddings must have shape [B, Q, C], got {list(mask_embeddings.shape)}")
    if mask_features.dim() not in (3, 4):
        raise ValueError(
            f"{op}: mask_features must have shape [B, C, h, w] or [B, C, S], got {list(mask_features.shape)}"
        )
    check_float(op, "mask_embeddings", mask_embeddings)
    check_float(op, "mask_features", mask_features)
    batch, _, channels = mask_embeddings.shape
    if mask_features.shape[:2] != (batch, channels):
        raise ValueError(
            f"{op}: mask_features must have the batch size and channels of mask_embeddings, {[batch, channels]}, got "
            f"{list(mask_features.shape)}"
        )
    mask_embeddings, mask_features = mask_embeddings.detach(), mask_features.detach()
    common, other = mask_embeddings.dtype, mask_features.dtype
    if common != other:
        common = torch.float64 if torch.float64 in (common, other) else torch.float32
    if mask_embeddings.device.type == "cpu" and common in (torch.float16, torch.bfloat16):
        common = torch.float32
    mask_embeddings, mask_features = mask_embeddings.to(common), mask_features.to(common)
    if size is not None and tuple(mask_features.shape[2:]) != tuple(size):
        if mask_features.dim() != 4:
            raise ValueError(
                f"{op}: mask_features must have shape [B, C, h, w] to be resized, got {list(mask_features.shape)}"
            )
        mask_features = F.interpolate(mask_features, size=size, mode="bilinear", align_corners=False)
    mask_features = mask_features.flatten(2)
    if use_reference(backend, op):
        bits = pack_bits_reference(closed_from_embeddings(mask_embeddings, mask_features))[:, None]
    else:
        bits = torch.ops.fssops.attention_mask_from_embeddings.default(mask_embeddings, mask_features)
    return AttentionMask(bits, mask_features.shape[2])


def _words(keys: int) -> int:
    return (keys + WORD_BITS - 1) // WORD_BITS


def _fake_pack(closed: Tensor, open_empty: bool) -> Tensor:
    batch, heads, queries, keys = closed.shape
    return closed.new_empty((batch, heads, queries, _words(keys)), dtype=torch.int32)


def _fake_from_logits(mask_logits: Tensor, height: int, width: int) -> Tensor:
    batch, queries = mask_logits.shape[:2]
    return mask_logits.new_empty((batch, 1, queries, _words(height * width)), dtype=torch.int32)


def _fake_from_embeddings(mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
    batch, queries, _ = mask_embeddings.shape
    return mask_features.new_empty((batch, 1, queries, _words(mask_features.shape[2])), dtype=torch.int32)


register("attention_mask_pack", fake=_fake_pack, autocast_cpu=False)
register("attention_mask_from_logits", fake=_fake_from_logits)
register("attention_mask_from_embeddings", fake=_fake_from_embeddings)
