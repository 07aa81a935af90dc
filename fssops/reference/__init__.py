"""Plain PyTorch definitions of every operator: the oracle of the tests, and the explicit fallback.

They import torch only, so that what judges the kernels does not depend on them.
"""

from fssops.reference.masked_attention import masked_attention
from fssops.reference.masked_average_pooling import masked_average_pooling
from fssops.reference.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused

__all__ = [
    "masked_attention",
    "masked_average_pooling",
    "ms_deform_attn",
    "ms_deform_attn_fused",
]
