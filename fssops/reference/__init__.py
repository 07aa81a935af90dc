"""Plain PyTorch definitions of every operator: the oracle of the tests, and the explicit fallback.

They import torch only, so that what judges the kernels does not depend on them.
"""

from fssops.reference.cosine_correlation import cosine_correlation
from fssops.reference.cosine_similarity_to_prototypes import cosine_similarity_to_prototypes, prototype_similarity
from fssops.reference.mask_sources import FactoredMasks, PackedMasks, RunLengthMasks
from fssops.reference.masked_attention import masked_attention
from fssops.reference.masked_average_pooling import masked_average_pooling
from fssops.reference.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused
from fssops.reference.point_mask_loss import (
    pairwise_mask_cost,
    point_mask_loss,
    sample_points,
    uncertain_points,
    uniform_points,
)

__all__ = [
    "FactoredMasks",
    "PackedMasks",
    "RunLengthMasks",
    "cosine_correlation",
    "cosine_similarity_to_prototypes",
    "masked_attention",
    "masked_average_pooling",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "pairwise_mask_cost",
    "point_mask_loss",
    "prototype_similarity",
    "sample_points",
    "uncertain_points",
    "uniform_points",
]
