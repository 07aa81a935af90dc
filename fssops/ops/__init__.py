"""The operators: one public function each, on CPU and CUDA kernels of our own.

Shape letters: B batch, N ways or masks, K shots, Q queries, C channels, H W image or mask size, h w feature size,
L levels, P points, M heads, D channels per head, S flattened tokens, T frames.

Importing this package loads the native library, or raises one error that says why it cannot and what mends it.
``FSSOPS_BACKEND=reference`` runs the PyTorch definitions of ``fssops.reference`` instead, on purpose.
"""

from fssops.ops.assignment import assign
from fssops.ops.attention_mask import (
    AttentionMask,
    attention_mask_from_embeddings,
    attention_mask_from_logits,
    concatenate_attention_masks,
    pack_attention_mask,
)
from fssops.ops.cosine_correlation import cosine_correlation
from fssops.ops.cosine_similarity_to_prototypes import cosine_similarity_to_prototypes, prototype_similarity
from fssops.ops.masked_attention import masked_attention
from fssops.ops.masked_average_pooling import masked_average_pooling
from fssops.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused
from fssops.ops.point_mask_loss import pairwise_mask_cost, point_mask_loss
from fssops.ops.point_sampling import sample_points, uncertain_points, uniform_points
from fssops.reference.mask_sources import FactoredMasks, PackedMasks, RunLengthMasks

__all__ = [
    "AttentionMask",
    "FactoredMasks",
    "PackedMasks",
    "RunLengthMasks",
    "assign",
    "attention_mask_from_embeddings",
    "attention_mask_from_logits",
    "concatenate_attention_masks",
    "cosine_correlation",
    "cosine_similarity_to_prototypes",
    "masked_attention",
    "masked_average_pooling",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "pack_attention_mask",
    "pairwise_mask_cost",
    "point_mask_loss",
    "prototype_similarity",
    "sample_points",
    "uncertain_points",
    "uniform_points",
]
